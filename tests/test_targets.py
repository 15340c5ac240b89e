"""What becomes of the labels of a batch: dense targets, smoothed ones, and sparse ones."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import one_hot
from torchvision import tv_tensors

import fusedmix as fm
from conftest import INTEGERS, refused
from samples import B, H, K, W, assert_blended, assert_targets, build, classes, every_module, images, run, soft_labels


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("num_classes", [None, K])
@pytest.mark.parametrize("targets", ["dense", "sparse"])
def test_class_numbers_in_a_column(dtype: torch.dtype, num_classes: int | None, targets: str) -> None:
    """(B, 1) integers are class numbers that nobody squeezed, not soft labels of one class."""
    y = classes(dtype).unsqueeze(1)
    for inplace in (False, True):
        with refused(ValueError, r"labels of shape \(6, 1\).*squeeze\(1\).*one-hot"):
            fm.CutMix(num_classes=num_classes, targets=targets, inplace=inplace)(images(), y)
    with refused(ValueError, r"squeeze\(1\)"):
        fm.CutMix(pairing="same_class").sample(B, (H, W), labels=y)


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
