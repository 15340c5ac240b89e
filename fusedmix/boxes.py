"""Detection targets mixed by a plan: boxes, and the masks and keypoints of their instances."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fusedmix import checks, subclasses
from fusedmix.arguments import Patches
from fusedmix.backends import gathers
from fusedmix.backends.reference import has_float64
from fusedmix.draws import CPU
from fusedmix.layers import area, layers_of, meet, moved, seen
from fusedmix.masks.family import beside
from fusedmix.methods import Resize
from fusedmix.plan import MixPlan, same_batch

FormatName = Literal["xyxy", "xywh", "cxcywh"]

_REFUSED = ("span", "moves", "other_size")
_INTEGERS = (torch.int64, torch.int32, torch.int16)


class MixedBoxes(NamedTuple):
    """The boxes of mixed images. Of padded sets every field is a tensor, (B, M, ...) with M = N times the images that
    one is made of, the boxes that are kept first; of lists it is a list with a tensor (m_i, ...) for each sample.

    Attributes:
        boxes: (B, M, 4), in the format and the dtype that they came in.
        labels: (B, M, ...), as they came.
        weight: (B, M) float32 > 0: the mean share of its own image in what is seen of the box, at most 1 unless MixUp
            extrapolates.
        sample: (B, M) int64: the sample whose box it is, ...
        index: (B, M) int64: ... and which of its boxes.
        layer: (B, M) int64: by which of the images it came: 0 for that of the sample itself and 1 for its partner's, or
            the part of a Mosaic or RICAP, or the term of a MultiMix.
        valid: (B, M) bool: whether a box is kept. All fields are 0 where it is not. None of lists, which end there.
    """

    boxes: Any
    labels: Any
    weight: Any
    sample: Any
    index: Any
    layer: Any
    valid: Tensor | None = None

    def take(self, values: Any) -> Any:
        """What else belongs to the boxes, such as their tracks: of values (B, N, ...), or of a list with (n_i, ...) for
        each sample, those of the mixed boxes, in the form of these."""
        if self.valid is not None:
            return _kept(self.valid, values[self.sample, self.index])
        if not len(values):
            return []
        joined = torch.cat([subclasses.plain(x) for x in values])
        starts = torch.tensor([0, *itertools.accumulate(map(len, values))], device=CPU).to(joined.device)
        return [
            joined[starts[sample.to(joined.device)] + index.to(joined.device)]
            for sample, index in zip(self.sample, self.index, strict=True)
        ]


def mix_boxes(
    boxes: Tensor | Sequence[Tensor],
    labels: Tensor | Sequence[Tensor],
    plan: MixPlan,
    *,
    valid: Tensor | None = None,
    format: FormatName | None = None,
    normalized: bool = False,
    min_visible: float = 0.1,
) -> MixedBoxes:
    """Mixes the boxes of objects by the plan that mixed their images.

    A mixed image has the boxes of all images that it is made of, first the sample's own and then its partners', each
    set in its order. A box goes with its pixels, also where a crop is moved or resized (RICAP, Mosaic, ResizeMix). It
    is kept if enough of its area is seen, 1 - |box ∩ cut| / |box| >= min_visible for a CutMix, and becomes the smallest
    box around what is seen. |box| is the area within its own image. Where images are blended all of both is seen, and
    both sets are kept. `weight` then says how much each counts, λ and 1-λ for a MixUp (Zhang et al., "Bag of Freebies
    for Training Object Detection Neural Networks", 2019, arXiv:1902.04103). YOLO's trainers concatenate both sets and
    weigh nothing: ignore it for that. Parts of pixels count as such; weights follow from the pixels alone, also where
    a method has other label weights (SamplePairing).

    Args:
        boxes: (B, N, 4), padded; or a list with (n_i, 4) for each sample, n_i >= 0, such as tv_tensors.BoundingBoxes.
            Floating point, or integers if the format has corners. No gradient flows through.
        labels: (B, N, ...), or a list of (n_i, ...): what goes with each box, of any dtype.
        plan: the plan that mixed the images, for a size (H, W), on any device. Padded boxes don't wait for theirs.
        valid: which of the padded boxes there are: (B, N) bool, or (B,) integers, their numbers. None: all.
        format: "xyxy", the corners; "xywh", the first corner, width and height; "cxcywh", the centre, width and height.
            None: that of BoundingBoxes, or "xyxy".
        normalized: whether coordinates are shares of the width and the height of the image, and not pixels.
        min_visible: which share of a box has to be seen, in [0, 1]. A box of which nothing is seen is never kept.

    Returns:
        The boxes, none of them empty or outside the image. One that moves to no other place has the same numbers, bit
        for bit; of one that is resized, integers are rounded outwards.

    Raises:
        TypeError, ValueError: an argument is of the wrong type, dtype or shape, or the plan has partners from another
            batch, moves blocks, or has masks outside [0, 1].
    """
    min_visible = checks.number("min_visible", min_visible, 0.0, 1.0)
    checks.boolean("normalized", normalized)
    if format is not None:
        checks.choice("format", format, get_args(FormatName), {"coco": "xywh", "yolo": "cxcywh", "voc": "xyxy"})
    how = normalized, min_visible
    if isinstance(boxes, Tensor):
        return _mixed(subclasses.plain(boxes).detach(), labels, valid, plan, format or "xyxy", *how)
    if valid is not None:
        raise ValueError("valid must be None for a list of boxes, whose tensors say how many there are.")
    listed, their, form = check_lists(boxes, labels, format, getattr(plan, "size", None))
    counts = torch.tensor([len(x) for x in listed], dtype=torch.int64, device=CPU)
    made = _mixed(_padded(listed, (0, 4)), _padded(their, (0,)), counts, plan, form, *how)
    assert made.valid is not None
    kept = made.valid.sum(1).tolist()
    fields = ([row[:n] for row, n in zip(x, kept, strict=True)] for x in made[:-1])
    return MixedBoxes._make((*fields, None))


def check_lists(
    boxes: Any, labels: Any, format: FormatName | None, size: tuple[int, ...] | None
) -> tuple[list[Tensor], list[Tensor], FormatName]:
    """Lists of boxes in images of a size and of labels as plain tensors, each of one dtype and device, and the format,
    which may be that of BoundingBoxes.

    Raises:
        TypeError, ValueError: they are something else, or do not belong together.
    """
    for name, x in (("boxes", boxes), ("labels", labels)):
        if not isinstance(x, (list, tuple)) or not all(isinstance(each, Tensor) for each in x):
            raise TypeError(f"{name} must be a tensor, or a list or tuple of tensors, but got {type(x).__name__}.")
        if len({(each.dtype, each.device) for each in x}) > 1:
            came = ", ".join(sorted({f"{checks.names([each.dtype])} on {each.device}" for each in x}))
            raise ValueError(f"{name} must be of one dtype and on one device, but got {came}.")
    if len(boxes) != len(labels):
        raise ValueError(f"labels must be of as many samples as boxes, {len(boxes)}, but got {len(labels)}.")
    for i, (of_sample, its) in enumerate(zip(boxes, labels, strict=True)):
        found = subclasses.box_format(of_sample)
        if found is not None and found != format and (format is not None or found not in get_args(FormatName)):
            raise ValueError(f"boxes[{i}] must have the format {format or 'XYXY, XYWH or CXCYWH'}, but got {found}.")
        if found is not None and tuple(of_sample.canvas_size) != size:
            raise ValueError(
                f"boxes[{i}] must have the canvas size of the images, {size}, but got {of_sample.canvas_size}."
            )
        format = cast(FormatName, found) if found is not None else format
        if of_sample.ndim != 2 or of_sample.shape[1] != 4 or its.ndim < 1 or len(its) != len(of_sample):
            raise ValueError(
                f"boxes[{i}] and labels[{i}] must be of the shapes (n, 4) and (n, ...), but got "
                f"{tuple(of_sample.shape)} and {tuple(its.shape)}."
            )
        _check_dtype(of_sample.dtype, format or "xyxy", False)
    plain = [[subclasses.plain(each).detach() for each in x] for x in (boxes, labels)]
    return plain[0], plain[1], format or "xyxy"


def _check_dtype(dtype: torch.dtype, format: FormatName, normalized: bool) -> None:
    allowed = checks.FLOATING_DTYPES if normalized or format == "cxcywh" else (*checks.FLOATING_DTYPES, *_INTEGERS)
    if dtype not in allowed:
        of = f" in the format {format}{', normalized' if normalized else ''}"
        raise ValueError(
            f"boxes must be of one of the dtypes {checks.names(allowed)}{of}, but got {checks.names([dtype])}."
        )


def _padded(rows: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    """(B, n, ...) of tensors (n_i, ...), n the largest n_i; of no sample (0, *shape)."""
    return pad_sequence(list(rows), batch_first=True) if rows else torch.empty((0, *shape), device=CPU)


def _checked(boxes: Tensor, labels: Any, plan: Any, valid: Any, format: FormatName, normalized: bool) -> Tensor:
    """(B, N) bool: which boxes there are, if padded boxes and labels can be mixed by the plan."""
    same_batch("boxes", checks.dense("boxes", boxes), plan, refuse=_REFUSED)
    checks.partners(plan.partner)
    if len(plan.size) != 2:
        raise ValueError(f"plan must be for images (H, W), where boxes are, but is for the size {plan.size}.")
    _check_dtype(boxes.dtype, format, normalized)
    if boxes.ndim != 3 or boxes.shape[2] != 4:
        raise ValueError(f"boxes must be (batch_size, n, 4), but got shape {tuple(boxes.shape)}.")
    checks.tensor("labels", labels)
    if labels.shape[:2] != boxes.shape[:2] or labels.device != boxes.device:
        raise ValueError(
            f"labels must be of shape {(*boxes.shape[:2], '...')} on {boxes.device}, as boxes are, but got shape "
            f"{tuple(labels.shape)} on {labels.device}."
        )
    if valid is None:
        return torch.ones(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
    checks.tensor("valid", valid)
    if valid.ndim == 1 and valid.shape[0] == len(boxes) and valid.dtype in _INTEGERS:
        return torch.arange(boxes.shape[1], device=boxes.device) < valid.to(boxes.device).unsqueeze(1)
    checks.shaped("valid", valid, torch.bool, *boxes.shape[:2], why="Or it is (batch_size,) integers, the numbers.")
    return valid.to(boxes.device)


def _mixed(
    boxes: Tensor,
    labels: Any,
    valid: Any,
    plan: MixPlan,
    format: FormatName,
    normalized: bool,
    min_visible: float,
) -> MixedBoxes:
    """Of padded boxes; valid may be their numbers."""
    valid = _checked(boxes, labels, plan, valid, format, normalized)
    labels = subclasses.plain(labels)
    device = boxes.device if has_float64(boxes.device) else CPU
    layers = layers_of(plan, device)
    batch_size, count, height, width = *layers.source.shape, *plan.size
    sides = beside(layers.boxes, (width, height)) if normalized else None
    own = corners(boxes.to(device, torch.float64), format, sides)
    boxes_of, crops_of = layers.boxes.unsqueeze(2), layers.crops.unsqueeze(2)
    placed = moved(own[layers.source], boxes_of, crops_of)  # (B, L, N, 2, 2)
    image = beside(own, (0, 0, width, height)).double().reshape(2, 2)
    found = seen(meet(placed, boxes_of), layers)
    share = found.area / area(meet(placed, moved(image, boxes_of, crops_of)))
    given = boxes.to(device)[layers.source]
    made = _coordinates(found.bounds, format, sides, boxes.dtype)
    made = torch.where((found.bounds == own[layers.source]).all((3, 4)).unsqueeze(3), given, made)
    # A dtype may round what is left of a box to nothing.
    there = (found.area > 0) & (area(corners(made.double(), format, sides)) > 0)
    kept = (valid.to(device)[layers.source] & there & (share >= min_visible)).flatten(1)

    n = boxes.shape[1]
    sample = layers.source.unsqueeze(2).expand(-1, -1, n)
    index = torch.arange(n, device=device).expand(batch_size, count, n)
    layer = torch.arange(count, device=device).unsqueeze(1).expand(batch_size, count, n)
    fields = (made, labels.to(device)[sample, index], found.weight.float(), sample, index, layer)
    order = kept.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
    rows = torch.arange(batch_size, device=device).unsqueeze(1)
    kept = kept[rows, order]
    in_order = (_kept(kept, x.flatten(1, 2)[rows, order]).to(boxes.device) for x in fields)
    return MixedBoxes._make((*in_order, kept.to(boxes.device)))


def _kept(valid: Tensor, x: Tensor) -> Tensor:
    """x (B, M, ...), but 0 for boxes that are not there."""
    return x.masked_fill(~valid.reshape(*valid.shape, *[1] * (x.ndim - 2)), 0)


def corners(boxes: Tensor, format: str, sides: Tensor | None = None) -> Tensor:
    """Rectangles (..., 2, 2) in pixels; sides: of the image, if the boxes (..., 4) have shares of them."""
    first, second = boxes.unflatten(-1, (2, 2)).unbind(-2)
    if format == "cxcywh":
        first = first - second / 2
    if format != "xyxy":
        second = first + second
    found = torch.stack((first, second), -2)
    return found if sides is None else found * sides


def _coordinates(rectangles: Tensor, format: FormatName, sides: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Boxes (..., 4) of rectangles (..., 2, 2), as `corners` takes them; integers around them."""
    first, stop = (rectangles if sides is None else rectangles / sides).unbind(-2)
    if not dtype.is_floating_point:
        first, stop = first.floor(), stop.ceil()
    if format == "cxcywh":
        first, stop = (first + stop) / 2, stop - first
    elif format == "xywh":
        stop = stop - first
    return torch.cat((first, stop), -1).to(dtype)


def mix_instances(masks: Tensor | Sequence[Tensor], mixed: MixedBoxes, plan: MixPlan) -> Any:
    """The masks of the instances in mixed boxes: each goes with its box, and is 0 where its image is not seen.

    Args:
        masks: (B, N, H, W), or a list of (n_i, H, W), of any dtype: one for each box that was mixed.
        mixed: what `mix_boxes` has made of the boxes.
        plan: the plan that it has made it by.

    Returns:
        (B, M, H, W), or a list of (m_i, H, W), of the dtype of the masks. What is resized takes the nearest pixel.

    Raises:
        TypeError, ValueError: masks are not of as many samples, or not of the size of the plan.
    """
    checked = _of_samples("masks", masks, mixed, plan)
    height, width = plan.size
    for name, x in checked:
        if x.shape[-2:] != plan.size or x.ndim != (3 if mixed.valid is None else 4):
            raise ValueError(f"{name} must be (..., n, {height}, {width}), but got shape {tuple(x.shape)}.")
    layers = layers_of(plan, plan.device)
    shown = layers.shown()

    def placed(x: Tensor, image: Tensor, layer: Tensor) -> Tensor:
        if plan.patches is not None:
            boxes, crops = (of[image, layer].flip(2).flatten(1).int() for of in (layers.boxes, layers.crops))
            each = torch.arange(len(x), device=x.device)
            x = gathers.paste(x, Patches(each[:, None], boxes[:, None], crops[:, None]), Resize.NEAREST)
        return x.masked_fill(~shown[image, layer].to(x.device), 0)

    return _by_layer(placed, mixed.take(masks), mixed, plan.device)


def mix_keypoints(keypoints: Tensor | Sequence[Tensor], mixed: MixedBoxes, plan: MixPlan) -> Any:
    """The keypoints of the instances in mixed boxes: each goes with its box.

    Args:
        keypoints: (B, N, K, 2) of x and y in pixels; or (B, N, K, 3), with a visibility as COCO and torchvision have
            it, 0 of a point that is not there. Or a list of (n_i, K, 2) or (n_i, K, 3). Of any real dtype.
        mixed: what `mix_boxes` has made of the boxes.
        plan: the plan that it has made it by.

    Returns:
        (B, M, K, 2), or a list of (m_i, K, 2), of the same dtype; integers are rounded down. Of points with a
        visibility those in a pixel where their image is not seen are 0, 0, 0. Without one they are only moved, and may
        lie outside the image.

    Raises:
        TypeError, ValueError: keypoints are not of as many samples, or of another shape.
    """
    for name, x in _of_samples("keypoints", keypoints, mixed, plan):
        if x.ndim != (3 if mixed.valid is None else 4) or x.shape[-1] not in (2, 3):
            raise ValueError(f"{name} must be (..., n, points, 2 or 3), but got shape {tuple(x.shape)}.")
    layers = layers_of(plan, plan.device)
    shown, (height, width) = layers.shown(), plan.size

    def placed(x: Tensor, image: Tensor, layer: Tensor) -> Tensor:
        there = x.to(plan.device)
        points = moved(there[..., :2].double(), layers.boxes[image, layer], layers.crops[image, layer])
        made = (points if x.is_floating_point() else points.floor()).to(x.dtype)
        if x.shape[-1] == 2:
            return made.to(x.device)
        at = points.floor().long()
        column, row = at[..., 0].clamp(0, width - 1), at[..., 1].clamp(0, height - 1)
        inside = (at[..., 0] == column) & (at[..., 1] == row)
        seen = inside & shown[image[:, None], layer[:, None], row, column] & (there[..., 2] > 0)
        return torch.cat((made, there[..., 2:]), -1).masked_fill(~seen.unsqueeze(-1), 0).to(x.device)

    return _by_layer(placed, mixed.take(keypoints), mixed, plan.device)


def _of_samples(name: str, values: Any, mixed: MixedBoxes, plan: MixPlan) -> list[tuple[str, Tensor]]:
    """Values that belong to mixed boxes, with their names: a padded tensor, or those of each sample."""
    if not isinstance(mixed, MixedBoxes):
        raise TypeError(f"mixed must be MixedBoxes, which mix_boxes makes, but got {type(mixed).__name__}.")
    if not isinstance(plan, MixPlan):
        raise TypeError(f"plan must be a MixPlan, but got {type(plan).__name__}.")
    if mixed.valid is not None:
        values = [checks.tensor(name, values)]
        named, batch_size = [name], values[0].shape[0] if values[0].ndim else 0
    else:
        if not isinstance(values, (list, tuple)):
            raise TypeError(f"{name} must be a list of tensors, as boxes were, but got {type(values).__name__}.")
        named, batch_size = [f"{name}[{i}]" for i in range(len(values))], len(values)
    if not batch_size == len(mixed.sample) == plan.batch_size:
        raise ValueError(
            f"{name} must be of as many samples as mixed and plan are for, {len(mixed.sample)} and {plan.batch_size}, "
            f"but got {batch_size}."
        )
    return [(of, checks.tensor(of, x)) for of, x in zip(named, values, strict=True)]


def _by_layer(
    move: Callable[[Tensor, Tensor, Tensor], Tensor], values: Any, mixed: MixedBoxes, device: torch.device
) -> Any:
    """Values of mixed boxes, (m, ...) at a time, moved by the image that each box is in and by its layer, (m,)."""
    if mixed.valid is None:
        of_samples = enumerate(zip(values, mixed.layer, strict=True))
        return [move(x, torch.full_like(layer, i, device=device), layer.to(device)) for i, (x, layer) in of_samples]
    image = torch.arange(len(values), device=device).unsqueeze(1).expand(mixed.layer.shape)
    made = move(values.flatten(0, 1), image.flatten(), mixed.layer.flatten().to(device))
    return _kept(mixed.valid, made.unflatten(0, mixed.layer.shape))
