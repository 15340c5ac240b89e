"""Plans under activation checkpointing: recorded in the forward pass, reused when it is recomputed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, TypeAlias, TypeVar

import torch

T = TypeVar("T")
Draw: TypeAlias = "Callable[[], Any]"  # of a plan, or of what else a forward pass draws
Source: TypeAlias = "Callable[[Draw], Any]"
_SOURCE: ContextVar[Source | None] = ContextVar("fusedmix_plans", default=None)


def checkpoint_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """A `context_fn` for torch.utils.checkpoint that reuses the plans of the forward pass when it is recomputed.

    Needed where the checkpointed function draws plans in a way that PyTorch does not rewind, that is from a `generator`
    of its own or with preserve_rng_state=False; otherwise PyTorch's rewinding repeats them.

    Examples:
        >>> checkpoint(block, x, use_reentrant=False, context_fn=fusedmix.checkpoint_contexts)
    """
    plans: list[Any] = []

    def record(draw: Draw) -> Any:
        plans.append(draw())
        return plans[-1]

    def replay() -> Source:
        rest = iter(plans)
        return lambda draw: next(rest)

    return _PlansFrom(lambda: record), _PlansFrom(replay)


def recorded(draw: Callable[[], T], rewinds: bool) -> T:
    """What `draw` makes, or the recorded value where a checkpointed function is being recomputed.

    Raises:
        RuntimeError: the plan would be drawn anew during a backward pass from a source that PyTorch does not rewind.
    """
    source = _SOURCE.get()
    if source is not None:
        return source(draw)
    check_rewinds(rewinds)
    return draw()


def recording() -> bool:
    """Whether plans are being recorded or replayed."""
    return _SOURCE.get() is not None


def in_backward() -> bool:
    """Whether a backward pass runs: then a forward pass inside it is a recomputation."""
    return torch._C._current_graph_task_id() != -1


def check_rewinds(rewinds: bool) -> None:
    """Raises RuntimeError in a backward pass unless PyTorch rewinds the source of the draws."""
    if not rewinds and in_backward():
        raise RuntimeError(
            "A mixing plan would be drawn again from its own generator while a checkpointed function is recomputed, "
            "and the gradient would belong to another batch. Pass context_fn=fusedmix.checkpoint_contexts to "
            "torch.utils.checkpoint.checkpoint, or draw the plan outside with sample()."
        )


class _PlansFrom(AbstractContextManager[None]):
    """While it is entered, plans come from a source made at entry. It may be entered again: a graph that is retained is
    recomputed in every backward pass."""

    def __init__(self, make_source: Callable[[], Source]) -> None:
        self._make_source = make_source

    def __enter__(self) -> None:
        self._token = _SOURCE.set(self._make_source())

    def __exit__(self, *_: object) -> None:
        _SOURCE.reset(self._token)
