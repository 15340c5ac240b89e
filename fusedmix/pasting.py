"""Methods that paste crops of partners: the whole partner resized into a box (ResizeMix), and a crop of each of several
partners in a part of the image (RICAP)."""

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

__all__ = ["RICAP", "ResizeMix"]

_RESIZES = {"nearest": Resize.NEAREST, "bilinear": Resize.LINEAR}


class _Pasting(OneMethod):
    """A method whose plans paste crops. The sampler draws partners, and λ = 0 for a sample that is mixed."""

    _formulas: ClassVar = dict.fromkeys(("released", "paper"), Method.MIXUP)
    _refines = True
    _gathers = True
    _holds: ClassVar[Families]  # the masks that its plans have
    lam_range = None

    def __init__(self, options: Any) -> None:
        super().__init__(options, lam=0.0)
        self._families, self._constant = self._holds, False


@spelled_out
class ResizeMix(_Pasting):
    """ResizeMix: a box of τ times the sides of the image, around a random pixel and clipped to the image, with the
    whole partner in it, resized; label weight 1 - area of the box (Qin et al., "ResizeMix: Mixing Data with Preserved
    Object Information and True Labels", 2020).

    τ ~ U(scope). Such a batch is a new one: it cannot be mixed in place, because others need whole samples. A λ that is
    given to sample() takes the place of τ = √(1-λ).

    Args:
        scope: (low, high), 0 <= low <= high <= 1: between which τ is drawn.
        resize: "nearest", as in the authors' code, or "bilinear" (both as torch.nn.functional.interpolate has them,
            without an anti-aliasing filter).
        **options: see `Options`.
    """

    _holds = Families.CUTS
    _scope: tuple[float, float]
    _resize: Resize

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

    @property
    def resize(self) -> str:
        """How partners are resized. May be changed between steps."""
        return next(name for name, resize in _RESIZES.items() if resize == self._resize)

    @resize.setter
    def resize(self, value: Literal["nearest", "bilinear"]) -> None:
        self.__dict__["_resize"] = _resize(value)

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


@spelled_out
class RICAP(_Pasting):
    """RICAP: four images patched together, each with a random crop of the size of its part; label weights are the areas
    of the parts (Takahashi, Matsubara, Uehara, "Data Augmentation Using Random Image Cropping and Patching for Deep
    CNNs", ACML 2018).

    The image is cut along each of its d sides at round(S·b), b ~ Beta(β, β), into 2^d parts, four of an image (H, W).
    The first part has a crop of the sample itself, the others one of each of 2^d - 1 partners. Their labels are the
    terms of the plan. Such a batch is a new one: it cannot be mixed in place.

    The partners are those of `pairing`, and the partners of these. With pairing="random" each is from a permutation of
    its own; with pairing="flip" the others are the samples before it.

    Args:
        beta: β > 0. The authors took .3.
        **options: see `Options`.
    """

    _holds = Families.BOXES
    _binary = True  # Each pixel is of one image.
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

    def _check_lam(self, lam: Any, batch_size: int) -> Tensor | None:
        if lam is not None:
            raise ValueError(f"lam must be None for RICAP, whose cuts say how much is mixed, but got {lam!r}.")
        return None

    def _refine(self, plan: MixPlan, request: Request, seed: Tensor, extra: Any) -> MixPlan:
        index, d = _draws(plan, request), len(plan.size)
        mixed = (plan.lam == 0.0).unsqueeze(1)
        sides = beside(index, plan.size)
        alpha = torch.full((), self._beta, dtype=torch.float64, device=index.device)
        shares = torch.stack([symmetric_beta(seed, index * d + axis, alpha, Stream.CUT) for axis in range(d)], dim=1)
        cuts = torch.where(mixed, (shares * sides).round().long(), sides)
        boxes, crops, parts = [], [], 1 << d
        drawn = torch.stack(
            words(seed, index.unsqueeze(1), Stream.CROP, torch.arange(parts, device=index.device)), dim=2
        )
        for part in range(parts):
            behind = [(part >> (d - 1 - axis)) & 1 for axis in range(d)]  # along each side, whether it is the second
            first = torch.stack([cut * second for cut, second in zip(cuts.unbind(1), behind, strict=True)], dim=1)
            stops = zip(cuts.unbind(1), sides.expand_as(cuts).unbind(1), behind, strict=True)
            stop = torch.stack([side if second else cut for cut, side, second in stops], dim=1)
            start = torch.where(mixed, below(drawn[:, part, :d], sides - (stop - first) + 1), 0)
            boxes.append(torch.cat((first, stop), dim=1))
            crops.append(torch.cat((start, start + stop - first), dim=1))
        own = torch.arange(plan.batch_size, device=index.device).unsqueeze(1)
        partner = torch.cat((own, further(plan.partner, plan.pairing, seed, parts - 1)), dim=1)
        pixels = torch.stack([(box[:, d:] - box[:, :d]).prod(1) for box in boxes], dim=1)
        weight = quotient(pixels.double(), math.prod(plan.size))
        return replace(
            plan,
            lam=weight[:, 0].float(),
            weight=weight[:, 0].contiguous(),
            masks=boxes_of(boxes[0][:, :d], boxes[0][:, d:], plan.size, outer=0.0)[0],
            families=Families.BOXES,
            patches=Patches(partner, torch.stack(boxes, 1).int(), torch.stack(crops, 1).int()),
            terms=Terms(partner, weight),
        )

    def _describe(self) -> dict[str, Any]:
        return {"beta": self.beta, **super()._describe()}


def _beta(beta: Any) -> float:
    return checks.number("beta", beta, 0.0, open_low=True)


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
