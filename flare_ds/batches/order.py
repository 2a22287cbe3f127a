"""The order of the examples: which rows each step trains on, from the seed and the step's number alone.

So a run resumes anywhere, on any number of ranks, without a look at the steps before. Every row comes once an epoch.
An order keeps the last two epochs it was asked for: a sort of all rows is for an epoch, not for a step.

    RowOrder     a fixed number of rows a step; steps run on across the ends of epochs
    NamedOrder   the same, in an order of the rows' names: splits that share rows have them at the same steps
    TokenOrder   as many rows a step as fit a budget of tokens, all of similar length

Shapes: N rows of a split, B rows of a step, S steps of an epoch.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache

import numpy as np

from flare_ds.batches.cutting import cut


@dataclass(frozen=True, eq=False)
class RowOrder:
    """Steps of so many rows. Each epoch is a permutation of the rows, and steps run on across epochs."""

    num_rows: int
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> Fraction:
        """Steps in which every row comes once; the last one may be shared with the next epoch."""
        return Fraction(self.num_rows, self.batch_size)

    def rows(self, step: int) -> np.ndarray:
        """Rows of a step, counted from 0: int64 [B]. Needs nothing of the steps before."""
        assert step >= 0
        positions_B = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs_B, places_B = np.divmod(positions_B, self.num_rows)
        return np.concatenate([self._epoch(int(e))[places_B[epochs_B == e]] for e in np.unique(epochs_B)])

    @cached_property
    def _epoch(self) -> Callable[[int], np.ndarray]:
        """The rows of an epoch: int64 [N]."""
        return lru_cache(maxsize=2)(self._sorted)

    def _sorted(self, epoch: int) -> np.ndarray:
        return _permutation(self.num_rows, self.seed, epoch)


@dataclass(frozen=True, eq=False)
class NamedOrder(RowOrder):
    """Each epoch sorts the rows by what their names come to in it, so a row's place hangs little on the other rows.

    split a    s t u v w x     epoch 0    v s | x u | w t
    split b    s   u v w x                v s | x u | w         of these six rows it lacks one
    """

    keys_N: np.ndarray
    """A number for each row's name: uint64 [N]; see `name_keys`."""

    def _sorted(self, epoch: int) -> np.ndarray:
        """By their keys, scattered anew for each epoch (the finaliser of splitmix64)."""
        mixed_N = self.keys_N ^ np.random.PCG64((self.seed, epoch)).random_raw()
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed_N = (mixed_N ^ (mixed_N >> np.uint64(shift))) * np.uint64(factor)
        return np.argsort(mixed_N ^ (mixed_N >> np.uint64(31)), kind="stable")


def name_keys(names: Iterable[str]) -> np.ndarray:
    """Numbers for names, as good as different for different ones: uint64 [N]."""
    digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(b"".join(digests), "<u8")


@dataclass(frozen=True, eq=False)
class TokenOrder:
    """Steps that each hold as many rows as fit a budget of tokens.

        lengths, shuffled       33 90 41 35 89 92
        by bucket               90 89 92 | 41 | 33 35      within a bucket as the shuffle left them
        counted as              92 92 92 | 41 | 35 35      as long as the bucket's longest
        steps of 190 tokens     90 89 | 92 41 | 33 35      and these shuffled

    What they count as is the same in every epoch, and so are the cuts; only the rows between them change. That is why
    the number of steps is known from the lengths, and a step is found without those before.

    Attributes:
        lengths: tokens of each row, at least 1 and at most the budget: int [N].
        tokens: most tokens in a step: its rows times what its longest counts as.
        seed: of the shuffles.
    """

    lengths: np.ndarray
    tokens: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every row comes once: S."""
        return len(self._cuts)

    def rows(self, step: int) -> np.ndarray:
        """Rows of a step, counted from 0: int64 [B]. Needs nothing of the steps before."""
        assert step >= 0
        epoch, place = divmod(step, self.steps_per_epoch)
        rows_N, cuts_S = self._epoch(epoch)
        start, end = self._cuts[cuts_S[place]]
        return rows_N[start:end]

    @cached_property
    def _epoch(self) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
        """The rows of an epoch, longest bucket first: int64 [N]; and which cut of them each step is: int64 [S]."""
        return lru_cache(maxsize=2)(self._sorted)

    def _sorted(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        shuffled_N = _permutation(len(self.lengths), self.seed, epoch)
        by_bucket_N = shuffled_N[np.argsort(-self._counted[shuffled_N], kind="stable")]
        return by_bucket_N, _permutation(self.steps_per_epoch, self.seed, epoch, 1)

    @cached_property
    def _counted(self) -> np.ndarray:
        """The length of the longest row of each row's bucket: int64 [N]."""
        _, buckets_N = np.unique(_rounded_up(self.lengths), return_inverse=True)
        longest = np.zeros(len(self.lengths), np.int64)
        np.maximum.at(longest, buckets_N, self.lengths)
        return longest[buckets_N]

    @cached_property
    def _cuts(self) -> list[tuple[int, int]]:
        assert self.lengths.min() >= 1 and self.lengths.max() <= self.tokens
        return cut(np.sort(self._counted)[::-1].tolist(), tokens=self.tokens, rows=None)


Order = RowOrder | TokenOrder
"""An endless order of steps."""


def _rounded_up(lengths: np.ndarray) -> np.ndarray:
    """Lengths rounded up to four binary digits: eight buckets an octave, of at most 1/8."""
    spare_digits = np.maximum(np.frexp(lengths)[1] - 4, 0).astype(np.int64)
    return -(-lengths.astype(np.int64) >> spare_digits) << spare_digits


def _permutation(count: int, *seed: int) -> np.ndarray:
    """Sorting raw generator output: numpy promises this stream forever, unlike that of `Generator.permutation`."""
    keys = np.random.PCG64(seed).random_raw(count)
    return np.argsort(keys, kind="stable")
