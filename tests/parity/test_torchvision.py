"""The drop-in contract: after one torch.manual_seed, fusedmix and torchvision.transforms.v2 mix one batch alike.

Every expectation comes from torchvision, run beside ours in the same test. Boxes and targets must be equal bit for bit.
Blended images may differ by rounding: torchvision rounds both products and their sum to the images' dtype, we round
once, so the difference stays below 2·eps·(1 + max|x|).
"""

from __future__ import annotations

import itertools
import math
import random
from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

import fusedmix as fm

K = 7
NAMES = ("MixUp", "CutMix")
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


def both(name: str, **options: Any) -> tuple[Any, Any]:
    """torchvision's transform and ours, of one name and with the same keywords."""
    return getattr(v2, name)(**options), getattr(fm, name)(**options)


def seeded(seed: int, transform: Any, *sample: Any) -> tuple[Any, Tensor]:
    """What a transform makes of a sample after torch.manual_seed, and the generator's state then."""
    torch.manual_seed(seed)
    return transform(*sample), torch.get_rng_state()


def images_of(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Random images with a spread of magnitudes and both signs, or over all of 0..255."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, dtype=dtype, generator=generator)
    return (3 * torch.randn(shape, dtype=torch.float64, generator=generator)).to(dtype)


def classes_of(batch_size: int, seed: int, num_classes: int = K) -> Tensor:
    return torch.randint(num_classes, (batch_size,), generator=torch.Generator().manual_seed(seed))


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


def assert_blended_alike(ours: Tensor, theirs: Tensor, x: Tensor) -> None:
    largest = x.abs().max().item() if x.numel() else 0.0
    bound = 2 * torch.finfo(x.dtype).eps * (1 + largest)
    assert ours.dtype == theirs.dtype
    error = (ours.double() - theirs.double()).abs()
    assert error.numel() == 0 or error.max().item() <= bound


def assert_same_leaf(ours: Any, theirs: Any, given: Any, exact: bool) -> None:
    """Equality of two outputs made of the input `given`; images (4-D and more) are blended unless `exact`."""
    if not isinstance(theirs, Tensor):
        assert ours is theirs
        return
    assert type(ours) is type(theirs)
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    if theirs is given:
        assert ours is given
    elif exact or theirs.ndim < 4:
        assert torch.equal(ours, theirs)
    else:
        assert_blended_alike(ours.as_subclass(Tensor), theirs.as_subclass(Tensor), given.as_subclass(Tensor))


def assert_same_sample(ours: Any, theirs: Any, given: Any, exact: bool) -> None:
    """Two transformed samples have one structure and equal leaves."""
    our_leaves, our_spec = pytree.tree_flatten(ours)
    their_leaves, their_spec = pytree.tree_flatten(theirs)
    assert our_spec == their_spec
    for leaves in zip(our_leaves, their_leaves, pytree.tree_leaves(given), strict=True):
        assert_same_leaf(*leaves, exact=exact)


def assert_alike(seed: int, theirs: Any, ours: Any, *sample: Any, exact: bool) -> tuple[Any, Any]:
    """Runs both on one sample from one seed: same output, same generator state, input untouched."""
    before = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in pytree.tree_leaves(sample)]
    expected, expected_state = seeded(seed, theirs, *sample)
    out, state = seeded(seed, ours, *sample)
    assert_same_sample(out, expected, sample if len(sample) > 1 else sample[0], exact)
    assert torch.equal(state, expected_state)
    for old, new in zip(before, pytree.tree_leaves(sample), strict=True):
        if isinstance(old, Tensor):
            assert torch.equal(old, new)
        else:
            assert old is new
    return out, expected


# --- shapes, dtypes, layouts: one seed each -------------------------------------------------------------------------


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
    if case.name == "MixUp" and x.shape[0] == 1:  # test_trap_memory_format_of_a_batch_of_one
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


# --- labels ---------------------------------------------------------------------------------------------------------

TWO_DIMENSIONAL = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)


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


# --- gradients ------------------------------------------------------------------------------------------------------


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


# --- structures -----------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    images: Tensor
    labels: Tensor
    names: list[str]


def image(*shape: int, seed: int = 0) -> tv_tensors.Image:
    return tv_tensors.Image(images_of(shape, torch.float32, seed))


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
        dtype = torch.bfloat16  # torchvision cannot blend uint8: test_trap_uint8_mixup
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


# --- among other transforms -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_mode_mixes_too(name: str) -> None:
    theirs, ours = both(name, num_classes=K)
    x, y = images_of((4, 3, 8, 8), torch.float32, 0), classes_of(4, 0)
    assert_alike(0, theirs.eval(), ours.eval(), x, y, exact=name == "CutMix")


@pytest.mark.parametrize("name", NAMES)
def test_in_compose(name: str) -> None:
    """Random transforms before and after draw what they draw beside torchvision's."""
    theirs, ours = (
        v2.Compose(
            [
                v2.RandomHorizontalFlip(0.5),
                v2.ToDtype(torch.float32, scale=True),
                mix,
                v2.RandomErasing(p=0.5),
            ]
        )
        for mix in both(name, num_classes=K)
    )
    for seed in range(4000, 4010):
        x, y = images_of((4, 3, 16, 12), torch.uint8, seed), classes_of(4, seed)
        expected, expected_state = seeded(seed, theirs, x, y)
        out, state = seeded(seed, ours, x, y)
        assert_same_sample(out, expected, (x.float() / 255, y), exact=name == "CutMix")
        assert torch.equal(state, expected_state)


@pytest.mark.parametrize("p", [None, [0.25, 0.75], [3.0, 1.0]])
def test_ours_inside_random_choice_and_random_apply(p: list[float] | None) -> None:
    theirs, ours = (
        v2.RandomApply([v2.RandomChoice([ns.MixUp(alpha=0.8, num_classes=K), ns.CutMix(num_classes=K)], p=p)], p=0.7)
        for ns in (v2, fm)
    )
    x, y = images_of((4, 3, 16, 12), torch.float32, 0), classes_of(4, 0)
    for seed in range(4100, 4116):
        assert_alike(seed, theirs, ours, x, y, exact=False)


WEIGHTS = {
    "none": None,
    "even": [0.5, 0.5],
    "uneven": [0.2, 0.8],
    "not_normalised": [3, 1],
    "thirds": [0.1, 0.2],
    "one_certain": [0.0, 1.0],
}


def chosen(seed: int, weights: list[float] | None) -> int:
    """Which of two transforms v2.RandomChoice takes after a seed, by the call it documents: one multinomial draw."""
    weights = weights or [1, 1]
    torch.manual_seed(seed)
    return int(torch.multinomial(torch.tensor([w / sum(weights) for w in weights]), 1))


@pytest.mark.parametrize("weights", list(WEIGHTS.values()), ids=list(WEIGHTS))
def test_random_mix_is_random_choice(weights: list[float] | None) -> None:
    theirs = v2.RandomChoice([v2.MixUp(alpha=0.8, num_classes=K), v2.CutMix(alpha=1.0, num_classes=K)], p=weights)
    ours = fm.RandomMix([fm.MixUp(alpha=0.8), fm.CutMix(alpha=1.0)], weights, num_classes=K)
    x, y = images_of((6, 3, 16, 20), torch.float32, 0), classes_of(6, 0)
    choices = set()
    for seed in range(5000, 5024):
        choices.add(chosen(seed, weights))
        assert_alike(seed, theirs, ours, x, y, exact=chosen(seed, weights) == 1)
    assert choices == ({1} if weights == [0.0, 1.0] else {0, 1})


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("structure", ["dict_with_more", "target_dict", "image_type_after_labels", "video"])
def test_random_mix_structures(structure: str, dtype: torch.dtype) -> None:
    theirs = v2.RandomChoice([v2.CutMix(alpha=0.5, num_classes=K), v2.MixUp(alpha=2.0, num_classes=K)], p=[0.6, 0.4])
    ours = fm.RandomMix([fm.CutMix(alpha=0.5, num_classes=K), fm.MixUp(alpha=2.0, num_classes=K)], [0.6, 0.4])
    for seed in range(5100, 5108):
        x, y = images_of((4, 3, 16, 12), dtype, seed), classes_of(4, seed)
        assert_alike(seed, theirs, ours, *STRUCTURES[structure](x, y), exact=chosen(seed, [0.6, 0.4]) == 0)


def test_random_mix_of_three() -> None:
    theirs = v2.RandomChoice([v2.MixUp(alpha=a, num_classes=K) for a in (0.2, 1.0, 4.0)], p=[1, 2, 3])
    ours = fm.RandomMix([fm.MixUp(alpha=a) for a in (0.2, 1.0, 4.0)], [1, 2, 3], num_classes=K)
    x, y = images_of((4, 1, 8, 8), torch.float32, 0), classes_of(4, 0)
    for seed in range(5200, 5216):
        assert_alike(seed, theirs, ours, x, y, exact=False)


def assert_like_random_apply(seeds: range, theirs: Any, ours: Any) -> None:
    """Like assert_alike, for both outcomes; unmixed labels come back one-hot from ours, as they came from v2's."""
    x, y = images_of((5, 3, 16, 12), torch.float32, 0), classes_of(5, 0)
    outcomes = set()
    for seed in seeds:
        (expected, expected_targets), expected_state = seeded(seed, theirs, x, y)
        (out, targets), state = seeded(seed, ours, x, y)
        mixed = expected is not x
        outcomes.add(mixed)
        assert torch.equal(state, expected_state)
        assert targets.dtype == torch.float32
        if mixed:
            assert_blended_alike(out, expected, x)
            assert torch.equal(targets, expected_targets)
        else:
            assert torch.equal(out, x)
            assert torch.equal(targets, torch.nn.functional.one_hot(expected_targets, K).float())
    assert outcomes == {True, False}


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", NAMES)
def test_p_is_random_apply(name: str, p: float) -> None:
    theirs = v2.RandomApply([getattr(v2, name)(alpha=0.5, num_classes=K)], p=p)
    assert_like_random_apply(range(6000, 6040), theirs, getattr(fm, name)(alpha=0.5, num_classes=K, p=p))


@pytest.mark.parametrize("name", NAMES)
def test_p_of_nought_draws_and_never_mixes(name: str) -> None:
    theirs, ours = v2.RandomApply([getattr(v2, name)(num_classes=K)], p=0.0), getattr(fm, name)(num_classes=K, p=0.0)
    x, y = images_of((4, 3, 8, 8), torch.float32, 0), classes_of(4, 0)
    (expected, _), expected_state = seeded(0, theirs, x, y)
    (out, targets), state = seeded(0, ours, x, y)
    assert torch.equal(state, expected_state)
    assert torch.equal(out, expected)
    assert torch.equal(targets, torch.nn.functional.one_hot(y, K).float())


@pytest.mark.parametrize("name", NAMES)
def test_p_leaves_two_dimensional_labels(name: str) -> None:
    """Soft labels that are not mixed are torchvision's, dtype and all."""
    theirs = v2.RandomApply([getattr(v2, name)()], p=0.5)
    ours = getattr(fm, name)(p=0.5)
    x, y = images_of((4, 3, 8, 8), torch.float32, 0), torch.rand(4, K).softmax(1).half()
    for seed in range(6100, 6110):
        (expected, expected_targets), _ = seeded(seed, theirs, x, y)
        (out, targets), _ = seeded(seed, ours, x, y)
        assert_blended_alike(out, expected, x)
        assert targets.dtype == torch.float16
        assert torch.equal(targets, expected_targets)


def test_p_of_random_mix_is_random_apply_of_random_choice() -> None:
    theirs = v2.RandomApply([v2.RandomChoice([v2.MixUp(num_classes=K), v2.CutMix(num_classes=K)], p=[1, 3])], p=0.6)
    ours = fm.RandomMix([fm.MixUp(), fm.CutMix()], [1, 3], num_classes=K, p=0.6)
    assert_like_random_apply(range(6200, 6240), theirs, ours)


def test_p_of_the_methods_is_random_apply_inside_random_choice() -> None:
    theirs = v2.RandomChoice(
        [
            v2.RandomApply([v2.MixUp(num_classes=K)], p=0.5),
            v2.RandomApply([v2.CutMix(num_classes=K)], p=0.4),
        ]
    )
    ours = fm.RandomMix([fm.MixUp(p=0.5), fm.CutMix(p=0.4)], num_classes=K)
    assert_like_random_apply(range(6300, 6340), theirs, ours)


# --- generators and seeds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_own_generator(name: str) -> None:
    """A generator of one's own gives what torchvision makes of the same global seed, and leaves the global one be."""
    x, y = images_of((4, 3, 16, 12), torch.float32, 0), classes_of(4, 0)
    theirs, _ = both(name, num_classes=K)
    generator = torch.Generator()
    ours = getattr(fm, name)(num_classes=K, generator=generator)
    for seed in range(7000, 7010):
        expected, expected_state = seeded(seed, theirs, x, y)
        generator.manual_seed(seed)
        torch.manual_seed(1)
        before = torch.get_rng_state()
        out = ours(x, y)
        assert_same_sample(out, expected, (x, y), exact=name == "CutMix")
        assert torch.equal(torch.get_rng_state(), before)
        torch.set_rng_state(expected_state)
        assert torch.rand(1, generator=generator) == torch.rand(1)  # and so both stand at the same place


def assert_plan_is(plan: fm.MixPlan, params: dict[str, Any], size: tuple[int, int]) -> None:
    """A plan against what torchvision's own make_params drew."""
    assert torch.equal(plan.partner, torch.arange(plan.batch_size).roll(1))
    if "box" in params:
        x1, y1, x2, y2 = params["box"]
        mask = torch.ones(plan.batch_size, *size)
        mask[:, y1:y2, x1:x2] = 0
        assert plan.weight.tolist() == [params["lam_adjusted"]] * plan.batch_size
    else:
        mask = torch.full((plan.batch_size, *size), params["lam"])
        assert plan.weight.tolist() == [params["lam"]] * plan.batch_size
        assert plan.lam.tolist() == [params["lam"]] * plan.batch_size
    assert torch.equal(plan.mask(), mask)


@pytest.mark.parametrize("size", [(32, 32), (17, 40), (64, 224)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_plan_is_what_torchvision_draws(name: str, size: tuple[int, int]) -> None:
    theirs, ours = both(name, alpha=0.7, num_classes=K)
    for seed in range(7100, 7116):
        torch.manual_seed(seed)
        params = theirs.make_params([torch.empty(2, 3, *size)])
        torch.manual_seed(-1)
        before = torch.get_rng_state()
        assert_plan_is(ours.sample(2, size, seed=seed), params, size)
        assert_plan_is(ours.sample(2, size, generator=torch.Generator().manual_seed(seed)), params, size)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(seed)
        assert_plan_is(ours.sample(2, size), params, size)


@pytest.mark.parametrize("seed", [0, 1, 42, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, -1, -(2**63)])
def test_seed_is_manual_seed(seed: int) -> None:
    theirs, ours = both("CutMix", alpha=0.7)
    torch.manual_seed(seed)
    params = theirs.make_params([torch.empty(2, 3, 33, 47)])
    assert_plan_is(ours.sample(2, (33, 47), seed=seed), params, (33, 47))


def test_seed_of_random_mix() -> None:
    ours = fm.RandomMix([fm.MixUp(alpha=0.8), fm.CutMix()], [1, 2])
    members = v2.MixUp(alpha=0.8), v2.CutMix()
    for seed in range(7200, 7220):
        index = chosen(seed, [1, 2])
        params = members[index].make_params([torch.empty(2, 3, 20, 24)])  # goes on from the draw of `chosen`
        assert_plan_is(ours.sample(2, (20, 24), seed=seed), params, (20, 24))


# --- errors ---------------------------------------------------------------------------------------------------------

IMAGES = images_of((9, 3, 12, 12), torch.float32, 0)
LABELS = classes_of(9, 0)
ERRORS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "pil": ("does not support PIL images, ", lambda: (F.to_pil_image(torch.rand(3, 12, 12)), LABELS), {}),
    "pil_alone": ("does not support PIL images, ", lambda: (F.to_pil_image(torch.rand(3, 12, 12)),), {}),
    "pil_beside_images": (
        "does not support PIL images, ",
        lambda: (IMAGES, LABELS, F.to_pil_image(torch.rand(3, 12, 12))),
        {},
    ),
    "mask": ("does not support PIL images, ", lambda: (tv_tensors.Mask(torch.rand(12, 12)),), {}),
    "boxes": (
        "does not support PIL images, ",
        lambda: (tv_tensors.BoundingBoxes(torch.rand(2, 4), format="XYXY", canvas_size=(12, 12)),),
        {},
    ),
    "boxes_beside_images": (
        "does not support PIL images, ",
        lambda: (
            tv_tensors.Image(IMAGES),
            LABELS,
            tv_tensors.BoundingBoxes(torch.rand(2, 4), format="XYXY", canvas_size=(12, 12)),
        ),
        {},
    ),
    "keypoints": (
        "does not support PIL images, ",
        lambda: (tv_tensors.KeyPoints(torch.rand(2, 2), canvas_size=(12, 12)),),
        {},
    ),
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
    "five_dims": ("Expected a batched input with 4 dims", lambda: (image(1, 9, 3, 12, 12), LABELS[:1]), {}),
    "six_dims": ("Expected a batched input with 4 dims", lambda: (IMAGES[None, None], LABELS), {}),
    "unbatched": ("Expected a batched input with 4 dims", lambda: (tv_tensors.Image(IMAGES[0]), LABELS[:3]), {}),
    "unbatched_tensor": ("Expected a batched input with 4 dims", lambda: (IMAGES[0, 0], LABELS), {}),
    "unbatched_video": ("Expected a batched input with 5 dims", lambda: (tv_tensors.Video(IMAGES), LABELS), {}),
    "more_labels": ("does not match the batch size of the labels", lambda: (IMAGES, classes_of(10, 0)), {}),
    "fewer_labels": ("does not match the batch size of the labels", lambda: (IMAGES, LABELS[:1]), {}),
    "fewer_in_second_stack": (
        "does not match the batch size of the labels",
        lambda: (tv_tensors.Image(IMAGES), LABELS, tv_tensors.Image(IMAGES[:8])),
        {},
    ),
    "three_dimensional_labels": ("labels should be index based", lambda: (IMAGES, torch.zeros(9, 3, 2)), {}),
    "three_dimensional_labels_shape": ("but got a tensor of shape", lambda: (IMAGES, torch.zeros(9, 3, 2)), {}),
    "scalar_label": ("labels should be index based", lambda: (IMAGES, torch.tensor(3)), {}),
    "other_num_classes": ("When passing 2D labels", lambda: (IMAGES, torch.zeros(9, K + 1)), {}),
    "fewer_classes": ("When passing 2D labels", lambda: (IMAGES, torch.zeros(9, K - 1)), {}),
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
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=fragment):
        ours(*sample)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("error", list(ERRORS))
def test_errors_of_random_mix(error: str) -> None:
    fragment, build, options = ERRORS[error]
    ours = fm.RandomMix([fm.MixUp(), fm.CutMix()], **{"num_classes": K, **options})
    with pytest.raises(ValueError, match=fragment):
        ours(*build())


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


# --- traps of torchvision's, and what ours does instead ---------------------------------------------------------------


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
        # Half a level, and what a blend in float32 may be off below 256.
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
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="Class values must be"):
        theirs(x, y)
    assert not torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=rf"labels must be in \[0, num_classes\) = \[0, {K}\), but got {wrong}"):
        ours(x, y)
    assert torch.equal(torch.get_rng_state(), before)


def test_trap_labels_before_images_in_a_dict() -> None:
    """torchvision takes the first tensor for the images: MixUp then mixes the labels and not the images."""
    x, y = images_of((4, 3, 12, 10), torch.float32, 0), classes_of(4, 0)
    theirs, ours = both("MixUp", num_classes=K)
    wrong, _ = seeded(2, theirs, {"labels": y, "images": x})
    assert wrong["images"] is x
    assert not torch.equal(wrong["labels"], torch.nn.functional.one_hot(y, K).float())

    expected, _ = seeded(2, theirs, {"images": x, "labels": y})
    out, _ = seeded(2, ours, {"labels": y, "images": x})
    assert list(out) == ["labels", "images"]
    assert_blended_alike(out["images"], expected["images"], x)
    assert torch.equal(out["labels"], expected["labels"])
    assert not torch.equal(out["images"], x)

    theirs, ours = both("CutMix", num_classes=K)
    with pytest.raises(TypeError, match="at least two dimensions"):
        theirs({"labels": y, "images": x})
    expected, _ = seeded(2, theirs, {"images": x, "labels": y})
    out, _ = seeded(2, ours, {"labels": y, "images": x})
    assert torch.equal(out["images"], expected["images"])
    assert torch.equal(out["labels"], expected["labels"])


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
