"""Derivatives forwards, torch.func and vmap: what is mixed is a linear map, and PyTorch is told so everywhere."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils import _pytree as pytree

import fusedmix as fm
from conftest import NO_CPP, NO_CUDA, NO_TRITON, TRITON_DEVICE

# torch's own, when the first tangent is made.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
HERE = {
    "reference": "cpu",
    **({"cpp": "cpu"} if NO_CPP is None else {}),
    **({"cuda": "cuda"} if NO_CUDA is None else {}),
    # In its interpreter each test would take minutes, and what is tested is the same Python code.
    **({"triton": "cuda"} if NO_TRITON is None and TRITON_DEVICE == "cuda" else {}),
}
EVERYWHERE = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
TWICE = {"check_fwd_over_rev": True, "check_batched_grad": True}
DOUBLE = torch.float64
Y = torch.tensor([0, 1, 2, 1])


@pytest.fixture(params=HERE)
def backend(request):
    return request.param


def rand(backend, *shape, dtype=DOUBLE):
    return torch.rand(*shape, dtype=dtype).to(HERE[backend])


def plan_of(module=fm.CutMix, n=4, size=(3, 4), seed=1, **options):
    return module(**{"per": "sample", "pairing": "random", **options}).sample(n, size, seed=seed)


def seeded(f, *args):
    torch.manual_seed(3)
    return f(*args)


def test_mix(backend, method):
    plan = plan_of(method, n=3, size=(2, 3))
    x = rand(backend, 3, 1, 2, 3).requires_grad_()

    def f(x):
        return fm.mix(x, plan, backend=backend)

    gradcheck(f, x, **EVERYWHERE)
    gradgradcheck(f, x, **TWICE)


def test_mix_between_other_functions(backend):
    """Its own second derivative is 0, that of what is around it is not; forwards and backwards in any order."""
    plan, x = plan_of(n=3, size=(2, 2)), rand(backend, 3, 1, 2, 2)

    def f(x):
        return (fm.mix(x**2, plan, backend=backend) ** 2).sum()

    expected = torch.autograd.functional.hessian(f, x)
    for outer in (jacfwd, jacrev):
        for inner in (jacfwd, jacrev):
            torch.testing.assert_close(outer(inner(f))(x), expected)
    third = torch.autograd.functional.jacobian(lambda x: hessian(f)(x).sum((0, 1, 2, 3)), x)
    torch.testing.assert_close(jacfwd(lambda x: jacfwd(jacfwd(f))(x).sum((0, 1, 2, 3)))(x), third)


def losses(backend, y, soft, reduction):
    """Of logits (4, 3); the last is made of PyTorch's own operators."""
    plan, device = plan_of(), HERE[backend]
    y, soft = y.to(device), soft.to(device)
    weight = {"weight": torch.tensor([0.3, 2.0, 0.7], device=device)}
    pos_weight = {**weight, "pos_weight": torch.tensor([0.5, 1.0, 3.0], device=device)}
    options = {"reduction": reduction, "backend": backend}
    smooth = {**options, "label_smoothing": 0.1}
    return {
        "cross entropy": lambda z: fm.mix_cross_entropy(z, y, plan, **smooth, **weight),
        "cross entropy, ignored": lambda z: fm.mix_cross_entropy(z, y, plan, ignore_index=2, **options),
        "cross entropy, soft": lambda z: fm.mix_cross_entropy(z, soft, plan, **smooth),
        "binary": lambda z: fm.mix_binary_cross_entropy(z, y, plan, **smooth, **pos_weight),
        "binary, sums": lambda z: fm.mix_binary_cross_entropy(z, y, plan, sum_classes=True, **options),
        "binary, soft": lambda z: fm.mix_binary_cross_entropy(z, soft, plan, sum_classes=True, **smooth),
    }


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_losses(backend, reduction):
    z = (4 * rand(backend, 4, 3) - 2).requires_grad_()
    for name, loss in losses(backend, Y, torch.rand(4, 3, dtype=DOUBLE), reduction).items():
        assert gradcheck(loss, z, **EVERYWHERE), name
        assert gradgradcheck(loss, z, **TWICE), name


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_hessians_of_losses(backend, reduction):
    z = 4 * rand(backend, 4, 3) - 2
    for loss in losses(backend, Y, torch.rand(4, 3, dtype=DOUBLE), reduction).values():
        expected = torch.autograd.functional.hessian(loss, z)
        for second in (hessian, lambda f: jacrev(jacfwd(f)), lambda f: jacfwd(jacfwd(f)), lambda f: jacrev(jacrev(f))):
            torch.testing.assert_close(second(loss)(z), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_tangent_is_as_precise_as_the_loss(backend, dtype):
    z, v = (rand(backend, 4, 3, dtype=torch.float32).to(dtype) for _ in range(2))
    for loss in losses(backend, Y, torch.rand(4, 3), "mean").values():
        value, tangent = jvp(loss, (z,), (v,))
        _, exact = jvp(loss, (z.double(),), (v.double(),))
        assert value.dtype == tangent.dtype == torch.float32
        torch.testing.assert_close(tangent.double(), exact, rtol=1e-5, atol=1e-6)


def test_labels_and_targets(backend):
    plan = plan_of(fm.RandomMix, methods=[fm.MixUp(), fm.CutMix()])
    y, z = rand(backend, 4, 3).requires_grad_(), rand(backend, 4, 3)
    for f in (
        lambda y: fm.mix_labels(y, plan, label_smoothing=0.1, backend=backend),
        lambda y: fm.mix_targets(y, plan),
        lambda y: fm.mix_cross_entropy(z, y, plan),
        lambda y: fm.mix_binary_cross_entropy(z, y, plan, backend=backend),
    ):
        gradcheck(f, y, **EVERYWHERE)


@pytest.mark.parametrize("sampling", ["host", "device"])
@pytest.mark.parametrize("inplace", [False, True])
def test_modules(backend, method, sampling, inplace):
    """Images and soft labels with tangents: these are mixed as the others, in place too."""
    mix = method(num_classes=5, sampling=sampling, inplace=inplace, backend=backend)
    x, v = (rand(backend, 6, 3, 8, 8, dtype=torch.float32) for _ in range(2))
    y, w = (rand(backend, 6, 5, dtype=torch.float32) for _ in range(2))
    with forward_ad.dual_level():
        mixed = seeded(mix, forward_ad.make_dual(x.clone(), v.clone()), forward_ad.make_dual(y, w))
        primals, tangents = zip(*map(forward_ad.unpack_dual, mixed), strict=True)
    for found, batch in ((primals, (x, y)), (tangents, (v, w))):
        for a, b in zip(found, seeded(mix, *(t.clone() for t in batch)), strict=True):
            assert torch.equal(a, b)


def test_transforms_of_modules(backend):
    x, v = (rand(backend, 6, 3, 8, 8, dtype=torch.float32) for _ in range(2))
    y = (torch.arange(6) % 5).to(x.device)
    mix = fm.CutMix(num_classes=5, backend=backend)
    images, tangent = seeded(lambda: jvp(lambda x: mix(x, y)[0], (x,), (v,)))
    assert torch.equal(images, seeded(mix, x, y)[0])
    assert torch.equal(tangent, seeded(mix, v, y)[0])
    slope = seeded(grad(lambda x: (mix(x, y)[0] * v).sum()), x)
    forwards = seeded(jacfwd(lambda x: (mix(x, y)[0] * v).sum(), randomness="same"), x)
    torch.testing.assert_close(forwards, slope)


def test_embeddings(backend):
    mix = fm.EmbedMix(num_classes=5, backend=backend)
    e, v = (rand(backend, 6, 7, 4, dtype=torch.float32) for _ in range(2))
    lengths = torch.tensor([7, 3, 5, 1, 2, 7], device=e.device)
    mixed, tangent = seeded(lambda: jvp(lambda e: mix(e, lengths)[0], (e,), (v,)))
    assert torch.equal(mixed, seeded(mix, e, lengths)[0])
    assert torch.equal(tangent, seeded(mix, v, lengths)[0])


def test_an_attached_module(backend):
    x, v = (rand(backend, 6, 3, 8, 8, dtype=torch.float32) for _ in range(2))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5, bias=False)).to(x.device)
    fm.attach(model, fm.CutMix(num_classes=5, backend=backend))
    out, tangent = seeded(lambda: jvp(model, (x,), (v,)))
    torch.testing.assert_close(out, seeded(model, x))
    torch.testing.assert_close(tangent, seeded(model, v))


def test_in_place(backend):
    """A tensor that needs a gradient is refused, as ever; a tangent is mixed as its tensor is."""
    plan = plan_of()
    x, v = rand(backend, 4, 2, 3, 4), rand(backend, 4, 2, 3, 4)
    before = x.clone()
    with pytest.raises(fm.checks.InplaceError):
        grad(lambda x: fm.mix_(x, plan, backend=backend).sum())(x)
    assert torch.equal(x, before)
    # A slice: the tangent of the base takes part.
    images, tangent = jvp(lambda x: fm.mix_((2 * x)[:, :1], plan, backend=backend), (x,), (v,))
    assert torch.equal(images, fm.mix(2 * x[:, :1], plan, backend=backend))
    assert torch.equal(tangent, fm.mix(2 * v[:, :1], plan, backend=backend))
    xs = torch.stack([x, v])
    expected = torch.stack([fm.mix(x, plan, backend=backend), fm.mix(v, plan, backend=backend)])
    vmap(lambda x: fm.mix_(x, plan, backend=backend))(xs)
    assert torch.equal(xs, expected)


@pytest.mark.parametrize("dim", [0, 1, 3])
def test_many_batches_by_one_plan(backend, dim):
    plan, xs = plan_of(fm.FMix), rand(backend, 5, 4, 2, 3, 4)
    expected = torch.stack([fm.mix(x, plan, backend=backend) for x in xs])
    mapped = vmap(lambda x: fm.mix(x, plan, backend=backend), in_dims=dim)(xs.movedim(0, dim))
    assert torch.equal(mapped, expected)
    nested = vmap(vmap(lambda x: fm.mix(x, plan, backend=backend), in_dims=1), in_dims=0)(xs)
    assert torch.equal(nested, expected.transpose(1, 2))


def test_a_plan_for_each_batch(backend):
    plans = [plan_of(seed=seed).to(HERE[backend]) for seed in range(3)]
    together = pytree.tree_map(lambda *tensors: torch.stack(tensors), *plans)
    xs, zs, y = rand(backend, 3, 4, 2, 3, 4), rand(backend, 3, 4, 3), Y.to(HERE[backend])
    ys = torch.stack([y, y.flip(0), (y + 1) % 3])
    for f, args in (
        (lambda plan, x: fm.mix(x, plan, backend=backend), (xs,)),
        (lambda plan: fm.mix(xs[0], plan, backend=backend), ()),
        (lambda plan, y: fm.mix_labels(y, plan, num_classes=3, backend=backend), (ys,)),
        (lambda plan: fm.mix_labels(y, plan, num_classes=3, backend=backend), ()),
        (lambda plan, z, y: fm.mix_cross_entropy(z, y, plan, backend=backend), (zs, ys)),
        (lambda plan, z, y: fm.mix_binary_cross_entropy(z, y, plan, reduction="sum", backend=backend), (zs, ys)),
        (lambda plan, z, y: grad(fm.mix_cross_entropy)(z, y, plan, backend=backend), (zs, ys)),
    ):
        expected = torch.stack([f(*each) for each in zip(plans, *args, strict=True)])
        torch.testing.assert_close(vmap(f)(together, *args), expected, rtol=0, atol=1e-15)


def test_labels_are_looked_at_under_vmap():
    plan = plan_of()
    ys = torch.stack([Y, Y + 1])
    for f in (
        lambda y: fm.mix_labels(y, plan, num_classes=3),
        lambda y: fm.mix_cross_entropy(torch.zeros(4, 3), y, plan),
    ):
        with pytest.raises(ValueError, match=r"labels must be in \[0, num_classes\) = \[0, 3\), but got 3"):
            vmap(f)(ys)


def test_numbers_that_are_not_differentiated_pass():
    """Bytes, and classes, while a derivative by something else is asked for."""
    plan, x = plan_of(), torch.randint(256, (4, 2, 3, 4), dtype=torch.uint8)
    scale = torch.tensor(2.0)
    mixed, tangent = jvp(lambda s: s * fm.mix(x, plan).float(), (scale,), (torch.tensor(1.0),))
    assert torch.equal(tangent, fm.mix(x, plan).float())
    assert torch.equal(mixed, 2 * tangent)
    mix = fm.MixUp(num_classes=3)
    images, targets = seeded(lambda: jvp(lambda s: tuple(s * t for t in mix(x.float(), Y)), (scale,), (scale,)))[1]
    assert torch.equal(images, 2 * seeded(mix, x.float(), Y)[0])
    assert torch.equal(targets, 2 * seeded(mix, x.float(), Y)[1])


@pytest.mark.parametrize(
    "transform",
    [
        lambda f, x: jvp(f, (x,), (x.cos(),))[1],
        lambda f, x: grad(f)(x),
        lambda f, x: vmap(f)(torch.stack([x, x + 1])),
        lambda f, x: hessian(f)(x),
    ],
    ids=["jvp", "grad", "vmap", "hessian"],
)
def test_compiled_transforms_are_not_silently_wrong(transform):
    """torch.compile traces no function that has a jvp: it breaks the graph there, or says so if it may not."""
    plan, x = plan_of(n=3, size=(2, 2)), torch.rand(3, 1, 2, 2)

    def f(x):
        return (fm.mix(x**2, plan) ** 2).sum()

    torch._dynamo.reset()
    compiled = torch.compile(lambda x: transform(f, x), backend="aot_eager")
    torch.testing.assert_close(compiled(x), transform(f, x))
    torch._dynamo.reset()
