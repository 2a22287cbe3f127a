"""Cells that train together leave what each of them leaves alone: losses, validations, adapters, states.

Two languages whose splits differ, several seeds, every method that fuses, two ranks r, one that stops early; on one
rank and on two.
"""

import gc
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from flare_ds.adapters.files import WEIGHTS, saved_figures
from flare_ds.batches.joined import join
from flare_ds.batches.plan import row_keys
from flare_ds.cli import main
from flare_ds.config import Config
from flare_ds.data.cache import Cache, CacheSplit
from flare_ds.evaluation.evaluate import evaluate_run
from flare_ds.evaluation.scores import Scores
from flare_ds.exceptions import CheckpointError, ConfigError, HostError, NotFiniteError
from flare_ds.models.loading import load_shape
from flare_ds.runs import RunDirectory
from flare_ds.runtime import memory
from flare_ds.runtime.ds_config import with_chosen_deepspeed
from flare_ds.runtime.engine import Engine, make_room
from flare_ds.settings import load_config
from flare_ds.tracking.figures import GATHERED, PARTS
from flare_ds.training import state, together, validation
from flare_ds.training import steps as module
from flare_ds.training.cell import Cell
from flare_ds.training.loop import open_cells
from flare_ds.training.run import open_run
from flare_ds.training.together import train_together
from tests.distributed import run_ranks
from tests.mt import LANGUAGES, write_mt_model
from tests.toy import toy_settings, write_config, write_data, write_model
from tests.training.together_worker import go

TRAIN = {
    "steps": 20,
    "batch_size": 12,
    "micro_batch_size": 5,
    "data_seed": 7,
    "validate_every": 5,
    "validate_rows": 20,
    "whole_model": True,
}
CELLS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "flare-pl": ("flare", "pl", {"save_every": 4}, {"r": 4}, {}),
    "lora-pl": ("lora", "pl", {"save_every": 3, "max_grad_norm": 0.05}, {}, {}),
    "flare-de": ("flare", "de", {"seed": 2, "weight_decay": 0.1}, {"pairing": "module"}, {"train_rows": 1014}),
    "prefix-de": ("source_prefix", "de", {"gradient_checkpointing": True, "learning_rate_ratio": 4.0}, {}, {}),
    "prefix-both": ("source_prefix", "pl", {"steps": 8}, {}, {"extra_source_languages": ["de"]}),
    "mixup-pl": ("x_mixup", "pl", {}, {}, {}),
    "encoder-de": ("flare_mt", "de", {"seed": 3}, {"fused_modules": ["q_proj", "v_proj"]}, {}),
    "stops": ("lora", "de", {"seed": 2, "learning_rate": 1e-12, "patience": 1}, {}, {"train_rows": 1014}),
}
"""Method and language, and what else each says of training, its adapter and its rows."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("together")
    write_model(root / "model")
    write_data(root / "data", languages=("en", "pl", "de"))
    write_mt_model(root / "nllb")
    return root


def settings(root: Path, name: str, run: str, **train: Any) -> dict[str, Any]:
    method, language, own, adapter, task = CELLS[name]
    found = toy_settings(root, method=method, name=run, **TRAIN | own | train)
    found |= {"task": found["task"] | task | {"target_language": language}, "adapter": adapter}
    if method == "flare_mt":
        found["source"] = {"mt_encoder": str(root / "nllb"), "mt_language": LANGUAGES[0]}
    return found


def configs(root: Path, kind: str, **train: Any) -> list[Config]:
    return [load_config(write_config(settings(root, name, f"{kind}-{name}", **train))) for name in CELLS]


def heads(made: dict[str, Any]) -> dict[str, Any]:
    """The same settings of a run that joins none of the others: it trains the head."""
    return made | {"adapter": made["adapter"] | {"train_head": True}}


def log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(root: Path) -> dict[str, Path]:
    for config in configs(root, "alone"):
        train_together([(config, open_run(config, train=True))], evaluate=False)
    found = {name: root / f"alone-{name}" for name in CELLS}
    ended = {name: json.loads((run / "training.json").read_text()) for name, run in found.items()}
    assert ended["stops"]["stopped_early"] and ended["stops"]["steps"] < 20
    assert ended["flare-pl"]["best_validation_score"] > ended["flare-pl"]["start_validation_score"]
    clipped = [line["grad_norm"] for line in log(found["lora-pl"]) if "grad_norm" in line]
    assert min(clipped) > 0.05, "clipping plays no part"
    return found


MEASURED = ("loss", "learning_rate", "grad_norm", "examples", "tokens", "validation_score", "validation_loss")
SAME = (
    "steps",
    "skipped_steps",
    "stopped_early",
    "trained_parameters",
    "examples",
    "best_step",
    "start_validation_score",
)


def assert_same(alone: dict[str, Path], kind: str, *, rel: float = 1e-5) -> None:
    for name, run in alone.items():
        other = run.parent / f"{kind}-{name}"
        lines, wanted = log(other), log(run)
        assert [(line["step"], "loss" in line) for line in lines] == [(line["step"], "loss" in line) for line in wanted]
        for line, line_alone in zip(lines, wanted, strict=True):
            for key in set(MEASURED) & set(line_alone):
                allowed = 10 * rel if key == "grad_norm" else rel
                assert line[key] == pytest.approx(line_alone[key], rel=allowed, abs=1e-9), (name, line["step"], key)
        summary, summary_alone = (json.loads((path / "training.json").read_text()) for path in (other, run))
        assert {key: summary[key] for key in SAME} == {key: summary_alone[key] for key in SAME}, name
        for file in ("adapter/adapter_model.safetensors", "state/state.safetensors"):
            tensors, tensors_alone = load_file(other / file), load_file(run / file)
            assert tensors.keys() == tensors_alone.keys()
            for key, tensor in tensors.items():
                assert (tensor - tensors_alone[key]).abs().max() <= 1e-4, (name, key)
        for file in ("adapter/adapter_config.json", "cache.json", "base.json"):
            assert (other / file).read_bytes() == (run / file).read_bytes(), file
        saved, saved_alone = (yaml.safe_load((path / "config.yaml").read_text()) for path in (other, run))
        for config in (saved, saved_alone):
            del config["run_dir"], config["train"]["whole_model"]
        assert saved == saved_alone


@pytest.fixture(scope="module")
def one(root: Path, alone: dict[str, Path]) -> None:
    """All together on one rank, scored as well."""
    go(configs(root, "one"), 0)


def test_on_one_rank(alone: dict[str, Path], one: None) -> None:
    assert_same(alone, "one")


def test_scores_are_those_that_each_has_alone(root: Path, one: None) -> None:
    for name in CELLS:
        run = root / f"one-{name}"
        together = json.loads((run / "metrics.json").read_text())
        config = load_config(run)
        alone = evaluate_run(config, open_run(config, train=False))
        make_room()
        assert together["figures"] == pytest.approx(dict(alone.figures), rel=1e-5)
        assert together["evaluate_seconds"] > 0


def test_on_two_ranks_that_hold_the_base(root: Path, alone: dict[str, Path]) -> None:
    """Broken off, when they had been saved after different steps; one then ends alone, before the others go on."""
    ranked = configs(root, "two")
    paths = [str(Path(config.run_dir).with_suffix(".yaml")) for config in ranked]
    run_ranks(["tests.training.together_worker", "7", *paths], 2)
    assert_same(alone, "two", rel=2e-5)


def test_on_two_ranks_that_share_the_base(root: Path, alone: dict[str, Path], one: None) -> None:
    ranked = configs(root, "shared", whole_model=False)
    paths = [str(Path(config.run_dir).with_suffix(".yaml")) for config in ranked]
    said = run_ranks(["tests.training.together_worker", "0", *paths], 2)
    assert not any("untested" in out for out in said), "DeepSpeed warns of an optimizer that is torch's"
    assert_same(alone, "shared", rel=2e-5)
    for name in CELLS:
        scored, on_one = (json.loads((root / f"{kind}-{name}/metrics.json").read_text()) for kind in ("shared", "one"))
        assert scored["figures"] == pytest.approx(on_one["figures"], rel=1e-4)
        assert RunDirectory(root / f"shared-{name}").finished
    trained = json.loads((root / "shared-flare-de/training.json").read_text())
    assert (trained["engine"], trained["world_size"]) == ("zero3", 2)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_few_layers_of_a_shared_base_are_whole_at_once(root: Path, checkpointing: bool) -> None:
    """As alone; DeepSpeed counts the calls of a module as if one forward called it once."""
    deep = write_model(root / "deep", layers=8)
    how = {"steps": 3, "whole_model": False, "gradient_checkpointing": checkpointing}
    names = ("lora-pl", "lora-pl", "flare-pl", "flare-de")
    made = [settings(root, name, f"live{checkpointing}-{number}", **how) for number, name in enumerate(names)]
    paths = [str(write_config(one | {"model": one["model"] | {"base": str(deep)}})) for one in made]
    run_ranks(["tests.training.live_worker", str(root / "live.json"), *paths], 2)
    for found in json.loads((root / "live.json").read_text()):
        layers = {way: found[way] / (found["base"] / 8) for way in ("forward", "backward")}
        assert min(layers.values()) > 0 and max(layers.values()) < 3.6, layers


def test_each_cell_trains_a_head_of_its_own(root: Path) -> None:
    """On one rank, where all are broken off and go on; and on two that share the base."""
    names = ("flare-pl", "lora-pl", "prefix-de")

    def made(kind: str, **train: Any) -> list[Config]:
        ours = [heads(settings(root, name, f"{kind}-{name}", steps=8, **train)) for name in names]
        return [load_config(write_config(one)) for one in ours]

    for config in made("head"):
        train_together([(config, open_run(config, train=True))], evaluate=False)
    alone = {name: root / f"head-{name}" for name in names}
    assert all(any("lm_head" in key for key in load_file(run / "adapter" / WEIGHTS)) for run in alone.values())
    go(made("head-one"), 6)
    assert_same(alone, "head-one")
    paths = [str(Path(config.run_dir).with_suffix(".yaml")) for config in made("head-shared", whole_model=False)]
    run_ranks(["tests.training.together_worker", "0", *paths], 2)
    assert_same(alone, "head-shared", rel=2e-5)


def test_runs_that_are_trained_are_scored_over_one_base(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a job leaves them that ends between the two."""
    made = [settings(root, name, f"scored-{name}", steps=2) for name in ("lora-pl", "flare-de", "prefix-de")]
    cells = [load_config(write_config(one)) for one in made]
    train_together([(config, open_run(config, train=True)) for config in cells], evaluate=False)
    make_room()
    opened: list[int] = []

    def noted(group: list[Cell], *how: Any) -> list[Cell]:
        opened.append(len(group))
        return open_cells(group, *how)

    monkeypatch.setattr(together, "open_cells", noted)
    monkeypatch.setattr(together, "train_cells", None)
    found: list[tuple[Config, Scores]] = []
    runs = [(config, open_run(config, train=True)) for config in cells]
    train_together(runs, evaluate=True, tell=lambda *scored: found.append(scored))
    make_room()
    assert opened == [3] and [config.run_dir for config, _ in found] == [config.run_dir for config in cells]
    for config, scores in found:
        assert RunDirectory(config.run_dir).finished
        alone = evaluate_run(config, open_run(config, train=False))
        make_room()
        assert dict(scores.figures) == pytest.approx(dict(alone.figures), rel=1e-5)


def test_a_cell_that_fails_leaves_the_others_as_they_are(root: Path) -> None:
    """Bit by bit; it is told at the end, and nothing of it is called trained."""
    found = []
    for rate in (0.01, 1e30):
        names = {name: f"fault-{rate}-{name}" for name in ("flare-pl", "lora-pl")}
        made = [settings(root, name, run, steps=6) for name, run in names.items()]
        made.append(settings(root, "lora-pl", f"fault-{rate}-bad", steps=6, learning_rate=rate, warmup_ratio=0.0))
        cells = [load_config(write_config(one)) for one in made]
        runs = [(config, open_run(config, train=True)) for config in cells]
        if rate > 1:
            with pytest.raises(NotFiniteError, match="3 steps in a row were not applied"):
                train_together(runs, evaluate=True)
        else:
            train_together(runs, evaluate=True)
        make_room()
        shared = ("step_seconds", *PARTS, *GATHERED)
        found.append(
            [[{k: v for k, v in line.items() if k not in shared} for line in log(root / r)] for r in names.values()]
        )
        for run in names.values():
            assert {"metrics.json", "training.json"} <= {path.name for path in (root / run).iterdir()}
    assert found[0] == found[1]
    bad = root / f"fault-{1e30}-bad"
    assert not (bad / "training.json").exists() and log(bad)[-1]["step"] == 4


def test_what_failed_holds_no_model_while_others_train(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a run alone nor cells that train together; so there is room for the next."""
    bad = {"steps": 6, "learning_rate": 1e30, "warmup_ratio": 0.0}
    made = [settings(root, "lora-pl", f"held-{number}", **bad) for number in range(2)]
    made.append(heads(made[0]) | {"run_dir": str(root / "held-head")})
    runs = [(config, open_run(config, train=True)) for config in map(load_config, map(write_config, made))]
    alive: list[int] = []

    def counted() -> None:
        make_room()
        alive.append(sum(isinstance(one, Engine) for one in gc.get_objects()))

    before = sum(isinstance(one, Engine) for one in gc.get_objects())
    monkeypatch.setattr(together, "make_room", counted)
    with pytest.raises(NotFiniteError, match=r"(?s)3 steps in a row were not applied.*3 steps in a row"):
        train_together(runs, evaluate=True)
    assert alive == [before] * 2, "behind the group, and behind the one that joins nobody"


def test_sources_that_cells_share_are_read_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two languages whose splits differ, and two seeds, read the same English rows at nearly the same steps."""
    read: list[tuple[int, int]] = []

    def noted(batches: Any, methods: Any) -> Any:
        batch = join(batches, methods)
        read.append((batch.sources, sum(int((b.source_lengths_SB > 0).sum()) for b in batches.values())))
        return batch

    monkeypatch.setattr(module, "join", noted)
    made = [settings(root, name, f"reads-{name}", steps=6) for name in ("flare-pl", "flare-de", "prefix-de")]
    runs = [(config, open_run(config, train=True)) for config in map(load_config, map(write_config, made))]
    train_together(runs, evaluate=False)
    distinct, all_of_them = (sum(numbers) for numbers in zip(*read, strict=True))
    assert all_of_them == 6 * 12 * 3
    assert distinct < 6 * 12 * 1.2


@pytest.mark.parametrize(
    ("names", "caches"),
    [(["flare-pl", "lora-pl"], 1), (["flare-pl", "lora-pl", "prefix-both", "flare-de", "stops"], 3)],
)
def test_rows_are_named_once_for_all_runs_that_read_a_cache(
    root: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], caches: int
) -> None:
    """Their steps are cut by the longest that any of them has of a name, whatever the row's number is in it."""
    made = [settings(root, name, f"named-{name}") for name in names]
    runs = [(config, open_run(config, train=True)) for config in map(load_config, map(write_config, made))]
    splits = [cache.split("train") for _, cache in runs]
    ids = [[split.ids(row) for row in range(len(split))] for split in splits]
    asked, names_of = list[Path](), CacheSplit.ids
    monkeypatch.setattr(CacheSplit, "ids", lambda split, row: asked.append(split._directory) or names_of(split, row))
    row_keys.cache_clear()
    cells = [Cell(config, cache, load_shape(config.model)) for config, cache in runs]
    together._cut_alike(cells)
    longest: dict[str, int] = {}
    for cell, own in zip(cells, ids, strict=True):
        for name, length in zip(own, cell.feed.lengths.tolist(), strict=True):
            longest[name] = max(length, longest.get(name, 0))
    for cell, own in zip(cells, ids, strict=True):
        assert cell.feed.cut_by.tolist() == [longest[name] for name in own]
    assert len({cache.path for _, cache in runs}) == caches
    assert len(asked) == sum(len(cache.split("train")) for cache in {cache for _, cache in runs})


def test_runs_that_are_refused_leave_the_others_to_train(root: Path) -> None:
    """On two ranks: one is written by another process, one has a method that trains nothing, one cannot be read."""
    names = ("lora-pl", "flare-pl", "prefix-de")
    made = [settings(root, name, f"refused-{name}", steps=2) for name in names]
    made[2] |= {"method": "zero_shot"}
    damaged = root / "refused-damaged"
    damaged.mkdir()
    (damaged / "config.yaml").write_text("train: [")
    paths = [str(damaged), *(str(write_config(one)) for one in made)]
    held, trained, wrong = (RunDirectory(one["run_dir"]) for one in made)
    held.lock()
    try:
        said = run_ranks(["flare_ds", "train", *paths], 2, expect=1)[0]
    finally:
        held.unlock()
    assert trained.trained and not (held.begun or wrong.path.exists())
    told = said[said.index("flare-ds: 3 problems in the given runs") :]
    assert f"1. {damaged}/config.yaml is " in told
    assert f"is writing the run {held.path}" in told and "method=zero_shot trains nothing" in told
    assert "Traceback" not in said


def test_a_run_that_is_refused_when_its_turn_comes_leaves_the_others_to_train(root: Path) -> None:
    """One whose source states would take too much room, and one whose state is damaged once it was looked at."""
    stored = settings(root, "flare-pl", "turned-states", steps=2) | {
        "source": {"provider": "cached", "max_store_gb": 1e-6},
        "adapter": {"pairing": "output", "fused_modules": ["q_proj", "v_proj"], "source_down": "shared"},
    }
    made = [stored, *(settings(root, "lora-pl", f"turned-{name}", steps=2) for name in ("state", "well"))]
    runs = [(config, open_run(config, train=True)) for config in map(load_config, map(write_config, made))]
    (root / "turned-state/state").mkdir()
    (root / "turned-state/state/state.safetensors").write_bytes(b"damaged")
    with pytest.raises(
        ConfigError, match=r"(?s)2 problems in the runs.*source\.max_store_gb=1e-06.*turned-state/state"
    ):
        train_together(runs, evaluate=True)
    make_room()
    assert [RunDirectory(config.run_dir).finished for config, _ in runs] == [False, False, True]
    with pytest.raises(ConfigError, match="2 problems in the runs"):
        train_together(runs[:2], evaluate=True)


def test_an_adapter_that_cannot_be_read_leaves_the_others_to_be_scored(root: Path) -> None:
    """And what is told to do about it helps."""
    made = [settings(root, "lora-pl", f"read-{seed}", steps=2, seed=seed) for seed in (1, 2, 3)]
    cells = [load_config(write_config(one)) for one in made]
    train_together([(config, open_run(config, train=True)) for config in cells], evaluate=False)
    make_room()
    cut, wrong, well = (Path(config.run_dir) for config in cells)
    weights = cut / "adapter" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-100])
    (wrong / "adapter/adapter_config.json").write_text("{}")
    told = rf"(?s)2 problems.*{weights}.*delete {cut} and train again .*delete {wrong} and train again "
    with pytest.raises(CheckpointError, match=told):
        train_together([(config, open_run(config, train=True)) for config in cells], evaluate=True)
    make_room()
    assert [RunDirectory(run).finished for run in (cut, wrong, well)] == [False, False, True]
    shutil.rmtree(cut)
    train_together([(cells[0], open_run(cells[0], train=True))], evaluate=True)
    make_room()
    assert RunDirectory(cut).finished


def test_what_cannot_join_or_does_not_fit_is_trained_all_the_same(
    root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    made = [settings(root, name, f"turn-{name}", steps=2) for name in ("flare-pl", "lora-pl", "prefix-de")]
    made += [heads(made[0]) | {"run_dir": str(root / f"turn-head={number}")} for number in range(2)]
    made[1]["train"] = made[1]["train"] | {"data_seed": 50}
    cells = [load_config(write_config(one)) for one in made]
    wrong = write_config(made[0] | {"run_dir": str(root / "turn-wrong"), "adapter": {"target_modules": ["q_projj"]}})
    needed, seeds = list[float](), list[list[int]]()
    original = memory.joint_memory

    def sized(configs: Any, *arguments: Any, **how: Any) -> memory.Size:
        size = original(configs, *arguments, **how)
        needed.append(size.needed)
        seeds.append([config.train.order_seed for config in configs])
        return memory.Size(size.needed, size.available if len(configs) < 3 else 0.9 * size.needed)

    monkeypatch.setattr("flare_ds.training.together.joint_memory", sized)
    paths = [str(Path(config.run_dir).with_suffix(".yaml")) for config in cells]
    assert main(["train", str(wrong), *paths, "train.validate_rows=10"]) == 1
    told = capfd.readouterr().err
    assert "'q_projj'" in told and "problems" not in told and not (root / "turn-wrong/train_log.jsonl").exists()
    assert "4 runs are trained together over one base" in told and "2 runs are trained together over one base" in told
    assert "so they are trained in two groups" in told
    assert needed[0] > needed[1] and len(needed) == 3
    assert seeds == [[7, 7, 50], [7, 7], [7, 7]], "those that read the same rows at the same steps stay together"
    assert all((Path(config.run_dir) / "training.json").is_file() for config in cells)
    assert main(["train", paths[0], paths[1], "train.validate_rows=10"]) == 0
    assert capfd.readouterr().err.count("is trained; to train it anew, delete it") == 2
    spelt = root / "spelt.yaml"
    spelt.write_text(yaml.safe_dump(made[0] | {"run_dir": str(root / "data/../turn-flare-pl")}))
    assert main(["train", *paths, str(spelt)]) == 1
    assert "is named 2 times" in capfd.readouterr().err


def test_a_run_that_began_with_auto_joins_one_that_is_to_begin_with_it(root: Path) -> None:
    planned = load_config(write_config(settings(root, "lora-pl", "planned") | {"deepspeed": "auto"}))
    begun, apart = with_chosen_deepspeed(planned), planned.model_copy(update={"deepspeed": "zero3_bf16"})
    cache = open_run(planned, train=True)
    joined = together._alike([(config, cache) for config in (begun, planned, apart)])
    assert [[config for config, _ in runs] for runs in joined] == [[begun, planned], [apart]]


def test_runs_join_that_open_one_base_alike_and_rank_the_same_words(root: Path) -> None:
    """A base that only lies elsewhere is the same; of label words a run knows that does not train for them alone."""
    first = load_config(write_config(settings(root, "lora-pl", "joining")))
    cache = open_run(first, train=True)
    words = cache.manifest.model_copy(update={"label_tokens": cache.label_tokens[::-1]})
    other_words = Cache(cache.path, words)
    shutil.copytree(root / "model", root / "moved")
    write_model(root / "other", seed=1)

    def but(section: str, **changed: Any) -> Config:
        return first.model_copy(update={section: getattr(first, section).model_copy(update=changed)})

    moved, other = (but("model", base=str(root / name)) for name in ("moved", "other"))
    apart = [other, but("model", dtype="bfloat16"), but("model", attention="eager"), but("model", quantization="nf4")]
    of_all_words = but("train", objective="vocabulary")
    runs = [(first, cache), *((config, cache) for config in apart), (first, other_words), (moved, cache)]
    runs += [(of_all_words, cache), (of_all_words, other_words)]
    joined = [[runs[0], runs[6]], *([run] for run in runs[1:6]), runs[7:]]
    assert together._alike(runs) == joined


def test_a_state_is_saved_with_each_best_adapter(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resume from before it might not meet that adapter again, and would score what its records do not name."""
    saved: list[int] = []
    original = state.save_state

    def save(path: Path, engine: Any, progress: state.Progress, cell: int) -> None:
        saved.append(progress.step)
        original(path, engine, progress, cell)

    monkeypatch.setattr("flare_ds.training.cell.save_state", save)
    often = {"steps": 6, "validate_every": 1, "save_every": 1000, "save_seconds": None}
    made = settings(root, "flare-pl", "bests", **often)
    assert main(["train", str(write_config(made))]) == 0
    scores = {
        line["step"]: line["validation_score"]
        for line in RunDirectory(made["run_dir"]).train_log()
        if "validation_score" in line
    }
    bests = [step for step in range(1, 7) if scores[step] > max([scores[s] for s in range(1, step)], default=-1)]
    assert len(bests) > 1 and bests[0] == 1 and {*bests} <= {*saved}
    assert saved == sorted({*saved}) and saved[-1] == 6 and len(saved) < 6


def test_the_adapter_on_disk_is_the_one_that_the_records_name(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk was full between the two, and the step done again scores a little less, as it may on GPUs."""
    found, save = {2: 0.5, 4: 0.51, 6: 0.495}, state.save_state
    scored = validation.Validation._scores

    def scores(self: validation.Validation, seen: validation.Seen | None) -> Scores:
        known = {"accuracy": found.get(self.progress.step, 0.1)}
        return replace(scored(self, seen), figures=known)

    def full(path: Path, engine: Any, progress: state.Progress, cell: int) -> None:
        if progress.step == 4:
            raise HostError("cannot write the state", fix="free some space")
        save(path, engine, progress, cell)

    monkeypatch.setattr(validation.Validation, "_scores", scores)
    monkeypatch.setattr("flare_ds.training.cell.save_state", full)
    made = settings(root, "lora-pl", "full", steps=6, validate_every=2, save_every=1000)
    config = load_config(write_config(made))
    with pytest.raises(HostError, match="cannot write the state"):
        train_together([(config, open_run(config, train=True))], evaluate=False)
    make_room()
    found[4] = 0.49
    monkeypatch.setattr("flare_ds.training.cell.save_state", save)
    train_together([(config, open_run(config, train=True))], evaluate=False)
    make_room()
    run = RunDirectory(config.run_dir)
    told, kept = run.read("training.json"), saved_figures(run.path / "adapter")
    assert (told["best_step"], told["best_validation_score"]) == (kept["step"], kept["accuracy"]) == (6, 0.495)
