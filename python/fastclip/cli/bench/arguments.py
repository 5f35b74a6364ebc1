"""The arguments of ``fastclip bench`` and their help."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from fastclip.cli.bench.clipping import benchmark_rows
from fastclip.cli.errors import CommandError
from fastclip.cli.option_checks import check_at_least, check_directory_exists

_DESCRIPTION = """\
Time gradient clipping in fastclip and in other libraries ("peers"), on tensors with
the shapes of real models, and compare it with the limit: the time this machine needs
to move the same bytes. With --train, time optimizer steps with and without clipping. With
--torch, time fastclip.torch and PyTorch. With --gpu, time arrays that are on a graphics
processor.

All contenders run in one process, in turns: each round runs each of them once, in
rotating order. The result is the median over the rounds. In-place rows restore the
gradients before every call, so that there is always something to clip. Rows of
--train and --torch do so too, because a backward pass would write the gradients, but for
those that accumulate them or have a backward pass. The time of restoring is not measured.
"""

_EPILOG = """\
cases of clipping:
  gpt2           GPT-2 small: 148 tensors, 124 M elements
  resnet50       ResNet-50: 161 tensors, 25.6 M elements
  many           2000 tensors of 512 elements
  mlp            6 tensors, 0.1 M elements
  layers         200 layers in a dict, each a dict of two arrays of 64 elements
  many-torch     2000 tensors of torch of 512 elements (if torch is installed)
  25.6M          one tensor of 25.6 M elements, float16 and bfloat16, in place
  clip-by-norm   a 4096 x 4096 matrix, each row by its norm
  clip-by-value  one tensor of 25.6 M elements
  memory         peak memory of an out-of-place call, in a new process
  import         import time, in new processes

cases of --train (rows have names such as gpt2/adamw/bf16, with the dtype of the gradients;
variables and slots are float32):
  gpt2           clip by global norm + AdamW, float32 and bfloat16; + momentum, float32
  resnet50       clip by global norm + AdamW; all other optimizers, without clipping
  many, mlp      clip by global norm + AdamW

cases of --gpu (rows have names such as gpt2/clip/f32/device, with the clock: that of the
device, from the beginning to the end of the work there, or that of the host):
  gpt2, resnet50, many, mlp  clip by global norm, in place; the same and AdamW
  25.6M                      a copy to the device, and one from it

cases of --cliffs (rows have names such as short-slices/f32/half/swapped: with half and twice
as many elements, and with the first two axes swapped):
  norm, norm-large               the global norm of float64, 0.5 M and 25.6 M elements
  norm-ord-0.5, norm-ord-3       the global norm of 2 M elements, of other orders
  short-slices, long-slices      a 1,000,000 x 4 matrix, by the norms of axis 1 and of axis 0
  slices-of-blocks               1,000,000 x 2 x 8 by the norms of axis 1, and as many slices of 16
  ord-3-slices                   a 512 x 4096 matrix by the norms of order 3 of axis 0
  bound-per-element              a bound for each of 1 M elements
  clip-integers                  4 M elements of int8, by value
  100-by-value, 100-by-norm      100 elements
  25.6M                          float16 and bfloat16, in place
  columns                        1200 columns of a matrix, in place, and as many rows
  coalesce, adagrad-of-rows      100,000 rows of 32 elements among 50,000
  2000-arrays-...                2000 arrays of 512 elements, and one of as many bytes
  mlp-in-place, mlp-adamw-after-rest   6 arrays, 0.1 M elements; after 5 ms without work
  after-backward                 clip and AdamW on 30 tensors after a backward pass of torch

cases of --torch (rows have names such as gpt2/adamw/f32; all tensors are torch's, and float32):
  gpt2           clip_grad_norm_; AdamW(max_norm=), also with bfloat16 moments; SGD(momentum=0.9,
                 max_norm=); fastclip.accumulate, which adds gradients to sums and returns their norm
  resnet50       AdamW(max_norm=)
  many           clip_grad_norm_, clip_grad_value_, AdamW(max_norm=)
  512            AdamW of one tensor of 512 elements, without clipping
  transformer    a training step of a small transformer: the forward pass, the backward pass in which
                 the gradients are measured (measure_in_backward), and AdamW(max_norm=)

peers of clipping:
  numpy    NumPy, with straightforward expressions
  expert   NumPy, with the fastest functions: np.vdot, np.multiply(out=)
  torch    torch.nn.utils.clip_grad_norm_, torch.renorm, torch.clamp
  tf       tf.clip_by_..., in a tf.function
  jax      jitted optax.clip_by_global_norm; jitted JAX for the other cases

peers of --train:
  numpy          NumPy, with straightforward expressions, out of place
  torch          clip_grad_norm_, and AdamW or SGD with fused=True
  torch-foreach  the same with foreach=True
  deepspeed      clip_grad_norm_, and DeepSpeedCPUAdam; it compiles itself at first use, with ninja
peers of --cliffs:
  numpy, torch         the library's function, or straightforward expressions
  fastclip-reference   fastclip with other arrays of as many bytes, named in the JSON output
peers of --torch:
  torch                    torch's own functions, and its optimizers with fused=True after
                           clip_grad_norm_; _foreach_add_ and get_total_norm for fastclip.accumulate
  deepspeed                clip_grad_norm_, and DeepSpeedCPUAdam, see --train
  fastclip-f32-moments     bfloat16 moments are also compared with float32 moments
  fastclip-without-hooks   a training step is also compared with one that measures the gradients itself
peers of --gpu:
  torch          with CUDA, if it has it: clip_grad_norm_(foreach=True), AdamW(fused=True)
Rows of layers and many-torch are also compared with fastclip-list: fastclip with the
same arrays in a list.
Rows of float16 or bfloat16 gradients are also compared with fastclip-f32: fastclip with
float32 gradients. (torch does not support such gradients for float32 parameters.)

limit:
  Plain SIMD loops over the same bytes, on the same threads, one pass after the other.
  Clipping: a pass that reads the gradients, for their norm, and a pass that scales them
  in place or copies them. --train: a pass that reads the gradients, for their norm, if
  they are clipped; a pass that reads them again; and a pass that reads and writes as
  many bytes as variables and slots have. --torch: the same passes; for fastclip.accumulate, one
  that reads the gradients and one that reads and writes the sums; for a training step, those of
  the optimizer alone, which reads the gradients once. --gpu: the faster of a copy by the driver and
  one by a kernel, of half as many bytes as the work reads and writes; of transfers, a
  copy in the memory of the host.

exit codes:
  0    done
  1    a target was missed (--check), or fastclip failed or returned a wrong result
  2    bad usage, or a missing optional package
  3    the output could not be printed
  130  interrupted
  141  the reader of the output closed the pipe

examples:
  fastclip bench --quick
  fastclip bench --case gpt2 --peers torch,tf --seconds 30
  fastclip bench --case 'many/f32/in-place/*' --json -
  fastclip bench --check --json results.json --plot results.png
  fastclip bench --torch --case many --case transformer --check
  fastclip bench --train --case gpt2 --case 'resnet50/ftrl/*'
  FASTCLIP_ISA=avx2 fastclip bench --cliffs --seconds 1 --check
  FASTCLIP_GPU_SOFTWARE=1 fastclip bench --gpu --case many
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``fastclip bench``."""
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    parser.add_argument(
        "--train", action="store_true", help="time optimizer steps, with and without clipping"
    )
    parser.add_argument(
        "--gpu",
        action="store_true",
        help="time clipping and optimizer steps of arrays on a graphics processor",
    )
    parser.add_argument(
        "--cliffs",
        action="store_true",
        help="time shapes and types for which a fast library easily becomes slow",
    )
    parser.add_argument(
        "--torch",
        action="store_true",
        help="time the clip functions and optimizers of fastclip.torch, and PyTorch's",
    )
    parser.add_argument("--quick", action="store_true", help="few rows and few rounds: takes less than 30 s")
    parser.add_argument(
        "--case",
        action="append",
        metavar="NAME",
        help="a case below, or a pattern of row names such as 'gpt2/f32/in-place/*'; may be repeated",
    )
    parser.add_argument(
        "--dtype",
        action="append",
        choices=benchmark_rows.DTYPES,
        help="the dtype of the gradients; may be repeated (default: depends on the case)",
    )
    parser.add_argument(
        "--peers",
        metavar="A,B",
        help="the peers to compare with, separated by commas, or none (default: all that are installed)",
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="the number of threads of fastclip and the peers"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        help="duration of each row, in seconds (default: 10; 0.5 with --quick)",
    )
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="the number of rounds of each row, in place of --seconds"
    )
    parser.add_argument(
        "--size",
        choices=("full", "small"),
        default="full",
        help="small: tiny shapes, to test the benchmark itself (default: full)",
    )
    parser.add_argument("--list", action="store_true", help="print the names of the rows and exit")
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="PATH",
        help="write JSON to PATH, or to stdout if PATH is missing or -",
    )
    parser.add_argument(
        "--plot", type=Path, metavar="PATH", help="draw the times as multiples of the limit, such as plot.png"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="compare with the targets; the exit code is 1 if one is missed (--quick allows twice the "
        "ratio of a target, and more while other processes keep the machine busy)",
    )


def check_usage(args: argparse.Namespace) -> None:
    """Raise CommandError for invalid arguments and missing packages, before the long work."""
    if args.check and args.size != "full":
        raise CommandError("--check: the targets are for --size full")
    for name, least in (("threads", 1), ("rounds", 1), ("seconds", 0)):
        value = getattr(args, name)
        if value is not None:
            check_at_least(f"--{name}", value, least)
    if args.json != "-":
        _check_installed("rich", "the table", "; --json prints without it")
    if args.plot is not None:
        _check_installed("matplotlib", "--plot")
    for name, path in (("--json", args.json), ("--plot", args.plot)):
        if path not in (None, "-"):
            check_directory_exists(name, Path(path))


def _check_installed(package: str, purpose: str, otherwise: str = "") -> None:
    if importlib.util.find_spec(package) is None:
        raise CommandError(
            f"{purpose} needs the package {package}: pip install 'fastclip-grad[cli]'{otherwise}"
        )
