"""Reads self-consistent hostile manifests: each a good one with a field changed and every checksum made right again.

    hostile_worker.py DIRECTORY FIRST LAST      of the kinds in KINDS, in turn; prints what became of each

What is refused with an error of ours, or read as it should be, is fine; anything else ends this process.
"""

import contextlib
import copy
import hashlib
import io
import json
import random
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from flare_ds.adapters.card import write_card
from flare_ds.adapters.files import check_settings, saved_settings
from flare_ds.checksums import json_sha256
from flare_ds.cli import main
from flare_ds.data.cache import open_cache, prepare_cache, verify
from flare_ds.data.states import find_store
from flare_ds.exceptions import FlareError
from flare_ds.published import with_checksum
from flare_ds.tasks.base import Answer, Row
from flare_ds.tasks.load import task_of
from flare_ds.training.state import load_state, saved_adapter
from flare_ds.translation.quality import Report
from flare_ds.translation.store import read_translation
from tests.data.cache.test_corruption import read
from tests.data.cache.texts import byte_tokenizer, make_config, some_tables, write_tables
from tests.data.test_states import STORE, write_store

GIBIBYTE = 2**30
DEEP = "[" * 2000 + "]" * 2000
VALUES: list[Any] = [
    None, True, -1, 0, 1, 2**31, 2**63, 10**400, 1.5, float("nan"), float("inf"), "", "x", "../../x", "/etc/passwd",
    "a\0b", "|O", "O", "S3", "<U4", ">i8", "<f8", "<i8", "<i4", "|u1", "<u2", "<u4", "|V8", "<M8[s]", "i4,i4", "nn",
    "complex64", "load", "float64", "\ud83d", [], {}, [-1], [2**62], [2, 2], [None], {"a": 1}, {"../x": 1}, [[[[]]]],
    [0], ["|O"], DEEP,
]  # fmt: skip
Read = Callable[[Path], object]


@dataclass(frozen=True)
class Kind:
    """A kind of stored thing.

    Attributes:
        good: a whole one.
        load: its manifest.
        save: write a changed manifest, with its checksums made right.
        read: everything that is ever read of it.
    """

    good: Path
    load: Callable[[Path], Any]
    save: Callable[[Path, Any], None]
    read: Read


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a structure: what holds it, and its key there."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from places(inner)


def change(draw: random.Random, manifest: Any) -> Any:
    """Change one to three places of a manifest."""
    manifest = copy.deepcopy(manifest)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        holder, key = draw.choice(list(places(manifest)))
        how = draw.randrange(6)
        if how == 0 and isinstance(holder, dict):
            del holder[key]
        elif how == 1 and isinstance(holder, dict):
            holder[str(draw.choice(["../../x", "/x", "extra", "train.x.npy"]))] = copy.deepcopy(holder[key])
        else:
            holder[key] = copy.deepcopy(draw.choice(VALUES))
        if not list(places(manifest)):
            break
    return manifest


def plain(path: Path) -> Any:
    return json.loads(path.read_text())


def dump(value: Any) -> str:
    """As JSON; the deep text stands for what it looks like."""
    return json.dumps(value).replace(f'"{DEEP}"', DEEP)


def sealed(manifest: dict[str, Any]) -> bytes:
    """A manifest with its checksum made right."""
    return with_checksum(manifest).replace(json.dumps(DEEP).encode(), DEEP.encode())


def make_cache(root: Path, *, free_answers: bool) -> Kind:
    tables = some_tables(20)
    if free_answers:
        for by_language in tables.values():
            for record in (record for records in by_language.values() for record in records):
                del record["label"]
                record["answers"] = {"text": [record["note"]], "answer_start": [0]}
    write_tables(root, tables)
    return Kind(
        prepare_cache(make_config(root, free_answers=free_answers), byte_tokenizer()),
        lambda path: plain(path / "manifest.json"),
        save_cache,
        read_cache,
    )


def save_cache(path: Path, manifest: Any) -> None:
    """Headers and sizes are made to agree with what the manifest says, where it says something that can be."""
    if isinstance(manifest, dict):
        manifest.pop("checksum", None)
        for name, section in (
            (manifest.get("sections") or {}).items() if isinstance(manifest.get("sections"), dict) else ()
        ):
            with contextlib.suppress(Exception):
                agree(path / name, section)
        if isinstance(manifest.get("fields"), dict):
            manifest["key"] = json_sha256(manifest["fields"])
        (path / "manifest.json").write_bytes(sealed(manifest))
    else:
        (path / "manifest.json").write_text(dump(manifest))


def agree(file: Path, section: dict[str, Any]) -> None:
    """Write a section's file as its manifest describes it, and its checksum as the file has it."""
    if not file.resolve().is_relative_to(file.parent):
        return
    (length,), dtype = section["shape"], np.dtype(section["dtype"])
    data = (file.read_bytes()[128:] * 9)[: length * dtype.itemsize]
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype.str, "fortran_order": False, "shape": (length,)})
    file.write_bytes(header.getvalue() + data)
    section |= {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def read_cache(path: Path) -> object:
    quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with quiet[0], quiet[1]:
        for words in (["stats", path], ["verify", path], ["ls", path.parent], ["diff", path, path]):
            main(["cache", *map(str, words)])
        main(["inspect", str(path), "--rows", "2"])
    verify(path)
    return read(open_cache(path))[1:]


def make_states(root: Path) -> Kind:
    def save(path: Path, manifest: Any) -> None:
        manifest.pop("checksum", None)
        (path / "manifest.json").write_bytes(sealed(manifest))

    def read_states(path: Path) -> object:
        store = find_store(STORE, path.parent)
        if store is None:
            raise RefusedError
        return [store.split(name).states(row).tolist() for name in ("train", "test") for row in range(2)]

    return Kind(write_store(root).path, lambda path: plain(path / "manifest.json"), save, read_states)


class RefusedError(FlareError):
    """It was refused, which was told."""

    def __init__(self) -> None:
        super().__init__("refused", fix="none")


ROWS = [Row(f"id{n}", {"text": f"A text {n}", "note": "x"}, None, (Answer("text", 2),)) for n in range(4)]


def make_translation(root: Path) -> Kind:
    path = root / "eng_Latn-pol_Latn-0123456789abcdef"
    path.mkdir(parents=True)
    counts = dict.fromkeys(Report.model_fields, 0)
    lines = [[{"text": f"Tekst {n}", "note": "y"}, [["Tekst", 0]], ["loop"]] for n in range(3)] + [None]
    good = {"lines": lines, "manifest": {"fields": {}, "rows_bytes": 0, "rows_sha256": ""}}
    good["manifest"] |= {"report": counts | {"languages_told_by": "letters"}}  # type: ignore[operator]

    def save(path: Path, both: Any) -> None:
        with contextlib.suppress(KeyError, TypeError):
            text = "".join(dump(line) + "\n" for line in both["lines"])
            (path / "rows.jsonl").write_text(text)
            both["manifest"] |= {"rows_bytes": len(text), "rows_sha256": hashlib.sha256(text.encode()).hexdigest()}
            (path / "manifest.json").write_bytes(sealed(both["manifest"]))
            return
        (path / "manifest.json").write_text(dump(both.get("manifest") if isinstance(both, dict) else both))

    def read_as_written(path: Path) -> object:
        """Whether the rows are what the lines say: another text with the right checksum is another translation."""
        found = [*read_translation(path, ROWS)]
        told = [
            row and [dict(row.fields), [[answer.text, answer.start] for answer in row.answers], [*row.marks]]
            for row in found
        ]
        return told == [json.loads(line) for line in (path / "rows.jsonl").read_text().splitlines()]

    save(path, good)
    (root / "good.json").write_text(json.dumps(good))
    return Kind(path, lambda _: plain(root / "good.json"), save, read_as_written)


def make_state(root: Path) -> Kind:
    """state.safetensors, and the adapter beside it."""
    parameters = {"a": nn.Parameter(torch.zeros(2, 3))}
    tensors = {f"{kind}/a": torch.ones(2, 3) for kind in ("adapter", "exp_avg", "exp_avg_sq")}
    progress = {"fingerprint": "f", "step": 3, "start_score": 0.5, "best_step": 2, "best_standing": [0.5, 1.0]}
    root.mkdir(parents=True)
    config = make_config(root)
    (root / "adapter").mkdir()
    settings = {"r": 8, "lora_alpha": 16, "peft_type": "LORA", "flare_ds": {"method": "lora", "adapter.r": 8}}
    kept = {"validation": {"step": 2, "accuracy": 0.5, "loss": 1.0}, "versions": {"flare_ds": "1"}}
    good = {"progress": progress, "settings": settings, "kept": kept, "names": sorted(tensors)}
    (root / "good.json").write_text(json.dumps(good))

    def save(path: Path, content: Any) -> None:
        names = content.get("names", [])
        names = names if isinstance(names, list) else []
        chosen = {name: tensors.get(name, torch.ones(1)) for name in names if isinstance(name, str) and name.isascii()}
        texts = {name: dump(content.get(name)) for name in ("progress", "settings", "kept")}
        save_file(chosen, path / "state.safetensors", metadata={"progress": texts["progress"]})
        save_file(chosen, path / "adapter" / "adapter_model.safetensors", metadata={"flare_ds": texts["kept"]})
        (path / "adapter" / "adapter_config.json").write_text(texts["settings"])

    def read_state(path: Path) -> object:
        found: list[object] = []
        reads: list[Callable[[], object]] = [
            lambda: saved_adapter(path, load_state(path / "state.safetensors", "f")[1], parameters)["a"].tolist(),
            lambda: saved_settings(path / "adapter"),
            lambda: check_settings(path / "adapter", config),
            lambda: write_card(path / "adapter", config, task_of(config.task), test={"examples": 3, "accuracy": 0.5}),
        ]
        for read_one in reads:
            with contextlib.suppress(FlareError):
                found.append(read_one())
        return None  # what is told of a hostile adapter is its own

    save(root, good)
    return Kind(root, lambda _: plain(root / "good.json"), save, read_state)


def main_worker(directory: Path, first: int, last: int) -> None:
    kinds = [
        make_cache(directory / "labels", free_answers=False),
        make_cache(directory / "answers", free_answers=True),
        make_states(directory / "states"),
        make_translation(directory / "translations"),
        make_state(directory / "state"),
    ]
    right = [
        kind.read(Path(shutil.copytree(kind.good, directory / f"good{n}" / kind.good.name)))
        for n, kind in enumerate(kinds)
    ]
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (used + GIBIBYTE, resource.RLIM_INFINITY))
    for number in range(first, last):
        print(number, end=" ", flush=True)  # the one that killed us is the last that was named
        draw, kind = random.Random(number), kinds[number % len(kinds)]
        place = Path(shutil.copytree(kind.good, directory / "hostile" / kind.good.name))
        kind.save(place, change(draw, kind.load(kind.good)))
        try:
            found = kind.read(place)
            same = found == right[number % len(kinds)]
            print("the same" if same else "other", flush=True)
        except FlareError as error:
            print("refused", str(error.problem).encode()[:60], flush=True)
        shutil.rmtree(directory / "hostile")


if __name__ == "__main__":
    main_worker(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
