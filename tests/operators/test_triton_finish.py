"""Batches that Triton's kernels finish, and the flips and holes that they draw, interpreted or on a GPU: as the
reference's, whatever lies where in memory."""

from __future__ import annotations

import itertools

import pytest
import torch

import fusedmix as fm
from batches import SAME_MASKS
from conftest import NO_CPP, TRITON_DEVICE
from fusedmix import backends, erasing
from fusedmix.arguments import MaskArguments
from fusedmix.finishing import Erase, Filling, Finish
from fusedmix.methods import Families

pytest.importorskip("triton")

from fusedmix.backends.triton import finish_launch
from fusedmix.backends.triton.enums import Source

pytestmark = [pytest.mark.usefixtures("of_triton"), pytest.mark.thorough]

reference, kernels = torch.ops.fusedmix_reference, torch.ops.fusedmix_triton
U8, F32, F16, BF16 = torch.uint8, torch.float32, torch.float16, torch.bfloat16
ERASE = {"scale": (0.1, 0.9), "ratio": (0.3, 3.0)}

# The batch: dtype, (B, C, H, W), how it lies in memory; the finish: dtype, whether channels come last, flips, holes and
# their value; the method. Programs are many and one, whole and not; channels one, three, four and more.
CASES = {
    "bytes": (U8, (3, 3, 8, 12), "NCHW", F32, False, 0.0, 0, 0.0, fm.MixUp),
    "bytes of several programs": (U8, (2, 3, 40, 36), "NCHW", BF16, False, 0.0, 0, 0.0, fm.MixUp),
    "bytes, flips": (U8, (5, 3, 6, 8), "NCHW", F16, False, 0.5, 0, 0.0, fm.CutMix),
    "bytes, last": (U8, (3, 3, 8, 12), "NCHW", BF16, True, 0.5, 2, 0.25, fm.HMix),
    "pixels": (U8, (3, 3, 8, 12), "NHWC", F32, False, 0.5, 1, "random", fm.CutMix),
    "pixels of several programs": (U8, (2, 3, 40, 36), "NHWC", F32, True, 0.5, 3, "pixel", fm.MixUp),
    "pixels of two, noise": (U8, (4, 2, 5, 8), "NHWC", BF16, True, 0.5, 16, "pixel", fm.MixUp),
    "pixels of four, noise": (U8, (4, 4, 5, 8), "NHWC", F16, False, 0.5, 4, "pixel", fm.HMix),
    "bytes, channels_last": (U8, (4, 3, 6, 8), "channels_last", F32, None, 0.5, 1, 0.0, fm.GMix),
    "bytes, slices": (U8, (4, 3, 6, 8), "slice", F32, False, 0.5, 1, 0.0, fm.FMix),
    "bytes, slices, last": (U8, (4, 3, 6, 8), "slice", F32, True, 0.0, 0, 0.0, fm.FMix),
    "bytes, misaligned": (U8, (4, 3, 6, 8), "misaligned", F32, False, 0.5, 1, 0.0, fm.CutMix),
    "bytes, repeated": (U8, (4, 3, 6, 8), "repeated", BF16, False, 0.5, 0, 0.0, fm.MixUp),
    "bytes, odd": (U8, (4, 3, 5, 7), "NCHW", F32, False, 0.5, 2, "pixel", fm.CutMix),
    "bytes, odd, last": (U8, (4, 3, 5, 7), "NHWC", BF16, True, 0.5, 2, "random", fm.MixUp),
    "bytes, odd rows": (U8, (3, 3, 5, 7), "rows", F32, False, 0.0, 0, 0.0, fm.MixUp),
    "bytes, odd, but not all of them": (U8, (3, 2, 6, 6), "NCHW", F32, False, 0.0, 0, 0.0, fm.MixUp),
    "bytes of a column": (U8, (3, 3, 8, 1), "NHWC", F32, None, 0.5, 1, 0.5, fm.MixUp),
    "bytes of six channels": (U8, (2, 6, 4, 8), "NCHW", F32, False, 0.5, 2, "pixel", fm.CutMix),
    "bytes of six channels, last": (U8, (2, 6, 4, 4), "NHWC", F32, True, 0.5, 2, "pixel", fm.HMix),
    "bytes of five channels, last": (U8, (3, 5, 4, 8), "NHWC", F32, True, 0.0, 0, 0.0, fm.MixUp),
    "floats": (F32, (3, 3, 8, 12), "NCHW", F32, False, 0.0, 0, 0.0, fm.MixUp),
    "floats, last": (F32, (3, 3, 8, 12), "NHWC", BF16, True, 0.0, 0, 0.0, fm.HMix),
    "floats, last from first": (F32, (3, 3, 8, 12), "NCHW", F32, True, 0.0, 0, 0.0, fm.CutMix),
    "floats, flips": (F32, (4, 3, 8, 12), "NCHW", F16, False, 0.5, 1, (0.1, 0.2, -0.3), fm.MixUp),
    "halves": (F16, (3, 3, 8, 12), "NCHW", F16, False, 0.0, 0, 0.0, fm.CutMix),
    "bfloat16": (BF16, (3, 3, 8, 12), "channels_last", BF16, None, 0.5, 1, "pixel", fm.MixUp),
    "bfloat16 of six channels": (BF16, (2, 6, 4, 4), "NCHW", F32, False, 0.0, 0, 0.0, fm.GMix),
    "levels": (U8, (4, 3, 8, 8), "NCHW", F32, False, 0.0, 0, 0.0, lambda **of: fm.FMix(max_soft=0.3, **of)),
    "families": (U8, (8, 3, 8, 8), "NHWC", F32, True, 0.5, 1, 0.0, lambda **of: fm.RandomMix(
        [fm.MixUp(), fm.CutMix(), fm.HMix(), fm.FMix()], p=0.8, **of
    )),
    "one sample": (U8, (1, 3, 4, 4), "NCHW", F32, False, 0.5, 1, 0.0, fm.MixUp),
    "one pixel": (U8, (3, 1, 1, 1), "NCHW", F32, False, 0.5, 0, 0.0, fm.MixUp),
}  # fmt: skip


def images(dtype, shape, memory):
    """A batch (B, C, H, W), or (B, H, W, C) of "NHWC", that lies in memory as it is said."""
    batch, channels, height, width = shape
    shape = (batch, height, width, channels) if memory == "NHWC" else shape
    generator = torch.Generator().manual_seed(sum(shape))

    def numbers(*shape):
        if dtype == U8:
            return torch.randint(0, 256, shape, dtype=U8, generator=generator).to(TRITON_DEVICE)
        return torch.randn(shape, generator=generator).to(TRITON_DEVICE, dtype)

    if memory == "channels_last":
        return numbers(*shape).contiguous(memory_format=torch.channels_last)
    if memory == "slice":
        return numbers(batch, channels, height, width + 4)[..., 4:]
    if memory == "misaligned":
        return numbers(batch * channels * height * width + 1)[1:].view(shape)
    if memory == "repeated":
        return numbers(1, channels, height, width).expand(shape)
    if memory == "rows":  # each of other bytes than a multiple of four
        return numbers(batch, channels, height + 1, width + 2)[:, :, 1:, 1:-1]
    return numbers(*shape)


def made(name):
    """The batch, the finish, flips and holes, and the plan of a case."""
    dtype, shape, memory, out, last, hflip, holes, value, method = CASES[name]
    x, (batch, channels, *size) = images(dtype, shape, memory), shape
    statistics = tuple(tuple(0.2 + 0.7 * (c + k) / (channels + 1) for c in range(channels)) for k in range(2))
    layout = {None: None, True: torch.channels_last, False: torch.contiguous_format}[last]
    erase = Erase(0.8, value=value, count=holes, **ERASE) if holes else None
    finish = Finish(statistics, out, layout, hflip, erase, "NHWC" if memory == "NHWC" else "NCHW")
    draws = None
    if finish.is_random:
        draws = erasing.draw(erasing.chances(finish), torch.tensor(3), batch, tuple(size)).to(TRITON_DEVICE)
    pairing = ("random", "roll", "flip")[len(name) % 3]
    plan = method(per="sample", pairing=pairing).sample(batch, size, seed=len(name)).to(TRITON_DEVICE)
    hints = int(plan.families), 0 if plan.constant else 2, int(plan.pairing), int(plan.per)
    return x, finish, draws, MaskArguments(plan.partner, plan.masks, *hints, plan.pixels)


def on_cpu(arguments):
    return [a.cpu() if torch.is_tensor(a) else a for a in arguments]


def finished(operators, x, finish, draws, plan=None):
    how = finish.arguments(x, draws)
    arguments = (x, *how) if plan is None else (x, *how, *plan)
    operator = operators.finish if plan is None else operators.finish_mix
    return operator(*(arguments if operators is kernels else on_cpu(arguments)))


@pytest.mark.parametrize("name", CASES)
def test_a_batch_is_the_references(name):
    """To the bit, but for Gaussians, and for normal fills, which are float32's."""
    x, finish, draws, plan = made(name)
    noise = finish.erase is not None and isinstance(finish.erase.value, str)
    for of in (None, plan):
        out, expected = finished(kernels, x, finish, draws, of), finished(reference, x, finish, draws, of)
        assert (out.dtype, out.stride(), out.device) == (expected.dtype, expected.stride(), x.device)
        if (of is None or not Families(of.families) & ~SAME_MASKS) and not noise:
            assert torch.equal(out.cpu(), expected)
            continue
        bound = max(4 * torch.finfo(finish.dtype).eps * float(expected.abs().max()), 4e-6)
        assert (out.cpu().double() - expected.double()).abs().max() <= bound


def test_the_cases_take_every_way(monkeypatch):
    """Through a batch, and of everything that a kernel is compiled for every value."""
    seen = {}
    monkeypatch.setattr(finish_launch._images, "launch", lambda programs, device, named: [
        seen.setdefault(key, set()).add(named[key])
        for key in ("SOURCE", "LAST", "V", "FLAT", "DRAWN", "FILL", "MIXED", "BINARY", "PAIRING")
    ] + [seen.setdefault("both", set()).add((named["SOURCE"], named["LAST"], named["CHANNELS"] > 4))])  # fmt: skip
    for name in CASES:
        x, finish, draws, plan = made(name)
        finish_launch.finish(x, finish.arguments(x, draws), plan)
        finish_launch.finish(x, finish.arguments(x, draws))
    both = seen.pop("both")
    assert both >= {(int(source), last, False) for source, last in itertools.product(Source, (False, True))}
    assert both >= {(int(source), last, True) for source in (0, 1) for last in (False, True)}
    numbers = {"SOURCE": set(Source), "V": {1, 4}, "FILL": set(Filling), "PAIRING": {0, 1, 2}}
    assert seen == numbers | {key: {False, True} for key in ("LAST", "FLAT", "DRAWN", "MIXED", "BINARY")}


@pytest.mark.skipif(NO_CPP is not None, reason=str(NO_CPP))
@pytest.mark.parametrize("name", ["pixels of two, noise", "bytes of six channels", "bytes, odd"])
def test_noise_is_that_of_cpp_to_the_bit(name):
    """Both make normal numbers by the same operations of float32."""
    x, finish, draws, plan = made(name)
    cpp = backends.operators("cpu", "cpp")
    assert torch.equal(finished(kernels, x, finish, draws, plan).cpu(), finished(cpp, x, finish, draws, plan))


@pytest.mark.parametrize("name", ["bytes, last", "floats, flips", "halves"])
def test_a_sample_that_keeps_all_of_itself_is_finished_alone(name):
    """Bit for bit, whichever family says so: a mask of 1, and a partner that is the sample itself."""
    x, finish, draws, _ = made(name)
    alone = finished(kernels, x, finish, draws)
    for method, lam in ((fm.MixUp, 1.0), (fm.CutMix, 1.0), (fm.MixUp, 0.3)):
        plan = method(per="sample").sample(len(x), x.shape[1:3], seed=1, lam=lam).to(TRITON_DEVICE)
        partner = plan.partner if lam == 1 else torch.arange(len(x), device=x.device)
        hints = int(plan.families), 0, 2, int(plan.per)
        if method is fm.CutMix:
            size = finish.axes
            plan = method(per="sample").sample(len(x), [x.shape[d] for d in size], seed=1, lam=lam).to(TRITON_DEVICE)
            hints = int(plan.families), 2, 2, int(plan.per)
        assert torch.equal(finished(kernels, x, finish, draws, MaskArguments(partner, plan.masks, *hints)), alone)


def test_a_later_hole_covers_an_earlier_one_and_records_may_hold_any_numbers():
    """Holes of no size, beyond the image, with sides that do not fit 32 bits; more of them than there is room for."""
    x = images(U8, (3, 1, 4, 8), "NCHW")
    finish = Finish(None, erase=Erase(value="random", count=3))
    record = torch.zeros((3, 16), dtype=torch.int32)
    record[:, erasing.Word.HOLES] = 3
    most = 2**31 - 1
    record[0, 4:] = torch.tensor([0, 0, 3, 5, 1, 2, 2, 9, -2, -3, 3, 4])
    record[1, 4:] = torch.tensor([most, most, most, most, 1, 1, -1, 3, 2, 6, most, most])
    record[2, 4:] = torch.tensor([-(2**31), 0, most, most, 0, -most, 4, most, 3, 7, 1, 1])
    record = record.to(TRITON_DEVICE)
    out = finished(kernels, x, finish, record)
    torch.testing.assert_close(out.cpu(), finished(reference, x, finish, record), rtol=0, atol=4e-6)
    record[:, erasing.Word.HOLES] = 100  # which only the host could refuse
    assert torch.equal(finish_launch.finish(x, finish.arguments(x, record)), out)


@pytest.mark.skipif(TRITON_DEVICE != "cpu", reason="a log of every access is the interpreter's")
@pytest.mark.parametrize("name", ["bytes of several programs", "bytes, slices", "bytes, odd, last", "pixels",
                                  "bytes of five channels, last", "floats, last", "one pixel"])  # fmt: skip
def test_every_element_is_written_once_and_read_no_oftener_than_needed(name):
    """Its own vector's and its taker's; where a box decides, only what it needs. Nothing outside is touched."""
    from triton_log import logged

    x, finish, draws, plan = made(name)
    with logged() as launches:
        out = finished(kernels, x, finish, draws, plan)
    of = launches[-1]
    tensors = [t for t in of.arguments.values() if torch.is_tensor(t)]
    assert len(of.races()) == 0
    assert len(of.outside(tensors, [out])) == 0
    assert (of.counts(out)[1] == 1).all()
    reads = of.counts(x)[0]
    assert reads.max() <= 2
    if plan.families == Families.CUTS and draws is None:
        assert reads.sum() < 1.5 * x.numel()


CHANCES = {
    "flips": (Finish(None, hflip=0.5), ((0, (24, 40)),)),
    "nothing": (Finish(None), ((0, (24, 40)),)),
    "one hole": (Finish(None, erase=Erase(0.6)), ((1, (224, 224)), (-1, (1, 5)))),
    "several": (
        Finish(None, hflip=0.3, erase=Erase(0.9, (0.02, 0.9), (0.2, 4.0), count=(2, 5))),
        ((2**62, (224, 224)), (-(2**63), (700, 3)), (7, (2**31 - 1, 2**31 - 1))),
    ),
}


@pytest.mark.parametrize("there", [False, True], ids=["seed on the host", "seed beside"])
@pytest.mark.parametrize("name", CHANCES)
def test_flips_and_holes_are_the_references(name, there):
    finish, cases = CHANCES[name]
    chances = erasing.chances(finish)
    of = torch.tensor(chances, dtype=torch.float64), int(chances.most)
    for seed, size in cases:
        key = torch.tensor(seed, device=TRITON_DEVICE if there else "cpu")
        records = kernels.draw_finish(*of, key, 21, *size, torch.device(TRITON_DEVICE))
        assert records.device.type == TRITON_DEVICE
        assert torch.equal(records.cpu(), reference.draw_finish(*of, key.cpu(), 21, *size, torch.device("cpu")))


def test_empty_batches():
    finish = Finish(None, hflip=0.5)
    of = torch.tensor(erasing.chances(finish), dtype=torch.float64), 0
    assert kernels.draw_finish(*of, torch.tensor(0), 0, 4, 4, torch.device(TRITON_DEVICE)).shape == (0, 4)
    for shape in ((0, 3, 4, 4), (2, 3, 0, 4), (2, 0, 4, 4)):
        x = torch.zeros(shape, dtype=U8, device=TRITON_DEVICE)
        assert kernels.finish(x, *finish.arguments(x)).shape == shape


def test_modules_finish_and_draw_by_these_kernels(monkeypatch):
    launched = []
    for kernel in (finish_launch._images, finish_launch._draw):
        monkeypatch.setattr(kernel, "launch", lambda *of, kernel=kernel: (
            launched.append(kernel.function.__name__), type(kernel).launch(kernel, *of)
        ))  # fmt: skip
    finish = Finish(((0.5,) * 3, (0.2,) * 3), hflip=0.5, erase=Erase(0.5))
    x, y = images(U8, (4, 3, 8, 8), "NCHW"), torch.arange(4, device=TRITON_DEVICE)
    step = fm.CutMix(num_classes=4, finish=finish, sampling="device", per="sample", backend="triton")
    torch.manual_seed(1)
    mixed, _ = step(x, y)
    assert launched == ["draw_finish_kernel", "finish_images_kernel"]
    torch.manual_seed(1)
    here = fm.CutMix(num_classes=4, finish=finish, sampling="device", per="sample", backend="reference")
    assert torch.equal(mixed, here(x, y)[0])
    assert torch.equal(fm.finish(x, finish, backend="triton"), fm.finish(x, finish, backend="reference"))
    wide = x.double() / 255  # which the reference finishes
    assert torch.equal(fm.finish(wide, finish, backend="triton"), fm.finish(wide, finish, backend="reference"))
    assert len(launched) == 3
