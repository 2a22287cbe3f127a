"""Ranks that need not import anything: forked from a process that has imported the libraries, once for all tests.

Importing torch, DeepSpeed, transformers and PEFT costs a rank some 8 s of CPU, more than most tests' work. What is
forked is a real process all the same, with an environment, memory, exit and signals of its own. Each rank number has
its own server, so that ranks differ in what Python draws as it starts (the order of sets), as under a launcher.

A server reads requests from its standard input, a socket that closes with the tests. For each, it forks a keeper, which
forks the rank and tells how it ended.
"""

import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

IMPORTED = [
    "flare_ds.training.stage1",
    "transformers.models.llama.modeling_llama",
    "datasets",
]
_LARGEST_REQUEST = 1 << 17


class ReadyRank:
    """A forked rank, with those parts of `subprocess.Popen` that tests use; its output is text, errors among it."""

    def __init__(self, number: int, arguments: list[str], environment: dict[str, str], shared: dict[str, str]) -> None:
        """Fork rank `number`, which runs `python -m ARGUMENTS`; `shared` is what the server's environment must be."""
        self.returncode: int | None = None
        output, to_output = os.pipe()
        self._ending, to_ending = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.stdout = os.fdopen(output, encoding="utf-8", errors="replace")
        request = json.dumps([arguments, environment]).encode()
        socket.send_fds(_server(number, tuple(sorted(shared.items()))), [request], [to_output, to_ending.fileno()])
        os.close(to_output)
        to_ending.close()
        self.pid = int(self._ending.recv(32))

    def poll(self) -> int | None:
        """The exit status, once there is one; negative when a signal ended the rank."""
        if self.returncode is None and select.select([self._ending], [], [], 0)[0]:
            self.returncode = int(self._ending.recv(32))
            self._ending.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end."""
        if self.returncode is None and not select.select([self._ending], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(f"rank {self.pid}", timeout or 0)
        status = self.poll()
        assert status is not None
        return status

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Wait for the end; the output until then."""
        deadline = time.monotonic() + (timeout if timeout is not None else float("inf"))
        chunks: list[bytes] = []
        while True:
            left = None if timeout is None else max(0.0, deadline - time.monotonic())
            if not select.select([self.stdout], [], [], left)[0]:
                raise subprocess.TimeoutExpired(f"rank {self.pid}", timeout or 0, b"".join(chunks))
            if not (chunk := os.read(self.stdout.fileno(), 1 << 16)):
                break
            chunks.append(chunk)
        self.wait(None if timeout is None else max(0.0, deadline - time.monotonic()))
        return b"".join(chunks).decode("utf-8", "replace"), None

    def send_signal(self, number: int) -> None:
        """Send a signal to a rank that has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


@functools.cache
def _server(number: int, environment: tuple[tuple[str, str], ...]) -> socket.socket:
    """The socket of the server for ranks of this number; it imports while the caller goes on."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    subprocess.Popen([sys.executable, "-m", "tests.ready_ranks"], env=dict(environment), stdin=theirs.fileno())
    theirs.close()
    return ours


def _serve(control: socket.socket) -> None:
    """Fork a keeper for each request; returns in a forked rank, ready to run, and when the tests have ended."""
    while True:
        request, descriptors, *_ = socket.recv_fds(control, _LARGEST_REQUEST, 2)
        if not request:
            sys.exit()
        if os.fork() == 0:
            control.close()
            return _keep(request, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _keep(request: bytes, output: int, ending: int) -> None:
    """Fork the rank, in which this returns, and tell its process id and how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        os.close(ending)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        return _become(*json.loads(request))
    os.close(output)
    os.write(ending, str(pid).encode())
    os.write(ending, str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
    os._exit(0)


def _become(arguments: list[str], environment: dict[str, str]) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = arguments


def _main() -> NoReturn:
    for module in IMPORTED:
        importlib.import_module(module)
    threads = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
    assert len(threads - {"jemalloc_bg_thd"}) == 1, f"a fork takes no threads along, but jemalloc's own: {threads}"
    gc.collect()
    gc.freeze()  # the collector would touch, and so copy, every page that is shared
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    _serve(socket.socket(fileno=os.dup(0)))
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    sys.exit()


if __name__ == "__main__":
    _main()
