"""Train a small transformer with PyTorch's optimizer and with fastclip's, and compare time, loss and memory.

The model learns to copy a sequence of symbols. Each contender runs in a process of its own:

- ``torch``: ``torch.nn.utils.clip_grad_norm_``, then ``torch.optim.AdamW(fused=True)``;
- ``fastclip``: ``fastclip.torch.AdamW(max_norm=1.0)``, which clips and updates in one call;
- ``backward``: the same, with norms that are measured in the backward pass;
- ``bfloat16``: the same as ``fastclip``, with moments in bfloat16.

Run it with ``python examples/torch_transformer.py``; ``--seeds 3`` prints the losses of three seeds side
by side.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

CONTENDERS = ("torch", "fastclip", "backward", "bfloat16")
SYMBOLS = 16
#: The length of the sequence that is copied.
LENGTH = 8
BATCH = 16
#: Steps before the ones that are timed.
WARM_UP = 3


def make_model(width: int, layers: int) -> Any:
    import torch

    class Transformer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(SYMBOLS, width)
            self.positions = torch.nn.Parameter(0.1 * torch.randn(2 * LENGTH - 1, width))
            layer = torch.nn.TransformerEncoderLayer(
                width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True
            )
            self.layers = torch.nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
            self.out = torch.nn.Linear(width, SYMBOLS)

        def forward(self, symbols: Any) -> Any:
            mask = torch.nn.Transformer.generate_square_subsequent_mask(symbols.shape[1])
            embedded = self.embed(symbols) + self.positions
            return self.out(self.layers(embedded, mask=mask, is_causal=True))

    return Transformer()


def train(contender: str, seed: int, steps: int, width: int, layers: int) -> dict[str, Any]:
    """Train a model, and return its losses, the median time of a step and the peak memory of the process."""
    import torch

    import fastclip.torch

    torch.manual_seed(seed)
    model = make_model(width, layers)
    if contender == "torch":
        optimizer: Any = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    else:
        dtype = torch.bfloat16 if contender == "bfloat16" else None
        optimizer = fastclip.torch.AdamW(
            model.parameters(), lr=1e-3, max_norm=1.0, state_dtype=dtype, seed=seed
        )
    if contender == "backward":
        optimizer.measure_in_backward(model)
    losses, whole_times, step_times = [], [], []
    for _ in range(steps):
        pattern = torch.randint(0, SYMBOLS, (BATCH, LENGTH))
        symbols = torch.cat([pattern, pattern], dim=1)
        start = time.perf_counter()
        optimizer.zero_grad()
        logits = model(symbols[:, :-1])
        # The second half of a sequence repeats the first.
        copied = logits[:, LENGTH - 1 :].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(copied, pattern.flatten())
        loss.backward()
        before_step = time.perf_counter()
        if contender == "torch":
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        end = time.perf_counter()
        losses.append(loss.item())
        whole_times.append(end - start)
        step_times.append(end - before_step)
    return {
        "losses": losses,
        "whole_ms": 1e3 * statistics.median(whole_times[WARM_UP:]),
        "step_ms": 1e3 * statistics.median(step_times[WARM_UP:]),
        # Linux reports kibibytes, macOS bytes.
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / 2 ** (20 if sys.platform == "darwin" else 10),
        "state_mib": sum(
            tensor.numel() * tensor.element_size()
            for state in optimizer.state.values()
            for tensor in state.values()
        )
        / 2**20,
    }


def run(contender: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train in a process of its own."""
    sizes = [str(options.steps), str(options.width), str(options.layers)]
    command = [sys.executable, __file__, "--one", contender, str(seed), *sizes]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error(f"--seeds is {options.seeds}; it takes at least 1")
    if options.steps <= WARM_UP:
        parser.error(f"--steps is {options.steps}; it takes more than {WARM_UP}")
    print(f"{'':10}  clip and step  whole step  peak memory  moments  loss at the end, for each seed")
    curves = {}
    for contender in CONTENDERS:
        results = [run(contender, seed, options) for seed in range(options.seeds)]
        curves[contender] = [result["losses"] for result in results]
        ends = "  ".join(f"{statistics.mean(losses[-10:]):.4f}" for losses in curves[contender])
        first = results[0]
        print(
            f"{contender:10}  {first['step_ms']:10.2f} ms  {first['whole_ms']:7.1f} ms  "
            f"{first['peak_mib']:7.0f} MiB  {first['state_mib']:3.0f} MiB  {ends}"
        )
    if options.seeds > 1:
        print("\nMean losses of float32 moments | bfloat16 moments from each step on, for each seed")
        stride = max(1, options.steps // 10)
        for step in range(0, options.steps, stride):
            pairs = zip(curves["fastclip"], curves["bfloat16"], strict=True)
            means = [[statistics.mean(losses[step : step + stride]) for losses in pair] for pair in pairs]
            print(f"step {step:4}  " + "   ".join(f"{wide:.4f} | {narrow:.4f}" for wide, narrow in means))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        contender, seed, steps, width, layers = sys.argv[2:]
        print(json.dumps(train(contender, int(seed), int(steps), int(width), int(layers))))
    else:
        main(sys.argv[1:])
