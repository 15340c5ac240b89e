"""Mixing in a training loop with Accelerate: on one device, on several ranks, with gradient accumulation, resumed.

    accelerate launch examples/train_accelerate.py --epochs 10 --checkpoint run
    accelerate launch examples/train_accelerate.py --epochs 20 --checkpoint run   # goes on where that one ended

What mixing asks of the loop: set_seed(device_specific=True), without which all ranks draw the same; the module called
on the batch as it arrives, on its device; the loss of soft targets. save_state and load_state keep the generators of
every rank, so a resumed training mixes as one that was not interrupted.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import fusedmix as fm

CLASSES = 4


def striped(samples: int, seed: int) -> TensorDataset:
    """Noisy images (samples, 3, 16, 16) of stripes in one of four directions, and which (samples,)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (samples,), generator=generator)
    angle = labels * torch.pi / CLASSES
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    stripes = torch.sin(angle.cos().view(-1, 1, 1) * x + angle.sin().view(-1, 1, 1) * y)
    noise = torch.randn(samples, 3, 16, 16, generator=generator)
    return TensorDataset(stripes.unsqueeze(1) + 0.5 * noise, labels)


def small_cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Dropout(0.1), nn.Linear(32, CLASSES)),
    )


def accuracy(accelerator: Accelerator, model: nn.Module, loader: DataLoader) -> float:
    """The share of correct predictions on all ranks. Nothing is mixed: `mixer` is not called."""
    model.eval()
    correct = []
    with torch.no_grad():
        for images, labels in loader:
            correct.append(accelerator.gather_for_metrics(model(images).argmax(1) == labels))
    return float(torch.cat(correct).double().mean())


def train(
    mixer: fm.MixTransform,
    data: Dataset,
    test: Dataset,
    *,
    epochs: int,
    batch_size: int = 16,
    accumulate: int = 2,
    seed: int = 0,
    cpu: bool = False,
    checkpoint: Path | None = None,
) -> list[dict[str, Tensor]]:
    """Trains a small network up to an epoch, from the checkpoint if there is one.

    Returns:
        What this rank saw in each step: "images", "targets" and "loss".
    """
    accelerator = Accelerator(
        cpu=cpu,
        gradient_accumulation_steps=accumulate,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
    )
    set_seed(seed)
    model = small_cnn()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader, test_loader = DataLoader(data, batch_size, shuffle=True), DataLoader(test, batch_size)
    model, optimizer, loader, test_loader = accelerator.prepare(model, optimizer, loader, test_loader)
    set_seed(seed, device_specific=True)  # from here on every rank draws for itself

    first = 0
    if checkpoint is not None and checkpoint.exists():
        accelerator.load_state(str(checkpoint))
        first = torch.load(checkpoint / "epoch.pt")
    seen = []
    for epoch in range(first, epochs):
        loader.set_epoch(epoch)
        model.train()
        for batch in loader:
            images, targets = mixer(*batch)
            with accelerator.accumulate(model):
                loss = F.cross_entropy(model(images), targets)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            seen.append({"images": images, "targets": targets, "loss": loss.detach()})
        accelerator.print(f"epoch {epoch}: accuracy {accuracy(accelerator, model, test_loader):.3f}")
    if checkpoint is not None:
        accelerator.save_state(str(checkpoint))
        if accelerator.is_main_process:
            torch.save(epochs, checkpoint / "epoch.pt")
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--accumulate", type=int, default=2, help="batches to one step of the optimizer")
    parser.add_argument("--checkpoint", type=Path, help="where the training is saved at its end, and resumed from")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--steps", type=Path, help="where each rank writes what it trained on, as steps-<rank>.pt")
    options = parser.parse_args()
    # training_only: after mixer.eval() it would return batches as they are, wherever it is called.
    mixer = fm.RandomMix([fm.MixUp(alpha=0.8), fm.CutMix()], num_classes=CLASSES, inplace=True, training_only=True)
    seen = train(
        mixer,
        striped(512, seed=0),
        striped(256, seed=1),
        epochs=options.epochs,
        accumulate=options.accumulate,
        cpu=options.cpu,
        checkpoint=options.checkpoint,
    )
    accelerator = Accelerator(cpu=options.cpu)
    if options.steps is not None:
        torch.save(seen, options.steps / f"steps-{accelerator.process_index}.pt")
    accelerator.end_training()


if __name__ == "__main__":
    main()
