"""Models are told apart by what decides their states, wherever they lie, and read once as long as they stay."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from flare_ds.exceptions import CheckpointError, ConfigError
from flare_ds.model_files.fingerprint import check_same_base, model_fingerprint
from tests.small_models import small_model


@pytest.fixture
def base(tmp_path: Path) -> Path:
    model, _ = small_model("llama", layers=1)
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def change_a_matrix(base: Path) -> None:
    """As training or a merge does: the same file size, other numbers."""
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] *= 1.001
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})


def change_setting(file: str, **values: object) -> Callable[[Path], None]:
    def change(base: Path) -> None:
        path = base / file
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


@pytest.mark.parametrize(
    "change",
    [
        change_a_matrix,
        change_setting("config.json", rms_norm_eps=0.1),
        change_setting("generation_config.json", eos_token_id=5),
    ],
)
def test_what_decides_the_states_or_the_end_of_an_answer_makes_another_model(
    base: Path, change: Callable[[Path], None]
) -> None:
    before = model_fingerprint(str(base))
    change(base)
    assert model_fingerprint(str(base)) != before


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_weights_in_files_of_old_make_another_model_too(base: Path, name: str) -> None:
    (base / "model.safetensors").unlink()
    weights, found = bytearray(10_000), list[str]()
    for changed in (None, 0, 5_000, 9_999):
        if changed is not None:
            weights[changed] ^= 1
        (base / name).write_bytes(weights)
        found.append(model_fingerprint(str(base)))
    assert len(set(found)) == 4


def test_a_model_is_the_same_wherever_it_lies_and_whatever_lies_beside_it(base: Path, tmp_path: Path) -> None:
    before = model_fingerprint(str(base))
    shutil.copytree(base, tmp_path / "copy")
    (tmp_path / "copy/README.md").write_text("Moved.")
    (tmp_path / "copy/original").mkdir()
    change_setting("config.json", _name_or_path="elsewhere", transformers_version="9")(tmp_path / "copy")
    assert model_fingerprint(str(tmp_path / "copy")) == before
    with pytest.raises(ConfigError, match=r"the model './nowhere' is not a directory"):
        model_fingerprint("./nowhere")


def test_it_is_read_once_while_its_files_stay(base: Path) -> None:
    """The content is changed behind the back of the file's size and time, which nothing but this test does."""
    before, state = model_fingerprint(str(base)), (base / "model.safetensors").stat()
    change_a_matrix(base)
    os.utime(base / "model.safetensors", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert model_fingerprint(str(base)) == before
    os.utime(base / "model.safetensors", ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert model_fingerprint(str(base)) != before


def test_a_hub_name_in_place_of_a_directory_is_another_base(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The untuned base in place of the tuned one, say; the other way round it may be that commit, fetched."""
    commit, contents = "a" * 40, "b" * 64
    monkeypatch.setattr(
        "flare_ds.model_files.fingerprint.model_fingerprint", lambda name: {"o/n": commit}.get(name, contents)
    )
    with pytest.raises(CheckpointError, match=r"x was trained on another base than model\.base='o/n'"):
        check_same_base(contents, "o/n", what="x was trained")
    check_same_base(commit, "models/fetched", what="x was trained")
    assert f"on commit {commit} of the hub" in capsys.readouterr().err
