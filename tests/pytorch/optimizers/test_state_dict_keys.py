"""What state dicts of the optimizers hold, and what they become when they are loaded here or in PyTorch's."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from optimizer_pairs import (  # noqa: E402
    NAMES,
    TORCH_NAMES,
    WITH_STATES,
    assert_states_close,
    mine,
    parameters,
    same_bits,
    set_gradients,
    tensors_of,
    theirs,
)

pytestmark = pytest.mark.interop("torch")

NARROW = torch.bfloat16


def saved(state: dict[str, Any]) -> dict[str, Any]:
    """Returns a state that went through a file, read without running code."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


def train(optimizer: Any, steps: range, max_norm: float | None = None) -> None:
    """Takes steps over gradients that depend on the step alone, clipped by PyTorch if `max_norm` is given."""
    params = tensors_of(optimizer)
    for step in steps:
        set_gradients(params, step)
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(params, max_norm)
        optimizer.step()


def group_keys(optimizer: Any) -> list[set[str]]:
    return [set(group) for group in optimizer.state_dict()["param_groups"]]


# Keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TORCH_NAMES)
def test_states_have_the_keys_and_types_of_torchs(name: str) -> None:
    for options in ({}, WITH_STATES[name]):
        own, other = parameters(), parameters()
        optimizer, reference = mine(name, own, **options), theirs(name, other, foreach=False, **options)
        for step in range(2):
            set_gradients(own, step)
            set_gradients(other, step)
            optimizer.step()
            reference.step()
        state, wanted = optimizer.state_dict(), reference.state_dict()
        assert list(state) == list(wanted)
        assert group_keys(optimizer) == group_keys(reference)
        for index, values in wanted["state"].items():
            kept = {key: value for key, value in values.items() if value is not None}
            assert list(state["state"].get(index, {})) == list(kept)
            for key, value in kept.items():
                found = state["state"][index][key]
                assert (found.dtype, found.shape, found.stride()) == (
                    value.dtype,
                    value.shape,
                    value.stride(),
                )
        assert_states_close(optimizer, reference)


def test_lion_has_one_moment() -> None:
    params = parameters()
    optimizer = mine("Lion", params)
    set_gradients(params, 0)
    optimizer.step()
    assert [list(values) for values in optimizer.state_dict()["state"].values()] == [["exp_avg"]] * len(
        params
    )
    assert group_keys(optimizer) == [{"params", "lr", "betas", "weight_decay", "maximize"}]


@pytest.mark.parametrize("name", NAMES)
def test_own_keys_stand_in_groups_only_where_they_are_used(name: str) -> None:
    plain = group_keys(mine(name, parameters()))[0]
    assert plain.isdisjoint({"shared_max_norm", "max_norm", "state_dtype", "rounding", "seed"})
    # These options are of the optimizer, not of its groups.
    assert group_keys(mine(name, parameters(), on_nonfinite="skip", skip_above=3.0)) == [plain]
    assert group_keys(mine(name, parameters(), rounding="nearest", seed=3)) == [plain]
    assert group_keys(mine(name, parameters(), max_norm=1.0)) == [plain | {"shared_max_norm"}]
    narrow = {"state_dtype", "rounding", "seed"}
    assert group_keys(mine(name, parameters(), state_dtype=NARROW)) == [plain | narrow]
    params = parameters()
    groups = [{"params": params[:1]}, {"params": params[1:2], "max_norm": 1.0}]
    groups.append({"params": params[2:], "max_norm": None})
    assert group_keys(mine(name, groups)) == [plain, plain | {"max_norm"}, plain | {"max_norm"}]
    shared = plain | {"shared_max_norm"}
    own = shared | {"max_norm"}
    assert group_keys(mine(name, copy.copy(groups), max_norm=2.0)) == [shared, own, own]


def test_named_parameters_keep_their_names() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = mine("AdamW", model.named_parameters(), max_norm=1.0)
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]


# Saved and loaded ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_norm": 0.5},
        {"max_norm": 0.5, "state_dtype": NARROW, "seed": 11},
        {"state_dtype": NARROW, "rounding": "nearest"},
        {"state_dtype": torch.float32},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_is_resumed_from_a_file_equals_an_unbroken_one(name: str, options: dict[str, Any]) -> None:
    for dtype in (torch.float32, NARROW):
        options = {**WITH_STATES[name], **options}
        unbroken = mine(name, parameters(dtype=dtype), **options)
        train(unbroken, range(7))
        first = mine(name, parameters(dtype=dtype), **options)
        train(first, range(3))
        model = [torch.nn.Parameter(tensor.detach().clone()) for tensor in tensors_of(first)]
        state = saved(first.state_dict())
        second = mine(name, model)
        second.load_state_dict(state)
        assert group_keys(second) == group_keys(first)
        train(second, range(3, 7))
        for wanted, found in zip(tensors_of(unbroken), model, strict=True):
            assert same_bits(wanted, found)
            assert list(unbroken.state[wanted]) == list(second.state[found])
            for key, value in unbroken.state[wanted].items():
                assert same_bits(value, second.state[found][key])


@pytest.mark.parametrize("max_norm", [None, 0.5], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("name", TORCH_NAMES)
def test_training_goes_on_in_torchs_optimizer_and_back(name: str, max_norm: float | None) -> None:
    options = {**WITH_STATES[name], "lr": 0.01}
    whole = theirs(name, parameters(), **options)
    train(whole, range(12), max_norm)
    params = parameters()
    optimizer = mine(name, params, max_norm=max_norm, **options)
    train(optimizer, range(4))
    reference = theirs(name, params, **options)
    reference.load_state_dict(saved(optimizer.state_dict()))
    train(reference, range(4, 8), max_norm)
    back = mine(name, params, max_norm=max_norm, lr=0.7)
    back.load_state_dict(saved(reference.state_dict()))
    assert back.max_norm == max_norm
    assert back.param_groups[0]["lr"] == 0.01
    train(back, range(8, 12))
    for parameter, wanted in zip(params, tensors_of(whole), strict=True):
        torch.testing.assert_close(parameter, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", TORCH_NAMES)
def test_a_state_of_torch_leaves_bounds_types_and_policies_as_they_are(name: str) -> None:
    options = WITH_STATES[name]
    params = parameters()
    groups = [{"params": params[:2]}, {"params": params[2:], "max_norm": 3.0}]
    reference = theirs(name, [{"params": group["params"]} for group in groups], **options)
    train(reference, range(3))
    optimizer = mine(
        name, groups, max_norm=0.5, state_dtype=NARROW, seed=4, on_nonfinite="skip", skip_above=1e9, **options
    )
    optimizer.load_state_dict(saved(reference.state_dict()))
    assert optimizer.max_norm == 0.5
    assert [group.get("max_norm", "none") for group in optimizer.param_groups] == ["none", 3.0]
    assert [group["shared_max_norm"] for group in optimizer.param_groups] == [0.5, 0.5]
    assert [group["state_dtype"] for group in optimizer.param_groups] == [NARROW, NARROW]
    assert [group["seed"] for group in optimizer.param_groups] == [4, 4]
    assert (optimizer.on_nonfinite, optimizer.skip_above) == ("skip", 1e9)
    for parameter in params:
        for key, value in optimizer.state[parameter].items():
            assert value.dtype is (torch.float32 if key == "step" else NARROW)
            assert torch.equal(value, reference.state[parameter][key].to(value.dtype))
    train(optimizer, range(3, 5))
    assert optimizer.skipped_steps == 0


def test_a_state_with_a_bound_brings_it() -> None:
    first = mine("AdamW", parameters(), max_norm=0.5)
    second = mine("AdamW", parameters(), max_norm=7.0)
    second.load_state_dict(first.state_dict())
    assert second.max_norm == 0.5
    third = mine("AdamW", parameters())
    third.load_state_dict(saved(first.state_dict()))
    assert third.max_norm == 0.5


def test_a_state_whose_bound_was_set_to_none_brings_that() -> None:
    first = mine("AdamW", parameters(), max_norm=0.5)
    first.max_norm = None
    second = mine("AdamW", parameters(), max_norm=7.0)
    second.load_state_dict(saved(first.state_dict()))
    assert second.max_norm is None


def test_bounds_of_groups_are_loaded_in_their_places() -> None:
    def groups(bounds: list[Any]) -> list[dict[str, Any]]:
        params = parameters()
        made: list[dict[str, Any]] = [{"params": [parameter]} for parameter in params]
        for group, bound in zip(made, bounds, strict=True):
            if bound != "shared":
                group["max_norm"] = bound
        return made

    first = mine("AdamW", groups(["shared", 2.0, None, "shared", "shared"]), max_norm=0.5)
    second = mine("AdamW", groups([1.0, "shared", "shared", "shared", 4.0]), max_norm=7.0)
    second.load_state_dict(saved(first.state_dict()))
    found = [group.get("max_norm", "shared") for group in second.param_groups]
    assert found == ["shared", 2.0, None, "shared", "shared"]
    assert second.max_norm == 0.5


def test_the_norm_of_two_groups_stays_global_through_a_file() -> None:
    params = parameters([(3,), (4,)])
    optimizer = mine("SGD", [{"params": params[:1]}, {"params": params[1:]}], lr=0.0, max_norm=1.0)
    train(optimizer, range(1))
    norm = optimizer.last_norm
    assert isinstance(norm, float)
    other = mine("SGD", [{"params": params[:1]}, {"params": params[1:]}], lr=0.0)
    other.load_state_dict(saved(optimizer.state_dict()))
    train(other, range(1))
    assert other.last_norm == norm
    again = mine("SGD", [{"params": params[:1]}, {"params": params[1:]}], lr=0.0, max_norm=1.0)
    again.load_state_dict(saved(other.state_dict()))
    train(again, range(1))
    assert again.last_norm == norm


@pytest.mark.parametrize("max_norm", [None, 7.0])
def test_a_group_that_is_added_after_loading_shares_the_loaded_bound(max_norm: float | None) -> None:
    params = parameters([(3,), (4,)])
    saver = mine("SGD", params[:1], lr=0.0, max_norm=0.5)
    optimizer = mine("SGD", params[:1], lr=0.0, max_norm=max_norm)
    optimizer.load_state_dict(saved(saver.state_dict()))
    optimizer.add_param_group({"params": params[1:]})
    train(optimizer, range(1))
    norm = sum(float(parameter.grad.double().square().sum()) for parameter in params) ** 0.5
    assert optimizer.max_norm == 0.5
    assert optimizer.last_norm == pytest.approx(norm, rel=1e-14)
    assert optimizer.last_scale == pytest.approx(0.5 / (norm + 1e-6), rel=1e-14)
    # The group that was added has the same bound where it is the only one without its own.
    optimizer.param_groups[0]["max_norm"] = None
    train(optimizer, range(1))
    assert optimizer.max_norm == 0.5
    own = float(params[1].grad.double().square().sum()) ** 0.5
    assert optimizer.last_scale == [1.0, pytest.approx(0.5 / (own + 1e-6), rel=1e-14)]


@pytest.mark.parametrize("name", NAMES)
def test_narrow_moments_survive_loading_without_a_change_of_bits(name: str) -> None:
    options = {**WITH_STATES[name], "state_dtype": NARROW, "max_norm": 1.0}
    for dtype in (torch.float32, torch.float64, NARROW):
        optimizer = mine(name, parameters(dtype=dtype), **options)
        train(optimizer, range(2))
        for other in (mine(name, parameters(dtype=dtype), **options), mine(name, parameters(dtype=dtype))):
            other.load_state_dict(saved(optimizer.state_dict()))
            for mine_, theirs_ in zip(tensors_of(optimizer), tensors_of(other), strict=True):
                for key, value in optimizer.state[mine_].items():
                    found = other.state[theirs_][key]
                    assert same_bits(found, value)
                    if key != "step":
                        assert found.dtype is NARROW
                        assert found.data_ptr() != value.data_ptr() or value.numel() == 0


def test_float32_states_of_16_bit_parameters_stay_float32() -> None:
    # PyTorch's load_state_dict rounds them to the type of the parameter.
    optimizer = mine("AdamW", parameters(dtype=NARROW), state_dtype=torch.float32)
    train(optimizer, range(2))
    other = mine("AdamW", parameters(dtype=NARROW))
    other.load_state_dict(saved(optimizer.state_dict()))
    for first, second in zip(tensors_of(optimizer), tensors_of(other), strict=True):
        assert same_bits(optimizer.state[first]["exp_avg_sq"], other.state[second]["exp_avg_sq"])
        assert other.state[second]["exp_avg_sq"].dtype is torch.float32


def test_the_state_that_is_loaded_is_not_changed() -> None:
    optimizer = mine("AdamW", parameters(), state_dtype=NARROW, max_norm=1.0)
    train(optimizer, range(2))
    plain = theirs("AdamW", parameters())
    train(plain, range(2))
    for state in (optimizer.state_dict(), plain.state_dict()):
        before = copy.deepcopy(state)
        other = mine("AdamW", parameters(), state_dtype=NARROW, max_norm=3.0)
        other.load_state_dict(state)
        train(other, range(2, 3))
        assert state["param_groups"] == before["param_groups"]


def test_a_failed_load_changes_nothing() -> None:
    optimizer = mine("AdamW", parameters(), max_norm=1.0)
    train(optimizer, range(1))
    params = parameters()
    wrong = mine("AdamW", [{"params": params[:1]}, {"params": params[1:]}], max_norm=2.0).state_dict()
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict(wrong)
    assert optimizer.max_norm == 1.0
    assert not hasattr(optimizer, "_loaded_state")
    train(optimizer, range(1, 2))


def test_hooks_of_state_dicts_are_called() -> None:
    optimizer = mine("AdamW", parameters(), state_dtype=NARROW, max_norm=1.0)
    train(optimizer, range(1))

    def without_bound(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        groups = [
            {k: v for k, v in group.items() if k != "shared_max_norm"} for group in state["param_groups"]
        ]
        return {**state, "param_groups": groups}

    other = mine("AdamW", parameters(), max_norm=2.0)
    other.register_load_state_dict_pre_hook(without_bound)
    types: list[Any] = []
    other.register_load_state_dict_post_hook(
        lambda loaded: types.append(loaded.state[tensors_of(loaded)[0]]["exp_avg"].dtype)
    )
    other.load_state_dict(optimizer.state_dict())
    assert other.max_norm == 2.0
    assert types == [NARROW]


def test_step_counts_that_are_python_numbers_become_tensors() -> None:
    # Checkpoints of PyTorch before 1.12 hold them.
    for name in ("AdamW", "Adam", "Adagrad"):
        reference = theirs(name, parameters())
        train(reference, range(2))
        state = reference.state_dict()
        for values in state["state"].values():
            values["step"] = 2
        params = [torch.nn.Parameter(tensor.detach().clone()) for tensor in tensors_of(reference)]
        optimizer = mine(name, params)
        optimizer.load_state_dict(state)
        fresh = theirs(name, parameters())
        train(fresh, range(3))
        train(optimizer, range(2, 3))
        for parameter, wanted in zip(params, tensors_of(fresh), strict=True):
            torch.testing.assert_close(parameter, wanted, rtol=1e-6, atol=1e-6)
            assert optimizer.state[parameter]["step"].item() == 3.0


def test_momentum_that_is_none_in_a_state_of_torch_begins_anew() -> None:
    # PyTorch's SGD keeps None for parameters that had no step with momentum yet.
    params = parameters()
    reference = theirs("SGD", params, lr=0.1, foreach=False)
    train(reference, range(1))
    state = reference.state_dict()
    state["state"] = {index: {"momentum_buffer": None} for index in range(len(params))}
    other = [torch.nn.Parameter(tensor.detach().clone()) for tensor in params]
    options = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}
    for group in state["param_groups"]:
        group.update(options)
    optimizer, fresh = mine("SGD", params, **options), theirs("SGD", other, **options)
    optimizer.load_state_dict(state)
    train(optimizer, range(1, 3))
    train(fresh, range(1, 3))
    for parameter, wanted in zip(params, other, strict=True):
        torch.testing.assert_close(parameter, wanted, rtol=1e-6, atol=1e-6)
