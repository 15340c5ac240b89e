"""What in a training sample is an image, a segmentation mask, the labels: torchvision v2's conventions.

A sample is any pytree. Its images are its tv_tensors.Image and Video, or, if it has none, the first pure tensor that
is not the labels; of a dict, which has no order that means anything, the tensor whose key says so. Everything that is
neither passes through.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fusedmix import checks, subclasses

Getter = Callable[[Any], Any]
IMAGE_KEYS = ("image", "images", "pixel_values", "x", "video")


class Sample(NamedTuple):
    """A sample taken apart."""

    leaves: list[Any]
    rebuild: Callable[[list[Any]], Any]  # makes a sample of such leaves
    images: list[int]  # indices of the leaves that are images
    masks: list[int]  # indices of the leaves that are masks
    labels: Tensor | None
    labels_index: int
    targets: int | None = None  # index of the leaf that has detection targets (fusedmix/detection.py)

    @property
    def image(self) -> Tensor:
        """The images, or the first of several stacks of them."""
        return self.leaves[self.images[0]]


def parse(
    sample: Any,
    name: str,
    labels_getter: Getter | str | None,
    images_getter: Getter | None,
    axes: Sequence[int] | None = None,
) -> Sample:
    """Takes a sample apart.

    Raises:
        ValueError: it holds something that cannot be mixed (PIL images, bounding boxes, keypoints), no image, or the
            getters do not return tensors of it.
    """
    if labels_getter == "default" and images_getter is None and is_pair(sample):
        x, y = sample  # What the rest of this function would find takes ten times as long.
        return Sample([x, y], type(sample), [0] if x is not y else [], [], y, 0 if x is y else 1)
    leaves, rebuild = flatten(sample)
    kinds = [subclasses.kind(leaf) for leaf in leaves]
    only_masks = "mask" in kinds and not {"image", "video", "tensor"} & set(kinds)
    if "unsupported" in kinds or only_masks:
        found = leaves[kinds.index("mask" if only_masks else "unsupported")]
        raise ValueError(
            f"{name}() does not support PIL images, bounding boxes, keypoints, or masks without images, "
            f"but got {type(found).__name__}. Boxes and keypoints of instances are mixed in (images, targets), where "
            "targets are a list with a dict of boxes and labels for each image."
        )
    labels, labels_index = None, -1
    if labels_getter is not None:
        labels = find_labels(sample) if labels_getter == "default" else labels_getter(sample)  # type: ignore[operator]
        if not isinstance(labels, Tensor):
            raise ValueError(f"The labels must be a tensor, but got {type(labels)} instead.{checks.makes_one(labels)}")
        checks.dense("labels", labels)
        labels_index = _position(leaves, labels, "labels_getter")
    if images_getter is not None:
        found = images_getter(sample)
        stacks = [found] if isinstance(found, Tensor) else found
        if not isinstance(stacks, Sequence) or not stacks or not all(isinstance(x, Tensor) for x in stacks):
            raise ValueError(f"images_getter must return a tensor or a sequence of tensors, but got {type(found)}.")
        images: list[int] = []
        for stack in stacks:
            images.append(_position(leaves, stack, "images_getter", taken=images))
    else:
        images = [i for i, kind in enumerate(kinds) if kind in ("image", "video")]
        if not images:
            pure = [i for i, kind in enumerate(kinds) if kind == "tensor" and i != labels_index]
            batch_size = labels.shape[0] if labels is not None and labels.ndim else None
            likely = likely_images(leaves, pure, batch_size, axes)
            images = find_images(sample, leaves, pure, likely, "images_getter=")
    masks = [i for i, kind in enumerate(kinds) if kind == "mask"]
    return Sample(leaves, rebuild, images, masks, labels, labels_index)


def halves(sample: Sample) -> tuple[Sample, Sample]:
    """Samples 0, 2, 4, ... of the images, masks and labels of a batch, and samples 1, 3, 5, ...; all else as it is."""
    of_samples = [*sample.images, *sample.masks, *([] if sample.labels is None else [sample.labels_index])]

    def part(first: int) -> Sample:
        leaves = list(sample.leaves)
        for i in of_samples:
            leaves[i] = subclasses.like(subclasses.plain(leaves[i])[first::2], leaves[i])
        return sample._replace(leaves=leaves, labels=None if sample.labels is None else leaves[sample.labels_index])

    return part(0), part(1)


def check_alike(sample: Sample, other: Sample) -> None:
    """Raises ValueError unless another sample has what can be mixed with this one's images, masks and labels: a sample
    of it beside every stack, and one batch size."""
    for what in ("images", "masks"):
        ours, theirs = ([of.leaves[i] for i in getattr(of, what)] for of in (sample, other))
        if len(ours) != len(theirs):
            raise ValueError(f"other must have as many {what} as the batch, {len(ours)}, but has {len(theirs)}.")
        for x, y in zip(ours, theirs, strict=True):
            checks.dense("other", y)
            if y.dtype != x.dtype or y.device != x.device or y.shape[1:] != x.shape[1:] or y.ndim != x.ndim:
                raise ValueError(
                    f"The {what} of other must be {checks.names([x.dtype])} of shape "
                    f"(samples, {', '.join(map(str, x.shape[1:]))}) on {x.device}, as those of the batch, but got "
                    f"{checks.names([y.dtype])} of shape {tuple(y.shape)} on {y.device}."
                )
    counted = [other.leaves[i] for i in (*other.images, *other.masks)]
    if sample.labels is not None and other.labels is not None:
        counted.append(other.labels)
        if other.labels.ndim != sample.labels.ndim or other.labels.shape[1:] != sample.labels.shape[1:]:
            raise ValueError(
                f"The labels of other must be as those of the batch, which have shape {tuple(sample.labels.shape)}, "
                f"but got shape {tuple(other.labels.shape)}."
            )
    if len({x.shape[0] for x in counted}) > 1:
        found = ", ".join(str(tuple(x.shape)) for x in counted)
        raise ValueError(f"The images, masks and labels of other must have one batch size, but got the shapes {found}.")


def is_pair(sample: Any) -> bool:
    """Whether a sample is a tuple or list of two pure tensors."""
    return (
        type(sample) in (tuple, list) and len(sample) == 2 and type(sample[0]) is Tensor and type(sample[1]) is Tensor
    )


def flatten(tree: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The leaves of a tree, and what makes a tree of such leaves. Mappings that are no pytrees (UserDict, BatchFeature,
    a dict of one's own class) are taken apart too, and keep their type."""
    leaves, spec = pytree.tree_flatten(tree)
    if not any(isinstance(leaf, Mapping) for leaf in leaves):
        return leaves, lambda new: pytree.tree_unflatten(new, spec)
    opened = [flatten(dict(leaf)) if isinstance(leaf, Mapping) else ([leaf], None) for leaf in leaves]

    def rebuild(new: list[Any]) -> Any:
        rest, outer = iter(new), []
        for leaf, (inner, inside) in zip(leaves, opened, strict=True):
            part = list(islice(rest, len(inner)))
            if inside is None:
                outer.append(part[0])
            else:  # A mapping in which nothing was mixed passes through, because not every mapping can be copied.
                changed = any(a is not b for a, b in zip(part, inner, strict=True))
                outer.append(_filled(leaf, inside(part)) if changed else leaf)
        return pytree.tree_unflatten(outer, spec)

    return [leaf for inner, _ in opened for leaf in inner], rebuild


def paths(tree: Any) -> list[tuple[Any, ...]]:
    """The pytree paths of the leaves, in the order of `flatten`."""
    found = []
    for path, leaf in pytree.tree_flatten_with_path(tree)[0]:
        inner = paths(dict(leaf)) if isinstance(leaf, Mapping) else [()]
        found += [(*path, *rest) for rest in inner]
    return found


def _filled(mapping: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """A mapping of the same type with other items."""
    if not isinstance(mapping, MutableMapping):
        return type(mapping)(items)  # type: ignore[call-arg]
    before, filled = dict(mapping), copy.copy(mapping)
    filled.update(items)
    if all(mapping[key] is value for key, value in before.items()):
        return filled
    mapping.update(before)  # The copy shares its items with the mapping, which has been changed by filling the copy.
    return type(mapping)(items)  # type: ignore[call-arg]


def find_images(sample: Any, leaves: list[Any], pure: list[int], likely: list[int], keyword: str) -> list[int]:
    """Which of the pure tensors (indices of leaves), of which some are likely, are the images: the first, or of a
    mapping the one whose key says so, or the only likely one.

    Raises:
        ValueError: there are several; `keyword` says what to pass.
    """
    if len(pure) < 2 or likely == pure[:1]:
        return pure[:1]
    where = paths(sample)
    keys = {i: [key.key for key in where[i] if isinstance(key, pytree.MappingKey)] for i in pure}
    if not keys[pure[0]]:
        return pure[:1]  # The position says what it is.
    named = [i for i in pure if keys[i] and str(keys[i][-1]).lower() in IMAGE_KEYS]
    chosen = named if len(named) == 1 else [i for i in named if i in likely] or likely or pure[:1]
    if len(chosen) > 1:
        found = ", ".join(f"{''.join(map(str, where[i]))} of shape {tuple(leaves[i].shape)}" for i in chosen)
        raise ValueError(
            f"Several tensors may be the images: {found}. Pass {keyword}, or give the images alone a key that says so: "
            f"{', '.join(IMAGE_KEYS)}."
        )
    return chosen


def likely_images(leaves: list[Any], among: list[int], batch_size: int | None, axes: Sequence[int] | None) -> list[int]:
    """Which tensors have the layout, the dims, the dtype and the batch size of images; if none has, of vectors."""
    dtypes, dense = checks.IMAGE_DTYPES, [i for i in among if leaves[i].layout is torch.strided]
    dense = [i for i in dense if not leaves[i].is_nested and batch_size in (None, leaves[i].shape[:1].numel())]
    fewest, most = (3, 5) if axes is None else (2, math.inf)
    images = [i for i in dense if fewest <= leaves[i].ndim <= most and leaves[i].dtype in dtypes]
    return images or [i for i in dense if leaves[i].ndim == 2 and leaves[i].is_floating_point()]


def find_labels(sample: Any) -> Any:
    """The labels where torchvision's default labels_getter finds them: the second item of a tuple or list, or under a
    key named or containing "label" (any case) of that item or of the sample itself."""
    if isinstance(sample, (tuple, list)) and len(sample) > 1:
        sample = sample[1]
    if isinstance(sample, Tensor) and subclasses.kind(sample) == "tensor":
        return sample
    if not isinstance(sample, Mapping):
        raise ValueError(
            "When using the default labels_getter, the input must be a dictionary, or a tuple or list whose second "
            f"item is a dictionary or a tensor, but got {type(sample)}.{checks.makes_one(sample)} "
            "Pass labels_getter= where the labels are elsewhere, or labels_getter=None if there are none."
        )
    keys = [key for key in sample if isinstance(key, str)]
    for key in [k for k in keys if k.lower() == "labels"] + [k for k in keys if "label" in k.lower()]:
        return sample[key]
    raise ValueError(
        f"Could not infer where the labels are in the sample, whose keys are {list(sample)}. Pass labels_getter=, or "
        "labels_getter=None if there are none."
    )


def map_once(function: Callable[[Tensor], Tensor], leaves: list[Any], positions: list[int]) -> None:
    """Replaces leaves by what the function makes of them; one tensor at two positions goes through it once."""
    before = list(leaves)
    for n, i in enumerate(positions):
        twins = [j for j in positions[:n] if before[j] is before[i]]
        leaves[i] = leaves[twins[0]] if twins else function(before[i])


def _position(leaves: list[Any], tensor: Tensor, getter: str, taken: Sequence[int] = ()) -> int:
    """Where the tensor stands among the leaves, elsewhere than at the positions taken if it stands at several."""
    places = [i for i, leaf in enumerate(leaves) if leaf is tensor]
    for i in [i for i in places if i not in taken] + places:
        return i
    raise ValueError(
        f"{getter} must return tensors of the sample itself, but got another one of shape {tuple(tensor.shape)}."
    )
