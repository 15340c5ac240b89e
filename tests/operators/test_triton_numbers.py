"""Triton's arithmetic and random numbers, interpreted or on a GPU, to the last bit or a few units of it."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from batches import name_of
from conftest import TRITON_DEVICE
from fusedmix import philox
from fusedmix.masks.family import own_uniform as own_uniform_of
from mask_formulas import draws_at
from oracle import alike, exact_sum, to_odd

pytest.importorskip("triton")

import triton
import triton.language as tl

from fusedmix.backends.triton.numbers import (
    below,
    expm1,
    fma,
    from_compute,
    log1p,
    own_uniform,
    sort_key,
    symmetric_beta,
    turn,
    uniform,
    words,
)

pytestmark = pytest.mark.usefixtures("of_triton")

EPS = 2.0**-53  # half a unit in the last place of 1


@triton.jit
def fma_kernel(x, y, z, out, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, fma(tl.load(x + i), tl.load(y + i), tl.load(z + i)))


@triton.jit
def turns_kernel(steps, side, cosine, sine, N: tl.constexpr):
    i = tl.arange(0, N)
    c, s = turn(tl.load(steps + i), tl.load(side))
    tl.store(cosine + i, c)
    tl.store(sine + i, s)


@triton.jit
def narrow_kernel(x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, from_compute(tl.load(x + i), out.dtype.element_ty))


@triton.jit
def logarithms_kernel(x, of_expm1, of_log1p, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(of_expm1 + i, expm1(tl.load(x + i)))
    tl.store(of_log1p + i, log1p(tl.load(x + i)))


@triton.jit
def draws_kernel(seed, index, n, whole, floats, ints, keys, STREAM: tl.constexpr, CALL: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    a, b, c, d = words(tl.load(seed), tl.load(index + i), STREAM, CALL)
    tl.store(whole + i, a.to(tl.int64))
    tl.store(whole + N + i, b.to(tl.int64))
    tl.store(whole + 2 * N + i, c.to(tl.int64))
    tl.store(whole + 3 * N + i, d.to(tl.int64))
    tl.store(floats + i, uniform(a, b))
    tl.store(ints + i, below(c, n))
    tl.store(keys + i, sort_key(c, d))


@triton.jit
def own_kernel(seed, index, out, k: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, own_uniform((tl.load(seed), tl.load(index + i)), k))


@triton.jit
def beta_kernel(seed, index, alpha, out, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, symmetric_beta(tl.load(seed), tl.load(index + i), tl.load(alpha + i)))


def run(kernel, *arguments):
    """Of tensors, the first 4096 elements of each: what the kernel wrote is in place."""
    there = [a.to(TRITON_DEVICE) if torch.is_tensor(a) else a for a in arguments]
    with np.errstate(all="ignore"):
        kernel[(1,)](*there, enable_fp_fusion=False)
    for here, a in zip(arguments, there, strict=True):
        if torch.is_tensor(here):
            here.copy_(a)


def test_fma_rounds_once():
    """Random numbers, and those of which the sum cancels all but what the product lost."""
    x, y, z = torch.randn(3, 4096)
    z[::2] = -(x * y)[::2]
    out = torch.empty(4096)
    run(fma_kernel, x, y, z, out, 4096)
    exact = exact_sum((x.double(), y.double()), (z.double(), torch.ones(4096).double()))
    assert alike(out, to_odd(*exact).float())
    assert out[::2].count_nonzero() > 1000
    for i in range(0, 4096, 64):
        exact = Fraction(x[i].item()) * Fraction(y[i].item()) + Fraction(z[i].item())
        above, below = (torch.nextafter(out[i], torch.tensor(s * math.inf)).item() for s in (1, -1))
        assert abs(Fraction(out[i].item()) - exact) <= min(abs(Fraction(of) - exact) for of in (above, below))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=name_of)
def test_narrowing_rounds_as_torch_does(dtype):
    """Every exponent, ties, subnormal numbers, infinities and NaN, whatever bits of it are set."""
    bits = torch.randint(-(2**31), 2**31, (4096,)).to(torch.int32)
    bits[:1024] = (bits[:1024] & ~0xFFFF) | 0x8000  # ties of bfloat16
    bits[1024:2048] = (bits[1024:2048] & ~0x1FFF) | 0x1000  # and of float16
    bits[2048:2060] = torch.tensor(
        [0, -(2**31), 1, 0x7FFF, 0x8000, 0x8001, 0x7F800000, -0x800000, 0x7F7FFFFF, 0x7FC00000, 0x7F800001, 0x7FFFFFFF]
    )
    x = bits.view(torch.float32)
    out = torch.empty(4096, dtype=dtype)
    run(narrow_kernel, x, out, 4096)
    expected = x.to(dtype)
    assert torch.equal(out.isnan(), expected.isnan())
    assert alike(out[~x.isnan()], expected[~x.isnan()])


def test_logarithms_near_one():
    """Within four units in the last place of the C library's."""
    x = torch.cat([10.0 ** torch.linspace(-300, -0.01, 1024, dtype=torch.float64), torch.rand(1024).double() * 20])
    x = torch.cat([x, -x.clamp(max=1 - 2**-30) * (1 - torch.rand(2048) / 4).double()])
    of_expm1, of_log1p = torch.empty(2, 4096, dtype=torch.float64)
    run(logarithms_kernel, x, of_expm1, of_log1p, 4096)
    for of, found in ((math.expm1, of_expm1), (math.log1p, of_log1p)):
        expected = torch.tensor([of(v) for v in x.tolist()], dtype=torch.float64)
        assert ((found - expected).abs() <= 8 * EPS * expected.abs()).all(), of


def test_turns():
    """To a few units in the last place of cos and sin; at quarters exactly."""
    for side in (1, 2, 7, 224, 1 << 24, (1 << 31) - 1):
        steps = (torch.arange(4096) * max(1, side // 4093)) % side
        cosine, sine = torch.empty(2, 4096)
        run(turns_kernel, steps, torch.tensor(side), cosine, sine, 4096)
        angle = steps.double() * (2 * math.pi / side)
        assert ((cosine - angle.cos()).abs() <= 3 * 2.0**-24).all()
        assert ((sine - angle.sin()).abs() <= 3 * 2.0**-24).all()
        for quarter in range(4):
            at = 4 * steps == quarter * side
            assert (cosine[at] == (1, 0, -1, 0)[quarter]).all()
            assert (sine[at] == (0, 1, 0, -1)[quarter]).all()


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1, -(2**63), -12345678901])
def test_draws_are_those_of_the_reference(seed):
    index = torch.cat(
        [torch.arange(4080), torch.tensor([-1, -(2**63), 2**63 - 1, 2**32, 2**32 - 1, 2**31] * 2), torch.arange(4)]
    )
    seed = torch.tensor(seed)
    for stream in philox.Stream:
        whole, of_uniform = torch.empty(4, 4096, dtype=torch.int64), torch.empty(4096, dtype=torch.float64)
        of_below, of_key = torch.empty(2, 4096, dtype=torch.int64)
        run(draws_kernel, seed, index, 2**31 - 1, whole, of_uniform, of_below, of_key, int(stream), stream % 2, 4096)
        a, b, c, d = philox.words(seed, index, stream, stream % 2)
        assert torch.equal(whole, torch.stack((a, b, c, d)))
        assert torch.equal(of_uniform, philox.uniform(a, b))
        assert torch.equal(of_below, philox.below(c, 2**31 - 1))
        assert torch.equal(of_key, philox.sort_key(c, d))


@pytest.mark.parametrize("k", range(4))
def test_numbers_of_a_family_are_those_of_the_reference(k):
    index, seed, found = torch.arange(4096), torch.tensor(-7), torch.empty(4096, dtype=torch.float64)
    run(own_kernel, seed, index, found, k, 4096)
    draws = draws_at(torch.ones(4096), index[:, None])._replace(noise=seed.expand(4096))
    assert torch.equal(found, own_uniform_of(draws, k))


def test_symmetric_beta():
    """From α = .01, where most draws are below 1e-100, to 8."""
    index, seed = torch.arange(4096), torch.tensor(7)
    alpha = torch.logspace(-2, math.log10(8), 4096, dtype=torch.float64)
    out = torch.empty(4096, dtype=torch.float64)
    run(beta_kernel, seed, index, alpha, out, 4096)
    expected = philox.symmetric_beta(seed, index, alpha)
    assert ((out - expected).abs() <= 1e-13 * expected).all()
    assert torch.equal(out.float(), expected.float())
