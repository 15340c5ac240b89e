"""Where the demo's photographs come from: the wheels of scikit-image and scikit-learn, never the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from skimage import data
from sklearn.datasets import load_sample_image
from torch import Tensor


@dataclass(frozen=True)
class Photo:
    name: str
    load: Callable[[], Any]  # -> (H, W, 3) uint8 array
    zoom: float  # side of the square crop as a fraction of the shorter side
    centre: tuple[float, float]  # of the crop, as fractions of height and width

    def crop(self, size: int) -> Tensor:
        """(3, size, size) float32 in [0, 1]."""
        image = torch.tensor(self.load()).permute(2, 0, 1).float() / 255
        side = int(min(image.shape[1:]) * self.zoom)
        top, left = (
            min(max(int(c * n) - side // 2, 0), n - side) for c, n in zip(self.centre, image.shape[1:], strict=True)
        )
        square = image[None, :, top : top + side, left : left + side]
        return F.interpolate(square, (size, size), mode="bilinear", antialias=True)[0]


PHOTOS = (
    Photo("astronaut", data.astronaut, 0.8, (0.4, 0.45)),
    Photo("cat", data.chelsea, 1.0, (0.5, 0.5)),
    Photo("coffee", data.coffee, 1.0, (0.5, 0.5)),
    Photo("rocket", data.rocket, 0.75, (0.58, 0.5)),
    Photo("palace", partial(load_sample_image, "china.jpg"), 1.0, (0.5, 0.43)),
    Photo("flower", partial(load_sample_image, "flower.jpg"), 0.85, (0.44, 0.52)),
)

# Those of scikit-learn are CC BY 2.0 and ask for this wherever a sheet is shown; the others are in the public domain.
CREDITS = (
    "Photographs: NASA (astronaut), Stéfan van der Walt (cat), Rachel Michetti (coffee), SpaceX (rocket), "
    "danielbuechele (palace) and vultilion (flower) on Flickr, CC BY 2.0"
)


def load_photos(size: int = 224) -> tuple[Tensor, list[str]]:
    """The batch, (6, 3, size, size) float32 in [0, 1], and the name of each photograph."""
    return torch.stack([photo.crop(size) for photo in PHOTOS]), [photo.name for photo in PHOTOS]
