"""Several processes that train one HGR together: who owns which rows, and what must be added up over all of them.

Every process draws the same random numbers for the whole batch and evaluates the model on its own rows only. Losses
and gradients are sums over rows divided by the number of rows of the whole batch, so adding them up over the processes
gives what one process with the whole batch has, up to rounding. (Weights whose gradient is zero but for rounding, such
as the bias of attention keys, may still differ: Adam scales every gradient up. They do not change what the HGR says.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch


class Team(Protocol):
    """The processes of a run, as one of them sees it."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0; process 0 writes the files."""
        ...

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum of a tensor over all processes, each of which calls this at the same time with the same shape."""
        ...


@dataclass(frozen=True)
class _Alone:
    rank: int = 0
    count: int = 1

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


ALONE: Team = _Alone()
"""One process."""


def own(count: int, team: Team) -> list[int]:
    """Which of ``count`` rows belong to this process: every ``team.count``-th one."""
    return list(range(team.rank, count, team.count))


def share(tensor: torch.Tensor, team: Team) -> torch.Tensor:
    """The rows of a tensor ``[B, ...]`` that belong to this process."""
    return tensor if team.count == 1 else tensor[team.rank :: team.count]


def whole(tensor: torch.Tensor, count: int, team: Team) -> torch.Tensor:
    """The tensor ``[count, ...]`` that ``share`` was applied to, on every process; exact.

    Args:
        tensor: this process's rows, perhaps none.
        count: rows of all processes together.
        team: the processes.
    """
    if team.count == 1:
        return tensor
    full = tensor.new_zeros((count, *tensor.shape[1:]))
    full[own(count, team)] = tensor
    return team.total(full)


def add_up(parameters: Iterable[torch.nn.Parameter], values: torch.Tensor, team: Team) -> torch.Tensor:
    """Sum gradients, in place, and a few values over all processes, with one message.

    Args:
        parameters: a gradient of None counts as zeros.
        values: ``[N]``.
        team: the processes.

    Returns:
        The values, summed.
    """
    if team.count == 1:
        return values
    listed = list(parameters)
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in listed]
    summed = team.total(torch.cat([values, *(part.flatten() for part in parts)]))
    place = len(values)
    for parameter in listed:
        parameter.grad = summed[place : place + parameter.numel()].view_as(parameter).clone()
        place += parameter.numel()
    return summed[: len(values)]
