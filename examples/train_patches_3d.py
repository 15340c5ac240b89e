"""Segmentation of volumes in 3-D patches, after nnU-Net: cuboids of CutMix in patches of int16, and in their maps.

    python examples/train_patches_3d.py            # some minutes on a CPU, less on a GPU
    python examples/train_patches_3d.py --quick    # seconds
    python examples/train_patches_3d.py --no-mix   # the same patches without CutMix

The volumes are made: tissue of about 40 HU with vessels and, to be found, lesions a little denser, all under noise.
One plan mixes a batch: `fm.mix` the patches, still the scanner's integers, and `fm.mix_masks` the label maps. Patches
and plans follow from the seed, so that two runs on one machine print the same numbers.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fusedmix as fm

CLASSES = 3  # tissue, vessel, lesion
MEAN, STD = 50.0, 40.0  # HU


def scans(count: int, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(count, 1, side, side, side) int16 in HU, and (count, side, side, side) uint8 classes."""
    places = torch.stack(torch.meshgrid(*[torch.arange(float(side))] * 3, indexing="ij"), -1)
    volumes, maps = [], []
    for _ in range(count):
        classes = torch.zeros((side,) * 3, dtype=torch.uint8)
        for _ in range(2):  # a vessel is near a line
            point, direction = side * torch.rand(3, generator=generator), torch.randn(3, generator=generator)
            along = F.normalize(direction, dim=0)
            away = (places - point) - ((places - point) @ along).unsqueeze(-1) * along
            classes[away.norm(dim=-1) < 2] = 1
        for _ in range(3):  # a lesion is an ellipsoid
            centre, radii = side * torch.rand(3, generator=generator), 2 + side / 8 * torch.rand(3, generator=generator)
            classes[((places - centre) / radii).norm(dim=-1) < 1] = 2
        density = torch.tensor([40.0, 120.0, 75.0])[classes.long()]
        noisy = density + 15 * torch.randn(density.shape, generator=generator)
        volumes.append(noisy.round().to(torch.int16).unsqueeze(0))
        maps.append(classes)
    return torch.stack(volumes), torch.stack(maps)


def patches(
    volumes: Tensor, maps: Tensor, size: int, batch_size: int, steps: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of random patches; every third patch is around a voxel that is no tissue, as nnU-Net oversamples."""
    side = volumes.shape[-1]
    labelled = [(each != 0).nonzero() for each in maps]
    for _ in range(steps):
        batch = []
        for number in range(batch_size):
            i = int(torch.randint(len(volumes), (), generator=generator))
            first = torch.randint(side - size + 1, (3,), generator=generator)
            if number % 3 == 0:
                voxel = labelled[i][int(torch.randint(len(labelled[i]), (), generator=generator))]
                first = (voxel - size // 2).clamp(0, side - size)
            z, y, x = (slice(at, at + size) for at in first.tolist())
            batch.append((volumes[i, :, z, y, x], maps[i, z, y, x]))
        images, labels = zip(*batch, strict=True)
        yield torch.stack(images), torch.stack(labels)


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv3d(inputs, outputs, 3, stride, 1), nn.InstanceNorm3d(outputs, affine=True), nn.LeakyReLU(0.01)),
        *(nn.Conv3d(outputs, outputs, 3, 1, 1), nn.InstanceNorm3d(outputs, affine=True), nn.LeakyReLU(0.01)),
    )


class UNet(nn.Module):
    """Three levels of `width`, 2·width and 4·width channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.ModuleList([block(1, width), block(width, 2 * width, 2), block(2 * width, 4 * width, 2)])
        self.rise = nn.ModuleList(nn.ConvTranspose3d(2 * n, n, 2, 2) for n in (2 * width, width))
        self.up = nn.ModuleList(block(2 * n, n) for n in (2 * width, width))
        self.head = nn.Conv3d(width, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        levels = []
        for down in self.down:
            x = down(x)
            levels.append(x)
        for rise, up, skip in zip(self.rise, self.up, reversed(levels[:-1]), strict=True):
            x = up(torch.cat((rise(x), skip), 1))
        return self.head(x)


def normalised(volumes: Tensor, device: torch.device) -> Tensor:
    return (volumes.to(device).float() - MEAN) / STD


def overlaps(shares: Tensor, maps: Tensor) -> Tensor:
    """The Dice coefficients (CLASSES,) of shares (B, CLASSES, *S), in [0, 1], with label maps (B, *S)."""
    wanted = F.one_hot(maps.long(), CLASSES).movedim(-1, 1)
    summed = [0, *range(2, shares.ndim)]
    return 2 * (shares * wanted).sum(summed) / ((shares + wanted).sum(summed) + 1e-5)


def train(
    *,
    volumes: int,
    side: int,
    size: int,
    width: int,
    epochs: int,
    steps: int,
    mix: fm.MixTransform | None,
    batch_size: int = 4,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> list[tuple[float, list[float]]]:
    """Trains on patches, and measures on whole volumes, which are not mixed.

    Returns:
        For each epoch the mean loss and the Dice coefficients of vessels and lesions.
    """
    torch.manual_seed(seed)
    device, generator = torch.device(device), torch.Generator().manual_seed(seed)
    images, labels = scans(volumes, side, generator)
    held_out, truth = scans(max(1, volumes // 4), side, generator)
    model = UNet(width).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=3e-5)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, epochs * steps, power=0.9)
    history = []
    for epoch in range(epochs):
        model.train()
        total = 0.0
        for x, y in patches(images, labels, size, batch_size, steps, generator):
            x, y = x.to(device), y.to(device)
            if mix is not None:
                plan = mix.sample(len(x), tuple(x.shape[2:]))
                x, y = fm.mix(x, plan), fm.mix_masks(y, plan)
            logits = model(normalised(x, device))
            loss = F.cross_entropy(logits, y.long()) - overlaps(logits.softmax(1), y)[1:].mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 12)
            optimizer.step()
            schedule.step()
            total += loss.item()
        model.eval()
        with torch.no_grad():
            found = F.one_hot(model(normalised(held_out, device)).argmax(1), CLASSES).movedim(-1, 1)
            dice = overlaps(found, truth.to(device))[1:].tolist()
        history.append((total / steps, dice))
        print(f"epoch {epoch}: loss {total / steps:.3f}, Dice of vessels {dice[0]:.3f}, of lesions {dice[1]:.3f}")
    return history


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small volumes and two epochs")
    parser.add_argument("--no-mix", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    of = {"volumes": 4, "side": 24, "size": 16, "width": 4, "epochs": 2, "steps": 8}
    if not options.quick:
        of = {"volumes": 24, "side": 64, "size": 48, "width": 16, "epochs": 20, "steps": 50}
    mix = None if options.no_mix else fm.CutMix(axes=(-3, -2, -1), per="sample", pairing="random")
    train(**of, mix=mix, device=options.device, seed=options.seed)


if __name__ == "__main__":
    main()
