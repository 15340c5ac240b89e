"""How a batch lies in memory, and how it may be divided among programs (mix_kernel.py): arithmetic without tensors."""

from __future__ import annotations

from typing import Any, NamedTuple

from fusedmix.backends.triton.enums import Families, Shape
from fusedmix.methods import Pairing

# These are numbers because the arithmetic of flags takes microseconds.
BINARY = int(Families.CUTS | Families.STORED | Families.LARGE_CELLS)  # Every mask of these is 0 or 1 everywhere.
_EASY = int(Families.CONSTANTS | Families.CUTS | Families.BOXES | Families.GAUSSIANS | Families.STORED)
_LEAST_COLUMN = 32  # TILE gives no program fewer bytes of a sample: memory moves no fewer at a time.


class _Dim(NamedTuple):
    """A dim of a sample."""

    size: int
    src: int  # The strides, in elements.
    dst: int
    axis: int  # Which of (z, y, x) masks call it; -1: they are the same all along it.

    def follows(self, above: _Dim) -> bool:
        """Whether in memory both dims are one."""
        return (above.src, above.dst) == (self.src * self.size, self.dst * self.size)


class Cut(NamedTuple):
    """How a shape divides a batch among programs."""

    shape: Shape
    rows: int  # R of the kernel.
    parts: int  # PARTS of the kernel.
    vectors: int  # N of the kernel.
    warps: int


def layout_of(
    shape: tuple[int, ...], src: tuple[int, ...], dst: tuple[int, ...], item: int, address: int, spatial: int
) -> dict[str, Any]:
    """What mix_kernel is given of a batch of that shape and those strides, its elements of `item` bytes, its memory
    beginning at multiples of `address` bytes. The last `spatial` dims are the axes that masks depend on. Strides are in
    vectors, so that a kernel knows that all are multiples of V."""
    # As in csrc/include/fusedmix/layout.h dims are sorted by stride, and those behind each other are one.
    ndim = len(shape)
    axes = [2 - (ndim - 1 - d) if ndim - 1 - d < spatial else -1 for d in range(ndim)]
    dims = [_Dim(*of) for of in zip(shape[1:], src[1:], dst[1:], axes[1:], strict=True) if of[0] != 1]
    dims.sort(key=lambda dim: (-dim.dst, -dim.src))
    merged: list[_Dim] = []
    for dim in dims or [_Dim(1, 1, 1, -1)]:
        if merged and dim.axis < 0 and merged[-1].axis < 0 and dim.follows(merged[-1]):
            dim = dim._replace(size=merged.pop().size * dim.size)
        merged.append(dim)
    # The row is the innermost dim, with the one above it where its elements share a pixel (channels_last).
    row, inner = merged.pop(), 1
    if merged and row.axis < 0 <= merged[-1].axis and row.follows(merged[-1]):
        inner, above = row.size, merged.pop()
        row = row._replace(size=above.size * row.size, axis=above.axis)
    width = 1
    if row.src == row.dst == 1:
        whole = [row.size, src[0], dst[0], *(stride for dim in merged for stride in (dim.src, dim.dst))]
        allowed = (n for n in (16 // item, 4 // item) if n and address % (n * item) == 0)
        width = next((n for n in allowed if all(of % n == 0 for of in whole)), 1)
    return {
        "sizes": (*(dim.size for dim in merged), row.size // width),
        "src_strides": (*(dim.src // width for dim in merged), row.src),
        "dst_strides": (*(dim.dst // width for dim in merged), row.dst),
        "src_batch": src[0] // width,
        "dst_batch": dst[0] // width,
        "AXES": (*(dim.axis for dim in merged), row.axis),
        "RANK": len(merged) + 1,
        "INNER": inner,
        "V": width,
    }


def cuts(
    batch: int, columns: int, item: int, width: int, pairing: int, families: int, in_place: bool, chips: int
) -> list[Cut]:
    """How a batch may be divided, the first choice first: this decides how fast it is mixed, and nothing else. It has
    `columns` vectors a sample, of `width` elements of `item` bytes; there are so many multiprocessors (`chips`).

    A thread holds four vectors of 16 bytes, two where masks take many registers, or 8 elements where vectors are
    narrower. There are no more threads than vectors of R samples, or accesses would be narrower; and at least two for
    each sample, or what its vectors have in common, such as its mask, would go through shared memory.
    """
    light = families == Families.CONSTANTS or not families & ~BINARY
    heavy = not light and (item == 1 or families & (families - 1) or families & ~_EASY)
    hold = max(1, 8 // width) if width * item < 16 else 2 if heavy else 4
    most = power_of_two(columns)

    def cut(shape: Shape, rows: int, samples: int, threads: int) -> Cut:
        vectors = min(most, max(1, threads * hold // power_of_two(samples)))
        if shape in (Shape.ROLL, Shape.TILE):  # It is narrower where multiprocessors would be idle.
            while columns < chips * vectors and vectors * width * item > 64 and vectors * rows > 128:
                vectors //= 2
        threads = min(threads, max(32, rows * vectors))
        parts = -(-samples // rows) if shape == Shape.TILE else 1
        return Cut(shape, rows, parts, vectors, threads // 32)

    few = power_of_two(batch)
    if not in_place:
        found = [cut(Shape.EACH, *of) for of in ((2, 2, 128), (1, 2, 128), (1, 1, 128))]
    elif pairing == Pairing.FLIP:
        found = [cut(Shape.PAIRS, 1, samples, 128) for samples in (4, 2)]
    else:
        rows = min(few, 256)
        sizes = (1024, 512) if families == Families.CONSTANTS and item == 4 else (512, 1024)
        least = min(_LEAST_COLUMN, columns * width * item)
        found = [cut(Shape.TILE, rows, batch, min(threads, max(256, 4 * rows))) for threads in sizes]
        found = [of for of in found if of.vectors * width * item >= least]
        if pairing == Pairing.ROLL:
            found = [cut(Shape.ROLL, n, n, max(128, 4 * n)) for n in (min(few, 128), min(few, 64))] + found
    return list(dict.fromkeys(found))


def power_of_two(n: int) -> int:
    """The smallest from n on."""
    return 1 << max(0, n - 1).bit_length()
