"""fastclip's optimizers agree with TensorFlow's in variables and slots over trajectories of several steps.

TensorFlow's trajectories are read from ``support/data/tensorflow_training.npz``, which
``support/recorders/training.py`` wrote; the last tests run TensorFlow and torch where they are installed.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

import fastclip

pytest.importorskip("ml_dtypes")

from support.packed_arrays import Slices
from support.recorders import training as recorder
from support.recorders.clipping import import_tensorflow
from support.recorders.training import KINDS, SEED, Case, required_arguments, signature_of
from support.reference_optimizers import ReferenceOptimizer, assert_close
from support.training_cases import optimizer_class

RECORDING = recorder.load()
CLIPPED = [case for case in RECORDING.cases if case.clip_norm is not None]

# In float32 TensorFlow rounds hyper-parameters too (beta2 = 0.999 costs 1.3e-5); in float64 the recorder
# passed them in full precision.
RELATIVE_TOLERANCE = {np.dtype(np.float32): 2e-5, np.dtype(np.float64): 1e-10}

# An element that is the difference of larger numbers keeps their rounding errors: TensorFlow's exceed the
# tolerance above by up to 0.7 epsilon of the larger numbers, and fastclip's may do so in the other direction.
TERM_EPSILONS = 2


def case_id(case: Case) -> str:
    return case.id


def to_fastclip(gradient: Any) -> Any:
    return fastclip.IndexedSlices(*gradient) if isinstance(gradient, Slices) else gradient


def reference_of(case: Case) -> ReferenceOptimizer:
    return ReferenceOptimizer(case.optimizer, case.variables, **case.arguments)


def build(case: Case, global_step: Any, **more: Any) -> Any:
    if case.optimizer == "AdagradDA":
        more["global_step"] = global_step
    return optimizer_class(case.optimizer)(**case.arguments, **more)


def assert_step_agrees(
    actual: Any, expected: Any, reference: ReferenceOptimizer, position: int, name: str, dtype: Any
) -> None:
    assert isinstance(actual, np.ndarray)
    assert actual.dtype == expected.dtype == dtype
    assert_close(
        actual,
        expected.astype(np.float64),
        reference.terms[position][name],
        relative=RELATIVE_TOLERANCE[dtype],
        rounding=TERM_EPSILONS * float(np.finfo(dtype).eps),
    )


def assert_case_agrees(case: Case, *, clip_by_hand: bool = False) -> None:
    """Checks every variable and slot after every step."""
    assert case.result is not None
    dtype = case.variables[0].dtype
    global_step = np.zeros((), np.int64)
    bound = {} if case.clip_norm is None or clip_by_hand else {"global_clipnorm": case.clip_norm}
    optimizer = build(case, global_step, **bound)
    assert optimizer.get_slot_names() == []
    variables = [value.copy() for value in case.variables]
    reference = reference_of(case)
    for number, (step, expected) in enumerate(zip(case.gradients, case.result, strict=True), 1):
        gradients = [to_fastclip(gradient) for gradient in step]
        if clip_by_hand and case.clip_norm is not None:
            gradients, _ = fastclip.clip_by_global_norm(gradients, case.clip_norm)
        optimizer.apply_gradients(zip(gradients, variables, strict=True), global_step=global_step)
        reference.apply(step, case.clip_norm)
        assert global_step == number
        assert optimizer.get_slot_names() == sorted(expected.slots)
        for position, variable in enumerate(variables):
            assert_step_agrees(variable, expected.variables[position], reference, position, "variable", dtype)
            for name, slots in expected.slots.items():
                slot = optimizer.get_slot(variable, name)
                if slots[position] is None:
                    assert slot is None
                else:
                    assert_step_agrees(slot, slots[position], reference, position, name, dtype)


# --- the recording -----------------------------------------------------------


def test_recorded_cases_are_those_of_the_recorder() -> None:
    def described(cases: Iterable[Case]) -> list[tuple[Any, ...]]:
        return [(case.id, case.optimizer, case.arguments, case.clip_norm) for case in cases]

    assert described(RECORDING.cases) == described(recorder.build_cases())
    assert {case.optimizer for case in RECORDING.cases} == set(recorder.OPTIMIZERS)
    assert RECORDING.versions["tensorflow"]


@pytest.mark.parametrize("case", RECORDING.cases, ids=case_id)
def test_reference_agrees_with_tensorflow(case: Case) -> None:
    """Other tests compare fastclip with this reference."""
    assert case.result is not None
    dtype = case.variables[0].dtype
    reference = reference_of(case)
    for step, expected in zip(case.gradients, case.result, strict=True):
        reference.apply(step, case.clip_norm)
        for position, value in enumerate(expected.variables):
            ours = reference.variables[position].astype(dtype)
            assert_step_agrees(ours, value, reference, position, "variable", dtype)
            for name, slots in expected.slots.items():
                slot = slots[position]
                if slot is None:
                    assert not reference.slots[position]
                else:
                    ours = np.asarray(reference.slots[position][name]).astype(dtype)
                    assert_step_agrees(ours, slot, reference, position, name, dtype)


def test_recorded_gradients_are_clipped_in_some_steps_and_not_in_others() -> None:
    for case in CLIPPED:
        norms = [fastclip.global_norm([to_fastclip(g) for g in step]) for step in case.gradients]
        above = [norm > case.clip_norm for norm in norms]
        assert any(above)
        assert not all(above)


# --- agreement ---------------------------------------------------------------


@pytest.mark.parametrize("case", RECORDING.cases, ids=case_id)
def test_agrees_with_tensorflow(case: Case) -> None:
    assert_case_agrees(case)


@pytest.mark.parametrize("case", CLIPPED, ids=case_id)
def test_agrees_with_tensorflow_with_gradients_clipped_before(case: Case) -> None:
    assert_case_agrees(case, clip_by_hand=True)


@pytest.mark.parametrize("name", recorder.OPTIMIZERS)
def test_constructor_accepts_tensorflow_arguments_in_their_order(name: str) -> None:
    # This argument is about name scopes in a graph, which fastclip does not have.
    recorded = [
        entry for entry in RECORDING.signatures[name] if entry[0] != "use_own_namescope_for_non_slot_vars"
    ]
    ours = [entry for entry in signature_of(optimizer_class(name)) if entry[0] != recorded[-1][0]]
    theirs = recorded[:-1]
    assert ours[: len(theirs)] == theirs
    parameters = inspect.signature(optimizer_class(name)).parameters
    assert parameters[recorded[-1][0]].default == recorded[-1][1]
    assert parameters[recorded[-1][0]].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD


def test_adamw_accepts_the_arguments_of_adam_and_the_weight_decay_by_keyword() -> None:
    parameter = inspect.signature(optimizer_class("AdamW")).parameters["weight_decay"]
    assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
    assert parameter.default == 0.01
    assert signature_of(optimizer_class("AdamW")) == [
        ["learning_rate", 0.001],
        ["beta1", 0.9],
        ["beta2", 0.999],
        ["epsilon", 1e-8],
        ["use_locking", False],
        ["name", "AdamW"],
    ]


@pytest.mark.parametrize(
    ("name", "arguments", "kind", "message"),
    RECORDING.refusals,
    ids=[f"{name}-{next(iter(arguments))}={arguments}" for name, arguments, _, _ in RECORDING.refusals],
)
def test_constructor_refuses_what_tensorflow_refuses(
    name: str, arguments: dict[str, Any], kind: str, message: str
) -> None:
    exception = {"TypeError": TypeError, "ValueError": ValueError}[kind]
    with pytest.raises(exception) as refused:
        optimizer_class(name)(**{**required_arguments(name), **arguments})
    # The message has the same words, but may format numbers differently.
    words = [re.escape(part.strip()) for part in re.split(r":? ?-?\d+\.\d+", message) if part.strip()]
    assert re.search(".*".join(words), str(refused.value)), str(refused.value)


# --- decoupled weight decay, which TensorFlow's v1 optimizers do not have ------


def adamw_case(kind: str, dtype: str) -> Case:
    """Returns the recorded case of Adam whose variables and gradients are used for AdamW."""
    return next(case for case in RECORDING.cases if case.id.startswith(f"Adam-fast-{dtype}-{kind}"))


ADAMW = {"weight_decay": 0.1, "learning_rate": 0.02, "beta1": 0.875, "beta2": 0.96875, "epsilon": 1e-3}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clip_norm", [None, 1.25])
def test_adamw_agrees_with_its_formula(kind: str, dtype: str, clip_norm: float | None) -> None:
    case = adamw_case(kind, dtype)
    optimizer = optimizer_class("AdamW")(**ADAMW, global_clipnorm=clip_norm)
    reference = ReferenceOptimizer("AdamW", case.variables, **ADAMW)
    variables = [value.copy() for value in case.variables]
    for step in case.gradients:
        optimizer.apply_gradients(zip(map(to_fastclip, step), variables, strict=True))
        reference.apply(step, clip_norm)
        for position, variable in enumerate(variables):
            expected = reference.variables[position].astype(dtype)
            assert_step_agrees(variable, expected, reference, position, "variable", np.dtype(dtype))
            for name, slot in reference.slots[position].items():
                ours, theirs = optimizer.get_slot(variable, name), np.asarray(slot).astype(dtype)
                assert_step_agrees(ours, theirs, reference, position, name, np.dtype(dtype))


@pytest.mark.interop("torch")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("epsilon", [0.0, 1e-3])
def test_adamw_agrees_with_torch(epsilon: float) -> None:
    torch = pytest.importorskip("torch")
    case = adamw_case("dense", "float64")
    arguments = {**ADAMW, "epsilon": epsilon}
    optimizer = optimizer_class("AdamW")(**arguments)
    variables = [value.copy() for value in case.variables]
    parameters = [torch.nn.Parameter(torch.tensor(value)) for value in case.variables]
    theirs = torch.optim.AdamW(
        parameters, lr=0.02, betas=(0.875, 0.96875), weight_decay=0.1, foreach=False, fused=False
    )
    for number, step in enumerate(case.gradients, 1):
        optimizer.apply_gradients(list(zip(step, variables, strict=True)))
        # torch adds epsilon after the bias correction of the second moment, TensorFlow before it.
        theirs.param_groups[0]["eps"] = epsilon / (1 - 0.96875**number) ** 0.5
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = torch.tensor(gradient)
        theirs.step()
        for variable, parameter in zip(variables, parameters, strict=True):
            np.testing.assert_allclose(variable, parameter.detach().numpy(), rtol=1e-10, atol=1e-15)


# --- TensorFlow itself, where it is installed ----------------------------------

#: Prefixes of the ids of cases with the last choice of arguments for each optimizer.
LIVE_ARGUMENTS = tuple(f"{name}-{list(choices)[-1]}-" for name, choices in recorder.ARGUMENTS.items())
LIVE = [
    case
    for case in recorder.build_cases(SEED + 1)
    if case.id.startswith(LIVE_ARGUMENTS) and ("missing" in case.id or case.id.endswith("sparse"))
]


@pytest.fixture(scope="module")
def tensorflow() -> Any:
    pytest.importorskip("tensorflow")
    return import_tensorflow()


@pytest.mark.interop("tensorflow")
# TensorFlow's import emits warnings.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", LIVE, ids=case_id)
def test_agrees_with_installed_tensorflow(tensorflow: Any, case: Case) -> None:
    """Compares cases with other random numbers than the recorded ones."""
    assert_case_agrees(recorder.run_tensorflow(tensorflow, case))
