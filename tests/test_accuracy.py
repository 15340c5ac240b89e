"""The accuracy on mixed batches, beside loops over rows that follow its definition."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

import fusedmix as fm
from conftest import INTEGERS
from wrong_calls import PLAN, Y, check, wrong_type, wrong_value

B, K = 40, 7


def plan_of(n=B, **options):
    return fm.MixUp(per="sample", pairing="random", **options).sample(n, (1,), seed=4)


def predicted(row, k):
    """The classes of the k largest numbers, of equal ones the first; none where there is a NaN."""
    if any(map(math.isnan, row)):
        return []
    return sorted(range(len(row)), key=lambda c: (-row[c], c))[:k]


def by_hand(logits, labels, plan, k, ignored=-100):
    """In rational numbers."""
    hit = total = Fraction(0)
    for i, row in enumerate(logits.tolist()):
        w = Fraction(plan.weight[i].item())
        for share, y in ((w, labels[i].item()), (1 - w, labels[plan.partner[i]].item())):
            if y != ignored:
                total += share
                hit += share * (y in predicted(row, k))
    return float(hit / total) if total else math.nan


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("k", [1, 2, 5, K, K + 3])
def test_classes(dtype, k):
    """Logits that agree often; and of equal ones the first count."""
    logits, labels, plan = torch.randint(0, 4, (B, K)).to(dtype), torch.randint(0, K, (B,)), plan_of()
    found = fm.mix_accuracy(logits, labels, plan, topk=k)
    assert found.dtype == (dtype if dtype == torch.float64 else torch.float32)
    assert found.shape == ()
    assert abs(found.item() - by_hand(logits, labels, plan, k)) <= 1e-6
    if k >= K:
        assert found == pytest.approx(1)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_types_of_labels(dtype):
    logits, labels, plan = torch.randn(B, K), torch.randint(0, K, (B,)), plan_of()
    found = fm.mix_accuracy(logits, labels.to(dtype), plan, topk=2)
    assert found == fm.mix_accuracy(logits, labels, plan, topk=2)
    one_hot = torch.eye(K)[labels].to(dtype if dtype not in (torch.uint16, torch.uint32, torch.uint64) else torch.bool)
    assert abs(fm.mix_accuracy(logits, one_hot, plan, topk=2) - found) <= 1e-6


@pytest.mark.parametrize("k", [1, 3])
def test_soft_labels(k):
    """What of the mixed targets lies on the classes that are predicted."""
    logits, plan = torch.randint(0, 4, (B, K)).float(), plan_of()
    for labels in (torch.rand(B, K), (torch.rand(B, K) < 0.3).float(), torch.rand(B, K).softmax(1).double()):
        targets = fm.mix_labels(labels, plan)
        hit = sum(targets[i, c].item() for i in range(B) for c in predicted(logits[i].tolist(), k))
        assert abs(fm.mix_accuracy(logits, labels, plan, topk=k) - hit / targets.sum().item()) <= 1e-5


def test_several_k():
    logits, labels, plan = torch.randn(B, K), torch.randint(0, K, (B,)), plan_of()
    for y in (labels, torch.eye(K)[labels]):
        found = fm.mix_accuracy(logits, y, plan, topk=(1, 5))
        assert isinstance(found, tuple)
        assert found == tuple(fm.mix_accuracy(logits, y, plan, topk=k) for k in (1, 5))
        assert found == fm.mix_accuracy(logits, y, plan, topk=[1, 5])


def test_batches_that_are_not_mixed():
    logits, labels = torch.randn(B, K), torch.randint(0, K, (B,))
    usual = (logits.argmax(1) == labels).double().mean()
    assert abs(fm.mix_accuracy(logits, labels, fm.CutMix().sample(B, (8, 8), lam=1.0)) - usual) <= 1e-6
    assert fm.mix_accuracy(logits, logits.argmax(1), fm.MixUp().sample(B, (1,), lam=1.0)) == 1


def test_ceiling():
    """Who predicts the heavier of two different labels reaches the mean of max(w, 1-w): ¾ with Mixup at α = 1."""
    n = 20_000
    plan = fm.MixUp(per="sample").sample(n, (1,), seed=1)  # the partner is the sample before
    labels = torch.arange(n) % 2
    heavier = torch.where(plan.weight >= 0.5, labels, labels[plan.partner])
    found = fm.mix_accuracy(torch.eye(2)[heavier], labels, plan).item()
    assert abs(found - torch.maximum(plan.weight, 1 - plan.weight).mean().item()) <= 1e-5
    assert abs(found - 0.75) <= 4 * math.sqrt(1 / 48 / n)


@pytest.mark.parametrize("ignored", [-100, 3, 255])
def test_ignored_labels(ignored):
    logits, labels, plan = torch.randn(B, K), torch.randint(0, K, (B,)), plan_of()
    labels[::3] = ignored
    found = fm.mix_accuracy(logits, labels, plan, topk=2, ignore_index=ignored)
    assert abs(found.item() - by_hand(logits, labels, plan, 2, ignored)) <= 1e-6
    assert fm.mix_accuracy(logits, torch.full_like(labels, ignored), plan, ignore_index=ignored).isnan()


def test_what_is_no_number():
    """A model that has diverged is not right about anything."""
    logits, plan = torch.randn(B, K), plan_of()
    logits[1, 2], logits[2] = math.nan, math.nan
    logits[3], logits[4, 1], logits[5, 1] = -math.inf, math.inf, -math.inf
    labels = torch.randint(0, K, (B,))
    for y in (labels, torch.eye(K)[labels]):
        assert abs(fm.mix_accuracy(logits, y, plan, topk=3).item() - by_hand(logits, labels, plan, 3)) <= 1e-6
        assert fm.mix_accuracy(torch.full_like(logits, math.nan), y, plan, topk=K) == 0


def test_partners_that_repeat():
    partner = torch.randint(0, 5, (B,))
    plan = fm.MixPlan.from_parts(lam=torch.rand(B), partner=partner)
    logits, labels = torch.randn(B, K), torch.randint(0, K, (B,))
    assert abs(fm.mix_accuracy(logits, labels, plan).item() - by_hand(logits, labels, plan, 1)) <= 1e-6


def test_no_batch():
    plan = fm.MixUp().sample(0, (1,))
    assert fm.mix_accuracy(torch.rand(0, K), torch.zeros(0, dtype=torch.long), plan).isnan()


def test_no_gradient():
    logits, plan = torch.randn(B, K, requires_grad=True), plan_of()
    for y in (torch.randint(0, K, (B,)), torch.rand(B, K, requires_grad=True)):
        assert not fm.mix_accuracy(logits, y, plan).requires_grad


def test_nothing_is_waited_for():
    """On a device whose tensors have no values whoever asks for one fails."""
    logits, plan = torch.empty(B, K, device="meta"), plan_of().to("meta")
    for y in (torch.empty(B, dtype=torch.long, device="meta"), torch.empty(B, K, device="meta")):
        found = fm.mix_accuracy(logits, y, plan, topk=(1, 5))
        assert [x.device.type for x in found] == ["meta"] * 2


def test_compiled():
    logits, labels, plan = torch.randn(B, K), torch.randint(0, K, (B,)), plan_of()
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda z, y, plan: fm.mix_accuracy(z, y, plan, topk=(1, 2)), fullgraph=True, backend="aot_eager"
    )
    for y in (labels, torch.eye(K)[labels]):
        assert compiled(logits, y, plan) == fm.mix_accuracy(logits, y, plan, topk=(1, 2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    """The same; a class that there is not is one that nobody predicts; and a CUDA graph holds it."""
    logits, labels, plan = torch.randn(B, K), torch.randint(0, K, (B,)), plan_of()
    there = logits.cuda(), labels.cuda()
    for of in (plan, plan.to("cuda")):
        assert abs(fm.mix_accuracy(*there, of).item() - fm.mix_accuracy(logits, labels, plan).item()) <= 1e-6
    wrong = torch.where(torch.arange(B) % 4 == 0, K, labels)
    assert abs(fm.mix_accuracy(there[0], wrong.cuda(), plan).item() - by_hand(logits, wrong, plan, 1)) <= 1e-6
    plan, graph = plan.to("cuda"), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = fm.mix_accuracy(*there, plan)
    there[0].copy_(torch.randn(B, K))
    graph.replay()
    assert found == fm.mix_accuracy(*there, plan)


LOGITS = torch.ones(4, 4)
WRONG = {
    "topk zero": wrong_value(lambda: fm.mix_accuracy(LOGITS, Y, PLAN, topk=0), "topk", "0", ">= 1"),
    "topk a number": wrong_type(lambda: fm.mix_accuracy(LOGITS, Y, PLAN, topk=1.0), "topk", "1.0", "int"),
    "topk negative": wrong_value(lambda: fm.mix_accuracy(LOGITS, Y, PLAN, topk=(1, -5)), "topk[1]", "-5", ">= 1"),
    "topk nothing": wrong_value(lambda: fm.mix_accuracy(LOGITS, Y, PLAN, topk=()), "topk", "()", "at least one"),
    "topk a string": wrong_type(lambda: fm.mix_accuracy(LOGITS, Y, PLAN, topk="5"), "topk[0]", "'5'", "int"),
    "logits of images": wrong_value(lambda: fm.mix_accuracy(LOGITS[0], Y, PLAN), "logits", "(4,)", "(batch_size, num"),
    "logits int": wrong_value(lambda: fm.mix_accuracy(LOGITS.long(), Y, PLAN), "logits", "int64", "float32"),
    "labels of another batch": wrong_value(lambda: fm.mix_accuracy(LOGITS, Y[:3], PLAN), "labels", "3 != 4"),
    "labels outside": wrong_value(lambda: fm.mix_accuracy(LOGITS[:, :3], Y, PLAN), "labels", "[0, 3)", "3"),
    "labels in a column": wrong_value(lambda: fm.mix_accuracy(LOGITS, Y[:, None], PLAN), "labels", "squeeze(1)"),
    "ignore_index of soft labels": wrong_value(
        lambda: fm.mix_accuracy(LOGITS, LOGITS, PLAN, ignore_index=2), "ignore_index", "2", "negative"
    ),
    "ignore_index a float": wrong_type(
        lambda: fm.mix_accuracy(LOGITS, Y, PLAN, ignore_index=1.0), "ignore_index", "1.0", "int"
    ),
    "plan None": wrong_type(lambda: fm.mix_accuracy(LOGITS, Y, None), "plan", "NoneType", "MixPlan"),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_wrong_calls(case):
    check(*case)
