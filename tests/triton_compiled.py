"""What Triton makes of the kernels for a GPU, without one: a program for processes that do not interpret them.

`python tests/triton_compiled.py compile 90` compiles whatever would be launched, with the arguments of the launch and
as Triton's own binder specialises them, and prints a report on each kernel. `... keys` prints what Triton compiles anew
for arguments that differ, and what fusedmix/backends/triton/launch.py does; `... launched` prints what either of them
launches through a driver that does nothing; `... planted` reports on wrong kernels.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime import driver
from triton.runtime.jit import create_function_from_signature

import fusedmix as fm
from families import RECORDS
from fusedmix import erasing
from fusedmix.arguments import LossArguments, MaskArguments, Patches, PixelLossArguments
from fusedmix.backends.triton import (
    blend_kernel,
    finish_launch,
    fourier_launch,
    labels_kernel,
    launch,
    losses_kernel,
    mix_launch,
    paste_launch,
    pixel_losses_kernel,
    sample_launch,
)
from fusedmix.draws import Request
from fusedmix.masks.family import WORDS
from fusedmix.methods import Families, Resize
from triton_loops import carried

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks is no part of what is installed
from benchmarks.triton_host import Driver

H200 = 132  # multiprocessors
CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8)
LARGE, SMALL, ODD, MANY = (256, 3, 224, 224), (512, 3, 32, 32), (300, 3, 37, 61), (8192, 3, 32, 32)


def mixed(**options):
    """Every family but the stored ones."""
    return fm.RandomMix([fm.MixUp(), fm.HMix(), fm.GMix()], **options)


# Name: method, per, pairing, in place, adjoint, whether the mask travels in the arguments, shape, channels_last, and
# whether masks are stored, as bits (int32) or levels (int16). Of ODD images vectors are single elements.
MIXES = {
    "in place, roll, constant": (fm.MixUp, "batch", "roll", True, False, True, LARGE, False),
    "in place, flip, box": (fm.CutMix, "batch", "flip", True, False, True, LARGE, False),
    "in place, random, constants": (fm.MixUp, "sample", "random", True, False, False, SMALL, False),
    "in place, random, mixed": (mixed, "sample", "random", True, False, False, SMALL, False),
    "in place, random, boxes": (fm.CutMix, "sample", "random", True, False, False, SMALL, False),
    "out of place, roll, Gaussian": (fm.GMix, "batch", "roll", False, False, True, SMALL, True),
    "out of place, random, Gaussians": (fm.GMix, "sample", "random", False, False, False, LARGE, False),
    "adjoint, flip, Gaussian": (fm.GMix, "batch", "flip", False, True, True, LARGE, False),
    "adjoint, random, boxes": (fm.CutMix, "sample", "random", False, True, False, LARGE, False),
    "in place, roll, bits": (fm.CutMix, "batch", "roll", True, False, True, LARGE, False, torch.int32),
    "in place, random, bits": (fm.CutMix, "sample", "random", True, False, False, LARGE, False, torch.int32),
    "out of place, flip, bits": (fm.CutMix, "pair", "flip", False, False, False, SMALL, True, torch.int32),
    "in place, random, levels": (fm.CutMix, "sample", "random", True, False, False, SMALL, False, torch.int16),
    "in place, random, odd boxes": (fm.CutMix, "sample", "random", True, False, False, ODD, False),
    "in place, roll, odd constant": (fm.MixUp, "batch", "roll", True, False, True, ODD, False),
    "in place, random, constants of many": (fm.MixUp, "sample", "random", True, False, False, MANY, False),
    "adjoint, random, bits": (fm.CutMix, "sample", "random", False, True, False, SMALL, False, torch.int32),
}


# Of batches that are finished: the dtypes of the batch and of the new one, whether channels come last in them, how many
# holes a sample has at most, -1: samples are not flipped either, and what fills them; the method, None: none.
BYTES, TO_BF16, TO_F32 = torch.uint8, torch.bfloat16, torch.float32
FINISHES = {
    "bytes": (BYTES, TO_BF16, False, False, -1, 0.0, fm.MixUp),
    "bytes alone": (BYTES, TO_F32, False, False, -1, 0.0, None),
    "pixels": (BYTES, TO_BF16, True, True, 0, 0.0, fm.MixUp),
    "pixels to planes": (BYTES, TO_F32, True, False, -1, 0.0, fm.CutMix),
    "planes to pixels": (BYTES, TO_BF16, False, True, 1, 0.0, fm.HMix),
    "noise": (BYTES, TO_BF16, False, False, 1, "pixel", fm.GMix),
    "noise in pixels": (BYTES, torch.float16, True, True, 16, "random", fm.CutMix),
    "noise alone": (BYTES, TO_F32, True, True, 1, "pixel", None),
    "floats": (torch.float32, TO_F32, False, False, -1, 0.0, fm.MixUp),
    "halves": (torch.bfloat16, TO_BF16, True, True, -1, 0.0, fm.CutMix),
    "halves, flips": (torch.float16, torch.float16, False, False, 2, 0.0, fm.MixUp),
}


# With partners of another batch: the method, and whether in place.
WITH = {
    "another batch, boxes": (fm.CutMix, True),
    "another batch, mixed": (mixed, False),
    "another batch, constants": (fm.MixUp, True),
}
# Pasted: patches of a sample, how they are resized, sides, whether channels come last.
PASTES = {
    "pasted": (1, Resize.NEAREST, 2, False),
    "pasted, resized": (1, Resize.LINEAR, 2, True),
    "four pasted": (4, Resize.NEAREST, 2, True),
    "pasted in volumes": (1, Resize.LINEAR_CORNERS, 3, False),
    "pasted in signals": (8, Resize.NEAREST, 1, False),
}


class Launches(list):
    """(kernel, arguments, constants) of every launch, none of which takes place."""

    def __enter__(self):
        self.call, self.chip = launch.Kernel.__call__, mix_launch.multiprocessors
        launch.Kernel.__call__ = lambda kernel, programs, arguments, constants, device: self.append(
            (kernel, arguments, constants)
        )
        mix_launch.multiprocessors = lambda device: H200
        return self

    def __exit__(self, *_):
        launch.Kernel.__call__, mix_launch.multiprocessors = self.call, self.chip


def mixing(dtype, make, per, pairing, in_place, adjoint, by_value, shape, channels_last, stored=None):
    """What is launched to mix a batch. Its memory is only asked for."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.empty(shape, dtype=dtype, memory_format=layout)
    out = x if in_place else torch.empty_like(x)
    plan = make(per=per, pairing=pairing, sampling="device").sample(shape[0], shape[2:], seed=0)
    pixels, families = None, plan.families
    if stored is not None:
        across = plan.size[0] * plan.size[1] // (32 if stored == torch.int32 else 1)
        pixels = torch.empty((plan.per.draws(shape[0]), across), dtype=stored)
        families |= Families.STORED if stored == torch.int32 else Families.LEVELS
    masks = plan.partner, plan.masks, families, 0 if plan.constant else 2, plan.pairing, plan.per, pixels
    with Launches() as launches:
        mix_launch.apply(x, out, masks, adjoint=adjoint, by_value=by_value)
    return launches


def mixing_with(dtype, make, in_place):
    """What is launched to mix a batch with another. Its memory is only asked for."""
    x, other = torch.empty(LARGE, dtype=dtype), torch.empty((100, *LARGE[1:]), dtype=dtype)
    plan = make(per="sample", pairing="random", sampling="device").sample(LARGE[0], LARGE[2:], seed=0)
    hints = int(plan.families), 0 if plan.constant else 2, int(plan.pairing), int(plan.per)
    with Launches() as launches:
        plan = MaskArguments(plan.partner, plan.masks, *hints)
        mix_launch.apply_with(x, other, x if in_place else torch.empty_like(x), plan)
    return launches


def pasting(dtype, count, resize, ndim, channels_last):
    """What is launched to paste crops. The memory of the batch is only asked for."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.empty((64, 3, *(32, 32, 224)[3 - ndim :]), dtype=dtype, memory_format=layout)
    ends = torch.zeros((64, count, 2 * ndim), dtype=torch.int32)
    with Launches() as launches:
        paste_launch.paste(x, Patches(torch.zeros((64, count), dtype=torch.int64), ends, ends), resize)
    return launches


def blending(dtype, terms):
    """What is launched to blend several samples. The memory of the batch is only asked for."""
    x, weight = torch.empty(LARGE, dtype=dtype), torch.ones((LARGE[0], terms))
    with Launches() as launches:
        blend_kernel.blend(x, torch.zeros(weight.shape, dtype=torch.int64), weight)
    return launches


def finishing(dtype, made, nhwc, last, holes, value, make, channels=3):
    """What is launched to finish a batch. Its memory is only asked for."""
    batch, height, width = 256, 224, 224
    x = torch.empty((batch, height, width, channels) if nhwc else (batch, channels, height, width), dtype=dtype)
    finish = fm.Finish(
        ((0.5,) * channels, (0.2,) * channels),
        made,
        torch.channels_last if last else torch.contiguous_format,
        erase=fm.Erase(value=value, count=max(1, holes)),
        input_format="NHWC" if nhwc else "NCHW",
    )
    words = erasing.HEAD + erasing.PER_HOLE * holes
    how = finish.arguments(x, None if holes < 0 else torch.empty((batch, words), dtype=torch.int32))
    plan = None
    if make is not None:
        drawn = make(per="sample", pairing="random", sampling="device").sample(batch, (height, width), seed=0)
        hints = int(drawn.families), 0 if drawn.constant else 2, int(drawn.pairing), int(drawn.per)
        plan = MaskArguments(drawn.partner, drawn.masks, *hints)
    with Launches() as launches:
        finish_launch.finish(x, how, plan)
    return launches


def drawing(holes):
    """What is launched to draw flips and holes."""
    of = erasing.chances(fm.Finish(None, hflip=0.5, erase=fm.Erase(count=holes)))
    with Launches() as launches:
        finish_launch.draw(torch.tensor(of, dtype=torch.float64), holes, torch.tensor(0), 256, 224, 224, CPU)
    return launches


def sampling(pairing, per="sample", size=(32, 32), lam=None):
    """What is launched to draw a plan, and to make its targets."""
    mix = fm.RandomMix(
        [record.module(len(size)) for record in RECORDS.values()],
        per=per,
        pairing=pairing,
        sampling="device",
        p=0.5,
    )
    labels = torch.arange(SMALL[0])
    request = Request(*mix._request(SMALL[0], size, lam, labels if "class" in pairing else None))
    with Launches() as launches:
        plan = sample_launch.sample(request, torch.tensor(0), CPU)
        labels_kernel.mix(labels, plan[0], plan[2], 1000, 0.1, request.pairing, per == "batch")
    return launches


def others():
    """What is launched for soft labels, and for masks to look at."""
    weight, partner = torch.ones(64, dtype=torch.float64), torch.arange(64)
    records, words = torch.zeros(64, WORDS, dtype=torch.int32), torch.empty((64, 224 * 7), dtype=torch.int32)
    with Launches() as launches:
        for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.int32):
            labels_kernel.mix(torch.ones(64, 1001, dtype=dtype), partner, weight, 1001, 0.1)
        for families in (*Families, sum(Families) & ~Families.LEVELS):
            pixels = torch.empty((64, 224 * 224), dtype=torch.int16) if families == Families.LEVELS else words
            mix_launch.write_masks(records, families, (224, 224), 2, pixels)
    return launches


def noise(size, seed=0, **options):
    """What is launched to make Fourier masks."""
    spec = fm.FMix(per="sample", **options)._spec
    records = torch.zeros((3, WORDS), dtype=torch.int32)
    with Launches() as launches:
        fourier_launch.masks(spec, records, torch.tensor(seed), size, 2, 2, options.get("max_soft", 0) > 0)
    return launches


def losses(dtype, classes=1000, soft=torch.float32):
    """What is launched for the label losses, forwards and backwards."""
    batch, compute = 64, torch.float64 if dtype == torch.float64 else torch.float32
    z, partner, weight = torch.empty(batch, classes, dtype=dtype), torch.arange(batch), torch.ones(batch).double()
    c, y = torch.ones(classes, dtype=compute), torch.arange(batch)
    statistics, one = torch.ones(batch, 2, dtype=compute), torch.ones((), dtype=compute)
    with Launches() as launches:
        for pairing, per, weights, smoothing in ((2, 2, c, 0.1), (0, 0, None, 0.0)):
            of = LossArguments(z, y, partner, weight, pairing, per, weights)
            losses_kernel.cross_entropy(of, smoothing, -100, 2)
            losses_kernel.cross_entropy_backward(one, of, statistics, one, smoothing, -100)
            for labels in (y, torch.ones(batch, classes, dtype=soft)):
                of = of._replace(labels=labels)
                losses_kernel.binary_cross_entropy(of, weights, smoothing, 0.2, 3)
                losses_kernel.binary_cross_entropy_backward(one, of, weights, smoothing, 0.2, 3)
    return launches


def pixel_losses(dtype, size=(64, 64), make=fm.CutMix):
    """What is launched for the loss of label maps, forwards and backwards."""
    batch, classes, compute = 8, 21, torch.float64 if dtype == torch.float64 else torch.float32
    z, maps = torch.empty(batch, classes, *size, dtype=dtype), torch.zeros(batch, *size, dtype=torch.int64)
    plan = make(per="sample", pairing="random", sampling="device").sample(batch, size, seed=0)
    hints = int(plan.families), 0 if plan.constant else len(size), int(plan.pairing), int(plan.per)
    plan = MaskArguments(plan.partner, plan.masks, *hints)
    logsumexp, one = torch.empty(maps.shape, dtype=compute), torch.ones((), dtype=compute)
    with Launches() as launches:
        for of_maps, weights, smoothing, reduction in (
            (maps, torch.ones(classes, dtype=compute), 0.1, 2),
            (maps.to(torch.uint8), None, 0.1, 1),
            (maps.to(torch.uint16), None, 0.0, 0),
        ):
            of = PixelLossArguments(z, of_maps, weights, smoothing, 255)
            pixel_losses_kernel.pixel_cross_entropy(of, reduction, plan)
            grad = one if reduction else logsumexp
            pixel_losses_kernel.pixel_cross_entropy_backward(grad, of, logsumexp, one, plan)
    return launches


# ---- compiling ------------------------------------------------------------------------------------------------------


def specialised(backend, function, arguments, constants):
    """What Triton's launcher would compile for: every argument's type and what is known of it."""
    binder = create_function_from_signature(function.signature, function.params, backend)
    return binder(*arguments, *constants)[:2]


def compiled(target, kernel, arguments, constants):
    backend, function = make_backend(target), kernel.function
    options = {"num_warps": kernel.warps, "enable_fp_fusion": False}
    bound, specialisation = specialised(backend, function, arguments, constants)
    parsed, signature, constexprs, attrs = function._pack_args(backend, options, bound, specialisation, options)
    source = ASTSource(function, signature, constexprs, attrs)
    return triton.compile(source, target=target, options=parsed.__dict__)


def events(ptx):
    """What happens to images of which vectors are 16 bytes, in order: L one is loaded, l so that the load need not see
    what was stored, S something is stored, B all threads wait."""
    found = re.finditer(r"\bld\.global(\S*)\s|\b(st)\.global\S*\s|\b(bar)\.sync", ptx)
    said = ""
    for how, store, barrier in (of.groups() for of in found):
        if barrier or store:
            said += "B" if barrier else "S"
        elif ".v4" in how or ".v2.b64" in how:
            said += "l" if ".nc" in how or ".volatile" in how else "L"
    return said


def spread(ttgir):
    """Along which dims of the blocks [R, N, V] that are loaded and stored neighbouring threads have elements."""
    layouts = dict(re.findall(r"^(#\w+) = #ttg\.blocked<\{(.*)\}>", ttgir, re.MULTILINE))
    dims = set()
    for vectors, layout in re.findall(r"tt\.(?:load|store) .*: tensor<\d+x(\d+)x\d+x!tt\.ptr<\w+>, (#\w+)>", ttgir):
        if int(vectors) > 1:
            order = map(int, re.search(r"order = \[([\d, ]+)\]", layouts[layout])[1].split(","))
            threads = [int(n) for n in re.search(r"threadsPerWarp = \[([\d, ]+)\]", layouts[layout])[1].split(",")]
            dims.add(next((dim for dim in order if threads[dim] > 1), None))
    return sorted(dims)


def report(kernel):
    """Accesses as {"ld 16": 4}, the sizes that cuobjdump finds in the binary, roots, exponentials, and loops."""
    from test_ptx import accesses_of

    ptx = re.sub(r"//[^\n]*", "", kernel.asm["ptx"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        said = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    sizes = {name.lower(): int(n) for name, n in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", said.stdout)}
    found = {
        "accesses": accesses_of(ptx),
        "sqrt": re.findall(r"\bsqrt\S*", ptx),
        "ex2": len(re.findall(r"\bex2\.", ptx)),
        "words": len(re.findall(r"tt\.load .*!tt\.ptr<i32>", kernel.asm["ttir"])),
        "shared": kernel.metadata.shared,
        "events": events(ptx),
        "spread": spread(kernel.asm["ttgir"]),
    }
    return sizes | found | {"loops": carried(kernel.asm["ttir"])}


def compile_all(arch):
    """[which launch, kernel, report]. For sm_90 every element type in several kernels, for others in one."""
    target = GPUTarget("cuda", arch, 32)
    backend = make_backend(target)
    found, seen = [], set()

    def add(name, launches):
        for kernel, arguments, constants in launches:
            function = kernel.function
            source = function, kernel.warps, repr(specialised(backend, function, arguments, constants)[1])
            if source not in seen:
                seen.add(source)
                named = dict(zip(function.arg_names[len(arguments) :], constants, strict=True))
                of = report(compiled(target, kernel, arguments, constants)) | {"constants": named}
                found.append([name, function.__name__, of])

    for turn, (name, case) in enumerate(MIXES.items()):
        for i, dtype in enumerate(DTYPES):
            if (i + turn) % (2 if arch == 90 else 5) == 0 and (
                dtype.is_floating_point or not name.startswith("adjoint")
            ):
                add(f"{name}: {dtype}", mixing(dtype, *case))
    for i, (name, case) in enumerate(FINISHES.items()):
        if arch == 90 or i % 3 == (arch // 10) % 2:
            add(f"finish, {name}", finishing(*case))
    for i, dtype in enumerate(DTYPES):
        for turn, (name, case) in enumerate(WITH.items()):
            if (arch == 90 and (i + turn) % 3 == 0) or i == turn == arch // 10 % 2:
                add(f"{name}: {dtype}", mixing_with(dtype, *case))
        for turn, (name, case) in enumerate(PASTES.items()):
            if (arch == 90 and (i + turn) % 2 == 0) or i == turn == arch // 10 % 2:
                add(f"{name}: {dtype}", pasting(dtype, *case))
        if arch == 90 or i == arch // 10 % 2:
            add(f"blended: {dtype}", blending(dtype, i + 2))
    add("draws of a finish", drawing(3))
    add("losses: torch.float32", losses(torch.float32))
    add("pixel losses: torch.float32", pixel_losses(torch.float32))
    add("volumes", sampling("cross_class", size=(8, 32, 32)))
    add("noise", noise((32, 32)))
    if arch == 90:
        add("roll", sampling("roll", per="batch"))
        add("flip", sampling("flip"))
        add("signals", sampling("random", size=(400,)))
        add("same_class", sampling("same_class"))
        add("λ given", sampling("roll", lam=torch.full(SMALL[:1], 0.5)))
        add("others", others())
        add("noise in volumes", noise((5, 6, 7), max_soft=0.1))
        add("noise in signals", noise((400,), variant="released"))
        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            add(f"pixel losses: {dtype}", pixel_losses(dtype, (33, 65), mixed))
            add(f"losses: {dtype}", losses(dtype, 1000 if dtype == torch.bfloat16 else 1001, torch.uint8))
    return found


def planted():
    """{what is wrong with it: report} of kernels that mix in place and are wrong, and of one that is right."""
    source = Path(mix_launch.__file__).with_name("mix_kernel.py").read_text()
    (keep,) = re.findall(r"^ +numbers, outs, wanted = numbers \+ .*\n", source, re.MULTILINE)
    store = "            tl.store(of_sample(target, numbers[k], dst_batch, V), outs[k], mask=wanted[k])\n"
    at_once = "            tl.store(of_sample(target, i, dst_batch, V), out, mask=lent)\n"
    changes = {
        "nothing": [],
        "no barrier": [("        tl.debug_barrier()\n        for k", "        for k")],
        "a store before all loads": [
            (keep, "            tl.debug_barrier()\n" + at_once),
            (store, "            pass\n"),
        ],
        "a load behind the barrier": [
            (store, store.replace("outs[k]", "tl.load(of_sample(source, numbers[k], src_batch, V))"))
        ],
        "samples side by side": [
            ("return by_vector(first, ", "return tl.max_contiguous(first + "),
            ("batch_stride * V, V)", "batch_stride * V, [2, 1, 2 * V])"),
        ],
        "few threads": [],
        "more than registers hold": [],
    }
    cuts = {"few threads": (256, 2, 4, 4), "more than registers hold": (256, 2, 32, 32)}
    found = {}
    for name, replaced in changes.items():
        wrong = source
        for old, new in replaced:
            assert old in wrong, old
            wrong = wrong.replace(old, new)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "planted.py")
            path.write_text(wrong)
            spec = spec_from_file_location("planted", path)
            module = module_from_spec(spec)
            spec.loader.exec_module(module)
            x = torch.empty(SMALL)
            plan = fm.MixUp(per="sample", pairing="random", sampling="device").sample(SMALL[0], SMALL[2:], seed=0)
            masks = plan.partner, plan.masks, plan.families, 0, plan.pairing, plan.per
            mix_launch.way_of.cache_clear()
            with Launches() as launches, mock.patch.object(mix_launch, "cuts", wraps=mix_launch.cuts) as chosen:
                if name in cuts:
                    chosen.side_effect = [[mix_launch.Cut(mix_launch.Shape.TILE, *cuts[name])]]
                mix_launch.apply(x, x, masks)
            kernel, arguments, constants = launches[0]
            named = dict(zip(kernel.function.arg_names[len(arguments) :], constants, strict=True))
            kernel = launch.Kernel(module.mix_kernel, kernel.warps)
            of = report(compiled(GPUTarget("cuda", 90, 32), kernel, arguments, constants))
            found[name] = of | {"constants": named}
    return found


# ---- what is compiled anew ------------------------------------------------------------------------------------------


def instead_of(argument):
    """Other arguments in the place of one."""
    if isinstance(argument, tuple):
        for i, part in enumerate(argument):
            for other in instead_of(part):
                yield (*argument[:i], other, *argument[i + 1 :])
    elif isinstance(argument, torch.Tensor):
        for dtype in (argument.dtype, torch.int32, torch.float32, torch.uint8):
            memory = torch.empty(64, dtype=dtype)
            yield from (memory, memory[16:], memory[1:])
    elif isinstance(argument, float):
        yield from (0.0, 0.5, 1.0, 16.0)
    else:
        yield from (0, 1, 2, 15, 16, 17, -16, 2**31 - 1, -(2**31), 2**31, 2**32, -(2**31) - 1, 2**40, 2**62)


class Recorded:
    """In the place of a kernel: which of all that was compiled ran last."""

    def __init__(self):
        self.compilations, self.last = 0, None

    def __getitem__(self, grid):
        def compile_anew(*arguments, **options):
            recorded, number = self, self.compilations
            self.last, self.compilations = number, number + 1

            class Compiled:
                def __getitem__(self, grid):
                    return lambda *arguments: setattr(recorded, "last", number)

            return Compiled()

        return compile_anew


def keys():
    """[kernel, parameter, [[what the launcher takes, what Triton takes] of each argument in its place]], as numbers."""
    backend = make_backend(GPUTarget("cuda", 90, 32))
    launches = sampling("cross_class") + others() + noise((32, 48)) + noise((5, 6, 7), max_soft=0.1)
    launches += losses(torch.float32) + pixel_losses(torch.float32) + drawing(2) + blending(torch.float32, 3)
    launches += mixing_with(torch.float32, mixed, False) + pasting(torch.float32, 2, Resize.LINEAR, 2, False)
    for name in ("bytes", "noise", "floats"):
        launches += finishing(*FINISHES[name])
    for case in MIXES.values():
        launches += mixing(torch.float32, *case)
    found = []
    for launched, arguments, constants in launches:
        function, recorded = launched.function, Recorded()
        kernel = launch.Kernel(recorded)
        tritons = {}
        for i, argument in enumerate(arguments):
            pairs = []
            for other in (argument, *instead_of(argument)):
                others_ = (*arguments[:i], other, *arguments[i + 1 :])
                kernel(1, others_, constants, CPU)
                source = repr(specialised(backend, function, others_, constants)[1])
                pairs.append((recorded.last, tritons.setdefault(source, len(tritons))))
            found.append([function.__name__, function.arg_names[i], pairs])
    return found


# ---- what is launched -----------------------------------------------------------------------------------------------


def launched():
    """[which, grid, arguments] of three launches of a kernel for each of several arguments: twice by the launcher, and
    by Triton. Tensors are given as their addresses."""
    driver.set_active(noting := Driver())
    memory, kernel = torch.zeros(256), labels_kernel._labels
    labels, weight = torch.zeros(8, dtype=torch.int64), torch.ones(8, dtype=torch.float64)
    constants = (0, 0, False, False, 4, 512)
    found = []
    for out, batch, given in (
        (memory[:64], 8, 0), (memory[64:128], 4, 0), (memory[1:65], 8, 0), (memory[:64].int(), 8, 0),
        (memory[:64], 1, 0), (memory[:64], 8, 2**40),
    ):  # fmt: skip
        arguments = (out, labels, labels, weight, 1, 0, given, given, given, batch, 8)
        for _ in range(2):
            kernel(3, arguments, constants, CPU)
        kernel.function[(3,)](*arguments, *constants, num_warps=kernel.warps, enable_fp_fusion=False)
        for which, grid, values in noting.launches:
            shown = [value.data_ptr() if isinstance(value, torch.Tensor) else value for value in values]
            found.append([which, grid, shown[: len(arguments)]])
        noting.launches.clear()
    return found


if __name__ == "__main__":
    does = {
        "compile": lambda: compile_all(int(sys.argv[2])),
        "planted": planted,
        "keys": keys,
        "launched": launched,
    }
    json.dump(does[sys.argv[1]](), sys.stdout)
