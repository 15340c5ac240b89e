"""Label losses: a program for each row of logits forwards, one for each part of a row backwards.

The meaning is fusedmix/backends/reference.py, `cross_entropy` and `binary_cross_entropy`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fusedmix.arguments import LossArguments, compute_dtype, factor
from fusedmix.backends.triton.labels_kernel import UNSIGNED, label, of_weight, row_weight
from fusedmix.backends.triton.launch import Kernel, of_partners, pairing_of
from fusedmix.backends.triton.numbers import bits, from_bits, from_compute, jit_kernel, partner_of, to_compute
from fusedmix.methods import Per, Reduction

_FORWARD, _BACKWARD = 4096, 2048  # elements of a row under way in a program, at most
_FINISH = 1024


# ---- what both losses share ------------------------------------------------------------------------------------------


@triton.jit
def places(start, V: tl.constexpr, N: tl.constexpr):
    """N classes from `start` on, in vectors of V."""
    return (start // V + tl.arange(0, N // V)[:, None]) * V + tl.arange(0, V)[None, :]


@triton.jit
def is_live(k, classes, V: tl.constexpr):
    """Which are classes: alike for all of a vector, so that it is one access."""
    return k // V * V + tl.zeros_like(k) < classes


@triton.jit
def row_of(i, row_stride, V: tl.constexpr):
    """Where a row begins, known to be a multiple of V."""
    return i * (row_stride // V) * V


@triton.jit
def weights_of(class_weight, k, live, like, WEIGHTED: tl.constexpr):
    """The weights of classes, 1 without any."""
    if WEIGHTED:
        c = tl.load(class_weight + k, mask=live, other=0)
    else:
        c = tl.full(like.shape, 1.0, like.dtype)
    return c


@triton.jit
def sum_of(x):
    return tl.sum(tl.sum(x, 1), 0)


@triton.jit
def largest(x):
    """The largest number; NaN are passed over."""
    return tl.max(tl.max(tl.where(x == x, x, -float("inf")), 1), 0)


@triton.jit
def term(factor, x):
    """factor·x, and 0 where the factor is, whatever infinity it stands before."""
    return tl.where(factor == 0.0, 0.0, factor * x)


@triton.jit
def log1p_unit(u):
    """log(1 + u) for u in [0, 1]: 2·artanh(s) with s = u/(2+u) <= 1/3. (The GPU's fast logarithm knows nothing of the
    last digits near 1.)"""
    s = u / (2.0 + u)
    q = s * s
    TERMS: tl.constexpr = 17 if u.dtype == tl.float64 else 8
    y = q * 0.0
    for n in tl.static_range(TERMS):
        y = y * q + 1.0 / (2 * (TERMS - 1 - n) + 1)
    return 2.0 * s * y


@jit_kernel()
def finish_kernel(out, scale, losses, labels, factor, ignore, batch, COUNT: tl.constexpr, N: tl.constexpr):
    """The sum of all losses times a factor; COUNT: over the number of labels that are not ignored."""
    total = tl.zeros((N,), tl.float64)
    counted = tl.zeros((N,), tl.int64)
    for start in range(0, batch, N):  # carries 1 + COUNT: total, counted
        i = start + tl.arange(0, N)
        live = i < batch
        total += tl.load(losses + i, mask=live, other=0).to(tl.float64)
        if COUNT:
            counted += tl.where(live & (tl.load(labels + i, mask=live, other=0) != ignore), 1, 0)
    f = from_bits(factor)
    if COUNT:
        # Divided by as a block: 0/0 is NaN, not an error of the interpreter's.
        f = tl.sum(tl.full((1,), 1.0, tl.float64) / tl.sum(counted, 0).to(tl.float64), 0)
    tl.store(out, (tl.sum(total, 0) * f).to(out.dtype.element_ty))
    tl.store(scale, f.to(out.dtype.element_ty))


# ---- cross entropy ---------------------------------------------------------------------------------------------------


@triton.jit
def share_of(y, share, classes, ignore):
    """The coefficient of a label: 0 where it is ignored, NaN where it is no class; and its class, or -1."""
    counts = (y != ignore) & (share != 0.0)
    valid = (y >= 0) & (y < classes)
    return tl.where(counts, tl.where(valid, share, float("nan")), 0.0), tl.where(counts & valid, y, -1)


@triton.jit
def mixed_classes(i, labels, partner, weight, given, smoothing, ignore, batch, classes, C: tl.constexpr,
                  PAIRING: tl.constexpr, WEIGHTS: tl.constexpr):  # fmt: skip
    """The two classes of a row, -1 for none, their coefficients, that of every class, and whether there is any."""
    j = partner_of(i, partner, batch, PAIRING)
    w = row_weight(i, weight, given, WEIGHTS)
    own_share, own = share_of(tl.load(labels + i), w.to(C), classes, ignore)
    lent_share, lent = share_of(tl.load(labels + j), (1.0 - w).to(C), classes, ignore)
    ignored = (own_share == 0.0) & (lent_share == 0.0)
    epsilon = from_bits(smoothing)
    keep, flat = (1.0 - epsilon).to(C), (epsilon / classes).to(C)
    return own, lent, keep * own_share, keep * lent_share, flat * (own_share + lent_share), ignored


@jit_kernel("logits")
def cross_entropy_kernel(
    losses, statistics, logits, labels, partner, weight, class_weight, row_stride, step, given, smoothing, ignore,
    batch, classes, PAIRING: tl.constexpr, WEIGHTS: tl.constexpr, WEIGHTED: tl.constexpr, SMOOTH: tl.constexpr,
    V: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    C: tl.constexpr = losses.dtype.element_ty
    i = tl.program_id(0).to(tl.int64)
    own, lent, own_share, lent_share, flat, ignored = mixed_classes(
        i, labels, partner, weight, given, smoothing, ignore, batch, classes, C, PAIRING, WEIGHTS
    )
    row = logits + row_of(i, row_stride, V)
    # Sums relative to the largest logit so far, or to 0 while that is -infinity.
    top = tl.full((), -float("inf"), C)
    exponentials, linear, total = tl.full((), 0.0, C), tl.full((), 0.0, C), tl.full((), 0.0, C)
    for start in range(0, classes, N):  # carries 2 + 2 * SMOOTH: top, exponentials, linear, total
        k = places(start, V, N)
        live = is_live(k, classes, V)
        z = to_compute(tl.load(row + (k if V > 1 else k * step), mask=live, other=-float("inf")))
        higher = tl.maximum(top, largest(z))
        base, before = tl.where(higher == -float("inf"), 0.0, higher), tl.where(top == -float("inf"), 0.0, top)
        exponentials *= tl.where(top == higher, 1.0, tl.exp(top - higher))
        exponentials += sum_of(tl.exp(z - base))
        if SMOOTH:
            c = tl.where(live, weights_of(class_weight, k, live, z, WEIGHTED), 0.0)
            linear += term(total, before - base) + sum_of(term(c, z - base))
            total += sum_of(c)
        top = higher
    base = tl.where(top == -float("inf"), 0.0, top)
    own_share *= weights_of(class_weight, own, own >= 0, base, WEIGHTED)
    lent_share *= weights_of(class_weight, lent, lent >= 0, base, WEIGHTED)
    z_own = to_compute(tl.load(row + own * step, mask=own >= 0, other=0))
    z_lent = to_compute(tl.load(row + lent * step, mask=lent >= 0, other=0))
    mass = own_share + lent_share + term(flat, total)
    picked = term(own_share, z_own - base) + term(lent_share, z_lent - base) + term(flat, linear)
    tl.store(losses + i, tl.where(ignored, 0.0, mass * tl.log(exponentials) - picked))
    tl.store(statistics + 2 * i, tl.where(ignored, 0.0, top))
    tl.store(statistics + 2 * i + 1, tl.where(ignored, 0.0, mass / exponentials))


@jit_kernel("out", "logits")
def cross_entropy_backward_kernel(
    out, logits, grad, scale, statistics, labels, partner, weight, class_weight, row_stride, step, grad_step, given,
    smoothing, ignore, batch, classes, parts, PAIRING: tl.constexpr, WEIGHTS: tl.constexpr, WEIGHTED: tl.constexpr,
    V: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    C: tl.constexpr = statistics.dtype.element_ty
    i, start = tl.program_id(0).to(tl.int64) // parts, tl.program_id(0) % parts * N
    own, lent, own_share, lent_share, flat, ignored = mixed_classes(
        i, labels, partner, weight, given, smoothing, ignore, batch, classes, C, PAIRING, WEIGHTS
    )
    g = tl.load(grad + i * grad_step) * tl.load(scale)
    top, rate = tl.load(statistics + 2 * i), tl.load(statistics + 2 * i + 1)
    k = places(start, V, N)
    live = is_live(k, classes, V)
    at = row_of(i, row_stride, V) + (k if V > 1 else k * step)
    z = to_compute(tl.load(logits + at, mask=live, other=0))
    t = flat + tl.where(k == own, own_share, 0.0) + tl.where(k == lent, lent_share, 0.0)
    t *= weights_of(class_weight, k, live, z, WEIGHTED)
    slope = tl.where(ignored, 0.0, g * (rate * tl.exp(z - top) - t))
    tl.store(out + row_of(i, classes, V) + k, from_compute(slope, out.dtype.element_ty), mask=live)


# ---- binary cross entropy --------------------------------------------------------------------------------------------


@triton.jit
def binary_targets(i, k, live, labels, partner, weight, label_stride, label_step, given, smoothing, threshold, batch,
                   classes, C: tl.constexpr, PAIRING: tl.constexpr, WEIGHTS: tl.constexpr, SOFT: tl.constexpr,
                   SMOOTH: tl.constexpr, THRESHOLD: tl.constexpr):  # fmt: skip
    """The mixed targets of a row's classes; NaN where its labels are no classes."""
    j = partner_of(i, partner, batch, PAIRING)
    w = row_weight(i, weight, given, WEIGHTS)
    epsilon = from_bits(smoothing)
    keep, add = (1.0 - epsilon).to(C), (epsilon / classes).to(C)
    if SOFT:
        y = label(labels, i, k, label_stride, label_step, keep, add, live, True, SMOOTH, C)
        other = label(labels, j, k, label_stride, label_step, keep, add, live, True, SMOOTH, C)
    else:
        a, b = tl.load(labels + i * label_stride), tl.load(labels + j * label_stride)
        y, other = (k == a).to(C), (k == b).to(C)
        if SMOOTH:
            y, other = y * keep + add, other * keep + add
    t = other * (1.0 - w).to(C) + y * w.to(C)
    if THRESHOLD:
        t = tl.where(t == t, tl.where(t > from_bits(threshold).to(C), 1.0, 0.0), t)
    if not SOFT:
        t = tl.where((a >= 0) & (a < classes) & (b >= 0) & (b < classes), t, float("nan"))
    return t


@jit_kernel("logits")
def binary_cross_entropy_kernel(
    losses, logits, labels, partner, weight, class_weight, pos_weight, row_stride, step, label_stride, label_step,
    given, smoothing, threshold, batch, classes, PAIRING: tl.constexpr, WEIGHTS: tl.constexpr, SOFT: tl.constexpr,
    SMOOTH: tl.constexpr, THRESHOLD: tl.constexpr, WEIGHTED: tl.constexpr, POSITIVE: tl.constexpr, V: tl.constexpr,
    N: tl.constexpr,
):  # fmt: skip
    C: tl.constexpr = losses.dtype.element_ty
    i = tl.program_id(0).to(tl.int64)
    row = logits + row_of(i, row_stride, V)
    loss = tl.full((), 0.0, C)
    for start in range(0, classes, N):  # carries 1: loss
        k = places(start, V, N)
        live = is_live(k, classes, V)
        z = to_compute(tl.load(row + (k if V > 1 else k * step), mask=live, other=0))
        t = binary_targets(
            i, k, live, labels, partner, weight, label_stride, label_step, given, smoothing, threshold, batch, classes,
            C, PAIRING, WEIGHTS, SOFT, SMOOTH, THRESHOLD,
        )  # fmt: skip
        c = weights_of(class_weight, k, live, z, WEIGHTED)
        p = weights_of(pos_weight, k, live, z, POSITIVE)
        slope = tl.where(z < 0.0, -(p * t), 1.0 - t)
        found = c * (term(slope, z) + (1.0 + (p - 1.0) * t) * log1p_unit(tl.exp(-tl.abs(z))))
        loss += sum_of(tl.where(live, found, 0.0))
    tl.store(losses + i, loss)


@jit_kernel("out", "logits")
def binary_cross_entropy_backward_kernel(
    out, logits, grad, labels, partner, weight, class_weight, pos_weight, row_stride, step, grad_step, label_stride,
    label_step, given, smoothing, threshold, factor, batch, classes, parts, PAIRING: tl.constexpr,
    WEIGHTS: tl.constexpr, SOFT: tl.constexpr, SMOOTH: tl.constexpr, THRESHOLD: tl.constexpr, WEIGHTED: tl.constexpr,
    POSITIVE: tl.constexpr, V: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    C: tl.constexpr = grad.dtype.element_ty
    i, start = tl.program_id(0).to(tl.int64) // parts, tl.program_id(0) % parts * N
    g = tl.load(grad + i * grad_step) * from_bits(factor).to(C)
    k = places(start, V, N)
    live = is_live(k, classes, V)
    at = row_of(i, row_stride, V) + (k if V > 1 else k * step)
    z = to_compute(tl.load(logits + at, mask=live, other=0))
    t = binary_targets(
        i, k, live, labels, partner, weight, label_stride, label_step, given, smoothing, threshold, batch, classes, C,
        PAIRING, WEIGHTS, SOFT, SMOOTH, THRESHOLD,
    )  # fmt: skip
    u = tl.exp(-tl.abs(z))
    large, small = 1.0 / (1.0 + u), u / (1.0 + u)
    up, down = tl.where(z < 0.0, small, large), tl.where(z < 0.0, large, small)
    p = weights_of(pos_weight, k, live, z, POSITIVE)
    slope = g * weights_of(class_weight, k, live, z, WEIGHTED) * ((1.0 - t) * up - p * t * down)
    tl.store(out + row_of(i, classes, V) + k, from_compute(slope, out.dtype.element_ty), mask=live)


_finish = Kernel(finish_kernel)
_cross_entropy = Kernel(cross_entropy_kernel)
_cross_entropy_backward = Kernel(cross_entropy_backward_kernel)
_binary = Kernel(binary_cross_entropy_kernel)
_binary_backward = Kernel(binary_cross_entropy_backward_kernel)


# ---- launches --------------------------------------------------------------------------------------------------------


def _given(of: LossArguments, label_smoothing: float) -> dict[str, Any]:
    """What every kernel of a loss is given."""
    logits = of.logits
    row_stride, step = logits.stride()
    batch, classes = logits.shape
    return {
        "logits": logits,
        **of_partners(of.partner, pairing_of(of.partner, of.pairing), logits),
        **of_weight(of.weight, of.per == Per.BATCH, logits),
        "class_weight": logits if of.class_weight is None else of.class_weight,
        "row_stride": row_stride,
        "step": step,
        "smoothing": bits(label_smoothing),
        "batch": batch,
        "classes": classes,
        "WEIGHTED": of.class_weight is not None,
    }


def _given_backward(of: LossArguments, grad: Tensor, out: Tensor) -> tuple[int, dict[str, Any]]:
    """The number of programs, and what kernels of gradients are given besides."""
    block = _block(of.logits, _BACKWARD)
    parts = -(-out.shape[1] // block)
    grad_step = grad.stride(0) if grad.ndim else 0
    width = _width(of.logits, out)
    return len(out) * parts, {"out": out, "grad": grad, "grad_step": grad_step, "parts": parts, "V": width, "N": block}


def _width(logits: Tensor, out: Tensor | None = None) -> int:
    """Elements of a 16-byte access, where all rows are multiples of it."""
    width = 16 // logits.element_size()
    strides = logits.stride(0), logits.shape[1]
    aligned = logits.data_ptr() % 16 == 0 and all(stride % width == 0 for stride in strides)
    return width if aligned and logits.stride(1) == 1 and (out is None or out.data_ptr() % 16 == 0) else 1


def _block(logits: Tensor, most: int) -> int:
    return min(most, max(64, triton.next_power_of_2(logits.shape[1])))


def _reduced(losses: Tensor, labels: Tensor, factor: float, ignore_index: int, count: bool) -> tuple[Tensor, Tensor]:
    """The sum of all losses times a factor, and the factor; with `count` one over the number of labels that count."""
    out, scale = losses.new_empty(()), losses.new_empty(())
    named = {"out": out, "scale": scale, "losses": losses, "labels": labels, "factor": bits(factor)}
    named |= {"ignore": ignore_index, "batch": len(losses), "COUNT": count, "N": _FINISH}
    _finish.launch(1, losses.device, named)
    return out, scale


def cross_entropy(
    of: LossArguments, label_smoothing: float, ignore_index: int, reduction: int
) -> tuple[Tensor, Tensor, Tensor]:
    logits, labels = of.logits, of.labels.contiguous()
    losses = logits.new_empty(len(logits), dtype=compute_dtype(logits))
    statistics = losses.new_empty((len(logits), 2))
    named = _given(of, label_smoothing) | {"losses": losses, "statistics": statistics, "labels": labels}
    named |= {"ignore": ignore_index, "SMOOTH": label_smoothing != 0}
    named |= {"V": _width(logits), "N": _block(logits, _FORWARD)}
    _cross_entropy.launch(len(logits), logits.device, named)
    if reduction == Reduction.NONE:
        return losses, statistics, losses.new_ones(())
    out, scale = _reduced(losses, labels, 1.0, ignore_index, reduction == Reduction.MEAN)
    return out, statistics, scale


def cross_entropy_backward(
    grad: Tensor, of: LossArguments, statistics: Tensor, scale: Tensor, label_smoothing: float, ignore_index: int
) -> Tensor:
    out = of.logits.new_empty(of.logits.shape)
    programs, named = _given_backward(of, grad, out)
    named |= _given(of, label_smoothing)
    named |= {"labels": of.labels.contiguous(), "statistics": statistics, "scale": scale, "ignore": ignore_index}
    _cross_entropy_backward.launch(programs, out.device, named)
    return out


def binary_cross_entropy(
    of: LossArguments, pos_weight: Tensor | None, label_smoothing: float, threshold: float | None, reduction: int
) -> Tensor:
    logits = of.logits
    losses = logits.new_empty(len(logits), dtype=compute_dtype(logits))
    named = _given_binary(of, pos_weight, label_smoothing, threshold)
    named |= {"losses": losses, "V": _width(logits), "N": _block(logits, _BACKWARD)}
    _binary.launch(len(logits), logits.device, named)
    return (
        losses if reduction == Reduction.NONE else _reduced(losses, losses, factor(of.logits, reduction), 0, False)[0]
    )


def binary_cross_entropy_backward(
    grad: Tensor,
    of: LossArguments,
    pos_weight: Tensor | None,
    label_smoothing: float,
    threshold: float | None,
    reduction: int,
) -> Tensor:
    out = of.logits.new_empty(of.logits.shape)
    programs, named = _given_backward(of, grad, out)
    named |= _given_binary(of, pos_weight, label_smoothing, threshold) | {"factor": bits(factor(of.logits, reduction))}
    _binary_backward.launch(programs, out.device, named)
    return out


def _given_binary(
    of: LossArguments, pos_weight: Tensor | None, label_smoothing: float, threshold: float | None
) -> dict[str, Any]:
    """What both kernels of the binary loss are given."""
    labels = of.labels
    soft = labels.ndim == 2
    if soft and labels.dtype in (torch.uint16, torch.uint32, torch.uint64):
        labels = labels.to(compute_dtype(of.logits))
    elif labels.dtype in UNSIGNED:
        labels = labels.view(UNSIGNED[labels.dtype])
    return {
        **_given(of, label_smoothing),
        "labels": labels,
        "pos_weight": of.logits if pos_weight is None else pos_weight,
        "label_stride": labels.stride(0),
        "label_step": labels.stride(1) if soft else 0,
        "threshold": bits(0.0 if threshold is None else threshold),
        "SOFT": soft,
        "SMOOTH": label_smoothing != 0,
        "THRESHOLD": threshold is not None,
        "POSITIVE": pos_weight is not None,
    }
