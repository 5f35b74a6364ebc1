"""Optimizers with ``slot_dtype="bfloat16"``: slots of half the size, rounded stochastically."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import fastclip
from fastclip import train
from support import fresh_python

BF16 = np.dtype(ml_dtypes.bfloat16)

#: Optimizers that have slots, with their required arguments.
WITH_SLOTS: dict[str, dict[str, Any]] = {
    "AdadeltaOptimizer": {},
    "AdagradOptimizer": {"learning_rate": 0.01},
    "AdamOptimizer": {},
    "AdamWOptimizer": {"weight_decay": 0.01},
    "MomentumOptimizer": {"learning_rate": 0.01, "momentum": 0.9},
    "ProximalAdagradOptimizer": {"learning_rate": 0.01},
    "RMSPropOptimizer": {"learning_rate": 0.01},
}


def make(name: str, **options: Any) -> Any:
    return getattr(train, name)(**WITH_SLOTS[name], slot_dtype="bfloat16", **options)


def gradients(step: int, shape: tuple[int, ...], dtype: Any = np.float32) -> npt.NDArray[Any]:
    return np.random.default_rng(step).standard_normal(shape).astype(dtype)


def bits(array: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    return array.view(np.uint16)


def momentum_after(
    count: int, seed: int = 0, step_of: int = 1, value: float = 1.003, variables: int = 1
) -> list[npt.NDArray[np.float64]]:
    """Return the momentum of variables after steps, the last of which sets it to `value` before rounding."""
    arrays = [np.zeros(count, np.float32) for _ in range(variables)]
    optimizer = train.MomentumOptimizer(1.0, 0.0, slot_dtype="bfloat16", seed=seed)
    for _ in range(step_of):
        optimizer.apply_gradients([(np.full(count, value, np.float32), array) for array in arrays])
    slots = [optimizer.get_slot(array, "momentum") for array in arrays]
    return [slot.astype(np.float64) for slot in slots if slot is not None]


@pytest.mark.parametrize("name", WITH_SLOTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_slots_are_near_those_of_the_variables_type(name: str, dtype: Any) -> None:
    narrow, wide = make(name), getattr(train, name)(**WITH_SLOTS[name])
    w, other = (np.linspace(-1, 1, 3000, dtype=dtype) for _ in range(2))
    for step in range(3):
        g = gradients(step, (3000,), dtype)
        narrow.apply_gradients([(g, w)])
        wide.apply_gradients([(g, other)])
    for slot_name in wide.get_slot_names():
        slot, exact = narrow.get_slot(w, slot_name), wide.get_slot(other, slot_name)
        assert slot.dtype == BF16
        # Three roundings, each by less than a step of 2^-7.
        np.testing.assert_allclose(slot.astype(dtype), exact, rtol=0.04, atol=0.02 * np.abs(exact).max())
    np.testing.assert_allclose(w, other, rtol=0.02, atol=0.02)


def test_slots_take_half_the_memory() -> None:
    w = np.zeros(1000, np.float32)
    optimizer = make("AdamOptimizer")
    optimizer.apply_gradients([(np.ones(1000, np.float32), w)])
    assert [array.nbytes for array in optimizer.variables() if array.ndim] == [2000, 2000]


def test_rounding_has_no_bias_and_gives_one_of_two_neighbours() -> None:
    (values,) = momentum_after(1 << 18)
    assert set(values) == {1.0, 1.0078125}
    exact = float(np.float32(1.003))
    # Five standard deviations of the mean.
    assert abs(values.mean() - exact) < 5 * 0.0078125 / 2 / (1 << 9)


def test_a_small_change_is_kept_on_average() -> None:
    # An average that changes by a thousandth in each step stays where it is if it is rounded to the nearest.
    w = np.zeros(1 << 14, np.float32)
    optimizer = train.RMSPropOptimizer(1e-9, decay=0.999, slot_dtype="bfloat16")
    for _ in range(200):
        optimizer.apply_gradients([(np.full(w.shape, 2.0, np.float32), w)])
    mean_square = optimizer.get_slot(w, "rms").astype(np.float64)
    # The first value is 1, and it approaches 4.
    assert abs(mean_square.mean() - (4 - 3 * 0.999**200)) < 0.01


def test_bits_depend_on_seed_step_and_variable() -> None:
    base = momentum_after(4096)[0]
    others = [
        momentum_after(4096, seed=1)[0],
        momentum_after(4096, step_of=2)[0],
        momentum_after(4096, variables=2)[1],
    ]
    assert np.array_equal(base, momentum_after(4096)[0])
    for other in others:
        # The probability of the upper neighbour is 0.384, so that 52.7 % agree if they are independent.
        assert abs((base == other).mean() - 0.527) < 0.05


@pytest.mark.parametrize("name", WITH_SLOTS)
def test_bits_do_not_depend_on_threads(name: str) -> None:
    results = []
    for threads in (1, 3):
        with fastclip.threads(threads):
            arrays = [np.ones(shape, np.float32) for shape in ((300_001,), (31, 17), (), (0,))]
            optimizer = make(name, seed=5, global_clipnorm=1.0)
            for step in range(2):
                optimizer.apply_gradients([(gradients(step, array.shape), array) for array in arrays])
            results.append([array.tobytes() for array in (*arrays, *optimizer.variables())])
    assert results[0] == results[1]


TRAINING = """
import hashlib, numpy as np
from fastclip.train import AdamOptimizer
w, strided = np.ones(5003, np.float32), np.ones((60, 70), np.float32)[::2, ::-3]
optimizer = AdamOptimizer(0.01, slot_dtype="bfloat16", seed=3)
for step in range(3):
    g = np.random.default_rng(step).standard_normal
    optimizer.apply_gradients([(g(w.shape).astype("f4"), w), (g(strided.shape).astype("f4"), strided)])
digest = hashlib.sha256()
for array in (w, strided, *optimizer.variables()):
    digest.update(np.ascontiguousarray(array).tobytes())
print(digest.hexdigest())
"""


def test_bits_are_the_same_at_the_lowest_level_of_instructions() -> None:
    lowest = fresh_python.run(TRAINING, env={"FASTCLIP_ISA": "scalar"}).stdout
    assert lowest == fresh_python.run(TRAINING).stdout


@pytest.mark.parametrize("name", WITH_SLOTS)
def test_a_resumed_run_equals_an_unbroken_one(name: str) -> None:
    def run(arrays: list[npt.NDArray[Any]], optimizer: Any, steps: range) -> None:
        for step in steps:
            optimizer.apply_gradients([(gradients(step, array.shape), array) for array in arrays])

    unbroken, arrays = ([np.ones((200, 3), np.float32), np.ones(7, np.float32)] for _ in range(2))
    whole, first = make(name, seed=9), make(name, seed=9)
    run(unbroken, whole, range(6))
    run(arrays, first, range(3))
    file = io.BytesIO()
    np.savez(file, **first.state_dict(prefix="state."))
    file.seek(0)
    second = make(name, seed=9)
    second.load_state_dict(np.load(file), arrays, prefix="state.")
    run(arrays, second, range(3, 6))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(unbroken, arrays, strict=True))
    for a, b in zip(whole.variables(), second.variables(), strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_continue_with_the_same_bits(copied: Any) -> None:
    w = fastclip.Variable(np.ones(500, np.float32))
    optimizer = make("AdamOptimizer", seed=2**64 - 1)
    optimizer.apply_gradients([(gradients(0, (500,)), w)])
    other, second = copied((w, optimizer))
    assert (second.slot_dtype, second.seed) == ("bfloat16", 2**64 - 1)
    for variable, each in ((w, optimizer), (other, second)):
        each.apply_gradients([(gradients(1, (500,)), variable)])
    assert w.value.tobytes() == other.value.tobytes()
    assert bits(optimizer.get_slot(w, "v")).tobytes() == bits(second.get_slot(other, "v")).tobytes()


@pytest.mark.parametrize("layout", ["C", "F", "strided"])
def test_layouts(layout: str) -> None:
    buffer = np.ones((80, 60), np.float32)
    w = {"C": buffer, "F": np.asfortranarray(buffer), "strided": buffer[::2, ::-3]}[layout]
    optimizer = make("MomentumOptimizer")
    g = gradients(0, w.shape)
    optimizer.apply_gradients([(g, w)])
    slot = optimizer.get_slot(w, "momentum")
    assert slot is not None
    assert slot.shape == w.shape
    np.testing.assert_allclose(slot.astype(np.float32), g, rtol=2**-7)
    # No two neighbouring elements of the same value are always rounded alike.
    assert (bits(slot) != bits(g.astype(BF16))).any()


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("name", ["MomentumOptimizer", "AdagradOptimizer"])
def test_rows_of_a_sparse_gradient_have_random_bits_of_their_own(name: str, strided: bool) -> None:
    width = 512
    w = np.zeros((40, 2 * width), np.float32)[:, ::2] if strided else np.zeros((40, width), np.float32)
    optimizer = make(name)
    rows = np.array([3, 4, 5, 9, 11, 30])
    value = np.full((len(rows), width), 1.003, np.float32)
    optimizer.apply_gradients([(fastclip.IndexedSlices(value, rows, w.shape), w)])
    slot_name = optimizer.get_slot_names()[0]
    slot = bits(optimizer.get_slot(w, slot_name))
    first = slot[rows]
    assert len({row.tobytes() for row in first}) == len(rows)
    for a in range(len(rows)):
        for b in range(a):
            assert 0.35 < (first[a] == first[b]).mean() < 0.75


def test_the_same_rows_have_the_same_bits_as_a_dense_gradient() -> None:
    results = []
    for is_sparse in (False, True):
        w = np.zeros((30, 50), np.float32)
        optimizer = make("MomentumOptimizer")
        rows = np.arange(30) if is_sparse else None
        g = gradients(0, w.shape)
        optimizer.apply_gradients([(g if rows is None else fastclip.IndexedSlices(g, rows, w.shape), w)])
        results.append(bits(optimizer.get_slot(w, "momentum")).tobytes())
    assert results[0] == results[1]


def test_a_skipped_step_is_not_counted() -> None:
    w, other = (np.zeros(300, np.float32) for _ in range(2))
    optimizer, second = (make("MomentumOptimizer", on_nonfinite="skip") for _ in range(2))
    optimizer.apply_gradients([(np.full(300, np.nan, np.float32), w)])
    for array, each in ((w, optimizer), (other, second)):
        each.apply_gradients([(gradients(0, (300,)), array)])
    assert optimizer.skipped_steps == 1
    assert (
        bits(optimizer.get_slot(w, "momentum")).tobytes()
        == bits(second.get_slot(other, "momentum")).tobytes()
    )


def test_states_of_the_other_dtype_are_refused() -> None:
    w = np.zeros(3, np.float32)
    narrow, wide = make("AdamOptimizer"), train.AdamOptimizer()
    for optimizer in (narrow, wide):
        optimizer.apply_gradients([(np.ones(3, np.float32), w)])
    before = narrow.state_dict()
    with pytest.raises(ValueError, match="slot_dtype=None; this optimizer has slot_dtype='bfloat16'"):
        narrow.load_state_dict(wide.state_dict(), [w])
    with pytest.raises(ValueError, match="slot_dtype='bfloat16'; this optimizer has slot_dtype=None"):
        wide.load_state_dict(before, [w])
    damaged = {**before, "m.0": np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match=r"takes dtype uint16 and shape \(3,\), bits of bfloat16"):
        narrow.load_state_dict(damaged, [w])
    assert all(np.array_equal(value, before[key]) for key, value in narrow.state_dict().items())


@pytest.mark.parametrize("value", ["float16", "float32", 5, np.float32, b"bfloat16"])
def test_other_dtypes_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r'slot_dtype is .*; it takes "bfloat16", or None'):
        train.AdamOptimizer(slot_dtype=value)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("RMSPropOptimizer", {"learning_rate": 0.1, "centered": True}),
        ("FtrlOptimizer", {"learning_rate": 0.1}),
        ("AdagradDAOptimizer", {"learning_rate": 0.1, "global_step": np.array(0)}),
        ("AdagradOptimizer", {"learning_rate": 0.1, "initial_accumulator_value": 1e-41}),
    ],
)
def test_rules_whose_slots_have_to_be_precise_are_refused(name: str, arguments: dict[str, Any]) -> None:
    # The variance of centered RMSProp, a difference of two slots, would be negative.
    with pytest.raises(ValueError, match="slot_dtype is 'bfloat16'"):
        getattr(train, name)(**arguments, slot_dtype="bfloat16")


@pytest.mark.parametrize("count", [1e300, -5.0, 0.0, 2.5, 2.0**53, np.inf])
def test_counts_that_no_state_has_are_refused(count: float) -> None:
    w = np.zeros(3, np.float32)
    optimizer = make("MomentumOptimizer")
    optimizer.apply_gradients([(np.ones(3, np.float32), w)])
    before = optimizer.state_dict()
    with pytest.raises(ValueError, match="rounded_steps"):
        optimizer.load_state_dict({**before, "rounded_steps": np.array(count)}, [w])
    assert all(np.array_equal(value, before[key]) for key, value in optimizer.state_dict().items())
    # The counter is the first of the optimizer's arrays.
    optimizer.variables()[0][...] = count
    start = w.copy()
    with pytest.raises(ValueError, match="rounded_steps is"):
        optimizer.apply_gradients([(np.ones(3, np.float32), w)])
    assert w.tobytes() == start.tobytes()


@pytest.mark.parametrize("value", [BF16, ml_dtypes.bfloat16, "bfloat16"])
def test_dtypes_of_ml_dtypes_are_taken(value: Any) -> None:
    assert train.AdamOptimizer(slot_dtype=value).slot_dtype == "bfloat16"


@pytest.mark.parametrize(
    ("value", "error"), [(1.5, TypeError), (-1, ValueError), (2**64, ValueError), (None, TypeError)]
)
def test_other_seeds_are_refused(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"seed is .*; it takes an integer from 0"):
        train.AdamOptimizer(seed=value)
    optimizer = train.AdamOptimizer()
    with pytest.raises(error, match="seed is"):
        optimizer.seed = value
    assert optimizer.seed == 0


def test_the_dtype_is_fixed_and_both_are_shown() -> None:
    optimizer = train.MomentumOptimizer(0.1, 0.9, slot_dtype="bfloat16", seed=4)
    assert "slot_dtype='bfloat16', seed=4" in repr(optimizer)
    assert "seed" not in repr(train.MomentumOptimizer(0.1, 0.9))
    with pytest.raises(AttributeError, match="slot_dtype is fixed"):
        optimizer.slot_dtype = None


def test_an_optimizer_without_slots_has_nothing_to_round() -> None:
    w = np.ones(3, np.float32)
    optimizer = train.GradientDescentOptimizer(0.5, slot_dtype="bfloat16")
    optimizer.apply_gradients([(np.ones(3, np.float32), w)])
    assert w.tolist() == [0.5] * 3
    assert not optimizer.variables()


def test_low_precision_copies_are_rounded_to_the_nearest() -> None:
    w = np.full(1000, 1.0, np.float32)
    copied = np.zeros(1000, BF16)
    optimizer = make("MomentumOptimizer")
    optimizer.set_low_precision_copy(w, copied)
    optimizer.apply_gradients([(gradients(0, (1000,)), w)])
    assert bits(copied).tobytes() == bits(w.astype(BF16)).tobytes()


WITHOUT_ML_DTYPES = """
import sys
sys.modules["ml_dtypes"] = None
import numpy as np
from fastclip.train import MomentumOptimizer
w = np.zeros(4, np.float32)
optimizer = MomentumOptimizer(0.1, 0.9, slot_dtype="bfloat16")
optimizer.apply_gradients([(np.full(4, 2.0, np.float32), w)])
slot = optimizer.get_slot(w, "momentum")
assert slot.dtype == np.uint16 and slot.tolist() == [0x4000] * 4, slot
state = optimizer.state_dict()
optimizer.load_state_dict(state, [w])
optimizer.apply_gradients([(np.full(4, 2.0, np.float32), w)])
print(optimizer.state_dict()["momentum.0"].dtype)
"""


def test_ml_dtypes_is_not_needed() -> None:
    assert fresh_python.run(WITHOUT_ML_DTYPES).stdout.strip() == "uint16"
