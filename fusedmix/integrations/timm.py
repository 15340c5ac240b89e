"""timm's Mixup and FastCollateMixup by one changed import: `from fusedmix.integrations.timm import Mixup`.

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
"""

from __future__ import annotations

import functools
import multiprocessing
import sys
from collections.abc import Sequence
from multiprocessing.context import get_spawning_popen
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import default_collate

from fusedmix import backends, checks, subclasses
from fusedmix.functional import mix_, mix_labels
from fusedmix.masks.family import packed
from fusedmix.methods import Families, Kind, Pairing, Per
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
