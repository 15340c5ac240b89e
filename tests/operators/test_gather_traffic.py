"""What the CUDA kernels touch of several samples, and how often: partners in another batch, pasted crops, sums."""

from __future__ import annotations

import itertools

import pytest
import torch

from batches import (
    DTYPES,
    MASKS,
    batch_innermost,
    channels_last,
    contiguous,
    cropped,
    each_dtype,
    plan_for,
    shifted,
    values,
)
from fusedmix.masks.family import packed
from fusedmix.methods import Families, Pairing, Per, Resize
from operators.on_shim import assert_written_once, weights_of
from oracle import alike

REFERENCE = torch.ops.fusedmix_reference
PLACES = (contiguous, channels_last, cropped, shifted)


def drawn(seed):
    return torch.Generator().manual_seed(seed)


def with_partners(masks, partner):
    """A plan whose partners are others: of no formula, and anybody's."""
    _, records, families, ndim, _, per, *pixels = masks
    return partner, records, families, ndim, Pairing.RANDOM, per, *pixels


# ---- partners in another batch --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*MASKS])
def test_other_batch(shim, name):
    """Samples of x stand in the other batch in another order, some twice: so the result is that of a plan for x."""
    shapes = (((7, 3, 4, 16), 2), ((5, 2, 5, 7), 2), ((6, 3, 33), 1), ((3, 2, 3, 4, 8), 3))
    for i, (dtype, layout) in enumerate(itertools.product(DTYPES, PLACES)):
        shape, spatial = shapes[i % len(shapes)]
        n = 1 + i % (2 * shape[0])
        stands = torch.randint(shape[0], (n,), generator=drawn(i))
        partner = torch.randint(n, shape[:1], generator=drawn(i + 100))
        masks = plan_for(MASKS[name], shape, spatial, ("sample", "batch")[i % 3 == 1], "random", seed=i)
        before = values(shape, dtype, seed=i)
        x, other = layout(before), layout(before[stands])
        expected = shim.mix(before, *with_partners(masks, stands[partner]))
        plan = with_partners(masks, partner)
        out = shim.mix_with(x, other, *plan, on_host=i % 2 == 0)
        assert shim.kernels() == ["with"]
        assert alike(out, expected)
        assert_written_once(shim, "out", out)
        # What is the partner's alone or the sample's alone is not read of the other one.
        reads, lent = shim.counts("x", x)[0], shim.counts("other", other)[0]
        assert reads.max() <= 1
        assert lent.max() <= int(partner.bincount().max())
        shim.mix_with_(x, other, *plan, on_host=i % 2 == 1)
        assert alike(x, expected)
        reads, writes = shim.counts("x", x)
        assert writes.max() <= 1
        assert (reads <= writes).all()


def test_boxes_read_one_of_both(shim):
    """CutMix out of place reads each vector of the sample or of the partner; in place no more than boxes."""
    x, other = values((4, 3, 6, 16), torch.float32), values((2, 3, 6, 16), torch.float32, seed=1)
    masks = with_partners(plan_for(MASKS["CutMix"], x.shape, 2, "sample", "random", seed=3), torch.tensor([1, 0, 1, 1]))
    w = weights_of(shim, x, masks)
    vectors = w.reshape(4, -1, 4)
    takes, keeps = (vectors == 0).all(2), (vectors == 1).all(2)
    shim.mix_with(x, other, *masks)
    own = shim.counts("x", x)[0].reshape(4, -1, 4)[..., 0]
    lent = shim.counts("other", other)[0].reshape(2, -1, 4)[..., 0]
    assert torch.equal(own, (~takes).long())
    assert torch.equal(lent, torch.zeros_like(lent).index_add(0, masks[0], (~keeps).long()))
    shim.mix_with_(x, other, *masks)
    reads, writes = (t.reshape(4, -1, 4)[..., 0] for t in shim.counts("x", x))
    assert torch.equal(reads, (~takes & ~keeps).long())
    assert torch.equal(writes, (~keeps).long())


@each_dtype
def test_partners_that_are_in_no_batch(shim, dtype):
    """Only the host could refuse them: the samples stay as they are."""
    n = 5
    kind, geometry = torch.zeros(n).int(), torch.zeros(n, 6).int()
    records = packed(kind, geometry, torch.tensor([[0.25, 0.0]]).expand(n, 2).contiguous())
    x, other = values((n, 2, 4, 8), dtype), values((3, 2, 4, 8), dtype, seed=1)
    partner = torch.tensor([0, 3, -1, 2**40, 2])
    plan = partner, records, Families.CONSTANTS, 0, Pairing.RANDOM, Per.SAMPLE
    out = shim.mix_with(x, other, *plan)
    assert alike(out[1:4], x[1:4])
    assert alike(
        out[::4],
        REFERENCE.mix_with(x[::4].contiguous(), other, partner[::4].contiguous(), records[::4].contiguous(), *plan[2:]),
    )
    shim.mix_with_(x, other, *plan)
    assert alike(x, out)
    with pytest.raises(ValueError, match=r"partner must be in \[0, 3\), but got 3"):
        shim.mix_with(x, other, *plan, on_host=True)


# ---- pasted crops ---------------------------------------------------------------------------------------------------


def patches_for(shape, ndim, count, seed, resized=True):
    """Boxes of any size, and crops: of any other, or of the same. No sample is its own partner."""
    generator = drawn(seed)
    size, n = torch.tensor(shape[len(shape) - ndim :]), shape[0]

    def below(limit):
        return (torch.rand(n, count, ndim, generator=generator) * limit).long()

    length = below(size + 1)
    crop = 1 + below(size) if resized else length
    first, at = below(size - length + 1), below(size - crop + 1)
    partner = (torch.arange(n)[:, None] + torch.randint(1, max(n, 2), (n, count), generator=generator)) % n
    return partner, torch.cat([first, first + length], 2).int(), torch.cat([at, at + crop], 2).int()


def sources_of(shape, patches):
    """Where each element of a nearest paste comes from: its number in the batch."""
    number = torch.arange(torch.tensor(shape).prod(), dtype=torch.float64).reshape(shape)
    return REFERENCE.paste(number, *patches, Resize.NEAREST).long(), number.long()


def whole_vectors(some, x, width):
    """All elements of the vectors that have one of those, in memory as a new batch like x has it."""
    new = torch.empty_like(x)
    order = sorted(range(x.ndim), key=lambda d: -new.stride(d))
    turned = some.permute(order)
    whole = turned.reshape(-1, width).any(1, keepdim=True).expand(-1, width).reshape(turned.shape)
    return whole.permute([order.index(d) for d in range(x.ndim)])


@pytest.mark.parametrize("resized", [True, False])
@each_dtype
def test_a_paste_reads_what_it_shows(shim, dtype, resized):
    """And where a vector is partly its own, all of that."""
    for i, (shape, ndim, layout) in enumerate(
        itertools.product(
            ((4, 3, 6, 16), (3, 2, 5, 7), (4, 2, 33)), (1, 2), (contiguous, channels_last, batch_innermost)
        )
    ):
        patches = patches_for(shape, min(ndim, len(shape) - 2), 1 + i % 3, seed=i, resized=resized)
        x = layout(values(shape, dtype, seed=i))
        out = shim.paste(x, *patches, Resize.NEAREST, on_host=i % 2 == 0)
        assert shim.kernels() == ["paste"]
        assert alike(out, REFERENCE.paste(x, *patches, Resize.NEAREST))
        assert out.stride() == torch.empty_like(x).stride()
        assert_written_once(shim, "out", out)
        source, number = sources_of(shape, patches)
        reads = shim.counts("x", x)[0]
        own = whole_vectors(source == number, x, shim.shape.width)
        painted = source[source != number].bincount(minlength=x.numel()).reshape(shape)
        assert torch.equal(reads, own.long() + painted)


def test_crops_that_are_not_resized_move_16_bytes_at_a_time(shim):
    """Where they and their boxes lie at multiples of it, by the widths of accesses that were logged."""
    x = values((3, 2, 8, 32), torch.float32)
    boxes = torch.tensor([2, 8, 6, 24]).int().expand(3, 1, 4).contiguous()
    crops = torch.tensor([4, 4, 8, 20]).int().expand(3, 1, 4).contiguous()
    patches = torch.tensor([[1], [2], [0]]), boxes, crops
    out = shim.paste(x, *patches, Resize.LINEAR)
    assert alike(out, REFERENCE.paste(x, *patches, Resize.LINEAR))
    ((_, launch),) = shim.launches()
    assert set(launch["buffers"]["x"]["read_widths"]) == {16}
    assert set(launch["buffers"]["out"]["write_widths"]) == {16}


@pytest.mark.parametrize("resize", Resize)
def test_long_signals(shim, resize):
    """Products of places and sides of more than 32767 exceed 32 bits."""
    x = values((2, 1, 70_000), torch.float16)
    boxes = torch.tensor([[[3, 69_000]], [[0, 70_000]]]).int()
    crops = torch.tensor([[[1, 68_000]], [[2, 69_999]]]).int()
    out = shim.paste(x, torch.tensor([[1], [0]]), boxes, crops, resize)
    assert alike(out, REFERENCE.paste(x, torch.tensor([[1], [0]]), boxes, crops, resize))


def test_patches_that_only_the_host_could_refuse(shim):
    """Nobody's crops, boxes and crops that reach out of the image, empty crops: nothing is painted."""
    x = values((6, 1, 4, 8), torch.float32)
    low, high = -(2**31), 2**31 - 1
    partner = torch.tensor([[6], [-1], [0], [0], [0], [0]])
    boxes = torch.tensor([[0, 0, 4, 8], [0, 0, 4, 8], [low, low, high, high], [0, 0, 4, 8], [0, 0, 4, 8], [1, 1, 3, 3]])
    crops = torch.tensor([[0, 0, 4, 8], [0, 0, 4, 8], [0, 0, 4, 8], [-3, 0, 4, 8], [2, 2, 2, 4], [low, 0, high, 9]])
    for resize in Resize:
        out = shim.paste(x, partner, boxes[:, None].int(), crops[:, None].int(), resize)
        assert alike(out, x)


# ---- sums -----------------------------------------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("count", [1, 3, 8])
def test_a_sum_reads_its_terms(shim, dtype, count):
    """Each once, those of weight 0 not at all; of any layout, and as the reference has it."""
    for i, (shape, layout) in enumerate(itertools.product(((5, 3, 4, 16), (4, 3, 5, 7)), PLACES)):
        x = layout(values(shape, dtype, seed=i))
        partner = torch.randint(shape[0], (shape[0], count), generator=drawn(i))
        weight = torch.randn(shape[0], count, generator=drawn(i + 1))
        weight[torch.rand(weight.shape, generator=drawn(i + 2)) < 0.3] = 0
        out = shim.blend(x, partner, weight, on_host=i % 2 == 0)
        assert shim.kernels() == ["blend"]
        assert torch.equal(out, REFERENCE.blend(x, partner, weight))
        assert_written_once(shim, "out", out)
        used = partner[weight != 0].bincount(minlength=shape[0])
        reads = shim.counts("x", x)[0]
        assert torch.equal(reads, used.reshape(-1, *[1] * (x.ndim - 1)).expand(shape))


def test_a_sum_of_nothing(shim):
    """Weights of 0, and partners that only the host could refuse: 0, and not -0; a product of 0 keeps its sign."""
    x = torch.tensor([[1.0, -0.0], [torch.inf, torch.nan], [3.0, 4.0]])
    partner = torch.tensor([[1, 3], [0, -1], [0, 1]])
    weight = torch.tensor([[0.0, 1.0], [2.0, 1.0], [1.0, 0.0]])
    out = shim.blend(x, partner, weight)
    assert torch.equal(out, torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 0.0]]))
    assert out.signbit().tolist() == [[False, False], [False, True], [False, True]]
