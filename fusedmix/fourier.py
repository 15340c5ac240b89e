"""FMix's masks: grey images of Fourier noise, of which the largest pixels are 1 (Harris, Marcu, Painter, Niranjan,
Prügel-Bennett, Hare, "FMix: Enhancing Mixed Sample Data Augmentation", 2020).

A grey image is G(z, y, x) = Σ_k [a_k cos θ - b_k sin θ], θ = 2π(kz·z/D + ky·y/H + kx·x/W): k in half of the spectrum,
which is all there is to a real image; a_k and b_k normal, of a standard deviation that falls with the frequency f = |k|
(cycles per pixel) as f^-decay, and not below the frequency of one cycle along the longest side.

* `paper`: isotropic. It is Re ifft(Z·amplitude) of independent complex Z on the whole spectrum; folding it in half
  doubles the variance of each pair k, -k, hence √2 but for the columns kx = 0 and kx = W/2, which hold both.
* `released`: the published code indexes the wrong axis of its noise array. So only kx = 0 and 1 occur, and what stands
  at row ky has the amplitude of a frequency along the next axis (METHODS: verified against the code).

How it is computed. At decay 3 almost all of the image is in its first few frequencies, so instead of a fast Fourier
transform of everything there are two (in 3-D three) small sums, axis by axis: along the rows for every kx, then along
the columns for every row, with 2·(2K+1)·K·H + 2·2K·H·W products for K frequencies. Frequencies above `cutoff` cycles
along the longest side are left out; that is part of the definition, the same on every backend. With 32 of the 112 of
224 pixels and decay 3 some .018 % of the pixels differ from those of the whole spectrum. And no backend needs a library
for it.

The noise is a pure function of (seed, mask, frequency), whatever the size and the cut-off: an image of other sides has
the same low frequencies. The rank of a pixel decides whether it is 1, not its value: the `number` largest are, and of
equal ones the first. Masks are kept as bits; with a soft edge as 16-bit levels, M = level / 65535.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fusedmix.masks.family import geometry, kind, value
from fusedmix.masks.fourier import LEVELS
from fusedmix.methods import Column, Kind, Method, Per
from fusedmix.philox import Stream, box_muller, words

# The frequencies whose noise has a number of its own, by the number of axes: bits of kx, of |ky|, of kz.
_BITS = {1: (31, 0, 0), 2: (16, 16, 0), 3: (10, 10, 12)}


def default_cutoff(decay_power: float) -> int:
    """How many frequencies matter, in cycles along the longest side. Slower decays leave more above any: for them it is
    the whole spectrum of up to 512 pixels."""
    return 32 if decay_power >= 3.0 else 256


def words_per_mask(size: tuple[int, ...]) -> int:
    """32-bit words that hold a bit for every pixel: bit q % 32 of word q // 32 is pixel q in row-major order."""
    return -(-math.prod(size) // 32)


def frequencies(size: tuple[int, ...], variant: str, cutoff: float = math.inf) -> tuple[range, ...]:
    """Which integer frequencies occur along each axis: of the last axis half of them."""
    if variant == "released":
        half = size[-1] // 2 + 1 + size[-1] % 2  # entries of the array's last axis
        along = (*size[1:-1], half)
        leading = tuple(range(min(entries, side)) for entries, side in zip(along, size, strict=False))
        return (*leading[: len(size) - 1], range(min(2, size[-1] // 2 + 1)))
    longest = max(size)
    most = [min(side // 2, int(cutoff * side / longest) if cutoff < longest else side // 2) for side in size]
    leading = tuple(range(-min(k, (side - 1) // 2), k + 1) for k, side in zip(most[:-1], size, strict=False))
    return (*leading, range(most[-1] + 1))


def amplitudes(
    size: tuple[int, ...], variant: str, decay_power: float, cutoff: float = math.inf
) -> tuple[Tensor, Tensor]:
    """The standard deviations of a_k and b_k, float64, over the product of `frequencies`, with f in cycles along the
    longest side: that of the slowest wave is one.

    Args:
        size: 1 to 3 sides in pixels.
        variant: "paper" or "released".
        decay_power: δ >= 0.
        cutoff: cycles along the longest side; "released" knows none.
    """
    along = frequencies(size, variant, cutoff)
    last = torch.tensor(list(along[-1]), dtype=torch.float64)
    doubled = (last != 0) & (2 * last != size[-1])
    if variant == "released":
        # Row k of an axis has the frequency of row k of the next one, in the order of an array.
        squares = torch.zeros([len(k) for k in along], dtype=torch.float64)
        for axis in range(len(size) - 1):
            other = torch.fft.fftfreq(size[axis + 1], dtype=torch.float64)
            entries = torch.arange(len(along[axis])) % size[axis + 1]
            squares = squares + other[entries].square().reshape([-1 if a == axis else 1 for a in range(len(size))])
        imaginary = squares + size[0] ** -2
        factor = torch.where(doubled, torch.full_like(last, 2.0), 1.0)
    else:
        squares = torch.zeros((), dtype=torch.float64)
        for axis, k in enumerate(along):
            f = torch.tensor(list(k), dtype=torch.float64) / size[axis]
            squares = squares + f.square().reshape([-1 if a == axis else 1 for a in range(len(size))])
        imaginary = squares
        factor = torch.where(doubled, torch.full_like(last, math.sqrt(2.0)), 1.0)
    real, imaginary = ((s.sqrt() * max(size)).clamp_min(1.0) ** -decay_power for s in (squares, imaginary))
    return factor * real, factor * imaginary


def noise(
    seed: Tensor, index: Tensor, along: tuple[range, ...], stream: Stream = Stream.NOISE
) -> tuple[Tensor, Tensor]:
    """(n, *frequencies) standard normal float64 for a_k and for b_k.

    Args:
        seed: () int64.
        index: (n,) int64, which draw of the batch each mask is.
        along: the frequencies along each axis.
        stream: whose noise it is.
    """
    device, ndim = index.device, len(along)
    kz, ky, kx = (
        (torch.arange(along[axis].start, along[axis].stop, device=device) if axis >= 0 else index.new_zeros(1)).reshape(
            [-1 if a == place else 1 for a in range(3)]
        )
        for place, axis in enumerate((ndim - 3, ndim - 2, ndim - 1))
    )
    x_bits, y_bits, _ = _BITS[ndim]
    number = kx + (ky.abs() << x_bits) + ((2 * kz.abs() - (kz > 0).long()) << (x_bits + y_bits))
    a, b, c, d = words(seed, index.reshape(-1, 1, 1, 1), stream, number)
    shape = [index.shape[0], *(len(k) for k in along)]
    real, imaginary = box_muller(torch.where(ky < 0, c, a), torch.where(ky < 0, d, b))
    return real.reshape(shape), imaginary.reshape(shape)


def synthesise(a: Tensor, b: Tensor, along: tuple[range, ...], size: tuple[int, ...]) -> Tensor:
    """G(z, y, x) = Σ_k [a_k cos θ - b_k sin θ], (n, *size), of (n, *frequencies) coefficients, axis by axis."""
    field = torch.complex(a, b)
    for axis, (k, side) in enumerate(zip(along, size, strict=True)):
        # k·x modulo the side is exact, and so are the angles of multiples of a quarter.
        steps = torch.tensor(list(k), device=a.device).unsqueeze(1) * torch.arange(side, device=a.device) % side
        angle = steps.to(a.dtype) * (2.0 * math.pi / side)
        field = torch.tensordot(field, torch.polar(torch.ones_like(angle), angle), dims=([1], [0]))
        assert field.shape[-1] == size[axis]
    return field.real


def grey(seed: Tensor, index: Tensor, size: tuple[int, ...], variant: str, decay: float, cutoff: float) -> Tensor:
    """(n, *size) float64 grey images."""
    along = frequencies(size, variant, cutoff)
    a, b = noise(seed, index, along)
    of_a, of_b = (s.to(a.device) for s in amplitudes(size, variant, decay, cutoff))
    return synthesise(a * of_a, b * of_b, along, size)


def levels(grey: Tensor, number: Tensor, soft: Tensor) -> Tensor:
    """(n, S) int64 levels of 0..LEVELS from (n, S) grey values: LEVELS for the `number` largest, of equal ones the
    first, 0 for the rest. With `soft` s > 0 the level falls linearly over the ranks number-s to number+s-1, from LEVELS
    to 0."""
    pixels = grey.shape[1]
    order = grey.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(pixels, device=grey.device).expand_as(order))
    number, soft = number.long().unsqueeze(1), soft.long().unsqueeze(1)
    steps = (2 * soft - 1).clamp_min(1)
    left = steps - (rank - (number - soft))  # of `steps`, in the soft part
    ramp = (2 * LEVELS * left.clamp(min=0) + steps) // (2 * steps)
    return torch.where(rank < number - soft, LEVELS, torch.where(rank >= number + soft, 0, ramp.clamp_max(LEVELS)))


def pack(ones: Tensor) -> Tensor:
    """(n, S) bool as (n, ceil(S / 32)) int32 words, the first pixel in the lowest bit."""
    n, pixels = ones.shape
    padded = torch.nn.functional.pad(ones.byte(), (0, -pixels % 32)).reshape(n, 4 * -(-pixels // 32), 8)
    bit = torch.ones(8, dtype=torch.uint8, device=ones.device) << torch.arange(8, device=ones.device)
    return (padded * bit).sum(2, dtype=torch.uint8).view(torch.int32)


def draw_of(row: Tensor, per: int, batch_size: int) -> Tensor:
    """Which draw of a batch a sample takes its numbers from."""
    return row if per == Per.SAMPLE else torch.minimum(row, batch_size - 1 - row) if per == Per.PAIR else row * 0


def rows(per: int, batch_size: int) -> int:
    """How many masks are stored for a batch."""
    return Per(per).draws(batch_size) if batch_size else 0


def masks(
    spec: Tensor, records: Tensor, seed: Tensor, size: tuple[int, ...], per: int, draws: int, soft: bool
) -> Tensor:
    """The pixels of the Fourier masks of a plan: bits, or levels.

    Args:
        spec: (methods, len(Column)): what may have been drawn.
        records: (B, 12): the masks of the plan.
        seed: () or (1,) int64: of the noise.
        size: 1 to 3 spatial sides.
        per: how many masks the batch has: row i of the result is that of sample i ("batch": of all, "pair": of i and
            B-1-i).
        draws: which noise each has: that of its draw.
        soft: whether levels are wanted.

    Returns:
        (masks, ceil(S / 32)) int32, or (masks, S) int16, on the plan's device. Rows of other kinds of masks are 0.
    """
    size, batch_size, count, device = tuple(size), records.shape[0], math.prod(size), records.device
    n = rows(per, batch_size)
    shape, dtype = ((n, count), torch.int16) if soft else ((n, words_per_mask(size)), torch.int32)
    out = torch.zeros(shape, dtype=dtype, device=device)
    seed = seed.to(device).reshape(-1)[:1].reshape(()) if n else seed
    index = draw_of(torch.arange(n, device=device), draws, batch_size)
    of, (number, half), numbers = kind(records)[:n], geometry(records)[:n, :2].unbind(1), value(records)[:n]
    for method, decay, cutoff in sorted(set(fourier_rows(spec))):
        released = method == Method.FMIX_RELEASED
        image = torch.tensor([decay, cutoff], dtype=torch.float32, device=device)
        wanted = (of == (Kind.FOURIER_RELEASED if released else Kind.FOURIER)) & (numbers == image).all(1)
        for i in wanted.nonzero().flatten().tolist():
            g = grey(seed, index[i : i + 1], size, "released" if released else "paper", decay, cutoff)
            level = levels(g.flatten(1), number[i : i + 1], half[i : i + 1])
            out[i] = level.to(torch.int16)[0] if soft else pack(level == LEVELS)[0]
    return out


def fourier_rows(spec: Tensor) -> list[tuple[int, float, float]]:
    """(method, decay, cutoff) of the rows of a spec that are FMix, the last two as a plan has them, in float32."""
    return [
        (int(row[Column.METHOD]), *torch.tensor([row[Column.DECAY], row[Column.CUTOFF]]).tolist())
        for row in spec.tolist()
        if row[Column.METHOD] in (Method.FMIX_RELEASED, Method.FMIX_PAPER)
    ]
