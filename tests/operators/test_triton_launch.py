"""How Triton's kernels are launched and tuned, where they can run, and the interpreter as the tests speed it up."""

from __future__ import annotations

import itertools
import math
import os
import re
import subprocess
import sys
import sysconfig

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

import fusedmix as fm
import triton_interpreter
from callers import masks_of
from fusedmix import backends
from fusedmix.arguments import MaskArguments, Patches
from fusedmix.methods import Families, Pairing

pytest.importorskip("triton")

import triton.language as tl

from operators.on_triton import KERNELS, backend, fourier_of, launch, mix_launch

pytestmark = pytest.mark.thorough
CPU = torch.device("cpu")
on_interpreter = pytest.mark.usefixtures("interpreted")


def test_launches(monkeypatch):
    """Compiled once for a key, then called with the kernel's parameters in their order."""
    calls = []

    class Compiled:
        def __getitem__(self, grid):
            return lambda *arguments: calls.append(("launched", grid, arguments))

    class Function:
        def __getitem__(self, grid):
            return lambda *arguments, **options: calls.append(("compiled", grid, arguments, options)) or Compiled()

    monkeypatch.setattr(launch, "INTERPRETED", False)
    kernel = launch.Kernel(Function())
    x = torch.zeros(8)
    kernel(0, (x, 1), (True,), CPU)
    assert calls == []
    options = {"num_warps": launch.WARPS, "enable_fp_fusion": False}
    kernel(3, (x, 1, (4, 5)), (True, 7), CPU)
    kernel(5, (x, 2, (4, 5)), (True, 7), CPU)
    kernel(6, (x, 2, (4, 5)), (False, 7), CPU)
    kernel(7, (x, 2**31, (4, 5)), (True, 7), CPU)
    kernel(8, (x[1:], 2, (4, 5)), (True, 7), CPU)
    kernel(9, (x.int(), 2, (4, 5)), (True, 7), CPU)
    assert [call[:2] for call in calls] == [
        ("compiled", (3,)),
        ("launched", (5, 1, 1)),
        *(("compiled", (n,)) for n in (6, 7, 8, 9)),
    ]
    assert calls[0][2:] == ((x, 1, (4, 5), True, 7), options)
    assert calls[1][2] == (x.data_ptr(), 2, (4, 5), True, 7)


@on_interpreter
def test_every_kernel_gets_all_of_its_parameters():
    """The arguments first, then the constants, as many as there are of each."""
    seen = {}
    call = launch.Kernel.__call__

    def note(kernel, programs, arguments, constants, device):
        seen[kernel.function.__name__] = kernel.function, arguments, constants
        call(kernel, programs, arguments, constants, device)

    x, y = torch.rand(9, 3, 8, 8), torch.arange(9) % 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch.Kernel, "__call__", note)
        mix = fm.CutMix(per="sample", pairing="cross_class", num_classes=4, sampling="device", backend="triton")
        mix(x, y)
        plan = mix.sample(9, (8, 8), seed=0, labels=y)
        plan.mask()
        fm.mix_(x, plan, backend="triton")
        fm.mix(x.requires_grad_(), plan, backend="triton").sum().backward()
        backend.mask(plan.masks, int(plan.families), (8, 8))
        backend.mix_with(x.detach(), x.detach(), MaskArguments(*masks_of(plan)))
        backend.paste(x.detach(), Patches(plan.partner[:, None], *2 * [torch.ones(9, 1, 4, dtype=torch.int32)]), 1)
        backend.blend(x.detach(), plan.partner[:, None], torch.ones(9, 1))
        for soft in (0.0, 0.3):
            noise = fm.FMix(per="sample", max_soft=soft)
            fourier_of(noise, noise.sample(2, (4, 4), seed=0), 0)
        finish = fm.Finish(None, hflip=0.5, erase=fm.Erase())
        fm.CutMix(num_classes=4, finish=finish, sampling="device", backend="triton")(x.detach(), y)
        for loss in (fm.mix_cross_entropy, fm.mix_binary_cross_entropy):
            loss(torch.rand(9, 4, requires_grad=True), y, plan, backend="triton").backward()
        logits = torch.rand((9, 4, 8, 8), requires_grad=True)
        fm.mix_pixel_cross_entropy(logits, torch.zeros(9, 8, 8, dtype=torch.uint8), plan, backend="triton").backward()
    assert len(seen) == len(KERNELS)
    for function, arguments, constants in seen.values():
        kinds = [annotation is tl.constexpr or annotation == "tl.constexpr" for annotation in annotations(function)]
        assert kinds == [False] * len(arguments) + [True] * len(constants)


def annotations(function):
    return [function.fn.__annotations__.get(name) for name in function.arg_names]


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """As if there were one, a compiler and Python's headers."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, folder in (("gcc", "bin"), ("Python.h", "include")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path / "include")})
    assert backends.why_not_triton("cuda") is None
    return tmp_path


def assert_refused(device_type, *words):
    reason = backends.why_not_triton(device_type)
    assert reason is not None
    assert len(reason.splitlines()) == 1
    assert all(word in reason for word in words), reason


def test_needs_triton(monkeypatch, gpu):
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    assert_refused("cuda", "triton is not installed")
    assert_refused("cpu", "triton is not installed")


def test_on_the_cpu_it_is_interpreted(monkeypatch, gpu):
    assert_refused("cpu", "TRITON_INTERPRET=1")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backends.why_not_triton("cpu") is None


@pytest.fixture
def compiled_kernels(monkeypatch):
    """As if they were, and nothing had been chosen yet."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(fm.backends, "_chosen", {})
    torch._dynamo.reset()


@pytest.mark.parametrize("sampling", ["host", "device"])
def test_a_plan_on_the_cpu_is_made_without_it(compiled_kernels, method, sampling):
    """Where images are to be mixed on a GPU; on the CPU they are not."""
    mix, other = (method(sampling=sampling, per="sample", backend=name) for name in ("triton", None))
    plan = mix.sample(5, (6, 4), seed=1)
    assert all(map(torch.equal, tree_leaves(plan), tree_leaves(other.sample(5, (6, 4), seed=1))))
    with pytest.raises(fm.BackendError, match="TRITON_INTERPRET=1"):
        fm.mix(torch.zeros(5, 1, 6, 4), plan, backend="triton")


@pytest.mark.parametrize("sampling", ["host", "device"])
def test_a_traced_plan_on_the_cpu_is_made_without_it(compiled_kernels, sampling):
    mix = fm.FMix(sampling=sampling, per="sample", backend="triton")
    plan = torch.compile(lambda: mix.sample(5, (6, 4), seed=1), fullgraph=True, backend="eager")()
    assert all(map(torch.equal, tree_leaves(plan), tree_leaves(mix.sample(5, (6, 4), seed=1))))


def test_needs_a_gpu_or_the_cpu(monkeypatch, gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert_refused("cuda", "no GPU")


def test_needs_a_c_compiler(monkeypatch, gpu):
    monkeypatch.setenv("CC", "no-such-compiler")
    assert_refused("cuda", "no-such-compiler")
    monkeypatch.setenv("CC", "gcc")
    assert backends.why_not_triton("cuda") is None
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", "")
    assert_refused("cuda", "C compiler", "gcc or clang")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backends.why_not_triton("cuda") is None


def test_needs_pythons_headers(gpu):
    (gpu / "include" / "Python.h").unlink()
    assert_refused("cuda", "headers", "python3-dev")


def command(*arguments, **environment):
    environment = {**{k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}, **environment}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("interpret", [True, False], ids=["interpreted", "compiled"])
def test_info_says_whether_it_is_active(interpret):
    """The two lines of fusedmix info that are about it."""
    environment = {
        "FUSEDMIX_BACKEND": "triton",
        "CUDA_VISIBLE_DEVICES": "",
        **({"TRITON_INTERPRET": "1"} if interpret else {}),
    }
    done = command("-m", "fusedmix.cli", "info", **environment)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    line = next(line for line in done.stdout.splitlines() if re.match(r"triton +cpu ", line))
    if interpret:
        assert re.match(r"triton +cpu +yes +yes +FUSEDMIX_BACKEND", line)
    else:
        assert re.match(r"triton +cpu +no +no +", line)
        assert "TRITON_INTERPRET=1" in " ".join(done.stdout.split())


def test_asked_for_where_it_cannot_run():
    program = """
import torch, fusedmix as fm
x = torch.zeros(2, 1, 4, 4)
try:
    fm.mix(x, fm.MixUp().sample(2, (4, 4)), backend="triton")
except fm.BackendError as error:
    print(error)
"""
    done = command("-c", program)
    assert done.returncode == 0, done.stderr
    assert re.search(r"'triton'.*'cpu' tensors: .*TRITON_INTERPRET=1", done.stdout)


@on_interpreter
@pytest.mark.parametrize(
    ("layout", "in_place"), [("contiguous", False), ("misaligned", True), ("gaps", True), ("channels_last", True)]
)
def test_autotuning_measures_the_batch_as_it_is(monkeypatch, layout, in_place):
    """Every cut is tried once, on memory laid out as the batch; the fastest serves every later call; nothing is drawn
    from torch's generator, and no pixel differs."""
    mix_launch.way_of.cache_clear()
    monkeypatch.setattr(mix_launch, "multiprocessors", lambda device: 3)
    shape, item = (4, 2, 8, 24), 4
    x = torch.rand(shape)
    if layout == "misaligned":
        x = torch.rand(x.numel() + 1)[1:].view(shape)
    elif layout == "gaps":
        x = torch.rand(4, 2, 8, 28)[..., :24]
    elif layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    y, before = torch.arange(4), x.clone()
    tried, ways = [], []

    def milliseconds(call, device):
        tried.append(list(mix_launch._tuned.values())[-1])
        call()
        return float(len(tried) != 2)  # the second is the fastest

    way_of = mix_launch.way_of
    monkeypatch.setattr(mix_launch, "way_of", lambda *of: ways.append(way_of(*of)) or ways[-1])
    monkeypatch.setattr(mix_launch, "milliseconds", milliseconds)
    monkeypatch.setattr(mix_launch, "_tuned", {})
    monkeypatch.setenv("FUSEDMIX_TRITON_AUTOTUNE", "1")
    state = torch.get_rng_state()
    step = fm.CutMix(num_classes=4, per="sample", backend="triton", sampling="device", inplace=in_place)
    torch.manual_seed(1)
    out = step(x, y)[0]
    torch.manual_seed(1)
    width = 1 if layout == "misaligned" else 16 // item
    columns = x[0].numel() // width
    assert tried == mix_launch.cuts(4, columns, item, width, Pairing.ROLL, Families.CUTS, in_place, 3)
    assert len(tried) > 1
    assert len(mix_launch._tuned) == 1  # what was measured is of the same kind
    assert ways[-1].cut == tried[1]
    wanted = fm.CutMix(num_classes=4, per="sample", backend="reference", sampling="device")(before, y)[0]
    assert torch.equal(out, wanted)
    torch.set_rng_state(state)
    x.copy_(before)
    tried.clear()
    step(x, y)
    assert not tried


@on_interpreter
def test_what_is_kept_of_the_interpreter_is_what_it_finds():
    """Types, their promotion and broadcasts, and refusals: as the functions that triton_interpreter.py replaces."""
    from triton.language import core
    from triton.runtime import interpreter
    from triton.runtime.interpreter import TensorHandle, interpreter_semantic

    originals = triton_interpreter.ORIGINALS
    assert len(originals) == 6, "this Triton is slower than need be: see triton_interpreter.py"
    ints = [tl.int1, tl.int8, tl.int16, tl.int32, tl.int64, tl.uint8, tl.uint16, tl.uint32, tl.uint64]
    scalars = [*ints, tl.float16, tl.bfloat16, tl.float32, tl.float64]
    types = [*scalars, *map(tl.pointer_type, scalars)]

    def outcome(function, *args):
        try:
            return function(*args)
        except Exception as error:
            return type(error), str(error)

    def said(x):
        return {name: str(value) for name, value in vars(x).items() if name != "_of_tensors"}

    def as_made(cls, *args):
        """What the original says of an object, or how it refuses to make it."""
        x = object.__new__(cls)
        return outcome(originals[f"{cls.__name__}.__init__"], x, *args) or said(x)

    for element in types:
        assert interpreter._get_np_dtype(element) == originals["interpreter._get_np_dtype"](element)
        for shape in ([1], [64], [2, 4], [tl.constexpr(8), 1], [3], [0], [-2], [2.0], [True], [2**21], [], (4,), "4"):
            kept = outcome(core.block_type, element, shape)
            assert (said(kept) if isinstance(kept, core.block_type) else kept) == as_made(
                core.block_type, element, shape
            )
        assert core.block_type(element, [2, 4]) is core.block_type(element, [tl.constexpr(2), 4])
        for of in (element, core.block_type(element, [4, 2])):
            for handle in ("one", "other"):
                assert said(core.tensor(handle, of)) == as_made(core.tensor, handle, of)
    for a, b in itertools.product(scalars, repeat=2):
        for flags in itertools.product((False, True), repeat=3):
            args = (a, flags[0], b, flags[1], flags[2])
            for _ in range(2):
                assert outcome(interpreter_semantic.computation_type_impl, *args) == outcome(
                    originals["TritonSemantic.computation_type_impl"], interpreter_semantic, *args
                )
    shapes = ((), (4,), (1,), (2, 4), (2, 1), (1, 4), (8, 2))
    blocks = [
        core.tensor(
            TensorHandle(np.arange(math.prod(shape), dtype=np.int32).reshape(shape or 1), tl.int32),
            core.block_type(tl.int32, list(shape)) if shape else tl.int32,
        )
        for shape in shapes
    ]

    def told(result):
        return [(str(t.type), t.handle.data.tolist()) if isinstance(t, tl.tensor) else t for t in result]

    for pair in itertools.product(blocks, repeat=2):
        assert told(outcome(interpreter_semantic.broadcast_impl_value, *pair)) == told(
            outcome(originals["TritonSemantic.broadcast_impl_value"], interpreter_semantic, *pair)
        )
