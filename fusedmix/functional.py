"""The second half: apply a plan to images and labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fusedmix import backends, checks, erasing, subclasses
from fusedmix.arguments import MaskArguments
from fusedmix.backends import reference
from fusedmix.finishing import Finish, checked_finish
from fusedmix.methods import Per
from fusedmix.ops import differentiable_mix
from fusedmix.plan import MixPlan, same_batch
from fusedmix.tracking import tracked, transformed


def mix(x: Tensor, plan: MixPlan, *, finish: Finish | None = None, backend: str | None = None) -> Tensor:
    """Mixes a batch out of place: M ⊙ x + (1-M) ⊙ x[partner] (Park 2022, eq. 1).

    Differentiable any number of times in x; the plan is a constant. Masks and λ are float32 and never pass through the
    dtype of x. Where M is 1 the result is x bit for bit, where M is 0 the partner.

    Args:
        x: (B, ..., *plan.size): images, volumes, sequences, videos; contiguous, channels_last or sliced. float32,
            float16, bfloat16, float64 or uint8 (rounded to nearest, ties to even). If all masks of the plan are
            constant (MixUp, SamplePairing), any (B, ...).
        plan: a plan for B samples of that size, on any device.
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
        return subclasses.like(mix(subclasses.plain(x), plan, finish=finish, backend=backend), x)
    if finish is not None:
        return _mix_finished(x, plan, finish, backend)
    operators, masks = _prepare("x", x, plan, backend)
    if plan.repeats and (transformed() or tracked(x)):
        return _mix_repeated(operators, x, masks)
    return differentiable_mix(operators, x, masks)


def _mix_repeated(operators: Any, x: Tensor, plan: MaskArguments) -> Tensor:
    """The same with derivatives, where a sample may be the partner of several: beside every sample stands a copy of its
    partner, and the two are each other's partners. Torch adds up the derivatives of the copies."""
    n, partner, pixels = x.shape[0], plan.partner, plan.pixels
    index = torch.arange(n, device=partner.device)
    if pixels is not None and plan.per != Per.BATCH:
        pixels = torch.cat((pixels, pixels))
    twice = plan._replace(
        partner=torch.cat((index + n, index)), masks=torch.cat((plan.masks, plan.masks)), pixels=pixels
    )
    return differentiable_mix(operators, torch.cat((x, x[partner.to(x.device)])), twice)[:n]


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
    same_batch("x", x, plan)
    planes = x.permute(0, 3, 1, 2) if finish.input_format == "NHWC" else x
    if len(plan.size) != 2 and not plan.constant:
        raise ValueError(f"plan must be for images (H, W) to be finished, but is for the size {plan.size}.")
    _, masks = _prepare("x", planes, plan, backend)
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


def mix_(x: Tensor, plan: MixPlan, *, backend: str | None = None) -> Tensor:
    """Mixes a batch in place, as `mix` does out of place, and returns it. Bumps the version of x.

    Raises:
        InplaceError: a ValueError and a RuntimeError: x requires grad while grad is enabled, its memory overlaps itself
            (expand, unfold), or a sample may be the partner of several (`plan.repeats`).
        TypeError, ValueError, BackendError: as `mix`.

    Nothing has been written then.
    """
    written = subclasses.plain(x)
    operators, masks = _prepare("x", written, plan, backend)
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


def mix_labels(
    labels: Tensor,
    plan: MixPlan,
    *,
    num_classes: int | None = None,
    label_smoothing: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """Mixes labels into dense soft targets: weight·y + (1-weight)·y[partner] (Park 2022, eq. 1). Differentiable.

    Args:
        labels: (B,) integer classes in [0, num_classes), of any width; or (B, K) one-hot, soft or multi-hot labels,
            which integers of shape (B, 1) are only if num_classes is 1.
        plan: a plan for B samples, on any device.
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
        options = {"num_classes": num_classes, "label_smoothing": label_smoothing, "backend": backend}
        return subclasses.like(mix_labels(subclasses.plain(labels), plan, **options), labels)  # type: ignore[arg-type]
    if num_classes is not None:
        num_classes = checks.integer("num_classes", num_classes, 1)
    classes = checks.dense_labels(labels, num_classes)
    label_smoothing = checks.number("label_smoothing", label_smoothing, 0.0, 1.0)
    same_batch("labels", labels, plan)
    operators = operators_for(labels, backend)
    plan = beside(plan, labels)
    if tracked(labels, plan.weight):  # This is rare enough (distillation) to be left to autograd.
        checks.partners(plan.partner)
        return reference.mix_labels(labels, plan.partner, plan.weight, classes, label_smoothing)
    return of_classes(
        lambda y: operators.mix_labels(y, plan.partner, plan.weight, classes, label_smoothing), labels, classes
    )


def of_classes(operator: Callable[[Tensor], Tensor], labels: Tensor, num_classes: int) -> Tensor:
    """operator(labels), of an operator that on the CPU refuses classes out of range itself: to look before it would
    take as long as its work on a small batch.

    Raises:
        ValueError: as `in_range`.
    """
    if torch.compiler.is_compiling() or not labels.is_cpu:
        return operator(in_range(labels, num_classes))
    try:
        return operator(labels)
    except (RuntimeError, ValueError):  # Which of them it is depends on torch's version.
        in_range(labels, num_classes)
        raise


def in_range(labels: Tensor, num_classes: int, ignore_index: int | None = None) -> Tensor:
    """The labels; ValueError if they are classes and one is neither in 0..num_classes-1 nor ignore_index, inside a
    graph when it runs."""
    if labels.ndim == 1 and torch.compiler.is_compiling() and labels.device.type == "cpu":
        return torch.ops.fusedmix.checked_classes(labels, num_classes, ignore_index)
    if labels.ndim == 1:
        checks.class_range(labels, num_classes, ignore_index=ignore_index)
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


def _prepare(name: str, x: Tensor, plan: MixPlan, backend: str | None) -> tuple[Any, MaskArguments]:
    """Checks x against the plan; the operators that serve it and what they take after x."""
    checks.batch(name, x)
    same_batch(name, x, plan)
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
