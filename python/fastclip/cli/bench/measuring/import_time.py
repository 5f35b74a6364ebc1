"""Measures the time of ``import fastclip`` and of ``import numpy``, each in new processes."""

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
    """Times of the imports, in seconds, one per process."""

    fastclip: list[float]
    numpy: list[float]

    @property
    def difference(self) -> float:
        """The median time of ``import fastclip``, which imports NumPy too, minus that of ``import numpy``."""
        return statistics.median(self.fastclip) - statistics.median(self.numpy)

    @property
    def ratio(self) -> float:
        """`difference` divided by the median time of ``import numpy``."""
        return self.difference / statistics.median(self.numpy)

    def to_dict(self) -> dict[str, Any]:
        """Return the row for the JSON output."""
        return {
            "row": "import",
            "kind": "import",
            "repeats": len(self.fastclip),
            "fastclip_median_s": statistics.median(self.fastclip),
            "numpy_median_s": statistics.median(self.numpy),
            "difference_s": self.difference,
        }


def measure_import_time(repeats: int) -> ImportTime:
    """Import the two modules alternately, `repeats` times each.

    A first import of each fills the file cache and is not counted.
    """
    times: dict[str, list[float]] = {"fastclip": [], "numpy": []}
    for repeat in range(repeats + 1):
        for module, seconds in times.items():
            printed = run_python(["-c", _PROGRAM.format(module=module)], f"import {module} in a new process")
            if repeat > 0:
                seconds.append(float(printed))
    return ImportTime(**times)
