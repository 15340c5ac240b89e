"""Flips and holes: the law of timm's RandomErasing and torchvision's, and what a seed means."""

from __future__ import annotations

import functools
import math
import operator
import random
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2

from conftest import required
from fusedmix import erasing
from fusedmix.erasing import HEAD, PER_HOLE, Word
from fusedmix.finishing import MOST_HOLES, Erase, Finish
from test_philox import python_uniform, python_words

DRAWS = 100_000
FLIP, ERASE, FILL = 14, 15, 16  # streams: what a seed means must not change from one release to the next
SIZE = (24, 40)


def drawn(erase: Erase | None, n: int, size: tuple[int, int] = SIZE, seed: int = 7, hflip: float = 0.0) -> Tensor:
    return erasing.draw(erasing.chances(Finish(None, hflip=hflip, erase=erase)), torch.tensor(seed), n, size)


def holes_of(records: Tensor) -> Tensor:
    """(n, 4): top, left, height, width of every hole that found a place."""
    holes = records[:, HEAD:].reshape(-1, PER_HOLE)
    return holes[holes[:, 2:].bool().any(1)]


def python_unit(word: int) -> float:
    return (2 * word + 1) * 2.0**-33


def python_record(finish: Finish, seed: int, index: int, size: tuple[int, int]) -> list[int]:
    """A record in Python's own arithmetic, written after timm's loop, with this package's words."""
    erase = finish.erase
    a, b, _, _ = python_words(seed, index, FLIP)
    flip = int(python_uniform(a, b) < finish.hflip)
    if erase is None:
        return [flip, 0, 0, 0]
    least, most = erase.counts
    a, b, chosen, _ = python_words(seed, index, ERASE, 0)
    low, high, _, _ = python_words(seed, index, ERASE, 1)
    count = least + ((chosen * (most - least + 1)) >> 32) if python_uniform(a, b) < erase.p else 0
    holes = [[0] * 4 for _ in range(most)]
    for k in range(count):
        for attempt in range(10):
            u, v, top, left = python_words(seed, index, ERASE, 2 + 10 * k + attempt)
            area = erase.scale[0] + (erase.scale[1] - erase.scale[0]) * python_unit(u)
            area = area * (size[0] * size[1]) / count
            grown = np.float32(math.exp(python_unit(v) * math.log(erase.ratio[1] / erase.ratio[0])))
            aspect = erase.ratio[0] * float(grown)
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < size[0] and w < size[1]:
                holes[k] = [(top * (size[0] - h + 1)) >> 32, (left * (size[1] - w + 1)) >> 32, h, w]
                break
    return [flip, count, low, high, *functools.reduce(operator.iadd, holes, [])]


@pytest.mark.parametrize("count", [1, 3, (2, 5)])
@pytest.mark.parametrize("seed", [0, 7, -(2**63), 2**63 - 1])
def test_a_record_is_what_its_words_say(seed: int, count: Any) -> None:
    finish = Finish(None, hflip=0.5, erase=Erase(0.6, (0.02, 0.9), (0.2, 4.0), count=count))
    records = erasing.draw(erasing.chances(finish), torch.tensor(seed), 40, SIZE)
    assert records.dtype == torch.int32
    expected = [python_record(finish, seed, i, SIZE) for i in range(40)]
    assert [[word % 2**32 for word in row] for row in records.tolist()] == expected


def test_a_record_depends_on_seed_and_sample_alone() -> None:
    erase = Erase(0.5, count=2)
    few, many = drawn(erase, 5, hflip=0.5), drawn(erase, 50, hflip=0.5)
    assert torch.equal(few, many[:5])
    # Neither does the flip depend on whether anything is erased, nor the holes on whether anything is flipped.
    assert torch.equal(drawn(None, 50, hflip=0.5)[:, Word.FLIP], many[:, Word.FLIP])
    assert torch.equal(drawn(erase, 50)[:, Word.HOLES :], many[:, Word.HOLES :])
    assert not torch.equal(drawn(erase, 50, seed=8)[:, Word.HOLES :], many[:, Word.HOLES :])


@pytest.mark.parametrize("p", [0.0, 0.25, 1.0])
def test_as_many_are_flipped_and_erased_as_asked_for(p: float) -> None:
    n = 20_000
    records = drawn(Erase(p), n, hflip=p)
    for word in (Word.FLIP, Word.HOLES):
        share = (records[:, word] != 0).double().mean().item()
        assert abs(share - p) <= 4 * math.sqrt(p * (1 - p) / n)
    both = ((records[:, Word.FLIP] != 0) & (records[:, Word.HOLES] != 0)).double().mean().item()
    assert abs(both - p * p) <= 4 * math.sqrt(p * p * (1 - p * p) / n)  # independent of each other


# ---- The peers' law ----


class Recorder:
    """What timm erases of an image."""

    def __init__(self) -> None:
        self.holes: list[tuple[int, int, int, int]] = []

    def __setitem__(self, index: tuple[slice, slice, slice], value: Tensor) -> None:
        _, rows, columns = index
        self.holes.append((rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start))


def timm_holes(erase: Erase, n: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(n,) how many holes each of n samples got, and (m, 4) all of them, by timm."""
    random.seed(3)
    theirs = required("timm.data.random_erasing").RandomErasing(
        erase.p, *erase.scale, *erase.ratio, min_count=erase.counts[0], max_count=erase.counts[1], device="cpu"
    )
    counts, holes = [], []
    for _ in range(n):
        image = Recorder()
        theirs._erase(image, 1, *size, torch.float32)
        counts.append(len(image.holes))
        holes += image.holes
    return torch.tensor(counts), torch.tensor(holes)


def alike(ours: Tensor, theirs: Tensor) -> None:
    """Means within four standard errors of each other."""
    a, b = ours.double(), theirs.double()
    error = math.sqrt(a.var().item() / len(a) + b.var().item() / len(b))
    assert abs(a.mean().item() - b.mean().item()) <= 4 * error


def same_law(ours: Tensor, theirs: Tensor, size: tuple[int, int]) -> None:
    """The holes' sides and places: ranges, means, second moments, and products."""
    for column in range(4):
        alike(ours[:, column], theirs[:, column])
        alike(ours[:, column] ** 2, theirs[:, column] ** 2)
        assert abs(ours[:, column].min() - theirs[:, column].min()) <= 1
        assert abs(ours[:, column].max() - theirs[:, column].max()) <= 1
    alike(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])
    alike(ours[:, 0] * ours[:, 2], theirs[:, 0] * theirs[:, 2])
    alike(ours[:, 1] * ours[:, 3], theirs[:, 1] * theirs[:, 3])
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= torch.tensor(size)).all()


@pytest.mark.parametrize(
    "erase",
    [
        Erase(1.0),
        Erase(0.25, count=(2, 3)),
        Erase(0.9, (0.5, 0.98), (0.1, 8.0), count=(1, 2)),  # which often finds no place, and is lower than broad
        Erase(1.0, (0.5, 0.5), (1.0, 1.0)),
    ],
    ids=str,
)
def test_holes_have_timms_law(erase: Erase) -> None:
    records = drawn(erase, DRAWS)
    counts, holes = timm_holes(erase, DRAWS, SIZE)
    placed = records[:, HEAD:].reshape(DRAWS, -1, PER_HOLE)[..., 2:].bool().any(2).sum(1)
    for k in range(erase.counts[1] + 1):  # how many samples got k holes
        if (counts == k).any() or (placed == k).any():
            alike(placed == k, counts == k)
    ours = holes_of(records)
    if holes[:, 2].double().var() > 0:
        same_law(ours, holes, SIZE)
    else:
        assert (ours[:, 2:] == holes[0, 2:]).all()


def test_a_hole_has_torchvisions_law() -> None:
    n, size = 20_000, (30, 20)
    erase = Erase(1.0, (0.02, 0.33), (0.3, 3.3))
    theirs = v2.RandomErasing(p=1.0, scale=erase.scale, ratio=erase.ratio)
    torch.manual_seed(0)
    image = torch.empty(3, *size)
    made = [theirs.make_params([image]) for _ in range(n)]
    holes = torch.tensor([[m["i"], m["j"], m["h"], m["w"]] for m in made if m["v"] is not None])
    same_law(holes_of(drawn(erase, n, size)), holes, size)


def test_images_too_small_for_a_hole_have_none() -> None:
    for size in ((1, 1), (1, 50), (50, 1)):
        assert not drawn(Erase(1.0, (0.5, 1.0)), 200, size)[:, HEAD:].reshape(-1, 4)[:, 2:].prod(1).any()


# ---- Parts ----


def test_the_nearest_root_is_exact() -> None:
    whole = torch.arange(2000, dtype=torch.float64)
    ties = whole**2 + whole + 0.25  # (h + ½)², whose root is as near to h as to h + 1: h, and h + 1 right above it
    assert torch.equal(erasing.nearest_root(ties).double(), whole)
    assert torch.equal(erasing.nearest_root(ties.nextafter(torch.tensor(math.inf).double())).double(), whole + 1)
    generator = torch.Generator().manual_seed(0)
    for x in (2.0 ** (50 * torch.rand(2000, dtype=torch.float64, generator=generator))).tolist():
        h = int(erasing.nearest_root(torch.tensor(x, dtype=torch.float64)))
        numerator, denominator = x.as_integer_ratio()
        # (2h - 1)² < 4x <= (2h + 1)²
        assert (2 * h - 1) ** 2 * denominator < 4 * numerator <= (2 * h + 1) ** 2 * denominator


def test_a_pixel_is_in_the_last_of_its_holes() -> None:
    records = drawn(Erase(1.0, (0.1, 0.8), count=4), 60)
    found = erasing.inside(records, SIZE)
    for sample in range(60):
        expected = torch.zeros(SIZE, dtype=torch.int64)
        for k in range(4):
            top, left, h, w = records[sample, HEAD + 4 * k :][:4].tolist()
            expected[top : top + h, left : left + w] = k + 1
        assert torch.equal(found[sample], expected)


def test_fills_are_standard_normal_and_independent() -> None:
    records = drawn(Erase(1.0), 40)
    index = torch.arange(5000)
    fills = torch.stack([erasing.normals(records[i : i + 1].expand(5000, -1), index, 5) for i in range(40)])
    assert stats.kstest(fills.flatten().numpy(), "norm").pvalue > 1e-3
    table = fills.permute(0, 2, 1).reshape(200, 5000)  # a row for each sample and channel
    correlation = torch.corrcoef(table) - torch.eye(200)
    # Of 19900 pairs none is above 5.5 standard errors but once in 10^3 such tests.
    assert correlation.abs().max() < 5.5 / math.sqrt(5000)


def test_a_fill_is_what_its_words_say() -> None:
    records = drawn(Erase(1.0), 3)
    low, high = (records[2, word].item() % 2**32 for word in (Word.NOISE_LOW, Word.NOISE_HIGH))
    fills = erasing.normals(records[2:].expand(6, -1), torch.arange(6), 7)
    for index in range(6):
        for channel in range(7):
            words = python_words((high << 32) | low, index, FILL, channel // 4)
            a, b = words[2 * (channel % 4 // 2) :][:2]
            radius = math.sqrt(-2 * math.log((2 * (a >> 9) + 1) / 2**24))
            angle = 2 * math.pi * (b >> 8) / 2**24
            expected = radius * (math.sin(angle) if channel % 2 else math.cos(angle))
            assert fills[index, channel].item() == pytest.approx(expected, abs=1e-12)


# ---- What is refused ----


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"p": 1.5}, ValueError, r"p must be in \[0, 1\], but got 1.5"),
        ({"p": True}, TypeError, "p must be a number"),
        ({"scale": (0.3, 0.1)}, ValueError, "scale must have low <= high"),
        ({"scale": (0.0, 1.1)}, ValueError, r"scale\[1\] must be in \[0, 1\]"),
        ({"scale": 0.3}, TypeError, "scale must be a pair"),
        ({"ratio": (0.0, 1.0)}, ValueError, r"ratio\[0\] must be in"),
        ({"ratio": (2.0, 1.0)}, ValueError, "ratio must have low <= high"),
        ({"ratio": (math.nan, 1.0)}, ValueError, r"ratio\[0\] must be in"),
        ({"value": "rand"}, ValueError, "Did you mean 'random'"),
        ({"value": "noise"}, ValueError, "value must be one of random, pixel"),
        ({"value": None}, TypeError, "value must be a number, one for each channel"),
        ({"value": ()}, ValueError, "value must have a number for each channel"),
        ({"value": math.inf}, ValueError, "value must be finite"),
        ({"count": 0}, ValueError, r"count must be in \[1, 16\]"),
        ({"count": MOST_HOLES + 1}, ValueError, r"count must be in \[1, 16\]"),
        ({"count": 1.0}, TypeError, "count must be an int"),
        ({"count": (3, 2)}, ValueError, "count must have least <= most"),
        ({"count": (1, 2, 3)}, TypeError, "count must be an int or a pair"),
    ],
)
def test_what_cannot_be_erased_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Erase(**options)
