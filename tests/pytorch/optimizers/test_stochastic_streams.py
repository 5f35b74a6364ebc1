"""Stochastic rounding of moments and parameters: random bits, their independence, means without bias."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch")

from optimizer_pairs import (  # noqa: E402
    NAMES,
    WITH_STATES,
    mine,
    parameters,
    same_bits,
    set_gradients,
    snapshot,
)

import fastclip  # noqa: E402
import fastclip.torch  # noqa: E402
from support import fresh_python  # noqa: E402

pytestmark = pytest.mark.interop("torch")

NARROW = torch.bfloat16
COUNT = 1 << 16

#: Parameters whose moments are long enough for several threads, and some short and empty ones.
SHAPES = ((300_007,), (40, 30), (), (0,), (17,))


# The bits --------------------------------------------------------------------------------------


def mixed(x: int) -> int:
    """Returns the next number of splitmix64 (Steele, Lea, Flood 2014) after x."""
    mask = 2**64 - 1
    x = (x + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def random_bits(seed: int, step: int, tensor: int, array: int, count: int) -> npt.NDArray[np.uint32]:
    """Returns the 16 random bits of each element of an array: a half of a keyed lowbias32 of the index.

    The arrays of a pair share a hash; the even one takes the upper half.
    """
    key = mixed(mixed(mixed(mixed(seed) + step & 2**64 - 1) + tensor & 2**64 - 1) + array // 2 & 2**64 - 1)
    x = np.arange(count, dtype=np.uint32) + np.uint32(key & 0xFFFFFFFF)
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D) ^ np.uint32(key >> 32)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return x >> np.uint32(16) if array % 2 == 0 else x & np.uint32(0xFFFF)


def rounded(values: Any, bits: npt.NDArray[np.uint32]) -> Any:
    """Returns float32 values rounded to bfloat16 with given random bits."""
    numbers = values.detach().numpy().view(np.uint32) + bits
    return torch.from_numpy((numbers >> np.uint32(16)).astype(np.uint16).view(np.int16)).view(NARROW)


def test_the_bits_are_those_of_the_named_generators() -> None:
    # A change of the bits would change runs that are resumed with a later version.
    params = parameters([(5,), (1000,)])
    optimizer = mine("SGD", params, lr=0.0, momentum=0.9, state_dtype=NARROW, seed=2**63 + 11)
    set_gradients(params, 0)
    optimizer.step()
    # The first momentum is the gradient. The parameter is array 0 of its tensor, the gradient 1, the
    # momentum 2.
    for tensor, parameter in enumerate(params):
        bits = random_bits(2**63 + 11, 1, tensor, 2, parameter.numel())
        wanted = rounded(parameter.grad, bits)
        assert same_bits(optimizer.state[parameter]["momentum_buffer"], wanted)


def test_the_bits_of_parameters_are_those_of_the_named_generators() -> None:
    params = [torch.nn.Parameter(torch.full((1000,), 2.0, dtype=NARROW))]
    params[0].grad = torch.linspace(-1.0, 1.0, 1000).to(NARROW)
    optimizer = mine("SGD", params, lr=0.01, state_dtype=NARROW, seed=7)
    optimizer.step()
    exact = torch.full((1000,), 2.0) - params[0].grad.float() * torch.tensor(0.01)
    assert same_bits(params[0].detach(), rounded(exact, random_bits(7, 1, 0, 0, 1000)))


@pytest.mark.parametrize("dtype", [torch.float32, NARROW, torch.float64], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_bits_are_the_same_for_any_number_of_threads(name: str, dtype: Any) -> None:
    results = []
    for threads in (1, 2, 3, 7):
        params = parameters(SHAPES, dtype)
        optimizer = mine(name, params, lr=0.01, max_norm=1.0, state_dtype=NARROW, seed=1, **WITH_STATES[name])
        with fastclip.threads(threads):
            for step in range(2):
                set_gradients(params, step)
                optimizer.step()
        results.append(snapshot(optimizer))
    for other in results[1:]:
        assert all(same_bits(*pair) for pair in zip(results[0], other, strict=True))


def test_bits_are_the_same_for_a_number_of_threads_that_is_set_for_the_process() -> None:
    results = []
    before = fastclip.get_num_threads()
    try:
        for threads in (1, 4):
            fastclip.set_num_threads(threads)
            params = parameters(SHAPES, NARROW)
            optimizer = mine("AdamW", params, state_dtype=NARROW)
            set_gradients(params, 0)
            optimizer.step()
            results.append(snapshot(optimizer))
    finally:
        fastclip.set_num_threads(before)
    assert all(same_bits(*pair) for pair in zip(*results, strict=True))


TRAINING = """
    import hashlib, torch, fastclip.torch
    digest = hashlib.sha256()
    for name in ("AdamW", "Lion"):
        parameter = torch.nn.Parameter(torch.ones(5003, dtype=torch.bfloat16))
        optimizer = getattr(fastclip.torch, name)(
            [parameter], lr=0.01, max_norm=1.0, state_dtype=torch.bfloat16, seed=3
        )
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            parameter.grad = torch.randn(5003, generator=generator).to(torch.bfloat16)
            optimizer.step()
        for tensor in (parameter.detach(), optimizer.state[parameter]["exp_avg"]):
            digest.update(tensor.view(torch.int16).numpy().tobytes())
    print(digest.hexdigest())
"""


def test_bits_are_the_same_at_the_lowest_level_of_instructions(capsys: pytest.CaptureFixture[str]) -> None:
    exec(textwrap.dedent(TRAINING), {})
    assert fresh_python.run(TRAINING, env={"FASTCLIP_ISA": "scalar"}).stdout == capsys.readouterr().out


# Streams ---------------------------------------------------------------------------------------


def ups(optimizer: Any, params: Sequence[Any], step: int = 0) -> list[Any]:
    """Takes a step of `halves`, and returns which elements of each momentum were rounded up."""
    for parameter in params:
        optimizer.state[parameter]["momentum_buffer"] = torch.ones(parameter.shape, dtype=NARROW)
        parameter.grad = torch.full(parameter.shape, 2.0**-8)
    optimizer.step()
    momenta = [optimizer.state[parameter]["momentum_buffer"] for parameter in params]
    assert all(bool(((momentum == 1.0) | (momentum == 1.0 + 2.0**-7)).all()) for momentum in momenta)
    return [(momentum > 1.0).flatten() for momentum in momenta]


def halves(shapes: Sequence[tuple[int, ...]], **options: Any) -> tuple[Any, list[Any]]:
    """Returns an optimizer each of whose momenta becomes 1 + 2⁻⁸, half of a unit, and its parameters."""
    params = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    options = {"lr": 0.0, "momentum": 1.0, "state_dtype": NARROW, **options}
    return mine("SGD", params, **options), params


def assert_independent(first: Any, second: Any) -> None:
    """Checks that two fair coins agree in half of the throws, to six standard deviations."""
    count = len(first)
    agreed = int((first == second).sum())
    assert abs(agreed - count / 2) < 6 * (count / 4) ** 0.5


def test_elements_are_rounded_independently() -> None:
    optimizer, params = halves([(COUNT,)])
    up = ups(optimizer, params)[0]
    assert abs(int(up.sum()) - COUNT / 2) < 6 * (COUNT / 4) ** 0.5
    for distance in (1, 2, 7, 8, 16, 64, 256, 1024, 4096, COUNT // 2):
        assert_independent(up[distance:], up[:-distance])


def test_tensors_are_rounded_independently() -> None:
    # llm.c#597: one stream for many tensors.
    optimizer, params = halves([(COUNT,)] * 4)
    flips = ups(optimizer, params)
    for index, first in enumerate(flips):
        for second in flips[index + 1 :]:
            assert_independent(first, second)
            # Nor does one stream go on where another ends.
            assert_independent(first[: COUNT // 2], second[COUNT // 2 :])


def test_steps_are_rounded_independently() -> None:
    # OneTrainer#804: a seed that is not tied to the step.
    optimizer, params = halves([(COUNT,)])
    flips = [ups(optimizer, params)[0] for _ in range(4)]
    for index, first in enumerate(flips):
        for second in flips[index + 1 :]:
            assert_independent(first, second)


def test_a_step_and_a_tensor_do_not_make_up_for_each_other() -> None:
    # Sums of seed, step and number would make the next step of a tensor the present one of the next tensor.
    optimizer, params = halves([(COUNT,)] * 3)
    first, second = ups(optimizer, params), ups(optimizer, params)
    other, others = halves([(COUNT,)] * 3, seed=1)
    third = ups(other, others)
    for a in (*second, *third):
        for b in first:
            assert_independent(a, b)


def test_seeds_are_rounded_independently() -> None:
    flips = []
    for seed in (0, 1, 2, 2**32, 2**64 - 1):
        optimizer, params = halves([(COUNT,)], seed=seed)
        flips.append(ups(optimizer, params)[0])
    for index, first in enumerate(flips):
        for second in flips[index + 1 :]:
            assert_independent(first, second)


def test_a_seed_gives_the_same_bits_again() -> None:
    flips = []
    for _ in range(2):
        optimizer, params = halves([(COUNT,)], seed=5)
        flips.append(ups(optimizer, params)[0])
    assert torch.equal(*flips)


def test_the_moments_and_the_parameter_of_a_tensor_are_rounded_independently() -> None:
    # Each of them is halfway between two numbers of bfloat16: the parameter by its decay.
    parameter = torch.nn.Parameter(torch.full((COUNT,), 1.0 + 2.0**-7, dtype=NARROW))
    options = {"lr": 2.0**-8, "weight_decay": 1.0, "betas": (0.5, 0.5), "eps": 1.0}
    optimizer = mine("AdamW", [parameter], state_dtype=NARROW, **options)
    optimizer.state[parameter] = {
        "step": torch.zeros(()),
        "exp_avg": torch.ones(COUNT, dtype=NARROW),
        "exp_avg_sq": torch.ones(COUNT, dtype=NARROW),
    }
    parameter.grad = torch.full((COUNT,), 1.0 + 2.0**-7, dtype=NARROW)
    optimizer.step()
    state = optimizer.state[parameter]
    arrays = [parameter.detach(), state["exp_avg"], state["exp_avg_sq"]]
    flips = []
    for array in arrays:
        found = array.double().unique()
        assert len(found) == 2
        flips.append(array.double() == found[1])
    # The first moment is exactly halfway, the others are up with other probabilities.
    shares = [float(flip.double().mean()) for flip in flips]
    assert shares[1] == pytest.approx(0.5, abs=0.02)
    for first, second in ((0, 1), (1, 2), (0, 2)):
        both = float((flips[first] & flips[second]).double().mean())
        assert both == pytest.approx(shares[first] * shares[second], abs=6 * 0.5 / COUNT**0.5)


def test_bits_of_a_tensor_depend_neither_on_groups_nor_on_other_gradients() -> None:
    wanted, params = halves([(1000,), (1000,), (1000,)])
    flips = ups(wanted, params)
    # In groups.
    others = [torch.nn.Parameter(torch.zeros(1000)) for _ in range(3)]
    grouped = mine(
        "SGD",
        [{"params": others[:1], "max_norm": 1e9}, {"params": others[1:]}],
        lr=0.0,
        momentum=1.0,
        state_dtype=NARROW,
    )
    assert all(torch.equal(*pair) for pair in zip(ups(grouped, others), flips, strict=True))
    # Where the second one alone has a gradient.
    single, alone = halves([(1000,), (1000,), (1000,)])
    assert torch.equal(ups(single, alone[1:2])[0], flips[1])


def test_bits_depend_on_the_number_of_steps_of_the_parameter() -> None:
    # A parameter that got no gradient in one step goes on where it was.
    optimizer, params = halves([(1000,), (1000,)])
    reference, others = halves([(1000,), (1000,)])
    ups(optimizer, params[:1])
    params[0].grad = None
    late = ups(optimizer, params[1:])[0]
    assert torch.equal(late, ups(reference, others)[1])


def test_rounding_draws_nothing_from_torchs_generator() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    optimizer, params = halves([(COUNT,)])
    ups(optimizer, params)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(4)
    other, others = halves([(COUNT,)])
    assert torch.equal(ups(other, others)[0], ups(*halves([(COUNT,)]))[0])


@pytest.mark.parametrize("name", NAMES)
def test_a_skipped_step_uses_up_no_bits(name: str) -> None:
    results = []
    for bad_step in (None, 1):
        params = parameters([(1000,)], NARROW)
        optimizer = mine(name, params, lr=0.01, state_dtype=NARROW, on_nonfinite="skip", **WITH_STATES[name])
        for step in range(3):
            if step == bad_step:
                params[0].grad = torch.full((1000,), float("nan"), dtype=NARROW)
                optimizer.step()
            set_gradients(params, step)
            optimizer.step()
        results.append(snapshot(optimizer))
    assert all(same_bits(*pair) for pair in zip(*results, strict=True))


# Means -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [1.0 + 2.0**-8, 1.0 + 2.0**-9, 1.0 + 2.0**-12, 1.2345678, -3.3333333, 255.3, 1e-30, -7e30, 3e-39, 0.1],
)
def test_means_are_without_bias(value: float) -> None:
    count = 1 << 18
    parameter = torch.nn.Parameter(torch.zeros(count))
    optimizer = mine("SGD", [parameter], lr=0.0, momentum=0.9, state_dtype=NARROW)
    parameter.grad = torch.full((count,), value)
    optimizer.step()
    momentum = optimizer.state[parameter]["momentum_buffer"].double()
    exact = parameter.grad[0].double().item()
    found = momentum.unique().tolist()
    assert len(found) == 2
    low, high = found
    assert low < exact < high
    share = (exact - low) / (high - low)
    up = float((momentum == high).double().mean())
    # Six standard deviations, and the grid of 2^-16 that the random bits are on.
    assert abs(up - share) < 6 * (share * (1 - share) / count) ** 0.5 + 2.0**-16


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -1.5, 2.0**-133, 3.3895e38, float("inf"), float("-inf")])
def test_numbers_of_bfloat16_are_not_rounded(value: float) -> None:
    parameter = torch.nn.Parameter(torch.zeros(5000))
    optimizer = mine("SGD", [parameter], lr=0.0, momentum=0.9, state_dtype=NARROW)
    parameter.grad = torch.full((5000,), value).to(NARROW).float()
    optimizer.step()
    momentum = optimizer.state[parameter]["momentum_buffer"]
    assert torch.equal(momentum, parameter.grad.to(NARROW))


def test_nan_stays_nan() -> None:
    parameter = torch.nn.Parameter(torch.zeros(5000, dtype=NARROW))
    optimizer = mine("AdamW", [parameter], state_dtype=NARROW)
    parameter.grad = torch.full((5000,), float("nan"), dtype=NARROW)
    optimizer.step()
    for tensor in (parameter, *optimizer.state[parameter].values()):
        assert tensor.ndim == 0 or bool(tensor.isnan().all())


@pytest.mark.parametrize("name", ["AdamW", "Adam", "SGD", "Lion"])
def test_decay_does_not_vanish_in_bfloat16_parameters(name: str) -> None:
    # OneTrainer#996. A decay of 1e-5 a step is far below half of a unit in the last place, 2^-9.
    steps, decay = 100, 1e-5
    options: dict[str, Any] = {"lr": 1e-3, "weight_decay": 1e-2}
    if name == "Adam":
        options["decoupled_weight_decay"] = True
    shrunk = {}
    for rounding in ("stochastic", "nearest"):
        parameter = torch.nn.Parameter(torch.ones(COUNT, dtype=NARROW))
        optimizer = mine(name, [parameter], state_dtype=NARROW, rounding=rounding, **options)
        parameter.grad = torch.zeros(COUNT, dtype=NARROW)
        for _ in range(steps):
            optimizer.step()
        shrunk[rounding] = 1.0 - parameter.detach().double().mean().item()
    # Every element goes down by 2^-8 with a probability of about decay·2^8 a step.
    deviation = (decay * 2.0**-8 * steps / COUNT) ** 0.5
    assert shrunk["nearest"] == 0.0
    assert abs(shrunk["stochastic"] - steps * decay) < 6 * deviation + 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_parameters_follow_float32_ones_on_average(name: str) -> None:
    # The mean of bfloat16 parameters follows small steps; rounded to nearest, they stand still.
    means = {}
    for dtype, rounding in ((torch.float32, "stochastic"), (NARROW, "stochastic"), (NARROW, "nearest")):
        parameter = torch.nn.Parameter(torch.ones(COUNT, dtype=dtype))
        optimizer = mine(name, [parameter], lr=1e-4, state_dtype=NARROW, rounding=rounding)
        for _ in range(20):
            parameter.grad = torch.ones(COUNT, dtype=dtype)
            optimizer.step()
        means[dtype, rounding] = 1.0 - parameter.detach().double().mean().item()
    wanted = means[torch.float32, "stochastic"]
    assert wanted > 2e-4
    assert means[NARROW, "stochastic"] == pytest.approx(
        wanted, abs=6 * (wanted * 2.0**-8 / COUNT) ** 0.5 + 1e-5
    )
    assert means[NARROW, "nearest"] == 0.0


# What is rounded how ---------------------------------------------------------------------------


@pytest.mark.parametrize("state_dtype", [NARROW, torch.float32], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, NARROW, torch.float16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_moments_have_the_type_that_is_given(name: str, dtype: Any, state_dtype: Any) -> None:
    params = parameters(dtype=dtype)
    optimizer = mine(name, params, state_dtype=state_dtype, max_norm=1.0, **WITH_STATES[name])
    for step in range(2):
        set_gradients(params, step)
        optimizer.step()
    for parameter in params:
        assert parameter.dtype is dtype
        state = optimizer.state[parameter]
        assert {key for key in state if key != "step"} != set()
        for key, value in state.items():
            assert value.dtype is (torch.float32 if key == "step" else state_dtype)
            assert value.shape == (() if key == "step" else parameter.shape)


@pytest.mark.parametrize("name", NAMES)
def test_rounding_to_nearest_is_a_rounding_of_float32(name: str) -> None:
    # After one step, moments and parameters are those of float32 training rounded once.
    for dtype in (torch.float32, NARROW):
        params = parameters([(1000,)], dtype)
        wide = [torch.nn.Parameter(parameter.detach().float()) for parameter in params]
        options = {"lr": 0.01, **WITH_STATES[name]}
        optimizer = mine(name, params, state_dtype=NARROW, rounding="nearest", **options)
        reference = mine(name, wide, **options)
        set_gradients(params, 0)
        wide[0].grad = params[0].grad.float()
        optimizer.step()
        reference.step()
        assert same_bits(params[0].detach(), wide[0].detach().to(dtype))
        for key, value in reference.state[wide[0]].items():
            if key != "step":
                assert same_bits(optimizer.state[params[0]][key], value.to(NARROW))


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
@pytest.mark.parametrize("name", NAMES)
def test_without_a_state_dtype_rounding_and_seed_have_no_effect(name: str, rounding: str) -> None:
    results = []
    for options in ({}, {"rounding": rounding, "seed": 9}):
        params = parameters(dtype=NARROW)
        optimizer = mine(name, params, lr=0.01, **WITH_STATES[name], **options)
        for step in range(3):
            set_gradients(params, step)
            optimizer.step()
        results.append(snapshot(optimizer))
    assert all(same_bits(*pair) for pair in zip(*results, strict=True))


def test_float32_moments_with_bfloat16_parameters_round_the_parameters_stochastically() -> None:
    parameter = torch.nn.Parameter(torch.ones(COUNT, dtype=NARROW))
    parameter.grad = torch.full((COUNT,), 2.0**-9, dtype=NARROW)
    optimizer = mine("SGD", [parameter], lr=1.0, momentum=0.9, state_dtype=torch.float32)
    optimizer.step()
    # The numbers below 1 are 2^-8 apart: halfway.
    assert sorted(parameter.detach().unique().tolist()) == [1.0 - 2.0**-8, 1.0]
    share = float((parameter.detach() == 1.0).double().mean())
    assert share == pytest.approx(0.5, abs=6 * 0.5 / COUNT**0.5)
    momentum = optimizer.state[parameter]["momentum_buffer"]
    assert momentum.dtype is torch.float32
    assert torch.equal(momentum, parameter.grad.float())


def test_float16_parameters_are_rounded_to_nearest() -> None:
    results = []
    for rounding in ("stochastic", "nearest"):
        params = parameters([(1000,)], torch.float16)
        optimizer = mine("SGD", params, lr=0.01, momentum=0.9, state_dtype=torch.float32, rounding=rounding)
        for step in range(3):
            set_gradients(params, step)
            optimizer.step()
        results.append(params[0].detach())
    assert same_bits(*results)


@pytest.mark.parametrize("name", NAMES)
def test_groups_may_differ_in_the_type_of_their_moments(name: str) -> None:
    params = parameters([(100,), (100,), (100,)])
    groups: list[dict[str, Any]] = [{"params": [parameter]} for parameter in params]
    groups[0]["state_dtype"] = torch.float32
    groups[1]["rounding"] = "nearest"
    key = {"SGD": "momentum_buffer", "Adagrad": "sum"}.get(name, "exp_avg")
    optimizer = mine(name, groups, state_dtype=NARROW, max_norm=1.0, **WITH_STATES[name])
    set_gradients(params, 0)
    optimizer.step()
    moments = [optimizer.state[parameter][key] for parameter in params]
    assert [moment.dtype for moment in moments] == [torch.float32, NARROW, NARROW]
    assert isinstance(optimizer.last_norm, float)
    exact = parameters([(100,), (100,), (100,)])
    reference = mine(name, exact, max_norm=1.0, **WITH_STATES[name])
    set_gradients(exact, 0)
    reference.step()
    wanted = [reference.state[parameter][key] for parameter in exact]
    assert same_bits(moments[0], wanted[0])
    assert same_bits(moments[1], wanted[1].to(NARROW))
    assert not same_bits(moments[2], wanted[2].to(NARROW))


@pytest.mark.parametrize("name", NAMES)
def test_a_type_that_only_a_group_has_is_used(name: str) -> None:
    params = parameters([(100,), (100,)])
    options = {"state_dtype": NARROW, "rounding": "nearest", "seed": 0}
    groups: list[dict[str, Any]] = [{"params": params[:1]}, {"params": params[1:], **options}]
    optimizer = mine(name, groups, **WITH_STATES[name])
    set_gradients(params, 0)
    optimizer.step()
    types = [
        {value.dtype for key, value in optimizer.state[parameter].items() if key != "step"}
        for parameter in params
    ]
    assert types == [{torch.float32}, {NARROW}]


def test_groups_may_differ_in_their_seeds() -> None:
    flips = []
    for seeds in ((1, 1), (2, 2), (1, 2)):
        params = [torch.nn.Parameter(torch.zeros(1000)) for _ in range(2)]
        groups = [
            {"params": [parameter], "seed": seed} for parameter, seed in zip(params, seeds, strict=True)
        ]
        flips.append(ups(mine("SGD", groups, lr=0.0, momentum=1.0, state_dtype=NARROW), params))
    assert torch.equal(flips[2][0], flips[0][0])
    assert torch.equal(flips[2][1], flips[1][1])


def test_half_of_the_memory_is_used() -> None:
    sizes = []
    for state_dtype in (None, NARROW):
        params = parameters([(1000,)])
        optimizer = mine("AdamW", params, state_dtype=state_dtype)
        set_gradients(params, 0)
        optimizer.step()
        state = optimizer.state[params[0]]
        sizes.append(sum(value.untyped_storage().nbytes() for key, value in state.items() if key != "step"))
    assert sizes == [8000, 4000]


def test_layouts_are_rounded_in_their_own_order() -> None:
    # The same parameter, in other strides, has the same probabilities but bits of its own layout.
    for layout in ("contiguous", "transposed", "strided", "channels last"):
        memory = torch.ones(4, 64, 64, 8)
        parameter = torch.nn.Parameter(
            {
                "contiguous": memory,
                "transposed": memory.transpose(0, 2),
                "strided": memory[:, ::2],
                "channels last": memory.to(memory_format=torch.channels_last),
            }[layout]
        )
        optimizer = mine("SGD", [parameter], lr=0.0, momentum=1.0, state_dtype=NARROW)
        parameter.grad = torch.full(parameter.shape, 1.0 + 2.0**-8)
        optimizer.step()
        momentum = optimizer.state[parameter]["momentum_buffer"]
        assert momentum.stride() == torch.zeros_like(parameter).stride()
        up = (momentum > 1.0).flatten()
        assert abs(int(up.sum()) - len(up) / 2) < 6 * (len(up) / 4) ** 0.5
        for distance in (1, 8, 64, 512):
            assert_independent(up[distance:], up[:-distance])
