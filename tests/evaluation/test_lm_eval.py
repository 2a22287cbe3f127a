"""lm-eval's own machinery asks runs of ours, and hears what our harness and its own Hugging Face model say."""

import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from pytest import approx

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from transformers import AutoModelForCausalLM, AutoTokenizer

from flare_ds.cli import main
from flare_ds.evaluation.lm_eval_model import FlareModel
from flare_ds.evaluation.lm_eval_rows import RequestEncoder, TokenRow, source_text
from flare_ds.evaluation.lm_eval_settings import decoding_settings, row_length, source_templates
from flare_ds.exceptions import CheckpointError, ConfigError, DataError, NotFiniteError
from tests.by_hand import make_config
from tests.distributed import run_ranks
from tests.evaluation.lm_eval_worker import SOURCE, TEXT
from tests.test_methods import train_tokenizer
from tests.toy import FILLER, LABELS, SIGNAL, toy_settings, word_tokenizer, write_config, write_data, write_model

WRITING = ["zero_shot", "translate_test", "lora", "input_fusion", "x_mixup", "flare", "source_prefix"]
METHODS = [*WRITING, "late"]
FUSED = ["translate_test", "input_fusion", "x_mixup", "flare", "source_prefix", "late"]
NEW = 4
COMMON: dict[str, Any] = {
    "dataset_path": "json",
    "test_split": "test",
    "doc_to_text": "Review: {{text}}\nSentiment:",
}
WRITE = COMMON | {
    "output_type": "generate_until",
    "doc_to_target": "{{label}}",
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
TASKS: dict[str, dict[str, Any]] = {
    "mood": COMMON | {"output_type": "multiple_choice", "doc_to_choice": list(LABELS), "doc_to_target": "{{label}}"},
    "write": WRITE | {"generation_kwargs": {"until": ["zzz"], "max_gen_toks": NEW, "do_sample": False, "num_beams": 1}},
    "stop": WRITE | {"generation_kwargs": {"until": ["e", "or"], "max_gen_toks": NEW}},
}


def settings(root: Path, method: str) -> dict:
    found = toy_settings(root, method=method, name=method, steps=4)
    found["train"] |= {"learning_rate": 0.01, "validate_every": 4, "save_every": 1000}
    found["task"] |= {"test_rows": 40, "validation_rows": 10}
    found["generate"] = {"max_new_tokens": NEW}
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lm_eval")
    write_data(root / "data")
    words = [*FILLER, *SIGNAL.values(), *LABELS]
    write_model(root / "model", tokenizer=train_tokenizer([" ".join(words)] * 20))
    (root / "tasks").mkdir()
    for name, task in TASKS.items():
        data = {"data_files": {"test": str(root / "tasks/documents.jsonl")}, "cache_dir": str(root / "datasets")}
        (root / f"tasks/{name}.yaml").write_text(yaml.safe_dump({"task": name, "dataset_kwargs": data} | task))
    configs = [write_config(settings(root, method)) for method in METHODS]
    arguments = [str(root / "tasks"), str(root / "found.json"), *map(str, configs)]
    run_ranks(["tests.evaluation.lm_eval_worker", *arguments], 1, HF_HUB_OFFLINE="1")
    return root


@pytest.fixture(scope="module")
def found(root: Path) -> dict[str, Any]:
    return json.loads((root / "found.json").read_text())


def scores(answers: dict[str, Any]) -> list[list[float]]:
    """The log-likelihood of each label word of each document."""
    return [[score for score, _ in choices] for choices in answers["samples"]["mood"]]


def relative(log_likelihoods: list[float]) -> list[float]:
    return [score - log_likelihoods[0] for score in log_likelihoods]


@pytest.mark.parametrize("method", METHODS)
def test_choices_are_those_of_our_harness(found: dict[str, Any], method: str) -> None:
    answers, ours = found[method]["fused"], found[method]["ours"]["ranked"]
    chosen = [LABELS[choices.index(max(choices))] for choices in scores(answers)]
    assert chosen == [record["prediction"] for record in ours]
    assert len(set(chosen)) > 1
    for choices, record in zip(scores(answers), ours, strict=True):
        expected = [record[f"log_probability_{label}"] for label in LABELS]
        assert relative(choices) == approx(relative(expected), abs=1e-4)
    right = [record["prediction"] == record["label"] for record in ours]
    assert answers["results"]["mood"]["acc,none"] == approx(sum(right) / len(right))


def test_label_scores_that_are_added_write_nothing(found: dict[str, Any]) -> None:
    assert "method=late with the source's label scores added" in found["late"]["refused"]


@pytest.mark.parametrize("method", WRITING)
def test_what_is_written_is_what_our_harness_writes(found: dict[str, Any], method: str) -> None:
    written = [text for (text,) in found[method]["fused"]["samples"]["write"]]
    assert [text.strip().partition("\n")[0].rstrip() for text in written] == [
        record["text"] for record in found[method]["ours"]["generated"]
    ]
    stopped = [text for (text,) in found[method]["fused"]["samples"]["stop"]]
    assert stopped == [text.split("e")[0].split("or")[0] for text in written]
    assert stopped != written


def test_the_base_is_what_lm_eval_says_it_is(found: dict[str, Any]) -> None:
    ours, theirs = found["base"]["ours"], found["base"]["hf"]
    assert [score for score, _ in ours["pairs"]] == approx([score for score, _ in theirs["pairs"]], abs=1e-4)
    assert [likeliest for _, likeliest in ours["pairs"]] == [likeliest for _, likeliest in theirs["pairs"]]
    assert ours["texts"] == approx(theirs["texts"], abs=1e-4)


@pytest.mark.parametrize("method", FUSED)
def test_without_a_source_it_says_so_once_and_runs_as_rows_without_one(found: dict[str, Any], method: str) -> None:
    without, empty = found[method]["without"], found[method]["empty"]
    assert without["heard"] == [f"method={method} runs unfused: without doc_to_source in model_args it gets no source"]
    assert not empty["heard"] and not found[method]["fused"]["heard"]
    for one, other, fused in zip(scores(without), scores(empty), scores(found[method]["fused"]), strict=True):
        assert one == approx(other, abs=1e-4)
        assert one != approx(fused, abs=1e-3)


def test_a_source_that_is_not_read_is_said_to_be(found: dict[str, Any]) -> None:
    assert found["lora"]["fused"]["heard"] == ["doc_to_source is not used: method=lora reads no source"]


def test_how_many_rows_are_cut_is_said(root: Path, found: dict[str, Any]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(root / "model")
    context, short, answered = (len(tokenizer(text)["input_ids"]) for text in (TEXT, "word1", "word1 word2"))
    behind = answered - short - 1  # the last token of a scored answer is not read
    lost = [context - (24 - behind), context - (24 - 2)]  # two tokens are to be written
    assert lost[0] > 0
    assert [message.partition(" (")[0] for message in found["short"]] == [
        f"1 of 2 rows do not fit in 24 tokens: up to {most} tokens are cut from the start of a prompt" for most in lost
    ]


def test_a_target_behind_its_source_shares_the_positions_with_it(root: Path, found: dict[str, Any]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(root / "model")
    bos, context, short, answered = (len(tokenizer(text)["input_ids"]) for text in ("", TEXT, "word1", "word1 word2"))
    newline = len(tokenizer("word1\nword1")["input_ids"]) - 2 * short + bos
    positions = 2 * context + newline - bos
    lost = [positions - (24 - (answered - short - 1)), positions - (24 - 2)]
    assert [re.search(r"up to (\d+) tokens", message)[1] for message in found["short_behind"]] == [*map(str, lost)]


def test_the_command_line_on_two_ranks_that_share_the_base(root: Path, found: dict[str, Any]) -> None:
    model = {"run": str(root / "flare"), "doc_to_source": SOURCE, "evaluate.whole_model": False}
    arguments = ["--model", "flare_ds", "--model_args", json.dumps(model), "--tasks", "mood", "--batch_size", "7"]
    output = ["--include_path", str(root / "tasks"), "--output_path", str(root / "out"), "--log_samples"]
    outputs = run_ranks(["flare_ds", "lm-eval", *arguments, *output], 2, HF_HUB_OFFLINE="1")
    (samples,) = (root / "out").rglob("samples_mood_*.jsonl")
    lines = sorted((json.loads(line) for line in samples.read_text().splitlines()), key=lambda line: line["doc_id"])
    expected = scores(found["flare"]["fused"])
    for line, choices in zip(lines, expected, strict=True):
        assert [float(score) for score, _ in line["filtered_resps"]] == approx(choices, abs=1e-4)
    assert ["|acc" in output for output in outputs] == [True, False]
    assert re.search(r"\|\s*Tasks\s*\|", outputs[0]), "lm-eval's table has its own heads"


def ask(context: str, continuation: str = "", **doc: Any) -> Instance:
    return Instance("loglikelihood", doc, (context, continuation), 0, ("moods", 0, 1))


def encoder(*templates: str, longest: int = 12, joint: bool = False) -> RequestEncoder:
    return RequestEncoder(word_tokenizer(), templates, longest, joint)


def ids(text: str) -> tuple[int, ...]:
    tokenizer = word_tokenizer()
    return tuple(tokenizer.get_vocab()[word] for word in text.split())


def test_spaces_go_to_the_continuation_and_a_long_prompt_loses_its_beginning() -> None:
    prompt, source = "<bos> word1 word2", "<bos> word3"
    row = encoder("text_en").scored(ask("word1 word2 ", "positive word5", text_en="word3 "))
    assert row == TokenRow(ids(prompt), ids("positive word5"), (ids(source),))
    assert row.read == TokenRow(ids(prompt), ids("positive"), (ids(source),))
    long = " ".join(FILLER)
    cut = "<bos> word17 word18 word19"
    row = encoder("text_en", longest=5).scored(ask(long, " positive word5", text_en=long))
    assert row == TokenRow(ids(cut), ids("positive word5"), (ids(cut),))
    assert row.lost == 2 * (1 + len(FILLER) - len(ids(cut)))
    assert encoder().scored(ask("", "positive")).prompt == ids("<bos>")
    assert encoder("text_en").scored(ask("word1", " positive", text_en=None)).sources == ((),)


def test_two_prompts_in_one_row_are_cut_only_where_they_do_not_fit_together() -> None:
    joint = encoder("text_en", longest=8, joint=True)
    between = len(joint.form.newline_ids)
    long = " ".join(FILLER)
    row = joint.written(ask(long, text_en=long), 1)
    assert row == TokenRow(ids("<bos> word17 word18 word19")[: 1 + 3], (), (ids("<bos> word17 word18 word19"),))
    assert len(row.prompt) + between + len(*row.sources) - 1 <= 8 - 1
    fits = " ".join(FILLER[: 8 - 1 - 2 - between])
    row = joint.written(ask(fits, text_en="word9"), 1)
    assert row == TokenRow(ids("<bos> " + fits), (), (ids("<bos> word9"),))
    assert len(row.prompt) + between + len(*row.sources) - 1 == 8 - 1
    without = " ".join(FILLER[-6:])
    assert joint.written(ask(long, text_en=None), 1).prompt == ids("<bos> " + without)
    assert encoder(longest=8, joint=True).written(ask(long), 1).prompt == ids("<bos> " + without)


def test_texts_that_share_positions_are_cut_no_more_than_they_must() -> None:
    for texts in ((3, 15, 2), (15, 1, 15), (15, 15, 15), (15, 15, 0), (5, 0, 0), (2, 3, 4)):
        for longest in (7, 12, 20, 40):
            shared = encoder("a", "b", longest=longest, joint=True)
            target, a, b = (" ".join(FILLER[:count]) for count in texts)
            row = shared.written(ask(target, a=a, b=b), 1)
            read = [row.prompt, *row.sources]
            whole = [1 + count if count or not place else 0 for place, count in enumerate(texts)]
            positions = sum(map(len, read)) + any(texts[1:]) * (len(shared.form.newline_ids) - 1)
            assert positions <= longest - 1
            cut = [len(tokens) for tokens, length in zip(read, whole, strict=True) if len(tokens) < length]
            assert not cut or (positions == longest - 1 and max(map(len, read)) - min(cut) <= 1)
            assert row.lost == sum(whole) - sum(map(len, read))


def test_prompts_end_where_their_text_ends() -> None:
    tokenizer = train_tokenizer(["word1 word3 positive"])  # a space is a token to it
    row = RequestEncoder(tokenizer, ("text_en",), 40, False).scored(ask("word1 ", "positive", text_en="word3 "))
    assert row.prompt == tuple(tokenizer("word1")["input_ids"])
    assert row.prompt + row.answer == tuple(tokenizer("word1 positive")["input_ids"])
    assert row.sources == (tuple(tokenizer("word3")["input_ids"]),)


def test_windows_score_each_token_once() -> None:
    rows = encoder(longest=4).windows(" ".join(FILLER[:10]))
    assert [token for row in rows for token in row.answer] == list(ids(" ".join(FILLER[:10])))
    assert [len(row.prompt) + len(row.answer) - 1 for row in rows] == [4, 4, 4]
    assert rows[0].prompt == ids("<bos>")


def test_a_source_prompt_is_a_field_or_a_template() -> None:
    document = ask("", text_en="great", label=2)
    assert source_text("text_en", document) == "great"
    assert source_text("Review: {{text_en}}\nSentiment:", document) == "Review: great\nSentiment:"
    with pytest.raises(ConfigError, match=r"a document of task moods has no such field\n.*did you mean 'text_en'"):
        source_text("text", document)
    with pytest.raises(ConfigError, match="has 2 there, which is no text"):
        source_text("label", document)
    with pytest.raises(ConfigError, match="does not fill it: 'text_de' is undefined"):
        source_text("{{text_de}}", document)
    with pytest.raises(ConfigError, match="does not fill it: "):
        source_text("{{text_en", document)


@pytest.mark.parametrize("nothing", [None, "", "  "])
@pytest.mark.parametrize(
    "template",
    ["text", "{{text}}", "{{text|trim}}", "Review: {{text}}\nSentiment:", "{{number}}. {{text}}", "{{of.it[0]}}"],
)
def test_a_document_whose_text_is_empty_has_no_source(template: str, nothing: str | None) -> None:
    assert source_text(template, ask("", text=nothing, number=3, of={"it": [nothing]}, more="more")).strip() == ""
    assert "bad" in source_text(template, ask("", text="bad", number=3, of={"it": ["bad"]}, more="more"))


@pytest.mark.parametrize("template", ["{{number}} + 1 =", "{{ {'bad': 'awful'}[text] }}", "{{text.split('a')[1]}}"])
def test_a_template_that_reads_numbers_or_fails_without_its_texts_is_a_source(template: str) -> None:
    assert source_text(template, ask("", text="bad", number=3)) in ("3 + 1 =", "awful", "d")


def test_requests_that_cannot_be_rows() -> None:
    with pytest.raises(DataError, match=r"continuation '' of 'word1' \(moods\) has no tokens"):
        encoder().scored(ask("word1", ""))
    with pytest.raises(DataError, match=r"an answer of 13 tokens leaves no room for the prompt in 12 tokens \(moods\)"):
        encoder().written(ask("word1"), 12)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({}, "model_args do not say which run"),
        ({"run": "nowhere"}, "nowhere"),
        ({"pretrained": "x"}, "unknown setting 'pretrained'"),
        ({"evaluate.batch_sise": 3}, "unknown setting 'evaluate.batch_sise'"),
        ({"batch_size": 0}, "evaluate.batch_size=0"),
        ({"max_length": "long"}, "max_length='long' is not a whole number from 2 to"),
        (
            {"doc_to_source": ["text_en", "text_de"]},
            r"doc_to_source=\['text_en', 'text_de'\] is not one for each of: en",
        ),
        ({"method": "flare_mt", "source.mt_encoder": "m2m"}, "method=flare_mt reads an MT encoder's states"),
        ({"task.chat": True}, "task.chat=true: the run answers chats"),
    ],
    ids=str,
)
def test_wrong_model_args(root: Path, arguments: dict[str, Any], problem: str) -> None:
    given = {} if not arguments else {"run": str(root / "flare")} | arguments
    with pytest.raises(ConfigError, match=problem):
        FlareModel(**given)


def test_a_run_whose_training_has_not_ended_is_refused(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "lora", tmp_path / "lora")
    (tmp_path / "lora/training.json").unlink()
    with pytest.raises(CheckpointError, match=r"lora has not ended \(trained 4 of 4 steps\)"):
        FlareModel(str(tmp_path / "lora"))


def test_generation_kwargs() -> None:
    config = make_config()
    asked = {"until": [], "max_gen_toks": 7, "do_sample": True, "temperature": 0.5, "top_k": 3}
    found = decoding_settings(asked, config)
    assert (found.max_new_tokens, found.temperature, found.top_k) == (7, 0.5, 3)
    assert decoding_settings(asked | {"do_sample": False}, config).temperature == 0
    assert decoding_settings({"until": [], "max_gen_toks": 7, "do_sample": True}, config).temperature == 1
    with pytest.raises(ConfigError, match=r"generation_kwargs num_beams=4 is not known"):
        decoding_settings(asked | {"num_beams": 4}, config)
    with pytest.raises(ConfigError, match=r"top_p=3 in generation_kwargs"):
        decoding_settings(asked | {"top_p": 3}, config)


@pytest.mark.parametrize("sampling", [{}, {"do_sample": True, "temperature": 1.0}])
def test_what_a_model_writes_whose_logits_are_no_numbers_is_refused(tmp_path: Path, sampling: dict[str, Any]) -> None:
    config = toy_settings(tmp_path, method="zero_shot")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    base.get_output_embeddings().weight.data.fill_(torch.nan)
    base.save_pretrained(tmp_path / "model")
    model = FlareModel(str(write_config(config)))
    asked = "word1 word2", {"until": ["e"], "max_gen_toks": 2, **sampling}
    with pytest.raises(NotFiniteError, match="scores of 1 requests are not finite: number 0"):
        model.generate_until([Instance("generate_until", {}, asked, 0, ("task", 0, 1))])


def test_one_template_for_each_source() -> None:
    assert source_templates(make_config(sources=2), ["a", "b"]) == ("a", "b")
    assert source_templates(make_config(method="input_fusion"), "a") == ("a",)
    assert row_length(None, 64) == 64 and row_length(8, 64) == 8


def test_the_store_of_answers_is_refused_where_it_would_mix_up_documents() -> None:
    model = SimpleNamespace(encoder=encoder("text_en"))
    with pytest.raises(ConfigError, match="--use_cache knows requests by their context"):
        FlareModel.set_cache_hook(model, None)  # type: ignore[arg-type]


def test_the_store_of_answers_is_refused_on_several_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flare_ds.evaluation.lm_eval_model.world_size", lambda: 2)
    with pytest.raises(ConfigError, match="all 2 ranks need the same requests"):
        FlareModel.set_cache_hook(SimpleNamespace(encoder=encoder()), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("missing", ["lm_eval", "lm_eval.api.instance"])
def test_without_lm_eval_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    for module in [name for name in sys.modules if name == missing or name.startswith(f"{missing}.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(sys.modules, "flare_ds.evaluation.lm_eval_model", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["lm-eval", "--help"]) == 1
    said = capsys.readouterr().err
    assert "lm-eval is not installed" in said and "pip install 'lm-eval<" in said
