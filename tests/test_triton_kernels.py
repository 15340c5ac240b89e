"""The Triton kernels without a GPU: which bytes they touch, what they are compiled to, and how they are launched.

In the interpreter a log (triton_log.py) says which program reads and writes which byte. Compiled code is made and read
by processes of their own (triton_compiled.py), because this one has the kernels interpreted.
"""

from __future__ import annotations

import importlib
import itertools
import json
import math
import os
import pkgutil
import re
import subprocess
import sys
import sysconfig
import weakref
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fusedmix as fm
import triton_interpreter
import triton_loops
from conftest import METHODS, NO_TRITON, TRITON_DEVICE
from families import RECORDS
from fusedmix import backends, fourier, philox
from fusedmix.arguments import MaskArguments
from fusedmix.backends import reference
from fusedmix.draws import Request, Source
from fusedmix.masks.family import WORDS, OneMask, record
from fusedmix.masks.family import own_uniform as own_uniform_of
from fusedmix.masks.fourier import unpack
from fusedmix.methods import Families, Kind, Pairing, Per

pytest.importorskip("triton")
pytest.importorskip("shim_build")  # of test_cuda_kernels: fcntl, not on Windows

import triton
import triton.language as tl

from fusedmix.backends import triton as backend
from fusedmix.backends.triton import fourier_launch as fourier_kernel
from fusedmix.backends.triton import labels_kernel, launch
from fusedmix.backends.triton import mix_launch as mix_kernel
from fusedmix.backends.triton import sample_launch as sample_kernel
from fusedmix.backends.triton.enums import Shape
from fusedmix.backends.triton.mix_layout import Cut
from fusedmix.backends.triton.numbers import (
    below,
    expm1,
    fma,
    from_compute,
    log1p,
    own_uniform,
    sort_key,
    symmetric_beta,
    turn,
    uniform,
    words,
)
from mask_formulas import draws_at
from test_cuda_kernels import (
    DTYPES,
    FLOATS,
    H200,
    LAYOUTS,
    MIB,
    alike,
    assert_mixed,
    channels_last,
    contiguous,
    cropped,
    name_of,
    plan_for,
    round_product_sum,
    stepped,
    values,
)
from triton_log import Launch, bytes_of, elements_of, logged

pytestmark = [
    pytest.mark.thorough,
    # What the interpreter of Triton 3.6 does with a newer NumPy.
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
]
CPU = torch.device("cpu")
DRAWS = [*itertools.product(("batch", "sample"), ("roll", "flip", "random")), ("pair", "flip")]
LOSSES = ("cross_entropy", "cross_entropy_backward", "binary_cross_entropy", "binary_cross_entropy_backward")
FOURIERS = ("waves", "coefficients", "sum", "select", "level")
KERNELS = ("mix", "inverse", "sample", "circle", "labels", "mask", "finish", *FOURIERS, *LOSSES)
interpreted = pytest.mark.skipif(
    TRITON_DEVICE != "cpu" or NO_TRITON is not None,
    reason=NO_TRITON or "with a GPU here the kernels are compiled, not interpreted",
)


# ---- which bytes: images --------------------------------------------------------------------------------------------


@pytest.fixture
def chip(monkeypatch):
    """Sets how many multiprocessors there are, how batches are cut, or how much scratch there is."""

    way_of = mix_kernel.way_of

    def of(multiprocessors=None, cuts=None, scratch=None):
        way_of.cache_clear()
        if multiprocessors is not None:
            monkeypatch.setattr(mix_kernel, "multiprocessors", lambda device: multiprocessors)
        if cuts is not None:
            own = mix_kernel.cuts
            # Not of what is mixed out of place: there the argument in_place is False.
            monkeypatch.setattr(mix_kernel, "cuts", lambda *of: cuts if of[6] else own(*of))
        if scratch is not None:
            monkeypatch.setattr(mix_kernel, "_SLICE", scratch)

    yield of
    way_of.cache_clear()


def mixed(x, masks, in_place=True, adjoint=False, **options):
    """What was launched, the result, and the way that was taken."""
    out = x if in_place else torch.empty_like(x)
    ways = []
    with logged() as launches, pytest.MonkeyPatch.context() as patch:
        way_of = mix_kernel.way_of
        patch.setattr(mix_kernel, "way_of", lambda *of: ways.append(way_of(*of)) or ways[-1])
        mix_kernel.apply(x, out, masks, adjoint=adjoint, **options)
    return launches, out, ways[-1]


def width_of(way):
    """V."""
    return way.named["V"]


def by_vector(flags, x, way):
    """Whether any element of its vector has a flag, for every element of x."""
    vector = elements_of(x) // (width_of(way) * x.element_size())
    _, vector = np.unique(vector, return_inverse=True)
    vector = vector.reshape(x.shape)
    found = np.bincount(vector.ravel(), weights=flags.numpy().ravel()) > 0
    return torch.from_numpy(found[vector])


def weights(x, masks):
    """Of every element."""
    m = reference._masks_of(torch.arange(len(x)), x, MaskArguments(*masks))
    return m.expand(x.shape) if m.shape[0] == x.shape[0] else m[:1].expand(x.shape)


def assert_one_pass(launches, x, out, masks, way, adjoint=False):
    """No race, nothing foreign touched; every byte written once, and read once for its own sample and once for the one
    whose partner it is, but for what needs neither.

    Of a sample itself there is nothing to read where its weight is 0, of its partner where it is 1; a Gaussian is taken
    to be neither anywhere. In place nothing happens where the weight is 1, and nothing is written where a sample is its
    own partner. A pair is read once.
    """
    in_place, partner, names = out is x, masks[0], [of.kernel for of in launches if of.programs]
    inverted = adjoint and masks[4] not in (Pairing.ROLL, Pairing.FLIP)
    assert names == ["inverse_kernel"] * inverted + ["mix_kernel"] * (not in_place or len(x) > 1)
    assert way.slice == 0
    for of in launches:
        assert len(of.races()) == 0
    if not names:
        return
    mix = launches[-1]
    plan = [t for t in masks if torch.is_tensor(t)]
    assert len(mix.outside([x, *plan, mix.arguments["partner"]], [out])) == 0

    def each(of_samples):
        return of_samples.view(-1, *[1] * (x.ndim - 1)).expand(x.shape)

    w = weights(x, masks)
    kind = masks[1][:1, 0].expand(len(x)) if masks[5] == Per.BATCH else masks[1][:, 0]
    varies = each(((kind == Kind.GAUSSIAN) | (kind == Kind.GAUSSIAN_COMPLEMENT)) & (masks[3] > 0))
    own, lent = (by_vector(w != constant, x, way) | varies for constant in (0, 1))
    moves = each(partner != torch.arange(len(x)))
    reads, (_, writes) = mix.counts(x)[0], mix.counts(out)
    if adjoint:
        assert (writes == 1).all()
        assert (reads == 2).all()
        return
    if in_place:
        own = own & lent
        assert torch.equal(writes, (lent & moves).long())
        lent = lent & moves
    else:
        assert (writes == 1).all()
        assert not mix.counts(x)[1].any()
        assert not mix.counts(out)[0].any()
    lent_to = lent[partner.argsort()]  # by the sample whose partner this is
    if way.cut.shape == Shape.PAIRS:
        assert torch.equal(reads, ((own | lent_to) & moves).long())
    else:
        assert torch.equal(reads, own.long() + lent_to.long())


TRAFFIC = ("MixUp", "CutMix", "HMix-paper", "GMix-released")
# (B, C, *S), and how many of the dims are spatial: 9 of 192 vectors, which are two programs, small and odd ones
TRAFFIC_SHAPES = (
    ((9, 3, 16, 16), 2),
    ((3, 3, 5, 7), 2),
    ((2, 3, 16, 16), 2),
    ((1, 2, 4, 8), 2),
    ((7, 5, 31), 1),
    ((5, 2, 3, 5, 8), 3),
    ((4, 2, 3, 6, 4), 2),
    ((3, 3, 8, 8), 2),
    ((9, 4, 1, 16), 2),
    ((2, 1, 1, 1), 2),
    ((6, 3, 7, 21), 2),
    ((70, 2, 3), 1),
)


@interpreted
@pytest.mark.parametrize(("per", "pairing"), DRAWS)
@pytest.mark.parametrize("name", TRAFFIC)
def test_one_pass(chip, name, per, pairing):
    """In place, out of place and adjoint. Shapes, types, layouts and the number of multiprocessors alternate."""
    turn = DRAWS.index((per, pairing)) * 4 + TRAFFIC.index(name)
    for i in (2 * turn, 2 * turn + 1):
        shape, spatial = TRAFFIC_SHAPES[i % len(TRAFFIC_SHAPES)]
        chip(multiprocessors=(H200, 2)[i % 2])
        masks = plan_for(METHODS[name], shape, spatial, per, pairing, seed=i)
        dtype = DTYPES[i % 5]
        before = values(shape, dtype, seed=i)
        w = weights(before, masks)
        x = LAYOUTS[i % len(LAYOUTS)](before)
        launches, out, way = mixed(x, masks, in_place=False)
        assert_one_pass(launches, x, out, masks, way)
        assert way.cut.shape == Shape.EACH
        if dtype in FLOATS:
            launches, grad, way = mixed(x, masks, in_place=False, adjoint=True)
            assert_one_pass(launches, x, grad, masks, way, adjoint=True)
        launches, _, way = mixed(x, masks, by_value=i % 2 == 0)
        assert way.cut.shape == {"roll": Shape.ROLL, "flip": Shape.PAIRS, "random": Shape.TILE}[pairing]
        assert_one_pass(launches, x, x, masks, way)
        assert alike(x.contiguous(), out.contiguous())
        if dtype != torch.float64 and not name.startswith(
            "GMix"
        ):  # Gaussians differ from the reference's in the last place
            assert_mixed(out, before, w, masks[0])


def cycles(*lengths, seed=0):
    """A permutation of cycles of these lengths."""
    order = torch.randperm(sum(lengths), generator=torch.Generator().manual_seed(seed))
    partner = torch.empty_like(order)
    for members in order.split(lengths):
        partner[members] = members.roll(1)
    return partner


# How a batch of 13 may be cut in place: all at once, in parts that do and do not divide it, more rows than there are.
TILES = [
    Cut(Shape.TILE, rows, -(-13 // rows), vectors, 4) for rows, vectors in ((16, 4), (1, 1), (2, 4), (8, 2), (32, 8))
]
ROLLS = [Cut(Shape.ROLL, rows, 1, vectors, 4) for rows, vectors in ((16, 4), (1, 1), (2, 4), (8, 2))]


@interpreted
@pytest.mark.parametrize("how", TILES, ids=lambda how: f"{how.rows}x{how.parts}")
def test_partners_of_every_kind(chip, how):
    """Fixed points, pairs, long cycles."""
    chip(cuts=[how])
    for seed, lengths in enumerate(([1] * 13, [13], [2] * 6 + [1], [1, 2, 3, 7], [12, 1], [5, 4, 2, 1, 1])):
        name, shape = ("MixUp", "CutMix")[seed % 2], (13, 1, 4, 4)
        masks = (cycles(*lengths, seed=seed), *plan_for(METHODS[name], shape, 2, "sample", "random", seed=seed)[1:])
        before = values(shape, torch.float32, seed=seed)
        w = weights(before, masks)
        x = before.clone()
        launches, out, way = mixed(x, masks, in_place=False)
        assert_one_pass(launches, x, out, masks, way)
        assert_mixed(out, before, w, masks[0])
        launches, out, way = mixed(x, masks, in_place=False, adjoint=True)
        assert_one_pass(launches, x, out, masks, way, adjoint=True)
        assert alike(out, reference.mix_adjoint(x, MaskArguments(*masks)))
        launches, _, way = mixed(x, masks)
        assert way.cut == how
        assert_one_pass(launches, x, x, masks, way)
        assert_mixed(x, before, w, masks[0])


@interpreted
@pytest.mark.parametrize("name", ["MixUp", "CutMix"])
@pytest.mark.parametrize(
    "how", [*ROLLS, *TILES[:2]], ids=lambda how: f"{how.shape.name.lower()} {how.rows}x{how.parts}"
)
def test_neighbours(chip, how, name):
    """The last sample serves the first, whichever part that is in; also where one is as good as all others."""
    chip(cuts=[how])
    for n, layout in ((13, contiguous), (2, contiguous), (3, channels_last), (16, contiguous)):
        how_of_n = how._replace(parts=-(-n // how.rows)) if how.shape == Shape.TILE else how
        chip(cuts=[how_of_n])
        masks = plan_for(METHODS[name], (n, 3, 4, 8), 2, "sample", "roll", seed=n)
        before = values((n, 3, 4, 8), torch.float32, seed=n)
        x = layout(before)
        launches, _, way = mixed(x, masks)
        assert way.cut == how_of_n
        assert_one_pass(launches, x, x, masks, way)
        assert_mixed(x, before, weights(before, masks), masks[0])


@interpreted
@pytest.mark.parametrize("repeated", [[0] * 6, [5, 5, 0, 1, 1, 2]], ids=str)
def test_partners_may_repeat_out_of_place(repeated):
    shape = (6, 2, 4, 8)
    masks = (torch.tensor(repeated), *plan_for(METHODS["CutMix"], shape, 2, "sample", "random")[1:])
    x = values(shape, torch.float32)
    launches, out, _ = mixed(x, masks, in_place=False)
    assert [len(of.races()) for of in launches] == [0]
    assert_mixed(out, x, weights(x, masks), masks[0])


@interpreted
@pytest.mark.parametrize("name", ["MixUp", "CutMix", "GMix-released"])
@pytest.mark.parametrize("layout", [contiguous, channels_last, cropped, stepped], ids=lambda layout: layout.__name__)
def test_a_batch_that_fits_no_program_is_mixed_in_slices(chip, layout, name):
    """Out of place into scratch, and back, through as little of it as is allowed; no byte is anything else's."""
    shape = (9, 3, 5, 8)
    for dtype in (torch.float32, torch.uint8):
        masks = plan_for(METHODS[name], shape, 2, "sample", "random", seed=1)
        before = values(shape, dtype)
        x, y = layout(before), layout(before)
        chip(multiprocessors=2)
        _, out, _ = mixed(y, masks, in_place=False)
        chip(cuts=[], scratch=9 * 7 * 16)
        launches, _, way = mixed(x, masks)
        allowed = 7 * 16 // (width_of(way) * x.element_size())
        assert way.slice == allowed
        assert len(launches) == 2 * -(-way.columns // allowed) >= 4
        for there, back in zip(launches[::2], launches[1::2], strict=True):
            aside = there.arguments["dst"]
            assert aside.nbytes <= 9 * 7 * 16
            assert back.arguments["src"] is aside
            assert len(there.outside([x, *masks[:2]], [aside])) == 0
            assert len(back.outside([aside], [x])) == 0
            assert not any(len(of.races()) for of in (there, back))
        counted = [sum(of.counts(x)[1] for of in which) for which in (launches[::2], launches[1::2])]
        assert not counted[0].any()
        assert (counted[1] == 1).all()
        assert alike(x.contiguous(), out.contiguous())


def test_how_batches_are_cut():
    """Whatever the batch: all samples have a row, threads are at least two for each row and at most vectors of as many
    samples, and what waits for the barrier fits into registers. Where nothing does, that is said."""
    sizes = (1, 2, 3, 5, 8, 31, 64, 100, 128, 255, 256, 257, 512, 513, 1000, 1024, 2000, 2048, 2049, 4096, 8192)
    families = (*Families, Families.CONSTANTS | Families.CUTS | Families.GAUSSIANS)
    tiles = set()
    for n, of, dtype, pairing, in_place in itertools.product(sizes, families, DTYPES, Pairing, (False, True)):
        for elements in (1, 48, 3072, 150528, 151000 - 3):
            item = dtype.itemsize
            width = next(v for v in (16 // item, 4 // item, 1) if v and elements % v == 0)
            found = mix_kernel.cuts(n, elements // width, item, width, int(pairing), int(of), in_place, H200)
            case = n, of, dtype, pairing, in_place, elements, found
            assert len(set(found)) == len(found), case
            shapes = {cut.shape for cut in found}
            if not in_place:
                assert shapes == {Shape.EACH}, case
            elif pairing == Pairing.FLIP:
                assert shapes == {Shape.PAIRS}, case
            elif pairing == Pairing.ROLL:
                assert Shape.ROLL in shapes, case
                assert found[0].shape == Shape.ROLL, case
            else:
                assert shapes <= {Shape.TILE}, case
                if found and elements > 48:
                    tiles.add(n)
            for cut in found:
                threads = 32 * cut.warps
                assert threads <= 1024, case
                assert cut.rows & (cut.rows - 1) == cut.vectors & (cut.vectors - 1) == 0, case
                if cut.shape == Shape.TILE:
                    assert cut.rows * (cut.parts - 1) < n <= cut.rows * cut.parts, case
                if elements > 48:
                    assert threads <= max(32, cut.rows * cut.vectors), case
                    assert 2 * cut.rows <= threads, case
                    assert cut.rows * cut.parts * cut.vectors * width * item <= 128 * threads, case
    assert tiles == {n for n in sizes if n <= 2048}


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("pairing", ["roll", "flip", "random"])
def test_a_box_in_place_touches_only_its_vectors(chip, pairing, dtype):
    """Of 16 bytes; no vector where the box is empty."""
    chip(multiprocessors=H200)
    shape = (9, 3, 8, 32)
    for first_y, first_x, stop_y, stop_x in ((1, 3, 7, 21), (0, 16, 8, 32), (2, 5, 3, 6), (2, 5, 2, 9), (2, 5, 4, 5)):
        plan = fm.CutMix(pairing=pairing, sampling="device").sample(9, shape[2:], seed=1)
        box = OneMask(Kind.BOX, [0, first_y, first_x, 1, stop_y, stop_x], (1.0, 0.0), math.nan)
        masks = plan.partner, record(box).repeat(9, 1), Families.CUTS, 2, plan.pairing, plan.per, None
        x = values(shape, dtype)
        launches, _, way = mixed(x, masks)
        assert width_of(way) * x.element_size() == 16
        columns = range(first_x * x.element_size() // 16, -(-stop_x * x.element_size() // 16))
        boxed = torch.zeros(shape, dtype=torch.int64)
        if stop_x > first_x:
            wide = 16 // x.element_size()
            boxed[:, :, first_y:stop_y, columns.start * wide : columns.stop * wide] = 1
        reads, writes = launches[-1].counts(x)
        assert torch.equal(writes, torch.where((plan.partner == torch.arange(9)).view(9, 1, 1, 1), 0, boxed))
        assert ((reads > 0) <= (boxed > 0)).all()


# ---- which bytes: everything else -----------------------------------------------------------------------------------


def drawing(mix, n, lam, labels):
    """What a module asks the sampler for."""
    request = Request(*mix._request(n, (8, 8), lam, labels))
    return request._replace(pairing=Pairing(request.pairing), per=Per(request.per))


def assert_written_once(of, readable, written):
    assert len(of.races()) == 0
    assert len(of.outside(readable, written)) == 0
    for t in written:
        assert (of.counts(t)[1] == 1).all()


@interpreted
@pytest.mark.parametrize("pairing", Pairing, ids=lambda pairing: pairing.name.lower())
def test_samplers_share_nothing(pairing):
    """Every number of a plan is written once, by programs of which none reads what another one writes."""
    for n, per, lam in ((1, "batch", None), (40, "sample", None), (33, "sample", torch.linspace(0, 1, 33))):
        mix = METHODS["RandomMix"](per=per, pairing=pairing.name.lower(), sampling="device", p=0.7)
        labels = torch.arange(n) * 5 % 7
        request = drawing(mix, n, lam, labels if pairing > Pairing.RANDOM else None)
        seed = torch.tensor(n)
        with logged() as launches:
            plan = sample_kernel.sample(request, seed, CPU)
        *circle, sample = launches
        of = sample.arguments
        scratch = [of[name] for name in ("order", "spot", "members")]
        assert [c.kernel for c in circle] == (["circle_kernel"] if pairing == Pairing.CROSS_CLASS else [])
        for c in circle:
            assert_written_once(c, [labels, seed], scratch)
        given = () if lam is None else (lam,)
        readable = [of["spec"], seed, labels, *given, *(scratch if circle else ())]
        assert_written_once(sample, readable, plan)


@interpreted
@pytest.mark.parametrize(("n", "classes"), [(1, 1), (3, 5), (7, 400), (2, 1023)])
def test_targets_are_written_once(n, classes):
    partner, weight = torch.arange(n).roll(1), torch.linspace(0, 1, n, dtype=torch.float64)
    for labels in (torch.arange(n) % classes, torch.rand(n, 2 * classes)[:, ::2].bfloat16()):
        for pairing, one_weight in itertools.product((Pairing.ROLL, Pairing.FLIP, Pairing.RANDOM), (False, True)):
            with logged() as launches:
                out = labels_kernel.mix(labels, partner, weight, classes, 0.1, pairing, one_weight)
            (of,) = launches
            assert_written_once(of, [labels, partner, weight], [out])


@interpreted
@pytest.mark.parametrize("size", [(1,), (37,), (5, 7), (32, 32), (3, 17, 29)])
def test_masks_are_written_once(size):
    plan = METHODS["RandomMix"](per="sample", sampling="device").sample(3, size, seed=0)
    with logged() as launches:
        out = mix_kernel.write_masks(plan.masks, int(plan.families), size)
    (of,) = launches
    assert_written_once(of, [plan.masks], [out])


@interpreted
def test_a_step_is_three_launches():
    """In place too: the plan, the targets, the images."""
    mix = METHODS["CutMix"](per="sample", pairing="random", num_classes=4, sampling="device")
    request = drawing(mix, 9, None, None)
    x, y = torch.rand(9, 3, 8, 8), torch.arange(9) % 4
    source = Source(torch.tensor(3), None, None)
    expected = reference.mix_batch(x, y, request, source, 4, 0.0)
    with logged() as launches:
        backend.mix_batch_(x, y, request, source, 4, 0.0)
    assert [of.kernel for of in launches] == ["sample_kernel", "labels_kernel", "mix_kernel"]
    assert not any(len(of.races()) for of in launches)
    assert torch.equal(x, expected[0])


@interpreted
@pytest.mark.parametrize("inplace", [False, True], ids=["out-of-place", "in-place"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pairing": "flip", "label_smoothing": 0.1},
        {"per": "sample", "pairing": "random"},
        {"per": "pair", "pairing": "flip", "sampling": "device"},
        {"sampling": "device", "p": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["MixUp", "CutMix", "HMix-paper", "GMix-paper", "CutMix-aspect", "RandomMix"])
def test_the_usual_step_is_the_general_one(monkeypatch, name, options, inplace):
    """Without an operator, and of one mask without a plan for every sample: the same batch and as many draws."""
    mix = METHODS[name](num_classes=4, inplace=inplace, backend="triton", **options)
    usual, general = [], type(mix)._plain_step
    own = backend.plain_step
    monkeypatch.setattr(backend, "plain_step", lambda *args: usual.append(0) or own(*args))
    for seed, y in enumerate((torch.tensor([0, 3, 1, 1, 2]), torch.rand(5, 4, dtype=torch.float64))):
        found = []
        for step in (general, lambda *_: None):
            monkeypatch.setattr(fm.MixTransform, "_plain_step", step)
            x = torch.rand(5, 3, 6, 9, generator=torch.Generator().manual_seed(seed))
            version = x._version
            torch.manual_seed(seed)
            images, targets = mix(x, y)
            assert (images is x) == inplace
            assert x._version == version + inplace
            found.append((images, targets, torch.get_rng_state()))
        assert all(map(torch.equal, *found))
    assert len(usual) == (0 if name == "RandomMix" and not {"per", "sampling"} & set(options) else 2)


@interpreted
@pytest.mark.parametrize("sampling", ["host", "device"])
def test_the_usual_step_refuses_before_it_draws(sampling):
    mix = fm.MixUp(num_classes=3, backend="triton", inplace=True, sampling=sampling)
    x, negated = torch.randn(4, 3, 8, 8), torch.view_as_complex(torch.randn(4, 3, 8, 8, 2)).conj().imag
    before, state = x.clone(), torch.get_rng_state()
    for batch, labels, said in (
        (x, torch.tensor([0, 1, 2, 3]), "must be in"),
        (x, torch.zeros(5, dtype=torch.int64), "batch size"),
        (x.int(), torch.zeros(4, dtype=torch.int64), "dtypes"),
        (negated, torch.zeros(4, dtype=torch.int64), "negated"),
    ):
        with pytest.raises(ValueError, match=said):
            mix(batch, labels)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)


# ---- FMix ------------------------------------------------------------------------------------------------------------

runs = pytest.mark.skipif(NO_TRITON is not None, reason=str(NO_TRITON))
FMIXES = {
    "FMix": fm.FMix,
    "FMix, soft": lambda **kw: fm.FMix(max_soft=0.3, **kw),
    "FMix, in part": lambda **kw: fm.RandomMix(
        [fm.FMix(reformulate=True, p=0.8), fm.CutMix(), fm.FMix(variant="released", alpha=0.3)], p=0.9, **kw
    ),
}
NOISES = (
    {},
    {"variant": "released"},
    {"cutoff": 3, "decay_power": 2.0},
    {"decay_power": 0.0, "max_soft": 0.2},
    {"decay_power": 1.3, "max_soft": 0.5, "variant": "released"},
)


def fourier_of(mix, plan, seed, device="cpu"):
    """The pixels of a plan as these kernels make them."""
    soft = bool((mix._spec[:, fm.methods.Column.SOFT] > 0).any())
    seed, masks = torch.tensor(seed, device=device), plan.masks.to(device)
    return fourier_kernel.masks(mix._spec, masks, seed, plan.size, int(plan.per), int(mix._per), soft).cpu()


def fmix_for(name, shape, spatial, per, pairing, seed):
    """The reference's plan as `mix` takes it, pixels included."""
    mix = FMIXES[name](per=per, pairing=pairing, sampling="device", backend="reference")
    plan = mix.sample(shape[0], shape[len(shape) - spatial :], seed=seed)
    return plan.partner, plan.masks, int(plan.families), spatial, plan.pairing, plan.per, plan.pixels


@runs
@pytest.mark.parametrize(("per", "pairing"), [("batch", "roll"), ("pair", "flip"), ("sample", "random")])
@pytest.mark.parametrize("name", FMIXES)
def test_fmix_plans(name, per, pairing):
    """Partners, λ, kinds, numbers of ones and label weights equal the reference's, λ drawn or given."""
    mix = FMIXES[name](per=per, pairing=pairing, sampling="device")
    drawn = set()
    for n, size, lam in ((37, (31,), None), (8, (8, 13), torch.linspace(0, 1, 8)), (5, (3, 4, 5), torch.tensor(0.3))):
        arguments = (*mix._request(n, size, lam, None), torch.tensor(n), None, None)
        expected = torch.ops.fusedmix_reference.sample(*arguments, CPU)
        found = torch.ops.fusedmix_triton.sample(*arguments, torch.device(TRITON_DEVICE))
        for k, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert torch.equal(a.cpu(), b), (k, n, lam)
        drawn.update(expected[3][:, 0].tolist())
    if per != "batch":
        assert drawn >= (
            {Kind.FOURIER} if name != "FMix, in part" else {0, Kind.BOX, Kind.FOURIER_RELEASED, Kind.FOURIER}
        )


@runs
@pytest.mark.parametrize("size", [(1,), (37,), (1, 1), (1, 7), (2, 2), (9, 1), (24, 17), (2, 1, 2), (3, 4, 5)], ids=str)
@pytest.mark.parametrize("noise", NOISES, ids=str)
def test_fmix_masks(size, noise):
    """As many ones as the plan says, and where the reference has them."""
    per, seed = (("sample", 2**63 - 5), ("pair", -7))[NOISES.index(noise) % 2]
    mix = fm.FMix(per=per, p=0.8, sampling="device", backend="reference", **noise)
    plan = mix.sample(4, size, seed=seed)
    found = fourier_of(mix, plan, seed, TRITON_DEVICE)
    assert found.dtype == plan.pixels.dtype
    assert torch.equal(found, plan.pixels)


@runs
def test_fmix_of_images():
    """At most .01 % of the pixels differ from those of float64; as many are 1, and equal ones are the first."""
    mix = fm.FMix(per="batch", sampling="device", backend="reference")
    plan = mix.sample(1, (112, 112), lam=0.4, seed=3)
    found = unpack(fourier_of(mix, plan, 3, TRITON_DEVICE), plan.size)
    assert found.sum() == plan.geometry[0, 0]
    assert (found != unpack(plan.pixels, plan.size)).sum() <= 1e-4 * 112 * 112


@interpreted
@pytest.mark.parametrize("size", [(29,), (12, 30), (6, 5, 4)], ids=str)
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_grey_images(monkeypatch, size, variant):
    """To 10^-5 of their deviation, whatever bits of the seed are set; and in chunks, whose scratch is bounded."""
    seed, n = -(2**63) + 2**40 + 12345, 5
    mix = fm.FMix(variant=variant, decay_power=1.5, cutoff=None, per="sample", sampling="device")
    plan = mix.sample(n, size, seed=0)
    images, wanted = [], fourier.grey(torch.tensor(seed), torch.arange(n), size, variant, 1.5, math.inf)
    select = fourier_kernel.select
    monkeypatch.setattr(
        fourier_kernel, "select", lambda out, field, *rest: images.append(field) or select(out, field, *rest)
    )
    with logged() as launches:
        whole = fourier_of(mix, plan, seed)
    (image,) = images
    assert (image - wanted.flatten(1)).abs().max() <= 1e-5 * wanted.std()
    sums = [of.arguments for of in launches if of.kernel == "sum_kernel"]
    each = max(of["coefficients"].nbytes + of["out"].nbytes for of in sums) // n
    monkeypatch.setattr(fourier_kernel, "_SCRATCH", sums[0]["waves"].nbytes + 3 * each - 1)
    assert torch.equal(fourier_of(mix, plan, seed), whole)
    assert [len(of) for of in images[1:]] == [2, 2, 1]


class Requested(TorchDispatchMode):
    """Bytes of tensors that were made and are alive, and the most there were of them at a time."""

    # What torch's stable sort on a GPU asks for by itself, for each element of 4 bytes: two arrays of (row, index), the
    # values in order, and both once more (ATen/native/cuda/SortStable.cu, radix sorts of 2 to 127 long rows).
    SORTING = 8 + 8 + 4 + 4 + 8

    def __init__(self):
        super().__init__()
        self.alive, self.most = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if torch.is_tensor(t)}
        out = func(*args, **(kwargs or {}))
        for storage in (t.untyped_storage() for t in tree_leaves(out) if torch.is_tensor(t)):
            if storage._cdata not in {*given, *self.alive}:
                self.alive[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, storage._cdata)
        within = args[0].numel() * self.SORTING if func is torch.ops.aten.sort.stable else 0
        self.most = max(self.most, sum(self.alive.values()) + within)
        return out


@pytest.mark.parametrize(
    ("n", "size", "options"),
    [
        (256, (224, 224), [{}]),
        (256, (224, 224), [{"max_soft": 0.2}]),
        (256, (224, 224), [{"variant": "released"}, {"decay_power": 1.5}, {"decay_power": 4.0}]),
        (40, (64, 64, 64), [{}, {"variant": "released", "max_soft": 0.1}]),
        (200, (1 << 16,), [{"decay_power": 1.0}, {"decay_power": 0.5}]),
    ],
    ids=str,
)
def test_memory_while_masks_are_made(monkeypatch, n, size, options):
    """At most 24 MiB beside the masks themselves, as is written in fourier_kernel.py and asked of a GPU (test_gpu.py);
    most of it is used. The memory is only asked for: nothing is launched."""
    mix = fm.RandomMix([fm.FMix(**of) for of in options], per="sample", sampling="device")
    monkeypatch.setattr(launch.Kernel, "__call__", lambda *_: None)
    masks = torch.empty(n, WORDS, dtype=torch.int32, device="meta")
    seed, soft = torch.empty((), dtype=torch.int64, device="meta"), any("max_soft" in of for of in options)
    with Requested() as requested:
        out = fourier_kernel.masks(mix._spec, masks, seed, size, Per.SAMPLE, Per.SAMPLE, soft)
    assert list(requested.alive.values()) == [out.nbytes]
    assert 12 * MIB <= requested.most - out.nbytes <= 24 * MIB


FIELDS = {
    "constant": lambda n: torch.full((1, n), -2.5),
    "zeros": lambda n: torch.tensor([0.0, -0.0]).repeat(n)[None, :n],
    "integers": lambda n: torch.randint(-2, 3, (1, n)).float(),
    "bytes": lambda n: torch.randint(0, 2, (1, n)) * 2.0**-140 - torch.randint(0, 2, (1, n)) * 2.0**-149,
    "normal": lambda n: torch.randn(1, n),
}


@runs
@pytest.mark.parametrize("kind", FIELDS)
def test_the_largest_pixels(kind):
    """Of equal ones the first; across words, blocks, and numbers that end everywhere."""
    for n in (1, 31, 33, 4096, 9000):
        numbers = sorted({0, 1, n // 3, n - 1, n})
        field = FIELDS[kind](n).expand(len(numbers), n).contiguous()
        number = torch.tensor(numbers, dtype=torch.int32)
        masks = [record(OneMask(Kind.FOURIER, [of, *[0] * 5], (3.0, math.inf), math.nan)) for of in numbers]
        image = torch.cat(masks).to(TRITON_DEVICE), 3.0, math.inf, 0, int(Kind.FOURIER)
        out = torch.zeros((len(numbers), fourier.words_per_mask((n,))), dtype=torch.int32, device=TRITON_DEVICE)
        fourier_kernel.select(out, field.to(TRITON_DEVICE), *image)
        expected = fourier.pack(fourier.levels(field, number, number * 0) == fourier.LEVELS)
        assert torch.equal(out.cpu(), expected), n


@interpreted
@pytest.mark.parametrize("name", FMIXES)
def test_noise_is_shared_by_none(name):
    """No program of a launch reads or writes what another one writes; all that is read later has been written."""
    mix = FMIXES[name](per="sample", sampling="device", backend="reference")
    plan = mix.sample(3, (9, 40), seed=1)
    with logged() as launches:
        fourier_of(mix, plan, 1)
    kinds = {of.kernel for of in launches}
    assert kinds == {f"{of}_kernel" for of in ("waves", "coefficients", "sum", "level" if "soft" in name else "select")}
    written = np.empty(0, np.int64)
    for of in launches:
        assert len(of.races()) == 0
        made = [t for at, t in of.arguments.items() if at == "out" or (at == "waves" and of.kernel == "waves_kernel")]
        given = [t for at, t in of.arguments.items() if torch.is_tensor(t) and all(t is not o for o in made)]
        assert len(of.outside(given, made)) == 0
        assert (of.counts(made[0])[1] <= 1).all()
        written = np.union1d(written, of.written[0])
        for at in ("waves", "coefficients", "field"):
            if at in of.arguments and of.kernel != "waves_kernel":
                assert np.isin(np.intersect1d(of.read[0], bytes_of(of.arguments[at])), written).all()


FMIX_SHAPES = (
    ((5, 2, 4, 32), 2),
    ((3, 3, 5, 7), 2),
    ((4, 2, 40), 1),
    ((3, 2, 3, 4, 8), 3),
    ((3, 2, 9, 1), 2),
    ((2, 1, 2, 5, 16), 2),
)


@interpreted
@pytest.mark.parametrize("name", FMIXES)
@pytest.mark.parametrize(("per", "pairing"), DRAWS)
def test_one_pass_of_fmix(chip, name, per, pairing):
    """In place, out of place and adjoint: in place only the vectors that change are written, and what of a vector all
    bits leave out is not even read. Shapes, types, layouts and the number of multiprocessors alternate."""
    i = DRAWS.index((per, pairing)) * 3 + list(FMIXES).index(name)
    shape, spatial = FMIX_SHAPES[i % len(FMIX_SHAPES)]
    chip(multiprocessors=(H200, 2)[i % 2])
    masks = fmix_for(name, shape, spatial, per, pairing, seed=i)
    for k in range(2):
        dtype, layout = DTYPES[(i + k) % 5], LAYOUTS[(2 * i + 5 * k) % len(LAYOUTS)]
        before = values(shape, dtype, seed=i)
        w = weights(before, masks)
        x = layout(before)
        launches, out, way = mixed(x, masks, in_place=False)
        assert_one_pass(launches, x, out, masks, way)
        assert_mixed(out, before, w, masks[0])
        if dtype in FLOATS and k == 0:
            launches, grad, way = mixed(x, masks, in_place=False, adjoint=True)
            assert_one_pass(launches, x, grad, masks, way, adjoint=True)
            assert alike(grad.contiguous(), reference.mix_adjoint(before, MaskArguments(*masks)))
        launches, _, way = mixed(x, masks, by_value=i % 2 == 0)
        assert_one_pass(launches, x, x, masks, way)
        assert alike(x.contiguous(), out.contiguous())


@interpreted
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("soft", [False, True])
def test_fmix_in_every_layout(layout, soft):
    for dtype in (torch.uint8, torch.float16):
        masks = fmix_for("FMix, soft" if soft else "FMix", (3, 3, 4, 32), 2, "sample", "random", seed=1)
        before = values((3, 3, 4, 32), dtype)
        x = layout(before)
        launches, _, way = mixed(x, masks)
        assert_one_pass(launches, x, x, masks, way)
        assert_mixed(x, before, weights(before, masks), masks[0])


@runs
@pytest.mark.parametrize("per", ["batch", "pair", "sample"])
def test_stored_masks_are_written_out(per):
    for name, size in (("FMix", (37,)), ("FMix, soft", (5, 7)), ("FMix, in part", (3, 5, 11))):
        mix = FMIXES[name](per=per, pairing="flip", sampling="device", backend="reference")
        plan = mix.sample(5, size, seed=0).to(TRITON_DEVICE)
        arguments = plan.masks, int(plan.families), size, int(plan.per), plan.pixels
        assert torch.equal(backend.mask(*arguments), reference.mask(*arguments))


@runs
def test_turns():
    """To a few units in the last place of cos and sin; at quarters exactly."""
    for side in (1, 2, 7, 224, 1 << 24, (1 << 31) - 1):
        steps = (torch.arange(4096) * max(1, side // 4093)) % side
        cosine, sine = torch.empty(2, 4096)
        run(turns_kernel, steps, torch.tensor(side), cosine, sine, 4096)
        angle = steps.double() * (2 * math.pi / side)
        assert ((cosine - angle.cos()).abs() <= 3 * 2.0**-24).all()
        assert ((sine - angle.sin()).abs() <= 3 * 2.0**-24).all()
        for quarter in range(4):
            at = 4 * steps == quarter * side
            assert (cosine[at] == (1, 0, -1, 0)[quarter]).all()
            assert (sine[at] == (0, 1, 0, -1)[quarter]).all()


# ---- which bytes: the log can fail ----------------------------------------------------------------------------------


def test_races_in_a_log():
    """Of accesses as [(address, program)]."""

    def races(read, written):
        arrays = (tuple(np.array(of, np.int64).reshape(-1, 2).T) for of in (read, written))
        return Launch("", 2, {}, *arrays).races().tolist()

    assert races([], []) == []
    assert races([(8, 0), (8, 1)], [(9, 0), (9, 0)]) == []
    assert races([(8, 0), (9, 0)], [(9, 0), (8, 0)]) == []
    assert races([(8, 1), (9, 0)], [(8, 0), (7, 1)]) == [8]
    assert races([], [(8, 0), (9, 1), (8, 1)]) == [8]


@interpreted
@pytest.mark.parametrize("pairing", ["roll", "random"])
def test_a_batch_mixed_in_place_by_programs_of_few_samples_is_a_race(chip, pairing):
    """As by EACH, which is for other memory than it reads."""
    chip(cuts=[Cut(Shape.EACH, 2, 1, 4, 4)])
    masks = plan_for(METHODS["MixUp"], (9, 1, 8, 8), 2, "batch", pairing)
    x = values((9, 1, 8, 8), torch.float32)
    launches, *_ = mixed(x, masks)
    assert len(launches) == 1
    assert len(launches[0].races()) >= x[0].nbytes


@interpreted
def test_what_is_outside_is_seen():
    x, other = torch.rand(4, 1, 4, 4), torch.rand(4, 1, 4, 4)
    masks = plan_for(METHODS["MixUp"], x.shape, 2, "batch", "roll")
    launches, out, _ = mixed(x, masks, in_place=False, by_value=True)
    assert len(launches[-1].outside([x], [out])) == 0
    assert np.array_equal(launches[-1].outside([other], [out]), np.sort(bytes_of(x)))
    assert np.array_equal(launches[-1].outside([x, out], [other]), np.sort(bytes_of(out)))


# ---- which bytes: losses ---------------------------------------------------------------------------------------------


@interpreted
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
@pytest.mark.parametrize("classes", [7, 64, 5003])
def test_logits_are_read_once_and_gradients_written_once(dtype, classes):
    plan = fm.MixUp(per="sample", pairing="random", sampling="device").sample(3, (4, 4), seed=1)
    z, labels = torch.randn(3, classes).to(dtype).requires_grad_(), torch.randint(classes, (3,))
    for loss in (fm.mix_cross_entropy, fm.mix_binary_cross_entropy):
        with logged() as launches:
            (slope,) = torch.autograd.grad(loss(z, labels, plan, backend="triton"), z)
        name = f"{loss.__name__[4:]}"
        assert [of.kernel for of in launches] == [f"{name}_kernel", "finish_kernel", f"{name}_backward_kernel"]
        forward, _, backward = launches
        reads, _ = forward.counts(z)
        picked = torch.zeros(3, classes, dtype=torch.int64)
        if loss is fm.mix_cross_entropy:
            for y in (labels, labels[plan.partner]):
                picked[torch.arange(3), y] += 1
        assert torch.equal(reads, 1 + picked)
        assert (backward.counts(z)[0] == 1).all()
        assert (backward.counts(slope)[1] == 1).all()
        assert not any(len(of.races()) for of in launches)
        tensors = [t for of in launches for t in of.arguments.values() if isinstance(t, torch.Tensor)]
        assert not any(len(of.outside(tensors, tensors)) for of in launches)


# ---- compiled code --------------------------------------------------------------------------------------------------


def compiler(*arguments, folder):
    """tests/triton_compiled.py, which must not interpret."""
    script = Path(__file__).with_name("triton_compiled.py")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def printed(process):
    out, err = process.communicate()
    assert process.returncode == 0, err
    return json.loads(out)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """{architecture: [(launch, kernel, report)]}, compiled by the first worker of pytest-xdist that needs it."""
    import fcntl

    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    kept, archs = folder / "triton_compiled.json", ("90", "80", "100")
    with (folder / "triton_compiled.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            running = [compiler("compile", arch, folder=tmp_path_factory.mktemp(f"sm{arch}")) for arch in archs]
            kept.write_text(json.dumps(dict(zip(archs, map(printed, running), strict=True))))
    return json.loads(kept.read_text())


def of_kernel(compiled, *names):
    return [(arch, *of) for arch, made in compiled.items() for of in made if of[1] in names]


def test_images_move_128_bits_at_a_time(compiled):
    """But those of odd sizes, element by element. All else that is loaded is the plan: partners (8 bytes) and the
    numbers of masks (4 bytes). There is none where these are formulas and arguments. Of stored masks a word or two for
    each vector (4 bytes), or a level for each element (2). Neighbouring threads have neighbouring vectors."""
    for arch, launched, _, report in of_kernel(compiled, "mix_kernel"):
        name, _, dtype = launched.partition(": ")
        item = getattr(torch, dtype.removeprefix("torch.")).itemsize
        loads, stores = ({k: n for k, n in report["accesses"].items() if k.startswith(of)} for of in ("ld", "st"))
        assert report["spread"] == [1], (arch, launched)
        if "odd" in name:
            wide = max(1, 4 // item) * item
            assert stores.keys() <= {f"st {item}", f"st {wide}"}, (arch, launched)
            continue
        assert stores.keys() == {"st 16"}, (arch, launched)
        assert loads.pop("ld 16") >= stores["st 16"], (arch, launched)
        assert loads.keys() <= {"ld 4", "ld 8", *(["ld 2"] if "levels" in name else [])}, (arch, launched)
        if "bits" in name or "levels" in name:
            assert loads, (arch, launched)
        elif "random" not in name:
            assert not loads, (arch, launched)
    kinds = {of[1].partition(": ")[2] for of in of_kernel({"90": compiled["90"]}, "mix_kernel")}
    assert kinds == set(map(str, DTYPES))


def in_order(report):
    """Whether a kernel may mix in place: all images are loaded before the last barrier, and stored after it; where each
    vector is one thread's and there is no barrier, as they come. Nothing is loaded as if it never changed."""
    shape = report["constants"]["SHAPE"]
    barriers = shape in (Shape.ROLL, Shape.TILE)
    return re.fullmatch("[LB]*LB+S+" if barriers else "[LS]+", report["events"]) is not None


def apart(report):
    """Whether threads share nothing but the barrier, and neighbours have neighbouring vectors."""
    return report["shared"] == 0 and report["spread"] == [1]


def in_registers(report):
    return report["stack"] == report["local"] == 0


def test_what_is_mixed_in_place_is_read_before_it_is_written(compiled):
    """In the code that is compiled: the interpreter runs a program as a whole, and would not miss a barrier."""
    shapes = set()
    for arch, launched, _, report in of_kernel(compiled, "mix_kernel"):
        if "odd" in launched:  # their vectors are as narrow as what is loaded of the plan
            continue
        assert in_order(report), (arch, launched, report["events"])
        shapes.add((arch, report["constants"]["SHAPE"], report["constants"]["PARTS"] > 1))
    assert {(shape, parts) for arch, shape, parts in shapes if arch == "90"} == {
        *((shape, False) for shape in Shape),
        (Shape.TILE, True),
    }


def test_kernels_that_mix_need_neither_shared_memory_nor_a_stack(compiled):
    """Shared memory would be the price of a layout that does not suit what is computed, and of more barriers. Levels,
    which are loaded element by element, take it with Triton 3.6."""
    old = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8)
    for arch, launched, _, report in of_kernel(compiled, "mix_kernel"):
        assert apart(report) or (old and "levels" in launched), (arch, launched, report["shared"])
        assert in_registers(report) or arch != "90", (arch, launched, report["stack"])


def test_a_kernel_that_is_wrong_is_found(tmp_path):
    """Without its barrier, with a store too early, a load too late, samples side by side, too few threads, or too much
    for each."""
    found = printed(compiler("planted", folder=tmp_path))
    right = {name: (in_order(report), apart(report), in_registers(report)) for name, report in found.items()}
    assert right.pop("nothing") == (True, True, True)
    assert right == {
        "no barrier": (False, True, True),
        "a store before all loads": (False, True, True),
        "a load behind the barrier": (False, True, True),
        "samples side by side": (True, False, True),
        "few threads": (True, False, True),
        "more than registers hold": (True, True, False),
    }


def test_kernels_hold_nothing_of_other_families(compiled):
    """Exponentials are of the families that have any, accesses of two bytes of levels. Of a record only those words are
    read that a family of the call has a use for (`words` of tests/families): two of constants, which there are in any
    call; to mix images, of cuts no values."""
    words = {of: number for family in RECORDS.values() for of, number in family.words.items()}
    exponentials = sum(of for family in RECORDS.values() if family.exponentials for of in family.words)
    alone, mixing = set(), set()
    for arch, launched, kernel, report in of_kernel(compiled, "mix_kernel", "mask_kernel"):
        constants, accesses = report["constants"], report["accesses"]
        families = Families(constants["FAMILIES"])
        one = families == families & -families
        assert (report["ex2"] > 0) == bool(families & exponentials), (arch, launched)
        assert "odd" in launched or ("ld 2" in accesses) == (Families.LEVELS in families), (arch, launched)
        if kernel == "mask_kernel" and one:
            alone.add(families)
            most = words.get(families, 2)
            bits = constants["N"] // 128 if families & (Families.STORED | Families.LARGE_CELLS) else 0
            assert accesses["ld 4"] == most + bits, (arch, launched, families)
        elif kernel == "mix_kernel" and not families.stored and constants["MASKS"] == 0:
            mixing.add(families)
            most = max(words[of] for of in Families if of in families) - 2 * (families == Families.CUTS)
            shape = constants["SHAPE"]
            masks = {Shape.PAIRS: 2, Shape.TILE: constants["PARTS"]}.get(shape, 2 if constants["ADJOINT"] else 1)
            assert report["words"] == most * masks, (arch, launched, families, report["words"])
    assert alone == set(Families)
    assert mixing == {
        Families.CONSTANTS,
        Families.CUTS,
        Families.CONSTANTS | Families.GAUSSIANS,
        Families.CONSTANTS | Families.BOXES | Families.GAUSSIANS,
    }


def test_nothing_is_on_a_stack(compiled):
    """But in the sampler: libdevice's cosine of float64 keeps 40 bytes there, to reduce large arguments. Where masks
    are stored, or computed by several formulas, ptxas may put two registers aside, to have room for one more block on a
    multiprocessor.

    Not asked of Triton 3.6, whose compilers spill the sampler (500 bytes) and, on one architecture, 8 bytes of a mix.
    """
    names = {of[1] for of in compiled["90"]}
    assert names == {f"{of}_kernel" for of in KERNELS}
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9):
        pytest.skip(f"Triton {triton.__version__}")
    wrong = []
    for arch, launched, kernel, report in of_kernel(compiled, *names):
        branches = kernel == "mix_kernel" and any(of in launched for of in ("bits", "levels", "mixed"))
        allowed = (0, 8) if branches else (40,) if kernel == "sample_kernel" else (0,)
        if report["stack"] not in allowed or report["local"]:
            wrong.append((arch, launched, kernel, report))
    assert not wrong


def test_logits_and_gradients_move_128_bits_at_a_time(compiled):
    """Where the number of classes allows it."""
    for arch, launched, kernel, report in of_kernel(compiled, *(f"{of}_kernel" for of in LOSSES)):
        dtype = launched.partition(": ")[2]
        if dtype not in ("torch.float32", "torch.bfloat16"):  # the others have 1001 classes
            continue
        assert report["accesses"].get("ld 16", 0) > 0, (arch, launched, kernel)
        if "backward" in kernel:
            stores = [key for key in report["accesses"] if key.startswith("st")]
            assert stores == ["st 16"], (arch, launched, kernel)


def test_roots_are_rounded_correctly(compiled):
    found = {root for _, _, _, report in of_kernel(compiled, "sample_kernel") for root in report["sqrt"]}
    assert found == {"sqrt.rn.f64"}


def test_every_loop_carries_what_its_line_says(compiled):
    """As Triton compiles it, for every kernel that is ever launched: what a loop leaves out, no interpreter sees."""
    launched = {
        kernel.function.__name__
        for found in pkgutil.iter_modules(backend.__path__, f"{backend.__name__}.")
        for value in vars(importlib.import_module(found.name)).values()
        for kernel in (value.values() if isinstance(value, dict) else [value])
        if isinstance(kernel, launch.Kernel)
    }
    assert launched == {kernel for _, kernel, _ in compiled["90"]}
    loops = [(report["constants"], report["loops"]) for made in compiled.values() for _, _, report in made]
    assert triton_loops.complaints(Path(backend.__file__).parent, loops) == []


LOOPS = """
@triton.jit
def of(x, n, FLAG: tl.constexpr):
    for i in range(n):  # carries 1 + FLAG: a, b
        while more:  # carries 2: c, more
            pass
    for i in tl.static_range(4):
        for j in range(n):
            pass
"""
TTIR = """
#loc = loc("{0}":3:0)
module {{
  tt.func public @of(%x: !tt.ptr<f32> {{tt.divisibility = 16 : i32}} loc("x"(#loc)), %n: i32 loc("n"(#loc))) {{
    %0:2 = scf.for %i = %c0 to %n step %c1 iter_args(%a = %x, %b = %x) -> (tensor<4xf32>, i32)  : i32 {{
      %1:2 = scf.while (%c = %a, %more = %true) : (tensor<4xf32>, i1) -> (tensor<4xf32>, i1) {{
        scf.condition(%more) %c, %more : tensor<4xf32>, i1 loc(#loc4)
      }} do {{
      ^bb0(%d: tensor<4xf32> loc(#loc3), %go: i1 loc(#loc3)):
        scf.yield %d, %go : tensor<4xf32>, i1 loc(#loc4)
      }} loc(#loc5)
      %2 = scf.if %true -> (i32) {{
        scf.yield %b : i32 loc(#loc3)
      }} else {{
        scf.yield %i : i32 loc(#loc3)
      }} loc(#loc3)
      scf.yield %1#0, %2 : tensor<4xf32>, i32 loc(#loc3)
    }} loc(#loc3)
    scf.for %j = %c0 to %n step %c1  : i32 {{
    }} loc(#loc6)
    tt.return loc(#loc)
  }} loc(#loc)
}} loc(#loc)
#loc1 = loc("{0}":4:19)
#loc2 = loc("{0}":5:14)
#loc3 = loc("a"(#loc1))
#loc4 = loc("more"(#loc2))
#loc5 = loc(callsite(#loc2 at #loc3))
#loc6 = loc("{0}":8:23)
"""


def test_loops_are_counted_and_held_against_their_numbers(tmp_path):
    file = tmp_path / "of.py"

    def complaints(source=LOOPS, constants=({"FLAG": True}, {"FLAG": False})):
        file.write_text(source)
        one = TTIR.replace(", %b = %x) -> (tensor<4xf32>, i32)", ") -> (tensor<4xf32>)")
        made = {True: TTIR, False: one}
        return triton_loops.complaints(
            tmp_path, [(of, triton_loops.carried(made[of["FLAG"]].format(file))) for of in constants]
        )

    numbered = LOOPS.replace("range(n):\n            pass", "range(n):  # carries 0: nothing\n            pass")
    assert triton_loops.carried(TTIR.format(file)) == [[str(file), 5, 2], [str(file), 4, 2], [str(file), 8, 0]]
    assert complaints(numbered) == []
    assert complaints() == [f"{file}:8 does not say how many values it carries"]
    assert complaints(numbered.replace("carries 2", "carries 3")) == [f"{file}:5 carries 2 instead of 3 = 3"]
    assert complaints(numbered, [{"FLAG": True}]) == [f"{file}:4 was compiled for one value of FLAG alone"]
    assert complaints(numbered, []) == [f"{file}:{n} is in no kernel that was compiled" for n in (4, 5, 8)]
    elsewhere = complaints("\n" + numbered)
    assert f"{file}:4 is compiled as a loop and was not found in the source" in elsewhere
    assert f"{file}:9 is in no kernel that was compiled" in elsewhere


# ---- launching ------------------------------------------------------------------------------------------------------


def test_what_triton_specialises_on_is_in_the_key(tmp_path):
    """Whatever the launcher takes for the same, Triton does; what Triton compiles anew for a reason, the launcher does.

    Numbers of 64 bits, other types, other alignment of the images: these are such reasons. Otherwise numbers that are
    drawn anew at every step, and where they lie, must not be."""
    found = printed(compiler("keys", folder=tmp_path))
    assert {kernel for kernel, _, _ in found} == {f"{of}_kernel" for of in KERNELS}
    wrong = set()
    for kernel, parameter, pairs in found:
        by_key = {}
        for launchers, tritons in pairs:
            by_key.setdefault(launchers, set()).add(tritons)
        if any(len(tritons) > 1 for tritons in by_key.values()):
            wrong.add((kernel, parameter))
        if parameter in ("src", "dst", "out", "logits") and kernel != "finish_kernel":
            assert len({tritons for _, tritons in pairs}) > 4, (kernel, parameter)  # types and alignments
        if parameter in ("seed_value", "p", "batch", "first", "columns", "total"):
            assert len({tritons for _, tritons in pairs}) <= 2, (kernel, parameter)  # 32 or 64 bits
    assert not wrong


def test_what_is_launched_is_what_triton_would_launch(tmp_path):
    """Through a driver that does nothing: the same kernel, the same grid and the same arguments, at other addresses, of
    other sizes, alignments and types."""
    found = printed(compiler("launched", folder=tmp_path))
    kinds = [found[k : k + 3] for k in range(0, len(found), 3)]
    for first, second, tritons in kinds:
        assert first == second == tritons
    of = [first[0] for first, _, _ in kinds]
    assert of[0] == of[1] == of[4]
    assert len(set(of)) == 4  # by alignment, by type, and by how wide numbers are


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


@interpreted
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
        for soft in (0.0, 0.3):
            noise = fm.FMix(per="sample", max_soft=soft)
            fourier_of(noise, noise.sample(2, (4, 4), seed=0), 0)
        for loss in (fm.mix_cross_entropy, fm.mix_binary_cross_entropy):
            loss(torch.rand(9, 4, requires_grad=True), y, plan, backend="triton").backward()
    assert len(seen) == len(KERNELS)
    for function, arguments, constants in seen.values():
        kinds = [annotation is tl.constexpr or annotation == "tl.constexpr" for annotation in annotations(function)]
        assert kinds == [False] * len(arguments) + [True] * len(constants)


def annotations(function):
    return [function.fn.__annotations__.get(name) for name in function.arg_names]


# ---- where it can run -----------------------------------------------------------------------------------------------


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
    done = command(
        "-m",
        "fusedmix.cli",
        "info",
        FUSEDMIX_BACKEND="triton",
        CUDA_VISIBLE_DEVICES="",
        **{"TRITON_INTERPRET": "1"} if interpret else {},
    )
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


# ---- numbers: on a GPU too ------------------------------------------------------------------------------------------

EPS = 2.0**-53  # half a unit in the last place of 1


@triton.jit
def fma_kernel(x, y, z, out, N: tl.constexpr):  # noqa: N803
    i = tl.arange(0, N)
    tl.store(out + i, fma(tl.load(x + i), tl.load(y + i), tl.load(z + i)))


@triton.jit
def turns_kernel(steps, side, cosine, sine, N: tl.constexpr):  # noqa: N803
    i = tl.arange(0, N)
    c, s = turn(tl.load(steps + i), tl.load(side))
    tl.store(cosine + i, c)
    tl.store(sine + i, s)


@triton.jit
def narrow_kernel(x, out, N: tl.constexpr):  # noqa: N803
    i = tl.arange(0, N)
    tl.store(out + i, from_compute(tl.load(x + i), out.dtype.element_ty))


@triton.jit
def logarithms_kernel(x, of_expm1, of_log1p, N: tl.constexpr):  # noqa: N803
    i = tl.arange(0, N)
    tl.store(of_expm1 + i, expm1(tl.load(x + i)))
    tl.store(of_log1p + i, log1p(tl.load(x + i)))


@triton.jit
def draws_kernel(
    seed,
    index,
    n,
    whole,
    of_uniform,
    of_below,
    of_key,
    STREAM: tl.constexpr,  # noqa: N803
    CALL: tl.constexpr,  # noqa: N803
    N: tl.constexpr,  # noqa: N803
):
    i = tl.arange(0, N)
    a, b, c, d = words(tl.load(seed), tl.load(index + i), STREAM, CALL)
    tl.store(whole + i, a.to(tl.int64))
    tl.store(whole + N + i, b.to(tl.int64))
    tl.store(whole + 2 * N + i, c.to(tl.int64))
    tl.store(whole + 3 * N + i, d.to(tl.int64))
    tl.store(of_uniform + i, uniform(a, b))
    tl.store(of_below + i, below(c, n))
    tl.store(of_key + i, sort_key(c, d))


@triton.jit
def own_kernel(seed, index, out, k: tl.constexpr, N: tl.constexpr):  # noqa: N803
    i = tl.arange(0, N)
    tl.store(out + i, own_uniform((tl.load(seed), tl.load(index + i)), k))


@triton.jit
def beta_kernel(seed, index, alpha, out, N: tl.constexpr):  # noqa: N803
    i = tl.arange(0, N)
    tl.store(out + i, symmetric_beta(tl.load(seed), tl.load(index + i), tl.load(alpha + i)))


def run(kernel, *arguments):
    """Of tensors, the first 4096 elements of each: what the kernel wrote is in place."""
    there = [a.to(TRITON_DEVICE) if torch.is_tensor(a) else a for a in arguments]
    with np.errstate(all="ignore"):
        kernel[(1,)](*there, enable_fp_fusion=False)
    for here, a in zip(arguments, there, strict=True):
        if torch.is_tensor(here):
            here.copy_(a)


@runs
def test_fma_rounds_once():
    """Random numbers, and those of which the sum cancels all but what the product lost."""
    x, y, z = torch.randn(3, 4096)
    z[::2] = -(x * y)[::2]
    out = torch.empty(4096)
    run(fma_kernel, x, y, z, out, 4096)
    assert alike(out, round_product_sum(x, y, z, torch.float32))
    assert out[::2].count_nonzero() > 1000
    for i in range(0, 4096, 64):
        exact = Fraction(x[i].item()) * Fraction(y[i].item()) + Fraction(z[i].item())
        above, below = (torch.nextafter(out[i], torch.tensor(s * math.inf)).item() for s in (1, -1))
        assert abs(Fraction(out[i].item()) - exact) <= min(abs(Fraction(of) - exact) for of in (above, below))


@runs
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=name_of)
def test_narrowing_rounds_as_torch_does(dtype):
    """Every exponent, ties, subnormal numbers, infinities and NaN, whatever bits of it are set."""
    bits = torch.randint(-(2**31), 2**31, (4096,)).to(torch.int32)
    bits[:1024] = (bits[:1024] & ~0xFFFF) | 0x8000  # ties of bfloat16
    bits[1024:2048] = (bits[1024:2048] & ~0x1FFF) | 0x1000  # and of float16
    bits[2048:2060] = torch.tensor(
        [0, -(2**31), 1, 0x7FFF, 0x8000, 0x8001, 0x7F800000, -0x800000, 0x7F7FFFFF, 0x7FC00000, 0x7F800001, 0x7FFFFFFF]
    )
    x = bits.view(torch.float32)
    out = torch.empty(4096, dtype=dtype)
    run(narrow_kernel, x, out, 4096)
    expected = x.to(dtype)
    assert torch.equal(out.isnan(), expected.isnan())
    assert alike(out[~x.isnan()], expected[~x.isnan()])


@runs
def test_logarithms_near_one():
    """Within four units in the last place of the C library's."""
    x = torch.cat([10.0 ** torch.linspace(-300, -0.01, 1024, dtype=torch.float64), torch.rand(1024).double() * 20])
    x = torch.cat([x, -x.clamp(max=1 - 2**-30) * (1 - torch.rand(2048) / 4).double()])
    of_expm1, of_log1p = torch.empty(2, 4096, dtype=torch.float64)
    run(logarithms_kernel, x, of_expm1, of_log1p, 4096)
    for of, found in ((math.expm1, of_expm1), (math.log1p, of_log1p)):
        expected = torch.tensor([of(v) for v in x.tolist()], dtype=torch.float64)
        assert ((found - expected).abs() <= 8 * EPS * expected.abs()).all(), of


@runs
@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1, -(2**63), -12345678901])
def test_draws_are_those_of_the_reference(seed):
    index = torch.cat(
        [torch.arange(4080), torch.tensor([-1, -(2**63), 2**63 - 1, 2**32, 2**32 - 1, 2**31] * 2), torch.arange(4)]
    )
    seed = torch.tensor(seed)
    for stream in philox.Stream:
        whole, of_uniform = torch.empty(4, 4096, dtype=torch.int64), torch.empty(4096, dtype=torch.float64)
        of_below, of_key = torch.empty(2, 4096, dtype=torch.int64)
        run(draws_kernel, seed, index, 2**31 - 1, whole, of_uniform, of_below, of_key, int(stream), stream % 2, 4096)
        a, b, c, d = philox.words(seed, index, stream, stream % 2)
        assert torch.equal(whole, torch.stack((a, b, c, d)))
        assert torch.equal(of_uniform, philox.uniform(a, b))
        assert torch.equal(of_below, philox.below(c, 2**31 - 1))
        assert torch.equal(of_key, philox.sort_key(c, d))


@runs
@pytest.mark.parametrize("k", range(4))
def test_numbers_of_a_family_are_those_of_the_reference(k):
    index, seed, found = torch.arange(4096), torch.tensor(-7), torch.empty(4096, dtype=torch.float64)
    run(own_kernel, seed, index, found, k, 4096)
    draws = draws_at(torch.ones(4096), index[:, None])._replace(noise=seed.expand(4096))
    assert torch.equal(found, own_uniform_of(draws, k))


@runs
def test_symmetric_beta():
    """From α = .01, where most draws are below 1e-100, to 8."""
    index, seed = torch.arange(4096), torch.tensor(7)
    alpha = torch.logspace(-2, math.log10(8), 4096, dtype=torch.float64)
    out = torch.empty(4096, dtype=torch.float64)
    run(beta_kernel, seed, index, alpha, out, 4096)
    expected = philox.symmetric_beta(seed, index, alpha)
    print(
        ((out - expected) / expected).abs().nan_to_num(0).max(),
        ((out - expected) / expected).abs().nan_to_num(0)[alpha > 0.1].max(),
    )
    assert ((out - expected).abs() <= 1e-13 * expected).all()
    assert torch.equal(out.float(), expected.float())


# ---- tuning ---------------------------------------------------------------------------------------------------------


@interpreted
@pytest.mark.parametrize(
    ("layout", "in_place"), [("contiguous", False), ("misaligned", True), ("gaps", True), ("channels_last", True)]
)
def test_autotuning_measures_the_batch_as_it_is(monkeypatch, chip, layout, in_place):
    """Every cut is tried once, on memory laid out as the batch; the fastest serves every later call; nothing is drawn
    from torch's generator, and no pixel differs."""
    chip(multiprocessors=3)
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
        tried.append(list(mix_kernel._tuned.values())[-1])
        call()
        return float(len(tried) != 2)  # the second is the fastest

    way_of = mix_kernel.way_of
    monkeypatch.setattr(mix_kernel, "way_of", lambda *of: ways.append(way_of(*of)) or ways[-1])
    monkeypatch.setattr(mix_kernel, "milliseconds", milliseconds)
    monkeypatch.setattr(mix_kernel, "_tuned", {})
    monkeypatch.setenv("FUSEDMIX_TRITON_AUTOTUNE", "1")
    state = torch.get_rng_state()
    step = fm.CutMix(num_classes=4, per="sample", backend="triton", sampling="device", inplace=in_place)
    torch.manual_seed(1)
    out = step(x, y)[0]
    torch.manual_seed(1)
    width = 1 if layout == "misaligned" else 16 // item
    columns = x[0].numel() // width
    assert tried == mix_kernel.cuts(4, columns, item, width, Pairing.ROLL, Families.CUTS, in_place, 3)
    assert len(tried) > 1
    assert len(mix_kernel._tuned) == 1  # what was measured is of the same kind
    assert ways[-1].cut == tried[1]
    wanted = fm.CutMix(num_classes=4, per="sample", backend="reference", sampling="device")(before, y)[0]
    assert torch.equal(out, wanted)
    torch.set_rng_state(state)
    x.copy_(before)
    tried.clear()
    step(x, y)
    assert not tried


# ---- the interpreter ------------------------------------------------------------------------------------------------


@interpreted
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
