"""What the tests of the trainers share: a batch's masks, labels and loss, found again from what a trainer showed."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch.utils.data import default_collate

import fusedmix as fm

ROOT = Path(__file__).resolve().parents[1]


def images_and_labels(samples, classes, side=6, seed=0):
    """Random float64 images, from whose mixtures masks can be found again, and labels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(samples, 2, side, side, dtype=torch.float64, generator=generator)
    return images, torch.randint(classes, (samples,), generator=generator)


def label_weights(mixed, images):
    """(B,) label weights: the mean of the mask that made `mixed` of `images` and their partners by roll; 1 for a sample
    that is its own partner, which any mask leaves as it is."""
    partners = images.roll(1, 0)
    if len(images) < 2:
        assert torch.equal(mixed, images)
        return torch.ones(len(images), dtype=torch.float64)
    mask = ((mixed - partners) / (images - partners)).double()
    assert mask.min() > -1e-3
    assert mask.max() < 1 + 1e-3
    assert torch.allclose(mask, mask[:, :1].expand_as(mask), atol=1e-3)  # one for all channels
    return mask.flatten(1).median(1).values if _constant(mask) else mask.round().flatten(1).mean(1)


def _constant(mask):
    return bool((mask.flatten(1).std(1) < 1e-3).all())


def soft(labels, weights, classes):
    """(B, K) float64 targets by hand."""
    one_hot = torch.eye(classes, dtype=torch.float64)[labels]
    return weights[:, None] * one_hot + (1 - weights)[:, None] * one_hot.roll(1, 0)


def cross_entropies(logits, targets, smoothing=0.0):
    """(B,) by hand."""
    targets = (1 - smoothing) * targets + smoothing / targets.shape[1]
    return -(targets * logits.double().log_softmax(1)).sum(1)


def run_script(script, *args):
    """Runs Python text in a process of its own, and returns what it printed."""
    done = subprocess.run(
        [sys.executable, str(script), *map(str, args)], capture_output=True, text=True, timeout=240, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def write_script(path, text):
    path.write_text(textwrap.dedent(text))
    return path


def import_without(monkeypatch, integration, *libraries):
    """Imports an integration anew as if libraries were not installed."""
    for library in libraries:
        for name in [name for name in sys.modules if name == library or name.startswith(library + ".")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"fusedmix.integrations.{integration}", raising=False)
    with pytest.raises(ImportError) as caught:
        importlib.import_module(f"fusedmix.integrations.{integration}")
    return str(caught.value)


class Collate:
    """A collate_fn that mixes; at module level, so that spawned workers can import it."""

    def __init__(self, mix):
        self.mix = mix

    def __call__(self, samples):
        return self.mix(*default_collate(samples))


class Halving(fm.schedules.StepAlpha):
    """α of the first epoch, halved in every later one; remembers for which epochs it was asked."""

    def __init__(self, mix, alpha):
        self.epochs = []
        super().__init__(mix, alpha, step_size=1, gamma=0.5)
        self.epochs.clear()

    def step(self, epoch=None):
        self.epochs.append(epoch)
        super().step(epoch)

    def state_dict(self):
        return {name: value for name, value in super().state_dict().items() if name != "epochs"}
