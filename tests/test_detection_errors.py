"""Wrong calls of what mixes boxes, the masks of instances and keypoints."""

from __future__ import annotations

import pytest
import torch
from torchvision import tv_tensors

import fusedmix as fm
from wrong_calls import PLAN, X, check, wrong_type, wrong_value

BOXES = torch.tensor([1.0, 1, 5, 6]).expand(4, 3, 4)
LABELS = torch.zeros(4, 3)
MIXED = fm.mix_boxes(BOXES, LABELS, PLAN)
LISTED = fm.mix_boxes(list(BOXES), list(LABELS), PLAN)
SIGNALS = fm.MixUp().sample(4, (8,))
MOVES = fm.PuzzleMix(cells=2).sample(4, (8, 8), images=X, importance=X[:, 0])
ELSEWHERE = fm.CutMix().sample(4, (8, 8), other_size=2)


def of_torchvision(format, size=(8, 8), width=4, dtype=torch.float32):
    return [tv_tensors.BoundingBoxes(torch.ones(3, width), format=format, canvas_size=size, dtype=dtype)] * 4


CALLS = {
    "boxes a number": wrong_type(lambda: fm.mix_boxes(1.0, LABELS, PLAN), "boxes must be a tensor, or a list", "float"),
    "boxes without a batch": wrong_value(
        lambda: fm.mix_boxes(BOXES[:, 0], LABELS, PLAN), "boxes must be (batch_size, n, 4)", "(4, 4)"
    ),
    "boxes of another batch": wrong_value(lambda: fm.mix_boxes(BOXES[:3], LABELS[:3], PLAN), "boxes", "3 != 4"),
    "integer centres": wrong_value(
        lambda: fm.mix_boxes(BOXES.long(), LABELS, PLAN, format="cxcywh"), "boxes", "float32", "cxcywh", "int64"
    ),
    "integer shares": wrong_value(
        lambda: fm.mix_boxes(BOXES.long(), LABELS, PLAN, normalized=True), "boxes", "normalized", "int64"
    ),
    "format": wrong_value(
        lambda: fm.mix_boxes(BOXES, LABELS, PLAN, format="yolo"), "format", "'yolo'", "Did you mean 'cxcywh'?"
    ),
    "normalized": wrong_type(lambda: fm.mix_boxes(BOXES, LABELS, PLAN, normalized=1), "normalized must be a bool"),
    "min_visible": wrong_value(
        lambda: fm.mix_boxes(BOXES, LABELS, PLAN, min_visible=10), "min_visible must be in [0, 1], but got 10"
    ),
    "labels too few": wrong_value(
        lambda: fm.mix_boxes(BOXES, LABELS[:, :2], PLAN), "labels must be of shape (4, 3, '...')", "(4, 2)"
    ),
    "labels of a list": wrong_value(
        lambda: fm.mix_boxes(list(BOXES), list(LABELS[:, :2]), PLAN), "boxes[0] and labels[0]", "(3, 4) and (2,)"
    ),
    "labels of fewer samples": wrong_value(
        lambda: fm.mix_boxes(list(BOXES), list(LABELS[:2]), PLAN), "labels must be of as many samples as boxes, 4"
    ),
    "dtypes that differ": wrong_value(
        lambda: fm.mix_boxes([BOXES[0], *BOXES[1:].double()], list(LABELS), PLAN),
        "boxes",
        "one dtype",
        "float64 on cpu",
    ),
    "valid of other boxes": wrong_value(
        lambda: fm.mix_boxes(BOXES, LABELS, PLAN, valid=torch.ones(4, 2).bool()), "valid must be bool of shape (4, 3)"
    ),
    "valid of a list": wrong_value(
        lambda: fm.mix_boxes(list(BOXES), list(LABELS), PLAN, valid=torch.ones(4).long()), "valid must be None"
    ),
    "rotated boxes": wrong_value(
        lambda: fm.mix_boxes(of_torchvision("XYWHR", width=5), list(LABELS), PLAN), "boxes[0]", "CXCYWH", "xywhr"
    ),
    "boxes of another format": wrong_value(
        lambda: fm.mix_boxes(of_torchvision("XYWH"), list(LABELS), PLAN, format="xyxy"), "boxes[0]", "xyxy", "xywh"
    ),
    "boxes of another canvas": wrong_value(
        lambda: fm.mix_boxes(of_torchvision("XYXY", size=(8, 9)), list(LABELS), PLAN), "canvas size", "(8, 8)", "(8, 9)"
    ),
    "a plan of signals": wrong_value(
        lambda: fm.mix_boxes(BOXES, LABELS, SIGNALS), "plan must be for images (H, W)", "(8,)"
    ),
    "blocks that move": wrong_value(lambda: fm.mix_boxes(BOXES, LABELS, MOVES), "boxes", "moves blocks"),
    "partners from elsewhere": wrong_value(lambda: fm.mix_boxes(BOXES, LABELS, ELSEWHERE), "boxes", "another batch"),
    "masks of another size": wrong_value(
        lambda: fm.mix_instances(torch.ones(4, 3, 8, 9), MIXED, PLAN), "masks must be (..., n, 8, 8)", "(4, 3, 8, 9)"
    ),
    "masks no list": wrong_type(
        lambda: fm.mix_instances(torch.ones(4, 3, 8, 8), LISTED, PLAN), "masks must be a list of tensors"
    ),
    "keypoints of fewer samples": wrong_value(
        lambda: fm.mix_keypoints(list(torch.ones(2, 3, 5, 2)), LISTED, PLAN), "keypoints", "4 and 4, but got 2"
    ),
    "keypoints in space": wrong_value(
        lambda: fm.mix_keypoints(torch.ones(4, 3, 5, 4), MIXED, PLAN), "keypoints must be (..., n, points, 2 or 3)"
    ),
    "mixed a tuple": wrong_type(
        lambda: fm.mix_keypoints(torch.ones(4, 3, 5, 2), tuple(MIXED), PLAN), "mixed must be MixedBoxes", "tuple"
    ),
}


def targets(**more):
    return [{"boxes": BOXES[i], "labels": LABELS[i].long(), **more} for i in range(4)]


MODULE = {
    "targets too few": wrong_value(lambda m: m(X, targets()[:3]), "3 detection targets", "4 of (8, 8)"),
    "a target without labels": wrong_value(
        lambda m: m(X, [*targets()[:3], {"boxes": BOXES[0]}]), "labels must be in every detection target", "target 3"
    ),
    "masks of one target": wrong_value(
        lambda m: m(X, [*targets(masks=torch.ones(3, 8, 8))[:2], *targets()[2:]]), "masks must be in every", "target 2"
    ),
    "masks of another size": wrong_value(
        lambda m: m(X, targets(masks=torch.ones(3, 8, 9))), "masks of detection target 0", "(n, H, W)", "(3, 8, 9)"
    ),
    "keypoints a list": wrong_value(
        lambda m: m(X, targets(keypoints=[])), "keypoints of detection target 0", "(n, K, 2 or 3)", "list"
    ),
    "crowds of other boxes": wrong_value(lambda m: m(X, targets(iscrowd=torch.zeros(2))), "iscrowd", "3 boxes", "(2,)"),
    "images of several sizes": wrong_value(
        lambda m: m([*X[:3], X[3, :, :7]], targets()), "images must be one for each of 4", "one shape", "(3, 7, 8)"
    ),
    "images of other numbers": wrong_value(lambda m: m(None, targets()), "a list of tensors (C, H, W)", "NoneType"),
    "a list in place": wrong_value(
        lambda m: fm.CutMix(inplace=True)(list(X), targets()), "inplace must be False", "a tensor (B, C, H, W)"
    ),
    "boxes of integers around centres": wrong_value(
        lambda m: m(X, [{"boxes": b, "labels": torch.ones(3)} for b in of_torchvision("CXCYWH", dtype=torch.int64)]),
        "boxes must be of one of the dtypes",
        "cxcywh",
        "int64",
    ),
    "partners from another batch": wrong_value(
        lambda m: m(X, targets(), other=(X, targets())), "other must be None", "detection targets"
    ),
    "flips": wrong_value(
        lambda m: fm.CutMix(finish=fm.Finish(hflip=0.5, normalize=None))(X, targets()),
        "hflip of finish must be 0",
        "boxes",
    ),
    "partners by class": wrong_value(
        lambda m: fm.CutMix(pairing="cross_class")(X, targets()), "labels must be given for pairing='cross_class'"
    ),
    "min_visible": wrong_value(lambda m: fm.CutMix(min_visible=2.0), "min_visible must be in [0, 1], but got 2.0"),
}


@pytest.mark.parametrize("case", MODULE.values(), ids=MODULE)
def test_wrong_batches(case):
    call, *expected = case
    check(lambda: call(fm.CutMix()), *expected)


@pytest.mark.parametrize("case", CALLS.values(), ids=CALLS)
def test_wrong_calls(case):
    check(*case)
