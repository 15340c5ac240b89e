"""What torchvision refuses is refused in its words; and traps of torchvision's, with what ours does instead."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

import fusedmix as fm
from alike import (
    NAMES,
    K,
    assert_blended_alike,
    assert_same_leaf,
    assert_same_sample,
    both,
    classes_of,
    image,
    seeded,
)
from conftest import images_of, refused

# --- errors ---

IMAGES = images_of((9, 3, 12, 12), torch.float32, 0)
LABELS = classes_of(9, 0)
NO_STACK, BATCHED = "does not support PIL images, ", "Expected a batched input with 4 dims"
OTHER_BATCH, TWO_DIMENSIONAL = "does not match the batch size of the labels", "When passing 2D labels"


def pil() -> Any:
    return F.to_pil_image(torch.rand(3, 12, 12))


def boxes() -> tv_tensors.BoundingBoxes:
    return tv_tensors.BoundingBoxes(torch.rand(2, 4), format="XYXY", canvas_size=(12, 12))


ERRORS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "pil": (NO_STACK, lambda: (pil(), LABELS), {}),
    "pil_alone": (NO_STACK, lambda: (pil(),), {}),
    "pil_beside_images": (NO_STACK, lambda: (IMAGES, LABELS, pil()), {}),
    "mask": (NO_STACK, lambda: (tv_tensors.Mask(torch.rand(12, 12)),), {}),
    "boxes": (NO_STACK, lambda: (boxes(),), {}),
    "boxes_beside_images": (NO_STACK, lambda: (tv_tensors.Image(IMAGES), LABELS, boxes()), {}),
    "keypoints": (NO_STACK, lambda: (tv_tensors.KeyPoints(torch.rand(2, 2), canvas_size=(12, 12)),), {}),
    "no_labels_key": ("Could not infer where the labels are", lambda: ({"img": IMAGES, "Nothing_else": 3},), {}),
    "no_labels_key_in_target": ("Could not infer where the labels are", lambda: (IMAGES, {"boxes": LABELS}), {}),
    "images_alone": ("labels should be index based", lambda: (IMAGES,), {}),
    "labels_not_a_tensor": ("When using the default labels_getter", lambda: (IMAGES, "not_a_tensor"), {}),
    "labels_a_list": ("When using the default labels_getter", lambda: (IMAGES, [1, 2, 3]), {}),
    "labels_an_image": ("When using the default labels_getter", lambda: (IMAGES, image(9, 3, 12, 12)), {}),
    "labels_key_not_a_tensor": ("The labels must be a tensor", lambda: ({"img": IMAGES, "labels": [1, 2]},), {}),
    "getter_returns_a_list": (
        "The labels must be a tensor",
        lambda: (IMAGES, LABELS),
        {"labels_getter": lambda sample: sample[1].tolist()},
    ),
    "five_dims": (BATCHED, lambda: (image(1, 9, 3, 12, 12), LABELS[:1]), {}),
    "six_dims": (BATCHED, lambda: (IMAGES[None, None], LABELS), {}),
    "unbatched": (BATCHED, lambda: (tv_tensors.Image(IMAGES[0]), LABELS[:3]), {}),
    "unbatched_video": ("Expected a batched input with 5 dims", lambda: (tv_tensors.Video(IMAGES), LABELS), {}),
    "more_labels": (OTHER_BATCH, lambda: (IMAGES, classes_of(10, 0)), {}),
    "fewer_labels": (OTHER_BATCH, lambda: (IMAGES, LABELS[:1]), {}),
    "fewer_in_second_stack": (
        OTHER_BATCH,
        lambda: (tv_tensors.Image(IMAGES), LABELS, tv_tensors.Image(IMAGES[:8])),
        {},
    ),
    "three_dimensional_labels": ("labels should be index based", lambda: (IMAGES, torch.zeros(9, 3, 2)), {}),
    "three_dimensional_labels_shape": ("but got a tensor of shape", lambda: (IMAGES, torch.zeros(9, 3, 2)), {}),
    "scalar_label": ("labels should be index based", lambda: (IMAGES, torch.tensor(3)), {}),
    "other_num_classes": (TWO_DIMENSIONAL, lambda: (IMAGES, torch.zeros(9, K + 1)), {}),
    "fewer_classes": (TWO_DIMENSIONAL, lambda: (IMAGES, torch.zeros(9, K - 1)), {}),
    "no_num_classes": ("num_classes must be passed", lambda: (IMAGES, LABELS), {"num_classes": None}),
}


@pytest.mark.parametrize("error", list(ERRORS))
@pytest.mark.parametrize("name", NAMES)
def test_errors(name: str, error: str) -> None:
    """Both refuse the sample with the same words; ours before it has drawn anything."""
    fragment, build, options = ERRORS[error]
    theirs, ours = both(name, **{"num_classes": K, **options})
    sample = build()
    with pytest.raises(ValueError, match=fragment):
        theirs(*sample)
    with refused(ValueError, fragment):
        ours(*sample)


@pytest.mark.parametrize("error", list(ERRORS))
def test_errors_of_random_mix(error: str) -> None:
    fragment, build, options = ERRORS[error]
    ours = fm.RandomMix([fm.MixUp(), fm.CutMix()], **{"num_classes": K, **options})
    with pytest.raises(ValueError, match=fragment):
        ours(*build())


@pytest.mark.parametrize("name", NAMES)
def test_one_grey_image(name: str) -> None:
    """Without a channel it is a batch of vectors for us, which torchvision does not know: both refuse it."""
    theirs, ours = both(name, num_classes=K)
    with pytest.raises(ValueError, match=BATCHED):
        theirs(IMAGES[0, 0], LABELS)
    with refused(ValueError, OTHER_BATCH):
        ours(IMAGES[0, 0], LABELS)


@pytest.mark.parametrize(
    "options",
    [{"alpha": 0.0}, {"alpha": -1.0}, {"alpha": math.nan}, {"labels_getter": "foo"}],
    ids=["alpha_0", "alpha_negative", "alpha_nan", "labels_getter"],
)
@pytest.mark.parametrize("name", NAMES)
def test_construction_errors(name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    # torchvision leaves alpha to torch.distributions, whose checks torch.compile switches off for the whole process.
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)
    for namespace in (v2, fm):
        with pytest.raises(ValueError, match=r"alpha|labels_getter|concentration"):
            getattr(namespace, name)(num_classes=K, **options)


@pytest.mark.parametrize("name", NAMES)
def test_keyword_only(name: str) -> None:
    for namespace in (v2, fm):
        with pytest.raises(TypeError, match="positional argument"):
            getattr(namespace, name)(1.0)


# --- traps ---


def test_trap_uint8_mixup() -> None:
    """torchvision cannot blend uint8. Ours gives what it makes of the images in float64, rounded to nearest."""
    theirs, ours = both("MixUp", num_classes=K)
    x, y = images_of((6, 3, 24, 24), torch.uint8, 0), classes_of(6, 0)
    with pytest.raises(RuntimeError, match="can't be cast"):
        theirs(x, y)
    for seed in range(8000, 8008):
        (exact, expected_targets), _ = seeded(seed, theirs, x.double(), y)
        (out, targets), _ = seeded(seed, ours, x, y)
        assert out.dtype == torch.uint8
        assert torch.equal(targets, expected_targets)
        # It may be off by half a level, and by what a blend in float32 is off below 256.
        assert (out.double() - exact).abs().max() <= 0.5 + 2.0**-16
        tie_free = (exact - exact.floor() - 0.5).abs() > 2.0**-16
        assert torch.equal(out[tie_free].double(), exact[tie_free].round())


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_trap_narrow_labels(name: str, dtype: torch.dtype) -> None:
    theirs, ours = both(name, num_classes=K)
    x, y = images_of((6, 3, 8, 8), torch.float32, 0), classes_of(6, 0)
    with pytest.raises(RuntimeError, match="one_hot is only applicable"):
        theirs(x, y.to(dtype))
    expected, _ = seeded(1, theirs, x, y)
    out, _ = seeded(1, ours, x, y.to(dtype))
    assert_same_sample(out, expected, (x, y), exact=name == "CutMix")


@pytest.mark.parametrize("wrong", [K, -1, 2**40])
@pytest.mark.parametrize("name", NAMES)
def test_trap_labels_out_of_range(name: str, wrong: int) -> None:
    """torchvision draws, then fails inside one_hot (on a GPU: a device assert). Ours names the argument, first."""
    theirs, ours = both(name, num_classes=K)
    x, y = images_of((4, 3, 8, 8), torch.float32, 0), torch.tensor([0, 1, wrong, 2])
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="Class values must be"):
        theirs(x, y)
    assert not torch.equal(torch.get_rng_state(), before)
    with refused(ValueError, rf"labels must be in \[0, num_classes\) = \[0, {K}\), but got {wrong}"):
        ours(x, y)


def test_trap_labels_before_images_in_a_dict() -> None:
    """torchvision takes the first tensor for the images: MixUp then mixes the labels and not the images."""
    x, y = images_of((4, 3, 12, 10), torch.float32, 0), classes_of(4, 0)
    theirs, ours = both("MixUp", num_classes=K)
    wrong, _ = seeded(2, theirs, {"labels": y, "images": x})
    assert wrong["images"] is x
    assert not torch.equal(wrong["labels"], torch.nn.functional.one_hot(y, K).float())
    with pytest.raises(TypeError, match="at least two dimensions"):
        v2.CutMix(num_classes=K)({"labels": y, "images": x})
    for name in NAMES:
        theirs, ours = both(name, num_classes=K)
        expected, _ = seeded(2, theirs, {"images": x, "labels": y})
        out, _ = seeded(2, ours, {"labels": y, "images": x})
        assert list(out) == ["labels", "images"]
        assert_same_leaf(out["images"], expected["images"], x, exact=name == "CutMix")
        assert torch.equal(out["labels"], expected["labels"])
        assert not torch.equal(out["images"], x)


def test_trap_memory_format_of_a_batch_of_one() -> None:
    """torchvision's MixUp returns a channels_last batch of one image in the contiguous format. Ours keeps it."""
    x = images_of((1, 3, 8, 6), torch.float32, 0).contiguous(memory_format=torch.channels_last)
    theirs, ours = both("MixUp", num_classes=K)
    (expected, _), _ = seeded(0, theirs, x, torch.tensor([1]))
    (out, _), _ = seeded(0, ours, x, torch.tensor([1]))
    assert not expected.is_contiguous(memory_format=torch.channels_last)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert_blended_alike(out, expected, x)


def test_trap_labels_without_images() -> None:
    """torchvision's MixUp takes labels alone for a batch and returns them mixed. Ours says that there is no image."""
    theirs, ours = both("MixUp", num_classes=K)
    mixed, _ = seeded(0, theirs, {"labels": LABELS})
    assert mixed["labels"].shape == (9, K)
    with pytest.raises(ValueError, match="No image or video"):
        ours({"labels": LABELS})


def test_trap_keys_that_are_not_strings() -> None:
    x, y = images_of((4, 3, 8, 8), torch.float32, 0), classes_of(4, 0)
    theirs, ours = both("CutMix", num_classes=K)
    with pytest.raises(AttributeError):
        theirs({0: x, "labels": y})
    expected, _ = seeded(0, theirs, (x, y))
    out, _ = seeded(0, ours, {0: x, "labels": y})
    assert torch.equal(out[0], expected[0])
    assert torch.equal(out["labels"], expected[1])
