"""Strict JSON: without the literals NaN and Infinity, which the standard does not have."""

from __future__ import annotations

import json
import math
from typing import Any


def to_json(value: Any) -> str:
    """Return `value` as JSON text, in which non-finite floats are the strings "nan", "inf" and "-inf"."""
    return json.dumps(_without_nonfinite(value), indent=2, allow_nan=False)


def _without_nonfinite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if isinstance(value, dict):
        return {str(key): _without_nonfinite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nonfinite(item) for item in value]
    return value
