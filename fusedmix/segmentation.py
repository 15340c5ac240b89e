"""Segmentation targets: label maps mixed by the mask that mixed the images."""

from __future__ import annotations

import torch
from torch import Tensor

from fusedmix import checks, subclasses
from fusedmix.backends import gathers
from fusedmix.functional import mix
from fusedmix.methods import Resize
from fusedmix.plan import OF_PIXELS, MixPlan, same_batch

_REFUSED = tuple(attribute for attribute in OF_PIXELS if attribute != "patches")


def mix_masks(
    masks: Tensor, plan: MixPlan, *, num_classes: int | None = None, ignore_index: int | None = 255
) -> Tensor:
    """Mixes segmentation targets by the masks of a plan, out of place.

    Args:
        masks: (B, ..., *plan.size). Integer or bool: label maps. Floating point: dense targets, blended as images are.
        plan: the plan that mixed the images, on any device.
        num_classes: None: label maps stay label maps, each pixel taking the label of the image it came from; this
            needs a plan whose masks are 0 or 1 (CutMix, FMix), or that pastes crops (ResizeMix, RICAP), which are
            resized to the nearest pixel then. K: label maps (B, *size) or (B, 1, *size) become soft
            one-hot targets, as blended pixels need them (MixUp, HMix, GMix).
        ignore_index: with num_classes, the label of void pixels, whose one-hot target is 0 everywhere; None: there is
            none, as needed where 255 is a class.

    Returns:
        A new tensor of the shape and dtype of `masks`, or (B, K, *size) float32 if num_classes is given.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or shape; label maps would have to be blended, but
            num_classes is None; a label is neither in [0, K) nor ignore_index (checked on the CPU).
    """
    if subclasses.has_type(masks):
        mixed = mix_masks(subclasses.plain(masks), plan, num_classes=num_classes, ignore_index=ignore_index)
        return subclasses.like(mixed, masks)
    same_batch("masks", checks.tensor("masks", masks), plan, refuse=_REFUSED)
    if num_classes is not None:
        num_classes = checks.integer("num_classes", num_classes, 1)
    check_masks(masks, plan.size, plan.binary, num_classes, ignore_index)
    if masks.is_floating_point():
        return mix(masks, plan)
    if num_classes is None and plan.patches is not None:
        return gathers.paste(masks, plan.patches, Resize.NEAREST)
    if num_classes is None:
        checks.partners(plan.partner)
        own = plan.mask().to(masks.device) == 1
        own = own.reshape([masks.shape[0]] + [1] * (masks.ndim - own.ndim) + list(plan.size))
        return torch.where(own, masks, masks[plan.partner.to(masks.device)])
    labels = masks.reshape(masks.shape[0], 1, *plan.size).long()
    void = _void(labels, ignore_index)
    classes = torch.arange(num_classes, device=masks.device).reshape(-1, *[1] * len(plan.size))
    return mix(((labels == classes) & ~void).float(), plan)


def _void(labels: Tensor, ignore_index: int | None) -> Tensor:
    return torch.zeros_like(labels, dtype=torch.bool) if ignore_index is None else labels == ignore_index


def check_masks(
    masks: Tensor, size: tuple[int, ...], binary: bool, num_classes: int | None, ignore_index: int | None
) -> None:
    """Raises ValueError if `masks` cannot be mixed by masks of that size, binary or not."""
    checks.dense("masks", masks)
    if tuple(masks.shape[1:][-len(size) :]) != size:
        raise ValueError(
            f"masks must end in the spatial size of the images, {size}, but got shape {tuple(masks.shape)}."
        )
    if masks.is_floating_point():
        checks.batch("masks", masks)
    elif masks.dtype not in (*checks.INTEGER_DTYPES, torch.bool):
        raise ValueError(f"masks must be label maps or real dense targets, but got {masks.dtype}.")
    elif num_classes is None and not binary:
        raise ValueError(
            f"masks of {masks.dtype} are label maps, which a method that blends images cannot mix: only CutMix's masks "
            "are 0 or 1 everywhere. Pass the number of mask classes (mask_classes= of a module, num_classes= of "
            "mix_masks) to get soft one-hot targets."
        )
    elif num_classes is not None and masks.shape[1 : -len(size)] not in ((), (1,)):
        raise ValueError(
            f"label maps must be (batch_size, *size) or (batch_size, 1, *size) to become soft one-hot targets, "
            f"but got shape {tuple(masks.shape)}."
        )
    elif num_classes is not None:
        labels = masks.long()
        checks.class_range(torch.where(_void(labels, ignore_index), 0, labels), num_classes, "masks")
