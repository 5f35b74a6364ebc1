"""Contenders of the clipping benchmark: fastclip, NumPy, torch, TensorFlow and JAX.

For each contender and operation, a function takes the workload of a row and returns a label and the
function to time, or None if the library does not support the row: torch does not clip by the global norm
out of place, TensorFlow and JAX do not clip in place. A library is imported only if it is selected.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np

import fastclip
from fastclip.cli.bench.clipping.benchmark_rows import CONTAINERS, Workload
from fastclip.cli.bench.inputs.arrays import Array
from fastclip.cli.bench.measuring.timing import Contender
from fastclip.cli.bench.suites.peer_libraries import Peer, Peers, torch_tensor

Call = Callable[[], object]
LabelledCall = tuple[str, Call] | None

PEERS: Peers = {
    "numpy": Peer("NumPy, with straightforward expressions"),
    "expert": Peer("NumPy, with the fastest functions for the purpose"),
    "torch": Peer("torch", ("torch",)),
    "tf": Peer("TensorFlow, in a tf.function", ("tensorflow",)),
    "jax": Peer("jitted optax, or jitted JAX if optax has no such function", ("jax", "optax")),
}


def contender(name: str, work: Workload) -> Contender | None:
    """Return the contender `name` for a workload; None if it does not support the row."""
    labelled = _CONTENDERS[name, work.row.operation](work)
    return None if labelled is None else Contender(name, *labelled, refresh=work.refresh)


def check_result(contender: Contender, work: Workload) -> None:
    """Raise AssertionError if the contender's last result is wrong."""
    result: Any = work.gradients[0] if work.row.in_place else contender.result
    if not work.row.in_place:
        while isinstance(result, (list, tuple)):
            result = result[0]
    if contender.name == "torch" and not work.row.in_place:
        result = result.float()  # torch cannot convert bfloat16 to NumPy
    expected = work.expected_start()
    start = np.asarray(result).reshape(-1)[: expected.size].astype(np.float64)
    if not np.allclose(start, expected, rtol=0.02, atol=1e-6):
        raise AssertionError(f"{work.row.name}: {contender.label} gave {start[:4]}, expected {expected[:4]}")


def _container(work: Workload) -> Any:
    """Return the gradients as the row's case has them, over the same memory."""
    if work.row.case == "layers":
        pairs = zip(work.gradients[::2], work.gradients[1::2], strict=True)
        return {f"layer{i}": {"w": w, "b": b} for i, (w, b) in enumerate(pairs)}
    if work.row.case == "many-torch":
        return [torch_tensor(gradient) for gradient in work.gradients]
    return work.gradients


def _fastclip_list(work: Workload) -> LabelledCall:
    """Clip the arrays in a list, for rows whose gradients are something else."""
    if work.row.case not in CONTAINERS:
        return None
    gradients, bound = work.gradients, work.bound
    return "the same arrays in a list", lambda: fastclip.clip_by_global_norm(gradients, bound, out=gradients)


def _fastclip_global_norm(work: Workload) -> LabelledCall:
    gradients, bound = _container(work), work.bound
    if work.row.in_place:
        return (
            "clip_by_global_norm(out=)",
            lambda: fastclip.clip_by_global_norm(gradients, bound, out=gradients),
        )
    return "clip_by_global_norm", lambda: fastclip.clip_by_global_norm(gradients, bound)


def _fastclip_norm_of_rows(work: Workload) -> LabelledCall:
    (gradient,), bound = work.gradients, work.bound
    return "clip_by_norm(axes=[1])", lambda: fastclip.clip_by_norm(gradient, bound, axes=[1])


def _fastclip_value(work: Workload) -> LabelledCall:
    (gradient,), bound = work.gradients, work.bound
    out = gradient if work.row.in_place else None
    return "clip_by_value", lambda: fastclip.clip_by_value(gradient, -bound, bound, out=out)


def _numpy_global_norm(work: Workload) -> LabelledCall:
    gradients, bound = work.gradients, work.bound
    if work.row.dtype == "bf16":

        def scale() -> Any:  # a sum in bfloat16 stops growing early, so it is computed in float32
            squares = (np.sum(np.square(g.astype(np.float32))) for g in gradients)
            return gradients[0].dtype.type(bound / max(np.sqrt(sum(squares)), bound))
    else:

        def scale() -> Any:
            norm = np.sqrt(sum(np.sum(np.square(g)) for g in gradients))
            return bound / max(norm, bound)

    def out_of_place() -> list[Array]:
        factor = scale()
        return [g * factor for g in gradients]

    def in_place() -> None:
        factor = scale()
        for g in gradients:
            g *= factor

    if work.row.in_place:
        return "g *= c / max(norm, c)", in_place
    return "g * (c / max(norm, c))", out_of_place


def _numpy_norm_of_rows(work: Workload) -> LabelledCall:
    (g,), bound = work.gradients, work.bound

    def call() -> Array:
        norms = np.sqrt(np.sum(np.square(g), axis=1, keepdims=True))
        clipped: Array = g * (bound / np.maximum(norms, bound))
        return clipped

    return "g * (c / np.maximum(norms, c))", call


def _numpy_value(work: Workload) -> LabelledCall:
    (g,), bound = work.gradients, work.bound
    out = g if work.row.in_place else None
    return "np.clip", lambda: np.clip(g, -bound, bound, out=out)


def _expert_global_norm(work: Workload) -> LabelledCall:
    gradients, bound = work.gradients, work.bound
    factor_type = gradients[0].dtype.type

    def norm() -> float:
        total = 0.0
        for g in gradients:
            flat = g.ravel()
            if work.row.dtype != "f32":
                flat = flat.astype(np.float32)  # np.vdot of float16 is slow, and its sum loses digits
            total += float(np.vdot(flat, flat))
        return math.sqrt(total)

    def out_of_place() -> list[Array]:
        factor = factor_type(bound / max(norm(), bound))
        return [np.multiply(g, factor) for g in gradients]

    def in_place() -> None:
        total = norm()
        if total > bound:
            factor = factor_type(bound / total)
            for g in gradients:
                np.multiply(g, factor, out=g)

    if work.row.in_place:
        return "np.vdot, np.multiply(out=)", in_place
    return "np.vdot, np.multiply", out_of_place


def _expert_norm_of_rows(work: Workload) -> LabelledCall:
    (g,), bound = work.gradients, work.bound
    if work.row.dtype == "bf16":
        return None  # np.einsum does not support bfloat16

    def call() -> Array:
        norms = np.sqrt(np.einsum("ij,ij->i", g, g))
        clipped: Array = np.multiply(g, (bound / np.maximum(norms, bound))[:, None])
        return clipped

    return "np.einsum, np.multiply", call


def _torch_global_norm(work: Workload) -> LabelledCall:
    if not work.row.in_place:
        return None
    torch = importlib.import_module("torch")
    parameters, bound = [], work.bound
    for gradient in work.gradients:
        # Clipping uses .grad only. The memory of the parameter itself is never read or written.
        tensor = torch_tensor(gradient)
        parameter = torch.empty_like(tensor, requires_grad=True)
        parameter.grad = tensor
        parameters.append(parameter)
    clip = torch.nn.utils.clip_grad_norm_
    return "clip_grad_norm_", lambda: clip(parameters, bound)


def _torch_norm_of_rows(work: Workload) -> LabelledCall:
    torch = importlib.import_module("torch")
    tensor, bound = torch_tensor(work.gradients[0]), work.bound
    return "torch.renorm", lambda: torch.renorm(tensor, 2, 0, bound)


def _torch_value(work: Workload) -> LabelledCall:
    torch = importlib.import_module("torch")
    tensor, bound = torch_tensor(work.gradients[0]), work.bound
    if work.row.in_place:
        return "torch.clamp_", lambda: tensor.clamp_(-bound, bound)
    return "torch.clamp", lambda: torch.clamp(tensor, -bound, bound)


def _tensorflow(work: Workload, label: str, function: Callable[[Any, Any], Any]) -> LabelledCall:
    if work.row.in_place:
        return None
    tf = importlib.import_module("tensorflow")
    # These are copies of the gradients, because TensorFlow does not share memory with NumPy.
    tensors = [tf.constant(gradient) for gradient in work.gradients]
    compiled = tf.function(lambda gradients: function(tf, gradients))
    return label, lambda: compiled(tensors)


def _tensorflow_global_norm(work: Workload) -> LabelledCall:
    bound = work.bound
    return _tensorflow(
        work, "tf.clip_by_global_norm", lambda tf, gradients: tf.clip_by_global_norm(gradients, bound)
    )


def _tensorflow_norm_of_rows(work: Workload) -> LabelledCall:
    bound = work.bound
    return _tensorflow(
        work, "tf.clip_by_norm", lambda tf, gradients: tf.clip_by_norm(gradients[0], bound, axes=[1])
    )


def _tensorflow_value(work: Workload) -> LabelledCall:
    bound = work.bound
    return _tensorflow(
        work, "tf.clip_by_value", lambda tf, gradients: tf.clip_by_value(gradients[0], -bound, bound)
    )


def _jax(work: Workload, label: str, function: Callable[[Any], Any]) -> LabelledCall:
    if work.row.in_place:
        return None
    jax = importlib.import_module("jax")
    arrays = [jax.numpy.array(gradient) for gradient in work.gradients]  # copies
    compiled = jax.jit(function)
    return label, lambda: jax.block_until_ready(compiled(arrays))


def _optax_global_norm(work: Workload) -> LabelledCall:
    clip = importlib.import_module("optax").clip_by_global_norm(work.bound)
    return _jax(
        work, "optax.clip_by_global_norm", lambda gradients: clip.update(gradients, clip.init(None))[0]
    )


def _jax_norm_of_rows(work: Workload) -> LabelledCall:
    jnp, bound = importlib.import_module("jax.numpy"), work.bound

    def clip(gradients: Any) -> Any:
        (g,) = gradients
        norms = jnp.sqrt(jnp.sum(jnp.square(g), axis=1, keepdims=True))
        return g * (bound / jnp.maximum(norms, bound))

    return _jax(work, "g * (c / jnp.maximum(norms, c))", clip)


def _jax_value(work: Workload) -> LabelledCall:
    jnp, bound = importlib.import_module("jax.numpy"), work.bound
    return _jax(work, "jnp.clip", lambda gradients: jnp.clip(gradients[0], -bound, bound))


_CONTENDERS: dict[tuple[str, str], Callable[[Workload], LabelledCall]] = {
    ("fastclip", "global-norm"): _fastclip_global_norm,
    ("fastclip", "norm-of-rows"): _fastclip_norm_of_rows,
    ("fastclip", "value"): _fastclip_value,
    ("fastclip-list", "global-norm"): _fastclip_list,
    ("fastclip-list", "norm-of-rows"): lambda work: None,
    ("fastclip-list", "value"): lambda work: None,
    ("numpy", "global-norm"): _numpy_global_norm,
    ("numpy", "norm-of-rows"): _numpy_norm_of_rows,
    ("numpy", "value"): _numpy_value,
    ("expert", "global-norm"): _expert_global_norm,
    ("expert", "norm-of-rows"): _expert_norm_of_rows,
    ("expert", "value"): lambda work: None,  # the same as "numpy": np.clip
    ("torch", "global-norm"): _torch_global_norm,
    ("torch", "norm-of-rows"): _torch_norm_of_rows,
    ("torch", "value"): _torch_value,
    ("tf", "global-norm"): _tensorflow_global_norm,
    ("tf", "norm-of-rows"): _tensorflow_norm_of_rows,
    ("tf", "value"): _tensorflow_value,
    ("jax", "global-norm"): _optax_global_norm,
    ("jax", "norm-of-rows"): _jax_norm_of_rows,
    ("jax", "value"): _jax_value,
}
