"""How often a model is right about mixed samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from fusedmix import checks
from fusedmix.arguments import Terms, compute_dtype
from fusedmix.draws import moved
from fusedmix.losses import check_ignored, check_logits, labels_beside
from fusedmix.mixing import in_range
from fusedmix.plan import MixPlan
from fusedmix.terms import summed, with_terms


@overload
def mix_accuracy(
    logits: Tensor,
    labels: Tensor,
    plan: MixPlan,
    *,
    other: Tensor | None = None,
    topk: int = 1,
    ignore_index: int = -100,
) -> Tensor:
    pass


@overload
def mix_accuracy(
    logits: Tensor,
    labels: Tensor,
    plan: MixPlan,
    *,
    other: Tensor | None = None,
    topk: Sequence[int],
    ignore_index: int = -100,
) -> tuple[Tensor, ...]:
    pass


def mix_accuracy(
    logits: Tensor,
    labels: Tensor,
    plan: MixPlan,
    *,
    other: Tensor | None = None,
    topk: int | Sequence[int] = 1,
    ignore_index: int = -100,
) -> Tensor | tuple[Tensor, ...]:
    """The accuracy on a mixed batch, against both labels by their weights: with w the label weight of a sample, y its
    class and y' that of its partner, the mean of w·[y is predicted] + (1-w)·[y' is predicted]. Of a plan with `terms`
    each label counts by its weight, divided by all weights of the batch.

    Of a plan that mixes nothing it is the usual accuracy. Of others it stays below 1 for k = 1: who always predicts
    the label of more weight reaches the mean of max(w, 1-w), where the two are different. There is no gradient, and no
    device is waited for.

    Predicted are the classes of the k largest logits, and of equal logits the first. A row with a NaN predicts nothing.

    Args:
        logits: (B, K), as in `mix_cross_entropy`.
        labels: (B,) integer classes in [0, K); or (B, K) one-hot, multi-hot or soft labels, of whose sum the share on
            the predicted classes counts.
        plan: the plan that mixed the batch, on any device.
        other: labels of the batch that partners are from, as in `mix_labels`.
        topk: k >= 1, or several, as (1, 5).
        ignore_index: the class that is no label, in [0, K) or outside: its weight does not count. Not for soft labels.

    Returns:
        A scalar in [0, 1] on the device of the logits, float32 (float64 for float64 logits); for several k a tuple of
        them. NaN if no label counts.

    Raises:
        TypeError, ValueError: as `mix_cross_entropy`; but on a GPU nobody predicts a class outside [0, K).
    """
    several = isinstance(topk, Sequence)
    named = {f"topk[{i}]": k for i, k in enumerate(topk)} if isinstance(topk, Sequence) else {"topk": topk}
    asked = [checks.integer(name, k, 1) for name, k in named.items()]
    if not asked:
        raise ValueError(f"topk must be an int or a sequence of at least one, but got {topk!r}.")
    logits = check_logits(logits).detach()
    labels = labels_beside(labels, plan, logits, other).detach()
    check_ignored(ignore_index, labels)
    labels, (partner, weight) = with_terms("labels", labels, plan, other)
    if labels.ndim == 1:
        y = in_range(labels, logits.shape[1], ignore_index).long()[moved(partner, logits.device)]
        shares = torch.where(y == ignore_index, 0.0, moved(weight.detach().to(compute_dtype(logits)), logits.device))
        places = torch.stack([_place(logits, classes) for classes in y.unbind(1)], 1)
        hits = [torch.where(places < k, shares, 0.0).sum(1) for k in asked]
    else:
        shares = summed(labels.detach().to(compute_dtype(logits)), Terms(partner, weight.detach()))
        first = shares.gather(1, torch.sort(logits, dim=1, descending=True, stable=True).indices)
        hits = [first[:, :k].sum(1) for k in asked]
    known, total = ~logits.isnan().any(1), shares.sum()
    accuracies = tuple(torch.where(known, hit, 0.0).sum() / total for hit in hits)
    return accuracies if several else accuracies[0]


def _place(logits: Tensor, classes: Tensor) -> Tensor:
    """(B,): how many classes are predicted before a class of each row; all of them, where it is none."""
    num_classes = logits.shape[1]
    at = classes.unsqueeze(1)
    own = logits.gather(1, at.clamp(0, num_classes - 1))
    index = torch.arange(num_classes, device=logits.device)
    before = ((logits > own) | ((logits == own) & (index < at))).sum(1)
    return torch.where((classes >= 0) & (classes < num_classes), before, torch.iinfo(torch.int64).max)
