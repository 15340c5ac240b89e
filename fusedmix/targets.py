"""Targets that are numbers rather than classes, mixed by a plan."""

from __future__ import annotations

import torch
from torch import Tensor

from fusedmix import checks, subclasses
from fusedmix.plan import MixPlan, of_partners, same_batch
from fusedmix.terms import per_sample, summed, terms_of


def mix_targets(targets: Tensor, plan: MixPlan, *, other: Tensor | None = None) -> Tensor:
    """Mixes regression targets: weight·y + (1-weight)·y[partner], or the sum of `plan.terms`. Differentiable in y.

    Args:
        targets: (B, ...) float32, float16, bfloat16 or float64. A sample that the plan leaves as it is keeps its target
            bit for bit, also where that of its partner is infinite or NaN.
        plan: the plan that mixed the batch, on any device.
        other: (N, ...) targets of the batch that partners are from, y[partner] being other[partner]. None: they are
            from the batch itself.

    Returns:
        A new tensor of the shape and dtype of the targets, computed in float32 at least.

    Raises:
        TypeError, ValueError: an argument is of the wrong type, dtype or shape.
    """
    if subclasses.has_type(targets):
        return subclasses.like(mix_targets(subclasses.plain(targets), plan, other=other), targets)
    checks.tensor("targets", targets)
    if targets.ndim < 1 or targets.dtype not in checks.FLOATING_DTYPES:
        raise ValueError(
            f"targets must be (batch_size, ...) with one of the dtypes {checks.names(checks.FLOATING_DTYPES)} "
            f"(classes are mixed by mix_labels), but got {targets.dtype} of shape {tuple(targets.shape)}."
        )
    same_batch("targets", targets, plan, other=other)
    if plan.terms is not None and other is None:
        return summed(targets, terms_of(plan)).to(targets.dtype)
    lent = of_partners("targets", targets, plan, other)
    y = targets if targets.dtype == torch.float64 else targets.float()
    weight = per_sample(plan.weight, y)
    mixed = weight.to(y.dtype) * y + (1.0 - weight).to(y.dtype) * lent.to(y.dtype)
    return torch.where(weight == 1.0, y, mixed).to(targets.dtype)
