"""What starts other processes: the port they meet on, their output."""

import os
from contextlib import ExitStack
from pathlib import Path

from torch.distributed import TCPStore

from flare_ds.processes import free_port, run_logged


def test_no_port_is_given_twice_and_each_can_be_listened_on() -> None:
    """Two runs that start at the same time met on one port, now and then: 500 plain binds give some port twice."""
    ports = [free_port() for _ in range(500)]
    assert len(set(ports)) == len(ports)
    store = TCPStore("127.0.0.1", int(ports[0]), is_master=True, wait_for_workers=False)
    assert store.port == int(ports[0])


def test_output_is_followed_however_many_files_are_open(tmp_path: Path) -> None:
    """A sweep of some 330 jobs at once has descriptors above 1023, which `select` refuses."""
    with ExitStack() as files:
        while files.enter_context(open(os.devnull)).fileno() < 1030:
            pass
        assert run_logged(["echo", "hello"], tmp_path / "log.txt", shown=False) == 0
    assert (tmp_path / "log.txt").read_text().endswith("hello\n")
