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
from typing import Any

import torch
from torch import Tensor

from fusedmix import backends
from fusedmix.checkpointing import recording
from fusedmix.checks import LONGEST_SIDE
from fusedmix.draws import CPU
from fusedmix.methods import Per
from fusedmix.ops import GeneratorHandle
from fusedmix.tracking import tracked


def capturing() -> bool:
    """Whether a CUDA graph is being captured."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def drawn_seed(handle: GeneratorHandle | None, device: torch.device) -> Tensor:
    """The seed of what is drawn on a device, from a generator; None: torch's default one. It may be elsewhere."""
    if handle is not None:
        return torch.ops.fusedmix.draw_seed(handle.key, device=handle.generator.device)
    # On the host a seed costs no launch; inside a graph only the device's generator moves between replays.
    on_device = not torch.compiler.is_compiling() and capturing()
    return torch.ops.fusedmix.draw_seed(0, device=device if on_device else CPU)


# Whose conditions they are and which ways need them; then each condition, by its reason.
CONDITIONS: dict[tuple[str, str], dict[str, Callable[..., bool]]] = {
    # Of a module, when a keyword is set.
    ("module", "plain, one call"): {
        "The operator makes (B, K) targets.": lambda mix: mix.targets == "dense",
        "Masks that are stored are made between the plan and the images.": lambda mix: not mix._stored,
        "No operator draws, mixes and finishes.": lambda mix: mix.finish is None,
        "Some plans are finished after the sampler.": lambda mix: not mix._refines,
        "The operator makes a batch of as many samples.": lambda mix: not mix._adjacent,
    },
    ("module", "plain"): {
        "Embeddings come without labels_getter, and a function looks into the whole sample.": (
            lambda mix: getattr(mix, "labels_getter", None) == "default" and mix.images_getter is None
        ),
        "The dims of masks would have to be moved to the end.": lambda mix: mix.axes is None,
        "The operator draws a seed, or what torchvision draws: one λ and at most the centre or place of one box.": (
            lambda mix: (
                not mix._pairing.by_class
                if mix.sampling == "device"
                else mix._one_method and mix._per is Per.BATCH and mix._pairing.is_formula and mix.p == 1.0
            )
        ),
    },
    # Of a sample that was taken apart. The plain way takes two tensors, whose devices the operator compares.
    ("sample", "one call"): {
        "The operator mixes one stack of images and makes targets.": (
            lambda parsed: parsed.labels is not None and len(parsed.images) == 1 and not parsed.masks
        ),
        "The operator works on one device.": lambda parsed: parsed.labels.device == parsed.image.device,
    },
    # Of a module and a batch.
    ("batch", "plain, one call"): {"The operator has no derivative.": lambda mix, x, y: not tracked(x, y)},
    ("eager batch", "plain, one call"): {
        "Recomputations take the plan of the forward pass, and nothing but plans is recorded.": (
            lambda mix, x, y: not recording()
        ),
    },
    ("batch", "plain"): {
        "The operator draws from torch's generator, and a CUDA graph must not hold what was drawn on the host.": (
            lambda mix, x, y: mix._generator is None and not capturing()
        ),
        "Masks extend over what follows (B, C), of videos over (H, W); K is known, of a column of integers none.": (
            lambda mix, x, y: (
                3 <= x.ndim <= 4
                and (y.shape[1] > 1 and mix.num_classes in (None, y.shape[1]) if y.ndim == 2 else bool(mix.num_classes))
            )
        ),
    },
    # Of a backend, a module and a batch.
    ("cpp, cuda", "plain"): {
        "They would write numbers to memory that torch reads as their negatives.": (
            lambda mix, x, y: not (mix.inplace and x.is_neg())
        ),
    },
    ("cuda, triton", "plain"): {
        "Labels on a GPU are looked at only where the variable asks for it, and not by the operator.": (
            lambda mix, x, y: "FUSEDMIX_CHECK_LABELS" not in os.environ
        ),
    },
    ("triton, reference", "plain"): {
        # In Python an operator costs more than mixing a small batch does.
        "They mix without an operator, which a TorchDispatchMode would watch, and which would refuse longer sides.": (
            lambda mix, x, y: not torch._C._len_torch_dispatch_stack() and max(x.shape[2:]) <= LONGEST_SIDE
        ),
    },
    ("reference", "plain"): {
        "What it has without an operator is for one draw of the host.": (
            lambda mix, x, y: mix.sampling == "host" and x.is_cpu and y.is_cpu
        ),
    },
}


def _of(whose: str, way: str) -> tuple[Callable[..., bool], ...]:
    return tuple(
        holds
        for (owners, ways), rows in CONDITIONS.items()
        if whose in owners.split(", ") and way in ways.split(", ")
        for holds in rows.values()
    )


PLAIN_MODULE = _of("module", "plain")
PLAIN = {name: (*_of("batch", "plain"), *_of("eager batch", "plain"), *_of(name, "plain")) for name in backends.NAMES}
_ONE_CALL = {whose: _of(whose, "one call") for whose in ("module", "sample", "batch", "eager batch")}


def goes_in_one_call(mix: Any, parsed: Any) -> bool:
    """Whether one operator can mix a sample that was taken apart."""
    if not all(holds(mix) for holds in _ONE_CALL["module"]) or not all(holds(parsed) for holds in _ONE_CALL["sample"]):
        return False
    of_batch = _ONE_CALL["batch"] + (() if torch.compiler.is_compiling() else _ONE_CALL["eager batch"])
    return all(holds(mix, parsed.image, parsed.labels) for holds in of_batch)
