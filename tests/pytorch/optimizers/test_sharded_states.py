"""States through `torch.distributed.checkpoint`, and the functions that prepare states for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from optimizer_pairs import NAMES, WITH_STATES, mine, same_bits, snapshot  # noqa: E402

from support import fresh_python  # noqa: E402

pytestmark = [
    pytest.mark.interop("torch"),
    # Of torch.distributed.checkpoint without a process group, and of its own code.
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]

NARROW = torch.bfloat16


def model_of(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3), torch.nn.Linear(3, 2))


def train(model: Any, optimizer: Any, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def optimizer_of(name: str, model: Any, **options: Any) -> Any:
    params = list(model.parameters())
    groups: list[dict[str, Any]] = [{"params": params[:2]}, {"params": params[2:4]}, {"params": params[4:]}]
    if options:
        groups[2]["max_norm"] = 2.0
    return mine(name, groups, lr=0.01, **WITH_STATES[name], **options)


@pytest.mark.parametrize("options", [{}, {"max_norm": 0.5, "state_dtype": NARROW, "seed": 5}], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_states_pass_through_a_checkpoint(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    model = model_of()
    optimizer = optimizer_of(name, model, **options)
    train(model, optimizer, range(3))
    dcp.save(get_optimizer_state_dict(model, optimizer), checkpoint_id=tmp_path, no_dist=True)

    # A state that does not exist yet is created by a step with a learning rate of 0.
    other = model_of()
    other.load_state_dict(model.state_dict())
    resumed = optimizer_of(name, other, **{**options, **({"max_norm": 9.0} if options else {})})
    state = get_optimizer_state_dict(other, resumed)
    for parameter, wanted in zip(other.parameters(), model.parameters(), strict=True):
        assert same_bits(parameter, wanted)
    dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
    set_optimizer_state_dict(other, resumed, state)

    assert resumed.max_norm == options.get("max_norm")
    bounds = [group.get("max_norm", "none") for group in resumed.param_groups]
    assert bounds == (["none", "none", 2.0] if options else ["none"] * 3)
    assert all(same_bits(*pair) for pair in zip(snapshot(resumed), snapshot(optimizer), strict=True))
    train(model, optimizer, range(3, 5))
    train(other, resumed, range(3, 5))
    assert all(same_bits(*pair) for pair in zip(snapshot(resumed), snapshot(optimizer), strict=True))
    assert resumed.last_norm == optimizer.last_norm


@pytest.mark.parametrize("name", NAMES)
def test_a_state_is_initialized_without_a_change_of_parameters(name: str) -> None:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    options: dict[str, Any] = {"max_norm": 0.5, "state_dtype": NARROW, "on_nonfinite": "raise"}
    model = model_of().to(NARROW)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = optimizer_of(name, model, weight_decay=0.1, **options)
    state = get_optimizer_state_dict(model, optimizer)
    assert all(same_bits(*pair) for pair in zip(model.parameters(), before, strict=True))
    assert set(state["state"]) == {key for key, _ in model.named_parameters()}


def test_a_checkpoint_is_read_in_another_process(tmp_path: Path) -> None:
    import checkpointed_training as training

    model, optimizer = training.build(0, 0.5)
    training.take_step(model, optimizer, 1)
    training.save(model, optimizer, str(tmp_path))
    training.take_step(model, optimizer, 2)
    wanted = training.final_state(model, optimizer)
    loaded = fresh_python.run_module("checkpointed_training", str(tmp_path), folder=Path(__file__).parent)
    assert loaded.stdout.splitlines() == wanted.splitlines()
    assert wanted.startswith("0.5 ")
    assert "torch.bfloat16" in wanted
