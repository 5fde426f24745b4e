"""What a worker keeps between tasks: opened stages and a jail, for as long as it lives."""

from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from mmdata.engine.view import LazyJail
from mmdata.stages.verbs import Filter, Map, Split, Stage, WorkerContext
from mmdata.storage import Store

MAX_OPEN = 16


def context_of(stage: Stage, store: Store, allow: tuple[str, ...], exits: ExitStack, share: int = 1) -> WorkerContext:
    """Return what a stage is opened with; one that holds GPUs works on the first that its worker sees."""
    return WorkerContext(store, allow, "cuda" if stage.resources.gpus else "cpu", share, exits)


class WorkerCache:
    """Opened stages by key; the least used is closed when there are too many."""

    def __init__(self, store: Store, allow: tuple[str, ...], share: int = 1) -> None:
        self.store, self.allow, self.share = store, allow, share
        self.jail = LazyJail()
        self._open: OrderedDict[tuple[str, str], tuple[Callable[..., Any], ExitStack]] = OrderedDict()

    def open(self, key: str, stage: Stage) -> Callable[..., Any]:
        """Return the working function of a stage, opening it if need be."""
        if not isinstance(stage, Map | Filter | Split):
            raise TypeError(f"{stage.name} has nothing to open")
        place = (self.store.url, key)
        if place not in self._open:
            exits = ExitStack()
            self._open[place] = (stage.open(context_of(stage, self.store, self.allow, exits, self.share)), exits)
        self._open.move_to_end(place)
        while len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)[1][1].close()
        return self._open[place][0]

    def close(self) -> None:
        """Close everything."""
        for _, exits in self._open.values():
            exits.close()
        self._open.clear()
        self.jail.close()
