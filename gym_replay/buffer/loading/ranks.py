"""Which of several processes this one is, and what they must agree on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from gym_replay.errors import FieldError


@dataclass(frozen=True)
class Ranks:
    """This process among those that share the samples.

    Attributes:
        rank, world_size: from 0 to ``world_size - 1``, and how many there are.
        connected: whether these are the ranks of torch's default process group, through which they can agree.
    """

    rank: int = 0
    world_size: int = 1
    connected: bool = False

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in their order; every rank must call it. Unconnected ones see their own."""
        if not self.connected or self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values


def find_ranks(rank: int | None, world_size: int | None) -> Ranks:
    """Return the ranks as given, or of the initialised process group, or of a process alone.

    Raises:
        FieldError: only one of the two is given, or they are out of range.
    """
    connected = dist.is_available() and dist.is_initialized()
    if rank is None and world_size is None:
        return Ranks(dist.get_rank(), dist.get_world_size(), True) if connected else Ranks()
    if rank is None or world_size is None:
        raise FieldError(
            f"rank={rank!r}, world_size={world_size!r}: expected both or neither; with neither, those of an "
            "initialised torch.distributed are taken"
        )
    if isinstance(rank, bool) or isinstance(world_size, bool) or not 0 <= rank < world_size:
        raise FieldError(f"rank={rank!r}, world_size={world_size!r}: expected 0 <= rank < world_size")
    same = connected and (rank, world_size) == (dist.get_rank(), dist.get_world_size())
    return Ranks(int(rank), int(world_size), same)


def agree_on_seed(ranks: Ranks, drawn: int, settings: dict[str, Any]) -> int:
    """Return the seed that rank 0 drew, on every rank.

    Raises:
        FieldError: there are other ranks that cannot be asked, or they have other data or settings.
    """
    if ranks.world_size > 1 and not ranks.connected:
        raise FieldError(
            f"seed=None with world_size={ranks.world_size}: ranks that are not those of an initialised "
            "torch.distributed cannot agree on a seed; pass the same seed to each"
        )
    everyone = ranks.gather((drawn, settings))
    require_same(everyone)
    seed: int = everyone[0][0]
    return seed


def require_same(everyone: list[tuple[Any, dict[str, Any]]]) -> None:
    """Refuse ranks whose loaders differ: they would wait for one another at the end of an epoch.

    Raises:
        FieldError: on every rank.
    """
    for name, mine in everyone[0][1].items():
        found = [settings[name] for _, settings in everyone]
        if any(other != mine for other in found):
            raise FieldError(f"{name} differs between the ranks: {found}; give them the same data and settings")
