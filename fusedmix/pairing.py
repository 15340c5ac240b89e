"""Partners to be given to a plan, found by what the samples are."""

from __future__ import annotations

import torch
from torch import Tensor

from fusedmix import checks, step
from fusedmix.backends.reference import has_float64
from fusedmix.draws import moved
from fusedmix.ops import GeneratorHandle
from fusedmix.options import check_generator
from fusedmix.philox import Stream, uniform, words
from fusedmix.subclasses import plain

_ONE = 1 << 40  # the share of a partner at distance 0: shares are integers, whose sums are the same on every device


def pairing_by_distance(y: Tensor, bandwidth: float, *, generator: torch.Generator | None = None) -> Tensor:
    """Partners whose targets are near: sample j is that of sample i with a probability proportional to
    exp(-|y_i - y_j|²/(2·bandwidth²)) (Yao, Wang, Zhang, Zou, Finn, "C-Mixup: Improving Generalization in Regression",
    NeurIPS 2022).

    Each sample draws its partner for itself, as in the authors' code. So several may have the same one, and a sample
    may be its own. Give them to `sample(..., partner=)` of a module or to `MixPlan.from_parts`; such a plan mixes out
    of place. The GPU is not waited for.

    Args:
        y: (B,) or (B, D) targets: real numbers, finite.
        bandwidth: h > 0, in the unit of the targets. The larger it is, the less distances count.
        generator: where the seed of the draws comes from; None: torch's default generator. One seed gives the same
            partners on every device.

    Returns:
        (B,) int64 in [0, B), on the device of y.

    Raises:
        TypeError, ValueError: an argument is of the wrong type, shape or range (that targets are finite is checked on
            the CPU, and elsewhere only with FUSEDMIX_CHECK_PLANS=1); or there is a generator inside torch.compile.
    """
    y = plain(checks.tensor("y", y)).detach()
    if y.ndim not in (1, 2) or y.dtype not in (*checks.FLOATING_DTYPES, *checks.INTEGER_DTYPES):
        raise ValueError(
            "y must be real numbers of shape (batch_size,) or (batch_size, numbers of a target), but got "
            f"{checks.names([y.dtype])} of shape {tuple(y.shape)}."
        )
    bandwidth = checks.number("bandwidth", bandwidth, 0.0, open_low=True)
    if checks.readable(y) and not y.isfinite().all():
        raise ValueError("y must be finite everywhere, but holds infinities or NaN.")
    check_generator("generator", generator, "device")
    if generator is not None and torch.compiler.is_compiling():
        raise ValueError("generator must be None inside torch.compile, which cannot put one into a graph.")

    batch_size, device = y.shape[0], y.device
    y = (y if has_float64(device) else y.cpu()).double().reshape(batch_size, y.shape[1] if y.ndim == 2 else 1)
    seed = moved(step.drawn_seed(None if generator is None else GeneratorHandle(generator), y.device), y.device)
    distance = torch.cdist(y, y, compute_mode="donot_use_mm_for_euclid_dist") / bandwidth
    shares = ((-0.5 * distance.square()).exp() * _ONE).round().long()
    edges, total = shares.cumsum(1), shares.sum(1, keepdim=True)
    _, _, high, low = words(seed, torch.arange(batch_size, device=y.device), Stream.PARTNER)
    drawn = torch.minimum((uniform(high, low).unsqueeze(1) * total).long(), total - 1)
    return torch.searchsorted(edges, drawn, right=True).squeeze(1).clamp_max(batch_size - 1).to(device)
