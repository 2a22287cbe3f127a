"""The task file of a run: its own copy counts, and code that a run directory names runs only where it is trusted."""

import shutil
from pathlib import Path

import pytest
import yaml

from flare_ds.cli import main
from flare_ds.exceptions import ConfigError
from flare_ds.settings import load_config
from flare_ds.tasks import of_run
from flare_ds.tasks.load import task_of
from flare_ds.tasks.of_run import keep_task_file
from tests.toy import toy_settings

CODE = """
from pathlib import Path
from flare_ds.tasks.table import TableTask
Path({ran!r}).touch()
TASK = TableTask(name="mine", languages=("en", "pl"), pools=("all",), fields=("text",), template="{{text}} {said}:")
"""


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """Is there once the task's code has been run."""
    return tmp_path / "ran"


def write_run(root: Path, ran: Path) -> Path:
    """A run directory that names a task in Python, with its copy."""
    (root / "mine.py").write_text(CODE.format(ran=str(ran), said="first"))
    settings = toy_settings(root)
    settings["task"] |= {"name": "mine", "path": str(root / "mine.py")}
    run = root / "run"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    keep_task_file(settings["task"]["path"], run)
    return run


def test_code_that_a_run_names_is_run_only_where_it_is_trusted(tmp_path: Path, ran: Path) -> None:
    run = write_run(tmp_path, ran)
    with pytest.raises(ConfigError, match="is Python code") as refused:
        task_of(load_config(run).task)
    assert "--trust-task-code" in refused.value.fix and not ran.exists()
    assert task_of(load_config(run, trust_task_code=True).task).name == "mine" and ran.exists()
    with pytest.raises(ConfigError, match="is Python code"):
        task_of(load_config(run).task)


@pytest.mark.parametrize("said", ["$MINE/mine.py", "{root}/run/../mine.py"])
def test_a_path_that_is_said_otherwise_is_trusted_no_more(
    tmp_path: Path, ran: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    """Whoever made the run chose how its config says where the code is."""
    monkeypatch.setenv("MINE", str(tmp_path))
    run = write_run(tmp_path, ran)
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["task"]["path"] = said.format(root=tmp_path)
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ConfigError, match="is Python code"):
        task_of(load_config(run).task)
    assert not ran.exists()


@pytest.mark.parametrize("verb", ["status", "report"])
def test_looking_at_runs_runs_no_code_of_theirs(tmp_path: Path, ran: Path, verb: str) -> None:
    """Not even where a setting could be worked out by the task, if it were asked."""
    run = write_run(tmp_path, ran)
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["source"] = {"mt_encoder": "facebook/nllb-200-distilled-600M"}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    main([verb, str(tmp_path)])
    assert not ran.exists()


def test_tokens_of_such_a_run_are_compared_where_its_code_is_trusted(
    tmp_path: Path, ran: Path, capsys: pytest.CaptureFixture
) -> None:
    run, words = write_run(tmp_path, ran), ["cache", "diff"]
    assert main([*words, str(run), str(run)]) == 1
    assert "add --trust-task-code (in Python: trust_task_code=True)" in capsys.readouterr().err and not ran.exists()
    main([*words, str(run), str(run), "--trust-task-code"])
    assert "--trust-task-code" not in capsys.readouterr().err and ran.exists()


def test_a_config_that_the_user_names_and_a_path_they_give_run_as_ever(tmp_path: Path, ran: Path) -> None:
    run = write_run(tmp_path, ran)
    (tmp_path / "mine.yaml").write_text((run / "config.yaml").read_text())
    assert task_of(load_config(tmp_path / "mine.yaml").task).name == "mine"
    assert task_of(load_config(run, [f"task.path={tmp_path}/mine.py"]).task).name == "mine"
    (run / "versions.json").write_text("{}")
    with pytest.raises(ConfigError, match="is Python code"):
        task_of(load_config(run / "config.yaml").task)


def test_the_runs_own_copy_counts_and_a_changed_original_is_told(
    tmp_path: Path, ran: Path, capsys: pytest.CaptureFixture
) -> None:
    run = write_run(tmp_path, ran)
    original = tmp_path / "mine.py"
    original.write_text(CODE.format(ran=str(ran), said="second"))
    config = load_config(run, trust_task_code=True)
    assert config.task.path == str(original) and "was changed since the run began" in capsys.readouterr().err
    assert task_of(config.task).prompt({"text": "a"}) == "a first:"
    original.unlink()
    assert task_of(load_config(run, trust_task_code=True).task).prompt({"text": "a"}) == "a first:"
    (run / "task.py").write_text(CODE.format(ran=str(ran), said="third"))
    with pytest.raises(ConfigError, match=r"task\.py was changed since the run began"):
        load_config(run, trust_task_code=True)


def test_a_run_that_has_begun_is_not_given_another_task_file(tmp_path: Path, ran: Path) -> None:
    run = write_run(tmp_path, ran)
    original = tmp_path / "mine.py"
    original.write_text(CODE.format(ran=str(ran), said="second"))
    keep_task_file(str(original), run)
    (run / "state").mkdir()
    original.write_text(CODE.format(ran=str(ran), said="third"))
    with pytest.raises(ConfigError, match=r"was changed since the run .* began"):
        keep_task_file(str(original), run)
    assert "second" in (run / "task.py").read_text()


@pytest.mark.parametrize("old", ["first", "zeroth"])
def test_a_kill_between_the_copy_and_its_record_is_mended_by_the_same_command(
    tmp_path: Path, ran: Path, monkeypatch: pytest.MonkeyPatch, old: str
) -> None:
    run, path = write_run(tmp_path, ran), tmp_path / "mine.py"
    path.write_text(CODE.format(ran=str(ran), said="second"))
    with monkeypatch.context() as patch:
        patch.setattr(of_run, "write_json", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            keep_task_file(str(path), run)
    if old == "zeroth":  # it was the first that began
        (run / "task_file.json").unlink()
    keep_task_file(str(path), run)
    assert task_of(load_config(run, trust_task_code=True).task).prompt({"text": "a"}) == "a second:"


def test_runs_that_mean_other_files_by_one_path_are_not_trained_by_one_command(
    tmp_path: Path, ran: Path, capsys: pytest.CaptureFixture
) -> None:
    run, path = write_run(tmp_path, ran), tmp_path / "mine.py"
    path.write_text(CODE.format(ran=str(ran), said="second"))
    new = tmp_path / "new"
    new.mkdir()
    (new / "config.yaml").write_text((run / "config.yaml").read_text())
    for runs in ((run, new), (new, run)):
        assert main(["train", *map(str, runs), "--trust-task-code"]) == 1
        assert f"began with different contents of task.path='{path}'" in capsys.readouterr().err
    load_config(run, trust_task_code=True)
    assert task_of(load_config(new, trust_task_code=True).task).prompt({"text": "a"}) == "a second:", "it has no copy"


def test_a_run_whose_copy_was_changed_leaves_the_others_their_own(tmp_path: Path, ran: Path) -> None:
    run, changed = write_run(tmp_path, ran), tmp_path / "changed"
    shutil.copytree(run, changed)
    (changed / "task.py").write_text(CODE.format(ran=str(ran), said="third"))
    (tmp_path / "mine.py").write_text(CODE.format(ran=str(ran), said="second"))
    config = load_config(run, trust_task_code=True)
    with pytest.raises(ConfigError, match=r"task\.py was changed since the run began"):
        load_config(changed, trust_task_code=True)
    assert task_of(config.task).prompt({"text": "a"}) == "a first:"
