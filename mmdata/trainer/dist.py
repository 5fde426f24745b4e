"""Ranks: what they tell each other, and how they share a model.

A rank finds out who it is from the variables that torchrun sets. What ranks tell each other of the host's values travels as
JSON over gloo, whatever moves gradients. They fail together: the error of one is raised by all, before the next collective call
would wait for it; one that ends without a word is noticed by its connections.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from mmdata.errors import ConfigError, MmdataError, RunError, first_line
from mmdata.trainer.config import TrainConfig

T = TypeVar("T")
WAIT = timedelta(minutes=30)  # the first rank may be counting the tokens of a corpus
FIRST_S = 2.0
_KINDS = {kind.__name__: kind for kind in (ConfigError, RunError)}
_LOST = ("gloo", "nccl", "connection", "timed out")


@dataclass(frozen=True)
class World:
    """Which of how many ranks this is, and its device. A process alone is rank 0 of 1."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - it cannot be changed

    @property
    def first(self) -> bool:
        """Say whether this is the rank that writes."""
        return self.rank == 0

    def gather(self, act: Callable[[], Any]) -> list[Any]:
        """Call `act` on every rank and return what each came to, plain values, by rank; what fails on one fails on all."""
        if self.size == 1:
            return [act()]
        own: MmdataError | None = None
        told: dict[str, Any] = {}
        try:
            told["value"] = act()
        except MmdataError as error:
            own = error
            told["error"] = [type(error).__name__, error.message, error.hint]
        heard = self._exchange(told)
        if own is not None:
            raise own
        for rank, other in enumerate(heard):
            if "error" in other:
                kind, message, hint = other["error"]
                raise _KINDS.get(kind, RunError)(f"rank {rank}: {message}", hint=hint)
        return [other["value"] for other in heard]

    def together(self, act: Callable[[], T]) -> T:
        """Call `act` on every rank and return this one's result; what fails on one fails on all."""
        made: list[T] = []
        self.gather(lambda: made.append(act()))
        return made[0]

    def in_turn(self, act: Callable[[], T]) -> T:
        """As `together`, but the first rank goes before the others, which find what it leaves behind."""
        made: list[T] = []
        for turn in (True, False) if self.size > 1 else (True,):
            self.gather(partial(_call_if, turn == self.first, act, made))
        return made[0]

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return the sums over all ranks, by name, in the order of the ranks: the same numbers on each."""
        totals: dict[str, float] = {}
        for heard in self.gather(lambda: dict(values)):
            for name, value in heard.items():
                totals[name] = totals.get(name, 0) + value
        return totals

    def add(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks."""
        if self.size > 1:
            tensor = tensor.clone()
            distributed.all_reduce(tensor)
        return tensor

    def _exchange(self, told: Any) -> list[Any]:  # noqa: ANN401 - what JSON holds
        data = torch.frombuffer(bytearray(json.dumps(told).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        distributed.all_gather(sizes, torch.tensor([len(data)]))
        longest = max(int(size) for size in sizes)
        parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
        distributed.all_gather(parts, torch.cat([data, data.new_zeros(longest - len(data))]))
        return [json.loads(part[: int(size)].numpy().tobytes()) for part, size in zip(parts, sizes, strict=True)]


@contextmanager
def joined(config: TrainConfig) -> Iterator[World]:
    """Join the ranks that torchrun's variables tell of, and leave them at the end.

    Raises ConfigError for a world or a device that the config cannot have, RunError when others cannot be reached any more.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    check_shares(config, size)
    device = _device(config)
    if size == 1:
        yield World(device=device)
        return
    try:
        _join(device)
        yield World(rank, size, device)
    except RuntimeError as error:
        if not any(word in str(error).lower() for word in _LOST):
            raise
        time.sleep(FIRST_S)  # whoever watches over the ranks hears first of the one that failed
        hint = "see what the others said; the same command goes on from the last checkpoint"
        raise RunError(f"rank {rank}: the other ranks cannot be reached: {first_line(error)}", hint=hint) from error
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def check_shares(config: TrainConfig, ranks: int) -> None:
    """Refuse a number of ranks that a step's rows cannot be shared by, with the sizes that would do."""
    rows, micro = config.optim.rows, config.optim.micro_rows
    if ranks > 1 and config.parallel == "none":
        raise ConfigError(f"`parallel: none` is for one process, and there are {ranks}", hint="set `parallel` to ddp or fsdp")
    if rows % ranks:
        fitting = [number for number in range(1, rows // micro + 1) if rows % (number * micro) == 0]
        above = -(-rows // (ranks * micro)) * ranks * micro
        hint = f"start {_either(fitting)} ranks, or set `optim.rows` to a multiple of {ranks * micro}, such as {above}"
        raise ConfigError(f"`optim.rows` {rows} cannot be shared by {ranks} ranks", hint=hint)
    if rows // ranks % micro:
        fitting = [number for number in range(1, min(micro, rows // ranks) + 1) if rows // ranks % number == 0]
        raise ConfigError(
            f"each of {ranks} ranks has {rows // ranks} of `optim.rows` {rows}: no multiple of `optim.micro_rows` {micro}",
            hint=f"set `optim.micro_rows` to {_either(fitting)}, or `optim.rows` to a multiple of {ranks * micro}",
        )


def share(objective: nn.Module, blocks: Sequence[nn.Module], config: TrainConfig, world: World) -> nn.Module:
    """Return the objective as all ranks share it; `blocks` are compiled, recomputed and sharded one by one."""
    for block in blocks:
        if config.activation_checkpointing:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        if config.compile:
            block.compile()
    if world.size == 1:
        return objective
    if config.parallel == "ddp":
        where = [world.device] if world.device.type == "cuda" else None
        return DistributedDataParallel(objective, where, broadcast_buffers=False, gradient_as_bucket_view=True)
    mesh = init_device_mesh(world.device.type, (world.size,))
    for part in (*blocks, objective):
        fully_shard(part, mesh=mesh)
    return objective


@contextmanager
def gradients(shared: nn.Module, *, last: bool) -> Iterator[None]:
    """Surround a micro-batch: DDP exchanges gradients with the last alone, FSDP with each, since none holds them in full."""
    if isinstance(shared, DistributedDataParallel) and not last:
        with shared.no_sync():
            yield
    else:
        yield


def rest(shared: nn.Module) -> None:
    """Give the gathered weights back after a forward pass that no backward pass follows."""
    for module in shared.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def clip(parameters: Sequence[nn.Parameter], most: float) -> float:
    """Scale gradients down to a norm of at most `most`, over all shards; return the norm that they had."""
    grads = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm(grads)
    if any(isinstance(parameter, DTensor) for parameter in parameters):
        square = norm.double().square()
        distributed.all_reduce(square)
        norm = square.sqrt().to(norm.dtype)
    torch._foreach_mul_(grads, (most / (norm + 1e-6)).clamp(max=1.0))
    return float(norm)


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor; all of it where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """Return tensors in full, in the host's memory, on the first rank; nothing on the others. All ranks must call it."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if world.first:
            found[name] = full.detach().cpu().contiguous()
    return found


@torch.no_grad()
def put(target: Tensor, full: Tensor) -> None:
    """Copy a full tensor to where it is held, or this rank's part of it."""
    if isinstance(target, DTensor):
        full = full.to(target.device)
        full = local(distribute_tensor(full, target.device_mesh, target.placements, src_data_rank=None))
    local(target).copy_(full)


def _call_if(mine: bool, act: Callable[[], T], made: list[T]) -> None:
    if mine:
        made.append(act())


def _device(config: TrainConfig) -> torch.device:
    if config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    number = int(os.environ.get("LOCAL_RANK", "0"))
    if number >= torch.cuda.device_count():
        raise ConfigError(
            f"local rank {number} needs a GPU of its own, and there are {torch.cuda.device_count()}",
            hint="start one rank a GPU, or set `device: cpu`",
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def _join(device: torch.device) -> None:
    address = os.environ.get("MASTER_ADDR", "")
    if address in {"127.0.0.1", "localhost"}:  # gloo would listen on the address that the machine's name has
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=WAIT)
    except (RuntimeError, ValueError) as error:
        where = f"{address}:{os.environ.get('MASTER_PORT', '')}"
        raise RunError(f"cannot join the other ranks at {where}: {first_line(error)}", hint="start them with torchrun") from error


def _either(numbers: Sequence[int]) -> str:
    *most, last = (str(number) for number in numbers)
    return f"{', '.join(most)} or {last}" if most else last
