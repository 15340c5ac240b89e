"""SaliencyMix, Attentive CutMix and SnapMix: their plans against the papers' formulas in NumPy, and what is mixed by
them against torch."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import fusedmix as fm
from conftest import Counting, images_of, refused
from maps import linear, weights_of

SIZES = ((32, 41), (57,), (9, 16, 13))
DRAWS = [
    ("batch", "roll", "host"),
    ("batch", "random", "device"),
    ("pair", "flip", "host"),
    ("pair", "flip", "device"),
    ("sample", "roll", "host"),
    ("sample", "random", "device"),
    ("sample", "same_class", "device"),
    ("sample", "cross_class", "host"),
]
SMALL = [(batch_size, DRAWS[0 if batch_size else 5]) for batch_size in (2, 1, 0)]
LABELS = torch.arange(11) * 7 % 4


def maps_of(batch_size, size, seed=0):
    """Maps of other sides than the images."""
    return images_of((batch_size, *(side // 3 + 2 for side in size)), torch.float32, seed)


def keywords(per, pairing, sampling):
    return {"per": per, "pairing": pairing, "sampling": sampling, "backend": "reference"}


def root(share, d):
    """Of a share of the image, that of a side."""
    share = 1.0 - float(share)
    return float(np.float32(share ** (1 / 3))) if d == 3 else share ** (1 / d)


def around(centre, lam, size):
    """CutMix's box: half of a side is rounded down, and the image clips it."""
    halves = [int(side * root(lam, len(size))) // 2 for side in size]
    return [slice(max(c - h, 0), min(c + h, s)) for c, h, s in zip(centre, halves, size, strict=True)]


def check_cuts(plan, boxes):
    """The masks are 0 in those boxes and 1 around them, and the label weights are their means."""
    for mask, weight, box in zip(plan.mask(), plan.weight, boxes, strict=True):
        expected = torch.ones(plan.size)
        expected[tuple(box)] = 0
        assert torch.equal(mask, expected)
        assert float(weight) == 1 - int((expected == 0).sum()) / math.prod(plan.size)


# ---- SaliencyMix -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_size", "draws"), [*((11, draws) for draws in DRAWS), *SMALL], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_saliencymix(batch_size, size, draws):
    """λ and partners are CutMix's, and each box is around the pixel in the middle of its partner's largest value."""
    maps, options = maps_of(batch_size, size), keywords(*draws)
    given = {"labels": LABELS[:batch_size], "seed": 5}
    plan = fm.SaliencyMix(alpha=0.7, **options).sample(batch_size, size, importance=maps, **given)
    cut = fm.CutMix(alpha=0.7, **options).sample(batch_size, size, **given)
    assert torch.equal(plan.partner, cut.partner)
    assert torch.equal(plan.lam, cut.lam)
    boxes = []
    for lam, partner in zip(plan.lam, plan.partner, strict=True):
        of = maps[partner].numpy()
        place = np.unravel_index(of.argmax(), of.shape)
        centre = [int((p + 0.5) * side / own) for p, side, own in zip(place, size, of.shape, strict=True)]
        boxes.append(around(centre, lam, size))
    check_cuts(plan, boxes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8], ids=str)
def test_saliencymix_copies(dtype):
    x, maps = images_of((6, 3, 17, 22), dtype), maps_of(6, (17, 22))
    plan = fm.SaliencyMix(per="sample").sample(6, (17, 22), importance=maps, seed=1)
    expected = torch.where(plan.mask()[:, None] == 1, x, x[plan.partner])
    assert torch.equal(fm.mix(x, plan), expected)
    assert torch.equal(fm.mix_(x.clone(), plan), expected)


def test_saliencymix_of_a_batch():
    """A step is the plan of the same seed by the saliency of the images, in place too."""
    x, y = images_of((6, 3, 40, 28), torch.float32), torch.arange(6)
    mix = fm.SaliencyMix(num_classes=6)
    plan = mix.sample(6, (40, 28), importance=fm.spectral_saliency(x), seed=3)
    assert 0 < plan.weight.min() < 1
    for other in (mix, fm.SaliencyMix(num_classes=6, importance=fm.spectral_saliency, inplace=True)):
        torch.manual_seed(3)
        images, targets = other(x.clone(), y)
        assert torch.equal(images, fm.mix(x, plan))
        assert torch.equal(targets, fm.mix_labels(y, plan, num_classes=6))


# ---- Attentive CutMix ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cells", "top"), [((7, 7), 6), ((1, 3), 3), ((12, 13), 50), ((32, 41), 1)], ids=str)
@pytest.mark.parametrize("draws", [DRAWS[0], DRAWS[3], DRAWS[7]], ids="-".join)
def test_attentive_cutmix(cells, top, draws):
    """The cells of the largest means of the partner's map are the partner's."""
    size, maps = (32, 41), maps_of(9, (96, 123))
    plan = fm.AttentiveCutMix(cells=cells, top=top, **keywords(*draws)).sample(
        9, size, importance=maps, labels=LABELS[:9], seed=2
    )
    rows, columns = (np.arange(side) * count // side for side, count in zip(size, cells, strict=True))
    for mask, weight, lam, partner in zip(plan.mask(), plan.weight, plan.lam, plan.partner, strict=True):
        means = weights_of(maps[partner].double().numpy(), cells)
        lent = np.zeros(means.size)
        lent[np.argsort(-means.ravel(), kind="stable")[:top]] = 1
        expected = 1 - lent.reshape(cells)[rows][:, columns]
        assert torch.equal(mask, torch.from_numpy(expected).float())
        assert float(weight) == pytest.approx(expected.mean(), abs=1e-15)
        assert float(lam) == pytest.approx(1 - top / means.size, abs=1e-7)


def test_attentive_cutmix_takes_the_first_of_equal_cells():
    plan = fm.AttentiveCutMix(cells=(2, 4), top=3).sample(2, (8, 8), importance=torch.ones(2, 5, 5))
    assert plan.mask()[:, ::4, ::2].flatten(1).tolist() == [[0, 0, 0, 1, 1, 1, 1, 1]] * 2


@pytest.mark.parametrize("cells", [(4, 5), (12, 13)], ids=str)
def test_attentive_cutmix_by_a_given_lambda(cells):
    """The nearest whole number to 1-λ of the cells."""
    lam = torch.tensor([0.0, 0.5, 0.77, 1.0])
    plan = fm.AttentiveCutMix(cells=cells).sample(4, (24, 26), importance=maps_of(4, (24, 26)), lam=lam)
    count = math.prod(cells)
    lent = torch.tensor([round((1 - v) * count) for v in lam.tolist()])
    shown = plan.mask()[:, [(24 * a + cells[0] - 1) // cells[0] for a in range(cells[0])]]
    shown = shown[:, :, [(26 * b + cells[1] - 1) // cells[1] for b in range(cells[1])]]
    assert torch.equal((shown == 0).sum((1, 2)), lent)


def test_attentive_cutmix_of_signals_and_volumes():
    for cells, size in (((5,), (23,)), ((2, 3, 2), (7, 9, 8))):
        maps = images_of((4, *cells), torch.float32)
        plan = fm.AttentiveCutMix(cells=cells, top=2, axes=range(-len(size), 0)).sample(4, size, importance=maps)
        for mask, partner in zip(plan.mask(), plan.partner, strict=True):
            least = maps[partner].flatten().topk(2).values.min()
            at = [torch.arange(side) * count // side for side, count in zip(size, cells, strict=True)]
            assert torch.equal(mask == 0, maps[partner][torch.meshgrid(*at, indexing="ij")] >= least)


# ---- SnapMix ---------------------------------------------------------------------------------------------------------


def slices(box):
    d = len(box) // 2
    return tuple(slice(int(a), int(b)) for a, b in zip(box[:d], box[d:], strict=True))


def snap_weights(plan, maps, labels, variant):
    """Huang et al.: 1 - Σ SPM_a in A and Σ SPM_b in B, and what the released code does besides."""
    shares = []
    for one in maps.double().numpy():
        one = linear(one, plan.size) if one.ndim == 2 else one
        one = one - one.min()
        shares.append(one / one.sum() if one.sum() else one * np.nan)
    found = []
    for i, partner in enumerate(plan.partner.tolist()):
        a, b = slices(plan.patches.boxes[i, 0]), slices(plan.patches.crops[i, 0])
        area = torch.ones(plan.size)[a].numel() / math.prod(plan.size)
        if not area:
            found.append((1.0, 0.0))
            continue
        own, lent = 1 - shares[i][a].sum(), shares[partner][b].sum()
        if variant == "released" and labels is not None and labels[i] == labels[partner]:
            own, lent = own + lent, lent + own
        found.append((1 - area if np.isnan(own) else own, area if np.isnan(lent) else lent))
    return torch.tensor(found, dtype=torch.float64).reshape(-1, 2)


@pytest.mark.parametrize(("batch_size", "draws"), [*((11, draws) for draws in DRAWS), *SMALL], ids=str)
@pytest.mark.parametrize("variant", ["released", "paper"])
def test_snapmix(variant, batch_size, draws):
    size, maps = (32, 41), maps_of(batch_size, (32, 41))
    maps[3:4] = 2.3  # a constant says nothing
    given = {"labels": LABELS[:batch_size], "seed": 6}
    plan = fm.SnapMix(variant=variant, **keywords(*draws)).sample(batch_size, size, importance=maps, **given)
    cut = fm.CutMix(alpha=5.0, **keywords(*draws)).sample(batch_size, size, **given)
    assert torch.equal(plan.partner, cut.partner)
    assert torch.equal(plan.lam, cut.lam)
    assert torch.equal(plan.mask(), cut.mask())  # B is never empty here
    check_cuts(plan, [slices(box) for box in plan.patches.boxes[:, 0]])
    assert torch.equal(plan.patches.partner, plan.partner[:, None])
    each = torch.arange(batch_size)
    assert torch.equal(plan.terms.partner, torch.stack((each, plan.partner), 1))
    torch.testing.assert_close(
        plan.terms.weight, snap_weights(plan, maps, given["labels"], variant), rtol=1e-5, atol=1e-6
    )
    if batch_size == 11:
        boxes, crops = plan.patches.boxes[:, 0], plan.patches.crops[:, 0]
        assert {"batch": 1, "pair": 6, "sample": 11}[draws[0]] == len(crops.unique(dim=0))
        assert not torch.equal(boxes, crops)


def test_snapmix_without_labels_is_the_papers():
    maps = maps_of(8, (32, 41))
    plan, paper = (
        fm.SnapMix(variant=v).sample(8, (32, 41), importance=maps, seed=1, labels=labels)
        for v, labels in (("released", None), ("paper", torch.zeros(8, dtype=torch.int64)))
    )
    assert torch.equal(plan.terms.weight, paper.terms.weight)
    soft = F.one_hot(torch.tensor([0, 1, 1, 2, 3, 3, 3, 0]), 4).float()
    by_soft, by_class = (
        fm.SnapMix().sample(8, (32, 41), importance=maps, seed=1, labels=y) for y in (soft, soft.argmax(1))
    )
    assert torch.equal(by_soft.terms.weight, by_class.terms.weight)
    assert not torch.equal(by_soft.terms.weight, paper.terms.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.uint8], ids=str)
def test_snapmix_pastes_the_resized_crop(dtype):
    """As torch resizes it, of each sample by itself."""
    x, maps = images_of((7, 3, 32, 41), dtype), maps_of(7, (32, 41))
    plan = fm.SnapMix(per="sample", backend="reference").sample(7, (32, 41), importance=maps, seed=4)
    found = fm.mix(x, plan, backend="reference")
    for i, partner in enumerate(plan.partner.tolist()):
        a, b = slices(plan.patches.boxes[i, 0]), slices(plan.patches.crops[i, 0])
        crop, expected = x[partner][(slice(None), *b)].double(), x[i].double().clone()
        shape = expected[0][a].shape
        expected[(slice(None), *a)] = F.interpolate(crop[None], shape, mode="bilinear", align_corners=True)[0]
        at = {torch.uint8: 0.51, torch.float16: 0.01, torch.float32: 1e-5}.get(dtype, 1e-6)
        assert (found[i].double() - expected).abs().max() <= at


def test_snapmix_where_nothing_is_mixed():
    """By p, by λ = 1, by lam_range, and where a box has no pixel."""
    maps, x = maps_of(64, (9, 8)), images_of((64, 3, 9, 8), torch.float32)
    mix = fm.SnapMix(per="sample", p=0.5, alpha=0.4, backend="reference")
    plan = mix.sample(64, (9, 8), importance=maps, seed=1)
    boxes, crops = (of[:, 0].reshape(64, 2, 2).diff(dim=1).prod(2).flatten() for of in plan.patches[1:])
    assert torch.equal(boxes == 0, crops == 0)
    assert 16 < int((boxes == 0).sum()) < 64
    left = boxes == 0
    assert torch.equal(plan.terms.weight[left], torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(left.sum(), 2))
    assert torch.equal(fm.mix(x, plan, backend="reference")[left], x[left])
    assert (plan.terms.weight[~left, 1] > 0).all()
    for whole in (
        mix.sample(64, (9, 8), importance=maps, lam=1.0),
        fm.SnapMix(lam_range=(1.0, 1.0)).sample(64, (9, 8), importance=maps),
        fm.SnapMix(training_only=True).eval().sample(64, (9, 8), importance=maps),
    ):
        assert (whole.patches.boxes[:, 0, :2] == whole.patches.boxes[:, 0, 2:]).all()
        assert (whole.terms.weight == torch.tensor([1.0, 0.0])).all()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_snapmix_boxes_have_one_law_and_are_independent(size):
    """The box in the partner is drawn as CutMix's: the moments of its area and place, within 4 standard errors."""
    n = 4000
    plan = fm.SnapMix(per="sample", alpha=2.0).sample(n, size, importance=torch.rand(n, *[1] * len(size)), seed=8)
    cut = fm.CutMix(per="sample", alpha=2.0).sample(n, size, seed=9)
    d = len(size)
    own, lent = (of[:, 0].double() for of in plan.patches[1:])
    drawn = torch.cat((cut.geometry[:, 3 - d : 3], cut.geometry[:, 6 - d :]), 1).double()

    def moments(box):
        sides, middle = box[:, d:] - box[:, :d], box[:, d:] + box[:, :d]
        return torch.cat((sides, sides.prod(1, keepdim=True), middle, sides.square(), middle.square()), 1)

    (drawn, drawn_b), kept = (moments(drawn), moments(lent)), (lent[:, :d] < lent[:, d:]).all(1)
    kept_cut = moments(cut.geometry[:, [*range(3 - d, 3), *range(6 - d, 6)]].double())[:, d] > 0
    a, b = drawn[kept_cut], drawn_b[kept]
    error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
    assert ((a.mean(0) - b.mean(0)).abs() < 4 * error).all()
    pairs = torch.stack((moments(own)[kept][:, d], b[:, d], moments(own)[kept][:, d + 1], b[:, d + 1]))
    correlations = pairs.corrcoef()
    assert abs(correlations[0, 1]) < 4 / math.sqrt(len(b))
    assert abs(correlations[2, 3]) < 4 / math.sqrt(len(b))


def test_snapmix_of_a_batch():
    """A step by a network's maps of the labels; its targets and its loss weigh both labels as the plan says."""
    x, y = images_of((6, 3, 24, 26), torch.float32), torch.tensor([0, 1, 1, 2, 3, 3])
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 4)
    )
    importance = fm.class_activation_map(net, "0")
    mix = fm.SnapMix(num_classes=4, per="sample", sampling="host", importance=importance, backend="reference")
    plan = mix.sample(6, (24, 26), importance=importance(x, y), labels=y, seed=3)
    torch.manual_seed(3)
    images, targets = mix(x, y)
    assert torch.equal(images, fm.mix(x, plan, backend="reference"))
    one_hot = F.one_hot(y, 4).double()
    expected = (plan.terms.weight[:, :, None] * one_hot[plan.terms.partner]).sum(1)
    torch.testing.assert_close(targets.double(), expected, rtol=1e-6, atol=1e-6)
    assert (targets.sum(1) - 1).abs().min() > 1e-3
    logits = net(images)
    loss = -(expected * logits.double().log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(fm.mix_cross_entropy(logits, y, plan).double(), loss, rtol=1e-5, atol=1e-6)


# ---- What they share -------------------------------------------------------------------------------------------------

MODULES = {
    "SaliencyMix": fm.SaliencyMix,
    "AttentiveCutMix": lambda **kw: fm.AttentiveCutMix(cells=(4, 5), **kw),
    "AttentiveCutMix-large": lambda **kw: fm.AttentiveCutMix(cells=(12, 13), top=40, **kw),
    "SnapMix": fm.SnapMix,
}


@pytest.fixture(params=MODULES, ids=str)
def make(request):
    return MODULES[request.param]


def same(a, b):
    """Whether two plans have the same tensors."""
    return all(torch.equal(x, y) for x, y in zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True))


def test_a_seed_says_what_is_drawn(make):
    maps = maps_of(7, (24, 26))
    for options in ({}, {"per": "sample"}, {"per": "pair", "p": 0.5}, {"pairing": "random", "sampling": "device"}):
        mix = make(**options)
        plan = mix.sample(7, (24, 26), importance=maps, seed=11)
        assert same(plan, mix.sample(7, (24, 26), importance=maps, seed=11))
        torch.manual_seed(2)
        first = mix.sample(7, (24, 26), importance=maps)
        torch.manual_seed(2)
        assert same(first, mix.sample(7, (24, 26), importance=maps))


def test_maps_come_with_the_batch_or_from_a_function(make):
    """Given, found by the module's function or by the one of the call, which may ask for the labels."""
    x, y = images_of((6, 3, 24, 26), torch.float32), torch.arange(6) % 4
    maps = x.square().mean(1)
    labelled = lambda images, labels: images.square().mean(1) * (labels + 1)[:, None, None]  # noqa: E731
    mix = make(num_classes=4, labels_getter=None)

    def stepped(mix, **given):
        torch.manual_seed(1)
        return mix(x, **given)

    plain = stepped(mix, importance=maps)
    assert not torch.equal(plain, x)
    assert torch.equal(plain, stepped(mix, importance=lambda images: images.square().mean(1)))
    assert torch.equal(plain, stepped(make(labels_getter=None, importance=lambda images: images.square().mean(1))))
    torch.manual_seed(1)
    plan = make().sample(6, (24, 26), importance=labelled(x, y), labels=y)
    found = []
    with_labels = make(importance=lambda images, labels: found.append(labels) or labelled(images, labels))
    torch.manual_seed(1)
    made = with_labels._plan_of(x, (24, 26), y, None, None)
    assert found[0] is y
    assert same(plan, made)


def test_no_gradient_flows_into_maps_nor_is_one_recorded(make):
    maps = maps_of(4, (24, 26)).requires_grad_()
    assert not any(t.requires_grad for t in pytree.tree_leaves(make().sample(4, (24, 26), importance=maps)))
    seen = []
    mix = make(importance=lambda images: seen.append(torch.is_grad_enabled()) or maps, labels_getter=None)
    mix(torch.rand(4, 3, 24, 26))
    assert seen == [False]


def test_training_only_leaves_batches_as_they_are(make):
    x, y = torch.rand(4, 3, 24, 26), torch.arange(4)
    mix = make(training_only=True, num_classes=4, importance=lambda images: 1 / 0).eval()
    with refused(ZeroDivisionError, "zero"):
        mix.train()(x, y)
    images, labels = mix.eval()(x, y)
    assert images is x
    assert labels is y


def test_an_empty_batch_asks_no_function(make):
    mix = make(importance=lambda images: 1 / 0, labels_getter=None)
    assert mix(torch.rand(0, 3, 24, 26)).shape == (0, 3, 24, 26)


def test_videos_and_channels_last():
    """Built-in saliency looks at the dims of the masks, whatever lies between them and the batch."""
    x = images_of((4, 3, 24, 26), torch.float32)
    frames = x.unsqueeze(1).expand(4, 5, 3, 24, 26).contiguous()

    def peaks(mix, images):
        torch.manual_seed(0)
        return mix(images)

    of_images = peaks(fm.SaliencyMix(labels_getter=None), x)
    assert torch.equal(peaks(fm.SaliencyMix(labels_getter=None, axes=(1, 2)), x.movedim(1, 3)), of_images.movedim(1, 3))
    grey = frames.mean((1, 2))  # of 15 channels
    torch.manual_seed(0)
    plan = fm.SaliencyMix().sample(4, (24, 26), importance=fm.spectral_saliency(grey[:, None]))
    assert torch.equal(peaks(fm.SaliencyMix(labels_getter=None, axes=(-2, -1)), frames), fm.mix(frames, plan))


def test_label_maps(make):
    """They take what the images take, by the nearest pixel where that is resized."""
    maps = torch.randint(0, 7, (6, 24, 26), generator=torch.Generator().manual_seed(0))
    plan = make(per="sample", backend="reference").sample(6, (24, 26), importance=maps_of(6, (24, 26)), seed=1)
    expected = torch.where(plan.mask() == 1, maps, maps[plan.partner])
    for i in range(6 if plan.patches else 0):
        (a, b), (c, d) = slices(plan.patches.boxes[i, 0]), slices(plan.patches.crops[i, 0])
        rows, columns = (
            of.start + torch.arange(to.stop - to.start) * (of.stop - of.start) // max(to.stop - to.start, 1)
            for to, of in ((a, c), (b, d))
        )
        expected[i, a, b] = maps[plan.partner[i]][rows][:, columns]
    assert torch.equal(fm.mix_masks(maps, plan), expected)


def test_a_network_stays_out_of_the_module(make):
    """It is no part of it: neither its parameters nor its state."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 1, 3, padding=1), torch.nn.Flatten(0, 1))
    mix = make(importance=network, labels_getter=None)
    mix.importance = network
    assert not list(mix.parameters())
    assert not mix.state_dict()
    assert mix(torch.rand(4, 3, 24, 26)).shape == (4, 3, 24, 26)


def test_copies_and_pickles(make):
    maps = maps_of(5, (24, 26))
    mix = make(per="sample", importance=fm.spectral_saliency)
    plan = mix.sample(5, (24, 26), importance=maps, seed=1)
    for other in (copy.deepcopy(mix), pickle.loads(pickle.dumps(mix))):
        assert repr(other) == repr(mix)
        assert other.importance is fm.spectral_saliency
        assert same(plan, other.sample(5, (24, 26), importance=maps, seed=1))
    assert "spectral_saliency" in repr(mix)


@pytest.mark.parametrize("name", [pytest.param("SaliencyMix", marks=pytest.mark.thorough), "SnapMix"])
def test_compiled(name):
    """Into one graph with the saliency, and the batch is that of the module itself."""
    mix = MODULES[name](sampling="device", importance=fm.spectral_saliency, num_classes=6, backend="reference")
    x, y, graphs = images_of((6, 3, 24, 26), torch.float32), torch.arange(6), Counting()
    torch.manual_seed(4)
    made = torch.compile(lambda *batch: mix(*batch), backend=graphs, fullgraph=True)(x, y)
    torch.manual_seed(4)
    for found, expected in zip(made, mix(x, y), strict=True):
        torch.testing.assert_close(found, expected)
    assert graphs.graphs == 1


class NoCopies(TorchDispatchMode):
    """Refuses what would wait for a GPU: a value that is read, and a copy between it and the host."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        devices = {x.device.type for x in pytree.tree_leaves((args, out)) if isinstance(x, torch.Tensor) and x.ndim}
        assert len(devices) < 2, function
        return out


@pytest.mark.parametrize("labels", [False, True])
def test_nothing_waits_for_the_device(make, labels):
    """On tensors that have no values, only a device: what is read of them is an error."""
    plan, mix = make().sample(6, (24, 26), importance=torch.rand(6, 5, 5)), make(per="sample")
    plan = pytree.tree_map(lambda x: x, plan)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = pytree.tree_map(lambda x: torch.empty(x.shape, dtype=x.dtype, device="cuda"), plan)
        seed, maps = torch.empty((), dtype=torch.int64, device="cuda"), torch.empty(6, 5, 5, device="cuda")
        y = torch.empty(6, dtype=torch.int64, device="cuda") if labels else None
        with NoCopies():
            made = mix._by_maps(fake, mix._request(6, (24, 26)), seed, maps, y)
        assert {x.device.type for x in pytree.tree_leaves(made)} == {"cuda"}
    with FakeTensorMode(), NoCopies(), pytest.raises(AssertionError, match="copy"):
        torch.tensor([1, 2], device="cuda")
