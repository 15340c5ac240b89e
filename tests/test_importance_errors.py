"""Wrong calls of what takes or makes importance maps: each error names the argument, what came and what is allowed, and
comes before anything is drawn or written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import fusedmix as fm
from wrong_calls import X, Y, check, wrong, wrong_type, wrong_value

NET = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(2), nn.Flatten(), nn.Linear(256, 4))
MAPS = torch.rand(4, 5, 5)
SAL, SNAP = fm.SaliencyMix(num_classes=4), fm.SnapMix(num_classes=4)
FINISH = fm.Finish(normalize=None)


def of_maps(maps):
    return lambda: SAL.sample(4, (8, 8), importance=maps)


def holding(value):
    maps = MAPS.clone()
    maps[2, 1, 1] = value
    return maps


WRONG = {
    "a list": wrong_type(of_maps([1, 2]), "importance", "list", "torch.as_tensor"),
    "an array": wrong_type(of_maps(np.ones((4, 5, 5))), "importance", "ndarray", "torch.as_tensor"),
    "no batch dim": wrong_value(of_maps(MAPS[0]), "importance", "(4, height, width)", "(5, 5)"),
    "channels": wrong_value(of_maps(MAPS[:, None]), "importance", "(4, height, width)", "(4, 1, 5, 5)"),
    "another batch": wrong_value(of_maps(MAPS[:3]), "importance", "4 samples", "(3, 5, 5)"),
    "no pixels": wrong_value(of_maps(MAPS[:, :0]), "importance", "(4, 0, 5)"),
    "complex": wrong_value(of_maps(MAPS.to(torch.complex64)), "importance", "real numbers", "complex64"),
    "sparse": wrong_value(of_maps(MAPS.to_sparse()), "importance", "dense", "sparse"),
    "NaN": wrong_value(of_maps(holding(torch.nan)), "importance", "finite", "NaN"),
    "infinity": wrong_value(of_maps(holding(torch.inf)), "importance", "finite", "infinities"),
    "maps of signals": wrong_value(
        lambda: fm.SnapMix().sample(4, (9,), importance=MAPS), "importance", "(4, length)", "(4, 5, 5)"
    ),
    "no maps for a plan": wrong_value(lambda: SAL.sample(4, (8, 8)), "importance", "SaliencyMix", "a map for each"),
    "a function for a plan": wrong_type(
        lambda: SAL.sample(4, (8, 8), importance=fm.spectral_saliency), "importance", "tensor of maps", "function"
    ),
    "no maps for a batch": wrong_value(lambda: SNAP(X, Y), "importance", "SnapMix", "class_activation_map"),
    "maps of another batch": wrong_value(lambda: SAL(X, Y, importance=MAPS[:3]), "importance", "(3, 5, 5)"),
    "a function that returns none": wrong_type(
        lambda: SAL(X, Y, importance=lambda images: None), "importance", "return a tensor of maps", "NoneType"
    ),
    "a function that returns other maps": wrong_value(
        lambda: SAL(X, Y, importance=lambda images: images), "importance", "(4, height, width)", "(4, 3, 8, 8)"
    ),
    "no function": wrong_type(lambda: SAL(X, Y, importance="spectral"), "importance", "function", "'spectral'"),
    "a module's maps": wrong_type(
        lambda: fm.SaliencyMix(importance=MAPS), "importance of a module", "function", "a tensor", "with it"
    ),
    "a module's list": wrong_type(lambda: fm.SnapMix(importance=[1]), "importance", "function", "[1]"),
    "a class": wrong_type(lambda: fm.SnapMix(importance=nn.Conv2d), "importance", "function", "the class Conv2d"),
    "set to a number": wrong_type(lambda: setattr(SAL, "importance", 3), "importance", "function", "3"),
    "finished": wrong_value(lambda: fm.SaliencyMix(finish=FINISH), "finish", "None", "SaliencyMix", "Finish"),
    "finished later": wrong_value(lambda: setattr(SAL, "finish", FINISH), "finish", "None", "SaliencyMix"),
    "in place": wrong_value(lambda: fm.SnapMix(inplace=True), "inplace", "SnapMix", "False"),
    "alpha": wrong_value(lambda: fm.SnapMix(alpha=0), "alpha", "> 0", "0"),
    "no top": wrong_value(lambda: fm.AttentiveCutMix(top=0), "top", "[1, 49]", "0"),
    "more than all": wrong_value(lambda: fm.AttentiveCutMix(cells=(2, 3), top=7), "top", "[1, 6]", "7"),
    "half a cell": wrong_type(lambda: fm.AttentiveCutMix(top=1.5), "top", "int", "1.5"),
    "no cells": wrong_value(lambda: fm.AttentiveCutMix(cells=(0, 3)), "cells[0]", ">= 1", "0"),
    "too many cells": wrong_value(
        lambda: fm.AttentiveCutMix(cells=(9, 9)).sample(4, (8, 8), importance=MAPS), "cells[0]", "8 pixels", "9"
    ),
    "top later": wrong(AttributeError, lambda: setattr(fm.AttentiveCutMix(), "top", 3), "top", "fixed", "3"),
    "in a set": wrong_type(lambda: fm.RandomMix([fm.MixUp(), SAL]), "methods[1]", "SaliencyMix"),
    "attached": wrong_value(lambda: fm.attach(NET, SAL), "SaliencyMix", "images of a batch"),
    "no images": wrong_type(lambda: fm.spectral_saliency([1]), "images", "list"),
    "images without channels": wrong_value(
        lambda: fm.spectral_saliency(MAPS[0]), "images", "(batch_size, channels, *sides)", "(5, 5)"
    ),
    "complex images": wrong_value(lambda: fm.spectral_saliency(X.to(torch.complex64)), "images", "real", "complex64"),
    "signals": wrong_value(lambda: fm.fine_grained_saliency(MAPS), "images", "height, width", "(4, 5, 5)"),
    "no model": wrong_type(lambda: fm.class_activation_map(abs, "1"), "model", "torch.nn.Module", "builtin"),
    "no model for gradients": wrong_type(lambda: fm.input_gradient(NET.forward), "model", "Module", "method"),
    "no loss": wrong_type(lambda: fm.input_gradient(NET, "mse"), "loss", "function", "str"),
    "no layer of that name": wrong_value(
        lambda: fm.class_activation_map(nn.ModuleDict({"stage": NET}), "stag"), "layer", "'stag'", "mean 'stage'"
    ),
    "a layer elsewhere": wrong_value(lambda: fm.class_activation_map(NET, nn.ReLU()), "layer", "none of its modules"),
    "a number for a layer": wrong_type(lambda: fm.class_activation_map(NET, 3), "layer", "its name", "int"),
    "a layer without sides": wrong_value(
        lambda: fm.class_activation_map(NET, "3")(X), "layer", "channels, *sides", "(4, 256)"
    ),
    "logits that are none": wrong_value(
        lambda: fm.class_activation_map(NET[:2], "1")(X), "model", "num_classes", "(4, 4, 8, 8)"
    ),
    "classes that the model has not": wrong_value(
        lambda: fm.class_activation_map(NET, "1")(X, Y + 2), "labels", "[0, 4)", "5"
    ),
    "labels of another batch": wrong_value(
        lambda: fm.class_activation_map(NET, "1")(X, Y[:2]), "labels", "4 samples", "2"
    ),
    "gradients without labels": wrong_value(lambda: fm.input_gradient(NET)(X), "labels", "None"),
    "bytes": wrong_value(lambda: fm.input_gradient(NET)(X.byte(), Y), "images", "floating point", "uint8"),
    "a loss of nothing": wrong_value(
        lambda: fm.input_gradient(NET, lambda logits, y: y.float().sum())(X, Y), "loss", "depend on the images"
    ),
}


@pytest.mark.parametrize(("call", "exception", "fragments"), WRONG.values(), ids=WRONG)
def test_wrong_calls(call, exception, fragments):
    check(call, exception, fragments)


def test_a_layer_that_the_logits_do_not_depend_on():
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.aside, self.net = nn.Conv2d(3, 2, 1), NET

        def forward(self, x):
            self.aside(x)
            return self.net(x)

    model = Aside()
    check(*wrong_value(lambda: fm.class_activation_map(model, "aside")(X), "layer", "depend on"))


def test_a_layer_that_is_never_called():
    model = nn.Sequential(NET)
    model.unused = nn.Conv2d(3, 2, 1)
    model.forward = NET.forward
    check(*wrong_value(lambda: fm.class_activation_map(model, "unused")(X), "layer", "depend on"))
