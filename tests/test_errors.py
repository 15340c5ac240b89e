"""Wrong calls: each is a ValueError or TypeError that names the argument, what came and what is allowed, raised before
anything is drawn or written."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import warnings

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

import fusedmix as fm

X = torch.rand(4, 3, 8, 8)
Y = torch.tensor([0, 1, 2, 3])
PLAN = fm.CutMix().sample(4, (8, 8))
BLENDED = fm.MixUp().sample(4, (8, 8))
GENERATOR = torch.Generator()


def nested(shape):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch: that nested tensors may change
        return torch.nested.nested_tensor([torch.zeros(shape) for _ in range(4)])


def negated(*shape):
    """A view that says it is negated: the imaginary part of a conjugate."""
    return torch.ones(shape).to(torch.complex64).conj().imag


def attached_to(mix):
    model = torch.nn.Identity()
    fm.attach(model, mix)
    return model


# name: (call, exception, fragments of the message: the argument, what came, what is allowed)
CONSTRUCTION = {
    "alpha zero": (lambda: fm.MixUp(alpha=0), ValueError, ("alpha", "0", "> 0")),
    "alpha negative": (lambda: fm.CutMix(alpha=-1.0), ValueError, ("alpha", "-1.0", "> 0")),
    "alpha nan": (lambda: fm.GMix(alpha=float("nan")), ValueError, ("alpha", "nan", "finite")),
    "alpha infinite": (lambda: fm.HMix(alpha=float("inf")), ValueError, ("alpha", "inf", "finite")),
    "alpha string": (lambda: fm.MixUp(alpha="1"), TypeError, ("alpha", "'1'", "number")),
    "alpha bool": (lambda: fm.MixUp(alpha=True), TypeError, ("alpha", "True", "number")),
    "alpha positional": (lambda: fm.MixUp(1.0), TypeError, ("positional",)),
    "ratio too large": (lambda: fm.HMix(ratio=1.5), ValueError, ("ratio", "1.5", "[0, 1]")),
    "ratio negative": (lambda: fm.HMix(ratio=-0.1), ValueError, ("ratio", "-0.1", "[0, 1]")),
    "ratio of CutMix": (lambda: fm.CutMix(ratio=0.5), TypeError, ("ratio", "unknown", "num_classes")),
    "num_classes zero": (lambda: fm.MixUp(num_classes=0), ValueError, ("num_classes", "0", ">= 1")),
    "num_classes float": (lambda: fm.MixUp(num_classes=10.0), TypeError, ("num_classes", "10.0", "int")),
    "num_classes bool": (lambda: fm.MixUp(num_classes=True), TypeError, ("num_classes", "True", "int")),
    "pairing unknown": (lambda: fm.MixUp(pairing="next"), ValueError, ("pairing", "next", "roll, flip, random")),
    "pairing None": (lambda: fm.MixUp(pairing=None), TypeError, ("pairing", "None", "roll")),
    "per unknown": (lambda: fm.MixUp(per="elem"), ValueError, ("per", "elem", "batch, pair, sample")),
    "pair without flip": (lambda: fm.MixUp(per="pair", pairing="roll"), ValueError, ("pair", "roll", "flip")),
    "p too large": (lambda: fm.MixUp(p=1.01), ValueError, ("p ", "1.01", "[0, 1]")),
    "p string": (lambda: fm.MixUp(p="half"), TypeError, ("p ", "half", "number")),
    "label_smoothing negative": (lambda: fm.MixUp(label_smoothing=-0.1), ValueError, ("label_smoothing", "-0.1", "[0")),
    "label_smoothing sparse": (
        lambda: fm.MixUp(label_smoothing=0.1, targets="sparse"),
        ValueError,
        ("label_smoothing", "0.1", "sparse"),
    ),
    "inplace int": (lambda: fm.MixUp(inplace=1), TypeError, ("inplace", "1", "bool")),
    "sampling unknown": (lambda: fm.MixUp(sampling="gpu"), ValueError, ("sampling", "gpu", "host, device")),
    "generator a seed": (lambda: fm.MixUp(generator=0), TypeError, ("generator", "int", "torch.Generator")),
    "lam_range reversed": (lambda: fm.MixUp(lam_range=(0.9, 0.1)), ValueError, ("lam_range", "0.9", "low <= high")),
    "lam_range outside": (lambda: fm.MixUp(lam_range=(0.0, 1.5)), ValueError, ("lam_range[1]", "1.5", "[0, 1]")),
    "lam_range a number": (lambda: fm.MixUp(lam_range=0.5), TypeError, ("lam_range", "0.5", "(low, high)")),
    "variant unknown": (lambda: fm.HMix(variant="official"), ValueError, ("variant", "official", "released, paper")),
    "backend unknown": (lambda: fm.MixUp(backend="numba"), ValueError, ("backend", "numba", "reference")),
    "targets unknown": (lambda: fm.MixUp(targets="soft"), ValueError, ("targets", "soft", "dense, sparse")),
    "labels_getter a string": (lambda: fm.MixUp(labels_getter="y"), ValueError, ("labels_getter", "y", "callable")),
    "images_getter an int": (lambda: fm.MixUp(images_getter=0), ValueError, ("images_getter", "0", "callable")),
    "mask_classes zero": (lambda: fm.MixUp(mask_classes=0), ValueError, ("mask_classes", "0", ">= 1")),
    "mask_ignore_index float": (
        lambda: fm.MixUp(mask_ignore_index=0.5),
        TypeError,
        ("mask_ignore_index", "0.5", "int"),
    ),
    "axes an int": (lambda: fm.CutMix(axes=-1), TypeError, ("axes", "-1", "sequence of 1 to 3 ints")),
    "axes a string": (lambda: fm.CutMix(axes="HW"), TypeError, ("axes", "'HW'", "sequence of 1 to 3 ints")),
    "axes of floats": (lambda: fm.CutMix(axes=(-2.0, -1)), TypeError, ("axes[0]", "-2.0", "int")),
    "axes empty": (lambda: fm.CutMix(axes=()), ValueError, ("axes", "()", "1 to 3")),
    "axes four": (lambda: fm.CutMix(axes=(1, 2, 3, 4)), ValueError, ("axes", "(1, 2, 3, 4)", "1 to 3")),
    "axes the batch": (lambda: fm.CutMix(axes=(0, 1)), ValueError, ("axes", "(0, 1)", "other than 0")),
    "axes twice": (lambda: fm.CutMix(axes=(-1, -1)), ValueError, ("axes", "(-1, -1)", "different")),
    "sampling empty": (lambda: fm.MixUp(sampling=""), ValueError, ("sampling", "''", "host, device")),
    "weights overflow": (
        lambda: fm.RandomMix([fm.MixUp(), fm.MixUp()], [1e308, 1e308]),
        ValueError,
        ("weights", "1e+308", "finite sum"),
    ),
    "methods disagree about generators": (
        lambda: fm.RandomMix([fm.MixUp(generator=GENERATOR), fm.MixUp(generator=torch.Generator())]),
        ValueError,
        ("generator", "torch._C.Generator", "RandomMix"),
    ),
    "training_only int": (lambda: fm.MixUp(training_only=1), TypeError, ("training_only", "1", "bool")),
    "keyword misspelt": (
        lambda: fm.CutMix(num_class=3),
        TypeError,
        ("'num_class'", "Did you mean 'num_classes'?", "It takes alpha, placement, aspect, minmax, num_classes,"),
    ),
    "keyword of another method": (lambda: fm.GMix(ratio=0.5), TypeError, ("'ratio'", "HMix takes ratio", "alpha")),
    "keyword of timm": (lambda: fm.MixUp(prob=0.5), TypeError, ("'prob'", "timm's prob is p", "It takes alpha")),
    "mode of timm": (lambda: fm.CutMix(mode="elem"), TypeError, ("'mode'", 'per="sample"', 'pairing="flip"')),
    "alpha of timm": (lambda: fm.MixUp(mixup_alpha=0.8), TypeError, ("'mixup_alpha'", "alpha of MixUp")),
    "keyword of kornia": (
        lambda: fm.MixUp(same_on_batch=False),
        TypeError,
        ("'same_on_batch'", 'per="batch"', 'per="sample"'),
    ),
    "per of timm": (lambda: fm.CutMix(per="elem"), ValueError, ("per", "'elem'", "Did you mean 'sample'?")),
    "per in capitals": (lambda: fm.CutMix(per="PAIR"), ValueError, ("per", "'PAIR'", "Did you mean 'pair'?")),
    "pairing misspelt": (lambda: fm.MixUp(pairing="rand"), ValueError, ("pairing", "'rand'", "Did you mean 'random'?")),
    "weights as p": (
        lambda: fm.RandomMix([fm.MixUp(), fm.CutMix()], p=[0.3, 0.7]),
        TypeError,
        ("p must be a number", "[0.3, 0.7]", "weights"),
    ),
    "variant of RandomMix": (
        lambda: fm.RandomMix([fm.HMix()], variant="paper"),
        ValueError,
        ("variant", "'paper'", "method"),
    ),
    "alpha of RandomMix": (lambda: fm.RandomMix([fm.MixUp()], alpha=0.2), TypeError, ("'alpha'", "MixUp", "weights")),
    "torchvision's module": (
        lambda: fm.RandomMix([v2.CutMix()]),
        TypeError,
        ("methods[0]", "torchvision.transforms.v2", "Take fusedmix.CutMix in its place"),
    ),
    "classes for modules": (
        lambda: fm.RandomMix([fm.MixUp, fm.CutMix]),
        TypeError,
        ("methods[0]", "the class MixUp", "fusedmix.MixUp()"),
    ),
    "torchvision's module attached": (
        lambda: fm.attach(torch.nn.Identity(), v2.MixUp()),
        TypeError,
        ("mix must be", "torchvision.transforms.v2", "Take fusedmix.MixUp in its place"),
    ),
    "torchvision's module scheduled": (
        lambda: fm.schedules.OffAfter(v2.MixUp(), 3),
        TypeError,
        ("mix must be", "torchvision.transforms.v2", "Take fusedmix.MixUp in its place"),
    ),
    "inplace of EmbedMix": (
        lambda: fm.EmbedMix(inplace=True),
        TypeError,
        ("'inplace'", "CutMix", "It takes alpha, fold, padding"),
    ),
    "padding misspelt": (lambda: fm.EmbedMix(padding="zero"), ValueError, ("padding", "'zero'", "'zeros'")),
    "keyword unknown": (lambda: fm.MixUp(classes=3), TypeError, ("classes", "unknown", "num_classes")),
    "methods empty": (lambda: fm.RandomMix([]), ValueError, ("methods", "none", "at least one")),
    "methods not a list": (lambda: fm.RandomMix(fm.MixUp()), TypeError, ("methods", "MixUp", "list")),
    "methods nested": (
        lambda: fm.RandomMix([fm.RandomMix([fm.MixUp()])]),
        TypeError,
        ("methods[0]", "RandomMix", "MixUp"),
    ),
    "weights too few": (lambda: fm.RandomMix([fm.MixUp(), fm.CutMix()], [1.0]), ValueError, ("weights", "1", "2")),
    "weights negative": (lambda: fm.RandomMix([fm.MixUp()], [-1.0]), ValueError, ("weights[0]", "-1.0", ">= 0")),
    "weights zero": (lambda: fm.RandomMix([fm.MixUp()], [0.0]), ValueError, ("weights", "[0.0]", "positive")),
    "weights a number": (lambda: fm.RandomMix([fm.MixUp()], 1.0), TypeError, ("weights", "1.0", "sequence")),
    "methods disagree": (
        lambda: fm.RandomMix([fm.MixUp(num_classes=3), fm.CutMix(num_classes=4)]),
        ValueError,
        ("num_classes", "[3, 4]", "RandomMix"),
    ),
    "lam_range of RandomMix": (
        lambda: fm.RandomMix([fm.MixUp()], lam_range=(0.1, 0.9)),
        ValueError,
        ("lam_range", "(0.1, 0.9)", "method"),
    ),
}

SAMPLE = {
    "batch_size negative": (lambda m: m.sample(-1, (8, 8)), ValueError, ("batch_size", "-1", ">= 0")),
    "batch_size float": (lambda m: m.sample(4.0, (8, 8)), TypeError, ("batch_size", "4.0", "int")),
    "size an int": (lambda m: m.sample(4, 8), TypeError, ("size", "8", "1 to 3")),
    "size empty": (lambda m: m.sample(4, ()), ValueError, ("size", "()", "1 to 3")),
    "size four": (lambda m: m.sample(4, (8, 8, 8, 8)), ValueError, ("size", "(8, 8, 8, 8)", "1 to 3")),
    "size zero": (lambda m: m.sample(4, (8, 0)), ValueError, ("size[1]", "0", ">= 1")),
    "size float": (lambda m: m.sample(4, (8.0, 8)), TypeError, ("size[0]", "8.0", "int")),
    "lam too large": (lambda m: m.sample(4, (8, 8), lam=1.1), ValueError, ("lam", "1.1", "[0, 1]")),
    "lam nan": (lambda m: m.sample(4, (8, 8), lam=float("nan")), ValueError, ("lam", "nan", "[0, 1]")),
    "lam string": (lambda m: m.sample(4, (8, 8), lam="0.5"), TypeError, ("lam", "'0.5'", "number")),
    "lam wrong shape": (lambda m: m.sample(4, (8, 8), lam=torch.ones(3)), ValueError, ("lam", "(3,)", "(4,)")),
    "lam integers": (lambda m: m.sample(4, (8, 8), lam=torch.ones(4).long()), ValueError, ("lam", "int64", "float")),
    "lam sparse": (
        lambda m: m.sample(4, (8, 8), lam=torch.ones(4).to_sparse()),
        ValueError,
        ("lam", "sparse", "dense"),
    ),
    "lam a list": (lambda m: m.sample(4, (8, 8), lam=[0.5] * 4), TypeError, ("lam", "[0.5, 0.5, 0.5, 0.5]", "number")),
    "lam tensor outside": (
        lambda m: m.sample(1, (8, 8), lam=torch.tensor([-0.5])),
        ValueError,
        ("lam", "-0.5", "[0, 1]"),
    ),
    "device unknown": (lambda m: m.sample(4, (8, 8), device="gpu0"), ValueError, ("device", "'gpu0'", "'cuda:0'")),
    "seed float": (lambda m: m.sample(4, (8, 8), seed=0.5), TypeError, ("seed", "0.5", "int")),
    "seed too large": (lambda m: m.sample(4, (8, 8), seed=2**64), ValueError, ("seed", str(2**64), "in [")),
    "seed and generator": (
        lambda m: m.sample(4, (8, 8), seed=0, generator=GENERATOR),
        ValueError,
        ("seed", "generator"),
    ),
    "generator a seed": (
        lambda m: m.sample(4, (8, 8), generator=0),
        TypeError,
        ("generator", "int", "torch.Generator"),
    ),
}

APPLY = {
    "x a list": (lambda: fm.mix([X], PLAN), TypeError, ("x ", "list", "tensor")),
    "x int64": (lambda: fm.mix(X.long(), PLAN), ValueError, ("x ", "int64", "float32, float16, bfloat16")),
    "x complex": (lambda: fm.mix(X.cfloat(), PLAN), ValueError, ("x ", "complex64", "float32")),
    "x sparse": (lambda: fm.mix(X.to_sparse(), PLAN), ValueError, ("x ", "sparse", "dense")),
    "x an array": (lambda: fm.mix(X.numpy(), PLAN), TypeError, ("x ", "ndarray", "torch.as_tensor")),
    "x nested": (lambda: fm.mix(nested((8, 8)), PLAN), ValueError, ("x ", "a nested tensor", "dense")),
    "x negated in place": (
        lambda: fm.mix_(negated(4, 3, 8, 8), PLAN),
        fm.InplaceError,
        ("x ", "negated", "resolve_neg"),
    ),
    "labels in a column": (
        lambda: fm.mix_labels(Y.unsqueeze(1), PLAN),
        ValueError,
        ("labels", "(4, 1)", "int64", "squeeze(1)", "one-hot"),
    ),
    "labels without classes": (
        lambda: fm.mix_labels(torch.rand(4, 0), PLAN),
        ValueError,
        ("labels", "(4, 0)", "at least one class"),
    ),
    "labels an array": (
        lambda: fm.mix_labels(Y.numpy(), PLAN, num_classes=4),
        ValueError,
        ("labels", "ndarray", "tensor", "torch.as_tensor"),
    ),
    "masks of another kind of numbers": (
        lambda: fm.mix_masks(X[:, 0].byte().view(torch.bits8), PLAN),
        ValueError,
        ("masks", "bits8", "label maps"),
    ),
    "targets a scalar": (lambda: fm.mix_targets(torch.tensor(1.0), PLAN), ValueError, ("targets", "()", "(batch_size")),
    "soft labels wider than the logits": (
        lambda: fm.mix_cross_entropy(torch.ones(4, 4), torch.ones(4, 5), PLAN),
        ValueError,
        ("labels", "the logits' classes", "5 != 4"),
    ),
    "soft labels narrower than the logits": (
        lambda: fm.mix_binary_cross_entropy(torch.ones(4, 4), torch.ones(4, 3), PLAN),
        ValueError,
        ("labels", "the logits' classes", "3 != 4"),
    ),
    "loss labels in a column": (
        lambda: fm.mix_cross_entropy(torch.ones(4, 4), Y.unsqueeze(1), PLAN),
        ValueError,
        ("labels", "(4, 1)", "squeeze(1)"),
    ),
    "loss labels without values": (
        lambda: fm.mix_cross_entropy(torch.ones(4, 4), Y.to("meta"), PLAN),
        ValueError,
        ("labels", "meta", "values"),
    ),
    "labels of EmbedMix a list": (
        lambda: fm.EmbedMix(num_classes=4)(X[:, 0], None, [0, 1, 2, 3]),
        TypeError,
        ("labels", "list", "torch.as_tensor"),
    ),
    "labels of EmbedMix of eight bits": (
        lambda: fm.EmbedMix(num_classes=4)(X[:, 0], None, torch.zeros(4).to(torch.float8_e5m2)),
        ValueError,
        ("float8_e5m2", "float32, float16"),
    ),
    "labels of EmbedMix a scalar": (
        lambda: fm.EmbedMix(num_classes=4)(X[:, 0], None, torch.tensor(1.0)),
        ValueError,
        ("labels", "4", "()"),
    ),
    "lam beyond float32": (lambda: fm.MixUp().sample(4, (8, 8), lam=1e300), ValueError, ("lam", "1e+300", "3.4")),
    "soft labels of eight bits": (
        lambda: fm.mix_labels(torch.zeros(4, 3).to(torch.float8_e5m2), PLAN),
        ValueError,
        ("labels", "float8", "float32, float16"),
    ),
    "x scalar": (lambda: fm.mix(torch.tensor(1.0), PLAN), ValueError, ("x ", "()", "batch dim")),
    "x of another batch": (lambda: fm.mix(X[:3], PLAN), ValueError, ("batch size of x", "3 != 4")),
    "x of another size": (lambda: fm.mix(X[..., :7], PLAN), ValueError, ("x ", "(4, 3, 8, 7)", "(8, 8)")),
    "x with too few dims": (lambda: fm.mix(X[:, 0, 0], PLAN), ValueError, ("x ", "(4, 8)", "(8, 8)")),
    "plan a tuple": (lambda: fm.mix(X, tuple(range(6))), TypeError, ("plan", "tuple", "MixPlan")),
    "plan None in place": (lambda: fm.mix_(X, None), TypeError, ("plan", "NoneType", "MixPlan")),
    "backend unknown": (lambda: fm.mix(X, PLAN, backend="cupy"), ValueError, ("backend", "cupy", "reference")),
    "labels float": (lambda: fm.mix_labels(Y.float(), PLAN, num_classes=4), ValueError, ("labels", "float32", "int64")),
    "labels bool": (lambda: fm.mix_labels(Y.bool(), PLAN, num_classes=4), ValueError, ("labels", "bool", "int64")),
    "labels complex": (
        lambda: fm.mix_labels(torch.zeros(4, 4).cfloat(), PLAN),
        ValueError,
        ("labels", "complex64", "real"),
    ),
    "labels a list": (
        lambda: fm.mix_labels([0, 1, 2, 3], PLAN, num_classes=4),
        ValueError,
        ("labels", "list", "tensor"),
    ),
    "labels 3D": (
        lambda: fm.mix_labels(Y.view(4, 1, 1), PLAN, num_classes=4),
        ValueError,
        ("labels", "(4, 1, 1)", "(batch"),
    ),
    "labels of another batch": (lambda: fm.mix_labels(Y[:2], PLAN, num_classes=4), ValueError, ("labels", "2 != 4")),
    "labels of other classes": (
        lambda: fm.mix_labels(torch.ones(4, 5), PLAN, num_classes=4),
        ValueError,
        ("When passing 2D labels", "num_classes", "5 != 4"),
    ),
    "labels out of range": (lambda: fm.mix_labels(Y, PLAN, num_classes=3), ValueError, ("labels", "3", "[0, 3)")),
    "labels negative": (lambda: fm.mix_labels(-Y, PLAN, num_classes=4), ValueError, ("labels", "-3", "[0, 4)")),
    "num_classes missing": (lambda: fm.mix_labels(Y, PLAN), ValueError, ("num_classes must be passed", "None")),
    "num_classes string": (lambda: fm.mix_labels(Y, PLAN, num_classes="4"), TypeError, ("num_classes", "'4'", "int")),
    "label_smoothing too large": (
        lambda: fm.mix_labels(Y, PLAN, num_classes=4, label_smoothing=2),
        ValueError,
        ("label_smoothing", "2", "[0, 1]"),
    ),
    "masks a list": (lambda: fm.mix_masks([0], PLAN), TypeError, ("masks", "list", "tensor")),
    "masks of another size": (
        lambda: fm.mix_masks(X[..., 1:].long(), PLAN),
        ValueError,
        ("masks", "(8, 8)", "(4, 3, 8, 7)"),
    ),
    "masks of another batch": (lambda: fm.mix_masks(X[:1].long(), PLAN), ValueError, ("masks", "1 != 4")),
    "masks with channels": (
        lambda: fm.mix_masks(X.long(), PLAN, num_classes=2),
        ValueError,
        ("label maps", "(4, 3, 8, 8)", "(batch_size, 1"),
    ),
    "mask classes zero": (
        lambda: fm.mix_masks(X[:, 0].long(), PLAN, num_classes=0),
        ValueError,
        ("num_classes", "0", ">= 1"),
    ),
    "masks out of range": (
        lambda: fm.mix_masks(X[:, 0].long() + 9, PLAN, num_classes=2),
        ValueError,
        ("masks", "9", "[0, 2)"),
    ),
    "masks blended": (
        lambda: fm.mix_masks(X[:, 0].long(), BLENDED),
        ValueError,
        ("masks", "int64", "mask_classes"),
    ),
    "masks complex": (lambda: fm.mix_masks(X[:, 0].cfloat(), PLAN), ValueError, ("masks", "complex64", "real")),
    "logits 3D": (
        lambda: fm.mix_cross_entropy(X[0], Y, PLAN),
        ValueError,
        ("logits", "(3, 8, 8)", "(batch_size, num_classes)"),
    ),
    "logits int": (
        lambda: fm.mix_cross_entropy(torch.ones(4, 4).long(), Y, PLAN),
        ValueError,
        ("logits", "int64", "float32"),
    ),
    "logits of another batch": (
        lambda: fm.mix_cross_entropy(torch.ones(3, 4), Y, PLAN),
        ValueError,
        ("logits", "3 != 4"),
    ),
    "reduction unknown": (
        lambda: fm.mix_cross_entropy(torch.ones(4, 4), Y, PLAN, reduction="avg"),
        ValueError,
        ("reduction", "avg", "mean, sum, none"),
    ),
    "loss labels out of range": (
        lambda: fm.mix_cross_entropy(torch.ones(4, 3), Y, PLAN),
        ValueError,
        ("labels", "3", "[0, 3)"),
    ),
}

CALL = {
    "nothing": (lambda m: m(), TypeError, ("batch", "no arguments")),
    "images only": (
        lambda m: m(X),
        ValueError,
        ("labels should be index based", "(4, 3, 8, 8)", "labels_getter=None"),
    ),
    "two stacks of images": (
        lambda m: m(X, X),
        ValueError,
        ("labels should be index based", "(4, 3, 8, 8)", "labels_getter=None"),
    ),
    "labels a string": (lambda m: m(X, "cat"), ValueError, ("default labels_getter", "str")),
    "two images, no labels key": (lambda m: m({"a": X, "b": X}), ValueError, ("Could not infer", "['a', 'b']")),
    "no image": (lambda m: m("cat", Y), ValueError, ("No image or video",)),
    "image 2D": (
        lambda m: m(X[:, 0, 0], Y),
        ValueError,
        (
            "Expected a batched input with 4 dims",
            "(4, 8)",
            "fusedmix.mix(x, plan)",
            "mix.sample(4, (8,))",
            "axes=(-1,)",
        ),
    ),
    "image 5D": (
        lambda m: m(X.unsqueeze(1), Y),
        ValueError,
        ("Expected a batched input with 4 dims", "(4, 1, 3, 8, 8)", "tv_tensors.Video", "axes=(-2, -1)"),
    ),
    "image 6D": (
        lambda m: m(X[:, None, None], Y),
        ValueError,
        ("Expected a batched input with 4 dims", "6 dimensions"),
    ),
    "image type 5D": (
        lambda m: m(tv_tensors.Image(X.unsqueeze(1)), Y),
        ValueError,
        ("Expected a batched input with 4 dims", "(4, 1, 3, 8, 8)"),
    ),
    "image an array": (lambda m: m(X.numpy(), Y), ValueError, ("No image or video", "a tensor", "ndarray")),
    "image nested": (lambda m: m(nested((3, 8)), Y), ValueError, ("images", "nested", "dense")),
    "image sparse": (lambda m: m(X.to_sparse(), Y), ValueError, ("images", "sparse", "dense")),
    "image complex": (lambda m: m(X.cfloat(), Y), ValueError, ("images", "complex64", "float32")),
    "image scalar": (lambda m: m(torch.tensor(1.0), Y), ValueError, ("4 dims", "0 dimensions", "()")),
    "images in doubt": (
        lambda m: m({"depth": X[:, :1], "rgb": X, "labels": Y}),
        ValueError,
        ("['depth'] of shape (4, 1, 8, 8)", "['rgb']", "images_getter=", "pixel_values"),
    ),
    "labels a list": (lambda m: m(X, [0, 1, 2, 3]), ValueError, ("default labels_getter", "list", "torch.as_tensor")),
    "labels an array": (lambda m: m(X, Y.numpy()), ValueError, ("default labels_getter", "ndarray", "torch.as_tensor")),
    "labels a list in a dict": (
        lambda m: m({"image": X, "labels": [0, 1, 2, 3]}),
        ValueError,
        ("labels must be a tensor", "list", "torch.as_tensor"),
    ),
    "labels in a column": (lambda m: m(X, Y.unsqueeze(1)), ValueError, ("labels", "(4, 1)", "squeeze(1)", "one-hot")),
    "labels sparse": (lambda m: m(X, torch.eye(4).to_sparse()), ValueError, ("labels", "sparse", "dense")),
    "labels nested": (lambda m: m(X, nested((3,))), ValueError, ("labels", "nested", "dense")),
    "image int32": (lambda m: m(X.int(), Y), ValueError, ("images", "int32", "float32")),
    "image without pixels": (lambda m: m(X[..., :0], Y), ValueError, ("pixel", "(8, 0)")),
    "batches differ": (lambda m: m(X, Y[:3]), ValueError, ("does not match the batch size of the labels", "4 != 3")),
    "label out of range": (lambda m: m(X, Y + 7), ValueError, ("labels", "10", "[0, 10)")),
    "label negative": (lambda m: m(X, Y - 1), ValueError, ("labels", "-1", "[0, 10)")),
    "labels float": (lambda m: m(X, Y.double()), ValueError, ("labels", "float64", "int64")),
    "labels wider": (lambda m: m(X, torch.ones(4, 11)), ValueError, ("When passing 2D labels", "11 != 10")),
}

GETTERS = {
    "labels_getter returns a list": (
        lambda: fm.MixUp(labels_getter=lambda s: [0], num_classes=9)(X, Y),
        ValueError,
        ("labels must be a tensor", "list"),
    ),
    "labels_getter returns a copy": (
        lambda: fm.MixUp(labels_getter=lambda s: s[1].clone(), num_classes=9)(X, Y),
        ValueError,
        ("labels_getter", "(4,)", "sample itself"),
    ),
    "images_getter returns a copy": (
        lambda: fm.MixUp(images_getter=lambda s: s[0].clone(), num_classes=9)(X, Y),
        ValueError,
        ("images_getter", "(4, 3, 8, 8)", "sample itself"),
    ),
    "images_getter returns nothing": (
        lambda: fm.MixUp(images_getter=lambda s: [], num_classes=9)(X, Y),
        ValueError,
        ("images_getter", "list", "tensor"),
    ),
    "stacks of two sizes": (
        lambda: fm.CutMix(images_getter=lambda s: s[::2], num_classes=9)(X, Y, X[..., 1:]),
        ValueError,
        ("spatial size", "(8, 7)", "(8, 8)"),
    ),
    "stacks of two batches": (
        lambda: fm.MixUp(images_getter=lambda s: s[::2], num_classes=9)(X, Y, X[1:]),
        ValueError,
        ("batch size", "3 != 4"),
    ),
    "num_classes missing": (lambda: fm.MixUp()(X, Y), ValueError, ("num_classes must be passed", "None")),
    "pairing by class without labels": (
        lambda: fm.MixUp(pairing="cross_class").sample(4, (8, 8)),
        ValueError,
        ("labels", "None", "cross_class"),
    ),
    "pairing by class of other labels": (
        lambda: fm.MixUp(pairing="same_class").sample(4, (8, 8), labels=Y[:3]),
        ValueError,
        ("labels", "3", "4"),
    ),
    "in place on shared memory": (
        lambda: fm.MixUp(inplace=True, num_classes=9, images_getter=lambda s: s[::2])(X, Y, X[:, 1:]),
        ValueError,
        ("images", "share memory", "Clone"),
    ),
    "masks out of range": (
        lambda: fm.MixUp(inplace=True, num_classes=9, mask_classes=3)(
            tv_tensors.Image(X), Y, tv_tensors.Mask(X[:, 0].long() + 3)
        ),
        ValueError,
        ("masks", "3", "[0, 3)"),
    ),
    "in place on a negated view": (
        lambda: fm.CutMix(inplace=True, num_classes=9)(negated(4, 3, 8, 8), Y),
        fm.InplaceError,
        ("images", "negated", "resolve_neg"),
    ),
    "axes beyond the images": (
        lambda: fm.CutMix(num_classes=9, axes=(-2, 4))(X, Y),
        ValueError,
        ("axes", "(-2, 4)", "(4, 3, 8, 8)"),
    ),
    "axes of attach": (
        lambda: attached_to(fm.CutMix())(X.unsqueeze(1)),
        ValueError,
        ("the model's input", "(4, 1, 3, 8, 8)", "tv_tensors.Video", "axes=(-2, -1)"),
    ),
    "inputs of attach in doubt": (
        lambda: attached_to(fm.CutMix())({"rgb": X, "depth": X[:, :1]}),
        ValueError,
        ("['rgb']", "['depth']", "inputs="),
    ),
    "by class without values": (
        lambda: fm.MixUp(pairing="same_class").sample(4, (8, 8), labels=Y.to("meta")),
        ValueError,
        ("labels", "meta", "values"),
    ),
    "drawn where there are no values": (
        lambda: fm.CutMix(num_classes=9, per="sample")(X.to("meta"), Y.to("meta")),
        ValueError,
        ("CutMix", "meta", "values"),
    ),
    "in place on a leaf": (
        lambda: fm.MixUp(inplace=True, num_classes=9)(X.clone().requires_grad_(), Y),
        ValueError,
        ("images", "requires grad", "no_grad"),
    ),
    "in place on expanded memory": (
        lambda: fm.MixUp(inplace=True, num_classes=9)(X[:1].expand(4, 3, 8, 8), Y),
        ValueError,
        ("images", "overlaps", "clone"),
    ),
}


def check(call, exception, fragments):
    tensors = [(t, t.clone(), t._version) for t in (X, Y, PLAN.partner, PLAN.value)]
    state, own = torch.get_rng_state(), GENERATOR.get_state()
    with pytest.raises(exception) as caught:
        call()
    message = str(caught.value)
    for fragment in fragments:
        assert fragment in message, message
    assert "Traceback" not in message
    assert torch.equal(torch.get_rng_state(), state), "something was drawn"
    assert torch.equal(GENERATOR.get_state(), own), "something was drawn"
    for tensor, before, version in tensors:
        assert torch.equal(tensor, before), "something was written"
        assert tensor._version == version, "something was written"
    return message


@pytest.mark.parametrize(
    "case", [*CONSTRUCTION.values(), *APPLY.values(), *GETTERS.values()], ids=[*CONSTRUCTION, *APPLY, *GETTERS]
)
def test_wrong_arguments(case):
    check(*case)


# What is no tensor that lies in memory as it is, of the shapes and the kinds of numbers that the functions take.
NO_DENSE = {
    "nested": lambda x: nested(x.shape[1:]),
    "jagged": lambda x: torch.nested.nested_tensor([x[0].float().reshape(-1, 1)] * len(x), layout=torch.jagged),
    "sparse": lambda x: x.to_sparse(),
    "csr": lambda x: x.reshape(len(x), -1).to_sparse_csr(),
    "quantized": lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.quint8),
    "opaque": lambda x: x.float().to_mkldnn(),
    "masked": lambda x: torch.masked.masked_tensor(x, torch.ones_like(x, dtype=torch.bool)),
    "array": lambda x: x.numpy(),
    "list": lambda x: x.tolist(),
    "tuple": lambda x: tuple(x.tolist()),
}
EMBEDDINGS, LOGITS, SOFT = torch.rand(4, 5, 6), torch.rand(4, 4), torch.eye(4)
TAKES = {
    "mix": (lambda v: fm.mix(v, PLAN), X),
    "mix_": (lambda v: fm.mix_(v, PLAN), X),
    "mix of one number": (lambda v: fm.mix(v, BLENDED, backend="reference"), X),
    "mix_labels": (lambda v: fm.mix_labels(v, PLAN, num_classes=4), Y),
    "mix_labels, soft": (lambda v: fm.mix_labels(v, PLAN), SOFT),
    "mix_masks": (lambda v: fm.mix_masks(v, PLAN), X[:, 0].long()),
    "mix_masks, dense": (lambda v: fm.mix_masks(v, PLAN), X),
    "mix_targets": (lambda v: fm.mix_targets(v, PLAN), SOFT),
    "mix_embeddings": (lambda v: fm.mix_embeddings(v, BLENDED), EMBEDDINGS),
    "mix_embeddings, mask": (lambda v: fm.mix_embeddings(EMBEDDINGS, BLENDED, v), torch.ones(4, 5)),
    "EmbedMix": (lambda v: fm.EmbedMix(num_classes=4)(v, None, Y), EMBEDDINGS),
    "EmbedMix, labels": (lambda v: fm.EmbedMix(num_classes=4)(EMBEDDINGS, None, v), Y),
    "cross entropy": (lambda v: fm.mix_cross_entropy(v, Y, PLAN), LOGITS),
    "cross entropy, labels": (lambda v: fm.mix_cross_entropy(LOGITS, v, PLAN), SOFT),
    "cross entropy, weight": (lambda v: fm.mix_cross_entropy(LOGITS, Y, PLAN, weight=v), torch.ones(4)),
    "binary": (lambda v: fm.mix_binary_cross_entropy(v, Y, PLAN), LOGITS),
    "binary, labels": (lambda v: fm.mix_binary_cross_entropy(LOGITS, v, PLAN), SOFT),
    "module": (lambda v: fm.CutMix(num_classes=4)(v, Y), X),
    "module in place": (lambda v: fm.MixUp(num_classes=4, inplace=True)(v, Y), X),
    "module without labels": (lambda v: fm.CutMix(labels_getter=None)({"image": v}), X),
    "module, classes": (lambda v: fm.CutMix(num_classes=4)(X, v), Y),
    "module, soft labels": (lambda v: fm.FMix()(X, v), SOFT),
    "module, sparse targets": (lambda v: fm.RandomMix([fm.MixUp()], targets="sparse")({"x": X, "labels": v}), SOFT),
    "by class": (lambda v: fm.MixUp(num_classes=4, pairing="cross_class").sample(4, (8, 8), labels=v), SOFT),
    "attach": (lambda v: attached_to(fm.CutMix())(v), X),
}


@pytest.mark.parametrize("kind", NO_DENSE)
@pytest.mark.parametrize("name", TAKES)
@pytest.mark.filterwarnings("ignore")  # of PyTorch: that nested, sparse and masked tensors may change
def test_what_is_no_dense_tensor(name, kind):
    """Each is refused in a sentence of ours, never in one of PyTorch's ("INTERNAL ASSERT", "please file an issue")."""
    call, fitting = TAKES[name]
    given = NO_DENSE[kind](fitting)
    message = check(lambda: call(given), (ValueError, TypeError), ())
    ours = "must be a dense tensor|must be a tensor|must hold a floating-point tensor|No image or video|labels_getter"
    assert re.search(ours, message), message


@pytest.mark.parametrize("case", SAMPLE.values(), ids=SAMPLE)
@pytest.mark.parametrize("sampling", ["host", "device"])
def test_wrong_samples(case, sampling):
    call, exception, fragments = case
    check(lambda: call(fm.CutMix(sampling=sampling)), exception, fragments)


@pytest.mark.parametrize("case", CALL.values(), ids=CALL)
@pytest.mark.parametrize("inplace", [False, True])
def test_wrong_batches(case, inplace):
    call, exception, fragments = case
    check(lambda: call(fm.CutMix(num_classes=10, inplace=inplace)), exception, fragments)


SETTING = {
    "p too large": ("p", 5, ValueError, ("p ", "5", "[0, 1]")),
    "p a list": ("p", [0.5, 0.5], TypeError, ("p ", "[0.5, 0.5]", "weights")),
    "label_smoothing negative": ("label_smoothing", -3, ValueError, ("label_smoothing", "-3", "[0, 1]")),
    "targets in capitals": ("targets", "Sparse", ValueError, ("targets", "Sparse", "Did you mean 'sparse'?")),
    "weights too many": ("weights", [1.0, 2.0, 3.0], ValueError, ("weights", "3", "2")),
    "generator a seed": ("generator", 3, TypeError, ("generator", "int", "torch.Generator")),
    "per": ("per", "sample", AttributeError, ("per", "'sample'", "Make a new RandomMix")),
    "methods": ("methods", [], AttributeError, ("methods", "[]", "Make a new RandomMix")),
    "variant": ("variant", "paper", AttributeError, ("RandomMix has no variant", "HMix")),
    "alpha": ("alpha", 0.5, AttributeError, ("RandomMix has no alpha", "MixUp")),
}


@pytest.mark.parametrize("case", SETTING.values(), ids=SETTING)
def test_wrong_settings(case):
    name, value, exception, fragments = case
    mix = fm.RandomMix([fm.MixUp(), fm.HMix()])
    before = repr(mix)
    check(lambda: setattr(mix, name, value), exception, fragments)
    assert repr(mix) == before


@pytest.mark.parametrize(("value", "exception"), [(-1.0, ValueError), (float("nan"), ValueError), ("1", TypeError)])
def test_a_wrong_alpha_is_not_set(value, exception):
    mix = fm.MixUp()
    with pytest.raises(exception, match="alpha"):
        mix.alpha = value
    assert mix.alpha == 1.0


def test_a_backend_that_cannot_run_says_why(monkeypatch):
    with pytest.raises(fm.BackendError, match=r"'cuda' cannot run on 'cpu' tensors: .+"):
        fm.mix(X, PLAN, backend="cuda")
    with monkeypatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)
        patch.setattr(fm.backends, "_chosen", {})
        with pytest.raises(fm.BackendError, match=r"'triton' cannot run on 'cpu' tensors: .+TRITON_INTERPRET=1"):
            fm.MixUp(num_classes=4, backend="triton")(X, Y)
    check(lambda: fm.backends.choose("cuda", "cpp"), fm.BackendError, ("'cpp'", "'cuda'"))


def test_the_environment_chooses_a_backend(monkeypatch):
    monkeypatch.setitem(os.environ, "FUSEDMIX_BACKEND", "reference")
    assert torch.equal(fm.mix(X, PLAN), fm.mix(X, PLAN, backend="reference"))
    monkeypatch.setitem(os.environ, "FUSEDMIX_BACKEND", "cuda")
    with pytest.raises(fm.BackendError, match="FUSEDMIX_BACKEND=cuda"):
        fm.mix(X, PLAN)
    fm.mix(X, PLAN, backend="reference")  # an argument beats the environment
    monkeypatch.setitem(os.environ, "FUSEDMIX_BACKEND", "fast")
    with pytest.raises(fm.BackendError, match=r"FUSEDMIX_BACKEND.*reference.*'fast'"):
        fm.mix(X, PLAN)


def test_the_report_of_backends_never_raises(monkeypatch):
    for named in ("", "reference", "cuda", "fast"):
        monkeypatch.setitem(os.environ, "FUSEDMIX_BACKEND", named)
        lines = {(line.name, line.device): line for line in fm.backends.report()}
        assert {name for name, _ in lines} == set(fm.backends.NAMES)
        assert all(line.reason for line in lines.values())
        assert lines["reference", "cpu"].works
        assert lines["reference", "cpu"].chosen == (
            named == "reference" or (named == "" and not lines["cpp", "cpu"].works)
        )
        assert lines["cpp", "cpu"].chosen == (named == "" and lines["cpp", "cpu"].works)


def test_the_optional_check_of_labels_on_a_device(monkeypatch):
    """On a device the range is checked only when asked for: seen through a CPU tensor that names another device."""

    class Elsewhere(torch.Tensor):
        device = torch.device("cuda")

    from fusedmix.checks import class_range

    labels = torch.tensor([0, 5]).as_subclass(Elsewhere)
    class_range(labels, 5)
    monkeypatch.setitem(os.environ, "FUSEDMIX_CHECK_LABELS", "1")
    with pytest.raises(ValueError, match="labels"):
        class_range(labels, 5)


@pytest.mark.parametrize("ignored", [None, -100, -1, 2, 4, 50])
def test_classes_that_are_ignored_may_be_outside(ignored):
    """Below, above, within the classes, the least, the largest or between others."""
    from fusedmix.checks import class_range

    for labels in itertools.combinations_with_replacement((-200, -100, -1, 0, 2, 4, 50, 60), 3):
        outside = [label for label in labels if label != ignored and not 0 <= label < 4]
        named = min(outside) if min(outside, default=0) < 0 else max(outside, default=0)
        with pytest.raises(ValueError, match=f"got {named}") if outside else contextlib.nullcontext():
            class_range(torch.tensor(labels), 4, ignore_index=ignored)


def test_host_sampling_refuses_capture(monkeypatch):
    """What a CUDA graph capture looks like to the host sampler; the capture itself needs a GPU."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match='sampling="device"'):
        fm.CutMix(num_classes=10)(X, Y)
