"""A loss, a gradient or a score that is not finite: named, never applied, never a result.

The base has a word whose embedding is NaN, and chosen rows say it on their English side, which only the fused source
brings to the target. So a row is poisoned without any other changing its place.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from flare_ds.batches.plan import open_order
from flare_ds.cli import main
from flare_ds.config import Config
from flare_ds.data.cache import Cache, open_cache, prepare_cache
from flare_ds.evaluation.scores import Scores
from flare_ds.exceptions import NotFiniteError
from flare_ds.json_text import json_text
from flare_ds.models.loading import load_tokenizer
from flare_ds.models.loss import share_of_mean
from flare_ds.models.streams import PlainStreams
from flare_ds.runtime.engine import make_room
from flare_ds.training.skipped import count_step, refuse_to_go_on, refuse_untrained
from flare_ds.training.state import Progress
from flare_ds.training.validation import Validation
from tests.by_hand import make_config
from tests.distributed import run_ranks
from tests.forms import PAPER_FORM
from tests.small_models import small_model
from tests.toy import WORDS, toy_settings, word_tokenizer, write_config, write_data, write_model
from tests.training.test_zero3 import ROWS, STEPS, plain_torch

POISON = "poison"
ADAPTER = PAPER_FORM | {"align": "left", "train_head": True}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    model = write_model(tmp_path / "model", tokenizer=word_tokenizer([*WORDS, POISON]))
    base = LlamaForCausalLM.from_pretrained(model)
    with torch.no_grad():
        base.get_input_embeddings().weight[-1] = torch.nan
    base.save_pretrained(model)
    write_data(tmp_path / "data")
    return tmp_path


def cache_of(settings: dict) -> Cache:
    config = Config.model_validate(settings)
    return open_cache(prepare_cache(config, load_tokenizer(config.model)))


def poison(root: Path, ids: Sequence[str]) -> None:
    """Let the English side of these rows say the word; the split, by the Polish side, stays as it is."""
    for name in ids:
        domain, number = name.rsplit("-", 1)
        path = root / "data" / f"{domain}_sentence_en.json"
        content = json.loads(path.read_text())
        content["examples"][int(number)]["input"] += f" {POISON}"
        path.write_text(json.dumps(content))


def ids_of_step(settings: dict, step: int) -> list[str]:
    cache = cache_of(settings)
    split = cache.split("train")
    return [split.ids(row) for row in open_order(Config.model_validate(settings), cache).rows(step).tolist()]


def test_a_step_with_a_poisoned_row_is_as_if_it_had_not_been(root: Path) -> None:
    """One of two ranks alone meets the row. Before and after, and resumed, the losses are those without the step."""
    settings = toy_settings(root, steps=2 * STEPS, batch_size=ROWS, max_grad_norm=0.5, micro_batch_size=4)
    settings["adapter"] = ADAPTER
    poison(root, ids_of_step(settings, 4)[:1])
    config = write_config(settings)
    run_ranks(["tests.training.steps_worker", str(config)], 2)
    found = json.loads(config.with_suffix(".json").read_text())
    expected = plain_torch(Config.model_validate(settings))
    assert np.isnan(expected["losses"]).nonzero()[0].tolist() == [4]
    np.testing.assert_allclose(found["losses"], expected["losses"], rtol=1e-5)
    np.testing.assert_allclose(found["logits"], expected["logits"], atol=1e-4, rtol=1e-4)


def train(settings: dict, verb: str = "train") -> int:
    try:
        return main([verb, str(write_config(settings))])
    finally:
        make_room()


def read_log(settings: dict) -> list[dict]:
    return [json.loads(line) for line in (Path(settings["run_dir"]) / "train_log.jsonl").read_text().splitlines()]


def test_it_is_named_and_not_counted_and_the_run_goes_on(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = toy_settings(root, steps=6, micro_batch_size=4)
    poisoned, *others = ids_of_step(settings, 2)
    poison(root, [poisoned])
    assert train(settings) == 0
    steps = [line for line in read_log(settings) if "step_seconds" in line]
    assert [line["loss"] is None for line in steps] == [False, False, True, False, False, False]
    suspects = steps[2]["skipped_rows"]
    assert poisoned in suspects and len(suspects) == 4 and set(suspects) <= {poisoned, *others}
    said = capfd.readouterr().err
    assert "step 3 was not applied: the loss of the rows" in said and poisoned in said
    training = json.loads((Path(settings["run_dir"]) / "training.json").read_text())
    assert (training["steps"], training["skipped_steps"], training["examples"]) == (6, 1, 5 * 16)


def test_three_in_a_row_end_the_run(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = toy_settings(root, steps=8, save_every=1, micro_batch_size=16)
    poison(root, [ids_of_step(settings, step)[0] for step in (1, 3, 4, 5)])
    assert train(settings) == 1
    said = capfd.readouterr().err
    assert "3 steps in a row were not applied" in said and "step 6 was not applied" in said and "fix:" in said
    assert not (Path(settings["run_dir"]) / "training.json").exists()
    assert train(settings) == 1, "continued, it meets the same rows"
    assert "3 steps in a row were not applied" in capfd.readouterr().err


@pytest.mark.parametrize("whole_model", [False, True])
def test_the_first_step_may_be_one(root: Path, whole_model: bool) -> None:
    """Its state is saved: the optimizer, which has done nothing yet, has moments of 0."""
    settings = toy_settings(root, steps=2, save_every=1, micro_batch_size=16, whole_model=whole_model)
    poison(root, ids_of_step(settings, 0)[:1])
    assert train(settings) == 0
    assert [line["loss"] is None for line in read_log(settings) if "step_seconds" in line] == [True, False]


def test_rows_that_the_base_cannot_score_are_refused(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = toy_settings(root, steps=1)
    cache = cache_of(settings)
    unscorable = {split: cache.split(split).ids(7) for split in ("validation", "test")}
    poison(root, [unscorable["validation"]])
    assert train(settings) == 1
    said = capfd.readouterr().err
    assert f"validation rows, before the first step are not finite: {unscorable['validation']}" in said

    settings = toy_settings(root, name="other", steps=1) | {"generate": {"max_new_tokens": 1}}
    write_data(root / "data")
    poison(root, [unscorable["test"]])
    assert train(settings) == 0
    for method in ("ranked", "generated"):
        settings["evaluate"] = {"answers": method}
        assert train(settings, "evaluate") == 1
        assert f"are not finite: {unscorable['test']}" in capfd.readouterr().err
        assert not (Path(settings["run_dir"]) / "metrics.json").exists()
    said = ["--source", f"great {POISON}", "--target", "word1"]
    for options in (said, [*said, "--generate"]):
        assert main(["predict", settings["run_dir"], *options]) == 1
        make_room()
        assert "scores of 1 rows are not finite" in capfd.readouterr().err


def test_an_infinite_loss_has_no_finite_gradient() -> None:
    logits = torch.tensor([1.0, 2.0], requires_grad=True)
    for added, finite in ((0.0, True), (torch.inf, False), (torch.nan, False)):
        logits.grad = None
        share_of_mean((logits.sum() + added)[None], step_targets=[2], world_size=2).backward()
        assert bool(logits.grad.isfinite().all()) == finite
        assert finite or logits.grad.isnan().all()


def test_a_run_without_anything_to_show_is_not_called_trained() -> None:
    progress = Progress("", step=2, skipped=2)
    with pytest.raises(NotFiniteError, match="none of 2 steps was applied") as refused:
        refuse_untrained(progress)
    assert "in another run_dir or once this one is deleted" in refused.value.fix, "it refuses other settings"
    with pytest.raises(NotFiniteError, match="no validation in 3 steps"):
        refuse_untrained(Progress("", step=3, skipped=2))
    refuse_untrained(Progress("", step=3, skipped=2, best_step=3))


def test_of_two_ranks_one_tells_which_run_ended_for_its_loss(root: Path) -> None:
    settings = toy_settings(root, name="two_ranks", steps=8, micro_batch_size=16)
    poison(root, [ids_of_step(settings, step)[0] for step in (0, 1, 2)])
    said = run_ranks(["flare_ds", "train", str(write_config(settings))], 2, expect=1)
    told = [text for text in said if "3 steps in a row were not applied" in text]
    assert len(told) == 1 and f"{settings['run_dir']}: 3 steps in a row" in told[0]


def test_an_adapter_whose_scores_are_not_finite_is_never_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even in place of one that is gone: its label words are ranked all the same, here right more often."""
    found = iter([(0.5, ()), (0.9, ("row",)), (0.6, ())])
    kept, progress = list[int](), Progress("")

    def score(_: object, **__: object) -> Scores:
        accuracy, wrong = next(found)
        return Scores("accuracy", "ranked", {"accuracy": accuracy}, [], wrong)

    config = make_config()
    model = SimpleNamespace(streams=PlainStreams(small_model("llama")[0], config))
    running = SimpleNamespace(model=model)
    engine = SimpleNamespace(running=lambda _: running, tensors=lambda *_: {})
    records = SimpleNamespace(fusion=lambda *_: None, validation=lambda *_, **__: None, say=lambda _: None)
    monkeypatch.setattr("flare_ds.training.validation.task_of", lambda _: None)
    monkeypatch.setattr("flare_ds.training.validation.validate", score)
    monkeypatch.setattr(Validation, "_keep", lambda *_: kept.append(progress.step))
    validation = Validation(config, None, None, engine=engine, cell=0, progress=progress, records=records)  # type: ignore[arg-type]
    for progress.step in (1, 2, 3):
        validation._on_disk = progress.step  # as of a job that ended when an adapter was written and its state was not
        validation.after_step(None)
    assert kept == [1, 3] and (progress.best_step, progress.best_standing[0]) == (3, 0.6)


def test_only_steps_in_a_row_count_towards_the_end() -> None:
    progress = Progress("")
    for applied in (False, False, True, False, False):
        count_step(progress, applied=applied)
        refuse_to_go_on(progress, "")
    count_step(progress, applied=False)
    assert progress.skipped == 5
    with pytest.raises(NotFiniteError, match="3 steps in a row"):
        refuse_to_go_on(progress, "")


def test_json_that_any_reader_takes() -> None:
    value = {"a": [float("nan"), (float("inf"), 1.5)], "b": {"c": -float("inf")}, "d": True, "e": 3, "f": "NaN"}

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    read = json.loads(json_text(value), parse_constant=refuse)
    assert read == {"a": [None, [None, 1.5]], "b": {"c": None}, "d": True, "e": 3, "f": "NaN"}
