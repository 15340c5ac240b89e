"""pairing="adjacent": of samples 2i and 2i+1 one is made."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.nn.functional import one_hot
from torchvision import tv_tensors

import fusedmix as fm
from callers import CPP

B, K = 8, 5
Y = torch.arange(B) % K
MAKE = {
    "MixUp": lambda **kw: fm.MixUp(**kw),
    "MixUp-law": lambda **kw: fm.MixUp(lam_law=("uniform", 0.2, 0.4), **kw),
    "CutMix": lambda **kw: fm.CutMix(**kw),
    "GMix": lambda **kw: fm.GMix(**kw),
    "FMix": lambda **kw: fm.FMix(**kw),
    "GridMix": lambda **kw: fm.GridMix(cells=(2, 2), **kw),
    "SpecMix": lambda **kw: fm.SpecMix(**kw),
    "SpectralMix": lambda **kw: fm.SpectralMix(**kw),
    "RandomMix": lambda **kw: fm.RandomMix([fm.MixUp(), fm.CutMix()], **kw),
}


@pytest.mark.parametrize("backend", ["reference", CPP])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize(("per", "sampling"), [("batch", "host"), ("batch", "device"), ("sample", "device")])
@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_pairs_become_one(make, per, sampling, layout, backend):
    """M·x[2i] + (1-M)·x[2i+1], of half as many draws as samples."""
    x = torch.randn(B, 3, 8, 6).contiguous(memory_format=layout)
    given = x.clone()
    mix = make(num_classes=K, pairing="adjacent", per=per, sampling=sampling, backend=backend)
    torch.manual_seed(4)
    out, targets = mix(x, Y)
    torch.manual_seed(4)
    plan = mix.sample(B, (8, 6))
    assert (plan.batch_size, plan.other_size) == (B // 2, B // 2)
    m = plan.mask().double().unsqueeze(1)
    torch.testing.assert_close(out.double(), m * x[0::2].double() + (1 - m) * x[1::2].double(), rtol=0, atol=1e-5)
    w, y = plan.weight.unsqueeze(1), one_hot(Y, K).double()
    torch.testing.assert_close(targets.double(), w * y[0::2] + (1 - w) * y[1::2], rtol=0, atol=1e-6)
    assert torch.equal(x, given)
    if per == "batch":
        assert (plan.lam == plan.lam[0]).all()


def test_it_is_pannss_mix():
    """Their do_mixup: x[0::2]·λ[0::2] + x[1::2]·λ[1::2], with λ[1::2] = 1 - λ[0::2], and so the tags."""
    x, tags = torch.randn(B, 50), torch.randint(2, (B, K)).float()
    mix = fm.MixUp(pairing="adjacent", per="sample")
    torch.manual_seed(0)
    out, targets = mix(x, tags)
    torch.manual_seed(0)
    lam = mix.sample(B, (50,)).lam
    both = torch.stack((lam, 1 - lam), 1).flatten()
    scaled, weighed = x * both[:, None], tags * both[:, None]
    torch.testing.assert_close(out, scaled[0::2] + scaled[1::2])
    torch.testing.assert_close(targets, weighed[0::2] + weighed[1::2])


def test_structures():
    """Images, masks and labels are halved; all else passes."""
    sample = {
        "image": tv_tensors.Image(torch.rand(B, 3, 8, 6)),
        "mask": tv_tensors.Mask(torch.randint(3, (B, 8, 6))),
        "label": Y,
        "name": list("abcdefgh"),
    }
    out = fm.CutMix(num_classes=K, pairing="adjacent")(sample)
    assert type(out["image"]) is tv_tensors.Image
    assert type(out["mask"]) is tv_tensors.Mask
    assert {len(out[key]) for key in ("image", "mask", "label")} == {B // 2}
    assert out["name"] == sample["name"]


def test_sparse_and_no_labels():
    x = torch.randn(B, 50)
    targets = fm.MixUp(targets="sparse", pairing="adjacent")(x, Y)[1]
    assert torch.equal(targets.labels, Y[0::2])
    assert torch.equal(targets.partner_labels, Y[1::2])
    assert fm.MixUp(labels_getter=None, pairing="adjacent")(x).shape == (B // 2, 50)


def test_lengths():
    x, n = torch.randn(B, 20), torch.tensor([20, 5, 6, 20, 1, 3, 17, 18])
    mix = fm.MixUp(num_classes=K, pairing="adjacent", per="sample")
    torch.manual_seed(0)
    out, targets = mix(x, Y, lengths=n)
    torch.manual_seed(0)
    plan = mix.sample(B, (20,), lengths=n)
    m = torch.minimum(n[0::2], n[1::2])
    torch.testing.assert_close(plan.weight, 1 - (1 - plan.lam.double()) * m / n[0::2], rtol=0, atol=1e-7)
    for i in range(B // 2):
        assert torch.equal(out[i, m[i] :], x[2 * i, m[i] :])
        mixed = plan.lam[i] * x[2 * i, : m[i]] + (1 - plan.lam[i]) * x[2 * i + 1, : m[i]]
        torch.testing.assert_close(out[i, : m[i]], mixed)
    assert torch.equal(targets, fm.mix_labels(Y[0::2], plan, other=Y[1::2], num_classes=K))


def test_losses():
    logits, plan = torch.randn(B // 2, K), fm.MixUp(pairing="adjacent", per="sample").sample(B, (50,))
    dense = F.cross_entropy(logits, fm.mix_labels(Y[0::2], plan, other=Y[1::2], num_classes=K))
    torch.testing.assert_close(fm.mix_cross_entropy(logits, Y[0::2], plan, other=Y[1::2]), dense)


def test_modes_and_small_batches():
    x, mix = torch.randn(B, 50), fm.MixUp(num_classes=K, pairing="adjacent", training_only=True)
    assert mix(x[:0], Y[:0])[0].shape == (0, 50)
    assert mix(x[:2], Y[:2])[0].shape == (1, 50)
    assert "pairing='adjacent'" in repr(mix)
    assert mix.pairing == "adjacent"
    assert torch.equal(mix.eval()(x, Y)[0], x)
    assert fm.RandomMix([fm.MixUp(pairing="adjacent"), fm.CutMix()]).pairing == "adjacent"
