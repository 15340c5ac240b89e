"""Labels that are sums of several terms: what a plan gives each sample, for whatever mixes labels by it."""

from __future__ import annotations

import torch
from torch import Tensor

from fusedmix import checks
from fusedmix.arguments import Terms, compute_dtype
from fusedmix.draws import moved
from fusedmix.plan import MixPlan, of_partners


def terms_of(plan: MixPlan) -> Terms:
    """The labels of a plan as terms; of one without `terms` two, w of the sample's own and 1-w of its partner's.

    Raises:
        ValueError: plan.terms are of the wrong dtype or shape, or a partner is none of the samples (on the CPU).
    """
    if plan.terms is None:
        checks.partners(plan.partner)
        own = torch.arange(plan.batch_size, device=plan.device)
        return Terms(torch.stack((own, plan.partner), 1), torch.stack((plan.weight, 1.0 - plan.weight), 1))
    partner, weight = plan.terms
    if partner.ndim != 2 or partner.shape[1] < 1:
        raise ValueError(
            f"plan.terms.partner must be (batch_size, terms) with at least one term, but got {tuple(partner.shape)}."
        )
    shape = (plan.batch_size, partner.shape[1])
    checks.shaped("plan.terms.partner", partner, torch.int64, *shape)
    checks.shaped("plan.terms.weight", weight, torch.float64, *shape)
    checks.partners(partner)
    return plan.terms


def with_terms(name: str, y: Tensor, plan: MixPlan, other: Tensor | None) -> tuple[Tensor, Terms]:
    """Labels, and the terms of a plan as their rows: of `other`, the labels of the batch that partners are from, those
    of the partners stand below.

    Raises:
        TypeError, ValueError: as `terms_of` and `of_partners`.
    """
    if other is None:
        return y, terms_of(plan)
    lent = of_partners(name, y, plan, other)
    own = torch.arange(plan.batch_size, device=plan.device)
    weight = torch.stack((plan.weight, 1.0 - plan.weight), 1)
    return above(y, lent), Terms(torch.stack((own, own + plan.batch_size), 1), weight)


def above(y: Tensor, lent: Tensor) -> Tensor:
    """Labels above those that partners lend, in one dtype that holds both."""
    if y.dtype == lent.dtype:
        return torch.cat((y, lent))
    # Torch promotes no wide unsigned integers.
    return torch.cat([x if x.is_floating_point() else x.long() for x in (y, lent)])


def summed(y: Tensor, terms: Terms) -> Tensor:
    """Σ_t weight[:, t]·y[partner[:, t]] of (rows, ...) numbers, in their compute dtype. A term of weight 0 is left out,
    whatever infinities and NaN it has. Differentiable in numbers and weights."""
    y = y.to(compute_dtype(y))
    total = torch.zeros((), dtype=y.dtype, device=y.device)
    for partner, weight in zip(terms.partner.unbind(1), terms.weight.unbind(1), strict=True):
        share = per_sample(weight.to(y.dtype), y)
        total = total + torch.where(share == 0, 0.0, share * y[moved(partner, y.device)])
    return total.expand(terms.partner.shape[0], *y.shape[1:])


def dense(labels: Tensor, terms: Terms, num_classes: int, label_smoothing: float) -> Tensor:
    """(B, K) soft labels of (B,) classes, which are an error if they are out of range (on the CPU; elsewhere such a
    label gives no one), or of (B, K) labels. Differentiable in labels and weights."""
    if labels.ndim == 2:
        y = labels if labels.is_floating_point() else labels.float()
        wide = y.to(compute_dtype(y))
        if label_smoothing:
            wide = wide * (1.0 - label_smoothing) + label_smoothing / num_classes
        return summed(wide, terms).to(y.dtype)
    share = moved(terms.weight.float(), labels.device)
    classes = labels.long()[moved(terms.partner, labels.device)]
    valid = (classes >= 0) & (classes < num_classes)
    ones = torch.where(valid, share * (1.0 - label_smoothing), 0.0)
    y = torch.zeros((len(share), num_classes), dtype=torch.float32, device=labels.device)
    if label_smoothing:
        y = y + share.sum(1, keepdim=True) * (label_smoothing / num_classes)
    return y.scatter_add(1, torch.where(valid, classes, 0), ones)


def per_sample(weight: Tensor, x: Tensor) -> Tensor:
    """(B,) beside a (B, ...) tensor, in a shape that broadcasts over it."""
    return moved(weight, x.device).reshape(-1, *[1] * (x.ndim - 1))
