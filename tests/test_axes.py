"""The dims that a mask extends over: videos, signals, volumes, and any others by axes=."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torchvision import tv_tensors
from torchvision.transforms import v2

import fusedmix as fm
from conftest import refused
from samples import B, H, K, W, assert_blended, assert_targets, build, classes, every_module, images, label_map, run


@every_module
def test_videos(name: str) -> None:
    x, y = images(B, 3, 2, H, W), classes()
    out, plan = run(build(name), tv_tensors.Video(x), y)
    assert type(out[0]) is tv_tensors.Video
    assert_blended(out[0], x, plan)
    assert_targets(out[1], one_hot(y, K), plan)


def test_video_with_masks_of_every_frame() -> None:
    m = label_map(B, 3, H, W)
    out, plan = run(build("CutMix"), tv_tensors.Video(images(B, 3, 2, H, W)), classes(), tv_tensors.Mask(m))
    own = (plan.mask() == 1).unsqueeze(1)
    assert torch.equal(out[2].as_subclass(Tensor), torch.where(own, m, m[plan.partner]))


def axes_of(size: tuple[int, ...]) -> tuple[int, ...] | None:
    """What tells a volume from a video."""
    return (-3, -2, -1) if len(size) == 3 else None


@pytest.mark.parametrize("size", [(1,), (37,), (9, 1), (4, 6, 5), (1, 8, 1)], ids=str)
@every_module
def test_signals_and_volumes(name: str, size: tuple[int, ...]) -> None:
    x, y, mix = images(B, 2, *size), classes(), build(name, axes=axes_of(size))
    torch.manual_seed(0)
    for _ in range(4):
        state = torch.get_rng_state()
        plan = mix.sample(B, size)
        torch.set_rng_state(state)
        out, targets = mix(x, y)
        assert plan.mask().shape == (B, *size)
        assert_blended(out, x, plan)
        assert_targets(targets, one_hot(y, K), plan)


@pytest.mark.parametrize("size", [(64,), (12, 10, 8)], ids=["1-D", "3-D"])
def test_boxes_of_signals_and_volumes(size: tuple[int, ...]) -> None:
    """One axis-aligned box of the partner, taken from the values themselves; label weight = what is left outside."""
    x = torch.arange(float(B)).reshape(B, 1, *[1] * len(size)).expand(B, 1, *size).clone()
    mix = fm.CutMix(num_classes=B, alpha=2.0, axes=axes_of(size))
    torch.manual_seed(0)
    for _ in range(8):
        out, targets = mix(x, torch.arange(B))
        lent = out[:, 0] != x[:, 0]
        assert torch.equal(out[:, 0][lent], x.roll(1, 0)[:, 0][lent])
        where = lent[0].nonzero()
        if len(where):
            sides = where.max(0).values - where.min(0).values + 1
            assert sides.prod() == len(where)
        share = len(where) / lent[0].numel()
        expected = (1 - share) * torch.eye(B, dtype=torch.float64) + share * torch.eye(B, dtype=torch.float64).roll(
            1, 0
        )
        assert (targets.double() - expected).abs().max() <= 2**-23


@pytest.mark.parametrize("shape", [(B, 3, 4, H, W), (B, 4, 3, H, W), (B, 1, 1, H, W)], ids=str)
@pytest.mark.parametrize("inplace", [False, True])
@every_module
def test_five_dims_are_mixed_as_a_video(name: str, inplace: bool, shape: tuple[int, ...]) -> None:
    """Alike in all frames, wherever time is: tensor for tensor what the module makes of a tv_tensors.Video."""
    x, y = images(*shape), classes()
    mix = build(name, inplace=inplace)
    expected, plan = run(mix, tv_tensors.Video(x.clone()), y)
    assert plan.size == (H, W)
    for sample in ((x.clone(), y), {"video": x.clone(), "labels": y}):
        out, _ = run(mix, sample)
        pixels, targets = out.values() if isinstance(out, dict) else out
        assert type(pixels) is Tensor
        assert torch.equal(pixels, expected[0].as_subclass(Tensor))
        assert torch.equal(targets, expected[1])


@pytest.mark.parametrize(("axes", "size"), [(None, (H, W)), ((-3,), (4,)), ((-3, -2, -1), (4, H, W))], ids=str)
def test_tubes_spans_and_cuboids(axes: tuple[int, ...] | None, size: tuple[int, ...]) -> None:
    """What is cut of (B, C, T, H, W), taken from the values: one box in the dims of the mask, and all of the others."""
    x = torch.arange(float(B)).reshape(B, 1, 1, 1, 1).expand(B, 3, 4, H, W).clone()
    other = [d for d in range(1, 5) if d not in ([3, 4] if axes is None else [axis % 5 for axis in axes])]
    torch.manual_seed(1)
    cut = 0
    for _ in range(8):
        for video in (x, tv_tensors.Video(x)):
            out = fm.CutMix(num_classes=K, axes=axes)(video, classes())[0].as_subclass(Tensor)
            lent = out != x
            assert torch.equal(lent.any(other), lent.all(other))
            where = lent.any(other)[0].nonzero()
            assert where.shape[1] == len(size)
            if len(where):
                assert (where.amax(0) - where.amin(0) + 1).prod() == len(where)
            cut += len(where) > 0
    assert cut


def test_torchvision_refuses_plain_tensors_of_five_dims() -> None:
    """Where ours differ: torchvision wants the type."""
    for peer in (v2.MixUp(num_classes=K), v2.CutMix(num_classes=K)):
        with pytest.raises(ValueError, match="Expected a batched input with 4 dims"):
            peer(images(B, 3, 4, H, W), classes())


@every_module
def test_six_dims_are_no_images(name: str) -> None:
    x = images(B, 2, 2, 3, H, W)
    with refused(ValueError, r"Expected a batched input with 4 dims .*5 for videos.*axes="):
        build(name)(x, classes())


AXES = {
    "BTCHW": ((B, 3, 2, H, W), (-2, -1)),
    "BTHWC": ((B, 3, H, W, 2), (2, 3)),
    "BHWC": ((B, H, W, 3), (1, 2)),
    "BHWC, from the back": ((B, H, W, 3), (-2, -3)),
    "volumes": ((B, 2, 5, 6, 7), (-3, -2, -1)),
    "time and space of BTCHW": ((B, 4, 2, H, W), (1, -2, -1)),
    "time of a spectrogram": ((B, 1, H, W), (-1,)),
    "frequencies of a spectrogram": ((B, 1, H, W), (2,)),
    "samples without channels": ((B, 33), (-1,)),
    "six dims": ((B, 2, 2, 3, H, W), (4, 5)),
}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("case", list(AXES))
@every_module
def test_axes(name: str, case: str, inplace: bool) -> None:
    """The mask extends over these dims, and all others are mixed alike."""
    shape, axes = AXES[case]
    x, y = images(*shape), classes()
    given = x.clone()
    dims = sorted(axis % x.ndim for axis in axes)
    size = tuple(shape[d] for d in dims)
    (out, targets), plan = run(build(name, axes=axes, inplace=inplace), given, y, size=size)
    m = plan.mask().double()
    m = m.reshape([side if d in (0, *dims) else 1 for d, side in enumerate(shape)])
    expected = m * x.double() + (1 - m) * x.double()[plan.partner]
    assert (out.double() - expected).abs().max() <= 2**-21 * (1 + x.abs().max())
    assert_targets(targets, one_hot(y, K), plan)
    assert (out is given) == inplace
    assert out.stride() == x.stride()
    assert inplace or torch.equal(given, x)


@pytest.mark.parametrize("axes", [None, (-2, -1)], ids=str)
@pytest.mark.parametrize("method", ["MixUp", "CutMix"])
def test_a_video_is_mixed_as_by_torchvision(method: str, axes: tuple[int, ...] | None) -> None:
    x, y = images(B, 3, 2, H, W), classes()
    for seed in range(5):
        torch.manual_seed(seed)
        expected, targets = getattr(v2, method)(num_classes=K)(tv_tensors.Video(x), y)
        torch.manual_seed(seed)
        out, got = getattr(fm, method)(num_classes=K, axes=axes)(x, y)
        assert (out - expected.as_subclass(Tensor)).abs().max() <= 2**-21 * (1 + x.abs().max())
        assert (got - targets).abs().max() <= 2**-22


def test_axes_of_several_stacks_and_of_masks() -> None:
    """A volume with its label map, and a second stack of another number of dims."""
    size = (5, 6, 7)
    x, more, m = images(B, 2, *size), images(B, *size, seed=1), label_map(B, *size)
    mix = build("CutMix", axes=(-3, -2, -1), images_getter=lambda s: [s["x"], s["more"]])
    out, plan = run(mix, {"x": x, "more": more, "labels": classes(), "mask": tv_tensors.Mask(m)}, size=size)
    assert_blended(out["x"], x, plan)
    assert_blended(out["more"], more, plan)
    own = plan.mask() == 1
    assert torch.equal(out["mask"].as_subclass(Tensor), torch.where(own, m, m[plan.partner]))


def test_signals_without_channels_in_a_dict() -> None:
    """With axes=, what has two dims may be images."""
    sample = {"table": images(B, 9), "wave": images(B, 33), "labels": classes()}
    with pytest.raises(ValueError, match="Several tensors may be the images"):
        fm.CutMix(num_classes=K, axes=(-1,))(sample)
    out, plan = run(
        build("CutMix", axes=(-1,)), {"table": sample["table"], "x": sample["wave"], "labels": classes()}, size=(33,)
    )
    assert_blended(out["x"], sample["wave"], plan)
    assert out["table"] is sample["table"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("inplace", [False, True])
@every_module
def test_vectors_and_signals_without_channels(name: str, inplace: bool, dtype: torch.dtype) -> None:
    """(B, D) of floating point has masks of (D,)."""
    x, y = images(B, 33, dtype=dtype), classes()
    given = x.clone()
    (out, targets), plan = run(build(name, inplace=inplace), given, y, size=(33,))
    assert_blended(out, x, plan)
    assert_targets(targets, one_hot(y, K), plan)
    assert (out is given) == inplace


def test_vectors_in_a_dict() -> None:
    """Where nothing has more dims, the one tensor of two dims and floating point is what is mixed."""
    sample = {"index": torch.arange(B), "wave": images(B, 33), "labels": classes()}
    out, plan = run(build("CutMix"), sample, size=(33,))
    assert_blended(out["wave"], sample["wave"], plan)
    assert out["index"] is sample["index"]
    with refused(ValueError, "Several tensors may be the images"):
        build("CutMix")({**sample, "table": images(B, 9)})
    beside, plan = run(build("CutMix"), {**sample, "image": images()})
    assert_blended(beside["image"], images(), plan)
    assert beside["wave"] is sample["wave"]


def test_axes_set_later() -> None:
    mix, x = build("CutMix"), images(B, 3, 2, H, W)
    mix.axes = [-2, -1]
    (out, _), plan = run(mix, x, classes())
    assert mix.axes == (-2, -1)
    assert_blended(out, x, plan)
    for wrong, error in ((-1, TypeError), ((0,), ValueError), ("HW", TypeError)):
        with pytest.raises(error, match="axes"):
            mix.axes = wrong
    assert mix.axes == (-2, -1)
    mix.axes = None
    (out, _), plan = run(mix, x, classes())
    assert_blended(out, x, plan)


def test_axes_of_a_set() -> None:
    methods = [fm.MixUp(axes=(-2, -1)), fm.CutMix(axes=(-2, -1))]
    assert fm.RandomMix(methods, num_classes=K).axes == (-2, -1)
    assert "axes=(-2, -1)" in repr(fm.RandomMix(methods))
    with pytest.raises(ValueError, match="disagree about axes"):
        fm.RandomMix([fm.MixUp(axes=(-1,)), fm.CutMix(axes=(-2, -1))])


@pytest.mark.parametrize("axes", [(3, 4), (-1, 3), (-5, -1), (-4, -3)], ids=str)
def test_axes_that_images_do_not_have(axes: tuple[int, ...]) -> None:
    """(B, C, H, W) has no dim 4, its dim -1 is 3, and its dim -4 is the batch."""
    said = rf"axes must be different dims of the images other than the batch.*{re.escape(str(axes))}"
    for x in (images(), tv_tensors.Image(images())):
        with refused(ValueError, said):
            fm.CutMix(num_classes=K, axes=axes)(x, classes())


@pytest.mark.parametrize("name", ["CutMix", "HMix", "CutMix_per_sample", "RandomMix_per_sample"])
@pytest.mark.parametrize("shape", [(B, 3, 1, W), (B, 3, H, 2), (B, 3, 1)], ids=str)
def test_boxes_that_are_always_empty_are_told_once(name: str, shape: tuple[int, ...]) -> None:
    mix = build(name)
    with pytest.warns(UserWarning, match=r"Boxes are empty.*squeeze") as caught:
        mix(images(*shape), classes())
    assert len(caught) == 1
    assert str(shape[2:]) in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            mix(images(*shape), classes())
            mix.sample(B, shape[2:])
    with pytest.warns(UserWarning, match="Boxes are empty"):
        build(name).sample(B, shape[2:])
    with pytest.warns(UserWarning, match="Boxes are empty"), fm.attach(nn.Identity(), build(name)) as handle:
        handle.model(images(*shape))


@pytest.mark.filterwarnings("error:Boxes are empty")
def test_boxes_that_may_be_cut_are_not_told_of() -> None:
    for name in ("CutMix", "HMix"):
        build(name)(images(B, 3, 3, 3), classes())
        build(name, axes=(-1,))(images(B, 3, 1, W), classes())
        build(name)(images(B, 3, W), classes())
    for name in ("MixUp", "GMix", "SamplePairing"):
        build(name)(images(B, 3, 1, W), classes())


def test_the_warning_of_empty_boxes_is_right() -> None:
    """torchvision cuts nothing from such images either, and both cut from the squeezed ones."""
    x, y = images(B, 3, 1, W), classes()
    for seed in range(20):
        torch.manual_seed(seed)
        assert torch.equal(v2.CutMix(num_classes=K)(x, y)[0], x)
        torch.manual_seed(seed)
        assert torch.equal(fm.CutMix(num_classes=K)(x, y)[0], x)
    torch.manual_seed(0)
    assert any(not torch.equal(fm.CutMix(num_classes=K)(x.squeeze(2), y)[0], x.squeeze(2)) for _ in range(20))
