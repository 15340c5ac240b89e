"""What a batch becomes: of every dtype, layout and size, out of place, in place and as a gradient.

A result is expected to the last bit: masks are the kernels' own (compared with the reference's in test_masks.py), the
difference of two samples is rounded to the compute type, and w·difference + partner is rounded once.
"""

from __future__ import annotations

import itertools
import math
from random import Random

import pytest
import torch

import fusedmix as fm
from batches import (
    DRAWS,
    DTYPES,
    FLOATS,
    FORMULAS,
    LAYOUTS,
    MASKS,
    SAME_MASKS,
    SHAPES,
    channels_last,
    contiguous,
    each_dtype,
    images_of,
    in_turn,
    plan_for,
    values,
)
from conftest import METHODS
from fusedmix.arguments import MaskArguments
from fusedmix.backends import reference
from fusedmix.masks.family import kind as kind_of
from fusedmix.masks.family import packed
from fusedmix.methods import Families, Pairing, Per
from operators.on_shim import H200, SHARED, assert_traffic, other_shapes, weights_of
from oracle import EXACT, MASK_ERROR, alike, assert_adjoint, assert_mixed

LARGER = (((131, 2, 3), 1), ((33, 3, 4, 4), 2), ((6, 3, 37, 61), 2), ((13, 16, 1, 16), 2))


def assert_near_reference(out, reference_out, x, masks):
    """Within the last places of its own type, which the reference rounds to as well; and what masks may differ by."""
    curved = not bool(torch.isin(kind_of(masks[1]), EXACT).all())
    error = (out.double() - reference_out.double()).abs()
    if x.dtype == torch.uint8:
        assert error.max() <= curved
        return
    size = x.double().abs() + x[masks[0]].double().abs()
    allowed = 2 * torch.finfo(x.dtype).eps + (MASK_ERROR if curved else 0)
    assert (error <= allowed * size).all()


@pytest.mark.parametrize(("per", "pairing"), DRAWS)
@pytest.mark.parametrize("name", MASKS)
def test_every_dtype_and_layout(shim, name, per, pairing):
    """Out of place, in place and adjoint. Sizes, chips, ways and how the plan travels alternate. Each draw has a third
    of the dtypes and layouts, and so every mask has all of them more than three times."""
    turn = DRAWS.index((per, pairing))
    for number, (dtype, layout) in in_turn(itertools.product(DTYPES, LAYOUTS), turn, 3):
        i = turn + 3 * list(MASKS).index(name) + number
        shape, spatial = (SHAPES + LARGER)[i % len(SHAPES + LARGER)]
        shim.multiprocessors = (1, 2, H200)[i % 3]
        shim.shared_bytes = (SHARED, 2048, 1)[i // 3 % 3]  # for columns of any width, narrow ones, and none
        shim.module.seed(i)
        masks = plan_for(MASKS[name], shape, spatial, per, pairing, seed=i)
        x = layout(values(shape, dtype, seed=i))
        w = weights_of(shim, x, masks)
        how = {"on_host": i % 2 == 0 and shape[0] < 60}
        out = shim.mix(x, *masks, **how)
        assert out.stride() == torch.empty_like(x).stride()
        assert_mixed(out, x, w, masks[0])
        assert_near_reference(out, reference.mix(x, MaskArguments(*masks)), x, masks)
        if dtype in FLOATS:
            assert_adjoint(shim.mix_adjoint(x, *masks, **how), x, w, masks[0])
        again = layout(x)
        shim.mix_(x, *masks, **how)
        assert alike(x, out)
        others = other_shapes(shim, x, masks[4])
        shim.mix_(again, *masks, **how, shape=others[i % len(others)])
        assert alike(again, out)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 32, 513])
@pytest.mark.parametrize("pairing", ["roll", "flip", "random", "cross_class"])
@pytest.mark.parametrize("name", ["MixUp", "CutMix", "HMix-paper", "GMix-released", "RandomMix", "FMix"])
def test_sizes_of_a_batch(shim, name, pairing, n):
    """Of tiny images, by every kernel that is compiled for a set of families."""
    for dtype, (dim, width) in zip(DTYPES, ((1, 8), (2, 8), (1, 24), (2, 2), (2, 16)), strict=True):
        shape = (n, 1, dim, width)
        masks = plan_for(MASKS[name], shape, 2, "sample", pairing, seed=n)
        before = values(shape, dtype)
        w = weights_of(shim, before, masks) if n else before
        for on_chip in (SHARED, 1):
            shim.shared_bytes = on_chip
            out = shim.mix(before, *masks)
            x = before.clone()
            shim.mix_(x, *masks)
            if n == 0:
                assert shim.kernels() == []
                continue
            assert_mixed(out, before, w, masks[0])
            assert alike(x, out)
            assert_traffic(shim, x, w, masks)
            if dtype in FLOATS and on_chip == SHARED:
                assert_adjoint(shim.mix_adjoint(before, *masks), before, w, masks[0])


@pytest.mark.parametrize("pairing", ["roll", "flip", "random"])
def test_large_batches(shim, pairing):
    """More samples than a block has threads, and so many that no column of them fits a block."""
    for i, (n, name) in enumerate(itertools.product((1500, 8192, 20_000), ("CutMix", "MixUp"))):
        shape = (n, 1, 2, 4) if n < 9000 else (n, 1, 1, 4)
        masks = plan_for(MASKS[name], shape, 2, "sample", pairing, seed=i)
        before = values(shape, torch.float32)
        w = weights_of(shim, before, masks)
        x = before.clone()
        shim.mix_(x, *masks)
        assert_mixed(x, before, w, masks[0])
        if pairing == "random":
            assert shim.shape.way == (shim.module.Way.TILE if n < 3000 else shim.module.Way.SLICES)
        if n == 1500:
            assert_adjoint(shim.mix_adjoint(before, *masks), before, w, masks[0])


def test_uint8_of_every_pair(shim):
    """All 65536 pairs of bytes, by weights that are simple, next to a half and drawn: as if exact, ties to even."""
    grid = torch.arange(256, dtype=torch.uint8).expand(256, 256)
    half = torch.tensor(0.5)
    around = [half, *(torch.nextafter(half, torch.tensor(side)) for side in (0.0, 1.0))]
    drawn = torch.rand(20, generator=torch.Generator().manual_seed(0))
    simple = torch.tensor([0.0, 1.0, 2.0**-24, 1 - 2.0**-24, 1 / 3, *(k / 16 for k in range(1, 16))])
    weight = torch.cat([torch.stack(around), simple, drawn])
    n = 2 * len(weight)
    x = torch.stack([grid, grid.T]).repeat(len(weight), 1, 1)[:, None].contiguous()
    partner = torch.arange(n).view(-1, 2).flip(1).flatten()
    value = torch.stack([weight.repeat_interleave(2), torch.zeros(n)], 1)
    records = packed(torch.zeros(n).int(), torch.zeros(n, 6).int(), value)
    for families, ndim in ((Families.CONSTANTS, 0), (FORMULAS, 2)):  # a kernel of constants, and one of everything
        masks = partner, records, families, ndim, Pairing.RANDOM, Per.SAMPLE
        w = value[:, :1, None, None].expand(x.shape)
        assert_mixed(shim.mix(x, *masks), x, w, partner)


@each_dtype
@pytest.mark.parametrize("pairing", ["roll", "flip", "random"])
def test_expanded_input(shim, dtype, pairing):
    """Memory that several elements share is read only: out of place, and not by the samples (expand the channels)."""
    masks = plan_for(METHODS["HMix-paper"], (5, 3, 6, 8), 2, "sample", pairing)
    for x in (values((5, 1, 6, 8), dtype).expand(5, 3, 6, 8), values((1, 3, 6, 8), dtype).expand(5, 3, 6, 8)):
        w = weights_of(shim, x, masks)
        assert_mixed(shim.mix(x, *masks), x, w, masks[0])


@each_dtype
def test_outputs_of_other_strides(shim, dtype):
    """Source and destination need not lie alike in memory."""
    masks = plan_for(METHODS["CutMix"], (5, 3, 6, 8), 2, "sample", "random")
    x = values((5, 3, 6, 8), dtype)
    w = weights_of(shim, x, masks)
    for source, target in itertools.product(LAYOUTS, repeat=2):
        out = target(torch.zeros_like(x))
        shim.mix_into(out, source(x), *masks)
        assert_mixed(out, x, w, masks[0])


@each_dtype
@pytest.mark.parametrize("pairing", ["roll", "flip", "random"])
@pytest.mark.parametrize("per", ["batch", "sample"])
@pytest.mark.parametrize("name", ["CutMix", "FMix"])
def test_copies_are_copies(shim, name, dtype, per, pairing):
    """Whatever the bits: where weights are 0 and 1 a NaN, infinity or -0 is copied, and reaches nobody else.

    In 16 bits a NaN stays one, but keeps its bits only in vectors that are copied, and where CutMix has its own kernel.
    """
    for layout, width in itertools.product((contiguous, channels_last), (16, 18, 15)):
        shape = (7, 3, 6, width)
        bits = torch.randint(0, 256, (math.prod(shape) * dtype.itemsize,), dtype=torch.uint8)
        before = bits.view(dtype).view(shape)
        masks = plan_for(MASKS[name], shape, 2, per, pairing, seed=5)
        w = weights_of(shim, before, masks)
        expected = torch.where(w == 0, before[masks[0]], before)
        x = layout(before)
        out = shim.mix(x, *masks)
        shim.mix_(x, *masks)
        whole = shim.shape.width * dtype.itemsize == 16
        for mixed in (out, x):
            if dtype.itemsize == 2 and not (name == "CutMix" and whole):
                assert torch.equal(mixed.isnan(), expected.isnan())
                number = ~expected.isnan()
                assert alike(mixed[number], expected[number])
            else:
                assert alike(mixed, expected)


def test_empty_batches(shim):
    for shape in ((0, 3, 4, 4), (3, 0, 4, 4)):
        x = torch.zeros(shape)
        masks = plan_for(METHODS["CutMix"], (shape[0], 3, 4, 4), 2, "sample", "random")
        assert shim.mix(x, *masks).shape == shape
        shim.mix_(x, *masks)
        assert shim.kernels() == []


def test_random_batches(shim):
    """Whatever shape_of chooses for sizes, types and chips drawn at random: every way."""
    random, taken = Random(0), set()
    for seed in range(120):
        shape = (random.randint(1, 40), random.randint(1, 6), random.randint(1, 12), random.randint(1, 40))
        name, (per, pairing) = random.choice(list(METHODS)), random.choice(DRAWS)
        dtype, layout = random.choice(DTYPES), random.choice(LAYOUTS)
        shim.multiprocessors, shim.shared_bytes = random.choice((1, 3, 8, H200)), random.choice((SHARED, 4096, 256))
        masks = plan_for(METHODS[name], shape, 2, per, pairing, seed=seed)
        before = values(shape, dtype, seed=seed)
        x, w = layout(before), weights_of(shim, before, masks)
        shim.mix_(x, *masks)
        taken.add(shim.shape.way)
        assert_mixed(x.clone(), before, w, masks[0])
        if layout is contiguous:
            assert_traffic(shim, x, w, masks)
    way = shim.module.Way
    assert taken >= {way.PAIRS, way.ROLL, way.TILE, way.SLICES}


@pytest.mark.usefixtures("cpp")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_in_any_order(method, dtype):
    """Batches whose memory is in an order that no framework makes, and inputs that repeat themselves."""
    x = images_of((4, 3, 6, 5), dtype)
    plan = method(per="sample", pairing="random").sample(4, (6, 5), seed=3)
    expected = fm.mix(x, plan, backend="cpp")
    for order in itertools.permutations(range(4)):
        turned = x.permute(order).clone(memory_format=torch.contiguous_format)
        turned = turned.permute([order.index(d) for d in range(4)])
        assert torch.equal(fm.mix(turned, plan, backend="cpp"), expected)
        assert torch.equal(fm.mix_(turned, plan, backend="cpp"), expected)
    for repeated in (x[:1].expand(4, 3, 6, 5), x[:, :1].expand(4, 3, 6, 5), x[..., :1].expand(4, 3, 6, 5)):
        whole = repeated.clone(memory_format=torch.contiguous_format)
        assert torch.equal(fm.mix(repeated, plan, backend="cpp"), fm.mix(whole, plan, backend="cpp"))


@pytest.mark.parametrize("partner", [[0, 0, 1], [1, 2, 3], [-1, 0, 1], [1, 2, 2]])
def test_partners_that_are_no_permutation(cpp, partner):
    plan = fm.CutMix(per="sample").sample(3, (4, 4), seed=0)
    x = images_of((3, 1, 4, 4))
    before = x.clone()
    masks = (torch.tensor(partner), plan.masks, int(plan.families), 2, int(Pairing.RANDOM), int(Per.SAMPLE))
    with pytest.raises(ValueError, match="partner"):
        cpp.mix_(x, *masks)
    assert torch.equal(x, before)


# Methods whose masks are the reference's bit for bit.
SHARP = [name for name, make in METHODS.items() if not make()._families & ~SAME_MASKS]


@pytest.mark.usefixtures("cpp")
@pytest.mark.parametrize("name", SHARP)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_backward_is_the_references(name, dtype):
    """Bit for bit where the masks are: both add two products in float64 and round once."""
    plan = METHODS[name](per="sample", pairing="random").sample(9, (11, 13), seed=2)
    grad = images_of((9, 3, 11, 13), dtype, 1)
    found = []
    for backend in ("cpp", "reference"):
        x = images_of((9, 3, 11, 13), dtype).requires_grad_()
        found.append(torch.autograd.grad(fm.mix(x, plan, backend=backend), x, grad)[0])
    assert alike(*found)


@pytest.mark.usefixtures("cpp")
@pytest.mark.parametrize("way", ["mix_", "module", "module-general"])
def test_in_place_is_seen_by_autograd(way):
    x = images_of((4, 3, 8, 8))
    weight = torch.ones((), requires_grad=True)
    loss = (weight * x).sum()
    version = x._version
    module = fm.CutMix(num_classes=7, inplace=True, targets="dense" if way == "module" else "sparse")
    if way == "mix_":
        fm.mix_(x, module.sample(4, (8, 8), lam=0.5), backend="cpp")
    else:
        assert module(x, torch.arange(4))[0] is x
    assert x._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.usefixtures("cpp")
@pytest.mark.parametrize("module", [fm.MixUp, fm.CutMix, fm.GMix])
def test_in_place_needs_no_grad(module):
    mix = module(num_classes=7, inplace=True)
    x = images_of((4, 3, 8, 8)).requires_grad_()
    before, state = x.detach().clone(), torch.get_rng_state()
    with pytest.raises(RuntimeError, match="requires grad"):
        fm.mix_(x, mix.sample(4, (8, 8), seed=0), backend="cpp")
    with pytest.raises(RuntimeError, match="requires grad"):
        mix(x, torch.arange(4))
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        assert mix(x, torch.arange(4))[0] is x
    assert not torch.equal(x, before)
