"""Token embeddings with their masks, and targets that are numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

import fusedmix as fm
from conftest import refused

B, T, D = 5, 7, 3
LENGTHS = torch.tensor([7, 1, 4, 0, 6])
MASK = torch.arange(T) < LENGTHS[:, None]
MASKS = {
    "bool": MASK,
    "int64": MASK.long(),
    "int32": MASK.int(),
    "uint8": MASK.to(torch.uint8),
    "uint16": MASK.to(torch.uint16),
    "float": MASK.float(),
    "bfloat16": MASK.bfloat16(),
}


def embeddings(dtype=torch.float32):
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("padding", ["zeros", "keep"])
@pytest.mark.parametrize("per", ["batch", "pair", "sample"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_mixing_position_by_position(dtype, per, padding):
    """Sample by sample, by sums."""
    x = embeddings(dtype).requires_grad_()
    plan = fm.EmbedMix(per=per).sample(B, (T,), seed=3)
    mixed, mask = fm.mix_embeddings(x, plan, MASK, padding=padding)
    assert mask.dtype == torch.bool
    expected = torch.zeros_like(x)
    for i in range(B):
        j, lam = int(plan.partner[i]), float(plan.lam[i])
        for t in range(T):
            own = x[i, t] if padding == "keep" or t < LENGTHS[i] else 0.0
            lent = x[j, t] if padding == "keep" or t < LENGTHS[j] else 0.0
            expected[i, t] = lam * own + (1 - lam) * lent
            assert bool(mask[i, t]) == (t < LENGTHS[i] or t < LENGTHS[j])
    torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-6)
    weights = torch.randn(B, T, D, dtype=dtype)
    got, want = (torch.autograd.grad((y * weights).sum(), x)[0] for y in (mixed, expected))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", MASKS)
def test_masks_of_every_dtype(kind):
    plan = fm.EmbedMix(per="sample").sample(B, (T,), lam=torch.tensor([0.5, 1.0, 0.7, 0.0, 0.9]))
    mixed, mask = fm.mix_embeddings(embeddings(), plan, MASKS[kind])
    assert mask.dtype == MASKS[kind].dtype
    expected = (MASK & (plan.lam > 0)[:, None]) | (MASK[plan.partner] & (plan.lam < 1)[:, None])
    assert torch.equal(mask != 0 if kind != "uint16" else mask.long() != 0, expected)
    assert not mixed[~expected].any()
    lengths = fm.mix_embeddings(embeddings(), plan, LENGTHS.int())
    assert lengths[1].dtype == torch.int32
    assert torch.equal(lengths[1], expected.sum(1).int())
    assert torch.equal(lengths[0], mixed)


def test_what_is_padded_does_not_matter():
    x = embeddings()
    spoilt = torch.where(MASK[:, :, None], x, torch.nan)
    plan = fm.EmbedMix().sample(B, (T,), lam=0.6)
    assert torch.equal(fm.mix_embeddings(spoilt, plan, MASK)[0], fm.mix_embeddings(x, plan, MASK)[0])


def test_attention_over_mixed_sequences_is_that_of_the_union():
    """A transformer gives tokens the same states when the padding behind the union is cut off."""
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    x = torch.randn(2, 6, 4)
    plan = fm.EmbedMix().sample(2, (6,), lam=0.7)
    mixed, mask = fm.mix_embeddings(x, plan, torch.tensor([[1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]]))
    assert mask.tolist() == [[1, 1, 1, 0, 0, 0]] * 2
    out = layer(mixed, src_key_padding_mask=mask == 0)
    torch.testing.assert_close(out[:, :3], layer(mixed[:, :3]))


@pytest.mark.parametrize("mask", [None, MASK])
def test_the_module_is_the_function_on_its_own_plan(mask):
    x, y = embeddings(), torch.tensor([0, 1, 2, 3, 0])
    mix = fm.EmbedMix(num_classes=4, label_smoothing=0.1)
    torch.manual_seed(3)
    mixed, united, targets = mix(x, mask, y)
    torch.manual_seed(3)
    plan = mix.sample(B, (T,))
    expected = fm.mix_embeddings(x, plan, mask)
    assert torch.equal(mixed, expected[0])
    assert united is None if mask is None else torch.equal(united, expected[1])
    assert torch.equal(targets, fm.mix_labels(y, plan, num_classes=4, label_smoothing=0.1))
    assert mix(x, mask)[2] is None


def test_numbers_and_sparse_targets():
    x, y = embeddings(), torch.randn(B)
    mix = fm.EmbedMix(per="sample")
    torch.manual_seed(3)
    _, _, targets = mix(x, MASK, y)
    torch.manual_seed(3)
    plan = mix.sample(B, (T,))
    assert torch.equal(targets, fm.mix_targets(y, plan))
    _, _, sparse = fm.EmbedMix(targets="sparse")(x, MASK, y)
    assert isinstance(sparse, fm.SparseTargets)
    assert torch.equal(sparse.partner_labels, y.roll(1))
    classes = torch.tensor([0, 1, 0, 1, 0])
    _, _, same = fm.EmbedMix(pairing="same_class", targets="sparse")(x, MASK, classes)
    assert torch.equal(same.partner_labels, classes)


@pytest.mark.parametrize("sampling", ["host", "device"])
def test_the_distribution_of_lambda(sampling):
    """max(λ, 1-λ) of λ ~ Beta(α, α) has the distribution function F(x) - F(1-x) on [½, 1]."""
    mix = fm.EmbedMix(alpha=0.4, per="sample", sampling=sampling)
    lam = mix.sample(20_000, (T,), seed=1).lam.double()
    assert float(lam.min()) >= 0.5
    beta = stats.beta(0.4, 0.4)
    assert stats.kstest(lam.numpy(), lambda x: beta.cdf(x) - beta.cdf(1 - x)).pvalue > 1e-3
    plain = (
        fm.EmbedMix(alpha=0.4, per="sample", sampling=sampling, fold=False).sample(20_000, (T,), seed=1).lam.double()
    )
    torch.testing.assert_close(lam, torch.maximum(plain, 1 - plain))
    assert fm.EmbedMix().alpha == 0.2


def test_a_folded_plan_is_consistent():
    plan = fm.EmbedMix(per="sample").sample(50, (T,), seed=2)
    torch.testing.assert_close(plan.mask()[:, 0], plan.lam)
    assert torch.equal(plan.weight, plan.lam.double())


def test_the_fold_belongs_to_no_set():
    with pytest.raises(TypeError, match=r"methods\[0\]"):
        fm.RandomMix([fm.EmbedMix()])


def test_attached_to_an_embedding():
    model = torch.nn.Sequential(torch.nn.Embedding(11, D), torch.nn.Flatten(), torch.nn.Linear(T * D, 4))
    handle = fm.attach(model, fm.EmbedMix(), layers=["0"])
    ids, y = torch.randint(11, (B, T)), torch.tensor([0, 1, 2, 3, 0])
    out = model(ids)
    assert float(handle.plan.lam.min()) >= 0.5
    expected = model[2](fm.mix(model[0].forward(ids), handle.plan).flatten(1))
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(handle.wrap(F.cross_entropy)(out, y), fm.mix_cross_entropy(expected, y, handle.plan))


@pytest.mark.parametrize("sampling", ["host", "device"])
def test_one_graph(sampling):
    torch._dynamo.reset()
    mix = fm.EmbedMix(num_classes=4, sampling=sampling, per="sample")
    x, y = embeddings(), torch.tensor([0, 1, 2, 3, 0])
    runs = []
    for f in (mix, torch.compile(mix, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(5)
        runs.append([f(x, MASK, y) for _ in range(2)])
    torch.testing.assert_close(*runs)
    assert not torch.equal(runs[1][0][0], runs[1][1][0])


@pytest.mark.parametrize(("b", "t"), [(0, 4), (1, 4), (3, 0), (2, 1)])
def test_small_batches(b, t):
    x, mask = torch.rand(b, t, D), torch.ones(b, t, dtype=torch.bool)
    mixed, united, targets = fm.EmbedMix()(x, mask, torch.rand(b))
    assert mixed.shape == x.shape
    assert torch.equal(united, mask)
    assert targets.shape == (b,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.rand(B, T),), "embeddings must be"),
        ((torch.randint(5, (B, T)),), "dtypes"),
        ((torch.randint(5, (B, T, D), dtype=torch.uint8),), "embeddings must be"),
        ((embeddings(), MASK[:, 1:]), r"attention_mask must be \(5, 7\)"),
        ((embeddings(), torch.rand(B)), "attention_mask must be"),
        ((embeddings(), MASK, torch.rand(B - 1)), "labels must have one entry"),
        ((embeddings(), MASK, torch.zeros(B, dtype=torch.long)), "num_classes must be passed"),
        ((embeddings(), MASK, torch.tensor(1.0)), "labels must have one entry"),
    ],
)
def test_bad_arguments(arguments, message):
    with refused(ValueError, message):
        fm.EmbedMix()(*arguments)


def test_bad_plans_and_options():
    with pytest.raises(ValueError, match="plan must have constant masks"):
        fm.mix_embeddings(embeddings(), fm.CutMix().sample(B, (D,)), MASK)
    with pytest.raises(ValueError, match="batch size of embeddings"):
        fm.mix_embeddings(embeddings(), fm.MixUp().sample(B + 1, (D,)), MASK)
    with pytest.raises(ValueError, match="padding must be one of"):
        fm.EmbedMix(padding="pad")
    with pytest.raises(TypeError, match="fold must be a bool"):
        fm.EmbedMix(fold=1)
    with pytest.raises(TypeError, match="attention_mask must be a tensor"):
        fm.EmbedMix()(embeddings(), MASK.tolist())


# --- mix_targets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("b", [0, 1, 6])
def test_mix_targets(method, b, shape, dtype):
    plan = method(per="sample", pairing="random").sample(b, (8, 8), seed=1)
    y = torch.randn(b, *shape).to(dtype)
    mixed = fm.mix_targets(y, plan)
    assert mixed.dtype == dtype
    w = plan.weight.reshape(b, *[1] * len(shape))
    expected = w * y.double() + (1 - w) * y.double()[plan.partner]
    tolerance = max(torch.finfo(dtype).eps, 2e-7 if dtype != torch.float64 else 0)
    torch.testing.assert_close(mixed.double(), expected, rtol=tolerance, atol=2 * tolerance)


def test_mix_targets_is_differentiable():
    plan = fm.MixUp(per="sample", pairing="random").sample(4, (1,), seed=1)
    y = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: fm.mix_targets(y, plan), y)


def test_a_target_that_is_not_mixed_is_kept():
    """Also beside a partner's that is missing."""
    plan = fm.MixUp(per="sample").sample(3, (1,), lam=torch.tensor([1.0, 0.5, 1.0]))
    y = torch.tensor([torch.inf, 0.1, torch.nan])
    mixed = fm.mix_targets(y, plan)
    assert mixed[0] == torch.inf
    assert mixed[1] == torch.inf
    assert mixed[2].isnan()
    assert fm.mix_targets(torch.tensor([0.3, 1.0, torch.nan]), plan)[0] == torch.tensor(0.3)


def test_targets_that_cannot_be_mixed():
    plan = fm.MixUp().sample(3, (1,))
    with pytest.raises(ValueError, match="targets must be"):
        fm.mix_targets(torch.tensor([1, 2, 3]), plan)
    with pytest.raises(ValueError, match="targets must be"):
        fm.mix_targets(torch.tensor(1.0), plan)
    with pytest.raises(ValueError, match="batch size of targets"):
        fm.mix_targets(torch.rand(4), plan)
    with pytest.raises(TypeError, match="targets must be a tensor"):
        fm.mix_targets([1.0], plan)
