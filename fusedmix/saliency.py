"""Saliency without a network: where an image differs from what is around it, and nothing but the image is asked.

Both are torch operations on the device of the images, a batch at a time, and nothing waits for the device.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fusedmix import checks
from fusedmix.backends.reference import has_float64
from fusedmix.subclasses import plain

_SIDE = 64  # to which spectral saliency resizes every side
_LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
# How far the surroundings reach that a pixel is compared with: six scales.
_SURROUNDS = (12, 24, 48, 28, 56, 112)


def resized(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Maps (B, *sides) at other sides, (B, *size): linear along every axis, between the centres of pixels."""
    if maps.shape[1:] == size or not maps.shape[0]:
        return maps.reshape(maps.shape[0], *size)
    return F.interpolate(maps.unsqueeze(1), size, mode=_LINEAR[len(size)], align_corners=False).squeeze(1)


def between(side: int, count: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """How `resized` brings a side to `count` pixels: between which two of its own each lies, and how far from the first
    of these."""
    place = ((torch.arange(count, dtype=torch.float64, device=device) + 0.5) * side / count - 0.5).clamp(0, side - 1)
    low = place.long()
    return low, (low + 1).clamp_max(side - 1), place - low


def spectral_saliency(images: Tensor) -> Tensor:
    """Spectral residual: what is left of the logarithm of an image's spectrum less its local mean (Hou, Zhang,
    "Saliency Detection: A Spectral Residual Approach", CVPR 2007), at 64 pixels a side.

    It is what OpenCV's StaticSaliencySpectralResidual computes before it resizes the map to the image, of one image a
    call and on the CPU. A factor or an offset of the whole image hardly changes it, so normalised images serve as well.

    Args:
        images: (B, C, *sides), 1 to 3 spatial sides of at least one pixel; any real dtype and range. Of three channels
            it takes the grey value of red, green and blue, of any other number the mean. NaN and infinities count as 0.

    Returns:
        (B, 64, ...) float32 in [0, 1], 1 at the most salient pixel, on the device of the images; or on the CPU if there
        is no float64 there.

    Raises:
        TypeError, ValueError: images are no tensor of such a shape.
    """
    x = _images(images)
    size = (_SIDE,) * (x.ndim - 2)
    if not len(x):
        return x.new_zeros((0, *size), dtype=torch.float32)
    # In float64, so that the spectrum is nothing where a small image that is stretched has nothing.
    grey = resized(_rows(x).double(), size)
    axes = tuple(range(1, grey.ndim))
    spectrum = torch.fft.fftn(grey, dim=axes)
    log = spectrum.abs().clamp_min(torch.finfo(torch.float64).tiny).log()
    # Float64 tells no less than e^-42 of the largest from nothing, and a constant image has nothing but one frequency.
    log = torch.maximum(log, log.amax(axes, keepdim=True) - 42.0)
    residual = spectrum * (-_smoothed(log, [1.0, 1.0, 1.0])).exp()
    found = _smoothed(torch.fft.ifftn(residual, dim=axes).abs(), [math.exp(-(k * k) / 128) for k in range(-2, 3)])
    return _shares(found, found.amax(axes, keepdim=True)).square().float()


def _rows(x: Tensor) -> Tensor:
    """Grey values (B, *sides) of images of (B, C, *sides), of which those rows that take no part are left out where the
    first side is resized to fewer pixels: to convert and to weight all of them would take most of the time."""
    low, high, share = between(x.shape[2], _SIDE, x.device)
    near, far = (_grey(x.index_select(2, index)) for index in (low, high))
    return near.lerp_(far, share.to(near.dtype).reshape(-1, *[1] * (x.ndim - 3)))


def fine_grained_saliency(images: Tensor) -> Tensor:
    """Fine-grained saliency: how much brighter or darker a pixel is than the squares around it, at six scales
    (Montabone, Soto, "Human detection using a mobile platform and novel features derived from a visual saliency
    mechanism", Image and Vision Computing 2010). It is the saliency of the SaliencyMix paper.

    It follows OpenCV's StaticSaliencyFineGrained, without rounding to 8 bits at every step. Every side keeps its
    pixels, so it takes some ten times as long as `spectral_saliency` on images of 224x224.

    Args:
        images: (B, C, H, W); any real dtype and range, of which that of each image is stretched to [0, 1]: the map does
            not depend on a factor or an offset. Grey values as of `spectral_saliency`.

    Returns:
        (B, H, W) float32 in [0, 2], on the device of the images.

    Raises:
        TypeError, ValueError: images are no tensor of such a shape.
    """
    x = _images(images)
    if x.ndim != 4:
        raise ValueError(f"images must be (batch_size, channels, height, width), but got shape {tuple(images.shape)}.")
    if not len(x):
        return x[:, 0].float()
    grey = _grey(x)
    grey = _smoothed(_smoothed(grey, [1.0, 2.0, 1.0]), [1.0, 2.0, 1.0])
    low, high = grey.amin((1, 2), keepdim=True), grey.amax((1, 2), keepdim=True)
    grey = _shares(grey - low, high - low)
    sums = F.pad(grey.double(), (1, 0, 1, 0)).cumsum(1).cumsum(2)
    brighter, darker = torch.zeros_like(grey), torch.zeros_like(grey)
    for reach in _SURROUNDS:
        # The square ends one row and column before the end of the image, as OpenCV's does, and leaves the pixel out.
        (top, bottom), (left, right) = (_span(side, reach, grey.device) for side in grey.shape[1:])
        band = sums.index_select(1, bottom) - sums.index_select(1, top)
        total = band.index_select(2, right) - band.index_select(2, left)
        others = ((bottom - top)[:, None] * (right - left) - 1).clamp_min(1)
        difference = grey - ((total - grey) / others).float()
        brighter += difference.clamp_min(0)
        darker -= difference.clamp_max(0)
    return _shares(brighter, brighter.amax((1, 2), keepdim=True)) + _shares(darker, darker.amax((1, 2), keepdim=True))


def _span(side: int, reach: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The first row of the surroundings of each pixel along a side, and the one behind the last."""
    pixel = torch.arange(side, device=device)
    first, stop = (pixel - reach + 1).clamp(0, side - 1), (pixel + reach + 1).clamp(0, side - 1)
    return first, torch.maximum(stop, first)


def _shares(x: Tensor, whole: Tensor) -> Tensor:
    """x / whole, 0 where the whole is 0."""
    return x / torch.where(whole > 0, whole, torch.ones_like(whole))


def _images(images: Tensor) -> Tensor:
    """The images, where there is float64."""
    x = plain(checks.tensor("images", images)).detach()
    if not 3 <= x.ndim <= 5 or 0 in x.shape[1:] or x.dtype.is_complex:
        raise ValueError(
            "images must be real numbers of shape (batch_size, channels, *sides) with 1 to 3 spatial sides, but got "
            f"{checks.names([x.dtype])} of shape {tuple(x.shape)}."
        )
    return x if has_float64(x.device) else x.cpu()


def _grey(x: Tensor) -> Tensor:
    """(B, *sides) float32 of (B, C, *sides)."""
    x = x.float()
    if x.shape[1] == 3:
        red, green, blue = x.unbind(1)
        x = (_LUMA[0] * red).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])
    else:
        x = x.mean(1)
    return x.nan_to_num(0.0, 0.0, 0.0)


def _smoothed(x: Tensor, weights: list[float]) -> Tensor:
    """The weighted mean of an odd number of neighbours along every axis of (B, *sides), reflected at the borders."""
    whole, reach = sum(weights), len(weights) // 2
    for axis in range(1, x.ndim):
        side = x.shape[axis]
        within = x.index_select(axis, _reflected(torch.arange(-reach, side + reach, device=x.device), side))
        x = torch.zeros_like(x)
        for k, weight in enumerate(weights):
            x.add_(within.narrow(axis, k, side), alpha=weight / whole)
    return x


def _reflected(index: Tensor, side: int) -> Tensor:
    """Indices of a side, mirrored at its first and last pixel."""
    period = max(2 * (side - 1), 1)
    index = index.remainder(period)
    return torch.minimum(index, period - index).clamp_max(side - 1)
