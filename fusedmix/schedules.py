"""Schedules of a mixing module: α annealed over the epochs, an epoch after which nothing is mixed, and straight lines
of the probability of mixing, of HMix's ratio and of RandomMix's weights.

They follow the conventions of torch.optim.lr_scheduler: construction sets the values of epoch 0, `step()` after every
epoch those of the next one, and `state_dict` goes into the checkpoint. Several may act on one module. What they change
are numbers in memory, not constants of a graph or of a process: compiled steps are not compiled again, and DataLoader
workers that run already, persistent ones too, mix their next batches by the new values.

Examples:
    >>> mixer = fusedmix.CutMix(num_classes=1000)
    >>> schedules = [
    ...     fusedmix.schedules.CosineAlpha(mixer, end=0.1, epochs=300),
    ...     fusedmix.schedules.OffAfter(mixer, 285),
    ... ]
    >>> for epoch in range(300):
    ...     train_one_epoch(model, loader, mixer)
    ...     for schedule in schedules:
    ...         schedule.step()
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

from fusedmix import checks
from fusedmix.module import MixTransform, mixing_module
from fusedmix.one_method import BetaMethod
from fusedmix.transforms import HMix, RandomMix, shares

_FROM_0 = partial(checks.integer, low=0)
_FROM_1 = partial(checks.integer, low=1)
_NUMBER = partial(checks.number, low=0.0)
_SHARE = partial(checks.number, low=0.0, high=1.0)


class MixSchedule(checks.Checked):
    """Base of the schedules. Attributes that are set later are checked, and act from the next step on.

    Attributes:
        mix: the module it acts on; fixed.
        last_epoch: the epoch whose values the module has.
    """

    _checks: ClassVar = {"last_epoch": partial(checks.integer, low=-1)}
    _fixed: ClassVar = ("mix", "base_alphas", "base_ratios", "base_weights", "start")

    def __init__(self, mix: MixTransform, last_epoch: int = -1) -> None:
        self.mix = mixing_module("mix", mix)
        self.last_epoch = last_epoch
        for module in (mix, *_methods(mix)):
            module._spec.share_memory_()  # DataLoader workers that are started after this see what is set.
        self.step()

    def step(self, epoch: int | None = None) -> None:
        """Sets the values of the next epoch, or of `epoch` >= 0."""
        self.last_epoch = self.last_epoch + 1 if epoch is None else _FROM_0("epoch", epoch)
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        """Everything but the module: numbers and lists of them."""
        return {name: value for name, value in self.__dict__.items() if name != "mix"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the state over and sets the values of its epoch.

        Raises:
            ValueError: the state is that of another kind of schedule, or of another number of methods.
        """
        own = self.state_dict()
        if set(state_dict) != set(own) or any(
            isinstance(value, list) and len(value) != len(state_dict[name]) for name, value in own.items()
        ):
            raise ValueError(
                f"state_dict must be that of a {type(self).__name__} of as many methods, with {sorted(own)}, but got "
                f"{state_dict!r}."
            )
        self.__dict__.update(state_dict)
        self._apply()

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value}" for name, value in self.state_dict().items())
        return f"{type(self).__name__}({self.mix!r}, {values})"

    def _apply(self) -> None:
        """Sets the values of `last_epoch`."""
        raise NotImplementedError


class AlphaSchedule(MixSchedule):
    """Base of the schedules of α. They act on every method of a `RandomMix` that has an α.

    Args:
        mix: the module; SamplePairing has no α.
        start: α of epoch 0, positive or 0; None: what it is now, of each method its own.
    """

    def __init__(self, mix: MixTransform, start: float | None = None, last_epoch: int = -1) -> None:
        self.base_alphas = [m.alpha if start is None else _NUMBER("start", start) for m in _with_alpha(mix)]
        super().__init__(mix, last_epoch)

    def get_last_alpha(self) -> list[float]:
        """The α that were set last, one for each method that has one."""
        return [method.alpha for method in _with_alpha(self.mix)]

    def _apply(self) -> None:
        for method, base in zip(_with_alpha(self.mix), self.base_alphas, strict=True):
            method.alpha = self._alpha(base)

    def _alpha(self, base: float) -> float:
        """α of `last_epoch`, if that of epoch 0 is `base`."""
        raise NotImplementedError


class LinearAlpha(AlphaSchedule):
    """α from `start` to `end` by equal steps over `epochs` epochs, `end` from then on. α = 0 switches mixing off.

    Args:
        mix: see `AlphaSchedule`.
        start: see `AlphaSchedule`.
        end: α >= 0 of epoch `epochs` and later.
        epochs: at least 1.
    """

    _checks: ClassVar = {**AlphaSchedule._checks, "end": _NUMBER, "epochs": _FROM_1}

    def __init__(
        self, mix: MixTransform, start: float | None = None, end: float = 0.0, *, epochs: int, last_epoch: int = -1
    ) -> None:
        self.end = end
        self.epochs = epochs
        super().__init__(mix, start, last_epoch)

    def _alpha(self, base: float) -> float:
        done = min(self.last_epoch / self.epochs, 1.0)
        return (1.0 - done) * base + done * self.end


class CosineAlpha(LinearAlpha):
    """α from `start` to `end` by half a wave of a cosine over `epochs` epochs, `end` from then on. It takes what
    `LinearAlpha` takes."""

    def _alpha(self, base: float) -> float:
        done = min(self.last_epoch / self.epochs, 1.0)
        return self.end + (base - self.end) * (1.0 + math.cos(math.pi * done)) / 2.0


class StepAlpha(AlphaSchedule):
    """α times `gamma` after every `step_size` epochs.

    Args:
        mix: see `AlphaSchedule`.
        start: see `AlphaSchedule`.
        step_size: in epochs, at least 1.
        gamma: at least 0.
    """

    _checks: ClassVar = {**AlphaSchedule._checks, "step_size": _FROM_1, "gamma": _NUMBER}

    def __init__(
        self,
        mix: MixTransform,
        start: float | None = None,
        *,
        step_size: int,
        gamma: float = 0.1,
        last_epoch: int = -1,
    ) -> None:
        self.step_size = step_size
        self.gamma = gamma
        super().__init__(mix, start, last_epoch)

    def _alpha(self, base: float) -> float:
        return base * self.gamma ** (self.last_epoch // self.step_size)


class OffAfter(MixSchedule):
    """Mixes in epochs 0 to epoch-1, and leaves every batch as it is from `epoch` on, by any method and at any α and p.

    It sets `mix.enabled`, and so goes with a schedule of α.
    """

    _checks: ClassVar = {**MixSchedule._checks, "epoch": _FROM_0}

    def __init__(self, mix: MixTransform, epoch: int, last_epoch: int = -1) -> None:
        self.epoch = epoch
        super().__init__(mix, last_epoch)

    def _apply(self) -> None:
        self.mix.enabled = self.last_epoch < self.epoch


class _Linear(MixSchedule):
    """Base of the straight lines from epoch 0 to epoch `epochs`, level from then on."""

    _checks: ClassVar = {**MixSchedule._checks, "epochs": _FROM_1}

    def __init__(self, mix: MixTransform, epochs: int, last_epoch: int) -> None:
        self.epochs = epochs
        super().__init__(mix, last_epoch)

    def _between(self, start: float, end: float) -> float:
        """The value of `last_epoch`."""
        done = min(self.last_epoch / self.epochs, 1.0)
        return (1.0 - done) * start + done * end


class LinearP(_Linear):
    """The probability of mixing from `start` to `end` by equal steps over `epochs` epochs, `end` from then on.

    It is a factor beside the `p` of the module, which should be 1, and of a RandomMix beside those of its methods. It
    goes with `OffAfter`. The chances are drawn as those of a method of a RandomMix are, not as those of `p`.

    Args:
        mix: the module.
        start: of epoch 0, in [0, 1].
        end: of epoch `epochs` and later, in [0, 1].
        epochs: at least 1.
    """

    _checks: ClassVar = {**_Linear._checks, "start": _SHARE, "end": _SHARE}

    def __init__(
        self, mix: MixTransform, start: float = 1.0, end: float = 0.0, *, epochs: int, last_epoch: int = -1
    ) -> None:
        self.start, self.end = start, end
        super().__init__(mix, epochs, last_epoch)

    def _apply(self) -> None:
        enabled = self.mix.enabled
        # The smallest number stands for 0, which would say that the module is not enabled. No chance is below it.
        self.mix._chance = max(self._between(self.start, self.end), sys.float_info.min)
        self.mix.enabled = enabled


class LinearRatio(_Linear):
    """The ratio of HMix from `start` to `end` by equal steps over `epochs` epochs, `end` from then on; of every HMix of
    a `RandomMix`.

    Args:
        mix: the module.
        start: of epoch 0, in [0, 1]; None: what it is now, of each HMix its own.
        end: of epoch `epochs` and later, in [0, 1].
        epochs: at least 1.
    """

    _checks: ClassVar = {**_Linear._checks, "end": _SHARE}

    def __init__(
        self, mix: MixTransform, start: float | None = None, *, end: float, epochs: int, last_epoch: int = -1
    ) -> None:
        self.base_ratios = [m.ratio if start is None else _SHARE("start", start) for m in _with_ratio(mix)]
        self.end = end
        super().__init__(mix, epochs, last_epoch)

    def _apply(self) -> None:
        for method, base in zip(_with_ratio(self.mix), self.base_ratios, strict=True):
            method.ratio = self._between(base, self.end)


class LinearWeights(_Linear):
    """The weights of a `RandomMix` from `start` to `end` by equal steps over `epochs` epochs, `end` from then on: from
    one method to another, say.

    Args:
        mix: the RandomMix.
        start: of epoch 0, a weight for each method; None: what they are now.
        end: of epoch `epochs` and later, likewise. Both are divided by their sums.
        epochs: at least 1.
    """

    def __init__(
        self,
        mix: RandomMix,
        start: Sequence[float] | None = None,
        *,
        end: Sequence[float],
        epochs: int,
        last_epoch: int = -1,
    ) -> None:
        if not isinstance(mix, RandomMix):
            raise TypeError(f"mix must be a RandomMix, but got {mix!r}.")
        count = len(mix.methods)
        self.base_weights = list(mix.weights) if start is None else shares("start", start, count)
        self.end = end
        mix._shares.share_memory_()  # as the numbers of the methods are
        super().__init__(mix, epochs, last_epoch)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, shares("end", value, len(self.base_weights)) if name == "end" else value)

    def _apply(self) -> None:
        assert isinstance(self.mix, RandomMix)
        self.mix.weights = [self._between(a, b) for a, b in zip(self.base_weights, self.end, strict=True)]


def _methods(mix: MixTransform) -> tuple[MixTransform, ...]:
    return mix.methods if isinstance(mix, RandomMix) else (mix,)


def _with_alpha(mix: Any) -> list[BetaMethod]:
    methods = [method for method in _methods(mix) if isinstance(method, BetaMethod)]
    if not methods:
        raise TypeError(f"mix must be a mixing module with an alpha, or a RandomMix of such, but got {mix!r}.")
    return methods


def _with_ratio(mix: Any) -> list[HMix]:
    methods = [method for method in _methods(mix) if isinstance(method, HMix) and method.ratio_alpha is None]
    if not methods:
        raise TypeError(
            f"mix must be an HMix with a ratio that is not drawn, or a RandomMix with one, but got {mix!r}."
        )
    return methods
