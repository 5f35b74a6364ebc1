"""How long ``import fastclip`` takes beside ``import numpy``, each in new processes."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from fastclip.cli.bench.measuring.new_process import run_python

_PROGRAM = """
import time
start = time.perf_counter()
import {module}
print(time.perf_counter() - start)
"""


@dataclass(frozen=True)
class ImportTime:
    """The times of the imports, in seconds."""

    fastclip: list[float]
    numpy: list[float]

    @property
    def difference(self) -> float:
        """How much longer fastclip takes, which imports NumPy itself; of medians."""
        return statistics.median(self.fastclip) - statistics.median(self.numpy)

    def to_dict(self) -> dict[str, Any]:
        """Return the row of the JSON output."""
        return {
            "row": "import",
            "kind": "import",
            "repeats": len(self.fastclip),
            "fastclip_median_s": statistics.median(self.fastclip),
            "numpy_median_s": statistics.median(self.numpy),
            "difference_s": self.difference,
        }


def measure_import_time(repeats: int) -> ImportTime:
    """Import the two in turns, `repeats` times each, after once for the file cache."""
    times: dict[str, list[float]] = {"fastclip": [], "numpy": []}
    for repeat in range(repeats + 1):
        for module, found in times.items():
            printed = run_python(["-c", _PROGRAM.format(module=module)], f"import {module} in a new process")
            if repeat > 0:
                found.append(float(printed))
    return ImportTime(**times)
