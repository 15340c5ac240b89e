"""Draws that follow from where a training is, not from what was drawn before.

A trainer saves one generator, or none, or seeds all ranks alike. A batch that is mixed by draws of (seed, rank, epoch,
batch) needs nothing saved: a resumed training repeats it, every rank has its own, and what else is drawn (a sanity
check, a search for the learning rate, dropout) cannot shift it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Protocol

import torch

from fusedmix import checks
from fusedmix.module import MixTransform, mixing_module
from fusedmix.ops import GeneratorHandle


class Schedule(Protocol):
    """What changes a mixing module from epoch to epoch."""

    def step(self, epoch: int) -> object:
        """Sets what it schedules to its value in the epoch, the first being 0."""


def mix_at(mix: MixTransform, batch: Any, *position: int) -> Any:
    """`mix(batch)`, drawn by a generator that is seeded by the position and leaves torch's own alone."""
    digest = hashlib.blake2b(repr(position).encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
    check_mix("mix", mix)  # It may have been given a generator since it was checked first.
    # As the attribute that users set it could not be lent to one of the methods of a RandomMix.
    mix._generator = GeneratorHandle(generator)
    try:
        return mix(batch)
    finally:
        mix._generator = None


def stepped(schedules: Iterable[Schedule], epoch: int, last: int | None) -> int:
    """Steps schedules at the first batch of an epoch, `last` being that of the batch before. Returns the epoch."""
    if epoch != last:
        for schedule in schedules:
            schedule.step(epoch)
    return epoch


def check_mix(name: str, mix: Any) -> MixTransform:
    """`mix`, if `mix_at` can use it.

    Raises:
        TypeError: it is not a mixing module.
        ValueError: it has a generator of its own, which would be ignored.
    """
    if mixing_module(name, mix).generator is not None:
        raise ValueError(
            f"{name} must have generator=None, because its draws follow from seed, rank and step, but it has one. "
            "Pass a seed instead."
        )
    return mix


def check_schedules(name: str, given: Any) -> tuple[Schedule, ...]:
    """None, a schedule or several as a tuple.

    Raises:
        TypeError: something has no method `step`.
    """
    if given is None:
        return ()
    several = tuple(given) if isinstance(given, Iterable) else (given,)
    for schedule in several:
        if not callable(getattr(schedule, "step", None)):
            raise TypeError(
                f"{name} must be None, or one or several objects with step(epoch), but got {type(schedule).__name__}."
            )
    return several


def check_seed(name: str, seed: Any) -> int | None:
    """`seed`, if it is a 64-bit integer or None."""
    return None if seed is None else checks.integer(name, seed, -(2**63), 2**64 - 1)
