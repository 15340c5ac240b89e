"""What each method does to a small network: accuracy and calibration on scikit-learn's digits, over a few seeds."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from tqdm import tqdm

from fusedmix.demo.methods import METHODS, Method

CLASSES = 10
BATCH = 50
# Few enough that regularisation has something to do, and the rest make a usable test set.
TRAIN_IMAGES, TEST_IMAGES = 600, 1197
NO_MIXING = "no mixing"
_LAST = 9  # the layer of `small_cnn` whose activations say where what is
# Shares of the training labels that are replaced at random: clean digits are so easy that little is left to gain,
# while learning wrong labels by heart is what mixing is known to hinder (Zhang et al. 2018, section 3.4).
CORRUPTED = (0.0, 0.3)


@dataclass(frozen=True)
class Split:
    train_images: Tensor  # (N, C, side, side) float32 in [0, 1]
    train_labels: Tensor  # (N,) int64
    test_images: Tensor
    test_labels: Tensor
    classes: int = CLASSES

    def to(self, device: torch.device | str) -> Split:
        names = ("train_images", "train_labels", "test_images", "test_labels")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


@dataclass(frozen=True)
class Run:
    method: str
    corrupted: float
    seed: int
    accuracy: float  # of the test set, in [0, 1]
    ece: float  # likewise
    seconds: float


def describe(epochs: int, seeds: int) -> str:
    """What `compare` is about to do."""
    parameters = sum(p.numel() for p in small_cnn().parameters())
    return (
        f"Training a small CNN ({parameters} parameters) on {TRAIN_IMAGES} of scikit-learn's 1797 digits (8x8) and "
        f"testing it on the others:\n{epochs} epochs, batches of {BATCH}, means of {seeds} seeds, first with the "
        f"labels as they are, then with {CORRUPTED[-1]:.0%} of the\ntraining labels replaced at random."
    )


def load_split(seed: int, corrupted: float = 0.0, device: torch.device | str = "cpu") -> Split:
    """A stratified split of the digits, (N, 1, 8, 8), another one for every seed; `corrupted` concerns the training
    labels only."""
    digits = load_digits()
    parts = train_test_split(
        digits.images[:, None] / 16, digits.target, train_size=TRAIN_IMAGES, stratify=digits.target, random_state=seed
    )
    train_images, test_images = (torch.tensor(part, dtype=torch.float32) for part in parts[:2])
    train_labels, test_labels = (torch.tensor(part, dtype=torch.int64) for part in parts[2:])
    corrupt(train_labels, corrupted, seed, CLASSES)
    return Split(train_images, train_labels, test_images, test_labels).to(device)


def corrupt(labels: Tensor, share: float, seed: int, classes: int) -> None:
    """Replaces a share of the labels at random."""
    generator = torch.Generator().manual_seed(seed)
    replaced = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    labels[replaced] = torch.randint(classes, (len(replaced),), generator=generator)


def small_cnn(channels: int = 1, side: int = 8, classes: int = CLASSES) -> nn.Sequential:
    """Three convolutions with batch normalisation and a linear layer, for (B, channels, side, side)."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        *block(channels, 16),
        *block(16, 32),
        nn.MaxPool2d(2),
        *block(32, 32),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (side // 4) ** 2, classes),
    )


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal bins (m−1)/M < confidence ≤ m/M, weighted by their size.

    Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, eq. 3.
    `probabilities` is (N, K), `labels` (N,) int64; the result lies in [0, 1].
    """
    confidence, predicted = probabilities.double().max(dim=1)
    correct = (predicted == labels).double()
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    # size/N · |accuracy − confidence| of a bin is |Σ (correct − confidence)|/N: empty bins need no special case
    gaps = torch.zeros(bins, dtype=torch.float64, device=labels.device)
    gaps.index_add_(0, bin_of, correct - confidence)
    return float(gaps.abs().sum() / len(labels))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Images of 8x8 gain nothing from a second thread, and lose tenfold by waiting for it on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def train(method: Method | None, split: Split, *, seed: int, epochs: int) -> nn.Module:
    """A network trained from scratch, with a method of mixing or without. A seed gives every method the same initial
    weights and the same batches."""
    device = split.train_images.device
    count, channels, side, _ = split.train_images.shape
    order = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = small_cnn(channels, side, split.classes).to(device)
    mix = None if method is None else method.build(split.classes, model, model[_LAST])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=epochs * -(-count // BATCH))
    for _ in range(epochs):
        for batch in torch.randperm(count, generator=order).to(device).split(BATCH):
            images, targets = split.train_images[batch], split.train_labels[batch]
            if mix is not None:
                images, targets = mix(images, targets)
            loss = F.cross_entropy(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def compare(
    seeds: Sequence[int],
    epochs: int,
    device: torch.device | str = "cpu",
    load: Callable[[int, float, torch.device | str], Split] = load_split,
) -> list[Run]:
    """A run without mixing and one with every method, for every seed and every share of corrupted labels."""
    methods: list[tuple[str, Method | None]] = [(NO_MIXING, None), *((method.name, method) for method in METHODS)]
    runs = []
    train(None, load(seeds[0], 0.0, device), seed=0, epochs=1)  # torch's own first steps are slow: not timed
    with tqdm(total=len(seeds) * len(CORRUPTED) * len(methods), unit="run") as progress:
        for corrupted, seed in itertools.product(CORRUPTED, seeds):
            split = load(seed, corrupted, device)
            for name, method in methods:
                progress.set_description(f"{name:<16}")
                start = time.perf_counter()
                model = train(method, split, seed=seed, epochs=epochs)
                with torch.no_grad():
                    probabilities = model(split.test_images).softmax(dim=1)
                accuracy = float((probabilities.argmax(dim=1) == split.test_labels).double().mean())
                ece = expected_calibration_error(probabilities, split.test_labels)
                runs.append(Run(name, corrupted, seed, accuracy, ece, time.perf_counter() - start))
                progress.update()
    return runs
