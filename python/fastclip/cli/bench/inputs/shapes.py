"""Shapes of the gradients in the benchmark."""

from __future__ import annotations

import itertools
from collections.abc import Callable

Shape = tuple[int, ...]
Shapes = tuple[Shape, ...]


def gpt2(*, width: int = 768, blocks: int = 12, vocabulary: int = 50257, context: int = 1024) -> Shapes:
    """Return the shapes of GPT-2. The default is GPT-2 small: 148 tensors with 124 M elements."""
    shapes: list[Shape] = [(vocabulary, width), (context, width)]
    for _ in range(blocks):
        shapes += [(width,), (width,)]  # ln_1
        shapes += [(width, 3 * width), (3 * width,)]  # attn.c_attn
        shapes += [(width, width), (width,)]  # attn.c_proj
        shapes += [(width,), (width,)]  # ln_2
        shapes += [(width, 4 * width), (4 * width,)]  # mlp.c_fc
        shapes += [(4 * width, width), (width,)]  # mlp.c_proj
    shapes += [(width,), (width,)]  # ln_f
    return tuple(shapes)


def resnet50(*, width: int = 64, classes: int = 1000) -> Shapes:
    """Return the shapes of ResNet-50, by default 161 tensors with 25.6 M elements."""
    shapes: list[Shape] = []

    def convolution(outputs: int, inputs: int, size: int) -> None:
        shapes.append((outputs, inputs, size, size))
        shapes.extend([(outputs,), (outputs,)])  # scale and offset of the batch normalisation that follows

    convolution(width, 3, 7)
    inputs = width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = width << stage
        for block in range(blocks):
            convolution(inner, inputs, 1)
            convolution(inner, inner, 3)
            convolution(4 * inner, inner, 1)
            if block == 0:
                convolution(4 * inner, inputs, 1)  # the shortcut connection
            inputs = 4 * inner
    shapes += [(classes, inputs), (classes,)]
    return tuple(shapes)


def mlp(*layers: int) -> Shapes:
    """Return the shapes of the weights and biases of dense layers with the given widths."""
    return tuple(shape for pair in itertools.pairwise(layers) for shape in (pair, pair[1:]))


def transformer(*, width: int = 256, layers: int = 4, vocabulary: int = 4096) -> Shapes:
    """Return the shapes of an embedding, layers of `torch.nn.TransformerEncoder`, and a linear layer.

    By default, there are 51 tensors with 5.3 M elements.
    """
    shapes: list[Shape] = [(vocabulary, width)]
    for _ in range(layers):
        for outputs, inputs in ((3 * width, width), (width, width), (4 * width, width), (width, 4 * width)):
            shapes += [(outputs, inputs), (outputs,)]
        shapes += [(width,)] * 4  # two layer normalisations
    shapes += [(vocabulary, width), (vocabulary,)]
    return tuple(shapes)


# Shapes by --size and case. The targets are for "full"; "small" has the same structure with few elements.
SHAPES: dict[str, dict[str, Callable[[], Shapes]]] = {
    "full": {
        "gpt2": gpt2,
        "resnet50": resnet50,
        "many": lambda: ((512,),) * 2000,
        "mlp": lambda: mlp(784, 112, 96, 10),
        "layers": lambda: ((64,),) * 400,
        "many-torch": lambda: ((512,),) * 2000,
        "25.6M": lambda: ((25_557_032,),),
        "clip-by-norm": lambda: ((4096, 4096),),
        "clip-by-value": lambda: ((25_557_032,),),
        "512": lambda: ((512,),),
        "transformer": transformer,
    },
    "small": {
        "gpt2": lambda: gpt2(width=8, vocabulary=64, context=16),
        "resnet50": lambda: resnet50(width=2, classes=10),
        "many": lambda: ((16,),) * 50,
        "mlp": lambda: mlp(16, 8, 8, 4),
        "layers": lambda: ((16,),) * 20,
        "many-torch": lambda: ((16,),) * 50,
        "25.6M": lambda: ((4099,),),
        "clip-by-norm": lambda: ((32, 32),),
        "clip-by-value": lambda: ((4099,),),
        "512": lambda: ((16,),),
        "transformer": lambda: transformer(width=8, layers=2, vocabulary=32),
    },
}
