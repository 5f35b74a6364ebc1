"""A user's program over tensors of torch and JAX, checked and run as `numpy_cases.py` is."""

# Stubs of torch and JAX leave some types open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import assert_type

import fastclip
from fastclip import IndexedSlices
from fastclip.train import AdamOptimizer, compute_gradients

t: torch.Tensor = torch.tensor([3.0, 4.0])
parameter = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
j: jax.Array = jnp.asarray([3.0, 4.0])
a: npt.NDArray[np.float32] = np.array([3.0, 4.0], np.float32)

# A single tensor -------------------------------------------------------------------------------

assert type(assert_type(fastclip.clip_by_norm(t, 1.0), torch.Tensor)) is torch.Tensor
assert isinstance(assert_type(fastclip.clip_by_norm(j, 1.0), jax.Array), jax.Array)
assert isinstance(assert_type(fastclip.clip_by_average_norm(j, torch.tensor(1.0)), jax.Array), jax.Array)
assert type(assert_type(fastclip.clip_by_value(t, 0.0, a), torch.Tensor)) is torch.Tensor

# The result for a parameter is a tensor.
assert type(assert_type(fastclip.clip_by_norm(parameter, 1.0), torch.Tensor)) is torch.Tensor

# The result is `out`, of whatever type.
out = np.empty_like(a)
assert assert_type(fastclip.clip_by_norm(j, 1.0, out=out), npt.NDArray[np.float32]) is out
assert assert_type(fastclip.clip_by_norm(t, 1.0, out=t), torch.Tensor) is t

# Containers ------------------------------------------------------------------------------------

clipped, norm = fastclip.clip_by_global_norm([t, t.clone()], 1.0)
assert_type(clipped, list[torch.Tensor])
assert_type(norm, np.float32 | np.float64)
assert [type(tensor) for tensor in clipped] == [torch.Tensor, torch.Tensor]
assert type(norm) is np.float32

clipped_arrays = fastclip.clip_by_block_rms((j, j), 1.0)
assert_type(clipped_arrays, list[jax.Array])
assert all(isinstance(array, jax.Array) for array in clipped_arrays)

by_name: dict[str, torch.Tensor | None] = {"w": t, "b": None}
clipped_dict = fastclip.clip_by_global_norm(by_name, 1.0)[0]
assert_type(clipped_dict, dict[str, torch.Tensor | None])
assert type(clipped_dict["w"]) is torch.Tensor
tree = {"layer": {"w": j}}
clipped_tree = fastclip.clip_by_global_norm(tree, 1.0)[0]
assert_type(clipped_tree, dict[str, dict[str, jax.Array]])
assert isinstance(clipped_tree["layer"]["w"], jax.Array)

# Each entry keeps its kind.
mixed: list[torch.Tensor | jax.Array | npt.NDArray[np.float32]] = [t, j, a]
clipped_mixed = fastclip.clip_by_global_norm(mixed, 1.0)[0]
assert_type(clipped_mixed, list[torch.Tensor | jax.Array | npt.NDArray[np.float32]])
assert type(clipped_mixed[0]) is torch.Tensor
assert type(clipped_mixed[2]) is np.ndarray

in_place = fastclip.clip_by_global_norm([t], 1.0, out=[t])[0]
assert_type(in_place, list[torch.Tensor])
assert in_place[0] is t
written = fastclip.clip_by_global_norm([j], 1.0, out=[out])[0]
assert_type(written, list[npt.NDArray[np.float32]])
assert written[0] is out

assert assert_type(fastclip.global_norm(mixed), np.float32 | np.float64) > 0
assert_type(fastclip.tensor_norms(by_name), npt.NDArray[np.floating[Any]])

# Gradients and optimizers ----------------------------------------------------------------------

model = torch.nn.Linear(2, 1)
parameters = list(model.parameters())


def loss() -> torch.Tensor:
    return model(torch.ones(3, 2)).square().sum()  # type: ignore[no-any-return]


pairs = compute_gradients(loss, parameters)
assert_type(pairs, list[tuple[torch.Tensor | IndexedSlices | None, torch.Tensor]])
assert type(pairs[0][0]) is torch.Tensor
assert pairs[0][1] is parameters[0]

optimizer = AdamOptimizer(0.1)
optimizer.apply_gradients(pairs)
optimizer.apply_gradients(optimizer.compute_gradients(loss, parameters))
optimizer.minimize(loss, var_list=parameters)
slot = assert_type(optimizer.get_slot(parameters[0], "m"), npt.NDArray[Any] | None)
assert type(slot) is np.ndarray

# Wrong calls: a tensor is no container, and a container no tensor.
try:
    fastclip.clip_by_global_norm(t, 1.0)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
except TypeError:
    pass
else:
    raise AssertionError("no TypeError")
wrong_kind: list[jax.Array] = clipped  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
