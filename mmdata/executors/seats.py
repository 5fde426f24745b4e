"""The actors of a Ray cluster: who is idle, and whether one more has room.

An actor keeps its GPUs, and the model on them, while it is idle. One that Ray had no GPU for would wait for those of the
others for ever, so none is made before there is room, and idle ones of another size make way.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Seat:
    """A live actor."""

    gpus: float
    handle: Any


@dataclass
class Seats:
    """At most `slots` actors, on at most as many GPUs as there are.

    make  starts an actor of so many GPUs     end  ends one
    """

    slots: int
    make: Callable[[float], Any]
    end: Callable[[Any], None]
    total_gpus: float = 0.0
    live: list[Seat] = field(default_factory=list)
    idle: list[Seat] = field(default_factory=list)

    def take(self, gpus: float) -> Seat | None:
        """Return an idle actor of this size, or a new one; null when there is no room."""
        found = next((seat for seat in self.idle if seat.gpus == gpus), None)
        if found is not None:
            self.idle.remove(found)
            return found
        # Room is counted over all nodes; several GPUs must be on one, so there the idle ones make way in any case.
        while (not self._has_room(gpus) or gpus > 1) and self.idle:
            self.end(self.lose(self.idle[0]).handle)
        if not self._has_room(gpus):
            return None
        self.live.append(Seat(gpus, self.make(gpus)))
        return self.live[-1]

    def leave(self, seat: Seat) -> None:
        """Keep an actor that is done with its task for the next."""
        self.idle.append(seat)

    def lose(self, seat: Seat) -> Seat:
        """Forget an actor."""
        self.live.remove(seat)
        if seat in self.idle:
            self.idle.remove(seat)
        return seat

    def clear(self) -> None:
        """End all idle actors."""
        while self.idle:
            self.end(self.lose(self.idle[0]).handle)

    def has_idle(self, gpus: float) -> bool:
        """Say whether an actor of this size is idle."""
        return any(seat.gpus == gpus for seat in self.idle)

    def _has_room(self, gpus: float) -> bool:
        taken = sum(share(seat.gpus) for seat in self.live)
        return len(self.live) < self.slots and (not gpus or taken + share(gpus) <= self.total_gpus + 1e-9)


def share(gpus: float) -> float:
    """Return what an actor takes of the GPUs: two of 0.4 fill one, since a third does not fit beside them."""
    return gpus if gpus >= 1 or not gpus else 1 / int(1 / gpus)
