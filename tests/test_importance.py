"""Importance maps: saliency against its formulas in NumPy, maps by a network against their definitions, and how maps
are checked and brought to pixels and cells."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fusedmix as fm
from conftest import images_of, required
from fusedmix import importance, saliency
from maps import linear, weights_of


def reflected(x, reach):
    return np.pad(x, reach, mode="reflect")


def spectral(grey):
    """Hou and Zhang's formula on one grey image, at 64x64."""
    spectrum = np.fft.fft2(linear(grey, (64, 64)))
    log = np.log(np.abs(spectrum))
    around = reflected(log, 1)
    mean = sum(around[a : a + 64, b : b + 64] for a in range(3) for b in range(3)) / 9
    found = np.abs(np.fft.ifft2(np.exp(log - mean + 1j * np.angle(spectrum))))
    weights = np.exp(-(np.arange(-2, 3) ** 2) / (2 * 8**2))
    weights = np.outer(weights, weights) / weights.sum() ** 2
    around = reflected(found, 2)
    found = sum(weights[a, b] * around[a : a + 64, b : b + 64] for a in range(5) for b in range(5)) ** 2
    return found / found.max()


def fine_grained(grey):
    """Montabone and Soto's centre-surround differences on one grey image, pixel by pixel."""
    binomial = np.outer([1, 2, 1], [1, 2, 1]) / 16
    h, w = grey.shape
    for _ in range(2):
        around = reflected(grey, 1)
        grey = sum(binomial[a, b] * around[a : a + h, b : b + w] for a in range(3) for b in range(3))
    grey = (grey - grey.min()) / (grey.max() - grey.min())
    brighter, darker = np.zeros((h, w)), np.zeros((h, w))
    for reach in (12, 24, 48, 28, 56, 112):
        for y in range(h):
            for x in range(w):
                top, left = np.clip([y - reach + 1, x - reach + 1], 0, [h - 1, w - 1])
                bottom, right = np.clip([y + reach + 1, x + reach + 1], 0, [h - 1, w - 1])
                square = grey[top:bottom, left:right]
                difference = grey[y, x] - (square.sum() - grey[y, x]) / max(square.size - 1, 1)
                brighter[y, x] += max(difference, 0)
                darker[y, x] += max(-difference, 0)
    return brighter / brighter.max() + darker / darker.max()


def grey_of(images):
    """Grey values of red, green and blue by ITU-R BT.601, else the mean."""
    x = images.double().numpy()
    return np.einsum("c,bchw->bhw", [0.299, 0.587, 0.114], x) if x.shape[1] == 3 else x.mean(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (2, 3, 37, 91), (1, 1, 128, 40), (1, 4, 20, 9)], ids=str)
def test_spectral_saliency(shape, dtype):
    images = images_of(shape, dtype)
    found = fm.spectral_saliency(images)
    assert found.shape == (shape[0], 64, 64)
    assert found.dtype == torch.float32
    for one, grey in zip(found, grey_of(images), strict=True):
        torch.testing.assert_close(one.double(), torch.from_numpy(spectral(grey)), rtol=1e-5, atol=1e-6)


def test_spectral_saliency_finds_what_is_different():
    """The one square in stripes, wherever it is, of a batch: and whatever factor and offset the images have."""
    images = (torch.arange(96) // 4 % 2).float().expand(3, 3, 96, 96).clone()
    places = [(20, 70), (60, 30), (75, 75)]
    for image, (y, x) in zip(images, places, strict=True):
        image[:, y : y + 8, x : x + 8] = torch.rand(8, 8, generator=torch.Generator().manual_seed(y))
    for scaled in (images, images * 255 - 17):
        peaks = importance.peak(fm.spectral_saliency(scaled), (96, 96))
        for y, x, (top, left) in zip(*peaks, places, strict=True):
            assert top - 6 <= y <= top + 14
            assert left - 6 <= x <= left + 14


@pytest.mark.parametrize("shape", [(2, 3, 24, 31), (1, 1, 14, 9), (1, 2, 5, 7)], ids=str)
def test_fine_grained_saliency(shape):
    images = images_of(shape, torch.float32)
    found = fm.fine_grained_saliency(images)
    for one, grey in zip(found, grey_of(images), strict=True):
        torch.testing.assert_close(one.double(), torch.from_numpy(fine_grained(grey)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("of", [fm.spectral_saliency, fm.fine_grained_saliency])
def test_saliency_is_finite(of):
    """Of constant images, zeros, NaN, infinities and the largest numbers; and a batch of none has no maps."""
    images = torch.zeros(5, 3, 12, 10)
    images[1] = 7
    images[2, :, 3, 4], images[3, :, 5], images[4] = torch.nan, torch.inf, 3e38
    assert of(images).isfinite().all()
    assert len(of(images[:0])) == 0


def test_spectral_saliency_of_signals_and_volumes():
    for shape in ((2, 1, 50), (2, 2, 9, 20, 13)):
        assert fm.spectral_saliency(images_of(shape, torch.float32)).shape == (2, *[64] * (len(shape) - 2))


# ---- By a network ----------------------------------------------------------------------------------------------------


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(16, 5),
    )


def small_batch():
    return images_of((4, 3, 16, 20), torch.float32), torch.tensor([0, 3, 4, 3])


def test_class_activation_map():
    """Where a pool and a linear layer follow: the weights of the class times the channels (Zhou 2016)."""
    model, (images, labels) = network(), small_batch()
    found = fm.class_activation_map(model, "6")(images, labels)
    model.eval()
    with torch.no_grad():
        channels = model[:7](images)
        expected = torch.einsum("bchw,bc->bhw", channels, model[10].weight[labels])
        by_largest = torch.einsum("bchw,bc->bhw", channels, model[10].weight[model(images).argmax(1)])
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad
    torch.testing.assert_close(fm.class_activation_map(model, model[6])(images), by_largest)
    # The map is linear in the classes.
    soft = torch.rand(4, 5, generator=torch.Generator().manual_seed(1))
    one_hot = [fm.class_activation_map(model, "6")(images, torch.full((4,), k)) for k in range(5)]
    of_soft = sum(soft[:, k, None, None] * maps for k, maps in enumerate(one_hot))
    torch.testing.assert_close(fm.class_activation_map(model, "6")(images, soft), of_soft)


def test_class_activation_map_of_an_inner_layer():
    """Elsewhere: the derivative of the logit by each channel, summed over the pixels, by finite differences."""
    model, (images, labels) = network().double().eval(), small_batch()
    images = images.double()
    found = fm.class_activation_map(model, "2")(images, labels)
    with torch.no_grad():
        channels, step = model[:3](images), 1e-6
        score = model[3:](channels).gather(1, labels[:, None])
        slopes = []
        for c in range(channels.shape[1]):  # The sum of the derivatives is that by a shift of all pixels.
            shifted = channels.clone()
            shifted[:, c] += step
            slopes.append((model[3:](shifted).gather(1, labels[:, None]) - score) / step)
    expected = (channels * torch.cat(slopes, 1)[:, :, None, None]).sum(1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_input_gradient():
    model, (images, labels) = network(), small_batch()
    found = fm.input_gradient(model)(images, labels)
    model.eval()
    x = images.clone().requires_grad_()
    F.cross_entropy(model(x), labels).backward()
    torch.testing.assert_close(found, x.grad.square().mean(1).sqrt())
    assert not found.requires_grad
    each = fm.input_gradient(model, lambda logits, y: F.cross_entropy(logits, y, reduction="none"))(images, labels)
    torch.testing.assert_close(each, 4 * found)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_the_network_is_as_before(training, grad):
    """Modes, one of them unlike the others, gradients, buffers, hooks, random numbers and the mode of autograd."""
    model, (images, labels) = network().train(training), small_batch()
    model[1].train(not training)
    F.cross_entropy(model(images), labels).backward()
    before = [(p, p.clone(), p._version) for p in (*model.parameters(), *model.buffers())]
    slopes = [p.grad.clone() for p in model.parameters()]
    modes, state = [m.training for m in model.modules()], torch.get_rng_state()

    def broken(images):
        raise RuntimeError("the network fails")

    with torch.set_grad_enabled(grad):
        fm.class_activation_map(model, "2")(images, labels)
        fm.input_gradient(model)(images, labels)
        model[9].forward = broken
        for of in (fm.class_activation_map(model, "6"), fm.input_gradient(model)):
            with pytest.raises(RuntimeError, match="the network fails"):
                of(images, labels)
        assert torch.is_grad_enabled() == grad
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks for m in model.modules())
    for p, value, version in before:
        assert torch.equal(p, value)
        assert p._version == version
    assert all(torch.equal(p.grad, slope) for p, slope in zip(model.parameters(), slopes, strict=True))


def test_random_numbers_of_a_network_that_always_draws():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x):
            return self.net(F.dropout(x, 0.1))

    model, (images, labels) = Noisy(), small_batch()
    state = torch.get_rng_state()
    fm.class_activation_map(model, "net.6")(images, labels)
    fm.input_gradient(model)(images, labels)
    assert torch.equal(torch.get_rng_state(), state)


def test_of_torchvisions_resnet():
    model = required("torchvision").models.resnet18(num_classes=7)
    images, labels = images_of((2, 3, 64, 48), torch.float32), torch.tensor([6, 0])
    found = fm.class_activation_map(model, "layer4")(images, labels)
    model.eval()
    with torch.no_grad():
        x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
        x = model.layer4(model.layer3(model.layer2(model.layer1(x))))
    torch.testing.assert_close(found, torch.einsum("bchw,bc->bhw", x, model.fc.weight[labels]))
    assert fm.input_gradient(model)(images, labels).shape == (2, 64, 48)


def test_networks_that_return_more_than_logits():
    class Output(dict):
        __getattr__ = dict.__getitem__

    class Wrapped(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return Output(logits=self.net(x))

    model, (images, labels) = network(), small_batch()
    for of, wrapped in (
        (fm.class_activation_map(model, "6"), fm.class_activation_map(Wrapped(model), "net.6")),
        (fm.input_gradient(model), fm.input_gradient(Wrapped(model))),
    ):
        assert torch.equal(wrapped(images, labels), of(images, labels))


# ---- The argument ----------------------------------------------------------------------------------------------------


def test_maps_at_pixels():
    maps = images_of((3, 7, 5), torch.float32)
    for one, expected in zip(importance.at_pixels(maps, (16, 23)), maps.double().numpy(), strict=True):
        torch.testing.assert_close(one.double(), torch.from_numpy(linear(expected, (16, 23))), rtol=1e-5, atol=1e-5)
    assert torch.equal(importance.at_pixels(maps, (7, 5)), maps)
    assert importance.at_pixels(maps[:0], (9, 9)).shape == (0, 9, 9)


@pytest.mark.parametrize("cells", [(1, 1), (2, 3), (7, 5), (7, 2)], ids=str)
def test_maps_at_cells(cells):
    """The mean over the pixels c of cell c·cells // side along each side."""
    maps = images_of((3, 7, 5), torch.float32)
    expected = torch.stack([torch.from_numpy(weights_of(one.double().numpy(), cells)) for one in maps])
    torch.testing.assert_close(importance.at_cells(maps, cells), expected)


def test_maps_at_more_cells_than_they_have_pixels():
    maps = images_of((2, 3, 8), torch.float32)
    found = importance.at_cells(maps, (6, 4))
    stretched = np.stack([linear(one, (6, 8)) for one in maps.double().numpy()])
    expected = torch.from_numpy(stretched.reshape(2, 6, 4, 2).mean(3))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(7, 5), (16, 23), (3, 4)], ids=str)
def test_shares(size):
    maps, of = images_of((4, 7, 5), torch.float32), torch.tensor([1, 3, 0, 2])
    maps[2] = 2.3
    first = torch.tensor([[0, 0], [1, 2], [2, 1], [0, 1]])
    stop = torch.tensor([size, (3, 3), (2, 4), (2, 2)])
    found = importance.Shares(maps, size).inside(first, stop, of)
    for i, sample in enumerate(of[:3].tolist()):
        at_pixels = linear(maps[sample].double().numpy(), size)
        at_pixels -= at_pixels.min()
        (top, left), (bottom, right) = first[i].tolist(), stop[i].tolist()
        expected = at_pixels[top:bottom, left:right].sum() / at_pixels.sum()
        assert float(found[i]) == pytest.approx(expected, abs=1e-6)
    assert found[3].isnan()
    none = torch.zeros(0, 2, dtype=torch.int64)
    assert importance.Shares(maps[:0], size).inside(none, none, none[:, 0]).shape == (0,)


@pytest.mark.parametrize("size", [(7, 5), (14, 20), (9, 3), (1, 1)], ids=str)
def test_peak(size):
    """The pixel that holds the middle of the largest value, the first of equal ones."""
    maps = images_of((4, 7, 5), torch.float32)
    maps[2], maps[3, 3, 2], maps[3, 4, 1] = 1.5, 20, 20
    found = importance.peak(maps, size)
    for one, *place in zip(maps.numpy(), *found, strict=True):
        largest = np.argwhere(one == one.max())[0]
        for pixel, at, side, own in zip(place, largest, size, one.shape, strict=True):
            assert pixel <= (at + 0.5) * side / own < pixel + 1
    assert [len(axis) for axis in importance.peak(maps[:0], size)] == [0, 0]


def test_fine_grained_saliency_of_a_side_of_one_pixel_has_no_surroundings():
    assert torch.equal(fm.fine_grained_saliency(torch.rand(1, 1, 1, 1)), torch.zeros(1, 1, 1))
    assert saliency.resized(torch.rand(2, 3, 4), (3, 4)).shape == (2, 3, 4)
