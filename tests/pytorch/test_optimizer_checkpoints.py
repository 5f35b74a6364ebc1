"""States of optimizers: checkpoints, copies, and their exchange with PyTorch's optimizers."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest

from support import fresh_python

torch = pytest.importorskip("torch")

import fastclip.torch  # noqa: E402

pytestmark = pytest.mark.interop("torch")

NAMES = ["AdamW", "Adam", "SGD", "Adagrad", "Lion"]


def parameters(value: float = 1.0) -> list[Any]:
    return [torch.nn.Parameter(torch.full((3, 2), value)), torch.nn.Parameter(torch.full((4,), value))]


def train(tensors: list[Any], optimizer: Any, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for tensor in tensors:
            tensor.grad = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        optimizer.step()


def optimizer_of(name: str, tensors: list[Any], **options: Any) -> Any:
    momentum = {"momentum": 0.9} if name == "SGD" else {}
    return getattr(fastclip.torch, name)(tensors, lr=0.01, **momentum, **options)


def saved(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "options", [{}, {"max_norm": 0.5}, {"max_norm": 0.5, "state_dtype": torch.bfloat16, "seed": 3}]
)
def test_a_resumed_run_equals_an_unbroken_one(name: str, options: dict[str, Any]) -> None:
    unbroken, resumed = parameters(), parameters()
    whole = optimizer_of(name, unbroken, **options)
    train(unbroken, whole, range(8))
    first = optimizer_of(name, resumed, **options)
    train(resumed, first, range(4))
    second = optimizer_of(name, resumed)
    second.load_state_dict(saved(first.state_dict()))
    assert second.max_norm == options.get("max_norm")
    train(resumed, second, range(4, 8))
    for tensor, other in zip(unbroken, resumed, strict=True):
        assert torch.equal(tensor, other)
        for key, value in whole.state[tensor].items():
            assert value.dtype == second.state[other][key].dtype
            assert torch.equal(value, second.state[other][key])


@pytest.mark.parametrize("name", ["AdamW", "Adam", "SGD", "Adagrad"])
def test_states_load_into_torchs_optimizers_and_back(name: str) -> None:
    tensors = parameters()
    optimizer = optimizer_of(name, tensors, max_norm=0.5)
    train(tensors, optimizer, range(3))
    momentum = {"momentum": 0.9} if name == "SGD" else {}
    theirs = [torch.nn.Parameter(tensor.detach().clone()) for tensor in tensors]
    reference = getattr(torch.optim, name)(theirs, lr=0.01, **momentum)
    reference.load_state_dict(saved(optimizer.state_dict()))
    train(theirs, reference, range(3, 4))
    back = optimizer_of(name, theirs, max_norm=0.25)
    plain = {
        "state": reference.state_dict()["state"],
        "param_groups": [
            {key: value for key, value in group.items() if key != "shared_max_norm"}
            for group in reference.state_dict()["param_groups"]
        ],
    }
    back.load_state_dict(plain)
    # A state without bounds leaves those of the optimizer.
    assert back.max_norm == 0.25
    train(theirs, back, range(4, 6))
    keys = set(getattr(torch.optim, name)(parameters(), lr=0.01, **momentum).state_dict()["param_groups"][0])
    unclipped = optimizer_of(name, parameters()).state_dict()["param_groups"][0]
    assert set(unclipped) == keys
    assert set(optimizer.state_dict()["param_groups"][0]) == keys | {"shared_max_norm"}


@pytest.mark.parametrize("way", ["state_dict", "pickle", "deepcopy"])
def test_bounds_of_groups_survive(way: str) -> None:
    tensors = [*parameters(), *parameters()]
    groups = [{"params": tensors[:1]}, {"params": tensors[1:2]}, {"params": tensors[2:3], "max_norm": 2.0}]
    groups.append({"params": tensors[3:], "max_norm": None})
    optimizer = fastclip.torch.AdamW(groups, max_norm=0.5, on_nonfinite="skip", skip_above=1e6)
    train(tensors, optimizer, range(2))
    if way == "state_dict":
        other = fastclip.torch.AdamW([{"params": group["params"]} for group in groups], max_norm=7.0)
        other.load_state_dict(saved(optimizer.state_dict()))
    else:
        other = pickle.loads(pickle.dumps(optimizer)) if way == "pickle" else copy.deepcopy(optimizer)
        assert other.on_nonfinite == "skip"
        assert other.skip_above == 1e6
        tensors = [tensor for group in other.param_groups for tensor in group["params"]]
    assert other.max_norm == 0.5
    assert ["max_norm" in group for group in other.param_groups] == [False, False, True, True]
    train(tensors, other, range(2, 3))
    norms = [torch.linalg.vector_norm(tensor.grad).item() for tensor in tensors]
    # The first two groups share a norm.
    shared = (norms[0] ** 2 + norms[1] ** 2) ** 0.5
    # A group that is not clipped is measured only if the policy for NaN and infinity needs that.
    last = None if way == "state_dict" else pytest.approx(norms[3], rel=1e-6)
    assert other.last_norm == [pytest.approx(shared), pytest.approx(shared), pytest.approx(norms[2]), last]


def test_bfloat16_moments_stay_bfloat16_and_float32_ones_are_converted() -> None:
    tensors = parameters()
    optimizer = fastclip.torch.AdamW(tensors, state_dtype=torch.bfloat16)
    train(tensors, optimizer, range(2))
    other = fastclip.torch.AdamW(parameters())
    other.load_state_dict(optimizer.state_dict())
    moments = [state["exp_avg"] for state in other.state.values()]
    assert all(moment.dtype is torch.bfloat16 for moment in moments)
    reference = torch.optim.AdamW(tensors)
    train(tensors, reference, range(2))
    optimizer.load_state_dict(reference.state_dict())
    assert optimizer.state[tensors[0]]["exp_avg"].dtype is torch.bfloat16
    assert optimizer.state[tensors[0]]["step"].dtype is torch.float32
    train(tensors, optimizer, range(2, 3))


def test_distributed_checkpoints_load_in_another_process(tmp_path: Path) -> None:
    code = """
        import sys, torch, fastclip.torch
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

        folder, part = sys.argv[1:]
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3)
        optimizer = fastclip.torch.AdamW(model.parameters(), max_norm=0.5, state_dtype=torch.bfloat16, seed=5)

        def step(seed):
            generator = torch.Generator().manual_seed(seed)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()

        if part == "save":
            step(1)
            dcp.save(get_optimizer_state_dict(model, optimizer), checkpoint_id=folder)
            torch.save(model.state_dict(), folder + "/model")
        else:
            state = get_optimizer_state_dict(model, optimizer)
            dcp.load(state, checkpoint_id=folder)
            optimizer.max_norm = 9.0
            set_optimizer_state_dict(model, optimizer, state)
            model.load_state_dict(torch.load(folder + "/model"))
        step(2)
        moment = optimizer.state[model.weight]["exp_avg"]
        sums = [float(tensor.double().sum()) for tensor in (model.weight, moment)]
        print(optimizer.max_norm, moment.dtype, *sums)
    """
    outputs = []
    for part in ("save", "load"):
        outputs.append(fresh_python.run(code, str(tmp_path / "checkpoint"), part).stdout)
    assert outputs[0] == outputs[1]
    assert "0.5 torch.bfloat16" in outputs[0]
