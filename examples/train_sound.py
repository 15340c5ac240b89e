"""Mixing sounds of different lengths: a plucked string at five pitches, cut, as loud as it comes, and in noise.

    python examples/train_sound.py --method MixUp --epochs 20
    python examples/train_sound.py --sound guitar.wav

The string is a real recording, which comes with Python's own tests (`test.audiodata`); --sound takes another. What
mixing asks of the loop: the lengths of the sounds in a batch, and the loss of soft targets. BetweenClassMix goes by the
levels of sounds and not by their lengths, and finds them itself.
"""

from __future__ import annotations

import argparse
import wave
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fusedmix as fm

CLASSES = 5
METHODS = ("MixUp", "CutMix", "BetweenClassMix")


class Sounds(NamedTuple):
    """Padded waveforms, how many of their samples are no padding, and which pitch each has."""

    waves: Tensor  # (N, samples)
    lengths: Tensor  # (N,)
    labels: Tensor  # (N,)


def plucked_string() -> Path:
    """The recording that comes with Python, where its tests are installed."""
    tests = find_spec("test")
    folders = () if tests is None else tests.submodule_search_locations or ()
    for folder in folders:
        path = Path(folder) / "audiodata" / "pluck-pcm16.wav"
        if path.is_file():
            return path
    raise FileNotFoundError("This Python comes without the sounds of its tests. Pass --sound FILE, a WAV of 16 bits.")


def read(path: Path) -> tuple[Tensor, int]:
    """A recording as (samples,) in [-1, 1], its channels' mean, and how many samples a second has."""
    with wave.open(str(path)) as file:
        if file.getsampwidth() != 2:
            raise ValueError(f"{path} must have 16 bits a sample, but has {8 * file.getsampwidth()}.")
        frames = torch.frombuffer(bytearray(file.readframes(file.getnframes())), dtype=torch.int16)
        return frames.reshape(-1, file.getnchannels()).float().mean(1) / 32768, file.getframerate()


def played(recording: Tensor, number: int, seed: int) -> Sounds:
    """So many sounds: the recording at one of five pitches, an eighth of an octave apart, from its beginning to a
    random place, at a random loudness, in noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (number,), generator=generator)
    waves, lengths = [], []
    for label in labels.tolist():
        samples = int(len(recording) / 2 ** (label / 8))
        sound = F.interpolate(recording.reshape(1, 1, -1), samples, mode="linear").flatten()
        share, gain = torch.rand(2, generator=generator).tolist()
        sound = 10 ** (-gain) * sound[: int((0.4 + 0.6 * share) * samples)]
        waves.append(sound + 0.01 * sound.std() * torch.randn(len(sound), generator=generator))
        lengths.append(len(sound))
    return Sounds(nn.utils.rnn.pad_sequence(waves, batch_first=True), torch.tensor(lengths), labels)


class SmallNetwork(nn.Module):
    """Logits of waveforms (B, samples): from the logarithm of their spectrum, so that loudness does not matter."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(257), nn.Linear(257, 64), nn.ReLU(), nn.Linear(64, CLASSES))

    def forward(self, waves: Tensor) -> Tensor:
        window = torch.hann_window(512, device=waves.device)
        power = torch.stft(waves, 512, window=window, return_complex=True).abs().square().mean(2)
        return self.layers((power + 1e-9).log())


def accuracy(model: nn.Module, sounds: Sounds) -> float:
    """The share of correct predictions."""
    with torch.no_grad():
        return float((model(sounds.waves).argmax(1) == sounds.labels).double().mean())


def train(
    method: str, sounds: Sounds, sample_rate: int, *, epochs: int, batch_size: int = 16, seed: int = 0
) -> tuple[nn.Module, list[float]]:
    """A network trained on mixed sounds, and the mean loss of each epoch."""
    torch.manual_seed(seed)
    options = {"num_classes": CLASSES, "per": "sample", "pairing": "random"}
    levelled = method == "BetweenClassMix"
    mixer = fm.BetweenClassMix(sample_rate=sample_rate, **options) if levelled else getattr(fm, method)(**options)
    model = SmallNetwork()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(epochs):
        total = 0.0
        for index in torch.randperm(len(sounds.labels)).split(batch_size):
            waves, lengths, labels = (x[index] for x in sounds)
            mixed, targets = mixer(waves, labels) if levelled else mixer(waves, labels, lengths=lengths)
            loss = F.cross_entropy(model(mixed), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(index)
        losses.append(total / len(sounds.labels))
    return model, losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=METHODS, default="MixUp", help="what mixes the sounds")
    parser.add_argument("--epochs", type=int, default=20, help="how often all sounds are heard")
    parser.add_argument("--sound", type=Path, help="a recording: WAV of 16 bits")
    given = parser.parse_args()
    recording, sample_rate = read(given.sound or plucked_string())
    model, losses = train(given.method, played(recording, 160, seed=0), sample_rate, epochs=given.epochs)
    print(f"{given.method}: loss {losses[-1]:.3f}, accuracy {accuracy(model, played(recording, 100, seed=1)):.2f}")


if __name__ == "__main__":
    main()
