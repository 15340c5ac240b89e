"""Dense targets: w·y + (1-w)·y[partner], both products rounded and then their sum, as torchvision rounds them.

The meaning is fusedmix/backends/reference.py, `mix_labels`.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fusedmix.backends.triton.enums import Rows
from fusedmix.backends.triton.launch import Kernel, brought, of_partners
from fusedmix.backends.triton.numbers import bits, from_bits, from_compute, jit_kernel, partner_of, to_compute
from fusedmix.methods import Pairing

_BLOCK = 512


@triton.jit
def label(labels, i, k, row_stride, step, keep, add, live, SOFT: tl.constexpr, SMOOTH: tl.constexpr, T: tl.constexpr):
    """Entry k of the label of sample i, one-hot where it is a class, smoothed: y·(1-ε) + ε/K (Szegedy 2016)."""
    if SOFT:
        y = to_compute(tl.load(labels + i * row_stride + k * step, mask=live, other=0)).to(keep.dtype)
    else:
        y = (tl.load(labels + i * row_stride, mask=live, other=0).to(tl.int64) == k).to(keep.dtype)
    if SMOOTH:
        y = to_compute(from_compute(y * keep + add, T))
    return y


@triton.jit
def row_weight(i, weight, given, WEIGHTS: tl.constexpr):
    """The label weight of a row, from where WEIGHTS says (enums.py, `Rows`)."""
    if WEIGHTS == Rows.GIVEN:
        w = from_bits(given)
    elif WEIGHTS == Rows.FIRST:
        w = tl.load(weight)
    else:
        w = tl.load(weight + i)
    return w


@jit_kernel("out")
def labels_kernel(
    out, labels, partner, weight, row_stride, step, given, keep, add, batch, classes,
    PAIRING: tl.constexpr, WEIGHTS: tl.constexpr, SOFT: tl.constexpr, SMOOTH: tl.constexpr, V: tl.constexpr,
    N: tl.constexpr,
):  # fmt: skip
    """Targets (batch, classes)."""
    column = (tl.program_id(0).to(tl.int64) * N + tl.arange(0, N))[:, None]
    at = column * V + tl.arange(0, V)[None, :]
    live = column * V < batch.to(tl.int64) * classes
    i, k = at // classes, at % classes
    i = tl.minimum(i, batch - 1)
    j = partner_of(i, partner, batch, PAIRING)
    T: tl.constexpr = out.dtype.element_ty
    C: tl.constexpr = tl.float64 if T == tl.float64 else tl.float32
    w = row_weight(i, weight, given, WEIGHTS)
    own, lent = w.to(C), (1.0 - w).to(C)
    keep_, add_ = from_bits(keep).to(C), from_bits(add).to(C)
    y = label(labels, i, k, row_stride, step, keep_, add_, live, SOFT, SMOOTH, T)
    other = label(labels, j, k, row_stride, step, keep_, add_, live, SOFT, SMOOTH, T)
    left, right = from_compute(other * lent, T), from_compute(y * own, T)
    tl.store(out + at, from_compute(to_compute(left) + to_compute(right), T), mask=live)


@functools.lru_cache(maxsize=256)
def _smoothing(epsilon: float, num_classes: int) -> tuple[int, int]:
    """What labels are multiplied with, and what is added."""
    return bits(1.0 - epsilon), bits(epsilon / num_classes)


_labels = Kernel(labels_kernel)
UNSIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64, torch.bool: torch.uint8}


def of_weight(weight: Tensor, one_weight: bool, instead: Tensor) -> dict[str, Any]:
    """What `row_weight` takes: the label weights, brought to where `instead` is; or, of one for all samples that is not
    there, its bits, and `instead`, which is not read."""
    if one_weight and weight.device != instead.device and len(weight):
        return {"weight": instead, "given": bits(float(weight[0])), "WEIGHTS": Rows.GIVEN}
    return {"weight": brought(instead.device, weight), "given": 0, "WEIGHTS": Rows.FIRST if one_weight else Rows.OWN}


def mix(
    labels: Tensor,
    partner: Tensor,
    weight: Tensor,
    num_classes: int,
    label_smoothing: float,
    pairing: int = Pairing.RANDOM,
    one_weight: bool = False,
) -> Tensor:
    """(B, K) targets on the device of the labels.

    Args:
        pairing: by which the partners are found; RANDOM loads them, whatever they are.
        one_weight: whether all samples have the weight of the first.
    """
    soft = labels.ndim == 2
    batch = labels.shape[0]
    dtype = labels.dtype if soft and labels.is_floating_point() else torch.float32
    out = labels.new_empty((batch, num_classes), dtype=dtype)
    total = batch * num_classes
    if total == 0:
        return out
    if soft and labels.dtype in (torch.uint16, torch.uint32, torch.uint64):
        labels = labels.float()
    elif labels.dtype in UNSIGNED and labels.dtype != torch.bool:
        # A class has the same bits either way, or is out of range either way.
        labels = labels.view(UNSIGNED[labels.dtype]) if labels.element_size() == 8 else labels.long()
    elif labels.dtype == torch.bool:
        labels = labels.view(torch.uint8)
    keep, add = _smoothing(label_smoothing, num_classes)
    width = 4 if total % 4 == 0 else 1
    named = {
        "out": out,
        "labels": labels,
        **of_partners(partner, pairing, labels),
        **of_weight(weight, one_weight, labels),
        "row_stride": labels.stride(0),
        "step": labels.stride(1) if soft else 0,
        "keep": keep,
        "add": add,
        "batch": batch,
        "classes": num_classes,
        "SOFT": soft,
        "SMOOTH": label_smoothing != 0,
        "V": width,
        "N": _BLOCK,
    }
    _labels.launch(-(-total // (_BLOCK * width)), labels.device, named)
    return out
