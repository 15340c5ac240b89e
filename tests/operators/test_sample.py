"""Plans: partners, λ, kinds, masks and label weights that follow from a seed, or from numbers drawn on the host."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

import fusedmix as fm
from batches import DRAWS, FMIXES, MASKS, reference_plan, request_of
from conftest import METHODS, TRITON_DEVICE
from fusedmix import backends
from fusedmix.methods import Kind, Method, Pairing, Per
from fusedmix.spec import spec_row

CPU = torch.device("cpu")
BY_CLASS = ("cross_class", "same_class")
# λ ~ Beta(α+1, α): swapped with a chance. λ ← max(λ, 1-λ): whatever follows from it.
SAMPLED = MASKS | {
    "FMix-reformulate": lambda **kw: fm.FMix(reformulate=True, **kw),
    "RandomMix-fold": lambda **kw: fm.RandomMix(
        [fm.MixUp(fold=True, lam_range=(0.1, 0.4)), fm.CutMix(fold=True), fm.GMix(fold=True), fm.HMix()], **kw
    ),
}
ROWS_OF_A_SPEC = "the rows of a spec"  # as the host program calls them
PLAN = ("partner", "lam", "weight", "masks")


def assert_same_plan(made, expected):
    """Everything equal but the label weight, which is a sum over pixels."""
    for name, a, b in zip(PLAN, made, expected, strict=True):
        assert a.dtype == b.dtype, name
        if name == "weight":
            assert ((a - b).abs() <= 1e-13).all()
        else:
            assert torch.equal(a, b), name


def of_cpp(request, seed=None, drawn=None, partner=None):
    """A plan of the C++ sampler and the reference's."""
    of_seed = None if seed is None else torch.tensor(seed)
    made = backends.operators("cpu", "cpp").sample(*request, of_seed, drawn, partner, CPU)
    return made, reference_plan(request, seed, drawn, partner)


def assert_sampled(shim, request, seed=11, by_number=False):
    """The reference's plan: by cpp if there is no shim; by the CUDA kernels, which write every number once."""
    if shim is None:
        made, expected = of_cpp(request, seed)
        assert_same_plan(made, expected)
        return made
    made = shim.sample(*request, seed if by_number else torch.tensor(seed))
    assert_same_plan(made, reference_plan(request, seed))
    for name, t in zip(PLAN, made, strict=True):
        assert (shim.counts(name, t)[1] == 1).all()
    assert shim.kernels() == ["sample"]
    return made


@pytest.mark.parametrize(("per", "pairing"), DRAWS)
@pytest.mark.parametrize("name", SAMPLED)
def test_sampling(shim, name, per, pairing):
    for i, (n, size) in enumerate([(1, (4, 4)), (2, (31,)), (17, (7, 20)), (130, (3, 6, 5)), (3, (37, 6))]):
        mix = SAMPLED[name](per=per, pairing=pairing, p=(1.0, 0.6)[i % 2], sampling="device")
        labels = torch.arange(n) * 7 % 5 if "class" in pairing else None
        assert_sampled(shim, mix._request(n, size, None, labels), seed=i)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**32, 2**63 - 1, -(2**63), 12345678901234567])
@pytest.mark.parametrize("pairing", ["random", "cross_class", "same_class"])
def test_seeds(shim, seed, pairing):
    """From memory, and as a number in the arguments."""
    mix = METHODS["RandomMix"](per="sample", pairing=pairing)
    request = mix._request(40, (16, 16), None, torch.arange(40) % 3)
    for by_number in (False, True):
        assert_sampled(shim, request, seed, by_number)


def any_request(rng):
    """A request, its labels, and a seed, anything that a module may ask for."""
    per, pairing = rng.choice(
        [*itertools.product(("batch", "sample"), ("roll", "flip", "random", *BY_CLASS)), ("pair", "flip")]
    )
    alpha = rng.choice([0.01, 0.2, 1.0, 8.0])
    lam_range = rng.choice([None, (0.25, 0.5)])
    ratio = rng.choice([0.0, 0.5, 1.0])
    methods = [
        fm.MixUp(alpha=alpha, lam_range=lam_range, p=rng.choice([0.5, 1.0])),
        fm.CutMix(alpha=alpha, lam_range=lam_range),
        fm.HMix(alpha=alpha, ratio=ratio, variant=rng.choice(["released", "paper"])),
        fm.GMix(alpha=alpha, variant=rng.choice(["released", "paper"]), p=rng.choice([0.25, 1.0])),
        fm.SamplePairing(),
    ]
    module = fm.RandomMix(
        rng.sample(methods, rng.randint(1, 5)), per=per, pairing=pairing, p=rng.choice([0.3, 1.0, 1.0])
    )
    batch = rng.choice([0, 1, 2, 3, 16, 65])
    size = tuple(rng.choice([1, 2, 7, 32, 225]) for _ in range(rng.choice([1, 2, 2, 2, 3])))
    lam = rng.choice([None, None, torch.rand(()), torch.rand(batch)])
    classes = torch.randint(rng.choice([1, 3, 100]), (batch,)) if pairing in BY_CLASS else None
    return module._request(batch, size, lam, classes), rng.randint(-(2**63), 2**63 - 1)


def test_plans_of_seeds(cpp):
    rng = random.Random(0)
    for _ in range(400):
        assert_same_plan(*of_cpp(*any_request(rng)))


def test_plans_of_numbers_drawn_on_the_host(cpp):
    rng = random.Random(1)
    for _ in range(200):
        request, seed = any_request(rng)
        numbers, partner = torch.ops.fusedmix.draw_host(*request, 0, seed)
        assert_same_plan(*of_cpp(request, None, numbers, partner if request[3] > Pairing.FLIP else None))


@pytest.mark.parametrize(
    ("name", "pairing", "size"),
    [("CutMix", "random", (224, 224)), ("RandomMix", "flip", (8, 12)), ("HMix-paper", "roll", (9, 8, 7))],
)
def test_a_million_draws(cpp, name, pairing, size):
    module = METHODS[name](per="sample", pairing=pairing)
    made, expected = of_cpp(module._request(10**6, size, None, None), 2**40 + 1)
    assert torch.equal(made[0], expected[0])
    assert torch.equal(made[3][:, :7], expected[3][:, :7])  # kind and box: its values follow from λ
    # λ is made of logarithms in float64 and rounded once: where two libraries differ, the rounding may, once in 10⁸.
    assert (made[1] != expected[1]).sum() <= 1
    assert ((made[1] - expected[1]).abs() <= 2.0**-24).all()
    assert ((made[2] - expected[2]).abs() <= 1e-7).all()
    assert ((made[2] - expected[2]).abs() > 1e-13).sum() <= 1


@pytest.mark.parametrize("methods", [1, 2, 16, 17, 40])
def test_many_methods(shim, methods):
    """Up to 16 rows travel in the arguments; more are read where they are."""
    forms = [fm.MixUp, fm.CutMix, fm.HMix, fm.GMix, fm.SamplePairing]
    chosen = [forms[i % 5](p=(1.0, 0.5)[i % 3 == 1]) for i in range(methods)]
    mix = fm.RandomMix(chosen, weights=[1 + i % 4 for i in range(methods)], per="sample", p=0.8)
    assert_sampled(shim, mix._request(200, (9, 11), None, None))
    assert (ROWS_OF_A_SPEC in shim.launches()[0][1]["buffers"]) == (methods > 16)


@pytest.mark.parametrize(("per", "pairing"), DRAWS)
@pytest.mark.parametrize("p", [1.0, 0.5])
def test_given_lam(shim, per, pairing, p):
    """One for all, or one each; not clamped."""
    mix = fm.RandomMix(
        [fm.MixUp(lam_range=(0.4, 0.6)), fm.GMix(), fm.CutMix()], per=per, pairing=pairing, p=p, sampling="device"
    )
    each = torch.linspace(0, 1, 33)
    for lam in (torch.tensor(0.3), torch.tensor(0.0), torch.tensor(1.0), each):
        assert_sampled(shim, mix._request(33, (8, 9), lam, torch.arange(33) % 4))


def test_ranges_and_fixed_lam(shim):
    """λ is clamped where it is drawn; a fixed one, and the 1 of α = 0, are not."""
    rows = [
        spec_row(Method.MIXUP, lam_range=(0.3, 0.7)),
        spec_row(Method.MIXUP, lam=0.9, lam_range=(0.3, 0.7)),
        spec_row(Method.MIXUP, alpha=0.0, lam_range=(0.3, 0.7)),
        spec_row(Method.CUTMIX, alpha=0.01),
        spec_row(Method.HMIX_PAPER, alpha=50.0, ratio=0.25),
    ]
    spec = torch.cat(rows)
    spec[:, 1] = 0.2
    _, lam, *_ = assert_sampled(shim, (spec, 300, (30, 20), Pairing.ROLL, Per.SAMPLE, 1.0, None, None))
    assert {0.9, 1.0} <= {round(v, 6) for v in lam.tolist()}


@pytest.mark.parametrize("pairing", Pairing, ids=lambda pairing: pairing.name.lower())
def test_samplers_share_nothing(interpreted, pairing):
    """Every number of a plan is written once, by programs of which none reads what another one writes."""
    for n, per, lam in ((1, "batch", None), (40, "sample", None), (33, "sample", torch.linspace(0, 1, 33))):
        mix = METHODS["RandomMix"](per=per, pairing=pairing.name.lower(), sampling="device", p=0.7)
        labels = torch.arange(n) * 5 % 7
        request = request_of(mix._request(n, (8, 8), lam, labels if pairing > Pairing.RANDOM else None))
        seed = torch.tensor(n)
        with interpreted.logged() as launches:
            plan = interpreted.sample_launch.sample(request, seed, CPU)
        *circle, sample = launches
        of = sample.arguments
        scratch = [of[name] for name in ("order", "spot", "members")]
        assert [c.kernel for c in circle] == (["circle_kernel"] if pairing == Pairing.CROSS_CLASS else [])
        for c in circle:
            interpreted.assert_written_once(c, [labels, seed], scratch)
        given = () if lam is None else (lam,)
        readable = [of["spec"], seed, labels, *given, *(scratch if circle else ())]
        interpreted.assert_written_once(sample, readable, plan)


@pytest.mark.parametrize(("per", "pairing"), [("batch", "roll"), ("pair", "flip"), ("sample", "random")])
@pytest.mark.parametrize("name", FMIXES)
def test_fmix_plans(of_triton, name, per, pairing):
    """Partners, λ, kinds, numbers of ones and label weights equal the reference's, λ drawn or given."""
    mix = FMIXES[name](per=per, pairing=pairing, sampling="device")
    drawn = set()
    for n, size, lam in ((37, (31,), None), (8, (8, 13), torch.linspace(0, 1, 8)), (5, (3, 4, 5), torch.tensor(0.3))):
        arguments = (*mix._request(n, size, lam, None), torch.tensor(n), None, None)
        expected = torch.ops.fusedmix_reference.sample(*arguments, CPU)
        found = torch.ops.fusedmix_triton.sample(*arguments, torch.device(TRITON_DEVICE))
        for k, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert torch.equal(a.cpu(), b), (k, n, lam)
        drawn.update(expected[3][:, 0].tolist())
    if per != "batch":
        assert drawn >= ({Kind.FOURIER} if name != "FMix-part" else {0, Kind.BOX, Kind.FOURIER_RELEASED, Kind.FOURIER})


CLASSES = {
    "one class": lambda n: torch.zeros(n),
    "all distinct": lambda n: torch.arange(n),
    "two halves": lambda n: torch.arange(n) % 2,
    "more than half": lambda n: torch.arange(n) * (torch.arange(n) % 3 == 0),
    "all but one": lambda n: torch.arange(n) == n // 2,
    "negative": lambda n: torch.arange(n) % 7 - 3,
    "of any size": lambda n: (torch.arange(n) % 5 - 2) * (2**62 - 1),
    "a thousand": lambda n: torch.randint(1000, (n,)) * 2**40 - 5,
    "ten": lambda n: torch.arange(n) * torch.arange(n) % 10,
}


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("pairing", BY_CLASS)
def test_partners_by_class(native, pairing, classes):
    for n in (1, 2, 3, 15, 16, 17, 64, 127, 128, 129, 300, *(range(1990, 2010) if native is None else [])):
        labels = CLASSES[classes](n).to(torch.int64)
        mix = fm.MixUp(pairing=pairing, sampling="device")
        partner, *_ = assert_sampled(native, mix._request(n, (4,), None, labels), seed=n)
        assert torch.equal(partner.sort().values, torch.arange(n))
        largest = int(labels.unique(return_counts=True)[1].max())
        if pairing == "same_class":
            assert torch.equal(labels[partner], labels)
        else:
            assert int((labels[partner] == labels).sum()) == max(0, 2 * largest - n)


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 127, 128, 129, 255, 300])
def test_random_partners(native, n):
    mix = fm.MixUp(pairing="random", sampling="device")
    for seed in range(3):
        partner, *_ = assert_sampled(native, mix._request(n, (4,), None, None), seed=seed)
        assert torch.equal(partner.sort().values, torch.arange(n))
