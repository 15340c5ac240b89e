"""training_only=True: in evaluation a batch comes back as it is, and nothing is drawn."""

from __future__ import annotations

import pytest
import torch

import fusedmix as fm

X, Y = torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 2, 3, 4, 4])

STRUCTURES = {
    "arguments": lambda: (X, Y),
    "soft labels": lambda: (X, torch.eye(5)[Y]),
    "tuple": lambda: ((X, Y),),
    "dict": lambda: ({"image": X, "labels": Y, "name": "a"},),
    "deep": lambda: ((X, {"labels": Y, "ids": [1, 2]}),),
}


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
@pytest.mark.parametrize("sampling", ["host", "device"])
def test_in_evaluation_a_batch_comes_back_as_it_is(method, sampling, structure):
    settings = {"sampling": sampling, "num_classes": 5, "label_smoothing": 0.1}
    mix, always = method(training_only=True, **settings), method(**settings)
    arguments = structure()
    sample = arguments if len(arguments) > 1 else arguments[0]
    mix.eval()
    always.eval()
    state = torch.get_rng_state()
    before = torch.utils._pytree.tree_leaves(sample)
    after = torch.utils._pytree.tree_leaves(mix(*arguments))
    assert all(a is b for a, b in zip(before, after, strict=True)), "the very objects"
    assert type(mix(*arguments)) is type(sample)
    assert torch.equal(torch.get_rng_state(), state), "something was drawn"
    for module in (mix.train(), always):  # Both mix as without the keyword.
        torch.manual_seed(2)
        after = torch.utils._pytree.tree_leaves(module(*arguments))
        assert any(
            torch.is_tensor(b) and not torch.equal(a, b) for a, b in zip(before, after, strict=True) if a is not b
        )
    torch.manual_seed(2)
    expected = torch.utils._pytree.tree_leaves(always(*arguments))
    assert all(a is b or torch.equal(a, b) for a, b in zip(after, expected, strict=True))


def test_training_only_embeddings():
    mix = fm.EmbedMix(num_classes=5, training_only=True).eval()
    embeddings, mask = torch.rand(6, 4, 2), torch.ones(6, 4)
    assert all(a is b for a, b in zip(mix(embeddings, mask, Y), (embeddings, mask, Y), strict=True))
    assert mix(embeddings) == (embeddings, None, None)
    assert not torch.equal(mix.train()(embeddings, mask, Y)[0], embeddings)


def test_training_only_of_the_methods_of_a_random_mix():
    mix = fm.RandomMix([fm.MixUp(training_only=True), fm.CutMix()], num_classes=5)
    assert mix.training_only
    assert all(a is b for a, b in zip(mix.eval()(X, Y), (X, Y), strict=True))
    with pytest.raises(ValueError, match="disagree about training_only"):
        fm.RandomMix([fm.MixUp(training_only=True), fm.CutMix(training_only=False)])


@pytest.mark.parametrize("sampling", ["host", "device"])
def test_a_plan_of_evaluation_mixes_nothing(method, sampling):
    mix = method(training_only=True, sampling=sampling, pairing="random").eval()
    state = torch.get_rng_state()
    for given in ({}, {"lam": 0.3}, {"lam": torch.full((6,), 0.3)}, {"seed": 3}, {"generator": torch.Generator()}):
        plan = mix.sample(6, (8, 8), **given)
        assert torch.equal(fm.mix(X, plan), X)
        assert torch.equal(fm.mix_labels(Y, plan, num_classes=5), torch.eye(5)[Y])
    assert torch.equal(torch.get_rng_state(), state)


def test_training_only_inside_a_model():
    """`model.eval()` is enough, whether the module is part of the model or attached to it."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = fm.CutMix(num_classes=5, training_only=True)
            self.head = torch.nn.Linear(192, 5)

        def forward(self, images, labels):
            images, labels = self.mix(images, labels)
            return torch.nn.functional.cross_entropy(self.head(images.flatten(1)), labels)

    net = Net().eval()
    expected = torch.nn.functional.cross_entropy(net.head(X.flatten(1)), Y)
    assert torch.equal(net(X, Y), expected)
    assert not torch.equal(net.train()(X, Y), expected)

    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5))
    mix = fm.CutMix(num_classes=5, training_only=True)
    with fm.attach(model, mix) as handle:
        criterion = handle.wrap(torch.nn.CrossEntropyLoss())
        plain = torch.nn.functional.cross_entropy(model[1](X.flatten(1)), Y)
        for switched in (mix, model):
            switched.eval()
            assert torch.allclose(criterion(model(X), Y), plain)
            switched.train()
            assert not torch.allclose(criterion(model(X), Y), plain)
