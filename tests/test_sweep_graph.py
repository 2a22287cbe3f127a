"""A sweep as a graph: the cells of its axes, what runs when, what moves aside, and what is said of all that."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import yaml

from flare_ds.cli import main
from flare_ds.data.cache.key import asked_fields
from flare_ds.exceptions import ConfigError, DataError, FlareError, HostError
from flare_ds.model_files.fingerprint import model_fingerprint
from flare_ds.runs import RunDirectory
from flare_ds.settings import load_config
from flare_ds.sweep.changed import changed_runs, refuse_changed
from flare_ds.sweep.dry_run import dry_run
from flare_ds.sweep.local import sweep
from flare_ds.sweep.nodes import is_done, nodes_of
from flare_ds.sweep.plan import load_sweep
from flare_ds.sweep.progress import progress, progress_of
from flare_ds.sweep.record import NodeRecord, SweepRecord, read_record
from flare_ds.sweep.slots import slots
from flare_ds.tasks.load import task_of
from tests.distributed import shared_environment
from tests.sweep_bench import CELLS, PREPARED, Bench, expected_calls, stage1_calls


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def cells(bench: Bench, *overrides: str) -> dict[str, dict]:
    """The settings of each cell, by its name."""
    return {cell.name: cell.config.model_dump() for cell in load_sweep(bench.path, overrides).cells}


def test_any_setting_is_an_axis(bench: Bench) -> None:
    bench.settings["grid"] |= {
        "seeds": [1],
        "adapter.fusion": ["add", "mul"],
        "rank": [{"adapter.r": 4, "adapter": {"alpha": 8}}, {"adapter.r": 16, "adapter.alpha": 32.5}],
    }
    bench.write()
    found = cells(bench, "grid.train.learning_rate=[3e-4]")
    fused = [f"-fusion-{fusion}" for fusion in ("add", "mul")]
    ranks = ["-r4-alpha8", "-r16-alpha32.5"]
    rate = "-learning_rate0.0003-seed1"
    assert list(found) == [
        "pl/zero_shot-seed1",
        *(f"pl/lora{rank}{rate}" for rank in ranks),
        *(f"pl/flare{fusion}{rank}{rate}" for fusion in fused for rank in ranks),
    ]
    wide = found[f"pl/flare-fusion-mul-r16-alpha32.5{rate}"]
    assert (wide["adapter"]["fusion"], wide["adapter"]["r"], wide["adapter"]["alpha"]) == ("mul", 16, 32.5)
    assert wide["train"]["learning_rate"] == 3e-4 and wide["adapter"]["pairing"] == "input", "the method's own"
    assert found[f"pl/lora-r4-alpha8{rate}"]["adapter"]["fusion"] == "add_relu", "what lora does not read is left"


def test_a_setting_that_a_method_does_not_read_is_no_axis_for_it(bench: Bench) -> None:
    one = "grid.seeds=[1]"
    assert list(cells(bench, one, "grid.train.source_dropout=[0, 0.2]")) == [
        *("pl/zero_shot-seed1", "pl/lora-seed1", "pl/flare-source_dropout0-seed1", "pl/flare-source_dropout0.2-seed1"),
    ]
    assert list(cells(bench, one, "grid.generate.max_new_tokens=[8, 16]")) == [
        *("pl/zero_shot-seed1", "pl/lora-seed1", "pl/flare-seed1"),
    ]
    ways = [one, "grid.methods=[lora]", "grid.evaluate.answers=[ranked, generated]", "grid.generate.seed=[1, 2]"]
    assert list(cells(bench, *ways)) == [
        *("pl/lora-answers-ranked-seed1", "pl/lora-answers-generated-seed1-seed1"),
        "pl/lora-answers-generated-seed2-seed1",
    ]


def test_how_source_prefix_comes_by_its_keys_is_an_axis(bench: Bench) -> None:
    grid = ["grid.methods=[lora, source_prefix]", "grid.seeds=[1]", "grid.source.provider=[lockstep, cached]"]
    found = cells(bench, *grid)
    assert {name: cell["source"]["provider"] for name, cell in found.items()} == {
        "pl/lora-seed1": "lockstep",
        "pl/source_prefix-provider-lockstep-seed1": "lockstep",
        "pl/source_prefix-provider-cached-seed1": "cached",
    }


def test_what_trains_nothing_takes_the_cache_of_the_cell_beside_it(bench: Bench) -> None:
    plan = load_sweep(bench.path, ["grid.methods=[zero_shot, lora]", "grid.seeds=[1]", "grid.task.train_rows=[50, 99]"])
    assert [cell.name for cell in plan.cells] == [
        *("pl/zero_shot-seed1", "pl/lora-train_rows50-seed1", "pl/lora-train_rows99-seed1"),
    ]
    prepared = [[run.name for run in node.runs] for node in nodes_of(plan) if node.kind == "prepare"][1:]
    assert prepared == [["pl/zero_shot-seed1", "pl/lora-train_rows50-seed1"], ["pl/lora-train_rows99-seed1"]]


def test_variants_tasks_and_models(bench: Bench) -> None:
    bench.settings |= {
        "variants": {"wide": {"method": "flare", "adapter.r": 16}, "lora": {"method": "lora", "adapter.r": 2}},
        "tasks": {"multiemo": {"task.max_prompt_tokens": 16}, "nli": {"task": {"name": "xnli"}}},
        "models": {"small": {}, "other": {"model.base": "models/other"}},
        "grid": {"languages": ["pl"], "methods": ["wide", "lora"], "seeds": [1], "tasks": ["multiemo"]},
        "grids": [{"languages": ["es"], "methods": ["flare"], "seeds": [2], "tasks": ["nli"], "models": ["other"]}],
    }
    del bench.settings["base"]["task"]["name"]
    bench.write()
    plan = load_sweep(bench.path)
    assert [cell.name for cell in plan.cells] == [
        *(f"{model}/multiemo/pl/{name}-seed1" for model in ("small", "other") for name in ("wide", "lora")),
        "other/nli/es/flare-seed2",
    ]
    wide, lora, *_, last = [cell.config for cell in plan.cells]
    assert (wide.method, wide.adapter.r, wide.adapter.pairing) == ("flare", 16, "input"), "flare's own, and its own"
    assert (lora.method, lora.adapter.r, lora.task.max_prompt_tokens) == ("lora", 2, 16)
    assert (last.task.name, last.train.seed, last.task.max_prompt_tokens) == ("xnli", 2, 128)
    assert last.model.base == str(bench.out / "other/nli/base"), "every task and model has a stage 1 of its own"
    bases = {run.name: (run.config.model.base, run.config.task.name) for run in plan.stages1}
    assert bases == {
        "small/multiemo/stage1": ("models/small", "multiemo"),
        "other/multiemo/stage1": ("models/other", "multiemo"),
        "other/nli/stage1": ("models/other", "xnli"),
    }
    needs = {node.name: node.needs for node in nodes_of(plan)}
    does = {node.name: node.method for node in nodes_of(plan) if node.kind == "stage1"}
    assert {does["other/nli/stage1"], does["small/multiemo/stage1"]} == {"stage1"}
    assert does["other/nli/stage1 evaluate"] == "stage1 evaluate", "which takes another time"
    assert needs["other/nli/es/flare-seed2"] == ("prepare other/nli/en-es", "other/nli/stage1")


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("grid.adapter.rr=[1]", r"'adapter\.rr'"),
        ("grid.adapter.r=[]", r"adapter\.r=\[\] is empty or repeats"),
        ("grid.adapter.r=[8, 8]", "is empty or repeats a value"),
        (
            "grid.deepspeed=[auto, zero3]",
            r"deepspeed=.* is not an axis: .*fix: write deepspeed: \[\{deepspeed: \.\.\.\}",
        ),
        ("grid.rank=[8, 16]", r"rank=.* is not an axis: .*fix: write rank: \[\{SECTION\.SETTING: \.\.\.\}, \{SECTION"),
        ("grid.r=[8, 16]", r"r=.* is not an axis: .*fix: write adapter\.r: \[\.\.\.\]"),
        ("grid.batch_size=[8]", r"fix: write translate\.batch_size: \[\.\.\.\] or train\.batch_size: \[\.\.\.\] or"),
        ("grid.seed=[8]", r"unknown setting 'grid\.seed' .*did you mean 'seeds'"),
        ("grid.train.steps=3", r"setting grid: train\.steps=3 is no list of values"),
        ("grid.rank=[{adapter.r: 4}, {adapter: {r: 8}, adapter.r: 16}]", r"grid\.rank\.adapter\.r is set twice"),
        ("variants.x.adapter.r=4", r"variants\.x in .* names no method"),
        ("grid.train.seed=[1]", "use seeds instead"),
        ("grid.model.base=[a, b]", "use models instead"),
        ("grid.task.source_language=[en]", "use tasks instead"),
        ("grid.tasks=[xnli]", "'xnli', which is not in tasks"),
        ("variants.x={method: flair}", "did you mean 'flare'"),
        ("variants.a/b={method: flare}", "is used as a directory name"),
        ("variants.lora={method: flare}", r"variants\.lora in .* has the name of a method, but is method=flare"),
        ("variants.lora={method: lora, train: {seed: 3}}", r"variants\.lora\.train\.seed=3"),
        ("grids=[{languages: [pl], methods: [lora], seeds: [1], adapter.alpha: [3]}, {languages: [pl]}]", "grids"),
        ("score=all", "score='all'"),
        ("retries=-1", "retries=-1"),
        ("grid.task.data_dir=[a/x, b/x]", r"two cells .*data_dir-x.*: task\.data_dir='a/x' and 'b/x'.*fix: leave"),
    ],
)
def test_a_wrong_axis_is_told(bench: Bench, override: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){problem}"):
        load_sweep(bench.path, [override])


@pytest.mark.parametrize("stage1", ["null", "{}"])
def test_answers_that_no_run_could_give_are_told_before_anything_starts(bench: Bench, stage1: str) -> None:
    """Once each, however many cells have them; stage 1 is asked, too."""
    free = ["base.task={name: tydiqa, sides: translated}", "grid.languages=[ko, sw]", f"stage1={stage1}"]
    late = "variants.fitted={method: lora, evaluate.late: fitted, train.objective: vocabulary}"
    with pytest.raises(ConfigError, match=r"2 problems in .*sweep\.yaml") as told:
        dry_run(bench.path, [*free, late, "grid.methods=[lora, fitted]"])
    assert told.value.problem.count("the answers of task tydiqa are free text") == 1
    assert told.value.problem.count("ranks label words, but answers are to be written") == 1
    with pytest.raises(
        ConfigError, match=r"train\.objective='labels', but the answers .*\n  fix: .*objective=vocabulary"
    ):
        sweep(bench.path, [*free, "grid.methods=[zero_shot]"])
    only_stage1 = ["grid.methods=[zero_shot]", "methods.zero_shot={train.objective: vocabulary}"]
    if stage1 == "{}":
        with pytest.raises(ConfigError, match="are free text"):
            load_sweep(bench.path, [*free, *only_stage1])
    assert bench.calls() == [] and not bench.out.exists()
    assert load_sweep(bench.path, [*free, "base.train.objective=vocabulary"]).cells


def test_a_setting_that_all_cells_lack_is_told_as_one_of_base(bench: Bench) -> None:
    bench.settings["base"]["model"] = {}
    bench.write()
    with pytest.raises(ConfigError, match=r"'model\.base' is missing in .*") as refused:
        load_sweep(bench.path)
    assert refused.value.fix == "add it, or pass base.model.base=VALUE"


def test_what_a_wrong_axis_is_told_to_be_works(bench: Bench) -> None:
    one = ["grid.methods=[lora]", "grid.seeds=[1]"]
    modes = [*one, "grid.deepspeed=[{deepspeed: auto}, {deepspeed: ds.json}]"]
    assert list(cells(bench, *modes)) == ["pl/lora-deepspeed-auto-seed1", "pl/lora-deepspeed-ds.json-seed1"]
    named = [f"variants.{name}={{method: lora, task.data_dir: {name}/x}}" for name in "ab"]
    assert list(cells(bench, *one, *named, "grid.methods=[a, b]")) == ["pl/a-seed1", "pl/b-seed1"]


def test_two_jobs_run_what_needs_nothing_unfinished(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("MEET", "prepare stage1,prepare pl/zero_shot-seed1")
    assert sweep(bench.path, jobs=2) == 0
    calls = bench.calls()
    assert sorted(calls) == sorted([*PREPARED, *stage1_calls(bench), *expected_calls()])
    assert set(calls[:2]) == set(PREPARED) and calls[2] == stage1_calls(bench)[0], "which every cell needs"
    threads = str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert f"threads: {threads}\n" in (bench.out / "stage1/log.txt").read_text()


def test_a_command_that_fails_is_tried_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIL_ONCE", "train pl/lora-seed1")
    assert sweep(bench.path, ["retries=1"]) == 0
    assert bench.calls().count("train pl/lora-seed1 --evaluate") == 2


def test_cells_of_a_job_that_fails_are_not_scored_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIL_ONCE", "train pl/flare-seed1")
    assert sweep(bench.path, ["together=auto", "retries=1"]) == 0
    before, after = "pl/lora-seed1", "pl/flare-seed1 pl/lora-seed2 pl/flare-seed2"
    assert bench.calls()[-2:] == [f"train {before} {after} --evaluate", f"train {after} --evaluate"]


def test_cells_of_a_job_that_lack_their_cache_are_left_out_of_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = ["together=auto", "grid.languages=[es, pl, de]", "grid.seeds=[1]"]
    monkeypatch.setenv("FAIL", "prepare es/zero_shot-seed1")
    assert sweep(bench.path, asked) == 1
    others = [f"{language}/{method}-seed1" for language in ("pl", "de") for method in ("lora", "flare")]
    scored = [f"evaluate {language}/zero_shot-seed1" for language in ("pl", "de")]
    assert sorted(bench.calls()[-3:]) == sorted([*scored, f"train {' '.join(others)} --evaluate"])
    said = capfd.readouterr().out
    assert "stage pl/lora-seed1 and 3 more done" in said
    assert "stage es/lora-seed1 and 1 more not run: it needs prepare en-es, which failed" in said
    assert "11 stages: 8 done, 1 failed, 2 blocked" in str(progress_of(bench.out))
    assert sweep(bench.path, asked, only=("cells",)) == 1, "nothing that can be done is left"
    assert bench.calls() == []
    monkeypatch.delenv("FAIL")
    assert sweep(bench.path, asked) == 0
    assert bench.calls()[-1] == "train es/lora-seed1 es/flare-seed1 --evaluate"


def test_parts_run_alone(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(bench.path), "--only", "translate,prepare"]) == 0
    assert bench.calls() == PREPARED and not (bench.out / "report.md").exists()
    capfd.readouterr()
    assert sweep(bench.path, only=("cells",)) == 1
    assert bench.calls() == [], "neither cache nor base is there"
    said = capfd.readouterr().out
    assert "pl/lora-seed1 not run: it needs prepare en-pl, which is not finished, and --only leaves it out" in said
    assert "stage1 evaluate not run" not in said, "nobody asked for it"
    assert sweep(bench.path, only=("prepare", "stage1", "cells")) == 0
    assert bench.calls()[2:] == [*stage1_calls(bench), *expected_calls()]
    with pytest.raises(SystemExit):
        main(["sweep", str(bench.path), "--only", "fetch"])
    assert "'fetch' is not a stage" in capfd.readouterr().err


def test_one_translation_is_made_once_however_it_is_read(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.settings["base"]["task"] |= {"sides": "translated"}
    bench.settings |= {
        "stage1": None,
        "variants": {
            "short": {"method": "flare", "task.max_prompt_tokens": 16, "task.drop_shared_passages": True},
            "clean": {"method": "flare", "translate.drop": ["loop"], "translate.batch_size": 4},
            "few": {"method": "flare", "task.train_rows": 5},
            "beams": {"method": "flare", "translate.beams": 4},
        },
        "grid": {"languages": ["pl"], "methods": ["flare", "short", "clean", "few", "beams"], "seeds": [1]},
    }
    bench.write()
    needs = {node.name: node.needs for node in nodes_of(load_sweep(bench.path))}
    assert [name for name in needs if name.startswith("translate")] == [
        "translate en-pl",
        "translate en-pl (pl/few-seed1)",
        "translate en-pl (pl/beams-seed1)",
    ]
    same = [needs[f"prepare en-pl{of}"] for of in ("", " (pl/short-seed1)", " (pl/clean-seed1)")]
    assert same == [("translate en-pl",)] * 3
    monkeypatch.setattr("flare_ds.sweep.nodes.has_cache", lambda config: config.task.max_prompt_tokens != 16)
    finished = {node.name for node in nodes_of(load_sweep(bench.path)) if node.finished()}
    assert "prepare en-pl" in finished and "translate en-pl (pl/few-seed1)" in finished
    assert not finished & {"prepare en-pl (pl/short-seed1)", "translate en-pl"}, "another cache is to be made of it"


def test_what_answers_the_source_has_a_cache_of_its_own_where_it_is_answered_otherwise(bench: Bench) -> None:
    def prepared(*task: str) -> list[list[str]]:
        asked = ["stage1=null", "grid.languages=[sw]", "grid.methods=[translate_test, lora]", "grid.seeds=[1]", *task]
        made = [node for node in nodes_of(load_sweep(bench.path, asked)) if node.kind == "prepare"]
        return [[run.method for run in node.runs] for node in made]

    each, shared = [["translate_test"], ["lora"]], [["translate_test", "lora"]]
    assert prepared("base.task={name: tydiqa, sides: translated}", "base.train.objective=vocabulary") == each
    assert prepared("base.task={name: xnli}") == shared
    words = {"en": ["yes", "no"], "sw": ["ndiyo", "hapana"]}
    task = {"name": "own", "languages": ["en", "sw"], "pools": ["all"], "fields": ["text"], "template": "{text}"}
    (bench.directory / "own.yaml").write_text(yaml.safe_dump(task | {"labels": words}))
    assert prepared("base.task={name: own, path: own.yaml}") == each


def test_what_auto_became_is_told_where_cells_may_run_elsewhere(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def said(*overrides: str) -> str:
        load_sweep(bench.path, overrides)
        return capfd.readouterr().err

    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    told = r"^flare-ds: model\.dtype=auto becomes (bfloat16|float32) on this host.*\n  fix: set base\.model\.dty.*\n$"
    assert re.fullmatch(told, said()) and re.fullmatch(told, said("base.model.dtype=auto"))
    assert re.fullmatch(told, said("methods.lora.model.dtype=float32")), "the others have it"
    assert said("base.model.dtype=float32") == said("launch=null", "ranks=2") == ""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert said() == ""


def test_a_setting_is_one_setting_with_dots_and_in_a_section(bench: Bench) -> None:
    def rates(*overrides: str) -> set[float]:
        return {run.config.train.learning_rate for run in load_sweep(bench.path, overrides).cells}

    bench.settings["base"] |= {"train.learning_rate": 3e-4}
    bench.settings["methods"]["flare"] |= {"train.learning_rate": 2e-4}
    bench.settings["grid"] |= {"adapter": {"r": [4]}, "adapter.alpha": [8, 16]}
    bench.write()
    assert rates() == {3e-4, 2e-4}
    assert rates("stage1={train.steps: 20}", "methods={flare: {train.learning_rate: 1e-4}}") == {3e-4, 1e-4}
    assert rates("base.train.learning_rate=9e-4", "methods.flare.train.learning_rate=1e-4") == {9e-4, 1e-4}
    assert len(load_sweep(bench.path, ["grid.adapter.alpha=[8]"]).cells) == 5
    twice = {
        "base.train.steps": ("base", {"train.steps": 3}),
        "methods.flare.adapter.pairing": (
            "methods",
            {"flare": {"adapter.pairing": "output", "adapter": {"pairing": "input"}}},
        ),
        "grid.adapter.r": ("grid", {"adapter.r": [8]}),
    }
    for name, (part, more) in twice.items():
        before = bench.settings[part]
        bench.settings[part] = before | more
        bench.write()
        with pytest.raises(ConfigError, match=re.escape(f"{name} is set twice, in its section and with dots")):
            load_sweep(bench.path)
        bench.settings[part] = before
    bench.settings["grid"] |= {"rank": [{"adapter.r": 8}, {"adapter.r": 16}]}
    bench.write()
    with pytest.raises(ConfigError, match=r"adapter\.r and rank both set adapter\.r"):
        load_sweep(bench.path)


def test_cells_of_one_base_and_source_train_in_one_job(bench: Bench) -> None:
    def jobs(*overrides: str, at_once: int = 1) -> dict[str, list[str]]:
        nodes = nodes_of(load_sweep(bench.path, overrides), at_once)
        here = f"{bench.out}/"
        return {
            node.name: [word.removeprefix(here) for word in node.command() if word.startswith(here)]
            for node in nodes
            if node.kind == "cells"
        }

    alone = ["pl/zero_shot-seed1", *(f"pl/{method}-seed{seed}" for method in ("lora", "flare") for seed in (1, 2))]
    assert jobs() == {name: [name] for name in alone}
    trained = [alone[number] for number in (1, 3, 2, 4)]
    """Those of one seed come together: they read the same rows in the same order."""
    assert jobs("together=auto") == {alone[0]: alone[:1], f"{trained[0]} and 3 more": trained}
    assert list(jobs("together=2").values()) == [alone[:1], trained[:2], trained[2:]]
    assert list(jobs("together=2", "base.train.data_seed=1").values()) == [alone[:1], alone[1:3], alone[3:]]
    assert list(jobs("together=3").values()) == [alone[:1], trained[:3], trained[3:]]
    assert list(jobs("together=3", at_once=3).values()) == [alone[:1], trained[:3], trained[3:]], "as it was asked for"
    assert list(jobs("together=auto", at_once=3).values()) == [alone[:1], trained[:1], trained[1:2], trained[2:]]
    assert jobs("together=auto", at_once=9) == jobs(), "a job for each"
    assert sweep(bench.path, ["grid.methods=[zero_shot, lora]"]) == 0
    assert jobs("together=auto")[f"{trained[1]} and 1 more"] == trained[1::2], "those that are done are left out"
    shared = list(jobs("together=auto", at_once=2).values())[1:]
    assert shared == [[name] for name in alone[1:]], "shared out by themselves, so that each job has one to train"
    bench.settings["models"] = {"small": {"model.dtype": "float32"}, "other": {"model.dtype": "bfloat16"}}
    bench.write()
    assert [len(runs) for runs in jobs("together=auto").values()] == [1, 4, 1, 4]


def test_no_test_row_is_scored_where_validation_counts(bench: Bench) -> None:
    one = ["score=validation", "grid.seeds=[1]", "grid.methods=[zero_shot, lora]"]
    assert [node.command()[-1] for node in nodes_of(load_sweep(bench.path, one)) if node.kind == "cells"] == [
        "validation",
        str(bench.out / "pl/lora-seed1"),
    ]
    assert sweep(bench.path, ["score=validation", "grid.methods=[lora]"]) == 0
    assert bench.calls()[2:] == [stage1_calls(bench)[0], "train pl/lora-seed1", "train pl/lora-seed2"]
    assert not [*bench.out.rglob("metrics.json")]
    assert sweep(bench.path, ["score=validation", "grid.methods=[lora]"]) == 0
    assert bench.calls() == []


@pytest.mark.parametrize(("score", "name"), [("test", "metrics.json"), ("validation", "metrics-validation.json")])
def test_a_cell_that_was_scored_otherwise_by_hand_is_scored_again(bench: Bench, score: str, name: str) -> None:
    plan = load_sweep(bench.path, [f"score={score}", "stage1=null", "grid.methods=[zero_shot]"])
    (cell,) = plan.cells
    cell.directory.mkdir(parents=True)

    def scored(**task: object) -> bool:
        settings = cell.config.model_dump(mode="json")
        said = {"adapter_sha256": None, "settings": settings | {"task": settings["task"] | task}}
        (cell.directory / name).write_text(json.dumps(said if task else said | {"settings": None}))
        return is_done(cell, plan)

    assert not scored(test_rows=20) and not scored(validation_rows=20)
    assert scored(data_dir="moved") and scored(), "that of an earlier version does not say"


def test_a_score_by_hand_changes_no_settings_of_a_run_and_refuses_no_sweep(bench: Bench) -> None:
    """Of what trains nothing a scoring begins the run; the second only writes other scores."""
    plan = load_sweep(bench.path, ["stage1=null", "grid.methods=[zero_shot]"])
    (cell,) = plan.cells
    begin = partial(cell.owner.begin, records={"cache.json": {"key": "any", "fields": {}}})
    begin(cell.config)
    (cell.directory / "metrics.json").write_text("{}")
    assert cell.owner.begun
    begin(cell.config.model_copy(update={"task": cell.config.task.model_copy(update={"test_rows": 20})}))
    refuse_changed(plan)
    begin(cell.config.model_copy(update={"evaluate": cell.config.evaluate.model_copy(update={"batch_size": 3})}))
    assert cell.owner.config.evaluate.batch_size == 3, "how much is held at once is housekeeping"


def test_what_was_run_with_other_settings_is_moved_aside(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    sweep(bench.path)
    bench.calls()
    before = (bench.out / "pl/flare-seed1/adapter/adapter_model.safetensors").read_bytes()
    capfd.readouterr()
    assert sweep(bench.path, ["methods.flare.adapter.r=4"], rerun_changed=True) == 0
    changed = ["pl/flare-seed1", "pl/flare-seed2"]
    assert bench.calls()[1:] == expected_calls(changed), "and nothing else"
    assert "pl/flare-seed1, pl/flare-seed2: adapter.r=8, but the sweep now has adapter.r=4" in capfd.readouterr().out
    (aside,) = (bench.out / ".aside").iterdir()
    assert (aside / "pl/flare-seed1/adapter/adapter_model.safetensors").read_bytes() == before
    assert load_config(bench.out / "pl/flare-seed1").adapter.r == 4
    assert ".aside" not in (bench.out / "report.md").read_text()
    time.sleep(max(0.0, 1.1 - (time.time() - aside.stat().st_mtime)))  # another second, another name
    assert sweep(bench.path, ["methods.flare.adapter.r=4", "stage1.train.steps=61"], rerun_changed=True) == 0
    assert bench.calls()[2:] == [*stage1_calls(bench), *expected_calls()], "all stand on the base of stage 1"
    newest = max((bench.out / ".aside").iterdir())
    assert (newest / "base").is_dir() and (newest / "stage1/metrics.json").exists()


def test_runs_of_a_task_that_says_something_else_by_now_are_changed(bench: Bench) -> None:
    """As one of one's own whose version was raised: new cells would read other prompts than those that are there."""
    sweep(bench.path)
    cells = {run.name: run for run in load_sweep(bench.path).cells}
    for run in cells.values():
        fields = asked_fields(run.config, task_of(run.config.task))
        (run.directory / "cache.json").write_text(json.dumps({"fields": fields}))
    assert changed_runs(load_sweep(bench.path)) == {}
    old = cells["pl/lora-seed1"].directory / "cache.json"
    fields = json.loads(old.read_text())["fields"] | {"task_version": 0, "prompt_template": "Text: {text}\nTone:"}
    old.write_text(json.dumps({"fields": fields}))
    with pytest.raises(
        ConfigError, match="lora-seed1 was run with task_version=0, but the task now has task_version=1; p"
    ):
        sweep(bench.path)
    bench.calls()
    assert sweep(bench.path, rerun_changed=True) == 0
    assert bench.calls()[1:] == expected_calls(["pl/lora-seed1"])


@pytest.mark.parametrize(("only", "lacking"), [(["report"], "stage1 and cells"), (["prepare", "cells"], "stage1")])
def test_nothing_is_moved_aside_that_is_not_run_again(bench: Bench, only: list[str], lacking: str) -> None:
    sweep(bench.path)
    with pytest.raises(ConfigError, match=f"--only {','.join(only)} leaves out {lacking}, which"):
        sweep(bench.path, ["methods.flare.adapter.r=4"], only=only, rerun_changed=True)
    assert not (bench.out / ".aside").exists()


def of_the_base_that_is_there(bench: Bench) -> set[bool]:
    """Whether the cells were made on it."""
    now = model_fingerprint(str(bench.out / "base"))
    return {json.loads((bench.out / cell / "base.json").read_text())["fingerprint"] == now for cell in CELLS}


def test_cells_of_a_base_that_is_gone_are_told_and_moved_aside(bench: Bench) -> None:
    sweep(bench.path)
    bench.calls()
    for name in ("stage1", "base"):
        shutil.rmtree(bench.out / name)
    other = ["stage1.train.steps=61"]
    told = r"pl/lora-seed1.*model.base from before .*/base, which is still to be made"
    with pytest.raises(ConfigError, match=told) as refused:
        sweep(bench.path, other)
    assert refused.value.fix.startswith(f"put {bench.out / 'base'} back, choose"), "no setting of a sweep names it"
    assert bench.calls() == []
    assert "| changed: model.base from before" in dry_run(bench.path, other)
    assert sweep(bench.path, other, rerun_changed=True) == 0
    assert bench.calls()[2:] == [*stage1_calls(bench), *expected_calls()]
    assert of_the_base_that_is_there(bench) == {True}


def test_the_same_base_merged_anew_leaves_its_cells_finished(bench: Bench) -> None:
    sweep(bench.path)
    bench.calls()
    shutil.rmtree(bench.out / "base")
    assert sweep(bench.path) == 0
    assert bench.calls() == stage1_calls(bench)[:1]


def test_no_cell_is_begun_on_a_base_whose_stage_1_is_gone(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    """It may have been made with other settings; the verb tells that this stage 1 did not make it."""
    one = ["score=validation", "grid.methods=[lora]"]
    sweep(bench.path, [*one, "grid.seeds=[1]"])
    bench.calls()
    shutil.rmtree(bench.out / "stage1")
    assert sweep(bench.path, [*one, "stage1.train.steps=61"]) == 1
    assert bench.calls()[2:] == stage1_calls(bench)[:1]
    said = capfd.readouterr().out
    assert "pl/lora-seed2 not run: it needs stage1, which failed" in said
    assert said.endswith("\nnot finished: pl/lora-seed2\n")


def test_a_cell_of_another_base_than_stage_1_then_makes_is_not_finished(bench: Bench) -> None:
    sweep(bench.path)
    shutil.rmtree(bench.out / "base")
    (bench.out / "stage1/adapter/adapter_model.safetensors").write_bytes(b"trained on, elsewhere")
    assert sweep(bench.path, ["grid.methods=[lora]"]) == 1
    with pytest.raises(ConfigError, match=r"pl/lora-seed1.* model.base=.*/base before its contents changed"):
        sweep(bench.path)


@pytest.mark.parametrize("moved", [1, len(CELLS), len(CELLS) + 1])
def test_moving_aside_that_breaks_off_is_taken_up_where_it_was(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    sweep(bench.path)
    bench.calls()
    changed, rename, done = ["stage1.train.steps=61"], Path.rename, list[str]()

    def full(path: Path, target: Path) -> Path:
        if ".aside" in target.parts:
            if len(done) == moved:
                raise PermissionError(13, "Permission denied", str(path))
            done.append(path.name)
        return rename(path, target)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "rename", full)
        with pytest.raises(HostError, match="Permission denied"):
            sweep(bench.path, changed, rerun_changed=True)
    assert (bench.out / "base").exists() == (moved <= len(CELLS)), "cells go first"
    monkeypatch.setattr("flare_ds.sweep.changed.time.strftime", lambda _format: "a second later")
    assert sweep(bench.path, changed, rerun_changed=True) == 0
    assert bench.calls()[2:] == [*stage1_calls(bench), *expected_calls()]
    assert of_the_base_that_is_there(bench) == {True}


@contextmanager
def writing(bench: Bench, run: str) -> Iterator[str]:
    """Another process that writes a run, and its name."""
    code = "import sys; from pathlib import Path; from flare_ds.locks import hold\n"
    code += "hold(Path(sys.argv[1]) / '.lock', doing=''); print(flush=True); sys.stdin.read()"
    command = [bench.python, "-c", code, str(bench.out / run)]
    environment = shared_environment()
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        yield f"process {process.pid} on host"
        process.stdin.close()


def test_a_run_that_another_process_writes_is_left_where_it_is(bench: Bench) -> None:
    sweep(bench.path)
    changed = ["methods.flare.adapter.r=4"]
    with writing(bench, "pl/flare-seed2") as process, pytest.raises(HostError, match=f"{process}.*pl/flare-seed2"):
        sweep(bench.path, changed, rerun_changed=True)
    assert not (bench.out / ".aside").exists() and (bench.out / "pl/flare-seed1/metrics.json").exists()
    assert sweep(bench.path, changed, rerun_changed=True) == 0


def test_only_settings_that_changed_are_written_anew_and_not_under_a_process_that_reads_them(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a sweep whose directory is given as it stands from here, too."""
    monkeypatch.setenv("FAIL", "train pl/flare-seed1")
    monkeypatch.chdir(bench.directory)
    here = ["out=out", "grid.seeds=[1]"]
    sweep(bench.path, here)
    saved = bench.out / "pl/flare-seed1/config.yaml"
    written = saved.stat().st_mtime_ns
    with writing(bench, "pl/flare-seed1") as process:
        assert sweep(bench.path, here) == 1
        assert saved.stat().st_mtime_ns == written
        with pytest.raises(HostError, match=process):
            sweep(bench.path, [*here, "base.train.micro_batch_size=3"])
    sweep(bench.path, [*here, "base.train.micro_batch_size=3"])
    assert load_config(saved.parent).train.micro_batch_size == 3


def test_what_auto_became_when_a_run_began_is_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command gives it no other settings, so it may go on beside a process that writes the run."""
    monkeypatch.setenv("FAIL", "evaluate pl/lora-seed1")
    auto = ["base.deepspeed=auto", "grid.methods=[lora]", "grid.seeds=[1]"]
    sweep(bench.path, auto)
    begun = bench.out / "pl/lora-seed1"
    chosen = load_config(begun).model_copy(update={"deepspeed": "zero3_cpu"})
    RunDirectory(begun).claim(chosen)
    with writing(bench, "pl/lora-seed1"):
        assert sweep(bench.path, auto) == 1
    sweep(bench.path, [*auto, "base.evaluate.batch_size=5"])
    assert load_config(begun) == chosen.model_copy(update={"evaluate": load_config(begun).evaluate})
    sweep(bench.path, [*auto, "base.deepspeed=zero3_fp32_cpu"])
    assert load_config(begun).deepspeed == "zero3_fp32_cpu", "what is asked for by name"


def test_what_is_not_there_is_told_before_the_first_command(bench: Bench) -> None:
    """Once for all cells; and what finished ones have read may be gone."""
    wrong = ["base.model.base=models/none", "base.task.data_dir=nowhere"]
    for call in (sweep, dry_run):
        with pytest.raises(FlareError, match="2 problems in") as refused:
            call(bench.path, wrong)
        for told in ("model.base='models/none' is not there", "task.data_dir='nowhere' is not a directory"):
            assert refused.value.problem.count(told) == 1
    assert bench.calls() == [] and not bench.out.exists()
    assert sweep(bench.path) == 0
    for read in ("models", "data"):
        shutil.rmtree(bench.directory / read)
    assert sweep(bench.path) == 0
    with pytest.raises(FlareError, match=r"task\.data_dir='data' is not a directory"):
        dry_run(bench.path, ["grid.languages=[pl, es]"])


def test_a_package_that_a_tracker_lacks_is_told_before_the_first_command(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *of: None if name == "wandb" else found(name, *of))
    with pytest.raises(ConfigError, match="names wandb, which is not installed"):
        sweep(bench.path, ["base.tracking.to=[wandb]"])
    assert bench.calls() == [] and not bench.out.exists()


def test_status_says_what_failed_and_why(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAIL", "train pl/lora-seed1")
    sweep(bench.path)
    capsys.readouterr()
    main(["status", str(bench.out)])
    printed = capsys.readouterr().out
    assert "failed   pl/lora-seed1: no luck with train pl/lora-seed1 (exit status 1)" in printed
    assert printed.endswith("9 stages: 8 done, 1 failed\n")
    monkeypatch.setenv("FAIL", "stage1 other/stage1")
    sweep(bench.path, [f"out={bench.out}/other"])
    assert "9 stages: 2 done, 1 failed, 6 blocked by a failed one" in str(progress_of(bench.out / "other"))


def test_progress_of_what_runs(tmp_path: Path) -> None:
    def node(state: str, **known: object) -> NodeRecord:
        return NodeRecord("cells", "lora", known.pop("needs", []), ["a"], "a/log.txt", state, **known)  # type: ignore

    now = time.time()
    nodes = {
        "before": node("done", seconds=7200.0),
        "a": node("running", started=now - 3590),
        "after": node("waiting", needs=["a"]),
        "never": NodeRecord("prepare", "prepare", [], [], "x"),
    }
    (tmp_path / "a").mkdir()
    log = [{"step": step, "loss": 1 / step, "step_seconds": 0.5} for step in (1, 2, 4)]
    log.append({"step": 5, "loss": None, "step_seconds": 0.5, "skipped_rows": ["a"]})
    (tmp_path / "a/train_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log) + '{"step": 6, "lo')
    (tmp_path / "a/config.yaml").write_text(yaml.safe_dump(settings(tmp_path)))
    running = progress(SweepRecord(2, nodes), tmp_path, alive=True)
    assert running.splitlines() == [
        "running  a, for 59 minutes, about 18 seconds of steps left",
        "         a: step 4 of 40, 0.50 s a step, loss 0.250",
        "4 stages: 1 done, 1 running, 2 waiting; about 3 hours left, and 1 whose time is not known",
    ], "an hour of it, and two of the next, which waits for it: two jobs help nothing"
    alone = {name: nodes[name] for name in ("a", "never")}
    assert progress(SweepRecord(2, alone), tmp_path, alive=True).endswith(
        "about 18 seconds left, and 1 whose time is not known"
    )
    many = {f"m{number}": node("waiting", needs=[]) for number in range(6)}
    assert "about 7 hours left" in progress(SweepRecord(2, nodes | many), tmp_path, alive=True), "15 hours of work"
    assert progress(SweepRecord(2, nodes), tmp_path, alive=False).startswith("stopped  a\n")
    ended = (tmp_path / "a/train_log.jsonl").read_text()
    (tmp_path / "a/train_log.jsonl").write_text("what lies far back is not read\n" + '{"step": 1}\n' * 10_000 + ended)
    assert progress(SweepRecord(2, nodes), tmp_path, alive=True) == running
    (tmp_path / "a/config.yaml").write_text("train: [")
    assert progress(SweepRecord(2, nodes), tmp_path, alive=True).splitlines()[1] == running.splitlines()[-1]
    many_runs = NodeRecord("cells", "", [], [f"r{number:02}" for number in range(40)], "x", "running")
    for name in many_runs.runs[:30]:
        shutil.copytree(tmp_path / "a", tmp_path / name)
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(settings(tmp_path)))
        if int(name[1:]) < 25:
            (tmp_path / name / "training.json").write_text("{}")
    told = progress(SweepRecord(2, {"job": many_runs}), tmp_path, alive=True).splitlines()
    assert told[0].endswith("about 4 minutes of steps left"), "5 runs of 18 s, and 10 that have not begun of 20 s"
    assert told[1:-1] == [
        "         25 of 40 runs trained",
        *(f"         r{number}: step 4 of 40, 0.50 s a step, loss 0.250" for number in range(25, 30)),
        "         and 10 more runs",
    ], "those at work, wherever they stand among the job's"
    for name in many_runs.runs[5:25]:
        (tmp_path / name / "training.json").unlink()
    told = progress(SweepRecord(2, {"job": many_runs}), tmp_path, alive=True).splitlines()
    assert told[0].endswith("about 10 minutes of steps left"), "35 runs abreast of 18 s: ten of them are looked at"
    SweepRecord(2, nodes).write(tmp_path)
    assert read_record(tmp_path) == SweepRecord(2, nodes)
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(DataError, match=r"sweep\.json"):
        read_record(tmp_path)


def settings(root: Path) -> dict:
    task = {"name": "multiemo", "data_dir": "data", "target_language": "pl"}
    run = {"method": "lora", "run_dir": str(root / "a"), "model": {"base": "b"}, "task": task, "train": {"steps": 40}}
    return {"deepspeed": "ds.json", **run}


def test_each_job_has_gpus_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert slots(1, 2, {}) == slots(1, 4, {}) == slots(1, "all", {}) == slots(1, None, {}) == [{}]
    monkeypatch.setattr("flare_ds.host.available_cores", lambda: 12)
    cores = {"OMP_NUM_THREADS": "3"}
    assert slots(2, 2, {}) == [{"CUDA_VISIBLE_DEVICES": "0,1"} | cores, {"CUDA_VISIBLE_DEVICES": "2,3"} | cores]
    few = {"CUDA_VISIBLE_DEVICES": "7,5,3,1", "OMP_NUM_THREADS": "2"}
    assert slots(3, 1, few)[2] == {"CUDA_VISIBLE_DEVICES": "3", "OMP_NUM_THREADS": "2"}
    assert slots(2, "all", {}) == slots(2, None, {}) == slots(2, 2, {})
    with pytest.raises(ConfigError, match="--jobs 3 with ranks=2 needs 6 GPUs, but 4 are visible"):
        slots(3, 2, {})
    with pytest.raises(ConfigError, match="use at most ranks=4"):
        slots(2, 8, {})
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert slots(2, 1, {"OMP_NUM_THREADS": "5"}) == [{"OMP_NUM_THREADS": "5"}] * 2
    assert slots(2, 2, {}) == [cores] * 2
    assert slots(1, 8, {}) == [{}]


def test_more_ranks_than_gpus_are_refused_before_anything_is_made_or_looked_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    gone = [f"base.task.data_dir={bench.path.parent / 'gone'}"]
    with pytest.raises(ConfigError, match=r"^ranks=2 needs 2 GPUs, but 1 is visible here") as refused:
        sweep(bench.path, ["launch=null", "ranks=2", *gone])
    assert refused.value.fix.startswith("use ranks=all")
    assert not (bench.path.parent / "out").exists()
    told = "cannot run here: ranks=2 needs 2 GPUs, but 1 is visible here"
    assert dry_run(bench.path, ["launch=null", "ranks=2"]).startswith(told)
    for shown in (
        dry_run(bench.path, ["launch=null", "ranks=2"], only=["prepare"]),
        dry_run(bench.path, ["launch=null", "ranks=all"]),
        dry_run(bench.path),
    ):
        assert "cannot run here" not in shown


def test_a_finished_sweep_is_reported_where_there_are_fewer_gpus(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    precision = "base.model.dtype=float32"  # `auto` is another on another device
    assert sweep(bench.path, [precision]) == 0
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    capsys.readouterr()
    assert sweep(bench.path, ["launch=null", "ranks=2", precision]) == 0
    assert "| lora" in capsys.readouterr().out
    assert "cannot run here" not in dry_run(bench.path, ["launch=null", "ranks=2", precision])


def test_each_job_has_a_slice_of_a_gpu_of_which_a_process_sees_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    environ = {"CUDA_VISIBLE_DEVICES": "MIG-a,MIG-b,MIG-c", "OMP_NUM_THREADS": "2"}
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slots(3, 1, environ)] == ["MIG-a", "MIG-b", "MIG-c"]
    assert slots(2, "all", environ) == slots(2, 1, environ)
    assert slots(1, 1, environ) == [{}]
    for jobs in (1, 2):
        with pytest.raises(ConfigError, match=r"slices \(MIG\) of which a process sees 1"):
            slots(jobs, 2, environ)


def test_the_gpus_of_a_job_are_named_by_the_variable_that_this_process_was_given_them_by(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    environ = {"HIP_VISIBLE_DEVICES": "5,3", "OMP_NUM_THREADS": "2"}
    assert slots(2, 1, environ)[1]["CUDA_VISIBLE_DEVICES"] == "1", "on a host of NVIDIA's it says nothing"
    monkeypatch.setattr("torch.version.hip", "7.0")
    assert slots(2, 1, environ)[1] == {"HIP_VISIBLE_DEVICES": "3", "OMP_NUM_THREADS": "2"}
    assert slots(2, 1, {"OMP_NUM_THREADS": "2"})[1]["CUDA_VISIBLE_DEVICES"] == "1"
