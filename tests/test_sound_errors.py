"""Wrong calls of what mixes sounds: levels, bands, lengths, adjacent samples, union labels."""

from __future__ import annotations

import pytest
import torch

import fusedmix as fm
from wrong_calls import BLENDED, GENERATOR, X, Y, attached_to, check, wrong_type, wrong_value

SOUNDS, LENGTHS = torch.rand(4, 3000), torch.tensor([3000, 1, 20, 7])
FINISH = fm.Finish(normalize=((0.5,) * 3, (0.2,) * 3))


def between(**options):
    return fm.BetweenClassMix(sample_rate=16000, num_classes=4, generator=GENERATOR, **options)


def adjacent(method=fm.MixUp, **options):
    return method(num_classes=4, pairing="adjacent", generator=GENERATOR, **options)


def mixup(**options):
    return fm.MixUp(num_classes=4, generator=GENERATOR, **options)


WRONG = {
    "no sample_rate": wrong_type(lambda: fm.BetweenClassMix(), "sample_rate"),
    "sample_rate zero": wrong_value(lambda: fm.BetweenClassMix(sample_rate=0), "sample_rate", ">= 1", "0"),
    "sample_rate float": wrong_type(lambda: fm.BetweenClassMix(sample_rate=16e3), "sample_rate", "int", "16000.0"),
    "window odd": wrong_value(lambda: fm.BetweenClassMix(sample_rate=8000, window=999), "window", "even", "999"),
    "inplace": wrong_value(lambda: between(inplace=True), "inplace must be False for BetweenClassMix", "True"),
    "finish": wrong_value(lambda: between(finish=FINISH), "finish must be None for BetweenClassMix"),
    "images": wrong_value(lambda: between()(X, Y), "Sounds must be (batch_size, samples)", "(8, 8)"),
    "bytes": wrong_value(
        lambda: between(axes=(-1,))(SOUNDS.byte(), Y), "x must be floating point", "uint8", "(4, 3000)"
    ),
    "no levels": wrong_value(lambda: between().sample(4, (3000,)), "levels must be given", "sound_levels"),
    "levels of others": wrong_value(
        lambda: between()(SOUNDS, Y, levels=torch.zeros(3)), "levels must be floating point of shape (4,)", "(3,)"
    ),
    "levels int": wrong_value(lambda: between()(SOUNDS, Y, levels=torch.arange(4)), "levels must be float", "int64"),
    "levels a list": wrong_type(lambda: between()(SOUNDS, Y, levels=[0.0] * 4), "levels must be a tensor", "list"),
    "levels NaN": wrong_value(
        lambda: between()(SOUNDS, Y, levels=torch.full((4,), float("nan"))), "levels must be finite"
    ),
    "between in a set": wrong_type(lambda: fm.RandomMix([between()]), "methods[0]", "BetweenClassMix"),
    "between attached": wrong_value(lambda: attached_to(between()), "mix must be", "BetweenClassMix"),
    "levels of one dim": wrong_value(lambda: fm.sound_levels(SOUNDS[0], 16000), "x must be floating", "(3000,)"),
    "levels of integers": wrong_value(lambda: fm.sound_levels(SOUNDS.long(), 16000), "x must be floating", "int64"),
    "levels of an array": wrong_type(lambda: fm.sound_levels(SOUNDS.numpy(), 16000), "x must be a tensor", "ndarray"),
    "levels of no samples": wrong_value(lambda: fm.sound_levels(SOUNDS[:, :0], 16000), "x must be floating", "(4, 0)"),
    "weighting": wrong_value(lambda: fm.sound_levels(SOUNDS, 16000, weighting="C"), "weighting", "A, none", "'C'"),
    "width outside": wrong_value(lambda: fm.SpecMix(width=1.5), "width", "[0, 1]", "1.5"),
    "width reversed": wrong_value(lambda: fm.SpecMix(width=(0.5, 0.1)), "width", "low <= high"),
    "bands too many": wrong_value(lambda: fm.SpecMix(time_bands=4), "time_bands", "[0, 3]", "4"),
    "bands reversed": wrong_value(lambda: fm.SpecMix(frequency_bands=(2, 1)), "frequency_bands[1]", "[2, 3]", "1"),
    "bands three": wrong_value(lambda: fm.SpecMix(time_bands=(0, 1, 2)), "time_bands", "(least, most)", "(0, 1, 2)"),
    "bands float": wrong_type(lambda: fm.SpecMix(time_bands=1.0), "time_bands", "int", "1.0"),
    "SpecMix of lam": wrong_value(lambda: fm.SpecMix().sample(4, (8, 8), lam=0.5), "lam must be None", "0.5"),
    "SpecMix of signals": wrong_value(
        lambda: fm.SpecMix(num_classes=4, generator=GENERATOR)(SOUNDS, Y), "two spatial sides", "(3000,)", "axes=(1, 2)"
    ),
    "lengths zero": wrong_value(lambda: mixup()(SOUNDS, Y, lengths=LENGTHS - 1), "lengths must be in [1, 3000]", "0"),
    "lengths too long": wrong_value(lambda: mixup().sample(4, (2999,), lengths=LENGTHS), "[1, 2999]", "3000"),
    "lengths float": wrong_value(lambda: mixup()(SOUNDS, Y, lengths=LENGTHS / 3000), "lengths must be int", "float32"),
    "lengths of others": wrong_value(lambda: mixup()(SOUNDS, Y, lengths=LENGTHS[:3]), "shape (4,)", "(3,)"),
    "lengths a list": wrong_type(lambda: mixup()(SOUNDS, Y, lengths=[1, 2, 3, 4]), "lengths must be a tensor", "list"),
    "lengths of MultiMix": wrong_value(
        lambda: fm.MultiMix(num_classes=4, generator=GENERATOR)(SOUNDS, Y, lengths=LENGTHS),
        "lengths must be None for MultiMix",
    ),
    "lengths of Cutout": wrong_value(
        lambda: fm.Cutout(length=3).sample(4, (3000,), lengths=LENGTHS), "lengths must be None for Cutout"
    ),
    "lengths with other": wrong_value(
        lambda: mixup()(SOUNDS, Y, other=(SOUNDS + 1, Y), lengths=LENGTHS), "lengths must be None with partners from"
    ),
    "lengths of stacks of several sizes": wrong_value(
        lambda: mixup(images_getter=lambda s: [s["x"], s["y"]])(
            {"x": SOUNDS, "y": SOUNDS[:, :9], "label": Y}, lengths=LENGTHS
        ),
        "one spatial size",
        "[(9,), (3000,)]",
    ),
    "odd batch": wrong_value(lambda: adjacent()(SOUNDS[:3], Y[:3]), "even", 'pairing="adjacent"', "3"),
    "odd plan": wrong_value(lambda: adjacent().sample(5, (8,)), "even", 'pairing="adjacent"', "5"),
    "adjacent in place": wrong_value(lambda: adjacent(inplace=True), "inplace must be False with", "half"),
    "adjacent set in place": wrong_value(lambda: setattr(adjacent(), "inplace", True), "inplace must be False with"),
    "adjacent finished": wrong_value(lambda: adjacent(finish=FINISH), "finish must be None with", "half"),
    "adjacent per pair": wrong_value(lambda: adjacent(per="pair"), 'per="pair" needs pairing="flip"', "adjacent"),
    "adjacent with other": wrong_value(
        lambda: adjacent()(SOUNDS, Y, other=(SOUNDS + 1, Y)), 'other must be None with pairing="adjacent"'
    ),
    "adjacent with partners": wrong_value(
        lambda: adjacent().sample(4, (8,), partner=torch.arange(4)), 'partner must be None with pairing="adjacent"'
    ),
    "adjacent MultiMix": wrong_value(lambda: adjacent(fm.MultiMix), 'pairing must not be "adjacent" for MultiMix'),
    "adjacent SaliencyMix": wrong_value(lambda: adjacent(fm.SaliencyMix), 'must not be "adjacent" for SaliencyMix'),
    "adjacent embeddings": wrong_value(lambda: fm.EmbedMix(pairing="adjacent"), 'not be "adjacent" for EmbedMix'),
    "adjacent attached": wrong_value(lambda: attached_to(adjacent()), "mix must leave a batch", "adjacent"),
    "union without classes": wrong_value(lambda: fm.union_labels(Y, BLENDED), "num_classes must be passed", "None"),
    "union out of range": wrong_value(lambda: fm.union_labels(Y, BLENDED, num_classes=3), "[0, 3)", "3"),
    "union of maps": wrong_value(lambda: fm.union_labels(X, BLENDED), "(batch_size,)", "(4, 3, 8, 8)"),
    "union of another batch": wrong_value(lambda: fm.union_labels(Y[:3], BLENDED, num_classes=4), "3 != 4"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls(case):
    check(*WRONG[case])
