"""Whether a derivative by a tensor may be asked for, which operators do not see."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


def tracked(*tensors: Tensor) -> bool:
    """Whether a derivative by one of the tensors may be asked for, backwards or forwards, or torch.vmap maps one: what
    operators do not see, and goes through autograd, which costs several times a plain call."""
    for x in tensors:  # A loop is faster than any(), and this is asked at every step.
        if x.requires_grad and torch.is_grad_enabled():
            return True
    return transformed() and any(
        torch._C._functorch.is_functorch_wrapped_tensor(x) or forward_ad.unpack_dual(x).tangent is not None
        for x in tensors
    )


def transformed() -> bool:
    """Whether there may be tensors with tangents, or with a dim of torch.vmap."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
