"""Methods that cut out of the partner where it matters: SaliencyMix, Attentive CutMix, SnapMix.

The sampler draws λ, the partners and whatever else CutMix or GridMix have; where the boxes and cells are then follows
from the importance maps, on the device of the plan, which nothing waits for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from fusedmix import checks, grids
from fusedmix.arguments import Patches, Terms
from fusedmix.draws import Request
from fusedmix.fourier import draw_of
from fusedmix.given import boxes_of
from fusedmix.importance import Importance, ImportanceMethod, Shares, at_cells, peak
from fusedmix.masks import grid
from fusedmix.masks.box import root
from fusedmix.masks.family import geometry
from fusedmix.methods import Column, Kind, Method, Per, Resize
from fusedmix.one_method import BetaMethod
from fusedmix.options import Options, spelled_out
from fusedmix.philox import Stream, below, symmetric_beta, words
from fusedmix.plan import MixPlan
from fusedmix.saliency import spectral_saliency

Box = tuple[Tensor, Tensor]  # the first pixels along each side and those behind the last, (B, d) int64


def _around(centre: Sequence[Tensor], lam: Tensor, size: tuple[int, ...]) -> Box:
    """CutMix's boxes around centres, (B,) along each side, clipped to the images."""
    share = root(1.0 - lam.double(), len(size))
    first, stop = [], []
    for place, side in zip(centre, size, strict=True):
        half = (side * share).floor().long() // 2
        first.append((place - half).clamp_min(0))
        stop.append((place + half).clamp_max(side))
    return torch.stack(first, 1), torch.stack(stop, 1)


@spelled_out
class SaliencyMix(ImportanceMethod, BetaMethod):
    """SaliencyMix: CutMix's box around the most salient pixel of the partner, clipped to the image; label weight
    1 - area of the box (Uddin et al., "SaliencyMix: A Saliency Guided Data Augmentation Strategy for Better
    Regularization", ICLR 2021).

    Each box is around the peak of its own partner; `per` only says how many λ are drawn. The authors mix half of their
    batches: p=0.5; the default is 1, as for all modules.

    Args:
        alpha: α > 0 of λ ~ Beta(α, α).
        importance: a function from images to maps (B, h, w). The peak of a map is the pixel of its largest value, of
            equal ones the first, once the map has the size of the image. None: `spectral_saliency`, which takes less
            time than `fine_grained_saliency`, the authors' choice.
        **options: see `Options`. finish must be None.
    """

    _formulas = {"released": Method.CUTMIX, "paper": Method.CUTMIX}  # noqa: RUF012
    _usual_importance = spectral_saliency

    def __init__(self, *, alpha: float = 1.0, importance: Importance | None = None, **options: Unpack[Options]) -> None:
        super().__init__(options, importance=importance, alpha=alpha)

    def _by_maps(self, plan: MixPlan, request: Request, seed: Tensor, maps: Tensor, labels: Tensor | None) -> MixPlan:
        centre = [place[plan.partner] for place in peak(maps, plan.size)]
        masks, share = boxes_of(*_around(centre, plan.lam, plan.size), plan.size, outer=1.0)
        return replace(plan, masks=masks, weight=1.0 - share, per=Per.SAMPLE)


@spelled_out
class AttentiveCutMix(ImportanceMethod):
    """Attentive CutMix: the most important cells of a grid are the partner's, the others the sample's; label weight =
    the share of the sample's pixels (Walawalkar et al., "Attentive CutMix: An Enhanced Data Augmentation Approach for
    Deep Learning Based Image Classification", ICASSP 2020).

    Only the partners are drawn. λ is 1 - top/cells; from a λ that is given to sample() follows how many cells are the
    partner's, the nearest whole number to 1-λ of all.

    Args:
        cells: how many cells there are along each spatial dim of the images, as (height, width): at least 1 and at most
            the side; fixed at construction.
        top: how many cells are the partner's: those with the largest means of its map, of equal ones the first. At
            least 1 and at most all; fixed at construction.
        importance: a function from images to maps (B, h, w), such as `class_activation_map(model, layer)`. (The authors
            take the last features of a trained network.) None: maps are given with the batch.
        **options: see `Options`. lam_range does nothing, and finish must be None.

    Raises:
        ValueError: the images have another number of spatial dims than `cells`, or a side of fewer pixels than cells.
    """

    _formulas = {"released": Method.GRIDMIX, "paper": Method.GRIDMIX}  # noqa: RUF012

    def __init__(
        self,
        *,
        cells: Sequence[int] = (7, 7),
        top: int = 6,
        importance: Importance | None = None,
        **options: Unpack[Options],
    ) -> None:
        counts = checks.sides("cells", cells)
        every = math.prod(counts)
        if every > grid.MOST:
            raise ValueError(f"cells must be fewer than 2^31 in all, but got {counts}, which are {every}.")
        self.__dict__["_top"] = checks.integer("top", top, 1, every)
        z, y, x = (0,) * (3 - len(counts)) + counts
        super().__init__(options, importance=importance, lam=1.0 - top / every, cells_z=z, cells_y=y, cells_x=x)

    @property
    def cells(self) -> tuple[int, ...]:
        """How many cells there are along each spatial dim."""
        return self._grids[0]

    @property
    def top(self) -> int:
        """How many of the cells are the partner's."""
        return self.__dict__["_top"]

    def _by_maps(self, plan: MixPlan, request: Request, seed: Tensor, maps: Tensor, labels: Tensor | None) -> MixPlan:
        of_partner = at_cells(maps, self.cells).flatten(1)[plan.partner]
        order = of_partner.argsort(dim=1, descending=True, stable=True)
        place = torch.arange(order.shape[1], device=order.device).expand_as(order)
        rank = torch.empty_like(order).scatter_(1, order, place)
        number = ((1.0 - plan.lam.double()) * order.shape[1]).round().long()
        made, pixels = grids.given(rank >= number.unsqueeze(1), self.cells, plan.size)
        return replace(plan, masks=made.records, weight=made.weight, pixels=pixels, per=Per.SAMPLE)

    def _describe(self) -> dict[str, Any]:
        return {"cells": self.cells, "top": self.top, **super()._describe()}


@spelled_out
class SnapMix(ImportanceMethod, BetaMethod):
    """SnapMix: a box of the partner, resized, in another box of the sample; two label weights, by how much of what
    matters in each image is in its box (Huang, Wang, Tao, "SnapMix: Semantically Proportional Mixing for Augmenting
    Fine-grained Data", AAAI 2021).

    Box A in the sample and box B in the partner are CutMix's, each of a λ ~ Beta(α, α) and around a random pixel of its
    own. B is resized to A, corners on corners (bilinear). The least value of a map is subtracted from it, and it is
    divided by its sum. The label of the sample then weighs 1 - Σ of its map in A, and that of the partner weighs Σ of
    the partner's map in B. So the two need not sum to 1 (`MixPlan.terms`). Where a map is constant it says nothing, and
    the weights are 1 - area of A and area of A, as shares of the image. Where A or B has no pixel, nothing is mixed.

    variant="released": where sample and partner have the same label, each of the two weights is the sum of both, so
    that this label counts twice; the labels have to be known then, in the batch or in sample(..., labels=). "paper":
    the weights are as said.

    It mixes out of place. Segmentation label maps go along by the nearest pixel.

    Args:
        alpha: α > 0 of both λ. (The authors took 5, and mixed every batch or half of them.)
        importance: a function from images to maps (B, h, w), such as `class_activation_map(model, layer)`, whose maps
            the authors take, of the label of each image. None: maps are given with the batch.
        **options: see `Options`. lam_range clamps both λ; a λ that is given to sample() is that of A. finish must be
            None, and inplace False.
    """

    _gathers = True
    _formulas = {"released": Method.CUTMIX, "paper": Method.CUTMIX}  # noqa: RUF012

    def __init__(self, *, alpha: float = 5.0, importance: Importance | None = None, **options: Unpack[Options]) -> None:
        super().__init__(options, importance=importance, alpha=alpha)

    def _by_maps(self, plan: MixPlan, request: Request, seed: Tensor, maps: Tensor, labels: Tensor | None) -> MixPlan:
        size, partner = plan.size, plan.partner
        box, crop = self._boxes(plan), self._crops(request, seed)
        mixed = (_pixels(box) > 0) & (_pixels(crop) > 0)
        box, crop = _where(mixed, box), _where(mixed, crop)
        masks, area = boxes_of(*box, size, outer=1.0)

        each, shares = torch.arange(len(partner), device=partner.device), Shares(maps, size)
        own, lent = 1.0 - shares.inside(*box, of=each), shares.inside(*crop, of=partner)
        if labels is not None and self.variant == "released":
            same = labels == labels[partner]
            same = same if same.ndim == 1 else same.all(1)
            own, lent = torch.where(same, own + lent, own), torch.where(same, own + lent, lent)
        own = torch.where(own.isnan(), 1.0 - area, own)
        lent = torch.where(lent.isnan(), area, lent)
        weight = torch.stack((torch.where(mixed, own, 1.0), torch.where(mixed, lent, 0.0)), 1)
        return replace(
            plan,
            masks=masks,
            weight=1.0 - area,
            terms=Terms(torch.stack((each, partner), 1), weight),
            patches=Patches(partner.unsqueeze(1), *(torch.cat(of, 1).int().unsqueeze(1) for of in (box, crop))),
            resize=Resize.LINEAR_CORNERS,
        )

    def _boxes(self, plan: MixPlan) -> Box:
        """A, as the sampler has drawn it: empty where nothing is to be mixed."""
        found, d = geometry(plan.masks).long(), len(plan.size)
        cut = (plan.masks[:, :1] == int(Kind.BOX)).long()
        return found[:, 3 - d : 3] * cut, found[:, 6 - d :] * cut

    def _crops(self, request: Request, seed: Tensor) -> Box:
        """B, of a λ and a centre of its own for each draw."""
        index = draw_of(torch.arange(request.batch_size, device=seed.device), request.per, request.batch_size)
        alpha, low, high = request.spec[0, [Column.ALPHA, Column.LAM_MIN, Column.LAM_MAX]].unbind()
        lam = symmetric_beta(seed, index, torch.where(alpha > 0, alpha, 1.0), Stream.CROP_LAM)
        lam = torch.minimum(torch.maximum(lam, low), high)
        drawn = words(seed, index, Stream.CROP_CENTRE)
        centre = [below(word, side) for word, side in zip(drawn, reversed(request.size), strict=False)]
        return _around(centre[::-1], lam.float(), request.size)


def _pixels(box: Box) -> Tensor:
    first, stop = box
    return (stop - first).prod(1)


def _where(condition: Tensor, box: Box) -> Box:
    """The boxes of samples that it holds for, empty ones for the others."""
    first, stop = (torch.where(condition.unsqueeze(1), x, 0) for x in box)
    return first, stop
