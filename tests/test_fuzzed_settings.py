"""Settings with seeded mistakes: each is read, or refused with its place; nothing else is ever raised.

The mistakes are of three kinds: one setting of a tree becomes another (then a refusal names a setting), the text is
damaged (then it names a line or a setting), an override is typed wrongly (then it names the override or its key).
"""

import copy
import random
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from flare_ds.exceptions import FlareError
from flare_ds.settings import load_config
from flare_ds.sweep.plan import load_sweep
from tests.test_config_conflicts import SETTINGS

RUN = SETTINGS | {
    "adapter": {"r": 8, "fused_modules": ["o_proj"], "dropout": 0.1},
    "source": {"provider": "lockstep", "max_store_gb": 2.5},
    "evaluate": {"answers": "ranked", "batch_tokens": None},
    "translate": {"engine": "nllb", "model": "x"},
    "mixup": {"layer": 2},
    "generate": {"temperature": 0.5},
}
_CELLS = {
    "languages": ["pl", "es"],
    "methods": ["lora", "wide"],
    "seeds": [1, 2],
    "adapter.alpha": [8, 16],
    "pair": [{"adapter.r": 4, "train": {"batch_size": 8}}, {"adapter.r": 8}],
}
_BASE = {key: value for key, value in RUN.items() if key not in ("method", "run_dir", "task")}
SWEEP = {
    "base": _BASE | {"task": {"name": "multiemo", "data_dir": "d"}},
    "out": "runs/sweep",
    "launch": "deepspeed --module",
    "stage1": {"train": {"steps": 3}},
    "grid": _CELLS,
    "methods": {"lora": {"adapter": {"rslora": True}}},
    "grids": [{"languages": ["pt"], "methods": ["flare"], "seeds": [3], "tasks": ["multiemo"]}],
    "variants": {"wide": {"method": "flare", "adapter.fusion": "add"}},
    "tasks": {"multiemo": {"task.max_prompt_tokens": 16}, "other": {"task": {"name": "multiemo"}}},
    "models": {"small": {"model.dtype": "float32"}},
    "score": "validation",
    "retries": 1,
}
ODD: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        7,
        2**40,
        -(2**62),
        1e308,
        1e-320,
        float("nan"),
        float("inf"),
        0.5,
        "",
        " ",
        "~",
        "no",
    ),
    *(
        "$UNSET_NAME",
        "${X",
        "~nobody-x/y",
        "-x",
        "a\nb",
        "\x07",
        "\ud7ff",
        "\U0001f600",
        "1e999",
        "٣",
        "9" * 5000,
        "x" * 5000,
    ),
    *(
        [],
        [[]],
        [None],
        [1, "a", None],
        {},
        {"": 1},
        {1: 2},
        {None: None},
        {"a": {"b": {"c": []}}},
        [{}] * 3,
        ["pl", "pl"],
    ),
]
OVERRIDES = [
    "@x",
    "%",
    "*a",
    "&a b",
    "!!int x",
    "`x`",
    "[",
    "]",
    "{a",
    "a: b: c",
    "'",
    '"',
    '"\\q"',
    "#",
    "x #y",
    "\t",
    "- -",
]
OVERRIDES += [
    "|",
    ">",
    "? x",
    "---",
    "...",
    "<<: 1",
    "{<<: 1}",
    "{a: 1, a: 2}",
    "\ud800",
    "\0",
    "[" * 2000,
    "- " * 9000,
    "1e3",
    "a\nb",
]
OVERRIDES += [
    "{1: 2}",
    "!!set {a}",
    "*",
    "&a [*a]",
    "=",
    ":",
    ",",
    "~",
    "null",
    "0x",
    "1_0",
    "[no, 1e3]",
    "2024-01-01",
    ".nan",
    "9" * 5000,
]


def places(tree: Any, path: tuple = ()) -> Iterator[tuple]:
    if path:
        yield path
    for key in tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield from places(tree[key], (*path, key))


def with_another_setting(tree: dict, draw: random.Random) -> tuple[dict, str]:
    """One place dropped, renamed, moved or of another value; and the name that stands for it."""
    tree = copy.deepcopy(tree)
    *path, key = draw.choice(list(places(tree)))
    holder = tree
    for part in path:
        holder = holder[part]
    value = draw.choice(ODD)
    kind = draw.choice(["value", "value", "drop", "rename", "add"]) if isinstance(holder, dict) else "value"
    if kind == "value":
        holder[key] = value
    elif kind == "drop":
        del holder[key]
    elif kind == "rename":
        holder[key + draw.choice("sx_")] = holder.pop(key)
    else:
        key = draw.choice(["lerning_rate", "", " ", "a.b", 3, None, True, 1.5, "<<", "\U0001f600"])
        holder[key] = value
    return tree, next((part for part in reversed([*path, key]) if isinstance(part, str) and part.strip()), "")


def damaged(content: bytes, draw: random.Random) -> bytes:
    at, to = sorted(draw.choices(range(len(content) + 1), k=2))
    lines = content.splitlines(keepends=True)
    line = draw.randrange(len(lines))
    return draw.choice(
        [
            lambda: content[:at],
            lambda: content[:at] + content[to:],
            lambda: content[:to] + content[at:],
            lambda: content[:at] + draw.randbytes(draw.randint(1, 9)) + content[at:],
            lambda: b"".join([*lines[:line], lines[line], *lines[line:]]),
            lambda: b"".join([*lines[:line], b"\t", *lines[line:]]),
            lambda: b"".join([*lines[:line], b"  ", *lines[line:]]),
            lambda: b"".join(draw.sample(lines, len(lines))),
            lambda: (
                content[:at]
                + draw.choice([b"&a", b"*a ", b"!!x ", b"[", b"{", b": ", b"---\n", b"#", b"\0"])
                + content[at:]
            ),
            lambda: content.decode().encode(
                draw.choice(["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "cp037", "utf-7"])
            ),
            lambda: content + b"\xff",
            lambda: (
                content[:at] + draw.choice([b"[", b"{a: ", b"- ", b"? "]) * draw.choice([3, 60, 5000]) + content[at:]
            ),
            lambda: draw.randbytes(draw.randint(0, 300)),
        ]
    )()


def told(load: Callable[[], object]) -> str:
    """What is told of settings that are refused; nothing if they are read."""
    try:
        load()
    except FlareError as error:
        assert error.fix.strip(), error
        return str(error)
    return ""


NAMES_A_SETTING = re.compile(r"setting ('|[a-z_])|\b(base|stage1|methods|grid|task|train|source)\.[a-z_]+|\bmethod=")
PLACE = re.compile(rf"lines? \d|byte 0x|holds no settings|more than \d+ values|{NAMES_A_SETTING.pattern}")
KINDS = pytest.mark.parametrize(("tree", "load"), [(RUN, load_config), (SWEEP, load_sweep)], ids=["run", "sweep"])


@KINDS
def test_a_setting_that_is_another(tree: dict, load: Callable, tmp_path: Path) -> None:
    path, draw, refusals = tmp_path / "x.yaml", random.Random(1), 0
    for _ in range(300):
        mutated, name = with_another_setting(tree, draw)
        path.write_text(yaml.safe_dump(mutated), encoding="utf-8")
        message = told(lambda: load(path))
        refusals += bool(message)
        if message and name not in message:
            # A section that is another takes what it decides with it: then a setting is named that is wrong now.
            assert NAMES_A_SETTING.search(message), (name, mutated, message)
    assert refusals > 100, "the mistakes are mistakes"


@KINDS
def test_a_text_that_is_damaged(tree: dict, load: Callable, tmp_path: Path) -> None:
    path, draw, refusals = tmp_path / "x.yaml", random.Random(2), 0
    content = yaml.safe_dump(tree, sort_keys=False).encode()
    for _ in range(200):
        path.write_bytes(damaged(content, draw))
        message = told(lambda: load(path))
        refusals += bool(message)
        assert not message or (str(path) in message and PLACE.search(message)), message
    assert refusals > 100, "the damages are damages"


@KINDS
def test_an_override_that_is_mistyped(tree: dict, load: Callable, tmp_path: Path) -> None:
    path, draw, refusals = tmp_path / "x.yaml", random.Random(3), 0
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    keys = [".".join(map(str, place)) for place in places(tree)]
    for _ in range(500):
        key = draw.choice(keys)
        spoiled = draw.choice(
            [key, key, key, key + ".x", "." + key, key.replace(".", "..", 1), key + "s", " ", key[:-1]]
        )
        override = spoiled + draw.choice(["=", "=", "=", "=", "", " = ", "=="]) + draw.choice(OVERRIDES)
        message = told(partial(load, path, [override]))
        named = [repr(override)[1:20], *(part for part in spoiled.strip(". ").split(".")[-2:] if part)]
        refusals += bool(message)
        assert not message or any(part in message for part in named), (override, message)
    assert refusals > 150, "the mistakes are mistakes"
