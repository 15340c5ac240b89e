"""timm's Mixup, FastCollateMixup and PrefetchLoader by one changed import: that of `fusedmix.integrations.timm`.

Signature, attributes and batches are those of timm.data (1.0.31): the same seed of NumPy's global generator gives the
same boxes, targets and images (up to the rounding of a blend), and leaves the generator in the same state. timm itself
is not needed.

```python
from fusedmix.integrations.timm import Mixup  # before: from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy

mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, mode="elem", num_classes=1000)
criterion = SoftTargetCrossEntropy()
for images, labels in loader:
    images, targets = mixup(images, labels)  # images in place; targets: float32 (B, 1000)
    loss = criterion(model(images), targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
```

What is different, each where timm gives a wrong result or none:

    an unknown mode                 is a ValueError (timm mixes per batch), as is Mixup(mode="half")
    (B, K) labels, no multi_label   are soft labels, smoothed by ε/K (timm makes (B·K, K) targets)
    uint8 images                    are rounded to nearest in every mode (timm's Mixup raises for mode="batch"; else it
                                    truncates, and casts λ to uint8, so that all targets are the partner's)
    float16 and bfloat16 images     the targets' λ is not rounded to the images' dtype
    an odd batch                    the middle sample, its own partner, keeps its image and label (timm asserts)
    mixup_enabled                   reaches DataLoader workers that are running already
    FastCollateMixup                never writes into the samples it is given
    targets                         are float32 always (timm: float64 for float64 images in modes "pair" and "elem")
    a weight of 0                   gives exactly the partner (timm: NaN where the sample has an infinity)

PrefetchLoader differs in the draws of holes, in the rounding of 16-bit types, and in what it mixes: see there.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import numbers
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.context import get_spawning_popen
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import default_collate

from fusedmix import backends, checks, erasing, mixing, subclasses
from fusedmix.draws import CPU
from fusedmix.finishing import MOST_HOLES, Erase, Finish
from fusedmix.masks.family import packed
from fusedmix.methods import Families, Kind, Pairing, Per
from fusedmix.mixing import mix, mix_, mix_labels
from fusedmix.module import MixTransform
from fusedmix.plan import MixPlan
from fusedmix.step import capturing

try:
    import numpy as np
except ImportError as error:
    raise ImportError(
        "fusedmix.integrations.timm draws from NumPy's global generator, as timm does: pip install numpy"
    ) from error

_PER = {"batch": Per.BATCH, "pair": Per.PAIR, "elem": Per.SAMPLE, "half": Per.SAMPLE}
# What timm computes from one λ of mode "pair" or "elem", a NumPy scalar: float64 before NumPy 2, float32 since.
_SCALAR = type(1 - np.float32(0))
_GPU = torch.device("cuda")


class _Draws(NamedTuple):
    """What was drawn, for each of n draws or B samples."""

    lam: np.ndarray  # λ, float64 for mode="batch" and else float32, as timm computes with it
    weight: np.ndarray  # the label weight, of the same dtype
    cut: np.ndarray  # bool, whether it is a box of the partner and not a blend
    box: np.ndarray  # (n, 4) int64: y0, x0, y1, x1

    def mixes(self) -> bool:
        """Whether any image changes."""
        return bool((self.cut | (self.lam != 1)).any())


class _Switch:
    """A bool in memory shared with every process that is forked from this one or started with the switch among its
    arguments. Any other copy (pickle, deepcopy) is a switch of its own."""

    def __init__(self, on: bool) -> None:
        self.byte = multiprocessing.RawValue("B", on)

    def __reduce__(self) -> tuple[Any, ...]:
        if get_spawning_popen() is None:
            return _Switch, (bool(self.byte.value),)
        return _attached, (self.byte,)


def _attached(byte: Any) -> _Switch:
    switch = object.__new__(_Switch)
    switch.byte = byte
    return switch


_ALPHA = functools.partial(checks.number, low=0.0)


def _share(name: str, x: Any) -> float:
    # Errors call the attribute mix_prob as the keyword is called.
    return checks.number(name.removeprefix("mix_"), x, 0.0, 1.0)


def _minmax(name: str, minmax: Any) -> Sequence[float] | None:
    if minmax is None:
        return None
    if not isinstance(minmax, (list, tuple)):
        raise TypeError(f"{name} must be a pair (low, high) or None, but got {minmax!r}.")
    if len(minmax) != 2:
        raise ValueError(f"{name} must be a pair (low, high), but got {len(minmax)} numbers: {minmax!r}.")
    low, high = (checks.number(f"{name}[{i}]", share, 0.0, 1.0) for i, share in enumerate(minmax))
    if low >= high:
        raise ValueError(f"{name} must have low < high, but got {minmax!r}.")
    return minmax


def _backend(_: str, backend: Any) -> str | None:
    backends.check_name(backend)
    return backend


class Mixup(checks.Checked):
    """timm.data.Mixup: Mixup (Zhang 2018) and CutMix (Yun 2019) of a batch, in place, with partners from its other end.

    One launch for the images and one for the targets in every mode. λ and boxes come from NumPy's global generator.

    Args:
        mixup_alpha: λ ~ Beta(α, α) of Mixup; 0: no Mixup.
        cutmix_alpha: λ ~ Beta(α, α) of CutMix; 0: no CutMix.
        cutmix_minmax: (low, high), shares of each side of the image between which the sides of the box are drawn,
            0 <= low < high <= 1; sets cutmix_alpha to 1.
        prob: probability in [0, 1] that a draw mixes.
        switch_prob: probability in [0, 1] of CutMix where both are active.
        mode: "batch": one draw for the batch; "pair": one for each pair of partners; "elem": one for each sample.
        correct_lam: whether the label weight is the area outside the box (always with cutmix_minmax) or λ.
        label_smoothing: ε in [0, 1], applied before mixing.
        num_classes: K.
        multi_label: the labels are (B, K) and each is smoothed towards ½ rather than 1/K.
        backend: an implementation by name; None chooses (`fusedmix info` shows which).

    Attributes:
        mixup_enabled: False turns mixing (not smoothing) off, also in the workers of a DataLoader that has been given
            this object, at the next batch that they make.
        mix_prob: `prob`.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range.
    """

    modes: ClassVar[tuple[str, ...]] = ("batch", "pair", "elem")
    _cuts_at_one: ClassVar[bool] = False  # whether mode="batch" draws a box also where λ is exactly 1

    _checks: ClassVar = {
        "mixup_alpha": _ALPHA,
        "cutmix_alpha": _ALPHA,
        "cutmix_minmax": _minmax,
        "mix_prob": _share,
        "switch_prob": _share,
        "mode": functools.partial(checks.choice, allowed=modes),
        "correct_lam": checks.boolean,
        "label_smoothing": _share,
        "num_classes": functools.partial(checks.integer, low=1),
        "multi_label": checks.boolean,
        "backend": _backend,
    }

    def __init__(
        self,
        mixup_alpha: float = 1.0,
        cutmix_alpha: float = 0.0,
        cutmix_minmax: Sequence[float] | None = None,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        mode: str = "batch",
        correct_lam: bool = True,
        label_smoothing: float = 0.1,
        num_classes: int = 1000,
        multi_label: bool = False,
        *,
        backend: str | None = None,
    ) -> None:
        self.mixup_alpha = mixup_alpha
        self.cutmix_alpha = cutmix_alpha
        self.cutmix_minmax = cutmix_minmax
        self.mix_prob = prob
        self.switch_prob = switch_prob
        self.mode = mode
        self.correct_lam = correct_lam
        self.label_smoothing = label_smoothing
        self.num_classes = num_classes
        self.multi_label = multi_label
        self.backend = backend
        self._switch = _Switch(True)
        backends.prepare(backend)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "cutmix_minmax" and value is not None:
            self.cutmix_alpha = 1.0

    @property
    def mixup_enabled(self) -> bool:
        """Whether batches are mixed."""
        return bool(self._switch.byte.value)

    @mixup_enabled.setter
    def mixup_enabled(self, on: bool) -> None:
        self._switch.byte.value = bool(on)

    def sample(self, batch_size: int, size: Sequence[int]) -> MixPlan:
        """Draws the plan of the next batch, for what a call does not cover (`fusedmix.mix`, `mix_cross_entropy`).

        Args:
            batch_size: B >= 0.
            size: the spatial sides in pixels, (H, W) if CutMix is active.

        Returns:
            A plan on the CPU, which serves batches on any device.

        Raises:
            TypeError, ValueError: an argument is of the wrong type or out of range; no method is active.
            RuntimeError: a CUDA graph is being captured, into which the draw would be frozen.
        """
        batch_size = checks.integer("batch_size", batch_size, 0)
        size = checks.sides("size", size)
        self._check(size)
        return self._plan(self._draw(batch_size, size), size)

    def __call__(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Mixes a batch.

        Args:
            x: (B, ..., H, W), overwritten; any (B, ...) if only Mixup is active. float32, float16, bfloat16, float64 or
                uint8 (rounded to nearest, ties to even).
            target: (B,) or (B, 1) integer classes in [0, num_classes), or (B, num_classes) soft or multi-hot labels.

        Returns:
            x, and (B, num_classes) float32 targets.

        Raises:
            TypeError, ValueError: x or target is of the wrong type, dtype or shape; a class is out of range; no method
                is active. (fusedmix.InplaceError among them: x cannot be written to.)
            RuntimeError: a CUDA graph is being captured, into which the draw would be frozen.
            BackendError: the backend asked for cannot run here.

        Nothing has been drawn or written then.
        """
        images = subclasses.plain(checks.batch("x", x))
        checks.writable("x", images)
        size = tuple(images.shape[1:])[-2:] or (1,)
        self._check(size)
        labels, smoothing = self._labels(target, images.shape[0])
        # Where no backend serves the images this raises: now, and not when something has been drawn.
        backends.operators(images.device.type, self.backend)

        drawn = self._draw(images.shape[0], size)
        plan = self._plan(drawn, size)
        targets = self._targets(labels, smoothing, plan, images.device)
        if images.numel() and drawn.mixes():
            if images.dtype == torch.float64:
                self._mix_float64_(images, plan)
            else:
                mix_(images, plan, backend=self.backend)
        return x, targets

    def _check(self, size: tuple[int, ...]) -> None:
        """Raises where a draw for images of that size would fail half-way, or be frozen into a graph."""
        if not self.mixup_enabled:
            return
        if capturing():
            raise RuntimeError(
                f"{type(self).__name__} cannot be captured in a CUDA graph: every replay would repeat the one draw. "
                'Mix outside the graph, or use fusedmix.RandomMix([...], sampling="device").'
            )
        if self.mixup_alpha <= 0 and self.cutmix_alpha <= 0 and (self.mode != "batch" or self.mix_prob > 0):
            raise ValueError(
                "One of mixup_alpha and cutmix_alpha must be > 0, or cutmix_minmax given, but got "
                f"mixup_alpha={self.mixup_alpha}, cutmix_alpha={self.cutmix_alpha}."
            )
        if self.cutmix_alpha <= 0:
            return
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"CutMix needs images (B, ..., H, W) of at least one pixel, but got sides {size}.")
        if self.cutmix_minmax is not None:
            low, high = self.cutmix_minmax
            for side in size:
                if int(side * low) >= int(side * high):
                    raise ValueError(
                        f"cutmix_minmax must leave a choice of box sides, but got {self.cutmix_minmax!r} for images of "
                        f"{size} pixels: from {int(side * low)} to below {int(side * high)}."
                    )

    def _draw(self, batch_size: int, size: tuple[int, ...]) -> _Draws:
        """The draws of a batch, by timm's calls of NumPy's global generator in its order, brought to its B samples."""
        if self.mode == "batch":
            drawn = self._draw_once(size)
            index = np.zeros(batch_size, dtype=np.intp)
        else:
            n = batch_size if self.mode == "elem" else batch_size // 2
            drawn = self._draw_each(n, size)
            index = np.arange(batch_size)
            if self.mode != "elem":  # A middle sample, or the second half, takes one more draw, of nothing.
                nothing = _Draws(
                    np.ones(1, np.float32), np.ones(1, np.float32), np.zeros(1, bool), np.zeros((1, 4), int)
                )
                drawn = _Draws(*(np.concatenate(columns) for columns in zip(drawn, nothing, strict=True)))
                index = np.minimum(index, index[::-1] if self.mode == "pair" else n)
        drawn = _Draws(*(column[index] for column in drawn))
        if batch_size % 2:
            drawn.weight[batch_size // 2] = 1
        return drawn

    def _draw_once(self, size: tuple[int, ...]) -> _Draws:
        lam, cut = 1.0, False
        if self.mixup_enabled and np.random.rand() < self.mix_prob:
            cut = self.cutmix_alpha > 0
            if cut and self.mixup_alpha > 0:
                cut = np.random.rand() < self.switch_prob
            alpha = self.cutmix_alpha if cut else self.mixup_alpha
            lam = np.random.beta(alpha, alpha)
            cut = cut and (lam != 1 or self._cuts_at_one)
        return self._with_boxes(np.array([lam]), np.array([cut]), size)

    def _draw_each(self, n: int, size: tuple[int, ...]) -> _Draws:
        lam, cut = np.ones(n, dtype=np.float32), np.zeros(n, dtype=bool)
        if self.mixup_enabled:
            if self.mixup_alpha > 0 and self.cutmix_alpha > 0:
                cut = np.random.rand(n) < self.switch_prob
                of_cutmix = np.random.beta(self.cutmix_alpha, self.cutmix_alpha, size=n)
                beta = np.where(cut, of_cutmix, np.random.beta(self.mixup_alpha, self.mixup_alpha, size=n))
            else:
                cut[:] = self.cutmix_alpha > 0
                alpha = max(self.cutmix_alpha, self.mixup_alpha)
                beta = np.random.beta(alpha, alpha, size=n)
            lam = np.where(np.random.rand(n) < self.mix_prob, beta.astype(np.float32), lam)
            cut = cut & (lam != 1)
        return self._with_boxes(lam, cut, size)

    def _with_boxes(self, lam: np.ndarray, cut: np.ndarray, size: tuple[int, ...]) -> _Draws:
        """The draws, with the boxes of those that cut."""
        weight, box = lam.copy(), np.zeros((len(lam), 4), dtype=np.int64)
        if cut.any():
            drawn = box[cut] = self._draw_boxes(lam[cut], *size)
            if self.correct_lam or self.cutmix_minmax is not None:
                area = (drawn[:, 2] - drawn[:, 0]) * (drawn[:, 3] - drawn[:, 1])
                weight[cut] = 1.0 - area / float(size[0] * size[1])
        return _Draws(lam, weight, cut, box)

    def _draw_boxes(self, lam: np.ndarray, height: int, width: int) -> np.ndarray:
        """(n, 4) boxes y0, x0, y1, x1 of n λ."""
        if (
            self.cutmix_minmax is not None
        ):  # The range of a position follows from a side, so they are drawn one after the other.
            low, high = self.cutmix_minmax
            boxes = []
            for _ in range(len(lam)):
                cut_h = np.random.randint(int(height * low), int(height * high))
                cut_w = np.random.randint(int(width * low), int(width * high))
                y, x = np.random.randint(0, height - cut_h + 1), np.random.randint(0, width - cut_w + 1)
                boxes.append((y, x, y + cut_h, x + cut_w))
            return np.array(boxes)
        # All y and x are drawn in turn by one call, which takes 20 µs for 256 boxes instead of 1.5 ms.
        centre = np.random.randint(0, np.tile((height, width), len(lam))).reshape(-1, 2)
        # The precision is that of timm's scalars. An array of both sides would widen the product.
        ratio = np.sqrt(1 - (lam if lam.dtype == np.float64 else lam.astype(_SCALAR)))
        cut = np.stack(((height * ratio).astype(np.int64), (width * ratio).astype(np.int64)), axis=1)
        return np.hstack((np.maximum(centre - cut // 2, 0), np.minimum(centre + (cut + 1) // 2, (height, width))))

    def _plan(self, drawn: _Draws, size: tuple[int, ...]) -> MixPlan:
        batch_size, cuts = len(drawn.lam), bool(drawn.cut.any())
        kind = np.full(batch_size, Kind.CONSTANT, dtype=np.int32)
        geometry = np.zeros((batch_size, 6), dtype=np.int32)
        value = np.zeros((batch_size, 2), dtype=np.float32)
        value[:, 0] = drawn.lam
        if cuts:
            kind[drawn.cut] = Kind.BOX
            geometry[:, 1:3], geometry[:, 4:6] = drawn.box[:, :2], drawn.box[:, 2:]
            geometry[:, 3] = drawn.cut  # A box is one pixel deep.
            value[drawn.cut, 0] = 1
        families = Families.CUTS if self.mixup_alpha <= 0 else Families.CUTS | Families.CONSTANTS
        families = families if cuts else Families.CONSTANTS
        return MixPlan(
            partner=_flipped(batch_size),
            lam=torch.from_numpy(drawn.lam.astype(np.float32)),
            weight=torch.from_numpy(drawn.weight.astype(np.float64)),
            masks=packed(torch.from_numpy(kind), torch.from_numpy(geometry), torch.from_numpy(value)),
            size=size,
            families=families,
            pairing=Pairing.FLIP,
            per=_PER[self.mode],
        )

    def _mix_float64_(self, x: Tensor, plan: MixPlan) -> None:
        """mix_ of float64 images. timm's λ of a batch is float64, which a plan's float32 would cut short; of a sample
        λ and 1-λ both are float32, and do not sum to 1."""
        rows = ((plan.kind == Kind.CONSTANT) & (plan.weight != 1)).nonzero().flatten()
        own = plan.weight[rows].view(-1, *[1] * (x.ndim - 1))
        lent = 1.0 - own
        if plan.per != Per.BATCH and _SCALAR is np.float32:
            lent = lent.float().double()
        partner, rows, own, lent = (t.to(x.device) for t in (plan.partner[rows], rows, own, lent))
        blended = x[rows] * own + x[partner] * lent
        if not plan.constant:
            mix_(x, plan, backend=self.backend)
        x[rows] = blended

    def _labels(self, target: Any, batch_size: int) -> tuple[Tensor, float]:
        """The labels as `mix_labels` takes them, and the smoothing left for it to do."""
        labels = subclasses.plain(checks.tensor("target", target))
        classes, smoothing = self.num_classes, self.label_smoothing
        if self.multi_label and (labels.ndim != 2 or labels.shape[1] != classes):
            raise ValueError(
                f"target must be dense, (batch, num_classes) = (batch, {classes}), with multi_label=True, "
                f"but got shape {tuple(labels.shape)}."
            )
        column = labels.ndim == 2 and labels.shape[1] == 1 and classes > 1 and not labels.is_floating_point()
        if column and not self.multi_label:
            labels = labels.flatten()
        if labels.ndim == 1 and labels.dtype == torch.bool:
            labels = labels.long()
        checks.dense_labels(labels, classes)
        if labels.shape[0] != batch_size:
            raise ValueError(f"target must have one label for each of {batch_size} images, but got {labels.shape[0]}.")
        if labels.ndim == 1:
            checks.class_range(labels, classes, "target")
        else:
            labels = labels.float()
        if self.multi_label and smoothing:
            labels, smoothing = labels * (1.0 - smoothing) + 0.5 * smoothing, 0.0
        return labels, smoothing

    def _targets(self, labels: Tensor, smoothing: float, plan: MixPlan, device: torch.device) -> Tensor:
        # A backend asked for the images may not exist where the labels are.
        backend = self.backend if labels.device.type == device.type else None
        return mix_labels(labels, plan, num_classes=self.num_classes, label_smoothing=smoothing, backend=backend)


class FastCollateMixup(Mixup):
    """timm.data.FastCollateMixup: a `collate_fn` that mixes uint8 images while it makes a batch of them.

    Equal to timm to the byte. Arguments as `Mixup`'s, and one mode more: "half" mixes the first half of the samples
    with the second and returns that half only.
    """

    modes: ClassVar[tuple[str, ...]] = ("batch", "pair", "elem", "half")
    _checks: ClassVar = {**Mixup._checks, "mode": functools.partial(checks.choice, allowed=modes)}
    _cuts_at_one: ClassVar[bool] = True

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        # timm's loaders pass `loader.mixup_enabled = False` on only to an instance of timm's class: `isinstance` asks
        # here. A program that has not imported timm has no such loader.
        timm = sys.modules.get("timm.data.mixup")
        return type(self) if timm is None else timm.FastCollateMixup

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _restored, (type(self), self.__dict__)

    def __call__(self, batch: Sequence[Any], _: Any = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Mixes samples into a batch.

        Args:
            batch: B samples (image, label): images uint8 (..., H, W) of one shape, as NumPy arrays or tensors on the
                CPU, in any memory layout; labels as torch's default_collate and then `Mixup` takes them.

        Returns:
            (B, ..., H, W) uint8, and (B, num_classes) float32; with mode="half" their first (B+1)//2 rows.

        Raises:
            TypeError, ValueError: a sample is of the wrong type, dtype or shape, or there is none; a class is out of
                range; no method is active. Nothing has been drawn then.
        """
        images = _arrays(batch)
        batch_size, size = len(images), images[0].shape[-2:] or (1,)
        self._check(size)
        labels, smoothing = self._labels(default_collate([sample[1] for sample in batch]), batch_size)

        drawn = self._draw(batch_size, size)
        # timm blends in float32, and computes 1-λ in the precision of λ.
        own, lent = drawn.lam.astype(np.float32), (1 - drawn.lam).astype(np.float32)
        kept = (batch_size + 1) // 2 if self.mode == "half" else batch_size
        output = torch.empty((kept, *images[0].shape), dtype=torch.uint8, device="cpu")
        blend = _Blend(images[0])
        for i, out in enumerate(output.numpy()):
            a, b = images[i], images[batch_size - 1 - i]
            if drawn.cut[i]:
                y0, x0, y1, x1 = drawn.box[i]
                out[...] = a
                out[..., y0:y1, x0:x1] = b[..., y0:y1, x0:x1]
            elif drawn.lam[i] != 1:
                blend(out, a, b, own[i], lent[i])
            else:
                out[...] = a
        targets = self._targets(labels, smoothing, self._plan(drawn, size), output.device)
        return output, targets[:kept]

    def _stack(self, batch: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """The samples as a batch with its labels, which a `PrefetchLoader` mixes."""
        images = _arrays(batch)
        output = torch.empty((len(images), *images[0].shape), dtype=torch.uint8, device="cpu")
        np.stack(images, out=output.numpy())
        return output, default_collate([sample[1] for sample in batch])


@functools.lru_cache(maxsize=16)
def _flipped(batch_size: int) -> Tensor:
    return torch.from_numpy(np.arange(batch_size - 1, -1, -1))


class _Blend:
    """Blends uint8 images: rint of the sum of two float32 products, each rounded, so that every byte is timm's."""

    def __init__(self, like: np.ndarray) -> None:
        # The products have the layout of the images (timm's own are transposed HWC): only their sum is put in order.
        self._own, self._lent = np.empty_like(like, dtype=np.float32), np.empty_like(like, dtype=np.float32)

    def __call__(self, out: np.ndarray, a: np.ndarray, b: np.ndarray, own: np.float32, lent: np.float32) -> None:
        np.multiply(a, own, out=self._own, dtype=np.float32)
        np.multiply(b, lent, out=self._lent, dtype=np.float32)
        np.add(self._own, self._lent, out=self._own)
        np.rint(self._own, out=self._own)
        out[...] = self._own


def _restored(type_: type, state: dict[str, Any]) -> Any:
    made: Any = object.__new__(type_)
    made.__dict__.update(state)
    return made


def _arrays(batch: Any) -> list[np.ndarray]:
    """The images of the samples, all uint8 and of one shape."""
    if not isinstance(batch, Sequence):
        raise TypeError(f"batch must be a sequence of samples (image, label), but got {type(batch).__name__}.")
    if not batch:
        raise ValueError("batch must hold at least one sample, but got none.")
    images: list[np.ndarray] = []
    for i, sample in enumerate(batch):
        if not isinstance(sample, Sequence) or len(sample) < 2:
            raise TypeError(f"batch[{i}] must be a sample (image, label), but got {type(sample).__name__}.")
        image = sample[0]
        if not isinstance(image, (np.ndarray, Tensor)):
            raise TypeError(f"The image of batch[{i}] must be an array or a tensor, but got {type(image).__name__}.")
        if image.dtype not in (np.uint8, torch.uint8):
            raise ValueError(f"The image of batch[{i}] must be uint8, but got {image.dtype}.")
        if isinstance(image, Tensor):
            if image.device.type != "cpu":
                raise ValueError(f"The image of batch[{i}] must be on the CPU, but got one on {image.device}.")
            image = subclasses.plain(image).numpy()
        if images and image.shape != images[0].shape:
            raise ValueError(
                f"The images must have one shape, but got {images[0].shape} and, at batch[{i}], {image.shape}."
            )
        images.append(image)
    return images


def _mixing(name: str, x: Any) -> Mixup | MixTransform | None:
    """`x`, if a `PrefetchLoader` can mix by it."""
    if isinstance(x, FastCollateMixup):
        raise ValueError(
            f"{name} must not be a FastCollateMixup, which mixes samples in a collate function. Make a Mixup of the "
            "same arguments, or leave it to the DataLoader as its collate_fn: this loader takes the mixing from there."
        )
    if isinstance(x, MixTransform):
        for keyword, usual in (("finish", None), ("axes", None), ("inplace", False)):
            if keyword not in x._keywords:
                raise TypeError(f"{name} must mix images, but got {type(x).__name__}.")
            if getattr(x, keyword) != usual:
                raise ValueError(
                    f"{name} must have {keyword}={usual}, because the loader finishes bytes as its own arguments say, "
                    f"but has {getattr(x, keyword)!r}."
                )
    elif x is not None and not isinstance(x, Mixup):
        raise TypeError(
            f"{name} must be None, a Mixup of fusedmix.integrations.timm or a mixing module such as fusedmix.CutMix(), "
            f"but got {type(x).__module__}.{type(x).__name__}."
        )
    return x


def _for_channels(name: str, given: Any, channels: int, **allowed: Any) -> tuple[float, ...]:
    """A number for each channel, by timm's rule: if there are not as many, each is their mean."""
    if isinstance(given, numbers.Real):
        return (checks.number(name, given, **allowed),) * channels
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise TypeError(f"{name} must be a number or a sequence of numbers, one for each channel, but got {given!r}.")
    found = tuple(checks.number(f"{name}[{i}]", number, **allowed) for i, number in enumerate(given))
    if len(found) == channels:
        return found
    average = sum(found) / len(found)
    warnings.warn(
        f"{name} has {len(found)} numbers for {channels} channels: each gets their mean, {average:g}, as in timm.",
        stacklevel=3,
    )
    return (average,) * channels


def _erase(re_prob: float, re_mode: str, re_count: int) -> Erase | None:
    """timm's RandomErasing as it is made by its loader."""
    p = checks.number("re_prob", re_prob, 0.0, 1.0)
    modes: dict[str, Any] = {"const": 0.0, "rand": "random", "pixel": "pixel"}
    elsewhere = {"random": "rand", "constant": "const", "zero": "const"}
    value = modes[checks.choice("re_mode", re_mode, tuple(modes), elsewhere)]
    count = checks.integer("re_count", re_count, 1, MOST_HOLES)
    return Erase(p, value=value, count=count) if p > 0 else None


class PrefetchLoader(checks.Checked):
    """timm.data.loader.PrefetchLoader: batches of bytes come to a device, normalised and erased, one batch ahead.

    What timm does in five passes or more is one here, and `mixup_fn` mixes in the same pass. On a GPU a batch is copied
    and finished on a stream of the loader's own, while the training works on the batch before it; it must be used on
    the stream that is the current one when the loader is asked for the next. Without a GPU the loader works as well.

    What is different from timm: holes are drawn by torch's default generator, and not by Python's; they are cut before
    samples are mixed, so that a partner brings its own along (timm's FastCollateMixup has mixed before); float16 and
    bfloat16 images are computed in float32 and rounded once; images that are not uint8 are refused.

    Args:
        loader: gives batches (images, labels), uint8 (B, channels, H, W) and (B,) or (B, K), as a DataLoader with
            timm's fast_collate does. If its collate_fn is a `FastCollateMixup` of this module, and its workers do not
            run yet, they only collate from then on, and this loader mixes (but mode="half", which stays theirs).
        mean: of each channel, on the scale of images in [0, 1]; one for all; or of another number of channels, whose
            mean is then taken for all.
        std: likewise, above 0.
        channels: C.
        device: where batches go.
        img_dtype: of the images: float32, float16 or bfloat16; None: float32.
        fp16: float16, whatever img_dtype says.
        re_prob: the probability that a sample is erased (`fusedmix.Erase`, which has timm's law).
        re_mode: what holes are filled with, in units of the normalised image: "const": 0; "rand": a normal number for
            each hole and channel; "pixel": one for each pixel and channel.
        re_count: how many holes a sample gets at most.
        re_num_splits: above 1: the first B // re_num_splits samples are not erased.
        mixup_fn: what mixes: a `Mixup` of this module, or any mixing module, with finish=None. Labels become what it
            makes of them. None: nothing mixes, unless loader has a `FastCollateMixup`.
        channels_last: whether images come in the channels_last format. False: in the format in which loader gives them.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range; device is a GPU and there is none.
    """

    _fixed: ClassVar = ("loader", "mean", "std", "device", "img_dtype", "mixup_fn")

    def __init__(
        self,
        loader: Iterable[Any],
        mean: float | Sequence[float] = (0.485, 0.456, 0.406),
        std: float | Sequence[float] = (0.229, 0.224, 0.225),
        channels: int = 3,
        device: torch.device = _GPU,
        img_dtype: torch.dtype | None = None,
        fp16: bool = False,
        re_prob: float = 0.0,
        re_mode: str = "const",
        re_count: int = 1,
        re_num_splits: int = 0,
        *,
        mixup_fn: Mixup | MixTransform | None = None,
        channels_last: bool = False,
    ) -> None:
        if not isinstance(loader, Iterable):
            raise TypeError(f"loader must give batches (images, labels), but got {type(loader).__name__}.")
        self.device = checks.device("device", device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(
                f"device must be one that is there, but got {str(device)!r} where torch finds no GPU. Pass "
                'device=torch.device("cpu").'
            )
        channels = checks.integer("channels", channels, 1)
        half = checks.boolean("fp16", fp16)
        self.img_dtype = torch.float16 if half else torch.float32 if img_dtype is None else img_dtype
        if self.img_dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ValueError(f"img_dtype must be float32, float16, bfloat16 or None, but got {img_dtype!r}.")
        normalize = _for_channels("mean", mean, channels), _for_channels("std", std, channels, low=0.0, open_low=True)
        self.mean, self.std = (  # timm's attributes: tensors on the scale of bytes
            torch.tensor([255 * number for number in of], dtype=self.img_dtype, device=self.device).view(1, -1, 1, 1)
            for of in normalize
        )
        self._unerased = checks.integer("re_num_splits", re_num_splits, 0)
        self._finish = Finish(
            normalize,
            self.img_dtype,
            torch.channels_last if checks.boolean("channels_last", channels_last) else None,
            erase=_erase(re_prob, re_mode, re_count),
        )
        self.loader = loader
        self.mixup_fn = self._what_mixes(_mixing("mixup_fn", mixup_fn))
        self._stream: torch.cuda.Stream | None = None

    def _what_mixes(self, given: Mixup | MixTransform | None) -> Mixup | MixTransform | None:
        """What is given, or the `FastCollateMixup` of a DataLoader, whose workers only collate from then on."""
        collate = getattr(self.loader, "collate_fn", None)
        before = getattr(collate, "__self__", None)  # of a loader that has been given to a PrefetchLoader already
        running = any(getattr(self.loader, name, None) is not None for name in ("_iterator", "iterator"))
        if given is not None:
            if hasattr(collate, "mixup_enabled"):
                raise ValueError(
                    "mixup_fn must be None for a loader whose collate_fn mixes, because samples would be mixed twice. "
                    "Give the loader another collate_fn, such as timm.data.loader.fast_collate."
                )
        elif isinstance(before, FastCollateMixup):
            return before
        elif isinstance(collate, FastCollateMixup) and collate.mode != "half" and not running:
            self.loader.collate_fn = collate._stack  # type: ignore[attr-defined]
            return collate
        return given

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
        ready = None
        for images, labels in self.loader:
            with self._ahead():
                following = self._load(images, labels)
            if ready is not None:
                yield ready
            if self._stream is not None:
                torch.cuda.current_stream(self.device).wait_stream(self._stream)
            ready = following
        if ready is not None:
            yield ready

    @contextlib.contextmanager
    def _ahead(self) -> Iterator[None]:
        """The loader's own stream, if there are streams, is the current one."""
        if self.device.type != "cuda":
            yield
            return
        if self._stream is None:  # One for all epochs, because freed memory is kept for the stream it was taken on.
            self._stream = torch.cuda.Stream(self.device)
        # What the training has let go is written to again from here on, but may still be read by what it has queued.
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            yield

    def _load(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Any]:
        """A batch on the device, finished and mixed."""
        if not isinstance(images, Tensor) or images.dtype != torch.uint8:
            came = str(images.dtype) if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(f"loader must give images that are uint8 tensors, but gave {came}.")
        x, y = (subclasses.plain(t).to(self.device, non_blocking=True) for t in (images, labels))
        _, height, width = self._finish.check(x, "the images of loader")
        mixes = self.mixup_fn
        if mixes is None or (isinstance(mixes, MixTransform) and mixes._off()):
            draws = self._draw_holes(len(x), height, width)
            draws = None if draws is None else draws.to(self.device, non_blocking=True)
            return mixing._finishing(x, self._finish, None).finish(x, *self._finish.arguments(x, draws)), y
        if isinstance(mixes, MixTransform):
            plan = mixes.sample(len(x), (height, width), labels=y, device=self.device)
            targets = mixes._mix_targets(y, plan, self.device)
        else:
            classes, smoothing = mixes._labels(y, len(x))
            plan = mixes.sample(len(x), (height, width))
            targets = mixes._targets(classes, smoothing, plan, self.device)
        plan = replace(plan, draws=self._draw_holes(len(x), height, width)).to(plan.device, non_blocking=True)
        return mix(x, plan, finish=self._finish, backend=mixes.backend), targets

    def _draw_holes(self, batch_size: int, height: int, width: int) -> Tensor | None:
        """Which holes the samples get, drawn on the host; None: none of them gets any."""
        if not self._finish.is_random:
            return None
        of = erasing.chances(self._finish)
        chances, seed = torch.tensor(of, dtype=torch.float64, device=CPU), torch.ops.fusedmix.draw_seed(0, device=CPU)
        draw = backends.operators("cpu").draw_finish
        draws = draw(chances, int(of.most), seed, batch_size, height, width, CPU)
        if self._unerased > 1:
            draws[: batch_size // self._unerased] = 0
        return draws

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    @property
    def sampler(self) -> Any:
        return self.loader.sampler  # type: ignore[attr-defined]

    @property
    def batch_sampler(self) -> Any:
        return self.loader.batch_sampler  # type: ignore[attr-defined]

    @property
    def dataset(self) -> Any:
        return self.loader.dataset  # type: ignore[attr-defined]

    @property
    def mixup_enabled(self) -> bool:
        """Whether batches are mixed, here or by the collate function of the loader. May be set between batches; where
        nothing can mix, setting it does nothing."""
        return bool(getattr(*self._switch, False))

    @mixup_enabled.setter
    def mixup_enabled(self, on: bool) -> None:
        of, name = self._switch
        if hasattr(of, name):
            setattr(of, name, bool(on))

    @property
    def _switch(self) -> tuple[Any, str]:
        if isinstance(self.mixup_fn, MixTransform):
            return self.mixup_fn, "enabled"
        return self.mixup_fn or getattr(self.loader, "collate_fn", None), "mixup_enabled"
