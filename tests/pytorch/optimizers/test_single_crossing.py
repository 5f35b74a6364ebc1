"""No toy: each step is one call of the extension module, and none of the code of PyTorch's optimizers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from optimizer_pairs import (  # noqa: E402
    NAMES,
    TORCH_NAMES,
    WITH_STATES,
    mine,
    parameters,
    same_bits,
    set_gradients,
    theirs,
    values,
)
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

import fastclip._core  # noqa: E402

pytestmark = pytest.mark.interop("torch")


@pytest.fixture
def crossings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns the names of the functions of the extension module that are called, in order."""
    calls: list[str] = []

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            return function(*arguments, **options)

        return call

    for name, value in vars(fastclip._core).items():
        if callable(value) and not isinstance(value, type) and not name.startswith("__"):
            monkeypatch.setattr(fastclip._core, name, counted(name, value))
    return calls


@pytest.fixture
def _without_torchs_optimizers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the code of PyTorch's steps fail."""

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("code of PyTorch's optimizers has run")

    for name in dir(torch):
        if name.startswith(("_foreach_", "_fused_")):
            monkeypatch.setattr(torch, name, forbidden)
    for name in ("adam", "adamw", "sgd", "adagrad"):
        module = sys.modules[f"torch.optim.{name}"]
        monkeypatch.setattr(torch.optim._functional, name, forbidden)
        for part in dir(module):
            if part.startswith(("_single_tensor", "_multi_tensor", "_fused_")) or part == name:
                monkeypatch.setattr(module, part, forbidden)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", forbidden)


def several_groups(name: str, params: list[Any]) -> list[dict[str, Any]]:
    """Returns groups that differ in hyper-parameters, bounds and, where there are two, in their rules."""
    groups: list[dict[str, Any]] = [
        {"params": params[:1]},
        {"params": params[1:3], "lr": 0.5},
        {"params": params[3:4], "max_norm": 2.0},
        {"params": params[4:], "max_norm": None, "weight_decay": 0.1},
    ]
    if name in ("AdamW", "Adam"):
        groups[1]["amsgrad"] = not WITH_STATES[name].get("amsgrad", False)
    if name == "SGD":
        groups[1]["momentum"] = 0.0
    return groups


@pytest.mark.usefixtures("_without_torchs_optimizers")
@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_step_over_several_groups_and_rules_is_one_crossing(
    name: str, state_dtype: Any, crossings: list[str]
) -> None:
    params = parameters()
    optimizer = mine(
        name,
        several_groups(name, params),
        lr=0.1,
        max_norm=1.0,
        skip_above=1e9,
        on_nonfinite="raise",
        state_dtype=state_dtype,
        **WITH_STATES[name],
    )
    for step in range(5):
        # The fourth step is that of parameters of which some have no gradient.
        set_gradients(params, step, lambda index, step=step: step != 3 or index % 2 == 0)  # type: ignore[misc]
        crossings.clear()
        optimizer.step()
        assert crossings == ["torch_step"]


@pytest.mark.parametrize("name", NAMES)
def test_the_tensors_of_a_step_are_dispatched_to_no_operation_of_torch(name: str) -> None:
    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            operations.append(str(func))
            return func(*args, **(kwargs or {}))

    operations: list[str] = []
    params = parameters()
    optimizer = mine(name, several_groups(name, params), lr=0.1, max_norm=1.0, **WITH_STATES[name])
    for step in range(3):
        set_gradients(params, step)
        operations.clear()
        with Recorder():
            optimizer.step()
        # The first step creates the states.
        assert step == 0 or operations == []


@pytest.mark.parametrize("name", TORCH_NAMES)
def test_torchs_own_steps_trip_the_traps(name: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("_without_torchs_optimizers")
    for way in ({"foreach": False}, {"foreach": True}, {"fused": True}):
        params = parameters()
        set_gradients(params, 0)
        with pytest.raises(AssertionError, match="has run"):
            theirs(name, params, **way).step()


@pytest.mark.parametrize("way", ["foreach", "fused"])
@pytest.mark.parametrize("name", TORCH_NAMES)
@pytest.mark.usefixtures("_without_torchs_optimizers")
def test_foreach_and_fused_are_taken_and_mean_nothing(name: str, way: str, crossings: list[str]) -> None:
    results = []
    for options in ({}, {way: True}, {way: False}):
        params = parameters()
        optimizer = mine(name, params, max_norm=0.5, **options, **WITH_STATES[name])
        assert optimizer.param_groups[0][way] is options.get(way)
        for step in range(3):
            set_gradients(params, step)
            optimizer.step()
        results.append(params)
    assert crossings == ["torch_step"] * 9
    for other in results[1:]:
        assert all(same_bits(*pair) for pair in zip(results[0], other, strict=True))


@pytest.mark.parametrize("max_norm", [None, 1e-3], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_not_written(name: str, max_norm: float | None) -> None:
    params = parameters()
    optimizer = mine(name, params, max_norm=max_norm, maximize=True, weight_decay=0.1, **WITH_STATES[name])
    for step in range(3):
        set_gradients(params, step)
        gradients = [parameter.grad for parameter in params]
        copies = [gradient.clone() for gradient in gradients]
        versions = [gradient._version for gradient in gradients]
        optimizer.step()
        assert all(a.grad is b for a, b in zip(params, gradients, strict=True))
        assert all(same_bits(*pair) for pair in zip(gradients, copies, strict=True))
        assert [gradient._version for gradient in gradients] == versions


@pytest.mark.parametrize("name", NAMES)
def test_versions_of_parameters_increase_by_one_a_step(name: str) -> None:
    params = parameters()
    optimizer = mine(name, several_groups(name, params), max_norm=1.0, **WITH_STATES[name])
    for step in range(4):
        set_gradients(params, step, lambda index, step=step: (index + step) % 2 == 0)  # type: ignore[misc]
        before = [parameter._version for parameter in params]
        optimizer.step()
        counted = [parameter._version - old for parameter, old in zip(params, before, strict=True)]
        assert counted == [int((index + step) % 2 == 0) for index in range(len(params))]


def test_a_graph_that_was_recorded_before_a_step_notices_it() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    loss = parameter.square().sum()
    parameter.grad = torch.ones(3)
    mine("SGD", [parameter], lr=1.0).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_steps_that_are_not_taken_count_as_no_change() -> None:
    params = parameters()
    optimizer = mine("AdamW", params, on_nonfinite="skip")
    set_gradients(params, 0)
    optimizer.step()
    params[1].grad[3] = float("nan")
    before = [parameter._version for parameter in params]
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert [parameter._version for parameter in params] == before


@pytest.mark.parametrize("name", NAMES)
def test_tensors_of_a_state_stay_the_same_objects(name: str) -> None:
    params = parameters()
    optimizer = mine(name, params, **WITH_STATES[name])
    set_gradients(params, 0)
    optimizer.step()
    kept = {
        (index, key): value for index, p in enumerate(params) for key, value in optimizer.state[p].items()
    }
    addresses = {key: value.data_ptr() for key, value in kept.items()}
    set_gradients(params, 1)
    optimizer.step()
    for (index, key), value in kept.items():
        assert optimizer.state[params[index]][key] is value
        assert value.data_ptr() == addresses[index, key]


@pytest.mark.parametrize("name", NAMES)
def test_results_do_not_depend_on_the_number_of_threads(name: str) -> None:
    results = []
    for threads in (1, 2, 5):
        params = [torch.nn.Parameter(tensor) for tensor in values([(300_001,), (70, 90), (5,)])]
        optimizer = mine(name, params, max_norm=0.5, **WITH_STATES[name])
        with fastclip.threads(threads):
            for step in range(2):
                set_gradients(params, step)
                optimizer.step()
        results.append(params)
    for other in results[1:]:
        assert all(same_bits(*pair) for pair in zip(results[0], other, strict=True))
