"""The drop-in contract: after one torch.manual_seed, fusedmix and torchvision.transforms.v2 mix one batch alike.

Every expectation comes from torchvision, run beside ours in the same test.
"""

from __future__ import annotations

import itertools
import random
from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

import fusedmix as fm
from alike import NAMES, K, assert_alike, assert_same_sample, both, chosen, classes_of, image, seeded
from conftest import images_of

ALPHAS = (0.1, 0.2, 0.5, 1.0, 2.0, 8.0)
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SHAPES = {
    "cifar": (8, 3, 32, 32),
    "imagenet": (2, 3, 224, 224),
    "wide": (4, 3, 17, 40),
    "tall": (3, 1, 29, 8),
    "odd": (5, 3, 7, 9),
    "row": (4, 2, 1, 13),
    "one_pixel": (3, 3, 1, 1),
    "batch_1": (1, 3, 16, 12),
    "batch_0": (0, 3, 16, 12),
}


def sliced(x: Tensor) -> Tensor:
    """The same values as every second column of a larger, otherwise different tensor."""
    batch_size, channels, height, width = x.shape
    big = torch.full((batch_size, channels + 1, height + 3, 2 * width + 1), 99, dtype=x.dtype)
    view = big[:, 1:, 2 : height + 2, 1::2]
    view.copy_(x)
    return view


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": sliced,
}


# --- shapes, dtypes, layouts: one seed each ---


class Case(NamedTuple):
    name: str
    shape: str
    dtype: torch.dtype
    layout: str


CASES = [
    *itertools.starmap(Case, itertools.product(NAMES, SHAPES, FLOATS, LAYOUTS)),
    *itertools.starmap(Case, itertools.product(["CutMix"], SHAPES, [torch.uint8], LAYOUTS)),
]


@pytest.mark.parametrize(
    ("seed", "case"),
    list(enumerate(CASES)),
    ids=[f"{c.name}-{c.shape}-{str(c.dtype).removeprefix('torch.')}-{c.layout}" for c in CASES],
)
def test_batches(seed: int, case: Case) -> None:
    x = LAYOUTS[case.layout](images_of(SHAPES[case.shape], case.dtype, seed))
    y = classes_of(x.shape[0], seed)
    theirs, ours = both(case.name, alpha=random.Random(seed).choice(ALPHAS), num_classes=K)
    (out, targets), (expected, expected_targets) = assert_alike(seed, theirs, ours, x, y, exact=case.name == "CutMix")

    assert targets.dtype == torch.float32
    assert targets.stride() == expected_targets.stride()
    if case.name == "MixUp" and x.shape[0] == 1:  # See test_trap_memory_format_of_a_batch_of_one.
        assert out.stride() == torch.empty_like(x).stride()
    else:
        assert out.stride() == expected.stride()
    if x.numel():
        assert out.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


def test_the_sweep_is_wide_enough() -> None:
    assert len(CASES) >= 200
    drawn = {random.Random(seed).choice(ALPHAS) for seed in range(len(CASES))}
    assert drawn == set(ALPHAS)


@pytest.mark.parametrize("alpha", [*ALPHAS, 0.01, 3])
@pytest.mark.parametrize("name", NAMES)
def test_alphas(name: str, alpha: float) -> None:
    theirs, ours = getattr(v2, name)(alpha=float(alpha), num_classes=K), getattr(fm, name)(alpha=alpha, num_classes=K)
    x, y = images_of((4, 1, 32, 24), torch.float32, 0), classes_of(4, 0)
    for seed in range(1000, 1016):
        assert_alike(seed, theirs, ours, x, y, exact=name == "CutMix")


def test_successive_batches_of_one_stream() -> None:
    """Not only the first draw after a seed: whole epochs stay together."""
    theirs, ours = both("CutMix", num_classes=K)
    batches = [(images_of((4, 3, 20, 28), torch.float32, i), classes_of(4, i)) for i in range(20)]
    torch.manual_seed(5)
    expected = [theirs(*batch) for batch in batches]
    torch.manual_seed(5)
    out = [ours(*batch) for batch in batches]
    for i in range(20):
        assert_same_sample(out[i], expected[i], batches[i], exact=True)


OTHER_LAYOUTS = {
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "channel_major": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "batch_innermost": lambda x: x.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1),
    "every_second_sample": lambda x: x.repeat_interleave(2, dim=0)[::2],
    "sliced_channels_last": lambda x: sliced(x).contiguous(memory_format=torch.channels_last)[..., 1:, :-1],
    "expanded_channels": lambda x: x[:, :1].expand(x.shape),
    "expanded_batch": lambda x: x[:1].expand(x.shape),
}


@pytest.mark.parametrize("layout", list(OTHER_LAYOUTS))
@pytest.mark.parametrize("name", NAMES)
def test_other_layouts(name: str, layout: str) -> None:
    """The memory format of the output is empty_like's, as torchvision's CutMix has it (its MixUp keeps two formats)."""
    x, y = OTHER_LAYOUTS[layout](images_of((4, 3, 12, 10), torch.float32, 1)), classes_of(4, 1)
    theirs, ours = both(name, num_classes=K)
    (out, _), (expected, _) = assert_alike(1, theirs, ours, x, y, exact=name == "CutMix")
    assert out.stride() == torch.empty_like(x).stride()
    if name == "CutMix":
        assert out.stride() == expected.stride()


def test_cutmix_copies_every_bit() -> None:
    """NaN with its payload, infinities, -0.0 and denormals go through a box as they are."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (4, 3, 16, 16), generator=generator).int()
    bits[:, :, ::5] = torch.tensor([0x7FC00001, -0x80000000, 0x7F800000, -0x800000, 1, 0, 0x7F800001, -1] * 2).int()
    x, y = bits.view(torch.float32), classes_of(4, 0)
    theirs, ours = both("CutMix", num_classes=K)
    for seed in range(8):
        expected, _ = seeded(seed, theirs, x, y)
        out, _ = seeded(seed, ours, x, y)
        assert torch.equal(out[0].view(torch.int32), expected[0].view(torch.int32))


# --- labels ---

TWO_DIMENSIONAL = (*FLOATS, torch.int64, torch.int32, torch.uint8, torch.bool)


@pytest.mark.parametrize("num_classes", [K, None])
@pytest.mark.parametrize("dtype", TWO_DIMENSIONAL, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_two_dimensional_labels(name: str, dtype: torch.dtype, num_classes: int | None) -> None:
    theirs, ours = both(name, num_classes=num_classes)
    x = images_of((5, 3, 16, 12), torch.float32, 0)
    for seed in range(2000, 2008):
        generator = torch.Generator().manual_seed(seed)
        soft = torch.rand(5, K, generator=generator).log().neg().softmax(1)
        y = soft.to(dtype) if dtype.is_floating_point else (soft > 1 / K).to(dtype)
        (_, targets), _ = assert_alike(seed, theirs, ours, x, y, exact=name == "CutMix")
        assert targets.dtype == (dtype if dtype.is_floating_point else torch.float32)


@pytest.mark.parametrize("name", NAMES)
def test_labels_of_awkward_memory(name: str) -> None:
    x = images_of((6, 3, 8, 8), torch.float32, 0)
    wide = torch.rand(12, 2 * K)
    for y in (wide[::2, ::2], torch.rand(K, 6).t(), torch.rand(1, K).expand(6, K), torch.arange(12)[::2] % K):
        theirs, ours = both(name, num_classes=K)
        assert_alike(3, theirs, ours, x, y, exact=name == "CutMix")


@pytest.mark.parametrize("num_classes", [1, 2, 1000])
@pytest.mark.parametrize("name", NAMES)
def test_numbers_of_classes(name: str, num_classes: int) -> None:
    theirs, ours = both(name, num_classes=num_classes)
    x, y = images_of((6, 1, 8, 8), torch.float32, 0), classes_of(6, 4, num_classes)
    (_, targets), _ = assert_alike(4, theirs, ours, x, y, exact=name == "CutMix")
    assert targets.shape == (6, num_classes)


# --- gradients ---


def gradients(seed: int, transform: Any, x: Tensor, y: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of a sum with random weights over both outputs."""
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    (images, targets), _ = seeded(seed, transform, x, y)
    generator = torch.Generator().manual_seed(seed)
    loss = sum((out * torch.randn(out.shape, dtype=out.dtype, generator=generator)).sum() for out in (images, targets))
    loss.backward()
    return x.grad, y.grad


@pytest.mark.parametrize("name", NAMES)
def test_gradient_of_the_images(name: str) -> None:
    theirs, ours = both(name)
    x, y = images_of((5, 3, 9, 8), torch.float64, 0), torch.rand(5, K, dtype=torch.float64)
    for seed in (1, 2, 3):
        expected, _ = gradients(seed, lambda x, y: theirs(x, y.detach()), x, y)
        got, _ = gradients(seed, lambda x, y: ours(x, y.detach()), x, y)
        torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_of_soft_labels(name: str) -> None:
    """Soft labels may come from a model (distillation, learned labels): torchvision's targets carry the gradient."""
    theirs, ours = both(name)
    x, y = images_of((5, 3, 9, 8), torch.float64, 0), torch.rand(5, K, dtype=torch.float64)
    for seed in (1, 2, 3):
        _, expected = gradients(seed, theirs, x, y)
        _, got = gradients(seed, ours, x, y)
        torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-14)


# --- structures ---


class Batch(NamedTuple):
    images: Tensor
    labels: Tensor
    names: list[str]


EXTRA = torch.arange(4.0)
TEXT = ["a", "b", "c", "d"]

# Each makes the arguments of a call from a pure tensor of images and labels.
STRUCTURES: dict[str, Any] = {
    "two_arguments": lambda x, y: (x, y),
    "tuple": lambda x, y: ((x, y),),
    "list": lambda x, y: ([x, y],),
    "more_arguments": lambda x, y: (x, y, EXTRA, TEXT, None, 3),
    "longer_tuple": lambda x, y: ((x, y, EXTRA, "text"),),
    "namedtuple": lambda x, y: (Batch(x, y, TEXT),),
    "dict": lambda x, y: ({"images": x, "labels": y},),
    "dict_with_more": lambda x, y: ({"images": x, "labels": y, "index": EXTRA, "path": TEXT, "none": None},),
    "ordered_dict": lambda x, y: (OrderedDict(images=x, labels=y),),
    "key_in_capitals": lambda x, y: ({"images": x, "LABELS": y},),
    "key_containing_label": lambda x, y: ({"images": x, "my_Label_ids": y},),
    "labels_before_labelled": lambda x, y: ({"images": x, "label_names": TEXT, "Labels": y},),
    "target_dict": lambda x, y: (x, {"labels": y, "boxes": EXTRA}),
    "nested_lists": lambda x, y: ([[x, [EXTRA, "text"]], {"labels": y, "more": (None, {"k": EXTRA})}],),
    "labels_twice": lambda x, y: ({"images": x, "labels": y, "again": y},),
    "image_type": lambda x, y: (tv_tensors.Image(x), y),
    "image_type_after_labels": lambda x, y: ({"labels": y, "extra": EXTRA, "image": tv_tensors.Image(x)},),
    "image_type_and_pure_tensors": lambda x, y: ({"pure": x, "image": tv_tensors.Image(x * 2), "labels": y},),
    "two_images": lambda x, y: ((tv_tensors.Image(x), y, tv_tensors.Image(x + 1)),),
    "video": lambda x, y: (tv_tensors.Video(x.unsqueeze(1).repeat(1, 3, 1, 1, 1) * torch.rand(1, 3, 1, 1, 1)), y),
    "image_and_video": lambda x, y: ((tv_tensors.Image(x), y, tv_tensors.Video(x.flip(0).unsqueeze(1))),),
}


@pytest.mark.parametrize("structure", list(STRUCTURES))
@pytest.mark.parametrize("name", NAMES)
def test_structures(name: str, structure: str) -> None:
    theirs, ours = both(name, num_classes=K)
    for seed in range(3000, 3004):
        x, y = images_of((4, 3, 16, 12), torch.float32, seed), classes_of(4, seed)
        assert_alike(seed, theirs, ours, *STRUCTURES[structure](x, y), exact=name == "CutMix")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("structure", ["dict_with_more", "target_dict", "image_type_after_labels", "video"])
def test_random_mix_structures(structure: str, dtype: torch.dtype) -> None:
    theirs = v2.RandomChoice([v2.CutMix(alpha=0.5, num_classes=K), v2.MixUp(alpha=2.0, num_classes=K)], p=[0.6, 0.4])
    ours = fm.RandomMix([fm.CutMix(alpha=0.5, num_classes=K), fm.MixUp(alpha=2.0, num_classes=K)], [0.6, 0.4])
    for seed in range(5100, 5108):
        x, y = images_of((4, 3, 16, 12), dtype, seed), classes_of(4, seed)
        assert_alike(seed, theirs, ours, *STRUCTURES[structure](x, y), exact=chosen(seed, [0.6, 0.4]) == 0)


GETTERS: dict[str, Any] = {
    "third_argument": (lambda x, y: (x, EXTRA, y), lambda sample: sample[2]),
    "last_of_list": (lambda x, y: ([x, "text", y],), lambda sample: sample[-1]),
    "other_key": (lambda x, y: ({"images": x, "labels": EXTRA, "target": y},), lambda sample: sample["target"]),
    "nested_dict": (lambda x, y: ({"a": {"images": x, "t": {"y": y}}},), lambda sample: sample["a"]["t"]["y"]),
    "dict_of_image_type": (lambda x, y: ({"t": y, "x": tv_tensors.Image(x)}, EXTRA), lambda sample: sample[0]["t"]),
}


@pytest.mark.parametrize("getter", list(GETTERS))
@pytest.mark.parametrize("name", NAMES)
def test_labels_getter(name: str, getter: str) -> None:
    build, labels_getter = GETTERS[getter]
    theirs, ours = both(name, num_classes=K, labels_getter=labels_getter)
    for seed in range(3100, 3104):
        x, y = images_of((4, 3, 16, 12), torch.float32, seed), classes_of(4, seed)
        assert_alike(seed, theirs, ours, *build(x, y), exact=name == "CutMix")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8], ids=str)
@pytest.mark.parametrize("kind", ["Image", "Video"])
@pytest.mark.parametrize("name", NAMES)
def test_tv_tensor_dtypes_and_layouts(name: str, kind: str, dtype: torch.dtype) -> None:
    if name == "MixUp" and dtype == torch.uint8:
        dtype = torch.bfloat16  # torchvision cannot blend uint8: see test_trap_uint8_mixup.
    theirs, ours = both(name, num_classes=K)
    for seed in range(3200, 3206):
        x = images_of((4, 3, 10, 14) if kind == "Image" else (4, 2, 3, 10, 14), dtype, seed)
        if kind == "Image":
            x = x.contiguous(memory_format=torch.channels_last)
        (out, _), (expected, _) = assert_alike(
            seed, theirs, ours, getattr(tv_tensors, kind)(x), classes_of(4, seed), exact=name == "CutMix"
        )
        assert type(out) is getattr(tv_tensors, kind)
        assert out.stride() == expected.stride()


@pytest.mark.parametrize("name", NAMES)
def test_set_return_type(name: str) -> None:
    theirs, ours = both(name, num_classes=K)
    x, y = image(4, 3, 10, 14), classes_of(4, 0)
    with tv_tensors.set_return_type("TVTensor"):
        (out, targets), _ = assert_alike(7, theirs, ours, x, y, exact=name == "CutMix")
    assert type(out) is tv_tensors.Image
    assert type(targets) is Tensor
