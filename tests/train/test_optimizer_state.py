"""Saving and loading optimizers' state: resumed training has the same bits, invalid states are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastclip
from fastclip import IndexedSlices
from support.reference_optimizers import RULES
from support.strategies import finite_values, read_only
from support.training_cases import (
    A_FEW_OPTIMIZERS,
    EVERY_OPTIMIZER,
    VARIANTS,
    Training,
    assert_same_training,
    build,
)

SHAPES: list[tuple[int, ...]] = [(40,), (5, 3), (), (0, 2), (700,)]

State = dict[str, Any]


def variables_of(dtype: Any = np.float32) -> list[Any]:
    return [finite_values(np.random.default_rng(seed), shape, dtype) for seed, shape in enumerate(SHAPES)]


def gradients_of(seed: int, dtype: Any = np.float32) -> list[Any]:
    """Returns dense gradients, slices with a repeated row, and in some steps None for the last variable."""
    rng = np.random.default_rng([seed, 3])
    gradients: list[Any] = [finite_values(rng, shape, dtype) for shape in SHAPES]
    gradients[1] = IndexedSlices(gradients[1][:3], [4, seed % 4, 4], (5, 3))
    if seed % 3 == 2:
        gradients[4] = None
    return gradients


# --- storing a state -------------------------------------------------------------------


def kept_in_memory(state: State, path: Path) -> State:
    return state


def kept_in_npz(state: State, path: Path) -> State:
    np.savez(path / "state.npz", **state)
    with np.load(path / "state.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def kept_in_compressed_npz(state: State, path: Path) -> State:
    np.savez_compressed(path / "state.npz", **state)
    with np.load(path / "state.npz", allow_pickle=False) as file:
        return dict(file)


def kept_in_safetensors(state: State, path: Path) -> State:
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file(state, path / "state.safetensors")
    loaded: State = safetensors.load_file(path / "state.safetensors")
    return loaded


Keep = Callable[[State, Path], State]

EVERY_WAY = pytest.mark.parametrize(
    "keep", [kept_in_memory, kept_in_npz, kept_in_compressed_npz, kept_in_safetensors]
)


def resumed(variant: str, training: Training, keep: Keep, path: Path, **more: Any) -> Training:
    """Returns a training with copies of the variables and a new optimizer that loaded the other's state."""
    # Only arrays are passed on, as after a restart of the program.
    variables = [np.array(variable) for variable in training.variables]
    other = Training(variant, variables, **more)
    other.global_step[...] = training.global_step
    other.optimizer.load_state_dict(keep(training.optimizer.state_dict(), path), variables)
    return other


@EVERY_OPTIMIZER
@EVERY_WAY
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_resumed_training_has_the_bits_of_the_uninterrupted_one(
    variant: str, keep: Keep, dtype: Any, tmp_path: Path
) -> None:
    unbroken = Training(variant, variables_of(dtype), global_clipnorm=2.0)
    for seed in range(3):
        unbroken.step(gradients_of(seed, dtype))
    other = resumed(variant, unbroken, keep, tmp_path, global_clipnorm=2.0)
    assert_same_training(other, unbroken)
    for seed in range(3, 7):
        unbroken.step(gradients_of(seed, dtype))
        other.step(gradients_of(seed, dtype))
        assert_same_training(other, unbroken)


@EVERY_OPTIMIZER
def test_resuming_at_every_step_changes_no_bit(variant: str, tmp_path: Path) -> None:
    unbroken = Training(variant, variables_of())
    broken = Training(variant, variables_of())
    for seed in range(5):
        unbroken.step(gradients_of(seed))
        broken.step(gradients_of(seed))
        broken = resumed(variant, broken, kept_in_memory, tmp_path)
        assert_same_training(broken, unbroken)


@EVERY_OPTIMIZER
def test_state_before_the_first_step_can_be_loaded(variant: str, tmp_path: Path) -> None:
    state = build(variant).state_dict()
    other = Training(variant, variables_of())
    other.optimizer.load_state_dict(kept_in_npz(state, tmp_path), [])
    unbroken = Training(variant, variables_of())
    for training in (other, unbroken):
        training.step(gradients_of(1))
    assert_same_training(other, unbroken)


@EVERY_OPTIMIZER
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
@pytest.mark.parametrize("named", [False, True], ids=["without var_list", "with var_list"])
def test_state_after_skipped_steps_only_can_be_loaded_for_any_variables(
    variant: str, used: bool, named: bool, tmp_path: Path
) -> None:
    source = Training(variant, variables_of(), on_nonfinite="skip")
    bad = gradients_of(0)
    bad[0] = bad[0] * np.nan
    source.step(bad)
    state = kept_in_npz(source.optimizer.state_dict(), tmp_path)
    assert (int(state["variables"]), int(state["skipped_steps"])) == (0, 1)
    other = Training(variant, variables_of())
    if used:
        other.step(gradients_of(2))
        for variable, value in zip(other.variables, variables_of(), strict=True):
            variable[...] = value
        other.global_step[...] = 0
    other.optimizer.load_state_dict(state, other.variables if named else None)
    assert other.optimizer.skipped_steps == 1
    assert other.optimizer.get_slot_names() == []
    unbroken = Training(variant, variables_of())
    for seed in (1, 3):
        for training in (other, unbroken):
            training.step(gradients_of(seed))
        assert_same_training(other, unbroken)


@EVERY_OPTIMIZER
def test_loading_replaces_the_previous_state(variant: str, tmp_path: Path) -> None:
    unbroken = Training(variant, variables_of(), on_nonfinite="skip")
    unbroken.step(gradients_of(0))
    state = unbroken.optimizer.state_dict()
    other = Training(variant, [value.copy() for value in unbroken.variables], on_nonfinite="skip")
    start = [value.copy() for value in unbroken.variables]
    for seed in (1, 3, 4):
        other.step(gradients_of(seed))
    for variable, value in zip(other.variables, start, strict=True):
        variable[...] = value
    other.global_step[...] = unbroken.global_step
    other.optimizer.load_state_dict(state, other.variables)
    assert_same_training(other, unbroken)
    for training in (other, unbroken):
        training.step(gradients_of(6))
    assert_same_training(other, unbroken)


@EVERY_OPTIMIZER
def test_loading_does_not_change_variables(variant: str) -> None:
    training = Training(variant, variables_of())
    training.step(gradients_of(0))
    fresh = variables_of()
    before = [variable.tobytes() for variable in fresh]
    build(variant).load_state_dict(training.optimizer.state_dict(), fresh)
    assert [variable.tobytes() for variable in fresh] == before


@A_FEW_OPTIMIZERS
def test_state_of_arrays_can_be_loaded_for_variable_objects(variant: str) -> None:
    unbroken = Training(variant, variables_of())
    unbroken.step(gradients_of(0))
    other = Training(variant, [fastclip.Variable(value) for value in unbroken.variables])
    other.global_step[...] = unbroken.global_step
    other.optimizer.load_state_dict(unbroken.optimizer.state_dict(), other.variables)
    for training in (other, unbroken):
        training.step(gradients_of(1))
    assert_same_training(other, unbroken)


@A_FEW_OPTIMIZERS
def test_state_can_be_loaded_for_variables_of_another_layout(variant: str) -> None:
    unbroken = Training(variant, [finite_values(np.random.default_rng(1), (6, 5), np.float32)])
    gradient = finite_values(np.random.default_rng(2), (6, 5), np.float32)
    unbroken.step([gradient])
    other = Training(variant, [unbroken.variables[0].copy(order="F")])
    other.global_step[...] = unbroken.global_step
    other.optimizer.load_state_dict(unbroken.optimizer.state_dict(), other.variables)
    for training in (other, unbroken):
        training.step([gradient])
    assert_same_training(other, unbroken)


@EVERY_OPTIMIZER
def test_order_of_variables_includes_those_without_a_gradient(variant: str) -> None:
    """The order is that of the pairs of the first step, with a gradient or without."""
    unbroken = Training(variant, variables_of())
    first = gradients_of(0)
    first[0] = first[2] = None
    unbroken.step(first)
    other = resumed(variant, unbroken, kept_in_memory, Path())
    assert_same_training(other, unbroken)
    for seed in (1, 3):
        for training in (other, unbroken):
            training.step(gradients_of(seed))
        assert_same_training(other, unbroken)


@EVERY_OPTIMIZER
def test_variables_of_later_steps_are_last_in_the_order(variant: str) -> None:
    unbroken = Training(variant, variables_of())
    order = [3, 1, 4, 0, 2]
    for chosen in (order[:2], order[2:]):
        gradients = gradients_of(len(chosen) + 1)
        pairs = [(gradients[position], unbroken.variables[position]) for position in chosen]
        unbroken.optimizer.apply_gradients(pairs, unbroken.global_step)
    other = Training(variant, [variable.copy() for variable in unbroken.variables])
    other.global_step[...] = unbroken.global_step
    other.optimizer.load_state_dict(
        unbroken.optimizer.state_dict(), [other.variables[position] for position in order]
    )
    for training in (other, unbroken):
        training.step(gradients_of(7))
    assert_same_training(other, unbroken)


def test_var_list_may_be_omitted_if_the_optimizer_has_its_variables() -> None:
    unbroken = Training("Adam", variables_of())
    unbroken.step(gradients_of(0))
    state, start = unbroken.optimizer.state_dict(), [variable.copy() for variable in unbroken.variables]
    unbroken.step(gradients_of(1))
    expected = [variable.copy() for variable in unbroken.variables]
    for variable, value in zip(unbroken.variables, start, strict=True):
        variable[...] = value
    unbroken.optimizer.load_state_dict(state)
    unbroken.step(gradients_of(1))
    for variable, value in zip(unbroken.variables, expected, strict=True):
        assert variable.tobytes() == value.tobytes()


def test_low_precision_copy_is_kept_when_a_state_is_loaded() -> None:
    training = Training("Adam", variables_of())
    copy = np.zeros(SHAPES[0], np.float16)
    training.optimizer.set_low_precision_copy(training.variables[0], copy)
    training.step(gradients_of(0))
    training.optimizer.load_state_dict(training.optimizer.state_dict(), training.variables)
    training.step(gradients_of(1))
    assert copy.tobytes() == training.variables[0].astype(np.float16).tobytes()


@EVERY_OPTIMIZER
def test_state_is_plain_arrays_that_are_copies(variant: str) -> None:
    training = Training(variant, variables_of())
    training.step(gradients_of(0))
    state = training.optimizer.state_dict()
    assert type(state) is dict
    for name, array in state.items():
        assert type(name) is str
        assert type(array) is np.ndarray
        assert array.dtype.kind in "fiu"
        assert array.flags.c_contiguous
        assert array.flags.owndata
        assert not any(np.shares_memory(array, state) for state in training.optimizer.variables())
    before = {name: array.tobytes() for name, array in state.items()}
    training.step(gradients_of(1))
    assert {name: array.tobytes() for name, array in state.items()} == before


def test_skipped_steps_are_part_of_the_state() -> None:
    training = Training("Adam", variables_of(), on_nonfinite="skip")
    training.step(gradients_of(0))
    bad = gradients_of(1)
    bad[0][3] = np.nan
    training.step(bad)
    other = resumed("Adam", training, kept_in_memory, Path(), on_nonfinite="skip")
    assert other.optimizer.skipped_steps == 1


# --- states and variables that are refused ---------------------------------------------


def entry(state: State, name: str) -> str:
    """Returns the first key that starts with `name`."""
    return next(key for key in state if key.startswith(name))


def set_entry(name: str, value: Callable[[Any], Any]) -> Callable[[State], None]:
    def change(state: State) -> None:
        key = entry(state, name)
        state[key] = value(state[key])

    return change


def missing(name: str) -> Callable[[State], None]:
    return lambda state: state.pop(entry(state, name))  # type: ignore[return-value]


def extra(name: str, value: Any) -> Callable[[State], None]:
    def change(state: State) -> None:
        assert name not in state
        state[name] = value

    return change


#: Functions that make a valid state of Adam with five variables invalid.
INVALID: dict[str, Callable[[State], None]] = {
    "nothing in it": lambda state: state.clear(),
    "no version": missing("fastclip.version"),
    "a later version": set_entry("fastclip.version", lambda v: v + 1),
    "an earlier version": set_entry("fastclip.version", lambda v: v - 1),
    "a version that is no number": set_entry("fastclip.version", lambda v: np.array([1, 1])),
    "no optimizer": missing("fastclip.optimizer"),
    "an unknown optimizer": set_entry("fastclip.optimizer", lambda v: np.frombuffer(b"Lion", np.uint8)),
    "an optimizer that is no text": set_entry("fastclip.optimizer", lambda v: np.array(3.5)),
    "a slot less": missing("m.0"),
    "the last slot less": missing("v.4"),
    "a slot of another shape": set_entry("m.1", lambda m: m.T.copy()),
    "a slot of as many elements in another shape": set_entry("m.1", lambda m: m.reshape(-1)),
    "a slot of a shape that would broadcast": set_entry("m.1", lambda m: m[:1]),
    "a slot of another dtype": set_entry("m.0", lambda m: m.astype(np.float64)),
    "a slot of integers": set_entry("v.0", lambda v: v.astype(np.int32)),
    "a slot too much": extra("u.0", np.zeros(40, np.float32)),
    "a slot of a variable too much": extra("m.5", np.zeros(40, np.float32)),
    "an entry of something else": extra("epoch", np.array(3)),
    "no powers of beta": missing("beta1_power"),
    "powers of beta with dimensions": set_entry("beta2_power", lambda p: np.array([p, p])),
    "powers of beta of a wrong dtype": set_entry("beta2_power", lambda p: np.array(1)),
    "a shape less": missing("shape.2"),
    "another shape": set_entry("shape.0", lambda shape: shape + 1),
    "a number of variables that is wrong": set_entry("variables", lambda n: n - 1),
    "objects": set_entry("m.0", lambda m: m.astype(object)),
    "a ragged list": set_entry("m.0", lambda m: [[1.0], [1.0, 2.0]]),
    "a masked slot": set_entry("m.0", np.ma.array),
    "a version of an unsigned type that is too large": set_entry(
        "fastclip.version", lambda v: np.array(2**64 - 1, np.uint64)
    ),
    "an optimizer of objects": set_entry("fastclip.optimizer", lambda v: np.array([np.inf], object)),
    "an optimizer of wide integers": set_entry("fastclip.optimizer", lambda v: v.astype(np.int64)),
    "an optimizer of two dimensions": set_entry("fastclip.optimizer", lambda v: v[None]),
    "a number of variables that is a float": set_entry("variables", lambda n: n.astype(float)),
    "a number of variables below 0": set_entry("variables", lambda n: np.array(-5)),
    "no variables, but their shapes": set_entry("variables", np.zeros_like),
    "no variables and no flags, but their slots": lambda state: state.update(
        variables=np.array(0), has_slots=np.zeros(0, np.uint8)
    ),
    "flags of another dtype": set_entry("has_slots", lambda flags: flags.astype(bool)),
    "flags other than 0 and 1": set_entry("has_slots", lambda flags: flags * 2),
    "flags too few": set_entry("has_slots", lambda flags: flags[1:]),
    "flags of two dimensions": set_entry("has_slots", lambda flags: flags[:, None]),
    "an infinite shape": set_entry("shape.0", lambda shape: np.array([np.inf])),
    "a shape of NaN": set_entry("shape.0", lambda shape: np.array([np.nan])),
    "a shape of floats": set_entry("shape.0", lambda shape: shape.astype(float)),
    "a shape of objects": set_entry("shape.0", lambda shape: np.array([np.inf], object)),
    "a shape of text": set_entry("shape.0", lambda shape: np.array(["40"])),
    "a shape of two dimensions": set_entry("shape.1", lambda shape: shape[None]),
    "a shape of no dimensions": set_entry("shape.0", lambda shape: np.array(40)),
    "a shape beyond int64": set_entry("shape.0", lambda shape: np.array([2**64 - 1], np.uint64)),
    "a shape beyond any integer type": set_entry("shape.0", lambda shape: [10**30]),
    "a negative shape": set_entry("shape.0", lambda shape: -shape),
    "skipped steps below 0": set_entry("skipped_steps", lambda n: np.array(-1)),
    "skipped steps beyond int64": set_entry("skipped_steps", lambda n: np.array(2**63, np.uint64)),
    "skipped steps beyond any integer type": set_entry("skipped_steps", lambda n: 10**30),
    "skipped steps that are a float": set_entry("skipped_steps", lambda n: np.array(1.0)),
    "powers of beta that are objects": set_entry("beta1_power", lambda p: np.array(0.9, object)),
    "powers of beta that are infinite": set_entry("beta1_power", lambda p: np.array(np.inf)),
}


@pytest.mark.parametrize("case", INVALID)
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
def test_invalid_state_is_refused_and_changes_nothing(case: str, used: bool) -> None:
    source = Training("Adam", variables_of())
    for seed in (0, 1):
        source.step(gradients_of(seed))
    state = source.optimizer.state_dict()
    INVALID[case](state)
    training, other = Training("Adam", variables_of()), Training("Adam", variables_of())
    if used:
        training.step(gradients_of(3))
        other.step(gradients_of(3))
    before = training.state()
    with pytest.raises(ValueError, match="state"):
        training.optimizer.load_state_dict(state, training.variables)
    assert training.state() == before
    for seed in (4, 6):
        training.step(gradients_of(seed))
        other.step(gradients_of(seed))
    assert_same_training(training, other)


@EVERY_OPTIMIZER
@pytest.mark.parametrize("key", [0, None, ("m", 0), b"m.0"], ids=repr)
def test_key_that_is_no_string_is_refused(variant: str, key: Any) -> None:
    training = Training(variant, variables_of())
    training.step(gradients_of(0))
    before = training.state()
    state: dict[Any, Any] = {**training.optimizer.state_dict(), key: np.zeros(3), "unknown": np.zeros(3)}
    with pytest.raises(TypeError, match=r"state_dict has the key") as raised:
        training.optimizer.load_state_dict(state, training.variables)
    assert repr(key) in str(raised.value)
    assert training.state() == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shape.0", np.array([np.inf])),
        ("shape.3", np.array([0, 2.5])),
        ("has_slots", np.array([1, 1, 7, 1, 1], np.uint8)),
        ("has_slots", np.ones(3, np.uint8)),
        ("m.2", np.zeros((), np.float16)),
        ("fastclip.optimizer", np.array([np.inf])),
        ("fastclip.version", np.array(1.0)),
        ("variables", np.array([5])),
        ("skipped_steps", np.array(-1)),
        ("beta1_power", np.array(0.9, np.float32)),
        ("v.0", [[1.0], [1.0, 2.0]]),
    ],
)
def test_message_names_the_invalid_entry(name: str, value: Any) -> None:
    training = Training("Adam", variables_of())
    training.step(gradients_of(0))
    state = {**training.optimizer.state_dict(), name: value}
    with pytest.raises(ValueError, match="state_dict") as raised:
        training.optimizer.load_state_dict(state, training.variables)
    assert repr(name) in str(raised.value)


def test_flags_of_slots_are_refused_for_optimizers_without_slots() -> None:
    training = Training("GradientDescent", variables_of())
    training.step(gradients_of(0))
    state = training.optimizer.state_dict()
    state["has_slots"][1] = 1
    with pytest.raises(ValueError, match="has_slots"):
        training.optimizer.load_state_dict(state, training.variables)


@EVERY_OPTIMIZER
def test_state_of_another_optimizer_is_refused(variant: str) -> None:
    name = VARIANTS[variant][0]
    for other, (other_name, _) in VARIANTS.items():
        if other_name == name and "RMSProp" not in name:
            continue
        if other == variant:
            continue
        source = Training(other, variables_of())
        source.step(gradients_of(0))
        training = Training(variant, variables_of())
        training.step(gradients_of(1))
        before = training.state()
        with pytest.raises(ValueError, match="state"):
            training.optimizer.load_state_dict(source.optimizer.state_dict(), training.variables)
        assert training.state() == before


OTHER_VARIABLES: dict[str, tuple[Callable[[list[Any]], Any], type[Exception]]] = {
    "one less": (lambda variables: variables[:4], ValueError),
    "one more": (lambda variables: [*variables, np.zeros(3, np.float32)], ValueError),
    "none": (lambda variables: [], ValueError),
    "another order": (lambda variables: variables[::-1], ValueError),
    "another shape": (lambda variables: [np.zeros(41, np.float32), *variables[1:]], ValueError),
    "another dtype": (lambda variables: [variables[0].astype(np.float64), *variables[1:]], ValueError),
    "a dtype that is not accepted": (lambda v: [v[0].astype(np.float16), *v[1:]], (TypeError, ValueError)),  # type: ignore[dict-item]
    "the same twice": (lambda variables: [variables[0], *variables[:4]], ValueError),
    "a list of numbers": (lambda variables: [[0.0] * 40, *variables[1:]], TypeError),
    "read-only": (lambda variables: [read_only(variables[0]), *variables[1:]], ValueError),
}


# The state of an optimizer without slots does not contain the variables' dtypes.
@pytest.mark.parametrize(
    ("variant", "case"),
    [
        (variant, case)
        for variant, (name, _) in VARIANTS.items()
        for case in OTHER_VARIABLES
        if case != "another dtype" or RULES[name].slots
    ],
)
def test_variables_that_do_not_fit_are_refused_and_nothing_changes(variant: str, case: str) -> None:
    change, exception = OTHER_VARIABLES[case]
    source = Training(variant, variables_of())
    source.step(gradients_of(0))
    training = Training(variant, variables_of())
    training.step(gradients_of(1))
    before = training.state()
    with pytest.raises(exception):
        training.optimizer.load_state_dict(source.optimizer.state_dict(), change(training.variables))
    assert training.state() == before


def test_overlapping_variables_are_refused() -> None:
    source = Training("Adam", [np.zeros(4, np.float32), np.zeros(4, np.float32)])
    source.step([np.ones(4, np.float32), np.ones(4, np.float32)])
    memory = np.zeros(6, np.float32)
    optimizer = build("Adam")
    with pytest.raises(ValueError, match=r"var_list|overlap|memory"):
        optimizer.load_state_dict(source.optimizer.state_dict(), [memory[:4], memory[2:]])
    assert optimizer.get_slot_names() == []


@pytest.mark.parametrize("state", [None, 3, "state.npz", [], np.zeros(3)], ids=lambda s: type(s).__name__)
def test_state_that_is_no_mapping_is_refused(state: Any) -> None:
    training = Training("Adam", variables_of())
    before = training.state()
    with pytest.raises(TypeError, match="state"):
        training.optimizer.load_state_dict(state, training.variables)
    assert training.state() == before


def test_missing_var_list_is_refused_by_a_new_optimizer() -> None:
    source = Training("Adam", variables_of())
    source.step(gradients_of(0))
    with pytest.raises(ValueError, match="var_list"):
        build("Adam").load_state_dict(source.optimizer.state_dict())
