"""States of several optimizers, and weights, in one file; and the type of a state for type checkers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastclip
from support.training_cases import (
    EVERY_OPTIMIZER,
    Training,
    assert_same_training,
    build,
    some_gradients,
    some_variables,
)

Arrays = dict[str, Any]


def through_npz(arrays: Arrays, path: Path) -> Any:
    np.savez(path / "file.npz", **arrays)
    return np.load(path / "file.npz", allow_pickle=False)


def through_safetensors(arrays: Arrays, path: Path) -> Any:
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file(arrays, path / "file.safetensors")
    return safetensors.load_file(path / "file.safetensors")


EVERY_FILE = pytest.mark.parametrize("through", [through_npz, through_safetensors])


def restarted(training: Training, variant: str, arrays: Any, names: list[str], prefix: str) -> Training:
    """Returns a new training with the weights and the state that a file contains."""
    other = Training(variant, [np.array(arrays[name]) for name in names])
    other.global_step[...] = training.global_step
    other.optimizer.load_state_dict(arrays, other.variables, prefix=prefix)
    return other


@EVERY_OPTIMIZER
@EVERY_FILE
def test_states_of_two_optimizers_and_weights_fit_in_one_file(
    variant: str, through: Callable[[Arrays, Path], Any], tmp_path: Path
) -> None:
    first, second = Training(variant, some_variables()), Training("Adam", some_variables())
    for seed in (50, 60):
        first.step(some_gradients(seed))
        second.step(some_gradients(seed + 1))
    arrays = through(
        {
            **{f"weights.{i}": variable for i, variable in enumerate(first.variables)},
            **{f"critic.{i}": variable for i, variable in enumerate(second.variables)},
            **first.optimizer.state_dict("generator."),
            **second.optimizer.state_dict(prefix="optimizer of critic/"),
        },
        tmp_path,
    )
    resumed = [
        restarted(first, variant, arrays, [f"weights.{i}" for i in range(5)], "generator."),
        restarted(second, "Adam", arrays, [f"critic.{i}" for i in range(5)], "optimizer of critic/"),
    ]
    for training, other in zip((first, second), resumed, strict=True):
        assert_same_training(other, training)
        for each in (training, other):
            each.step(some_gradients(70))
        assert_same_training(other, training)


@EVERY_OPTIMIZER
def test_prefix_is_the_beginning_of_every_key(variant: str) -> None:
    training = Training(variant, some_variables())
    for _ in range(2):
        plain, prefixed = (training.optimizer.state_dict(prefix) for prefix in ("", "a.b/"))
        assert list(prefixed) == [f"a.b/{key}" for key in plain]
        for key, array in plain.items():
            assert prefixed[f"a.b/{key}"].tobytes() == array.tobytes()
        training.step(some_gradients())


def test_only_entries_with_the_prefix_are_read() -> None:
    """Reading an entry of an NpzFile reads it from the file."""

    class Recording(Mapping[str, Any]):
        def __init__(self, arrays: Arrays) -> None:
            self.arrays, self.read = arrays, set[str]()

        def __getitem__(self, key: str) -> Any:
            self.read.add(key)
            return self.arrays[key]

        def __iter__(self) -> Iterator[str]:
            return iter(self.arrays)

        def __len__(self) -> int:
            return len(self.arrays)

    training = Training("Adam", some_variables())
    training.step(some_gradients())
    state = training.optimizer.state_dict("adam.")
    recording = Recording({"w": object(), "ada": 1, "Adam.m.0": 2, **state, "other.m.0": np.zeros(4)})
    training.optimizer.load_state_dict(recording, prefix="adam.")
    assert recording.read == set(state)


CHANGES: dict[str, tuple[Callable[[Arrays], Any], str]] = {
    "slot of another dtype": (
        lambda state: state.update({"adam.m.0": np.zeros(4)}),
        r"state_dict\['adam\.m\.0'\] has dtype float64",
    ),
    "slot that is missing": (lambda state: state.pop("adam.v.4"), r"state_dict has no 'adam\.v\.4'"),
    "shape": (
        lambda state: state.update({"adam.shape.0": np.array([9])}),
        r"state_dict\['adam\.shape\.0'\] is \(9,\)",
    ),
    "counter": (
        lambda state: state.update({"adam.beta1_power": np.array(np.inf)}),
        r"state_dict\['adam\.beta1_power'\]",
    ),
    "flags": (
        lambda state: state.update({"adam.has_slots": np.full(5, 2, np.uint8)}),
        r"state_dict\['adam\.has_slots'\]\[0\] is 2",
    ),
    "skipped steps": (
        lambda state: state.update({"adam.skipped_steps": np.array(-1)}),
        r"state_dict\['adam\.skipped_steps'\] is -1",
    ),
    "entry that is not of the state": (
        lambda state: state.update({"adam.epoch": np.array(1)}),
        r"state_dict has \['adam\.beta1_power', 'adam\.beta2_power', 'adam\.epoch'\] besides the slots; "
        r"it takes \['adam\.beta1_power', 'adam\.beta2_power'\]$",
    ),
    "no entry with the prefix": (
        lambda state: [state.pop(key) for key in list(state)],
        r"state_dict has no 'adam\.fastclip\.version': it is not complete, or no optimizer's$",
    ),
    "another prefix": (
        lambda state: [state.update({f"b{key}": state.pop(key)}) for key in list(state)],
        r"state_dict has no 'adam\.fastclip\.version'.*; it has states with prefix='badam\.'$",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_invalid_entry_is_named_with_its_prefix_and_changes_nothing(case: str) -> None:
    change, message = CHANGES[case]
    source, training = Training("Adam", some_variables()), Training("Adam", some_variables())
    source.step(some_gradients())
    state = source.optimizer.state_dict("adam.")
    change(state)
    before = training.state()
    with pytest.raises(ValueError, match=message):
        training.optimizer.load_state_dict(state, training.variables, prefix="adam.")
    assert training.state() == before


def test_without_a_prefix_entries_of_something_else_are_refused() -> None:
    training = Training("Adam", some_variables())
    training.step(some_gradients())
    state = training.optimizer.state_dict()
    with pytest.raises(ValueError, match=r"'weights'.* besides the slots.*prefix"):
        training.optimizer.load_state_dict({**state, "weights": np.zeros(3)})
    prefixed = training.optimizer.state_dict("adam.")
    with pytest.raises(ValueError, match=r"has no 'fastclip\.version'.*prefix='adam\.'"):
        training.optimizer.load_state_dict({**prefixed, "weights": np.zeros(3)})


@pytest.mark.parametrize("prefix", [None, 1, b"adam.", ["adam."]])
def test_prefix_that_is_no_string_is_refused(prefix: Any) -> None:
    optimizer = build("Adam")
    with pytest.raises(TypeError, match=r"prefix is .*; it takes a string"):
        optimizer.state_dict(prefix)
    with pytest.raises(TypeError, match=r"prefix is .*; it takes a string"):
        optimizer.load_state_dict(optimizer.state_dict(), prefix=prefix)


# --- var_list ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "container",
    [
        iter,
        tuple,
        lambda v: dict(enumerate(v)),
        lambda v: dict(enumerate(v)).values(),
        lambda v: [v[:2], v[2:]],
    ],
    ids=["iterator", "tuple", "dict", "values", "nested"],
)
def test_var_list_of_load_state_dict_may_be_any_container_with_an_order(container: Any) -> None:
    source = Training("Adam", some_variables())
    source.step(some_gradients())
    other = Training("Adam", [variable.copy() for variable in source.variables])
    other.global_step[...] = source.global_step
    other.optimizer.load_state_dict(source.optimizer.state_dict(), container(other.variables))
    for training in (source, other):
        training.step(some_gradients(60))
    assert_same_training(source, other)


@pytest.mark.parametrize("var_list", [np.zeros(4), fastclip.Variable([1.0]), 3, "w", bytearray(8)], ids=repr)
def test_var_list_of_load_state_dict_that_is_no_container_is_refused(var_list: Any) -> None:
    optimizer = build("Adam")
    with pytest.raises(TypeError, match=r"var_list is .*; it takes a list of variables"):
        optimizer.load_state_dict(optimizer.state_dict(), var_list)


# --- type checkers -------------------------------------------------------------------------------

PROGRAM = """
import numpy as np
import numpy.typing as npt
from fastclip.train import AdamOptimizer

optimizer = AdamOptimizer(1e-3, skip_above=10.0)
np.savez("state.npz", **optimizer.state_dict())
np.savez_compressed("state.npz", w=np.zeros(3), **optimizer.state_dict(prefix="adam."))
powers: npt.NDArray[np.float64] = optimizer.state_dict()["beta1_power"]
optimizer.load_state_dict(np.load("state.npz"), prefix="adam.")
optimizer.learning_rate = 0.1
scale: float | None = optimizer.last_scale
"""

#: Lines that a type checker has to refuse.
MISTAKES = ["optimizer.lerning_rate = 0.1", "optimizer.last_scale = 1.0", "optimizer.state_dict(prefix=1)"]


def test_mypy_accepts_a_program_that_saves_states_and_finds_its_mistakes(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    program = tmp_path / "program.py"
    program.write_text("\n".join([PROGRAM, *MISTAKES]), encoding="utf-8")
    arguments = ["--strict", "--no-incremental", "--config-file=", "--no-error-summary", str(program)]
    source = str(Path(fastclip.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": source},
    )
    first = len(PROGRAM.splitlines()) + 2
    found = [int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line]
    assert found == list(range(first, first + len(MISTAKES))), done.stdout + done.stderr
