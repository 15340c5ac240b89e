"""What torch.compile(mode="reduce-overhead") would capture in CUDA graphs, found without a GPU.

A graph replays the launches that were captured. Nothing in it may read a tensor on the CPU: what was read at capture
(α, p, `enabled`, a seed, a plan) would be repeated for ever, and only some of that is an error. Inductor cuts its
program into partitions, of which it captures those that it takes for safe. Here it does so with tensors that have a
device but no memory, up to the point where it would write the program.
"""

from __future__ import annotations

import copy
import os
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch._inductor import debug, scheduler
from torch._inductor.compile_fx import compile_fx, record_original_output_strides
from torch._inductor.fx_passes.post_grad import post_grad_passes
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime.hints import DeviceProperties
from torch._inductor.scheduler import Scheduler
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode

import fusedmix as fm
from fusedmix import backends, ops

SIZE = (12, 10)

pytestmark = pytest.mark.thorough


class Partition(NamedTuple):
    """A piece of Inductor's program."""

    captured: bool
    operators: set[str]  # of this package: "mix" for fusedmix_cuda::mix
    on_cpu: list[str]  # its inputs and constants there


class _Stop(BaseException):
    """The partitions are known; to write the program takes a GPU."""


@pytest.fixture
def partitions(monkeypatch):
    """A function that compiles another for CUDA graphs and calls it with images, classes and logits on a GPU. It
    returns the partitions of all graphs, that of the backward pass among them."""
    torch._dynamo.reset()
    found: list[Partition] = []
    cut = Scheduler.graph_partition

    def cut_and_stop(self):
        for nodes, signature in zip(*cut(self), strict=True):
            operators = [getattr(n.node, "op_overload", None) for node in nodes for n in node.get_nodes()]
            inputs = {**signature.input_nodes, **{c: V.graph.constants[c] for c in signature.constant_names}}
            found.append(
                Partition(
                    not signature.skip_cudagraph,
                    {o._opname for o in operators if o is not None and o.namespace.startswith("fusedmix")},
                    [name for name, x in inputs.items() if str(getattr(x, "device", _device(x))) == "cpu"],
                )
            )
        raise _Stop

    def lower(graph, inputs, *, is_inference=False, **_):
        program = copy.deepcopy(graph)
        record_original_output_strides(program)
        post_grad_passes(program, is_inference)
        lowering = GraphLowering(program, inputs, V.fake_mode.shape_env, is_inference=is_inference)
        with V.set_graph_handler(lowering), debug.DebugContext():
            lowering.run(*inputs)
            with pytest.raises(_Stop):
                lowering.codegen()
        return graph  # runs by the fakes of the operators

    def backend(graph, inputs):
        # As `mode` sets them: for Inductor, not for Dynamo, which would make constants of the numbers in a module.
        return compile_fx(graph, inputs, inner_compile=lower, config_patches=settings)

    def run(function, *, backward=False):
        with FakeTensorMode(allow_non_fake_inputs=True):
            x = torch.empty(6, 3, *SIZE, device="cuda", requires_grad=backward)
            y = torch.empty(6, dtype=torch.int64, device="cuda")
            z = torch.empty(6, 5, device="cuda", requires_grad=backward)
            out = torch.compile(function, fullgraph=True, backend=backend)(x, y, z)
            if backward:
                out.backward()
        assert found
        return found

    monkeypatch.setattr(Scheduler, "graph_partition", cut_and_stop)
    monkeypatch.setattr(scheduler, "has_triton", lambda: True)
    card = DeviceProperties("cuda", 0, 132, 90, 9, 65536, 2048, warp_size=32)
    monkeypatch.setattr(DeviceProperties, "create", lambda device: card)
    # Schemas, tags and fakes of all backends are the same, and need nothing built.
    monkeypatch.setitem(backends._chosen, ("cuda", None, os.environ.get("FUSEDMIX_BACKEND")), "cuda")
    settings = {
        "triton.cudagraphs": True,
        "graph_partition": True,
        "fx_graph_cache": False,
        "joint_graph_constant_folding": False,  # would compute on the GPU
    }
    yield run
    torch._dynamo.reset()


def _device(node):
    return node.get_device() if hasattr(node, "get_device") else None


def captured(partitions):
    """The operators that would be captured; none may see the CPU."""
    for partition in partitions:
        assert not (partition.captured and partition.on_cpu), partitions
    return set().union(*(p.operators for p in partitions if p.captured))


def left_outside(partitions):
    return set().union(*(p.operators for p in partitions if not p.captured))


@pytest.mark.parametrize("sampling", ["host", "device"])
def test_modules(partitions, method, sampling):
    """A step of a module draws outside: in one call, or a plan by which images and labels are mixed in a graph."""
    modules = [
        method(num_classes=5, sampling=sampling, per=per, pairing="random", p=0.9, inplace=inplace)
        for per, inplace in (("batch", sampling == "host"), ("sample", sampling == "device"))
    ]
    found = partitions(lambda x, y, _: [mix(x, y) for mix in modules])
    stored = modules[0]._families.stored
    assert captured(found) == ({"mix", "mix_", "mix_labels"} if stored else set())
    drawn = {"draw_host" if sampling == "host" else "draw_seed"}
    assert left_outside(found) == drawn | ({"sample", "fourier"} if stored else {"mix_batch", "mix_batch_"})


@pytest.mark.parametrize("sampling", ["host", "device"])
@pytest.mark.parametrize("options", [{"targets": "sparse"}, {"labels_getter": None}], ids=str)
def test_modules_that_do_not_mix_in_one_call(partitions, sampling, options):
    modules = [fm.CutMix(num_classes=5, sampling=sampling, per=per, **options) for per in ("batch", "sample")]

    def step(x, y, _):
        batch = (x,) if options.get("labels_getter", "") is None else (x, y)
        return [mix(*batch) for mix in modules]

    found = partitions(step)
    assert captured(found) >= {"mix"}
    assert left_outside(found) == {"sample", "draw_host" if sampling == "host" else "draw_seed"}


@pytest.mark.parametrize("sampling", ["host", "device"])
@pytest.mark.parametrize("last", [fm.CutMix, fm.FMix])
def test_numbers_that_have_changed(partitions, sampling, last):
    """Dynamo makes tensors on the CPU of them then, which Inductor brings to the GPU where it thinks it can."""
    mix = fm.RandomMix([fm.MixUp(), last()], num_classes=5, sampling=sampling, per="sample")

    def step(x, y, _):
        return mix(x, y)

    for value in (0.5, 0.25):
        mix.p = mix.label_smoothing = value
        for method in mix.methods:
            method.p = value
        found = partitions(step)
    assert captured(found) == ({"mix", "mix_labels"} if last is fm.FMix else set())


# Of the soft labels' cross entropy, which is torch's own.
@pytest.mark.filterwarnings("ignore:\\s*Online softmax is disabled:UserWarning")
@pytest.mark.parametrize("device", [None, "cuda"])
@pytest.mark.parametrize("sampling", ["host", "device"])
@pytest.mark.parametrize("soft", [False, True])
def test_the_two_halves(partitions, device, sampling, soft):
    """Wherever the plan was asked for: it is beside the images when a graph begins."""
    mix = fm.RandomMix([fm.CutMix(), fm.FMix(max_soft=0.1 * soft)], sampling=sampling, per="sample")

    def step(x, y, z):
        plan = mix.sample(6, SIZE, device=device)
        y = F.one_hot(y, 5).float() if soft else y
        targets = fm.mix_labels(y, plan, num_classes=5), fm.mix_targets(z, plan)
        losses = fm.mix_cross_entropy(z, y, plan), fm.mix_binary_cross_entropy(z, y, plan)
        each = fm.mix_binary_cross_entropy(z, y, plan, reduction="none")
        return fm.mix(x, plan), fm.mix_(x.clone(), plan), targets, losses, each

    found = partitions(step)
    losses = {"binary_cross_entropy"} if soft else {"cross_entropy", "binary_cross_entropy"}
    assert captured(found) == {"mix", "mix_", "mix_labels"} | losses
    assert left_outside(found) == {"sample", "fourier", "draw_host" if sampling == "host" else "draw_seed"}


@pytest.mark.parametrize("sampling", ["host", "device"])
def test_a_plan_that_is_an_input(partitions, sampling):
    stored, constant = (mix(sampling=sampling).sample(6, SIZE, seed=1) for mix in (fm.FMix, fm.MixUp))

    def step(x, y, z):
        maps = y.reshape(6, 1, 1).expand(6, *SIZE)
        mixed = fm.mix(x, stored), fm.mix_labels(y, stored, num_classes=5), stored.mask()
        masks = fm.mix_masks(maps, stored), fm.mix_masks(maps, stored, num_classes=5)
        return mixed, masks, fm.mix_embeddings(x[:, 0], constant, y)

    found = partitions(step)
    assert captured(found) == {"mix", "mix_labels"}
    assert left_outside(found) == {"mask"}  # of a plan on the CPU


def test_a_seed_from_a_generator_on_the_gpu(partitions):
    """A replay would not move it on: CUDA graphs know the default generator only."""
    found = partitions(lambda x, *_: torch.ops.fusedmix.draw_seed(0, device=x.device))
    assert captured(found) == set()


@pytest.mark.parametrize("sampling", ["host", "device"])
def test_what_a_backward_pass_reads(monkeypatch, sampling):
    """Traced, the plan that it saves is on the GPU. (To run it takes a GPU, also with tensors that have no memory.)"""
    mix = fm.HMix(sampling=sampling, per="sample")
    plan = mix.sample(6, SIZE, seed=1)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setitem(backends._chosen, ("cuda", None, os.environ.get("FUSEDMIX_BACKEND")), "cuda")
    with FakeTensorMode() as mode:
        plan = pytree.tree_map_only(torch.Tensor, mode.from_tensor, plan)
        x, z = (torch.empty(6, *shape, device="cuda", requires_grad=True) for shape in ((3, *SIZE), (5,)))
        y = torch.empty(6, dtype=torch.int64, device="cuda")
        for out in (fm.mix(x, plan), fm.mix_cross_entropy(z, y, plan), fm.mix_binary_cross_entropy(z, y, plan)):
            saved = [t for t in out.grad_fn.saved_tensors if t is not None]
            assert len(saved) >= 2  # the partners, and masks or weights
            assert {t.device.type for t in saved} == {"cuda"}


def test_every_backend_says_so():
    """A tag for each operator that takes what is on the CPU: `spec`, `chances`, a seed."""
    for name in backends.NAMES:
        for operator in ops._SCHEMAS:
            overload = getattr(getattr(torch.ops, f"fusedmix_{name}"), operator).default
            on_host = not {"spec", "chances"}.isdisjoint(argument.name for argument in overload._schema.arguments)
            assert (torch.Tag.cudagraph_unsafe in overload.tags) == on_host, overload
