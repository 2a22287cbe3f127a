"""How a YAML of settings is read: as YAML 1.2, in any encoding that says which it is, every mistake by line and key."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from flare_ds.exceptions import ConfigError
from flare_ds.yaml_file import dump_yaml, parse_yaml, read_yaml


def value(text: str) -> Any:
    return parse_yaml(f"a: {text}", origin="run.yaml")["a"]


@pytest.mark.parametrize("text", ["no", "yes", "on", "off", "y", "N", "No", "2024-01-01", "1:30", "1_000", "0b1", "="])
def test_what_yaml_1_1_takes_for_something_else_stays_a_text(text: str) -> None:
    assert value(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(
            ("1e3", 1e3),
            ("5e-4", 5e-4),
            ("1.", 1.0),
            (".5", 0.5),
            ("-2E+1", -20.0),
            (".inf", math.inf),
            ("-.INF", -math.inf),
        ),
        *(("-3", -3), ("010", 10), ("0x1f", 31), ("0o17", 15), ("True", True), ("false", False)),
        *(
            ("~", None),
            ("", None),
            ("null", None),
            ("'no'", "no"),
            ('"1e3"', "1e3"),
            ("!!str 5", "5"),
            ("!!float 5", 5.0),
        ),
    ],
)
def test_numbers_booleans_and_nothing(text: str, expected: object) -> None:
    assert value(text) == expected and type(value(text)) is type(expected)


def test_nan_is_read_so_that_the_setting_can_refuse_it() -> None:
    assert math.isnan(value(".nan"))


@pytest.mark.parametrize(
    "text",
    ["no", "1e3", "0o17", "5e-4", "2024-01-01", "null", "", "~", "~/x", "on", "a: b", "x #y", "ż", "<<", ".5", "1."],
)
def test_what_is_written_is_read_back_here_and_by_yaml_1_1(text: str) -> None:
    written = dump_yaml({"a": text, "b": [text], text: 1.0e-5})
    assert parse_yaml(written, origin="x") == yaml.safe_load(written) == {"a": text, "b": [text], text: 1.0e-5}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings_that_say_which_they_are(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "run.yaml").write_text("# größe\nmethod: łąka\n", encoding=encoding)
    assert read_yaml(tmp_path / "run.yaml") == {"method": "łąka"}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("a: 1\nb: größe\n".encode("latin-1"), ["is not UTF-8: byte 0xf6 in line 2", "iconv"]),
        ("a: 1\n".encode("utf-16-le"), ["'\\x00' in line 1"]),
        (b"\xff\xfea\x00:", ["UTF-16-LE", "line 1"]),
        (b"a: 1\nb: \x1b[0m\n", ["'\\x1b' in line 2"]),
        (b"train: {steps: 4}\nmodel:\n  base: m\ntrain: {}\n", ["key 'train' occurs twice, in lines 1 and 4"]),
        (b"adapter:\n  r: 8\n  alpha: 3\n  r: 4\n", ["key 'adapter.r' occurs twice, in lines 2 and 4"]),
        (b"a: 1\nb:\n- {c: 1, c: 2}\na: 2\n", ["2 problems", "'a' occurs twice, in lines 1 and 4", "'b.c'", "line"]),
        (b"a:\n\tb: 1\n", ["line 2", "fix: indent with spaces"]),
        (b"a: x: y\n", ["line 1", "mapping values are not allowed", "quotes"]),
        (b"a: [1,\n", ["line 2", "quotes"]),
        (b"a: @x\n", ["line 1", "quotes"]),
        (b"a: 1\n---\nb: 2\n", ["line 2", "single document"]),
        (b"- a\n- b\n", ["holds no settings", "['a', 'b']"]),
        (b"", ["holds no settings", "launchers/configs/"]),
        (b"? [a]\n: 1\n", ["line 1", "unhashable"]),
        (b"a: 1\nb: 99999999999999999999\n", ["line 2", "'99999999999999999999' is no int of 64 bits"]),
        (b"a: " + b"9" * 5000, ["line 1", "is no int"]),
        (b"a: !!python/object:os.system x\n", ["line 1", "os.system"]),
        (b"a: !!binary aGk=\n", ["line 1", "binary"]),
        (b"a: !!bool maybe\n", ["line 1", "'maybe' is no bool"]),
        (b"a: *b\n", ["line 1", "'a: *b'"]),
        (b"a: &a [*a]\n", ["aliases"]),
        (b"- " * 300_000, ["line 1", "nested more than 50 deep"]),
        (b"a: &a [x,x,x,x,x,x,x,x,x,x]\n" + b"".join(
            b"%c: &%c [%s]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 10)) for i in range(9)
        ), ["aliases"]),
        (b"a: " + b"x" * 2**20, ["bytes"]),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, content: bytes, named: list[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        read_yaml(path)
    assert str(path) in str(refused.value)
    for part in named:
        assert part in str(refused.value)


def test_a_file_that_is_not_there_and_one_that_is_a_directory(tmp_path: Path) -> None:
    for path in (tmp_path / "no.yaml", tmp_path):
        with pytest.raises(ConfigError, match=str(path)):
            read_yaml(path)


def test_anchors_and_merges_of_a_sane_size_work() -> None:
    text = "low: &low {r: 4, alpha: 1}\nhigh: {<<: *low, alpha: 2}\nboth: [*low, *low]\n"
    low = {"r": 4, "alpha": 1}
    assert parse_yaml(text, origin="x") == {"low": low, "high": {"r": 4, "alpha": 2}, "both": [low, low]}
