"""The one argument `importance=`: what of an image matters, as maps or as a function from images to maps; and the base
of the methods that take it (SaliencyMix, Attentive CutMix, SnapMix, PuzzleMix).

A map has as many spatial dims as the images and any sides. Every method brings it to the pixels or to the cells that it
asks about, by `at_pixels` or `at_cells`. Maps are constants: no gradient flows into them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from fusedmix import checks, dims
from fusedmix.draws import Request, moved
from fusedmix.one_method import OneMethod
from fusedmix.plan import MixPlan
from fusedmix.saliency import between, fine_grained_saliency, resized, spectral_saliency
from fusedmix.subclasses import plain

# Of images to maps (B, h, w); one that has a parameter `labels` is given the labels of the batch, too.
Importance = Callable[..., Tensor]
# These look at nothing but the pixels, whatever lies between the batch and the sides of the masks.
_OF_PIXELS = (fine_grained_saliency, spectral_saliency)


class Extra(NamedTuple):
    """What a method finishes its plan by."""

    maps: Tensor  # (B, *sides) float32
    labels: Tensor | None  # (B,) or (B, K), where they were given


_INFINITY = 0x7F800000  # the bits of the float32


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
    if checks.readable(x) and not _finite_and_unsigned(x):
        low, high = x.aminmax()  # NaN, if there is one
        if not (low.isfinite() and high.isfinite()):
            raise ValueError(f"{name} must be finite everywhere, but holds infinities or NaN.")
        if not negative and low < 0:
            raise ValueError(f"{name} must be >= 0 everywhere, but the least is {low:g}.")
    return x


def _finite_and_unsigned(x: Tensor) -> bool:
    """Whether all float32 numbers are finite and without a sign, by their bits: integers have a minimum sooner."""
    low, high = x.view(torch.int32).aminmax()
    return bool((low >= 0) & (high < _INFINITY))


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
        maps = importance(images, labels) if _takes_labels(importance) else importance(images)
    if not isinstance(maps, Tensor):
        raise TypeError(f"importance must return a tensor of maps, but got {type(maps).__name__}.")
    return maps


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


class Shares:
    """How much of a map lies in a box, once it is at the pixels, less its least value there, and divided by what is
    then its sum. NaN where a map is constant.

    At the pixels a map is linear in each of its own, along one side after the other. So its sums in boxes are those of
    the map itself, weighted, and of all the pixels only the least value has to be found.

    Args:
        maps: (B, *sides).
        size: the sides of the images.
    """

    def __init__(self, maps: Tensor, size: tuple[int, ...]) -> None:
        # What is constant is 0 before it is stretched, and not constant but for the rounding.
        self._maps = maps - maps.amin(tuple(range(1, maps.ndim)), keepdim=True)
        self._size = size
        self._least = at_pixels(self._maps, size).flatten(1).amin(1).double()

    def inside(self, first: Tensor, stop: Tensor, of: Tensor) -> Tensor:
        """(B,) float64: the shares of the maps `of` samples, (B,), in boxes of which the first pixels are (B, d), and
        those behind the last."""
        maps, least = self._maps[of].double(), self._least[of]
        sums = _sums(maps, self._size, first, stop) - (stop - first).prod(1) * least
        all_of_it = [torch.full_like(stop[:, axis], side) for axis, side in enumerate(self._size)]
        whole = _sums(maps, self._size, torch.zeros_like(first), torch.stack(all_of_it, 1))
        return sums / (whole - math.prod(self._size) * least)


def _sums(maps: Tensor, size: tuple[int, ...], first: Tensor, stop: Tensor) -> Tensor:
    """(B,): the sums of maps (B, *sides) in boxes of pixels of images of a size."""
    for axis in reversed(range(len(size))):
        # By how much each pixel of the map counts in all pixels before another one.
        low, high, share = between(maps.shape[-1], size[axis], maps.device)
        own = torch.arange(maps.shape[-1], device=maps.device)
        weights = (1.0 - share)[:, None] * (low[:, None] == own) + share[:, None] * (high[:, None] == own)
        before = torch.nn.functional.pad(weights.cumsum(0), (0, 0, 1, 0))
        within = before[stop[:, axis]] - before[first[:, axis]]
        maps = (maps * within.reshape(len(within), *[1] * axis, len(own))).sum(-1)
    return maps


def peak(maps: Tensor, size: tuple[int, ...]) -> tuple[Tensor, ...]:
    """The pixel of images of a size in the middle of the largest value of each map (B, *sides), of equal ones the
    first: (B,) int64 along each axis. In integers, so that it is the same on every device."""
    if not maps.shape[0]:
        return tuple(torch.empty(0, dtype=torch.int64, device=maps.device) for _ in size)
    place, found = maps.flatten(1).argmax(1), []
    for own, side in zip(reversed(maps.shape[1:]), reversed(size), strict=True):
        found.append((2 * (place % own) + 1) * side // (2 * own))
        place = place // own
    return tuple(reversed(found))


class ImportanceMethod(OneMethod):
    """A method whose plan looks at the images, by importance maps. A subclass finishes it in `_by_maps`."""

    _refines = True
    _usual_importance: ClassVar[Importance | None] = None  # the function that None stands for; None: maps must be given
    _negative: ClassVar[bool] = True  # whether maps may be negative
    _importance: Importance | None = None

    def __init__(self, options: Mapping[str, Any], *, importance: Importance | None, **columns: Any) -> None:
        self.__dict__["_importance"] = checked_importance("importance", importance)
        super().__init__(options, **columns)

    def _take(self, given: Mapping[str, Any]) -> None:
        if given.get("finish") is not None:
            raise ValueError(
                f"finish must be None for {type(self).__name__}, whose maps are of the images as they come, while a "
                f"finished batch is flipped before it is mixed, but got {given['finish']!r}."
            )
        super()._take(given)

    @property
    def importance(self) -> Importance | None:
        """The function from images to maps; None: the usual one, if there is one. May be changed between steps."""
        return self._importance

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "importance":  # A network would become a part of this module otherwise.
            self.__dict__["_importance"] = checked_importance(name, value)
        else:
            super().__setattr__(name, value)

    def sample(
        self,
        batch_size: int,
        size: Sequence[int],
        *,
        importance: Tensor | None = None,
        labels: Tensor | None = None,
        **given: Any,
    ) -> MixPlan:
        """Draws the plan of a batch, as `MixTransform.sample` does, and finishes it by importance maps.

        Args:
            batch_size: as there.
            size: as there.
            importance: (B, h, w) of images (B, ..., H, W), a map for each sample, of any sides; of d spatial dims for
                images of d. Real numbers, finite. (A function needs images: give it to the module, or to its call.)
            labels: as there.
            **given: lam, partner, device, generator and seed, as there.

        Raises:
            TypeError, ValueError: importance is missing or of the wrong type, shape or range; and as there.
        """
        batch_size = checks.integer("batch_size", batch_size, 0)
        size = checks.sides("size", size, stored=self._stored)
        if importance is None:
            raise ValueError(
                f"importance must be given to sample() of {type(self).__name__}, a map for each sample, because a plan "
                "is drawn without images."
            )
        maps = checked_maps("importance", importance, batch_size, size, negative=self._negative)
        return self._sample(batch_size, size, labels=labels, extra=Extra(maps, labels), **given)

    def forward(  # type: ignore[override]
        self, *inputs: Any, importance: Tensor | Importance | None = None
    ) -> Any:
        """Mixes a batch, as `MixTransform.forward` does, by importance maps.

        Args:
            *inputs: as there.
            importance: maps of the images, (B, h, w), or a function from images to maps; None: the module's. Images of
                several stacks are mixed by the maps of the first.

        Raises:
            TypeError, ValueError: as there and as `sample`.
        """
        if not isinstance(importance, Tensor):
            importance = checked_importance("importance", importance)
        return self._mix_batch(inputs, importance)

    def _plan_of(
        self, image: Tensor, size: tuple[int, ...], labels: Tensor | None, device: torch.device | None, extra: Any
    ) -> MixPlan:
        maps = extra if isinstance(extra, Tensor) else self._maps_of(image, size, labels, extra)
        return self.sample(image.shape[0], size, labels=labels, device=device, importance=maps)

    def _maps_of(self, image: Tensor, size: tuple[int, ...], labels: Tensor | None, given: Importance | None) -> Tensor:
        """What the function finds in the images of a batch."""
        function = self._importance if given is None else given
        function = type(self)._usual_importance if function is None else function
        if function is None:
            raise ValueError(
                f"importance must be given to {type(self).__name__} or to its call: a map for each of the images, or a "
                "function from images to maps, such as fusedmix.class_activation_map(model, layer)."
            )
        x = plain(image)
        if not len(x):  # Few networks take none.
            return x.new_zeros((0, *size), dtype=torch.float32)
        if function in _OF_PIXELS:
            return function(dims.last(x, self.axes).reshape(len(x), -1, *size))
        return maps_of(x, None if labels is None else plain(labels), function)

    def _refine(self, plan: MixPlan, request: Request, seed: Tensor, extra: Extra) -> MixPlan:
        maps, labels = (None if x is None else moved(x, plan.device) for x in extra)
        assert maps is not None
        return self._by_maps(plan, request, seed, maps, labels)

    def _by_maps(self, plan: MixPlan, request: Request, seed: Tensor, maps: Tensor, labels: Tensor | None) -> MixPlan:
        """The plan, finished.

        Args:
            plan, request, seed: as of `_refine`.
            maps: (B, *sides) float32, which have been checked.
            labels: (B,) or (B, K), if they are known.
            All tensors are on the device of the plan, which nothing may wait for.
        """
        raise NotImplementedError

    def _describe(self) -> dict[str, Any]:
        function = self.importance
        named = {} if function is None else {"importance": getattr(function, "__name__", type(function).__name__)}
        return {**named, **super()._describe()}
