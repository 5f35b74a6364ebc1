"""Low-precision copies of parameters, written in the pass of the update."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from optimizer_pairs import (  # noqa: E402
    NAMES,
    WITH_STATES,
    mine,
    parameters,
    same_bits,
    set_gradients,
    snapshot,
    values,
)

import fastclip  # noqa: E402
import fastclip.torch  # noqa: E402

pytestmark = pytest.mark.interop("torch")

NARROWER = [
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.float64, torch.float32),
    (torch.float64, torch.bfloat16),
    (torch.float64, torch.float16),
]


@pytest.mark.parametrize(("dtype", "narrow"), NARROWER, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_copies_are_rounded_to_nearest_in_each_step(name: str, dtype: Any, narrow: Any) -> None:
    params, plain_params = parameters(dtype=dtype), parameters(dtype=dtype)
    optimizer = mine(name, params, lr=0.01, max_norm=1.0, **WITH_STATES[name])
    plain = mine(name, plain_params, lr=0.01, max_norm=1.0, **WITH_STATES[name])
    # The second parameter has no copy.
    copies = {index: torch.empty_like(params[index], dtype=narrow) for index in (0, 2, 3, 4)}
    for index, copy in copies.items():
        optimizer.set_low_precision_copy(params[index], copy)
        assert same_bits(copy, params[index].detach().to(narrow))
    for step in range(5):
        set_gradients(params, step)
        set_gradients(plain_params, step)
        versions = [copy._version for copy in copies.values()]
        optimizer.step()
        plain.step()
        for index, copy in copies.items():
            assert same_bits(copy, params[index].detach().to(narrow))
        assert [copy._version for copy in copies.values()] == [version + 1 for version in versions]
    assert all(same_bits(*pair) for pair in zip(snapshot(optimizer), snapshot(plain), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_copies_are_rounded_to_nearest_where_moments_are_rounded_stochastically(name: str) -> None:
    params = parameters([(10_000,)])
    optimizer = mine(name, params, lr=0.01, state_dtype=torch.bfloat16, **WITH_STATES[name])
    copy = torch.empty_like(params[0], dtype=torch.bfloat16)
    optimizer.set_low_precision_copy(params[0], copy)
    for step in range(3):
        set_gradients(params, step)
        optimizer.step()
        assert same_bits(copy, params[0].detach().to(torch.bfloat16))


def test_a_model_computes_in_bfloat16_and_keeps_float32_weights() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)).to(
        torch.bfloat16
    )
    masters = [torch.nn.Parameter(parameter.detach().float()) for parameter in model.parameters()]
    optimizer = mine("AdamW", masters, lr=1e-2, max_norm=1.0)
    for master, parameter in zip(masters, model.parameters(), strict=True):
        optimizer.set_low_precision_copy(master, parameter)
        master.grad_dtype = torch.bfloat16
    inputs = torch.randn(64, 8).to(torch.bfloat16)
    targets = inputs.float().sum(dim=1, keepdim=True).sin()
    losses = []
    for _ in range(150):
        loss = torch.nn.functional.mse_loss(model(inputs).float(), targets)
        for parameter in model.parameters():
            parameter.grad = None
        loss.backward()
        for master, parameter in zip(masters, model.parameters(), strict=True):
            master.grad = parameter.grad
        optimizer.step()
        losses.append(loss.item())
        for master, parameter in zip(masters, model.parameters(), strict=True):
            assert same_bits(parameter, master.detach().to(torch.bfloat16))
            assert parameter.requires_grad
    assert losses[-1] < 0.3 * losses[0]


def test_copies_of_any_layout() -> None:
    memory = torch.zeros(10, 40, dtype=torch.bfloat16)
    copies = [memory[::2, ::4], torch.zeros(10, 5, dtype=torch.bfloat16).T]
    params = parameters([(5, 10), (5, 10)])
    optimizer = mine("AdamW", params, lr=0.1)
    for parameter, copy in zip(params, copies, strict=True):
        optimizer.set_low_precision_copy(parameter, copy)
    set_gradients(params, 0)
    optimizer.step()
    for parameter, copy in zip(params, copies, strict=True):
        assert same_bits(copy.contiguous(), parameter.detach().to(torch.bfloat16))
    is_copy = torch.zeros(10, 40, dtype=torch.bool)
    is_copy[::2, ::4] = True
    assert not bool(memory[~is_copy].any())


def test_copies_stay_where_no_update_is_made() -> None:
    params = parameters([(5,), (5,)])
    optimizer = mine("AdamW", params, lr=0.1, on_nonfinite="skip", skip_above=100.0)
    copies = [torch.empty(5, dtype=torch.bfloat16) for _ in params]
    for parameter, copy in zip(params, copies, strict=True):
        optimizer.set_low_precision_copy(parameter, copy)
    before = [copy.clone() for copy in copies]
    versions = [copy._version for copy in copies]
    set_gradients(params, 0)
    params[1].grad[0] = float("nan")
    optimizer.step()
    params[1].grad[0] = 1e6
    optimizer.step()
    optimizer.on_nonfinite = "raise"
    params[1].grad[0] = float("inf")
    with pytest.raises(fastclip.NonFiniteError):
        optimizer.step()
    assert all(same_bits(*pair) for pair in zip(copies, before, strict=True))
    # A parameter without a gradient is not updated, and its copy is not written.
    params[1].grad = None
    optimizer.step()
    assert not same_bits(copies[0], before[0])
    assert same_bits(copies[1], before[1])
    assert [copy._version for copy in copies] == [versions[0] + 1, versions[1]]


def test_a_copy_is_replaced_and_removed() -> None:
    params = parameters([(5,)])
    optimizer = mine("SGD", params, lr=1.0)
    first, second = (torch.empty(5, dtype=torch.bfloat16) for _ in range(2))
    set_gradients(params, 0)
    optimizer.set_low_precision_copy(params[0], first)
    optimizer.set_low_precision_copy(params[0], second)
    before = first.clone()
    optimizer.step()
    assert same_bits(first, before)
    assert same_bits(second, params[0].detach().to(torch.bfloat16))
    optimizer.set_low_precision_copy(params[0], None)
    optimizer.set_low_precision_copy(params[0], None)
    before = second.clone()
    optimizer.step()
    assert same_bits(second, before)


def test_copies_that_are_refused() -> None:
    params = parameters([(5,)])
    optimizer = mine("SGD", params)
    narrow = torch.zeros(5, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="none of this optimizer"):
        optimizer.set_low_precision_copy(torch.nn.Parameter(torch.zeros(5)), narrow)
    for dtype in (torch.float32, torch.float64, torch.int8, torch.complex64):
        with pytest.raises(TypeError, match="copy is "):
            optimizer.set_low_precision_copy(params[0], torch.zeros(5, dtype=dtype))
    with pytest.raises(TypeError, match="copy is list"):
        optimizer.set_low_precision_copy(params[0], [0.0] * 5)
    for shape in ((4,), (5, 1), ()):
        with pytest.raises(ValueError, match="shape"):
            optimizer.set_low_precision_copy(params[0], torch.zeros(shape, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="on meta"):
        optimizer.set_low_precision_copy(params[0], narrow.to("meta"))


SHARING = ["another parameter", "its own parameter", "a copy of another parameter", "a moment"]


@pytest.mark.parametrize("what", SHARING)
def test_a_copy_that_shares_memory_is_refused_before_anything_is_written(what: str) -> None:
    params = parameters([(8,), (8,)])
    optimizer = mine("AdamW", params, lr=1.0)
    set_gradients(params, 0)
    optimizer.step()
    narrow = torch.zeros(8, dtype=torch.bfloat16)
    memory = {
        "another parameter": params[1].detach(),
        "its own parameter": params[0].detach(),
        "a moment": optimizer.state[params[1]]["exp_avg"],
    }
    copies = [memory[what].view(torch.bfloat16)[4:12], None] if what in memory else [narrow, narrow[:]]
    for parameter, copy in zip(params, copies, strict=True):
        if copy is not None:
            # Setting a copy writes it, which is not the subject here.
            optimizer._copies[parameter] = copy
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=r"share|overlap|memory"):
        optimizer.step()
    assert all(same_bits(*pair) for pair in zip(snapshot(optimizer), before, strict=True))


def test_a_copy_over_the_memory_of_a_gradient_is_written_after_it_was_read() -> None:
    own, other = parameters([(8,), (8,)]), parameters([(8,), (8,)])
    optimizer, plain = mine("SGD", own, lr=0.5), mine("SGD", other, lr=0.5)
    set_gradients(own, 0)
    set_gradients(other, 0)
    copy = own[1].grad.view(torch.bfloat16)[4:12]
    optimizer._copies[own[0]] = copy
    optimizer.step()
    plain.step()
    assert all(same_bits(*pair) for pair in zip(own, other, strict=True))
    assert same_bits(copy, own[0].detach().to(torch.bfloat16))


def test_a_copy_of_float32_values_in_double_precision_training() -> None:
    params = [torch.nn.Parameter(values([(1000,)], torch.float64)[0])]
    optimizer = mine("Lion", params, lr=0.3)
    copy = torch.empty(1000)
    optimizer.set_low_precision_copy(params[0], copy)
    set_gradients(params, 0)
    optimizer.step()
    assert same_bits(copy, params[0].detach().float())
