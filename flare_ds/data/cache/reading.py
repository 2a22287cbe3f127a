"""What a model reads of each example, stream by stream, so that every prompt fits.

                  target                              each source
    label words   the end of the text is cut          likewise
    training      one window, around the answer       one window, around its own answer; where it has none, around the
                                                      same place
    evaluation    windows side by side, a row each    one window for each of them, around the same place

Where the source is answered in the target's place, source and target change places in the last line.

A place is where something stands in a text, as a share of its length. In training the answer stands anywhere in its
window, at a share that is the row's own, and the same in every stream: were it always the middle, a model would learn
to look there, and at test it is there as seldom as anywhere. What still does not fit is dropped from training and
validation; of a test row the other fields are cut too.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from flare_ds.data.cache.windows import Fields, Wanted, Window, Windows
from flare_ds.data.parallel import ParallelRow, Side
from flare_ds.data.streams import source_streams
from flare_ds.tasks.base import Answer, Split

_NOTHING = Window(0, 0, [])


@dataclass(frozen=True)
class Reading:
    """One row to be.

    Attributes:
        example: number of the example among those given.
        place: what it is about.
        before: share of what is shown beside it that stands before it.
        windows: what each stream shows; an empty prompt where the example has no such side.
    """

    example: int
    place: float
    before: float = 0.5
    windows: dict[str, Window] = field(default_factory=dict)


@dataclass(frozen=True)
class ExampleReader:
    """Chooses what is read of the examples of one task.

    Attributes:
        windows: finds windows of its long field in each stream, whose prompts may be in a language of their own.
        free_answers: whether its answers are free text.
        answered: the stream whose text is answered, where an example has it; else the target's is.
    """

    windows: Mapping[str, Windows]
    free_answers: bool
    answered: str = "target"

    def read(self, split: Split, rows: Sequence[ParallelRow]) -> list[Reading]:
        """One reading of each example, or several side by side; some may be longer than is allowed."""
        if self.slides(split):
            readings = self._slide(rows)
        else:
            shares = [_share_of(row.id) if self.free_answers else 0.5 for row in rows]
            readings = [Reading(number, self._place(split, row), shares[number]) for number, row in enumerate(rows)]
        sides = [_sides(row) for row in rows]
        for stream in sides[0]:
            self._add(stream, split, [sides[reading.example][stream] for reading in readings], readings)
        return readings

    def fits(self, reading: Reading) -> bool:
        """Whether each of its prompts is short enough."""
        return all(self.windows[stream].fits(window) for stream, window in reading.windows.items())

    def squeeze(self, row: ParallelRow) -> ParallelRow:
        """A row whose other fields are cut where they leave too little room for the long one."""
        target, *sources = (
            None if side is None else self._squeeze(stream, side) for stream, side in _sides(row).items()
        )
        assert target is not None
        return replace(row, sources=tuple(sources), target=target)

    def _squeeze(self, stream: str, side: Side) -> Side:
        crowded = self._is_crowded(stream, side)
        return replace(side, fields=self.windows[stream].squeeze(side.fields)) if crowded else side

    def is_crowded(self, row: ParallelRow) -> bool:
        """Whether a prompt of a row does not fit even without any of its long field."""
        return any(side is not None and self._is_crowded(stream, side) for stream, side in _sides(row).items())

    def _is_crowded(self, stream: str, side: Side) -> bool:
        windows = self.windows[stream]
        (prompt,) = windows.tokenize([{**side.fields, windows.long_field: ""}])
        return len(prompt) > windows.most_tokens

    def holds_answer(self, split: Split, row: ParallelRow, reading: Reading) -> bool:
        """Whether the answered prompt shows a right answer whole; in training, the one that is trained on."""
        stream, side = self._answered(row)
        window = reading.windows[stream]
        answers = side.answers[:1] if split == "train" else side.answers
        return any(
            answer.start is not None and window.start <= answer.start and answer.start + len(answer.text) <= window.end
            for answer in answers
        )

    def slides(self, split: Split) -> bool:
        """Whether what is answered in a split is read through several windows where it is long."""
        return self.free_answers and split != "train"

    def text(self, side: Side) -> str:
        """The text that windows are chosen of."""
        return side.fields[self.windows["target"].long_field]

    def shown(self, side: Side, reading: Reading) -> Fields:
        """The fields of a target side as its reading shows them."""
        window = reading.windows["target"]
        return self.windows["target"].shown(side.fields, window.start, window.end)

    def _slide(self, rows: Sequence[ParallelRow]) -> list[Reading]:
        answered, readings = [self._answered(row) for row in rows], []
        for stream in sorted({stream for stream, _ in answered}):
            sides = {number: side for number, (name, side) in enumerate(answered) if name == stream}
            slid = self.windows[stream].slide([side.fields for side in sides.values()])
            for (number, side), windows in zip(sides.items(), slid, strict=True):
                length = max(1, len(self.text(side)))
                readings += [Reading(number, window.middle / length, windows={stream: window}) for window in windows]
        return sorted(readings, key=lambda reading: reading.example)

    def _answered(self, row: ParallelRow) -> tuple[str, Side]:
        """The stream that is answered of a row, and its side."""
        side = _sides(row).get(self.answered)
        return ("target", row.target) if side is None else (self.answered, side)

    def _add(self, stream: str, split: Split, sides: Sequence[Side | None], readings: Sequence[Reading]) -> None:
        """Add a stream to readings that do not show it yet: as much as fits of the side that each has there."""
        lacking = [
            (side, reading) for side, reading in zip(sides, readings, strict=True) if stream not in reading.windows
        ]
        wanted = [self._wanted(split, side, reading) for side, reading in lacking if side is not None]
        windows = iter(self.windows[stream].fit(wanted) if wanted else ())
        for side, reading in lacking:
            reading.windows[stream] = _NOTHING if side is None else next(windows)

    def _wanted(self, split: Split, side: Side, reading: Reading) -> Wanted:
        answer = self._trained_answer(split, side)
        if answer is None:
            return Wanted(side.fields, reading.place * len(self.text(side)), before=reading.before)
        return Wanted(side.fields, _middle(answer), len(answer.text), reading.before)

    def _place(self, split: Split, row: ParallelRow) -> float:
        """Where the answer stands: in the target, or in the first source that has it; else where the text begins."""
        for side in (row.target, *row.sources):
            if side is not None and (answer := self._trained_answer(split, side)) is not None:
                return _middle(answer) / len(self.text(side))
        return 0.0

    def _trained_answer(self, split: Split, side: Side) -> Answer | None:
        """The answer that is trained on, where it stands in the text; only training may look at it."""
        if split != "train" or not side.answers or side.answers[0].start is None:
            return None
        return side.answers[0]


def _sides(row: ParallelRow) -> dict[str, Side | None]:
    """What a row has in each stream."""
    return {"target": row.target, **dict(zip(source_streams(len(row.sources)), row.sources, strict=True))}


def _share_of(row_id: str) -> float:
    """Evenly spread between 0 and 1, and always the same for a row."""
    return int(hashlib.sha256(row_id.encode("utf-8")).hexdigest()[:8], 16) / 2**32


def _middle(answer: Answer) -> float:
    assert answer.start is not None
    return answer.start + len(answer.text) / 2
