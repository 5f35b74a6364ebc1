"""The demo: the network's gradients, the results that it shows, and the command's output."""

from __future__ import annotations

import json
import math
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastclip import Variable
from fastclip.cli import main
from fastclip.cli.demo.rnn import Weights, class_scores, cross_entropy, initial_weights, predict
from fastclip.cli.demo.training import (
    ADAM,
    ADAM_BY_GLOBAL_NORM,
    ADAM_BY_VALUE,
    GLOBAL_NORM_BOUND,
    METHODS,
    SGD,
    SGD_BY_GLOBAL_NORM,
    VALUE_BOUND,
    Method,
    Run,
    digits_task,
    learning_rate,
    train,
)
from fastclip.train import compute_gradients

EXAMPLES = Path(__file__).parents[2] / "examples"
STEPS = 300
EACH_METHOD = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
EACH_WEIGHT = pytest.mark.parametrize("name", Weights._fields)


# The network ---------------------------------------------------------------------------------------


def small_network(dtype: type[np.floating[Any]]) -> tuple[Weights, Any, Any]:
    """Returns weights, inputs and labels small enough to check every derivative."""
    rng = np.random.default_rng(7)
    weights = initial_weights(rng, features=3, hidden=5, classes=4, gain=1.3, dtype=dtype)
    # Nonzero biases, so that errors in their use show.
    weights.bias[:] = 0.3 * rng.standard_normal(5)
    weights.output_bias[:] = rng.standard_normal(4)
    return weights, rng.standard_normal((6, 7, 3)).astype(dtype), rng.integers(0, 4, size=6)


def gradients(weights: Weights, inputs: Any, labels: Any) -> Weights:
    variables = Weights(*(Variable(array) for array in weights))
    pairs = compute_gradients(lambda: cross_entropy(variables, inputs, labels), variables)
    return Weights(*(gradient for gradient, _ in pairs))


def test_loss_agrees_with_a_plain_loop() -> None:
    pytest.importorskip("autograd")
    weights, inputs, labels = small_network(np.float64)
    losses = []
    for digit, label in zip(inputs, labels, strict=True):
        state = np.zeros(5)
        for read in digit:
            state = np.maximum(read @ weights.input + state @ weights.recurrent + weights.bias, 0)
        exponentials = np.exp(state @ weights.output + weights.output_bias)
        losses.append(-math.log(exponentials[label] / exponentials.sum()))
    assert cross_entropy(weights, inputs, labels) == pytest.approx(np.mean(losses), rel=1e-13)


@EACH_WEIGHT
def test_gradients_agree_with_central_differences(name: str) -> None:
    pytest.importorskip("autograd")
    weights, inputs, labels = small_network(np.float64)
    gradient = getattr(gradients(weights, inputs, labels), name)
    weight = getattr(weights, name)
    h = 1e-6
    expected = np.empty_like(weight)
    for place in np.ndindex(weight.shape):
        kept = weight[place]
        weight[place] = kept + h
        above = cross_entropy(weights, inputs, labels)
        weight[place] = kept - h
        below = cross_entropy(weights, inputs, labels)
        weight[place] = kept
        expected[place] = (above - below) / (2 * h)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-8)


@EACH_WEIGHT
def test_float32_gradients_are_near_the_float64_ones(name: str) -> None:
    pytest.importorskip("autograd")
    weights, inputs, labels = small_network(np.float32)
    wide = Weights(*(array.astype(np.float64) for array in weights))
    gradient = getattr(gradients(weights, inputs, labels), name)
    expected = getattr(gradients(wide, inputs.astype(np.float64), labels), name)
    assert gradient.dtype == np.float32
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-5)


def test_prediction_is_the_class_of_the_smallest_loss() -> None:
    pytest.importorskip("autograd")
    weights, inputs, _ = small_network(np.float64)
    losses = [
        [cross_entropy(weights, inputs[row : row + 1], np.array([label])) for label in range(4)]
        for row in range(len(inputs))
    ]
    np.testing.assert_array_equal(predict(weights, inputs), np.argmin(losses, axis=1))


def test_variables_and_arrays_give_the_same_scores() -> None:
    pytest.importorskip("autograd")
    weights, inputs, _ = small_network(np.float32)
    variables = Weights(*(Variable(array) for array in weights))
    scores = class_scores(weights, inputs)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(class_scores(variables, inputs), scores)


# The results ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    """Returns the runs of ``fastclip demo`` with fewer steps, which take a few seconds."""
    pytest.importorskip("sklearn")
    pytest.importorskip("autograd")
    task = digits_task(steps=STEPS, seed=0)
    return {method.name: train(task, method) for method in METHODS}


def test_adam_hardly_learns_without_clipping(runs: dict[str, Run]) -> None:
    run = runs[ADAM.name]
    assert not run.diverged
    assert run.steps == STEPS
    assert run.largest_norm > 1000 * GLOBAL_NORM_BOUND
    assert run.final_loss > 1.5
    assert run.test_accuracy < 0.4
    assert run.clipped_steps == 0


def test_sgd_diverges_without_clipping(runs: dict[str, Run]) -> None:
    run = runs[SGD.name]
    assert run.diverged
    assert run.steps < 10
    assert math.isnan(run.final_loss)
    assert run.test_accuracy < 0.3
    assert run.clipped_steps == 0


@pytest.mark.parametrize("method", [ADAM_BY_VALUE, ADAM_BY_GLOBAL_NORM, SGD_BY_GLOBAL_NORM])
def test_training_succeeds_with_clipping(runs: dict[str, Run], method: Method) -> None:
    run = runs[method.name]
    assert not run.diverged
    assert run.steps == STEPS
    assert run.final_loss < 1.3
    assert run.test_accuracy > 0.5
    assert 0 < run.clipped_steps <= run.steps
    assert 0 < run.update_seconds < run.step_seconds


def test_adam_has_half_the_loss_with_clipping(runs: dict[str, Run]) -> None:
    without, clipped = runs[ADAM.name], runs[ADAM_BY_GLOBAL_NORM.name]
    assert clipped.final_loss < without.final_loss / 2
    assert clipped.test_accuracy > without.test_accuracy + 0.3


def test_steps_clipped_are_those_above_the_bound(runs: dict[str, Run]) -> None:
    for method in (ADAM_BY_GLOBAL_NORM, SGD_BY_GLOBAL_NORM):
        run = runs[method.name]
        assert run.clipped_steps == sum(norm > GLOBAL_NORM_BOUND for norm in run.norms)


@EACH_METHOD
def test_runs_start_with_the_tasks_weights_and_do_not_change_the_task(method: Method) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("autograd")
    task = digits_task(steps=3, seed=1)
    run = train(task, method)
    again = digits_task(steps=3, seed=1)
    for array, expected in zip(task[:4] + task.weights, again[:4] + again.weights, strict=True):
        np.testing.assert_array_equal(array, expected)
    first = task.train_inputs[task.batches[0]], task.train_labels[task.batches[0]]
    assert run.losses[0] == cross_entropy(task.weights, *first)
    flat = np.concatenate([gradient.ravel() for gradient in gradients(task.weights, *first)])
    assert run.norms[0] == pytest.approx(np.linalg.norm(flat.astype(np.float64)), rel=1e-6)


def test_seed_changes_the_task() -> None:
    pytest.importorskip("sklearn")
    one, other = (digits_task(steps=3, seed=seed) for seed in (1, 2))
    assert not np.array_equal(one.batches, other.batches)
    assert not np.array_equal(one.weights.recurrent, other.weights.recurrent)
    assert not np.array_equal(one.test_labels, other.test_labels)


def test_training_and_test_digits_are_disjoint() -> None:
    pytest.importorskip("sklearn")
    task = digits_task(steps=50, seed=0)
    assert len(task.train_labels) + len(task.test_labels) == 1797
    assert task.batches.max() < len(task.train_labels)
    assert task.train_inputs.shape[1:] == task.test_inputs.shape[1:] == (16, 4)


@pytest.mark.parametrize("steps", [1, 5, 800])
def test_learning_rate_rises_and_then_falls_to_zero(steps: int) -> None:
    rates = [learning_rate(step, steps) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    peak = int(np.argmax(rates))
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


# The command ---------------------------------------------------------------------------------------


@pytest.fixture
def packages() -> None:
    for package in ("sklearn", "autograd", "matplotlib", "rich"):
        pytest.importorskip(package)


@pytest.mark.usefixtures("packages")
def test_command_prints_a_table_and_draws_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "demo.png"
    assert main(["demo", "--steps", "20", "--no-bench", "--out", str(picture)]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    (header,) = (line for line in lines if "accuracy max norm" in line)
    assert header.split() == ["loss", "accuracy", "max", "norm", "clipped", "step", "update"]
    table_and_text = [line for line in lines if not line.startswith("picture:")]
    assert max(map(len, table_and_text)) <= 80
    for method in METHODS:
        assert method.name in printed.out
    assert "…" not in printed.out
    assert "SGD: the weights became NaN or infinite at step" in printed.out
    assert str(picture) in printed.out
    assert printed.err == ""
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.usefixtures("packages")
def test_command_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "demo.svg"
    assert main(["demo", "--steps", "10", "--seed", "5", "--json", "--no-bench", "--out", str(picture)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["settings"]["steps"] == 10
    assert report["settings"]["seed"] == 5
    assert report["picture"] == str(picture)
    assert picture.exists()
    assert "bench" not in report
    assert [(run["optimizer"], run["clipping"]) for run in report["runs"]] == [
        ("Adam", "none"),
        ("Adam", "by value"),
        ("Adam", "by global norm"),
        ("SGD", "none"),
        ("SGD", "by global norm"),
    ]
    none, by_value, by_norm, diverged, _ = report["runs"]
    assert none["clipped_share"] == 0
    assert none["bound"] == "inf"
    assert by_value["bound"] == VALUE_BOUND
    assert by_norm["bound"] == GLOBAL_NORM_BOUND
    assert by_norm["clipped_share"] > 0
    assert none["learning_rate"] == by_value["learning_rate"] == by_norm["learning_rate"]
    assert 0 < by_norm["update_seconds"] < by_norm["step_seconds"]
    assert diverged["diverged"]
    assert diverged["final_loss"] == "nan"


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("as_json", [False, True])
def test_command_ends_with_the_short_benchmark(
    as_json: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def bench(arguments: list[str]) -> int:
        calls.append(arguments)
        print('{"rows": []}' if as_json else "the table of the benchmark")
        return 1

    monkeypatch.setattr("fastclip.cli.main", bench)
    options = ["--json"] if as_json else []
    assert main(["demo", "--steps", "5", "--out", str(tmp_path / "demo.png"), *options]) == 1
    assert calls == [["bench", "--quick", *options]]
    printed = capsys.readouterr().out
    if as_json:
        assert json.loads(printed)["bench"] == {"rows": []}
    else:
        assert printed.endswith("the table of the benchmark\n")


@pytest.mark.usefixtures("packages")
def test_picture_can_be_drawn_where_all_runs_diverged(tmp_path: Path) -> None:
    from fastclip.cli.demo.training_plot import plot_runs

    runs = [Run(SGD, losses=[1.0, math.inf], norms=[math.nan, math.inf], diverged=True)]
    plot_runs(runs, tmp_path / "demo.png")
    assert (tmp_path / "demo.png").exists()


@pytest.mark.usefixtures("packages")
def test_demo_of_one_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--steps", "1", "--no-bench", "--out", str(tmp_path / "demo.png")]) == 0
    assert "clipped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "distribution"),
    [
        ("sklearn", "scikit-learn"),
        ("autograd.numpy", "autograd"),
        ("matplotlib", "matplotlib"),
        ("rich", "rich"),
    ],
)
def test_missing_package_is_named_in_one_line(
    module: str,
    distribution: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    picture = tmp_path / "demo.png"
    assert main(["demo", "--out", str(picture)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert distribution in printed.err
    assert "fastclip-grad[demo]" in printed.err
    assert not picture.exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--steps", "0"], "--steps has to be at least 1, and is 0"),
        (["--seed", "-1"], "--seed has to be at least 0, and is -1"),
        (["--out", "demo.jpeg"], "--out: demo.jpeg has to end in .png"),
        (["--out", "no-such-directory/demo.png"], "--out: there is no directory no-such-directory"),
    ],
)
def test_invalid_options_are_reported_before_the_training(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--no-bench", *arguments]) == 2
    printed = capsys.readouterr()
    assert complaint in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


# The examples --------------------------------------------------------------------------------------


def test_example_learns(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "numpy_training_loop.py"))
    lines = capsys.readouterr().out.splitlines()
    errors = [float(line.split("|error|")[1].split(",")[0]) for line in lines]
    assert len(errors) == 6
    assert errors[-1] < 0.6 * errors[0]


def test_example_with_adam_learns_and_resumes(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("autograd")
    runpy.run_path(str(EXAMPLES / "adam_training_loop.py"))
    *before, mark, first, second, first_again, second_again, verdict = capsys.readouterr().out.splitlines()
    errors = [float(line.split("|error|")[1].split(",")[0]) for line in [*before, first, second]]
    assert len(errors) == 5
    assert errors[-1] < 0.5 * errors[0]
    assert mark == "resumed"
    assert (first, second) == (first_again, second_again)
    assert verdict == "the same bits: True"
