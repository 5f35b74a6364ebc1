"""Every learning rate scheduler of PyTorch over the optimizers."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from optimizer_pairs import NAMES, WITH_STATES, mine, parameters, set_gradients, theirs  # noqa: E402
from torch.optim import lr_scheduler, swa_utils  # noqa: E402

pytestmark = [
    pytest.mark.interop("torch"),
    # SequentialLR passes an epoch, against PyTorch's own advice.
    pytest.mark.filterwarnings("ignore:The epoch parameter in"),
]


def sequential(optimizer: Any) -> Any:
    first = lr_scheduler.ConstantLR(optimizer, factor=0.1, total_iters=3)
    return lr_scheduler.SequentialLR(
        optimizer, [first, lr_scheduler.ExponentialLR(optimizer, gamma=0.8)], milestones=[4]
    )


def chained(optimizer: Any) -> Any:
    first = lr_scheduler.ConstantLR(optimizer, factor=0.1, total_iters=3)
    return lr_scheduler.ChainedScheduler([first, lr_scheduler.ExponentialLR(optimizer, gamma=0.8)], optimizer)


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.95),
    "StepLR": lambda o: lr_scheduler.StepLR(o, step_size=3, gamma=0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, milestones=[2, 5], gamma=0.3),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, factor=0.5, total_iters=4),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, start_factor=0.2, total_iters=5),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, gamma=0.9),
    "SequentialLR": sequential,
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=8, power=2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=6, eta_min=1e-4),
    "ChainedScheduler": chained,
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1, factor=0.5),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, base_lr=1e-3, max_lr=1e-2, step_size_up=3),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=3, T_mult=2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.02, total_steps=12),
    "SWALR": lambda o: swa_utils.SWALR(o, swa_lr=1e-3, anneal_epochs=4),
}


def test_every_scheduler_of_torch_is_listed() -> None:
    found = {
        name
        for module in (lr_scheduler, swa_utils)
        for name, class_ in vars(module).items()
        if inspect.isclass(class_)
        and issubclass(class_, lr_scheduler.LRScheduler)
        and not name.startswith("_")
    }
    assert found - {"LRScheduler"} == set(SCHEDULERS)


def run(make: Callable[..., Any], name: str, scheduler_name: str, lr: Any) -> tuple[list[Any], list[Any]]:
    """Returns what the scheduler has set in each step, and the parameters after all."""
    params = parameters()
    groups = [{"params": params[:2], "lr": lr}, {"params": params[2:]}]
    optimizer = make(name, groups, lr=0.01, **WITH_STATES[name])
    scheduler = SCHEDULERS[scheduler_name](optimizer)
    rates = []
    for step in range(10):
        set_gradients(params, step)
        optimizer.step()
        scheduler.step(*([1.0] if scheduler_name == "ReduceLROnPlateau" else []))
        for group in optimizer.param_groups:
            rates.append((float(group["lr"]), group.get("betas"), group.get("momentum")))
    return rates, params


@pytest.mark.parametrize("is_tensor", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("scheduler_name", SCHEDULERS)
@pytest.mark.parametrize("name", NAMES)
def test_rates_and_parameters_are_those_of_torch(name: str, scheduler_name: str, is_tensor: bool) -> None:
    def outcome(make: Callable[..., Any]) -> tuple[Any, list[Any]]:
        try:
            return run(make, name, scheduler_name, torch.tensor(0.02) if is_tensor else 0.02)
        except ValueError as error:
            # Adagrad has no momentum to be cycled.
            return str(error), []

    rates, params = outcome(mine)
    wanted_rates, wanted = outcome(theirs)
    assert rates == wanted_rates
    for parameter, wanted_parameter in zip(params, wanted, strict=True):
        torch.testing.assert_close(parameter, wanted_parameter, rtol=1e-6, atol=1e-6)


def test_a_scheduler_notices_steps() -> None:
    params = parameters()
    set_gradients(params, 0)
    optimizer = mine("AdamW", params, max_norm=1.0)
    scheduler = lr_scheduler.StepLR(optimizer, step_size=1)
    with pytest.warns(UserWarning, match=r"call of `lr_scheduler.step\(\)` before `optimizer.step\(\)`"):
        scheduler.step()
    optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.step()


def test_an_averaged_model_follows_the_parameters() -> None:
    averages = []
    for make in (mine, theirs):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        averaged = swa_utils.AveragedModel(model)
        optimizer = make("AdamW", model.parameters(), lr=0.01)
        for step in range(5):
            set_gradients(list(model.parameters()), step)
            optimizer.step()
            averaged.update_parameters(model)
        averages.append(averaged.module.weight.detach())
    torch.testing.assert_close(*averages, rtol=1e-6, atol=1e-6)


def test_a_scheduler_goes_on_after_a_checkpoint() -> None:
    rates = []
    for is_interrupted in (False, True):
        params = parameters()
        optimizer = mine("AdamW", params, lr=0.1, max_norm=1.0)
        scheduler = SCHEDULERS["CosineAnnealingLR"](optimizer)
        for step in range(6):
            if is_interrupted and step == 3:
                states = optimizer.state_dict(), scheduler.state_dict()
                optimizer = mine("AdamW", params, lr=0.1)
                scheduler = SCHEDULERS["CosineAnnealingLR"](optimizer)
                optimizer.load_state_dict(states[0])
                scheduler.load_state_dict(states[1])
            set_gradients(params, step)
            optimizer.step()
            scheduler.step()
        assert optimizer.max_norm == 1.0
        rates.append((optimizer.param_groups[0]["lr"], [parameter.tolist() for parameter in params]))
    assert rates[0] == rates[1]
