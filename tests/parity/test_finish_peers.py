"""A finished mix beside the chains that it stands for: torchvision's transforms, and timm's loader.

Every expectation comes from the peer, run in the same test. The bound is that of fusedmix/backends/finished.py: in
float32 no pixel is further from torchvision's chain than 3·2^-22/std; a 16-bit type adds one rounding.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

import fusedmix as fm
from conftest import required
from fusedmix import erasing
from fusedmix.backends.finished import finish as finish_alone
from fusedmix.finishing import Erase, Finish

SEEDS = range(200)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def statistics_of(seed: int, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """ImageNet's, or means in [0, 1] and stds from 2^-10 on."""
    chance = random.Random(seed)
    if seed % 2 == 0 and channels == 3:
        return MEAN, STD
    stds = tuple(2 ** chance.uniform(-10, 1) for _ in range(channels))
    return tuple(chance.choice((0.0, 1.0, chance.random())) for _ in range(channels)), stds


def batch_of(seed: int, dtype: torch.dtype) -> Tensor:
    """Random images, in which 0 and 255 are not rare."""
    generator = torch.Generator().manual_seed(seed)
    shape = (int(torch.randint(1, 6, (), generator=generator)), 3 if seed % 3 else 1, 12 + seed % 5, 9 + seed % 7)
    x = torch.randint(-40, 296, shape, generator=generator).clamp(0, 255).to(torch.uint8)
    return x if dtype == torch.uint8 else (x.double() / 255).to(dtype)


def chain(x: Tensor, y: Tensor, normalize: Any, mixer: v2.Transform | None) -> tuple[Tensor, Tensor]:
    x = v2.Normalize(*normalize)(v2.ToDtype(torch.float32, scale=True)(x))
    return (x, y) if mixer is None else mixer(x, y)


def finished(x: Tensor, finish: Finish, draws: Tensor | None = None) -> Tensor:
    """By the reference, flips and holes included."""
    return finish_alone(x, finish.arguments(x, draws))


def spacing(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Half of the distance of numbers of a dtype next to x, at least that of the smallest normal ones."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(x.abs().clamp_min(info.tiny)).exponent - 1
    return info.eps / 2 * torch.exp2(exponent.double())


# In units of 2^-24/std: 11 of which MixUp takes 3, and one for terms of the second order.
UNITS = {"MixUp": 12, "CutMix": 9, None: 9}


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_a_finished_mix_is_torchvisions_chain(name: str | None, dtype: torch.dtype) -> None:
    worst, mixed = 0.0, 0
    for seed in SEEDS:
        x = batch_of(seed, dtype)
        y = torch.arange(len(x)) % 3
        mean, std = statistics_of(seed, x.shape[1])
        options = {"alpha": (0.2, 1.0, 5.0)[seed % 3], "num_classes": 3}
        theirs = None if name is None else getattr(v2, name)(**options)
        torch.manual_seed(seed)
        expected, labels = chain(x, y, (mean, std), theirs)
        mixed += not torch.equal(expected, chain(x, y, (mean, std), None)[0])
        expected = expected.double()
        limit = UNITS[name] * 2.0**-24 / torch.tensor(std, dtype=torch.float64).reshape(-1, 1, 1)
        for made in (torch.float32, (torch.float16, torch.bfloat16)[seed % 2]):
            finish = Finish((mean, std), made)
            torch.manual_seed(seed)
            out, targets = (
                (fm.finish(x, finish), y) if name is None else getattr(fm, name)(**options, finish=finish)(x, y)
            )
            assert out.dtype == made
            assert torch.equal(targets, labels)
            allowed = limit
            if made != torch.float32:  # rounded from what is within the limit, in the next binade at most
                allowed = limit + spacing(expected.abs() + limit, made)
            off = (out.double() - expected).abs()
            assert (off <= allowed).all()
            if made == torch.float32:
                worst = max(worst, (off / limit).max().item())
    assert worst > 0.1  # else the limit says little
    assert mixed >= (0 if name is None else 120)  # else the seeds do; where λ is 0 or 1, or a box is empty, nothing is


def test_a_finished_batch_is_timms_loaders() -> None:
    """timm normalises by (k - 255·mean) / (255·std) in the dtype of the images."""
    for seed in SEEDS:
        x = batch_of(seed, torch.uint8)
        mean, std = statistics_of(seed, x.shape[1])
        labels = torch.arange(len(x))
        loader = required("timm.data.loader").PrefetchLoader(
            [(x, labels)], mean, std, channels=x.shape[1], device=torch.device("cpu")
        )
        [(expected, _)] = list(loader)
        out = fm.finish(x, Finish((mean, std)))
        # timm's: 255·mean and the difference are off by m and |t-m|, 255·std and the quotient by |t-m| each: 4 at most,
        # and ours by 3.
        limit = 2 * 2.0**-22 / torch.tensor(std, dtype=torch.float64).reshape(-1, 1, 1)
        assert ((out.double() - expected.double()).abs() <= limit).all()


@pytest.mark.parametrize(("mode", "value"), [("const", 0), ("rand", "random"), ("pixel", "pixel")])
def test_erased_batches_are_like_timms(mode: str, value: Any) -> None:
    """The numbers in the holes: their share, and by mode how many there are and which moments they have."""
    n, size = 4000, (16, 16)
    x = torch.full((n, 3, *size), 128, dtype=torch.uint8)
    random.seed(1)
    torch.manual_seed(1)
    loader = required("timm.data.loader").PrefetchLoader(
        [(x, torch.zeros(n))], MEAN, STD, device=torch.device("cpu"), re_prob=0.4, re_mode=mode, re_count=2
    )
    [(theirs, _)] = list(loader)
    finish = Finish((MEAN, STD), erase=Erase(0.4, value=value, count=2))
    mine = finished(x, finish, erasing.draw(erasing.chances(finish), torch.tensor(1), n, size))
    plain = finished(x[:1], Finish((MEAN, STD)))
    filled = [((y - plain).abs() > 1e-5).any(1) for y in (theirs, mine)]
    shares = [hole.double().mean((1, 2)) for hole in filled]  # of each sample
    error = (shares[0].var() / n + shares[1].var() / n).sqrt()
    assert abs(shares[0].mean() - shares[1].mean()) <= 4 * error
    numbers = [y.permute(0, 2, 3, 1)[hole] for y, hole in zip((theirs, mine), filled, strict=True)]
    if mode == "const":
        assert all((fill == 0).all() for fill in numbers)
        return
    distinct = [torch.unique(fill, dim=0) for fill in numbers]  # one for each hole, or for each pixel
    if mode == "pixel":
        assert all(len(of) == len(fill) for of, fill in zip(distinct, numbers, strict=True))
    else:
        counts = [
            torch.tensor([len(torch.unique(y[i].permute(1, 2, 0)[hole[i]], dim=0)) for i in range(n)]).double()
            for y, hole in zip((theirs, mine), filled, strict=True)
        ]
        assert abs(counts[0].mean() - counts[1].mean()) <= 4 * (counts[0].var() / n + counts[1].var() / n).sqrt()
    for of in distinct:
        of = of.double()
        assert (of.mean(0).abs() <= 4 / len(of) ** 0.5).all()
        assert ((of**2).mean(0) - 1).abs().max() <= 4 * (2 / len(of)) ** 0.5
        assert (torch.corrcoef(of.T) - torch.eye(3)).abs().max() <= 4 / len(of) ** 0.5
