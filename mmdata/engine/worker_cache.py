"""What a worker keeps between tasks, for as long as it lives: opened stages, decoding threads and their jails."""

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, NamedTuple

from mmdata.media import Jails
from mmdata.stages.verbs import Filter, Map, Split, Stage, WorkerContext
from mmdata.storage import Store

MAX_OPEN = 16


def context_of(stage: Stage, store: Store, allow: tuple[str, ...], exits: ExitStack, share: int = 1) -> WorkerContext:
    """Return what a stage is opened with; one that holds GPUs works on the first that its worker sees."""
    return WorkerContext(store, allow, "cuda" if stage.resources.gpus else "cpu", share, exits)


class _Opened(NamedTuple):
    """A stage, the function that it opened to, and what closes it."""

    stage: Stage
    work: Callable[..., Any]
    exits: ExitStack


class WorkerCache:
    """Opened stages by key; the least used is closed when there are too many."""

    def __init__(self, store: Store, allow: tuple[str, ...], share: int = 1) -> None:
        self.store, self.allow, self.share = store, allow, share
        self.jails = Jails()
        self._threads: dict[int, ThreadPoolExecutor] = {}
        self._open: OrderedDict[tuple[str, str], _Opened] = OrderedDict()

    def open(self, key: str, stage: Stage) -> Callable[..., Any]:
        """Return the working function of a stage, opening it if need be."""
        if not isinstance(stage, Map | Filter | Split):
            raise TypeError(f"{stage.name} has nothing to open")
        place = (self.store.url, key)
        if place in self._open and self._open[place].stage != stage:  # what is in no key may be another now
            self._open.pop(place).exits.close()
        if place not in self._open:
            exits = ExitStack()
            work = stage.open(context_of(stage, self.store, self.allow, exits, self.share))
            self._open[place] = _Opened(stage, work, exits)
        self._open.move_to_end(place)
        while len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)[1].exits.close()
        return self._open[place].work

    def threads(self, num: int) -> ThreadPoolExecutor:
        """Return so many threads that decode ahead."""
        if num not in self._threads:
            self._threads[num] = ThreadPoolExecutor(num, "decode")
        return self._threads[num]

    def close(self) -> None:
        """Close everything."""
        for threads in self._threads.values():  # first: they may be at work with what was opened
            threads.shutdown(cancel_futures=True)
        self._threads.clear()
        for opened in self._open.values():
            opened.exits.close()
        self._open.clear()
        self.jails.close()
