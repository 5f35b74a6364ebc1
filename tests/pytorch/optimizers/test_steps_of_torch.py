"""What fastclip does not take goes to PyTorch's step, or is refused where that lacks an option."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from optimizer_pairs import (  # noqa: E402
    NAMES,
    TORCH_NAMES,
    WITH_STATES,
    assert_states_close,
    mine,
    set_gradients,
    theirs,
    values,
)

import fastclip.torch  # noqa: E402

pytestmark = pytest.mark.interop("torch")

#: What a step of PyTorch lacks.
OWN_OPTIONS: dict[str, dict[str, Any]] = {
    "max_norm": {"max_norm": 1.0},
    "on_nonfinite": {"on_nonfinite": "skip"},
    "skip_above": {"skip_above": 10.0},
    "state_dtype": {"state_dtype": torch.bfloat16},
}


def sparse(step: int, rows: int = 6) -> Any:
    """Returns a sparse gradient, with an index that is given twice."""
    generator = torch.Generator().manual_seed(step)
    indices = torch.tensor([[1, 4, 1]])
    numbers = torch.randn(3, 2, generator=generator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.sparse_coo_tensor(indices, numbers, (rows, 2), check_invariants=True)


def dense(step: int, dtype: Any = torch.float32, shape: tuple[int, ...] = (6, 2)) -> Any:
    return values([shape], seed=100 + step)[0].to(dtype)


def complex_numbers(step: int) -> Any:
    return torch.complex(dense(step), dense(step + 50))


class Case:
    """A parameter that goes to PyTorch, its gradients, and the options that it needs."""

    def __init__(
        self, value: Callable[[], Any], gradient: Callable[[int], Any], says: str, **options: Any
    ) -> None:
        self.value, self.gradient, self.says, self.options = value, gradient, says, options


CASES: dict[str, tuple[tuple[str, ...], Case]] = {
    "complex": (
        ("AdamW", "Adam", "SGD", "Adagrad"),
        Case(lambda: complex_numbers(7), complex_numbers, "torch.complex64"),
    ),
    "meta": (
        NAMES,
        Case(lambda: dense(7).to("meta"), lambda step: dense(step).to("meta"), "on meta"),
    ),
    "sparse gradients": (
        ("SGD", "Adagrad"),
        Case(lambda: dense(7), sparse, "layout torch.sparse_coo"),
    ),
    "differentiable": (
        ("AdamW", "Adam", "SGD", "Adagrad"),
        Case(lambda: dense(7), dense, "differentiable=True", differentiable=True),
    ),
}
PAIRS = [(name, case) for case, (names, _) in CASES.items() for name in names]


def parameter_of(case: Case) -> Any:
    return torch.nn.Parameter(case.value())


def run(optimizer: Any, params: list[Any], case: Case, steps: int = 4) -> None:
    for step in range(steps):
        params[0].grad = case.gradient(step)
        set_gradients(params[1:], step)
        with torch.no_grad():
            optimizer.step()


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_steps_are_those_of_torch(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[kind][1]
    options = {**case.options, **({} if kind == "sparse gradients" else WITH_STATES[name])}
    # Beside the parameter is one that fastclip would take.
    own, other = ([parameter_of(case), torch.nn.Parameter(dense(9))] for _ in range(2))
    for parameter in [*own, *other]:
        # PyTorch does not write leaves of a graph in a differentiable step.
        parameter.requires_grad_(kind != "differentiable")
    way = {} if name == "Lion" else {"foreach": False}
    optimizer, reference = mine(name, own, lr=0.01, **options), theirs(name, other, lr=0.01, **way, **options)
    run(optimizer, own, case)
    run(reference, other, case)
    for parameter, wanted in zip(own, other, strict=True):
        if not parameter.is_meta:
            torch.testing.assert_close(parameter, wanted, rtol=1e-6, atol=1e-6)
    if kind != "meta":
        assert_states_close(optimizer, reference)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("option", OWN_OPTIONS)
@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_options_that_torch_lacks_are_refused_and_the_reason_is_said(
    name: str, kind: str, option: str
) -> None:
    case = CASES[kind][1]
    params = [torch.nn.Parameter(dense(9)), parameter_of(case)]
    optimizer = mine(name, params, lr=0.01, **case.options, **OWN_OPTIONS[option])
    params[0].grad, params[1].grad = dense(1), case.gradient(1)
    before = params[0].detach().clone()
    with pytest.raises(RuntimeError, match=f"^{option} ") as caught:
        optimizer.step()
    assert case.says in str(caught.value)
    assert torch.equal(params[0], before)


@pytest.mark.parametrize("name", ["AdamW", "Adam"])
def test_capturable_steps_are_those_of_torch(name: str) -> None:
    # PyTorch takes capturable steps on the CPU only where nothing is compiled or on an accelerator.
    outcomes = []
    for library in (fastclip.torch, torch.optim):
        parameter = torch.nn.Parameter(dense(7))
        parameter.grad = dense(1)
        optimizer = getattr(library, name)([parameter], capturable=True, foreach=False)
        try:
            optimizer.step()
            outcomes.append((None, parameter.tolist()))
        except (AssertionError, RuntimeError) as error:
            outcomes.append((type(error), str(error)))
    assert outcomes[0] == outcomes[1]
    refusing = mine(name, [parameter], capturable=True, max_norm=1.0)
    with pytest.raises(RuntimeError, match="max_norm cannot be used with capturable=True"):
        refusing.step()


@pytest.mark.parametrize("name", TORCH_NAMES)
def test_a_differentiable_step_is_differentiated(name: str) -> None:
    gradients = []
    for library in (fastclip.torch, torch.optim):
        start = dense(7, torch.float64).requires_grad_()
        parameter = start.clone()
        parameter.grad = start * 2.0
        # The second moment of a first step is not differentiable at the gradient's first value.
        optimizer = getattr(library, name)([torch.zeros(1, dtype=torch.float64)], lr=0.1, differentiable=True)
        optimizer.param_groups[0]["params"] = [parameter]
        if name == "Adagrad":
            optimizer.state[parameter] = {"step": torch.zeros(()), "sum": torch.ones_like(parameter)}
        optimizer.step()
        parameter.square().sum().backward()
        gradients.append(start.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", NAMES)
def test_cpu_and_meta_parameters_in_one_optimizer(name: str) -> None:
    own = [
        torch.nn.Parameter(dense(1)),
        torch.nn.Parameter(dense(2).to("meta")),
        torch.nn.Parameter(dense(3)),
    ]
    other = [torch.nn.Parameter(dense(1)), torch.nn.Parameter(dense(3))]
    optimizer = mine(name, own, lr=0.01, **WITH_STATES[name])
    way = {} if name == "Lion" else {"foreach": False}
    reference = theirs(name, other, lr=0.01, **way, **WITH_STATES[name])
    for step in range(4):
        set_gradients(other, step)
        own[0].grad, own[2].grad = (parameter.grad.clone() for parameter in other)
        # The parameter on the other device has a gradient in some steps: fastclip takes the others.
        own[1].grad = torch.empty_like(own[1]) if step % 2 == 0 else None
        optimizer.step()
        reference.step()
    torch.testing.assert_close(own[0], other[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(own[2], other[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_bound_over_cpu_and_meta_parameters_is_refused_where_both_have_gradients(name: str) -> None:
    cpu, meta = torch.nn.Parameter(dense(1)), torch.nn.Parameter(dense(2).to("meta"))
    for group in ({}, {"max_norm": 1.0}):
        bound = {} if group else {"max_norm": 1.0}
        optimizer = mine(name, [{"params": [cpu]}, {"params": [meta], **group}], **bound, **WITH_STATES[name])
        cpu.grad, meta.grad = dense(1), dense(2).to("meta")
        with pytest.raises(
            RuntimeError, match=r"^max_norm takes .*param_groups\[1\]\['params'\]\[0\].* on meta"
        ):
            optimizer.step()
        meta.grad = None
        optimizer.step()
        assert optimizer.skipped_steps == 0


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_dampening_does_not_apply_to_first_steps_that_torch_takes() -> None:
    # The momentum that fastclip prepares for the dense parameter is not one of a step before.
    own, other = ([torch.nn.Parameter(dense(1)), torch.nn.Parameter(dense(2))] for _ in range(2))
    options = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}
    optimizer, reference = mine("SGD", own, **options), theirs("SGD", other, foreach=False, **options)
    for step in range(3):
        for params in (own, other):
            params[0].grad, params[1].grad = dense(step), sparse(step)
        optimizer.step()
        reference.step()
    for parameter, wanted in zip(own, other, strict=True):
        torch.testing.assert_close(parameter, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_adam_refuses_sparse_gradients_as_torch_does() -> None:
    for name in ("AdamW", "Adam"):
        messages = []
        for library in (fastclip.torch, torch.optim):
            parameter = torch.nn.Parameter(dense(1))
            parameter.grad = sparse(1)
            with pytest.raises(RuntimeError, match="sparse") as caught:
                getattr(library, name)([parameter], foreach=False).step()
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_dense_and_sparse_gradients_may_alternate(name: str) -> None:
    own, other = torch.nn.Parameter(dense(1)), torch.nn.Parameter(dense(1))
    optimizer, reference = mine(name, [own], lr=0.1), theirs(name, [other], lr=0.1, foreach=False)
    for step in range(6):
        for parameter in (own, other):
            parameter.grad = sparse(step) if step % 2 else dense(step)
        optimizer.step()
        reference.step()
    torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-6)
    assert_states_close(optimizer, reference)


def test_subclasses_of_tensors_are_left_to_torch() -> None:
    class Tagged(torch.Tensor):
        pass

    own, other = (torch.nn.Parameter(dense(1)) for _ in range(2))
    own.grad, other.grad = dense(2).as_subclass(Tagged), dense(2)
    mine("SGD", [own], lr=0.1, momentum=0.9).step()
    theirs("SGD", [other], lr=0.1, momentum=0.9).step()
    torch.testing.assert_close(own.detach().as_subclass(torch.Tensor), other.detach(), rtol=1e-6, atol=1e-6)
    with pytest.raises(RuntimeError, match=r"the gradient of .* is a Tagged"):
        mine("SGD", [own], lr=0.1, max_norm=1.0).step()


def test_low_precision_copies_are_refused_with_steps_of_torch() -> None:
    parameter, meta = torch.nn.Parameter(dense(1)), torch.nn.Parameter(dense(2).to("meta"))
    optimizer = mine("SGD", [parameter, meta])
    optimizer.set_low_precision_copy(parameter, torch.empty(6, 2, dtype=torch.bfloat16))
    parameter.grad, meta.grad = dense(1), dense(2).to("meta")
    with pytest.raises(RuntimeError, match=r"^set_low_precision_copy takes"):
        optimizer.step()


def test_the_hooks_of_a_step_of_torch_are_called_once() -> None:
    meta = torch.nn.Parameter(dense(2).to("meta"))
    meta.grad = dense(2).to("meta")
    optimizer = mine("AdamW", [meta])
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    assert optimizer.step(lambda: calls.append("closure") or 3.0) == 3.0  # type: ignore[func-returns-value]
    assert calls == ["pre", "closure", "post"]


def test_steps_of_torch_run_without_gradients_recorded() -> None:
    parameter = torch.nn.Parameter(complex_numbers(1))
    parameter.grad = complex_numbers(2)
    optimizer = mine("AdamW", [parameter])
    with torch.enable_grad():
        optimizer.step()
    assert parameter.is_leaf
    assert torch.is_grad_enabled()


def test_steps_of_torch_set_no_report() -> None:
    meta = torch.nn.Parameter(dense(2).to("meta"))
    meta.grad = dense(2).to("meta")
    optimizer = mine("AdamW", [meta])
    optimizer.step()
    assert optimizer.last_norm is None
