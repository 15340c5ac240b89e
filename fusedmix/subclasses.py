"""Tensors of a subclass: which kind of data they are, and how operators see the tensor alone.

torchvision is never imported here: if the program has not imported it, no tensor is of its types.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import has_torch_function_unary


def kind(leaf: Any) -> str:
    """ "image", "video", "mask", "tensor" (pure), "unsupported" or "other"."""
    if type(leaf) is Tensor:  # This is the common case, and the only one inside a traced graph.
        return "tensor"
    if not isinstance(leaf, Tensor):
        pil = sys.modules.get("PIL.Image")
        return "unsupported" if pil is not None and isinstance(leaf, pil.Image) else "other"
    tv_tensors = sys.modules.get("torchvision.tv_tensors")
    if tv_tensors is None or not isinstance(leaf, tv_tensors.TVTensor):
        return "tensor"
    for name, type_ in (("image", "Image"), ("video", "Video"), ("mask", "Mask")):
        if isinstance(leaf, getattr(tv_tensors, type_)):
            return name
    return "unsupported"


def box_format(x: Tensor) -> str | None:
    """The format of torchvision's BoundingBoxes, in small letters; None of any other tensor."""
    tv_tensors = sys.modules.get("torchvision.tv_tensors")
    if tv_tensors is None or not isinstance(x, tv_tensors.BoundingBoxes):
        return None
    return str(x.format.value).lower()


def has_type(x: Any) -> bool:
    """Whether a tensor is of a subclass that `plain` takes off: torchvision's, or one with or without its own
    __torch_function__. A parameter is a tensor to every operator, and what has a __torch_dispatch__ is more than a
    type: operators reach what it holds."""
    if type(x) in (Tensor, Parameter) or not isinstance(x, Tensor):
        return False
    return type(x).__torch_dispatch__ == Tensor.__torch_dispatch__


def plain(leaf: Tensor) -> Tensor:
    """The tensor without its subclass."""
    if not has_type(leaf):
        return leaf
    with torch._C.DisableTorchFunctionSubclass():
        return leaf.as_subclass(Tensor)


def like(x: Tensor, leaf: Tensor) -> Tensor:
    """`x`, made of a plain `leaf`, with the subclass of `leaf`: by the rules of the subclass, as torchvision's own
    transforms leave it to them, so that it keeps what else it keeps (the metadata of MONAI's MetaTensor)."""
    if not has_type(leaf):
        return x
    tv_tensors = sys.modules.get("torchvision.tv_tensors")
    if tv_tensors is not None and isinstance(leaf, tv_tensors.TVTensor):
        return tv_tensors.wrap(x, like=leaf)
    if not has_torch_function_unary(leaf):  # The class leaves operators alone.
        return x
    typed = type(leaf).__torch_function__(_mixed, (type(leaf),), (leaf, x), {})
    return x if typed is NotImplemented else typed


def _mixed(original: Tensor, mixed: Tensor) -> Tensor:
    """The function that __torch_function__ of a subclass is told of."""
    return mixed
