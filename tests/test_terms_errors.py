"""Wrong calls with labels that are sums of terms."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torchvision import tv_tensors

import fusedmix as fm
from fusedmix.arguments import Terms
from wrong_calls import PLAN, X, Y, attached_to, check, wrong, wrong_type, wrong_value

LOGITS = torch.rand(4, 4)
PARTNER, WEIGHT = torch.tensor([[0, 1, 2]] * 4), torch.rand(4, 3, dtype=torch.float64)


def with_terms(partner=PARTNER, weight=WEIGHT):
    return replace(PLAN, terms=Terms(partner, weight))


LABELS = {
    "terms of one dim": wrong_value(
        lambda: fm.mix_labels(Y, with_terms(PARTNER[:, 0]), num_classes=4), "plan.terms.partner", "(4,)", "at least one"
    ),
    "no terms": wrong_value(
        lambda: fm.mix_targets(X, with_terms(PARTNER[:, :0], WEIGHT[:, :0])), "plan.terms.partner", "(4, 0)"
    ),
    "terms of another width": wrong_value(
        lambda: fm.mix_labels(Y, with_terms(weight=WEIGHT[:, :2]), num_classes=4),
        "plan.terms.weight",
        "(4, 3)",
        "(4, 2)",
    ),
    "weights of float32": wrong_value(
        lambda: fm.mix_accuracy(LOGITS, Y, with_terms(weight=WEIGHT.float())), "plan.terms.weight", "float64", "float32"
    ),
    "partners of int32": wrong_value(
        lambda: fm.mix_cross_entropy(LOGITS, Y, with_terms(PARTNER.int())), "plan.terms.partner", "int64", "int32"
    ),
    "terms of another batch": wrong_value(
        lambda: fm.mix_cross_entropy(LOGITS, Y, with_terms(PARTNER[:3])), "plan.terms.partner", "4 rows", "(3, 3)"
    ),
    "a partner that is none": wrong_value(
        lambda: fm.mix_binary_cross_entropy(LOGITS, Y, with_terms(PARTNER + 2)), "partner", "[0, 4)", "4"
    ),
    "labels out of range": wrong_value(lambda: fm.mix_labels(Y, with_terms(), num_classes=3), "labels", "3", "[0, 3)"),
    "classes out of range": wrong_value(
        lambda: fm.mix_cross_entropy(LOGITS[:, :3], Y, with_terms()), "labels", "3", "[0, 3)"
    ),
    "a criterion without a reduction": wrong_value(
        lambda: fm.attached(attached_to(fm.MixUp()))[0].wrap(lambda z, y: z.sum(), targets="sparse")(
            LOGITS, Y, plan=with_terms()
        ),
        "criterion",
        "reduction=None",
        'targets="dense"',
    ),
    "an ignored class that is none": wrong_type(
        lambda: fm.mix_binary_cross_entropy(LOGITS, Y, PLAN, ignore_index=1.0), "ignore_index", "1.0", "int"
    ),
    "a class ignored of soft labels": wrong_value(
        lambda: fm.mix_binary_cross_entropy(LOGITS, LOGITS, PLAN, ignore_index=2), "ignore_index", "2", "negative"
    ),
    "a class that is not the ignored one": wrong_value(
        lambda: fm.mix_binary_cross_entropy(LOGITS[:, :3], Y, PLAN, ignore_index=-1), "labels", "3", "[0, 3)"
    ),
}


MULTI = {
    "one sample": wrong_value(lambda: fm.MultiMix(k=1), "k must be", "[2, 8]", "1"),
    "nine samples": wrong_value(lambda: fm.MultiMix(k=9), "k must be", "[2, 8]", "9"),
    "k no int": wrong_type(lambda: fm.MultiMix(k=3.0), "k must be", "int", "3.0"),
    "alpha zero": wrong_value(lambda: fm.MultiMix(alpha=0.0), "alpha", "> 0", "0.0"),
    "weights a list": wrong_type(lambda: fm.MultiMix(weights=[0.5, 0.5]), "weights", "dirichlet, zeta", "[0.5, 0.5]"),
    "weights unknown": wrong_value(lambda: fm.MultiMix(weights="dirichlett"), "weights", "Did you mean 'dirichlet'?"),
    "gamma negative": wrong_value(lambda: fm.MultiMix(gamma=-1.0), "gamma", ">= 0", "-1.0"),
    "gamma set to nothing": wrong_type(lambda: setattr(fm.MultiMix(), "gamma", None), "gamma", "number", "None"),
    "k set": wrong(AttributeError, lambda: setattr(fm.MultiMix(), "k", 4), "k of a MultiMix", "fixed", "4"),
    "in place": wrong_value(lambda: fm.MultiMix(inplace=True), "inplace must be False for MultiMix"),
    "in place later": wrong_value(lambda: setattr(fm.MultiMix(), "inplace", True), "inplace must be False"),
    "by a function in place": wrong(
        fm.InplaceError, lambda: fm.mix_(X, fm.MultiMix().sample(4, (8, 8), seed=0)), "x cannot be mixed in place"
    ),
    "finish": wrong_value(lambda: fm.MultiMix(finish=fm.Finish(normalize=None)), "finish must be None for MultiMix"),
    "in a set": wrong_type(lambda: fm.RandomMix([fm.MixUp(), fm.MultiMix()]), "of fusedmix, but got MultiMix."),
    "attached": wrong_value(lambda: attached_to(fm.MultiMix()), "mix must be a method", "MultiMix"),
    "label maps": wrong_value(
        lambda: fm.MultiMix(num_classes=4, labels_getter=lambda sample: sample["y"])(
            {"image": X, "y": Y, "mask": tv_tensors.Mask(torch.zeros(4, 8, 8, dtype=torch.int64))}
        ),
        "label maps",
        "mask_classes",
    ),
}


@pytest.mark.parametrize("name", LABELS)
def test_wrong_labels(name):
    check(*LABELS[name])


@pytest.mark.parametrize("name", MULTI)
def test_wrong_mixing_of_several(name):
    check(*MULTI[name])
