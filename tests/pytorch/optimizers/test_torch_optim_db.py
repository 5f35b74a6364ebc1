"""PyTorch's own cases of its optimizers, `optim_db`, with the classes of `fastclip.torch` in their place."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
# PyTorch's testing code imports it.
pytest.importorskip("expecttest")

from optimizer_pairs import TORCH_NAMES  # noqa: E402
from torch.testing._internal import common_optimizers  # noqa: E402

import fastclip.torch  # noqa: E402

pytestmark = [
    pytest.mark.interop("torch"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
    pytest.mark.filterwarnings("ignore:The verbose parameter is deprecated"),
]

INFOS: dict[str, Any] = {info.name: info for info in common_optimizers.optim_db if info.name in TORCH_NAMES}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

EVERY_CLASS = pytest.mark.parametrize("name", TORCH_NAMES)


def classes(name: str) -> list[Any]:
    """Returns the class of fastclip and that of PyTorch."""
    return [getattr(fastclip.torch, name), INFOS[name].optim_cls]


def inputs(name: str, skip: tuple[str, ...] = ("differentiable",)) -> Iterator[dict[str, Any]]:
    """Yields the options of all of PyTorch's cases, each with every implementation that may be chosen."""
    for each in common_optimizers._get_optim_inputs_including_global_cliquey_kwargs(
        "cpu", torch.float32, INFOS[name], skip=skip
    ):
        yield each.kwargs


def tolerance(dtype: Any) -> float:
    return {torch.float32: 1e-6, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]


def test_the_classes_are_in_the_database() -> None:
    assert set(INFOS) == set(TORCH_NAMES)
    assert all(len(list(inputs(name))) >= 10 for name in TORCH_NAMES)


# Errors ----------------------------------------------------------------------------------------


def error_inputs() -> Iterator[Any]:
    for name in TORCH_NAMES:
        for each in INFOS[name].optim_error_inputs_func("cpu", torch.float32):
            yield pytest.param(name, each, id=f"{name}: {each.optimizer_error_input.desc}")


@pytest.mark.parametrize(("name", "case"), list(error_inputs()))
def test_errors_are_those_of_torch(name: str, case: Any) -> None:
    given = case.optimizer_error_input
    params = given.params if given.params is not None else [torch.nn.Parameter(torch.randn(1, 1))]
    class_ = classes(name)[0]
    if issubclass(case.error_type, Warning):
        with pytest.warns(case.error_type, match=case.error_regex):
            class_(params, **given.kwargs)
        return
    if case.error_on is common_optimizers.OptimizerErrorEnum.CONSTRUCTION_ERROR:
        with pytest.raises(case.error_type, match=case.error_regex):
            class_(params, **given.kwargs)
        return
    optimizer = class_(params, **given.kwargs)
    with pytest.raises(case.error_type, match=case.error_regex):
        optimizer.step()


# Results ---------------------------------------------------------------------------------------


def model_of(dtype: Any, is_strided: bool) -> tuple[Any, Any, Any]:
    """Returns a weight, a bias and an input, as PyTorch's tests of right directions make them."""
    torch.manual_seed(0)
    shapes = ((10, 5, 2), (10, 2), (5, 2)) if is_strided else ((10, 5), (10,), (5,))
    made = [torch.randn(shape).to(dtype) for shape in shapes]
    weight, bias, given = [tensor[..., 0] if is_strided else tensor for tensor in made]
    return torch.nn.Parameter(weight), torch.nn.Parameter(bias), given


def train(
    class_: Any,
    options: dict[str, Any],
    dtype: Any,
    is_strided: bool = False,
    schedule: Callable[[Any], list[Any]] = lambda optimizer: [],
    steps: int = 20,
) -> tuple[list[Any], float, float]:
    """Returns the parameters after some steps, and the losses before and after them."""
    weight, bias, given = model_of(dtype, is_strided)
    optimizer = class_([weight, bias], **copy.deepcopy(options))
    schedulers = schedule(optimizer)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = (weight.mv(given) + bias).pow(2).sum()
        loss.backward()
        return loss

    first = closure().item()
    for _ in range(steps):
        loss = optimizer.step(closure)
        for scheduler in schedulers:
            is_plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            scheduler.step(*([loss.detach()] if is_plateau else []))
    return [weight.detach(), bias.detach()], first, closure().item()


@pytest.mark.parametrize("is_strided", [False, True], ids=["contiguous", "strided"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@EVERY_CLASS
def test_steps_go_where_torchs_go(name: str, dtype: Any, is_strided: bool) -> None:
    own, other = classes(name)
    for options in inputs(name):
        if dtype is torch.float16 and "Adam" in name:
            # As the database does: PyTorch divides by 0 in float16 otherwise.
            options["eps"] = 0.1
        # PyTorch's fused optimizers ignore strides, and its fused SGD half of a parameter of 16 bits.
        plain = {**options, "foreach": False, "fused": False}
        params, first, last = train(own, options, dtype, is_strided)
        wanted, _, wanted_last = train(other, plain, dtype, is_strided)
        limit = tolerance(dtype)
        for parameter, expected in zip(params, wanted, strict=True):
            torch.testing.assert_close(parameter, expected, rtol=10 * limit, atol=limit)
        assert (last > first) == (wanted_last > first)
        assert (last > first) == bool(options.get("maximize"))


@EVERY_CLASS
def test_steps_with_schedulers_go_where_torchs_go(name: str) -> None:
    own, other = classes(name)
    for schedulers in INFOS[name].scheduler_inputs:

        def schedule(optimizer: Any, schedulers: Any = schedulers) -> list[Any]:
            return [make(optimizer) for make in schedulers]

        for each in INFOS[name].optim_inputs_func(device="cpu"):
            params, _, _ = train(own, each.kwargs, torch.float32, schedule=schedule, steps=8)
            wanted, _, _ = train(
                other, {**each.kwargs, "foreach": False}, torch.float32, schedule=schedule, steps=8
            )
            for parameter, expected in zip(params, wanted, strict=True):
                torch.testing.assert_close(parameter, expected, rtol=1e-5, atol=1e-6)


@EVERY_CLASS
def test_differentiable_cases_are_those_of_torch(name: str) -> None:
    for options in inputs(name, skip=("foreach", "fused")):
        results = []
        for class_ in classes(name):
            torch.manual_seed(0)
            parameter = torch.randn(5, dtype=torch.float64)
            optimizer = class_([parameter], **copy.deepcopy(options))
            for step in range(4):
                parameter.grad = torch.sin(torch.arange(5.0, dtype=torch.float64) + step)
                optimizer.step()
            results.append(parameter)
        torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@EVERY_CLASS
def test_complex_parameters_move_as_their_parts(name: str) -> None:
    for options in inputs(name):
        if options.get("fused"):
            continue
        torch.manual_seed(0)
        whole = torch.nn.Parameter(torch.randn(10, 5, dtype=torch.complex64))
        parts = torch.nn.Parameter(torch.view_as_real(whole.detach()).clone())
        optimizers = [classes(name)[0]([parameter], **copy.deepcopy(options)) for parameter in (whole, parts)]
        for _ in range(10):
            whole.grad = torch.randn(10, 5, dtype=torch.complex64)
            parts.grad = torch.view_as_real(whole.grad).clone()
            for optimizer in optimizers:
                optimizer.step()
        torch.testing.assert_close(torch.view_as_real(whole.detach()), parts.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in TORCH_NAMES if INFOS[name].supports_sparse])
def test_sparse_gradients_find_the_valley_of_rosenbrock(name: str) -> None:
    options, schedulers = INFOS[name].metadata_for_sparse

    def gradient(x: Any, step: int) -> Any:
        # PyTorch's test gives one coordinate of the gradient at a time.
        a, b = x.detach().tolist()
        dense = [-400.0 * a * (b - a * a) - 2.0 * (1.0 - a), 200.0 * (b - a * a)]
        return torch.sparse_coo_tensor([[step % 2]], [dense[step % 2]], (2,), check_invariants=True)

    paths = []
    for class_ in classes(name):
        x = torch.nn.Parameter(torch.tensor([1.5, 1.5]))
        optimizer = class_([x], **options, **({"foreach": False} if class_ is INFOS[name].optim_cls else {}))
        made = [make(optimizer) for make in schedulers]
        points = []
        for step in range(100):
            x.grad = gradient(x, step)
            optimizer.step()
            for scheduler in made:
                is_plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
                scheduler.step(*([float((x.detach() - 1.0).square().sum())] if is_plateau else []))
            points.append(x.detach().clone())
        paths.append(torch.stack(points))
    torch.testing.assert_close(*paths, rtol=1e-6, atol=1e-6)


# Steps that do nothing ---------------------------------------------------------------------------


@EVERY_CLASS
def test_steps_without_gradients_do_nothing(name: str) -> None:
    for options in inputs(name):
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(2, 3)) for _ in range(2)]
        before = [parameter.detach().clone() for parameter in params]
        optimizer = classes(name)[0](params, **copy.deepcopy(options))
        optimizer.step()
        assert all(torch.equal(*pair) for pair in zip(params, before, strict=True))


@EVERY_CLASS
def test_steps_over_zero_gradients_change_what_torchs_change(name: str) -> None:
    for options in inputs(name):
        results = []
        for class_ in classes(name):
            torch.manual_seed(0)
            parameter = torch.nn.Parameter(torch.randn(5, 1))
            before = parameter.detach().clone()
            parameter.grad = torch.zeros_like(parameter)
            class_([parameter], **copy.deepcopy(options)).step()
            if not options.get("weight_decay") and name != "AdamW":
                assert torch.equal(parameter, before)
            results.append(parameter.detach())
        torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


# States ----------------------------------------------------------------------------------------


def stepped(
    class_: Any, options: dict[str, Any], steps: int = 3, is_named: bool = False
) -> tuple[list[Any], Any]:
    torch.manual_seed(1)
    params = [torch.nn.Parameter(torch.randn(2, 3)), torch.nn.Parameter(torch.randn(2))]
    given = [(f"name {index}", parameter) for index, parameter in enumerate(params)] if is_named else params
    optimizer = class_(given, **copy.deepcopy(options))
    take_steps(params, optimizer, range(steps))
    return params, optimizer


def take_steps(params: list[Any], optimizer: Any, steps: range) -> None:
    for step in steps:
        for index, parameter in enumerate(params):
            parameter.grad = torch.sin(torch.arange(float(parameter.numel())) * (step + index + 1)).view_as(
                parameter
            )
        optimizer.step()


@EVERY_CLASS
def test_optimizers_are_printed_as_torchs(name: str) -> None:
    for options in inputs(name):
        own, other = (class_([torch.nn.Parameter(torch.ones(2))], **options) for class_ in classes(name))
        # The default of some options is 0 there and 0.0 here.
        assert repr(own).replace(": 0.0\n", ": 0\n") == repr(other).replace(": 0.0\n", ": 0\n")
        assert repr(copy.deepcopy(own)) == repr(own)


@pytest.mark.parametrize("is_named", [False, True], ids=["without names", "with names"])
@EVERY_CLASS
def test_states_go_on_where_they_were_saved(name: str, is_named: bool) -> None:
    # Saved by either class, through a file that is read without code, into either class.
    for options in inputs(name):
        for saver in classes(name):
            params, optimizer = stepped(saver, options, is_named=is_named)
            buffer = io.BytesIO()
            torch.save(optimizer.state_dict(), buffer)
            loaded = []
            for loader in classes(name):
                buffer.seek(0)
                state = torch.load(buffer, weights_only=True)
                resumed = [torch.nn.Parameter(parameter.detach().clone()) for parameter in params]
                given = [(str(index), p) for index, p in enumerate(resumed)] if is_named else resumed
                other = loader(given, **{"lr": 0.5})
                other.load_state_dict(state)
                assert other.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
                take_steps(resumed, other, range(3, 6))
                loaded.append(resumed)
            for own, wanted in zip(*loaded, strict=True):
                torch.testing.assert_close(own, wanted, rtol=1e-6, atol=1e-6)


@EVERY_CLASS
def test_states_of_older_versions_are_loaded(name: str) -> None:
    info = INFOS[name]
    for options in inputs(name):
        if options.get("fused"):
            continue
        params, optimizer = stepped(classes(name)[0], options)
        old = copy.deepcopy(optimizer.state_dict())
        for group in old["param_groups"]:
            for flag in info.not_og_supported_flags:
                group.pop(flag, None)
        optimizer.load_state_dict(old)
        assert all(group["foreach"] is None for group in optimizer.param_groups)
        take_steps(params, optimizer, range(3, 5))


@EVERY_CLASS
def test_step_counts_that_are_numbers_are_loaded(name: str) -> None:
    for options in inputs(name):
        params, optimizer = stepped(classes(name)[0], options)
        state = copy.deepcopy(optimizer.state_dict())
        for values in state["state"].values():
            if torch.is_tensor(values.get("step")):
                values["step"] = values["step"].item()
        optimizer.load_state_dict(state)
        take_steps(params, optimizer, range(3, 5))
        for values in optimizer.state.values():
            assert "step" not in values or torch.is_tensor(values["step"])


@EVERY_CLASS
def test_copies_have_all_public_attributes(name: str) -> None:
    for options in inputs(name):
        _, optimizer = stepped(classes(name)[0], options)
        public = {key for key in vars(optimizer) if not key.startswith("_")}
        for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
            assert {key for key in vars(copied) if not key.startswith("_")} == public


@EVERY_CLASS
def test_states_are_not_empty_and_the_same_tensors_as_torchs(name: str) -> None:
    for options in inputs(name):
        states = []
        for class_ in classes(name):
            params, optimizer = stepped(class_, {**options, "fused": False, "foreach": False})
            states.append([dict(optimizer.state.get(parameter, {})) for parameter in params])
        for own, other in zip(*states, strict=True):
            kept = {key: value for key, value in other.items() if value is not None}
            assert list(own) == list(kept)
            for key, value in kept.items():
                torch.testing.assert_close(own[key], value, rtol=1e-5, atol=1e-7)


@EVERY_CLASS
def test_parameter_groups_go_where_torchs_go(name: str) -> None:
    for options in inputs(name):
        results = []
        for class_ in classes(name):
            torch.manual_seed(2)
            params = [torch.nn.Parameter(torch.randn(4)) for _ in range(3)]
            groups = [{"params": params[:2]}, {"params": params[2:], "weight_decay": 0.3, "lr": 0.02}]
            plain = {**options, "fused": False, "foreach": False}
            optimizer = class_(groups, **copy.deepcopy(plain if class_ is INFOS[name].optim_cls else options))
            take_steps(params, optimizer, range(5))
            results.append(params)
        for own, wanted in zip(*results, strict=True):
            torch.testing.assert_close(own, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["AdamW", "Adam"])
def test_betas_may_be_tensors(name: str) -> None:
    results = []
    for class_ in classes(name):
        options = {
            "lr": torch.tensor(0.01),
            "betas": (torch.tensor(0.8), torch.tensor(0.95)),
            "foreach": False,
        }
        params, _ = stepped(class_, options, steps=10)
        results.append(params)
    for own, wanted in zip(*results, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-6, atol=1e-6)
