"""Batches of detectors through the mixing modules: images, and targets of boxes, labels, masks and keypoints."""

from __future__ import annotations

import pytest
import torch
from torchvision import tv_tensors
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign, box_convert

import fusedmix as fm
from fusedmix.integrations.detection import weigh_boxes

B, SIZE = 5, (18, 26)
H, W = SIZE
MODULES = {
    "MixUp": fm.MixUp,
    "CutMix": fm.CutMix,
    "FMix": fm.FMix,
    "ResizeMix": fm.ResizeMix,
    "Mosaic": fm.Mosaic,
    "Cutout": lambda **options: fm.Cutout(ratio=0.6, **options),
}


def targets_of(form="XYXY", *, typed=True, seed=0):
    """Of 0 to 4 boxes each, in the format, with everything that belongs to a box, and what belongs to none."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(B):
        ends = torch.rand(i, 2, 2, generator=generator).sort(1).values
        boxes = ((0.2 * ends[:, :1] + 0.8 * ends) * torch.tensor([W, H])).flatten(1)
        rows, columns = torch.arange(H)[:, None], torch.arange(W)
        x1, y1, x2, y2 = boxes[:, :, None, None].unbind(1)
        masks = ((columns >= x1) & (columns < x2) & (rows >= y1) & (rows < y2)).to(torch.uint8)
        keypoints = torch.cat((boxes.reshape(i, 2, 2), torch.ones(i, 2, 1)), 2)
        boxes = box_convert(boxes, "xyxy", form.lower())
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format=form, canvas_size=SIZE) if typed else boxes,
            "labels": torch.arange(i) + 10 * i,
            "masks": tv_tensors.Mask(masks) if typed else masks,
            "keypoints": keypoints,
            "iscrowd": torch.arange(i) % 2,
            "area": torch.zeros(i),
            "image_id": torch.tensor([i]),
            "file": f"{i}.png",
        }
        made.append(target)
    return made


def drawn(mix, seed=0):
    torch.manual_seed(seed)
    return mix.sample(B, SIZE)


@pytest.mark.parametrize("form", ["XYXY", "XYWH", "CXCYWH"])
@pytest.mark.parametrize("name", MODULES)
def test_a_module_does_as_the_functions(name, form):
    mix, images, targets = MODULES[name](per="sample"), [torch.rand(3, *SIZE) for _ in range(B)], targets_of(form)
    plan = drawn(mix)
    torch.manual_seed(0)
    out, made = mix(tuple(images), targets)
    assert type(out) is tuple
    assert type(made) is list
    assert torch.stack(out).equal(fm.mix(torch.stack(images), plan))
    mixed = fm.mix_boxes([t["boxes"] for t in targets], [t["labels"] for t in targets], plan)
    masks = fm.mix_instances([t["masks"] for t in targets], mixed, plan)
    keypoints = fm.mix_keypoints([t["keypoints"] for t in targets], mixed, plan)
    crowds = mixed.take([t["iscrowd"] for t in targets])
    for i, (before, after) in enumerate(zip(targets, made, strict=True)):
        assert list(after) == [*before, "weights"]
        assert type(after["boxes"]) is tv_tensors.BoundingBoxes
        assert (after["boxes"].format.value, after["boxes"].canvas_size) == (form, SIZE)
        assert type(after["masks"]) is tv_tensors.Mask
        assert torch.Tensor(after["boxes"]).equal(mixed.boxes[i])
        assert after["weights"].equal(mixed.weight[i])
        assert after["labels"].equal(mixed.labels[i])
        assert after["iscrowd"].equal(crowds[i])
        assert torch.Tensor(after["masks"]).equal(masks[i])
        assert after["keypoints"].equal(keypoints[i])
        assert after["area"].equal(masks[i].flatten(1).sum(1).float())
        assert after["image_id"] is before["image_id"]
        assert after["file"] == f"{i}.png"
        assert len(before["boxes"]) == i  # What came is as it was.
    assert sum(len(t["boxes"]) for t in made)


@pytest.mark.parametrize("kind", [torch.Tensor, tv_tensors.Image], ids=lambda kind: kind.__name__)
def test_what_images_may_be(kind):
    images, targets = torch.rand(B, 3, *SIZE), targets_of(typed=False)
    mix = fm.CutMix(per="sample")
    plan = drawn(mix)
    expected = fm.mix(images, plan)
    torch.manual_seed(0)
    out, _ = mix([images.as_subclass(kind), tuple(targets)])
    assert type(out) is kind
    assert torch.Tensor(out).equal(expected)
    torch.manual_seed(0)
    out, made = mix([x.as_subclass(kind) for x in images], tuple(targets))
    assert type(made) is tuple
    assert {type(x) for x in out} == {kind}
    assert torch.stack([torch.Tensor(x) for x in out]).equal(expected)
    torch.manual_seed(0)
    written = images.clone()
    assert fm.CutMix(per="sample", inplace=True)(written, targets)[0] is written
    assert written.equal(expected)


def test_mixed_once_more():
    """Mosaic, then MixUp, as YOLO's trainers do: weights are multiplied, and areas of boxes are those of boxes."""
    targets = targets_of(typed=False)
    for target in targets:
        del target["masks"], target["keypoints"]
        target["weights"] = torch.full((len(target["boxes"]),), 0.5)
    mix = fm.MixUp(per="sample")
    plan = drawn(mix)
    mixed = fm.mix_boxes([t["boxes"] for t in targets], [t["labels"] for t in targets], plan)
    images = torch.rand(B, 3, *SIZE)
    torch.manual_seed(0)
    _, made = mix(images, targets)
    for i, target in enumerate(made):
        assert target["weights"].equal(0.5 * mixed.weight[i])
        x1, y1, x2, y2 = target["boxes"].unbind(1)
        torch.testing.assert_close(target["area"], (x2 - x1) * (y2 - y1))
    images, targets = fm.MixUp()(*fm.Mosaic(per="sample")(list(torch.rand(B, 3, *SIZE)), targets_of()))
    assert all(len(t["boxes"]) == len(t["weights"]) == len(t["masks"]) for t in targets)
    assert len(images) == B


def test_min_visible_is_a_keyword():
    images, targets = torch.rand(B, 3, *SIZE), targets_of()
    counts = []
    for min_visible in (0.0, 0.5, 1.0):
        torch.manual_seed(0)
        counts.append(sum(len(t["boxes"]) for t in fm.Mosaic(min_visible=min_visible)(images, targets)[1]))
    assert counts[0] > counts[1] > counts[2]


def test_modes_and_finishing():
    images, targets = torch.rand(B, 3, *SIZE), targets_of()
    mix = fm.CutMix(training_only=True).eval()
    batch = (images, targets)
    assert mix(batch) is batch
    how = fm.Finish(normalize=((0.5,) * 3, (0.2,) * 3))
    out, same = fm.CutMix(training_only=True, finish=how).eval()(images, targets)
    assert same is targets
    assert out.equal(fm.finish(images, how))
    out, made = fm.CutMix(finish=how)(images, targets)
    assert out.shape == images.shape
    assert all("weights" in target for target in made)


def detector():
    """A Faster R-CNN for images of 64x64 pixels, small enough for a CPU."""
    torch.manual_seed(0)
    backbone = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(16, 32, 3, 2, 1), torch.nn.ReLU()
    )
    backbone.out_channels = 32
    return FasterRCNN(
        backbone,
        rpn_anchor_generator=AnchorGenerator(((16, 32),), ((1.0,),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 4, 2),
        box_head=TwoMLPHead(32 * 16, 64),
        box_predictor=FastRCNNPredictor(64, 3),
        min_size=64,
        max_size=64,
        rpn_pre_nms_top_n_train=64,
        rpn_post_nms_top_n_train=16,
        box_batch_size_per_image=16,
    )


def squares(count, seed=0):
    """Images with a bright square in each, of one of two colours, and where it is."""
    generator = torch.Generator().manual_seed(seed)
    images, targets = 0.1 * torch.rand(count, 3, 64, 64, generator=generator), []
    for image in images:
        (x, y), side = torch.randint(2, 36, (2,), generator=generator).tolist(), 24
        label = int(torch.randint(2, (), generator=generator))
        image[label, y : y + side, x : x + side] = 1
        targets.append(
            {"boxes": torch.tensor([[x, y, x + side, y + side]]).float(), "labels": torch.tensor([label + 1])}
        )
    return list(images), targets


def losses_of(model, images, targets):
    torch.manual_seed(1)  # Proposals are drawn.
    return model(images, targets)


def test_weights_of_one_are_torchvisions_losses():
    images, targets = squares(3)
    targets[2] = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    expected = losses_of(detector(), images, targets)
    model = weigh_boxes(detector())
    torch.testing.assert_close(losses_of(model, images, targets), expected)
    ones = [{**target, "weights": torch.ones(len(target["boxes"]))} for target in targets]
    torch.testing.assert_close(losses_of(model, images, ones), expected)
    half = losses_of(model, images, [{**target, "weights": 0.5 * target["weights"]} for target in ones])
    torch.testing.assert_close(half["loss_box_reg"], expected["loss_box_reg"] / 2)
    assert half["loss_classifier"] < expected["loss_classifier"]
    torch.testing.assert_close(half["loss_rpn_box_reg"], expected["loss_rpn_box_reg"])
    assert model.eval()(images)[0].keys() == {"boxes", "labels", "scores"}


def test_models_that_cannot_weigh_boxes():
    with pytest.raises(TypeError, match="roi_heads of torchvision, but got Linear"):
        weigh_boxes(torch.nn.Linear(1, 1))
    model = detector()
    model.roi_heads.mask_roi_pool = model.roi_heads.mask_head = model.roi_heads.mask_predictor = torch.nn.Identity()
    with pytest.raises(ValueError, match="without heads for masks"):
        weigh_boxes(model)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["MixUp", "CutMix", "Mosaic"])
def test_faster_rcnn_learns_from_mixed_targets(name):
    """Losses of one mixed batch before and after steps on others. (That of the boxes rises before it falls: at first
    few proposals are matched with any.)"""
    images, targets = squares(8)
    mix, model = MODULES[name](per="sample"), weigh_boxes(detector())
    torch.manual_seed(0)
    seen = mix(images, targets)
    before = {key: float(loss.detach()) for key, loss in losses_of(model, *seen).items()}
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(40):
        losses = model(*mix(images, targets))
        assert all(loss.isfinite() for loss in losses.values())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    after = {key: float(loss.detach()) for key, loss in losses_of(model, *seen).items()}
    assert sum(after.values()) < 0.8 * sum(before.values())
    for key in ("loss_classifier", "loss_objectness"):
        assert after[key] < 0.7 * before[key]
