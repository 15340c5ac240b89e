"""fusedmix.integrations.monai beside the live MONAI: the same draws, the same images, and labels that are right."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import required
from trainers import import_without

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what MONAI imports
    required("monai")
    from monai import transforms as theirs
    from monai.data import MetaTensor

    from fusedmix.integrations import monai as ours

pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")  # MONAI's own indexing
B, K = 6, 5
SIZES = [(12, 10), (6, 8, 7)]
each_size = pytest.mark.parametrize("size", SIZES, ids=str)
NAMES = ("MixUp", "CutMix", "CutOut")


def volumes(size: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.rand(B, 2, *size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def one_hot() -> Tensor:
    return torch.eye(K)[torch.arange(B) % K]


def both(name: str, seed: int, **options):
    made = [getattr(library, name)(B, **options) for library in (theirs, ours)]
    return [transform.set_random_state(seed=seed) or transform for transform in made]


@each_size
@pytest.mark.parametrize("alpha", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("name", NAMES)
def test_images_and_draws_are_monais(name, alpha, size):
    x = volumes(size)
    for seed in range(8):
        reference, transform = both(name, seed, alpha=alpha)
        for _ in range(2):
            expected, out = reference(x), transform(x)
            assert type(out) is Tensor
            # MONAI rounds two products and a sum; here there is one rounding.
            assert (out - expected).abs().max() <= (3 * 2.0**-24 if name == "MixUp" else 0)
        state, own = reference.R.get_state(), transform.R.get_state()
        assert all(np.array_equal(a, b) for a, b in zip(state, own, strict=True))


@each_size
def test_labels_of_mixup(size):
    _, transform = both("MixUp", 3)
    x, y = volumes(size), one_hot()
    maps = torch.nn.functional.one_hot(torch.randint(K, (B, *size)), K).movedim(-1, 1).float()
    out, targets = transform(x, y)
    lam, partner, _ = transform._params
    assert ((lam[:, None] * y + (1 - lam[:, None]) * y[partner]) - targets).abs().max() <= 2**-23
    reference, transform = both("MixUp", 4)
    (_, expected), (_, soft) = reference(x, maps), transform(x, maps)
    assert (soft - expected).abs().max() <= 2**-23
    assert out.shape == x.shape


@each_size
def test_labels_of_cutmix(size):
    """(B, K): the share of the image that is left, counted. Maps: cut as the image is, also of integers."""
    x = torch.arange(float(B)).reshape(B, *[1] * (1 + len(size))).expand(B, 1, *size).clone()
    maps = torch.randint(K, (B, 1, *size))
    for seed in range(6):
        _, transform = both("CutMix", seed)
        out, targets = transform(x, one_hot())
        partner = torch.from_numpy(transform._params[1])
        share = (out == x).flatten(1).double().mean(1)
        share = torch.where(partner == torch.arange(B), 1.0, share)
        expected = share[:, None] * one_hot() + (1 - share[:, None]) * one_hot()[partner]
        assert (targets - expected).abs().max() <= 2**-22
        reference, transform = both("CutMix", seed)
        (_, theirs_), (_, labels) = reference(x, maps), transform(x, maps)
        assert labels.dtype == torch.int64
        assert torch.equal(labels, theirs_)


def test_where_monai_is_wrong():
    """What docs/monai.md says: (B, K) labels are the partner's; those of MixUp are refused; without label_keys nothing
    is mixed; where a label is missing the images are the first sample; what is cut away spreads NaN."""
    x, y = volumes(SIZES[0]), one_hot()
    reference, transform = both("CutMix", 0)
    _, labels = reference(x, y)
    assert torch.equal(labels, y[reference._params[1]])
    assert not torch.equal(transform(x, y)[1], labels)
    reference, transform = both("MixUp", 0)
    with pytest.raises(ValueError, match="Unexpected number of dimensions"):
        reference(x, y)
    assert torch.allclose(transform(x, y)[1].sum(1), torch.ones(B))
    assert torch.equal(theirs.CutMixd("image", B)({"image": x})["image"], x)
    out = ours.CutMixd("image", B).set_random_state(seed=1)({"image": x})["image"]
    assert not torch.equal(out, x)
    assert theirs.CutMixd("image", B, label_keys="label")({"image": x})["image"].shape == x.shape[1:]
    with pytest.raises(KeyError, match=r"label_keys must be keys of data.*\['label'\]"):
        ours.CutMixd("image", B, label_keys="label")({"image": x})
    missing = ours.CutMixd("image", B, label_keys="label", allow_missing_keys=True)({"image": x})
    assert missing["image"].shape == x.shape
    bad = x.clone()
    bad[0, :, 0, 0] = math.nan
    assert [cut(bad).isnan().sum() > 2 for cut in both("CutMix", 2)] == [True, False]


@each_size
@pytest.mark.parametrize("name", NAMES)
def test_metatensors_and_arrays(name, size):
    """What comes keeps its type, its metadata and what was applied to it."""
    x = volumes(size)
    named = MetaTensor(x, meta={"filename_or_obj": ["scan"] * B, "affine": torch.eye(4) * 2})
    named.applied_operations = [{"class": "Orientation"}]
    for given in (named, x.numpy(), x):
        reference, transform = both(name, 5)
        expected, out = reference(given), transform(given)
        assert type(out) is type(expected) is type(given)
        assert out.dtype == given.dtype
        if given is named:
            assert out.applied_operations == expected.applied_operations == named.applied_operations
            assert out.meta.keys() == expected.meta.keys()
            assert torch.equal(out.affine, named.affine)
    assert torch.equal(named.as_tensor(), x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.uint8, torch.int16], ids=str)
@pytest.mark.parametrize("name", ["CutMix", "CutOut"])
def test_boxes_of_every_dtype(name, dtype):
    x = (volumes(SIZES[1]) * 100).to(dtype)
    reference, transform = both(name, 6)
    assert torch.equal(transform(x), reference(x))


def test_dictionaries():
    x, y = volumes(SIZES[1]), one_hot()
    maps = torch.randint(K, (B, 1, *SIZES[1]))
    for seed in range(4):
        data = {"image": x, "second": x * 2, "label": maps, "other": "kept"}
        for name, options in (
            ("MixUpd", {"keys": ("image", "second")}),
            ("CutMixd", {"keys": ("image", "second"), "label_keys": ("label", "label")}),
            ("CutOutd", {"keys": ("image", "second")}),
        ):
            reference, transform = (
                getattr(library, name)(batch_size=B, **options).set_random_state(seed=seed)
                for library in (theirs, ours)
            )
            if name == "CutMixd":
                reference.label_keys = ("label", "none")  # MONAI mixes a label for every key that it stands beside.
            expected, out = reference({**data, "none": maps}), transform(data)
            assert list(out) == list(data)
            for key in ("image", "second", "label"):
                assert torch.allclose(out[key], expected[key], atol=2**-22, rtol=0), (name, key)
            assert out["other"] == "kept"
    both_labels = ours.CutMixd("image", B, label_keys=("label", "map")).set_random_state(seed=2)
    out = both_labels({"image": x, "label": y, "map": maps})
    weight = both_labels.mixer._plan(SIZES[1]).weight
    partner = torch.from_numpy(both_labels.mixer._params[1])
    assert torch.allclose(out["label"], (weight[:, None] * y + (1 - weight[:, None]) * y[partner]).float())
    assert out["map"].dtype == maps.dtype
    assert not torch.equal(out["map"], maps)
    assert ours.MixUpd(["image", "label"], B)({"image": x, "label": maps.float()})["label"].shape == maps.shape
    assert ours.CutMixd("image", B, allow_missing_keys=True)({"other": 1}) == {"other": 1}
    assert (ours.MixUpDict, ours.CutMixD, ours.CutOutDict) == (ours.MixUpd, ours.CutMixd, ours.CutOutd)
    assert isinstance(ours.CutMixd("image", B), theirs.CutMixd)


def test_gradients_and_one_draw_for_several_tensors():
    transform = ours.MixUp(B).set_random_state(seed=0)
    x = volumes(SIZES[0]).requires_grad_()
    out = transform(x)
    out.sum().backward()
    assert torch.allclose(x.grad.mean(), torch.tensor(1.0))
    assert torch.equal(transform(x, randomize=False), out)


ERRORS = {
    "batch size": (lambda: ours.MixUp(B)(torch.rand(4, 1, 8, 8)), ValueError, r"data.*batch_size = 6.*\(4, 1, 8, 8\)"),
    "alpha": (lambda: ours.CutMix(B, alpha=0.0), ValueError, r"alpha must be finite and > 0, but got 0.0"),
    "alpha of a dictionary": (lambda: ours.MixUpd("image", B, -0.5), ValueError, "alpha|-0.5"),
    "batch_size": (lambda: ours.CutOut(0), ValueError, "batch_size must be >= 1, but got 0"),
    "labels of classes": (
        lambda: ours.MixUp(B)(volumes((4, 4)), torch.arange(B)),
        ValueError,
        r"labels must be floating point, one-hot \(B, K\).*int64 of shape \(6,\)",
    ),
    "maps of another size": (
        lambda: ours.CutMix(B)(volumes((4, 4)), torch.zeros(B, 1, 5, 4, dtype=torch.int64)),
        ValueError,
        r"labels must be floating point.*\(6, 1, 5, 4\)",
    ),
    "labels of another batch": (
        lambda: ours.CutMix(B)(volumes((4, 4)), torch.rand(4, K)),
        ValueError,
        r"labels must have batch_size = 6",
    ),
    "no spatial side": (lambda: ours.CutMix(B)(torch.rand(B, 3)), ValueError, r"1 to 3 spatial sides.*\(6, 3\)"),
    "int32": (lambda: ours.CutMix(B)(volumes((4, 4)).int()), ValueError, "data must have one of the dtypes.*int32"),
    "nothing drawn": (lambda: ours.CutOut(B)(volumes((4, 4)), randomize=False), ValueError, "randomize"),
}


@pytest.mark.parametrize("error", list(ERRORS))
def test_errors(error):
    call, exception, said = ERRORS[error]
    state = np.random.get_state()[1].copy()
    with pytest.raises(exception, match=said):
        call()
    assert np.array_equal(np.random.get_state()[1], state)


def test_another_number_of_sides_than_was_drawn_for():
    transform = ours.CutMix(B)
    transform(volumes((4, 4)))
    with pytest.raises(ValueError, match=r"data must have 2 spatial sides.*\(4, 4, 4\)"):
        transform(volumes((4, 4, 4)), randomize=False)


def test_a_smaller_image_than_was_drawn_for():
    """As MONAI: the corner may lie behind it, and then nothing is cut."""
    for seed in range(6):
        reference, transform = both("CutMix", seed)
        for each in (reference, transform):
            each(volumes((12, 10)))
        small = volumes((5, 4))
        assert torch.equal(transform(small, randomize=False), reference(small, randomize=False))


def test_without_monai(monkeypatch):
    assert "needs MONAI, which is not installed: pip install monai" in import_without(monkeypatch, "monai", "monai")


def test_the_mix_is_one_operator():
    """No mask in floating point is built: the plan's boxes are mixed as those of any module."""
    from callers import Recorded

    transform = ours.CutMix(B).set_random_state(seed=0)
    with Recorded() as recorded:
        transform(volumes(SIZES[1]))
    assert sum(name.endswith("::mix") for name in recorded.seen) == 1
