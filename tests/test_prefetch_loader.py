"""The PrefetchLoader of the timm integration: timm's batches in one pass, and what it mixes.

Every expectation of parity comes from timm, run beside ours in the same test.
"""

from __future__ import annotations

import inspect
import math
import random
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import fusedmix as fm
from fusedmix import erasing
from fusedmix.backends.finished import finish as finish_alone
from test_timm import MODES, needs_any_timm, needs_gpu, needs_timm, np, options_of, ours, state, timm

CPU = torch.device("cpu")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = 10


def bytes_of(seed: int, n: int = 8, channels: int = 3, size: tuple[int, int] = (17, 23)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (n, channels, *size), dtype=torch.uint8, generator=generator)
    return x, torch.randint(CLASSES, (n,), generator=generator)


def only(loader: Any) -> tuple[Tensor, Any]:
    [batch] = list(loader)
    return batch


def limit(std: Any = STD) -> Tensor:
    """How far a normalised and mixed batch may be from timm's chain. By fusedmix/backends/finished.py, in units of
    2^-24/std: timm's normalisation is off by 4, its Mixup by 3, ours by 3; rounding λ to float32 moves both by less
    than 1. One more is left for terms of the second order."""
    return 3 * 2.0**-22 / torch.tensor(std, dtype=torch.float64).reshape(-1, 1, 1)


class Pictures(Dataset):
    """What timm's transforms make of pictures for its prefetcher."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return np.ascontiguousarray(bytes_of(i, 1)[0][0].numpy()), i % CLASSES


# ---- batches without mixing ----


@needs_any_timm
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16], ids=str)
def test_batches_are_timms(dtype: torch.dtype | None) -> None:
    """In 16 bits timm also computes in them, which is a rougher result: there its float32 images are rounded."""
    for seed, (mean, std, channels) in enumerate([(MEAN, STD, 3), ((0.5,), (0.25,), 1), (0.4, 0.3, 2)]):
        x, y = bytes_of(seed, channels=channels)
        expected, _ = only(timm.data.loader.PrefetchLoader([(x, y)], mean, std, channels, CPU))
        images, labels = only(ours.PrefetchLoader([(x, y)], mean, std, channels, CPU, dtype))
        assert images.dtype == (dtype or torch.float32)
        assert torch.equal(labels, y)
        allowed = limit(std)
        if dtype is not None:
            allowed = allowed + torch.finfo(dtype).eps * expected.abs()
        assert ((images.double() - expected.double()).abs() <= allowed).all()


@needs_any_timm
@pytest.mark.filterwarnings("ignore:std has 3 numbers")
def test_statistics_of_other_channels() -> None:
    """The mean of them, as timm's."""
    x, y = bytes_of(3, channels=2)
    timms = timm.data.loader.PrefetchLoader([(x, y)], MEAN, STD, 2, CPU)
    with pytest.warns(
        UserWarning, match=r"mean has 3 numbers for 2 channels: each gets their mean, 0\.449, as in timm"
    ):
        loader = ours.PrefetchLoader([(x, y)], MEAN, STD, 2, CPU)
    torch.testing.assert_close(loader.mean, timms.mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(only(loader)[0], only(timms)[0], rtol=0, atol=2e-6)


@needs_timm
def test_signature_and_attributes_are_timms() -> None:
    theirs, mine = (inspect.signature(of.PrefetchLoader).parameters for of in (timm.data.loader, ours))
    positional = [p for p in mine.values() if p.kind is not p.KEYWORD_ONLY]
    assert [(p.name, p.default) for p in positional] == [(p.name, p.default) for p in theirs.values()]
    inner = DataLoader(Pictures(), 4, collate_fn=timm.data.loader.fast_collate)
    timms, loader = (of.PrefetchLoader(inner, device=CPU, img_dtype=torch.bfloat16) for of in (timm.data.loader, ours))
    assert ours.PrefetchLoader(inner, device=CPU, img_dtype=torch.bfloat16, fp16=True).img_dtype == torch.float16
    for name in ("loader", "device", "img_dtype", "sampler", "batch_sampler", "dataset", "mixup_enabled"):
        assert getattr(loader, name) == getattr(timms, name)
    assert torch.equal(loader.mean, timms.mean)
    assert torch.equal(loader.std, timms.std)
    assert len(loader) == len(timms) == 3
    assert [len(images) for images, _ in loader] == [4, 4, 4]


def test_formats() -> None:
    x, y = bytes_of(1)
    last = x.contiguous(memory_format=torch.channels_last)
    plain = only(ours.PrefetchLoader([(x, y)], device=CPU))[0]
    for given, options, format_ in (
        (x, {}, torch.contiguous_format),
        (last, {}, torch.channels_last),
        (x, {"channels_last": True}, torch.channels_last),
    ):
        images, _ = only(ours.PrefetchLoader([(given, y)], device=CPU, **options))
        assert images.is_contiguous(memory_format=format_)
        assert torch.equal(images, plain)


def test_a_batch_is_loaded_ahead() -> None:
    asked = []

    def batches() -> Any:
        for i in range(4):
            asked.append(i)
            yield bytes_of(i)

    seen = []
    for i, (images, labels) in enumerate(ours.PrefetchLoader(batches(), device=CPU)):
        assert asked == list(range(min(i + 2, 4)))
        assert torch.equal(labels, bytes_of(i)[1])
        seen.append(images)
    assert len(seen) == 4
    assert list(ours.PrefetchLoader([], device=CPU)) == []


def test_streams_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is a GPU: before a batch is loaded the loader's stream waits for what the training has queued, and
    before one is given the training waits for the loader."""
    events, now = [], ["training"]

    class Stream:
        def __init__(self, name: Any) -> None:
            self.name = name if isinstance(name, str) else "loader"

        def wait_stream(self, other: Stream) -> None:
            events.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def stream(of: Stream) -> Any:
        now.append(of.name)
        yield
        now.pop()

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream(now[-1]))
    loader = ours.PrefetchLoader([(0, 0), (1, 0)], device=CPU)
    loader.__dict__["device"] = torch.device("cuda")
    loader.__dict__["_load"] = lambda image, label: events.append(f"load {image} on {now[-1]}") or (image, label)
    for image, _ in loader:
        events.append(f"{now[-1]} uses {image}")
    ahead, over = "loader waits for training", "training waits for loader"
    load = [[ahead, f"load {i} on loader", over] for i in range(2)]
    # Batch 1 is loaded before batch 0 is used; the training waits for it when it asks for it.
    assert events == [*load[0], *load[1][:2], "training uses 0", over, "training uses 1"]
    assert loader._stream is not None


# ---- holes ----


@needs_any_timm
@pytest.mark.parametrize("splits", [0, 1, 2, 3])
def test_the_first_split_is_not_erased(splits: int) -> None:
    """With p = 1 every other sample is, in timm as here."""
    x, y = bytes_of(3, n=10, size=(32, 32))
    plain = only(ours.PrefetchLoader([(x, y)], device=CPU))[0]
    random.seed(0)
    torch.manual_seed(0)
    options = {"device": CPU, "re_prob": 1.0, "re_mode": "pixel", "re_num_splits": splits}
    erased = [
        ((only(of.PrefetchLoader([(x, y)], **options))[0] - plain).abs() > 1e-5).flatten(1).any(1)
        for of in (timm.data.loader, ours)
    ]
    assert torch.equal(*erased)
    assert erased[0].sum() == 10 - (10 // splits if splits > 1 else 0)


@pytest.mark.parametrize(("mode", "value"), [("const", 0.0), ("rand", "random"), ("pixel", "pixel")])
def test_holes_by_hand(mode: str, value: Any) -> None:
    """They are those of the seed that torch's generator gives, by timm's law (tests/parity/test_finish_peers.py)."""
    x, y = bytes_of(4, n=12)
    finish = fm.Finish((MEAN, STD), erase=fm.Erase(0.7, value=value, count=3))
    torch.manual_seed(5)
    images, _ = only(ours.PrefetchLoader([(x, y)], device=CPU, re_prob=0.7, re_mode=mode, re_count=3))
    torch.manual_seed(5)
    draws = erasing.draw(erasing.chances(finish), torch.empty((), dtype=torch.int64).random_(), 12, (17, 23))
    expected = finish_alone(x, finish.arguments(x, draws))
    torch.testing.assert_close(images, expected, rtol=0, atol=2e-6)
    assert (expected - fm.finish(x, finish)).abs().amax((1, 2, 3)).gt(0.01).sum() > 3


# ---- mixing ----


@needs_timm
@pytest.mark.parametrize("erase", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_mixed_batches_are_timms(mode: str, erase: bool) -> None:
    """timm's loader and then its Mixup, by one seed of NumPy. With holes: timm's Mixup of the same holes, which have
    been cut before."""
    rng = random.Random(mode)
    re = {"re_prob": 0.6, "re_mode": "pixel", "re_count": 2} if erase else {}
    finish = fm.Finish((MEAN, STD), erase=fm.Erase(0.6, value="pixel", count=2) if erase else None)
    worst = 0.0
    for seed in range(67):  # 201 in all modes
        options = {**options_of(rng, mode), "num_classes": CLASSES, "multi_label": False}
        x, y = bytes_of(seed, size=(12, 15))
        expected = only(timm.data.loader.PrefetchLoader([(x, y)], device=CPU))[0]
        if erase:
            torch.manual_seed(seed)
            draws = erasing.draw(erasing.chances(finish), torch.empty((), dtype=torch.int64).random_(), 8, (12, 15))
            expected = finish_alone(x, finish.arguments(x, draws))
        np.random.seed(seed)
        expected, expected_targets = timm.data.Mixup(**options)(expected, y)
        after = state()
        np.random.seed(seed)
        torch.manual_seed(seed)
        loader = ours.PrefetchLoader([(x, y)], device=CPU, mixup_fn=ours.Mixup(**options), **re)
        images, targets = only(loader)
        assert state() == after, options
        # A number of a hole is up to 6 or so, and rounded three times on each way.
        allowed = limit() + (8 * 2.0**-22 if erase else 0)
        assert ((images.double() - expected.double()).abs() <= allowed).all(), options
        worst = max(worst, (images.double() - expected.double()).abs().max().item())
        torch.testing.assert_close(targets, expected_targets, rtol=0, atol=2.0**-22)
    assert worst > 0


@pytest.mark.parametrize(
    "options",
    [{}, {"targets": "sparse"}, {"pairing": "random"}, {"label_smoothing": 0.2, "p": 0.5}, {"per": "sample"}],
    ids=str,
)
@pytest.mark.parametrize("method", [fm.MixUp, fm.CutMix, fm.FMix])
def test_any_module_mixes(method: Any, options: dict[str, Any]) -> None:
    """As the same module does with the loader's finish. The holes follow the plan in torch's generator."""
    x, y = bytes_of(6)
    finish = fm.Finish((MEAN, STD), torch.bfloat16, erase=fm.Erase(0.5, count=2))
    mixer, alike = method(num_classes=CLASSES, **options), method(num_classes=CLASSES, **options)
    # The holes of a plan that is drawn by a seed follow from that.
    re = {"re_prob": 0.5, "re_count": 2} if mixer.sampling == "host" else {}
    alike.finish = finish if re else fm.Finish((MEAN, STD), torch.bfloat16)
    for seed in range(4):
        torch.manual_seed(seed)
        images, targets = only(
            ours.PrefetchLoader([(x, y)], device=CPU, img_dtype=torch.bfloat16, mixup_fn=mixer, **re)
        )
        torch.manual_seed(seed)
        expected, expected_targets = alike(x, y)
        assert torch.equal(images, expected)
        assert type(targets) is type(expected_targets)
        assert all(map(torch.equal, targets, expected_targets))
    assert mixer.finish is None


def test_a_module_in_evaluation_mode() -> None:
    x, y = bytes_of(7)
    mixer = fm.CutMix(num_classes=CLASSES, training_only=True).eval()
    images, labels = only(ours.PrefetchLoader([(x, y)], device=CPU, mixup_fn=mixer))
    assert torch.equal(images, fm.finish(x, fm.Finish((MEAN, STD))))
    assert torch.equal(labels, y)


@pytest.mark.parametrize(
    "mixup", [lambda: ours.Mixup(cutmix_alpha=1.0, num_classes=CLASSES), lambda: fm.CutMix(num_classes=CLASSES)]
)
def test_mixing_is_switched_off(mixup: Any) -> None:
    x, y = bytes_of(8)
    made = mixup()
    loader = ours.PrefetchLoader([(x, y)] * 3, device=CPU, mixup_fn=made)
    plain = fm.finish(x, fm.Finish((MEAN, STD)))
    assert loader.mixup_enabled
    assert any(not torch.equal(images, plain) for images, _ in loader)
    loader.mixup_enabled = False
    assert not (made.enabled if isinstance(made, fm.CutMix) else made.mixup_enabled)
    smoothing = 0.0 if isinstance(made, fm.CutMix) else 0.1
    expected = torch.eye(CLASSES)[y] * (1 - smoothing) + smoothing / CLASSES
    for images, targets in loader:
        assert torch.equal(images, plain)
        torch.testing.assert_close(targets, expected)
    with pytest.raises(AttributeError, match="mixup_fn of a PrefetchLoader is fixed when it is made"):
        loader.mixup_fn = None


def test_the_switch_where_nothing_mixes() -> None:
    """As timm's, it is off, and cannot be set."""
    x, y = bytes_of(8)
    loader = ours.PrefetchLoader([(x, y)], device=CPU)
    loader.mixup_enabled = True
    assert not loader.mixup_enabled
    assert torch.equal(only(loader)[1], y)


# ---- collate functions that mix ----


def batches_of(loader: Any, seed: int) -> list[tuple[Tensor, Tensor]]:
    np.random.seed(seed)
    torch.manual_seed(seed)
    return list(loader)


def same(one: Any, other: Any) -> bool:
    return len(one) == len(other) and all(all(map(torch.equal, a, b)) for a, b in zip(one, other, strict=True))


@needs_any_timm
@pytest.mark.parametrize("workers", [0, 1])
def test_a_collate_function_leaves_the_mixing_to_the_loader(workers: int) -> None:
    """So that what timm's train.py makes is mixed on the device, and its switch works."""
    options = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "num_classes": CLASSES}
    collate = ours.FastCollateMixup(**options)
    inner = DataLoader(Pictures(), 4, num_workers=workers, collate_fn=collate)
    loader = ours.PrefetchLoader(inner, device=CPU)
    plain = DataLoader(Pictures(), 4, collate_fn=timm.data.loader.fast_collate)
    expected = batches_of(ours.PrefetchLoader(plain, device=CPU, mixup_fn=ours.Mixup(**options)), 1)
    assert same(batches_of(loader, 1), expected)
    assert same(batches_of(ours.PrefetchLoader(inner, device=CPU), 1), expected), "the second loader of it"
    collate.mixup_enabled = False
    assert not loader.mixup_enabled
    for (images, _), (unmixed, _) in zip(loader, ours.PrefetchLoader(plain, device=CPU), strict=True):
        assert torch.equal(images, unmixed)
    loader.mixup_enabled = True
    assert collate.mixup_enabled
    again = ours.PrefetchLoader(inner, device=CPU, mixup_fn=ours.Mixup(**options))
    assert same(batches_of(again, 1), expected)


@needs_timm
@pytest.mark.parametrize("who", ["timm", "half", "running"])
def test_a_collate_function_that_goes_on_mixing(who: str) -> None:
    """timm's own, the mode in which two samples make one, and workers that run already: bytes are mixed before."""
    cls = timm.data.FastCollateMixup if who == "timm" else ours.FastCollateMixup
    collate = cls(mixup_alpha=0.8, cutmix_alpha=1.0, mode="half" if who == "half" else "batch", num_classes=CLASSES)
    inner = DataLoader(Pictures(), 4, num_workers=int(who == "running"), collate_fn=collate)
    if who == "running":
        inner = timm.data.loader.MultiEpochsDataLoader(Pictures(), 4, num_workers=1, collate_fn=collate)
        assert len(list(inner)) == 3
    loader = ours.PrefetchLoader(inner, device=CPU)
    assert loader.loader.collate_fn is collate
    assert loader.mixup_fn is None
    finish = fm.Finish((MEAN, STD))
    if who != "running":
        expected = [(fm.finish(images, finish), targets) for images, targets in batches_of(inner, 2)]
        assert same(batches_of(loader, 2), expected)
    assert all(targets.shape == (2 if who == "half" else 4, CLASSES) for _, targets in loader)
    loader.mixup_enabled = False
    assert not collate.mixup_enabled
    with pytest.raises(ValueError, match=r"mixup_fn must be None for a loader whose collate_fn mixes"):
        ours.PrefetchLoader(inner, device=CPU, mixup_fn=fm.CutMix(num_classes=CLASSES))


@needs_timm
def test_create_loader_makes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The changed import of docs/migrating-timm.md, with pictures, transforms, erasing and mixing."""
    image = pytest.importorskip("PIL.Image")

    class Files(Dataset):
        transform: Any = None

        def __len__(self) -> int:
            return 8

        def __getitem__(self, i: int) -> tuple[Any, int]:
            pixels = bytes_of(i, 1, size=(40, 40))[0][0].permute(1, 2, 0).contiguous().numpy()
            return self.transform(image.fromarray(pixels)), i

    monkeypatch.setattr(timm.data.loader, "PrefetchLoader", ours.PrefetchLoader)
    common = {"input_size": (3, 32, 32), "batch_size": 4, "num_workers": 0, "device": CPU, "mean": MEAN, "std": STD}
    collate = ours.FastCollateMixup(cutmix_alpha=1.0, num_classes=8)
    train = timm.data.create_loader(
        Files(), is_training=True, re_prob=0.5, re_mode="pixel", collate_fn=collate, **common
    )
    test = timm.data.create_loader(Files(), **common)
    assert type(train) is type(test) is ours.PrefetchLoader
    assert train.mixup_enabled
    assert not test.mixup_enabled
    assert len(train) == len(test) == 2
    for images, targets in train:
        assert images.shape == (4, 3, 32, 32)
        assert images.dtype == torch.float32
        torch.testing.assert_close(targets.sum(1), torch.ones(4))
    assert torch.equal(torch.cat([labels for _, labels in test]), torch.arange(8))


# ---- errors ----


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"loader": 3}, TypeError, r"loader must give batches \(images, labels\), but got int"),
        ({"mean": "0.5"}, TypeError, "mean must be a number or a sequence of numbers"),
        ({"mean": (0.5, math.nan, 0.5)}, ValueError, r"mean\[1\] must be finite"),
        ({"std": 0.0}, ValueError, "std must be .* > 0, but got 0.0"),
        ({"std": (0.2, 0.2, -1)}, ValueError, r"std\[2\] must be .* > 0"),
        ({"channels": 0}, ValueError, "channels must be >= 1"),
        ({"device": "gpu"}, ValueError, "device must be a device"),
        ({"img_dtype": torch.float64}, ValueError, "img_dtype must be float32, float16, bfloat16 or None"),
        ({"fp16": 1}, TypeError, "fp16 must be a bool"),
        ({"re_prob": 1.5}, ValueError, r"re_prob must be in \[0, 1\]"),
        ({"re_mode": "random"}, ValueError, "re_mode must be one of const, rand, pixel.*Did you mean 'rand'"),
        ({"re_count": 17}, ValueError, r"re_count must be in \[1, 16\]"),
        ({"re_num_splits": -1}, ValueError, "re_num_splits must be >= 0"),
        ({"channels_last": None}, TypeError, "channels_last must be a bool"),
        ({"mixup_fn": print}, TypeError, "mixup_fn must be None, a Mixup of fusedmix.integrations.timm or a mixing"),
        ({"mixup_fn": ours.FastCollateMixup()}, ValueError, "mixup_fn must not be a FastCollateMixup"),
        ({"mixup_fn": fm.EmbedMix(num_classes=2)}, TypeError, "mixup_fn must mix images, but got EmbedMix"),
        ({"mixup_fn": fm.MixUp(finish=fm.Finish(None))}, ValueError, "mixup_fn must have finish=None"),
        ({"mixup_fn": fm.MixUp(axes=(-1,))}, ValueError, "mixup_fn must have axes=None"),
        ({"mixup_fn": fm.MixUp(inplace=True)}, ValueError, "mixup_fn must have inplace=False"),
    ],
)
def test_errors(options: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        ours.PrefetchLoader(**{"loader": [], "device": CPU, **options})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"got 'cuda' where torch finds no GPU. Pass device=torch.device\(\"cpu\"\)"):
        ours.PrefetchLoader([])


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.rand(4, 3, 8, 8), torch.arange(4), "images that are uint8 tensors, but gave torch.float32"),
        ([1, 2], torch.arange(4), "images that are uint8 tensors, but gave list"),
        (bytes_of(0, channels=1)[0], torch.arange(8), "the images of loader must have a channel for each"),
        (bytes_of(0)[0][0], torch.arange(3), r"the images of loader must be \(B, C, H, W\)"),
        (bytes_of(0)[0], torch.arange(7), "one label for each of 8 images, but got 7"),
        (bytes_of(0)[0], torch.full((8,), CLASSES), r"target must be in \[0, num_classes\)"),
    ],
)
def test_wrong_batches(x: Any, y: Tensor, message: str) -> None:
    drawn, torchs = state(), torch.get_rng_state()
    mixup = ours.Mixup(cutmix_alpha=1.0, num_classes=CLASSES)
    with pytest.raises(ValueError, match=message):
        list(ours.PrefetchLoader([(x, y)], device=CPU, re_prob=1.0, mixup_fn=mixup))
    assert state() == drawn
    assert torch.equal(torch.get_rng_state(), torchs)


@needs_gpu
@pytest.mark.parametrize("mixup", ["Mixup", "CutMix", "FMix", None])
def test_on_a_gpu_as_on_the_cpu(mixup: str | None) -> None:
    """A training that works on each batch for a while sees every batch whole."""
    made = {
        None: lambda: None,
        "Mixup": lambda: ours.Mixup(cutmix_alpha=1.0, mode="elem", num_classes=CLASSES),
        "CutMix": lambda: fm.CutMix(num_classes=CLASSES),
        "FMix": lambda: fm.FMix(num_classes=CLASSES),
    }[mixup]
    batches = [bytes_of(seed, n=64, size=(64, 64)) for seed in range(12)]
    pinned = [(x.pin_memory(), y.pin_memory()) for x, y in batches]
    options = {"re_prob": 0.5, "re_count": 2, "re_num_splits": 2}
    expected = batches_of(ours.PrefetchLoader(batches, device=CPU, mixup_fn=made(), **options), 3)
    loader = ours.PrefetchLoader(pinned, device=torch.device("cuda"), mixup_fn=made(), **options)
    np.random.seed(3)
    torch.manual_seed(3)
    for (images, targets), (x, y) in zip(loader, expected, strict=True):
        torch.cuda._sleep(2_000_000)
        kept = images.clone(), targets.clone()
        for mine, theirs in zip(kept, (x, y), strict=True):
            torch.testing.assert_close(mine.cpu(), theirs, rtol=0, atol=1e-4)
