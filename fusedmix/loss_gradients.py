"""The gradients of the label losses: an operator forwards, an operator backwards.

Entered only if a gradient is needed. Both gradients are functions of their own, so that a second derivative is right:
it is a formula in PyTorch, which builds the dense targets that the first two passes do without.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fusedmix.backends import reference


def cross_entropy(operators: Any, logits: Tensor, mixed: tuple[Any, ...], options: tuple[Any, ...]) -> Tensor:
    """The operator's loss.

    Args:
        mixed: labels, partner, weight, pairing, per, class_weight.
        options: label_smoothing, ignore_index, reduction.
    """
    if logits.requires_grad and torch.is_grad_enabled():
        return _CrossEntropy.apply(operators, logits, *mixed, *options)[0]
    return operators.cross_entropy(logits, *mixed, *options)[0]


def binary_cross_entropy(operators: Any, logits: Tensor, mixed: tuple[Any, ...], options: tuple[Any, ...]) -> Tensor:
    """The operator's loss.

    Args:
        mixed: labels, partner, weight, pairing, per, class_weight, pos_weight.
        options: label_smoothing, threshold, reduction.
    """
    if logits.requires_grad and torch.is_grad_enabled():
        return _BinaryCrossEntropy.apply(operators, logits, *mixed, *options)
    return operators.binary_cross_entropy(logits, *mixed, *options)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(operators: Any, logits: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        return operators.cross_entropy(logits, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.operators, logits, labels, partner, weight, *hints, class_weight, smoothing, ignore_index, _ = inputs
        _, statistics, scale = output
        ctx.mark_non_differentiable(statistics, scale)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, labels, partner, weight, class_weight, statistics, scale)
        ctx.hints, ctx.options = hints, (smoothing, ignore_index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
        if grad is None:
            return (None,) * 11
        logits, labels, partner, weight, class_weight, statistics, scale = ctx.saved_tensors
        rest = (labels, partner, weight, *ctx.hints, class_weight, statistics, scale, *ctx.options)
        if torch.is_grad_enabled() and (grad.requires_grad or logits.requires_grad):
            slope = _CrossEntropyGradient.apply(ctx.operators, grad, logits, *rest)
        else:
            slope = ctx.operators.cross_entropy_backward(grad, logits, *rest)
        return (None, slope, *[None] * 9)


class _CrossEntropyGradient(torch.autograd.Function):
    @staticmethod
    def forward(operators: Any, *args: Any) -> Tensor:
        return operators.cross_entropy_backward(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, grad, logits, labels, partner, weight, _, _, class_weight, _, scale, *ctx.options = inputs
        ctx.save_for_backward(grad, logits, labels, partner, weight, class_weight, scale)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Any, ...]:
        grad, logits, labels, partner, weight, class_weight, scale = ctx.saved_tensors
        z, v = logits.to(grad.dtype), outer.to(grad.dtype)
        target, ignored = reference.mixed_classes(z, labels, partner, weight, class_weight, *ctx.options)
        mass = torch.where(ignored.unsqueeze(1), 0.0, target.sum(1, keepdim=True))
        p = z.softmax(1)
        along = (mass * p - target) * v
        curvature = mass * p * (v - (p * v).sum(1, keepdim=True))
        each = grad.reshape(-1, 1) * scale
        return None, _as(grad, along * scale), (each * curvature).to(logits.dtype), *[None] * 11


class _BinaryCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(operators: Any, logits: Tensor, *args: Any) -> Tensor:
        return operators.binary_cross_entropy(logits, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.operators, logits, labels, partner, weight, *hints, class_weight, pos_weight, _, _, _ = inputs
        ctx.save_for_backward(logits, labels, partner, weight, class_weight, pos_weight)
        ctx.hints, ctx.options = hints, inputs[-3:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        logits, labels, partner, weight, class_weight, pos_weight = ctx.saved_tensors
        rest = (labels, partner, weight, *ctx.hints, class_weight, pos_weight, *ctx.options)
        if torch.is_grad_enabled() and (grad.requires_grad or logits.requires_grad):
            slope = _BinaryCrossEntropyGradient.apply(ctx.operators, grad, logits, *rest)
        else:
            slope = ctx.operators.binary_cross_entropy_backward(grad, logits, *rest)
        return (None, slope, *[None] * 10)


class _BinaryCrossEntropyGradient(torch.autograd.Function):
    @staticmethod
    def forward(operators: Any, *args: Any) -> Tensor:
        return operators.binary_cross_entropy_backward(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, grad, logits, labels, partner, weight, _, _, class_weight, pos_weight, *ctx.options = inputs
        ctx.save_for_backward(grad, logits, labels, partner, weight, class_weight, pos_weight)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Any, ...]:
        grad, logits, labels, partner, weight, class_weight, pos_weight = ctx.saved_tensors
        smoothing, threshold, reduction = ctx.options
        z, v = logits.to(grad.dtype), outer.to(grad.dtype)
        t = reference.binary_targets(z, labels, partner, weight, smoothing, threshold)
        positive = t if pos_weight is None else t * pos_weight
        v = v * reference.factor(logits, reduction)
        v = v if class_weight is None else v * class_weight
        up, down = z.sigmoid(), (-z).sigmoid()
        along = ((1 - t) * up - positive * down) * v
        curvature = (1 - t + positive) * up * down * v
        return None, _as(grad, along), (grad.reshape(-1, 1) * curvature).to(logits.dtype), *[None] * 10


def _as(grad: Tensor, along: Tensor) -> Tensor:
    """The sums over the classes, or the sum of all, as there is one gradient for a row or one for all."""
    return along.sum(1) if grad.ndim else along.sum()
