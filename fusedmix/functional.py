"""Functions in place of modules. `mix`, `mix_`, `mix_labels` and `finish` apply a plan. `mixup`, `cutmix` and their
like take λ, draw the rest of a plan as the module of that name does, and apply it to images and labels.

Each call of these makes a module anew, which takes longer than to mix a small batch. In a training loop make the module
once, and let it draw λ.

Examples:
    >>> images, targets = fm.functional.cutmix(images, labels, lam=0.7, num_classes=1000)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor
from typing_extensions import Unpack

from fusedmix import transforms
from fusedmix.mixing import finish, mix, mix_, mix_labels
from fusedmix.module import MixTransform
from fusedmix.options import CallOptions, VariantName, spelled_out_call
from fusedmix.pasting import ResizeMix

__all__ = [
    "cutmix",
    "finish",
    "fmix",
    "gmix",
    "gridmix",
    "hmix",
    "mix",
    "mix_",
    "mix_labels",
    "mixup",
    "resizemix",
    "smoothmix",
]


@spelled_out_call
def mixup(
    images: Tensor, labels: Tensor, *, lam: float | Tensor, **options: Unpack[CallOptions]
) -> tuple[Tensor, Tensor]:
    """λ·x + (1-λ)·x[partner], and the labels likewise (`MixUp`; Zhang et al., ICLR 2018).

    Args:
        images: (B, C, H, W) or (B, C, L), or of the dims that axes says; of a dtype that `mix` takes.
        labels: (B,) integer classes, or (B, K) one-hot or soft.
        lam: λ, the weight of the sample itself: any finite number, or one for each sample, (B,) floating point.
        **options: see `CallOptions`.

    Returns:
        The mixed images, and the targets (B, K) as `mix_labels` has them.

    Raises:
        TypeError, ValueError: an argument is of the wrong type, shape or range. Nothing was drawn or written then.
    """
    return _mixed(transforms.MixUp, images, labels, lam, options)


@spelled_out_call
def cutmix(
    images: Tensor,
    labels: Tensor,
    *,
    lam: float | Tensor,
    placement: Literal["clip", "inside"] = "clip",
    aspect: tuple[float, float] | None = None,
    **options: Unpack[CallOptions],
) -> tuple[Tensor, Tensor]:
    """A box of the partner, whose place is drawn (`CutMix`; Yun et al., ICCV 2019).

    Args:
        images: as in `mixup`.
        labels: as in `mixup`.
        lam: λ in [0, 1]: sides of the box are √(1-λ) of those of the image. A number, or (B,) floating point. The label
            weight is 1 - area of the box, which is λ or more, because the border clips boxes.
        placement: as in `CutMix`.
        aspect: as in `CutMix`.
        **options: see `CallOptions`.

    Returns:
        As `mixup`.

    Raises:
        TypeError, ValueError: as `mixup`.
    """
    return _mixed(transforms.CutMix, images, labels, lam, options, placement=placement, aspect=aspect)


@spelled_out_call
def hmix(
    images: Tensor,
    labels: Tensor,
    *,
    lam: float | Tensor,
    ratio: float = 0.75,
    placement: Literal["clip", "inside"] = "clip",
    aspect: tuple[float, float] | None = None,
    variant: VariantName | None = None,
    **options: Unpack[CallOptions],
) -> tuple[Tensor, Tensor]:
    """A box of the partner and a blend around it (`HMix`; Park et al., NeurIPS 2022).

    Args:
        images: as in `mixup`.
        labels: as in `mixup`.
        lam: λ in [0, 1], a number or (B,) floating point: the label weight of variant="released".
        ratio: the share of the mixing that the box does, in [0, 1].
        placement: as in `HMix`.
        aspect: as in `HMix`.
        variant: "released" or "paper", as in `HMix`; None: "released".
        **options: see `CallOptions`.

    Returns:
        As `mixup`.

    Raises:
        TypeError, ValueError: as `mixup`.
    """
    own = {"ratio": ratio, "placement": placement, "aspect": aspect, "variant": variant}
    return _mixed(transforms.HMix, images, labels, lam, options, **own)


@spelled_out_call
def gmix(
    images: Tensor,
    labels: Tensor,
    *,
    lam: float | Tensor,
    variant: VariantName | None = None,
    **options: Unpack[CallOptions],
) -> tuple[Tensor, Tensor]:
    """A Gaussian of the partner around a random pixel (`GMix`; Park et al., NeurIPS 2022).

    Args:
        images: as in `mixup`.
        labels: as in `mixup`.
        lam: λ in [0, 1], a number or (B,) floating point. The label weight is the mean of the mask.
        variant: "released" or "paper", as in `GMix`; None: "released".
        **options: see `CallOptions`.

    Returns:
        As `mixup`.

    Raises:
        TypeError, ValueError: as `mixup`.
    """
    return _mixed(transforms.GMix, images, labels, lam, options, variant=variant)


@spelled_out_call
def fmix(
    images: Tensor,
    labels: Tensor,
    *,
    lam: float | Tensor,
    decay_power: float = 3.0,
    max_soft: float = 0.0,
    variant: VariantName | None = None,
    **options: Unpack[CallOptions],
) -> tuple[Tensor, Tensor]:
    """The partner where a random image of low frequencies is low (`FMix`; Harris et al., 2020).

    Args:
        images: as in `mixup`.
        labels: as in `mixup`.
        lam: λ in [0, 1], a number or (B,) floating point: the share of pixels that are the sample's, up to one pixel.
        decay_power: as in `FMix`.
        max_soft: as in `FMix`.
        variant: "paper" or "released", as in `FMix`; None: "paper".
        **options: see `CallOptions`.

    Returns:
        As `mixup`.

    Raises:
        TypeError, ValueError: as `mixup`.
    """
    own = {"decay_power": decay_power, "max_soft": max_soft, "variant": variant}
    return _mixed(transforms.FMix, images, labels, lam, options, **own)


@spelled_out_call
def smoothmix(
    images: Tensor,
    labels: Tensor,
    *,
    lam: float | Tensor,
    shape: Literal["disc", "square"] = "disc",
    edge: float = 0.1,
    **options: Unpack[CallOptions],
) -> tuple[Tensor, Tensor]:
    """A disc or a square of the partner with a soft edge (`SmoothMix`; Lee et al., CVPR Workshops 2020).

    Args:
        images: as in `mixup`.
        labels: as in `mixup`.
        lam: λ in [0, 1], a number or (B,) floating point: the size of the shape. The label weight is the mean of the
            mask.
        shape: as in `SmoothMix`.
        edge: as in `SmoothMix`.
        **options: see `CallOptions`.

    Returns:
        As `mixup`.

    Raises:
        TypeError, ValueError: as `mixup`.
    """
    return _mixed(transforms.SmoothMix, images, labels, lam, options, shape=shape, edge=edge)


@spelled_out_call
def gridmix(
    images: Tensor,
    labels: Tensor,
    *,
    lam: float | Tensor,
    cells: Sequence[int],
    **options: Unpack[CallOptions],
) -> tuple[Tensor, Tensor]:
    """Cells of a grid from the partner (`GridMix`; Baek, Bang, Shim, Pattern Recognition 2021).

    Args:
        images: as in `mixup`.
        labels: as in `mixup`.
        lam: λ in [0, 1], a number or (B,) floating point: of n cells ⌊λn⌋ or ⌈λn⌉ are the sample's.
        cells: how many there are along each spatial dim, as (height, width).
        **options: see `CallOptions`.

    Returns:
        As `mixup`.

    Raises:
        TypeError, ValueError: as `mixup`.
    """
    return _mixed(transforms.GridMix, images, labels, lam, options, cells=cells)


@spelled_out_call
def resizemix(
    images: Tensor,
    labels: Tensor,
    *,
    lam: float | Tensor,
    resize: Literal["nearest", "bilinear"] = "nearest",
    **options: Unpack[CallOptions],
) -> tuple[Tensor, Tensor]:
    """The whole partner, resized, in a box whose place is drawn (`ResizeMix`; Qin et al., 2020). Out of place only.

    Args:
        images: as in `mixup`.
        labels: as in `mixup`.
        lam: λ in [0, 1], a number or (B,) floating point: the box has τ = √(1-λ) of the sides of the image, before the
            border clips it.
        resize: as in `ResizeMix`.
        **options: see `CallOptions`.

    Returns:
        As `mixup`.

    Raises:
        TypeError, ValueError: as `mixup`.
    """
    return _mixed(ResizeMix, images, labels, lam, options, resize=resize)


def _mixed(
    method: type[MixTransform], images: Tensor, labels: Tensor, lam: float | Tensor, options: CallOptions, **own: Any
) -> tuple[Tensor, Tensor]:
    """What a module of a method, made with its own keywords and those shared, makes of a batch by a given λ."""
    shared: dict[str, Any] = dict(options)
    given = {name: shared.pop(name, None) for name in ("partner", "seed")}
    if given["seed"] is not None and shared.get("generator") is not None:
        raise ValueError("seed and generator exclude each other, but got both.")
    if lam is None:
        raise TypeError(f"lam must be a number or a tensor, but got None. fusedmix.{method.__name__}() draws λ.")
    if shared.get("pairing") == "adjacent":
        raise ValueError(f"pairing must not be 'adjacent' here: fusedmix.{method.__name__} makes one sample of two.")
    return method(**own, **shared)._mix_with(images, labels, lam=lam, **given)
