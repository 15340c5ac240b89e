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
from torch.utils._python_dispatch import TorchDispatchMode

import agreement_table
import fusedmix as fm
from agreement_table import Found, Key
from conftest import GRIDS, METHODS, NO_CPP, NO_CUDA, NO_TRITON, TRITON_DEVICE, TRITON_MARKS
from families import RECORDS
from fusedmix import backends, masks
from fusedmix.backends import reference
from fusedmix.plan import MixPlan

try:
    import shim_build

    NO_SHIM = shim_build.missing()
except ImportError as error:  # fcntl: not on Windows
    NO_SHIM = str(error)

# Most of the time of all tests, nearly twice as much if the interpreter is traced. What runs here runs elsewhere too.
pytestmark = [
    pytest.mark.no_cover,
    # What the interpreter of Triton 3.6 does with a newer NumPy.
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
]

COMPARED = ("partner", "lam", "masks")  # of two plans: equal
OPERATORS = ("sample", "mask", "mix", "mix_", "mix_adjoint", "mix_labels", "mix_batch", "mix_batch_")
MIXES = ("mix", "mix_", "mix_adjoint")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8)
DRAWS = [
    *itertools.product(("batch", "sample"), ("roll", "flip", "random", "cross_class", "same_class")),
    ("pair", "flip"),
]
# What a line's case is depends on its place. Methods that the table had before they were found have theirs from then.
FIRST = [
    *("MixUp", "CutMix", "HMix-released", "HMix-paper", "GMix-released", "GMix-paper", "SamplePairing", "RandomMix"),
    *("SmoothMix-disc", "SmoothMix-square", "CutMix-inside", "HMix-inside", "CutMix-minmax", "CutMix-aspect"),
    *("HMix-beta", "GridMix"),
]
NAMES = [*FIRST, *(name for name in METHODS if name not in FIRST)]
EXACT = torch.tensor([kind for name, record in RECORDS.items() if record.exact for kind in masks.BY_NAME[name].kinds])
TURNS = list(itertools.product(NAMES, DRAWS))
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
PRECISION = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24, torch.float64: 53}  # in bits


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


def contiguous(x):
    return x.clone()


def channels_last(x):
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def sliced(x):
    """Every second element of every dim of a larger tensor."""
    large = x.new_full([2 * n + 1 for n in x.shape], 99)
    return large[(slice(1, None, 2),) * x.ndim].copy_(x)


def cropped(x):
    """A part of a larger tensor that starts at no multiple of anything."""
    sides = [n + 3 for n in x.shape]
    large = x.new_full([1 + math.prod(sides)], 99)[1:].view(sides)
    return large[tuple(slice(1, 1 + n) for n in x.shape)].copy_(x)


def transposed(x):
    """The first spatial dim is the innermost in memory."""
    turned = (0, 1, *reversed(range(2, x.ndim)))
    return x.permute(turned).clone(memory_format=torch.contiguous_format).permute(turned)


LAYOUTS = (contiguous, channels_last, sliced, cropped, transposed)


def layouts_of(number):
    """In which layouts a case is swept: all of them, or the first and one other, or, if it is small, one."""
    if CASES[number].thorough:
        return LAYOUTS
    return (LAYOUTS[number % 5],) if math.prod(CASES[number].shape) < 500 else (LAYOUTS[0], LAYOUTS[1 + number % 4])


def keys(backend):
    """Every line of a backend."""
    return [Key(method, per, pairing, backend) for method, (per, pairing) in TURNS]


# ---- The backends ----------------------------------------------------------------------------------------------------


class Ran(TorchDispatchMode):
    """While it is entered, what torch is asked to do is the operators that are expected and nothing else."""

    def __init__(self, *expected):
        super().__init__()
        self.expected = list(expected)
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.name())
        return func(*args, **(kwargs or {}))

    def __exit__(self, kind, *rest):
        super().__exit__(kind, *rest)
        if kind is None:
            assert self.seen == self.expected


class Operators:
    """A backend, by its operators in torch."""

    def __init__(self, name, device="cpu", one_rounding=True, fast=True, sparse=False, called=None):
        self.name = name
        self.called = called or name  # in the table
        self.device = torch.device(device)
        self.one_rounding = one_rounding  # or a float64 product is rounded before it is added
        self.fast = fast
        self.sparse = sparse  # every line of the table by one case: in the interpreter a call is a tenth of a second

    @property
    def operators(self):
        return backends.operators(self.device.type, self.name)  # built by the first test, not when tests are collected

    def takes(self, case):
        return case.thorough or self.fast

    def asked(self, turn, number, dtype, layout):
        """The operators that a case is swept with, in a dtype and a layout. `turn`: of methods, pers and pairings."""
        if not self.sparse:
            return MIXES
        place = turn + len(LAYOUTS) * DTYPES.index(dtype) + LAYOUTS.index(layout)
        turned, dealt = divmod(place, len(DEALT))
        if number != DEALT[dealt]:
            return ()
        return (("mix", "mix_")[turned % 2], *(["mix_adjoint"] if place % 4 == 0 else []))

    def sample(self, request, seed):
        spec, *rest = request  # it stays on the CPU
        rest = [a.to(self.device) if isinstance(a, torch.Tensor) else a for a in rest]
        return self._ran("sample", spec, *rest, torch.tensor(seed), None, None, self.device)

    def mask(self, plan):
        return self._ran("mask", plan.masks, int(plan.families), plan.size, int(plan.per), plan.pixels)

    def mix(self, x, plan):
        with Ran(f"fusedmix_{self.name}::mix"):
            return fm.mix(x, plan, backend=self.name)

    def mix_(self, x, plan):
        with Ran(f"fusedmix_{self.name}::mix_"):
            assert fm.mix_(x, plan, backend=self.name) is x

    def mix_adjoint(self, grad, plan):
        return self._ran("mix_adjoint", grad, *masks_of(plan))

    def _ran(self, operator, *args):
        function = getattr(self.operators, operator)
        with Ran(f"fusedmix_{self.name}::{operator}"):
            return function(*args)


class Shimmed:
    """The source of the CUDA kernels, run on the CPU by the shim."""

    name = called = "cuda (on the CPU)"
    device = torch.device("cpu")
    one_rounding, fast, sparse = True, False, False
    asked = Operators.asked

    @functools.cached_property
    def shim(self):
        from shim_backend import Shim

        return Shim()

    def takes(self, case):
        return case.thorough

    def sample(self, request, seed):
        return self._launched(self.shim.sample, *request, torch.tensor(seed))

    def mask(self, plan):
        return self._launched(
            self.shim.mask, plan.masks, int(plan.families), list(plan.size), int(plan.per), plan.pixels
        )

    def mix(self, x, plan):
        return self._launched(self.shim.mix, x, *masks_of(plan))

    def mix_(self, x, plan):
        self._launched(self.shim.mix_, x, *masks_of(plan))

    def mix_adjoint(self, grad, plan):
        return self._launched(self.shim.mix_adjoint, grad, *masks_of(plan))

    def _launched(self, operator, *args):
        result = operator(*args)
        launches = self.shim.module.launches()
        assert launches
        assert not any(launch["error"] for launch in launches)
        return result


def backends_here():
    yield Operators("reference", one_rounding=False, fast=False)  # PyTorch has no fma, which only float64 needs
    if NO_CPP is None:
        yield Operators("cpp")
    if NO_CUDA is None:
        yield Operators("cuda", "cuda")
    if NO_SHIM is None:
        yield Shimmed()
    if NO_TRITON is None and TRITON_DEVICE == "cuda":
        yield Operators("triton", "cuda", sparse=True)  # hundreds of kernels to compile
    elif NO_TRITON is None:  # NumPy has no fma either
        yield Operators("triton", one_rounding=False, fast=False, sparse=True, called="triton (interpreted)")


BACKENDS = list(backends_here())
MARKS = {"triton": TRITON_MARKS, "cuda (on the CPU)": [pytest.mark.thorough]}
each_backend = pytest.mark.parametrize(
    "backend",
    [pytest.param(backend, marks=MARKS.get(backend.name, [])) for backend in BACKENDS],
    ids=lambda backend: backend.called,
)


def masks_of(plan):
    """What `mix` takes after x."""
    ndim = 0 if plan.constant else len(plan.size)
    return plan.partner, plan.masks, int(plan.families), ndim, int(plan.pairing), int(plan.per), plan.pixels


# ---- What is expected ------------------------------------------------------------------------------------------------


def compute_of(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def two_sum(p, q):
    """p + q and what its rounding lost (Knuth)."""
    s = p + q
    t = s - p
    return s, (p - (s - t)) + (q - t)


def halves(x):
    """float64 as a sum of two numbers of at most 27 bits."""
    high = (x.view(torch.int64) >> 27 << 27).view(torch.float64)
    return high, x - high


def exact_sum(*products):
    """The sum of products of float64 pairs, as a float64 and what its rounding lost, to some 100 bits."""
    total = lost = torch.zeros((), dtype=torch.float64, device=products[0][0].device)
    for p, q in products:
        for part in (a * b for a in halves(p) for b in halves(q)):
            total, error = two_sum(total, part)
            lost = lost + error
    return two_sum(total, lost)


def half_unit(exact, dtype):
    """Half a unit in the last place of `dtype` at a value."""
    bits = PRECISION[dtype]
    smallest = max(math.frexp(torch.finfo(dtype).tiny)[1] - bits, -1021)
    exponent = (exact.frexp().exponent.long() - bits).clamp_min(smallest) - 1
    return (exponent + 1023 << 52).view(torch.float64)


def alike(a, b):
    """Where two tensors have the same bits, or both a NaN."""
    same = a.contiguous().view(BITS[a.element_size()]) == b.contiguous().view(BITS[b.element_size()])
    return same | ((a != a) & (b != b))


class Expected:
    """A result: where it is certain, and elsewhere its exact value and how far from that it may be."""

    def __init__(self, rounded, certain, products, one_rounding):
        dtype = rounded.dtype
        self.rounded = rounded
        exact, self.lost = self.exact = exact_sum(*products)
        if dtype == torch.uint8:
            whole = exact.round()
            whole = torch.where((exact - exact.floor() == 0.5) & (self.lost > 0), exact.ceil(), whole)
            whole = torch.where((exact - exact.floor() == 0.5) & (self.lost < 0), exact.floor(), whole)
            self.certain = torch.ones_like(certain)
            self.rounded = torch.where(certain, rounded, whole.clamp(0, 255).to(torch.uint8))
            return
        self.certain = certain | ~rounded.isfinite()
        allowed = half_unit(exact, dtype)
        if compute_of(dtype) != dtype:
            allowed = allowed + half_unit(exact, torch.float32)
        if not one_rounding:
            for p, q in products:
                allowed = allowed + torch.finfo(torch.float64).eps / 2 * (p * q).abs()
        self.allowed = allowed * (1 + 2.0**-28)  # what is computed in float64 is rounded to it first

    def holds(self, out):
        if out.dtype != self.rounded.dtype or out.shape != self.rounded.shape:
            return False
        if out.dtype == torch.uint8:
            return torch.equal(out, self.rounded)
        error = ((out.double() - self.exact[0]) - self.lost).abs()
        return bool(torch.where(self.certain, alike(out, self.rounded), error <= self.allowed).all())


def over_batch(mask, x, size):
    """(B, *size) in the shape of x."""
    return mask.reshape(mask.shape[0], *[1] * (x.ndim - 1 - len(size)), *size).expand(x.shape)


def expected_mix(x, w, plan, backend):
    a, b = x, x[plan.partner]
    compute = compute_of(x.dtype)
    difference = (a.to(compute) - b.to(compute)).double()
    products = ((w.double(), difference), (b.double(), torch.ones_like(difference)))
    certain = (w == 0) | (w == 1) | (a == b)
    return Expected(reference.blend(w, a, b), certain, products, backend.one_rounding)


def expected_adjoint(grad, w, plan):
    back = plan.partner.argsort()
    own, lent = w.double(), 1.0 - w[back].double()
    g, h = grad.double(), grad[back].double()
    sum_of = torch.where(own == 0, 0.0, own * g) + torch.where(lent == 0, 0.0, lent * h)
    rounded = sum_of.to(compute_of(grad.dtype)).to(grad.dtype)
    # A weight of 0 takes nothing, not even an infinity.
    g, h = torch.where(own == 0, 0.0, g), torch.where(lent == 0, 0.0, h)
    return Expected(rounded, torch.zeros_like(own, dtype=torch.bool), ((own, g), (lent, h)), False)


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
        if not backend.takes(case):
            continue
        plan = plan_of(modules[case.spatial], case, number, backend)
        w = mask_of(plan, backend)
        for dtype in DTYPES:
            x = values(case, dtype, number).to(backend.device)
            mixed = expected_mix(x, over_batch(w, x, plan.size), plan, backend)
            for layout in layouts_of(number):
                asked = backend.asked(turn, number, dtype, layout)
                given = layout(x)
                if "mix" in asked:
                    out = backend.mix(given, plan)
                    where = sums.count("mix", case, dtype, layout, out)
                    assert mixed.holds(out), where
                    assert alike(given, x).all(), where
                    assert out.stride() == torch.empty_like(given).stride(), where
                if "mix_" in asked:  # the same, and nothing beside it
                    memory = given if given._base is None else given._base
                    before = memory.clone()
                    backend.mix_(given, plan)
                    where = sums.count("mix_", case, dtype, layout, given)
                    assert mixed.holds(given), where
                    assert "mix" not in asked or alike(given, out).all(), where
                    given.copy_(x)
                    assert alike(memory, before).all(), where
            if dtype == torch.uint8:
                continue
            grad = values(case, dtype, number + 100).to(backend.device)
            lent = expected_adjoint(grad, over_batch(w, grad, plan.size), plan)
            for layout in layouts_of(number):
                if "mix_adjoint" in backend.asked(turn, number, dtype, layout):
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
    expected = reference.mask(plan.masks, int(plan.families), plan.size, int(plan.per), plan.pixels)
    assert w.dtype == torch.float32
    assert w.shape == expected.shape
    exact = torch.isin(plan.kind, EXACT.to(w.device))
    allowed = torch.where(exact, 0.0, 4 * 2.0**-24).reshape(-1, *[1] * len(plan.size))
    assert ((w - expected).abs() <= allowed).all(), "mask"
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
        assert expected_mix(x, w, plan, backend).holds(backend.mix(x, plan))


@each_backend
def test_bytes_round_to_nearest_even_under_a_gaussian(backend):
    x = all_pairs().to(backend.device)
    for seed in range(20 if backend.fast else 2):
        plan = fm.GMix(per="sample", pairing="flip").sample(2, (256, 256), seed=seed).to(backend.device)
        w = over_batch(mask_of(plan, backend), x, plan.size)
        assert expected_mix(x, w, plan, backend).holds(backend.mix(x, plan))


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
        assert expected_mix(x, w, plan, backend).holds(backend.mix(x, plan))
        assert expected_adjoint(x, w, plan).holds(backend.mix_adjoint(x, plan))


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
        asked = {number: sparse.asked(turn, number, dtype, layout) for number in range(len(CASES))}
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
