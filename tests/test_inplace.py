"""inplace=True: the images keep their memory, their layout and their type; and what cannot be written is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors

import fusedmix as fm
from conftest import refused
from samples import B, H, K, W, assert_blended, build, classes, every_module, images, label_map, run, soft_labels


def within(x: Tensor) -> tuple[Tensor, Tensor]:
    """A larger tensor and a strided slice of it with the values of x."""
    big = torch.full((x.shape[0] + 2, x.shape[1] + 1, x.shape[2] + 5, 2 * x.shape[3] + 1), 7, dtype=x.dtype)
    view = big[1:-1, :-1, 3:-2, 1::2]
    view.copy_(x)
    return big, view


INPLACE_CASES = [
    *[("slice", dtype) for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8)],
    ("contiguous", torch.float32),
    ("channels_last", torch.float32),
    ("channels_last", torch.uint8),
]


@pytest.mark.parametrize(("layout", "dtype"), INPLACE_CASES, ids=str)
@every_module
def test_inplace(name: str, layout: str, dtype: torch.dtype) -> None:
    original, y = images(dtype=dtype), classes()
    (expected, expected_targets), plan = run(build(name), original, y)
    assert not torch.equal(expected, original)
    assert_blended(expected, original, plan)

    big, x = within(original)
    rest = torch.ones_like(big, dtype=torch.bool)
    rest[1:-1, :-1, 3:-2, 1::2] = False
    if layout != "slice":
        memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        x = original.clone(memory_format=memory_format)
    version, address, strides = x._version, x.data_ptr(), x.stride()
    (out, targets), _ = run(build(name, inplace=True), x, y)
    assert out is x
    assert (x.data_ptr(), x.stride()) == (address, strides)
    assert x._version > version
    assert torch.equal(x, expected)
    assert torch.equal(targets, expected_targets)
    assert (big[rest] == 7).all()
    assert torch.equal(y, classes())


@pytest.mark.parametrize("kind", ["Image", "Video"])
@every_module
def test_inplace_of_tv_tensors(name: str, kind: str) -> None:
    values = images() if kind == "Image" else images(B, 2, 3, H, W)
    wrap = getattr(tv_tensors, kind)
    (expected, _), _ = run(build(name), wrap(values.clone()), classes())
    memory = values.clone()
    x = wrap(memory)
    (out, _), _ = run(build(name, inplace=True), x, classes())
    assert out is x
    assert type(out) is wrap
    assert torch.equal(memory, expected.as_subclass(Tensor))
    assert not torch.equal(memory, values)


@pytest.mark.parametrize("kind", ["label_map", "bool", "dense"])
def test_inplace_of_masks(kind: str) -> None:
    values = {"label_map": label_map(), "bool": label_map(high=2).bool(), "dense": images(B, 2, H, W)}[kind]
    expected, _ = run(build("CutMix"), tv_tensors.Image(images()), classes(), tv_tensors.Mask(values.clone()))
    memory = values.clone()
    mask = tv_tensors.Mask(memory)
    out, _ = run(build("CutMix", inplace=True), tv_tensors.Image(images()), classes(), mask)
    assert out[2] is mask
    assert torch.equal(memory, expected[2].as_subclass(Tensor))
    assert not torch.equal(memory, values)


def test_inplace_leaves_what_changes_shape() -> None:
    """Soft one-hot masks and labels are new tensors; what they were made of stays."""
    m, y = label_map(), soft_labels()
    out, _ = run(build("MixUp", inplace=True, mask_classes=K), tv_tensors.Image(images()), y, tv_tensors.Mask(m))
    assert out[2].shape == (B, K, H, W)
    assert torch.equal(m, label_map())
    assert torch.equal(y, soft_labels())
    assert out[1].data_ptr() != y.data_ptr()


@every_module
def test_out_of_place_leaves_the_input(name: str) -> None:
    x, y, m = images(), classes(), images(B, 1, H, W, seed=3)
    version = x._version
    (out, targets, mask), _ = run(build(name), tv_tensors.Image(x), y, tv_tensors.Mask(m))
    assert torch.equal(x, images())
    assert torch.equal(y, classes())
    assert torch.equal(m, images(B, 1, H, W, seed=3))
    assert x._version == version
    given = {t.untyped_storage().data_ptr() for t in (x, y, m)}
    assert given.isdisjoint(t.untyped_storage().data_ptr() for t in (out, targets, mask))


REFUSALS = {
    "expand": "images.*overlaps.*clone",
    "unfold": "images.*overlaps.*clone",
    "requires_grad": "images.*requires grad.*no_grad",
    "mask": "masks.*overlaps.*clone",
}


@pytest.mark.parametrize("what", REFUSALS)
def test_inplace_refusals(what: str) -> None:
    """Refused before anything is drawn or written."""
    x, extra = images(), []
    if what == "expand":
        x = x[:, :1].expand(B, 3, H, W)
    elif what == "unfold":
        x = images(B, 3, H + W).unfold(2, W, 1)[:, :, :H]
    elif what == "requires_grad":
        x.requires_grad_()
    else:
        extra = [tv_tensors.Mask(label_map(1, H, W).expand(B, H, W))]
        x = tv_tensors.Image(x)
    before = x.detach().clone()
    with refused(fm.InplaceError, REFUSALS[what]):
        fm.CutMix(num_classes=K, inplace=True)(x, classes(), *extra)
    assert torch.equal(x.detach(), before)
