"""Parameters of which each process keeps a part, so that their gradients have not the norm of all."""

from __future__ import annotations

from collections.abc import Iterable

import torch

__all__ = ["are_processes_several", "are_shards"]


def are_processes_several() -> bool:
    """Return whether this process is one of several that `torch.distributed` has connected."""
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized():
        return False
    return int(distributed.get_world_size()) > 1


def are_shards(parameters: Iterable[torch.Tensor]) -> bool:
    """Return whether one of the parameters belongs to `FullyShardedDataParallel`.

    PyTorch marks such parameters. It has no mark for those that other libraries divide.
    """
    return any(getattr(parameter, "_fsdp_flattened", False) for parameter in parameters)
