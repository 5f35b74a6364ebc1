"""Hyper-parameters and gradient options as attributes: accepted values, and when they take effect."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastclip
from fastclip.train import (
    AdamOptimizer,
    AdamWOptimizer,
    FtrlOptimizer,
    GradientDescentOptimizer,
    MomentumOptimizer,
    Optimizer,
    RMSPropOptimizer,
)
from support.training_cases import (
    EVERY_OPTIMIZER,
    VARIANTS,
    Training,
    assert_same_training,
    build,
    some_gradients,
    some_variables,
)

CLIPS = ("clipvalue", "clipnorm", "global_clipnorm")

#: Hyper-parameters of each optimizer, with another value than that of `VARIANTS`.
HYPER_PARAMETERS: dict[str, dict[str, Any]] = {
    "GradientDescent": {"learning_rate": 0.3},
    "Momentum": {"learning_rate": 0.3, "momentum": 0.5, "use_nesterov": True},
    "Adam": {"learning_rate": 0.3, "beta1": 0.5, "beta2": 0.75, "epsilon": 0.1},
    "AdamW": {"learning_rate": 0.3, "beta1": 0.5, "beta2": 0.75, "epsilon": 0.1, "weight_decay": 0.3},
    "Adagrad": {"learning_rate": 0.3},
    "AdagradDA": {
        "learning_rate": 0.3,
        "l1_regularization_strength": 0.3,
        "l2_regularization_strength": 0.1,
    },
    "RMSProp": {"learning_rate": 0.3, "decay": 0.5, "momentum": 0.25, "epsilon": 0.1},
    "RMSProp-centered": {"learning_rate": 0.3, "decay": 0.5, "momentum": 0.25, "epsilon": 0.1},
    "Adadelta": {"learning_rate": 0.3, "rho": 0.5, "epsilon": 0.1},
    "Ftrl": {
        "learning_rate": 0.3,
        "learning_rate_power": -0.75,
        "l1_regularization_strength": 0.3,
        "l2_regularization_strength": 0.1,
        "l2_shrinkage_regularization_strength": 0.1,
        "beta": 0.25,
    },
    "ProximalGradientDescent": {
        "learning_rate": 0.3,
        "l1_regularization_strength": 0.3,
        "l2_regularization_strength": 0.2,
    },
    "ProximalAdagrad": {
        "learning_rate": 0.3,
        "l1_regularization_strength": 0.3,
        "l2_regularization_strength": 0.2,
    },
}
OPTIONS: dict[str, Any] = {
    "clipvalue": 0.25,
    "clipnorm": 0.25,
    "global_clipnorm": 0.25,
    "on_nonfinite": "skip",
    "loss_scale": 8.0,
    "skip_above": 1e-3,
}
EVERY_SETTING = [
    (variant, name, value)
    for variant, values in HYPER_PARAMETERS.items()
    for name, value in {**values, **OPTIONS}.items()
]


# --- reading and setting -------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "name", "value"), EVERY_SETTING)
def test_step_after_an_assignment_has_the_bits_of_an_optimizer_made_with_the_value(
    variant: str, name: str, value: Any
) -> None:
    changed, made = Training(variant, some_variables()), Training(variant, some_variables(), **{name: value})
    before = getattr(changed.optimizer, name)
    assert before != value
    setattr(changed.optimizer, name, value)
    assert getattr(changed.optimizer, name) == getattr(made.optimizer, name) == value
    other, restored = Training(variant, some_variables()), Training(variant, some_variables())
    setattr(restored.optimizer, name, value)
    setattr(restored.optimizer, name, before)
    for seed in (50, 60):
        for training in (changed, made, other, restored):
            training.step(some_gradients(seed))
    assert changed.state() == made.state()
    # The setting had an effect, and has none after it is set back.
    assert restored.state() == other.state()
    if name != "on_nonfinite":
        assert changed.state() != other.state()


def test_learning_rate_of_zero_stops_gradient_descent() -> None:
    w, optimizer = np.ones(3), GradientDescentOptimizer(0.5)
    optimizer.learning_rate = 0.0
    optimizer.apply_gradients([(np.ones(3), w)])
    np.testing.assert_array_equal(w, np.ones(3))


@EVERY_OPTIMIZER
def test_arguments_are_attributes(variant: str) -> None:
    optimizer = build(variant, on_nonfinite="raise", loss_scale=2.0, clipnorm=3)
    for name, value in VARIANTS[variant][1].items():
        assert getattr(optimizer, name) == value
        assert type(getattr(optimizer, name)) is type(value)
    assert (optimizer.on_nonfinite, optimizer.loss_scale, optimizer.skip_above) == ("raise", 2.0, None)
    assert (optimizer.clipvalue, optimizer.clipnorm, optimizer.global_clipnorm) == (None, 3.0, None)


def test_attribute_is_what_was_assigned() -> None:
    optimizer = AdamOptimizer()
    for value in (np.array(0.5), fastclip.Variable(0.5, trainable=False), lambda: 0.5, np.float32(0.5), 1):
        optimizer.learning_rate = value
        assert optimizer.learning_rate is value


@pytest.mark.parametrize("kind", ["callable", "array", "Variable"])
def test_assigned_hyper_parameter_is_read_at_each_step(kind: str) -> None:
    holder = fastclip.Variable(np.array(0.5), trainable=False)
    optimizer, w = GradientDescentOptimizer(7.0), np.zeros(2)
    optimizer.learning_rate = {
        "callable": lambda: float(holder.value),
        "array": holder.value,
        "Variable": holder,
    }[kind]
    for rate, expected in ((0.5, -0.5), (0.25, -0.75)):
        holder.assign(rate)
        optimizer.apply_gradients([(np.ones(2), w)])
        np.testing.assert_array_equal(w, np.full(2, expected))


@pytest.mark.parametrize("name", ["learningrate", "lr", "clip_norm", "global_step", "weight_decay", "name"])
def test_unknown_attribute_is_refused_with_those_that_exist(name: str) -> None:
    optimizer = AdamOptimizer()
    with pytest.raises(AttributeError, match=rf"AdamOptimizer has no attribute '{name}'") as refused:
        setattr(optimizer, name, 0.1)
    for known in ("learning_rate", "beta1", "beta2", "epsilon", *OPTIONS, "skipped_steps"):
        assert known in str(refused.value)
    assert not hasattr(optimizer, name)


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        ("Adagrad", "initial_accumulator_value"),
        ("ProximalAdagrad", "initial_accumulator_value"),
        ("Ftrl", "initial_accumulator_value"),
        ("AdagradDA", "initial_gradient_squared_accumulator_value"),
        ("AdagradDA", "global_step"),
        ("RMSProp", "centered"),
        ("Adam", "last_norm"),
        ("Adam", "last_scale"),
    ],
)
def test_attribute_that_a_constructor_fixes_can_be_read_only(variant: str, name: str) -> None:
    optimizer = build(variant)
    before = getattr(optimizer, name)
    with pytest.raises(AttributeError, match=name):
        setattr(optimizer, name, before)
    assert getattr(optimizer, name) is before
    with pytest.raises(AttributeError, match=name):
        delattr(optimizer, name)


def test_setting_cannot_be_deleted() -> None:
    optimizer = AdamOptimizer()
    with pytest.raises(AttributeError, match=r"learning_rate can be set, but not deleted"):
        del optimizer.learning_rate
    assert optimizer.learning_rate == 0.001


def test_subclass_may_have_attributes_that_its_class_has() -> None:
    class Scheduled(AdamOptimizer):
        warmup = 0

    optimizer = Scheduled(0.5)
    optimizer.warmup = 10
    assert optimizer.warmup == 10
    with pytest.raises(AttributeError, match=r"Scheduled has no attribute 'cooldown'.*learning_rate"):
        optimizer.cooldown = 10  # type: ignore[attr-defined]


# --- values --------------------------------------------------------------------------------------


NUMBERS = [(v, n) for v, values in HYPER_PARAMETERS.items() for n in values if n != "use_nesterov"]
NO_NUMBERS: dict[str, tuple[Any, type[Exception]]] = {
    "NaN": (math.nan, ValueError),
    "NaN of an array": (np.array(np.nan, np.float32), ValueError),
    "list": ([0.1], TypeError),
    "tuple": ((0.1,), TypeError),
    "array of one": (np.array([0.1]), ValueError),
    "string": ("0.1", TypeError),
    "bool": (True, TypeError),
    "complex": (1j, TypeError),
}


def assert_refused_everywhere(
    variant: str, name: str, value: Any, exception: type[Exception], match: str
) -> None:
    """Checks that a value is refused by the constructor, by assignment, and in the step of a callable."""
    with pytest.raises(exception, match=match):
        build(variant, **{name: value})
    training, other = Training(variant, some_variables()), Training(variant, some_variables())
    before = getattr(training.optimizer, name)
    with pytest.raises(exception, match=match):
        setattr(training.optimizer, name, value)
    assert getattr(training.optimizer, name) is before
    setattr(training.optimizer, name, lambda: value)
    state = training.state()
    with pytest.raises(exception, match=match):
        training.step(some_gradients())
    assert training.state() == state
    setattr(training.optimizer, name, before)
    for each in (training, other):
        each.step(some_gradients())
    assert_same_training(training, other)


@pytest.mark.parametrize(("variant", "name"), NUMBERS)
@pytest.mark.parametrize("case", NO_NUMBERS)
def test_hyper_parameter_that_is_no_number_is_refused(variant: str, name: str, case: str) -> None:
    value, exception = NO_NUMBERS[case]
    assert_refused_everywhere(variant, name, value, exception, rf"\b{name} is .*it takes")


@pytest.mark.parametrize("variant", ["Adam", "AdamW"])
@pytest.mark.parametrize("name", ["beta1", "beta2"])
@pytest.mark.parametrize("value", [1.0, 1.5, -1e-9, math.inf, -math.inf, np.array(1.0), 1])
def test_beta_outside_0_to_1_is_refused(variant: str, name: str, value: Any) -> None:
    match = rf"^{name} is {float(value)}; it takes a number that is at least 0 and below 1$"
    assert_refused_everywhere(variant, name, value, ValueError, match)


def test_beta_may_be_0_and_next_to_1() -> None:
    w = np.ones(2)
    AdamOptimizer(beta1=0, beta2=math.nextafter(1.0, 0.0)).apply_gradients([(np.ones(2), w)])
    assert np.isfinite(w).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate_power", 0.5),
        ("l1_regularization_strength", -0.5),
        ("l2_regularization_strength", -0.5),
        ("l2_shrinkage_regularization_strength", -0.5),
    ],
)
def test_ranges_of_ftrl_hold_for_every_way_to_set_its_hyper_parameters(name: str, value: float) -> None:
    assert_refused_everywhere("Ftrl", name, value, ValueError, rf"^{name} {value} needs to be")


def test_beta_of_ftrl_may_be_set_to_none() -> None:
    optimizer = FtrlOptimizer(0.1, beta=0.5)
    optimizer.beta = None
    assert optimizer.beta == FtrlOptimizer(0.1).beta == 0.0


@EVERY_OPTIMIZER
@pytest.mark.parametrize("value", [-0.1, 0.0, np.float64(-2), np.array(-0.5)])
def test_learning_rate_may_be_0_or_negative(variant: str, value: Any) -> None:
    training = Training(variant, some_variables(), learning_rate=value)
    training.step(some_gradients())
    assert training.global_step == 1


@EVERY_OPTIMIZER
@pytest.mark.parametrize("name", [*CLIPS, "skip_above"])
@pytest.mark.parametrize(
    ("value", "exception"),
    [
        (-1.0, ValueError),
        (math.nan, ValueError),
        ([1.0], TypeError),
        ("1", TypeError),
        (True, TypeError),
        (np.ones(1), ValueError),
        (lambda: 1.0, TypeError),
    ],
)
def test_refused_bound_changes_nothing(
    variant: str, name: str, value: Any, exception: type[Exception]
) -> None:
    with pytest.raises(exception, match=rf"\b{name} is"):
        build(variant, **{name: value})
    optimizer = build(variant, **{name: 2.0})
    with pytest.raises(exception, match=rf"\b{name} is"):
        setattr(optimizer, name, value)
    assert getattr(optimizer, name) == 2.0


@pytest.mark.parametrize(
    "value", ["ignore", "", None, 1, "Skip", ["skip"], np.array(["skip", "raise"]), np.array("skip")]
)
def test_unknown_policy_is_refused_and_changes_nothing(value: Any) -> None:
    match = 'on_nonfinite is .*; it takes "propagate", "raise" or "skip"'
    with pytest.raises(ValueError, match=match):
        AdamOptimizer(on_nonfinite=value)
    optimizer = AdamOptimizer(on_nonfinite="raise")
    with pytest.raises(ValueError, match=match):
        optimizer.on_nonfinite = value
    assert optimizer.on_nonfinite == "raise"


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_refused_loss_scale_changes_nothing(value: float) -> None:
    optimizer = AdamOptimizer(loss_scale=4.0)
    with pytest.raises(ValueError, match="loss_scale"):
        optimizer.loss_scale = value
    assert optimizer.loss_scale == 4.0
    optimizer.loss_scale = lambda: value
    w = np.ones(2)
    with pytest.raises(ValueError, match="loss_scale"):
        optimizer.apply_gradients([(np.ones(2), w)])
    np.testing.assert_array_equal(w, np.ones(2))


@pytest.mark.parametrize("first", CLIPS)
@pytest.mark.parametrize("second", CLIPS)
def test_one_way_to_clip_is_set_at_a_time(first: str, second: str) -> None:
    optimizer = AdamOptimizer(**{first: 1.0})  # type: ignore[arg-type]
    if first != second:
        with pytest.raises(ValueError, match=rf"{second} is 2\.0 and {first} is set.*set {first} to None"):
            setattr(optimizer, second, 2.0)
        setattr(optimizer, second, None)
        assert getattr(optimizer, first) == 1.0
        setattr(optimizer, first, None)
    setattr(optimizer, second, 2.0)
    assert {name: getattr(optimizer, name) for name in CLIPS} == {**dict.fromkeys(CLIPS), second: 2.0}


def test_bound_of_minus_zero_is_zero() -> None:
    assert math.copysign(1.0, AdamOptimizer(global_clipnorm=-0.0).global_clipnorm) == 1.0


def test_adamw_takes_the_learning_rate_first() -> None:
    optimizer = AdamWOptimizer(0.25)
    assert (optimizer.learning_rate, optimizer.weight_decay) == (0.25, 0.01)
    with pytest.raises(TypeError, match="positional"):
        AdamWOptimizer(0.25, 0.9, 0.999, 1e-8, False, "AdamW", 0.5)  # type: ignore[misc]


# --- assignments during a step -------------------------------------------------------------------


def assert_next_step_only(
    training: Training, assign: Callable[[Any], None], variant: str, **options: Any
) -> None:
    """Checks a step in which `assign` was called, and the step after it, which has other settings."""
    expected = Training(variant, some_variables(), **options)
    for each in (training, expected):
        each.step(some_gradients(50))
    assert_same_training(training, expected)
    assert training.optimizer.last_norm == expected.optimizer.last_norm
    assign(expected.optimizer)
    for each in (training, expected):
        each.step(some_gradients(60))
    assert_same_training(training, expected)
    assert training.optimizer.last_norm == expected.optimizer.last_norm


def assign_everything(optimizer: Any) -> None:
    optimizer.beta1, optimizer.beta2, optimizer.epsilon = 0.5, 0.25, 0.125
    optimizer.clipnorm = None
    optimizer.clipvalue = 0.01
    optimizer.loss_scale = 16.0
    optimizer.on_nonfinite = "raise"


@pytest.mark.parametrize("place", ["learning_rate", "epsilon", "loss_scale"])
def test_assignment_by_a_hyper_parameter_takes_effect_in_the_next_step(place: str) -> None:
    numbers = {"learning_rate": 0.02, "epsilon": 1e-8, "loss_scale": 2.0}
    calls: list[int] = []

    def number() -> float:
        calls.append(1)
        if len(calls) == 1:
            assign_everything(training.optimizer)
        return numbers[place]

    training = Training("Adam", some_variables(), **{"clipnorm": 0.5, "loss_scale": 2.0, place: number})
    assert_next_step_only(training, assign_everything, "Adam", clipnorm=0.5, loss_scale=2.0)


def test_assignment_by_the_iterator_of_the_pairs_takes_effect_in_this_step() -> None:
    w, optimizer = np.zeros(2), GradientDescentOptimizer(7.0)

    def pairs() -> Any:
        optimizer.learning_rate = 0.5
        yield np.ones(2), w

    optimizer.apply_gradients(pairs())
    np.testing.assert_array_equal(w, [-0.5, -0.5])


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX's timers")
def test_assignment_by_a_signal_handler_leaves_the_step_whole() -> None:
    """The handler sets learning rate and bound together; each step has both values from before or after."""
    size = 2_000_000
    optimizer = GradientDescentOptimizer(1.0, global_clipnorm=1.0)
    turns: list[int] = []
    is_busy = False

    def handler(*_: Any) -> None:
        nonlocal is_busy
        if is_busy:
            # The timer interrupts the handler itself.
            return
        is_busy = True
        turns.append(1)
        value = float(1 + len(turns) % 2)
        optimizer.learning_rate = value
        optimizer.global_clipnorm = value
        is_busy = False

    w, g = np.zeros(size, np.float64), np.full(size, 1.0)
    previous = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0007)
        for _ in range(150):
            w[:] = 0.0
            optimizer.apply_gradients([(g, w)])
            # The step is rate · bound / norm: 1 or 4 times 1 / norm, and not 2.
            moved = -float(w[0]) * math.sqrt(size)
            assert min(abs(moved - 1.0), abs(moved - 4.0)) < 1e-9
            assert (w == w[0]).all()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert turns


def test_settings_of_threads_are_not_lost() -> None:
    optimizer = AdamOptimizer(global_clipnorm=1.0)
    names = ("learning_rate", "beta1", "beta2", "epsilon", "skip_above", "loss_scale")
    errors: list[BaseException] = []

    def assign(name: str) -> None:
        try:
            for i in range(1, 3000):
                setattr(optimizer, name, i / 4096)
                assert getattr(optimizer, name) == i / 4096
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=assign, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    w = np.zeros(4)
    for _ in range(200):
        optimizer.apply_gradients([(np.ones(4), w)])
    for thread in threads:
        thread.join()
    assert not errors
    assert {getattr(optimizer, name) for name in names} == {2999 / 4096}


# --- repr ----------------------------------------------------------------------------------------


def test_repr_is_a_call_with_the_settings() -> None:
    assert (
        repr(AdamOptimizer()) == "AdamOptimizer(learning_rate=0.001, beta1=0.9, beta2=0.999, epsilon=1e-08)"
    )
    optimizer = MomentumOptimizer(0.1, 0.9, global_clipnorm=1, on_nonfinite="skip", name="mine")
    assert repr(optimizer) == (
        "MomentumOptimizer(learning_rate=0.1, momentum=0.9, use_nesterov=False, global_clipnorm=1.0, "
        "on_nonfinite='skip', name='mine')"
    )
    optimizer.learning_rate, optimizer.global_clipnorm, optimizer.skip_above = 0.5, None, 7
    assert repr(optimizer) == (
        "MomentumOptimizer(learning_rate=0.5, momentum=0.9, use_nesterov=False, "
        "on_nonfinite='skip', skip_above=7.0, name='mine')"
    )


@EVERY_OPTIMIZER
def test_repr_evaluates_to_an_equal_optimizer(variant: str) -> None:
    optimizer = build(variant, clipnorm=0.5, loss_scale=np.array(2.0), name="other")
    names = {**vars(fastclip.train), "array": np.array}
    again = eval(repr(optimizer), names)
    assert type(again) is type(optimizer)
    assert repr(again) == repr(optimizer)
    assert again.get_name() == "other"
    if variant == "RMSProp-centered":
        assert again.centered is True


def test_repr_of_an_optimizer_that_its_hyper_parameter_shows() -> None:
    class Schedule:
        optimizer: Any = None

        def __call__(self) -> float:
            return 0.1

        def __repr__(self) -> str:
            return f"Schedule({self.optimizer!r})"

    schedule = Schedule()
    schedule.optimizer = optimizer = RMSPropOptimizer(schedule)
    assert repr(optimizer).startswith("RMSPropOptimizer(learning_rate=Schedule(...), decay=0.9")


def test_attributes_have_docstrings() -> None:
    for name in ("learning_rate", *OPTIONS):
        assert getattr(AdamOptimizer, name).__doc__
    assert Optimizer.clipnorm.__doc__ == "The bound on the norm of each gradient, or None."
