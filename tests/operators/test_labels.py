"""Targets: mixed classes and soft labels, of every dtype and layout."""

from __future__ import annotations

import itertools

import pytest
import torch

import fusedmix as fm
from batches import FLOATS, images_of, name_of, odd_classes, soft, weights_and_partners
from conftest import INTEGERS, METHODS
from fusedmix import backends
from fusedmix.methods import Pairing
from operators.on_shim import assert_targets, assert_written_once
from oracle import alike, dense

K = 7


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("dtype", [*INTEGERS, torch.bool, *FLOATS], ids=name_of)
def test_labels(native, dtype, smoothing):
    """Of any type: classes, and numbers of them around the 512 targets of a block, in any stride; soft labels
    contiguous, transposed, a slice in both dims, one row for all. Integers become float32."""
    mix_labels = backends.operators("cpu", "cpp").mix_labels if native is None else native.mix_labels
    sizes = ((1, 1), (1, 1000), (5, 2), (7, 127), (9, 130), (33, 10), (33, 129), (33, 1000))
    for n, classes in ((0, 7), *sizes) if native is None else sizes:
        partner, weight = weights_and_partners(n)
        how, given = {} if native is None else {"on_host": n < 20}, []
        if dtype in INTEGERS or (dtype == torch.bool and classes > 1 and native is not None):  # cpp takes no bool
            hard = (torch.arange(3 * n) * 11 % (2 if dtype == torch.bool else min(120, classes))).to(dtype)
            given += [hard[:n], hard[::3], hard[:1].expand(n)]
        if n * classes < 1200:
            many = soft(dtype, 2 * n, 3 * classes)[1::2, ::3]
            given += [many.contiguous(), soft(dtype, classes, n).t(), many, soft(dtype, 1, classes).expand(n, classes)]
        for labels in given:
            args = labels, partner, weight, classes, smoothing
            out, expected = mix_labels(*args, **how), dense(*args)
            assert out.dtype == expected.dtype
            assert alike(out, expected)
            if native is not None:
                assert_written_once(native, "targets", out)


@pytest.mark.parametrize("dtype", INTEGERS, ids=name_of)
def test_classes_out_of_range(shim, dtype):
    """Rows without a one: the lowest and the highest number of a type, and one that is 3 in its lower 32 bits."""
    labels = odd_classes(dtype)
    partner, weight = weights_and_partners(len(labels))
    for smoothing in (0.0, 0.2):
        out = shim.mix_labels(labels, partner, weight, 10, smoothing)
        assert_targets(shim, out, dense(labels, partner, weight, 10, smoothing))
    assert not dense(labels, torch.arange(len(labels)), weight, 10, 0.0)[-1].any()


# By class: none, and one too many; and the lowest and highest numbers of a type.
OUT_OF_RANGE = [
    (dtype, value)
    for dtype in INTEGERS
    for value in (K, -1, torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    if torch.iinfo(dtype).min <= value and not 0 <= value < K
]


@pytest.mark.usefixtures("cpp")
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


@pytest.mark.parametrize(("n", "classes"), [(1, 1), (3, 5), (7, 400), (2, 1023)])
def test_targets_are_written_once(interpreted, n, classes):
    partner, weight = torch.arange(n).roll(1), torch.linspace(0, 1, n, dtype=torch.float64)
    for labels in (torch.arange(n) % classes, torch.rand(n, 2 * classes)[:, ::2].bfloat16()):
        for pairing, one_weight in itertools.product((Pairing.ROLL, Pairing.FLIP, Pairing.RANDOM), (False, True)):
            with interpreted.logged() as launches:
                out = interpreted.labels_kernel.mix(labels, partner, weight, classes, 0.1, pairing, one_weight)
            (of,) = launches
            interpreted.assert_written_once(of, [labels, partner, weight], [out])
