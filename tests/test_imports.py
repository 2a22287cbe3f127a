"""The package is a house: a module imports from its own room and from the floors below, never from above."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "flare_ds"
MODULES = {
    ".".join(("flare_ds", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}

FLOORS = """
    methods
    config
    tasks
    settings
    tracking
    model_files
    tokenizing
    translation
    data
    fetch
    batches
    adapters
    models
    scoring
    runtime
    runs
    evaluation
    training
    reporting
    sweep
    inference own_loop push new_config
    flare_ds
    cli
    __main__
"""
"""From the ground up. What is not named is the ground: modules that know nothing of this project's subject."""

FLOOR = {room: number for number, line in enumerate(FLOORS.split("\n")) for room in line.split()}
VERSION = "flare_ds.__version__"
"""The one name that everybody may ask the package itself for."""


def imports(module: str) -> set[str]:
    """Modules of the package that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in full if name != VERSION]
        found |= {name for name in names if name in MODULES}
    return found - {module}


def room(module: str) -> str:
    """`flare_ds.data.cache.key` is in `data`; `flare_ds.push` is a room of its own."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def test_every_room_has_a_floor() -> None:
    rooms = {room(module) for module in MODULES}
    assert set(FLOOR) <= rooms, f"these are no rooms any more: {set(FLOOR) - rooms}"
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages <= set(FLOOR), f"these rooms have no floor yet: {packages - set(FLOOR)}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_import_runs_up(module: str) -> None:
    floor = FLOOR.get(room(module), 0)
    above = {
        name for name in imports(module) if room(name) != room(module) and FLOOR.get(room(name), 0) >= max(floor, 1)
    }
    assert not above, f"{module} is on a lower floor than {above}"


def test_no_circles() -> None:
    """Neither among modules nor, so, among rooms; a package's own __init__ is read by who imports from below it."""
    graph = {module: {name for name in imports(module) if not module.startswith(f"{name}.")} for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these import one another: {' -> '.join(error.args[1])}")
