"""Segmentation targets: label maps mixed by the mask that mixed the images."""

from __future__ import annotations

import torch
from torch import Tensor

from fusedmix import checks, subclasses
from fusedmix.backends import gathers
from fusedmix.methods import Resize
from fusedmix.mixing import mix
from fusedmix.plan import OF_PIXELS, MixPlan, of_partners, same_batch

_REFUSED = tuple(attribute for attribute in OF_PIXELS if attribute not in ("patches", "fill", "blended"))


def mix_masks(
    masks: Tensor,
    plan: MixPlan,
    *,
    other: Tensor | None = None,
    num_classes: int | None = None,
    ignore_index: int | None = 255,
) -> Tensor:
    """Mixes segmentation targets by the masks of a plan, out of place.

    Args:
        masks: (B, ..., *plan.size). Integer or bool: label maps. Floating point: dense targets, blended as images are.
        plan: the plan that mixed the images, on any device.
        other: the masks of the batch that partners are from, (N, ..., *plan.size), of the dtype of `masks` and beside
            them. None: they are from the batch itself.
        num_classes: None: label maps stay label maps, each pixel taking the label of the image it came from; this
            needs a plan whose masks are 0 or 1 (CutMix, FMix), or that pastes crops (ResizeMix, RICAP), which are
            resized to the nearest pixel then. K: label maps (B, *size) or (B, 1, *size) become soft
            one-hot targets, as blended pixels need them (MixUp, HMix, GMix).
        ignore_index: with num_classes, the label of void pixels, whose one-hot target is 0 everywhere; None: there is
            none, as needed where 255 is a class.

    Returns:
        A new tensor of the shape and dtype of `masks`, or (B, K, *size) float32 if num_classes is given. A plan that
        fills with a constant leaves masks as they were.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or shape; label maps would have to be blended, but
            num_classes is None; a label is neither in [0, K) nor ignore_index (checked on the CPU).
    """
    if subclasses.has_type(masks):
        options = {"other": other, "num_classes": num_classes, "ignore_index": ignore_index}
        return subclasses.like(mix_masks(subclasses.plain(masks), plan, **options), masks)  # type: ignore[arg-type]
    same_batch("masks", checks.tensor("masks", masks), plan, refuse=_REFUSED, other=other)
    if num_classes is not None:
        num_classes = checks.integer("num_classes", num_classes, 1)
    kept = plan.fill is not None  # What is filled keeps its labels.
    check_masks(masks, plan.size, plan.binary or kept, num_classes, ignore_index)
    if other is not None and (kept or plan.patches is not None):
        raise ValueError("other must be None for a plan that fills with a constant or pastes crops.")
    if other is not None:
        other = subclasses.plain(checks.tensor("other", other))
        if other.dtype != masks.dtype or other.shape[1:] != masks.shape[1:] or other.ndim != masks.ndim:
            raise ValueError(
                f"other must be {checks.names([masks.dtype])} masks of shape "
                f"(samples, {', '.join(map(str, masks.shape[1:]))}), but got {checks.names([other.dtype])} of shape "
                f"{tuple(other.shape)}."
            )
        check_masks(other, plan.size, plan.binary, num_classes, ignore_index)
    if masks.is_floating_point() or num_classes is not None:
        soft = _soft(masks, plan, num_classes, ignore_index)
        if kept:
            return soft.clone()
        return mix(soft, plan, other=None if other is None else _soft(other, plan, num_classes, ignore_index))
    if kept:
        return masks.clone()
    if plan.patches is not None:
        return gathers.paste(masks, plan.patches, Resize.NEAREST)
    own = plan.mask().to(masks.device) == 1
    own = own.reshape([masks.shape[0]] + [1] * (masks.ndim - own.ndim) + list(plan.size))
    return torch.where(own, masks, of_partners("masks", masks, plan, other))


def _soft(masks: Tensor, plan: MixPlan, num_classes: int | None, ignore_index: int | None) -> Tensor:
    """Masks as what can be blended: label maps as one-hot maps."""
    if masks.is_floating_point():
        return masks
    assert num_classes is not None
    labels = masks.reshape(masks.shape[0], 1, *plan.size).long()
    void = _void(labels, ignore_index)
    classes = torch.arange(num_classes, device=masks.device).reshape(-1, *[1] * len(plan.size))
    return ((labels == classes) & ~void).float()


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
