"""One process of the lm-eval tests: runs trained and scored by our harness, then the same rows by lm-eval.

Run as `python -m tests.evaluation.lm_eval_worker TASKS OUT CONFIG ...`; TASKS gets the test rows as documents.
"""

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval import evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from flare_ds.config import Config
from flare_ds.data.parallel import load_parallel
from flare_ds.evaluation.evaluate import evaluate_run
from flare_ds.evaluation.lm_eval_model import FlareModel
from flare_ds.exceptions import ConfigError
from flare_ds.runtime.engine import make_room
from flare_ds.scoring.predictions import PREDICTIONS, read_predictions
from flare_ds.settings import load_config
from flare_ds.tasks.load import task_of
from flare_ds.training.run import open_run
from flare_ds.training.together import train_together

SOURCE = "Review: {{text_en}}\nSentiment:"
PAIRS = [
    ("Review: word1 word2\nSentiment:", " positive"),
    ("Review: word1 word2\nSentiment: ", "negative neutral"),
    ("Review: word1 word2", "\nSentiment: negative, or not"),
    ("", "word3 word4 word5"),
    ("word7  ", " word8 word9"),
    ("Review: word1 word2\nSentiment:", " neutral"),  # read together with the first
]
TEXT = " ".join(f"word{number % 20}" for number in range(30))


class Heard(logging.Handler):
    """The warnings of our model."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def write_documents(config: Config, path: Path) -> None:
    task, documents = task_of(config.task), []
    for row in load_parallel(task, config.task).splits["test"]:
        (source,) = row.sources
        assert source is not None and row.label is not None
        texts = {"text": row.target.fields["text"], "text_en": source.fields["text"], "none": ""}
        documents.append(texts | {"label": task.labels[row.label]})
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))


def by_our_harness(config: Config) -> dict[str, Any]:
    cache = open_run(config, train=config.recipe.trains)
    assert {len(tokens) for tokens in cache.label_tokens} == {1}
    if config.recipe.trains:
        train_together([(config, cache)], evaluate=False)
    found = {}
    for answers, whole in (("ranked", False), ("generated", True))[: 1 + (config.late is None)]:
        overrides = [f"evaluate.answers={answers}", f"evaluate.whole_model={whole}"]
        evaluate_run(load_config(config.run_dir, overrides), cache)
        found[answers] = read_predictions(Path(config.run_dir) / PREDICTIONS)
        if not whole:
            make_room()
    return found


def by_lm_eval(config: Config, tasks: TaskManager, names: Sequence[str], **arguments: Any) -> dict[str, Any]:
    heard = Heard()
    logging.getLogger("lm_eval.flare_ds").addHandler(heard)
    found = evaluate(FlareModel(config.run_dir, **arguments), tasks.load(list(names)), bootstrap_iters=0)
    logging.getLogger("lm_eval.flare_ds").removeHandler(heard)
    samples = {name: [sample["filtered_resps"] for sample in found["samples"][name]] for name in names}
    return {"samples": samples, "results": found["results"], "heard": heard.messages}


def of_base(lm: Any) -> dict[str, Any]:
    pairs = [Instance("loglikelihood", {}, pair, 0, ("task", number, 1)) for number, pair in enumerate(PAIRS)]
    texts = [Instance("loglikelihood_rolling", {}, (text,), 0, ("task", 0, 1)) for text in (TEXT, "word1")]
    return {"pairs": lm.loglikelihood(pairs), "texts": lm.loglikelihood_rolling(texts)}


def of_short_rows(lm: FlareModel) -> list[str]:
    """What is heard when the second of two contexts does not fit, nor its source, the same text."""
    heard = Heard()
    logging.getLogger("lm_eval.flare_ds").addHandler(heard)
    pairs = [("word1", " word2"), (TEXT, " word2")]
    lm.loglikelihood([short_row("loglikelihood", pair, n) for n, pair in enumerate(pairs)])
    written = [(context, {"until": ["e"], "max_gen_toks": 2}) for context, _ in pairs]
    lm.generate_until([short_row("generate_until", pair, n) for n, pair in enumerate(written)])
    logging.getLogger("lm_eval.flare_ds").removeHandler(heard)
    return heard.messages


def short_row(kind: str, asked: tuple[str, Any], number: int) -> Instance:
    return Instance(kind, {"same": asked[0]}, asked, 0, ("task", number, 1))


def refusal(config: Config) -> str:
    lm = FlareModel(config.run_dir, doc_to_source=SOURCE)
    try:
        lm.generate_until([Instance("generate_until", {}, PAIRS[0], 0, ("task", 0, 1))])
    except ConfigError as error:
        return str(error)
    return ""


def main(tasks: str, out: str, *paths: str) -> None:
    configs = {path: load_config(path) for path in paths}
    write_documents(configs[paths[0]], Path(tasks) / "documents.jsonl")
    found: dict[str, Any] = {config.method: {"ours": by_our_harness(config)} for config in configs.values()}
    manager = TaskManager(include_path=tasks, include_defaults=False)
    for config in configs.values():
        answers = found[config.method]
        names = ("mood", "write", "stop") if config.late is None else ("mood",)
        answers["fused"] = by_lm_eval(config, manager, names, doc_to_source=SOURCE)
        if config.late is not None:
            answers["refused"] = refusal(config)
        if config.needs_source:
            answers["without"] = by_lm_eval(config, manager, ("mood",))
            answers["empty"] = by_lm_eval(config, manager, ("mood",), doc_to_source="none")
    base = next(config for config in configs.values() if config.method == "zero_shot")
    # max_length cuts the text into windows; the toy tokenizer begins every text with <bos>
    hf = {"pretrained": base.model.base, "dtype": "float32", "device": "cpu", "batch_size": 3}
    found["base"] = {
        "ours": of_base(FlareModel(base.run_dir, max_length=24)),
        "hf": {
            "pairs": of_base(HFLM(**hf))["pairs"],
            "texts": of_base(HFLM(**hf, max_length=24, add_bos_token=False))["texts"],
        },
    }
    found["short"] = of_short_rows(FlareModel(base.run_dir, max_length=24))
    behind = next(config for config in configs.values() if config.method == "source_prefix")
    found["short_behind"] = of_short_rows(FlareModel(behind.run_dir, doc_to_source="same", max_length=24))
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
