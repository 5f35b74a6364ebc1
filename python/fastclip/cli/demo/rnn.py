"""A small recurrent network, whose forward pass can be differentiated by autograd."""

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
    """Weights of a recurrent classifier: arrays, or the variables that training updates.

    Attributes
    ----------
    input : ndarray or Variable, shape (features, hidden)
        Weights from the features of a time step to the hidden state.
    recurrent : ndarray or Variable, shape (hidden, hidden)
        Weights from the hidden state to the next one.
    bias : ndarray or Variable, shape (hidden,)
        Bias of the hidden state.
    output : ndarray or Variable, shape (hidden, classes)
        Weights from the last hidden state to the scores of the classes.
    output_bias : ndarray or Variable, shape (classes,)
        Bias of the scores.
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
    """Draw random initial weights.

    Parameters
    ----------
    rng : numpy.random.Generator
        The source of random numbers.
    features, hidden, classes : int
        The number of features per time step, the size of the hidden state, and the number of classes.
    gain : float
        The recurrent weights are `gain` times a random orthogonal matrix. The product with them
        therefore multiplies the norm of the hidden state by `gain`, before the rectifier.
    dtype : dtype_like
        The dtype of the weights.

    Returns
    -------
    Weights
        Arrays. The biases are zero. Input and output weights are normally distributed, with a variance of
        1 / rows.
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
    """Return the scores that the network gives to each class.

    Parameters
    ----------
    weights : Weights
        The weights of the network.
    inputs : ndarray, shape (batch, time, features)
        The features of each time step.

    Returns
    -------
    ndarray, shape (batch, classes)
        h @ output + output_bias, where h is the last hidden state, h[0] = 0 and
        h[t] = max(x[t-1] @ input + h[t-1] @ recurrent + bias, 0). During differentiation, autograd's
        box of the array.
    """
    anp = _autograd_numpy()
    state: Any = np.zeros((len(inputs), weights.bias.size), weights.bias.dtype)
    for t in range(inputs.shape[1]):
        state = anp.maximum(inputs[:, t] @ weights.input + state @ weights.recurrent + weights.bias, 0)
    return state @ weights.output + weights.output_bias


def cross_entropy(weights: Weights, inputs: Array, labels: Labels) -> Any:
    """Return the mean cross-entropy of a batch.

    Parameters
    ----------
    weights : Weights
        The weights of the network.
    inputs : ndarray, shape (batch, time, features)
        The features of each time step.
    labels : ndarray of int, shape (batch,)
        The correct classes.

    Returns
    -------
    float
        The mean cross-entropy, in nats. During differentiation, autograd's box of the number.
    """
    anp = _autograd_numpy()
    scores = class_scores(weights, inputs)
    scores = scores - anp.max(scores, axis=1, keepdims=True)
    log_sums = anp.log(anp.sum(anp.exp(scores), axis=1))
    return anp.mean(log_sums - scores[np.arange(len(labels)), labels])


def predict(weights: Weights, inputs: Array) -> Labels:
    """Return the class with the highest score for each entry of a batch.

    Parameters
    ----------
    weights : Weights
        The weights of the network.
    inputs : ndarray, shape (batch, time, features)
        The features of each time step.

    Returns
    -------
    ndarray of int, shape (batch,)
        The classes.
    """
    classes: Labels = np.argmax(class_scores(weights, inputs), axis=1)
    return classes


def _autograd_numpy() -> Any:
    # importlib, because autograd has no type annotations and is an optional dependency.
    return importlib.import_module("autograd.numpy")
