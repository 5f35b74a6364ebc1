"""Training frameworks with the optimizers and clip functions of fastclip.torch, run for real on tiny models.

``make test-frameworks`` installs the libraries. Each test compares with the same run by PyTorch's optimizer
and clip function.

The tests that need a framework skip where it is absent, and have no mark: `interop` is for the libraries that
CI's interop jobs install. Those that need only PyTorch have it, and run there too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import fastclip.torch  # noqa: E402


def batches(count: int, width: int = 8) -> list[Any]:
    return [torch.randn(4, width, generator=torch.Generator().manual_seed(seed)) for seed in range(count)]


@contextmanager
def counted(name: str) -> Iterator[list[int]]:
    """Count the calls of a function of the extension module; each adds an item to the list."""
    calls: list[int] = []
    original = getattr(fastclip._core, name)

    def count(*arguments: Any) -> Any:
        calls.append(1)
        return original(*arguments)

    with pytest.MonkeyPatch.context() as context:
        context.setattr(fastclip._core, name, count)
        yield calls


def trained(parameters: Iterable[Any], optimizer: Any) -> list[Any]:
    """Return parameters and their moments, which a bound of the norm scales where Adam's steps hide it."""
    listed = list(parameters)
    return [*listed, *(optimizer.state[parameter]["exp_avg"] for parameter in listed)]


def assert_same_training(
    train: Callable[[Any], list[Any]], *, steps: int, clips: int = 0, patches: bool = False
) -> None:
    """Compare the tensors after training with fastclip's AdamW and with PyTorch's.

    fastclip's run takes `steps` steps and clips `clips` times, in one call each. With `patches`, its clip
    functions stand in `torch.nn.utils` for that run alone.
    """
    with counted("torch_step") as stepped, counted("torch_clip_by_global_norm") as clipped:
        if patches:
            fastclip.torch.patch()
        try:
            found = train(fastclip.torch.AdamW)
        finally:
            fastclip.torch.unpatch()
        assert (len(stepped), len(clipped)) == (steps, clips)
        want = train(torch.optim.AdamW)
        # PyTorch's run calls nothing of fastclip.
        assert (len(stepped), len(clipped)) == (steps, clips)
    assert len(found) == len(want) > 0
    for tensor, other in zip(found, want, strict=True):
        torch.testing.assert_close(tensor, other, rtol=1e-4, atol=1e-5)


def test_accelerate_clips_by_a_patched_function() -> None:
    accelerate = pytest.importorskip("accelerate")

    def train(optimizer_class: Any) -> list[Any]:
        torch.manual_seed(0)
        accelerator = accelerate.Accelerator(cpu=True)
        model = torch.nn.Linear(8, 2)
        prepared, optimizer = accelerator.prepare(model, optimizer_class(model.parameters(), lr=0.1))
        for batch in batches(5):
            optimizer.zero_grad()
            accelerator.backward(prepared(batch).square().mean())
            norm = accelerator.clip_grad_norm_(prepared.parameters(), 0.1)
            assert norm > 0.1
            optimizer.step()
        return trained(model.parameters(), optimizer)

    assert_same_training(train, steps=5, clips=5, patches=True)


def test_accelerate_with_clipping_in_the_step() -> None:
    accelerate = pytest.importorskip("accelerate")

    def train(optimizer_class: Any) -> list[Any]:
        torch.manual_seed(0)
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = torch.nn.Linear(8, 2)
        is_torch = optimizer_class is torch.optim.AdamW
        options = {} if is_torch else {"max_norm": 0.1}
        prepared, optimizer = accelerator.prepare(
            model, optimizer_class(model.parameters(), lr=0.1, **options)
        )
        for batch in batches(6):
            with accelerator.accumulate(prepared):
                accelerator.backward(prepared(batch).square().mean())
                if is_torch and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(prepared.parameters(), 0.1)
                # Accelerate takes it for every second batch alone.
                optimizer.step()
                optimizer.zero_grad()
        return trained(model.parameters(), optimizer)

    assert_same_training(train, steps=3)


@pytest.mark.parametrize("clips_in_step", [False, True])
def test_trainer_of_transformers(tmp_path: Path, clips_in_step: bool) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    tokens = torch.randint(0, 50, (16, 8), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": row} for row in tokens]
    config = transformers.GPT2Config(
        vocab_size=50,
        n_positions=16,
        n_embd=16,
        n_layer=1,
        n_head=2,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
    )

    def train(optimizer_class: Any) -> list[Any]:
        in_step = clips_in_step and optimizer_class is not torch.optim.AdamW
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config)
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=5,
            per_device_train_batch_size=4,
            report_to=[],
            use_cpu=True,
            max_grad_norm=0.0 if in_step else 0.1,
            save_strategy="no",
            disable_tqdm=True,
        )
        options = {"lr": 1e-3, **({"max_norm": 0.1} if in_step else {})}
        choice = (optimizer_class, options)
        trainer = transformers.Trainer(
            model=model, args=arguments, train_dataset=data, optimizer_cls_and_kwargs=choice
        )
        trainer.train()
        assert isinstance(trainer.optimizer.optimizer, optimizer_class)
        return trained(model.parameters(), trainer.optimizer)

    assert_same_training(train, steps=5, clips=0 if clips_in_step else 5, patches=not clips_in_step)


# Of Lightning's import of a name that PyTorch has deprecated.
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning_clips_gradients(precision: str) -> None:
    """In mixed precision it refuses PyTorch's fused optimizers, by their `_step_supports_amp_scaling`."""
    lightning = pytest.importorskip("lightning")

    def train(optimizer_class: Any) -> list[Any]:
        class Module(lightning.LightningModule):  # type: ignore[misc,name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.layer = torch.nn.Linear(8, 2)

            def training_step(self, batch: Any, _: int) -> Any:
                return self.layer(batch).square().mean()

            def configure_optimizers(self) -> Any:
                return optimizer_class(self.parameters(), lr=0.1)

        torch.manual_seed(0)
        module = Module()
        trainer = lightning.Trainer(
            max_epochs=2,
            gradient_clip_val=0.1,
            precision=precision,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, torch.utils.data.DataLoader(torch.cat(batches(5)), batch_size=4))
        return trained(module.parameters(), trainer.optimizers[0])

    assert_same_training(train, steps=10, clips=10, patches=True)
    if precision == "bf16-mixed":
        with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
            train(partial(torch.optim.AdamW, fused=True))
        # fastclip's take the argument.
        train(partial(fastclip.torch.AdamW, fused=True))


DATA_PARALLEL = """
import torch
import torch.distributed as dist

import fastclip.torch

dist.init_process_group("gloo")
world, rank = dist.get_world_size(), dist.get_rank()
assert world == 2
runs = []
for library, options in ((fastclip.torch, {"max_norm": 0.1}), (torch.optim, {})):
    torch.manual_seed(0)
    layers = torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Sequential(*layers))
    optimizer = library.AdamW(model.parameters(), lr=0.1, **options)
    losses = []
    for step in range(5):
        optimizer.zero_grad()
        generator = torch.Generator().manual_seed(10 * step + rank)
        loss = model(torch.randn(4, 8, generator=generator)).square().mean()
        loss.backward()
        if library is torch.optim:
            assert torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1) > 0.1
        optimizer.step()
        mean = loss.detach() / world
        dist.all_reduce(mean)
        losses.append(mean)
    moments = [optimizer.state[parameter]["exp_avg"] for parameter in model.parameters()]
    parameters = [parameter.detach() for parameter in model.parameters()]
    runs.append([torch.stack(losses), *parameters, *moments])
for found, want in zip(*runs, strict=True):
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)
    ranks = [torch.empty_like(found) for _ in range(world)]
    dist.all_gather(ranks, found.contiguous())
    assert torch.equal(*ranks)
dist.destroy_process_group()
print("the same on rank", rank)
"""


@pytest.mark.interop("torch")
def test_distributed_data_parallel_on_two_processes(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(DATA_PARALLEL, encoding="utf-8")
    # The addresses keep torchrun and gloo from looking the name of the machine up.
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--local-addr=127.0.0.1"]
    launcher += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    interface = "lo0" if sys.platform == "darwin" else "lo"
    done = subprocess.run(
        [sys.executable, *launcher, str(script)],
        env={**os.environ, "GLOO_SOCKET_IFNAME": interface, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("the same on rank") == 2


@pytest.mark.interop("torch")
def test_one_optimizer_for_each_tensor_with_unknown_keys() -> None:
    """Offloading as torchao's CPUOffloadOptimizer does it. `max_norm` stays None."""

    def train(optimizer_class: Any) -> list[Any]:
        torch.manual_seed(0)
        model = torch.nn.Linear(8, 2)
        optimizers = [
            optimizer_class([{"params": parameter, "offloaded": True}], lr=0.1)
            for parameter in model.parameters()
        ]
        for batch in batches(5):
            model.zero_grad()
            model(batch).square().mean().backward()
            for optimizer in optimizers:
                optimizer.step()
                assert optimizer.param_groups[0]["offloaded"]
        return list(model.parameters())

    assert_same_training(train, steps=10)


@pytest.mark.interop("torch")
def test_max_norm_of_an_optimizer_of_one_tensor_is_that_of_the_tensor() -> None:
    """Why it stays None there."""
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizers = [fastclip.torch.SGD([parameter], lr=1.0, max_norm=5.0) for parameter in parameters]
    for parameter, optimizer, value in zip(parameters, optimizers, (3.0, 4.0), strict=True):
        parameter.grad = torch.full((1,), 2 * value)
        optimizer.step()
    # The norm of both is 10, which a common optimizer halves.
    assert [optimizer.last_norm for optimizer in optimizers] == [6.0, 8.0]
    torch.testing.assert_close(torch.cat([*parameters]).detach(), torch.tensor([-5.0, -5.0]))


@pytest.mark.interop("torch")
def test_parameters_that_are_swapped_around_a_step() -> None:
    """Partitions of the parameters as ZeRO-3 of DeepSpeed updates them: it puts a flat float32 copy of one
    into a parameter group, moves the states in, takes a step, and moves them out again.
    """

    def train(optimizer_class: Any) -> list[Any]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
        optimizer = optimizer_class(model.parameters(), lr=0.1)
        group = optimizer.param_groups[0]
        group["params"] = []
        partitions = [torch.nn.Parameter(p.detach().flatten().clone()) for p in model.parameters()]
        stored: list[dict[str, Any]] = [{} for _ in partitions]
        for batch in batches(5):
            model.zero_grad()
            model(batch).square().mean().backward()
            norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
            for at, parameter in enumerate(model.parameters()):
                partition = partitions[at]
                partition.grad = parameter.grad.flatten() * min(1.0, 0.1 / float(norm))
                group["params"] = [partition]
                if stored[at]:
                    # The states come back in other memory.
                    optimizer.state[partition] = {key: value.clone() for key, value in stored[at].items()}
                optimizer.step()
                stored[at] = optimizer.state.pop(partition)
                group["params"], partition.grad = [], None
                parameter.data.copy_(partition.detach().view_as(parameter))
        assert not optimizer.state
        return [*model.parameters(), *(state["exp_avg_sq"] for state in stored)]

    assert_same_training(train, steps=20)
