"""Trains a ResNet-18 on CIFAR with several ways of mixing and several seeds, and writes a table of what each is worth.

    python examples/train_cifar.py                            # CIFAR-10 is downloaded into ./data
    python examples/train_cifar.py --data cifar100 --mix none,MixUp,CutMix,MixUp+CutMix --seeds 3 --epochs 200
    python examples/train_cifar.py --subset 2000 --epochs 10  # tries it out on a CPU
    python examples/train_cifar.py --data DIR --side 64       # images in DIR/train/CLASS and DIR/test/CLASS

It needs torchvision and tqdm. If it is interrupted, start it again with the same arguments: it goes on, and on a CPU
the results are the same as without the interruption. With one seed every method gets the same first weights, batches,
crops and flips, so the column "gained" compares trainings that differ in the mixing alone.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import datasets, models
from torchvision.transforms import v2
from tqdm import tqdm

import fusedmix as fm

NO_MIXING = "none"
METHODS = ("MixUp", "CutMix", "HMix", "GMix", "FMix", "SmoothMix")
CIFAR = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}


@dataclass(frozen=True)
class Data:
    """Images (N, 3, side, side) uint8 and labels (N,) int64, all on the device."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: int


@dataclass(frozen=True)
class Run:
    """A line of runs.csv: one training."""

    mix: str
    seed: int
    accuracy_percent: float  # of the test images
    nll: float  # negative log likelihood of the test labels, in nats
    seconds_an_epoch: float  # the median


# ---- data ------------------------------------------------------------------------------------------------------------


def load(data: str, root: Path, side: int, subset: int | None, device: torch.device) -> Data:
    """A data set in the memory of the device; `subset` takes that many of its training images at random."""
    if data in CIFAR:
        train, test = (CIFAR[data](str(root), train=part, download=True) for part in (True, False))
        parts = [(torch.from_numpy(x.data).movedim(-1, 1), torch.tensor(x.targets)) for x in (train, test)]
    else:
        change = v2.Compose([v2.ToImage(), v2.Resize(side), v2.CenterCrop(side)])
        train, test = (datasets.ImageFolder(str(Path(data) / part), change) for part in ("train", "test"))
        if train.classes != test.classes:
            raise ValueError(f"train and test in {data} must have the same classes: {train.classes}, {test.classes}.")
        stacked = (torch.stack([torch.as_tensor(image) for image, _ in x]) for x in (train, test))
        parts = [(images, torch.tensor(x.targets)) for images, x in zip(stacked, (train, test), strict=True)]
    (images, labels), tested = parts
    if subset is not None:
        kept = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:subset]
        images, labels = images[kept], labels[kept]
    return Data(*(x.to(device) for x in (images, labels, *tested)), classes=len(train.classes))


def augmented(images: Tensor, draws: torch.Generator) -> Tensor:
    """Each image cut out of a black frame at a place of its own, and every other one flipped."""
    count, channels, side, _ = images.shape
    frame = side // 8
    top, left = torch.randint(2 * frame + 1, (2, count, 1), generator=draws)
    rows = top + torch.arange(side)
    columns = torch.where(torch.rand(count, 1, generator=draws) < 0.5, torch.arange(side), torch.arange(side).flip(0))
    at = (
        torch.arange(count)[:, None, None, None],
        torch.arange(channels)[:, None, None],
        rows[:, None, :, None],
        (left + columns)[:, None, None, :],
    )
    return F.pad(images, [frame] * 4)[tuple(index.to(images.device) for index in at)]


def normaliser(images: Tensor) -> Callable[[Tensor], Tensor]:
    """From bytes to float32 of mean 0 and variance 1 in each channel, by some 10,000 of the images."""
    sample = images[:: 1 + len(images) // 10_000].float()
    mean = sample.mean((0, 2, 3), keepdim=True)
    std = sample.std((0, 2, 3), keepdim=True).clamp_min(1)  # a channel may hold the same everywhere
    return lambda batch: (batch.float() - mean) / std


# ---- model and mixing ------------------------------------------------------------------------------------------------


def resnet18(classes: int) -> nn.Module:
    """torchvision's, with the first layer that small images need: 3×3 without a stride, and no pooling."""
    model = models.resnet18(num_classes=classes)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def mixer(name: str, classes: int) -> fm.MixTransform | None:
    """A mixing module by its name; names that "+" joins take turns at random."""
    if name == NO_MIXING:
        return None
    methods = [getattr(fm, part) for part in name.split("+")]
    if len(methods) == 1:
        return methods[0](num_classes=classes)
    return fm.RandomMix([method() for method in methods], num_classes=classes)


def objective(model: nn.Module, mix: fm.MixTransform | None, way: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of a batch of images and classes. Both ways train alike: "loop" mixes a batch before the model gets it,
    and "attach" leaves the loop as it was and mixes in a hook of the model."""
    if mix is None:
        return lambda images, labels: F.cross_entropy(model(images), labels)
    if way == "attach":
        criterion = fm.attach(model, mix).wrap(nn.CrossEntropyLoss())
        return lambda images, labels: criterion(model(images), labels)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        images, targets = mix(images, labels)
        return F.cross_entropy(model(images), targets)

    return loss


# ---- training --------------------------------------------------------------------------------------------------------


def train(data: Data, name: str, seed: int, options: argparse.Namespace) -> Run:
    """One training, from its checkpoint if there is one."""
    device, checkpoint = data.images.device, options.out / "unfinished.pt"
    torch.manual_seed(seed)
    model = resnet18(data.classes).to(device, memory_format=torch.channels_last)
    loss_of = objective(model, mixer(name, data.classes), options.way)
    if options.compile:
        model.compile()
    steps = len(data.images) // options.batch
    optimizer = torch.optim.SGD(model.parameters(), lr=options.lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * steps)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    seconds: list[float] = []
    if checkpoint.exists():
        kept = torch.load(checkpoint, map_location=device)
        if kept["run"] == (name, seed):
            seconds = kept["seconds"]
            for key, part in parts.items():
                part.load_state_dict(kept[key])

    normalised = normaliser(data.images)
    bar = tqdm(range(len(seconds), options.epochs), f"{name}, seed {seed}", options.epochs, initial=len(seconds))
    for epoch in bar:
        start = time.perf_counter()
        # What is random follows from the seed and the epoch, so no state of a generator has to be kept.
        torch.manual_seed(100_000 * seed + epoch)  # of the mixing
        draws = torch.Generator().manual_seed(100_000 * seed + epoch)  # of the rest, which all methods have in common
        model.train()
        total = torch.zeros((), device=device)
        for batch in torch.randperm(len(data.images), generator=draws)[: steps * options.batch].split(options.batch):
            chosen = batch.to(device)
            images = normalised(augmented(data.images[chosen], draws)).contiguous(memory_format=torch.channels_last)
            with half_precision(device):
                loss = loss_of(images, data.labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
        bar.set_postfix(loss=f"{float(total) / steps:.3f}")  # waits for the device
        seconds.append(time.perf_counter() - start)
        state = {"run": (name, seed), "seconds": seconds, **{key: part.state_dict() for key, part in parts.items()}}
        torch.save(state, checkpoint.with_suffix(".part"))
        checkpoint.with_suffix(".part").replace(checkpoint)  # there is always a whole one
    accuracy, nll = test(data, model, normalised)
    return Run(name, seed, 100 * accuracy, nll, statistics.median(seconds))


@torch.no_grad()
def test(data: Data, model: nn.Module, normalised: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """The accuracy on the test images in [0, 1], and the mean negative log likelihood of their labels."""
    model.eval()
    with half_precision(data.images.device):
        logits = torch.cat([model(normalised(batch)) for batch in data.test_images.split(500)]).float()
    right = (logits.argmax(1) == data.test_labels).double().mean()
    return float(right), float(F.cross_entropy(logits, data.test_labels))


def half_precision(device: torch.device) -> torch.autocast:
    """bfloat16 on a GPU, where it is faster."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


# ---- results ---------------------------------------------------------------------------------------------------------


def read(path: Path) -> list[Run]:
    """The runs that are finished."""
    if not path.exists():
        return []
    kinds = {"mix": str, "seed": int}
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    return [Run(**{key: kinds.get(key, float)(value) for key, value in line.items()}) for line in lines]


def append(path: Path, run: Run) -> None:
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Run)])
        if new:
            writer.writeheader()
        writer.writerow(asdict(run))


def table(runs: Sequence[Run]) -> str:
    """Markdown: means over the seeds ± standard errors, and what is gained on the same seed without mixing."""
    without = {run.seed: run.accuracy_percent for run in runs if run.mix == NO_MIXING}
    lines = ["| mix | seeds | accuracy % | gained | NLL | seconds an epoch |", "|---|---|---|---|---|---|"]
    for name in dict.fromkeys(run.mix for run in runs):
        same = [run for run in runs if run.mix == name]
        gained = [run.accuracy_percent - without[run.seed] for run in same if run.seed in without and name != NO_MIXING]
        cells = (
            mean_and_error([run.accuracy_percent for run in same], ".2f"),
            mean_and_error(gained, "+.2f"),
            mean_and_error([run.nll for run in same], ".3f"),
            f"{statistics.median(run.seconds_an_epoch for run in same):.1f}",
        )
        lines.append(f"| {name} | {len(same)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def mean_and_error(values: Sequence[float], form: str) -> str:
    """The mean ± its standard error, which one value alone does not have."""
    if len(values) < 2:
        return "".join(f"{value:{form}}" for value in values)
    error = statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.fmean(values):{form}} ± {error:{form.lstrip('+')}}"


# ---- command line ----------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Trains a ResNet-18 with several ways of mixing and several seeds.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    at_least_one = partial(_integer, least=1)
    parser.add_argument(
        "--data", default="cifar10", help="cifar10, cifar100, or a folder with train/CLASS and test/CLASS"
    )
    parser.add_argument("--root", type=Path, default=Path("data"), help="where CIFAR is, or is downloaded to")
    parser.add_argument("--side", type=partial(_integer, least=8), default=32, help="of the images of a folder")
    parser.add_argument("--subset", type=at_least_one, metavar="N", help="train on N images only")
    parser.add_argument(
        "--mix", type=_mixes, default="none,MixUp,CutMix", help=f"of none, {', '.join(METHODS)}; A+B: either, at random"
    )
    parser.add_argument(
        "--way", choices=("loop", "attach"), default="loop", help="mix in the loop, or in a hook of the model"
    )
    parser.add_argument("--seeds", type=at_least_one, default=3, help="trainings with each")
    parser.add_argument("--epochs", type=at_least_one, default=30)
    parser.add_argument("--batch", type=partial(_integer, least=2), default=128)
    parser.add_argument("--lr", type=float, default=0.1, help="largest learning rate")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("cifar-runs"), help="folder for checkpoints and results")
    found = parser.parse_args(arguments)
    if not 0 < found.lr < math.inf:
        parser.error(f"argument --lr: must be a positive number, but is {found.lr}")
    missing = [part for part in ("train", "test") if not (Path(found.data) / part).is_dir()]
    if found.data not in CIFAR and missing:
        parser.error(f"argument --data: must be cifar10, cifar100 or a folder; there is no {found.data}/{missing[0]}")
    settings = {key: str(value) for key, value in vars(found).items() if key not in ("mix", "seeds", "out", "root")}
    kept = found.out / "options.json"
    if kept.exists() and (before := json.loads(kept.read_text())) != settings:
        changed = ", ".join(f"--{key} {before.get(key)}" for key in settings if settings[key] != before.get(key))
        parser.error(f"argument --out: {found.out} has runs with {changed}; name another folder for these")
    found.out.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(settings))
    return found


def _integer(text: str, least: int) -> int:
    if (value := int(text)) < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}, but is {value}")
    return value


def _mixes(text: str) -> list[str]:
    for name in text.split(","):
        if name != NO_MIXING and not set(name.split("+")) <= set(METHODS):
            allowed = f"{NO_MIXING}, {', '.join(METHODS)}, or several of these methods joined by +"
            raise argparse.ArgumentTypeError(f"must be of {allowed}, but is {name}")
    return text.split(",")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    data = load(options.data, options.root, options.side, options.subset, torch.device(options.device))
    if options.batch > len(data.images):
        print(f"--batch must be at most the number of images to train on, {len(data.images)}.", file=sys.stderr)
        return 2
    results = options.out / "runs.csv"
    done = {(run.mix, run.seed) for run in read(results)}
    for seed in range(options.seeds):
        for name in options.mix:
            if (name, seed) not in done:
                append(results, train(data, name, seed, options))
                (options.out / "unfinished.pt").unlink()
    made = table(sorted(read(results), key=lambda run: options.mix.index(run.mix) if run.mix in options.mix else -1))
    (options.out / "table.md").write_text(f"{made}\n", encoding="utf-8")
    print(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
