"""The label losses of a mixed batch, without dense targets."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fusedmix import checks, loss_gradients, subclasses
from fusedmix.arguments import LossArguments, Terms, compute_dtype
from fusedmix.backends import reference
from fusedmix.draws import moved
from fusedmix.methods import Reduction
from fusedmix.mixing import beside, in_range, mix_labels, of_classes, operators_for
from fusedmix.plan import MixPlan, same_batch
from fusedmix.term_losses import OfTerms
from fusedmix.terms import per_sample, with_terms
from fusedmix.tracking import tracked

REDUCTIONS = {"mean": Reduction.MEAN, "sum": Reduction.SUM, "none": Reduction.NONE}


# The two losses are longer than a screen because all that their users read stands in them.
def mix_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    plan: MixPlan,
    *,
    other: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    weight: Tensor | None = None,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    """Cross entropy with mixed labels: F.cross_entropy(logits, mix_labels(labels, plan)), no (B, K) target being built.

    With w the label weight, y and y' the classes of the sample and of its partner, and ε the label smoothing:
    logsumexp(z) - (1-ε)·(w·z[y] + (1-w)·z[y']) - ε·mean(z), in float32 at least. The logits are read once forwards and
    once backwards, and their gradient is written once. Differentiable in the logits any number of times.

    Class weights and "mean" are those of dense targets: each term of the sum over classes has its class's weight, and
    the batch's sum is divided by B (F.cross_entropy divides by the sum of the weights where labels are classes, but not
    where they are probabilities). Labels that are ignored are those of hard labels: with any plan of one λ, and without
    class weights, the loss is λ·F.cross_entropy(z, y) + (1-λ)·F.cross_entropy(z, y'). So y or y' contributes nothing
    to a row where it is ignored, and "mean" divides by the number of labels that are not.

    By a plan with `terms` the loss is Σ_t w_t·F.cross_entropy(z, y_t), of weights that need not sum to 1, by the same
    rules: "mean" divides by the number of labels, as large as their weights may be.

    Logits of -inf have probability 0: the loss is inf if their class is a label or ε > 0, else they change nothing.

    Args:
        logits: (B, K) float32, float16, bfloat16 or float64, in any layout.
        labels: (B,) integer classes in [0, K), of any width; or (B, K) soft labels, for which the mixed labels are
            as large as they were.
        plan: the plan that mixed the batch, on any device.
        other: the labels of the batch that partners are from, as in `mix_labels`. "mean" then divides by the label
            weights that count, summed over the batch: by B, if none is ignored.
        label_smoothing: ε in [0, 1].
        ignore_index: the class that is no label, in [0, K) or outside; not for soft labels.
        weight: (K,) weights of the classes, constants.
        reduction: "mean", "sum", or "none" for (B,).
        backend: as in `mix`; not for soft labels.

    Returns:
        float32 (float64 for float64 logits): a scalar, or (B,).

    Raises:
        TypeError, ValueError: an argument is of the wrong type, dtype or shape; a class is outside [0, K) (on the CPU;
            on a GPU the loss of such a sample and its partner is NaN, unless FUSEDMIX_CHECK_LABELS is 1).
        BackendError: the backend asked for cannot run here.
    """
    logits = check_logits(logits)
    checks.choice("reduction", reduction, tuple(REDUCTIONS))
    label_smoothing = checks.number("label_smoothing", label_smoothing, 0.0, 1.0)
    weight = of_each_class("weight", weight, logits)
    labels = labels_beside(labels, plan, logits, other)
    check_ignored(ignore_index, labels)

    if labels.ndim == 2:
        targets = mix_labels(labels, plan, other=other, label_smoothing=label_smoothing).to(compute_dtype(logits))
        return F.cross_entropy(logits.to(compute_dtype(logits)), targets, weight, reduction=reduction)
    operators = operators_for(logits, backend)
    if plan.terms is not None or other is not None:
        labels, terms = with_terms("labels", labels, plan, other)
        labels = in_range(labels, logits.shape[1], ignore_index)
        of = _arguments(logits, labels, plan, weight)._replace(**terms._asdict())
        rows = loss_gradients.cross_entropy(OfTerms(operators), of, label_smoothing, ignore_index, int(Reduction.NONE))
        return _reduced(rows, reduction, _number(labels != ignore_index, terms, other))
    labels = in_range(labels, logits.shape[1], ignore_index)
    of = _arguments(logits, labels, beside(plan, logits), weight)
    return loss_gradients.cross_entropy(operators, of, label_smoothing, ignore_index, int(REDUCTIONS[reduction]))


def mix_binary_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    plan: MixPlan,
    *,
    other: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    target_threshold: float | None = None,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    sum_classes: bool = False,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    """Binary cross entropy of every class with mixed labels (Wightman 2021), no (B, K) target being built:
    F.binary_cross_entropy_with_logits(logits, mix_labels(labels, plan)), as timm's BinaryCrossEntropy has it.

    With t the mixed target of a class: -p·t·log σ(z) - (1-t)·log σ(-z), in float32 at least. The logits are read once
    forwards and once backwards, and their gradient is written once. Differentiable in the logits any number of times.
    At infinite logits the loss is the limit, where PyTorch's is NaN.

    A label that is ignored contributes nothing to a row, neither as a class nor as the lack of it: with y and y' the
    labels of the sample and of its partner, and L the binary cross entropy, a row's loss is w·L(z, y) + (1-w)·L(z, y')
    without the term of the ignored one. "mean" divides by the number of labels that are not (and of the classes), as
    that of `mix_cross_entropy` does. By a plan with `terms` the loss is Σ_t w_t·L(z, y_t), of weights that need not sum
    to 1. Where the weights that count sum to m, this is m·L(z, t) for the mean t of the labels, which is what a
    threshold is for.

    Args:
        logits: (B, K) float32, float16, bfloat16 or float64, in any layout.
        labels: (B,) integer classes in [0, K), of any width; or (B, K) multi-hot or soft labels of any real dtype,
            which are mixed in the precision of the loss.
        plan: the plan that mixed the batch, on any device.
        other: as in `mix_cross_entropy`.
        label_smoothing: ε in [0, 1], applied as in `mix_labels`.
        ignore_index: the class that is no label, in [0, K) or outside; not for soft labels. None: there is none.
        target_threshold: a mixed target above it becomes 1, any other 0. None leaves targets as they are.
        weight: (K,), or one number for all classes, constants: of a class's loss.
        pos_weight: p, the same of the positive part of a class's loss.
        sum_classes: whether a sample's loss is the sum over its classes.
        reduction: "mean" over the batch and, unless sum_classes, over the classes; "sum"; or "none" for (B, K), with
            sum_classes for (B,).
        backend: as in `mix`.

    Returns:
        float32 (float64 for float64 logits): a scalar, or of the shape that "none" has.

    Raises:
        TypeError, ValueError, BackendError: as `mix_cross_entropy`.
    """
    logits = check_logits(logits)
    checks.choice("reduction", reduction, tuple(REDUCTIONS))
    checks.boolean("sum_classes", sum_classes)
    label_smoothing = checks.number("label_smoothing", label_smoothing, 0.0, 1.0)
    if target_threshold is not None:
        target_threshold = checks.number("target_threshold", target_threshold)
    num_classes = logits.shape[1]
    weight = of_each_class("weight", weight, logits)
    pos_weight = of_each_class("pos_weight", pos_weight, logits)
    labels = labels_beside(labels, plan, logits, other)
    if ignore_index is not None:
        check_ignored(ignore_index, labels)
    if plan.terms is not None or other is not None or (ignore_index is not None and labels.ndim == 1):
        labels, terms, counted = _counted(*with_terms("labels", labels, plan, other), num_classes, ignore_index, other)
        of = _arguments(logits, labels, plan, weight)._replace(**terms._asdict())
        mixed = pos_weight, label_smoothing, target_threshold
        rows = _binary_of_terms(of, mixed, backend, of_classes=reduction == "none" and not sum_classes)
        return _reduced(rows, reduction, counted * (1 if sum_classes else num_classes))

    if (reduction == "none" and not sum_classes) or (labels.is_floating_point() and tracked(labels)):
        # Here the result is (B, K) anyway, or labels are learned, which is rare enough to be left to autograd.
        checks.partners(plan.partner)
        of = _arguments(logits, in_range(labels, num_classes), plan, weight).wide()
        t = reference.binary_targets(of, label_smoothing, target_threshold)
        loss = F.binary_cross_entropy_with_logits(of.logits, t, weight, reduction="none", pos_weight=pos_weight)
        loss = loss.sum(1) if sum_classes else loss
        return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()
    operators, plan = operators_for(logits, backend), beside(plan, logits)
    reduced = Reduction.MEAN_OF_ALL if reduction == "mean" and not sum_classes else REDUCTIONS[reduction]
    options = (pos_weight, label_smoothing, target_threshold, int(reduced))

    def loss_of(labels: Tensor) -> Tensor:
        return loss_gradients.binary_cross_entropy(operators, _arguments(logits, labels, plan, weight), *options)

    return of_classes(loss_of, labels, num_classes)


def _counted(
    labels: Tensor, terms: Terms, num_classes: int, ignore_index: int | None, other: Tensor | None
) -> tuple[Tensor, Terms, Tensor | int]:
    """Labels and terms, of which those that are ignored have the class 0 and no weight; and how many labels count."""
    labels = in_range(labels, num_classes, ignore_index)
    if ignore_index is None or labels.ndim == 2:
        return labels, terms, terms.partner.shape[0]
    counts = labels != ignore_index
    partner, weight = (moved(t, labels.device) for t in terms)
    number = _number(counts, terms, other)
    return torch.where(counts, labels.long(), 0), Terms(partner, torch.where(counts[partner], weight, 0.0)), number


def _number(counts: Tensor, terms: Terms, other: Tensor | None) -> Tensor:
    """What "mean" divides by: how many labels of the batch count; or, of labels from two batches, their weights."""
    if other is None:
        return counts.sum()
    partner, weight = (moved(t, counts.device) for t in terms)
    return torch.where(counts[partner], weight, 0.0).sum()


def _binary_of_terms(of: LossArguments, options: tuple[Any, ...], backend: str | None, *, of_classes: bool) -> Tensor:
    """The binary cross entropy of the rows, or of each of their classes, whose labels are sums of terms."""
    pos_weight, label_smoothing, threshold = options
    if of.labels.ndim == 1 and not of_classes:
        operators = OfTerms(operators_for(of.logits, backend))
        return loss_gradients.binary_cross_entropy(operators, of, *options, int(Reduction.NONE))
    # Labels of (B, K), or a loss of that shape: they are mixed first.
    mass = of.weight.sum(1)
    share = of.weight / torch.where(mass == 0, 1.0, mass).unsqueeze(1)
    wide = of._replace(weight=share).wide()
    t = reference.binary_targets(wide, label_smoothing, threshold)
    if of_classes or tracked(of.labels):
        loss = F.binary_cross_entropy_with_logits(
            wide.logits, t, of.class_weight, reduction="none", pos_weight=pos_weight
        )
        rows = loss if of_classes else loss.sum(1)
    else:
        each = torch.arange(len(t), device=t.device)
        whole = of._replace(labels=t, partner=each, weight=torch.ones_like(each, dtype=torch.float64))
        args = pos_weight, 0.0, None, int(Reduction.NONE)
        rows = loss_gradients.binary_cross_entropy(operators_for(t, backend), whole, *args)
    mass = per_sample(mass.to(rows.dtype), rows)
    return torch.where(mass == 0, 0.0, mass * rows)


def _reduced(rows: Tensor, reduction: str, counted: Tensor | int) -> Tensor:
    """The rows, or their sum, or that over how many are `counted`."""
    if reduction == "none":
        return rows
    return rows.sum() if reduction == "sum" else (rows.sum() / counted).to(rows.dtype)


def check_logits(logits: Any) -> Tensor:
    """The logits without a subclass."""
    checks.tensor("logits", logits)
    if logits.ndim != 2 or logits.dtype not in checks.FLOATING_DTYPES:
        raise ValueError(
            f"logits must be (batch_size, num_classes) with one of the dtypes {checks.names(checks.FLOATING_DTYPES)}, "
            f"but got {logits.dtype} of shape {tuple(logits.shape)}."
        )
    if logits.shape[1] < 1:
        raise ValueError(f"logits must have at least one class, but got shape {tuple(logits.shape)}.")
    return subclasses.plain(logits)


def labels_beside(labels: Any, plan: Any, logits: Tensor, other: Any = None) -> Tensor:
    """The labels, beside the logits; raises unless they fit them and the plan. `other`: of another batch, that partners
    are from."""
    labels = subclasses.plain(checks.labels(labels, logits.shape[1], "the logits' classes"))
    same_batch("labels", labels, plan, other=other)
    same_batch("logits", logits, plan, other=other)
    if labels.is_meta and not logits.is_meta:
        raise ValueError(f"labels must have values, as the logits on {logits.device} have, but are on the meta device.")
    # torch.func takes what comes out of an operation, even one that does nothing, for something that is differentiated.
    return labels if labels.device == logits.device else labels.to(logits.device)


def check_ignored(ignore_index: Any, labels: Tensor) -> None:
    """Raises unless `ignore_index` may be the class that is no label."""
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index must be an int, but got {ignore_index!r} of type {type(ignore_index).__name__}.")
    if labels.ndim == 2 and ignore_index >= 0:
        raise ValueError(f"ignore_index must be negative where labels are soft, but got {ignore_index}.")


def of_each_class(name: str, x: Any, logits: Tensor) -> Tensor | None:
    """Weights of the classes in the compute dtype, beside the logits."""
    if x is None:
        return None
    checks.tensor(name, x)
    num_classes = logits.shape[1]
    one = x.numel() == 1
    if not x.is_floating_point() or not (one or x.shape == (num_classes,)):
        raise ValueError(
            f"{name} must be floating point of shape ({num_classes},), one number for each class, but got {x.dtype} of "
            f"shape {tuple(x.shape)}."
        )
    if x.requires_grad:
        raise ValueError(f"{name} must not require grad: it is a constant of the loss.")
    x = subclasses.plain(x).to(logits.device, compute_dtype(logits))
    return x.reshape(1).expand(num_classes).contiguous() if one else x.contiguous()


def _arguments(logits: Tensor, labels: Tensor, plan: MixPlan, weight: Tensor | None) -> LossArguments:
    if labels.ndim == 1 and labels.dtype != torch.int64:
        labels = labels.long()
    return LossArguments(logits, labels, plan.partner, plan.weight, int(plan.pairing), int(plan.per), weight)
