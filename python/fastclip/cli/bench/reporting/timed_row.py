"""Times of all contenders of one row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fastclip.cli.bench.measuring.timing import Timing, quartiles
from fastclip.cli.bench.suites.row import BenchmarkRow

# Number of cores kept busy by other processes above which the times are unreliable.
NOTICEABLE_LOAD = 0.15


@dataclass(frozen=True)
class TimedRow:
    """Times of all contenders of a row.

    Attributes
    ----------
    row : BenchmarkRow
        The row.
    timings : dict of str to Timing
        Times by contender: "fastclip", "limit", the peers and, if it took part, "fastclip-f32".
    labels : dict of str to str
        The function or expression that was timed, by contender.
    absent : dict of str to str
        The peers that failed, and why.
    other_cores : float or None
        Average number of cores that other processes kept busy meanwhile; None if it is unknown.
    """

    row: BenchmarkRow
    timings: dict[str, Timing]
    labels: dict[str, str]
    absent: dict[str, str] = field(default_factory=dict)
    other_cores: float | None = None

    @property
    def is_disturbed(self) -> bool:
        """Whether other processes kept so many cores busy that the times are unreliable."""
        return (self.other_cores or 0.0) > NOTICEABLE_LOAD

    def ratio(self, other: str) -> float | None:
        """Return fastclip's median time divided by that of `other`, or None if `other` was not timed."""
        if other not in self.timings:
            return None
        return self.timings["fastclip"].median / self.timings[other].median

    def ratio_quartiles(self, other: str) -> tuple[float, float] | None:
        """Return the quartiles of the ratio over the rounds, or None if `other` was not timed.

        In each round the contenders run right after one another, so that a change of the machine's speed
        between rounds affects both times of a ratio.
        """
        if other not in self.timings:
            return None
        rounds = zip(self.timings["fastclip"].rounds, self.timings[other].rounds, strict=True)
        return quartiles([own / theirs for own, theirs in rounds])

    def to_dict(self) -> dict[str, Any]:
        """Return the row for the JSON output. Times are in seconds."""
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
            "ratio_quartiles": {name: self.ratio_quartiles(name) for name in others},
            "absent": self.absent,
            "other_cores_busy": self.other_cores,
        }
