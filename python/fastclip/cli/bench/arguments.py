"""The arguments of ``fastclip bench``, and their help."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from fastclip.cli.bench.clipping import workload
from fastclip.cli.errors import CommandError
from fastclip.cli.option_checks import check_at_least, check_directory_exists

_DESCRIPTION = """\
Time clipping of gradients with the shapes of real models, beside what people use
today and beside the limit: how fast this machine moves the same bytes. With --train,
time clipping and an optimizer's step together.

All contenders run in one process in turns: each round runs each of them once, in
rotating order. What counts is the median over the rounds. In-place rows put the
gradients back before every call, so that there is always something to clip; so do
rows of --train, as a backward pass would.
"""

_EPILOG = """\
cases of clipping:
  gpt2           GPT-2 small: 148 tensors, 124 M elements
  resnet50       ResNet-50: 161 tensors, 25.6 M elements
  many           2000 tensors of 512 elements
  mlp            6 tensors, 0.1 M elements
  25.6M          one tensor, float16 and bfloat16, in place
  clip-by-norm   the rows of a 4096 x 4096 matrix
  clip-by-value  one tensor of 25.6 M elements
  memory         peak memory of an out-of-place call, in a process of its own
  import         import time, in processes of their own

cases of --train, with rows such as gpt2/adamw/bf16 (the type is that of the gradients;
variables and slots are float32):
  gpt2           clip by global norm + AdamW, with bfloat16 gradients too; + momentum
  resnet50       clip by global norm + AdamW; every other optimizer, without clipping
  many, mlp      clip by global norm + AdamW

peers of clipping:
  numpy    NumPy as people write it
  expert   NumPy as an expert writes it: np.vdot, np.multiply(out=)
  torch    torch.nn.utils.clip_grad_norm_, torch.renorm, torch.clamp
  tf       tf.clip_by_..., in a tf.function
  jax      optax.clip_by_global_norm, jitted; for the rest jitted JAX

peers of --train:
  numpy          NumPy as people write it, out of place
  torch          clip_grad_norm_, and AdamW or SGD with fused=True
  torch-foreach  the same with foreach=True
In rows of narrower gradients fastclip-f32 is fastclip with float32 gradients, in the same
run. (torch takes no such gradients for float32 parameters.)

limit:
  Plain SIMD loops over the same bytes, on the same threads, one pass after the other.
  Clipping: one that reads the gradients for their norm and one that scales them, or
  copies them out of place. --train: one that reads the gradients for their norm, where
  there is clipping; one that reads them again; and one that reads and writes as many
  bytes as variables and slots have.

exit codes:
  0    done
  1    --check: a target was missed; or fastclip gave a wrong result
  2    bad usage, or a missing optional package
  130  interrupted

examples:
  fastclip bench --quick
  fastclip bench --case gpt2 --peers torch,tf --seconds 30
  fastclip bench --case 'many/f32/in-place/*' --json -
  fastclip bench --check --json results.json --plot results.png
  fastclip bench --train --case gpt2 --case 'resnet50/ftrl/*'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``fastclip bench``."""
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    parser.add_argument("--train", action="store_true", help="time clipping + an optimizer's step")
    parser.add_argument("--quick", action="store_true", help="few rows, few rounds: less than 30 s")
    parser.add_argument(
        "--case",
        action="append",
        metavar="NAME",
        help="a case below, or a pattern of row names such as 'gpt2/f32/in-place/*'; may be repeated",
    )
    parser.add_argument(
        "--dtype",
        action="append",
        choices=workload.DTYPES,
        help="the type of the gradients; may be repeated (default: each case's own)",
    )
    parser.add_argument(
        "--peers", metavar="A,B", help="whom to compare with, or none (default: all that are installed)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads, of fastclip and its peers")
    parser.add_argument("--seconds", type=float, metavar="S", help="time for each row (default: 10)")
    parser.add_argument("--rounds", type=int, metavar="N", help="make N rounds, however long they take")
    parser.add_argument(
        "--size", choices=("full", "small"), default="full", help="small: toy shapes that show nothing"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the rows and exit")
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="PATH", help="write JSON, to stdout without PATH or with -"
    )
    parser.add_argument("--plot", type=Path, metavar="PATH", help="draw the times against the limit, as PNG")
    parser.add_argument(
        "--check", action="store_true", help="compare with the targets; exit code 1 if one is missed"
    )


def check_usage(args: argparse.Namespace) -> None:
    """Find what is wrong with the arguments before the long work."""
    if args.check and args.size != "full":
        raise CommandError("--check: the targets are for --size full")
    for name, least in (("threads", 1), ("rounds", 1), ("seconds", 0)):
        value = getattr(args, name)
        if value is not None:
            check_at_least(f"--{name}", value, least)
    if args.json != "-":
        _need("rich", "the table", "; --json prints without it")
    if args.plot is not None:
        _need("matplotlib", "--plot")
    for name, path in (("--json", args.json), ("--plot", args.plot)):
        if path not in (None, "-"):
            check_directory_exists(name, Path(path))


def _need(package: str, purpose: str, otherwise: str = "") -> None:
    if importlib.util.find_spec(package) is None:
        raise CommandError(f"{purpose} needs the package {package}: pip install 'fastclip[cli]'{otherwise}")
