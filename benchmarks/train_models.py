"""The models whose training steps are timed, each with its batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.stride, self.more = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.more:  # the shortcut without parameters: every other pixel, and channels of zeros
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return F.relu(x + y)


class ResNet20(nn.Module):
    """The 20 layers for 32x32 images of He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, sec. 4.2:
    .27 M parameters, 41 M multiply-adds an image."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(*(_Block(a, b, 1 if a == b else 2) for a, b in itertools.pairwise(widths)))
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def _resnet20(classes: int, side: int) -> nn.Module:
    return ResNet20(classes)


def _resnet50(classes: int, side: int) -> nn.Module:
    from torchvision.models import resnet50

    return resnet50(num_classes=classes)


def _vit_s(classes: int, side: int) -> nn.Module:
    import timm

    return timm.create_model("vit_small_patch16_224", num_classes=classes, img_size=side)


@dataclass(frozen=True)
class Workload:
    """A model and what it is trained on."""

    make: Callable[[int, int], nn.Module]  # classes, side of the image
    batch: int
    cpu_batch: int  # 0: too slow to be timed there
    side: int
    classes: int
    captured: bool = False  # whether it is small enough for a CUDA graph to matter

    def shape(self, device_type: str, tiny: bool) -> tuple[int, int, int, int]:
        if tiny:
            return (4, 3, 32, 32)
        return (self.cpu_batch if device_type == "cpu" else self.batch, 3, self.side, self.side)


WORKLOADS = {
    "resnet20": Workload(_resnet20, 512, 128, 32, 100, captured=True),
    "resnet50": Workload(_resnet50, 256, 0, 224, 1000),
    "vit_s": Workload(_vit_s, 256, 0, 224, 1000),
}
