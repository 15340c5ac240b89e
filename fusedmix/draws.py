"""Everything random about one batch, drawn by two samplers that share all that follows from the draws.

The host's asks torch's CPU generator by the calls that torchvision makes, in its order, so one seed gives one batch in
both. The device's computes every number from (seed, logical index) with Philox, on any device, without state. What
follows from the numbers is the business of an operator: here `plan`, which the kernels mirror.

Order of the host draws (a step that is certain or not needed is not drawn): p of the module, the method, p of the
method, λ, FMix's swap of λ, HMix's ratio, the random partners, then what the method's family draws, in the order of
`Drawn`. Per batch this is what v2.RandomApply, v2.RandomChoice, v2.MixUp and v2.CutMix draw; per pair and per sample
each step is one call for all draws.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fusedmix import masks, partners
from fusedmix.arguments import MaskArguments, PlanTensors
from fusedmix.masks.constant import constant
from fusedmix.masks.family import Draws, Masks, OneMask, float32, padded, record
from fusedmix.methods import WIDTH, Column, Drawn, Families, Method, Number, Pairing, Per
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

    @property
    def draws(self) -> int:
        """The number of independent draws."""
        return self.per.draws(self.batch_size)

    @property
    def realised_per(self) -> Per:
        """How many masks the batch gets: by one λ for each sample, one for each."""
        return Per.SAMPLE if self.lam is not None and self.lam.ndim else self.per

    @property
    def methods(self) -> frozenset[Method]:
        """Those that may be drawn."""
        return frozenset(Method(int(method)) for method in self.spec[:, Column.METHOD].tolist())

    def masks(self, plan: PlanTensors, families: int) -> MaskArguments:
        """What mixes images by the plan of this request, which may hold masks of such families."""
        partner, _, _, masks = plan
        ndim = 0 if families == Families.CONSTANTS else len(self.size)
        return MaskArguments(partner, masks, int(families), ndim, int(self.pairing), int(self.realised_per))


class Source(NamedTuple):
    """Where the numbers of one batch come from. It is in one of four states, of which every backend knows the meaning:

    `drawn`, and `partner` where partners are no formula: the numbers, drawn on the host already. The plan is made on
        the CPU.
    `seed` of one number: everything follows from it, by Philox, on the device that is asked for.
    `seed` without a number: the operator draws one from torch's default CPU generator first, as
        torch.ops.fusedmix.draw_seed does.
    nothing: the operator draws the numbers itself from torch's default CPU generator, as `host` does. The compiled
        backends refuse it where a method has to be chosen, anything has a chance, there is more than one draw, or
        partners are no formula.
    """

    seed: Tensor | None  # () int64
    drawn: Tensor | None  # (draws, WIDTH) float64, CPU, in the order of Number
    partner: Tensor | None  # (B,) int64, CPU

    def made_on(self, device: torch.device) -> torch.device:
        """Where the plan is made that is asked for on a device."""
        return CPU if self.seed is None else device


_ONE_EACH = [Number.CHOICE, Number.APPLIED, Number.LAM, Number.COIN, Number.NOISE, Number.ASPECT, Number.RATIO]
# These flags are plain numbers, because the arithmetic of flags takes microseconds.
_CENTRE, _COIN, _NOISE, _PLACE, _SIDES, _ASPECT, _RATIO = (int(drawn) for drawn in Drawn)


def host(request: Request, generator: torch.Generator | None) -> tuple[list[Sequence[float]], Tensor | None]:
    """`drawn`, as numbers, and `partner` of a Source, from torch's CPU generator.

    With numbers in place of tensors: one draw is every step of a training with the defaults, and twenty operations on
    tensors of one element would be most of its time on the host.
    """
    n, table = request.draws, request.spec.tolist()
    choice, applied = [0] * n, [True] * n
    if request.p < 1.0:
        applied = (_chances(n, generator) < request.p).tolist()
        if request.per == Per.BATCH and not applied[0]:
            return _left_alone(request)
    if n and not math.isnan(table[0][Column.WEIGHT]):
        weights = request.spec[:, Column.WEIGHT].float()
        choice = torch.multinomial(weights, n, replacement=n > 1, generator=generator).tolist()
    rows = [table[i] for i in choice]
    if [row for row in rows if row[Column.P] < 1.0]:
        # Chances are compared in float32, as torchvision does.
        chances = _chances(n, generator).tolist()
        applied = [a and c < float32(row[Column.P]) for a, c, row in zip(applied, chances, rows, strict=True)]
        if request.per == Per.BATCH and not applied[0]:
            return _left_alone(request)
    numbers: list[Sequence[float]] = [[0] * n] * WIDTH
    numbers[: Number.CENTRE] = choice, applied, _host_lam(request, rows, generator)
    wanted = 0
    for row in rows:
        wanted |= int(row[Column.DRAWS])
    if wanted & _RATIO:
        of = [i for i, row in enumerate(rows) if row[Column.RATIO_ALPHA]]
        drawn_for = dict(zip(of, _betas([rows[i][Column.RATIO_ALPHA] for i in of], generator), strict=True))
        numbers[Number.RATIO] = [drawn_for.get(i, 0) for i in range(n)]
    partner = _host_partner(request, generator)
    _host_shapes(numbers, wanted, request.size, generator)
    return list(zip(*numbers, strict=True)), partner


def from_host(request: Request, generator: torch.Generator | None) -> Source:
    """The numbers of a batch from torch's CPU generator."""
    numbers, partner = host(request, generator)
    return Source(None, torch.tensor(numbers, dtype=torch.float64, device=CPU).reshape(-1, WIDTH), partner)


def resolved(request: Request, source: Source) -> Source:
    """The source once all is drawn that the operator is to draw itself."""
    if source.seed is not None and not source.seed.numel():
        return source._replace(seed=torch.empty((), dtype=torch.int64, device=CPU).random_())
    return from_host(request, None) if source.seed is None and source.drawn is None else source


def _left_alone(request: Request) -> tuple[list[Sequence[float]], Tensor | None]:
    """What `host` draws for a batch that is left as it is, whoever the partners are."""
    pairing = request.pairing
    return [[0.0] * WIDTH], None if pairing.is_formula else partners.formula(pairing, request.batch_size, CPU)


def _host_lam(request: Request, rows: Sequence[Sequence[float]], generator: torch.Generator | None) -> list[float]:
    lam = [1.0 if math.isnan(row[Column.LAM]) else row[Column.LAM] for row in rows]
    random = [i for i, row in enumerate(rows) if math.isnan(row[Column.LAM]) and row[Column.ALPHA] > 0]
    if request.lam is None and random:
        for i, share in zip(random, _betas([rows[i][Column.ALPHA] for i in random], generator), strict=True):
            lam[i] = share
        swaps = [i for i in random if rows[i][Column.REFORMULATE]]
        if swaps:
            for i, chance in zip(swaps, _chances(len(swaps), generator).tolist(), strict=True):
                lam[i] = lam[i] if chance < lam[i] else 1.0 - lam[i]
    return lam


def _host_shapes(
    numbers: list[Sequence[float]], wanted: int, size: tuple[int, ...], generator: torch.Generator | None
) -> None:
    """Draws what the masks need besides λ, of the `wanted` flags of Drawn, into the columns of all draws."""
    n, axes = len(numbers[0]), range(2, 2 - len(size), -1)

    def integers(below: int, count: int) -> list[int]:
        return torch.randint(below, (count,), generator=generator, device=CPU).tolist()

    if wanted & _CENTRE:
        for axis, side in zip(axes, reversed(size), strict=True):
            numbers[Number.CENTRE + axis] = integers(side, n)
    if wanted & _COIN:
        numbers[Number.COIN] = integers(2, n)
    if wanted & _NOISE:
        numbers[Number.NOISE] = integers(1 << 52, 1) * n
    for drawn, place in ((_PLACE, Number.PLACE), (_SIDES, Number.SIDES)):
        if wanted & drawn:
            for axis in axes:
                numbers[place + axis] = integers(1 << 32, n)
    if wanted & _ASPECT and len(size) > 1:
        numbers[Number.ASPECT] = integers(1 << 32, n)


def _chances(count: int, generator: torch.Generator | None) -> Tensor:
    return torch.rand(count, generator=generator, device=CPU)


def _betas(alphas: Sequence[float], generator: torch.Generator | None) -> list[float]:
    return [share for share, _ in torch._sample_dirichlet(_concentration(tuple(alphas)), generator=generator).tolist()]


def _swapped(lam: Tensor, chance: Tensor) -> Tensor:
    """λ ~ Beta(α+1, α) from λ ~ Beta(α, α): its density is 2λ times as large, and 1-λ is as likely as λ. So λ is kept
    with probability λ, and turned into 1-λ otherwise."""
    return torch.where(chance < lam, lam, 1.0 - lam)


@functools.lru_cache(maxsize=256)
def _concentration(alphas: tuple[float, ...]) -> Tensor:
    return torch.tensor([[alpha, alpha] for alpha in alphas], dtype=torch.float32, device=CPU)


def _host_partner(request: Request, generator: torch.Generator | None) -> Tensor | None:
    if request.pairing.is_formula:
        return None
    if request.pairing == Pairing.RANDOM:
        return torch.randperm(request.batch_size, generator=generator, device=CPU)
    assert request.labels is not None
    seed = torch.empty((), dtype=torch.int64, device=CPU).random_(generator=generator)
    return partners.by_class(seed, request.labels.to(CPU), request.pairing)


def plan(request: Request, source: Source, device: torch.device) -> PlanTensors:
    """partner, lam, weight, masks of a batch: on `device`, or on the CPU for numbers drawn there."""
    source = resolved(request, source)
    if source.seed is not None:
        return _realise(request, *_from_seed(request, source.seed, device))
    drawn = source.drawn
    assert drawn is not None
    if source.partner is None:
        partner = partners.formula(request.pairing, request.batch_size, CPU)
    else:
        partner = source.partner.clone()  # An operator may not return what it was given.
    if request.realised_per == Per.BATCH:
        one = single(request, drawn[0].tolist())
        if one is not None:
            return partner, *_expanded(one, request.batch_size)
    choice, applied, lam, coin, noise, aspect, ratio = drawn[:, _ONE_EACH].unbind(1)
    centre, place, sides = (drawn[:, of : of + 3].long() for of in (Number.CENTRE, Number.PLACE, Number.SIDES))
    draws = Draws(
        choice.long(),
        applied != 0,
        lam.float(),
        centre,
        coin != 0,
        place,
        sides,
        aspect.long(),
        ratio.float(),
        noise.long(),
        torch.arange(len(choice), device=CPU),
    )
    return _realise(request, draws, partner)


class Single(NamedTuple):
    """The one mask of a batch, as numbers."""

    lam: float
    mask: OneMask


def single(request: Request, drawn: Sequence[float]) -> Single | None:
    """What `_realise` makes of the numbers of one draw, without the hundred operations on tensors of one element. None
    for the methods whose formulas take tensors."""
    row = request.spec.tolist()[int(drawn[Number.CHOICE])]  # To index the tensor would take twice as long.
    if not drawn[Number.APPLIED]:
        return Single(1.0, constant(1.0, 1.0))
    lam = float32(drawn[Number.LAM])
    if math.isnan(row[Column.LAM]) and row[Column.ALPHA] > 0:
        lam = float32(min(max(lam, row[Column.LAM_MIN]), row[Column.LAM_MAX]))
        if row[Column.FOLD]:
            lam = max(lam, float32(1.0 - lam))
    if request.lam is not None:
        lam = request.lam.float().item()
    centre = [int(c) for c in drawn[Number.CENTRE : Number.CENTRE + 3]]
    mask = masks.one(row, lam, centre, request.size)
    return None if mask is None else Single(lam, mask)


def _expanded(one: Single, batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """lam, weight, masks of every sample."""
    return (
        torch.full((batch_size,), one.lam, dtype=torch.float32, device=CPU),
        torch.full((batch_size,), one.mask.weight, dtype=torch.float64, device=CPU),
        record(one.mask).repeat(batch_size, 1),
    )


def _from_seed(request: Request, seed: Tensor, device: torch.device) -> tuple[Draws, Tensor]:
    """Every number by Philox, on `device`, and the partners."""
    batch_size, size, pairing, labels = request.batch_size, request.size, request.pairing, request.labels
    index = torch.arange(request.draws, device=device)
    seed, spec = moved(seed, device), moved(request.spec, device)

    # What is certain is not drawn. Nothing else depends on that: every number has a counter of its own.
    choice = torch.zeros_like(index)
    applied = torch.ones_like(index, dtype=torch.bool)
    if request.spec.shape[0] > 1 or request.p < 1.0:
        choice_high, choice_low, p_high, p_low = words(seed, index, Stream.CHOICE)
        # The last edge is left out: a sum of weights that rounds below 1 must leave no gap above the last method.
        edges = spec[:-1, Column.WEIGHT].cumsum(0)
        choice = torch.searchsorted(edges, uniform(choice_high, choice_low), right=True)
        applied = uniform(p_high, p_low) < request.p
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
    place, sides = torch.zeros_like(centre), torch.zeros_like(centre)
    coin, aspect, ratio = torch.zeros_like(applied), torch.zeros_like(index), torch.zeros_like(lam)
    if request.spec[:, Column.DRAWS].any():
        *axes, last = words(seed, index, Stream.CENTRE)
        for axis, word in zip(range(2, 2 - len(size), -1), axes, strict=False):
            centre[:, axis], place[:, axis] = below(word, padded(size)[axis]), word
        coin = last >= 1 << 31
    if (request.spec[:, Column.SIDE_HIGH] > 0).any():
        for axis, word in zip(range(2, 2 - len(size), -1), words(seed, index, Stream.SIDES), strict=False):
            sides[:, axis] = word
    if (request.spec[:, Column.ASPECT_HIGH] > 0).any():
        aspect = words(seed, index, Stream.ASPECT)[0]
    if (request.spec[:, Column.RATIO_ALPHA] > 0).any():
        gamma = rows[:, Column.RATIO_ALPHA]
        ratio = symmetric_beta(seed, index, torch.where(gamma > 0, gamma, 1.0), Stream.RATIO)
    of_box = (place, sides, aspect, ratio.float())
    return Draws(choice, applied, lam.float(), centre, coin, *of_box, seed.expand(index.shape), index), partner


def moved(x: Tensor, device: torch.device) -> Tensor:
    """`x` on a device, without waiting where that is safe: what comes to the CPU must have come when it is read."""
    return x.to(device, non_blocking=device.type != "cpu")


def _realise(request: Request, draws: Draws, partner: Tensor) -> PlanTensors:
    """Draws to plan: λ clamped, masks generated, everything brought to the batch's length."""
    batch_size, per, given = request.batch_size, request.realised_per, request.lam
    rows = request.spec.to(draws.choice.device, non_blocking=True)[draws.choice]
    # lam_range clamps what was drawn from the Beta, and fold turns it: not a fixed λ (SamplePairing), not the λ = 1 of
    # α <= 0.
    lam = draws.lam.double()
    clamped = torch.minimum(torch.maximum(lam, rows[:, Column.LAM_MIN]), rows[:, Column.LAM_MAX])
    random = rows[:, Column.LAM].isnan() & (rows[:, Column.ALPHA] > 0)
    lam = torch.where(random, clamped, lam).float()
    if (request.spec[:, Column.FOLD] != 0).any():
        lam = torch.where(random & (rows[:, Column.FOLD] != 0), torch.maximum(lam, 1.0 - lam), lam)
    if given is not None:
        # The sides of boxes follow from λ then, also where they would be drawn; such boxes are inside.
        sided = rows[:, Column.SIDE_HIGH] > 0
        rows = rows.clone()
        rows[:, Column.INSIDE] = torch.where(sided, 1.0, rows[:, Column.INSIDE])
        rows[:, Column.SIDE_HIGH] = 0.0
        lam = given.to(lam.device, torch.float32, non_blocking=True)
        if given.ndim:
            rows = _to_batch(rows, request.per, batch_size)
            draws = Draws(*(_to_batch(t, request.per, batch_size) for t in draws))
        lam = lam.expand(draws.applied.shape)
    lam = torch.where(draws.applied, lam, 1.0)
    method = torch.where(draws.applied, rows[:, Column.METHOD], float(Method.MIXUP))
    made = masks.generate(request.methods | {Method.MIXUP}, method, rows, lam, draws, request.size)
    # Where sides are drawn λ follows from them.
    lam = torch.where(draws.applied & (rows[:, Column.SIDE_HIGH] > 0), made.weight.float(), lam)
    lam, made = _to_batch(lam, per, batch_size), Masks(*(_to_batch(t, per, batch_size) for t in made))
    return partner, lam, made.weight, made.records


def _to_batch(x: Tensor, per: Per, batch_size: int) -> Tensor:
    """(n, ...) of the draws as (B, ...) of the samples."""
    if per == Per.SAMPLE:
        return x
    index = torch.arange(batch_size, device=x.device)
    return x[torch.minimum(index, batch_size - 1 - index) if per == Per.PAIR else index * 0]
