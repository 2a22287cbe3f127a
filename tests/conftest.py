"""Settings of all tests: no property test fails for being slow, since machines are noisy."""

import pytest
from hypothesis import settings

from tests.launches import launches

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="only tests that start no processes")
    parser.addoption("--full", action="store_true", help="kill processes at many more moments")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long files first, so that at the end no worker waits for another; with --fast, no test that starts processes."""
    starters = [item for item in items if isinstance(item, pytest.Function) and launches(item)]
    if config.getoption("--fast"):
        items[:] = [item for item in items if item not in set(starters)]
        config.hook.pytest_deselected(items=starters)
        return
    files = {item.path for item in starters}
    items.sort(key=lambda item: item.path not in files)
