"""The ways to mix a batch that are timed inside a training step, and the proof that those called alike are alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm.data
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

import fusedmix as fm
from fusedmix.integrations import timm as fused_timm

# The settings of torchvision's reference training of ResNet-50, and of timm's of a ViT.
ALPHAS = {"MixUp": 0.2, "CutMix": 1.0}
TIMM = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "switch_prob": 0.5, "label_smoothing": 0.1}
_SEEDS = 4  # that twins are compared for: both methods of a set come up


@dataclass(frozen=True)
class Mixer:
    """One way: from images and classes to mixed images and what the loss wants."""

    name: str
    provider: str
    method: str
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Any]]
    loss: Callable[[Tensor, Any], Tensor] = F.cross_entropy
    twin: str = ""  # the name of the mixer of a peer whose batches it must give for the same seed
    per: str = "batch"
    inplace: bool = False
    captured: bool = False  # whether it may be captured in a CUDA graph: what draws on the host would freeze


def seed_all(seed: int) -> None:
    """torchvision draws from torch's generator, timm from NumPy's."""
    torch.manual_seed(seed)
    np.random.seed(seed)


def mixers(classes: int, one_hot: Tensor) -> list[Mixer]:
    """All of them; the first does not mix and takes targets that are there already."""

    def torchvision_set() -> v2.Transform:
        return v2.RandomChoice([getattr(v2, m)(alpha=a, num_classes=classes) for m, a in ALPHAS.items()])

    def fused_set(**options: Any) -> fm.RandomMix:
        return fm.RandomMix([getattr(fm, m)(alpha=a) for m, a in ALPHAS.items()], num_classes=classes, **options)

    found = [Mixer("none", "torch", "", lambda x, y: (x, one_hot), captured=True)]
    for method, alpha in ALPHAS.items():
        theirs = getattr(v2, method)(alpha=alpha, num_classes=classes)
        ours = getattr(fm, method)(alpha=alpha, num_classes=classes)
        name = f"torchvision {method}"
        found += [
            Mixer(name, "torchvision", method, theirs),
            Mixer(f"fusedmix {method}", "fusedmix", method, ours, twin=name),
        ]
    name = "torchvision RandomChoice"
    found += [
        Mixer(name, "torchvision", "RandomMix", torchvision_set()),
        Mixer("fusedmix RandomMix", "fusedmix", "RandomMix", fused_set(), twin=name),
    ]
    for mode, per in (("batch", "batch"), ("elem", "sample")):
        name = f"timm Mixup, {mode}"
        theirs = timm.data.Mixup(mode=mode, num_classes=classes, **TIMM)
        ours = fused_timm.Mixup(mode=mode, num_classes=classes, **TIMM)
        found += [
            Mixer(name, "timm", "Mixup", theirs, per=per, inplace=True),
            Mixer(f"fusedmix timm.Mixup, {mode}", "fusedmix", "Mixup", ours, twin=name, per=per, inplace=True),
        ]

    per_sample = fused_set(per="sample", sampling="device", inplace=True)

    def with_plan(x: Tensor, y: Tensor) -> tuple[Tensor, Any]:
        plan = per_sample.sample(len(x), x.shape[2:], device=x.device)
        return fm.mix_(x, plan), (y, plan)

    def fused_loss(logits: Tensor, target: tuple[Tensor, fm.MixPlan]) -> Tensor:
        return fm.mix_cross_entropy(logits, *target)

    in_place = {"per": "sample", "inplace": True, "captured": True}
    found += [
        Mixer("fusedmix RandomMix, device, in place", "fusedmix", "RandomMix", per_sample, **in_place),
        Mixer("the same, mix_cross_entropy", "fusedmix", "RandomMix", with_plan, fused_loss, **in_place),
    ]
    return found


def disagreement(mixer: Mixer, twin: Mixer, x: Tensor, y: Tensor, loss: Callable[[Mixer, Tensor], float]) -> str | None:
    """How the batches, or the losses, of two mixers differ for the same seeds; None: by rounding only.

    Args:
        loss: of a training step from the same state, in float32, with a mixer on images.
    """
    # A box is a copy. A blend is rounded once here, and up to three times there; targets likewise.
    atol = 4 * torch.finfo(x.dtype).eps * float(x.abs().max())
    for seed in range(_SEEDS):
        results, losses = [], []
        for each in (mixer, twin):
            seed_all(seed)
            results.append(each.mix(x.clone(memory_format=torch.preserve_format), y))
            seed_all(seed)
            losses.append(loss(each, x.clone(memory_format=torch.preserve_format)))
        for what, (ours, theirs), allowed in zip(
            ("images", "targets"), zip(*results, strict=True), (atol, 4 * torch.finfo(torch.float32).eps), strict=True
        ):
            largest = float((ours - theirs).abs().max())
            if not largest <= allowed:
                return f"{what} of {mixer.name} and {twin.name} differ by {largest:.3g} (seed {seed})"
        # What rounding of the images makes of itself on its way through some fifty layers.
        if not abs(losses[0] - losses[1]) <= 1e-4 * abs(losses[1]):
            return f"the losses of {mixer.name} and {twin.name} are {losses[0]:.6g} and {losses[1]:.6g} (seed {seed})"
    return None
