"""Finished batches by modules and functions: fm.mix(..., finish=), fm.finish and finish= of every module."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torchvision import tv_tensors
from torchvision.transforms import v2

import fusedmix as fm
from fusedmix import erasing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLAIN = fm.Finish((MEAN, STD))
RANDOM = fm.Finish((MEAN, STD), hflip=0.5, erase=fm.Erase(0.5, value="pixel", count=2))
METHODS: list[Any] = [fm.MixUp, fm.CutMix, fm.HMix, fm.GMix, fm.FMix, fm.SmoothMix, fm.SamplePairing]


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (6, 3, 18, 22), dtype=torch.uint8, generator=generator)
    return x, torch.arange(6) % 5


@pytest.mark.parametrize("sampling", ["host", "device"])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_a_module_finishes_what_it_mixes(method: Any, sampling: str) -> None:
    """The plan, the labels and the generator are those of the same module without; the images are mixed by that plan,
    and flipped and erased by its draws."""
    x, y = batch()
    for finish in (PLAIN, RANDOM):
        options = {"num_classes": 5, "per": "sample" if sampling == "device" else "batch", "sampling": sampling}
        mixer, without = method(finish=finish, **options), method(**options)
        torch.manual_seed(3)
        out, targets = mixer(x, y)
        torch.manual_seed(3)
        plan = mixer.sample(6, (18, 22), labels=y)
        torch.manual_seed(3)
        expected = without.sample(6, (18, 22), labels=y)
        for name in ("partner", "lam", "weight", "masks"):
            assert torch.equal(getattr(plan, name), getattr(expected, name))
        assert (plan.draws is None) == (finish is PLAIN)
        assert torch.equal(out, fm.mix(x, plan, finish=finish))
        assert torch.equal(targets, fm.mix_labels(y, plan, num_classes=5))
        assert out.dtype == torch.float32
        by_reference = fm.mix(x, plan, finish=finish, backend="reference")
        assert (out - by_reference).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["MixUp", "CutMix"])
def test_a_module_is_torchvisions_chain(name: str) -> None:
    chain = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    theirs, mixer = getattr(v2, name)(num_classes=5), getattr(fm, name)(num_classes=5, finish=PLAIN)
    for seed in range(30):
        x, y = batch(seed)
        torch.manual_seed(seed)
        images, labels = theirs(chain(x), y)
        torch.manual_seed(seed)
        out, targets = mixer(x, y)
        assert (out - images).abs().max() <= 3 * 2.0**-22 / min(STD)
        assert torch.equal(targets, labels)


def test_finish_is_a_mix_that_mixes_nothing() -> None:
    x, _ = batch()
    for finish in (PLAIN, fm.Finish(None, torch.bfloat16, torch.channels_last)):
        plan = fm.MixUp(num_classes=5).sample(6, (18, 22), lam=1.0)
        for backend in (None, "reference"):
            assert torch.equal(fm.finish(x, finish, backend=backend), fm.mix(x, plan, finish=finish, backend=backend))
    assert torch.equal(fm.finish(x, RANDOM), fm.finish(x, PLAIN))  # Nothing is drawn for evaluation.
    last = fm.Finish((MEAN, STD), memory_format=torch.contiguous_format, input_format="NHWC")
    assert torch.equal(fm.finish(x.permute(0, 2, 3, 1).contiguous(), last), fm.finish(x, PLAIN))
    assert fm.finish(x.double() / 255, fm.Finish((MEAN, STD), torch.float64)).dtype == torch.float64
    assert isinstance(fm.finish(tv_tensors.Image(x), PLAIN), tv_tensors.Image)


def test_bytes_by_rows_of_pixels_are_mixed() -> None:
    x, y = batch()
    rows = fm.Finish((MEAN, STD), hflip=0.5, input_format="NHWC", memory_format=torch.contiguous_format)
    planes = fm.Finish((MEAN, STD), hflip=0.5)
    made = []
    for finish, images in ((planes, x), (rows, x.permute(0, 2, 3, 1).contiguous())):
        torch.manual_seed(1)
        made.append(fm.CutMix(num_classes=5, per="sample", finish=finish)(images, y)[0])
    assert torch.equal(*made)


def test_evaluation_finishes_and_mixes_nothing() -> None:
    x, y = batch()
    mixer = fm.CutMix(num_classes=5, finish=RANDOM, training_only=True).eval()
    state = torch.get_rng_state()
    out, labels = mixer(x, y)
    assert torch.equal(out, fm.finish(x, PLAIN))
    assert labels is y
    assert torch.equal(torch.get_rng_state(), state)
    plan = mixer.sample(6, (18, 22))
    assert torch.equal(fm.mix(x, plan, finish=RANDOM), out)


def test_seeds_and_generators() -> None:
    for options in ({"sampling": "host"}, {"sampling": "device"}):
        mixer = fm.MixUp(num_classes=5, finish=RANDOM, **options)
        first, again = (mixer.sample(6, (18, 22), seed=4).draws for _ in range(2))
        other = mixer.sample(6, (18, 22), seed=5).draws
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        if mixer.sampling == "device":
            assert torch.equal(first, erasing.draw(erasing.chances(RANDOM), torch.tensor(4), 6, (18, 22)))
        else:
            torch.manual_seed(4)
            assert torch.equal(first, mixer.sample(6, (18, 22)).draws)
        own = torch.Generator().manual_seed(2)
        state = torch.get_rng_state()
        mixer.sample(6, (18, 22), generator=own)
        assert torch.equal(torch.get_rng_state(), state)


def test_plans_and_modules_travel() -> None:
    x, y = batch()
    mixer = fm.CutMix(num_classes=5, finish=RANDOM)
    plan = mixer.sample(6, (18, 22), seed=1)
    leaves, tree = pytree.tree_flatten(plan)
    for same in (pytree.tree_unflatten(leaves, tree), pickle.loads(pickle.dumps(plan)), plan.to("cpu")):
        assert torch.equal(same.draws, plan.draws)
        assert same.pixels is None
    for module in (pickle.loads(pickle.dumps(mixer)), copy.deepcopy(mixer)):
        torch.manual_seed(1)
        expected = mixer(x, y)[0]
        torch.manual_seed(1)
        assert torch.equal(module(x, y)[0], expected)
    assert "finish=Finish(" in repr(mixer)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, y: fm.MixUp(num_classes=5, finish=(MEAN, STD)), TypeError, "finish must be a Finish"),
        (
            lambda x, y: fm.MixUp(num_classes=5, finish=PLAIN, inplace=True),
            ValueError,
            "finish must be None with inplace",
        ),
        (lambda x, y: fm.MixUp(num_classes=5, finish=PLAIN, axes=(-1,)), ValueError, "finish must be None with axes"),
        (
            lambda x, y: fm.MixUp(num_classes=5, finish=PLAIN)(x[:, :2], y),
            ValueError,
            "images must have a channel for each",
        ),
        (
            lambda x, y: fm.MixUp(num_classes=5, finish=PLAIN)(x[:, :, 0], y),
            ValueError,
            r"images must be \(B, C, H, W\)",
        ),
        (lambda x, y: fm.finish(x, None), TypeError, "finish must be a Finish"),
        (lambda x, y: fm.finish(x[0], PLAIN), ValueError, "x must be"),
        (
            lambda x, y: fm.mix(x, fm.MixUp(num_classes=5).sample(6, (18, 22)), finish=RANDOM),
            ValueError,
            "plan must say which samples are flipped",
        ),
        (
            lambda x, y: fm.mix(x, fm.CutMix(num_classes=5).sample(6, (22,)), finish=PLAIN),
            ValueError,
            r"plan must be for images \(H, W\)",
        ),
        (
            lambda x, y: fm.MixUp(num_classes=5, finish=PLAIN)(x.float().requires_grad_(), y),
            ValueError,
            "images must not require grad",
        ),
        (
            lambda x, y: fm.MixUp(num_classes=5, finish=fm.Finish(None, torch.float64))(x, y),
            ValueError,
            "float64 must come from a float64 batch",
        ),
    ],
)
def test_what_is_refused_draws_nothing(call: Any, error: type[Exception], message: str) -> None:
    x, y = batch()
    state = torch.get_rng_state()
    with pytest.raises(error, match=message):
        call(x, y)
    if "plan must" not in message:
        assert torch.equal(torch.get_rng_state(), state)


def test_label_maps_are_mixed_but_not_flipped() -> None:
    x, y = batch()
    sample = {"image": tv_tensors.Image(x), "mask": tv_tensors.Mask(torch.randint(0, 9, (6, 18, 22))), "labels": y}
    mixer = fm.CutMix(num_classes=5, finish=PLAIN)
    torch.manual_seed(1)
    out = mixer(sample)
    torch.manual_seed(1)
    expected = fm.CutMix(num_classes=5)(sample)
    assert torch.equal(out["mask"], expected["mask"])
    assert torch.equal(out["image"], fm.finish(expected["image"], PLAIN))  # a box is a copy
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="hflip of finish must be 0 for a sample with segmentation masks"):
        fm.CutMix(num_classes=5, finish=fm.Finish(None, hflip=0.5))(sample)
    assert torch.equal(torch.get_rng_state(), state)


def test_random_mix_finishes() -> None:
    x, y = batch()
    mixer = fm.RandomMix([fm.MixUp(), fm.CutMix()], num_classes=5, per="sample", finish=RANDOM)
    torch.manual_seed(1)
    out, _ = mixer(x, y)
    torch.manual_seed(1)
    plan = mixer.sample(6, (18, 22))
    assert torch.equal(out, fm.mix(x, plan, finish=RANDOM))


def test_a_compiled_step_is_the_eager_one() -> None:
    x, y = batch()
    for finish in (PLAIN, RANDOM):
        mixer = fm.CutMix(num_classes=5, finish=finish)
        torch.manual_seed(1)
        expected = mixer(x, y)
        torch.manual_seed(1)
        out = torch.compile(lambda a, b: mixer(a, b), backend="eager", fullgraph=True)(x, y)  # noqa: B023
        assert all(torch.equal(*pair) for pair in zip(expected, out, strict=True))
