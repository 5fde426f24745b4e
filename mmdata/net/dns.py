"""Names to addresses, inside the process: who is asked, how long an answer counts, and how long anybody waits for it.

One lookup a name is under way at a time, its answer counts for its TTL, a refusal for less, and the oldest names are
forgotten first. The addresses are not judged here: the guard does that where they are dialled.
"""

import asyncio
import contextlib
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import chain, zip_longest
from queue import SimpleQueue
from typing import Protocol

MOST_ADDRESSES = 8
SYSTEM_TTL_S = 300.0
REFUSED_TTL_S = 60.0
# Nobody said that the name does not exist, so a later try may fare better.
UNANSWERED_TTL_S = 5.0
_TTL_S = (10.0, 3600.0)
_TEMPORARY = (socket.EAI_AGAIN, socket.EAI_MEMORY, socket.EAI_SYSTEM)


class Unresolved(Exception):
    """A name without addresses; `lasting` where its own servers say so."""

    def __init__(self, detail: str, *, lasting: bool = False) -> None:
        super().__init__(detail)
        self.lasting = lasting


@dataclass(frozen=True)
class Addresses:
    """An answer: addresses in the order in which they should be tried, and the seconds for which it counts."""

    texts: tuple[str, ...]
    ttl_s: float = SYSTEM_TTL_S


class Resolver(Protocol):
    """Whoever knows the addresses of names."""

    async def addresses(self, name: str) -> Addresses:
        """Return the addresses of a name, or raise Unresolved."""
        ...

    def close(self) -> None:
        """Let go of threads and sockets."""
        ...


class TableResolver:
    """A fake: answers from a table of `name -> addresses`, the n-th question with the n-th; it notes what was asked."""

    def __init__(self, table: dict[str, Sequence[Sequence[str]]]) -> None:
        self.table = {name: list(answers) for name, answers in table.items()}
        self.asked: list[str] = []

    async def addresses(self, name: str) -> Addresses:
        """Return the next answer; the last one stays."""
        self.asked.append(name)
        answers = self.table.get(name)
        if not answers:
            raise Unresolved(f"{name}: not in the table", lasting=True)
        return Addresses(tuple(answers.pop(0) if len(answers) > 1 else answers[0]))

    def close(self) -> None:
        """Nothing to close."""


class SystemResolver:
    """The system's resolver, asked in threads of our own.

    The threads are daemons: `getaddrinfo` cannot be interrupted, and a silent name server must not hold up the end of
    the process, as the threads of an executor would.
    """

    def __init__(self, threads: int = 16) -> None:
        self.most_threads = threads
        self._num_threads = self._num_waiting = 0
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    async def addresses(self, name: str) -> Addresses:
        """Ask the system."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Addresses] = loop.create_future()

        def settle(found: Addresses | Unresolved) -> None:
            if answer.done():
                return
            if isinstance(found, Unresolved):
                answer.set_exception(found)
            else:
                answer.set_result(found)

        def ask() -> None:
            found = _ask_system(name)
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(settle, found)

        self._num_waiting += 1
        if self._num_threads < min(self.most_threads, self._num_waiting):
            self._num_threads += 1
            threading.Thread(target=self._work, name="mmdata-dns", daemon=True).start()
        self._jobs.put(ask)
        try:
            return await answer
        finally:
            self._num_waiting -= 1

    def close(self) -> None:
        """Let the threads end after what they are at."""
        for _ in range(self._num_threads):
            self._jobs.put(None)
        self._num_threads = 0

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


class ServerResolver:
    """Name servers of the caller's choice, asked in turn (`pip install mmdata[dns]`).

    servers  `ADDRESS` or `ADDRESS:PORT`; these are dialled as they are, the guard judges only what they answer
    """

    def __init__(self, servers: Sequence[str], timeout_s: float = 2.0) -> None:
        import aiodns

        self._resolver = aiodns.DNSResolver(nameservers=list(servers), timeout=timeout_s, tries=2, rotate=True)

    async def addresses(self, name: str) -> Addresses:
        """Ask for both families at once."""
        import aiodns

        async def ask(kind: str) -> list[tuple[str, float]] | aiodns.error.DNSError:
            try:
                answer = await self._resolver.query_dns(name, kind)
            except aiodns.error.DNSError as error:
                return error
            return [(record.data.addr, float(record.ttl)) for record in answer.answer if hasattr(record.data, "addr")]

        found = await asyncio.gather(ask("A"), ask("AAAA"))
        records = list(chain.from_iterable(part for part in found if isinstance(part, list)))
        if records:
            return Addresses(in_turn([text for text, _ in records]), min(ttl_s for _, ttl_s in records))
        errors = [part for part in found if not isinstance(part, list)]
        lasting = all(error.args[0] in (aiodns.error.ARES_ENOTFOUND, aiodns.error.ARES_ENODATA) for error in errors)
        raise Unresolved(f"{name}: {errors[0].args[-1] if errors else 'no address'}", lasting=lasting)

    def close(self) -> None:
        """Close the sockets."""
        self._resolver.cancel()


class NameCache:
    """Lookups with memory.

    most_names  the number of names remembered
    deadline_s  seconds that one lookup may take
    """

    def __init__(self, resolver: Resolver, *, most_names: int = 10_000, deadline_s: float = 5.0) -> None:
        self.resolver, self.most_names, self.deadline_s = resolver, most_names, deadline_s
        self._known: OrderedDict[str, tuple[float, tuple[str, ...] | Unresolved]] = OrderedDict()
        self._asking: dict[str, asyncio.Task[tuple[str, ...]]] = {}

    def __len__(self) -> int:
        return len(self._known)

    async def lookup(self, name: str) -> tuple[str, ...]:
        """Return the addresses of a name, `MOST_ADDRESSES` at most, or raise Unresolved."""
        loop = asyncio.get_running_loop()
        until_s, found = self._known.get(name, (0.0, ()))
        if until_s > loop.time():
            if isinstance(found, Unresolved):
                raise Unresolved(str(found), lasting=found.lasting)
            return found
        task = self._asking.get(name)
        if task is None:
            task = self._asking[name] = loop.create_task(self._ask(name))
            task.add_done_callback(lambda done: self._asked(name, done))
        return await asyncio.shield(task)

    def close(self) -> None:
        """End what is under way."""
        for task in list(self._asking.values()):
            task.cancel()
        self.resolver.close()

    async def _ask(self, name: str) -> tuple[str, ...]:
        try:
            async with asyncio.timeout(self.deadline_s):
                found = await self.resolver.addresses(name)
        except TimeoutError:
            error = Unresolved(f"{name}: no answer from the name servers after {self.deadline_s:g} s")
        except Unresolved as refused:
            error = refused
        else:
            texts = found.texts[:MOST_ADDRESSES]
            self._keep(name, min(max(found.ttl_s, _TTL_S[0]), _TTL_S[1]), texts)
            return texts
        self._keep(name, REFUSED_TTL_S if error.lasting else UNANSWERED_TTL_S, error)
        raise error

    def _asked(self, name: str, task: asyncio.Task[tuple[str, ...]]) -> None:
        self._asking.pop(name, None)
        if not task.cancelled():
            task.exception()  # seen, also where nobody waits any more

    def _keep(self, name: str, ttl_s: float, found: tuple[str, ...] | Unresolved) -> None:
        self._known[name] = (asyncio.get_running_loop().time() + ttl_s, found)
        self._known.move_to_end(name)
        if len(self._known) > self.most_names:
            self._known.popitem(last=False)


def literal(host: str) -> str | None:
    """Return the address that a host spells in any form that a system would take for one, or null for a name.

    Raise ValueError for what looks like an IPv4 address and is none (`1.2.3.256`, `0x7g.1`).
    """
    if ":" in host:
        return str(ip_address(host))
    last = host.rstrip(".").rpartition(".")[2]
    if not (last.isdigit() or last.startswith("0x")):
        return None
    try:
        return socket.inet_ntoa(socket.inet_aton(host.rstrip(".")))
    except OSError:
        raise ValueError(f"`{host}` is not an address") from None


def in_turn(texts: Sequence[str]) -> tuple[str, ...]:
    """Order addresses so that the families take turns: one that leads nowhere then costs one try."""
    first_is_v6 = bool(texts) and ":" in texts[0]
    same = [text for text in texts if (":" in text) == first_is_v6]
    other = [text for text in texts if (":" in text) != first_is_v6]
    return tuple(dict.fromkeys(text for text in chain.from_iterable(zip_longest(same, other)) if text is not None))


def _ask_system(name: str) -> Addresses | Unresolved:
    try:
        infos = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        return Unresolved(f"{name}: {error.strerror}", lasting=error.errno not in _TEMPORARY)
    except (OSError, UnicodeError) as error:
        return Unresolved(f"{name}: {error}")
    return Addresses(in_turn([str(info[4][0]) for info in infos]))
