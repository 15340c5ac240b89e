"""The meaning of every operator, in PyTorch: the oracle that the kernels are tested against, and what serves where none
of them runs.

Blends are rounded once: the difference of the partners in the compute dtype (float32; float64 for float64 images),
then w·(a-b) + b as if exact, then the rounding to the image's dtype (fusedmix/backends/passes.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fusedmix import draws
from fusedmix.arguments import LossArguments, MaskArguments, PlanTensors, compute_dtype, factor
from fusedmix.backends import passes
from fusedmix.checks import class_range, usual_batch
from fusedmix.draws import CPU, Request, Source
from fusedmix.fourier import draw_of, masks
from fusedmix.masks import evaluate
from fusedmix.masks.family import OneMask, geometry, kind, value
from fusedmix.methods import Families, Kind, Pairing, Per, Reduction
from fusedmix.partners import formula
from fusedmix.spec import families as families_of

_CHUNK = 1 << 22  # elements blended at a time: bounds the float64 temporaries to some 100 MB


def has_float64(device: torch.device) -> bool:
    """Whether a device has float64, as all of them but Apple's and some of Intel's have."""
    if device.type == "xpu":
        return bool(torch.xpu.get_device_properties(device).has_fp64)
    return device.type != "mps"


def where_float64_is(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """An operator that works on the CPU for tensors on a device without float64, and brings its results back.

    The weights of a plan, which are float64, stay on the CPU. A box that is a copy is cut where the images are.
    """

    def on_cpu(x: Any) -> Any:
        if isinstance(x, tuple) and hasattr(x, "_make"):
            return x._make(map(on_cpu, x))
        return x.cpu() if isinstance(x, Tensor) else CPU if isinstance(x, torch.device) else x

    def call(*args: Any) -> Any:
        device = _without_float64(args)
        if device is None:
            return function(*args)
        if name in ("mix", "mix_"):
            one = _one(*args)
            if one is not None and one.is_cut:
                return function(*args)
        there = [on_cpu(x) for x in args]
        results = function(*there)
        if name in ("mix_", "mix_with_", "mix_batch_"):
            args[0].copy_(there[0])
        if isinstance(results, tuple):
            return tuple(x if x.dtype == torch.float64 else x.to(device) for x in results)
        return results if results is None else results.to(device)

    return call


def _without_float64(args: Sequence[Any]) -> torch.device | None:
    """The first device of the arguments, and of records among them, that has no float64."""
    for arg in args:
        for x in arg if isinstance(arg, tuple) else (arg,):
            device = x.device if isinstance(x, Tensor) else x
            if isinstance(device, torch.device) and not has_float64(device):
                return device
    return None


def mask(
    records: Tensor, families: int, size: tuple[int, ...], per: int = Per.SAMPLE, pixels: Tensor | None = None
) -> Tensor:
    """(n, *size) float32 masks from their records, and from their pixels."""
    size, n = tuple(size), records.shape[0]
    if pixels is not None:
        pixels = pixels[draw_of(torch.arange(n, device=records.device), per, n)]
    return evaluate(records, families, size, pixels)


fourier = masks  # the pixels of the Fourier masks of a plan


def mix(x: Tensor, plan: MaskArguments) -> Tensor:
    """M ⊙ x + (1-M) ⊙ x[partner] (Park 2022, eq. 1) in the layout of x; its last `ndim` dims are spatial."""
    partner, records, ndim = _near(plan.partner, x), plan.masks, plan.ndim
    mask = _one(x, plan)
    if mask is not None:
        return passes.one(x, partner, mask, ndim)
    out = torch.empty_like(x)
    # What can be read without waiting for a device decides whether the masks have to be made.
    readable = records.device.type == "cpu"
    if readable and not ndim:
        passes.constants(out, x, partner, value(records)[:, 0].tolist())
        return out
    if readable and plan.families == Families.CUTS and passes.long_rows(x) and bool((kind(records) == Kind.BOX).all()):
        passes.boxes(out, x, partner, geometry(records).tolist(), ndim)
        return out
    start = 0
    for i in _chunks(x):
        rows = slice(start, start := start + len(i))
        m = masks_of(i, x, plan)
        if x.device.type == "cpu":
            passes.masked(out[rows], x[rows], x, partner[rows], m)
        else:
            out[rows] = passes.blend(m, x[rows], x[partner[rows]])
    return out


def mix_(x: Tensor, plan: MaskArguments) -> None:
    """The same, in place."""
    mask = _one(x, plan)
    if mask is not None:
        passes.one_(x, _near(plan.partner, x), mask, plan.ndim)
    else:
        x.copy_(mix(x, plan))


def mix_with(x: Tensor, other: Tensor, plan: MaskArguments) -> Tensor:
    """M ⊙ x + (1-M) ⊙ other[partner] in the layout of x: the partners are of another batch, of any size."""
    partner = plan.partner.to(x.device)
    there = (partner >= 0) & (partner < other.shape[0])  # On the CPU they all are.
    partner = torch.where(there, partner, 0)
    out, start = torch.empty_like(x), 0
    for i in _chunks(x):
        rows = slice(start, start := start + len(i))
        m = masks_of(i, x, plan)
        m = torch.where(there[i].reshape(-1, *[1] * (x.ndim - 1)), m, 1.0)
        out[rows] = passes.blend(m, x[rows], other[partner[rows]])
    return out


def mix_with_(x: Tensor, other: Tensor, plan: MaskArguments) -> None:
    """The same, in place."""
    x.copy_(mix_with(x, other, plan))


def mix_adjoint(grad: Tensor, plan: MaskArguments) -> Tensor:
    """The gradient of mix: M_i·g_i + (1-M_j)·g_j with partner(j) = i, rounded once."""
    partner = _near(plan.partner, grad)
    inverse = torch.empty_like(partner).scatter_(0, partner, torch.arange(partner.shape[0], device=grad.device))
    out = torch.empty_like(grad)
    for i in _chunks(grad):
        j = inverse[i]
        own = masks_of(i, grad, plan).double()
        lent = 1.0 - masks_of(j, grad, plan).double()
        # An overflowed gradient must not turn into NaN where its weight is 0.
        kept = torch.where(own == 0, 0.0, own * grad[i].double())
        given = torch.where(lent == 0, 0.0, lent * grad[j].double())
        out[i] = (kept + given).to(grad.dtype)
    return out


def mix_labels(labels: Tensor, partner: Tensor, weight: Tensor, num_classes: int, label_smoothing: float) -> Tensor:
    """(B, K) soft labels w·y + (1-w)·y[partner]: both products rounded, then their sum, as torchvision does.

    In one-hot labels a class outside 0..K-1 is an error on the CPU and a row without a one elsewhere.
    """
    partner = _near(partner, labels)
    if labels.ndim == 1:
        class_range(labels, num_classes)
    return _mixed_labels(labels, partner, weight.unsqueeze(1), num_classes, label_smoothing)


def _mixed_labels(
    labels: Tensor, partner: Tensor | None, weight: Tensor | float, num_classes: int, label_smoothing: float
) -> Tensor:
    """mix_labels with weights (B, 1), or one for all; without partners they are those of pairing="roll"."""
    own, lent, compute = weight, 1.0 - weight, compute_dtype(labels)
    if isinstance(own, Tensor) and isinstance(lent, Tensor):
        own, lent = own.to(compute).to(labels.device), lent.to(compute).to(labels.device)  # MPS has no float64
    # Under vmap weights may have a dim that the tensor of zeros, which they are written into, has not.
    if labels.ndim == 1 and labels.is_cpu and not torch._C._are_functorch_transforms_active():
        index = labels.long().unsqueeze(1)
        y = torch.zeros((len(labels), num_classes), dtype=torch.float32, device=CPU)
        if not label_smoothing:  # A row has two numbers that are not 0.
            y.scatter_(1, passes.of_partners(index, partner), lent)
            return y.scatter_add_(1, index, own) if isinstance(own, Tensor) else y.scatter_(1, index, own, reduce="add")
        y.scatter_(1, index, 1.0)
    elif labels.ndim == 1:
        index = torch.arange(num_classes, device=labels.device)
        y = (labels.long().unsqueeze(1) == index).float()
    else:
        y = labels if labels.is_floating_point() else labels.float()
    if label_smoothing:
        y = (y.to(compute) * (1.0 - label_smoothing) + label_smoothing / num_classes).to(y.dtype)
    return (passes.of_partners(y, partner).to(compute) * lent).to(y.dtype) + (y.to(compute) * own).to(y.dtype)


def cross_entropy(
    of: LossArguments, label_smoothing: float, ignore_index: int, reduction: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Σ_k -t_k·log softmax(z)_k for each row, reduced; statistics of the rows for the backward; what "mean" divides by.

    t is `mixed_classes`. A class whose t is 0 takes nothing, not even an infinity, and a row whose labels are both
    ignored is 0. The statistics are (B, 2): max z, and Σt / Σexp(z - max z). The divisor comes as its reciprocal.
    """
    of = of.wide()
    z = of.logits
    target, ignored = mixed_classes(of, label_smoothing, ignore_index)
    top = z.amax(1, keepdim=True)
    exponentials = (z - top).exp().sum(1, keepdim=True)
    terms = target * (z - top - exponentials.log())
    rows = torch.where(ignored, 0.0, -torch.where(target == 0, 0.0, terms).sum(1))
    statistics = torch.cat([top, target.sum(1, keepdim=True) / exponentials], 1)
    statistics = torch.where(ignored.unsqueeze(1), 0.0, statistics)
    scale = z.new_ones(())
    if reduction == Reduction.MEAN:
        scale = 1 / (of.labels != ignore_index).sum().to(z.dtype)
    return rows if reduction == Reduction.NONE else rows.sum() * scale, statistics, scale


def cross_entropy_backward(
    grad: Tensor, of: LossArguments, statistics: Tensor, scale: Tensor, label_smoothing: float, ignore_index: int
) -> Tensor:
    """grad·(softmax(z)_k·Σt - t_k) in the dtype of the logits, for one grad or one for each row."""
    wide = of.wide()
    target, ignored = mixed_classes(wide, label_smoothing, ignore_index)
    top, rate = statistics.unsqueeze(2).unbind(1)
    slope = (rate * (wide.logits - top).exp() - target) * (grad * scale).reshape(-1, 1)
    return torch.where(ignored.unsqueeze(1), 0.0, slope).to(of.logits.dtype).contiguous()


def mixed_classes(of: LossArguments, label_smoothing: float, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Dense targets (B, K) in the dtype of the logits, times the class weights, and (B,) which rows have none.

    A label that is ignored gives nothing to a row, not to its smoothing either; one outside 0..K-1 makes the row NaN.
    """
    z = of.logits
    index = torch.arange(z.shape[1], device=z.device)
    target = torch.zeros_like(z)
    ignored = torch.ones(z.shape[0], dtype=torch.bool, device=z.device)
    for y, share in _terms(of):
        counts = (y != ignore_index) & (share != 0).unsqueeze(1)
        dense = (1.0 - label_smoothing) * (y == index).to(z.dtype) + label_smoothing / z.shape[1]
        valid = (y >= 0) & (y < z.shape[1])
        dense = torch.where(valid, dense, torch.nan) * share.to(z.dtype).unsqueeze(1)
        target = target + torch.where(counts, dense, 0.0)
        ignored = ignored & ~counts.squeeze(1)
    return target if of.class_weight is None else target * of.class_weight, ignored


def _terms(of: LossArguments) -> list[tuple[Tensor, Tensor]]:
    """The (B, 1) classes of each row and their (B,) weights: of the sample and of its partner, or of the terms of a
    plan that has some, whose partners and weights are (B, T)."""
    classes, weight = of.labels.unsqueeze(1), of.weight.to(of.logits.device)
    if of.partner.ndim == 2:
        return [(classes[p], w) for p, w in zip(of.partner.to(classes.device).unbind(1), weight.unbind(1), strict=True)]
    return [(classes, weight), (classes[_near(of.partner, of.logits)], 1.0 - weight)]


def binary_cross_entropy(
    of: LossArguments, pos_weight: Tensor | None, label_smoothing: float, threshold: float | None, reduction: int
) -> Tensor:
    """Σ_k c_k·(p_k·t_k·softplus(-z_k) + (1-t_k)·softplus(z_k)) for each row, reduced; t is `binary_targets`."""
    of = of.wide()
    z, t = of.logits, binary_targets(of, label_smoothing, threshold)
    p = torch.ones_like(z[:1]) if pos_weight is None else pos_weight
    slope = torch.where(z < 0, -p * t, 1 - t)
    terms = torch.where(slope == 0, 0.0, slope * z) + (1 + (p - 1) * t) * (-z.abs()).exp().log1p()
    rows = (terms if of.class_weight is None else terms * of.class_weight).sum(1)
    return rows if reduction == Reduction.NONE else rows.sum() * factor(of.logits, reduction)


def binary_cross_entropy_backward(
    grad: Tensor,
    of: LossArguments,
    pos_weight: Tensor | None,
    label_smoothing: float,
    threshold: float | None,
    reduction: int,
) -> Tensor:
    """grad·c_k·((1-t_k)·σ(z_k) - p_k·t_k·σ(-z_k)) in the dtype of the logits, for one grad or one for each row."""
    wide = of.wide()
    z, t = wide.logits, binary_targets(wide, label_smoothing, threshold)
    positive = t if pos_weight is None else t * pos_weight
    slope = (1 - t) * z.sigmoid() - positive * (-z).sigmoid()
    slope = slope if of.class_weight is None else slope * of.class_weight
    return (slope * (grad * factor(of.logits, reduction)).reshape(-1, 1)).to(of.logits.dtype).contiguous()


def binary_targets(of: LossArguments, label_smoothing: float, threshold: float | None) -> Tensor:
    """mix_labels in the dtype of the logits; with a threshold, 1 above it and else 0. Of the terms of a plan that has
    some their sum; with a threshold, the `mass` of those whose mean is above it."""
    z, labels = of.logits, of.labels
    if labels.ndim == 1:
        class_range(labels, z.shape[1])
        index = torch.arange(z.shape[1], device=z.device)
        valid = (labels >= 0) & (labels < z.shape[1])
        y = torch.where(valid.unsqueeze(1), (labels.unsqueeze(1) == index).to(z.dtype), torch.nan)
    else:
        y = labels.to(z.dtype)
    if of.partner.ndim == 2:
        smooth = y * (1.0 - label_smoothing) + label_smoothing / z.shape[1] if label_smoothing else y
        terms = zip(of.partner.to(z.device).unbind(1), of.weight.to(z.device).to(z.dtype).split(1, 1), strict=True)
        t = sum((torch.where(w == 0, 0.0, w * smooth[p]) for p, w in terms), torch.zeros_like(z))
        return t if threshold is None else above(t, mass(of), threshold)
    t = mix_labels(y, of.partner, of.weight, z.shape[1], label_smoothing)
    return t if threshold is None else torch.where(t.isnan(), t, (t > threshold).to(t.dtype))


def mass(of: LossArguments) -> Tensor | float:
    """What the label weights of each row sum to, of terms (B, 1) in the dtype of the logits: positive and negative part
    of a class's target together."""
    return of.weight.sum(1, keepdim=True).to(of.logits) if of.partner.ndim == 2 else 1.0


def above(t: Tensor, mass: Tensor | float, threshold: float) -> Tensor:
    """Sums of weighted labels after a threshold: their mass where their mean is above it, else 0."""
    mass = torch.as_tensor(mass, dtype=t.dtype, device=t.device)
    hit = (mass != 0) & (t / mass > threshold)
    return torch.where(t.isnan(), t, torch.where(hit, mass, 0.0))


def sample(request: Request, source: Source, device: torch.device) -> PlanTensors:
    """Everything random about a batch (fusedmix/draws.py)."""
    return draws.plan(request, source, device)


def mix_batch(
    x: Tensor, y: Tensor, request: Request, source: Source, num_classes: int, label_smoothing: float
) -> tuple[Tensor, ...]:
    """A whole step: the mixed images, their dense targets, and the plan."""
    targets, plan = _step(x, y, request, source, num_classes, label_smoothing)
    return mix(x, _masks(request, plan)), targets, *plan


def mix_batch_(
    x: Tensor, y: Tensor, request: Request, source: Source, num_classes: int, label_smoothing: float
) -> tuple[Tensor, ...]:
    """The same, in place: the dense targets and the plan."""
    targets, plan = _step(x, y, request, source, num_classes, label_smoothing)
    mix_(x, _masks(request, plan))
    return targets, *plan


def plain_step(
    x: Tensor, y: Tensor, request: Request, num_classes: int, label_smoothing: float, inplace: bool
) -> tuple[Tensor, Tensor]:
    """Images and targets of the usual step of a training: one mask a batch, drawn by torch's default generator, and
    partners by formula. The checks first: they raise before anything is drawn or written."""
    usual_batch(x, y, num_classes, inplace)
    numbers, _ = draws.host(request, None)
    one = draws.single(request, numbers[0])
    if one is None:
        source = Source(None, torch.tensor(numbers, dtype=torch.float64, device=x.device), None)
        targets, plan = _step(x, y, request, source, num_classes, label_smoothing)
        if not inplace:
            return mix(x, _masks(request, plan)), targets
        mix_(x, _masks(request, plan))
        return x, targets
    partner = None if request.pairing == Pairing.ROLL else formula(request.pairing, len(x), x.device)
    targets = _mixed_labels(y, partner, one.mask.weight, num_classes, label_smoothing)
    ndim = len(request.size)
    if not inplace:
        return passes.one(x, partner, one.mask, ndim), targets
    passes.one_(x, partner, one.mask, ndim)
    return x, targets


def _step(
    x: Tensor, y: Tensor, request: Request, source: Source, num_classes: int, label_smoothing: float
) -> tuple[Tensor, PlanTensors]:
    """Targets and plan. The targets first: a label out of range must leave the images as they were."""
    plan = sample(request, source, x.device)
    partner, _, weight, _ = plan
    return mix_labels(y, partner, weight, num_classes, label_smoothing), plan


def _masks(request: Request, plan: PlanTensors) -> MaskArguments:
    return request.masks(plan, families_of(request.spec))


def _near(partner: Tensor, x: Tensor) -> Tensor:
    """The partners beside x. A number that is no sample's, which has been refused on the CPU, stands for the sample."""
    partner = partner.to(x.device)
    if x.device.type == "cpu":
        return partner
    own = torch.arange(partner.shape[0], device=x.device)
    return torch.where((partner >= 0) & (partner < partner.shape[0]), partner, own)


def _chunks(x: Tensor) -> Iterator[Tensor]:
    """The samples of a batch in pieces of about _CHUNK elements, at least one sample each."""
    step = max(1, _CHUNK * x.shape[0] // max(1, x.numel()))
    return iter(torch.arange(x.shape[0], device=x.device).split(step)) if x.shape[0] else iter(())


def _one(x: Tensor, plan: MaskArguments) -> OneMask | None:
    """The mask of a batch that has one, if it is a number or a box and can be read without waiting for a device."""
    if plan.per != Per.BATCH or plan.masks.device.type != "cpu" or not x.numel():
        return None
    first = plan.masks[:1]
    of = Kind.CONSTANT if not plan.ndim else kind(first).item()
    if of not in (Kind.CONSTANT, Kind.BOX):
        return None
    outer, inner = value(first)[0].tolist()
    return OneMask(int(of), geometry(first)[0].tolist(), (outer, inner), math.nan)


def masks_of(i: Tensor, x: Tensor, plan: MaskArguments) -> Tensor:
    """Masks (n, 1, ..., 1, *S) of samples i that broadcast against x[i]; with ndim 0 (constant masks) S is (). Of a
    batch that shares one n is 1."""
    row = i[:1] * 0 if plan.per == Per.BATCH else i
    records, pixels = plan.masks.to(x.device)[row], plan.pixels
    if pixels is not None:
        pixels = pixels.to(x.device)[draw_of(row, plan.per, x.shape[0])]
    size = tuple(x.shape[x.ndim - plan.ndim :])
    m = mask(records, plan.families, size, Per.SAMPLE, pixels) if plan.ndim else value(records)[:, 0]
    return m.reshape([row.shape[0]] + [1] * (x.ndim - 1 - plan.ndim) + list(size))
