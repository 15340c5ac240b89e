"""Batches of every structure through modules with a finish; and bytes without one, which stay bytes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision import tv_tensors

import fusedmix as fm
from fusedmix.backends.finished import finish as finish_alone
from test_finish_modules import MEAN, METHODS, PLAIN, RANDOM, STD, batch

ERASED = fm.Finish((MEAN, STD), erase=fm.Erase(0.7, value=0.5))
ALL_METHODS: list[Any] = [*METHODS, lambda **options: fm.GridMix(cells=(3, 4), **options)]


def seeded(mixer: Any, sample: Any, seed: int = 1) -> Any:
    torch.manual_seed(seed)
    return mixer(sample) if isinstance(sample, dict) else mixer(*sample)


def plan_of(mixer: fm.MixTransform, seed: int = 1) -> fm.MixPlan:
    torch.manual_seed(seed)
    return mixer.sample(6, (18, 22))


# ---- With a finish ----


@pytest.mark.parametrize("finish", [PLAIN, RANDOM], ids=["plain", "random"])
def test_every_image_of_a_sample_is_finished(finish: fm.Finish) -> None:
    """By one plan, flips and holes included; what is no image stays what it was."""
    (x, y), (other, _) = batch(), batch(1)
    mixer = fm.CutMix(num_classes=5, finish=finish)
    sample = {"left": tv_tensors.Image(x), "labels": y, "right": tv_tensors.Image(other), "names": ["a"] * 6, "n": 3}
    out, plan = seeded(mixer, sample), plan_of(mixer)
    for name, images in (("left", x), ("right", other)):
        assert type(out[name]) is tv_tensors.Image
        assert torch.equal(out[name], fm.mix(images, plan, finish=finish))
    assert torch.equal(out["labels"], fm.mix_labels(y, plan, num_classes=5))
    assert (out["names"], out["n"]) == (["a"] * 6, 3)
    assert torch.equal(sample["left"], x)  # The batch that came is left alone.


def test_types_come_out_as_they_went_in() -> None:
    class Named(Tensor):
        pass

    x, y = batch()
    mixer = fm.MixUp(num_classes=5, finish=PLAIN)
    for images in (x, tv_tensors.Image(x), x.as_subclass(Named)):
        out, _ = seeded(mixer, (images, y))
        assert type(out) is type(images)
        assert type(fm.finish(images, PLAIN)) is type(images)
        assert out.dtype == torch.float32


def test_images_of_two_sizes_share_a_plan_without_holes() -> None:
    """Where a hole is depends on the size of the image."""
    x, y = batch()
    sample = {"large": tv_tensors.Image(x), "small": tv_tensors.Image(x[..., :9, :9].clone()), "labels": y}
    flips = fm.Finish((MEAN, STD), hflip=0.5)
    mixer = fm.MixUp(num_classes=5, finish=flips)
    out, plan = seeded(mixer, sample), plan_of(mixer)
    assert torch.equal(out["small"], fm.mix(sample["small"], plan, finish=flips))
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="Images mixed by one plan must have one spatial size"):
        fm.MixUp(num_classes=5, finish=ERASED)(sample)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="x must be of the size of the plan"):
        fm.mix(sample["small"], plan_of(fm.MixUp(finish=ERASED)), finish=ERASED)


def test_label_maps_of_erased_images_are_mixed_as_without() -> None:
    x, y = batch()
    sample = {"image": tv_tensors.Image(x), "mask": tv_tensors.Mask(torch.randint(0, 9, (6, 18, 22))), "labels": y}
    mixer = fm.CutMix(num_classes=5, finish=ERASED)
    out, plan = seeded(mixer, sample), plan_of(mixer)
    assert torch.equal(out["mask"], fm.mix_masks(sample["mask"], plan))
    assert torch.equal(out["image"], fm.mix(x, plan, finish=ERASED))


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(6, 3, 4, 8, 8, dtype=torch.uint8),
        tv_tensors.Video(torch.zeros(6, 4, 3, 8, 8, dtype=torch.uint8)),
        tv_tensors.Video(torch.zeros(6, 3, 8, 8, dtype=torch.uint8)),
    ],
    ids=["five dims", "video", "frames"],
)
def test_videos_are_refused(images: Tensor) -> None:
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"Mix videos and volumes without finish=|batched input with 5 dims"):
        fm.MixUp(num_classes=5, finish=RANDOM)(images, batch()[1])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("sampling", ["host", "device"])
def test_a_batch_that_is_not_mixed_is_flipped_and_erased_all_the_same(sampling: str) -> None:
    x, y = batch()
    for options in ({"p": 0.0}, {"p": 0.5, "per": "sample"}):
        mixer = fm.CutMix(num_classes=5, finish=RANDOM, sampling=sampling, **options)
        (out, _), plan = seeded(mixer, (x, y)), plan_of(mixer)
        assert plan.draws is not None
        assert plan.draws[:, :2].any()
        alone = finish_alone(x, RANDOM.arguments(x, plan.draws))
        kept = plan.lam == 1
        assert kept.any()
        assert (out[kept] - alone[kept]).abs().max() < 1e-5  # The fills of cpp are float32's.
    mixer = fm.CutMix(num_classes=5, finish=PLAIN)
    mixer.enabled = False
    assert torch.equal(seeded(mixer, (x, y))[0], fm.finish(x, PLAIN))


def test_a_random_mix_goes_through_evaluation_and_seeds() -> None:
    x, y = batch()
    of: Any = {"num_classes": 5, "finish": RANDOM, "training_only": True}
    mixer = fm.RandomMix([fm.MixUp(), fm.CutMix(), fm.FMix()], **of)
    for seed in range(6):
        assert torch.equal(seeded(mixer, (x, y), seed)[0], fm.mix(x, plan_of(mixer, seed), finish=RANDOM))
    assert torch.equal(mixer.eval()(x, y)[0], fm.finish(x, RANDOM))
    assert mixer(x, y)[1] is y


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_a_seed_is_what_the_generator_gives(method: Any) -> None:
    """sample(seed=) of numbers drawn on the host is torch.manual_seed(seed) and the draw, flips and holes included."""
    x, y = batch()
    for options in ({"pairing": "random"}, {"per": "sample"}, {"p": 0.5}):
        mixer = method(num_classes=5, finish=RANDOM, sampling="host", **options)
        for seed in (0, 3):
            out, _ = seeded(mixer, (x, y), seed)
            plan = mixer.sample(6, (18, 22), seed=seed)
            assert torch.equal(fm.mix(x, plan, finish=RANDOM), out)
    compiled = torch.compile(lambda: mixer.sample(6, (18, 22), seed=3).draws, backend="eager", fullgraph=True)
    if method is fm.MixUp:
        assert torch.equal(compiled(), plan.draws)


def test_micro_batches_are_cut_from_what_comes_out() -> None:
    x, _ = batch()
    plan = fm.CutMix(num_classes=5, finish=RANDOM).sample(6, (18, 22), seed=1)
    whole = fm.mix(x, plan, finish=RANDOM)
    assert torch.equal(torch.cat(whole.split(2)), whole)
    with pytest.raises(ValueError, match="mix the whole batch, then split what comes out"):
        fm.mix(x[:2], plan, finish=RANDOM)


@pytest.mark.parametrize("sampling", ["host", "device"])
@pytest.mark.parametrize("source", ["torch's", "own generator"])
def test_a_checkpoint_finishes_again_what_it_finished(sampling: str, source: str) -> None:
    own = torch.Generator().manual_seed(7) if source == "own generator" else None
    mixer = fm.CutMix(num_classes=5, finish=RANDOM, sampling=sampling, generator=own)
    layer, (x, y), seen = nn.Conv2d(3, 2, 3), batch(), []

    def step(images: Tensor) -> Tensor:
        seen.append(mixer(images, y)[0])
        return layer(seen[-1]).sin().sum()

    contexts: Any = {} if own is None else {"context_fn": fm.checkpoint_contexts}
    checkpoint(step, x, use_reentrant=False, **contexts).backward()
    forward, again = seen
    assert torch.equal(forward, again)
    assert layer.weight.grad is not None


def test_a_plan_serves_the_finish_that_it_was_drawn_for() -> None:
    x, _ = batch()
    plans = {finish: plan_of(fm.MixUp(finish=finish)) for finish in (PLAIN, RANDOM, ERASED)}
    flips = fm.Finish(None, hflip=0.5)
    for finish, plan in plans.items():
        fm.mix(x, plan)  # Without a finish nothing is flipped or erased.
        for other in (PLAIN, RANDOM, ERASED, flips):
            if other is finish:
                fm.mix(x, plan, finish=other)
                continue
            with pytest.raises(ValueError, match=r"plan(\.draws)? must .* that was made with this finish"):
                fm.mix(x, plan, finish=other)
    for wrong in (plans[RANDOM].draws[:5], plans[RANDOM].draws.long(), plans[RANDOM].draws[:, :8]):  # type: ignore[index, union-attr]
        with pytest.raises(ValueError, match=r"plan\.draws must be int32 of shape \(6, 12\)"):
            fm.mix(x, dataclasses.replace(plans[RANDOM], draws=wrong), finish=RANDOM)


def test_plans_from_outside_finish() -> None:
    """With partners that repeat, and weights of single pixels: as the finished images are mixed, within rounding."""
    x, _ = batch()
    partner = torch.tensor([1, 1, 0, 0, 5, 2])
    generator = torch.Generator().manual_seed(2)
    for part in (
        {"masks": torch.rand(6, 18, 22, generator=generator)},
        {"boxes": torch.tensor([[2, 3, 9, 20]] * 6)},
        {"lam": torch.rand(6, generator=generator)},
    ):
        plan = fm.MixPlan.from_parts(**part, partner=partner, size=(18, 22))
        expected = fm.mix(fm.finish(x, PLAIN), plan)
        for backend in (None, "reference"):
            off = fm.mix(x, plan, finish=PLAIN, backend=backend) - expected
            assert off.abs().max() <= 8 * 2.0**-24 / min(STD)
        with pytest.raises(ValueError, match="plan must say which samples are flipped"):
            fm.mix(x, plan, finish=RANDOM)


def test_a_model_is_not_attached_to_what_finishes() -> None:
    model, x = nn.Conv2d(3, 2, 3), batch()[0] / 255
    with pytest.raises(ValueError, match="mix must have finish=None"):
        fm.attach(model, fm.MixUp(num_classes=5, finish=PLAIN))
    mixer = fm.MixUp(num_classes=5)
    handle = fm.attach(model, mixer)
    with pytest.raises(ValueError, match="mix must have finish=None"):
        handle.mix = fm.MixUp(num_classes=5, finish=PLAIN)
    mixer.finish = PLAIN
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="mix must have finish=None"):
        model(x)
    assert torch.equal(torch.get_rng_state(), state)


# ---- Without a finish ----


@pytest.mark.parametrize("backend", [None, "reference"], ids=["chosen", "reference"])
@pytest.mark.parametrize("method", ALL_METHODS, ids=lambda m: getattr(m, "__name__", "GridMix"))
def test_bytes_stay_bytes_in_either_order(method: Any, backend: str | None) -> None:
    """By modules with axes=(1, 2) and by functions on a view: the numbers of a batch (B, C, H, W), in its layout."""
    x, y = batch()
    last = x.permute(0, 2, 3, 1).contiguous()
    for options in ({"per": "batch"}, {"per": "sample", "pairing": "random"}):
        planar, pixels = (method(num_classes=5, backend=backend, axes=axes, **options) for axes in (None, (1, 2)))
        (expected, targets), (out, same) = seeded(planar, (x, y)), seeded(pixels, (last, y))
        assert expected.dtype == out.dtype == torch.uint8
        assert out.shape == last.shape
        assert out.is_contiguous()
        assert torch.equal(out, expected.permute(0, 2, 3, 1))
        assert torch.equal(same, targets)
        by_function = fm.mix(last.permute(0, 3, 1, 2), plan_of(planar), backend=backend)
        assert torch.equal(by_function, expected)
        assert by_function.permute(0, 2, 3, 1).is_contiguous()
        written = last.clone()
        pixels.inplace = True
        assert seeded(pixels, (written, y))[0] is written
        assert torch.equal(written, out)
