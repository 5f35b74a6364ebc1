"""Row that trains a small transformer: forward pass, backward pass, and a step of the optimizer."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from fastclip.cli.bench.pytorch.benchmark_rows import TorchRow
from fastclip.cli.bench.pytorch.work import CheckedContender, Work, limit, torch_function

# Small, so that the model and with it its gradients stay nearly the same during all steps.
_LEARNING_RATE = 1e-5
_BATCH = (4, 32)  # sequences, and tokens of each
_SHAPES_OF_A_LAYER, _OTHER_SHAPES = 12, 3


def make_model(row: TorchRow) -> Any:
    """Return a model whose parameters have the shapes of the row, with the same values in each call."""
    torch: Any = importlib.import_module("torch")
    vocabulary, width = row.shapes[0]
    layers = (len(row.shapes) - _OTHER_SHAPES) // _SHAPES_OF_A_LAYER
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = torch.nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        return torch.nn.Sequential(
            torch.nn.Embedding(vocabulary, width),
            torch.nn.TransformerEncoder(layer, layers, enable_nested_tensor=False),
            torch.nn.Linear(width, vocabulary),
        )


class _Training:
    """The tokens that a model is trained on, and the contenders, each with a model of its own."""

    def __init__(self, row: TorchRow) -> None:
        self.row = row
        torch: Any = importlib.import_module("torch")
        tokens = np.random.default_rng(5).integers(0, row.shapes[0][0], (_BATCH[0], _BATCH[1] + 1))
        self.inputs, self.following = torch.from_numpy(tokens[:, :-1]), torch.from_numpy(tokens[:, 1:])
        self.cross_entropy = torch.nn.functional.cross_entropy
        self.clip = torch_function("clip_grad_norm_")
        # The first step in PyTorch, which is what all contenders have to make.
        model = make_model(row)
        self.backward(model)
        self.bound = 0.5 * float(self.clip(model.parameters(), float("inf")))
        self.clip(model.parameters(), self.bound)
        optimizer = torch.optim.AdamW(model.parameters(), _LEARNING_RATE)
        optimizer.step()
        self.expected = self.first_layer(model, optimizer)

    def backward(self, model: Any) -> None:
        """Make the forward and the backward pass."""
        predictions = model(self.inputs)
        self.cross_entropy(predictions.flatten(0, 1), self.following.flatten()).backward()

    @staticmethod
    def first_layer(model: Any, optimizer: Any) -> tuple[Any, Any]:
        """Return a copy of the first weight of the first layer, and of its first moment."""
        weight = list(model.parameters())[1]
        return weight.detach().clone().numpy(), optimizer.state[weight]["exp_avg"].clone().numpy()

    def fastclip(self) -> CheckedContender:
        def make(model: Any) -> Any:
            optimizer = importlib.import_module("fastclip.torch").AdamW(
                model.parameters(), _LEARNING_RATE, max_norm=self.bound
            )
            optimizer.measure_in_backward(model)
            return optimizer

        return self._contender("fastclip", "AdamW(max_norm=), measure_in_backward", make)

    def fastclip_without_hooks(self) -> CheckedContender:
        return self._contender(
            "fastclip-without-hooks",
            "AdamW(max_norm=)",
            lambda model: importlib.import_module("fastclip.torch").AdamW(
                model.parameters(), _LEARNING_RATE, max_norm=self.bound
            ),
        )

    def torch(self) -> CheckedContender:
        return self._contender(
            "torch",
            "clip_grad_norm_; AdamW(fused=True)",
            lambda model: importlib.import_module("torch").optim.AdamW(
                model.parameters(), _LEARNING_RATE, fused=True
            ),
            clips_before=True,
        )

    def _contender(
        self, name: str, label: str, make: Callable[[Any], Any], *, clips_before: bool = False
    ) -> CheckedContender:
        model = make_model(self.row)
        parameters = list(model.parameters())
        optimizer = make(model)

        def call() -> None:
            optimizer.zero_grad()
            self.backward(model)
            if clips_before:
                self.clip(parameters, self.bound)
            optimizer.step()

        def check(result: Any) -> None:
            for found, expected, size in zip(
                self.first_layer(model, optimizer), self.expected, (_LEARNING_RATE, 0.0), strict=True
            ):
                size = size or float(np.mean(np.abs(expected)))
                error = float(np.mean(np.abs(found - expected)))
                if not error < 0.05 * size:
                    raise AssertionError(f"{label} is wrong by {error:.3g} after the first step")

        return CheckedContender(name, label, call, check=check)


def prepare(row: TorchRow) -> Work:
    """Return the contenders: fastclip with and without the hooks of the backward pass, and PyTorch."""
    training = _Training(row)
    gradients = [np.empty(shape, np.float32) for shape in row.shapes]
    return Work(
        contenders={
            "fastclip": training.fastclip,
            "fastclip-without-hooks": training.fastclip_without_hooks,
            "torch": training.torch,
        },
        limit=limit(row, gradients, refreshed=False),
    )
