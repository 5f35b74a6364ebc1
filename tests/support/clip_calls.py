"""Every clip function as a function of a list of tensors, so that one test runs over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

import fastclip

Clip = Callable[..., list[Any]]


def _each(function: Callable[..., Any]) -> Clip:
    """Returns a function of a list that calls a function of one tensor for each entry."""

    def call(tensors: Sequence[Any], out: Sequence[Any] | None = None) -> list[Any]:
        if out is None:
            return [function(tensor) for tensor in tensors]
        return [function(tensor, out=target) for tensor, target in zip(tensors, out, strict=True)]

    return call


def _shape(tensor: Any) -> tuple[int, ...]:
    """Returns the shape of a tensor, or no axes where it has none that NumPy understands."""
    if hasattr(tensor, "dense_shape"):
        tensor = tensor.values
    try:
        return np.zeros(np.shape(getattr(tensor, "array", tensor))).shape
    except Exception:
        return ()


def _global_norm(tensors: Sequence[Any], out: Any = None, **options: Any) -> list[Any]:
    clipped: list[Any] = fastclip.clip_by_global_norm(tensors, 0.5, out=out, **options)[0]
    return clipped


def _adaptive(tensors: Sequence[Any], out: Any = None) -> list[Any]:
    # Parameters of zeros have the norm `eps`; outputs must not overlap them.
    parameters = [np.zeros(_shape(tensor), np.float32) for tensor in tensors]
    clipped: list[Any] = fastclip.adaptive_clip(parameters, tensors, 50.0, out=out)
    return clipped


#: Functions that multiply by a factor. Each takes a list of tensors and `out`, and returns a list.
SCALING: dict[str, Clip] = {
    "clip_by_norm": _each(lambda t, **out: fastclip.clip_by_norm(t, 0.5, **out)),
    "clip_by_norm(axes)": _each(
        lambda t, **out: fastclip.clip_by_norm(t, 0.25, axes=0 if _shape(t) else None, **out)
    ),
    "clip_by_average_norm": _each(lambda t, **out: fastclip.clip_by_average_norm(t, 1e-3, **out)),
    "clip_by_global_norm": _global_norm,
    "clip_by_global_norm(use_norm)": lambda t, out=None: _global_norm(t, out, use_norm=3.0),
    "clip_by_block_rms": lambda t, out=None: fastclip.clip_by_block_rms(t, 0.01, out=out),
    "adaptive_clip": _adaptive,
}

#: All clip functions. clip_by_value takes no complex numbers, and is the only one that takes integers.
CLIPS: dict[str, Clip] = SCALING | {
    "clip_by_value": _each(lambda t, **out: fastclip.clip_by_value(t, 0, 1, **out))
}

#: The functions that return norms, and those of them that return one norm for each tensor.
NORMS: dict[str, Callable[[Any], Any]] = {
    "global_norm": fastclip.global_norm,
    "global_norm(ord=3)": lambda t: fastclip.global_norm(t, ord=3),
    "tensor_norms": fastclip.tensor_norms,
    "clip_by_global_norm": lambda t: fastclip.clip_by_global_norm(t, 0.5)[1],
}


def clips_for(dtype: np.dtype[Any]) -> Iterator[tuple[str, Clip]]:
    """Yields the names and the functions that take tensors of a dtype."""
    for name, clip in CLIPS.items():
        if dtype.kind in "iu":
            takes = name == "clip_by_value"
        else:
            takes = dtype.kind != "c" or name != "clip_by_value"
        if takes:
            yield name, clip


#: Clip functions of one array of two axes, which leave arrays of norms below their bounds as they are.
UNIT_BOUND: dict[str, Callable[[Any], Any]] = {
    "clip_by_norm": lambda t: fastclip.clip_by_norm(t, 1.0),
    "clip_by_norm, bound 0": lambda t: fastclip.clip_by_norm(t, 0.0),
    "clip_by_norm, axes": lambda t: fastclip.clip_by_norm(t, 1.0, axes=[0]),
    "clip_by_average_norm": lambda t: fastclip.clip_by_average_norm(t, 1.0),
    "clip_by_global_norm": lambda t: fastclip.clip_by_global_norm([t], 1.0)[0][0],
    "clip_by_value": lambda t: fastclip.clip_by_value(t, -1.0, 1.0),
    "clip_by_block_rms": lambda t: fastclip.clip_by_block_rms([t], 1.0)[0],
    "adaptive_clip": lambda t: fastclip.adaptive_clip([np.ones((3, 2))], [t])[0],
}

EVERY_CLIP = pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS.keys())
EVERY_SCALING = pytest.mark.parametrize("clip", SCALING.values(), ids=SCALING.keys())
EVERY_NORM = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS.keys())
