"""The versions kept with a run: one number has several codes, which are told apart, cheaply."""

import shutil
from pathlib import Path

import pytest

import flare_ds
from flare_ds import versions
from flare_ds.versions import code, code_of


def test_a_changed_line_is_other_code_and_a_copy_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = shutil.copytree(Path(flare_ds.__file__).parent, tmp_path / "flare_ds")
    monkeypatch.setattr(versions, "__file__", str(copied / "versions.py"))
    assert code.__wrapped__() == code() == versions.versions()["code"]
    (copied / "notes.txt").write_text("no code")
    (copied / "adapters/.#fusion.py").symlink_to("someone@host.1234")  # Emacs locks what is not saved yet
    (copied / ".ipynb_checkpoints").mkdir()
    (copied / ".ipynb_checkpoints/copy.py").write_text("a copy")
    assert code.__wrapped__() == code()
    with (copied / "adapters/fusion.py").open("a") as file:
        file.write("# another line\n")
    assert code.__wrapped__() != code()


def test_it_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = code()
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} is read again"))
    assert code() == found


def test_what_an_earlier_version_kept_or_nobody_can_read_tells_no_code() -> None:
    assert code_of({"code": "0123456789ab"}) == "0123456789ab"
    assert [code_of(kept) for kept in ({}, {"code": 3}, None, "code")] == [None] * 4
