"""The enums of Python as kernels take them: `Kinds.BOX` is the number of `Kind.BOX`, a constant."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum, IntFlag
from types import SimpleNamespace

import triton.language as tl

from fusedmix import erasing, finishing, methods
from fusedmix.philox import Stream


class Shape(IntEnum):
    """Of kernels that mix (mix_kernel.py)."""

    EACH = 0
    PAIRS = 1
    ROLL = 2
    TILE = 3


class Source(IntEnum):
    """How kernels that finish a batch load it (finish_kernel.py)."""

    ELEMENTS = 0
    VECTORS = 1
    PLANES = 2
    PIXELS = 3


# λ is drawn, or given, once for all samples or for each of them.
_Lam = IntEnum("_Lam", ("DRAWN", "ONE", "EACH"), start=0)
# A plan has for a sample a row of its own, or one for all samples, which may travel in the arguments.
_Row = IntEnum("_Row", ("OWN", "FIRST", "GIVEN"), start=0)


class _Numbers(tl.constexpr):
    """Of globals a kernel may read constexpr alone. For an attribute of one Triton's compiler looks in its value; its
    interpreter, for which constants are plain numbers, in itself."""

    def __init__(self, enum: Iterable[IntEnum | IntFlag]) -> None:
        members = {str(member.name): int(member) for member in enum}
        super().__init__(SimpleNamespace(**{name: tl.constexpr(number) for name, number in members.items()}))
        self.__dict__.update(members)


Columns = _Numbers(methods.Column)
Draws = _Numbers(methods.Drawn)
Families = _Numbers(methods.Families)
Fillings = _Numbers(finishing.Filling)
Kinds = _Numbers(methods.Kind)
Lams = _Numbers(_Lam)
Methods = _Numbers(methods.Method)
Pairings = _Numbers(methods.Pairing)
Pers = _Numbers(methods.Per)
Resizes = _Numbers(methods.Resize)
Rows = _Numbers(_Row)
Shapes = _Numbers(Shape)
Sources = _Numbers(Source)
Streams = _Numbers(Stream)
Words = _Numbers(erasing.Word)
ATTEMPTS = tl.constexpr(erasing.ATTEMPTS)
COLUMNS = tl.constexpr(len(methods.Column))
HEAD, PER_HOLE = tl.constexpr(erasing.HEAD), tl.constexpr(erasing.PER_HOLE)
