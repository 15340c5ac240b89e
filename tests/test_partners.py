"""Who is mixed with whom, by which method, and how often: partners, RandomMix, p, lam_range and a given λ."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

import fusedmix as fm
from conftest import INTEGERS
from fusedmix.methods import Kind

SAMPLINGS = ["host", "device"]
SIZES = [0, 1, 2, 3, 8, 33, 1000]


def partners(pairing: str, batch_size: int, sampling: str = "host", seed: int = 0, labels=None) -> list[int]:
    mix = fm.MixUp(pairing=pairing, sampling=sampling)
    return mix.sample(batch_size, (1,), labels=labels, seed=seed).partner.tolist()


def is_permutation(partner: list[int]) -> bool:
    return sorted(partner) == list(range(len(partner)))


def classes_of(*counts: int) -> torch.Tensor:
    """Labels with so many samples of class 0, 1, ..., mixed up."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(len(counts)))]


# ---------------------------------------------------------------------------------------------------- without classes


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("batch_size", SIZES)
def test_roll_is_torchvisions_and_flip_is_timms(batch_size, sampling):
    x = torch.arange(batch_size)
    assert partners("roll", batch_size, sampling) == [(i - 1) % batch_size for i in range(batch_size)]
    assert partners("flip", batch_size, sampling) == [batch_size - 1 - i for i in range(batch_size)]
    assert x[partners("roll", batch_size, sampling)].tolist() == x.roll(1, 0).tolist()
    assert x[partners("flip", batch_size, sampling)].tolist() == x.flip(0).tolist()


@pytest.mark.parametrize("per", ["batch", "sample"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("pairing", ["roll", "flip", "random", "cross_class", "same_class"])
@pytest.mark.parametrize("batch_size", SIZES)
def test_partners_are_a_permutation(batch_size, pairing, sampling, per):
    plan = fm.CutMix(pairing=pairing, sampling=sampling, per=per).sample(
        batch_size, (4, 4), labels=torch.arange(batch_size) % 7, seed=1
    )
    assert plan.partner.dtype == torch.int64
    assert is_permutation(plan.partner.tolist())
    assert {len(t) for t in (plan.partner, plan.lam, plan.weight, plan.kind, plan.geometry)} == {batch_size}


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("batch_size", [3, 4])
def test_random_partners_are_uniform(batch_size, sampling):
    """Over all permutations of 3 and of 4, over seeds."""
    every = dict.fromkeys(itertools.permutations(range(batch_size)), 0)
    for seed in range(25 * len(every)):
        every[tuple(partners("random", batch_size, sampling, seed))] += 1
    assert stats.chisquare(list(every.values())).pvalue > 1e-4


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_random_partners_of_a_large_batch(sampling):
    """One fixed point on average, with variance 1; the partner of a sample is anyone; every sample's is its own."""
    drawn = np.array([partners("random", 1000, sampling, seed) for seed in range(200)])
    fixed = (drawn == np.arange(1000)).sum(1)
    assert abs(fixed.mean() - 1) <= 4 / math.sqrt(len(fixed))
    for sample in (0, 500, 999):
        assert stats.kstest((drawn[:, sample] + 0.5) / 1000, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(drawn[:, :-1].ravel(), drawn[:, 1:].ravel())[0, 1]) <= 4 / math.sqrt(200 * 999) + 1e-3


# ------------------------------------------------------------------------------------------------------- across classes

BALANCED = {
    "two": classes_of(6, 6),
    "three": classes_of(4, 4, 4),
    "uneven": classes_of(5, 3, 2, 1),
    "half": classes_of(8, 5, 3),
    "half and one other": classes_of(7, 7),
    "odd": classes_of(5, 5, 1),
    "all different": classes_of(*[1] * 9),
    "thousand": torch.randint(0, 10, (1000,), generator=torch.Generator().manual_seed(0)),
    "far apart": classes_of(3, 2, 2, 1) * 10**15 - 2**60,
    "negative": classes_of(3, 2, 2, 1) - 2,
}


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("labels", BALANCED.values(), ids=BALANCED)
def test_cross_class_leaves_every_class(labels, sampling):
    """Where the largest class has at most half of the samples, no partner is of the sample's own."""
    for seed in range(20):
        partner = partners("cross_class", len(labels), sampling, seed, labels)
        assert is_permutation(partner)
        assert not (labels[partner] == labels).any()


DOMINATED = {
    "all alike": classes_of(5),
    "one": classes_of(1),
    "one other": classes_of(6, 1),
    "just over half": classes_of(6, 5),
    "several others": classes_of(9, 2, 2, 1),
    "thousand": classes_of(700, 100, 100, 50, 50),
}


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("labels", DOMINATED.values(), ids=DOMINATED)
def test_cross_class_keeps_as_few_together_as_can_be(labels, sampling):
    """m of B samples have B-m partners elsewhere: 2m-B stay, and only of the largest class."""
    counts = labels.bincount()
    largest = int(counts.max())
    for seed in range(20):
        partner = partners("cross_class", len(labels), sampling, seed, labels)
        assert is_permutation(partner)
        together = labels[partner] == labels
        assert int(together.sum()) == 2 * largest - len(labels)
        assert (labels[together] == counts.argmax()).all()


@pytest.mark.parametrize("batch_size", range(1, 8))
def test_cross_class_is_optimal_by_brute_force(batch_size):
    """For every way to share up to 7 samples among classes: the least number of pairs within a class, of all
    permutations."""
    every = np.array(list(itertools.permutations(range(batch_size))))
    for counts in itertools.product(range(batch_size + 1), repeat=3):
        if sum(counts) != batch_size or sorted(counts, reverse=True) != list(counts):
            continue
        labels = classes_of(*counts)
        least = (labels.numpy()[every] == labels.numpy()).sum(1).min()
        assert least == max(0, 2 * max(counts) - batch_size)
        for seed in range(4):
            partner = partners("cross_class", batch_size, "host", seed, labels)
            assert is_permutation(partner)
            assert int((labels[partner] == labels).sum()) == least


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_cross_class_partners_are_anyone_of_another_class(sampling):
    """With classes of one size nothing tells two samples of other classes apart: uniform over seeds."""
    labels = torch.arange(12) % 4
    drawn = np.array([partners("cross_class", 12, sampling, seed, labels) for seed in range(400)])
    for sample in (0, 5):
        others = [j for j in range(12) if labels[j] != labels[sample]]
        counts = np.bincount(drawn[:, sample], minlength=12)
        assert counts.sum() == counts[others].sum()
        assert stats.chisquare(counts[others]).pvalue > 1e-4
    # Samples of one class do not all go to one other class.
    classes = labels.numpy()[drawn[:, [0, 4, 8]]]
    assert (classes != classes[:, :1]).any(1).mean() > 0.5


def partners_met(labels: torch.Tensor) -> list[set[int]]:
    """Every partner that each sample has had, over seeds."""
    drawn = np.array([partners("cross_class", len(labels), "host", seed, labels) for seed in range(200)])
    return [set(column.tolist()) for column in drawn.T]


@pytest.mark.parametrize("counts", [(4, 3, 3, 2), (5, 3, 2, 2)], ids=str)
def test_cross_class_meets_everyone_in_uneven_batches(counts):
    """Also the small classes each other: next to a class of 5 in 12, with the classes in a fixed order, they would
    always be mixed with the same ones."""
    labels = classes_of(*counts)
    everyone = [{j for j in range(12) if labels[j] != labels[i]} for i in range(12)]
    assert partners_met(labels) == everyone


def test_cross_class_meets_everyone_that_a_dominant_class_leaves():
    """A class of half of the batch takes all others as partners, and all others take it."""
    labels = classes_of(6, 3, 2, 1)
    first, others = ({j for j in range(12) if bool(labels[j]) == other} for other in (False, True))
    assert partners_met(labels) == [first if label else others for label in labels.tolist()]


# ------------------------------------------------------------------------------------------------------ within classes


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("labels", [*BALANCED.values(), *DOMINATED.values()], ids=[*BALANCED, *map(str, DOMINATED)])
def test_same_class_stays_within_the_class(labels, sampling):
    """No sample has itself as its partner unless it is alone in its class."""
    alone = (labels[:, None] == labels).sum(1) == 1
    for seed in range(20):
        partner = partners("same_class", len(labels), sampling, seed, labels)
        assert is_permutation(partner)
        assert torch.equal(labels[partner], labels)
        assert torch.equal(torch.tensor(partner) == torch.arange(len(labels)), alone)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_same_class_partners_are_anyone_of_the_class(sampling):
    labels = torch.arange(12) % 2
    drawn = np.array([partners("same_class", 12, sampling, seed, labels) for seed in range(200)])
    for sample in (0, 7):
        others = [j for j in range(12) if labels[j] == labels[sample] and j != sample]
        counts = np.bincount(drawn[:, sample], minlength=12)
        assert counts.sum() == counts[others].sum()
        assert stats.chisquare(counts[others]).pvalue > 1e-4


# ------------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("pairing", ["cross_class", "same_class"])
def test_labels_of_every_integer_type(pairing, dtype):
    """The largest values of the type among them, which must be told from the smallest."""
    limits = torch.iinfo(dtype)
    values = [0, 1, limits.max, limits.max - 1] + ([limits.min, -1] if limits.min else [])
    labels = (values * 3)[: 3 * len(values) - 1]
    for seed in range(10):
        partner = partners(pairing, len(labels), "host", seed, torch.tensor(labels, dtype=dtype))
        assert is_permutation(partner)
        alike = [labels[i] == labels[j] for i, j in enumerate(partner)]
        assert alike == [pairing == "same_class"] * len(labels)
        assert all(i != j for i, j in enumerate(partner))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64], ids=str)
@pytest.mark.parametrize("pairing", ["cross_class", "same_class"])
def test_soft_labels_count_as_their_largest_entry(pairing, dtype):
    labels = classes_of(4, 3, 2, 3)
    soft = torch.full((12, 4), 1.0)
    soft[torch.arange(12), labels] = 7.0
    for seed in range(5):
        assert partners(pairing, 12, "host", seed, soft.to(dtype)) == partners(pairing, 12, "host", seed, labels)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("pairing", ["cross_class", "same_class"])
def test_pairing_by_class_needs_labels(pairing, sampling):
    mix = fm.MixUp(pairing=pairing, sampling=sampling)
    with pytest.raises(ValueError, match="labels"):
        mix.sample(4, (2, 2))
    with pytest.raises(ValueError, match="labels"):
        mix.sample(4, (2, 2), labels=torch.arange(5))
    with pytest.raises(ValueError, match="labels"):
        mix.sample(4, (2, 2), labels=torch.tensor([0.5, 1, 2, 3]))


@pytest.mark.parametrize("pairing", ["roll", "flip", "random"])
def test_other_pairings_ignore_labels(pairing):
    assert partners(pairing, 8, "host", 1, torch.zeros(8)) == partners(pairing, 8, "host", 1)


# ---------------------------------------------------------------------------------------------------------- RandomMix

KINDS = [Kind.CONSTANT, Kind.BOX, Kind.GAUSSIAN_COMPLEMENT]  # of MixUp, CutMix, and GMix at λ = .5


def chosen(mix: fm.RandomMix, batch_size: int, seeds: int = 1) -> np.ndarray:
    """How often each of MixUp, CutMix and GMix was drawn."""
    kinds = torch.cat([mix.sample(batch_size, (8, 8), lam=0.5, seed=seed).kind for seed in range(seeds)])
    counts = np.array([int((kinds == kind).sum()) for kind in KINDS])
    assert counts.sum() == len(kinds)
    return counts


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("weights", [None, (1, 2, 5), (0.25, 0.7, 0.05)])
def test_methods_are_chosen_by_their_weights(weights, sampling):
    """Per sample, and per pair, where the two of a pair get the same."""
    shares = np.array(weights or (1, 1, 1)) / sum(weights or (1, 1, 1))
    methods = [fm.MixUp(), fm.CutMix(), fm.GMix()]
    each = chosen(fm.RandomMix(methods, weights, per="sample", sampling=sampling), 20_000)
    assert stats.chisquare(each, shares * 20_000).pvalue > 1e-4
    mix = fm.RandomMix(methods, weights, per="pair", pairing="flip", sampling=sampling)
    kinds = mix.sample(20_000, (8, 8), lam=0.5, seed=2).kind
    assert torch.equal(kinds, kinds.flip(0))
    pairs = [int((kinds[:10_000] == kind).sum()) for kind in KINDS]
    assert stats.chisquare(pairs, shares * 10_000).pvalue > 1e-4


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_methods_are_chosen_by_their_weights_per_batch(sampling):
    mix = fm.RandomMix([fm.MixUp(), fm.CutMix(), fm.GMix()], [1, 2, 5], sampling=sampling)
    counts = chosen(mix, 2, seeds=400)
    assert (counts % 2 == 0).all()
    assert stats.chisquare(counts // 2, np.array([50, 100, 250])).pvalue > 1e-4


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("per", ["batch", "sample"])
@pytest.mark.parametrize("weights", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (0, 0, 1), (0, 3, 0), (2, 0, 0)])
def test_methods_of_weight_0_are_never_drawn(weights, per, sampling):
    mix = fm.RandomMix([fm.MixUp(), fm.CutMix(), fm.GMix()], weights, per=per, sampling=sampling)
    counts = chosen(mix, 20_000) if per == "sample" else chosen(mix, 1, seeds=40)
    assert [bool(n) for n in counts] == [bool(weight) for weight in weights]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_each_method_draws_from_its_own_beta(sampling):
    """α, lam_range and ratio of the method chosen: E[λ²] = (α+1)/(2(2α+1))."""
    methods = [fm.MixUp(alpha=0.2), fm.CutMix(alpha=3.0), fm.GMix(lam_range=(0.6, 0.9))]
    plan = fm.RandomMix(methods, per="sample", sampling=sampling).sample(60_000, (8, 8), seed=4)
    kinds = plan.kind.numpy()
    lam = plan.lam.double().numpy()
    for kind, alpha in ((Kind.CONSTANT, 0.2), (Kind.BOX, 3.0)):
        square = lam[kinds == kind] ** 2
        assert abs(square.mean() - (alpha + 1) / (2 * (2 * alpha + 1))) <= 4 * square.std() / math.sqrt(square.size)
    clamped = lam[kinds == Kind.GAUSSIAN_COMPLEMENT]
    assert (clamped.min(), clamped.max()) == (float(np.float32(0.6)), float(np.float32(0.9)))


# ------------------------------------------------------------------------------------------------------------------ p


def assert_share(applied: np.ndarray, p: float) -> None:
    assert abs(applied.mean() - p) <= 4 * math.sqrt(p * (1 - p) / len(applied))


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("make", [fm.MixUp, fm.CutMix, fm.HMix, fm.GMix, fm.SamplePairing])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_p_is_the_share_of_samples_that_are_mixed(make, p, sampling):
    """The others have λ = 1, M = 1 and weight 1."""
    plan = make(p=p, per="sample", sampling=sampling).sample(10_000, (6, 5), seed=5)
    applied = plan.lam != 1
    assert_share(applied.numpy(), p)
    assert (plan.mask()[~applied] == 1).all()
    assert (plan.weight[~applied] == 1).all()
    given = make(p=p, per="sample", sampling=sampling).sample(10_000, (6, 5), lam=0.5, seed=5)
    assert_share((given.lam == 0.5).numpy(), p)
    assert ((given.lam == 0.5) | (given.lam == 1)).all()


@pytest.mark.parametrize(("sampling", "seeds"), [("host", 1000), ("device", 400)])
def test_p_is_the_share_of_batches_that_are_mixed(sampling, seeds):
    mix = fm.CutMix(p=0.3, sampling=sampling)
    plans = [mix.sample(3, (6, 5), seed=seed) for seed in range(seeds)]
    lam = torch.stack([plan.lam for plan in plans])
    assert (lam == lam[:, :1]).all()
    applied = lam[:, 0] != 1
    assert_share(applied.numpy(), 0.3)
    for plan, mixed in zip(plans, applied.tolist(), strict=True):
        if not mixed:
            assert (plan.mask() == 1).all()
            assert (plan.weight == 1).all()


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_p_is_the_share_of_pairs_that_are_mixed(sampling):
    plan = fm.MixUp(p=0.3, per="pair", pairing="flip", sampling=sampling).sample(20_001, (1,), seed=5)
    applied = plan.lam != 1
    assert torch.equal(applied, applied.flip(0))
    assert_share(applied[:10_001].numpy(), 0.3)


@pytest.mark.parametrize("per", ["batch", "sample"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_p_of_0_and_1(sampling, per):
    x = torch.rand((50, 3, 6, 5), generator=torch.Generator().manual_seed(0))
    for seed in range(20):
        never = fm.MixUp(p=0.0, per=per, sampling=sampling).sample(50, (6, 5), seed=seed)
        assert torch.equal(fm.mix(x, never), x)
        assert (never.lam == 1).all()
        assert (fm.MixUp(p=1.0, per=per, sampling=sampling).sample(50, (6, 5), seed=seed).lam != 1).all()


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_p_of_the_methods_and_of_the_batch(sampling):
    """A method that is chosen with probability q is applied with q·(its p)·(the batch's p)."""
    methods = [fm.MixUp(p=0.3), fm.CutMix(p=0.9), fm.GMix()]
    mix = fm.RandomMix(methods, [1, 2, 1], p=0.8, per="sample", sampling=sampling)
    plan = mix.sample(30_000, (4, 4), lam=0.5, seed=6)
    applied = plan.lam == 0.5
    for kind, share in zip(KINDS, (0.25 * 0.3, 0.5 * 0.9, 0.25), strict=True):
        assert_share(((plan.kind == kind) & applied).numpy(), 0.8 * share)
    assert (plan.kind[~applied] == Kind.CONSTANT).all()


# ------------------------------------------------------------------------------------------------------------------ λ


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("lam_range", [(0.3, 0.7), (0.0, 0.1), (0.9, 1.0), (0.5, 0.5), (0.0, 1.0)])
def test_lam_range_clamps_exactly(lam_range, sampling):
    """What is drawn without it, clamped: the ends rounded to float32, neither inside nor outside of them."""
    free = fm.CutMix(alpha=0.5, per="sample", sampling=sampling).sample(5000, (8, 8), seed=7).lam
    clamped = fm.CutMix(alpha=0.5, per="sample", sampling=sampling, lam_range=lam_range)
    lam = clamped.sample(5000, (8, 8), seed=7).lam
    assert np.array_equal(lam.numpy(), free.numpy().clip(*map(np.float32, lam_range)))


def test_lam_range_leaves_alone_what_was_not_drawn():
    """A λ that is given, the fixed one of SamplePairing, the 1 of α = 0 and the 1 of unmixed samples."""
    mix = fm.MixUp(lam_range=(0.6, 0.7), per="sample")
    assert (mix.sample(4, (2,), lam=0.25).lam == 0.25).all()
    mix.alpha = 0.0
    assert (mix.sample(4, (2,)).lam == 1).all()
    assert (fm.SamplePairing(lam_range=(0.6, 0.7)).sample(4, (2,)).lam == 0.5).all()
    lam = fm.MixUp(lam_range=(0.6, 0.7), per="sample", p=0.5).sample(1000, (2,), seed=1).lam
    assert ((lam == 1) | ((lam >= np.float32(0.6)) & (lam <= np.float32(0.7)))).all()
    assert 0 < int((lam == 1).sum()) < 1000


GIVEN = {
    "float": 0.3,
    "int": 1,
    "scalar": torch.tensor(0.3),
    "double": torch.tensor(0.3, dtype=torch.float64),
    "half": torch.tensor(0.25, dtype=torch.float16),
}


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("per", ["batch", "pair", "sample"])
@pytest.mark.parametrize("lam", GIVEN.values(), ids=GIVEN)
@pytest.mark.parametrize("make", [fm.MixUp, fm.CutMix, fm.GMix])
def test_lam_may_be_given(make, lam, per, sampling):
    plan = make(per=per, pairing="flip", sampling=sampling).sample(6, (5, 4), lam=lam, seed=0)
    assert plan.lam.dtype == torch.float32
    assert (plan.lam == torch.as_tensor(lam, dtype=torch.float32)).all()
    distinct = {"batch": 1, "pair": 3, "sample": 6}[per]
    assert len(plan.geometry.unique(dim=0)) <= distinct


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("per", ["batch", "pair", "sample"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_one_lam_a_sample_may_be_given(dtype, per, sampling):
    lam = torch.tensor([0.0, 0.1, 0.5, 0.7, 1.0], dtype=dtype)
    plan = fm.MixUp(per=per, pairing="flip", sampling=sampling).sample(5, (3,), lam=lam, seed=0)
    assert torch.equal(plan.lam, lam.float())
    assert torch.equal(plan.weight, lam.float().double())
    assert torch.equal(plan.mask(), lam.float()[:, None].expand(5, 3))
    box = fm.CutMix(per=per, pairing="flip", sampling=sampling).sample(5, (40, 40), lam=lam, seed=0)
    assert torch.equal(box.lam, lam.float())
    # An unclipped side is 2·(int(40·√(1-λ))//2); none may be longer.
    sides = (box.geometry[:, 4:] - box.geometry[:, 1:3]).amax(1)
    assert (sides <= torch.tensor([40, 36, 28, 20, 0])).all()
    assert sides[0] > 0


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_given_lam_leaves_the_other_draws_alone_on_the_device(sampling):
    """On the device nothing but λ changes; on the host the Beta is not drawn, and the centre is the first draw."""
    mix = fm.GMix(per="sample", pairing="random", sampling=sampling)
    free, given = mix.sample(20, (30, 30), seed=3), mix.sample(20, (30, 30), lam=0.4, seed=3)
    if sampling == "device":
        assert torch.equal(free.partner, given.partner)
        assert torch.equal(free.geometry, given.geometry)
    else:
        generator = torch.Generator().manual_seed(3)
        assert torch.equal(given.partner, torch.randperm(20, generator=generator))
        for axis in (2, 1):
            assert torch.equal(given.geometry[:, axis].long(), torch.randint(30, (20,), generator=generator))


@pytest.mark.parametrize("lam", [1.5, -0.5, torch.tensor(2.0), torch.tensor([-1.0, 0.5, 1.0, 1.25])], ids=str)
def test_mixup_extrapolates(lam):
    """λ outside [0, 1] is legal where the mask is constant: x̃ = λx + (1-λ)x[p], with the same weights for labels."""
    plan = fm.MixUp().sample(4, (3, 3), lam=lam)
    expected = torch.as_tensor(lam, dtype=torch.float64).expand(4)
    assert torch.equal(plan.lam.double(), expected)
    assert torch.equal(plan.weight, expected)
    x = torch.rand((4, 2, 3, 3), generator=torch.Generator().manual_seed(0))
    w = expected[:, None, None, None]
    mixed = w * x.double() + (1 - w) * x.double().roll(1, 0)
    # Two roundings of numbers below 4: the difference of the partners, and the result.
    assert (fm.mix(x, plan).double() - mixed).abs().max() <= 2 * 4 * 2.0**-24
    targets = fm.mix_labels(torch.arange(4), plan, num_classes=4)
    onehot = torch.eye(4, dtype=torch.float64)
    assert torch.equal(targets.double(), expected[:, None] * onehot + (1 - expected)[:, None] * onehot.roll(1, 0))


@pytest.mark.parametrize("make", [fm.CutMix, fm.HMix, fm.GMix, lambda: fm.RandomMix([fm.MixUp(), fm.CutMix()])])
@pytest.mark.parametrize("lam", [1.5, -0.1, torch.tensor(2.0), torch.tensor([0.5, 0.5, 0.5, -1.0])], ids=str)
def test_masks_with_a_place_do_not_extrapolate(make, lam):
    with pytest.raises(ValueError, match="lam"):
        make().sample(4, (3, 3), lam=lam)


@pytest.mark.parametrize("lam", [math.nan, math.inf, torch.tensor(math.nan)], ids=str)
@pytest.mark.parametrize("make", [fm.MixUp, fm.CutMix])
def test_lam_must_be_finite(make, lam):
    with pytest.raises(ValueError, match="lam"):
        make().sample(4, (3, 3), lam=lam)
