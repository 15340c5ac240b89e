"""Who mixes the batch of a case: fusedmix by every backend, and the peers that are installed, each as documented.

A contender's step is what a training script calls: it draws, mixes the images and makes the targets. Before it is timed
it has to show that it does what it is said to do.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fusedmix as fm
from fusedmix import backends as fused_backends
from fusedmix.bench import plain
from fusedmix.bench.cases import Case

_PACKAGES = ("torchvision", "timm", "kornia")  # by these names on PyPI and in Python


@dataclass
class Contender:
    """Who mixes.

    Attributes:
        provider: fusedmix or the peer.
        step: of images and labels: draws, mixes both, returns both.
        check: of images and labels: raises unless a step does what the case says.
        targets: "dense", or what the peer makes in their place.
    """

    provider: str
    step: Callable[[Tensor, Tensor], Any]
    check: Callable[[Tensor, Tensor], None]
    backend: str = ""
    inplace: bool = False
    targets: str = "dense"


def missing() -> list[str]:
    """The peers that are not installed here."""
    return [peer for peer in _PACKAGES if importlib.util.find_spec(peer) is None]


def backends_for(device: torch.device) -> list[str]:
    """The backends that can run here, the chosen one first; no interpreter."""
    found = [line for line in fused_backends.report() if line.device == device.type and line.works]
    found.sort(key=lambda line: not line.chosen)
    return [line.name for line in found if not (line.name == "triton" and device.type == "cpu")]


def contenders(case: Case, device: torch.device, backends: Sequence[str], peers: Sequence[str]) -> Iterator[Contender]:
    """Everyone who can mix the batch of a case, as far as asked for."""
    for backend in backends:
        for inplace in (True, False):
            if not (inplace and case.backward):
                yield _ours(case, device, backend, inplace)
    for peer in peers:
        yield from _BUILDERS[peer](case, device)


def _ours(case: Case, device: torch.device, backend: str, inplace: bool) -> Contender:
    def made(backend: str) -> fm.MixTransform:
        options: dict[str, Any] = {"per": case.per, "num_classes": case.classes, "inplace": inplace, "backend": backend}
        if device.type == "cuda":
            options["sampling"] = "device"
        if case.per == "pair":
            options["pairing"] = "flip"
        if case.method == "HMix":
            options["ratio"] = plain.RATIO
        made: fm.MixTransform = getattr(fm, case.method)(**options)
        return made

    module = made(backend)

    def check(x: Tensor, y: Tensor) -> None:
        found = seeded(module, x.clone(), y)
        expected = seeded(made("reference"), x.clone(), y)
        same(found, expected, x)

    return Contender("fusedmix", module, check, backend, inplace)


def _torchvision(case: Case, device: torch.device) -> Iterator[Contender]:
    from torchvision.transforms import v2

    # MixUp of uint8 raises.
    if case.method not in ("MixUp", "CutMix") or case.per != "batch" or (case.method, case.dtype) == ("MixUp", "uint8"):
        return
    module = getattr(v2, case.method)(num_classes=case.classes)
    twin = getattr(fm, case.method)(num_classes=case.classes, backend="reference")

    def check(x: Tensor, y: Tensor) -> None:
        same(seeded(module, x, y), seeded(twin, x, y), x)

    yield Contender("torchvision", module, check)


def timm_options(method: str, per: str, num_classes: int) -> dict[str, Any]:
    """What timm's Mixup and ours of that name take, to mix by one method at α = 1."""
    box = method == "CutMix"
    return {
        "mixup_alpha": 0.0 if box else 1.0,
        "cutmix_alpha": 1.0 if box else 0.0,
        "mode": {"sample": "elem"}.get(per, per),
        "label_smoothing": 0.0,
        "num_classes": num_classes,
    }


def _timm(case: Case, device: torch.device) -> Iterator[Contender]:
    from timm.data.mixup import Mixup

    # In place only, so no gradient. MixUp of uint8 raises; per pair and per sample λ takes the dtype of the images.
    if case.method not in ("MixUp", "CutMix") or case.backward or case.dtype == "uint8":
        return
    options = timm_options(case.method, case.per, case.classes)
    module = Mixup(**options)

    def check(x: Tensor, y: Tensor) -> None:
        from fusedmix.integrations.timm import Mixup as Twin

        same(
            seeded(module, x.clone(), y),
            seeded(Twin(**options, backend="reference"), x.clone(), y),
            x,
            in_dtype=case.per != "batch",
        )

    yield Contender("timm", module, check, inplace=True)


def _kornia(case: Case, device: torch.device) -> Iterator[Contender]:
    from kornia.augmentation import RandomCutMixV2, RandomMixUpV2

    if case.method not in ("MixUp", "CutMix") or case.per == "pair" or case.dtype == "uint8":
        return
    options: dict[str, Any] = {"data_keys": ["input", "class"], "p": 1.0, "same_on_batch": case.per == "batch"}
    box = case.method == "CutMix"
    module = RandomCutMixV2(use_correct_lambda=True, **options) if box else RandomMixUpV2(**options)

    def step(x: Tensor, y: Tensor) -> Any:
        return module(x, y)

    def check(x: Tensor, y: Tensor) -> None:
        images, labels = module(x, y)
        drawn, batch = module._params, len(x)
        labels = labels.view(batch, 3).cpu()
        if box:
            partner, corners = drawn["mix_pairs"][0].cpu(), drawn["crop_src"][0].cpu()
            first, last = corners.amin(1), corners.amax(1) + 1
            place = torch.cat([first.flip(1), last.flip(1)], 1).long()
            area = (place[:, 2:] - place[:, :2]).prod(1) / (case.size * case.size)
            numbers = plain.Numbers(1 - area, torch.tensor([[1.0, 0.0]]).expand(batch, 2), place)
        else:
            partner, share = drawn["mixup_pairs"].cpu(), drawn["mixup_lambdas"].cpu().float()
            numbers = plain.Numbers(1 - share, torch.stack([1 - share, share], 1), torch.zeros(batch, 4).long())
        plan = plain.plan_of(case.method, numbers, batch, (case.size, case.size), partner)
        expected = fm.mix(x, plan, backend="reference")
        same((images, labels[:, 1].long()), (expected, y.cpu()[partner]), x)
        weight = labels[:, 2] if box else 1 - labels[:, 2]
        torch.testing.assert_close(weight.float(), numbers.weight, rtol=0.0, atol=1e-6)

    yield Contender("kornia", step, check, targets="pairs")


def _plain(case: Case, device: torch.device, compiled: bool) -> Iterator[Contender]:
    if case.per == "pair" or case.dtype == "uint8" or case.method == "FMix":
        return
    generator = np.random.default_rng(0)
    n, sides = (1 if case.per == "batch" else case.batch), (case.size, case.size)
    for inplace in (True, False) if not case.backward else (False,):
        function = plain.mixing(case.method, case.classes, inplace)
        mixing = torch.compile(function, fullgraph=True, dynamic=False) if compiled else function

        def drawn() -> plain.Numbers:
            return plain.draw(case.method, n, *sides, generator).to(device)

        def step(x: Tensor, y: Tensor, mixing: Callable[..., Any] = mixing) -> Any:
            return mixing(x, y, drawn())

        def check(x: Tensor, y: Tensor, mixing: Callable[..., Any] = mixing) -> None:
            numbers = drawn()
            plan = plain.plan_of(case.method, numbers.to(torch.device("cpu")), case.batch, sides)
            targets = fm.mix_labels(y, plan, num_classes=case.classes, backend="reference")
            expected = fm.mix(x, plan, backend="reference"), targets
            same(mixing(x.clone(), y, numbers), expected, x)
            means = plan.mask().flatten(1).mean(1)
            torch.testing.assert_close(means, plan.weight.float().cpu(), rtol=0.0, atol=1e-4)

        yield Contender("torch.compile" if compiled else "PyTorch", step, check, inplace=inplace)


def _numpy(case: Case, device: torch.device) -> Iterator[Contender]:
    """FMix as its authors make it: masks by NumPy on the host, mixed by PyTorch."""
    if case.method != "FMix" or case.per == "pair" or case.dtype == "uint8":
        return
    generator = np.random.default_rng(0)
    n, mixing = (1 if case.per == "batch" else case.batch), plain.mixing("FMix", case.classes, False)

    def drawn() -> plain.Numbers:
        return plain.draw("FMix", n, case.size, case.size, generator).to(device)

    def check(x: Tensor, y: Tensor) -> None:
        numbers = drawn()
        images, targets = mixing(x, y, numbers)
        assert numbers.mask is not None
        mask = numbers.mask[:, None]
        expected = mask * x.double() + (1 - mask) * x.roll(1, 0).double()
        hot, weight = (
            torch.nn.functional.one_hot(y, case.classes),
            numbers.mask.mean((1, 2), dtype=torch.float64)[:, None],
        )
        same((images, targets), (expected.to(x.dtype), (weight * hot + (1 - weight) * hot.roll(1, 0)).float()), x)
        check_masks(case.size)

    yield Contender("numpy", lambda x, y: mixing(x, y, drawn()), check)


def check_masks(side: int, number: int = 200) -> None:
    """Raises unless NumPy's masks and ours are of one kind, by their counts of ones and the length of their boundaries.

    NumPy's pipeline draws half of a spectrum without a factor for the pairs k, -k, and so its masks are a little
    flatter: the length of the boundary, both directions together, is all that is compared."""
    generator, lam = np.random.default_rng(0), 0.5
    theirs = torch.from_numpy(np.stack([plain.fmix_numpy.mask(side, side, lam, generator) for _ in range(number)]))
    ours = fm.FMix(per="sample").sample(number, (side, side), lam=lam, seed=0).mask()
    lengths = [
        ((m[:, 1:] != m[:, :-1]).sum((1, 2)) + (m[..., 1:] != m[..., :-1]).sum((1, 2))) / side for m in (theirs, ours)
    ]
    if abs(float(lengths[0].mean() - lengths[1].mean())) > 0.1 * float(lengths[0].mean()):
        raise RuntimeError(f"boundaries differ at {side}: {lengths[0].mean()} in NumPy, {lengths[1].mean()} here")
    if not all(set(m.sum((1, 2)).tolist()) <= {side * side // 2, -(-side * side // 2)} for m in (theirs, ours)):
        raise RuntimeError(f"the numbers of ones differ at {side}")


_BUILDERS: dict[str, Callable[[Case, torch.device], Iterator[Contender]]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "kornia": _kornia,
    "PyTorch": lambda case, device: _plain(case, device, False),
    "torch.compile": lambda case, device: _plain(case, device, True),
    "numpy": _numpy,
}


def seeded(step: Callable[..., Any], x: Tensor, y: Tensor, seed: int = 0) -> Any:
    """A step after both generators have been seeded."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    return step(x, y)


def same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], x: Tensor, in_dtype: bool = False) -> None:
    """Raises unless images differ by a few roundings at most (peers round products and sums, and λ in the image's
    dtype), and targets by those of float32, or of the image's dtype with `in_dtype`."""
    if x.dtype == torch.uint8:
        allowed = 1.0
    else:
        allowed = 4 * torch.finfo(x.dtype).eps * float(expected[0].abs().max()) if x.numel() else 0.0
    torch.testing.assert_close(found[0].double(), expected[0].double(), rtol=0.0, atol=allowed)
    rounding = torch.finfo(x.dtype if in_dtype else torch.float32).eps
    torch.testing.assert_close(found[1].cpu().float(), expected[1].cpu().float(), rtol=0.0, atol=4 * rounding)
