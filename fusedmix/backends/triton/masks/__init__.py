"""What a mask is: the families, and which of them a kind or a method belongs to.

A family's file has the name of its file in fusedmix/masks, where its kinds, methods and sets are. `make` writes the
records of its methods and returns their label weights, and `at` is M at pixels, by formula. Constants, boxes and masks
that are stored have ways of their own to M, and a `reach`: what is 0 or 1 all over a vector. FAMILIES is the set of
which there may be masks (fusedmix/methods.py, `Families`): of the others nothing is compiled.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import triton
import triton.language as tl

from fusedmix.backends.triton.enums import Families, Kinds
from fusedmix.backends.triton.masks import box, constant, fourier, grid
from fusedmix.backends.triton.numbers import below, spread
from fusedmix.masks import BY_NAME


class _Modules(tl.constexpr):
    """Modules whose functions are called in a loop that is unrolled. As Triton doesn't look for them there, the keys of
    these functions are in what is printed: it is part of the key by which Triton finds what it has compiled."""

    def __repr__(self) -> str:
        functions = [f for module in self.value for f in vars(module).values() if hasattr(type(f), "cache_key")]
        return repr([f.cache_key for f in functions])

    def __deepcopy__(self, memo: Any) -> _Modules:
        return self


def _numbers(of: Iterable[int]) -> tuple[tl.constexpr, ...]:
    return tuple(tl.constexpr(int(number)) for number in sorted(of))


_FOUND = {name: importlib.import_module(f"{__name__}.{name}") for name in BY_NAME if name != "constant"}
_FAMILIES = [BY_NAME[name] for name in _FOUND]
_STORED = tl.constexpr(list(_FOUND).index("fourier"))
# What follows is in the order of these modules: which sets ask for their masks to be made, or to be computed by `at`;
# their methods and their kinds.
_MODULES, _COUNT = _Modules(tuple(_FOUND.values())), tl.constexpr(len(_FOUND))
_MADE = tl.constexpr(tuple(int(family.parts) for family in _FAMILIES))
_COMPUTED = tl.constexpr(
    tuple(int(BY_NAME[name].parts & ~Families.LARGE_CELLS) * hasattr(_FOUND[name], "at") for name in _FOUND)
)
_METHODS = tl.constexpr(tuple(_numbers(family.methods) for family in _FAMILIES))
_KINDS = tl.constexpr(tuple(_numbers(family.kinds) for family in _FAMILIES))


@triton.jit
def among(x, NUMBERS: tl.constexpr):
    """Whether x, methods or a kind, is one of several."""
    found = x == NUMBERS[0]
    for i in tl.static_range(1, len(NUMBERS)):
        found = found | (x == NUMBERS[i])
    return found


@triton.jit
def make(to, live, method, row, lam, words, noise, extent, FAMILIES: tl.constexpr,
         DRAWS: tl.constexpr, NDIM: tl.constexpr, S: tl.constexpr, T: tl.constexpr):  # fmt: skip
    """Writes the records of S samples, each of a method, from λ, from the words of its centre and coin, and from the
    seed and the index of what else a family draws; their label weights."""
    for_x, for_y, for_z, coin = words
    depth, height, width = extent
    centre = below(for_z, depth), below(for_y, height), below(for_x, width)
    drawn = centre, (for_z, for_y, for_x), (coin >> 31) != 0, noise
    weight = constant.make(to, live & constant.makes(method), method, lam)
    for k in tl.static_range(_COUNT):
        if FAMILIES & _MADE[k]:
            mine = among(method, _METHODS[k])
            made = _MODULES[k].make(
                to, live & mine, method, row, lam.to(tl.float64), drawn, extent, FAMILIES, DRAWS, NDIM, S, T
            )
            weight = tl.where(mine, made, weight)
    return weight


@triton.jit
def at(mask, vectors, FAMILIES: tl.constexpr, AXIS: tl.constexpr, INNER: tl.constexpr):
    """M at the pixels of vectors, computed or read."""
    m, pixels, across = mask
    place, _, _, spots = vectors
    z, y, x = place
    w = constant.at(m, z, y, x)
    if FAMILIES & (Families.CUTS | Families.BOXES):
        w = box.over(m, z, y, x, w)
    if FAMILIES & (Families.STORED | Families.LEVELS):
        w = tl.where(among(m[0], _KINDS[_STORED]), fourier.read(pixels, spots, FAMILIES, AXIS, INNER), w)
    for k in tl.static_range(_COUNT):
        if FAMILIES & _COMPUTED[k]:
            w = tl.where(among(m[0], _KINDS[k]), _MODULES[k].at(m, z, y, x), w)
    if FAMILIES & Families.LARGE_CELLS:
        w = tl.where(m[0] == Kinds.LARGE_GRID, grid.read(m, pixels, across, z, y, x, FAMILIES), w)
    return w


@triton.jit
def reach(mask, vectors, live, FAMILIES: tl.constexpr, AXIS: tl.constexpr, INNER: tl.constexpr):
    """Which vectors [R, N, 1] need their own sample (some weight is not 0) and which its partner (some weight is not
    1). Those of the families that don't say it need both."""
    m, pixels, _ = mask
    _, low, high, spots = vectors
    own, lent = constant.reach(m, live)
    if FAMILIES & (Families.CUTS | Families.BOXES):
        box_own, box_lent = box.reach(m, low, high, live)
        is_box = spread(m[0] == Kinds.BOX, live)
        own, lent = tl.where(is_box, box_own, own), tl.where(is_box, box_lent, lent)
    if FAMILIES & (Families.STORED | Families.LEVELS):
        stored_own, stored_lent = fourier.reach(pixels, spots, live, FAMILIES, AXIS, INNER)
        is_stored = spread(among(m[0], _KINDS[_STORED]), live)
        own, lent = tl.where(is_stored, stored_own, own), tl.where(is_stored, stored_lent, lent)
    return own, lent
