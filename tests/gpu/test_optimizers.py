"""Steps of optimizers over arrays on a device, compared with those over host arrays."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import threading
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastclip
from fastclip import train
from support.devices import require_device
from support.strategies import PROPERTY

require_device()

from fastclip import gpu  # noqa: E402

FLUSHES = "FASTCLIP_GPU_TEST_FLUSH" in os.environ
DTYPES = [np.dtype(t) for t in (np.float32, np.float16, ml_dtypes.bfloat16)]
RULES: dict[str, Callable[..., train.Optimizer]] = {
    "gradient_descent": lambda **options: train.GradientDescentOptimizer(0.1, **options),
    "momentum": lambda **options: train.MomentumOptimizer(0.1, 0.9, **options),
    "nesterov": lambda **options: train.MomentumOptimizer(0.1, 0.9, use_nesterov=True, **options),
    "adam": lambda **options: train.AdamOptimizer(0.01, **options),
    "adamw": lambda **options: train.AdamWOptimizer(0.01, weight_decay=0.1, **options),
}
EVERY_RULE = pytest.mark.parametrize("rule", RULES)
CLIPS: list[dict[str, Any]] = [
    {},
    {"clipvalue": 0.5},
    {"clipnorm": 1.0},
    {"global_clipnorm": 1.0},
    {"global_clipnorm": 1e9},
    {"global_clipnorm": 0.0},
    {"loss_scale": 3.0},
    {"loss_scale": 1024.0, "global_clipnorm": 1e-3},
    {"loss_scale": 7.0, "clipvalue": 0.01},
]


def values(shape: Any, dtype: Any = np.float32, seed: int = 1) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def pairs_of(gradients: Any, variables: Any) -> list[Any]:
    return [
        (None if gradient is None else gpu.asarray(gradient), variable)
        for gradient, variable in zip(gradients, variables, strict=True)
    ]


def assert_close(found: Any, expected: Any) -> None:
    # Devices may fuse the operations of a rule, divide and take roots within a few ulp.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def assert_same_state(one: train.Optimizer, other: train.Optimizer) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert list(first) == list(second)
    for name, array in first.items():
        assert array.dtype == second[name].dtype, name
        assert_close(second[name], array)


@EVERY_RULE
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", CLIPS, ids=str)
def test_steps_are_those_of_the_host(rule: str, dtype: Any, options: dict[str, Any]) -> None:
    host, device = RULES[rule](**options), RULES[rule](**options)
    shapes = [(), (5,), (33, 129), (0,), (4097,)]
    variables = [np.asarray(values(shape, seed=n)) for n, shape in enumerate(shapes)]
    copies = [gpu.asarray(variable) for variable in variables]
    for step in range(3):
        gradients = [np.asarray(values(shape, dtype, seed=10 * step + n)) for n, shape in enumerate(shapes)]
        host.apply_gradients(list(zip(gradients, variables, strict=True)))
        device.apply_gradients(pairs_of(gradients, copies))
    for variable, found in zip(variables, copies, strict=True):
        assert_close(found.numpy(), variable)
    assert_same_state(host, device)
    assert (device.last_norm is None) == (host.last_norm is None)
    if host.last_norm is not None:
        assert device.last_norm == pytest.approx(host.last_norm, rel=3e-7)
        assert type(device.last_norm) is type(host.last_norm)
    assert device.last_scale == (
        None if host.last_scale is None else pytest.approx(host.last_scale, rel=1e-6)
    )


@EVERY_RULE
@PROPERTY
@given(
    gradient=st.lists(st.floats(width=32, allow_nan=True), min_size=1, max_size=4),
    variable=st.floats(-(2.0**100), 2.0**100, width=32),
    steps=st.integers(1, 3),
)
def test_every_gradient_has_the_effect_it_has_on_the_host(
    rule: str, gradient: list[float], variable: float, steps: int
) -> None:
    host, device = RULES[rule](), RULES[rule]()
    array = np.full(len(gradient), variable, np.float32)
    copied = gpu.asarray(array)
    given = np.array(gradient, np.float32)
    for _ in range(steps):
        host.apply_gradients([(given, array)])
        device.apply_gradients([(gpu.asarray(given), copied)])
    # Subnormal operands and results may be flushed to zero, and so may what was computed from them.
    tolerance = 1e-5 * abs(variable) + 1e-35
    if rule in ("adam", "adamw"):
        # The square of a small gradient is subnormal: how large a step it gives depends on the root.
        is_exact = (np.abs(given) > 1e-18) | (given == 0) | ~np.isfinite(given)
        assert_nan_and_close(copied.numpy()[is_exact], array[is_exact], tolerance)
    else:
        assert_nan_and_close(copied.numpy(), array, tolerance)


def assert_nan_and_close(found: Any, expected: Any, tolerance: float) -> None:
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=tolerance)


def test_variables_larger_than_one_binding_are_updated_whole() -> None:
    # Bindings of lavapipe hold 128 MiB. Ranges of gradients of 16 bits end elsewhere than those of variables.
    size = (1 << 25) + 4099
    gradient = np.resize(values(1009, ml_dtypes.bfloat16), size)
    variable = np.resize(values(997), size)
    host, device = RULES["momentum"](global_clipnorm=1.0), RULES["momentum"](global_clipnorm=1.0)
    copied = gpu.asarray(variable)
    device.apply_gradients([(gpu.asarray(gradient), copied)])
    host.apply_gradients([(gradient, variable)])
    assert device.last_norm == host.last_norm
    assert_close(copied.numpy(), variable)


def test_a_step_is_one_submission_and_reads_nothing_back() -> None:
    variables = [gpu.asarray(values(512, seed=n)) for n in range(200)]
    gradients = [gpu.asarray(values(512, seed=n + 1)) for n in range(200)]
    optimizer = train.AdamWOptimizer(0.1, global_clipnorm=1.0)
    optimizer.apply_gradients(zip(gradients, variables, strict=True))
    before = gpu.statistics()
    optimizer.apply_gradients(zip(gradients, variables, strict=True))
    after = gpu.statistics()
    assert after["submissions"] - before["submissions"] == 1
    assert after["downloaded_bytes"] == before["downloaded_bytes"]
    assert after["uploaded_bytes"] - before["uploaded_bytes"] < 200
    assert after["allocated_bytes"] == before["allocated_bytes"]
    assert optimizer.last_norm is not None
    assert optimizer.last_scale == pytest.approx(1 / optimizer.last_norm)
    assert gpu.statistics()["downloaded_bytes"] > after["downloaded_bytes"]


def test_slots_are_on_the_device_and_the_state_is_of_numpy_arrays() -> None:
    variable = gpu.asarray(values(7))
    optimizer = train.AdamOptimizer(0.1)
    assert optimizer.get_slot(variable, "m") is None
    optimizer.apply_gradients([(gpu.asarray(values(7)), variable)])
    slot = optimizer.get_slot(variable, "m")
    assert isinstance(slot, gpu.DeviceArray)
    assert slot.shape == (7,)
    assert_close(slot.numpy(), values(7) * np.float32(0.1))
    assert optimizer.get_slot(variable, "nothing") is None
    assert optimizer.get_slot_names() == ["m", "v"]
    assert len(optimizer.variables()) == 4
    assert all(type(array) is np.ndarray for array in optimizer.state_dict().values())


@EVERY_RULE
def test_a_state_continues_on_the_other_kind_of_memory(rule: str) -> None:
    variable, gradients = values(50), [values(50, seed=n) for n in range(4)]
    copied = gpu.asarray(variable)
    first = RULES[rule]()
    first.apply_gradients([(gradients[0], variable)])
    moved = RULES[rule]()
    copied.copy_from(variable)
    moved.load_state_dict(first.state_dict(), [copied])
    for gradient in gradients[1:3]:
        first.apply_gradients([(gradient, variable)])
        moved.apply_gradients([(gpu.asarray(gradient), copied)])
    assert_close(copied.numpy(), variable)
    assert_same_state(first, moved)
    back, array = RULES[rule](), copied.numpy()
    back.load_state_dict(moved.state_dict(), [array])
    back.apply_gradients([(gradients[3], array)])
    moved.apply_gradients([(gpu.asarray(gradients[3]), copied)])
    assert_close(copied.numpy(), array)
    # The state of the optimizer itself, with its variables.
    state = moved.state_dict()
    moved.apply_gradients([(gpu.asarray(gradients[0]), copied)])
    moved.load_state_dict(state)
    for name, entry in moved.state_dict().items():
        np.testing.assert_array_equal(entry, state[name])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_steps_with_nan_or_infinity_are_skipped_or_raise(bad: float) -> None:
    variable = gpu.asarray(values(5))
    gradients = [gpu.asarray(values(3)), gpu.asarray(np.array([1, bad, 2, 3, 4], np.float32))]
    other = gpu.asarray(values(3, seed=2))
    counter = np.array(0)
    skipping = train.AdamOptimizer(0.1, on_nonfinite="skip", clipnorm=1.0)
    skipping.apply_gradients(zip(gradients, [other, variable], strict=True), counter)
    assert skipping.skipped_steps == 1
    assert counter == 0
    assert skipping.last_scale is None
    assert not np.isfinite(skipping.last_norm)
    assert skipping.get_slot(variable, "m") is None
    raising = train.AdamOptimizer(0.1, on_nonfinite="raise")
    pairs = [(None, gpu.asarray(values(1))), *zip(gradients, [other, variable], strict=True)]
    with pytest.raises(fastclip.NonFiniteError, match=r"grads_and_vars\[2\]\[0\]") as caught:
        raising.apply_gradients(pairs, counter)
    assert caught.value.norms == pytest.approx([np.linalg.norm(values(3)), bad], nan_ok=True)
    assert counter == 0
    assert raising.get_slot_names() == []
    np.testing.assert_array_equal(variable.numpy(), values(5))
    np.testing.assert_array_equal(other.numpy(), values(3, seed=2))
    propagating = train.GradientDescentOptimizer(0.1, global_clipnorm=1.0)
    propagating.apply_gradients(zip(gradients, [other, variable], strict=True), counter)
    assert np.isnan(variable.numpy()).all()
    assert np.isnan(other.numpy()).all()
    assert counter == 1
    assert np.isnan(propagating.last_scale)


@pytest.mark.parametrize("options", [{}, {"clipnorm": 1.0}, {"global_clipnorm": 1.0}, {"clipvalue": 1.0}])
def test_steps_above_a_norm_are_skipped(options: dict[str, Any]) -> None:
    optimizer = train.MomentumOptimizer(0.1, 0.9, skip_above=5.0, loss_scale=2.0, **options)
    variable = gpu.asarray(np.zeros(2, np.float32))
    optimizer.apply_gradients([(gpu.asarray(np.array([6.0, 8.1], np.float32)), variable)])
    assert optimizer.skipped_steps == 1
    assert not variable.numpy().any()
    assert optimizer.last_norm > 5
    optimizer.apply_gradients([(gpu.asarray(np.array([6.0, 8.0], np.float32)), variable)])
    assert optimizer.skipped_steps == 1
    assert variable.numpy().all()
    assert optimizer.last_norm == 5.0


def test_options_and_hyper_parameters_change_between_steps() -> None:
    variable, gradient = gpu.asarray(np.zeros(1, np.float32)), gpu.asarray(np.full(1, 8.0, np.float32))
    rate = iter([1.0, 0.5])
    optimizer = train.GradientDescentOptimizer(lambda: next(rate), global_clipnorm=2.0)
    optimizer.apply_gradients([(gradient, variable)])
    assert variable.numpy() == -2.0
    optimizer.global_clipnorm = None
    optimizer.clipvalue = 1.0
    optimizer.apply_gradients([(gradient, variable)])
    assert variable.numpy() == -2.5
    assert optimizer.last_scale is None


def test_variables_without_gradients_are_known_and_not_changed() -> None:
    variables = [gpu.asarray(values(3, seed=n)) for n in range(3)]
    optimizer = train.MomentumOptimizer(0.1, 0.9)
    optimizer.apply_gradients(pairs_of([None, values(3), None], variables))
    np.testing.assert_array_equal(optimizer.state_dict()["has_slots"], [0, 1, 0])
    optimizer.apply_gradients(pairs_of([values(3), None, values(3)], variables))
    np.testing.assert_array_equal(optimizer.state_dict()["has_slots"], [1, 1, 1])
    for n, variable in enumerate(variables):
        assert_close(variable.numpy(), values(3, seed=n) - np.float32(0.1) * values(3))


def test_slots_are_dropped_with_their_variables() -> None:
    optimizer = train.MomentumOptimizer(0.1, 0.9)
    kept, dropped = gpu.asarray(values(3)), gpu.asarray(values(4))
    optimizer.apply_gradients(pairs_of([values(3), values(4)], [kept, dropped]))
    del dropped
    gc.collect()
    assert optimizer.state_dict()["variables"] == 1
    optimizer.forget(kept)
    assert optimizer.get_slot(kept, "momentum") is None
    with pytest.raises(ValueError, match="does not know"):
        optimizer.forget(kept)
    with pytest.warns(RuntimeWarning, match="no longer exist"):  # noqa: PT031
        for _ in range(12):
            optimizer.apply_gradients([(gpu.asarray(values(3)), gpu.asarray(values(3)))])


OTHERS = [
    train.AdagradOptimizer(0.1),
    train.RMSPropOptimizer(0.1),
    train.FtrlOptimizer(0.1),
    train.AdadeltaOptimizer(),
]


@pytest.mark.parametrize("optimizer", OTHERS, ids=lambda optimizer: type(optimizer).__name__)
def test_other_optimizers_refuse_arrays_on_a_device(optimizer: train.Optimizer) -> None:
    variable = gpu.asarray(values(3))
    with pytest.raises(TypeError, match=f"{type(optimizer).__name__} does not update arrays on a device"):
        optimizer.apply_gradients([(gpu.asarray(values(3)), variable)])
    array = values(3)
    optimizer.apply_gradients([(values(3), array)])
    np.testing.assert_array_equal(variable.numpy(), values(3))


def test_what_is_not_taken_raises_and_changes_nothing() -> None:
    optimizer = train.MomentumOptimizer(0.1, 0.9)
    one, two = gpu.asarray(values(3)), gpu.asarray(values(3, seed=2))
    gradient, array = gpu.asarray(values(3)), values(3)
    optimizer.apply_gradients([(gradient, two)])
    slot = optimizer.get_slot(two, "momentum")
    state, before = optimizer.state_dict(), two.numpy()
    sparse = fastclip.IndexedSlices(values((1, 3)), np.array([0]), (3, 3))
    refused: list[tuple[Any, Any, str]] = [
        ([(gradient, array)], TypeError, "in host memory"),
        ([(array, one)], TypeError, r"grads_and_vars\[0\]\[0\] is .*in host memory, where its variable"),
        (
            [(gradient, one), (array, array)],
            TypeError,
            r"grads_and_vars\[1\]\[1\] is .*in host memory, where",
        ),
        ([(array, array), (gradient, one)], TypeError, r"grads_and_vars\[1\]\[1\] is .*on a device, where"),
        ([([1.0, 2.0, 3.0], one)], TypeError, r"grads_and_vars\[0\]\[0\] is .*list"),
        ([(sparse, gpu.asarray(values((3, 3))))], TypeError, "IndexedSlices"),
        ([(gradient, gpu.asarray(values(4)))], ValueError, r"grads_and_vars\[0\]\[0\] is .*shape \(3,\)"),
        ([(gradient, gpu.asarray(values(3, np.float16)))], TypeError, "variables on a device are float32"),
        ([(gpu.asarray(np.ones(3, np.int32)), one)], TypeError, "int32"),
        ([(gradient, one), (gradient, one)], ValueError, r"grads_and_vars\[1\]\[1\] is the same array"),
        ([(two, one), (gradient, two)], ValueError, r"grads_and_vars\[0\]\[0\] is also the variable"),
        ([(slot, two)], ValueError, "slot of the optimizer"),
        ([(gradient, slot)], ValueError, "slot of the optimizer"),
        ([(None, one), (gradient, one)], ValueError, r"grads_and_vars\[1\]\[1\] is the same array"),
        ([(None, one)], ValueError, "No gradients"),
    ]
    for pairs, error, message in refused:
        with pytest.raises(error, match=message):
            optimizer.apply_gradients(pairs)
    with pytest.raises(TypeError, match="low-precision copies"):
        optimizer.set_low_precision_copy(two, np.empty(3, np.float16))
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="on a device"):
            copied(optimizer)
    others = [gpu.asarray(values(3)), gpu.asarray(values(3))]
    pair = train.MomentumOptimizer(0.1, 0.9)
    pair.apply_gradients([(gradient, other) for other in others])
    loads: list[tuple[list[Any], Any, str]] = [
        ([two, two], ValueError, r"var_list\[1\] is the same array as var_list\[0\]"),
        ([two, array], TypeError, r"var_list\[1\] is .*in host memory, where var_list\[0\] is on a device"),
        ([array, two], TypeError, r"var_list\[1\] is .*on a device, where var_list\[0\] is in host memory"),
        ([two, gpu.asarray(values(3, np.float16))], TypeError, r"var_list\[1\] is .*float16.* are float32"),
    ]
    for variables, error, message in loads:
        with pytest.raises(error, match=message):
            optimizer.load_state_dict(pair.state_dict(), variables)
    np.testing.assert_array_equal(two.numpy(), before)
    np.testing.assert_array_equal(one.numpy(), values(3))
    for name, entry in optimizer.state_dict().items():
        np.testing.assert_array_equal(entry, state[name])
    on_host = train.MomentumOptimizer(0.1, 0.9)
    on_host.apply_gradients([(array, array.copy())])
    kept = values(3)
    on_host.apply_gradients([(array, kept)])
    with pytest.raises(
        TypeError, match="on a device, and this optimizer has updated variables in host memory"
    ):
        on_host.apply_gradients([(gradient, one)])


def test_a_gradient_may_be_its_own_variable_and_serve_two() -> None:
    one, two = gpu.asarray(values(3)), gpu.asarray(values(3, seed=2))
    shared = gpu.asarray(values(3, seed=3))
    optimizer = train.GradientDescentOptimizer(0.5)
    optimizer.apply_gradients([(one, one)])
    assert_close(one.numpy(), values(3) * np.float32(0.5))
    optimizer.apply_gradients([(shared, one), (shared, two)])
    assert_close(two.numpy(), values(3, seed=2) - np.float32(0.5) * values(3, seed=3))


def test_a_step_in_a_step_is_refused() -> None:
    variable, gradient = gpu.asarray(values(3)), gpu.asarray(values(3))
    optimizer = train.AdamOptimizer(0.1)

    class Rate:
        def __call__(self) -> float:
            return 0.1

    optimizer.learning_rate = Rate()
    optimizer.apply_gradients([(gradient, variable)])
    original = optimizer._numbers

    def numbers(*arguments: Any) -> Any:
        with pytest.raises(RuntimeError, match="in the middle of a step"):
            optimizer.apply_gradients([(gradient, variable)])
        return original(*arguments)

    optimizer._numbers = numbers  # type: ignore[method-assign]
    before = optimizer.state_dict()["beta1_power"]
    optimizer.apply_gradients([(gradient, variable)])
    assert optimizer.state_dict()["beta1_power"] == pytest.approx(before * 0.9)


def test_arrays_that_the_step_does_not_write_may_be_gradients() -> None:
    one, two, three = (gpu.asarray(values(3, seed=n)) for n in range(3))
    optimizer = train.MomentumOptimizer(0.5, 0.9)
    optimizer.apply_gradients([(three, one)])
    before = one.numpy()
    optimizer.apply_gradients([(None, one), (one, two)])
    assert_close(two.numpy(), values(3, seed=1) - np.float32(0.5) * before)
    slot = optimizer.get_slot(one, "momentum")
    optimizer.apply_gradients([(slot, two)])
    empty = gpu.asarray(np.zeros(0, np.float32))
    optimizer.apply_gradients([(empty, empty), (empty, empty)])


def test_a_refused_first_step_leaves_the_optimizer_as_it_was() -> None:
    optimizer = train.MomentumOptimizer(0.1, 0.9)
    for _ in range(2):
        with pytest.raises(ValueError, match="shapes must be the same"):
            optimizer.apply_gradients([(gpu.asarray(values(3)), gpu.asarray(values(4)))])
        half = np.empty(3, np.float16)
        optimizer.set_low_precision_copy(values(3), half)
    array = values(3)
    optimizer.apply_gradients([(values(3), array)])


def test_the_report_on_the_last_step_outlives_its_variables() -> None:
    variable = gpu.asarray(values(3))
    optimizer = train.GradientDescentOptimizer(0.1, global_clipnorm=1.0)
    optimizer.apply_gradients([(gpu.asarray(values(3)), variable)])
    norm, state = optimizer.last_norm, optimizer.state_dict()
    optimizer.load_state_dict(state)
    assert optimizer.last_norm == norm
    del variable
    gc.collect()
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.last_norm == norm


def test_threads_read_and_write_at_once() -> None:
    """A thread that polls may run the callbacks of another thread's transfers."""
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            variable, gradient = gpu.asarray(values(500, seed=seed)), gpu.asarray(values(500))
            optimizer = train.GradientDescentOptimizer(0.0, global_clipnorm=1.0)
            for _ in range(150):
                optimizer.apply_gradients([(gradient, variable)])
                assert optimizer.last_norm is not None
                np.testing.assert_array_equal(variable.numpy(), values(500, seed=seed))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
