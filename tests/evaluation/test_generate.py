"""Decoding with KV caches gives what full re-forwards of one row at a time give, alone and on real ranks."""

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from flare_ds.batches.batching import evaluation_batches
from flare_ds.batches.collate import Batch
from flare_ds.config import Config, GenerateConfig
from flare_ds.data.cache import open_cache, prepare_cache
from flare_ds.evaluation.answerable import with_whole_head
from flare_ds.evaluation.asked import Asked
from flare_ds.evaluation.decoding import Decoder, TokenChoice
from flare_ds.evaluation.generate import Decoded, eos_ids, generate, generate_split
from flare_ds.exceptions import ConfigError, HostError
from flare_ds.models.loading import load_shape, load_tokenizer
from flare_ds.models.two_stream import TwoStreamModel, build_model
from flare_ds.runtime import memory, opening
from flare_ds.runtime.engine import RunningModel, trainable_parameters
from tests.by_hand import build, make_batch, make_config, make_rows
from tests.distributed import run_ranks
from tests.evaluation.generate_worker import SETTINGS, random_adapter
from tests.oracle import Row
from tests.small_models import small_model
from tests.toy import FILLER, toy_settings, write_config

NEW = 7
# of a row: (prompt, answer) of two sources, then of the target; sliding windows are 4 wide
LENGTHS = [
    ([(9, 1), (2, 1)], (3, 1)),
    ([(2, 1), (5, 1)], (8, 1)),
    ([(0, 0), (3, 1)], (5, 1)),
    ([(4, 1), (0, 0)], (1, 1)),
]


def decoding(config: Config, **settings: object) -> Config:
    return config.model_copy(update={"generate": GenerateConfig(max_new_tokens=NEW, **settings)})


def of_base(model_name: str, prompt: list[int], eos: list[int]) -> list[int]:
    """What the bare base says to a source prompt, greedily, by full forwards, without padding."""
    base, _ = small_model(model_name, layers=2)
    tokens: list[int] = []
    while prompt and len(tokens) < NEW:
        token = int(base(input_ids=torch.tensor([prompt + tokens]), use_cache=False).logits[0, -1].argmax())
        if token in eos:
            break
        tokens.append(token)
    return tokens


@torch.no_grad()
def by_full_forwards(
    model_name: str, model: TwoStreamModel, rows: list[Row], config: Config, eos: list[int]
) -> list[Decoded]:
    """Each row alone, each token by a forward over all columns so far, without any cache."""
    answers = []
    for row in rows:
        sources = [(prompt, of_base(model_name, prompt, eos)) for prompt, _ in row.sources]
        answer: list[int] = []
        log_probabilities: list[float] = []
        while len(answer) < NEW:
            # make_batch reads all answer tokens but the last
            so_far = [(prompt, [*tokens[: len(answer)], 0]) for prompt, tokens in sources]
            logits_BNK = model(make_batch([Row(row.target, [*answer, 0], so_far)], config))
            log_probabilities_K = logits_BNK[0, len(answer)].double().log_softmax(0)
            token = int(log_probabilities_K.argmax())
            log_probabilities.append(float(log_probabilities_K[token]))
            if token in eos:
                break
            answer.append(token)
        answers.append(Decoded(answer, log_probabilities, ended=len(answer) < NEW))
    return answers


def said(answers: list[Decoded]) -> list[list[int]]:
    return [answer.tokens for answer in answers]


def assert_same(found: list[Decoded], expected: list[Decoded]) -> None:
    assert said(found) == said(expected)
    probabilities = [answer.log_probability for answer in expected]
    assert [answer.log_probability for answer in found] == pytest.approx(probabilities, abs=1e-4)


CASES = [
    {"method": "lora"},
    {"span": "prompt"},
    {"span": "full"},
    {"span": "full", "pairing": "module"},
    {"span": "full", "fusion": "cross_attention"},
    {"span": "full", "fusion": "cross_attention", "pairing": "module", "sources": 2, "source_weights": "learned"},
    {"span": "prompt", "fusion": "cross_attention", "sources": 2},
    {"method": "x_mixup"},
]


@pytest.mark.parametrize("model_name", ["llama", "gemma3"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_the_cache_changes_no_token(model_name: str, case: dict) -> None:
    config = decoding(make_config(**case))
    model = build(model_name, config).eval()
    rows = make_rows(config.streams_beside, LENGTHS)
    free = by_full_forwards(model_name, model, rows, config, eos=[])
    # One token that ends a target, and one that ends a source while its target goes on.
    eos = [free[0].tokens[2], *(of_base(model_name, prompt, [])[1] for prompt, _ in rows[1].sources[:1])]
    expected = by_full_forwards(model_name, model, rows, config, eos)
    assert min(map(len, said(expected))) < NEW == max(map(len, said(free)))
    found = generate(RunningModel(model, model), make_batch(rows, config), config, eos=eos, rows=range(len(rows)))
    assert_same(found, expected)
    found = generate(RunningModel(model, model), make_batch(rows, config), config, eos=[], rows=range(len(rows)))
    assert_same(found, free)


def decoded(config: Config, rows: list[Row], steps: int = 2) -> tuple[Decoder, torch.Tensor]:
    """A decoder some greedy steps on, and the logits of the last."""
    model = build("gemma3", config).eval()
    decoder = Decoder(RunningModel(model, model), make_batch(rows, config), along=config.adapter.span == "full")
    with torch.no_grad(), decoder.remembering():
        logits_XK = decoder.prefill()
        for _ in range(steps):
            logits_XK = decoder.step(logits_XK.argmax(-1), torch.ones(len(logits_XK), dtype=torch.bool))
    return decoder, logits_XK


@pytest.mark.parametrize("settings", [{"span": "prompt"}, {"span": "full"}, {"method": "x_mixup"}], ids=str)
def test_a_source_reaches_only_its_own_row(settings: dict) -> None:
    config = decoding(make_config(**settings))
    rows = make_rows(1, LENGTHS)
    before, logits = decoded(config, rows)
    prompt, answer = rows[1].sources[0]
    rows[1] = Row(rows[1].target, rows[1].answer, [([token % 50 + 5 for token in prompt], answer)])
    after, other_logits = decoded(config, rows)
    own = [False, True, False, False]
    assert ((logits != other_logits).any(1)[-4:]).tolist() == own
    for layer, other in zip(before.target_cache.layers[1:], after.target_cache.layers[1:], strict=True):
        assert (layer.keys != other.keys).flatten(1).any(1).tolist() == own


def test_the_streams_share_no_keys() -> None:
    config = decoding(make_config(span="full"))
    rows = make_rows(1, LENGTHS)
    decoder, _ = decoded(config, rows)
    base, _ = small_model("gemma3", layers=2)
    assert decoder.source_cache is not None
    columns = decoder.mask_XC.shape[1]
    for layer, of_source in zip(decoder.target_cache.layers, decoder.source_cache.layers, strict=True):
        assert len(layer.keys) == len(of_source.keys) == 4
        assert layer.get_seq_length() == of_source.get_seq_length() == columns
        assert layer.keys.data_ptr() != of_source.keys.data_ptr() and not torch.equal(layer.keys, of_source.keys)
    # The source's keys are those of the bare base over the same tokens.
    prompt = rows[0].sources[0][0]
    past = base(input_ids=torch.tensor([prompt + of_base("gemma3", prompt, [])[:2]]), use_cache=True).past_key_values
    for layer, alone in zip(decoder.source_cache.layers, past.layers, strict=True):
        held = min(layer.keys.shape[2], alone.keys.shape[2], len(prompt) + 2)
        torch.testing.assert_close(layer.keys[0, :, -held:], alone.keys[0, :, -held:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("span", "rows_a_step"), [("prompt", [4]), ("full", [8, 4])])
def test_the_source_is_dropped_after_the_prefill(span: str, rows_a_step: list[int]) -> None:
    """Rows that go through the q_proj of the last layer, in each pass."""
    config = decoding(make_config(span=span, sources=2))
    model = build("llama", config).eval()
    passes: list[int] = []
    projection = model.base.model.layers[-1].self_attn.q_proj
    projection.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    generate(RunningModel(model, model), make_batch(make_rows(2, LENGTHS), config), config, eos=[], rows=range(4))
    assert passes == [8, 4] + rows_a_step * (NEW - 1)


def test_a_mixed_source_ends_at_the_mixing_layer_and_is_remembered() -> None:
    """Rows that go through the q_proj of each layer, in each pass; the source's states are read in the first."""
    config = decoding(make_config(method="x_mixup"))
    model = build("llama", config).eval()
    passes: list[list[int]] = [[], []]
    for layer, rows in zip(model.base.model.layers, passes, strict=True):
        projection = layer.self_attn.q_proj
        projection.register_forward_pre_hook(lambda _, inputs, rows=rows: rows.append(len(inputs[0])))
    read: list[int] = []
    model.mixing.key.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].shape[1]))
    batch = make_batch(make_rows(1, LENGTHS), config)
    generate(RunningModel(model, model), batch, config, eos=[], rows=range(4))
    assert passes == [[8] + [4] * (NEW - 1), [4] * NEW]
    assert read == [batch.prompt_columns]
    assert model.streams.remembered is None


def test_stored_states_are_read_in_the_prefill_only() -> None:
    """States of the base stored beforehand decode to what the lockstep source does."""
    lockstep = decoding(make_config(pairing="input", span="prompt"))
    rows = make_rows(1, LENGTHS)
    model = build("llama", lockstep).eval()
    batch = make_batch(rows, lockstep)
    base, _ = small_model("llama", layers=2)
    sources = {"input_ids": batch.input_ids[:4], "attention_mask": batch.attention_mask[:4]}
    states = base(**sources, position_ids=batch.position_ids[:4], output_hidden_states=True).hidden_states
    stored = decoding(make_config(pairing="input", span="prompt", provider="cached"))
    alone = make_batch([Row(row.target, row.answer, []) for row in rows], make_config(method="lora"))
    batch_of_states = Batch(**{**vars(alone), "source_lengths_SB": batch.source_lengths_SB})
    batch_of_states = replace(batch_of_states, stored_BMKD=torch.stack(states[:2], 2)[:, : batch.prompt_columns])
    with_states = build("llama", stored).eval()
    expected = generate(RunningModel(model, model), batch, lockstep, eos=[], rows=range(4))
    found = generate(RunningModel(with_states, with_states), batch_of_states, stored, eos=[], rows=range(4))
    assert_same(found, expected)


def test_draws_follow_the_row_and_the_seed() -> None:
    config = make_config(span="full")
    model = build("llama", config).eval()
    running, rows = RunningModel(model, model), make_rows(1, LENGTHS)

    def sampled(numbers: list[int], **settings: object) -> list[list[int]]:
        batch = make_batch([rows[number] for number in numbers], config)
        chosen = decoding(config, **{"temperature": 3.0, **settings})
        return said(generate(running, batch, chosen, eos=[], rows=numbers))

    drawn = sampled([0, 1, 2, 3])
    assert sampled([0, 1, 2, 3]) == drawn
    assert sampled([2, 0]) + sampled([3, 1]) == [drawn[row] for row in (2, 0, 3, 1)]
    assert sampled([0, 1, 2, 3], seed=2) != drawn
    greedy = sampled([0, 1, 2, 3], temperature=0.0)
    assert drawn != greedy == sampled([0, 1, 2, 3], top_k=1)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"temperature": 0.5}, [p / 0.365 for p in (0.25, 0.09, 0.0225, 0.0025)]),
        ({"top_k": 2}, [0.625, 0.375, 0, 0]),
        ({"top_p": 0.75}, [0.625, 0.375, 0, 0]),
        ({"top_p": 0.85, "top_k": 3}, [p / 0.95 for p in (0.5, 0.3, 0.15)] + [0]),
        ({"temperature": 2.0, "top_p": 0.75}, [p**0.5 / 1.6421 for p in (0.5, 0.3, 0.15)] + [0]),  # of what it leaves
    ],
    ids=str,
)
def test_draws_follow_the_distribution(settings: dict, expected: list[float]) -> None:
    draws = 4000
    choose = TokenChoice(GenerateConfig(**{"temperature": 1.0, **settings}), [(row,) for row in range(draws)])
    logits_K = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    shares = choose(logits_K.expand(draws, 4)).bincount(minlength=4) / draws
    for share, p in zip(shares.tolist(), expected, strict=True):
        assert abs(share - p) <= 4 * math.sqrt(p * (1 - p) / draws), (shares, expected)


def test_a_row_whose_logits_are_no_numbers_is_drawn_some_token_and_no_other_row_changes() -> None:
    logits_XK = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    odd_XK = logits_XK.clone()
    odd_XK[1] = torch.nan
    for settings in ({}, {"top_k": 2}, {"top_p": 0.9}):
        good, odd = (
            TokenChoice(GenerateConfig(temperature=1.0, **settings), [(row,) for row in range(3)])(logits)
            for logits in (logits_XK, odd_XK)
        )
        assert odd[[0, 2]].tolist() == good[[0, 2]].tolist() and 0 <= odd[1] < 5


def test_ranks_decode_what_one_process_does(tmp_path: Path) -> None:
    """Sharded and whole, span=prompt and span=full, greedy and sampled; answers of unequal lengths."""
    settings = toy_settings(tmp_path)
    settings["task"]["test_rows"] = 9
    settings["evaluate"] = {"batch_size": 2}
    generation = tmp_path / "model/generation_config.json"
    generation.write_text(json.dumps({"eos_token_id": [1, 6, 21, 33]}))
    config_path = write_config(settings)
    expected: list[list[list[int]]] = []
    for extra in SETTINGS:
        config = with_whole_head(Config.model_validate(settings | extra))
        cache = open_cache(prepare_cache(config, load_tokenizer(config.model)))
        model = build_model(config, label_tokens=cache.label_tokens).eval()
        for name, value in random_adapter(trainable_parameters(model)).items():
            model.get_parameter(name).data.copy_(value)
        lengths = np.max([cache.split("test").prompt_lengths(stream) for stream in ("source", "target")], axis=0)
        batches = evaluation_batches(lengths, world_size=2, batch_size=2)
        assert any(not micro.weights.any() for of_rank in batches for micro in of_rank), "no rank has only a filler"
        expected.append(said(generate_split(Asked(RunningModel(model, model), cache, config), "test")))
        assert len({len(answer) for answer in expected[-1]}) > 2, "nothing uneven about these answers"
    out = tmp_path / "answers.json"
    run_ranks(["tests.evaluation.generate_worker", str(config_path), str(out)], 2, timeout=120)
    found, gathers = json.loads(out.read_text())
    assert found == dict.fromkeys(("whole", "gathered once", "gathered for each token"), expected)
    assert gathers["gathered once"] < gathers["gathered for each token"] / 2, gathers


def test_predict_prints_an_answer(tmp_path: Path) -> None:
    settings = toy_settings(tmp_path, method="zero_shot")
    text = " ".join(FILLER[:5])
    arguments = ["predict", str(write_config(settings)), "generate.max_new_tokens=4", "--target", text, "--generate"]
    (output,) = run_ranks(["flare_ds", *arguments], 1)
    config = Config.model_validate(settings)
    tokenizer = load_tokenizer(config.model)
    base = build_model(with_whole_head(config), label_tokens=[]).base
    tokens = tokenizer(f"Review: {text}\nSentiment:")["input_ids"]
    for _ in range(4):
        tokens.append(int(base(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    assert output.splitlines()[-1] == tokenizer.decode(tokens[-4:], skip_special_tokens=True)


def test_a_head_of_label_words_cannot_generate() -> None:
    config = make_config(objective="labels", train_head=True)
    with pytest.raises(ConfigError, match=r"train_head=true with train\.objective='labels'"):
        with_whole_head(config)
    assert with_whole_head(make_config(objective="labels")).train.objective == "vocabulary"


def test_a_whole_model_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config.model_validate(toy_settings(tmp_path) | {"evaluate": {"whole_model": True}})
    shape = load_shape(config.model)
    memory.check_whole_model(config, shape)
    monkeypatch.setattr(memory, "_available", lambda on: 0.9e9)
    for ranks, fix in ((1, "use more ranks on more machines"), (2, "set evaluate.whole_model=false")):
        monkeypatch.setattr(memory, "world_size", lambda ranks=ranks: ranks)
        with pytest.raises(HostError, match=r"whole_model=true needs about 1.0 GB on each rank, but 0.9 GB") as refused:
            memory.check_whole_model(config, shape)
        assert refused.value.fix.startswith(fix), "one rank shares with nobody"


@pytest.mark.parametrize("bases", [0, 1, 2], ids=["no room", "room for one", "room for two"])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("setting", ["auto", False, True])
def test_who_holds_a_base_that_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str | bool, ranks: int, bases: int
) -> None:
    config = Config.model_validate(toy_settings(tmp_path) | {"evaluate": {"whole_model": setting}})
    monkeypatch.setattr(opening, "world_size", lambda: ranks)
    shape = load_shape(config.model)
    weights = 4 * sum(parameter.numel() for parameter in shape.parameters())
    monkeypatch.setattr(memory, "_available", lambda on: 1e9 + (bases + 0.5) * weights)
    if not bases and (setting is True or (setting == "auto" and ranks == 1)):
        with pytest.raises(HostError, match="needs about") as refused:
            opening._is_whole(config, shape)
        assert "use more ranks" in refused.value.fix
    else:
        assert opening._is_whole(config, shape) is (setting is True or (setting == "auto" and bases >= ranks))


@pytest.mark.parametrize(
    ("said", "text", "counted"),
    [
        ("word1 word2 <eos>", "word1 word2", 4),
        ("word1 , word2", "word1 , word2", 4),
        ("word3 <line> word4", "word3", 2),
        ("word3 word4 <line> word4 <line> word1", "word3 word4", 3),
        ("<line> word3 <line>", "word3", 3),
        ("<line>", "", 2),
        ("", "", 1),
    ],
)
def test_an_answer_in_words_is_one_line(said: str, text: str, counted: int) -> None:
    """As likely as what it says and what ends it, the line's break or the eos; nothing behind it counts."""
    words = ["<eos>", "<unk>", "<line>", *(f"▁{word}" for word in (",", *FILLER))]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("<line>", "\n"), decoders.Metaspace()])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", clean_up_tokenization_spaces=True)
    numbers = [words.index(word if word[0] == "<" else f"▁{word}") for word in said.split()]
    likely = [-(2.0**place) for place in range(len(numbers) + 1)]
    broken = counted <= len(numbers)
    for ended in (True, False) if numbers else (True,):
        last = counted if ended or broken else len(numbers)
        found = Decoded(numbers, likely[: len(numbers) + ended], ended).written(fast)
        assert found == (text, pytest.approx(statistics.fmean(likely[:last])), ended or broken)


def test_eos_tokens() -> None:
    base, _ = small_model("llama")
    for given, trained, expected in (
        (2, None, [2]),
        (2, 2, [2]),
        ([9, 4], 7, [4, 7, 9]),
        (None, 3, [3]),
        (None, None, []),
    ):
        base.generation_config.eos_token_id = given
        assert eos_ids(base, trained) == expected
