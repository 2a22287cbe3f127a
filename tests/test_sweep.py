"""What a sweep runs, skips and refuses, with a stand-in for the commands. Distributed training is tested elsewhere."""

import re
import subprocess
from pathlib import Path

import pytest

from flare_ds.exceptions import ConfigError, HostError
from flare_ds.settings import load_config
from flare_ds.sweep.local import sweep
from flare_ds.sweep.plan import load_sweep
from tests.distributed import inherited
from tests.sweep_bench import CELLS, PREPARED, UNTUNED, Bench, expected_calls, stage1_calls


@pytest.fixture
def bench(tmp_path, monkeypatch):
    return Bench(tmp_path, monkeypatch)


def test_every_stage_runs_once_in_order(bench, capfd):
    assert sweep(bench.path) == 0
    assert bench.calls() == [*PREPARED, *stage1_calls(bench), *expected_calls()]
    console = capfd.readouterr().out
    assert "hello from train pl/flare-seed2" in console
    assert "stage pl/flare-seed2 done in" in console
    assert "method − lora" in console and "s  in all" in console
    log = (bench.out / "pl/lora-seed1/log.txt").read_text()
    assert log.count("hello from") == 2 and f"{bench.stand_in} --ranks 2 --module flare_ds train" in log


def test_each_run_gets_its_own_config(bench):
    sweep(bench.path)
    stage1 = load_config(bench.out / "stage1")
    assert (stage1.method, stage1.task.target_language, stage1.train.steps) == ("lora", "en", 60)
    assert stage1.model.base == str(bench.directory / "models/small")
    flare, lora = load_config(bench.out / "pl/flare-seed2"), load_config(bench.out / "pl/lora-seed2")
    assert (flare.method, flare.train.seed, flare.train.steps) == ("flare", 2, 40)
    assert flare.model.base == lora.model.base == str(bench.out / "base")
    assert (flare.adapter.pairing, lora.adapter.pairing) == ("input", "module")
    assert flare.run_dir == str(bench.out / "pl/flare-seed2")


def test_a_second_call_runs_nothing(bench, capfd):
    sweep(bench.path)
    bench.calls()
    capfd.readouterr()
    assert sweep(bench.path) == 0
    assert bench.calls() == []
    console = capfd.readouterr().out
    assert console.count("skipped (finished)") == 2 + 2 + len(CELLS)
    assert "0.667" in console


def test_a_base_that_is_tuned_already_needs_no_stage_1(bench):
    bench.settings["stage1"] = None
    bench.write()
    assert sweep(bench.path) == 0
    assert bench.calls() == ["prepare pl/zero_shot-seed1", *expected_calls()]
    assert load_config(bench.out / "pl/flare-seed1").model.base == str(bench.directory / "models/small")


def test_a_grid_that_grows_runs_only_what_is_new(bench):
    sweep(bench.path)
    bench.calls()
    assert sweep(bench.path, ["grid.languages=[pl, es]", "grid.seeds=[1]"]) == 0
    new = [f"es/{method}-seed1" for method in ("zero_shot", "lora", "flare")]
    assert bench.calls() == [f"prepare es/zero_shot-seed1 {UNTUNED}", *expected_calls(new)]


def test_a_failing_cell_does_not_stop_the_others(bench, monkeypatch, capfd):
    monkeypatch.setenv("FAIL", "train pl/lora-seed1")
    assert sweep(bench.path) == 1
    assert bench.calls()[4:] == expected_calls()
    console = capfd.readouterr().out
    assert "stage pl/lora-seed1 FAILED (exit status 1)" in console
    assert console.count("no luck with train pl/lora-seed1") == 2  # as it happened, and at the end
    assert "unfinished: not started" in console
    monkeypatch.delenv("FAIL")
    assert sweep(bench.path) == 0
    assert bench.calls()[1:] == ["train pl/lora-seed1 --evaluate"]


def test_a_cell_whose_evaluation_failed_is_not_trained_again(bench, monkeypatch):
    monkeypatch.setenv("FAIL", "evaluate pl/flare-seed1")
    assert sweep(bench.path) == 1
    bench.calls()
    monkeypatch.delenv("FAIL")
    assert sweep(bench.path) == 0
    assert bench.calls()[1:] == ["train pl/flare-seed1 --evaluate"]
    assert (bench.out / "pl/flare-seed1/log.txt").read_text().count("hello from train") == 1


def test_without_stage_1_no_cell_runs(bench, monkeypatch, capfd):
    monkeypatch.setenv("FAIL", "stage1 stage1")
    assert sweep(bench.path) == 1
    assert bench.calls() == [*PREPARED, stage1_calls(bench)[0]]
    assert "stage pl/lora-seed1 not run: it needs stage1, which failed" in capfd.readouterr().out


def test_cells_without_a_cache_are_not_run_but_others_are(bench, monkeypatch, capfd):
    monkeypatch.setenv("FAIL", "prepare es/zero_shot-seed1")
    assert sweep(bench.path, ["grid.languages=[es, pl]"]) == 1
    assert bench.calls()[-len(expected_calls()) :] == expected_calls()
    assert "stage es/flare-seed2 not run: it needs prepare en-es, which failed" in capfd.readouterr().out


def test_methods_that_read_the_data_differently_get_their_own_cache(bench):
    bench.settings["methods"]["flare"]["task"] = {"max_prompt_tokens": 64}
    bench.write()
    sweep(bench.path)
    assert [call for call in bench.calls() if call.startswith("prepare")] == [
        *PREPARED,
        f"prepare pl/flare-seed1 {UNTUNED}",
    ]


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("base.train.steps=80", r"(?s)pl/lora-seed1.*train\.steps=40, but the sweep now has train\.steps=80"),
        ("stage1.train.steps=80", r"stage1 .*train\.steps=60, but the sweep now has train\.steps=80"),
        ("methods.flare.adapter.r=4", r"pl/flare-seed1, .*adapter\.r=8, but the sweep now has adapter\.r=4"),
    ],
)
def test_a_run_with_other_settings_is_refused_before_anything_runs(bench, override, problem):
    sweep(bench.path)
    bench.calls()
    with pytest.raises(ConfigError, match=problem) as error:
        sweep(bench.path, [override, "grid.languages=[pl, es]"])
    setting = override.split(".", 2)[-1] if "methods" in override else override.partition(".")[2]
    assert f"set {setting.partition('=')[0]} back" in error.value.fix and "--rerun changed" in error.value.fix
    assert "delete" not in error.value.fix, "whatever else lies there"
    if "stage1" not in override:
        assert "zero_shot" not in str(error.value), "it reads none of these settings"
    assert bench.calls() == []
    assert not (bench.out / "es").exists()


def test_settings_that_finished_runs_do_not_read_are_free(bench):
    sweep(bench.path, ["grid.methods=[zero_shot, lora]"])
    bench.calls()
    assert sweep(bench.path, ["base.adapter.fusion=add", "base.train.source_dropout=0.2", "base.generate.seed=2"]) == 0
    done = [call for call in bench.calls() if not call.startswith("prepare")]
    assert done == expected_calls(["pl/flare-seed1", "pl/flare-seed2"])
    with pytest.raises(ConfigError, match=r"fusion='add', but the sweep now has adapter\.fusion='mul'") as error:
        sweep(bench.path, ["base.adapter.fusion=mul", "base.train.source_dropout=0.2"])  # flare reads it
    assert "stage1" not in str(error.value) and "lora" not in str(error.value)


def test_all_that_differs_is_said_at_once(bench):
    sweep(bench.path)
    with pytest.raises(ConfigError) as error:
        sweep(bench.path, ["base.train.learning_rate=0.1", "methods.flare.adapter.r=4"])
    for cell in ("stage1", "pl/lora-seed1", "pl/lora-seed2", "pl/flare-seed2"):
        assert f"{bench.out}/{cell}" in error.value.problem
    for change in ("learning_rate=0.0005, but the sweep now has", "adapter.r=8, but the sweep now has"):
        assert change in error.value.problem
    assert "delete" not in error.value.fix, "the directory of the sweep holds more than what has changed"


def test_cells_that_never_began_are_planned_anew(bench, monkeypatch):
    """A learning rate is mended after stage 1 and the first cell: what ran is refused, what did not takes it."""
    one = ["grid.seeds=[1]", "stage1.train.learning_rate=1e-3"]
    monkeypatch.setenv("FAIL", "train pl/flare-seed1")
    sweep(bench.path, one)
    bench.calls()
    monkeypatch.delenv("FAIL")
    with pytest.raises(ConfigError) as error:
        sweep(bench.path, [*one, "base.train.learning_rate=0.1"])
    assert "pl/lora-seed1 was run with" in error.value.problem and "flare" not in error.value.problem
    assert load_config(bench.out / "pl/flare-seed1").train.learning_rate == 5e-4, "nothing is changed then"
    assert sweep(bench.path, [*one, "methods.flare.train.learning_rate=0.1"]) == 0
    assert bench.calls()[1:] == ["train pl/flare-seed1 --evaluate"]
    assert load_config(bench.out / "pl/flare-seed1").train.learning_rate == 0.1


@pytest.mark.parametrize("nothing", ["train pl/lora-seed1", "evaluate pl/lora-seed1"])
def test_a_launcher_that_ends_well_and_leaves_nothing_has_failed(bench, monkeypatch, capfd, nothing):
    monkeypatch.setenv("NOTHING", nothing)
    assert sweep(bench.path, ["grid.methods=[lora]", "grid.seeds=[1]"]) == 1
    console = capfd.readouterr().out
    assert "FAILED (exit status 0, but its results are not there)" in console
    assert console.count(f"hello from {nothing}") == 2, "as it happened, and the log's end"
    monkeypatch.delenv("NOTHING")
    bench.calls()
    assert sweep(bench.path, ["grid.methods=[lora]", "grid.seeds=[1]"]) == 0
    assert bench.calls()[-1] == "train pl/lora-seed1 --evaluate"


def test_a_better_adapter_is_evaluated_again(bench):
    one = ["grid.methods=[lora]", "grid.seeds=[1]"]
    sweep(bench.path, one)
    bench.calls()
    (bench.out / "pl/lora-seed1/adapter/adapter_model.safetensors").write_bytes(b"better")
    assert sweep(bench.path, one) == 0
    assert bench.calls()[1:] == ["train pl/lora-seed1 --evaluate"]
    assert (bench.out / "pl/lora-seed1/adapter/adapter_model.safetensors").read_bytes() == b"better"


@pytest.mark.parametrize("how", ["renamed", "linked", "relative"])
def test_a_sweep_that_moved_is_the_same_sweep(bench, monkeypatch, how):
    one = ["grid.methods=[lora]", "grid.seeds=[1]"]
    sweep(bench.path, one)
    bench.calls()
    place = bench.directory / "moved"
    bench.out.rename(place)
    if how == "linked":
        bench.out.symlink_to(place)
        place = bench.out
    monkeypatch.chdir(bench.directory)
    assert sweep(bench.path, [*one, f"out={'moved' if how == 'relative' else place}"]) == 0
    assert bench.calls() == []
    assert load_config(place / "pl/lora-seed1").model.base == str(place / "base")


def test_the_summary_comes_before_a_report_that_fails(bench, monkeypatch, capfd):
    monkeypatch.setenv("FAIL", "stage1 stage1")
    monkeypatch.setattr("flare_ds.sweep.local.report", lambda _: pytest.fail("no report"))
    with pytest.raises(pytest.fail.Exception):
        sweep(bench.path)
    assert "no luck with stage1 stage1" in capfd.readouterr().out.rpartition("Time by stage")[2]


def test_what_is_not_finished_goes_on_with_smaller_batches(bench, monkeypatch):
    monkeypatch.setenv("FAIL", "train pl/flare-seed1")
    sweep(bench.path)
    monkeypatch.delenv("FAIL")
    sweep(bench.path, ["base.train.micro_batch_size=3", "base.evaluate.batch_size=5"])
    saved = {name: load_config(bench.out / "pl" / name) for name in ("lora-seed1", "flare-seed1")}
    assert {name: (config.train.micro_batch_size, config.evaluate.batch_size) for name, config in saved.items()} == {
        "lora-seed1": (8, "auto"),
        "flare-seed1": (3, 5),
    }


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("grid.langauges=[pl]", "did you mean 'languages'"),
        ("lunch=deepspeed", "did you mean 'launch'"),
        ("methods.flare.adapter.rank=4", r"'adapter\.rank'.*pl/flare-seed1"),
        ("methods.flair={}", "did you mean 'flare'"),
        ("grid.methods=[lora, flair]", "did you mean 'flare'"),
        ("grid.languages=[pl, xx]", "no language 'xx'"),
        ("grid.languages=[no, true]", r"grid\.languages\.1=True"),
        ("grid.languages=[no]", "no language 'no'"),
        ("train.steps=10", r"write it as base\.train\.steps"),
        ("task.target_language=pl", r"remove task\.target_language"),
        ("method=lora", "follows from out and grid"),
        ("launch=deepspeed --num_accelerators 2", "does not end in --module"),
        ("launch=/opt/bin/python3.11 -u", "does not end in --module"),
        ("launch=sh -c 'a", "close the quotes"),
        ("launch=$NO_SUCH_PLACE/run", r"launch=.*NO_SUCH_PLACE is not set"),
        ("out=$NO_SUCH_PLACE/out", "setting out: .*NO_SUCH_PLACE is not set"),
        ("base.cache_dir=$NO_SUCH_PLACE/x", "setting cache_dir: .*NO_SUCH_PLACE is not set"),
        ("grid.seeds=[]", r"grid\.seeds=\[\]"),
        ("grid.seeds=[1, 1]", "has the same value twice"),
        ("grid.languages=[en]", "flare"),
        ("base.task.source_language=xx", "no language 'xx'"),
        ("base.task.name=multiemu", "did you mean 'multiemo'"),
        ("base.train.steps=0", r"train\.steps=0"),
        ("base.train=40", "base.train=40 .* is not a section"),
        ("base.task.target_language=pl", r"base\.task\.target_language='pl'.*the sweep sets"),
        ("base.run_dir=x", r"base\.run_dir"),
        ("stage1.method=flare", r"stage1\.method"),
        ("methods.lora.train.seed=3", r"methods\.lora\.train\.seed=3"),
        ("launch=", "launch"),
        ("launch=null", r"ranks=None and launch=None, but exactly one"),
        ("ranks=2", r"ranks=2 and launch=.*, but exactly one"),
        ("ranks=0", r"ranks=0"),
    ],
)
def test_a_wrong_setting_is_found_before_anything_runs(bench, override, problem):
    with pytest.raises(ConfigError, match=f"(?s){problem}"):
        sweep(bench.path, [override])
    assert bench.calls() == []
    assert not bench.out.exists()


def test_all_that_is_in_the_wrong_place_is_told_at_once(bench):
    with pytest.raises(ConfigError) as refused:
        sweep(
            bench.path, ["base.run_dir=x", "methods.lora.train.seed=3", "base.adapter=3", "grid.methods=[lora, fare]"]
        )
    for name in ("base.run_dir", "methods.lora.train.seed", "base.adapter=3", "'fare'", "4 problems"):
        assert name in refused.value.problem


def test_settings_of_a_method_that_is_not_in_the_grid_are_told(bench, capfd):
    load_sweep(bench.path, ["methods.input_fusion.adapter.r=4"])
    assert "methods.input_fusion" in capfd.readouterr().err


def test_texts_of_a_sweep_are_taken_as_they_are_written(bench):
    """A launcher, a directory and a base with whatever a YAML would read otherwise."""
    overrides = ["out=[a] #1: x", "launch=run: 'my ranks' #2", "stage1.cache_dir=@c", "methods.lora.cache_dir=*d"]
    plan = load_sweep(bench.path, overrides)
    assert plan.out == Path("[a] #1: x") and plan.launch == ("run:", "my ranks", "#2")
    caches = {cell.config.method: cell.config.cache_dir for cell in plan.runs}
    assert plan.stages1[0].config.cache_dir == "@c" and {cell.config.cache_dir for cell in plan.cells} >= {"*d"}, caches


def test_a_sweep_in_a_place_with_odd_characters_runs_whole(bench, monkeypatch):
    monkeypatch.setenv("PLACE", str(bench.out / "it's a 'ż' #1: [x] {y} $1 %"))
    assert sweep(bench.path, ["out=$PLACE/50% @home", "base.cache_dir=${PLACE}/`c`"]) == 0
    cell = bench.out / "it's a 'ż' #1: [x] {y} $1 %/50% @home/pl/lora-seed1"
    assert (cell / "metrics.json").is_file() and load_config(cell).run_dir == str(cell)


def test_stage_1_may_have_its_own_seed(bench):
    assert load_sweep(bench.path, ["stage1.train.seed=7"]).stages1[0].config.train.seed == 7


def test_each_distributed_command_is_given_a_port(bench):
    assert sweep(bench.path, [f"launch={bench.stand_in} --port {{free_port}} --module"]) == 0
    ports = re.findall(r"^\$ .* --port (\d+) --module", (bench.out / "pl/lora-seed1/log.txt").read_text(), re.M)
    assert len(ports) == 1 and all(1024 <= int(port) < 65536 for port in ports)


def test_commands_start_their_ranks_themselves(bench):
    assert sweep(bench.path, ["launch=null", "ranks=all"]) == 0
    with_ranks = [f"{call} --ranks all" for call in [*stage1_calls(bench), *expected_calls()]]
    assert bench.calls() == [*PREPARED, *with_ranks]


def test_a_missing_launcher_is_named(bench):
    with pytest.raises(HostError, match="launch='no_such_launcher'"):
        sweep(bench.path, ["launch=no_such_launcher --module"])
    assert bench.calls() == []


def test_the_saved_report_is_the_printed_one(bench, capfd):
    sweep(bench.path)
    assert (bench.out / "report.md").read_text() in capfd.readouterr().out


def test_the_launcher_starts_the_sweep_in_the_clone_from_any_directory(bench):
    root = Path(__file__).parents[1]
    commands = bench.directory / "venv/bin"
    commands.mkdir(parents=True)
    (commands / "python").symlink_to(bench.python)
    (commands / "flare-ds").write_text('#!/bin/sh\npwd\nprintf "%s\\n" "$@"\n')
    (commands / "flare-ds").chmod(0o755)
    script = root / "launchers/sweep_languages.sh"

    def launch(*arguments: str) -> subprocess.CompletedProcess:
        environment = {**inherited(), "FLARE_DS_VENV": str(commands.parent)}
        return subprocess.run(
            [script, *arguments], cwd=bench.directory, env=environment, capture_output=True, text=True
        )

    started = launch("sweep.yaml", "grid.languages=[pl, es]")
    assert started.stdout.splitlines() == [str(root), "sweep", str(bench.path), "grid.languages=[pl, es]"]
    assert "sweep_languages.sh SWEEP.yaml" in launch("--help").stdout
    for wrong, problem in {"": "no sweep is named", "none.yaml": "no such file: none.yaml"}.items():
        result = launch(wrong)
        assert (result.returncode, result.stdout) == (1, "")
        assert problem in result.stderr and "fix:" in result.stderr
