"""What can go wrong that a user can mend: one small tree, each error saying what, where and how to fix it.

Anything raised from here is printed by the command line as one clear message, without a traceback.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


class FlareError(Exception):
    """A problem the user can mend.

    Args:
        problem: what is wrong, naming the setting, file or row and the value found there.
        fix: what to do about it, as a sentence or a command.

    Attributes:
        shared: whether every rank raises it, so that one of them tells it for all.
    """

    shared = False

    def __init__(self, problem: str, *, fix: str) -> None:
        super().__init__(f"{problem}\n  fix: {fix}")
        self.problem = problem
        self.fix = fix

    def __reduce__(self) -> tuple[object, ...]:
        """Survive pickling: ranks tell each other what went wrong."""
        return partial(type(self), fix=self.fix), (self.problem,)


Kept = TypeVar("Kept", bound=FlareError)


def kept(error: Kept) -> Kept:
    """An error that is told later, without the frames it came through: they would keep what they hold, a model say."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


class ConfigError(FlareError):
    """A setting is unknown, of the wrong type, out of range, or at odds with another."""


def together(
    errors: Sequence[FlareError], origin: str, *, fix: str = "correct all of them; nothing has been done yet"
) -> FlareError:
    """One error that tells them all: the only one as it is, several as a list.

    Args:
        errors: at least one; the kind is that of the first.
        origin: where all of them were found.
        fix: of several.
    """
    if len(errors) == 1:
        return errors[0]
    told = "".join(f"\n  {number}. {error.problem}: {error.fix}" for number, error in enumerate(errors, start=1))
    error = type(errors[0])(f"{len(errors)} problems in {origin}{told}", fix=fix)
    error.shared = all(one.shared for one in errors)
    return error


class Asking:
    """Asks on where something is wrong already, so that all of it is told at once.

    Attributes:
        wrong: what is, in the order it was found.
    """

    def __init__(self) -> None:
        self.wrong: list[FlareError] = []

    def of(self, question: Callable[..., T], *about: Any) -> T | None:
        """The answer; None where it is an error."""
        try:
            return question(*about)
        except FlareError as error:
            self.wrong.append(error)
            return None

    def tell(self, origin: str) -> None:
        """Raise all that is wrong, if anything is; see `together`.

        Raises:
            FlareError: all of it.
        """
        if self.wrong:
            raise together(self.wrong, origin)


class DataError(FlareError):
    """Task data is missing, malformed, or its two sides do not match."""


class CacheError(FlareError):
    """A token cache is missing, incomplete, damaged, or was built from something else."""


class FetchError(FlareError):
    """A model or data set could not be fetched, or is not the file it should be."""


class CheckpointError(FlareError):
    """An adapter, a trainer state or a merged model cannot be read, or does not fit."""


class NotFiniteError(FlareError):
    """A loss, a gradient or a score is infinite or not a number, so nothing that follows from it means anything."""


class HostError(FlareError):
    """This machine lacks something: a compiler, memory, disk, a working process group."""


class RankFailed(Exception):
    """An error of one rank that no user is expected to mend, raised on all of them.

    Args:
        message: which rank, where, and what it met.
        trace: its traceback.
    """

    shared = True

    def __init__(self, message: str, trace: str) -> None:
        super().__init__(message)
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        """Survive pickling."""
        return RankFailed, (str(self), self.trace)


class ToBeContinued(Exception):
    """No failure: the run was asked to stop, its state is saved, and the same command goes on."""


Told = TypeVar("Told", bound=FlareError | RankFailed)


def on_every_rank(error: Told) -> Told:
    """An error that every rank raises alike, so that one of them tells it for all."""
    error.shared = True
    return error
