"""What methods of mixing do to a small network: accuracy and calibration on scikit-learn's digits, over a few seeds."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from tqdm import tqdm

from fusedmix.demo.calibration import expected_calibration_error, fitted_temperature, negative_log_likelihood
from fusedmix.demo.methods import METHODS, Method

CLASSES = 10
BATCH = 50
# Few enough to train on that regularisation has something to do. Temperatures are fitted on the validation images.
TRAIN_IMAGES, VALIDATION_IMAGES, TEST_IMAGES = 600, 297, 900
NO_MIXING = "no mixing"
_LAST = 9  # the layer of `small_cnn` whose activations say where what is
# Shares of the training labels that are replaced at random: clean digits are so easy that little is left to gain,
# while learning wrong labels by heart is what mixing is known to hinder (Zhang et al. 2018, section 3.4).
CORRUPTED = (0.3, 0.0)


@dataclass(frozen=True)
class Split:
    """What a network is trained on, what its temperature is fitted on, and what it is tested on."""

    train_images: Tensor  # (N, C, side, side) float32 in [0, 1]
    train_labels: Tensor  # (N,) int64, some of them wrong
    validation_images: Tensor
    validation_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: int = CLASSES

    def to(self, device: torch.device | str) -> Split:
        return replace(self, **{name: x.to(device) for name, x in vars(self).items() if name != "classes"})


@dataclass(frozen=True)
class Run:
    """One training, and what the test set says of it."""

    method: str
    corrupted: float
    seed: int
    accuracy: float  # of the test set, in [0, 1]
    nll: float  # of the test set, in nats, ≥ 0
    scaled_nll: float  # the same of logits divided by the temperature
    ece: float  # of the test set, in [0, 1]
    scaled_ece: float
    temperature: float  # fitted on the validation set, > 0
    epochs: int
    seconds_an_epoch: float


def describe(epochs: int, seeds: int) -> str:
    """What `compare` is about to do with the digits."""
    parameters = sum(p.numel() for p in small_cnn().parameters())
    return (
        f"Training a small CNN ({parameters} parameters) on {TRAIN_IMAGES} of scikit-learn's 1797 digits (8x8), "
        f"{epochs} epochs, batches of {BATCH},\n{seeds} seeds: first with {CORRUPTED[0]:.0%} of the training labels "
        f"replaced at random, then with the labels as they are.\nTested on {TEST_IMAGES} other digits, whose labels "
        "are right."
    )


def load_split(seed: int, corrupted: float = 0.0, device: torch.device | str = "cpu") -> Split:
    """A stratified split of the digits, (N, 1, 8, 8), another one for every seed; `corrupted` concerns the training
    labels only."""
    digits = load_digits()
    images = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target, dtype=torch.int64)
    apart = partial(train_test_split, random_state=seed)
    rest, test = apart(range(len(labels)), test_size=TEST_IMAGES, stratify=labels)
    train, validation = apart(rest, train_size=TRAIN_IMAGES, stratify=labels[rest])
    train_labels = labels[train]
    corrupt(train_labels, corrupted, seed, CLASSES)
    split = Split(images[train], train_labels, images[validation], labels[validation], images[test], labels[test])
    return split.to(device)


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
    methods: Sequence[Method] = METHODS,
) -> list[Run]:
    """A run without mixing and one with each of the methods, for every seed and every share of corrupted labels."""
    named: list[tuple[str, Method | None]] = [(NO_MIXING, None), *((method.name, method) for method in methods)]
    runs = []
    train(None, load(seeds[0], 0.0, device), seed=0, epochs=1)  # torch's own first steps are slow: not timed
    with tqdm(total=len(seeds) * len(CORRUPTED) * len(named), unit="run") as progress:
        for corrupted, seed in itertools.product(CORRUPTED, seeds):
            split = load(seed, corrupted, device)
            for name, method in named:
                progress.set_description(f"{name:<16}")
                start = time.perf_counter()
                model = train(method, split, seed=seed, epochs=epochs)
                seconds = (time.perf_counter() - start) / epochs
                measures = tested(model, split)
                runs.append(Run(name, corrupted, seed, **measures, epochs=epochs, seconds_an_epoch=seconds))
                progress.update()
    return runs


@torch.no_grad()
def tested(model: nn.Module, split: Split) -> dict[str, float]:
    """What the test set says of a network, by the names of `Run`."""
    temperature = fitted_temperature(model(split.validation_images), split.validation_labels)
    logits, labels = model(split.test_images), split.test_labels
    scaled = logits / temperature
    return {
        "accuracy": float((logits.argmax(dim=1) == labels).double().mean()),
        "nll": negative_log_likelihood(logits, labels),
        "scaled_nll": negative_log_likelihood(scaled, labels),
        "ece": expected_calibration_error(logits.softmax(dim=1), labels),
        "scaled_ece": expected_calibration_error(scaled.softmax(dim=1), labels),
        "temperature": temperature,
    }
