"""Segmentation masks beside the images: label maps are cut as the images are, or become soft one-hot maps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors

import fusedmix as fm
from conftest import INTEGERS, refused
from samples import SOFT, B, H, K, W, assert_blended, blended, build, classes, every_module, images, label_map, run
from test_ops import HERE

VOID = 255
HARD = ("CutMix", "CutMix_per_sample", "CutMix_per_pair")
LABEL_MAPS = {
    "BHW": lambda: label_map(B, H, W),
    "B1HW": lambda: label_map(B, 1, H, W),
    "BNHW": lambda: label_map(B, 3, H, W),
    "int32": lambda: label_map(B, H, W).int(),
    "uint8": lambda: label_map(B, 1, H, W, high=256).byte(),
    "bool": lambda: label_map(B, H, W, high=2).bool(),
    "void": lambda: label_map(B, H, W).masked_fill(label_map(B, H, W, seed=2, high=4) == 0, VOID),
}


@pytest.mark.parametrize("kind", list(LABEL_MAPS))
@pytest.mark.parametrize("name", HARD)
def test_label_maps_are_cut_as_the_images_are(name: str, kind: str) -> None:
    x, y, m = tv_tensors.Image(images()), classes(), LABEL_MAPS[kind]()
    out, plan = run(build(name), {"mask": tv_tensors.Mask(m), "labels": y, "image": x})
    assert type(out["mask"]) is tv_tensors.Mask
    assert (out["mask"].dtype, out["mask"].shape) == (m.dtype, m.shape)
    own = (plan.mask() == 1).reshape(B, *[1] * (m.ndim - 3), H, W)
    assert own.any()
    assert not own.all()
    assert torch.equal(out["mask"].as_subclass(Tensor), torch.where(own, m, m[plan.partner]))
    assert_blended(out["image"], x, plan)


def test_a_label_map_moves_with_its_pixels() -> None:
    """Without any plan: a mask that is a copy of the image is a copy of the mixed image."""
    m = label_map(B, 1, H, W, high=256).byte()
    mix = fm.CutMix(num_classes=K, per="sample", pairing="random")
    torch.manual_seed(0)
    for _ in range(10):
        x, _, mask = mix(tv_tensors.Image(m), classes(), tv_tensors.Mask(m))
        assert torch.equal(x.as_subclass(Tensor), mask.as_subclass(Tensor))


@pytest.mark.parametrize("name", SOFT)
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool], ids=str)
def test_label_maps_are_not_blended(name: str, dtype: torch.dtype) -> None:
    with refused(ValueError, "mask_classes"):
        build(name)(tv_tensors.Image(images()), classes(), tv_tensors.Mask(label_map(high=2).to(dtype)))


def test_label_maps_and_random_mix() -> None:
    """A set of methods that may blend does not take label maps, whatever it would draw; a set of CutMixes does."""
    sample = tv_tensors.Image(images()), classes(), tv_tensors.Mask(label_map())
    with pytest.raises(ValueError, match="mask_classes"):
        fm.RandomMix([fm.CutMix(), fm.MixUp()], [1.0, 0.0], num_classes=K)(*sample)
    out, plan = run(fm.RandomMix([fm.CutMix(alpha=0.5), fm.CutMix(alpha=2.0)], num_classes=K), *sample)
    own = plan.mask() == 1
    assert torch.equal(out[2].as_subclass(Tensor), torch.where(own, label_map(), label_map()[plan.partner]))


def one_hot_maps(m: Tensor, void: int | None) -> Tensor:
    """(B, K, H, W) float64, void pixels 0 everywhere."""
    m = m.reshape(B, H, W).long()
    planes = [(m == k) & (m != void if void is not None else True) for k in range(K)]
    return torch.stack(planes, 1).double()


@pytest.mark.parametrize("void", [VOID, -1, 2, None], ids=str)
@pytest.mark.parametrize("shape", [(B, H, W), (B, 1, H, W)], ids=["BHW", "B1HW"])
@pytest.mark.parametrize("name", [*SOFT, *HARD])
def test_soft_one_hot_masks(name: str, shape: tuple[int, ...], void: int | None) -> None:
    m = label_map(*shape)
    if void is not None:
        m = m.masked_fill(label_map(*shape, seed=2, high=4) == 0, void)
    planes = one_hot_maps(m, void)
    mix = build(name, mask_classes=K, mask_ignore_index=void)
    out, plan = run(mix, tv_tensors.Image(images()), classes(), tv_tensors.Mask(m))
    assert type(out[2]) is tv_tensors.Mask
    assert out[2].dtype == torch.float32
    assert out[2].shape == (B, K, H, W)
    soft = out[2].as_subclass(Tensor).double()
    assert (soft - blended(planes, plan)).abs().max() <= 2**-23
    # A pixel's targets sum to the share of it that is not void.
    valid = planes.sum(1)
    assert (soft.sum(1) - blended(valid, plan)).abs().max() <= K * 2**-23


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool], ids=str)
def test_soft_one_hot_masks_of_other_dtypes(dtype: torch.dtype) -> None:
    m = label_map(high=2).to(dtype)
    out, plan = run(build("GMix", mask_classes=2), tv_tensors.Image(images()), classes(), tv_tensors.Mask(m))
    planes = torch.stack([m.long() == 0, m.long() == 1], 1).double()
    assert (out[2].as_subclass(Tensor).double() - blended(planes, plan)).abs().max() <= 2**-23


@pytest.mark.parametrize("wrong", [K, -1, 254])
def test_mask_labels_out_of_range(wrong: int) -> None:
    m = label_map()
    m[0, 0, 0] = wrong
    x = images()
    with refused(ValueError, rf"masks.*\[0, {K}\), but got {wrong}"):
        fm.MixUp(num_classes=K, mask_classes=K, inplace=True)(tv_tensors.Image(x), classes(), tv_tensors.Mask(m))
    assert torch.equal(x, images())


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((B, H, W), torch.float32), ((B, 4, H, W), torch.float16), ((B, 1, H, W), torch.float64)],
    ids=["BHW", "BNHW", "B1HW"],
)
@every_module
def test_float_masks_are_blended(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    m = images(*shape, dtype=dtype, seed=3)
    out, plan = run(build(name), tv_tensors.Image(images()), classes(), tv_tensors.Mask(m))
    assert type(out[2]) is tv_tensors.Mask
    assert_blended(out[2], m, plan)


@pytest.mark.parametrize(
    ("m", "options", "message"),
    [
        (label_map(B, H, W + 1), {}, "spatial size"),
        (label_map(B, W, H), {}, "spatial size"),
        (label_map(B - 1, H, W), {}, "batch size of the masks"),
        (label_map(1, H, W), {}, "batch size of the masks"),
        (label_map(B, 2, H, W), {"mask_classes": K}, "to become soft one-hot"),
        (torch.zeros(B, H, W, dtype=torch.complex64), {}, "complex"),
    ],
    ids=["wider", "transposed", "fewer", "broadcast", "channels", "complex"],
)
def test_masks_that_do_not_fit(m: Tensor, options: dict[str, Any], message: str) -> None:
    with refused(ValueError, message):
        fm.CutMix(num_classes=K, **options)(tv_tensors.Image(images()), classes(), tv_tensors.Mask(m))


def test_several_masks_and_pure_tensor_images() -> None:
    x, a, b = images(), label_map(), images(B, 2, H, W, seed=4)
    mix = fm.CutMix(labels_getter=None)
    out, plan = run(mix, x, tv_tensors.Mask(a), {"dense": tv_tensors.Mask(b)})
    own = plan.mask() == 1
    assert_blended(out[0], x, plan)
    assert torch.equal(out[1].as_subclass(Tensor), torch.where(own, a, a[plan.partner]))
    assert_blended(out[2]["dense"], b, plan)


def test_masks_alone_are_refused() -> None:
    with pytest.raises(ValueError, match="masks without images"):
        fm.CutMix(labels_getter=None)(tv_tensors.Mask(label_map()))


def test_255_is_a_class_where_there_are_more() -> None:
    maps = torch.full((B, H, W), 255)
    out, _ = run(build("CutMix", mask_classes=300), tv_tensors.Image(images()), classes(), tv_tensors.Mask(maps))
    assert torch.equal(out[2][:, 255], torch.ones(B, H, W))
    out, _ = run(build("CutMix", mask_classes=200), tv_tensors.Image(images()), classes(), tv_tensors.Mask(maps))
    assert not out[2].any()


@pytest.mark.parametrize("dtype", [*INTEGERS, torch.bool], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "stepped", "expanded"])
@pytest.mark.parametrize("backend", HERE, ids="-".join)
def test_labels_of_any_width_are_copied_bit_for_bit(backend: tuple[str, str], layout: str, dtype: torch.dtype) -> None:
    """Whatever the bytes are: as floating-point numbers many of them would be NaN, or subnormal."""
    name, device = backend
    width = torch.empty(0, dtype=dtype).element_size()
    generator = torch.Generator().manual_seed(width)
    raw = torch.randint(2 if dtype == torch.bool else 256, (B, 3, H, W, width), generator=generator, dtype=torch.uint8)
    maps = raw.view(dtype).squeeze(-1).to(device)
    if layout == "channels_last":
        maps = maps.movedim(1, -1).contiguous().movedim(-1, 1)
    elif layout == "stepped":
        maps = maps.repeat(1, 1, 1, 2)[..., ::2]
    elif layout == "expanded":
        maps = maps[..., :1].expand(B, 3, H, W)
    mixes = [fm.CutMix(per="sample", pairing="random"), fm.FMix(pairing="flip")]
    for mix in mixes if name != "triton" else mixes[[*INTEGERS, torch.bool].index(dtype) % 2 :][:1]:
        plan = mix.sample(B, (H, W), seed=3)
        own = (plan.mask() == 1).reshape(B, 1, H, W, 1)
        before = maps.cpu().contiguous().unsqueeze(-1).view(torch.uint8)
        expected = torch.where(own, before, before[plan.partner])
        mixed = fm.mix_masks(maps, plan, backend=name)
        assert mixed.dtype == dtype
        assert torch.equal(mixed.cpu().contiguous().unsqueeze(-1).view(torch.uint8), expected)
        if layout != "expanded":
            written = maps.clone(memory_format=torch.preserve_format)
            version = written._version
            assert fm.mix_masks_(written, plan, backend=name) is written
            assert written._version > version
            assert torch.equal(written.cpu().contiguous().unsqueeze(-1).view(torch.uint8), expected)


def test_in_place_of_what_is_kept_and_what_is_dense() -> None:
    maps, dense = label_map(B, H, W), torch.rand(B, 3, H, W)
    kept, plan = fm.Cutout(length=3).sample(B, (H, W), seed=1), fm.CutMix().sample(B, (H, W), seed=1)
    assert torch.equal(fm.mix_masks_(maps.clone(), kept), maps)
    assert torch.equal(fm.mix_masks_(dense.clone(), plan), fm.mix(dense, plan))
    with pytest.raises(fm.InplaceError, match="pastes crops"):
        fm.mix_masks_(maps, fm.ResizeMix().sample(B, (H, W), seed=1))
