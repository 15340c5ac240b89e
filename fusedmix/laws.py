"""Laws of λ beside Beta(α, α), also outside [0, 1] (`MixUp(lam_law=)`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from fusedmix import checks
from fusedmix.fourier import draw_of
from fusedmix.philox import Stream, uniform, words
from fusedmix.subclasses import plain

LamLaw: TypeAlias = tuple[Literal["uniform", "normal"], float, float] | Callable[[Tensor], Tensor]

# From uniform numbers in (0, 1), and the two numbers that follow the name, to λ.
_QUANTILES: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "uniform": lambda u, low, high: low + (high - low) * u,
    "normal": lambda u, mean, deviation: mean + deviation * torch.special.ndtri(u),
}
_FLOAT32_MAX = torch.finfo(torch.float32).max


def checked(name: str, x: Any) -> LamLaw:
    """A law, if it is one."""
    if callable(x):
        return x
    if not isinstance(x, Sequence) or isinstance(x, str) or len(x) != 3:
        raise TypeError(
            f'{name} must be ("uniform", low, high), ("normal", mean, deviation), a callable or None, but got {x!r}.'
        )
    law = checks.choice(f"{name}[0]", x[0], tuple(_QUANTILES))
    first = checks.number(f"{name}[1]", x[1], -_FLOAT32_MAX, _FLOAT32_MAX)
    second = checks.number(f"{name}[2]", x[2], 0.0 if law == "normal" else -_FLOAT32_MAX, _FLOAT32_MAX)
    if law == "uniform" and first > second:
        raise ValueError(f"{name} must have low <= high, but got {x!r}.")
    return law, first, second  # type: ignore[return-value]


def draw(law: LamLaw, seed: Tensor, batch_size: int, per: int, device: torch.device) -> Tensor:
    """(B,) float32: λ of each sample of a batch, on a device.

    Args:
        seed: () int64, on the device or on the CPU.
        per: how many draws the batch gets.

    Raises:
        ValueError: a callable returns something else than as many finite numbers as it is given.
    """
    index = draw_of(torch.arange(batch_size, device=device), per, batch_size)
    high, low, _, _ = words(seed, index, Stream.LAW)
    u = uniform(high, low)
    if not callable(law):
        name, *numbers = law
        return _QUANTILES[name](u, *numbers).float()
    lam = law(u)
    if not isinstance(lam, Tensor) or lam.shape != u.shape or lam.dtype not in checks.FLOATING_DTYPES:
        what = f"{checks.names([lam.dtype])} of shape {tuple(lam.shape)}" if isinstance(lam, Tensor) else repr(lam)
        raise ValueError(
            f"lam_law must return a floating-point tensor of the {tuple(u.shape)} of the numbers that it is given, but "
            f"returned {what}."
        )
    lam = plain(lam).detach().to(device, torch.float32)
    if checks.readable(lam) and not lam.isfinite().all():
        raise ValueError("lam_law must return numbers that are finite in float32, but returned others.")
    return lam
