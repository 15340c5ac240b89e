"""Subclasses of Tensor: what is mixed has the type that torchvision's operations would give it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

import fusedmix as fm
from samples import B, H, K, W, assert_blended, build, classes, every_module, images, label_map, run, soft_labels


class Bare(Tensor):
    """Without anything of its own."""


class Described(Tensor):
    """With metadata that go from operation to operation, as MONAI's MetaTensor has them."""

    meta: Any = None

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = super().__torch_function__(func, types, args, kwargs or {})
        given = [x for x in args if isinstance(x, Described)]
        if isinstance(made, Described) and given:
            made.meta = given[0].meta
        return made


class Unwrapping(Tensor):
    """Calls functions with plain tensors and puts its type on what comes back."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            args, kwargs = torch.utils._pytree.tree_map_only(cls, lambda x: x.as_subclass(Tensor), (args, kwargs or {}))
            made = func(*args, **kwargs)
            return made.as_subclass(cls) if isinstance(made, Tensor) else made


class Refusing(Tensor):
    """Knows a few functions only, as docs/notes/extending shows it, and none of ours."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not getattr(func, "__module__", "torch").startswith("torch") and func.__module__ is not None:
            return NotImplemented
        return super().__torch_function__(func, types, args, kwargs or {})


def typed(x: Tensor, kind: Any) -> Tensor:
    x = x.as_subclass(kind)
    if kind is Described:
        x.meta = {"affine": 3}  # type: ignore[attr-defined]
    return x


def assert_like(out: Any, expected: Any) -> None:
    assert type(out) is type(expected)
    assert getattr(out, "meta", None) == getattr(expected, "meta", None)


@pytest.mark.parametrize("what", ["images", "labels", "soft labels", "both"])
@pytest.mark.parametrize("method", ["MixUp", "CutMix"])
@pytest.mark.parametrize("kind", [Bare, Described, Unwrapping], ids=lambda kind: kind.__name__)
def test_subclasses_are_those_of_torchvision(kind: Any, method: str, what: str) -> None:
    x, y = images(), soft_labels() if what == "soft labels" else classes()
    sample = (typed(x, kind) if what in ("images", "both") else x, y if what == "images" else typed(y, kind))
    torch.manual_seed(3)
    expected = getattr(v2, method)(num_classes=K)(*sample)
    for options in ({}, {"inplace": True}, {"backend": "reference"}, {"axes": (-2, -1)}):
        torch.manual_seed(3)
        out = getattr(fm, method)(num_classes=K, **options)(*(t.clone() for t in sample))
        for got, want in zip(out, expected, strict=True):
            assert_like(got, want)
            assert (got.as_subclass(Tensor) - want.as_subclass(Tensor)).abs().max() <= 2**-20


@pytest.mark.parametrize("kind", [Bare, Described, Unwrapping, tv_tensors.Image], ids=lambda kind: kind.__name__)
@every_module
def test_subclasses_keep_their_type(name: str, kind: Any) -> None:
    """The values are those of plain tensors, on every way through a module, also one that is differentiated."""
    for options in ({}, {"targets": "sparse"}, {"generator": torch.Generator().manual_seed(1)}):
        x = typed(images(), kind)
        outs = [run(build(name, **options), given, classes())[0] for given in (x, images(), typed(images(), kind))]
        outs.append(run(build(name, **options), typed(images().requires_grad_(), kind), classes())[0])
        if "generator" not in options:
            for out, _ in outs:
                assert torch.equal(out.as_subclass(Tensor).detach(), outs[1][0])
        for out, _ in outs[:1] + outs[2:]:
            assert_like(out, x)
        assert outs[3][0].requires_grad


@pytest.mark.parametrize("kind", [Bare, Described, Unwrapping, tv_tensors.Image], ids=lambda kind: kind.__name__)
def test_functions_keep_subclasses(kind: Any) -> None:
    x, plan = images(), fm.CutMix().sample(B, (H, W), lam=0.5)
    mixed = fm.mix(typed(x, kind), plan)
    assert_like(mixed, typed(x, kind))
    assert torch.equal(mixed.as_subclass(Tensor), fm.mix(x, plan))
    given = typed(x.clone(), kind)
    assert fm.mix_(given, plan) is given
    assert torch.equal(given.as_subclass(Tensor), fm.mix(x, plan))
    for function, plain in (
        (lambda t: fm.mix_labels(t, plan, num_classes=K), classes()),
        (lambda t: fm.mix_targets(t, plan), soft_labels()),
        (lambda t: fm.mix_masks(t, plan), label_map()),
        (lambda t: fm.mix_masks(t, plan, num_classes=K), label_map()),
        (lambda t: fm.mix_masks(t, plan), x),
    ):
        out = function(typed(plain, kind))
        assert_like(out, typed(plain, kind))
        assert torch.equal(out.as_subclass(Tensor), function(plain))
    with fm.attach(nn.Identity(), fm.CutMix()) as handle:
        assert_like(handle.model(typed(x, kind)), typed(x, kind))
    logits = soft_labels()
    for loss in (fm.mix_cross_entropy, fm.mix_binary_cross_entropy):
        expected = loss(logits, classes(), plan)
        for args in ((typed(logits, kind), classes()), (logits, typed(classes(), kind))):
            assert torch.equal(loss(*args, plan), expected)


def test_a_subclass_that_knows_no_other_functions_is_mixed() -> None:
    out, plan = run(build("CutMix"), typed(images(), Refusing), classes())
    assert_blended(out[0].as_subclass(Tensor), images(), plan)


def test_gradients_of_subclasses() -> None:
    x, plan = images(), fm.MixUp().sample(B, (H, W), lam=0.3)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    fm.mix(leaves[0].as_subclass(Described), plan).square().sum().backward()
    fm.mix(leaves[1], plan).square().sum().backward()
    assert torch.equal(leaves[0].grad, leaves[1].grad)


def test_parameters_are_tensors() -> None:
    x = nn.Parameter(images())
    assert type(v2.CutMix(num_classes=K)(x, classes())[0]) is type(fm.CutMix(num_classes=K)(x, classes())[0]) is Tensor


@pytest.mark.parametrize("name", ["MixUp", "CutMix", "GMix"])
@pytest.mark.parametrize("kind", ["Image", "Video", "Mask"])
def test_set_return_type(name: str, kind: str) -> None:
    """Under set_return_type("TVTensor") every operation keeps the type; the outcome is the same."""
    stack = tv_tensors.Video(images(B, 2, 3, H, W)) if kind == "Video" else tv_tensors.Image(images())
    sample = {"labels": classes(), "x": stack}
    if kind == "Mask":
        sample["mask"] = tv_tensors.Mask(label_map())
    mix = build(name, mask_classes=K)
    expected, _ = run(mix, sample)
    with tv_tensors.set_return_type("TVTensor"):
        out, _ = run(mix, sample)
    assert type(out["labels"]) is Tensor
    for key, value in sample.items():
        assert torch.equal(out[key].as_subclass(Tensor), expected[key].as_subclass(Tensor))
        assert type(out[key]) is type(expected[key]) is type(value)
