"""How a batch is cut into launches, blocks and programs, and how its plan travels to them."""

from __future__ import annotations

import itertools
import math
import mmap
from types import SimpleNamespace

import pytest
import torch

from batches import DTYPES, MASKS, from_cycles, masks_by_hand, name_of, plan_for, values
from conftest import METHODS
from fusedmix.methods import Families, Pairing
from operators.on_shim import H200, RACE, ROLL_THREADS, SHARED, TILE_SAMPLES, TILE_THREADS, orders, weights_of
from oracle import alike, assert_mixed

# Of csrc/cuda/shape.cpp: the least bytes of a sample in a column, and the most bytes of a part.
COLUMN_BYTES, SLICE_BYTES = 32, 16 << 20

# ---- how much, and how many -----------------------------------------------------------------------------------------


def test_how_batches_are_cut(interpreted):
    """Whatever the batch: all samples have a row, threads are at least two for each row and at most vectors of as many
    samples, and what waits for the barrier fits into registers. Where nothing does, that is said."""
    sizes = (1, 2, 3, 5, 8, 31, 64, 100, 128, 255, 256, 257, 512, 513, 1000, 1024, 2000, 2048, 2049, 4096, 8192)
    families = (*Families, Families.CONSTANTS | Families.CUTS | Families.GAUSSIANS)
    tiles, Shape, cuts = set(), interpreted.Shape, interpreted.mix_launch.cuts  # noqa: N806
    for n, of, dtype, pairing, in_place in itertools.product(sizes, families, DTYPES, Pairing, (False, True)):
        for elements in (1, 48, 3072, 150528, 151000 - 3):
            item = dtype.itemsize
            width = next(v for v in (16 // item, 4 // item, 1) if v and elements % v == 0)
            found = cuts(n, elements // width, item, width, int(pairing), int(of), in_place, H200)
            case = n, of, dtype, pairing, in_place, elements, found
            assert len(set(found)) == len(found), case
            shapes = {cut.shape for cut in found}
            if not in_place:
                assert shapes == {Shape.EACH}, case
            elif pairing == Pairing.FLIP:
                assert shapes == {Shape.PAIRS}, case
            elif pairing == Pairing.ROLL:
                assert Shape.ROLL in shapes, case
                assert found[0].shape == Shape.ROLL, case
            else:
                assert shapes <= {Shape.TILE}, case
                if found and elements > 48:
                    tiles.add(n)
            for cut in found:
                threads = 32 * cut.warps
                assert threads <= 1024, case
                assert cut.rows & (cut.rows - 1) == cut.vectors & (cut.vectors - 1) == 0, case
                if cut.shape == Shape.TILE:
                    assert cut.rows * (cut.parts - 1) < n <= cut.rows * cut.parts, case
                if elements > 48:
                    assert threads <= max(32, cut.rows * cut.vectors), case
                    assert 2 * cut.rows <= threads, case
                    assert cut.rows * cut.parts * cut.vectors * width * item <= 128 * threads, case
    assert tiles == {n for n in sizes if n <= 2048}


def addresses(shape, dtype, in_place=True):
    """Contiguous images at addresses that nothing is at, for what only computes."""

    def at(address):
        strides = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
        return SimpleNamespace(data_ptr=lambda: address, stride=lambda: strides, shape=shape, dtype=dtype)

    return at(1 << 20), at(1 << (20 if in_place else 40)), 2, False


BATCHES = (
    *itertools.product((1, 2, 3, 7, 8, 32, 128, 256, 512, 1000, 4096), ((3, 32, 32), (3, 224, 224))),
    (64, (3, 384, 384)),
    (512, (1, 28, 28)),
    (60_000, (1, 28, 28)),
    (2**31 - 1, (1, 1, 1)),
    (2**20, (3, 64, 64)),
    (64, (3, 8192, 8192)),
    (3, (3, 2**16, 2**16)),
    (2, (1, 1, 2**40)),
)


def shape_of(shim, images, pairing, families, multiprocessors, on_chip):
    shim.multiprocessors, shim.shared_bytes = multiprocessors, on_chip
    return shim.shape_of(images, pairing, families)


@pytest.mark.parametrize("on_chip", [SHARED, 163 * 1024, 227 * 1024, 2048])
@pytest.mark.parametrize("multiprocessors", [1, 20, H200, 1000])
@pytest.mark.parametrize("pairing", Pairing, ids=lambda pairing: pairing.name.lower())
def test_shapes_cover_the_batch(shim, pairing, multiprocessors, on_chip):
    """Within the memory that there is, and what a thread can have, whatever the size."""
    way = shim.module.Way
    both = Families.BOXES, Families.CUTS
    for (n, shape), dtype, in_place, families in itertools.product(BATCHES, DTYPES, (True, False), both):
        elements, size = math.prod(shape), dtype.itemsize
        images = addresses((n, *shape), dtype, in_place)
        if elements * size // min(16, shape[-1] * size) > 2**31 - 1:
            with pytest.raises(ValueError, match=r"more than 2\^31 (vectors|elements)"):
                shape_of(shim, images, pairing, families, multiprocessors, on_chip)
            continue
        chosen = shape_of(shim, images, pairing, families, multiprocessors, on_chip)
        vector = chosen.width * size
        assert chosen.columns * chosen.width == elements
        assert vector == 16 or chosen.width in (1, 4 // size)
        if chosen.way in (way.EACH, way.SLICES):
            assert 2 <= chosen.log_column <= 8  # of the 256 threads of a block
        if in_place and n == 1:
            assert chosen.way == way.NONE
        elif pairing == Pairing.FLIP:
            assert chosen.way == way.PAIRS
        elif not in_place:
            assert chosen.way == way.EACH
        elif chosen.way == way.ROLL:
            assert pairing == Pairing.ROLL
            assert 1 << chosen.log_column <= ROLL_THREADS
        elif chosen.way == way.TILE:
            assert chosen.shared_bytes == n * vector << chosen.log_column
            assert chosen.shared_bytes <= on_chip
            assert n <= TILE_SAMPLES * (TILE_THREADS >> chosen.log_column)
            assert 1 << chosen.log_column <= TILE_THREADS
        else:
            assert chosen.way == way.SLICES
            assert 1 <= chosen.slice <= chosen.columns
            assert chosen.slice * n * vector <= SLICE_BYTES or chosen.slice == 1
            # The narrowest column of every sample does not fit, or not every thread could have its samples.
            least = max(1, COLUMN_BYTES // vector)
            assert n * least * vector > on_chip or n * least > TILE_SAMPLES * TILE_THREADS


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("pairing", Pairing, ids=lambda pairing: pairing.name.lower())
@pytest.mark.parametrize("shape", [(512, 3, 32, 32), (256, 3, 224, 224), (128, 3, 32, 32), (64, 3, 384, 384)], ids=str)
@pytest.mark.parametrize("families", [Families.BOXES, Families.CUTS], ids=["boxes", "cuts"])
def test_shapes_fill_the_chip(shim, families, shape, pairing, dtype):
    """A block on each multiprocessor of an H200 at least, where there are that many columns of 64 bytes."""
    n, way = shape[0], shim.module.Way
    for in_place in (True, False):
        chosen = shape_of(shim, addresses(shape, dtype, in_place), pairing, families, H200, 227 * 1024)
        if chosen.way in (way.ROLL, way.TILE):
            blocks = -(-chosen.columns >> chosen.log_column)
            assert blocks >= min(H200, chosen.columns * chosen.width * dtype.itemsize // 64)
            threads = ROLL_THREADS if chosen.way == way.ROLL else TILE_THREADS
            assert threads >> chosen.log_column <= n  # no thread is idle
        else:
            assert chosen.way == (way.PAIRS if pairing == Pairing.FLIP else way.EACH)


def test_batches_that_no_launch_can_address(shim):
    for pairing, in_place in itertools.product(Pairing, (True, False)):
        for shape, message in (
            ((2**31, 1, 1, 1), r"more than 2\^31 samples"),
            ((2, 1, 1, 2**31), r"a row of more than 2\^31 elements"),
            ((2, 2**31, 1, 3), r"a sample of more than 2\^31 vectors"),
        ):
            images = addresses(shape, torch.uint8, in_place)
            with pytest.raises(ValueError, match=message):
                shim.shape_of(images, pairing, Families.BOXES)
            shim.forget()
            plan = shim.plan({"partner": torch.zeros(1, dtype=torch.int64)}, pairing=pairing)
            with pytest.raises(ValueError, match=message):
                shim.module.apply(shim.memory, images, plan, False)
            assert shim.kernels() == []
    images = addresses((2**31 - 1, 2**31 - 1, 1, 1), torch.uint8, in_place=False)
    shim.forget()
    plan = shim.plan({"partner": torch.zeros(1, dtype=torch.int64)}, pairing=Pairing.ROLL)
    with pytest.raises(ValueError, match="more blocks than one launch can have"):
        shim.module.apply(shim.memory, images, plan, False)
    assert shim.kernels() == []


def far_apart(shape, strides, dtype):
    """A tensor in memory that is mostly not there."""
    elements = 1 + sum(stride * (n - 1) for n, stride in zip(shape, strides, strict=True))
    size = -(-elements * dtype.itemsize // mmap.PAGESIZE) * mmap.PAGESIZE
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    try:
        memory = mmap.mmap(-1, size, flags=flags)
    except OSError as error:
        pytest.skip(f"{size >> 30} GiB of addresses are not to be had: {error}")
    return torch.frombuffer(memory, dtype=dtype, count=elements).as_strided(shape, strides)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=name_of)
@pytest.mark.parametrize("pairing", ["roll", "flip", "random"])
def test_elements_beyond_31_bits(shim, dtype, pairing):
    """Samples, channels and rows further apart than 2³¹ elements: some pages of memory in up to 40 GiB of addresses."""
    far = 2**31 + 16
    for strides in ((far, 32, 8, 1), (64, far, 8, 1), (far, 2**30, 8, 1), (16, 4096, far // 2, 1)):
        shape = (3, 2, 2, 8)
        x = far_apart(shape, strides, dtype)
        before = values(shape, dtype)
        x.copy_(before)
        masks = plan_for(METHODS["HMix-paper"], shape, 2, "sample", pairing)
        w = weights_of(shim, before, masks)
        for in_place in (False, True):
            shim.forget()
            out = x if in_place else torch.empty_like(before)
            # A row each: the shim's record of what lies between them would be larger than the memory here.
            for i, j, k in itertools.product(range(3), range(2), range(2)):
                shim.watch(f"x {i} {j} {k}", x[i, j, k], writable=in_place)
            if not in_place:
                shim.watch("out", out, initialised=False)
            shim.mix_into(out, x, *masks, fresh=False)
            assert_mixed(out.clone(), before, w, masks[0])


# ---- what is wrong is found -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairing", ["roll", "random"])
def test_a_column_must_have_one_block(shim, pairing):
    """What columns are for: without them a block reads what another block, or a thread of its own, has overwritten, and
    the shim says so."""
    masks = masks_by_hand(from_cycles(range(11, -1, -1)), pairing=pairing)
    x = values((12, 2, 3, 8), torch.float32)
    for _ in orders(shim, 8):
        each = {"way": shim.module.Way.EACH, "log_column": 8}
        with pytest.raises(shim.module.ShimError, match=f"^({RACE}|exchange: )"):
            shim.mix_(x, *masks, shape=each)
        shim.mix(x, *masks, shape=each)  # out of place nobody overwrites what is read


def test_ways_must_suit_the_partners(shim):
    """A kernel of one pairing gives another pairing wrong results."""
    before = values((12, 2, 3, 8), torch.float32)
    way = shim.module.Way
    for wrong, pairing in ((way.ROLL, "random"), (way.PAIRS, "random"), (way.PAIRS, "roll"), (way.ROLL, "flip")):
        masks = plan_for(METHODS["MixUp"], before.shape, 2, "sample", pairing)
        x = before.clone()
        shim.mix_(x, *masks, shape={"way": wrong})
        with pytest.raises(AssertionError):
            assert_mixed(x, before, weights_of(shim, before, masks), masks[0])


def test_columns_must_fit_shared_memory(shim):
    """One byte less than a column has, and more bytes than there are for a block."""
    masks = masks_by_hand(from_cycles(range(12)))
    x = values((12, 2, 3, 8), torch.float32)
    tile = {"way": shim.module.Way.TILE, "log_column": 3}
    with pytest.raises(shim.module.ShimError, match=r"^out of bounds: .* of shared 'shared'"):
        shim.mix_(x, *masks, shape=tile | {"shared_bytes": 12 * 8 * 16 - 1})
    with pytest.raises(shim.module.ShimError, match=r"^too much shared memory: "):
        shim.mix_(x, *masks, shape=tile | {"shared_bytes": SHARED + 1})
    shim.mix_(x, *masks, shape=tile)


def test_columns_must_not_overlap(shim):
    """Parts of more vectors than a sample has: what is beyond the last is nobody's."""
    masks = masks_by_hand(from_cycles(range(12)))
    x = values((12, 2, 3, 8), torch.float32)
    for way in (shim.module.Way.SLICES, shim.module.Way.TILE):
        changes = {"way": way, "columns": 2 * 3 * 2 + 1, "slice": 13, "log_column": 0}
        with pytest.raises(shim.module.ShimError, match=r"^(out of bounds|race|exchange)"):
            shim.mix_(x, *masks, shape=changes)


def test_memory_of_others(shim):
    """One byte less is watched than the images have."""
    masks = masks_by_hand(from_cycles(range(12)), per="batch", pairing="roll")
    x = values((12, 2, 3, 8), torch.uint8)
    for shape in (None, {"way": shim.module.Way.TILE, "log_column": 2}, {"way": shim.module.Way.SLICES, "slice": 4}):
        shim.forget()
        shim.module.watch(x.data_ptr(), x.numel() - 1, "x")
        with pytest.raises(shim.module.ShimError, match=r"^out of bounds: .* of 'x', which has 575"):
            shim.mix_(x, *masks, shape=shape, fresh=False)


# ---- how a plan travels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairing", ["roll", "random"])
@pytest.mark.parametrize("per", ["batch", "sample"])
def test_plans_in_the_arguments(shim, per, pairing):
    """Same images; and nothing of the plan is read from memory. 56 bytes a sample: 50 samples fill the arguments."""
    n = 50
    assert n * 56 <= shim.module.INLINE_BYTES < (n + 1) * 56
    masks = plan_for(METHODS["RandomMix"], (n, 1, 4, 8), 2, per, pairing)
    x = values((n, 1, 4, 8), torch.float32)
    there = shim.mix(x, *masks)
    ((_, launch),) = shim.launches()
    assert launch["buffers"]["masks"]["read_widths"].keys() == {16}
    inside = shim.mix(x, *masks, on_host=True)
    ((_, launch),) = shim.launches()
    assert launch["buffers"].keys() == {"x", "out", "arguments"}
    assert alike(inside, there)


def test_plans_that_do_not_fit_the_arguments(shim):
    """In one upload, and another one for pixels."""
    for name, pieces in (("CutMix", {"a plan"}), ("FMix-among", {"a plan", "the pixels of a plan"})):
        masks = plan_for(MASKS[name], (51, 1, 4, 8), 2, "sample", "random")
        x = values((51, 1, 4, 8), torch.float32)
        there = shim.mix(x, *masks)
        inside = shim.mix(x, *masks, on_host=True)
        ((_, launch),) = shim.launches()
        assert launch["buffers"].keys() == {"x", "out", "arguments", *pieces}
        assert alike(inside, there)


def test_a_plan_is_on_one_device(shim):
    masks = plan_for(METHODS["CutMix"], (4, 1, 4, 8), 2, "sample", "random")
    x = values((4, 1, 4, 8), torch.float32)
    shim.forget()
    plan = shim.plan({"partner": masks[0], "masks": masks[1]}, (4, 8), pairing=masks[4])
    plan["on_host"] = {"masks"}
    with pytest.raises(ValueError, match="must be on one device"):
        shim.module.apply(shim.memory, (x, x, 2, False), plan, True)


def test_one_draw_is_one_row(shim):
    """Per batch nothing but row 0 of a plan is read."""
    masks = plan_for(METHODS["HMix-paper"], (20, 3, 4, 8), 2, "batch", "random")
    shim.mix(values((20, 3, 4, 8), torch.float32), *masks)
    ((_, launch),) = shim.launches()
    assert launch["buffers"]["masks"]["distinct_read_bytes"] == 48
    assert launch["buffers"]["partner"]["distinct_read_bytes"] == 160


def test_formulas_are_not_loaded(shim):
    for pairing in ("roll", "flip"):
        masks = plan_for(METHODS["CutMix"], (20, 3, 4, 8), 2, "sample", pairing)
        shim.mix(values((20, 3, 4, 8), torch.float32), *masks)
        ((_, launch),) = shim.launches()
        assert launch["buffers"]["partner"]["read_bytes"] == 0
