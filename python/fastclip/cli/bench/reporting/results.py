"""All results of one run of the benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fastclip.cli.bench.measuring.import_time import ImportTime
from fastclip.cli.bench.measuring.peak_memory import MIB, PeakMemory
from fastclip.cli.bench.reporting.timed_row import TimedRow
from fastclip.cli.bench.suites.targets import QUICK_ALLOWANCE, Outcome, Target, compare


@dataclass
class Results:
    """Results of a run of the benchmark, filled in while it runs.

    Attributes
    ----------
    targets : sequence of Target
        The performance targets to compare with.
    rows : list of TimedRow
        The timed rows.
    memory : PeakMemory or None
        The peak memory of an out-of-place call, if it was measured.
    imports : ImportTime or None
        The import times, if they were measured.
    skipped : dict of str to str
        The rows and cases that could not be measured, and why.
    not_installed : dict of str to list of str
        The peers that were left out because packages are missing, and these packages.
    """

    targets: Sequence[Target]
    rows: list[TimedRow] = field(default_factory=list)
    memory: PeakMemory | None = None
    imports: ImportTime | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    not_installed: dict[str, list[str]] = field(default_factory=dict)

    def outcomes(self, quick: bool) -> list[Outcome]:
        """Compare the results with all targets.

        Parameters
        ----------
        quick : bool
            Whether the rows were timed in few rounds. Then the ratios may exceed their targets by
            `QUICK_ALLOWANCE`, and miss none while other processes keep the machine busy.
        """
        measured: dict[tuple[str, str], float] = {}
        lower: dict[tuple[str, str], float] = {}
        for row in self.rows:
            for name in row.timings:
                ratio, quartiles = row.ratio(name), row.ratio_quartiles(name)
                if ratio is not None and quartiles is not None:
                    measured[row.row.name, name] = ratio
                    lower[row.row.name, name] = quartiles[0]
            measured[row.row.name, "its median"] = row.timings["fastclip"].spread
        if self.memory is not None:
            measured["memory/f32/out-of-place", "its arrays"] = self.memory.excess_bytes / MIB
        if self.imports is not None:
            measured["import", "import numpy"] = self.imports.ratio
        if not quick:
            return compare(measured, self.targets, lower=lower)
        disturbed = [row.row.name for row in self.rows if row.is_disturbed]
        return compare(measured, self.targets, QUICK_ALLOWANCE, disturbed, lower)
