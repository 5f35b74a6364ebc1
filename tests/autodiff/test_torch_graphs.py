"""Derivatives of the clip functions by torch: graphs of results where tensors require grad."""

from __future__ import annotations

import gc
import math
import weakref
from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastclip
from fastclip import IndexedSlices, Variable
from fastclip._autodiff.gradients import compute_gradients
from support import fresh_python
from support.clip_calls import UNIT_BOUND
from support.recorders import gradients as recorded
from support.recorders.gradients import Case

pytestmark = pytest.mark.interop("torch")
torch: Any = pytest.importorskip("torch")

Tensor = Any


def tensor(values: Any, dtype: Any = None) -> Tensor:
    """Returns a tensor that requires grad."""
    return torch.tensor(values, dtype=torch.float64 if dtype is None else dtype, requires_grad=True)


def normal(*shape: int, seed: int = 0, dtype: Any = None) -> Tensor:
    """Returns a tensor of normal deviates that requires grad."""
    return tensor(np.random.default_rng(seed).normal(size=shape), dtype)


def gradients(outputs: Any, *inputs: Tensor) -> Any:
    """Returns the gradients of a weighted sum of outputs."""
    scales = recorded.weights([tuple(output.shape) for output in outputs])
    total = sum((output * torch.from_numpy(w)).sum() for output, w in zip(outputs, scales, strict=True))
    return torch.autograd.grad(total, inputs)


def as_array(x: Tensor) -> Any:
    """Returns a tensor as an array."""
    x = x.detach()
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return x.numpy()


# Gradients -------------------------------------------------------------------------------------

#: The norm that clip_by_global_norm returns is a number, through which torch differentiates nothing.
CASES = [case for case in recorded.build_cases() if "global_norm" not in case.id or "known norm" in case.id]
RECORDED = recorded.load()
TOLERANCE = {np.dtype(np.float32): 2e-6, np.dtype(np.float64): 1e-13}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_gradients_agree_with_tensorflow(case: Case) -> None:
    inputs = [torch.from_numpy(array.copy()).requires_grad_() for array in case.arrays]
    results = gradients(case.call(fastclip, *inputs), *inputs)
    for gradient, expected in zip(results, RECORDED[case.id], strict=True):
        # TensorFlow computes the average norm in float32.
        tolerance = 2e-6 if "average" in case.id else TOLERANCE[expected.dtype]
        assert gradient.numpy().dtype == expected.dtype
        np.testing.assert_allclose(
            gradient.numpy(), expected, rtol=0, atol=tolerance * max(np.abs(expected).max(), 1.0)
        )


def scaled(t: Tensor, norm: Tensor, bound: Tensor) -> Tensor:
    return t * bound / torch.maximum(norm, bound)


def norm_of(tensors: Any, order: float) -> Tensor:
    return torch.linalg.vector_norm(torch.cat([t.reshape(-1) for t in tensors]), order)


A, B, SCALAR = normal(4, 3), normal(2, 3, 2, seed=1), tensor(0.7)
ROWS = tensor([[0.1], [5.0], [0.4], [0.2]])
ELEMENTS = tensor(np.linspace(0.2, 3.0, 12).reshape(4, 3))

#: For each name: a clip function, the same in formulas of torch, and the tensors to differentiate them by.
FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[Tensor, ...]]] = {
    "clip_by_value": (
        lambda t, low: [fastclip.clip_by_value(t, low, 0.4)],
        lambda t, low: [torch.maximum(torch.clamp(t, max=0.4), low)],
        (A, tensor([-0.3, -0.2, -5.0])),
    ),
    "clip_by_value, bounds of elements": (
        lambda t, low, high: [fastclip.clip_by_value(t, low, high)],
        lambda t, low, high: [torch.maximum(torch.minimum(t, high), low)],
        (A, tensor(np.full((4, 1), -0.3)), tensor(np.linspace(-0.2, 0.9, 12).reshape(4, 3))),
    ),
    "clip_by_norm, rows": (
        lambda t, c: [fastclip.clip_by_norm(t, c, axes=[1])],
        lambda t, c: [scaled(t, torch.linalg.vector_norm(t, 2, 1, keepdim=True), c)],
        (A, ROWS),
    ),
    "clip_by_norm, two axes": (
        lambda t, c: [fastclip.clip_by_norm(t, c, axes=[0, -1], ord=3)],
        lambda t, c: [scaled(t, torch.linalg.vector_norm(t, 3, (0, 2), keepdim=True), c)],
        (B, SCALAR),
    ),
    "clip_by_norm, bounds of elements": (
        lambda t, c: [fastclip.clip_by_norm(t, c)],
        lambda t, c: [scaled(t, norm_of([t], 2), c)],
        (A, ELEMENTS),
    ),
    "clip_by_norm, largest of columns": (
        lambda t, c: [fastclip.clip_by_norm(t, c, axes=0, ord=math.inf)],
        lambda t, c: [scaled(t, torch.linalg.vector_norm(t, math.inf, 0, keepdim=True), c)],
        (A, SCALAR),
    ),
    "clip_by_average_norm": (
        lambda t, c: [fastclip.clip_by_average_norm(t, c)],
        lambda t, c: [scaled(t, norm_of([t], 2) / t.numel(), c)],
        (A, tensor(0.05)),
    ),
    "clip_by_global_norm, known norm": (
        lambda t, u, c, n: fastclip.clip_by_global_norm([t, u], c, use_norm=n)[0],
        lambda t, u, c, n: [scaled(t, n, c), scaled(u, n, c)],
        (A, B, SCALAR, tensor(7.0)),
    ),
    "clip_by_block_rms": (
        lambda t, u, c: fastclip.clip_by_block_rms([t, u], c),
        lambda t, u, c: [scaled(x, (x**2).mean().sqrt(), c) for x in (t, u)],
        (A, B, SCALAR),
    ),
    "adaptive_clip": (
        lambda w, v, t, u, c, e: fastclip.adaptive_clip([w, v], [t, u], c, e),
        lambda w, v, t, u, c, e: [
            scaled(
                g,
                torch.linalg.vector_norm(g, 2, 0, keepdim=True),
                c * torch.maximum(torch.linalg.vector_norm(p, 2, 0, keepdim=True), e),
            )
            for p, g in ((w, t), (v, u))
        ],
        (normal(4, 3, seed=2), normal(2, 3, 2, seed=3), A, B, tensor(0.3), tensor(1.3)),
    ),
}
for _order in (1, 1.5, 2, 3, math.inf):
    FUNCTIONS[f"clip_by_norm, order {_order}"] = (
        lambda t, c, p=_order: [fastclip.clip_by_norm(t, c, ord=p)],
        lambda t, c, p=_order: [scaled(t, norm_of([t], p), c)],
        (A, SCALAR),
    )
    FUNCTIONS[f"clip_by_global_norm, order {_order}"] = (
        lambda t, u, c, p=_order: fastclip.clip_by_global_norm([t, u], c, ord=p)[0],
        lambda t, u, c, p=_order: [scaled(x, norm_of([t, u], p), c) for x in (t, u)],
        (A, B, SCALAR),
    )
EVERY_FUNCTION = pytest.mark.parametrize("name", FUNCTIONS)


@EVERY_FUNCTION
def test_gradients_agree_with_formulas_of_torch(name: str) -> None:
    function, formulas, inputs = FUNCTIONS[name]
    actual, expected = function(*inputs), formulas(*inputs)
    for value, reference in zip(actual, expected, strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-13, atol=0)
    for gradient, reference in zip(gradients(actual, *inputs), gradients(expected, *inputs), strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-12, atol=1e-14)
        assert gradient.abs().sum() > 0


@EVERY_FUNCTION
def test_second_derivatives_agree_with_formulas_of_torch(name: str) -> None:
    def second(function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Any:
        # Cubes, so that the gradients with respect to the outputs depend on the inputs too.
        total = sum((output**3).sum() for output in function(*inputs))
        first = torch.autograd.grad(total, inputs, create_graph=True)
        return first, gradients(first, *inputs)

    function, formulas, inputs = FUNCTIONS[name]
    for actual, expected in zip(second(function, inputs), second(formulas, inputs), strict=True):
        for gradient, reference in zip(actual, expected, strict=True):
            torch.testing.assert_close(gradient, reference, rtol=1e-11, atol=1e-12)


@EVERY_FUNCTION
def test_gradients_agree_with_finite_differences(name: str) -> None:
    function, _, inputs = FUNCTIONS[name]
    assert torch.autograd.gradcheck(lambda *inputs: tuple(function(*inputs)), inputs)
    assert torch.autograd.gradgradcheck(lambda *inputs: tuple(function(*inputs)), inputs)


@EVERY_FUNCTION
def test_gradients_with_respect_to_some_arguments_only(name: str) -> None:
    function, _, inputs = FUNCTIONS[name]
    expected = gradients(function(*inputs), *inputs)
    for i, reference in enumerate(expected):
        some = [x if j == i else x.detach() for j, x in enumerate(inputs)]
        outputs = [output for output in function(*some) if output.requires_grad]
        if len(outputs) == len(function(*inputs)):
            [gradient] = gradients(outputs, some[i])
            torch.testing.assert_close(gradient, reference, rtol=1e-14, atol=0)


@EVERY_FUNCTION
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_gradients_are_rounded_once(name: str, dtype: Any) -> None:
    function, _, inputs = FUNCTIONS[name]
    narrow = [x.detach().to(dtype).requires_grad_() for x in inputs]
    wide = [x.detach().double().requires_grad_() for x in narrow]
    outputs, wide_outputs = function(*narrow), function(*wide)
    scales = [torch.ones_like(output) * 0.5 for output in outputs]
    actual = torch.autograd.grad(outputs, narrow, scales)
    expected = torch.autograd.grad(wide_outputs, wide, [scale.double() for scale in scales])
    for gradient, reference in zip(actual, expected, strict=True):
        assert gradient.dtype == dtype
        if dtype == torch.float32:
            # The global norm of float32 tensors is a float32.
            torch.testing.assert_close(gradient, reference.float(), rtol=3e-7, atol=1e-7)
        else:
            assert torch.equal(gradient, reference.to(dtype))


@pytest.mark.parametrize("order", [1, 2, 3, math.inf])
@pytest.mark.parametrize("keyword", [{}, {"axes": [0, 1]}])
def test_gradients_of_tensors_of_many_elements(order: float, keyword: Any) -> None:
    t, bound = normal(301, 403), tensor(0.7)

    def loss(clipped: Tensor) -> Tensor:
        return (clipped * torch.linspace(-1, 1, 301, dtype=torch.float64)).sum()

    expected = torch.autograd.grad(loss(scaled(t.T, norm_of([t], order), bound)), (t, bound))
    actual = torch.autograd.grad(loss(fastclip.clip_by_norm(t.T, bound, ord=order, **keyword)), (t, bound))
    for gradient, reference in zip(actual, expected, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1.0, 1e160, 1e300])
def test_gradients_do_not_overflow_or_underflow_in_intermediate_results(scale: float) -> None:
    t = tensor(np.array([3.0, 4.0]) * scale)
    jacobian = torch.autograd.functional.jacobian(lambda t: fastclip.clip_by_norm(t, 1e-308), t)
    expected = 1e-308 / (5 * scale) * np.array([[0.64, -0.48], [-0.48, 0.36]])
    np.testing.assert_allclose(jacobian.numpy(), expected, rtol=1e-6, atol=5e-324)


def test_gradients_of_narrow_types_do_not_overflow() -> None:
    t = tensor([3e30, 4e30], torch.float32)
    fastclip.clip_by_global_norm([t], 1.0)[0][0].sum().backward()
    np.testing.assert_allclose(t.grad.numpy(), np.array([0.16, -0.12]) / 5e30, rtol=1e-6)


@pytest.mark.parametrize("name", UNIT_BOUND)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gradient_at_a_tensor_of_zeros_is_1(name: str, dtype: Any) -> None:
    t = tensor(np.zeros((3, 2)), dtype)
    UNIT_BOUND[name](t).sum().backward()
    assert t.grad.dtype == dtype
    assert torch.equal(t.grad, torch.ones(3, 2, dtype=dtype))


@pytest.mark.parametrize("name", UNIT_BOUND)
def test_empty_and_0_dimensional_tensors_have_gradients(name: str) -> None:
    if name != "adaptive_clip":
        empty, scalar = tensor(np.zeros((0, 2))), tensor(3.0)
        UNIT_BOUND[name](empty).sum().backward()
        assert empty.grad.shape == (0, 2)
        if "axes" not in name:
            (UNIT_BOUND[name](scalar) * 2).backward()
            assert scalar.grad == 0


def test_an_empty_tensor_beside_others() -> None:
    empty, t = tensor(np.zeros((0, 2))), tensor([3.0, 4.0])
    clipped, _ = fastclip.clip_by_global_norm([empty, t], 1.0)
    (clipped[0].sum() + clipped[1][0]).backward()
    assert empty.grad.shape == (0, 2)
    np.testing.assert_allclose(t.grad.numpy(), [0.2 * 0.64, -0.2 * 0.48], rtol=1e-14)


def test_largest_elements_share_the_gradient_of_the_infinite_order() -> None:
    bound, t = tensor(1.0), tensor([2.0, -2.0, 1.0], torch.float16)
    constant = np.array([[1.0, 2.0]])
    (a, b), norm = fastclip.clip_by_global_norm([t, constant], bound, ord=math.inf)
    assert norm == 2
    assert isinstance(b, np.ndarray)
    a.sum().backward()
    # Half of each gradient, and a third of -sum(t) / 4 for each of the three largest elements.
    np.testing.assert_allclose(t.grad.numpy(), [0.5 - 1 / 12, 0.5 + 1 / 12, 0.5], rtol=1e-3)
    rows = tensor([[2.0, 2.0], [1.0, -3.0]])
    fastclip.clip_by_norm(rows, 1.0, axes=[1], ord=math.inf).sum().backward()
    np.testing.assert_allclose(rows.grad.numpy(), [[0.0, 0.0], [1 / 3, 1 / 3 + 2 / 9 * -1]], atol=1e-15)


@pytest.mark.parametrize(
    ("on_nonfinite", "expected"), [("propagate", [math.nan, math.nan]), ("zero", [0.0, 0.0])]
)
def test_gradients_with_a_nonfinite_norm(on_nonfinite: Any, expected: list[float]) -> None:
    t, bound = tensor([1.0, math.nan]), tensor(1.0)
    fastclip.clip_by_global_norm([t], bound, on_nonfinite=on_nonfinite)[0][0].sum().backward()
    np.testing.assert_array_equal(t.grad.numpy(), expected)
    assert bound.grad == 0


def test_nonfinite_entries_are_named() -> None:
    t = {"w": tensor([1.0]), "b": [tensor([math.inf])]}
    with pytest.raises(fastclip.NonFiniteError, match=r"t_list\['b'\]\[0\]"):
        fastclip.clip_by_global_norm(t, 1.0, on_nonfinite="raise")


def test_rows_with_a_nan_leave_the_gradients_of_others_alone() -> None:
    t = tensor([[3.0, 4.0], [math.nan, 1.0], [0.3, 0.4]])
    fastclip.clip_by_norm(t, 1.0, axes=[1])[:, 0].sum().backward()
    np.testing.assert_allclose(t.grad.numpy()[[0, 2]], [[0.128, -0.096], [1.0, 0.0]], rtol=1e-14)
    assert np.isnan(t.grad.numpy()[1]).all()


def test_negative_bounds_count_as_0_and_have_no_gradient() -> None:
    t, bound = tensor([3.0, 4.0]), tensor(-1.0)
    fastclip.clip_by_norm(t, bound).sum().backward()
    assert t.grad.tolist() == [0.0, 0.0]
    assert bound.grad == 0


def test_bounds_that_do_not_clip_have_gradient_0() -> None:
    t, bound, rows = tensor([[3.0, 4.0]]), tensor(10.0), tensor([[10.0], [11.0]])
    for clipped in (
        fastclip.clip_by_norm(t, bound),
        fastclip.clip_by_value(t, -100.0, bound),
        fastclip.clip_by_norm(t.expand(2, 2), rows),
        fastclip.clip_by_global_norm([t], bound)[0][0],
    ):
        clipped.sum().backward()
    assert bound.grad == 0
    assert rows.grad.tolist() == [[0.0], [0.0]]


def test_an_infinite_ratio_gives_parameters_gradient_0() -> None:
    weight, t = tensor([3.0, 4.0]), tensor([1.0, 2.0])
    fastclip.adaptive_clip([weight], [t], math.inf)[0].sum().backward()
    assert weight.grad.tolist() == [0.0, 0.0]
    assert t.grad.tolist() == [1.0, 1.0]


def test_results_that_are_not_used_have_no_part_in_the_gradient() -> None:
    t, u = tensor([3.0]), tensor([4.0])
    clipped, _ = fastclip.clip_by_global_norm([t, u], 1.0)
    clipped[1].sum().backward()
    np.testing.assert_allclose([t.grad.item(), u.grad.item()], [-0.2 * 0.48, 0.2 * 0.36], rtol=1e-14)


def test_a_clipped_loss_trains_as_with_formulas_of_torch() -> None:
    rng = np.random.default_rng(3)
    inputs, targets = torch.from_numpy(rng.normal(size=(20, 4))), torch.from_numpy(rng.normal(size=20))

    def train(clip: Callable[[Any], Any]) -> list[float]:
        model = torch.nn.Linear(4, 1, dtype=torch.float64)
        with torch.no_grad():
            model.weight.copy_(torch.linspace(-1, 1, 4))
            model.bias.zero_()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        losses = []
        for _ in range(30):
            optimizer.zero_grad()
            # Weights of bounded norm, and a bound on what each example says.
            weight, bias = clip([model.weight, model.bias])
            error = (inputs @ weight[0] + bias - targets)[:, None]
            loss = (scaled_rows(error) ** 2).mean() if clip is by_formula else clipped_rows(error)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    def by_formula(tensors: Any) -> Any:
        norm = norm_of(tensors, 2)
        return [scaled(t, norm, torch.tensor(0.5, dtype=torch.float64)) for t in tensors]

    def scaled_rows(error: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(error, dim=1, keepdim=True)
        return scaled(error, norms, torch.tensor(0.8, dtype=torch.float64))

    def clipped_rows(error: Tensor) -> Tensor:
        return (fastclip.clip_by_norm(error, 0.8, axes=[1]) ** 2).mean()

    losses = train(lambda tensors: fastclip.clip_by_global_norm(tensors, 0.5)[0])
    np.testing.assert_allclose(losses, train(by_formula), rtol=1e-12)
    assert losses[-1] < losses[0]


# Values ----------------------------------------------------------------------------------------

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.T,
    "sliced": lambda t: t[1:, ::2],
    "expanded": lambda t: t[:1].expand(5, -1),
}
VALUES: dict[str, Callable[[Any, Any], list[Any]]] = {
    "clip_by_value": lambda t, u: [fastclip.clip_by_value(t, -0.3, 0.1)],
    "clip_by_norm": lambda t, u: [
        fastclip.clip_by_norm(t, 0.3),
        fastclip.clip_by_norm(u, 0.3, axes=[1], ord=1),
    ],
    "clip_by_average_norm": lambda t, u: [fastclip.clip_by_average_norm(t, 0.01)],
    "clip_by_global_norm": lambda t, u: fastclip.clip_by_global_norm([t, u], 0.7)[0],
    "not clipped": lambda t, u: fastclip.clip_by_global_norm([t, u], 1e4)[0],
    "clip_by_block_rms": lambda t, u: fastclip.clip_by_block_rms([t, u], 0.2),
    "adaptive_clip": lambda t, u: fastclip.adaptive_clip([t], [u], 0.2),
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_have_the_bits_of_the_results_for_arrays(name: str, dtype: Any, layout: str) -> None:
    t, u = (LAYOUTS[layout](normal(5, 4, seed=seed, dtype=dtype)) for seed in (1, 2))
    expected = VALUES[name](as_array(t), as_array(u))
    for value, reference in zip(VALUES[name](t, u), expected, strict=True):
        assert type(value) is torch.Tensor
        assert value.dtype == dtype
        assert value.requires_grad
        assert as_array(value).tobytes() == reference.tobytes()


def test_values_of_tensors_with_the_negative_bit() -> None:
    t = torch.tensor([3 + 4j, 1 - 2j], dtype=torch.complex128).conj().imag
    assert t.is_neg()
    t.requires_grad_()
    clipped = fastclip.clip_by_norm(t, 1.0)
    np.testing.assert_allclose(clipped.detach().numpy(), np.array([-4.0, 2.0]) / math.sqrt(20), rtol=1e-15)
    [gradient] = torch.autograd.grad(clipped[0], t)
    np.testing.assert_allclose(
        gradient.resolve_neg().numpy(), np.array([0.2, 0.4]) / math.sqrt(20), rtol=1e-14
    )


def test_bounds_are_rounded_to_the_type_of_the_tensor_before_they_are_compared() -> None:
    # 0.1 is no float16: the nearest one is below, and equal to the element.
    t, high = tensor([0.1, 0.2], torch.float16), tensor(0.1)
    fastclip.clip_by_value(t, -1.0, high).sum().backward()
    assert t.grad.tolist() == [1.0, 0.0]
    assert high.grad == 1.0


# Containers ------------------------------------------------------------------------------------

Pair = namedtuple("Pair", "w b")


@pytest.mark.parametrize(
    "build",
    [
        lambda t, u: {"w": t, "b": [u, None]},
        lambda t, u: Pair(t, {"x": u, "y": None}),
        lambda t, u: OrderedDict(w=t, b=(u, None)),
        lambda t, u: UserDict({"w": t, "b": u}),
        lambda t, u: [t, None, u],
        lambda t, u: (t, u),
    ],
)
def test_containers_keep_their_structure(build: Callable[[Any, Any], Any]) -> None:
    t, u = tensor([3.0]), tensor([4.0])
    expected, _ = fastclip.clip_by_global_norm(build(np.array([3.0]), np.array([4.0])), 1.0)
    clipped, norm = fastclip.clip_by_global_norm(build(t, u), 1.0)
    assert type(norm) is np.float64
    found: list[Any] = []

    def check(value: Any, reference: Any) -> None:
        if isinstance(reference, np.ndarray):
            assert value.requires_grad
            np.testing.assert_array_equal(value.detach().numpy(), reference)
            found.append(value)
            return
        assert type(value) is type(reference)
        if isinstance(reference, (dict, UserDict)):
            assert list(value) == list(reference)
            value, reference = list(value.values()), list(reference.values())
        if reference is not None:
            for entry, other in zip(value, reference, strict=True):
                check(entry, other)

    check(clipped, expected)
    a, b = found
    (a.sum() + 2 * b.sum()).backward()
    np.testing.assert_allclose(t.grad.item(), 0.2 * (1 - 0.6 * 2.2), rtol=1e-13)
    np.testing.assert_allclose(u.grad.item(), 0.2 * (2 - 0.8 * 2.2), rtol=1e-13)


def test_subclasses_of_containers_keep_their_type() -> None:
    class Gradients(dict):  # type: ignore[type-arg]
        pass

    t = Gradients(w=tensor([3.0]), b=[tensor([4.0])])
    t.step = 3  # type: ignore[attr-defined]
    clipped, _ = fastclip.clip_by_global_norm(t, 1.0)
    assert type(clipped) is Gradients
    assert clipped.step == 3  # type: ignore[attr-defined]
    assert clipped["w"].requires_grad
    assert clipped["b"][0].requires_grad
    assert t["w"].tolist() == [3.0]


def test_registered_containers_are_searched_for_tensors_that_require_grad() -> None:
    optree = pytest.importorskip("optree")

    class Box:
        def __init__(self, value: Any) -> None:
            self.value = value

    everywhere = getattr(optree.registry, "__GLOBAL_NAMESPACE")
    optree.register_pytree_node(
        Box, lambda box: ((box.value,), None), lambda _, children: Box(*children), namespace=everywhere
    )
    try:
        clipped, _ = fastclip.clip_by_global_norm({"a": Box(tensor([3.0, 4.0]))}, 1.0)
        assert clipped["a"].value.requires_grad
    finally:
        optree.unregister_pytree_node(Box, namespace=everywhere)


def test_tensors_that_do_not_require_grad_are_constants() -> None:
    t, constant = tensor([3.0]), torch.tensor([4.0], dtype=torch.float64)
    array = np.array([0.0])
    (a, b, c, d), norm = fastclip.clip_by_global_norm([t, constant, array, None], 1.0)
    assert norm == 5
    assert type(c) is np.ndarray
    assert d is None
    # The result for a constant depends on the others through the norm.
    (a + b).sum().backward()
    np.testing.assert_allclose(t.grad.item(), 0.2 * (1 - 0.6 * 1.4), rtol=1e-14)
    assert constant.grad is None


def test_results_that_depend_on_nothing_that_requires_grad_have_no_graph() -> None:
    t, constant = tensor([3.0]), torch.tensor([4.0], dtype=torch.float64)
    assert [r.requires_grad for r in fastclip.clip_by_block_rms([t, constant], 1.0)] == [True, False]
    clipped, _ = fastclip.clip_by_global_norm([t, constant], 1.0, use_norm=5.0)
    assert [r.requires_grad for r in clipped] == [True, False]
    clipped = fastclip.adaptive_clip([t, constant], [constant, constant])
    assert [r.requires_grad for r in clipped] == [True, False]


def test_parameters_without_a_gradient_are_skipped() -> None:
    weight = tensor([3.0])
    assert fastclip.adaptive_clip([weight, weight], [None, None]) == [None, None]
    clipped = fastclip.adaptive_clip({"a": weight, "b": weight}, {"a": None, "b": torch.ones(1)})
    assert clipped["a"] is None
    assert clipped["b"].requires_grad


def test_indexed_slices_over_tensors() -> None:
    rows = tensor([[3.0], [4.0]])
    slices = IndexedSlices(np.zeros((2, 1)), [1, 0], (3, 1))._with_values(rows)
    results = [
        fastclip.clip_by_norm(slices, 1.0),
        fastclip.clip_by_value(slices, -1.0, 1.0),
        fastclip.clip_by_average_norm(slices, 0.1),
        fastclip.clip_by_global_norm([slices], 1.0)[0][0],
        fastclip.clip_by_global_norm({"a": [slices]}, 1.0)[0]["a"][0],
        fastclip.clip_by_block_rms([slices], 1.0)[0],
    ]
    for result in results:
        assert isinstance(result, IndexedSlices)
        assert result.indices.tolist() == [1, 0]
        assert result.values.requires_grad
    [gradient] = torch.autograd.grad(results[0].values.sum(), rows)
    np.testing.assert_allclose(
        gradient.numpy(), [[0.2 * (1 - 0.6 * 1.4)], [0.2 * (1 - 0.8 * 1.4)]], rtol=1e-13
    )


def test_norms_are_numbers_of_numpy() -> None:
    t, norms = tensor([3.0, 4.0], torch.float32), np.zeros(2)
    _, norm = fastclip.clip_by_global_norm([t, tensor([12.0], torch.float32)], 1.0, norms=norms)
    assert type(norm) is np.float32
    assert norm == 13
    assert norms.tolist() == [5.0, 12.0]


def test_use_norm_is_returned_as_given() -> None:
    t, norm = tensor([3.0, 4.0]), tensor(5.0)
    assert fastclip.clip_by_global_norm([t], 1.0, use_norm=norm)[1] is norm
    assert fastclip.clip_by_global_norm([t], 1.0, use_norm=5)[1] == 5


def test_variables_are_constants_beside_tensors_that_require_grad() -> None:
    t, variable = tensor([3.0]), Variable([4.0], dtype=np.float64)
    (a, b), norm = fastclip.clip_by_global_norm([t, variable], Variable(1.0))  # type: ignore[arg-type]
    assert norm == 5
    assert a.requires_grad
    assert isinstance(b, np.ndarray)


def test_variables_in_a_loss_that_torch_differentiates() -> None:
    w, frozen = Variable([3.0], dtype=np.float64), Variable([4.0], dtype=np.float64, trainable=False)

    def loss() -> Any:
        clipped, _ = fastclip.clip_by_global_norm([w, frozen], 1.0)
        return clipped[0].sum() + clipped[1].sum() + fastclip.clip_by_norm(w, 1.0).sum()

    [(gradient, _)] = compute_gradients(loss, [w], backend="torch")
    np.testing.assert_allclose(gradient, [0.2 * (1 - 0.6 * 1.4)], rtol=1e-13)
    [(gradient, _)] = compute_gradients(
        lambda w: fastclip.clip_by_value(w * 1, -1.0, 3.5).sum(), [w], backend="torch"
    )
    assert gradient.tolist() == [1.0]


# Calls that cannot be differentiated -----------------------------------------------------------

T = tensor([3.0, 4.0])
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "orders below 1": (lambda: fastclip.clip_by_norm(T, 1.0, ord=0.5), "orders below 1"),
    "orders below 1 of lists": (lambda: fastclip.clip_by_global_norm([T], 1.0, ord=0.5), "orders below 1"),
    "comm=": (lambda: fastclip.clip_by_global_norm([T], 1.0, comm=object()), "comm="),
    "complex": (lambda: fastclip.clip_by_norm(T * 1j, 1.0), "complex"),
    "complex entry": (lambda: fastclip.clip_by_global_norm({"a": T * 1j}, 1.0), r"t_list\['a'\].*complex"),
    "complex constant": (lambda: fastclip.clip_by_global_norm([T, torch.ones(1) * 1j], 1.0), r"t_list\[1\]"),
    "sparse": (lambda: fastclip.clip_by_norm(T.to_sparse(), 1.0), "sparse_coo.*to_dense"),
    "sparse entry": (lambda: fastclip.clip_by_block_rms([T, T.to_sparse()], 1.0), r"t_list\[1\].*sparse"),
    "other device": (lambda: fastclip.clip_by_norm(T.to("meta"), 1.0), "meta"),
    "bound of an array": (lambda: fastclip.clip_by_norm(np.ones(2), T[0]), "graph"),
    "bounds of an array": (lambda: fastclip.clip_by_value(np.ones(2), 0.0, T), "graph"),
    "bound of arrays": (
        lambda: fastclip.clip_by_global_norm({"w": np.ones(2)}, T[0]),
        r"t_list\['w'\].*graph",
    ),
    "threshold of arrays": (lambda: fastclip.clip_by_block_rms([None, np.ones(2)], T[0]), r"\[1\].*graph"),
    "parameters of arrays": (lambda: fastclip.adaptive_clip([T], [np.ones(2)]), r"grads\[0\].*graph"),
    "an array": (lambda: fastclip.clip_by_global_norm(T, 1.0), "t_list"),
    "a generator": (lambda: fastclip.clip_by_global_norm((t for t in [T]), 1.0), "generator"),
    "integers": (lambda: fastclip.clip_by_value(torch.arange(2), T[0], 1), "whole numbers"),
    "functional grad": (lambda: torch.func.grad(lambda t: fastclip.clip_by_norm(t, 1.0).sum())(T), "t is"),
    "text": (lambda: fastclip.clip_by_value(T, "a", 1.0), "clip_value_min"),
    "slices of parameters": (
        lambda: fastclip.adaptive_clip(
            [T[:, None]], [IndexedSlices(np.ones((2, 1)), [0, 1])._with_values(T[:, None])]
        ),
        r"grads\[0\] is an IndexedSlices",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_calls_that_cannot_be_differentiated_raise(name: str) -> None:
    call, message = REFUSED[name]
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: fastclip.clip_by_norm(T, tensor(math.nan)),
        lambda: fastclip.clip_by_norm(T, 1.0, axes=[5]),
        lambda: fastclip.clip_by_norm(T, torch.ones(3)),
        lambda: fastclip.clip_by_global_norm([T], -1.0),
        lambda: fastclip.clip_by_global_norm([T], T),
        lambda: fastclip.clip_by_global_norm([T], 1.0, use_norm=tensor(-1.0)),
        lambda: fastclip.adaptive_clip([T], [T[:1]]),
        lambda: fastclip.adaptive_clip([T], [T, T]),
    ],
)
def test_arguments_are_checked(call: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r".+ (is|has|holds|must) .+"):
        call()


def test_axes_are_read_once() -> None:
    t = tensor([[3.0, 4.0], [0.3, 0.4]])
    fastclip.clip_by_norm(t, 1.0, axes=(axis for axis in [1])).sum().backward()  # type: ignore[arg-type]
    np.testing.assert_allclose(t.grad.numpy(), [[0.2 * (1 - 0.6 * 1.4), 0.2 * (1 - 0.8 * 1.4)], [1, 1]])


def test_containers_that_contain_themselves_are_refused() -> None:
    container: list[Any] = [T]
    container.append(container)
    with pytest.raises(ValueError, match="nested too deeply"):
        fastclip.clip_by_global_norm(container, 1.0)


def test_autograd_and_torch_do_not_differentiate_one_call() -> None:
    autograd = pytest.importorskip("autograd")
    with pytest.raises(TypeError, match=r"t_list\[1\]"):
        autograd.grad(lambda t: fastclip.clip_by_global_norm([t, T], 1.0)[0][0].sum())(np.ones(2))


# What is kept for the backward pass ------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["clip_by_norm", "clip_by_global_norm", "clip_by_block_rms", "clip_by_value"]
)
def test_tensors_that_are_not_clipped_are_not_kept(name: str) -> None:
    result = UNIT_BOUND[name](tensor([0.3, 0.4, 0.0]))
    assert result.grad_fn.saved_tensors == ()
    result = UNIT_BOUND[name](tensor([3.0, 4.0, 0.0]))
    assert len(result.grad_fn.saved_tensors) > 0


def test_clamping_keeps_no_elements() -> None:
    t = tensor([3.0, 4.0])
    clipped = fastclip.clip_by_value(t, 0.0, 3.5)
    assert [x.dtype for x in clipped.grad_fn.saved_tensors if x is not None] == [torch.bool]
    with torch.no_grad():
        t.zero_()
    clipped.sum().backward()
    assert t.grad.tolist() == [1.0, 0.0]


def test_a_known_norm_keeps_the_factor_alone() -> None:
    clipped, _ = fastclip.clip_by_global_norm([tensor([3.0, 4.0])], 1.0, use_norm=5.0)
    assert [x.shape for x in clipped[0].grad_fn.saved_tensors] == [torch.Size([])]


@pytest.mark.parametrize(
    "clip",
    [
        lambda t: fastclip.clip_by_norm(t, 1.0),
        lambda t: fastclip.clip_by_global_norm([t], 1.0)[0][0],
        lambda t: fastclip.adaptive_clip([t * 2], [t])[0],
    ],
)
def test_writing_to_a_tensor_that_the_backward_pass_needs_is_an_error(clip: Callable[[Any], Any]) -> None:
    leaf = tensor([3.0, 4.0])
    t = leaf * 1.0
    clipped = clip(t)
    t.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        clipped.sum().backward()


def test_writing_to_the_result_is_differentiated() -> None:
    t = tensor([3.0, 4.0])
    clipped = fastclip.clip_by_norm(t, 1.0)
    clipped.mul_(2.0)
    [gradient] = torch.autograd.grad(clipped[0], t)
    np.testing.assert_allclose(gradient.numpy(), [2 * 0.2 * 0.64, -2 * 0.2 * 0.48], rtol=1e-14)
    assert t.tolist() == [3.0, 4.0]


def test_the_graph_is_freed_by_the_backward_pass() -> None:
    t = tensor([3.0, 4.0])
    clipped = fastclip.clip_by_norm(t, 1.0).sum()
    clipped.backward(retain_graph=True)
    first = t.grad.clone()
    clipped.backward()
    assert torch.equal(t.grad, 2 * first)
    with pytest.raises(RuntimeError, match="second time"):
        clipped.backward()


def test_hooks_of_saved_tensors_are_called() -> None:
    packed: list[Any] = []

    def pack(x: Any) -> Any:
        packed.append(x)
        return x

    t = tensor([3.0, 4.0])
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        clipped = fastclip.clip_by_norm(t, 1.0)
    assert any(x.shape == t.shape for x in packed)
    clipped.sum().backward()
    assert t.grad is not None


def test_results_are_freed_without_the_cycle_collector() -> None:
    gc.disable()
    try:
        for function in (
            lambda t: fastclip.clip_by_norm(t, 1.0),
            lambda t: fastclip.clip_by_value(t, 0.0, 1.0),
        ):
            result = function(tensor([3.0, 4.0]))
            reference = weakref.ref(result)
            del result
            assert reference() is None
    finally:
        gc.enable()


# Kinds of tensors and modes --------------------------------------------------------------------


def test_functions_of_subclasses_are_not_called_on_their_tensors() -> None:
    calls: list[str] = []

    class Logged(torch.Tensor):  # type: ignore[misc]
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            calls.append(str(func))
            return super().__torch_function__(func, types, args, kwargs or {})

    t = torch.tensor([3.0, 4.0]).as_subclass(Logged).requires_grad_()
    calls.clear()
    clipped = fastclip.clip_by_norm(t, 1.0)
    assert type(clipped) is torch.Tensor
    # Whether it requires grad is asked for, and nothing else.
    assert all("getset_descriptor" in call for call in calls)
    clipped[0].backward()
    np.testing.assert_allclose(t.grad.as_subclass(torch.Tensor).numpy(), [0.128, -0.096], rtol=1e-6)


def test_parameters_of_a_module() -> None:
    model = torch.nn.Linear(3, 2)
    clipped, _ = fastclip.clip_by_global_norm(list(model.parameters()), 0.1)
    assert all(type(t) is torch.Tensor and t.requires_grad for t in clipped)
    sum(t.sum() for t in clipped).backward()
    assert model.weight.grad.shape == (2, 3)


def test_modules_are_imported_only_for_tensors_that_require_grad() -> None:
    fresh_python.run(
        """
        import sys
        import numpy as np
        import fastclip
        fastclip.clip_by_norm(np.ones(2), 1.0)
        assert "torch" not in sys.modules
        import torch
        fastclip.clip_by_norm(np.ones(2), 1.0)
        fastclip.clip_by_global_norm([np.ones(2)], 1.0)
        assert "fastclip._autodiff.torch_rules" not in sys.modules
        assert fastclip.clip_by_norm(torch.ones(2, requires_grad=True), 1.0).requires_grad
        assert "fastclip._autodiff.torch_rules" in sys.modules
        assert "autograd" not in sys.modules
        """
    )
