"""Manners: how often a host is asked, by how many connections at once, and when it is left alone.

A request waits for its turn without holding anything: not one of the host's connections, and not one of our own. The turn
comes when the host's interval has passed, the address that serves the name has room too, and one of our connections is
free; all three are taken together. A connection that lasts long moves to a second, larger set, so that slow hosts do not
hold up the others.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime

from mmdata.net.answers import Failure, Fetched
from mmdata.net.hosts import HostTable, Place
from mmdata.net.limits import Limits
from mmdata.net.optout import opt_out

__all__ = ["Pace", "Slots", "Turn", "opt_out", "retry_after_s"]

ADDRESS_SHARE = 4  # an address may serve many names: it is allowed this many times as much
SLOW_SHARE = 4  # how many slow connections there may be for each other one
_SLOW_AFTER_S = 2.0
_ADDRESS_HOLDS_S = 300.0
_NEAR_S = 300.0
_LONGEST_REST_S = 24 * 3600.0
_LONGEST_NAP_S = 1.0  # others' news (a breaker opened by another worker) are seen after at most this long
# Outcomes that speak of the host, not of the row: so many in a row and it is left alone.
HOST_FAILURES = frozenset({
    "dns", "timeout_connect", "timeout_headers", "timeout_idle", "timeout_total", "too_slow", "conn_reset", "short_body",
})  # fmt: skip


@dataclass(slots=True)
class Lane:
    """The requests of one host that wait for their turn, in order, and what is known of the host."""

    place: Place
    queue: asyncio.Lock = field(default_factory=asyncio.Lock)
    nap: asyncio.Future[None] | None = None
    full: bool = False
    address: "Address | None" = None
    address_until: float = 0.0

    def wake(self) -> None:
        """Let the request at the head look again."""
        if self.nap is not None and not self.nap.done():
            self.nap.set_result(None)


@dataclass(slots=True)
class Address:
    """An address that serves one name or more; one request of ours at a time looks for room there."""

    place: Place
    queue: asyncio.Lock = field(default_factory=asyncio.Lock)


class Slots:
    """Our own connections: `num` of them, and `SLOW_SHARE` times as many for those that last long; first come, first served."""

    def __init__(self, num: int) -> None:
        self._num_free, self._num_slow_free = num, num * SLOW_SHARE
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._held = False

    async def take(self) -> None:
        """Wait for a free connection."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._hand_out()
        if turn.done():
            return
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.give_back(slow=False)
            raise

    def give_back(self, slow: bool) -> None:
        """Free a connection, of the slow ones or of the others."""
        if slow:
            self._num_slow_free += 1
        else:
            self._num_free += 1
            self._hand_out()

    def slow_down(self) -> bool:
        """Move a connection to the slow ones; False while they are all in use."""
        if self._num_slow_free == 0:
            return False
        self._num_slow_free -= 1
        self.give_back(slow=False)
        return True

    def hold(self, held: bool) -> None:
        """Give out none while held."""
        self._held = held
        self._hand_out()

    def _hand_out(self) -> None:
        while self._num_free and self._waiting and not self._held:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self._num_free -= 1


class Turn:
    """One request under way."""

    __slots__ = ("_timer", "lane", "places", "slots", "slow")

    def __init__(self, lane: Lane, places: tuple[Place, ...], slots: Slots) -> None:
        self.lane, self.places, self.slots, self.slow = lane, places, slots, False
        self._timer = asyncio.get_running_loop().call_later(_SLOW_AFTER_S, self._slow_down)

    def _slow_down(self) -> None:
        self.slow = self.slots.slow_down()

    def close(self) -> None:
        """Free our connection."""
        self._timer.cancel()
        self.slots.give_back(self.slow)


class Pace:
    """Turns and rests of all hosts, over a table that the workers of a machine share.

    num_connections  our own, at once
    share            how many machines work on this run: each takes its part of what a host allows
    address_of       gives the address a host name is dialled at, "" where that is not known
    """

    def __init__(
        self,
        table: HostTable,
        limits: Limits,
        num_connections: int,
        share: int = 1,
        address_of: Callable[[str], Awaitable[str]] | None = None,
    ) -> None:
        self.table, self.limits, self.address_of = table, limits, address_of
        self.interval_s = limits.host_interval_s * share
        self.per_host = max(1, limits.per_host // share)
        self.share = share
        self.slots = Slots(num_connections)
        self._lanes: dict[str, Lane] = {}
        self._addresses: dict[str, Address] = {}

    def lane(self, host: str) -> Lane:
        """Return the lane of a host by its normalised name."""
        lane = self._lanes.get(host)
        if lane is None:
            lane = self._lanes[host] = Lane(self.table.place(host, self.per_host, self.interval_s))
        return lane

    def slow_down(self, host: str, delay_s: float) -> None:
        """Ask a host no more often than this, in seconds."""
        place = self.lane(host).place
        place.interval_s = max(place.interval_s, delay_s * self.share)

    async def begin(self, host: str) -> Turn | Failure:
        """Wait for a turn; `throttled` when the host is to be left alone. Every turn must be ended."""
        lane = self.lane(host)
        async with lane.queue:
            while True:
                rests_s = self.table.rests_s(lane.place)
                if rests_s > 0:
                    return Failure("throttled", f"{host} is left alone for {rests_s:.0f} s more", rule="breaker")
                wait_s = self.table.wait_s(lane.place)
                lane.full = False
                if wait_s <= 0:
                    turn = await self._try(lane)
                    if isinstance(turn, Turn):
                        return turn
                    wait_s, lane.full = turn, True
                await self._nap(lane, min(wait_s, _LONGEST_NAP_S))

    def end(self, turn: Turn, answer: Fetched | Failure | None) -> None:
        """End a turn with what came of it (null: it was given up), and draw the host's lesson from it."""
        turn.close()
        self.table.finish(*turn.places)
        if answer is not None:
            self._learn(turn.lane, answer)
        if turn.lane.full:
            turn.lane.wake()

    def _learn(self, lane: Lane, answer: Fetched | Failure) -> None:
        limits, place = self.limits, lane.place
        if isinstance(answer, Fetched):
            failed = answer.status == 429 or answer.status >= 500
        elif answer.outcome in HOST_FAILURES:
            failed = True
        else:
            return
        self.table.note(place, failed, limits.breaker, limits.breaker_rest_s)
        if not failed:
            return
        if isinstance(answer, Fetched) and answer.status in (429, 503):
            asked_s = retry_after_s(answer.headers)
            if asked_s is None:
                self.table.pause(place, limits.backoff_s)
            elif asked_s <= limits.retry_after_s:
                self.table.pause(place, asked_s)
            else:
                self.table.rest(place, min(asked_s, _LONGEST_REST_S))
        lane.wake()

    async def _try(self, lane: Lane) -> Turn | float:
        """Take a turn, or say after how many seconds to try again."""
        if self.address_of is not None and time.monotonic() >= lane.address_until:
            name = await self.address_of(lane.place.name)
            lane.address = self._address_named(name) if name else None
            lane.address_until = time.monotonic() + _ADDRESS_HOLDS_S
        address = lane.address
        if address is None:
            return await self._start(lane, lane.place)
        async with address.queue:
            while (wait_s := self.table.wait_s(address.place)) > 0:
                await asyncio.sleep(wait_s)
            return await self._start(lane, lane.place, address.place)

    async def _start(self, lane: Lane, *places: Place) -> Turn | float:
        await self.slots.take()
        wait_s = self.table.start(*places, rest_s=self.limits.breaker_rest_s)
        if wait_s <= 0:
            return Turn(lane, places, self.slots)
        self.slots.give_back(slow=False)
        return wait_s

    def _address_named(self, name: str) -> Address:
        address = self._addresses.get(name)
        if address is None:
            limit, interval_s = self.per_host * ADDRESS_SHARE, self.interval_s / ADDRESS_SHARE
            address = self._addresses[name] = Address(self.table.place(f"address {name}", limit, interval_s))
        return address

    async def _nap(self, lane: Lane, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        lane.nap = loop.create_future()
        timer = loop.call_later(seconds, lane.wake)
        try:
            await lane.nap
        finally:
            timer.cancel()
            lane.nap = None


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a `Retry-After` asks for; null when it is missing, past or makes no sense.

    A date is measured by the server's own clock (`Date`). Where it does not tell that one, ours may be wrong: such a date
    counts only when it is near.
    """
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:10])
    until, now = _timestamp(text), _timestamp(headers.get("date", ""))
    if until is None:
        return None
    seconds = until - (time.time() if now is None else now)
    near = now is not None or seconds <= _NEAR_S
    return seconds if seconds > 0 and near else None


def _timestamp(text: str) -> float | None:
    try:
        moment = parsedate_to_datetime(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
