"""Whether the base can read a cache and say its answers: an embedding for each of its tokens, a position for each place
in its rows, label words no longer than what is written.
"""

from collections.abc import Sequence

from transformers import PreTrainedModel

from flare_ds.batches.rows_read import rows_read
from flare_ds.batches.workload import positions
from flare_ds.config import Config
from flare_ds.data.cache import Cache
from flare_ds.data.label_trie import LabelTrie
from flare_ds.data.row_answers import Rows
from flare_ds.data.streams import is_base
from flare_ds.evaluation.answerable import generates
from flare_ds.exceptions import ConfigError
from flare_ds.failures import warn
from flare_ds.model_files.limits import check_ids, check_positions, embedding_rows


def check_readable(config: Config, cache: Cache, shape: PreTrainedModel) -> None:
    """Check that the base can read all rows of a cache, as the run's method reads them, and what stands behind.

    Warns where the base can read them, but was not trained with rows so long.

    Raises:
        ConfigError: it cannot, with both numbers; or a label word is too long to be written.
    """
    if config.evaluate.answers == "generated" and cache.labels:
        _check_label_words(cache, config.generate.max_new_tokens)
    check_ids(_largest_id(cache, shape), shape, of=f"the cache {cache.path}")
    for split in cache.manifest.splits:
        longest = max(
            _longest_row(one, rows_read(cache.split(split), one, cache.manifest), split, cache.label_tokens)
            for one in config.readings
        )
        if warning := check_positions(shape, longest, of=f"the longest row of the {split} split"):
            warn(warning)


def _check_label_words(cache: Cache, most: int) -> None:
    """Refuse label words that are too long to be written, naming the longest."""
    length, word = max((len(tokens), word) for word, tokens in zip(cache.labels, cache.label_tokens, strict=True))
    if length > most:
        problem = f"the label word {word!r} has {length} tokens, more than generate.max_new_tokens={most}"
        raise ConfigError(problem, fix=f"set generate.max_new_tokens={length} or more")


def _largest_id(cache: Cache, shape: PreTrainedModel) -> int:
    """The largest id in use; the tokens are only looked at where the tokenizer knows more than the base."""
    manifest = cache.manifest
    framing = [*manifest.prefix_ids, *manifest.suffix_ids, *manifest.newline_ids]
    words = [token for tokens in manifest.label_tokens for token in tokens]
    largest = max([manifest.pad_id, manifest.eos_id or 0, *framing, *words])
    if manifest.vocabulary_size > embedding_rows(shape):
        of_base = [stream for stream in cache.streams if is_base(stream)]
        splits = [cache.split(name) for name in manifest.splits]
        largest = max([largest, *(split.largest_id(stream) for split in splits for stream in of_base)])
    return largest


def _longest_row(config: Config, rows: Rows, split: str, label_tokens: Sequence[Sequence[int]]) -> int:
    """Positions of a split's longest row, with its answer where that is read or written."""
    if split == "train" and config.train.objective == "vocabulary" and config.recipe.trains:
        return int(positions(rows, config, rows.lengths).max()) - 1  # the last token is only predicted
    longest = int(positions(rows, config, rows.prompt_lengths).max())
    if split != "train" and (generates(config) or (split == "test" and config.evaluate.answers == "generated")):
        return longest + config.generate.max_new_tokens - 1
    return longest + LabelTrie(label_tokens).depth
