"""The mixing modules: torchvision v2's conventions, with more to choose from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from fusedmix import checks, laws
from fusedmix.draws import CPU, Request, moved
from fusedmix.fourier import default_cutoff
from fusedmix.masks import grid
from fusedmix.masks.constant import numbers
from fusedmix.methods import Column, Method
from fusedmix.module import MixTransform, named
from fusedmix.one_method import FoldingMethod, OneMethod
from fusedmix.options import DEFAULTS, OF_METHOD, BatchOptions, Options, spelled_out
from fusedmix.plan import MixPlan

# The package's public names are these and those of api.py.
__all__ = [
    "CutMix",
    "FMix",
    "GMix",
    "GridMix",
    "HMix",
    "MixTransform",
    "MixUp",
    "RandomMix",
    "SamplePairing",
    "SmoothMix",
]


@spelled_out
class MixUp(FoldingMethod):
    """Mixup: M = λ everywhere, label weight λ (Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018).

    With its defaults it is torchvision.transforms.v2.MixUp, draw for draw.

    Args:
        alpha: α > 0 of λ ~ Beta(α, α).
        fold: whether λ ← max(λ, 1-λ) once it is drawn, and within lam_range, so that a sample keeps at least half of
            itself (MixMatch; fastai, Composer and big_vision mix so).
        lam_law: the law of λ where it is not Beta(α, α), on all of the real line: images and labels are extrapolated
            where λ is outside [0, 1], which Park et al. (2022) leave open. ("uniform", low, high); ("normal", mean,
            deviation); or a callable from numbers that are uniform in (0, 1), (n,) float64 on the device of the plan,
            to as many λ, as the icdf of a distribution is: torch.distributions.Laplace(0.5, 0.1).icdf. Drawn by Philox.
            alpha does nothing then, lam_range may not be given, and a RandomMix does not hold such a module. It costs a
            few small operations a step. None: λ ~ Beta(α, α).
        **options: see `Options`.
    """

    _formulas = {"released": Method.MIXUP, "paper": Method.MIXUP}  # noqa: RUF012
    _from_elsewhere = True
    _lam_law: laws.LamLaw | None = None

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        fold: bool = False,
        lam_law: laws.LamLaw | None = None,
        **options: Unpack[Options],
    ) -> None:
        law = None if lam_law is None else laws.checked("lam_law", lam_law)
        self.__dict__.update(_lam_law=law, _refines=law is not None)
        super().__init__(options, alpha=alpha, fold=fold, lam=_fixed(law))

    @property
    def lam_law(self) -> laws.LamLaw | None:
        """The law of λ; None: Beta(α, α). May be changed between steps."""
        return self._lam_law

    @lam_law.setter
    def lam_law(self, value: laws.LamLaw | None) -> None:
        law = None if value is None else laws.checked("lam_law", value)
        if law is not None and self._member:
            raise AttributeError(f"lam_law must be None for a method of a RandomMix: {_NO_LAW}")
        _check_without_range(law, self.lam_range)
        self._set_columns(lam=_fixed(law))
        self.__dict__.update(_lam_law=law, _refines=law is not None)
        self._prepare_plain_step()

    def _take(self, given: Mapping[str, Any]) -> None:
        _check_without_range(self._lam_law, given.get("lam_range"))
        super()._take(given)

    def _refine(self, plan: MixPlan, request: Request, seed: Tensor, extra: Any) -> MixPlan:
        """λ by its law; the sampler's is 1 where a sample is left as it is, and ½ elsewhere."""
        if request.lam is not None:
            return plan
        assert self._lam_law is not None
        drawn = laws.draw(self._lam_law, seed, plan.batch_size, self._per, plan.device)
        folds = moved(request.spec[0, Column.FOLD], drawn.device) != 0  # as a tensor, for compiled steps
        lam = torch.where(folds, torch.maximum(drawn, 1.0 - drawn), drawn)
        lam = torch.where(plan.lam == 1.0, plan.lam, lam)
        return replace(plan, lam=lam, weight=lam.double(), masks=numbers(lam))

    def _describe(self) -> dict[str, Any]:
        law = {} if self.lam_law is None else {"lam_law": self.lam_law}
        return {**super()._describe(), **law}


def _fixed(law: laws.LamLaw | None) -> float:
    """The λ of the sampler: none, or one that says that a sample is mixed."""
    return math.nan if law is None else 0.5


def _check_without_range(law: laws.LamLaw | None, lam_range: tuple[float, float] | None) -> None:
    if law is not None and lam_range is not None:
        raise ValueError(
            f"lam_law and lam_range exclude each other, but got lam_law={law!r} and lam_range={lam_range!r}."
        )


# Why a RandomMix holds no module with a law of its own.
_NO_LAW = "it draws by the numbers of its methods, and a law is none of them."


_PLACEMENTS = ("clip", "inside")


class _BoxMethod(FoldingMethod):
    """A method whose masks are boxes."""

    def __init__(self, options: Mapping[str, Any], *, fold: bool, placement: str, aspect: Any, **columns: Any) -> None:
        super().__init__(options, fold=fold, inside=_inside(placement), **_aspects(aspect), **columns)

    @property
    def placement(self) -> str:
        """Where boxes are, "clip" or "inside". May be changed between steps, compiled ones too."""
        return _PLACEMENTS[int(self._spec[0, Column.INSIDE])]

    @placement.setter
    def placement(self, value: str) -> None:
        inside = _inside(value)
        _check_alone(getattr(self, "minmax", None), placement=value, aspect=self.aspect)
        self._set_columns(inside=inside)

    @property
    def aspect(self) -> tuple[float, float] | None:
        """The range of a box's width/height; None: that of the image. May be changed between steps, compiled ones
        too."""
        low, high = self._spec[0, [Column.ASPECT_LOW, Column.ASPECT_HIGH]].tolist()
        return (low, high) if high else None

    @aspect.setter
    def aspect(self, value: tuple[float, float] | None) -> None:
        columns = _aspects(value)
        _check_alone(getattr(self, "minmax", None), placement=self.placement, aspect=value)
        self._set_columns(**columns)

    def _describe(self) -> dict[str, Any]:
        placed = {"placement": self.placement} if self.placement != "clip" else {}
        return {**super()._describe(), **placed, **({"aspect": self.aspect} if self.aspect else {})}


def _inside(placement: Any) -> float:
    return float(_PLACEMENTS.index(checks.choice("placement", placement, _PLACEMENTS)))


def _aspects(aspect: Any) -> dict[str, float]:
    """The columns of a range of width/height."""
    if aspect is None:
        return {"aspect_low": 0.0, "aspect_high": 0.0}
    low, high = checks.interval("aspect", aspect, 1e-6, 1e6)
    return {"aspect_low": low, "aspect_high": high}


def _sides(minmax: Any, placement: str, aspect: Any) -> dict[str, float]:
    """The columns of sides that do not follow from λ, nor are drawn with it."""
    if minmax is None:
        return {"side_low": 0.0, "side_high": 0.0, "lam": math.nan}
    low, high = checks.interval("minmax", minmax)
    if low == high:
        raise ValueError(f"minmax must have low < high, but got {minmax!r}.")
    _check_alone(minmax, placement=placement, aspect=aspect)
    return {"side_low": low, "side_high": high, "lam": 0.0}


def _check_alone(minmax: Any, placement: str, aspect: Any) -> None:
    if minmax is None:
        return
    if placement != "clip":
        raise ValueError(
            "minmax and placement exclude each other, for boxes whose sides are drawn always lie inside the image, but "
            f"got minmax={minmax!r} and placement={placement!r}."
        )
    if aspect is not None:
        raise ValueError(
            "minmax and aspect exclude each other, for each side of a box is drawn for itself, but got "
            f"minmax={minmax!r} and aspect={aspect!r}."
        )


@spelled_out
class CutMix(_BoxMethod):
    """CutMix: a box of the partner, sides √(1-λ) of the image's, clipped to it; label weight 1 - area of the box
    (Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV 2019).

    With its defaults it is torchvision.transforms.v2.CutMix, draw for draw. The label weight is not Beta(α, α):
    clipping makes boxes smaller, and at α=1 it averages .68 on 224x224 images. With placement="inside" it is λ, but for
    the rounding of sides to pixels.

    Args:
        alpha: α > 0 of λ ~ Beta(α, α).
        placement: "clip": around a random pixel, and clipped to the image, as the authors' code has it. "inside": at a
            random place where the box is wholly inside, as the paper takes for granted where it says that a box holds
            1-λ of the image, and as Kornia draws it.
        aspect: (low, high), from 1e-6 to 1e6: width/height of the box in pixels is drawn between these, log-uniformly,
            and its area is as without. A box that would not fit the image spans it along one axis, and is as much
            longer or shorter along the other. Of the last two axes; signals of one axis have no width/height. None: the
            width/height of the image.
        minmax: (a, b), 0 <= a < b <= 1: each side is uniform in ⌊a·S⌋ to ⌊b·S⌋-1 pixels of the image's S, as with
            timm's cutmix_minmax, and the box lies wholly inside. λ is not drawn then, but is 1 - area of the box, so
            that alpha, lam_range and fold do nothing, and placement and aspect may not be given. From a λ that is given
            to sample() the sides follow, as without minmax.
        fold: whether λ ← max(λ, 1-λ) once it is drawn, and within lam_range, as `MixUp` has it.
        **options: see `Options`.
    """

    _formulas = {"released": Method.CUTMIX, "paper": Method.CUTMIX}  # noqa: RUF012

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        placement: Literal["clip", "inside"] = "clip",
        aspect: tuple[float, float] | None = None,
        minmax: tuple[float, float] | None = None,
        fold: bool = False,
        **options: Unpack[Options],
    ) -> None:
        sides = _sides(minmax, placement, aspect)
        super().__init__(options, alpha=alpha, fold=fold, placement=placement, aspect=aspect, **sides)

    @property
    def minmax(self) -> tuple[float, float] | None:
        """The shares of each side of the image between which the sides of boxes are drawn; None: they follow from λ.
        May be changed between steps, compiled ones too."""
        low, high = self._spec[0, [Column.SIDE_LOW, Column.SIDE_HIGH]].tolist()
        return (low, high) if high else None

    @minmax.setter
    def minmax(self, value: tuple[float, float] | None) -> None:
        self._set_columns(**_sides(value, self.placement, self.aspect))

    def _describe(self) -> dict[str, Any]:
        return {**super()._describe(), **({"minmax": self.minmax} if self.minmax else {})}


@spelled_out
class HMix(_BoxMethod):
    """HMix: a CutMix box that does `ratio` of the mixing, and a Mixup around it that does the rest
    (Park et al., "A Unified Analysis of Mixed Sample Data Augmentation", NeurIPS 2022).

    variant="released": outside the box M = λ/(1-β), β the share of the clipped box, so the mean of every mask is λ, and
    so is the label weight. variant="paper": M = λ/(1-(1-λ)·ratio), label weight = the realised mean.

    Args:
        alpha: α > 0 of λ ~ Beta(α, α).
        ratio: r in [0, 1]; 0 is Mixup. The authors took .75 on ImageNet and .5 on CIFAR.
        ratio_alpha: γ > 0: r is drawn from Beta(γ, γ) with every mask, and `ratio` does nothing. None: r is `ratio`.
        placement: "clip": around a random pixel, and clipped to the image, as the authors' code has it. "inside": at a
            random place where the box is wholly inside.
        aspect: (low, high): width/height of the box, drawn between these as with CutMix; None: that of the image.
        fold: whether λ ← max(λ, 1-λ) once it is drawn, and within lam_range, as `MixUp` has it.
        **options: see `Options`.
    """

    _formulas = {"released": Method.HMIX_RELEASED, "paper": Method.HMIX_PAPER}  # noqa: RUF012

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        ratio: float = 0.75,
        ratio_alpha: float | None = None,
        placement: Literal["clip", "inside"] = "clip",
        aspect: tuple[float, float] | None = None,
        fold: bool = False,
        **options: Unpack[Options],
    ) -> None:
        drawn = {"ratio": ratio, "ratio_alpha": _gamma(ratio_alpha)}
        super().__init__(options, alpha=alpha, fold=fold, placement=placement, aspect=aspect, **drawn)

    @property
    def ratio(self) -> float:
        """The share of the mixing that the box does. May be changed between steps, compiled ones too."""
        return float(self._spec[0, Column.RATIO])

    @ratio.setter
    def ratio(self, value: float) -> None:
        self._spec[0, Column.RATIO] = checks.number("ratio", value, 0.0, 1.0)

    @property
    def ratio_alpha(self) -> float | None:
        """γ of a ratio that is drawn from Beta(γ, γ); None: it is `ratio`. May be changed between steps, compiled ones
        too."""
        return float(self._spec[0, Column.RATIO_ALPHA]) or None

    @ratio_alpha.setter
    def ratio_alpha(self, value: float | None) -> None:
        self._set_columns(ratio_alpha=_gamma(value))

    def _describe(self) -> dict[str, Any]:
        gamma = self.ratio_alpha
        return {**({"ratio": self.ratio} if gamma is None else {"ratio_alpha": gamma}), **super()._describe()}


def _gamma(ratio_alpha: Any) -> float:
    """The column of the γ of a ratio that is drawn."""
    return 0.0 if ratio_alpha is None else checks.number("ratio_alpha", ratio_alpha, 0.0, open_low=True)


@spelled_out
class GMix(FoldingMethod):
    """GMix: a Gaussian around a random pixel in place of the box; label weight = the realised mean of the mask
    (Park et al., "A Unified Analysis of Mixed Sample Data Augmentation", NeurIPS 2022).

    variant="released": with s = min(λ, 1-λ) and g = exp(-π d²/(s·H·W)), M = g if λ < ½, else 1-g; no label weight then
    falls into about (.43, .57). variant="paper": M = 1 - exp(-π d²/(2(1-λ)·H·W)).

    Args:
        alpha: α > 0 of λ ~ Beta(α, α). The authors took 1 on ImageNet and .5 on CIFAR.
        fold: whether λ ← max(λ, 1-λ) once it is drawn, and within lam_range, as `MixUp` has it.
        **options: see `Options`.
    """

    _formulas = {"released": Method.GMIX_RELEASED, "paper": Method.GMIX_PAPER}  # noqa: RUF012

    def __init__(self, *, alpha: float = 1.0, fold: bool = False, **options: Unpack[Options]) -> None:
        super().__init__(options, alpha=alpha, fold=fold)


_SHAPES = {"disc": Method.SMOOTHMIX_DISC, "square": Method.SMOOTHMIX_SQUARE}


@spelled_out
class SmoothMix(FoldingMethod):
    """SmoothMix: a disc or a square of the partner around a random pixel, with an edge that falls off as a Gaussian;
    label weight = the realised mean of the mask (Lee et al., "SmoothMix: a Simple Yet Effective Data Augmentation to
    Train Robust Classifiers", CVPR Workshops 2020).

    M = 1 - exp(-e²/(2σ²)), e the distance to the shape, in 3 dims a ball or a cube. The shape is so large that the
    partner's share is 1-λ if no border cuts it. If the edge alone has more than that, the shape is a point and σ is
    smaller.

    The paper has no λ: it draws σ from U(¼, ½) of the width, around a point. Here λ says how much is mixed, as in every
    other method.

    Args:
        alpha: α > 0 of λ ~ Beta(α, α).
        shape: "disc" or "square"; fixed at construction.
        edge: σ in longest sides of the image, in (0, 1].
        fold: whether λ ← max(λ, 1-λ) once it is drawn, and within lam_range, as `MixUp` has it.
        **options: see `Options`.
    """

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        shape: Literal["disc", "square"] = "disc",
        edge: float = 0.1,
        fold: bool = False,
        **options: Unpack[Options],
    ) -> None:
        method = _SHAPES[checks.choice("shape", shape, allowed=tuple(_SHAPES))]
        self.__dict__["_formulas"] = dict.fromkeys(("released", "paper"), method)
        super().__init__(options, alpha=alpha, fold=fold, edge=checks.number("edge", edge, 0.0, 1.0, open_low=True))

    @property
    def shape(self) -> str:
        """What the edge is around, "disc" or "square"."""
        return next(name for name, method in _SHAPES.items() if method == self._spec[0, Column.METHOD])

    @property
    def edge(self) -> float:
        """σ of the edge, in longest sides of the image. May be changed between steps, compiled ones too."""
        return float(self._spec[0, Column.EDGE])

    @edge.setter
    def edge(self, value: float) -> None:
        self._spec[0, Column.EDGE] = checks.number("edge", value, 0.0, 1.0, open_low=True)

    def _describe(self) -> dict[str, Any]:
        return {"shape": self.shape, "edge": self.edge, **super()._describe()}


@spelled_out
class GridMix(FoldingMethod):
    """GridMix: a grid over the image, and each of its cells from the sample or from the partner (Baek, Bang, Shim,
    "GridMix: Strong regularization through local context mapping", Pattern Recognition 2021). Label weight = the
    realised mean of the mask.

    Of n cells ⌊λn⌋ or ⌈λn⌉ are the sample's, either with probability ½, and every choice of so many is equally likely.
    Pixel c of a side belongs to cell c·cells // side, so cells may differ by a pixel. With the patches of a vision
    transformer as cells, whole patches are mixed, as in TokenMix (Liu et al., ECCV 2022).

    Args:
        cells: how many cells there are along each spatial dim of the images, as (height, width): at least 1 and at most
            the side; fixed at construction. Masks of up to 128 cells in all are the fastest; of more cells the plan
            stores a bit for each.
        alpha: α > 0 of λ ~ Beta(α, α).
        fold: whether λ ← max(λ, 1-λ) once it is drawn, and within lam_range, as `MixUp` has it.
        **options: see `Options`.

    Raises:
        ValueError: the images have another number of spatial dims than `cells`, or a side of fewer pixels than cells.
    """

    _formulas = {"released": Method.GRIDMIX, "paper": Method.GRIDMIX}  # noqa: RUF012

    def __init__(
        self, *, cells: Sequence[int], alpha: float = 1.0, fold: bool = False, **options: Unpack[Options]
    ) -> None:
        counts = checks.sides("cells", cells)
        if math.prod(counts) > grid.MOST:
            raise ValueError(f"cells must be fewer than 2^31 in all, but got {counts}, which are {math.prod(counts)}.")
        z, y, x = (0,) * (3 - len(counts)) + counts
        super().__init__(options, alpha=alpha, fold=fold, cells_z=z, cells_y=y, cells_x=x)

    @property
    def cells(self) -> tuple[int, ...]:
        """How many cells there are along each spatial dim."""
        return grid.cells_of(self._spec[0].tolist())

    def _describe(self) -> dict[str, Any]:
        return {"cells": self.cells, **super()._describe()}


@spelled_out
class FMix(FoldingMethod):
    """FMix: the partner where a random low-frequency image is low; as many pixels as λ says, whatever their shape
    (Harris et al., "FMix: Enhancing Mixed Sample Data Augmentation", 2020). Label weight = the realised mean of the
    mask.

    The grey image is Fourier noise whose amplitude falls with the frequency f as f^-decay_power, drawn by Philox from a
    seed with every sampling. Its ⌊λS⌋ or ⌈λS⌉ largest pixels of S are the sample's, either with probability ½.

    variant="paper": isotropic masks. variant="released": those of the published code, which indexes the wrong axis of
    its noise, so that they hold only horizontal frequencies 0 and 1, and a row changes sides twice at most.

    Args:
        alpha: α > 0 of λ ~ Beta(α, α).
        decay_power: δ >= 0.
        max_soft: s in [0, ½]: around the edge the mask falls linearly from 1 to 0 over ⌊S·min(s, λ, 1-λ)⌋ pixels on
            either side, in the order of their grey values.
        reformulate: λ ~ Beta(α+1, α), and the label weight is 1: the loss uses the first label only.
        cutoff: the highest frequency of the "paper" variant, in cycles along the longest side: frequencies above it
            along an axis are left out on every backend. None: 32 from decay_power 3 on, where .018 % of the pixels of a
            224x224 mask differ from those of the whole spectrum; 256 below, the whole spectrum of up to 512 pixels. Any
            large number asks for the whole of it.
        fold: whether λ ← max(λ, 1-λ) once it is drawn, and within lam_range, as `MixUp` has it.
        **options: see `Options`.
    """

    _formulas = {"released": Method.FMIX_RELEASED, "paper": Method.FMIX_PAPER}  # noqa: RUF012
    _default_variant = "paper"

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        decay_power: float = 3.0,
        max_soft: float = 0.0,
        reformulate: bool = False,
        cutoff: int | None = None,
        fold: bool = False,
        **options: Unpack[Options],
    ) -> None:
        decay_power = checks.number("decay_power", decay_power, 0.0, 100.0)
        most = default_cutoff(decay_power) if cutoff is None else checks.integer("cutoff", cutoff, 1)
        super().__init__(
            options,
            alpha=alpha,
            fold=fold,
            decay=decay_power,
            soft=checks.number("max_soft", max_soft, 0.0, 0.5),
            cutoff=float(most),
            reformulate=checks.boolean("reformulate", reformulate),
        )

    @property
    def decay_power(self) -> float:
        """δ: the amplitude of frequency f is f^-δ."""
        return float(self._spec[0, Column.DECAY])

    @property
    def max_soft(self) -> float:
        """The largest share of the pixels on either side of the edge over which the mask falls from 1 to 0."""
        return float(self._spec[0, Column.SOFT])

    @property
    def cutoff(self) -> int:
        """The highest frequency, in cycles along the longest side."""
        return int(self._spec[0, Column.CUTOFF])

    @property
    def reformulate(self) -> bool:
        """Whether λ ~ Beta(α+1, α) and the label weight is 1."""
        return bool(self._spec[0, Column.REFORMULATE])

    def _describe(self) -> dict[str, Any]:
        soft = {"max_soft": self.max_soft} if self.max_soft else {}
        cutoff = {"cutoff": self.cutoff} if self.cutoff != default_cutoff(self.decay_power) else {}
        swapped = {"reformulate": True} if self.reformulate else {}
        return {"decay_power": self.decay_power, **soft, **swapped, **cutoff, **super()._describe()}


@spelled_out
class SamplePairing(OneMethod):
    """SamplePairing: the mean of two images with the label of the first (Inoue, "Data Augmentation by Pairing Samples
    for Images Classification", 2018). λ = ½ is fixed and the label weight is 1.

    Args:
        **options: see `Options`.
    """

    _formulas = {"released": Method.SAMPLE_PAIRING, "paper": Method.SAMPLE_PAIRING}  # noqa: RUF012

    def __init__(self, **options: Unpack[Options]) -> None:
        super().__init__(options, lam=0.5)


@spelled_out
class RandomMix(MixTransform):
    """One of several methods, drawn for every batch (or pair, or sample): Stochastic Mixup & CutMix (Park 2022) and
    every other weighted set.

    With per="batch" it draws as torchvision.transforms.v2.RandomChoice does, then as the method chosen does.

    Args:
        methods: modules of this package (not RandomMix). α, ratio, variant, lam_range and p are each method's own, and
            may be set later. What belongs to the whole batch (num_classes, pairing, per, label_smoothing, ...) is the
            RandomMix's; a keyword not given here is taken from the methods that were given it, and these must agree.
        weights: a non-negative weight for each method; None: equal weights. (torchvision's RandomChoice calls it p,
            which is the probability of mixing at all here.)
        **options: see `Options`.

    Raises:
        ValueError: methods disagree about the batch; weights do not fit.
        TypeError: something in methods is not a mixing module.
    """

    _chooses = True

    def __init__(
        self,
        methods: Sequence[MixTransform],
        weights: Sequence[float] | None = None,
        **options: Unpack[BatchOptions],
    ) -> None:
        if not isinstance(methods, (list, tuple, nn.ModuleList)):
            raise TypeError(f"methods must be a list or tuple of mixing modules, but got {type(methods).__name__}.")
        if not methods:
            raise ValueError("methods must hold at least one mixing module, but got none.")
        for i, method in enumerate(methods):
            if isinstance(method, MixUp) and method.lam_law is not None:
                raise ValueError(f"methods[{i}] must be made with lam_law=None for a RandomMix: {_NO_LAW}")
            if not isinstance(method, OneMethod) or not method._in_sets or method._refines:
                *names, last = (
                    name for name in __all__ if issubclass(globals()[name], OneMethod) and not globals()[name]._refines
                )
                raise TypeError(
                    f"methods[{i}] must be a {', '.join(names)} or {last} of fusedmix, but got {named(method)}"
                )
        for keyword, value in options.items():
            if keyword in ("lam_range", "variant"):
                raise ValueError(f"{keyword} belongs to a method of RandomMix, but got {keyword}={value!r}.")
        given = shares("weights", weights, len(methods))
        super().__init__(torch.cat([method._spec for method in methods]), _agreed(methods, options))
        self._methods = nn.ModuleList(methods)
        self._shares = torch.tensor(given, dtype=torch.float64, device=CPU)
        for method in methods:
            method._member = True

    @property
    def methods(self) -> tuple[OneMethod, ...]:
        """The methods; fixed at construction."""
        return tuple(self._methods)  # type: ignore[arg-type]

    @property
    def weights(self) -> tuple[float, ...]:
        """The probability of each method. May be changed between steps, compiled ones too: any weights, which are
        divided by their sum."""
        return tuple(self._shares.tolist())

    @weights.setter
    def weights(self, weights: Sequence[float] | None) -> None:
        self._shares[:] = torch.tensor(shares("weights", weights, len(self._shares)), dtype=torch.float64, device=CPU)

    def __setstate__(self, state: dict[str, Any]) -> None:
        modules = state["_modules"]
        if "methods" in modules:  # The module was pickled when the list was public, and could be added to.
            state = {**state, "_modules": {"_methods": modules["methods"]}}
        super().__setstate__(state)

    def _take(self, given: Mapping[str, Any]) -> None:
        p = given.get("p")
        if isinstance(p, (Sequence, Tensor)) and not isinstance(p, str):
            raise TypeError(
                f"p must be a number, the probability of mixing at all, but got {p!r}. Those of the methods are called "
                "weights: RandomMix(methods, weights=[0.3, 0.7])."
            )
        super()._take(given)

    def _current_spec(self) -> Tensor:
        methods = self.methods
        spec = torch.cat([method._spec for method in methods])  # A schedule may have changed an α or a p.
        spec[:, Column.WEIGHT] = self._shares
        spec[:, Column.P] *= self._spec[:, Column.P]  # The methods and the set may each be `enabled` or not.
        for row, method in enumerate(methods):
            # The slice is of one row and not one number, because torch 2.11 would move a number to the GPU.
            spec[row : row + 1, Column.P] *= method.p
        return spec

    def _describe(self) -> dict[str, Any]:
        return {"weights": list(self.weights)}


def shares(name: str, weights: Any, n: int) -> list[float]:
    """The weights, divided by their sum as v2.RandomChoice divides them."""
    if weights is None:
        weights = [1.0] * n
    if not isinstance(weights, Sequence) or isinstance(weights, str):
        raise TypeError(f"{name} must be a sequence of numbers or None, but got {weights!r}.")
    if len(weights) != n:
        raise ValueError(f"{name} must have one number for each of the {n} methods, but got {len(weights)}.")
    for i, weight in enumerate(weights):
        checks.number(f"{name}[{i}]", weight, 0.0)
    if not 0 < sum(weights) < math.inf:
        raise ValueError(f"{name} must have a positive, finite sum, but got {list(weights)!r}.")
    return [weight / sum(weights) for weight in weights]


def _agreed(methods: Sequence[MixTransform], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a RandomMix: its own, and what its methods were given and agree on."""
    agreed = dict(options)
    for key in DEFAULTS.keys() - options.keys() - set(OF_METHOD):
        values = [method._options[key] for method in methods if key in method._options]
        if any(value is not values[0] and value != values[0] for value in values):
            raise ValueError(
                f"The methods of RandomMix disagree about {key}: got {values!r}. Pass {key}= to RandomMix."
            )
        if values:
            agreed[key] = values[0]
    generators = [method.generator for method in methods if method.generator is not None]
    if generators and "generator" not in options:
        if any(generator is not generators[0] for generator in generators):
            raise ValueError(f"The methods of RandomMix disagree about generator: got {generators!r}. Pass generator=.")
        agreed["generator"] = generators[0]
    return agreed
