"""The gradients of the label losses: an operator forwards, an operator backwards.

Entered only if a derivative is needed. Both gradients are functions of their own, so that a second derivative is right:
it is a formula in PyTorch, which builds the dense targets that the first two passes do without. So are the tangents,
of a loss its gradient times that of the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fusedmix.arguments import LossArguments, compute_dtype, factor
from fusedmix.backends import reference
from fusedmix.ops import forwards
from fusedmix.tracking import transformed

_SHARED = len(LossArguments._fields)


def cross_entropy(operators: Any, of: LossArguments, *options: Any) -> Tensor:
    """The operator's loss. The options are label_smoothing, ignore_index, reduction."""
    if transformed():
        return _CrossEntropyForwards.apply(operators, *of, *options)[0]
    if of.logits.requires_grad and torch.is_grad_enabled():
        return _CrossEntropy.apply(operators, *of, *options)[0]
    return operators.cross_entropy(*of, *options)[0]


def binary_cross_entropy(operators: Any, of: LossArguments, *options: Any) -> Tensor:
    """The operator's loss. The options are pos_weight, label_smoothing, threshold, reduction."""
    if transformed():
        return _BinaryCrossEntropyForwards.apply(operators, *of, *options)
    if of.logits.requires_grad and torch.is_grad_enabled():
        return _BinaryCrossEntropy.apply(operators, *of, *options)
    return operators.binary_cross_entropy(*of, *options)


def _save(ctx: Any, inputs: tuple[Any, ...], before: int, *others: Tensor | None) -> None:
    """Keeps the arguments that losses share, which stand after `before` other inputs, and these tensors."""
    logits, labels, partner, weight, ctx.pairing, ctx.per, class_weight = inputs[before : before + _SHARED]
    ctx.nones = (None,) * len(inputs)  # the gradients of all inputs that have none
    ctx.save_for_backward(logits, labels, partner, weight, class_weight, *others)


def _row(ctx: Any, tensors: Sequence[Any]) -> tuple[Any, ...]:
    """What `_save` kept, as operators take it: the arguments that losses share, and the other tensors."""
    logits, labels, partner, weight, *others = tensors
    return logits, labels, partner, weight, ctx.pairing, ctx.per, *others


def _saved(ctx: Any, tensors: Sequence[Any]) -> tuple[LossArguments, tuple[Any, ...]]:
    """The same, with a record of what losses share."""
    row = _row(ctx, tensors)
    return LossArguments(*row[:_SHARED]), row[_SHARED:]


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(operators: Any, logits: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        return operators.cross_entropy(logits, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.operators = inputs[0]
        loss, statistics, scale = output
        ctx.mark_non_differentiable(statistics, scale)
        ctx.set_materialize_grads(False)
        *ctx.options, _ = inputs[1 + _SHARED :]
        ctx.of_rows = loss.ndim == 1
        _save(ctx, inputs, 1, statistics, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
        if grad is None:
            return ctx.nones
        row = _row(ctx, ctx.saved_tensors)
        args = (grad, *row, *ctx.options)
        if transformed():
            slope = _CrossEntropyGradientForwards.apply(ctx.operators, *args)
        elif torch.is_grad_enabled() and (grad.requires_grad or row[0].requires_grad):
            slope = _CrossEntropyGradient.apply(ctx.operators, *args)
        else:
            slope = ctx.operators.cross_entropy_backward(*args)
        return None, slope, *ctx.nones[2:]


class _CrossEntropyGradient(torch.autograd.Function):
    @staticmethod
    def forward(operators: Any, *args: Any) -> Tensor:
        return operators.cross_entropy_backward(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, scale, *ctx.options = inputs[2 + _SHARED :]
        _save(ctx, inputs, 2, scale, inputs[1])

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Any, ...]:
        return _slope_gradients(_of_cross_entropy, ctx, outer)


def _of_cross_entropy(
    of: LossArguments, v: Tensor, scale: Tensor, label_smoothing: float, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """(B, K) gradients of the rows' losses, and how these change along v, both of what a row adds to the loss. The
    logits are in the compute dtype."""
    z = of.logits
    target, ignored = reference.mixed_classes(of, label_smoothing, ignore_index)
    mass = torch.where(ignored.unsqueeze(1), 0.0, target.sum(1, keepdim=True))
    p = z.softmax(1)
    return (mass * p - target) * scale, mass * p * (v - (p * v).sum(1, keepdim=True)) * scale


class _BinaryCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(operators: Any, logits: Tensor, *args: Any) -> Tensor:
        return operators.binary_cross_entropy(logits, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.operators = inputs[0]
        pos_weight, *ctx.options = inputs[1 + _SHARED :]
        ctx.of_rows = output.ndim == 1
        _save(ctx, inputs, 1, pos_weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        row = _row(ctx, ctx.saved_tensors)
        args = (grad, *row, *ctx.options)
        if transformed():
            slope = _BinaryCrossEntropyGradientForwards.apply(ctx.operators, *args)
        elif torch.is_grad_enabled() and (grad.requires_grad or row[0].requires_grad):
            slope = _BinaryCrossEntropyGradient.apply(ctx.operators, *args)
        else:
            slope = ctx.operators.binary_cross_entropy_backward(*args)
        return None, slope, *ctx.nones[2:]


class _BinaryCrossEntropyGradient(torch.autograd.Function):
    @staticmethod
    def forward(operators: Any, *args: Any) -> Tensor:
        return operators.binary_cross_entropy_backward(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pos_weight, *ctx.options = inputs[2 + _SHARED :]
        _save(ctx, inputs, 2, pos_weight, inputs[1])

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Any, ...]:
        return _slope_gradients(_of_binary_cross_entropy, ctx, outer)


def _of_binary_cross_entropy(
    of: LossArguments,
    v: Tensor,
    pos_weight: Tensor | None,
    label_smoothing: float,
    threshold: float | None,
    reduction: int,
) -> tuple[Tensor, Tensor]:
    """As `_of_cross_entropy`."""
    z, t = of.logits, reference.binary_targets(of, label_smoothing, threshold)
    positive = t if pos_weight is None else t * pos_weight
    share = factor(of.logits, reduction) * (1 if of.class_weight is None else of.class_weight)
    up, down, negative = z.sigmoid(), (-z).sigmoid(), reference.mass(of) - t
    return (negative * up - positive * down) * share, (negative + positive) * up * down * v * share


def _summed(products: Tensor, of_rows: bool) -> Tensor:
    """Over the classes, or over all, as there is one loss for a row or one for all."""
    return products.sum(1) if of_rows else products.sum()


def _slope_gradients(formula: Callable[..., Any], ctx: Any, outer: Tensor) -> tuple[Any, ...]:
    """The gradients of what gives the gradient of a loss."""
    of, (weights, grad) = _saved(ctx, ctx.saved_tensors)
    v = outer.to(grad.dtype)
    slope, bent = formula(of.wide(), v, weights, *ctx.options)
    of_grad = _summed(slope * v, grad.ndim == 1)
    return None, of_grad, (grad.reshape(-1, 1) * bent).to(of.logits.dtype), *ctx.nones[3:]


def _tangent(formula: Callable[..., Any], ctx: Any, saved: list[Any], _: None, tangent: Tensor, *__: Any) -> Tensor:
    of, others = _saved(ctx, saved)
    v = tangent.to(compute_dtype(of.logits))
    slope, _ = formula(of.wide(), v, others[-1], *ctx.options)
    return _summed(slope * v, ctx.of_rows)


def _loss_tangents(*args: Any) -> tuple[Tensor, None, None]:
    return _tangent(_of_cross_entropy, *args), None, None


def _slope_tangent(
    formula: Callable[..., Any], ctx: Any, saved: list[Any], _: None, of_grad: Tensor, of_logits: Tensor, *__: Any
) -> Tensor:
    of, (weights, grad) = _saved(ctx, saved)
    slope, bent = formula(of.wide(), of_logits.to(grad.dtype), weights, *ctx.options)
    return (of_grad.reshape(-1, 1) * slope + grad.reshape(-1, 1) * bent).to(of.logits.dtype)


_CrossEntropyForwards = forwards(_CrossEntropy, _loss_tangents)
_CrossEntropyGradientForwards = forwards(_CrossEntropyGradient, partial(_slope_tangent, _of_cross_entropy))
_BinaryCrossEntropyForwards = forwards(_BinaryCrossEntropy, partial(_tangent, _of_binary_cross_entropy))
_BinaryCrossEntropyGradientForwards = forwards(
    _BinaryCrossEntropyGradient, partial(_slope_tangent, _of_binary_cross_entropy)
)
