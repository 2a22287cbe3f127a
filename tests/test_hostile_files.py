"""Caches, stores, translations and adapters from anybody: every field changed, every checksum right."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from flare_ds.json_text import parse_json, parse_lines, parse_object
from tests.toy import REPOSITORY

MANIFESTS = 500


def test_hostile_manifests_are_refused_or_read_right_and_break_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.hostile_worker", str(tmp_path), "0", str(MANIFESTS)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stdout[-300:]}\n{done.stderr[-3000:]}"
    ends = re.findall(r"^(\d+) (refused|the same)", done.stdout, re.MULTILINE)
    assert [int(number) for number, _ in ends] == [*range(MANIFESTS)]
    assert Counter(end for _, end in ends)["refused"] > MANIFESTS / 2


@pytest.mark.parametrize(
    "text",
    [
        *("[" * 99_999, "[" * 300 + "]" * 300, '"\\ud83d"', '"\ud83d"', b"\xff", "{", "", '{"a": "\\udc00"}'),
        *("\ufeff{}", b"\xef\xbb\xbf{}", b'"\xed\xa0\xbd"', "{} {}", "{},", "1" * 5000),
    ],
)
def test_what_is_not_sensible_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


def test_sensible_json_is_read() -> None:
    assert parse_json('["\\ud83d\\ude00", ' + "[" * 40 + "1" + "]" * 40 + "]")[0] == "😀"
    assert parse_object(b'{"a": 1}') == {"a": 1}
    assert str(parse_json('[NaN, -Infinity, {"a": 1, "a": 2}]')) == "[nan, -inf, {'a': 2}]"
    assert parse_json(f"-{10**40}") == -(10**40)
    with pytest.raises(ValueError, match="list, not an object"):
        parse_object("[]")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", []),
        ('{"a": 1}', []),
        ('{"a": 1}\n{"b": [2, {}]}\n{"c"', [{"a": 1}, {"b": [2, {}]}]),
        ('{"a": "å"}\n{"b": "\\u00e5"}\n', [{"a": "å"}, {"b": "å"}]),
        ('{"a": 1}\n\n', None),
        ('{"a": 1}\n[1]\n', None),
        ('{"a": [1\n2]}\n', None),
        ('{"a": 1},\n{"b": 2}\n', None),
        ('{"a": "\\ud800"}\n', None),
        ('{"a": ' * 300 + "1" + "}" * 300 + "\n", None),
    ],
)
def test_a_log_is_read_as_if_line_by_line(text: str, told: list | None) -> None:
    if told is None:
        with pytest.raises(ValueError):
            parse_lines(text)
    else:
        assert parse_lines(text) == told
