"""The operators' contract: schema, fake, mutation and dispatch, by torch.library.opcheck, for every backend."""

from __future__ import annotations

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fusedmix as fm
from conftest import NO_CPP, NO_CUDA, NO_TRITON, TRITON_DEVICE, TRITON_MARKS
from fusedmix import backends
from fusedmix.backends import reference
from fusedmix.draws import Request, Source
from fusedmix.methods import Method, Pairing, Per, Reduction
from fusedmix.ops import GeneratorHandle
from fusedmix.spec import spec_row

HERE = [
    ("reference", "cpu"),
    *([("cpp", "cpu")] if NO_CPP is None else []),
    *([("cuda", "cuda")] if NO_CUDA is None else []),
    *([pytest.param(("triton", TRITON_DEVICE), marks=TRITON_MARKS)] if NO_TRITON is None else []),
]
SPEC = torch.cat([spec_row(Method.CUTMIX, alpha=0.5), spec_row(Method.SAMPLE_PAIRING, lam=0.5)])
LABELS = torch.tensor([0, 1, 1, 0, 2])
CPU = torch.device("cpu")


class Operators:
    """The namespace of a backend, and where its tensors are."""

    def __init__(self, name, device):
        self.name, self.device = name, torch.device(device)
        self.namespace = backends.operators(device, name)
        self.checked = set()

    def check(self, name, *args):
        """opcheck, with the tensors that an operator mixes or looks up on the backend's device. In Triton's interpreter
        an operator is traced but once, which calls it a dozen times: that depends on its schema and fake alone."""
        quick = ("test_schema", "test_faketensor")
        again = self.name == "triton" and self.device.type == "cpu" and name in self.checked
        self.checked.add(name)
        torch.library.opcheck(getattr(self.namespace, name).default, args, **({"test_utils": quick} if again else {}))

    def plan(self):
        module = fm.RandomMix([fm.MixUp(), fm.CutMix(), fm.HMix(), fm.GMix()], per="sample")
        return module.sample(5, (6, 7), seed=3).to(self.device)

    def masks(self):
        plan = self.plan()
        return plan.partner, plan.masks, int(plan.families), 2, int(Pairing.ROLL), int(Per.SAMPLE)


@pytest.fixture(scope="module", params=HERE, ids="-".join)
def operators(request):
    """Those of every backend that runs here."""
    return Operators(*request.param)


def request(device=CPU, pairing=Pairing.RANDOM, per=Per.SAMPLE, p=0.7, lam=None, spec=SPEC):
    """A request of which the plan is made on a device: λ and the classes are there, the spec never."""
    return spec, 5, [6, 7], int(pairing), int(per), p, lam if lam is None else lam.to(device), LABELS.to(device)


def from_host(**asked):
    """A request and, as its source, what the host draws for it: its plan is made on the CPU."""
    numbers, partner = torch.ops.fusedmix.draw_host(*request(**asked), 0, 4)
    return *request(**asked), None, numbers, partner if len(partner) else None


def from_seed(device, seed, **asked):
    """A request and a seed: its plan is made on the device."""
    return *request(device, **asked), torch.tensor(seed), None, None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_mix(operators, dtype, layout):
    x = (torch.rand(5, 3, 6, 14) * 255).to(operators.device, dtype)[..., ::2]
    if layout != "sliced":
        x = x.contiguous(memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format)
    operators.check("mix", x, *operators.masks())
    operators.check("mix_", x, *operators.masks())
    if dtype != torch.uint8:
        operators.check("mix_adjoint", x, *operators.masks())


@pytest.mark.parametrize("pairing", Pairing)
@pytest.mark.parametrize("per", [Per.BATCH, Per.SAMPLE])
def test_sample(operators, pairing, per):
    operators.check("sample", *from_seed(operators.device, -5, pairing=pairing, per=per), operators.device)


@pytest.mark.parametrize(
    ("pairing", "per"),
    [
        (Pairing.ROLL, Per.BATCH),
        (Pairing.FLIP, Per.PAIR),
        (Pairing.RANDOM, Per.SAMPLE),
        (Pairing.CROSS_CLASS, Per.BATCH),
    ],
)
def test_sample_from_the_host(operators, pairing, per):
    operators.check("sample", *from_host(pairing=pairing, per=per), CPU)


def test_sample_of_pairs(operators):
    asked = from_seed(operators.device, -5, pairing=Pairing.FLIP, per=Per.PAIR)
    operators.check("sample", *asked, operators.device)


@pytest.mark.parametrize("lam", [torch.tensor(0.3), torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0])], ids=["one", "each"])
def test_sample_given_lam(operators, lam):
    operators.check("sample", *from_seed(operators.device, 1, lam=lam), operators.device)
    operators.check("sample", *from_host(lam=lam), CPU)
    torch.library.opcheck(torch.ops.fusedmix.draw_host.default, (*request(lam=lam), 0, 4))


def test_mask(operators):
    plan = operators.plan()
    operators.check("mask", plan.masks, int(plan.families), [6, 7])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
def test_border_costs(operators, dtype):
    x, partner, scale = (torch.rand(2, 3, 8, 12) * 255).to(dtype), torch.tensor([1, 1]), torch.rand(3)
    operators.check("border_costs", *(t.to(operators.device) for t in (x, partner, scale)), [2, 3])


def test_label_grid(operators):
    unary, right, down = (torch.randint(9, shape) for shape in ((2, 4, 3, 3), (2, 4, 2), (2, 3, 3)))
    operators.check("label_grid", *(t.to(operators.device, torch.int32) for t in (unary, right, down)))


def test_arrange_blocks(operators):
    seen, maps = torch.rand(2, 4, 3) < 0.5, torch.rand(2, 4, 3)
    operators.check("arrange_blocks", seen.to(operators.device), maps.to(operators.device), 0.8)


@pytest.mark.parametrize(
    "labels",
    [LABELS, LABELS.to(torch.uint8), torch.rand(5, 3), torch.rand(5, 3).half()],
    ids=lambda y: f"{y.dtype}-{y.ndim}D",
)
def test_mix_labels(operators, labels):
    plan = operators.plan()
    operators.check("mix_labels", labels.to(operators.device), plan.partner, plan.weight, 3, 0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("reduction", Reduction)
def test_losses(operators, dtype, reduction):
    plan, z = operators.plan(), torch.randn(5, 3).to(operators.device, dtype)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    weight, pos_weight = (t.to(operators.device, compute) for t in (torch.rand(3), torch.rand(3)))
    mixed = (LABELS.to(operators.device), plan.partner, plan.weight, int(plan.pairing), int(plan.per), weight)
    if reduction != Reduction.MEAN_OF_ALL:
        asked = (z, *mixed, 0.1, 2, int(reduction))
        operators.check("cross_entropy", *asked)
        loss, statistics, scale = operators.namespace.cross_entropy(*asked)
        operators.check("cross_entropy_backward", torch.ones_like(loss), z, *mixed, statistics, scale, 0.1, 2)
    for labels in (mixed[0], torch.rand(5, 3, device=operators.device)):
        asked = (z, labels, *mixed[1:], pos_weight, 0.1, 0.3, int(reduction))
        operators.check("binary_cross_entropy", *asked)
        loss = operators.namespace.binary_cross_entropy(*asked)
        operators.check("binary_cross_entropy_backward", torch.ones_like(loss), *asked)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("reduction", [Reduction.NONE, Reduction.MEAN])
def test_pixel_losses(operators, reduction, layout):
    z = torch.randn(5, 3, 6, 7, device=operators.device).contiguous(memory_format=layout)
    maps = torch.randint(3, (5, 6, 7), device=operators.device, dtype=torch.uint8)
    of, masks = (z, maps, torch.rand(3, device=operators.device), 0.1, 2), operators.masks()
    operators.check("pixel_cross_entropy", *of, int(reduction), *masks)
    loss, *kept = operators.namespace.pixel_cross_entropy(*of, int(reduction), *masks)
    operators.check("pixel_cross_entropy_backward", torch.ones_like(loss), *of, *kept, *masks)


@pytest.mark.parametrize("operator", ["mix_batch", "mix_batch_"])
@pytest.mark.parametrize(
    ("dtype", "labels", "asked"),
    [
        (torch.float32, LABELS, {}),
        (torch.float32, LABELS, {"pairing": Pairing.ROLL, "per": Per.BATCH, "p": 1.0}),
        (torch.uint8, torch.rand(5, 3), {"pairing": Pairing.FLIP, "per": Per.PAIR}),
        (torch.bfloat16, LABELS.short(), {"lam": torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0])}),
        (torch.float32, torch.rand(5, 3).half(), {"spec": spec_row(Method.MIXUP)}),
    ],
    ids=["float32", "float32-batch", "uint8-soft-pair", "bfloat16-lam", "constant-float16-labels"],
)
def test_mix_batch(operators, operator, dtype, labels, asked):
    x = (torch.rand(5, 3, 6, 7) * 255).to(operators.device, dtype)
    labels = labels.to(operators.device)
    operators.check(operator, x, labels, *from_seed(operators.device, 7, **asked), 3, 0.1)
    operators.check(operator, x, labels, *from_host(**asked), 3, 0.1)


@pytest.mark.parametrize("operator", ["mix_batch", "mix_batch_"])
@pytest.mark.parametrize(
    ("spec", "per", "seed"),
    [
        (spec_row(Method.CUTMIX), Per.BATCH, None),
        (SPEC, Per.SAMPLE, torch.empty(0, dtype=torch.int64)),  # draw a seed
    ],
    ids=["as-torchvision", "a-seed"],
)
def test_mix_batch_that_draws(operators, operator, spec, per, seed):
    """Operators draw by themselves where they are asked to. Two runs differ, so none are compared."""
    x, labels = torch.rand(5, 3, 6, 7, device=operators.device), LABELS.to(operators.device)
    asked = (spec, 5, [6, 7], int(Pairing.ROLL), int(per), 1.0, None, None, seed, None, None)
    checks = ("test_schema", "test_faketensor")
    overload = getattr(operators.namespace, operator).default
    torch.library.opcheck(overload, (x, labels, *asked, 3, 0.1), test_utils=checks)


SOURCES = {
    "seed": lambda device: Source(torch.tensor(7), None, None),
    "seed-there": lambda device: Source(torch.empty((), dtype=torch.int64, device=device), None, None),
    "seed-to-draw": lambda device: Source(torch.empty(0, dtype=torch.int64), None, None),
    "drawn": lambda device: Source(None, *torch.ops.fusedmix.draw_host(*request(), 0, 4)),
    "to-draw": lambda device: Source(None, None, None),
}


def made_by(call, source, device):
    """(name, device) of all outputs of the operators that make plans, of images on a device."""
    source = SOURCES[source](device)
    x, y = torch.empty(5, 3, 6, 7, device=device), torch.empty(5, dtype=torch.int64, device=device)
    asked = Request(SPEC, 5, (6, 7), Pairing.RANDOM, Per.SAMPLE, 0.7, None, None)
    arguments = {"sample": ((), (device,)), "mix_batch": ((x, y), (3, 0.1)), "mix_batch_": ((x, y), (3, 0.1))}
    outputs = {name: call(name, before, (asked, source), after) for name, (before, after) in arguments.items()}
    return [(name, t.device.type) for name, tensors in outputs.items() for t in tensors]


@pytest.mark.parametrize("name", ["reference", "triton", "cuda"])
@pytest.mark.parametrize("source", SOURCES)
def test_the_fakes_know_where_a_plan_is(name, source):
    """Of images on a GPU. What the reference does on torch's device without memory says where."""

    def run(operator, before, asked, after):
        return getattr(reference, operator)(*before, *asked, *after)

    def imagine(operator, before, asked, after):
        request, source = asked
        return getattr(getattr(torch.ops, f"fusedmix_{name}"), operator)(*before, *request, *source, *after)

    expected = made_by(run, source, torch.device("meta"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        found = made_by(imagine, source, torch.device("cuda"))
    assert found == [(operator, "cuda" if device == "meta" else device) for operator, device in expected]
    assert ("sample", "cpu" if source in ("drawn", "to-draw") else "cuda") in found


@pytest.mark.parametrize("operator", ["sample", "mix_batch", "mix_batch_"])
@pytest.mark.parametrize("spec", [spec_row(Method.MIXUP), spec_row(Method.CUTMIX, alpha=0.5)], ids=["MixUp", "CutMix"])
@pytest.mark.parametrize("state", ["seed-to-draw", "to-draw"])
def test_an_operator_draws_what_is_drawn_for_it(operators, state, spec, operator):
    """The same numbers from torch's generator, which is then where it would be."""
    asked = Request(spec, 5, (6, 7), Pairing.FLIP, Per.BATCH, 1.0, None, None)
    device, found = operators.device, []
    for drawn_before in (True, False):
        torch.manual_seed(3)
        source = SOURCES[state](CPU)
        if drawn_before and state == "seed-to-draw":
            source = Source(torch.ops.fusedmix.draw_seed(0, device=CPU), None, None)
        elif drawn_before:
            source = Source(None, torch.ops.fusedmix.draw_host(*asked, 0, None)[0], None)
        x, y = torch.arange(5 * 42.0, device=device).reshape(5, 1, 6, 7), LABELS.to(device)
        before, after = ((), (device,)) if operator == "sample" else ((x, y), (3, 0.1))
        made = getattr(operators.namespace, operator)(*before, *asked, *source, *after)
        found.append((x, *made, torch.get_rng_state()))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("labels", [LABELS + 1, -LABELS], ids=["above", "below"])
def test_nothing_is_drawn_for_labels_out_of_range(operators, labels):
    if operators.device.type != "cpu":
        pytest.skip("labels on a GPU are not looked at")
    asked = Request(spec_row(Method.CUTMIX), 5, (6, 7), Pairing.FLIP, Per.BATCH, 1.0, None, None)
    before = torch.get_rng_state()
    for state in ("seed-to-draw", "to-draw"):
        source = SOURCES[state](CPU)
        for operator in (operators.namespace.mix_batch, operators.namespace.mix_batch_):
            with pytest.raises((ValueError, RuntimeError), match=r"labels|class"):
                operator(torch.rand(5, 1, 6, 7, generator=torch.Generator()), labels, *asked, *source, 3, 0.1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("pairing", Pairing)
@pytest.mark.parametrize("per", [Per.BATCH, Per.SAMPLE])
def test_draw_host(pairing, per):
    torch.library.opcheck(torch.ops.fusedmix.draw_host.default, (*request(pairing=pairing, per=per), 0, 4))


@pytest.mark.parametrize(
    "labels", [LABELS, LABELS.to(torch.uint8), torch.rand(5, 3)], ids=lambda y: f"{y.dtype}-{y.ndim}D"
)
def test_checked_classes(labels):
    torch.library.opcheck(torch.ops.fusedmix.checked_classes.default, (labels, 3))


def test_draw_seed():
    # What is drawn differs from run to run, so only what does not compare runs is checked.
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.fusedmix.draw_seed.default, (0,), {"device": CPU}, test_utils=checks)
    handle = GeneratorHandle(torch.Generator().manual_seed(0))
    seeds = [int(torch.ops.fusedmix.draw_seed(handle.key, device=CPU)) for _ in range(1000)]
    assert len(set(seeds)) == 1000
    # uniform in 0..2^63-1: mean 2^62, standard error 2^63/√(12·1000)
    assert abs(sum(seeds) / 1000 - 2**62) < 4 * 2**63 / math.sqrt(12 * 1000)


def test_random_operators_are_tagged():
    """Without the tag a compiler may merge two draws into one, or draw again in the backward pass."""
    for operator in (torch.ops.fusedmix.draw_host.default, torch.ops.fusedmix.draw_seed.default):
        assert torch.Tag.nondeterministic_seeded in operator.tags
