"""GridMix: which cells are drawn, what masks they make, and that the backends agree on both."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

import fusedmix as fm
from callers import Operators, each_backend
from conftest import NO_CPP
from fusedmix import backends
from fusedmix.draws import CPU
from fusedmix.methods import WIDTH, Column, Kind, Number, Per
from mask_formulas import SHORT_OFFSETS, assert_means, moments, sampled_moments
from oracle import expected_adjoint, expected_mix, over_batch
from test_agreement import Case, mask_of, plan_of, values

GRIDS = [  # images of a size, and grids on them: of few cells and of 128, of one pixel each, of one cell
    (Case((6, 2, 13)), 1, (4,)),
    (Case((5, 3, 7, 9)), 2, (2, 3)),
    (Case((3, 3, 16, 40)), 2, (8, 16)),
    (Case((4, 1, 5, 6)), 2, (5, 6)),
    (Case((4, 1, 5, 6)), 2, (1, 1)),
    (Case((3, 2, 5, 4, 6)), 3, (5, 4, 6)),
]
GRIDS = [(case._replace(spatial=spatial), cells) for case, spatial, cells in GRIDS]
LARGE = [  # of more than 128 cells: of a pixel more or less, of one pixel each
    (Case((3, 2, 150), 1), (149,)),
    (Case((5, 3, 16, 40)), (14, 14)),
    (Case((3, 2, 17, 33)), (17, 33)),
    (Case((3, 2, 9, 8, 7), 3), (6, 8, 7)),
]
both_samplings = pytest.mark.parametrize("sampling", ["host", "device"])


def of_cells(plan: fm.MixPlan) -> np.ndarray:
    """(n, cells) of the plan's masks: M at the first pixel of each cell, cells having to be of one value each."""
    masks, cells = plan.mask().numpy(), plan.masks[0, 4 - len(plan.size) : 4].tolist()
    of_pixel = np.ravel_multi_index(
        np.ix_(*(np.arange(side) * count // side for side, count in zip(plan.size, cells, strict=True))), cells
    ).ravel()
    flat = masks.reshape(len(masks), -1)
    found = flat[:, np.unique(of_pixel, return_index=True)[1]]
    assert (flat == found[:, of_pixel]).all()
    assert np.abs(plan.weight.numpy() - flat.mean(1, dtype=np.float64)).max() <= 1e-12
    return found


@each_backend
@pytest.mark.parametrize("per", ["batch", "pair", "sample"])
@pytest.mark.parametrize(("case", "cells"), GRIDS, ids=str)
def test_agreement(backend, case, cells, per):
    module = fm.GridMix(cells=cells, per=per, pairing="flip", sampling="device", backend="reference")
    for seed, dtype in enumerate((torch.float32, torch.bfloat16, torch.uint8)):
        plan = plan_of(module, case, seed, backend)
        x = values(case, dtype, seed).to(backend.device)
        w = over_batch(mask_of(plan, backend), x, plan.size)
        assert expected_mix(x, w, plan.partner, backend.one_rounding).holds(backend.mix(x, plan))
        if dtype != torch.uint8:
            assert expected_adjoint(x, w, plan.partner).holds(backend.mix_adjoint(x, plan))


@each_backend
@pytest.mark.parametrize("per", ["batch", "pair", "sample"])
@pytest.mark.parametrize(("case", "cells"), LARGE, ids=str)
def test_agreement_of_large_grids(backend, case, cells, per):
    module = fm.GridMix(cells=cells, per=per, pairing="flip", sampling="device", backend="reference")
    batch, size = case.shape[0], case.shape[-case.spatial :]
    for seed, dtype in enumerate((torch.float32, torch.bfloat16, torch.uint8)):
        request = module._request(batch, size, None, None)
        for drawn, expected in zip(
            backend.sample(request, seed), Operators("reference").sample(request, seed), strict=True
        ):
            assert (drawn.cpu().double() - expected.double()).abs().max() <= 1e-13
        plan = module.sample(batch, size, seed=seed).to(backend.device)
        assert torch.equal(plan.mask().cpu(), plan.to("cpu").mask())
        x = values(case, dtype, seed).to(backend.device)
        in_a_batch = x.repeat_interleave(2, 0).repeat_interleave(2, -1)[1::2, ..., ::2]
        w = over_batch(mask_of(plan, backend), x, plan.size)
        expected = expected_mix(x, w, plan.partner, backend.one_rounding)
        assert expected.holds(backend.mix(x, plan))
        assert expected.holds(backend.mix(in_a_batch, plan))
        if dtype != torch.uint8:
            assert expected_adjoint(x, w, plan.partner).holds(backend.mix_adjoint(x, plan))
        for batch_in_place in (in_a_batch, x):
            backend.mix_(batch_in_place, plan)
            assert expected.holds(batch_in_place)


@each_backend
@pytest.mark.parametrize("soft", [0.0, 0.3])
@pytest.mark.parametrize("per", ["batch", "pair", "sample"])
def test_agreement_of_large_grids_beside_fmix(backend, per, soft):
    """Whose pixels, bits or levels, are in the same tensor."""
    methods = [fm.FMix(max_soft=soft), fm.GridMix(cells=(14, 14)), fm.GridMix(cells=(12, 11)), fm.GridMix(cells=(3, 4))]
    module = fm.RandomMix([*methods, fm.CutMix()], per=per, pairing="flip", sampling="device", backend="reference")
    case = Case((9, 2, 15, 33))
    for seed in range(2):
        plan = module.sample(9, (15, 33), lam=0.4, seed=seed).to(backend.device)
        x = values(case, torch.float32, seed).to(backend.device)
        w = over_batch(mask_of(plan, backend), x, plan.size)
        assert expected_mix(x, w, plan.partner, backend.one_rounding).holds(backend.mix(x, plan))
        backend.mix_(out := x.clone(), plan)
        assert expected_mix(x, w, plan.partner, backend.one_rounding).holds(out)


@each_backend
def test_agreement_beside_other_methods(backend):
    methods = [fm.MixUp(), fm.CutMix(), fm.GridMix(cells=(3, 4)), fm.GridMix(cells=(7, 9), alpha=0.2)]
    module = fm.RandomMix(methods, per="sample", sampling="device", backend="reference")
    case = Case((40, 2, 7, 9))
    plan = plan_of(module, case, 3, backend)
    assert {Kind.CONSTANT, Kind.BOX, Kind.GRID} == set(plan.kind.tolist())
    x = values(case, torch.float32, 0).to(backend.device)
    w = over_batch(mask_of(plan, backend), x, plan.size)
    assert expected_mix(x, w, plan.partner, backend.one_rounding).holds(backend.mix(x, plan))


@both_samplings
@pytest.mark.parametrize(("case", "cells"), GRIDS + LARGE, ids=str)
def test_as_many_cells_as_lam_says(case, cells, sampling):
    """Rounded up as often as down."""
    size = case.shape[-case.spatial :]
    plan = fm.GridMix(cells=cells, per="sample", sampling=sampling).sample(600, size, seed=1)
    share = plan.lam.double().numpy() * math.prod(cells)
    up = of_cells(plan).sum(1) - np.floor(share)
    assert set(up) == {0.0, 1.0}
    assert stats.binomtest(int(up.sum()), len(up)).pvalue > 1e-4


@both_samplings
def test_every_choice_of_cells_is_equally_likely(sampling):
    plan = fm.GridMix(cells=(2, 3), per="sample", sampling=sampling).sample(20_000, (5, 7), lam=0.5, seed=2)
    choice = of_cells(plan) @ (1 << np.arange(6))
    counts = np.unique(choice, return_counts=True)[1]
    assert len(counts) == math.comb(6, 3)
    assert stats.chisquare(counts).pvalue > 1e-4


@both_samplings
@pytest.mark.parametrize("cells", [(8, 16), (10, 18)])
def test_cells_of_many_are_alike(cells, sampling):
    """Single ones, and pairs of neighbours, which without replacement go together a little less often than λ²."""
    plan = fm.GridMix(cells=cells, per="sample", sampling=sampling).sample(20_000, cells, lam=0.25, seed=3)
    n, found = math.prod(cells), of_cells(plan)
    assert_means(found, np.full(n, 0.25))
    assert_means(found[:, 1:] * found[:, :-1], np.full(n - 1, 0.25 * (n / 4 - 1) / (n - 1)))


@pytest.mark.parametrize(("size", "cells", "lam"), [((24, 40), (2, 3), 0.5), ((31, 17), (3, 2), 0.8)])
def test_sampled_masks_have_the_enumerated_moments(size, cells, lam):
    """Over all choices of cells of either number."""
    n, (rows, columns) = math.prod(cells), (np.arange(s) * c // s for s, c in zip(size, cells, strict=True))
    exact, chance = [], []
    for number in (math.floor(lam * n), math.ceil(lam * n)):
        for choice in itertools.combinations(range(n), number):
            mask = np.isin(rows[:, None] * cells[1] + columns, choice).astype(np.float64)
            exact.append(moments(mask[None], SHORT_OFFSETS)[0])
            chance.append(0.5 / math.comb(n, number))
    exact = np.stack(exact)
    drawn = sampled_moments(fm.GridMix(cells=cells, per="sample"), 3000, size, lam, SHORT_OFFSETS)
    assert_means(drawn, np.average(np.column_stack((exact, exact[:, 0])), axis=0, weights=chance))


@both_samplings
@pytest.mark.parametrize("per", ["batch", "pair", "sample"])
def test_draws_are_shared_as_per_says(per, sampling):
    plan = fm.GridMix(cells=(6, 6), per=per, pairing="flip", sampling=sampling).sample(64, (6, 6), lam=0.5, seed=4)
    assert len(set(map(tuple, plan.masks.tolist()))) == {"batch": 1, "pair": 32, "sample": 64}[per]


@pytest.mark.parametrize("cells", [(8, 16), (9, 16)])
@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_all_of_either(lam, cells):
    plan = fm.GridMix(cells=cells, per="sample").sample(8, (9, 17), lam=lam, seed=5)
    assert (plan.mask() == lam).all()
    assert (plan.weight == lam).all()


@pytest.mark.parametrize(
    ("cells", "error", "message"),
    [
        ((0, 4), ValueError, r"cells\[0\] must be >= 1, but got 0"),
        ((4, 2.5), TypeError, r"cells\[1\] must be an int, but got 2.5"),
        (4, TypeError, "cells must be a sequence"),
        ((2, 2, 2, 2), ValueError, "cells must have 1 to 3"),
        ((1 << 16, 1 << 15), ValueError, r"cells must be fewer than 2\^31 in all, but got \(65536, 32768\)"),
    ],
)
def test_cells_that_are_no_grid(cells, error, message):
    with pytest.raises(error, match=message):
        fm.GridMix(cells=cells)


@both_samplings
def test_cells_that_do_not_fit_the_images(sampling):
    x, y = torch.rand(4, 3, 8, 6), torch.nn.functional.one_hot(torch.arange(4)).float()
    for cells, message in (((8,), "each of the 2 spatial dims"), ((8, 7), r"cells\[1\] must be at most the 6 pixels")):
        mix = fm.GridMix(cells=cells, sampling=sampling)
        for module in (mix, fm.RandomMix([fm.MixUp(), mix])):
            with pytest.raises(ValueError, match=message):
                module(x, y)
    with pytest.raises(ValueError, match=r"at most 2\^32 divided by the 100000 pixels .* 42949, but got 42950"):
        fm.GridMix(cells=(42950,), sampling=sampling).sample(2, (100_000,))
    with pytest.raises(AttributeError, match="cells of a GridMix is fixed"):
        mix.cells = (2, 2)
    with pytest.raises(ValueError, match=r"size\[0\], must be in \[1, 33554432\], but got 33554433"):
        fm.GridMix(cells=(4,), sampling=sampling).sample(2, (2**25 + 1,))
    with pytest.raises(ValueError, match=r"size\[0\], must be in \[1, 33554432\], but got 33554433"):
        fm.GridMix(cells=(4,), sampling=sampling).sample(2, (2**25 + 1,))


@pytest.mark.parametrize(
    "name", ["reference", pytest.param("cpp", marks=pytest.mark.skipif(bool(NO_CPP), reason=str(NO_CPP)))]
)
def test_operators_refuse_what_no_module_makes(name):
    sample, spec = backends.operators("cpu", name).sample, fm.GridMix(cells=(2, 3))._spec
    for column, count in itertools.product((Column.CELLS_Y, Column.CELLS_Z), (129.0, -1.0, 1.5, math.nan)):
        bad = spec.clone()
        bad[0, column] = count
        with pytest.raises((ValueError, RuntimeError), match="row 0 of spec describes no method"):
            sample(bad, 4, [6, 6], 0, 2, 1.0, None, None, torch.tensor(1), None, None, CPU)
    drawn = torch.zeros(1, WIDTH, dtype=torch.float64)
    drawn[0, Number.NOISE] = 2.0**52
    with pytest.raises((ValueError, RuntimeError), match="2\\^52"):
        sample(spec, 4, [6, 6], 0, 0, 1.0, None, None, None, drawn, None, CPU)


# ---- more cells than a record has bits -------------------------------------------------------------------------------


@pytest.mark.parametrize("soft", [0.0, 0.2])
@both_samplings
def test_large_grids_beside_other_stored_masks(sampling, soft):
    """Two of them, a small one and FMix, with levels where FMix needs them: each mask is what it is alone."""
    methods = [fm.FMix(max_soft=soft), fm.GridMix(cells=(13, 17)), fm.GridMix(cells=(12, 12)), fm.GridMix(cells=(3, 3))]
    plan = fm.RandomMix([fm.MixUp(), *methods], per="sample", sampling=sampling).sample(80, (33, 57), seed=3)
    assert {Kind.CONSTANT, Kind.FOURIER, Kind.GRID, Kind.LARGE_GRID} == set(plan.kind.tolist())
    masks = plan.mask().double()
    assert (plan.weight - masks.mean((1, 2))).abs().max() <= 1e-6
    for cells in ((13, 17), (12, 12)):
        of_grid = (plan.kind == Kind.LARGE_GRID) & (plan.masks[:, 2:4] == torch.tensor(cells)).all(1)
        assert of_grid.any()
        rows, columns = (torch.arange(side) * n // side for side, n in zip((33, 57), cells, strict=True))
        first = masks[:, torch.searchsorted(rows, torch.arange(cells[0]))][
            :, :, torch.searchsorted(columns, torch.arange(cells[1]))
        ]
        assert (first[:, rows][:, :, columns] == masks)[of_grid].all()
        number = first[of_grid].sum((1, 2)) - (plan.lam[of_grid].double() * math.prod(cells)).floor()
        assert set(number.tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize(("per", "masks"), [("batch", 1), ("pair", 4), ("sample", 8)])
def test_a_bit_for_each_cell_is_stored(per, masks):
    """As many words as the largest grid needs, or, beside FMix, as its pixels need."""
    size = (112, 96)
    grids = [fm.GridMix(cells=(14, 14)), fm.GridMix(cells=(16, 16))]
    plan = fm.GridMix(cells=(14, 14), per=per).sample(8, size, seed=1)
    assert (plan.pixels.dtype, plan.pixels.shape) == (torch.int32, (masks, 7))
    of_cells = of_cell_bits(plan.pixels)[:, : 14 * 14].reshape(masks, 14, 14)
    expected = of_cells.repeat_interleave(8, 1)[:, :, torch.arange(96) * 14 // 96]
    assert torch.equal(plan.mask()[:masks], expected)
    for methods, shape in ((grids, (masks, 8)), ([*grids, fm.FMix()], (masks, 112 * 96 // 32))):
        plan = fm.RandomMix(methods, per=per).sample(8, size, seed=1)
        assert (plan.pixels.dtype, plan.pixels.shape) == (torch.int32, shape)
    plan = fm.RandomMix([*grids, fm.FMix(max_soft=0.1)], per=per).sample(8, size, seed=1)
    assert (plan.pixels.dtype, plan.pixels.shape) == (torch.int16, (masks, 112 * 96))
    assert fm.GridMix(cells=(8, 16), per=per).sample(8, size, seed=1).pixels is None
    assert fm.MixPlan.from_grid(torch.ones(8, 14, 14), size).pixels.shape == (8, 7)


def masks_of(plan):
    """What `mask` takes."""
    return plan.masks, int(plan.families), plan.size, int(plan.per), plan.pixels


def of_cell_bits(words):
    """(n, 32·K) float32 of (n, K) int32, the lowest bit first."""
    return torch.from_numpy(np.unpackbits(words.numpy().view(np.uint8), axis=1, bitorder="little")).float()


@pytest.mark.parametrize(
    "name", ["reference", pytest.param("cpp", marks=pytest.mark.skipif(bool(NO_CPP), reason=str(NO_CPP)))]
)
def test_pixels_that_do_not_hold_the_cells(name):
    operators, x = backends.operators("cpu", name), torch.rand(4, 1, 20, 21)
    plan = fm.GridMix(cells=(14, 14), per="sample").sample(4, (20, 21), seed=1)
    soft = fm.RandomMix([fm.GridMix(cells=(14, 14)), fm.FMix(max_soft=0.1)], per="sample").sample(4, (20, 21), seed=1)
    assert torch.equal(operators.mask(*masks_of(plan)), plan.mask())
    right = plan.pixels
    for wrong, message in (
        (None, "pixels must hold the masks of FMix and of large grids, but got None"),
        (right[:, :6], "pixels must have a bit for each .*cell.* of the mask .*sample 0, but has 192 in a row"),
        (right[:3], r"pixels must be int32 of shape \(4, 7\)"),
        (right[:, :0], "pixels must be int32"),
        (right[0], "pixels must be int32"),
        (right.long(), "pixels must be int32"),
        (right.view(torch.int16), "pixels must be int32"),
        (soft.pixels, "pixels must be int32"),
    ):
        bad = replace(plan, pixels=wrong)
        with pytest.raises((ValueError, RuntimeError), match=message):
            operators.mask(*masks_of(bad))
        with pytest.raises((ValueError, RuntimeError), match=message):
            fm.mix(x, bad, backend=name)
    with pytest.raises((ValueError, RuntimeError), match="pixels must be"):
        operators.mask(*masks_of(replace(soft, pixels=soft.pixels[:, :25])))


@each_backend
def test_records_of_any_cells_read_what_is_stored(backend):
    """Of sides that are not the images', no pixel's cell is beyond what is there. The shim fails on such a read."""
    plan = fm.GridMix(cells=(14, 14), per="sample").sample(4, (20, 21), seed=1).to(backend.device)
    for word, value in itertools.product((2, 3, 5, 6), (1, 3, 14)):
        records = plan.masks.clone()
        records[:, word] = value
        found = backend.mask(replace(plan, masks=records))
        assert ((found == 0) | (found == 1)).all()
        backend.mix(torch.rand(4, 1, 20, 21, device=backend.device), replace(plan, masks=records))


def test_stored_cells_have_a_shape_without_values():
    """As torch.compile asks for it."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    grid, beside = fm.GridMix(cells=(14, 14)), [fm.GridMix(cells=(14, 14)), fm.FMix(max_soft=0.1)]
    for per in Per:
        keywords = {"per": per.name.lower(), "pairing": "flip"}
        plan = grid.sample(5, (20, 21), seed=1)
        stored = fm.RandomMix(beside, **keywords).sample(5, (20, 21), seed=1).pixels
        for pixels in (None, stored):
            of = plan.masks, plan.weight, torch.tensor(1), pixels
            rest = [1, 14, 14], (20, 21), int(per), int(per)
            with FakeTensorMode() as mode:
                faked = (t if t is None else mode.from_tensor(t) for t in of)
                fake = torch.ops.fusedmix.store_grids(*faked, *rest)
            real = torch.ops.fusedmix.store_grids(*of, *rest)
            assert [(t.shape, t.dtype) for t in fake] == [(t.shape, t.dtype) for t in real]


@pytest.mark.parametrize("cells", [(2, 3), (12, 12)])
def test_attached(cells):
    """The model and the loss get what the module makes of the batch."""
    model, targets = torch.nn.Identity(), []
    mix = fm.GridMix(cells=cells, per="sample", num_classes=4)
    wrapped = fm.attach(model, mix).wrap(lambda _, target: targets.append(target))
    x, y = torch.rand(4, 3, 13, 14), torch.arange(4)
    torch.manual_seed(3)
    mixed = model(x)
    wrapped(mixed, y)
    torch.manual_seed(3)
    expected = mix(x, y)
    assert torch.equal(mixed, expected[0])
    assert torch.equal(targets[0], expected[1])
    assert not torch.equal(mixed, x)


# ---- grids that are given --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "cells"), GRIDS + LARGE, ids=str)
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_given_grids(case, cells, dtype):
    size = case.shape[-len(cells) :]
    grid = torch.rand(5, *cells) < 0.4
    plan = fm.MixPlan.from_grid(grid.to(dtype), size)
    expected = grid
    for dim, (side, count) in enumerate(zip(size, cells, strict=True), 1):
        expected = expected.index_select(dim, torch.arange(side) * count // side)
    assert torch.equal(plan.mask(), expected.float())
    mean = expected.double().flatten(1).mean(1)
    assert (plan.weight - mean).abs().max() <= 1e-15
    assert torch.equal(plan.lam, plan.weight.float())
    x, y = torch.rand(5, 2, *size), torch.arange(5)
    assert torch.equal(fm.mix(x, plan), torch.where(expected.unsqueeze(1), x, x.roll(1, 0)))
    targets = torch.eye(5, dtype=torch.float64) * mean[:, None] + torch.eye(5).roll(1, 0) * (1 - mean[:, None])
    assert (fm.mix_labels(y, plan, num_classes=5) - targets).abs().max() <= 1e-6


def test_given_partners_and_weights():
    grid, partner, weight = torch.rand(4, 14, 14) < 0.5, torch.tensor([2, 0, 3, 1]), torch.tensor([0.1, 1.0, 0.0, 0.6])
    plan = fm.MixPlan.from_grid(grid, (28, 28), partner=partner, weight=weight)
    x = torch.rand(4, 3, 28, 28)
    mask = grid.repeat_interleave(2, 1).repeat_interleave(2, 2).unsqueeze(1)
    assert torch.equal(fm.mix(x, plan), torch.where(mask, x, x[partner]))
    assert torch.equal(plan.weight, weight.double())
    assert (plan.lam - grid.double().mean((1, 2))).abs().max() <= 1e-7


@pytest.mark.parametrize(
    ("grid", "size", "more", "error", "message"),
    [
        ([[1]], (4, 4), {}, TypeError, "grid must be a tensor, but got list"),
        (torch.rand(3, 2, 2), (4, 4), {}, ValueError, "grid must be 0 or 1 everywhere"),
        (torch.full((3, 2, 2), math.nan), (4, 4), {}, ValueError, "grid must be 0 or 1 everywhere"),
        (torch.ones(3, 2), (4, 4), {}, ValueError, r"grid must be .* 2 numbers of cells .*\(3, 2\)"),
        (torch.ones(3, 5, 2), (4, 4), {}, ValueError, r"grid\[0\] must be at most the 4 pixels .* got 5"),
        (torch.ones(3, 0, 2), (4, 4), {}, ValueError, r"grid\[0\], must be >= 1, but got 0"),
        (torch.ones(3, 2, 2), (4, 4.5), {}, TypeError, r"size\[1\] must be an int"),
        (torch.ones(3, 2, 2), (4, 4), {"partner": torch.tensor([0, 0, 1])}, ValueError, "not a permutation"),
        (torch.ones(3, 2, 2), (4, 4), {"partner": torch.tensor([0, 1])}, ValueError, r"partner must be int64 of shape"),
        (torch.ones(3, 2, 2), (4, 4), {"weight": torch.ones(3).long()}, ValueError, "weight must be floating point"),
        (torch.ones(3, 2, 2), (4, 4), {"weight": torch.tensor([0, 1, 1.1])}, ValueError, r"weight must be in \[0, 1\]"),
    ],
)
def test_given_grids_that_are_none(grid, size, more, error, message):
    with pytest.raises(error, match=message):
        fm.MixPlan.from_grid(grid, size, **more)


def test_the_most_cells_of_a_long_signal():
    plan = fm.GridMix(cells=(42_949,), per="sample").sample(2, (100_000,), seed=1)
    x = torch.rand(2, 1, 100_000)
    expected = fm.mix(x, plan, backend="reference")
    assert torch.equal(plan.weight, plan.mask().double().mean(1))
    for backend in ("cpp", *(["cuda"] if torch.cuda.is_available() else [])):
        there = x.cuda() if backend == "cuda" else x
        assert torch.equal(fm.mix(there, plan, backend=backend).cpu(), expected)
