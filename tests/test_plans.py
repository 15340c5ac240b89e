"""Plans from outside: partners and masks that are given, in place of drawn ones."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.utils import _pytree as pytree

import fusedmix as fm
from callers import each_backend
from conftest import NO_CPP
from fusedmix.methods import Families, Pairing, Per
from oracle import assert_mixed, over_batch
from wrong_calls import X, check, wrong, wrong_type, wrong_value

B = 5
SIZES = [(23,), (5, 9), (3, 4, 7)]
REPEATED = torch.tensor([1, 1, 3, 0, 1])
PERMUTED = torch.tensor([2, 0, 4, 1, 3])
PARTS = ["boxes", "masks", "bits", "lam", "cells", "many cells"]
LEVELS = 65535


def part(name, size, seed=0):
    """Keywords of `from_parts`, and the masks (B, *size) that they mean: of float masks the nearest of 65536 levels."""
    g = torch.Generator().manual_seed(seed)
    if name == "boxes":
        ends = torch.stack([torch.randint(0, side + 1, (B, 2), generator=g) for side in size], 2).sort(1).values
        ends[0], ends[1, 0], ends[1, 1] = ends[0, 0], 0, torch.tensor(size)  # an empty one, and all of the image
        masks = torch.ones(B, *size)
        for mask, (first, stop) in zip(masks, ends.tolist(), strict=True):
            mask[tuple(map(slice, first, stop))] = 0
        return {"boxes": ends.flatten(1), "size": size}, masks
    if name == "lam":
        lam = torch.tensor([0.0, 1.0, 0.25, -1.5, 0.1])
        return {"lam": lam, "size": size}, over_batch(lam, torch.empty(B, *size), ())
    if name in ("masks", "bits"):
        masks = torch.rand(B, *size, generator=g)
        if name == "bits":
            return {"masks": masks < 0.5}, (masks < 0.5).float()
        masks[0], masks[1] = 1, 0
        return {"masks": masks}, (masks.double() * LEVELS).round().float() / LEVELS
    cells = size if name == "many cells" else tuple(min(side, 2) for side in size)
    grid = torch.rand(B, *cells, generator=g) < 0.4
    masks = grid
    for dim, (side, count) in enumerate(zip(size, cells, strict=True), 1):
        masks = masks.index_select(dim, torch.arange(side) * count // side)
    return {"cells": grid, "size": size}, masks.float()


each_part = pytest.mark.parametrize("name", PARTS)
each_size = pytest.mark.parametrize("size", SIZES, ids=str)


@each_part
@each_size
@pytest.mark.parametrize("partner", [None, REPEATED], ids=["roll", "repeated"])
def test_what_a_plan_holds(name, size, partner):
    given, masks = part(name, size)
    plan = fm.MixPlan.from_parts(partner=partner, **given)
    assert plan.size == size
    assert plan.per == Per.SAMPLE
    assert torch.equal(plan.partner, torch.arange(B).roll(1) if partner is None else partner)
    assert plan.pairing == (Pairing.ROLL if partner is None else Pairing.RANDOM)
    assert plan.repeats == (partner is not None)
    assert torch.equal(plan.mask(), masks)
    assert (plan.weight - masks.double().flatten(1).mean(1)).abs().max() <= 2e-8  # float32 holds n/65535 nearly
    assert torch.equal(plan.lam, plan.weight.float())
    assert plan.binary == (name not in ("lam", "masks"))
    assert plan.constant == (name == "lam")


@each_backend
@each_part
@pytest.mark.parametrize("partner", [None, PERMUTED, REPEATED], ids=["roll", "permuted", "repeated"])
def test_mixing(backend, name, partner):
    """Every backend mixes by them, out of place, and by permutations in place."""
    for size in SIZES if backend.fast else SIZES[1:2]:
        given, masks = part(name, size)
        plan = fm.MixPlan.from_parts(partner=partner, **given)
        for dtype in (torch.float32, torch.uint8) if name != "lam" else (torch.float32,):
            x = (torch.rand(B, 2, *size) * 255).to(dtype).to(backend.device)
            out = backend.mix(x, plan)
            assert_mixed(out.cpu(), x.cpu(), over_batch(masks, x, size), plan.partner)
            if not plan.repeats:
                backend.mix_(x, plan)
                assert torch.equal(x, out)


@pytest.mark.parametrize("name", ["boxes", "masks", "lam"])
@pytest.mark.parametrize("partner", [PERMUTED, REPEATED], ids=["permuted", "repeated"])
@pytest.mark.parametrize(
    "backend", ["reference", pytest.param("cpp", marks=pytest.mark.skipif(bool(NO_CPP), reason=""))]
)
def test_derivatives(backend, name, partner):
    given, _ = part(name, (2, 2))
    plan = fm.MixPlan.from_parts(partner=partner, **given)
    x = torch.rand(B, 1, 2, 2, dtype=torch.float64, requires_grad=True)

    def mix(x):
        return fm.mix(x, plan, backend=backend)

    w, grad = plan.mask().double().unsqueeze(1), torch.rand_like(x)
    expected = (w * grad).index_add(0, partner, (1 - w) * grad)
    torch.testing.assert_close(torch.autograd.grad(mix(x), x, grad)[0], expected)
    assert torch.equal(mix(x), mix(x.detach()))
    gradcheck(mix, x, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    gradgradcheck(mix, x, check_fwd_over_rev=True)


@each_part
def test_labels_and_losses(name):
    """By the realised means, or by the weights that are given."""
    for weight in (None, torch.rand(B)):
        given, masks = part(name, (4, 6))
        plan = fm.MixPlan.from_parts(partner=REPEATED, weight=weight, **given)
        w = (masks.flatten(1).double().mean(1) if weight is None else weight.double()).unsqueeze(1)
        one_hot = torch.eye(3, dtype=torch.float64)[torch.tensor([0, 1, 2, 1, 0])]
        targets = w * one_hot + (1 - w) * one_hot[REPEATED]
        y = one_hot.argmax(1)
        torch.testing.assert_close(fm.mix_labels(y, plan, num_classes=3).double(), targets, atol=1e-6, rtol=0)
        torch.testing.assert_close(fm.mix_targets(one_hot, plan), targets, atol=1e-7, rtol=0)
        z = torch.randn(B, 3, dtype=torch.float64, requires_grad=True)
        for loss, plain in (
            (fm.mix_cross_entropy, torch.nn.functional.cross_entropy),
            (fm.mix_binary_cross_entropy, torch.nn.functional.binary_cross_entropy_with_logits),
        ):
            mixed, expected = loss(z, y, plan), plain(z, targets)
            torch.testing.assert_close(mixed, expected, atol=1e-7, rtol=0)
            torch.testing.assert_close(*(torch.autograd.grad(f, z)[0] for f in (mixed, expected)), atol=1e-7, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_levels_are_the_nearest(dtype):
    masks = torch.rand(B, 40, 40).to(dtype)
    held = fm.MixPlan.from_parts(masks=masks).mask().double()
    assert (held - masks.double()).abs().max() <= 0.5 / LEVELS + 2.0**-25


def test_masks_that_are_segments():
    """Label maps are mixed by bits: whatever torchvision calls a mask, too."""
    from torchvision import tv_tensors

    masks = torch.rand(B, 6, 7) < 0.5
    plan = fm.MixPlan.from_parts(masks=tv_tensors.Mask(masks), partner=REPEATED)
    labels = torch.randint(0, 9, (B, 6, 7))
    assert torch.equal(fm.mix_masks(labels, plan), torch.where(masks, labels, labels[REPEATED]))


def test_a_plan_of_one_weight_fits_any_size():
    lam = torch.tensor([0.0, 1.0, 0.25, 0.5, 2.0])
    plan = fm.MixPlan.from_parts(lam=lam, partner=REPEATED)
    for shape in ((B,), (B, 7), (B, 3, 4, 5, 6)):
        x = torch.rand(shape, dtype=torch.float64)
        w = lam.double().reshape(-1, *[1] * (x.ndim - 1))
        torch.testing.assert_close(fm.mix(x, plan), w * x + (1 - w) * x[REPEATED])


@pytest.mark.parametrize("n", [0, 1])
def test_small_batches(n):
    for given in (
        {"boxes": torch.zeros(n, 4, dtype=torch.long), "size": (3, 3)},
        {"masks": torch.rand(n, 3, 3)},
        {"masks": torch.rand(n, 3, 3) < 0.5},
        {"lam": torch.rand(n)},
        {"cells": torch.ones(n, 2, 2), "size": (3, 3)},
    ):
        for partner in (None, torch.zeros(n, dtype=torch.long)):
            plan = fm.MixPlan.from_parts(partner=partner, **given)
            x = torch.rand(n, 2, 3, 3)
            assert not plan.repeats
            assert torch.allclose(fm.mix(x, plan), x)
            assert torch.allclose(fm.mix_(x.clone(), plan), x)


def test_parts_are_constants():
    """But for label weights, which may be learned."""
    masks, lam, weight = torch.rand(B, 4, 4), torch.rand(B), torch.rand(B)
    for x in (masks, lam, weight):
        x.requires_grad_()
    assert not fm.mix(torch.rand(B, 1, 4, 4), fm.MixPlan.from_parts(masks=masks)).requires_grad
    plan = fm.MixPlan.from_parts(lam=lam, weight=weight)
    y = torch.eye(B)
    fm.mix_labels(y, plan)[0, 0].backward()
    assert lam.grad is None
    assert torch.equal(weight.grad, y[0])


@each_part
@pytest.mark.parametrize("partner", [None, REPEATED], ids=["roll", "repeated"])
def test_copies(name, partner):
    """Through pytrees, pickle, deepcopy and another device and back it is the same plan."""
    given, _ = part(name, (4, 6))
    plan = fm.MixPlan.from_parts(partner=partner, **given)
    x = torch.rand(B, 1, 4, 6)
    leaves, spec = pytree.tree_flatten(plan)
    moved = plan.to("meta")
    assert moved.repeats == plan.repeats
    for again in (pytree.tree_unflatten(leaves, spec), pickle.loads(pickle.dumps(plan)), copy.deepcopy(plan)):
        assert again.repeats == plan.repeats
        assert torch.equal(fm.mix(x, again), fm.mix(x, plan))


@pytest.mark.parametrize("name", ["boxes", "masks", "cells"])
def test_compiled(name):
    """Made outside of a graph or inside, it mixes as it does without one; and gradients are right."""
    given, _ = part(name, (4, 6))
    x = torch.rand(B, 2, 4, 6, requires_grad=True)
    plan = fm.MixPlan.from_parts(partner=REPEATED, **given)
    torch._dynamo.reset()

    def apply(x, plan):
        return fm.mix(x, plan), fm.mix_labels(torch.arange(B), plan, num_classes=B)

    def make(x, tensors):
        return apply(x, fm.MixPlan.from_parts(**tensors))

    expected = apply(x, plan)
    grad = torch.rand_like(x)
    for f, args in ((apply, (x, plan)), (make, (x, {"partner": REPEATED, **given}))):
        found = torch.compile(f, fullgraph=True, backend="aot_eager")(*args)
        assert all(map(torch.equal, found, expected))
        assert torch.equal(*(torch.autograd.grad(of[0], x, grad, retain_graph=True)[0] for of in (found, expected)))


def test_what_a_finish_makes_of_it():
    """A batch that is finished is mixed by such a plan, too."""
    given, masks = part("boxes", (8, 8))
    plan = fm.MixPlan.from_parts(partner=REPEATED, **given)
    x = torch.randint(0, 256, (B, 3, 8, 8), dtype=torch.uint8)
    how = fm.Finish(((0.5,) * 3, (0.25,) * 3))
    alone = fm.finish(x, how)
    assert torch.equal(fm.mix(x, plan, finish=how), torch.where(masks.unsqueeze(1) == 1, alone, alone[REPEATED]))


def test_no_permutation_in_place():
    x = torch.rand(B, 1, 4, 6)
    before = x.clone()
    for name in PARTS:
        plan = fm.MixPlan.from_parts(partner=REPEATED, **part(name, (4, 6))[0])
        with pytest.raises(fm.InplaceError, match="a sample is the partner of several others"):
            fm.mix_(x, plan)
        assert torch.equal(x, before)


# ---- wrong calls -----------------------------------------------------------------------------------------------------

from_parts = fm.MixPlan.from_parts
BOXES, MASKS, LAM = torch.tensor([[0, 0, 4, 4]] * 4), torch.rand(4, 8, 8), torch.tensor([0.0, 0.5, 1.0, 0.25])
WRONG = {
    "nothing": wrong_value(lambda: from_parts(size=(8, 8)), "exactly one of boxes, masks, lam, cells", "none"),
    "two masks": wrong_value(lambda: from_parts(boxes=BOXES, lam=LAM, size=(8, 8)), "exactly one", "boxes and lam"),
    "boxes a list": wrong_type(
        lambda: from_parts(boxes=[[0, 0, 4, 4]], size=(8, 8)), "boxes", "list", "torch.as_tensor"
    ),
    "boxes float": wrong_value(lambda: from_parts(boxes=BOXES.float(), size=(8, 8)), "boxes", "float32", "integers"),
    "boxes of volumes": wrong_value(
        lambda: from_parts(boxes=BOXES, size=(8, 8, 8)), "boxes", "(4, 4)", "(batch_size, 6)"
    ),
    "boxes of one sample": wrong_value(
        lambda: from_parts(boxes=BOXES[0], size=(8, 8)), "boxes", "(4,)", "(batch_size, 4)"
    ),
    "boxes without a size": wrong_type(lambda: from_parts(boxes=BOXES), "size", "None", "1 to 3 ints"),
    "boxes outside": wrong_value(lambda: from_parts(boxes=BOXES + 5, size=(8, 8)), "boxes", "sample 0", "[5, 5, 9, 9]"),
    "boxes negative": wrong_value(lambda: from_parts(boxes=BOXES - 1, size=(8, 8)), "boxes", "[-1, -1, 3, 3]", "0 <="),
    "boxes turned": wrong_value(
        lambda: from_parts(boxes=BOXES[:, [2, 0, 0, 2]], size=(8, 8)), "boxes", "[4, 0, 0, 4]", "first <= stop"
    ),
    "masks above 1": wrong_value(lambda: from_parts(masks=MASKS + 1), "masks", "in [0, 1]"),
    "masks nan": wrong_value(lambda: from_parts(masks=MASKS * math.nan), "masks", "in [0, 1]"),
    "masks of bytes": wrong_value(lambda: from_parts(masks=(MASKS * 255).byte()), "masks", "0 or 1"),
    "masks complex": wrong_value(lambda: from_parts(masks=MASKS.cfloat()), "masks", "complex64", "float32"),
    "masks of one side": wrong_value(lambda: from_parts(masks=LAM), "masks", "(4,)", "(batch_size, *size)"),
    "masks of no pixels": wrong_value(lambda: from_parts(masks=MASKS[:, :0]), "the shape of masks[0]", ">= 1", "0"),
    "masks of another size": wrong_value(lambda: from_parts(masks=MASKS, size=(8, 9)), "size", "(8, 8)", "(8, 9)"),
    "lam a number": wrong_type(lambda: from_parts(lam=0.5), "lam", "float", "tensor"),
    "lam int": wrong_value(lambda: from_parts(lam=torch.ones(4).long()), "lam", "int64", "floating point"),
    "lam of pixels": wrong_value(lambda: from_parts(lam=MASKS), "lam", "(4, 8, 8)", "(batch_size,)"),
    "lam infinite": wrong_value(lambda: from_parts(lam=LAM / 0), "lam", "finite"),
    "cells of numbers": wrong_value(lambda: from_parts(cells=MASKS, size=(8, 8)), "cells", "0 or 1"),
    "cells too many": wrong_value(lambda: from_parts(cells=MASKS > 0, size=(8, 4)), "cells[1]", "at most the 4", "8"),
    "partner a list": wrong_type(
        lambda: from_parts(lam=LAM, partner=[0, 1, 2, 3]), "partner", "list", "torch.as_tensor"
    ),
    "partner int32": wrong_value(
        lambda: from_parts(lam=LAM, partner=torch.zeros(4).int()), "partner", "int64", "int32"
    ),
    "partner of three": wrong_value(
        lambda: from_parts(lam=LAM, partner=torch.tensor([0, 1, 2])), "partner", "(4,)", "(3,)"
    ),
    "partner outside": wrong_value(
        lambda: from_parts(lam=LAM, partner=torch.tensor([0, 1, 2, 4])), "partner", "[0, 4)", "4"
    ),
    "weight above 1": wrong_value(lambda: from_parts(lam=LAM, weight=LAM + 1), "weight", "[0, 1]"),
    "weight int": wrong_value(lambda: from_parts(lam=LAM, weight=torch.ones(4).long()), "weight", "int64", "floating"),
    "in place": wrong(
        fm.InplaceError,
        lambda: fm.mix_(X, from_parts(lam=LAM, partner=torch.tensor([0, 0, 1, 2]))),
        "x cannot be mixed in place",
        "several",
        "fusedmix.mix",
    ),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_wrong_parts(case):
    check(*case)


def test_what_nobody_looks_at_is_brought_into_range(monkeypatch):
    """As on a GPU: boxes are clipped, masks clamped, and partners taken for such that may repeat."""
    monkeypatch.setattr("fusedmix.checks.readable", lambda x: False)
    plan = from_parts(boxes=torch.tensor([[-3, 2, 5, 90], [6, 6, 2, 2]]), size=(4, 4), partner=torch.tensor([1, 0]))
    assert plan.geometry[:, [1, 2, 4, 5]].tolist() == [[0, 2, 4, 4], [4, 4, 4, 4]]
    assert plan.weight.tolist() == [0.5, 1.0]
    assert plan.families == Families.CUTS
    assert plan.repeats
    assert from_parts(masks=torch.tensor([[-1.0, 0.0, 1.0, 3.0]])).mask().tolist() == [[0.0, 0.0, 1.0, 1.0]]
