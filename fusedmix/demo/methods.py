"""Which methods the demo shows: one list for the contact sheet and the training runs. A row added here is in both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fusedmix as fm
from fusedmix.importance import Importance, ImportanceMethod


@dataclass(frozen=True)
class Method:
    name: str
    note: str
    factory: Callable[..., fm.MixTransform]
    # Of a network and one of its layers: what of an image matters. None: the method does not ask, or its own default.
    importance: Callable[[nn.Module, nn.Module], Importance] | None = None

    def build(
        self, num_classes: int, model: nn.Module | None = None, layer: nn.Module | None = None
    ) -> fm.MixTransform:
        """The mixing module, with a draw for every sample: one batch then shows the variety. Without a network what
        matters is the saliency of the pixels."""
        options: dict[str, Any] = {}
        if self.importance is not None:
            options["importance"] = (
                fm.spectral_saliency if model is None or layer is None else self.importance(model, layer)
            )
        return self.factory(num_classes=num_classes, per="sample", **options)


def _activation(model: nn.Module, layer: nn.Module) -> Importance:
    return fm.class_activation_map(model, layer)


def _gradient(model: nn.Module, layer: nn.Module) -> Importance:
    return fm.input_gradient(model, F.cross_entropy)


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
        "SpectralMix",
        "λ and a random field of a chosen spectrum · beside Park et al. 2022",
        partial(fm.SpectralMix, spectrum=3.0),
    ),
    Method("ResizeMix", "the whole partner, resized into a box · Qin et al. 2020", fm.ResizeMix),
    Method("RICAP", "random crops of four images, patched · Takahashi et al. 2018", fm.RICAP),
    Method("MultiMix", "a blend of three samples, weights by Dirichlet's law", partial(fm.MultiMix, k=3)),
    Method("SaliencyMix", "a box where the partner is salient · Uddin et al. 2021", fm.SaliencyMix),
    Method(
        "AttentiveCutMix",
        "the cells of the partner that matter most · Walawalkar et al. 2020",
        partial(fm.AttentiveCutMix, cells=(4, 4), top=5),
        _activation,
    ),
    Method(
        "SnapMix",
        "one box resized into another, labels by what matters in them · Huang et al. 2021",
        fm.SnapMix,
        _activation,
    ),
    Method(
        "PuzzleMix",
        "blocks of both, moved to where they are seen · Kim et al. 2020",
        partial(fm.PuzzleMix, cells=4),
        _gradient,
    ),
    Method(
        "Cutout",
        "a square of grey in place of a partner · DeVries and Taylor 2017",
        partial(fm.Cutout, ratio=0.5, fill=0.5),
    ),
    Method(
        "GridMask",
        "squares of grey on a grid · Chen et al. 2020",
        partial(fm.GridMask, fill=0.5),
    ),
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
    looks: dict[str, Any] = {}  # at what a plan needs of the images
    if isinstance(transform, ImportanceMethod):
        looks["importance"] = fm.spectral_saliency(images)
        looks["labels"] = torch.arange(len(images), device=images.device)
    if isinstance(transform, fm.PuzzleMix):
        looks["images"] = images
    plan = transform.sample(len(images), images.shape[2:], seed=seed, device=images.device, **looks)
    return Mixture(method, plan, fm.mix(images, plan))
