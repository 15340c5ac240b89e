"""The numbers that every language of the package shares. They are part of the backends' contract: never renumber.

tests/test_numbers.py holds those of csrc against these; those of Triton's kernels are made of these.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag


class Method(IntEnum):
    """A formula of METHODS: which mask follows from λ."""

    MIXUP = 0
    CUTMIX = 1
    HMIX_RELEASED = 2
    HMIX_PAPER = 3
    GMIX_RELEASED = 4
    GMIX_PAPER = 5
    SAMPLE_PAIRING = 6
    FMIX_RELEASED = 7
    FMIX_PAPER = 8
    SMOOTHMIX_DISC = 9
    SMOOTHMIX_SQUARE = 10
    GRIDMIX = 11


class Kind(IntEnum):
    """Which formula evaluates a mask: the first word of its record."""

    CONSTANT = 0
    BOX = 1
    GAUSSIAN = 2
    GAUSSIAN_COMPLEMENT = 3
    FOURIER_RELEASED = 4
    FOURIER = 5
    SMOOTH_DISC = 6
    SMOOTH_SQUARE = 7
    GRID = 8
    LARGE_GRID = 9  # of more cells than a record has bits


class Families(IntFlag):
    """Which masks a call may hold. Every set also holds the mask that is 1 everywhere, of a sample left as it is."""

    CONSTANTS = 1
    CUTS = 2  # boxes, 1 outside and 0 inside
    BOXES = 4  # boxes of any two values
    GAUSSIANS = 8
    STORED = 16  # a bit for each pixel
    LEVELS = 32  # a level for each pixel
    SMOOTH = 64  # discs and squares with a soft edge
    CELLS = 128  # of a grid, each 1 or 0
    LARGE_CELLS = 256  # the same, of more than a record has bits: a bit for each cell is stored

    @property
    def constant(self) -> bool:
        """Whether every mask is one number."""
        return self == Families.CONSTANTS

    @property
    def binary(self) -> bool:
        """Whether every mask is 0 or 1 everywhere."""
        return not int(self) & ~_BINARY

    @property
    def boxed(self) -> bool:
        """Whether there may be boxes."""
        return bool(int(self) & _BOXED)

    @property
    def stored(self) -> bool:
        """Whether there may be masks that no formula gives."""
        return bool(int(self) & _STORED)


# As plain numbers: the arithmetic of flags takes microseconds, and every call asks.
_BINARY = int(Families.CUTS | Families.STORED | Families.CELLS | Families.LARGE_CELLS)
_BOXED = int(Families.CUTS | Families.BOXES)
_STORED = int(Families.STORED | Families.LEVELS | Families.LARGE_CELLS)


class Drawn(IntFlag):
    """What a method draws on the host after λ and the partners, in this order."""

    CENTRE = 1  # along the last, second to last, third to last axis
    COIN = 2  # whether a number of pixels or cells is rounded up
    NOISE = 4  # a seed, one for the batch
    PLACE = 8  # of a box that is wholly inside: 32 bits for each axis, in the order of CENTRE
    SIDES = 16  # of a box whose sides do not follow from λ: 32 bits for each axis, in the order of CENTRE
    ASPECT = 32  # of a box in two or three dimensions: 32 bits
    RATIO = 64  # HMix's: this one after λ, before the partners


class Number(IntEnum):
    """The places of the numbers of a draw that was made on the host."""

    CHOICE = 0  # the row of the spec
    APPLIED = 1
    LAM = 2  # before any clamp
    CENTRE = 3  # z, y, x
    COIN = 6
    NOISE = 7  # below 2^52, the same in every row
    PLACE = 8  # z, y, x: below 2^32
    SIDES = 11  # z, y, x: below 2^32
    ASPECT = 14  # below 2^32
    RATIO = 15  # of HMix, in [0, 1]


WIDTH = Number.RATIO + 1  # numbers of one draw


class Column(IntEnum):
    """The columns of a spec (fusedmix/spec.py)."""

    METHOD = 0
    WEIGHT = 1  # probability of this row, the rows summing to 1; NaN where there is no choice, and none is drawn
    P = 2  # probability that the method, once chosen, is applied
    ALPHA = 3  # λ ~ Beta(α, α); α <= 0 means λ = 1
    LAM = 4  # λ itself where it is fixed, else NaN
    LAM_MIN = 5
    LAM_MAX = 6
    RATIO = 7  # HMix: the share of the mixing that the box does, where it is not drawn
    DECAY = 8  # FMix: the amplitude of frequency f is f^-decay
    SOFT = 9  # FMix: the share of the pixels on either side of the edge over which the mask falls from 1 to 0
    CUTOFF = 10  # FMix: the highest frequency, in cycles along the longest side; infinity: all there are
    REFORMULATE = 11  # FMix: 1 for λ ~ Beta(α+1, α) and a label weight of 1
    DRAWS = 12  # Drawn, of the method and its options
    FAMILIES = 13  # Families, of the method
    EDGE = 14  # SmoothMix: σ of the edge, in longest sides
    INSIDE = 15  # boxes: 1 where they lie wholly inside the image, 0 where it clips them
    SIDE_LOW = 16  # boxes whose sides do not follow from λ: the least, as a share of the image's
    SIDE_HIGH = 17  # ... and the largest; 0: the sides follow from λ
    ASPECT_LOW = 18  # boxes: the least width/height, in pixels
    ASPECT_HIGH = 19  # ... and the largest; 0: that of the image
    RATIO_ALPHA = 20  # HMix: γ of a ratio ~ Beta(γ, γ); 0: it is RATIO
    CELLS_Z = 21  # GridMix: cells along each axis; 0 along those that the images have not
    CELLS_Y = 22
    CELLS_X = 23
    FOLD = 24  # 1 for λ ← max(λ, 1-λ) once it is drawn and clamped


class Pairing(IntEnum):
    """How partners are found. ROLL and FLIP are formulas, so a kernel that knows them loads no partner indices."""

    ROLL = 0
    FLIP = 1
    RANDOM = 2
    CROSS_CLASS = 3
    SAME_CLASS = 4

    @property
    def is_formula(self) -> bool:
        """Whether the partners follow from the batch size alone."""
        return self in (Pairing.ROLL, Pairing.FLIP)

    @property
    def by_class(self) -> bool:
        """Whether the partners follow from the labels."""
        return self in (Pairing.CROSS_CLASS, Pairing.SAME_CLASS)


class Per(IntEnum):
    """How many draws a batch gets."""

    BATCH = 0
    PAIR = 1
    SAMPLE = 2

    def draws(self, batch_size: int) -> int:
        """Number of independent draws for a batch."""
        if self == Per.PAIR:
            return (batch_size + 1) // 2
        return 1 if self == Per.BATCH else batch_size


class Reduction(IntEnum):
    """What becomes of a batch of losses."""

    NONE = 0
    SUM = 1
    MEAN = 2  # over the batch
    MEAN_OF_ALL = 3  # over batch and classes


class Resize(IntEnum):
    """How what is pasted takes the size of its box."""

    NEAREST = 0
    LINEAR = 1  # between the centres of pixels (align_corners=False)
    LINEAR_CORNERS = 2  # corners on corners (align_corners=True)
