"""Partners of another batch, pasted crops and blends of several by Triton's kernels, interpreted or on a GPU: as the
reference's, whatever lies where in memory, and of every byte no more than is needed."""

from __future__ import annotations

import pytest
import torch

from batches import (
    LAYOUTS,
    MASKS,
    SAME_MASKS,
    channels_last,
    contiguous,
    cropped,
    every_second_sample,
    images_of,
    plan_for,
    shifted,
    stepped,
    transposed,
)
from conftest import TRITON_DEVICE
from fusedmix.arguments import MaskArguments, Patches
from fusedmix.backends import gathers
from fusedmix.backends import reference as meaning
from fusedmix.methods import Families, Resize
from oracle import alike, same

pytest.importorskip("triton")

from fusedmix.backends.triton import blend_kernel, mix_launch, paste_launch

pytestmark = [pytest.mark.usefixtures("of_triton"), pytest.mark.thorough]
interpreted = pytest.mark.skipif(TRITON_DEVICE != "cpu", reason="a log of every access is the interpreter's")

reference, kernels = torch.ops.fusedmix_reference, torch.ops.fusedmix_triton
U8, F32, F16, BF16, F64 = torch.uint8, torch.float32, torch.float16, torch.bfloat16, torch.float64
NEAREST, LINEAR, CORNERS = Resize


def there(*tensors):
    return [t.to(TRITON_DEVICE) for t in tensors]


def as_expected(out, expected, x):
    assert (out.dtype, out.stride(), out.device) == (x.dtype, torch.empty_like(x).stride(), x.device)
    assert same(out.cpu(), expected).all()


# ---- pasted crops ----------------------------------------------------------------------------------------------------

# dtype, (B, C, *S), layout, patches of a sample, how they are resized
PASTES = {
    "vectors": (F32, (5, 3, 9, 16), contiguous, 1, NEAREST),
    "pixels": (F32, (4, 3, 6, 8), channels_last, 1, LINEAR),
    "pixels of several": (F16, (4, 3, 8, 8), channels_last, 4, NEAREST),
    "bytes": (U8, (4, 3, 7, 32), contiguous, 1, NEAREST),
    "bytes of several": (U8, (4, 3, 6, 16), contiguous, 4, CORNERS),
    "odd": (F16, (3, 2, 5, 7), cropped, 2, LINEAR),
    "columns": (BF16, (4, 2, 8, 16), transposed, 1, CORNERS),
    "steps": (F32, (3, 2, 5, 6), stepped, 3, NEAREST),
    "shifted": (BF16, (3, 3, 4, 8), shifted, 1, LINEAR),
    "volumes": (F32, (3, 2, 4, 5, 8), contiguous, 8, LINEAR),
    "bytes of volumes": (U8, (3, 1, 3, 4, 16), every_second_sample, 2, CORNERS),
    "signals": (F64, (5, 3, 34), contiguous, 2, LINEAR),
    "long signals": (U8, (1, 1, 50000), contiguous, 1, NEAREST),
    "long signals, linear": (U8, (1, 1, 40000), contiguous, 1, LINEAR),
    "one pixel": (F32, (3, 2, 1, 1), contiguous, 2, LINEAR),
    "many programs": (F32, (2, 3, 33, 40), contiguous, 1, CORNERS),
}


def patches_of(batch, count, size, seed=0):
    """Any crops that have pixels, and any boxes; of the first sample nearly the whole image, in a whole one."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(high):
        return torch.randint(0, high, (batch, count), generator=generator)

    partner, boxes, crops = drawn(batch), [], []
    for side in size:
        for ends, least in ((boxes, 0), (crops, 1)):
            first = drawn(side + 1 - least)
            ends.append(torch.stack([first, (first + least + drawn(side)).clamp(max=side)]))
    boxes, crops = (torch.stack(ends, -1).permute(1, 2, 0, 3).flatten(2).int().contiguous() for ends in (boxes, crops))
    boxes[0, 0] = torch.tensor([0] * len(size) + list(size))
    crops[0, 0] = torch.tensor([int(side > 1) for side in size] + list(size))
    return Patches(partner, boxes, crops)


def pasted(name):
    """Infinities and NaN among the images."""
    dtype, shape, layout, count, resize = PASTES[name]
    x = images_of(shape, dtype, seed=len(name))
    if dtype.is_floating_point:
        x.flatten()[5::37], x.flatten()[11::41] = torch.inf, torch.nan
    return layout(x), patches_of(shape[0], count, shape[2:], seed=len(name)), resize


@pytest.mark.parametrize("name", PASTES)
def test_crops_are_pasted_as_the_references(name):
    """To the bit: the reference does the same operations in the same order."""
    x, patches, resize = pasted(name)
    (on_device,) = there(x)
    as_expected(kernels.paste(on_device, *there(*patches), resize), reference.paste(x, *patches, resize), on_device)
    on_host = kernels.paste(on_device, *patches, resize)
    assert same(on_host.cpu(), reference.paste(x, *patches, resize)).all()


def test_pastes_take_every_way(monkeypatch):
    seen = {}
    monkeypatch.setattr(paste_launch._paste, "launch", lambda programs, device, named: [
        seen.setdefault(key, set()).add(named[key]) for key in ("MODE", "NDIM", "WIDE", "V", "AXES", "INNER")
    ])  # fmt: skip
    for name in PASTES:
        paste_launch.paste(*pasted(name))
    rows = {axes[-1] for axes in seen.pop("AXES")}
    assert rows == {-1, 1, 2}  # of one pixel, columns, rows
    assert seen == {
        "MODE": set(Resize),
        "NDIM": {1, 2, 3},
        "WIDE": {False, True},
        "V": {1, 2, 4, 8, 16},
        "INNER": {1, 3},
    }


def test_places_are_exact_for_the_largest_sides_of_32_bits():
    """Of a signal of 32767 pixels all around the last one, where products come nearest to 2^31."""
    side = 32767
    x = torch.arange(side).bitwise_and(255).to(U8).view(1, 1, side)
    whole, most = torch.tensor([[[0, side]]], dtype=torch.int32), torch.tensor([[[1, side]]], dtype=torch.int32)
    patches = Patches(torch.zeros((1, 1), dtype=torch.int64), whole, most)
    for resize in Resize:
        out = paste_launch.paste(x.to(TRITON_DEVICE), Patches(*there(*patches)), resize)
        assert torch.equal(out.cpu(), gathers.paste(x, patches, resize))


def test_what_only_the_host_could_refuse():
    """Partners that there are not and empty crops paint nothing, boxes are cut where the image ends, and of crops the
    pixels at the edge are taken."""
    x = images_of((4, 2, 6, 8))
    partner = torch.tensor([[4, 1], [-1, -(2**62)], [2**62, 3], [0, 2]])
    boxes = torch.tensor([[0, 0, 6, 8], [1, 2, 5, 7]], dtype=torch.int32).repeat(4, 1, 1)
    crops = boxes.flip(1).clone()
    crops[0, 1] = torch.tensor([3, 2, 3, 6])
    crops[3] = torch.tensor([[-3, 2, 4, 12], [4, 5, 9, 10]])
    boxes[3] = torch.tensor([[-2, 1, 3, 20], [5, 4, 1, 7]])
    patches = Patches(partner, boxes, crops)
    for resize in Resize:
        out = paste_launch.paste(*there(x), Patches(*there(*patches)), resize)
        assert torch.equal(out.cpu(), gathers.paste(x, patches, resize))


@interpreted
def test_whatever_is_pasted_nothing_outside_is_touched():
    """Of numbers that overflow 32 bits, too."""
    from triton_log import logged

    x = cropped(images_of((4, 2, 6, 8)))
    most = 2**31 - 1
    numbers = torch.tensor([0, 1, 3, 6, 8, 9, -1, most, -most - 1], dtype=torch.int32)
    for seed, resize in enumerate((*Resize, *Resize)):
        generator = torch.Generator().manual_seed(seed)
        boxes, crops = (numbers[torch.randint(0, 9, (4, 3, 4), generator=generator)] for _ in range(2))
        boxes[:, 0] = torch.tensor([0, 0, 6, 8])
        crops[:, 0] = crops[:, 0].view(4, 2, 2).sort(1).values.view(4, 4)
        patches = Patches(torch.randint(-1, 5, (4, 3), generator=generator), boxes, crops)
        with logged() as launches:
            out = paste_launch.paste(x, patches, resize)
        (of,) = launches
        assert len(of.races()) == 0
        assert len(of.outside([x, *patches], [out])) == 0
        assert (of.counts(out)[1] == 1).all()


@interpreted
@pytest.mark.parametrize("name", ["vectors", "bytes", "pixels of several", "steps", "long signals"])
def test_of_pixels_that_are_copied_or_pasted_each_is_read_once(name):
    """A pixel of a box is read for it alone, and of its own sample only where its vector has pixels in no box."""
    from triton_log import logged

    x, patches, _ = pasted(name)
    with logged() as launches:
        out = kernels.paste(x, *patches, NEAREST)
    (of,) = launches
    assert len(of.races()) == 0
    assert len(of.outside([x, *patches], [out])) == 0
    assert (of.counts(out)[1] == 1).all()
    covered = torch.zeros(x.shape, dtype=torch.bool)
    ndim = x.ndim - 2
    for i, k in ((i, k) for i in range(len(x)) for k in range(patches.partner.shape[1])):
        box = patches.boxes[i, k].tolist()
        covered[(i, slice(None), *map(slice, box[:ndim], box[ndim:]))] = True
    places = torch.arange(x.numel(), dtype=F64).view(x.shape)
    lent = reference.paste(places, *patches, NEAREST)[covered].long().bincount(minlength=x.numel()).view(x.shape)
    own = of.counts(x)[0] - lent
    assert set(own.unique().tolist()) <= {0, 1}
    assert (own[~covered] == 1).all()
    if name == "vectors":
        vectors = covered.view(*x.shape[:-1], -1, 4)
        assert torch.equal(own.view(vectors.shape), (~vectors.all(-1, keepdim=True)).expand(vectors.shape).long())


# ---- partners of another batch ---------------------------------------------------------------------------------------


def of_another(name, shape, spatial, dtype, layout, samples, per="sample"):
    """A batch, another of so many samples in the same layout, and the plan, whose partners repeat."""
    turn = samples + len(name)
    x, other = (
        layout(images_of(shape, dtype, seed=turn)),
        layout(images_of((samples, *shape[1:]), dtype, seed=turn + 1)),
    )
    plan = MaskArguments(*plan_for(MASKS[name], shape, spatial, per, "random", seed=turn))
    partner = torch.randint(0, samples, shape[:1], generator=torch.Generator().manual_seed(turn))
    return x, other, plan._replace(partner=partner)


WITH = [
    ("CutMix", (5, 3, 6, 8), 2, F32, contiguous, 7, "sample"),
    ("MixUp", (3, 3, 4, 32), 2, U8, contiguous, 1, "sample"),
    ("HMix-paper", (4, 2, 5, 7), 2, F16, stepped, 2, "batch"),
    ("FMix", (4, 3, 8, 8), 2, BF16, channels_last, 9, "sample"),
    ("FMix-soft", (3, 2, 4, 40), 2, F32, every_second_sample, 3, "sample"),
    ("MixUp", (4, 2, 33), 1, F64, shifted, 3, "batch"),
    ("CutMix", (3, 2, 3, 4, 8), 3, U8, contiguous, 5, "sample"),
]


def shown(value):
    return value if isinstance(value, str) else getattr(value, "__name__", str(value).removeprefix("torch."))


@pytest.mark.parametrize(("name", "shape", "spatial", "dtype", "layout", "samples", "per"), WITH, ids=shown)
def test_partners_of_another_batch_are_the_references(name, shape, spatial, dtype, layout, samples, per):
    """Out of place and in place."""
    x, other, plan = of_another(name, shape, spatial, dtype, layout, samples, per)
    assert not Families(plan.families) & ~SAME_MASKS
    expected = reference.mix_with(x, other, *plan)
    near = MaskArguments(*(t.to(TRITON_DEVICE) if torch.is_tensor(t) else t for t in plan))
    a, b = layout(x.to(TRITON_DEVICE)), layout(other.to(TRITON_DEVICE))
    as_expected(kernels.mix_with(a, b, *near), expected, a)
    before = b.clone()
    kernels.mix_with_(a, b, *near)
    assert alike(a.cpu(), expected)
    assert alike(b, before)


@pytest.mark.parametrize("name", MASKS)
def test_partners_of_the_batch_itself_are_those_of_mix(name):
    """To the bit, whatever the masks are."""
    shape = (5, 2, 6, 8)
    plan = plan_for(MASKS[name], shape, 2, "sample", "random", seed=3)
    plan = [t.to(TRITON_DEVICE) if torch.is_tensor(t) else t for t in plan]
    x = images_of(shape).to(TRITON_DEVICE)
    assert alike(kernels.mix_with(x, x, *plan), kernels.mix(x, *plan))


def test_other_batches_lie_anywhere():
    """Samples of it are any distance apart, also none; it is as large as anything; and partners may be missing."""
    x, other, plan = of_another("CutMix", (4, 2, 6, 8), 2, F32, contiguous, 6)
    far = x.new_zeros(6, 2 * 48 * 2 + 1)[:, : 2 * 48].view(6, 2, 6, 8).copy_(other)
    for of, partner in (
        (far, plan.partner), (other[:1].expand(6, -1, -1, -1), plan.partner),
        (other, torch.tensor([6, 5, -1, 2**62])), (other[:0], plan.partner),
    ):  # fmt: skip
        found = plan._replace(partner=partner)
        expected = meaning.mix_with(x, of, found) if len(of) else x
        near = MaskArguments(*(t.to(TRITON_DEVICE) if torch.is_tensor(t) else t for t in found))
        a, b = x.to(TRITON_DEVICE), of if TRITON_DEVICE == "cpu" else of.to(TRITON_DEVICE)
        out = torch.empty_like(a)
        mix_launch.apply_with(a, b, out, near)
        assert alike(out.cpu(), expected)
        mix_launch.apply_with(a, b, a, near)
        assert alike(a.cpu(), expected)


@interpreted
@pytest.mark.parametrize("in_place", [False, True])
def test_of_another_batch_no_more_is_touched_than_masks_reach(in_place):
    """Vectors that a box touches are read of the partner; in place nothing else is read or written."""
    from triton_log import logged

    x, other, plan = of_another("CutMix", (5, 2, 6, 16), 2, F32, contiguous, 3)
    w = meaning.masks_of(torch.arange(5), x, plan).expand(x.shape)
    touched = (w == 0).view(5, 2, 6, 4, 4).any(-1, keepdim=True).expand(5, 2, 6, 4, 4).reshape(x.shape)
    out = x if in_place else torch.empty_like(x)
    with logged() as launches:
        mix_launch.apply_with(x, other, out, plan)
    (of,) = launches
    assert len(of.races()) == 0
    assert len(of.outside([x, other, plan.partner, plan.masks], [out])) == 0
    lent = torch.zeros(other.shape, dtype=torch.int64).index_add_(0, plan.partner, touched.long())
    reads, writes = of.counts(other)
    assert torch.equal(reads, lent)
    assert not writes.any()
    assert torch.equal(of.counts(out)[1], touched.long() if in_place else torch.ones_like(lent[:1]).expand(x.shape))
    own = (w.view(5, 2, 6, 4, 4) == 1).any(-1, keepdim=True).expand(5, 2, 6, 4, 4).reshape(x.shape)
    assert torch.equal(of.counts(x)[0], (own & touched if in_place else own).long())


# ---- blends of several -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("terms", [1, 3, 8])
@pytest.mark.parametrize("layout", LAYOUTS[:5])
def test_blends_are_the_references(layout, terms):
    """To the bit where the reference rounds but once, which it does not in float64."""
    generator = torch.Generator().manual_seed(terms)
    dtypes = (U8, F32, F16, BF16, F64)
    dtype = dtypes[(LAYOUTS.index(layout) + terms) % 5]
    x = layout(images_of((5, 3, 4, 16), dtype))
    partner = torch.randint(0, 5, (5, terms), generator=generator)
    weight = torch.randn((5, terms), generator=generator)
    weight[0] = 1 / terms
    (a,) = there(x)
    out, expected = kernels.blend(a, *there(partner, weight)), reference.blend(x, partner, weight)
    if dtype == F64:
        torch.testing.assert_close(out.cpu(), expected, rtol=1e-14, atol=1e-14)
        expected = out.cpu()
    as_expected(out, expected, a)


def test_what_is_left_out_of_a_blend_does_not_leak():
    """Infinities and NaN of terms of weight 0, and partners that there are not; bytes saturate, ties go to even."""
    x = torch.tensor([[1.0, 2.0], [torch.nan, torch.inf], [3.0, -1.0], [5.0, 6.0]])
    partner = torch.tensor([[0, 1], [1, 2], [4, 2], [3, -1]])
    weight = torch.tensor([[0.5, 0.0], [-0.0, 2.0], [1.0, 1.0], [1.0, torch.inf]])
    out = blend_kernel.blend(*there(x, partner, weight)).cpu()
    assert torch.equal(out, torch.tensor([[0.5, 1.0], [6.0, -2.0], [3.0, -1.0], [5.0, 6.0]]))
    assert torch.equal(out, gathers.blend(x, partner, weight))
    x = torch.tensor([[1], [3], [255], [0]], dtype=U8)
    weight = torch.tensor([[0.5, 0.0], [0.5, 0.0], [2.0, 1.0], [1.0, -3.0]])
    out = kernels.blend(*there(x, torch.tensor([[0, 0], [1, 0], [2, 0], [3, 1]]), weight)).cpu()
    assert out.flatten().tolist() == [0, 2, 255, 0]


@interpreted
def test_a_blend_reads_each_term_once():
    from triton_log import logged

    x = images_of((6, 3, 8, 40))
    partner, weight = torch.tensor([[0, 5, 5]]).repeat(6, 1), torch.ones(6, 3)
    partner[:, 0], weight[2, 1], weight[3] = torch.arange(6), 0.0, 0.0
    with logged() as launches:
        out = kernels.blend(x, partner, weight)
    (of,) = launches
    assert len(of.races()) == 0
    assert len(of.outside([x, partner, weight], [out])) == 0
    assert (of.counts(out)[1] == 1).all()
    terms = (partner[weight != 0]).bincount(minlength=6)
    assert torch.equal(of.counts(x)[0], terms.view(-1, 1, 1, 1).expand(x.shape))


def test_empty_batches():
    for shape in ((0, 3, 4, 4), (2, 3, 0, 4), (2, 0, 4, 4)):
        x, n = torch.zeros(shape, device=TRITON_DEVICE), shape[0]
        partner, weight = there(torch.zeros((n, 1), dtype=torch.int64), torch.ones(n, 1))
        boxes = torch.zeros((n, 1, 4), dtype=torch.int32, device=TRITON_DEVICE)
        assert kernels.paste(x, partner, boxes, boxes, NEAREST).shape == shape
        assert kernels.blend(x, partner, weight).shape == shape
        plan = plan_for(MASKS["MixUp"], (n, 4, 4), 2, "sample", "random")
        plan = [t.to(TRITON_DEVICE) if torch.is_tensor(t) else t for t in plan]
        assert kernels.mix_with(x, x, *plan).shape == shape
