"""Cutout and GridMask: held against the authors' formulas, in loops of NumPy."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision import tv_tensors

import fusedmix as fm
from callers import CPP
from fusedmix.philox import Stream, below, words

B, K, SIZE = 5, 4, (9, 12)
MAKE = {
    "Cutout": lambda **options: fm.Cutout(length=4, **options),
    "GridMask": lambda **options: fm.GridMask(**{"d1": 3, "d2": 7, **options}),
}
each_method = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
WAYS = [(per, sampling) for per in ("batch", "pair", "sample") for sampling in ("host", "device")]
each_way = pytest.mark.parametrize(("per", "sampling"), WAYS)


def cutout(y, x, length):
    """The mask of DeVries and Taylor's code, of an even length."""
    mask = np.ones(SIZE)
    (h, w), half = SIZE, length // 2
    mask[np.clip(y - half, 0, h) : np.clip(y + half, 0, h), np.clip(x - half, 0, w) : np.clip(x + half, 0, w)] = 0
    return mask


def lines(size, d, begins, ratio):
    """Where the lines of Chen et al.'s grid are: what their code sets to 0."""
    lined = np.zeros(size, dtype=bool)
    for axis, begin in enumerate(begins):
        for i in range(-1, size[axis] // d + 1):
            first, stop = (max(min(s, size[axis]), 0) for s in (d * i + begin, d * i + begin + int(d * ratio + 0.5)))
            lined[(slice(None),) * axis + (slice(first, stop),)] = True
    return lined


def counted(masks, expected):
    """Raises unless masks are among the expected ones, each as often as its probability says."""
    n, counts = len(masks), {}
    for mask in masks:
        key = mask.astype(bool).tobytes()
        counts[key] = counts.get(key, 0) + 1
    assert counts.keys() <= expected.keys()
    for key, p in expected.items():
        assert abs(counts.get(key, 0) - n * p) < 5 * max(n * p * (1 - p), 0.0) ** 0.5 + 1


def drawn(mix, n=4000):
    return mix.sample(n, SIZE, seed=7).mask().numpy()


@pytest.mark.parametrize("length", [2, 4, 30])
def test_squares_are_the_authors(length):
    expected = {}
    for y, x in itertools.product(*map(range, SIZE)):
        key = cutout(y, x, length).astype(bool).tobytes()
        expected[key] = expected.get(key, 0) + 1 / (SIZE[0] * SIZE[1])
    counted(drawn(fm.Cutout(length=length, per="sample")), expected)


@pytest.mark.parametrize("ratio", [0.3, 0.6])
@pytest.mark.parametrize("mode", ["squares", "lines"])
def test_grids_are_the_authors(mode, ratio):
    expected = {}
    for d in (3, 4):
        for begins in itertools.product(range(d), range(d)):
            lined = lines(SIZE, d, begins, ratio)
            key = (lined if mode == "squares" else ~lined).tobytes()
            expected[key] = expected.get(key, 0) + 1 / (2 * d * d)
    mix = fm.GridMask(d1=3, d2=5, ratio=ratio, rotate=1, mode=mode, per="sample")
    counted(drawn(mix), expected)


@pytest.mark.parametrize("size", [(40, 40), (30, 48), (33, 50)])
def test_grids_that_are_turned(size):
    """By Pillow, which the authors take. It computes places in fixed point, half a thousandth of a pixel off."""
    n, d1, d2, ratio = 24, 9, 14, 0.4
    masks = fm.GridMask(d1=d1, d2=d2, ratio=ratio, per="sample", sampling="device").sample(n, size, seed=5).mask()
    seed, index, room = torch.tensor(5), torch.arange(n), 40
    of_period, of_turn, _, _ = words(seed, index, Stream.GRIDMASK)
    of_x, of_y, _, _ = words(seed, index, Stream.GRIDMASK, 1)
    for i in range(n):
        d, turn = d1 + int(below(of_period, d2 - d1)[i]), int(below(of_turn, 360)[i])
        begins = [(int(below(word[i], d)) + room) % d for word in (of_y, of_x)]
        grid = lines([side + 2 * room for side in size], d, begins, ratio)
        turned = np.asarray(Image.fromarray(grid.astype(np.uint8)).rotate(turn))
        turned = turned[room : room + size[0], room : room + size[1]]
        assert (turned != masks[i].numpy()).mean() < (0.01 if turn % 180 else 1e-9), turn


@each_method
@each_way
def test_plans(make, per, sampling):
    """One draw for a batch, a pair or a sample; reproducible; labels stay as they are."""
    mix = make(per=per, sampling=sampling)
    plan, again = (mix.sample(B, SIZE, seed=3) for _ in range(2))
    assert torch.equal(plan.mask(), again.mask())
    assert not torch.equal(plan.mask(), mix.sample(B, SIZE, seed=4).mask())
    assert (plan.weight == 1).all()
    torch.testing.assert_close(plan.lam, plan.mask().mean((1, 2)))
    different = {"batch": 1, "pair": 3, "sample": B}[per]
    assert len({mask.numpy().tobytes() for mask in plan.mask()}) == different
    if per == "pair":
        assert torch.equal(plan.mask(), plan.mask().flip(0))
    assert (plan.fill, plan.binary, plan.repeats) == ((0.0,), True, False)


@each_method
@each_way
@pytest.mark.parametrize("backend", ["reference", CPP])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.float64])
@pytest.mark.parametrize("inplace", [False, True])
def test_batches(make, per, sampling, backend, dtype, inplace):
    mix = make(
        per=per, sampling=sampling, backend=backend, inplace=inplace, fill=(1, 2, 3), num_classes=K, label_smoothing=0.2
    )
    x = torch.randint(256, (B, 3, *SIZE)).to(dtype)
    y = torch.randint(K, (B,))
    torch.manual_seed(3)
    mask = mix.sample(B, SIZE).mask().unsqueeze(1)
    torch.manual_seed(3)
    given = x.clone()
    images, targets = mix(given, y)
    assert (images is given) == inplace
    fill = torch.tensor([1, 2, 3], dtype=dtype).reshape(3, 1, 1)
    assert torch.equal(images, torch.where(mask == 1, x, fill))
    torch.testing.assert_close(targets, 0.8 * F.one_hot(y, K) + 0.2 / K)


@each_method
@pytest.mark.parametrize("size", [(17,), (5, 6), (6, 5, 7)])
def test_signals_and_volumes(make, size):
    options = {"rotate": 1} if make is MAKE["GridMask"] and len(size) != 2 else {}
    mix = make(per="sample", labels_getter=None, fill=0.5, axes=tuple(range(-len(size), 0)), **options)
    x = torch.rand(B, 2, *size)
    torch.manual_seed(1)
    mask = mix.sample(B, size).mask()
    torch.manual_seed(1)
    out = mix(x)
    assert torch.equal(out, torch.where(mask.unsqueeze(1) == 1, x, 0.5))
    if not options:
        return
    d = 4
    mask = fm.GridMask(d1=d, d2=d + 1, ratio=0.5, rotate=1).sample(1, size, seed=2).mask()[0].numpy()
    every = [lines(size, d, begins, 0.5) for begins in itertools.product(range(d), repeat=len(size))]
    assert any(np.array_equal(mask, lined) for lined in every)


def test_shares_of_the_sides():
    """And odd lengths, of which the authors' code loses a pixel."""
    for mix, sides in ((fm.Cutout(ratio=0.34), (3, 4)), (fm.Cutout(length=3), (3, 3))):
        boxes = mix.sample(1, SIZE, seed=0).geometry
        found = {tuple((g[4:6] - g[1:3]).tolist()) for s in range(60) for g in mix.sample(1, SIZE, seed=s).geometry}
        assert max(found) == sides, boxes


@each_method
def test_chances(make):
    mix, n = make(per="sample", p=0.3), 4000
    plan = mix.sample(n, SIZE, seed=1)
    left = (plan.lam == 1).double().mean()
    assert abs(left - 0.7) < 4 * (0.3 * 0.7 / n) ** 0.5
    assert torch.equal(plan.lam == 1, (plan.mask() == 1).all(2).all(1))
    x, y = torch.rand(B, 3, *SIZE), torch.arange(B) % K
    off = make(num_classes=K, training_only=True).eval()
    assert all(a is b for a, b in zip(off(x, y), (x, y), strict=True))
    mix = make(num_classes=K)
    mix.enabled = False
    assert torch.equal(mix(x, y)[0], x)


@each_method
def test_what_stands_beside_images(make):
    """Label maps stay, and labels whatever they are."""
    x, maps, y = torch.rand(B, 3, *SIZE), torch.randint(3, (B, *SIZE)), torch.rand(B, K).softmax(1)
    mix = make(per="sample", mask_classes=None)
    images, found, labels = mix(tv_tensors.Image(x), {"labels": y}, tv_tensors.Mask(maps))
    assert not torch.equal(images, x)
    assert torch.equal(labels, maps)
    assert torch.equal(found["labels"], y)
    soft = fm.mix_masks(maps, mix.sample(B, SIZE), num_classes=3)
    assert torch.equal(soft, F.one_hot(maps, 3).permute(0, 3, 1, 2).float())


@each_method
def test_derivatives_and_losses(make):
    plan = make(per="sample").sample(B, SIZE, seed=0)
    x = torch.rand(B, 1, *SIZE, dtype=torch.float64, requires_grad=True)
    fm.mix(x, plan, backend="reference").sum().backward()
    assert torch.equal(x.grad, plan.mask().double().unsqueeze(1))
    logits, y = torch.randn(B, K), torch.arange(B) % K
    torch.testing.assert_close(fm.mix_cross_entropy(logits, y, plan), F.cross_entropy(logits, y))


@each_method
def test_settings(make):
    mix = make(per="sample")
    twin = pickle.loads(pickle.dumps(mix))
    assert repr(twin) == repr(mix)
    assert torch.equal(twin.sample(B, SIZE, seed=1).mask(), mix.sample(B, SIZE, seed=1).mask())
    mix.fill = (1, 2)
    assert mix.fill == (1.0, 2.0)
    assert mix.sample(B, SIZE).fill == (1.0, 2.0)
    if isinstance(mix, fm.Cutout):
        mix.length = 2
        assert mix.sample(B, SIZE, seed=1).lam.min() >= 1 - 4 / 108
    else:
        mix.d2, mix.d1, mix.ratio, mix.rotate, mix.mode = 9, 8, 0.9, 1, "lines"
        fresh = fm.GridMask(d1=8, d2=9, ratio=0.9, rotate=1, mode="lines", per="sample")
        assert torch.equal(mix.sample(B, SIZE, seed=1).mask(), fresh.sample(B, SIZE, seed=1).mask())


@each_method
def test_compiled(make):
    torch._dynamo.reset()
    mix = make(num_classes=K, per="sample", backend="reference")
    compiled = torch.compile(mix, fullgraph=True, backend="aot_eager")
    x, y = torch.rand(B, 3, *SIZE), torch.arange(B) % K
    torch.manual_seed(1)
    found = compiled(x, y)
    torch.manual_seed(1)
    assert all(map(torch.equal, found, mix(x, y)))
