"""The timm integration: timm's batches for NumPy's seeds, and what it does where timm is wrong.

Every expectation of parity comes from timm, run beside ours in the same test.
"""

from __future__ import annotations

import copy
import inspect
import random
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fusedmix as fm
from conftest import NO_TRITON, images_of

np = pytest.importorskip("numpy")

from fusedmix.integrations import timm as ours  # noqa: E402

try:
    import timm
    import timm.data
    import timm.loss
except ImportError:
    timm = None


def why_not_timm() -> str | None:
    """Why there is no peer here."""
    if timm is None:
        return "timm is not installed"
    if "multi_label" not in inspect.signature(timm.data.Mixup).parameters:
        return f"timm {timm.__version__} is older than 1.0.31, whose boxes and labels ours are"
    return None


needs_timm = pytest.mark.skipif(why_not_timm() is not None, reason=str(why_not_timm()))
needs_any_timm = pytest.mark.skipif(timm is None, reason="timm is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
MODES = ("batch", "pair", "elem")
SIZES = ((8, 8), (17, 40), (29, 8), (5, 7), (33, 64), (1, 9), (1, 1))


def state() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state()
    return (name, keys.tobytes(), *rest)


def seeded(seed: int, mixup: Any, *batch: Any) -> tuple[Tensor, Tensor, Any]:
    """What is made of a batch after np.random.seed, and the generator's state then."""
    np.random.seed(seed)
    x, targets = mixup(*batch)
    return x, targets, state()


def options_of(rng: random.Random, mode: str) -> dict[str, Any]:
    """Valid arguments: one or both alphas, or the box by its sides; alphas so small that λ is often exactly 1."""
    mixup, cutmix = rng.choice([(0.8, 0.0), (0.0, 1.0), (0.8, 1.0), (0.2, 0.3), (3.0, 2.0), (0.02, 0.0), (0.02, 0.02)])
    return {
        "mixup_alpha": mixup,
        "cutmix_alpha": cutmix,
        "cutmix_minmax": rng.choice([None, None, None, (0.2, 0.8), [0.0, 1.0]]),
        "prob": rng.choice([1.0, 1.0, 0.5, 0.0]),
        "switch_prob": rng.choice([0.5, 0.5, 0.2, 0.0, 1.0]),
        "mode": mode,
        "correct_lam": rng.random() < 0.7,
        "label_smoothing": rng.choice([0.0, 0.1, 0.3, 1.0]),
        "num_classes": rng.choice([2, 7, 100]),
        "multi_label": rng.random() < 0.2,
    }


def size_of(rng: random.Random, options: dict[str, Any]) -> tuple[int, int]:
    """Sides that leave timm a box to draw."""
    minmax = options["cutmix_minmax"]
    return rng.choice([s for s in SIZES if minmax is None or all(int(n * minmax[0]) < int(n * minmax[1]) for n in s)])


def labels_of(rng: random.Random, options: dict[str, Any], n: int) -> Tensor:
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    if options["multi_label"]:
        return torch.randint(0, 2, (n, options["num_classes"]), generator=generator).to(
            rng.choice([torch.float32, torch.int64, torch.uint8])
        )
    return torch.randint(0, options["num_classes"], (n,), generator=generator)


def check_images(mixed: Tensor, timms: Tensor, before: Tensor) -> None:
    """Equal to rounding. timm rounds λ, 1-λ, both products and their sum; we round λ, the difference of the partners
    and the result: seven halves of eps of the larger partner in float32. Of float16 and bfloat16 only the products, the
    sum and the result are rounded to eps: two. For float64 we compute as timm does."""
    if before.dtype == torch.float64:
        assert torch.equal(mixed, timms)
        return
    info = torch.finfo(before.dtype)
    larger = torch.maximum(before.abs(), before.flip(0).abs()).double()
    roundings = 3.5 if before.dtype == torch.float32 else 2.0
    error = (mixed.double() - timms.double()).abs()
    assert (error <= roundings * info.eps * larger + info.smallest_normal * info.eps).all()


@needs_timm
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_mixup_is_timms(mode, dtype):
    rng = random.Random(f"{mode}{dtype}")
    for seed in range(40):
        options = options_of(rng, mode)
        n, size = rng.choice([2, 4, 6, 16]), size_of(rng, options)
        labels, before = labels_of(rng, options, n), images_of((n, 3, *size), dtype, seed)
        x = before.clone()
        mixed, targets, after = seeded(seed, ours.Mixup(**options), x, labels)
        timms, timms_targets, timms_after = seeded(seed, timm.data.Mixup(**options), before.clone(), labels)
        assert mixed is x
        assert after == timms_after, options
        check_images(mixed, timms, before)
        if mode != "batch" and dtype in (torch.float16, torch.bfloat16):  # timm rounds the targets' λ to them.
            _, timms_targets, _ = seeded(seed, timm.data.Mixup(**options), before.float(), labels)
        assert targets.dtype == torch.float32
        torch.testing.assert_close(targets, timms_targets.float(), rtol=0, atol=2.0**-22)


@needs_timm
@pytest.mark.parametrize("mode", MODES)
def test_boxes_are_timms_exactly(mode):
    for seed in range(60):
        size = SIZES[seed % len(SIZES)]
        before = torch.arange(8.0).reshape(-1, 1, 1, 1).expand(8, 2, *size)
        options = {"mixup_alpha": 0.0, "cutmix_alpha": (1.0, 0.3)[seed % 2], "mode": mode, "num_classes": 8}
        mixed, _, _ = seeded(seed, ours.Mixup(**options), before.clone(), torch.arange(8))
        timms, _, _ = seeded(seed, timm.data.Mixup(**options), before.clone(), torch.arange(8))
        assert torch.equal(mixed, timms)


@needs_timm
@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed"])
@pytest.mark.parametrize("mode", MODES)
def test_awkward_memory(mode, layout):
    def laid_out():
        if layout == "channels_last":
            return images_of((6, 3, 9, 7), torch.float32).contiguous(memory_format=torch.channels_last)
        if layout == "sliced":
            return images_of((12, 5, 20, 9), torch.float32)[::2, 1:4, ::2, 1:8]
        return images_of((6, 3, 7, 10), torch.float32).transpose(2, 3)

    mixup = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "mode": mode, "num_classes": 3}
    before = laid_out().clone()
    for seed in range(8):
        x = laid_out()
        mixed, _, _ = seeded(seed, ours.Mixup(**mixup), x, torch.tensor([0, 1, 2, 0, 1, 2]))
        assert mixed.stride() == laid_out().stride()
        timms, _, _ = seeded(seed, timm.data.Mixup(**mixup), laid_out(), torch.tensor([0, 1, 2, 0, 1, 2]))
        check_images(mixed, timms, before)


@needs_timm
@pytest.mark.parametrize("mode", MODES)
def test_switched_off_and_empty(mode):
    for n in (4, 0):
        labels, before = torch.arange(n), images_of((n, 3, 8, 8), torch.float32)
        results = []
        for cls in (ours.Mixup, timm.data.Mixup):
            mixup = cls(cutmix_alpha=1.0, mode=mode, num_classes=10)
            mixup.mixup_enabled = n == 0
            results.append(seeded(3, mixup, before.clone(), labels))
        assert torch.equal(results[0][0], before)
        torch.testing.assert_close(results[0][1], results[1][1])
        assert results[0][2] == results[1][2]


def samples_of(
    rng: random.Random, options: dict[str, Any], layout: str, n: int, size: tuple[int, int], seed: int
) -> Any:
    """(image, label) samples: NumPy arrays (C, H, W) in memory of that order or of (H, W, C), as timm's transforms make
    them; or tensors."""
    pixels = images_of((n, *size, 3), torch.uint8, seed).permute(0, 3, 1, 2)
    images = list(pixels if layout == "HWC" else pixels.contiguous())
    labels = labels_of(rng, options, n)
    return [
        (image if layout == "tensors" else image.numpy(), label if options["multi_label"] else int(label))
        for image, label in zip(images, labels, strict=True)
    ]


@needs_timm
@pytest.mark.parametrize("layout", ["CHW", "HWC", "tensors"])
@pytest.mark.parametrize("mode", [*MODES, "half"])
def test_collate_is_timms_to_the_byte(mode, layout):
    rng = random.Random(f"{mode}{layout}")
    for seed in range(40):
        options = options_of(rng, mode)
        n, size = rng.choice([2, 4, 6, 16]), size_of(rng, options)
        samples = samples_of(rng, options, layout, n, size, seed)
        before = copy.deepcopy(samples)
        mixed, targets, after = seeded(seed, ours.FastCollateMixup(**options), samples)
        for (image, _), (same, _) in zip(samples, before, strict=True):
            assert (image == same).all(), "a sample was written to"
        timms, timms_targets, timms_after = seeded(seed, timm.data.FastCollateMixup(**options), before)
        assert after == timms_after, options
        assert mixed.dtype == torch.uint8
        assert torch.equal(mixed, timms), options
        assert targets.dtype == torch.float32
        torch.testing.assert_close(targets, timms_targets, rtol=0, atol=2.0**-22)


@needs_timm
@pytest.mark.parametrize("mode", [*MODES, "half"])
def test_collate_rounds_every_pair_of_bytes_as_timm(mode):
    a = np.arange(256, dtype=np.uint8).repeat(256).reshape(1, 256, 256)
    samples = [(a, 0), (a.transpose(0, 2, 1), 1)]
    options = {"mixup_alpha": 1.0, "mode": mode, "num_classes": 2}
    for seed in range(60):
        mixed, _, _ = seeded(seed, ours.FastCollateMixup(**options), samples)
        timms, _, _ = seeded(seed, timm.data.FastCollateMixup(**options), samples)
        assert torch.equal(mixed, timms)


@needs_timm
@pytest.mark.parametrize("mode", [*MODES, "half"])
def test_boxes_of_lambda_one(mode):
    """α so small that λ is 1 in half of the draws: then timm's collate draws a box for a batch, its Mixup none."""
    options = {"mixup_alpha": 0.0, "cutmix_alpha": 0.01, "mode": mode, "num_classes": 4}
    samples = [(image, i) for i, image in enumerate(images_of((4, 3, 8, 8), torch.uint8).numpy())]
    for seed in range(20):
        results = [seeded(seed, cls(**options), samples) for cls in (ours.FastCollateMixup, timm.data.FastCollateMixup)]
        assert results[0][2] == results[1][2]
        assert torch.equal(results[0][0], results[1][0])
        if mode == "half":
            continue
        results = [
            seeded(seed, cls(**options), torch.rand(4, 3, 8, 8), torch.arange(4))
            for cls in (ours.Mixup, timm.data.Mixup)
        ]
        assert results[0][2] == results[1][2]


def test_collate_takes_read_only_and_reversed_arrays():
    image = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
    flipped = image[:, :, ::-1]
    flipped.flags.writeable = False
    mixup = ours.FastCollateMixup(mixup_alpha=0.0, cutmix_alpha=1.0, num_classes=2, label_smoothing=0.0)
    mixup.mixup_enabled = False
    mixed, targets = mixup([(image, 0), (flipped, 1)])
    assert np.array_equal(mixed.numpy(), np.stack((image, flipped)))
    assert torch.equal(targets, torch.eye(2))


# ---- the plan ----


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("n", [0, 1, 5, 8])
def test_a_sampled_plan_is_what_a_call_applies(mode, n):
    mixup = ours.Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, mode=mode, num_classes=4)
    labels = torch.arange(n) % 4
    for seed in range(6):
        x = images_of((n, 3, 9, 6), torch.float32, seed)
        np.random.seed(seed)
        plan = mixup.sample(n, (9, 6))
        expected = fm.mix(x, plan)
        mixed, targets, after = seeded(seed, mixup, x, labels)
        np.random.seed(seed)
        mixup.sample(n, (9, 6))
        assert state() == after
        assert torch.equal(mixed, expected)
        assert torch.equal(targets, fm.mix_labels(labels, plan, num_classes=4, label_smoothing=0.1))
        assert torch.equal(plan.partner, torch.arange(n).flip(0))
        mean = plan.mask().double().flatten(1).mean(1)
        middle = torch.arange(n) == plan.partner
        torch.testing.assert_close(plan.weight[~middle], mean[~middle], rtol=0, atol=2.0**-23)
        assert (plan.weight[middle] == 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_one_operator_for_the_images_and_one_for_the_targets(mode, dtype):
    class Seen(TorchDispatchMode):
        def __init__(self, x):
            super().__init__()
            self.x, self.mixing, self.on_images = x.data_ptr(), [], []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.namespace.startswith("fusedmix"):
                self.mixing.append(function._opname)
            if any(isinstance(a, Tensor) and a.data_ptr() == self.x for a in args):
                self.on_images.append(function._opname)
            return function(*args, **(kwargs or {}))

    x = images_of((16, 3, 8, 8), dtype)
    mixup = ours.Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, switch_prob=0.5, mode=mode, num_classes=4)
    for seed in range(4):
        np.random.seed(seed)
        with Seen(x) as seen:
            mixup(x, torch.arange(16) % 4)
        assert seen.mixing == ["mix_labels", "mix_"]
        assert seen.on_images == ["mix_"]


@pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")  # Triton's interpreter warns.
@pytest.mark.parametrize(
    "backend", ["cpp", pytest.param("triton", marks=pytest.mark.skipif(NO_TRITON is not None, reason=str(NO_TRITON)))]
)
@pytest.mark.parametrize("mode", MODES)
def test_backends_agree(mode, backend):
    device = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
    options = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "mode": mode, "num_classes": 3}
    before, labels = images_of((6, 2, 5, 9), torch.float32), torch.tensor([0, 1, 2, 0, 1, 2])
    for seed in range(3):
        expected = seeded(seed, ours.Mixup(**options, backend="reference"), before.clone(), labels)
        x, targets, after = seeded(seed, ours.Mixup(**options, backend=backend), before.to(device, copy=True), labels)
        assert after == expected[2]
        torch.testing.assert_close(x.cpu(), expected[0], rtol=2.0**-23, atol=2.0**-23)
        torch.testing.assert_close(targets.cpu(), expected[1], rtol=0, atol=2.0**-23)


@needs_gpu
@pytest.mark.parametrize("dtype", [*FLOATS, torch.uint8], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_on_a_gpu_as_on_the_cpu(mode, dtype):
    options = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "mode": mode, "num_classes": 7}
    for n, seed in ((6, 0), (64, 1), (300, 2)):  # The plan of 300 does not fit a kernel's arguments.
        before, labels = images_of((n, 3, 17, 24), dtype, seed), torch.arange(n) % 7
        expected = seeded(seed, ours.Mixup(**options), before.clone(), labels)
        mixed, targets, after = seeded(seed, ours.Mixup(**options), before.cuda(), labels.cuda())
        assert after == expected[2]
        tolerance = 1 if dtype == torch.uint8 else 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(
            mixed.cpu(), expected[0], rtol=0, atol=tolerance * (1 if dtype == torch.uint8 else 12)
        )
        torch.testing.assert_close(targets.cpu(), expected[1], rtol=0, atol=2.0**-23)


@needs_gpu
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty:UserWarning")  # What is refused leaves the graph empty.
def test_refuses_to_be_captured():
    x, labels = torch.rand(4, 3, 8, 8, device="cuda"), torch.arange(4, device="cuda")
    mixup = ours.Mixup(num_classes=4)
    mixup(x, labels)
    torch.cuda.synchronize()
    with pytest.raises(RuntimeError, match="CUDA graph"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        mixup(x, labels)


# ---- losses ----


@needs_any_timm
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mode", MODES)
def test_loss_is_its_formula(mode, smoothing):
    mixup = ours.Mixup(0.8, 1.0, mode=mode, num_classes=5, label_smoothing=smoothing)
    logits, labels = torch.randn(8, 5, dtype=torch.float64), torch.arange(8) % 5
    for seed in range(4):
        np.random.seed(seed)
        plan = mixup.sample(8, (6, 6))
        _, targets, _ = seeded(seed, mixup, torch.rand(8, 3, 6, 6), labels)
        own, lent = (
            F.cross_entropy(logits, y, label_smoothing=smoothing, reduction="none") for y in (labels, labels.flip(0))
        )
        expected = (plan.weight * own + (1 - plan.weight) * lent).mean()
        for loss in (
            timm.loss.SoftTargetCrossEntropy()(logits, targets),
            fm.mix_cross_entropy(logits, labels, plan, label_smoothing=smoothing),
        ):
            torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


@needs_any_timm
def test_the_example_of_the_docstring_runs():
    (example,) = re.findall(r"```python\n(.*?)```", ours.__doc__, re.DOTALL)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 1000))
    before = [p.clone() for p in model.parameters()]
    namespace = {
        "loader": [(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 999])) for _ in range(2)],
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
    }
    exec(example, namespace)
    assert namespace["targets"].shape == (4, 1000)
    assert namespace["loss"].isfinite()
    assert all(not torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


# ---- where timm is wrong ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64], ids=str)
def test_soft_labels(dtype):
    """One-hot labels give what their classes give."""
    mixup = ours.Mixup(0.8, 1.0, mode="elem", num_classes=4)
    classes = torch.tensor([0, 3, 1, 1])
    for labels in (F.one_hot(classes, 4).to(dtype), classes.unsqueeze(1)):
        _, expected, _ = seeded(1, mixup, torch.rand(4, 3, 8, 8), classes)
        _, targets, _ = seeded(1, mixup, torch.rand(4, 3, 8, 8), labels)
        assert targets.dtype == torch.float32
        torch.testing.assert_close(targets, expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_targets_do_not_depend_on_the_images_dtype(mode, dtype):
    mixup = ours.Mixup(0.8, 1.0, mode=mode, num_classes=4)
    for seed in range(5):
        _, expected, _ = seeded(seed, mixup, torch.rand(4, 3, 8, 8), torch.arange(4))
        _, targets, _ = seeded(seed, mixup, images_of((4, 3, 8, 8), dtype), torch.arange(4))
        assert torch.equal(targets, expected)


@pytest.mark.parametrize("mode", MODES)
def test_bytes_round_to_nearest(mode):
    mixup = ours.Mixup(0.8, 1.0, mode=mode, num_classes=8)
    for seed in range(5):
        x = images_of((8, 3, 7, 9), torch.uint8, seed)
        np.random.seed(seed)
        mask = mixup.sample(8, (7, 9)).mask().double().unsqueeze(1)
        exact = mask * x.double() + (1 - mask) * x.flip(0).double()
        mixed, _, _ = seeded(seed, mixup, x, torch.arange(8))
        assert ((mixed.double() - exact).abs() <= 0.5 + 255 * 2.0**-24).all()


@needs_timm
@pytest.mark.parametrize("n", [1, 3, 7])
@pytest.mark.parametrize("mode", ["batch", "pair"])
def test_odd_batch_is_timms_without_the_middle(mode, n):
    options = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "mode": mode, "num_classes": n}
    rest = torch.arange(n) != n // 2
    for seed in range(10):
        before, labels = images_of((n, 3, 8, 6), torch.float32, seed), torch.arange(n)
        mixed, targets, after = seeded(seed, ours.Mixup(**options), before.clone(), labels)
        timms, timms_targets, timms_after = seeded(seed, timm.data.Mixup(**options), before[rest], labels[rest])
        assert after == timms_after
        check_images(mixed[rest], timms, before[rest])
        torch.testing.assert_close(targets[rest], timms_targets, rtol=0, atol=2.0**-22)
        assert torch.equal(mixed[~rest], before[~rest])
        own = F.one_hot(labels[~rest], n) * 0.9 + 0.1 / n
        torch.testing.assert_close(targets[~rest], own.float())


@needs_timm
@pytest.mark.parametrize("mode", [*MODES, "half"])
def test_odd_batch_of_samples_keeps_the_middle(mode):
    n, middle = 7, 3
    options = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "mode": mode, "num_classes": n, "label_smoothing": 0.0}
    images = images_of((n, 3, 8, 6), torch.uint8).numpy()
    samples = [(image, i) for i, image in enumerate(images)]
    for seed in range(6):
        mixed, targets, after = seeded(seed, ours.FastCollateMixup(**options), samples)
        assert len(mixed) == len(targets) == (4 if mode == "half" else 7)
        assert np.array_equal(mixed[middle].numpy(), images[middle])
        assert torch.equal(targets[middle], F.one_hot(torch.tensor(middle), n).float())
        if mode == "elem":  # This mode draws for the middle, too.
            continue
        timms, timms_targets, timms_after = seeded(
            seed, timm.data.FastCollateMixup(**options), copy.deepcopy(samples[:middle] + samples[middle + 1 :])
        )
        rest = [i for i in range(len(mixed)) if i != middle]
        assert after == timms_after
        assert torch.equal(mixed[rest], timms)
        torch.testing.assert_close(targets[rest], timms_targets, rtol=0, atol=2.0**-22)


def test_autograd_is_told_of_writes():
    x = torch.rand(4, 3, 8, 8, requires_grad=True)
    with pytest.raises(fm.InplaceError, match="x cannot be mixed in place"):
        ours.Mixup(num_classes=4)(x, torch.arange(4))
    y = x * 2
    version = y._version
    with torch.no_grad():
        ours.Mixup(num_classes=4)(y, torch.arange(4))
    assert y._version > version
