"""All pairs of vectors whose cosine is at least a threshold, exactly, by products of blocks.

Decided here: what counts is the cosine of the numbers given, in float64. A product in a cheaper format only screens: its bound
is lowered by more than that format can err, and each candidate is computed anew in float64. So the same pairs come out
of every device, library, number of threads and size of block. The screen is bfloat16 on a GPU and on CPUs that multiply it in
hardware (AVX512-BF16, AMX), else float32.

Of N x D vectors two blocks are held as float32, or all of them where that fits into `memory_mib`, and one tile of products.
A vector of length 0, or with a number that is not finite, is near nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmdata.dedupe.blocks import WHOLE, Part
from mmdata.dedupe.lines import Lines
from mmdata.dedupe.pairs import Pairs, in_order
from mmdata.errors import RunError

MAX_PAIRS = 100_000_000
_TALL, _WIDE = 4096, 1024  # of a tile: it stays in a core's share of the cache until it has been looked at
_GPU_SIDE = 16384
_BLOCK = 16384  # rows and columns of what tasks share: part of no machine's own
_CHECKED = 1 << 24  # numbers of candidates that are read at once
_GATHERED = 256  # pairs whose numbers are multiplied at once: they stay in the cache
# How far a product of unit vectors can be off: bfloat16 has 8 bits, so 2 * 2^-9 and a little; float32 sums D products.
_BF16_ERR, _FP32_ERR = 4.2e-3, 2.0**-23

Hits = Callable[[Any, Any, float], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Screen:
    """What multiplies: `load` brings unit vectors to it, `hits` gives places of products of at least a bound.

    error_D  how much a product of unit vectors of D numbers may be off
    """

    label: str
    tall: int
    wide: int
    load: Callable[[np.ndarray], Any]
    hits: Hits
    error: float
    error_D: float = 0.0

    def margin(self, dim: int) -> float:
        """Return how much a product may be off."""
        return self.error + self.error_D * dim


def best_screen(device: str | None = None) -> Screen:
    """Return the fastest screen that this machine has; `cpu` asks for one without a GPU, `numpy` for float32 by BLAS."""
    if device == "numpy":
        return numpy_screen()
    import torch

    if device != "cpu" and torch.cuda.is_available():
        return torch_screen("cuda")
    return torch_screen("cpu") if _fast_bf16() else numpy_screen()


def _fast_bf16() -> bool:
    import torch

    asked = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")]
    return any(ask() for ask in asked if ask is not None)


def numpy_screen() -> Screen:
    """Return float32 products by BLAS."""

    def hits(left: np.ndarray, right: np.ndarray, bound: float) -> tuple[np.ndarray, np.ndarray]:
        products = left @ right.T
        at = np.flatnonzero(products.reshape(-1) >= np.float32(bound))
        return at // len(right), at % len(right)

    return Screen("numpy float32", _TALL, _WIDE, lambda block: block, hits, 1e-6, _FP32_ERR)


def torch_screen(device: str) -> Screen:
    """Return bfloat16 products by torch."""
    import torch

    def load(block: np.ndarray) -> Any:  # noqa: ANN401
        return torch.from_numpy(block).to(device=device, dtype=torch.bfloat16)

    def hits(left: Any, right: Any, bound: float) -> tuple[np.ndarray, np.ndarray]:  # noqa: ANN401
        # A product comes out rounded to bfloat16 once more: the margin holds that too.
        row, column = torch.nonzero(left @ right.T >= bound, as_tuple=True)
        return row.cpu().numpy(), column.cpu().numpy()

    tall, wide = (_GPU_SIDE, _GPU_SIDE) if device == "cuda" else (_TALL, _WIDE)
    return Screen(f"torch {device} bfloat16", tall, wide, load, hits, 2 * _BF16_ERR, _FP32_ERR)


class Unit:
    """Vectors as rows of length 1, float32, made where they are asked for, or once where they fit into `memory_mib`."""

    def __init__(self, vectors_ND: np.ndarray | Lines, memory_mib: int = 512) -> None:
        """Take (N, D) float16 or float32, memory-mapped or not."""
        if vectors_ND.ndim != 2:
            raise RunError(f"vectors are (N, D), not of shape {vectors_ND.shape}", hint="give one line a row")
        self._given = vectors_ND
        fits = vectors_ND.size * 4 <= memory_mib << 20
        self._held = _unit(vectors_ND[:]) if fits else None

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._given)

    @property
    def dim(self) -> int:
        """How many numbers a vector has."""
        return int(self._given.shape[1])

    def rows(self, which: slice | np.ndarray) -> np.ndarray:
        """Return some of them, (n, D) float32."""
        return _unit(self._given[which]) if self._held is None else self._held[which]

    def cosines(self, left_P: np.ndarray, right_P: np.ndarray, other: "Unit | None" = None) -> np.ndarray:
        """Return the cosines of pairs, (P,) float64, of the numbers given; 0 where one has no direction.

        other   whose vectors `right_P` are places of, if not its own
        """
        theirs = self if other is None else other
        found = np.empty(len(left_P), np.float64)
        at_once = max(1, _CHECKED // max(self.dim, 1) // 4)
        for start in range(0, len(left_P), at_once):
            one, one_squares, mine = _once(self._given, left_P[start : start + at_once])
            two, two_squares, yours = _once(theirs._given, right_P[start : start + at_once])
            products = np.empty(len(mine))
            for first in range(0, len(mine), _GATHERED):
                some = slice(first, first + _GATHERED)
                products[some] = np.einsum("pd,pd->p", one[mine[some]], two[yours[some]])
            found[start : start + at_once] = products / np.sqrt(one_squares[mine] * two_squares[yours])
        return found


def _once(given: np.ndarray | Lines, places_P: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return vectors in float64, each read once, their squares, and which of them each place is; without direction is 0."""
    places, at = np.unique(places_P, return_inverse=True)
    rows = np.asarray(given[places], np.float64)
    squares = np.einsum("nd,nd->n", rows, rows)
    bad = ~(np.isfinite(squares) & (squares > 0))
    rows[bad], squares[bad] = 0.0, 1.0
    return rows, squares, at


def _unit(vectors: np.ndarray) -> np.ndarray:
    block = np.array(vectors, np.float32)
    for start in range(0, len(block), 8192):  # float64 for a few rows at a time
        part = block[start : start + 8192]
        length = np.sqrt(np.einsum("nd,nd->n", part, part, dtype=np.float64))
        good = np.isfinite(length) & (length > 0)
        part[~good] = 0
        part /= np.where(good, length, 1.0)[:, None].astype(np.float32)
    return block


Tile = tuple[slice, slice]


def tiles(num: int, screen: Screen, part: Part = WHOLE) -> list[Tile]:
    """Return the tiles of a part of the upper triangle of `num` x `num`.

    Parts are made of blocks of one size, whatever the screen: those of machines that differ fit together.
    """
    blocks = [(top, left) for top in range(0, num, _BLOCK) for left in range(top, num, _BLOCK)]
    return [tile for top, left in blocks[part[0] :: part[1]] for tile in _block_tiles(num, screen, top, left)]


def _block_tiles(num: int, screen: Screen, top: int, left: int) -> Iterator[Tile]:
    for first in range(top, min(top + _BLOCK, num), screen.tall):
        rows = slice(first, min(first + screen.tall, top + _BLOCK, num))
        for at in range(left, min(left + _BLOCK, num), screen.wide):
            columns = slice(at, min(at + screen.wide, left + _BLOCK, num))
            if columns.stop > rows.start:  # below the diagonal there is nothing new
                yield rows, columns


def near_vectors(
    vectors_ND: np.ndarray | Lines | Unit,
    threshold: float,
    screen: Screen | None = None,
    only: Sequence[Tile] | None = None,
    memory_mib: int = 512,
    max_pairs: int = MAX_PAIRS,
) -> Pairs:
    """Return all pairs of vectors whose cosine is at least `threshold`; the distance is one minus the cosine.

    vectors_ND  (N, D) float16 or float32, of any length, memory-mapped or not
    threshold   in (0, 1]
    only        some of `tiles(N, screen)`, to share the work; all of them if not given
    raises      RunError where there are more than `max_pairs`
    """
    check_threshold(threshold)
    screen = screen or best_screen()
    unit = vectors_ND if isinstance(vectors_ND, Unit) else Unit(vectors_ND, memory_mib)
    bound = threshold - screen.margin(unit.dim)
    found = Found(unit, threshold, max_pairs)
    rows, left = None, None
    for tall, wide in tiles(len(unit), screen) if only is None else only:
        if rows != tall:
            rows, left = tall, screen.load(unit.rows(tall))
        one, other = screen.hits(left, screen.load(unit.rows(wide)), bound)
        one, other = one + tall.start, other + wide.start
        above = one < other
        found.add(one[above], other[above])
    return found.pairs()


def check_threshold(threshold: float) -> None:
    """Raise RunError for a cosine that nothing or everything reaches."""
    if not 0 < threshold <= 1:
        raise RunError(f"a threshold of {threshold} is no cosine to look for", hint="give one in (0, 1], such as 0.95")


class Found:
    """Candidates come in, pairs of at least the threshold come out."""

    def __init__(self, unit: Unit, threshold: float, max_pairs: int = MAX_PAIRS) -> None:
        """Hold no candidate longer than it is looked at."""
        # A cosine of 1 may come out as one bit less.
        self._unit, self._least, self._max = unit, min(threshold, 1 - 1e-12), max_pairs
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._num = 0

    def add(self, left: np.ndarray, right: np.ndarray) -> None:
        """Compute candidates anew and keep those that are near enough."""
        # Which of the two comes first changes no bit of a cosine.
        for start in range(0, len(left), _CHECKED):
            one, other = left[start : start + _CHECKED], right[start : start + _CHECKED]
            cosine = self._unit.cosines(one, other)
            near = cosine >= self._least
            self._num += int(near.sum())
            if self._num > self._max:
                hint = "raise the threshold, or take exact duplicates out first"
                raise RunError(f"more than {self._max} pairs have a cosine of at least {self._least:.6g}", hint=hint)
            self._parts.append((one[near], other[near], np.maximum(1 - cosine[near], 0).astype(np.float32)))

    def pairs(self) -> Pairs:
        """Return what was found."""
        none = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
        left, right, distance = (np.concatenate(column) for column in zip(none, *self._parts, strict=True))
        return in_order(left, right, distance)


def cross_near(some: Unit, all_: Unit, bound: float, screen: Screen) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield candidates: places of `some` and of `all_` whose product may be at least `bound`, a tile at a time."""
    least = bound - screen.margin(all_.dim)
    for top in range(0, len(some), screen.tall):
        left = screen.load(some.rows(slice(top, top + screen.tall)))
        for first in range(0, len(all_), screen.wide):
            one, other = screen.hits(left, screen.load(all_.rows(slice(first, first + screen.wide))), least)
            yield one + top, other + first
