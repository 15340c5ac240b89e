"""The operators' contract: schema, fake, mutation and dispatch, by torch.library.opcheck, for every backend."""

from __future__ import annotations

import math

import pytest
import torch

import fusedmix as fm
from fusedmix import backends
from fusedmix.methods import Method, Pairing, Per, spec_row
from fusedmix.ops import GeneratorHandle

PLAN = fm.RandomMix([fm.MixUp(), fm.CutMix(), fm.HMix(), fm.GMix()], per="sample").sample(5, (6, 7), seed=3)
MASKS = (PLAN.partner, PLAN.kind, PLAN.geometry, PLAN.value, 2, int(Pairing.ROLL), int(Per.SAMPLE))
SPEC = torch.cat([spec_row(Method.CUTMIX, alpha=0.5), spec_row(Method.SAMPLE_PAIRING, lam=0.5)])
LABELS = torch.tensor([0, 1, 1, 0, 2])


def request(pairing=Pairing.RANDOM, per=Per.SAMPLE, p=0.7, lam=None):
    return SPEC, 5, [6, 7], int(pairing), int(per), p, lam, LABELS


@pytest.fixture(params=[name for name in backends.NAMES if name == "reference"])
def operators(request):
    """The namespace of every backend that runs on the CPU here."""
    return backends.operators("cpu", request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_mix(operators, dtype, layout):
    x = (torch.rand(5, 3, 6, 14) * 255).to(dtype)[..., ::2]
    if layout != "sliced":
        x = x.contiguous(memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format)
    torch.library.opcheck(operators.mix.default, (x, *MASKS))
    torch.library.opcheck(operators.mix_.default, (x, *MASKS))
    if dtype != torch.uint8:
        torch.library.opcheck(operators.mix_adjoint.default, (x, *MASKS))


@pytest.mark.parametrize("pairing", Pairing)
@pytest.mark.parametrize("per", [Per.BATCH, Per.SAMPLE])
def test_sample(operators, pairing, per):
    seed = torch.tensor(-5)
    torch.library.opcheck(operators.sample.default, (*request(pairing, per), seed, None, None, torch.device("cpu")))
    torch.library.opcheck(torch.ops.fusedmix.draw_host.default, (*request(pairing, per), 0, 4))


@pytest.mark.parametrize("lam", [torch.tensor(0.3), torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0])], ids=["one", "each"])
def test_sample_given_lam(operators, lam):
    torch.library.opcheck(
        operators.sample.default, (*request(lam=lam), torch.tensor(1), None, None, torch.device("cpu"))
    )
    torch.library.opcheck(torch.ops.fusedmix.draw_host.default, (*request(lam=lam), 0, 4))


def test_mask(operators):
    torch.library.opcheck(operators.mask.default, (PLAN.kind, PLAN.geometry, PLAN.value, [6, 7]))


@pytest.mark.parametrize(
    "labels",
    [LABELS, LABELS.to(torch.uint8), torch.rand(5, 3), torch.rand(5, 3).half()],
    ids=lambda y: f"{y.dtype}-{y.ndim}D",
)
def test_mix_labels(operators, labels):
    torch.library.opcheck(operators.mix_labels.default, (labels, PLAN.partner, PLAN.weight, 3, 0.1))


def test_draw_seed():
    # What is drawn differs from run to run, so only what does not compare runs is checked.
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        torch.ops.fusedmix.draw_seed.default, (0,), {"device": torch.device("cpu")}, test_utils=checks
    )
    handle = GeneratorHandle(torch.Generator().manual_seed(0))
    drawn = [int(torch.ops.fusedmix.draw_seed(handle.key, device=torch.device("cpu"))) for _ in range(1000)]
    assert len(set(drawn)) == 1000
    # uniform in 0..2^63-1: mean 2^62, standard error 2^63/√(12·1000)
    assert abs(sum(drawn) / 1000 - 2**62) < 4 * 2**63 / math.sqrt(12 * 1000)


def test_random_operators_are_tagged():
    """Without the tag a compiler may merge two draws into one, or draw again in the backward pass."""
    for operator in (torch.ops.fusedmix.draw_host.default, torch.ops.fusedmix.draw_seed.default):
        assert torch.Tag.nondeterministic_seeded in operator.tags
