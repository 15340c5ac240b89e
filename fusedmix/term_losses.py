"""The losses of labels that are sums of terms, by the operators for labels of two."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedmix.arguments import LossArguments, compute_dtype
from fusedmix.backends.reference import above
from fusedmix.draws import moved
from fusedmix.methods import Pairing, Per, Reduction

_NONE = -1  # the class that the operators ignore


class _Classes(NamedTuple):
    """The classes of the terms of each row, all (B, T)."""

    at: Tensor  # int64, in 0..K-1: 0 for a class that is not
    share: Tensor  # in the compute dtype: the label weights, 0 of an ignored class, NaN of one outside 0..K-1
    summed: Tensor  # the shares of equal classes together
    first: Tensor  # bool: none of the terms before has the same class


class OfTerms:
    """The operators of a backend for the losses of hard labels that are sums of terms, unreduced: in their arguments
    partners and weights are (B, T), where those of the backend are (B,).

    An operator is asked for one class of each row, c, as if it were the whole label. So it reads the logits once, and
    writes their gradient once. What the terms change is gathered, and written over the gradient: T numbers of each row.
    """

    def __init__(self, operators: Any) -> None:
        self._operators = operators

    def cross_entropy(self, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Losses and statistics of the rows, as an operator gives them, and 1."""
        of, (smoothing, ignore_index, _) = _gathered(args)
        row = _classes(of, ignore_index)
        counts = (row.share != 0).any(1)
        # With a smoothing of 1 the loss is that of the flat part alone. Without it the statistics are all that is used.
        whole, weights = (1.0, of.class_weight) if smoothing else (0.0, None)
        asked = _whole(of, torch.where(counts, row.at[:, 0], _NONE), weights)
        flat, statistics, scale = self._operators.cross_entropy(*asked, whole, _NONE, int(Reduction.NONE))
        top, rate = statistics.split(1, 1)
        total = _mean_weight(of, weights) if smoothing else 1.0
        logarithm = (total / rate).log()  # of the sum of exponentials, relative to the largest logit
        parts = (1.0 - smoothing) * row.share * _of_class(of.class_weight, row.at)
        losses = torch.where(parts == 0, 0.0, parts * (logarithm - (_logits_at(of, row) - top))).sum(1)
        mass = row.share.sum(1)
        if smoothing:
            losses = losses + torch.where(mass == 0, 0.0, smoothing * mass * flat)
        made = parts.sum(1) + smoothing * mass * _mean_weight(of, of.class_weight)
        found = torch.cat([top, torch.where(made == 0, 0.0, made / total).unsqueeze(1) * rate], 1)
        return torch.where(counts, losses, 0.0), torch.where(counts.unsqueeze(1), found, 0.0), scale

    def cross_entropy_backward(self, grad: Tensor, *args: Any) -> Tensor:
        of, (statistics, scale, smoothing, ignore_index) = _gathered(args)
        row = _classes(of, ignore_index)
        counts = (row.share != 0).any(1)
        top, rate = statistics.split(1, 1)
        mass = row.share.sum(1, keepdim=True)
        g = (grad * scale).reshape(-1, 1).expand_as(mass)
        # The operator takes c·ε/K off with the weight g·of, and is told the rate that comes out right with it. Without
        # smoothing it takes nothing off but at c. (Weights of both signs may cancel, but not those of their classes.)
        share = torch.where((mass == 0) & (rate != 0), 1e-20, mass) if smoothing else torch.ones_like(mass)
        told = torch.cat([top, torch.where(rate == 0, 0.0, rate / share)], 1)
        weights = of.class_weight if smoothing else None
        asked = _whole(of, torch.where(counts, row.at[:, 0], _NONE), weights)
        one = torch.ones_like(scale)
        slope = self._operators.cross_entropy_backward((g * share).squeeze(1), *asked, told, one, smoothing, _NONE)
        target = (1.0 - smoothing) * row.summed + smoothing / of.logits.shape[1] * mass
        exact = rate * (_logits_at(of, row) - top).exp() - target * _of_class(of.class_weight, row.at)
        exact = torch.where(counts.unsqueeze(1), g * exact, 0.0)
        return slope.scatter_(1, row.at, exact.to(slope.dtype))

    def binary_cross_entropy(self, *args: Any) -> Tensor:
        """The losses of the rows."""
        of, (pos_weight, smoothing, threshold, reduction) = _gathered(args)
        row = _classes(of, None)
        z = _logits_at(of, row)
        # The largest of the logits: so where the loss of a whole label at c is infinite, that of the terms is, too.
        whole = row.at.gather(1, torch.where(row.share != 0, z, -torch.inf).argmax(1, keepdim=True))
        asked = _whole(of, whole.squeeze(1), of.class_weight)
        base = self._operators.binary_cross_entropy(*asked, pos_weight, smoothing, threshold, reduction)
        mass = row.share.sum(1, keepdim=True)
        wanted, given = _targets(of, row, smoothing, threshold), _whole_targets(of, row, whole, smoothing, threshold)
        more = torch.where(row.first, wanted - mass * given, 0.0) * _of_class(of.class_weight, row.at)
        positive, negative = _of_class(pos_weight, row.at) * softplus(-z), softplus(z)
        parts = torch.where(more == 0, 0.0, more * (positive - negative))
        parts = torch.where(parts == -torch.inf, 0.0, parts)  # It is taken from an infinity then, which stays.
        return torch.where(mass == 0, 0.0, mass * base.unsqueeze(1)).squeeze(1) + parts.sum(1)

    def binary_cross_entropy_backward(self, grad: Tensor, *args: Any) -> Tensor:
        of, (pos_weight, smoothing, threshold, reduction) = _gathered(args)
        row = _classes(of, None)
        mass = row.share.sum(1, keepdim=True)
        g = grad.reshape(-1, 1).expand_as(mass)
        asked = _whole(of, row.at[:, 0], of.class_weight)
        options = (pos_weight, smoothing, threshold, reduction)
        slope = self._operators.binary_cross_entropy_backward((g * mass).squeeze(1), *asked, *options)
        z, t = _logits_at(of, row), _targets(of, row, smoothing, threshold)
        exact = (mass - t) * z.sigmoid() - _of_class(pos_weight, row.at) * t * (-z).sigmoid()
        exact = g * exact * _of_class(of.class_weight, row.at)
        return slope.scatter_(1, row.at, exact.to(slope.dtype))


def softplus(z: Tensor) -> Tensor:
    """log(1 + exp(z)), and what it tends to."""
    return z.clamp_min(0) + (-z.abs()).exp().log1p()


def _gathered(args: tuple[Any, ...]) -> tuple[LossArguments, tuple[Any, ...]]:
    """A row of arguments as a record of what losses share, and the rest."""
    shared = len(LossArguments._fields)
    return LossArguments(*args[:shared]), args[shared:]


def _whole(of: LossArguments, classes: Tensor, class_weight: Tensor | None) -> LossArguments:
    """The same of one class of each row, which is the whole of its label."""
    each = torch.arange(len(classes), device=classes.device)
    weight = torch.ones(len(classes), dtype=torch.float64, device=classes.device)
    return LossArguments(of.logits, classes, each, weight, int(Pairing.RANDOM), int(Per.SAMPLE), class_weight)


def _classes(of: LossArguments, ignore_index: int | None) -> _Classes:
    labels, num_classes = of.labels, of.logits.shape[1]
    classes = labels[moved(of.partner, labels.device)]
    weight = moved(of.weight.to(compute_dtype(of.logits)), labels.device)
    valid = (classes >= 0) & (classes < num_classes)
    share = torch.where(valid | (weight == 0), weight, torch.nan)
    if ignore_index is not None:
        share = torch.where(classes == ignore_index, 0.0, share)
    at = torch.where(valid, classes, 0)
    same = at.unsqueeze(2) == at.unsqueeze(1)
    summed = torch.where(same, share.unsqueeze(1), 0.0).sum(2)
    return _Classes(at, share, summed, ~same.tril(-1).any(2))


def _logits_at(of: LossArguments, row: _Classes) -> Tensor:
    return of.logits.gather(1, row.at).to(compute_dtype(of.logits))


def _of_class(weights: Tensor | None, classes: Tensor) -> Tensor | float:
    return 1.0 if weights is None else weights[classes]


def _mean_weight(of: LossArguments, class_weight: Tensor | None) -> Tensor | float:
    return 1.0 if class_weight is None else class_weight.mean()


def _targets(of: LossArguments, row: _Classes, smoothing: float, threshold: float | None) -> Tensor:
    """(B, T) targets of the classes of the terms, as large as the label weights are together."""
    mass = row.share.sum(1, keepdim=True)
    t = (1.0 - smoothing) * row.summed + smoothing / of.logits.shape[1] * mass
    return t if threshold is None else above(t, mass, threshold)


def _whole_targets(
    of: LossArguments, row: _Classes, whole: Tensor, smoothing: float, threshold: float | None
) -> Tensor:
    """The same of (B, 1) classes that are whole labels."""
    t = (row.at == whole).to(row.share.dtype) * (1.0 - smoothing) + smoothing / of.logits.shape[1]
    return t if threshold is None else (t > threshold).to(t.dtype)
