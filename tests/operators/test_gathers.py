"""Partners of another batch, pasted crops and sums of samples, of every dtype, layout and size: the reference's.

Its meaning (fusedmix/backends/gathers.py) is tested against PyTorch in tests/test_gathers.py. Every operation is
rounded as the reference rounds it, so results are expected to the last bit.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from batches import DRAWS, DTYPES, LAYOUTS, MASKS, SHAPES, batch_innermost, each_dtype, plan_for, values
from callers import BACKENDS, CPP
from fusedmix import backends
from fusedmix.arguments import MaskArguments
from fusedmix.methods import Pairing, Resize
from oracle import alike, bits

REFERENCE = torch.ops.fusedmix_reference
# The backends that have these operators themselves; and Triton, whose kernels have test_triton_gathers.py, where a few
# calls say enough.
OWN = ("cpp", "cuda", "cuda (on the CPU)")
each_backend, each_with_triton = (
    pytest.mark.parametrize(
        "backend",
        [
            pytest.param(backend, marks=backend.marks)
            for backend in BACKENDS
            if backend.name == more or backend.called in OWN
        ],
        ids=lambda backend: backend.called,
    )
    for more in (None, "triton")
)
# (B, *dims), and how many of the dims are sides: batches and images of any size, rows that are cut into several tiles.
BATCHES = (
    *SHAPES,
    ((513, 2, 3), 1),
    ((1, 3, 20_001), 1),
    ((2, 33, 4, 5), 2),
    ((3, 1, 1, 40), 3),
    ((5, 7), 1),
    ((2, 6, 9), 2),
    ((3, 2, 1), 1),
)
EMPTY = (((0, 3, 4, 4), 2), ((3, 0, 4, 4), 2), ((2, 3, 0, 4), 2))


def several(shape, count, seed):
    """Partners of each sample, and numbers to draw others with."""
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, max(shape[0], 1), (shape[0], count), generator=g), g


def boxes_of(shape, sides, count, generator, least):
    """(B, count, 2·sides) int32 with at least so many pixels along each side."""
    spans = []
    for side in shape[len(shape) - sides :]:
        least = min(least, side)
        length = torch.randint(least, side + 1, (shape[0], count), generator=generator)
        first = (torch.rand(shape[0], count, generator=generator) * (side - length + 1)).long()
        spans.append(torch.stack((first, first + length), 2))
    return torch.cat([torch.stack([s[..., i] for s in spans], 2) for i in (0, 1)], 2).int()


def patches_of(shape, sides, count, seed):
    """Boxes, some of them without a pixel, and crops, of which a third are the boxes and a third as large as they."""
    partner, g = several(shape, count, seed)
    boxes, crops = boxes_of(shape, sides, count, g, 0), boxes_of(shape, sides, count, g, 1)
    if shape[0] * count and 0 not in shape:
        empty = (boxes[..., :sides] == boxes[..., sides:]).any(2, keepdim=True)
        at = (torch.arange(shape[0])[:, None] + torch.arange(count)).unsqueeze(2) % 3
        corner = torch.cat((torch.zeros_like(boxes[..., :sides]), boxes[..., sides:] - boxes[..., :sides]), 2)
        crops = torch.where((at == 0) & ~empty, boxes, torch.where((at == 1) & ~empty, corner, crops))
    return partner, boxes, crops


def terms_of(shape, count, seed):
    """Weights of any sign, also 0 and 1, which need not sum to 1."""
    partner, g = several(shape, count, seed)
    weight = torch.randn(partner.shape, generator=g)
    weight[torch.rand(partner.shape, generator=g) < 0.2] = 0
    weight[torch.rand(partner.shape, generator=g) < 0.2] = 1
    return partner, weight


def assert_same(out, expected, x, zeros=False):
    """`zeros`: they may have any sign."""
    out_bits, expected_bits = bits(out.cpu()), bits(expected)
    assert ((out_bits == expected_bits) | (zeros & (out.cpu() == 0) & (expected == 0))).all()
    assert out.dtype == x.dtype
    assert out.stride() == torch.empty_like(x).stride()


# ---- pasted crops ----------------------------------------------------------------------------------------------------


@each_backend
@each_dtype
@pytest.mark.parametrize("resize", Resize, ids=lambda resize: resize.name.lower())
def test_pasted_crops(backend, dtype, resize):
    """Of batches of every size in one layout after the other, by 1 to 8 patches a sample."""
    for turn, ((shape, sides), layouts) in enumerate(itertools.product(BATCHES, (LAYOUTS[::2], LAYOUTS[1::2]))):
        x = layouts[turn // 2 % len(layouts)](values(shape, dtype, seed=turn)).to(backend.device)
        patches = patches_of(shape, sides, (1, 2, 8)[turn % 3], seed=turn)
        before = x.clone()
        out = backend.operators.paste(x, *(t.to(backend.device) for t in patches), int(resize))
        assert_same(out, REFERENCE.paste(x.cpu(), *patches, int(resize)), x)
        assert alike(x, before)


@each_backend
@pytest.mark.parametrize("resize", Resize, ids=lambda resize: resize.name.lower())
def test_every_layout_of_pasted_crops(backend, resize):
    for layout, (sides, dtype) in itertools.product(LAYOUTS, ((1, torch.float32), (2, torch.uint8), (3, torch.half))):
        shape = (4, 3, 5, 7, 6)
        x = layout(values(shape, dtype)).to(backend.device)
        patches = patches_of(shape, sides, 3, seed=sides)
        out = backend.operators.paste(x, *(t.to(backend.device) for t in patches), int(resize))
        assert_same(out, REFERENCE.paste(x.cpu(), *patches, int(resize)), x)


@each_with_triton
@pytest.mark.parametrize("dtype", DTYPES[:4], ids=str)
@pytest.mark.parametrize("resize", Resize, ids=lambda resize: resize.name.lower())
def test_only_crops_reach_a_box(backend, dtype, resize):
    """NaN and infinities beside a crop, or in what a later box covers, reach nothing; in a crop they reach the box."""
    x = torch.full((2, 3, 40, 33), torch.nan, dtype=dtype)
    x[:, :, ::2] = torch.inf
    x[1, :, 10:23, 4:31] = 5
    boxes = torch.tensor([[[0, 0, 40, 33], [3, 1, 37, 9]], [[0, 0, 40, 3], [0, 3, 40, 33]]]).int()
    crops = torch.tensor([[[10, 4, 23, 31], [22, 4, 23, 31]], [[10, 4, 23, 5], [10, 4, 23, 31]]]).int()
    partner = torch.ones(2, 2, dtype=torch.int64)
    x = x.to(backend.device)
    assert (backend.operators.paste(x, partner, boxes, crops, int(resize)) == 5).all()
    crops[0, 0] = torch.tensor([9, 4, 23, 31])
    out = backend.operators.paste(x, partner, boxes, crops, int(resize))
    assert not out[0, :, 0].isfinite().any()
    assert (out[1] == 5).all()


@each_with_triton
@each_dtype
def test_pasted_bits_are_copied(backend, dtype):
    """Whatever they are: outside of boxes, and where a crop is as large as its box."""
    shape = (3, 2, 9, 21)
    bits = torch.randint(0, 256, (3 * 2 * 9 * 21 * dtype.itemsize,), dtype=torch.uint8)
    x = bits.view(dtype).view(shape)
    partner, boxes = (
        torch.tensor([[1], [2], [2]]),
        torch.tensor([[[0, 0, 4, 20]], [[8, 1, 9, 2]], [[2, 7, 9, 21]]]).int(),
    )
    crops = torch.tensor([[[3, 1, 7, 21]], [[0, 0, 1, 1]], [[0, 0, 7, 14]]]).int()
    expected = x.clone()
    expected[0, :, :4, :20], expected[1, :, 8:, 1:2], expected[2, :, 2:, 7:] = (
        x[1, :, 3:7, 1:],
        x[2, :, :1, :1],
        x[2, :, :7, :14],
    )
    for resize in Resize:
        out = backend.operators.paste(x.to(backend.device), partner, boxes, crops, int(resize))
        assert alike(out.cpu(), expected)


# ---- sums of samples -------------------------------------------------------------------------------------------------


@each_backend
@each_dtype
def test_sums_of_samples(backend, dtype):
    for turn, (shape, _) in enumerate((*BATCHES, *BATCHES, *EMPTY)):
        x = LAYOUTS[turn % len(LAYOUTS)](values(shape, dtype, seed=turn)).to(backend.device)
        terms = terms_of(shape, 1 + turn % 8, seed=turn)
        before = x.clone()
        out = backend.operators.blend(x, *(t.to(backend.device) for t in terms))
        assert_same(out, REFERENCE.blend(x.cpu(), *terms), x, zeros=True)
        assert alike(x, before)


@each_with_triton
@pytest.mark.parametrize("dtype", DTYPES[:4], ids=str)
def test_terms_of_weight_0_are_left_out(backend, dtype):
    x = torch.stack([torch.full((5,), v, dtype=dtype) for v in (torch.nan, torch.inf, 2.0, -3.0)])
    partner = torch.tensor([[0, 2, 3], [2, 1, 3], [2, 3, 0], [0, 1, 0]])
    weight = torch.tensor([[0.0, 0.5, 2.0], [0.5, -0.0, 2.0], [0.5, 2.0, 0.0], [0.0, 0.0, 0.0]])
    x = x.to(backend.device)
    out = backend.operators.blend(x, partner, weight)
    assert (out[:3] == -5).all()
    assert (out[3] == 0).all()
    weight[0, 0] = 1
    assert backend.operators.blend(x, partner, weight)[0].isnan().all()


@each_with_triton
def test_sums_of_bytes(backend):
    """Every byte halved to the nearest, ties to even, and what is out of range to the end of it."""
    x = torch.arange(256, dtype=torch.uint8).expand(3, 256).contiguous()
    partner, weight = torch.tensor([[0], [1], [2]]), torch.tensor([[0.5], [-1.0], [3.0]])
    expected = torch.stack([x[0].double().div(2).round(), x[0].double() * 0, (3 * x[0].double()).clamp(max=255)])
    out = backend.operators.blend(x.to(backend.device), partner, weight)
    assert torch.equal(out.cpu(), expected.to(torch.uint8))


# ---- partners of another batch ---------------------------------------------------------------------------------------


def shuffled(x, partner, more, seed):
    """The samples of x in any order, some of them several times; and where the partners are among them."""
    g = torch.Generator().manual_seed(seed)
    order = torch.cat((torch.arange(len(x)), torch.randint(0, len(x), (more,), generator=g)))
    order = order[torch.randperm(len(order), generator=g)]
    return x[order], (order == partner[:, None]).int().argmax(1)


@each_backend
@pytest.mark.parametrize("name", MASKS)
def test_partners_of_another_batch(backend, name):
    """As if they were of the same batch, to the bit, whatever `pairing` says; in place and not."""
    draws = itertools.cycle(DRAWS)
    for turn, (dtype, layout) in enumerate(itertools.product(DTYPES, LAYOUTS)):
        shape, sides = SHAPES[(turn + 3 * list(MASKS).index(name)) % len(SHAPES)]
        per, pairing = next(draws)
        masks = MaskArguments(*plan_for(MASKS[name], shape, sides, per, pairing, seed=turn))
        partner = torch.randint(0, shape[0], shape[:1], generator=torch.Generator().manual_seed(turn))
        x = layout(values(shape, dtype, seed=turn)).to(backend.device)
        expected = backend.operators.mix(x, *moved(masks._replace(partner=partner, pairing=Pairing.RANDOM), backend))
        same = backend.operators.mix_with(x, x, *moved(masks._replace(partner=partner), backend))
        assert_same(same, expected.cpu(), x)
        other, found = shuffled(x.cpu(), partner, 0 if layout is batch_innermost else 1 + turn % 4, seed=turn)
        other, elsewhere = layout(other).to(backend.device), moved(masks._replace(partner=found), backend)
        before = other.clone()
        assert_same(backend.operators.mix_with(x, other, *elsewhere), expected.cpu(), x)
        backend.operators.mix_with_(x, other, *elsewhere)
        assert alike(x.cpu(), expected.cpu())
        assert alike(other, before)


def moved(masks, backend):
    return [part.to(backend.device) if isinstance(part, torch.Tensor) else part for part in masks]


@each_backend
@pytest.mark.parametrize("others", [1, 2, 700])
@pytest.mark.parametrize("n", [0, 1, 2, 5, 513])
def test_sizes_of_both_batches(backend, n, others):
    for turn, name in enumerate(("MixUp", "CutMix", "GMix-paper", "FMix")):
        masks = MaskArguments(*plan_for(MASKS[name], (n, 2, 3, 8), 2, "sample", "random", seed=turn))
        x, other = values((n, 2, 3, 8), torch.float32, seed=1), values((others, 2, 3, 8), torch.float32, seed=2)
        partner = torch.randint(0, others, (n,), generator=torch.Generator().manual_seed(turn))
        lent = other[partner]
        # Beside every sample stands its partner, in a batch of twice as many.
        pixels = masks.pixels if masks.pixels is None else torch.cat((masks.pixels, masks.pixels))
        index = torch.arange(2 * n).roll(n)
        twice = masks._replace(partner=index, masks=torch.cat((masks.masks, masks.masks)), pixels=pixels)
        x, other = x.to(backend.device), other.to(backend.device)
        expected = backend.operators.mix(torch.cat((x, lent.to(x.device))), *moved(twice, backend))[:n].cpu()
        elsewhere = moved(masks._replace(partner=partner), backend)
        assert alike(backend.operators.mix_with(x, other, *elsewhere).cpu(), expected)
        backend.operators.mix_with_(x, other, *elsewhere)
        assert alike(x.cpu(), expected)


# ---- what is refused -------------------------------------------------------------------------------------------------

X = torch.zeros(3, 2, 4, 6)
MIX = MaskArguments(*plan_for(MASKS["CutMix"], X.shape, 2, "sample", "random"))
ONE = torch.zeros(3, 1, dtype=torch.int64)
BOX = torch.tensor([0, 0, 4, 6], dtype=torch.int32).expand(3, 1, 4)
WEIGHT = torch.ones(3, 1)


def box_with(place, value, box=BOX):
    box = box.clone()
    box[1, 0, place] = value
    return box


def wide(t, n):
    return t[:, :1].expand(-1, n, *t.shape[2:])


def mixing(other=X, **changes):
    return "mix_with_", (X, other, *MIX._replace(**changes))


WRONG = {
    "other dtype": (*mixing(X.double()), "other must be float32", "float64"),
    "other shape": (*mixing(X[:, :1]), "other must be float32", "(3, 1, 4, 6)"),
    "other dims": (*mixing(X.flatten(2)), "other must be float32", "(3, 2, 24)"),
    "other strides": (*mixing(X.mT.contiguous().mT), "strides of x within a sample", "(24, 6, 1)", "(24, 1, 4)"),
    "no other": (*mixing(X[:0]), "[0, 0)"),
    "fewer others": (*mixing(X[:1], partner=torch.tensor([0, 1, 0])), "partner must be in [0, 1), but got 1"),
    "a negative partner": (*mixing(partner=torch.tensor([0, -1, 0])), "partner must be in [0, 3), but got -1"),
    "pairing": (*mixing(pairing=9), "pairing"),
    "partner of a paste": ("paste", (X, ONE + 3, BOX, BOX, 0), "partner must be in [0, 3), but got 3"),
    "partners of one dim": ("paste", (X, ONE[:, 0], BOX, BOX, 0), "partner must be int64 of shape (3, "),
    "int32 partners": ("paste", (X, ONE.int(), BOX, BOX, 0), "partner must be int64", "int32"),
    "no patches": ("paste", (X, ONE[:, :0], BOX[:, :0], BOX[:, :0], 0), "partners of a sample must be in [1, 8]", "0"),
    "nine patches": ("paste", (X, wide(ONE, 9), wide(BOX, 9), wide(BOX, 9), 0), "of a sample must be in [1, 8]", "9"),
    "resize": ("paste", (X, ONE, BOX, BOX, 3), "resize must be in [0, 2], but got 3"),
    "boxes of floats": ("paste", (X, ONE, BOX.float(), BOX, 0), "boxes must be int32", "float32"),
    "boxes of four sides": ("paste", (X, ONE, wide(BOX.mT, 1).expand(3, 1, 8), BOX, 0), "boxes must be "),
    "crops of others": ("paste", (X, ONE, BOX, BOX[:2], 0), "crops must be int32 of shape (3, 1, 4)", "(2, 1, 4)"),
    "a box that begins outside": ("paste", (X, ONE, box_with(0, -1), BOX, 0), "boxes must have 0 <= first <= stop"),
    "a box that ends outside": (
        "paste",
        (X, ONE, box_with(3, 7), BOX, 0),
        "boxes must have 0 <= first <= stop <= side",
    ),
    "a crop that ends before it begins": ("paste", (X, ONE, BOX, box_with(2, -1), 0), "crops must have 0 <= first"),
    "a crop without pixels": ("paste", (X, ONE, BOX, box_with(2, 0), 0), "crops must have pixels wherever their boxes"),
    "int64 images": ("paste", (X.long(), ONE, BOX, BOX, 1), "int64"),
    "weights of a sum": ("blend", (X, ONE, WEIGHT.double()), "weight must be float32 of shape (3, 1)", "float64"),
    "fewer weights": ("blend", (X, wide(ONE, 2), WEIGHT), "weight must be float32 of shape (3, 2)", "(3, 1)"),
    "partner of a sum": ("blend", (X, ONE - 1, WEIGHT), "partner must be in [0, 3), but got -1"),
    "nine terms": ("blend", (X, wide(ONE, 9), wide(WEIGHT, 9)), "of a sample must be in [1, 8]", "9"),
    "bool images": ("blend", (X.bool(), ONE, WEIGHT), "bool"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("backend", ["reference", CPP])
def test_wrong_arguments(backend, name):
    """The native bindings check what the operators in Python check."""
    operators = backends.operators("cpu", backend)
    operator, args, *fragments = WRONG[name]
    before = X.clone()
    with pytest.raises((ValueError, TypeError)) as caught:
        getattr(operators, operator)(*args)
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert torch.equal(X, before)
