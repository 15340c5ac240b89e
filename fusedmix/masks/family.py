"""What a mask family is: how much of the partner each pixel takes, never which pixel of it.

A mask is a record of 12 words of 32 bits: its kind, and what the family of that kind makes of the others, which its
file says. Words 7 and 8 are float32, the others int32; those that are not used are 0. Signals with fewer than three
spatial dims have leading sides of 1.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from fusedmix.methods import Drawn, Families, Kind, Method
from fusedmix.philox import Stream, uniform, words

WORDS = 12


class Masks(NamedTuple):
    """n generated masks and what they do to the labels."""

    records: Tensor  # (n, WORDS) int32
    weight: Tensor  # (n,) float64


class Draws(NamedTuple):
    """What was drawn, for each of n draws. A family takes what its methods draw."""

    choice: Tensor  # (n,) int64, the row of the spec
    applied: Tensor  # (n,) bool
    lam: Tensor  # (n,) float32
    centre: Tensor  # (n, 3) int64, (z, y, x)
    coin: Tensor  # (n,) bool: whether a number of pixels or cells is rounded up
    place: Tensor  # (n, 3) int64, (z, y, x): 32 bits each, of which a box that lies wholly inside gets its place
    sides: Tensor  # (n, 3) int64, (z, y, x): 32 bits each, of which a box gets sides that do not follow from λ
    aspect: Tensor  # (n,) int64: 32 bits, of which a box gets its width/height
    ratio: Tensor  # (n,) float32: HMix's, where it is drawn
    noise: Tensor  # (n,) int64: a seed, of what else a family draws by Philox
    draw: Tensor  # (n,) int64: the index of the draw there


class OneMask(NamedTuple):
    """One generated mask, as numbers of Python."""

    kind: int
    geometry: list[int]
    value: tuple[float, float]
    weight: float

    @property
    def is_cut(self) -> bool:
        """Whether it is a box that is a copy: all of the sample outside, all of the partner inside."""
        return self.kind == Kind.BOX and self.value == (1.0, 0.0)


@dataclass(frozen=True)
class Family:
    """A family of masks. Everything is computed in float64, and rounded to float32 once."""

    kinds: frozenset[Kind]
    methods: frozenset[Method]
    # The sets that hold its masks.
    parts: Families
    # What is drawn on the host for a row of a spec.
    draws: Callable[[Sequence[float]], Drawn]
    # Which masks may come of a row of a spec.
    may_hold: Callable[[Sequence[float]], Families]
    # The masks of n draws: method (n,) float64 with values of Method, rows (n, len(Column)) float64, the rows of the
    # spec; λ (n,) float64; size: 1 to 3 spatial sides.
    make: Callable[[Tensor, Tensor, Tensor, Draws, tuple[int, ...]], Masks]
    # M of n records at all pixels of sides (D, H, W), float32, of a shape that broadcasts to (n, D, H, W). What is
    # stored of them comes as rows of a plan's pixels, (n, words or levels), or None where there are none.
    evaluate: Callable[[Tensor, tuple[int, ...], Tensor | None], Tensor]
    # What `make` makes of one draw, bit for bit, without tensors, of the row of the spec, λ, centre and size; None
    # where it cannot.
    one: Callable[[Sequence[float], float, Sequence[int], tuple[int, ...]], OneMask | None] | None = None
    # The kinds that one of the sets holds, where it is not all of them.
    kinds_of: Mapping[Families, frozenset[Kind]] = field(default_factory=dict)


def packed(kind: Tensor, geometry: Tensor, value: Tensor) -> Tensor:
    """(n, WORDS) int32 of kinds (n,), of words 1 to 6, (n, 6), and of float32 words 7 and 8, (n, 2)."""
    words = value.float().contiguous().view(torch.int32)
    unused = words.new_zeros((words.shape[0], WORDS - 9))
    return torch.cat((kind.int().unsqueeze(1), geometry.int(), words, unused), dim=1)


def record(mask: OneMask) -> Tensor:
    """(1, WORDS) int32 of one mask, on the CPU."""
    value = struct.unpack("2i", struct.pack("2f", *mask.value))
    return torch.tensor([[mask.kind, *mask.geometry, *value, *[0] * (WORDS - 9)]], dtype=torch.int32, device="cpu")


def kind(records: Tensor) -> Tensor:
    """(n,) int32, values of Kind: a view."""
    return records[:, 0]


def geometry(records: Tensor) -> Tensor:
    """(n, 6) int32, a box or a centre: a view."""
    return records[:, 1:7]


def value(records: Tensor) -> Tensor:
    """(n, 2) float32, values or a rate: a view."""
    return records[:, 7:9].view(torch.float32)


def along(axis: int, x: Tensor) -> Tensor:
    """(n, side) along an axis of (n, D, H, W)."""
    return x.reshape([-1] + [x.shape[1] if a == axis else 1 for a in range(3)])


def from_centre(records: Tensor, sides: tuple[int, ...]) -> list[Tensor]:
    """Along z, y and x, (n, D, 1, 1), (n, 1, H, 1) and (n, 1, 1, W) int64: each pixel's coordinate less the centre's,
    which words 1 to 3 are."""
    pixels = (torch.arange(side, device=records.device) for side in sides)
    return [along(axis, pixel - geometry(records)[:, axis, None]) for axis, pixel in enumerate(pixels)]


def everywhere(x: Tensor) -> Tensor:
    """(n,) at all pixels of (n, D, H, W)."""
    return x.reshape(-1, 1, 1, 1)


def padded(size: tuple[int, ...]) -> tuple[int, ...]:
    """The sides as (depth, height, width)."""
    return (1,) * (3 - len(size)) + tuple(size)


def own_uniform(draws: Draws, k: int) -> Tensor:
    """(n,) float64 in (0, 1): number k, from 0 on, of those that a family draws for itself. Its methods draw
    Drawn.NOISE."""
    drawn = words(draws.noise, draws.draw, Stream.OWN, k // 2)
    return uniform(*drawn[2 * (k % 2) :][:2])


def beside(x: Tensor, numbers: Sequence[int]) -> Tensor:
    """Numbers as an int64 tensor on the device of x. They are filled in there, because a copy of them would wait for
    it."""
    return torch.stack([x.new_full((), number, dtype=torch.int64) for number in numbers])


def quotient(x: Tensor, divisor: float) -> Tensor:
    """x / divisor, rounded once, as the kernels divide. By a number torch divides on a GPU as a product with its
    reciprocal, whose last bit is wrong for one quotient in some hundred: so by a tensor, on the device of x."""
    return x / x.new_full((), divisor)


def float32(x: float) -> float:
    """`x` rounded to float32."""
    return ctypes.c_float(x).value
