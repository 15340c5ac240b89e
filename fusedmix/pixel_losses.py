"""The losses of mixed label maps, without dense targets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fusedmix import checks, subclasses
from fusedmix.arguments import MaskArguments, PixelLossArguments, compute_dtype
from fusedmix.backends import pixel_losses as reference
from fusedmix.losses import REDUCTIONS, of_each_class
from fusedmix.masks.constant import numbers
from fusedmix.methods import Families, Pairing, Per
from fusedmix.mixing import in_range, of_classes, prepare
from fusedmix.plan import MixPlan, check_lender, same_batch
from fusedmix.segmentation import mix_masks
from fusedmix.tracking import transformed

_REFUSED = ("span", "blended", "moves", "other_size")
_NO_LABEL = -(1 << 63)  # the ignore_index where none is


def mix_pixel_cross_entropy(
    logits: Tensor,
    maps: Tensor,
    plan: MixPlan,
    *,
    other: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int | None = 255,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    """Cross entropy of every pixel with label maps mixed by the masks of a plan, no (B, K, *S) target being built.

    With M the mask, y and y' the labels of the sample and of its partner at a pixel, c the class weights and ℓ the loss
    of F.cross_entropy for one label, with c and the label smoothing in it, a pixel's loss is

        M·ℓ(z, y) + (1-M)·ℓ(z, y'),

    where a label that is ignored gives nothing, and "mean" is the sum over all pixels divided by that of
    M·c[y] + (1-M)·c[y'] over the labels that are not ignored. So where masks are 0 or 1 (CutMix, FMix) the loss is
    F.cross_entropy(z, mix_masks(maps, plan)), where they are one λ (MixUp) λ·F.cross_entropy(z, y) +
    (1-λ)·F.cross_entropy(z, y'), and where both labels agree F.cross_entropy(z, y). Class weights divide the mean here,
    as they do in PyTorch where labels are classes; those of `mix_cross_entropy` do not.

    The logits are read once forwards and once backwards, and their gradient is written once. What is kept between is a
    number for each pixel, the logsumexp of its logits. Differentiable in the logits any number of times.

    Args:
        logits: (B, K, *S) float32, float16, bfloat16 or float64, of 1 to 3 spatial dims, in any layout (channels_last
            too).
        maps: (B, *S) or (B, 1, *S) integers of any width, or bool: classes in [0, K) before they are mixed.
        plan: the plan that mixed the images, on any device. By one that pastes crops (ResizeMix, RICAP) the maps are
            pasted first; one that fills with a constant (Cutout) leaves them as they are.
        other: the maps of the batch that partners are from, (N, *S) or (N, 1, *S). None: they are of the batch itself.
        weight: (K,) weights of the classes, constants.
        ignore_index: the label of void pixels, in [0, K) or outside; None: there is none.
        label_smoothing: ε in [0, 1], as F.cross_entropy has it.
        reduction: "mean", "sum", or "none" for (B, *S).
        backend: as in `mix`.

    Returns:
        float32 (float64 for float64 logits): a scalar, or (B, *S).

    Raises:
        TypeError, ValueError: an argument is of the wrong type, dtype or shape; the plan blends several samples, moves
            blocks or has masks outside of [0, 1]; a label is neither in [0, K) nor ignore_index (on the CPU; on a GPU
            the loss of such a pixel is NaN, unless FUSEDMIX_CHECK_LABELS is 1).
        BackendError: the backend asked for cannot run here.
    """
    logits = _check_logits(logits)
    checks.choice("reduction", reduction, tuple(REDUCTIONS))
    label_smoothing = checks.number("label_smoothing", label_smoothing, 0.0, 1.0)
    ignored = _ignored(ignore_index)
    weight = of_each_class("weight", weight, logits)
    same_batch("logits", logits, plan, refuse=_REFUSED, other=other)
    maps, masks, operators = _mixed_by(logits, maps, plan, other, backend)

    def loss_of(labels: Tensor) -> Tensor:
        of = PixelLossArguments(logits, labels.reshape(maps.shape), weight, label_smoothing, ignored)
        return _cross_entropy(operators, of, int(REDUCTIONS[reduction]), masks)

    return of_classes(loss_of, maps.reshape(-1), logits.shape[1], ignore_index, name="maps")


def mix_pixel_dice(
    logits: Tensor,
    maps: Tensor,
    plan: MixPlan,
    *,
    other: Tensor | None = None,
    softmax: bool = True,
    include_background: bool = True,
    batch: bool = False,
    ignore_index: int | None = 255,
    smooth: float = 1e-5,
    reduction: str = "mean",
) -> Tensor:
    """Soft Dice loss of label maps mixed by the masks of a plan, no one-hot target being built.

    With p the probabilities and t the mixed target of class k, M·[y = k] + (1-M)·[y' = k] at each pixel (M the mask, y
    and y' the labels of the sample and of its partner), the loss of a class is

        1 - (2·Σ p·t + smooth) / (Σ p + Σ t + smooth),

    the sums being over the pixels of a sample. This is the Dice loss of Milletari 2016 (V-Net, section 3) with sums of
    numbers in the denominator in place of sums of squares, which is what MONAI's DiceLoss is without squared_pred. So
    where masks are 0 or 1 the loss is DiceLoss(softmax=True, to_onehot_y=True) of mix_masks(maps, plan). A label that
    is ignored takes its share of a pixel out of all sums, that of p too.

    Operations of PyTorch, on every device and differentiable any number of times.

    Args:
        logits: (B, K, *S) as in `mix_pixel_cross_entropy`; probabilities, if softmax is False.
        maps: as in `mix_pixel_cross_entropy`.
        plan: as in `mix_pixel_cross_entropy`.
        other: as in `mix_pixel_cross_entropy`.
        ignore_index: as in `mix_pixel_cross_entropy`.
        softmax: whether p is the softmax of the logits, or the logits themselves.
        include_background: whether class 0 has a loss, too.
        batch: whether sums are over the pixels of the whole batch.
        smooth: > 0, what keeps a class that is nowhere at a loss of 0.
        reduction: "mean" over samples and classes, "sum", or "none" for (B, K), with batch for (1, K); K is one less
            without the background.

    Returns:
        float32 (float64 for float64 logits).

    Raises:
        TypeError, ValueError: as `mix_pixel_cross_entropy`.
    """
    logits = _check_logits(logits)
    for name, flag in (("softmax", softmax), ("include_background", include_background), ("batch", batch)):
        checks.boolean(name, flag)
    checks.choice("reduction", reduction, tuple(REDUCTIONS))
    smooth = checks.number("smooth", smooth, 0.0, open_low=True)
    ignored = _ignored(ignore_index)
    maps, masks, _ = _mixed_by(logits, maps, plan, other, None)
    maps = in_range(maps.reshape(-1), logits.shape[1], ignore_index, "maps").reshape(maps.shape)
    labels = reference.labels_of(PixelLossArguments(logits, maps, None, 0.0, ignored), masks)
    numbers = logits.to(compute_dtype(logits)).flatten(2)
    p = numbers.softmax(1) if softmax else numbers
    overlap = target = p.new_zeros(p.shape[:2])
    for label in labels:
        at, share = label.at.flatten(1), label.share.flatten(1)
        overlap = overlap.scatter_add(1, at, share * p.gather(1, at.unsqueeze(1)).squeeze(1))
        target = target.scatter_add(1, at, share)
    counted = (labels[0].share + labels[1].share).flatten(1)
    sums = torch.stack((overlap, target + torch.bmm(p, counted.unsqueeze(2)).squeeze(2)))
    sums = sums.sum(1, keepdim=True) if batch else sums
    common, both = sums if include_background else sums[:, :, 1:]
    loss = 1 - (2 * common + smooth) / (both + smooth)
    return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()


def _ignored(ignore_index: Any) -> int:
    """The label that is none, as operators take it."""
    return _NO_LABEL if ignore_index is None else checks.integer("ignore_index", ignore_index, _NO_LABEL + 1)


def _mixed_by(
    logits: Tensor, maps: Any, plan: MixPlan, other: Any, backend: str | None
) -> tuple[Tensor, MaskArguments, Any]:
    """The maps of the batch, and below them those of `other`; what they are mixed by; and the operators."""
    operators, masks = prepare("logits", logits, plan, backend, refuse=())
    maps = _check_maps("maps", maps, logits, logits.shape[0])
    if plan.patches is not None or plan.fill is not None:
        if other is not None:
            raise ValueError("other must be None for a plan that fills with a constant or pastes crops.")
        maps = mix_masks(maps, plan)
        each = torch.arange(logits.shape[0], device=logits.device)
        whole = numbers(torch.ones(logits.shape[0], device=logits.device))
        masks = MaskArguments(each, whole, int(Families.CONSTANTS), 0, int(Pairing.RANDOM), int(Per.SAMPLE))
    if other is not None:
        other = _check_maps("other", other, logits, None)
        if other.dtype != maps.dtype:
            raise ValueError(f"other must be {checks.names([maps.dtype])}, as maps are, but got {other.dtype}.")
        check_lender(plan, other)
        masks = masks._replace(partner=masks.partner + logits.shape[0], pairing=int(Pairing.RANDOM))
        maps = torch.cat((maps, other))
    return maps, masks, operators


def _check_logits(logits: Any) -> Tensor:
    """The logits without a subclass."""
    checks.tensor("logits", logits)
    if not 3 <= logits.ndim <= 5 or logits.dtype not in checks.FLOATING_DTYPES or not logits.shape[1]:
        raise ValueError(
            "logits must be (batch_size, num_classes, *size) of 1 to 3 spatial dims with one of the dtypes "
            f"{checks.names(checks.FLOATING_DTYPES)}, but got {logits.dtype} of shape {tuple(logits.shape)}."
        )
    return subclasses.plain(logits)


def _check_maps(name: str, maps: Any, logits: Tensor, samples: int | None) -> Tensor:
    """Label maps (samples, *S) beside the logits, of any number of samples if that is None."""
    maps = subclasses.plain(checks.tensor(name, maps))
    size = logits.shape[2:]
    fits = maps.ndim > 0 and maps.shape[1:] in (size, (1, *size)) and samples in (None, maps.shape[0])
    if not fits or maps.dtype not in (*checks.INTEGER_DTYPES, torch.bool):
        of = ", ".join(map(str, ("samples" if samples is None else samples, *size)))
        raise ValueError(
            f"{name} must be integers or bool of shape ({of}), label maps beside logits of shape "
            f"{tuple(logits.shape)}, but got {checks.names([maps.dtype])} of shape {tuple(maps.shape)}."
        )
    return maps.reshape(maps.shape[0], *size).to(logits.device)


def _cross_entropy(operators: Any, of: PixelLossArguments, reduction: int, plan: MaskArguments) -> Tensor:
    """The operator's loss. Where it is asked for more than a gradient, operations of PyTorch give all derivatives."""
    if transformed():
        return reference.pixel_cross_entropy(of, reduction, plan)[0]
    if of.logits.requires_grad and torch.is_grad_enabled():
        return _PixelCrossEntropy.apply(operators, *of, reduction, *plan)[0]
    return operators.pixel_cross_entropy(*of, reduction, *plan)[0]


class _PixelCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(operators: Any, *row: Any) -> tuple[Tensor, Tensor, Tensor]:
        return operators.pixel_cross_entropy(*row)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.operators, logits, maps, class_weight, *ctx.options, _, partner, masks = inputs[:9]
        *ctx.hints, pixels = inputs[9:]  # families, ndim, pairing, per
        _, logsumexp, scale = output
        ctx.mark_non_differentiable(logsumexp, scale)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, maps, class_weight, partner, masks, pixels, logsumexp, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
        nones = (None,) * 12
        if grad is None:
            return None, None, *nones
        logits, maps, class_weight, partner, masks, pixels, logsumexp, scale = ctx.saved_tensors
        of = PixelLossArguments(logits, maps, class_weight, *ctx.options)
        plan = MaskArguments._make((partner, masks, *ctx.hints, pixels))
        if torch.is_grad_enabled() and (grad.requires_grad or logits.requires_grad):
            slope = reference.differentiable_slope(grad, of, None, scale, plan).to(logits.dtype)
        else:
            slope = ctx.operators.pixel_cross_entropy_backward(grad, *of, logsumexp, scale, *plan)
        return None, slope, *nones
