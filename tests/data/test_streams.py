"""Streams are declared in one place: what they are called, in which order, and what each says of a row."""

from itertools import permutations
from pathlib import Path

import pytest

from flare_ds.data.parallel_row import ParallelRow, Side
from flare_ds.data.streams import are_streams, is_base, token_streams
from tests.data.cache.moods import moods_config

ROW = ParallelRow("1", 0, (Side({"text": "one"}), None), Side({"text": "eins"}))


@pytest.mark.parametrize("mt", [False, True])
def test_streams_say_their_side_of_a_row(tmp_path: Path, mt: bool) -> None:
    streams = token_streams(moods_config(tmp_path, extra_source_languages=["fr"]), mt=mt)
    assert [stream.text_of(ROW) for stream in streams] == [*ROW.sources, *[ROW.target] * (1 + mt)]
    assert [stream.language for stream in streams][:3] == ["en", "fr", "de"]
    assert [is_base(stream.name) for stream in streams] == [True, True, True, False][: len(streams)]


@pytest.mark.parametrize("mt", [False, True])
def test_only_the_names_of_declared_streams_in_their_order_are_streams(tmp_path: Path, mt: bool) -> None:
    names = [stream.name for stream in token_streams(moods_config(tmp_path, extra_source_languages=["fr"]), mt=mt)]
    assert [list(order) for order in permutations(names) if are_streams(order)] == [names]
    for wrong in (names[1:], names[:2], [*names, "other"], [*names, names[-1]], []):
        assert not are_streams(wrong)
