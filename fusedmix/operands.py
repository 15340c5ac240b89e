"""What operators that are written in Python are called with, checked before anything is drawn, made or written: an
operator is safe whoever calls it, and its kernels may take for granted what is checked here. The mirror of
csrc/binding/checks.h, which does the same for those in C++.

What tensors hold is checked on the CPU, and on a GPU only if FUSEDMIX_CHECK_PLANS=1 asks for it (checks.readable).
There kernels take a sample whose partner is none for its own partner, and make NaN of one whose mask is unknown.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fusedmix import checks, masks
from fusedmix.arguments import LossArguments, MaskArguments, Patches, PixelLossArguments, compute_dtype
from fusedmix.backends.grid_cut import LABELS, MOST_BLOCKS
from fusedmix.draws import CPU, Request, Source
from fusedmix.erasing import HEAD, PER_HOLE, Chances, Word
from fusedmix.finishing import FINISHED_DTYPES, MOST_HOLES, RATIOS, Filling, FinishArguments
from fusedmix.masks.family import padded
from fusedmix.methods import WIDTH, Column, Method, Number, Pairing, Per, Reduction, Resize
from fusedmix.spec import families

_METHODS = frozenset(Method)
MOST_PARTNERS = 8  # of a sample
_BOUNDED = [number for number in range(WIDTH) if number not in (Number.APPLIED, Number.LAM, Number.COIN)]


def checked(name: str, schema: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The operator of that name and schema, with its arguments checked."""
    check, gather = _CHECKS[name], gathering(schema)
    arguments = torch._C.parse_schema(name + schema).arguments
    tensors = [i for i, argument in enumerate(arguments) if isinstance(argument.type, torch.TensorType)]

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        for i in tensors:
            checks.tensor(arguments[i].name, args[i])  # Torch lets None pass.
        taken = gather(args)
        check(*taken)
        return function(*taken)

    return call


def gathering(schema: str) -> Callable[[Sequence[Any]], list[Any]]:
    """Takes the arguments of a schema, a row, and gives them with those in one that are the fields of a record."""
    names = [argument.name for argument in torch._C.parse_schema("operator" + schema).arguments]
    parts: list[tuple[Callable[..., Any] | None, slice]] = []
    start = 0
    while start < len(names):
        of = next((r for r in _RECORDS if r._fields == tuple(names[start : start + len(r._fields)])), None)
        stop = start + (1 if of is None else len(of._fields))
        parts.append((None if of is None else _RECORDS[of], slice(start, stop)))
        start = stop

    def gather(args: Sequence[Any]) -> list[Any]:
        taken: list[Any] = []
        # A slice may end early: torch leaves out the last arguments where they are the defaults.
        for record, of in parts:
            if record is None:
                taken.extend(args[of])
            else:
                taken.append(record(*args[of]))
        return taken

    return gather


def _request(*fields: Any) -> Request:
    """A request with names in place of numbers."""
    spec, batch_size, size, pairing, per, *rest = fields
    _hints(pairing, per)
    return Request(spec, batch_size, tuple(size), Pairing(pairing), Per(per), *rest)


_RECORDS: dict[Any, Callable[..., Any]] = {
    Request: _request,
    Source: Source,
    MaskArguments: MaskArguments,
    Patches: Patches,
    LossArguments: LossArguments,
    PixelLossArguments: PixelLossArguments,
    FinishArguments: FinishArguments,
}


# ---- Parts of arguments ----------------------------------------------------------------------------------------------


def _beside(name: str, x: Tensor | None, device: torch.device, *, or_cpu: bool = False) -> None:
    if x is not None and x.device != device and not (or_cpu and x.device.type == "cpu"):
        raise ValueError(f"{name} must be on {device}{' or on the CPU' if or_cpu else ''}, but is on {x.device}.")


def _rows(name: str, x: Tensor) -> int:
    if x.ndim < 1:
        raise ValueError(f"{name} must have a batch dim, but got shape ().")
    return x.shape[0]


def _sides(size: Sequence[int], least: int) -> None:
    checks.integer("the number of spatial dims", len(size), 1, 3)
    _sides_of(size, least)


def _sides_of(size: Sequence[int], least: int) -> None:
    for side in size:
        checks.integer("a spatial side", side, least, checks.LONGEST_SIDE)
    if math.prod(size) >= 1 << 63:
        raise ValueError(f"images must have fewer than 2^63 pixels, but got {tuple(size)}.")


def _stored(size: Sequence[int]) -> None:
    if math.prod(size) > checks.LONGEST_SIDE:
        raise ValueError(f"the pixels of FMix's masks must be fewer than 2^31, but got {tuple(size)}.")


def _hints(pairing: int, per: int) -> None:
    checks.integer("pairing", pairing, 0, len(Pairing) - 1)
    checks.integer("per", per, 0, len(Per) - 1)


def _seed(seed: Tensor, *, needed: bool) -> None:
    if seed.dtype != torch.int64 or seed.numel() > 1 or (needed and not seed.numel()):
        raise ValueError(f"seed must be one number of int64, but got {seed.dtype} of shape {tuple(seed.shape)}.")


def _spec(spec: Tensor) -> bool:
    """Whether there are masks to be stored among those of the methods."""
    _beside("spec", spec, CPU)
    checks.shaped("spec", spec, torch.float64, _rows("spec", spec), len(Column))
    checks.integer("the number of methods", spec.shape[0], 1)
    for i, row in enumerate(spec.tolist()):
        method = row[Column.METHOD]
        known = method in _METHODS
        if known:
            family = masks.of(Method(int(method)))
            known = row[Column.DRAWS] == family.draws(row) and 0 < row[Column.FAMILIES] == family.may_hold(row)
            known = known and 0 <= row[Column.SIDE_LOW] <= row[Column.SIDE_HIGH] <= 1 and row[Column.RATIO_ALPHA] >= 0
            known = known and 0 <= row[Column.ASPECT_LOW] <= row[Column.ASPECT_HIGH] < math.inf
        if not known or not (0 <= row[Column.DECAY] <= 100 and row[Column.CUTOFF] >= 0):
            raise ValueError(f"row {i} of spec describes no method.")
    return families(spec).stored


def _masks(
    x: Tensor,
    families: int,
    batch_size: int,
    size: Sequence[int],
    per: int,
    pixels: Tensor | None,
    device: torch.device,
) -> None:
    """Of images of that size, () if all masks are constant."""
    checks.part("masks", x, batch_size)
    _beside("masks", x, device, or_cpu=True)
    if pixels is not None:
        _stored(size)
        checks.pixels(pixels, batch_size, tuple(size), families, per, needed=False)
        _beside("pixels", pixels, device, or_cpu=True)
    checks.records(x, families, pixels, spatial=len(size) > 0)


def _labels(labels: Tensor, batch_size: int, num_classes: int, *, soft: bool = True) -> None:
    checks.integer("num_classes", num_classes, 1)
    checks.labels(labels, num_classes)
    if labels.shape[0] != batch_size or (labels.ndim == 2 and not soft):
        raise ValueError(
            f"labels must have {batch_size} rows{'' if soft else ' of one class'}, but got shape {tuple(labels.shape)}."
        )


# ---- Operators -------------------------------------------------------------------------------------------------------


def _check_mix(x: Tensor, plan: MaskArguments, *, permutation: bool = False, partners: int | None = None) -> None:
    """`partners`: among how many samples they are, if not among those of x."""
    checks.batch("x", x)
    checks.integer("ndim", plan.ndim, 0, 3)
    if x.ndim < plan.ndim + 1:
        raise ValueError(f"x must have a batch dim before {plan.ndim} spatial dims, but got shape {tuple(x.shape)}.")
    size = tuple(x.shape[x.ndim - plan.ndim :])
    _sides_of(size, 0)
    _hints(plan.pairing, plan.per)
    checks.part("partner", plan.partner, x.shape[0])
    _beside("partner", plan.partner, x.device, or_cpu=True)
    _masks(plan.masks, plan.families, x.shape[0], size, plan.per, plan.pixels, x.device)
    checks.partners(plan.partner, permutation=permutation, among=partners)


def _check_adjoint(grad: Tensor, plan: MaskArguments) -> None:
    if not grad.is_floating_point():
        raise ValueError(f"grad must be floating point, but got {grad.dtype}.")
    _check_mix(grad, plan, permutation=True)


def _check_mix_with(x: Tensor, other: Tensor, plan: MaskArguments) -> None:
    _check_mix(x, plan, partners=other.shape[0] if other.ndim else 0)
    if other.dtype != x.dtype or other.shape[1:] != x.shape[1:]:
        raise ValueError(
            f"other must be {checks.names([x.dtype])} of shape (samples, {', '.join(map(str, x.shape[1:]))}), but got "
            f"{checks.names([other.dtype])} of shape {tuple(other.shape)}."
        )
    _beside("other", other, x.device)
    if any(a != b and side > 1 for a, b, side in zip(other.stride()[1:], x.stride()[1:], x.shape[1:], strict=True)):
        raise ValueError(
            f"other must have the strides of x within a sample, {x.stride()[1:]}, but got {other.stride()[1:]}."
        )


def _check_several(x: Tensor, partner: Tensor) -> int:
    """Of several partners for each sample: how many."""
    checks.batch("x", x)
    if partner.dtype != torch.int64 or partner.ndim != 2 or partner.shape[0] != x.shape[0]:
        raise ValueError(
            f"partner must be int64 of shape ({x.shape[0]}, partners of a sample), but got "
            f"{checks.names([partner.dtype])} of shape {tuple(partner.shape)}."
        )
    _beside("partner", partner, x.device, or_cpu=True)
    checks.integer("the partners of a sample", partner.shape[1], 1, MOST_PARTNERS)
    checks.partners(partner)
    return partner.shape[1]


def _check_paste(x: Tensor, patches: Patches, resize: int) -> None:
    count = _check_several(x, patches.partner)
    checks.integer("resize", resize, 0, len(Resize) - 1)
    boxes = patches.boxes
    ndim = boxes.shape[2] // 2 if boxes.ndim == 3 else 0
    if not 1 <= ndim <= min(3, x.ndim - 1):
        raise ValueError(
            f"boxes must be (batch_size, partners of a sample, 2·sides) for 1 to 3 sides of x, which has shape "
            f"{tuple(x.shape)}, but got shape {tuple(boxes.shape)}."
        )
    size = tuple(x.shape[x.ndim - ndim :])
    _sides_of(size, 0)
    sides = torch.tensor(size, device=boxes.device)
    for name, t in (("boxes", boxes), ("crops", patches.crops)):
        checks.shaped(name, t, torch.int32, x.shape[0], count, 2 * ndim)
        _beside(name, t, x.device, or_cpu=True)
        first, stop = t[..., :ndim], t[..., ndim:]
        if checks.readable(t) and not ((first >= 0) & (first <= stop) & (stop <= sides.to(t.device))).all():
            raise ValueError(f"{name} must have 0 <= first <= stop <= side along every side of images of size {size}.")
    if checks.readable(boxes) and checks.readable(patches.crops):
        empty = [(t[..., :ndim] == t[..., ndim:]).any(2) for t in (boxes, patches.crops)]
        if (empty[1].to(empty[0].device) & ~empty[0]).any():
            raise ValueError("crops must have pixels wherever their boxes have some, but one of them has none.")


def _check_blend(x: Tensor, partner: Tensor, weight: Tensor) -> None:
    checks.shaped("weight", weight, torch.float32, x.shape[0] if x.ndim else 0, _check_several(x, partner))
    _beside("weight", weight, x.device, or_cpu=True)


def _check_border_costs(x: Tensor, partner: Tensor, scale: Tensor, cells: Sequence[int]) -> None:
    checks.batch("x", x)
    if x.ndim != 4 or not x.shape[1]:
        raise ValueError(f"x must be (B, C, H, W) with at least one channel, but got shape {tuple(x.shape)}.")
    _sides_of(x.shape[2:], 1)
    checks.integer("the number of cells", len(cells), 2, 2)
    for side, count in zip(x.shape[2:], cells, strict=True):
        checks.integer("the blocks along a side", count, 1, MOST_BLOCKS)
        if side % count:
            raise ValueError(f"cells must divide the sides of x, {tuple(x.shape[2:])}, but got {tuple(cells)}.")
    checks.part("partner", partner, x.shape[0])
    checks.shaped("scale", scale, torch.float32, x.shape[1])
    for name, t in (("partner", partner), ("scale", scale)):
        _beside(name, t, x.device)
    checks.partners(partner)


def _check_label_grid(unary: Tensor, right: Tensor, down: Tensor) -> None:
    if unary.dtype != torch.int32 or unary.ndim != 4 or unary.shape[3] != LABELS:
        raise ValueError(
            f"unary must be int32 of shape (batch_size, blocks, blocks, {LABELS}), but got "
            f"{checks.names([unary.dtype])} of shape {tuple(unary.shape)}."
        )
    batch_size, height, width, _ = unary.shape
    for side in (height, width):
        checks.integer("the blocks along a side", side, 1, MOST_BLOCKS)
    for name, weights, shape in (("right", right, (height, width - 1)), ("down", down, (height - 1, width))):
        checks.shaped(name, weights, torch.int32, batch_size, *shape)
        _beside(name, weights, unary.device)
        if checks.readable(weights) and (weights < 0).any():
            raise ValueError(f"{name} must not be negative, but holds a number that is.")


def _check_arrange_blocks(seen: Tensor, maps: Tensor, distance_cost: float) -> None:
    if seen.dtype != torch.bool or seen.ndim != 3:
        raise ValueError(
            f"seen must be bool of shape (batch_size, blocks, blocks), but got {checks.names([seen.dtype])} of shape "
            f"{tuple(seen.shape)}."
        )
    for side in seen.shape[1:]:
        checks.integer("the blocks along a side", side, 1, MOST_BLOCKS)
    checks.shaped("maps", maps, torch.float32, *seen.shape)
    _beside("maps", maps, seen.device)
    checks.number("distance_cost", distance_cost, 0.0, open_low=True)
    if checks.readable(maps) and not ((maps >= 0) & (maps <= 1)).all():
        raise ValueError("maps must be in [0, 1] everywhere, but holds other numbers.")


def _check_mask(
    records: Tensor, families: int, size: Sequence[int], per: int = Per.SAMPLE, pixels: Tensor | None = None
) -> None:
    _sides(size, 0)
    _hints(Pairing.RANDOM, per)
    _masks(records, families, _rows("masks", records), size, per, pixels, records.device)


def _check_fourier(
    spec: Tensor, records: Tensor, seed: Tensor, size: Sequence[int], per: int, draws: int, soft: bool
) -> None:
    _spec(spec)
    _sides(size, 1)
    _stored(size)
    _hints(Pairing.RANDOM, per)
    _hints(Pairing.RANDOM, draws)
    batch_size = _rows("masks", records)
    checks.part("masks", records, batch_size)
    _seed(seed, needed=batch_size > 0)


def _check_sample(request: Request, source: Source, device: torch.device | None = None) -> None:
    spec, batch_size, lam, labels = request.spec, request.batch_size, request.lam, request.labels
    stored = _spec(spec)
    checks.integer("the batch size", batch_size, 0)
    _sides(request.size, 1)
    if stored:
        _stored(request.size)
    if lam is not None:
        checks.shaped("lam", lam, torch.float32, *((batch_size,) if lam.ndim else ()))
    if labels is not None:
        checks.shaped("labels", labels, torch.int64, batch_size)
    if source.seed is not None:
        _seed(source.seed, needed=False)  # A seed that is to be drawn has no number.
    if source.drawn is not None:
        _drawn(source.drawn, request)
    if source.partner is not None:
        _beside("partner", source.partner, CPU)
        checks.part("partner", source.partner, batch_size)
        checks.partners(source.partner, permutation=True)
    if source.drawn is not None and source.partner is None and not request.pairing.is_formula:
        raise ValueError("partner must come with drawn, where it is no formula, but got None.")
    if request.pairing > Pairing.RANDOM and source.partner is None and labels is None:
        raise ValueError("labels must come where partners depend on them, but got None.")


def _drawn(drawn: Tensor, request: Request) -> None:
    _beside("drawn", drawn, CPU)
    checks.shaped("drawn", drawn, torch.float64, request.draws, WIDTH)
    most = torch.full((WIDTH,), math.inf, dtype=torch.float64, device=CPU)
    most[Number.CHOICE], most[Number.NOISE] = request.spec.shape[0], 2.0**52
    most[Number.CENTRE : Number.COIN] = torch.tensor(padded(request.size), device=CPU)
    most[Number.PLACE : Number.RATIO], most[Number.RATIO] = 2.0**32, math.nextafter(1.0, 2.0)
    if not ((drawn >= 0) & (drawn < most))[:, _BOUNDED].all():
        raise ValueError(
            "drawn must have methods of the spec, centres inside of the image, seeds in [0, 2^52), places, sides "
            "and aspects in [0, 2^32), and ratios in [0, 1]."
        )


def _check_step(
    x: Tensor, y: Tensor, request: Request, source: Source, num_classes: int, label_smoothing: float
) -> None:
    _check_sample(request, source)
    batch_size, size = request.batch_size, request.size
    if families(request.spec).stored:
        raise ValueError("FMix cannot be mixed in one call: its masks are made between the plan and the images.")
    checks.batch("x", x)
    if x.ndim < len(size) + 1 or x.shape[0] != batch_size or tuple(x.shape[x.ndim - len(size) :]) != size:
        raise ValueError(f"x must be ({batch_size}, ..., *{size}), but got shape {tuple(x.shape)}.")
    _labels(y, batch_size, num_classes)
    _beside("labels", y, x.device)
    if y.ndim == 1:  # Wrong labels are refused before anything is drawn.
        checks.class_range(y, num_classes)


_CHANCES = (
    *((name, 0.0, 1.0) for name in ("flip", "erase", "area_low", "area_high")),
    ("ratio_low", *RATIOS),
    ("ratio_log", 0.0, 28.0),  # log(1e6 / 1e-6), and what rounds to it
)


def _check_draw_finish(
    chances: Tensor, holes: int, seed: Tensor, batch_size: int, height: int, width: int, device: torch.device
) -> None:
    _beside("chances", chances, CPU)
    checks.shaped("chances", chances, torch.float64, len(Chances._fields))
    of = Chances(*chances.tolist())
    for name, low, high in _CHANCES:
        checks.number(f"{name} in chances", getattr(of, name), low, high)
    checks.integer("holes", holes, 0, MOST_HOLES)
    if not 0 <= of.least <= of.most == holes:
        raise ValueError(f"chances must be of 0 to {holes} holes, but got {of.least:g} to {of.most:g}.")
    _seed(seed, needed=True)
    checks.integer("the batch size", batch_size, 0)
    _sides_of((height, width), 0)


def _check_finish(x: Tensor, how: FinishArguments) -> None:
    checks.batch("x", x)
    if x.ndim != 4:
        raise ValueError(f"x must have four dims, but got shape {tuple(x.shape)}.")
    if how.dtype not in FINISHED_DTYPES:
        raise ValueError(f"dtype must be one of {checks.names(FINISHED_DTYPES)}, but got {how.dtype}.")
    checks.shaped("affine", how.affine, compute_dtype(x), 3, x.shape[3 if how.nhwc else 1])
    _beside("affine", how.affine, x.device)
    checks.integer("fill", how.fill, 0, len(Filling) - 1)
    if how.draws is None:
        return
    _beside("draws", how.draws, x.device, or_cpu=True)
    words = how.draws.shape[1] if how.draws.ndim == 2 else 0
    holes = (words - HEAD) // PER_HOLE
    if how.draws.dtype != torch.int32 or how.draws.shape[:1] != x.shape[:1] or words != HEAD + PER_HOLE * holes:
        raise ValueError(
            f"draws must be int32 of shape ({x.shape[0]}, 4 + 4·holes), but got {how.draws.dtype} of shape "
            f"{tuple(how.draws.shape)}."
        )
    checks.integer("the holes of a sample in draws", holes, 0, MOST_HOLES)
    if checks.readable(how.draws):
        for count in how.draws[:, Word.HOLES].aminmax():
            checks.integer("the holes of a record in draws", int(count), 0, holes)


def _check_finish_mix(x: Tensor, how: FinishArguments, plan: MaskArguments) -> None:
    _check_finish(x, how)
    if plan.ndim not in (0, 2):
        raise ValueError(f"ndim must be 0 or 2, but got {plan.ndim}.")
    _check_mix(x.permute(0, 3, 1, 2) if how.nhwc else x, plan)


def _check_mix_labels(
    labels: Tensor, partner: Tensor, weight: Tensor, num_classes: int, label_smoothing: float
) -> None:
    batch_size = _rows("labels", labels)
    _labels(labels, batch_size, num_classes)
    for name, x in (("partner", partner), ("weight", weight)):
        checks.part(name, x, batch_size)
        _beside(name, x, labels.device, or_cpu=True)
    checks.partners(partner)


def _loss(of: LossArguments, pos_weight: Tensor | None = None, *, soft: bool) -> None:
    logits, labels = of.logits, of.labels
    if logits.ndim != 2 or logits.dtype not in checks.FLOATING_DTYPES:
        raise ValueError(
            f"logits must be (batch_size, num_classes) and floating point, but got {logits.dtype} of shape "
            f"{tuple(logits.shape)}."
        )
    batch_size, num_classes = logits.shape
    _labels(labels, batch_size, num_classes, soft=soft)
    if labels.ndim == 1:
        checks.shaped("labels", labels, torch.int64, batch_size)
    _beside("labels", labels, logits.device)
    _hints(of.pairing, of.per)
    for name, x in (("partner", of.partner), ("weight", of.weight)):
        checks.part(name, x, batch_size)
        _beside(name, x, logits.device, or_cpu=True)
    checks.partners(of.partner)
    for name, of_classes in (("class_weight", of.class_weight), ("pos_weight", pos_weight)):
        if of_classes is not None:
            checks.shaped(name, of_classes, compute_dtype(logits), num_classes)
            _beside(name, of_classes, logits.device)


def _reduction(reduction: int) -> None:
    checks.integer("reduction", reduction, 0, len(Reduction) - 1)


def _gradient(grad: Tensor, logits: Tensor) -> None:
    checks.shaped("grad", grad, compute_dtype(logits), *((logits.shape[0],) if grad.ndim else ()))
    _beside("grad", grad, logits.device)


def _check_cross_entropy(of: LossArguments, label_smoothing: float, ignore_index: int, reduction: int) -> None:
    _loss(of, soft=False)
    _reduction(reduction)


def _check_cross_entropy_backward(
    grad: Tensor, of: LossArguments, statistics: Tensor, scale: Tensor, label_smoothing: float, ignore_index: int
) -> None:
    _loss(of, soft=False)
    _gradient(grad, of.logits)
    compute = compute_dtype(of.logits)
    checks.shaped("statistics", statistics, compute, of.logits.shape[0], 2)
    checks.shaped("scale", scale, compute)
    _beside("statistics", statistics, of.logits.device)
    _beside("scale", scale, of.logits.device)


def _check_binary(
    of: LossArguments, pos_weight: Tensor | None, label_smoothing: float, threshold: float | None, reduction: int
) -> None:
    _reduction(reduction)
    _loss(of, pos_weight, soft=True)


def _check_binary_backward(grad: Tensor, of: LossArguments, *options: Any) -> None:
    _check_binary(of, *options)
    _gradient(grad, of.logits)


def _check_pixel_loss(of: PixelLossArguments, plan: MaskArguments) -> None:
    logits, maps = of.logits, of.maps
    if logits.ndim < 2 or logits.dtype not in checks.FLOATING_DTYPES or not logits.shape[1]:
        raise ValueError(
            f"logits must be (batch_size, num_classes, ...) and floating point, but got {logits.dtype} of shape "
            f"{tuple(logits.shape)}."
        )
    batch_size, num_classes, *size = logits.shape
    if maps.dtype not in (*checks.INTEGER_DTYPES, torch.bool) or maps.ndim < 1 or list(maps.shape[1:]) != size:
        raise ValueError(
            f"maps must be integers of shape ({', '.join(map(str, ('samples', *size)))}), but got "
            f"{checks.names([maps.dtype])} of shape {tuple(maps.shape)}."
        )
    if maps.shape[0] < batch_size:
        raise ValueError(f"maps must have {batch_size} samples at least, but got {maps.shape[0]}.")
    _beside("maps", maps, logits.device)
    checks.integer("the number of spatial dims", len(size), 0, 3)
    if of.class_weight is not None:
        checks.shaped("class_weight", of.class_weight, compute_dtype(logits), num_classes)
        _beside("class_weight", of.class_weight, logits.device)
    if plan.ndim not in (0, len(size)):
        raise ValueError(f"ndim must be 0 or {len(size)}, but got {plan.ndim}.")
    _check_mix(logits, plan, partners=maps.shape[0])


def _check_pixel_cross_entropy(of: PixelLossArguments, reduction: int, plan: MaskArguments) -> None:
    _check_pixel_loss(of, plan)
    checks.integer("reduction", reduction, Reduction.NONE, Reduction.MEAN)


def _check_pixel_cross_entropy_backward(
    grad: Tensor, of: PixelLossArguments, logsumexp: Tensor, scale: Tensor, plan: MaskArguments
) -> None:
    _check_pixel_loss(of, plan)
    pixels, compute = (of.logits.shape[0], *of.logits.shape[2:]), compute_dtype(of.logits)
    shapes = {"grad": (grad, pixels if grad.ndim else ()), "logsumexp": (logsumexp, pixels), "scale": (scale, ())}
    for name, (x, shape) in shapes.items():
        checks.shaped(name, x, compute, *shape)
        _beside(name, x, of.logits.device)


_CHECKS: dict[str, Callable[..., Any]] = {
    "sample": _check_sample,
    "mask": _check_mask,
    "fourier": _check_fourier,
    "mix": _check_mix,
    "mix_": functools.partial(_check_mix, permutation=True),
    "mix_adjoint": _check_adjoint,
    "mix_with": _check_mix_with,
    "mix_with_": _check_mix_with,
    "paste": _check_paste,
    "blend": _check_blend,
    "border_costs": _check_border_costs,
    "label_grid": _check_label_grid,
    "arrange_blocks": _check_arrange_blocks,
    "mix_labels": _check_mix_labels,
    "mix_batch": _check_step,
    "mix_batch_": _check_step,
    "draw_finish": _check_draw_finish,
    "finish": _check_finish,
    "finish_mix": _check_finish_mix,
    "cross_entropy": _check_cross_entropy,
    "cross_entropy_backward": _check_cross_entropy_backward,
    "binary_cross_entropy": _check_binary,
    "binary_cross_entropy_backward": _check_binary_backward,
    "pixel_cross_entropy": _check_pixel_cross_entropy,
    "pixel_cross_entropy_backward": _check_pixel_cross_entropy_backward,
}
