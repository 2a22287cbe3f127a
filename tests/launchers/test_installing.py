"""quickstart.sh and test.sh: what they are given, what they need, and what they install; nothing is downloaded here."""

import fcntl
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from threading import Timer

import pytest

from tests.launchers.shell import (
    LAUNCHERS,
    assert_one_message,
    environment_with_pip,
    run,
    small_environment,
    tool_path,
    write_program,
)
from tests.launchers.two_hosts import wait_until


@pytest.mark.parametrize(
    ("arguments", "problem", "fix"),
    [
        (["--langauges", "pl"], "unknown option --langauges", "--help"),
        (["--model"], "--model needs a value", "--help"),
        (["--model", "gpt5"], "--model gpt5 is neither", "check the name"),
        (["--data", "no/such"], "no such directory: --data no/such", "check the path"),
        (["--config", "no.yaml"], "no such file: --config no.yaml", "check the path"),
        (["--config", "setup.py", "--languages", "pl es"], "--languages pl es", "pl,es"),
        (["steps", "5"], "cannot read the argument steps", "key=value"),
    ],
)
def test_quickstart_refuses_bad_arguments(arguments: list[str], problem: str, fix: str) -> None:
    if "--config" not in arguments:
        arguments = ["--config", "setup.py", *arguments]
    assert_one_message(run([LAUNCHERS / "quickstart.sh", *arguments]), problem, fix)


@pytest.mark.parametrize("name", ["quickstart.sh", "test.sh"])
def test_an_old_python_is_named(name: str, clone: Path, tmp_path: Path) -> None:
    old = write_program(tmp_path / "bin/python3", "#!/bin/sh\necho 3.9\n").parent
    write_program(old / "g++", "#!/bin/sh\n")
    (clone / "launchers/configs/quickstart.yaml").write_text("")
    result = run([clone / "launchers" / name], PATH=f"{old}:{os.environ['PATH']}", PYTHON="python3")
    assert_one_message(result, "python3 is Python 3.9, but 3.11 or newer is needed", "PYTHON=")


def test_a_missing_python_is_named(tmp_path: Path) -> None:
    result = run(
        [LAUNCHERS / "quickstart.sh", "--no-install", "--config", "setup.py"], PYTHON=str(tmp_path / "python3")
    )
    assert_one_message(result, "no Python:", "PYTHON=")


@pytest.mark.parametrize("arguments", [["quickstart.sh", "--config", "setup.py"], ["test.sh"]])
def test_a_missing_compiler_is_named(arguments: list[str], tmp_path: Path) -> None:
    result = run([LAUNCHERS / arguments[0], *arguments[1:]], PATH=str(tool_path(tmp_path)), CXX="icpx")
    assert_one_message(result, "no C++ compiler: none of $CXX=icpx, c++, g++ and clang++", "apt install g++")


def test_too_little_memory_is_named(tmp_path: Path) -> None:
    small = write_program(tmp_path / "bin/getconf", '#!/bin/sh\n[ "$1" = PAGE_SIZE ] && echo 4096 || echo 1000000\n')
    write_program(small.parent / "g++", "#!/bin/sh\n")
    path = f"{small.parent}:{os.environ['PATH']}"
    result = run([LAUNCHERS / "quickstart.sh", "--config", "setup.py"], PATH=path)
    assert_one_message(result, "4 GB of memory, but 12 GB are needed", "--model DIR")


def test_too_little_disk_is_named(clone: Path, tmp_path: Path) -> None:
    df = '#!/bin/sh\necho "Filesystem 1024-blocks Used Available Capacity Mounted"\necho "/dev/x 9 9 3000000 9% /"\n'
    full = write_program(tmp_path / "bin/df", df).parent
    write_program(full / "g++", "#!/bin/sh\n")
    result = run([clone / "launchers/test.sh"], PATH=f"{full}:{os.environ['PATH']}")
    assert_one_message(result, "3 GB of free disk, but 6 GB are needed", "FLARE_DS_VENV")


@pytest.mark.parametrize(
    ("pip", "problem", "fix"),
    [
        ("echo 'WARNING: NewConnectionError: name resolution'; exit 1", "no network", "HTTPS_PROXY"),
        ("echo 'ERROR: [Errno 28] No space left on device'; exit 1", "is full", "free 6 GB"),
        ("echo 'ERROR: no matching distribution'; exit 1", "ERROR: no matching distribution", "install.log"),
    ],
)
def test_a_failing_installation_is_explained(clone: Path, tmp_path: Path, pip: str, problem: str, fix: str) -> None:
    venv = environment_with_pip(tmp_path, pip)
    write_program(tmp_path / "bin/g++", "#!/bin/sh\n")
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    result = run([clone / "launchers/test.sh"], PATH=path, FLARE_DS_VENV=str(venv))
    assert_one_message(result, problem, fix)


@pytest.mark.parametrize(
    ("before", "python", "problem", "fix"),
    [
        ("[[ $2 == *build_shm_op* ]] && echo 'no ninja' && exit 1", "", r"c\+\+ cannot compile .*: no ninja", "log"),
        ("", "sysconfig.get_path = lambda name: '/nowhere';", r"no header files \(Python.h\)", "apt install python3"),
    ],
)
def test_what_keeps_an_environment_from_compiling_is_named(
    clone: Path, tmp_path: Path, before: str, python: str, problem: str, fix: str
) -> None:
    """Also in one that was made before, where CXX is not set."""
    venv = environment_with_pip(tmp_path, "exit 0", before=before, python=python)
    install = f"set -euo pipefail; source {clone}/launchers/common.sh; install quickstart"
    result = run(["bash", "-c", install], FLARE_DS_VENV=str(venv))
    assert result.returncode == 1 and re.search(rf"\nerror: .*{problem}.*\n  fix: .*{fix}.*\n$", result.stderr)


def test_what_is_installed_is_not_installed_again_until_the_pins_change(clone: Path, tmp_path: Path) -> None:
    venv = environment_with_pip(tmp_path, "exit 0")
    install = f"set -euo pipefail; source {clone}/launchers/common.sh; install quickstart"

    def calls() -> int:
        assert run(["bash", "-c", install], FLARE_DS_VENV=str(venv), DS_ACCELERATOR="").returncode == 0
        return len((venv / "calls").read_text().splitlines())

    assert [calls(), calls()] == [2, 2]  # torch, then the package
    first, second = (venv / "calls").read_text().splitlines()
    assert "torch==" in first and second.endswith(f"-e {clone}[quickstart]")
    with (clone / "constraints.txt").open("a") as constraints:
        constraints.write("# changed\n")
    assert calls() == 4


def test_another_python_in_an_environment_has_nothing_installed_yet(clone: Path, tmp_path: Path) -> None:
    """As after an upgrade, when the same path leads to a new Python; what the old one compiled is not loaded."""
    install = f"set -euo pipefail; source {clone}/launchers/common.sh; install quickstart"
    of_old = tmp_path / "venv/torch_extensions/some_op/some_op.so"
    for python, calls in (("", 2), ("", 2), ("sysconfig.get_config_vars()['SOABI'] = 'cpython-399';", 4)):
        venv = environment_with_pip(tmp_path, "exit 0", python=python)
        result = run(["bash", "-c", install], FLARE_DS_VENV=str(venv), DS_ACCELERATOR="")
        assert result.returncode == 0 and len((venv / "calls").read_text().splitlines()) == calls, result.stderr
        assert of_old.exists() == (calls == 2 and of_old.parent.exists())
        write_program(of_old, "")


def test_a_python_that_is_not_used_is_told(clone: Path, tmp_path: Path) -> None:
    venv = environment_with_pip(tmp_path, "exit 0")
    other = write_program(tmp_path / "other", "#!/bin/sh\necho 3.99 of elsewhere\n")
    install = f"set -euo pipefail; source {clone}/launchers/common.sh; install quickstart"
    told = [
        run(["bash", "-c", install], FLARE_DS_VENV=str(venv), DS_ACCELERATOR="", PYTHON=str(python)).stderr
        for python in (other, sys.executable, "")
    ]
    assert told == [f"PYTHON={other} is not used: {venv} has a Python already; to change it, remove {venv}\n", "", ""]


NFS = """#!/usr/bin/env bash
if grep -q '^flags:.*[12]$' /proc/$$/fdinfo/9; then exit; fi
echo 'flock: 9: Bad file descriptor' >&2; exit 65
"""
"""An exclusive lock needs a descriptor that is open for writing there (flock(2))."""
LUSTRE = "#!/bin/sh\necho 'flock: 9: Function not implemented' >&2; exit 69\n"
"""Mounted without `-o flock`."""
UNLOCKED = "this clone cannot be locked (flock: 9: Function not implemented): start no other call from it meanwhile\n"


@pytest.mark.parametrize(("flock", "said"), [(NFS, ""), (LUSTRE, UNLOCKED)])
def test_a_file_system_where_locks_are_other_or_none_is_installed_on(
    clone: Path, tmp_path: Path, flock: str, said: str
) -> None:
    venv = environment_with_pip(tmp_path, "exit 0")
    path = f"{write_program(tmp_path / 'bin/flock', flock).parent}:{os.environ['PATH']}"
    install = f"set -euo pipefail; source {clone}/launchers/common.sh; install quickstart"
    result = run(["bash", "-c", install], FLARE_DS_VENV=str(venv), DS_ACCELERATOR="", PATH=path)
    assert (result.returncode, result.stderr) == (0, said)


def test_a_call_waits_for_an_earlier_one_from_its_clone(clone: Path, tmp_path: Path) -> None:
    venv = environment_with_pip(tmp_path, "exit 0")
    install = f"set -euo pipefail; source {clone}/launchers/common.sh; install quickstart"
    earlier = (clone / "constraints.txt").open()
    fcntl.flock(earlier, fcntl.LOCK_EX)
    Timer(1, earlier.close).start()
    result = run(["bash", "-c", install], FLARE_DS_VENV=str(venv), DS_ACCELERATOR="")
    assert earlier.closed
    assert (result.returncode, result.stderr.count("waiting for it to end")) == (0, 1)


def test_a_lock_left_by_a_killed_compiler_is_removed(clone: Path, tmp_path: Path) -> None:
    venv = environment_with_pip(tmp_path, "exit 0")
    lock = write_program(venv / "torch_extensions/some_op/lock", "")
    install = f"set -euo pipefail; source {clone}/launchers/common.sh; install quickstart"
    assert run(["bash", "-c", install], FLARE_DS_VENV=str(venv), DS_ACCELERATOR="").returncode == 0
    assert not lock.exists()


def test_a_place_of_the_users_own_for_what_is_compiled_is_kept(clone: Path, tmp_path: Path) -> None:
    """Others may be compiling there, whose lock is theirs."""
    venv, own = environment_with_pip(tmp_path, "exit 0"), tmp_path / "own"
    lock = write_program(own / "some_op/lock", "")
    install = f'set -euo pipefail; source {clone}/launchers/common.sh; install quickstart; echo "$TORCH_EXTENSIONS_DIR"'
    told = run(["bash", "-c", install], FLARE_DS_VENV=str(venv), DS_ACCELERATOR="", TORCH_EXTENSIONS_DIR=str(own))
    assert told.stdout == f"{own}\n" and lock.exists()


def test_quickstart_hands_its_options_to_the_sweep(clone: Path, tmp_path: Path) -> None:
    write_program(clone / "flare_ds/__main__.py", "import os, sys\nprint(*sys.argv[1:], sep='\\n')\n")
    model = write_program(tmp_path / "it's a model/config.json", "{}").parent
    (tmp_path / "data").mkdir()
    (tmp_path / "sweep.yaml").write_text("")
    options = ["--no-install", "--model", model.name, "--data", "data", "--out", "out", "--config", "sweep.yaml"]
    result = run([clone / "launchers/quickstart.sh", *options, "--languages", "no,es", "a.b=1"], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "sweep",
        str(tmp_path / "sweep.yaml"),
        f"base.model.base='{tmp_path}/it''s a model'",
        f"base.task.data_dir='{tmp_path}/data'",
        f"out='{tmp_path}/out'",
        "grid.languages=['no','es']",
        "a.b=1",
    ]
    assert "== sweep: 0 s" in result.stderr or "== sweep: 1 s" in result.stderr
    assert f"--logdir {tmp_path}/out" in result.stderr.splitlines()[-1]


def test_quickstart_fails_when_the_sweep_fails(clone: Path, tmp_path: Path) -> None:
    write_program(clone / "flare_ds/__main__.py", "raise SystemExit(3)\n")
    write_program(tmp_path / "model/config.json", "{}")
    options = ["--no-install", "--model", "model", "--data", ".", "--config", "model/config.json"]
    result = run([clone / "launchers/quickstart.sh", *options], cwd=tmp_path)
    assert result.returncode == 3
    assert "total" not in result.stderr


@pytest.mark.parametrize("threads", ["", "3"])
def test_quickstart_leaves_the_cores_to_the_sweep(threads: str, clone: Path, tmp_path: Path) -> None:
    """Which shares them among the ranks that there are; unless the user says how many threads each has."""
    write_program(clone / "flare_ds/__main__.py", "import os; print(os.environ.get('OMP_NUM_THREADS'))\n")
    write_program(tmp_path / "model/config.json", "{}")
    options = ["--no-install", "--model", "model", "--data", ".", "--config", "model/config.json"]
    own = {"OMP_NUM_THREADS": threads} if threads else {}
    result = run([clone / "launchers/quickstart.sh", *options], cwd=tmp_path, **own)
    assert result.stdout == f"{threads or None}\n", result.stderr


SAVES = """
import os, pathlib, signal, sys, time
here = pathlib.Path(os.environ["PROBE_OUT"])
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), (here / "saved").touch(), sys.exit(130)))
(here / "started").touch()
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_quickstart_that_is_told_to_end_lets_the_sweep_save(number: int, clone: Path, tmp_path: Path) -> None:
    """Bash hears a signal when the command in front has ended, and hands none on."""
    write_program(clone / "flare_ds/__main__.py", SAVES)
    write_program(tmp_path / "model/config.json", "{}")
    command = [clone / "launchers/quickstart.sh", "--no-install", "--model", "model", "--data", "."]
    command += ["--config", "model/config.json"]
    process = subprocess.Popen(
        # A shell that starts the tests in the background has them ignore Ctrl-C, which their children inherit.
        ["env", "--default-signal=INT", *command],
        cwd=tmp_path,
        env=small_environment(PROBE_OUT=str(clone / "seen")),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_until((clone / "seen/started").exists, 20)
        process.send_signal(number)
        _, told = process.communicate(timeout=20)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130 and (clone / "seen/saved").exists()
    assert told.splitlines()[-1] == "interrupted; run the same command again to continue"


def test_quickstart_ends_at_a_fetch_that_fails(clone: Path, tmp_path: Path) -> None:
    """It runs inside $( ), where bash forgets set -e unless it is told not to."""
    write_program(clone / "flare_ds/__main__.py", "raise SystemExit(4)\n")
    (tmp_path / "model").mkdir()  # one that is there: how much memory there is is not asked
    (tmp_path / "model/config.json").write_text("{}")
    options = ["--no-install", "--config", clone / "setup.py", "--model", tmp_path / "model"]
    result = run([clone / "launchers/quickstart.sh", *options])
    assert (result.returncode, result.stderr) == (4, "== fetch data\n")


def test_what_an_installation_compiled_is_found_again(clone: Path, tmp_path: Path) -> None:
    venv = environment_with_pip(tmp_path, "exit 0")
    write_program(venv / "bin/deepspeed", "#!/bin/sh\n")
    told = 'printf "%s %s" "$TORCH_EXTENSIONS_DIR" "${CXX:-unset}"'
    outputs = {
        run(
            ["bash", "-c", f"set -eu; source {clone}/launchers/common.sh; {verbs}; {told}"],
            FLARE_DS_VENV=str(venv),
            TORCH_EXTENSIONS_DIR="",
            DS_ACCELERATOR="",
        ).stdout
        for verbs in ("use_installed deepspeed", "check_compiler; install quickstart >/dev/null")
    }
    assert outputs == {f"{venv}/torch_extensions unset"}
