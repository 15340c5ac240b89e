"""Images of 16-bit integers, as scanners and cameras give them: blends are exact over the whole range of the dtype.

Expected is Fraction(w)·(a - b) + b, which Python rounds to the nearest integer, ties to even.
"""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors

import fusedmix as fm
from batches import LAYOUTS, MASKS, SAME_MASKS, contiguous, cropped, plan_for
from callers import each_backend
from fusedmix import attachment
from fusedmix.backends import reference
from fusedmix.methods import Resize

SHORTS = (torch.int16, torch.uint16)
each_dtype = pytest.mark.parametrize("dtype", [*SHORTS, torch.uint8], ids=str)
each_short = pytest.mark.parametrize("dtype", SHORTS, ids=str)
REFERENCE = torch.ops.fusedmix_reference
Y = torch.arange(6) % 4


def images(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Any numbers of the dtype; the first of each row are the same in all samples."""
    of = torch.iinfo(dtype)
    x = torch.randint(of.min, of.max + 1, shape, generator=torch.Generator().manual_seed(seed))
    x[..., :1] = of.max
    return x.to(dtype)


def pairs(dtype: torch.dtype) -> Tensor:
    """(2, 1, n, n) whose samples hold every pair of n numbers: the ends of the range, its middle, and some more."""
    of = torch.iinfo(dtype)
    middle = (of.min + of.max + 1) // 2
    of_range = [of.min + k for k in range(4)] + [of.max - k for k in range(4)] + [middle + k for k in range(-2, 3)]
    more = torch.randint(of.min, of.max + 1, (11,), generator=torch.Generator().manual_seed(1)).tolist()
    value = torch.tensor(of_range + more)
    return torch.stack((value.expand(24, 24), value.expand(24, 24).T)).unsqueeze(1).to(dtype)


def near(w: float) -> list[float]:
    """A weight and its neighbours in float32."""
    of = torch.tensor(w)
    return [float(of.nextafter(torch.tensor(-1.0))), w, float(of.nextafter(torch.tensor(2.0)))]


@each_backend
@pytest.mark.parametrize("near_to", [0.5, 0.25, 0.375, 0.96875, 1 / 3, 2.0**-16, 2.0**-17 * 3, 2.0**-24], ids=str)
@each_dtype
def test_blends_are_rounded_once(backend, dtype, near_to):
    """At weights where many blends fall on a half or just beside it: those that float64 cannot hold are among them."""
    x = pairs(dtype).to(backend.device)
    for lam in near(near_to):
        plan = fm.MixUp(pairing="flip").sample(2, (24, 24), lam=lam).to(backend.device)
        (w,) = {Fraction(float(v)) for v in plan.lam}
        given = zip(x.flatten().tolist(), x.flip(0).flatten().tolist(), strict=True)
        expected = torch.tensor([round(w * (a - b) + b) for a, b in given]).to(dtype).reshape(x.shape)
        assert torch.equal(backend.mix(x, plan).cpu(), expected)
        backend.mix_(x_ := x.clone(), plan)
        assert torch.equal(x_.cpu(), expected)


@each_dtype
def test_one_rounding_of_a_tie_that_float64_loses(dtype):
    """65000 + 1/2 - 2⁻⁴¹·d needs more bits than float64 has; so does its counterpart for every large pair."""
    of, w = torch.iinfo(dtype), float(torch.tensor(0.5).nextafter(torch.tensor(0.0)))
    for a, b in ((of.max, of.max - 1), (of.max - 1, of.max), (of.min + 1, of.min), (of.min, of.min + 1)):
        x = torch.tensor([[a], [b]]).to(dtype).unsqueeze(1)
        plan = fm.MixUp(pairing="flip").sample(2, (1,), lam=w)
        expected = [round(Fraction(w) * (p - q) + q) for p, q in ((a, b), (b, a))]
        assert fm.mix(x, plan, backend="reference").flatten().tolist() == expected


CASES = (
    ((5, 2, 6, 16), 2),
    ((4, 3, 5, 7), 2),
    ((3, 1, 3, 4, 8), 3),
    ((7, 2, 11), 1),
    ((1, 1, 4, 4), 2),
    ((0, 2, 3, 3), 2),
)


def close(out: Tensor, expected: Tensor, families: int) -> bool:
    """Equal; where a mask may differ in its last bits, the neighbouring integer too."""
    most = 0 if families & ~SAME_MASKS == 0 else 1
    return out.dtype == expected.dtype and bool(((out.double() - expected.double()).abs() <= most).all())


@each_backend
@pytest.mark.parametrize("method", sorted(MASKS))
@each_short
def test_every_mask_and_layout(backend, method, dtype):
    draws = (("batch", "roll"), ("sample", "random"), ("pair", "flip"))
    for number, (shape, spatial) in enumerate(CASES if backend.fast else CASES[:3]):
        per, pairing = draws[number % 3]
        plan = plan_for(MASKS[method], shape, spatial, per, pairing, seed=number)
        x, other = images(shape, dtype), images(shape, dtype, seed=1)
        expected, expected_with = REFERENCE.mix(x, *plan), REFERENCE.mix_with(x, other, *plan)
        operators = backend.operators
        layouts = LAYOUTS if backend.fast else ((contiguous, cropped)[number % 2],)
        for layout in layouts if x.numel() else (contiguous,):
            x_, other_ = layout(x).to(backend.device), layout(other).to(backend.device)
            there = [p.to(backend.device) if isinstance(p, Tensor) else p for p in plan]
            assert close(operators.mix(x_, *there).cpu(), expected, plan[2])
            assert close(operators.mix_with(x_, other_, *there).cpu(), expected_with, plan[2])
            operators.mix_(x_, *there)
            assert close(x_.cpu(), expected, plan[2])
            x_.copy_(x)
            operators.mix_with_(x_, other_, *there)
            assert close(x_.cpu(), expected_with, plan[2])


@each_backend
@each_short
def test_pasted_crops_and_sums(backend, dtype):
    """Every operation is rounded as the reference rounds it."""
    for layout, (shape, spatial) in itertools.product((contiguous, cropped), CASES[:3]):
        x, g = images(shape, dtype), torch.Generator().manual_seed(2)
        size, n = shape[-spatial:], shape[0]
        partner = torch.randint(n, (n, 2), generator=g)
        first = torch.tensor([[0] * spatial, [1] * spatial]).expand(n, 2, spatial)
        boxes = torch.cat((first, torch.tensor(size).expand(n, 2, spatial)), 2).int()
        crops = torch.cat((first * 0, (torch.tensor(size) - 1).clamp_min(1).expand(n, 2, spatial)), 2).int()
        weight = torch.tensor([0.3, 0.9]).expand(n, 2).contiguous()  # sums beyond the range saturate
        on = [t.to(backend.device) for t in (layout(x), partner, boxes, crops, weight)]
        for resize in Resize:
            out = backend.operators.paste(*on[:4], int(resize))
            assert torch.equal(out.cpu(), REFERENCE.paste(x, partner, boxes, crops, int(resize)))
        out = backend.operators.blend(on[0], on[1], on[4])
        assert torch.equal(out.cpu(), REFERENCE.blend(x, partner, weight))
        exact = sum(w * x[partner[:, k]].double() for k, w in enumerate((0.3, 0.9)))
        of = torch.iinfo(dtype)
        assert ((out.cpu().double() - exact.clamp(of.min, of.max)).abs() <= 0.5 + 2**-6).all()


@each_short
@pytest.mark.parametrize("inplace", [False, True])
def test_modules(dtype, inplace):
    """Modules, modules with other=, a plan that fills, several stacks and label maps: of CT volumes, as of images."""
    volumes, y = images((6, 1, 5, 8, 8), dtype), Y
    for make in (fm.MixUp, fm.CutMix, fm.HMix, fm.FMix, fm.ResizeMix):
        mix = make(num_classes=4, axes=(-3, -2, -1), inplace=inplace and make is not fm.ResizeMix)
        torch.manual_seed(0)
        out, targets = mix(volumes.clone(), y)
        assert (out.dtype, out.shape, targets.shape) == (dtype, volumes.shape, (6, 4))
        torch.manual_seed(0)
        mix.backend = "reference"
        assert torch.equal(mix(volumes.clone(), y)[0], out)
    typed = fm.CutMix(num_classes=4)(tv_tensors.Image(images((6, 3, 8, 8), dtype)), y)[0]
    assert (type(typed), typed.dtype) == (tv_tensors.Image, dtype)
    plan = fm.Cutout(length=4, fill=torch.iinfo(dtype).max).sample(6, (8, 8))
    x = images((6, 3, 8, 8), dtype)
    expected = torch.where(plan.mask().unsqueeze(1) == 1, x, torch.tensor(torch.iinfo(dtype).max, dtype=dtype))
    assert torch.equal(fm.mix(x, plan), expected)


@each_short
def test_masks_of_two_levels_between_which_fmix_lies(dtype):
    """A plan whose masks no kernel has: mixed in float32, whose error is below 2⁻⁷, and then rounded."""
    mix = fm.GMix(variant="paper", per="sample")
    plan, x = mix.sample(6, (8, 8), seed=3), images((6, 2, 8, 8), dtype)
    m = plan.mask().double().unsqueeze(1)
    exact = m * x.double() + (1 - m) * x[plan.partner].double()
    assert ((fm.mix(x, plan).double() - exact).abs() <= 0.5 + 2**-6).all()


@each_short
def test_what_integers_have_not(dtype):
    x = images((6, 3, 8, 8), dtype)
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=rf"uint8 or floating point to be finished, but is {name}"):
        fm.CutMix(num_classes=4, finish=fm.Finish(None))(x, Y)
    of = torch.iinfo(dtype)
    with pytest.raises(ValueError, match=rf"fill must be integers from {of.min} to {of.max} for images of {name}"):
        fm.Cutout(length=4, fill=70000, num_classes=4)(x, Y)
    assert not attachment.apply(x, fm.CutMix().sample(6, (8, 8))).requires_grad


def test_the_reference_splits_integers_exactly():
    """An even part and 0 or 1, negative numbers too."""
    y = torch.tensor([-32768.0, -3.0, -2.0, -1.0, 0.0, 1.0, 65535.0], dtype=torch.float64)
    even, odd = reference.passes._even_and_odd(y)
    assert torch.equal(even + odd, y)
    assert odd.tolist() == [0, 1, 0, 1, 0, 1, 1]
