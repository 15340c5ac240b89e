"""Batches that are evaluated: their images are finished as those of the training are, and nothing else happens."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fusedmix import mixing, sample_tree
from fusedmix.module import MixTransform


def parse(batch: Any, mix: MixTransform) -> sample_tree.Sample:
    """Takes a batch apart as the module does; one to predict on may have no labels.

    Raises:
        ValueError: there are no images in it.
    """
    getter = mix.labels_getter
    if getter is not None:
        try:
            labels = sample_tree.find_labels(batch) if getter == "default" else getter(batch)
        except (LookupError, AttributeError, TypeError, ValueError):
            labels = None
        if not isinstance(labels, Tensor) or labels is batch:
            getter = None
    parsed = sample_tree.parse(batch, type(mix).__name__, getter, mix.images_getter, mix.axes)
    if not parsed.images:
        raise ValueError(f"A batch must hold images to be finished, but got a {type(batch).__name__} without any.")
    return parsed


def finished(batch: Any, mix: MixTransform) -> Any:
    """The batch with its images finished: not mixed, flipped or erased."""
    parsed, how = parse(batch, mix), mix.finish
    assert how is not None
    sample_tree.map_once(lambda x: mixing.finish(x, how, backend=mix.backend), parsed.leaves, parsed.images)
    return parsed.rebuild(parsed.leaves)
