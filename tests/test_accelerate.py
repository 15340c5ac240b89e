"""examples/train_accelerate.py: mixing in a loop with Accelerate, on one rank and on two, and again after resuming."""

from __future__ import annotations

import importlib.util
import re

import pytest
import torch

import fusedmix as fm
from conftest import required
from trainers import ROOT, cross_entropies, images_and_labels, label_weights, run_script, soft, write_script

EXAMPLE = ROOT / "examples" / "train_accelerate.py"
CLASSES = 4

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not EXAMPLE.exists(), reason="an installed package comes without its examples"),
]


@pytest.fixture(scope="module")
def example():
    required("accelerate")
    spec = importlib.util.spec_from_file_location("train_accelerate", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Remembering:
    """Mixes, and remembers the batches as they came."""

    def __init__(self, mix):
        self.mix, self.batches = mix, []

    def __call__(self, images, labels):
        self.batches.append((images.clone(), labels.clone()))
        return self.mix(images, labels)


def data(samples, seed):
    images, labels = images_and_labels(samples, CLASSES, seed=seed)
    return torch.utils.data.TensorDataset(images.float().repeat(1, 2, 1, 1)[:, :3], labels)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(
    ("method", "options"), [(fm.MixUp, {}), (fm.CutMix, {"inplace": True}), (fm.CutMix, {"sampling": "device"})]
)
def test_training_is_mixed_and_nothing_else(example, monkeypatch, method, options, accumulate):
    mix, evaluated = Remembering(method(alpha=2.0, num_classes=CLASSES, **options)), []
    accuracy = example.accuracy
    monkeypatch.setattr(
        example, "accuracy", lambda a, model, loader: evaluated.extend(loader) or accuracy(a, model, loader)
    )
    test = data(9, seed=1)
    seen = example.train(mix, data(19, seed=0), test, epochs=2, batch_size=8, accumulate=accumulate, cpu=True)
    assert [len(step["images"]) for step in seen] == [8, 8, 3] * 2
    assert len({round(float(step["targets"].max()), 6) for step in seen} - {1.0}) >= 1 + (method is fm.MixUp)
    for (x, y), step in zip(mix.batches, seen, strict=True):
        targets = soft(y, label_weights(step["images"].double(), x.double()), CLASSES)
        torch.testing.assert_close(step["targets"].double(), targets, rtol=0, atol=1e-3)
        assert not torch.equal(step["images"], x)
    whole = [torch.cat(column) for column in zip(*evaluated, strict=True)]
    assert torch.equal(whole[0], test.tensors[0].repeat(2, 1, 1, 1))
    assert torch.equal(whole[1], test.tensors[1].repeat(2))


def test_the_loss_and_the_accumulated_step(example, monkeypatch):
    """Every loss by hand from the logits, and the weights after one step of two batches by hand from the losses."""
    logits = []
    build = example.small_cnn

    def small_cnn():
        model = build()
        model[7].p = 0.0  # dropout
        model.register_forward_hook(lambda module, args, output: logits.append(output.detach().clone()))
        models.append(model)
        befores.append([p.detach().clone() for p in model.parameters()])
        return model

    models, befores = [], []
    monkeypatch.setattr(example, "small_cnn", small_cnn)
    monkeypatch.setattr(example, "accuracy", lambda *_: 0.0)
    mix = Remembering(fm.MixUp(num_classes=CLASSES))
    seen = example.train(mix, data(16, seed=0), data(4, seed=1), epochs=1, batch_size=8, accumulate=2, cpu=True)
    assert len(seen) == len(logits) == 2
    for (x, y), step, z in zip(mix.batches, seen, logits, strict=True):
        targets = soft(y, label_weights(step["images"].double(), x.double()), CLASSES)
        torch.testing.assert_close(step["loss"].double(), cross_entropies(z, targets).mean(), rtol=0, atol=1e-3)

    again = build()
    again[7].p = 0.0
    for parameter, before in zip(again.parameters(), befores[0], strict=True):
        parameter.data.copy_(before)
    halves = [torch.nn.functional.cross_entropy(again(step["images"]), step["targets"]) for step in seen]
    gradients = torch.autograd.grad(sum(halves) / 2, list(again.parameters()))
    for before, gradient, after in zip(befores[0], gradients, models[0].parameters(), strict=True):
        torch.testing.assert_close(after.detach(), before - 0.1 * gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"sampling": "device", "per": "sample"}])
def test_resuming(example, tmp_path, options):
    def training(epochs, checkpoint=None):
        mix = fm.RandomMix([fm.MixUp(), fm.CutMix()], num_classes=CLASSES, **options)
        return example.train(mix, data(19, 0), data(4, 1), epochs=epochs, batch_size=8, cpu=True, checkpoint=checkpoint)

    whole = training(3)
    first, rest = training(1, tmp_path / "saved"), training(3, tmp_path / "saved")
    for step, expected in zip(first + rest, whole, strict=True):
        assert all(torch.equal(step[key], expected[key]) for key in ("images", "targets", "loss"))


RANKS = """
    import sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    import torch
    from accelerate import Accelerator, debug_launcher
    import fusedmix as fm
    import train_accelerate as example

    data = torch.utils.data.TensorDataset(torch.zeros(32, 3, 8, 8), torch.arange(32) % 4)

    def train(epochs, checkpoint=None):
        mix = fm.MixUp(num_classes=4)
        return example.train(mix, data, data, epochs=epochs, batch_size=4, cpu=True, checkpoint=checkpoint)

    def both():
        out = Path(sys.argv[1])
        steps = (train(2), train(1, out / "saved"), train(2, out / "saved"))
        torch.save(steps, out / f"{Accelerator(cpu=True).process_index}.pt")

    debug_launcher(both, num_processes=2)
"""


@pytest.mark.thorough
def test_two_ranks(example, tmp_path):
    """Two ranks mix differently and go on as they would have."""
    run_script(write_script(tmp_path / "ranks.py", RANKS), tmp_path, EXAMPLE.parent)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for whole, first, rest in ranks:
        assert len(whole) == 8
        for step, expected in zip(first + rest, whole, strict=True):
            assert all(torch.equal(step[key], expected[key]) for key in ("images", "targets", "loss"))
    weights = [[{round(w, 5) for w in s["targets"].flatten().tolist()} - {0.0, 1.0} for s in rank[0]] for rank in ranks]
    assert any(weights[0])
    assert all(not a & b for a, b in zip(*weights, strict=True)), "two ranks share a draw"


@pytest.mark.thorough
def test_as_a_script(example, tmp_path):
    """The command of its docstring, on the CPU, and that it learns what the stripes are."""
    printed = run_script(EXAMPLE, "--epochs", 3, "--cpu", "--steps", tmp_path)
    accuracies = re.findall(r"epoch (\d): accuracy (\d\.\d+)", printed)
    assert [int(epoch) for epoch, _ in accuracies] == [0, 1, 2]
    assert float(accuracies[-1][1]) > 0.9
    assert len(torch.load(tmp_path / "steps-0.pt")) == 3 * 512 // 16
