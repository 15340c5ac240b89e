"""What results must be, whoever computes them: blends, adjoints, masks, targets and losses.

Sums of products are taken in twice float64's precision. `Expected` allows what any right implementation may do;
`assert_mixed` and `assert_adjoint` ask for one rounding to the compute type, which is every bit of a result but those
of a float64 blend.
"""

from __future__ import annotations

import math

import torch

from families import RECORDS
from fusedmix import masks
from fusedmix.backends import passes, reference

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
PRECISION = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24, torch.float64: 53}  # in bits
# The kinds of masks that are the same on every backend, to the bit.
EXACT = torch.tensor([kind for name, record in RECORDS.items() if record.exact for kind in masks.BY_NAME[name].kinds])
MASK_ERROR = 4 * 2.0**-24  # of the other kinds


def bits(x):
    return x.contiguous().view(BITS[x.element_size()])


def alike(a, b):
    """Whether two tensors are equal bit for bit, NaN and -0 included."""
    return torch.equal(bits(a), bits(b))


def same(a, b):
    """Where two tensors have the same bits, or both a NaN."""
    return (bits(a) == bits(b)) | (a.isnan() & b.isnan())


def compute_of(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


# ---- sums -----------------------------------------------------------------------------------------------------------


def two_sum(p, q):
    """p + q, and what its rounding lost (Knuth)."""
    s = p + q
    t = s - p
    return s, (p - (s - t)) + (q - t)


def halves(x):
    """float64 as a sum of numbers of at most 27 bits: two, or x alone where no element has more."""
    high = (x.view(torch.int64) >> 27 << 27).view(torch.float64)
    return (high, x - high) if (x != high).any() else (x,)


def exact_sum(*products):
    """The sum of products of float64 pairs, as a float64 and what its rounding lost, to some 100 bits."""
    total = lost = torch.zeros((), dtype=torch.float64, device=products[0][0].device)
    for p, q in products:
        for part in (a * b for a in halves(p) for b in halves(q)):
            total, error = two_sum(total, part)
            lost = lost + error
    return two_sum(total, lost)


def to_odd(total, lost):
    """An exact sum rounded to odd: what is rounded once more, to 51 bits or less, is as if it were exact."""
    even = total.view(torch.int64) % 2 == 0
    toward = torch.where(lost > 0, math.inf, -math.inf).to(torch.float64)
    return torch.where((lost != 0) & even, torch.nextafter(total, toward), total)


def half_unit(exact, dtype):
    """Half a unit in the last place of `dtype` at a value."""
    bits = PRECISION[dtype]
    smallest = max(math.frexp(torch.finfo(dtype).tiny)[1] - bits, -1021)
    exponent = (exact.frexp().exponent.long() - bits).clamp_min(smallest) - 1
    return (exponent + 1023 << 52).view(torch.float64)


# ---- images ---------------------------------------------------------------------------------------------------------


class Expected:
    """A result: where it is certain, and elsewhere its exact value and how far from that it may be."""

    def __init__(self, rounded, certain, products, one_rounding=True):
        dtype = rounded.dtype
        self.rounded = rounded
        self.exact = exact_sum(*products)
        if dtype == torch.uint8:
            whole = to_odd(*self.exact).round().clamp(0, 255).to(dtype)
            self.certain = torch.ones_like(certain)
            self.rounded = torch.where(certain, rounded, whole)
            return
        self.certain = certain | ~rounded.isfinite()
        allowed = half_unit(self.exact[0], dtype)
        if compute_of(dtype) != dtype:
            allowed = allowed + half_unit(self.exact[0], torch.float32)
        if not one_rounding:
            for p, q in products:
                allowed = allowed + torch.finfo(torch.float64).eps / 2 * (p * q).abs()
        self.allowed = allowed * (1 + 2.0**-28)  # what is computed in float64 is rounded to it first

    def holds(self, out):
        if out.dtype != self.rounded.dtype or out.shape != self.rounded.shape:
            return False
        if out.dtype == torch.uint8:
            return torch.equal(out, self.rounded)
        exact, lost = self.exact
        error = ((out.double() - exact) - lost).abs()
        return bool(torch.where(self.certain, same(out, self.rounded), error <= self.allowed).all())

    def nearest(self):
        """What one rounding to float32, and one to the type itself, makes of the exact values."""
        return torch.where(self.certain, self.rounded, to_odd(*self.exact).float().to(self.rounded.dtype))


def over_batch(mask, x, size):
    """(B, *size) in the shape of x."""
    return mask.reshape(mask.shape[0], *[1] * (x.ndim - 1 - len(size)), *size).expand(x.shape)


def expected_mix(x, w, partner, one_rounding=True):
    """x mixed with its partners by weights of the shape of x: w·(difference, rounded to the compute type) + partner."""
    a, b = x, x[partner]
    compute = compute_of(x.dtype)
    difference = (a.to(compute) - b.to(compute)).double()
    products = ((w.double(), difference), (b.double(), torch.ones_like(difference)))
    certain = (w == 0) | (w == 1) | (a == b)
    return Expected(passes.blend(w, a, b), certain, products, one_rounding)


def _adjoint(grad, w, partner):
    """The two products of an adjoint, of which a weight of 0 takes nothing, not even an infinity; and their sum."""
    back = partner.argsort()
    own, lent = w.double(), 1.0 - w[back].double()
    g, h = torch.where(own == 0, 0.0, grad.double()), torch.where(lent == 0, 0.0, grad[back].double())
    return ((own, g), (lent, h)), (own * g + lent * h).to(compute_of(grad.dtype)).to(grad.dtype)


def expected_adjoint(grad, w, partner):
    products, rounded = _adjoint(grad, w, partner)
    return Expected(rounded, torch.zeros_like(grad, dtype=torch.bool), products, False)


def assert_mixed(out, x, w, partner):
    """To the bit; of float64 within half a unit in the last place."""
    expected = expected_mix(x, w, partner)
    assert expected.holds(out) if x.dtype == torch.float64 else alike(out, expected.nearest())


def assert_adjoint(out, grad, w, partner):
    """The sum of two products in float64, to the bit."""
    assert alike(out, _adjoint(grad, w, partner)[1])


def assert_masks(found, expected, kind):
    """Masks of these kinds beside the reference's: equal, but for those of families that say otherwise."""
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    exact = torch.isin(kind, EXACT.to(kind.device)).reshape(-1, *[1] * (found.ndim - 1))
    assert ((found - expected).abs() <= torch.where(exact, 0.0, MASK_ERROR)).all(), "mask"


# ---- labels ---------------------------------------------------------------------------------------------------------


def dense(labels, partner, weight, classes, smoothing):
    """The reference's targets, but for classes out of range, which it refuses: rows without a one."""
    if labels.ndim == 1:
        labels = (labels.to(torch.int64)[:, None] == torch.arange(classes)).float()
    return reference.mix_labels(labels, partner, weight, classes, smoothing)


def assert_losses(found, expected):
    """Losses and their gradients beside the reference's: to the last place of their type, and what their sums lose."""
    for got, want in zip(found, expected, strict=True):
        assert got.dtype == want.dtype
        eps = torch.finfo(compute_of(got.dtype)).eps
        size = float(want.double().abs().nan_to_num(0).max()) if want.numel() else 0.0
        size = max(size, 1.0) if got.shape[1:] == (1,) else size  # 1 - 1: what is left of rounding
        spacing = torch.finfo(got.dtype).tiny * torch.finfo(got.dtype).eps
        torch.testing.assert_close(
            got, want, rtol=torch.finfo(got.dtype).eps, atol=64 * eps * size + spacing, equal_nan=True
        )
