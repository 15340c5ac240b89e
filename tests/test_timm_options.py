"""The timm integration without its batches: signature, wrong options and batches, the switch, copies, and imports."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import fusedmix as fm
from test_timm import MODES, needs_any_timm, needs_timm, np, ours, state, timm

# ---- the switch ----


class Constant(Dataset):
    """Sample i is an image of the value i."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return np.full((3, 4, 4), i, np.uint8), i


def is_mixed(targets: Tensor) -> bool:
    return bool(((targets != 0) & (targets != 1)).any())


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_the_switch_reaches_running_workers(context):
    collate = ours.FastCollateMixup(mixup_alpha=8.0, label_smoothing=0.0, num_classes=8)
    loader = DataLoader(
        Constant(), 4, num_workers=1, persistent_workers=True, collate_fn=collate, multiprocessing_context=context
    )
    for on in (True, False, True):
        collate.mixup_enabled = on
        for images, targets in loader:
            assert is_mixed(targets) == on
            constant = targets.argmax(1).byte().reshape(-1, 1, 1, 1).expand(images.shape)
            assert torch.equal(images, constant) != on
    loader._iterator._shutdown_workers()


@needs_any_timm
def test_the_switch_of_timms_loader():
    collate = ours.FastCollateMixup(mixup_alpha=8.0, label_smoothing=0.0, num_classes=8)
    inner = DataLoader(Constant(), 4, num_workers=1, persistent_workers=True, collate_fn=collate)
    loader = timm.data.loader.PrefetchLoader(inner, device=torch.device("cpu"))
    assert loader.mixup_enabled
    assert all(is_mixed(targets) for _, targets in loader)
    loader.mixup_enabled = False  # timm's train.py does so for --mixup-off-epoch.
    assert not collate.mixup_enabled
    assert not any(is_mixed(targets) for _, targets in loader)
    inner._iterator._shutdown_workers()


@pytest.mark.parametrize("cls", ["Mixup", "FastCollateMixup"])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_has_a_switch_of_its_own(cls, duplicate):
    mixup = getattr(ours, cls)(0.4, 0.6, None, 0.9, 0.3, "pair", False, 0.2, 12, True)
    mixup.mixup_enabled = False
    twin = duplicate(mixup)
    assert type(twin) is type(mixup)
    assert not twin.mixup_enabled
    twin.mixup_enabled = True
    assert not mixup.mixup_enabled
    attributes = [{k: v for k, v in vars(m).items() if k != "_switch"} for m in (mixup, twin)]
    assert attributes[0] == attributes[1]


# ---- signature, errors, imports ----


@needs_timm
@pytest.mark.parametrize("cls", ["Mixup", "FastCollateMixup"])
def test_signature_and_attributes_are_timms(cls):
    theirs, mine = (inspect.signature(getattr(module, cls)).parameters for module in (timm.data, ours))
    positional = [p for p in mine.values() if p.kind is not p.KEYWORD_ONLY]
    assert [(p.name, p.default) for p in positional] == [(p.name, p.default) for p in theirs.values()]
    for arguments in ((), (0.4, 0.6, (0.2, 0.7), 0.9, 0.3, "pair", False, 0.2, 12, True)):
        timms, made = getattr(timm.data, cls)(*arguments), getattr(ours, cls)(*arguments)
        for name, value in vars(timms).items():
            assert getattr(made, name) == value


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mixup_alpha": -0.1}, ValueError, "mixup_alpha must be finite and >= 0"),
        ({"cutmix_alpha": float("nan")}, ValueError, "cutmix_alpha must be"),
        ({"mixup_alpha": "1"}, TypeError, "mixup_alpha must be a number"),
        ({"cutmix_minmax": 0.5}, TypeError, "cutmix_minmax must be a pair"),
        ({"cutmix_minmax": (0.1, 0.2, 0.3)}, ValueError, "cutmix_minmax must be a pair"),
        ({"cutmix_minmax": (0.5, 0.5)}, ValueError, "cutmix_minmax must have low < high"),
        ({"cutmix_minmax": (0.5, 1.5)}, ValueError, r"cutmix_minmax\[1\] must be in"),
        ({"prob": 1.1}, ValueError, "prob must be in"),
        ({"switch_prob": -1}, ValueError, "switch_prob must be in"),
        ({"mode": None}, TypeError, "mode must be a str"),
        ({"correct_lam": 1}, TypeError, "correct_lam must be a bool"),
        ({"label_smoothing": 2}, ValueError, "label_smoothing must be in"),
        ({"num_classes": 0}, ValueError, "num_classes must be >= 1"),
        ({"num_classes": 1.5}, TypeError, "num_classes must be an int"),
        ({"multi_label": None}, TypeError, "multi_label must be a bool"),
        ({"backend": "fast"}, ValueError, "backend must be one of"),
    ],
)
@pytest.mark.parametrize("cls", ["Mixup", "FastCollateMixup"])
def test_bad_options(cls, options, error, message):
    with pytest.raises(error, match=message):
        getattr(ours, cls)(**options)


@pytest.mark.parametrize(("cls", "mode"), [("Mixup", "elm"), ("Mixup", "half"), ("FastCollateMixup", "halves")])
def test_unknown_mode(cls, mode):
    with pytest.raises(ValueError, match=f"mode must be one of batch, pair, elem.*{mode}"):
        getattr(ours, cls)(mode=mode)


IMAGE = torch.rand(4, 3, 8, 8)


@pytest.mark.parametrize(
    ("options", "x", "labels", "message"),
    [
        ({}, [1, 2], torch.arange(4), "x must be a tensor"),
        ({}, IMAGE.long(), torch.arange(4), "x must have one of the dtypes"),
        ({}, IMAGE, [0, 1, 2, 3], "target must be a tensor"),
        ({}, IMAGE, torch.arange(3), "target must have one label for each of 4 images"),
        ({}, IMAGE, torch.tensor([0, 1, 2, 10]), r"target must be in \[0, num_classes\)"),
        ({}, IMAGE, torch.tensor([0, -1, 2, 3]), r"target must be in \[0, num_classes\)"),
        ({}, IMAGE, torch.rand(4), "1D labels must have one of the dtypes"),
        ({}, IMAGE, torch.rand(4, 9), "last dimension must match num_classes"),
        ({"multi_label": True}, IMAGE, torch.arange(4), "target must be dense"),
        ({"mixup_alpha": 0.0}, IMAGE, torch.arange(4), "One of mixup_alpha and cutmix_alpha must be > 0"),
        ({"cutmix_alpha": 1.0}, torch.rand(4, 8), torch.arange(4), "CutMix needs images"),
        ({"cutmix_alpha": 1.0}, torch.rand(4, 3, 0, 8), torch.arange(4), "CutMix needs images"),
        ({"cutmix_minmax": (0.01, 0.1)}, IMAGE, torch.arange(4), "cutmix_minmax must leave a choice"),
        ({}, torch.rand(1, 3, 8, 8).expand(4, 3, 8, 8), torch.arange(4), "x cannot be mixed in place"),
        ({"backend": "cuda"}, IMAGE, torch.arange(4), "cannot run on 'cpu' tensors"),
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_bad_batches_draw_and_write_nothing(mode, options, x, labels, message):
    mixup = ours.Mixup(**{"num_classes": 10, "mode": mode, **options})
    before = copy.deepcopy(x)
    drawn = state()
    with pytest.raises((TypeError, ValueError, fm.BackendError), match=message):
        mixup(x, labels)
    assert state() == drawn
    assert torch.equal(x, before) if isinstance(x, Tensor) else x == before


BYTES = np.zeros((3, 4, 4), dtype=np.uint8)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([], "batch must hold at least one sample"),
        (3, "batch must be a sequence"),
        ([BYTES, BYTES], r"batch\[0\] must be a sample"),
        ([(BYTES, 0), (None, 1)], r"image of batch\[1\] must be an array or a tensor"),
        ([(BYTES, 0), (BYTES.astype(np.float32), 1)], r"image of batch\[1\] must be uint8, but got float32"),
        ([(torch.zeros(3, 4, 4), 0), (BYTES, 1)], r"image of batch\[0\] must be uint8, but got torch.float32"),
        ([(BYTES, 0), (BYTES[:, 1:], 1)], "images must have one shape"),
        ([(BYTES, 0), (BYTES, 10)], r"target must be in \[0, num_classes\)"),
        ([(BYTES[0, 0], 0), (BYTES[0, 0], 1)], "CutMix needs images"),
    ],
)
@pytest.mark.parametrize("mode", [*MODES, "half"])
def test_bad_samples_draw_nothing(mode, batch, message):
    drawn = state()
    with pytest.raises((TypeError, ValueError), match=message):
        ours.FastCollateMixup(cutmix_alpha=1.0, mode=mode, num_classes=10)(batch)
    assert state() == drawn


def test_no_timm_is_needed():
    code = (
        "import sys; sys.modules['timm'] = None\n"
        "import numpy, torch, fusedmix\n"
        "assert 'fusedmix.integrations' not in sys.modules\n"
        "from fusedmix.integrations.timm import FastCollateMixup, Mixup\n"
        "x, t = Mixup(cutmix_alpha=1., num_classes=4)(torch.rand(4, 3, 8, 8), torch.arange(4))\n"
        "mixup = FastCollateMixup(num_classes=4)\n"
        "x, t = mixup([(numpy.zeros((3, 8, 8), numpy.uint8), i) for i in range(4)])\n"
        "assert isinstance(mixup, Mixup) and mixup.__class__ is FastCollateMixup\n"
        "assert not any(name.split('.')[0] == 'timm' for name in sys.modules if name != 'timm')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
