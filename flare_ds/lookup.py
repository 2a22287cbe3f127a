"""Sequences whose items are made or read one at a time, when they are looked up."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar, overload

T = TypeVar("T", covariant=True)


class Lookup(Sequence[T]):
    """A sequence by its length and `look_up`; it has no slices, which would hold many items at once."""

    @abstractmethod
    def look_up(self, index: int) -> T:
        """The item at a place from 0 to the length less one."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        assert isinstance(index, int), "items are looked up one by one"
        return self.look_up(range(len(self))[index])
