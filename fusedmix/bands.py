"""SpecMix: bands of frequencies and of time of a spectrogram, exchanged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from fusedmix import checks, given
from fusedmix.draws import Request, Source
from fusedmix.fourier import draw_of, rows
from fusedmix.methods import Families, Method
from fusedmix.one_method import OneMethod
from fusedmix.options import BatchOptions, spelled_out
from fusedmix.philox import Stream, below, uniform, words
from fusedmix.plan import MixPlan

MOST_BANDS = 3  # along each axis


@spelled_out
class SpecMix(OneMethod):
    """SpecMix: bands of frequencies and of time are the partner's, all else the sample's; label weight = the realised
    mean of the mask (Kim, Han, Ko, "SpecMix: A Mixed Sample Data Augmentation Method for Training with Time-Frequency
    Domain Features", Interspeech 2021, arXiv:2108.03020).

    Spectrograms are (B, C, frequencies, time). How many bands there are is uniform from the least to the most of
    `frequency_bands`, and of `time_bands`. A band has ⌊width·side⌋ frequencies or frames, and is anywhere inside with
    equal probability; bands may overlap. With one band along one axis, such as frequency_bands=0 and time_bands=(1, 1),
    it is a cut along that axis whose size does not depend on a λ.

    The authors' code draws 0 to 2 bands along each axis, as the defaults do, of .7 of the side for acoustic scenes, of
    .1 for sound events, and of a random share for speech enhancement: width=(0, 1).

    Only the bands and the partners are drawn; `plan.lam` is the label weight. A plan stores a bit for each pixel, and
    mixes in place, too.

    Args:
        width: of a band, as a share of the side, in [0, 1]; or (low, high), between which it is drawn uniformly for
            each band.
        frequency_bands: how many bands there are along the frequencies: (least, most), 0 <= least <= most <= 3, or the
            most, the least being 0.
        time_bands: the same along the time.
        **options: see `Options`.

    Raises:
        ValueError: the images have not two spatial dims.
    """

    _formulas: ClassVar = dict.fromkeys(("released", "paper"), Method.MIXUP)  # which draws partners
    _refines = _from_elsewhere = True
    _in_sets = False
    lam_range = None
    _width: tuple[float, float]
    _bands: tuple[tuple[int, int], tuple[int, int]]

    def __init__(
        self,
        *,
        width: float | tuple[float, float] = 0.3,
        frequency_bands: int | tuple[int, int] = 2,
        time_bands: int | tuple[int, int] = 2,
        **options: Unpack[BatchOptions],
    ) -> None:
        bands = _counts("frequency_bands", frequency_bands), _counts("time_bands", time_bands)
        self.__dict__.update(_width=_widths("width", width), _bands=bands)
        super().__init__(options, lam=0.0)  # of a sample that is mixed
        self._families, self._constant, self._stored = Families.STORED, False, True

    @property
    def width(self) -> float | tuple[float, float]:
        """Of a band, as a share of the side. May be changed between steps."""
        low, high = self._width
        return low if low == high else self._width

    @width.setter
    def width(self, value: float | tuple[float, float]) -> None:
        self.__dict__["_width"] = _widths("width", value)

    @property
    def frequency_bands(self) -> tuple[int, int]:
        """The least and the most bands along the frequencies. May be changed between steps."""
        return self._bands[0]

    @frequency_bands.setter
    def frequency_bands(self, value: int | tuple[int, int]) -> None:
        self.__dict__["_bands"] = (_counts("frequency_bands", value), self._bands[1])

    @property
    def time_bands(self) -> tuple[int, int]:
        """The least and the most bands along the time. May be changed between steps."""
        return self._bands[1]

    @time_bands.setter
    def time_bands(self, value: int | tuple[int, int]) -> None:
        self.__dict__["_bands"] = (self._bands[0], _counts("time_bands", value))

    def _check_lam(self, lam: Any, batch_size: int) -> Tensor | None:
        if lam is not None:
            raise ValueError(f"lam must be None for SpecMix, whose λ is what its bands leave, but got {lam!r}.")
        return None

    def _check_size(self, size: tuple[int, ...]) -> None:
        super()._check_size(size)
        if len(size) != 2:
            raise ValueError(
                "Spectrograms must have two spatial sides for SpecMix, frequencies and time, but got the spatial size "
                f"{size}. Of (batch_size, frequencies, time) axes=(1, 2) says so."
            )

    def _with_pixels(self, plan: MixPlan, spec: Tensor, source: Source, where: torch.device) -> MixPlan:
        return plan  # No operator makes them, but `_refine`.

    def _refine(self, plan: MixPlan, request: Request, seed: Tensor, extra: Any) -> MixPlan:
        n = rows(plan.per, plan.batch_size)
        index = draw_of(torch.arange(n, device=plan.device), request.per, plan.batch_size)
        frequency, time = (self._covered(axis, side, seed, index) for axis, side in enumerate(plan.size))
        own = ~(frequency.unsqueeze(2) | time.unsqueeze(1)) | (plan.lam[:n] == 1.0)[:, None, None]
        made = given.part("masks", own, None)
        sample = draw_of(torch.arange(plan.batch_size, device=plan.device), plan.per, plan.batch_size)
        weight = made.weight[sample]
        return replace(
            plan,
            lam=weight.float(),
            weight=weight,
            masks=made.records[sample],
            families=made.families,
            pixels=made.pixels,
        )

    def _covered(self, axis: int, side: int, seed: Tensor, index: Tensor) -> Tensor:
        """(n, side) bool: what the bands along an axis cover."""
        (least, most), (low, high) = self._bands[axis], self._width
        count = least + below(words(seed, index, Stream.BANDS)[axis], most - least + 1)
        place = torch.arange(side, device=index.device)
        covered = torch.zeros((len(index), side), dtype=torch.bool, device=index.device)
        for band in range(most):
            of_place, *of_width, _ = words(seed, index, Stream.BANDS, 1 + MOST_BANDS * axis + band)
            length = ((low + (high - low) * uniform(*of_width)) * side).long()
            first = below(of_place, side - length + 1)
            at = place - first.unsqueeze(1)
            covered |= (at >= 0) & (at < length.unsqueeze(1)) & (band < count).unsqueeze(1)
        return covered

    def _describe(self) -> dict[str, Any]:
        own = {"width": self.width, "frequency_bands": self.frequency_bands, "time_bands": self.time_bands}
        return {**own, **super()._describe()}


def _counts(name: str, bands: Any) -> tuple[int, int]:
    """The least and the most bands along an axis."""
    if isinstance(bands, Sequence) and not isinstance(bands, str):
        if len(bands) != 2:
            raise ValueError(f"{name} must be the most bands, or a pair (least, most), but got {bands!r}.")
        least = checks.integer(f"{name}[0]", bands[0], 0, MOST_BANDS)
        return least, checks.integer(f"{name}[1]", bands[1], least, MOST_BANDS)
    return 0, checks.integer(name, bands, 0, MOST_BANDS)


def _widths(name: str, width: Any) -> tuple[float, float]:
    if isinstance(width, Sequence) and not isinstance(width, str):
        return checks.interval(name, width, or_none=False)
    share = checks.number(name, width, 0.0, 1.0)
    return share, share
