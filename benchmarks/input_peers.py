"""Who makes the batch of a model from bytes in input_step: fusedmix, torchvision, timm and torch.compile.

Each has to show first that it does what the others do. torchvision's and timm's batches are compared with the reference
for the same random numbers. Their flips and holes are drawn in another order than ours, so these are compared apart:
with every sample flipped and none erased; and with every sample erased, where all that differs has to be a rectangle of
zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fusedmix as fm
from benchmarks.input_rows import LOADER, Case
from fusedmix.bench import plain
from fusedmix.bench.contenders import Contender, missing, seeded, timm_options
from fusedmix.erasing import ATTEMPTS, HEAD, Word
from fusedmix.integrations import timm as fused_timm

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = 1000
HFLIP, ERASE = 0.5, fm.Erase(p=0.25)
_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def contenders(case: Case, device: torch.device, backends: Sequence[str], traced: bool) -> Iterator[Contender]:
    """Everyone who can do what a case says, ours first.

    Args:
        traced: torch.compile traces, and compiles nothing: as much as a quick run needs.
    """
    for backend in backends:
        yield _ours(case, device, backend)
    for peer, builder in (("torchvision", _torchvision), ("timm", _timm)):
        if peer not in missing():
            yield from builder(case, device)
    yield _compiled(case, device, "eager" if traced else "inductor")


# ---- what they share -------------------------------------------------------------------------------------------------


def dtype_of(case: Case) -> torch.dtype:
    """Of the new batch."""
    found: torch.dtype = getattr(torch, case.dtype)
    return found


def finish_of(case: Case, certain: bool = False) -> fm.Finish:
    """What the batch goes through; `certain`: without flips and holes."""
    chance: dict[str, Any] = {"hflip": HFLIP, "erase": ERASE} if case.erased and not certain else {}
    formats = {"memory_format": _FORMATS[case.layout], "input_format": case.input_format}
    return fm.Finish((MEAN, STD), dtype_of(case), **formats, **chance)  # type: ignore[arg-type]


def _module(case: Case, finish: fm.Finish, backend: str, **options: Any) -> Step:
    """Our step."""
    if not case.method:
        return lambda x, y: (fm.finish(x, finish, backend=backend), y)
    options |= {"per": case.per, "pairing": case.pairing, "num_classes": CLASSES, "backend": backend}
    made: Step = getattr(fm, case.method)(finish=finish, **options)
    return made


def _planes(x: Tensor, case: Case) -> Tensor:
    """The batch as (B, C, H, W), as it lies in memory."""
    return x.permute(0, 3, 1, 2) if case.input_format == "NHWC" else x


def _flipped(x: Tensor, chance: float, generator: torch.Generator) -> Tensor:
    """Each sample mirrored by chance, all in one operation: transforms of single images take far longer."""
    flip = torch.rand(len(x), generator=generator) < chance
    return torch.where(flip.to(x.device, non_blocking=True).view(-1, 1, 1, 1), x.flip(-1), x)


def _close(
    found: tuple[Tensor, Tensor],
    expected: tuple[Tensor, Tensor],
    case: Case,
    arithmetic: torch.dtype = torch.float32,
    of_targets: torch.dtype = torch.float32,
) -> None:
    """Raises unless two batches are the same but for rounding: images by the bound of docs/one-pass.md, which is 6·eps
    of what was computed in over std, and by the rounding of their own dtype; targets by a few roundings."""
    images, wanted = found[0], expected[0]
    if (images.dtype, images.shape) != (wanted.dtype, wanted.shape) or images.stride() != wanted.stride():
        raise AssertionError(f"images are {images.dtype} of {images.shape}, strides {images.stride()}")
    std = torch.tensor(STD, device=images.device, dtype=torch.float64).view(-1, 1, 1)
    limit = 6 * torch.finfo(arithmetic).eps / std
    if wanted.dtype != torch.float32:
        limit = limit + torch.finfo(wanted.dtype).eps * wanted.double().abs()
    off = (images.double() - wanted.double()).abs()
    if not bool((off <= limit).all()):
        raise AssertionError(f"images differ by up to {float(off.max()):.3g}")
    atol = 4 * torch.finfo(of_targets).eps
    torch.testing.assert_close(found[1].float(), expected[1].float(), rtol=0.0, atol=atol)


def _erases(erased: Tensor, whole: Tensor) -> None:
    """Raises unless each sample of a batch is a finished one, but for a rectangle of zeros."""
    hole = (erased != whole).any(1)
    rows, columns = hole.any(2), hole.any(1)
    if not bool((hole == rows[:, :, None] & columns[:, None, :]).all()) or not bool(hole.any()):
        raise AssertionError("what is erased is no rectangle")
    for inside in (rows, columns):
        if bool((inside.int().diff(dim=1).abs().sum(1) > 2).any()):
            raise AssertionError("what is erased is no rectangle")
    if bool((erased * hole[:, None]).any()):
        raise AssertionError("what is erased is not zero")


# ---- contenders ------------------------------------------------------------------------------------------------------


def _ours(case: Case, device: torch.device, backend: str) -> Contender:
    options = {"sampling": "device"} if device.type == "cuda" else {}
    module = _module(case, finish_of(case), backend, **options)

    def check(x: Tensor, y: Tensor) -> None:
        expected = seeded(_module(case, finish_of(case), "reference", **options), x, y)
        _close(seeded(module, x, y), expected, case)

    return Contender("fusedmix", module, check, backend)


Chain = Callable[[float, float, str], Step]  # of the chances of a flip and of a hole, and of the method


def _check_of(case: Case, chain: Chain, mix: Callable[[Tensor, Tensor], Any], **how: Any) -> Callable[..., None]:
    """The check of a peer's chain.

    Args:
        mix: of bytes and labels, the batch that the chain should make of them by the same random numbers.
        how: what `_close` takes.
    """

    def check(x: Tensor, y: Tensor) -> None:
        mirrored = x.flip(finish_of(case).axes[1]) if case.erased else x
        found = seeded(chain(float(case.erased), 0.0, case.method), x, y)
        _close(found, seeded(mix, mirrored, y), case, **how)
        if case.erased:
            whole, erased = (seeded(chain(0.0, chance, ""), x, y)[0] for chance in (0.0, 1.0))
            _erases(erased, whole)

    return check


def _of_case(case: Case, chain: Chain) -> Step:
    return chain(HFLIP if case.erased else 0.0, ERASE.p if case.erased else 0.0, case.method)


def _torchvision(case: Case, device: torch.device) -> Iterator[Contender]:
    """ToDtype, Normalize, RandomErasing of one sample after the other, MixUp or CutMix; then the dtype, the layout."""
    from torchvision.transforms import v2

    if (case.per, case.pairing) != ("batch", "roll"):
        return

    def chain(hflip: float, erase: float, method: str) -> Step:
        normalize = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
        eraser = v2.RandomErasing(erase, ERASE.scale, ERASE.ratio, inplace=True)
        mixer = getattr(v2, method)(num_classes=CLASSES) if method else None
        generator = torch.Generator().manual_seed(0)

        def step(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            x = _planes(x, case)
            x = normalize(_flipped(x, hflip, generator) if hflip else x)
            if erase:
                for sample in x:
                    eraser(sample)
            x, y = (x, y) if mixer is None else mixer(x, y)
            return x.to(dtype_of(case)).contiguous(memory_format=_FORMATS[case.layout]), y

        return step

    twin = _module(case, finish_of(case, certain=True), "reference")
    yield Contender("torchvision", _of_case(case, chain), _check_of(case, chain, twin))


def _timm(case: Case, device: torch.device) -> Iterator[Contender]:
    """PrefetchLoader, which normalises and erases, then Mixup, per sample in its mode "elem"; then the layout. Its
    partners are those of `flip`. And our loader of the same name, which does all of it by the same numbers."""
    from timm.data.loader import PrefetchLoader
    from timm.data.mixup import Mixup

    if case.pairing != "roll":
        return
    options = timm_options(case.method, case.per, CLASSES)

    def chain(hflip: float, erase: float, method: str, ours: bool = False) -> Step:
        source: list[tuple[Tensor, Tensor]] = []
        how: dict[str, Any] = {"device": device, "img_dtype": dtype_of(case), "re_prob": erase}
        mixer = None if not method else fused_timm.Mixup(**options) if ours else Mixup(**options)
        if ours:
            more = {"mixup_fn": mixer, "channels_last": case.layout == "channels_last"}
            loader, mixer = fused_timm.PrefetchLoader(source, MEAN, STD, **how, **more), None
        else:
            loader = PrefetchLoader(source, MEAN, STD, **how)
        generator = torch.Generator().manual_seed(0)

        def step(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            x = _planes(x, case)
            source[:] = [(_flipped(x, hflip, generator) if hflip else x, y)]
            [(x, y)] = loader
            x, y = (x, y) if mixer is None else mixer(x, y)
            return x.contiguous(memory_format=_FORMATS[case.layout]), y

        return step

    finish = replace(finish_of(case, certain=True), dtype=torch.float32)
    twin = fused_timm.Mixup(**options, backend="reference") if case.method else None

    def mix(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x = fm.finish(x, finish, backend="reference")
        x, y = (x, y) if twin is None else twin(x, y)
        return x.to(dtype_of(case)), y

    of_targets = torch.float32 if case.per == "batch" else dtype_of(case)  # timm's λ takes the dtype of the images
    how = {"arithmetic": dtype_of(case), "of_targets": of_targets}
    yield Contender("timm", _of_case(case, chain), _check_of(case, chain, mix, **how))
    our_chain = partial(chain, ours=True)
    yield Contender(LOADER, _of_case(case, our_chain), _check_of(case, our_chain, mix))


def _compiled(case: Case, device: torch.device, backend: str) -> Contender:
    """One compiled function of bytes, labels and all that is drawn, as tensors: of the batch and the targets.

    It does what our kernels do: bytes are blended before they are normalised, by one factor and one summand a channel,
    where no holes are in the way. On a GPU it takes what was drawn before; on a CPU NumPy draws anew for every step.
    """
    dtype, layout = dtype_of(case), _FORMATS[case.layout]
    std = torch.tensor(STD, dtype=torch.float64).view(-1, 1, 1)
    scale = (1 / (255 * std)).float().to(device)
    shift = (-torch.tensor(MEAN, dtype=torch.float64).view(-1, 1, 1) / std).float().to(device)
    mixing = plain.mixing(case.method, CLASSES, inplace=False) if case.method else None

    def made(x: Tensor, y: Tensor, numbers: plain.Numbers, draws: Tensor) -> tuple[Tensor, Tensor]:
        x = _planes(x, case).float()
        if case.erased:
            x = torch.where(draws[:, Word.FLIP].view(-1, 1, 1, 1) != 0, x.flip(-1), x) * scale + shift
            top, left, height, width = draws[:, HEAD:].unbind(1)
            hole = torch.stack((top, left, top + height, left + width), 1)
            x = torch.where(plain.inside(x, hole), 0.0, x)
        x, y = (x, y) if mixing is None else mixing(x, y, numbers)
        x = x if case.erased else x * scale + shift
        return x.to(dtype).contiguous(memory_format=layout), y

    function = torch.compile(made, fullgraph=True, dynamic=False, backend=backend)
    generator = np.random.default_rng(0)

    def drawn(x: Tensor) -> tuple[plain.Numbers, Tensor]:
        batch, _, height, width = _planes(x, case).shape
        numbers = plain.draw(case.method or "MixUp", batch if case.per == "sample" else 1, height, width, generator)
        if case.pairing == "random":
            numbers = numbers._replace(partner=torch.from_numpy(generator.permutation(batch)))
        draws = _flips_and_holes(batch, height, width, generator) if case.erased else torch.zeros(0)
        return numbers.to(device), draws.to(device, non_blocking=True)

    kept: list[tuple[plain.Numbers, Tensor]] = []

    def step(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if device.type != "cuda":
            return function(x, y, *drawn(x))
        if not kept:
            kept.append(drawn(x))
        return function(x, y, *kept[0])

    def check(x: Tensor, y: Tensor) -> None:
        numbers, draws = drawn(x)
        finish = finish_of(case)
        expected = fm.finish(x, finish, backend="reference"), y
        if case.method:
            size, here = tuple(_planes(x, case).shape[2:]), numbers.to(torch.device("cpu"))
            plan = plain.plan_of(case.method, here, len(x), size, here.partner)
            plan = replace(plan, draws=draws) if case.erased else plan
            labels = fm.mix_labels(y, plan, num_classes=CLASSES, backend="reference")
            expected = fm.mix(x, plan, finish=finish, backend="reference"), labels
        _close(function(x, y, numbers, draws), expected, case)

    return Contender("torch.compile", step, check)


def _flips_and_holes(batch: int, height: int, width: int, generator: np.random.Generator) -> Tensor:
    """(B, 8) int32, drawn by NumPy in the law of fusedmix/erasing.py, as a plan has them."""
    tries = (batch, ATTEMPTS)
    area = generator.uniform(*ERASE.scale, tries) * height * width
    ratio = np.exp(generator.uniform(*np.log(ERASE.ratio), tries))
    sides = np.rint(np.sqrt(np.stack((area * ratio, area / ratio), 2))).astype(np.int64)
    fits = (sides < (height, width)).all(2)
    side = sides[np.arange(batch), fits.argmax(1)]
    there = fits.any(1) & (generator.random(batch) < ERASE.p)
    corner = generator.integers(0, np.maximum((height, width) - side, 0) + 1)
    draws = np.zeros((batch, HEAD + 4), np.int32)
    draws[:, Word.FLIP], draws[:, Word.HOLES] = generator.random(batch) < HFLIP, there
    draws[:, HEAD:] = np.where(there[:, None], np.concatenate((corner, side), 1), 0)
    return torch.from_numpy(draws)
