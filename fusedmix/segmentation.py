"""Segmentation targets: label maps mixed by the mask that mixed the images.

A label map is cut as images of bytes are: the bytes of a label are channels of its pixel, which the mixing operators
copy from the sample or from its partner, bit for bit, so that they need to know of no other dtype.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fusedmix import checks, subclasses
from fusedmix.methods import Resize
from fusedmix.mixing import mix, mix_
from fusedmix.plan import OF_PIXELS, MixPlan, same_batch

_REFUSED = tuple(attribute for attribute in OF_PIXELS if attribute not in ("patches", "fill", "blended"))


def mix_masks(
    masks: Tensor,
    plan: MixPlan,
    *,
    other: Tensor | None = None,
    num_classes: int | None = None,
    ignore_index: int | None = 255,
    backend: str | None = None,
) -> Tensor:
    """Mixes segmentation targets by the masks of a plan, out of place.

    Args:
        masks: (B, ..., *plan.size). Integers of any width or bool: label maps. Floating point: dense targets, blended
            as images are.
        plan: the plan that mixed the images, on any device.
        other: the masks of the batch that partners are from, (N, ..., *plan.size), of the dtype of `masks` and beside
            them. None: they are from the batch itself.
        num_classes: None: label maps stay label maps, each pixel taking the label of the image it came from; this
            needs a plan whose masks are 0 or 1 (CutMix, FMix), or that pastes crops (ResizeMix, RICAP), which are
            resized to the nearest pixel then. K: label maps (B, *size) or (B, 1, *size) become soft
            one-hot targets, as blended pixels need them (MixUp, HMix, GMix).
        ignore_index: with num_classes, the label of void pixels, whose one-hot target is 0 everywhere; None: there is
            none, as needed where 255 is a class.
        backend: as in `mix`.

    Returns:
        A new tensor of the shape and dtype of `masks`, or (B, K, *size) float32 if num_classes is given. A plan that
        fills with a constant leaves masks as they were.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or shape; label maps would have to be blended, but
            num_classes is None; a label is neither in [0, K) nor ignore_index (checked on the CPU).
        BackendError: the backend asked for cannot run here.
    """
    if subclasses.has_type(masks):
        options = {"other": other, "num_classes": num_classes, "ignore_index": ignore_index, "backend": backend}
        return subclasses.like(mix_masks(subclasses.plain(masks), plan, **options), masks)  # type: ignore[arg-type]
    if num_classes is not None:
        num_classes = checks.integer("num_classes", num_classes, 1)
    other = _checked(masks, plan, other, num_classes, ignore_index)
    if masks.is_floating_point() or num_classes is not None:
        masks = _soft(masks, plan, num_classes, ignore_index)
        other = None if other is None else _soft(other, plan, num_classes, ignore_index)
        return masks.clone() if plan.fill is not None else mix(masks, plan, other=other, backend=backend)
    if plan.fill is not None:
        return masks.clone()
    mixed = mix(_bytes(masks), _nearest(plan), other=None if other is None else _bytes(other), backend=backend)
    mixed = mixed.movedim(1, -1)
    return (mixed if mixed.stride(-1) == 1 else mixed.contiguous()).view(masks.dtype).squeeze(-1)


def mix_masks_(masks: Tensor, plan: MixPlan, *, other: Tensor | None = None, backend: str | None = None) -> Tensor:
    """Mixes segmentation targets in place, as `mix_masks` does out of place without num_classes, and returns them.
    Bumps their version.

    Raises:
        InplaceError: as `mix_`: the masks overlap themselves, or the plan is none that can mix in place.
        TypeError, ValueError, BackendError: as `mix_masks`.

    Nothing has been written then.
    """
    written = subclasses.plain(masks)
    other = _checked(written, plan, other, None, None)
    if plan.fill is None:
        if not written.is_floating_point():
            written, other = _bytes(written), None if other is None else _bytes(other)
        mix_(written, _nearest(plan), other=other, backend=backend)
    return masks


def _checked(
    masks: Tensor, plan: MixPlan, other: Tensor | None, num_classes: int | None, ignore_index: int | None
) -> Tensor | None:
    """The masks of the other batch, beside `masks`; raises unless both can be mixed by the plan."""
    same_batch("masks", checks.tensor("masks", masks), plan, refuse=_REFUSED, other=other)
    kept = plan.fill is not None  # What is filled keeps its labels.
    check_masks(masks, plan.size, plan.binary or kept, num_classes, ignore_index)
    if other is None:
        return None
    if kept or plan.patches is not None:
        raise ValueError("other must be None for a plan that fills with a constant or pastes crops.")
    other = subclasses.plain(checks.tensor("other", other))
    if other.dtype != masks.dtype or other.shape[1:] != masks.shape[1:] or other.ndim != masks.ndim:
        raise ValueError(
            f"other must be {checks.names([masks.dtype])} masks of shape "
            f"(samples, {', '.join(map(str, masks.shape[1:]))}), but got {checks.names([other.dtype])} of shape "
            f"{tuple(other.shape)}."
        )
    check_masks(other, plan.size, plan.binary, num_classes, ignore_index)
    return other.to(masks.device)


def _nearest(plan: MixPlan) -> MixPlan:
    """The plan for label maps, whose crops take the nearest pixels."""
    return plan if plan.resize == Resize.NEAREST else replace(plan, resize=Resize.NEAREST)


def _bytes(maps: Tensor) -> Tensor:
    """A view of label maps as images of bytes, (B, bytes of a label, ..., *S)."""
    return maps.unsqueeze(-1).view(torch.uint8).movedim(-1, 1)


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
