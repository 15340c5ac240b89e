"""PuzzleMix: a grid of blocks, each of the image that it matters in, moved to where they are seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Unpack

from fusedmix import checks, dims
from fusedmix.arguments import Moves
from fusedmix.backends.grid_cut import MOST_BLOCKS
from fusedmix.blocks import Weights, energies, shares
from fusedmix.draws import Request, moved
from fusedmix.importance import Extra, Importance, ImportanceMethod
from fusedmix.masks import fourier
from fusedmix.masks.family import quotient
from fusedmix.masks.fourier import LEVELS
from fusedmix.methods import Families, Method, Per
from fusedmix.one_method import BetaMethod
from fusedmix.options import Options, spelled_out
from fusedmix.plan import MixPlan
from fusedmix.subclasses import plain


def _cells(name: str, x: Any) -> tuple[int, int]:
    counts = x if isinstance(x, Sequence) else (x, x)
    if isinstance(x, str) or len(counts) != 2:
        raise TypeError(f"{name} must be an int or a pair (height, width), but got {x!r}.")
    height, width = (checks.integer(name, count, 1, MOST_BLOCKS) for count in counts)
    return height, width


def _std(name: str, x: Any) -> tuple[float, ...]:
    if not isinstance(x, Sequence) or isinstance(x, str):
        return (checks.number(name, x, 0.0, open_low=True),)
    if not x:
        raise ValueError(f"{name} must be a number or have one for each channel, but got {x!r}.")
    return tuple(checks.number(f"{name}[{i}]", each, 0.0, open_low=True) for i, each in enumerate(x))


_weight = partial(checks.number, low=0.0)


class _Seen(NamedTuple):
    """What a plan is finished by."""

    maps: Tensor
    labels: Tensor | None
    images: Tensor | None  # (B, ..., *size)


@spelled_out
class PuzzleMix(ImportanceMethod, BetaMethod):
    """PuzzleMix: a grid of blocks, each from the sample (M = 1), from its partner (0) or half from both, so that what
    matters in either stays and neighbours fit; label weight the mean of M. Blocks that matter move to where they are
    seen (Kim, Choo, Song, "Puzzle Mix: Exploiting Saliency and Local Statistics for Optimal Mixup", ICML 2020).

    The labels of the blocks are those of least energy, found exactly; λ only decides the prior of M. (M of ½ is stored
    as 32768/65535.) The authors draw the number of blocks along a side for each batch, out of 2, 4, 8 and 16: set
    `cells` before each step for that, to 2 ** random.randint(1, 4).

    Args:
        cells: how many blocks there are along each side, or as (height, width): 1 to 16. They must divide the sides of
            the images.
        alpha: α > 0 of λ ~ Beta(α, α).
        importance: a function from images, and labels if it takes them, to maps (B, h, w) >= 0 of any sides. The
            authors' is `fusedmix.input_gradient(model)`. None: maps come with each call, as
            mix(images, labels, importance=maps).
        beta: β >= 0, what it costs where M of neighbours differs.
        gamma: γ >= 0, how much that depends on the pixels along their border. With 0 sample() needs no images.
        eta: η >= 0, the weight of the prior: with 0 λ says nothing, with a large one M is near λ everywhere.
        transport: whether blocks move. Such batches are new ones, and cannot be mixed in place or with label maps.
            Fixed when the module is made.
        distance_cost: > 0, what a move across the whole grid costs, where moving is of use up to the share of its map
            that a block has. A shorter move costs less by the square of the distance.
        std: > 0, what the pixels in [0, 1] were divided by when they were normalised, a number or one for each channel.
            (Images of integers are taken by the greatest number of their dtype besides.)
        **options: see `Options`.

    Raises:
        ValueError: when called: there are no maps; images have not two spatial sides, or some that cells don't divide.
    """

    _formulas = {"released": Method.MIXUP, "paper": Method.MIXUP}  # noqa: RUF012
    _negative = False
    _fixed: ClassVar = ("transport",)
    _checks: ClassVar = {
        "cells": _cells,
        "beta": _weight,
        "gamma": _weight,
        "eta": _weight,
        "distance_cost": partial(checks.number, low=0.0, open_low=True),
        "std": _std,
    }
    cells: tuple[int, int]
    beta: float
    gamma: float
    eta: float
    transport: bool
    distance_cost: float
    std: tuple[float, ...]

    def __init__(
        self,
        *,
        cells: int | Sequence[int] = 4,
        alpha: float = 1.0,
        importance: Importance | None = None,
        beta: float = 1.2,
        gamma: float = 0.5,
        eta: float = 0.2,
        transport: bool = True,
        distance_cost: float = 0.8,
        std: float | Sequence[float] = 1.0,
        **options: Unpack[Options],
    ) -> None:
        own = {"cells": cells, "beta": beta, "gamma": gamma, "eta": eta, "distance_cost": distance_cost, "std": std}
        self.__dict__.update((name, self._checks[name](name, value)) for name, value in own.items())
        self.__dict__["transport"] = self.__dict__["_gathers"] = checks.boolean("transport", transport)
        super().__init__(options, importance=importance, alpha=alpha)
        self._constant, self._stored = False, True  # of the plans that are finished

    def sample(self, batch_size: int, size: Sequence[int], *, images: Tensor | None = None, **given: Any) -> MixPlan:
        """Draws the plan of a batch, as `MixTransform.sample` does, and finishes it by importance maps.

        Args:
            batch_size: as there.
            size: as there.
            images: (B, ..., *size), those that the plan is for, whose pixels are compared; needed unless γ is 0.
            **given: importance, (B, h, w) >= 0, a map for each sample, of any sides; and labels, lam in [0, 1],
                partner, device, generator and seed, as there.

        Raises:
            TypeError, ValueError: importance or images are missing or of the wrong type, shape or range; and as there.
        """
        return super().sample(batch_size, size, images=images, **given)

    def _sample(  # type: ignore[override]
        self, batch_size: int, size: tuple[int, ...], *, extra: Extra, images: Tensor | None, **given: Any
    ) -> MixPlan:
        if images is not None:
            self._check_compared(images, batch_size, size)
        elif self.gamma:
            raise ValueError(
                "images must be given to sample() of PuzzleMix, because their pixels are compared unless gamma is 0, "
                "but got None."
            )
        return super()._sample(batch_size, size, extra=_Seen(*extra, images), **given)

    def _check_compared(self, images: Any, batch_size: int, size: tuple[int, ...]) -> None:
        checks.batch("images", images)
        if images.ndim < 3 or images.shape[0] != batch_size or tuple(images.shape[-2:]) != size:
            raise ValueError(
                f"images must be those of the plan, of shape ({batch_size}, ..., {', '.join(map(str, size))}), but got "
                f"{tuple(images.shape)}."
            )
        channels = images.shape[-3] if images.ndim > 3 else 1
        if len(self.std) not in (1, channels):
            raise ValueError(f"std must have a number for each of {channels} channels, but got {self.std}.")

    def _plan_of(
        self, image: Tensor, size: tuple[int, ...], labels: Tensor | None, device: torch.device | None, extra: Any
    ) -> MixPlan:
        self._check_size(size)
        images = dims.last(plain(image), self.axes)
        self._check_compared(images, len(images), size)
        maps = extra if isinstance(extra, Tensor) else self._maps_of(image, size, labels, extra)
        return self.sample(len(images), size, labels=labels, device=device, importance=maps, images=images)

    def _check_size(self, size: tuple[int, ...]) -> None:
        if len(size) != 2:
            raise ValueError(f"Images must have two spatial sides for PuzzleMix, but got the spatial size {size}.")
        if any(side % count for side, count in zip(size, self.cells, strict=True)):
            raise ValueError(f"cells must divide the sides of the images, {size}, but got {self.cells}.")

    def _refine(self, plan: MixPlan, request: Request, seed: Tensor, extra: _Seen) -> MixPlan:  # type: ignore[override]
        (h, w), (height, width), n, device = self.cells, plan.size, plan.batch_size, plan.device
        maps = shares(moved(extra.maps, device), (h, w))
        weights = Weights(self.beta, self.gamma, self.eta)
        costs = energies(maps, self._unlike(extra.images, plan), plan.partner, plan.lam, weights)
        # A sample that is left as it is has λ = 1.
        operators = self._operators(device)
        labels = torch.where(plan.lam[:, None, None] == 1.0, 0, operators.label_grid(*costs))
        levels = LEVELS - labels * LEVELS // 2
        rows = levels.to(torch.int16)[:, :, :, None].expand(n, h, w, width // w).reshape(n, h, 1, width)
        moves = None
        if self.transport:
            seen, of = torch.cat((labels < 2, labels > 0)), torch.cat((maps, maps[plan.partner]))
            moves = Moves(*operators.arrange_blocks(seen, of, self.distance_cost).chunk(2))
        weight = quotient(levels.flatten(1).sum(1).double(), LEVELS * h * w)
        return replace(
            plan,
            weight=weight,
            masks=fourier.given(weight),
            families=Families.LEVELS,
            per=Per.SAMPLE,
            pixels=rows.expand(n, h, height // h, width).reshape(n, height * width),
            moves=moves,
            blocks=self.cells if self.transport else (),
        )

    def _unlike(self, images: Tensor | None, plan: MixPlan) -> tuple[Tensor, Tensor] | None:
        """What pixels differ by at borders, as they are in [0, 1]: on the plan's device, found where the images are."""
        if images is None or not self.gamma:
            return None
        planes = math.prod(images.shape[1:-2])
        x = plain(images).detach().reshape(len(images), planes, *images.shape[-2:])
        if x.device.type == "cpu":  # Partners on a GPU would be waited for.
            x = moved(x, plan.device)
        unit = 1.0 if x.is_floating_point() else float(torch.iinfo(x.dtype).max)
        # Filled in there, where a copy would have to wait for the host, and can be no part of a CUDA graph.
        scale = torch.cat([torch.full((1,), std / unit, device=x.device) for std in self.std])
        scale = scale.repeat(planes // len(self.std))
        find = self._operators(x.device).border_costs
        right, down = find(x, moved(plan.partner, x.device), scale, self.cells)
        return moved(right, plan.device), moved(down, plan.device)

    def _describe(self) -> dict[str, Any]:
        return {"cells": self.cells, **super()._describe()}
