"""torchvision's two-stage detectors with a weight for every box, as the boxes of mixed images have one.

Examples:
    >>> model = weigh_boxes(fasterrcnn_resnet50_fpn(num_classes=91))
    >>> for images, targets in loader:
    ...     images, targets = mix(images, targets)  # every target gets "weights"
    ...     loss = sum(model(images, targets).values())
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

try:
    from torchvision.models.detection.roi_heads import RoIHeads
except ModuleNotFoundError as error:
    raise ImportError(
        "fusedmix.integrations.detection needs torchvision, which is not installed: pip install torchvision"
    ) from error


class WeightedRoIHeads(RoIHeads):
    """torchvision's RoIHeads, but the losses of a proposal are multiplied by the weight of the box that it was matched
    with, "weights" of its target. Those of background, and targets without weights, have 1."""

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """As RoIHeads.forward."""
        if not self.training:
            return super().forward(features, proposals, image_shapes, targets)
        assert targets is not None
        proposals, matched, labels, deltas = self.select_training_samples(proposals, targets)
        logits, boxes = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, image_shapes)))
        weight = torch.cat([_weights_of(*of) for of in zip(targets, matched, labels, strict=True)])
        losses = _losses(logits, boxes, torch.cat(labels), torch.cat(deltas), weight)
        return [], dict(zip(("loss_classifier", "loss_box_reg"), losses, strict=True))


def _weights_of(target: dict[str, Tensor], matched: Tensor, labels: Tensor) -> Tensor:
    """(n,) of the proposals of an image, by the boxes that they were matched with."""
    if "weights" not in target or not len(target["weights"]):
        return torch.ones_like(matched, dtype=torch.float32)
    return torch.where(labels > 0, target["weights"][matched], 1.0)


def _losses(logits: Tensor, boxes: Tensor, labels: Tensor, deltas: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Both losses of Faster R-CNN, means over all proposals, with β = 1/9 as torchvision has it."""
    classes = (F.cross_entropy(logits, labels, reduction="none") * weight).sum() / labels.numel()
    positive = torch.where(labels > 0)[0]
    chosen = boxes.reshape(len(labels), -1, 4)[positive, labels[positive]]
    of_boxes = F.smooth_l1_loss(chosen, deltas[positive], beta=1 / 9, reduction="none").sum(1)
    return classes, (of_boxes * weight[positive]).sum() / labels.numel()


def weigh_boxes(model: nn.Module) -> nn.Module:
    """Makes a detector of torchvision (FasterRCNN) weigh its boxes, in place.

    The losses of the classifier and of the boxes get the weights; that of the region proposal network, which asks
    whether anything is there, does not.

    Args:
        model: a model with `roi_heads` of torchvision, without heads for masks or keypoints.

    Returns:
        The model.

    Raises:
        TypeError: the model has no such heads.
        ValueError: it has a head for masks or for keypoints, whose loss has no weights.
    """
    heads: Any = getattr(model, "roi_heads", None)
    if type(heads) not in (RoIHeads, WeightedRoIHeads):
        raise TypeError(f"model must have roi_heads of torchvision, but got {type(model).__name__}.")
    if heads.has_mask() or heads.has_keypoint():
        raise ValueError("model must be without heads for masks and for keypoints, whose losses have no weights.")
    heads.__class__ = WeightedRoIHeads
    return model
