"""examples/train_patches_3d.py: CutMix cuboids in int16 patches of volumes and in their label maps."""

from __future__ import annotations

import importlib.util

import pytest
import torch

import fusedmix as fm
from trainers import ROOT, run_script

EXAMPLE = ROOT / "examples" / "train_patches_3d.py"
QUICK = {"volumes": 2, "side": 16, "size": 8, "width": 2, "epochs": 2, "steps": 3, "batch_size": 3}

pytestmark = pytest.mark.skipif(not EXAMPLE.exists(), reason="an installed package comes without its examples")


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("train_patches_3d", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cuboids():
    return fm.CutMix(axes=(-3, -2, -1), per="sample", pairing="random")


def test_scans_and_patches(example):
    generator = torch.Generator().manual_seed(0)
    volumes, maps = example.scans(2, 16, generator)
    assert (volumes.dtype, volumes.shape, maps.shape) == (torch.int16, (2, 1, 16, 16, 16), (2, 16, 16, 16))
    assert set(maps.unique().tolist()) == {0, 1, 2}
    density = [volumes[:, 0][maps == k].double().mean() for k in range(3)]
    assert density[0] < density[2] < density[1]
    for x, y in example.patches(volumes, maps, 8, 3, 4, generator):
        assert (x.dtype, x.shape, y.shape) == (torch.int16, (3, 1, 8, 8, 8), (3, 8, 8, 8))
        assert (y[0] != 0).any(), "the first patch of a batch is around a labelled voxel"


def test_patches_and_maps_are_cut_by_one_plan(example, monkeypatch):
    """Each voxel that the model and the loss see is of one scan in both; the volumes that measure are not mixed."""
    seen, real = [], fm.mix_masks
    monkeypatch.setattr(fm, "mix_masks", lambda y, plan: seen.append((plan, y, real(y, plan))) or seen[-1][2])
    blended, mix = [], fm.mix
    monkeypatch.setattr(fm, "mix", lambda x, plan: blended.append((plan, x, mix(x, plan))) or blended[-1][2])
    example.train(**QUICK, mix=cuboids())
    assert len(seen) == len(blended) == QUICK["epochs"] * QUICK["steps"]
    cut = 0
    for (plan, y, cut_maps), (same, x, cut_images) in zip(seen, blended, strict=True):
        assert same is plan
        own = plan.mask() == 1
        assert torch.equal(cut_maps, torch.where(own, y, y[plan.partner]))
        assert torch.equal(cut_images, torch.where(own.unsqueeze(1), x, x[plan.partner]))
        assert (cut_maps.dtype, cut_images.dtype) == (torch.uint8, torch.int16)
        cut += int((~own).sum())
    assert cut


def test_two_runs_are_the_same(example):
    first, second = (example.train(**QUICK, mix=cuboids(), seed=3) for _ in range(2))
    assert first == second
    assert first != example.train(**QUICK, mix=None, seed=3)


@pytest.mark.thorough
def test_it_learns(example):
    """What is measured is the Dice coefficient of volumes that were not trained on."""
    of = {"volumes": 6, "side": 24, "size": 16, "width": 4, "epochs": 3, "steps": 20}
    history = example.train(**of, mix=cuboids())
    assert history[-1][0] < history[0][0] - 0.2
    assert history[-1][1][0] > 0.5


def test_quick_is_a_program():
    printed = run_script(EXAMPLE, "--quick")
    assert printed.count("Dice of vessels") == 2
