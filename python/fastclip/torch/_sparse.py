"""The values of sparse gradients."""

from __future__ import annotations

import torch

__all__ = ["values_of"]

_COMPRESSED = {torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc}


def values_of(
    gradients: list[torch.Tensor],
) -> tuple[list[torch.Tensor], list[torch.Tensor]] | None:
    """Return the dense tensors to measure and to scale in place of gradients, or None if none is sparse.

    The norm of a sparse gradient is that of the coalesced one, in which the values of repeated indices are
    added up. The values are scaled as they are, because that scales their sums.
    """
    measured, scaled, any_sparse = [], [], False
    for gradient in gradients:
        if gradient.layout is torch.sparse_coo:
            any_sparse = True
            measured.append(gradient.coalesce()._values())
            scaled.append(gradient._values())
        elif gradient.layout in _COMPRESSED:
            any_sparse = True
            measured.append(gradient.values())
            scaled.append(gradient.values())
        else:
            measured.append(gradient)
            scaled.append(gradient)
    return (measured, scaled) if any_sparse else None
