"""How batches are finished, and what is drawn for them: what the kernels of finish_kernel.py are given."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedmix.arguments import MaskArguments
from fusedmix.backends.triton.enums import Families, Rows, Source
from fusedmix.backends.triton.finish_kernel import TOGETHER, draw_finish_kernel, finish_images_kernel
from fusedmix.backends.triton.launch import Kernel, brought, of_seed
from fusedmix.backends.triton.mix_launch import NOTHING_GIVEN, families_of, followed, of_plan
from fusedmix.backends.triton.numbers import bits
from fusedmix.erasing import HEAD, PER_HOLE, Chances
from fusedmix.finishing import Filling, FinishArguments
from fusedmix.methods import Pairing

_images, _draw = Kernel(finish_images_kernel), Kernel(draw_finish_kernel)
_GROUPS, _PIXELS = 256, 512  # of a program: groups of four pixels, or pixels; half of that where there are holes
_DRAWS = {"S": 8, "T": 16}  # A program draws for S samples, by T tries at once, some more than there are (ATTEMPTS).
_ALONE = {
    "PAIRING": int(Pairing.ROLL), "MASKS": Rows.GIVEN, "FAMILIES": int(Families.CONSTANTS), "BINARY": False,
    "across": 0, "rows": 0,
}  # fmt: skip


class Way(NamedTuple):
    """How a launch goes through a batch."""

    programs: int
    named: dict[str, Any]  # What finish_images_kernel is given because of that, and where there is no plan.


@functools.lru_cache(maxsize=4096)
def way_of(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    item: int,
    address: int,
    nhwc: bool,
    channels_last: bool,
    drawn: bool,
    holes: int,
    varies: bool,
) -> Way:
    """Through a batch of that shape and those strides, its elements of `item` bytes, its memory beginning at multiples
    of `address` bytes.

    Args:
        nhwc, channels_last: whether channels come last in it, and in the new batch.
        drawn, holes: whether samples may be flipped, and how many holes they have at most.
        varies: whether weights depend on where a pixel is.
    """
    order = (0, 3, 1, 2) if nhwc else (0, 1, 2, 3)
    batch, channels, height, width = (shape[d] for d in order)
    # Of a dim of one element the stride says nothing.
    of_sample, of_channel, of_row, of_pixel = (strides[d] if shape[d] > 1 else 0 for d in order)
    of_pixel = of_pixel if width > 1 else of_row
    flat = not (drawn or varies) and (height == 1 or of_row == width * of_pixel)
    last, row = channels_last and channels > 1, 0 if flat else of_row
    size = 4 if (height * width if flat else width) % 4 == 0 else 1
    planes, pixels = of_pixel == 1, of_pixel == channels and of_channel == 1
    whole = size == 4 and of_sample % 4 == row % 4 == 0 and (pixels or of_channel % 4 == 0)
    source = Source.ELEMENTS
    if whole and item == 1 and channels <= TOGETHER and address % 4 == 0:
        source = Source.PLANES if planes else Source.PIXELS if pixels else source
    if whole and source == Source.ELEMENTS and not drawn and address % (4 * item) == 0:
        source = Source.VECTORS if (pixels if last else planes) else source
    unit = 1 if source == Source.ELEMENTS else 4
    groups = height * width // size
    most = (_GROUPS if size == 4 else _PIXELS) // (2 if holes else 1)
    vectors = min(most, 1 << (groups - 1).bit_length())
    tiles = -(-groups // vectors)
    parts = channels if last and channels > TOGETHER else -(-channels // TOGETHER)
    return Way(batch * tiles * parts, NOTHING_GIVEN | _ALONE | {
        "batch_stride": of_sample // unit, "channel_stride": of_channel // unit, "row_stride": row // unit,
        "pixel_stride": of_pixel, "groups": groups, "tiles": tiles, "batch": batch, "height": height, "width": width,
        "DRAWN": drawn, "HOLES": holes, "CHANNELS": channels, "LAST": last, "SOURCE": int(source), "FLAT": flat,
        "V": size, "N": vectors,
    })  # fmt: skip


def finish(x: Tensor, how: FinishArguments, plan: MaskArguments | None = None) -> Tensor:
    """The new batch, mixed if there is a plan."""
    batch, *rest = x.shape
    planes = (rest[2], rest[0], rest[1]) if how.nhwc else rest
    layout = torch.channels_last if how.channels_last else torch.contiguous_format
    out = torch.empty((batch, *planes), dtype=how.dtype, device=x.device, memory_format=layout)
    if out.numel() == 0:
        return out
    families = int(Families.CONSTANTS) if plan is None else families_of(plan)
    holes = 0 if how.draws is None else (how.draws.shape[1] - HEAD) // PER_HOLE
    here = x.data_ptr() & 15 or 16
    way = way_of(
        tuple(x.shape), x.stride(), x.element_size(), here & -here, how.nhwc, how.channels_last,
        how.draws is not None, holes, families != Families.CONSTANTS,
    )  # fmt: skip
    named = {
        **way.named, "partner": x, "records": x, "pixels": x, "MIXED": plan is not None, "src": x, "dst": out,
        "affine": how.affine.contiguous(), "draws": x if how.draws is None else brought(x.device, how.draws),
        "FILL": how.fill if holes else int(Filling.NUMBER),
    }  # fmt: skip
    if plan is not None:
        named.update(of_plan(followed(plan), families, x))
    _images.launch(way.programs, x.device, named)
    return out


def draw(
    chances: Tensor, holes: int, seed: Tensor, batch: int, height: int, width: int, device: torch.device
) -> Tensor:
    """(B, 4 + 4·holes) int32: flips and holes, on `device`."""
    of = Chances(*chances.tolist())
    out = torch.empty((batch, HEAD + PER_HOLE * holes), dtype=torch.int32, device=device)
    numbers = {
        "flip": of.flip, "erase": of.erase, "area_low": of.area_low, "area_more": of.area_high - of.area_low,
        "ratio_low": of.ratio_low, "ratio_log": of.ratio_log, "area": float(height * width),
    }  # fmt: skip
    named = {
        **of_seed(seed, out.view(torch.int64)), **{name: bits(number) for name, number in numbers.items()}, **_DRAWS,
        "out": out, "batch": batch, "height": height, "width": width, "parts": max(1, holes), "most": holes,
        "least": int(of.least),
    }  # fmt: skip
    _draw.launch(-(-batch // _DRAWS["S"]) * max(1, holes), out.device, named)
    return out
