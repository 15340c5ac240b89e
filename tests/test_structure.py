"""What a mixing module finds in a sample, what it does to each part of it, and what it leaves alone.

Expectations are recomputed in float64 from the plan of the same seed: x̃ = M·x + (1-M)·x[p] and ỹ = w·y + (1-w)·y[p].
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Iterator, MutableMapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torchvision import tv_tensors
from torchvision.transforms import v2

import fusedmix as fm
from conftest import INTEGERS

B, K, H, W = 6, 5, 16, 12
VOID = 255

MODULES = {
    "MixUp": lambda **options: fm.MixUp(**options),
    "CutMix": lambda **options: fm.CutMix(**options),
    "HMix": lambda **options: fm.HMix(ratio=0.5, **options),
    "GMix": lambda **options: fm.GMix(**options),
    "GMix_paper": lambda **options: fm.GMix(variant="paper", **options),
    "SamplePairing": lambda **options: fm.SamplePairing(**options),
    "CutMix_per_sample": lambda **options: fm.CutMix(per="sample", **options),
    "RandomMix_per_sample": lambda **options: fm.RandomMix([fm.MixUp(), fm.CutMix()], per="sample", **options),
    "CutMix_per_pair": lambda **options: fm.CutMix(per="pair", pairing="flip", **options),
    "HMix_random": lambda **options: fm.HMix(pairing="random", **options),
}
SOFT = ("MixUp", "HMix", "GMix", "GMix_paper", "SamplePairing", "RandomMix_per_sample")
SIZED = ("CutMix", "HMix", "GMix", "CutMix_per_sample", "RandomMix_per_sample")

every_module = pytest.mark.parametrize("name", list(MODULES))


def build(name: str, **options: Any) -> fm.MixTransform:
    return MODULES[name](**{"num_classes": K, **options})


def images(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = shape or (B, 3, H, W)
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, dtype=dtype, generator=generator)
    return torch.randn(shape, generator=generator).to(dtype)


def classes(dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor([0, 3, 1, 4, 2, 3], dtype=dtype)


def soft_labels(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(B, K, generator=torch.Generator().manual_seed(5)).softmax(1).to(dtype)


def label_map(*shape: int, seed: int = 1, high: int = K) -> Tensor:
    return torch.randint(high, shape or (B, H, W), generator=torch.Generator().manual_seed(seed))


def run(mix: fm.MixTransform, *sample: Any, size: tuple[int, ...] = (H, W)) -> tuple[Any, fm.MixPlan]:
    """The output of a module, and the plan it must have followed: the first after seed 0 that mixes, drawn twice."""
    torch.manual_seed(0)
    for _ in range(20):
        state = torch.get_rng_state()
        plan = mix.sample(B, size)
        shares = plan.mask().flatten(1).mean(1)
        if ((shares > 0.1) & (shares < 0.9)).any():
            torch.set_rng_state(state)
            return mix(*sample), plan
    raise AssertionError("None of 20 plans mixes anything.")


def blended(x: Tensor, plan: fm.MixPlan) -> Tensor:
    """M·x + (1-M)·x[p] in float64, the spatial dims last."""
    m = plan.mask().double()
    m = m.reshape(x.shape[0], *[1] * (x.ndim - m.ndim), *m.shape[1:])
    x = x.as_subclass(Tensor).double()
    return m * x + (1 - m) * x[plan.partner]


def assert_blended(out: Tensor, x: Tensor, plan: fm.MixPlan) -> None:
    """Equal to the blend but for rounding: some in the compute dtype, then one to the images' own.

    A λ that went through a 16-bit dtype of the images would be off by more.
    """
    assert (out.dtype, out.shape) == (x.dtype, x.shape)
    expected = blended(x, plan)
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    computing = 4 * torch.finfo(compute).eps * (1 + x.as_subclass(Tensor).abs().max().double())
    rounding = torch.finfo(x.dtype).eps / 2 * expected.abs() if x.is_floating_point() else 0.5
    assert ((out.as_subclass(Tensor).double() - expected).abs() <= computing + rounding).all()


def assert_targets(targets: Tensor, y: Tensor, plan: fm.MixPlan) -> None:
    """w·y + (1-w)·y[p], both products and their sum rounded to the dtype of the targets."""
    w = plan.weight.unsqueeze(1)
    expected = (y[plan.partner].double() * (1 - w)) + y.double() * w
    assert (targets.double() - expected).abs().max() <= 2 * torch.finfo(targets.dtype).eps


# --- finding images and labels --------------------------------------------------------------------------------------


@every_module
def test_labels_before_images_in_a_dict(name: str) -> None:
    x, y = images(), classes()
    out, plan = run(build(name), {"labels": y, "images": x})
    assert list(out) == ["labels", "images"]
    assert_blended(out["images"], x, plan)
    assert_targets(out["labels"], one_hot(y, K), plan)


@every_module
def test_pure_tensors_beside_an_image_type_pass_through(name: str) -> None:
    x, y = tv_tensors.Image(images()), classes()
    sample = {"tensor": images(seed=1), "labels": y, "image": x, "mask_like": label_map()}
    out, plan = run(build(name), sample)
    assert type(out["image"]) is tv_tensors.Image
    assert_blended(out["image"], x, plan)
    assert out["tensor"] is sample["tensor"]
    assert out["mask_like"] is sample["mask_like"]


@every_module
def test_several_stacks_are_mixed_by_one_plan(name: str) -> None:
    first, second, third = images(), images(B, 1, H, W, seed=1), images(B, 4, H, W, dtype=torch.float64, seed=2)
    sample = {
        "a": tv_tensors.Image(first),
        "labels": classes(),
        "more": [tv_tensors.Image(second), (tv_tensors.Image(third),)],
    }
    out, plan = run(build(name), sample)
    for got, given in ((out["a"], first), (out["more"][0], second), (out["more"][1][0], third)):
        assert type(got) is tv_tensors.Image
        assert_blended(got, given, plan)


@pytest.mark.parametrize("name", ["MixUp", "SamplePairing"])
def test_stacks_of_other_sizes_without_a_mask(name: str) -> None:
    first, second = images(), images(B, 2, 7, 31, seed=1)
    out, plan = run(build(name), tv_tensors.Image(first), classes(), tv_tensors.Image(second))
    assert_blended(out[0], first, plan)
    lam = plan.lam.double().reshape(-1, 1, 1, 1)
    expected = lam * second.double() + (1 - lam) * second.double()[plan.partner]
    assert (out[2].as_subclass(Tensor).double() - expected).abs().max() <= 2**-22 * (1 + second.abs().max())


@pytest.mark.parametrize("name", SIZED)
def test_stacks_of_other_sizes_with_a_mask(name: str) -> None:
    mix = build(name)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="one spatial size"):
        mix(tv_tensors.Image(images()), classes(), tv_tensors.Image(images(B, 3, H, W + 1)))
    assert torch.equal(torch.get_rng_state(), before)


def test_stacks_of_other_batch_sizes() -> None:
    for labels_getter, y in (("default", classes()), (None, None)):
        mix = fm.MixUp(num_classes=K, labels_getter=labels_getter)
        with pytest.raises(ValueError, match="batch size"):
            mix(tv_tensors.Image(images()), y, tv_tensors.Image(images(B - 1, 3, H, W)))


@every_module
def test_images_getter_of_one(name: str) -> None:
    sample = {"labels": classes(), "features": images(seed=1), "x": images(seed=2)}
    out, plan = run(build(name, images_getter=lambda s: s["x"]), sample)
    assert_blended(out["x"], sample["x"], plan)
    assert_targets(out["labels"], one_hot(sample["labels"], K), plan)
    assert out["features"] is sample["features"]


@every_module
@pytest.mark.parametrize("container", [list, tuple])
def test_images_getter_of_several(name: str, container: Any) -> None:
    sample = {"q": images(seed=1), "skipped": images(seed=2), "labels": classes(), "k": images(B, 1, H, W, seed=3)}
    out, plan = run(build(name, images_getter=lambda s: container((s["k"], s["q"]))), sample)
    for key in ("q", "k"):
        assert_blended(out[key], sample[key], plan)
    assert out["skipped"] is sample["skipped"]


def test_images_getter_overrides_the_image_types() -> None:
    sample = {"image": tv_tensors.Image(images()), "labels": classes(), "x": images(seed=1)}
    out, plan = run(build("CutMix", images_getter=lambda s: s["x"]), sample)
    assert out["image"] is sample["image"]
    assert_blended(out["x"], sample["x"], plan)


@pytest.mark.parametrize(
    ("getter", "message"),
    [
        (lambda s: s["images"].clone(), "images_getter must return tensors of the sample"),
        (lambda s: "images", "images_getter must return a tensor or a sequence"),
        (lambda s: [], "images_getter must return a tensor or a sequence"),
        (lambda s: [s["images"], None], "images_getter must return a tensor or a sequence"),
        (lambda s: s["labels"], "Expected a batched input"),
        (lambda s: s["index"], "must have one of the dtypes"),
    ],
    ids=["copy", "string", "empty", "none", "labels", "integers"],
)
def test_wrong_images_getters(getter: Any, message: str) -> None:
    sample = {"images": images(), "labels": classes(), "index": torch.zeros(B, 3, H, W, dtype=torch.int64)}
    with pytest.raises(ValueError, match=message):
        fm.CutMix(num_classes=K, images_getter=getter)(sample)


def test_labels_getter_must_return_labels_of_the_sample() -> None:
    mix = fm.CutMix(num_classes=K, labels_getter=lambda s: s[1].clone())
    with pytest.raises(ValueError, match="labels_getter must return tensors of the sample"):
        mix(images(), classes())


@pytest.mark.parametrize("inplace", [False, True])
def test_one_tensor_at_two_places(inplace: bool) -> None:
    """Two views of a sample may start as one tensor. Each place gets that tensor mixed, and mixed once."""
    x = images()
    options = {"inplace": inplace, "images_getter": lambda s: [s["q"], s["k"]]}
    out, plan = run(build("MixUp", **options), {"q": x.clone(), "k": x, "labels": classes()})
    assert_blended(out["q"], x if not inplace else images(), plan)

    shared = images()
    out, plan = run(build("MixUp", **options), {"q": shared, "k": shared, "labels": classes()})
    assert_blended(out["q"], images(), plan)
    assert_blended(out["k"], images(), plan)


@pytest.mark.parametrize("inplace", [False, True])
def test_one_image_type_at_two_places(inplace: bool) -> None:
    shared = tv_tensors.Image(images())
    out, plan = run(build("MixUp", inplace=inplace), {"q": shared, "k": shared, "labels": classes()})
    assert_blended(out["q"], images(), plan)
    assert_blended(out["k"], images(), plan)


LIKELY = {
    "depth before image": ({"depth": (B, 1, H, W), "image": (B, 3, H, W)}, "image"),
    "embeddings before images": ({"text": (B, 7, 9), "Images": (B, 3, H, W)}, "Images"),
    "volume before pixel_values": ({"dose": (B, 1, 4, H, W), "pixel_values": (B, 3, H, W)}, "pixel_values"),
    "x after others": ({"a": (B, 1, H, W), "b": (B, 2, H, W), "x": (B, 3, H, W)}, "x"),
    "a table before the only image": ({"table": (B, 9), "picture": (B, 3, H, W)}, "picture"),
    "numbers before the only image": ({"weights": (B,), "picture": (B, 3, H, W)}, "picture"),
    "anchors of another batch size": ({"anchors": (B + 3, 4, 4), "picture": (B, 3, H, W)}, "picture"),
    "tokens before the image": ({"tokens": "long", "picture": (B, 3, H, W)}, "picture"),
    "one key says it of a list": ({"depth": (B, 1, H, W), "image": [(B, 3, H, W)]}, "image"),
    "one key of two is an image": ({"x": (B, 9), "image": (B, 3, H, W), "z": (B, 3, H, W)}, "image"),
}


def filled(shape: Any, seed: int) -> Any:
    if isinstance(shape, list):
        return [filled(s, seed) for s in shape]
    return torch.zeros(B, 7, 9, dtype=torch.long) if shape == "long" else images(*shape, seed=seed)


@pytest.mark.parametrize("where", ["dict", "nested", "first of a tuple", "UserDict"])
@pytest.mark.parametrize("case", list(LIKELY))
def test_the_likelier_images_of_a_dict(case: str, where: str) -> None:
    """A tensor that stands before the images is not mixed in their place."""
    shapes, key = LIKELY[case]
    inner = {name: filled(shape, seed) for seed, (name, shape) in enumerate(shapes.items())}
    sample: Any = {
        "dict": lambda: {**inner, "labels": classes()},
        "nested": lambda: {"inputs": inner, "labels": classes()},
        "first of a tuple": lambda: (inner, classes()),
        "UserDict": lambda: UserDict({**inner, "labels": classes()}),
    }[where]()
    out, plan = run(build("CutMix"), sample)
    out = out["inputs"] if where == "nested" else out[0] if where == "first of a tuple" else out
    mixed, given = (tree[key][0] if isinstance(tree[key], list) else tree[key] for tree in (out, inner))
    assert_blended(mixed, given, plan)
    for name in inner.keys() - {key}:
        assert out[name] is inner[name]


@pytest.mark.parametrize(
    "sample",
    [
        {"rgb": images(), "depth": images(B, 1, H, W)},
        {"image": images(), "video": images()},
        {"image": [images(), images()]},
        {"inputs": {"a": images()}, "more": {"b": images(B, 2, 9)}},
    ],
    ids=["no key", "two keys", "a list under the key", "nested"],
)
def test_images_in_doubt_are_refused(sample: Any) -> None:
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"Several tensors may be the images: .*shape \(6, .*Pass images_getter="):
        fm.CutMix(num_classes=K, inplace=True)({**sample, "labels": classes()})
    assert torch.equal(torch.get_rng_state(), state)


def test_the_first_of_a_tuple_is_the_images() -> None:
    """By position, whatever stands behind it and however it is called, as torchvision has it."""
    for rest in ([images(seed=1)], [{"image": images(seed=1)}], [torch.arange(B), [images(seed=1)]]):
        for mix in (fm.CutMix(num_classes=K), v2.CutMix(num_classes=K)):
            torch.manual_seed(1)
            out = mix(images(), classes(), *rest)
            torch.manual_seed(1)
            assert torch.equal(out[0], v2.CutMix(num_classes=K)(images(), classes())[0])
            leaves = [torch.utils._pytree.tree_leaves(tree) for tree in (out[2:], rest)]
            assert all(a is b for a, b in zip(*leaves, strict=True))


# --- what passes through --------------------------------------------------------------------------------------------


@every_module
def test_everything_else_passes_through(name: str) -> None:
    others = {
        "string": "text",
        "none": None,
        "int": 7,
        "float": 0.5,
        "tensor": torch.arange(3),
        "image_like": images(seed=9),
        "object": object(),
        "set": {1, 2},
        "nested": [torch.ones(2), {"deep": ("a", None, torch.zeros(B, 3, H, W))}],
        "dtype": torch.float16,
    }
    x, y = images(), classes()
    copies = {key: value.clone() for key, value in others.items() if isinstance(value, Tensor)}
    out, plan = run(build(name), (x, y, others))
    assert_blended(out[0], x, plan)
    for key in others.keys() - {"nested"}:
        assert out[2][key] is others[key]
    assert out[2]["nested"][0] is others["nested"][0]
    assert all(a is b for a, b in zip(out[2]["nested"][1]["deep"], others["nested"][1]["deep"], strict=True))
    for key, copy in copies.items():
        assert torch.equal(others[key], copy)


class Dict(dict):  # type: ignore[type-arg]
    """Of one's own, with an attribute."""

    source: str = ""


class Held(MutableMapping):  # type: ignore[type-arg]
    """A mapping whose copy holds the same items."""

    def __init__(self, items: Any) -> None:
        self._items = dict(items)

    def __getitem__(self, key: Any) -> Any:
        return self._items[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._items[key] = value

    def __delitem__(self, key: Any) -> None:
        del self._items[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


MAPPINGS: dict[str, Any] = {"UserDict": UserDict, "dict": Dict, "held": Held, "read-only": MappingProxyType}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("where", ["top", "in a tuple", "in itself"])
@pytest.mark.parametrize("kind", [*MAPPINGS, "BatchFeature", "BatchEncoding"])
def test_mappings_keep_their_type(kind: str, where: str, inplace: bool) -> None:
    if kind.startswith("Batch"):
        MAPPINGS[kind] = getattr(pytest.importorskip("transformers"), kind)
    make, x, y = MAPPINGS[kind], images(), classes()
    sample: Any = {
        "top": lambda: make({"labels": y, "pixel_values": x, "name": "text"}),
        "in a tuple": lambda: (make({"pixel_values": x}), make({"labels": y, "name": "text"})),
        "in itself": lambda: make({"inner": make({"pixel_values": x}), "labels": y, "name": "text"}),
    }[where]()
    if kind == "dict" and where == "top":
        sample.source = "somewhere"
    (out, plan) = run(build("CutMix", inplace=inplace), sample)
    assert type(out) is type(sample)
    assert getattr(out, "source", None) == getattr(sample, "source", None)
    holder, labels, before = out, out, sample
    if where == "in a tuple":
        (holder, labels), before = out, sample[1]
        assert type(holder) is type(labels) is type(before)
    elif where == "in itself":
        holder = out["inner"]
        assert type(holder) is type(sample)
    assert_blended(holder["pixel_values"], images(), plan)
    assert (holder["pixel_values"] is x) == inplace
    assert_targets(labels["labels"], one_hot(classes(), K), plan)
    assert labels["name"] == "text"
    assert list(labels) == list(before)
    assert before["labels"] is y


class Unique(Held):
    """A mapping that can be neither copied nor made of a dict."""

    def __init__(self) -> None:
        super().__init__({"path": "a.jpg", "depth": [images(seed=3)]})

    def __copy__(self) -> Any:
        raise TypeError


def test_mappings_that_hold_nothing_to_mix_pass_through() -> None:
    other = Unique()
    out, plan = run(build("CutMix"), images(), classes(), other)
    assert out[2] is other
    assert_blended(out[0], images(), plan)
    out, _ = run(build("CutMix"), {"image": images(), "labels": classes(), "meta": other})
    assert out["meta"] is other


class Pair(NamedTuple):
    images: Tensor
    labels: Tensor


class Nested(NamedTuple):
    batch: Any
    target: Any
    names: Any


CONTAINERS: dict[str, Any] = {
    "tuple": lambda x, y: (x, y),
    "list": lambda x, y: [x, y],
    "namedtuple": lambda x, y: Pair(x, y),
    "nested_namedtuple": lambda x, y: Nested([x], {"labels": y}, ["a"]),
    "ordered_dict": lambda x, y: OrderedDict([("labels", y), ("images", x)]),
    "default_dict": lambda x, y: defaultdict(list, {"images": x, "labels": y}),
    "nested_lists": lambda x, y: [[[x], ["text", [None]]], {"labels": y}],
    "int_keys": lambda x, y: {0: x, "label": y},
    "dict_in_tuple": lambda x, y: ({"x": x}, {"my_LABELS": y, "label_names": y[:0]}),
}


def find(sample: Any, kind: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(sample) if isinstance(leaf, Tensor) and kind(leaf)]


@pytest.mark.parametrize("container", list(CONTAINERS))
def test_containers(container: str) -> None:
    x, y = images(), classes()
    sample = CONTAINERS[container](x, y)
    out, plan = run(build("CutMix"), sample)
    assert type(out) is type(sample)
    if isinstance(sample, dict):
        assert list(out) == list(sample)
    if isinstance(sample, defaultdict):
        assert out.default_factory is list
    (mixed,) = find(out, lambda t: t.ndim == 4)
    (targets,) = find(out, lambda t: t.shape == (B, K))
    assert_blended(mixed, x, plan)
    assert_targets(targets, one_hot(y, K), plan)


def test_several_arguments_come_back_as_a_tuple() -> None:
    x, y = images(), classes()
    assert type(fm.MixUp(num_classes=K)(x, y)) is tuple
    out, plan = run(build("MixUp"), x, y, "text", None)
    assert type(out) is tuple
    assert out[2:] == ("text", None)
    assert_blended(out[0], x, plan)
    with pytest.raises(TypeError, match="must be called with a batch"):
        fm.MixUp(num_classes=K)()


# --- subclasses of Tensor -------------------------------------------------------------------------------------------


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


# --- without labels -------------------------------------------------------------------------------------------------


@every_module
def test_without_labels(name: str) -> None:
    x, y = images(), classes()
    mix = MODULES[name](labels_getter=None)
    out, plan = run(mix, x)
    assert type(out) is Tensor
    assert_blended(out, x, plan)

    out, plan = run(mix, (x, y))
    assert_blended(out[0], x, plan)
    assert out[1] is y
    assert torch.equal(y, classes())

    out, plan = run(mix, {"labels": y, "image": tv_tensors.Image(x)})
    assert_blended(out["image"], x, plan)
    assert out["labels"] is y


@pytest.mark.parametrize("pairing", ["cross_class", "same_class"])
def test_pairing_by_class_needs_labels(pairing: str) -> None:
    with pytest.raises(ValueError, match="labels must be given"):
        fm.MixUp(labels_getter=None, pairing=pairing)(images())


# --- segmentation masks ---------------------------------------------------------------------------------------------

HARD = ("CutMix", "CutMix_per_sample", "CutMix_per_pair")
LABEL_MAPS = {
    "BHW": lambda: label_map(B, H, W),
    "B1HW": lambda: label_map(B, 1, H, W),
    "BNHW": lambda: label_map(B, 3, H, W),
    "int32": lambda: label_map(B, H, W).int(),
    "uint8": lambda: label_map(B, 1, H, W, high=256).byte(),
    "bool": lambda: label_map(B, H, W, high=2).bool(),
    "void": lambda: label_map(B, H, W).masked_fill(label_map(B, H, W, seed=2, high=4) == 0, VOID),
}


@pytest.mark.parametrize("kind", list(LABEL_MAPS))
@pytest.mark.parametrize("name", HARD)
def test_label_maps_are_cut_as_the_images_are(name: str, kind: str) -> None:
    x, y, m = tv_tensors.Image(images()), classes(), LABEL_MAPS[kind]()
    out, plan = run(build(name), {"mask": tv_tensors.Mask(m), "labels": y, "image": x})
    assert type(out["mask"]) is tv_tensors.Mask
    assert (out["mask"].dtype, out["mask"].shape) == (m.dtype, m.shape)
    own = (plan.mask() == 1).reshape(B, *[1] * (m.ndim - 3), H, W)
    assert own.any()
    assert not own.all()
    assert torch.equal(out["mask"].as_subclass(Tensor), torch.where(own, m, m[plan.partner]))
    assert_blended(out["image"], x, plan)


def test_a_label_map_moves_with_its_pixels() -> None:
    """Without any plan: a mask that is a copy of the image is a copy of the mixed image."""
    m = label_map(B, 1, H, W, high=256).byte()
    mix = fm.CutMix(num_classes=K, per="sample", pairing="random")
    torch.manual_seed(0)
    for _ in range(10):
        x, _, mask = mix(tv_tensors.Image(m), classes(), tv_tensors.Mask(m))
        assert torch.equal(x.as_subclass(Tensor), mask.as_subclass(Tensor))


@pytest.mark.parametrize("name", SOFT)
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool], ids=str)
def test_label_maps_are_not_blended(name: str, dtype: torch.dtype) -> None:
    mix, m = build(name), tv_tensors.Mask(label_map(high=2).to(dtype))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="mask_classes"):
        mix(tv_tensors.Image(images()), classes(), m)
    assert torch.equal(torch.get_rng_state(), before)


def test_label_maps_and_random_mix() -> None:
    """A set of methods that may blend does not take label maps, whatever it would draw; a set of CutMixes does."""
    sample = tv_tensors.Image(images()), classes(), tv_tensors.Mask(label_map())
    with pytest.raises(ValueError, match="mask_classes"):
        fm.RandomMix([fm.CutMix(), fm.MixUp()], [1.0, 0.0], num_classes=K)(*sample)
    out, plan = run(fm.RandomMix([fm.CutMix(alpha=0.5), fm.CutMix(alpha=2.0)], num_classes=K), *sample)
    own = plan.mask() == 1
    assert torch.equal(out[2].as_subclass(Tensor), torch.where(own, label_map(), label_map()[plan.partner]))


def one_hot_maps(m: Tensor, void: int | None) -> Tensor:
    """(B, K, H, W) float64, void pixels 0 everywhere."""
    m = m.reshape(B, H, W).long()
    planes = [(m == k) & (m != void if void is not None else True) for k in range(K)]
    return torch.stack(planes, 1).double()


@pytest.mark.parametrize("void", [VOID, -1, 2, None], ids=str)
@pytest.mark.parametrize("shape", [(B, H, W), (B, 1, H, W)], ids=["BHW", "B1HW"])
@pytest.mark.parametrize("name", [*SOFT, *HARD])
def test_soft_one_hot_masks(name: str, shape: tuple[int, ...], void: int | None) -> None:
    m = label_map(*shape)
    if void is not None:
        m = m.masked_fill(label_map(*shape, seed=2, high=4) == 0, void)
    planes = one_hot_maps(m, void)
    mix = build(name, mask_classes=K, mask_ignore_index=void)
    out, plan = run(mix, tv_tensors.Image(images()), classes(), tv_tensors.Mask(m))
    assert type(out[2]) is tv_tensors.Mask
    assert out[2].dtype == torch.float32
    assert out[2].shape == (B, K, H, W)
    soft = out[2].as_subclass(Tensor).double()
    assert (soft - blended(planes, plan)).abs().max() <= 2**-23
    # A pixel's targets sum to the share of it that is not void.
    valid = planes.sum(1)
    assert (soft.sum(1) - blended(valid, plan)).abs().max() <= K * 2**-23


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool], ids=str)
def test_soft_one_hot_masks_of_other_dtypes(dtype: torch.dtype) -> None:
    m = label_map(high=2).to(dtype)
    out, plan = run(build("GMix", mask_classes=2), tv_tensors.Image(images()), classes(), tv_tensors.Mask(m))
    planes = torch.stack([m.long() == 0, m.long() == 1], 1).double()
    assert (out[2].as_subclass(Tensor).double() - blended(planes, plan)).abs().max() <= 2**-23


@pytest.mark.parametrize("wrong", [K, -1, 254])
def test_mask_labels_out_of_range(wrong: int) -> None:
    m = label_map()
    m[0, 0, 0] = wrong
    x = images()
    with pytest.raises(ValueError, match=rf"\[0, {K}\), but got {wrong}"):
        fm.MixUp(num_classes=K, mask_classes=K, inplace=True)(tv_tensors.Image(x), classes(), tv_tensors.Mask(m))
    assert torch.equal(x, images())


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((B, H, W), torch.float32), ((B, 4, H, W), torch.float16), ((B, 1, H, W), torch.float64)],
    ids=["BHW", "BNHW", "B1HW"],
)
@every_module
def test_float_masks_are_blended(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    m = images(*shape, dtype=dtype, seed=3)
    out, plan = run(build(name), tv_tensors.Image(images()), classes(), tv_tensors.Mask(m))
    assert type(out[2]) is tv_tensors.Mask
    assert_blended(out[2], m, plan)


@pytest.mark.parametrize(
    ("m", "options", "message"),
    [
        (label_map(B, H, W + 1), {}, "spatial size"),
        (label_map(B, W, H), {}, "spatial size"),
        (label_map(B - 1, H, W), {}, "batch size of the masks"),
        (label_map(1, H, W), {}, "batch size of the masks"),
        (label_map(B, 2, H, W), {"mask_classes": K}, "to become soft one-hot"),
        (torch.zeros(B, H, W, dtype=torch.complex64), {}, "complex"),
    ],
    ids=["wider", "transposed", "fewer", "broadcast", "channels", "complex"],
)
def test_masks_that_do_not_fit(m: Tensor, options: dict[str, Any], message: str) -> None:
    mix = fm.CutMix(num_classes=K, **options)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=message):
        mix(tv_tensors.Image(images()), classes(), tv_tensors.Mask(m))
    assert torch.equal(torch.get_rng_state(), before)


def test_several_masks_and_pure_tensor_images() -> None:
    x, a, b = images(), label_map(), images(B, 2, H, W, seed=4)
    mix = fm.CutMix(labels_getter=None)
    out, plan = run(mix, x, tv_tensors.Mask(a), {"dense": tv_tensors.Mask(b)})
    own = plan.mask() == 1
    assert_blended(out[0], x, plan)
    assert torch.equal(out[1].as_subclass(Tensor), torch.where(own, a, a[plan.partner]))
    assert_blended(out[2]["dense"], b, plan)


def test_masks_alone_are_refused() -> None:
    with pytest.raises(ValueError, match="masks without images"):
        fm.CutMix(labels_getter=None)(tv_tensors.Mask(label_map()))


# --- videos and signals of other dimensions -------------------------------------------------------------------------


@every_module
def test_videos(name: str) -> None:
    x, y = images(B, 3, 2, H, W), classes()
    out, plan = run(build(name), tv_tensors.Video(x), y)
    assert type(out[0]) is tv_tensors.Video
    assert_blended(out[0], x, plan)
    assert_targets(out[1], one_hot(y, K), plan)


def test_video_with_masks_of_every_frame() -> None:
    m = label_map(B, 3, H, W)
    out, plan = run(build("CutMix"), tv_tensors.Video(images(B, 3, 2, H, W)), classes(), tv_tensors.Mask(m))
    own = (plan.mask() == 1).unsqueeze(1)
    assert torch.equal(out[2].as_subclass(Tensor), torch.where(own, m, m[plan.partner]))


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


def axes_of(size: tuple[int, ...]) -> tuple[int, ...] | None:
    """What tells a volume from a video."""
    return (-3, -2, -1) if len(size) == 3 else None


@pytest.mark.parametrize("size", [(1,), (37,), (9, 1), (4, 6, 5), (1, 8, 1)], ids=str)
@every_module
def test_signals_and_volumes(name: str, size: tuple[int, ...]) -> None:
    x, y, mix = images(B, 2, *size), classes(), build(name, axes=axes_of(size))
    torch.manual_seed(0)
    for _ in range(4):
        state = torch.get_rng_state()
        plan = mix.sample(B, size)
        torch.set_rng_state(state)
        out, targets = mix(x, y)
        assert plan.mask().shape == (B, *size)
        assert_blended(out, x, plan)
        assert_targets(targets, one_hot(y, K), plan)


@pytest.mark.parametrize("size", [(64,), (12, 10, 8)], ids=["1-D", "3-D"])
def test_boxes_of_signals_and_volumes(size: tuple[int, ...]) -> None:
    """One axis-aligned box of the partner, taken from the values themselves; label weight = what is left outside."""
    x = torch.arange(float(B)).reshape(B, 1, *[1] * len(size)).expand(B, 1, *size).clone()
    mix = fm.CutMix(num_classes=B, alpha=2.0, axes=axes_of(size))
    torch.manual_seed(0)
    for _ in range(8):
        out, targets = mix(x, torch.arange(B))
        lent = out[:, 0] != x[:, 0]
        assert torch.equal(out[:, 0][lent], x.roll(1, 0)[:, 0][lent])
        where = lent[0].nonzero()
        if len(where):
            sides = where.max(0).values - where.min(0).values + 1
            assert sides.prod() == len(where)
        share = len(where) / lent[0].numel()
        expected = (1 - share) * torch.eye(B, dtype=torch.float64) + share * torch.eye(B, dtype=torch.float64).roll(
            1, 0
        )
        assert (targets.double() - expected).abs().max() <= 2**-23


@pytest.mark.parametrize("shape", [(B, 3, 4, H, W), (B, 4, 3, H, W)], ids=["BTCHW", "BCTHW"])
@pytest.mark.parametrize("inplace", [False, True])
@every_module
def test_five_dims_are_no_images(name: str, inplace: bool, shape: tuple[int, ...]) -> None:
    """Nobody knows which of them is time, and torchvision refuses them too."""
    x, y = images(*shape), classes()
    for peer in (v2.MixUp(num_classes=K), v2.CutMix(num_classes=K)):
        with pytest.raises(ValueError, match="Expected a batched input with 4 dims"):
            peer(x, y)
    state = torch.get_rng_state()
    for sample in ((x, y), {"video": x, "labels": y}):
        with pytest.raises(
            ValueError, match=r"Expected a batched input with 4 dims.*tv_tensors.Video.*axes=\(-2, -1\)"
        ):
            build(name, inplace=inplace)(sample)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, images(*shape))


AXES = {
    "BTCHW": ((B, 3, 2, H, W), (-2, -1)),
    "BTHWC": ((B, 3, H, W, 2), (2, 3)),
    "BHWC": ((B, H, W, 3), (1, 2)),
    "BHWC, from the back": ((B, H, W, 3), (-2, -3)),
    "volumes": ((B, 2, 5, 6, 7), (-3, -2, -1)),
    "time and space of BTCHW": ((B, 4, 2, H, W), (1, -2, -1)),
    "time of a spectrogram": ((B, 1, H, W), (-1,)),
    "frequencies of a spectrogram": ((B, 1, H, W), (2,)),
    "samples without channels": ((B, 33), (-1,)),
    "six dims": ((B, 2, 2, 3, H, W), (4, 5)),
}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("case", list(AXES))
@every_module
def test_axes(name: str, case: str, inplace: bool) -> None:
    """The mask extends over these dims, and all others are mixed alike."""
    shape, axes = AXES[case]
    x, y = images(*shape), classes()
    given = x.clone()
    dims = sorted(axis % x.ndim for axis in axes)
    size = tuple(shape[d] for d in dims)
    (out, targets), plan = run(build(name, axes=axes, inplace=inplace), given, y, size=size)
    m = plan.mask().double()
    m = m.reshape([side if d in (0, *dims) else 1 for d, side in enumerate(shape)])
    expected = m * x.double() + (1 - m) * x.double()[plan.partner]
    assert (out.double() - expected).abs().max() <= 2**-21 * (1 + x.abs().max())
    assert_targets(targets, one_hot(y, K), plan)
    assert (out is given) == inplace
    assert out.stride() == x.stride()
    assert inplace or torch.equal(given, x)


@pytest.mark.parametrize("method", ["MixUp", "CutMix"])
def test_axes_of_a_video_are_those_of_torchvision(method: str) -> None:
    x, y = images(B, 3, 2, H, W), classes()
    for seed in range(5):
        torch.manual_seed(seed)
        expected, targets = getattr(v2, method)(num_classes=K)(tv_tensors.Video(x), y)
        torch.manual_seed(seed)
        out, got = getattr(fm, method)(num_classes=K, axes=(-2, -1))(x, y)
        assert (out - expected.as_subclass(Tensor)).abs().max() <= 2**-21 * (1 + x.abs().max())
        assert (got - targets).abs().max() <= 2**-22


def test_axes_of_several_stacks_and_of_masks() -> None:
    """A volume with its label map, and a second stack of another number of dims."""
    size = (5, 6, 7)
    x, more, m = images(B, 2, *size), images(B, *size, seed=1), label_map(B, *size)
    mix = build("CutMix", axes=(-3, -2, -1), images_getter=lambda s: [s["x"], s["more"]])
    out, plan = run(mix, {"x": x, "more": more, "labels": classes(), "mask": tv_tensors.Mask(m)}, size=size)
    assert_blended(out["x"], x, plan)
    assert_blended(out["more"], more, plan)
    own = plan.mask() == 1
    assert torch.equal(out["mask"].as_subclass(Tensor), torch.where(own, m, m[plan.partner]))


def test_signals_without_channels_in_a_dict() -> None:
    """With axes=, what has two dims may be images."""
    sample = {"table": images(B, 9), "wave": images(B, 33), "labels": classes()}
    with pytest.raises(ValueError, match="Several tensors may be the images"):
        fm.CutMix(num_classes=K, axes=(-1,))(sample)
    out, plan = run(
        build("CutMix", axes=(-1,)), {"table": sample["table"], "x": sample["wave"], "labels": classes()}, size=(33,)
    )
    assert_blended(out["x"], sample["wave"], plan)
    assert out["table"] is sample["table"]


def test_axes_set_later() -> None:
    mix, x = build("CutMix"), images(B, 3, 2, H, W)
    mix.axes = [-2, -1]
    (out, _), plan = run(mix, x, classes())
    assert mix.axes == (-2, -1)
    assert_blended(out, x, plan)
    for wrong, error in ((-1, TypeError), ((0,), ValueError), ("HW", TypeError)):
        with pytest.raises(error, match="axes"):
            mix.axes = wrong
    assert mix.axes == (-2, -1)
    mix.axes = None
    with pytest.raises(ValueError, match="5 dimensions"):
        mix(x, classes())


def test_axes_of_a_set() -> None:
    methods = [fm.MixUp(axes=(-2, -1)), fm.CutMix(axes=(-2, -1))]
    assert fm.RandomMix(methods, num_classes=K).axes == (-2, -1)
    assert "axes=(-2, -1)" in repr(fm.RandomMix(methods))
    with pytest.raises(ValueError, match="disagree about axes"):
        fm.RandomMix([fm.MixUp(axes=(-1,)), fm.CutMix(axes=(-2, -1))])


@pytest.mark.parametrize("axes", [(3, 4), (-1, 3), (-5, -1), (-4, -3)], ids=str)
def test_axes_that_images_do_not_have(axes: tuple[int, ...]) -> None:
    """(B, C, H, W) has no dim 4, its dim -1 is 3, and its dim -4 is the batch."""
    state = torch.get_rng_state()
    for x in (images(), tv_tensors.Image(images())):
        with pytest.raises(ValueError, match=r"axes must be different dims of the images other than the batch"):
            fm.CutMix(num_classes=K, axes=axes)(x, classes())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["CutMix", "HMix", "CutMix_per_sample", "RandomMix_per_sample"])
@pytest.mark.parametrize("shape", [(B, 3, 1, W), (B, 3, H, 2), (B, 3, 1)], ids=str)
def test_boxes_that_are_always_empty_are_told_once(name: str, shape: tuple[int, ...]) -> None:
    mix = build(name)
    with pytest.warns(UserWarning, match=r"Boxes are empty.*squeeze") as caught:
        mix(images(*shape), classes())
    assert len(caught) == 1
    assert str(shape[2:]) in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            mix(images(*shape), classes())
            mix.sample(B, shape[2:])
    with pytest.warns(UserWarning, match="Boxes are empty"):
        build(name).sample(B, shape[2:])
    with pytest.warns(UserWarning, match="Boxes are empty"), fm.attach(nn.Identity(), build(name)) as handle:
        handle.model(images(*shape))


@pytest.mark.filterwarnings("error:Boxes are empty")
def test_boxes_that_may_be_cut_are_not_told_of() -> None:
    for name in ("CutMix", "HMix"):
        build(name)(images(B, 3, 3, 3), classes())
        build(name, axes=(-1,))(images(B, 3, 1, W), classes())
        build(name)(images(B, 3, W), classes())
    for name in ("MixUp", "GMix", "SamplePairing"):
        build(name)(images(B, 3, 1, W), classes())


def test_the_warning_of_empty_boxes_is_right() -> None:
    """torchvision cuts nothing from such images either, and both cut from the squeezed ones."""
    x, y = images(B, 3, 1, W), classes()
    for seed in range(20):
        torch.manual_seed(seed)
        assert torch.equal(v2.CutMix(num_classes=K)(x, y)[0], x)
        torch.manual_seed(seed)
        assert torch.equal(fm.CutMix(num_classes=K)(x, y)[0], x)
    torch.manual_seed(0)
    assert any(not torch.equal(fm.CutMix(num_classes=K)(x.squeeze(2), y)[0], x.squeeze(2)) for _ in range(20))


# --- labels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("num_classes", [None, K])
@pytest.mark.parametrize("targets", ["dense", "sparse"])
def test_class_numbers_in_a_column(dtype: torch.dtype, num_classes: int | None, targets: str) -> None:
    """(B, 1) integers are class numbers that nobody squeezed, not soft labels of one class."""
    y, state = classes(dtype).unsqueeze(1), torch.get_rng_state()
    for inplace in (False, True):
        with pytest.raises(ValueError, match=r"labels of shape \(6, 1\).*squeeze\(1\).*one-hot"):
            fm.CutMix(num_classes=num_classes, targets=targets, inplace=inplace)(images(), y)
    with pytest.raises(ValueError, match=r"squeeze\(1\)"):
        fm.CutMix(pairing="same_class").sample(B, (H, W), labels=y)
    assert torch.equal(torch.get_rng_state(), state)


def test_soft_labels_of_one_class() -> None:
    """Numbers that cannot be classes, and classes of which there is one."""
    for y, num_classes in ((torch.rand(B, 1), None), (torch.rand(B, 1) > 0.5, None), (torch.ones(B, 1).long(), 1)):
        (_, targets), plan = run(build("CutMix", num_classes=num_classes), images(), y)
        assert_targets(targets, y, plan)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("pairing", ["roll", "cross_class"])
def test_integer_labels(dtype: torch.dtype, pairing: str) -> None:
    x = images()
    mix = fm.CutMix(num_classes=K, pairing=pairing)
    torch.manual_seed(0)
    plan = mix.sample(B, (H, W), labels=classes())
    torch.manual_seed(0)
    _, targets = mix(x, classes(dtype))
    assert targets.dtype == torch.float32
    assert_targets(targets, one_hot(classes(), K), plan)

    _, sparse = fm.CutMix(num_classes=K, targets="sparse")(x, classes(dtype))
    assert sparse.partner_labels.dtype == dtype
    assert torch.equal(sparse.partner_labels.long(), classes().roll(1))


@pytest.mark.parametrize(("dtype", "wrong"), [(torch.int8, -1), (torch.uint8, 255), (torch.int32, K)], ids=str)
@pytest.mark.parametrize("targets", ["dense", "sparse"])
def test_integer_labels_out_of_range(dtype: torch.dtype, wrong: int, targets: str) -> None:
    y = classes(dtype)
    y[2] = wrong
    x = images()
    with pytest.raises(ValueError, match=rf"labels must be in \[0, num_classes\) = \[0, {K}\), but got {wrong}"):
        fm.MixUp(num_classes=K, targets=targets, inplace=True)(x, y)
    assert torch.equal(x, images())


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.float16, torch.complex64], ids=str)
def test_one_dimensional_labels_of_other_dtypes(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=r"1D labels must have one of the dtypes|labels must have a real dtype"):
        fm.MixUp(num_classes=K)(images(), torch.zeros(B, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int16], ids=str)
@every_module
def test_multi_hot_labels(name: str, dtype: torch.dtype) -> None:
    y = soft_labels() > 0.2
    assert y.sum(1).max() > 1
    (_, targets), plan = run(build(name), images(), y.to(dtype))
    assert targets.dtype == torch.float32
    assert_targets(targets, y, plan)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@every_module
def test_soft_labels_keep_their_dtype(name: str, dtype: torch.dtype) -> None:
    y = soft_labels(dtype)
    before = y.clone()
    (_, targets), plan = run(build(name, num_classes=None), images(), y)
    assert targets.dtype == dtype
    assert_targets(targets, y, plan)
    assert torch.equal(y, before)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["classes", "soft", "half", "double", "multi_hot"])
def test_label_smoothing(kind: str, epsilon: float) -> None:
    """ε/K on every class and 1-ε more on the label's own, before mixing; which equals smoothing the mixed target."""
    y = {
        "classes": classes(),
        "soft": soft_labels(),
        "half": soft_labels(torch.float16),
        "double": soft_labels(torch.float64),
        "multi_hot": soft_labels() > 0.2,
    }[kind]
    dense = one_hot(y, K).double() if y.ndim == 1 else y.double()
    for name in ("MixUp", "CutMix", "RandomMix_per_sample", "SamplePairing"):
        (_, targets), plan = run(build(name, label_smoothing=epsilon), images(), y)
        w = plan.weight.unsqueeze(1)
        smooth = (1 - epsilon) * dense + epsilon / K
        expected = w * smooth + (1 - w) * smooth[plan.partner]
        after = (1 - epsilon) * (w * dense + (1 - w) * dense[plan.partner]) + epsilon / K
        bound = 4 * torch.finfo(targets.dtype).eps
        assert (targets.double() - expected).abs().max() <= bound
        assert (targets.double() - after).abs().max() <= bound


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8], ids=str)
@every_module
def test_sparse_targets_of_classes(name: str, dtype: torch.dtype) -> None:
    """Dense targets made of the sparse ones are the dense ones of the same seed, bit for bit."""
    x, y = images(), classes(dtype)
    (mixed, sparse), plan = run(build(name, targets="sparse"), x, y)
    (_, dense), _ = run(build(name), x, y)
    assert type(sparse) is fm.SparseTargets
    assert sparse.labels is y
    assert sparse.partner_labels.dtype == dtype
    assert torch.equal(sparse.partner_labels, y[plan.partner])
    assert sparse.weight.dtype == torch.float64
    assert torch.equal(sparse.weight, plan.weight)
    assert_blended(mixed, x, plan)

    w = sparse.weight.unsqueeze(1)
    own, lent = (one_hot(labels.long(), K).float() for labels in (sparse.labels, sparse.partner_labels))
    assert torch.equal(dense, lent * (1 - w).float() + own * w.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool], ids=str)
@every_module
def test_sparse_targets_of_two_dimensional_labels(name: str, dtype: torch.dtype) -> None:
    y = (soft_labels() > 0.2) if dtype == torch.bool else soft_labels(dtype)
    (_, sparse), plan = run(build(name, targets="sparse", num_classes=None), images(), y)
    (_, dense), _ = run(build(name, num_classes=None), images(), y)
    assert sparse.labels is y
    assert torch.equal(sparse.partner_labels, y[plan.partner])
    w = sparse.weight.unsqueeze(1)
    expected = sparse.labels.double() * w + sparse.partner_labels.double() * (1 - w)
    assert (dense.double() - expected).abs().max() <= 2 * torch.finfo(dense.dtype).eps


def test_sparse_targets_need_no_number_of_classes() -> None:
    _, sparse = fm.CutMix(targets="sparse")(images(), classes() + 1000)
    assert torch.equal(sparse.partner_labels, classes().roll(1) + 1000)


def test_sparse_targets_in_a_dict() -> None:
    sample = {"labels": classes(), "image": tv_tensors.Image(images()), "name": "text"}
    out, plan = run(build("MixUp", targets="sparse"), sample)
    assert list(out) == list(sample)
    assert type(out["labels"]) is fm.SparseTargets
    assert torch.equal(out["labels"].partner_labels, classes()[plan.partner])


def test_sparse_targets_cannot_be_smoothed() -> None:
    with pytest.raises(ValueError, match="label_smoothing must be 0"):
        fm.MixUp(num_classes=K, targets="sparse", label_smoothing=0.1)


# --- in place -------------------------------------------------------------------------------------------------------


def within(x: Tensor) -> tuple[Tensor, Tensor]:
    """A larger tensor and a strided slice of it with the values of x."""
    big = torch.full((x.shape[0] + 2, x.shape[1] + 1, x.shape[2] + 5, 2 * x.shape[3] + 1), 7, dtype=x.dtype)
    view = big[1:-1, :-1, 3:-2, 1::2]
    view.copy_(x)
    return big, view


INPLACE_CASES = [
    *[("slice", dtype) for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8)],
    ("contiguous", torch.float32),
    ("channels_last", torch.float32),
    ("channels_last", torch.uint8),
]


@pytest.mark.parametrize(("layout", "dtype"), INPLACE_CASES, ids=str)
@every_module
def test_inplace(name: str, layout: str, dtype: torch.dtype) -> None:
    original, y = images(dtype=dtype), classes()
    (expected, expected_targets), plan = run(build(name), original, y)
    assert not torch.equal(expected, original)
    assert_blended(expected, original, plan)

    big, x = within(original)
    rest = torch.ones_like(big, dtype=torch.bool)
    rest[1:-1, :-1, 3:-2, 1::2] = False
    if layout != "slice":
        memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        x = original.clone(memory_format=memory_format)
    version, address, strides = x._version, x.data_ptr(), x.stride()
    (out, targets), _ = run(build(name, inplace=True), x, y)
    assert out is x
    assert (x.data_ptr(), x.stride()) == (address, strides)
    assert x._version > version
    assert torch.equal(x, expected)
    assert torch.equal(targets, expected_targets)
    assert (big[rest] == 7).all()
    assert torch.equal(y, classes())


@pytest.mark.parametrize("kind", ["Image", "Video"])
@every_module
def test_inplace_of_tv_tensors(name: str, kind: str) -> None:
    values = images() if kind == "Image" else images(B, 2, 3, H, W)
    wrap = getattr(tv_tensors, kind)
    (expected, _), _ = run(build(name), wrap(values.clone()), classes())
    memory = values.clone()
    x = wrap(memory)
    (out, _), _ = run(build(name, inplace=True), x, classes())
    assert out is x
    assert type(out) is wrap
    assert torch.equal(memory, expected.as_subclass(Tensor))
    assert not torch.equal(memory, values)


@pytest.mark.parametrize("kind", ["label_map", "bool", "dense"])
def test_inplace_of_masks(kind: str) -> None:
    values = {"label_map": label_map(), "bool": label_map(high=2).bool(), "dense": images(B, 2, H, W)}[kind]
    expected, _ = run(build("CutMix"), tv_tensors.Image(images()), classes(), tv_tensors.Mask(values.clone()))
    memory = values.clone()
    mask = tv_tensors.Mask(memory)
    out, _ = run(build("CutMix", inplace=True), tv_tensors.Image(images()), classes(), mask)
    assert out[2] is mask
    assert torch.equal(memory, expected[2].as_subclass(Tensor))
    assert not torch.equal(memory, values)


def test_inplace_leaves_what_changes_shape() -> None:
    """Soft one-hot masks and labels are new tensors; what they were made of stays."""
    m, y = label_map(), soft_labels()
    out, _ = run(build("MixUp", inplace=True, mask_classes=K), tv_tensors.Image(images()), y, tv_tensors.Mask(m))
    assert out[2].shape == (B, K, H, W)
    assert torch.equal(m, label_map())
    assert torch.equal(y, soft_labels())
    assert out[1].data_ptr() != y.data_ptr()


@every_module
def test_out_of_place_leaves_the_input(name: str) -> None:
    x, y, m = images(), classes(), images(B, 1, H, W, seed=3)
    version = x._version
    (out, targets, mask), _ = run(build(name), tv_tensors.Image(x), y, tv_tensors.Mask(m))
    assert torch.equal(x, images())
    assert torch.equal(y, classes())
    assert torch.equal(m, images(B, 1, H, W, seed=3))
    assert x._version == version
    given = {t.untyped_storage().data_ptr() for t in (x, y, m)}
    assert given.isdisjoint(t.untyped_storage().data_ptr() for t in (out, targets, mask))


@pytest.mark.parametrize("what", ["expand", "unfold", "requires_grad", "mask"])
def test_inplace_refusals(what: str) -> None:
    """Refused before anything is drawn or written."""
    x, extra = images(), []
    if what == "expand":
        x = x[:, :1].expand(B, 3, H, W)
    elif what == "unfold":
        x = images(B, 3, H + W).unfold(2, W, 1)[:, :, :H]
    elif what == "requires_grad":
        x.requires_grad_()
    else:
        extra = [tv_tensors.Mask(label_map(1, H, W).expand(B, H, W))]
        x = tv_tensors.Image(x)
    before_values = x.detach().clone()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with pytest.raises(fm.InplaceError):
        fm.CutMix(num_classes=K, inplace=True)(x, classes(), *extra)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(x.detach(), before_values)


# --- the program around it ------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_without_torchvision() -> None:
    """A program that has not imported torchvision gets by without it, PIL included."""
    code = """
import sys
import torch
import fusedmix as fm
x, y = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 1])
for mix in (fm.MixUp(num_classes=3), fm.CutMix(num_classes=3), fm.GMix(num_classes=3, per="sample")):
    torch.manual_seed(0)
    plan = mix.sample(4, (8, 8))
    torch.manual_seed(0)
    out = mix({"labels": y, "images": x, "path": "text", "none": None})
    m = plan.mask().unsqueeze(1)
    torch.testing.assert_close(out["images"], m * x + (1 - m) * x[plan.partner])
    assert type(out["images"]) is torch.Tensor
    assert out["labels"].shape == (4, 3)
    assert out["path"] == "text" and out["none"] is None
assert "torchvision" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def meta_by_default() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


DEFAULT_DEVICE_OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "smoothed": {"label_smoothing": 0.1},
    "masks": {"mask_classes": K},
    "sparse": {"targets": "sparse"},
    "random": {"pairing": "random"},
    "cross_class": {"pairing": "cross_class"},
    "p": {"p": 0.5},
    "lam_range": {"lam_range": (0.2, 0.8)},
    "on_device": {"sampling": "device"},
    "inplace": {"inplace": True},
}


def on_the_cpu(name: str, options: dict[str, Any]) -> Any:
    """A module built, asked for plans and called with tensors of the CPU, each made with an explicit device."""
    if name.startswith("RandomMix"):
        options = {key: value for key, value in options.items() if key != "lam_range"}
    if "per_pair" in name:
        options = {key: value for key, value in options.items() if key != "pairing"}
    mix = build(name, **options)
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.rand(B, 3, H, W, generator=generator, device="cpu")
    m = torch.randint(K, (B, H, W), generator=generator, device="cpu")
    y = torch.tensor([0, 3, 1, 4, 2, 3], device="cpu")
    # Without device= torchvision's types would move to the default device.
    sample = [tv_tensors.Image(x, device="cpu"), y]
    if mix.mask_classes:
        sample.append(tv_tensors.Mask(m, device="cpu"))
    torch.manual_seed(3)
    out = mix(*sample)
    plans = [
        mix.sample(B, (H, W), labels=y),
        mix.sample(B, (H, W), labels=y, lam=0.3),
        mix.sample(B, (H, W), labels=y, seed=9),
    ]
    return [
        leaf.as_subclass(Tensor) for leaf in torch.utils._pytree.tree_leaves([out, plans, [p.mask() for p in plans]])
    ]


@pytest.mark.parametrize("option", list(DEFAULT_DEVICE_OPTIONS))
@pytest.mark.parametrize("name", ["MixUp", "GMix", "RandomMix_per_sample", "CutMix_per_pair"])
def test_default_device(request: pytest.FixtureRequest, name: str, option: str) -> None:
    """Whatever torch.set_default_device says, host draws and tensors of the CPU stay on the CPU."""
    options = DEFAULT_DEVICE_OPTIONS[option]
    expected = on_the_cpu(name, options)
    request.getfixturevalue("meta_by_default")
    out = on_the_cpu(name, options)
    assert all(leaf.device.type == "cpu" for leaf in out)
    for got, want in zip(out, expected, strict=True):
        assert torch.equal(got, want)


def test_255_is_a_class_where_there_are_more() -> None:
    maps = torch.full((B, H, W), 255)
    out, _ = run(build("CutMix", mask_classes=300), tv_tensors.Image(images()), classes(), tv_tensors.Mask(maps))
    assert torch.equal(out[2][:, 255], torch.ones(B, H, W))
    out, _ = run(build("CutMix", mask_classes=200), tv_tensors.Image(images()), classes(), tv_tensors.Mask(maps))
    assert not out[2].any()


def test_numpy_numbers_are_numbers() -> None:
    one, five = np.float32(1.0), np.int64(K)
    mix = fm.CutMix(alpha=one, num_classes=five, p=one)
    assert mix(images(), classes())[1].shape == (B, K)
    plan = mix.sample(np.int64(B), (np.int32(H), np.int32(W)), lam=np.float64(0.5), seed=np.uint64(2**63 + 5))
    assert torch.equal(plan.mask(), mix.sample(B, (H, W), lam=0.5, seed=2**63 + 5).mask())
    assert fm.mix_labels(classes(), plan, num_classes=five).shape == (B, K)
