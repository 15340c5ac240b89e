"""Which bytes the kernels touch, and how often: one pass over memory, in accesses as wide as the layout allows."""

from __future__ import annotations

import itertools
import math
import sys

import numpy as np
import pytest
import torch

import fusedmix as fm
from batches import (
    DRAWS,
    DTYPES,
    FLOATS,
    FMIXES,
    MASKS,
    STORED,
    batch_innermost,
    channels_last,
    contiguous,
    cropped,
    each_dtype,
    every_second_sample,
    images_of,
    plan_for,
    shifted,
    stepped,
    transposed,
    values,
)
from callers import CUDA, INTERPRETED, cases, python, shown
from conftest import METHODS
from fusedmix.masks.family import OneMask, packed, record
from fusedmix.methods import Families, Kind
from operators.on_shim import PART, SHARED, assert_traffic, expected_traffic, leaves_out, weights_of
from oracle import alike, assert_adjoint, assert_mixed

TRAFFIC = ("MixUp", "CutMix", "HMix-paper", "GMix-released")
ON_TRITON = [*itertools.product(("batch", "sample"), ("roll", "flip", "random")), ("pair", "flip")]


@pytest.mark.parametrize(
    ("watched", "name", "per", "pairing"),
    [*cases(CUDA, (*TRAFFIC, *STORED), DRAWS), *cases(INTERPRETED, (*TRAFFIC, *FMIXES), ON_TRITON)],
    indirect=["watched"],
)
def test_one_pass(watched, name, per, pairing):
    """In place every element is written once and read at most twice, and kernels that look where masks reach touch
    nothing else; out of place every element is written once, and read for its sample and for that it is lent to."""
    draw = (per, pairing)
    turn = DRAWS.index(draw) if watched.fast else ON_TRITON.index(draw) * 7 + [*TRAFFIC, *FMIXES].index(name)
    for i, (shape, spatial, dtype, layout) in enumerate(watched.batches(turn)):
        masks = plan_for((MASKS | FMIXES)[name], shape, spatial, per, pairing, seed=turn + i)
        before = values(shape, dtype, seed=i)
        x, w = layout(before), watched.weights(before, masks)
        for way in (None, *watched.ways(x, masks, in_place=False)):
            out = watched.mix(x, masks, way=way)
            watched.assert_one_pass(x, out, w, masks)
        # Triton's Gaussians differ from the reference's in the last place. NumPy has no fma, which float64 needs.
        certain = watched.fast or ("GMix" not in name and (dtype != torch.float64 or bool(((w == 0) | (w == 1)).all())))
        if certain:
            assert_mixed(out, before, w, masks[0])
        if dtype in FLOATS:
            grad = watched.mix(x, masks, adjoint=True)
            watched.assert_one_pass(x, grad, w, masks, adjoint=True)
            if certain:
                assert_adjoint(grad, before, w, masks[0])
        watched.mix(x, masks, in_place=True, **watched.travels[i % len(watched.travels)])
        watched.assert_one_pass(x, x, w, masks)
        assert alike(x, out)
        if name == "GMix-released" and len(x) > 1:  # nothing can be left out but samples that are their own partners
            moved, (_, writes) = masks[0] != torch.arange(len(x)), watched.counts("x", x)
            assert (writes[moved] == 1).all()
            assert writes.max() <= 1
        for way in watched.ways(x, masks)[:: 1 + i % 3] if watched.fast else []:
            again = layout(before)
            watched.mix(again, masks, in_place=True, way=way)
            watched.assert_one_pass(again, again, w, masks)
            assert alike(again, x)


# Where boxes begin (y, x) and end: at multiples of 16 bytes and elsewhere. The last two are empty.
BOXES = ((1, 3, 7, 21), (0, 16, 8, 32), (2, 5, 3, 6), (2, 5, 2, 9), (2, 5, 4, 5))


@pytest.mark.parametrize(
    ("watched", "per", "pairing", "dtype"),
    [
        *cases(CUDA, ("batch", "sample"), ("roll", "flip", "random"), DTYPES),
        *cases(INTERPRETED, ("sample",), ("roll", "flip", "random"), DTYPES),
    ],
    ids=shown,
    indirect=["watched"],
)
def test_a_box_in_place_touches_only_its_vectors(watched, per, pairing, dtype):
    """Of 16 bytes: those that a box touches are written once, and what they are made of is read. By roll CUDA's kernels
    also read the sample where spans meet."""
    n, shape = 9, (9, 3, 8, 32)
    spans = watched.fast and pairing == "roll"
    way = {"way": watched.shim.module.Way.ROLL, "log_column": 8} if spans else None
    for seed, (first_y, first_x, stop_y, stop_x) in enumerate(BOXES):
        partner, drawn, _, *rest = plan_for(METHODS["CutMix"], shape, 2, per, pairing, seed=seed)
        box = OneMask(Kind.BOX, [0, first_y, first_x, 1, stop_y, stop_x], (1.0, 0.0), math.nan)
        for records in (record(box).repeat(n, 1), drawn) if watched.fast else (record(box).repeat(n, 1),):
            masks = partner, records, Families.CUTS, *rest
            x = values(shape, dtype)
            w = watched.weights(x, masks)
            watched.mix(x, masks, in_place=True, way=way)
            width = watched.width
            assert width * dtype.itemsize == 16
            touched = (w == 0).reshape(n, -1, width).any(2, keepdim=True).expand(-1, -1, width).reshape(shape)
            moves = (partner != torch.arange(n)).view(n, 1, 1, 1)
            reads, writes = watched.counts("x", x)
            assert torch.equal(writes * moves, (touched & moves).long())
            assert (writes <= touched).all()
            needed = touched | touched[partner.argsort()]
            needed[-1] |= spans
            assert ((reads > 0) <= needed).all()
            assert reads.max() <= 2
            assert reads.sum() <= 2 * (touched.sum() + spans * x[0].numel())


@each_dtype
@pytest.mark.parametrize("layout", [contiguous, channels_last, transposed])
@pytest.mark.parametrize("pairing", ["roll", "flip", "random"])
def test_stored_masks_are_read_word_by_word(shim, dtype, layout, pairing):
    """One load of a word for every vector of every sample, where its elements are pixels in a row; of channels that lie
    together at most one more. Images still move 16 bytes at a time."""
    masks = plan_for(fm.FMix, (6, 3, 32, 48), 2, "sample", pairing, seed=2)
    x = layout(values((6, 3, 32, 48), dtype))
    w = weights_of(shim, x, masks)
    for in_place in (False, True):
        out = x.clone() if in_place else torch.empty_like(x)
        shim.mix_into(out, out if in_place else x, *masks)
        ((_, launch),) = shim.launches()
        assert widths(shim) == {16}
        use = launch["buffers"]["pixels"]
        assert use["read_widths"].keys() == {4}
        vectors = x.numel() * dtype.itemsize // 16
        assert alike(out, torch.where(w == 0, x[masks[0]], x))
        if layout is not transposed:
            assert vectors <= use["read_widths"][4] <= (1 if layout is contiguous else 3) * vectors


def test_pixels_of_no_stored_mask_do_not_matter(shim):
    """A plan that might have stored masks, but drew none: as the same plan without pixels."""
    masks = plan_for(METHODS["RandomMix"], (9, 3, 8, 16), 2, "sample", "roll")
    x = values((9, 3, 8, 16), torch.float32)
    pixels = torch.randint(-(2**31), 2**31, (9, 4)).int()
    partner, records, families, *rest, _ = masks
    assert alike(shim.mix(x, partner, records, families | Families.STORED, *rest, pixels), shim.mix(x, *masks))


def test_what_moves_nothing(shim):
    """λ = 1: no bit changes, and kernels that look touch nothing, roll where spans meet excepted. Samples that are
    their own partners stay as they are."""
    n = 9
    ones = packed(torch.zeros(n).int(), torch.zeros(n, 6).int(), torch.tensor([[1.0, 0.0]]).repeat(n, 1))
    for dtype, width in ((torch.float32, 4), (torch.float32, 5), (torch.uint8, 16), (torch.float64, 4)):
        before = torch.randint(0, 256, (n, 3, 4, width * dtype.itemsize), dtype=torch.uint8).view(dtype)
        for name, pairing in itertools.product(("MixUp", "CutMix", "GMix-released"), ("roll", "flip", "random")):
            partner, records, families, *rest = plan_for(METHODS[name], before.shape, 2, "sample", pairing)
            x = before.clone()
            shim.mix_(x, partner, ones, families, *rest)
            assert alike(x, before)
            if leaves_out(x, shim.shape, families) and shim.shape.way != shim.module.Way.ROLL:
                assert not any(counts.any() for counts in shim.counts("x", x))
            if pairing == "random":
                shim.mix_(x, torch.arange(n), records, families, *rest)
                assert torch.equal(x.nan_to_num(), before.nan_to_num())


def test_counts_can_be_wrong(shim):
    """A second launch is seen, as is a different mask, and a different way: the tests above can fail."""
    before = values((6, 3, 4, 4), torch.float32)
    masks = plan_for(METHODS["CutMix"], before.shape, 2, "sample", "random", seed=1)
    w = weights_of(shim, before, masks)
    way = shim.module.Way
    for other in (None, {"way": way.SLICES, "slice": 5}):
        x = before.clone()
        shim.mix_(x, *masks, shape=other)
        assert_traffic(shim, x, w, masks)
        with pytest.raises(AssertionError):
            assert_traffic(shim, x, 1 - w, masks)
        taken = shim.shape.way
        shim.shape.way, shim.shape.slice = way.TILE if other else way.SLICES, 5
        with pytest.raises(AssertionError):
            assert_traffic(shim, x, w, masks)
        shim.shape.way = taken
    shim.mix_(x, *masks)
    shim.mix_(x, *masks, fresh=False, on_host=True)
    counted = shim.counts("x", x)[1]
    assert torch.equal(counted, 2 * expected_traffic(way, x, w, masks, shim.shape, True)[1])


# ---- how wide accesses are ------------------------------------------------------------------------------------------


def widths(shim, buffers=("x", "out", PART)):
    """The bytes of the accesses to images in the last call."""
    found = set()
    for _, launch in shim.launches():
        for name in buffers:
            use = launch["buffers"].get(name, {"read_widths": {}, "write_widths": {}})
            found |= {*use["read_widths"], *use["write_widths"]}
    return found


def row_of(dtype, nbytes, skip, gap):
    """(9, 3, 4, W) with W of so many bytes, `skip` bytes past an aligned address, and a gap after each row."""
    width, start, between = (n // dtype.itemsize for n in (nbytes, skip, gap))
    large = torch.zeros(start + 9 * 3 * 4 * (width + between) + 16, dtype=dtype)
    aligned = -large.data_ptr() % 16 // dtype.itemsize
    rows = large[aligned + start :][: 9 * 3 * 4 * (width + between)]
    x = rows.view(9, 3, 4, width + between)[..., :width]
    return x.copy_(values(x.shape, dtype))


ROWS = (
    # bytes of a row, bytes before the first, bytes between rows; bytes that are moved at a time
    ((32, 0, 0), 16),
    ((48, 0, 16), 16),
    ((32, 16, 0), 16),
    ((40, 0, 0), 4),
    ((32, 8, 0), 4),
    ((32, 0, 8), 4),
    ((32, 4, 0), 4),
    ((36, 0, 0), 4),
    ((32, 2, 0), 1),
    ((34, 0, 0), 1),
    ((32, 0, 2), 1),
    ((33, 0, 0), 1),
)


WIDTHS = [
    (dtype, row, max(expected, dtype.itemsize))
    for dtype, (row, expected) in itertools.product(DTYPES, ROWS)
    if not any(n % dtype.itemsize for n in row)
]


@pytest.mark.parametrize("pairing", ["roll", "flip", "random"])
@pytest.mark.parametrize(("dtype", "row", "expected"), WIDTHS, ids=str)
def test_width(shim, dtype, pairing, row, expected):
    """16 bytes where every row of every sample allows it, else 4, else an element."""
    x = row_of(dtype, *row)
    for name in ("HMix-paper", "GMix-released"):
        masks = plan_for(METHODS[name], x.shape, 2, "sample", pairing)
        w = weights_of(shim, x, masks)
        out = torch.empty_like(x)
        for aligned in (True, False):
            if not aligned:  # of source and destination the less aligned one decides
                out = shifted(out)  # by one element
            shim.mix_into(out, x, *masks)
            assert widths(shim) == {expected if aligned else dtype.itemsize}
            assert widths(shim) == {shim.shape.width * dtype.itemsize}
            assert_mixed(out, x, w, masks[0])
        for on_chip in (SHARED, 1):
            shim.shared_bytes = on_chip
            x = row_of(dtype, *row)
            shim.mix_(x, *masks)
            assert widths(shim) == {expected}
            assert alike(x, out)
        shim.shared_bytes = SHARED
        x = row_of(dtype, *row)


@each_dtype
def test_width_of_layouts(shim, dtype):
    """Masks that vary along rows need whole rows; channels_last rows are the channels of all pixels in them."""
    n = 16 // dtype.itemsize
    box, constant = (plan_for(METHODS[m], (9, 3, 7, 16), 2, "sample", "roll") for m in ("HMix-paper", "MixUp"))
    x = values((9, 3, 7, 16), dtype)
    for layout, masks, expected in [
        (contiguous, box, n),
        (contiguous, constant, n),
        (channels_last, box, n),
        (stepped, box, 1),
        (shifted, constant, 1),
        (every_second_sample, box, n),
        (batch_innermost, constant, 1),
    ]:
        shim.mix(layout(x), *masks)
        assert shim.shape.width == expected
    # 3·7·7 elements of a sample are no multiple of 16 bytes, those of 16·7·7 are; of their rows none is.
    x = values((9, 16, 7, 7), dtype)
    box, constant = (plan_for(METHODS[m], x.shape, 2, "sample", "roll") for m in ("HMix-paper", "MixUp"))
    for layout, masks, expected in [
        (contiguous, box, 1),
        (contiguous, constant, n),
        (channels_last, box, n),
        (transposed, box, 1),
    ]:
        shim.mix_(layout(x), *masks)
        assert shim.shape.width == expected


# ---- memory beside the batch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["MixUp", "CutMix", "GMix-released"])
@pytest.mark.parametrize("layout", [contiguous, channels_last, cropped, stepped], ids=lambda layout: layout.__name__)
def test_a_batch_that_fits_no_program_is_mixed_in_slices(interpreted, layout, name):
    """Out of place into scratch, and back, through as little of it as is allowed; no byte is anything else's."""
    shape = (9, 3, 5, 8)
    for dtype in (torch.float32, torch.uint8):
        masks = plan_for(METHODS[name], shape, 2, "sample", "random", seed=1)
        before = values(shape, dtype)
        x, y = layout(before), layout(before)
        out = interpreted.Interpreted(multiprocessors=2).mix(y, masks)
        kernels = interpreted.Interpreted(multiprocessors=2, cuts=[], scratch=9 * 7 * 16)
        kernels.mix(x, masks, in_place=True)
        launches, way = kernels.launches, kernels.way
        allowed = 7 * 16 // (kernels.width * x.element_size())
        assert way.slice == allowed
        assert len(launches) == 2 * -(-way.columns // allowed) >= 4
        for there, back in zip(launches[::2], launches[1::2], strict=True):
            aside = there.arguments["dst"]
            assert aside.nbytes <= 9 * 7 * 16
            assert back.arguments["src"] is aside
            assert len(there.outside([x, *masks[:2]], [aside])) == 0
            assert len(back.outside([aside], [x])) == 0
        kernels.assert_clean()
        counted = [sum(of.counts(x)[1] for of in which) for which in (launches[::2], launches[1::2])]
        assert not counted[0].any()
        assert (counted[1] == 1).all()
        assert alike(x.contiguous(), out.contiguous())


PEAK = """
    import json, resource, sys
    import torch
    import fusedmix as fm
    from conftest import METHODS

    torch.set_num_threads({threads})
    y = torch.arange(200) % 10
    names = ("MixUp", "CutMix", "HMix-released", "GMix-released")
    modules = [METHODS[name](num_classes=10, pairing="random", inplace=True) for name in names]
    modules += [METHODS["RandomMix"](num_classes=10, per="sample", pairing=p, inplace=True) for p in ("roll", "flip")]

    def work(x):
        for module in modules:
            plan = module.sample(len(x), x.shape[2:])
            fm.mix_(x, plan, backend="cpp")
            module(x, y)

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    work(torch.ones(200, 3, 8, 8))  # all that is loaded or started once
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.ones(200, 3, 296, 296).contiguous(memory_format=layout)  # 210 MB
        before = peak()
        work(x)
        found.append(peak() - before)
    x = x.contiguous()
    before = peak()
    out = fm.mix(x, modules[0].sample(200, (296, 296)), backend="cpp")
    print(json.dumps([*found, peak() - before, x.numel() * x.element_size()]))
"""


@pytest.mark.usefixtures("cpp")
@pytest.mark.skipif(sys.platform == "win32", reason="no getrusage")
def test_in_place_takes_no_memory():
    """The process's peak, whoever allocates, while a batch of 210 MB is mixed in place."""
    *in_place, out_of_place, size = python(PEAK.format(threads=2))
    assert max(in_place) < 4 << 20
    assert out_of_place < 8 << 20 or abs(out_of_place - size) < 8 << 20  # nothing, where freed memory is used again


def allocations(call):
    """Bytes of every allocation that torch made during a call."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        call()
    events = profiler.profiler.kineto_results.events()
    return [event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0]


@pytest.mark.usefixtures("cpp")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_in_place_allocates_nothing_large(method, layout):
    x = images_of((32, 3, 128, 128)).contiguous(memory_format=layout)  # 6 MB
    y = torch.arange(32) % 7
    module = method(num_classes=7, per="sample", pairing="random", inplace=True)
    plan = module.sample(32, (128, 128), seed=1)
    assert sum(allocations(lambda: fm.mix(x, plan, backend="cpp"))) >= x.numel() * 4  # it would be seen
    assert max(allocations(lambda: fm.mix_(x, plan, backend="cpp")), default=0) <= 1 << 16
    # The masks of FMix are stored: a bit for each pixel, or two bytes where they are soft.
    stored = 0 if plan.pixels is None else plan.pixels.nbytes
    assert max(allocations(lambda: module(x, y)), default=0) <= max(1 << 16, stored)


# ---- a log of Triton can fail ---------------------------------------------------------------------------------------


def test_races_in_a_log(interpreted):
    """Of accesses as [(address, program)]."""

    def races(read, written):
        arrays = (tuple(np.array(of, np.int64).reshape(-1, 2).T) for of in (read, written))
        return interpreted.Launch("", 2, {}, *arrays).races().tolist()

    assert races([], []) == []
    assert races([(8, 0), (8, 1)], [(9, 0), (9, 0)]) == []
    assert races([(8, 0), (9, 0)], [(9, 0), (8, 0)]) == []
    assert races([(8, 1), (9, 0)], [(8, 0), (7, 1)]) == [8]
    assert races([], [(8, 0), (9, 1), (8, 1)]) == [8]


@pytest.mark.parametrize("pairing", ["roll", "random"])
def test_a_batch_mixed_in_place_by_programs_of_few_samples_is_a_race(interpreted, pairing):
    """As by EACH, which is for other memory than it reads."""
    kernels = interpreted.Interpreted(cuts=[interpreted.Cut(interpreted.Shape.EACH, 2, 1, 4, 4)])
    masks = plan_for(METHODS["MixUp"], (9, 1, 8, 8), 2, "batch", pairing)
    x = values((9, 1, 8, 8), torch.float32)
    kernels.mix(x, masks, in_place=True)
    (launch,) = kernels.launches
    assert len(launch.races()) >= x[0].nbytes


def test_what_is_outside_is_seen(interpreted):
    x, other = torch.rand(4, 1, 4, 4), torch.rand(4, 1, 4, 4)
    masks = plan_for(METHODS["MixUp"], x.shape, 2, "batch", "roll")
    kernels = interpreted.Interpreted()
    out = kernels.mix(x, masks, by_value=True)
    launch = kernels.launches[-1]
    assert len(launch.outside([x], [out])) == 0
    assert np.array_equal(launch.outside([other], [out]), np.sort(interpreted.bytes_of(x)))
    assert np.array_equal(launch.outside([x, out], [other]), np.sort(interpreted.bytes_of(out)))
