"""Masks that are written out, for whoever wants to see them: as the reference's, and every number once."""

from __future__ import annotations

import math

import pytest
import torch

from batches import FMIXES, MASKS
from conftest import METHODS, TRITON_DEVICE
from fusedmix.backends import reference
from fusedmix.masks.family import packed
from fusedmix.methods import Families, Kind, Per
from oracle import assert_masks


@pytest.mark.parametrize("size", [(1,), (5000,), (7, 9), (3, 4500), (224, 224), (5, 3, 11)], ids=str)
@pytest.mark.parametrize("name", MASKS)
def test_masks(shim, name, size):
    for per in ("sample", "pair"):
        plan = MASKS[name](per=per, pairing="flip").sample(1 if math.prod(size) > 9999 else 40, size, seed=3)
        masks = plan.masks, int(plan.families), size, plan.per, plan.pixels
        assert_masks(shim.mask(*masks), reference.mask(*masks), plan.kind)


def test_every_level(shim):
    """Of soft masks that are stored: the quotient by 65535, rounded once."""
    level = torch.arange(2**16)
    pixels = torch.where(level < 2**15, level, level - 2**16).to(torch.int16)[None]  # by their bits
    records = packed(torch.tensor([int(Kind.FOURIER)]).int(), torch.zeros(1, 6).int(), torch.zeros(1, 2))
    out = shim.mask(records, Families.LEVELS, (2**16,), Per.SAMPLE, pixels)
    assert torch.equal(out[0], level.float() / 65535)


@pytest.mark.parametrize("per", ["batch", "pair", "sample"])
def test_stored_masks_are_written_out(of_triton, per):
    for name, size in (("FMix", (37,)), ("FMix-soft", (5, 7)), ("FMix-part", (3, 5, 11))):
        mix = FMIXES[name](per=per, pairing="flip", sampling="device", backend="reference")
        plan = mix.sample(5, size, seed=0).to(TRITON_DEVICE)
        arguments = plan.masks, int(plan.families), size, int(plan.per), plan.pixels
        assert torch.equal(of_triton.backend.mask(*arguments), reference.mask(*arguments))


@pytest.mark.parametrize("size", [(1,), (37,), (5, 7), (32, 32), (3, 17, 29)])
def test_masks_are_written_once(watched, size):
    plan = METHODS["RandomMix"](per="sample", sampling="device").sample(3, size, seed=0)
    masks = plan.masks, int(plan.families), size, int(plan.per), None
    out = watched.call("mask", *masks)
    assert_masks(out, reference.mask(*masks), plan.kind)
    watched.assert_written_once("out", out, [plan.masks])
