"""Optimizers over Variables, copied and pickled together with them."""

from __future__ import annotations

import array
import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastclip
from fastclip import Variable
from fastclip.train import AdagradDAOptimizer, AdamOptimizer, GradientDescentOptimizer, MomentumOptimizer
from support.training_cases import EVERY_OPTIMIZER, VARIANTS, Training, assert_same_training, build, normal


def pickled(protocol: int) -> Callable[[Any], Any]:
    return lambda value: pickle.loads(pickle.dumps(value, protocol))


def pickled_out_of_band(value: Any) -> Any:
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(value, 5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=[bytearray(buffer) for buffer in buffers])


WAYS: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    **{f"protocol {number}": pickled(number) for number in range(pickle.HIGHEST_PROTOCOL + 1)},
    "out of band": pickled_out_of_band,
}

EVERY_WAY = pytest.mark.parametrize("copied", list(WAYS.values()), ids=list(WAYS))
TWO_WAYS = pytest.mark.parametrize("copied", [copy.deepcopy, pickled(4)], ids=["deepcopy", "pickle"])

SHAPES: list[tuple[int, ...]] = [(40,), (5, 3), (), (0, 2)]


def variables() -> list[Variable]:
    return [Variable(normal(seed, *shape), name=str(seed)) for seed, shape in enumerate(SHAPES)]


def gradients(seed: int) -> list[Any]:
    return [normal([seed, number], *shape) for number, shape in enumerate(SHAPES)]


def copy_of_training(training: Training, copied: Callable[[Any], Any]) -> Training:
    """Returns a training whose variables, counter and optimizer are one copy."""
    other = copy.copy(training)
    other.variables, other.global_step, other.optimizer = copied(
        (training.variables, training.global_step, training.optimizer)
    )
    return other


@EVERY_OPTIMIZER
@TWO_WAYS
def test_copy_continues_with_the_bits_of_the_original(variant: str, copied: Callable[[Any], Any]) -> None:
    original = Training(variant, variables(), global_clipnorm=2.0, on_nonfinite="skip")
    for seed in range(3):
        original.step(gradients(seed))
    bad = gradients(9)
    bad[0][3] = np.nan
    original.step(bad)
    other = copy_of_training(original, copied)
    assert_same_training(other, original)
    assert other.optimizer.skipped_steps == 1
    np.testing.assert_equal(other.optimizer.last_norm, original.optimizer.last_norm)
    assert type(other.optimizer.last_norm) is type(original.optimizer.last_norm)
    assert other.optimizer.get_name() == original.optimizer.get_name()
    for seed in range(3, 6):
        for training in (original, other):
            training.step(gradients(seed))
        assert_same_training(other, original)
        assert other.optimizer.last_norm == original.optimizer.last_norm


@EVERY_WAY
def test_copy_shares_nothing_with_the_original(copied: Callable[[Any], Any]) -> None:
    w, optimizer = Variable(normal(1, 30)), AdamOptimizer(0.1)
    optimizer.apply_gradients([(normal(2, 30), w)])
    state, value = optimizer.state_dict(), w.numpy()
    other_w, other = copied((w, optimizer))
    assert type(other) is AdamOptimizer
    assert other.get_slot(other_w, "m").tobytes() == optimizer.get_slot(w, "m").tobytes()
    assert other.get_slot(w, "m") is None
    assert optimizer.get_slot(other_w, "m") is None
    other.apply_gradients([(normal(3, 30), other_w)])
    assert w.numpy().tobytes() == value.tobytes()
    after = optimizer.state_dict()
    assert all(after[name].tobytes() == state[name].tobytes() for name in state)


@TWO_WAYS
def test_copy_before_the_first_step(copied: Callable[[Any], Any]) -> None:
    for variant in VARIANTS:
        original = Training(variant, variables())
        other = copy_of_training(original, copied)
        for seed in range(2):
            for training in (original, other):
                training.step(gradients(seed))
            assert_same_training(other, original)


@TWO_WAYS
def test_copy_of_an_optimizer_alone_copies_its_variables(copied: Callable[[Any], Any]) -> None:
    w, optimizer = Variable(normal(1, 30)), AdamOptimizer(0.1)
    optimizer.apply_gradients([(normal(2, 30), w)])
    other = copied(optimizer)
    gc.collect()
    state, copied_state = optimizer.state_dict(), other.state_dict()
    assert state.keys() == copied_state.keys()
    assert all(state[name].tobytes() == copied_state[name].tobytes() for name in state)
    other.apply_gradients([(normal(3, 30), w)])
    assert int(other.state_dict()["variables"]) == 2
    again = copied(other)
    assert int(again.state_dict()["variables"]) == 2


def test_copy_keeps_its_variables_until_they_are_forgotten_or_replaced() -> None:
    w, optimizer = Variable(normal(1, 30)), AdamOptimizer(0.1)
    optimizer.apply_gradients([(normal(2, 30), w)])
    for release in ("forget", "load", "delete"):
        other_w, other = copy.deepcopy((w, optimizer))
        alive = weakref.ref(other_w)
        memory = weakref.ref(other_w.value)
        other.load_state_dict(other.state_dict())
        if release == "forget":
            other.forget(other_w)
        elif release == "load":
            other.load_state_dict(optimizer.state_dict(), [w])
        del other_w
        if release == "delete":
            assert alive() is not None
            del other
        assert alive() is None
        assert memory() is None


@TWO_WAYS
def test_order_of_variables_is_kept(copied: Callable[[Any], Any]) -> None:
    original = Training("Momentum", variables())
    order = [2, 0, 3, 1]
    original.optimizer.apply_gradients([(gradients(1)[i], original.variables[i]) for i in order])
    other = copy_of_training(original, copied)
    first, second = original.optimizer.state_dict(), other.optimizer.state_dict()
    assert list(first) == list(second)
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


@TWO_WAYS
def test_variable_without_slots_stays_without(copied: Callable[[Any], Any]) -> None:
    a, b, optimizer = Variable([1.0]), Variable([1.0]), MomentumOptimizer(1.0, 0.5)
    optimizer.apply_gradients([(np.float32([1.0]), a), (None, b)])
    other_a, other_b, other = copied((a, b, optimizer))
    assert other.get_slot(other_a, "momentum") is not None
    assert other.get_slot(other_b, "momentum") is None


# --- hyper-parameters ----------------------------------------------------------------------------


class Schedule:
    """A hyper-parameter that can be pickled."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> float:
        self.calls += 1
        return 0.5


@EVERY_WAY
def test_hyper_parameters_are_copied(copied: Callable[[Any], Any]) -> None:
    rate, schedule = Variable(0.25, trainable=False), Schedule()
    w, optimizer = Variable([1.0]), MomentumOptimizer(rate, schedule, loss_scale=rate)
    optimizer.apply_gradients([(np.float32([1.0]), w)])
    other_w, other_rate, other_schedule, other = copied((w, rate, schedule, optimizer))
    rate.assign(100.0)
    other.apply_gradients([(np.float32([1.0]), other_w)])
    # The first momentum is 1 / 0.25, the second half of that and 4 more.
    assert other_w.numpy() == 1.0 - 0.25 * 4.0 - 0.25 * 6.0
    assert (schedule.calls, other_schedule.calls) == (1, 2)
    other_rate.assign(0.5)
    other.apply_gradients([(np.float32([1.0]), other_w)])
    assert other_w.numpy() == 1.0 - 0.25 * 4.0 - 0.25 * 6.0 - 0.5 * 5.0


def test_function_that_cannot_be_pickled_raises_the_error_of_pickle() -> None:
    optimizer = MomentumOptimizer(lambda: 0.1, 0.5)
    with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
        pickle.dumps(optimizer)
    other = copy.deepcopy(optimizer)
    w = Variable([1.0])
    other.apply_gradients([(np.float32([1.0]), w)])
    assert w.numpy() == np.float32(0.9)


@EVERY_WAY
@pytest.mark.parametrize("kind", ["Variable", "array"])
def test_step_counter_of_adagrad_da_is_that_of_the_copy(copied: Callable[[Any], Any], kind: str) -> None:
    counter: Any = Variable(0, trainable=False) if kind == "Variable" else np.array(0)
    w = Variable([1.0])
    optimizer = AdagradDAOptimizer(0.5, counter, l1_regularization_strength=0.1)
    optimizer.apply_gradients([(np.float32([1.0]), w)], counter)
    other_w, other_counter, other = copied((w, counter, optimizer))
    for gradient in (0.5, -0.25, 0.125):
        optimizer.apply_gradients([(np.float32([gradient]), w)], counter)
        other.apply_gradients([(np.float32([gradient]), other_w)], other_counter)
    assert int(np.asarray(other_counter)) == 4
    assert other_w.numpy().tobytes() == w.numpy().tobytes()


@TWO_WAYS
@pytest.mark.parametrize(
    "options", [{"clipvalue": 0.5}, {"clipnorm": 0.5}, {"global_clipnorm": 0.5}, {"loss_scale": 4.0}]
)
def test_gradient_options_are_copied(copied: Callable[[Any], Any], options: dict[str, Any]) -> None:
    w, optimizer = Variable(normal(1, 9)), GradientDescentOptimizer(1.0, on_nonfinite="raise", **options)
    other_w, other = copied((w, optimizer))
    for one, variable in ((optimizer, w), (other, other_w)):
        one.apply_gradients([(normal(2, 9), variable)])
        with pytest.raises(fastclip.NonFiniteError):
            one.apply_gradients([(normal(2, 9) * np.nan, variable)])
    assert other_w.numpy().tobytes() == w.numpy().tobytes()


class Own(MomentumOptimizer):
    """A subclass with an attribute of its own."""

    notes: list[str] = []  # noqa: RUF012

    def __init__(self, rate: float, notes: list[str]) -> None:
        super().__init__(rate, 0.5)
        self.notes = notes


@EVERY_WAY
def test_attributes_of_subclasses_are_copied(copied: Callable[[Any], Any]) -> None:
    w, optimizer = Variable([1.0]), Own(1.0, ["a"])
    optimizer.apply_gradients([(np.float32([1.0]), w)])
    other_w, other = copied((w, optimizer))
    assert type(other) is Own
    other.notes.append("b")
    assert (optimizer.notes, other.notes) == (["a"], ["a", "b"])
    assert other.get_slot(other_w, "momentum")[0] == 1.0


def test_pickle_names_no_private_module() -> None:
    w, optimizer = Variable([1.0]), AdamOptimizer(global_clipnorm=1.0)
    optimizer.apply_gradients([(np.float32([1.0]), w)])
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert b"fastclip._" not in pickle.dumps((w, optimizer), protocol)
        assert b"fastclip.train._" not in pickle.dumps((w, optimizer), protocol)


# --- low-precision copies and constraints --------------------------------------------------------


@EVERY_WAY
def test_low_precision_copies_are_those_of_the_copy(copied: Callable[[Any], Any]) -> None:
    w, optimizer = Variable(normal(1, 20)), MomentumOptimizer(1.0, 0.5)
    half = np.zeros(20, np.float16)
    optimizer.set_low_precision_copy(w, half)
    half[...] = 7.0
    other_w, other_half, other = copied((w, half, optimizer))
    assert (other_half == 7.0).all()
    other.apply_gradients([(normal(2, 20), other_w)])
    np.testing.assert_array_equal(other_half, other_w.numpy().astype(np.float16))
    assert (half == 7.0).all()
    again_w, again_half, again = copied((other_w, other_half, other))
    again.apply_gradients([(normal(2, 20), again_w)])
    np.testing.assert_array_equal(again_half, again_w.numpy().astype(np.float16))


@TWO_WAYS
@pytest.mark.parametrize("kind", ["view", "result of fastclip"])
def test_low_precision_copy_may_be_any_array(copied: Callable[[Any], Any], kind: str) -> None:
    w, optimizer = Variable(normal(1, 20)), MomentumOptimizer(1.0, 0.5)
    whole = np.zeros(40, np.float16)
    half = whole[::2] if kind == "view" else fastclip.clip_by_norm(whole[20:], 1.0)
    optimizer.set_low_precision_copy(w, half)
    other_w, other_half, other = copied((w, half, optimizer))
    other.apply_gradients([(normal(2, 20), other_w)])
    np.testing.assert_array_equal(other_half, other_w.numpy().astype(np.float16))


@TWO_WAYS
def test_low_precision_copy_that_is_a_buffer_is_refused(copied: Callable[[Any], Any]) -> None:
    w, optimizer = Variable(np.zeros(4)), MomentumOptimizer(1.0, 0.5)
    optimizer.set_low_precision_copy(w, array.array("f", [0.0] * 4))
    with pytest.raises(TypeError, match="low-precision copy is memory of another kind"):
        copied((w, optimizer))


@pytest.mark.interop("torch")
@TWO_WAYS
def test_low_precision_copy_that_is_a_tensor_is_refused(copied: Callable[[Any], Any]) -> None:
    torch = pytest.importorskip("torch")
    w, optimizer = Variable(normal(1, 20)), MomentumOptimizer(1.0, 0.5)
    optimizer.set_low_precision_copy(w, torch.zeros(20, dtype=torch.float16))
    with pytest.raises(TypeError, match="low-precision copy is memory of another kind"):
        copied((w, optimizer))
    optimizer.set_low_precision_copy(w, None)
    copied((w, optimizer))


class Trainer:
    """Refers to an optimizer, and its Variable refers to it: a cycle."""

    def __init__(self) -> None:
        self.w = Variable([1.0, -1.0], constraint=self.project)
        self.optimizer = MomentumOptimizer(self.rate, 0.5)

    def rate(self) -> float:
        return 0.5

    def project(self, variable: Any) -> Any:
        return np.maximum(variable.value, 0.25)

    def step(self) -> None:
        self.optimizer.apply_gradients([(np.float32([1.0, 1.0]), self.w)])


@EVERY_WAY
@pytest.mark.parametrize("part", ["trainer", "w", "optimizer"])
def test_cycles_of_variables_and_optimizers_are_copied(copied: Callable[[Any], Any], part: str) -> None:
    original = Trainer()
    original.step()
    if part == "trainer":
        other = copied(original)
    elif part == "w":
        other = copied(original.w).constraint.__self__
    else:
        other = copied(original.optimizer).learning_rate.__self__
    assert other is not original
    assert other.w.constraint.__self__ is other
    for trainer in (original, other):
        trainer.step()
    assert other.w.numpy().tobytes() == original.w.numpy().tobytes()
    assert other.optimizer.get_slot(other.w, "momentum").tolist() == [1.5, 1.5]


# --- what is refused -----------------------------------------------------------------------------


def refused_variables() -> dict[str, Callable[[], Any]]:
    w = Variable(np.zeros((4, 4), np.float32))
    return {
        "array": lambda: np.zeros(3, np.float32),
        "view": lambda: np.zeros(9, np.float32)[::2],
        "part of a Variable": lambda: w.value[:2],
        "another layout of a Variable": lambda: w.value.T,
        "another shape of a Variable": lambda: w.value.reshape(-1),
        "buffer": lambda: memoryview(bytearray(12)).cast("f"),
    }


@TWO_WAYS
@pytest.mark.parametrize("kind", list(refused_variables()))
def test_optimizer_over_arrays_is_refused(copied: Callable[[Any], Any], kind: str) -> None:
    a, b, optimizer = Variable([1.0]), refused_variables()[kind](), MomentumOptimizer(1.0, 0.5)
    optimizer.apply_gradients([(np.float32([1.0]), a), (np.ones(np.shape(b), np.float32), b)])
    with pytest.raises(TypeError, match=r"not the array of a fastclip.Variable.*load_state_dict"):
        copied((a, optimizer))
    optimizer.forget(b)
    copied((a, optimizer))


@pytest.mark.interop("torch")
@TWO_WAYS
def test_optimizer_over_tensors_is_refused(copied: Callable[[Any], Any]) -> None:
    torch = pytest.importorskip("torch")
    tensor, optimizer = torch.zeros(3), MomentumOptimizer(1.0, 0.5)
    optimizer.apply_gradients([(np.ones(3, np.float32), tensor)])
    with pytest.raises(TypeError, match=r"not the array of a fastclip.Variable.*load_state_dict"):
        copied((tensor, optimizer))


@TWO_WAYS
def test_value_of_a_variable_stands_for_it(copied: Callable[[Any], Any]) -> None:
    w, optimizer = Variable([1.0]), MomentumOptimizer(1.0, 0.5)
    optimizer.apply_gradients([(np.float32([1.0]), w.value)])
    other_w, other = copied((w, optimizer))
    other.apply_gradients([(np.float32([1.0]), other_w.value)])
    assert other.get_slot(other_w, "momentum") == 1.5


def test_shallow_copy_is_refused() -> None:
    with pytest.raises(TypeError, match=r"copy\.deepcopy.*state_dict"):
        copy.copy(MomentumOptimizer(1.0, 0.5))


class Interrupted(MomentumOptimizer):
    """Calls a function in the middle of each step."""

    within: Any = None

    def _with_counters(self, hyper: tuple[float, ...]) -> tuple[float, ...]:
        if self.within is not None:
            self.within()
        return super()._with_counters(hyper)


@TWO_WAYS
def test_copy_in_the_middle_of_a_step_raises(copied: Callable[[Any], Any]) -> None:
    w, optimizer = Variable([1.0]), Interrupted(1.0, 0.5)
    optimizer.apply_gradients([(np.float32([1.0]), w)])
    before = w.numpy()
    optimizer.within = lambda: copied((w, optimizer))
    with pytest.raises(RuntimeError, match="in the middle of a step"):
        optimizer.apply_gradients([(np.float32([1.0]), w)])
    assert w.numpy() == before
    optimizer.within = None
    copied((w, optimizer))


@EVERY_WAY
def test_lock_is_not_copied(copied: Callable[[Any], Any]) -> None:
    optimizer = MomentumOptimizer(1.0, 0.5)
    with optimizer._lock:
        other = copied(optimizer)
    assert other._lock is not optimizer._lock


@pytest.mark.parametrize("key", ["attributes", "settings", "state", "variables", "report", "copies"])
def test_damaged_state_raises(key: str) -> None:
    w, optimizer = Variable([1.0]), MomentumOptimizer(1.0, 0.5)
    optimizer.apply_gradients([(np.float32([1.0]), w)])
    state = optimizer.__reduce_ex__(2)[2]
    del state[key]
    with pytest.raises(KeyError, match=key):
        MomentumOptimizer.__new__(MomentumOptimizer).__setstate__(state)


def test_copy_of_a_large_pickle_stream() -> None:
    """A pickler with a memo shared by two dumps refers to the same Variable."""
    w, optimizer = Variable(normal(1, 1000)), build("Adam")
    optimizer.apply_gradients([(normal(2, 1000), w)])
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream)
    pickler.dump(w)
    pickler.dump(optimizer)
    stream.seek(0)
    unpickler = pickle.Unpickler(stream)
    other_w, other = unpickler.load(), unpickler.load()
    assert other.get_slot(other_w, "m").tobytes() == optimizer.get_slot(w, "m").tobytes()
