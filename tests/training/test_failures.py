"""Failures of a job of several ranks: all end, the cause is told once, and no rank waits for one that never comes."""

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flare_ds.cli import main
from flare_ds.exceptions import HostError
from flare_ds.processes import free_port
from flare_ds.runtime.launched import Place
from flare_ds.runtime.meeting import meet
from flare_ds.runtime.signals import ALL_SAVED
from tests.distributed import REPOSITORY, rank_environment, run_ranks, told
from tests.toy import toy_settings, write_config, write_data, write_model

HOST = socket.gethostname()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("failures")


def test_an_error_is_raised_on_every_rank_or_ends_all() -> None:
    outputs = run_ranks(["tests.training.failures_worker"], 2, expect=1, timeout=120)
    met = [[line for line in output.splitlines() if line.startswith(("met", "got"))] for output in outputs]
    expected = [
        f"met True no traceback [rank 1 on {HOST}] its GPU is full   fix: empty it",
        "met True no traceback no GPU for 0   fix: buy one",
        f"met True traceback [rank 0 on {HOST}] KeyError: 'label'",
        f"met True traceback [rank 0 on {HOST}] OSError: [Errno 28] No space left on device",
    ]
    assert met[0] == [*expected, "got 0"] and met[1] == [*expected, "got 1"]
    assert f"flare-ds: [rank 1 on {HOST}] no room\n  fix: make some" in outputs[1]
    assert not told(outputs[0]) and "Traceback" not in "".join(outputs), "one message, from who met it"


def test_a_bug_in_the_users_task_shows_its_traceback_once(root: Path, tmp_path: Path) -> None:
    settings = toy_settings(root, name="bug")
    task = tmp_path / "task.py"
    task.write_text("raise KeyError('label')\n")
    settings["task"]["path"] = str(task)
    outputs = run_ranks(["flare_ds", "train", str(write_config(settings))], 2, expect=1)
    assert "KeyError: 'label'" in outputs[0] and not told(outputs[1])


def test_hosts_that_see_different_files_are_refused(root: Path, tmp_path: Path) -> None:
    """Two working directories stand for two hosts: run_dir is given relative to them."""
    config, port = write_config(toy_settings(root, name="apart")), free_port()
    ranks = []
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
        command = [sys.executable, "-m", "flare_ds", "train", str(config), "run_dir=here"]
        environment = rank_environment(rank, 2, port)
        directory = tmp_path / str(rank)
        out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        ranks.append(subprocess.Popen(command, cwd=directory, env=environment, **out))  # type: ignore[call-overload]
    outputs = [rank.communicate(timeout=200)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [1, 1], outputs
    assert f"run_dir='here' is not the same on rank 1 on {HOST} as on rank 0 on {HOST}" in outputs[0]
    assert not told(outputs[1])
    assert not list(tmp_path.rglob("here")) and not list(tmp_path.rglob("*.tmp")), "nothing was begun"


def test_ranks_that_do_not_come_are_told_and_given_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("flare_ds.runtime.meeting._FIRST_WORD_S", 0.3)
    monkeypatch.setenv("FLARE_DS_SETUP_SECONDS", "1")
    port = free_port()
    told_by = f"RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT={port}"
    with pytest.raises(HostError, match="1 of 2 did not join within 1 s") as gave_up:
        meet(Place(0, 2, 0, "127.0.0.1", port, told_by))
    assert told_by in gave_up.value.fix
    said = capsys.readouterr().err
    assert f"waiting for 1 of 2 ranks at 127.0.0.1:{port}" in said and f"{told_by} come from the environment" in said


def test_a_second_job_at_the_same_address_is_told_and_leaves_the_first_alone() -> None:
    """Its rank 0 cannot listen there; the others find the first job's rank 0, which answers them."""
    port = free_port()
    places = [Place(rank, 2, rank, "127.0.0.1", port, "the environment") for rank in range(2)]
    with ThreadPoolExecutor(2) as pool:
        first, _ = pool.map(meet, places)
    for place in places:
        with pytest.raises(HostError, match=f"127.0.0.1:{port}") as refused:
            meet(place)
        assert "MASTER_PORT" in refused.value.fix
    assert first.add("arrived", 0) == 2


@pytest.mark.parametrize(
    ("how", "problem"),
    [("works", "the other ranks have waited for rank 0 for 6 s"), ("comes_late", "not all ranks came within 6 s")],
)
def test_a_wait_for_rank_0_that_is_given_up_says_what_to_do(how: str, problem: str) -> None:
    outputs = run_ranks(["tests.training.alone_worker", how], 2, expect=1, timeout=200)
    message = f"flare-ds: [rank 1 on {HOST}] {problem}"
    assert message in outputs[1] and "Traceback" not in "".join(outputs), outputs
    assert "FLARE_DS_SETUP_SECONDS=" in outputs[1] and not told(outputs[0])


def test_a_place_where_a_run_is_watched_may_answer_later_than_a_step(root: Path) -> None:
    config = write_config(toy_settings(root, method="lora", name="watched", steps=3, whole_model=True))
    run_ranks(["tests.training.watched_worker", "6", "20", "train", str(config)], 2, timeout=200)
    assert (root / "watched/training.json").exists()


@pytest.mark.parametrize("verb", [["prepare", "nowhere.yaml"], ["cache", "ls", "nowhere"], ["report", "nowhere"]])
def test_a_stray_rank_silences_no_command_of_one_process(
    verb: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main(verb) == 1
    assert "flare-ds: " in capsys.readouterr().err


@pytest.mark.parametrize("verb", [["prepare", "nowhere.yaml"], ["cache", "ls", "nowhere"], ["sweep", "nowhere.yaml"]])
@pytest.mark.parametrize(
    ("environment", "refused"),
    [
        ({"RANK": "0", "WORLD_SIZE": "16", "LOCAL_RANK": "0"}, True),  # torchrun, deepspeed, slurm_task.sh
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, False),
        ({"RANK": "0", "WORLD_SIZE": "16"}, False),  # a shell in an operator's pod
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_LOCALID": "0"}, False),  # a batch script, or a shell in one
    ],
)
def test_a_launcher_starts_no_command_of_one_process(
    verb: list[str],
    environment: dict[str, str],
    refused: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(verb) == 1
    said, alone = capsys.readouterr().err, "flare-ds cache ls" if verb[0] == "cache" else f"flare-ds {verb[0]}"
    assert (f"{alone} is one process, but a launcher has started 16" in said) == refused
    if refused:
        assert f"without a launcher: {alone} ..." in said
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert main(verb) == 1 and capsys.readouterr().err == "", "one of each host tells it"


@pytest.mark.parametrize("variable", ["FLARE_DS_SETUP_SECONDS", "FLARE_DS_STEP_SECONDS"])
def test_a_time_out_that_is_no_number_is_named(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from flare_ds.exceptions import ConfigError
    from flare_ds.runtime.timeouts import beat_seconds, setup_seconds

    monkeypatch.setenv(variable, "-3")
    with pytest.raises(ConfigError, match=f"{variable}='-3'"):
        _ = setup_seconds(), beat_seconds()


@pytest.mark.parametrize("minutes", ["0.33", "1.5", "0", "ten"])
def test_deepspeeds_time_out_is_whole_minutes_and_told_before_deepspeed_reads_it(
    minutes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flare_ds.exceptions import ConfigError
    from flare_ds.runtime.joining import join_process_group

    monkeypatch.setenv("DEEPSPEED_TIMEOUT", minutes)
    monkeypatch.setattr("flare_ds.runtime.joining.dist.is_initialized", lambda: False)  # another test formed one
    monkeypatch.setitem(sys.modules, "flare_ds.runtime.forming", None)  # what imports DeepSpeed
    with pytest.raises(ConfigError, match=f"DEEPSPEED_TIMEOUT='{minutes}' .* whole") as refused:
        join_process_group()
    assert "FLARE_DS_SETUP_SECONDS" in refused.value.fix


LAUNCHERS = {
    "torchrun": ["torchrun", "--nproc-per-node=2", "--master-port={port}", "-m"],
    "deepspeed": ["deepspeed", "--num_accelerators=2", "--master_port={port}", "--module"],
    "ours": ["python", "-m"],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_that_is_asked_to_end_leaves_a_saved_state(root: Path, launcher: str) -> None:
    """And before it, the state is there by the clock, though save_every never comes."""
    steps = {"steps": 4000, "validate_every": 4000, "save_every": 4000, "save_seconds": 1e-6}
    settings = toy_settings(root, name=launcher, **steps)
    run = Path(settings["run_dir"])
    words = [word.format(port=free_port()) for word in [*LAUNCHERS[launcher], "flare_ds", "train"]]
    ranks = ["--ranks", "2"] if launcher == "ours" else []
    environment = {name: value for name, value in rank_environment(0, 1, "0").items() if "RANK" not in name}
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / words[0]), *words[1:], str(write_config(settings)), *ranks],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 200
    while not (run / "state/state.safetensors").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0][-3000:]
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)  # as a scheduler does: launcher and ranks alike
    said = process.communicate(timeout=100)[0]
    assert process.returncode == 75 if launcher == "ours" else process.returncode != 0
    assert said.count("flare-ds: SIGTERM: stopped after step") == 1 and "is saved" in said, said[-3000:]


def test_a_job_that_is_asked_to_stop_before_it_trains_is_continued(root: Path) -> None:
    """While rank 0 makes the tokens, which the others wait for."""
    write_model(root / "model", hidden=16, layers=1)
    write_data(root / "data", rows=150)

    def made(name: str, language: str = "pl") -> str:
        settings = toy_settings(root, method="lora", name=name, steps=2)
        settings["task"] |= {"target_language": language, "train_rows": 16, "max_prompt_tokens": len(name) + 90}
        return str(write_config(settings))

    before = {*(root / "cache").rglob("manifest.json")}
    for words, ranks in (
        (["train", made("asked"), made("asked-too")], 2),
        (["stage1", made("asked-stage1", "en"), "--output", str(root / "tuned")], 2),
        (["python", made("asked-in-python")], 1),
    ):
        outputs = run_ranks(["tests.training.asked_worker", *words], ranks, expect=75)
        if words[0] != "python":
            assert told(outputs[0])[-1] == f"flare-ds: SIGTERM: {ALL_SAVED}; run the same command again to continue"
    assert len({*(root / "cache").rglob("manifest.json")} - before) == 3, "a second run is not even read"
    assert not [*root.glob("asked*/train_log.jsonl")] and not (root / "tuned").exists()
