"""Plans that take pixels from elsewhere than from the partner at the same place: from another batch, a constant, a
pasted crop, a blend of several, or blocks that moved."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils import _pytree as pytree

import fusedmix as fm
from fusedmix.arguments import Moves, Patches, Terms
from fusedmix.methods import Resize
from fusedmix.mixing import moved
from wrong_calls import check

REFERENCE = torch.ops.fusedmix_reference
B, SIZE = 5, (12, 8)
PARTNER = torch.tensor([[1, 2], [3, 3], [0, 1], [4, 4], [4, 0]])
# A box that is filled, one that is clipped to nothing, one of a pixel; the second box covers a part of the first.
BOXES = torch.tensor(
    [
        [[0, 0, 12, 8], [3, 2, 9, 7]],
        [[2, 2, 2, 5], [0, 1, 5, 8]],
        [[11, 7, 12, 8], [4, 4, 4, 4]],
        [[1, 0, 7, 3], [0, 5, 12, 6]],
        [[3, 3, 9, 8], [8, 0, 12, 8]],
    ],
    dtype=torch.int32,
)
CROPS = torch.tensor(
    [
        [[0, 0, 12, 8], [3, 2, 9, 7]],
        [[0, 0, 0, 8], [0, 0, 12, 8]],
        [[0, 0, 12, 8], [0, 0, 1, 1]],
        [[4, 5, 12, 8], [0, 0, 3, 8]],
        [[1, 1, 2, 2], [0, 0, 12, 4]],
    ],
    dtype=torch.int32,
)
MODES = {
    Resize.NEAREST: {"mode": "nearest"},
    Resize.LINEAR: {"mode": "bilinear", "align_corners": False},
    Resize.LINEAR_CORNERS: {"mode": "bilinear", "align_corners": True},
}


def plan_of(**more):
    plan = fm.CutMix(per="sample", pairing="random").sample(B, SIZE, seed=1)
    return replace(plan, **more)


def pasted(x, mode):
    """By torch.nn.functional.interpolate, one crop after the other."""
    out = x.clone()
    for i in range(B):
        for k in range(2):
            (top, left, bottom, right), (y, x0, y1, x1) = BOXES[i, k].tolist(), CROPS[i, k].tolist()
            if bottom > top and right > left:
                crop = x[PARTNER[i, k], None, :, y:y1, x0:x1]
                out[i, :, top:bottom, left:right] = F.interpolate(crop, (bottom - top, right - left), **MODES[mode])[0]
    return out


@pytest.mark.parametrize("mode", Resize, ids=lambda mode: mode.name)
def test_pasting(mode):
    x = torch.rand(B, 3, *SIZE)
    plan = plan_of(patches=Patches(PARTNER, BOXES, CROPS), resize=mode)
    out = fm.mix(x, plan, backend="reference")
    # PyTorch computes places in float32, half a millionth of a side off.
    torch.testing.assert_close(out, pasted(x, mode), atol=0 if mode is Resize.NEAREST else 4e-6, rtol=0)
    strided = torch.rand(B, 2 * SIZE[0], SIZE[1], 3).permute(0, 3, 1, 2)[:, :, ::2]
    strided.copy_(x)
    torch.testing.assert_close(fm.mix(strided, plan, backend="reference"), out, rtol=0, atol=0)


@pytest.mark.parametrize("mode", Resize, ids=lambda mode: mode.name)
def test_what_lies_beside_a_crop_does_not_leak(mode):
    x = torch.full((2, 1, 6, 6), torch.nan)
    x[1, :, 2:4, 2:4] = 1.0
    boxes, crops = torch.tensor([[[0, 0, 6, 6]], [[0, 0, 0, 0]]]), torch.tensor([[[2, 2, 4, 4]], [[0, 0, 1, 1]]])
    patches = Patches(torch.tensor([[1], [1]]), boxes.int(), crops.int())
    plan = replace(fm.MixUp().sample(2, (6, 6)), patches=patches, resize=mode)
    assert fm.mix(x, plan, backend="reference")[0].eq(1).all()


def test_blending():
    x = torch.rand(B, 3, *SIZE, dtype=torch.float64)
    weight = torch.tensor([[0.25, 0.75], [1.5, -0.5], [0.0, 1.0], [1.0, 0.0], [0.3, 0.3]], dtype=torch.float64)
    plan = plan_of(terms=Terms(PARTNER, weight), blended=True)
    expected = torch.einsum("bk,bk...->b...", weight.float().double(), x[PARTNER])
    torch.testing.assert_close(fm.mix(x, plan, backend="reference"), expected)
    x[2] = torch.nan  # Sample 2 is in none of the terms of sample 3; in those of sample 0 it is.
    out = fm.mix(x, plan, backend="reference")
    assert out[3].eq(x[4]).all()
    assert out[0].isnan().all()


def test_partners_of_another_batch():
    x, other = torch.rand(B, 3, *SIZE), torch.rand(7, 3, *SIZE)
    partner = torch.tensor([6, 6, 0, 3, 1])
    plan = plan_of(partner=partner, other_size=7)
    m = plan.mask().unsqueeze(1)
    expected = torch.where(m == 1, x, other[partner])
    assert torch.equal(fm.mix(x, plan, other=other, backend="reference"), expected)
    again = x.clone()
    assert fm.mix_(again, plan, other=other.mT.contiguous().mT, backend="reference") is again
    assert torch.equal(again, expected)
    assert again._version > 0


def test_a_constant_in_place_of_the_partner():
    x = torch.randint(256, (B, 3, *SIZE), dtype=torch.uint8)
    plan = plan_of(fill=(7.0, 8.0, 9.0))
    m = plan.mask().unsqueeze(1)
    expected = torch.where(m == 1, x, torch.tensor([7, 8, 9], dtype=torch.uint8).reshape(3, 1, 1))
    assert torch.equal(fm.mix(x, plan, backend="reference"), expected)
    assert torch.equal(fm.mix_(x, plan, backend="reference"), expected)


def test_blocks_that_move():
    x = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    index = torch.stack([torch.randperm(6), torch.arange(6)])
    out = moved(x, index, (2, 3))
    assert torch.equal(out[1], x[1])
    for j in range(6):
        (y, x0), (v, u) = divmod(j, 3), divmod(int(index[0, j]), 3)
        assert torch.equal(
            out[0, :, 2 * y : 2 * y + 2, 2 * x0 : 2 * x0 + 2], x[0, :, 2 * v : 2 * v + 2, 2 * u : 2 * u + 2]
        )
    plan = fm.MixUp(per="sample").sample(2, (4, 6), seed=0)
    lent = torch.stack([torch.arange(6), torch.randperm(6)])
    mixed = fm.mix(x, replace(plan, moves=Moves(index, lent), blocks=(2, 3)), backend="reference")
    w = plan.lam.reshape(-1, 1, 1, 1)
    torch.testing.assert_close(mixed, w * out + (1 - w) * moved(x[plan.partner], lent, (2, 3)))


PLANS = {
    "patches": lambda: plan_of(patches=Patches(PARTNER, BOXES, CROPS), resize=Resize.LINEAR),
    "blended": lambda: plan_of(terms=Terms(PARTNER, torch.rand(B, 2, dtype=torch.float64)), blended=True),
    "moves": lambda: plan_of(moves=Moves(*(torch.rand(B, 6).argsort(1) for _ in range(2))), blocks=(3, 2)),
    "fill": lambda: plan_of(fill=(0.5,)),
    "repeats": lambda: plan_of(partner=torch.tensor([1, 1, 1, 0, 4]), repeats=True),
}


@pytest.mark.parametrize("name", PLANS)
def test_derivatives(name):
    plan = PLANS[name]()
    x = torch.rand(B, 1, *SIZE, dtype=torch.float64, requires_grad=True)

    def mix(x):
        return fm.mix(x, plan, backend="reference")

    assert torch.autograd.gradcheck(mix, x, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(mix, x, fast_mode=True)
    with torch.no_grad():
        torch.testing.assert_close(mix(x), mix(x.clone().requires_grad_()))


def test_derivatives_by_both_batches():
    plan = replace(fm.GMix(per="sample").sample(3, (4, 5), seed=0), partner=torch.tensor([1, 1, 0]), other_size=2)
    x, other = (torch.rand(n, 2, 4, 5, dtype=torch.float64, requires_grad=True) for n in (3, 2))

    def mix(x, other):
        return fm.mix(x, plan, other=other, backend="reference")

    assert torch.autograd.gradcheck(mix, (x, other), check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(mix, (x, other), fast_mode=True)
    mix(x, other).sum().backward()  # Its gradient is expanded: no other batch can have its strides.
    m = plan.mask().unsqueeze(1).double()
    torch.testing.assert_close(x.grad, m.expand_as(x))
    expected = torch.zeros_like(other).index_add(0, plan.partner, (1 - m).expand_as(x))
    torch.testing.assert_close(other.grad, expected)


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_is_a_tree_that_moves(name):
    plan = PLANS[name]()
    leaves, spec = pytree.tree_flatten(plan)
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)
    again = pytree.tree_unflatten(leaves, spec)
    x = torch.rand(B, 1, *SIZE)
    assert torch.equal(fm.mix(x, again, backend="reference"), fm.mix(x, plan, backend="reference"))
    assert plan.to("cpu") is plan
    assert all(leaf.is_meta for leaf in pytree.tree_leaves(plan.to("meta")))


X = torch.zeros(B, 3, *SIZE)
LABELS = torch.tensor([0, 1, 2, 1, 0])
OTHER = plan_of(other_size=7)
FILL, MOVES, BLENDED = (PLANS[name]() for name in ("fill", "moves", "blended"))
WRONG = {
    "mix without other": (lambda: fm.mix(X, OTHER), "other must be the 7 samples"),
    "mix_ without other": (lambda: fm.mix_(X, OTHER), "other must be the 7 samples"),
    "another number": (lambda: fm.mix(X, OTHER, other=X), "other must have 7 samples, but got 5"),
    "none": (lambda: fm.mix(X, plan_of(), other=X[:0]), "other must have at least 1 samples, but got 0"),
    "another dtype": (
        lambda: fm.mix(X, plan_of(), other=X.double()),
        "other must be float32 of shape (samples, 3, 12, 8) on cpu, but got float64",
    ),
    "another shape": (lambda: fm.mix(X, plan_of(), other=X[:, :1]), "but got float32 of shape (5, 1, 12, 8)"),
    "too few": (lambda: fm.mix(X, plan_of(), other=X[:2]), "partner must be in [0, 2), but got "),
    "overlap": (lambda: fm.mix_(X, plan_of(), other=X[:]), "two of them share memory"),
    "fill and other": (lambda: fm.mix(X, FILL, other=X), "other must be None for a plan that fills"),
    "channels": (lambda: fm.mix(X, plan_of(fill=(0.0, 1.0))), "x must have 2 channels, as many as plan.fill"),
    "patches and other": (lambda: fm.mix(X, PLANS["patches"](), other=X), "other must be None for a plan that pastes"),
    "patches in place": (lambda: fm.mix_(X, PLANS["patches"]()), "x cannot be mixed in place by a plan that pastes"),
    "finish": (
        lambda: fm.mix(X, FILL, finish=fm.Finish(normalize=None)),
        "x cannot be mixed here by a plan that has no",
    ),
    "masks": (
        lambda: fm.mix_masks(X[:, 0].long(), BLENDED),
        "label maps, which a method that blends images cannot mix",
    ),
    "blocks": (
        lambda: fm.mix(X, replace(MOVES, blocks=(5, 2))),
        "x must have sides that are multiples of (5, 2) blocks",
    ),
    "labels of another batch": (lambda: fm.mix_labels(LABELS, OTHER, num_classes=3), "which has to be given as other="),
    "embeddings": (lambda: fm.mix_embeddings(X[:, 0], FILL), "embeddings cannot be mixed here by a plan that has"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls(name):
    call, fragment = WRONG[name]
    before = X.clone()
    check(call, ValueError, [fragment])
    assert torch.equal(X, before)
