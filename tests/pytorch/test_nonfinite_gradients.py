"""Gradients with NaN and infinities in `fastclip.torch`: the same patterns as torch's, and the error."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastclip
from reference_clipping import ORDERS, bits, parameter, parameters, same_bits, some_gradients, versions
from support.dtypes import FLOAT_DTYPES
from support.strategies import PROPERTY, array_lists, nonfinite_arrays
from support.tensor_kinds import to_torch

pytestmark = pytest.mark.interop("torch")
torch = pytest.importorskip("torch")

TORCH_CLIP_GRAD_NORM = torch.nn.utils.clip_grad.clip_grad_norm_

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)
REAL_DTYPES = DTYPES[:4]
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
EVERY_ORDER = pytest.mark.parametrize("order", ORDERS)
#: Elements that are not finite; their combinations give a norm that is infinite or NaN.
ELEMENTS: dict[str, list[float]] = {
    "infinity": [math.inf],
    "negative infinity": [-math.inf],
    "both infinities": [math.inf, -math.inf],
    "NaN": [math.nan],
    "NaN and infinity": [math.nan, math.inf],
}
EVERY_KIND = pytest.mark.parametrize("kind", ELEMENTS)


def clip(*arguments: Any, **options: Any) -> Any:
    return fastclip.torch.clip_grad_norm_(*arguments, **options)


def gradients_with(elements: list[float], dtype: Any = torch.float32) -> list[Any]:
    """Returns gradients that have zeros of both signs, and in the second elements that are not finite."""
    gradients = [gradient.to(dtype) for gradient in some_gradients(torch.float64)]
    gradients[0].view(-1)[:2] = torch.tensor([0.0, -0.0], dtype=dtype)
    for place, element in enumerate(elements):
        gradients[1][3 + 7 * place] = element
    # Copies, of which no change has been counted yet.
    return [gradient.clone() for gradient in gradients]


# --- results ------------------------------------------------------------------------------------


def assert_same_as_torch(gradients: Callable[[], list[Any]], max_norm: float, order: Any = 2) -> None:
    ours, theirs = parameters(gradients()), parameters(gradients())
    result = clip(ours, max_norm, order)
    expected = TORCH_CLIP_GRAD_NORM(theirs, max_norm, order)
    assert result.isnan() == expected.isnan()
    assert result.isinf() == expected.isinf()
    for own, other in zip(ours, theirs, strict=True):
        assert torch.equal(own.grad.isnan(), other.grad.isnan())
        finite = ~own.grad.isnan()
        assert torch.equal(own.grad[finite], other.grad[finite])
    assert versions([owner.grad for owner in ours]) == [1] * len(ours)


@EVERY_DTYPE
@EVERY_ORDER
@EVERY_KIND
def test_results_are_those_of_torch(dtype: Any, order: Any, kind: str) -> None:
    for max_norm in (0.0, 2.0, math.inf):
        assert_same_as_torch(lambda: gradients_with(ELEMENTS[kind], dtype), max_norm, order)


@pytest.mark.parametrize("dtype", REAL_DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["infinity", "negative infinity", "both infinities"])
def test_infinite_norm_multiplies_by_0(dtype: Any, kind: str) -> None:
    gradients = gradients_with(ELEMENTS[kind], dtype)
    signs = [torch.signbit(gradient) for gradient in gradients]
    infinite = [gradient.isinf() for gradient in gradients]
    result = clip(parameters(gradients), 1.0)
    assert result.isinf()
    for gradient, sign, was_infinite in zip(gradients, signs, infinite, strict=True):
        assert torch.equal(gradient.isnan(), was_infinite)
        assert not gradient[~was_infinite].any()
        assert torch.equal(torch.signbit(gradient[~was_infinite]), sign[~was_infinite])


@EVERY_DTYPE
@pytest.mark.parametrize("kind", ["NaN", "NaN and infinity"])
def test_norm_that_is_nan_makes_every_element_nan(dtype: Any, kind: str) -> None:
    gradients = gradients_with(ELEMENTS[kind], dtype)
    assert clip(parameters(gradients), 1.0).isnan()
    assert all(gradient.isnan().all() for gradient in gradients)


def test_infinite_norm_and_infinite_bound_make_every_element_nan() -> None:
    gradients = gradients_with([math.inf])
    assert clip(parameters(gradients), math.inf).isinf()
    assert all(gradient.isnan().all() for gradient in gradients)


@pytest.mark.parametrize("element", [complex(math.inf, 1), complex(1, -math.inf), complex(math.nan, 1)])
def test_complex_elements_of_which_one_part_is_not_finite(element: complex) -> None:
    assert_same_as_torch(lambda: [torch.tensor([1 + 2j, element, 0j]), torch.tensor([3.0, -4.0])], 1.0)


@PROPERTY
@given(
    arrays=st.lists(nonfinite_arrays(layouts=("C", "F", "stepped", "offset")), min_size=1, max_size=3),
    finite=array_lists(FLOAT_DTYPES, ("C", "stepped"), kinds=("normal", "sparse")),
    max_norm=st.sampled_from([0.0, 1.0, 100.0, math.inf]),
    order=st.sampled_from([1.0, 1.5, 2.0, math.inf]),
)
def test_values_and_layouts_in_general(
    arrays: list[Any], finite: list[Any], max_norm: float, order: float
) -> None:
    tensors = [to_torch(array) for array in [*arrays, *finite] if array.size]
    ours, theirs = parameters(tensors), parameters([tensor.clone() for tensor in tensors])
    before = bits(tensors)
    with pytest.raises(fastclip.torch.NonFiniteGradientError):
        clip(ours, max_norm, order, error_if_nonfinite=True)
    assert same_bits(tensors, before)
    result, expected = clip(ours, max_norm, order), TORCH_CLIP_GRAD_NORM(theirs, max_norm, order)
    assert result.isnan() == expected.isnan()
    for tensor, other in zip(tensors, theirs, strict=True):
        assert torch.equal(tensor.isnan(), other.grad.isnan())
        assert not tensor[~tensor.isnan()].any()


# --- torch's test_clip_grad_norm_error_if_nonfinite ---------------------------------------------


@EVERY_ORDER
@pytest.mark.parametrize("foreach", [None, False, True])
@pytest.mark.parametrize("place", ["first", "last", "each"])
@pytest.mark.parametrize("elements", [[math.inf], [-math.inf], [math.inf, -math.inf], [math.nan]], ids=str)
def test_error_over_signs_and_orders(
    order: Any, foreach: bool | None, place: str, elements: list[float]
) -> None:
    gradients = [torch.arange(1.0, 11), torch.full((2, 3), -2.0), torch.tensor([0.5, 0.25])]
    for gradient in {"first": gradients[:1], "last": gradients[-1:], "each": gradients}[place]:
        gradient.view(-1)[: len(elements)] = torch.tensor(elements)
    gradients = [gradient.clone() for gradient in gradients]
    before, copies = bits(gradients), parameters([gradient.clone() for gradient in gradients])
    owners = parameters(gradients)
    with pytest.raises(RuntimeError, match=f"The total norm of order {float(order)} for gradients"):
        clip(owners, 1.0, norm_type=order, error_if_nonfinite=True, foreach=foreach)
    assert same_bits(gradients, before)
    assert versions(gradients) == [0, 0, 0]
    clip(owners, 1.0, norm_type=order, error_if_nonfinite=False, foreach=foreach)
    TORCH_CLIP_GRAD_NORM(copies, 1.0, order, False, foreach)
    for gradient, copy in zip(gradients, copies, strict=True):
        assert torch.equal(gradient.isnan(), copy.grad.isnan())
        assert torch.equal(gradient.nan_to_num(9.0), copy.grad.nan_to_num(9.0))


@EVERY_ORDER
@EVERY_DTYPE
def test_finite_gradients_raise_nothing(order: Any, dtype: Any) -> None:
    clip(parameters(gradients_with([], dtype)), 1.0, order, error_if_nonfinite=True)


# --- the error ----------------------------------------------------------------------------------


def raised(call: Callable[[], Any]) -> Any:
    with pytest.raises(fastclip.torch.NonFiniteGradientError) as caught:
        call()
    return caught.value


@EVERY_ORDER
@EVERY_KIND
def test_error_has_the_text_of_torch(order: Any, kind: str) -> None:
    with pytest.raises(RuntimeError) as theirs:
        TORCH_CLIP_GRAD_NORM(parameters(gradients_with(ELEMENTS[kind])), 1.0, order, True)
    owners = parameters(gradients_with(ELEMENTS[kind]))
    error = raised(lambda: clip(owners, 1.0, order, True))
    assert str(error).startswith(str(theirs.value))
    assert str(error).endswith("NaN or infinity in the gradients of parameters[1].")
    total = raised(
        lambda: fastclip.torch.get_total_norm(
            [owner.grad for owner in owners], order, error_if_nonfinite=True
        )
    )
    assert str(total).startswith(str(theirs.value))
    assert str(total).endswith("tensors[1].")


def test_error_is_a_runtime_error_and_one_of_fastclip() -> None:
    error = raised(lambda: clip(parameters(gradients_with([math.nan])), 1.0, error_if_nonfinite=True))
    assert isinstance(error, RuntimeError)
    assert isinstance(error, fastclip.NonFiniteError)
    assert type(error).__module__ == "fastclip.torch"


def test_error_names_the_positions_of_the_parameters() -> None:
    bad = [torch.tensor([value, 1.0]) for value in (math.nan, math.inf)]
    owners: list[Any] = [
        torch.nn.Parameter(torch.zeros(2)),
        parameter(torch.ones(2)),
        parameter(bad[0]),
        parameter(torch.ones(2)),
        torch.nn.Parameter(torch.zeros(2)),
        parameter(bad[1]),
    ]
    error = raised(lambda: clip(owners, 1.0, error_if_nonfinite=True))
    assert str(error).endswith("gradients of parameters[2], parameters[5].")


def test_error_names_a_parameter_given_twice_once() -> None:
    fine, bad = parameters([torch.ones(2), torch.tensor([math.nan])])
    error = raised(lambda: clip([fine, bad, fine, bad], 1.0, error_if_nonfinite=True))
    assert str(error).endswith("gradients of parameters[1].")


def test_error_names_named_parameters() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    module[:2](torch.ones(1, 2)).sum().backward()
    module[0].bias.grad[0] = math.inf
    module[1].weight.grad[1] = math.nan
    before = bits([owner.grad for owner in module[:2].parameters()])
    error = raised(lambda: clip(module.named_parameters(), 1.0, error_if_nonfinite=True))
    assert str(error).endswith("gradients of 0.bias, 1.weight.")
    assert same_bits([owner.grad for owner in module[:2].parameters()], before)


def test_error_of_many_parameters_is_short() -> None:
    pairs = [(f"layer{number}", parameter(torch.tensor([math.nan]))) for number in range(500)]
    message = str(raised(lambda: clip(pairs, 1.0, error_if_nonfinite=True)))
    assert "500 parameters: layer0, layer1, layer2" in message
    assert "layer400" not in message
    assert len(message) < 500


def test_error_has_the_norm_of_each_gradient() -> None:
    owners = parameters([torch.tensor([3.0, 4.0]), torch.tensor([math.nan]), torch.tensor([-math.inf, 1.0])])
    for call in (
        lambda: clip(owners, 1.0, error_if_nonfinite=True),
        lambda: clip(owners, 1.0, error_if_nonfinite=True, norms=torch.zeros(3, dtype=torch.float64)),
        lambda: fastclip.torch.get_total_norm([owner.grad for owner in owners], 2, True),
    ):
        error = raised(call)
        assert error.norms.dtype == np.float64
        np.testing.assert_array_equal(error.norms, [5.0, math.nan, math.inf])


def test_norms_are_not_written_where_the_call_raises() -> None:
    owners = parameters([torch.tensor([3.0, 4.0]), torch.tensor([math.nan])])
    norms = np.full(2, 7.0)
    raised(lambda: clip(owners, 1.0, error_if_nonfinite=True, norms=norms))
    assert norms.tolist() == [7.0, 7.0]


def test_error_can_be_pickled() -> None:
    error = raised(lambda: clip(parameter(torch.tensor([math.nan])), 1.0, error_if_nonfinite=True))
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    np.testing.assert_array_equal(copy.norms, error.norms)


@pytest.mark.parametrize("flag", [1, "yes", torch.tensor(True)], ids=["int", "str", "tensor"])
def test_flag_is_whatever_is_true(flag: Any) -> None:
    raised(lambda: clip(parameter(torch.tensor([math.nan])), 1.0, error_if_nonfinite=flag))


def test_gradients_within_infinite_bounds_are_checked() -> None:
    owner = parameter(torch.tensor([math.inf, 1.0]))
    raised(lambda: clip(owner, math.inf, error_if_nonfinite=True))
    assert owner.grad.tolist() == [math.inf, 1.0]
    assert owner.grad._version == 0
