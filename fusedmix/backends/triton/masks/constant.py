"""One number everywhere: Mixup, SamplePairing, and every sample that is left as it is."""

from __future__ import annotations

import triton
import triton.language as tl

from fusedmix.backends.triton.enums import Kinds, Methods
from fusedmix.backends.triton.masks import record
from fusedmix.backends.triton.numbers import as_float, as_word, spread


@triton.jit
def makes(method):
    return (method == Methods.MIXUP) | (method == Methods.SAMPLE_PAIRING)


@triton.jit
def make(to, mine, method, lam):
    """Writes the records; the label weights."""
    record.store(to, mine, (Kinds.CONSTANT, 0, 0, 0, 0, 0, 0, as_word(lam), 0, 0, 0, 0))
    return tl.where(method == Methods.SAMPLE_PAIRING, 1.0, lam.to(tl.float64))


@triton.jit
def value(m):
    """M. A kind that there is not, or none of this launch, which only the host could refuse, is NaN."""
    return tl.where(m[0] == Kinds.CONSTANT, as_float(m[7]), float("nan"))


@triton.jit
def at(m, z, y, x):
    return tl.zeros_like(z + y + x).to(tl.float32) + value(m)


@triton.jit
def reach(m, live):
    return live & spread(value(m) != 0.0, live), live & spread(value(m) != 1.0, live)
