"""Norm groups, steps that are not taken, hooks and what is left to PyTorch."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.optim.optimizer import register_optimizer_step_pre_hook  # noqa: E402

import fastclip  # noqa: E402
import fastclip.torch  # noqa: E402

pytestmark = pytest.mark.interop("torch")


def parameter(gradient: list[float] | None, value: float = 0.0) -> Any:
    count = 2 if gradient is None else len(gradient)
    tensor = torch.nn.Parameter(torch.full((count,), value))
    tensor.grad = None if gradient is None else torch.tensor(gradient)
    return tensor


def moved(tensor: Any) -> list[float]:
    return [-number for number in tensor.detach().tolist()]


# Norm groups -----------------------------------------------------------------------------------


def test_groups_without_a_bound_share_that_of_the_optimizer() -> None:
    first, second = parameter([3.0, 0.0]), parameter([0.0, 4.0])
    optimizer = fastclip.torch.SGD([{"params": [first]}, {"params": [second]}], lr=1.0, max_norm=1.0)
    optimizer.step()
    assert optimizer.last_norm == 5.0
    assert optimizer.last_scale == 1.0 / (5.0 + 1e-6)
    assert moved(first) == pytest.approx([0.6, 0.0], rel=1e-6)
    assert moved(second) == pytest.approx([0.0, 0.8], rel=1e-6)


def test_a_group_with_a_bound_is_clipped_by_itself_and_none_leaves_it_unclipped() -> None:
    tensors = [parameter([3.0, 0.0]), parameter([0.0, 40.0]), parameter([1e30, 1.0]), parameter([0.0, 4.0])]
    groups = [{"params": [tensor]} for tensor in tensors]
    groups[1]["max_norm"] = 2.0
    groups[2]["max_norm"] = None
    optimizer = fastclip.torch.SGD(groups, lr=1.0, max_norm=1.0)
    optimizer.step()
    assert optimizer.last_norm == [5.0, 40.0, None, 5.0]
    assert optimizer.last_scale == [1.0 / 5.000001, 2.0 / 40.000001, 1.0, 1.0 / 5.000001]
    assert moved(tensors[0]) == pytest.approx([0.6, 0.0], rel=1e-6)
    assert moved(tensors[1]) == pytest.approx([0.0, 2.0], rel=1e-6)
    assert moved(tensors[2]) == [pytest.approx(1e30), 1.0]
    assert moved(tensors[3]) == pytest.approx([0.0, 0.8], rel=1e-6)


def test_max_norm_may_be_set_between_steps() -> None:
    tensor = parameter([3.0, 4.0])
    optimizer = fastclip.torch.SGD([tensor], lr=1.0)
    assert optimizer.max_norm is None
    optimizer.step()
    assert optimizer.last_norm is None
    optimizer.max_norm = 1.0
    optimizer.step()
    assert optimizer.max_norm == 1.0
    assert moved(tensor) == pytest.approx([3.6, 4.8], rel=1e-6)
    optimizer.max_norm = None
    optimizer.step()
    assert moved(tensor) == pytest.approx([6.6, 8.8], rel=1e-6)


@pytest.mark.parametrize("bound", [-1.0, float("nan"), "x"])
def test_bounds_that_are_not_taken(bound: Any) -> None:
    with pytest.raises(ValueError, match=r"max_norm|convert"):
        fastclip.torch.AdamW([parameter([1.0])], max_norm=bound)
    with pytest.raises(ValueError, match=r"max_norm|convert"):
        fastclip.torch.AdamW([{"params": [parameter([1.0])], "max_norm": bound}])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("on_nonfinite", "ignore"),
        ("skip_above", -1.0),
        ("state_dtype", torch.float16),
        ("rounding", "up"),
        ("seed", -1),
        ("seed", 0.5),
        ("lr", -1.0),
        ("betas", (1.0, 0.9)),
        ("eps", -1.0),
        ("weight_decay", -1.0),
    ],
)
def test_options_that_are_not_taken(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r"is |Invalid"):
        fastclip.torch.AdamW([parameter([1.0])], **{option: value})


# Steps that are not taken ----------------------------------------------------------------------


def test_nonfinite_gradients_follow_torchs_rule_by_default() -> None:
    finite, infinite = parameter([1.0, 2.0]), parameter([float("inf"), 1.0])
    fastclip.torch.SGD([finite, infinite], lr=1.0, max_norm=1.0).step()
    assert moved(finite) == [0.0, 0.0]
    assert infinite.isnan().tolist() == [True, False]


def test_raise_names_the_parameters_and_writes_nothing() -> None:
    good, bad = parameter([1.0, 2.0]), parameter([float("nan"), 1.0])
    named = [("layer.weight", good), ("layer.bias", bad)]
    for params, name in ((named, "layer.bias"), ([good, bad], r"param_groups\[0\]\['params'\]\[1\]")):
        optimizer = fastclip.torch.AdamW(params, on_nonfinite="raise")
        with pytest.raises(fastclip.torch.NonFiniteGradientError, match=name) as caught:
            optimizer.step()
        assert isinstance(caught.value, RuntimeError)
        assert isinstance(caught.value, fastclip.NonFiniteError)
        assert caught.value.norms[0] == pytest.approx(5**0.5)
        assert optimizer.state[good]["step"] == 0.0
        assert moved(good) == [0.0, 0.0]
        assert moved(bad) == [0.0, 0.0]


def test_skip_counts_steps() -> None:
    tensor = parameter([float("inf"), 1.0])
    optimizer = fastclip.torch.AdamW([tensor], on_nonfinite="skip", skip_above=10.0)
    optimizer.step()
    tensor.grad = torch.tensor([11.0, 0.0])
    optimizer.step()
    assert optimizer.skipped_steps == 2
    assert moved(tensor) == [0.0, 0.0]
    tensor.grad = torch.tensor([9.0, 0.0])
    optimizer.step()
    assert optimizer.skipped_steps == 2
    assert moved(tensor)[0] == pytest.approx(1e-3)


def test_grad_scale_and_found_inf_are_obeyed() -> None:
    tensor, other = parameter([3.0, 4.0]), parameter([3.0, 4.0])
    scaled = fastclip.torch.AdamW([tensor], lr=0.1, max_norm=1.0)
    plain = fastclip.torch.AdamW([other], lr=0.1, max_norm=1.0)
    tensor.grad *= 1024.0
    scaled.grad_scale, scaled.found_inf = torch.tensor(1024.0), torch.tensor(0.0)
    scaled.step()
    plain.step()
    assert torch.equal(tensor, other)
    assert scaled.last_norm == 5.0
    scaled.found_inf = torch.tensor(1.0)
    scaled.step()
    assert torch.equal(tensor, other)


@pytest.mark.parametrize("fused", [None, True])
def test_grad_scaler(fused: bool | None) -> None:
    torch.manual_seed(0)
    mine = torch.nn.Linear(4, 3)
    theirs = copy.deepcopy(mine)
    optimizer = fastclip.torch.AdamW(mine.parameters(), lr=0.1, max_norm=0.1, fused=fused)
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.1)
    assert not hasattr(optimizer, "_step_supports_amp_scaling")
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**10) for _ in range(2)]
    for step in range(6):
        x = torch.randn(5, 4) * (float("inf") if step == 3 else 1.0)
        for model, stepped, scaler in ((mine, optimizer, scalers[0]), (theirs, reference, scalers[1])):
            stepped.zero_grad()
            scaler.scale(model(x).square().mean()).backward()
            if stepped is reference:
                scaler.unscale_(stepped)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(stepped)
            scaler.update()
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


# Hooks and closures ----------------------------------------------------------------------------


def test_hooks_and_closures_are_called() -> None:
    tensor = parameter([1.0, 1.0])
    optimizer = fastclip.torch.SGD([tensor], lr=1.0)
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    handle = register_optimizer_step_pre_hook(lambda *_: calls.append("global"))
    try:

        def closure() -> Any:
            calls.append("closure")
            assert torch.is_grad_enabled()
            return torch.tensor(7.0)

        with torch.no_grad():
            assert optimizer.step(closure) == 7.0
    finally:
        handle.remove()
    assert calls == ["global", "pre", "closure", "post"]


def test_a_derived_class_calls_hooks_once() -> None:
    class Counting(fastclip.torch.SGD):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    optimizer = Counting([parameter([1.0, 1.0])], lr=1.0)
    calls: list[int] = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    optimizer.step()
    assert calls == [1]


def test_steps_appear_in_a_profile() -> None:
    optimizer = fastclip.torch.AdamW([parameter([1.0, 1.0])])
    with torch.autograd.profiler.profile() as profile:
        optimizer.step()
    assert any("Optimizer.step#AdamW.step" in event.key for event in profile.key_averages())


def test_a_step_inside_of_a_step_is_refused() -> None:
    tensor = parameter([1.0, 1.0])
    optimizer = fastclip.torch.SGD([tensor], lr=1.0)

    class Bound(float):
        def __float__(self) -> float:
            with pytest.raises(RuntimeError, match="in the middle of a step"):
                optimizer.step()
            return 1.0

    optimizer.param_groups[0]["lr"] = Bound(1.0)
    optimizer.step()
    assert moved(tensor) == [1.0, 1.0]


SCHEDULERS = [
    ("LambdaLR", {"lr_lambda": lambda epoch: 0.9**epoch}),
    ("MultiplicativeLR", {"lr_lambda": lambda epoch: 0.9}),
    ("StepLR", {"step_size": 2}),
    ("MultiStepLR", {"milestones": [1, 3]}),
    ("ConstantLR", {}),
    ("LinearLR", {}),
    ("ExponentialLR", {"gamma": 0.9}),
    ("PolynomialLR", {}),
    ("CosineAnnealingLR", {"T_max": 4}),
    ("CosineAnnealingWarmRestarts", {"T_0": 2}),
    ("CyclicLR", {"base_lr": 0.01, "max_lr": 0.1}),
    ("OneCycleLR", {"max_lr": 0.1, "total_steps": 10}),
    ("ReduceLROnPlateau", {"patience": 1}),
]


@pytest.mark.parametrize(("name", "options"), SCHEDULERS)
@pytest.mark.parametrize("optimizer_name", ["AdamW", "SGD"])
def test_schedulers_set_the_same_rates(optimizer_name: str, name: str, options: dict[str, Any]) -> None:
    results = []
    for library in (fastclip.torch, torch.optim):
        tensor = parameter([1.0, -2.0])
        momentum = {"momentum": 0.9} if optimizer_name == "SGD" else {}
        optimizer = getattr(library, optimizer_name)([tensor], lr=0.05, **momentum)
        scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **options)
        rates = []
        for _ in range(6):
            optimizer.step()
            scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
            rates.append(optimizer.param_groups[0]["lr"])
        results.append((rates, tensor.detach()))
    assert results[0][0] == results[1][0]
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-6, atol=1e-7)


# What is left to PyTorch -----------------------------------------------------------------------


def complex_parameter() -> Any:
    tensor = torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))
    tensor.grad = torch.full((3,), 1.0 + 2.0j, dtype=torch.complex64)
    return tensor


def sparse_parameter() -> Any:
    tensor = torch.nn.Parameter(torch.ones(4, 2))
    tensor.grad = torch.sparse_coo_tensor([[1, 1]], torch.ones(2, 2), (4, 2), check_invariants=True)
    return tensor


def meta_parameter() -> Any:
    tensor = torch.nn.Parameter(torch.ones(3, device="meta"))
    tensor.grad = torch.ones(3, device="meta")
    return tensor


LEFT = [
    ("AdamW", complex_parameter, {}),
    ("SGD", sparse_parameter, {}),
    ("Adagrad", sparse_parameter, {}),
    ("AdamW", meta_parameter, {}),
    ("SGD", meta_parameter, {"momentum": 0.9}),
    ("Lion", meta_parameter, {}),
]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize(("name", "make", "options"), LEFT)
def test_other_tensors_are_left_to_torch(name: str, make: Any, options: dict[str, Any]) -> None:
    mine, theirs = make(), make()
    optimizer = getattr(fastclip.torch, name)([mine], **options)
    for _ in range(2):
        with torch.no_grad():
            optimizer.step()
    if name == "Lion":
        return
    reference = getattr(torch.optim, name)([theirs], **options)
    for _ in range(2):
        with torch.no_grad():
            reference.step()
    if not mine.is_meta:
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    ("name", "make", "options"), [*LEFT, ("AdamW", lambda: parameter([1.0, 2.0]), {"differentiable": True})]
)
def test_options_that_torch_lacks_raise_with_other_tensors(
    name: str, make: Any, options: dict[str, Any]
) -> None:
    for extra in ({"max_norm": 1.0}, {"on_nonfinite": "skip"}, {"skip_above": 1.0}):
        optimizer = getattr(fastclip.torch, name)([parameter([1.0, 1.0]), make()], **options, **extra)
        with pytest.raises(RuntimeError, match=f"{next(iter(extra))} (takes|cannot)"):
            optimizer.step()


# Low-precision copies and parts that other libraries replace -------------------------------------


def test_low_precision_copies_are_written_in_each_step() -> None:
    tensor = parameter([3.0, 4.0], 1.0)
    half = torch.zeros(2, dtype=torch.bfloat16)
    optimizer = fastclip.torch.AdamW([tensor, parameter([1.0])], lr=0.1)
    optimizer.set_low_precision_copy(tensor, half)
    assert torch.equal(half, tensor.detach().bfloat16())
    for _ in range(3):
        version = half._version
        optimizer.step()
        assert torch.equal(half, tensor.detach().bfloat16())
        assert half._version == version + 1
    optimizer.set_low_precision_copy(tensor, None)
    before = half.clone()
    optimizer.step()
    assert torch.equal(half, before)


@pytest.mark.parametrize(
    ("copied", "error"),
    [
        (torch.zeros(2), TypeError),
        (torch.zeros(3, dtype=torch.bfloat16), ValueError),
        (torch.zeros(2, dtype=torch.bfloat16, device="meta"), ValueError),
        ([0.0, 0.0], TypeError),
    ],
)
def test_copies_that_are_not_taken(copied: Any, error: type[Exception]) -> None:
    tensor = parameter([3.0, 4.0])
    optimizer = fastclip.torch.AdamW([tensor])
    with pytest.raises(error, match="copy"):
        optimizer.set_low_precision_copy(tensor, copied)
    with pytest.raises(ValueError, match="none of this optimizer"):
        optimizer.set_low_precision_copy(parameter([1.0]), copied)


def test_groups_and_states_may_be_replaced_between_steps() -> None:
    mine, theirs = parameter([3.0, 4.0]), parameter([3.0, 4.0])
    optimizer = fastclip.torch.AdamW([mine], lr=0.1, max_norm=1.0)
    reference = torch.optim.AdamW([theirs], lr=0.1)
    for _ in range(4):
        torch.nn.utils.clip_grad_norm_([theirs], 1.0)
        optimizer.step()
        reference.step()
        optimizer.param_groups = [dict(group, unknown_key=1) for group in optimizer.param_groups]
        states = {p: {k: v.clone() for k, v in state.items()} for p, state in optimizer.state.items()}
        optimizer.state = type(optimizer.state)(dict, states)
        theirs.grad = torch.tensor([3.0, 4.0])
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


def test_parameters_may_be_swapped_around_a_step() -> None:
    full, shards = torch.arange(6.0), [parameter([1.0, 1.0, 1.0]), parameter([2.0, 2.0, 2.0])]
    optimizer = fastclip.torch.SGD(shards, lr=1.0, momentum=0.9)
    for _ in range(2):
        kept = [list(group["params"]) for group in optimizer.param_groups]
        for shard in shards:
            optimizer.param_groups[0]["params"] = [shard]
            optimizer.step()
        optimizer.param_groups[0]["params"] = kept[0]
    assert moved(shards[0]) == pytest.approx([2.9] * 3)
    assert moved(shards[1]) == pytest.approx([5.8] * 3)
    assert full.sum() == 15.0


def test_parameters_that_share_memory_are_refused() -> None:
    memory = torch.zeros(3)
    tensors = [torch.nn.Parameter(memory[:2]), torch.nn.Parameter(memory[1:])]
    for tensor in tensors:
        tensor.grad = torch.ones(2)
    with pytest.raises(ValueError, match="shares memory"):
        fastclip.torch.SGD(tensors, lr=1.0).step()
    assert not memory.any()


def test_a_state_of_another_shape_is_refused() -> None:
    tensor = parameter([3.0, 4.0])
    optimizer = fastclip.torch.AdamW([tensor])
    optimizer.step()
    before = tensor.detach().clone()
    optimizer.state[tensor]["exp_avg"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"a slot of parameters\[0\]"):
        optimizer.step()
    assert torch.equal(tensor, before)
    assert optimizer.state[tensor]["step"] == 1.0


def test_a_group_alone_may_have_narrow_states() -> None:
    first, second, third = (torch.nn.Parameter(torch.ones(64)) for _ in range(3))
    optimizer = fastclip.torch.Adam(
        [{"params": [first], "state_dtype": torch.bfloat16}, {"params": [second]}]
    )
    optimizer.add_param_group({"params": [third], "state_dtype": torch.bfloat16, "seed": np.int64(5)})
    for parameter in (first, second, third):
        parameter.grad = torch.full((64,), 1.003)
    optimizer.step()
    dtypes = [optimizer.state[parameter]["exp_avg"].dtype for parameter in (first, second, third)]
    assert dtypes == [torch.bfloat16, torch.float32, torch.bfloat16]
    assert not torch.equal(optimizer.state[first]["exp_avg"], optimizer.state[third]["exp_avg"])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("seed", -1),
        ("seed", 2**64),
        ("seed", "a"),
        ("seed", 1.5),
        ("rounding", "down"),
        ("state_dtype", torch.float16),
        ("state_dtype", "bfloat16"),
    ],
)
def test_options_of_groups_are_checked_like_those_of_the_optimizer(option: str, value: Any) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=f"{option} is"):
        fastclip.torch.AdamW([{"params": [parameter], option: value}], state_dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=f"{option} is"):
        fastclip.torch.AdamW([parameter], **{option: value})
