"""`fastclip.torch.patch` and `unpatch`: fastclip's functions in `torch.nn.utils`, and torch's again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import fastclip
from reference_clipping import parameter
from support import fresh_python

pytestmark = pytest.mark.interop("torch")
torch = pytest.importorskip("torch")

UTILS = torch.nn.utils
CLIP_GRAD = torch.nn.utils.clip_grad
NAMES = ("clip_grad_norm_", "clip_grad_value_", "get_total_norm", "clip_grads_with_norm_")
#: What the modules have before anything is put into them.
ORIGINALS = {name: getattr(UTILS, name) for name in NAMES}
IN_CLIP_GRAD = {name: value for name, value in vars(CLIP_GRAD).items() if callable(value)}


@pytest.fixture(autouse=True)
def _originals_afterwards() -> Iterator[None]:
    yield
    for name, value in ORIGINALS.items():
        setattr(UTILS, name, value)
    for name, value in IN_CLIP_GRAD.items():
        setattr(CLIP_GRAD, name, value)


def is_patched() -> list[bool]:
    return [getattr(UTILS, name) is getattr(fastclip.torch, name) for name in NAMES]


def is_original() -> bool:
    return all(getattr(UTILS, name) is value for name, value in ORIGINALS.items()) and all(
        getattr(CLIP_GRAD, name) is value for name, value in IN_CLIP_GRAD.items()
    )


def test_nothing_is_replaced_by_the_import() -> None:
    assert is_original()
    assert is_patched() == [False] * len(NAMES)


def test_patch_and_unpatch() -> None:
    for _ in range(2):
        assert fastclip.torch.patch() is None
        assert is_patched() == [True] * len(NAMES)
        for name in ("clip_grad_norm_", "clip_grad_value_"):
            assert getattr(CLIP_GRAD, name) is getattr(fastclip.torch, name)
        assert fastclip.torch.unpatch() is None
        assert is_original()


def test_both_are_idempotent() -> None:
    fastclip.torch.unpatch()
    assert is_original()
    fastclip.torch.patch()
    fastclip.torch.patch()
    assert is_patched() == [True] * len(NAMES)
    fastclip.torch.unpatch()
    assert is_original()
    fastclip.torch.unpatch()
    assert is_original()


def test_calls_through_torch_are_those_of_fastclip() -> None:
    fastclip.torch.patch()
    owner = parameter(torch.full((100,), 1e38))
    # torch's own would make the gradient 0.
    assert UTILS.clip_grad_norm_([owner], 1.0).dtype == torch.float64
    torch.testing.assert_close(owner.grad, torch.full((100,), 0.1))
    with pytest.raises(fastclip.NonFiniteError):
        torch.nn.utils.clip_grad_norm_(parameter(torch.tensor([float("nan")])), 1.0, error_if_nonfinite=True)
    total = UTILS.get_total_norm([owner.grad, owner.grad])
    assert float(total) == pytest.approx(1.0)
    UTILS.clip_grads_with_norm_(owner, 0.5, total)
    torch.testing.assert_close(owner.grad, torch.full((100,), 0.05))
    UTILS.clip_grad_value_(owner, 0.01)
    assert owner.grad._version == 3


def test_deprecated_function_of_torch_works_while_patched() -> None:
    for patched in (True, False):
        if patched:
            fastclip.torch.patch()
        owner = parameter(torch.tensor([3.0, 4.0]))
        with pytest.warns(FutureWarning, match="clip_grad_norm"):
            assert CLIP_GRAD.clip_grad_norm([owner], 1.0) == 5.0
        torch.testing.assert_close(owner.grad, torch.tensor([0.6, 0.8]))
        fastclip.torch.unpatch()


def test_what_is_left_to_torch_works_while_patched() -> None:
    fastclip.torch.patch()

    def owner() -> Any:
        return parameter(torch.tensor([3.0, 4.0]))

    meta = parameter(torch.ones(2, device="meta"))
    assert UTILS.clip_grad_norm_([meta], 1.0).device.type == "meta"
    assert UTILS.get_total_norm([meta.grad]).device.type == "meta"
    UTILS.clip_grad_value_([meta], 1.0)
    first, second, third = owner(), owner(), owner()
    assert float(UTILS.clip_grad_norm_([first], 1.0, -1)) == pytest.approx(12 / 7)
    torch.testing.assert_close(first.grad, torch.tensor([1.75, 7 / 3]))
    UTILS.clip_grad_norm_([second], -1.0)
    torch.testing.assert_close(second.grad, torch.tensor([-0.6, -0.8]))
    UTILS.clip_grads_with_norm_([third], -1.0, torch.tensor(5.0))
    torch.testing.assert_close(third.grad, torch.tensor([-0.6, -0.8]))
    assert is_patched() == [True] * len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_function_that_other_code_has_replaced_before_is_left_alone(name: str) -> None:
    def other(*arguments: Any, **options: Any) -> str:
        return "other"

    setattr(UTILS, name, other)
    fastclip.torch.patch()
    assert getattr(UTILS, name) is other
    assert is_patched() == [other_name != name for other_name in NAMES]
    fastclip.torch.unpatch()
    assert getattr(UTILS, name) is other
    setattr(UTILS, name, ORIGINALS[name])
    assert is_original()


@pytest.mark.parametrize("name", NAMES)
def test_function_that_other_code_has_replaced_while_patched_is_left_alone(name: str) -> None:
    fastclip.torch.patch()
    wrapped = getattr(UTILS, name)

    def other(*arguments: Any, **options: Any) -> Any:
        return wrapped(*arguments, **options)

    setattr(UTILS, name, other)
    fastclip.torch.unpatch()
    assert getattr(UTILS, name) is other
    assert is_patched() == [False] * len(NAMES)
    # The function that it wraps still works.
    if name == "clip_grad_norm_":
        assert UTILS.clip_grad_norm_(parameter(torch.tensor([3.0, 4.0])), 1.0) == 5.0


def test_function_that_other_code_has_replaced_in_one_module() -> None:
    def other(*arguments: Any, **options: Any) -> str:
        return "other"

    CLIP_GRAD.clip_grad_norm_ = other
    fastclip.torch.patch()
    assert CLIP_GRAD.clip_grad_norm_ is other
    assert is_patched() == [True] * len(NAMES)
    # What is left to torch does not go to the replacement.
    result = fastclip.torch.clip_grad_norm_(parameter(torch.tensor([3.0, 4.0])), 1.0, -1)
    assert float(result) == pytest.approx(12 / 7)
    fastclip.torch.unpatch()
    assert CLIP_GRAD.clip_grad_norm_ is other
    assert UTILS.clip_grad_norm_ is ORIGINALS["clip_grad_norm_"]


REPLACED_BEFORE_THE_IMPORT = """
import torch
from torch.nn.utils import clip_grad

def other(*arguments, **options):
    return "other"

torch.nn.utils.clip_grad_norm_ = clip_grad.clip_grad_norm_ = other
import fastclip.torch
for put in (fastclip.torch.patch, fastclip.torch.unpatch):
    put()
    assert torch.nn.utils.clip_grad_norm_ is other, put
    assert clip_grad.clip_grad_norm_ is other, put
"""


def test_function_that_other_code_has_replaced_before_the_import_is_left_alone() -> None:
    fresh_python.run(REPLACED_BEFORE_THE_IMPORT)
