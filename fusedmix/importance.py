"""The one argument `importance=`: what of an image matters, as maps or as a function from images to maps; and the base
of the methods that take it (SaliencyMix, Attentive CutMix, SnapMix, PuzzleMix).

A map has as many spatial dims as the images and any sides. Every method brings it to the pixels or to the cells that it
asks about, by `at_pixels` or `at_cells`. Maps are constants: no gradient flows into them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedmix import checks
from fusedmix.saliency import resized
from fusedmix.subclasses import plain

# Of images to maps (B, h, w); one that has a parameter `labels` is given the labels of the batch, too.
Importance = Callable[..., Tensor]


class Extra(NamedTuple):
    """What a method finishes its plan by."""

    maps: Tensor  # (B, *sides) float32, beside the plan
    labels: Tensor | None  # (B,) or (B, K), where they were given, beside the plan


def checked_maps(name: str, x: Any, batch_size: int, size: Sequence[int], *, negative: bool) -> Tensor:
    """Maps that are given, (B, *sides) float32, where they are.

    Args:
        name: what errors call them.
        size: the spatial sides of the images, of which the maps have as many.
        negative: whether they may be negative anywhere.

    Raises:
        TypeError, ValueError: they are none. What they hold is checked on the CPU, and elsewhere only with
            FUSEDMIX_CHECK_PLANS=1, for which the GPU is waited for.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor of maps, but got {type(x).__name__}.{checks.makes_one(x)}")
    x = plain(checks.dense(name, x)).detach()
    real = x.is_floating_point() or x.dtype in (*checks.INTEGER_DTYPES, torch.bool)
    if not real or x.ndim != 1 + len(size) or x.shape[0] != batch_size or 0 in x.shape[1:]:
        sides = ", ".join(("depth", "height", "width")[-len(size) :]) if len(size) > 1 else "length"
        raise ValueError(
            f"{name} must be real numbers of shape ({batch_size}, {sides}), a map of any sides for each of "
            f"{batch_size} samples, but got {checks.names([x.dtype])} of shape {tuple(x.shape)}."
        )
    x = x.float()
    if checks.readable(x):
        if not x.isfinite().all():
            raise ValueError(f"{name} must be finite everywhere, but holds infinities or NaN.")
        if not negative and (x < 0).any():
            raise ValueError(f"{name} must be >= 0 everywhere, but the least is {x.min():g}.")
    return x


def checked_importance(name: str, x: Any) -> Importance | None:
    """The importance of a module: a function, or None."""
    if x is None:
        return None
    if isinstance(x, Tensor):
        raise TypeError(
            f"{name} of a module must be a function from images to maps, or None, but got a tensor. Maps of one batch "
            f"are given with it: mix(images, labels, {name}=maps), or sample(..., {name}=maps)."
        )
    if isinstance(x, type) or not callable(x):
        came = f"the class {x.__name__}" if isinstance(x, type) else repr(x)
        raise TypeError(f"{name} must be a function from images to maps, or None, but got {came}.")
    return x


def maps_of(images: Tensor, labels: Tensor | None, importance: Importance) -> Tensor:
    """What a function makes of a batch, without gradients of it."""
    with torch.no_grad():
        return importance(images, labels) if _takes_labels(importance) else importance(images)


def _takes_labels(importance: Importance) -> bool:
    try:
        return "labels" in inspect.signature(importance).parameters
    except ValueError:  # A function that is written in C says nothing.
        return False


def at_pixels(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Maps (B, *sides) as (B, *size): linear along every axis, between the centres of pixels (F.interpolate with
    align_corners=False, as the authors of SnapMix take it)."""
    return resized(maps, size)


def at_cells(maps: Tensor, cells: tuple[int, ...]) -> Tensor:
    """Maps (B, *sides) as (B, *cells), the means of what is in each cell, float64: pixel c of a side belongs to cell
    c·cells // side, as in GridMix. A map of fewer pixels than cells along a side is stretched there first."""
    found = resized(maps, tuple(max(side, count) for side, count in zip(maps.shape[1:], cells, strict=True))).double()
    for axis, count in enumerate(cells, start=1):
        cell = torch.arange(found.shape[axis], device=maps.device) * count // found.shape[axis]
        within = (cell == torch.arange(count, device=maps.device).unsqueeze(1)).double()
        shares = within / within.sum(1, keepdim=True)
        found = (found.movedim(axis, -1) @ shares.T).movedim(-1, axis)
    return found


def normalised(maps: Tensor) -> Tensor:
    """Maps (B, *sides) from 0 on and with a sum of 1, float64: less their least value, and divided by what is then
    their sum. NaN everywhere, where a map is constant."""
    axes = tuple(range(1, maps.ndim))
    if not maps.shape[0]:
        return maps.double()
    maps = maps.double()
    maps = maps - maps.amin(axes, keepdim=True)
    return maps / maps.sum(axes, keepdim=True)


def peak(maps: Tensor) -> tuple[Tensor, ...]:
    """The place of the largest value of maps (B, *sides), of equal ones the first: (B,) int64 along each axis."""
    if not maps.shape[0]:
        return tuple(torch.empty(0, dtype=torch.int64, device=maps.device) for _ in maps.shape[1:])
    return torch.unravel_index(maps.flatten(1).argmax(1), maps.shape[1:])
