"""Training runs that differ in the optimizer, and in how it clips the gradients."""

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
from fastclip.train._handling import GradientHandling

# A digit is 8 x 8 pixels and is read half a row at a time, in 16 time steps. Recurrent weights with
# a gain of 3 make the first gradients thousands of times longer than later ones. Plain SGD leaves the
# range of floats within a few steps. Adam does not, but it divides its steps by the root mean square
# of the last thousand or so gradients, so that those first ones slow it down for hundreds of steps.
# With beta2=0.9, which forgets them in ten, it learns without clipping too; with a gain of 1.7 the
# gradients do not explode at first, and Adam does as well without clipping (seeds 0 to 2).
PIXELS_PER_TIME_STEP = 4
HIDDEN = 64
GAIN = 3.0
BATCH = 64
WARM_UP = 0.1  # of the steps; after them the learning rate falls linearly to zero
TEST_SHARE = 0.2
CLASSES = 10


@dataclass(frozen=True)
class Method:
    """An optimizer, and what it does to gradients.

    Attributes
    ----------
    rule : str
        What the optimizer is called in output.
    optimizer : type
        A subclass of Optimizer.
    learning_rate : float
        The highest of the run.
    handling : dict
        The keyword arguments that clip: one of them, or none.
    """

    rule: str
    optimizer: type[AdamOptimizer] | type[GradientDescentOptimizer]
    learning_rate: float
    handling: GradientHandling = field(default_factory=GradientHandling)

    @property
    def name(self) -> str:
        """What it is called in output."""
        return ", ".join([self.rule, *(f"{key}={value:g}" for key, value in self.handling.items())])

    @property
    def clipping(self) -> str:
        """What it clips the gradients by."""
        if "clipvalue" in self.handling:
            return "by value"
        return "by global norm" if "global_clipnorm" in self.handling else "none"

    @property
    def bound(self) -> float:
        """What it bounds gradients by."""
        if self.clipping == "none":
            return math.inf
        bound = self.handling.get("clipvalue", self.handling.get("global_clipnorm"))
        assert bound is not None
        return bound


VALUE_BOUND = 0.02
GLOBAL_NORM_BOUND = 1.0
ADAM_RATE = 0.01
SGD_RATE = 0.3

ADAM = Method("Adam", AdamOptimizer, ADAM_RATE)
ADAM_BY_VALUE = Method("Adam", AdamOptimizer, ADAM_RATE, {"clipvalue": VALUE_BOUND})
ADAM_BY_GLOBAL_NORM = Method("Adam", AdamOptimizer, ADAM_RATE, {"global_clipnorm": GLOBAL_NORM_BOUND})
SGD = Method("SGD", GradientDescentOptimizer, SGD_RATE)
SGD_BY_GLOBAL_NORM = Method("SGD", GradientDescentOptimizer, SGD_RATE, {"global_clipnorm": GLOBAL_NORM_BOUND})
METHODS = (ADAM, ADAM_BY_VALUE, ADAM_BY_GLOBAL_NORM, SGD, SGD_BY_GLOBAL_NORM)


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
    method : Method
        How it was trained.
    losses : list of float
        The loss of the batch at each step taken.
    norms : list of float
        The global norm of the gradients at each step, before clipping.
    clipped_steps : int
        At how many steps clipping changed the gradients.
    update_seconds : float
        Time spent in apply_gradients: norm, clipping and update.
    step_seconds : float
        Time spent in the steps: forward, backward, clipping and update.
    test_accuracy : float
        Share of the test digits that the trained network names rightly.
    diverged : bool
        Whether a weight became NaN or infinite; the run ends with the step that did it.
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
        return max((norm for norm in self.norms if math.isfinite(norm)), default=math.nan)


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
        weights=initial_weights(
            rng, features=PIXELS_PER_TIME_STEP, hidden=HIDDEN, classes=CLASSES, gain=GAIN
        ),
        batches=rng.integers(0, len(order) - tests, size=(steps, BATCH)),
    )


def learning_rate(step: int, steps: int) -> float:
    """Return the learning rate of a step as a share of the highest: it rises linearly, then falls to zero."""
    rising = (step + 1) / (WARM_UP * steps)
    falling = (1 - step / steps) / (1 - WARM_UP)
    return min(rising, falling, 1.0)


def train(task: Task, method: Method, advance: Callable[[int], None] = lambda steps: None) -> Run:
    """Train the network.

    Parameters
    ----------
    task : Task
        Data, first weights and batches; left as it is.
    method : Method
        What turns gradients into steps.
    advance : callable, optional
        Told of each step taken.

    Returns
    -------
    Run
        What happened. It is shorter than `task` has batches if the weights became NaN or infinite.
    """
    run = Run(method)
    weights = Weights(*(fastclip.Variable(array) for array in task.weights))
    global_step = np.zeros((), np.int64)
    steps = len(task.batches)
    optimizer = method.optimizer(
        lambda: method.learning_rate * learning_rate(int(global_step), steps), **method.handling
    )
    # Products this small gain nothing from more threads, and lose much where other work keeps the
    # cores busy. scikit-learn brings threadpoolctl along.
    one_blas_thread = importlib.import_module("threadpoolctl").threadpool_limits(1, user_api="blas")
    # A run that diverges overflows on its way; that is what is to be seen, and no cause for warnings.
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

            # For the record only, and so outside of the time that the step takes.
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
    """The loss of a batch as a function without parameters, which also notes what it returns."""
    value_of = importlib.import_module("autograd.tracer").getval

    def loss() -> Any:
        value = cross_entropy(weights, inputs, labels)
        losses.append(float(value_of(value)))
        return value

    return loss


def _norm(optimizer: Optimizer, gradients: list[Any]) -> float:
    """The global norm of a step's gradients before clipping, which the optimizer knows if it needed it."""
    if optimizer.last_norm is not None:
        return float(optimizer.last_norm)
    return float(fastclip.global_norm(gradients))
