"""PuzzleMix: its energy by the formula, its labels against all that there are, its moves against a loop; and plans."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import fusedmix as fm
from callers import CPP
from conftest import NO_CUDA
from fusedmix.backends.arrangement import arrange_blocks
from fusedmix.backends.borders import border_costs
from fusedmix.backends.grid_cut import label_grid
from fusedmix.blocks import Weights, energies, shares
from fusedmix.methods import Families, Per

B, K = 5, 4
GRIDS = [(1, 1), (1, 3), (2, 2), (3, 2)]
UNIT = 2**-20


def maps_of(n, height, width, seed=0):
    """One peak each, and noise."""
    g = torch.Generator().manual_seed(seed)
    y, x = torch.rand(2, n, 1, 1, generator=g)
    rows, columns = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)
    peak = torch.exp(-20 * ((rows - y) ** 2 + (columns - x) ** 2))
    return peak + 0.1 * torch.rand(n, height, width, generator=g)


def images_of(n, height, width, seed=0, channels=3):
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(seed))


def patches(x, place, axis, cells):
    """(C, patches) float64 of an image (C, H, W): means along one side of a block, of 4 by 4 pixels where these divide.

    `place`: the row and the column of the block, and whether its last pixels are meant or its first.
    """
    (h, w), (height, width) = cells, x.shape[1:]
    row, column, last = place
    of = x[:, row * (height // h) :, column * (width // w) :][:, : height // h, : width // w].double()
    of = of if axis == 0 else of.transpose(1, 2)
    deep, wide = (max(n for n in (1, 2, 3, 4) if side % n == 0) for side in of.shape[1:])
    of = of[:, -deep:] if last else of[:, :deep]
    return torch.stack([part.mean((1, 2)) for part in of.split(wide, dim=2)], dim=1)


def differences(x, z, cells):
    """The pairs of blocks, and what their pixels differ by at the border, by which image is on either side (0: x)."""
    found = {}
    for axis, (i, j) in itertools.product((0, 1), itertools.product(*map(range, cells))):
        there = (i + 1, j) if axis == 0 else (i, j + 1)
        if there[axis] == cells[axis]:
            continue
        before, behind = ([patches(of, (*at, at == (i, j)), axis, cells) for of in (x, z)] for at in ((i, j), there))
        d = {(a, b): float((before[a] - behind[b]).abs().mean()) for a, b in itertools.product((0, 1), repeat=2)}
        found[(i, j), there] = d
    return found


def cost(labels, s, t, pairs, lam, weights):
    """The energy of one labelling by the formula: of maps s and t of a sample and its partner, and of `differences`."""
    n, m = labels.numel(), 1 - labels.double() / 2
    base = weights.beta / math.sqrt(n) / 16
    chance = torch.tensor([lam**2, 2 * lam * (1 - lam), (1 - lam) ** 2], dtype=torch.float64)
    total = float((m * t + (1 - m) * s).sum() - weights.eta / n * (chance + 1e-8).log()[labels].sum())
    for (here, there), d in pairs.items():
        one, other = float(m[here]), float(m[there])
        linear = one * (d[0, 0] + d[0, 1]) + (1 - one) * (d[1, 1] + d[1, 0])
        linear += other * (d[0, 0] + d[1, 0]) + (1 - other) * (d[1, 1] + d[0, 1])
        mixed = d[0, 1] + d[1, 0] - d[0, 0] - d[1, 1]
        total += base * ((one - other) ** 2 + weights.gamma / 2 * (linear + mixed * (one - other) ** 2))
    return total


def whole_numbers(labels, unary, right, down):
    """What the costs of one grid say of a labelling, in units of the energy."""
    own = unary.gather(2, labels[:, :, None]).sum()
    pairs = (right * labels.diff(dim=1) ** 2).sum() + (down * labels.diff(dim=0) ** 2).sum()
    return int(own + pairs) * UNIT / labels.numel()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("block", [(4, 8), (6, 5), (1, 2)], ids=str)
def test_the_energy_is_that_of_the_formula(grid, block):
    """Of labellings at random, but for a number that all of a sample have in common: the costs are whole numbers."""
    h, w = grid
    weights, lam = Weights(1.3, 0.7, 0.2), torch.rand(B)
    x = images_of(B, h * block[0], w * block[1])
    maps, partner = shares(maps_of(B, *x.shape[2:]), grid), torch.arange(B).roll(1)
    costs = energies(maps, border_costs(x, partner, torch.ones(3), grid), partner, lam, weights)
    for i in range(B):
        pairs = differences(x[i], x[partner[i]], grid)
        given = maps[i].double(), maps[partner[i]].double(), pairs, float(lam[i]), weights
        apart = []
        for _ in range(6):
            labels = torch.randint(3, grid)
            apart.append(cost(labels, *given) - whole_numbers(labels, *(c[i] for c in costs)))
        assert max(apart) - min(apart) <= 1e-5


def test_where_two_images_meet_they_differ_by_their_pixels():
    """Of labels 0 and 2, which need no rule for what is between: one border, of one pixel on either side."""
    x = torch.tensor([[[[0.1, 0.5]]], [[[0.9, 0.2]]]])
    flat, partner = torch.full((2, 1, 2), 0.5), torch.tensor([1, 0])
    unlike = border_costs(x, partner, torch.ones(1), (1, 2))
    costs = energies(flat, unlike, partner, torch.tensor([0.5, 0.5]), Weights(1.0, 1.0, 0.0))
    base = 1 / math.sqrt(2) / 16
    found = {m: whole_numbers(torch.tensor([m]), *(c[0] for c in costs)) for m in itertools.product((0, 2), repeat=2)}
    expected = {(0, 0): 0.4, (0, 2): 0.1 + 1, (2, 0): 0.4 + 1, (2, 2): 0.7}  # |before - behind|, and β' where M differs
    for one, other in itertools.combinations(found, 2):
        assert found[one] - found[other] == pytest.approx(base * (expected[one] - expected[other]), abs=1e-5)


def mask_of(plan, grid):
    """The labels of a plan, by its mask, which must be alike in each block."""
    (h, w), (height, width) = grid, plan.size
    mask = plan.mask().reshape(len(plan.partner), h, height // h, w, width // w)
    assert torch.equal(mask, mask[:, :, :1, :, :1].expand_as(mask))
    labels = (2 - 2 * mask[:, :, 0, :, 0]).round()
    assert torch.allclose(mask[:, :, 0, :, 0], 1 - labels / 2, atol=1e-5, rtol=0)
    return labels.long()


@pytest.mark.parametrize(
    ("grid", "dtype"),
    [((1, 1), torch.uint8), ((1, 3), torch.float32), ((2, 2), torch.uint8), ((2, 3), torch.bfloat16)],
    ids=str,
)
def test_no_labelling_costs_less(grid, dtype):
    """Of a plan's labels against all that there are; images that were normalised, or are whole numbers."""
    h, w = grid
    std = 1.0 if dtype == torch.uint8 else (0.2, 0.5, 0.4)
    x = images_of(B, 8 * h, 8 * w, seed=2)
    given = (x * 255).round() if dtype == torch.uint8 else x / torch.tensor(std).reshape(3, 1, 1)
    given = given.to(dtype)
    as_they_are = given.double() / 255 if dtype == torch.uint8 else given.double() * torch.tensor(std).reshape(3, 1, 1)
    importance = maps_of(B, 4 * h, 2 * w, seed=3)
    mix = fm.PuzzleMix(cells=grid, beta=0.6, std=std, per="sample", backend="reference")
    plan = mix.sample(B, x.shape[2:], importance=importance, images=given, seed=4)
    labels = mask_of(plan, grid)
    s = shares(importance, grid).double()
    every = torch.tensor(list(itertools.product(range(3), repeat=h * w))).reshape(-1, h, w)
    for i, j in enumerate(plan.partner.tolist()):
        pairs = differences(as_they_are[i], as_they_are[j], grid)
        fixed = s[i], s[j], pairs, float(plan.lam[i]), Weights(0.6, 0.5, 0.2)
        least = min(cost(of, *fixed) for of in every)
        assert cost(labels[i], *fixed) <= least + 1e-5
    assert plan.weight.tolist() == pytest.approx((1 - labels / 2).flatten(1).mean(1).tolist(), abs=1e-5)


def test_law_of_the_prior():
    """Where it alone counts M is the likeliest of the three: each for a third of λ ~ U(0, 1). Moments within 4 standard
    errors."""
    n = 4000
    mix = fm.PuzzleMix(cells=1, eta=1e3, gamma=0, per="sample", transport=False)
    plan = mix.sample(n, (1, 1), importance=torch.ones(n, 1, 1), seed=1)
    m = 1 - mask_of(plan, (1, 1)).flatten() / 2
    assert torch.equal(m, torch.where(plan.lam > 2 / 3, 1.0, torch.where(plan.lam < 1 / 3, 0.0, 0.5)))
    assert abs(m.mean() - 0.5) <= 4 * math.sqrt(1 / 6 / n)
    assert abs((m - 0.5).square().mean() - 1 / 6) <= 4 * math.sqrt((1 / 24 - 1 / 36) / n)


def test_law_of_the_weights():
    """A sample and its partner are alike before λ: half of the pixels are of each. Within 4 standard errors, which the
    pairs of a batch, that share images, are too many for: so each has images of its own."""
    n = 600
    mix = fm.PuzzleMix(per="sample", pairing="flip", sampling="device")
    plan = mix.sample(2 * n, (8, 8), importance=maps_of(2 * n, 8, 8), images=images_of(2 * n, 8, 8), seed=3)
    w = plan.weight[:n]
    assert abs(w.mean() - 0.5) <= 4 * w.std() / math.sqrt(n)
    assert 0.1 < w.std() < 0.5
    high, low = (plan.weight[torch.where(of)] for of in (plan.lam > 0.8, plan.lam < 0.2))
    assert high.mean() > 0.5 > low.mean()


def test_each_keeps_what_matters_in_it():
    """Without a prior and a price for neighbours a block is of whom it matters to."""
    importance = maps_of(B, 12, 8)
    mix = fm.PuzzleMix(cells=(3, 2), beta=0, eta=0, transport=False)
    plan = mix.sample(B, (12, 8), importance=importance, images=images_of(B, 12, 8))
    s = shares(importance, (3, 2))
    assert torch.equal(mask_of(plan, (3, 2)) == 0, s >= s[plan.partner])


# ---- moves


def places(seen, s, price):
    """Which block each place that is seen holds, of one grid, and what a block costs at a place: by loops."""
    h, w = seen.shape
    far = max(1, max(h, w) - 1) ** 2
    where = list(itertools.product(range(h), range(w)))

    def costs(i, j):
        return price * ((where[i][0] - where[j][0]) ** 2 + (where[i][1] - where[j][1]) ** 2) / far - float(s[where[i]])

    asks = {i: [j for j in range(h * w) if seen[where[j]] and costs(i, j) < 0] for i in range(h * w)}
    for _ in range(max(h, w)):
        held = {}
        best = {i: min(left, key=lambda j, i=i: costs(i, j)) for i, left in asks.items() if left}
        for i, j in best.items():
            if j not in held or costs(i, j) < costs(held[j], j):
                held[j] = i
        for i, j in best.items():
            if held[j] != i:
                asks[i].remove(j)
    return held, costs


@pytest.mark.parametrize("grid", [(1, 1), (1, 4), (4, 4), (3, 5), (9, 8)], ids=str)
@pytest.mark.parametrize("price", [0.02, 0.8])
def test_moves(grid, price):
    """Places that are seen hold whom a loop finds there, which costs no more than to stay; every block has a place."""
    g = torch.Generator().manual_seed(7)
    seen = torch.rand(4, *grid, generator=g) < torch.tensor([0.0, 0.2, 0.7, 1.0])[:, None, None]
    s = shares(maps_of(4, *grid, seed=1) + 1e-3 * torch.rand(4, *grid, generator=g), grid)
    found = arrange_blocks(seen, s, price)
    n, moved = math.prod(grid), 0
    assert torch.equal(found.sort(1).values, torch.arange(n).expand(4, n))
    for i in range(4):
        held, costs = places(seen[i], s[i], price)
        assert {*held} == {*seen[i].flatten().nonzero().flatten().tolist()}
        for place, block in held.items():
            assert found[i, place] == block
            assert costs(block, place) <= costs(place, place)
            moved += block != place
    assert moved or n < 5 or price == 0.8
    assert torch.equal(found[0], torch.arange(n))  # nothing is seen
    assert torch.equal(found[3], torch.arange(n))  # all is


def test_moves_of_equal_blocks_are_the_first():
    """What matters is in the corner, and two places beside it are seen that cost the same."""
    s = torch.zeros(1, 3, 3)
    s[0, 1, 1] = 1.0
    seen = torch.zeros(1, 3, 3, dtype=torch.bool)
    seen[0, 1, 0] = seen[0, 0, 1] = True
    found = arrange_blocks(seen, s, 0.8)[0].tolist()
    assert found == [0, 4, 2, 3, 1, 5, 6, 7, 8]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8], ids=str)
def test_blocks_move_before_they_are_mixed(dtype):
    """mixed = M·(own, moved) + (1-M)·(partner's, moved), block by block."""
    h, w = grid = (2, 3)
    x = (images_of(B, 8, 12) * 255).to(dtype)
    mix = fm.PuzzleMix(cells=grid, beta=0.1, distance_cost=0.05, per="sample", backend="reference")
    plan = mix.sample(B, (8, 12), importance=maps_of(B, 8, 12), images=x, seed=5)
    assert (plan.moves.own != torch.arange(6)).any()
    assert (plan.moves.lent != torch.arange(6)).any()
    mixed, m = fm.mix(x, plan, backend="reference"), plan.mask()
    for i, (row, column) in itertools.product(range(B), itertools.product(range(h), range(w))):

        def block(of, k):
            return of[..., k // w * 4 :, k % w * 4 :][..., :4, :4]

        place = row * w + column
        own = block(x[i], plan.moves.own[i, place]).double()
        lent = block(x[plan.partner[i]], plan.moves.lent[i, place]).double()
        weight = block(m[i], place).double()
        expected = weight * own + (1 - weight) * lent
        tolerance = {torch.float32: 1e-4, torch.float64: 1e-12, torch.bfloat16: 0.51, torch.uint8: 0.51}[dtype]
        assert (block(mixed[i], place).double() - expected).abs().max() <= tolerance


# ---- plans and modules


@pytest.mark.parametrize("per", ["batch", "pair", "sample"])
@pytest.mark.parametrize("sampling", ["host", "device"])
@pytest.mark.parametrize("transport", [True, False])
def test_plans(per, sampling, transport):
    """What is drawn is what MixUp draws; the same again by the same seed; no samples, one or two."""
    options = {"per": per, "sampling": sampling, "p": 0.7, **({"pairing": "flip"} if per == "pair" else {})}
    mix, drawn = fm.PuzzleMix(transport=transport, backend="reference", **options), fm.MixUp(**options)
    kept = set()
    for n, seed in itertools.product((0, 1, 2, B), range(4)):
        given = {"importance": maps_of(n, 6, 9), "images": images_of(n, 8, 12), "seed": seed}
        plan, again, plain = (
            mix.sample(n, (8, 12), **given),
            mix.sample(n, (8, 12), **given),
            drawn.sample(n, (8, 12), seed=seed),
        )
        assert torch.equal(plan.partner, plain.partner)
        assert torch.equal(plan.lam, plain.lam)
        assert plan.per is Per.SAMPLE
        assert plan.families is Families.LEVELS
        assert (plan.moves is not None) == transport
        assert torch.equal(plan.pixels, again.pixels)
        assert torch.allclose(plan.mask().double().flatten(1).mean(1), plan.weight, atol=1e-6)
        left = plan.lam == 1
        assert (plan.mask()[left] == 1).all()
        assert (plan.weight[left] == 1).all()
        if transport:
            assert (plan.moves.own[left] == torch.arange(16)).all()
        kept.update(left.tolist())
        x = images_of(n, 8, 12)
        assert torch.equal(fm.mix(x, plan, backend="reference")[left], x[left])
    assert kept == {True, False}


@pytest.mark.parametrize("name", [CPP])
def test_backends_make_one_plan(name):
    for seed, grid in enumerate([(1, 1), (2, 3), (4, 4), (8, 8), (16, 16)]):
        given = {"importance": maps_of(B, 48, 48), "images": images_of(B, 48, 48), "seed": seed}
        ours, theirs = (
            fm.PuzzleMix(cells=grid, per="sample", backend=backend).sample(B, (48, 48), **given)
            for backend in (name, "reference")
        )
        assert torch.equal(ours.pixels, theirs.pixels)
        assert torch.equal(ours.weight, theirs.weight)
        assert torch.equal(ours.moves.own, theirs.moves.own)


def test_a_batch_and_a_network():
    """The authors' maps, by the gradient of a small network; the network stays as it is; labels sum to 1."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 100, K))
    state = copy.deepcopy(net.state_dict())
    x, y = images_of(B, 12, 12), torch.arange(B) % K
    mix = fm.PuzzleMix(importance=fm.input_gradient(net), num_classes=K, backend="reference")
    mixed, targets = mix(x, y)
    assert mixed.shape == x.shape
    assert torch.allclose(targets.sum(1), torch.ones(B))
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name])
    assert all(p.grad is None for p in net.parameters())
    assert "cells=(4, 4)" in repr(mix)
    again = pickle.loads(pickle.dumps(mix))
    torch.manual_seed(1)
    one = mix(x, y)
    torch.manual_seed(1)
    assert torch.equal(again(x, y)[0], one[0])


def test_the_call_is_its_plan():
    """Maps that are given with a batch; dicts; in place where blocks don't move; sparse targets."""
    x, y, importance = images_of(B, 8, 8), torch.arange(B) % K, maps_of(B, 5, 7)
    for transport, targets in itertools.product((True, False), ("dense", "sparse")):
        mix = fm.PuzzleMix(
            num_classes=K, transport=transport, targets=targets, inplace=not transport, backend="reference"
        )
        given = x.clone()
        torch.manual_seed(3)
        out = mix({"image": given, "labels": y}, importance=importance)
        torch.manual_seed(3)
        plan = mix.sample(B, (8, 8), importance=importance, images=x)
        assert torch.equal(out["image"], fm.mix(x, plan, backend="reference"))
        assert (out["image"] is given) == (not transport)
        if targets == "sparse":
            assert torch.equal(out["labels"].weight, plan.weight)
        else:
            assert torch.equal(out["labels"], fm.mix_labels(y, plan, num_classes=K, backend="reference"))


def test_gradients_go_to_where_blocks_come_from():
    x = images_of(3, 4, 4, channels=1).double().requires_grad_()
    mix = fm.PuzzleMix(cells=2, distance_cost=0.05, per="sample", backend="reference")
    plan = mix.sample(3, (4, 4), importance=maps_of(3, 4, 4), images=x, seed=1)
    assert torch.autograd.gradcheck(lambda x: fm.mix(x, plan, backend="reference"), x, fast_mode=True)


def test_attributes_act_from_the_next_batch_on():
    given = {"importance": maps_of(B, 16, 16), "images": images_of(B, 16, 16), "seed": 1}
    mix = fm.PuzzleMix(backend="reference")
    mix.cells = 2
    assert mix.cells == (2, 2)
    assert mix.sample(B, (16, 16), **given).blocks == (2, 2)
    mix.eta, mix.beta, mix.gamma, mix.std = 0.0, 0.0, 0.0, [1.0, 2.0, 3.0]
    assert mix.std == (1.0, 2.0, 3.0)
    mix.cells = (4, 2)
    plan = mix.sample(B, (16, 16), importance=given["importance"])  # needs no images now
    s = shares(given["importance"], (4, 2))
    assert torch.equal(mask_of(plan, (4, 2)) == 0, s >= s[plan.partner])


def test_axes():
    """Images (B, H, W, C) and videos (B, T, C, H, W): the pixels that are compared are those of the images."""
    x, importance = images_of(B, 8, 12), maps_of(B, 8, 12)
    given = {"labels_getter": None, "backend": "reference", "std": (0.2, 0.3, 0.4)}
    out = []
    for axes, forth, back in (
        (None, lambda x: x, lambda x: x),
        ((1, 2), lambda x: x.permute(0, 2, 3, 1), lambda x: x.permute(0, 3, 1, 2)),
        ((-2, -1), lambda x: x[:, None].repeat(1, 2, 1, 1, 1), lambda x: x[:, 1]),
    ):
        torch.manual_seed(2)
        out.append(back(fm.PuzzleMix(axes=axes, **given)(forth(x), importance=importance)))
        assert torch.equal(out[-1], out[0])


@pytest.mark.parametrize("std", [1.0, (0.2, 0.3, 0.4)])
def test_in_a_graph(std):
    """One graph, which gives what eager mode gives."""
    x, y, importance = images_of(B, 8, 8), torch.arange(B) % K, maps_of(B, 8, 8)
    mix = fm.PuzzleMix(num_classes=K, distance_cost=0.05, std=std, backend="reference")
    compiled = torch.compile(lambda x, y: mix(x, y, importance=importance), backend="eager", fullgraph=True)
    torch.manual_seed(4)
    expected = mix(x, y, importance=importance)
    torch.manual_seed(4)
    assert all(map(torch.equal, compiled(x, y), expected))


@pytest.mark.skipif(NO_CUDA is not None, reason="needs a GPU")
@pytest.mark.parametrize("grid", [1, 4, 16])
def test_on_a_gpu(grid):
    """Nothing waits for it; the labels are those of the reference there."""
    x, importance = images_of(B, 48, 48).cuda(), maps_of(B, 48, 48).cuda()
    given = {"importance": importance, "images": x, "device": "cuda", "seed": 3}
    ours, theirs = (
        fm.PuzzleMix(cells=grid, per="sample", std=(0.2, 0.3, 0.4), distance_cost=0.05, backend=backend)
        for backend in ("cuda", "reference")
    )
    ours.sample(B, (48, 48), **given)
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        plan = ours.sample(B, (48, 48), **given)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    expected = theirs.sample(B, (48, 48), **given)
    assert torch.equal(plan.pixels, expected.pixels)
    assert torch.equal(plan.moves.own, expected.moves.own)
    assert torch.equal(plan.moves.lent, expected.moves.lent)


def test_nothing_waits_for_a_device():
    """Whatever is asked of tensors without values raises, which on a GPU would wait for it."""
    with FakeTensorMode():
        x, maps = torch.empty(B, 3, 16, 16), torch.empty(B, 16, 16)
        s, partner, lam = shares(maps, (4, 4)), torch.empty(B, dtype=torch.int64), torch.empty(B)
        unlike = torch.ops.fusedmix_cuda.border_costs(x, partner, torch.empty(3), (4, 4))
        costs = energies(s, unlike, partner, lam, Weights(1.2, 0.5, 0.2))
        assert [tuple(c.shape) for c in costs] == [(B, 4, 4, 3), (B, 4, 3), (B, 3, 4)]
        labels = torch.ops.fusedmix_cuda.label_grid(*costs)
        for arrange in (arrange_blocks, torch.ops.fusedmix_cuda.arrange_blocks):
            assert arrange(labels < 2, s, 0.8).shape == (B, 16)
    assert label_grid(*(torch.zeros(c.shape, dtype=torch.int32) for c in costs)).eq(0).all()
