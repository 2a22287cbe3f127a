"""`flare_ds.adapt`: a loop of one's own trains the adapter that a run loads, and the example does as it says."""

import copy
import io
import json
import random
import re
import shutil
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import FullyShardedDataParallel
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import flare_ds
from flare_ds.adapters import adapted
from flare_ds.adapters.files import load_adapter
from flare_ds.config import Config
from flare_ds.methods import METHODS
from flare_ds.models.loading import load_tokenizer
from flare_ds.runs import RunDirectory
from flare_ds.runtime.engine import trainable_parameters
from flare_ds.settings import config_of
from flare_ds.tasks.load import task_of
from tests.distributed import run_ranks
from tests.models.architectures import ATTENTION, COMMON, EXPERTS, FEED_FORWARD, VISION, small_experts
from tests.small_models import small_model
from tests.toy import FILLER, LABELS, SIGNAL, toy_settings, write_model

TARGETS = ["word1 word2 word3", "word4", "word5 word6"]
SOURCES = ["word7 great", None, "awful word8 word9 word1"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("own_loop")


def hf_model(root: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(root / "model")


def grid(rows: list[list[int]], *, left: bool) -> tuple[Tensor, Tensor]:
    """Ids and mask, padded on one side."""
    longest = max(map(len, rows))
    ids, mask = torch.full((2, len(rows), longest), 3), torch.zeros(len(rows), longest, dtype=torch.long)
    for line, row in enumerate(rows):
        span = slice(longest - len(row), None) if left else slice(0, len(row))
        ids[0, line, span], mask[line, span] = torch.tensor(row, dtype=torch.long), 1
    return ids[0], mask


def asked(config: Config, *, left: bool = False) -> dict[str, Tensor]:
    tokenizer, task = load_tokenizer(config.model), task_of(config.task)
    target, source = (
        [tokenizer(task.prompt({"text": text}))["input_ids"] if text else [] for text in texts]
        for texts in (TARGETS, SOURCES)
    )
    ids, mask = grid(target, left=left)
    source_ids, source_mask = grid(source, left=left)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "source_input_ids": source_ids,
        "source_attention_mask": source_mask,
    }


@pytest.fixture(scope="module")
def run(root: Path) -> tuple[Config, torch.nn.Module]:
    """An adapter of one's own, whose values are random, saved as a run's."""
    config = config_of(toy_settings(root))
    model = flare_ds.adapt(hf_model(root), config)
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = 0.2 * torch.randn_like(parameter)
    RunDirectory(config.run_dir).path.mkdir()
    RunDirectory(config.run_dir).claim(config)
    model.save_adapter(Path(config.run_dir) / "adapter")
    return config, model.eval()


@torch.no_grad()
@pytest.mark.parametrize("left", [False, True])
def test_a_run_that_is_loaded_says_what_ones_own_model_says(
    run: tuple, left: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    config, model = run
    loaded = flare_ds.load(config.run_dir)
    assert "warning" not in capsys.readouterr().err, "we have not trained it, so it is not that we have not ended"
    tokens = load_tokenizer(config.model)(list(loaded.labels), add_special_tokens=False)["input_ids"]
    logits = model(**asked(config, left=left)).logits
    assert logits.shape[:2] == (len(TARGETS), 1)
    scores = logits[:, 0, [first for first, *_ in tokens]].log_softmax(-1)
    np.testing.assert_allclose(loaded.scores(TARGETS, SOURCES), scores.numpy(), atol=1e-5)
    alone = model(**{name: value for name, value in asked(config).items() if "source" not in name}).logits
    assert (alone[1] - logits[1]).abs().max() < 1e-4, "it has no source in either"
    assert (alone[0] - logits[0]).abs().max() > 1e-3


def test_the_loss_is_that_of_the_answers_tokens(run: tuple) -> None:
    """Against the logits of the same rows, token by token; and only the adapter has a gradient."""
    config, model = run
    batch = asked(config)
    answers = [[6], [7, 8], [9, 6, 7]]
    lengths = batch["attention_mask"].sum(1).tolist()
    rows = [ids[:n].tolist() + answer for ids, n, answer in zip(batch["input_ids"], lengths, answers, strict=True)]
    ids, mask = grid(rows, left=False)
    labels = torch.full_like(ids, -100)
    for line, (n, answer) in enumerate(zip(lengths, answers, strict=True)):
        labels[line, n : n + len(answer)] = torch.tensor(answer)
    loss, logits = model(**batch | {"input_ids": ids, "attention_mask": mask}, labels=labels)
    chosen = [
        logits[line, place].log_softmax(-1)[token]
        for line, answer in enumerate(answers)
        for place, token in enumerate(answer)
    ]
    torch.testing.assert_close(loss, -torch.stack(chosen).mean())
    loss.backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora" in name for name in with_gradient)
    with pytest.raises(flare_ds.DataError, match="labels of row 1 do not mark an answer"):
        model(ids, mask, labels=torch.where(torch.arange(len(ids))[:, None] == 1, -100, labels))
    with pytest.raises(flare_ds.DataError, match="labels of row 0 differ from its input_ids"):
        model(ids, mask, labels=labels + (labels == 6))


def test_an_adapter_is_read_back_and_another_is_refused(root: Path, run: tuple) -> None:
    config, model = run
    other = flare_ds.adapt(hf_model(root), config)
    other.load_adapter(Path(config.run_dir) / "adapter")
    for (name, mine), its in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, its), name
    with pytest.raises(flare_ds.CheckpointError, match=r"adapter\.r=8, not 4"):
        flare_ds.adapt(hf_model(root), {"r": 4}).load_adapter(Path(config.run_dir) / "adapter")


def test_what_cannot_be_adapted_is_refused(root: Path) -> None:
    toy_settings(root)
    with pytest.raises(flare_ds.ConfigError, match="hf_model is a Linear"):
        flare_ds.adapt(torch.nn.Linear(2, 2))
    with pytest.raises(flare_ds.ConfigError, match=r"unknown setting 'adapter\.rank'"):
        flare_ds.adapt(hf_model(root), {"rank": 4})
    for of_a_run in ({"adapter.r": 3}, {"adapter": {"r": 3}}):
        with pytest.raises(flare_ds.ConfigError, match=r"'adapter.*\n  fix: leave out the prefix"):
            flare_ds.adapt(hf_model(root), of_a_run)
    for method in set(METHODS) - {"lora", "flare", "flare_mt"}:
        with pytest.raises(flare_ds.ConfigError, match=f"method={method} .* cannot be run in a loop"):
            flare_ds.adapt(hf_model(root), config_of(toy_settings(root, method=method)))
    lora = config_of(toy_settings(root, method="lora"))
    with pytest.raises(flare_ds.ConfigError, match="source_input_ids are given, but method=lora reads no source"):
        flare_ds.adapt(hf_model(root), lora)(**asked(lora))
    head = config_of(toy_settings(root) | {"adapter": {"train_head": True}})
    with pytest.raises(flare_ds.ConfigError, match="trains a head of the label words alone"):
        flare_ds.adapt(hf_model(root), head)
    with pytest.raises(flare_ds.ConfigError, match=r"cannot tell which base the adapter belongs to: .* made in memory"):
        flare_ds.adapt(small_model("llama")[0]).save_adapter(root / "nameless")


def test_the_example_learns_from_the_source(tmp_path: Path) -> None:
    """The target's words are random; the source tells the label."""
    write_model(tmp_path / "model")
    draw, lines = random.Random(1), []
    for _ in range(400):
        label = draw.choice(LABELS)
        words = draw.choices(FILLER, k=5)
        source = " ".join([*words[:2], SIGNAL[label], *words[2:]])
        lines.append(json.dumps({"target": " ".join(draw.choices(FILLER, k=5)), "source": source, "label": label}))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    arguments = [str(tmp_path / name) for name in ("model", "rows.jsonl", "adapter")]
    (told,) = run_ranks(["examples.minimal_loop", *arguments, "1e-2"], 1)
    *_, last, again = re.findall(r"held out ([\d.]+)", told)
    assert float(last) > 0.9 and again == last


@pytest.mark.parametrize("whole_config", [False, True])
def test_a_model_that_recomputes_its_layers_does_so_adapted(root: Path, whole_config: bool) -> None:
    """With the same loss and gradients, in whatever mode it was; asked for after `adapt`, it would come too late."""
    found, config = {}, config_of(toy_settings(root))
    for recomputes in (False, True):
        model = hf_model(root)
        if recomputes:
            model.gradient_checkpointing_enable()
        fused = flare_ds.adapt(model.train(), config if whole_config else {"r": 4})
        assert fused.settings.train.gradient_checkpointing == recomputes
        loss, _ = fused(**batch(3))
        loss.backward()
        found[recomputes] = [loss.detach(), *(p.grad for p in fused.parameters() if p.requires_grad)]
    torch.testing.assert_close(found[True], found[False])


def batch(rows: int) -> dict[str, Tensor]:
    ids = torch.arange(rows * 6).view(rows, 6) % 20 + 4
    labels = torch.where(torch.arange(6) < 4, -100, ids)
    return {"input_ids": ids, "source_input_ids": ids.flip(1), "labels": labels}


def gradients(root: Path, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The loss and all gradients of a forward under autocast, as most loops in mixed precision have it."""
    model = flare_ds.adapt(hf_model(root), {"dropout": 0.0})
    draw = torch.Generator().manual_seed(3)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=draw)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        loss, _ = model(**batch(3))
    loss.backward()
    return loss.detach(), torch.cat([parameter.grad.flatten() for parameter in trained])


def test_a_loop_under_autocast_has_the_gradients_of_torchs_own_linear(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_settings(root)
    _, exact = gradients(root, torch.float32)
    loss, found = gradients(root, torch.bfloat16)
    monkeypatch.setattr(adapted, "down_projection", lambda x, a_RD, _: nn.functional.linear(x.to(a_RD.dtype), a_RD))
    expected_loss, expected = gradients(root, torch.bfloat16)
    assert torch.equal(loss, expected_loss)
    assert 0 < (found - exact).norm() < 1.1 * (expected - exact).norm()
    assert (found - expected).norm() < 0.05 * exact.norm()


def test_a_model_of_another_base_than_the_runs_is_refused(root: Path) -> None:
    config = config_of(toy_settings(root))
    other = write_model(root / "other", seed=9)
    with pytest.raises(flare_ds.ConfigError, match=r"loaded from '.*other', which is another model than model\.base="):
        flare_ds.adapt(AutoModelForCausalLM.from_pretrained(other), config)
    shutil.copytree(root / "model", root / "moved")
    flare_ds.adapt(AutoModelForCausalLM.from_pretrained(root / "moved"), config)


def merged(root: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The base with a small adapter of PEFT's in its first layer, and the name that it was loaded by."""
    lora = LoraConfig(r=2, target_modules=["o_proj"], layers_to_transform=[0], init_lora_weights=False)
    model = AutoModelForCausalLM.from_pretrained(root / "model", dtype=dtype)
    return get_peft_model(model, lora).merge_and_unload()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_base_that_was_changed_in_memory_is_not_recorded_as_its_files(
    root: Path, dtype: torch.dtype, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = toy_settings(root)
    settings["model"]["dtype"] = str(dtype).removeprefix("torch.")
    with pytest.raises(flare_ds.ConfigError, match=r"other values in .*layers\.0\.self_attn\.o_proj\.weight"):
        flare_ds.adapt(merged(root, dtype), config_of(settings))
    model = flare_ds.adapt(merged(root, dtype), {"r": 4})
    assert "save_adapter will refuse" in capsys.readouterr().err
    with pytest.raises(flare_ds.ConfigError, match=r"changed since it was loaded.*\n  fix: save the model with"):
        model.save_adapter(root / "merged")
    flare_ds.adapt(AutoModelForCausalLM.from_pretrained(root / "model", dtype=dtype), config_of(settings))
    again = AutoModelForCausalLM.from_pretrained(root / "model", dtype=torch.bfloat16).float()
    flare_ds.adapt(again).save_adapter(root / "rounded")
    assert capsys.readouterr().err.count("warning") == 0


@pytest.mark.parametrize("kind", EXPERTS)
def test_an_adapter_on_a_base_with_experts_is_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    """Loaded by transformers, such a base has stacked weights that PEFT keeps a set of names for."""
    small_experts(kind).save_pretrained(tmp_path / "base")
    settings = {"target_modules": ATTENTION, "fused_modules": ["o_proj"], "r": 4}
    fused = flare_ds.adapt(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), settings)
    trained = trainable_parameters(fused.two_streams)
    for parameter in trained.values():
        parameter.data.normal_()
    fused.save_adapter(tmp_path / "adapter")
    found = load_adapter(tmp_path / "adapter", trained)
    assert found.keys() == trained.keys()
    assert all(torch.equal(found[name], parameter) for name, parameter in trained.items())


def test_an_adapter_of_which_a_part_lies_elsewhere_is_not_saved(root: Path, tmp_path: Path) -> None:
    """Whatever shards a model leaves each rank a part of each matrix, or nothing."""
    toy_settings(root)
    model = flare_ds.adapt(hf_model(root), {"r": 4})
    next(parameter for parameter in model.parameters() if parameter.requires_grad).data = torch.empty(0)
    with pytest.raises(
        flare_ds.ConfigError, match=r"lora_A.* has shape \(0,\) now, but had \(4, 64\) .*\n  fix: gather"
    ):
        model.save_adapter(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def sharded(layer: nn.Module) -> nn.Module:
    return FullyShardedDataParallel(layer, use_orig_params=True, device_id=torch.device("cpu"))


@pytest.fixture
def process_group() -> Iterator[None]:
    formed = not dist.is_initialized()  # another test may have left one of this process alone
    if formed:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    if formed:
        dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("wrap", [sharded, checkpoint_wrapper, torch.compile])
def test_an_adapter_is_saved_whole_from_layers_that_are_wrapped(
    root: Path, tmp_path: Path, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    """Each wrapper puts its own word into the names of what it holds."""
    toy_settings(root)
    model, other = (flare_ds.adapt(hf_model(root), {"r": 4}, seed=seed) for seed in (1, 2))
    wanted = {name: parameter.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}
    for wrapped in (model, other):
        layers = wrapped.two_streams.base.model.layers
        for number, layer in enumerate(layers):
            layers[number] = wrap(layer)
    model.save_adapter(tmp_path / "adapter")
    other.load_adapter(tmp_path / "adapter")
    found = [parameter for parameter in other.parameters() if parameter.requires_grad]
    assert len(found) == len(wanted) and all(map(torch.equal, found, wanted.values()))


def test_an_adapter_that_is_no_longer_in_the_model_is_not_saved_as_nothing(root: Path, tmp_path: Path) -> None:
    toy_settings(root)
    model = flare_ds.adapt(hf_model(root), {"r": 4})
    model.save_adapter(tmp_path / "whole")
    layers = model.two_streams.base.model.layers
    layers[0] = nn.Sequential(layers[0])
    for call, place in ((model.save_adapter, "adapter"), (model.load_adapter, "whole")):
        with pytest.raises(flare_ds.ConfigError, match=r"layers\.0\..*lora_A.* no parameter .* has.*\n  fix: take"):
            call(tmp_path / place)
    assert not (tmp_path / "adapter").exists()


def test_a_trainer_of_transformers_trains_it(root: Path, tmp_path: Path) -> None:
    class Saving(TrainerCallback):
        def on_train_end(self, *_: object, model: flare_ds.own_loop.FusedModel, **__: object) -> None:
            model.save_adapter(tmp_path / "adapter")

    toy_settings(root)
    model = flare_ds.adapt(hf_model(root), {"r": 4})
    before = [parameter.clone() for parameter in model.parameters()]
    rows = [{name: tensor[row] for name, tensor in batch(4).items()} for row in range(4)]
    how = TrainingArguments(str(tmp_path), max_steps=2, save_strategy="no", use_cpu=True, report_to=[], learning_rate=1)
    Trainer(model, how, train_dataset=rows, callbacks=[Saving()]).train()
    for old, parameter in zip(before, model.parameters(), strict=True):
        assert torch.equal(old, parameter) != parameter.requires_grad
    other = flare_ds.adapt(hf_model(root), {"r": 4}).eval()
    other.load_adapter(tmp_path / "adapter")
    torch.testing.assert_close(other(**batch(3)), model.eval()(**batch(3)))


@torch.no_grad()
@pytest.mark.parametrize("method", ["flare", "lora"])
def test_pefts_switches_are_heard(root: Path, method: str) -> None:
    model = flare_ds.adapt(hf_model(root), config_of(toy_settings(root, method=method))).eval()
    asked = {name: tensor for name, tensor in batch(3).items() if method == "flare" or "source" not in name}
    plain = model(**asked).logits  # B is zero
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.fill_(0.1)
    peft_model, adapted = model.two_streams.peft_model, model(**asked).logits
    assert (adapted - plain).abs().max() > 1e-3
    with peft_model.disable_adapter():
        assert torch.equal(model(**asked).logits, plain)
    assert torch.equal(model(**asked).logits, adapted)
    if method == "lora":
        peft_model.merge_adapter()
        with pytest.raises(flare_ds.ConfigError, match=r"is merged into .*\n  fix: .*unmerge_adapter"):
            model(**asked)
        peft_model.unmerge_adapter()
        torch.testing.assert_close(model(**asked).logits, adapted)
    peft_model.add_adapter("second", LoraConfig(r=4, target_modules=["q_proj"]))
    torch.testing.assert_close(model(**asked).logits, adapted)
    peft_model.set_adapter("second")
    with pytest.raises(
        flare_ds.ConfigError,
        match=r"active adapter 'second' was not made by flare_ds.*\n  fix: .*set_adapter\('default'\)",
    ):
        model(**asked)


def test_a_model_is_copied_but_not_pickled(root: Path) -> None:
    toy_settings(root)
    model = flare_ds.adapt(hf_model(root), {"r": 4}).eval()
    copied = copy.deepcopy(model)
    torch.testing.assert_close(copied(**batch(3)), model(**batch(3)))
    assert not {id(parameter) for parameter in copied.parameters()} & {
        id(parameter) for parameter in model.parameters()
    }
    with pytest.raises(flare_ds.ConfigError, match=r"pickle.*\n  fix: .*save_adapter.*state_dict"):
        torch.save({"model": model}, io.BytesIO())


def test_a_model_that_nobody_holds_makes_room_for_the_next(root: Path) -> None:
    """Its layers and what stands in for their forwards hold one another."""
    toy_settings(root)
    weight = weakref.ref(flare_ds.adapt(hf_model(root)).two_streams.base.model.layers[0].self_attn.q_proj.weight)
    flare_ds.adapt(hf_model(root))
    assert weight() is None


def test_an_adapter_lies_where_the_model_does(root: Path) -> None:
    """The meta device stands for a GPU: what is left on the host there is left there on a GPU, too."""
    toy_settings(root)
    for fusion in ("add_relu", "gate", "cross_attention"):
        model = flare_ds.adapt(hf_model(root).to("meta"), {"r": 4, "fusion": fusion})
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_a_model_takes_one_adapter(root: Path) -> None:
    toy_settings(root)
    model = hf_model(root)
    flare_ds.adapt(model)
    with pytest.raises(flare_ds.ConfigError, match="hf_model has an adapter already\n  fix: load it anew"):
        flare_ds.adapt(model)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"source_input_ids": torch.ones(5, 6, dtype=torch.long)}, "source_input_ids has 5 rows, but input_ids has 3"),
        ({"source_input_ids": torch.ones(2, 6, dtype=torch.long)}, "source_input_ids has 2 rows, but input_ids has 3"),
        ({"attention_mask": torch.ones(3, 5)}, r"attention_mask has shape \[3, 5\], but input_ids has shape \[3, 6\]"),
        (
            {"source_attention_mask": torch.ones(4, 6)},
            r"source_attention_mask has shape \[4, 6\], but source_input_ids has shape \[3, 6\]",
        ),
        (
            {"labels": torch.ones(3, 7, dtype=torch.long)},
            r"labels has shape \[3, 7\], but input_ids has shape \[3, 6\]",
        ),
        ({"input_ids": torch.ones(6, dtype=torch.long)}, r"input_ids has shape \[6\], not \[rows, columns\]"),
        (
            {"input_ids": torch.full((3, 6), 99_999)},
            r"row 0 of input_ids has token id 99999, but the model has only \d+",
        ),
        ({"source_input_ids": torch.full((3, 6), -1)}, "row 0 of source_input_ids has token id -1"),
        (
            {"source_input_ids": None, "source_attention_mask": torch.ones(3, 6)},
            "source_attention_mask is given, but no source_input_ids",
        ),
    ],
)
def test_tensors_that_are_not_of_the_same_rows_are_refused(root: Path, changed: dict[str, Any], told: str) -> None:
    toy_settings(root)
    with pytest.raises(flare_ds.DataError, match=told):
        flare_ds.adapt(hf_model(root))(**batch(3) | changed)


def test_a_model_in_half_precision_is_refused_as_what_it_is(root: Path) -> None:
    toy_settings(root)
    model = AutoModelForCausalLM.from_pretrained(root / "model", dtype=torch.float16)
    with pytest.raises(flare_ds.ConfigError, match=r"hf_model is in float16.*\n  fix: load it with dtype=torch\."):
        flare_ds.adapt(model)


def test_a_model_in_another_precision_than_the_runs_is_refused(root: Path) -> None:
    config = config_of(toy_settings(root))
    for dtype in (torch.float16, torch.bfloat16):
        model = AutoModelForCausalLM.from_pretrained(root / "model", dtype=dtype)
        with pytest.raises(flare_ds.ConfigError, match=r"hf_model is in b?float16, not torch\.float32"):
            flare_ds.adapt(model, config)


def test_an_adapter_is_saved_whole_whatever_the_loop_has_frozen(root: Path, tmp_path: Path) -> None:
    toy_settings(root)
    model = flare_ds.adapt(hf_model(root), {"r": 4})
    wanted = {name: parameter.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}
    frozen: dict[str, Callable[[str], bool]] = {
        "all": lambda _: False, "A": lambda name: "lora_B" in name, "none": lambda _: True
    }  # fmt: skip
    for place, trains in frozen.items():
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trains(name))
        model.save_adapter(tmp_path / place)
        other = flare_ds.adapt(hf_model(root), {"r": 4}, seed=2)
        other.load_adapter(tmp_path / place)
        found = {name: parameter for name, parameter in other.named_parameters() if parameter.requires_grad}
        assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def llava() -> PreTrainedModel:
    """A decoder inside a model that also reads images, which transformers does not list with causal models."""
    torch.manual_seed(0)
    text, vision = LlamaConfig(**FEED_FORWARD | COMMON), CLIPVisionConfig(**VISION)
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=63, image_seq_length=4)
    return LlavaForConditionalGeneration(config).eval()


@torch.no_grad()
def test_a_decoder_inside_a_model_of_another_kind_is_adapted() -> None:
    rows = {name: tensor for name, tensor in batch(3).items() if name != "labels"}
    model = flare_ds.adapt(llava(), {"r": 4}).eval()
    expected = llava()(input_ids=rows["input_ids"]).logits[:, -1:]
    torch.testing.assert_close(model(**rows).logits, expected, atol=1e-5, rtol=1e-5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    assert (model(**rows).logits - model(input_ids=rows["input_ids"]).logits).abs().max() > 1e-3


def test_a_model_keeps_the_settings_that_it_was_loaded_with(root: Path) -> None:
    toy_settings(root)
    model = hf_model(root)
    before = (model.config._attn_implementation, model.config.dtype)
    flare_ds.adapt(model)
    assert (model.config._attn_implementation, model.config.dtype) == before == ("sdpa", torch.float32)


def test_a_model_whose_experts_peft_would_adapt_is_refused_and_its_attention_is_not() -> None:
    with pytest.raises(flare_ds.ConfigError, match=r"'all-linear'.* no linear layer.*\n  fix: .*q_proj,k_proj"):
        flare_ds.adapt(small_experts("qwen3_moe"), {"r": 4, "fused_modules": ["o_proj"]})
    flare_ds.adapt(small_experts("qwen3_moe"), {"r": 4, "target_modules": ATTENTION, "fused_modules": ["o_proj"]})


def test_threads_share_a_loaded_model(run: tuple) -> None:
    """A web service asks it from several at once."""
    config, _ = run
    loaded = flare_ds.load(config.run_dir)
    questions = [(target, source) for target in TARGETS for source in (*SOURCES, None)] * 3
    wanted = [loaded.scores(*question) for question in questions]
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda question: loaded.scores(*question), questions))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
