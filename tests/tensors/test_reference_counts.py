"""Calls leave no references behind, and no tensors alive, whether they succeed or fail."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastclip
from support.clip_calls import CLIPS, NORMS
from support.strategies import finite_values
from support.tensor_kinds import EVERY_KIND, EVERY_WRITABLE, KINDS, Kind, to_torch

REPEATS = 20


def values(shape: Any = (30,), dtype: Any = np.float32, seed: int = 1) -> Any:
    return finite_values(np.random.default_rng(seed), np.empty(shape).shape, dtype)


def assert_unchanged_counts(objects: list[Any], call: Callable[[], object]) -> None:
    """Checks that calls leave the reference counts of objects as they were."""

    def counts() -> list[int]:
        return [sys.getrefcount(value) for value in objects]

    def repeat() -> None:
        for _ in range(REPEATS):
            call()

    call()
    before = counts()
    repeat()
    if counts() != before:
        # Cycles, such as those of caught exceptions, are no leak. A collection takes long in a large process.
        gc.collect()
        before = counts()
        repeat()
        gc.collect()
    assert counts() == before


def refused(call: Callable[[], object]) -> Callable[[], None]:
    """Returns a function that makes a call, which has to fail."""

    def refuse() -> None:
        try:
            call()
        except (TypeError, ValueError, ArithmeticError):
            return
        raise AssertionError("the call did not fail")

    return refuse


@EVERY_KIND
def test_calls_that_succeed(kind: Kind) -> None:
    tensor, other = kind.make(values()), kind.make(values(seed=2))
    tensors = [tensor, other, None]
    objects = [tensor, other, tensors]
    for clip in CLIPS.values():
        assert_unchanged_counts(objects, lambda: clip(tensors[:2]))  # noqa: B023
    for norm in NORMS.values():
        assert_unchanged_counts(objects, lambda: norm(tensors))  # noqa: B023
    nested = {"a": [tensor], "b": (other, None)}
    assert_unchanged_counts([tensor, other, nested], lambda: fastclip.clip_by_global_norm(nested, 0.5))


@EVERY_WRITABLE
def test_calls_that_write(kind: Kind) -> None:
    tensor, other = kind.make(values()), kind.make(values(seed=2))
    tensors, out = [tensor], [other]
    for clip in CLIPS.values():
        assert_unchanged_counts([tensor, other, tensors, out], lambda: clip(tensors, out=out))  # noqa: B023
        assert_unchanged_counts([tensor, other, tensors, out], lambda: clip(tensors, out=tensors))  # noqa: B023


@EVERY_KIND
def test_calls_that_fail(kind: Kind) -> None:
    tensor, bad = kind.make(values()), kind.make(np.array([np.nan, 1], np.float32))
    integers = np.ones(2, np.int32)
    tensors, with_bad, with_integers = [tensor, tensor], [tensor, bad], [tensor, integers, tensor]
    calls = [
        lambda: fastclip.clip_by_global_norm(tensors, -1.0),
        lambda: fastclip.clip_by_global_norm(tensors, 0.5, out=tensors),
        lambda: fastclip.clip_by_global_norm(tensors, 0.5, out=with_integers),
        lambda: fastclip.clip_by_global_norm(with_bad, 0.5, on_nonfinite="raise"),
        lambda: fastclip.global_norm(with_integers),
        lambda: fastclip.tensor_norms(with_integers),
        lambda: fastclip.clip_by_block_rms(with_integers, 0.5),
        lambda: fastclip.adaptive_clip(with_bad, with_integers),
        lambda: fastclip.clip_by_norm(tensor, np.nan),
        lambda: fastclip.clip_by_norm(tensor, 0.5, out=integers),
        lambda: fastclip.clip_by_norm(tensor, 0.5, axes=9),
        lambda: fastclip.clip_by_value(tensor, "0", 1.0),
    ]
    for call in calls:
        assert_unchanged_counts([tensor, bad, integers, tensors, with_bad, with_integers], refused(call))


@pytest.mark.interop("torch")
@pytest.mark.filterwarnings("ignore")
def test_refused_tensors_of_torch() -> None:
    torch = pytest.importorskip("torch")
    good = to_torch(values())
    for wrong in (
        torch.ones(3, device="meta"),
        torch.ones(2, 3).to_sparse_csr(),
        torch._efficientzerotensor((3,)),
        torch.ones(3, dtype=torch.bool),
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    ):
        tensors = [good, wrong]
        assert_unchanged_counts([good, wrong, tensors], refused(lambda: fastclip.global_norm(tensors)))  # noqa: B023


@EVERY_KIND
def test_results_and_inputs_die_with_their_last_reference(kind: Kind) -> None:
    tensor = kind.make(values())
    (result,), _ = fastclip.clip_by_global_norm([tensor], 0.5)
    try:
        references = [weakref.ref(tensor), weakref.ref(result)]
    except TypeError:
        pytest.skip("objects of this kind take no weak references")
    del tensor, result
    gc.collect()
    assert [reference() for reference in references] == [None, None]


@pytest.mark.interop("torch")
def test_memory_of_results_of_torch_is_freed_with_the_last_view() -> None:
    pytest.importorskip("torch")
    array = values((300_000,))
    view = fastclip.clip_by_norm(to_torch(array), 0.5)[1000:1010]
    kept = view.clone()
    gc.collect()
    junk = [fastclip.clip_by_norm(to_torch(array), 0.25) for _ in range(4)]
    del junk
    assert (view == kept).all()


@pytest.mark.interop("torch")
def test_results_do_not_pile_up() -> None:
    """Each result has 40 MB; a hundred that are leaked would be seen."""
    resource = pytest.importorskip("resource")
    pytest.importorskip("torch")
    tensor = to_torch(np.ones(10_000_000, np.float32))
    for _ in range(3):
        fastclip.clip_by_norm(tensor, 0.5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(50):
        fastclip.clip_by_norm(tensor, 0.5)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (after - before) * 1024 < 400e6


@pytest.mark.interop("torch")
def test_results_of_torch_outlive_fastclips_cache() -> None:
    pytest.importorskip("torch")
    results = [fastclip.clip_by_norm(to_torch(values((n,))), 1e9) for n in (10, 1000, 100_000, 1_000_000)]
    fastclip.free_cached_memory()
    gc.collect()
    for result, n in zip(results, (10, 1000, 100_000, 1_000_000), strict=True):
        np.testing.assert_array_equal(KINDS["torch"].read(result), values((n,)))
