"""The Triton kernels without a GPU: in the interpreter a log (triton_log.py) says which program touches which byte."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from batches import DTYPES, LAYOUTS, SHAPES
from fusedmix import backends
from fusedmix.arguments import MaskArguments
from fusedmix.backends import reference
from fusedmix.backends import triton as backend  # noqa: F401  which tests have from here
from fusedmix.backends.triton import (  # noqa: F401  which tests have from here
    fourier_launch,
    labels_kernel,
    launch,
    mix_launch,
    sample_launch,
)
from fusedmix.backends.triton.enums import Shape
from fusedmix.backends.triton.mix_layout import Cut
from fusedmix.methods import Column, Kind, Pairing, Per
from operators.on_shim import H200
from triton_log import Launch, bytes_of, elements_of, logged  # noqa: F401  which tests have from here

LOSSES = ("cross_entropy", "cross_entropy_backward", "binary_cross_entropy", "binary_cross_entropy_backward")
FOURIERS = ("waves", "coefficients", "sum", "select", "level")
KERNELS = (
    "mix",
    "mix_with",
    "paste",
    "blend",
    "inverse",
    "sample",
    "circle",
    "labels",
    "mask",
    "finish",
    "finish_images",
    "draw_finish",
    "pixel_cross_entropy",
    "pixel_sum",
    "pixel_gradient",
    *FOURIERS,
    *LOSSES,
)
SHAPE_OF = {Pairing.ROLL: Shape.ROLL, Pairing.FLIP: Shape.PAIRS}  # of cuts in place; of all other pairings TILE


def by_vector(flags, x, width):
    """Whether any element of its vector has a flag, for every element of x."""
    vector = elements_of(x) // (width * x.element_size())
    _, vector = np.unique(vector, return_inverse=True)
    vector = vector.reshape(x.shape)
    found = np.bincount(vector.ravel(), weights=flags.numpy().ravel()) > 0
    return torch.from_numpy(found[vector])


def fourier_of(mix, plan, seed, device="cpu"):
    """The pixels of a plan as these kernels make them."""
    soft = bool((mix._spec[:, Column.SOFT] > 0).any())
    seed, masks = torch.tensor(seed, device=device), plan.masks.to(device)
    return fourier_launch.masks(mix._spec, masks, seed, plan.size, int(plan.per), int(mix._per), soft).cpu()


def assert_written_once(of, readable, written):
    assert len(of.races()) == 0
    assert len(of.outside(readable, written)) == 0
    for t in written:
        assert (of.counts(t)[1] == 1).all()


class Interpreted:
    """What is asked of the kernels of any backend whose accesses are logged (as OnShim of on_shim.py)."""

    fast, kinds = False, 2  # of masks_by_hand: Gaussians are not the reference's to the bit
    travels = ({},)

    def __init__(self, multiprocessors=H200, cuts=None, scratch=None):
        self.multiprocessors = multiprocessors
        self.cuts = cuts  # how a batch may be cut in place, None: as the kernels do
        self.scratch = scratch  # bytes for slices, None: as the kernels have them
        self.launches = []
        self.way = None  # of the last batch

    def batches(self, turn):
        """Shapes, how many of their dims are spatial, dtypes and layouts, by turns."""
        for i in (2 * turn, 2 * turn + 1):
            self.multiprocessors = (H200, 2)[i % 2]
            yield *SHAPES[i % len(SHAPES)], DTYPES[i % 5], LAYOUTS[i % len(LAYOUTS)]

    def weights(self, x, masks):
        """Of every element, by the reference's masks."""
        m = reference.masks_of(torch.arange(len(x)), x, MaskArguments(*masks))
        return m.expand(x.shape) if m.shape[0] == x.shape[0] else m[:1].expand(x.shape)

    def mix(self, x, masks, in_place=False, adjoint=False, way=None, **options):
        out = x if in_place else torch.empty_like(x)
        cuts, own, way_of = [way] if way is not None else self.cuts, mix_launch.cuts, mix_launch.way_of
        way_of.cache_clear()
        with logged() as self.launches, pytest.MonkeyPatch.context() as patch:
            patch.setattr(mix_launch, "multiprocessors", lambda device: self.multiprocessors)
            # Not of what is mixed out of place: there the argument in_place is False.
            patch.setattr(mix_launch, "cuts", lambda *of: own(*of) if cuts is None or not of[6] else cuts)
            patch.setattr(mix_launch, "_SLICE", self.scratch or mix_launch._SLICE)
            patch.setattr(mix_launch, "way_of", lambda *of: setattr(self, "way", way_of(*of)) or self.way)
            mix_launch.apply(x, out, masks, adjoint=adjoint, **options)
        way_of.cache_clear()
        assert way is None or self.way.cut == way
        return out

    def ways(self, x, masks, in_place=True):
        """How a batch may be cut: all at once, in parts that do and do not divide it, more rows than there are."""
        sizes = ((16, 4), (1, 1), (2, 4), (8, 2), (32, 8))
        tiles = [Cut(Shape.TILE, rows, -(-len(x) // rows), vectors, 4) for rows, vectors in sizes]
        if not in_place or masks[4] == Pairing.FLIP:
            return []
        if masks[4] == Pairing.ROLL:  # the last sample serves the first, whichever part that is in
            return [*(Cut(Shape.ROLL, rows, 1, vectors, 4) for rows, vectors in sizes[:4]), *tiles[:2]]
        return tiles

    def counts(self, name, x):
        """How often each element of x was read and written; its name is that of the shim's log."""
        return tuple(map(sum, zip(*(of.counts(x) for of in self.launches), strict=True)))

    @property
    def width(self):
        """Elements that are moved at a time."""
        return self.way.named["V"]

    def kernels(self):
        """The kernels of the last call."""
        return [of.kernel for of in self.launches]

    def assert_clean(self):
        """No program touches what another one writes, nor anything but the tensors of the launches."""
        tensors = [t for of in self.launches for t in of.arguments.values() if isinstance(t, torch.Tensor)]
        for of in self.launches:
            assert len(of.races()) == 0
            assert len(of.outside(tensors, tensors)) == 0

    def assert_one_pass(self, x, out, w, masks, adjoint=False):
        """No race, nothing foreign touched; every byte written once, and read once for its own sample and once for the
        one whose partner it is, but for what needs neither.

        Of a sample itself there is nothing to read where its weight is 0, of its partner where it is 1; a Gaussian is
        taken to be neither anywhere. In place nothing happens where the weight is 1, and nothing is written where a
        sample is its own partner. A pair is read once.
        """
        in_place, partner, names = out is x, masks[0], [of.kernel for of in self.launches if of.programs]
        inverted = adjoint and masks[4] not in (Pairing.ROLL, Pairing.FLIP)
        assert names == ["inverse_kernel"] * inverted + ["mix_kernel"] * (not in_place or len(x) > 1)
        assert self.way.slice == 0
        usual = SHAPE_OF.get(masks[4], Shape.TILE) if in_place else Shape.EACH
        assert self.way.cut.shape == usual or self.way.cut in self.ways(x, masks, in_place)
        self.assert_clean()
        if not names:
            return
        mix = self.launches[-1]
        plan = [t for t in masks if torch.is_tensor(t)]
        assert len(mix.outside([x, *plan, mix.arguments["partner"]], [out])) == 0

        def each(of_samples):
            return of_samples.view(-1, *[1] * (x.ndim - 1)).expand(x.shape)

        kind = masks[1][:1, 0].expand(len(x)) if masks[5] == Per.BATCH else masks[1][:, 0]
        varies = each(((kind == Kind.GAUSSIAN) | (kind == Kind.GAUSSIAN_COMPLEMENT)) & (masks[3] > 0))
        own, lent = (by_vector(w != constant, x, self.width) | varies for constant in (0, 1))
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
        if self.way.cut.shape == Shape.PAIRS:
            assert torch.equal(reads, ((own | lent_to) & moves).long())
        else:
            assert torch.equal(reads, own.long() + lent_to.long())

    def assert_written_once(self, name, out, readable):
        (of,) = self.launches
        assert_written_once(of, readable, [out])

    def call(self, operator, *args):
        """An operator on tensors, by its name."""
        with logged() as self.launches:
            return getattr(backends.operators("cpu", "triton"), operator)(*args)
