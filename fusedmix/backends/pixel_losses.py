"""The meaning of the cross entropy of mixed label maps, in tensor operations: no (B, K, *S) target is made.

At a pixel let z be the logits, y and y' the labels of the sample and of its partner, M the mask, c the class weights, C
their sum and ε the label smoothing. The loss of a label is that of PyTorch,

    ℓ(z, y) = (1-ε)·c_y·(L - z_y) + ε/K·Σ_k c_k·(L - z_k),    L = logsumexp(z),

and that of the pixel M·ℓ(z, y) + (1-M)·ℓ(z, y'), where a label that is ignored gives nothing. With T the weights of all
classes together, its gradient is T·softmax(z)_k - t_k:

    t_k = (1-ε)·c_k·(M·[k = y] + (1-M)·[k = y']) + ε/K·c_k·m,    T = (1-ε)·(M·c_y + (1-M)·c_y') + ε/K·C·m,

m being what M and 1-M of the labels that are not ignored sum to. "mean" divides the sum of all pixels by that of
M·c_y + (1-M)·c_y', as PyTorch divides by the class weights of the labels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fusedmix.arguments import MaskArguments, PixelLossArguments, compute_dtype
from fusedmix.backends import reference
from fusedmix.checks import class_range
from fusedmix.methods import Reduction


class Label(NamedTuple):
    """One of the two labels of each pixel, (B, *S)."""

    at: Tensor  # int64, in 0..K-1: 0 where the label is none of the classes
    share: Tensor  # M or 1-M in the compute dtype; 0 where it is ignored, NaN where it is none of the classes
    weight: Tensor  # the share times the class's weight


def pixel_cross_entropy(of: PixelLossArguments, reduction: int, plan: MaskArguments) -> tuple[Tensor, Tensor, Tensor]:
    """The losses (B, *S), reduced; their L; and the reciprocal of what "mean" divides by, 1 for the other reductions.

    A share of 0 takes nothing, not even an infinity. A label outside 0..K-1 that is not ignored is an error on the CPU,
    and makes its pixel NaN elsewhere.
    """
    class_range(of.maps, of.logits.shape[1], "maps", ignore_index=of.ignore_index)
    z = of.logits.to(compute_dtype(of.logits))
    labels = labels_of(of, plan)
    top = z.amax(1, keepdim=True)
    top = top.masked_fill(top == -torch.inf, 0.0)  # -inf less itself would be NaN, L is -inf
    logarithm = (z - top).exp().sum(1, keepdim=True).log()
    loss = torch.zeros_like(labels[0].share)
    for label in labels:
        own = (logarithm - (z.gather(1, label.at.unsqueeze(1)) - top)).squeeze(1)
        loss = loss + (1.0 - of.label_smoothing) * torch.where(label.weight == 0, 0.0, label.weight * own)
    if of.label_smoothing:
        flat = logarithm - (z - top)
        if of.class_weight is not None:
            c = _of_channels(of.class_weight, z)
            flat = torch.where(c == 0, 0.0, c * flat)
        share = labels[0].share + labels[1].share
        loss = loss + torch.where(share == 0, 0.0, of.label_smoothing / z.shape[1] * share * flat.sum(1))
    scale = z.new_ones(())
    if reduction == Reduction.MEAN:
        scale = (1 / (labels[0].weight.double() + labels[1].weight.double()).sum()).to(z.dtype)
    loss = loss if reduction == Reduction.NONE else loss.sum() * scale
    return loss, (top + logarithm).squeeze(1), scale


def pixel_cross_entropy_backward(
    grad: Tensor, of: PixelLossArguments, logsumexp: Tensor, scale: Tensor, plan: MaskArguments
) -> Tensor:
    """grad·scale·(T·softmax(z)_k - t_k) in the dtype and layout of the logits, for one grad or one for each pixel."""
    slope = differentiable_slope(grad, of, logsumexp, scale, plan)
    return torch.empty_like(of.logits).copy_(slope)


def differentiable_slope(
    grad: Tensor, of: PixelLossArguments, logsumexp: Tensor | None, scale: Tensor, plan: MaskArguments
) -> Tensor:
    """The same in the compute dtype, in operations that have derivatives: also by L, where none is given."""
    z = of.logits.to(compute_dtype(of.logits))
    logsumexp = z.logsumexp(1) if logsumexp is None else logsumexp
    labels = labels_of(of, plan)
    share = labels[0].share + labels[1].share
    smooth = of.label_smoothing / z.shape[1]
    c = None if of.class_weight is None else _of_channels(of.class_weight, z)
    total = z.shape[1] if of.class_weight is None else of.class_weight.sum()
    mass = (1.0 - of.label_smoothing) * (labels[0].weight + labels[1].weight) + smooth * total * share
    slope = mass.unsqueeze(1) * (z - logsumexp.unsqueeze(1)).exp()
    if smooth:
        slope = slope - smooth * (share.unsqueeze(1) if c is None else share.unsqueeze(1) * c)
    for label in labels:
        taken = ((1.0 - of.label_smoothing) * label.weight).unsqueeze(1)
        slope = slope.scatter_add(1, label.at.unsqueeze(1), -taken)
    counts = (labels[0].share != 0) | (labels[1].share != 0)
    return torch.where(counts.unsqueeze(1), slope * (grad * scale).unsqueeze(0 if grad.ndim == 0 else 1), 0.0)


def labels_of(of: PixelLossArguments, plan: MaskArguments) -> tuple[Label, Label]:
    """The labels of the sample and of its partner."""
    z, maps = of.logits, of.maps.long()
    compute = compute_dtype(z)
    each = torch.arange(z.shape[0], device=z.device)
    m = reference.masks_of(each, z[:, 0], plan).to(compute).expand(z[:, 0].shape)
    partner = plan.partner.to(z.device)
    there = (partner >= 0) & (partner < maps.shape[0])  # On the CPU they all are.
    made = []
    for y, share in ((maps[: z.shape[0]], m), (maps[torch.where(there, partner, each)], 1 - m)):
        valid = (y >= 0) & (y < z.shape[1])
        at = torch.where(valid, y, 0)
        share = torch.where(y == of.ignore_index, 0.0, torch.where(valid | (share == 0), share, torch.nan))
        made.append(Label(at, share, share if of.class_weight is None else share * of.class_weight[at]))
    return made[0], made[1]


def _of_channels(class_weight: Tensor, z: Tensor) -> Tensor:
    return class_weight.reshape(-1, *[1] * (z.ndim - 2))
