"""Asking the hostile server as the download stage does, with clocks scaled to a test's patience."""

import asyncio
from collections.abc import Sequence

from mmdata.net import Failure, Fetched, Fetcher, Guard, Limits, Policy, Signals
from mmdata.net.client import HttpTransport, Options, open_transport
from tests.net.hostile import HostileServer

AGENT = "mmdata/0.1 (+mailto:tests@hostile.test)"
QUICK = Limits(
    host_interval_s=0, per_host=64, retries=0, breaker=1000, connect_s=1, headers_s=0.5, idle_s=0.5, total_s=1.5,
    slow_after_s=0.4, max_mib=1,
)  # fmt: skip


def ask(
    server: HostileServer,
    urls: str | Sequence[str],
    *,
    limits: Limits = QUICK,
    options: Options | None = None,
    connections: int = 4,
    policy: bool = False,
) -> list[Fetched | Failure]:
    """Fetch urls one after the other over one transport; `policy` follows redirects and tries again."""

    async def work() -> list[Fetched | Failure]:
        async with open_transport(Guard(server.allow), limits, AGENT, connections, options) as transport:
            fetcher = Fetcher(transport, Policy(limits, AGENT, robots=False, signals=Signals(tdmrep_json=False)))
            get = fetcher.fetch if policy else transport.get
            return [await get(url) for url in ([urls] if isinstance(urls, str) else urls)]

    return asyncio.run(work())


async def ask_at_once(transport: HttpTransport, urls: Sequence[str]) -> list[Fetched | Failure]:
    """Fetch urls all at once."""
    return list(await asyncio.gather(*(transport.get(url) for url in urls)))


def outcome(result: Fetched | Failure) -> str:
    """Return the outcome, or `ok` for an answer with status 200 and its status for another."""
    if isinstance(result, Failure):
        return result.outcome
    return "ok" if result.status == 200 else str(result.status)
