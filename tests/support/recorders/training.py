"""Records the training trajectories of TensorFlow's v1 optimizers as test data.

To record, install ``tensorflow-cpu`` and run ``python -m support.recorders.training`` in ``tests/``. The
recorder takes the steps below with every optimizer of ``tf.compat.v1.train``, eagerly on the CPU with
resource variables, and writes ``support/data/tensorflow_training.npz``. ``train/test_tensorflow_training.py``
compares fastclip with that file and needs no TensorFlow: it imports the cases and the reader of the file from
this module, which imports TensorFlow only to record.

A trajectory has five steps, and the variables and all slots are recorded after each. Its kind is one of:

``dense``
    A matrix, a vector and a number, with dense gradients.
``sparse``
    A matrix and a vector with slices, whose rows repeat and differ from step to step (in one step the slices
    are empty), and a vector with dense gradients.
``missing``
    Dense and sparse gradients, where some variables have no gradient in some steps, one of them in the first.

Each trajectory is recorded with the gradients unchanged, or clipped by ``tf.clip_by_global_norm``, which
changes them in some steps and not in others.

The file also holds the signatures of the constructors, and TensorFlow's error messages for arguments that it
refuses.

TensorFlow holds a Python float as float32, so the hyper-parameters of float64 cases are passed to it as
``np.float64``. In float32 it computes 1 - beta2 from a rounded beta2: 0.999 costs a relative error of 1.3e-5,
and a value nearer to 1 would cost more than the tolerance of the tests. The other values here cost nothing.
"""

from __future__ import annotations

import argparse
import inspect
import json
import warnings
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from support.packed_arrays import Pack, Slices, decode
from support.recorders.clipping import import_tensorflow, to_tensorflow

DATA_FILE = Path(__file__).parents[1] / "data" / "tensorflow_training.npz"
SEED = 20240917
STEPS = 5
CLIP_NORM = 1.25

#: Standard deviation of the gradients in each step: the global norm is above `CLIP_NORM` in some steps only.
SIZES = (1.0, 0.1, 2.0, 0.3, 0.05)

OPTIMIZERS = (
    "GradientDescent",
    "Momentum",
    "Adam",
    "Adagrad",
    "AdagradDA",
    "RMSProp",
    "Adadelta",
    "Ftrl",
    "ProximalGradientDescent",
    "ProximalAdagrad",
)

_L1 = "l1_regularization_strength"
_L2 = "l2_regularization_strength"
_SHRINKAGE = "l2_shrinkage_regularization_strength"

#: Constructor arguments, by optimizer and label. AdagradDA's `global_step` is added to them.
ARGUMENTS: dict[str, dict[str, dict[str, Any]]] = {
    "GradientDescent": {
        "usual": {"learning_rate": 0.1},
        "small": {"learning_rate": 0.003},
    },
    "Momentum": {
        "usual": {"learning_rate": 0.1, "momentum": 0.9},
        "nesterov": {"learning_rate": 0.05, "momentum": 0.9, "use_nesterov": True},
        "low": {"learning_rate": 0.3, "momentum": 0.25, "use_nesterov": True},
    },
    "Adam": {
        "defaults": {},
        "fast": {"learning_rate": 0.02, "beta1": 0.875, "beta2": 0.96875, "epsilon": 1e-3},
        "without-first-moment": {"learning_rate": 0.1, "beta1": 0.0, "beta2": 0.5, "epsilon": 1.0},
    },
    "Adagrad": {
        "usual": {"learning_rate": 0.1},
        "initial": {"learning_rate": 0.01, "initial_accumulator_value": 0.75},
    },
    "AdagradDA": {
        "usual": {"learning_rate": 0.1},
        "l1": {"learning_rate": 0.5, "initial_gradient_squared_accumulator_value": 0.01, _L1: 0.05},
        "l2": {"learning_rate": 0.2, _L2: 0.1},
        "l1-and-l2": {"learning_rate": 0.2, _L1: 0.02, _L2: 0.3},
    },
    "RMSProp": {
        "usual": {"learning_rate": 0.01},
        "momentum": {"learning_rate": 0.05, "decay": 0.875, "momentum": 0.9, "epsilon": 1e-6},
        "centered": {"learning_rate": 0.01, "centered": True},
        "centered-momentum": {
            "learning_rate": 0.02,
            "decay": 0.75,
            "momentum": 0.5,
            "epsilon": 1e-3,
            "centered": True,
        },
    },
    "Adadelta": {
        "defaults": {},
        "paper": {"learning_rate": 1.0, "rho": 0.875, "epsilon": 1e-6},
    },
    "Ftrl": {
        "usual": {"learning_rate": 0.1},
        "power": {"learning_rate": 0.1, "learning_rate_power": -0.3},
        "power-zero": {"learning_rate": 0.2, "learning_rate_power": 0.0},
        "power-one": {"learning_rate": 0.2, "learning_rate_power": -1.0, "initial_accumulator_value": 0.5},
        "initial-zero": {"learning_rate": 0.3, "initial_accumulator_value": 0.0},
        "l1": {"learning_rate": 0.2, _L1: 0.3},
        "l2": {"learning_rate": 0.2, _L2: 0.1},
        "shrinkage": {"learning_rate": 0.2, _SHRINKAGE: 0.05},
        "beta": {"learning_rate": 0.2, "beta": 0.5},
        "all": {
            "learning_rate": 0.25,
            "learning_rate_power": -0.7,
            "initial_accumulator_value": 0.2,
            _L1: 0.1,
            _L2: 0.05,
            _SHRINKAGE: 0.02,
            "beta": 1.0,
        },
    },
    "ProximalGradientDescent": {
        "usual": {"learning_rate": 0.1},
        "l1": {"learning_rate": 0.1, _L1: 0.5},
        "l2": {"learning_rate": 0.1, _L2: 0.2},
        "l1-and-l2": {"learning_rate": 0.2, _L1: 0.1, _L2: 0.1},
    },
    "ProximalAdagrad": {
        "usual": {"learning_rate": 0.1},
        "l1": {"learning_rate": 0.1, _L1: 0.2},
        "l2": {"learning_rate": 0.1, "initial_accumulator_value": 0.5, _L2: 0.2},
        "l1-and-l2": {"learning_rate": 0.2, _L1: 0.1, _L2: 0.1},
    },
}

#: Optimizers and constructor arguments for which TensorFlow raises.
REFUSALS: list[tuple[str, dict[str, Any]]] = [
    *((name, {"name": ""}) for name in OPTIMIZERS),
    ("Adagrad", {"initial_accumulator_value": 0.0}),
    ("Adagrad", {"initial_accumulator_value": -0.5}),
    ("AdagradDA", {"initial_gradient_squared_accumulator_value": 0.0}),
    ("ProximalAdagrad", {"initial_accumulator_value": 0.0}),
    ("Ftrl", {"initial_accumulator_value": -0.5}),
    ("Ftrl", {"learning_rate_power": 0.5}),
    ("Ftrl", {_L1: -0.5}),
    ("Ftrl", {_L2: -0.5}),
    ("Ftrl", {_SHRINKAGE: -0.5}),
]

KINDS = ("dense", "sparse", "missing")

#: Kinds and clip norms recorded in float64, each kind once: the precision affects rounding only.
FLOAT64_KINDS = (("dense", None), ("sparse", None), ("missing", CLIP_NORM))


class Step(NamedTuple):
    """The variables after a step and, by slot name, the slots, with None for those not yet created."""

    variables: list[NDArray[Any]]
    slots: dict[str, list[NDArray[Any] | None]]


@dataclass(frozen=True)
class Case:
    """A trajectory and, once recorded, its steps.

    Parameters
    ----------
    id : str
        ``optimizer-label-dtype-kind``, with ``-clipped`` appended where the gradients are clipped.
    optimizer : str
        The name of the class without ``Optimizer``.
    arguments : dict
        Constructor arguments.
    clip_norm : float or None
        The bound of the gradients' global norm; None leaves them unchanged.
    variables : list of ndarray
        The initial values.
    gradients : list of list
        For each step a gradient of each variable: an array, `Slices` or None.
    result : list of Step or None
        The recorded steps.
    """

    id: str
    optimizer: str
    arguments: dict[str, Any]
    clip_norm: float | None
    variables: list[NDArray[Any]]
    gradients: list[list[Any]]
    result: list[Step] | None = None


@dataclass(frozen=True)
class Recording:
    """The contents of the file.

    Parameters
    ----------
    versions : dict
        The versions of TensorFlow and NumPy that recorded it.
    cases : list of Case
        The trajectories, with their steps.
    signatures : dict
        By optimizer, the parameters of its constructor: name and, if it has one, default.
    refusals : list
        Optimizer, arguments, the name of the exception and its message.
    """

    versions: dict[str, str]
    cases: list[Case]
    signatures: dict[str, list[list[Any]]]
    refusals: list[tuple[str, dict[str, Any], str, str]]


# --- the cases ---------------------------------------------------------------


def build_cases(seed: int = SEED) -> list[Case]:
    """Returns all cases, without results."""
    cases = []
    for optimizer, choices in ARGUMENTS.items():
        for label, arguments in choices.items():
            for kind in KINDS:
                for clip_norm in (None, CLIP_NORM):
                    cases.append(_case(seed, optimizer, label, arguments, "float32", kind, clip_norm))
            for kind, bound in FLOAT64_KINDS:
                cases.append(_case(seed, optimizer, label, arguments, "float64", kind, bound))
    return cases


def _case(
    seed: int,
    optimizer: str,
    label: str,
    arguments: dict[str, Any],
    dtype: str,
    kind: str,
    clip_norm: float | None,
) -> Case:
    # Every optimizer has the same numbers, so that the file holds them once.
    rng = np.random.default_rng([seed, zlib.crc32(kind.encode())])
    variables, gradients = _BUILDERS[kind](rng)
    clipped = "" if clip_norm is None else "-clipped"
    return Case(
        f"{optimizer}-{label}-{dtype}-{kind}{clipped}",
        optimizer,
        arguments,
        clip_norm,
        [value.astype(dtype) for value in variables],
        [[_converted(gradient, dtype) for gradient in step] for step in gradients],
    )


def _converted(gradient: Any, dtype: str) -> Any:
    if isinstance(gradient, Slices):
        return gradient._replace(values=gradient.values.astype(dtype))
    return None if gradient is None else gradient.astype(dtype)


def _normal(rng: np.random.Generator, *shape: int, size: float = 1.0) -> NDArray[Any]:
    return np.asarray(size * rng.standard_normal(shape))


def _slices(rng: np.random.Generator, rows: list[int], shape: tuple[int, ...], size: float) -> Slices:
    values = _normal(rng, len(rows), *shape[1:], size=size)
    return Slices(values, np.array(rows, np.int64), np.array(shape, np.int64))


def _dense(rng: np.random.Generator) -> tuple[list[Any], list[list[Any]]]:
    shapes = [(3, 4), (5,), ()]
    return (
        [_normal(rng, *shape) for shape in shapes],
        [[_normal(rng, *shape, size=size) for shape in shapes] for size in SIZES],
    )


def _sparse(rng: np.random.Generator) -> tuple[list[Any], list[list[Any]]]:
    variables = [_normal(rng, 5, 3), _normal(rng, 4), _normal(rng, 2)]
    matrix_rows = [[4, 0, 4, 4], [2], [], [0, 2, 1, 1], [4, 2]]
    vector_rows = [[1, 1], [3, 0, 3], [0, 1, 2, 3], [2, 2, 2], []]
    gradients: list[list[Any]] = [
        [_slices(rng, first, (5, 3), size), _slices(rng, second, (4,), size), _normal(rng, 2, size=size)]
        for first, second, size in zip(matrix_rows, vector_rows, SIZES, strict=True)
    ]
    # `dense_shape` may be None, and indices may be 32 bits wide.
    last = gradients[-1][0]
    gradients[-1][0] = Slices(last.values, last.indices.astype(np.int32))
    return variables, gradients


def _missing(rng: np.random.Generator) -> tuple[list[Any], list[list[Any]]]:
    variables = [_normal(rng, 2, 3), _normal(rng, 4, 2), _normal(rng, 3)]
    rows = [[3, 1, 3], [0], [1, 0, 1], [2, 2], [3, 0]]
    gradients: list[list[Any]] = [
        [_normal(rng, 2, 3, size=size), _slices(rng, step_rows, (4, 2), size), _normal(rng, 3, size=size)]
        for step_rows, size in zip(rows, SIZES, strict=True)
    ]
    for step, position in ((0, 2), (1, 1), (2, 0), (3, 0), (3, 2)):
        gradients[step][position] = None
    return variables, gradients


#: By kind, the function that generates initial values and gradients.
_BUILDERS = {"dense": _dense, "sparse": _sparse, "missing": _missing}


# --- TensorFlow --------------------------------------------------------------


def run_tensorflow(tf: Any, case: Case) -> Case:
    """Returns the case with TensorFlow's steps as its result."""
    dtype = case.variables[0].dtype
    arguments = {
        name: np.float64(value) if isinstance(value, float) and dtype == np.float64 else value
        for name, value in case.arguments.items()
    }
    if dtype == np.float64:
        arguments = {**_float64_defaults(tf, case.optimizer), **arguments}
    global_step = tf.Variable(0, dtype=tf.int64)
    if case.optimizer == "AdagradDA":
        arguments["global_step"] = global_step
    optimizer = getattr(tf.compat.v1.train, f"{case.optimizer}Optimizer")(**arguments)
    variables = [tf.Variable(value) for value in case.variables]
    steps = []
    for step in case.gradients:
        gradients = to_tensorflow(tf, step)
        if case.clip_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, case.clip_norm)
        optimizer.apply_gradients(zip(gradients, variables, strict=True), global_step=global_step)
        slots: dict[str, list[NDArray[Any] | None]] = {
            name: [_value(optimizer.get_slot(variable, name)) for variable in variables]
            for name in optimizer.get_slot_names()
        }
        steps.append(Step([np.asarray(variable.numpy()) for variable in variables], slots))
    return replace(case, result=steps)


def _value(slot: Any) -> NDArray[Any] | None:
    return None if slot is None else np.asarray(slot.numpy())


def _float64_defaults(tf: Any, optimizer: str) -> dict[str, Any]:
    signature = inspect.signature(getattr(tf.compat.v1.train, f"{optimizer}Optimizer").__init__)
    return {
        name: np.float64(parameter.default)
        for name, parameter in signature.parameters.items()
        if isinstance(parameter.default, float)
    }


def signature_of(optimizer: Any) -> list[list[Any]]:
    """Returns a constructor's positional parameters: each name, followed by the default if there is one."""
    parameters = list(inspect.signature(optimizer.__init__).parameters.values())[1:]
    return [
        [parameter.name, *([] if parameter.default is parameter.empty else [parameter.default])]
        for parameter in parameters
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]


def required_arguments(optimizer: str) -> dict[str, Any]:
    """Returns values for the parameters of a constructor that have no default."""
    required: dict[str, Any] = {
        "Adam": {},
        "Adadelta": {},
        "Momentum": {"learning_rate": 0.1, "momentum": 0.9},
        "AdagradDA": {"learning_rate": 0.1, "global_step": np.array(0)},
        "AdamW": {"weight_decay": 0.01},
    }.get(optimizer, {"learning_rate": 0.1})
    return required


def refusal_of(tf: Any, optimizer: str, arguments: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the name of TensorFlow's exception and its message."""
    try:
        kind = getattr(tf.compat.v1.train, f"{optimizer}Optimizer")
        kind(**{**required_arguments(optimizer), **arguments})
    except (TypeError, ValueError) as error:
        return type(error).__name__, str(error)
    raise AssertionError(f"TensorFlow takes {arguments} for {optimizer}")


def record(tf: Any) -> Recording:
    """Returns all trajectories, signatures and refusals of TensorFlow."""
    return Recording(
        {"tensorflow": tf.__version__, "numpy": np.__version__},
        [run_tensorflow(tf, case) for case in build_cases()],
        {name: signature_of(getattr(tf.compat.v1.train, f"{name}Optimizer")) for name in OPTIMIZERS},
        [(name, arguments, *refusal_of(tf, name, arguments)) for name, arguments in REFUSALS],
    )


# --- the file ----------------------------------------------------------------


def _encoded(pack: Pack, case: Case) -> dict[str, Any]:
    steps: Iterable[Step] = case.result or []
    return {
        "id": case.id,
        "optimizer": case.optimizer,
        "arguments": case.arguments,
        "clip_norm": case.clip_norm,
        "variables": pack.encode(case.variables),
        "gradients": pack.encode(case.gradients),
        "result": [
            [
                pack.encode(step.variables),
                {name: pack.encode(arrays) for name, arrays in step.slots.items()},
            ]
            for step in steps
        ],
    }


def save(path: Path, recording: Recording) -> None:
    """Writes a recording."""
    pack = Pack(share=True)
    text = json.dumps(
        {
            "versions": recording.versions,
            "cases": [_encoded(pack, case) for case in recording.cases],
            "signatures": recording.signatures,
            "refusals": recording.refusals,
        },
        separators=(",", ":"),
    )
    contents = {"recording": np.frombuffer(text.encode(), np.uint8), **pack.arrays()}
    np.savez_compressed(path, **contents)  # type: ignore[arg-type]


def load(path: Path = DATA_FILE) -> Recording:
    """Reads a recording."""
    with np.load(path, allow_pickle=False) as file:
        flat = {name: file[name] for name in file.files}
    contents = json.loads(flat["recording"].tobytes())
    cases = []
    for entry in contents["cases"]:
        steps = [
            Step(
                decode(variables, flat),
                {name: decode(arrays, flat) for name, arrays in slots.items()},
            )
            for variables, slots in entry.pop("result")
        ]
        entry["variables"] = decode(entry["variables"], flat)
        entry["gradients"] = decode(entry["gradients"], flat)
        cases.append(Case(**entry, result=steps))
    refusals = [(name, arguments, kind, message) for name, arguments, kind, message in contents["refusals"]]
    return Recording(contents["versions"], cases, contents["signatures"], refusals)


def main() -> None:
    """Records all trajectories, signatures and refusals."""
    parser = argparse.ArgumentParser(description="Record TensorFlow's optimizers as test data.")
    parser.add_argument("--output", type=Path, default=DATA_FILE, help="the file to write")
    output: Path = parser.parse_args().output

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tf = import_tensorflow()
        recording = record(tf)
    output.parent.mkdir(parents=True, exist_ok=True)
    save(output, recording)
    print(f"{len(recording.cases)} cases of TensorFlow {tf.__version__} in {output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
