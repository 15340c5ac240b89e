"""Batches and plans that the tests of kernels are swept over: dtypes, layouts in memory, draws, values."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import fusedmix as fm
from conftest import METHODS
from fusedmix.backends import reference
from fusedmix.draws import Request, Source
from fusedmix.masks.family import packed
from fusedmix.methods import Families, Kind, Pairing, Per

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8)
FLOATS = DTYPES[:-1]
# Every `per` and `pairing` that go together.
DRAWS = [*itertools.product(("batch", "sample"), (p.name.lower() for p in Pairing)), ("pair", "flip")]
# Masks that are stored: bits, levels, and rows of other kinds among them.
STORED = {
    "FMix": fm.FMix,
    "FMix-released": lambda **kw: fm.FMix(variant="released", **kw),
    "FMix-soft": lambda **kw: fm.FMix(max_soft=0.3, **kw),
    "FMix-among": lambda **kw: fm.RandomMix(
        [fm.FMix(), fm.CutMix(), fm.MixUp(), fm.GMix(), fm.FMix(variant="released")], **kw
    ),
}
MASKS = METHODS | STORED
# Stored masks with rows of other kinds among them that are the same on every backend, to the bit.
FMIXES = {
    "FMix": STORED["FMix"],
    "FMix-soft": STORED["FMix-soft"],
    "FMix-part": lambda **kw: fm.RandomMix(
        [fm.FMix(reformulate=True, p=0.8), fm.CutMix(), fm.FMix(variant="released", alpha=0.3)], p=0.9, **kw
    ),
}
FORMULAS = Families.CONSTANTS | Families.BOXES | Families.GAUSSIANS
# Families of which every backend has the reference's masks, to the bit.
SAME_MASKS = Families.CONSTANTS | Families.CUTS | Families.BOXES | Families.STORED | Families.LEVELS

# (B, C, *S), and how many of the dims are spatial: 9 of 192 vectors, which are two programs, small and odd ones, and
# rows of whole words of stored masks
SHAPES = (
    ((9, 3, 16, 16), 2),
    ((3, 3, 5, 7), 2),
    ((2, 3, 16, 16), 2),
    ((1, 2, 4, 8), 2),
    ((7, 5, 31), 1),
    ((5, 2, 3, 5, 8), 3),
    ((4, 2, 3, 6, 4), 2),
    ((3, 3, 8, 8), 2),
    ((9, 4, 1, 16), 2),
    ((2, 1, 1, 1), 2),
    ((6, 3, 7, 21), 2),
    ((70, 2, 3), 1),
    ((5, 2, 4, 32), 2),
    ((4, 2, 40), 1),
    ((3, 2, 3, 4, 8), 3),
    ((3, 2, 9, 1), 2),
    ((2, 1, 2, 5, 16), 2),
)


def name_of(dtype):
    return str(dtype).removeprefix("torch.")


each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=name_of)


def values(shape, dtype, seed=0):
    """Values that agree in two samples now and then."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, shape, generator=generator)
    if dtype == torch.uint8:
        return x.to(dtype)
    return ((x - 100) * (1 + torch.rand(shape, generator=generator) * (x % 7))).to(dtype)


def images_of(shape, dtype=torch.float32, seed=0):
    """Values as images have them after they are normalised; of uint8 any bytes."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, dtype=dtype, generator=generator)
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)


def weights_and_partners(n):
    """Label weights, 0 and 1 among them, and partners."""
    plan = fm.MixUp(per="sample", pairing="random").sample(n, (1,), seed=0)
    weight = plan.weight.clone()
    weight[::3] = torch.linspace(0, 1, len(weight[::3]), dtype=torch.float64)
    return plan.partner, weight


def soft(dtype, n, classes):
    """Soft labels of any type."""
    x = torch.rand(n, classes, generator=torch.Generator().manual_seed(n))
    return x.to(dtype) if dtype.is_floating_point else (x * 9).to(dtype)


def odd_classes(dtype):
    """Of 10 that there are and of others: the lowest and the highest number of a type, 3 in its lower 32 bits."""
    info = torch.iinfo(dtype)
    odd = [3, 4, 5, 9, 10, 100, info.min, *([2**32 + 3] if info.max > 2**32 else [])]
    # torch has no uint64 arithmetic on every value: the largest by its bits.
    return torch.cat([torch.tensor(odd).to(dtype), torch.full((8,), 255, dtype=torch.uint8).view(dtype)[:1]])


def contiguous(x):
    return x.clone()


def channels_last(x):
    return x.movedim(1, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 1)


def stepped(x):
    """Every second element of every dim of a larger tensor."""
    large = x.new_full([2 * n + 1 for n in x.shape], 99)
    return large[(slice(1, None, 2),) * x.ndim].copy_(x)


def cropped(x):
    """The middle of a larger tensor that itself begins at no multiple of anything."""
    sides = [n + 3 for n in x.shape]
    large = x.new_full([1 + math.prod(sides)], 99)[1:].view(sides)
    return large[tuple(slice(1, 1 + n) for n in x.shape)].copy_(x)


def shifted(x):
    """Contiguous, from one element past an aligned address."""
    return x.new_empty(x.numel() + 1)[1:].view(x.shape).copy_(x)


def transposed(x):
    """The first spatial dim is the innermost in memory."""
    turned = (0, 1, *reversed(range(2, x.ndim)))
    return x.permute(turned).clone(memory_format=torch.contiguous_format).permute(turned)


def every_second_sample(x):
    large = x.new_full([2 * x.shape[0], *x.shape[1:]], 99)
    return large[::2].copy_(x)


def batch_innermost(x):
    return x.movedim(0, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 0)


def in_turn(cases, turn, of):
    """Every `of`-th of many cases, with its number: others at the next turn, and all of them in `of` turns in a row."""
    return [(i, case) for i, case in enumerate(cases) if i % of == turn % of]


LAYOUTS = (contiguous, channels_last, stepped, cropped, shifted, transposed, every_second_sample, batch_innermost)


def plan_for(make, shape, spatial, per, pairing, seed=0, **options):
    """The reference's plan as `mix` takes it."""
    mix = make(per=per, pairing=pairing, sampling="device", **options)
    labels = torch.arange(shape[0]) % 3 if "class" in pairing else None
    size = shape[len(shape) - spatial :]
    plan = mix.sample(shape[0], size, seed=seed, labels=labels)
    ndim = 0 if plan.constant else spatial
    return plan.partner, plan.masks, int(plan.families), ndim, plan.pairing, plan.per, plan.pixels


def request_of(asked):
    """What a module asks the sampler for, as the reference takes it."""
    request = Request(*asked)
    return request._replace(pairing=Pairing(request.pairing), per=Per(request.per))


def reference_plan(asked, seed=None, drawn=None, partner=None):
    """The reference's partners, λ, label weights and masks: of a seed, or of numbers that were drawn on the host."""
    source = Source(None if seed is None else torch.tensor(seed), drawn, partner)
    return reference.sample(request_of(asked), source, torch.device("cpu"))


def from_cycles(*cycles):
    """The permutation in which each sample's partner is the next of its cycle."""
    partner = torch.arange(sum(map(len, cycles)))
    for cycle in cycles:
        for i, j in zip(cycle, [*cycle[1:], cycle[0]], strict=True):
            partner[i] = j
    return partner


def masks_by_hand(partner, per="sample", pairing="random", kinds=4):
    """Constants, boxes and, of four kinds, Gaussians by turns, in images of 3 × 8."""
    n = partner.shape[0]
    index = torch.arange(n)
    kind = (index % kinds).int()
    box = torch.stack([index * 0, index % 2, index % 5, index * 0 + 1, index * 0 + 3, index % 5 + 3], 1)
    value = torch.stack([torch.where(kind == Kind.BOX, 1.0, 0.01 * (1 + index % 90)), index * 0.0], 1).float()
    return partner, packed(kind, box, value), FORMULAS, 2, Pairing[pairing.upper()], Per[per.upper()], None
