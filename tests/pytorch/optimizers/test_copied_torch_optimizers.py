"""Pickles and copies of whole optimizers."""

from __future__ import annotations

import copy
import io
import pickle
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
    tensors_of,
    theirs,
)

import fastclip.torch  # noqa: E402
from support import fresh_python  # noqa: E402

pytestmark = pytest.mark.interop("torch")

NARROW = torch.bfloat16


def torch_saved(optimizer: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(optimizer, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


WAYS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda optimizer: pickle.loads(pickle.dumps(optimizer)),
    "deepcopy": copy.deepcopy,
    "torch.save": torch_saved,
}
EVERY_WAY = pytest.mark.parametrize("way", WAYS)


def train(optimizer: Any, steps: range) -> None:
    params = tensors_of(optimizer)
    for step in steps:
        set_gradients(params, step)
        optimizer.step()


def groups() -> list[dict[str, Any]]:
    params = parameters()
    made: list[dict[str, Any]] = [
        {"params": params[:1]},
        {"params": params[1:2]},
        {"params": params[2:4], "max_norm": 2.0},
        {"params": params[4:], "max_norm": None},
    ]
    return made


@EVERY_WAY
@pytest.mark.parametrize("state_dtype", [None, NARROW], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_copy_trains_as_the_original(name: str, state_dtype: Any, way: str) -> None:
    optimizer = mine(name, groups(), max_norm=0.5, state_dtype=state_dtype, seed=3, **WITH_STATES[name])
    train(optimizer, range(3))
    copied = WAYS[way](optimizer)
    before = snapshot(optimizer)
    train(copied, range(3, 6))
    # The copy has parameters of its own.
    assert_unchanged(optimizer, before)
    train(optimizer, range(3, 6))
    assert all(same_bits(*pair) for pair in zip(snapshot(copied), snapshot(optimizer), strict=True))
    assert copied.last_norm == optimizer.last_norm


@EVERY_WAY
def test_a_copy_keeps_bounds_and_policies(way: str) -> None:
    optimizer = mine("AdamW", groups(), max_norm=0.5, on_nonfinite="skip", skip_above=50.0)
    train(optimizer, range(1))
    tensors_of(optimizer)[0].grad.fill_(float("nan"))
    optimizer.step()
    copied = WAYS[way](optimizer)
    assert copied.max_norm == 0.5
    assert [group.get("max_norm", "none") for group in copied.param_groups] == ["none", "none", 2.0, None]
    assert (copied.on_nonfinite, copied.skip_above, copied.skipped_steps) == ("skip", 50.0, 1)
    assert type(copied) is fastclip.torch.AdamW
    copied.max_norm = 0.25
    assert optimizer.max_norm == 0.5
    copied.add_param_group({"params": parameters([(3,)])})
    assert copied.max_norm == 0.25
    set_gradients(tensors_of(copied), 5)
    copied.step()
    norms = [torch.linalg.vector_norm(parameter.grad.double()).item() for parameter in tensors_of(copied)]
    shared = (norms[0] ** 2 + norms[1] ** 2 + norms[-1] ** 2) ** 0.5
    assert copied.last_norm[0] == pytest.approx(shared, rel=1e-7)
    assert copied.last_norm[4] == copied.last_norm[1] == copied.last_norm[0]


@EVERY_WAY
def test_a_group_that_is_added_to_a_copy_gets_the_defaults(way: str) -> None:
    optimizer = mine("AdamW", parameters(), lr=0.02, max_norm=0.5, state_dtype=NARROW, seed=9)
    copied = WAYS[way](optimizer)
    copied.add_param_group({"params": parameters([(3,)])})
    group = copied.param_groups[1]
    assert (group["lr"], group["shared_max_norm"], group["state_dtype"], group["seed"]) == (
        0.02,
        0.5,
        NARROW,
        9,
    )


@EVERY_WAY
def test_low_precision_copies_go_with_their_parameters(way: str) -> None:
    params = parameters()
    optimizer = mine("AdamW", params, lr=0.1)
    narrow = torch.empty_like(params[0], dtype=NARROW)
    optimizer.set_low_precision_copy(params[0], narrow)
    copied, held = (
        pickle.loads(pickle.dumps((optimizer, narrow)))
        if way == "pickle"
        else copy.deepcopy((optimizer, narrow))
        if way == "deepcopy"
        else torch_saved((optimizer, narrow))
    )
    before = narrow.clone()
    train(copied, range(1))
    assert same_bits(held, tensors_of(copied)[0].detach().to(NARROW))
    assert not same_bits(held, before)
    assert same_bits(narrow, before)


@EVERY_WAY
def test_copies_have_no_hooks_as_in_torch(way: str) -> None:
    def count(*_: Any) -> None:
        calls.append(1)

    calls: list[int] = []
    optimizer, reference = mine("AdamW", parameters()), theirs("AdamW", parameters())
    if way == "deepcopy":
        for hooked in (optimizer, reference):
            hooked.register_step_post_hook(count)
    for original in (optimizer, reference):
        copied = WAYS[way](original)
        calls.clear()
        train(copied, range(1))
        assert calls == []


def test_a_derived_class_is_pickled_with_its_attributes_as_in_torch() -> None:
    optimizer = Derived(parameters(), lr=0.1, max_norm=1.0)
    copied = pickle.loads(pickle.dumps(optimizer))
    assert type(copied) is Derived
    assert copied.max_norm == 1.0
    train(copied, range(1))
    train(optimizer, range(1))
    assert all(same_bits(*pair) for pair in zip(snapshot(copied), snapshot(optimizer), strict=True))


class Derived(fastclip.torch.AdamW):
    """A class of a user."""


def test_a_pickle_is_read_in_another_process() -> None:
    code = """
        import pickle, sys
        optimizer = pickle.loads(bytes.fromhex(sys.argv[1]))
        import torch
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        print(type(optimizer).__module__, optimizer.max_norm, optimizer.last_norm)
    """
    params = parameters([(2,), (2,)])
    optimizer = mine(
        "SGD", [{"params": params[:1]}, {"params": params[1:]}], lr=0.1, momentum=0.9, max_norm=0.5
    )
    train(optimizer, range(1))
    for parameter in params:
        parameter.grad = None
    printed = fresh_python.run(code, pickle.dumps(optimizer).hex()).stdout
    assert printed.split() == ["fastclip.torch", "0.5", "2.0"]


def test_repr_shows_the_options_of_groups() -> None:
    optimizer = mine("AdamW", groups(), max_norm=0.5, state_dtype=NARROW)
    text = repr(optimizer)
    assert text.startswith("AdamW (")
    assert "shared_max_norm: 0.5" in text
    assert "state_dtype: torch.bfloat16" in text
    assert repr(pickle.loads(pickle.dumps(optimizer))) == text
