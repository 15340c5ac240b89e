"""Which dims of images the masks extend over."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fusedmix.checks import names
from fusedmix.subclasses import kind


def check(x: Tensor, axes: Sequence[int] | None) -> None:
    """Raises ValueError unless masks know which dims of an image, batch included, they extend over."""
    what, shape = kind(x), tuple(x.shape)
    expected = 5 if what == "video" else 4
    taken = axes is not None or x.ndim in (3, 5) or (x.ndim == 2 and x.is_floating_point())
    if x.ndim != expected and (what != "tensor" or not taken):
        hint = ""
        if what == "tensor" and x.ndim == 2:
            hint = (
                " (batch_size, samples) and (batch_size, features) must be floating point, for integers may be tokens, "
                f"but are {names([x.dtype])}. Pass axes=(-1,) to the module where they are numbers, as sound of 8 bits "
                "is; of tokens mix the embeddings (fusedmix.EmbedMix)."
            )
        elif what == "tensor" and x.ndim > 5:
            hint = " Pass axes= to the module: the dims that its masks extend over, such as (-2, -1)."
        others = " (or 3 for signals, 5 for videos)" if what == "tensor" else ""
        raise ValueError(
            f"Expected a batched input with {expected} dims{others}, but got {x.ndim} dimensions: shape {shape}.{hint}"
        )
    named = [axis + x.ndim if axis < 0 else axis for axis in axes or ()]
    if not all(0 < d < x.ndim for d in named) or len(set(named)) < len(named):
        raise ValueError(f"axes must be different dims of the images other than the batch, but got {axes} for {shape}.")


def of_masks(x: Tensor, axes: Sequence[int] | None) -> tuple[int, ...]:
    """The dims that masks extend over, in their order: `axes`, else (H, W) of images and videos, (L,) of signals
    (B, C, L) and (D,) of (B, D)."""
    if axes is not None:
        return tuple(sorted(axis % x.ndim for axis in axes))
    return tuple(range(min(x.ndim - 1, max(2, x.ndim - 2)), x.ndim))


def spatial_size(x: Tensor, axes: Sequence[int] | None) -> tuple[int, ...]:
    """The sides of the masks of an image."""
    return tuple(x.shape[d] for d in of_masks(x, axes))


def last(x: Tensor, axes: Sequence[int] | None) -> Tensor:
    """A view with the dims of the masks where a plan takes them, at the end."""
    return x if axes is None else x.movedim(of_masks(x, axes), tuple(range(-len(axes), 0)))


def back(x: Tensor, axes: Sequence[int] | None) -> Tensor:
    """The view of which `last` made this one."""
    return x if axes is None else x.movedim(tuple(range(-len(axes), 0)), of_masks(x, axes))
