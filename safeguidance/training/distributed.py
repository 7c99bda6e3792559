"""Several processes that train one network together: which rows belong to which, and what is summed over all of them.

Every process draws the same random numbers for the whole batch and evaluates the model on its own rows only. Losses
and gradients are sums over rows divided by the number of rows of the whole batch, so summing them over the processes
gives what one process with the whole batch has, up to rounding. (Weights whose gradient is zero but for rounding, such
as the bias of attention keys, may still differ: Adam scales every gradient up. They do not change what the HGR says.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch


class ProcessGroup(Protocol):
    """The processes of a run, as one of them sees it."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0; process 0 writes the files."""
        ...

    @property
    def world_size(self) -> int:
        """How many there are."""
        ...

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum of a tensor over all processes, each of which calls this at the same time with the same shape."""
        ...


@dataclass(frozen=True)
class _SingleProcess:
    rank: int = 0
    world_size: int = 1

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


SINGLE_PROCESS: ProcessGroup = _SingleProcess()
"""The group of a run in one process."""


def local_indices(count: int, group: ProcessGroup) -> list[int]:
    """Which of ``count`` rows belong to this process: every ``world_size``-th one."""
    return list(range(group.rank, count, group.world_size))


def shard(tensor: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
    """The rows of a tensor ``[B, ...]`` that belong to this process."""
    return tensor if group.world_size == 1 else tensor[group.rank :: group.world_size]


def all_gather(tensor: torch.Tensor, count: int, group: ProcessGroup) -> torch.Tensor:
    """The tensor ``[count, ...]`` that ``shard`` was applied to, on every process; exact.

    Args:
        tensor: this process's rows, perhaps none.
        count: rows of all processes together.
        group: the processes.
    """
    if group.world_size == 1:
        return tensor
    full = tensor.new_zeros((count, *tensor.shape[1:]))
    full[local_indices(count, group)] = tensor
    return group.all_reduce(full)


def all_reduce_grads(
    parameters: Iterable[torch.nn.Parameter], values: torch.Tensor, group: ProcessGroup
) -> torch.Tensor:
    """Sum gradients, in place, and a few values over all processes, with one message.

    Args:
        parameters: a gradient of None counts as zeros.
        values: ``[N]``.
        group: the processes.

    Returns:
        The values, summed.
    """
    if group.world_size == 1:
        return values
    listed = list(parameters)
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in listed]
    summed = group.all_reduce(torch.cat([values, *(grad.flatten() for grad in grads)]))
    offset = len(values)
    for parameter in listed:
        parameter.grad = summed[offset : offset + parameter.numel()].view_as(parameter).clone()
        offset += parameter.numel()
    return summed[: len(values)]
