"""A hub's name: nothing that a hub could answer is asked of paths, and a cache that cannot be written is named."""

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from flare_ds.config import ModelConfig
from flare_ds.exceptions import ConfigError, HostError
from flare_ds.model_files import hub
from flare_ds.models.loading import load_shape, load_tokenizer


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub is asked; the client says what it says without a network, or where it cannot write."""

    def fails(*_: object, **__: object) -> None:
        raise OSError("couldn't connect, or no permission")

    monkeypatch.setattr(hub, "cached_file", fails)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.mark.usefixtures("unreachable")
@pytest.mark.parametrize("load", [load_shape, load_tokenizer])
def test_a_cache_that_cannot_be_written_is_named_with_the_variable(
    load: Callable[[ModelConfig], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file/hub"))
    with pytest.raises(HostError, match=r"cannot write .*file/hub") as refused:
        load(ModelConfig(base="somebody/something"))
    assert "HF_HOME" in refused.value.fix
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ConfigError, match="couldn't connect"):
        load(ModelConfig(base="somebody/something"))
    assert not list((tmp_path / "hub").iterdir())


@pytest.mark.usefixtures("unreachable")
def test_a_path_has_no_revision(tmp_path: Path) -> None:
    assert hub.revision(str(tmp_path)) is None
    for nowhere in ("./nowhere", "models/nothing"):
        with pytest.raises(OSError, match=r"nothing|nowhere"):
            hub.revision(nowhere)
