"""Which of three ways a batch takes through a mixing module. They all give the same batch, and draw the same.

By a plan: it is drawn first, then labels, masks and images are mixed by it. Any batch can go this way.
In one call: one operator draws, and mixes images and labels. The module has taken the batch apart and checked it.
Plain: the operator checks, too. On small batches the checks and draws of the other two ways are most of the time on the
host, 60 µs of 80. This is the usual step of a training.

A batch takes the fastest way whose conditions all hold, and each condition stands once, in the table of this file. That
a batch is wrong is none of them: where an operator refuses it the plain way ends, and the checks of the others say why.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from fusedmix import backends
from fusedmix.checkpointing import recording
from fusedmix.checks import LONGEST_SIDE
from fusedmix.methods import Per
from fusedmix.ops import tracked


def capturing() -> bool:
    """Whether a CUDA graph is being captured."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


class Condition(NamedTuple):
    """What fast ways take for granted."""

    # "module": holds(mix). "sample": holds(parsed). "batch": holds(mix, images, labels), as the others: "call", if
    # it is not traced by torch.compile; backends by their names.
    of: str
    ways: str  # the ways that need it
    holds: Callable[..., bool]
    reason: str


CONDITIONS = (
    Condition(
        "module",
        "plain, one call",
        lambda mix: mix.targets == "dense" and not mix._stored,
        "The operator makes (B, K) targets, and no stored masks, which are made between the plan and the images.",
    ),
    Condition(
        "module",
        "plain",
        lambda mix: getattr(mix, "labels_getter", None) == "default" and mix.images_getter is None and mix.axes is None,
        "Getters and axes are for samples that must be taken apart. (Embeddings have no labels_getter.)",
    ),
    Condition(
        "module",
        "plain",
        lambda mix: (
            not mix._pairing.by_class
            if mix.sampling == "device"
            else mix._one_method and mix._per is Per.BATCH and mix._pairing.is_formula and mix.p == 1.0
        ),
        "An operator draws a seed by itself, or as torchvision does: one λ and at most the centre or place of one box.",
    ),
    Condition(
        "sample",
        "one call",
        lambda parsed: parsed.labels is not None and len(parsed.images) == 1 and not parsed.masks,
        "The operator mixes one stack of images and makes targets.",
    ),
    Condition(
        "sample",
        "one call",
        lambda parsed: parsed.labels.device == parsed.leaves[parsed.images[0]].device,
        "The operator works on one device. (On the plain way it compares them itself.)",
    ),
    Condition("batch", "plain, one call", lambda mix, x, y: not tracked(x, y), "The operator has no derivative."),
    Condition(
        "call",
        "plain, one call",
        lambda mix, x, y: not recording(),
        "A recomputation takes the plan of the forward pass, and only plans are recorded.",
    ),
    Condition(
        "batch",
        "plain",
        lambda mix, x, y: mix._generator is None and not capturing(),
        "The operator draws from torch's default generator. What the host draws must not be captured in a CUDA graph.",
    ),
    Condition(
        "batch",
        "plain",
        lambda mix, x, y: (
            3 <= x.ndim <= 4
            and (
                mix.num_classes is not None if y.ndim < 2 else y.shape[1] > 1 and mix.num_classes in (None, y.shape[1])
            )
        ),
        "Masks extend over what follows (B, C), and K is known. Volumes need axes, and a column of integers is none.",
    ),
    Condition(
        "cuda, triton",
        "plain",
        lambda mix, x, y: "FUSEDMIX_CHECK_LABELS" not in os.environ,
        "On a GPU labels are looked at only where the variable asks for it, and not by the operator.",
    ),
    Condition(
        "triton, reference",
        "plain",
        lambda mix, x, y: not torch._C._len_torch_dispatch_stack() and max(x.shape[2:]) <= LONGEST_SIDE,
        "These mix without an operator, which in Python costs more than mixing a small batch does: not while a "
        "TorchDispatchMode watches operators, and not sides that an operator would refuse.",
    ),
    Condition(
        "reference",
        "plain",
        lambda mix, x, y: mix.sampling == "host" and x.is_cpu and y.is_cpu,
        "Its step without an operator is for one draw of the host.",
    ),
)


def _those(of: str, way: str) -> tuple[Callable[..., bool], ...]:
    return tuple(row.holds for row in CONDITIONS if of in row.of.split(", ") and way in row.ways.split(", "))


PLAIN_MODULE = _those("module", "plain")
PLAIN = {name: _those("batch", "plain") + _those("call", "plain") + _those(name, "plain") for name in backends.NAMES}
_ONE_CALL = {of: _those(of, "one call") for of in ("module", "sample", "batch", "call")}


def goes_in_one_call(mix: Any, parsed: Any) -> bool:
    """Whether one operator can mix a sample that was taken apart."""
    if not all(holds(mix) for holds in _ONE_CALL["module"]) or not all(holds(parsed) for holds in _ONE_CALL["sample"]):
        return False
    of_batch = _ONE_CALL["batch"] + (() if torch.compiler.is_compiling() else _ONE_CALL["call"])
    return all(holds(mix, parsed.leaves[parsed.images[0]], parsed.labels) for holds in of_batch)
