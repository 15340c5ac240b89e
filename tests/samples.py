"""Batches for the tests of what a mixing module makes of a sample, and what they expect of it.

Expectations are recomputed in float64 from the plan of the same seed: x̃ = M·x + (1-M)·x[p] and ỹ = w·y + (1-w)·y[p].
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fusedmix as fm

B, K, H, W = 6, 5, 16, 12

MODULES = {
    "MixUp": lambda **options: fm.MixUp(**options),
    "CutMix": lambda **options: fm.CutMix(**options),
    "HMix": lambda **options: fm.HMix(ratio=0.5, **options),
    "GMix": lambda **options: fm.GMix(**options),
    "GMix_paper": lambda **options: fm.GMix(variant="paper", **options),
    "SamplePairing": lambda **options: fm.SamplePairing(**options),
    "CutMix_per_sample": lambda **options: fm.CutMix(per="sample", **options),
    "RandomMix_per_sample": lambda **options: fm.RandomMix([fm.MixUp(), fm.CutMix()], per="sample", **options),
    "CutMix_per_pair": lambda **options: fm.CutMix(per="pair", pairing="flip", **options),
    "HMix_random": lambda **options: fm.HMix(pairing="random", **options),
}
SOFT = ("MixUp", "HMix", "GMix", "GMix_paper", "SamplePairing", "RandomMix_per_sample")
SIZED = ("CutMix", "HMix", "GMix", "CutMix_per_sample", "RandomMix_per_sample")

every_module = pytest.mark.parametrize("name", list(MODULES))


def build(name: str, **options: Any) -> fm.MixTransform:
    return MODULES[name](**{"num_classes": K, **options})


def images(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = shape or (B, 3, H, W)
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, dtype=dtype, generator=generator)
    return torch.randn(shape, generator=generator).to(dtype)


def classes(dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor([0, 3, 1, 4, 2, 3], dtype=dtype)


def soft_labels(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(B, K, generator=torch.Generator().manual_seed(5)).softmax(1).to(dtype)


def label_map(*shape: int, seed: int = 1, high: int = K) -> Tensor:
    return torch.randint(high, shape or (B, H, W), generator=torch.Generator().manual_seed(seed))


def run(mix: fm.MixTransform, *sample: Any, size: tuple[int, ...] = (H, W)) -> tuple[Any, fm.MixPlan]:
    """The output of a module, and the plan it must have followed: the first after seed 0 that mixes, drawn twice."""
    torch.manual_seed(0)
    for _ in range(20):
        state = torch.get_rng_state()
        plan = mix.sample(B, size)
        shares = plan.mask().flatten(1).mean(1)
        if ((shares > 0.1) & (shares < 0.9)).any():
            torch.set_rng_state(state)
            return mix(*sample), plan
    raise AssertionError("None of 20 plans mixes anything.")


def blended(x: Tensor, plan: fm.MixPlan) -> Tensor:
    """M·x + (1-M)·x[p] in float64, the spatial dims last."""
    m = plan.mask().double()
    m = m.reshape(x.shape[0], *[1] * (x.ndim - m.ndim), *m.shape[1:])
    x = x.as_subclass(Tensor).double()
    return m * x + (1 - m) * x[plan.partner]


def assert_blended(out: Tensor, x: Tensor, plan: fm.MixPlan) -> None:
    """Equal to the blend but for rounding: some in the compute dtype, then one to the images' own.

    A λ that went through a 16-bit dtype of the images would be off by more.
    """
    assert (out.dtype, out.shape) == (x.dtype, x.shape)
    expected = blended(x, plan)
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    computing = 4 * torch.finfo(compute).eps * (1 + x.as_subclass(Tensor).abs().max().double())
    rounding = torch.finfo(x.dtype).eps / 2 * expected.abs() if x.is_floating_point() else 0.5
    assert ((out.as_subclass(Tensor).double() - expected).abs() <= computing + rounding).all()


def assert_targets(targets: Tensor, y: Tensor, plan: fm.MixPlan) -> None:
    """w·y + (1-w)·y[p], both products and their sum rounded to the dtype of the targets."""
    w = plan.weight.unsqueeze(1)
    expected = (y[plan.partner].double() * (1 - w)) + y.double() * w
    assert (targets.double() - expected).abs().max() <= 2 * torch.finfo(targets.dtype).eps
