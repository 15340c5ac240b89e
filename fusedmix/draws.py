"""Everything random about one batch, drawn by two samplers that share all that follows from the draws.

The host's asks torch's CPU generator by the calls that torchvision makes, in its order, so one seed gives one batch in
both. The device's computes every number from (seed, logical index) with Philox, on any device, without state. What
follows from the numbers is the business of an operator: here `plan`, which the kernels mirror.

Order of the host draws (a step that is certain or not needed is not drawn): p of the module, the method, p of the
method, λ, FMix's swap of λ, the random partners, the centre along the last, second to last, third to last axis, FMix's
coin, the seed of its noise. Per batch this is what v2.RandomApply, v2.RandomChoice, v2.MixUp and v2.CutMix draw; per
pair and per sample each step is one call for all draws.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fusedmix import partners
from fusedmix.formulas import Masks, OneMask, constant, float32, generate, one, padded
from fusedmix.methods import Column, Method, Pairing, Per
from fusedmix.philox import Stream, below, symmetric_beta, uniform, words

CPU = torch.device("cpu")
WIDTH = 8  # numbers of one draw
NOISE = 7  # of them, the seed of FMix's noise: one for the batch, below 2^52, in every row


class Request(NamedTuple):
    """What to draw: the arguments that the sampling operators share."""

    spec: Tensor  # (methods, len(Column)) float64, CPU
    batch_size: int
    size: tuple[int, ...]
    pairing: Pairing
    per: Per
    p: float  # probability that a draw mixes at all
    lam: Tensor | None  # () or (B,): λ, given instead of drawn
    labels: Tensor | None  # (B,) int64: the classes, for pairing by class


class Source(NamedTuple):
    """Where the numbers of one batch come from: a seed, or numbers that were drawn already (on the CPU)."""

    seed: Tensor | None  # () int64: everything follows from it, by Philox
    drawn: Tensor | None  # (n, WIDTH) float64: choice, applied, λ before any clamp, centre z, y, x, coin, noise seed
    partner: Tensor | None  # (B,) int64, with drawn: the partners, where they are not a formula


class Draws(NamedTuple):
    """What came out, for each of n draws."""

    choice: Tensor  # (n,) int64, the row of the spec
    applied: Tensor  # (n,) bool
    lam: Tensor  # (n,) float32
    centre: Tensor  # (n, 3) int64, (z, y, x)
    coin: Tensor  # (n,) bool: whether FMix rounds the number of ones up
    partner: Tensor  # (B,) int64


PlanTensors = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def host(request: Request, generator: torch.Generator | None) -> tuple[Tensor, Tensor | None]:
    """`drawn` and `partner` of a Source, from torch's CPU generator."""
    if request.per == Per.BATCH:
        numbers, partner = host_batch(request, generator)
        return torch.tensor([numbers], dtype=torch.float64, device=CPU), partner
    spec, batch_size, size, pairing, per, p, lam, labels = request
    n = per.draws(batch_size)
    drawn = torch.zeros((n, WIDTH), dtype=torch.float64, device=CPU)
    choice = torch.zeros(n, dtype=torch.int64, device=CPU)
    applied = torch.ones(n, dtype=torch.bool, device=CPU)
    if p < 1.0:
        applied = applied & (_host_uniform(n, generator) < p)
    chances = spec[:, Column.WEIGHT].float()
    if n and not chances.isnan().any():
        choice = torch.multinomial(chances, n, replacement=n > 1, generator=generator)
    rows = spec[choice]
    if (rows[:, Column.P] < 1.0).any():
        applied = applied & (_host_uniform(n, generator) < rows[:, Column.P])
    fixed = rows[:, Column.LAM]
    drawn[:, 0], drawn[:, 1], drawn[:, 2] = choice, applied, torch.where(fixed.isnan(), 1.0, fixed)
    random = (rows[:, Column.ALPHA] > 0) & fixed.isnan()
    if lam is None and random.any():
        alpha = rows[random, Column.ALPHA].float()
        drawn[random, 2] = torch._sample_dirichlet(torch.stack((alpha, alpha), 1), generator=generator)[:, 0].double()
        swaps = random & (rows[:, Column.REFORMULATE] != 0)
        if swaps.any():
            drawn[swaps, 2] = _swapped(drawn[swaps, 2], _host_uniform(int(swaps.sum()), generator))
    partner = _host_partner(pairing, batch_size, labels, generator)
    if _has_centre(rows):
        for axis in range(2, 2 - len(size), -1):
            drawn[:, 3 + axis] = torch.randint(padded(size)[axis], (n,), generator=generator, device=CPU)
    if n and (rows[:, Column.METHOD] >= Method.FMIX_RELEASED).any():
        drawn[:, 6] = torch.randint(2, (n,), generator=generator, device=CPU)
        drawn[:, NOISE] = torch.randint(1 << 52, (1,), generator=generator, device=CPU)
    return drawn, partner


def host_batch(request: Request, generator: torch.Generator | None) -> tuple[list[float], Tensor | None]:
    """The same for one draw, with numbers in place of tensors: this is every step of a training with the defaults,
    and twenty operations on tensors of one element would be most of its time on the host."""
    spec, batch_size, size, pairing, _, p, lam, labels = request
    drawn = [0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]

    def left_alone() -> tuple[list[float], Tensor | None]:
        return [0.0] * WIDTH, None if pairing.is_formula else partners.formula(pairing, batch_size, CPU)

    if p < 1.0 and not bool(_host_uniform(1, generator) < p):
        return left_alone()
    rows = spec.tolist()
    choice = 0
    if not math.isnan(rows[0][Column.WEIGHT]):
        choice = int(torch.multinomial(spec[:, Column.WEIGHT].float(), 1, generator=generator))
    row = rows[choice]
    if row[Column.P] < 1.0 and not bool(_host_uniform(1, generator) < row[Column.P]):
        return left_alone()
    drawn[0] = choice
    if not math.isnan(row[Column.LAM]):
        drawn[2] = row[Column.LAM]
    elif row[Column.ALPHA] > 0 and lam is None:
        drawn[2] = torch._sample_dirichlet(_concentration(row[Column.ALPHA]), generator=generator).tolist()[0][0]
        if row[Column.REFORMULATE]:
            drawn[2] = _swapped(torch.tensor(drawn[2]), _host_uniform(1, generator)).item()
    partner = _host_partner(pairing, batch_size, labels, generator)
    method = Method(int(row[Column.METHOD]))
    if method.has_centre:
        for k in range(1, len(size) + 1):
            drawn[6 - k] = torch.randint(size[-k], (1,), generator=generator, device=CPU).item()
    if method.is_fourier:
        drawn[6] = torch.randint(2, (1,), generator=generator, device=CPU).item()
        drawn[NOISE] = torch.randint(1 << 52, (1,), generator=generator, device=CPU).item()
    return drawn, partner


def _swapped(lam: Tensor, chance: Tensor) -> Tensor:
    """λ ~ Beta(α+1, α) from λ ~ Beta(α, α): its density is 2λ times as large, and 1-λ is as likely as λ. So λ is kept
    with probability λ, and turned into 1-λ otherwise."""
    return torch.where(chance < lam, lam, 1.0 - lam)


@functools.lru_cache(maxsize=256)
def _concentration(alpha: float) -> Tensor:
    return torch.tensor([[alpha, alpha]], dtype=torch.float32, device=CPU)


def _host_partner(
    pairing: Pairing, batch_size: int, labels: Tensor | None, generator: torch.Generator | None
) -> Tensor | None:
    if pairing.is_formula:
        return None
    if pairing == Pairing.RANDOM:
        return torch.randperm(batch_size, generator=generator, device=CPU)
    assert labels is not None
    seed = torch.empty((), dtype=torch.int64, device=CPU).random_(generator=generator)
    return partners.by_class(seed, labels.to(CPU), pairing)


def plan(request: Request, source: Source, device: torch.device) -> PlanTensors:
    """partner, lam, weight, kind, geometry, value of a batch: on `device`, or on the CPU for numbers drawn there."""
    if source.seed is not None:
        return _realise(request, _from_seed(request, source.seed, device))
    drawn = source.drawn
    if drawn is None:
        raise ValueError("Either seed or drawn must be given, but both are None.")
    if source.partner is None:
        partner = partners.formula(request.pairing, request.batch_size, CPU)
    else:
        partner = source.partner.clone()  # what an operator returns may not be what it was given
    if request.per == Per.BATCH and (request.lam is None or not request.lam.ndim):
        one = single(request, drawn[0].tolist())
        if one is not None:
            return partner, *_expanded(one, request.batch_size)
    choice, centre = drawn[:, 0].long(), drawn[:, 3:6].long()
    return _realise(request, Draws(choice, drawn[:, 1] != 0, drawn[:, 2].float(), centre, drawn[:, 6] != 0, partner))


class Single(NamedTuple):
    """The one mask of a batch, as numbers."""

    lam: float
    mask: OneMask


def single(request: Request, drawn: Sequence[float]) -> Single | None:
    """What `_realise` makes of the numbers of one draw, without the hundred operations on tensors of one element. None
    for the methods whose formulas take tensors."""
    row = request.spec[int(drawn[0])].tolist()
    if not drawn[1]:
        return Single(1.0, constant(1.0, 1.0))
    lam = float32(drawn[2])
    if math.isnan(row[Column.LAM]) and row[Column.ALPHA] > 0:
        lam = float32(min(max(lam, row[Column.LAM_MIN]), row[Column.LAM_MAX]))
    if request.lam is not None:
        lam = request.lam.float().item()
    mask = one(int(row[Column.METHOD]), row[Column.RATIO], lam, [int(c) for c in drawn[3:6]], request.size)
    return None if mask is None else Single(lam, mask)


def _expanded(one: Single, batch_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """lam, weight, kind, geometry, value of every sample."""
    lam, (kind, geometry, value, weight) = one
    return (
        torch.full((batch_size,), lam, dtype=torch.float32, device=CPU),
        torch.full((batch_size,), weight, dtype=torch.float64, device=CPU),
        torch.full((batch_size,), kind, dtype=torch.int32, device=CPU),
        torch.tensor([geometry], dtype=torch.int32, device=CPU).repeat(batch_size, 1),
        torch.tensor([value], dtype=torch.float32, device=CPU).repeat(batch_size, 1),
    )


def _from_seed(request: Request, seed: Tensor, device: torch.device) -> Draws:
    """Every number by Philox, on `device`."""
    spec, batch_size, size, pairing, per, p, _, labels = request
    index = torch.arange(per.draws(batch_size), device=device)
    seed = moved(seed, device)
    spec = moved(spec, device)

    # What is certain is not drawn. Nothing else depends on that: every number has a counter of its own.
    choice = torch.zeros_like(index)
    applied = torch.ones_like(index, dtype=torch.bool)
    if request.spec.shape[0] > 1 or p < 1.0:
        choice_high, choice_low, p_high, p_low = words(seed, index, Stream.CHOICE)
        # The last edge is left out: a sum of weights that rounds below 1 must leave no gap above the last method.
        edges = spec[:-1, Column.WEIGHT].cumsum(0)
        choice = torch.searchsorted(edges, uniform(choice_high, choice_low), right=True)
        applied = uniform(p_high, p_low) < p
    rows = spec[choice]
    if (request.spec[:, Column.P] < 1.0).any():
        apply_high, apply_low, _, _ = words(seed, index, Stream.APPLY)
        applied = applied & (uniform(apply_high, apply_low) < rows[:, Column.P])

    alpha, fixed = rows[:, Column.ALPHA], rows[:, Column.LAM]
    lam = torch.ones_like(alpha)
    if request.lam is None and request.spec[:, Column.LAM].isnan().any():
        beta = symmetric_beta(seed, index, torch.where(alpha > 0, alpha, 1.0))
        if (request.spec[:, Column.REFORMULATE] != 0).any():
            swap_high, swap_low, _, _ = words(seed, index, Stream.SWAP)
            swapped = _swapped(beta, uniform(swap_high, swap_low))
            beta = torch.where(rows[:, Column.REFORMULATE] != 0, swapped, beta)
        lam = torch.where(alpha > 0, beta, 1.0)
    lam = torch.where(fixed.isnan(), lam, fixed)

    if pairing == Pairing.RANDOM:
        partner = partners.random(seed, batch_size, device)
    elif pairing in (Pairing.CROSS_CLASS, Pairing.SAME_CLASS):
        assert labels is not None
        partner = partners.by_class(seed, labels.to(device), pairing)
    else:
        partner = partners.formula(pairing, batch_size, device)

    centre = torch.zeros((index.shape[0], 3), dtype=torch.int64, device=device)
    coin = torch.zeros_like(applied)
    if any(not Method(int(m)).is_constant for m in request.spec[:, Column.METHOD].tolist()):
        *axes, last = words(seed, index, Stream.CENTRE)
        for axis, word in zip(range(2, 2 - len(size), -1), axes, strict=False):
            centre[:, axis] = below(word, padded(size)[axis])
        coin = last >= 1 << 31
    return Draws(choice, applied, lam.float(), centre, coin, partner)


def moved(x: Tensor, device: torch.device) -> Tensor:
    """`x` on a device, without waiting where that is safe: what comes to the CPU must have come when it is read."""
    return x.to(device, non_blocking=device.type != "cpu")


def _has_centre(rows: Tensor) -> bool:
    """Whether a method of these rows, on the CPU, has a centre to draw."""
    return any(Method(int(m)).has_centre for m in set(rows[:, Column.METHOD].tolist()))


def _host_uniform(n: int, generator: torch.Generator | None) -> Tensor:
    return torch.rand(n, generator=generator, device=CPU)


def _realise(request: Request, drawn: Draws) -> PlanTensors:
    """Draws to plan: λ clamped, masks generated, everything brought to the batch's length."""
    spec, batch_size, size, _, per, _, given, _ = request
    methods = frozenset(int(m) for m in spec[:, Column.METHOD].tolist())
    rows = spec.to(drawn.choice.device, non_blocking=True)[drawn.choice]
    _, applied, lam, centre, coin, partner = drawn
    # lam_range clamps what was drawn from the Beta: not a fixed λ (SamplePairing), not the λ = 1 of α <= 0.
    clamped = torch.minimum(torch.maximum(lam.double(), rows[:, Column.LAM_MIN]), rows[:, Column.LAM_MAX])
    random = rows[:, Column.LAM].isnan() & (rows[:, Column.ALPHA] > 0)
    lam = torch.where(random, clamped, lam.double()).float()
    if given is not None:
        lam = given.to(lam.device, torch.float32, non_blocking=True)
        if given.ndim:
            rows, applied, centre, coin = (_to_batch(t, per, batch_size) for t in (rows, applied, centre, coin))
            per = Per.SAMPLE
        lam = lam.expand(applied.shape)
    lam = torch.where(applied, lam, 1.0)
    method = torch.where(applied, rows[:, Column.METHOD], float(Method.MIXUP))
    masks = generate(methods | {Method.MIXUP}, method, rows, lam, centre, coin, size)
    lam, masks = _to_batch(lam, per, batch_size), Masks(*(_to_batch(t, per, batch_size) for t in masks))
    return partner, lam, masks.weight, masks.kind, masks.geometry, masks.value


def _to_batch(x: Tensor, per: Per, batch_size: int) -> Tensor:
    """(n, ...) of the draws as (B, ...) of the samples."""
    if per == Per.SAMPLE:
        return x
    index = torch.arange(batch_size, device=x.device)
    return x[torch.minimum(index, batch_size - 1 - index) if per == Per.PAIR else index * 0]
