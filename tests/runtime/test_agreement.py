"""Ranks that compute with different things do not start."""

import os
from pathlib import Path

import pytest

from flare_ds.exceptions import HostError
from flare_ds.processes import free_port
from flare_ds.runtime.agreement import compare, computes_with
from tests.distributed import rank_environment, start_afresh

MINE = {"accelerator": "cuda", "backend": "nccl", "torch": "2.13.0"}


def test_ranks_that_agree_are_let_through() -> None:
    compare([("a", MINE), ("a", MINE), ("b", dict(MINE))])
    assert {
        "accelerator",
        "backend",
        "torch",
        "deepspeed",
        "transformers",
        "peft",
        "flare_ds",
        "code",
    } == computes_with().keys()


def test_every_difference_is_named_with_its_hosts() -> None:
    ill = MINE | {"accelerator": "cpu", "backend": "ccl"}
    with pytest.raises(HostError) as caught:
        compare([("a", MINE), ("b", ill), ("a", MINE)])
    assert "accelerator is cuda on a (rank 0), a (rank 2), but cpu on b (rank 1)" in str(caught.value)
    assert "backend is nccl on" in str(caught.value) and "torch" not in str(caught.value)


def test_a_host_whose_version_tells_less_is_refused() -> None:
    for ranks in ([MINE, MINE | {"code": "0123"}], [MINE | {"code": "0123"}, MINE]):
        with pytest.raises(
            HostError, match=r"the code of flare_ds is .*(not told|0123) on .*, but .*\n  fix: .*checkout"
        ):
            compare([("a", ranks[0]), ("b", ranks[1])])


def test_a_host_with_another_version_is_refused(tmp_path: Path) -> None:
    """Two ranks, the second of which finds another peft first."""
    other = tmp_path / "peft-99.0.dist-info/METADATA"
    other.parent.mkdir()
    other.write_text("Metadata-Version: 2.1\nName: peft\nVersion: 99.0\n")
    port, ranks = free_port(), []
    for rank in range(2):
        environment = rank_environment(rank, 2, port)
        if rank == 1:
            environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), environment["PYTHONPATH"]])
        ranks.append(start_afresh(["tests.training.leaving_worker"], environment))
    outputs = [rank.communicate(timeout=200)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [1, 1], outputs
    assert "peft is " in outputs[0] and "but 99.0 on " in outputs[0] and "(rank 1)" in outputs[0], outputs[0][-2000:]
