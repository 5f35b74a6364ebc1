"""Performance targets of fastclip, and the comparison of measurements with them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Target:
    """Upper bound on one number that the benchmark measures.

    Attributes
    ----------
    row : str
        The name of the row.
    against : str
        What fastclip is compared with: a contender, the size of its inputs and outputs ("its arrays"), the
        import of NumPy, or, for the 90th percentile of its calls, their median ("its median").
    at_most : float
        The upper bound.
    unit : str
        "x" if the number is a time divided by that of `against`: fastclip's median time, or what its import
        adds to the import of NumPy. "MiB" if it is the difference to `against`.
    """

    row: str
    against: str
    at_most: float
    unit: str = "x"


# Factor by which a run with --quick may exceed the targets that are ratios. Such a run has few rounds, and
# serves to find what has become much slower.
QUICK_ALLOWANCE = 2.0

# Many small arrays are compared with the limit. Peers spend most of their time on the objects of the arrays:
# how long that takes beside fastclip depends on the caches of the machine.
TARGETS = (
    Target("gpt2/f32/in-place/clipped", "torch", 1.0),
    Target("gpt2/f32/in-place/clipped", "limit", 1.10),
    Target("gpt2/f32/in-place/unclipped", "torch", 0.48),
    Target("gpt2/f32/out-of-place/clipped", "numpy", 0.26),
    Target("gpt2/f32/out-of-place/clipped", "tf", 0.85),
    Target("gpt2/f32/out-of-place/clipped", "jax", 0.35),
    Target("many/f32/in-place/clipped", "limit", 2.0),
    Target("many/f32/out-of-place/clipped", "limit", 3.5),
    Target("mlp/f32/in-place/clipped", "torch", 0.2),
    Target("mlp/f32/in-place/clipped", "expert", 0.8),
    Target("layers/f32/in-place/clipped", "fastclip-list", 2.5),
    Target("many-torch/f32/in-place/clipped", "fastclip-list", 2.2),
    Target("25.6M/f16/in-place/clipped", "numpy", 0.02),
    Target("25.6M/f16/in-place/clipped", "torch", 0.4),
    Target("25.6M/bf16/in-place/clipped", "torch", 0.6),
    Target("clip-by-norm/f32/out-of-place/clipped", "numpy", 0.35),
    Target("clip-by-value/f32/out-of-place/clipped", "numpy", 0.5),
    Target("clip-by-value/f32/in-place/clipped", "numpy", 1.05),
    Target("memory/f32/out-of-place", "its arrays", 16.0, "MiB"),
    Target("import", "import numpy", 0.3),
)

# Targets of --train. In rows without clipping, the limit reads the gradients only once.
TRAINING_TARGETS = (
    Target("gpt2/adamw/f32", "torch", 0.75),
    Target("gpt2/adamw/f32", "numpy", 0.17),
    Target("gpt2/adamw/f32", "limit", 1.15),
    Target("gpt2/adamw/bf16", "fastclip-f32", 1.0),
    Target("gpt2/momentum/f32", "torch", 0.75),
    Target("resnet50/adamw/f32", "torch", 0.75),
    Target("many/adamw/f32", "limit", 3.5),
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

# Targets of --torch. The optimizers, but for that of one tensor, clip the gradients.
TORCH_TARGETS = (
    Target("gpt2/clip-grad-norm/f32", "torch", 0.95),
    Target("gpt2/adamw/f32", "torch", 0.75),
    Target("gpt2/adamw/f32", "deepspeed", 0.70),
    Target("gpt2/adamw-bf16-moments/f32", "fastclip-f32-moments", 0.80),
    Target("gpt2/sgd/f32", "torch", 0.75),
    Target("gpt2/accumulate/f32", "limit", 1.1),
    Target("resnet50/adamw/f32", "torch", 0.70),
    Target("resnet50/adamw/f32", "deepspeed", 0.70),
    Target("many/clip-grad-norm/f32", "torch", 0.12),
    Target("many/adamw/f32", "torch", 0.30),
    Target("512/adamw-alone/f32", "torch", 0.7),
    Target("transformer/training-step/f32", "fastclip-without-hooks", 1.0),
)


@dataclass(frozen=True)
class Outcome:
    """A target and the measured number.

    Attributes
    ----------
    target : Target
        The target, whose upper bound includes the allowance of the run.
    measured : float or None
        The measured number; None if the run did not measure it.
    disturbed : bool
        Whether other processes kept the machine so busy that a missed target means nothing.
    lower_quartile : float or None
        The first quartile of the number over the rounds, if there were several. The target is missed only if
        this is above the upper bound too: otherwise more than a quarter of the rounds met it.
    """

    target: Target
    measured: float | None
    disturbed: bool = False
    lower_quartile: float | None = None

    @property
    def verdict(self) -> str:
        """One of "met", "missed", "unclear" and "not measured"."""
        if self.measured is None:
            return "not measured"
        if self.measured <= self.target.at_most:
            return "met"
        lower = self.measured if self.lower_quartile is None else self.lower_quartile
        return "unclear" if self.disturbed or lower <= self.target.at_most else "missed"

    def to_dict(self) -> dict[str, Any]:
        """Return the entry for the JSON output."""
        return {
            "row": self.target.row,
            "against": self.target.against,
            "at_most": self.target.at_most,
            "unit": self.target.unit,
            "measured": self.measured,
            "lower_quartile": self.lower_quartile,
            "verdict": self.verdict,
        }


def compare(
    measured: Mapping[tuple[str, str], float],
    targets: Sequence[Target] | None = None,
    allowance: float = 1.0,
    disturbed: Collection[str] = (),
    lower: Mapping[tuple[str, str], float] | None = None,
) -> list[Outcome]:
    """Compare measurements with targets.

    Parameters
    ----------
    measured : mapping
        The measured numbers, by the `row` and `against` of their targets.
    targets : sequence of Target, optional
        Defaults to `TARGETS`.
    allowance : float
        Factor by which the measured ratios may exceed their targets.
    disturbed : collection of str
        The names of the rows in which a missed target means nothing.
    lower : mapping, optional
        The first quartiles of the measured numbers over the rounds.

    Returns
    -------
    list of Outcome
        One outcome for each target, in the order of the targets.
    """
    if targets is None:
        targets = TARGETS
    return [
        Outcome(
            replace(target, at_most=target.at_most * allowance) if target.unit == "x" else target,
            measured.get((target.row, target.against)),
            target.row in disturbed,
            (lower or {}).get((target.row, target.against)),
        )
        for target in targets
    ]
