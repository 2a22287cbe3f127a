"""Which part of a long text a prompt shows, so that it fits: the widest window around a place, or windows side by side.

    fit     one window, as wide as fits, with a place in its middle, or at another share of it, as far as the ends allow
                 |--------------.............|      place at the start: the end is cut
                 |.....[---answer---]........|      training: the answer is inside
    slide   windows that together show all of the text
                 |---------------            |
                 |           ---------------|      neighbours share a quarter of the first of the two, so an answer
                                                     no longer than that is whole in one of them

Widths are found by bisection over tokenized prompts, all rows at once: no tokenizer has to say where its tokens stand.
Ends that lie within a text are moved inwards to the end of a word; where none is near, to that of a letter.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor

from flare_ds.texts import Cuts

Fields = Mapping[str, str]

WINDOWS_VERSION = 2
"""Raised whenever another part of a text would be shown."""


@dataclass(frozen=True)
class Window:
    """Part of a text, from its character `start` up to `end`, and the tokens of the prompt that shows it."""

    start: int
    end: int
    prompt: list[int]

    @property
    def middle(self) -> float:
        """Where it stands, in characters."""
        return (self.start + self.end) / 2


@dataclass(frozen=True)
class Wanted:
    """One row, and which part of its long field it is about.

    Attributes:
        fields: of the row.
        middle: place in the long field, in characters.
        narrowest: characters around that place which a window must show.
        before: share of what it shows besides that stands before them.
    """

    fields: Fields
    middle: float = 0.0
    narrowest: int = 0
    before: float = 0.5


@dataclass(frozen=True)
class _Growth:
    """Windows of every width around one place between two ends; each lies inside all wider ones."""

    cuts: Cuts
    first: int
    last: int
    middle: float
    narrowest: int
    before: float = 0.5

    def of_width(self, width: int) -> tuple[int, int]:
        start, end = self._exact(width)
        least, most = self._least()
        start = start if start == self.first else min(least, self.cuts.start(start, before=least))
        return start, end if end == self.last else max(most, self.cuts.end(end, beyond=most))

    def _exact(self, width: int) -> tuple[int, int]:
        start = floor(self.middle - self.narrowest / 2 - self.before * (width - self.narrowest))
        start = max(self.first, min(start, self.last - width))
        return start, start + width

    def _least(self) -> tuple[int, int]:
        """What the narrowest shows: whole letters, or nothing."""
        start, end = self._exact(self.narrowest)
        start = max(self.first, self.cuts.letter(start))
        return start, self.cuts.letter_end(end) if self.narrowest else start


@dataclass(frozen=True)
class Windows:
    """Chooses windows of the long field of rows whose prompts, which `tokenize` makes, have at most `most_tokens`."""

    tokenize: Callable[[Sequence[Fields]], list[list[int]]]
    long_field: str
    most_tokens: int

    def fit(self, wanted: Sequence[Wanted]) -> list[Window]:
        """One window a row, as wide as fits. Where not even the narrowest does, it is given nevertheless."""
        windows = self._whole([row.fields for row in wanted])
        too_long = [number for number, window in enumerate(windows) if not self.fits(window)]
        growths = [
            _Growth(self._cuts(one.fields), 0, windows[row].end, one.middle, one.narrowest, one.before)
            for row, one in ((row, wanted[row]) for row in too_long)
        ]
        widest = self._widest([wanted[row].fields for row in too_long], growths)
        for row, window in zip(too_long, widest, strict=True):
            windows[row] = window
        return windows

    def slide(self, fields: Sequence[Fields]) -> list[list[Window]]:
        """Windows of each row, from the start of the text to its end; one, if all of it fits.

        Where not even a single letter fits, the window is empty and the last.
        """
        found: list[list[Window]] = [[] for _ in fields]
        windows = dict(enumerate(self._whole(fields)))
        growing = {row: 0 for row, window in windows.items() if not self.fits(window)}
        cuts = {row: self._cuts(fields[row]) for row in growing}
        for row in windows.keys() - growing.keys():
            found[row] = [windows[row]]
        while growing:
            ends = [windows[row].end for row in growing]
            growths = [
                _Growth(cuts[row], start, end, start, min(1, end))
                for (row, start), end in zip(growing.items(), ends, strict=True)
            ]
            widest = self._widest([fields[row] for row in growing], growths)
            for row, end, window in zip(list(growing), ends, widest, strict=True):
                found[row].append(window if self.fits(window) else self._empty(fields[row], window.start))
                if window.end == end or not self.fits(window):
                    del growing[row]
                else:
                    place = window.end - (window.end - window.start) // 4
                    growing[row] = cuts[row].start_back(place, beyond=window.start) or window.end
        self._widen_last(fields, found)
        return found

    def squeeze(self, fields: Fields) -> Fields:
        """Cut the other fields, the longest first, until they leave half of the room to the long field."""
        (template,) = self.tokenize([dict.fromkeys(fields, "")])
        room = replace(self, most_tokens=(self.most_tokens + len(template)) // 2)
        shown = {**fields, self.long_field: ""}
        for name in sorted(fields.keys() - {self.long_field}, key=lambda name: (-len(fields[name]), name)):
            (window,) = replace(room, long_field=name).fit([Wanted(shown)])
            shown[name] = shown[name][: window.end]
            if room.fits(window):
                break
        return {**shown, self.long_field: fields[self.long_field]}

    def fits(self, window: Window) -> bool:
        """Whether its prompt is short enough."""
        return len(window.prompt) <= self.most_tokens

    def _widen_last(self, fields: Sequence[Fields], found: list[list[Window]]) -> None:
        """Let the last of several windows begin as early as fits: it may hold just a few characters."""
        rows = [row for row, windows in enumerate(found) if len(windows) > 1]
        lasts = [found[row][-1] for row in rows]
        growths = [
            _Growth(self._cuts(fields[row]), 0, last.end, last.end, last.end - last.start)
            for row, last in zip(rows, lasts, strict=True)
        ]
        for row, window in zip(rows, self._widest([fields[row] for row in rows], growths), strict=True):
            found[row][-1] = window

    def _widest(self, fields: Sequence[Fields], growths: Sequence[_Growth]) -> list[Window]:
        """The widest window that fits, by bisection; widths are first tried near the expected one, then doubled."""
        best = self._show(fields, [growth.of_width(growth.narrowest) for growth in growths])
        fitting = [growth.narrowest for growth in growths]
        failing = [growth.last - growth.first + 1 if self.fits(best[row]) else 0 for row, growth in enumerate(growths)]
        while active := [row for row in range(len(growths)) if failing[row] - fitting[row] > 1]:
            widths = [
                min((fitting[row] + failing[row]) // 2, max(2 * fitting[row], self.most_tokens)) for row in active
            ]
            shown = [growths[row].of_width(width) for row, width in zip(active, widths, strict=True)]
            tried = self._show([fields[row] for row in active], shown)
            for row, width, window in zip(active, widths, tried, strict=True):
                if self.fits(window):
                    fitting[row], best[row] = width, window
                else:
                    failing[row] = width
        return best

    def _whole(self, fields: Sequence[Fields]) -> list[Window]:
        return self._show(fields, [(0, len(row[self.long_field])) for row in fields])

    def _empty(self, fields: Fields, place: int) -> Window:
        return self._show([fields], [(place, place)])[0]

    def _cuts(self, fields: Fields) -> Cuts:
        return Cuts(fields[self.long_field])

    def _show(self, fields: Sequence[Fields], spans: Sequence[tuple[int, int]]) -> list[Window]:
        shown = [self.shown(row, *span) for row, span in zip(fields, spans, strict=True)]
        prompts = self.tokenize(shown) if shown else []
        return [Window(*span, prompt) for span, prompt in zip(spans, prompts, strict=True)]

    def shown(self, fields: Fields, start: int, end: int) -> Fields:
        """A row's fields as a window shows them."""
        return {**fields, self.long_field: fields[self.long_field][start:end]}
