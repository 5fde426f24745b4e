"""What a loader is asked: how samples are drawn, which a state remembers, and how they are read, which may change."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from mmdata.errors import ConfigError
from mmdata.loader.cache import Cache
from mmdata.loader.order import BLOCK, Shuffle
from mmdata.loader.plan import WINDOW
from mmdata.loader.sample import Sample
from mmdata.loader.source import Lengths

T_co = TypeVar("T_co", covariant=True)


class Transform(Protocol[T_co]):
    """Turns a sample into what the training loop wants; all chance comes from `random`, keyed by (seed, epoch, sample id).

    A `version` attribute, where there is one, is remembered by states.
    """

    def __call__(self, sample: Sample, random: np.random.Generator) -> T_co:
        """Return what a batch holds in this sample's place."""
        ...


@dataclass(frozen=True)
class Options:
    """What a loader does. States remember the first part; the second may change whenever a state is restored.

    batch_size   rows of a step, of all ranks together; a row is one sample, or `row_tokens` tokens of several
    row_tokens   pack samples into rows of so many tokens; needs `lengths`
    epochs       how often each sample is drawn, of all sources or by name; null = for ever
    shuffle      `samples`: any next to any; `blocks`: neighbours of `block` samples are read together; `none`: as they lie
    window       draws that are planned, and packed, together
    last         what becomes of rows that do not fill the last step: `short` gives them, `drop` leaves them out
    captions     draw one of a sample's captions by weights of their kinds; its own text is of the kind `text`

    rank, world  which of how many data-parallel ranks this is; world divides batch_size
    threads      threads that read, decode and transform; 0 = the caller's own, when it asks for a batch
    ahead        samples in memory ahead of the training loop
    decode       decode images before the transform, in the thread that read them
    bad_samples  how many samples may be damaged; they are left out of their batch and named
    verify       compare all bytes with their xxh3
    """

    split: str = "train"
    batch_size: int = 32
    row_tokens: int | None = None
    epochs: float | Mapping[str, float] | None = None
    shuffle: Shuffle = "samples"
    block: int = BLOCK
    seed: int = 0
    window: int = WINDOW
    last: Literal["short", "drop"] = "short"
    captions: Mapping[str, float] | None = None

    rank: int = 0
    world: int = 1
    threads: int = 2
    ahead: int = 512
    decode: bool = True
    bad_samples: int = 0
    verify: bool = True
    cache: Cache | None = None

    def remembered(self) -> dict[str, Any]:
        """Return what the order depends on, as plain values."""
        names = ("split", "batch_size", "row_tokens", "shuffle", "block", "seed", "window", "last")
        mappings = {"epochs": self.epochs, "captions": self.captions}
        return {
            **{name: getattr(self, name) for name in names},
            **{name: dict(value) if isinstance(value, Mapping) else value for name, value in mappings.items()},
        }

    def epochs_of(self, name: str) -> float | None:
        """Return how often each sample of a source is drawn."""
        return self.epochs.get(name) if isinstance(self.epochs, Mapping) else self.epochs


def check_options(options: Options, lengths: Lengths | None) -> None:
    """Raise ConfigError for options that do not fit each other."""
    if options.row_tokens and lengths is None:
        raise ConfigError("rows of tokens need the length of each sample", hint="give `lengths`, such as TokenCounts")
    if options.world < 1 or not 0 <= options.rank < options.world:
        raise ConfigError(f"rank {options.rank} of {options.world}", hint="ranks are 0 to world - 1")
    if options.batch_size % options.world:
        raise ConfigError(
            f"a step of {options.batch_size} rows cannot be shared by {options.world} ranks",
            hint="give a `batch_size`, of all ranks together, that the number of ranks divides",
        )
