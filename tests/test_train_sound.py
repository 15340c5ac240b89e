"""examples/train_sound.py: a real sound, mixed within its length or by its level."""

from __future__ import annotations

import importlib.util
import struct
import sys
import wave

import pytest
import torch

import fusedmix as fm
from trainers import ROOT

EXAMPLE = ROOT / "examples" / "train_sound.py"
pytestmark = pytest.mark.skipif(not EXAMPLE.exists(), reason="an installed package comes without its examples")


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("train_sound", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def recording(example):
    try:
        return example.read(example.plucked_string())
    except FileNotFoundError as error:  # Some distributions leave Python's tests out.
        pytest.skip(str(error))


@pytest.mark.parametrize("method", ["MixUp", "CutMix", "BetweenClassMix"])
def test_what_is_trained_on_mixed_sounds_knows_them(example, recording, method):
    """A fifth is chance."""
    wave, rate = recording
    model, losses = example.train(method, example.played(wave, 160, seed=0), rate, epochs=20)
    assert losses[-1] < 0.7 * losses[0]
    assert example.accuracy(model, example.played(wave, 100, seed=1)) > 0.8


def test_padding_is_not_mixed(example, recording, monkeypatch):
    """Behind a sound stands silence, before and after mixing; and every sound is as long as it says."""
    sounds, plans = example.played(recording[0], 12, seed=0), []
    within = fm.module.within
    monkeypatch.setattr(fm.module, "within", lambda *args: plans.append(within(*args)) or plans[-1])
    mixed, _ = fm.MixUp(num_classes=5, per="sample")(sounds.waves, sounds.labels, lengths=sounds.lengths)
    for before, after, n in zip(sounds.waves, mixed, sounds.lengths.tolist(), strict=True):
        assert before[n - 1] != 0
        assert not before[n:].any()
        assert not after[n:].any()
    example.train("CutMix", sounds, recording[1], epochs=1, batch_size=6)
    assert len(plans) == 3


def test_the_program(example, tmp_path, monkeypatch, capsys):
    """With a sound of one's own: stereo, which is one of two channels that are alike."""
    path = tmp_path / "tone.wav"
    tone = (20000 * torch.sin(torch.arange(3000) * 0.3)).int().tolist()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(11025)
        file.writeframes(b"".join(struct.pack("<hh", x, x) for x in tone))
    found, rate = example.read(path)
    assert rate == 11025
    torch.testing.assert_close(found, torch.tensor(tone) / 32768)
    monkeypatch.setattr(sys, "argv", ["train_sound.py", "--sound", str(path), "--epochs", "1"])
    example.main()
    assert capsys.readouterr().out.startswith("MixUp: loss ")
