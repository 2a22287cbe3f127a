"""Which settings an adapter depends on: told for every way in which states meet the row."""

import runpy
from typing import Literal

import pytest

from flare_ds import methods
from flare_ds.adapters import settings


def test_a_new_way_for_states_to_meet_the_row_is_missed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when the first adapter that has trained is loaded."""
    monkeypatch.setattr(methods, "Fuses", Literal["bottleneck", "mixup", "keys", "norms"], raising=False)
    with pytest.raises(AssertionError, match="what its adapters depend on"):
        runpy.run_path(str(settings.__file__))
