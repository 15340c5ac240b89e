"""get_mixup_cutmix against what torchvision's references build of the live v2, batch for batch."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import fusedmix as fm
from conftest import required
from fusedmix.integrations.torchvision import get_mixup_cutmix
from trainers import Collate, cross_entropies, label_weights, soft

CLASSES = 5
ALPHAS = [(0.2, 0.0), (0.0, 1.0), (0.2, 1.0), (1.0, 0.3)]


def peer(mixup_alpha, cutmix_alpha):
    v2 = required("torchvision.transforms.v2")
    chosen = [v2.MixUp(alpha=mixup_alpha, num_classes=CLASSES)] if mixup_alpha else []
    chosen += [v2.CutMix(alpha=cutmix_alpha, num_classes=CLASSES)] if cutmix_alpha else []
    return v2.RandomChoice(chosen)


@pytest.mark.parametrize("use_v2", [True, False])
@pytest.mark.parametrize(("mixup_alpha", "cutmix_alpha"), ALPHAS)
def test_same_seeds_same_batches(mixup_alpha, cutmix_alpha, use_v2):
    theirs = peer(mixup_alpha, cutmix_alpha)
    ours = get_mixup_cutmix(mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha, num_classes=CLASSES, use_v2=use_v2)
    mixed = set()
    for seed in range(60):
        shape = [(8, 3, 12, 10), (7, 3, 9, 9), (1, 3, 4, 5)][seed % 3]
        x, y = torch.randn(shape), torch.randint(CLASSES, shape[:1])
        torch.manual_seed(seed)
        expected, expected_targets = theirs(x, y)
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        images, targets = ours(x, y)
        assert torch.equal(torch.get_rng_state(), state)
        torch.testing.assert_close(images, expected, rtol=0, atol=2e-6)
        torch.testing.assert_close(targets, expected_targets, rtol=0, atol=1e-6)
        if shape[0] > 1:
            mixed.add("CutMix" if bool(((images == x) | (images == x.roll(1, 0))).all()) else "MixUp")
    assert ("MixUp" in mixed) == (mixup_alpha > 0)  # (a λ of 0 or 1 looks like a CutMix)
    assert cutmix_alpha == 0 or "CutMix" in mixed


@pytest.mark.parametrize("workers", [0, 2])
def test_in_a_collate_fn(workers):
    """An epoch of training gets the batches that torchvision's module gives the same loader."""
    data = TensorDataset(torch.randn(22, 3, 6, 6), torch.randint(CLASSES, (22,)))

    def epoch(mix):
        torch.manual_seed(3)
        order = torch.Generator().manual_seed(4)
        return list(DataLoader(data, 4, shuffle=True, generator=order, collate_fn=Collate(mix), num_workers=workers))

    batches = epoch(get_mixup_cutmix(mixup_alpha=0.2, cutmix_alpha=1.0, num_classes=CLASSES, use_v2=True))
    plain = epoch(lambda images, labels: (images, labels)) if not workers else None
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(108, CLASSES))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step, ((images, targets), (expected, expected_targets)) in enumerate(
        zip(batches, epoch(peer(0.2, 1.0)), strict=True)
    ):
        torch.testing.assert_close(images, expected, rtol=0, atol=2e-6)
        torch.testing.assert_close(targets, expected_targets, rtol=0, atol=1e-6)
        logits = model(images)
        loss = torch.nn.functional.cross_entropy(logits, targets)
        if plain is not None:
            x, y = plain[step]
            by_hand = cross_entropies(logits, soft(y, label_weights(images, x), CLASSES)).mean()
            torch.testing.assert_close(loss.double(), by_hand, rtol=1e-3, atol=1e-3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert len(batches) == 6


def test_bytes_are_finished_as_the_presets_do():
    """The recipe of docs/migrating-torchvision.md beside what the references do: to train and to evaluate."""
    v2, image = required("torchvision.transforms.v2"), required("PIL.Image")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    to_bytes = v2.PILToTensor()
    preset = v2.Compose([to_bytes, v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std), v2.ToPureTensor()])
    ours = get_mixup_cutmix(mixup_alpha=0.2, cutmix_alpha=1.0, num_classes=CLASSES, use_v2=True)
    ours.finish = finish = fm.Finish((mean, std), memory_format=torch.channels_last)
    limit = 3 * 2.0**-22 / min(std)  # of fusedmix/backends/finished.py
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.randint(256, (6, 12, 10, 3), dtype=torch.uint8, generator=generator).numpy()
        labels = torch.randint(CLASSES, (6,), generator=generator)
        pictures = [image.fromarray(picture) for picture in pixels]
        unmixed = torch.stack([preset(picture) for picture in pictures])
        torch.manual_seed(seed)
        expected, expected_targets = peer(0.2, 1.0)(unmixed, labels)
        torch.manual_seed(seed)
        given = torch.stack([to_bytes(picture) for picture in pictures])
        images, targets = ours(given, labels)
        assert images.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(images, expected, rtol=0, atol=limit)
        torch.testing.assert_close(targets, expected_targets, rtol=0, atol=1e-6)
        torch.testing.assert_close(fm.finish(given, finish), unmixed, rtol=0, atol=limit)


def test_nothing_to_mix():
    assert get_mixup_cutmix(mixup_alpha=0, cutmix_alpha=0.0, num_classes=3, use_v2=True) is None


def test_torchvision_is_not_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    mix = get_mixup_cutmix(mixup_alpha=1.0, cutmix_alpha=0.0, num_classes=3, use_v2=True)
    assert isinstance(mix, fm.RandomMix)
    assert mix(torch.rand(2, 3, 4, 4), torch.tensor([0, 2]))[1].shape == (2, 3)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"mixup_alpha": -1}, ValueError, "mixup_alpha must be .*got -1"),
        ({"cutmix_alpha": "1"}, TypeError, "cutmix_alpha must be a number, but got '1'"),
        ({"num_classes": 0}, ValueError, "num_classes must be >= 1, but got 0"),
        ({"num_classes": None}, TypeError, "num_classes must be an int"),
        ({"use_v2": 1}, TypeError, "use_v2 must be a bool"),
    ],
)
def test_errors(wrong, error, message):
    with pytest.raises(error, match=message):
        get_mixup_cutmix(**{"mixup_alpha": 0.0, "cutmix_alpha": 0.0, "num_classes": 3, "use_v2": True, **wrong})
