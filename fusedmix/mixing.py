"""The second half: apply a plan to images and labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fusedmix import backends, checks, erasing, subclasses, terms
from fusedmix.arguments import MaskArguments, rounded
from fusedmix.backends import gathers, reference
from fusedmix.finishing import Finish, checked_finish
from fusedmix.masks.constant import numbers
from fusedmix.methods import Families, Per
from fusedmix.ops import differentiable_mix, differentiable_mix_with, in_layout
from fusedmix.plan import OF_PIXELS, MixPlan, check_lender, of_partners, same_batch
from fusedmix.tracking import tracked, transformed


def mix(
    x: Tensor,
    plan: MixPlan,
    *,
    other: Tensor | None = None,
    finish: Finish | None = None,
    backend: str | None = None,
) -> Tensor:
    """Mixes a batch out of place: M ⊙ x + (1-M) ⊙ x[partner] (Park 2022, eq. 1).

    Differentiable any number of times in x; the plan is a constant. Masks and λ are float32 and never pass through the
    dtype of x. Where M is 1 the result is x bit for bit, where M is 0 the partner.

    Args:
        x: (B, ..., *plan.size): images, volumes, sequences, videos; contiguous, channels_last or sliced. float32,
            float16, bfloat16, float64, or uint8, int16, uint16 (rounded to nearest, ties to even, as if w·a + (1-w)·b
            were exact). If all masks of the plan are constant (MixUp, SamplePairing), any (B, ...).
        plan: a plan for B samples of that size, on any device.
        other: (N, ..., *plan.size) of the dtype and device of x: the batch that the partners are from, x[partner] being
            other[partner]. Any N >= 1, for partners in [0, N). None: they are from x.
        finish: what the images go through in the same pass (`Finish`). Then x is (B, C, H, W), or (B, H, W, C) if it
            says so, and does not require grad. The plan says which samples are flipped and where they have holes: it
            comes from the `sample` of a module that was made with this finish.
        backend: an implementation by name; None chooses (`fusedmix info` shows which).

    Returns:
        A new tensor of the dtype, the memory format and the subclass of x; with finish of those that it says.

    Raises:
        TypeError, ValueError: x, plan or finish is of the wrong type, dtype or shape.
        BackendError: the backend asked for cannot run here.
    """
    if subclasses.has_type(x):
        return subclasses.like(mix(subclasses.plain(x), plan, other=other, finish=finish, backend=backend), x)
    if finish is not None:
        if other is not None:
            raise ValueError("other must be None with finish, which finishes one batch.")
        return _mix_finished(x, plan, finish, backend)
    if other is not None or (isinstance(plan, MixPlan) and plan.gathers):
        return _mix_from_elsewhere(x, plan, other, backend)
    operators, masks = prepare("x", x, plan, backend)
    if plan.repeats and (transformed() or tracked(x)):
        # torch.compile takes no tensor twice. The batch is the same.
        return differentiable_mix_with(operators, x, x.view_as(x), masks)
    return differentiable_mix(operators, x, masks)


def _mix_from_elsewhere(x: Tensor, plan: MixPlan, other: Tensor | None, backend: str | None) -> Tensor:
    """The mix of a plan that `gathers`, or with partners from another batch."""
    if other is None:
        _refuse_lack(plan)
    elif plan.patches is not None or plan.blended or plan.moves is not None:
        raise ValueError("other must be None for a plan that pastes crops, blends several samples or moves blocks.")
    operators, masks = prepare("x", x, plan, backend, refuse=())
    plan = beside(plan, x)
    if plan.span is not None:
        return _mix_beyond(x, plan, plan.span, other, backend)
    if plan.patches is not None:
        if tracked(x) or transformed():
            return gathers.paste(x, plan.patches, plan.resize)
        return operators.paste(x, *plan.patches, int(plan.resize))
    if plan.blended:
        assert plan.terms is not None
        partner, weight = plan.terms.partner, plan.terms.weight.float() if plan.gains is None else plan.gains
        return gathers.blend(x, partner, weight) if tracked(x) or transformed() else operators.blend(x, partner, weight)
    if plan.moves is not None:
        each = torch.arange(x.shape[0], device=masks.partner.device)
        lent = moved(x[masks.partner.to(x.device)], plan.moves.lent, plan.blocks)
        own = moved(x, plan.moves.own, plan.blocks)
        return differentiable_mix_with(operators, own, lent, masks._replace(partner=each))
    other, partner = _partners_of(x, plan, other)
    return differentiable_mix_with(operators, x, other, masks._replace(partner=partner.to(masks.partner.device)))


def _mix_beyond(x: Tensor, plan: MixPlan, span: Tensor, other: Tensor | None, backend: str | None) -> Tensor:
    """The mix by masks M = low + (high-low)·L, which no kernel has, from three that all have: of the batch mixed by low
    everywhere and of the batch mixed by high everywhere, by the levels L. In float32, or in float64."""
    if other is not None:
        other, _ = _partners_of(x, plan, other)
    wide, lent = (y if y is None or y.dtype == torch.float64 else y.float() for y in (x, other))
    assert wide is not None
    ends = (
        replace(plan, masks=numbers(end), families=Families.CONSTANTS, per=Per.SAMPLE, pixels=None, span=None)
        for end in span.unbind(1)
    )
    low, high = (mix(wide, end, other=lent, backend=backend) for end in ends)
    each = torch.arange(plan.batch_size, device=plan.device)
    mixed = mix(high, replace(plan, partner=each, span=None, other_size=plan.batch_size), other=low, backend=backend)
    return rounded(mixed, x.dtype)


def _refuse_lack(plan: MixPlan) -> None:
    if plan.other_size is not None:
        raise ValueError(
            f"other must be the {plan.other_size} samples that the partners of plan are from, but got None."
        )


def _partners_of(x: Tensor, plan: MixPlan, other: Tensor | None) -> tuple[Tensor, Tensor]:
    """The batch that partners are from, one sample where they are a constant; and who they are."""
    if plan.fill is not None:
        if other is not None:
            raise ValueError("other must be None for a plan that fills with a constant.")
        return _filled(x, plan.fill), plan.partner * 0
    assert other is not None
    other = subclasses.plain(checks.batch("other", other))
    if other.dtype != x.dtype or other.device != x.device or other.shape[1:] != x.shape[1:]:
        raise ValueError(
            f"other must be {checks.names([x.dtype])} of shape (samples, {', '.join(map(str, x.shape[1:]))}) on "
            f"{x.device}, but got {checks.names([other.dtype])} of shape {tuple(other.shape)} on {other.device}."
        )
    check_lender(plan, other)
    return other, plan.partner


def _filled(x: Tensor, fill: tuple[float, ...]) -> Tensor:
    """A batch of one sample that is a constant, in each channel if there are several."""
    check_fill(x, fill)
    if len(fill) == 1:
        return x.new_full((1, *x.shape[1:]), fill[0])
    constant = torch.tensor(fill, dtype=x.dtype, device=x.device).reshape(-1, *[1] * (x.ndim - 2))
    return constant.expand(1, *x.shape[1:])


def check_fill(x: Tensor, fill: tuple[float, ...]) -> None:
    """Raises ValueError unless a batch can be filled with a constant, or with one for each channel."""
    if len(fill) > 1 and (x.ndim < 3 or x.shape[1] != len(fill)):
        raise ValueError(f"x must have {len(fill)} channels, as many as plan.fill, but got shape {tuple(x.shape)}.")
    if x.is_floating_point():
        return
    of = torch.iinfo(x.dtype)
    if not all(value.is_integer() and of.min <= value <= of.max for value in fill):
        name = checks.names([x.dtype])
        raise ValueError(f"fill must be integers from {of.min} to {of.max} for images of {name}, but is {fill}.")


def moved(x: Tensor, index: Tensor, blocks: tuple[int, ...]) -> Tensor:
    """Images with their blocks moved: at block j of the result stands block index[:, j]. Differentiable.

    Args:
        x: (B, ..., *size), each side a multiple of the blocks along it.
        index: (B, n) int64, n = the product of the blocks, in row-major order.
        blocks: how many there are along each side.
    """
    size = x.shape[x.ndim - len(blocks) :]
    for side, count in zip(size, blocks, strict=True):
        if side % count:
            raise ValueError(
                f"x must have sides that are multiples of {blocks} blocks, but got shape {tuple(x.shape)}."
            )
    lead = x.shape[: x.ndim - len(blocks)]
    parts = [n for side, count in zip(size, blocks, strict=True) for n in (count, side // count)]
    first, d = len(lead), len(blocks)
    order = (*range(first), *range(first, first + 2 * d, 2), *range(first + 1, first + 2 * d, 2))
    cut = x.reshape(*lead, *parts).permute(order)
    of_blocks = cut.reshape(lead[0], math.prod(lead[1:]), math.prod(blocks), math.prod(parts[1::2]))
    taken = of_blocks.gather(
        2, index.to(x.device)[:, None, :, None].expand(-1, *of_blocks.shape[1:2], -1, of_blocks.shape[3])
    )
    back = [order.index(i) for i in range(len(order))]
    return taken.reshape(cut.shape).permute(back).reshape(x.shape)


def finish(x: Tensor, finish: Finish, *, backend: str | None = None) -> Tensor:
    """Finishes a batch without mixing, for evaluation: bit for bit what `mix` gives a sample that is left as it is. No
    sample is flipped and none is erased.

    Args:
        x: (B, C, H, W), or (B, H, W, C) if finish says so: uint8, or floating point in [0, 1].
        finish: what it goes through.
        backend: as in `mix`.

    Returns:
        A new tensor (B, C, H, W) of the dtype and the memory format that finish says, and of the subclass of x.

    Raises:
        TypeError, ValueError: x does not fit finish, or requires grad.
        BackendError: as `mix`.
    """
    checked_finish("finish", finish)
    given = subclasses.plain(x)
    made = _finishing(given, finish, backend).finish(given, *finish.arguments(given))
    return subclasses.like(made, x) if subclasses.has_type(x) else made


def _mix_finished(x: Tensor, plan: MixPlan, finish: Finish, backend: str | None) -> Tensor:
    checked_finish("finish", finish)
    operators = _finishing(x, finish, backend)
    same_batch("x", x, plan, refuse=OF_PIXELS)
    planes = x.permute(0, 3, 1, 2) if finish.input_format == "NHWC" else x
    if len(plan.size) != 2 and not plan.constant:
        raise ValueError(f"plan must be for images (H, W) to be finished, but is for the size {plan.size}.")
    _, masks = prepare("x", planes, plan, backend)
    _check_draws(plan, finish, planes)
    return operators.finish_mix(x, *finish.arguments(x, plan.draws), *masks)


def _check_draws(plan: MixPlan, finish: Finish, planes: Tensor) -> None:
    """Raises unless the plan says which samples are flipped and where they have holes, if finish asks for it."""
    from_sample = "Take the plan from the sample() of a module that was made with this finish."
    if plan.draws is None and finish.is_random:
        raise ValueError(
            "plan must say which samples are flipped and where they have holes, because finish asks for some, but it "
            f"says nothing. {from_sample}"
        )
    if plan.draws is None:
        return
    if not finish.is_random:
        raise ValueError(f"plan must be without flips and holes, because finish asks for none. {from_sample}")
    most = int(erasing.chances(finish).most)
    checks.shaped(
        "plan.draws",
        plan.draws,
        torch.int32,
        plan.batch_size,
        erasing.HEAD + erasing.PER_HOLE * most,
        why=f"finish asks for {most} holes at most. {from_sample}",
    )
    if most and tuple(planes.shape[2:]) != plan.size:
        raise ValueError(
            f"x must be of the size of the plan, {plan.size}, because it says where in an image the holes are, but got "
            f"shape {tuple(planes.shape)}."
        )


def _finishing(x: Tensor, finish: Finish, backend: str | None) -> Any:
    """The operators that finish a batch, which has been checked: those that serve its device; of float64, which no
    kernel has, those of the reference."""
    finish.check(x)
    operators = operators_for(x, backend)
    return operators if x.dtype != torch.float64 else torch.ops.fusedmix_reference


def mix_(x: Tensor, plan: MixPlan, *, other: Tensor | None = None, backend: str | None = None) -> Tensor:
    """Mixes a batch in place, as `mix` does out of place, and returns it. Bumps the version of x.

    Raises:
        InplaceError: a ValueError and a RuntimeError: x requires grad while grad is enabled, its memory overlaps itself
            (expand, unfold) or that of other, a sample may be the partner of several of the same batch
            (`plan.repeats`), or the plan pastes crops, blends several samples, moves blocks or has masks outside
            [0, 1].
        TypeError, ValueError, BackendError: as `mix`.

    Nothing has been written then.
    """
    written = subclasses.plain(x)
    if other is not None or (isinstance(plan, MixPlan) and plan.gathers):
        _mix_from_elsewhere_(written, plan, other, backend)
        return x
    operators, masks = prepare("x", written, plan, backend)
    if plan.repeats:
        raise checks.InplaceError(
            "x cannot be mixed in place by this plan: a sample is the partner of several others, or may be, because "
            "partners were given where nobody looks at them. Use fusedmix.mix, or give a permutation on the CPU."
        )
    checks.writable("x", written)
    if transformed():  # Torch's own copy takes tangents along.
        written.copy_(differentiable_mix(operators, written, masks))
        return x
    operators.mix_(written, *masks)
    torch.autograd.graph.increment_version(written)
    return x


def _mix_from_elsewhere_(x: Tensor, plan: MixPlan, other: Tensor | None, backend: str | None) -> None:
    if plan.patches is not None or plan.blended or plan.moves is not None or plan.span is not None:
        raise checks.InplaceError(
            "x cannot be mixed in place by a plan that pastes crops, blends several samples, moves blocks or has masks "
            "outside [0, 1]: it would overwrite what others still need. Use fusedmix.mix."
        )
    if other is None:
        _refuse_lack(plan)
    operators, masks = prepare("x", x, plan, backend, refuse=())
    checks.writable("x", x)
    other, partner = _partners_of(x, plan, other)
    checks.disjoint("x and other", [x, other])
    masks = masks._replace(partner=partner.to(masks.partner.device))
    if transformed():  # Torch's own copy takes tangents along.
        x.copy_(differentiable_mix_with(operators, x, other, masks))
        return
    operators.mix_with_(x, in_layout(other, x), *masks)
    torch.autograd.graph.increment_version(x)


def mix_labels(
    labels: Tensor,
    plan: MixPlan,
    *,
    other: Tensor | None = None,
    num_classes: int | None = None,
    label_smoothing: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """Mixes labels into dense soft targets: weight·y + (1-weight)·y[partner] (Park 2022, eq. 1); by a plan with `terms`
    the sum of these, which is as large as their weights together. Differentiable.

    Args:
        labels: (B,) integer classes in [0, num_classes), of any width; or (B, K) one-hot, soft or multi-hot labels,
            which integers of shape (B, 1) are only if num_classes is 1.
        plan: a plan for B samples, on any device.
        other: (N,) or (N, K), as the labels are: of the batch that partners are from, y[partner] being other[partner].
            None: they are from the batch itself.
        num_classes: K; may be None for (B, K) labels.
        label_smoothing: ε in [0, 1]: y becomes (1-ε)·y + ε/K before it is mixed (Szegedy 2016).
        backend: as in `mix`.

    Returns:
        (B, K) on the device of the labels: float32, or the labels' own dtype if they are floating point.

    Raises:
        TypeError, ValueError: an argument is of the wrong type, dtype or shape; a class is outside [0, num_classes) (on
            the CPU; elsewhere checked only if the environment variable FUSEDMIX_CHECK_LABELS is 1, because the check
            waits for the device: without it such a label gives a row without a one).
    """
    if subclasses.has_type(labels):
        options = {
            "other": other,
            "num_classes": num_classes,
            "label_smoothing": label_smoothing,
            "backend": backend,
        }
        return subclasses.like(mix_labels(subclasses.plain(labels), plan, **options), labels)  # type: ignore[arg-type]
    if num_classes is not None:
        num_classes = checks.integer("num_classes", num_classes, 1)
    classes = checks.dense_labels(labels, num_classes)
    label_smoothing = checks.number("label_smoothing", label_smoothing, 0.0, 1.0)
    same_batch("labels", labels, plan, other=other)
    operators = operators_for(labels, backend)
    if plan.terms is not None and other is None:
        return terms.dense(in_range(labels, classes), terms.terms_of(plan), classes, label_smoothing)
    plan = beside(plan, labels)
    partner, weight, batch_size = plan.partner, plan.weight, labels.shape[0]
    if other is not None:
        labels, partner, weight = _above_lent(labels, of_partners("labels", labels, plan, other), weight)
    if tracked(labels, weight):  # This is rare enough (distillation) to be left to autograd.
        checks.partners(partner)
        mixed = reference.mix_labels(labels, partner, weight, classes, label_smoothing)
    else:
        mixed = of_classes(
            lambda y: operators.mix_labels(y, partner, weight, classes, label_smoothing), labels, classes
        )
    return mixed if other is None else mixed[:batch_size]


def _above_lent(labels: Tensor, lent: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Labels, partners and weights of twice as many samples: below the batch stand the partners, left as they are."""
    n = labels.shape[0]
    partner = torch.arange(n, 2 * n, device=weight.device).repeat(2)
    return terms.above(labels, lent), partner, torch.cat((weight, torch.ones_like(weight)))


def of_classes(
    operator: Callable[[Tensor], Tensor],
    labels: Tensor,
    num_classes: int,
    ignore_index: int | None = None,
    name: str = "labels",
) -> Tensor:
    """operator(labels), of an operator that on the CPU refuses classes out of range itself: to look before it would
    take as long as its work on a small batch.

    Raises:
        ValueError: as `in_range`.
    """
    if torch.compiler.is_compiling() or not labels.is_cpu:
        return operator(in_range(labels, num_classes, ignore_index, name))
    try:
        return operator(labels)
    except (RuntimeError, ValueError):  # Which of them it is depends on torch's version.
        in_range(labels, num_classes, ignore_index, name)
        raise


def in_range(labels: Tensor, num_classes: int, ignore_index: int | None = None, name: str = "labels") -> Tensor:
    """The labels; ValueError if they are classes and one is neither in 0..num_classes-1 nor ignore_index, inside a
    graph when it runs."""
    if labels.ndim == 1 and torch.compiler.is_compiling() and labels.device.type == "cpu":
        return torch.ops.fusedmix.checked_classes(labels, num_classes, ignore_index)
    if labels.ndim == 1:
        checks.class_range(labels, num_classes, name, ignore_index=ignore_index)
    return labels


def operators_for(x: Tensor, backend: str | None) -> Any:
    """The operators that serve a tensor."""
    # Torch makes a string of the type whenever it is asked for.
    return backends.operators("cpu" if x.is_cpu else x.device.type, backend)


def beside(plan: MixPlan, x: Tensor) -> MixPlan:
    """The plan where operators on x take it: beside x, or on the CPU, from where it travels with the launch. Not inside
    a graph, which may be captured, and would launch what travelled then for ever."""
    partner = plan.partner
    if (partner.is_cpu and (x.is_cpu or not torch.compiler.is_compiling())) or partner.device == x.device:
        return plan
    return plan.to(x.device, non_blocking=x.device.type != "cpu")


def prepare(
    name: str, x: Tensor, plan: MixPlan, backend: str | None, *, refuse: Sequence[str] = OF_PIXELS
) -> tuple[Any, MaskArguments]:
    """Checks x against the plan; the operators that serve it and what they take after x."""
    checks.batch(name, x)
    same_batch(name, x, plan, refuse=refuse)
    ndim = 0 if plan.families.constant else len(plan.size)
    if ndim and tuple(x.shape[max(1, x.ndim - ndim) :]) != plan.size:
        raise ValueError(
            f"{name} must end in the spatial size of the plan, {plan.size}, but got shape {tuple(x.shape)}."
        )
    operators = operators_for(x, backend)
    plan = beside(plan, x)
    return operators, MaskArguments(
        plan.partner, plan.masks, int(plan.families), ndim, int(plan.pairing), int(plan.per), plan.pixels
    )
