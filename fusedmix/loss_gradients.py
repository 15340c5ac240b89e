"""The gradients of the label losses: an operator forwards, an operator backwards.

Entered only if a derivative is needed. Both gradients are functions of their own, so that a second derivative is right:
it is a formula in PyTorch, which builds the dense targets that the first two passes do without. So are the tangents,
of a loss its gradient times that of the logits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fusedmix.backends import reference
from fusedmix.ops import forwards, transformed


def cross_entropy(operators: Any, logits: Tensor, mixed: tuple[Any, ...], options: tuple[Any, ...]) -> Tensor:
    """The operator's loss.

    Args:
        mixed: labels, partner, weight, pairing, per, class_weight.
        options: label_smoothing, ignore_index, reduction.
    """
    if transformed():
        return _CrossEntropyForwards.apply(operators, logits, *mixed, *options)[0]
    if logits.requires_grad and torch.is_grad_enabled():
        return _CrossEntropy.apply(operators, logits, *mixed, *options)[0]
    return operators.cross_entropy(logits, *mixed, *options)[0]


def binary_cross_entropy(operators: Any, logits: Tensor, mixed: tuple[Any, ...], options: tuple[Any, ...]) -> Tensor:
    """The operator's loss.

    Args:
        mixed: labels, partner, weight, pairing, per, class_weight, pos_weight.
        options: label_smoothing, threshold, reduction.
    """
    if transformed():
        return _BinaryCrossEntropyForwards.apply(operators, logits, *mixed, *options)
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
        loss, statistics, scale = output
        ctx.mark_non_differentiable(statistics, scale)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, labels, partner, weight, class_weight, scale, statistics)
        ctx.hints, ctx.options, ctx.of_rows = hints, (smoothing, ignore_index), loss.ndim == 1

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
        if grad is None:
            return (None,) * 11
        logits, labels, partner, weight, class_weight, scale, statistics = ctx.saved_tensors
        args = (grad, logits, labels, partner, weight, *ctx.hints, class_weight, statistics, scale, *ctx.options)
        if transformed():
            slope = _CrossEntropyGradientForwards.apply(ctx.operators, *args)
        elif torch.is_grad_enabled() and (grad.requires_grad or logits.requires_grad):
            slope = _CrossEntropyGradient.apply(ctx.operators, *args)
        else:
            slope = ctx.operators.cross_entropy_backward(*args)
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
        grad, logits, *mixed = ctx.saved_tensors
        v = outer.to(grad.dtype)
        slope, bent = _of_cross_entropy(logits.to(grad.dtype), v, *mixed, *ctx.options)
        return None, _summed(slope * v, grad.ndim == 1), (grad.reshape(-1, 1) * bent).to(logits.dtype), *[None] * 11


def _of_cross_entropy(
    z: Tensor,
    v: Tensor,
    labels: Tensor,
    partner: Tensor,
    weight: Tensor,
    class_weight: Tensor | None,
    scale: Tensor,
    label_smoothing: float,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    """(B, K) gradients of the rows' losses, and how these change along v, both of what a row adds to the loss."""
    target, ignored = reference.mixed_classes(z, labels, partner, weight, class_weight, label_smoothing, ignore_index)
    mass = torch.where(ignored.unsqueeze(1), 0.0, target.sum(1, keepdim=True))
    p = z.softmax(1)
    return (mass * p - target) * scale, mass * p * (v - (p * v).sum(1, keepdim=True)) * scale


class _BinaryCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(operators: Any, logits: Tensor, *args: Any) -> Tensor:
        return operators.binary_cross_entropy(logits, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.operators, logits, labels, partner, weight, *hints, class_weight, pos_weight, _, _, _ = inputs
        ctx.save_for_backward(logits, labels, partner, weight, class_weight, pos_weight)
        ctx.hints, ctx.options, ctx.of_rows = hints, inputs[-3:], output.ndim == 1

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        logits, labels, partner, weight, class_weight, pos_weight = ctx.saved_tensors
        args = (grad, logits, labels, partner, weight, *ctx.hints, class_weight, pos_weight, *ctx.options)
        if transformed():
            slope = _BinaryCrossEntropyGradientForwards.apply(ctx.operators, *args)
        elif torch.is_grad_enabled() and (grad.requires_grad or logits.requires_grad):
            slope = _BinaryCrossEntropyGradient.apply(ctx.operators, *args)
        else:
            slope = ctx.operators.binary_cross_entropy_backward(*args)
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
        grad, logits, *mixed = ctx.saved_tensors
        v = outer.to(grad.dtype)
        slope, bent = _of_binary_cross_entropy(logits.to(grad.dtype), v, *mixed, *ctx.options)
        return None, _summed(slope * v, grad.ndim == 1), (grad.reshape(-1, 1) * bent).to(logits.dtype), *[None] * 10


def _of_binary_cross_entropy(
    z: Tensor,
    v: Tensor,
    labels: Tensor,
    partner: Tensor,
    weight: Tensor,
    class_weight: Tensor | None,
    pos_weight: Tensor | None,
    label_smoothing: float,
    threshold: float | None,
    reduction: int,
) -> tuple[Tensor, Tensor]:
    """As `_of_cross_entropy`."""
    t = reference.binary_targets(z, labels, partner, weight, label_smoothing, threshold)
    positive = t if pos_weight is None else t * pos_weight
    share = reference.factor(z, reduction) * (1 if class_weight is None else class_weight)
    up, down = z.sigmoid(), (-z).sigmoid()
    return ((1 - t) * up - positive * down) * share, (1 - t + positive) * up * down * v * share


def _summed(products: Tensor, of_rows: bool) -> Tensor:
    """Over the classes, or over all, as there is one loss for a row or one for all."""
    return products.sum(1) if of_rows else products.sum()


def _tangent(formula: Callable[..., Any], ctx: Any, saved: list[Any], _: None, tangent: Tensor, *__: Any) -> Tensor:
    logits, *mixed = saved[:6]
    z = logits if logits.dtype == torch.float64 else logits.float()
    v = tangent.to(z.dtype)
    slope, _ = formula(z, v, *mixed, *ctx.options)
    return _summed(slope * v, ctx.of_rows)


def _loss_tangents(*args: Any) -> tuple[Tensor, None, None]:
    return _tangent(_of_cross_entropy, *args), None, None


def _slope_tangent(
    formula: Callable[..., Any], ctx: Any, saved: list[Any], _: None, of_grad: Tensor, of_logits: Tensor, *__: Any
) -> Tensor:
    grad, logits, *mixed = saved
    slope, bent = formula(logits.to(grad.dtype), of_logits.to(grad.dtype), *mixed, *ctx.options)
    return (of_grad.reshape(-1, 1) * slope + grad.reshape(-1, 1) * bent).to(logits.dtype)


_CrossEntropyForwards = forwards(_CrossEntropy, _loss_tangents)
_CrossEntropyGradientForwards = forwards(_CrossEntropyGradient, partial(_slope_tangent, _of_cross_entropy))
_BinaryCrossEntropyForwards = forwards(_BinaryCrossEntropy, partial(_tangent, _of_binary_cross_entropy))
_BinaryCrossEntropyGradientForwards = forwards(
    _BinaryCrossEntropyGradient, partial(_slope_tangent, _of_binary_cross_entropy)
)
