"""A user's program over NumPy arrays. Type checkers check it, and it runs: types and behaviour have to agree.

Each wrong call has the comments by which mypy and pyright expect an error, which are errors themselves where
there is none; at run time it has to raise.
"""

from __future__ import annotations

import array
import io
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from typing_extensions import assert_type

import fastclip
from fastclip import IndexedSlices, Variable
from fastclip.train import AdamOptimizer, GradientDescentOptimizer, Optimizer, compute_gradients

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
AnyArray = npt.NDArray[Any]
Norm = np.float32 | np.float64


class Layer(NamedTuple):
    w: Float32
    b: Float32 | None


class Tagged(np.ndarray[tuple[int], np.dtype[np.float32]]):
    pass


def is_array(value: object, dtype: type[np.generic] | None = None) -> bool:
    """Whether a value is an array, of no subclass, and of the dtype if one is named."""
    kind: type[object] = type(value)
    return kind is np.ndarray and (dtype is None or getattr(value, "dtype", None) == dtype)


def are_arrays(values: list[Any], dtype: type[np.generic] | None = None) -> bool:
    return type(values) is list and all(is_array(value, dtype) for value in values)


@contextmanager
def raises(kind: type[Exception]) -> Generator[None, None, None]:
    """Expects the statement to raise, so that a checker that rejects it is right."""
    try:
        yield
    except kind:
        return
    raise AssertionError(f"no {kind.__name__}")


a: Float32 = np.array([3.0, 4.0], np.float32)
b: Float64 = np.array([[6.0], [8.0]])
matrix: np.ndarray[tuple[int, int], np.dtype[np.float64]] = np.ones((2, 2))
slices = IndexedSlices([[3.0], [4.0]], [0, 2])

# A single tensor -------------------------------------------------------------------------------

clipped_a = fastclip.clip_by_norm(a, 1.0)
assert_type(clipped_a, Float32)
assert is_array(clipped_a, np.float32)

# The number of dimensions is kept too.
clipped_matrix = fastclip.clip_by_norm(matrix, np.float32(1.0), axes=[0], ord=np.inf)
assert_type(clipped_matrix, np.ndarray[tuple[int, int], np.dtype[np.float64]])
assert is_array(clipped_matrix, np.float64)

by_value = fastclip.clip_by_value(a, -1, np.array([1.0, 2.0]))
assert_type(by_value, Float32)
assert is_array(by_value, np.float32)

integers: npt.NDArray[np.int64] = np.array([3, 4])
clipped_integers = fastclip.clip_by_value(integers, 0, 3)
assert_type(clipped_integers, npt.NDArray[np.int64])
assert is_array(clipped_integers, np.int64)

average = fastclip.clip_by_average_norm(b, Fraction(1, 2))
assert_type(average, Float64)
assert is_array(average, np.float64)

clipped_slices = fastclip.clip_by_norm(slices, 1.0)
assert_type(clipped_slices, IndexedSlices)
assert type(clipped_slices) is IndexedSlices

# What is converted to an array gives an array.
for converted in (
    assert_type(fastclip.clip_by_norm([[3.0, 4.0], [0, 1]], 1.0), AnyArray),
    assert_type(fastclip.clip_by_norm(3.0, 1.0), AnyArray),
    assert_type(fastclip.clip_by_norm(np.float32(3.0), 1.0), AnyArray),
    assert_type(fastclip.clip_by_norm(array.array("f", [3.0]), 1.0), AnyArray),
    assert_type(fastclip.clip_by_value(memoryview(b"\x01\x05"), 0, 3), AnyArray),
    assert_type(fastclip.clip_by_average_norm(Variable([3.0]), 1.0), AnyArray),
):
    assert is_array(converted)

# So does a subclass of arrays.
clipped_tagged = fastclip.clip_by_norm(a.view(Tagged), 1.0)
assert_type(clipped_tagged, np.ndarray[tuple[int], np.dtype[np.float32]])
assert is_array(clipped_tagged, np.float32)

# The result is `out`, of whatever type.
out = np.empty_like(a)
assert assert_type(fastclip.clip_by_norm(a, 1.0, out=out), Float32) is out
assert assert_type(fastclip.clip_by_value([[3.0], [4.0]], 0.0, 1.0, out=b), Float64) is b
buffer = array.array("f", [0.0, 0.0])
assert assert_type(fastclip.clip_by_average_norm(a, 1.0, out=buffer), "array.array[float]") is buffer
assert assert_type(fastclip.clip_by_norm(slices, 1.0, out=slices), IndexedSlices) is slices

# Containers ------------------------------------------------------------------------------------

clipped, norm = fastclip.clip_by_global_norm([a, a.copy()], 1.0)
assert_type(clipped, list[Float32])
assert_type(norm, Norm)
assert are_arrays(clipped, np.float32)
assert type(norm) is np.float32

# A tuple, the values of a dict, and any sequence that is annotated as one.
clipped_tuple = fastclip.clip_by_global_norm((a, a), 1.0)[0]
assert_type(clipped_tuple, list[Float32])
assert are_arrays(clipped_tuple, np.float32)
sequence: Sequence[Float32] = [a]
assert_type(fastclip.clip_by_block_rms(sequence, 1.0), list[Float32])
by_name = {"w": a.copy(), "b": a.copy()}
clipped_values = fastclip.clip_by_global_norm(by_name.values(), 1.0)[0]
assert_type(clipped_values, list[Float32])
assert are_arrays(clipped_values, np.float32)

# None stays None, slices stay slices, and arrays of different types each keep theirs.
optional: list[Float32 | None] = [a, None]
clipped_optional = fastclip.clip_by_global_norm(optional, 1.0)[0]
assert_type(clipped_optional, list[Float32 | None])
assert is_array(clipped_optional[0], np.float32)
assert clipped_optional[1] is None
mixed: list[Float32 | Float64 | IndexedSlices] = [a, b, slices]
clipped_mixed = fastclip.clip_by_block_rms(mixed, 1.0)
assert_type(clipped_mixed, list[Float32 | Float64 | IndexedSlices])
assert [type(value) for value in clipped_mixed] == [np.ndarray, np.ndarray, IndexedSlices]

# Entries that are converted to arrays give arrays.
clipped_numbers = fastclip.clip_by_global_norm([[3.0, 4.0], [1.0]], 1.0)[0]
assert_type(clipped_numbers, list[AnyArray])
assert are_arrays(clipped_numbers)
clipped_variables = fastclip.clip_by_global_norm([Variable([3.0]), Variable(1.0)], 1.0)[0]
assert_type(clipped_variables, list[AnyArray])
assert are_arrays(clipped_variables, np.float32)
clipped_scalars = fastclip.clip_by_block_rms({"x": 3.0}, 1.0)
assert is_array(assert_type(clipped_scalars["x"], AnyArray))

# Dicts, named tuples and nested containers keep their type.
clipped_dict = fastclip.clip_by_global_norm(by_name, 1.0)[0]
assert_type(clipped_dict, dict[str, Float32])
assert type(clipped_dict) is dict
assert is_array(clipped_dict["w"], np.float32)
ordered: OrderedDict[str, Float32] = OrderedDict(w=a)
clipped_ordered = fastclip.clip_by_block_rms(ordered, 1.0)
assert_type(clipped_ordered, OrderedDict[str, Float32])
assert type(clipped_ordered) is OrderedDict
layer = Layer(a, None)
clipped_layer = fastclip.clip_by_global_norm(layer, 1.0)[0]
assert_type(clipped_layer, Layer)
assert type(clipped_layer) is Layer
assert clipped_layer.b is None
layers = {"encoder": [layer, layer], "decoder": [layer]}
clipped_layers = fastclip.clip_by_global_norm(layers, 1.0)[0]
assert_type(clipped_layers, dict[str, list[Layer]])
assert type(clipped_layers["encoder"][1]) is Layer
rows = [[a], [a, a]]
clipped_rows = fastclip.clip_by_block_rms(rows, 1.0)
assert_type(clipped_rows, list[list[Float32]])
assert type(clipped_rows[0]) is list
nested_tuple = (a, [b])
clipped_nested_tuple = fastclip.clip_by_global_norm(nested_tuple, 1.0)[0]
assert_type(clipped_nested_tuple, tuple[Float32, list[Float64]])
assert type(clipped_nested_tuple) is tuple

# The result is as `out`, and of the type of the gradients, not of the parameters.
outs: list[Float64] = [np.empty(2)]
written = fastclip.clip_by_global_norm([[3.0, 4.0]], 1.0, out=outs)[0]
assert_type(written, list[Float64])
assert written[0] is outs[0]
out_values = fastclip.clip_by_global_norm(by_name.values(), 1.0, out=tuple(by_name.values()))[0]
assert_type(out_values, list[Float32])
assert type(out_values) is list
assert out_values[0] is by_name["w"]
assert assert_type(fastclip.clip_by_block_rms(by_name, 1.0, out=by_name), dict[str, Float32]) is by_name
assert assert_type(fastclip.clip_by_global_norm(layer, 1.0, out=layer)[0], Layer) is layer
adapted = fastclip.adaptive_clip([a], [b[:, 0]], clipping=0.1, axes=0)
assert_type(adapted, list[Float64])
assert are_arrays(adapted, np.float64)
adapted_dict = fastclip.adaptive_clip(by_name, by_name)
assert_type(adapted_dict, dict[str, Float32])
assert type(adapted_dict) is dict

# Norms -----------------------------------------------------------------------------------------

assert type(assert_type(fastclip.global_norm([a, None, slices]), Norm)) is np.float64
assert type(assert_type(fastclip.global_norm(by_name, ord=1), Norm)) is np.float32
assert is_array(assert_type(fastclip.tensor_norms(by_name), npt.NDArray[np.floating[Any]]))

# `use_norm` is returned as it was passed.
same_norm = fastclip.clip_by_global_norm([a], 1.0, use_norm=np.float32(2))[1]
assert type(assert_type(same_norm, np.float32)) is np.float32
fraction = Fraction(5, 2)
same_fraction = fastclip.clip_by_global_norm(by_name, 1.0, fraction)[1]
assert assert_type(same_fraction, Fraction) is fraction
computed_norm = fastclip.clip_by_global_norm([a], 1.0, None, on_nonfinite="raise", norms=np.empty(1))[1]
assert type(assert_type(computed_norm, Norm)) is np.float32


class Communicator:
    def allreduce(self, array: AnyArray) -> AnyArray:
        return array


assert fastclip.global_norm([a], comm=Communicator()) > 0

# Gradients and optimizers ----------------------------------------------------------------------

w = Variable([1.0, 2.0])
assert assert_type(fastclip.trainable_variables(), list[Variable])
assert assert_type(fastclip.get_collection(fastclip.GraphKeys.TRAINABLE_VARIABLES), list[Variable])


def loss() -> Any:
    return (w * w).sum()


def squared(*values: Any) -> Any:
    return sum((value * value).sum() for value in values)


def gradients_by_hand(loss: Callable[..., Any], values: list[Any]) -> tuple[Any, Any]:
    return loss(), [IndexedSlices(2 * value[:1], [0]) for value in values]


pairs = compute_gradients(loss, [w])
assert_type(pairs, list[tuple[AnyArray | None, Variable]])
assert is_array(pairs[0][0], np.float32)
assert pairs[0][1] is w
assert_type(compute_gradients(loss, {"w": w}), list[tuple[AnyArray | None, Variable]])
assert_type(compute_gradients(loss, w), list[tuple[AnyArray | None, Variable]])
all_pairs = compute_gradients(loss)
assert_type(all_pairs, list[tuple[AnyArray | None, Variable]])
assert w in [variable for _, variable in all_pairs]

array_pairs = compute_gradients(squared, [a])
assert_type(array_pairs, list[tuple[Float32 | None, Float32]])
assert is_array(array_pairs[0][0], np.float32)
assert array_pairs[0][1] is a

# Other backends, and lists of variables and arrays, may have sparse gradients.
sparse_pairs = compute_gradients(loss, [w], backend=gradients_by_hand)
assert_type(sparse_pairs, list[tuple[AnyArray | IndexedSlices | None, Variable]])
assert type(sparse_pairs[0][0]) is IndexedSlices
both: list[Variable | Float32] = [w, a]
both_pairs = compute_gradients(squared, both)
assert_type(both_pairs, list[tuple[AnyArray | IndexedSlices | None, Variable | Float32]])
assert [variable for _, variable in both_pairs] == [w, a]
nested_pairs = compute_gradients(loss, [[w], [w]])
assert_type(nested_pairs, list[tuple[Any, Any]])
assert len(nested_pairs) == 2

optimizer = AdamOptimizer(0.1, global_clipnorm=1.0)
step = np.array(0)
optimizer.apply_gradients(optimizer.compute_gradients(loss, [w]), global_step=step)
optimizer.apply_gradients(pairs)
optimizer.apply_gradients(array_pairs)
optimizer.apply_gradients(zip([a, a], [w, np.ones(2)], strict=True))
optimizer.apply_gradients([(slices.values[:, 0], array.array("d", [1.0, 2.0])), (None, w)])
optimizer.apply_gradients((gradient, variable) for gradient, variable in sparse_pairs)
optimizer.minimize(loss, var_list=[w])
optimizer.minimize(loss, step, [[w], {"unused": Variable(1.0)}])
computed = optimizer.compute_gradients(loss, [w])
assert_type(computed, list[tuple[AnyArray | None, Variable]])
assert computed[0][1] is w
last_norm = assert_type(optimizer.last_norm, np.float32 | np.float64 | None)
assert type(last_norm) is np.float32
slot = assert_type(optimizer.get_slot(w, "m"), AnyArray | None)
assert is_array(slot, np.float32)
assert assert_type(optimizer.get_slot_names(), list[str]) == ["m", "v"]
assert are_arrays(assert_type(optimizer.variables(), list[AnyArray]))

# The arrays of a state have no type that a checker sees, so that they can be passed by name to np.savez.
file = io.BytesIO()
np.savez(file, **assert_type(optimizer.state_dict(), dict[str, Any]))
file.seek(0)
optimizer.load_state_dict(np.load(file))
assert type(assert_type(optimizer.skipped_steps, int)) is int


def accept_optimizer(optimizer: Optimizer) -> None: ...


accept_optimizer(GradientDescentOptimizer(0.1))

# Wrong calls -----------------------------------------------------------------------------------

# Functions of one tensor take no container, text or None.
with raises(TypeError):
    fastclip.clip_by_norm(by_name, 1.0)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
with raises(TypeError):
    fastclip.clip_by_norm("text", 1.0)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
with raises(TypeError):
    fastclip.clip_by_value(None, 0.0, 1.0)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
with raises(TypeError):
    fastclip.clip_by_norm(a, "1.0")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
with raises(TypeError):
    fastclip.clip_by_average_norm(a, [1.0])  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
with raises(TypeError):
    fastclip.clip_by_norm(a, 1.0, out=[a])  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]

# Functions of many tensors take no single one.
with raises(TypeError):
    fastclip.clip_by_global_norm(a, 1.0)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
with raises(TypeError):
    fastclip.clip_by_block_rms(slices, 1.0)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
with raises(TypeError):
    fastclip.adaptive_clip([a], a)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
with raises(TypeError):
    fastclip.clip_by_global_norm([a], 1.0, out=a)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
with raises(TypeError):
    fastclip.global_norm(3.0)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

# Entries are tensors, and text is none.
with raises(TypeError):
    fastclip.clip_by_global_norm("text", 1.0)  # type: ignore[type-var]  # pyright: ignore[reportCallIssue, reportArgumentType]
with raises(TypeError):
    fastclip.clip_by_global_norm(["text"], 1.0)  # type: ignore[type-var]  # pyright: ignore[reportCallIssue, reportArgumentType]
with raises(TypeError):
    fastclip.clip_by_global_norm({"w": "text"}, 1.0)  # type: ignore[type-var]  # pyright: ignore[reportCallIssue, reportArgumentType]
with raises(TypeError):
    fastclip.tensor_norms([[["text"]]])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

# Options.
with raises(TypeError):
    fastclip.clip_by_global_norm([a], "1.0")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
with raises(ValueError):
    fastclip.clip_by_global_norm([a], 1.0, on_nonfinite="ignore")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
with raises(TypeError):
    fastclip.clip_by_global_norm([a], 1.0, order=2)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]

# Gradients.
with raises(RuntimeError):
    compute_gradients(3.0, [w])  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
with raises(TypeError):
    compute_gradients(loss, ["w"])  # type: ignore[list-item]  # pyright: ignore[reportCallIssue, reportArgumentType]
with raises(TypeError):
    optimizer.minimize(loss, var_list="w")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
with raises(TypeError):
    optimizer.apply_gradients([a, a])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
with raises(TypeError):
    optimizer.apply_gradients([(a, "w")])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
with raises(TypeError):
    optimizer.get_slot("w", "m")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]

# Results are no more than they are.
wrong_dtype: list[Float64] = fastclip.clip_by_block_rms([a], 1.0)  # type: ignore[list-item]  # pyright: ignore[reportAssignmentType]
wrong_kind: Float32 = fastclip.clip_by_block_rms([a], 1.0)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
never_none: tuple[AnyArray, Variable] = pairs[0]  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
