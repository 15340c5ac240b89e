"""Plans whose parts don't belong together: refused by every function and operator, and nothing outside of a tensor is
touched by those that cannot be refused, on a GPU.

tests/fuzz_operators.py asks the same of random arguments; a short run of it is here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields, replace

import pytest
import torch
from torch.utils import _pytree as pytree

import fusedmix as fm
import fuzz_operators
from callers import REFERENCE
from conftest import METHODS, NO_CPP, NO_TRITON, STORED, TRITON_DEVICE, TRITON_MARKS
from fusedmix import backends, checks
from fusedmix.arguments import MaskArguments
from fusedmix.backends import reference
from fusedmix.masks.family import geometry, packed, value
from fusedmix.methods import Families, Kind, Pairing, Per
from fusedmix.plan import same_batch

INTERPRETED = NO_TRITON is None and TRITON_DEVICE == "cpu"
CPU_BACKENDS = [
    pytest.param("reference"),
    pytest.param("cpp", marks=pytest.mark.skipif(NO_CPP is not None, reason=str(NO_CPP))),
    pytest.param(
        "triton", marks=[*TRITON_MARKS, pytest.mark.skipif(not INTERPRETED, reason="needs Triton's interpreter")]
    ),
]
each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
needs_cpp = pytest.mark.skipif(NO_CPP is not None, reason=str(NO_CPP))
B, SIZE, K = 6, (5, 7), 4
FORMULAS = Families.CONSTANTS | Families.CUTS | Families.BOXES | Families.GAUSSIANS
TENSORS = ("partner", "lam", "weight", "masks", "pixels")


def batch():
    return torch.rand(B, 3, *SIZE), torch.arange(B) % K


# Every function that takes a plan, of a backend where it chooses one.
FUNCTIONS = {
    "mix": lambda plan, x, y, z, b: fm.mix(x, plan, backend=b),
    "mix_": lambda plan, x, y, z, b: fm.mix_(x, plan, backend=b),
    "mix of a leaf": lambda plan, x, y, z, b: fm.mix(x.clone().requires_grad_(), plan, backend=b),
    "mix_labels": lambda plan, x, y, z, b: fm.mix_labels(y, plan, num_classes=K, backend=b),
    "mix_labels, soft": lambda plan, x, y, z, b: fm.mix_labels(z.softmax(1), plan, backend=b),
    "mix_labels, learned": lambda plan, x, y, z, b: fm.mix_labels(z.clone().requires_grad_(), plan, backend=b),
    "cross entropy": lambda plan, x, y, z, b: fm.mix_cross_entropy(z, y, plan, backend=b),
    "cross entropy, soft": lambda plan, x, y, z, b: fm.mix_cross_entropy(z, z.softmax(1), plan),
    "binary": lambda plan, x, y, z, b: fm.mix_binary_cross_entropy(z, y, plan, backend=b),
    "binary, dense": lambda plan, x, y, z, b: fm.mix_binary_cross_entropy(z, y, plan, reduction="none", backend=b),
    "mix_targets": lambda plan, x, y, z, b: fm.mix_targets(z, plan),
    "mix_masks": lambda plan, x, y, z, b: fm.mix_masks(x, plan),
}
# With plans of the right kind of masks.
OTHERS = {
    "label maps": (fm.CutMix, lambda plan, x, y: fm.mix_masks(x[:, 0].long(), plan)),
    "embeddings": (fm.MixUp, lambda plan, x, y: fm.mix_embeddings(x[:, 0], plan)),
    "embeddings of lengths": (fm.MixUp, lambda plan, x, y: fm.mix_embeddings(x[:, 0], plan, y)),
    "criterion": (fm.MixUp, lambda plan, x, y: criterion("sparse")(x[:, 0, 0], y, plan=plan)),
    "criterion, dense": (fm.MixUp, lambda plan, x, y: criterion("dense")(x[:, 0, 0], y, plan=plan)),
}


def criterion(targets):
    handle = fm.attach(torch.nn.Flatten(), fm.MixUp(num_classes=SIZE[1], per="sample"))
    return handle.wrap(torch.nn.CrossEntropyLoss(), targets=targets)


def refused(call, *words):
    with pytest.raises(ValueError, match=r"\w") as caught:
        call()
    for word in words:
        assert word in str(caught.value), str(caught.value)


def call(name, plan, backend, n=B):
    x, y = batch()
    before = x.clone()
    try:
        return FUNCTIONS[name](plan, x[:n], y[:n], torch.randn(n, K), backend)
    except ValueError:
        assert torch.equal(x, before), "something was written"
        raise


# ---- every function ----


@each_backend
@pytest.mark.parametrize("name", FUNCTIONS)
def test_plans_that_were_cut(name, backend):
    """tree_map leaves partners of another piece in every micro-batch."""
    for method, pairing in ((fm.CutMix, "roll"), (fm.GMix, "flip"), (fm.FMix, "random")):
        plan = method(per="sample", pairing=pairing).sample(B, SIZE, seed=5)
        cut = pytree.tree_map(lambda t: t[:2], plan)
        assert cut.partner.max() >= 2
        refused(lambda: call(name, cut, backend, 2), "partner must be in [0, 2), but got", "whole batch")  # noqa: B023
        refused(lambda: call(name, plan, backend, 2), "!= 6", "whole batch")  # noqa: B023
        refused(lambda: call(name, cut, backend), "!= 2", "whole batch")  # noqa: B023


@pytest.mark.parametrize("name", OTHERS)
def test_plans_that_were_cut_elsewhere(name):
    method, function = OTHERS[name]
    x, y = batch()
    plan = method(per="sample").sample(B, SIZE, seed=5)
    function(plan, x, y)
    cut = pytree.tree_map(lambda t: t[:2], plan)
    refused(lambda: function(cut, x[:2], y[:2]), "partner must be in [0, 2), but got 5")
    refused(lambda: function(replace(plan, masks=plan.masks[:2]), x, y), "plan.masks", "(6, 12)", "(2, 12)")


@each_backend
@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_part_that_does_not_fit(name, backend):
    plan = fm.FMix(per="sample", pairing="random").sample(B, SIZE, seed=5)
    for field in TENSORS:
        part = getattr(plan, field)
        for wrong in (
            part[:-1],
            torch.cat((part, part)),
            part.unsqueeze(1),
            part.bool(),
            part[:0],
            part.reshape(-1, 1),
        ):
            shown = f"{str(wrong.dtype).removeprefix('torch.')} of shape {tuple(wrong.shape)}"
            refused(lambda: call(name, replace(plan, **{field: wrong}), backend), f"plan.{field} must be", shown)  # noqa: B023


@each_backend
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("wrong", [-1, B, 2**40, -(2**63)])
def test_partners_beyond_the_batch(name, wrong, backend):
    for pairing in ("roll", "random"):
        plan = fm.HMix(pairing=pairing).sample(B, SIZE, seed=5)
        partner = plan.partner.clone()
        partner[3] = wrong
        refused(lambda: call(name, replace(plan, partner=partner), backend), f"[0, {B})", str(wrong))  # noqa: B023


@each_backend
def test_parts_in_any_layout(backend):
    """Not contiguous, but right."""
    for method in (fm.GMix, fm.FMix):
        plan = method(per="sample", pairing="random").sample(B, SIZE, seed=5)
        strided = pytree.tree_map(lambda t: torch.stack((t, t), -1)[..., 0], plan)
        x, _ = batch()
        assert torch.equal(fm.mix(x, strided, backend=backend), fm.mix(x, plan, backend=backend))


@each_backend
@pytest.mark.parametrize("method", METHODS | STORED)
def test_partners_that_repeat(method, backend):
    """Out of place anyone may be the partner of many, whatever the pairing was; not in place, and not for gradients."""
    x, _ = batch()
    for pairing, partner in (
        ("roll", [0, 0, 0, 0, 0, 0]),
        ("random", [1, 2, 3, 1, 1, 0]),
        ("flip", [5, 5, 3, 2, 1, 4]),
    ):
        plan = (METHODS | STORED)[method](per="sample", pairing=pairing).sample(B, SIZE, seed=5)
        plan = replace(plan, partner=torch.tensor(partner))
        mask = plan.mask().unsqueeze(1).double()
        expected = mask * x.double() + (1 - mask) * x[plan.partner].double()
        torch.testing.assert_close(fm.mix(x, plan, backend=backend), expected.float(), atol=1e-6, rtol=1e-5)
        for name in ("mix_", "mix of a leaf"):
            refused(lambda: call(name, plan, backend), "partner is not a permutation")  # noqa: B023
        masks = (plan.partner, plan.masks, int(plan.families), len(SIZE), int(plan.pairing), int(plan.per))
        operators = backends.operators("cpu", backend)
        refused(lambda: operators.mix_adjoint(x, *masks, plan.pixels), "partner is not a permutation")  # noqa: B023


@each_backend
def test_the_pixels_of_fmix(backend):
    """They must be there, whatever says that they are needed, and be those of the size."""
    x, _ = batch()
    for per in ("batch", "sample"):
        plan = fm.FMix(per=per).sample(B, SIZE, seed=5)
        soft = fm.FMix(per=per, max_soft=0.4).sample(B, SIZE, lam=0.5, seed=5)
        other = fm.FMix(per=per).sample(B, (5, 70), seed=5)
        for wrong in (replace(plan, pixels=None), replace(plan, pixels=other.pixels)):
            refused(lambda: fm.mix(x, wrong, backend=backend), "pixels")  # noqa: B023
            refused(lambda: fm.mix_(x.clone(), wrong, backend=backend), "pixels")  # noqa: B023
        refused(lambda: fm.mix(x, replace(soft, pixels=soft.pixels.int()), backend=backend), "pixels")  # noqa: B023
        masks = (plan.masks, int(plan.families), SIZE, int(plan.per))
        operators = backends.operators("cpu", backend)
        for pixels in (None, plan.pixels[:, :-1], torch.cat((plan.pixels, plan.pixels)), plan.pixels.long()):
            refused(lambda: operators.mask(*masks, pixels), "pixels")  # noqa: B023


@each_backend
def test_numbers_that_no_sampler_makes(backend):
    """Boxes out of the image, rates and weights of any size, NaN: the formulas as they stand, of every layout."""
    nan = float("nan")
    corners = [-(2**31), -3, 0, 2, 4, 9, 2**31 - 1]
    kinds = torch.tensor([Kind.CONSTANT, Kind.BOX, Kind.BOX, Kind.GAUSSIAN, Kind.GAUSSIAN_COMPLEMENT, Kind.BOX])
    for seed in range(12):
        torch.manual_seed(seed)
        geometry = torch.tensor(corners, dtype=torch.int32)[torch.randint(len(corners), (B, 6))]
        value = torch.tensor([0.0, 1.0, 0.3, -1.0, nan, -0.5, 1e38])[torch.randint(7, (B, 2))]
        kind = kinds[torch.randperm(B)].int()
        lam, weight = torch.ones(B), torch.ones(B).double()
        plan = fm.MixPlan(torch.randperm(B), lam, weight, packed(kind, geometry, value), SIZE, FORMULAS)
        for x in (torch.rand(B, 3, *SIZE), torch.rand(B, *SIZE, 3).movedim(-1, 1), torch.rand(B, 3, *SIZE[::-1]).mT):
            expected = fm.mix(x, plan, backend="reference")
            torch.testing.assert_close(fm.mix(x, plan, backend=backend), expected, equal_nan=True)
            torch.testing.assert_close(fm.mix_(x.clone(), plan, backend=backend), expected, equal_nan=True)


@each_backend
@pytest.mark.parametrize("kind", [-1, max(Kind) + 1, 2**31 - 1, -(2**31)])
def test_kinds_that_there_are_not(kind, backend):
    plan = fm.CutMix(per="sample").sample(B, SIZE, seed=5)
    plan.kind[2] = kind
    for name in ("mix", "mix_"):
        refused(lambda: call(name, plan, backend), "masks must be of the plan's families", "sample 2", str(kind))  # noqa: B023


@each_backend
def test_masks_of_other_families(backend):
    """A set of families is a promise, which backends compile for."""
    made = {"MixUp": fm.MixUp, "CutMix": fm.CutMix, "HMix": fm.HMix, "GMix": fm.GMix}
    plans = {method: make(per="sample").sample(B, SIZE, lam=0.4, seed=5) for method, make in made.items()}
    plans["left alone"] = fm.MixUp().sample(B, SIZE, lam=1.0)
    holds = {
        Families.CONSTANTS: {"MixUp", "left alone"},
        Families.CUTS: {"CutMix", "left alone"},
        Families.BOXES: {"CutMix", "HMix", "left alone"},
        Families.GAUSSIANS: {"GMix", "left alone"},
    }
    x, _ = batch()
    for families, held in holds.items():
        for method, plan in plans.items():
            promised = replace(plan, families=families)
            if method in held:
                assert torch.equal(fm.mix(x, promised, backend=backend), fm.mix(x, plan, backend=backend))
            else:
                for name in ("mix", "mix_", "mix of a leaf"):
                    refused(lambda: call(name, promised, backend), "masks must be of the plan's families")  # noqa: B023


@each_backend
@pytest.mark.parametrize("families", [0, sum(Families) + 1])
def test_families_that_there_are_not(families, backend):
    plan = fm.CutMix(per="sample").sample(B, SIZE, seed=5)
    refused(lambda: call("mix", replace(plan, families=Families(families)), backend), "families must be", str(families))


def test_a_plan_is_no_sequence():
    plan = fm.MixUp().sample(B, SIZE)
    for wrong in (lambda: plan[:2], lambda: plan[0], lambda: len(plan), lambda: list(plan), lambda: next(iter(plan))):
        with pytest.raises(TypeError, match=r"Mix the whole batch.*fm\.mix\(x, plan\)\.split"):
            wrong()
    assert plan
    assert fm.mix(batch()[0], plan).split(2)[2].shape == (2, 3, *SIZE)


def test_what_a_plan_holds_on_a_gpu_is_checked_if_asked_for(monkeypatch):
    """Seen through a CPU tensor that names another device."""

    class Elsewhere(torch.Tensor):
        device = torch.device("cuda")

    partner = torch.tensor([1, 2, 2]).as_subclass(Elsewhere)
    checks.partners(partner, permutation=True)
    monkeypatch.setitem(os.environ, "FUSEDMIX_CHECK_PLANS", "1")
    refused(lambda: checks.partners(partner, permutation=True), "not a permutation")
    refused(lambda: checks.partners(partner + 1), "[0, 3)", "3")
    monkeypatch.delenv("FUSEDMIX_CHECK_PLANS")
    plan = fm.FMix(per="sample").sample(3, SIZE)
    there = pytree.tree_map(lambda t: t.as_subclass(Elsewhere), plan)
    for wrong, words in (({"partner": partner + 1}, "partner"), ({"families": FORMULAS}, "masks")):
        same_batch("x", batch()[0][:3], replace(there, **wrong))
        with monkeypatch.context() as patch:
            patch.setitem(os.environ, "FUSEDMIX_CHECK_PLANS", "1")
            refused(lambda: same_batch("x", batch()[0][:3], replace(there, **wrong)), words)  # noqa: B023


def test_a_plan_stays_whole_as_a_pytree():
    """What is not a tensor comes back as it was."""
    for method in (fm.CutMix, fm.FMix):
        plan = method(per="sample").sample(B, SIZE)
        again = pytree.tree_map(lambda t: t, plan)
        for field in fields(plan):
            before, after = getattr(plan, field.name), getattr(again, field.name)
            assert before is after or before == after


# ---- operators ----


@each_backend
def test_fuzz(backend):
    """Arguments that don't belong together, between guard bytes; what one backend refuses the reference does."""
    if backend == "triton":
        fuzz_operators.fuzz(60, backend, "reference", first=5000)
    else:
        counts = fuzz_operators.fuzz(500, backend, "reference" if backend == "cpp" else None)
        assert min(counts.values()) > 50


@needs_cpp
@pytest.mark.thorough
def test_fuzz_without_avx2():
    command = [sys.executable, fuzz_operators.__file__, "--calls", "2000", "--first", "9000"]
    subprocess.run(command, env={**os.environ, "FUSEDMIX_ISA": "generic"}, check=True, timeout=300)


@each_backend
@pytest.mark.parametrize("name", ["mix", "mix_", "mix_labels", "cross entropy", "binary"])
def test_a_plan_that_is_cut_in_place_after_it_was_used(name, backend):
    """That its parts fit is found once; the operators look again."""
    for part in ("partner", "masks" if name in ("mix", "mix_") else "weight"):
        plan = fm.CutMix(per="sample").sample(B, SIZE, seed=3)
        call(name, plan, backend)
        cut = getattr(plan, part)
        cut.resize_(1, *cut.shape[1:])
        refused(lambda: call(name, plan, backend), part, "(6,")  # noqa: B023


@each_backend
def test_losses_take_classes_of_a_row_alone(backend):
    """Soft labels are no classes, and a class out of range has no logit: nor in a gradient."""
    operators = backends.operators("cpu", backend)
    z, partner, weight = torch.randn(B, K), torch.arange(B), torch.ones(B).double()
    plan = (partner, weight, int(Pairing.RANDOM), int(Per.SAMPLE))
    refused(lambda: operators.cross_entropy(z, z.softmax(1), *plan, None, 0.0, -100, 1), "labels")
    outside = torch.tensor([0, 1, 2, K, 0, 1])
    with pytest.raises((RuntimeError, ValueError), match="labels"):
        operators.binary_cross_entropy(z, outside, *plan, None, None, 0.0, None, 1)
    if backend == "cpp":  # the others have no logit to look for
        with pytest.raises((RuntimeError, ValueError), match="labels"):
            operators.binary_cross_entropy_backward(torch.ones(()), z, outside, *plan, None, None, 0.0, None, 1)


# ---- memory ----


@needs_cpp
def test_memory_that_is_not_there_is_named():
    cpp = backends.operators("cpu", "cpp")
    n = 2**45
    few = torch.zeros(1, 1, dtype=torch.int64)
    plan = (torch.tensor([1, 0]), torch.ones(2).double())
    box = fm.CutMix().sample(2, (3, 3))
    huge = torch.zeros(1).expand(2, 1, n)
    cases = {
        "the plan": (lambda: fm.MixUp(backend="cpp").sample(n, (3,), seed=1), 8 * n),
        "the targets": (lambda: cpp.mix_labels(few[0].expand(2), *plan, n, 0.0), 8 * n),
        "the masks": (lambda: cpp.mask(box.masks, int(box.families), (2**30, 2**20)), 8 * 2**50),
        "the mixed images": (lambda: cpp.mix(huge, plan[0], box.masks, int(box.families), 0, 0, 2), 8 * n),
    }
    box = replace(box, masks=torch.zeros_like(box.masks), families=Families.CONSTANTS)
    for what, (function, count) in cases.items():
        with pytest.raises(RuntimeError, match=rf"out of memory\. {count} bytes could not be allocated for {what}\."):
            function()


@pytest.mark.parametrize("side", [2**31, 2**40])
def test_sides_beyond_31_bits(side):
    """In 32 bits there is a box, and the place of a pixel."""
    one = torch.zeros(1, dtype=torch.uint8)
    for method in (fm.MixUp, fm.CutMix, fm.GMix):
        module = method(num_classes=2)
        refused(lambda: module.sample(2, (3, side)), "size[1]", str(side), "2147483647")  # noqa: B023
        refused(lambda: module(one.expand(2, 1, 1, side), torch.tensor([0, 1])), str(side), "2147483647")  # noqa: B023
        large = replace(method().sample(2, (1, 3)), size=(1, side), families=FORMULAS)
        for backend in ("reference", *(() if NO_CPP else ("cpp",))):
            refused(lambda: fm.mix(one.expand(2, 1, 1, side), large, backend=backend), str(side), "2147483647")  # noqa: B023
    refused(lambda: fm.FMix().sample(2, (2**16, 2**15)), "2^31")
    refused(lambda: fm.CutMix().sample(2, (2**31 - 1, 2**31 - 1, 3)), "2^63")


# ---- kernels for GPUs, which cannot refuse what they find ----

LOST = torch.tensor([1, 0, B, -1, 2**62, -(2**63)])  # partners, some of them beyond the batch
FOUND = torch.tensor([1, 0, 2, 3, 4, 5])  # who stand for themselves
LOOPS = torch.tensor([1, 2, 1, 2, 3, 4])  # no permutation: cycles that never come back


@pytest.fixture(scope="module")
def shim():
    shim_build = pytest.importorskip("shim_build")
    if shim_build.missing() is not None:
        pytest.skip(str(shim_build.missing()))
    from shim_backend import Shim

    return Shim()


def hand_made(method, partner):
    plan = method(per="sample", pairing="random").sample(B, SIZE, seed=5)
    return (partner, plan.masks, int(plan.families), len(SIZE), int(Pairing.RANDOM), int(plan.per), plan.pixels)


@pytest.mark.thorough
@pytest.mark.parametrize("method", [fm.MixUp, fm.CutMix, fm.GMix, fm.FMix])
@pytest.mark.parametrize("shared_bytes", [99 * 1024, 1], ids=["columns", "parts"])
def test_cuda_kernels_stay_in_the_batch(shim, monkeypatch, method, shared_bytes):
    """The shim raises where memory is touched that is nobody's."""
    monkeypatch.setattr(shim, "shared_bytes", shared_bytes)  # for columns of all samples, or for none
    x, y = batch()
    x[0, 0, 0] = 7
    for partner, found in ((LOST, FOUND), (LOOPS, LOOPS)):
        expected = reference.mix(x, MaskArguments(*hand_made(method, found)))
        torch.testing.assert_close(shim.mix(x, *hand_made(method, partner)), expected, atol=1e-5, rtol=1e-5)
        inside = x.clone()
        shim.mix_(inside, *hand_made(method, partner))
        torch.testing.assert_close(inside, expected, atol=1e-5, rtol=1e-5)
    adjoint = shim.mix_adjoint(x, *hand_made(method, LOST))
    expected = reference.mix_adjoint(x, MaskArguments(*hand_made(method, FOUND)))
    torch.testing.assert_close(adjoint, expected, atol=1e-5, rtol=1e-5)
    # Where the host can read the partners it sees that some repeat, or are nobody's.
    once = shim.mix(x, *hand_made(method, LOOPS), on_host=True)
    torch.testing.assert_close(once, reference.mix(x, MaskArguments(*hand_made(method, LOOPS))), atol=1e-5, rtol=1e-5)
    for partner, operator, words in (
        (LOOPS, shim.mix_, "not a permutation"),
        (LOOPS, shim.mix_adjoint, "not a permutation"),
        (LOST, shim.mix, "partner must be in"),
    ):
        with pytest.raises(ValueError, match=words):
            operator(x, *hand_made(method, partner), on_host=True)
        assert shim.kernels() == []
    weight = torch.linspace(0.1, 0.9, B, dtype=torch.float64)
    assert torch.equal(shim.mix_labels(y, LOST, weight, K, 0.1), reference.mix_labels(y, FOUND, weight, K, 0.1))


@pytest.mark.thorough
def test_cuda_losses_stay_in_the_batch(shim):
    z, y, weight = torch.randn(B, K), batch()[1], torch.linspace(0.1, 0.9, B, dtype=torch.float64)
    lost, found = ((z, y, p, weight, int(Pairing.RANDOM), int(Per.SAMPLE), None) for p in (LOST, FOUND))
    got, want = (f.cross_entropy(*a, 0.1, -100, 0)[0] for f, a in ((shim, lost), (REFERENCE, found)))
    torch.testing.assert_close(got, want)
    got, want = (f.binary_cross_entropy(*a, None, 0.1, None, 0) for f, a in ((shim, lost), (REFERENCE, found)))
    torch.testing.assert_close(got, want)
    grad = torch.ones(())
    got, want = (
        f.binary_cross_entropy_backward(grad, *a, None, 0.1, None, 1) for f, a in ((shim, lost), (REFERENCE, found))
    )
    torch.testing.assert_close(got, want)


KINDS = torch.tensor([Kind.CONSTANT, Kind.FOURIER_RELEASED, Kind.FOURIER, max(Kind) + 1, -1, Kind.BOX]).int()


def unknown(x, mix):
    """Samples whose mask there is not become NaN, on their own pixels."""
    _, records, _, *rest, _ = hand_made(fm.CutMix, FOUND)
    records = packed(KINDS, geometry(records), torch.full((B, 2), 0.5))
    out = mix(x, torch.arange(B).roll(1), records, int(FORMULAS), *rest, None)
    return out.flatten(1).isnan().all(1).tolist(), out.flatten(1).isnan().any(1).tolist()


@pytest.mark.thorough
def test_masks_that_there_are_not_make_nan_on_cuda(shim):
    x, _ = batch()
    assert unknown(x, shim.mix) == ([False, True, True, True, True, False],) * 2
    records = hand_made(fm.CutMix, FOUND)[1]
    records = packed(KINDS, geometry(records), value(records))
    assert shim.mask(records, int(FORMULAS), SIZE).flatten(1).isnan().all(1).tolist() == [0, 1, 1, 1, 1, 0]


@pytest.mark.skipif(not INTERPRETED, reason="needs Triton's interpreter")
@pytest.mark.thorough
def test_masks_that_there_are_not_make_nan_with_triton():
    from fusedmix.backends.triton import mix_launch

    def mix(x, *masks):
        out = torch.empty_like(x)
        mix_launch.apply(x, out, masks)
        return out

    x, _ = batch()
    assert unknown(x, mix) == ([False, True, True, True, True, False],) * 2
    records = hand_made(fm.CutMix, FOUND)[1]
    records = packed(KINDS, geometry(records), value(records))
    for families in (FORMULAS, Families.CUTS, Families.GAUSSIANS):
        made = mix_launch.write_masks(records, families, SIZE)
        assert torch.equal(made.isnan(), reference.mask(records, families, SIZE).isnan())
        assert made.flatten(1).isnan().all(1).tolist() == [False, True, True, True, True, not families.boxed]


@pytest.mark.skipif(not INTERPRETED, reason="needs Triton's interpreter")
@pytest.mark.thorough
@pytest.mark.parametrize("method", [fm.CutMix, fm.FMix])
def test_triton_kernels_stay_in_the_batch(method):
    """The images lie among others of the same tensor: what is read beside them would show."""
    from fusedmix.backends.triton import labels_kernel, mix_launch

    x, y = batch()
    expected = reference.mix(x, MaskArguments(*hand_made(method, FOUND)))
    for adjoint, inside in ((False, False), (False, True), (True, False)):
        room = torch.full((3 * B, 3, *SIZE), float("nan"))
        src = room[B : 2 * B].copy_(x)
        dst = src if inside else torch.full((3 * B, 3, *SIZE), 5.0)[B : 2 * B]
        mix_launch.apply(src, dst, hand_made(method, LOST), adjoint=adjoint)
        assert room[:B].isnan().all()
        assert room[2 * B :].isnan().all()
        if not adjoint:
            torch.testing.assert_close(dst, expected, atol=1e-5, rtol=1e-5)
        mix_launch.apply(src, dst, hand_made(method, LOOPS), adjoint=adjoint)  # ends
        assert room[:B].isnan().all()
        assert room[2 * B :].isnan().all()
    weight = torch.linspace(0.1, 0.9, B, dtype=torch.float64)
    assert torch.equal(labels_kernel.mix(y, LOST, weight, K, 0.1), reference.mix_labels(y, FOUND, weight, K, 0.1))


def test_the_fuzz_finds_what_is_wrong(monkeypatch):
    """An operator that writes beside a tensor, one that writes and then refuses, one that refuses what is right."""

    class Wrong:
        def __init__(self, do):
            self.do = do

        def __getattr__(self, name):
            return lambda *arguments: self.do(arguments)

    def beside(arguments):
        tensor = next(t for t in arguments if isinstance(t, torch.Tensor) and t.numel())
        tensor.as_strided((1,), (1,), tensor.storage_offset() - 1).view(torch.uint8)[-1:].fill_(0)
        return tensor

    def half_written(arguments):
        next(t for t in arguments if isinstance(t, torch.Tensor) and t.numel()).zero_()
        raise ValueError("too late")

    def refuse(arguments):
        raise ValueError("no")

    for do, words in ((beside, "written before"), (half_written, "was written"), (refuse, "returned")):
        monkeypatch.setattr(torch.ops, "fusedmix_wrong", Wrong(do), raising=False)
        with pytest.raises(AssertionError, match=words):
            fuzz_operators.fuzz(60, "wrong", "reference" if do is refuse else None)
