"""Train a small network by Adam with clipped gradients, save it half-way, and resume from the file."""

import tempfile
from pathlib import Path

import autograd.numpy as np  # NumPy functions that autograd can differentiate

from fastclip import Variable
from fastclip.train import AdamOptimizer

rng = np.random.default_rng(0)
x = rng.standard_normal((2048, 8), dtype=np.float32)
y = np.tanh(x @ rng.standard_normal((8, 1), dtype=np.float32))
y[::100] *= 1000  # a few wrong labels, which have huge gradients

first_weights = [
    rng.standard_normal((8, 32), dtype=np.float32) / np.sqrt(8, dtype=np.float32),
    rng.standard_normal((32, 1), dtype=np.float32) / np.sqrt(32, dtype=np.float32),
]


def train(weights, optimizer, steps):
    w1, w2 = weights
    for step in steps:
        batch = np.random.default_rng(step).integers(0, len(x), 64)
        inputs, labels = x[batch], y[batch]

        def loss(inputs=inputs, labels=labels):
            return np.mean((np.tanh(inputs @ w1) @ w2 - labels) ** 2)

        grads_and_vars = optimizer.compute_gradients(loss, weights)
        optimizer.apply_gradients(grads_and_vars)  # clips and updates in one call

        if step % 200 == 0:
            error = np.median(abs(np.tanh(inputs @ w1) @ w2 - labels))
            print(f"step {step:4}: median |error| {error:.3f}, gradient norm {optimizer.last_norm:.3g}")


with tempfile.TemporaryDirectory() as directory:
    checkpoint = Path(directory) / "checkpoint.npz"

    weights = [Variable(array) for array in first_weights]
    optimizer = AdamOptimizer(0.01, global_clipnorm=1.0)
    train(weights, optimizer, range(0, 600))
    np.savez(checkpoint, w1=weights[0].numpy(), w2=weights[1].numpy(), **optimizer.state_dict(prefix="adam."))

    optimizer_resumed = AdamOptimizer(0.01, global_clipnorm=1.0)
    with np.load(checkpoint) as saved:
        resumed = [Variable(saved["w1"]), Variable(saved["w2"])]
        optimizer_resumed.load_state_dict(saved, resumed, prefix="adam.")
    print("resumed")
    train(resumed, optimizer_resumed, range(600, 1000))

# Training without the interruption gives the same bits.
train(weights, optimizer, range(600, 1000))
print("the same bits:", all((a.value == b.value).all() for a, b in zip(weights, resumed, strict=True)))
