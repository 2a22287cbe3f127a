"""The command line: every bad input of the main path ends in one message with the fix, and no traceback."""

import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml
from torch.utils.cpp_extension import get_default_build_root

from flare_ds.cli import _parse, main
from flare_ds.cli.arguments import overrides_of
from flare_ds.config import TranslateConfig
from flare_ds.exceptions import HostError
from flare_ds.settings import load_config
from flare_ds.translation.job import TranslationJob
from tests.distributed import run_ranks
from tests.evaluation.test_predict import write_adapter
from tests.toy import toy_settings, write_config, write_data


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("toy")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a verb that must fail; its one message."""
    assert main(list(arguments)) == 1
    captured = capsys.readouterr()
    message = captured.err[captured.err.index("flare-ds: ") :]
    assert message.count("fix: ") == 1 and "Traceback" not in captured.err
    return message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.lerning_rate=0.1", "unknown setting 'train.lerning_rate'.*did you mean 'learning_rate'"),
        ("adapter.modules_to_save=[lm_head]", "unknown setting 'adapter.modules_to_save'.*did you mean 'train_head'"),
        ("adapter.rank=4", "unknown setting 'adapter.rank'.*did you mean 'r'"),
        ("train.steps=0", "train.steps=0"),
        ("train.steps=many", "train.steps='many'"),
        ("adapter.pairing=outptu", "adapter.pairing='outptu'"),
        ("adapter.target_modules=3", "adapter.target_modules=3"),
        ("task.target_language=en", "task.target_language='en' equals task.source_language"),
        ("task.target_language=polish", "no language 'polish'"),
        ("task.name=multemo", "unknown task 'multemo'.*did you mean 'multiemo'"),
        ("task.data_dir=/nowhere", "/nowhere.*fetch data multiemo"),
        ("model.base=/nowhere", "model.base='/nowhere' is not a directory"),
        ("train", "cannot read the override 'train'"),
    ],
)
def test_a_wrong_setting(root: Path, capsys: pytest.CaptureFixture[str], override: str, expected: str) -> None:
    config = write_config(toy_settings(root))
    message = refused(capsys, "prepare", str(config), override).replace("\n", " ")
    assert re.search(expected, message), message


def test_a_file_of_the_users_own_defines_the_task(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a name that YAML would read as something else, and with the rows of the built-in task."""
    config = str(write_config(toy_settings(root)).resolve())
    monkeypatch.chdir(tmp_path)
    Path("[a: b].py").write_text(
        "from flare_ds.tasks.multiemo import MultiEmo\n\n\nclass Mine(MultiEmo):\n    name = 'mine'\n"
    )
    own = ["--task-path", "[a: b].py", "task.name=mine"]
    assert main(["prepare", config, *own]) == 0
    path = capsys.readouterr().out.strip()
    assert Path(path).name.startswith("mine-en-pl-")
    assert main(["inspect", config, "--rows", "1", *own]) == 0
    assert "train row 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("verb", "key"),
    [
        *((verb, "task.path") for verb in ("prepare", "inspect", "translate", "train", "evaluate", "predict")),
        ("sweep", "base.task.path"),
    ],
)
def test_task_path_is_an_override_after_all_others(verb: str, key: str) -> None:
    more = ["--target", "text"] if verb == "predict" else []
    options = _parse([verb, "run.yaml", "task.path=old.py", "--task-path", "my.py", *more, "train.steps=3"])
    assert overrides_of(options) == ["task.path=old.py", "train.steps=3", f'{key}="my.py"']


def test_a_sweep_takes_a_task_file(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = toy_settings(root)
    del base["method"], base["run_dir"], base["task"]["target_language"]
    grid = {"languages": ["pl"], "methods": ["lora"], "seeds": [1]}
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(yaml.safe_dump({"base": base, "out": str(tmp_path), "launch": "false", "grid": grid}))
    assert "nowhere.yaml" in refused(capsys, "sweep", str(sweep), "--task-path", "nowhere.yaml")


VERBS = [
    "prepare",
    "inspect",
    "translate",
    "fetch",
    "train",
    "stage1",
    "evaluate",
    "merge",
    "push",
    "predict",
    "sweep",
    "report",
    "new",
    "check",
    "config",
    "tasks",
    "models",
    "status",
    "completion",
]
CACHE_VERBS = ["ls", "stats", "verify", "diff", "rm"]


@pytest.mark.parametrize("verb", [*([verb] for verb in VERBS), ["cache"], *(["cache", verb] for verb in CACHE_VERBS)])
def test_every_verb_explains_itself_with_an_example_that_parses(
    verb: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*verb, "--help"])
    assert stopped.value.code == 0
    *_, examples = capsys.readouterr().out.partition("examples:\n")
    assert examples.strip()
    for example in examples.strip().splitlines():
        words = shlex.split(example)
        (start,) = (place for place, word in enumerate(words) if word in ("flare-ds", "flare_ds"))
        assert words[start + 1 :][: len(verb)] == verb
        _parse(words[start + 1 :])


def test_all_verbs_are_in_the_summary(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = capsys.readouterr().out
    for verb in (*VERBS, "cache"):
        assert f"\n    {verb}" in listed


@pytest.mark.parametrize(
    "arguments",
    [
        ["prepare"],
        ["prepare", "run.yaml", "--worker-count", "3"],
        ["prepare", "run.yaml", "--workers", "0"],
        ["prepare", "run.yaml", "--workers", "1000000"],
        ["prepare", "run.yaml", "--workers", "9" * 5000],
        ["prepare", "run.yaml", "--workers", "-1"],
        ["prepare", "run.yaml", "--workers", "2.5"],
        ["inspect", "run.yaml", "--rows", "-1"],
        ["inspect", "run.yaml", "--first", "1", "--id", "a"],
        ["inspect", "run.yaml", "--split", "tset"],
        ["cache"],
        ["cache", "diff", "one"],
        ["cache", "ls", "one", "two"],
        ["cache", "rm", "--older-than", "soon"],
        ["report", "one", "two"],
        ["predict", "run.yaml", "--target", "text", "--file", "rows.jsonl"],
    ],
    ids=" ".join,
)
def test_arguments_that_mean_nothing(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian", "run.yaml"], "invalid choice: 'trian'; did you mean 'train'?"),
        (["cache", "list"], "did you mean 'ls'?"),
        (
            ["prepare", "run.yaml", "--worker", "2", "--worker-count=3"],
            "unrecognized argument --worker-count=3: did you mean '--workers'?",
        ),
        (
            ["prepare", "run.yaml", "task.test_rows=9", "--id", "3"],
            "unrecognized argument --id: use one of: --help, --task-path",
        ),
        (["inspect", "run.yaml", "--split", "tset"], "did you mean 'test'?"),
        (["fetch", "data", "multiemo", "more"], "unrecognized arguments: more"),
    ],
    ids=str,
)
def test_a_word_that_is_mistyped_is_answered_with_the_nearest(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    told = capsys.readouterr().err
    assert stopped.value.code == 2 and expected in told, told
    assert f"usage: flare-ds {arguments[0]}" in told or arguments[0] == "trian", "that of the verb"


def test_alone_it_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 0 and "prepare" in capsys.readouterr().out


def test_a_tmpdir_that_is_not_there_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, told in ((f"{tempfile.gettempdir()}/.", ""), ("/no/such/place", "TMPDIR='/no/such/place' cannot be")):
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setenv("TMPDIR", place)
        assert main(["cache", "ls", "/no/such/directory"]) == 1
        captured = capsys.readouterr().err
        assert (told in captured) and ("TMPDIR" in captured) == bool(told)


def test_without_any_place_for_temporary_files(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/no/such/place"])
    assert "set TMPDIR" in refused(capsys, "prepare", "run.yaml")


@pytest.mark.parametrize(
    "environment",
    [{"TORCH_EXTENSIONS_DIR": "/dev/null/x"}, {"TORCH_EXTENSIONS_DIR": "", "HOME": "/proc/nobody"}],
    ids=["extensions", "home"],
)
def test_no_place_for_what_is_compiled(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    from flare_ds.runtime.forming import _load_cpu_communication

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(HostError, match=r"(?s)cannot write (/dev/null|/proc/nobody).*set TORCH_EXTENSIONS_DIR"):
        _load_cpu_communication()


def test_nothing_is_printed_among_the_answers(capsys: pytest.CaptureFixture[str]) -> None:
    """DeepSpeed says on stdout that it has built its communication."""
    from flare_ds.runtime.forming import _load_cpu_communication

    _load_cpu_communication()
    told = capsys.readouterr()
    assert told.out == "" and "built successfully" in told.err


def test_the_console_script_and_the_module_are_one_program(root: Path) -> None:
    """As the deepspeed launcher calls it, too: with the local rank before the verb."""
    (script,) = entry_points(group="console_scripts", name="flare-ds")
    assert script.load() is main
    config = str(write_config(toy_settings(root)))
    command = [sys.executable, "-m", "flare_ds", "--local_rank=0", "prepare", config, "train.steps=0"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 1 and process.stdout == ""
    assert process.stderr.startswith("flare-ds: ") and "train.steps=0" in process.stderr


def test_translate_prints_where_the_translations_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The paths on stdout, how good they are on stderr; the translation itself has tests of its own."""
    called = []

    def translate(jobs: Sequence[TranslationJob], settings: TranslateConfig, *, workers: int) -> list[Path]:
        called.append(([job.split for job in jobs], settings.beams, workers))
        return [Path("translations/a"), Path("translations/b")]

    monkeypatch.setattr("flare_ds.translation.run.translate_jobs", translate)
    monkeypatch.setattr("flare_ds.translation.run.describe", lambda task, directories: ["a: 3 rows failed"])
    write_data(tmp_path / "data", rows=40)
    config = str(write_config(toy_settings(tmp_path)))
    assert main(["translate", config, "--workers", "2", "task.sides=translated", "translate.beams=3"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "translations/a\ntranslations/b\n" and captured.err.endswith("a: 3 rows failed\n")
    assert called == [(["train", "validation", "test"], 3, 2)]


def test_translate_with_nothing_to_do(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "translate", str(write_config(toy_settings(root))))
    assert "task.sides='own'" in message and "nothing is to be translated" in message


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--file", "nowhere.jsonl"], "nowhere.jsonl is no file that ends in"),
        (["--file", "rows.jsonl", "--source", "text"], "--source cannot be combined with --file"),
        (
            ["--target", "text", "--source", "text", "--output", "said.csv"],
            "--output='said.csv' has an unknown file extension",
        ),
        (["--source", "text"], "method=flare reads the target text"),
        (["--target", "text"], "method=flare needs a source text for each of: en; got []"),
    ],
    ids=str,
)
def test_what_predict_refuses_before_it_loads_anything(
    root: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    config = write_config(toy_settings(root, name="unasked"))
    assert expected in refused(capsys, "predict", str(config), *arguments, "model.base=/nowhere")


def test_a_job_of_runs_may_open_as_many_files_as_the_host_allows(capsys: pytest.CaptureFixture[str]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        refused(capsys, "train", "one.yaml", "other.yaml")
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_missing_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no.yaml" in refused(capsys, "prepare", "no.yaml")


def test_a_config_that_is_not_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("method: [flare")
    assert "not valid YAML" in refused(capsys, "prepare", str(path))


def test_a_place_that_cannot_be_written(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Below a file, where not even root can."""
    (tmp_path / "file").touch()
    config = write_config(toy_settings(root))
    said = refused(capsys, "prepare", str(config), f"cache_dir={tmp_path}/file/cache")
    assert f"cannot write {tmp_path}/file/cache/" in said and "set cache_dir to a directory you may write in" in said


TRAIN_ERRORS = [
    (["deepspeed=ds_configs/zero3_cpu.json"], "model.dtype='float32', but bf16.enabled=true"),
    (["deepspeed=nowhere.json"], "cannot read deepspeed='nowhere.json'"),
    (["adapter.fused_modules=[qproj]"], "did you mean 'q_proj'"),
    (["adapter.fusion=add_rleu"], "did you mean 'add_relu'"),
    (["method=zero_shot"], "method=zero_shot trains nothing"),
    (["train.micro_batch_size=99999999", "train.batch_size=99999999"], "train.micro_batch_size=99999999 needs about"),
]


@pytest.mark.parametrize(("overrides", "expected"), TRAIN_ERRORS, ids=lambda value: str(value)[:30])
def test_what_training_refuses_on_every_rank(root: Path, overrides: list[str], expected: str) -> None:
    config = write_config(toy_settings(root, name="refused"))
    outputs = run_ranks(["flare_ds", "train", str(config), *overrides], 2, expect=1)
    assert expected in outputs[0] and "fix: " in outputs[0], outputs[0][-2000:]
    assert "Traceback" not in "".join(outputs)
    assert "flare-ds:" not in outputs[1], "one message, from rank 0"


def test_a_lock_left_by_a_killed_compilation_is_no_obstacle(root: Path, tmp_path: Path) -> None:
    """Torch would wait for it for ever: found when a run killed as it started made the next one hang."""
    config = str(write_config(toy_settings(root, name="locked", steps=1)))
    run_ranks(["flare_ds", "train", config], 1)  # compiles the op where no test before did
    (compiled,) = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()).glob("**/deepspeed_shm_comm")
    built = shutil.copytree(compiled, tmp_path / compiled.name)
    (built / "lock").touch()
    again = ["flare_ds", "train", config, f"run_dir={tmp_path}/again"]
    run_ranks(again, 2, timeout=300, TORCH_EXTENSIONS_DIR=str(tmp_path))
    assert not (built / "lock").exists()


def test_evaluating_a_run_without_an_adapter(root: Path) -> None:
    config = write_config(toy_settings(root, name="untrained"))
    (output,) = run_ranks(["flare_ds", "evaluate", str(config)], 1, expect=1)
    assert "has not ended (not started)" in output and "fix: " in output and "Traceback" not in output


def test_evaluating_with_other_fusion_settings(root: Path) -> None:
    config = write_config(toy_settings(root, name="fused", steps=1))
    run_ranks(["flare_ds", "train", str(config)], 1)
    (output,) = run_ranks(["flare_ds", "evaluate", str(config), "adapter.align=left"], 1, expect=1)
    assert "adapter.align='right'" in output
    (output,) = run_ranks(["flare_ds", "evaluate", str(config), "method=lora"], 1, expect=1)
    assert "method='flare', not 'lora'" in output


def test_a_run_that_is_not_trained_to_its_end_is_not_merged(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has the best adapter so far, and a state to go on from."""
    config = load_config(write_config(toy_settings(root, method="lora", name="interrupted")))
    write_adapter(config)
    (Path(config.run_dir) / "training.json").unlink()
    told = refused(capsys, "merge", config.run_dir, "--output", str(root / "merged"))
    assert f"the training of {config.run_dir} has not ended" in told and f"flare-ds train {config.run_dir}" in told
    assert not (root / "merged").exists()
