"""SpectralMix: masks that are Gaussian fields around λ, of a spectrum that one chooses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from fusedmix import checks, spectra
from fusedmix.draws import Request, Source
from fusedmix.fourier import draw_of, rows
from fusedmix.masks.family import quotient
from fusedmix.masks.fourier import LEVELS, given
from fusedmix.methods import Families, Method
from fusedmix.one_method import BetaMethod
from fusedmix.options import Options, spelled_out
from fusedmix.plan import MixPlan
from fusedmix.sample_tree import Sample


@spelled_out
class SpectralMix(BetaMethod):
    """SpectralMix: M = λ + σG, G a stationary Gaussian field of variance 1 with a given spectrum, not thresholded as
    FMix's is: the masks of which Park et al. ("A Unified Analysis of Mixed Sample Data Augmentation", NeurIPS 2022)
    leave the design to future work. Label weight = the realised mean of the mask.

    σ = contrast·√(λ(1-λ)): contrast 1 has the variance of masks of 0 and 1 whose mean is λ, and a sample with λ = 1 is
    left as it is. `fusedmix.analysis.spectrum_for` finds spectrum and contrast for the regularisation that you want.

    Masks are stored with 16 bits for each pixel: clamped ones to 1/131070, others to as small a share of their range.
    The fields are drawn by Philox on the device of the plan, whatever the backend is. Devices may differ by a level.

    Args:
        spectrum: the power at each frequency, up to a factor, in one of three forms. A number δ in [0, 100]: f^-2δ, as
            of FMix, with no frequency 0, and up to FMix's default cut-off. A callable from frequencies f = |k| > 0 in
            cycles per pixel, float64 on the CPU, to powers, asked once for each size of images; with no frequency 0.
            Or a tensor (*period) of 1 to 3 dims in the order of torch.fft.fftn: the power at every frequency, 0
            included, of masks that repeat with that period, of which images of sides up to it show a part. Fixed at
            construction.
        alpha: α > 0 of λ ~ Beta(α, α).
        contrast: σ in units of √(λ(1-λ)), >= 0.
        clamp: whether M is clamped to [0, 1]. If not, images are extrapolated where M is outside, and the label weight
            is λ, unless there is a frequency 0. Such batches are mixed in three passes and out of place; inplace,
            finish and segmentation masks are refused.
        **options: see `Options`.
    """

    _formulas = {"released": Method.MIXUP, "paper": Method.MIXUP}  # noqa: RUF012 (whose λ the sampler draws)
    _in_sets = _takes_lengths = False
    _refines = _from_elsewhere = True
    _field: spectra.Field
    _contrast: float
    _clamp: bool

    def __init__(
        self,
        *,
        spectrum: float | Tensor | Callable[[Tensor], Tensor] = 3.0,
        alpha: float = 1.0,
        contrast: float = 0.5,
        clamp: bool = True,
        **options: Unpack[Options],
    ) -> None:
        self.__dict__["_field"] = spectra.Field(spectra.checked("spectrum", spectrum))
        self.__dict__["_contrast"] = checks.number("contrast", contrast, 0.0)
        self.__dict__["_clamp"] = checks.boolean("clamp", clamp)
        super().__init__(options, alpha=alpha)
        # The sampler draws λ, and knows nothing of the masks.
        self._families, self._constant, self._stored = Families.LEVELS, False, True

    @property
    def spectrum(self) -> float | Tensor | Callable[[Tensor], Tensor]:
        """The power at each frequency, as it was given; of a tensor a copy."""
        spectrum = self._field.spectrum
        return spectrum.clone() if isinstance(spectrum, Tensor) else spectrum

    @property
    def contrast(self) -> float:
        """σ/√(λ(1-λ)). May be changed between steps."""
        return self._contrast

    @contrast.setter
    def contrast(self, value: float) -> None:
        self.__dict__["_contrast"] = checks.number("contrast", value, 0.0)

    @property
    def clamp(self) -> bool:
        """Whether masks are clamped to [0, 1]. May be changed between steps."""
        return self._clamp

    @clamp.setter
    def clamp(self, value: bool) -> None:
        _check_wide(checks.boolean("clamp", value), self._options)
        self.__dict__["_clamp"] = value

    def _describe(self) -> dict[str, Any]:
        spectrum: Any = self._field.spectrum
        if isinstance(spectrum, Tensor):
            spectrum = f"<powers {tuple(spectrum.shape)}>"
        clamp = {} if self.clamp else {"clamp": False}
        return {"spectrum": spectrum, "contrast": self.contrast, **clamp, **super()._describe()}

    def _take(self, given: Mapping[str, Any]) -> None:
        _check_wide(self._clamp, given)
        super()._take(given)

    def _check_size(self, size: tuple[int, ...]) -> None:
        super()._check_size(size)
        self._field.check(size)

    def _check_images(self, parsed: Sample) -> tuple[int, ...]:
        if parsed.masks and not self._clamp:
            raise ValueError("clamp must be True for a sample with segmentation masks, but got False.")
        return super()._check_images(parsed)

    def _with_pixels(self, plan: MixPlan, spec: Tensor, source: Source, where: torch.device) -> MixPlan:
        return plan  # No operator makes them, but `_refine`.

    def _refine(self, plan: MixPlan, request: Request, seed: Tensor, extra: Any) -> MixPlan:
        n, per = rows(plan.per, plan.batch_size), plan.per
        index = draw_of(torch.arange(n, device=plan.device), self._per, plan.batch_size)
        field = self._field.draw(seed, index, plan.size).flatten(1)
        lam = plan.lam[:n].unsqueeze(1)
        mask = lam + self._contrast * (lam * (1.0 - lam)).sqrt() * field
        low, high = torch.zeros_like(lam), torch.ones_like(lam)
        if not self._clamp:
            low, high = mask.aminmax(dim=1, keepdim=True)
        share = (mask - low) / torch.where(high > low, high - low, 1.0)
        levels = (share.clamp(0.0, 1.0) * LEVELS).round().int()
        weight = quotient(levels.sum(1).double(), float(LEVELS * levels.shape[1]))
        sample = draw_of(torch.arange(plan.batch_size, device=plan.device), per, plan.batch_size)
        span = None
        if not self._clamp:
            low, high = low.double().squeeze(1), high.double().squeeze(1)
            weight = low + (high - low) * weight
            span = torch.stack((low, high), dim=1).float()[sample]
        return replace(plan, masks=given(plan.lam), weight=weight[sample], pixels=levels.to(torch.int16), span=span)


def _check_wide(clamp: bool, options: Mapping[str, Any]) -> None:
    """Raises where masks outside [0, 1] cannot be."""
    for name in ("inplace", "finish"):
        if not clamp and options.get(name):
            raise ValueError(
                f"clamp must be True with {name}={options[name]!r}, for no kernel has masks outside [0, 1], but got "
                "False."
            )
