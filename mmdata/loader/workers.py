"""A loader for torch's DataLoader: worker processes for transforms that hold the interpreter.

Worker w of W makes steps w, w + W, ... and the DataLoader hands them over in turn, so the stream is the loader's own whatever W
is. Where it stands is counted here, not in the workers: a state does not know how many there were.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mmdata.errors import ConfigError, RunError
from mmdata.loader.batch import Batch
from mmdata.loader.loader import Loader

T = TypeVar("T")
DEADLINE_S = 300.0


class LoaderDataset(IterableDataset[Batch[T]]):
    """The batches of a loader as a dataset, for `DataLoader(dataset, batch_size=None)` and torchdata's StatefulDataLoader.

    make  returns the loader; it is called in each worker, so it must be a function that can be imported there
    """

    def __init__(self, make: Callable[[], Loader[T]], state: Mapping[str, Any] | None = None) -> None:
        self.make = make
        self._loader: Loader[T] | None = None
        self._taken = False
        self._from: dict[str, Any] = {"loader": state, "workers": 0}

    def __iter__(self) -> Iterator[Batch[T]]:
        info, self._taken = get_worker_info(), False
        loader = self._loader = self.make()
        if self._from["loader"] is not None:
            loader.restore(self._from["loader"])
        if info is not None:
            # A worker's own state stands behind its last step, so the others' come first.
            loader.share(info.num_workers - 1 if self._from["workers"] else info.id, info.num_workers)
        with loader:
            for batch in loader:
                self._taken = True
                yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return where this process stands: StatefulDataLoader keeps one a worker."""
        if self._loader is None or not self._taken:
            return self._from
        info = get_worker_info()
        return {"loader": self._loader.state_dict(), "workers": info.num_workers if info is not None else 0}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to what `state_dict` returned; ConfigError where there are not as many workers as there were."""
        info = get_worker_info()
        workers = info.num_workers if info is not None else 0
        if state["workers"] not in (0, workers):
            raise ConfigError(
                f"a state of {state['workers']} workers, and now there are {workers}",
                hint="give as many again, or use Feed, whose state does not know how many there were",
            )
        self._from = dict(state)


class Feed(Generic[T]):
    """A loader whose batches are made by worker processes; `state_dict` is the loader's own.

    options  of torch's DataLoader, such as `prefetch_factor` or `multiprocessing_context`

    Raises RunError when a worker dies or gives nothing for `timeout` seconds, 300 unless said otherwise.
    """

    def __init__(self, make: Callable[[], Loader[T]], workers: int, **options: Any) -> None:  # noqa: ANN401 - torch's
        self.make, self.workers = make, workers
        self.options = {"timeout": DEADLINE_S, **options} if workers else options
        self.loader = make()

    def __iter__(self) -> Iterator[Batch[T]]:
        dataset = LoaderDataset(self.make, self.loader.state_dict())
        batches = iter(DataLoader(dataset, batch_size=None, num_workers=self.workers, **self.options))
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader worker" not in str(error) and "timed out" not in str(error):
                    raise
                raise RunError(
                    f"step {self.loader.step}: a worker of the loader died or hangs: {error}",
                    hint="look for what killed it (memory?); the state is that of the last step given",
                ) from error
            self.loader.skip()
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return where the training loop stands."""
        return self.loader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a state, of any number of workers."""
        self.loader.restore(state)
