"""The cross entropy of mixed label maps: kernels and their launches.

The meaning is fusedmix/backends/pixel_losses.py. A program has N pixels of a sample, whose classes it goes through
once, U at a time: blocks [U, N]. Where memory allows, an access is of V neighbouring pixels, 16 bytes.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fusedmix.arguments import MaskArguments, PixelLossArguments, compute_dtype
from fusedmix.backends.triton import masks
from fusedmix.backends.triton.launch import Kernel, pairing_of
from fusedmix.backends.triton.losses_kernel import is_live, term, weights_of
from fusedmix.backends.triton.masks import record
from fusedmix.backends.triton.mix_launch import NOTHING_GIVEN, families_of, of_plan
from fusedmix.backends.triton.numbers import bits, from_bits, from_compute, jit_kernel, partner_of, to_compute
from fusedmix.masks.family import padded
from fusedmix.methods import Pairing, Reduction

_THREADS = 128
_CLASSES = 4  # U
_SUM = 1024

# ---- a program's pixels ----------------------------------------------------------------------------------------------


@triton.jit
def pixels_of(tiles, N: tl.constexpr):
    """The sample of a program, and its pixels [N], which 31 bits hold."""
    program = tl.program_id(0)
    return (program // tiles).to(tl.int64), program % tiles * N + tl.arange(0, N)


@triton.jit
def in_sample(p, i, batch_step, step_z, step_y, step_x, height, width, PACKED: tl.constexpr, V: tl.constexpr):
    """Where pixels are among the logits of class 0, known to be in vectors of V. PACKED: all lie at the
    same step; where V is more than 1 that is 1."""
    if V > 1:
        offset = p.to(tl.int64)
    elif PACKED:
        offset = p.to(tl.int64) * step_x
    else:
        row = p // width
        above = (row // height).to(tl.int64) * step_z + (row % height).to(tl.int64) * step_y
        offset = above + (p % width).to(tl.int64) * step_x
    return i * (batch_step // V) * V + offset


@triton.jit
def of_classes(k, plane, V: tl.constexpr):
    """How far classes are from class 0, [U, 1]."""
    return (k.to(tl.int64)[:, None] * (plane // V)) * V


@triton.jit
def weight_of(i, p, total, plan, height, width, MASKS: tl.constexpr, FAMILIES: tl.constexpr, BINARY: tl.constexpr,
              N: tl.constexpr):  # fmt: skip
    """M at pixels of a sample, [N]."""
    records, given, stored = plan
    at = tl.minimum(p, total - 1)[None, :, None]
    place, spot = (at // width // height, at // width % height, at % width), at.to(tl.int32)
    mask = record.load(i, records, given, stored, MASKS, BINARY)
    w = masks.at(mask, (place, place, place, (spot, spot, spot, spot)), FAMILIES, 0, 1)
    return tl.reshape(tl.broadcast_to(w, at.shape), [N])


@triton.jit
def label_of(maps, i, p, total, share, classes, ignore, class_weight, BITS: tl.constexpr, WEIGHTED: tl.constexpr):
    """The labels of pixels of a sample: classes, 0 where there is none; their share, 0 where they are ignored and NaN
    where they are no class; and that times the weight of the class. Where the share is 0 nothing is read."""
    y = tl.load(maps + i * total + p, mask=share != 0.0, other=0).to(tl.int64)
    if BITS:  # of a type without a sign, read as one with a sign
        y = y & ((1 << BITS) - 1)
    valid = (y >= 0) & (y < classes)
    counted = tl.where(valid, share, float("nan"))
    share = tl.where((share == 0.0) | (y == ignore), 0.0, counted)
    y = tl.where(valid, y, 0)
    return y, share, share * weights_of(class_weight, y, share != 0.0, share, WEIGHTED)


@triton.jit
def labels_of(i, p, live, maps, partner, plan, class_weight, total, samples, classes, ignore, height, width,
              PAIRING: tl.constexpr, MASKS: tl.constexpr, FAMILIES: tl.constexpr, BINARY: tl.constexpr,
              BITS: tl.constexpr, WEIGHTED: tl.constexpr, C: tl.constexpr, N: tl.constexpr):  # fmt: skip
    """Those of the sample and of its partner."""
    m = weight_of(i, p, total, plan, height, width, MASKS, FAMILIES, BINARY, N).to(C)
    j = partner_of(i, partner, samples, PAIRING)
    own = label_of(maps, i, p, total, tl.where(live, m, 0.0), classes, ignore, class_weight, BITS, WEIGHTED)
    lent = label_of(maps, j, p, total, tl.where(live, 1.0 - m, 0.0), classes, ignore, class_weight, BITS, WEIGHTED)
    return own, lent


# ---- forwards --------------------------------------------------------------------------------------------------------


@triton.jit
def label_loss(label, z, base, logarithm, plane):
    """What a label's logit adds to the loss. `z`: where the logits of class 0 are."""
    y, _, weight = label
    logit = to_compute(tl.load(z + y * plane, mask=weight != 0.0, other=0))
    return term(weight, logarithm - (logit - base))


@jit_kernel("logits", "logsumexp", "losses")
def pixel_cross_entropy_kernel(
    losses, logsumexp, partial, logits, maps, partner, class_weight, records,
    word_0, word_1, word_2, word_3, word_4, word_5, word_6, word_7, word_8, word_9, word_10, word_11,
    batch_step, plane, step_z, step_y, step_x, height, width, total, tiles, batch, samples, classes, ignore, smoothing,
    pixels, across, rows, PAIRING: tl.constexpr, MASKS: tl.constexpr, FAMILIES: tl.constexpr, BINARY: tl.constexpr,
    BITS: tl.constexpr, WEIGHTED: tl.constexpr, SMOOTH: tl.constexpr, EACH: tl.constexpr, PACKED: tl.constexpr,
    V: tl.constexpr, U: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """EACH: whether the losses of pixels are written. `partial`: what the losses and the weights of labels sum to."""
    C: tl.constexpr = logsumexp.dtype.element_ty
    given = (word_0, word_1, word_2, word_3, word_4, word_5, word_6, word_7, word_8, word_9, word_10, word_11)
    i, p = pixels_of(tiles, N)
    live = is_live(p, total, V)
    first = logits + in_sample(p, i, batch_step, step_z, step_y, step_x, height, width, PACKED, V)
    # Sums relative to the largest logit so far, or to 0 while that is -infinity.
    top = tl.full((N,), -float("inf"), C)
    exponentials, linear, mass = tl.full((N,), 0.0, C), tl.full((N,), 0.0, C), tl.full((), 0.0, C)
    for start in range(0, classes, U):  # carries 2 + 2 * SMOOTH: top, exponentials, linear, mass
        k = start + tl.arange(0, U)
        there = (k < classes)[:, None]
        z = tl.load(first[None, :] + of_classes(k, plane, V), mask=there & live[None, :], other=-float("inf"))
        z = to_compute(z)
        higher = tl.maximum(top, tl.max(tl.where(z == z, z, -float("inf")), 0))
        base, before = tl.where(higher == -float("inf"), 0.0, higher), tl.where(top == -float("inf"), 0.0, top)
        exponentials = exponentials * tl.exp(top - base) + tl.sum(tl.exp(z - base[None, :]), 0)
        if SMOOTH:
            c = tl.where(there, weights_of(class_weight, k[:, None], there, tl.full((U, 1), 0.0, C), WEIGHTED), 0.0)
            linear += term(mass, before - base) + tl.sum(term(c, z - base[None, :]), 0)
            mass += tl.sum(tl.sum(c, 1), 0)
        top = higher
    base = tl.where(top == -float("inf"), 0.0, top)
    logarithm = tl.log(exponentials)
    plan = records, given, (pixels, across, rows, batch)
    own, lent = labels_of(
        i, p, live, maps, partner, plan, class_weight, total, samples, classes, ignore, height, width,
        PAIRING, MASKS, FAMILIES, BINARY, BITS, WEIGHTED, C, N,
    )  # fmt: skip
    epsilon = from_bits(smoothing)
    loss = label_loss(own, first, base, logarithm, plane) + label_loss(lent, first, base, logarithm, plane)
    loss *= (1.0 - epsilon).to(C)
    if SMOOTH:
        loss += term((epsilon / classes).to(C) * (own[1] + lent[1]), mass * logarithm - linear)
    at = i * (total // V) * V + p
    tl.store(logsumexp + at, base + logarithm, mask=live)
    if EACH:
        tl.store(losses + at, loss, mask=live)
    program = partial + 2 * tl.program_id(0)
    tl.store(program, tl.sum(loss.to(tl.float64), 0))
    tl.store(program + 1, tl.sum((own[2] + lent[2]).to(tl.float64), 0))


@jit_kernel()
def pixel_sum_kernel(out, scale, partial, programs, MEAN: tl.constexpr, N: tl.constexpr):
    """The sum of all losses times a scale, and that: one over the weights of all labels (MEAN), or 1."""
    losses, weights = tl.zeros((N,), tl.float64), tl.zeros((N,), tl.float64)
    for start in range(0, programs, N):  # carries 1 + MEAN: losses, weights
        n = start + tl.arange(0, N)
        losses += tl.load(partial + 2 * n, mask=n < programs, other=0)
        if MEAN:
            weights += tl.load(partial + 2 * n + 1, mask=n < programs, other=0)
    by = tl.full((1,), 1.0, tl.float64)
    if MEAN:  # Divided by as a block: 1/0 is infinite, not an error of the interpreter's.
        by = by / tl.sum(weights, 0)
    by = tl.sum(by, 0)
    tl.store(out, (tl.sum(losses, 0) * by).to(out.dtype.element_ty))
    tl.store(scale, by.to(out.dtype.element_ty))


# ---- backwards -------------------------------------------------------------------------------------------------------


@triton.jit
def all_weights(class_weight, classes, WEIGHTED: tl.constexpr, C: tl.constexpr):
    """The sum of the weights of all classes."""
    total = tl.full((), 0.0, C) + classes
    if WEIGHTED:
        total = tl.full((), 0.0, C)
        for start in range(0, classes, 128):  # carries 1: total
            k = start + tl.arange(0, 128)
            total += tl.sum(tl.load(class_weight + k, mask=k < classes, other=0), 0)
    return total


@jit_kernel("out", "logits", "logsumexp")
def pixel_gradient_kernel(
    out, grad, logsumexp, scale, logits, maps, partner, class_weight, records,
    word_0, word_1, word_2, word_3, word_4, word_5, word_6, word_7, word_8, word_9, word_10, word_11,
    batch_step, plane, step_z, step_y, step_x, out_batch, out_plane, out_z, out_y, out_x, height, width, total, tiles,
    batch, samples, classes, ignore, smoothing, pixels, across, rows, PAIRING: tl.constexpr, MASKS: tl.constexpr,
    FAMILIES: tl.constexpr, BINARY: tl.constexpr, BITS: tl.constexpr, WEIGHTED: tl.constexpr, SMOOTH: tl.constexpr,
    EACH: tl.constexpr, PACKED: tl.constexpr, V: tl.constexpr, U: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """EACH: whether pixels have gradients of their own."""
    C: tl.constexpr = logsumexp.dtype.element_ty
    given = (word_0, word_1, word_2, word_3, word_4, word_5, word_6, word_7, word_8, word_9, word_10, word_11)
    i, p = pixels_of(tiles, N)
    live = is_live(p, total, V)
    first = logits + in_sample(p, i, batch_step, step_z, step_y, step_x, height, width, PACKED, V)
    to = out + in_sample(p, i, out_batch, out_z, out_y, out_x, height, width, PACKED, V)
    plan = records, given, (pixels, across, rows, batch)
    own, lent = labels_of(
        i, p, live, maps, partner, plan, class_weight, total, samples, classes, ignore, height, width,
        PAIRING, MASKS, FAMILIES, BINARY, BITS, WEIGHTED, C, N,
    )  # fmt: skip
    at = i * (total // V) * V + p
    g = tl.load(scale) * (tl.load(grad + at, mask=live, other=0) if EACH else tl.load(grad))
    epsilon = from_bits(smoothing)
    a, b = g * (1.0 - epsilon).to(C) * own[2], g * (1.0 - epsilon).to(C) * lent[2]
    rate = a + b
    if SMOOTH:
        flat = g * (epsilon / classes).to(C) * (own[1] + lent[1])
        rate += flat * all_weights(class_weight, classes, WEIGHTED, C)
    counts = (own[1] != 0.0) | (lent[1] != 0.0)
    subtracted = tl.load(logsumexp + at, mask=live, other=0)
    for start in range(0, classes, U):  # carries 0: nothing
        k = start + tl.arange(0, U)
        there = (k < classes)[:, None] & live[None, :]
        z = to_compute(tl.load(first[None, :] + of_classes(k, plane, V), mask=there, other=0))
        slope = rate[None, :] * tl.exp(z - subtracted[None, :])
        slope -= tl.where(k[:, None] == own[0][None, :], a[None, :], 0.0)
        slope -= tl.where(k[:, None] == lent[0][None, :], b[None, :], 0.0)
        if SMOOTH:
            like = tl.full((U, 1), 0.0, C)
            slope -= weights_of(class_weight, k[:, None], (k < classes)[:, None], like, WEIGHTED) * flat[None, :]
        slope = from_compute(tl.where(counts[None, :], slope, 0.0), out.dtype.element_ty)
        tl.store(to[None, :] + of_classes(k, out_plane, V), slope, mask=there)


_forward, _backward = Kernel(pixel_cross_entropy_kernel), Kernel(pixel_gradient_kernel)
_sum = Kernel(pixel_sum_kernel)


# ---- launches --------------------------------------------------------------------------------------------------------

# As which type with a sign labels are read that have none, and how many bits of it are theirs.
_UNSIGNED = {torch.uint16: (torch.int16, 16), torch.uint32: (torch.int32, 32), torch.uint64: (torch.int64, 0)}
_MOST_PIXELS = (1 << 31) - (1 << 11)  # of a sample: their numbers, and those of the last program's


def _given(of: PixelLossArguments, plan: MaskArguments, *outs: Tensor) -> tuple[int, dict[str, Any]]:
    """Programs, and what kernels are given of the loss and of its plan; `outs` has the gradient, if it is wanted."""
    logits, maps = of.logits, of.maps.contiguous()
    samples, (batch, classes, *size) = maps.shape[0], logits.shape
    total = math.prod(size)
    if total > _MOST_PIXELS:
        raise ValueError(f"logits must have at most {_MOST_PIXELS} pixels on a GPU, but have {total}.")
    plan = plan._replace(pairing=Pairing.RANDOM if samples > batch else pairing_of(plan.partner, plan.pairing))
    read_as, unsigned = _UNSIGNED.get(maps.dtype, (torch.uint8 if maps.dtype == torch.bool else maps.dtype, 0))
    _, height, width = padded(tuple(size))
    packed = all(_step(x) is not None for x in (logits, *outs))
    vector = _width(logits, *outs) if packed else 1
    n = _THREADS * max(4, vector)
    tiles = -(-total // n)
    return batch * tiles, {
        **NOTHING_GIVEN, **of_plan(plan, families_of(plan), logits), **_steps(logits, "batch_step", "plane", packed),
        "logits": logits, "maps": maps.view(read_as),
        "class_weight": logits if of.class_weight is None else of.class_weight, "height": height, "width": width,
        "total": total, "tiles": tiles, "batch": batch, "samples": samples, "classes": classes,
        "ignore": of.ignore_index, "smoothing": bits(of.label_smoothing), "BITS": unsigned,
        "WEIGHTED": of.class_weight is not None, "SMOOTH": of.label_smoothing != 0, "PACKED": packed, "V": vector,
        "U": _CLASSES, "N": n,
    }  # fmt: skip


def _step(x: Tensor) -> int | None:
    """At which step all pixels of (B, K, *S) lie, if they do."""
    dims = [(side, step) for side, step in zip(x.shape[2:], x.stride()[2:], strict=True) if side != 1]
    if any(above != side * step for (_, above), (side, step) in itertools.pairwise(dims)):
        return None
    return dims[-1][1] if dims else 1


def _width(*tensors: Tensor) -> int:
    """Pixels of a 16-byte access, where those of all planes are multiples of it."""
    width = 16 // tensors[0].element_size()
    strides = (x.stride(d) for x in tensors for d in (0, 1) if x.shape[d] > 1)
    whole = all(of % width == 0 for of in (tensors[0][0, 0].numel(), *strides)) if tensors[0].numel() else False
    return width if whole and all(_step(x) == 1 and x.data_ptr() % 16 == 0 for x in tensors) else 1


def _steps(x: Tensor, of_batch: str, of_plane: str, packed: bool, prefix: str = "step") -> dict[str, int]:
    """The strides of (B, K, *S) as arguments."""
    step_z, step_y, step_x = (0,) * (5 - x.ndim) + x.stride()[2:]
    one = _step(x) if packed else None
    named = {of_batch: x.stride(0), of_plane: x.stride(1)}
    return named | {f"{prefix}_z": step_z, f"{prefix}_y": step_y, f"{prefix}_x": step_x if one is None else one}


def pixel_cross_entropy(of: PixelLossArguments, reduction: int, plan: MaskArguments) -> tuple[Tensor, Tensor, Tensor]:
    logits = of.logits
    each = reduction == Reduction.NONE
    logsumexp = logits.new_empty(logits[:, 0].shape, dtype=compute_dtype(logits))
    losses = torch.empty_like(logsumexp) if each else logsumexp
    programs, named = _given(of, plan)
    partial = logits.new_empty((programs, 2), dtype=torch.float64)
    named |= {"losses": losses, "logsumexp": logsumexp, "partial": partial, "EACH": each}
    _forward.launch(programs, logits.device, named)
    out, scale = losses.new_empty(()), losses.new_empty(())
    mean = reduction == Reduction.MEAN
    _sum.launch(1, logits.device, {
        "out": out, "scale": scale, "partial": partial, "programs": programs, "MEAN": mean, "N": _SUM,
    })  # fmt: skip
    return losses if each else out, logsumexp, scale


def pixel_cross_entropy_backward(
    grad: Tensor, of: PixelLossArguments, logsumexp: Tensor, scale: Tensor, plan: MaskArguments
) -> Tensor:
    out = torch.empty_like(of.logits)
    programs, named = _given(of, plan, out)
    named |= _steps(out, "out_batch", "out_plane", named["PACKED"], "out")
    named |= {"out": out, "grad": grad.contiguous(), "EACH": grad.ndim > 0, "scale": scale}
    named |= {"logsumexp": logsumexp.contiguous()}
    _backward.launch(programs, out.device, named)
    return out
