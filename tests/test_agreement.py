"""Every backend agrees with the reference, for every method, per, pairing, dtype and layout: tests/agreement.csv.

The table has a line for each method, per, pairing and backend, which sums up all dtypes and layouts, written by the
tests that checked it:

    pytest -m '' tests/test_agreement.py --write-agreement [FILE]

A run compares the committed lines with its own for the backends that run here. To a backend that has no lines yet, as
those of a GPU that has written none, and to a method that has none yet, only the reference says what is right. Every
call through torch must have been exactly one call of the operator asked for: a fallback is a failure.

Where a call is slow (Triton's kernels, in the interpreter or compiled anew) every line is checked by one of the
thorough cases, dealt out so that each of them meets every operator with every dtype and layout, but not every method.

What is allowed, with the exact value taken in twice float64's precision from the difference of the partners, which is
rounded to the compute dtype (float32; float64 for float64 images), and from the backend's own mask:

    plans               partners, masks and λ equal; label weights to 1e-13
    masks               equal, or of families that say so (`exact` of tests/families) to 4·2⁻²⁴
    blends, w = 1       the sample, w = 0 the partner, both of them where they are equal: bit for bit
      uint8             the nearest integer, ties to even
      float32, float64  half a unit in the last place
      float16, bfloat16 and half a unit of float32, to which the blend is rounded first
      infinities, NaN   as IEEE arithmetic on the same formula has them
    adjoints            the same, and half a unit of each of the two products, of float64
"""

from __future__ import annotations

import functools
import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

import agreement_table
import fusedmix as fm
from agreement_table import Found, Key
from batches import DRAWS, DTYPES, channels_last, contiguous, cropped, stepped, transposed
from callers import BACKENDS, Operators, Ran, Shimmed, each_backend
from conftest import GRIDS, METHODS
from fusedmix import backends
from fusedmix.backends import reference
from fusedmix.plan import MixPlan
from oracle import BITS, assert_masks, expected_adjoint, expected_mix, over_batch, same

# Most of the time of all tests, nearly twice as much if the interpreter is traced. What runs here runs elsewhere too.
pytestmark = [
    pytest.mark.no_cover,
    # What the interpreter of Triton 3.6 does with a newer NumPy.
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
]

COMPARED = ("partner", "lam", "masks")  # of two plans: equal
OPERATORS = ("sample", "mask", "mix", "mix_", "mix_adjoint", "mix_labels", "mix_batch", "mix_batch_")
MIXES = ("mix", "mix_", "mix_adjoint")
# What a line's case is depends on its place. Methods that the table had before they were found have theirs from then.
FIRST = [
    *("MixUp", "CutMix", "HMix-released", "HMix-paper", "GMix-released", "GMix-paper", "SamplePairing", "RandomMix"),
    *("SmoothMix-disc", "SmoothMix-square", "CutMix-inside", "HMix-inside", "CutMix-minmax", "CutMix-aspect"),
    *("HMix-beta", "GridMix"),
]
NAMES = [*FIRST, *(name for name in METHODS if name not in FIRST)]
TURNS = list(itertools.product(NAMES, DRAWS))


# ---- What is swept ---------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    shape: tuple[int, ...]
    spatial: int = 2
    lam: float | None = None
    any_bits: bool = False  # infinities, NaN, subnormal numbers: whatever a dtype can hold
    thorough: bool = False  # in all layouts, and also for the slow: the reference and the shim


CASES = (
    Case((5, 3, 7, 9), thorough=True),
    Case((2, 3, 16, 32)),
    Case((1, 2, 5, 4)),
    Case((0, 3, 4, 4)),
    Case((7, 4, 33), 1),
    Case((3, 2, 5, 4, 6), 3, thorough=True),
    Case((3, 2, 3, 5, 7)),  # a video: time is not a dim of the mask
    Case((3, 3, 37, 61)),
    Case((4, 2, 6, 5), lam=0.0),
    Case((4, 2, 6, 5), lam=1.0),
    Case((3, 2, 6, 5), lam=2.0**-30),
    Case((6, 2, 5, 8), any_bits=True, thorough=True),
    Case((4, 2, 6, 5), thorough=True),
)


THOROUGH = [number for number, case in enumerate(CASES) if case.thorough]
DEALT = [THOROUGH[i] for i in (3, 0, 3, 1, 3, 2, 3, 1, 2)]  # the more often the cheaper


LAYOUTS = (contiguous, channels_last, stepped, cropped, transposed)


def operators_for(backend, turn, number, dtype, layout):
    """The operators that a case is swept with, in a dtype and a layout. `turn`: of methods, pers and pairings."""
    if not backend.sparse:
        return MIXES
    place = turn + len(LAYOUTS) * DTYPES.index(dtype) + LAYOUTS.index(layout)
    turned, dealt = divmod(place, len(DEALT))
    if number != DEALT[dealt]:
        return ()
    return (("mix", "mix_")[turned % 2], *(["mix_adjoint"] if place % 4 == 0 else []))


def layouts_of(number):
    """In which layouts a case is swept: all of them, or the first and one other, or, if it is small, one."""
    if CASES[number].thorough:
        return LAYOUTS
    return (LAYOUTS[number % 5],) if math.prod(CASES[number].shape) < 500 else (LAYOUTS[0], LAYOUTS[1 + number % 4])


def keys(backend):
    """Every line of a backend."""
    return [Key(method, per, pairing, backend) for method, (per, pairing) in TURNS]


def values(case, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.uint8:
        x = torch.randint(0, 256, case.shape, dtype=dtype, generator=generator)
    elif case.any_bits:
        bits = BITS[dtype.itemsize]
        info = torch.iinfo(bits)
        x = torch.randint(info.min, info.max, case.shape, dtype=bits, generator=generator).view(dtype)
        x[..., 1] = math.inf
        x[..., 2] = torch.tensor([0.0, -0.0]).repeat(case.shape[0])[: case.shape[0]].reshape(-1, 1, 1)
    else:
        x = (3 * torch.randn(case.shape, dtype=torch.float64, generator=generator)).to(dtype)
    x[..., :1] = 7  # equal in all samples
    return x


# ---- The table -------------------------------------------------------------------------------------------------------


class Sums:
    """What one line of the table sums up."""

    def __init__(self):
        self.met, self.cases, self.pixels = set(), 0, 0

    def count(self, operator, case, dtype, layout, out):
        """Counts a result, and says what it is of."""
        self.met.add((dtype, layout))
        self.cases += 1
        self.pixels += out.numel()
        return f"{operator}: {dtype}, {layout.__name__}, {case}"

    def found(self, agree):
        return Found(f"{len(self.met)} of {len(DTYPES) * len(LAYOUTS)}", str(self.cases), str(self.pixels), agree)


@pytest.fixture(scope="module")
def committed(pytestconfig):
    """The lines that those of this run are compared with: none, if they are being written anew."""
    path = pytestconfig.getoption("--write-agreement")
    return {} if path and Path(path).resolve() == agreement_table.TABLE else agreement_table.read()


@each_backend
@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize(("per", "pairing"), DRAWS)
def test_agreement(committed, record_property, backend, method, per, pairing):
    key, sums = Key(method, per, pairing, backend.called), Sums()

    def record(agree):
        record_property(agreement_table.PROPERTY, [*key, *sums.found(agree)])

    try:
        sweep(sums, backend, method, per, pairing)
    except AssertionError:
        record("no")
        raise
    record("yes")
    message = agreement_table.difference(committed, key, sums.found("yes"))
    if message:
        pytest.fail(message, pytrace=False)


def sweep(sums, backend, method, per, pairing):
    """Raises AssertionError at the first result that is not as it should be."""
    how = {"per": per, "pairing": pairing, "sampling": "device", "backend": "reference"}
    modules = {spatial: module_of(method, spatial, **how) for spatial in GRIDS}
    turn = TURNS.index((method, (per, pairing)))
    for number, case in enumerate(CASES):
        if not (backend.fast or case.thorough):
            continue
        plan = plan_of(modules[case.spatial], case, number, backend)
        w = mask_of(plan, backend)
        for dtype in DTYPES:
            x = values(case, dtype, number).to(backend.device)
            mixed = expected_mix(x, over_batch(w, x, plan.size), plan.partner, backend.one_rounding)
            for layout in layouts_of(number):
                asked = operators_for(backend, turn, number, dtype, layout)
                given = layout(x)
                if "mix" in asked:
                    out = backend.mix(given, plan)
                    where = sums.count("mix", case, dtype, layout, out)
                    assert mixed.holds(out), where
                    assert same(given, x).all(), where
                    assert out.stride() == torch.empty_like(given).stride(), where
                if "mix_" in asked:  # the same, and nothing beside it
                    memory = given if given._base is None else given._base
                    before = memory.clone()
                    backend.mix_(given, plan)
                    where = sums.count("mix_", case, dtype, layout, given)
                    assert mixed.holds(given), where
                    assert "mix" not in asked or same(given, out).all(), where
                    given.copy_(x)
                    assert same(memory, before).all(), where
            if dtype == torch.uint8:
                continue
            grad = values(case, dtype, number + 100).to(backend.device)
            lent = expected_adjoint(grad, over_batch(w, grad, plan.size), plan.partner)
            for layout in layouts_of(number):
                if "mix_adjoint" in operators_for(backend, turn, number, dtype, layout):
                    out = backend.mix_adjoint(layout(grad), plan)
                    where = sums.count("mix_adjoint", case, dtype, layout, out)
                    assert lent.holds(out), where


def module_of(method, spatial=2, **how):
    """The module of a method for images of so many spatial dims."""
    return METHODS[method](**how) if method in METHODS else fm.GridMix(cells=GRIDS[spatial], **how)


def plan_of(module, case, seed, backend):
    """The reference's plan, which the backend must draw as well."""
    size, batch = case.shape[len(case.shape) - case.spatial :], case.shape[0]
    classes = torch.arange(batch) % 3
    plan = module.sample(batch, size, lam=case.lam, labels=classes, seed=seed)
    lam = None if case.lam is None else torch.tensor(case.lam)
    request = module._request(batch, size, lam, classes if module.pairing.endswith("_class") else None)
    drawn = MixPlan(*(t.cpu() for t in backend.sample(request, seed)), size, plan.families)
    for name in COMPARED:
        assert torch.equal(getattr(drawn, name), getattr(plan, name)), name
    assert ((drawn.weight - plan.weight).abs() <= 1e-13).all()
    return plan.to(backend.device)


def mask_of(plan, backend):
    """The backend's masks, which must be the reference's."""
    w = backend.mask(plan)
    assert_masks(w, reference.mask(plan.masks, int(plan.families), plan.size, int(plan.per), plan.pixels), plan.kind)
    return w


# ---- What the sweep is too coarse for --------------------------------------------------------------------------------


def all_pairs():
    """(2, 1, 256, 256) uint8: sample 0 beside sample 1 holds every pair of values."""
    value = torch.arange(256, dtype=torch.uint8)
    return torch.stack((value.expand(256, 256), value.expand(256, 256).T)).unsqueeze(1)


def near(w):
    """A weight and its neighbours in float32."""
    w = torch.tensor(w)
    return [float(v) for v in (w.nextafter(torch.tensor(-1.0)), w, w.nextafter(torch.tensor(2.0))) if 0 <= v <= 1]


@each_backend
@pytest.mark.parametrize("near_to", [0.5, 0.25, 0.375, 0.96875, 1 / 510, 1 / 3, 2.0**-24, 1.0, 0.0])
def test_bytes_round_to_nearest_even(backend, near_to):
    """Every pair of bytes, at weights where many blends fall on a half or just beside it."""
    x = all_pairs().to(backend.device)
    for lam in near(near_to):
        plan = fm.MixUp(pairing="flip").sample(2, (256, 256), lam=lam).to(backend.device)
        assert float(plan.lam[0]) == lam
        w = over_batch(backend.mask(plan), x, plan.size)
        assert expected_mix(x, w, plan.partner, backend.one_rounding).holds(backend.mix(x, plan))


@each_backend
def test_bytes_round_to_nearest_even_under_a_gaussian(backend):
    x = all_pairs().to(backend.device)
    for seed in range(20 if backend.fast else 2):
        plan = fm.GMix(per="sample", pairing="flip").sample(2, (256, 256), seed=seed).to(backend.device)
        w = over_batch(mask_of(plan, backend), x, plan.size)
        assert expected_mix(x, w, plan.partner, backend.one_rounding).holds(backend.mix(x, plan))


@each_backend
@pytest.mark.parametrize("variant", ["released", "paper"])
@pytest.mark.parametrize("size", [(300_001,), (4099, 3), (2, 3001, 20)], ids=str)
def test_long_gaussians(backend, variant, size):
    """The error of a mask may not grow with the distance from its centre."""
    if not backend.fast:
        size = tuple(min(side, 5000) for side in size)
    plan = fm.GMix(per="sample", variant=variant, alpha=0.3).sample(8, size, seed=1).to(backend.device)
    mask_of(plan, backend)


@each_backend
@pytest.mark.parametrize("method", NAMES)
def test_a_weight_of_zero_takes_no_infinity(backend, method):
    """Not even at the one pixel of a Gaussian, or of its complement, that is its centre."""
    for seed, dtype in itertools.product(range(4), DTYPES[:4]):
        x = values(Case((4, 2, 5, 6)), dtype, seed)
        x[1::2] = math.inf
        x = x.to(backend.device)
        plan = module_of(method, per="sample", pairing="flip").sample(4, (5, 6), seed=seed).to(backend.device)
        w = over_batch(mask_of(plan, backend), x, plan.size)
        assert expected_mix(x, w, plan.partner, backend.one_rounding).holds(backend.mix(x, plan))
        assert expected_adjoint(x, w, plan.partner).holds(backend.mix_adjoint(x, plan))


@each_backend
@pytest.mark.parametrize("method", NAMES)
def test_the_adjoint_is_the_adjoint(backend, method):
    """<mix(x), g> = <x, mix_adjoint(g)>, summed exactly."""
    plan = module_of(method, per="sample", pairing="random").sample(5, (6, 7), seed=8).to(backend.device)
    x, grad = (values(Case((5, 2, 6, 7)), torch.float64, seed).to(backend.device) for seed in (1, 2))
    products = torch.cat((backend.mix(x, plan) * grad, -x * backend.mix_adjoint(grad, plan))).flatten().tolist()
    assert abs(math.fsum(products)) <= 2.0**-50 * math.fsum(map(abs, products))


@each_backend
@pytest.mark.parametrize("method", NAMES)
def test_gradients(backend, method):
    """Of both orders, and by the backend's own operators."""
    if isinstance(backend, Shimmed):
        pytest.skip("the shim has no autograd")
    plan = module_of(method, per="sample", pairing="random").sample(3, (2, 3), seed=5)
    x = values(Case((3, 1, 2, 3)), torch.float64, 0).to(backend.device).requires_grad_()
    mix = functools.partial(fm.mix, plan=plan, backend=backend.name)
    assert torch.autograd.gradcheck(mix, x, fast_mode=backend.sparse)  # along random directions
    assert torch.autograd.gradgradcheck(mix, x, fast_mode=backend.sparse)
    ran = Ran()
    with pytest.raises(AssertionError), ran:
        torch.autograd.grad(mix(x).sum(), x)
    ours = [name for name in ran.seen if name.startswith("fusedmix")]
    assert ours == [f"fusedmix_{backend.name}::mix", f"fusedmix_{backend.name}::mix_adjoint"]


def test_another_backend_is_noticed(monkeypatch):
    plan = fm.MixUp().sample(2, (4, 4), seed=0)
    x = torch.rand(2, 1, 4, 4)
    found = torch.ops.fusedmix_reference
    monkeypatch.setattr(backends, "operators", lambda *_: found)
    for call in (
        lambda backend: backend.mask(plan),
        lambda backend: backend.mix(x, plan),
        lambda backend: backend.mix_(x, plan),
        lambda backend: backend.mix_adjoint(x, plan),
    ):
        call(Operators("reference"))
        with pytest.raises(AssertionError):
            call(Operators("cpp"))


@each_backend
def test_operators_have_kernels_of_their_own(backend):
    """One each, so that there is none that the dispatcher could fall back to."""
    if isinstance(backend, Shimmed):
        pytest.skip("the shim is no backend")
    for name in OPERATORS:
        overload = getattr(backend.operators, name).default
        has = functools.partial(torch._C._dispatch_has_kernel_for_dispatch_key, overload.name())
        assert not has("CompositeImplicitAutograd")
        # Those of the reference and of Triton are Python and serve every device; so may what has no tensor on the
        # backend's device.
        assert has("CompositeExplicitAutograd") != has(backend.device.type.upper())
        assert has("CompositeExplicitAutograd") or backend.name not in ("reference", "triton")


def test_what_is_dealt_out_meets_everything():
    sparse, met = Operators("triton", sparse=True), set()
    for turn, dtype, layout in itertools.product(range(len(TURNS)), DTYPES, LAYOUTS):
        asked = {number: operators_for(sparse, turn, number, dtype, layout) for number in range(len(CASES))}
        assert sum("mix" in names or "mix_" in names for names in asked.values()) == 1  # every line is checked
        met |= {(number, dtype, layout, name) for number, names in asked.items() for name in names}
    assert met == set(itertools.product(THOROUGH, DTYPES, LAYOUTS, MIXES))


# ---- The table itself ------------------------------------------------------------------------------------------------


def test_the_table_has_a_line_for_every_combination(committed):
    """And no other: of every backend that runs here without a GPU, and of every other one that has been written."""
    if not committed:
        pytest.skip("being written")
    named = {backend.called for backend in BACKENDS if backend.device.type == "cpu"}
    written = {key.method for key in committed}
    assert written <= set(NAMES)
    wanted = {key for name in named | {key.backend for key in committed} for key in keys(name) if key.method in written}
    assert committed.keys() == wanted, f"stale: {agreement_table.UPDATE}: {sorted(committed.keys() ^ wanted)}"
    n = len(DTYPES) * len(LAYOUTS)
    assert {(line.dtypes_and_layouts, line.agree) for line in committed.values()} == {(f"{n} of {n}", "yes")}


KEY, LINE = Key("MixUp", "batch", "roll", "one"), Found("25 of 25", "3", "12", "yes")


def test_a_backend_or_a_method_without_lines_misses_none():
    assert agreement_table.difference({}, KEY, LINE) is None
    assert agreement_table.difference({KEY._replace(backend="another"): LINE}, KEY, LINE) is None
    others = {KEY._replace(method="another"): LINE, KEY._replace(backend="another"): LINE}
    assert agreement_table.difference(others, KEY._replace(method="new"), LINE) is None
    assert agreement_table.difference(others, KEY, LINE) is not None


def test_a_line_that_differs_is_shown():
    assert agreement_table.difference({KEY: LINE}, KEY, LINE) is None
    said = agreement_table.difference({KEY: LINE._replace(cases="4")}, KEY, LINE)
    assert "committed: MixUp,batch,roll,one,25 of 25,4,12,yes\n" in said
    assert "found:     MixUp,batch,roll,one,25 of 25,3,12,yes" in said
    assert "committed: no line\n" in agreement_table.difference({KEY._replace(per="sample"): LINE}, KEY, LINE)


def test_what_is_written(tmp_path):
    """The lines of this run in place of all of the same backends, beside those of the others."""
    path, other = tmp_path / "new" / "table.csv", KEY._replace(backend="another")
    agreement_table.write(path, {KEY: LINE, KEY._replace(per="sample"): LINE, other: LINE})
    found = LINE._replace(agree="no")
    writer = agreement_table.Writer(path)
    for when, line in (("setup", LINE), ("call", found)):
        lines = [["of another test", 1], [agreement_table.PROPERTY, [*KEY, *line]]]
        writer.pytest_runtest_logreport(SimpleNamespace(when=when, user_properties=lines))
    writer.pytest_sessionfinish()
    assert agreement_table.read(path) == {other: LINE, KEY: found}
    with pytest.raises(pytest.UsageError, match=r"test_agreement\.py is no table of agreement: its first line"):
        agreement_table.Writer(Path(__file__))


@pytest.mark.parametrize(
    ("operator", "message"),
    [("sample", "masks"), ("mask", "mask"), *((name, f"{name}: torch.float32, contiguous, Case") for name in MIXES)],
)
def test_a_result_that_differs_is_a_no(monkeypatch, operator, message):
    """Also where there are no lines to compare with; and the message says of what it is the result."""
    backend, recorded = Operators("reference", one_rounding=False, fast=False), []
    right = getattr(backend, operator)

    def wrong(x, *args):
        result = right(x, *args)
        if operator == "sample":
            return (*result[:3], result[3] + 1)
        if operator == "mix_":
            result = x
        result[-1].flatten()[-1] += 1
        return result

    monkeypatch.setattr(backend, operator, wrong)
    with pytest.raises(AssertionError, match=f"^{message}"):
        test_agreement({}, lambda _, line: recorded.append(line), backend, "MixUp", "batch", "roll")
    assert [line[-1] for line in recorded] == ["no"]
