"""Draws the pictures of the documentation.

python docs/pictures/draw.py [FOLDER]     # default: this one; needs the demo extra

Masks and label weights are what the modules make; everything else is a diagram.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("FUSEDMIX_BACKEND", "reference")  # no compiler is needed for a picture

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

import fusedmix as fm
from fusedmix.demo.methods import METHODS, Method, mix_with
from fusedmix.demo.photos import load_photos

INK, TEAL, ORANGE, GREY, PALE = "#22313a", "#00796b", "#d9730d", "#8a979e", "#e3f1ef"


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A sheet in inches, (0, 0) at the lower left."""
    figure = plt.figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def _box(
    axes: Axes,
    x: float,
    y: float,
    w: float,
    h: float,
    text: str,
    *,
    face: str = PALE,
    edge: str = TEAL,
    size: float = 9,
) -> None:
    shape = FancyBboxPatch(
        (x, y), w, h, boxstyle="round,pad=0,rounding_size=.06", facecolor=face, edgecolor=edge, linewidth=1.2
    )
    axes.add_patch(shape)
    axes.text(x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=size, color=INK, linespacing=1.35)


def _arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    *,
    color: str = INK,
    bend: float = 0,
    width: float = 1.3,
) -> None:
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=11,
            color=color,
            linewidth=width,
            connectionstyle=f"arc3,rad={bend}",
            shrinkA=0,
            shrinkB=0,
        )
    )


def way() -> Figure:
    """From a call of a module to a kernel."""
    figure, axes = _canvas(9.6, 3.7)
    steps = [
        ("module", "finds images, masks\nand labels in the\nbatch; checks them"),
        ("sample", "draws: by torch's\ngenerator or by\nPhilox"),
        ("plan", "partner, λ, weight,\n≤ 8 numbers a mask\n(FMix: a bit a pixel)"),
        ("operator", "schema, checks,\ngradient: defined\nonce"),
        ("kernel", "each byte read once,\nwritten once; labels\nmixed beside"),
    ]
    for k, (name, what) in enumerate(steps):
        x = 0.15 + 1.9 * k
        _box(axes, x, 2.1, 1.6, 1.35, "", face=PALE)
        axes.text(x + 0.8, 3.2, name, ha="center", va="center", fontsize=11, color=TEAL, weight="bold")
        axes.text(x + 0.8, 2.6, what, ha="center", va="center", fontsize=8.2, color=INK, linespacing=1.35)
        if k:
            _arrow(axes, (x - 0.28, 2.78), (x - 0.03, 2.78))
    axes.text(0.95, 1.72, "mix(images, labels)", ha="center", fontsize=8.5, color=GREY, family="monospace")
    axes.text(2.85, 1.72, "mix.sample(...)", ha="center", fontsize=8.5, color=GREY, family="monospace")
    axes.text(4.75, 1.72, "MixPlan", ha="center", fontsize=8.5, color=GREY, family="monospace")
    axes.text(6.65, 1.72, "fm.mix_(x, plan)", ha="center", fontsize=8.5, color=GREY, family="monospace")
    for k, (name, what) in enumerate(
        [("cuda", "C++/CUDA"), ("triton", "Triton"), ("cpp", "C++, CPU"), ("reference", "PyTorch")]
    ):
        x = 1.6 + 2.0 * k
        _box(axes, x, 0.25, 1.6, 0.62, f"{name}\n{what}", face="white", edge=INK, size=8.8)
        _arrow(axes, (6.65, 1.58), (x + 0.8, 0.9), color=GREY, width=1)
    axes.text(0.15, 0.56, "one backend\nfor each device", fontsize=8.2, color=GREY, va="center")
    return figure


def _samples(
    axes: Axes, y: float, n: int, texts: list[str], faces: list[str], x: float = 1.2, step: float = 0.95
) -> None:
    for i in range(n):
        axes.add_patch(Rectangle((x + step * i, y), 0.78, 0.42, facecolor=faces[i], edgecolor=INK, linewidth=1))
        axes.text(x + step * i + 0.39, y + 0.21, texts[i], ha="center", va="center", fontsize=8.5, color=INK)


def cycle() -> Figure:
    """Mixing in place along a cycle of the permutation."""
    figure, axes = _canvas(9.6, 4.35)
    order = [0, 3, 2, 1]
    axes.text(
        0.15,
        4.05,
        "partner = (3, 0, 1, 2), in place: x[i] becomes M·x[i] + (1-M)·x[partner[i]]. "
        "One thread, one vector of each sample.",
        fontsize=9,
        color=INK,
    )
    for k in range(5):
        y = 3.3 - 0.78 * k
        done = set(order[:k])
        texts = [f"mixed {i}" if i in done else f"x[{i}]" for i in range(4)]
        faces = ["#b9dcd6" if i in done else "white" for i in range(4)]
        _samples(axes, y, 4, texts, faces, x=1.6)
        axes.text(
            0.15, y + 0.21, "start" if k == 0 else f"step {k}", fontsize=9, color=TEAL, va="center", weight="bold"
        )
        if k == 0:
            what = "load x[0]; keep it for the last step"
        elif k < 4:
            what = f"load x[{order[k]}]; write x[{order[k - 1]}] from both; x[{order[k]}] stays in a register"
        else:
            what = "write x[1] from x[1] and the x[0] that was kept"
        axes.text(5.55, y + 0.21, what, fontsize=8.8, color=INK, va="center")
        if k:
            written = order[k - 1]
            source = 1.6 + 0.95 * written + 0.39
            axes.add_patch(
                Rectangle((1.6 + 0.95 * written, y), 0.78, 0.42, fill=False, edgecolor=ORANGE, linewidth=2.2)
            )
            axes.text(source, y - 0.13, "write", fontsize=7, color=ORANGE, ha="center", va="center")
    return figure


def columns() -> Figure:
    """A batch in columns, one a block of threads, mixed in place through shared memory."""
    figure, axes = _canvas(9.6, 3.3)
    partners = [3, 0, 4, 2, 1]
    x0, y0, wide, high, spread = 1.0, 0.55, 0.62, 0.32, 4
    axes.text(
        0.15,
        3.02,
        f"partner = {tuple(partners)}, in place: every block has a column of all samples",
        fontsize=9,
        color=INK,
    )
    for block in range(spread):
        mine = block == 1
        x = x0 + block * (wide + 0.1)
        axes.text(x + wide / 2, 2.5, f"block {block}", ha="center", fontsize=7.8, color=TEAL if mine else GREY)
        for i in range(len(partners)):
            face, edge = ("#b9dcd6", INK) if mine else ("white", GREY)
            place = (x, y0 + high * (len(partners) - 1 - i))
            axes.add_patch(Rectangle(place, wide, high, facecolor=face, edgecolor=edge, linewidth=1))
    for i, j in enumerate(partners):
        y = y0 + high * (len(partners) - 1 - i)
        axes.text(x0 - 0.1, y + high / 2, f"sample {i}", ha="right", va="center", fontsize=8, color=INK)
        for x, text, face in ((5.0, f"x[{i}]", "#fbe3cc"), (7.6, f"M·x[{i}] + (1-M)·x[{j}]", "#b9dcd6")):
            w = 0.9 if x < 6 else 1.85
            axes.add_patch(Rectangle((x, y), w, high, facecolor=face, edgecolor=INK, linewidth=1))
            axes.text(x + w / 2, y + high / 2, text, ha="center", va="center", fontsize=8, color=INK)
    axes.text(5.45, 2.5, "shared memory", ha="center", fontsize=7.8, color=ORANGE)
    axes.text(8.52, 2.5, "the column", ha="center", fontsize=7.8, color=TEAL)
    _arrow(axes, (3.95, 1.35), (4.9, 1.35), color=ORANGE, width=1.8)
    axes.text(4.42, 1.47, "read all", ha="center", fontsize=8, color=ORANGE)
    _arrow(axes, (6.0, 1.35), (7.5, 1.35), color=TEAL, width=1.8)
    axes.text(6.75, 1.47, "wait once, write all", ha="center", fontsize=8, color=TEAL)
    axes.text(
        0.15,
        0.1,
        "Nothing of a column is written before all of it was read, and no block touches the column of another.",
        fontsize=8.2,
        color=GREY,
    )
    return figure


def floor() -> Figure:
    """Bytes moved, in batches."""
    figure, axes = plt.subplots(figsize=(8.4, 3.6))
    bars = [
        ("Mixup, torchvision or timm (batch)", 9.0, GREY),
        ("Mixup, HMix, GMix: the floor", 2.0, TEAL),
        ("CutMix, torchvision, box 25 %", 4.5, GREY),
        ("CutMix, timm (batch, in place), box 25 %", 2.5, GREY),
        ("CutMix in place, box 25 %: the floor", 0.5, TEAL),
    ]
    names, values, colors = zip(*bars, strict=True)
    places = np.arange(len(bars))[::-1]
    axes.barh(places, values, color=colors, height=0.62)
    for place, value in zip(places, values, strict=True):
        axes.text(value + 0.12, place, f"{value:g} N", va="center", fontsize=9, color=INK)
    axes.set_yticks(places, names, fontsize=9, color=INK)
    axes.set(xlim=(0, 10), xlabel="bytes read and written, in sizes N of the batch (counted, not measured)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


def randomness() -> Figure:
    """Where the numbers come from."""
    figure, axes = _canvas(9.6, 3.9)
    axes.text(0.15, 3.6, 'sampling="host"', fontsize=10.5, color=TEAL, weight="bold")
    _box(axes, 0.15, 2.65, 2.0, 0.7, "torch's CPU generator\n(torch.manual_seed)")
    _box(axes, 2.75, 2.65, 2.6, 0.7, "λ, partner, centre: the calls of\ntorchvision, in its order")
    _box(axes, 5.95, 2.65, 3.45, 0.7, "plan on the CPU; travels to a GPU\nwith the launch, nothing waits")
    _arrow(axes, (2.2, 3.0), (2.7, 3.0))
    _arrow(axes, (5.4, 3.0), (5.9, 3.0))
    axes.text(0.15, 2.2, 'sampling="device"', fontsize=10.5, color=TEAL, weight="bold")
    _box(axes, 0.15, 1.2, 2.0, 0.75, "one seed, from the\nsame generator")
    _box(
        axes,
        2.75,
        0.35,
        3.6,
        1.75,
        "Philox4x32-10\n\nkey: the 64 bits of the seed\ncounter: (sample, stream, call)\n"
        "stream: λ, centre, method, partner, ...",
    )
    _box(axes, 6.95, 1.2, 2.45, 0.75, "the same numbers on\nevery device and backend")
    _arrow(axes, (2.2, 1.57), (2.7, 1.57))
    _arrow(axes, (6.4, 1.57), (6.9, 1.57))
    _box(
        axes,
        0.15,
        0.35,
        2.0,
        0.65,
        "captured in a CUDA graph:\nthe device's generator",
        face="white",
        edge=ORANGE,
        size=8.2,
    )
    _arrow(axes, (2.2, 0.68), (2.7, 0.68), color=ORANGE)
    axes.text(6.95, 0.68, "a new seed with every replay", fontsize=8.6, color=ORANGE, va="center")
    return figure


def masks() -> Figure:
    """What the modules draw: masks at λ = .6, and the label weights at α = 1."""
    methods: list[tuple[str, fm.MixTransform]] = [
        ("MixUp", fm.MixUp()),
        ("CutMix", fm.CutMix()),
        ("HMix, ratio .75", fm.HMix()),
        ("GMix, released", fm.GMix()),
        ("GMix, paper", fm.GMix(variant="paper")),
        ("FMix, paper", fm.FMix()),
        ("FMix, released", fm.FMix(variant="released")),
    ]
    figure, grid = plt.subplots(2, len(methods), figsize=(11.2, 3.7), height_ratios=(1.15, 1))
    for k, (name, mix) in enumerate(methods):
        plan = mix.sample(1, (128, 128), lam=0.6, seed=14)
        above, below = grid[:, k]
        above.imshow(plan.mask()[0].numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        above.set_title(f"{name}\nw = {plan.weight.item():.2f}", fontsize=8.5, color=INK)
        above.set_xticks([])
        above.set_yticks([])
        count, side = (2_000, 32) if isinstance(mix, fm.FMix) else (20_000, 224)  # FMix draws its pixels as well
        weights = type(mix)(**_of(mix), per="sample").sample(count, (side, side), seed=1).weight
        below.hist(weights.numpy(), bins=32, range=(0, 1), color=TEAL, density=True)
        below.set(xlim=(0, 1), ylim=(0, 2.7), yticks=[])
        below.set_xticks([0, 0.5, 1], ["0", "½", "1"])
        below.tick_params(labelsize=7.5)
        below.spines[["top", "right", "left"]].set_visible(False)
    grid[0, 0].set_ylabel("mask", fontsize=9)
    grid[1, 0].set_ylabel("label weights, α = 1", fontsize=9)
    figure.tight_layout(w_pad=0.6)
    return figure


def _of(mix: fm.MixTransform) -> dict[str, str]:
    return {"variant": mix.variant} if isinstance(mix, (fm.GMix, fm.FMix)) else {}


def fourier() -> Figure:
    """From noise to stored bits."""
    size, lam, fades = (128, 128), 0.6, (0.5, 0.02, 0.0)
    plans = [fm.FMix(max_soft=soft).sample(1, size, lam=lam, seed=5) for soft in fades]
    figure = plt.figure(figsize=(9.6, 2.75))
    captions = [
        "grey: the order of the pixels\n(max_soft=.5 shows most of it)",
        "max_soft=.02: 16 bits a pixel\nlinear over 2 % on either side",
        "max_soft=0: one bit a pixel\n⌊.6·S⌋ or ⌈.6·S⌉ ones, S pixels",
    ]
    for k, plan in enumerate(plans):
        axes = figure.add_axes((0.03 + 0.235 * k, 0.2, 0.2, 0.75))
        axes.imshow(plan.mask()[0].numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel(captions[k], fontsize=8, color=INK)
    words = plans[-1].pixels
    assert words is not None
    axes = figure.add_axes((0.74, 0.2, 0.25, 0.75))
    axes.axis("off")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.text(0, 0.93, "plan.pixels, int32", fontsize=9, color=TEAL, weight="bold")
    first = (words[0, 32 * 4 : 32 * 4 + 4].long() & 0xFFFFFFFF).tolist()
    for k, word in enumerate(first):
        axes.text(0, 0.78 - 0.13 * k, f"{word:08x}", fontsize=10, family="monospace", color=INK)
    axes.text(
        0,
        0.22,
        f"… {words.shape[1]} words for {size[0]}×{size[1]} pixels:\na float32 mask has {size[0] * size[1]}",
        fontsize=8.2,
        color=INK,
    )
    return figure


# Of Mixup from bytes to bfloat16: what each operation reads and writes, in bytes for each byte of the batch.
TORCHVISION = {"ToDtype": 5 + 8, "Normalize": 8 + 8, "MixUp": 8 + 8 + 8 + 12, "to bfloat16": 6}
TIMM = {"PrefetchLoader": 3 + 4 + 4, "Mixup": 4 + 4 + 4 + 6}
ONE_PASS = {"its byte": 1, "the partner's": 1, "the result": 2}


def one_pass() -> Figure:
    """Bytes moved from a batch of bytes to a mixed batch in bfloat16."""
    figure, axes = plt.subplots(figsize=(9.6, 2.9))
    chains = [("torchvision", TORCHVISION), ("timm", TIMM), ("fusedmix, one pass", ONE_PASS)]
    faces = ("#cfd6da", "#aab6bc", "#97a3aa", "#c0c9ce")
    for place, (name, parts) in zip((2, 1, 0), chains, strict=True):
        ours, left = parts is ONE_PASS, 0
        for k, (what, bytes_) in enumerate(parts.items()):
            face = ("#b9dcd6", "#b9dcd6", TEAL)[k] if ours else faces[k]
            axes.barh(place, bytes_, left=left, color=face, edgecolor="white", height=0.62)
            if not ours:
                text = what.replace(" ", "\n") if bytes_ < 8 else what
                axes.text(left + bytes_ / 2, place, text, ha="center", va="center", fontsize=8.2, color=INK)
            left += bytes_
        said = f"{left} N" if not ours else f"{left} N: own byte, partner's byte, 2 bytes of the result"
        axes.text(left + 0.8, place, said, va="center", fontsize=9, color=TEAL if ours else INK)
        axes.text(-1, place, name, ha="right", va="center", fontsize=9, color=INK)
    axes.set(
        xlim=(0, 80),
        yticks=[],
        xlabel="bytes read and written, in sizes N of the batch of bytes (counted, not measured)",
    )
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.subplots_adjust(left=0.16, right=0.98, top=0.98, bottom=0.2)
    return figure


def photographs() -> Figure:
    """Four photographs, and what six methods make of them at λ = .6. The partner of each is the photograph above it."""
    photos, _ = load_photos(180)
    photos = photos[[1, 2, 4, 5]]  # the cat, the coffee, the palace and the flower
    mixers = {
        "MixUp": fm.MixUp(per="sample", pairing="roll"),
        "CutMix": fm.CutMix(per="sample", pairing="roll", placement="inside"),
        "HMix": fm.HMix(per="sample", pairing="roll"),
        "GMix": fm.GMix(per="sample", pairing="roll", variant="paper"),
        "FMix": fm.FMix(per="sample", pairing="roll"),
        "PuzzleMix": fm.PuzzleMix(cells=10, per="sample", pairing="roll", importance=fm.spectral_saliency),
    }
    columns = {"photograph": photos}
    for name, mixer in mixers.items():
        given = {"importance": fm.spectral_saliency(photos), "images": photos} if name == "PuzzleMix" else {}
        columns[name] = fm.mix(photos, mixer.sample(len(photos), photos.shape[2:], lam=0.6, seed=3, **given))
    side, gap, head = 1.2, 0.06, 0.24
    width, height = len(columns) * (side + gap) + gap, head + len(photos) * (side + gap)
    figure, axes = _canvas(width, height)
    for k, (name, images) in enumerate(columns.items()):
        left = gap + k * (side + gap)
        axes.text(left + side / 2, height - head / 2, name, ha="center", va="center", fontsize=9, color=INK)
        for row, image in enumerate(images):
            bottom = height - head - (row + 1) * side - row * gap
            corners = (left, left + side, bottom, bottom + side)
            axes.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy(), extent=corners, interpolation="antialiased")
    axes.set(xlim=(0, width), ylim=(0, height))
    return figure


def small_pictures() -> dict[str, torch.Tensor]:
    """The cat as each method mixes it with the flower, and some with more photographs: (3, 144, 144) by the name of the
    module. Of twenty draws it is the one whose label weight is nearest to .6."""
    photos, _ = load_photos(144)
    photos = photos[[1, 2, 4, 5]]  # The partner of the first is the last.
    methods = {
        "Mosaic": Method("Mosaic", "", fm.Mosaic),
        "RICAP": Method("RICAP", "", partial(fm.RICAP, beta=3.0)),  # so that all four parts are seen
    }
    for method in METHODS:
        methods.setdefault(method.name.split()[0], method)  # The first of two variants is the default.
    del methods["RandomMix"]  # It looks like one of its methods.
    pictures = {}
    for name, method in methods.items():
        mixtures = (mix_with(method, photos, seed=seed) for seed in range(20))
        best = min(mixtures, key=lambda mixture: abs(mixture.plan.weight[0].item() - 0.6))
        pictures[name] = best.images[0].clamp(0, 1)
    return pictures


PICTURES: dict[str, Callable[[], Figure]] = {
    "way": way,
    "cycle": cycle,
    "columns": columns,
    "floor": floor,
    "one_pass": one_pass,
    "randomness": randomness,
    "masks": masks,
    "fourier": fourier,
}


def main(folder: Path) -> None:
    mpl.rcParams.update(
        {"svg.hashsalt": "fusedmix", "svg.fonttype": "path", "font.family": "DejaVu Sans", "axes.labelcolor": INK}
    )
    for name, draw in PICTURES.items():
        figure = draw()
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)
    figure = photographs()
    figure.savefig(folder / "photographs.jpg", dpi=150, pil_kwargs={"quality": 88})
    plt.close(figure)
    (folder / "methods").mkdir(exist_ok=True)
    for name, image in small_pictures().items():
        path = folder / "methods" / f"{name.lower()}.jpg"
        plt.imsave(path, image.permute(1, 2, 0).numpy(), pil_kwargs={"quality": 80})


if __name__ == "__main__":
    mpl.use("svg")
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
