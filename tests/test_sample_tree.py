"""What a mixing module finds in a sample, and what it leaves alone."""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Iterator, MutableMapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torchvision import tv_tensors
from torchvision.transforms import v2

import fusedmix as fm
from conftest import refused
from samples import (
    MODULES,
    SIZED,
    B,
    H,
    K,
    W,
    assert_blended,
    assert_targets,
    build,
    classes,
    every_module,
    images,
    label_map,
    run,
)

# --- finding images and labels ---


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
    with refused(ValueError, r"one spatial size.*\(16, 12\).*\(16, 13\)"):
        build(name)(tv_tensors.Image(images()), classes(), tv_tensors.Image(images(B, 3, H, W + 1)))


def test_stacks_of_other_batch_sizes() -> None:
    for labels_getter, y in (("default", classes()), (None, None)):
        with refused(ValueError, "batch size.*5 != 6"):
            fm.MixUp(num_classes=K, labels_getter=labels_getter)(
                tv_tensors.Image(images()), y, tv_tensors.Image(images(B - 1, 3, H, W))
            )


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
        (lambda s: s["images"].clone(), r"images_getter must return tensors of the sample itself.*\(6, 3, 16, 12\)"),
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
    with refused(ValueError, message):
        fm.CutMix(num_classes=K, images_getter=getter)(sample)


def test_labels_getter_must_return_labels_of_the_sample() -> None:
    with refused(ValueError, r"labels_getter must return tensors of the sample itself.*\(6,\)"):
        fm.CutMix(num_classes=K, labels_getter=lambda s: s[1].clone())(images(), classes())


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
    with refused(ValueError, r"Several tensors may be the images: .*shape \(6, .*Pass images_getter="):
        fm.CutMix(num_classes=K, inplace=True)({**sample, "labels": classes()})


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


# --- what passes through ---


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
    with refused(ValueError, "labels must be given"):
        fm.MixUp(labels_getter=None, pairing=pairing)(images())


# --- the program around it ---


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


def test_numpy_numbers_are_numbers() -> None:
    one, five = np.float32(1.0), np.int64(K)
    mix = fm.CutMix(alpha=one, num_classes=five, p=one)
    assert mix(images(), classes())[1].shape == (B, K)
    plan = mix.sample(np.int64(B), (np.int32(H), np.int32(W)), lam=np.float64(0.5), seed=np.uint64(2**63 + 5))
    assert torch.equal(plan.mask(), mix.sample(B, (H, W), lam=0.5, seed=2**63 + 5).mask())
    assert fm.mix_labels(classes(), plan, num_classes=five).shape == (B, K)
