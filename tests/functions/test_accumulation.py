"""Sums of gradients with their norm, and norms of tensors that arrive one by one."""

from __future__ import annotations

import random
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastclip

FLOATS = (np.float16, np.float32, np.float64)


def random_arrays(seed: int, dtype: Any = np.float32) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    shapes = [(), (3,), (0,), (17, 5), (70_001,), (2, 3, 4)]
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


# accumulate ------------------------------------------------------------------------------------


@pytest.mark.parametrize("wide", FLOATS)
@pytest.mark.parametrize("narrow", FLOATS)
@pytest.mark.parametrize("scale", [1.0, 0.25, -3.0, 0.0])
def test_gradients_are_added_and_the_norm_is_that_of_the_sums(wide: Any, narrow: Any, scale: float) -> None:
    acc, grads = random_arrays(1, wide), random_arrays(2, narrow)
    if np.dtype(narrow).itemsize > np.dtype(wide).itemsize:
        before = [array.copy() for array in acc]
        with pytest.raises(TypeError, match=r"acc\[0\] is .* where grads\[0\] is .*own or a narrower type"):
            fastclip.accumulate(acc, grads, scale)
        assert all(map(np.array_equal, acc, before))
        return
    arithmetic = np.float64 if wide is np.float64 else np.float32
    want = [
        (a.astype(arithmetic) + arithmetic(scale) * g.astype(arithmetic)).astype(wide)
        for a, g in zip(acc, grads, strict=True)
    ]
    norm = fastclip.accumulate(acc, grads, scale)
    assert all(map(np.array_equal, acc, want))
    assert norm == fastclip.global_norm(acc)
    assert norm.dtype == fastclip.global_norm(acc).dtype


def test_norm_has_the_bits_of_global_norm_for_any_number_of_threads() -> None:
    norms = set()
    for threads in (1, 2, 5):
        acc, grads = random_arrays(3, np.float64), random_arrays(4)
        with fastclip.threads(threads):
            norms.add(fastclip.accumulate(acc, grads, 1 / 3).tobytes())
            norms.add(fastclip.global_norm(acc).tobytes())
    assert len(norms) == 1


@pytest.mark.parametrize("value", [1e-200, 1e200, 3e38])
def test_norm_of_sums_neither_overflows_nor_underflows(value: float) -> None:
    acc = [np.full(3, value), np.full((2, 2), value)]
    norm = fastclip.accumulate(acc, [np.zeros(3), np.zeros((2, 2), np.float32)])
    assert norm == pytest.approx(value * np.sqrt(7), rel=1e-15)


def test_strided_sums_and_gradients_are_added() -> None:
    memory, grads = np.zeros((6, 8), np.float32), np.arange(24.0, dtype=np.float32).reshape(6, 4)
    acc = {"w": memory[:, ::2], "b": np.zeros(4)[::-1]}
    norm = fastclip.accumulate(acc, {"w": grads, "b": grads[0].astype(np.float64)}, 2.0)
    assert np.array_equal(memory[:, ::2], 2 * grads)
    assert not memory[:, 1::2].any()
    assert np.array_equal(acc["b"], 2.0 * grads[0])
    assert norm == fastclip.global_norm(acc)


def test_none_adds_nothing_and_its_sum_counts() -> None:
    acc = [np.array([3.0]), None, np.array([4.0])]
    assert fastclip.accumulate(acc, [None, None, np.array([0.0])]) == 5.0
    with pytest.raises(ValueError, match=r"acc\[1\] is None where grads\[1\] is an array"):
        fastclip.accumulate(acc, [None, np.zeros(1), None])


def test_gradients_that_share_memory_with_sums_are_read_before() -> None:
    sums = np.arange(5.0)
    fastclip.accumulate([sums[1:]], [sums[:-1]])
    assert np.array_equal(sums, [0.0, 1.0, 3.0, 5.0, 7.0])


def test_nonfinite_sums_give_a_nonfinite_norm() -> None:
    assert np.isnan(fastclip.accumulate([np.array([np.inf])], [np.array([-np.inf])]))
    assert fastclip.accumulate([np.ones(2)], [np.array([np.inf, 0.0])]) == np.inf


def read_only(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array.flags.writeable = False
    return array


SHARED = np.zeros(3)


@pytest.mark.parametrize(
    ("acc", "grads", "scale", "error", "message"),
    [
        ([np.zeros(3)], [np.zeros(2)], 1.0, ValueError, "the shapes must be the same"),
        ([np.zeros(3)], [np.zeros(3), np.zeros(3)], 1.0, ValueError, "structure"),
        ({"a": np.zeros(3)}, {"b": np.zeros(3)}, 1.0, ValueError, "structure"),
        ([read_only(np.zeros(3))], [np.zeros(3)], 1.0, ValueError, "read-only"),
        ([SHARED, SHARED], [np.ones(3), np.ones(3)], 1.0, ValueError, "shares memory"),
        ([np.zeros(3)], [np.ones(3)], float("nan"), ValueError, "scale is nan"),
        ([np.zeros(3)], [np.ones(3)], float("inf"), ValueError, "scale is inf"),
        ([np.zeros(3)], [np.ones(3)], "1", TypeError, "scale"),
        ([np.zeros(3, int)], [np.ones(3)], 1.0, TypeError, r"acc\[0\]"),
        ([np.zeros(3)], [np.ones(3, int)], 1.0, TypeError, r"grads\[0\]"),
        (np.zeros(3), np.zeros(3), 1.0, TypeError, "acc"),
    ],
)
def test_arguments_that_are_not_taken_change_nothing(
    acc: Any, grads: Any, scale: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fastclip.accumulate(acc, grads, scale)
    arrays = acc.values() if isinstance(acc, dict) else acc
    assert not any(np.any(array) for array in arrays)


# NormAccumulator -------------------------------------------------------------------------------


@given(
    st.lists(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=5), min_size=1, max_size=8),
    st.randoms(use_true_random=False),
    st.sampled_from([1, 2, 3, 0.5, np.inf]),
)
def test_norm_has_the_bits_of_global_norm_in_any_order(
    values: list[list[float]], shuffler: random.Random, order: float
) -> None:
    arrays = [np.array(numbers) for numbers in values]
    accumulator = fastclip.NormAccumulator(order)
    indices = list(range(len(arrays)))
    shuffler.shuffle(indices)
    for index in indices:
        accumulator.add(index, arrays[index])
    want = fastclip.global_norm(arrays, ord=order)
    shuffled = fastclip.global_norm([arrays[index] for index in indices], ord=order)
    assert accumulator.norm().tobytes() == want.tobytes() == shuffled.tobytes()


def test_arrays_are_added_from_several_threads() -> None:
    arrays = [array for seed in range(20) for array in random_arrays(seed)]
    accumulator = fastclip.NormAccumulator()

    def add(first: int) -> None:
        for index in range(first, len(arrays), 4):
            accumulator.add(index, arrays[index])

    threads = [threading.Thread(target=add, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(accumulator) == len(arrays)
    assert accumulator.norm().tobytes() == fastclip.global_norm(arrays).tobytes()


def test_a_key_that_is_added_again_replaces_its_tensor() -> None:
    accumulator = fastclip.NormAccumulator()
    accumulator.add("a", np.array([3.0]))
    accumulator.add("b", np.array([1e300]))
    accumulator.add("b", np.array([4.0], np.float32))
    assert accumulator.norm() == 5.0
    assert sorted(accumulator) == ["a", "b"]
    assert "a" in accumulator
    assert "5" in repr(accumulator)
    accumulator.clear()
    assert accumulator.norm() == 0.0
    assert accumulator.norm().dtype == np.float32


@pytest.mark.parametrize("bound", [0.0, 1.0, 1e9])
def test_use_norm_takes_an_accumulator(bound: float) -> None:
    arrays = random_arrays(5)
    accumulator = fastclip.NormAccumulator()
    for index, array in enumerate(arrays):
        accumulator.add(index, array)
    want, norm = fastclip.clip_by_global_norm(arrays, bound)
    clipped, used = fastclip.clip_by_global_norm(arrays, bound, use_norm=accumulator)
    assert all(map(np.array_equal, clipped, want))
    assert used.tobytes() == norm.tobytes()


def test_use_norm_takes_an_accumulator_whose_norm_is_beyond_float64() -> None:
    arrays = [np.full(4, 1.7e308), np.full(2, -1.7e308)]
    accumulator = fastclip.NormAccumulator()
    accumulator.add(0, arrays[0])
    accumulator.add(1, arrays[1])
    want, _ = fastclip.clip_by_global_norm(arrays, 1.0)
    clipped, norm = fastclip.clip_by_global_norm(arrays, 1.0, use_norm=accumulator)
    assert all(map(np.array_equal, clipped, want))
    assert norm == np.inf


def test_accumulators_refuse_what_they_cannot_measure() -> None:
    accumulator = fastclip.NormAccumulator()
    with pytest.raises(TypeError, match="unhashable"):
        accumulator.add([], np.ones(2))  # type: ignore[arg-type]
    for wrong in (None, {"a": np.ones(2)}, np.ones(2, int), "text"):
        with pytest.raises(TypeError):
            accumulator.add(0, wrong)
    with pytest.raises(ValueError, match="ord"):
        fastclip.NormAccumulator(0)
    assert len(accumulator) == 0


# norm= of a step -------------------------------------------------------------------------------


@pytest.mark.parametrize("loss_scale", [1.0, 1024.0])
def test_a_step_takes_the_norm_and_does_not_measure(loss_scale: float) -> None:
    results = []
    for pass_norm in (False, True):
        acc = [np.zeros(5, np.float32), np.zeros((2, 3), np.float32)]
        weights = [np.ones(5, np.float32), np.ones((2, 3), np.float32)]
        optimizer = fastclip.train.AdamOptimizer(0.1, global_clipnorm=0.5, loss_scale=loss_scale)
        for seed in range(3):
            rng = np.random.default_rng(seed)
            grads = [rng.standard_normal(array.shape).astype(np.float32) for array in acc]
            norm = fastclip.accumulate(acc, grads, loss_scale)
        pairs = list(zip(acc, weights, strict=True))
        optimizer.apply_gradients(pairs, norm=np.float64(fastclip.global_norm(acc)) if pass_norm else None)
        assert norm == fastclip.global_norm(acc)
        results.append((weights, optimizer.last_norm, optimizer.last_scale))
    (want, norm, scale), (found, other_norm, other_scale) = results
    assert all(np.allclose(a, b, rtol=1e-6) for a, b in zip(want, found, strict=True))
    assert other_norm == pytest.approx(norm, rel=1e-6)
    assert other_scale == pytest.approx(scale, rel=1e-6)


def test_a_step_trusts_the_norm_it_is_passed() -> None:
    weight = np.ones(2)
    optimizer = fastclip.train.GradientDescentOptimizer(1.0, global_clipnorm=1.0)
    optimizer.apply_gradients([(np.array([3.0, 4.0]), weight)], norm=10.0)
    assert np.allclose(weight, [0.7, 0.6])
    accumulator = fastclip.NormAccumulator()
    accumulator.add(0, np.array([3.0, 4.0]))
    optimizer.apply_gradients([(np.array([3.0, 4.0]), weight)], norm=accumulator)
    assert np.allclose(weight, [0.1, -0.2])


def test_a_nonfinite_norm_is_handled_as_the_optimizer_says() -> None:
    weight = np.ones(2)
    optimizer = fastclip.train.GradientDescentOptimizer(1.0, global_clipnorm=1.0, on_nonfinite="raise")
    with pytest.raises(fastclip.NonFiniteError, match="norm"):
        optimizer.apply_gradients([(np.ones(2), weight)], norm=np.nan)
    optimizer.on_nonfinite = "skip"
    optimizer.apply_gradients([(np.ones(2), weight)], norm=np.inf)
    assert np.array_equal(weight, np.ones(2))
    assert optimizer.skipped_steps == 1


@pytest.mark.parametrize(
    ("options", "norm", "message"),
    [
        ({"clipnorm": 1.0}, 1.0, "clipnorm"),
        ({"global_clipnorm": 1.0}, -1.0, "norm is -1.0"),
        ({"global_clipnorm": 1.0}, fastclip.NormAccumulator(1), "order 1"),
    ],
)
def test_norms_that_are_not_taken(options: dict[str, float], norm: Any, message: str) -> None:
    weight = np.ones(2)
    optimizer = fastclip.train.GradientDescentOptimizer(1.0, **options)
    with pytest.raises(ValueError, match=message):
        optimizer.apply_gradients([(np.ones(2), weight)], norm=norm)
    assert np.array_equal(weight, np.ones(2))
