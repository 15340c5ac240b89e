"""What in a training sample is an image, a segmentation mask, the labels: torchvision v2's conventions.

A sample is any pytree. Its images are its tv_tensors.Image and Video, or, if it has none, the first pure tensor that
is not the labels. Everything that is neither passes through. torchvision is never imported here: if the program has
not imported it, the sample holds none of its types.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils import _pytree as pytree

Getter = Callable[[Any], Any]


class Sample(NamedTuple):
    """A sample taken apart."""

    leaves: list[Any]
    rebuild: Callable[[list[Any]], Any]  # the sample of such leaves
    images: list[int]  # indices of leaves
    masks: list[int]
    labels: Tensor | None
    labels_index: int


def parse(sample: Any, name: str, labels_getter: Getter | str | None, images_getter: Getter | None) -> Sample:
    """Takes a sample apart.

    Raises:
        ValueError: it holds something that cannot be mixed (PIL images, bounding boxes, keypoints), no image, or the
            getters do not return tensors of it.
    """
    if (
        labels_getter == "default"
        and images_getter is None
        and type(sample) in (tuple, list)
        and len(sample) == 2
        and type(sample[0]) is Tensor
        and type(sample[1]) is Tensor
    ):  # what the rest of this function would find, at a tenth of its time
        x, y = sample
        return Sample([x, y], type(sample), [0] if x is not y else [], [], y, 0 if x is y else 1)
    leaves, spec = pytree.tree_flatten(sample)
    kinds = [_kind(leaf) for leaf in leaves]
    only_masks = "mask" in kinds and not {"image", "video", "tensor"} & set(kinds)
    if "unsupported" in kinds or only_masks:
        found = leaves[kinds.index("mask" if only_masks else "unsupported")]
        raise ValueError(
            f"{name}() does not support PIL images, bounding boxes, keypoints, or masks without images, "
            f"but got {type(found).__name__}."
        )
    labels, labels_index = None, -1
    if labels_getter is not None:
        labels = find_labels(sample) if labels_getter == "default" else labels_getter(sample)  # type: ignore[operator]
        if not isinstance(labels, Tensor):
            raise ValueError(f"The labels must be a tensor, but got {type(labels)} instead.")
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
            images = [i for i, kind in enumerate(kinds) if kind == "tensor" and i != labels_index][:1]
    masks = [i for i, kind in enumerate(kinds) if kind == "mask"]
    return Sample(leaves, lambda new: pytree.tree_unflatten(new, spec), images, masks, labels, labels_index)


def find_labels(sample: Any) -> Any:
    """The labels where torchvision's default labels_getter finds them: the second item of a tuple or list, or under a
    key named or containing "label" (any case) of that item or of the sample itself."""
    if isinstance(sample, (tuple, list)) and len(sample) > 1:
        sample = sample[1]
    if isinstance(sample, Tensor) and _kind(sample) == "tensor":
        return sample
    if not isinstance(sample, Mapping):
        raise ValueError(
            "When using the default labels_getter, the input must be a dictionary, or a tuple or list whose second "
            f"item is a dictionary or a tensor, but got {type(sample)}. Pass labels_getter=."
        )
    keys = [key for key in sample if isinstance(key, str)]
    for key in [k for k in keys if k.lower() == "labels"] + [k for k in keys if "label" in k.lower()]:
        return sample[key]
    raise ValueError(
        f"Could not infer where the labels are in the sample, whose keys are {list(sample)}. Pass labels_getter=, or "
        "labels_getter=None if there are none."
    )


def expected_dims(leaf: Tensor) -> tuple[int, ...]:
    """How many dims, batch included, an image may have."""
    return {"image": (4,), "video": (5,)}.get(_kind(leaf), (4, 3, 5))


def spatial_size(leaf: Tensor) -> tuple[int, ...]:
    """The spatial sides: (H, W) of images and videos (B, ..., H, W), everything after (B, C) of pure tensors."""
    return tuple(leaf.shape[2:] if _kind(leaf) == "tensor" else leaf.shape[-2:])


def plain(leaf: Tensor) -> Tensor:
    """The tensor without torchvision's type."""
    return leaf if type(leaf) is Tensor else leaf.as_subclass(Tensor)


def like(x: Tensor, leaf: Tensor) -> Tensor:
    """`x` with torchvision's type of `leaf`, if it has one."""
    tv_tensors = sys.modules.get("torchvision.tv_tensors")
    if tv_tensors is None or not isinstance(leaf, tv_tensors.TVTensor):
        return x
    return tv_tensors.wrap(x, like=leaf)


def _kind(leaf: Any) -> str:
    """ "image", "video", "mask", "tensor" (pure), "unsupported" or "other"."""
    if type(leaf) is Tensor:  # the common case, and the only one inside a traced graph
        return "tensor"
    if not isinstance(leaf, Tensor):
        pil = sys.modules.get("PIL.Image")
        return "unsupported" if pil is not None and isinstance(leaf, pil.Image) else "other"
    tv_tensors = sys.modules.get("torchvision.tv_tensors")
    if tv_tensors is None or not isinstance(leaf, tv_tensors.TVTensor):
        return "tensor"
    for kind, type_ in (("image", "Image"), ("video", "Video"), ("mask", "Mask")):
        if isinstance(leaf, getattr(tv_tensors, type_)):
            return kind
    return "unsupported"


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
