"""Which source the next draw is from: the one that is owed most tokens.

Every draw of `n` tokens owes each source its share of `n` and pays the drawn one `n`, in whole numbers, so the shares are
exact: after any number of draws a source is away from its share by less than the longest sample times the number of sources.
What is drawn depends on lengths and shares alone. Weights are a list of (from_step, weights): the future may change.

Packing puts draws together that are not neighbours, so rows are given by the same rule: next comes the one that brings sources
nearest to their shares. After any row a source is then away from its share by a few rows, not by all that packing held back.

Axes: D draws, R rows, S sources.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mmdata.errors import ConfigError, did_you_mean

WHOLE = 1_000_000_000  # parts into which shares are cut
AHEAD = 512  # rows of which the next is chosen: more than wait while rows are packed

Weights = Mapping[str, float]


@dataclass(frozen=True)
class Mixture:
    """What share of the tokens each source has, from which step on."""

    names: tuple[str, ...]
    entries: tuple[tuple[int, tuple[float, ...]], ...]

    def at(self, entry: int, alive: Sequence[bool]) -> list[int]:
        """Return each source's share of WHOLE in an entry, when only those `alive` are left; they add up to WHOLE."""
        weights = [weight if lives else 0.0 for weight, lives in zip(self.entries[entry][1], alive, strict=True)]
        if not sum(weights):  # those that are left had no share
            weights = [float(lives) for lives in alive]
        total = sum(weights)
        shares = [int(weight / total * WHOLE) for weight in weights]
        shares[max(range(len(shares)), key=shares.__getitem__)] += WHOLE - sum(shares)
        return shares


def evened(gain_RS: np.ndarray, owed_S: Sequence[int]) -> np.ndarray:
    """Return the order of rows in which sources stay near their shares: of the next 512 always the one that brings them nearest.

    gain_RS  (R, S) int64: what a row gives each source beyond its share of the row, in tokens times WHOLE
    owed_S   what sources are owed before the first row, in tokens times WHOLE
    returns  (R,) row numbers
    """
    # Distances are of whole thousandths of tokens: no machine's way to add up floats then chooses another row.
    gain_RS, owed = gain_RS // (WHOLE // 1000), np.asarray(owed_S, np.int64) // (WHOLE // 1000)
    rows, num, order = np.arange(min(AHEAD, len(gain_RS))), len(gain_RS), []
    gains = gain_RS[rows]
    for after in range(AHEAD, AHEAD + num):
        chosen = int(np.square(gains - owed).sum(1).argmin())
        owed -= gains[chosen]
        order.append(int(rows[chosen]))
        if after < num:
            rows[chosen], gains[chosen] = after, gain_RS[after]
        else:
            rows, gains = np.delete(rows, chosen), np.delete(gains, chosen, axis=0)
    return np.asarray(order, np.int64)


def mixture_of(names: Sequence[str], given: Weights | Sequence[tuple[int, Weights]] | None, sizes: Sequence[int]) -> Mixture:
    """Check weights and return the mixture; without any, each source has the share of its size.

    Raises ConfigError for a source that is not there, a weight below 0, steps that do not rise, no weight at all.
    """
    if given is None:
        return Mixture(tuple(names), ((0, tuple(float(size) for size in sizes)),))
    entries = [(0, given)] if isinstance(given, Mapping) else list(given)
    if not entries or entries[0][0] != 0:
        raise ConfigError("the mixture has no weights for step 0", hint="begin the list with (0, {...})")
    steps = [step for step, _ in entries]
    if any(later <= earlier for earlier, later in pairwise(steps)):
        raise ConfigError(f"the steps of the mixture do not rise: {', '.join(map(str, steps))}")
    return Mixture(tuple(names), tuple((step, _checked(names, weights, step)) for step, weights in entries))


def _checked(names: Sequence[str], weights: Weights, step: int) -> tuple[float, ...]:
    for name, weight in weights.items():
        if name not in names:
            raise ConfigError(
                f"the mixture from step {step} names `{name}`, which no corpus is called", hint=did_you_mean(name, names)
            )
        if not 0 <= weight < float("inf"):
            raise ConfigError(f"the mixture from step {step} gives `{name}` the weight {weight}", hint="weights are 0 or more")
    if not sum(weights.values()):
        raise ConfigError(f"the mixture from step {step} gives no source a weight above 0")
    return tuple(float(weights.get(name, 0.0)) for name in names)
