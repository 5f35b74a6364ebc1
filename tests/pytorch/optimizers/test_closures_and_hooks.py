"""Closures, hooks before and after steps, profiles, and classes that derive from the optimizers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
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
    snapshot,
    theirs,
)
from torch.optim.optimizer import (  # noqa: E402
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import fastclip.torch  # noqa: E402

pytestmark = pytest.mark.interop("torch")

MAKERS: list[Callable[..., Any]] = [mine, theirs]


def ready(name: str = "SGD", make: Callable[..., Any] = mine, **options: Any) -> Any:
    """Returns an optimizer whose parameters have gradients."""
    params = parameters()
    set_gradients(params, 0)
    return make(name, params, **options)


# Closures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_closure_computes_the_gradients_of_the_step(name: str) -> None:
    results = []
    for make in MAKERS:
        params = parameters()
        optimizer = make(name, params, lr=0.01, **WITH_STATES[name])
        losses = []
        for _ in range(5):

            def closure(optimizer: Any = optimizer, params: list[Any] = params) -> Any:
                optimizer.zero_grad()
                loss = sum(((parameter - 1.0) ** 2).sum() for parameter in params)
                loss.backward()  # type: ignore[union-attr]
                return loss

            with torch.no_grad():
                losses.append(float(optimizer.step(closure)))
        results.append((losses, params))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    for parameter, wanted in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(parameter, wanted, rtol=1e-6, atol=1e-6)


def test_a_closure_runs_once_with_gradients_enabled_and_its_value_is_returned() -> None:
    optimizer = ready()
    calls = []
    value = object()

    def closure() -> object:
        calls.append(torch.is_grad_enabled())
        return value

    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            assert optimizer.step(closure) is value
            assert optimizer.step(closure=closure) is value
            assert optimizer.step() is None
            assert optimizer.step(None) is None
            assert torch.is_grad_enabled() is enabled
    assert calls == [True] * 4


def test_an_error_of_a_closure_leaves_everything_as_it_was() -> None:
    optimizer = ready("AdamW")
    before = snapshot(optimizer)

    def closure() -> None:
        raise KeyError("from the closure")

    with pytest.raises(KeyError, match="from the closure"):
        optimizer.step(closure)
    assert all(same_bits(*pair) for pair in zip(snapshot(optimizer), before, strict=True))
    optimizer.step()


def test_a_closure_may_take_a_step_of_the_same_optimizer() -> None:
    # Two complete steps, one after the other, as in PyTorch.
    results = []
    for make in MAKERS:
        optimizer = ready("AdamW", make)
        optimizer.step(optimizer.step)
        results.append(snapshot(optimizer)[0])
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


def test_a_closure_may_change_groups_and_bounds() -> None:
    optimizer = ready(lr=1.0)
    parameter = optimizer.param_groups[0]["params"][0]
    start = parameter.detach().clone()

    def closure() -> None:
        optimizer.param_groups[0]["lr"] = 0.0
        optimizer.max_norm = 1.0

    optimizer.step(closure)
    assert torch.equal(parameter, start)
    assert optimizer.last_scale < 1.0


# Hooks -----------------------------------------------------------------------------------------


@pytest.fixture
def calls() -> Iterator[list[str]]:
    """Returns a list that global hooks, registered around a test, write into."""
    names: list[str] = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: names.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: names.append("global post")),
    ]
    yield names
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("make", MAKERS)
def test_hooks_are_called_in_torchs_order(make: Callable[..., Any], calls: list[str]) -> None:
    optimizer = ready(make=make)
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre 1"))
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre 2"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    optimizer.step(lambda: calls.append("closure"))
    assert calls == ["global pre", "pre 1", "pre 2", "closure", "post", "global post"]


def test_hooks_that_are_removed_are_not_called(calls: list[str]) -> None:
    optimizer = ready()
    handle = optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    optimizer.step()
    handle.remove()
    calls.clear()
    optimizer.step()
    assert calls == ["global pre", "global post"]


def test_hooks_of_one_optimizer_are_not_called_by_another(calls: list[str]) -> None:
    first, second = ready(), ready()
    first.register_step_pre_hook(lambda *_: calls.append("pre"))
    second.step()
    assert calls == ["global pre", "global post"]


@pytest.mark.parametrize("style", ["step()", "step(f)", "step(closure=f)"])
@pytest.mark.parametrize("name", TORCH_NAMES)
def test_hooks_see_the_arguments_that_they_see_in_torch(name: str, style: str) -> None:
    seen = []
    for make in MAKERS:
        optimizer = ready(name, make)

        def f() -> float:
            return 1.0

        def hook(hooked: Any, args: Any, kwargs: Any, optimizer: Any = optimizer, f: Any = f) -> None:
            assert hooked is optimizer
            names = {id(optimizer): "self", id(f): "f", id(None): "None"}
            seen.append(
                (
                    [names[id(value)] for value in args],
                    {key: names[id(value)] for key, value in kwargs.items()},
                )
            )

        optimizer.register_step_pre_hook(hook)
        optimizer.register_step_post_hook(hook)
        if style == "step()":
            optimizer.step()
        elif style == "step(f)":
            optimizer.step(f)
        else:
            optimizer.step(closure=f)
    assert seen[:2] == seen[2:]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("place", ["args", "kwargs"])
def test_hooks_may_change_the_arguments(place: str, make: Callable[..., Any]) -> None:
    optimizer = ready(make=make)

    def hook(optimizer: Any, args: Any, kwargs: Any) -> Any:
        if place == "args":
            return (args[0], lambda: 2.0), kwargs
        return args, {**kwargs, "closure": lambda: 2.0}

    optimizer.register_step_pre_hook(hook)
    assert optimizer.step() == 2.0
    if place == "args":
        assert optimizer.step(lambda: 1.0) == 2.0
    else:
        assert optimizer.step(closure=lambda: 1.0) == 2.0


@pytest.mark.parametrize("make", MAKERS)
def test_a_hook_that_returns_something_else_is_an_error(make: Callable[..., Any]) -> None:
    optimizer = ready(make=make)
    before = snapshot(optimizer)
    optimizer.register_step_pre_hook(lambda *_: 3)
    with pytest.raises(RuntimeError, match="must return None or a tuple"):
        optimizer.step()
    assert all(same_bits(*pair) for pair in zip(snapshot(optimizer), before, strict=True))


def test_hooks_may_change_gradients_and_parameters() -> None:
    optimizer = ready(lr=1.0, max_norm=1.0)
    params = optimizer.param_groups[0]["params"]

    def before(*_: Any) -> None:
        for parameter in params:
            parameter.grad.zero_()
        params[1].grad[0] = 10.0

    def after(*_: Any) -> None:
        with torch.no_grad():
            params[1].mul_(2.0)

    start = params[1].detach().clone()
    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
    optimizer.step()
    assert optimizer.last_norm == 10.0
    assert params[1][0].item() == pytest.approx(2.0 * (start[0].item() - 1.0), rel=1e-6)
    assert torch.equal(params[1][1:], 2.0 * start[1:])


def test_the_report_of_a_step_is_there_for_hooks_after_it() -> None:
    optimizer = ready(max_norm=1.0)
    norms = []
    optimizer.register_step_post_hook(lambda stepped, *_: norms.append(stepped.last_norm))
    optimizer.step()
    assert norms == [optimizer.last_norm]
    assert norms[0] > 1.0


def test_hooks_are_called_around_skipped_steps_and_not_after_refused_ones(calls: list[str]) -> None:
    for policy, wanted in (("skip", ["global pre", "global post"]), ("raise", ["global pre"])):
        optimizer = ready(on_nonfinite=policy)
        optimizer.param_groups[0]["params"][0].grad.fill_(float("nan"))
        calls.clear()
        if policy == "raise":
            with pytest.raises(fastclip.torch.NonFiniteGradientError):
                optimizer.step()
        else:
            optimizer.step()
        assert calls == wanted


@pytest.mark.parametrize("name", NAMES)
def test_results_are_the_same_with_hooks(name: str) -> None:
    results = []
    for has_hooks in (False, True):
        optimizer = ready(name, max_norm=1.0, **WITH_STATES[name])
        if has_hooks:
            optimizer.register_step_pre_hook(lambda *_: None)
        for _ in range(3):
            optimizer.step()
        results.append(snapshot(optimizer))
    assert all(same_bits(*pair) for pair in zip(*results, strict=True))


# Profiles --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_steps_have_torchs_names_in_profiles(name: str) -> None:
    optimizer = ready(name)
    with torch.autograd.profiler.profile() as profile:
        optimizer.step()
        optimizer.zero_grad()
    keys = [event.key for event in profile.key_averages()]
    assert f"Optimizer.step#{name}.step" in keys
    assert f"Optimizer.zero_grad#{name}.zero_grad" in keys


# Derived classes -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_derived_class_may_override_step(name: str, calls: list[str]) -> None:
    class Derived(getattr(fastclip.torch, name)):  # type: ignore[misc]
        def step(self, closure: Any = None) -> Any:
            calls.append("before")
            result = super().step(closure)
            calls.append("after")
            return result

    class Further(Derived):
        def step(self, closure: Any = None) -> Any:
            calls.append("further")
            return super().step(closure)

    plain = ready(name, **WITH_STATES[name])
    plain.step()
    for class_, first in ((Derived, []), (Further, ["further"])):
        params = parameters()
        set_gradients(params, 0)
        optimizer = class_(params, **WITH_STATES[name])
        optimizer.register_step_post_hook(lambda *_: calls.append("post"))
        calls.clear()
        assert optimizer.step(lambda: 4.0) == 4.0
        # PyTorch wraps the step of each class in hooks.
        inner = ["before", "after"]
        assert [call for call in calls if call in ("further", "before", "after")] == [*first, *inner]
        assert calls[0] == "global pre"
        assert calls[-1] == "global post"
        assert all(same_bits(*pair) for pair in zip(snapshot(optimizer), snapshot(plain), strict=True))


def test_a_derived_class_without_a_step_has_hooks(calls: list[str]) -> None:
    class Derived(fastclip.torch.AdamW):
        pass

    params = parameters()
    set_gradients(params, 0)
    Derived(params).step()
    assert calls == ["global pre", "global post"]


def test_a_step_that_is_replaced_in_an_instance_is_called(calls: list[str]) -> None:
    # As learning rate schedulers and Accelerate do.
    optimizer = ready()
    original = optimizer.step

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append("instance")
        return original(*args, **kwargs)

    optimizer.step = counted
    optimizer.step()
    assert calls == ["instance", "global pre", "global post"]


@pytest.mark.parametrize("name", TORCH_NAMES)
def test_optimizers_are_those_of_torch(name: str) -> None:
    optimizer = ready(name)
    assert isinstance(optimizer, getattr(torch.optim, name))
    assert isinstance(optimizer, torch.optim.Optimizer)


@pytest.mark.parametrize("name", TORCH_NAMES)
def test_signatures_begin_with_those_of_torch(name: str) -> None:
    own = inspect.signature(getattr(fastclip.torch, name)).parameters
    other = inspect.signature(getattr(torch.optim, name)).parameters
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert [(key, p.default) for key, p in own.items() if p.kind is positional] == [
        (key, p.default) for key, p in other.items() if p.kind is positional
    ]
    assert {key: p.default for key, p in own.items() if key in other} == {
        key: p.default for key, p in other.items()
    }
    added = {"max_norm", "on_nonfinite", "skip_above", "state_dtype", "rounding", "seed"}
    assert set(own) - set(other) == added
    assert all(own[key].kind is inspect.Parameter.KEYWORD_ONLY for key in added)
    assert "closure" in inspect.signature(getattr(fastclip.torch, name).step).parameters
