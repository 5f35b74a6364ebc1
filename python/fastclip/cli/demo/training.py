"""Training runs that differ in the optimizer and in gradient clipping."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

import fastclip
from fastclip.cli.demo.rnn import Array, Labels, Weights, cross_entropy, initial_weights, predict
from fastclip.train import AdamOptimizer, GradientDescentOptimizer, Optimizer

# A digit has 8 x 8 pixels. The network reads half a row per time step, so there are 16 time steps.
# Recurrent weights with a gain of 3 make the norms of the first gradients thousands of times larger than
# those of later ones. Plain SGD then overflows within a few steps. Adam does not, but it divides its steps
# by the root mean square of about the last thousand gradients, so the first ones slow it down for hundreds
# of steps. With beta2=0.9, which averages over about ten gradients, Adam learns without clipping too. With
# a gain of 1.7, the first gradients do not explode, and Adam learns as well without clipping (seeds 0 to 2).
PIXELS_PER_TIME_STEP = 4
HIDDEN = 64
GAIN = 3.0
BATCH = 64
WARM_UP = 0.1  # share of the steps in which the learning rate rises; it then falls linearly to zero
TEST_SHARE = 0.2
CLASSES = 10


@dataclass(frozen=True)
class Method:
    """Optimizer with its learning rate and its gradient clipping.

    Attributes
    ----------
    rule : str
        The name of the optimizer in the output.
    optimizer : type
        The class of the optimizer.
    learning_rate : float
        The highest learning rate of a run.
    clipvalue, global_clipnorm : float or None
        The keyword arguments of the optimizer for clipping. At most one of them is not None.
    """

    rule: str
    optimizer: type[AdamOptimizer] | type[GradientDescentOptimizer]
    learning_rate: float
    clipvalue: float | None = None
    global_clipnorm: float | None = None

    @property
    def name(self) -> str:
        """The name of the method in the output, such as "Adam, clipvalue=0.02"."""
        if self.clipvalue is not None:
            return f"{self.rule}, clipvalue={self.clipvalue:g}"
        if self.global_clipnorm is not None:
            return f"{self.rule}, global_clipnorm={self.global_clipnorm:g}"
        return self.rule

    @property
    def clipping(self) -> str:
        """The kind of clipping: "by value", "by global norm" or "none"."""
        if self.clipvalue is not None:
            return "by value"
        return "none" if self.global_clipnorm is None else "by global norm"

    @property
    def bound(self) -> float:
        """The bound of the clipping; infinity without clipping."""
        if self.clipvalue is not None:
            return self.clipvalue
        return math.inf if self.global_clipnorm is None else self.global_clipnorm


VALUE_BOUND = 0.02
GLOBAL_NORM_BOUND = 1.0
ADAM_RATE = 0.01
SGD_RATE = 0.3

ADAM = Method("Adam", AdamOptimizer, ADAM_RATE)
ADAM_BY_VALUE = Method("Adam", AdamOptimizer, ADAM_RATE, clipvalue=VALUE_BOUND)
ADAM_BY_GLOBAL_NORM = Method("Adam", AdamOptimizer, ADAM_RATE, global_clipnorm=GLOBAL_NORM_BOUND)
SGD = Method("SGD", GradientDescentOptimizer, SGD_RATE)
SGD_BY_GLOBAL_NORM = Method("SGD", GradientDescentOptimizer, SGD_RATE, global_clipnorm=GLOBAL_NORM_BOUND)
METHODS = (ADAM, ADAM_BY_VALUE, ADAM_BY_GLOBAL_NORM, SGD, SGD_BY_GLOBAL_NORM)


class Task(NamedTuple):
    """Data, initial weights and batches, which are the same in all runs.

    Attributes
    ----------
    train_inputs, test_inputs : ndarray of float32, shape (digits, time, features)
        Pixels between 0 and 1.
    train_labels, test_labels : ndarray of int, shape (digits,)
        The digits.
    weights : Weights
        The initial weights of each run.
    batches : ndarray of int, shape (steps, batch)
        Indices of the training digits in the batch of each step.
    """

    train_inputs: Array
    train_labels: Labels
    test_inputs: Array
    test_labels: Labels
    weights: Weights
    batches: Labels


@dataclass
class Run:
    """Record of a training run.

    Attributes
    ----------
    method : Method
        The optimizer and its clipping.
    losses : list of float
        The loss of the batch at each step taken.
    norms : list of float
        The global norm of the gradients at each step, before clipping.
    clipped_steps : int
        The number of steps in which clipping changed the gradients.
    update_seconds : float
        Total time of apply_gradients: norm, clipping and update.
    step_seconds : float
        Total time of the steps: forward pass, backward pass, clipping and update.
    test_accuracy : float
        Share of the test digits that the trained network classifies correctly.
    diverged : bool
        Whether a weight became NaN or infinite, in the last step, which ends the run.
    """

    method: Method
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    clipped_steps: int = 0
    update_seconds: float = 0.0
    step_seconds: float = 0.0
    test_accuracy: float = math.nan
    diverged: bool = False

    @property
    def steps(self) -> int:
        """The number of steps."""
        return len(self.losses)

    @property
    def final_loss(self) -> float:
        """The mean loss of the last 20 steps; NaN if the run diverged."""
        return math.nan if self.diverged else float(np.mean(self.losses[-20:]))

    @property
    def clipped_share(self) -> float:
        """The share of the steps in which clipping changed the gradients."""
        return self.clipped_steps / self.steps

    @property
    def largest_norm(self) -> float:
        """The largest finite gradient norm before clipping; NaN if there is none."""
        return max((norm for norm in self.norms if math.isfinite(norm)), default=math.nan)


def digits_task(*, steps: int, seed: int) -> Task:
    """Return a task with scikit-learn's handwritten digits, and random weights and batches.

    Parameters
    ----------
    steps : int
        The number of batches.
    seed : int
        The seed of all random numbers.

    Returns
    -------
    Task
        The task. It is the same for the same arguments.
    """
    rng = np.random.default_rng(seed)
    # importlib, because scikit-learn has no type annotations and is an optional dependency.
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
        weights=initial_weights(
            rng, features=PIXELS_PER_TIME_STEP, hidden=HIDDEN, classes=CLASSES, gain=GAIN
        ),
        batches=rng.integers(0, len(order) - tests, size=(steps, BATCH)),
    )


def learning_rate(step: int, steps: int) -> float:
    """Return the learning rate of a step as a share of the highest learning rate.

    It rises linearly during the first `WARM_UP` of the steps, then falls linearly to zero.
    """
    rising = (step + 1) / (WARM_UP * steps)
    falling = (1 - step / steps) / (1 - WARM_UP)
    return min(rising, falling, 1.0)


def train(task: Task, method: Method, advance: Callable[[int], None] = lambda steps: None) -> Run:
    """Train the network and measure its test accuracy.

    Parameters
    ----------
    task : Task
        Data, initial weights and batches, which are not modified.
    method : Method
        The optimizer and its clipping.
    advance : callable, optional
        Called with 1 after each step.

    Returns
    -------
    Run
        The record of the run. It has fewer steps than `task` has batches if a weight became NaN or infinite.
    """
    run = Run(method)
    weights = Weights(*(fastclip.Variable(array) for array in task.weights))
    global_step = np.zeros((), np.int64)
    steps = len(task.batches)
    optimizer = method.optimizer(
        lambda: method.learning_rate * learning_rate(int(global_step), steps),
        clipvalue=method.clipvalue,
        global_clipnorm=method.global_clipnorm,
    )
    # Matrix products of this size are not faster with more threads, and much slower if other processes keep
    # the cores busy. threadpoolctl is a dependency of scikit-learn.
    one_blas_thread = importlib.import_module("threadpoolctl").threadpool_limits(1, user_api="blas")
    # Overflows in a run that diverges are expected and need no warnings.
    with one_blas_thread, np.errstate(over="ignore", invalid="ignore"):
        for batch in task.batches:
            loss = _recorded_loss(weights, task.train_inputs[batch], task.train_labels[batch], run.losses)

            start = time.perf_counter()
            grads_and_vars = optimizer.compute_gradients(loss, weights)
            computed = time.perf_counter()
            optimizer.apply_gradients(grads_and_vars, global_step)
            end = time.perf_counter()
            run.update_seconds += end - computed
            run.step_seconds += end - start

            # These values are for the record, so computing them is not part of the step's time.
            norm = _norm(optimizer, [gradient for gradient, _ in grads_and_vars])
            run.norms.append(norm)
            if method.clipping == "by value":
                largest = fastclip.global_norm([gradient for gradient, _ in grads_and_vars], ord=np.inf)
                run.clipped_steps += bool(largest > method.bound)
            else:
                run.clipped_steps += norm > method.bound
            advance(1)
            if not all(np.isfinite(weight).all() for weight in weights):
                run.diverged = True
                break
        run.test_accuracy = float((predict(weights, task.test_inputs) == task.test_labels).mean())
    return run


def _recorded_loss(weights: Weights, inputs: Array, labels: Labels, losses: list[float]) -> Callable[[], Any]:
    """Return a function without parameters that returns the loss of a batch and appends it to `losses`."""
    value_of = importlib.import_module("autograd.tracer").getval

    def loss() -> Any:
        value = cross_entropy(weights, inputs, labels)
        losses.append(float(value_of(value)))
        return value

    return loss


def _norm(optimizer: Optimizer, gradients: list[Any]) -> float:
    """Return the global norm of a step's gradients before clipping.

    The optimizer has computed it if it clips by the global norm.
    """
    if optimizer.last_norm is not None:
        return float(optimizer.last_norm)
    return float(fastclip.global_norm(gradients))
