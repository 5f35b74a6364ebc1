"""Moments and parameters in bfloat16, rounded stochastically."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

import fastclip  # noqa: E402
import fastclip.torch  # noqa: E402

pytestmark = pytest.mark.interop("torch")

NARROW = torch.bfloat16
COUNT = 70_001


def trained(steps: int = 3, *, dtype: Any = torch.float32, same: bool = False, **options: Any) -> list[Any]:
    """Return two parameters after some steps with bfloat16 moments, and their moments."""
    tensors = [torch.nn.Parameter(torch.ones(COUNT, dtype=dtype)) for _ in range(2)]
    optimizer = fastclip.torch.AdamW(tensors, lr=1e-3, **{"state_dtype": NARROW, **options})
    for step in range(steps):
        for index, tensor in enumerate(tensors):
            generator = torch.Generator().manual_seed(10 * step + (0 if same else index))
            tensor.grad = torch.randn(COUNT, generator=generator).to(dtype)
        optimizer.step()
    states = [optimizer.state[tensor] for tensor in tensors]
    assert all(state[key].dtype is NARROW for state in states for key in ("exp_avg", "exp_avg_sq"))
    return [*(t.detach() for t in tensors), *(s[key] for s in states for key in ("exp_avg", "exp_avg_sq"))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_do_not_depend_on_the_number_of_threads(dtype: Any) -> None:
    results = []
    for threads in (1, 2, 3):
        with fastclip.threads(threads):
            results.append(trained(dtype=dtype))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_seeds_and_tensors_have_streams_of_their_own() -> None:
    first, second, *moments = trained(1, same=True)
    assert torch.equal(first, second) is False or not torch.equal(moments[0], moments[2])
    assert not torch.equal(moments[0], moments[2])
    other = trained(1, same=True, seed=1)
    assert not torch.equal(moments[0], other[2])
    assert torch.equal(moments[0], trained(1, same=True)[2])


def test_steps_have_streams_of_their_own() -> None:
    # The same random bits in each step would round the same elements up.
    tensor = torch.nn.Parameter(torch.zeros(COUNT))
    optimizer = fastclip.torch.SGD([tensor], lr=0.0, momentum=1.0, state_dtype=NARROW)
    ups = []
    for _ in range(2):
        optimizer.state[tensor]["momentum_buffer"] = torch.ones(COUNT, dtype=NARROW)
        tensor.grad = torch.full((COUNT,), 2.0**-9)
        optimizer.step()
        ups.append(optimizer.state[tensor]["momentum_buffer"] > 1.0)
    expected = COUNT / 16
    # Both rounded up with probability 1/4 in each step, if the steps are independent.
    both = int((ups[0] & ups[1]).sum())
    assert abs(both - expected) < 6 * expected**0.5
    assert abs(int(ups[0].sum()) - COUNT / 4) < 6 * (COUNT * 3 / 16) ** 0.5


def test_rounding_is_unbiased() -> None:
    tensor = torch.nn.Parameter(torch.zeros(1 << 20))
    optimizer = fastclip.torch.SGD([tensor], lr=0.0, momentum=0.9, state_dtype=NARROW)
    value = 1.2345678
    tensor.grad = torch.full((1 << 20,), value)
    optimizer.step()
    moments = optimizer.state[tensor]["momentum_buffer"].double()
    # Five standard deviations of the mean of numbers that are at most 2^-7 apart.
    assert abs(moments.mean().item() - torch.tensor(value).item()) < 5 * 2.0**-8 / 1024
    assert set(moments.unique().tolist()) == {1.234375, 1.2421875}


def test_decay_does_not_vanish_in_bfloat16_parameters() -> None:
    # A decay of 1e-5 a step is far below half a unit in the last place of bfloat16.
    shrunk = {}
    for rounding in ("stochastic", "nearest"):
        tensor = torch.nn.Parameter(torch.ones(COUNT, dtype=NARROW))
        options = {"state_dtype": NARROW, "rounding": rounding}
        optimizer = fastclip.torch.AdamW([tensor], lr=1e-3, weight_decay=1e-2, **options)
        for _ in range(200):
            tensor.grad = torch.zeros(COUNT, dtype=NARROW)
            optimizer.step()
        shrunk[rounding] = 1.0 - tensor.detach().double().mean().item()
    assert shrunk["nearest"] == 0.0
    assert shrunk["stochastic"] == pytest.approx(200 * 1e-5, rel=0.1)


def test_without_a_state_dtype_everything_is_rounded_to_nearest() -> None:
    results = [
        trained(dtype=NARROW, state_dtype=None, rounding=rounding) for rounding in ("stochastic", "nearest")
    ]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    nearest = trained(dtype=NARROW, rounding="nearest")
    assert all(torch.equal(a, b) for a, b in zip(nearest, results[0], strict=True))


def test_rounding_to_nearest_is_that_of_torch() -> None:
    tensor = torch.nn.Parameter(torch.zeros(COUNT))
    optimizer = fastclip.torch.SGD([tensor], lr=0.0, momentum=0.9, state_dtype=NARROW, rounding="nearest")
    tensor.grad = torch.randn(COUNT, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    assert torch.equal(optimizer.state[tensor]["momentum_buffer"], tensor.grad.to(NARROW))


def test_strided_parameters_are_rounded_reproducibly() -> None:
    results = []
    for threads in (1, 3):
        memory = torch.ones(300, 900)
        tensor = torch.nn.Parameter(memory.T)
        optimizer = fastclip.torch.AdamW([tensor], lr=1e-3, state_dtype=NARROW)
        tensor.grad = torch.randn(900, 300, generator=torch.Generator().manual_seed(0))
        with fastclip.threads(threads):
            optimizer.step()
        results.append(optimizer.state[tensor]["exp_avg"])
    assert results[0].dtype is NARROW
    assert torch.equal(*results)


def test_training_with_bfloat16_moments_follows_float32() -> None:
    losses = {}
    for dtype in (None, NARROW):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
        optimizer = fastclip.torch.AdamW(model.parameters(), lr=1e-2, max_norm=1.0, state_dtype=dtype)
        inputs = torch.randn(256, 16)
        targets = torch.sin(inputs.sum(dim=1, keepdim=True))
        for _ in range(200):
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(model(inputs), targets)
            loss.backward()
            optimizer.step()
        losses[dtype] = loss.item()
    assert losses[None] < 0.1
    assert losses[NARROW] == pytest.approx(losses[None], abs=0.03)
