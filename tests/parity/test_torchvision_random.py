"""The draws of torchvision: its RandomChoice, RandomApply and Compose, its generators and seeds, and plans of them."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torchvision.transforms import v2

import fusedmix as fm
from alike import (
    NAMES,
    K,
    assert_alike,
    assert_blended_alike,
    assert_same_sample,
    both,
    chosen,
    classes_of,
    seeded,
)
from conftest import images_of

# --- among other transforms ---


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_mode_mixes_too(name: str) -> None:
    theirs, ours = both(name, num_classes=K)
    x, y = images_of((4, 3, 8, 8), torch.float32, 0), classes_of(4, 0)
    assert_alike(0, theirs.eval(), ours.eval(), x, y, exact=name == "CutMix")


@pytest.mark.parametrize("name", NAMES)
def test_in_compose(name: str) -> None:
    """Random transforms before and after draw what they draw beside torchvision's."""
    theirs, ours = (
        v2.Compose([v2.RandomHorizontalFlip(0.5), v2.ToDtype(torch.float32, scale=True), mix, v2.RandomErasing(p=0.5)])
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


@pytest.mark.parametrize(
    "container", [partial(v2.RandomChoice, p=[0.3, 0.7]), partial(v2.RandomApply, p=0.5)], ids=lambda made: made.func
)
def test_containers_take_ours_beside_torchvisions(container: Any) -> None:
    pairs = [both(name, num_classes=K) for name in NAMES]
    x, y = images_of((6, 3, 8, 8), torch.float32, 0), classes_of(6, 0)
    for seed in range(3):
        (expected, targets), _ = seeded(seed, container([theirs for theirs, _ in pairs]), x, y)
        for first, second in ((0, 1), (1, 0), (1, 1)):
            (out, got), _ = seeded(seed, container([pairs[0][first], pairs[1][second]]), x, y)
            assert_blended_alike(out, expected, x)
            torch.testing.assert_close(got, targets, rtol=0, atol=2e-6)


WEIGHTS = {
    "none": None,
    "even": [0.5, 0.5],
    "uneven": [0.2, 0.8],
    "not_normalised": [3, 1],
    "thirds": [0.1, 0.2],
    "one_certain": [0.0, 1.0],
}


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
        [v2.RandomApply([v2.MixUp(num_classes=K)], p=0.5), v2.RandomApply([v2.CutMix(num_classes=K)], p=0.4)]
    )
    ours = fm.RandomMix([fm.MixUp(p=0.5), fm.CutMix(p=0.4)], num_classes=K)
    assert_like_random_apply(range(6300, 6340), theirs, ours)


# --- generators and seeds ---


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
        assert torch.rand(1, generator=generator) == torch.rand(1)  # So both stand at the same place.


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
        params = members[index].make_params([torch.empty(2, 3, 20, 24)])  # This goes on from the draw of `chosen`.
        assert_plan_is(ours.sample(2, (20, 24), seed=seed), params, (20, 24))
