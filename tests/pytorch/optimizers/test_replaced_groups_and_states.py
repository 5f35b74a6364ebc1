"""Frameworks that replace parameters, groups and states, or make an optimizer for each tensor."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from optimizer_pairs import (  # noqa: E402
    NAMES,
    TORCH_NAMES,
    WITH_STATES,
    assert_unchanged,
    mine,
    parameters,
    same_bits,
    set_gradients,
    snapshot,
    tensors_of,
    theirs,
    values,
)

pytestmark = pytest.mark.interop("torch")


def assert_close(own: Any, other: Any) -> None:
    for parameter, wanted in zip(own, other, strict=True):
        torch.testing.assert_close(parameter, wanted, rtol=1e-6, atol=1e-6)


# Replaced between steps ------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_params_that_are_swapped_around_a_step(name: str) -> None:
    # DeepSpeed's ZeRO: a group holds a flat partition for the time of the step, and nothing afterwards.
    own, other = parameters(), parameters()
    flat = [torch.nn.Parameter(parameter.detach().flatten().clone()) for parameter in own]
    optimizer = mine(name, [{"params": [parameter]} for parameter in own], max_norm=1.0, **WITH_STATES[name])
    reference = mine(name, other, max_norm=1.0, **WITH_STATES[name])
    for group in optimizer.param_groups:
        group["params"] = []
    for step in range(4):
        set_gradients(other, step)
        for part, parameter in zip(flat, other, strict=True):
            part.grad = parameter.grad.flatten()
        for group, part in zip(optimizer.param_groups, flat, strict=True):
            group["params"] = [part]
        optimizer.step()
        for group in optimizer.param_groups:
            group["params"] = []
        reference.step()
        assert optimizer.last_norm == pytest.approx(reference.last_norm, rel=1e-14)
    assert_close([part.view(p.shape) for part, p in zip(flat, other, strict=True)], other)
    assert len(optimizer.state) >= len(flat)


@pytest.mark.parametrize("name", NAMES)
def test_data_of_parameters_that_is_swapped_around_a_step(name: str) -> None:
    # ZeRO-3: parameters have no memory between steps.
    own, other = parameters(), parameters()
    optimizer, reference = mine(name, own, **WITH_STATES[name]), mine(name, other, **WITH_STATES[name])
    data = [parameter.data for parameter in own]
    for step in range(4):
        for parameter, tensor in zip(own, data, strict=True):
            parameter.data = tensor
        set_gradients(own, step)
        set_gradients(other, step)
        optimizer.step()
        reference.step()
        for parameter in own:
            parameter.grad = None
            parameter.data = torch.empty(0)
    assert all(same_bits(*pair) for pair in zip(data, other, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_groups_and_states_that_are_replaced(name: str) -> None:
    own, other = parameters(), parameters()
    optimizer, reference = (
        mine(name, own, max_norm=1.0, **WITH_STATES[name]),
        mine(name, other, max_norm=1.0, **WITH_STATES[name]),
    )
    for step in range(4):
        set_gradients(own, step)
        set_gradients(other, step)
        optimizer.step()
        reference.step()
        # New objects with the same content, as Accelerate and Megatron set them.
        optimizer.param_groups = [dict(group) for group in optimizer.param_groups]
        state: Any = defaultdict(dict)
        for parameter, values_ in optimizer.state.items():
            state[parameter] = {key: value.clone() for key, value in values_.items()}
        optimizer.state = state if step % 2 else dict(state)
    assert all(same_bits(*pair) for pair in zip(snapshot(optimizer), snapshot(reference), strict=True))


@pytest.mark.parametrize("name", TORCH_NAMES)
def test_tensors_of_states_that_are_replaced_are_used(name: str) -> None:
    own, other = parameters(), parameters()
    options = WITH_STATES[name]
    optimizer, reference = mine(name, own, **options), theirs(name, other, foreach=False, **options)
    for step in range(5):
        set_gradients(own, step)
        set_gradients(other, step)
        optimizer.step()
        reference.step()
        for stepped in (optimizer, reference):
            for parameter in tensors_of(stepped):
                state = stepped.state[parameter]
                for key in list(state):
                    if key == "step":
                        state[key] = torch.tensor(float(step + 10))
                    elif state[key] is not None:
                        state[key] = state[key] * 0.5
    assert_close(own, other)


@pytest.mark.parametrize("name", TORCH_NAMES)
def test_states_that_are_cleared_begin_anew(name: str) -> None:
    own, other = parameters(), parameters()
    options = WITH_STATES[name]
    if name == "Adagrad":
        # PyTorch creates its states in the constructor, and fails without them.
        options = {"initial_accumulator_value": 0.3}
    optimizer, reference = mine(name, own, **options), theirs(name, other, foreach=False, **options)
    for step in range(6):
        set_gradients(own, step)
        set_gradients(other, step)
        if step == 3:
            optimizer.state.clear()
            reference = theirs(name, other, foreach=False, **options)
        optimizer.step()
        reference.step()
    assert_close(own, other)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_that_are_exchanged_take_their_states_with_them(name: str) -> None:
    # As torch.nn.utils.swap and reset_optimizer recipes do.
    own = parameters()
    optimizer = mine(name, own, **WITH_STATES[name])
    set_gradients(own, 0)
    optimizer.step()
    fresh = [torch.nn.Parameter(parameter.detach().clone()) for parameter in own]
    moved = mine(name, fresh, **WITH_STATES[name])
    for old, new in zip(own, fresh, strict=True):
        moved.state[new] = {key: value.clone() for key, value in optimizer.state[old].items()}
    set_gradients(own, 1)
    set_gradients(fresh, 1)
    optimizer.step()
    moved.step()
    assert all(same_bits(*pair) for pair in zip(snapshot(optimizer), snapshot(moved), strict=True))


def test_momentum_that_is_turned_on_later_begins_at_its_first_step() -> None:
    own, other = parameters(), parameters()
    optimizer, reference = mine("SGD", own, lr=0.1), theirs("SGD", other, lr=0.1, foreach=False)
    for step in range(6):
        for stepped in (optimizer, reference):
            stepped.param_groups[0]["momentum"] = 0.9 if step >= 2 else 0.0
            stepped.param_groups[0]["dampening"] = 0.5
        set_gradients(own, step)
        set_gradients(other, step)
        optimizer.step()
        reference.step()
    assert_close(own, other)


def test_amsgrad_that_is_turned_on_later_is_refused_or_begins_with_zeros() -> None:
    # PyTorch fails where a state has no largest second moment; here it begins with 0, as a new one does.
    params = parameters()
    optimizer = mine("AdamW", params)
    set_gradients(params, 0)
    optimizer.step()
    optimizer.param_groups[0]["amsgrad"] = True
    set_gradients(params, 1)
    optimizer.step()
    for parameter in params:
        state = optimizer.state[parameter]
        assert torch.equal(state["max_exp_avg_sq"], state["exp_avg_sq"])
        assert state["step"].item() == 2.0


# An optimizer for each tensor --------------------------------------------------------------------


class OffloadOptimizer:
    """The steps of torchao's `CPUOffloadOptimizer`: an optimizer for each tensor, which is given the keys of
    its group, and whose parameter is a copy.
    """

    def __init__(self, params: list[dict[str, Any]], class_: Callable[..., Any], **options: Any) -> None:
        self.param_groups = params
        self.copies: dict[Any, Any] = {}
        self.optimizers: dict[Any, Any] = {}
        for group in params:
            group = dict(group)
            for parameter in group.pop("params"):
                host = torch.empty_like(parameter, requires_grad=True)
                host.data.copy_(parameter.data)
                self.copies[parameter] = host
                self.optimizers[parameter] = class_([{"params": host, **group}], **options)

    def step(self) -> None:
        for parameter, optimizer in self.optimizers.items():
            host = self.copies[parameter]
            host.grad = parameter.grad.clone()
            optimizer.step()
            parameter.data.copy_(host.data)
            host.grad = None

    def state_dict(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer in self.optimizers.values()]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for optimizer, state in zip(self.optimizers.values(), states, strict=True):
            optimizer.load_state_dict(state)


@pytest.mark.parametrize("name", NAMES)
def test_one_optimizer_for_each_tensor_with_keys_that_nobody_knows(name: str) -> None:
    def groups(params: list[Any]) -> list[dict[str, Any]]:
        return [
            {"params": params[:2], "lr": 0.02, "name": "first", "tags": {"a": object()}},
            {"params": params[2:], "initial_lr": 0.5, "weight_decay": 0.1},
        ]

    def class_of(make: Callable[..., Any]) -> Callable[..., Any]:
        return lambda params, **options: make(name, params, **options)

    own, other = parameters(), parameters()
    options = WITH_STATES[name]
    offloaded = OffloadOptimizer(groups(own), class_of(mine), **options)
    reference = OffloadOptimizer(groups(other), class_of(theirs), **options)
    for step in range(6):
        if step == 3:
            states = offloaded.state_dict()
            offloaded = OffloadOptimizer(groups(own), class_of(mine), **options)
            offloaded.load_state_dict(copy.deepcopy(states))
        set_gradients(own, step)
        set_gradients(other, step)
        offloaded.step()
        reference.step()
    assert_close(own, other)
    group = next(iter(offloaded.optimizers.values())).param_groups[0]
    assert group["name"] == "first"
    assert group["lr"] == 0.02


@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_in_each_accumulation_hook(name: str) -> None:
    # PyTorch's recipe of an optimizer step in the backward pass.
    def model() -> Any:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))

    models = []
    for make in (mine, theirs):
        trained = model()
        optimizers = {
            parameter: make(name, [parameter], **WITH_STATES[name]) for parameter in trained.parameters()
        }

        def hook(parameter: Any, optimizers: dict[Any, Any] = optimizers) -> None:
            optimizers[parameter].step()
            optimizers[parameter].zero_grad()

        for parameter in trained.parameters():
            parameter.register_post_accumulate_grad_hook(hook)
        for step in range(5):
            inputs = values([(6, 4)], seed=step)[0]
            trained(inputs).square().mean().backward()
        assert all(parameter.grad is None for parameter in trained.parameters())
        models.append(list(trained.parameters()))
    assert_close(*models)


@pytest.mark.parametrize("name", NAMES)
def test_zero_grad_and_gradients_that_are_added_up(name: str) -> None:
    results = []
    for make in (mine, theirs):
        torch.manual_seed(0)
        model = torch.nn.Linear(5, 3)
        optimizer = make(name, model.parameters(), **WITH_STATES[name])
        for step in range(6):
            inputs = values([(4, 5)], seed=step)[0]
            (model(inputs).square().mean() / 2).backward()
            if step % 2:
                optimizer.step()
                optimizer.zero_grad(set_to_none=step % 4 == 1)
        results.append(list(model.parameters()))
    assert_close(*results)


# Wrong states ------------------------------------------------------------------------------------


WRONG: dict[str, tuple[str, str, Callable[[Any], Any]]] = {
    "longer": ("AdamW", "exp_avg", lambda _: torch.zeros(7)),
    "shorter": ("AdamW", "exp_avg_sq", lambda _: torch.zeros(5)),
    "of more dimensions": ("AdamW", "exp_avg", lambda _: torch.zeros(1, 6)),
    "a number": ("Lion", "exp_avg", lambda _: torch.zeros(())),
    "empty": ("SGD", "momentum_buffer", lambda _: torch.zeros(0)),
    "of another shape": ("Adagrad", "sum", lambda _: torch.zeros(6, 6)),
    "wider": ("AdamW", "exp_avg", lambda _: torch.zeros(6, dtype=torch.float64)),
    "of integers": ("AdamW", "exp_avg", lambda _: torch.zeros(6, dtype=torch.int32)),
    "of booleans": ("AdamW", "exp_avg", lambda _: torch.zeros(6, dtype=torch.bool)),
    "complex": ("Adam", "exp_avg", lambda _: torch.zeros(6, dtype=torch.complex64)),
    "None": ("AdamW", "exp_avg", lambda _: None),
    "a list": ("AdamW", "exp_avg", lambda _: [0.0] * 6),
    "a step count of two": ("AdamW", "step", lambda _: torch.zeros(2)),
    "a step count of bfloat16": ("AdamW", "step", lambda _: torch.zeros((), dtype=torch.bfloat16)),
    "a step count that is None": ("Adagrad", "step", lambda _: None),
    "a step count that is text": ("AdamW", "step", lambda _: "3"),
}


@pytest.mark.parametrize("max_norm", [None, 1.0], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("case", WRONG)
def test_wrong_states_are_refused_before_anything_is_written(case: str, max_norm: float | None) -> None:
    name, key, make = WRONG[case]
    params = parameters([(6,), (6,)])
    optimizer = mine(name, params, max_norm=max_norm, **WITH_STATES[name])
    set_gradients(params, 0)
    optimizer.step()
    before = [parameter.detach().clone() for parameter in params]
    kept = {key_: value.clone() for key_, value in optimizer.state[params[0]].items()}
    right = optimizer.state[params[1]][key]
    optimizer.state[params[1]][key] = make(right)
    with pytest.raises((ValueError, TypeError, RuntimeError)) as caught:
        optimizer.step()
    assert str(caught.value) != ""
    if max_norm is not None or case not in (
        "of integers",
        "of booleans",
        "complex",
        "a step count that is text",
    ):
        # PyTorch's own step, to which the others go, has written the first parameter.
        assert all(same_bits(*pair) for pair in zip(params, before, strict=True))
        for key_, value in kept.items():
            assert same_bits(optimizer.state[params[0]][key_], value)
    optimizer.state[params[1]][key] = right
    optimizer.step()


@pytest.mark.parametrize("name", NAMES)
def test_moments_of_narrower_types_are_taken(name: str) -> None:
    # As a checkpoint that was converted has them.
    for dtype in (torch.bfloat16, torch.float16):
        params = parameters([(6,)])
        optimizer = mine(name, params, max_norm=1.0, **WITH_STATES[name])
        set_gradients(params, 0)
        optimizer.step()
        state = optimizer.state[params[0]]
        for key in state:
            if key != "step":
                state[key] = state[key].to(dtype)
        set_gradients(params, 1)
        optimizer.step()
        assert all(value.dtype is dtype for key, value in state.items() if key != "step")


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.int64], ids=str)
def test_step_counts_of_other_types_are_counted(dtype: Any) -> None:
    own, other = parameters(), parameters()
    optimizer, reference = mine("AdamW", own), mine("AdamW", other)
    for step in range(3):
        set_gradients(own, step)
        set_gradients(other, step)
        for parameter in own:
            state = optimizer.state[parameter]
            if state:
                state["step"] = state["step"].to(dtype)
        optimizer.step()
        reference.step()
    assert all(same_bits(*pair) for pair in zip(own, other, strict=True))
    assert {state["step"].dtype for state in optimizer.state.values()} == {dtype}
    assert {state["step"].item() for state in optimizer.state.values()} == {3}


def test_wrong_hyper_parameters_are_refused_before_anything_is_written() -> None:
    params = parameters()
    optimizer = mine("AdamW", params, max_norm=1.0)
    set_gradients(params, 0)
    optimizer.step()
    before = snapshot(optimizer)
    for key, value in (
        ("lr", None),
        ("lr", [0.1]),
        ("lr", "fast"),
        ("lr", torch.tensor([0.1, 0.2])),
        ("lr", 1j),
        ("betas", (0.9,)),
        ("betas", (0.9, None)),
        ("eps", "small"),
        ("shared_max_norm", "x"),
        ("max_norm", "x"),
    ):
        group = optimizer.param_groups[0]
        optimizer.param_groups[0] = {**group, key: value}
        with pytest.raises((TypeError, ValueError)):
            optimizer.step()
        optimizer.param_groups[0] = group
        assert_unchanged(optimizer, before)
    for key in ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize"):
        group = optimizer.param_groups[0]
        optimizer.param_groups[0] = {k: v for k, v in group.items() if k != key}
        with pytest.raises(KeyError, match=key):
            optimizer.step()
        optimizer.param_groups[0] = group
        assert_unchanged(optimizer, before)
    optimizer.step()


def test_a_parameter_whose_shape_has_changed_is_refused() -> None:
    params = parameters([(6,), (6,)])
    optimizer = mine("AdamW", params, max_norm=1.0)
    set_gradients(params, 0)
    optimizer.step()
    before = params[0].detach().clone()
    params[1].data = torch.zeros(7)
    with pytest.raises(ValueError, match=r"parameters\[1\].*shape"):
        optimizer.step()
    params[1].grad = torch.zeros(7)
    with pytest.raises(ValueError, match=r"a slot of parameters\[1\]"):
        optimizer.step()
    assert same_bits(params[0], before)


def test_a_model_that_was_converted_to_another_type_goes_on() -> None:
    params = parameters([(600,)])
    optimizer = mine("AdamW", params, lr=0.01, max_norm=1.0)
    set_gradients(params, 0)
    optimizer.step()
    params[0].data = params[0].data.to(torch.bfloat16)
    set_gradients(params, 1)
    optimizer.step()
    # The moments stay float32, which is wider.
    assert params[0].dtype is torch.bfloat16
    assert optimizer.state[params[0]]["exp_avg"].dtype is torch.float32
