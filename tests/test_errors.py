"""Wrong modules and wrong batches: what is said where keywords, attributes, samples and getters do not fit."""

from __future__ import annotations

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

import fusedmix as fm
from fusedmix.integrations.timm import Mixup
from wrong_calls import GENERATOR, X, Y, attached_to, check, negated, nested, wrong, wrong_type, wrong_value

CONSTRUCTION = {
    "alpha zero": wrong_value(lambda: fm.MixUp(alpha=0), "alpha", "0", "> 0"),
    "alpha negative": wrong_value(lambda: fm.CutMix(alpha=-1.0), "alpha", "-1.0", "> 0"),
    "alpha nan": wrong_value(lambda: fm.GMix(alpha=float("nan")), "alpha", "nan", "finite"),
    "alpha infinite": wrong_value(lambda: fm.HMix(alpha=float("inf")), "alpha", "inf", "finite"),
    "alpha string": wrong_type(lambda: fm.MixUp(alpha="1"), "alpha", "'1'", "number"),
    "alpha bool": wrong_type(lambda: fm.MixUp(alpha=True), "alpha", "True", "number"),
    "alpha positional": wrong_type(lambda: fm.MixUp(1.0), "positional"),
    "ratio too large": wrong_value(lambda: fm.HMix(ratio=1.5), "ratio", "1.5", "[0, 1]"),
    "ratio negative": wrong_value(lambda: fm.HMix(ratio=-0.1), "ratio", "-0.1", "[0, 1]"),
    "ratio of CutMix": wrong_type(
        lambda: fm.CutMix(ratio=0.5), "ratio", "unknown", "HMix, Cutout and GridMask take ratio"
    ),
    "num_classes zero": wrong_value(lambda: fm.MixUp(num_classes=0), "num_classes", "0", ">= 1"),
    "num_classes float": wrong_type(lambda: fm.MixUp(num_classes=10.0), "num_classes", "10.0", "int"),
    "num_classes bool": wrong_type(lambda: fm.MixUp(num_classes=True), "num_classes", "True", "int"),
    "pairing unknown": wrong_value(lambda: fm.MixUp(pairing="next"), "pairing", "next", "roll, flip, random"),
    "pairing None": wrong_type(lambda: fm.MixUp(pairing=None), "pairing", "None", "roll"),
    "per unknown": wrong_value(lambda: fm.MixUp(per="elem"), "per", "elem", "batch, pair, sample"),
    "pair without flip": wrong_value(lambda: fm.MixUp(per="pair", pairing="roll"), "pair", "roll", "flip"),
    "p too large": wrong_value(lambda: fm.MixUp(p=1.01), "p ", "1.01", "[0, 1]"),
    "p string": wrong_type(lambda: fm.MixUp(p="half"), "p ", "half", "number"),
    "label_smoothing negative": wrong_value(lambda: fm.MixUp(label_smoothing=-0.1), "label_smoothing", "-0.1", "[0"),
    "label_smoothing sparse": wrong_value(
        lambda: fm.MixUp(label_smoothing=0.1, targets="sparse"), "label_smoothing", "0.1", "sparse"
    ),
    "inplace int": wrong_type(lambda: fm.MixUp(inplace=1), "inplace", "1", "bool"),
    "sampling unknown": wrong_value(lambda: fm.MixUp(sampling="gpu"), "sampling", "gpu", "host, device"),
    "generator a seed": wrong_type(lambda: fm.MixUp(generator=0), "generator", "int", "torch.Generator"),
    "lam_range reversed": wrong_value(lambda: fm.MixUp(lam_range=(0.9, 0.1)), "lam_range", "0.9", "low <= high"),
    "lam_range outside": wrong_value(lambda: fm.MixUp(lam_range=(0.0, 1.5)), "lam_range[1]", "1.5", "[0, 1]"),
    "lam_range a number": wrong_type(lambda: fm.MixUp(lam_range=0.5), "lam_range", "0.5", "(low, high)"),
    "variant unknown": wrong_value(
        lambda: fm.HMix(variant="official"), "variant", "official", "Did you mean 'released'?"
    ),
    "backend unknown": wrong_value(lambda: fm.MixUp(backend="numba"), "backend", "numba", "reference"),
    "targets unknown": wrong_value(lambda: fm.MixUp(targets="soft"), "targets", "soft", "dense, sparse"),
    "labels_getter a string": wrong_value(lambda: fm.MixUp(labels_getter="y"), "labels_getter", "y", "callable"),
    "images_getter an int": wrong_value(lambda: fm.MixUp(images_getter=0), "images_getter", "0", "callable"),
    "mask_classes zero": wrong_value(lambda: fm.MixUp(mask_classes=0), "mask_classes", "0", ">= 1"),
    "mask_ignore_index float": wrong_type(lambda: fm.MixUp(mask_ignore_index=0.5), "mask_ignore_index", "0.5", "int"),
    "axes an int": wrong_type(lambda: fm.CutMix(axes=-1), "axes", "-1", "sequence of 1 to 3 ints"),
    "axes a string": wrong_type(lambda: fm.CutMix(axes="HW"), "axes", "'HW'", "sequence of 1 to 3 ints"),
    "axes of floats": wrong_type(lambda: fm.CutMix(axes=(-2.0, -1)), "axes[0]", "-2.0", "int"),
    "axes empty": wrong_value(lambda: fm.CutMix(axes=()), "axes", "()", "1 to 3"),
    "axes four": wrong_value(lambda: fm.CutMix(axes=(1, 2, 3, 4)), "axes", "(1, 2, 3, 4)", "1 to 3"),
    "axes the batch": wrong_value(lambda: fm.CutMix(axes=(0, 1)), "axes", "(0, 1)", "other than 0"),
    "axes twice": wrong_value(lambda: fm.CutMix(axes=(-1, -1)), "axes", "(-1, -1)", "different"),
    "sampling empty": wrong_value(lambda: fm.MixUp(sampling=""), "sampling", "''", "host, device"),
    "weights overflow": wrong_value(
        lambda: fm.RandomMix([fm.MixUp(), fm.MixUp()], [1e308, 1e308]), "weights", "1e+308", "finite sum"
    ),
    "methods disagree about generators": wrong_value(
        lambda: fm.RandomMix([fm.MixUp(generator=GENERATOR), fm.MixUp(generator=torch.Generator())]),
        "generator",
        "torch._C.Generator",
        "RandomMix",
    ),
    "training_only int": wrong_type(lambda: fm.MixUp(training_only=1), "training_only", "1", "bool"),
    "keyword misspelt": wrong_type(
        lambda: fm.CutMix(num_class=3),
        "'num_class'",
        "Did you mean 'num_classes'?",
        "It takes alpha, placement, aspect, minmax, fold, num_classes,",
    ),
    "keyword of another method": wrong_type(
        lambda: fm.GMix(ratio=0.5), "'ratio'", "HMix, Cutout and GridMask take ratio", "alpha"
    ),
    "keyword of timm": wrong_type(lambda: fm.MixUp(prob=0.5), "'prob'", "timm's prob is p", "It takes alpha"),
    "mode of timm": wrong_type(lambda: fm.CutMix(mode="elem"), "'mode'", 'per="sample"', 'pairing="flip"'),
    "alpha of timm": wrong_type(lambda: fm.MixUp(mixup_alpha=0.8), "'mixup_alpha'", "alpha of MixUp"),
    "keyword of kornia": wrong_type(
        lambda: fm.MixUp(same_on_batch=False), "'same_on_batch'", 'per="batch"', 'per="sample"'
    ),
    "lambda of kornia": wrong_type(
        lambda: fm.MixUp(lambda_val=(0.2, 0.5)), "'lambda_val'", 'lam_law=("uniform", 1 - b, 1 - a)'
    ),
    "keys of Composer": wrong_type(lambda: fm.MixUp(target_key="y"), "'target_key'", "labels_getter"),
    "format of Keras": wrong_type(lambda: fm.CutMix(data_format="channels_last"), "'data_format'", "axes=(1, 2)"),
    "per of timm": wrong_value(lambda: fm.CutMix(per="elem"), "per", "'elem'", "Did you mean 'sample'?"),
    "per in capitals": wrong_value(lambda: fm.CutMix(per="PAIR"), "per", "'PAIR'", "Did you mean 'pair'?"),
    "pairing misspelt": wrong_value(lambda: fm.MixUp(pairing="rand"), "pairing", "'rand'", "Did you mean 'random'?"),
    "weights as p": wrong_type(
        lambda: fm.RandomMix([fm.MixUp(), fm.CutMix()], p=[0.3, 0.7]),
        "p must be a number",
        "[0.3, 0.7]",
        "weights: RandomMix(methods, weights=",
    ),
    "variant of RandomMix": wrong_value(
        lambda: fm.RandomMix([fm.HMix()], variant="paper"), "variant", "'paper'", "method"
    ),
    "alpha of RandomMix": wrong_type(lambda: fm.RandomMix([fm.MixUp()], alpha=0.2), "'alpha'", "MixUp", "weights"),
    "torchvision's module": wrong_type(
        lambda: fm.RandomMix([v2.CutMix()]),
        "methods[0]",
        "torchvision.transforms.v2",
        "Take fusedmix.CutMix in its place",
    ),
    "classes for modules": wrong_type(
        lambda: fm.RandomMix([fm.MixUp, fm.CutMix]), "methods[0]", "the class MixUp", "fusedmix.MixUp()"
    ),
    "torchvision's module attached": wrong_type(
        lambda: fm.attach(torch.nn.Identity(), v2.MixUp()),
        "mix must be",
        "torchvision.transforms.v2",
        "Take fusedmix.MixUp in its place",
    ),
    "torchvision's module scheduled": wrong_type(
        lambda: fm.schedules.OffAfter(v2.MixUp(), 3),
        "mix must be",
        "torchvision.transforms.v2",
        "Take fusedmix.MixUp in its place",
    ),
    "inplace of EmbedMix": wrong_type(
        lambda: fm.EmbedMix(inplace=True),
        "'inplace'",
        "RandomMix, ",
        " take inplace",
        "It takes alpha, fold, lam_law, padding",
    ),
    "padding misspelt": wrong_value(lambda: fm.EmbedMix(padding="zero"), "padding", "'zero'", "'zeros'"),
    "keyword unknown": wrong_type(lambda: fm.MixUp(classes=3), "classes", "unknown", "num_classes"),
    "methods empty": wrong_value(lambda: fm.RandomMix([]), "methods", "none", "at least one"),
    "methods not a list": wrong_type(lambda: fm.RandomMix(fm.MixUp()), "methods", "MixUp", "list"),
    "methods nested": wrong_type(
        lambda: fm.RandomMix([fm.RandomMix([fm.MixUp()])]), "methods[0]", "RandomMix", "MixUp"
    ),
    "weights too few": wrong_value(lambda: fm.RandomMix([fm.MixUp(), fm.CutMix()], [1.0]), "weights", "1", "2"),
    "weights negative": wrong_value(lambda: fm.RandomMix([fm.MixUp()], [-1.0]), "weights[0]", "-1.0", ">= 0"),
    "weights zero": wrong_value(lambda: fm.RandomMix([fm.MixUp()], [0.0]), "weights", "[0.0]", "positive"),
    "weights a number": wrong_type(lambda: fm.RandomMix([fm.MixUp()], 1.0), "weights", "1.0", "sequence"),
    "methods disagree": wrong_value(
        lambda: fm.RandomMix([fm.MixUp(num_classes=3), fm.CutMix(num_classes=4)]), "num_classes", "[3, 4]", "RandomMix"
    ),
    "lam_range of RandomMix": wrong_value(
        lambda: fm.RandomMix([fm.MixUp()], lam_range=(0.1, 0.9)), "lam_range", "(0.1, 0.9)", "method"
    ),
}

# Words of other libraries, and misspelt ones: the error says which word of ours is meant.
HINTS = {
    "cutmix_alpha": wrong_type(lambda: fm.CutMix(cutmix_alpha=0.8), "alpha of CutMix"),
    "switch_prob": wrong_type(lambda: fm.RandomMix([fm.MixUp()], switch_prob=0.5), "weights of RandomMix"),
    "cutmix_minmax": wrong_type(lambda: fm.CutMix(cutmix_minmax=(0.2, 0.8)), "lam_range"),
    "correct_lam": wrong_type(lambda: fm.CutMix(correct_lam=True), "label weight"),
    "smoothing": wrong_type(lambda: fm.MixUp(smoothing=0.1), "label_smoothing"),
    "data_keys": wrong_type(lambda: fm.MixUp(data_keys=["input", "class"]), "images_getter"),
    "lam": wrong_type(lambda: fm.MixUp(lam=0.5), "sample(..., lam=)"),
    "seed": wrong_type(lambda: fm.MixUp(seed=0), "generator"),
    "transforms": wrong_type(lambda: fm.RandomMix(methods=[fm.MixUp()], transforms=[]), "methods of RandomMix"),
    "alpa": wrong_type(lambda: fm.MixUp(alpa=1.0), "Did you mean 'alpha'"),
    "decaypower": wrong_type(lambda: fm.FMix(decaypower=1.0), "Did you mean 'decay_power'"),
    "alpha of SamplePairing": wrong_type(lambda: fm.SamplePairing(alpha=0.5), "MixUp, ", "EmbedMix, ", " take alpha"),
    "p a tensor": wrong_type(
        lambda: fm.RandomMix([fm.MixUp()], p=torch.ones(1)), "weights: RandomMix(methods, weights="
    ),
    "pairing with a hyphen": wrong_value(lambda: fm.MixUp(pairing="cross-class"), "Did you mean 'cross_class'"),
    "sampling a device": wrong_value(lambda: fm.MixUp(sampling="cuda"), "Did you mean 'device'"),
    "calls": wrong_value(lambda: fm.attach(torch.nn.Identity(), fm.MixUp(), calls="al"), "Did you mean 'all'"),
    "timm's adapter": wrong_type(
        lambda: fm.RandomMix([Mixup()]), "fusedmix.integrations.timm.Mixup. Take fusedmix.MixUp"
    ),
}

SAMPLE = {
    "batch_size negative": wrong_value(lambda m: m.sample(-1, (8, 8)), "batch_size", "-1", ">= 0"),
    "batch_size float": wrong_type(lambda m: m.sample(4.0, (8, 8)), "batch_size", "4.0", "int"),
    "size an int": wrong_type(lambda m: m.sample(4, 8), "size", "8", "1 to 3"),
    "size empty": wrong_value(lambda m: m.sample(4, ()), "size", "()", "1 to 3"),
    "size four": wrong_value(lambda m: m.sample(4, (8, 8, 8, 8)), "size", "(8, 8, 8, 8)", "1 to 3"),
    "size zero": wrong_value(lambda m: m.sample(4, (8, 0)), "size[1]", "0", ">= 1"),
    "size float": wrong_type(lambda m: m.sample(4, (8.0, 8)), "size[0]", "8.0", "int"),
    "lam too large": wrong_value(lambda m: m.sample(4, (8, 8), lam=1.1), "lam", "1.1", "[0, 1]"),
    "lam nan": wrong_value(lambda m: m.sample(4, (8, 8), lam=float("nan")), "lam", "nan", "[0, 1]"),
    "lam string": wrong_type(lambda m: m.sample(4, (8, 8), lam="0.5"), "lam", "'0.5'", "number"),
    "lam wrong shape": wrong_value(lambda m: m.sample(4, (8, 8), lam=torch.ones(3)), "lam", "(3,)", "(4,)"),
    "lam integers": wrong_value(lambda m: m.sample(4, (8, 8), lam=torch.ones(4).long()), "lam", "int64", "float"),
    "lam sparse": wrong_value(lambda m: m.sample(4, (8, 8), lam=torch.ones(4).to_sparse()), "lam", "sparse", "dense"),
    "lam a list": wrong_type(lambda m: m.sample(4, (8, 8), lam=[0.5] * 4), "lam", "[0.5, 0.5, 0.5, 0.5]", "number"),
    "lam tensor outside": wrong_value(lambda m: m.sample(1, (8, 8), lam=torch.tensor([-0.5])), "lam", "-0.5", "[0, 1]"),
    "device unknown": wrong_value(lambda m: m.sample(4, (8, 8), device="gpu0"), "device", "'gpu0'", "'cuda:0'"),
    "seed float": wrong_type(lambda m: m.sample(4, (8, 8), seed=0.5), "seed", "0.5", "int"),
    "seed too large": wrong_value(lambda m: m.sample(4, (8, 8), seed=2**64), "seed", str(2**64), "in ["),
    "seed and generator": wrong_value(lambda m: m.sample(4, (8, 8), seed=0, generator=GENERATOR), "seed", "generator"),
    "generator a seed": wrong_type(lambda m: m.sample(4, (8, 8), generator=0), "generator", "int", "torch.Generator"),
}


CALL = {
    "nothing": wrong_type(lambda m: m(), "batch", "no arguments"),
    "images only": wrong_value(lambda m: m(X), "labels should be index based", "(4, 3, 8, 8)", "labels_getter=None"),
    "two stacks of images": wrong_value(
        lambda m: m(X, X), "labels should be index based", "(4, 3, 8, 8)", "labels_getter=None"
    ),
    "labels a string": wrong_value(lambda m: m(X, "cat"), "default labels_getter", "str"),
    "two images, no labels key": wrong_value(lambda m: m({"a": X, "b": X}), "Could not infer", "['a', 'b']"),
    "no image": wrong_value(lambda m: m("cat", Y), "No image or video"),
    "bytes 2D": wrong_value(
        lambda m: m(X[:, 0, 0].byte(), Y),
        "Expected a batched input with 4 dims",
        "(4, 8)",
        "must be floating point, for integers may be tokens, but are uint8",
        "axes=(-1,)",
    ),
    "tokens": wrong_value(lambda m: m(X[:, 0, 0].long(), Y), "(4, 8)", "are int64", "fusedmix.EmbedMix"),
    "image 6D": wrong_value(
        lambda m: m(X[:, None, None], Y),
        "Expected a batched input with 4 dims",
        "5 for videos",
        "6 dimensions",
        "axes=",
    ),
    "image type 5D": wrong_value(
        lambda m: m(tv_tensors.Image(X.unsqueeze(1)), Y), "Expected a batched input with 4 dims", "(4, 1, 3, 8, 8)"
    ),
    "image an array": wrong_value(lambda m: m(X.numpy(), Y), "No image or video", "a tensor", "ndarray"),
    "image nested": wrong_value(lambda m: m(nested((3, 8)), Y), "images", "nested", "dense"),
    "image sparse": wrong_value(lambda m: m(X.to_sparse(), Y), "images", "sparse", "dense"),
    "image complex": wrong_value(lambda m: m(X.cfloat(), Y), "images", "complex64", "float32"),
    "image scalar": wrong_value(lambda m: m(torch.tensor(1.0), Y), "4 dims", "0 dimensions", "()"),
    "images in doubt": wrong_value(
        lambda m: m({"depth": X[:, :1], "rgb": X, "labels": Y}),
        "['depth'] of shape (4, 1, 8, 8)",
        "['rgb']",
        "images_getter=",
        "pixel_values",
    ),
    "labels a list": wrong_value(lambda m: m(X, [0, 1, 2, 3]), "default labels_getter", "list", "torch.as_tensor"),
    "labels an array": wrong_value(lambda m: m(X, Y.numpy()), "default labels_getter", "ndarray", "torch.as_tensor"),
    "labels a list in a dict": wrong_value(
        lambda m: m({"image": X, "labels": [0, 1, 2, 3]}), "labels must be a tensor", "list", "torch.as_tensor"
    ),
    "labels in a column": wrong_value(lambda m: m(X, Y.unsqueeze(1)), "labels", "(4, 1)", "squeeze(1)", "one-hot"),
    "labels sparse": wrong_value(lambda m: m(X, torch.eye(4).to_sparse()), "labels", "sparse", "dense"),
    "labels nested": wrong_value(lambda m: m(X, nested(3)), "labels", "nested", "dense"),
    "image int32": wrong_value(lambda m: m(X.int(), Y), "images", "int32", "float32", "int16", "uint16"),
    "image without pixels": wrong_value(lambda m: m(X[..., :0], Y), "pixel", "(8, 0)"),
    "batches differ": wrong_value(lambda m: m(X, Y[:3]), "does not match the batch size of the labels", "4 != 3"),
    "label out of range": wrong_value(lambda m: m(X, Y + 7), "labels", "10", "[0, 10)"),
    "label negative": wrong_value(lambda m: m(X, Y - 1), "labels", "-1", "[0, 10)"),
    "labels float": wrong_value(lambda m: m(X, Y.double()), "labels", "float64", "int64"),
    "labels wider": wrong_value(lambda m: m(X, torch.ones(4, 11)), "When passing 2D labels", "11 != 10"),
}

GETTERS = {
    "labels_getter returns a list": wrong_value(
        lambda: fm.MixUp(labels_getter=lambda s: [0], num_classes=9)(X, Y), "labels must be a tensor", "list"
    ),
    "num_classes missing": wrong_value(lambda: fm.MixUp()(X, Y), "num_classes must be passed", "None"),
    "pairing by class without labels": wrong_value(
        lambda: fm.MixUp(pairing="cross_class").sample(4, (8, 8)), "labels", "None", "cross_class"
    ),
    "pairing by class of other labels": wrong_value(
        lambda: fm.MixUp(pairing="same_class").sample(4, (8, 8), labels=Y[:3]), "labels", "3", "4"
    ),
    "in place on shared memory": wrong_value(
        lambda: fm.MixUp(inplace=True, num_classes=9, images_getter=lambda s: s[::2])(X, Y, X[:, 1:]),
        "images",
        "share memory",
        "Clone",
    ),
    "in place on a negated view": wrong(
        fm.InplaceError,
        lambda: fm.CutMix(inplace=True, num_classes=9)(negated(4, 3, 8, 8), Y),
        "images",
        "negated",
        "resolve_neg",
    ),
    "int16 finished": wrong_value(
        lambda: fm.MixUp(num_classes=9, finish=fm.Finish(None))(X.short(), Y), "images", "uint8 or floating", "int16"
    ),
    "fill of int16": wrong_value(
        lambda: fm.Cutout(length=2, num_classes=9, fill=40000)(X.short(), Y),
        "fill",
        "-32768 to 32767",
        "int16",
        "40000",
    ),
    "fill of uint16": wrong_value(
        lambda: fm.Cutout(length=2, num_classes=9, fill=-1)(X.to(torch.uint16), Y), "fill", "0 to 65535", "uint16", "-1"
    ),
    "axes of attach": wrong_value(
        lambda: attached_to(fm.CutMix())(X[:, None, None]),
        "the model's input",
        "(4, 1, 1, 3, 8, 8)",
        "axes=",
        "(-2, -1)",
    ),
    "inputs of attach in doubt": wrong_value(
        lambda: attached_to(fm.CutMix())({"rgb": X, "depth": X[:, :1]}), "['rgb']", "['depth']", "inputs="
    ),
    "by class without values": wrong_value(
        lambda: fm.MixUp(pairing="same_class").sample(4, (8, 8), labels=Y.to("meta")), "labels", "meta", "values"
    ),
    "drawn where there are no values": wrong_value(
        lambda: fm.CutMix(num_classes=9, per="sample")(X.to("meta"), Y.to("meta")), "CutMix", "meta", "values"
    ),
}


@pytest.mark.parametrize(
    "case", [*CONSTRUCTION.values(), *HINTS.values(), *GETTERS.values()], ids=[*CONSTRUCTION, *HINTS, *GETTERS]
)
def test_wrong_arguments(case):
    check(*case)


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


def test_host_sampling_refuses_capture(monkeypatch):
    """What a CUDA graph capture looks like to the host sampler; the capture itself needs a GPU."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match='sampling="device"'):
        fm.CutMix(num_classes=10)(X, Y)
