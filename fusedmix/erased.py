"""Methods without a partner: parts of an image become a constant, and labels stay as they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from fusedmix import checks, dims, given, sample_tree
from fusedmix.draws import Request, Source
from fusedmix.fourier import draw_of, rows
from fusedmix.masks.family import beside
from fusedmix.methods import Families, Method
from fusedmix.mixing import check_fill
from fusedmix.one_method import OneMethod
from fusedmix.options import FillOptions, spelled_out
from fusedmix.philox import Stream, below, words
from fusedmix.plan import MixPlan
from fusedmix.subclasses import plain

__all__ = ["Cutout", "GridMask"]

_NOT_BOTH = "Cutout takes either length, in pixels, or ratio, a share of each side"


def _fill(name: str, fill: Any) -> tuple[float, ...]:
    if isinstance(fill, Sequence) and not isinstance(fill, str):
        if not fill:
            raise ValueError(f"{name} must be a number, or one for each channel, but got {fill!r}.")
        return tuple(checks.number(f"{name}[{i}]", value) for i, value in enumerate(fill))
    return (checks.number(name, fill),)


class _Filling(OneMethod):
    """A method that fills with a constant. The sampler draws λ = 0 for a sample that is changed, and 1 for another."""

    _formulas: ClassVar = dict.fromkeys(("released", "paper"), Method.MIXUP)
    _refines = True
    _takes_lengths = False
    _holds: ClassVar[Families]  # the masks that its plans have
    _fill: tuple[float, ...]
    lam_range = None

    def __init__(self, options: Mapping[str, Any], fill: float | Sequence[float]) -> None:
        self.__dict__["_fill"] = _fill("fill", fill)
        super().__init__(options, lam=0.0)
        self._families, self._constant, self._stored = self._holds, False, self._holds.stored

    @property
    def fill(self) -> float | tuple[float, ...]:
        """What stands in place of what is cut out. May be changed between steps."""
        return self._fill if len(self._fill) > 1 else self._fill[0]

    @fill.setter
    def fill(self, value: float | Sequence[float]) -> None:
        self.__dict__["_fill"] = _fill("fill", value)

    def _check_lam(self, lam: Any, batch_size: int) -> Tensor | None:
        if lam is not None:
            raise ValueError(f"lam must be None for {type(self).__name__}, which mixes nothing, but got {lam!r}.")
        return None

    def _check_images(self, parsed: sample_tree.Sample) -> tuple[int, ...]:
        size = super()._check_images(parsed)
        for i in parsed.images:
            check_fill(dims.last(plain(parsed.leaves[i]), self.axes), self._fill)
        return size

    def _filled(self, plan: MixPlan, made: given.Given) -> MixPlan:
        """The plan with masks that are made."""
        return replace(
            plan,
            lam=made.weight.float(),
            weight=torch.ones_like(made.weight),
            masks=made.records,
            families=made.families,
            pixels=made.pixels,
            fill=self._fill,
        )

    def _describe(self) -> dict[str, Any]:
        return {**({"fill": self.fill} if self._fill != (0.0,) else {}), **super()._describe()}


@spelled_out
class Cutout(_Filling):
    """Cutout: a square around a random pixel is cut out, clipped to the image; labels stay as they are (DeVries and
    Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017).

    Its plans are those of `CutMix`, with a constant in place of the partner and label weights of 1. It mixes in place,
    too. Label maps stay as they are. A sample keeps `plan.lam` of its pixels.

    Args:
        length: the side of the square in pixels, >= 1, whatever the size of the image; of signals and volumes of an
            interval or a cube. The authors took 16 on CIFAR-10, 8 on CIFAR-100 and 20 on SVHN. Their code makes an odd
            length one pixel shorter.
        ratio: in place of length, the share of each side of the image, in (0, 1], which is rounded down to pixels.
        fill: what is put in its place: a number, or one for each channel of images (B, C, ...). 0 is the mean of
            normalised images. Of images of integers one of their dtype.
        **options: see `Options`.
    """

    _holds = Families.CUTS
    _length: int | None
    _ratio: float | None

    def __init__(
        self,
        *,
        length: int | None = None,
        ratio: float | None = None,
        fill: float | Sequence[float] = 0.0,
        **options: Unpack[FillOptions],
    ) -> None:
        if (length is None) == (ratio is None):
            raise ValueError(f"{_NOT_BOTH}, but got length={length!r} and ratio={ratio!r}.")
        self.__dict__["_length"] = None if length is None else checks.integer("length", length, 1)
        self.__dict__["_ratio"] = None if ratio is None else checks.number("ratio", ratio, 0.0, 1.0, open_low=True)
        super().__init__(options, fill)

    @property
    def length(self) -> int | None:
        """The side in pixels; None: it is a share of the image's. May be changed between steps, if it is not None."""
        return self._length

    @length.setter
    def length(self, value: int) -> None:
        if self._length is None:
            raise ValueError(f"length must be None where ratio is given: {_NOT_BOTH}.")
        self.__dict__["_length"] = checks.integer("length", value, 1)

    @property
    def ratio(self) -> float | None:
        """The share of each side; None: it is `length`. May be changed between steps, if it is not None."""
        return self._ratio

    @ratio.setter
    def ratio(self, value: float) -> None:
        if self._ratio is None:
            raise ValueError(f"ratio must be None where length is given: {_NOT_BOTH}.")
        self.__dict__["_ratio"] = checks.number("ratio", value, 0.0, 1.0, open_low=True)

    def _refine(self, plan: MixPlan, request: Request, seed: Tensor, extra: Any) -> MixPlan:
        size = plan.size
        index = draw_of(torch.arange(plan.batch_size, device=plan.device), request.per, plan.batch_size)
        pixels = [int(self._ratio * side) if self._ratio else self._length or 0 for side in size]
        sides = beside(index, size)
        # A longer side than twice the image's covers it from any pixel, as does one that long.
        length = beside(index, [min(n, 2 * side) for n, side in zip(pixels, size, strict=True)])
        centre = below(torch.stack(words(seed, index, Stream.CUTOUT)[: len(size)][::-1], dim=1), sides)
        first = centre - length // 2
        stop = torch.where((plan.lam == 0.0).unsqueeze(1), torch.minimum(first + length, sides), 0)
        first = torch.minimum(first.clamp_min(0), stop)
        return self._filled(plan, given.part("boxes", torch.cat((first, stop), dim=1), size))

    def _describe(self) -> dict[str, Any]:
        own = {"ratio": self.ratio} if self.length is None else {"length": self.length}
        return {**own, **super()._describe()}


_MODES = ("squares", "lines")
# The cosine and sine of each whole number of degrees: of right angles exactly, and the same on every device.
_TURNS = torch.tensor(
    [[round(f(math.radians(k)), 15) for f in (math.cos, math.sin)] for k in range(360)],
    dtype=torch.float64,
    device="cpu",
)


@spelled_out
class GridMask(_Filling):
    """GridMask: squares that stand in a regular grid are cut out; labels stay as they are (Chen, Liu, Zhao, Jia,
    "GridMask Data Augmentation", 2020).

    The grid has a period of d pixels, d ~ U{d1, ..., d2 - 1}, and begins at a random pixel of the period along each
    side. Of each period ⌊ratio·d + ½⌋ pixels are a line, and what is in no line is cut out. The grid of images (H, W)
    is turned around their centre by a whole number of degrees, drawn below `rotate`; each pixel takes what the nearest
    one of the grid has.

    The defaults are those of the authors' ImageNet training, which draws a mask for each image, per="sample", with p
    rising from 0 to .8 in 240 epochs (`fusedmix.schedules`). A plan stores a bit for each pixel, and mixes in place,
    too. Label maps stay as they are. A sample keeps `plan.lam` of its pixels.

    Args:
        d1: the shortest period in pixels, >= 1.
        d2: > d1; the longest period is d2 - 1 pixels.
        ratio: the width of a line as a share of the period, in [0, 1].
        rotate: degrees, >= 1; 1 turns no grid. A larger one needs images of two spatial sides.
        mode: "squares": what the lines leave is cut out. "lines": the lines are cut out, as in the authors' revised
            version.
        fill: what is put in its place: a number, or one for each channel of images (B, C, ...). 0 is the mean of
            normalised images. Of images of integers one of their dtype.
        **options: see `Options`.
    """

    _holds = Families.STORED
    _period: tuple[int, int]
    _ratio: float
    _rotate: int
    _mode: str

    def __init__(
        self,
        *,
        d1: int = 96,
        d2: int = 224,
        ratio: float = 0.6,
        rotate: int = 360,
        mode: Literal["squares", "lines"] = "squares",
        fill: float | Sequence[float] = 0.0,
        **options: Unpack[FillOptions],
    ) -> None:
        self.__dict__["_period"] = _period(d1, d2)
        self.__dict__["_ratio"] = checks.number("ratio", ratio, 0.0, 1.0)
        self.__dict__["_rotate"] = checks.integer("rotate", rotate, 1)
        self.__dict__["_mode"] = _mode(mode)
        super().__init__(options, fill)

    @property
    def d1(self) -> int:
        """The shortest period. May be changed between steps."""
        return self._period[0]

    @d1.setter
    def d1(self, value: int) -> None:
        self.__dict__["_period"] = _period(value, self.d2)

    @property
    def d2(self) -> int:
        """The one behind the longest period. May be changed between steps."""
        return self._period[1]

    @d2.setter
    def d2(self, value: int) -> None:
        self.__dict__["_period"] = _period(self.d1, value)

    @property
    def ratio(self) -> float:
        """The width of a line as a share of the period. May be changed between steps."""
        return self._ratio

    @ratio.setter
    def ratio(self, value: float) -> None:
        self.__dict__["_ratio"] = checks.number("ratio", value, 0.0, 1.0)

    @property
    def rotate(self) -> int:
        """Below how many degrees the turn is drawn. May be changed between steps."""
        return self._rotate

    @rotate.setter
    def rotate(self, value: int) -> None:
        self.__dict__["_rotate"] = checks.integer("rotate", value, 1)

    @property
    def mode(self) -> str:
        """What is cut out, "squares" or "lines". May be changed between steps."""
        return self._mode

    @mode.setter
    def mode(self, value: Literal["squares", "lines"]) -> None:
        self.__dict__["_mode"] = _mode(value)

    def _check_size(self, size: tuple[int, ...]) -> None:
        super()._check_size(size)
        if self._rotate > 1 and len(size) != 2:
            raise ValueError(
                f"rotate must be 1 for images of {len(size)} spatial sides, whose grids are not turned, but is "
                f"{self._rotate}."
            )

    def _with_pixels(self, plan: MixPlan, spec: Tensor, source: Source, where: torch.device) -> MixPlan:
        return plan  # No operator makes them, but `_refine`.

    def _refine(self, plan: MixPlan, request: Request, seed: Tensor, extra: Any) -> MixPlan:
        size, n = plan.size, rows(plan.per, plan.batch_size)
        index = draw_of(torch.arange(n, device=plan.device), request.per, plan.batch_size)
        of_period, of_turn, _, _ = words(seed, index, Stream.GRIDMASK)
        low, high = self._period
        period = low + below(of_period, high - low)
        line = (period * self._ratio + 0.5).long()
        begins = [below(word, period) for word in words(seed, index, Stream.GRIDMASK, 1)[: len(size)]]
        places = _turned(below(of_turn, self._rotate), size) if self._rotate > 1 else _places(size, index.device)
        lined = torch.zeros((), dtype=torch.bool, device=index.device)
        for place, begin in zip(places, reversed(begins), strict=True):
            at = (place - _over_pixels(begin, size)).remainder(_over_pixels(period, size))
            lined = lined | (at < _over_pixels(line, size))
        kept = (lined if self._mode == "squares" else ~lined) | _over_pixels(plan.lam[:n] != 0.0, size)
        made = given.part("masks", kept.expand(n, *size), None)
        sample = draw_of(torch.arange(plan.batch_size, device=plan.device), plan.per, plan.batch_size)
        return self._filled(plan, made._replace(records=made.records[sample], weight=made.weight[sample]))

    def _describe(self) -> dict[str, Any]:
        own = {"d1": self.d1, "d2": self.d2, "ratio": self.ratio, "rotate": self.rotate, "mode": self.mode}
        return {**own, **super()._describe()}


def _period(d1: Any, d2: Any) -> tuple[int, int]:
    d1 = checks.integer("d1", d1, 1, checks.LONGEST_SIDE)
    d2 = checks.integer("d2", d2, 1, checks.LONGEST_SIDE)
    if d1 >= d2:
        raise ValueError(f"d1 must be less than d2, the period being drawn from d1 to d2 - 1, but got {d1} and {d2}.")
    return d1, d2


def _mode(mode: Any) -> str:
    return checks.choice("mode", mode, _MODES)


def _over_pixels(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """(n,) beside masks (n, *size)."""
    return x.reshape(-1, *[1] * len(size))


def _places(size: tuple[int, ...], device: torch.device) -> list[Tensor]:
    """Along each side, (1, ..., side, ..., 1) int64: which pixel each is."""
    return [
        torch.arange(side, device=device).reshape(1, *[side if axis == a else 1 for a in range(len(size))])
        for axis, side in enumerate(size)
    ]


def _turned(degrees: Tensor, size: tuple[int, ...]) -> list[Tensor]:
    """Along both sides, (n, H, W) int64: which pixel of the grid stands at each, turned counterclockwise around the
    centre."""
    turns = _TURNS.to(degrees.device, non_blocking=True)[degrees % 360]
    cosine, sine = (_over_pixels(x, size) for x in turns.unbind(1))
    (y, x), (middle, centre) = _places(size, degrees.device), ((side - 1) / 2 for side in size)
    down, right = y - middle, x - centre
    return [
        (sine * right + cosine * down + (middle + 0.5)).floor().long(),
        (cosine * right - sine * down + (centre + 0.5)).floor().long(),
    ]
