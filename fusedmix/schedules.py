"""Schedules of a mixing module: α annealed over the epochs, and an epoch after which nothing is mixed.

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
from functools import partial
from typing import Any, ClassVar

from fusedmix import checks
from fusedmix.module import MixTransform, mixing_module
from fusedmix.one_method import BetaMethod
from fusedmix.transforms import RandomMix

_FROM_0 = partial(checks.integer, low=0)
_FROM_1 = partial(checks.integer, low=1)
_NUMBER = partial(checks.number, low=0.0)


class MixSchedule(checks.Checked):
    """Base of the schedules. Attributes that are set later are checked, and act from the next step on.

    Attributes:
        mix: the module it acts on; fixed.
        last_epoch: the epoch whose values the module has.
    """

    _checks: ClassVar = {"last_epoch": partial(checks.integer, low=-1)}
    _fixed: ClassVar = ("mix", "base_alphas")

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


def _methods(mix: MixTransform) -> tuple[MixTransform, ...]:
    return mix.methods if isinstance(mix, RandomMix) else (mix,)


def _with_alpha(mix: Any) -> list[BetaMethod]:
    methods = [method for method in _methods(mix) if isinstance(method, BetaMethod)]
    if not methods:
        raise TypeError(f"mix must be a mixing module with an alpha, or a RandomMix of such, but got {mix!r}.")
    return methods
