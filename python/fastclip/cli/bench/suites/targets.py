"""Performance targets of fastclip, and the comparison of measurements with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """Upper bound on one number that the benchmark measures.

    Attributes
    ----------
    row : str
        The name of the row.
    against : str
        What fastclip is compared with: a contender, the size of inputs and outputs, or the import of NumPy.
    at_most : float
        The upper bound.
    unit : str
        "x" if the number is fastclip's median time divided by that of `against`; "MiB" or "ms" if it is
        the difference to `against`.
    """

    row: str
    against: str
    at_most: float
    unit: str = "x"


TARGETS = (
    Target("gpt2/f32/in-place/clipped", "torch", 1.0),
    Target("gpt2/f32/in-place/clipped", "limit", 1.10),
    Target("gpt2/f32/in-place/unclipped", "torch", 0.48),
    Target("gpt2/f32/out-of-place/clipped", "numpy", 0.26),
    Target("gpt2/f32/out-of-place/clipped", "tf", 0.85),
    Target("gpt2/f32/out-of-place/clipped", "jax", 0.35),
    Target("many/f32/in-place/clipped", "torch", 0.05),
    Target("many/f32/in-place/clipped", "expert", 0.12),
    Target("many/f32/out-of-place/clipped", "numpy", 0.10),
    Target("mlp/f32/in-place/clipped", "torch", 0.2),
    Target("mlp/f32/in-place/clipped", "expert", 0.8),
    Target("25.6M/f16/in-place/clipped", "numpy", 0.02),
    Target("25.6M/f16/in-place/clipped", "torch", 0.4),
    Target("25.6M/bf16/in-place/clipped", "torch", 0.6),
    Target("clip-by-norm/f32/out-of-place/clipped", "numpy", 0.35),
    Target("clip-by-value/f32/out-of-place/clipped", "numpy", 0.5),
    Target("clip-by-value/f32/in-place/clipped", "numpy", 1.05),
    Target("memory/f32/out-of-place", "inputs + outputs", 16.0, "MiB"),
    Target("import", "import numpy", 15.0, "ms"),
)

# Targets of --train. In rows without clipping, the limit reads the gradients only once.
TRAINING_TARGETS = (
    Target("gpt2/adamw/f32", "torch", 0.75),
    Target("gpt2/adamw/f32", "numpy", 0.17),
    Target("gpt2/adamw/f32", "limit", 1.15),
    Target("gpt2/adamw/bf16", "fastclip-f32", 1.0),
    Target("gpt2/momentum/f32", "torch", 0.75),
    Target("resnet50/adamw/f32", "torch", 0.75),
    Target("many/adamw/f32", "torch", 0.10),
    *(
        Target(f"resnet50/{optimizer}/f32", "limit", 1.25)
        for optimizer in (
            "gradient-descent",
            "adam",
            "adagrad",
            "adagrad-da",
            "rms-prop",
            "rms-prop-centered",
            "adadelta",
            "ftrl",
            "proximal-gradient-descent",
            "proximal-adagrad",
        )
    ),
)


@dataclass(frozen=True)
class Outcome:
    """A target and the measured number, which is None if the run did not measure it."""

    target: Target
    measured: float | None

    @property
    def verdict(self) -> str:
        """One of "met", "missed" and "not measured"."""
        if self.measured is None:
            return "not measured"
        return "met" if self.measured <= self.target.at_most else "missed"

    def to_dict(self) -> dict[str, Any]:
        """Return the entry for the JSON output."""
        return {
            "row": self.target.row,
            "against": self.target.against,
            "at_most": self.target.at_most,
            "unit": self.target.unit,
            "measured": self.measured,
            "verdict": self.verdict,
        }


def compare(
    measured: Mapping[tuple[str, str], float], targets: Sequence[Target] | None = None
) -> list[Outcome]:
    """Compare measurements with targets.

    Parameters
    ----------
    measured : mapping
        The measured numbers, by the `row` and `against` of their targets.
    targets : sequence of Target, optional
        Defaults to `TARGETS`.

    Returns
    -------
    list of Outcome
        One outcome for each target, in the order of the targets.
    """
    if targets is None:
        targets = TARGETS
    return [Outcome(target, measured.get((target.row, target.against))) for target in targets]
