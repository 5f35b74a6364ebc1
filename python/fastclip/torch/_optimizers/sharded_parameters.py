"""Parameters of which each process keeps a part, so that their gradients have not the norm of all."""

from __future__ import annotations

from collections.abc import Iterable

import torch

__all__ = ["are_shards"]


def are_shards(parameters: Iterable[torch.Tensor]) -> bool:
    """Return whether one of the parameters is a part, kept by this process for `FullyShardedDataParallel`.

    PyTorch marks such parameters. It has no mark for those that other libraries divide.
    """
    distributed = torch.distributed
    if (
        not distributed.is_available()
        or not distributed.is_initialized()
        or distributed.get_world_size() == 1
    ):
        return False
    return any(getattr(parameter, "_fsdp_flattened", False) for parameter in parameters)
