"""The operators in Triton: for GPUs without a CUDA compiler, and a second implementation to compare the first with.

Every function here is the operator of the same name in fusedmix/backends/reference.py, which has the meaning. The
kernels are in mix_kernel.py, mix_with_kernel.py, paste_kernel.py, blend_kernel.py, finish_kernel.py,
labels_kernel.py, losses_kernel.py, pixel_losses_kernel.py, sample_kernel.py and fourier_kernel.py; where there is a
paste_launch.py beside them, it has their launches, and mix_launch.py has those of the first two.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedmix import backends, draws
from fusedmix.arguments import LossArguments, MaskArguments, Patches, PixelLossArguments, PlanTensors
from fusedmix.backends import finished
from fusedmix.checks import class_range, usual_batch
from fusedmix.draws import CPU, Request, Source
from fusedmix.methods import Per


def mask(*arguments: Any) -> Tensor:
    """(n, *size) float32 masks, from their records and from what is stored of them."""
    from fusedmix.backends.triton.mix_launch import write_masks

    return write_masks(*arguments)


def fourier(*arguments: Any) -> Tensor:
    """The pixels of the Fourier masks of a plan."""
    from fusedmix.backends.triton.fourier_launch import masks

    return masks(*arguments)


def mix(x: Tensor, plan: MaskArguments) -> Tensor:
    """M ⊙ x + (1-M) ⊙ x[partner] in the layout of x."""
    from fusedmix.backends.triton.mix_launch import apply, followed

    out = torch.empty_like(x)
    apply(x, out, followed(plan))
    return out


def mix_(x: Tensor, plan: MaskArguments) -> None:
    """The same, in place."""
    from fusedmix.backends.triton.mix_launch import apply, followed

    apply(x, x, followed(plan))


def mix_adjoint(grad: Tensor, plan: MaskArguments) -> Tensor:
    """The gradient of mix: M_i·g_i + (1-M_j)·g_j with partner(j) = i."""
    from fusedmix.backends.triton.mix_launch import apply, followed

    out = torch.empty_like(grad)
    apply(grad, out, followed(plan), adjoint=True)
    return out


def mix_with(x: Tensor, other: Tensor, plan: MaskArguments) -> Tensor:
    """M ⊙ x + (1-M) ⊙ other[partner] in the layout of x."""
    from fusedmix.backends.triton.mix_launch import apply_with

    out = torch.empty_like(x)
    apply_with(x, other, out, plan)
    return out


def mix_with_(x: Tensor, other: Tensor, plan: MaskArguments) -> None:
    """The same, in place."""
    from fusedmix.backends.triton.mix_launch import apply_with

    apply_with(x, other, x, plan)


def paste(x: Tensor, patches: Patches, resize: int) -> Tensor:
    """x with crops of its partners in boxes, in the layout of x."""
    from fusedmix.backends.triton import paste_launch

    return paste_launch.paste(x, patches, resize)


def blend(x: Tensor, partner: Tensor, weight: Tensor) -> Tensor:
    """Sums of several samples, in the layout of x."""
    from fusedmix.backends.triton import blend_kernel

    return blend_kernel.blend(x, partner, weight)


def mix_labels(labels: Tensor, partner: Tensor, weight: Tensor, num_classes: int, label_smoothing: float) -> Tensor:
    """(B, K) soft labels."""
    from fusedmix.backends.triton import labels_kernel as targets

    if labels.ndim == 1:
        class_range(labels, num_classes)
    return targets.mix(labels, partner, weight, num_classes, label_smoothing)


def sample(request: Request, source: Source, device: torch.device) -> PlanTensors:
    """Everything random about a batch."""
    source = draws.resolved(request, source)
    if source.seed is None:
        return _from_the_host(request, source)
    return _kernels().sample.sample(request, source.seed, _indexed(device))


def draw_finish(
    chances: Tensor, holes: int, seed: Tensor, batch_size: int, height: int, width: int, device: torch.device
) -> Tensor:
    """The flips and holes of a batch."""
    from fusedmix.backends.triton import finish_launch

    return finish_launch.draw(chances, holes, seed, batch_size, height, width, _indexed(device))


def finish(x: Tensor, *arguments: Any) -> Tensor:
    """Each sample by itself, as a new batch; those of float64 as the reference makes them."""
    if x.dtype == torch.float64:
        return finished.finish(x, *arguments)
    from fusedmix.backends.triton import finish_launch

    return finish_launch.finish(x, *arguments)


def finish_mix(x: Tensor, *arguments: Any) -> Tensor:
    """The mix of a batch, as a new batch; that of float64 as the reference makes it."""
    if x.dtype == torch.float64:
        return finished.finish_mix(x, *arguments)
    from fusedmix.backends.triton import finish_launch

    return finish_launch.finish(x, *arguments)


def mix_batch(
    x: Tensor, y: Tensor, request: Request, source: Source, num_classes: int, label_smoothing: float
) -> tuple[Tensor, ...]:
    """A whole step: the mixed images, their dense targets, and the plan."""
    out = torch.empty_like(x)
    return out, *_step(x, out, y, request, source, num_classes, label_smoothing)


def mix_batch_(
    x: Tensor, y: Tensor, request: Request, source: Source, num_classes: int, label_smoothing: float
) -> tuple[Tensor, ...]:
    """The same, in place: the dense targets and the plan."""
    return _step(x, x, y, request, source, num_classes, label_smoothing)


def plain_step(
    x: Tensor,
    y: Tensor,
    request: Request,
    source: Source,
    num_classes: int,
    label_smoothing: float,
    inplace: bool,
) -> tuple[Tensor, Tensor]:
    """Images and targets of the usual step of a training, drawn by torch's default generator: without an operator,
    which in Python takes as long as a launch, and of one mask for the whole batch without a plan for every sample.

    Args:
        source: a seed that is to be drawn; or nothing, for one draw of the host and partners by formula.
    """
    usual_batch(x, y, num_classes, inplace)
    if x.is_neg() or y.is_neg():
        raise ValueError("This step is not a plain one.")
    out = x if inplace else torch.empty_like(x)
    if source.seed is None:
        plan = _from_the_host(request._replace(batch_size=1), source)
    else:
        plan = sample(request, source, x.device)
    dense = _mixed(x, out, y, request, plan, num_classes, label_smoothing)
    if inplace:
        torch.autograd.graph.increment_version(x)
    return out, dense


def cross_entropy(of: LossArguments, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The reduced losses, statistics of the rows for the backward, and the reciprocal of what "mean" divides by."""
    from fusedmix.backends.triton import losses_kernel

    return losses_kernel.cross_entropy(of, *options)


def cross_entropy_backward(grad: Tensor, of: LossArguments, *options: Any) -> Tensor:
    """The gradient of the logits."""
    from fusedmix.backends.triton import losses_kernel

    return losses_kernel.cross_entropy_backward(grad, of, *options)


def binary_cross_entropy(of: LossArguments, *options: Any) -> Tensor:
    """The reduced losses."""
    from fusedmix.backends.triton import losses_kernel

    if of.labels.ndim == 1:
        class_range(of.labels, of.logits.shape[1])
    return losses_kernel.binary_cross_entropy(of, *options)


def binary_cross_entropy_backward(grad: Tensor, of: LossArguments, *options: Any) -> Tensor:
    """The gradient of the logits."""
    from fusedmix.backends.triton import losses_kernel

    return losses_kernel.binary_cross_entropy_backward(grad, of, *options)


def pixel_cross_entropy(of: PixelLossArguments, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The reduced losses of mixed label maps, the logsumexp of every pixel, and the reciprocal of what "mean" divides
    by."""
    from fusedmix.backends.triton import pixel_losses_kernel

    return pixel_losses_kernel.pixel_cross_entropy(of, *options)


def pixel_cross_entropy_backward(grad: Tensor, of: PixelLossArguments, *options: Any) -> Tensor:
    """The gradient of the logits."""
    from fusedmix.backends.triton import pixel_losses_kernel

    return pixel_losses_kernel.pixel_cross_entropy_backward(grad, of, *options)


def _step(
    x: Tensor, out: Tensor, y: Tensor, request: Request, source: Source, num_classes: int, label_smoothing: float
) -> tuple[Tensor, ...]:
    plan = sample(request, source, x.device)
    return _mixed(x, out, y, request, plan, num_classes, label_smoothing), *plan


def _mixed(
    x: Tensor, out: Tensor, y: Tensor, request: Request, plan: PlanTensors, num_classes: int, label_smoothing: float
) -> Tensor:
    """Mixes the images into `out`, and returns the dense targets."""
    kernels = _kernels()
    partner, _, weight, _ = plan
    masks = request.masks(plan, kernels.sample.spec_of(request.spec).families)
    one_weight = masks.per == Per.BATCH
    dense = kernels.labels.mix(y, partner, weight, num_classes, label_smoothing, masks.pairing, one_weight)
    kernels.mix.apply(x, out, masks)
    return dense


class _Kernels(NamedTuple):
    """The modules of kernels that a step needs."""

    sample: ModuleType
    labels: ModuleType
    mix: ModuleType


@functools.lru_cache(maxsize=1)
def _kernels() -> _Kernels:
    """Imported when they are needed, and found once: even of what has been imported a statement takes a microsecond."""
    from fusedmix.backends.triton import labels_kernel, mix_launch, sample_launch

    return _Kernels(sample_launch, labels_kernel, mix_launch)


def _from_the_host(request: Request, source: Source) -> PlanTensors:
    """The plan of numbers that were drawn on the host, or that cpp is to draw, by the CPU's own backend."""
    lam, labels = (None if t is None else t.cpu() for t in (request.lam, request.labels))
    row = request._replace(lam=lam, labels=labels)
    operators = torch.ops.fusedmix_cpp if backends.choose("cpu") == "cpp" else torch.ops.fusedmix_reference
    return operators.sample.default(*row, *source, CPU)


def _indexed(device: torch.device) -> torch.device:
    """A device with its number: "cuda" is the current one."""
    return (
        torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" and device.index is None else device
    )


__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_backward",
    "blend",
    "cross_entropy",
    "cross_entropy_backward",
    "draw_finish",
    "finish",
    "finish_mix",
    "fourier",
    "mask",
    "mix",
    "mix_",
    "mix_adjoint",
    "mix_batch",
    "mix_batch_",
    "mix_labels",
    "mix_with",
    "mix_with_",
    "paste",
    "pixel_cross_entropy",
    "pixel_cross_entropy_backward",
    "plain_step",
    "sample",
]
