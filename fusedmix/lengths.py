"""Masks within the valid parts of samples that were padded to one length."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedmix import checks
from fusedmix.draws import moved
from fusedmix.given import part
from fusedmix.masks.family import beside, geometry, kind, packed, padded, value
from fusedmix.masks.fourier import LEVELS
from fusedmix.methods import Families, Kind, Per
from fusedmix.plan import MixPlan
from fusedmix.subclasses import plain


def checked_lengths(name: str, lengths: Any, batch_size: int, longest: int) -> Tensor:
    """(B,) int64: how many of the `longest` places along the last dim of the masks each sample has.

    Raises:
        TypeError, ValueError: they are none. What a tensor on a GPU holds is checked only with FUSEDMIX_CHECK_PLANS=1,
            and otherwise clamped.
    """
    lengths = plain(checks.tensor(name, lengths))
    if lengths.shape != (batch_size,) or lengths.dtype not in checks.INTEGER_DTYPES:
        raise ValueError(
            f"{name} must be integers of shape ({batch_size},), how much of each sample is no padding, but got "
            f"{checks.names([lengths.dtype])} of shape {tuple(lengths.shape)}."
        )
    lengths = lengths.long()
    if checks.readable(lengths) and not ((lengths >= 1) & (lengths <= longest)).all():
        raise ValueError(f"{name} must be in [1, {longest}], the side of the masks, but got {lengths.tolist()}.")
    return lengths.clamp(1, longest)


def within(plan: MixPlan, own: Tensor, lent: Tensor) -> MixPlan:
    """The plan for samples of which n = own, (B,), places along the last dim of the masks are valid, and m of them in
    the partner as well, m = min(n, lent): at place t < m the mask is M(⌊t·L/m⌋), M being that of the plan, for the
    whole side L; at all others it is 1. The label weight is the mean of the mask over the n places, but stays 1 where
    it is 1 whatever the mask is (SamplePairing).

    Constants and boxes become boxes. Of other masks a bit is stored for each pixel, or a level if they are not binary.
    """
    own, lent = moved(own, plan.device), moved(lent, plan.device)
    of_boxes = not int(plan.families) & ~int(Families.CUTS | Families.CONSTANTS)
    made = (_boxes if of_boxes else _stored)(plan, torch.minimum(own, lent))
    weight = 1.0 - made.taken / (own * math.prod(plan.size[:-1])).double()
    return replace(
        plan,
        masks=made.records,
        families=made.families,
        pixels=made.pixels,
        weight=torch.where(plan.weight == 1.0, 1.0, weight),
        per=Per.SAMPLE,
    )


class _Made(NamedTuple):
    """Masks within the valid parts."""

    records: Tensor  # (B, WORDS) int32
    taken: Tensor  # (B,) float64: how many pixels the partner has
    families: Families
    pixels: Tensor | None = None


def _boxes(plan: MixPlan, both: Tensor) -> _Made:
    """Of masks that are constant, or 0 in a box and 1 around it."""
    sides = beside(both, padded(plan.size)).repeat(len(both), 1)
    constant = kind(plan.masks) == Kind.CONSTANT
    found, everywhere = geometry(plan.masks).long(), constant.unsqueeze(1)
    first, stop = torch.where(everywhere, 0, found[:, :3]), torch.where(everywhere, sides, found[:, 3:])
    # ⌊t·L/m⌋ >= c where t >= c·m/L.
    first[:, 2], stop[:, 2] = (-(-x[:, 2] * both // plan.size[-1]) for x in (first, stop))
    inside = torch.where(constant, value(plan.masks)[:, 0], 0.0)
    records = packed(
        torch.full_like(both, Kind.BOX),
        torch.cat((first, stop), dim=1),
        torch.stack((torch.ones_like(inside), inside), dim=1),
    )
    records = torch.where((inside == 1.0).unsqueeze(1), plan.masks, records)  # A sample that is left as it is.
    taken = (1.0 - inside.double()) * (stop - first).prod(1)
    return _Made(records, taken, Families.CUTS if plan.families == Families.CUTS else Families.BOXES)


def _stored(plan: MixPlan, both: Tensor) -> _Made:
    """Of any masks in [0, 1]."""
    side = plan.size[-1]
    place = torch.arange(side, device=both.device)
    source = (place * side // both.unsqueeze(1)).clamp_max(side - 1)
    along = (len(both), *[1] * (len(plan.size) - 1), side)
    masks = plan.mask()
    masks = masks.gather(-1, source.reshape(along).expand_as(masks))
    masks = torch.where((place < both.unsqueeze(1)).reshape(along), masks, 1.0)
    made = part("masks", masks != 0 if plan.binary else masks, None)
    # They are counted in whole pixels, or in levels of them, and so exactly.
    unit = 1 if plan.binary else LEVELS
    every = unit * math.prod(plan.size)
    taken = (every - (made.weight * every).round()) / unit
    return _Made(made.records, taken, made.families, made.pixels)
