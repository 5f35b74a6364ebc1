"""Training frameworks with the optimizers and clip functions of fastclip.torch, run for real on tiny models.

``make test-frameworks`` installs the libraries. Each test compares with the same run by PyTorch's optimizer.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import fastclip.torch  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def patched() -> Iterator[None]:
    fastclip.torch.patch()
    yield
    fastclip.torch.unpatch()


def batches(count: int, width: int = 8) -> list[Any]:
    return [torch.randn(4, width, generator=torch.Generator().manual_seed(seed)) for seed in range(count)]


def assert_same_training(train: Callable[[Any], Any], name: str = "AdamW") -> None:
    """Compare the parameters after training with an optimizer of fastclip and with PyTorch's."""
    found, want = train(getattr(fastclip.torch, name)), train(getattr(torch.optim, name))
    for parameter, other in zip(found, want, strict=True):
        torch.testing.assert_close(parameter, other, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("patched")
def test_accelerate() -> None:
    accelerate = pytest.importorskip("accelerate")
    calls = []
    original = fastclip._core.torch_clip_by_global_norm

    def train(optimizer_class: Any) -> list[Any]:
        torch.manual_seed(0)
        accelerator = accelerate.Accelerator(cpu=True)
        model = torch.nn.Linear(8, 2)
        prepared, optimizer = accelerator.prepare(model, optimizer_class(model.parameters(), lr=0.1))
        for batch in batches(5):
            optimizer.zero_grad()
            accelerator.backward(prepared(batch).square().mean())
            accelerator.clip_grad_norm_(prepared.parameters(), 0.1)
            optimizer.step()
        return list(model.parameters())

    with pytest.MonkeyPatch.context() as context:
        context.setattr(
            fastclip._core,
            "torch_clip_by_global_norm",
            lambda *arguments: calls.append(1) or original(*arguments),  # type: ignore[func-returns-value]
        )
        assert_same_training(train)
    # Accelerate has looked the function up in torch.nn.utils.
    assert len(calls) == 10


@pytest.mark.usefixtures("patched")
def test_trainer_of_transformers(tmp_path: Path) -> None:
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
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config)
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=5,
            per_device_train_batch_size=4,
            report_to=[],
            use_cpu=True,
            max_grad_norm=0.5,
            save_strategy="no",
            disable_tqdm=True,
        )
        choice = (optimizer_class, {"lr": 1e-3})
        transformers.Trainer(
            model=model, args=arguments, train_dataset=data, optimizer_cls_and_kwargs=choice
        ).train()
        return list(model.parameters())

    assert_same_training(train)


def test_lightning_clips_gradients() -> None:
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
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, torch.utils.data.DataLoader(torch.cat(batches(5)), batch_size=4))
        return list(module.parameters())

    assert_same_training(train)


def test_distributed_data_parallel_on_two_processes(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(
            """
            import torch, torch.distributed as dist, fastclip.torch

            dist.init_process_group("gloo")
            results = []
            for library, options in ((fastclip.torch, {"max_norm": 0.1}), (torch.optim, {})):
                torch.manual_seed(0)
                model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(8, 2))
                optimizer = library.AdamW(model.parameters(), lr=0.1, **options)
                for step in range(5):
                    optimizer.zero_grad()
                    generator = torch.Generator().manual_seed(10 * step + dist.get_rank())
                    model(torch.randn(4, 8, generator=generator)).square().mean().backward()
                    if not options:
                        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                    optimizer.step()
                results.append(model.module.weight.detach().clone())
            torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)
            ranks = [torch.empty_like(results[0]) for _ in range(dist.get_world_size())]
            dist.all_gather(ranks, results[0])
            assert len(ranks) == 2 and torch.equal(*ranks)
            dist.destroy_process_group()
            """
        ),
        encoding="utf-8",
    )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(script),
    ]
    done = subprocess.run(
        command, env={**os.environ}, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_one_optimizer_for_each_tensor_with_unknown_keys() -> None:
    """Offloading as torchao's CPUOffloadOptimizer does it."""

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
        return list(model.parameters())

    assert_same_training(train)
