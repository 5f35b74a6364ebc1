"""What the benchmark found for one row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fastclip.cli.bench.measuring.timing import Timing
from fastclip.cli.bench.suites.row import BenchmarkRow


@dataclass(frozen=True)
class TimedRow:
    """The times of all contenders of a row.

    Attributes
    ----------
    row : BenchmarkRow
        What was timed.
    timings : dict of str to Timing
        By contender: "fastclip", "limit", and the peers that took part.
    labels : dict of str to str
        What each contender called.
    absent : dict of str to str
        The peers that could not take part, and why.
    other_cores : float or None
        How many cores other processes kept busy meanwhile; None where it is not known.
    """

    row: BenchmarkRow
    timings: dict[str, Timing]
    labels: dict[str, str]
    absent: dict[str, str] = field(default_factory=dict)
    other_cores: float | None = None

    def ratio(self, other: str) -> float | None:
        """Return fastclip's median time divided by that of `other`; None if it took no part."""
        if other not in self.timings:
            return None
        return self.timings["fastclip"].median / self.timings[other].median

    def to_dict(self) -> dict[str, Any]:
        """Return the row of the JSON output; times in seconds."""
        others = [name for name in self.timings if name != "fastclip"]
        return {
            "row": self.row.name,
            "kind": "time",
            **self.row.describe(),
            "rounds": len(self.timings["fastclip"].rounds),
            "contenders": {
                name: {
                    "label": self.labels[name],
                    "median_s": timing.median,
                    "min_s": timing.minimum,
                    "first_quartile_s": timing.quartiles[0],
                    "third_quartile_s": timing.quartiles[1],
                }
                for name, timing in self.timings.items()
            },
            "ratios": {name: self.ratio(name) for name in others},
            "absent": self.absent,
            "other_cores_busy": self.other_cores,
        }
