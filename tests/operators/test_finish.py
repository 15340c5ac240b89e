"""Batches that are finished by the CUDA kernels, whose source runs on the CPU: as the reference finishes them.

The shim raises where memory is touched that is nobody's, and where one thread's access races with another's.
"""

from __future__ import annotations

import itertools
from random import Random

import pytest
import torch

import fusedmix as fm
from fusedmix import erasing
from fusedmix.arguments import MaskArguments
from fusedmix.backends import finished as reference
from fusedmix.erasing import Word
from fusedmix.finishing import MOST_HOLES, Erase, Finish
from fusedmix.methods import Families
from operators.on_shim import assert_written_once

# Families whose masks kernels make in float32 by functions that differ between libraries in the last bit.
INEXACT = Families.GAUSSIANS | Families.SMOOTH
MIXES = {
    "nothing": None,
    "MixUp": fm.MixUp,
    "CutMix": fm.CutMix,
    "HMix": fm.HMix,
    "GMix": fm.GMix,
    "SmoothMix": fm.SmoothMix,
    "GridMix": lambda **options: fm.GridMix(cells=(2, 3), **options),
    "FMix": fm.FMix,
    "soft FMix": lambda **options: fm.FMix(max_soft=0.3, **options),
}
# How a batch that comes lies in memory: which kernels take it, test_every_kernel_is_met() says.
LAYOUTS = ("NCHW", "NHWC", "channels_last", "rows apart", "channels apart", "one pixel off", "one sample")


def masks_of(plan):
    hints = int(plan.families), 0 if plan.constant else 2, int(plan.pairing), int(plan.per)
    return MaskArguments(plan.partner, plan.masks, *hints, plan.pixels)


def laid_out(layout, images):
    """(B, C, H, W) images in other memory, and how they are said to lie."""
    if layout == "NHWC":
        return images.permute(0, 2, 3, 1).contiguous(), "NHWC"
    if layout == "channels_last":
        return images.contiguous(memory_format=torch.channels_last), "NCHW"
    if layout == "rows apart":
        return images.repeat_interleave(2, 2)[:, :, ::2], "NCHW"
    if layout == "channels apart":
        return images.permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3), "NCHW"
    if layout == "one pixel off":
        return torch.cat((images[..., :1], images), -1)[..., 1:], "NCHW"
    if layout == "one sample":
        return images[:1].expand(images.shape), "NCHW"
    return images.contiguous(), "NCHW"


def case(seed, mix, dtype, layout):
    """Arguments of finish, or of finish_mix, drawn from a seed."""
    chance = Random(seed)
    torch.manual_seed(seed)
    batch, channels = chance.choice((0, 1, 2, 5, 5)), chance.choice((1, 2, 3, 3, 3, 5))
    height, width = chance.choice((1, 3, 4)), chance.choice((16, 32, 48, 8, 20, 7, 1))
    shape = (batch, channels, height, width)
    images = torch.randint(0, 256, shape, dtype=torch.uint8) if dtype == torch.uint8 else torch.randn(shape).to(dtype)
    x, input_format = laid_out(layout, images)
    value = chance.choice((0.7, tuple(range(channels)), "random", "pixel"))
    erase = chance.choice((None, Erase(0.7, (0.1, 0.6), value=value, count=chance.choice((1, (2, 3), MOST_HOLES)))))
    finish = Finish(
        chance.choice((None, ((0.4,) * channels, tuple(0.2 + 0.1 * c for c in range(channels))))),
        chance.choice((torch.float32, torch.float16, torch.bfloat16)),
        chance.choice((None, torch.channels_last, torch.contiguous_format)),
        hflip=chance.choice((0.0, 0.5)),
        erase=erase,
        input_format=input_format,
    )
    draws = None
    if finish.is_random:
        draws = erasing.draw(erasing.chances(finish), torch.tensor(seed), batch, (height, width))
    how = finish.arguments(x, draws)
    if mix is None or min(height, width) < 3:
        return x, how, None
    options = {"per": chance.choice(("batch", "sample")), "pairing": chance.choice(("roll", "flip", "random"))}
    plan = mix(num_classes=3, backend="reference", **options).sample(batch, (height, width), seed=seed)
    return x, how, masks_of(plan)


def expected(x, how, plan):
    return reference.finish(x, how) if plan is None else reference.finish_mix(x, how, plan)


def assert_finished(shim, x, how, plan, **where):
    """What the kernel makes is what the reference makes, written once; returns it."""
    out = shim.finish(x, *how, **where) if plan is None else shim.finish_mix(x, *how, *plan, **where)
    wanted = expected(x, how, plan)
    assert (out.dtype, out.shape, out.stride()) == (wanted.dtype, wanted.shape, wanted.stride())
    if out.numel() > 0:
        assert_written_once(shim, "out", out)
    if how.fill == 0 and (plan is None or plan.families & INEXACT == 0):
        assert torch.equal(out, wanted)
    else:
        # Weights and fills differ in the last bits of float32, and what comes of them may be rounded the other way.
        scale = 300 * how.affine[0].abs().max() if x.dtype == torch.uint8 else 10 * how.affine[0].abs().max()
        bound = max(float(scale), 6.0) * max(torch.finfo(how.dtype).eps, 2e-6)
        assert out.numel() == 0 or (out.double() - wanted.double()).abs().max() <= bound
    return out


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_as_the_reference(shim, dtype, layout):
    """By every family, of sizes that fit vectors and of others, flipped and erased or not."""
    first = 1000 * LAYOUTS.index(layout)
    for seed, mix in zip(range(first, first + 5 * len(MIXES)), itertools.cycle(MIXES.values()), strict=False):
        assert_finished(shim, *case(seed, mix, dtype, layout))


def colours(seed, layout, memory_format, random, mix):
    """Three channels of bytes, as fast kernels take them."""
    torch.manual_seed(seed)
    x, input_format = laid_out(layout, torch.randint(0, 256, (5, 3, 3, 32), dtype=torch.uint8))
    statistics = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    erase = Erase(0.6, (0.1, 0.5), value=("random", "pixel", 0.3)[seed % 3], count=(1, 2)) if random else None
    dtype = (torch.bfloat16, torch.float16, torch.float32)[seed % 3]
    finish = Finish(statistics, dtype, memory_format, 0.5 * random, erase, input_format)
    draws = None
    if random:
        draws = erasing.draw(erasing.chances(finish), torch.tensor(seed), 5, (3, 32))
    plan = mix(num_classes=3, backend="reference", per="sample", pairing="random").sample(5, (3, 32), seed=seed)
    return x, finish.arguments(x, draws), masks_of(plan)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("random", [False, True], ids=["as it is", "flipped and erased"])
def test_colours(shim, random, layout, memory_format):
    """Bytes of three channels, each layout into each: 16 pixels of all three at a time."""
    for seed, mix in enumerate((fm.MixUp, fm.CutMix, fm.HMix, fm.GMix, fm.FMix, fm.MixUp)):
        assert_finished(shim, *colours(seed, layout, memory_format, random, mix))
        assert (shim.shape.width, shim.shape.colours) == (16, True)


def test_every_kernel_is_met(shim):
    """Which batches are finished 16 pixels at a time, in other vectors, and pixel by pixel."""
    bytes_, floats = torch.uint8, torch.float32

    def width(shape, dtype=bytes_, layout="NCHW", memory_format=None, draws=False):
        x, input_format = laid_out(layout, torch.zeros(shape, dtype=dtype))
        finish = Finish(None, memory_format=memory_format, input_format=input_format, hflip=float(draws))
        given = erasing.draw(erasing.chances(finish), torch.tensor(1), shape[0], shape[2:]) if draws else None
        assert_finished(shim, x, finish.arguments(x, given), None)
        return shim.shape.width, shim.shape.colours

    assert width((2, 3, 3, 16)) == width((2, 3, 3, 16), layout="NHWC") == (16, True)
    assert width((2, 3, 4, 12)) == (16, True)  # where rows are treated alike they are one row
    assert width((2, 3, 4, 12), draws=True) == (4, False)
    assert width((2, 3, 3, 16), layout="rows apart") == width((2, 3, 3, 16), layout="channels apart") == (16, True)
    assert width((2, 3, 3, 16), layout="one sample") == (16, True)
    assert width((2, 3, 3, 16), layout="one pixel off") == width((2, 3, 1, 7)) == (1, False)
    assert width((2, 1, 3, 16)) == width((2, 4, 3, 16)) == (16, False)
    assert width((2, 4, 3, 16), layout="NHWC") == (1, False)
    assert width((2, 3, 3, 16), floats) == (4, False)
    assert width((2, 3, 3, 16), torch.float16) == width((2, 3, 3, 16), torch.bfloat16) == (8, False)
    assert width((2, 3, 3, 16), floats, memory_format=torch.channels_last) == (1, False)


def test_alone_nothing_is_read_twice(shim):
    """And of a mix no more than each sample and its partner, or one of them where a box has all of a vector."""
    x = torch.randint(0, 256, (4, 3, 4, 32), dtype=torch.uint8)
    how = Finish(None).arguments(x)
    assert_finished(shim, x, how, None)
    assert (shim.counts("x", x)[0] == 1).all()
    plan = fm.MixUp(num_classes=3, backend="reference").sample(4, (4, 32), lam=0.5)
    assert_finished(shim, x, how, masks_of(plan))
    assert (shim.counts("x", x)[0] == 2).all()
    plan = fm.CutMix(num_classes=3, backend="reference").sample(
        4, (4, 32), lam=0.0
    )  # all of it is the partner's, or but the last row
    assert_finished(shim, x, how, masks_of(plan))
    assert (shim.counts("x", x)[0] == 1).float().mean() >= 0.25


@pytest.mark.parametrize("batch", [3, 45, 70])
@pytest.mark.parametrize("mix", [fm.MixUp, fm.HMix, fm.FMix])
def test_plans_on_the_host(shim, mix, batch):
    """They travel in a kernel's arguments, or, of large batches, by one upload; with their flips and holes."""
    x = torch.randint(0, 256, (batch, 3, 3, 16), dtype=torch.uint8)
    finish = Finish(((0.4,) * 3, (0.3,) * 3), torch.bfloat16, hflip=0.5, erase=Erase(0.5, (0.1, 0.6), value=0.5))
    draws = erasing.draw(erasing.chances(finish), torch.tensor(5), batch, (3, 16))
    plan = mix(num_classes=3, backend="reference", per="sample", pairing="random").sample(batch, (3, 16), seed=1)
    arguments = x, finish.arguments(x, draws), masks_of(plan)
    on_host, on_device = (assert_finished(shim, *arguments, on_host=where) for where in (True, False))
    assert torch.equal(on_host, on_device)
    assert shim.kernels() == ["finishing"]


@pytest.mark.parametrize("width", [32, 5])
def test_holes_beyond_the_record_are_not_looked_at(shim, width):
    """Records on a device cannot be checked: what they say touches no memory but theirs."""
    x = torch.randint(0, 256, (3, 3, 2, width), dtype=torch.uint8)
    finish = Finish(None, hflip=0.5, erase=Erase(1.0, (0.3, 0.6), value="pixel", count=2))
    draws = erasing.draw(erasing.chances(finish), torch.tensor(1), 3, (2, width))
    most = draws.clone()
    draws[:, Word.HOLES] = torch.tensor([3, 2**31 - 1, 2])
    most[:, Word.HOLES] = 2
    how = finish.arguments(x, draws)
    assert torch.equal(shim.finish(x, *how), shim.finish(x, *how._replace(draws=most)))
    draws[:, Word.HOLES] = -1
    assert torch.equal(shim.finish(x, *how), expected(x, how._replace(draws=draws[:, : erasing.HEAD]), None))
    draws[:] = torch.iinfo(torch.int32).max
    shim.finish(x, *how)


@pytest.mark.parametrize("erase", [None, Erase(0.6, (0.02, 0.9), (0.2, 4.0), count=(1, 5)), Erase(1.0)])
def test_draws(shim, erase):
    """Those of the reference to the last bit, whether the seed is where kernels read it or comes with the launch."""
    numbers = erasing.chances(Finish(None, hflip=0.5, erase=erase))
    chances, holes = torch.tensor(numbers, dtype=torch.float64), int(numbers.most)
    for seed, batch, size in (
        (0, 300, (24, 40)),
        (-1, 128, (224, 224)),
        (2**62, 5, (1, 5)),
        (5, 1, (700, 3)),
        (7, 0, (8, 8)),
    ):
        request = batch, *size, torch.device("cpu")
        wanted = reference.draw_finish(chances, holes, torch.tensor(seed), *request)
        for given in (torch.tensor(seed), seed):
            assert torch.equal(shim.draw_finish(chances, holes, given, *request), wanted)
        assert shim.kernels() == ["flips"] * (batch > 0)
