"""Finished batches on a GPU: what the kernels make is what the reference makes on the CPU, and each replay of a graph
draws anew."""

from __future__ import annotations

import itertools

import pytest
import torch

import fusedmix as fm
from fusedmix import backends, erasing
from test_gpu import BACKENDS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
REPLAYS = 10
BYTES_TO = (torch.float32, torch.float16, torch.bfloat16)


def byte_batch(n=8, size=(24, 32), input_format="NCHW"):
    generator = torch.Generator("cuda").manual_seed(1)
    shape = (n, 3, *size) if input_format == "NCHW" else (n, *size, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator, device="cuda")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("input_format", ["NCHW", "NHWC"])
@pytest.mark.parametrize("size", [(24, 32), (224, 224), (7, 13)], ids=str)
def test_a_finished_batch_is_the_references(backend, size, input_format, memory_format):
    """Bytes to each type, flipped and erased or not, by masks that every backend makes alike, as
    the reference makes them on the CPU."""
    x = byte_batch(size=size, input_format=input_format)
    for dtype, mixes, random in itertools.product(BYTES_TO, (fm.MixUp, fm.CutMix, fm.HMix, fm.FMix), (False, True)):
        erase = fm.Erase(0.6, value=0.3, count=3) if random else None
        finish = fm.Finish(STATISTICS, dtype, memory_format, 0.5 * random, erase, input_format)
        mix = mixes(num_classes=10, per="sample", pairing="random", sampling="device", backend=backend, finish=finish)
        plan = mix.sample(len(x), size, device="cuda", seed=3)
        out = fm.mix(x, plan, finish=finish, backend=backend)
        expected = fm.mix(x.cpu(), plan.to("cpu"), finish=finish, backend="reference")
        assert out.stride() == expected.stride()
        assert torch.equal(out.cpu(), expected)
        alone = fm.finish(x, finish, backend=backend)
        assert torch.equal(alone.cpu(), fm.finish(x.cpu(), finish, backend="reference"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", ["random", "pixel"])
def test_holes_of_noise_are_the_references(backend, value):
    """Their noise is float32's by kernels, and float64's by the reference."""
    x = byte_batch(size=(33, 48))
    finish = fm.Finish(STATISTICS, hflip=0.5, erase=fm.Erase(0.8, value=value, count=2))
    mix = fm.MixUp(num_classes=10, per="sample", sampling="device", backend=backend, finish=finish)
    plan = mix.sample(len(x), (33, 48), device="cuda", seed=4)
    out = fm.mix(x, plan, finish=finish, backend=backend).cpu()
    expected = fm.mix(x.cpu(), plan.to("cpu"), finish=finish, backend="reference")
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-5)
    assert (out == expected).float().mean() > 0.5  # outside of holes to the last bit


@pytest.mark.parametrize("backend", BACKENDS)
def test_flips_and_holes_of_a_seed_on_the_device(backend):
    finish = fm.Finish(STATISTICS, hflip=0.5, erase=fm.Erase(0.6, (0.02, 0.9), (0.2, 4.0), count=(1, 5)))
    numbers = erasing.chances(finish)
    request = torch.tensor(numbers, dtype=torch.float64), int(numbers.most)
    for seed in (0, -1, 2**62):
        there, here = (torch.tensor(seed, device=device) for device in ("cuda", "cpu"))
        made = backends.operators("cuda", backend).draw_finish(*request, there, 3000, 224, 200, there.device)
        wanted = torch.ops.fusedmix_reference.draw_finish(*request, here, 3000, 224, 200, here.device)
        assert torch.equal(made.cpu(), wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [0.2, "pixel"])
def test_every_replay_finishes_anew_and_as_eager_would(backend, value):
    """What is mixed, flipped and erased follows from the seed of the replay, which a twin of the generator tells."""
    x, y = byte_batch(), torch.arange(8, device="cuda")
    erase = fm.Erase(0.5, value=value, count=2)
    finish = fm.Finish(STATISTICS, torch.bfloat16, torch.channels_last, 0.5, erase)
    mix = fm.CutMix(num_classes=10, sampling="device", per="sample", pairing="random", backend=backend, finish=finish)
    warm = torch.cuda.Stream()
    warm.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm):
        mix(x, y)
    torch.cuda.current_stream().wait_stream(warm)
    graph, seeds = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        images, targets = mix(x, y)
    with torch.cuda.graph(seeds):
        drawn = torch.ops.fusedmix.draw_seed(0, device=x.device)
    torch.cuda.manual_seed(7)
    expected_seeds = []
    for _ in range(REPLAYS):
        seeds.replay()
        expected_seeds.append(int(drawn))
    torch.cuda.manual_seed(7)
    made = set()
    for seed in expected_seeds:
        graph.replay()
        plan = mix.sample(8, (24, 32), device="cuda", seed=seed)
        assert torch.equal(images, fm.mix(x, plan, finish=finish, backend=backend))
        assert torch.equal(targets, fm.mix_labels(y, plan, num_classes=10, backend=backend))
        made.add(plan.draws.cpu().numpy().tobytes())
    assert len(made) == REPLAYS


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("input_format", ["NCHW", "NHWC"])
def test_large_batches_are_finished_as_by_the_reference(backend, dtype, input_format):
    """By a plan and flips and holes that are drawn on the device, and are those of the CPU."""
    x = byte_batch(64, (224, 224), input_format).to(dtype)
    erase = fm.Erase(0.5, count=3)
    finish = fm.Finish(STATISTICS, torch.bfloat16, hflip=0.5, erase=erase, input_format=input_format)
    for method in (fm.MixUp, fm.CutMix):
        options = {"sampling": "device", "per": "sample", "pairing": "random", "finish": finish}
        plan = method(backend=backend, **options).sample(64, (224, 224), seed=5, device="cuda")
        here = method(backend="reference", **options).sample(64, (224, 224), seed=5)
        assert torch.equal(plan.draws.cpu(), here.draws)
        out = fm.mix(x, plan, finish=finish, backend=backend)
        assert torch.equal(out.cpu(), fm.mix(x.cpu(), plan.to("cpu"), finish=finish, backend="reference"))
