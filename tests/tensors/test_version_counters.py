"""torch's version counters move once for each tensor that a call writes, so that autograd notices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastclip
from fastclip import train
from support.clip_calls import EVERY_CLIP, EVERY_SCALING, Clip
from support.tensor_kinds import to_torch
from support.training_cases import EVERY_OPTIMIZER, build

pytestmark = [pytest.mark.interop("torch"), pytest.mark.filterwarnings("ignore")]
torch = pytest.importorskip("torch")


def tensors() -> list[Any]:
    return [torch.full((4, 3), 2.0), torch.full((5,), -3.0, dtype=torch.float64), torch.full((2, 2), 7.0).T]


def versions(values: list[Any]) -> list[int]:
    return [value._version for value in values]


# --- clip functions -----------------------------------------------------------------------------


@EVERY_CLIP
def test_in_place(clip: Clip) -> None:
    values = tensors()
    before = versions(values)
    clip(values, out=values)
    assert versions(values) == [version + 1 for version in before]


@EVERY_CLIP
def test_separate_outputs(clip: Clip) -> None:
    values, out = tensors(), tensors()
    before, out_before = versions(values), versions(out)
    clip(values, out=out)
    assert versions(values) == before
    assert versions(out) == [version + 1 for version in out_before]


@EVERY_CLIP
def test_inputs_are_not_marked_as_written(clip: Clip) -> None:
    values = tensors()
    before = versions(values)
    clip(values)
    assert versions(values) == before


def test_in_place_and_within_the_bound() -> None:
    values = tensors()
    before = versions(values)
    fastclip.clip_by_global_norm(values, 1e9, out=values)
    fastclip.clip_by_global_norm(values, 1e9, use_norm=3.0, out=values)
    fastclip.clip_by_global_norm(values, np.inf, out=values)
    fastclip.clip_by_block_rms(values, 1e9, out=values)
    for value in values:
        fastclip.clip_by_norm(value, 1e9, out=value)
        fastclip.clip_by_average_norm(value, 1e9, out=value)
    assert versions(values) == before


def test_separate_output_within_the_bound_is_written() -> None:
    value, out = torch.ones(3), torch.zeros(3)
    fastclip.clip_by_global_norm([value], 1e9, out=[out])
    assert out._version == 1
    assert torch.equal(out, value)
    fastclip.clip_by_norm(value, 1e9, out=out)
    assert out._version == 2


def test_tensors_clipped_by_norms_of_their_own_move_one_by_one() -> None:
    small, large = torch.full((4,), 0.1), torch.full((4,), 9.0)
    fastclip.clip_by_block_rms([small, large], 1.0, out=[small, large])
    assert large._version == 1
    # The first is written with the bits it has, or not at all.
    assert small._version <= 1


def test_views_share_the_counter_of_their_base() -> None:
    base = torch.full((4, 3), 2.0)
    fastclip.clip_by_global_norm([base[:2]], 0.5, out=[base[:2]])
    assert base._version == 1
    top, bottom = base[:2], base[2:]
    fastclip.clip_by_global_norm([top, bottom], 0.25, out=[top, bottom])
    assert base._version > 1
    detached = base.detach()
    version = base._version
    fastclip.clip_by_norm(detached, 0.125, out=detached)
    assert base._version == version + 1


@EVERY_SCALING
def test_calls_that_fail(clip: Clip) -> None:
    values = tensors()
    before = versions(values)
    wrong = [*values[:-1], np.zeros(99)]
    with pytest.raises(ValueError, match="out"):
        clip(values[::-1], out=wrong)
    bad = [*values, torch.tensor([float("nan")])]
    with pytest.raises(fastclip.NonFiniteError):
        fastclip.clip_by_global_norm(bad, 0.5, on_nonfinite="raise", out=bad)
    for options in ({"clip_norm": -1.0}, {"clip_norm": 0.5, "norms": np.zeros(9)}):
        with pytest.raises(ValueError, match="norm"):
            fastclip.clip_by_global_norm(values, out=values, **options)
    assert versions(values) == before
    assert versions(bad[-1:]) == [0]


def test_nonfinite_norms_write_every_output() -> None:
    for policy in ("propagate", "zero"):
        values = [torch.ones(3), torch.tensor([float("nan"), 1.0])]
        fastclip.clip_by_global_norm(values, 1e9, on_nonfinite=policy, out=values)
        assert versions(values) == [1, 1]


def test_sparse_rows_in_place() -> None:
    values = torch.full((2, 3), 4.0)
    slices = fastclip.IndexedSlices(values, np.array([4, 0]), (5, 3))
    assert slices.values is values
    fastclip.clip_by_global_norm([slices], 0.5, out=[slices])
    assert values._version == 1


BACKWARD: dict[str, Callable[[Any], object]] = {
    "clip_by_norm": lambda p: fastclip.clip_by_norm(p, 0.5, out=p),
    "clip_by_value": lambda p: fastclip.clip_by_value(p, 0.0, 0.5, out=p),
    "clip_by_global_norm": lambda p: fastclip.clip_by_global_norm([p], 0.5, out=[p]),
    "clip_by_block_rms": lambda p: fastclip.clip_by_block_rms([p], 0.5, out=[p]),
    "adaptive_clip": lambda p: fastclip.adaptive_clip([np.ones(3, "f4")], [p], out=[p]),
    "as an output only": lambda p: fastclip.clip_by_norm(np.ones(3, "f4"), 0.5, out=p),
    "step": lambda p: train.GradientDescentOptimizer(0.1).apply_gradients([(np.ones(3, "f4"), p)]),
    "step of Adam": lambda p: train.AdamOptimizer().apply_gradients([(torch.ones(3), p)]),
    "sparse step": lambda p: train.AdagradOptimizer(0.1).apply_gradients(
        [(fastclip.IndexedSlices(np.ones(1, "f4"), np.array([1])), p)]
    ),
}


@pytest.mark.parametrize("name", BACKWARD)
def test_backward_through_a_value_that_was_written_raises(name: str) -> None:
    p = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    q = (p**2).sum()
    BACKWARD[name](p)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        q.backward()


def test_backward_through_a_value_that_was_not_written_works() -> None:
    p = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    q = (p**2).sum()
    fastclip.clip_by_global_norm([p], 1e9, out=[p])
    fastclip.global_norm([p])
    with torch.no_grad():
        fastclip.clip_by_norm(p, 0.5)
    q.backward()
    assert torch.equal(p.grad, 2 * p.detach())


# --- optimizers ---------------------------------------------------------------------------------


@EVERY_OPTIMIZER
def test_a_step_moves_the_counter_of_each_variable_once(variant: str) -> None:
    parameters = [torch.nn.Parameter(value) for value in tensors()]
    gradients = [torch.ones_like(parameter) for parameter in parameters]
    optimizer = build(variant)
    for steps in (1, 2, 3):
        optimizer.apply_gradients(zip(gradients, parameters, strict=True))
        assert versions(parameters) == [steps] * len(parameters)
        assert versions(gradients) == [0] * len(gradients)


def test_a_skipped_or_refused_step_moves_no_counter() -> None:
    parameters = [torch.nn.Parameter(value) for value in tensors()]
    gradients = [torch.ones_like(parameter) for parameter in parameters]
    gradients[1][0] = float("inf")
    pairs = list(zip(gradients, parameters, strict=True))
    train.AdamOptimizer(on_nonfinite="skip").apply_gradients(pairs)
    with pytest.raises(fastclip.NonFiniteError):
        train.AdamOptimizer(on_nonfinite="raise").apply_gradients(pairs)
    with pytest.raises(ValueError, match="grads_and_vars"):
        train.AdamOptimizer().apply_gradients([*pairs, (np.ones(7), np.ones(8))])
    assert versions(parameters) == [0, 0, 0]


def test_variables_without_gradient_keep_their_counter() -> None:
    first, second = (torch.nn.Parameter(value) for value in tensors()[:2])
    train.AdamOptimizer().apply_gradients([(torch.ones_like(first), first), (None, second)])
    assert versions([first, second]) == [1, 0]


def test_variable_that_shares_memory_with_an_array() -> None:
    array = np.ones(3, np.float32)
    parameter = torch.nn.Parameter(to_torch(array))
    train.GradientDescentOptimizer(0.5).apply_gradients([(np.ones(3, "f4"), parameter)])
    np.testing.assert_array_equal(array, 0.5)
    assert parameter._version == 1
