"""The label losses against PyTorch's own on dense mixed targets, on every backend that runs here."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import fusedmix as fm
from conftest import INTEGERS
from test_ops import HERE

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = ("contiguous", "cropped", "transposed", "stepped", "shifted", "expanded")
REDUCTIONS = ("mean", "sum", "none")
CLASSES = (1, 2, 3, 10, 257, 4099, 21841)


@pytest.fixture(params=HERE, ids="-".join)
def backend(request):
    """(name, device)."""
    return request.param


def plan_for(b, seed=0, pairing="random", per="sample"):
    return fm.GMix(per=per, pairing=pairing, backend=None, sampling="device").sample(b, (16, 16), seed=seed)


def logits_for(b, k, dtype=torch.float32, layout="contiguous", device="cpu", scale=4.0):
    """A leaf's worth of logits: in 64 bits the same for all dtypes and layouts, but for the rounding."""
    generator = torch.Generator().manual_seed(b * 1000 + k)
    x = (scale * torch.randn(b, k, generator=generator, dtype=torch.float64)).to(device, dtype)
    if layout == "cropped":
        x = F.pad(x, (3, 2, 1, 1))[1 : 1 + b, 3 : 3 + k]
    elif layout == "transposed":
        x = x.t().contiguous().t()
    elif layout == "stepped":
        x = x.repeat_interleave(2, 1)[:, ::2]
    elif layout == "shifted":
        x = x.new_empty(b * k + 1)[1:].view(b, k).copy_(x)
    elif layout == "expanded":
        x = x[:, :1].expand(b, k)
    return x


def labels_for(b, k, device="cpu"):
    return torch.randint(k, (b,), generator=torch.Generator().manual_seed(b)).to(device)


def dense(labels, plan, k, smoothing=0.0):
    """Mixed targets in float64."""
    y = F.one_hot(labels.cpu(), k).double() if labels.ndim == 1 else labels.cpu().double()
    y = y * (1 - smoothing) + smoothing / k
    w = plan.weight.cpu()[:, None]
    return w * y + (1 - w) * y[plan.partner.cpu()]


def two_terms(z, labels, plan, reduction="none", **options):
    """λ·CE(y) + (1-λ)·CE(y') by F.cross_entropy of hard labels, row by row."""
    each = [F.cross_entropy(z, y, reduction="none", **options) for y in (labels, labels[plan.partner])]
    rows = plan.weight * each[0] + (1 - plan.weight) * each[1]
    counted = (labels != options.get("ignore_index", -100)).sum()
    return rows if reduction == "none" else rows.sum() / (counted if reduction == "mean" else 1)


def assert_as(loss, logits, exact_loss, exact, terms=0.0):
    """Losses to a few units of the compute type, gradients to a unit of the logits' type.

    `terms`: how large those are of which a gradient is the difference, if larger than gradients are.
    """
    computed = torch.float64 if logits.dtype == torch.float64 else torch.float32
    assert loss.dtype == computed
    assert loss.shape == exact_loss.shape
    size = float(exact_loss.detach().abs().nan_to_num(0).max()) if exact_loss.numel() else 0.0
    eps = torch.finfo(computed).eps
    torch.testing.assert_close(
        loss.cpu().double(), exact_loss, rtol=32 * eps, atol=32 * eps * (1 + size), equal_nan=True
    )
    outer = torch.linspace(-1, 2, max(1, loss.numel()), dtype=torch.float64)[: loss.numel()].reshape(loss.shape)
    (got,) = torch.autograd.grad(loss, logits, outer.to(loss))
    (want,) = torch.autograd.grad(exact_loss, exact, outer)
    assert got.dtype == logits.dtype
    assert got.shape == logits.shape
    # Half a unit of the logits' type is allowed; subnormal numbers have the spacing of the smallest normal one.
    spacing = max(torch.finfo(logits.dtype).tiny * torch.finfo(logits.dtype).eps, 1e-300)
    scale = max(terms, float(want.abs().nan_to_num(0).max()) if want.numel() else 0.0)
    # PyTorch itself sums K targets one after the other, in eight lanes.
    units = max(32, logits.shape[1] / 8) if logits.dtype == torch.float64 else 32
    torch.testing.assert_close(
        got.cpu().double(), want, rtol=torch.finfo(logits.dtype).eps, atol=units * eps * scale + spacing, equal_nan=True
    )


def leaves(z):
    """The logits as they are, and in float64 on the CPU: both need gradients."""
    return z.detach().requires_grad_(), z.detach().cpu().double().requires_grad_()


# ---- cross entropy ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("k", CLASSES)
def test_cross_entropy_of_any_size(backend, dtype, k):
    name, device = backend
    if name == "triton" and device == "cpu" and k != 257 and dtype != torch.float32:
        pytest.skip("interpreted, one dtype will do")
    for b, smoothing, weighted, reduction in ((1, 0.0, False, "mean"), (6, 0.1, True, "none"), (5, 1.0, False, "sum")):
        plan, labels = plan_for(b, seed=k), labels_for(b, k, device)
        weight = torch.rand(k, dtype=torch.float64) if weighted else None
        logits, exact = leaves(logits_for(b, k, dtype, device=device))
        options = {"label_smoothing": smoothing, "reduction": reduction}
        loss = fm.mix_cross_entropy(logits, labels, plan, weight=weight, backend=name, **options)
        rounded = None if weight is None else weight.to(loss.dtype).double()
        expected = F.cross_entropy(exact, dense(labels, plan, k), rounded, **options)
        assert_as(loss, logits, expected, exact, terms=1 / b)  # These are σ(z) - t, up to 1 each.


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("k", [5, 24, 515])
def test_cross_entropy_of_any_layout(backend, dtype, layout, k):
    name, device = backend
    cases = list(itertools.product(("roll", "flip", "random"), ("batch", "sample")))
    for pairing, per in cases[k % 3 :: 3] if name == "triton" else cases:  # Interpreted, a third of the cases will do.
        plan, labels = plan_for(4, 3, pairing, per), labels_for(4, k, device)
        logits, exact = leaves(logits_for(4, k, dtype, layout, device))
        assert_as(
            fm.mix_cross_entropy(logits, labels, plan, backend=name), logits,
            F.cross_entropy(exact, dense(labels, plan, k)), exact, terms=1 / 4,
        )  # fmt: skip


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_an_empty_batch(backend, reduction):
    name, device = backend
    plan, labels = plan_for(0), torch.empty(0, dtype=torch.int64, device=device)
    logits, exact = leaves(torch.empty(0, 7, device=device))
    targets = torch.empty(0, 7, dtype=torch.float64)
    options = {"reduction": reduction}
    loss = fm.mix_cross_entropy(logits, labels, plan, backend=name, **options)
    assert_as(loss, logits, F.cross_entropy(exact, targets, **options), exact)
    loss = fm.mix_binary_cross_entropy(logits, labels, plan, backend=name, **options)
    assert_as(loss, logits, F.binary_cross_entropy_with_logits(exact, targets, **options), exact)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("ignore_index", [-100, 2])
@pytest.mark.parametrize("per", ["batch", "sample"])
def test_ignored_labels_are_those_of_hard_labels(backend, reduction, smoothing, ignore_index, per):
    name, device = backend
    plan = plan_for(8, per=per)
    labels = torch.tensor([0, 1, ignore_index, 3, ignore_index, 5, 6, ignore_index])
    logits, exact = leaves(logits_for(8, 7, device=device))
    options = {"label_smoothing": smoothing, "ignore_index": ignore_index}
    loss = fm.mix_cross_entropy(logits, labels.to(device), plan, reduction=reduction, backend=name, **options)
    assert_as(loss, logits, two_terms(exact, labels, plan, reduction, **options), exact)
    if per == "batch" and reduction != "none":  # It equals two whole losses, which it is to replace.
        lam = float(plan.weight[0])
        options |= {"reduction": reduction}
        whole = lam * F.cross_entropy(exact, labels, **options)
        whole = whole + (1 - lam) * F.cross_entropy(exact, labels[plan.partner], **options)
        torch.testing.assert_close(loss.cpu().double(), whole, rtol=1e-5, atol=1e-5)


def test_class_weights_with_ignored_labels(backend):
    """The rows are those of hard labels. Their number divides, as without ignored ones B does."""
    name, device = backend
    plan, weight = plan_for(6), torch.rand(5, dtype=torch.float64).float()
    labels = torch.tensor([0, -100, 2, 3, -100, 4])
    for smoothing in (0.0, 0.3):
        logits, exact = leaves(logits_for(6, 5, device=device))
        options = {"label_smoothing": smoothing, "weight": weight.double()}
        expected = two_terms(exact, labels, plan, "mean", **options)
        loss = fm.mix_cross_entropy(logits, labels.to(device), plan, backend=name, **options)
        assert_as(loss, logits, expected, exact)


def test_nothing_but_ignored_labels(backend):
    name, device = backend
    labels = torch.full((4,), -100, device=device)
    z = logits_for(4, 6, device=device).index_fill(1, torch.tensor([1], device=device), torch.nan).requires_grad_()
    for reduction in REDUCTIONS:
        loss = fm.mix_cross_entropy(z, labels, plan_for(4), reduction=reduction, backend=name)
        torch.testing.assert_close(
            loss.cpu(), F.cross_entropy(torch.zeros(4, 6), labels.cpu(), reduction=reduction), equal_nan=True
        )
    (got,) = torch.autograd.grad(loss.sum(), z)
    assert not got.any()  # There is none even of logits that are NaN.


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_infinities_and_nan(backend, dtype):
    """Row by row as F.cross_entropy has them of hard labels."""
    name, device = backend
    inf, nan = torch.inf, torch.nan
    rows = [
        *([0.0, -inf, 1.0, 2.0], [-inf, -inf, -inf, 1.0], [1.0, nan, 0.0, 1.0], [-inf] * 4, [inf, 0.0, 0.0, 0.0]),
        *(
            [nan, -inf, -inf, -inf],
            [-inf, 3.0, -inf, -inf],
            [9e4, 8.9e4, -9e4, 0.0] if dtype != torch.float16 else [0.0] * 4,
        ),
    ]
    for k, smoothing in itertools.product((4,) if name == "triton" else (4, 600), (0.0, 0.1)):
        z = torch.cat([torch.tensor(rows, dtype=torch.float64), torch.full((8, k - 4), -3.0, dtype=torch.float64)], 1)
        plan = plan_for(8, pairing="flip")
        for labels in (torch.full((8,), 3), torch.full((8,), 1)):
            logits, exact = leaves(z.to(device, dtype))
            options = {"label_smoothing": smoothing, "reduction": "none"}
            loss = fm.mix_cross_entropy(logits, labels.to(device), plan, backend=name, **options)
            expected = F.cross_entropy(exact, labels, **options)
            eps = torch.finfo(loss.dtype).eps
            torch.testing.assert_close(loss.cpu().double(), expected, rtol=32 * eps, atol=32 * eps, equal_nan=True)
            (got,), (want,) = (torch.autograd.grad(a.sum(), b) for a, b in ((loss, logits), (expected, exact)))
            torch.testing.assert_close(
                got.cpu().double(), want, rtol=torch.finfo(dtype).eps, atol=32 * eps, equal_nan=True
            )


def test_a_large_offset_costs_no_digits(backend):
    name, device = backend
    plan, labels = plan_for(4), labels_for(4, 3000, device)
    z = logits_for(4, 3000, device=device).mul(64).round().div(64)  # So the shift is exact.
    options = {"label_smoothing": 0.1, "reduction": "none", "backend": name}
    a, b = (fm.mix_cross_entropy(x, labels, plan, **options) for x in (z, z + 2**12))
    torch.testing.assert_close(a, b, rtol=4e-7, atol=0)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_integer_labels_of_any_width(backend, dtype):
    name, device = backend
    plan, logits, labels = plan_for(6), logits_for(6, 9, device=device), labels_for(6, 9)
    for loss in (fm.mix_cross_entropy, fm.mix_binary_cross_entropy):
        got = loss(logits, labels.to(dtype).to(device), plan, backend=name)
        assert torch.equal(got, loss(logits, labels.to(device), plan, backend=name))


def test_soft_labels():
    plan, logits, soft, weight = plan_for(6), torch.randn(6, 9), torch.rand(6, 9).softmax(1), torch.rand(9)
    for smoothing in (0.0, 0.2):
        mixed = fm.mix_labels(soft, plan, label_smoothing=smoothing)
        torch.testing.assert_close(
            fm.mix_cross_entropy(logits, soft, plan, label_smoothing=smoothing, weight=weight),
            F.cross_entropy(logits, mixed, weight),
        )
    with pytest.raises(ValueError, match="ignore_index must be negative where labels are soft, but got 3"):
        fm.mix_cross_entropy(logits, soft, plan, ignore_index=3)


def test_sample_pairing_learns_its_own_label():
    plan = fm.SamplePairing(pairing="flip", sampling="device").sample(4, (8, 8), seed=1)
    logits, labels = torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    torch.testing.assert_close(fm.mix_cross_entropy(logits, labels, plan), F.cross_entropy(logits, labels))
    # The partner's logit may be anything: its weight is 0.
    logits[torch.arange(4), 3 - labels] = -torch.inf
    assert fm.mix_cross_entropy(logits, labels, plan).isfinite()


# ---- binary cross entropy --------------------------------------------------------------------------------------------


def binary(z, targets, sum_classes, reduction, threshold=None, **weights):
    """PyTorch's, in float64."""
    targets = targets if threshold is None else (targets > threshold).double()
    loss = F.binary_cross_entropy_with_logits(z, targets, reduction="none", **weights)
    loss = loss.sum(1) if sum_classes else loss
    return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("k", CLASSES)
def test_binary_of_any_size(backend, dtype, k):
    name, device = backend
    if name == "triton" and device == "cpu" and k != 257 and dtype != torch.float32:
        pytest.skip("interpreted, one dtype will do")
    cases = itertools.product((False, True), REDUCTIONS)
    for (sum_classes, reduction), b, smoothing in zip(
        cases, (1, 6, 5, 2, 3, 4), (0.0, 0.1, 1.0, 0.0, 0.2, 0.1), strict=True
    ):
        plan, labels = plan_for(b, seed=k), labels_for(b, k, device)
        logits, exact = leaves(logits_for(b, k, dtype, device=device))
        weights = {} if b % 2 else {"weight": torch.rand(k), "pos_weight": 3 * torch.rand(k)}
        options = {"sum_classes": sum_classes, "reduction": reduction}
        loss = fm.mix_binary_cross_entropy(
            logits, labels, plan, label_smoothing=smoothing, backend=name, **options, **weights
        )
        weights = {key: w.double() for key, w in weights.items()}
        # The kernels' targets are those of mix_labels: float32 but for float64 logits.
        targets = dense(labels, plan, k, smoothing)
        assert_as(loss, logits, binary(exact, targets, **options, **weights), exact)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "label_dtype", [torch.float32, torch.float16, torch.float64, torch.bool, torch.int64, torch.uint16], ids=str
)
def test_binary_of_multi_hot_labels_of_any_layout(backend, layout, label_dtype):
    name, device = backend
    for k in (5, 1200):
        plan = plan_for(4, k, "random")
        hot = torch.rand(4, 2 * k + 1, generator=torch.Generator().manual_seed(k)).to(device)
        labels = (hot if label_dtype.is_floating_point else hot > 0.7).to(label_dtype)[:, 1 : 2 * k : 2]
        logits, exact = leaves(logits_for(4, k, torch.bfloat16, layout, device))
        loss = fm.mix_binary_cross_entropy(logits, labels, plan, label_smoothing=0.1, backend=name)
        assert_as(loss, logits, binary(exact, dense(labels, plan, k, 0.1), False, "mean"), exact)


@pytest.mark.parametrize("sum_classes", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("threshold", [None, 0.2, 0.5])
@pytest.mark.parametrize("multi_hot", [False, True])
def test_as_timm(backend, sum_classes, smoothing, threshold, multi_hot):
    """Its loss on the targets of mix_labels: the thresholds fall alike for all of many weights."""
    timm = pytest.importorskip("timm.loss")
    name, device = backend
    b, k = 8 if name == "triton" else 64, 10
    plan, labels = plan_for(b), labels_for(b, k, device)
    labels = (torch.rand(b, k, device=device) > 0.5).float() if multi_hot else labels
    weights = {"weight": torch.rand(k, device=device), "pos_weight": 2 * torch.rand(k, device=device)}
    theirs = timm.BinaryCrossEntropy(smoothing=0.0, target_threshold=threshold, sum_classes=sum_classes, **weights)
    mixed = fm.mix_labels(labels, plan, num_classes=k, label_smoothing=smoothing)
    z = logits_for(b, k, device=device)
    results = []
    for f in (
        lambda x: theirs(x, mixed),
        lambda x: fm.mix_binary_cross_entropy(
            x, labels, plan, label_smoothing=smoothing, target_threshold=threshold, sum_classes=sum_classes,
            backend=name, **weights,
        ),
    ):  # fmt: skip
        x = z.clone().requires_grad_()
        loss = f(x)
        results.append((loss, *torch.autograd.grad(loss, x)))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_a_target_is_above_the_threshold_where_mix_labels_has_it(backend):
    """Thresholds that are some row's target, to the bit."""
    name, device = backend
    plan, labels = plan_for(32), labels_for(32, 4, device)
    mixed = fm.mix_labels(
        labels, plan, num_classes=4, label_smoothing=0.1, backend="reference" if device == "cpu" else None
    )
    z = torch.full((32, 4), 3.0, device=device)
    options = {"label_smoothing": 0.1, "sum_classes": True, "reduction": "none", "backend": name}
    for threshold in mixed.unique()[:: 32 if name == "triton" else 1].tolist():
        got = fm.mix_binary_cross_entropy(z, labels, plan, target_threshold=threshold, **options)
        hot = (mixed > threshold).float()
        torch.testing.assert_close(got, F.binary_cross_entropy_with_logits(z, hot, reduction="none").sum(1))


def test_binary_at_the_limits(backend):
    """Infinite logits give what large ones tend to; NaN stays."""
    name, device = backend
    plan = fm.SamplePairing(pairing="flip", sampling="device").sample(6, (8, 8), seed=1)  # It learns its own labels.
    inf, nan = torch.inf, torch.nan
    z = torch.tensor([[inf, -inf], [-inf, 0.0], [0.0, inf], [nan, 1.0], [100.0, -100.0], [-100.0, 100.0]])
    logits = z.to(device).requires_grad_()
    labels = torch.zeros(6, dtype=torch.int64, device=device)
    loss = fm.mix_binary_cross_entropy(logits, labels, plan, sum_classes=True, reduction="none", backend=name)
    log2 = 0.6931471805599453
    expected = torch.tensor([0.0, inf, inf, nan, 0.0, 200.0])
    torch.testing.assert_close(loss.detach().cpu(), expected, equal_nan=True, rtol=0, atol=1e-30)
    (got,) = torch.autograd.grad(loss.sum(), logits)
    wanted = torch.tensor([[0.0, 0.0], [-1.0, 0.5], [-0.5, 1.0], [nan, 0.7310586], [0.0, 0.0], [-1.0, 1.0]])
    torch.testing.assert_close(got.cpu(), wanted, equal_nan=True, rtol=1e-6, atol=1e-30)
    small = fm.mix_binary_cross_entropy(
        torch.full((6, 2), -30.0, device=device), labels, plan, sum_classes=True, reduction="none", backend=name
    )
    torch.testing.assert_close(small.cpu(), torch.full((6,), 30.0))
    assert (
        log2 < float(fm.mix_binary_cross_entropy(torch.zeros(6, 2, device=device), labels, plan, backend=name)) + 1e-6
    )


def test_binary_of_learned_labels():
    plan, logits = plan_for(4), torch.randn(4, 6, dtype=torch.float64)
    soft = torch.rand(4, 6, dtype=torch.float64, requires_grad=True)
    for options in ({}, {"sum_classes": True}, {"reduction": "sum"}):
        assert torch.autograd.gradcheck(lambda y, o=options: fm.mix_binary_cross_entropy(logits, y, plan, **o), soft)


# ---- gradients of gradients, memory, autocast ------------------------------------------------------------------------


def losses_of(name, device, plan, reductions):
    labels = torch.tensor([0, 2, 1, -100, 1], device=device)
    hard = labels.clamp(0)
    weights = {"weight": torch.tensor([0.5, 2.0, 0.0]), "pos_weight": torch.tensor([1.0, 0.25, 3.0])}
    soft = torch.rand(5, 3, generator=torch.Generator().manual_seed(0)).to(device)
    for reduction in reductions:
        options = {"reduction": reduction, "backend": name, "label_smoothing": 0.1, "weight": weights["weight"]}
        yield lambda z, o=options: fm.mix_cross_entropy(z, labels, plan, **o)
        options = {**options, "sum_classes": True, "pos_weight": weights["pos_weight"]}
        yield lambda z, o=options: fm.mix_binary_cross_entropy(z, hard, plan, **o)
        yield lambda z, o=options: fm.mix_binary_cross_entropy(z, soft, plan, **o)


def test_gradcheck(backend):
    name, device = backend
    logits = logits_for(5, 3, torch.float64, device=device, scale=1.0).requires_grad_()
    fast = name == "triton"  # Interpreted, one random direction will do.
    for loss in losses_of(name, device, plan_for(5), REDUCTIONS[:1] if fast else REDUCTIONS):
        assert torch.autograd.gradcheck(loss, logits, fast_mode=fast)
        assert torch.autograd.gradgradcheck(loss, logits, fast_mode=fast)


def test_a_gradient_penalty(backend):
    """The fused first gradient within a graph of the second, against plain autograd."""
    name, device = backend
    plan, labels = plan_for(4), labels_for(4, 6, device)
    results = []
    for dense_formula in (False, True):
        z = logits_for(4, 6, device=device).requires_grad_()
        targets = dense(labels, plan, 6).to(z)
        loss = F.cross_entropy(z, targets) if dense_formula else fm.mix_cross_entropy(z, labels, plan, backend=name)
        (slope,) = torch.autograd.grad(loss, z, create_graph=True)
        results.append(torch.autograd.grad(loss + slope.square().sum(), z)[0])
    torch.testing.assert_close(*results)


class Allocated(TorchDispatchMode):
    """The largest tensors that operators return, and which."""

    def __init__(self, elements):
        super().__init__()
        self.elements, self.found = elements, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, torch.Tensor) and t.numel() >= self.elements:
                self.found.append(func.name())
        return out


@pytest.mark.parametrize("layout", LAYOUTS[:5])
def test_nothing_large_beside_the_gradient(backend, layout):
    name, device = backend
    if name == "reference":
        pytest.skip("builds dense targets: it is the meaning")
    b, k = 8, 1000
    plan, labels = plan_for(b), labels_for(b, k, device)
    for loss, dtype in itertools.product(
        (fm.mix_cross_entropy, fm.mix_binary_cross_entropy), (torch.float32, torch.float16)
    ):
        z = logits_for(b, k, dtype, layout, device).requires_grad_()
        fm.mix_cross_entropy(z, labels, plan, backend=name)
        with Allocated(b * k // 2) as seen:
            torch.autograd.grad(loss(z, labels, plan, label_smoothing=0.1, backend=name), z)
        big = [op for op in seen.found if "detach" not in op]
        # Triton's operators allocate through PyTorch, compiled ones by themselves.
        assert set(big) <= {"aten::new_empty", f"fusedmix_{name}::{loss.__name__[4:]}_backward"}
        assert len(big) <= 2
        assert big


@pytest.mark.parametrize("loss", [fm.mix_cross_entropy, fm.mix_binary_cross_entropy])
def test_memory_of_the_cpu(loss):
    """By the allocator's own account: backwards there is the gradient, forwards nothing."""
    from torch.profiler import ProfilerActivity, profile

    if ("cpp", "cpu") not in HERE:
        pytest.skip("no cpp backend")
    b, k = 64, 5000
    z, plan, labels = torch.randn(b, k, requires_grad=True), plan_for(b), labels_for(b, k)
    loss(z, labels, plan, backend="cpp").backward()
    z.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss(z, labels, plan, backend="cpp").backward()
    allocated = sum(max(0, e.self_cpu_memory_usage) for e in profiler.events() if e.name != "[memory]")
    assert z.nbytes <= allocated < 1.1 * z.nbytes + 64 * b * 8


@pytest.mark.parametrize("loss", [fm.mix_cross_entropy, fm.mix_binary_cross_entropy])
def test_float32_under_autocast(backend, loss):
    name, device = backend
    plan, labels, weight = plan_for(4), torch.tensor([0, 2, 1, 1], device=device), torch.randn(3, 5, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        logits = torch.randn(4, 5, device=device) @ weight.t()
        assert logits.dtype == torch.bfloat16
        assert loss(logits, labels, plan, backend=name).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_is_eager(backend, dtype):
    name, device = backend
    plan, labels = plan_for(6), labels_for(6, 50, device)
    labels[2] = -100

    def step(z):
        a = fm.mix_cross_entropy(z, labels, plan, label_smoothing=0.1, backend=name)
        return a + fm.mix_binary_cross_entropy(z, labels.clamp(0), plan, target_threshold=0.3, backend=name)

    torch._dynamo.reset()
    z = logits_for(6, 50, dtype, device=device)
    results = []
    for f in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        x = z.clone().requires_grad_()
        loss = f(x)
        loss.backward()
        results.append((loss.detach(), x.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_compiled_step_runs_the_fused_backward(backend):
    """Not the formula that second derivatives are made of."""
    name, device = backend
    if name == "reference":
        pytest.skip("it has no kernel")
    plan, labels, graphs = plan_for(6), labels_for(6, 50, device), []

    def keep(graph, _):
        graphs.append({str(node.target) for node in graph.graph.nodes})
        return make_boxed_func(graph.forward)

    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    torch._dynamo.reset()
    z = logits_for(6, 50, device=device).requires_grad_()
    step = torch.compile(
        lambda x: fm.mix_cross_entropy(x, labels, plan, backend=name), fullgraph=True,
        backend=aot_autograd(fw_compiler=keep, bw_compiler=keep),
    )  # fmt: skip
    step(z).backward()
    assert any("cross_entropy_backward" in target for graph in graphs for target in graph)
    assert not any("softmax" in target or "exp" in target.split(".") for graph in graphs for target in graph)


def test_a_class_out_of_range_is_nan_where_nobody_checks(backend):
    """The operators themselves, as on a GPU: the sample and whose partner it is."""
    name, device = backend
    plan = plan_for(5, pairing="roll").to(device)
    operators = getattr(torch.ops, f"fusedmix_{name}")
    mixed = (torch.tensor([0, 1, 7, 3, 2], device=device), plan.partner, plan.weight, 0, 2, None)
    z = torch.randn(5, 5, device=device)
    rows, statistics, scale = operators.cross_entropy(z, *mixed, 0.1, -100, 0)
    assert rows.isnan().tolist() == [False, False, True, True, False]
    slope = operators.cross_entropy_backward(torch.ones_like(rows), z, *mixed, statistics, scale, 0.1, -100)
    assert slope.isnan().all(1).tolist() == slope.isnan().any(1).tolist() == [False, False, True, True, False]
