"""What a mixed image is made of: layers, each of which is a sample's image, or a crop of it in a box, with a weight for
each pixel. So boxes, masks of instances and keypoints know where they are and whether they are seen.

A rectangle is (..., 2, 2) float64: the first x and y inside, then the first ones behind, in pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fusedmix.masks.family import beside, geometry, kind, value
from fusedmix.methods import Families, Kind
from fusedmix.plan import MixPlan

_RECTANGULAR = Families.CONSTANTS | Families.CUTS | Families.BOXES


class Layers(NamedTuple):
    """The L layers of each of B mixed images. The rows of another tensor (B, L, ...) are theirs."""

    source: Tensor  # (B, L) int64: whose image it is
    boxes: Tensor  # (B, L, 2, 2): where it stands
    crops: Tensor  # (B, L, 2, 2): what of it stands there
    holes: Tensor  # (B, L, 2, 2): within the box a part with a weight of its own, which may be empty
    weight: Tensor  # (B, L, 2) float64: of its pixels around the hole and in it
    masks: Tensor | None  # (B, L, H, W) float64: in place of these, the weight of each pixel
    size: tuple[int, int]  # (H, W) of the images

    def shown(self) -> Tensor:
        """(B, L, H, W) bool: the pixels in which something of a layer is seen."""
        if self.masks is not None:
            return self.masks > 0
        around, inside = (self.weight > 0)[..., None, None].unbind(2)
        return self._within(self.boxes) & torch.where(self._within(self.holes), inside, around)

    def _within(self, rectangles: Tensor) -> Tensor:
        first, stop = rectangles[..., None, :].unbind(-3)  # (B, L, 1, 2)
        x, y = (torch.arange(side, device=rectangles.device) for side in reversed(self.size))
        across = (x >= first[..., 0]) & (x < stop[..., 0])
        down = (y >= first[..., 1]) & (y < stop[..., 1])
        return down.unsqueeze(3) & across.unsqueeze(2)


def layers_of(plan: MixPlan, device: torch.device) -> Layers:
    """The layers of a plan for images (H, W), on a device that has float64. No layer lies on another: where one has all
    of a pixel, the others have a weight of 0."""
    rectangular = plan.patches is not None or plan.blended or not int(plan.families) & ~int(_RECTANGULAR)
    masks = None if rectangular else plan.mask().to(device, torch.float64)
    plan = plan.to(device, non_blocking=device.type != "cpu")
    height, width = plan.size
    own = torch.arange(plan.batch_size, device=device)
    image = beside(own, (0, 0, width, height)).double().reshape(2, 2).expand(plan.batch_size, 1, 2, 2)
    nowhere = torch.zeros_like(image)
    if plan.patches is not None:
        source, (boxes, crops) = plan.patches.partner, map(_rectangles, plan.patches[1:])
        holes, alone = torch.zeros_like(boxes), source.shape[1] == 1
        if alone:  # What it leaves is the sample's own; several leave nothing.
            source, holes = torch.cat((own.unsqueeze(1), source), 1), torch.cat((boxes, holes), 1)
            boxes, crops = torch.cat((image, boxes), 1), torch.cat((image, crops), 1)
        weight = torch.ones_like(boxes[..., 0]) * (1 - torch.arange(2, device=device))
        return Layers(source, boxes, crops, holes, weight, None, (height, width))
    if plan.blended:
        assert plan.terms is not None
        source = plan.terms.partner
        holes, weight = nowhere, plan.terms.weight.unsqueeze(2).expand(-1, -1, 2)
    else:
        source = torch.stack((own, plan.partner), 1)
        hole = geometry(plan.masks).reshape(-1, 2, 3)[:, None, :, 1:].flip(3).double()
        holes = torch.where((kind(plan.masks) == Kind.BOX).reshape(-1, 1, 1, 1), hole, 0.0)
        weight = value(plan.masks).double()
        weight = torch.stack((weight, 1.0 - weight), 1)
        masks = None if masks is None else torch.stack((masks, 1.0 - masks), 1)
    count = 1 if plan.fill is not None else source.shape[1]  # A constant is nobody's image.
    image, holes = image.expand(-1, count, -1, -1), holes.expand(-1, count, -1, -1)
    masks = None if masks is None else masks[:, :count]
    return Layers(source[:, :count], image, image, holes, weight[:, :count], masks, (height, width))


def _rectangles(boxes: Tensor) -> Tensor:
    """Of boxes (..., 4) as plans have them: top, left, bottom, right."""
    return boxes.unflatten(-1, (2, 2)).flip(-1).double()


def moved(points: Tensor, boxes: Tensor, crops: Tensor) -> Tensor:
    """Where points (..., n, 2) of images are, whose crops stand in boxes, both (..., 2, 2)."""
    (first, stop), (start, end) = boxes.split(1, -2), crops.split(1, -2)
    return (points - start) * ((stop - first) / (end - start).clamp_min(1.0)) + first


def meet(a: Tensor, b: Tensor) -> Tensor:
    """What two rectangles have in common, perhaps nothing."""
    first, stop = torch.maximum(a[..., 0, :], b[..., 0, :]), torch.minimum(a[..., 1, :], b[..., 1, :])
    return torch.stack((first, torch.maximum(first, stop)), -2)


def area(rectangles: Tensor) -> Tensor:
    """In pixels; 0 of one that stops before it begins."""
    return (rectangles[..., 1, :] - rectangles[..., 0, :]).clamp_min(0.0).prod(-1)


class Seen(NamedTuple):
    """What is seen of rectangles (B, L, N, 2, 2) that lie in the boxes of their layers."""

    bounds: Tensor  # (B, L, N, 2, 2): the smallest rectangle that has all of it
    area: Tensor  # (B, L, N): in pixels
    weight: Tensor  # (B, L, N): the mean weight of it


def seen(rectangles: Tensor, layers: Layers) -> Seen:
    """What is seen of rectangles in their layers. Parts of pixels count as such."""
    return _around_holes(rectangles, layers) if layers.masks is None else _under_masks(rectangles, layers.masks)


def _around_holes(rectangles: Tensor, layers: Layers) -> Seen:
    hidden = meet(rectangles, layers.holes.unsqueeze(2))
    around, inside = layers.weight.unsqueeze(2).unbind(-1)
    inner = area(hidden)
    outer = torch.where(around > 0, area(rectangles) - inner, 0.0)
    inner = torch.where(inside > 0, inner, 0.0)
    rest = torch.where((inside > 0)[..., None, None], rectangles, _without(rectangles, hidden))
    bounds = torch.where((around > 0)[..., None, None], rest, hidden)
    total = outer + inner
    return Seen(bounds, total, (outer * around + inner * inside) / total)


def _without(rectangles: Tensor, hidden: Tensor) -> Tensor:
    """The bounds of rectangles without a part that is hidden: a side moves if the part spans the other one."""
    (first, stop), (begin, end) = rectangles.unbind(-2), hidden.unbind(-2)
    spans = ((begin <= first) & (end >= stop)).flip(-1) & (area(hidden) > 0).unsqueeze(-1)
    return torch.stack(
        (torch.where(spans & (begin <= first), end, first), torch.where(spans & (end >= stop), begin, stop)), -2
    )


def _under_masks(rectangles: Tensor, masks: Tensor) -> Seen:
    """By how much of each pixel lies in a rectangle, along either side: products of these are areas."""
    (across, columns), (down, rows) = (
        _covered(rectangles[..., axis], masks.shape[3 - axis]) for axis in (0, 1)
    )  # (B, L, N, W), (B, L, N, H), and the pixels' coordinates
    shown = (masks > 0).double()
    by_row, by_column = down * (across @ shown.mT), across * (down @ shown)
    total = by_row.sum(-1)
    bounds = [
        torch.stack(
            (
                torch.where(part > 0, torch.maximum(pixel, of[..., :1]), torch.inf).amin(-1),
                torch.where(part > 0, torch.minimum(pixel + 1, of[..., 1:]), -torch.inf).amax(-1),
            ),
            -1,
        )
        for part, pixel, of in ((by_column, columns, rectangles[..., 0]), (by_row, rows, rectangles[..., 1]))
    ]
    weight = (down * (across @ masks.mT)).sum(-1) / total
    return Seen(torch.stack(bounds, -1), total, weight)


def _covered(interval: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """(..., side): how much of each pixel along a side is in intervals (..., 2); (side,): where the pixels begin."""
    pixel = torch.arange(side, device=interval.device, dtype=interval.dtype)
    first, stop = interval[..., :1], interval[..., 1:]
    return (torch.minimum(stop, pixel + 1) - torch.maximum(first, pixel)).clamp_min(0.0), pixel
