"""The step that all optimizers have in common: clipping and update of all parameters in one call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

from fastclip import _core
from fastclip.torch._binding import BINDING
from fastclip.torch._errors import nonfinite_gradient_error
from fastclip.torch._optimizers.backward_norms import BackwardNorms, BackwardNormsHandle
from fastclip.torch._optimizers.gathering import Gathered, gather
from fastclip.torch._optimizers.group_options import (
    bound_of,
    checked_narrowing,
    given_bound,
    take_group_options,
)
from fastclip.torch._optimizers.sharded_parameters import are_processes_several, are_shards
from fastclip.torch._plain import is_plain

__all__ = ["FusedStep"]

_POLICIES = ("propagate", "raise", "skip")
#: The attributes that pickles and copies have besides those of PyTorch's optimizers.
_ATTRIBUTES = ("on_nonfinite", "skip_above", "skipped_steps", "_copies")


class FusedStep(Optimizer):
    """An optimizer whose step is one call of the extension module.

    A class that derives from it, and from an optimizer of PyTorch, says how parameters are updated:
    `_rule_of` and `_slots_of`.
    """

    #: The step of the optimizer of PyTorch, for what fastclip does not take.
    _torch_class: type[Optimizer]

    on_nonfinite: str
    skip_above: float | None
    skipped_steps: int

    # The rules ----------------------------------------------------------------------------

    def _rule_of(self, group: dict[str, Any]) -> tuple[str, list[float], tuple[str, ...]]:
        """Return the rule of a parameter group, its hyper-parameters, and the names of its slots."""
        raise NotImplementedError

    def _first_slot(self, group: dict[str, Any], name: str, parameter: torch.Tensor) -> torch.Tensor:
        """Return the first value of a slot."""
        dtype = group.get("state_dtype")
        return torch.zeros_like(parameter, dtype=dtype, memory_format=torch.preserve_format)

    #: Whether the rule counts steps in the state of each parameter.
    _counts_steps = True
    #: Whether the hyper-parameters of a parameter's first step differ from the others.
    _has_first_step = False

    def _hyper_of_first_step(self, hyper: list[float]) -> list[float]:
        """Return the hyper-parameters of a parameter's first step."""
        return hyper

    # Options ------------------------------------------------------------------------------

    def _set_options(
        self,
        max_norm: float | None,
        on_nonfinite: str,
        skip_above: float | None,
        state_dtype: torch.dtype | None,
        rounding: str,
        seed: int,
    ) -> None:
        """Check and store the options that PyTorch's optimizers do not have."""
        if on_nonfinite not in _POLICIES:
            raise ValueError(f"on_nonfinite is {on_nonfinite!r}; it takes 'propagate', 'raise' or 'skip'")
        if skip_above is not None and not float(skip_above) >= 0.0:
            raise ValueError(f"skip_above is {skip_above}; it takes a number that is not negative, or None")
        narrowing = checked_narrowing({"state_dtype": state_dtype, "rounding": rounding, "seed": seed})
        self.on_nonfinite = on_nonfinite
        self.skip_above = None if skip_above is None else float(skip_above)
        self.skipped_steps = 0
        self._copies: dict[torch.Tensor, torch.Tensor] = {}
        #: The options that go into the parameter groups, where they are used.
        self._pending_options: dict[str, Any] = {}
        if max_norm is not None:
            self._pending_options["shared_max_norm"] = bound_of(max_norm, "max_norm")
        if state_dtype is not None:
            self._pending_options.update(narrowing)
        self._report: tuple[list[float | None], list[float], list[int]] | None = None
        self._is_stepping = False
        self._backward_norms: BackwardNorms | None = None

    def _store_options(self) -> None:
        """Put the options into the defaults and the groups, which PyTorch's constructor has made."""
        self.defaults.update(self._pending_options)
        for group in self.param_groups:
            for key, value in self._pending_options.items():
                group.setdefault(key, value)
        del self._pending_options
        # GradScaler would leave the division by the scale to the step.
        self.__dict__.pop("_step_supports_amp_scaling", None)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, as `torch.optim.Optimizer.add_param_group` does.

        Parameters
        ----------
        param_group : dict
            The parameters and the options of the group. With the key ``"max_norm"``, the group is measured
            and clipped by itself; None leaves it unclipped.
        """
        if isinstance(param_group, dict) and param_group.get("max_norm") is not None:
            param_group["max_norm"] = bound_of(param_group["max_norm"], "max_norm of a parameter group")
        if isinstance(param_group, dict):
            own = checked_narrowing(param_group)
            if own.get("state_dtype") is not None:
                # The constructor has not stored its options yet when it adds the first groups.
                shared = {**self.defaults, **self.__dict__.get("_pending_options", {})}
                own.setdefault("rounding", shared.get("rounding", "stochastic"))
                own.setdefault("seed", shared.get("seed", 0))
            param_group.update(own)
        # A loaded bound is not that of the defaults.
        has_bound = any("shared_max_norm" in group for group in self.param_groups)
        bound = self.max_norm
        super().add_param_group(param_group)
        if has_bound:
            self.param_groups[-1]["shared_max_norm"] = bound

    @property
    def max_norm(self) -> float | None:
        """The bound of the norm of all gradients whose group has no bound of its own; None for no bound."""
        for group in self.param_groups:
            bound = group.get("shared_max_norm")
            if bound is not None:
                return float(bound)
        return None

    @max_norm.setter
    def max_norm(self, bound: float | None) -> None:
        value = None if bound is None else bound_of(bound, "max_norm")
        for options in (self.defaults, *self.param_groups):
            options["shared_max_norm"] = value

    @property
    def last_norm(self) -> float | list[float | None] | None:
        """The norm of the gradients in the last step, before clipping; None if it was not measured.

        If there are several norm groups, it is a list with the norm of the norm group of each parameter
        group.
        """
        norm: float | list[float | None] | None = self._of_groups(0)
        return norm

    @property
    def last_scale(self) -> float | list[float | None] | None:
        """The factor that clipped the gradients in the last step; 1 if they were not clipped, None before a
        step.

        If there are several norm groups, it is a list with the factor of each parameter group.
        """
        scale: float | list[float | None] | None = self._of_groups(1)
        return scale

    def _of_groups(self, part: int) -> Any:
        if self._report is None:
            return None
        values, group_of = self._report[part], self._report[2]
        if len(values) == 1:
            return values[0]
        return [values[at] for at in group_of]

    def set_low_precision_copy(self, parameter: torch.Tensor, copy: torch.Tensor | None) -> None:
        """Keep a low-precision copy of a parameter, which then holds the master weights.

        The copy is written now, and again in each update of the parameter, in the same pass over memory.

        Parameters
        ----------
        parameter : Tensor
            A parameter of the optimizer, float32 or float64.
        copy : Tensor or None
            A tensor of the parameter's shape and of a narrower type. None removes the parameter's copy.

        Raises
        ------
        TypeError
            If the type of `copy` is not narrower than that of `parameter`.
        ValueError
            If `parameter` is not of this optimizer, or `copy` has another shape or is not on the CPU.
        """
        if not any(parameter is other for group in self.param_groups for other in group["params"]):
            raise ValueError("parameter is none of this optimizer")
        if copy is None:
            self._copies.pop(parameter, None)
            return
        if not isinstance(copy, torch.Tensor) or not copy.is_floating_point():
            raise TypeError(
                f"copy is {getattr(copy, 'dtype', type(copy).__name__)}; it takes a tensor of floats"
            )
        if copy.itemsize >= parameter.itemsize:
            raise TypeError(
                f"copy is {copy.dtype}; it takes a float type narrower than the parameter's {parameter.dtype}"
            )
        if copy.shape != parameter.shape or copy.device.type != "cpu":
            raise ValueError(
                f"copy has the shape {tuple(copy.shape)} on {copy.device}; it takes the parameter's"
                f" {tuple(parameter.shape)} on the CPU"
            )
        with torch.no_grad():
            copy.copy_(parameter)
        self._copies[parameter] = copy

    def measure_in_backward(self, model: torch.nn.Module | Iterable[torch.Tensor]) -> BackwardNormsHandle:
        """Measure gradients in the backward pass, so that steps need no pass over memory for their norm.

        A hook measures the gradient of each parameter when it is accumulated, while it is in the cache. A
        step uses the measurement only if the gradient is the same tensor at the same version, and measures it
        anew otherwise, for example after it was scaled or zeroed.

        Parameters
        ----------
        model : Module or iterable of Tensor
            The module, or the parameters. Those that are not of this optimizer are left out.

        Returns
        -------
        BackwardNormsHandle
            Its method ``remove()`` removes the hooks.

        Raises
        ------
        ValueError
            If `model` is a `DistributedDataParallel` or `FullyShardedDataParallel`, which reduce gradients
            after the hooks, in ways that do not count as changes of the tensors.
        """
        norms = self._backward_norms or BackwardNorms()
        handle = BackwardNormsHandle(norms, model, self.param_groups)
        self._backward_norms = norms
        return handle

    # Steps --------------------------------------------------------------------------------

    def step(self, *arguments: Any, **options: Any) -> Any:
        """Take a step: clip the gradients and update the parameters.

        Parameters
        ----------
        closure : callable, optional
            A function that computes the loss and the gradients anew.

        Returns
        -------
        object
            What `closure` returns, or None.

        Raises
        ------
        NonFiniteGradientError
            With ``on_nonfinite="raise"``, if a gradient contains NaN or infinity. Nothing is written then.
        """
        if torch.compiler.is_compiling():
            return _step_outside_of_graphs(self, *arguments, **options)
        has_hooks = (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or torch_optimizer._global_optimizer_pre_hooks
            or torch_optimizer._global_optimizer_post_hooks
            or torch.autograd._profiler_enabled()
        )
        # PyTorch wraps the step of a derived class that defines one, and calls the hooks itself.
        if has_hooks and type(self).step is FusedStep.step:
            return _step_with_hooks(self, *arguments, **options)
        return self._step(*arguments, **options)

    # PyTorch's base class then does not wrap the method: it calls hooks by itself, and only where there are
    # some.
    step.hooked = True  # type: ignore[attr-defined]

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._is_stepping:
            raise RuntimeError("step was called in the middle of a step of the same optimizer")
        self._is_stepping = True
        try:
            self._take_step()
        finally:
            self._is_stepping = False
        return loss

    def _take_step(self) -> None:
        found_inf, grad_scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if found_inf is not None and float(found_inf) != 0.0:
            self.skipped_steps += 1
            return
        loss_scale = 1.0 if grad_scale is None else float(grad_scale)
        for group in self.param_groups:
            if group.get("capturable") or group.get("differentiable"):
                return self._take_step_of_torch()
        if are_processes_several():
            self._refuse_norms_of_shards()
        gathered = Gathered()
        answer = None
        try:
            if gather(self, gathered):
                answer = _core.torch_step(
                    BINDING,
                    [part.arguments() for part in gathered.parts.values()],
                    (gathered.bounds, self.on_nonfinite, self.skip_above, loss_scale),
                )
        finally:
            if answer is None or answer[0] != "taken":
                gathered.forget_first_steps()
        if answer is None:
            return self._take_step_of_torch()
        outcome, norms, scales, gradient_norms = answer
        self._report = (norms, scales, gathered.norm_group_of)
        if outcome == "skipped":
            self.skipped_steps += 1
        elif outcome == "refused":
            raise nonfinite_gradient_error(
                "The step was not taken.", gradient_norms or [], self._names_of(gathered)
            )
        return None

    def _refuse_norms_of_shards(self) -> None:
        """Raise if the step depends on the norm of a part of the gradients, that of this process."""
        checked = [
            ("max_norm", [group for group in self.param_groups if given_bound(group) is not None]),
            ("skip_above", self.param_groups if self.skip_above is not None else []),
            ("on_nonfinite", self.param_groups if self.on_nonfinite != "propagate" else []),
        ]
        for option, groups in checked:
            if any(are_shards(group["params"]) for group in groups):
                raise RuntimeError(
                    f"{option} looks at the gradients of one process, which has a part of them with "
                    "FullyShardedDataParallel; leave it at its default, and call the module's clip_grad_norm_"
                )

    def _names_of(self, gathered: Gathered) -> list[str]:
        """Return the names of the parameters whose gradients a step has gathered."""
        names: dict[int, str] = {}
        for index, group in enumerate(self.param_groups):
            given = group.get("param_names")
            for at, parameter in enumerate(group["params"]):
                name = given[at] if given is not None else f"param_groups[{index}]['params'][{at}]"
                names[id(parameter)] = name
        return [names[id(parameter)] for part in gathered.parts.values() for parameter in part.parameters]

    def _take_step_of_torch(self) -> None:
        """Take a step by PyTorch's own code, for parameters that fastclip does not take."""
        has_own_bound = any(given_bound(group) is not None for group in self.param_groups)
        for option, is_used in (
            ("max_norm", has_own_bound),
            ("on_nonfinite", self.on_nonfinite != "propagate"),
            ("skip_above", self.skip_above is not None),
            ("state_dtype", any(group.get("state_dtype") is not None for group in self.param_groups)),
            ("set_low_precision_copy", bool(self._copies)),
        ):
            if is_used:
                raise RuntimeError(f"{option} {_reason(self)}")
        step = self._torch_class.step
        if getattr(step, "hooked", False):
            step = step.__wrapped__  # type: ignore[attr-defined]
        step(self)

    # Copies and checkpoints ---------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{name: getattr(self, name) for name in _ATTRIBUTES}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        loaded = self.__dict__.pop("_loaded_state", None)
        if loaded is not None:
            take_group_options(state["param_groups"], self.param_groups)
        super().__setstate__(state)
        for name, value in (("on_nonfinite", "propagate"), ("skip_above", None), ("skipped_steps", 0)):
            self.__dict__.setdefault(name, value)
        self.__dict__.setdefault("_copies", {})
        self.__dict__.setdefault("_report", None)
        self._is_stepping = False
        self.__dict__.setdefault("_backward_norms", None)
        if loaded is not None:
            self._restore_state_dtypes(loaded)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, of this class or of PyTorch's.

        Moments have the type that the loaded `state_dtype` says, or that of this optimizer if the state has
        none. A state without bounds leaves those of this optimizer as they are.

        Parameters
        ----------
        state_dict : dict
            What `state_dict` returned.
        """

        def keep(_: Optimizer, state: dict[str, Any]) -> None:
            # The last hook sees the state that is loaded.
            self._loaded_state = state["state"], [group["params"] for group in state["param_groups"]]

        handle = self.register_load_state_dict_pre_hook(keep)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self.__dict__.pop("_loaded_state", None)

    def _restore_state_dtypes(self, loaded: tuple[dict[Any, Any], list[list[Any]]]) -> None:
        """Convert loaded moments to `state_dtype`: PyTorch has converted them to the parameter's type."""
        states, keys_of_groups = loaded
        for group, keys in zip(self.param_groups, keys_of_groups, strict=True):
            dtype = group.get("state_dtype")
            if dtype is None:
                continue
            for parameter, key in zip(group["params"], keys, strict=True):
                for name, value in states.get(key, {}).items():
                    if name != "step" and isinstance(value, torch.Tensor) and value.is_floating_point():
                        converted = value.to(dtype=dtype, device=parameter.device, copy=True)
                        self.state[parameter][name] = converted


def _reason(optimizer: FusedStep) -> str:
    """Say why an option that PyTorch's optimizers do not have cannot be used."""
    for index, group in enumerate(optimizer.param_groups):
        for key in ("capturable", "differentiable"):
            if group.get(key):
                return f"cannot be used with {key}=True"
        for at, parameter in enumerate(group["params"]):
            where = f"param_groups[{index}]['params'][{at}]"
            gradient = parameter.grad
            for name, tensor in ((where, parameter), (f"the gradient of {where}", gradient)):
                if tensor is not None and not is_plain(tensor):
                    return (
                        "takes parameters and gradients that are dense float tensors on the CPU, all in one"
                        f" optimizer; {name} is a {type(tensor).__name__} of {tensor.dtype} on"
                        f" {tensor.device} with the layout {tensor.layout}"
                    )
    return "takes states that are dense float tensors on the CPU"


_step_with_hooks = Optimizer.profile_hook_step(FusedStep._step)
_step_outside_of_graphs = torch._disable_dynamo(FusedStep.step)
# Hooks see the arguments as they were passed, so that the method takes any; these are the ones that it has.
FusedStep.step.__signature__ = inspect.signature(FusedStep._step)  # type: ignore[attr-defined]
