"""How unlike pixels are at borders of blocks: against loops over patches, and every backend against the reference."""

from __future__ import annotations

import itertools

import pytest
import torch

from batches import DTYPES
from callers import BACKENDS, each_backend
from fusedmix.backends.borders import border_costs
from operators.on_shim import assert_written_once, orders

LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "slices": lambda x: torch.stack((x, x), 4).flatten(3)[..., ::2],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every other sample": lambda x: torch.cat((x, x)).unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)[::2],
}
# (B, C, H, W) and cells: patches of 4x4, 3x1 and 2x4 pixels; blocks of one patch and of one pixel; of many channels.
SIZES = (
    ((3, 3, 16, 24), (2, 3)),
    ((2, 1, 12, 14), (4, 2)),
    ((4, 2, 20, 8), (2, 2)),
    ((3, 3, 8, 16), (2, 4)),
    ((2, 5, 3, 4), (3, 4)),
    ((1, 2, 8, 8), (1, 2)),
    ((2, 3, 8, 8), (1, 1)),
    ((0, 3, 8, 8), (2, 2)),
)
# More patches along a border than any backend takes at a time.
LONG = (((2, 3, 8, 528), (2, 2)), ((2, 2, 536, 8), (1, 2)))


def given(shape, dtype=torch.float32, layout="contiguous", seed=0):
    """Images, partners with repeats and scales."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=g)
    x = (255 * x).to(dtype) if dtype == torch.uint8 else (4 * x - 2).to(dtype)
    partner = torch.randint(max(1, shape[0]), shape[:1], generator=g)
    return LAYOUTS[layout](x), partner, 0.1 + torch.rand(shape[1], generator=g)


def unlike(x, partner, scale, cells):
    """By loops in float64: the mean over all pairs of patches of one border."""
    shown, (b, _, height, width), (h, w) = x.double() * scale.double()[:, None, None], x.shape, cells
    high, wide = height // h, width // w
    near_y, near_x = (max(n for n in (1, 2, 3, 4) if side % n == 0) for side in (high, wide))
    right, down = (torch.zeros(4, *of, dtype=torch.float64) for of in ((b, h, w - 1), (b, h - 1, w)))
    for i, (way, (before, behind)) in itertools.product(range(b), enumerate(itertools.product((0, 1), repeat=2))):
        images = shown[i], shown[int(partner[i])]
        for row, column in itertools.product(range(h), range(w)):
            y, z = high * row, wide * column
            if column + 1 < w:
                pairs = [
                    images[before][:, p : p + near_y, z + wide - near_x : z + wide].mean((1, 2))
                    - images[behind][:, p : p + near_y, z + wide : z + wide + near_x].mean((1, 2))
                    for p in range(y, y + high, near_y)
                ]
                right[way, i, row, column] = torch.stack(pairs).abs().mean()
            if row + 1 < h:
                pairs = [
                    images[before][:, y + high - near_y : y + high, p : p + near_x].mean((1, 2))
                    - images[behind][:, y + high : y + high + near_y, p : p + near_x].mean((1, 2))
                    for p in range(z, z + wide, near_x)
                ]
                down[way, i, row, column] = torch.stack(pairs).abs().mean()
    return right, down


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_reference_is_the_mean_over_patches(dtype):
    """Float32 rounds each of fewer than 200 sums by 2^-24 of what is summed."""
    for shape, cells in (*SIZES, LONG[0]):
        x, partner, scale = given(shape, dtype)
        largest = float(x.double().abs().max()) if x.numel() else 0.0
        out = border_costs(x, partner, scale, cells)
        for found, expected in zip(out, unlike(x, partner, scale, cells), strict=True):
            assert found.dtype == torch.float32
            assert found.is_contiguous()
            assert found.shape == expected.shape
            assert torch.allclose(found.double(), expected, rtol=0, atol=200 * 2**-24 * largest)


@each_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_backend_finds_the_same(backend, dtype):
    """To the bit, in every layout."""
    sizes = (*SIZES, *LONG) if backend.fast else SIZES
    for (shape, cells), layout in itertools.product(sizes, LAYOUTS):
        images = given(shape, dtype, layout)
        out = backend.border_costs(*(t.to(backend.device) for t in images), cells)
        for found, expected in zip(out, border_costs(*images, cells), strict=True):
            assert torch.equal(found.cpu(), expected), (shape, cells, layout)


def test_many_patches_on_the_shim(shim):
    for shape, cells in LONG:
        images = given(shape)
        assert all(map(torch.equal, shim.border_costs(*images, cells), border_costs(*images, cells)))


def test_batches_that_threads_share(cpp):
    """Of a size that each takes a part of, and NaN stays with the samples that have it."""
    x, partner, scale = given((40, 3, 64, 48))
    x[7, 1, 15, 18] = float("nan")  # near a border either way
    out = cpp.border_costs(x, partner, scale, (4, 3))
    for found, expected in zip(out, border_costs(x, partner, scale, (4, 3)), strict=True):
        assert torch.equal(found.isnan(), expected.isnan())
        assert found.isnan().any()
        assert torch.equal(found.nan_to_num(), expected.nan_to_num())


def test_every_difference_is_written_once(shim):
    right, down = shim.border_costs(*given((2, 2, 8, 12)), (2, 3))
    assert shim.kernels() == ["bordercosts"]
    assert_written_once(shim, "right", right)
    assert_written_once(shim, "down", down)


def test_any_order_of_threads(shim):
    images = given((2, 2, 8, 8), seed=1)
    expected = border_costs(*images, (2, 2))
    for _ in orders(shim, 3):
        assert all(map(torch.equal, shim.border_costs(*images, (2, 2)), expected))


def test_a_partner_that_is_none_is_the_sample_itself(shim):
    """Where only the host could have refused it."""
    x, _, scale = given((2, 2, 8, 8))
    out = shim.border_costs(x, torch.tensor([-1, 2]), scale, (2, 2))
    assert all(map(torch.equal, out, border_costs(x, torch.tensor([0, 1]), scale, (2, 2))))


def wrong(cells=(2, 3), **changes):
    x, partner, scale = given((2, 3, 8, 12))
    return *{"x": x, "partner": partner, "scale": scale, **changes}.values(), cells


WRONG = {
    "whole numbers": (wrong(x=torch.zeros(2, 3, 8, 12, dtype=torch.int32)), "int32"),
    "no channels": (wrong(x=torch.zeros(2, 0, 8, 12)), "x must be (B, C, H, W) with at least one channel"),
    "a plane": (wrong(x=torch.zeros(2, 8, 12)), "x must be (B, C, H, W)"),
    "no pixels": (wrong(x=torch.zeros(2, 3, 0, 12)), "a spatial side must be"),
    "three cells": (wrong(cells=(2, 3, 1)), "the number of cells must be in [2, 2], but got 3"),
    "17 cells": (wrong(cells=(2, 17)), "the blocks along a side must be in [1, 16], but got 17"),
    "no cells": (wrong(cells=(0, 3)), "the blocks along a side must be in [1, 16], but got 0"),
    "cells beside": (wrong(cells=(3, 3)), "cells must divide the sides of x, (8, 12), but got (3, 3)"),
    "a partner each": (wrong(partner=torch.tensor([0])), "partner must be int64 of shape (2,)"),
    "int32 partners": (wrong(partner=torch.zeros(2, dtype=torch.int32)), "partner must be int64"),
    "a third": (wrong(partner=torch.tensor([0, 2])), "partner must be in [0, 2), but got 2"),
    "one scale": (wrong(scale=torch.ones(1)), "scale must be float32 of shape (3,)"),
    "scales of float64": (wrong(scale=torch.ones(3).double()), "scale must be float32"),
}


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b.called in ("reference", "cpp")], ids=lambda b: b.called)
@pytest.mark.parametrize("case", WRONG)
def test_what_is_refused(backend, case):
    args, said = WRONG[case]
    with pytest.raises((ValueError, RuntimeError)) as caught:
        backend.operators.border_costs(*args)
    assert said in str(caught.value)
