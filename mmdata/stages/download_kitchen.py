"""What a worker keeps between the partitions it downloads: decoder children, and all that the plan's files say."""

import hashlib
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, NamedTuple, Self

from mmdata.errors import RecordError
from mmdata.media import Jail, Transcoded, decode
from mmdata.media.phash import phash
from mmdata.net import Failure, Fetched, Guard, Policy, Transport
from mmdata.net.client import Options, open_transport
from mmdata.net.shared import hosts_folder
from mmdata.stages.access import read_access
from mmdata.stages.download import Download
from mmdata.stages.verbs import WorkerContext


class Dish(NamedTuple):
    """What was made of one body: its SHA-256 as served and as stored, and the image."""

    raw_sha256: str
    made: Transcoded
    sha256: str


class Kitchen:
    """What a worker keeps between partitions: decoder children, and all that the plan's files say."""

    def __init__(self, stage: Download, ctx: WorkerContext) -> None:
        self.stage, self.ctx, self.resize = stage, ctx, stage.resize
        self.denied = stage.deny.open() if stage.deny is not None else None
        access = read_access(stage.access)
        self.options = Options(proxy=access.proxy, headers=access.headers, nameservers=stage.resolvers)
        self.policy = Policy(
            stage.limits, stage.agent, stage.robots, stage.signals, stage.connections, ctx.share,
            denied=self.denied.of_url if self.denied is not None else None,
        )  # fmt: skip
        self.jails = [Jail() for _ in range(stage.resources.cpus)]
        self.hosts = hosts_folder(ctx.store.url)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for jail in self.jails:
            jail.close()

    def transport(self) -> AbstractAsyncContextManager[Transport]:
        """Open the connections of one partition."""
        return open_transport(Guard(self.ctx.allow), self.stage.limits, self.stage.agent, self.policy.sockets, self.options)

    def cook(self, jail: Jail, answers: list[Fetched], boxes: list[Any] | None) -> list["Dish | Failure"]:
        """Hash, decode and encode bodies; called in a thread of its own."""
        raw = [hashlib.sha256(answer.body).hexdigest() for answer in answers]
        done: list[Dish | Failure] = []
        results = jail.transcode_all([answer.body for answer in answers], self.resize, boxes)
        for digest, made in zip(raw, results, strict=True):
            if isinstance(made, RecordError):
                done.append(Failure(made.outcome or "decode_error", made.message))
            else:
                done.append(self._judged(Dish(digest, made, hashlib.sha256(made.data).hexdigest())))
        return done

    def refusal(self, body: bytes) -> str | None:
        """Return the deny list that bytes fall under before they are decoded, or null."""
        return None if self.denied is None else self.denied.of_bytes(hashlib.sha256(body).hexdigest())

    def _judged(self, dish: Dish) -> "Dish | Failure":
        if self.denied is None or not len(self.denied.phash_N) or not dish.made.ours:
            return dish
        rule = self.denied.of_look(phash(decode(dish.made.data)))  # bytes of our own making
        return dish if rule is None else Failure("denylisted", rule, rule=rule)
