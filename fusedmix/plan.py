"""The plan: everything drawn for one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fusedmix import backends, checks, given, partners, subclasses
from fusedmix.arguments import PARTS, Moves, Patches, Terms
from fusedmix.masks import family
from fusedmix.methods import Families, Kind, Pairing, Per, Resize


@dataclass(frozen=True, eq=False, repr=False)
class MixPlan:
    """Everything drawn for one batch of B samples: who is mixed with whom, by which mask, at which label weight.

    Made by the `sample` method of a mixing module, or of masks and partners that you have by `from_parts`; consumed by
    `mix`, `mix_`, `mix_labels`, `mix_cross_entropy`.
    A plan is a pytree whose leaves are its tensors. Masks are not stored but computed from a record of 12 words each,
    except FMix's, of which a bit is stored for each pixel, and those of large grids, with one for each cell.

    Attributes:
        partner: (B,) int64, a permutation unless it was given: sample i is mixed with sample partner[i].
        lam: (B,) float32, the mixing coefficient λ, the share of the sample itself; 1 for a sample left as it is.
        weight: (B,) float64, the label weight of the sample itself: the realised mean of its mask (SamplePairing: 1).
        masks: (B, 12) int32, a record of each mask (`fusedmix.masks.family`).
        size: the spatial sides, 1 to 3 of them, in pixels.
        families: which masks there may be, whatever was drawn (`fusedmix.methods.Families`).
        pairing: how the partners were found.
        per: how many draws the batch got.
        pixels: what masks are that no formula gives, a row for each; n is 1, (B+1)//2 or B by `per`. FMix's: (n,
            ceil(S / 32)) int32 with a bit for each of S pixels, or (n, S) int16 levels of 1/65535 where they are soft
            (`fusedmix.fourier`). Those of grids of more than 128 cells: a bit for each cell, in row-major order from
            the lowest bit of the first word on, (n, ceil(cells / 32)) int32 for the grid of most cells; beside FMix's
            they are at the beginning of rows of that length and dtype. None: no mask of the plan needs any.
        draws: (B, 4 + 4·holes) int32, the flips and holes of each sample, by which a batch that is finished is changed
            before it is mixed (`fusedmix.erasing`). None: there are none.
        repeats: whether a sample may be the partner of several others, which no batch can be mixed in place with. So it
            is of partners that were given and are no permutation, or were given where nobody looks at them: on a GPU
            without FUSEDMIX_CHECK_PLANS=1, or inside a graph.
        span: (B, 2) float32, of masks that are not within [0, 1] (SpectralMix): the numbers that stand for the lowest
            and for the highest level of `pixels`. None: 0 and 1.
        terms: the labels as a sum of so many for each sample, (B, T) partners and label weights, which need not sum to
            1 (`fusedmix.arguments.Terms`). None: w of the sample's own and 1-w of its partner's.
        patches: crops of partners that are pasted in place of masks (`fusedmix.arguments.Patches`). None: there are
            none, and pixels are mixed by the masks.
        moves: which blocks of an image stand where before it is mixed (`fusedmix.arguments.Moves`). None: no block
            moves.
        resize: how crops take the size of their boxes.
        blended: whether the images are the sum of their terms, as the labels are, and not mixed by masks.
        fill: what stands in place of the partner, a number or one for each channel. None: the partner.
        blocks: along each side of an image, of what `moves`.
        gains: (B, T) float32, by which the images of the terms are multiplied in the sum of a plan that is `blended`,
            if not by the label weights (BetweenClassMix).
        other_size: the samples of another batch that the partners are from, which then has to be given with the images
            and with the labels. None: they are from the batch itself.
    """

    partner: Tensor
    lam: Tensor
    weight: Tensor
    masks: Tensor
    size: tuple[int, ...]
    families: Families
    pairing: Pairing = Pairing.RANDOM
    per: Per = Per.SAMPLE
    pixels: Tensor | None = None
    draws: Tensor | None = None
    repeats: bool = False
    span: Tensor | None = None
    terms: Terms | None = None
    patches: Patches | None = None
    moves: Moves | None = None
    resize: Resize = Resize.NEAREST
    blended: bool = False
    fill: tuple[float, ...] | None = None
    blocks: tuple[int, ...] = ()
    other_size: int | None = None
    gains: Tensor | None = None

    @property
    def batch_size(self) -> int:
        """B."""
        return self.partner.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the plan's tensors are. A plan on the CPU serves batches on any device."""
        return self.partner.device

    @property
    def kind(self) -> Tensor:
        """(B,) int32, the formula of each mask (`fusedmix.methods.Kind`): for looking, as the next two are."""
        return family.kind(self.masks)

    @property
    def geometry(self) -> Tensor:
        """(B, 6) int32, its box or centre."""
        return family.geometry(self.masks)

    @property
    def value(self) -> Tensor:
        """(B, 2) float32, its values or rate."""
        return family.value(self.masks)

    @property
    def constant(self) -> bool:
        """Whether every mask is λ everywhere whatever was drawn, so that the plan fits signals of any size."""
        return self.families.constant

    @property
    def binary(self) -> bool:
        """Whether every mask is 0 or 1 everywhere whatever was drawn, or crops are pasted, so that label maps can be
        mixed by it."""
        return (self.families.binary and not self.blended) or self.patches is not None

    @property
    def stored(self) -> bool:
        """Whether a mask may be FMix's or of a large grid, so that pixels are needed."""
        return self.families.stored

    @property
    def gathers(self) -> bool:
        """Whether a sample is more than a mean, with weights in [0, 1], of itself and its partner at the same place."""
        several = self.blended or self.patches is not None or self.moves is not None or self.span is not None
        return several or self.fill is not None or self.other_size is not None

    def __repr__(self) -> str:
        """One line: which masks, for how many samples, and the range of λ where that can be read."""
        parts = {name: getattr(self, name) for name in PARTS}
        fits = all(isinstance(t, Tensor) and t.ndim and t.shape[1:] == PARTS[name][1] for name, t in parts.items())
        if not fits:  # A tree_map may have made anything of the parts.
            shown = {name: tuple(t.shape) if isinstance(t, Tensor) else t for name, t in parts.items()}
            return f"MixPlan({', '.join(f'{name}={part!r}' for name, part in shown.items())})"
        sides = "\N{MULTIPLICATION SIGN}".join(map(str, self.size))
        said = [f"B={self.batch_size}", f"size {sides}", self.pairing.name.lower(), f"per {self.per.name.lower()}"]
        capturing = self.lam.is_cuda and torch.cuda.is_current_stream_capturing()
        mapped = any(map(torch._C._functorch.is_functorch_wrapped_tensor, (self.lam, self.masks)))
        readable = type(self.lam) is type(self.masks) is Tensor and not mapped and not capturing
        if readable and self.device.type != "meta" and self.lam.numel():
            kinds = {int(kind): kind.name.lower() for kind in Kind}
            said[:0] = [" + ".join(kinds.get(kind, str(kind)) for kind in self.kind.unique().tolist())]
            low, high = self.lam.aminmax()
            said += [f"lam {low:.2f}" if low == high else f"lam {low:.2f} to {high:.2f}"]
        return f"MixPlan({', '.join(said)}, {self.device})"

    def __getitem__(self, index: Any) -> Any:
        raise TypeError(f"A plan cannot be cut or iterated over, but got plan[{index!r}]. {_MIX_FIRST}")

    def __len__(self) -> int:
        raise TypeError(f"A plan has no length: it is for plan.batch_size = {self.batch_size} samples. {_MIX_FIRST}")

    def __bool__(self) -> bool:
        return True  # Python would ask for the length otherwise.

    def mask(self) -> Tensor:
        """The masks as (B, *size) float32, weights of the sample itself: for looking and testing."""
        return self.mask_by(backends.operators(self.device.type))

    def mask_by(self, operators: Any) -> Tensor:
        """`mask` by the operators of a backend."""
        found: Tensor = operators.mask(self.masks, int(self.families), self.size, int(self.per), self.pixels)
        if self.span is None:
            return found
        low, high = self.span.reshape(-1, 2, *[1] * len(self.size)).unbind(1)
        return low + (high - low) * found

    @classmethod
    def from_grid(
        cls,
        grid: Tensor,
        size: Sequence[int],
        *,
        partner: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> MixPlan:
        """The plan of masks that you have: a grid of 0 and 1 for each sample, of any size up to that of the images.
        With the patches of a vision transformer as cells, tokens are mixed whole (TokenMix, Liu et al., ECCV 2022).

        Args:
            grid: (B, *cells), bool, integers or floating point, each 0 or 1: 1 where a cell is the sample's, 0 where it
                is the partner's. 1 to 3 numbers of cells, each at least 1 and at most the side. Pixel c of a side
                belongs to cell c·cells // side. The plan's tensors are where the grid is.
            size: as many spatial sides of the images, in pixels.
            partner: (B,) int64, a permutation: sample i is mixed with sample partner[i]. None: with sample i-1, as
                torchvision pairs them.
            weight: (B,) floating point in [0, 1], label weights of the samples themselves, such as those that a teacher
                gives the cells. None: the realised means of the masks.

        Raises:
            TypeError, ValueError: an argument is of the wrong type, shape or range. What tensors on a GPU hold is
                checked only with FUSEDMIX_CHECK_PLANS=1, for which the GPU is waited for.
        """
        return cls._given("grid", grid, size, partner, weight, permutation=True)

    @classmethod
    def from_parts(
        cls,
        *,
        partner: Tensor | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        lam: Tensor | None = None,
        cells: Tensor | None = None,
        weight: Tensor | None = None,
        size: Sequence[int] | None = None,
        other_size: int | None = None,
    ) -> MixPlan:
        """The plan of partners and masks that you have: of exactly one of boxes, masks, lam and cells.

        The plan's tensors are where that one is, or on the CPU if there is no float64 there. All of them are constants:
        no gradient flows into them, but for `weight`.

        Args:
            partner: (B,) int64 in [0, B): sample i is mixed with sample partner[i]. A sample may be the partner of
                several others; then the plan mixes out of place only. None: sample i-1, as torchvision pairs them.
            boxes: (B, 2·d) integers for images of d spatial sides: first the pixels at which the box begins along each
                side, then those behind it, as (top, left, bottom, right). The partner is in the box, the sample around
                it. Boxes may be empty. (Those of torchvision, XYXY, are `boxes[:, [1, 0, 3, 2]]` here.)
            masks: (B, *size), the weight of the sample itself for each pixel: bool, or integers 0 and 1, of which a bit
                is stored; or floating point in [0, 1], of which the nearest of 65536 levels is stored, n/65535.
            lam: (B,) floating point: one weight for all pixels of a sample. Any finite value, outside [0, 1] too.
            cells: (B, *cells), each 0 or 1: a grid over the images, as in `from_grid`.
            weight: (B,) floating point in [0, 1], label weights of the samples themselves. None: the realised means of
                the masks.
            size: 1 to 3 spatial sides of the images, in pixels. None: of masks, their own; with lam it need not be
                given, because the plan fits images of any size.
            other_size: N >= 1: the partners are of another batch of so many samples, which goes to `mix(..., other=)`
                and to what mixes labels. Then partner is in [0, N), and None is sample (i-1) mod N of that batch.

        Raises:
            TypeError, ValueError: an argument is of the wrong type, shape or range. What tensors on a GPU hold is
                checked only with FUSEDMIX_CHECK_PLANS=1, for which the GPU is waited for; without it boxes are clipped
                to the images there, masks to [0, 1], and a sample whose partner is none is left as it is.
        """
        parts = {"boxes": boxes, "masks": masks, "lam": lam, "cells": cells}
        passed = [name for name, x in parts.items() if x is not None]
        if len(passed) != 1:
            raise ValueError(
                f"from_parts takes exactly one of {', '.join(parts)}, but got {' and '.join(passed) or 'none'}."
            )
        if other_size is not None:
            other_size = checks.integer("other_size", other_size, 1)
        return cls._given(passed[0], parts[passed[0]], size, partner, weight, other_size=other_size)

    @classmethod
    def _given(
        cls,
        name: str,
        x: Any,
        size: Any,
        partner: Any,
        weight: Any,
        *,
        permutation: bool = False,
        other_size: int | None = None,
    ) -> MixPlan:
        made = given.part(name, x, size)
        batch_size, device = made.weight.shape[0], made.weight.device
        pairing, repeats = Pairing.ROLL, False
        if partner is not None:
            partner, repeats = given_partner(partner, batch_size, device, permutation=permutation, among=other_size)
            pairing = Pairing.RANDOM
        elif other_size is not None:
            partner = partners.among(pairing, batch_size, other_size, None, device)
            pairing = Pairing.RANDOM  # No kernel knows a formula of them.
        else:
            partner = partners.formula(pairing, batch_size, device)
        if weight is None:
            weight = made.weight
        else:
            checks.weight(weight, batch_size)
            weight = subclasses.plain(weight).to(device, torch.float64)
        return cls(
            partner,
            made.weight.float(),
            weight,
            made.records,
            made.size,
            made.families,
            pairing,
            Per.SAMPLE,
            made.pixels,
            repeats=repeats,
            other_size=other_size,
        )

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> MixPlan:
        """The plan with its tensors on `device`; itself if they are there already."""

        def there(x: Any) -> Any:
            if isinstance(x, Tensor):
                return x.to(device, non_blocking=non_blocking)
            moved = type(x)(*map(there, x))
            return x if all(a is b for a, b in zip(moved, x, strict=True)) else moved

        tensors = {name: getattr(self, name) for name in _tensors(self)}
        moved = {name: there(x) for name, x in tensors.items()}
        if all(moved[name] is x for name, x in tensors.items()):
            return self
        return replace(self, **moved)


def given_partner(
    x: Any, batch_size: int, device: torch.device, *, permutation: bool = False, among: int | None = None
) -> tuple[Tensor, bool]:
    """Partners that are given, on a device, and whether they may repeat, which a `permutation` does not, nor matters
    where they are of another batch, of `among` samples.

    Raises:
        TypeError, ValueError: they are no partners of a batch of that size, or not the permutation that they must be.
    """
    x = subclasses.plain(checks.tensor("partner", x))
    checks.shaped("partner", x, torch.int64, batch_size)
    there = x.to(device)
    seen = there if there.is_cpu else x
    checks.partners(seen, permutation=permutation, among=among)
    return there, among is None and not permutation and checks.may_repeat(seen)


# The attribute of a plan whose parts have been found to belong together: for how many samples they are.
_FITS = "_fits"
# This is said where a plan is to serve micro-batches.
_MIX_FIRST = (
    "It pairs samples of the whole batch. Mix the whole batch, then split what comes out: fm.mix(x, plan).split(n)."
)
_RECORDS = ("terms", "patches", "moves")
_TENSORS = (*PARTS, "pixels", "draws", "span", "gains", *_RECORDS)
_STATIC = tuple(f.name for f in fields(MixPlan) if f.name not in _TENSORS)


def _tensors(plan: MixPlan) -> tuple[str, ...]:
    return tuple(name for name in _TENSORS if getattr(plan, name) is not None)


def _flatten(plan: MixPlan) -> tuple[list[Any], tuple[Any, ...]]:
    names = _tensors(plan)
    return [getattr(plan, name) for name in names], (*(getattr(plan, name) for name in _STATIC), names)


def _flatten_with_keys(plan: MixPlan) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
    leaves, context = _flatten(plan)
    return [(pytree.GetAttrKey(name), leaf) for name, leaf in zip(_tensors(plan), leaves, strict=True)], context


def _unflatten(leaves: Any, context: tuple[Any, ...]) -> MixPlan:
    *static, names = context
    return MixPlan(**dict(zip(names, leaves, strict=True)), **dict(zip(_STATIC, static, strict=True)))


pytree.register_pytree_node(
    MixPlan,
    _flatten,
    _unflatten,
    serialized_type_name="fusedmix.MixPlan",
    flatten_with_keys_fn=_flatten_with_keys,
)


# What only some functions can take of a plan, and what is said where it comes to others.
_MORE = {
    "span": "has masks outside [0, 1] (plan.span)",
    "patches": "pastes resized crops (plan.patches)",
    "blended": "blends more than two samples (plan.blended)",
    "moves": "moves blocks of the images (plan.moves)",
    "fill": "has no partners but fills with a constant (plan.fill)",
    "other_size": "takes the partners from another batch, which has to be given as other=",
}
OF_LABELS = ("other_size",)
OF_PIXELS = ("span", "patches", "blended", "moves", "fill", "other_size")


def same_batch(
    name: str, x: Tensor, plan: Any, *, refuse: Sequence[str] = OF_LABELS, other: Tensor | None = None
) -> None:
    """Raises unless `plan` is a plan for as many samples as `x` has, and its parts belong together; or if it has one of
    the attributes that the caller has to `refuse`. That is not that partners are from another batch if `other` is one.

    What the parts hold is checked on the CPU by the operators, and by `partners` where none is called. That the parts
    of a plan there belong together is found once: a step asks for the images, the labels and the logits.
    """
    if not isinstance(plan, MixPlan):
        raise TypeError(f"plan must be a MixPlan, but got {type(plan).__name__}.")
    if x.ndim < 1:
        raise ValueError(f"{name} must have a batch dim, but got a tensor of shape {tuple(x.shape)}.")
    batch_size, compiling = x.shape[0], torch.compiler.is_compiling()
    if not compiling and vars(plan).get(_FITS) == batch_size:
        return
    if not isinstance(plan.families, Families):
        raise TypeError(f"plan.families must be of fusedmix.methods.Families, but got {plan.families!r}.")
    device = plan.partner.device
    for part_name, (dtype, rest) in PARTS.items():
        t = getattr(plan, part_name)
        if t.dtype != dtype or t.shape != (batch_size, *rest) or t.device != device:
            break
    else:
        if plan.stored or plan.pixels is not None:
            of = plan.size, int(plan.families), plan.per
            checks.pixels(plan.pixels, batch_size, *of, needed=plan.stored, prefix="plan.")
        if device.type != "cpu":  # There operators take what they find.
            checks.partners(plan.partner, among=plan.other_size)
            checks.records(plan.masks, int(plan.families), plan.pixels)
        if plan.terms is not None or plan.gathers:
            _check_more(name, plan, [of for of in refuse if of != "other_size" or other is None])
        elif device.type == "cpu" and not compiling:
            vars(plan)[_FITS] = batch_size
        return
    sizes = {getattr(plan, part_name).shape[:1] for part_name in PARTS}
    if len(sizes) == 1 and plan.partner.ndim and x.shape[0] != plan.batch_size:
        raise ValueError(
            f"The batch size of {name} does not match the plan: {x.shape[0]} != {plan.batch_size} "
            f"({name} has shape {tuple(x.shape)}). {checks.WHOLE_BATCH}"
        )
    for part_name in PARTS:
        checks.part(part_name, getattr(plan, part_name), batch_size, "plan.", checks.WHOLE_BATCH)
    raise ValueError(f"The parts of plan must be on one device, but {part_name} is on {t.device}, not on {device}.")


def _check_more(name: str, plan: MixPlan, refuse: Sequence[str]) -> None:
    """The part of `same_batch` for plans that have more than partners and masks."""
    for attribute in refuse:
        value = getattr(plan, attribute)
        if value is not None and value is not False:
            raise ValueError(f"{name} cannot be mixed here by a plan that {_MORE[attribute]}.")
    for of in _RECORDS:
        record = getattr(plan, of)
        for field, x in zip(record._fields, record, strict=True) if record is not None else ():
            if x.shape[0] != plan.batch_size or x.device != plan.device:
                raise ValueError(
                    f"plan.{of}.{field} must have {plan.batch_size} rows on {plan.device}, but got shape "
                    f"{tuple(x.shape)} on {x.device}."
                )


def check_lender(plan: MixPlan, other: Tensor) -> None:
    """Raises ValueError unless the partners of a plan are samples of `other`."""
    n = other.shape[0]
    if plan.other_size not in (None, n) or (plan.batch_size and not n):
        raise ValueError(f"other must have {plan.other_size or 'at least 1'} samples, but got {n}.")
    checks.partners(plan.partner, among=n)


def of_partners(name: str, x: Tensor, plan: MixPlan, other: Tensor | None) -> Tensor:
    """What partners have in place of the rows of x, which fits the plan: x[partner], or other[partner] beside it.

    Raises:
        TypeError, ValueError: other is not what x is, or has not the samples that are partners.
    """
    if other is None:
        checks.partners(plan.partner)
        return x[plan.partner.to(x.device)]
    if plan.terms is not None:
        raise ValueError("other must be None for a plan with terms, whose samples are all of one batch.")
    other = subclasses.plain(checks.dense("other", checks.tensor("other", other)))
    classes = x.ndim == 1 and not x.is_floating_point()
    if other.shape[1:] != x.shape[1:] or other.ndim != x.ndim or (classes and other.is_floating_point()):
        of = f"({', '.join(['samples', *map(str, x.shape[1:])])})"
        raise ValueError(
            f"other must be {name} as those of the batch, of shape {of}, but got {checks.names([other.dtype])} of "
            f"shape {tuple(other.shape)}."
        )
    check_lender(plan, other)
    return other[plan.partner.to(other.device)].to(x.device)


class SparseTargets(NamedTuple):
    """Mixed labels without a (B, K) tensor: the loss is weight·L(·, labels) + (1-weight)·L(·, partner_labels).

    Attributes:
        labels: the labels as they came, (B,) or (B, K).
        partner_labels: the labels of the partners, same shape and dtype.
        weight: (B,) float64, the label weight of the sample itself.
    """

    labels: Tensor
    partner_labels: Tensor
    weight: Tensor


class SparseTerms(NamedTuple):
    """Mixed labels without a (B, K) tensor, of a plan with `terms`: the loss is Σ_t weight[:, t]·L(·, labels[:, t]).

    Attributes:
        labels: the labels of each term, (B, T) or (B, T, K), of the dtype they came in.
        weight: (B, T) float64, their weights, which need not sum to 1.
    """

    labels: Tensor
    weight: Tensor
