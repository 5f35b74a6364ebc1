"""A training run that is the same but for how its gradients are clipped."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

import fastclip
from fastclip.cli.rnn import Array, Labels, Weights, initial_weights, loss_and_gradients, predict

# A digit is 8 x 8 pixels and is read half a row at a time, in 16 time steps. With a gain of 1.7
# and this learning rate training lives at the edge: an unlucky batch makes a large gradient, the
# step along it makes larger recurrent weights, and these a larger gradient still.
PIXELS_PER_TIME_STEP = 4
HIDDEN = 64
GAIN = 1.7
BATCH = 64
LEARNING_RATE = 0.7
WARM_UP = 0.1  # of the steps; after them the learning rate falls linearly to zero
TEST_SHARE = 0.2

VALUE_BOUND = 0.02
GLOBAL_NORM_BOUND = 1.0


@dataclass(frozen=True)
class Clipping:
    """A way to clip gradients.

    Attributes
    ----------
    name : str
        What it is called in output.
    bound : float
        What it bounds the gradients by.
    ord : float
        The order of the norm that it bounds: a gradient is clipped if that norm is above `bound`.
    clip : callable
        Clips the gradients it is given in place.
    """

    name: str
    bound: float
    ord: float
    clip: Callable[[Weights], object]


def _clip_by_value(gradients: Weights) -> None:
    for gradient in gradients:
        fastclip.clip_by_value(gradient, -VALUE_BOUND, VALUE_BOUND, out=gradient)


def _clip_by_global_norm(gradients: Weights) -> None:
    fastclip.clip_by_global_norm(gradients, GLOBAL_NORM_BOUND, out=gradients)


NO_CLIPPING = Clipping("none", math.inf, 2, lambda gradients: None)
BY_VALUE = Clipping("by value", VALUE_BOUND, math.inf, _clip_by_value)
BY_GLOBAL_NORM = Clipping("by global norm", GLOBAL_NORM_BOUND, 2, _clip_by_global_norm)


class Task(NamedTuple):
    """What the runs share: data, first weights and the order of the batches.

    Attributes
    ----------
    train_inputs, test_inputs : ndarray of float32, shape (digits, time, features)
        Pixels between 0 and 1.
    train_labels, test_labels : ndarray of int, shape (digits,)
        The digits that they show.
    weights : Weights
        From which each run starts.
    batches : ndarray of int, shape (steps, batch)
        The rows of the training data that each step sees.
    """

    train_inputs: Array
    train_labels: Labels
    test_inputs: Array
    test_labels: Labels
    weights: Weights
    batches: Labels


@dataclass
class Run:
    """The record of a training run.

    Attributes
    ----------
    clipping : Clipping
        How its gradients were clipped.
    losses : list of float
        The loss of the batch at each step taken.
    norms : list of float
        The global norm of the gradients at each step, before clipping.
    applied_norms : list of float
        The same after clipping.
    clipped_steps : int
        At how many steps clipping changed the gradients.
    clip_seconds : float
        Time spent clipping.
    step_seconds : float
        Time spent in the steps: forward, backward, clipping and update.
    test_accuracy : float
        Share of the test digits that the trained network names rightly.
    diverged : bool
        Whether a weight became NaN or infinite; the run ends with the step that did it.
    """

    clipping: Clipping
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    applied_norms: list[float] = field(default_factory=list)
    clipped_steps: int = 0
    clip_seconds: float = 0.0
    step_seconds: float = 0.0
    test_accuracy: float = math.nan
    diverged: bool = False

    @property
    def steps(self) -> int:
        """Steps taken."""
        return len(self.losses)

    @property
    def final_loss(self) -> float:
        """Mean loss of the last 20 steps; NaN if the run diverged."""
        return math.nan if self.diverged else float(np.mean(self.losses[-20:]))

    @property
    def clipped_share(self) -> float:
        """Share of the steps at which clipping changed the gradients."""
        return self.clipped_steps / self.steps

    @property
    def largest_norm(self) -> float:
        """The largest finite norm before clipping."""
        return _largest_finite(self.norms)

    @property
    def largest_applied_norm(self) -> float:
        """The largest finite norm after clipping."""
        return _largest_finite(self.applied_norms)


def _largest_finite(values: list[float]) -> float:
    return max((value for value in values if math.isfinite(value)), default=math.nan)


def digits_task(*, steps: int, seed: int) -> Task:
    """Prepare scikit-learn's handwritten digits, a network and an order of batches.

    Parameters
    ----------
    steps : int
        For how many steps batches are drawn.
    seed : int
        Of all random choices.

    Returns
    -------
    Task
        The same for the same arguments.
    """
    rng = np.random.default_rng(seed)
    # scikit-learn has no type annotations, and is not among what fastclip always has.
    digits = importlib.import_module("sklearn.datasets").load_digits()
    order = rng.permutation(len(digits.target))
    tests = round(TEST_SHARE * len(order))
    pixels = (digits.data[order] / 16).astype(np.float32)
    inputs = pixels.reshape(len(order), -1, PIXELS_PER_TIME_STEP)
    labels = digits.target[order]
    return Task(
        train_inputs=inputs[tests:],
        train_labels=labels[tests:],
        test_inputs=inputs[:tests],
        test_labels=labels[:tests],
        weights=initial_weights(rng, features=PIXELS_PER_TIME_STEP, hidden=HIDDEN, classes=10, gain=GAIN),
        batches=rng.integers(0, len(order) - tests, size=(steps, BATCH)),
    )


def learning_rate(step: int, steps: int) -> float:
    """Return the learning rate of a step: it rises linearly at first, then falls to zero."""
    rising = (step + 1) / (WARM_UP * steps)
    falling = (1 - step / steps) / (1 - WARM_UP)
    return LEARNING_RATE * min(rising, falling, 1.0)


def train(task: Task, clipping: Clipping, advance: Callable[[int], None] = lambda steps: None) -> Run:
    """Train by plain stochastic gradient descent.

    Parameters
    ----------
    task : Task
        Data, first weights and batches; left as it is.
    clipping : Clipping
        What happens to the gradients before they are applied.
    advance : callable, optional
        Told of each step taken.

    Returns
    -------
    Run
        What happened. It is shorter than `task` has batches if the weights became NaN or infinite.
    """
    run = Run(clipping)
    weights = Weights(*(array.copy() for array in task.weights))
    steps = len(task.batches)
    # Products this small gain nothing from more threads, and lose much where other work keeps the
    # cores busy. scikit-learn brings threadpoolctl along.
    one_blas_thread = importlib.import_module("threadpoolctl").threadpool_limits(1, user_api="blas")
    # A run that diverges overflows on its way; that is what is to be seen, and no cause for warnings.
    with one_blas_thread, np.errstate(over="ignore", invalid="ignore"):
        for step, batch in enumerate(task.batches):
            start = time.perf_counter()
            loss, gradients = loss_and_gradients(weights, task.train_inputs[batch], task.train_labels[batch])
            run.step_seconds += time.perf_counter() - start

            # For the record only, and so outside of the time that the step takes.
            norm = float(fastclip.global_norm(gradients))
            bounded = float(fastclip.global_norm(gradients, ord=clipping.ord))

            start = time.perf_counter()
            clipping.clip(gradients)
            run.clip_seconds += time.perf_counter() - start

            applied_norm = float(fastclip.global_norm(gradients))

            update = time.perf_counter()
            rate = np.float32(learning_rate(step, steps))
            for weight, gradient in zip(weights, gradients, strict=True):
                weight -= rate * gradient
            run.step_seconds += time.perf_counter() - update

            run.losses.append(loss)
            run.norms.append(norm)
            run.applied_norms.append(applied_norm)
            run.clipped_steps += bounded > clipping.bound
            advance(1)
            if not math.isfinite(applied_norm) and not all(np.isfinite(weight).all() for weight in weights):
                run.diverged = True
                break
        run.step_seconds += run.clip_seconds
        run.test_accuracy = float((predict(weights, task.test_inputs) == task.test_labels).mean())
    return run
