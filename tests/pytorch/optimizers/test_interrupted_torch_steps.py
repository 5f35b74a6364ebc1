"""Steps in the middle of steps: code of signal handlers, of number types, and of other threads."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from optimizer_pairs import (  # noqa: E402
    NAMES,
    WITH_STATES,
    mine,
    parameters,
    same_bits,
    set_gradients,
    snapshot,
    values,
)
from signal_points import call_with_handler  # noqa: E402

pytestmark = pytest.mark.interop("torch")

without_tracer = pytest.mark.skipif(sys.gettrace() is not None, reason="something else traces already")

SHAPES = ((5,), (2, 3))


class Interrupt(BaseException):
    """An exception that no code of fastclip expects."""


def build(name: str, steps: int, **options: Any) -> Any:
    """Returns an optimizer after some steps, whose parameters have the gradients of another one."""
    params = parameters(SHAPES)
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.02}]
    optimizer = mine(name, groups, lr=0.01, max_norm=1.0, **WITH_STATES[name], **options)
    set_gradients(params, 0)
    for _ in range(steps):
        optimizer.step()
    return optimizer


def contents(optimizer: Any) -> list[tuple[str, list[float]]]:
    """Returns all numbers that a step writes. States that do not exist yet are zeros, but for Adagrad's."""
    found = []
    for index, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            found.append((f"{index}", parameter.detach().flatten().tolist()))
            for key, value in sorted(optimizer.state.get(parameter, {}).items()):
                numbers = value.flatten().tolist()
                if any(numbers):
                    found.append((f"{index} {key}", numbers))
    return found


# Interrupts ------------------------------------------------------------------------------------


@without_tracer
@pytest.mark.parametrize("steps", [0, 1], ids=["first step", "second step"])
@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_step_is_taken_whole_or_not_at_all(name: str, steps: int) -> None:
    before, after = contents(build(name, steps)), contents(build(name, steps + 1))
    outcomes = set()
    for at in range(5000):
        optimizer = build(name, steps)
        if steps == 0:
            optimizer.zero_grad()
            set_gradients([p for group in optimizer.param_groups for p in group["params"]], 0)

        def interrupt() -> None:
            raise Interrupt

        ran, error = call_with_handler(optimizer.step, interrupt, at, catch=Interrupt)
        assert ran == (error is not None)
        found = contents(optimizer)
        assert found in (before, after), f"interrupted at {at}"
        outcomes.add(found == after)
        if not ran:
            break
        # The optimizer is not left in the middle of a step.
        optimizer.step()
        assert contents(optimizer) == (after if found == before else contents(build(name, steps + 2)))
    assert outcomes == {False, True}
    assert at > 50


@without_tracer
def test_an_interrupted_first_step_with_dampening_counts_for_nothing() -> None:
    def sgd() -> Any:
        params = parameters(SHAPES)
        set_gradients(params, 0)
        return mine("SGD", params, lr=0.1, momentum=0.9, dampening=0.5)

    def interrupt() -> None:
        raise Interrupt

    wanted = sgd()
    wanted.step()
    for at in range(5000):
        optimizer = sgd()
        ran, _ = call_with_handler(optimizer.step, interrupt, at, catch=Interrupt)
        if not ran:
            break
        if not any(key for key, _ in contents(optimizer) if "momentum" in key):
            optimizer.step()
            assert contents(optimizer) == contents(wanted), f"interrupted at {at}"


# Steps in the middle of steps --------------------------------------------------------------------


@without_tracer
@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_a_step_of_the_same_optimizer_in_a_handler_is_refused_or_taken_whole(name: str) -> None:
    after = [contents(build(name, steps)) for steps in (1, 2, 3)]
    outcomes = set()
    for at in range(5000):
        optimizer = build(name, 1)
        ran, error = call_with_handler(optimizer.step, optimizer.step, at, catch=RuntimeError)
        steps = after.index(contents(optimizer))
        if error is not None:
            assert "in the middle of a step of the same optimizer" in str(error)
            assert steps in (0, 1)
        else:
            assert steps == (2 if ran else 1)
        outcomes.add((steps, error is None))
        if not ran:
            break
        optimizer.step()
    assert {(0, False), (2, True)} <= outcomes


@without_tracer
def test_a_step_of_another_optimizer_in_a_handler_is_taken() -> None:
    wanted = contents(build("AdamW", 2))
    for at in range(5000):
        optimizer, other = build("AdamW", 1), build("AdamW", 1)
        ran, error = call_with_handler(optimizer.step, other.step, at, catch=RuntimeError)
        assert error is None
        assert contents(optimizer) == wanted
        if not ran:
            break
        assert contents(other) == wanted


ACTIONS: dict[str, Callable[[Any], Any]] = {
    "clears the state": lambda optimizer: optimizer.state.clear(),
    "clears the groups": lambda optimizer: optimizer.param_groups.clear(),
    "clears the parameters": lambda optimizer: optimizer.param_groups[-1]["params"].clear(),
    "removes gradients": lambda optimizer: optimizer.zero_grad(),
    "adds a group": lambda optimizer: optimizer.add_param_group({"params": parameters([(4,)])}),
    "loads a state": lambda optimizer: optimizer.load_state_dict(build("AdamW", 3).state_dict()),
    "changes the rule": lambda optimizer: optimizer.param_groups[-1].update(amsgrad=False),
    "sets a bound": lambda optimizer: optimizer.param_groups[-1].update(max_norm=1e-3),
    "replaces data": lambda optimizer: [
        setattr(parameter, "data", torch.zeros(7)) for parameter in list(optimizer.state)
    ],
    "frees storages": lambda optimizer: [
        state["exp_avg"].set_(torch.zeros(0)) for state in list(optimizer.state.values())
    ],
}


@without_tracer
@pytest.mark.parametrize("action", ACTIONS)
def test_what_a_handler_changes_in_the_middle_of_a_step_ends_no_process(action: str) -> None:
    errors: list[Any] = [None]
    for at in range(5000):
        optimizer = build("AdamW", 1)
        kept = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        ran, error = call_with_handler(
            optimizer.step, lambda o=optimizer: ACTIONS[action](o), at, catch=Exception
        )
        errors.append(error)
        assert not optimizer._is_stepping
        if not ran:
            break
        assert len(kept) == 2
    # The call ends as usual where the handler comes after it, if not before it.
    assert errors[-1] is None


def test_a_step_in_the_conversion_of_a_number_is_refused() -> None:
    optimizer = build("AdamW", 1)
    wanted = contents(build("AdamW", 2))
    refused = []

    class Rate(float):
        def __float__(self) -> float:
            try:
                optimizer.step()
            except RuntimeError as error:
                refused.append(str(error))
            return 0.01

    optimizer.param_groups[0]["lr"] = Rate(0.01)
    optimizer.step()
    assert refused == ["step was called in the middle of a step of the same optimizer"]
    assert contents(optimizer) == wanted


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers that send signals")
def test_a_signal_handler_that_takes_steps() -> None:
    # Steps long enough that signals arrive in the middle of passes over memory.
    parameter = torch.nn.Parameter(torch.zeros(1 << 20))
    parameter.grad = torch.ones(1 << 20)
    optimizer = mine("SGD", [parameter], lr=1.0)
    taken = [0]
    refused: list[str] = []

    depth = [0]

    def handler(*_: Any) -> None:
        # On a machine where a step takes as long as the interval of the timer, each handler would be
        # interrupted by the next one.
        if depth[0] > 2:
            return
        depth[0] += 1
        try:
            optimizer.step()
            taken[0] += 1
        except RuntimeError as error:
            refused.append(str(error))
        finally:
            depth[0] -= 1

    previous = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    try:
        own = 0
        while own < 200 and len(refused) < 3:
            optimizer.step()
            own += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, previous)
    assert set(refused) <= {"step was called in the middle of a step of the same optimizer"}
    assert parameter.unique().tolist() == [-float(own + taken[0])]


# Threads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_threads_step_optimizers_of_their_own(name: str) -> None:
    def train(seed: int) -> list[Any]:
        params = [torch.nn.Parameter(tensor) for tensor in values([(20_000,), (7, 3)], seed=seed)]
        optimizer = mine(name, params, lr=0.01, max_norm=1.0, state_dtype=torch.bfloat16, **WITH_STATES[name])
        for step in range(15):
            set_gradients(params, step)
            optimizer.step()
        return snapshot(optimizer)

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(train, range(6)))
    for seed, found in enumerate(together):
        assert all(same_bits(*pair) for pair in zip(found, train(seed), strict=True))


def test_two_threads_that_step_one_optimizer_take_whole_steps() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1 << 18))
    parameter.grad = torch.ones(1 << 18)
    optimizer = mine("SGD", [parameter], lr=1.0)
    barrier, taken = threading.Barrier(3), [0] * 3
    refused: list[str] = []

    def run(index: int) -> None:
        barrier.wait()
        for _ in range(40):
            try:
                optimizer.step()
            except RuntimeError as error:
                refused.append(str(error))
            else:
                taken[index] += 1

    threads = [threading.Thread(target=run, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) > 0
    assert set(refused) <= {"step was called in the middle of a step of the same optimizer"}
    assert parameter.unique().tolist() == [-float(sum(taken))]


def test_a_step_in_a_thread_leaves_the_others_their_grad_mode() -> None:
    modes = []

    def run() -> None:
        params = parameters(SHAPES)
        set_gradients(params, 0)
        mine("AdamW", params).step(lambda: modes.append(torch.is_grad_enabled()))
        modes.append(torch.is_grad_enabled())

    with torch.no_grad():
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        assert not torch.is_grad_enabled()
    assert modes == [True, True]
