"""The label losses and their gradients, against the reference: results and every byte."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from batches import FLOATS
from callers import CUDA, INTERPRETED, REFERENCE, cases, shown
from fusedmix.methods import Pairing, Per, Reduction
from oracle import assert_losses, compute_of

CLASSES = (1, 2, 7, 8, 33, 1000, 2049, 21841)
LABELS = (*FLOATS, torch.bool, torch.int8, torch.int64, torch.uint32)


@pytest.fixture
def shim(shim):
    shim.module.set_yield_probability(1 / 256)
    return shim


@pytest.fixture
def large(shim):
    """A chip of many multiprocessors: rows are read in parts."""
    shim.multiprocessors = 132
    shim.module.set_yield_probability(1 / 32)
    return shim


def aligned(*shape, dtype=torch.float32, offset=0):
    """Memory that begins so many elements after a multiple of 16 bytes."""
    count = torch.Size(shape).numel()
    whole = torch.empty(count + 32 + offset, dtype=dtype)
    start = (-whole.data_ptr() % 16) // whole.element_size() + offset
    return whole[start : start + count].view(shape)


def mixed_for(b, k, pairing=Pairing.RANDOM, per=Per.SAMPLE, soft=None, weighted=False, dtype=torch.float32, seed=0):
    """labels, partner, weight, pairing, per and class_weight of a loss."""
    torch.manual_seed(seed + 100 * b + k)
    partner = {
        Pairing.ROLL: torch.arange(b).roll(1),
        Pairing.FLIP: torch.arange(b).flip(0),
        Pairing.RANDOM: torch.randperm(b),
    }[pairing]
    weight = torch.rand(1 if per == Per.BATCH else b, dtype=torch.float64).expand(b).contiguous()
    labels = torch.randint(k, (b,)) if soft is None else torch.rand(b, k).mul(1.9).to(soft)
    return labels, partner, weight, pairing, per, torch.rand(k, dtype=compute_of(dtype)) if weighted else None


def both(shim, z, mixed, smoothing=0.1, ignore=-100, reduction=Reduction.MEAN, pos_weight=None, threshold=None, **how):
    """(losses and gradients of both losses by the kernels, the same by the reference)."""
    found = []
    for operators, options in ((shim, how), (REFERENCE, {})):
        results = []
        if mixed[0].ndim == 1:
            loss, statistics, scale = operators.cross_entropy(z, *mixed, smoothing, ignore, reduction, **options)
            grad = torch.linspace(0.5, 2, max(1, loss.numel()), dtype=loss.dtype)[: loss.numel()].reshape(loss.shape)
            args = (grad, z, *mixed, statistics, scale, smoothing, ignore)
            results += [loss, operators.cross_entropy_backward(*args, **options)]
        hard = mixed[0] if mixed[0].ndim == 2 else mixed[0].clamp(0)
        args = (z, hard, *mixed[1:], pos_weight, smoothing, threshold, reduction)
        loss = operators.binary_cross_entropy(*args, **options)
        grad = torch.linspace(0.5, 2, max(1, loss.numel()), dtype=loss.dtype)[: loss.numel()].reshape(loss.shape)
        found.append([*results, loss, operators.binary_cross_entropy_backward(grad, *args, **options)])
    return found


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("k", CLASSES)
def test_any_size(shim, dtype, k):
    for b, (reduction, weighted) in zip((1, 3, 2), ((0, True), (2, False), (1, True)), strict=True):
        mixed = mixed_for(b, k, weighted=weighted, dtype=dtype)
        z = aligned(b, k, dtype=dtype).copy_(3 * torch.randn(b, k))
        pos_weight = 2 * mixed[-1] if weighted else None
        assert_losses(*both(shim, z, mixed, 0.1 * weighted, reduction=reduction, pos_weight=pos_weight, threshold=None))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_any_layout(shim, dtype):
    for k, pairing, per in itertools.product(
        (5, 70), (Pairing.ROLL, Pairing.FLIP, Pairing.RANDOM), (Per.BATCH, Per.SAMPLE)
    ):
        mixed = mixed_for(4, k, pairing, per, dtype=dtype)
        x = 3 * torch.randn(4, k, dtype=torch.float64)
        for z in (
            aligned(4, k, dtype=dtype, offset=1).copy_(x),
            aligned(4, k + 3, dtype=dtype)[:, 2 : k + 2].copy_(x),
            aligned(k, 4, dtype=dtype).t().copy_(x),
            aligned(4, 2 * k, dtype=dtype)[:, ::2].copy_(x),
            x.to(dtype)[:, :1].expand(4, k),
        ):
            assert_losses(*both(shim, z, mixed, on_host=per == Per.BATCH))


@pytest.mark.parametrize("label_dtype", LABELS, ids=str)
@pytest.mark.parametrize("threshold", [None, 0.4])
def test_soft_labels(shim, label_dtype, threshold):
    for k, dtype in ((6, torch.bfloat16), (90, torch.float32), (3, torch.float64)):
        labels, *rest = mixed_for(4, 2 * k, soft=label_dtype, dtype=dtype)
        labels = labels[:, 1::2]
        z = aligned(4, k, dtype=dtype).copy_(3 * torch.randn(4, k))
        pos_weight = torch.rand(k).to(compute_of(dtype))
        assert_losses(*both(shim, z, (labels, *rest), threshold=threshold, pos_weight=pos_weight))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_rows_in_parts(large, dtype, weighted):
    """Rows that begin wherever they can after a multiple of 16 bytes; most labels are not of the first part."""
    b, k = 8, 4099
    z = aligned(b, k, dtype=dtype).copy_(3 * torch.randn(b, k))
    mixed = mixed_for(b, k, weighted=weighted, dtype=dtype)
    pos_weight = 2 * mixed[-1] if weighted else None
    for smoothing, reduction in ((0.0, Reduction.NONE), (0.1, Reduction.MEAN)):
        assert_losses(*both(large, z, mixed, smoothing, reduction=reduction, pos_weight=pos_weight))
    for operator, options in (
        (large.cross_entropy, (-100, Reduction.SUM)),
        (large.binary_cross_entropy, (None, Reduction.SUM)),
    ):
        operator(z, *mixed, *((None,) if operator == large.binary_cross_entropy else ()), 0.1, *options)
        assert large.launches()[0][1]["blocks"] >= 2 * b
        assert "the sums of parts of rows" in large.launches()[1][1]["buffers"]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_parts_whose_classes_are_all_masked(large, dtype):
    """By a number far below the others, which costs these no digits."""
    b, k = 3, 5003
    _, partner, *rest = mixed_for(b, k, dtype=dtype)
    labels = torch.tensor([k - 2, 3, k - 1])
    for masked, j in itertools.product((-1e4, torch.finfo(dtype).min), (torch.arange(b), partner)):
        z = aligned(b, k, dtype=dtype).copy_(3 * torch.randn(b, k))
        z[0, : k - 5], z[1, 9:], z[2, : k // 2] = masked, masked, masked
        assert_losses(*both(large, z, (labels, j, *rest), 0.0, reduction=Reduction.NONE))


def test_soft_labels_of_rows_in_parts(large):
    labels, *rest = mixed_for(3, 2050, soft=torch.float32)
    z = aligned(3, 2050).copy_(3 * torch.randn(3, 2050))
    assert_losses(*both(large, z, (labels, *rest)))
    assert large.launches()[0][1]["blocks"] >= 6


@pytest.mark.parametrize("dtype", FLOATS[1:], ids=str)
def test_no_bit_depends_on_the_order_of_threads(large, dtype):
    b, k = 3, 5003
    mixed, z = mixed_for(b, k), aligned(b, k, dtype=dtype).copy_(torch.randn(b, k))
    runs = []
    for seed in range(4):
        large.module.seed(seed)
        cross = large.cross_entropy(z, *mixed, 0.1, -100, Reduction.MEAN)
        runs.append((*cross, large.binary_cross_entropy(z, *mixed, None, 0.1, None, Reduction.MEAN)))
    for again in runs[1:]:
        assert all(map(torch.equal, runs[0], again))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("b", "k"), [(256, 21841), (256, 1000), (64, 21841), (4096, 1000), (2, 10), (1, 2**20)])
def test_a_chip_is_kept_busy(large, dtype, b, k):
    """Every multiprocessor has a block where there is work for all; backwards no thread has more than four vectors."""
    multiprocessors, z = 132, torch.empty(b, k, dtype=dtype)
    loss = {"logits": z, "labels": torch.zeros(b, dtype=torch.int64), "smoothing": 0.0, "ignore": -100}
    loss |= dict.fromkeys(("class_weight", "pos_weight", "threshold"))
    width = 1 if dtype == torch.float64 else 16 // dtype.itemsize
    for gradient, threads in ((None, 256), (torch.empty_like(z), 128)):
        shape = large.module.loss_shape(loss, gradient, multiprocessors)
        lanes = 2**shape.log_lanes
        assert shape.wide == (width > 1)
        assert shape.parts == 1 or lanes == threads
        assert shape.blocks == -(-b // (threads // lanes)) * shape.parts
        assert shape.parts * shape.length >= k // width
        assert b * (k // width) < multiprocessors * threads or shape.blocks >= multiprocessors or shape.parts == 32
        assert gradient is None or shape.length <= 4 * lanes


def test_too_many_classes_are_refused(large):
    z, y = torch.empty(1, 1).expand(1, 2**30 + 1), torch.zeros(1, dtype=torch.int64)
    loss = {"logits": z, "labels": y, "smoothing": 0.0, "ignore": -100}
    loss |= dict.fromkeys(("class_weight", "pos_weight", "threshold"))
    for gradient in (None, z):
        with pytest.raises(
            ValueError, match=r"^fusedmix: logits must have at most 2\^30 classes on a GPU, but have 1073741825\.$"
        ):
            large.module.loss_shape(loss, gradient, 132)


@pytest.mark.parametrize("reduction", [Reduction.NONE, Reduction.SUM, Reduction.MEAN])
@pytest.mark.parametrize("repeats", [13, 430])
def test_ignored_labels_infinities_and_nan(large, reduction, repeats):
    inf, nan = torch.inf, torch.nan
    rows = [
        [0.0, -inf, 1.0, 2.0, 3.0],
        [-inf, -inf, 1.0, 0.0, 1.0],
        [1.0, nan, 0.0, 1.0, 1.0],
        [-inf] * 5,
        [inf, *[0.0] * 4],
    ]
    z, k = torch.tensor(rows).repeat(1, repeats), 5 * repeats
    for seed, smoothing, labels in itertools.product(
        range(2), (0.0, 0.2), ([0, 1, 2, 3, 4], [-100, 1, k - 2, 3, -100], [-100] * 5, [0, k + 5, 2, -5, 3])
    ):
        mixed = (torch.tensor(labels), *mixed_for(5, k, seed=seed)[1:])
        found = []
        for operators in (large, REFERENCE):
            loss, statistics, scale = operators.cross_entropy(z, *mixed, smoothing, -100, reduction)
            grad = torch.ones_like(loss)
            found.append([loss, operators.cross_entropy_backward(grad, z, *mixed, statistics, scale, smoothing, -100)])
        assert_losses(*found)


def test_an_empty_batch(shim):
    for reduction in (Reduction.NONE, Reduction.SUM, Reduction.MEAN):
        assert_losses(*both(shim, torch.empty(0, 5), mixed_for(0, 5), reduction=reduction))


@given(st.integers(1, 5), st.integers(1, 300), st.sampled_from(FLOATS), st.integers(0, 3), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_whatever_the_order_of_threads(built, b, k, dtype, offset, seed):
    built.module.seed(seed)
    z = aligned(b, k, dtype=dtype, offset=offset).copy_(torch.randn(b, k))
    assert_losses(*both(built, z, mixed_for(b, k, dtype=dtype, seed=seed), reduction=Reduction.NONE))


@pytest.mark.parametrize(
    ("watched", "dtype", "k"),
    [*cases(CUDA, FLOATS[:3], (1000, 1003, 5000)), *cases(INTERPRETED, FLOATS, (7, 64, 5003))],
    ids=shown,
    indirect=["watched"],
)
def test_logits_are_read_once_and_gradients_written_once(watched, dtype, k):
    """Whatever the number of classes, but for the logits of two labels, which are read once more for each of these."""
    mixed = mixed_for(3, k)
    z = aligned(3, k, dtype=dtype).copy_(torch.randn(3, k))
    of_labels = torch.zeros(3, k, dtype=torch.int64)
    for y in (mixed[0], mixed[0][mixed[1]]):
        of_labels[torch.arange(3), y] += 1

    def forward(name, picked, *args):
        made = watched.call(name, z, *mixed, *args)
        assert len(watched.kernels()) == 2
        assert torch.equal(watched.counts("logits", z)[0], 1 + picked)
        watched.assert_clean()
        return made

    def backward(name, loss, *args):
        gradient = watched.call(name, loss, z, *mixed, *args)
        assert len(watched.kernels()) == 1
        assert (watched.counts("logits", z)[0] == 1).all()
        assert (watched.counts("gradient", gradient)[1] == 1).all()
        watched.assert_clean()

    loss, *found = forward("cross_entropy", of_labels, 0.1, -100, Reduction.MEAN)
    backward("cross_entropy_backward", loss, *found, 0.1, -100)
    options = (None, 0.1, None, Reduction.MEAN_OF_ALL)
    backward("binary_cross_entropy_backward", forward("binary_cross_entropy", 0 * of_labels, *options), *options)


@pytest.mark.parametrize("dtype", FLOATS[:3], ids=str)
@pytest.mark.parametrize("k", [1000, 1003, 5000])
def test_logits_and_gradients_move_16_bytes_at_a_time(shim, dtype, k):
    """Whatever the number of classes, but for the ends of rows and the logits of two labels."""
    b, width = 3, 16 // dtype.itemsize
    mixed = mixed_for(b, k)
    z = aligned(b, k, dtype=dtype).copy_(torch.randn(b, k))
    loss, statistics, scale = shim.cross_entropy(z, *mixed, 0.1, -100, Reduction.MEAN)
    forward = shim.launches()[0][1]["buffers"]["logits"]["read_widths"]
    shim.cross_entropy_backward(loss, z, *mixed, statistics, scale, 0.1, -100)
    (backward,) = (launch["buffers"] for _, launch in shim.launches())
    vectors = sum((k - (-z[i].data_ptr() % 16) // dtype.itemsize) // width for i in range(b))
    ends = b * k - vectors * width
    assert forward.pop(16) == backward["logits"]["read_widths"].pop(16) == backward["gradient"]["write_widths"].pop(16)
    assert sum(forward.values()) == ends + 2 * b
    assert sum(backward["logits"]["read_widths"].values()) == ends
    shim.binary_cross_entropy_backward(loss, z, *mixed, None, 0.1, None, Reduction.MEAN_OF_ALL)
    assert shim.launches()[0][1]["buffers"]["gradient"]["write_widths"][16] == vectors


def test_approximations(shim):
    """exp and log1p as the CPU has them, to a few units in the last place."""
    x = torch.cat(
        [torch.linspace(-110, 0, 20001), torch.linspace(-720, -80, 5001), -torch.logspace(-30, 1, 3001)]
    ).double()
    wide, narrow = (torch.from_numpy(y) for y in shim.module.exp_nonpositive(x.numpy()))
    for got, at, least, limit in ((wide, x, -708.0, 2), (narrow, x.float(), -87.3, 2)):
        exact = at.double().exp()
        there = at >= least
        unit = torch.finfo(got.dtype).eps
        assert ((got.double() - exact).abs() <= limit * unit * exact)[there].all()
        assert not got[at < least].any()
    u = torch.cat(
        [torch.linspace(0, 1, 20001, dtype=torch.float64), torch.logspace(-300, 0, 3001, dtype=torch.float64)]
    )
    wide, narrow = (torch.from_numpy(y) for y in shim.module.log1p_unit(u.numpy()))
    for got, at in ((wide, u), (narrow, u.float())):
        exact = at.double().log1p()
        assert ((got.double() - exact).abs() <= 4 * torch.finfo(got.dtype).eps * exact + 2e-45).all()
    special = torch.tensor([-torch.inf, torch.nan, 0.0, -0.0], dtype=torch.float64)
    for got in shim.module.exp_nonpositive(special.numpy()):
        torch.testing.assert_close(torch.from_numpy(got).double(), special.exp(), equal_nan=True, rtol=0, atol=0)
