"""Parameters, gradients and states that share memory, were freed, or belong to no dense tensor."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from optimizer_pairs import (  # noqa: E402
    NAMES,
    WITH_STATES,
    assert_unchanged,
    mine,
    parameters,
    same_bits,
    set_gradients,
    snapshot,
    theirs,
    values,
)

pytestmark = pytest.mark.interop("torch")


def over(*views: Any) -> list[Any]:
    """Returns parameters over views of memory, with gradients."""
    params = [torch.nn.Parameter(view) for view in views]
    set_gradients(params, 0)
    return params


SHARED: dict[str, Callable[[Any], list[Any]]] = {
    "the same memory": lambda memory: over(memory, memory),
    "one element": lambda memory: over(memory[:10], memory[9:20]),
    "other order": lambda memory: over(memory[9:20], memory[:10]),
    "a part": lambda memory: over(memory, memory[7:8]),
    "transposed": lambda memory: over(memory.view(8, 5), memory.view(8, 5).T),
    "columns": lambda memory: over(memory.view(8, 5)[:, :3], memory.view(8, 5)[:, 2:]),
    "another type": lambda memory: over(memory[:10], memory.view(torch.bfloat16)[15:30]),
    "another pair of many": lambda memory: over(*memory.view(10, 4)[:9], memory.view(10, 4)[3]),
}


@pytest.mark.parametrize("case", SHARED)
@pytest.mark.parametrize("name", NAMES)
def test_parameters_that_share_memory_are_refused_before_anything_is_written(name: str, case: str) -> None:
    params = SHARED[case](values([(40,)])[0])
    optimizer = mine(name, params, max_norm=1.0, **WITH_STATES[name])
    before = [parameter.detach().clone() for parameter in params]
    versions = [parameter._version for parameter in params]
    with pytest.raises(ValueError, match=r"parameters\[\d\] shares memory with parameters\[\d\]"):
        optimizer.step()
    assert all(same_bits(*pair) for pair in zip(params, before, strict=True))
    assert [parameter._version for parameter in params] == versions
    for state in optimizer.state.values():
        for key, value in state.items():
            assert key == "sum" or not bool(value.any())


APART: dict[str, Callable[[Any], list[Any]]] = {
    "parts of a flat buffer": lambda memory: over(memory[:10], memory[10:11], memory[11:]),
    "interleaved": lambda memory: over(memory[::2], memory[1::2]),
    "columns": lambda memory: over(memory.view(8, 5)[:, :2], memory.view(8, 5)[:, 2:]),
    "rows and columns": lambda memory: over(memory.view(8, 5)[:4, :2], memory.view(8, 5)[4:]),
}


@pytest.mark.parametrize("case", APART)
@pytest.mark.parametrize("name", NAMES)
def test_parameters_may_lie_in_one_buffer(name: str, case: str) -> None:
    results = []
    for is_apart in (False, True):
        memory = values([(40,)])[0]
        params = APART[case](memory)
        if is_apart:
            params = [torch.nn.Parameter(parameter.detach().clone()) for parameter in params]
        optimizer = mine(name, params, max_norm=1.0, **WITH_STATES[name])
        for step in range(2):
            set_gradients(params, step)
            optimizer.step()
        results.append(params)
    for pair in zip(*results, strict=True):
        assert same_bits(*pair)


def test_a_parameter_that_overlaps_itself_is_refused() -> None:
    for view in (torch.zeros(1).expand(4), torch.zeros(9).as_strided((4, 3), (2, 1))):
        params = over(view)
        params[0].grad = torch.ones(view.shape)
        with pytest.raises(ValueError, match=r"parameters\[0\] overlaps itself"):
            mine("SGD", params).step()


def test_a_parameter_that_is_given_twice_is_refused_in_a_step() -> None:
    parameter = over(torch.zeros(3))[0]
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = mine("SGD", [parameter, parameter])
    with pytest.raises(ValueError, match="may be there once"):
        optimizer.step()
    assert parameter.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("max_norm", [None, 0.5], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_may_be_the_memory_of_parameters(name: str, max_norm: float | None) -> None:
    def aliased() -> list[Any]:
        params = parameters([(6,), (6,)])
        params[0].grad, params[1].grad = params[0].data, params[0].data
        return params

    own = aliased()
    other = parameters([(6,), (6,)])
    gradient = other[0].detach().clone()
    optimizer = mine(name, own, lr=0.1, max_norm=max_norm, **WITH_STATES[name])
    reference = mine(name, other, lr=0.1, max_norm=max_norm, **WITH_STATES[name])
    for parameter in other:
        parameter.grad = gradient.clone()
    optimizer.step()
    reference.step()
    assert all(same_bits(*pair) for pair in zip(own, other, strict=True))


def test_parameters_may_share_a_gradient() -> None:
    params = parameters([(6,), (6,)])
    gradient = torch.ones(6)
    for parameter in params:
        parameter.grad = gradient
    optimizer = mine("SGD", params, lr=1.0, max_norm=1.0)
    before = [parameter.detach().clone() for parameter in params]
    optimizer.step()
    assert optimizer.last_norm == 12**0.5
    for parameter, start in zip(params, before, strict=True):
        torch.testing.assert_close(parameter, start - 12**-0.5)
    assert bool((gradient == 1.0).all())


@pytest.mark.parametrize("other", ["another moment", "its parameter", "another parameter", "a step count"])
def test_states_that_share_memory_are_refused(other: str) -> None:
    params = parameters([(6,), (6,)])
    optimizer = mine("AdamW", params, max_norm=1.0)
    set_gradients(params, 0)
    optimizer.step()
    first, second = (optimizer.state[parameter] for parameter in params)
    if other == "another moment":
        first["exp_avg"] = first["exp_avg_sq"]
    elif other == "its parameter":
        first["exp_avg"] = params[0].data
    elif other == "another parameter":
        first["exp_avg"] = params[1].data
    else:
        first["step"] = second["exp_avg"][3]
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match="shares memory"):
        optimizer.step()
    assert_unchanged(optimizer, before)


def test_step_counts_may_not_be_one_tensor() -> None:
    # Each would be counted up once for each parameter.
    params = parameters([(6,), (6,)])
    optimizer = mine("AdamW", params)
    set_gradients(params, 0)
    optimizer.step()
    optimizer.state[params[1]]["step"] = optimizer.state[params[0]]["step"]
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match="shares memory"):
        optimizer.step()
    assert_unchanged(optimizer, before)


@pytest.mark.parametrize("kind", ["parameter", "gradient", "moment"])
def test_freed_storages_are_refused(kind: str) -> None:
    # FSDP frees storages of parameters by resizing them, and leaves the shapes as they are.
    parameter = torch.nn.Parameter(torch.zeros(3000))
    parameter.grad = torch.ones(3000)
    optimizer = mine("AdamW", [parameter], max_norm=1.0)
    optimizer.step()
    moment = optimizer.state[parameter]["exp_avg"]
    tensors = {"parameter": parameter, "gradient": parameter.grad, "moment": moment}
    tensors[kind].untyped_storage().resize_(0)
    with pytest.raises((RuntimeError, ValueError)):
        optimizer.step()


def test_steps_in_inference_mode() -> None:
    own, other = parameters(), parameters()
    with torch.inference_mode():
        own = [torch.nn.Parameter(parameter.detach().clone()) for parameter in own]
        optimizer = mine("AdamW", own, max_norm=1.0)
        set_gradients(own, 0)
        optimizer.step()
    reference = mine("AdamW", other, max_norm=1.0)
    set_gradients(other, 0)
    reference.step()
    assert all(torch.equal(*pair) for pair in zip(own, other, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_lazy_parameters_are_refused_as_torch_refuses_them(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = torch.nn.LazyLinear(3)
    outcomes = []
    for make in (mine, theirs):
        try:
            optimizer = make(name, layer.parameters())
            optimizer.step()
            outcomes.append("taken")
        except (RuntimeError, ValueError) as error:
            outcomes.append(f"{type(error).__name__}: {error}")
    assert outcomes[0] == outcomes[1]
