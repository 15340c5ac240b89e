"""The losses of mixed label maps against PyTorch's own of label maps, on every backend that runs here."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import fusedmix as fm
from conftest import INTEGERS, refused
from test_ops import HERE

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
VOID = 255
METHODS = {
    "CutMix": lambda: fm.CutMix(per="sample", pairing="random"),
    "MixUp": lambda: fm.MixUp(),
    "HMix": lambda: fm.HMix(ratio=0.5, pairing="flip"),
    "GMix": lambda: fm.GMix(per="sample"),
    "FMix": lambda: fm.FMix(per="sample", pairing="random"),
    "FMix_soft": lambda: fm.FMix(max_soft=0.5),
    "SmoothMix": lambda: fm.SmoothMix(pairing="flip", per="pair"),
}
SIZES = ((37,), (6, 7), (3, 4, 5), (33, 40))


@pytest.fixture(params=HERE, ids="-".join)
def backend(request):
    """(name, device)."""
    return request.param


def maps_for(b, k, size, device="cpu", dtype=torch.int64, void=0.2):
    generator = torch.Generator().manual_seed(b * k)
    maps = torch.randint(k, (b, *size), generator=generator)
    return torch.where(torch.rand(b, *size, generator=generator) < void, VOID, maps).to(device, dtype)


def logits_for(b, k, size, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(k)
    return (3 * torch.randn(b, k, *size, generator=generator, dtype=torch.float64)).to(device, dtype)


def dense(z, maps, plan, weight=None, smoothing=0.0, reduction="mean", ignored=VOID):
    """The equation of the docstring, each label's loss by F.cross_entropy of z in float64."""
    m, maps, partner = plan.mask().cpu().double(), maps.cpu().long(), plan.partner.cpu()
    c = torch.ones(z.shape[1], dtype=torch.float64) if weight is None else weight.double()
    loss, counted = torch.zeros_like(m), torch.zeros_like(m)
    for share, y in ((m, maps), (1 - m, maps[partner])):
        own = F.cross_entropy(z, y, c, ignore_index=ignored, reduction="none", label_smoothing=smoothing)
        loss = loss + share * own
        counted = counted + share * torch.where(y == ignored, 0.0, c[torch.where(y == ignored, 0, y)])
    return loss if reduction == "none" else loss.sum() / (counted.sum() if reduction == "mean" else 1)


def assert_as(loss, logits, expected, exact):
    """Losses to some units of the compute type, gradients to these and half a unit of the logits' type."""
    compute = torch.float64 if logits.dtype == torch.float64 else torch.float32
    assert loss.dtype == compute
    eps = torch.finfo(compute).eps
    torch.testing.assert_close(loss.cpu().double(), expected, rtol=32 * eps, atol=32 * eps)
    outer = torch.linspace(-1, 2, max(1, loss.numel()), dtype=torch.float64)[: loss.numel()].reshape(loss.shape)
    (got,) = torch.autograd.grad(loss, logits, outer.to(loss))
    (want,) = torch.autograd.grad(expected, exact, outer)
    assert got.dtype == logits.dtype
    assert got.stride() == torch.empty_like(logits).stride()
    kind = torch.finfo(logits.dtype)
    # What a logsumexp is rounded by a probability is off by, relative to itself; and subnormal numbers have the spacing
    # of the smallest normal one.
    largest = float(exact.detach().nan_to_num(0, 0, 0).abs().max())
    atol = (32 + 2 * largest) * eps * float(want.abs().max()) + kind.tiny * kind.eps
    torch.testing.assert_close(got.cpu().double(), want, rtol=kind.eps, atol=atol)


def leaves(z):
    """The logits as they are, and in float64 on the CPU: both need gradients."""
    return z.detach().requires_grad_(), z.detach().cpu().double().requires_grad_()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("k", [2, 21, 150])
def test_the_equation(backend, dtype, k):
    name, device = backend
    options = ((None, 0.0, "mean"), ("each", 0.1, "mean"), ("each", 1.0, "sum"), (None, 0.1, "none"))
    for (weighted, smoothing, reduction), size in zip(options, SIZES, strict=True):
        plan, maps = fm.HMix(ratio=0.5).sample(4, size, seed=k), maps_for(4, k, size, device)
        logits, exact = leaves(logits_for(4, k, size, dtype, device))
        weight = torch.rand(k, generator=torch.Generator().manual_seed(k)) if weighted else None
        found = {"weight": weight, "label_smoothing": smoothing, "reduction": reduction}
        loss = fm.mix_pixel_cross_entropy(logits, maps, plan, backend=name, **found)
        assert_as(loss, logits, dense(exact, maps, plan, weight, smoothing, reduction), exact)


def plan_of(method, size):
    mix = METHODS[method]() if method in METHODS else fm.GridMix(cells=(2,) * len(size), per="sample")
    return mix.sample(5, size, seed=3)


@pytest.mark.parametrize("method", [*METHODS, "GridMix"])
@pytest.mark.parametrize("size", SIZES[:3], ids=str)
def test_every_mask(backend, method, size):
    name, device = backend
    plan, maps = plan_of(method, size), maps_for(5, 7, size, device, torch.uint8)
    logits, exact = leaves(logits_for(5, 7, size, device=device))
    loss = fm.mix_pixel_cross_entropy(logits, maps, plan, label_smoothing=0.1, backend=name)
    assert_as(loss, logits, dense(exact, maps, plan, smoothing=0.1), exact)


LAYOUTS = {
    "channels_last": lambda z: z.contiguous(memory_format=torch.channels_last),
    "cropped": lambda z: F.pad(z, (3, 2, 1, 1))[..., 1:-1, 3:-2],
    "stepped": lambda z: z.repeat_interleave(2, -1)[..., ::2],
    "transposed": lambda z: z.mT.contiguous().mT,
    "of more classes": lambda z: torch.cat((z, z), 1)[:, : z.shape[1]],
    "of a column": lambda z: z[..., :1],
    "expanded": lambda z: z[..., :1].expand(z.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_layout(backend, layout, dtype):
    name, device = backend
    logits, exact = leaves(LAYOUTS[layout](logits_for(3, 5, (9, 12), dtype, device)))
    plan, maps = fm.GMix(per="sample").sample(3, logits.shape[2:], seed=1), maps_for(3, 5, logits.shape[2:], device)
    assert_as(fm.mix_pixel_cross_entropy(logits, maps, plan, backend=name), logits, dense(exact, maps, plan), exact)


@pytest.mark.parametrize("dtype", [*INTEGERS, torch.bool], ids=str)
def test_maps_of_any_width(backend, dtype):
    name, device = backend
    k = 2 if dtype == torch.bool else 60
    maps = maps_for(4, k, (6, 7), void=0).to(device, dtype)
    plan, (logits, exact) = fm.MixUp().sample(4, (6, 7), seed=1), leaves(logits_for(4, k, (6, 7), device=device))
    loss = fm.mix_pixel_cross_entropy(logits, maps.unsqueeze(1), plan, ignore_index=None, backend=name)
    assert_as(loss, logits, dense(exact, maps, plan), exact)


def test_it_is_what_pytorch_makes_of_mixed_maps():
    """Where masks are 0 or 1, of the maps that mix_masks makes; of one λ, of both labels."""
    z, maps, weight = (
        logits_for(4, 5, (8, 9), torch.float64),
        maps_for(4, 5, (8, 9)),
        torch.rand(5, dtype=torch.float64),
    )
    options = {"weight": weight, "ignore_index": VOID, "label_smoothing": 0.2}
    cut, blended = fm.CutMix().sample(4, (8, 9), seed=2), fm.MixUp().sample(4, (8, 9), seed=2)
    for reduction in ("mean", "sum", "none"):
        ours = fm.mix_pixel_cross_entropy(z, maps, cut, reduction=reduction, **options)
        mixed = fm.mix_masks(maps, cut)
        torch.testing.assert_close(ours, F.cross_entropy(z, mixed, reduction=reduction, **options))
        ours = fm.mix_pixel_cross_entropy(z, maps, blended, reduction=reduction, **options)
        lam = blended.lam[0].double()
        both = [F.cross_entropy(z, y, reduction=reduction, **options) for y in (maps, maps[blended.partner])]
        torch.testing.assert_close(ours, lam * both[0] + (1 - lam) * both[1])


def test_partners_of_another_batch(backend):
    name, device = backend
    maps, other = maps_for(4, 5, (6, 7), device), maps_for(3, 5, (6, 7), device)
    plan = fm.HMix(ratio=0.5).sample(4, (6, 7), other_size=3, seed=1)
    logits, exact = leaves(logits_for(4, 5, (6, 7), device=device))
    loss = fm.mix_pixel_cross_entropy(logits, maps, plan, other=other, backend=name)
    m, lent = plan.mask().double(), other.cpu()[plan.partner]
    rows = [F.cross_entropy(exact, y, ignore_index=VOID, reduction="none") for y in (maps.cpu(), lent)]
    counted = m * (maps.cpu() != VOID) + (1 - m) * (lent != VOID)
    assert_as(loss, logits, (m * rows[0] + (1 - m) * rows[1]).sum() / counted.sum(), exact)


def test_crops_and_constants():
    """Maps are pasted as crops are, and stay as they are under a constant."""
    z, maps = logits_for(4, 5, (8, 8)), maps_for(4, 5, (8, 8))
    pasted, filled = fm.ResizeMix().sample(4, (8, 8), seed=1), fm.Cutout(length=4).sample(4, (8, 8), seed=1)
    for plan in (pasted, filled):
        expected = F.cross_entropy(z, fm.mix_masks(maps, plan), ignore_index=VOID)
        torch.testing.assert_close(fm.mix_pixel_cross_entropy(z, maps, plan), expected)


def test_numbers_at_the_edge(backend):
    """-inf takes nothing where no label is; a pixel that is ignored takes nothing, not even NaN; none left is NaN."""
    name, device = backend
    z, maps = logits_for(2, 20, (4, 4), device=device), torch.full((2, 4, 4), 18, device=device)
    plan = fm.MixUp().sample(2, (4, 4), seed=1)
    z[:, :17] = -math.inf
    logits, exact = leaves(z)
    assert_as(fm.mix_pixel_cross_entropy(logits, maps, plan, backend=name), logits, dense(exact, maps, plan), exact)
    maps[:, 0], z[:, :, 0] = VOID, math.nan
    logits = z.detach().requires_grad_()
    loss = fm.mix_pixel_cross_entropy(logits, maps, plan, backend=name)
    assert loss.isfinite()
    (slope,) = torch.autograd.grad(loss, logits)
    assert not slope[:, :, 0].any()
    assert slope.isfinite().all()
    assert fm.mix_pixel_cross_entropy(z, torch.full_like(maps, VOID), plan, backend=name).isnan()
    empty = fm.MixUp().sample(0, (4, 4))
    assert fm.mix_pixel_cross_entropy(z[:0], maps[:0], empty, reduction="sum", backend=name) == 0


def test_a_pixel_of_minus_infinities(backend):
    """Its loss and its gradient are F.cross_entropy's, NaN, and those of other pixels stay what they are."""
    name, device = backend
    z, maps = logits_for(2, 5, (4, 5), device=device), maps_for(2, 5, (4, 5), device, void=0)
    z[0, :, 1, 2] = -math.inf
    plan, (logits, exact) = fm.MixUp().sample(2, (4, 5), seed=1), leaves(z)
    loss = fm.mix_pixel_cross_entropy(logits, maps, plan, reduction="none", backend=name)
    expected = dense(exact, maps, plan, reduction="none")
    torch.testing.assert_close(loss.cpu(), expected.float(), equal_nan=True)
    (got,), (want,) = (torch.autograd.grad(x.sum(), leaf) for x, leaf in ((loss, logits), (expected, exact)))
    torch.testing.assert_close(got.cpu(), want.float(), equal_nan=True)
    assert torch.equal(loss.isnan().nonzero().cpu(), torch.tensor([[0, 1, 2]]))


def test_the_same_for_any_number_of_threads():
    z, maps, plan = logits_for(4, 21, (64, 64)), maps_for(4, 21, (64, 64)), fm.GMix().sample(4, (64, 64), seed=1)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(fm.mix_pixel_cross_entropy(z, maps, plan))
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_derivatives(backend, reduction):
    name, device = backend
    plan, maps = fm.HMix(ratio=0.5).sample(2, (3, 4), seed=1), maps_for(2, 4, (3, 4), device)
    weight = torch.rand(4, dtype=torch.float64)

    def loss(z):
        options = {"weight": weight, "label_smoothing": 0.1, "reduction": reduction, "backend": name}
        return fm.mix_pixel_cross_entropy(z, maps, plan, **options)

    z = logits_for(2, 4, (3, 4), torch.float64, device).requires_grad_()
    fast = name == "triton"  # Interpreted, one random direction will do.
    assert torch.autograd.gradcheck(loss, z, check_forward_ad=True, fast_mode=fast)
    assert torch.autograd.gradgradcheck(loss, z, fast_mode=fast)


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation makes; operators of the package are looked into no further."""

    most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for t in made if isinstance(made, tuple) else (made,):
            if isinstance(t, torch.Tensor):
                self.most = max(self.most, t.numel())
        return made


def test_what_is_kept_in_memory():
    """Forwards nothing of (B, K, *S) is made or kept, backwards one: the gradient."""
    b, k, size = 2, 30, (16, 24)
    z, maps = logits_for(b, k, size).requires_grad_(), maps_for(b, k, size, dtype=torch.uint8)
    plan = fm.CutMix().sample(b, size, seed=1)
    with Largest() as forwards:
        loss = fm.mix_pixel_cross_entropy(z, maps, plan, label_smoothing=0.1)
    assert forwards.most == maps.numel()
    kept = [t for t in loss.grad_fn.saved_tensors if t is not None and t.data_ptr() != z.data_ptr()]
    assert max(t.numel() for t in kept) == maps.numel()
    with Largest() as backwards:
        loss.backward()
    assert backwards.most == z.numel()


def test_compiled():
    plan, maps = fm.CutMix().sample(2, (4, 5), seed=1), maps_for(2, 3, (4, 5))
    z = logits_for(2, 3, (4, 5)).requires_grad_()
    compiled = torch.compile(fm.mix_pixel_cross_entropy, fullgraph=True, backend="aot_eager")
    ours, eager = compiled(z, maps, plan), fm.mix_pixel_cross_entropy(z, maps, plan)
    assert torch.equal(ours, eager)
    assert torch.equal(torch.autograd.grad(ours, z)[0], torch.autograd.grad(eager, z)[0])


@pytest.mark.parametrize("label", [-1, 5, 300])
def test_a_label_that_is_no_class(label):
    maps = maps_for(2, 5, (4, 5), void=0)
    maps[1, 3, 4] = label
    plan = fm.MixUp().sample(2, (4, 5), seed=1)
    for backend in (None, "reference"):
        with refused(ValueError, rf"maps must be in \[0, num_classes\) = \[0, 5\), but got {label}"):
            fm.mix_pixel_cross_entropy(logits_for(2, 5, (4, 5)), maps, plan, backend=backend)
        assert fm.mix_pixel_cross_entropy(logits_for(2, 5, (4, 5)), maps, plan, ignore_index=label, backend=backend)


# ---- Dice ------------------------------------------------------------------------------------------------------------


def dense_dice(p, target, smooth=1e-5):
    """MONAI's formula, of probabilities and dense targets: (B, K)."""
    common, both = (p * target).flatten(2).sum(2), (p + target).flatten(2).sum(2)
    return 1 - (2 * common + smooth) / (both + smooth)


@pytest.mark.parametrize("method", [*METHODS, "GridMix"])
@pytest.mark.parametrize("size", SIZES[:3], ids=str)
def test_dice(method, size):
    plan, maps = plan_of(method, size), maps_for(5, 7, size, void=0)
    z = logits_for(5, 7, size, torch.float64)
    y, m = F.one_hot(maps, 7).movedim(-1, 1).double(), plan.mask().double().unsqueeze(1)
    target = m * y + (1 - m) * y[plan.partner]
    expected = dense_dice(z.softmax(1), target)
    torch.testing.assert_close(fm.mix_pixel_dice(z, maps, plan, reduction="none"), expected)
    torch.testing.assert_close(fm.mix_pixel_dice(z, maps, plan), expected.mean())
    probabilities = fm.mix_pixel_dice(z.softmax(1), maps, plan, softmax=False, include_background=False)
    torch.testing.assert_close(probabilities, expected[:, 1:].mean())


def test_dice_of_a_batch_with_void():
    """Pixels that are void have no part in any sum."""
    z, maps, plan = (
        logits_for(4, 3, (6, 7), torch.float64),
        maps_for(4, 3, (6, 7)),
        fm.CutMix().sample(4, (6, 7), seed=1),
    )
    mixed = fm.mix_masks(maps, plan)
    seen = mixed != VOID
    p, y = z.softmax(1).movedim(1, -1)[seen].T, F.one_hot(mixed[seen], 3).T.double()
    ours = fm.mix_pixel_dice(z, maps, plan, batch=True, reduction="none")
    torch.testing.assert_close(ours, dense_dice(p.unsqueeze(0), y.unsqueeze(0)))
    assert torch.autograd.gradcheck(lambda z: fm.mix_pixel_dice(z, maps, plan), z.requires_grad_())
