"""Checks of arguments. Each raises before any work is done, naming the argument, what came and what is allowed."""

from __future__ import annotations

import difflib
import itertools
import math
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from fusedmix.arguments import PARTS
from fusedmix.masks import holds, is_stored
from fusedmix.masks.grid import CELLS, has_room
from fusedmix.masks.grid import LONGEST_SIDE as _LONGEST_UNDER_GRID
from fusedmix.methods import Families, Kind, Per

FLOATING_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
IMAGE_DTYPES = (*FLOATING_DTYPES, torch.uint8, torch.int16, torch.uint16)
INTEGER_DTYPES = (
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
)
LONGEST_SIDE = 2**31 - 1  # in pixels: a plan holds boxes and centres in 32 bits
_EVERY = sum(int(part) for part in Families)
_NO_PIXELS = "pixels must hold the masks of FMix and of large grids, but got None."
_CONSTANTS = int(Families.CONSTANTS)  # a plain number, because the arithmetic of flags takes microseconds
WHOLE_BATCH = "A plan is for a whole batch and cannot be cut: mix the whole batch, then split what comes out."


class Checked:
    """Base of classes whose public attributes are checked whenever they are set, or are fixed."""

    # The check of each attribute takes its name and a value, and returns the value as it is kept.
    _checks: ClassVar[Mapping[str, Callable[[str, Any], Any]]] = {}
    _fixed: ClassVar[Sequence[str]] = ()  # attributes that may be set once

    def __setattr__(self, name: str, value: Any) -> None:
        attribute = getattr(type(self), name, None)
        if (isinstance(attribute, property) and attribute.fset is None) or (name in self._fixed and name in vars(self)):
            kind = type(self).__name__
            raise AttributeError(
                f"{name} of a {kind} is fixed when it is made, but was set to {value!r}. Make a new {kind} for another."
            )
        if name in self._checks:
            value = self._checks[name](name, value)
        super().__setattr__(name, value)


class InplaceError(ValueError, RuntimeError):
    """A tensor cannot be mixed in place. (Autograd's own complaints about in-place calls are RuntimeErrors.)"""


def names(dtypes: Sequence[torch.dtype]) -> str:
    """The dtypes as users write them, without the prefix."""
    return ", ".join(str(d).removeprefix("torch.") for d in dtypes)


def number(name: str, x: Any, low: float = -math.inf, high: float = math.inf, *, open_low: bool = False) -> float:
    """`x` as a float in [low, high], or (low, high] if open_low."""
    if type(x) is not float and (isinstance(x, bool) or not isinstance(x, numbers.Real)):
        raise TypeError(f"{name} must be a number, but got {x!r} of type {type(x).__name__}.")
    value = float(x)
    finite = -math.inf < value < math.inf  # math.isfinite takes no symbolic floats of torch.compile.
    if not finite or not (low < value if open_low else low <= value) or value > high:
        if math.isinf(low) and math.isinf(high):
            allowed = "finite"
        elif math.isinf(high):
            allowed = f"finite and {'>' if open_low else '>='} {low:g}"
        else:
            allowed = f"in {'(' if open_low else '['}{low:g}, {high:g}]"
        raise ValueError(f"{name} must be {allowed}, but got {x!r}.")
    return value


def integer(name: str, x: Any, low: int, high: int | None = None) -> int:
    """`x` as an int of at least `low` and at most `high`. Symbolic ints of torch.compile pass as they are."""
    if type(x) is not int and (isinstance(x, bool) or not isinstance(x, (numbers.Integral, torch.SymInt))):
        raise TypeError(f"{name} must be an int, but got {x!r} of type {type(x).__name__}.")
    if x < low or (high is not None and x > high):  # type: ignore[operator]
        allowed = f">= {low}" if high is None else f"in [{low}, {high}]"
        raise ValueError(f"{name} must be {allowed}, but got {x!r}.")
    return x if isinstance(x, (int, torch.SymInt)) else int(x)  # type: ignore[return-value]


def choice(name: str, x: Any, allowed: Sequence[str], elsewhere: Mapping[str, str] = MappingProxyType({})) -> str:
    """`x`, if it is one of the allowed strings. `elsewhere`: what other libraries call them."""
    if not isinstance(x, str):
        raise TypeError(f"{name} must be a str, one of {', '.join(allowed)}, but got {x!r}.")
    if x not in allowed:
        hint = did_you_mean(x, allowed, elsewhere)
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, but got {x!r}.{hint and ' ' + hint}")
    return x


def did_you_mean(x: str, allowed: Sequence[str], elsewhere: Mapping[str, str] = MappingProxyType({})) -> str:
    """The question whether one of the allowed strings was meant, or nothing if `x` resembles none of them."""
    near = elsewhere.get(x.lower()) or next(iter(difflib.get_close_matches(x.lower(), allowed, 1)), None)
    return "" if near is None else f"Did you mean {near!r}?"


def boolean(name: str, x: Any) -> bool:
    """`x`, if it is a bool."""
    if not isinstance(x, bool):
        raise TypeError(f"{name} must be a bool, but got {x!r} of type {type(x).__name__}.")
    return x


def interval(name: str, x: Any, least: float = 0.0, most: float = 1.0, *, or_none: bool = True) -> tuple[float, float]:
    """`x` as (low, high) with least <= low <= high <= most. `or_none`: whether the caller takes None, too."""
    if not isinstance(x, Sequence) or isinstance(x, str) or len(x) != 2:
        raise TypeError(f"{name} must be a pair (low, high){' or None' if or_none else ''}, but got {x!r}.")
    low, high = number(f"{name}[0]", x[0], least, most), number(f"{name}[1]", x[1], least, most)
    if low > high:
        raise ValueError(f"{name} must have low <= high, but got {x!r}.")
    return low, high


def sides(name: str, x: Any, *, stored: bool = False) -> tuple[int, ...]:
    """`x` as 1 to 3 spatial sides, each of 1 to 2^31-1 pixels, and of fewer than 2^63 together, or 2^31 where masks are
    `stored`."""
    if not isinstance(x, Sequence) or isinstance(x, str):
        raise TypeError(f"{name} must be a sequence of 1 to 3 ints, but got {x!r} of type {type(x).__name__}.")
    if not 1 <= len(x) <= 3:
        raise ValueError(f"{name} must have 1 to 3 spatial dims, but got {tuple(x)!r}.")
    size = tuple(integer(f"{name}[{i}]", side, 1) for i, side in enumerate(x))
    for i, side in enumerate(size):
        integer(f"{name}[{i}]", side, 1, LONGEST_SIDE)
    bits = 31 if stored else 63
    if not torch.compiler.is_compiling() and math.prod(size) >= 1 << bits:
        raise ValueError(f"{name} must have fewer than 2^{bits} pixels{' for FMix' if stored else ''}, but got {size}.")
    return size


def device(name: str, x: Any) -> torch.device:
    """`x` as a device."""
    try:
        return torch.device(x)
    except (TypeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{name} must be a device such as 'cpu' or 'cuda:0', but got {x!r}: {reason}") from None


def axes(name: str, x: Any) -> tuple[int, ...]:
    """`x` as 1 to 3 dims of the images, from the front or, negative, from the back."""
    if not isinstance(x, Sequence) or isinstance(x, str):
        raise TypeError(f"{name} must be a sequence of 1 to 3 ints or None, but got {x!r} of type {type(x).__name__}.")
    dims = tuple(integer(f"{name}[{i}]", axis, -(2**31), 2**31) for i, axis in enumerate(x))
    if not 1 <= len(dims) <= 3 or 0 in dims or len(set(dims)) < len(dims):
        raise ValueError(f"{name} must be 1 to 3 different dims other than 0, the batch, but got {dims!r}.")
    return dims


def tensor(name: str, x: Any) -> Tensor:
    """`x`, if it is a tensor that lies in memory as it is."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, but got {type(x).__name__}.{makes_one(x)}")
    return dense(name, x)


def makes_one(x: Any) -> str:
    """How to make a tensor of what is none, if it is an array or a list."""
    array = (isinstance(x, Sequence) and not isinstance(x, str)) or hasattr(x, "__array__")
    return " torch.as_tensor(...) makes a tensor of it." if array else ""


def dense(name: str, x: Tensor) -> Tensor:
    """`x`, if it is neither sparse, nested, quantized nor masked."""
    if x.is_nested:
        came = "a nested tensor"
    elif type(x) is not Tensor and isinstance(x, torch.masked.MaskedTensor):
        came = "a MaskedTensor"
    elif x.layout is not torch.strided:
        came = f"one of layout {x.layout}"
    elif x.is_quantized:
        came = f"a quantized one of {x.dtype}"
    else:
        return x
    raise ValueError(f"{name} must be a dense tensor, but got {came}.")


def batch(name: str, x: Any) -> Tensor:
    """`x`, if it is a tensor with a batch dim and a dtype that can be blended."""
    tensor(name, x)
    if x.ndim < 1:
        raise ValueError(f"{name} must have a batch dim, but got a tensor of shape {tuple(x.shape)}.")
    if x.dtype not in IMAGE_DTYPES:
        raise ValueError(f"{name} must have one of the dtypes {names(IMAGE_DTYPES)}, but got {x.dtype}.")
    return x


def labels(x: Any, num_classes: int | None, width: str = "num_classes") -> Tensor:
    """`x`, if it is (B,) integer classes or (B, K) soft labels that fit num_classes, which errors call `width`."""
    if not isinstance(x, Tensor):
        raise ValueError(f"The labels must be a tensor, but got {type(x)} instead.{makes_one(x)}")
    dense("labels", x)
    if x.ndim not in (1, 2):
        raise ValueError(
            "labels should be index based with shape (batch_size,) or probability based with shape "
            f"(batch_size, num_classes), but got a tensor of shape {tuple(x.shape)} instead."
        )
    if x.dtype.is_complex:
        raise ValueError(f"labels must have a real dtype, but got {x.dtype}.")
    if x.ndim == 1 and x.dtype not in INTEGER_DTYPES:
        raise ValueError(f"1D labels must have one of the dtypes {names(INTEGER_DTYPES)}, but got {x.dtype}.")
    if x.is_floating_point() and x.dtype not in IMAGE_DTYPES:
        raise ValueError(f"Soft labels must have one of the dtypes {names(FLOATING_DTYPES)}, but got {x.dtype}.")
    if x.ndim == 2 and x.shape[1] == 1 and num_classes != 1 and x.dtype in INTEGER_DTYPES:
        raise ValueError(
            f"labels of shape {tuple(x.shape)} and dtype {x.dtype} would be taken for soft labels of a single class. "
            "Pass class numbers as (batch_size,), by labels.squeeze(1), or one-hot labels as (batch_size, num_classes)."
        )
    if x.ndim == 2 and num_classes is not None and x.shape[1] != num_classes:
        raise ValueError(
            f"When passing 2D labels, their last dimension must match {width}, but got {x.shape[1]} != {num_classes}."
            + (" num_classes may be None for 2D labels." if width == "num_classes" else "")
        )
    if x.ndim == 2 and x.shape[1] < 1:
        raise ValueError(f"Soft labels must have at least one class, but got shape {tuple(x.shape)}.")
    return x


def dense_labels(x: Any, num_classes: int | None) -> int:
    """The number of classes of dense targets made from labels `x`."""
    labels(x, num_classes)
    if x.ndim == 2:
        return x.shape[1]
    if num_classes is None:
        raise ValueError("num_classes must be passed if the labels are index-based (1D), but got None.")
    return num_classes


def shaped(name: str, x: Tensor, dtype: torch.dtype, *shape: int, why: str = "") -> None:
    """Raises unless `x` has that dtype and that shape."""
    if x.dtype != dtype or x.shape != shape:
        raise ValueError(
            f"{name} must be {names([dtype])} of shape {shape}, but got {names([x.dtype])} of shape "
            f"{tuple(x.shape)}.{why and ' '}{why}"
        )


def part(name: str, x: Tensor, batch_size: int, prefix: str = "", why: str = "") -> None:
    """Raises unless `x` may be the part of that name of a plan for a batch."""
    dtype, rest = PARTS[name]
    shaped(prefix + name, x, dtype, batch_size, *rest, why=why)


def pixels(
    x: Tensor | None,
    batch_size: int,
    size: tuple[int, ...],
    families: int,
    per: int,
    *,
    needed: bool,
    prefix: str = "",
) -> None:
    """Raises unless `x` may be the pixels of a plan; None only if they are not needed."""
    if x is None:
        if needed:
            raise ValueError(f"{prefix}{_NO_PIXELS}")
        return
    soft = x.dtype == torch.int16
    across = math.prod(size) if soft else -(-math.prod(size) // 32)
    if families & Families.LARGE_CELLS and not families & (Families.STORED | Families.LEVELS):
        soft, across = False, max(1, x.shape[1] if x.ndim == 2 else 0)  # `records` checks the largest grid.
    rows = Per(per).draws(batch_size) if batch_size else 0
    shaped(f"{prefix}pixels", x, torch.int16 if soft else torch.int32, rows, across)


def grid(name: str, x: Tensor, size: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The cells and the spatial sides of a batch of grids (B, *cells) of 0 and 1, on images of a size."""
    size = sides("size", size, stored=math.prod(x.shape[1:]) > CELLS)
    if x.ndim != 1 + len(size):
        raise ValueError(
            f"{name} must be of real numbers, (batch_size, *cells) with {len(size)} numbers of cells for images of "
            f"size {size}, but got {names([x.dtype])} of shape {tuple(x.shape)}."
        )
    cells = tuple(x.shape[1:])
    fits(name, cells, size)
    if x.dtype != torch.bool and readable(x) and not ((x == 0) | (x == 1)).all():
        raise ValueError(f"{name} must be 0 or 1 everywhere, but holds other numbers.")
    return cells, size


def fits(name: str, cells: tuple[int, ...], size: tuple[int, ...]) -> None:
    """Raises unless a grid of so many cells fits images of a size."""
    if len(cells) != len(size):
        raise ValueError(
            f"{name} must have a number for each of the {len(size)} spatial dims of the images, but got {cells}."
        )
    for i, (count, side) in enumerate(zip(cells, size, strict=True)):
        integer(f"the number of cells along a side, {name}[{i}],", count, 1)
        if count > side:
            raise ValueError(
                f"{name}[{i}] must be at most the {side} pixels along that side of the images, but got {count}."
            )
        integer(f"a side of images under a grid, size[{i}],", side, 1, _LONGEST_UNDER_GRID)
        if count * side > 1 << 32:  # Kernels count this product in 32 bits.
            raise ValueError(
                f"{name}[{i}] must be at most 2^32 divided by the {side} pixels along that side of the images, "
                f"{(1 << 32) // side}, but got {count}."
            )


def weight(x: Tensor, batch_size: int) -> None:
    """Raises unless `x` may be label weights that are given."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.shape != (batch_size,):
        what = f"{names([x.dtype])} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"weight must be floating point of shape ({batch_size},), but got {what}.")
    if readable(x) and not ((x >= 0) & (x <= 1)).all():
        raise ValueError("weight must be in [0, 1] everywhere, but holds other numbers.")


def readable(x: Tensor) -> bool:
    """Whether what `x` holds can be checked here: on the CPU; on a GPU, which that waits for, only if
    FUSEDMIX_CHECK_PLANS=1 asks for it; not inside a graph."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    return x.numel() > 0 and (x.device.type == "cpu" or os.environ.get("FUSEDMIX_CHECK_PLANS") == "1")


def _unwrapped(x: Tensor) -> Tensor:
    """All the values of a tensor at once where torch.vmap maps over it."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x


def partners(x: Tensor, *, permutation: bool = False, among: int | None = None) -> None:
    """Raises ValueError if a partner is none of the samples, which are `among` so many others if that is said, or if
    `permutation` one of two."""
    if not readable(x):
        return
    samples, x = x.shape[0] if among is None else among, _unwrapped(x)
    low, high = (int(v) for v in x.aminmax())
    if low < 0 or high >= samples:
        of = f". {WHOLE_BATCH}" if among is None else ", which is how many samples other has."
        raise ValueError(f"partner must be in [0, {samples}), but got {low if low < 0 else high}{of}")
    # Where torch.vmap maps plans, the operator looks at each of them.
    if permutation and x.ndim == 1 and (x.bincount(minlength=samples) != 1).any():
        raise ValueError(
            "partner is not a permutation, as it must be in place and for gradients: a sample is the partner of two."
        )


def may_repeat(x: Tensor) -> bool:
    """Whether partners, which are samples of the batch, are no permutation; or what they are cannot be read here."""
    if not readable(x):
        return x.numel() > 0
    return bool((x.bincount(minlength=x.shape[0]) != 1).any())


def records(x: Tensor, families: int, pixels: Tensor | None, *, spatial: bool = True) -> None:
    """Raises ValueError if `families` is no set of them, or a mask is of none of them, not stored in `pixels` though no
    formula gives it, or of another one than the constants where masks are not `spatial`."""
    if not 0 < families <= _EVERY:
        raise ValueError(f"families must be a set of families, a number in [1, {_EVERY}], but got {families}.")
    if not readable(x):
        return
    x = _unwrapped(x)
    held = holds(x, families if spatial else families & _CONSTANTS)
    if not held.all():
        row = int(held.long().argmin())
        kind = int(x[row, 0])
        named = Kind(kind).name if kind in set(Kind) else "none"
        where = "" if spatial else ", and constant where ndim is 0"
        raise ValueError(
            f"masks must be of the plan's families, {Families(families)!r}{where}, but that of sample {row} is of kind "
            f"{kind} ({named})."
        )
    if pixels is None and Families(families).stored and is_stored(x).any():
        raise ValueError(_NO_PIXELS)
    if pixels is not None and families & Families.LARGE_CELLS:
        bits = 8 * pixels.element_size() * pixels.shape[-1]
        if not (room := has_room(x, bits)).all():
            row = int(room.long().argmin())
            raise ValueError(
                f"pixels must have a bit for each of the {'x'.join(map(str, x[row, 1:4].tolist()))} cells of the mask "
                f"of sample {row}, but has {bits} in a row."
            )


def class_range(labels: Tensor, num_classes: int, name: str = "labels", *, ignore_index: int | None = None) -> None:
    """Raises ValueError if a class is outside 0..num_classes-1 and is not ignore_index.

    Always checked on the CPU. On a GPU it would wait for the device, so only if FUSEDMIX_CHECK_LABELS=1 asks for it.
    Inside a traced graph it would break the graph (fusedmix/mixing.py, in_range).
    """
    if torch.compiler.is_compiling() or labels.numel() == 0:
        return
    if labels.device.type != "cpu" and os.environ.get("FUSEDMIX_CHECK_LABELS") != "1":
        return
    labels = _unwrapped(labels)
    low, high = _extremes(labels)
    if ignore_index in (low, high):  # It may be outside only if it is an extreme, and to look for it takes longer.
        labels = labels[labels != ignore_index]
        if labels.numel() == 0:
            return
        low, high = _extremes(labels)
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"{name} must be in [0, num_classes) = [0, {num_classes}), but got {low if low < 0 else high}."
        )


def _extremes(labels: Tensor) -> tuple[int, int]:
    """The least and the largest class."""
    if labels.ndim == 1 and len(labels) <= 128:  # Numbers of Python take a fifth of the time.
        classes = labels.tolist()
        return min(classes), max(classes)
    low, high = labels.long().aminmax()
    return int(low), int(high)


def writable(name: str, x: Tensor) -> None:
    """Raises InplaceError if writing into `x` would give wrong gradients or depend on the order of writes."""
    if x.requires_grad and torch.is_grad_enabled():
        raise InplaceError(
            f"{name} cannot be mixed in place while grad is enabled: a tensor that requires grad would lose its old "
            "values to autograd. Use fusedmix.mix (inplace=False), or torch.no_grad()."
        )
    if not torch.compiler.is_compiling() and x.is_neg():
        raise InplaceError(
            f"{name} cannot be mixed in place: it is a negated view, as the imaginary part of a conjugate is. "
            "Use fusedmix.mix (inplace=False), or x.resolve_neg()."
        )
    if x.is_contiguous():  # This takes a tenth of the time of what follows.
        return
    # In the order of their strides, each dim must step over all that the smaller ones span.
    span = 0
    for stride, side in sorted((st, si) for st, si in zip(x.stride(), x.shape, strict=True) if si > 1):
        if stride <= span and x.numel():
            raise InplaceError(
                f"{name} cannot be mixed in place: its memory overlaps itself, or may: shape {tuple(x.shape)}, "
                f"strides {x.stride()} (from expand or unfold). Use fusedmix.mix (inplace=False) or clone it first."
            )
        span += stride * (side - 1)


def usual_batch(x: Tensor, y: Tensor, num_classes: int, inplace: bool) -> None:
    """Raises ValueError unless images and labels may be mixed by the step that modules take without looking further."""
    batch("images", x)
    dense_labels(y, num_classes)
    if x.shape[0] != y.shape[0] or not x.numel() or y.device != x.device:
        raise ValueError("This step is not a plain one.")
    if y.ndim == 1:
        class_range(y, num_classes)
    if inplace:
        writable("images", x)


def disjoint(name: str, tensors: Sequence[Tensor]) -> None:
    """Raises InplaceError if two different tensors that are to be written lie in the same bytes: they would be mixed
    twice. Not seen inside torch.compile, where tensors have no addresses."""
    if torch.compiler.is_compiling():
        return
    distinct = list({id(x): x for x in tensors if x.numel()}.values())
    for a, b in itertools.combinations(distinct, 2):
        if _share_memory(a, b):
            raise InplaceError(f"{name} cannot be mixed in place: two of them share memory. Clone one (inplace=False).")


def _share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of non-negative strides have an element in common."""
    if a.device != b.device or a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr():
        return False
    if a.element_size() != b.element_size():
        return True  # One storage is read as two dtypes, which is not worth telling apart.
    # Views of one storage interleave in many harmless ways (two stacks in the channels of one tensor), so look.
    ends = [x.storage_offset() + sum(s * (n - 1) for s, n in zip(x.stride(), x.shape, strict=True)) for x in (a, b)]
    touched = torch.zeros(max(ends) + 1, dtype=torch.bool, device="cpu")
    touched.as_strided(a.shape, a.stride(), a.storage_offset()).fill_(True)
    return bool(touched.as_strided(b.shape, b.stride(), b.storage_offset()).any())
