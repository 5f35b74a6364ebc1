"""Records the gradients of TensorFlow's clip functions as test data.

To record, install ``tensorflow-cpu`` and run ``python -m support.recorders.gradients`` in ``tests/``. The
recorder differentiates the cases below with ``tf.GradientTape`` and writes the gradients to
``support/data/tensorflow_gradients.npz``. ``autodiff/test_autodiff.py`` compares fastclip with that file and
imports the cases and the reader of the file from this module, which imports TensorFlow only to record.
Nothing in the file is pickled.

A case is a function of some arrays and fixed arguments, differentiated with respect to each of the arrays.
Its outputs are multiplied by weights and summed, so that each element of each gradient has another value.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DATA_FILE = Path(__file__).parents[1] / "data" / "tensorflow_gradients.npz"
SEED = 20250314

Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """A function and the arrays that it is differentiated with respect to.

    Attributes
    ----------
    id : str
        The id of the test.
    call : callable
        Called as ``call(library, *arrays)``, with fastclip or TensorFlow's functions under the same names;
        returns a list of outputs.
    arrays : tuple of ndarray
        The arguments that `call` is differentiated with respect to.
    """

    id: str
    call: Callable[..., list[Any]] = field(repr=False)
    arrays: tuple[Array, ...] = field(repr=False)


def weights(shapes: list[tuple[int, ...]]) -> list[Array]:
    """Returns fixed weights, no two of them equal, for outputs of these shapes."""
    rng = np.random.default_rng(SEED)
    return [rng.normal(size=shape) for shape in shapes]


def build_cases() -> list[Case]:
    """Returns all cases, with the same random numbers each time."""
    rng = np.random.default_rng(SEED)
    cases: list[Case] = []

    def add(name: str, call: Callable[..., list[Any]], *arrays: Array) -> None:
        for dtype in (np.float32, np.float64):
            typed = tuple(array.astype(dtype) for array in arrays)
            cases.append(Case(f"{name}-{np.dtype(dtype).name}", call, typed))

    def norm(axes: Any = None) -> Callable[..., list[Any]]:
        return lambda lib, t, c: [lib.clip_by_norm(t, c, axes)]

    matrix, cube, vector = rng.normal(size=(4, 3)), rng.normal(size=(2, 3, 4)), rng.normal(size=5)
    bound = np.array(1.25)

    bounds = lambda lib, t, low, high: [lib.clip_by_value(t, low, high)]  # noqa: E731
    add("clip_by_value", bounds, matrix, np.array(-0.5), np.array(0.75))
    at_bounds = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    add("clip_by_value-at the bounds", bounds, at_bounds, np.array(-0.5), np.array(0.5))
    add("clip_by_value-bounds of each element", bounds, matrix, matrix - 0.1, np.sin(matrix))
    add("clip_by_value-broadcast bounds", bounds, matrix, np.full((4, 1), -0.3), np.full(3, 0.4))
    add("clip_by_value-crossed bounds", bounds, matrix, np.array(0.5), np.array(-0.5))
    add("clip_by_value-equal bounds", bounds, at_bounds, np.array(0.5), np.array(0.5))

    add("clip_by_norm-clipped", norm(), matrix, bound)
    add("clip_by_norm-not clipped", norm(), matrix, np.array(100.0))
    add("clip_by_norm-at the bound", norm(), np.array([3.0, 4.0]), np.array(5.0))
    add("clip_by_norm-zeros", norm(), np.zeros((2, 3)), bound)
    add("clip_by_norm-zero bound", norm(), matrix, np.array(0.0))
    add("clip_by_norm-negative bound", norm(), matrix, np.array(-1.0))
    add("clip_by_norm-rows", norm([1]), matrix, np.array(1.0))
    add("clip_by_norm-columns", norm([0]), matrix, np.array(1.5))
    add("clip_by_norm-two axes", norm([0, 2]), cube, np.array(2.0))
    add("clip_by_norm-a row of zeros", norm([1]), matrix * np.array([[1], [0], [1], [0.1]]), np.array(0.5))
    add("clip_by_norm-bounds of rows", norm([1]), matrix, np.array([[0.1], [1.0], [9.0], [0.5]]))
    add("clip_by_norm-bounds of elements", norm(), vector, np.array([0.1, 1.0, 9.0, 0.5, 2.0]))

    average = lambda lib, t, c: [lib.clip_by_average_norm(t, c)]  # noqa: E731
    add("clip_by_average_norm-clipped", average, matrix, np.array(0.1))
    add("clip_by_average_norm-not clipped", average, matrix, np.array(10.0))

    def computed_norm(lib: Any, a: Any, b: Any, c: Any) -> list[Any]:
        clipped, total = lib.clip_by_global_norm([a, None, b], c)
        return [clipped[0], clipped[2], total]

    def use_norm(lib: Any, a: Any, b: Any, c: Any, n: Any) -> list[Any]:
        clipped, total = lib.clip_by_global_norm([a, b], c, use_norm=n)
        return [*clipped, total]

    add("clip_by_global_norm-clipped", computed_norm, matrix, vector, bound)
    add("clip_by_global_norm-not clipped", computed_norm, matrix, vector, np.array(100.0))
    add("clip_by_global_norm-at the bound", computed_norm, np.array([3.0]), np.array([[4.0]]), np.array(5.0))
    add("clip_by_global_norm-one tensor of zeros", computed_norm, np.zeros(3), vector, bound)
    add("clip_by_global_norm-known norm", use_norm, matrix, vector, bound, np.array(7.0))
    add("clip_by_global_norm-known norm below", use_norm, matrix, vector, bound, np.array(0.5))
    add("global_norm", lambda lib, a, b: [lib.global_norm([a, None, b])], matrix, cube)
    return cases


class TensorFlow:
    """TensorFlow's functions under fastclip's names."""

    def __init__(self, tf: Any) -> None:
        self.clip_by_value = tf.clip_by_value
        self.clip_by_norm = tf.clip_by_norm
        self.clip_by_average_norm = tf.compat.v1.clip_by_average_norm
        self.clip_by_global_norm = tf.clip_by_global_norm
        self.global_norm = tf.linalg.global_norm


def run_tensorflow(tf: Any, case: Case) -> list[Array]:
    """Returns TensorFlow's gradients of a case, zeros for arguments that the outputs do not depend on."""
    if "average" in case.id and case.arrays[0].dtype == np.float64:
        # TensorFlow's clip_by_average_norm accepts float32 alone.
        arrays = [array.astype(np.float32) for array in case.arrays]
    else:
        arrays = list(case.arrays)
    tensors = [tf.constant(array) for array in arrays]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        outputs = case.call(TensorFlow(tf), *tensors)
        scales = weights([tuple(output.shape) for output in outputs])
        total = tf.add_n(
            [tf.reduce_sum(o * tf.constant(w, o.dtype)) for o, w in zip(outputs, scales, strict=True)]
        )
    gradients = tape.gradient(total, tensors, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return [
        np.asarray(tf.convert_to_tensor(gradient)).astype(array.dtype)
        for gradient, array in zip(gradients, case.arrays, strict=True)
    ]


def load() -> dict[str, list[Array]]:
    """Returns the recorded gradients of each case, by its id."""
    with np.load(DATA_FILE, allow_pickle=False) as file:
        recorded = {name: file[name] for name in file.files}
    return {case.id: [recorded[f"{case.id}/{i}"] for i in range(len(case.arrays))] for case in build_cases()}


def main() -> None:
    """Records all cases."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    contents = {
        f"{case.id}/{i}": gradient
        for case in build_cases()
        for i, gradient in enumerate(run_tensorflow(tf, case))
    }
    np.savez_compressed(DATA_FILE, **contents)
    print(f"{len(contents)} gradients of TensorFlow {tf.__version__} in {DATA_FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
