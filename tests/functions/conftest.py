"""Runs the tests of this folder over torch tensors, or over arrays on a device.

With ``--tensors=torch`` or ``--tensors=gpu`` the tests are the same: where they pass an array to a function,
the function gets a tensor (`support/converted_calls.py`). A test that passes no array to any function fails,
so that tests over tensors cannot run without tensors. Those that have none to pass are listed here with the
reason. Devices take fewer types and arguments: tests that pass nothing which they take are skipped.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent

NO_ARRAY = "calls no function with an array"
OTHER_PROCESS = "calls the functions in another process"
NO_READ_ONLY = "torch has no read-only tensors"
ACCUMULATORS = "is about accumulators, whose arrays are not converted"
OPTIMIZERS = "is about the optimizers, whose arrays are not converted"

#: Tests that run over arrays alone, as ``file::function`` or ``file::function[id]``, with the reason.
ARRAYS_ALONE: dict[str, str] = {
    "test_accumulation.py::test_a_key_that_is_added_again_replaces_its_tensor": ACCUMULATORS,
    "test_accumulation.py::test_a_nonfinite_norm_is_handled_as_the_optimizer_says": OPTIMIZERS,
    "test_accumulation.py::test_a_step_trusts_the_norm_it_is_passed": OPTIMIZERS,
    "test_accumulation.py::test_accumulators_refuse_what_they_cannot_measure": ACCUMULATORS,
    "test_accumulation.py::"
    "test_arguments_that_are_not_taken_change_nothing[acc3-grads3-1.0-ValueError-read-only]": NO_READ_ONLY,
    "test_accumulation.py::test_norms_that_are_not_taken": OPTIMIZERS,
    "test_block_rms_and_adaptive.py::test_signatures": NO_ARRAY,
    "test_clip_by_average_norm.py::test_signature": NO_ARRAY,
    "test_clip_by_global_norm.py::test_signature": NO_ARRAY,
    "test_clip_by_norm.py::test_signature": NO_ARRAY,
    "test_clip_by_value.py::test_argument_that_is_no_array_is_a_type_error": NO_ARRAY,
    "test_clip_by_value.py::test_signature": NO_ARRAY,
    "test_nan_bits.py::test_nans_have_the_same_bits": OTHER_PROCESS,
    "test_nonfinite.py::test_error_is_an_arithmetic_error": NO_ARRAY,
    "test_norm_overflow.py::test_error_of_a_step_does_not_name_finite_gradients": OPTIMIZERS,
    "test_norm_overflow.py::test_norm_that_is_in_float32_range_after_division_by_the_loss_scale_is_correct": (
        OPTIMIZERS
    ),
    "test_norm_overflow.py::"
    "test_norm_that_is_in_range_after_division_by_the_loss_scale_does_not_overflow": OPTIMIZERS,
    "test_norms.py::test_nothing_has_norm_zero_in_float32": NO_ARRAY,
    "test_norms.py::test_signatures": NO_ARRAY,
    "test_out.py::test_container_that_cannot_be_rebuilt_is_refused_before_anything_is_written": (
        "passes its arrays in a container that is not converted"
    ),
    "test_out.py::test_in_place_and_not_clipped_does_not_write": OTHER_PROCESS,
    "test_out.py::test_memmap_in_place": "passes a subclass of ndarray, which is not converted",
    "test_out.py::test_read_only_output_is_refused_even_if_nothing_would_be_written": NO_READ_ONLY,
    "test_tensorflow_agreement.py::test_agrees_with_tensorflow[clip_by_global_norm-empty-list]": NO_ARRAY,
    "test_tensorflow_agreement.py::test_agrees_with_tensorflow[clip_by_global_norm-only-none]": NO_ARRAY,
    "test_tensorflow_agreement.py::test_agrees_with_tensorflow[global_norm-empty-list]": NO_ARRAY,
    "test_tensorflow_agreement.py::test_agrees_with_tensorflow[global_norm-only-none]": NO_ARRAY,
    "test_tensorflow_agreement.py::test_every_recorded_difference_is_tested": NO_ARRAY,
    "test_tensorflow_agreement.py::test_recorded_clipping_cases_are_those_of_the_recorder": NO_ARRAY,
    **{
        f"test_tensorflow_agreement.py::test_refuses_what_tensorflow_refuses[{case}]": NO_ARRAY
        for case in (
            "clip_by_global_norm-none",
            "clip_by_global_norm-number",
            "clip_by_global_norm-string",
            "global_norm-none",
            "global_norm-number",
            "global_norm-string",
        )
    },
    "test_short_slices.py::test_slices_of_two_pieces_take_little_memory": OTHER_PROCESS,
}

FACTOR = "the factor is no normal float32; devices round it to 24 bits, and hosts take float64"
COPIED = "the array on the device is a copy, which no longer overlaps itself"

#: Tests of what is otherwise for arrays on a device, with the reason.
OTHER_ON_DEVICES: dict[str, str] = {
    "test_accumulation.py::test_use_norm_takes_an_accumulator[1.0]": (
        "the accumulator measures on the host, whose norm differs from that of devices in the last bits"
    ),
    "test_clip_by_global_norm.py::test_products_with_the_factor_of_use_norm[1e-45-1.0-float32]": FACTOR,
    "test_clip_by_global_norm.py::"
    "test_products_with_the_factor_of_use_norm[1e-30-1000000000.0-float32]": FACTOR,
    "test_exactness.py::test_factors_below_the_normal_range_of_float32": FACTOR,
    "test_exactness.py::test_products_are_rounded_to_nearest_even[float32]": FACTOR,
    "test_out.py::test_output_that_overlaps_itself_is_refused": COPIED,
}


def pytest_configure(config: pytest.Config) -> None:
    kind = config.getoption("--tensors")
    if kind == "numpy":
        return
    from support import converted_calls, devices

    if kind == "gpu" and (lacks := devices.what_is_missing()):
        raise pytest.UsageError(f"--tensors=gpu: {lacks}")
    # Before the test modules are imported, which hold on to the functions.
    converted_calls.install(converted_calls.Torch() if kind == "torch" else converted_calls.OnDevice())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kind = config.getoption("--tensors")
    if kind == "numpy":
        return
    own = [item for item in items if FOLDER in item.path.parents]
    left_out = ARRAYS_ALONE if kind == "torch" else {**ARRAYS_ALONE, **OTHER_ON_DEVICES}
    selected = [item for item in own if not _names(item) & left_out.keys()]
    names = {name for item in own for name in _names(item)}
    files = {item.path.name for item in own}
    unknown = {name for name in left_out if name.partition("::")[0] in files} - names
    # Where tests were named one by one, the others are missing.
    if unknown and not any("::" in argument for argument in config.args):
        raise pytest.UsageError(f"{__file__} lists tests that are not there: {unknown}")
    config.hook.pytest_deselected(items=[item for item in items if item not in set(selected)])
    items[:] = selected
    if not items:
        raise pytest.UsageError(f"--tensors={kind}: there is no test to run")
    for item in items if kind == "torch" else ():
        item.add_marker(pytest.mark.interop("torch"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    kind = item.config.getoption("--tensors")
    if kind == "numpy":
        return (yield)
    from support import converted_calls

    with converted_calls.recording() as record:
        result = yield
    reasons = ", ".join(sorted(record.refused))
    if kind == "gpu" and not record.tensors:
        pytest.skip(f"nothing that devices take: {reasons}")
    if not record.tensors and record.refused != {converted_calls.NO_NEGATIVE_STRIDES}:
        pytest.fail(f"no array was passed as a tensor ({reasons}): see ARRAYS_ALONE in {__file__}")
    return result


def _names(item: pytest.Item) -> set[str]:
    """Returns the names by which ARRAYS_ALONE may list a test: with the id of its parameters and without."""
    return {f"{item.path.name}::{name}" for name in (item.name, getattr(item, "originalname", item.name))}
