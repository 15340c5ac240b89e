"""Boxes mixed by a plan, against the pixels of the images: where each pixel came from says what is seen of a box."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors
from torchvision.ops import box_convert

import fusedmix as fm

B, SIZE = 6, (21, 30)
H, W = SIZE
FORMATS = ["xyxy", "xywh", "cxcywh"]

# Each pixel of one image, at its own scale.
CUTTING = {
    "CutMix": lambda: fm.CutMix(per="sample"),
    "FMix": lambda: fm.FMix(per="sample"),
    "GridMix": lambda: fm.GridMix(cells=(3, 4), per="sample"),
    "GridMix large": lambda: fm.GridMix(cells=(13, 14), per="sample"),
    "SaliencyMix": lambda: fm.SaliencyMix(per="sample", importance=lambda x: x.mean(1)),
    "RICAP": lambda: fm.RICAP(per="sample"),
    "Mosaic": lambda: fm.Mosaic(scale=(1, 1), per="sample"),
    "given boxes": lambda: fm.CutMix(placement="inside", per="sample"),
}
# Pixels of several images.
BLENDING = {
    "MixUp": lambda: fm.MixUp(per="sample"),
    "HMix": lambda: fm.HMix(per="sample"),
    "HMix paper": lambda: fm.HMix(per="sample", variant="paper"),
    "GMix": lambda: fm.GMix(per="sample"),
    "SmoothMix": lambda: fm.SmoothMix(shape="square", per="sample"),
    "FMix soft": lambda: fm.FMix(per="sample", max_soft=0.2),
    "RandomMix": lambda: fm.RandomMix([fm.MixUp(), fm.CutMix(), fm.HMix()], per="sample"),
    "SamplePairing": lambda: fm.SamplePairing(p=0.5, per="sample"),
    "Cutout": lambda: fm.Cutout(ratio=0.5, per="sample"),
    "GridMask": lambda: fm.GridMask(d1=6, d2=12, per="sample"),
}
OTHERS = {
    "ResizeMix": lambda: fm.ResizeMix(per="sample"),
    "SnapMix": lambda: fm.SnapMix(per="sample", importance=lambda x, y: x.mean(1)),
    "Mosaic scaled": lambda: fm.Mosaic(per="sample"),
    "MultiMix": lambda: fm.MultiMix(per="sample"),
}
EVERY = {**CUTTING, **BLENDING, **OTHERS}


def plan_of(name, seed=3, batch_size=B, size=SIZE):
    mix = EVERY[name]()
    looks = {}
    if name in ("SaliencyMix", "SnapMix"):
        looks["importance"] = torch.rand(batch_size, *size, generator=torch.Generator().manual_seed(seed))
        looks["labels"] = torch.zeros(batch_size, dtype=torch.int64)
    return mix.sample(batch_size, size, seed=seed, **looks)


def boxes_of(count, *, seed=0, batch_size=B, size=SIZE, step=1):
    """(B, N, 4) integers, corners in units of 1 / step pixels, none of them empty."""
    generator = torch.Generator().manual_seed(seed)
    sides = [side * step for side in reversed(size)]
    ends = [
        torch.stack([torch.randperm(side + 1, generator=generator)[:2] for _ in range(batch_size * count)])
        for side in sides
    ]
    first, stop = (torch.stack([end.sort(1).values[:, k] for end in ends], 1) for k in (0, 1))
    return torch.cat((first, stop), 1).reshape(batch_size, count, 4)


def labels_of(boxes):
    """A number for each box."""
    return torch.arange(boxes.shape[0] * boxes.shape[1]).reshape(boxes.shape[:2])


def lists(boxes):
    return [x.clone() for x in boxes]


def bounds(pixels):
    """The corners of the smallest box around the true pixels of (H, W)."""
    rows, columns = pixels.any(1).nonzero(), pixels.any(0).nonzero()
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


@pytest.mark.parametrize("min_visible", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", CUTTING)
def test_boxes_that_are_cut(name, min_visible):
    """Against the place that each pixel came from, which label maps of places show."""
    plan = plan_of(name)
    came = fm.mix_masks(torch.arange(B * H * W).reshape(B, H, W), plan)
    boxes = boxes_of(7)
    mixed = fm.mix_boxes(lists(boxes), lists(labels_of(boxes)), plan, min_visible=min_visible)
    assert mixed.valid is None
    total = 0
    for i in range(B):
        source, row, column = came[i] // (H * W), came[i] // W % H, came[i] % W
        expected = Counter()
        for j in range(B):
            for n, (x1, y1, x2, y2) in enumerate(boxes[j].tolist()):
                pixels = (source == j) & (row >= y1) & (row < y2) & (column >= x1) & (column < x2)
                if pixels.any() and pixels.sum() / ((x2 - x1) * (y2 - y1)) >= min_visible:
                    expected[(*bounds(pixels), j, n)] += 1
        found = Counter(
            (*box, j, n)
            for box, j, n in zip(
                mixed.boxes[i].tolist(), mixed.sample[i].tolist(), mixed.index[i].tolist(), strict=True
            )
        )
        assert found == expected
        assert mixed.labels[i].tolist() == (mixed.sample[i] * 7 + mixed.index[i]).tolist()
        assert mixed.weight[i].eq(1).all()
        total += len(mixed.boxes[i])
    assert total > 0


@pytest.mark.parametrize("name", BLENDING)
def test_boxes_that_are_blended(name):
    """Against means of the mask, of boxes whose corners are quarters of pixels: over quarters of its pixels."""
    plan = plan_of(name)
    boxes = boxes_of(5, step=4)
    mixed = fm.mix_boxes(boxes / 4, labels_of(boxes), plan, min_visible=0.25)
    masks = plan.mask().double().repeat_interleave(4, 1).repeat_interleave(4, 2)
    for i in range(B):
        expected = {}
        layers = [(0, i, masks[i]), (1, int(plan.partner[i]), 1 - masks[i])][: 1 if plan.fill is not None else 2]
        for layer, j, mask in layers:
            for n, (x1, y1, x2, y2) in enumerate(boxes[j].tolist()):
                inside = torch.zeros(4 * H, 4 * W, dtype=torch.bool)
                inside[y1:y2, x1:x2] = True
                shown = inside & (mask > 0)
                if shown.any() and shown.sum() / inside.sum() >= 0.25:
                    expected[layer, j, n] = ([c / 4 for c in bounds(shown)], float(mask[shown].mean()))
        kept = mixed.valid[i]
        keys = list(zip(*(x[i][kept].tolist() for x in (mixed.layer, mixed.sample, mixed.index)), strict=True))
        assert keys == sorted(expected, key=lambda key: (key[0], key[2]))
        assert mixed.boxes[i][kept].tolist() == [expected[key][0] for key in keys]
        torch.testing.assert_close(
            mixed.weight[i][kept].double(), torch.tensor([expected[key][1] for key in keys]).double(), rtol=0, atol=1e-6
        )


def test_mixup_weighs_as_gluoncv_does():
    lam = torch.tensor([0.3, 1.0, 0.0, 0.7])
    plan = fm.MixUp(per="sample").sample(4, SIZE, lam=lam)
    boxes = [boxes_of(3, seed=i, batch_size=1)[0].float() for i in range(4)]
    mixed = fm.mix_boxes(boxes, [torch.full((3,), i) for i in range(4)], plan)
    expected = [
        [(0, lam[0])] * 3 + [(3, 1 - lam[0])] * 3,
        [(1, 1.0)] * 3,
        [(1, 1.0)] * 3,
        [(3, lam[3])] * 3 + [(2, 1 - lam[3])] * 3,
    ]
    for i in range(4):
        assert mixed.labels[i].tolist() == [label for label, _ in expected[i]]
        assert mixed.weight[i].tolist() == [float(weight) for _, weight in expected[i]]
        assert mixed.boxes[i].equal(torch.cat([boxes[j] for j in dict.fromkeys(label for label, _ in expected[i])]))


def test_multimix_has_the_boxes_of_all_its_terms():
    plan = plan_of("MultiMix")
    boxes = boxes_of(2)
    mixed = fm.mix_boxes(boxes, labels_of(boxes), plan)
    shown = (plan.terms.weight > 0).repeat_interleave(2, 1)
    assert mixed.valid.sum(1).tolist() == shown.sum(1).tolist()
    assert mixed.sample.equal(torch.where(shown, plan.terms.partner.repeat_interleave(2, 1), 0))
    torch.testing.assert_close(mixed.weight, plan.terms.weight.repeat_interleave(2, 1).float())


@pytest.mark.parametrize("name", ["ResizeMix", "SnapMix"])
def test_boxes_that_are_resized(name):
    """By the places of corners; and a box of the whole image becomes the pasted one."""
    plan = plan_of(name)
    boxes = torch.cat((boxes_of(4), torch.tensor([0, 0, W, H]).expand(B, 1, 4)), 1).double()
    mixed = fm.mix_boxes(boxes, labels_of(boxes), plan, min_visible=0.2)
    for i in range(B):
        (top, left, bottom, right), (y0, x0, y1, x1) = (x[i, 0].tolist() for x in plan.patches[1:])
        expected, j = [], int(plan.partner[i])
        cut = torch.ones(SIZE, dtype=torch.bool)
        cut[top:bottom, left:right] = False
        for box in boxes[i].tolist():
            a, b, c, d = map(int, box)
            seen = torch.zeros(SIZE, dtype=torch.bool)
            seen[b:d, a:c] = cut[b:d, a:c]
            if seen.any() and seen.sum() / ((c - a) * (d - b)) >= 0.2:
                expected.append([*map(float, bounds(seen))])
        for a, b, c, d in boxes[j].tolist():
            across, down = (right - left) / max(x1 - x0, 1), (bottom - top) / max(y1 - y0, 1)
            in_crop = max(min(c, x1) - max(a, x0), 0) * max(min(d, y1) - max(b, y0), 0)
            if in_crop * across * down > 0 and in_crop / ((c - a) * (d - b)) >= 0.2:
                moved = [(v - x0) * across + left for v in (max(a, x0), min(c, x1))]
                moved += [(v - y0) * down + top for v in (max(b, y0), min(d, y1))]
                expected.append([moved[0], moved[2], moved[1], moved[3]])
        kept = mixed.boxes[i][mixed.valid[i]]
        torch.testing.assert_close(kept, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)
        if name == "ResizeMix" and bottom > top and right > left:
            assert kept[-1].tolist() == [left, top, right, bottom]


@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(sorted(EVERY)),
    size=st.tuples(st.integers(15, 40), st.integers(15, 40)),
    batch_size=st.integers(1, 5),
    count=st.integers(0, 6),
    seed=st.integers(0, 2**32),
    format=st.sampled_from(FORMATS),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int16]),
    normalized=st.booleans(),
    min_visible=st.sampled_from([0.0, 0.1, 0.6]),
)
def test_properties(name, size, batch_size, count, seed, format, dtype, normalized, min_visible):
    """No box outside the image and none empty, the order and the dtype kept, padded sets and lists alike."""
    if not dtype.is_floating_point:
        format, normalized = "xyxy" if format == "cxcywh" else format, False
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    sides = torch.tensor([width, height] * 2, dtype=torch.float64)
    corners = torch.randn(batch_size, count, 4, dtype=torch.float64, generator=generator) * sides + sides / 2
    corners = torch.cat(
        (torch.minimum(corners[..., :2], corners[..., 2:]), torch.maximum(corners[..., :2], corners[..., 2:])), -1
    )
    boxes = box_convert(corners / sides if normalized else corners, "xyxy", format).to(dtype)
    counts = torch.randint(0, count + 1, (batch_size,), generator=generator)
    plan, labels = plan_of(name, seed, batch_size, size), labels_of(boxes)
    options = {"format": format, "normalized": normalized, "min_visible": min_visible}
    mixed = fm.mix_boxes(boxes, labels, plan, valid=counts, **options)
    assert mixed.boxes.dtype == dtype
    assert mixed.labels.dtype == torch.int64
    assert mixed.weight.dtype == torch.float32

    back = box_convert(mixed.boxes.double(), format, "xyxy") * (sides if normalized else 1)
    kept, room = back[mixed.valid], 2 * max(size) * (torch.finfo(dtype).eps if dtype.is_floating_point else 0)
    assert (kept >= -room).all()
    assert (kept <= sides + room).all()
    assert (kept[:, :2] < kept[:, 2:]).all()
    assert (mixed.weight[mixed.valid] > 0).all()
    assert (mixed.weight[mixed.valid] <= 1).all()
    assert (mixed.index < counts[mixed.sample])[mixed.valid].all()
    assert mixed.valid.long().diff(dim=1).le(0).all()  # those that are kept come first
    place = (mixed.layer * (count + 1) + mixed.index).diff(dim=1)
    assert place[mixed.valid[:, 1:]].gt(0).all()
    assert mixed.labels.equal(mixed.take(labels))
    assert all(x[~mixed.valid].eq(0).all() for x in mixed)

    listed = fm.mix_boxes(
        [x[:n] for x, n in zip(boxes, counts, strict=True)],
        [y[:n] for y, n in zip(labels, counts, strict=True)],
        plan,
        **options,
    )
    for one, several in zip(mixed[:-1], listed[:-1], strict=True):
        assert all(x[k].equal(y) for x, k, y in zip(one, mixed.valid, several, strict=True))
    by_mask = torch.arange(count) < counts.unsqueeze(1)
    assert all(
        x.equal(y) for x, y in zip(mixed, fm.mix_boxes(boxes, labels, plan, valid=by_mask, **options), strict=True)
    )


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["MixUp", "CutMix", "RICAP", "ResizeMix", "FMix"])
def test_formats_are_torchvisions(name, format):
    plan = plan_of(name)
    boxes = boxes_of(6, step=4) / 4  # All that is computed with is exact, but where a crop is resized.
    corners = fm.mix_boxes(boxes, labels_of(boxes), plan)
    converted = box_convert(boxes, "xyxy", format)
    mixed = fm.mix_boxes(converted, labels_of(boxes), plan, format=format)
    expected = box_convert(corners.boxes, "xyxy", format)
    torch.testing.assert_close(mixed.boxes, expected, rtol=0, atol=1e-5 if name == "ResizeMix" else 0)
    wrapped = [tv_tensors.BoundingBoxes(x, format=format.upper(), canvas_size=SIZE) for x in converted]
    of_torchvision = fm.mix_boxes(wrapped, lists(labels_of(boxes)), plan)
    assert all(x.equal(y[k]) for x, y, k in zip(of_torchvision.boxes, mixed.boxes, mixed.valid, strict=True))
    # What is neither cut nor moved keeps its bits, whatever the format.
    awkward = box_convert(torch.rand(B, 6, 4).sort(-1).values * 14 + 0.1, "xyxy", format)
    same = fm.mix_boxes(awkward, labels_of(boxes), fm.MixUp(per="sample").sample(B, SIZE, seed=0), format=format)
    assert same.boxes.equal(torch.where(same.valid.unsqueeze(2), awkward[same.sample, same.index], 0))


def test_the_format_of_ultralytics():
    """class, cx, cy, w, h, all boxes of a batch in one tensor with the image of each: what is whole comes back."""
    plan = fm.MixUp(per="sample").sample(B, SIZE, seed=1)
    counts = torch.tensor([3, 0, 1, 4, 2, 2])
    image = torch.arange(B).repeat_interleave(counts)
    classes = torch.randint(80, (12, 1)).float()
    boxes = box_convert(boxes_of(12, batch_size=1)[0] / torch.tensor([W, H, W, H]), "xyxy", "cxcywh")
    batch = {"cls": classes, "bboxes": boxes, "batch_idx": image.float()}
    mixed = fm.mix_boxes(
        list(batch["bboxes"].split(counts.tolist())),
        list(batch["cls"].split(counts.tolist())),
        plan,
        format="cxcywh",
        normalized=True,
    )
    out = {
        "cls": torch.cat(mixed.labels),
        "bboxes": torch.cat(mixed.boxes),
        "batch_idx": torch.arange(B).repeat_interleave(torch.tensor([len(x) for x in mixed.boxes])).float(),
    }
    both = [torch.cat((image == i, image == plan.partner[i])).nonzero()[:, 0] % 12 for i in range(B)]
    order = torch.cat(both)
    assert out["cls"].equal(classes[order])
    assert out["batch_idx"].equal(torch.cat([torch.full((len(x),), float(i)) for i, x in enumerate(both)]))
    torch.testing.assert_close(out["bboxes"], boxes[order], rtol=0, atol=2 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("name", EVERY)
def test_padded_boxes_wait_for_no_device(name):
    """On the meta device nothing has a value that could be looked at."""
    plan, boxes = plan_of(name).to("meta"), boxes_of(4).float().to("meta")
    mixed = fm.mix_boxes(boxes, labels_of(boxes).to("meta"), plan)
    assert all(x.is_meta for x in mixed)
    assert mixed.boxes.shape == (B, mixed.sample.shape[1], 4)


@pytest.mark.parametrize("name", [*CUTTING, "MixUp"])
def test_everything_under_one_plan(name):
    """An image, a label map, boxes, the masks of instances and keypoints: the map under every box is of its object."""
    plan = plan_of(name)
    boxes = torch.tensor([[1, 2, 9, 8], [11, 1, 20, 12], [22, 3, 29, 20], [2, 10, 10, 19]]).expand(B, 4, 4)
    number = 1 + labels_of(boxes)
    maps = torch.zeros(B, H, W, dtype=torch.int64)
    instances = torch.zeros(B, 4, H, W, dtype=torch.uint8)
    for i in range(B):
        for n, (x1, y1, x2, y2) in enumerate(boxes[i].tolist()):
            maps[i, y1:y2, x1:x2] = number[i, n]
            instances[i, n, y1:y2, x1:x2] = 1
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    corners = torch.stack((boxes[..., :2] + 0.5, middle, boxes[..., 2:] - 0.5), 2)
    keypoints = torch.cat((corners, torch.full((B, 4, 3, 1), 2.0)), -1)
    mixed = fm.mix_boxes(lists(boxes), lists(number), plan, min_visible=0)
    images = fm.mix(maps.unsqueeze(1).double(), plan)
    of_instances = fm.mix_instances(lists(instances), mixed, plan)
    points = fm.mix_keypoints(lists(keypoints), mixed, plan)
    mixed_maps = None if name == "MixUp" else fm.mix_masks(maps, plan)
    for i in range(B):
        assert of_instances[i].dtype == torch.uint8
        assert points[i].dtype == torch.float32
        for box, label, weight, mask, its in zip(
            mixed.boxes[i].tolist(), mixed.labels[i], mixed.weight[i], of_instances[i].bool(), points[i], strict=True
        ):
            assert bounds(mask) == box
            if mixed_maps is None:
                part = images[i, 0][mask] - weight * label  # The rest is what the other image has there.
                assert (part >= -1e-5).all()
            else:
                assert mixed_maps[i].eq(label).equal(mask)
                assert images[i, 0].eq(label).equal(mask)
            for x, y, there in its.tolist():
                assert there in (0.0, 2.0)
                assert not there or mask[math.floor(y), math.floor(x)]
        if mixed_maps is not None:  # and no object is without a box
            assert set(mixed_maps[i].unique().tolist()) - {0} == set(mixed.labels[i].tolist())
    seen = sum(float((its[..., 2] > 0).sum()) for its in points)
    if name == "MixUp":
        assert seen == 3 * sum(len(x) for x in mixed.boxes)
    else:
        assert 0 < seen < 3 * sum(len(x) for x in mixed.boxes)

    padded = fm.mix_boxes(boxes, number, plan, min_visible=0)
    for of, listed, its in ((fm.mix_instances, of_instances, instances), (fm.mix_keypoints, points, keypoints)):
        made = of(its, padded, plan)
        assert made[~padded.valid].eq(0).all()
        assert all(x.equal(y[k]) for x, y, k in zip(listed, made, padded.valid, strict=True))


def test_a_scaled_mosaic():
    """The corner of a box that is seen is moved from the corner of an image to the centre by the scale of its part."""
    plan = plan_of("Mosaic scaled")
    boxes = boxes_of(6).double()
    mixed = fm.mix_boxes(boxes, labels_of(boxes), plan, min_visible=0)
    expected = []
    for i in range(B):
        of_sample = []
        for k in range(4):
            (top, left, bottom, right), (y0, x0, y1, x1) = (x[i, k].tolist() for x in plan.patches[1:])
            for n, (a, b, c, d) in enumerate(boxes[plan.patches.partner[i, k]].tolist()):
                a, c, b, d = max(a, x0), min(c, x1), max(b, y0), min(d, y1)
                if a < c and b < d:
                    across, down = (right - left) / (x1 - x0), (bottom - top) / (y1 - y0)
                    corners = [(a - x0) * across, (b - y0) * down, (c - x0) * across, (d - y0) * down]
                    of_sample.append([*(x + y for x, y in zip(corners, [left, top] * 2, strict=True)), k, n])
        expected.append(torch.tensor(of_sample, dtype=torch.float64))
    for i in range(B):
        found = torch.cat((mixed.boxes[i], mixed.layer[i, :, None], mixed.index[i, :, None]), 1)[mixed.valid[i]]
        torch.testing.assert_close(found, expected[i], rtol=0, atol=1e-9)


def test_points_without_a_visibility_are_moved():
    plan = plan_of("RICAP")
    boxes = boxes_of(3)
    mixed = fm.mix_boxes(boxes, labels_of(boxes), plan, min_visible=0)
    made = fm.mix_keypoints(boxes.reshape(B, 3, 2, 2), mixed, plan)
    moved = mixed.valid[:, :, None, None] * (plan.patches.boxes - plan.patches.crops)[..., [1, 0]].gather(
        1, mixed.layer.unsqueeze(2).expand(-1, -1, 2)
    ).unsqueeze(2)
    assert made.equal(mixed.take(boxes.reshape(B, 3, 2, 2)) + moved)


def test_a_cut_that_spans_a_box():
    """A side of a box moves where the cut spans the other one; 3/4 of it, 1/4, a corner, the middle and all of it."""
    cuts = torch.tensor([[0, 0, 10, 4], [0, 6, 10, 12], [4, 4, 9, 9], [0, 4, 10, 6], [0, 0, 10, 12]])
    plan = fm.MixPlan.from_parts(boxes=cuts, size=(10, 12), partner=torch.arange(5).roll(1))
    boxes = [torch.tensor([[0, 1, 8, 5]])] + [torch.tensor([[2, 2, 8, 6]])] * 4
    mixed = fm.mix_boxes(boxes, [torch.zeros(1)] * 5, plan)
    own = [
        [box for box, layer in zip(*of, strict=True) if layer == 0]
        for of in zip((x.tolist() for x in mixed.boxes), (x.tolist() for x in mixed.layer), strict=True)
    ]
    assert own == [[[4, 1, 8, 5]], [[2, 2, 6, 6]], [[2, 2, 8, 6]], [[2, 2, 8, 6]], []]


def test_no_boxes():
    plan = plan_of("CutMix")
    boxes = (
        [torch.zeros(0, 4)] * 2
        + [torch.tensor([[3.0, 3, 3, 9], [2, 2, 8, 8], [-5, -5, 0, 0]])]
        + [torch.zeros(0, 4)] * 3
    )
    mixed = fm.mix_boxes(boxes, [torch.zeros(len(x), dtype=torch.int16) for x in boxes], plan, min_visible=0)
    assert {tuple(x.shape[1:]) for x in mixed.boxes} == {(4,)}
    assert {x.dtype for x in mixed.labels} == {torch.int16}
    assert {int(n) for index in mixed.index for n in index} == {1}  # Those that are empty or outside have gone.
    assert [len(x) for x in fm.mix_instances([torch.zeros(len(x), *SIZE) for x in boxes], mixed, plan)] == list(
        map(len, mixed.boxes)
    )
    none = fm.mix_boxes([], [], fm.CutMix().sample(0, SIZE))
    assert none.boxes == []
    assert none.take([]) == []
    padded = fm.mix_boxes(torch.zeros(B, 0, 4), torch.zeros(B, 0), plan)
    assert padded.boxes.shape == (B, 0, 4)
    assert fm.mix_instances(torch.zeros(B, 0, *SIZE), padded, plan).shape == (B, 0, *SIZE)
    assert fm.mix_keypoints(torch.zeros(B, 0, 5, 3), padded, plan).shape == (B, 0, 5, 3)
