"""Wrong calls with a finish: each is named before anything is drawn or written."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

import fusedmix as fm
from wrong_calls import GENERATOR, PLAN, X, Y, check, wrong_type, wrong_value

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLAIN = fm.Finish((MEAN, STD))
RANDOM = fm.Finish((MEAN, STD), hflip=0.5, erase=fm.Erase(0.5, value="pixel", count=2))
DRAWN = fm.CutMix(finish=RANDOM).sample(4, (8, 8))
LINE = fm.CutMix().sample(4, (8,))
BYTES = (X * 255).to(torch.uint8)
PIXELS = BYTES.permute(0, 2, 3, 1)
LABEL_MAPS = tv_tensors.Mask(torch.zeros(4, 8, 8, dtype=torch.int64))
MIXED = fm.MixUp(num_classes=4, finish=PLAIN)
DRAWING = fm.MixUp(num_classes=4, finish=RANDOM, generator=GENERATOR, sampling="device")

FINISHES = {
    "mean and std apart": wrong_type(lambda: fm.Finish(MEAN, STD), "normalize", "a pair (mean, std)", "0.485"),
    "a mapping": wrong_type(lambda: fm.Finish({"mean": MEAN, "std": STD}), "normalize", "pair (mean, std)", "{'mean'"),
    "arrays": wrong_type(lambda: fm.Finish((np.array(MEAN), np.array(STD))), "normalize[0]", "array", ".tolist()"),
    "mean of tensors": wrong_type(lambda: fm.Finish(((torch.tensor(0.1),), (0.1,))), "normalize[0]", "tensor(0.1"),
    "fewer stds": wrong_value(lambda: fm.Finish((MEAN, STD[:1])), "normalize", "as many means as stds", "3 and 1"),
    "std zero": wrong_value(lambda: fm.Finish((MEAN, (0.2, 0.0, 0.2))), "normalize[1][1]", "> 0", "0.0"),
    "std negative": wrong_value(lambda: fm.Finish((MEAN, (-0.2, 0.2, 0.2))), "normalize[1][0]", "> 0", "-0.2"),
    "std nan": wrong_value(lambda: fm.Finish(((0.5,), (float("nan"),))), "the std", "finite", "nan"),
    "std tiny": wrong_value(lambda: fm.Finish(((0.5,), (1e-42,))), "normalize", "range of float32", "1e-42"),
    "integers out": wrong_value(lambda: fm.Finish(None, torch.uint8), "dtype", "float32, float16", "torch.uint8"),
    "complex out": wrong_value(lambda: fm.Finish(None, torch.complex64), "dtype", "float32", "torch.complex64"),
    "NumPy's dtype": wrong_type(lambda: fm.Finish(None, np.float32), "dtype", "float32", "numpy.float32"),
    "format preserved": wrong_value(
        lambda: fm.Finish(None, memory_format=torch.preserve_format), "memory_format", "channels_last", "preserve"
    ),
    "hflip above one": wrong_value(lambda: fm.Finish(None, hflip=2), "hflip", "[0, 1]", "2"),
    "hflip a bool": wrong_type(lambda: fm.Finish(None, hflip=True), "hflip", "number", "True"),
    "erase a class": wrong_type(lambda: fm.Finish(None, erase=fm.Erase), "erase", "an Erase or None", "class"),
    "erase of torchvision": wrong_type(lambda: fm.Finish(None, erase=v2.RandomErasing()), "erase", "RandomErasing"),
    "fill of other channels": wrong_value(
        lambda: fm.Finish((MEAN, STD), erase=fm.Erase(value=(0.0, 0.0))),
        "normalize and erase.value",
        "3 of normalize and 2 of erase.value",
    ),
    "fill beyond float16": wrong_value(
        lambda: fm.Finish(None, torch.float16, erase=fm.Erase(value=1e5)), "erase.value", "float16", "65504", "100000"
    ),
    "order in small letters": wrong_value(lambda: fm.Finish(None, input_format="nhwc"), "nhwc", "Did you mean 'NHWC'?"),
    "order None": wrong_type(lambda: fm.Finish(None, input_format=None), "input_format", "NCHW, NHWC", "None"),
    "scale None": wrong_type(lambda: fm.Erase(scale=None), "scale must be a pair (low, high), but got None"),
    "ratio a number": wrong_type(lambda: fm.Erase(ratio=2.0), "ratio must be a pair (low, high), but got 2.0"),
    "value an array": wrong_type(lambda: fm.Erase(value=np.zeros(3)), "value", "one for each channel", "ndarray"),
    "count a bool": wrong_type(lambda: fm.Erase(count=True), "count", "int", "True"),
}
MODULES = {
    "finish a pair": wrong_type(lambda: fm.MixUp(finish=(MEAN, STD)), "finish", "fusedmix.Finish(normalize=", "tuple"),
    "finish a class": wrong_type(lambda: fm.MixUp(finish=fm.Finish), "finish must be a Finish", "but got Finish."),
    "finish a transform": wrong_type(lambda: fm.CutMix(finish=v2.Normalize(MEAN, STD)), "finish", "type Normalize"),
    "in place": wrong_value(lambda: fm.MixUp(finish=PLAIN, inplace=True), "finish", "None with inplace=True"),
    "in place, set": wrong_value(
        lambda: setattr(fm.MixUp(finish=PLAIN), "inplace", True), "finish", "None with inplace=True"
    ),
    "axes": wrong_value(lambda: fm.MixUp(finish=PLAIN, axes=(-1,)), "finish", "None with axes=(-1,)"),
    "embeddings": wrong_type(lambda: fm.EmbedMix(finish=PLAIN), "unknown keyword 'finish'", "MixUp, CutMix"),
    "methods that disagree": wrong_value(
        lambda: fm.RandomMix([fm.MixUp(finish=PLAIN), fm.CutMix(finish=RANDOM)]), "finish", "disagree"
    ),
    "other channels": wrong_value(
        lambda: MIXED(BYTES[:, :1], Y), "images", "a channel for each number of normalize", "3", "1 channels"
    ),
    "another order": wrong_value(lambda: MIXED(PIXELS, Y), "images", "8 channels", 'Is it input_format="NHWC"?'),
    "one of two images": wrong_value(
        lambda: MIXED({"a": tv_tensors.Image(BYTES), "b": tv_tensors.Image(BYTES[:, :2]), "labels": Y}),
        "images",
        "2 channels",
    ),
    "integers": wrong_value(lambda: MIXED(BYTES.int(), Y), "images", "float32, float16", "int32"),
    "signals": wrong_value(lambda: MIXED(BYTES[:, 0], Y), "images", "(B, C, H, W)", "(4, 8, 8)"),
    "volumes": wrong_value(lambda: MIXED(BYTES.unsqueeze(2), Y), "images", "(4, 3, 1, 8, 8)", "without finish="),
    "a list of images": wrong_value(lambda: MIXED(list(BYTES), Y), "images", "(B, C, H, W)", "(3, 8, 8)"),
    "no pixel": wrong_value(lambda: MIXED(BYTES[:, :, :0], Y), "at least one pixel", "(0, 8)"),
    "float64 of float32": wrong_value(
        lambda: fm.MixUp(num_classes=4, finish=fm.Finish(None, torch.float64))(X, Y), "float64", "images is float32"
    ),
    "grad": wrong_value(lambda: MIXED(X.clone().requires_grad_(), Y), "images must not require grad", "torch.no_grad"),
    "labels out of range": wrong_value(lambda: DRAWING(BYTES, Y + 1), "labels", "[0, 4)", "got 4"),
    "labels of fewer": wrong_value(lambda: DRAWING(BYTES, Y[:3]), "labels", "4 != 3"),
    "label maps": wrong_value(
        lambda: DRAWING({"image": tv_tensors.Image(BYTES), "mask": LABEL_MAPS, "labels": Y}), "hflip", "0.5", "masks"
    ),
    "another device's backend": wrong_value(
        lambda: fm.MixUp(num_classes=4, finish=RANDOM, backend="gpu")(BYTES, Y), "backend", "gpu"
    ),
}
FUNCTIONS = {
    "finish swapped": wrong_type(lambda: fm.finish(PLAIN, BYTES), "finish must be a Finish", "one of type Tensor"),
    "finish None": wrong_type(lambda: fm.finish(BYTES, None), "finish must be a Finish", "NoneType"),
    "mix by a pair": wrong_type(lambda: fm.mix(BYTES, PLAN, finish=(MEAN, STD)), "finish must be a Finish", "tuple"),
    "mix_": wrong_type(lambda: fm.mix_(BYTES, PLAN, finish=PLAIN), "finish"),
    "a list": wrong_type(lambda: fm.finish([X], PLAIN), "x ", "list", "tensor"),
    "one image": wrong_value(lambda: fm.finish(BYTES[0], PLAIN), "x ", "(B, C, H, W)", "(3, 8, 8)"),
    "rows of pixels": wrong_value(
        lambda: fm.finish(BYTES, dataclasses.replace(PLAIN, input_format="NHWC")), "x ", "8 channels", '"NCHW"?'
    ),
    "fill of other channels": wrong_value(
        lambda: fm.finish(BYTES, fm.Finish(None, erase=fm.Erase(value=(0.0, 1.0)))), "erase.value", "2", "3 channels"
    ),
    "float64 of bytes": wrong_value(
        lambda: fm.finish(BYTES, fm.Finish(None, torch.float64)), "float64", "x is uint8", "Ask for float32"
    ),
    "grad": wrong_value(lambda: fm.mix(X.clone().requires_grad_(), PLAN, finish=PLAIN), "x must not require grad"),
    "no plan": wrong_type(lambda: fm.mix(BYTES, None, finish=PLAIN), "plan must be a MixPlan", "NoneType"),
    "plan of fewer": wrong_value(lambda: fm.mix(BYTES[:3], PLAN, finish=PLAIN), "x", "3 != 4", "whole batch"),
    "plan of a line": wrong_value(lambda: fm.mix(BYTES, LINE, finish=PLAIN), "plan", "(H, W)", "(8,)"),
    "plan of another size": wrong_value(lambda: fm.mix(BYTES[..., :7], PLAN, finish=PLAIN), "x ", "(8, 8)", "8, 7"),
    "plan of the other order": wrong_value(
        lambda: fm.mix(PIXELS, LINE, finish=dataclasses.replace(PLAIN, input_format="NHWC")), "plan", "(8,)"
    ),
    "plan without draws": wrong_value(
        lambda: fm.mix(BYTES, PLAN, finish=RANDOM), "plan must say which samples are flipped", "made with this finish"
    ),
    "plan with draws": wrong_value(
        lambda: fm.mix(BYTES, DRAWN, finish=PLAIN), "plan must be without flips", "sample()"
    ),
    "plan with more holes": wrong_value(
        lambda: fm.mix(BYTES, DRAWN, finish=fm.Finish(None, hflip=0.5)), "plan.draws", "(4, 4)", "(4, 12)", "0 holes"
    ),
    "backend": wrong_value(lambda: fm.finish(BYTES, PLAIN, backend="numba"), "backend", "numba", "reference"),
}


@pytest.mark.parametrize("case", FINISHES.values(), ids=FINISHES)
def test_wrong_finishes(case):
    check(*case)


@pytest.mark.parametrize("case", MODULES.values(), ids=MODULES)
def test_wrong_modules_and_batches(case):
    check(*case)


@pytest.mark.parametrize("case", FUNCTIONS.values(), ids=FUNCTIONS)
def test_wrong_calls_of_functions(case):
    check(*case)


def test_a_finish_does_not_change():
    with pytest.raises(AttributeError, match="hflip"):
        PLAIN.hflip = 0.5
    with pytest.raises(AttributeError, match="p"):
        RANDOM.erase.p = 0.5
