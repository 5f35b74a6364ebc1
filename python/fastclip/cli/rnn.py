"""A small recurrent network and its backward pass through time, in NumPy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.integer[Any]]


class Weights(NamedTuple):
    """The weights of a recurrent classifier; their gradients come in the same form.

    Attributes
    ----------
    input : ndarray, shape (features, hidden)
        From what is read at a time step to the hidden state.
    recurrent : ndarray, shape (hidden, hidden)
        From the hidden state to the next one.
    bias : ndarray, shape (hidden,)
        Of the hidden state.
    output : ndarray, shape (hidden, classes)
        From the last hidden state to the scores of the classes.
    output_bias : ndarray, shape (classes,)
        Of the scores.
    """

    input: Array
    recurrent: Array
    bias: Array
    output: Array
    output_bias: Array


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
        Zero biases, and normal input and output weights of variance 1 / inputs.
    """
    orthogonal, _ = np.linalg.qr(rng.standard_normal((hidden, hidden)))
    drawn = Weights(
        input=rng.standard_normal((features, hidden)) / np.sqrt(features),
        recurrent=gain * orthogonal,
        bias=np.zeros(hidden),
        output=rng.standard_normal((hidden, classes)) / np.sqrt(hidden),
        output_bias=np.zeros(classes),
    )
    return Weights(*(array.astype(dtype) for array in drawn))


def hidden_states(weights: Weights, inputs: Array) -> Array:
    """Run the network over its input.

    Parameters
    ----------
    weights : Weights
        Of the network.
    inputs : ndarray, shape (batch, time, features)
        What is read.

    Returns
    -------
    ndarray, shape (time + 1, batch, hidden)
        h[0] = 0 and h[t] = max(x[t-1] @ input + h[t-1] @ recurrent + bias, 0).
    """
    batch, time, _ = inputs.shape
    states = np.zeros((time + 1, batch, weights.bias.size), weights.bias.dtype)
    from_inputs = inputs.swapaxes(0, 1) @ weights.input + weights.bias
    for t in range(time):
        np.maximum(from_inputs[t] + states[t] @ weights.recurrent, 0, out=states[t + 1])
    return states


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
    last = hidden_states(weights, inputs)[-1]
    classes: Labels = np.argmax(last @ weights.output + weights.output_bias, axis=1)
    return classes


def loss_and_gradients(weights: Weights, inputs: Array, labels: Labels) -> tuple[float, Weights]:
    """Return the loss of a batch and its gradients, by backpropagation through time.

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
    loss : float
        The mean cross-entropy, in nats.
    gradients : Weights
        Its derivative with respect to each of the weights, in their dtype.
    """
    batch, time, features = inputs.shape
    states = hidden_states(weights, inputs)
    rows = np.arange(batch)

    scores = states[-1] @ weights.output + weights.output_bias
    scores -= scores.max(axis=1, keepdims=True)
    log_probabilities = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    loss = -float(log_probabilities[rows, labels].mean())

    d_scores = np.exp(log_probabilities)
    d_scores[rows, labels] -= 1
    d_scores /= batch

    # Backwards in time. Each step multiplies by the recurrent weights once more: where that
    # makes the product longer, it grows exponentially with the number of steps.
    d_before_rectifier = np.empty_like(states[1:])
    d_state = d_scores @ weights.output.T
    for t in reversed(range(time)):
        np.multiply(d_state, states[t + 1] > 0, out=d_before_rectifier[t])
        d_state = d_before_rectifier[t] @ weights.recurrent.T

    hidden = weights.bias.size
    d_flat = d_before_rectifier.reshape(time * batch, hidden)
    return loss, Weights(
        input=inputs.swapaxes(0, 1).reshape(time * batch, features).T @ d_flat,
        recurrent=states[:-1].reshape(time * batch, hidden).T @ d_flat,
        bias=d_flat.sum(axis=0),
        output=states[-1].T @ d_scores,
        output_bias=d_scores.sum(axis=0),
    )
