"""What fastclip does not take goes to torch's own functions: other devices, subclasses, unusual numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

import fastclip
from reference_clipping import parameter, parameters, some_gradients

pytestmark = pytest.mark.interop("torch")
torch = pytest.importorskip("torch")

CLIP_GRAD = torch.nn.utils.clip_grad
FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "clip_grad_norm_": (
        lambda *arguments, **options: fastclip.torch.clip_grad_norm_(*arguments, **options),
        CLIP_GRAD.clip_grad_norm_,
    ),
    "clip_grad_value_": (
        lambda *arguments, **options: fastclip.torch.clip_grad_value_(*arguments, **options),
        CLIP_GRAD.clip_grad_value_,
    ),
    "get_total_norm": (
        lambda owners, *arguments, **options: fastclip.torch.get_total_norm(
            [owner.grad for owner in owners], *arguments, **options
        ),
        lambda owners, *arguments, **options: CLIP_GRAD._get_total_norm(
            [owner.grad for owner in owners], *arguments, **options
        ),
    ),
    "clip_grads_with_norm_": (
        lambda *arguments, **options: fastclip.torch.clip_grads_with_norm_(*arguments, **options),
        CLIP_GRAD._clip_grads_with_norm_,
    ),
}


def outcome(call: Callable[[], Any]) -> tuple[Any, type[Exception] | None, str]:
    """Returns the result of a call, the type of what it raises, and the beginning of the message."""
    try:
        return call(), None, ""
    except Exception as error:
        return None, type(error), str(error)[:80]


def assert_same_as_torch(name: str, owners: Callable[[], list[Any]], *arguments: Any, **options: Any) -> None:
    """Checks that a call has the outcome of torch's function, and leaves the same gradients, bit for bit."""
    ours, theirs = owners(), owners()
    own, other = FUNCTIONS[name]
    result, error, message = outcome(lambda: own(ours, *arguments, **options))
    expected, expected_error, expected_message = outcome(lambda: other(theirs, *arguments, **options))
    assert (error, message) == (expected_error, expected_message)
    assert type(result) is type(expected)
    for tensor, original in [
        (result, expected),
        *((a.grad, b.grad) for a, b in zip(ours, theirs, strict=True)),
    ]:
        if isinstance(original, torch.Tensor):
            assert type(tensor) is type(original)
            assert (tensor.device, tensor.dtype, tensor.shape) == (
                original.device,
                original.dtype,
                original.shape,
            )
            if original.device.type == "cpu":
                torch.testing.assert_close(tensor, original, rtol=0, atol=0, equal_nan=True)


# --- other devices ------------------------------------------------------------------------------


def meta_parameters() -> list[Any]:
    return parameters([torch.ones(3, device="meta"), torch.ones((2, 2), dtype=torch.float16, device="meta")])


@pytest.mark.parametrize("foreach", [None, False, True])
@pytest.mark.parametrize("name", ["clip_grad_norm_", "clip_grad_value_", "get_total_norm"])
def test_meta_tensors(name: str, foreach: bool | None) -> None:
    arguments = () if name == "get_total_norm" else (1.0,)
    assert_same_as_torch(name, meta_parameters, *arguments, foreach=foreach)


@pytest.mark.parametrize("foreach", [None, False, True])
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_meta_tensors_and_a_known_norm(device: str, foreach: bool | None) -> None:
    total = torch.ones((), device=device)
    assert_same_as_torch("clip_grads_with_norm_", meta_parameters, 1.0, total, foreach=foreach)


def test_meta_tensors_and_both_functions_in_turn() -> None:
    owners = meta_parameters()
    total = fastclip.torch.get_total_norm([owner.grad for owner in owners])
    fastclip.torch.clip_grads_with_norm_(owners, 1.0, total)
    assert [owner.grad.device.type for owner in owners] == ["meta", "meta"]


def test_meta_tensors_of_named_parameters_and_generators() -> None:
    owners = meta_parameters()
    for given in (iter(owners), ((str(owner.shape), owner) for owner in owners)):
        assert fastclip.torch.clip_grad_norm_(given, 1.0).device.type == "meta"
    fastclip.torch.clip_grad_value_(((str(owner.shape), owner) for owner in owners), 1.0)


def test_dtype_of_a_norm_that_torch_computes() -> None:
    result = fastclip.torch.clip_grad_norm_(meta_parameters(), 1.0, dtype=torch.float64)
    assert (result.device.type, result.dtype) == ("meta", torch.float64)
    result = fastclip.torch.get_total_norm([torch.ones(3, device="meta")], dtype=torch.bfloat16)
    assert (result.device.type, result.dtype) == ("meta", torch.bfloat16)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_"])
def test_fake_tensors(name: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    for function in FUNCTIONS[name]:
        with FakeTensorMode():
            owner = parameter(torch.ones(2))
            arguments = (1.0, torch.ones(())) if name == "clip_grads_with_norm_" else (1.0,)
            function([owner], *arguments)


# --- subclasses ---------------------------------------------------------------------------------


def subclass_that_records() -> tuple[Any, list[str]]:
    called: list[str] = []

    class Recording(torch.Tensor):  # type: ignore[misc]
        @classmethod
        def __torch_function__(
            cls, function: Any, types: Any, arguments: Any = (), options: Any = None
        ) -> Any:
            called.append(function.__name__)
            return super().__torch_function__(function, types, arguments, options or {})

    return Recording, called


@pytest.mark.parametrize("name", ["clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_"])
def test_subclasses(name: str) -> None:
    kind, called = subclass_that_records()

    def owners() -> list[Any]:
        new = torch.nn.Parameter(torch.zeros(2))
        new.grad = torch.tensor([3.0, 4.0]).as_subclass(kind)
        return [parameter(torch.tensor([1.0, -2.0])), new]

    arguments = (1.0, torch.tensor(5.0)) if name == "clip_grads_with_norm_" else (1.0,)
    assert_same_as_torch(name, owners, *arguments)
    assert any(re_name in " ".join(called) for re_name in ("mul_", "clamp"))


def test_total_norm_of_subclasses() -> None:
    kind, called = subclass_that_records()
    result = fastclip.torch.get_total_norm([torch.tensor([3.0, 4.0]).as_subclass(kind)])
    assert type(result) is kind
    assert float(result) == 5.0
    assert "norm" in " ".join(called)


def test_subclass_of_a_parameter_with_a_plain_gradient() -> None:
    class Special(torch.nn.Parameter):  # type: ignore[misc]
        pass

    owner = Special(torch.zeros(100))
    owner.grad = torch.full((100,), 1e38)
    # It is the gradient that counts.
    assert fastclip.torch.clip_grad_norm_([owner], 1.0).dtype == torch.float64
    torch.testing.assert_close(owner.grad, torch.full((100,), 0.1))


def test_uninitialized_parameters() -> None:
    layer = torch.nn.LazyLinear(3)
    assert fastclip.torch.clip_grad_norm_(layer.parameters(), 1.0) == 0.0
    fastclip.torch.clip_grad_value_(layer.parameters(), 1.0)


# --- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("foreach", [None, False, True])
@pytest.mark.parametrize("order", [0, -1, -2.0, "-inf", math.nan, -0.0])
def test_orders_that_are_not_positive(order: Any, foreach: bool | None) -> None:
    def owners() -> list[Any]:
        dtypes = (torch.float16, torch.float32, torch.float64)
        return parameters([gradient for dtype in dtypes for gradient in some_gradients(dtype)])

    assert_same_as_torch("clip_grad_norm_", owners, 1.0, order, foreach=foreach)
    assert_same_as_torch("get_total_norm", owners, order, False, foreach)


@pytest.mark.parametrize("foreach", [None, False, True])
@pytest.mark.parametrize("bound", [-1.0, -math.inf, math.nan, "-2"])
def test_bounds_that_are_negative_or_nan(bound: Any, foreach: bool | None) -> None:
    for name, arguments in (
        ("clip_grad_norm_", (bound,)),
        ("clip_grad_value_", (bound,)),
        ("clip_grads_with_norm_", (bound, torch.tensor(3.0))),
    ):
        assert_same_as_torch(name, lambda: parameters(some_gradients()), *arguments, foreach=foreach)


@pytest.mark.parametrize("total", [-5.0, -1e-7, -math.inf])
def test_known_norms_that_are_negative(total: float) -> None:
    assert_same_as_torch(
        "clip_grads_with_norm_", lambda: parameters(some_gradients()), 1.0, torch.tensor(total)
    )
    owner, other = parameter(torch.tensor([3.0, 4.0])), parameter(torch.tensor([3.0, 4.0]))
    fastclip.torch.clip_grads_with_norm_(owner, 1.0, total)
    CLIP_GRAD._clip_grads_with_norm_(other, 1.0, torch.tensor(total))
    assert torch.equal(owner.grad, other.grad)


def test_error_of_torch_where_the_norm_is_not_finite() -> None:
    owner = parameter(torch.tensor([1.0, math.nan]))
    with pytest.raises(RuntimeError, match=r"The total norm of order -1\.0 for gradients"):
        fastclip.torch.clip_grad_norm_([owner], 1.0, -1, error_if_nonfinite=True)


# --- dtypes and layouts -------------------------------------------------------------------------


UNUSUAL: dict[str, Callable[[], Any]] = {
    "integers": lambda: torch.tensor([3, 4]),
    "booleans": lambda: torch.tensor([True, False]),
    "float8": lambda: torch.tensor([3.0, 4.0]).to(torch.float8_e4m3fn),
    "zeros without memory": lambda: torch._efficientzerotensor(3),
}


@pytest.mark.parametrize("kind", UNUSUAL)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_unusual_gradients(name: str, kind: str) -> None:
    def owners() -> list[Any]:
        gradient = UNUSUAL[kind]()
        owner = torch.zeros(gradient.shape, dtype=gradient.dtype)
        owner.grad = gradient
        return [parameter(torch.tensor([1.0, 2.0])), owner]

    arguments = {"get_total_norm": (), "clip_grads_with_norm_": (1.0, torch.tensor(5.0))}.get(name, (2.0,))
    assert_same_as_torch(name, owners, *arguments)


def test_value_bounds_on_complex_gradients() -> None:
    assert_same_as_torch("clip_grad_value_", lambda: [parameter(torch.tensor([1 + 2j]))], 1.0)


def test_tensors_of_function_transforms() -> None:
    def clipped(row: Any, name: str) -> Any:
        owner = torch.nn.Parameter(torch.zeros(2))
        return (
            FUNCTIONS["get_total_norm"][name == "torch"]([type("Owner", (), {"grad": row})()]) + owner.sum()
        )

    rows = torch.tensor([[3.0, 4.0], [6.0, 8.0]])
    for transform in (torch.func.functionalize, torch.func.grad):
        ours = transform(lambda row: clipped(row, "fastclip"))(rows)
        theirs = transform(lambda row: clipped(row, "torch"))(rows)
        torch.testing.assert_close(ours, theirs)
