"""Right answers that no model can say: they have more tokens than `generate.max_new_tokens`."""

from collections.abc import Sequence
from functools import cache

from flare_ds.data.cache import Cache
from flare_ds.data.cache.encode import Form
from flare_ds.exceptions import ConfigError
from flare_ds.failures import warn
from flare_ds.runtime.process_group import rank
from flare_ds.texts import one_line


def unsayable(golds: Sequence[Sequence[str]], form: Form, most: int) -> float:
    """The share of examples of whose right answers even the shortest is too long; a warning says what would do.

    Args:
        golds: the right answers of each example.
        form: how answers are tokenized.
        most: tokens that are decoded.
    """
    texts = [one_line(gold) for of_example in golds for gold in of_example]
    lengths = iter(map(len, form.words(texts)))
    shortest = [min(next(lengths) for _ in of_example) for of_example in golds]
    if number := sum(length > most for length in shortest):
        _warn(
            f"{number:,} of {len(golds):,} right answers have more tokens than generate.max_new_tokens={most} and can "
            f"never be said; {max(shortest)} would do for all"
        )
    return number / len(golds)


def check_label_words(cache: Cache, most: int) -> None:
    """Refuse label words that are too long to be written.

    Raises:
        ConfigError: naming the longest.
    """
    length, word = max((len(tokens), word) for word, tokens in zip(cache.labels, cache.label_tokens, strict=True))
    if length > most:
        problem = f"the label word {word!r} has {length} tokens, more than generate.max_new_tokens={most}"
        raise ConfigError(problem, fix=f"set generate.max_new_tokens={length} or more")


@cache
def _warn(message: str) -> None:
    """Say it once: a run validates many times."""
    if rank() == 0:
        warn(message)
