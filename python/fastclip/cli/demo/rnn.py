"""A small recurrent network, whose forward pass autograd can differentiate."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

import fastclip

Array: TypeAlias = npt.NDArray[np.floating[Any]]
Labels: TypeAlias = npt.NDArray[np.integer[Any]]
Weight: TypeAlias = Array | fastclip.Variable


class Weights(NamedTuple):
    """The weights of a recurrent classifier: arrays, or the variables that training updates.

    Attributes
    ----------
    input : ndarray or Variable, shape (features, hidden)
        From what is read at a time step to the hidden state.
    recurrent : ndarray or Variable, shape (hidden, hidden)
        From the hidden state to the next one.
    bias : ndarray or Variable, shape (hidden,)
        Of the hidden state.
    output : ndarray or Variable, shape (hidden, classes)
        From the last hidden state to the scores of the classes.
    output_bias : ndarray or Variable, shape (classes,)
        Of the scores.
    """

    input: Weight
    recurrent: Weight
    bias: Weight
    output: Weight
    output_bias: Weight


def initial_weights(
    rng: np.random.Generator,
    *,
    features: int,
    hidden: int,
    classes: int,
    gain: float,
    dtype: npt.DTypeLike = np.float32,
) -> Weights:
    """Draw the weights from which training starts.

    Parameters
    ----------
    rng : numpy.random.Generator
        Where the random numbers come from.
    features, hidden, classes : int
        Values read per time step, size of the hidden state, number of classes.
    gain : float
        The recurrent weights are `gain` times a random orthogonal matrix, so that `gain` is what
        one time step multiplies the hidden state by before the rectifier.
    dtype : dtype_like
        Of the weights.

    Returns
    -------
    Weights
        Arrays: zero biases, and normal input and output weights of variance 1 / inputs.
    """
    orthogonal, _ = np.linalg.qr(rng.standard_normal((hidden, hidden)))
    drawn = (
        rng.standard_normal((features, hidden)) / np.sqrt(features),
        gain * orthogonal,
        np.zeros(hidden),
        rng.standard_normal((hidden, classes)) / np.sqrt(hidden),
        np.zeros(classes),
    )
    return Weights(*(array.astype(dtype) for array in drawn))


def class_scores(weights: Weights, inputs: Array) -> Any:
    """Run the network over its input.

    Parameters
    ----------
    weights : Weights
        Of the network.
    inputs : ndarray, shape (batch, time, features)
        What is read.

    Returns
    -------
    ndarray, shape (batch, classes)
        h @ output + output_bias with h the last hidden state, where h[0] = 0 and
        h[t] = max(x[t-1] @ input + h[t-1] @ recurrent + bias, 0). While the network is
        differentiated, autograd's value in the place of the array.
    """
    anp = _autograd_numpy()
    state: Any = np.zeros((len(inputs), weights.bias.size), weights.bias.dtype)
    for t in range(inputs.shape[1]):
        state = anp.maximum(inputs[:, t] @ weights.input + state @ weights.recurrent + weights.bias, 0)
    return state @ weights.output + weights.output_bias


def cross_entropy(weights: Weights, inputs: Array, labels: Labels) -> Any:
    """Return the loss of a batch.

    Parameters
    ----------
    weights : Weights
        Of the network.
    inputs : ndarray, shape (batch, time, features)
        What is read.
    labels : ndarray of int, shape (batch,)
        The right classes.

    Returns
    -------
    float
        The mean cross-entropy, in nats. While the network is differentiated, autograd's value in
        its place.
    """
    anp = _autograd_numpy()
    scores = class_scores(weights, inputs)
    scores = scores - anp.max(scores, axis=1, keepdims=True)
    log_sums = anp.log(anp.sum(anp.exp(scores), axis=1))
    return anp.mean(log_sums - scores[np.arange(len(labels)), labels])


def predict(weights: Weights, inputs: Array) -> Labels:
    """Name the class with the highest score for each entry of a batch.

    Parameters
    ----------
    weights : Weights
        Of the network.
    inputs : ndarray, shape (batch, time, features)
        What is read.

    Returns
    -------
    ndarray of int, shape (batch,)
        The classes.
    """
    classes: Labels = np.argmax(class_scores(weights, inputs), axis=1)
    return classes


def _autograd_numpy() -> Any:
    # autograd has no type annotations, and is not among what fastclip always has.
    return importlib.import_module("autograd.numpy")
