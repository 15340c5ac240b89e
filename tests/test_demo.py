"""The demo: its pictures, its training runs, and what is said of them."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path

import pytest
import torch

from fusedmix import cli, demo
from fusedmix.demo.calibration import expected_calibration_error, fitted_temperature, negative_log_likelihood


def test_demo_writes_the_contact_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = pytest.importorskip("matplotlib.image")
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    from fusedmix.demo.methods import METHODS
    from fusedmix.demo.sheet import sheet_size

    assert cli.main(["demo", "--skip-training", "--seed", "3", "--out", str(tmp_path / "new" / "folder")]) == 0
    [path] = (tmp_path / "new" / "folder").iterdir()
    out = capsys.readouterr().out
    assert str(path) in out
    assert all(method.name in out for method in METHODS)
    assert image.imread(path).shape[1::-1] == sheet_size(6, len(METHODS))
    assert path.stat().st_size < 4_000_000


def test_photos_are_colour_batches() -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    from fusedmix.demo.photos import load_photos

    images, names = load_photos(32)
    assert images.shape == (6, 3, 32, 32)
    assert len(set(names)) == 6
    assert images.min() >= 0
    assert images.max() <= 1 + 1e-6
    assert (images.amax((2, 3)) - images.amin((2, 3)) > 0.3).all()


def test_an_interrupted_training_leaves_the_contact_sheet(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("matplotlib", "skimage", "sklearn"):
        pytest.importorskip(package)
    from fusedmix.demo import train

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "compare", interrupt)
    assert cli.main(["demo", "--out", str(tmp_path)]) == 130
    assert f"Written before the interruption:\n  {tmp_path / 'methods.png'}" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["methods.png"]


def test_ece_by_hand() -> None:
    # Five bins. (0.6, 0.8]: confidences .7 and .8, one right: 2 * |.5 - .75| = .5.
    # (0.8, 1]: 1.0 and .9, both right: 2 * |1 - .95| = .1. (0.4, 0.6]: .6, wrong: |0 - .6| = .6.
    confidence = torch.tensor([0.7, 0.8, 1.0, 0.9, 0.6], dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 0, 1])
    probabilities = torch.stack([confidence, 1 - confidence], 1)
    assert expected_calibration_error(probabilities, labels, bins=5) == pytest.approx((0.5 + 0.1 + 0.6) / 5)
    assert expected_calibration_error(probabilities[2:3], labels[2:3]) == 0
    assert expected_calibration_error(torch.zeros(1, 2), torch.tensor([0])) == 1


def test_nll_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [math.log(4), 0.0]])
    assert negative_log_likelihood(logits, torch.tensor([1, 1])) == pytest.approx((math.log(4 / 3) + math.log(5)) / 2)


@pytest.mark.parametrize("right", [60, 75, 99])
@pytest.mark.parametrize("logit", [0.5, 8.0])
def test_temperature_of_two_classes(logit: float, right: int) -> None:
    """Who always says the same is most likely where his confidence is the share in which he is right."""
    logits = torch.tensor([[logit, 0.0]]).expand(100, 2)
    labels = (torch.arange(100) >= right).long()
    share = right / 100
    assert fitted_temperature(logits, labels) == pytest.approx(logit / math.log(share / (1 - share)), rel=1e-6)


def test_temperature_is_bounded_and_does_not_depend_on_what_cancels() -> None:
    logits, labels = torch.randn(200, 7, generator=torch.Generator().manual_seed(0)), torch.arange(200) % 7
    assert fitted_temperature(torch.eye(7), torch.arange(7)) == pytest.approx(0.05)
    assert fitted_temperature(logits, logits.argmin(1)) == pytest.approx(20)
    sure = logits + 3 * torch.eye(7)[labels]
    temperature = fitted_temperature(sure, labels)
    assert 0.05 < temperature < 20
    assert fitted_temperature(4 * sure + 5, labels) == pytest.approx(4 * temperature, rel=1e-4)
    for other in (0.9, 1.1):
        scaled = sure / (other * temperature)
        assert negative_log_likelihood(scaled, labels) > negative_log_likelihood(sure / temperature, labels)


def test_training_runs_with_every_method(tmp_path: Path) -> None:
    for package in ("matplotlib", "sklearn", "tqdm"):
        pytest.importorskip(package)
    from fusedmix.demo import results, train
    from fusedmix.demo.methods import METHODS

    runs = train.compare(range(1), epochs=1)
    names = [train.NO_MIXING, *(method.name for method in METHODS)]
    assert [(run.method, run.corrupted) for run in runs] == [(n, c) for c in train.CORRUPTED for n in names]
    for run in runs:
        assert 0.05 < run.accuracy <= 1
        assert 0 <= run.ece <= 1
        assert 0 <= run.scaled_ece <= 1
        assert min(run.nll, run.scaled_nll, run.temperature, run.seconds_an_epoch) > 0
        assert math.isfinite(run.nll + run.scaled_nll)
    results.draw(runs, tmp_path / "runs.png")
    assert (tmp_path / "runs.png").stat().st_size > 0


def test_the_table_of_trainings() -> None:
    """Means, standard errors and medians by hand, and what is gained seed by seed."""
    for package in ("matplotlib", "sklearn", "tqdm"):
        pytest.importorskip(package)
    from fusedmix.demo import results
    from fusedmix.demo.train import NO_MIXING, Run

    def run(method: str, seed: int, accuracy: float, nll: float, ece: float, seconds: float) -> Run:
        return Run(method, 0.3, seed, accuracy, 2 * nll, nll, ece, ece / 2, 1.0, 3, seconds)

    runs = [
        run(NO_MIXING, 0, 0.90, 0.5, 0.02, 0.5),
        run(NO_MIXING, 1, 0.94, 0.7, 0.04, 0.4),
        run("MixUp", 0, 0.92, 0.3, 0.05, 0.7),
        run("MixUp", 1, 0.95, 0.3, 0.05, 0.6),
    ]
    lines = results.table(runs, times=True).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0][0] == "30% of labels random"
    times = "0.450 (0.400 to 0.500)"
    assert cells[2] == [NO_MIXING, "92.0 ± 2.0", "", "1.20 ± 0.20", "3.0 ± 1.0", "0.60 ± 0.10", "1.5 ± 0.5", times]
    times = "0.650 (0.600 to 0.700)"
    found = ["MixUp", "93.5 ± 1.5", "+1.5 ± 0.5", "0.60 ± 0.00", "5.0 ± 0.0", "0.30 ± 0.00", "2.5 ± 0.0", times]
    assert cells[3] == found
    assert "seconds" not in results.table(runs)
    assert "± " not in results.table(runs[::2])
    assert "92.0 ± 2.0 % of the test images are recognised without" in results.headline(runs)
    assert "93.5 to 93.5 % with" in results.headline(runs)


@pytest.mark.thorough
def test_demo_trains_with_some_methods(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("matplotlib", "skimage", "sklearn", "tqdm"):
        pytest.importorskip(package)
    from fusedmix.demo.methods import METHODS
    from fusedmix.demo.train import CORRUPTED, NO_MIXING

    assert set(demo.TRAINED) <= {method.name for method in METHODS}
    assert cli.main(["demo", "--epochs", "1", "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"methods.png", "training.csv", "training.png"}
    with (tmp_path / "training.csv").open(newline="", encoding="utf-8") as file:
        found = [(row["method"], row["seed"]) for row in csv.DictReader(file)]
    assert set(found) == {(name, str(seed)) for name in (NO_MIXING, *demo.TRAINED) for seed in range(demo.SEEDS)}
    assert len(found) == len(set(found)) * len(CORRUPTED)
    out = capsys.readouterr().out
    assert out.index("30% of labels random") < out.index("clean labels")


def test_training_repeats_and_corrupts_only_training_labels() -> None:
    pytest.importorskip("sklearn")
    from fusedmix.demo import train
    from fusedmix.demo.methods import METHODS

    clean, corrupted = train.load_split(5), train.load_split(5, 0.3)
    assert len(clean.test_labels) == train.TEST_IMAGES
    assert len(clean.validation_labels) == train.VALIDATION_IMAGES
    for part in ("test", "validation"):
        assert torch.equal(getattr(clean, f"{part}_labels"), getattr(corrupted, f"{part}_labels"))
    assert torch.equal(clean.train_images, corrupted.train_images)
    changed = (clean.train_labels != corrupted.train_labels).double().mean()
    assert 0.2 < changed <= 0.3

    states = [train.train(METHODS[1], clean, seed=5, epochs=1).state_dict() for _ in range(2)]
    for name, value in states[0].items():
        assert torch.allclose(value, states[1][name], atol=1e-5), name


def test_demo_needs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in demo._PACKAGES:
        monkeypatch.setitem(sys.modules, module, None)
    assert demo.missing_packages() == ["matplotlib", "scikit-image", "scikit-learn", "tqdm"]
