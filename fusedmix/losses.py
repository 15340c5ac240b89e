"""The label loss of a mixed batch, without dense targets."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fusedmix import checks
from fusedmix.functional import mix_labels
from fusedmix.plan import MixPlan


def mix_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    plan: MixPlan,
    *,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Cross entropy with mixed labels: F.cross_entropy(logits, mix_labels(labels, plan)), no (B, K) target being built.

    With w the label weight, y and y' the classes of the sample and of its partner, and ε the label smoothing:
    logsumexp(z) - (1-ε)·(w·z[y] + (1-w)·z[y']) - ε·mean(z), in float32 at least. Differentiable in the logits.

    Args:
        logits: (B, K) float32, float16, bfloat16 or float64.
        labels: (B,) integer classes in [0, K), of any width; or (B, K) soft labels, for which the mixed labels are
            as large as they were.
        plan: the plan that mixed the batch, on any device.
        label_smoothing: ε in [0, 1].
        reduction: "mean" over the batch, "sum", or "none" for (B,).

    Returns:
        float32 (float64 for float64 logits): a scalar, or (B,).

    Raises:
        TypeError, ValueError: an argument is of the wrong type, dtype or shape; a class is outside [0, K) (on the CPU;
            on a GPU PyTorch's own assertion on the device answers, as it does in F.cross_entropy).
    """
    checks.tensor("logits", logits)
    if logits.ndim != 2 or logits.dtype not in checks.IMAGE_DTYPES[:4]:
        raise ValueError(
            f"logits must be (batch_size, num_classes) with one of the dtypes {checks.names(checks.IMAGE_DTYPES[:4])}, "
            f"but got {logits.dtype} of shape {tuple(logits.shape)}."
        )
    checks.choice("reduction", reduction, ("mean", "sum", "none"))
    label_smoothing = checks.number("label_smoothing", label_smoothing, 0.0, 1.0)
    num_classes = logits.shape[1]
    checks.labels(labels, num_classes)
    checks.same_batch("labels", labels, plan)
    checks.same_batch("logits", logits, plan)

    z = logits if logits.dtype == torch.float64 else logits.float()
    labels = labels.to(z.device)
    if labels.ndim == 2:
        targets = mix_labels(labels, plan, label_smoothing=label_smoothing).to(z.dtype)
        return F.cross_entropy(z, targets, reduction=reduction)

    checks.class_range(labels, num_classes)
    own = labels.long()
    weight = plan.weight.to(z.device)
    lent = own[plan.partner.to(z.device)]
    picked = weight.to(z.dtype) * _pick(z, own) + (1.0 - weight).to(z.dtype) * _pick(z, lent)
    loss = z.logsumexp(1) - (1.0 - label_smoothing) * picked
    if label_smoothing:
        loss = loss - label_smoothing * z.mean(1)
    return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()


def _pick(z: Tensor, index: Tensor) -> Tensor:
    return z.gather(1, index.unsqueeze(1)).squeeze(1)
