"""What the tests of wrong calls share: each is a ValueError or TypeError that names the argument, what came and what is
allowed, raised before anything is drawn or written."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch

import fusedmix as fm

X = torch.rand(4, 3, 8, 8)
Y = torch.tensor([0, 1, 2, 3])
PLAN = fm.CutMix().sample(4, (8, 8))
BLENDED = fm.MixUp().sample(4, (8, 8))
GENERATOR = torch.Generator()


def nested(shape):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns that nested tensors may change.
        return torch.nested.nested_tensor([torch.zeros(shape) for _ in range(4)])


def negated(*shape):
    """A view that says it is negated: the imaginary part of a conjugate."""
    return torch.ones(shape).to(torch.complex64).conj().imag


def attached_to(mix):
    model = torch.nn.Identity()
    fm.attach(model, mix)
    return model


def wrong(exception, call, *fragments):
    """A call; and what its message must say: the argument, what came, what is allowed."""
    return call, exception, fragments


wrong_type, wrong_value = (functools.partial(wrong, exception) for exception in (TypeError, ValueError))


def check(call, exception, fragments):
    tensors = [(t, t.clone(), t._version) for t in (X, Y, PLAN.partner, PLAN.value)]
    state, own = torch.get_rng_state(), GENERATOR.get_state()
    with pytest.raises(exception) as caught:
        call()
    message = str(caught.value)
    for fragment in fragments:
        assert fragment in message, message
    assert "Traceback" not in message
    assert torch.equal(torch.get_rng_state(), state), "something was drawn"
    assert torch.equal(GENERATOR.get_state(), own), "something was drawn"
    for tensor, before, version in tensors:
        assert torch.equal(tensor, before), "something was written"
        assert tensor._version == version, "something was written"
    return message
