"""Between-class learning: sounds mixed by how loud they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import Tensor
from typing_extensions import Unpack

from fusedmix import checks, dims
from fusedmix.arguments import Terms
from fusedmix.draws import Request, moved
from fusedmix.methods import Method
from fusedmix.one_method import BetaMethod
from fusedmix.options import Options, spelled_out
from fusedmix.plan import MixPlan
from fusedmix.subclasses import plain

SILENCE = -80.0  # dB: no sound is quieter, and no frequency weighs less
_WEIGHTINGS = ("A", "none")


def sound_levels(
    x: Tensor, sample_rate: int, *, window: int | None = None, weighting: Literal["A", "none"] = "A"
) -> Tensor:
    """How loud sounds are: of each the loudest window, in dB, A-weighted, as Between-class learning compares them
    (Tokozume, Ushiku, Harada, "Learning from Between-class Examples for Deep Sound Recognition", ICLR 2018,
    arXiv:1711.10282, section 3.2).

    A window of N samples begins at every N/2 samples. Its level is 10·log10 Σ_f 10^(A(f)/10)·|X(f)|², X the Fourier
    transform of the window times Hann's, f its N/2+1 frequencies, and A(f) the A-weighting in dB (IEC 61672), at least
    -80. (With "none" it is 10·log10 of the mean square.) What stands behind the last whole window is not heard, and a
    sound shorter than a window is continued by zeros. No level is below -80 dB. This is what the authors' code
    computes.

    Args:
        x: (B, samples) or (B, channels, samples), floating point; of several channels the mean power counts.
        sample_rate: in Hz, >= 1.
        window: N >= 2, even. None: the power of two nearest to a tenth of a second: 2048 at 16 kHz and 4096 at
            44.1 kHz, as the authors have it.
        weighting: "A", or "none" (the authors' "RMSE").

    Returns:
        (B,) float32 in dB, on the device of x; no gradient flows through it.

    Raises:
        TypeError, ValueError: an argument is of the wrong type, shape or range.
    """
    sample_rate = checks.integer("sample_rate", sample_rate, 1)
    window = _window("window", window, sample_rate)
    checks.choice("weighting", weighting, _WEIGHTINGS)
    sounds = plain(checks.tensor("x", x)).detach()
    if sounds.ndim not in (2, 3) or not sounds.is_floating_point() or 0 in sounds.shape[1:]:
        raise ValueError(
            "x must be floating point of shape (batch_size, samples) or (batch_size, channels, samples), but got "
            f"{checks.names([sounds.dtype])} of shape {tuple(sounds.shape)}."
        )
    if not len(sounds):
        return sounds.new_zeros(0, dtype=torch.float32)
    sounds = (sounds.unsqueeze(1) if sounds.ndim == 2 else sounds).float()
    missing = max(window - sounds.shape[-1], 0)
    windows = torch.nn.functional.pad(sounds, (0, missing)).unfold(-1, window, window // 2)
    if weighting == "A":
        hann = torch.hann_window(window, device=sounds.device)
        weights = moved(_a_weights(sample_rate, window), sounds.device)
        power = torch.fft.rfft(windows * hann).abs().square() @ weights
    else:
        power = windows.square().mean(-1)
    return 10.0 * power.mean(1).amax(-1).clamp_min(10.0 ** (SILENCE / 10.0)).log10()


def _window(name: str, window: Any, sample_rate: int) -> int:
    if window is None:
        return 1 << max(round(math.log2(sample_rate / 10)), 1)
    window = checks.integer(name, window, 2)
    if window % 2:
        raise ValueError(f"{name} must be even, because a window begins at every half of one, but got {window}.")
    return window


def _a_weights(sample_rate: int, window: int) -> Tensor:
    """(window/2 + 1,) float32 on the CPU: by what the power of each frequency is multiplied."""
    f = torch.linspace(0.0, sample_rate / 2, window // 2 + 1, dtype=torch.float64, device="cpu")
    square = f.square()
    square[0] = 1.0  # as the authors', and bounded by SILENCE anyway
    falls = ((20.6, 1.0), (107.7, 0.5), (737.9, 0.5), (12194.0, 1.0))
    logs = 2.0 * math.log10(12194.0) + 2.0 * square.log10()
    for corner, order in falls:
        logs = logs - order * (square + corner**2).log10()
    return (10.0 ** ((2.0 + 20.0 * logs).clamp_min(SILENCE) / 10.0)).float()


@spelled_out
class BetweenClassMix(BetaMethod):
    """Between-class learning: two sounds mixed so that they are heard in the ratio of their labels, whatever their
    levels are, and as loud as one (Tokozume, Ushiku, Harada, "Learning from Between-class Examples for Deep Sound
    Recognition", ICLR 2018, arXiv:1711.10282, eq. 2 and 3).

    With r = λ and the levels G1 and G2 of sample and partner in dB, p = 1/(1 + 10^((G1-G2)/20)·(1-r)/r), and a mixed
    sound is (p·x1 + (1-p)·x2)/√(p² + (1-p)²), its label r·y1 + (1-r)·y2. So the two coefficients (`plan.gains`) do not
    sum to 1, and are not the label weights. It mixes out of place, in one pass.

    The authors draw r uniformly, as alpha=1 does, for each sound (per="sample") and pair different classes
    (pairing="cross_class").

    Args:
        sample_rate: of the sounds, in Hz.
        alpha: α > 0 of r ~ Beta(α, α).
        window: in samples, of `sound_levels`, as there.
        **options: see `Options`. finish must be None, and inplace False.

    Raises:
        ValueError: a batch is not (B, samples) or (B, channels, samples) of floating point.
    """

    _formulas = dict.fromkeys(("released", "paper"), Method.MIXUP)
    _gathers = _refines = True
    _in_sets = False

    def __init__(
        self, *, sample_rate: int, alpha: float = 1.0, window: int | None = None, **options: Unpack[Options]
    ) -> None:
        sample_rate = checks.integer("sample_rate", sample_rate, 1)
        self.__dict__.update(_sample_rate=sample_rate, _window=_window("window", window, sample_rate))
        super().__init__(options, alpha=alpha)

    @property
    def sample_rate(self) -> int:
        """In Hz; fixed at construction."""
        return cast(int, self.__dict__["_sample_rate"])

    @property
    def window(self) -> int:
        """Of which levels are taken, in samples; fixed at construction."""
        return cast(int, self.__dict__["_window"])

    def sample(
        self,
        batch_size: int,
        size: Sequence[int],
        *,
        levels: Tensor | None = None,
        **given: Any,
    ) -> MixPlan:
        """Draws the plan of a batch, as `MixTransform.sample` does, by the levels of its sounds.

        Args:
            batch_size: as there.
            size: (samples,).
            levels: (B,) floating point, in dB, finite: those of the sounds (`sound_levels`), or any others by which
                they are to be compared.
            **given: lam, labels, partner, device, generator and seed, as there.

        Raises:
            TypeError, ValueError: levels are missing or of the wrong type or shape; and as there.
        """
        batch_size = checks.integer("batch_size", batch_size, 0)
        if levels is None:
            raise ValueError(
                "levels must be given to sample() of BetweenClassMix, those of the sounds in dB, because a plan is "
                "drawn without sounds: levels=fusedmix.sound_levels(x, sample_rate)."
            )
        return self._sample(batch_size, size, extra=_checked_levels(levels, batch_size), **given)

    def forward(self, *inputs: Any, levels: Tensor | None = None) -> Any:  # type: ignore[override]
        """Mixes a batch, as `MixTransform.forward` does, by the levels of its sounds.

        Args:
            *inputs: as there.
            levels: as in `sample`; None: `sound_levels` of the sounds.

        Raises:
            TypeError, ValueError: as there and as `sample`.
        """
        return self._mix_batch(inputs, levels)

    def _check_size(self, size: tuple[int, ...]) -> None:
        super()._check_size(size)
        if len(size) != 1:
            raise ValueError(
                "Sounds must be (batch_size, samples) or (batch_size, channels, samples) for BetweenClassMix, but the "
                f"size of the masks is {size}."
            )

    def _plan_of(
        self, image: Tensor, size: tuple[int, ...], labels: Tensor | None, device: torch.device | None, extra: Any
    ) -> MixPlan:
        if extra is None:
            self._check_size(size)
            extra = sound_levels(dims.last(plain(image), self.axes), self.sample_rate, window=self.window)
        return self.sample(image.shape[0], size, labels=labels, device=device, levels=extra)

    def _refine(self, plan: MixPlan, request: Request, seed: Tensor, extra: Tensor) -> MixPlan:
        level, r = moved(extra, plan.device), plan.lam.double()
        # Written so that neither r = 0 nor r = 1 divides by 0: the levels are finite.
        louder = 10.0 ** ((level - level[plan.partner]) / 20.0)
        p = torch.where(r == 1.0, 1.0, r / (r + louder * (1.0 - r)))
        loudness = (p.square() + (1.0 - p).square()).sqrt()
        own = torch.arange(plan.batch_size, device=plan.device)
        return replace(
            plan,
            weight=r,
            terms=Terms(torch.stack((own, plan.partner), 1), torch.stack((r, 1.0 - r), 1)),
            gains=torch.stack((p / loudness, (1.0 - p) / loudness), 1).float(),
            blended=True,
        )

    def _describe(self) -> dict[str, Any]:
        return {"sample_rate": self.sample_rate, **super()._describe(), "window": self.window}


def _checked_levels(levels: Any, batch_size: int) -> Tensor:
    levels = plain(checks.tensor("levels", levels)).detach()
    if levels.shape != (batch_size,) or not levels.is_floating_point():
        raise ValueError(
            f"levels must be floating point of shape ({batch_size},), in dB, but got {checks.names([levels.dtype])} of "
            f"shape {tuple(levels.shape)}."
        )
    if checks.readable(levels) and not levels.isfinite().all():
        raise ValueError("levels must be finite everywhere, but hold infinities or NaN.")
    return levels.double()
