"""A run as a model of lm-evaluation-harness: importing this module registers it there as `flare_ds`.

    lm-eval asks                 a run answers
    loglikelihood                sums of the answer tokens' log-probabilities, and whether each was the likeliest
    loglikelihood_rolling        the same of whole texts; they have no prompt, so nothing is fused
    generate_until               what it decodes, cut at the stop strings

All ranks are asked everything and share the rows among themselves, as in our own evaluation: to lm-eval they are one,
and what is answered does not depend on how many there are.

Legend: B rows, N answer positions, V the vocabulary.
"""

import json
from collections.abc import Callable, Hashable, Sequence
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch

from flare_ds.exceptions import ConfigError, HostError
from flare_ds.extras import install

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM, CacheHook
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text, resolve_max_length
except ImportError as error:
    raise HostError(f"the package lm-eval is not installed, or not whole ({error})", fix=install("lm-eval")) from error

from torch import Tensor

from flare_ds.batches.batching import MicroBatch
from flare_ds.batches.collate import Batch, collate
from flare_ds.batches.rows_read import rows_read
from flare_ds.batches.workload import streams_of
from flare_ds.evaluation.answerable import refuse_to_write
from flare_ds.evaluation.batches import Ask, ask_rows
from flare_ds.evaluation.evaluate import open_trained
from flare_ds.evaluation.finite import not_finite, refuse_not_finite
from flare_ds.evaluation.generate import Decoded, eos_ids, generate
from flare_ds.evaluation.late import base_alone
from flare_ds.evaluation.lm_eval_rows import RequestEncoder, TokenRow, rows_of
from flare_ds.evaluation.lm_eval_settings import decoding_settings, row_length, run_settings, source_templates, warn
from flare_ds.models.loading import load_shape, load_tokenizer
from flare_ds.runs.hub_names import settle_hub_names
from flare_ds.runtime.gathered_base import base_gathered
from flare_ds.runtime.joining import join_process_group
from flare_ds.runtime.process_group import world_size
from flare_ds.runtime.rank_zero import agreed, on_rank_zero
from flare_ds.tokenizing.plain_text import encode_behind

T = TypeVar("T")
LogLikelihood = tuple[float, bool]


@register_model("flare_ds")
class FlareModel(LM):
    """A run's model, whatever its method, to answer lm-eval's requests.

    Args:
        run: a run directory; or a config, for a method that trains nothing.
        doc_to_source: what a source's prompt is: a field of the documents or a jinja template over them, as
            doc_to_text; a list of them where the run has several sources. None: the run is unfused.
        max_length: most tokens in a row (None: as many as the base has positions).
        batch_size: evaluate.batch_size; "auto": the run's.
        max_batch_size: not used.
        device: not used; DeepSpeed's accelerator is (DS_ACCELERATOR).
        settings: further settings of the run that differ, by name.

    Raises:
        ConfigError: an argument is missing, wrong, or does not suit the run's method.
        CheckpointError: the run's training has not ended, or it has no adapter that fits.
    """

    def __init__(
        self,
        run: str | None = None,
        doc_to_source: str | Sequence[str] | None = None,
        max_length: int | None = None,
        batch_size: int | str = "auto",
        max_batch_size: int | None = None,
        device: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.config = config = run_settings(run, batch_size, settings)
        join_process_group()
        settle_hub_names(config)
        self.tokenizer = agreed(load_tokenizer, config.model)
        shape = agreed(load_shape, config.model)
        longest = row_length(max_length, resolve_max_length(shape.config, self.tokenizer))
        templates = source_templates(config, doc_to_source)
        joint = config.recipe.reads in ("joint", "behind")
        self.encoder = RequestEncoder(self.tokenizer, templates, longest, joint=joint)
        self.running = open_trained(config, shape=shape, label_tokens=[])
        self.running.root.eval()

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Refuse lm-eval's chats.

        Raises:
            ConfigError: always.
        """
        problem = "lm-eval's --apply_chat_template renders a context as text, whose control tokens would stay text here"
        raise ConfigError(problem, fix="leave it out; a run with task.chat=true is scored with flare-ds evaluate")

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Refuse lm-eval's store of answers where it would mix up documents.

        Raises:
            ConfigError: it finds answers by the target's text alone, but the run reads a source as well; or there are
                several ranks, each of which has a store of its own.
        """
        if world_size() > 1:
            # A rank that finds in its store what another does not would ask other rows, and all would wait for ever.
            raise ConfigError(
                f"lm-eval's --use_cache keeps one cache per rank, but all {world_size()} ranks need the same requests",
                fix="leave --use_cache out, or run on one rank",
            )
        if self.encoder.templates:
            raise ConfigError(
                "lm-eval's --use_cache knows requests by their context, but doc_to_source gives this run more to read",
                fix="leave --use_cache out",
            )
        super().set_cache_hook(cache_hook)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[LogLikelihood]:
        """The log-probability of each continuation, and whether greedy decoding would write it."""
        rows = [self.encoder.scored(request) for request in requests]
        self._say_what_is_cut(rows)
        return self._log_likelihoods(rows)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each text."""
        if self.encoder.templates:
            warn("texts without a context (loglikelihood_rolling) have no prompt to fuse with: they are scored unfused")
        texts = [self.encoder.windows(request.args[0]) for request in requests]
        scores = iter(self._log_likelihoods([row for windows in texts for row in windows]))
        return [sum(next(scores)[0] for _ in windows) for windows in texts]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What is written behind each context, up to the first stop string.

        Raises:
            ConfigError: see `refuse_to_write`.
            NotFiniteError: what the model makes of a context is no number.
        """
        refuse_to_write(self.config)
        groups = _grouped(requests, lambda request: json.dumps(request.args[1], sort_keys=True))
        said = [self._write([requests[number] for number in numbers], numbers) for numbers in groups]
        return _ungrouped(groups, said)

    def _log_likelihoods(self, rows: list[TokenRow]) -> list[LogLikelihood]:
        """Each row's; those that differ in their last token alone are read once."""
        groups = _grouped(rows, lambda row: row.read)
        firsts, weight = [rows[first] for first, *_ in groups], self.config.late
        assert weight != "fitted", "it is settled"

        def ask(batch: Batch, numbers: list[int]) -> list[list[LogLikelihood]]:
            scores_BNV = self._log_probabilities(batch)
            if weight is not None:
                scores_BNV += weight * self._of_sources([firsts[number] for number in numbers])
            return [
                [_log_likelihood(scores_NV, rows[asked].answer) for asked in groups[number]]
                for number, scores_NV in zip(numbers, scores_BNV, strict=True)
            ]

        found = _ungrouped(groups, self._ask(ask, firsts, objective="vocabulary"))
        _refuse_not_finite(range(len(found)), [score for score, _ in found])
        return found

    def _log_probabilities(self, batch: Batch) -> Tensor:
        """Of every token at every answer position: [B, N, V]."""
        logits_BNV: Tensor = self.running.root(batch.to(self.running.device))
        return logits_BNV.float().log_softmax(-1)

    def _of_sources(self, rows: list[TokenRow]) -> Tensor:
        """The same behind the rows' sources, by the frozen base; nothing where there is no source: [B, N, V]."""
        read = rows_read(rows_of(rows), self.config.of_source, self.encoder.form)
        everybody = MicroBatch(np.arange(len(rows)), np.ones(len(rows), np.float32))
        with base_alone():
            batch = collate(read, everybody, streams=("target",), objective="vocabulary", pad_id=0)
            scores_BNV = self._log_probabilities(batch)
        alone_B = torch.tensor([not any(row.sources) for row in rows], device=scores_BNV.device)
        return scores_BNV.masked_fill(alone_B[:, None, None], 0.0)

    def _write(self, requests: list[Instance], numbers: list[int]) -> list[str]:
        """Decode requests that want to be decoded alike; their numbers decide what is drawn."""
        settings = normalize_gen_kwargs(requests[0].args[1])
        config = self.config.model_copy(update={"generate": decoding_settings(settings, self.config)})
        stops: list[str] = settings["until"]
        eos = [*eos_ids(self.running.model.base, self.tokenizer.eos_token_id), *self._stop_tokens(stops)]

        def ask(batch: Batch, rows: list[int]) -> list[Decoded]:
            return generate(self.running, batch, config, eos=eos, rows=[numbers[row] for row in rows])

        rows = [self.encoder.written(request, config.generate.max_new_tokens) for request in requests]
        self._say_what_is_cut(rows)
        with base_gathered(self.running):
            said = self._ask(ask, rows, objective="labels", written=config.generate.max_new_tokens)
        _refuse_not_finite(numbers, [answer.log_probability for answer in said])
        return [postprocess_generated_text(self._text(answer.tokens), stops, None) for answer in said]

    def _say_what_is_cut(self, rows: list[TokenRow]) -> None:
        lost = [row.lost for row in rows if row.lost]
        if lost:
            what = f"{len(lost)} of {len(rows)} rows do not fit in {self.encoder.longest} tokens"
            warn(f"{what}: up to {max(lost)} tokens are cut from the start of a prompt (max_length, num_fewshot)")

    def _stop_tokens(self, stops: list[str]) -> list[int]:
        """The stop strings that are one token: nothing behind them need be decoded."""
        tokens = encode_behind(self.tokenizer, stops)
        return [ids[0] for stop, ids in zip(stops, tokens, strict=True) if len(ids) == 1 and self._text(ids) == stop]

    def _text(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    @torch.no_grad()
    def _ask(self, ask: Ask[T], rows: list[TokenRow], *, objective: str, written: int = 0) -> list[T]:
        if not rows:
            return []
        streams = streams_of(self.config) if any(any(row.sources) for row in rows) else ("target",)
        read = rows_read(rows_of(rows), self.config, self.encoder.form)
        return ask_rows(
            ask,
            self.running,
            read,
            self.config,
            streams=streams,
            what="lm-eval",
            objective=objective,
            written=written,
        )


def _log_likelihood(scores_NV: Tensor, answer: Sequence[int]) -> LogLikelihood:
    tokens_N, scores_NV = torch.tensor(answer, device=scores_NV.device), scores_NV[: len(answer)]
    likeliest = bool((scores_NV.argmax(-1) == tokens_N).all())
    return float(scores_NV.gather(1, tokens_N[:, None]).sum()), likeliest


def _refuse_not_finite(numbers: Sequence[int], scores: Sequence[float]) -> None:
    """Refuse to go on with requests, known by their numbers, of which a score is not finite."""
    odd = not_finite((f"number {number}", [score]) for number, score in zip(numbers, scores, strict=True))
    on_rank_zero(refuse_not_finite, odd, "requests")


def _grouped(things: Sequence[T], key: Callable[[T], Hashable]) -> list[list[int]]:
    """The places of things with the same key, by where the first of them stands."""
    groups: dict[Hashable, list[int]] = {}
    for place, thing in enumerate(things):
        groups.setdefault(key(thing), []).append(place)
    return list(groups.values())


def _ungrouped(groups: list[list[int]], answers: list[list[T]]) -> list[T]:
    """The answers of each group's things, back in the order of the things."""
    found = dict(zip(chain(*groups), chain(*answers), strict=True))
    return [found[place] for place in range(len(found))]
