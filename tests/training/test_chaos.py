"""Whatever befalls a rank of a real two-rank run: the job ends soon, says why once, and goes on as if nothing had been.

A chain is one run that suffers one fault after another, each some steps after the last, and is started again each time.
In the end its adapter and its state are those of a run that nothing befell, bit for bit.
"""

import json
import random
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.distributed import run_ranks, start_ranks, told
from tests.toy import toy_settings, write_config

STEPS, STAND_STILL_S = 34, 12
WHOLE_JOB_S = 240
"""A launch, on a machine that others keep busy, and the longest that a fault may go unnoticed."""
HOST = socket.gethostname()


@dataclass(frozen=True)
class Fault:
    """One way to fail.

    Attributes:
        name: of `tests.training.chaos_worker`.
        told: what the one message says; R stands for the rank.
        status: of the ranks that end on their own.
        ranks: that may suffer it.
    """

    name: str
    told: str
    status: int = 1
    ranks: tuple[str, ...] = ("0", "1")


GONE = rf"rank R on {HOST} was ended from outside .* or by a crash in native code"
SILENT = rf"training has made no progress for \d+ s; no sign of life from rank R on {HOST}"
OWN = rf"\[rank R on {HOST}\] "
FAULTS = (
    Fault("killed", GONE),
    Fault("terminated", "SIGTERM: stopped after step", status=75, ranks=("0", "1", "all")),
    Fault("stopped", SILENT, status=76),
    Fault("segfault", GONE),
    Fault("aborted", GONE),
    Fault("exception", OWN + "KeyError: 'chaos'", ranks=("0", "1", "all")),
    Fault("out_of_memory", OWN + "RuntimeError: .*can't allocate memory", ranks=("0", "1", "all")),
    Fault("holds_the_interpreter", SILENT, status=76),
    Fault("full_disk_while_saving", "cannot write .*No space left on device", ranks=("0",)),
    Fault("cut_short_while_saving", "cannot write .*File too large", ranks=("0",)),
    Fault("killed_while_saving", GONE, ranks=("0",)),
)


def chains(full: bool) -> list[list[Fault]]:
    """One chain of every fault, or 6 chains of 10."""
    draw = random.Random(14)
    return [draw.sample(FAULTS, 10) for _ in range(6)] if full else [draw.sample(FAULTS, len(FAULTS))]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "chain" in metafunc.fixturenames:
        drawn = chains(metafunc.config.getoption("full"))
        metafunc.parametrize("chain", drawn, ids=[f"chain{number}" for number in range(len(drawn))])


def settings(root: Path, name: str) -> dict:
    options = {"steps": STEPS, "batch_size": 8, "micro_batch_size": 4, "validate_every": 10, "save_every": 2}
    return toy_settings(root, name=name, **options) | {"adapter": {"dropout": 0.2}}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("chaos")
    run_ranks(["flare_ds", "train", str(write_config(settings(root, "undisturbed")))], 2)
    return root / "undisturbed"


def saved_step(run: Path) -> int:
    state = run / "state/state.safetensors"
    if not state.exists():
        return 0
    with safe_open(state, framework="pt") as file:
        return json.loads(file.metadata()["progress"])["step"]


def test_a_run_goes_on_as_if_nothing_had_been(undisturbed: Path, chain: list[Fault]) -> None:
    root, draw = undisturbed.parent, random.Random(str(chain))
    name = f"disturbed{len(list(root.glob('disturbed*.yaml')))}"
    config, run = str(write_config(settings(root, name))), root / name
    for fault in chain:
        suffer(fault, saved_step(run) + draw.randint(1, 3), draw.choice(fault.ranks), config)
    run_ranks(["flare_ds", "train", config], 2)
    for file in ("adapter/adapter_model.safetensors", "state/state.safetensors"):
        with safe_open(undisturbed / file, "pt") as whole, safe_open(run / file, "pt") as pieced:
            assert sorted(whole.keys()) == sorted(pieced.keys())
            assert all((whole.get_tensor(key) == pieced.get_tensor(key)).all() for key in whole.keys()), file  # noqa: SIM118
    for log in (undisturbed, run):
        assert [json.loads(line)["step"] for line in (log / "train_log.jsonl").read_text().splitlines()][-1] == STEPS


def suffer(fault: Fault, step: int, rank: str, config: str) -> None:
    """Train until the fault comes, as a launcher would: when one rank has ended, the others have a while to follow."""
    where = f"{fault.name} of rank {rank} at step {step}"
    arguments = ["tests.training.chaos_worker", fault.name, str(step), "train", config]
    ranks = start_ranks(arguments, 2, CHAOS_RANK=rank, FLARE_DS_STEP_SECONDS=str(STAND_STILL_S))
    try:
        survivors = [process for number, process in enumerate(ranks) if rank in ("all", str(1 - number))]
        wait_until(lambda: any(process.poll() is not None for process in ranks), WHOLE_JOB_S, where)
        wait_until(lambda: all(process.poll() is not None for process in survivors), 40, where)
    finally:
        for process in ranks:
            process.kill()
        said = "".join(process.communicate()[0] for process in ranks)
    assert {process.returncode for process in survivors} == {fault.status}, f"{where}\n{said[-6000:]}"
    messages = told(said)
    assert len(messages) == 1, f"{where}: {messages}\n{said[-6000:]}"
    expected = fault.told.replace("rank R", f"rank {'[01]' if rank == 'all' else rank}")
    assert re.search(expected, messages[0]), f"{where}: {messages}"


def wait_until(reached: object, seconds: float, where: str) -> None:
    deadline = time.monotonic() + seconds
    while not reached():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"{where}: not within {seconds} s"
        time.sleep(0.05)
