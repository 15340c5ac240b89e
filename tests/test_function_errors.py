"""Wrong calls of functions: tensors, labels, plans and logits that do not fit, and tensors that are not dense."""

from __future__ import annotations

import contextlib
import itertools
import os
import re

import pytest
import torch

import fusedmix as fm
from wrong_calls import BLENDED, PLAN, X, Y, attached_to, check, negated, nested, wrong, wrong_type, wrong_value

LOGITS = torch.rand(4, 4)

APPLY = {
    "x a list": wrong_type(lambda: fm.mix([X], PLAN), "x ", "list", "tensor"),
    "x int64": wrong_value(lambda: fm.mix(X.long(), PLAN), "x ", "int64", "float32, float16, bfloat16"),
    "x complex": wrong_value(lambda: fm.mix(X.cfloat(), PLAN), "x ", "complex64", "float32"),
    "x sparse": wrong_value(lambda: fm.mix(X.to_sparse(), PLAN), "x ", "sparse", "dense"),
    "x an array": wrong_type(lambda: fm.mix(X.numpy(), PLAN), "x ", "ndarray", "torch.as_tensor"),
    "x nested": wrong_value(lambda: fm.mix(nested((8, 8)), PLAN), "x ", "a nested tensor", "dense"),
    "x negated in place": wrong(
        fm.InplaceError, lambda: fm.mix_(negated(4, 3, 8, 8), PLAN), "x ", "negated", "resolve_neg"
    ),
    "labels in a column": wrong_value(
        lambda: fm.mix_labels(Y.unsqueeze(1), PLAN), "labels", "(4, 1)", "int64", "squeeze(1)", "one-hot"
    ),
    "labels without classes": wrong_value(
        lambda: fm.mix_labels(torch.rand(4, 0), PLAN), "labels", "(4, 0)", "at least one class"
    ),
    "labels an array": wrong_value(
        lambda: fm.mix_labels(Y.numpy(), PLAN, num_classes=4), "labels", "ndarray", "tensor", "torch.as_tensor"
    ),
    "masks of another kind of numbers": wrong_value(
        lambda: fm.mix_masks(X[:, 0].byte().view(torch.bits8), PLAN), "masks", "bits8", "label maps"
    ),
    "targets a scalar": wrong_value(lambda: fm.mix_targets(torch.tensor(1.0), PLAN), "targets", "()", "(batch_size"),
    "soft labels wider than the logits": wrong_value(
        lambda: fm.mix_cross_entropy(torch.ones(4, 4), torch.ones(4, 5), PLAN),
        "labels",
        "the logits' classes",
        "5 != 4",
    ),
    "soft labels narrower than the logits": wrong_value(
        lambda: fm.mix_binary_cross_entropy(torch.ones(4, 4), torch.ones(4, 3), PLAN),
        "labels",
        "the logits' classes",
        "3 != 4",
    ),
    "loss labels in a column": wrong_value(
        lambda: fm.mix_cross_entropy(torch.ones(4, 4), Y.unsqueeze(1), PLAN), "labels", "(4, 1)", "squeeze(1)"
    ),
    "loss labels without values": wrong_value(
        lambda: fm.mix_cross_entropy(torch.ones(4, 4), Y.to("meta"), PLAN), "labels", "meta", "values"
    ),
    "labels of EmbedMix a list": wrong_type(
        lambda: fm.EmbedMix(num_classes=4)(X[:, 0], None, [0, 1, 2, 3]), "labels", "list", "torch.as_tensor"
    ),
    "labels of EmbedMix of eight bits": wrong_value(
        lambda: fm.EmbedMix(num_classes=4)(X[:, 0], None, torch.zeros(4).to(torch.float8_e5m2)),
        "float8_e5m2",
        "float32, float16",
    ),
    "labels of EmbedMix a scalar": wrong_value(
        lambda: fm.EmbedMix(num_classes=4)(X[:, 0], None, torch.tensor(1.0)), "labels", "4", "()"
    ),
    "lam beyond float32": wrong_value(lambda: fm.MixUp().sample(4, (8, 8), lam=1e300), "lam", "1e+300", "3.4"),
    "soft labels of eight bits": wrong_value(
        lambda: fm.mix_labels(torch.zeros(4, 3).to(torch.float8_e5m2), PLAN), "labels", "float8", "float32, float16"
    ),
    "x scalar": wrong_value(lambda: fm.mix(torch.tensor(1.0), PLAN), "x ", "()", "batch dim"),
    "x of another batch": wrong_value(lambda: fm.mix(X[:3], PLAN), "batch size of x", "3 != 4"),
    "x of another size": wrong_value(lambda: fm.mix(X[..., :7], PLAN), "x ", "(4, 3, 8, 7)", "(8, 8)"),
    "x with too few dims": wrong_value(lambda: fm.mix(X[:, 0, 0], PLAN), "x ", "(4, 8)", "(8, 8)"),
    "plan a tuple": wrong_type(lambda: fm.mix(X, tuple(range(6))), "plan", "tuple", "MixPlan"),
    "plan None in place": wrong_type(lambda: fm.mix_(X, None), "plan", "NoneType", "MixPlan"),
    "backend unknown": wrong_value(lambda: fm.mix(X, PLAN, backend="cupy"), "backend", "cupy", "reference"),
    "labels float": wrong_value(lambda: fm.mix_labels(Y.float(), PLAN, num_classes=4), "labels", "float32", "int64"),
    "labels bool": wrong_value(lambda: fm.mix_labels(Y.bool(), PLAN, num_classes=4), "labels", "bool", "int64"),
    "labels complex": wrong_value(
        lambda: fm.mix_labels(torch.zeros(4, 4).cfloat(), PLAN), "labels", "complex64", "real"
    ),
    "labels a list": wrong_value(lambda: fm.mix_labels([0, 1, 2, 3], PLAN, num_classes=4), "labels", "list", "tensor"),
    "labels 3D": wrong_value(
        lambda: fm.mix_labels(Y.view(4, 1, 1), PLAN, num_classes=4), "labels", "(4, 1, 1)", "(batch"
    ),
    "labels of another batch": wrong_value(lambda: fm.mix_labels(Y[:2], PLAN, num_classes=4), "labels", "2 != 4"),
    "labels of other classes": wrong_value(
        lambda: fm.mix_labels(torch.ones(4, 5), PLAN, num_classes=4), "When passing 2D labels", "num_classes", "5 != 4"
    ),
    "labels out of range": wrong_value(lambda: fm.mix_labels(Y, PLAN, num_classes=3), "labels", "3", "[0, 3)"),
    "labels negative": wrong_value(lambda: fm.mix_labels(-Y, PLAN, num_classes=4), "labels", "-3", "[0, 4)"),
    "num_classes missing": wrong_value(lambda: fm.mix_labels(Y, PLAN), "num_classes must be passed", "None"),
    "num_classes string": wrong_type(lambda: fm.mix_labels(Y, PLAN, num_classes="4"), "num_classes", "'4'", "int"),
    "label_smoothing too large": wrong_value(
        lambda: fm.mix_labels(Y, PLAN, num_classes=4, label_smoothing=2), "label_smoothing", "2", "[0, 1]"
    ),
    "masks a list": wrong_type(lambda: fm.mix_masks([0], PLAN), "masks", "list", "tensor"),
    "masks of another size": wrong_value(
        lambda: fm.mix_masks(X[..., 1:].long(), PLAN), "masks", "(8, 8)", "(4, 3, 8, 7)"
    ),
    "masks of another batch": wrong_value(lambda: fm.mix_masks(X[:1].long(), PLAN), "masks", "1 != 4"),
    "masks with channels": wrong_value(
        lambda: fm.mix_masks(X.long(), PLAN, num_classes=2), "label maps", "(4, 3, 8, 8)", "(batch_size, 1"
    ),
    "mask classes zero": wrong_value(
        lambda: fm.mix_masks(X[:, 0].long(), PLAN, num_classes=0), "num_classes", "0", ">= 1"
    ),
    "masks out of range": wrong_value(
        lambda: fm.mix_masks(X[:, 0].long() + 9, PLAN, num_classes=2), "masks", "9", "[0, 2)"
    ),
    "masks blended": wrong_value(lambda: fm.mix_masks(X[:, 0].long(), BLENDED), "masks", "int64", "mask_classes"),
    "masks complex": wrong_value(lambda: fm.mix_masks(X[:, 0].cfloat(), PLAN), "masks", "complex64", "real"),
    "masks blended in place": wrong_value(
        lambda: fm.mix_masks_(X[:, 0].long(), BLENDED), "masks", "int64", "mask_classes"
    ),
    "pixels without pixels": wrong_value(
        lambda: fm.mix_pixel_cross_entropy(torch.ones(4, 3), Y, PLAN), "logits", "(4, 3)", "*size"
    ),
    "maps that are dense": wrong_value(
        lambda: fm.mix_pixel_cross_entropy(X, X, PLAN), "maps", "float32", "integers or bool of shape (4, 8, 8)"
    ),
    "maps of another size": wrong_value(
        lambda: fm.mix_pixel_cross_entropy(X, X[:, 0, 1:].long(), PLAN), "maps", "(4, 7, 8)", "(4, 8, 8)"
    ),
    "maps out of range": wrong_value(
        lambda: fm.mix_pixel_cross_entropy(X, X[:, 0].long() + 9, BLENDED), "maps", "9", "[0, 3)"
    ),
    "a pixel's label a number": wrong_type(
        lambda: fm.mix_pixel_cross_entropy(X, X[:, 0].long(), PLAN, ignore_index=0.5), "ignore_index", "0.5", "int"
    ),
    "dice without smooth": wrong_value(
        lambda: fm.mix_pixel_dice(X, X[:, 0].long(), PLAN, smooth=0), "smooth", "0", "> 0"
    ),
    "logits 3D": wrong_value(
        lambda: fm.mix_cross_entropy(X[0], Y, PLAN), "logits", "(3, 8, 8)", "(batch_size, num_classes)"
    ),
    "logits int": wrong_value(
        lambda: fm.mix_cross_entropy(torch.ones(4, 4).long(), Y, PLAN), "logits", "int64", "float32"
    ),
    "logits of another batch": wrong_value(lambda: fm.mix_cross_entropy(torch.ones(3, 4), Y, PLAN), "logits", "3 != 4"),
    "logits without classes": wrong_value(
        lambda: fm.mix_cross_entropy(torch.ones(4, 0), Y, PLAN), "logits must have at least one class"
    ),
    "ignore_index a float": wrong_type(
        lambda: fm.mix_cross_entropy(LOGITS, Y, PLAN, ignore_index=1.0), "ignore_index must be an int, but got 1.0"
    ),
    "label that is not the ignored one": wrong_value(
        lambda: fm.mix_cross_entropy(LOGITS, Y - 100, PLAN, ignore_index=-1), "labels", "but got -100"
    ),
    "sum_classes an int": wrong_type(
        lambda: fm.mix_binary_cross_entropy(LOGITS, Y, PLAN, sum_classes=1), "sum_classes must be a bool"
    ),
    "target_threshold a string": wrong_type(
        lambda: fm.mix_binary_cross_entropy(LOGITS, Y, PLAN, target_threshold="0.5"), "target_threshold", "a number"
    ),
    "pos_weight of other classes": wrong_value(
        lambda: fm.mix_binary_cross_entropy(LOGITS, Y, PLAN, pos_weight=torch.ones(3)), "pos_weight", "floating point"
    ),
}

LOSSES = {
    "label out of range": wrong_value(lambda loss: loss(LOGITS[:, :3], Y, PLAN), "labels", "[0, 3), but got 3"),
    "label negative": wrong_value(lambda loss: loss(LOGITS, Y - 1, PLAN), "labels", "[0, 4), but got -1"),
    "weight of other classes": wrong_value(
        lambda loss: loss(LOGITS, Y, PLAN, weight=torch.ones(3)), "weight", "of shape (4,), one number for each class"
    ),
    "weight of ints": wrong_value(
        lambda loss: loss(LOGITS, Y, PLAN, weight=torch.ones(4).long()), "weight must be floating point"
    ),
    "weight that is learned": wrong_value(
        lambda loss: loss(LOGITS, Y, PLAN, weight=torch.ones(4, requires_grad=True)), "weight must not require grad"
    ),
    "weight a list": wrong_type(
        lambda loss: loss(LOGITS, Y, PLAN, weight=[1.0] * 4), "weight must be a tensor, but got list"
    ),
    "reduction": wrong_value(
        lambda loss: loss(LOGITS, Y, PLAN, reduction="avg"), "reduction must be one of mean, sum, none, but got 'avg'"
    ),
    "label_smoothing": wrong_value(
        lambda loss: loss(LOGITS, Y, PLAN, label_smoothing=1.5), "label_smoothing must be in [0, 1], but got 1.5"
    ),
    "backend": wrong_value(lambda loss: loss(LOGITS, Y, PLAN, backend="cudnn"), "backend must be one of"),
}


@pytest.mark.parametrize("case", APPLY.values(), ids=APPLY)
def test_wrong_calls(case):
    check(*case)


@pytest.mark.parametrize("loss", [fm.mix_cross_entropy, fm.mix_binary_cross_entropy])
@pytest.mark.parametrize("case", LOSSES.values(), ids=LOSSES)
def test_wrong_losses(loss, case):
    call, *rest = case
    check(lambda: call(loss), *rest)


# These make something that is no dense tensor, of the shapes and the kinds of numbers that the functions take.
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
EMBEDDINGS, SOFT = torch.rand(4, 5, 6), torch.eye(4)
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
    "mix, finished": (lambda v: fm.mix(v, PLAN, finish=fm.Finish(None)), X),
    "finish": (lambda v: fm.finish(v, fm.Finish(None)), X),
    "module": (lambda v: fm.CutMix(num_classes=4)(v, Y), X),
    "module with a finish": (lambda v: fm.CutMix(num_classes=4, finish=fm.Finish(None))(v, Y), X),
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
@pytest.mark.filterwarnings("ignore")  # PyTorch warns that these kinds of tensors may change.
def test_what_is_no_dense_tensor(name, kind):
    """Each is refused in a sentence of ours, never in one of PyTorch's ("INTERNAL ASSERT", "please file an issue")."""
    call, fitting = TAKES[name]
    given = NO_DENSE[kind](fitting)
    message = check(lambda: call(given), (ValueError, TypeError), ())
    ours = "must be a dense tensor|must be a tensor|must hold a floating-point tensor|No image or video|labels_getter"
    assert re.search(ours, message), message


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
