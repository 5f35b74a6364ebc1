"""The tensors of a step, gathered from the parameter groups and the state of an optimizer."""

from __future__ import annotations

from itertools import groupby
from typing import Any, Protocol

import torch

from fastclip.torch._optimizers.backward_norms import BackwardNorms
from fastclip.torch._optimizers.group_options import given_bound
from fastclip.torch._plain import is_plain

__all__ = ["Gathered", "RuleTensors", "gather"]


class HasStates(Protocol):
    """An optimizer whose tensors are gathered."""

    param_groups: list[dict[str, Any]]
    state: Any
    _copies: dict[torch.Tensor, torch.Tensor]
    _backward_norms: BackwardNorms | None
    _counts_steps: bool
    _has_first_step: bool

    def _rule_of(self, group: dict[str, Any]) -> tuple[str, list[float], tuple[str, ...]]: ...

    def _hyper_of_first_step(self, hyper: list[float]) -> list[float]: ...

    def _first_slot(self, group: dict[str, Any], name: str, parameter: torch.Tensor) -> torch.Tensor: ...


class RuleTensors:
    """The tensors of the parameters that one rule updates, with an entry of each list for each parameter."""

    __slots__ = (
        "copies",
        "gradients",
        "known",
        "numbers",
        "parameters",
        "rule",
        "runs",
        "seed",
        "sets",
        "slots",
        "steps",
    )

    def __init__(self, rule: str, slots: int, counts_steps: bool, seed: int | None) -> None:
        self.rule = rule
        self.parameters: list[torch.Tensor] = []
        self.gradients: list[torch.Tensor] = []
        self.slots: list[list[torch.Tensor]] = [[] for _ in range(slots)]
        self.steps: list[torch.Tensor] | None = [] if counts_steps else None
        self.copies: list[torch.Tensor | None] | None = None
        #: The sets of hyper-parameters.
        self.sets: list[list[float]] = []
        #: Tuples of a number of parameters, their set and their norm group.
        self.runs: list[tuple[int, int, int]] = []
        #: The seed of stochastic rounding; None to round to the nearest.
        self.seed = seed
        #: The numbers of the parameters, on which the random bits depend.
        self.numbers: list[int] = []
        #: The magnitudes of gradients that are known, None where one is to be measured.
        self.known: list[tuple[float, int] | None] | None = None

    def arguments(self) -> tuple[Any, ...]:
        """Return what the extension module takes."""
        tensors = (self.parameters, self.gradients, self.slots, self.steps, self.copies)
        rounding = None if self.seed is None else (self.seed, self.numbers)
        return self.rule, tensors, self.sets, self.runs, rounding, self.known


class Gathered:
    """The tensors of a step."""

    __slots__ = ("bounds", "first_steps", "norm_group_of", "parts")

    def __init__(self) -> None:
        #: By rule and seed.
        self.parts: dict[tuple[str, int | None], RuleTensors] = {}
        #: The bound of each norm group.
        self.bounds: list[float | None] = []
        #: The norm group of each parameter group.
        self.norm_group_of: list[int] = []
        #: The states of parameters whose first step differs from the others, and the names of their slots.
        self.first_steps: list[tuple[dict[str, Any], tuple[str, ...]]] = []

    def forget_first_steps(self) -> None:
        """Remove the slots that were created for first steps, which were not taken.

        A slot that is not zero is kept: a signal handler has raised after the step was taken.
        """
        for state, names in self.first_steps:
            for name in names:
                slot = state.get(name)
                if slot is not None and not bool(slot.any()):
                    del state[name]


def gather(optimizer: HasStates, gathered: Gathered) -> bool:
    """Gather the tensors of all parameters that have a gradient, and create the states that they lack.

    Returns
    -------
    bool
        False if a parameter that lacks a state is not one that fastclip takes.
    """
    shared_norm_group: int | None = None
    first_number = 0
    for group in optimizer.param_groups:
        if "max_norm" in group or shared_norm_group is None:
            norm_group = len(gathered.bounds)
            gathered.bounds.append(given_bound(group))
            if "max_norm" not in group:
                shared_norm_group = norm_group
        else:
            norm_group = shared_norm_group
        gathered.norm_group_of.append(norm_group)
        if not _gather_group(optimizer, group, gathered, norm_group, first_number):
            return False
        first_number += len(group["params"])
    return True


def _gather_group(
    optimizer: HasStates, group: dict[str, Any], gathered: Gathered, norm_group: int, first_number: int
) -> bool:
    """Gather the tensors of a parameter group. Returns whether fastclip takes them."""
    members = [parameter for parameter in group["params"] if parameter.grad is not None]
    if not members:
        return True
    rule, hyper, names = optimizer._rule_of(group)
    is_stochastic = group.get("state_dtype") is not None and group["rounding"] != "nearest"
    seed = group["seed"] if is_stochastic else None
    part = gathered.parts.get((rule, seed))
    if part is None:
        part = RuleTensors(rule, len(names), optimizer._counts_steps or is_stochastic, seed)
        gathered.parts[rule, seed] = part
    first_steps = None
    if names or part.steps is not None:
        states = [optimizer.state[parameter] for parameter in members]
        if optimizer._has_first_step and names:
            first_steps = [state.get(names[0]) is None for state in states]
            gathered.first_steps += [
                (state, names) for state, is_first in zip(states, first_steps, strict=True) if is_first
            ]
        try:
            slots = [[state[name] for state in states] for name in names]
            steps = None if part.steps is None else [state["step"] for state in states]
            is_complete = first_steps is None or not any(first_steps)
        except KeyError:
            is_complete = False
        if not is_complete:
            if not _complete(optimizer, group, members, states, names, part.steps is not None):
                return False
            slots = [[state[name] for state in states] for name in names]
            steps = None if part.steps is None else [state["step"] for state in states]
        for gathered_slots, tensors in zip(part.slots, slots, strict=True):
            gathered_slots += tensors
        if part.steps is not None and steps is not None:
            part.steps += steps
    if optimizer._copies:
        if part.copies is None:
            part.copies = [None] * len(part.parameters)
        part.copies += [optimizer._copies.get(parameter) for parameter in members]
    elif part.copies is not None:
        part.copies += [None] * len(members)
    gradients = [parameter.grad for parameter in members]
    if optimizer._backward_norms is not None:
        if part.known is None:
            part.known = [None] * len(part.parameters)
        part.known += optimizer._backward_norms.known(members, gradients)
    part.parameters += members
    part.gradients += gradients
    if is_stochastic:
        part.numbers += [
            number
            for number, parameter in enumerate(group["params"], first_number)
            if parameter.grad is not None
        ]
    for is_first, run in groupby(first_steps or [False] * len(members)):
        part.runs.append((len(list(run)), len(part.sets), norm_group))
        part.sets.append(optimizer._hyper_of_first_step(hyper) if is_first else hyper)
    return True


def _complete(
    optimizer: HasStates,
    group: dict[str, Any],
    members: list[torch.Tensor],
    states: list[dict[str, Any]],
    names: tuple[str, ...],
    counts_steps: bool,
) -> bool:
    """Create what the states of parameters lack. Returns false if fastclip does not take one of the
    parameters.
    """
    lacking = [
        (parameter, state)
        for parameter, state in zip(members, states, strict=True)
        if any(state.get(name) is None for name in names) or (counts_steps and "step" not in state)
    ]
    if not all(is_plain(parameter) for parameter, _ in lacking):
        return False
    with torch.no_grad():
        for parameter, state in lacking:
            if counts_steps and "step" not in state:
                state["step"] = torch.zeros((), dtype=torch.float32)
            for name in names:
                if state.get(name) is None:
                    state[name] = optimizer._first_slot(group, name, parameter)
    return True
