"""The loss of mixed label maps and its gradient, against the meaning: results and every byte.

Kernels of CUDA and of Triton run on the CPU (callers.py). Cases are dealt out: each has one of everything, so that all
of them together have every dtype in every layout, with every family of masks.
"""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

import fusedmix as fm
from batches import FLOATS
from callers import masks_of
from conftest import INTEGERS
from fusedmix.arguments import MaskArguments, PixelLossArguments, compute_dtype
from fusedmix.backends import pixel_losses
from fusedmix.methods import Pairing, Reduction
from oracle import assert_losses

METHODS = (fm.CutMix, fm.FMix, fm.MixUp, fm.HMix, fm.GridMix)  # whose masks are the same everywhere
SIZES = ((4, 8), (5, 7), (33,), (2, 3, 4), (1, 2100), (16, 1))
CLASSES = (2, 5, 9, 21, 150)
LAYOUTS = ("contiguous", "channels_last", "cropped", "shifted")


def laid_out(z, layout):
    if layout == "channels_last":
        return z.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "cropped":
        return F.pad(z, (1, 2))[..., 1:-2]
    if layout == "shifted":
        return z.new_empty(z.numel() + 1)[1:].view(z.shape).copy_(z)
    return z


class Case:
    """A loss: its arguments, and those of its plan."""

    def __init__(self, turn, dtype=torch.float32, **given):
        def one_of(name, choices, step=1):
            return given.get(name, choices[turn // step % len(choices)])

        generator = torch.Generator().manual_seed(turn)
        size, k, b = one_of("size", SIZES), one_of("k", CLASSES), given.get("b", 3)
        k = min(k, 21) if size == (1, 2100) else k
        label_dtype, ignore = one_of("label_dtype", INTEGERS), given.get("ignore", (255, 1, -1, -100)[turn % 4])
        z = 3 * torch.randn(b, k, *size, generator=generator, dtype=torch.float64)
        maps = torch.randint(k, (given.get("samples", b), *size), generator=generator)
        info = torch.iinfo(label_dtype)
        maps = maps.clamp(max=min(info.max, 2**62))
        if info.min <= ignore <= min(info.max, 2**63 - 1):
            maps[torch.rand(maps.shape, generator=generator) < 0.2] = ignore
        make = one_of("method", METHODS)
        if make is fm.GridMix:
            make = lambda **options: fm.GridMix(cells=[min(2, side) for side in size], **options)  # noqa: E731
        how = {"per": one_of("per", ("sample", "batch"), 3), "pairing": one_of("pairing", ("random", "roll", "flip"))}
        plan = make(sampling="device", **how).sample(b, size, seed=turn)
        self.plan = MaskArguments(*masks_of(plan))
        weight = torch.rand(k, generator=generator, dtype=torch.float64) if one_of("weighted", (True, False)) else None
        logits = laid_out(z.to(dtype), one_of("layout", LAYOUTS))
        weight = None if weight is None else weight.to(compute_dtype(logits))
        smoothing = one_of("smoothing", (0.1, 0.0), 2)
        self.of = PixelLossArguments(logits, maps.to(label_dtype), weight, smoothing, ignore)
        self.reduction = one_of("reduction", (Reduction.MEAN, Reduction.NONE, Reduction.SUM))
        self.each = one_of("each", (False, True), 2)

    def check(self, watched):
        """Forwards, and backwards from what the meaning has forwards."""
        found = watched.call("pixel_cross_entropy", *self.of, self.reduction, *self.plan)
        loss, *left = pixel_losses.pixel_cross_entropy(self.of, self.reduction, self.plan)
        assert_losses(found, (loss, *left))
        shape = left[0].shape if self.each else ()
        grad = torch.linspace(0.5, 2, left[0].numel() or 1, dtype=loss.dtype)[: torch.Size(shape).numel()].reshape(
            shape
        )
        slope = watched.call("pixel_cross_entropy_backward", grad, *self.of, *left, *self.plan)
        expected = pixel_losses.pixel_cross_entropy_backward(grad, self.of, *left, self.plan)
        assert slope.stride() == expected.stride()
        assert_losses((slope,), (expected,))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("turn", range(10))
def test_whatever_is_asked(watched, dtype, turn):
    for more in (0, 10) if watched.fast else (0,):
        Case(FLOATS.index(dtype) + 4 * (turn + more), dtype).check(watched)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_labels_of_any_width(watched, dtype):
    """What is ignored is a label of theirs; and one that would be, of another width, is none."""
    for turn, ignore in enumerate((3, min(torch.iinfo(dtype).max, 2**63 - 1), torch.iinfo(dtype).min, -(2**63))):
        Case(turn, label_dtype=dtype, ignore=ignore, k=5, size=(3, 5)).check(watched)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_partners_of_another_batch(watched, layout):
    case = Case(1, samples=7, pairing="roll", layout=layout, size=(4, 6))
    case.plan = case.plan._replace(partner=torch.tensor([6, 3, 0]), pairing=int(Pairing.RANDOM))
    case.check(watched)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_infinities_nan_and_labels_that_are_none(watched, smoothing, monkeypatch):
    """They stay in their pixel; and where they have no share nothing comes of them. On the CPU the meaning refuses such
    labels."""
    monkeypatch.setattr(pixel_losses, "class_range", lambda *_, **__: None)
    case = Case(
        0, method=fm.CutMix, per="sample", size=(6, 8), k=5, smoothing=smoothing, reduction=Reduction.NONE, ignore=4
    )
    z, maps = case.of.logits, case.of.maps.long()
    for at, number in enumerate((-torch.inf, torch.inf, torch.nan)):
        z[:, at % 5, at] = number
    z[:, 1:, 4] = -torch.inf
    maps[:, ::2, ::3], maps[:, 1, 1:3] = 7, -3
    case.of = case.of._replace(logits=z, maps=maps)
    case.check(watched)


def test_nothing_but_minus_infinity(watched):
    """As with F.cross_entropy, the loss of such a pixel and its gradient are NaN. Its logsumexp is -inf."""
    case = Case(0, method=fm.MixUp, size=(3, 4), k=5, label_dtype=torch.uint8, ignore=300, reduction=Reduction.NONE)
    case.of.logits[:, :, 0] = -torch.inf
    loss, logsumexp, scale = watched.call("pixel_cross_entropy", *case.of, case.reduction, *case.plan)
    slope = watched.call("pixel_cross_entropy_backward", torch.ones(()), *case.of, logsumexp, scale, *case.plan)
    torch.testing.assert_close(logsumexp, case.of.logits.logsumexp(1))
    each = F.cross_entropy(case.of.logits, case.of.maps.long(), reduction="none")
    assert torch.equal(loss.isnan(), each.isnan())
    assert torch.equal(slope.isnan(), each.isnan()[:, None].expand_as(slope))


def test_nothing_but_ignored_labels(watched):
    case = Case(2, ignore=3, size=(3, 4), k=4)
    case.of = case.of._replace(logits=torch.full_like(case.of.logits, torch.nan), maps=torch.full_like(case.of.maps, 3))
    case.check(watched)


def test_an_empty_batch(watched):
    for reduction in (Reduction.NONE, Reduction.SUM, Reduction.MEAN):
        Case(2, b=0, size=(3, 4), reduction=reduction, method=fm.MixUp, k=5).check(watched)


@pytest.mark.parametrize("dtype", FLOATS[:3], ids=str)
@pytest.mark.parametrize(("k", "size"), [(5, (8, 12)), (6, (7, 9)), (3, (1, 2100))])
def test_logits_are_read_once_and_gradients_written_once(watched, dtype, k, size):
    """But for the logits of labels that have a share, which are read once more for each of these."""
    case = Case(0, dtype, k=k, size=size, method=fm.CutMix, per="sample", layout="contiguous", weighted=False)
    z, maps, m = case.of.logits, case.of.maps.long(), case.plan
    own = pixel_losses.reference.masks_of(torch.arange(len(z)), z, m)[:, 0]
    picked = torch.zeros(z.shape, dtype=torch.int64)
    for y, share in ((maps, own), (maps[m.partner], 1 - own)):
        counts = (share != 0) & (y != case.of.ignore_index)
        picked.scatter_add_(1, torch.where(counts, y, 0)[:, None], counts[:, None].long())
    _, *left = watched.call("pixel_cross_entropy", *case.of, Reduction.MEAN, *m)
    assert len(watched.kernels()) == 2
    assert torch.equal(watched.counts("logits", z)[0], 1 + picked)
    watched.assert_clean()
    slope = watched.call("pixel_cross_entropy_backward", torch.ones(()), *case.of, *left, *m)
    assert len(watched.kernels()) == 1
    assert (watched.counts("logits", z)[0] == 1).all()
    assert (watched.counts("gradient", slope)[1] == 1).all()
    watched.assert_clean()


@pytest.mark.parametrize("dtype", FLOATS[:3], ids=str)
def test_neighbouring_pixels_are_one_access(shim, dtype):
    """Four of them, wherever rows allow; else neighbouring threads have them."""
    for size, layout, wide in (
        ((8, 12), "contiguous", True),
        ((7, 9), "contiguous", False),
        ((8, 12), "shifted", False),
    ):
        case = Case(0, dtype, size=size, layout=layout, k=6, method=fm.MixUp, weighted=False, ignore=255)
        z = case.of.logits
        z = (
            z
            if layout == "shifted"
            else z.new_empty(z.numel() + 16)[-z.data_ptr() % 16 :][: z.numel()].view(z.shape).copy_(z)
        )
        case.of = case.of._replace(logits=z)
        wide = wide and z.data_ptr() % (4 * z.element_size()) == 0
        _, *left = shim.pixel_cross_entropy(*case.of, Reduction.MEAN, *case.plan)
        vectors, width = z.numel() // 4, 4 * z.element_size()
        assert shim.launches()[0][1]["buffers"]["logits"]["read_widths"].get(width, 0) == vectors * wide
        shim.pixel_cross_entropy_backward(torch.ones(()), *case.of, *left, *case.plan)
        buffers = shim.launches()[0][1]["buffers"]
        assert buffers["logits"]["read_widths"].get(width, 0) == vectors * wide
        assert buffers["gradient"]["write_widths"].get(width, 0) == vectors * wide


def test_no_bit_depends_on_the_order_of_threads(shim):
    case = Case(1, torch.bfloat16, size=(33, 65), k=5)
    runs = []
    for seed in range(3):
        shim.module.seed(seed)
        runs.append(shim.pixel_cross_entropy(*case.of, Reduction.MEAN, *case.plan))
    for again in runs[1:]:
        assert all(map(torch.equal, runs[0], again))


@pytest.mark.parametrize("on_host", [False, True])
def test_plans_of_the_host(shim, on_host):
    for turn, (per, pairing) in enumerate(itertools.product(("batch", "sample"), ("roll", "random"))):
        case = Case(turn, per=per, pairing=pairing, size=(5, 6), k=5)
        found = shim.pixel_cross_entropy(*case.of, case.reduction, *case.plan, on_host=on_host)
        assert_losses(found, pixel_losses.pixel_cross_entropy(case.of, case.reduction, case.plan))
