"""Wrong calls of SpectralMix, of MixUp(lam_law=) and of spectrum_for."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision import tv_tensors

import fusedmix as fm
from fusedmix import analysis
from wrong_calls import GENERATOR, PLAN, X, Y, attached_to, check, wrong, wrong_type, wrong_value

EVEN = torch.full((6,), 0.3, dtype=torch.float64)
FINISH = fm.Finish(normalize=((0.5,) * 3, (0.2,) * 3))
TV = {"image": tv_tensors.Image(X), "mask": tv_tensors.Mask(torch.zeros(4, 8, 8, dtype=torch.uint8))}
WIDE = fm.SpectralMix(clamp=False).sample(4, (8, 8))


def mixed(**options):
    return fm.SpectralMix(generator=GENERATOR, num_classes=4, **options)(X, Y)


def by_law(law):
    return fm.MixUp(lam_law=law, generator=GENERATOR, num_classes=4)


WRONG = {
    "spectrum str": wrong_type(lambda: fm.SpectralMix(spectrum="pink"), "spectrum", "'pink'", "callable"),
    "spectrum negative": wrong_value(lambda: fm.SpectralMix(spectrum=-1.0), "spectrum", "[0, 100]", "-1"),
    "spectrum integers": wrong_value(
        lambda: fm.SpectralMix(spectrum=torch.ones(3, 3, dtype=torch.int64)), "spectrum", "floating point", "int64"
    ),
    "spectrum of no dims": wrong_value(lambda: fm.SpectralMix(spectrum=torch.tensor(1.0)), "1 to 3 dims", "()"),
    "spectrum empty": wrong_value(lambda: fm.SpectralMix(spectrum=torch.ones(0, 3)), "spectrum", "(0, 3)"),
    "spectrum with a negative power": wrong_value(
        lambda: fm.SpectralMix(spectrum=torch.tensor([1.0, -0.5])), "spectrum", "at least 0", "-0.5"
    ),
    "spectrum NaN": wrong_value(lambda: fm.SpectralMix(spectrum=torch.tensor([1.0, math.nan])), "spectrum", "finite"),
    "spectrum of no power": wrong_value(lambda: fm.SpectralMix(spectrum=torch.zeros(4)), "not 0 everywhere"),
    "spectrum of other dims": wrong_value(lambda: mixed(spectrum=torch.ones(9)), "spectrum", "(9,)", "(8, 8)"),
    "spectrum smaller than images": wrong_value(
        lambda: mixed(spectrum=torch.ones(7, 9)), "spectrum", "at least their sides", "(7, 9)", "(8, 8)"
    ),
    "spectrum returns a number": wrong_value(
        lambda: mixed(spectrum=lambda f: 1.0), "spectrum must return a tensor", "float"
    ),
    "spectrum returns another shape": wrong_value(
        lambda: mixed(spectrum=lambda f: f[0]), "spectrum must return a tensor of the shape", "(8, 5)"
    ),
    "spectrum returns infinity": wrong_value(
        lambda: mixed(spectrum=lambda f: 1.0 / (f - f.min())), "what spectrum returns", "finite"
    ),
    "spectrum on one pixel": wrong_value(lambda: fm.SpectralMix().sample(2, (1, 1)), "more than one pixel"),
    "contrast negative": wrong_value(lambda: fm.SpectralMix(contrast=-0.1), "contrast", ">= 0", "-0.1"),
    "contrast set": wrong_value(lambda: setattr(fm.SpectralMix(), "contrast", math.inf), "contrast", "inf"),
    "clamp int": wrong_type(lambda: fm.SpectralMix(clamp=1), "clamp", "1", "bool"),
    "alpha zero": wrong_value(lambda: fm.SpectralMix(alpha=0.0), "alpha", "> 0"),
    "lam outside": wrong_value(lambda: fm.SpectralMix(generator=GENERATOR).sample(4, (8, 8), lam=1.5), "lam", "[0, 1]"),
    "in a set": wrong_type(lambda: fm.RandomMix([fm.SpectralMix()]), "methods[0]", "SpectralMix"),
    "attached": wrong_value(lambda: attached_to(fm.SpectralMix()), "SpectralMix"),
    "in place, not clamped": wrong_value(
        lambda: fm.SpectralMix(clamp=False, inplace=True), "clamp", "inplace=True", "False"
    ),
    "inplace set": wrong_value(lambda: setattr(fm.SpectralMix(clamp=False), "inplace", True), "clamp", "inplace=True"),
    "clamp set": wrong_value(lambda: setattr(fm.SpectralMix(inplace=True), "clamp", False), "clamp", "inplace=True"),
    "finished, not clamped": wrong_value(
        lambda: fm.SpectralMix(clamp=False, finish=FINISH), "clamp", "finish=Finish", "False"
    ),
    "segmentation, not clamped": wrong_value(
        lambda: fm.SpectralMix(clamp=False, generator=GENERATOR, labels_getter=None, mask_classes=3)(TV),
        "clamp",
        "segmentation masks",
    ),
    "by a plan, in place": wrong(fm.InplaceError, lambda: fm.mix_(X, WIDE), "in place", "outside [0, 1]"),
    "label maps, not clamped": wrong_value(
        lambda: fm.mix_masks(torch.zeros(4, 8, 8, dtype=torch.int64), WIDE, num_classes=3), "masks", "outside [0, 1]"
    ),
    "finish, not clamped": wrong_value(lambda: fm.mix(X, WIDE, finish=FINISH), "x", "outside [0, 1]"),
    "embeddings, not clamped": wrong_value(lambda: fm.mix_embeddings(X[:, 0], WIDE), "outside [0, 1]"),
    "other of another dtype": wrong_value(lambda: fm.mix(X, WIDE, other=X.half()), "other", "float16", "float32"),
    "lam_law number": wrong_type(lambda: fm.MixUp(lam_law=0.5), "lam_law", "0.5", '("uniform", low, high)'),
    "lam_law name": wrong_value(lambda: fm.MixUp(lam_law=("gauss", 0, 1)), "lam_law[0]", "'gauss'", "uniform, normal"),
    "lam_law pair": wrong_type(lambda: fm.MixUp(lam_law=("uniform", 1)), "lam_law", "('uniform', 1)"),
    "lam_law backwards": wrong_value(lambda: fm.MixUp(lam_law=("uniform", 1, 0)), "lam_law", "low <= high"),
    "lam_law deviation": wrong_value(lambda: fm.MixUp(lam_law=("normal", 0.5, -1.0)), "lam_law[2]", "-1.0"),
    "lam_law infinite": wrong_value(lambda: fm.MixUp(lam_law=("uniform", 0, math.inf)), "lam_law[2]", "inf"),
    "lam_law a str": wrong_type(lambda: fm.MixUp(lam_law=("normal", "0", 1)), "lam_law[1]", "'0'"),
    "lam_law and lam_range": wrong_value(
        lambda: fm.MixUp(lam_law=("uniform", 0, 1), lam_range=(0.2, 0.8)), "lam_law", "lam_range", "(0.2, 0.8)"
    ),
    "lam_range set beside lam_law": wrong_value(
        lambda: setattr(by_law(("uniform", 0, 1)), "lam_range", (0.2, 0.8)), "lam_law", "lam_range"
    ),
    "lam_law set beside lam_range": wrong_value(
        lambda: setattr(fm.MixUp(lam_range=(0.2, 0.8)), "lam_law", ("uniform", 0, 1)), "lam_law", "lam_range"
    ),
    "lam_law in a set": wrong_value(
        lambda: fm.RandomMix([fm.CutMix(), by_law(("uniform", 0, 1))]), "methods[1]", "lam_law=None", "RandomMix"
    ),
    "lam_law set in a set": wrong(
        AttributeError,
        lambda: setattr(fm.RandomMix([fm.MixUp()]).methods[0], "lam_law", ("uniform", 0, 1)),
        "lam_law",
        "None",
        "RandomMix",
    ),
    "lam_law of CutMix": wrong_type(lambda: fm.CutMix(lam_law=("uniform", 0, 1)), "'lam_law'", "MixUp and EmbedMix"),
    "coefficients str": wrong_type(lambda: analysis.spectrum_for("flat", lam=0.5), "coefficients", "str"),
    "coefficients integers": wrong_value(
        lambda: analysis.spectrum_for(torch.ones(4, dtype=torch.int64), lam=0.5), "coefficients", "int64"
    ),
    "coefficients NaN": wrong_value(lambda: analysis.spectrum_for(EVEN * math.nan, lam=0.5), "coefficients", "finite"),
    "coefficients not even": wrong_value(
        lambda: analysis.spectrum_for(torch.tensor([0.4, 0.3, 0.2, 0.1]), lam=0.5), "coefficients", "even", "0.2"
    ),
    "coefficients of MixUp": wrong_value(
        lambda: analysis.spectrum_for(EVEN * 0 + 0.25, lam=0.5), "coefficients", "0.25", "MixUp"
    ),
    "coefficients of none": wrong_value(
        lambda: analysis.spectrum_for(torch.tensor([0.3, 0.5, 0.3, 0.5]), lam=0.5), "coefficients", "0.001", "inf"
    ),
    "size with a tensor": wrong_value(lambda: analysis.spectrum_for(EVEN, (6,), lam=0.5), "size", "None", "(6,)"),
    "no size with a callable": wrong_value(lambda: analysis.spectrum_for(torch.exp, lam=0.5), "size", "callable"),
    "coefficients return a number": wrong_value(
        lambda: analysis.spectrum_for(lambda d: 0.3, (6,), lam=0.5), "coefficients must return", "(12,)", "float"
    ),
    "lam of a design": wrong_value(lambda: analysis.spectrum_for(EVEN, lam=1.0), "lam", "(0, 1)", "1"),
    "tolerance negative": wrong_value(lambda: analysis.spectrum_for(EVEN, lam=0.5, tolerance=-1), "tolerance", "-1"),
    "exact, clamped": wrong_value(lambda: analysis.exact(fm.SpectralMix(), (8, 8), lam=0.5), "mix", "SpectralMix"),
    "exact of another size": wrong_value(
        lambda: analysis.exact(fm.SpectralMix(spectrum=torch.ones(4), clamp=False), (8,), lam=0.5), "spectrum", "(8,)"
    ),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_wrong_calls(case):
    check(*case)


@pytest.mark.parametrize("returned", [0.5, torch.ones(3), torch.ones(1, dtype=torch.int64), torch.full((4,), math.nan)])
def test_what_a_law_returns(returned):
    """Only when λ is drawn does it show; and no image has been written then."""
    before = X.clone()
    with pytest.raises(ValueError, match="lam_law must return"):
        by_law(lambda u: returned)(X, Y)
    assert torch.equal(X, before)
    assert PLAN.batch_size == 4
