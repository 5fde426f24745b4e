"""Plan, then read: which samples make which row follows from lengths, shares and a seed, before a byte is read.

Draws are taken in windows of 65,536, and each window is packed into rows on its own. A window follows from where it starts (how
far each source is, and what it is owed), so a loader that stands in one has to plan that one alone. A step is `batch_size`
rows, whichever windows they are of.

Axes: D draws of a window, R rows, S sources.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from mmdata.errors import ConfigError
from mmdata.loader.mixture import WHOLE, Mixture, evened
from mmdata.loader.pack import pack
from mmdata.loader.source import Source

WINDOW = 65_536
_FEED = 8192
_KEPT = 3


class Cursor(NamedTuple):
    """How far a source is: draws and tokens taken, and what it is owed, in tokens times WHOLE."""

    draws: int = 0
    tokens: int = 0
    owed: int = 0


class Start(NamedTuple):
    """Where a window starts: its number, the rows of all windows before it, a cursor a source."""

    window: int
    first_row: int
    cursors: tuple[Cursor, ...]


@dataclass(frozen=True)
class Window:
    """The draws of a window and their rows; `end` is where the next one starts, null when nothing is left to draw.

    source_D, epoch_D  of which source, and how often the sample was drawn before
    corpus_D, index_D  which of all corpora, and the place there
    tokens_D           what a row takes it to be
    order_D, starts_R  draws in the order of rows, and where rows start among them, (R + 1,)
    planned            the entry of the mixture that the last draw followed
    """

    start: Start
    end: Start | None
    source_D: np.ndarray
    epoch_D: np.ndarray
    corpus_D: np.ndarray
    index_D: np.ndarray
    tokens_D: np.ndarray
    order_D: np.ndarray
    starts_R: np.ndarray
    planned: int

    @property
    def num_rows(self) -> int:
        """Rows in this window."""
        return len(self.starts_R) - 1


class Span(NamedTuple):
    """Rows of one window."""

    window: Window
    rows: range

    def draws(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the draws in these rows, and how many are in each row."""
        starts_R, order_D, rows = self.window.starts_R, self.window.order_D, self.rows
        sizes = starts_R[rows.start + 1 : rows.stop + 1 : rows.step] - starts_R[rows.start : rows.stop : rows.step]
        if len(order_D) == len(starts_R) - 1:  # a row is a draw
            return order_D[rows.start : rows.stop : rows.step], sizes
        parts = [order_D[starts_R[row] : starts_R[row + 1]] for row in rows]
        return np.concatenate(parts) if parts else order_D[:0], sizes


class Step(NamedTuple):
    """A step: its number, its rows, and where the next one starts: window and row."""

    number: int
    spans: tuple[Span, ...]
    after: tuple[Start, int]

    @property
    def num_rows(self) -> int:
        """Rows of all ranks."""
        return sum(len(span.rows) for span in self.spans)

    def of_rank(self, rank: int, world: int) -> tuple[Span, ...]:
        """Return a rank's rows: row r of the step is rank r mod world's."""
        mine, before = [], 0
        for window, rows in self.spans:
            mine.append(Span(window, rows[(rank - before) % world :: world]))
            before += len(rows)
        return tuple(mine)


@dataclass(frozen=True)
class Plan:
    """The whole order. `row_tokens` null: a row is one sample."""

    sources: tuple[Source, ...]
    mixture: Mixture
    batch_size: int
    row_tokens: int | None = None
    window_draws: int = WINDOW
    _windows: OrderedDict[Start, Window] = field(default_factory=OrderedDict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.window_draws < 1:
            raise ConfigError(f"batch_size is {self.batch_size} and window {self.window_draws}", hint="both are at least 1")
        for source in self.sources if self.row_tokens else ():
            assert source.lengths_N is not None
            self._fits(source, source.lengths_N)

    def _fits(self, source: Source, lengths_N: np.ndarray) -> None:
        place = int(lengths_N.argmax())
        if int(lengths_N[place]) > (self.row_tokens or 0):
            part, index = (int(found[0]) for found in source.locate(np.asarray([place])))
            raise ConfigError(
                f"{source.parts[part].corpus.where(index)} has {int(lengths_N[place])} tokens, a row has {self.row_tokens}",
                hint="use longer rows (the trainer's `layout.row_tokens`), or filter long texts when building the corpus",
            )

    @cached_property
    def first(self) -> Start:
        """Where the first window starts."""
        return Start(0, 0, (Cursor(),) * len(self.sources))

    def window(self, start: Start) -> Window:
        """Return the window that starts there; the last few are kept."""
        if start not in self._windows:
            self._windows[start] = self._plan(start)
            if len(self._windows) > _KEPT:
                self._windows.popitem(last=False)
        return self._windows[start]

    def steps(self, start: Start, row: int = 0) -> Iterator[Step]:
        """Yield the steps from a row on; the last one holds what is left."""
        number, spans, missing = (start.first_row + row) // self.batch_size, [], self.batch_size
        while True:
            window = self.window(start)
            while row < window.num_rows:
                stop = min(row + missing, window.num_rows)
                spans.append(Span(window, range(row, stop)))
                missing, row = missing - (stop - row), stop
                if not missing:
                    yield Step(number, tuple(spans), self._after(window, row))
                    number, spans, missing = number + 1, [], self.batch_size
            if window.end is None:
                break
            start, row = window.end, 0
        if spans:
            yield Step(number, tuple(spans), self._after(window, row))

    def _after(self, window: Window, row: int) -> tuple[Start, int]:
        if row < window.num_rows or window.end is None:
            return window.start, row
        return window.end, 0

    def _plan(self, start: Start) -> Window:
        draws = self._only(start) if len(self.sources) == 1 else self._mixed(start)
        source_D, number_D, place_D, tokens_D = (np.asarray(column, np.int64) for column in draws.columns)
        if self.row_tokens:
            order_D, starts_R = self._packed(start, draws, source_D, tokens_D)
        else:
            order_D, starts_R = np.arange(len(place_D)), np.arange(len(place_D) + 1)
        epoch_D, corpus_D, index_D = (np.zeros(len(place_D), np.int64) for _ in range(3))
        before = 0
        for which, source in enumerate(self.sources):
            mine = source_D == which
            epoch_D[mine] = number_D[mine] // source.num
            part_D, index_D[mine] = source.locate(place_D[mine])
            corpus_D[mine] = part_D + before
            before += len(source.parts)
        end = Start(start.window + 1, start.first_row + len(starts_R) - 1, draws.cursors)
        return Window(
            start, end if draws.more else None, source_D, epoch_D, corpus_D, index_D, tokens_D, order_D, starts_R, draws.entry
        )  # fmt: skip

    def _packed(self, start: Start, draws: "_Draws", source_D: np.ndarray, tokens_D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the draws in the order of their rows, and where rows start."""
        owed, orders, sizes = [cursor.owed for cursor in start.cursors], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        over_D, num_rows = np.zeros(0, np.int64), 0
        for (first, shares, entry), (last, _, after) in pairwise([*draws.shares, (len(tokens_D), [], draws.entry)]):
            mine_D = np.concatenate([over_D, np.arange(first, last)])
            order_D, starts_R = pack(tokens_D[mine_D], self.row_tokens or 0)
            order_D, rows_R = mine_D[order_D], np.arange(len(starts_R) - 1)
            # What does not fit into the rows before other weights hold goes into the first ones after.
            room = self.mixture.entries[after][0] * self.batch_size - start.first_row - num_rows
            num = min(len(rows_R), max(room, 0)) if after > entry else len(rows_R)
            if len(self.sources) > 1:
                gain_DS = -np.outer(tokens_D[order_D], np.asarray(shares, np.int64))
                gain_DS[np.arange(len(order_D)), source_D[order_D]] += WHOLE * tokens_D[order_D]
                gain_RS = np.add.reduceat(gain_DS, starts_R[:-1])
                rows_R = evened(gain_RS, owed)
                order_D, starts_R = _rows(order_D, starts_R, rows_R)
                owed = [debt - gain for debt, gain in zip(owed, gain_RS[rows_R[:num]].sum(0).tolist(), strict=True)]
            over_D = order_D[starts_R[num] :]
            orders.append(order_D[: starts_R[num]])
            sizes.append(np.diff(starts_R[: num + 1]))
            num_rows += num
        return np.concatenate(orders), np.concatenate([[0], np.cumsum(np.concatenate(sizes))])

    def _only(self, start: Start) -> "_Draws":
        source, cursor = self.sources[0], start.cursors[0]
        place_D = source.draw(cursor.draws, self.window_draws)
        tokens_D = source.lengths(place_D)
        num = len(place_D)
        taken = Cursor(cursor.draws + num, cursor.tokens + int(tokens_D.sum()))
        columns = (np.zeros(num), np.arange(cursor.draws, taken.draws), place_D, tokens_D)
        more = num == self.window_draws and (source.most is None or taken.draws < source.most)
        entry = len(self.mixture.entries) - 1
        return _Draws(columns, (taken,), more, entry, [(0, [WHOLE], entry)])

    def _mixed(self, start: Start) -> "_Draws":
        feeds = [_Feed(source, cursor.draws) for source, cursor in zip(self.sources, start.cursors, strict=True)]
        owed = [cursor.owed for cursor in start.cursors]
        entry, planned = self._entry_at(start.first_row), 0
        found: list[tuple[int, int, int, int]] = []
        alive = [feed.more for feed in feeds]
        shares = self.mixture.at(entry, alive)
        followed = [(0, shares, entry)]
        while len(found) < self.window_draws and any(alive):
            while planned >= self._room_before(entry + 1, start.first_row):
                entry += 1
                shares = self.mixture.at(entry, alive)
            if shares is not followed[-1][1]:
                followed.append((len(found), shares, entry))
            chosen = max((number for number, share in enumerate(shares) if share), key=owed.__getitem__)
            number, place, length = feeds[chosen].take()
            found.append((chosen, number, place, length))
            planned += length if self.row_tokens else 1
            owed = [debt + share * length for debt, share in zip(owed, shares, strict=True)]
            owed[chosen] -= WHOLE * length
            if not feeds[chosen].more:
                alive[chosen], owed[chosen] = False, 0
                shares = self.mixture.at(entry, alive) if any(alive) else shares
        cursors = tuple(
            Cursor(feed.number, cursor.tokens + feed.tokens, debt)
            for feed, cursor, debt in zip(feeds, start.cursors, owed, strict=True)
        )
        return _Draws(tuple(zip(*found, strict=True)) or ((),) * 4, cursors, any(alive), entry, followed)

    def _entry_at(self, row: int) -> int:
        """Return the entry of the mixture that a window starting at a row begins with."""
        return max(n for n, (step, _) in enumerate(self.mixture.entries) if step * self.batch_size <= row)

    def _room_before(self, entry: int, first_row: int) -> float:
        """Return how much a window takes (tokens, or samples where a row is one) before an entry holds."""
        if entry == len(self.mixture.entries):
            return float("inf")
        return (self.mixture.entries[entry][0] * self.batch_size - first_row) * (self.row_tokens or 1)


def _rows(order_D: np.ndarray, starts_R: np.ndarray, rows_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows in another order."""
    sizes_R = np.diff(starts_R)[rows_R]
    ends_R = np.cumsum(sizes_R)
    places_D = np.repeat(starts_R[:-1][rows_R] - (ends_R - sizes_R), sizes_R) + np.arange(len(order_D))
    return order_D[places_D], np.concatenate([starts_R[:1], ends_R])


class _Draws(NamedTuple):
    """Draws of a window: source, number, place and tokens of each.

    shares  those that were followed: from which draw on, and in which entry of the mixture
    """

    columns: tuple[object, ...]
    cursors: tuple[Cursor, ...]
    more: bool
    entry: int
    shares: list[tuple[int, list[int], int]]


class _Feed:
    """The draws of one source, one after another."""

    def __init__(self, source: Source, number: int) -> None:
        self.source, self.number, self.tokens = source, number, 0
        self._ready: list[tuple[int, int]] = []

    @property
    def more(self) -> bool:
        return self.source.most is None or self.number < self.source.most

    def take(self) -> tuple[int, int, int]:
        """Return the next draw: its number, its place, its tokens."""
        if not self._ready:
            place_D = self.source.draw(self.number, _FEED)
            self._ready = list(zip(place_D.tolist(), self.source.lengths(place_D).tolist(), strict=True))[::-1]
        place, length = self._ready.pop()
        self.number, self.tokens = self.number + 1, self.tokens + length
        return self.number - 1, place, length
