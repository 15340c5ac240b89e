"""FMix's mask as its authors describe it (Harris et al. 2020, and the steps of their code), in NumPy: the baseline."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt


def mask(
    height: int, width: int, lam: float, generator: np.random.Generator, decay_power: float = 3.0
) -> npt.NDArray[np.float32]:
    """One binary mask: low-frequency noise by an inverse transform, scaled to 0..1, its largest pixels set to 1."""
    fx = np.fft.fftfreq(width)[: width // 2 + 1]
    fy = np.fft.fftfreq(height)[:, None]
    scale = 1.0 / np.maximum(np.sqrt(fx * fx + fy * fy), 1.0 / max(height, width)) ** decay_power
    noise = generator.standard_normal((*scale.shape, 2))
    grey = np.fft.irfft2(scale * (noise[..., 0] + 1j * noise[..., 1]), (height, width))
    grey = grey - grey.min()
    flat = (grey / grey.max()).reshape(-1)
    order = flat.argsort()[::-1]
    share = lam * flat.size
    number = math.ceil(share) if generator.random() > 0.5 else math.floor(share)
    flat[order[:number]], flat[order[number:]] = 1.0, 0.0
    return flat.reshape(height, width).astype(np.float32)
