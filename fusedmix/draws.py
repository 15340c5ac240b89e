"""Everything random about one batch, drawn by two samplers that share all that follows from the draws.

`host` asks torch's CPU generator by the calls that torchvision makes, in its order, so one seed gives one batch in
both. `device` computes every number from (seed, logical index) with Philox, on any device, without state.

Order of the host draws (a step that is certain or not needed is not drawn): p of the module, the method, p of the
method, λ, the random partners, the centre along the last, second to last, third to last axis. Per batch this is
what v2.RandomApply, v2.RandomChoice, v2.MixUp and v2.CutMix draw; per pair and per sample each step is one call for
all draws.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fusedmix import partners
from fusedmix.formulas import Masks, generate, padded
from fusedmix.methods import Column, Method, Pairing, Per
from fusedmix.philox import Stream, below, symmetric_beta, uniform, words

CPU = torch.device("cpu")


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


class Draws(NamedTuple):
    """What came out, for each of n draws."""

    choice: Tensor  # (n,) int64, the row of the spec
    applied: Tensor  # (n,) bool
    lam: Tensor  # (n,) float32
    centre: Tensor  # (n, 3) int64, (z, y, x)
    partner: Tensor  # (B,) int64


PlanTensors = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def host(request: Request, generator: torch.Generator | None) -> PlanTensors:
    """partner, lam, weight, kind, geometry, value of a batch, on the CPU, from torch's CPU generator."""
    spec, batch_size, size, pairing, per, p, lam, labels = request
    n = per.draws(batch_size)
    drawn = Draws(
        choice=torch.zeros(n, dtype=torch.int64, device=CPU),
        applied=torch.ones(n, dtype=torch.bool, device=CPU),
        lam=torch.ones(n, dtype=torch.float32, device=CPU),
        centre=torch.zeros((n, 3), dtype=torch.int64, device=CPU),
        partner=partners.formula(pairing, batch_size, CPU),
    )
    if p < 1.0:
        drawn.applied.logical_and_(_host_uniform(n, generator) < p)
    if per == Per.BATCH and not drawn.applied.all():
        return _realise(request, drawn)

    chances = spec[:, Column.WEIGHT].float()
    if n and not chances.isnan().any():
        drawn.choice.copy_(torch.multinomial(chances, n, replacement=n > 1, generator=generator))
    rows = spec[drawn.choice]
    if (rows[:, Column.P] < 1.0).any():
        drawn.applied.logical_and_(_host_uniform(n, generator) < rows[:, Column.P])
        if per == Per.BATCH and not drawn.applied.all():
            return _realise(request, drawn)

    fixed = rows[:, Column.LAM]
    random = (rows[:, Column.ALPHA] > 0) & fixed.isnan()
    drawn.lam.copy_(torch.where(fixed.isnan(), 1.0, fixed))
    if lam is None and random.any():
        alpha = rows[random, Column.ALPHA].float()
        drawn.lam[random] = torch._sample_dirichlet(torch.stack((alpha, alpha), 1), generator=generator)[:, 0]
    if pairing == Pairing.RANDOM:
        drawn.partner.copy_(torch.randperm(batch_size, generator=generator, device=CPU))
    elif pairing in (Pairing.CROSS_CLASS, Pairing.SAME_CLASS):
        assert labels is not None
        seed = torch.empty((), dtype=torch.int64, device=CPU).random_(generator=generator)
        drawn.partner.copy_(partners.by_class(seed, labels.to(CPU), pairing))
    if _has_centre(rows):
        for axis in range(2, 2 - len(size), -1):
            side = padded(size)[axis]
            drawn.centre[:, axis] = torch.randint(side, (n,), generator=generator, device=CPU)
    return _realise(request, drawn)


def device(request: Request, seed: Tensor, device: torch.device) -> PlanTensors:
    """partner, lam, weight, kind, geometry, value of a batch, on `device`, from Philox keyed by `seed`."""
    spec, batch_size, size, pairing, per, p, _, labels = request
    index = torch.arange(per.draws(batch_size), device=device)
    seed = seed.to(device, non_blocking=True)
    spec = spec.to(device, non_blocking=True)

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
        lam = torch.where(alpha > 0, symmetric_beta(seed, index, torch.where(alpha > 0, alpha, 1.0)), 1.0)
    lam = torch.where(fixed.isnan(), lam, fixed)

    if pairing == Pairing.RANDOM:
        partner = partners.random(seed, batch_size, device)
    elif pairing in (Pairing.CROSS_CLASS, Pairing.SAME_CLASS):
        assert labels is not None
        partner = partners.by_class(seed, labels.to(device), pairing)
    else:
        partner = partners.formula(pairing, batch_size, device)

    centre = torch.zeros((index.shape[0], 3), dtype=torch.int64, device=device)
    if _has_centre(request.spec):
        for axis, word in zip(range(2, 2 - len(size), -1), words(seed, index, Stream.CENTRE), strict=False):
            centre[:, axis] = below(word, padded(size)[axis])
    return _realise(request, Draws(choice, applied, lam.float(), centre, partner))


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
    _, applied, lam, centre, partner = drawn
    # lam_range clamps what was drawn from the Beta: not a fixed λ (SamplePairing), not the λ = 1 of α <= 0.
    clamped = torch.minimum(torch.maximum(lam.double(), rows[:, Column.LAM_MIN]), rows[:, Column.LAM_MAX])
    random = rows[:, Column.LAM].isnan() & (rows[:, Column.ALPHA] > 0)
    lam = torch.where(random, clamped, lam.double()).float()
    if given is not None:
        lam = given.to(lam.device, torch.float32, non_blocking=True)
        if given.ndim:
            rows, applied, centre = (_to_batch(t, per, batch_size) for t in (rows, applied, centre))
            per = Per.SAMPLE
        lam = lam.expand(applied.shape)
    lam = torch.where(applied, lam, 1.0)
    method = torch.where(applied, rows[:, Column.METHOD], float(Method.MIXUP))
    masks = generate(methods | {Method.MIXUP}, method, rows[:, Column.RATIO], lam, centre, size)
    lam, masks = _to_batch(lam, per, batch_size), Masks(*(_to_batch(t, per, batch_size) for t in masks))
    return partner, lam, masks.weight, masks.kind, masks.geometry, masks.value


def _to_batch(x: Tensor, per: Per, batch_size: int) -> Tensor:
    """(n, ...) of the draws as (B, ...) of the samples."""
    if per == Per.SAMPLE:
        return x
    index = torch.arange(batch_size, device=x.device)
    return x[torch.minimum(index, batch_size - 1 - index) if per == Per.PAIR else index * 0]
