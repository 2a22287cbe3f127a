"""Predicting for free texts, alone or with their sources: the only place that tokenizes at run time.

Rows are batched and shared among ranks as in evaluation, so what is said of one does not depend on the others.

Legend: n rows, one for each window of an example; B rows of a micro-batch, K label words.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from flare_ds.config import Config
from flare_ds.data.cache.rows import FURTHER_CUT, RowEncoder
from flare_ds.data.collate import Batch, StoredStates
from flare_ds.data.label_trie import LabelTrie
from flare_ds.data.mt_tokens import load_mt_tokenizer
from flare_ds.data.parallel import ParallelRow
from flare_ds.data.rows_read import rows_read
from flare_ds.evaluation.answers import Written, best_windows
from flare_ds.evaluation.batches import Ask, ask_rows, longest_prompts, streams_of
from flare_ds.evaluation.evaluate import open_trained
from flare_ds.evaluation.finite import not_finite, refuse_not_finite
from flare_ds.evaluation.free_texts import FreeTexts
from flare_ds.evaluation.generate import eos_ids, generate, with_whole_head
from flare_ds.evaluation.ranked import label_scores
from flare_ds.evaluation.same_questions import check_same_questions
from flare_ds.models.limits import check_positions
from flare_ds.models.loading import load_shape, load_tokenizer
from flare_ds.tasks.base import Task
from flare_ds.training.engine import RunningModel
from flare_ds.training.hub_names import settle_hub_names
from flare_ds.training.process_group import join_process_group, rank
from flare_ds.training.rank_zero import agreed, on_rank_zero
from flare_ds.training.states import for_free_text, free_text_states

T = TypeVar("T")


@dataclass(frozen=True)
class Prediction:
    """What the model says of one example.

    Attributes:
        id: the example's.
        text: the likeliest label word, or what the model wrote.
        probabilities: of the label words, where they were ranked.
        log_probability: mean over the tokens written, where they were.
    """

    id: str
    text: str
    probabilities: Mapping[str, float] | None = None
    log_probability: float | None = None

    @property
    def record(self) -> dict[str, str | float | None]:
        """A flat line of a file: id, prediction, and probability_WORD for each label word, or log_probability."""
        about = {"id": self.id, "prediction": self.text}
        if self.probabilities is None:
            return {**about, "log_probability": self.log_probability}
        return {**about, **{f"probability_{word}": share for word, share in self.probabilities.items()}}


def rank_labels(config: Config, task: Task, rows: Sequence[ParallelRow]) -> list[Prediction]:
    """The probability of each label word for each row; a collective, with the same result on every rank.

    Args:
        config: of a trained run, or of a method that trains nothing.
        task: its task.
        rows: the texts that the method reads; a row whose sources are None is read without them.

    Raises:
        CheckpointError: the run has no adapter that fits.
        ConfigError: a text is longer than the base's positions; or see `check_same_questions`.
        DataError: the prompt does not fit even without any text.
        NotFiniteError: a score is not finite.
    """
    opened = _open(for_free_text(config), task, rows)

    trie = LabelTrie(opened.encoder.label_tokens)

    def ask(batch: Batch, _rows: list[int]) -> list[list[float]]:
        return label_scores(opened.running, batch, trie, opened.config).exp().tolist()

    shares_nK = opened.ask(ask)
    _refuse_not_finite(zip((row.id for row in rows), shares_nK, strict=True))
    chances = [dict(zip(opened.encoder.words, shares_K, strict=True)) for shares_K in shares_nK]
    return [
        Prediction(row.id, max(of_row, key=of_row.__getitem__), of_row)
        for row, of_row in zip(rows, chances, strict=True)
    ]


def write_answers(config: Config, task: Task, rows: Sequence[ParallelRow]) -> list[Prediction]:
    """The answer decoded for each row, as `config.generate` says; a collective, see `rank_labels`.

    Of a text too long for one prompt, the likeliest window answers, as in evaluation.

    Raises:
        ConfigError: the run's head cannot generate, or see `rank_labels`.
        CheckpointError: see `rank_labels`.
        DataError: see `rank_labels`.
        NotFiniteError: see `rank_labels`.
    """
    opened = _open(for_free_text(with_whole_head(config)), task, rows, written=config.generate.max_new_tokens)
    eos = eos_ids(opened.running.model.base, opened.encoder.form.eos_id)

    def ask(batch: Batch, numbers: list[int]) -> list[Written]:
        decoded = generate(opened.running, batch, opened.config, eos=eos, rows=numbers)
        return [Written(answer.text(opened.tokenizer), answer.log_probability, answer.ended) for answer in decoded]

    said = opened.ask(ask)
    ids = (rows[row].id for row in opened.texts.examples.tolist())
    _refuse_not_finite(zip(ids, ([answer.log_probability] for answer in said), strict=True))
    best = best_windows(opened.texts.examples, [answer.log_probability for answer in said])
    return [
        Prediction(row.id, said[window].text, log_probability=said[window].log_probability)
        for row, window in zip(rows, best.tolist(), strict=True)
    ]


def _refuse_not_finite(scored: Iterable[tuple[str, Sequence[float]]]) -> None:
    on_rank_zero(partial(refuse_not_finite, not_finite(scored), "rows"))


@dataclass(frozen=True)
class _Opened:
    """A run's model, and the texts it is to read."""

    config: Config
    running: RunningModel
    tokenizer: PreTrainedTokenizerBase
    encoder: RowEncoder
    texts: FreeTexts
    stored: StoredStates | None

    def ask(self, ask: Ask[T]) -> list[T]:
        """Ask something of every row, as the method reads it."""
        self.running.root.eval()
        read = rows_read(self.texts, self.config, self.encoder.form)
        return ask_rows(ask, read, self.config, streams=streams_of(self.config), what="predict", stored=self.stored)


def _open(config: Config, task: Task, rows: Sequence[ParallelRow], *, written: int = 1) -> _Opened:
    """Open what is needed to ask for so many tokens behind each prompt, of which the last is only predicted."""
    join_process_group()
    settle_hub_names(config)
    tokenizer = agreed(partial(load_tokenizer, config.model))
    on_rank_zero(partial(check_same_questions, config, task, tokenizer))
    mt_tokenizer = agreed(partial(load_mt_tokenizer, config.source)) if config.reads_mt_encoder else None
    encoder = RowEncoder(task, tokenizer, config, mt_tokenizer)
    encoded = encoder.encode("test", rows)
    if rank() == 0 and (cut := encoded.counts.get(FURTHER_CUT)):
        print(f"warning: {cut} rows do not fit unless all of their texts are cut", file=sys.stderr)
    texts = FreeTexts(encoded)
    longest = int(longest_prompts(rows_read(texts, config, encoder.form), streams_of(config)).max())
    check_positions(load_shape(config.model), longest + written - 1, of="the longest text with its prompt and answer")
    stored = None
    if mt_tokenizer is not None:
        stored = free_text_states(config, [texts.prompt("mt", row).tolist() for row in range(len(texts))])
    running = open_trained(config, label_tokens=encoder.label_tokens)
    return _Opened(config, running, tokenizer, encoder, texts, stored)
