"""Train a network of two layers on the digits data, wholly on a graphics processor.

Shaders compute the loss and the gradients where the weights are, and AdamW clips and applies them there.
Nothing is read back but the loss that is printed. Mesa's lavapipe runs it too, with FASTCLIP_GPU_SOFTWARE=1.
"""

import numpy as np
from sklearn.datasets import load_digits

from fastclip import gpu
from fastclip.train import AdamWOptimizer

PIXELS, HIDDEN, DIGITS = 64, 32, 10
EPOCHS, BATCH = 40, 256

digits = load_digits()
images = (digits.data[:1536] / 16).astype(np.float32)
labels = digits.target[:1536].astype(np.int32)

# One thread for each image of a batch: hidden layer, softmax, and the derivatives by the sums of both layers.
FORWARD = f"""
@group(0) @binding(0) var<storage, read_write> images: array<f32>;
@group(0) @binding(1) var<storage, read_write> labels: array<i32>;
@group(0) @binding(2) var<storage, read_write> w1: array<f32>;
@group(0) @binding(3) var<storage, read_write> w2: array<f32>;
@group(0) @binding(4) var<storage, read_write> hidden: array<f32>;
@group(0) @binding(5) var<storage, read_write> by_hidden: array<f32>;
@group(0) @binding(6) var<storage, read_write> by_output: array<f32>;
@group(0) @binding(7) var<storage, read_write> batch: array<i32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) thread: vec3<u32>) {{
    let i = thread.x;
    if (i >= {BATCH}u) {{ return; }}
    let image = u32(batch[0]) + i;
    var output: array<f32, {DIGITS}>;
    for (var j = 0u; j < {HIDDEN}u; j++) {{
        var sum = 0.0;
        for (var p = 0u; p < {PIXELS}u; p++) {{
            sum += images[image * {PIXELS}u + p] * w1[p * {HIDDEN}u + j];
        }}
        hidden[i * {HIDDEN}u + j] = max(sum, 0.0);
        for (var d = 0u; d < {DIGITS}u; d++) {{
            output[d] += max(sum, 0.0) * w2[j * {DIGITS}u + d];
        }}
    }}
    var largest = output[0];
    for (var d = 1u; d < {DIGITS}u; d++) {{ largest = max(largest, output[d]); }}
    var total = 0.0;
    for (var d = 0u; d < {DIGITS}u; d++) {{ total += exp(output[d] - largest); }}
    for (var d = 0u; d < {DIGITS}u; d++) {{
        let share = exp(output[d] - largest) / total - f32(u32(labels[image]) == d);
        by_output[i * {DIGITS}u + d] = share / {BATCH}.0;
    }}
    // The cross-entropy of the image, for the loss.
    by_output[{BATCH * DIGITS}u + i] = log(total) + largest - output[u32(labels[image])];
    for (var j = 0u; j < {HIDDEN}u; j++) {{
        var sum = 0.0;
        for (var d = 0u; d < {DIGITS}u; d++) {{
            sum += by_output[i * {DIGITS}u + d] * w2[j * {DIGITS}u + d];
        }}
        by_hidden[i * {HIDDEN}u + j] = select(0.0, sum, hidden[i * {HIDDEN}u + j] > 0.0);
    }}
}}
"""

# One thread for each weight of a layer: the sum over the batch of input times derivative.
GRADIENT = """
@group(0) @binding(0) var<storage, read_write> inputs: array<f32>;
@group(0) @binding(1) var<storage, read_write> by_outputs: array<f32>;
@group(0) @binding(2) var<storage, read_write> gradient: array<f32>;
@group(0) @binding(3) var<storage, read_write> batch: array<i32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) thread: vec3<u32>) {{
    let weight = thread.x;
    if (weight >= arrayLength(&gradient)) {{ return; }}
    let first = u32(batch[0]) * {first}u;
    var sum = 0.0;
    for (var i = 0u; i < {batch}u; i++) {{
        let x = inputs[(first + i) * {inputs}u + weight / {outputs}u];
        sum += x * by_outputs[i * {outputs}u + weight % {outputs}u];
    }}
    gradient[weight] = sum;
}}
"""
GRADIENT_1 = GRADIENT.format(batch=BATCH, inputs=PIXELS, outputs=HIDDEN, first=1)
GRADIENT_2 = GRADIENT.format(batch=BATCH, inputs=HIDDEN, outputs=DIGITS, first=0)

# Adds the cross-entropies of a batch to the loss, and moves to the next batch.
NEXT_BATCH = f"""
@group(0) @binding(0) var<storage, read_write> by_output: array<f32>;
@group(0) @binding(1) var<storage, read_write> loss: array<f32>;
@group(0) @binding(2) var<storage, read_write> batch: array<i32>;

@compute @workgroup_size(1)
fn main() {{
    if (batch[0] == 0) {{ loss[0] = 0.0; }}
    for (var i = 0u; i < {BATCH}u; i++) {{ loss[0] += by_output[{BATCH * DIGITS}u + i] / {len(images)}.0; }}
    batch[0] = (batch[0] + {BATCH}) % {len(images)};
}}
"""

rng = np.random.default_rng(0)
x, y = gpu.asarray(images), gpu.asarray(labels)
w1 = gpu.asarray(rng.standard_normal((PIXELS, HIDDEN), dtype=np.float32) / 8)
w2 = gpu.asarray(rng.standard_normal((HIDDEN, DIGITS), dtype=np.float32) / 6)
hidden, by_hidden = (gpu.asarray(np.zeros((BATCH, HIDDEN), np.float32)) for _ in range(2))
by_output = gpu.asarray(np.zeros(BATCH * DIGITS + BATCH, np.float32))
gradients = [gpu.asarray(np.zeros(w.shape, np.float32)) for w in (w1, w2)]
batch, loss = gpu.asarray(np.zeros(1, np.int32)), gpu.asarray(np.zeros(1, np.float32))
optimizer = AdamWOptimizer(0.01, global_clipnorm=1.0)

for epoch in range(EPOCHS):
    for _ in range(len(images) // BATCH):
        gpu.run(FORWARD, [x, y, w1, w2, hidden, by_hidden, by_output, batch], BATCH // 64)
        gpu.run(GRADIENT_1, [x, by_hidden, gradients[0], batch], PIXELS * HIDDEN // 64)
        gpu.run(GRADIENT_2, [hidden, by_output, gradients[1], batch], HIDDEN * DIGITS // 64)
        optimizer.apply_gradients([(gradients[0], w1), (gradients[1], w2)])
        gpu.run(NEXT_BATCH, [by_output, loss, batch], 1)
    if epoch % 10 == 9:
        print(f"epoch {epoch + 1}: loss {loss.numpy()[0]:.4f}, gradient norm {optimizer.last_norm:.3f}")

# The weights are read back once, to test them.
test = (digits.data[1536:] / 16).astype(np.float32)
found = (np.maximum(test @ w1.numpy(), 0) @ w2.numpy()).argmax(axis=1)
print(f"correct: {np.mean(found == digits.target[1536:]):.1%} of {len(test)} digits not seen before")
