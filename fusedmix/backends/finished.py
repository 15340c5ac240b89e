"""The meaning of a finished mix, in tensor operations: what a batch of images becomes with a `Finish`
(fusedmix/finishing.py), and how far that may be from the chain of transforms that it stands for.

Where neither sample is erased at a pixel, the two numbers are blended as they came, and what comes of it is normalised:

    v = w·(a - b) + b,    y = v·scale + shift,    scale = 1/(255·std), shift = -mean/std,

each rounded once to float32; for floating-point images the 255 is 1. A byte is exact in float32, and so is the
difference of two. Where one is erased, or both are, what is blended is normalised first, or is the fill. Then y is
rounded to the dtype of the new batch. With w = 1 both say the same, bit for bit, and that is a sample finished alone.

How far y in float32 may be from torchvision's ToDtype(float32, scale=True), Normalize(mean, std), MixUp or CutMix: let
u be 2^-24, t = k/255 a pixel in [0, 1], and m a mean in [0, 1]. In units of u/std, to the first order,

* the chain is off by 2t when it has made t of k (its 1/255 is rounded, and the product), m for its mean, |t-m| each for
  the difference, for its std and for the quotient: never above 5. MixUp adds 1 for the weight of the partner, 1 for the
  two products and 1 for their sum, since |t-m| is at most 1: 8 together;
* y is off by t each for v and for the scale, m for the shift and |t-m| for the sum: never above 3.

So they are never further apart than 12·2^-24/std = 3·2^-22/std, which leaves one unit for terms of the second order;
where pixels are normalised but not mixed, or cut and pasted, the 3 of MixUp are not there. It is a bound for the
difference, not for the ratio: near t = m the chain itself cancels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fusedmix import erasing
from fusedmix.arguments import MaskArguments, compute_dtype
from fusedmix.backends import reference
from fusedmix.backends.passes import blend
from fusedmix.finishing import Filling, FinishArguments


def draw_finish(
    chances: Tensor, holes: int, seed: Tensor, batch_size: int, height: int, width: int, device: torch.device
) -> Tensor:
    """(B, 4 + 4·holes) int32: the flips and holes of a batch, by chances that are of so many (fusedmix/erasing.py)."""
    return erasing.draw(erasing.Chances(*chances.tolist()), seed.to(device), batch_size, (height, width))


def finish(x: Tensor, how: FinishArguments) -> Tensor:
    """Each sample by itself, as a new batch (B, C, H, W): the same bits as a mix whose masks are 1."""
    return _finished(x, how, None)


def finish_mix(x: Tensor, how: FinishArguments, plan: MaskArguments) -> Tensor:
    """The mix of a batch (B, C, H, W), or (B, H, W, C) with how.nhwc, as a new batch (B, C, H, W). Masks depend on H
    and W, plan.ndim being 2, or are constant."""
    return _finished(x, how, plan)


def _finished(x: Tensor, how: FinishArguments, plan: MaskArguments | None) -> Tensor:
    planes = x.permute(0, 3, 1, 2) if how.nhwc else x
    layout = torch.channels_last if how.channels_last else torch.contiguous_format
    out = torch.empty(planes.shape, dtype=how.dtype, device=x.device, memory_format=layout)
    if how.draws is not None:
        how = how._replace(draws=how.draws.to(x.device))
    for i in reference._chunks(planes):
        a, a_hole = _sample(planes, how, i)
        if plan is None:
            y = _alone(a, a_hole, i, how)
        else:
            w = reference.masks_of(i, planes, plan)
            j = reference._near(plan.partner, x)[i]
            b, b_hole = _sample(planes, how, j)
            y = _normalised(blend(w, a, b), how.affine)
            if a_hole is not None and b_hole is not None:
                of_each = blend(w, _alone(a, a_hole, i, how), _alone(b, b_hole, j, how))
                y = torch.where(((a_hole > 0) | (b_hole > 0)).unsqueeze(1), of_each, y)
        out[i] = y.to(how.dtype)
    return out


def _sample(planes: Tensor, how: FinishArguments, i: Tensor) -> tuple[Tensor, Tensor | None]:
    """Samples i after their flips, in the dtype that they are finished in, and which hole each of their pixels is in,
    (n, H, W), if there may be any."""
    numbers = planes[i].to(compute_dtype(planes))
    if how.draws is None:
        return numbers, None
    draws = how.draws[i]
    flip = draws[:, erasing.Word.FLIP].reshape(-1, 1, 1, 1) != 0
    hole = erasing.inside(draws, (planes.shape[2], planes.shape[3])) if draws.shape[1] > erasing.HEAD else None
    return torch.where(flip, numbers.flip(-1), numbers), hole


def _normalised(v: Tensor, affine: Tensor) -> Tensor:
    """v·scale + shift in the dtype of v, rounded once: a product of float32 numbers is exact in float64."""
    scale, shift, _ = affine.double().reshape(3, -1, 1, 1)
    return (v.double() * scale + shift).to(v.dtype)


def _alone(numbers: Tensor, hole: Tensor | None, i: Tensor, how: FinishArguments) -> Tensor:
    """Samples i without mixing: normalised, and filled where they have holes."""
    y = _normalised(numbers, how.affine)
    if hole is None or how.draws is None:
        return y
    if how.fill == Filling.NUMBER:
        return torch.where((hole > 0).unsqueeze(1), how.affine[2].reshape(-1, 1, 1), y)
    sample, row, column = hole.nonzero().unbind(1)
    of_hole = hole[sample, row, column] - 1
    index = of_hole if how.fill == Filling.EACH_HOLE else row * hole.shape[2] + column
    y[sample, :, row, column] = erasing.normals(how.draws[i[sample]], index, y.shape[1]).to(y.dtype)
    return y
