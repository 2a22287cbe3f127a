"""What a message or a page says about installing works in a clone, and beside an installed wheel."""

import re
from distutils.core import run_setup

from packaging.requirements import Requirement

from flare_ds.extras import install
from tests.docs.blocks import PAGES
from tests.toy import REPOSITORY

TEXTS = [*PAGES, *(path for folder in ("flare_ds", "launchers") for path in (REPOSITORY / folder).rglob("*.*"))]


def names(requirements: list[str]) -> set[str]:
    return {Requirement(text).name for text in requirements}


def test_an_extra_is_installed_by_the_names_of_its_packages() -> None:
    extras = run_setup(str(REPOSITORY / "setup.py"), stop_after="init").extras_require
    for extra, requirements in extras.items():
        program, verb, *words = install(extra).split()
        assert (program, verb) == ("pip", "install")
        assert names([word.strip("'") for word in words]) == names(requirements)


def test_no_page_or_message_asks_an_index_for_flare_ds() -> None:
    extras = set(run_setup(str(REPOSITORY / "setup.py"), stop_after="init").extras_require)
    for path in TEXTS:
        if path.suffix not in {".py", ".sh", ".sbatch", ".yaml", ".md"}:
            continue
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"flare[_-]ds\[|pip install (-\S+ )*flare[_-]ds\b", text), path
        for named in re.findall(r"pip install [^\n`]*'\.\[([\w,-]+)\]'", text):
            assert set(named.split(",")) <= extras, f"{path}: {named}"
