"""The CUDA kernels' own source, run on the CPU by csrc/shim: which bytes they touch, and which they should.

The shim logs every byte that is read and written, and raises where a block touches what another one wrote without a
launch in between, where memory is touched that is nobody's, or read before it is written. So each call of it is also a
test of that; what is asserted of the log on top is said where it is.
"""

from __future__ import annotations

import itertools

import torch

from batches import DTYPES, contiguous, in_turn
from fusedmix.masks.family import kind as kind_of
from fusedmix.masks.family import value as value_of
from fusedmix.methods import Families, Kind, Pairing, Per
from oracle import EXACT, alike

H200 = 132  # multiprocessors
SHARED = 99 * 1024  # bytes that a block may have where that is least
RACE = "race between blocks"
PART = "a part of the images"  # as the host program calls it
# Of csrc/cuda/shape.cpp: threads of the blocks that have columns, how many samples each may have.
ROLL_THREADS, TILE_THREADS, TILE_SAMPLES = 256, 512, 32
FOURIERS = torch.tensor([Kind.FOURIER_RELEASED, Kind.FOURIER])


def orders(shim, seeds, chances=(0.0, 1 / 32, 1.0)):
    """Sets one order of threads after the other: the seed of each, and how likely a thread is to let another one on."""
    for seed, chance in itertools.product(range(seeds), chances):
        shim.module.seed(seed)
        shim.module.set_yield_probability(chance)
        yield seed


def weights_of(shim, x, masks):
    """The weight of every element of x, from the kernels' own masks."""
    _, records, families, ndim, _, per, *pixels = masks
    size = tuple(x.shape[x.ndim - ndim :])
    m = shim.mask(records, families, size, per, *pixels) if ndim else value_of(records)[:, 0]
    m = m[:1] if per == Per.BATCH else m
    return m.reshape(-1, *[1] * (x.ndim - 1 - ndim), *size).expand(x.shape)


def other_shapes(shim, x, pairing, in_place=True):
    """What may be otherwise in the shape of the last call: how wide columns are, and ways that serve the partners."""
    way, shape, n = shim.module.Way, shim.shape, len(x)
    if not in_place:
        return [{"way": way.EACH, "by_tile": by_tile, "log_column": c} for by_tile in (True, False) for c in (0, 5, 8)]
    if shape.way == way.NONE:
        return [{}]
    column = n * shape.width * x.element_size()
    logs = [c for c in range(10) if shape.columns >> c <= 50 or c >= 8]  # more blocks, or launches, take long here
    fits = [c for c in logs if column << c <= shim.shared_bytes and n <= TILE_SAMPLES * (TILE_THREADS >> c)]
    slices = {1 + shape.columns // 20: 2, 1 + shape.columns // 3: 8, shape.columns: 5}
    return [
        *({"way": way.ROLL, "log_column": c} for c in logs if c < 9 and pairing == Pairing.ROLL),
        *({"way": way.TILE, "log_column": c} for c in fits),
        *({"way": way.SLICES, "slice": s, "by_tile": True, "log_column": c} for s, c in slices.items()),
    ]


# ---- how often each byte is touched --------------------------------------------------------------------------------

KEEP, TAKE, BLEND = range(3)


def leaves_out(x, shape, families):
    """Whether the kernel leaves out what masks make needless. For whole vectors there are kernels for some sets of
    families, and of these only that of CutMix does."""
    whole = shape.width * x.element_size() == 16 and x.element_size() < 8
    sets = (Families.CUTS | Families.BOXES | Families.CONSTANTS, Families.GAUSSIANS | Families.CONSTANTS)
    return not whole or families == Families.CUTS or not any(families & ~held == 0 for held in sets)


def reaches(x, w, masks, shape):
    """What the mask does to each vector of a contiguous sample, as far as the kernel asks: KEEP and TAKE are copies.

    Levels of stored masks are not looked at before they are used."""
    _, records, families, _, _, per, *pixels = masks
    kind = kind_of(records)
    kind = kind[:1].expand(len(x)) if per == Per.BATCH else kind
    bits = any(p is not None and p.dtype == torch.int32 for p in pixels)
    v = w.reshape(len(x), -1, shape.width)
    exact = (torch.isin(kind, EXACT) & (~torch.isin(kind, FOURIERS) | bits))[:, None]
    found = torch.full(v.shape[:2], BLEND)
    if leaves_out(x, shape, families):
        found[(v == 1).all(2) & exact] = KEEP
        found[(v == 0).all(2) & exact] = TAKE
    return found


def last_of_spans(n, shape):
    """The samples that a thread of a column begins with, which the next thread always reads as its last partner."""
    span = -(-n // (ROLL_THREADS >> shape.log_column))
    last = torch.zeros(n, dtype=torch.bool)
    last[span - 1 :: span] = True
    last[-1] = True
    return last[:, None]


def expected_traffic(way, x, w, masks, shape, in_place, adjoint=False):
    """How often each element of x is read, and how often each of the result written: mix_kernel.h, in tensors."""
    partner, n = masks[0], len(x)
    reach = reaches(x, w, masks, shape)
    keeps, takes, blends = (reach == r for r in (KEEP, TAKE, BLEND))
    once = torch.ones_like(reach)
    lent = torch.zeros_like(reach).index_add(0, partner, (~keeps).long())  # as somebody's partner
    if shape.way == way.NONE:
        reads = writes = 0 * once
    elif adjoint:  # by itself what it kept, and by its partner what was not its own
        reads, writes = (~takes).long() + (~keeps).long(), once
    elif shape.way in (way.EACH, way.SLICES):
        reads, writes = (~takes).long() + lent, once
    elif shape.way == way.PAIRS:
        itself = blends if in_place else ~takes
        reads = (itself | ~keeps.flip(0)).long()  # by the thread that has both
        writes = (~keeps).long() if in_place else once
        if n % 2 == 1:  # the middle: who is his own partner
            reads[n // 2] *= 0 if in_place else 2
            writes[n // 2] *= not in_place
    elif shape.way == way.ROLL:
        wanted = ~keeps.roll(-1, 0) | blends
        reads = torch.where(last_of_spans(n, shape), 1 + blends.long(), wanted.long())
        writes = (~keeps).long()
    else:
        skips = leaves_out(x, shape, masks[2])
        reads = blends.long() + lent if skips else once
        writes = (~keeps).long()
    return tuple(t[..., None].expand(n, -1, shape.width).reshape(x.shape) for t in (reads, writes))


def assert_part(shim, x):
    """A part of the images aside: packed, written once and read once, part after part."""
    shape = shim.shape
    for k, (name, launch) in enumerate(shim.launches()):
        vectors = min(shape.slice, shape.columns - k // 2 * shape.slice)
        use, nbytes = launch["buffers"][PART], len(x) * vectors * shape.width * x.element_size()
        written, read = (nbytes, 0) if name == "mix" else (0, nbytes)
        assert use["written_bytes"] == use["distinct_written_bytes"] == written
        assert use["read_bytes"] == use["distinct_read_bytes"] == read


def kernels_of(shim, masks, adjoint=False):
    way, shape = shim.module.Way, shim.shape
    if shape.way == way.SLICES:
        return ["mix", "back"] * -(-shape.columns // shape.slice)
    loaded = adjoint and not Pairing(masks[4]).is_formula
    return [] if shape.way == way.NONE else ["invert", "mix"] if loaded else ["mix"]


def assert_traffic(shim, x, w, masks, adjoint=False):
    """What was counted in the last call is what was expected: x in place, or from x to a buffer `out` like it."""
    assert shim.kernels() == kernels_of(shim, masks, adjoint)
    way, launches = shim.module.Way, shim.launches()
    in_place = shim.shape.way == way.NONE or "out" not in launches[-1][1]["buffers"]
    reads, writes = expected_traffic(way, x, w, masks, shim.shape, in_place, adjoint)
    counted_reads, counted_writes = shim.counts("x", x)
    assert torch.equal(counted_reads, reads)
    assert torch.equal(counted_writes if in_place else shim.counts("out", x)[1], writes)
    threads = {way.ROLL: ROLL_THREADS, way.TILE: TILE_THREADS}.get(shim.shape.way)
    assert threads in (None, *(launch["threads"] for _, launch in launches))
    if in_place:
        assert reads.max() <= 2
        assert writes.max() <= 1
    else:
        assert not counted_writes.any()
        assert not shim.counts("out", x)[0].any()
    if shim.shape.way == way.SLICES:
        assert_part(shim, x)
    return reads, writes


class OnShim:
    """What is asked of the kernels of any backend whose accesses are logged (as Interpreted of on_triton.py)."""

    fast, kinds = True, 4  # of masks_by_hand
    travels = ({"on_host": True}, {"on_host": False})  # how a plan may come to a kernel

    def __init__(self, shim):
        self.shim = shim
        self.counts, self.kernels = shim.counts, shim.kernels

    def batches(self, turn):
        """Shapes, how many of their dims are spatial, dtypes and layouts, by turns."""
        shapes = ((11, 3, 8, 16), (6, 2, 7, 5), (2, 3, 4, 16))
        for _, (shape, dtype) in in_turn(itertools.product(shapes, DTYPES), turn, 3):
            yield shape, 2, dtype, contiguous

    def weights(self, x, masks):
        return weights_of(self.shim, x, masks)

    def mix(self, x, masks, in_place=False, adjoint=False, way=None, **how):
        out = x if in_place else torch.empty_like(x)
        self.shim.mix_into(out, x, *masks, adjoint=adjoint, shape=way, **how)
        return out

    def ways(self, x, masks, in_place=True):
        return other_shapes(self.shim, x, masks[4], in_place)

    def assert_one_pass(self, x, out, w, masks, adjoint=False):
        assert_traffic(self.shim, x, w, masks, adjoint)

    @property
    def width(self):
        """Elements that are moved at a time."""
        return self.shim.shape.width

    def assert_clean(self):
        """A call that is not has raised."""

    def assert_written_once(self, name, out, readable):
        assert_written_once(self.shim, name, out)

    def call(self, operator, *args):
        """An operator on tensors, by its name."""
        return getattr(self.shim, operator)(*args)


def assert_written_once(shim, name, out):
    reads, writes = shim.counts(name, out)
    assert (writes == 1).all()
    assert not reads.any()


def assert_targets(shim, out, expected):
    """They are as expected, and every byte of them is written once."""
    assert alike(out, expected)
    assert_written_once(shim, "targets", out)
