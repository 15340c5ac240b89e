"""Methods that paste crops of partners: the whole partner resized into a box (ResizeMix), and a crop of each of several
partners in a part of the image (RICAP, Mosaic)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from fusedmix import checks
from fusedmix.arguments import Patches, Terms
from fusedmix.draws import Request
from fusedmix.fourier import draw_of
from fusedmix.given import boxes_of
from fusedmix.masks.family import beside, quotient
from fusedmix.methods import Families, Method, Resize
from fusedmix.one_method import OneMethod
from fusedmix.options import BatchOptions, spelled_out
from fusedmix.partners import further
from fusedmix.philox import Stream, below, symmetric_beta, uniform, words
from fusedmix.plan import MixPlan

__all__ = ["RICAP", "Mosaic", "ResizeMix"]

_RESIZES = {"nearest": Resize.NEAREST, "bilinear": Resize.LINEAR}


class _Pasting(OneMethod):
    """A method whose plans paste crops. The sampler draws partners, and λ = 0 for a sample that is mixed."""

    _formulas: ClassVar = dict.fromkeys(("released", "paper"), Method.MIXUP)
    _refines = True
    _gathers = True
    _holds: ClassVar[Families]  # the masks that its plans have
    _resize: Resize = Resize.NEAREST
    lam_range = None

    def __init__(self, options: Any) -> None:
        super().__init__(options, lam=0.0)
        self._families, self._constant = self._holds, False


class _Resizing(_Pasting):
    """A method whose crops take another size."""

    @property
    def resize(self) -> str:
        """How crops are resized. May be changed between steps."""
        return next(name for name, resize in _RESIZES.items() if resize == self._resize)

    @resize.setter
    def resize(self, value: Literal["nearest", "bilinear"]) -> None:
        self.__dict__["_resize"] = _resize(value)


@spelled_out
class ResizeMix(_Resizing):
    """ResizeMix: a box of τ times the sides of the image, around a random pixel and clipped to the image, with the
    whole partner in it, resized; label weight 1 - area of the box (Qin et al., "ResizeMix: Mixing Data with Preserved
    Object Information and True Labels", 2020).

    τ ~ U(scope). Such a batch is a new one: it cannot be mixed in place, because other samples need the whole image. A
    λ that is given to sample() takes the place of τ = √(1-λ).

    Args:
        scope: (low, high), 0 <= low <= high <= 1: between which τ is drawn.
        resize: "nearest", as in the authors' code, or "bilinear" (both as torch.nn.functional.interpolate has them,
            without an anti-aliasing filter).
        **options: see `Options`.
    """

    _holds = Families.CUTS
    _scope: tuple[float, float]

    def __init__(
        self,
        *,
        scope: tuple[float, float] = (0.1, 0.8),
        resize: Literal["nearest", "bilinear"] = "nearest",
        **options: Unpack[BatchOptions],
    ) -> None:
        self.__dict__.update(_scope=_scope(scope), _resize=_resize(resize))
        super().__init__(options)

    @property
    def scope(self) -> tuple[float, float]:
        """Between which τ is drawn. May be changed between steps."""
        return self._scope

    @scope.setter
    def scope(self, value: tuple[float, float]) -> None:
        self.__dict__["_scope"] = _scope(value)

    def _refine(self, plan: MixPlan, request: Request, seed: Tensor, extra: Any) -> MixPlan:
        index = _draws(plan, request)
        calls = torch.arange(2, device=index.device)  # both in one evaluation
        drawn = words(seed, index.unsqueeze(1), Stream.PASTE, calls)
        low, high = self._scope
        tau = low + (high - low) * uniform(*(word[:, 0] for word in drawn[:2]))
        lam = plan.lam.double()
        tau = torch.where(lam == 0.0, tau, 0.0) if request.lam is None else (1.0 - lam).clamp_min(0.0).sqrt()
        boxes = _around(tau, [word[:, 1] for word in drawn], plan.size)
        d = len(plan.size)
        masks, area = boxes_of(boxes[:, :d], boxes[:, d:], plan.size, outer=1.0)
        whole = beside(boxes, (*[0] * d, *plan.size)).expand_as(boxes)
        return replace(
            plan,
            lam=(1.0 - tau.square()).float(),
            weight=1.0 - area,
            masks=masks,
            patches=Patches(plan.partner[:, None], boxes[:, None].int(), whole[:, None].int()),
            resize=self._resize,
        )

    def _describe(self) -> dict[str, Any]:
        return {"scope": self.scope, "resize": self.resize, **super()._describe()}


def _scope(scope: Any) -> tuple[float, float]:
    return checks.interval("scope", scope, or_none=False)


def _resize(resize: Any) -> Resize:
    return _RESIZES[checks.choice("resize", resize, tuple(_RESIZES), {"linear": "bilinear"})]


class _Patchwork(_Pasting):
    """A method that cuts the image along each of its d sides into 2^d parts, and has a crop in each: of the sample
    itself in the first, of a partner in every other one. Their labels are the terms of the plan."""

    _holds = Families.BOXES
    _binary = True  # Each pixel is of one image.

    def _check_lam(self, lam: Any, batch_size: int) -> Tensor | None:
        if lam is not None:
            raise ValueError(
                f"lam must be None for {type(self).__name__}, whose cuts say how much is mixed, but got {lam!r}."
            )
        return None

    def _cuts(self, seed: Tensor, index: Tensor, sides: Tensor) -> Tensor:
        """(B, d): where the second part of each side begins, for draws (B,)."""
        raise NotImplementedError

    def _crops(
        self, seed: Tensor, index: Tensor, sides: Tensor, behind: Tensor, length: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(B, 2^d, d), twice: where the crops begin and how long they are, for parts of some length (B, 2^d, d), which
        are the second of a side or not, behind (2^d, d)."""
        raise NotImplementedError

    def _refine(self, plan: MixPlan, request: Request, seed: Tensor, extra: Any) -> MixPlan:
        index, d = _draws(plan, request), len(plan.size)
        parts = torch.arange(1 << d, device=index.device).unsqueeze(1)
        mixed, sides = plan.lam == 0.0, beside(index, plan.size)
        behind = (parts >> torch.arange(d - 1, -1, -1, device=index.device)) & 1
        cuts = torch.where(mixed[:, None], self._cuts(seed, index, sides), sides).unsqueeze(1)
        first, stop = cuts * behind, torch.where(behind == 1, sides, cuts)
        begin, length = self._crops(seed, index, sides, behind, stop - first)
        begin, length = (torch.where(mixed[:, None, None], x, y) for x, y in ((begin, 0), (length, stop - first)))
        own = torch.arange(plan.batch_size, device=index.device).unsqueeze(1)
        partner = torch.cat((own, further(plan.partner, plan.pairing, seed, len(parts) - 1)), dim=1)
        weight = quotient((stop - first).prod(2).double(), math.prod(plan.size))
        return replace(
            plan,
            lam=weight[:, 0].float(),
            weight=weight[:, 0].contiguous(),
            masks=boxes_of(first[:, 0], stop[:, 0], plan.size, outer=0.0)[0],
            families=Families.BOXES,
            patches=Patches(
                partner, torch.cat((first, stop), dim=2).int(), torch.cat((begin, begin + length), dim=2).int()
            ),
            resize=self._resize,
            terms=Terms(partner, weight),
        )


@spelled_out
class RICAP(_Patchwork):
    """RICAP: four images patched together, each with a random crop of the size of its part; label weights are the areas
    of the parts (Takahashi, Matsubara, Uehara, "Data Augmentation Using Random Image Cropping and Patching for Deep
    CNNs", ACML 2018).

    The image is cut along each of its d sides at round(S·b), b ~ Beta(β, β), into 2^d parts, four of an image (H, W).
    The first part has a crop of the sample itself, the others one of each of 2^d - 1 partners. Their labels are the
    terms of the plan. Such a batch is a new one: it cannot be mixed in place.

    The first partner is that of `pairing`, the next one is the partner of that partner, and so on. With
    pairing="random" each is from a permutation of its own; with pairing="flip" the others are the samples before it.

    Args:
        beta: β > 0. The authors took .3.
        **options: see `Options`.
    """

    _beta: float

    def __init__(self, *, beta: float = 0.3, **options: Unpack[BatchOptions]) -> None:
        self.__dict__["_beta"] = _beta(beta)
        super().__init__(options)

    @property
    def beta(self) -> float:
        """β of the places of the cuts. May be changed between steps."""
        return self._beta

    @beta.setter
    def beta(self, value: float) -> None:
        self.__dict__["_beta"] = _beta(value)

    def _cuts(self, seed: Tensor, index: Tensor, sides: Tensor) -> Tensor:
        alpha, d = torch.full((), self._beta, dtype=torch.float64, device=index.device), len(sides)
        shares = [symmetric_beta(seed, index * d + axis, alpha, Stream.CUT) for axis in range(d)]
        return (torch.stack(shares, dim=1) * sides).round().long()

    def _crops(
        self, seed: Tensor, index: Tensor, sides: Tensor, behind: Tensor, length: Tensor
    ) -> tuple[Tensor, Tensor]:
        parts = torch.arange(len(behind), device=index.device)
        drawn = torch.stack(words(seed, index.unsqueeze(1), Stream.CROP, parts), dim=2)
        return below(drawn[:, :, : len(sides)], sides - length + 1), length

    def _describe(self) -> dict[str, Any]:
        return {"beta": self.beta, **super()._describe()}


def _beta(beta: Any) -> float:
    return checks.number("beta", beta, 0.0, open_low=True)


@spelled_out
class Mosaic(_Resizing, _Patchwork):
    """Mosaic: four images around a random centre, each with the corner that lies there and as much of the rest as its
    part has room for; label weights are the areas of the parts (Bochkovskiy, Wang, Liao, "YOLOv4: Optimal Speed and
    Accuracy of Object Detection", 2020, arXiv:2004.10934). Of an image with d sides there are 2^d parts.

    The centre is a uniform pixel between two shares of each side. The part at the top left has the bottom right corner
    of the sample itself, the others the opposite corners of three partners, all at one scale. If a crop would be longer
    than its image along a side, the whole side is shown, at a larger scale. `mix_boxes` takes boxes along. Such a batch
    is a new one: it cannot be mixed in place. The partners are found as those of `RICAP`.

    Darknet, the code of YOLOv4, cuts the image as this does, but shows the middle of images that it has cropped before.
    In ultralytics and YOLOv5 the centre is between ¼ and ¾ of a canvas of twice the image's size, grey where no image
    reaches, of which a random affine map then makes one of the image's size, at a scale between ½ and 1½. Here the
    parts fill the image: there is no canvas, nothing is grey, and nothing is translated, rotated or sheared.

    Args:
        centre: (low, high), 0 <= low <= high <= 1: between which shares of each side the centre is. Darknet has
            (.2, .8).
        scale: (low, high), 0 <= low <= high: between which the size of what is shown is drawn, as a multiple of its
            own. (1, 1): crops are copied.
        resize: how it takes that size, "bilinear" or "nearest", as in `ResizeMix`.
        **options: see `Options`. per="sample" draws a centre and a scale for every image.
    """

    _centre: tuple[float, float]
    _scale: tuple[float, float]

    def __init__(
        self,
        *,
        centre: tuple[float, float] = (0.2, 0.8),
        scale: tuple[float, float] = (0.5, 1.5),
        resize: Literal["nearest", "bilinear"] = "bilinear",
        **options: Unpack[BatchOptions],
    ) -> None:
        self.__dict__.update(_centre=_centre(centre), _scale=_scale(scale), _resize=_resize(resize))
        super().__init__(options)

    @property
    def centre(self) -> tuple[float, float]:
        """Between which shares of each side the centre is. May be changed between steps."""
        return self._centre

    @centre.setter
    def centre(self, value: tuple[float, float]) -> None:
        self.__dict__["_centre"] = _centre(value)

    @property
    def scale(self) -> tuple[float, float]:
        """Between which the scale is drawn. May be changed between steps."""
        return self._scale

    @scale.setter
    def scale(self, value: tuple[float, float]) -> None:
        self.__dict__["_scale"] = _scale(value)

    def _cuts(self, seed: Tensor, index: Tensor, sides: Tensor) -> Tensor:
        low, high = ((sides.double() * share).round().long() for share in self._centre)
        drawn = words(seed, index, Stream.PASTE, 1)[: len(sides)]
        return low + below(torch.stack(drawn[::-1], dim=1), high - low + 1)

    def _crops(
        self, seed: Tensor, index: Tensor, sides: Tensor, behind: Tensor, length: Tensor
    ) -> tuple[Tensor, Tensor]:
        low, high = self._scale
        drawn = low + (high - low) * uniform(*words(seed, index, Stream.PASTE, 0)[:2])
        least = (length.double() / sides).amax(2, keepdim=True)
        scale = torch.maximum(drawn[:, None, None], least)
        shown = torch.where(length > 0, torch.minimum((length / scale).round().long().clamp_min(1), sides), 0)
        return torch.where(behind == 1, 0, sides - shown), shown

    def _describe(self) -> dict[str, Any]:
        return {"centre": self.centre, "scale": self.scale, "resize": self.resize, **super()._describe()}


def _centre(centre: Any) -> tuple[float, float]:
    return checks.interval("centre", centre, or_none=False)


def _scale(scale: Any) -> tuple[float, float]:
    return checks.interval("scale", scale, 0.0, math.inf, or_none=False)


def _draws(plan: MixPlan, request: Request) -> Tensor:
    """(B,) int64: which draw each sample takes its numbers from."""
    index = torch.arange(plan.batch_size, device=plan.device)
    return draw_of(index, request.per, plan.batch_size)


def _around(share: Tensor, drawn: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """(B, 2d) int64: boxes of so many of each side, rounded down to an even number of pixels, around pixels that are
    drawn by 32-bit words along the last, the second to last and the third to last side, and clipped to the image."""
    sides = beside(share, size)
    half = (share.unsqueeze(1) * sides).long() // 2
    centre = below(torch.stack(tuple(drawn[: len(size)])[::-1], dim=1), sides)
    return torch.cat(((centre - half).clamp_min(0), torch.minimum(centre + half, sides)), dim=1)
