"""JSON as scripts can read it: no NaN or Infinity literals, which JSON does not have."""

from __future__ import annotations

import json
import math
from typing import Any


def to_json(value: Any) -> str:
    """Write `value` as JSON; floats that are not finite become "nan", "inf" or "-inf"."""
    return json.dumps(_plain(value), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
