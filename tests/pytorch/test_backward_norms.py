"""Norms that are measured in the backward pass, and compiled regions."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import fastclip.torch  # noqa: E402

pytestmark = pytest.mark.interop("torch")


def model_and_copy() -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.ReLU(), torch.nn.Linear(30, 1))
    return model, copy.deepcopy(model)


def backward(model: Any, seed: int) -> None:
    inputs = torch.randn(8, 20, generator=torch.Generator().manual_seed(seed))
    model(inputs).square().mean().backward()


@pytest.fixture
def measured_gradients(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the list of the numbers of gradients that steps have measured."""
    counts: list[int] = []
    core_step = fastclip._core.torch_step

    def counted(binding: Any, parts: Any, *others: Any) -> Any:
        known = [part[5] or [None] * len(part[1][0]) for part in parts]
        counts.append(sum(magnitude is None for magnitudes in known for magnitude in magnitudes))
        return core_step(binding, parts, *others)

    monkeypatch.setattr(fastclip._core, "torch_step", counted)
    return counts


def test_steps_use_measurements_of_the_backward_pass(measured_gradients: list[int]) -> None:
    mine, theirs = model_and_copy()
    optimizer = fastclip.torch.AdamW(mine.parameters(), lr=0.01, max_norm=0.1)
    reference = fastclip.torch.AdamW(theirs.parameters(), lr=0.01, max_norm=0.1)
    handle = optimizer.measure_in_backward(mine)
    for step in range(3):
        for model, stepped in ((mine, optimizer), (theirs, reference)):
            stepped.zero_grad()
            # Two micro-batches: the last measurement counts.
            backward(model, 2 * step)
            backward(model, 2 * step + 1)
            stepped.step()
        assert optimizer.last_norm == reference.last_norm
    assert measured_gradients == [0, 4] * 3
    handle.remove()
    optimizer.zero_grad()
    backward(mine, 9)
    optimizer.step()
    assert measured_gradients[-1] == 4
    for parameter, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert parameter.shape == other.shape


def scale(parameter: Any) -> None:
    parameter.grad.mul_(3.0)


def replace(parameter: Any) -> None:
    parameter.grad = parameter.grad * 3.0


def replace_memory(parameter: Any) -> None:
    parameter.grad.data = parameter.grad * 3.0


def zero(parameter: Any) -> None:
    parameter.grad.zero_()


@pytest.mark.parametrize("change", [scale, replace, replace_memory, zero])
def test_gradients_that_changed_are_measured_anew(change: Any, measured_gradients: list[int]) -> None:
    mine, theirs = model_and_copy()
    optimizer = fastclip.torch.SGD(mine.parameters(), lr=0.01, max_norm=0.1)
    reference = fastclip.torch.SGD(theirs.parameters(), lr=0.01, max_norm=0.1)
    optimizer.measure_in_backward(mine.parameters())
    for model, stepped in ((mine, optimizer), (theirs, reference)):
        backward(model, 0)
        change(next(model.parameters()))
        stepped.step()
    assert measured_gradients == [1, 4]
    assert optimizer.last_norm == reference.last_norm
    for parameter, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(parameter, other)


def test_gradients_are_not_kept_alive() -> None:
    import weakref

    mine, _ = model_and_copy()
    optimizer = fastclip.torch.SGD(mine.parameters(), lr=0.01, max_norm=0.1)
    optimizer.measure_in_backward(mine)
    backward(mine, 0)
    gradient = weakref.ref(mine[0].weight.grad)
    optimizer.zero_grad()
    assert gradient() is None


def test_modules_that_reduce_gradients_later_are_refused() -> None:
    class DistributedDataParallel(torch.nn.Module):
        pass

    optimizer = fastclip.torch.SGD(model_and_copy()[0].parameters(), lr=0.01)
    with pytest.raises(ValueError, match="reduces gradients after"):
        optimizer.measure_in_backward(DistributedDataParallel())


# Compiled regions ------------------------------------------------------------------------------


@pytest.fixture
def quiet_compiler() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.compiler.reset()
        yield
        torch.compiler.reset()


@pytest.mark.usefixtures("quiet_compiler")
def test_clip_functions_are_operators_in_compiled_regions() -> None:
    mine, theirs = model_and_copy()
    backward(mine, 0)
    backward(theirs, 0)

    def clip(parameters: list[Any]) -> Any:
        norm = fastclip.torch.clip_grad_norm_(parameters, 0.5)
        fastclip.torch.clip_grad_value_(parameters, 0.01)
        total = fastclip.torch.get_total_norm([parameter.grad for parameter in parameters])
        fastclip.torch.clip_grads_with_norm_(parameters, 0.05, total)
        return norm, total

    compiled = torch.compile(clip, fullgraph=True, backend="aot_eager")
    found, want = compiled(list(mine.parameters())), clip(list(theirs.parameters()))
    assert torch.equal(torch.stack(found), torch.stack(want))
    for parameter, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad)


@pytest.mark.usefixtures("quiet_compiler")
def test_a_compiled_training_step_gives_the_same_results() -> None:
    mine, theirs = model_and_copy()
    optimizer = fastclip.torch.AdamW(mine.parameters(), lr=0.01, max_norm=0.1)
    reference = fastclip.torch.AdamW(theirs.parameters(), lr=0.01, max_norm=0.1)

    def train(model: Any, stepped: Any, inputs: Any) -> Any:
        stepped.zero_grad()
        loss = model(inputs).square().mean()
        loss.backward()
        stepped.step()
        return loss

    compiled = torch.compile(train, backend="aot_eager")
    for step in range(3):
        inputs = torch.randn(8, 20, generator=torch.Generator().manual_seed(step))
        loss, want = compiled(mine, optimizer, inputs), train(theirs, reference, inputs)
        torch.testing.assert_close(loss, want)
    for parameter, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=1e-5, atol=1e-6)
