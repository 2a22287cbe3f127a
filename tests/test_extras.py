"""What a message or a page says about installing works in a clone, and beside an installed wheel."""

import re
from distutils.core import run_setup

import pytest
from packaging.requirements import Requirement

from flare_ds import extras
from flare_ds.extras import install, lacking
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


def test_what_is_not_within_its_bounds_is_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """An old wandb would end one run when the next begins; an old bitsandbytes fails while the base is loaded."""
    assert not lacking("lm-eval", "lm_eval") and not lacking("tensorboard", "tensorboard")
    assert lacking("wandb", "no_such_module") == "no_such_module, which is not installed"
    wanted = 'wandb<1,>=0.22; extra == "wandb"'
    monkeypatch.setattr(extras, "requires", lambda name: [wanted, "torch>=2"])
    for found, said in (("0.21.3", "wandb<1,>=0.22, and 0.21.3 is installed"), ("0.22.0", ""), ("0.23.0rc1", "")):
        monkeypatch.setattr(extras, "version", {"wandb": found}.__getitem__)
        assert lacking("wandb", "torch") == said
    assert install("wandb") == "pip install 'wandb<1,>=0.22'"


def test_an_extra_under_another_name_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "requires", lambda name: ['mlflow-skinny-of-old>=3; extra == "mlflow"'])
    assert not lacking("mlflow", "torch")


def test_no_page_or_message_asks_an_index_for_flare_ds() -> None:
    extras = set(run_setup(str(REPOSITORY / "setup.py"), stop_after="init").extras_require)
    for path in TEXTS:
        if path.suffix not in {".py", ".sh", ".sbatch", ".yaml", ".md"}:
            continue
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"flare[_-]ds\[|pip install (-\S+ )*flare[_-]ds\b", text), path
        for named in re.findall(r"pip install [^\n`]*'\.\[([\w,-]+)\]'", text):
            assert set(named.split(",")) <= extras, f"{path}: {named}"
