"""Train a small network in NumPy, with gradients clipped by their global norm."""

import numpy as np

import fastclip

rng = np.random.default_rng(0)
x = rng.standard_normal((2048, 8), dtype=np.float32)
y = np.tanh(x @ rng.standard_normal((8, 1), dtype=np.float32))
y[::100] *= 1000  # a few wrong labels, which have huge gradients

w1 = rng.standard_normal((8, 32), dtype=np.float32) / np.sqrt(8, dtype=np.float32)
w2 = rng.standard_normal((32, 1), dtype=np.float32) / np.sqrt(32, dtype=np.float32)

for step in range(1001):
    batch = rng.integers(0, len(x), 64)
    hidden = np.tanh(x[batch] @ w1)
    error = hidden @ w2 - y[batch]

    # Gradients of mean(error ** 2).
    d_output = 2 * error / len(batch)
    d_hidden = (d_output @ w2.T) * (1 - hidden**2)
    gradients = [x[batch].T @ d_hidden, hidden.T @ d_output]

    gradients, norm = fastclip.clip_by_global_norm(gradients, 1.0)  # norm: before clipping

    for weights, gradient in zip([w1, w2], gradients, strict=True):
        weights -= 0.05 * gradient
    if step % 200 == 0:
        print(f"step {step:4}: median |error| {np.median(abs(error)):.3f}, gradient norm {norm:.3g}")
