"""Gradients of embeddings: rows of a larger tensor, of which some occur more than once."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from fastclip import IndexedSlices, train
from fastclip.cli.bench.cliffs.cliff import Cliff, Size, Work, check_close, memory_limit, normal
from fastclip.cli.bench.measuring.timing import Contender

_WIDTH = 32
_RATE = 0.01


class _Rows:
    """Rows, their indices, and the sums of the rows of each index."""

    def __init__(self, size: Size) -> None:
        count, self.total = size.count(100_000, 100), size.count(50_000, 50)
        self.values = normal((count, _WIDTH))
        self.indices = np.random.default_rng(7).integers(0, self.total, count)
        self.dense = np.zeros((self.total, _WIDTH))
        np.add.at(self.dense, self.indices, self.values)
        self.slices = IndexedSlices(self.values, self.indices, (self.total, _WIDTH))

    def torch(self) -> Any:
        """Return the same rows as a sparse tensor of torch."""
        torch = importlib.import_module("torch")
        indices = torch.from_numpy(self.indices)[None]
        values = torch.from_numpy(self.values)
        return torch.sparse_coo_tensor(indices, values, self.dense.shape, check_invariants=False)


def _coalesce(size: Size) -> Work:
    rows = _Rows(size)

    def check(contender: Contender) -> None:
        result: Any = contender.result
        values = result.values if contender.name == "fastclip" else result.values()
        check_close(contender, values, rows.dense[np.unique(rows.indices)])

    def torch() -> Contender:
        sparse = rows.torch()
        # Marks the tensor as not coalesced before each call; torch would return it as it is.
        return Contender("torch", "coalesce", sparse.coalesce, lambda: sparse._coalesced_(False))

    return Work(
        shapes=(rows.values.shape,),
        nbytes=rows.values.nbytes,
        contenders={
            "fastclip": lambda: Contender("fastclip", "coalesce", rows.slices.coalesce),
            "torch": torch,
        },
        limit=memory_limit(rows.values.nbytes, "copy"),
        check=check,
    )


def _adagrad(size: Size) -> Work:
    rows = _Rows(size)
    variable, other = (np.ones(rows.dense.shape, np.float32) for _ in range(2))
    expected = 1 - _RATE * rows.dense / np.sqrt(rows.dense**2 + 0.1)

    def fastclip_() -> Contender:
        optimizer = train.AdagradOptimizer(_RATE, initial_accumulator_value=0.1)
        return Contender(
            "fastclip", "AdagradOptimizer", lambda: optimizer.apply_gradients([(rows.slices, variable)])
        )

    def torch() -> Contender:
        module = importlib.import_module("torch")
        module.sparse.check_sparse_tensor_invariants.disable()  # the default, of which torch warns once
        parameter = module.from_numpy(other).requires_grad_()
        optimizer = module.optim.Adagrad([parameter], _RATE, initial_accumulator_value=0.1, eps=0.0)

        def refresh() -> None:
            parameter.grad = rows.torch()

        return Contender("torch", "Adagrad", optimizer.step, refresh)

    def check(contender: Contender) -> None:
        check_close(contender, variable if contender.name == "fastclip" else other, expected, rtol=1e-3)

    return Work(
        shapes=(rows.values.shape,),
        nbytes=rows.values.nbytes,
        contenders={"fastclip": fastclip_, "torch": torch},
        limit=memory_limit(rows.values.nbytes, "read + read + scale + scale"),
        check=check,
    )


CASES = (
    Cliff("coalesce", "f32", _coalesce, {"torch": 0.6}),
    Cliff("adagrad-of-rows", "f32", _adagrad, {"torch": 0.5}),
)
