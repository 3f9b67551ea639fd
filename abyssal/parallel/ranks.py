"""The processes of a run, and what they say to each other.

    torchrun --nproc-per-node 2 -m abyssal train RECIPE        # sets RANK, WORLD_SIZE, LOCAL_RANK

On torch.distributed: gloo where tensors are on the CPU, NCCL where each process has a GPU. One
process alone is the same code with nothing to say: it never calls torch.distributed. What is told
to all ranks is the same to the bit on all of them, and so is a sum.
"""

import atexit
import datetime
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from abyssal.errors import ConfigError, ProcessError

# Longer than rank 0 evaluates or writes while the others wait; that a process died is seen at once.
_PATIENCE = datetime.timedelta(days=2)

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which of how many processes this one is; each method below is called by all of them."""

    rank: int = 0
    world: int = 1
    local: int = 0  # the number on this machine, and of its GPU

    @classmethod
    def of_environment(cls) -> Self:
        """As torchrun says; without it, one process alone.

        Raises:
            ConfigError: only some of its variables are there, or they are no numbers.
        """
        world = os.environ.get("WORLD_SIZE", "1")
        if world == "1":
            return cls()
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "MASTER_ADDR")
        told = {name: os.environ.get(name, "") for name in names}
        numbers = names[:-1]
        if not told["MASTER_ADDR"] or not all(told[name].isdecimal() for name in numbers):
            said = ", ".join(f"{name}={value}" for name, value in told.items())
            raise ConfigError(
                f"{said} in the environment, expected all of them, and numbers but for the last; "
                "start several processes with torchrun --nproc-per-node N -m abyssal train "
                "RECIPE, or unset WORLD_SIZE"
            )
        rank, local = told["RANK"], told["LOCAL_RANK"]
        return cls(int(rank), int(world), int(local))

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes, evaluates and prints."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there are no others."""
        return self.world == 1

    def check_alone(self, what: str) -> None:
        """Refuse several processes for what one does.

        Raises:
            ConfigError: there are several.
        """
        if not self.is_alone:
            raise ConfigError(
                f"{what} in {self.world} processes (WORLD_SIZE={self.world}), expected one; start "
                "it without torchrun"
            )

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items that are this rank's to compute: every world-th."""
        return items[self.rank :: self.world]

    def join(self) -> None:
        """Meet the others; they stay together until the process ends.

        Raises:
            ConfigError: there are GPUs, and fewer of them than processes.
            ProcessError: the others do not come.
        """
        if self.is_alone or dist.is_initialized():
            return
        has_gpu, gpus = torch.cuda.is_available(), torch.cuda.device_count()
        if has_gpu and self.local >= gpus:
            raise ConfigError(
                f"LOCAL_RANK={self.local}, but torch sees {gpus} GPUs here, expected one for each "
                "process; start as many, or hide them: CUDA_VISIBLE_DEVICES= torchrun ..."
            )
        if has_gpu:
            torch.cuda.set_device(self.local)
        with _together():
            dist.init_process_group("nccl" if has_gpu else "gloo", timeout=_PATIENCE)
        atexit.register(_leave)

    # Words: values as JSON knows them

    def everyone(self, value: object) -> list[Any]:
        """What each rank says, in their order."""
        if self.is_alone:
            return [value]
        text = json.dumps(value).encode()
        length = torch.tensor([len(text)], device=self.device)
        with _together():
            dist.all_reduce(length, dist.ReduceOp.MAX)
            padded = text.ljust(int(length))
            mine = torch.frombuffer(bytearray(padded), dtype=torch.uint8).to(self.device)
            all_of_them = [torch.empty_like(mine) for _ in range(self.world)]
            dist.all_gather(all_of_them, mine)
        return [json.loads(bytes(one.cpu().numpy())) for one in all_of_them]

    def tell(self, value: Item) -> Item:
        """What rank 0 says."""
        told: Item = self.everyone(value if self.is_first else None)[0]
        return told

    # Tensors, which are contiguous, on the device of the process

    def sum(self, tensor: Tensor, owner: int | None = None) -> None:
        """Add up a tensor over all ranks in place; with an owner, only that rank has the sum after,
        and the others something of no use.
        """
        if self.is_alone:
            return
        with _together():
            if owner is None:
                dist.all_reduce(tensor)
            else:
                dist.reduce(tensor, owner)

    def copy(self, tensor: Tensor, owner: int) -> None:
        """Overwrite a tensor with that of its owner."""
        if not self.is_alone:
            with _together():
                dist.broadcast(tensor, owner)

    def bring(self, tensor: Tensor, owner: int) -> None:
        """Overwrite rank 0's tensor with that of its owner; only these two are concerned."""
        if owner == 0 or self.rank not in (0, owner):
            return
        with _together():
            if self.is_first:
                dist.recv(tensor, owner)
            else:
                dist.send(tensor, 0)

    @property
    def device(self) -> torch.device:
        """Where tensors must be to travel."""
        on_gpu = not self.is_alone and dist.get_backend() == dist.Backend.NCCL
        return torch.device("cuda", self.local) if on_gpu else torch.device("cpu")


ALONE = Ranks()


def speaks_for_all() -> bool:
    """Whether this process is the first of its run to fail, and so the one to say why.

    The others mostly fail of the same reason, or because the first one is gone.
    """
    try:
        ranks = Ranks.of_environment()
        if ranks.is_alone:
            return True
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.TCPStore(  # type: ignore[attr-defined]  # documented, but not in __all__
            host, port, None, False, datetime.timedelta(seconds=5), wait_for_workers=False
        )
        return bool(store.add(f"abyssal/failed/{again}", 1) == 1)
    except (ConfigError, RuntimeError):  # nobody to ask: better said twice than not at all
        return True


@contextmanager
def _together() -> Iterator[None]:
    """What torch says when a process is gone, in the house's words."""
    try:
        yield
    except RuntimeError as problem:  # gloo's; NCCL's DistBackendError is one too
        said = str(problem).splitlines()[0].rpartition("] ")[2]  # behind gloo's own file and line
        raise ProcessError(
            f"another process of this run ended ({said:.120}); if it does not say why, it was "
            "killed: run the same command to go on from the last saved state"
        ) from problem


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
