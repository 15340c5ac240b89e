"""What only a GPU can show: graphs, streams, devices, memory. benchmarks/gpu_suite.py runs these with everything else.

The kernels' results are compared with the reference elsewhere (test_agreement.py), on every device there is.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import fusedmix as fm
from conftest import METHODS, NO_CUDA, NO_TRITON, STORED
from fusedmix import backends
from fusedmix.bench.device import extra_memory, launches
from fusedmix.ops import GeneratorHandle

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
WHY_NOT = {"cuda": NO_CUDA, "triton": NO_TRITON}
BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(reason is not None, reason=str(reason)))
    for name, reason in WHY_NOT.items()
]
REPLAYS = 100
# Of a step that draws on the device, its seed drawn already: the plan, then images and targets by cuda; by triton the
# targets in a launch of their own.
LAUNCHES = {"cuda": 2, "triton": 3}
# Samples of a plan on the CPU that do not fit a kernel's arguments: of triton's none do but one for the whole batch.
TOO_MANY = {"cuda": 512, "triton": 2}


# Of a capture that is refused before anything is in it.
EMPTY_GRAPH = pytest.mark.filterwarnings("ignore:The CUDA Graph is empty:UserWarning")


def batch(n=8, classes=10, size=(16, 16), dtype=torch.float32):
    generator = torch.Generator("cuda").manual_seed(1)
    x = torch.rand((n, 3, *size), generator=generator, device="cuda").to(dtype)
    return x, torch.arange(n, device="cuda") % classes


def launched(graph):
    """How many kernels a captured graph launches."""
    return launches(graph.replay)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("pairing", ["roll", "flip", "random"])
@pytest.mark.parametrize("per", ["batch", "sample"])
def test_every_replay_mixes_anew_and_as_eager_would(backend, inplace, pairing, per):
    x, y = batch()
    mix = fm.CutMix(
        num_classes=10, sampling="device", per=per, pairing=pairing, inplace=inplace, backend=backend, alpha=1.0
    )
    static = x.clone()
    warm = torch.cuda.Stream()  # the first call compiles, and brings the method's parameters to the GPU
    warm.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm):
        mix(static.clone(), y)
    torch.cuda.current_stream().wait_stream(warm)

    # A twin of the generator tells which seed each replay will draw.
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        images, targets = mix(static, y)
    seeds = torch.cuda.CUDAGraph()
    with torch.cuda.graph(seeds):
        drawn = torch.ops.fusedmix.draw_seed(0, device=x.device)
    # torch sets its generator before a replay, and draws: the same launches in both graphs.
    assert 0 < launched(graph) - launched(seeds) <= LAUNCHES[backend]
    expected_seeds = []
    torch.cuda.manual_seed(7)
    for _ in range(REPLAYS):
        seeds.replay()
        expected_seeds.append(int(drawn))
    torch.cuda.manual_seed(7)
    for seed in expected_seeds:
        static.copy_(x)
        graph.replay()
        plan = mix.sample(x.shape[0], x.shape[2:], device="cuda", seed=seed)
        assert torch.equal(images, fm.mix(x, plan, backend=backend))
        assert torch.equal(targets, fm.mix_labels(y, plan, num_classes=10, backend=backend))
    assert len(set(expected_seeds)) == REPLAYS  # though two seeds may draw the same box of an image so small


FMIX = {"max_soft": 0.0, "decay_power": 3}, {"max_soft": 0.2}, {"variant": "released"}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", FMIX, ids=str)
@pytest.mark.parametrize("size", [(224, 224), (33, 57), (3000,), (12, 20, 18)], ids=str)
@pytest.mark.parametrize("per", ["batch", "pair", "sample"])
def test_fmix_makes_the_masks_of_the_reference(backend, options, size, per):
    """As many ones or levels of each mask, all but .01 % of them (of levels, .5 %) in the same place."""
    here, there = (
        fm.FMix(per=per, pairing="flip", sampling="device", backend=b, **options) for b in ("reference", backend)
    )
    expected = here.sample(6, size, seed=9)
    plan = there.sample(6, size, seed=9, device="cuda")
    assert plan.pixels.device == plan.partner.device
    a, b = plan.mask().cpu().flatten(1), expected.mask().flatten(1)
    torch.testing.assert_close(a.sort(1).values, b.sort(1).values, rtol=0, atol=0)
    assert (a != b).float().mean() <= (5e-3 if options.get("max_soft") else 1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("channels_last", [False, True])
def test_fmix_mixes_as_the_reference(backend, dtype, channels_last):
    x = (torch.rand((7, 3, 48, 64), device="cuda") * 255).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    for options in FMIX:
        plan = fm.FMix(per="sample", pairing="random", backend=backend, **options).sample(
            7, (48, 64), seed=2, device="cuda"
        )
        for placed in (plan, plan.to("cpu")):
            mixed = fm.mix(x, placed, backend=backend)
            assert torch.equal(mixed, fm.mix(x, plan, backend="reference"))
            assert torch.equal(fm.mix_(x.clone(memory_format=torch.preserve_format), placed, backend=backend), mixed)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", FMIX, ids=str)
def test_every_replay_of_fmix_makes_new_masks(backend, options):
    x, y = batch(n=16, size=(64, 64))
    mix = fm.FMix(num_classes=10, per="sample", sampling="device", backend=backend, **options)
    warm = torch.cuda.Stream()
    warm.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm):
        mix(x, y)
    torch.cuda.current_stream().wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        images, _ = mix(x, y)
    seen = set()
    for _ in range(20):
        graph.replay()
        seen.add(images.cpu().numpy().tobytes())
    assert len(seen) == 20


@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_at_any_address(backend):
    """Kernels may read records 16 bytes at a time, which memory of the caller's making need not allow."""
    x, _ = batch()
    plan = fm.CutMix(per="sample").sample(8, (16, 16), seed=1).to("cuda")
    shifted = torch.empty(plan.masks.numel() + 1, dtype=torch.int32, device="cuda")[1:].view_as(plan.masks)
    moved = replace(plan, masks=shifted.copy_(plan.masks))
    assert torch.equal(fm.mix(x, moved, backend=backend), fm.mix(x, plan, backend=backend))


@EMPTY_GRAPH
@pytest.mark.parametrize("backend", BACKENDS)
def test_pixels_on_the_cpu_cannot_be_captured(backend):
    x, _ = batch()
    plan = fm.FMix().sample(8, (16, 16), seed=1)
    fm.mix(x, plan, backend=backend)
    with pytest.raises(RuntimeError, match=r"plan\.to"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        fm.mix(x, plan, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_extra_memory_of_fmix(backend):
    """24 MiB while masks are made, a bit for each of their pixels, and what any plan takes."""
    x, y = batch(n=256, size=(224, 224))
    mix = fm.FMix(num_classes=100, per="sample", sampling="device", inplace=True, backend=backend)
    _, targets = mix(x, y)
    extra = extra_memory(lambda: mix(x, y), x.device)
    assert extra <= targets.nbytes + (24 << 20) + 256 * 224 * 224 // 8 + max(2**20, x.nbytes // 16) + 128 * 256


@EMPTY_GRAPH
@pytest.mark.parametrize("backend", BACKENDS)
def test_host_sampling_cannot_be_captured(backend):
    x, y = batch()
    mix = fm.CutMix(num_classes=10, backend=backend)
    mix(x, y)
    with pytest.raises(RuntimeError, match='sampling="device"'), torch.cuda.graph(torch.cuda.CUDAGraph()):
        mix(x, y)


@EMPTY_GRAPH
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_plan_too_large_for_the_arguments_cannot_be_captured(backend):
    n = TOO_MANY[backend]
    x, _ = batch(n=n, size=(4, 4))
    plan = fm.CutMix(per="sample", pairing="random", sampling="host").sample(n, (4, 4), seed=1)
    fm.mix(x, plan, backend=backend)
    with pytest.raises(RuntimeError, match=r"plan\.to"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        fm.mix(x, plan, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pairing", ["roll", "flip"])
def test_one_mask_on_the_cpu_travels_with_a_captured_launch(backend, pairing):
    x, _ = batch()
    plan = fm.CutMix(pairing=pairing).sample(8, (16, 16), lam=0.4, seed=1)
    fm.mix(x, plan, backend=backend)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        mixed = fm.mix(x, plan, backend=backend)
    graph.replay()
    assert torch.equal(mixed, fm.mix(x, plan, backend="reference"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("per", ["batch", "sample"])
def test_the_current_stream_is_used(backend, per):
    """Work on another stream is ordered by events, and a plan on the host outlives the call that sent it."""
    x, _ = batch(n=256, size=(64, 64))
    mix = fm.MixUp(per=per, pairing="random", sampling="host")
    side = torch.cuda.Stream()
    for seed in range(20):
        plan = mix.sample(256, (64, 64), seed=seed)
        expected = fm.mix(x.cpu(), plan, backend="reference")
        work = torch.zeros_like(x)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(2_000_000)  # what would be seen if the kernel ran on the default stream
            work.copy_(x)
            fm.mix_(work, plan, backend=backend)
            del plan
        torch.cuda.current_stream().wait_stream(side)
        torch.testing.assert_close(work.cpu(), expected, rtol=0, atol=2**-23)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("backend", BACKENDS)
def test_another_device_than_the_current_one(backend):
    x, y = (t.to("cuda:1") for t in batch())
    mix = fm.CutMix(num_classes=10, per="sample", backend=backend)
    images, targets = mix(x, y)
    assert images.device == targets.device == x.device
    assert torch.cuda.current_device() == 0
    plan = mix.sample(8, (16, 16), seed=3, device="cuda:1")
    assert plan.device == x.device
    mixed = fm.mix(x, plan, backend=backend)
    assert mixed.device == x.device
    torch.testing.assert_close(mixed.cpu(), fm.mix(x.cpu(), plan.to("cpu")), rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pairing", ["roll", "flip", "random"])
@pytest.mark.parametrize("shape", [(64, 3, 128, 128), (512, 3, 32, 32)], ids=str)
def test_extra_memory_in_place(backend, pairing, shape):
    x, y = batch(n=shape[0], size=shape[2:])
    mix = fm.GMix(num_classes=100, pairing=pairing, per="sample", inplace=True, backend=backend)
    _, targets = mix(x, y)
    extra = extra_memory(lambda: mix(x, y), x.device)
    plan = 128 * shape[0]  # bytes
    assert extra <= targets.nbytes + max(2**20, x.nbytes // 16) + plan


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_than_2_to_the_31_elements(backend):
    elements = 2**31 + 2**28
    if torch.cuda.mem_get_info()[0] < 4 * elements:
        pytest.skip("needs 10 GB of free memory")
    n = elements // 2**20
    x = torch.empty((n, 1, 1024, 1024), dtype=torch.uint8, device="cuda")
    x.copy_((torch.arange(n, device="cuda") % 251).to(torch.uint8).reshape(n, 1, 1, 1))
    plan = fm.CutMix(alpha=1.0).sample(n, (1024, 1024), lam=0.25, seed=5)
    fm.mix_(x, plan, backend=backend)
    z0, y0, x0, _, y1, x1 = plan.geometry[0].tolist()
    assert z0 == 0
    for i in (0, 1, n // 2, n - 1):
        own, partner = i % 251, int(plan.partner[i]) % 251
        expected = torch.full((1024, 1024), own, dtype=torch.uint8, device="cuda")
        expected[y0:y1, x0:x1] = partner
        assert torch.equal(x[i, 0], expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loss", [fm.mix_cross_entropy, fm.mix_binary_cross_entropy])
@pytest.mark.parametrize("per", ["batch", "sample"])
@pytest.mark.parametrize("there", ["cpu", "cuda"])
@pytest.mark.parametrize(("n", "classes"), [(512, 5001), (64, 21841)])
def test_label_losses(backend, loss, per, there, n, classes):
    """As the reference's, wherever the plan is, and with no memory beside the gradient but a few numbers for each row
    and part of a row. There are no more than four parts a multiprocessor."""
    few = 128 * n + 64 * torch.cuda.get_device_properties("cuda").multi_processor_count
    plan = fm.CutMix(per=per, pairing="roll", sampling="device").sample(n, (16, 16), seed=3, device=there)
    labels = torch.randint(classes, (n,), device="cuda")
    results = []
    for name in (backend, "reference"):
        for dtype in (torch.float32, torch.bfloat16):
            z = torch.randn(n, classes, device="cuda", generator=torch.Generator("cuda").manual_seed(0)).to(dtype)
            z.requires_grad_()

            def step(z=z, name=name):
                value = loss(z, labels, plan, label_smoothing=0.1, backend=name)
                return value.detach(), *torch.autograd.grad(value, z)

            assert name == "reference" or extra_memory(step, z.device) <= z.nbytes + few
            value, grad = step()
            results.append((value, grad.float()))
    for got, want, eps in zip(results[:2], results[2:], (2**-23, 2**-8), strict=True):
        torch.testing.assert_close(got[0], want[0], rtol=64 * 2**-23, atol=0)
        torch.testing.assert_close(got[1], want[1], rtol=eps, atol=64 * 2**-23 * float(want[1].abs().max()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loss", [fm.mix_cross_entropy, fm.mix_binary_cross_entropy])
def test_a_captured_loss(backend, loss):
    """Three launches: rows, their sum, the gradient (of a plan per batch by roll, which travels with them)."""
    plan = fm.CutMix(pairing="roll").sample(64, (16, 16), seed=3)
    labels = torch.randint(1000, (64,), device="cuda")
    z = torch.randn(64, 1000, device="cuda", requires_grad=True)
    one = torch.ones((), device="cuda")

    def step():
        return torch.autograd.grad(loss(z, labels, plan, backend=backend), z, one)[0]

    expected = step()
    warm = torch.cuda.Stream()
    warm.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm):
        step()
    torch.cuda.current_stream().wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        slope = step()
    graph.replay()
    assert torch.equal(slope, expected)
    assert launched(graph) == 3


def equal_steps(eager, compiled, *batch, steps=4):
    """Both give the same from the same seed. The first calls of a compiled function are no replays, the last are."""
    runs = []
    for f in (eager, compiled):
        torch.manual_seed(3)
        runs.append([[t.clone() for t in f(*batch)] for _ in range(steps)])  # a replay overwrites what it returned
    for expected, got in zip(*runs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
    return runs[1]


def compiled_for_graphs(f):
    torch._dynamo.reset()
    return torch.compile(f, fullgraph=True, mode="reduce-overhead")


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_equals_eager(backend):
    mix = fm.CutMix(num_classes=10, per="sample", backend=backend)
    steps = equal_steps(mix, torch.compile(mix, fullgraph=True), *batch())
    assert not torch.equal(steps[0][0], steps[1][0])


# Their graphs differ: one row of numbers or several, masks in one call or made before, of bits or of levels. What the
# other methods put into the same graphs are other numbers.
OF_OWN_GRAPHS = ("CutMix", "RandomMix", "FMix-paper", "FMix-soft", "RandomMix-FMix")


@EMPTY_GRAPH  # that torch's own manager begins with
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sampling", ["host", "device"])
@pytest.mark.parametrize("per", ["batch", "sample"])
@pytest.mark.parametrize("name", OF_OWN_GRAPHS)
def test_compiled_for_graphs(backend, sampling, per, name):
    x, y = batch()
    for inplace in (False, True):
        mix = (METHODS | STORED)[name](num_classes=10, sampling=sampling, per=per, inplace=inplace, backend=backend)
        compiled = compiled_for_graphs(mix)
        equal_steps(*(lambda x, y, f=f: f(x.clone(), y) for f in (mix, compiled)), x, y)


def set_each(mix, name, value):
    for method in mix.methods:
        setattr(method, name, value)


# And back again.
CHANGES = {
    "alpha": lambda mix, back: set_each(mix, "alpha", 8.0 if back else 0.01),
    "off by alpha": lambda mix, back: set_each(mix, "alpha", 8.0 if back else 0.0),
    "p": lambda mix, back: setattr(mix, "p", float(back)),
    "p of the methods": lambda mix, back: set_each(mix, "p", float(back)),
    "enabled": lambda mix, back: setattr(mix, "enabled", back),
    "a schedule": lambda mix, back: fm.schedules.OffAfter(mix, int(back)),
    "weights": lambda mix, back: setattr(mix, "weights", [1.0, 0.0] if back else [0.0, 1.0]),
}
OFF = CHANGES.keys() - {"alpha", "weights"}


@EMPTY_GRAPH  # that torch's own manager begins with
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sampling", ["host", "device"])
@pytest.mark.parametrize("with_fmix", [False, True])
def test_graphs_do_not_freeze_what_may_change(backend, sampling, with_fmix):
    """Neither where a module mixes in one call nor where it makes a plan and masks first."""
    x, y = batch(n=32)
    methods = [fm.MixUp(alpha=8.0), (fm.FMix if with_fmix else fm.CutMix)(alpha=8.0)]
    mix = fm.RandomMix(methods, weights=[1.0, 0.0], num_classes=10, sampling=sampling, per="sample", backend=backend)
    compiled = compiled_for_graphs(mix)
    before = equal_steps(mix, compiled, x, y)
    for name, change in CHANGES.items():
        change(mix, False)
        after = equal_steps(mix, compiled, x, y)
        assert not torch.equal(before[-1][0], after[-1][0]), name
        for images, targets in after if name in OFF else []:
            assert torch.equal(images, x), name
            assert torch.equal(targets, torch.nn.functional.one_hot(y, 10).float()), name
        change(mix, True)
        assert torch.equal(equal_steps(mix, compiled, x, y)[-1][0], before[-1][0]), name


# Inductor's advice to round the factors of a float32 product: then what is compared here would differ by more.
@EMPTY_GRAPH  # that torch's own manager begins with
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sampling", ["host", "device"])
@pytest.mark.parametrize("name", ["CutMix", "FMix"])
def test_a_training_step_for_graphs(backend, sampling, name):
    """The plan, images, labels and losses, forward and backward; α is changed between the steps."""
    x, y = batch()
    mix = getattr(fm, name)(sampling=sampling, per="sample", backend=backend)
    model = torch.nn.Linear(768, 10, device="cuda")

    def loss_of(x, y):
        plan = mix.sample(x.shape[0], x.shape[2:])
        logits = model(fm.mix(x, plan, backend=backend).flatten(1))
        losses = [f(logits, y, plan, backend=backend) for f in (fm.mix_cross_entropy, fm.mix_binary_cross_entropy)]
        return sum(losses) + (logits * fm.mix_labels(y, plan, num_classes=10, backend=backend)).sum()

    compiled = compiled_for_graphs(loss_of)
    for alpha in (1.0, 0.1, 0.0):
        mix.alpha = alpha
        runs = []
        for f in (loss_of, compiled):
            torch.manual_seed(4)
            runs.append([])
            for _ in range(4):
                torch.compiler.cudagraph_mark_step_begin()
                loss = f(x.requires_grad_(), y)
                slopes = torch.autograd.grad(loss, (x, *model.parameters()))
                runs[-1].append([t.detach().clone() for t in (loss, *slopes)])
        torch.testing.assert_close(runs[1], runs[0])
        assert (alpha == 0) == torch.equal(runs[1][-2][0], runs[1][-1][0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pairing", ["roll", "flip", "random", "cross_class", "same_class"])
def test_the_same_seed_gives_the_same_plan_as_on_the_cpu(backend, pairing):
    labels = torch.randint(0, 7, (100,), generator=torch.Generator().manual_seed(1))
    for name in ("MixUp", "CutMix", "HMix", "GMix"):
        on_cpu, on_gpu = (getattr(fm, name)(per="sample", pairing=pairing, backend=b) for b in (None, backend))
        here = on_cpu.sample(100, (33, 57), seed=11, labels=labels)
        there = on_gpu.sample(100, (33, 57), seed=11, labels=labels.cuda(), device="cuda").to("cpu")
        assert torch.equal(here.partner, there.partner), name
        assert torch.equal(here.kind, there.kind)
        assert torch.equal(here.geometry, there.geometry)
        torch.testing.assert_close(here.lam, there.lam, rtol=2**-23, atol=0)
        torch.testing.assert_close(here.weight, there.weight, rtol=0, atol=1e-6)


def test_a_generator_on_the_device_seeds_a_plan_anywhere():
    handle = GeneratorHandle(torch.Generator("cuda").manual_seed(5))
    mix = fm.MixUp(sampling="device", generator=handle.generator)
    first, second = mix.sample(4, (8, 8)), mix.sample(4, (8, 8), device="cuda")
    assert first.device.type == "cpu"
    assert second.device.type == "cuda"
    assert not torch.equal(first.lam, second.lam.cpu())


def test_the_choice_on_a_gpu():
    assert backends.choose("cuda") == next((name for name, why in WHY_NOT.items() if why is None), "reference")


# A kernel's limit of shared memory is set at its first launch, which may lie in a capture.
FIRST_CALL_IN_A_CAPTURE = """
import torch
import fusedmix as fm

x = torch.rand((64, 3, 32, 32), device="cuda")
expected = x.clone()
plan = fm.{method}(per="sample", pairing="{pairing}").sample(64, (32, 32), seed=1, device="cuda")
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    fm.mix_(x, plan, backend="cuda")
graph.replay()
torch.testing.assert_close(x, fm.mix(expected, plan, backend="reference"), rtol=0, atol=2**-22)
"""


@pytest.mark.skipif(NO_CUDA is not None, reason=str(NO_CUDA))
@pytest.mark.parametrize("pairing", ["roll", "flip", "random"])
@pytest.mark.parametrize("method", ["MixUp", "CutMix", "GMix"])
def test_the_first_call_of_a_process_may_be_captured(method, pairing):
    program = FIRST_CALL_IN_A_CAPTURE.format(method=method, pairing=pairing)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
