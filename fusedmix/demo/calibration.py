"""How far a network's confidence is from how often it is right, before and after temperature scaling."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_RANGE = 0.05, 20.0  # of temperatures; without it a network that is right about every image would ask for 0


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> float:
    """The mean of −log p(label) in nats, of (N, K) logits and (N,) int64 labels: ≥ 0, lower is better."""
    return float(F.cross_entropy(logits.double(), labels))


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal bins (m−1)/M < confidence ≤ m/M, weighted by their size.

    Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, eq. 3.
    `probabilities` is (N, K), `labels` (N,) int64; the result lies in [0, 1].
    """
    confidence, predicted = probabilities.double().max(dim=1)
    correct = (predicted == labels).double()
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    # size/N · |accuracy − confidence| of a bin is |Σ (correct − confidence)|/N: empty bins need no special case
    gaps = torch.zeros(bins, dtype=torch.float64, device=labels.device)
    gaps.index_add_(0, bin_of, correct - confidence)
    return float(gaps.abs().sum() / len(labels))


def fitted_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T in [0.05, 20] for which `logits / T` have the least negative log likelihood: above 1 it takes confidence
    away, below 1 it adds some.

    Guo et al. 2017, section 4.2. `logits` is (N, K), `labels` (N,) int64, of images that the network was not trained
    on. The likelihood is concave in 1/T, so its slope has one zero, which is found by halving the interval of log T.
    """
    logits = logits.double()
    of_label = logits.gather(1, labels[:, None]).squeeze(1)
    low, high = _RANGE
    for _ in range(50):
        middle = math.sqrt(low * high)
        expected = ((logits / middle).softmax(dim=1) * logits).sum(dim=1)
        too_hot = float((expected - of_label).mean()) < 0  # more confidence would be more likely
        low, high = (low, middle) if too_hot else (middle, high)
    return math.sqrt(low * high)
