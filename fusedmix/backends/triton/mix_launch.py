"""How masks, blends and their adjoint are launched: which way through a batch, measured or chosen, and what the kernels
of mix_kernel.py and mix_with_kernel.py are given."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedmix.arguments import MaskArguments
from fusedmix.backends.triton.enums import Families, Rows, Shape
from fusedmix.backends.triton.launch import Kernel, brought, milliseconds, multiprocessors, of_partners, pairing_of
from fusedmix.backends.triton.mix_kernel import inverse_kernel, mask_kernel, mix_kernel
from fusedmix.backends.triton.mix_layout import BINARY, Cut, cuts, layout_of
from fusedmix.backends.triton.mix_with_kernel import mix_with_kernel
from fusedmix.masks.constant import constant
from fusedmix.masks.family import WORDS, padded, record
from fusedmix.methods import Pairing, Per

_mix = {warps: Kernel(mix_kernel, warps) for warps in (1, 2, 4, 8, 16, 32)}
_mix_with = {warps: Kernel(mix_with_kernel, warps) for warps in (1, 2, 4)}
_TAKEN_WITH = frozenset(mix_with_kernel.arg_names)
_inverse, _mask = Kernel(inverse_kernel), Kernel(mask_kernel)
_INVERSE_BLOCK = 128
_MASK_BLOCK = 1024
_SLICE = 16 << 20  # Of a batch that is mixed in slices, each takes so many bytes of scratch.
_OF_PIXELS = int(Families.STORED | Families.LEVELS)
_WORDS = tuple(f"word_{k}" for k in range(WORDS))
NOTHING_GIVEN = dict.fromkeys(_WORDS, 0)
_AS_IT_IS = {
    **dict(zip(_WORDS, record(constant(1.0, 1.0))[0].tolist(), strict=True)),
    "PAIRING": int(Pairing.ROLL),
    "MASKS": Rows.GIVEN,
    "FAMILIES": int(Families.CONSTANTS),
    "BINARY": False,
}


class Way(NamedTuple):
    """How launches go through a batch."""

    cut: Cut
    columns: int  # Vectors of a sample.
    programs: int
    slice: int  # So many vectors of a sample are mixed at a time, in scratch; 0: all of them, without scratch.
    named: dict[str, Any]  # What mix_kernel is given because of all that, and where there is nothing.


@functools.lru_cache(maxsize=4096)
def way_of(
    images: tuple[Any, ...], pairing: int, families: int, in_place: bool, chips: int, tuned: Cut | None = None
) -> Way:
    """Through a batch as `layout_of` takes it, on so many multiprocessors. `tuned`: the cut, if that was measured."""
    layout, (shape, _, _, item, _, spatial) = layout_of(*images), images
    batch, columns, width = shape[0], math.prod(layout["sizes"]), layout["V"]
    found = cuts(batch, columns, item, width, pairing, families, in_place, chips)
    # Where no program can hold a place of all samples there is no cut, and slices are mixed out of place.
    cut = tuned or (found or cuts(batch, columns, item, width, pairing, families, False, chips))[0]
    tiles = -(-columns // cut.vectors)
    groups = {Shape.EACH: -(-batch // cut.rows), Shape.PAIRS: batch // 2}.get(cut.shape, min(batch - 1, 1))
    numbers = {"columns": columns, "tiles": tiles, "batch": batch, "src_first": 0, "dst_first": 0, "first": 0}
    constants = {"SHAPE": int(cut.shape), "R": cut.rows, "PARTS": cut.parts, "N": cut.vectors}
    named = NOTHING_GIVEN | layout | _area(shape[len(shape) - spatial :]) | numbers | constants
    return Way(cut, columns, tiles * groups, 0 if found else max(1, _SLICE // (batch * width * item)), named)


def _way(src: Tensor, dst: Tensor, plan: Sequence[Any], families: int, adjoint: bool) -> Way:
    """How `src` is mixed into `dst`, in place if that is the same."""
    _, _, _, spatial, pairing, *_ = plan
    here, there = src.data_ptr(), dst.data_ptr()
    address = (here | there) & 15 or 16
    images = (tuple(src.shape), src.stride(), dst.stride(), src.element_size(), address & -address, spatial)
    how = (pairing, families, here == there, multiprocessors(src.device))
    key = (src.device, images, *how)
    if os.environ.get("FUSEDMIX_TRITON_AUTOTUNE") == "1" and key not in _tuned:
        if not (src.is_cuda and torch.cuda.is_current_stream_capturing()):
            _tune(key, src, dst, plan, adjoint)
    return way_of(images, *how, _tuned.get(key) if _tuned else None)


_tuned: dict[Any, Cut | None] = {}


def _tune(key: Any, src: Tensor, dst: Tensor, plan: Sequence[Any], adjoint: bool) -> None:
    """Measures, once for a kind of batch, how it had best be divided: on memory laid out as the batch."""
    x = _laid_out_as(src)
    out = x if src.data_ptr() == dst.data_ptr() else _laid_out_as(dst)
    way, times = way_of(*key[1:]), {}
    _tuned[key] = None
    for cut in cuts(src.shape[0], way.columns, src.element_size(), way.named["V"], *key[2:]):
        _tuned[key] = cut
        apply(x, out, plan, adjoint=adjoint)  # The first call compiles.
        times[cut] = milliseconds(lambda: apply(x, out, plan, adjoint=adjoint), src.device)
        _tuned[key] = min(times, key=lambda cut: times[cut])


def _laid_out_as(t: Tensor) -> Tensor:
    """Zeros in memory of their own: the shape, strides and alignment of t."""
    extent = 1 + sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
    shift = t.data_ptr() % 16 // t.element_size()
    return t.new_zeros(extent + shift).as_strided(t.shape, t.stride(), shift)


def apply(
    src: Tensor, dst: Tensor, plan: Sequence[Any], *, adjoint: bool = False, by_value: bool | None = None
) -> None:
    """Mixes `src` into `dst`, which may be `src` itself, but for the adjoint.

    Args:
        plan: what the operators take after x: partner, masks, families, ndim, pairing, per, pixels if there are any.
        by_value: whether one mask for the batch travels in the arguments; None: if it is on the CPU and src is not.
    """
    if src.numel() == 0:
        return
    families = families_of(plan)
    way = _way(src, dst, plan, families, adjoint)
    named = {**way.named, **of_plan(plan, families, src, by_value), "src": src, "dst": dst, "ADJOINT": adjoint}
    if adjoint and named["PAIRING"] == Pairing.RANDOM:
        named["partner"] = _inverse_of(named["partner"])
    if way.slice:
        _in_slices(src, way, named)
    else:
        _mix[way.cut.warps].launch(way.programs, src.device, named)


def apply_with(x: Tensor, other: Tensor, out: Tensor, plan: MaskArguments) -> None:
    """Mixes x with partners of `other` into `out`, which may be x itself."""
    if x.numel() == 0:
        return
    families = families_of(plan)
    between = other.stride(0) if other.shape[0] > 1 else 0
    address = (x.data_ptr() | other.data_ptr() | out.data_ptr() | between * x.element_size()) & 15 or 16
    images = (tuple(x.shape), x.stride(), out.stride(), x.element_size(), address & -address, plan.ndim)
    way = way_of(images, Pairing.RANDOM, families, False, multiprocessors(x.device))
    named = {
        **way.named, **of_plan(plan._replace(pairing=Pairing.RANDOM), families, x), "src": x, "other": other,
        "dst": out, "other_batch": between // way.named["V"], "others": other.shape[0], "IN_PLACE": out is x,
    }  # fmt: skip
    taken = {name: of for name, of in named.items() if name in _TAKEN_WITH}
    _mix_with[way.cut.warps].launch(way.programs, x.device, taken)


def families_of(plan: Sequence[Any]) -> int:
    """The families that a kernel is compiled for."""
    _, _, families, ndim, _, _, *rest = plan
    return _compiled(families if ndim else Families.CONSTANTS, rest[0] if rest else None)


def of_plan(plan: Sequence[Any], families: int, instead: Tensor, by_value: bool | None = None) -> dict[str, Any]:
    """Partners and masks as arguments, brought to where `instead` is, which takes the place of what is not read.

    Args:
        families: `families_of` the plan.
        by_value: as in `apply`.
    """
    partner, records, _, _, pairing, per, *rest = plan
    named = {
        **of_partners(partner, pairing, instead), **_stored(rest[0] if rest else None, instead),
        "FAMILIES": families, "BINARY": not families & ~BINARY,
    }  # fmt: skip
    if per == Per.BATCH and (records.device != instead.device if by_value is None else by_value):
        named.update(zip(_WORDS, records[0].tolist(), strict=True))
        named["records"], named["MASKS"] = instead, Rows.GIVEN
    else:
        named["records"] = brought(instead.device, records)
        named["MASKS"] = Rows.FIRST if per == Per.BATCH else Rows.OWN
    return named


def _in_slices(x: Tensor, way: Way, named: dict[str, Any]) -> None:
    """Mixes x in place: a slice of the vectors of all samples at a time into scratch, where they follow one another,
    and back, as what is mixed with nothing."""
    mix, batch, sizes = _mix[way.cut.warps], x.shape[0], named["sizes"]
    aside = x.new_empty(batch * way.slice * named["V"])
    behind = tuple(math.prod(sizes[d + 1 :]) for d in range(len(sizes)))
    as_it_is = {"partner": aside, "records": aside, **_AS_IT_IS}
    for first in range(0, way.columns, way.slice):
        stop = min(first + way.slice, way.columns)
        tiles = -(-(stop - first) // way.cut.vectors)
        programs = tiles * -(-batch // way.cut.rows)
        part = named | {"first": first, "columns": stop, "tiles": tiles}
        there = {"dst": aside, "dst_strides": behind, "dst_batch": way.slice, "dst_first": first}
        back = {"src": aside, "src_strides": behind, "src_batch": way.slice, "src_first": first}
        mix.launch(programs, x.device, part | there)
        mix.launch(programs, x.device, part | back | as_it_is)


def followed(plan: Sequence[Any]) -> tuple[Any, ...]:
    """What `apply` takes of a plan that anyone may have made."""
    partner, records, families, ndim, pairing, *rest = plan
    return (partner, records, families, ndim, pairing_of(partner, pairing), *rest)


def _inverse_of(partner: Tensor) -> Tensor:
    """Whose partner each sample is. Of what is no permutation there is no inverse, and no gradient: anything."""
    inverse, batch = torch.empty_like(partner), partner.shape[0]
    programs = -(-batch // _INVERSE_BLOCK)
    named = {"inverse": inverse, "partner": partner, "batch": batch, "N": _INVERSE_BLOCK}
    _inverse.launch(programs, partner.device, named)
    return inverse


def _compiled(families: int, pixels: Tensor | None) -> int:
    """The families that a kernel is compiled for: masks are stored as their pixels are, and not without them."""
    families = int(families)
    if pixels is None:
        return families & ~(_OF_PIXELS | int(Families.LARGE_CELLS)) or int(Families.CONSTANTS)
    if not families & _OF_PIXELS:
        return families
    return families & ~_OF_PIXELS | int(Families.LEVELS if pixels.dtype == torch.int16 else Families.STORED)


def _stored(pixels: Tensor | None, instead: Tensor) -> dict[str, Any]:
    """Stored masks as arguments: where they are, elements of a row, rows. `instead`, where there are none: not read."""
    if pixels is None:
        return {"pixels": instead, "across": 0, "rows": 0}
    return {"pixels": brought(instead.device, pixels), "across": pixels.shape[1], "rows": pixels.shape[0]}


def write_masks(
    records: Tensor, families: int, size: Sequence[int], per: int = Per.SAMPLE, pixels: Tensor | None = None
) -> Tensor:
    """(n, *size) float32 masks."""
    n, total = records.shape[0], math.prod(size)
    tiles = -(-total // _MASK_BLOCK)
    out = records.new_empty((n, *size), dtype=torch.float32)
    named = {
        **_stored(pixels, out), **_area(size), "out": out, "records": records.contiguous(), "total": total,
        "tiles": tiles, "batch": n, "FAMILIES": _compiled(families, pixels),
        "MASKS": Rows.FIRST if per == Per.BATCH else Rows.OWN, "N": _MASK_BLOCK,
    }  # fmt: skip
    _mask.launch(n * tiles, out.device, named)
    return out


def _area(size: Sequence[int]) -> dict[str, int]:
    """Height and width of images of that size as arguments."""
    _, height, width = padded(tuple(size))
    return {"height": height, "width": width}
