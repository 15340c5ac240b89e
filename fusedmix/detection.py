"""Batches as torchvision's detectors take them: images, and for each a target, a dict of its boxes and their labels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fusedmix import checks
from fusedmix.boxes import check_lists, corners, mix_boxes, mix_instances, mix_keypoints
from fusedmix.layers import area
from fusedmix.plan import MixPlan
from fusedmix.sample_tree import Sample
from fusedmix.subclasses import box_format, like, plain

# What a target may have for each of its n boxes, beside their labels, and its shape.
_OF_BOXES = {"iscrowd": "n", "weights": "n", "area": "n", "masks": "n, H, W", "keypoints": "n, K, 2 or 3"}


def parse(sample: Any, inplace: bool) -> Sample | None:
    """A batch (images, targets) taken apart; None if it is none. Its leaves are the images, stacked where they are a
    list, and the targets.

    Raises:
        ValueError: the images of a list are not of one shape, or are to be mixed in place.
    """
    if type(sample) not in (tuple, list) or len(sample) != 2:
        return None
    images, targets = sample
    if not isinstance(targets, (list, tuple)) or not targets or not all(_is_target(target) for target in targets):
        return None
    if isinstance(images, Tensor):
        return Sample([images, targets], type(sample), [0], [], None, -1, targets=1)
    if not isinstance(images, (list, tuple)) or not all(isinstance(x, Tensor) for x in images):
        raise ValueError(
            f"images beside detection targets must be a tensor (B, C, H, W) or a list of tensors (C, H, W), but got "
            f"{type(images).__name__}."
        )
    kinds = {(tuple(x.shape), x.dtype, x.device) for x in images}
    if len(kinds) > 1 or len(images) != len(targets):
        found = ", ".join(sorted(f"{checks.names([dtype])} {shape}" for shape, dtype, _ in kinds))
        raise ValueError(
            f"images must be one for each of {len(targets)} detection targets, of one shape, dtype and device, because "
            f"one plan mixes them: resize or pad them first. But got {len(images)}: {found}."
        )
    if inplace:
        raise ValueError(
            "inplace must be False for images in a list, which are stacked first. Pass a tensor (B, C, H, W)."
        )

    def rebuild(leaves: list[Any]) -> Any:
        mixed = type(images)(like(x, leaf) for x, leaf in zip(leaves[0].unbind(), images, strict=True))
        return type(sample)((mixed, leaves[1]))

    stacked = torch.stack([plain(x) for x in images])
    return Sample([stacked, targets], rebuild, [0], [], None, -1, targets=1)


def _is_target(x: Any) -> bool:
    return isinstance(x, dict) and isinstance(x.get("boxes"), Tensor)


def check(targets: Sequence[dict[str, Any]], batch_size: int, size: tuple[int, ...]) -> None:
    """Raises ValueError unless there is a target for each image of a size, each with what belongs to its boxes."""
    if len(targets) != batch_size or len(size) != 2:
        raise ValueError(
            f"{len(targets)} detection targets must be of as many images (H, W), but got {batch_size} of {size}."
        )
    for key in ("labels", *_OF_BOXES):
        have = [key in target for target in targets]
        if any(have) != all(have) or (key == "labels" and not all(have)):
            raise ValueError(f"{key} must be in every detection target, but target {have.index(False)} has none.")
    check_lists([target["boxes"] for target in targets], [target["labels"] for target in targets], None, size)
    for i, target in enumerate(targets):
        sides = {"n": (len(target["boxes"]),), "H": size[:1], "W": size[1:], "2 or 3": (2, 3)}
        for key in _OF_BOXES.keys() & target.keys():
            x, dims = target[key], _OF_BOXES[key].split(", ")
            shape = tuple(x.shape) if isinstance(x, Tensor) else ()
            if len(shape) != len(dims) or any(
                n not in sides.get(dim, (n,)) for n, dim in zip(shape, dims, strict=True)
            ):
                came = f"shape {shape}" if isinstance(x, Tensor) else type(x).__name__
                raise ValueError(
                    f"{key} of detection target {i} must be ({_OF_BOXES[key]}), for {len(target['boxes'])} boxes in an "
                    f"image of size {size}, but got {came}."
                )


def mixed(targets: Sequence[dict[str, Any]], plan: MixPlan, min_visible: float) -> Sequence[dict[str, Any]]:
    """The targets of mixed images, in new dicts that have "weights" beside what the targets have."""

    def of(key: str) -> list[Any]:
        return [target[key] for target in targets]

    found = mix_boxes(of("boxes"), of("labels"), plan, min_visible=min_visible)
    made: dict[str, Any] = {"boxes": found.boxes, "labels": found.labels, "weights": found.weight}
    if "weights" in targets[0]:
        made["weights"] = [x * y for x, y in zip(found.weight, found.take(of("weights")), strict=True)]
    if "iscrowd" in targets[0]:
        made["iscrowd"] = found.take(of("iscrowd"))
    if "masks" in targets[0]:
        made["masks"] = mix_instances([plain(x) for x in of("masks")], found, plan)
    if "keypoints" in targets[0]:
        made["keypoints"] = mix_keypoints([plain(x) for x in of("keypoints")], found, plan)
    if "area" in targets[0]:
        form = box_format(targets[0]["boxes"]) or "xyxy"
        of_boxes = [area(corners(x.float(), form)) for x in found.boxes]
        pixels = [(x != 0).flatten(1).sum(1) for x in made["masks"]] if "masks" in made else of_boxes
        made["area"] = [x.to(own.dtype) for x, own in zip(pixels, of("area"), strict=True)]
    out = []
    for i, target in enumerate(targets):
        target = copy.copy(target)
        for key, values in made.items():
            target[key] = like(values[i], target[key]) if key in target else values[i]
        out.append(target)
    return type(targets)(out)  # type: ignore[call-arg]
