"""Several processes that train or evaluate one model: who they are, and what they tell each other.

``onnxaccel train --workers N`` (and ``evaluate``) starts them on one machine (see `launch`), torchrun on one
or more; both say in the environment who is who. They talk through torch.distributed: gloo between CPUs, NCCL
between NVIDIA GPUs.
"""

from __future__ import annotations

import atexit
import datetime
import functools
import hashlib
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxaccel.errors import MissingDependency, TrainingError
from onnxaccel.runtime.measure.machine import cores

PATIENCE = 600.0
"""Seconds after which a process that waits for another one gives up; $ONNXACCEL_PATIENCE sets another."""

State = dict[str, npt.NDArray[Any]]


class PeerLost(TrainingError):
    """Another process of the training is gone, or does not answer."""


class Group:
    """The processes of a training: this one alone; `Peers` are several.

    Attributes:
        rank: The number of this one, from 0; number 0 reports and writes the files.
        size: How many there are.
    """

    rank = 0
    size = 1

    @property
    def leads(self) -> bool:
        """Whether this process reports and writes the files."""
        return self.rank == 0

    @property
    def share(self) -> tuple[int, int]:
        """Which part of each batch is this process's: number and how many there are."""
        return self.rank, self.size

    def sum(self, tensor: Any) -> None:
        """Replace a torch tensor by the sum of those of all processes; the same bits on each of them.

        Raises:
            PeerLost: Another process is gone.
        """

    def gather(self, thing: Any) -> list[Any]:
        """What each process has, in the order of their numbers."""
        return [thing]

    def from_first(self, thing: Any) -> Any:
        """What process 0 has: a copy of its ``thing``, on all of them."""
        return thing

    def sums(self, *numbers: float) -> list[float]:
        """The sums of numbers over all processes."""
        return [math.fsum(parts) for parts in zip(*self.gather(numbers), strict=True)]

    def check_equal(self, state: Callable[[], Mapping[str, npt.NDArray[Any]]]) -> None:
        """Make sure that all processes hold the same bits, which ``state`` gives.

        Raises:
            TrainingError: One differs.
        """


class Peers(Group):
    """Several processes.

    Args:
        rank: The number of this one.
        size: How many there are.
        device: "cpu" or "cuda": where the tensors are that they exchange.
    """

    def __init__(self, rank: int, size: int, device: str) -> None:
        self.rank = rank
        self.size = size
        self.device = device

    def sum(self, tensor: Any) -> None:
        """See `Group.sum`."""
        import torch

        self._together(lambda: torch.distributed.all_reduce(tensor))
        if self.device == "cuda":
            torch.cuda.synchronize()

    def sums(self, *numbers: float) -> list[float]:
        """See `Group.sums`; twice each step, so without pickling."""
        import torch

        tensor = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        self.sum(tensor)
        return [float(number) for number in tensor.tolist()]

    def gather(self, thing: Any) -> list[Any]:
        """See `Group.gather`."""
        import torch

        found: list[Any] = [None] * self.size
        self._together(lambda: torch.distributed.all_gather_object(found, thing))
        return found

    def from_first(self, thing: Any) -> Any:
        """See `Group.from_first`."""
        import torch

        box = [thing]
        self._together(lambda: torch.distributed.broadcast_object_list(box, src=0))
        return box[0]

    def check_equal(self, state: Callable[[], Mapping[str, npt.NDArray[Any]]]) -> None:
        """See `Group.check_equal`."""
        found = self.gather(digest(state()))
        odd = [rank for rank, other in enumerate(found) if other != found[0]]
        if odd:
            raise TrainingError(
                f"process {odd[0]} of {self.size} holds other weights than process 0; the machines compute "
                "different results: run the same onnxruntime on the same kind of processor on all of them"
            )

    def _together(self, action: Callable[[], object]) -> None:
        try:
            action()
        except RuntimeError as error:
            raise PeerLost(
                f"process {self.rank} of {self.size}: another one is gone or does not answer "
                f"({str(error).strip().splitlines()[0][:120]}); start again with --resume"
            ) from None


def digest(state: Mapping[str, npt.NDArray[Any]]) -> str:
    """A hash of names, types, shapes and bits."""
    sha = hashlib.sha256()
    for name in sorted(state):
        array = np.ascontiguousarray(state[name])
        sha.update(f"{name} {array.dtype} {array.shape}".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def size_of_group() -> int:
    """How many processes the environment says there are; 1 for a process that was started alone."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def leads() -> bool:
    """Whether this process reports: the first of a group, or the only one."""
    return size_of_group() == 1 or os.environ["RANK"] == "0"


def local_rank() -> int | None:
    """The number of this process among those of its machine, or None outside a group."""
    return int(os.environ.get("LOCAL_RANK", "0")) if size_of_group() > 1 else None


def threads_each(threads: int) -> int:
    """Threads of one process: ``threads`` where given, else its share of the machine's cores."""
    if threads or size_of_group() == 1:
        return threads
    return max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def restarted() -> bool:
    """Whether this process takes the place of one that died, so that the training goes on where it can."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@functools.cache
def join(device: str) -> Group:
    """Join the group that the environment describes; where it describes none, this process is alone.

    Args:
        device: "cpu" or "cuda".

    Raises:
        MissingDependency: torch is not installed.
        TrainingError: The others cannot be reached.
    """
    size = size_of_group()
    if size == 1:
        return Group()
    try:
        import torch
        import torch.distributed
    except ImportError:
        raise MissingDependency("torch", "torch", "train in several processes") from None
    seconds = float(os.environ.get("ONNXACCEL_PATIENCE", PATIENCE))
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        if device == "cuda":
            torch.cuda.set_device(local_rank())
        torch.distributed.init_process_group(
            "nccl" if device == "cuda" else "gloo", timeout=datetime.timedelta(seconds=seconds)
        )
    except (RuntimeError, ValueError) as error:
        why = str(error).strip().splitlines()[0][:160]
        raise TrainingError(
            f"the other processes cannot be reached at {address} ({why}); is the port taken, or a firewall "
            "between?"
        ) from None
    # Left to the interpreter's end, gloo's threads are torn down while they run, and at times abort.
    atexit.register(torch.distributed.destroy_process_group)
    return Peers(int(os.environ["RANK"]), size, device)
