"""What finishes a batch: flip, normalise and erase beside mixing, in one pass from bytes to the images of a model.

Here is what is asked for, and its checks. fusedmix/erasing.py draws the flips and the holes, and
fusedmix/backends/finished.py has the meaning of a finished mix.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fusedmix import checks
from fusedmix.tracking import tracked, transformed

InputFormat = Literal["NCHW", "NHWC"]
Fill = float | tuple[float, ...] | Literal["random", "pixel"]

FINISHED_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MOST_HOLES = 16  # of a sample: a record holds so many at most
RATIOS = (1e-6, 1e6)  # between which that of a hole may be
_FORMATS = (torch.contiguous_format, torch.channels_last)
# What timm calls them. torchvision's value="random" draws every pixel, as "pixel" does here.
_FILLS_ELSEWHERE = {"rand": "random", "const": "0", "constant": "0", "zero": "0"}
_INPUT_FORMATS_ELSEWHERE = {"nchw": "NCHW", "nhwc": "NHWC", "channels_last": "NHWC", "channels_first": "NCHW"}
_FLOAT32_MAX = torch.finfo(torch.float32).max
_KEPT = "_kept"  # the attribute of a finish that holds what `arguments` has made on each device


@dataclass(frozen=True)
class Erase:
    """Random Erasing: rectangles of a sample are overwritten, each sample by draws of its own, before it is mixed, so
    that a partner brings its own holes along.

    The law is timm's RandomErasing's, and with count=1 torchvision's: a sample is erased with probability `p`; how
    many holes it gets is uniform in `count`; the area of each is uniform in `scale`, divided by their number, and its
    height/width is log-uniform in `ratio`; height and width are rounded to whole pixels; ten such rectangles are tried
    for each hole, and the first that is lower and narrower than the image is put at a uniform place. Where none is,
    there is no hole. A later hole covers an earlier one.

    Args:
        p: the probability that a sample is erased at all, in [0, 1].
        scale: (low, high), the area as a share of the image, with 0 <= low <= high <= 1.
        ratio: (low, high), height/width, with 1e-6 <= low <= high <= 1e6.
        value: what a hole is filled with, in the units of the normalised image. A number, or one for each channel;
            "random": a standard normal number for each hole and channel (timm's "rand"); "pixel": one for each pixel
            and channel (timm's "pixel", torchvision's "random").
        count: how many holes a sample gets at most, or (least, most), in 1..16.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range.

    Source: Zhong, Zheng, Kang, Li, Yang, "Random Erasing Data Augmentation", AAAI 2020.
    """

    p: float = 0.5
    scale: tuple[float, float] = (0.02, 1 / 3)
    ratio: tuple[float, float] = (0.3, 1 / 0.3)
    value: Fill = 0.0
    count: int | tuple[int, int] = 1

    def __post_init__(self) -> None:
        _set(
            self,
            p=checks.number("p", self.p, 0.0, 1.0),
            scale=checks.interval("scale", self.scale, or_none=False),
            ratio=checks.interval("ratio", self.ratio, *RATIOS, or_none=False),
            value=_fill(self.value),
            count=_count(self.count),
        )

    @property
    def counts(self) -> tuple[int, int]:
        """The least and the largest number of holes of a sample that is erased."""
        return (1, self.count) if isinstance(self.count, int) else self.count


@dataclass(frozen=True)
class Finish:
    """What a batch goes through beside mixing, in the same pass: each sample is flipped and erased by draws of its own;
    then the batch is mixed; then it is normalised, and rounded to `dtype`.

    It is a value: equal ones are equal, it can be hashed, pickled and shared by modules. Every check that needs no
    batch is made here; `check` makes the others when one comes.

    Args:
        normalize: (mean, std), a number for each channel, on the scale of images in [0, 1]: those of
            v2.ToDtype(torch.float32, scale=True) and v2.Normalize(mean, std). None: bytes become numbers in [0, 1], and
            floating-point images keep their values.
        dtype: of the new batch: float32, float16, bfloat16; float64 if the batch that comes is float64.
        memory_format: torch.contiguous_format or torch.channels_last. None: channels_last if the batch that comes is,
            or is "NHWC"; contiguous otherwise.
        hflip: the probability that a sample is mirrored along its width, in [0, 1].
        erase: which rectangles are overwritten. None: none are.
        input_format: how a batch that comes is to be read: "NCHW", (B, C, H, W), or "NHWC", (B, H, W, C), as decoders
            give bytes. The new batch is (B, C, H, W) always.

    A byte k becomes ((k/255) - mean) / std, and a number x of a floating-point image (x - mean) / std.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range; an std is not above 0; the dtype is not
            a floating-point one.
    """

    normalize: tuple[tuple[float, ...], tuple[float, ...]] | None
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format | None = None
    hflip: float = 0.0
    erase: Erase | None = None
    input_format: InputFormat = "NCHW"

    def __post_init__(self) -> None:
        _set(self, normalize=_statistics(self.normalize))
        if not isinstance(self.dtype, torch.dtype) or self.dtype not in FINISHED_DTYPES:
            raise (ValueError if isinstance(self.dtype, torch.dtype) else TypeError)(
                f"dtype must be one of {checks.names(FINISHED_DTYPES)}, because normalised images are no integers, but "
                f"got {self.dtype!r}."
            )
        if self.memory_format is not None and self.memory_format not in _FORMATS:
            raise (ValueError if isinstance(self.memory_format, torch.memory_format) else TypeError)(
                "memory_format must be torch.contiguous_format, torch.channels_last or None, but got "
                f"{self.memory_format!r}."
            )
        _set(self, hflip=checks.number("hflip", self.hflip, 0.0, 1.0))
        if self.erase is not None and not isinstance(self.erase, Erase):
            raise TypeError(
                f"erase must be an Erase or None, but got {self.erase!r} of type {type(self.erase).__name__}."
            )
        checks.choice("input_format", self.input_format, ("NCHW", "NHWC"), _INPUT_FORMATS_ELSEWHERE)
        if self.erase is not None and not isinstance(self.erase.value, str):
            fills = self.erase.value if isinstance(self.erase.value, tuple) else (self.erase.value,)
            for fill in fills:
                checks.number(f"erase.value for {checks.names([self.dtype])}", fill, *_range(self.dtype))
        if len({count for _, count in self._channels()}) > 1:
            counts = " and ".join(f"{count} of {what}" for what, count in self._channels())
            raise ValueError(f"normalize and erase.value must have as many channels, but got {counts}.")

    @property
    def axes(self) -> tuple[int, int]:
        """Which dims of a batch that comes are its height and its width."""
        return (1, 2) if self.input_format == "NHWC" else (2, 3)

    @property
    def is_random(self) -> bool:
        """Whether anything is drawn for a batch."""
        return self.hflip > 0 or (self.erase is not None and self.erase.p > 0)

    def check(self, x: Any, name: str = "x") -> tuple[int, int, int]:
        """The channels, the height and the width of a batch that is to be finished.

        Raises:
            TypeError, ValueError: the batch is no dense tensor of four dims, or of a dtype that images cannot have; its
                channels are not those of `normalize` and of `erase.value`; a derivative by it may be asked for, or
                torch.vmap maps it; float64 is wanted of another dtype.
        """
        checks.batch(name, x)
        if x.ndim != 4:
            shape = "(B, H, W, C)" if self.input_format == "NHWC" else "(B, C, H, W)"
            hint = " Mix videos and volumes without finish=." if x.ndim == 5 else ""
            raise ValueError(f"{name} must be {shape} to be finished, but got shape {tuple(x.shape)}.{hint}")
        if x.dtype in (torch.int16, torch.uint16):
            raise ValueError(
                f"{name} must be uint8 or floating point to be finished, but is {checks.names([x.dtype])}. Mix it "
                "without finish=, and normalise what comes out."
            )
        if tracked(x) and (x.requires_grad or not torch._is_functional_tensor(x)):
            raise ValueError(
                f"{name} must not require grad, have a tangent or be mapped by torch.vmap to be finished, because a "
                "finished batch has no derivative. Mix without finish=, or finish under torch.no_grad() and outside of "
                "torch.func."
            )
        if self.dtype == torch.float64 and x.dtype != torch.float64:
            raise ValueError(
                f"dtype float64 must come from a float64 batch, but {name} is {checks.names([x.dtype])}, which is "
                "finished in float32. Ask for float32, and convert what comes out."
            )
        _, *rest = x.shape
        height, width, channels = rest if self.input_format == "NHWC" else (*rest[1:], rest[0])
        other = rest[0] if self.input_format == "NHWC" else rest[-1]
        for what, wanted in self._channels():
            if wanted != channels:
                hint = ""
                if wanted == other:
                    hint = f' Is it input_format="{"NCHW" if self.input_format == "NHWC" else "NHWC"}"?'
                raise ValueError(
                    f"{name} must have a channel for each number of {what}, which are {wanted}, but got {channels} "
                    f"channels: shape {tuple(x.shape)} in input_format={self.input_format!r}.{hint}"
                )
        return channels, height, width

    def _channels(self) -> list[tuple[str, int]]:
        """For how many channels there are numbers, and where."""
        found = [] if self.normalize is None else [("normalize", len(self.normalize[0]))]
        if self.erase is not None and isinstance(self.erase.value, tuple):
            found.append(("erase.value", len(self.erase.value)))
        return found

    def arguments(self, x: Tensor, draws: Tensor | None = None) -> FinishArguments:
        """What operators take after a batch that has been checked."""
        nhwc = self.input_format == "NHWC"
        affine = self._kept_affine(x.shape[3 if nhwc else 1], x.dtype, x.device)
        last = self._out_format(x) is torch.channels_last
        return FinishArguments(affine, draws, self._filling, nhwc, self.dtype, last)

    @property
    def _filling(self) -> int:
        value = None if self.erase is None else self.erase.value
        return int(_FILLINGS.get(value, Filling.NUMBER) if isinstance(value, str) else Filling.NUMBER)

    def _kept_affine(self, channels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """`_affine`, made once for batches of a kind and then kept, because a copy to a GPU at every call would wait
        for it, and would be part of a CUDA graph. What belongs to a trace or a transform is not kept."""
        if torch.compiler.is_compiling():
            return _affine_of_graph(self, operator.index(channels), dtype, device)  # a number, which may be a symbol
        if torch._C._len_torch_dispatch_stack() or transformed():
            return self._affine(channels, dtype, device)
        kept: dict[Any, Tensor] = vars(self).setdefault(_KEPT, {})
        key = channels, dtype, device
        affine = kept.get(key)
        if affine is None:
            if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                raise RuntimeError(
                    "A CUDA graph can be captured of a finish once a batch of the same channels and dtype was finished "
                    "by it on that device, because its numbers are copied there by the first call. Call it once before."
                )
            with torch.inference_mode(False):
                affine = kept[key] = self._affine(channels, dtype, device)
        return affine

    def _affine(self, channels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """(3, channels) for batches of a dtype, each number rounded once, of float64."""
        mean, std = self.normalize or ((0.0,) * channels, (1.0,) * channels)
        most = 255.0 if dtype == torch.uint8 else 1.0
        value = 0.0 if self.erase is None or isinstance(self.erase.value, str) else self.erase.value
        fill = value if isinstance(value, tuple) else (value,) * channels
        rows = [[1.0 / (most * s) for s in std], [-m / s for m, s in zip(mean, std, strict=True)], list(fill)]
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        return torch.tensor(rows, dtype=compute, device="cpu").to(device)

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}  # What is kept is this process's.

    def _out_format(self, x: Tensor) -> torch.memory_format:
        """Of the new batch."""
        if self.memory_format is not None:
            return self.memory_format
        last = self.input_format == "NHWC" or x.is_contiguous(memory_format=torch.channels_last)
        last = last and not (self.input_format == "NCHW" and x.is_contiguous())  # of one channel it is both
        return torch.channels_last if last else torch.contiguous_format


def checked_finish(name: str, x: Any) -> Finish:
    """`x`, if it is a Finish."""
    if not isinstance(x, Finish):
        what = x.__name__ if isinstance(x, type) else f"one of type {type(x).__name__}"
        raise TypeError(
            f"{name} must be a Finish, as fusedmix.Finish(normalize=(mean, std)) makes one, but got {what}."
        )
    return x


class FinishArguments(NamedTuple):
    """What the operators that finish a batch take after it."""

    affine: Tensor  # (3, C) in the compute dtype of the batch: what is multiplied, what is added then, the fill
    draws: Tensor | None  # (B, 4 + 4·holes) int32: flips and holes (fusedmix/erasing.py)
    fill: int  # Filling
    nhwc: bool
    dtype: torch.dtype  # of the new batch
    channels_last: bool  # whether the new batch is


class Filling(IntEnum):
    """What holes are filled with."""

    NUMBER = 0
    EACH_HOLE = 1
    EACH_PIXEL = 2


_FILLINGS = {"random": Filling.EACH_HOLE, "pixel": Filling.EACH_PIXEL}


def _affine_of_graph(finish: Finish, channels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`_affine` as a constant of a graph, on the device: it is made while the graph is traced."""
    return finish._affine(channels, dtype, device)


# As torch.compiler.assume_constant_result, which would import Dynamo, and with it Triton.
_affine_of_graph._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _set(record: Any, **values: Any) -> None:
    """Sets fields of a frozen record to what its checks have made of them."""
    for name, value in values.items():
        object.__setattr__(record, name, value)


def _statistics(x: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """`x` as (mean, std), of as many channels each."""
    if x is None:
        return None
    if not isinstance(x, Sequence) or isinstance(x, str) or len(x) != 2:
        raise TypeError(f"normalize must be a pair (mean, std) or None, but got {x!r}.")
    mean, std = (_of_channels(f"normalize[{i}], the {name},", x[i]) for i, name in enumerate(("mean", "std")))
    if len(mean) != len(std):
        raise ValueError(
            f"normalize must have as many means as stds, one for each channel, but got {len(mean)} and {len(std)}."
        )
    for i, (m, s) in enumerate(zip(mean, std, strict=True)):
        checks.number(f"normalize[1][{i}], an std,", s, 0.0, open_low=True)
        if max(1.0, abs(m)) > s * _FLOAT32_MAX:
            raise ValueError(
                f"normalize must keep images within the range of float32, but got the mean {m!r} and the std {s!r}."
            )
    return mean, std


def _of_channels(name: str, x: Any) -> tuple[float, ...]:
    """`x` as finite numbers, one for each channel."""
    if not isinstance(x, Sequence) or isinstance(x, str):
        hint = " Call its .tolist()." if hasattr(x, "tolist") else ""
        raise TypeError(f"{name} must be a sequence of numbers, one for each channel, but got {x!r}.{hint}")
    if not x:
        raise ValueError(f"{name} must have a number for each channel, but is empty.")
    return tuple(checks.number(f"{name} number {i},", number) for i, number in enumerate(x))


def _fill(x: Any) -> Fill:
    """`x` as the value of a hole."""
    if isinstance(x, str):
        return checks.choice("value", x, ("random", "pixel"), _FILLS_ELSEWHERE)  # type: ignore[return-value]
    if isinstance(x, Sequence):
        return _of_channels("value", x)
    try:
        return checks.number("value", x)
    except TypeError:
        raise TypeError(
            f'value must be a number, one for each channel, "random" or "pixel", but got {x!r} of type '
            f"{type(x).__name__}."
        ) from None


def _count(x: Any) -> int | tuple[int, int]:
    """`x` as a largest number of holes, or as a least and a largest one."""
    if not isinstance(x, Sequence) or isinstance(x, str):
        return checks.integer("count", x, 1, MOST_HOLES)
    if len(x) != 2:
        raise TypeError(f"count must be an int or a pair (least, most), but got {x!r}.")
    least, most = (checks.integer(f"count[{i}]", number, 1, MOST_HOLES) for i, number in enumerate(x))
    if least > most:
        raise ValueError(f"count must have least <= most, but got {x!r}.")
    return least, most


def _range(dtype: torch.dtype) -> tuple[float, float]:
    info = torch.finfo(dtype)
    return info.min, info.max
