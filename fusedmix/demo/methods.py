"""Which methods the demo shows: one list for the contact sheet and the training runs. A row added here is in both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

import fusedmix as fm


@dataclass(frozen=True)
class Method:
    name: str
    note: str
    factory: Callable[..., fm.MixTransform]

    def build(self, num_classes: int) -> fm.MixTransform:
        """The mixing module, with a draw for every sample: one batch then shows the variety."""
        return self.factory(num_classes=num_classes, per="sample")


METHODS = (
    Method("MixUp", "a blend with weight λ everywhere · Zhang et al. 2018", partial(fm.MixUp, alpha=1.0)),
    Method(
        "CutMix",
        "a box of the partner; label weight = area outside it · Yun et al. 2019",
        partial(fm.CutMix, alpha=1.0),
    ),
    Method(
        "HMix (released)",
        "a box and a blend around it, mask mean exactly λ · Park et al. 2022, code",
        partial(fm.HMix, alpha=1.0, ratio=0.75, variant="released"),
    ),
    Method(
        "HMix (paper)",
        "a box and a blend around it · Park et al. 2022, paper",
        partial(fm.HMix, alpha=1.0, ratio=0.75, variant="paper"),
    ),
    Method(
        "GMix (released)",
        "a Gaussian spot of the sample or of the partner · Park et al. 2022, code",
        partial(fm.GMix, alpha=1.0, variant="released"),
    ),
    Method(
        "GMix (paper)",
        "a Gaussian spot of the partner · Park et al. 2022, paper",
        partial(fm.GMix, alpha=1.0, variant="paper"),
    ),
    Method(
        "FMix (paper)",
        "the largest pixels of a random low-frequency image · Harris et al. 2020, paper",
        partial(fm.FMix, alpha=1.0, decay_power=3.0, variant="paper"),
    ),
    Method(
        "FMix (released)",
        "the same with one horizontal wave · Harris et al. 2020, code",
        partial(fm.FMix, alpha=1.0, decay_power=3.0, variant="released"),
    ),
    Method("SmoothMix", "a disc of the partner with a soft edge · Lee et al. 2020", fm.SmoothMix),
    Method("GridMix", "cells of the sample and of the partner · Baek et al. 2021", partial(fm.GridMix, cells=(4, 4))),
    Method(
        "SamplePairing",
        "the mean of both; the label stays that of the sample itself · Inoue 2018",
        fm.SamplePairing,
    ),
    Method(
        "RandomMix",
        "MixUp or CutMix, drawn anew for every sample",
        partial(fm.RandomMix, [fm.MixUp(alpha=0.8), fm.CutMix(alpha=1.0)]),
    ),
)


@dataclass(frozen=True)
class Mixture:
    """What became of a batch."""

    method: Method
    plan: fm.MixPlan
    images: Tensor  # (B, C, H, W), as the batch


def mix_with(method: Method, images: Tensor, *, seed: int) -> Mixture:
    """Mix a batch of B images of B classes."""
    transform = method.build(num_classes=len(images))
    plan = transform.sample(len(images), images.shape[2:], seed=seed, device=images.device)
    return Mixture(method, plan, fm.mix(images, plan))
