"""What the C++ backend promises beyond the agreement of its operators (test_agreement.py): plans and labels to the last
bit, one pass and no copy, threads, instruction sets, processes, and the step of a training that is one call.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import v2

import fusedmix as fm
from conftest import INTEGERS, METHODS, NO_CPP
from fusedmix import backends
from fusedmix.backends import reference
from fusedmix.draws import Request, Source
from fusedmix.methods import Families, Pairing, Per

pytestmark = pytest.mark.skipif(NO_CPP is not None, reason=str(NO_CPP))
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8)
FLOATS = DTYPES[:4]
BY_CLASS = ("cross_class", "same_class")
# Whose masks are the reference's bit for bit.
EXACT = Families.CONSTANTS | Families.CUTS | Families.BOXES | Families.STORED | Families.LEVELS
SHARP = [name for name, make in METHODS.items() if not make()._families & ~EXACT]
K = 7


@pytest.fixture(autouse=True)
def _the_default_backend(monkeypatch):
    monkeypatch.delenv("FUSEDMIX_BACKEND", raising=False)


@pytest.fixture(scope="module")
def cpp():
    return backends.operators("cpu", "cpp")


def images_of(shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, dtype=dtype, generator=generator)
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)


def equal(a, b):
    """The same tensors, or structures of them."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and all(map(equal, a, b))


class Recorded(TorchDispatchMode):
    """The names of all that torch is asked to do."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def python(code, timeout=120, **environment):
    """Runs code in a process of its own, from the folder of the tests; what it printed, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=Path(__file__).parent,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# ---- Plans -----------------------------------------------------------------------------------------------------------


def assert_same_plan(made, expected):
    """Everything equal but the label weight, which is a sum over pixels."""
    for name, a, b in zip(("partner", "lam", "weight", "masks"), made, expected, strict=True):
        assert a.dtype == b.dtype, name
        if name == "weight":
            assert ((a - b).abs() <= 1e-13).all()
        else:
            assert torch.equal(a, b), name


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


def sampled(cpp, request, seed, drawn=None, partner=None):
    """A plan of the C++ sampler and the reference's."""
    source = (None if seed is None else torch.tensor(seed), drawn, partner)
    spec, batch, size, pairing, per, p, lam, classes = request
    asked = Request(spec, batch, tuple(size), Pairing(pairing), Per(per), p, lam, classes)
    cpu = torch.device("cpu")
    return cpp.sample(*request, *source, cpu), reference.sample(asked, Source(*source), cpu)


def test_plans_of_seeds(cpp):
    rng = random.Random(0)
    for _ in range(400):
        assert_same_plan(*sampled(cpp, *any_request(rng)))


def test_plans_of_numbers_drawn_on_the_host(cpp):
    rng = random.Random(1)
    for _ in range(200):
        request, seed = any_request(rng)
        numbers, partner = torch.ops.fusedmix.draw_host(*request, 0, seed)
        assert_same_plan(*sampled(cpp, request, None, numbers, partner if request[3] > Pairing.FLIP else None))


@pytest.mark.parametrize(
    ("name", "pairing", "size"),
    [("CutMix", "random", (224, 224)), ("RandomMix", "flip", (8, 12)), ("HMix-paper", "roll", (9, 8, 7))],
)
def test_a_million_draws(cpp, name, pairing, size):
    module = METHODS[name](per="sample", pairing=pairing)
    made, expected = sampled(cpp, module._request(10**6, size, None, None), 2**40 + 1)
    assert torch.equal(made[0], expected[0])
    assert torch.equal(made[3][:, :7], expected[3][:, :7])  # kind and box: its values follow from λ
    # λ is made of logarithms in float64 and rounded once: where two libraries differ, the rounding may, once in 10⁸.
    assert (made[1] != expected[1]).sum() <= 1
    assert ((made[1] - expected[1]).abs() <= 2.0**-24).all()
    assert ((made[2] - expected[2]).abs() <= 1e-7).all()
    assert ((made[2] - expected[2]).abs() > 1e-13).sum() <= 1


@pytest.mark.parametrize("pairing", BY_CLASS)
@pytest.mark.parametrize("classes", [1, 2, 10, 1000])
def test_partners_by_class(cpp, pairing, classes):
    module = fm.MixUp(per="sample", pairing=pairing)
    for seed in range(20):
        labels = torch.randint(classes, (2000,)) * 2**40 - 5
        made, expected = sampled(cpp, module._request(2000, (4, 4), None, labels), seed)
        assert torch.equal(made[0], expected[0])


# ---- Labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS, torch.bool], ids=str)
def test_labels_are_equal(dtype, smoothing):
    for batch, classes in itertools.product((0, 1, 2, 33), (1, 7, 100)):
        plan = fm.RandomMix([fm.MixUp(), fm.GMix(), fm.SamplePairing()], per="sample", pairing="random").sample(
            batch, (5, 6), seed=batch
        )
        soft = (torch.rand(batch, classes, dtype=torch.float64) * (1 if dtype in FLOATS else 2)).to(dtype)
        rows = torch.zeros(2 * batch, 3 * classes, dtype=dtype)[::2, ::3].copy_(soft)
        given = [soft, soft.T.contiguous().T, rows, soft[:1].expand(batch, classes)]
        if dtype in INTEGERS:
            hard = torch.randint(classes, (batch,)).to(dtype)
            given += [hard, torch.zeros(2 * batch, dtype=dtype)[::2].copy_(hard), hard[:1].expand(batch)]
        for labels in given:
            ours, theirs = (
                fm.mix_labels(labels, plan, num_classes=classes, label_smoothing=smoothing, backend=backend)
                for backend in ("cpp", "reference")
            )
            assert equal(ours, theirs)


# ---- One pass, in place ----------------------------------------------------------------------------------------------

PEAK = """
    import json, resource, sys
    import torch
    import fusedmix as fm
    from conftest import METHODS

    torch.set_num_threads({threads})
    y = torch.arange(200) % 10
    names = ("MixUp", "CutMix", "HMix-released", "GMix-released")
    modules = [METHODS[name](num_classes=10, pairing="random", inplace=True) for name in names]
    modules += [METHODS["RandomMix"](num_classes=10, per="sample", pairing=p, inplace=True) for p in ("roll", "flip")]

    def work(x):
        for module in modules:
            plan = module.sample(len(x), x.shape[2:])
            fm.mix_(x, plan, backend="cpp")
            module(x, y)

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    work(torch.ones(200, 3, 8, 8))  # all that is loaded or started once
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.ones(200, 3, 296, 296).contiguous(memory_format=layout)  # 210 MB
        before = peak()
        work(x)
        found.append(peak() - before)
    x = x.contiguous()
    before = peak()
    out = fm.mix(x, modules[0].sample(200, (296, 296)), backend="cpp")
    print(json.dumps([*found, peak() - before, x.numel() * x.element_size()]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no getrusage")
def test_in_place_takes_no_memory():
    """The process's peak, whoever allocates, while a batch of 210 MB is mixed in place."""
    *in_place, out_of_place, size = python(PEAK.format(threads=2))
    assert max(in_place) < 4 << 20
    assert out_of_place < 8 << 20 or abs(out_of_place - size) < 8 << 20  # nothing, where freed memory is used again


def allocations(call):
    """Bytes of every allocation that torch made during a call."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        call()
    events = profiler.profiler.kineto_results.events()
    return [event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_in_place_allocates_nothing_large(method, layout):
    x = images_of((32, 3, 128, 128)).contiguous(memory_format=layout)  # 6 MB
    y = torch.arange(32) % K
    module = method(num_classes=K, per="sample", pairing="random", inplace=True)
    plan = module.sample(32, (128, 128), seed=1)
    assert sum(allocations(lambda: fm.mix(x, plan, backend="cpp"))) >= x.numel() * 4  # it would be seen
    assert max(allocations(lambda: fm.mix_(x, plan, backend="cpp")), default=0) <= 1 << 16
    # The masks of FMix are stored: a bit for each pixel, or two bytes where they are soft.
    stored = 0 if plan.pixels is None else plan.pixels.nbytes
    assert max(allocations(lambda: module(x, y)), default=0) <= max(1 << 16, stored)


# ---- Autograd --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["mix_", "module", "module-general"])
def test_in_place_is_seen_by_autograd(way):
    x = images_of((4, 3, 8, 8))
    weight = torch.ones((), requires_grad=True)
    loss = (weight * x).sum()
    version = x._version
    module = fm.CutMix(num_classes=K, inplace=True, targets="dense" if way == "module" else "sparse")
    if way == "mix_":
        fm.mix_(x, module.sample(4, (8, 8), lam=0.5), backend="cpp")
    else:
        assert module(x, torch.arange(4))[0] is x
    assert x._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", SHARP)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_backward_is_the_references(name, dtype):
    """Bit for bit where the masks are: both add two products in float64 and round once."""
    plan = METHODS[name](per="sample", pairing="random").sample(9, (11, 13), seed=2)
    grad = images_of((9, 3, 11, 13), dtype, 1)
    found = []
    for backend in ("cpp", "reference"):
        x = images_of((9, 3, 11, 13), dtype).requires_grad_()
        found.append(torch.autograd.grad(fm.mix(x, plan, backend=backend), x, grad)[0])
    assert equal(*found)


@pytest.mark.parametrize("module", [fm.MixUp, fm.CutMix, fm.GMix])
def test_in_place_needs_no_grad(module):
    mix = module(num_classes=K, inplace=True)
    x = images_of((4, 3, 8, 8)).requires_grad_()
    before, state = x.detach().clone(), torch.get_rng_state()
    with pytest.raises(RuntimeError, match="requires grad"):
        fm.mix_(x, mix.sample(4, (8, 8), seed=0), backend="cpp")
    with pytest.raises(RuntimeError, match="requires grad"):
        mix(x, torch.arange(4))
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        assert mix(x, torch.arange(4))[0] is x
    assert not torch.equal(x, before)


# ---- Labels out of range ---------------------------------------------------------------------------------------------


OUT_OF_RANGE = [
    (dtype, value)
    for dtype in INTEGERS
    for value in (K, -1, torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    if torch.iinfo(dtype).min <= value and not 0 <= value < K
]


@pytest.mark.parametrize("inplace", [False, True], ids=["out-of-place", "in-place"])
@pytest.mark.parametrize(("dtype", "value"), OUT_OF_RANGE, ids=str)
def test_a_class_out_of_range(dtype, value, inplace):
    """An error before anything is drawn or written."""
    y = torch.tensor([0, 1, value, 3], dtype=dtype)
    x = images_of((4, 3, 8, 8))
    before, state = x.clone(), torch.get_rng_state()
    for options in ({}, {"per": "sample"}, {"sampling": "device"}, {"p": 0.5}, {"per": "sample", "sampling": "host"}):
        for module in (fm.MixUp, fm.CutMix, METHODS["RandomMix"]):
            with pytest.raises(ValueError, match=r"labels must be in \[0, num_classes\) = \[0, 7\)"):
                module(num_classes=K, inplace=inplace, **options)(x, y)
            assert torch.equal(x, before)
            assert torch.equal(torch.get_rng_state(), state)
    plan = fm.MixUp().sample(4, (8, 8), seed=0)
    with pytest.raises(ValueError, match="labels must be in"):
        fm.mix_labels(y, plan, num_classes=K, backend="cpp")


# ---- Threads and instruction sets ------------------------------------------------------------------------------------

EVERYTHING = """
    import itertools
    import torch
    import fusedmix as fm
    from conftest import METHODS

    DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8)
    # Enough for several threads, which share out places or samples.
    SHAPES = ((5, 3, 67, 129), (3, 2, 9, 40, 61), (6, 2, 9001), (97, 3, 13, 17), (200, 2, 90))

    def bits(x):
        return x.contiguous().view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])

    def everything():
        '''All that the backend computes, bit for bit, under names.'''
        found = {}
        generator = torch.Generator().manual_seed(0)
        for number, ((name, method), shape) in enumerate(itertools.product(METHODS.items(), SHAPES)):
            size = shape[2:]
            per, pairing = ("batch", "flip") if number % 2 else ("sample", "random")
            plan = method(per=per, pairing=pairing).sample(shape[0], size, seed=number)
            masks = (plan.partner, plan.masks, int(plan.families))
            masks += (0 if plan.constant else len(size), int(plan.pairing), int(plan.per))
            at = f"{name} {shape}"
            for index, tensor in enumerate((*masks[:2], plan.lam, plan.weight, cpp.mask(*masks[1:3], size))):
                found[f"{at} plan {index}"] = bits(tensor)
            values = torch.rand(shape, dtype=torch.float64, generator=generator) * 256
            for dtype, last in itertools.product(DTYPES, (False, True)):
                x = values.to(dtype)
                x = x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x
                where = f"{at} {dtype} {last}"
                found[f"{where} mix"] = bits(cpp.mix(x, *masks))
                if dtype != torch.uint8:
                    found[f"{where} adjoint"] = bits(cpp.mix_adjoint(x, *masks))
                cpp.mix_(x, *masks)
                found[f"{where} mix_"] = bits(x)
            for labels in (torch.arange(shape[0]), torch.rand(shape[0], 5000, generator=generator).half()):
                targets = cpp.mix_labels(labels, plan.partner, plan.weight, 5000, 0.1)
                found[f"{at} {labels.dtype} targets"] = bits(targets)
        return found
"""


def everything_of(cpp):
    scope = {"cpp": cpp}
    exec(textwrap.dedent(EVERYTHING), scope)
    return scope["everything"]()


def test_threads_change_nothing(cpp):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = everything_of(cpp)
        for count in (2, 5):
            torch.set_num_threads(count)
            shared = everything_of(cpp)
            assert alone.keys() == shared.keys()
            assert [name for name in alone if not torch.equal(alone[name], shared[name])] == []
    finally:
        torch.set_num_threads(threads)


@pytest.mark.thorough
def test_instruction_sets_change_nothing():
    code = """
        import hashlib, json
        from fusedmix import backends
        torch.set_num_threads(1)
        cpp = backends.operators("cpu", "cpp")
        digests = {}
        for name, x in everything().items():
            digests[name] = hashlib.sha256(memoryview(x.contiguous().view(torch.uint8).numpy())).hexdigest()
        print(json.dumps(digests))
    """
    generic, best = (
        python(textwrap.dedent(EVERYTHING) + textwrap.dedent(code), FUSEDMIX_ISA=isa) for isa in ("generic", "avx2")
    )
    assert generic.keys() == best.keys()
    assert [name for name in generic if generic[name] != best[name]] == []


def test_calls_from_several_threads(cpp):
    plans = [
        method(per="sample", pairing="random").sample(6, (40, 41), seed=i) for i, method in enumerate(METHODS.values())
    ]
    x = images_of((6, 3, 40, 41))
    expected = [fm.mix(x, plan, backend="cpp") for plan in plans]
    wrong = []

    def work():
        for _ in range(20):
            for plan, mixed in zip(plans, expected, strict=True):
                if not torch.equal(fm.mix(x, plan, backend="cpp"), mixed):
                    wrong.append(plan)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ---- The step of a training in one call ------------------------------------------------------------------------------


def seeded(seed, module, *sample):
    """What a module makes of a sample after torch.manual_seed, the state of the generator then, and what torch did."""
    torch.manual_seed(seed)
    with Recorded() as recorded:
        out = module(*sample)
    return out, torch.get_rng_state(), recorded.names


@pytest.mark.parametrize("name", ["MixUp", "CutMix"])
@pytest.mark.parametrize("inplace", [False, True], ids=["out-of-place", "in-place"])
def test_the_plain_step_is_torchvisions(name, inplace):
    y = torch.arange(6) % K
    for seed, alpha in itertools.product(range(50), (0.01, 0.2, 1.0, 8.0)):
        ours = getattr(fm, name)(num_classes=K, inplace=inplace, alpha=alpha)
        theirs = getattr(v2, name)(num_classes=K, alpha=alpha)
        x = images_of((6, 3, 9, 12), seed=seed)
        expected, state, _ = seeded(seed, theirs, x, y)
        (images, targets), our_state, ran = seeded(seed, ours, x, y)
        assert ran == ["fusedmix_cpp::mix_batch_" if inplace else "fusedmix_cpp::mix_batch"]
        assert torch.equal(our_state, state)
        assert torch.equal(targets, expected[1])
        if name == "CutMix":
            assert torch.equal(images, expected[0])
        else:  # torchvision rounds three times
            assert (images - expected[0]).abs().max() <= 2.0**-22 * (1 + x.abs().max())


OPTIONS = [
    {},
    {"pairing": "flip", "label_smoothing": 0.1},
    {"per": "sample"},
    {"per": "pair", "sampling": "device"},
    {"per": "batch", "sampling": "device", "pairing": "random", "p": 0.5},
]


@pytest.mark.parametrize("inplace", [False, True], ids=["out-of-place", "in-place"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_plain_step_is_the_references(method, options, inplace):
    """In every form that the sample of a plain step may have."""
    one = method is not METHODS["RandomMix"]
    if not one and options.get("per", options.get("sampling")) is None:
        pytest.skip("a choice of methods is drawn in Python")
    ours, theirs = (method(num_classes=K, inplace=inplace, backend=name, **options) for name in (None, "reference"))
    shapes = ((6, 3, 9, 12), (3, 4, 33), (2, 2, 5, 6), (5, 1, 3, 3), (0, 3, 4, 4), (1, 3, 7, 5))
    for number in range(20 if options else 100):
        seed = 2 * number + inplace
        shape, dtype = shapes[number % len(shapes)], DTYPES[number % len(DTYPES)]
        x = images_of(shape, dtype, seed)
        y = torch.arange(shape[0]) % K
        if number % 7 < 2:
            y = torch.rand(shape[0], K).to(FLOATS[number % 4])
        form = (lambda *xy: xy, lambda *xy: (xy,), lambda *xy: ([*xy],))[number % 3]
        also = x.clone()
        expected, state, _ = seeded(seed, theirs, *form(x.clone(), y))
        mixed, our_state, ran = seeded(seed, ours, *form(also, y))
        ran = ran if one else [name for name in ran if not name.startswith("aten")]  # RandomMix gathers its methods' α
        assert ran == ["fusedmix_cpp::mix_batch_" if inplace else "fusedmix_cpp::mix_batch"]
        assert type(mixed) is type(expected)
        assert (mixed[0] is also) == inplace
        assert inplace or torch.equal(also, x)
        assert torch.equal(our_state, state)
        assert mixed[1].dtype == expected[1].dtype
        sharp = not ours._families & ~EXACT
        if sharp:
            assert equal(mixed[1], expected[1])
        if sharp and dtype != torch.float64:  # where the reference rounds twice
            assert equal(mixed[0], expected[0])
        else:
            # A soft mask may differ by 4·2⁻²⁴, and the result by a rounding more.
            eps = 1.0 if dtype == torch.uint8 else torch.finfo(dtype).eps
            far = 8.0 * (2.0**-52 if sharp else 4 * 2.0**-24) + 8 * eps
            torch.testing.assert_close(mixed[0].double(), expected[0].double(), rtol=0, atol=far)
            torch.testing.assert_close(mixed[1], expected[1])


@pytest.mark.parametrize("inplace", [False, True], ids=["out-of-place", "in-place"])
def test_other_samples_go_the_general_way_to_the_same_batch(method, inplace):
    module = method(num_classes=K, inplace=inplace)
    for seed in range(20):
        x, y = images_of((6, 3, 9, 12), seed=seed), torch.arange(6) % K
        (images, targets), state, _ = seeded(seed, module, x.clone(), y)
        out, other, _ = seeded(seed, module, {"images": x.clone(), "labels": y, "more": "text"})
        assert torch.equal(out["images"], images)
        assert torch.equal(out["labels"], targets)
        assert torch.equal(other, state)
        plan = module.sample(6, (9, 12), seed=seed)  # what torch.manual_seed(seed) and a draw would give
        assert torch.equal(fm.mix(x, plan), images)
        assert torch.equal(fm.mix_labels(y, plan, num_classes=K), targets)


# ---- Processes -------------------------------------------------------------------------------------------------------


class Mixed(torch.utils.data.Dataset):
    """Batches that a worker mixes, and whether the C++ backend did it."""

    def __init__(self, module):
        self.module = module

    def __len__(self):
        return 4

    def __getitem__(self, index):
        (images, targets), _, ran = seeded(
            index, self.module, images_of((32, 3, 80, 80), seed=index), torch.arange(32) % K
        )
        # In a spawned worker the first call finds the library not loaded yet, and goes the general way.
        return images, targets, {name for name in ran if name.startswith("fusedmix_")} == {"fusedmix_cpp::mix_batch"}


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.thorough)])
def test_dataloader_workers(start):
    """Workers mix by the C++ backend, also those that were forked from a process that did so on several threads."""
    if start not in torch.multiprocessing.get_all_start_methods():
        pytest.skip("not on this system")
    dataset = Mixed(fm.CutMix(num_classes=K))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        expected = [dataset[index] for index in range(len(dataset))]
    finally:
        torch.set_num_threads(threads)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=2 if start == "fork" else 1, multiprocessing_context=start, timeout=100
    )
    for (images, targets, by_cpp), (same_images, same_targets, _) in zip(loader, expected, strict=True):
        assert by_cpp
        assert torch.equal(images, same_images)
        assert torch.equal(targets, same_targets)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_of_a_threaded_parent():
    """It neither hangs nor differs once it has set its threads to one, as all of PyTorch needs it to where OpenMP's are
    GNU's."""
    code = """
        import json, os
        import torch
        import fusedmix as fm

        torch.set_num_threads(4)
        x = torch.arange(64 * 3 * 64 * 64.0).reshape(64, 3, 64, 64)
        plan = fm.GMix(per="sample", pairing="random").sample(64, (64, 64), seed=1)
        mixed = fm.mix(x, plan, backend="cpp")
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            same = torch.equal(fm.mix(x, plan, backend="cpp"), mixed)
            os._exit(0 if same else 1)
        print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
    """
    assert python(code, timeout=60) == 0


# ---- What only hand-made arguments can show --------------------------------------------------------------------------


@pytest.mark.parametrize("partner", [[0, 0, 1], [1, 2, 3], [-1, 0, 1], [1, 2, 2]])
def test_partners_that_are_no_permutation(cpp, partner):
    plan = fm.CutMix(per="sample").sample(3, (4, 4), seed=0)
    x = images_of((3, 1, 4, 4))
    before = x.clone()
    masks = (torch.tensor(partner), plan.masks, int(plan.families), 2, int(Pairing.RANDOM), int(Per.SAMPLE))
    with pytest.raises(ValueError, match="partner"):
        cpp.mix_(x, *masks)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_in_any_order(method, dtype):
    """Batches whose memory is in an order that no framework makes, and inputs that repeat themselves."""
    x = images_of((4, 3, 6, 5), dtype)
    plan = method(per="sample", pairing="random").sample(4, (6, 5), seed=3)
    expected = fm.mix(x, plan, backend="cpp")
    for order in itertools.permutations(range(4)):
        turned = x.permute(order).clone(memory_format=torch.contiguous_format)
        turned = turned.permute([order.index(d) for d in range(4)])
        assert torch.equal(fm.mix(turned, plan, backend="cpp"), expected)
        assert torch.equal(fm.mix_(turned, plan, backend="cpp"), expected)
    for repeated in (x[:1].expand(4, 3, 6, 5), x[:, :1].expand(4, 3, 6, 5), x[..., :1].expand(4, 3, 6, 5)):
        whole = repeated.clone(memory_format=torch.contiguous_format)
        assert torch.equal(fm.mix(repeated, plan, backend="cpp"), fm.mix(whole, plan, backend="cpp"))
