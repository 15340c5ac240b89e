"""examples/train_cifar.py: on a few small images, interrupted and started again, and with wrong arguments."""

from __future__ import annotations

import csv
import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch

import fusedmix as fm

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "train_cifar.py"
pytestmark = pytest.mark.skipif(not EXAMPLE.exists(), reason="an installed package comes without its examples")


@pytest.fixture(scope="module")
def example():
    for package in ("torchvision", "tqdm", "PIL"):
        pytest.importorskip(package)
    spec = importlib.util.spec_from_file_location("train_cifar", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Dark cats and light dogs."""
    image = pytest.importorskip("PIL.Image")
    root = tmp_path_factory.mktemp("images")
    for part, count in (("train", 4), ("test", 3)):
        for number, name in enumerate(("cats", "dogs")):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                image.new("RGB", (12, 9), (150 * number, 10 * i, 0)).save(root / part / name / f"{i}.png")
    return root


def run(example, folder, out, *more):
    """Accuracy and likelihood by method and seed, as they are written."""
    options = ("--side", "8", "--batch", "4", "--seeds", "1", "--device", "cpu", "--lr", "0.01")
    assert example.main(["--data", str(folder), "--out", str(out), *options, *more]) == 0
    with (out / "runs.csv").open(newline="") as file:
        found = {(row["mix"], row["seed"]): (row["accuracy_percent"], row["nll"]) for row in csv.DictReader(file)}
    assert all(math.isfinite(float(nll)) for _, nll in found.values())
    return found


@pytest.mark.thorough
def test_an_interrupted_training_goes_on(example, folder, tmp_path, monkeypatch, capsys):
    """The first training is interrupted in its second epoch; what comes out is what comes out of an undisturbed one."""
    options = ("--epochs", "2", "--mix", "MixUp,none")
    undisturbed = run(example, folder, tmp_path / "a", *options)
    assert set(undisturbed) == {("none", "0"), ("MixUp", "0")}
    assert "| none | 1 |" in (tmp_path / "a" / "table.md").read_text()
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"options.json", "runs.csv", "table.md"}

    calls = []

    def interrupt(*arguments):
        calls.append(arguments)
        if len(calls) == 4:  # there are two batches an epoch
            raise KeyboardInterrupt
        return augmented(*arguments)

    augmented = example.augmented
    monkeypatch.setattr(example, "augmented", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(example, folder, tmp_path / "b", *options)
    assert {path.name for path in (tmp_path / "b").iterdir()} == {"options.json", "unfinished.pt"}
    monkeypatch.setattr(example, "augmented", augmented)
    assert run(example, folder, tmp_path / "b", *options) == undisturbed
    capsys.readouterr()
    assert run(example, folder, tmp_path / "b", *options) == undisturbed  # nothing is left to do
    assert "| MixUp | 1 |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run(example, folder, tmp_path / "b", "--epochs", "3")
    assert "has runs with --epochs 2; name another folder" in capsys.readouterr().err


@pytest.mark.thorough
def test_both_ways_train_alike(example, folder, tmp_path):
    """One step by a mixed batch, and one by a hook: the same draws, and the same loss in another order of sums."""
    found = [
        run(example, folder, tmp_path / way, "--epochs", "1", "--mix", "CutMix", "--way", way, "--subset", "4")
        for way in ("loop", "attach")
    ]
    (one,), (other,) = (each.values() for each in found)
    assert float(one[1]) == pytest.approx(float(other[1]), rel=1e-3)


def test_what_is_loaded(example, folder, tmp_path, monkeypatch):
    """Bytes, channels first: of torchvision's CIFAR, which has channels last, and of a folder; and some of them."""

    class Cifar:
        def __init__(self, root, train, download):
            assert (root, download) == (str(tmp_path), True)
            count = 6 if train else 4
            self.classes, self.targets = ["a", "b"], [i % 2 for i in range(count)]
            self.data = np.arange(count * 2 * 2 * 3, dtype=np.uint8).reshape(count, 2, 2, 3)

    np = pytest.importorskip("numpy")
    monkeypatch.setitem(example.CIFAR, "cifar10", Cifar)
    data = example.load("cifar10", tmp_path, 32, None, torch.device("cpu"))
    assert (data.images.shape, data.test_images.shape, data.classes) == ((6, 3, 2, 2), (4, 3, 2, 2), 2)
    assert data.images[1, :, 0, 1].tolist() == [15, 16, 17]  # the second pixel of the second image
    assert data.test_labels.tolist() == [0, 1, 0, 1]
    some = example.load("cifar10", tmp_path, 32, 3, torch.device("cpu"))
    assert len(some.images) == len({int(image[0, 0, 0]) for image in some.images}) == 3
    assert all((image[0, 0, 0] // 12) % 2 == label for image, label in zip(some.images, some.labels, strict=True))
    data = example.load(str(folder), tmp_path, 8, None, torch.device("cpu"))
    assert (data.images.shape, data.images.dtype) == ((8, 3, 8, 8), torch.uint8)
    assert torch.equal(data.test_images[:, 0].amax((1, 2)), 150 * data.test_labels)


def test_mixers_by_name(example):
    assert example.mixer("none", 3) is None
    for name in (*example.METHODS, *(f"{name}+CutMix" for name in example.METHODS)):
        mix = example.mixer(name, 3)
        assert isinstance(mix, fm.RandomMix if "+" in name else getattr(fm, name))
        images, targets = mix(torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 0]))
        assert (images.shape, targets.shape) == ((4, 3, 16, 16), (4, 3))


@pytest.mark.parametrize("name", ["MixUp+CutMix", "HMix", "GMix", "FMix", "SmoothMix"])
def test_a_hook_takes_every_method(example, name):
    """The same draws, and the loss that the loop has, in another order of sums."""
    images, labels = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    found = []
    for way in ("loop", "attach"):
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 3))
        torch.nn.init.constant_(model[1].weight, 0.1)
        torch.nn.init.zeros_(model[1].bias)
        model[1].weight.data[1] = -0.1
        loss = example.objective(model, example.mixer(name, 3), way)
        torch.manual_seed(0)
        found.append(loss(images, labels).item())
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_crops_and_flips(example):
    """Every image is a part of itself in its frame, flipped or not; and the same draws give the same."""
    images = torch.randint(1, 255, (64, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found, again = (example.augmented(images, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(found, again)
    places = set()
    for image, cut in zip(images, found, strict=True):
        padded = torch.nn.functional.pad(image, [2] * 4)
        windows = {
            (top, left, flipped): padded[:, top : top + 16, left : left + 16].flip(2 if flipped else ())
            for top in range(5)
            for left in range(5)
            for flipped in (False, True)
        }
        (place,) = (place for place, window in windows.items() if torch.equal(window, cut))
        places.add(place)
    assert {flipped for *_, flipped in places} == {False, True}
    assert {top for top, *_ in places} == {left for _, left, _ in places} == set(range(5))


def test_table(example):
    """Means and standard errors by hand; what is gained is of the same seed."""
    runs = [example.Run("none", seed, accuracy, 0.5, 2.0) for seed, accuracy in enumerate((90.0, 94.0, 50.0))]
    runs += [example.Run("MixUp", seed, accuracy, nll, 3.0) for seed, accuracy, nll in ((0, 92.0, 0.2), (1, 95.0, 0.4))]
    lines = example.table(runs).splitlines()
    assert lines[2] == "| none | 3 | 78.00 ± 14.05 |  | 0.500 ± 0.000 | 2.0 |"
    assert lines[3] == "| MixUp | 2 | 93.50 ± 1.50 | +1.50 ± 0.50 | 0.300 ± 0.100 | 3.0 |"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--mix", "none,Mixup"), "must be of none, MixUp, CutMix"),
        (("--mix", "MixUp+none"), "but is MixUp+none"),
        (("--mix", "MixUp+ResizeMix"), "or several of these methods joined by +, but is MixUp+ResizeMix"),
        (("--data", "no-such-folder"), "there is no no-such-folder/train"),
        (("--seeds", "0"), "must be at least 1, but is 0"),
        (("--epochs", "many"), "invalid"),
        (("--subset", "-1"), "must be at least 1, but is -1"),
        (("--lr", "nan"), "must be a positive number, but is nan"),
        (("--way", "hook"), "invalid choice"),
        (("--side", "4"), "must be at least 8"),
    ],
)
def test_wrong_arguments(example, tmp_path, capsys, arguments, said):
    with pytest.raises(SystemExit) as stop:
        example.main([*arguments, "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_a_batch_of_more_than_there_is(example, folder, tmp_path, capsys):
    assert example.main(["--data", str(folder), "--side", "8", "--out", str(tmp_path), "--device", "cpu"]) == 2
    assert "--batch must be at most the number of images to train on, 8." in capsys.readouterr().err
