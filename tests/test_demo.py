"""The demo: its backward pass is right, its claims hold, and the command does what it says."""

from __future__ import annotations

import json
import math
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastclip.cli import main
from fastclip.cli.rnn import Weights, initial_weights, loss_and_gradients, predict
from fastclip.cli.training import (
    BY_GLOBAL_NORM,
    BY_VALUE,
    GLOBAL_NORM_BOUND,
    NO_CLIPPING,
    VALUE_BOUND,
    Clipping,
    Run,
    digits_task,
    learning_rate,
    train,
)

EXAMPLE = Path(__file__).parents[1] / "examples" / "numpy_training_loop.py"
EACH_CLIPPING = pytest.mark.parametrize(
    "clipping", [NO_CLIPPING, BY_VALUE, BY_GLOBAL_NORM], ids=lambda c: c.name
)
EACH_WEIGHT = pytest.mark.parametrize("name", Weights._fields)


# The backward pass ---------------------------------------------------------------------------------


def small_network(dtype: type[np.floating[Any]]) -> tuple[Weights, Any, Any]:
    """Weights, inputs and labels small enough to look at every derivative."""
    rng = np.random.default_rng(7)
    weights = initial_weights(rng, features=3, hidden=5, classes=4, gain=1.3, dtype=dtype)
    # Biases other than zero, so that a mistake in their use shows.
    weights.bias[:] = 0.3 * rng.standard_normal(5)
    weights.output_bias[:] = rng.standard_normal(4)
    return weights, rng.standard_normal((6, 7, 3)).astype(dtype), rng.integers(0, 4, size=6)


def loss_in_autograd(weights: tuple[Any, ...], inputs: Any, labels: Any) -> Any:
    """The loss again, written for autograd and the plainest way."""
    anp = pytest.importorskip("autograd.numpy")
    from_input, recurrent, bias, output, output_bias = weights
    state = anp.zeros((len(inputs), len(bias)))
    for t in range(inputs.shape[1]):
        state = anp.maximum(anp.dot(inputs[:, t], from_input) + anp.dot(state, recurrent) + bias, 0)
    scores = anp.dot(state, output) + output_bias
    largest = anp.max(scores, axis=1, keepdims=True)
    log_sum = anp.log(anp.sum(anp.exp(scores - largest), axis=1)) + largest[:, 0]
    return anp.mean(log_sum - scores[anp.arange(len(labels)), labels])


@EACH_WEIGHT
def test_gradients_agree_with_autograd(name: str) -> None:
    autograd = pytest.importorskip("autograd")
    weights, inputs, labels = small_network(np.float64)
    loss, gradients = loss_and_gradients(weights, inputs, labels)
    value, expected = autograd.value_and_grad(loss_in_autograd)(tuple(weights), inputs, labels)
    assert loss == pytest.approx(float(value), rel=1e-13)
    place = Weights._fields.index(name)
    np.testing.assert_allclose(gradients[place], expected[place], rtol=1e-11, atol=1e-13)


@EACH_WEIGHT
def test_gradients_agree_with_central_differences(name: str) -> None:
    weights, inputs, labels = small_network(np.float64)
    _, gradients = loss_and_gradients(weights, inputs, labels)
    weight, gradient = getattr(weights, name), getattr(gradients, name)
    h = 1e-6
    expected = np.empty_like(weight)
    for place in np.ndindex(weight.shape):
        kept = weight[place]
        weight[place] = kept + h
        above, _ = loss_and_gradients(weights, inputs, labels)
        weight[place] = kept - h
        below, _ = loss_and_gradients(weights, inputs, labels)
        weight[place] = kept
        expected[place] = (above - below) / (2 * h)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-8)


@EACH_WEIGHT
def test_float32_gradients_are_near_the_float64_ones(name: str) -> None:
    weights, inputs, labels = small_network(np.float32)
    wide = Weights(*(array.astype(np.float64) for array in weights))
    loss, gradients = loss_and_gradients(weights, inputs, labels)
    expected_loss, expected = loss_and_gradients(wide, inputs.astype(np.float64), labels)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert getattr(gradients, name).dtype == np.float32
    np.testing.assert_allclose(getattr(gradients, name), getattr(expected, name), rtol=1e-3, atol=1e-5)


def test_prediction_is_the_class_of_the_smallest_loss() -> None:
    weights, inputs, _ = small_network(np.float64)
    losses = [
        [loss_and_gradients(weights, inputs[row : row + 1], np.array([label]))[0] for label in range(4)]
        for row in range(len(inputs))
    ]
    np.testing.assert_array_equal(predict(weights, inputs), np.argmin(losses, axis=1))


# The claims ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    """The runs of ``fastclip demo`` as it comes: they take a second or two."""
    pytest.importorskip("sklearn")
    task = digits_task(steps=800, seed=0)
    return {clipping.name: train(task, clipping) for clipping in (NO_CLIPPING, BY_VALUE, BY_GLOBAL_NORM)}


def test_gradients_explode_without_clipping(runs: dict[str, Run]) -> None:
    run = runs[NO_CLIPPING.name]
    assert run.largest_norm > 1000 * GLOBAL_NORM_BOUND
    assert run.diverged
    assert run.steps < 800
    assert math.isnan(run.final_loss)
    assert run.test_accuracy < 0.3
    assert run.clipped_steps == 0
    np.testing.assert_array_equal(run.applied_norms, run.norms)


@pytest.mark.parametrize("name", [BY_VALUE.name, BY_GLOBAL_NORM.name])
def test_training_succeeds_with_clipping(runs: dict[str, Run], name: str) -> None:
    run = runs[name]
    assert not run.diverged
    assert run.steps == 800
    assert run.final_loss < 0.2
    assert run.test_accuracy > 0.85
    assert run.largest_norm < runs[NO_CLIPPING.name].largest_norm / 10
    assert 0 < run.clipped_steps <= run.steps
    assert 0 < run.clip_seconds < run.step_seconds


def test_norm_applied_stays_within_the_bound(runs: dict[str, Run]) -> None:
    run = runs[BY_GLOBAL_NORM.name]
    # Each element is rounded to float32 after the scaling.
    assert max(run.applied_norms) <= GLOBAL_NORM_BOUND * (1 + 1e-6)
    assert run.clipped_steps == sum(norm > GLOBAL_NORM_BOUND for norm in run.norms)
    kept = [(norm, applied) for norm, applied in zip(run.norms, run.applied_norms, strict=True) if norm <= 1]
    assert kept
    assert all(norm == applied for norm, applied in kept)


def test_clipping_by_value_bounds_every_element(runs: dict[str, Run]) -> None:
    run = runs[BY_VALUE.name]
    elements = sum(array.size for array in digits_task(steps=1, seed=0).weights)
    assert max(run.applied_norms) <= VALUE_BOUND * math.sqrt(elements) * (1 + 1e-6)
    assert all(applied <= norm for norm, applied in zip(run.norms, run.applied_norms, strict=True))


@EACH_CLIPPING
def test_runs_start_alike_and_leave_the_task_as_it_was(clipping: Clipping) -> None:
    pytest.importorskip("sklearn")
    task = digits_task(steps=3, seed=1)
    run = train(task, clipping)
    again = digits_task(steps=3, seed=1)
    for array, expected in zip(task[:4] + task.weights, again[:4] + again.weights, strict=True):
        np.testing.assert_array_equal(array, expected)
    loss, _ = loss_and_gradients(
        task.weights, task.train_inputs[task.batches[0]], task.train_labels[task.batches[0]]
    )
    assert run.losses[0] == loss


def test_seed_changes_the_task() -> None:
    pytest.importorskip("sklearn")
    one, other = (digits_task(steps=3, seed=seed) for seed in (1, 2))
    assert not np.array_equal(one.batches, other.batches)
    assert not np.array_equal(one.weights.recurrent, other.weights.recurrent)
    assert not np.array_equal(one.test_labels, other.test_labels)


def test_no_test_digit_is_trained_on() -> None:
    pytest.importorskip("sklearn")
    task = digits_task(steps=50, seed=0)
    assert len(task.train_labels) + len(task.test_labels) == 1797
    assert task.batches.max() < len(task.train_labels)
    assert task.train_inputs.shape[1:] == task.test_inputs.shape[1:] == (16, 4)


@pytest.mark.parametrize("steps", [1, 5, 800])
def test_learning_rate_rises_and_then_falls_to_zero(steps: int) -> None:
    rates = [learning_rate(step, steps) for step in range(steps)]
    assert all(0 < rate <= 0.7 * (1 + 1e-12) for rate in rates)
    peak = int(np.argmax(rates))
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


# The command ---------------------------------------------------------------------------------------


@pytest.fixture
def packages() -> None:
    for package in ("sklearn", "matplotlib", "rich"):
        pytest.importorskip(package)


@pytest.mark.usefixtures("packages")
def test_command_prints_a_table_and_draws_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "demo.png"
    assert main(["demo", "--steps", "60", "--no-bench", "--out", str(picture)]) == 0
    printed = capsys.readouterr()
    for text in ("final loss", "test accuracy", "largest gradient norm", "steps clipped", "by global norm"):
        assert text in printed.out
    assert str(picture) in printed.out
    assert printed.err == ""
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.usefixtures("packages")
def test_command_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "demo.svg"
    assert main(["demo", "--steps", "30", "--seed", "5", "--json", "--no-bench", "--out", str(picture)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["settings"]["steps"] == 30
    assert report["settings"]["seed"] == 5
    assert report["picture"] == str(picture)
    assert picture.exists()
    assert "bench" not in report
    none, by_value, by_norm = report["runs"]
    assert [run["clipping"] for run in report["runs"]] == ["none", "by value", "by global norm"]
    assert none["clipped_share"] == 0
    assert by_value["bound"] == VALUE_BOUND
    assert by_norm["largest_applied_norm"] <= GLOBAL_NORM_BOUND * (1 + 1e-6)


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
def test_one_step_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--steps", "1", "--no-bench", "--out", str(tmp_path / "demo.png")]) == 0
    assert "steps taken" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "distribution"),
    [("sklearn", "scikit-learn"), ("matplotlib", "matplotlib"), ("rich", "rich")],
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
    assert "fastclip[demo]" in printed.err
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
def test_bad_usage_is_told_before_the_training(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--no-bench", *arguments]) == 2
    printed = capsys.readouterr()
    assert complaint in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


# The example ---------------------------------------------------------------------------------------


def test_example_learns(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE))
    lines = capsys.readouterr().out.splitlines()
    errors = [float(line.split("|error|")[1].split(",")[0]) for line in lines]
    assert len(errors) == 6
    assert errors[-1] < 0.6 * errors[0]
