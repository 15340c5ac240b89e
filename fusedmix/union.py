"""Labels of which a mixed sample has all that either had: for tagging, where several are true at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fusedmix import checks, subclasses
from fusedmix.draws import moved
from fusedmix.mixing import in_range
from fusedmix.plan import MixPlan, same_batch
from fusedmix.terms import per_sample, with_terms


def union_labels(
    labels: Tensor,
    plan: MixPlan,
    *,
    other: Tensor | None = None,
    num_classes: int | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Mixes labels into targets that have every class of the sample and of its partner: max(y, y[partner]), of those
    whose label weight is not 0. So one that is not mixed keeps its own, and of a plan with `terms` all of them count.

    Tags say what is heard in a recording, not how loud: a mix of two has those of both. (PANNs, Kong et al. 2020, and
    AST, Gong et al. 2021, weigh AudioSet's tags by λ, as `mix_labels` does.) A loss with such targets, of labels 0 and
    1, is mix_binary_cross_entropy(..., target_threshold=0), which builds no (B, K) tensor.

    Args:
        labels: (B,) integer classes in [0, num_classes), or (B, K) multi-hot or soft labels, as in `mix_labels`.
        plan: a plan for B samples, on any device.
        other: (N,) or (N, K): as in `mix_labels`.
        num_classes: K; may be None for (B, K) labels.
        label_smoothing: ε in [0, 1]: y becomes (1-ε)·y + ε/K before.

    Returns:
        (B, K) on the device of the labels: float32, or the labels' own dtype if they are floating point.

    Raises:
        TypeError, ValueError: as `mix_labels`.
    """
    if subclasses.has_type(labels):
        options: dict[str, Any] = {"other": other, "num_classes": num_classes, "label_smoothing": label_smoothing}
        return subclasses.like(union_labels(subclasses.plain(labels), plan, **options), labels)
    if num_classes is not None:
        num_classes = checks.integer("num_classes", num_classes, 1)
    classes = checks.dense_labels(labels, num_classes)
    label_smoothing = checks.number("label_smoothing", label_smoothing, 0.0, 1.0)
    same_batch("labels", labels, plan, other=other)
    y, terms = with_terms("labels", labels, plan, other)
    if y.ndim == 1:
        in_range(y, classes)
        y = (y.long().unsqueeze(1) == torch.arange(classes, device=y.device)).float()
    y = y if y.is_floating_point() else y.float()
    if label_smoothing:
        y = y * (1.0 - label_smoothing) + label_smoothing / classes
    found = None
    for partner, weight in zip(*(t.unbind(1) for t in terms), strict=True):
        of_term = torch.where(per_sample(weight, y) != 0, y[moved(partner, y.device)], 0.0)
        found = of_term if found is None else torch.maximum(found, of_term)
    assert found is not None
    return found
