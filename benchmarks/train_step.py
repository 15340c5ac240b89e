"""What mixing takes of a training step: nothing mixed, torchvision, timm and fusedmix, images and labels.

    python -m benchmarks.train_step [--threads 2]              # ResNet-20 on 128x3x32x32, float32, on the CPU
    python -m benchmarks.train_step --device cuda              # ResNet-50, ViT-S (224x224) and ResNet-20 on a GPU
    python -m benchmarks.train_step --models vit_s --device cuda --budget 120

A step: mix, forward, soft-target cross entropy, backward, SGD with momentum. On a GPU under bfloat16 autocast,
channels_last, several steps in a row between two synchronisations; ResNet-20 there also as a CUDA graph that holds the
whole step, its mixing included, for what draws on the device (torchvision and timm draw on the host: a graph would
repeat one draw for ever). "none" takes one-hot targets that are there already. Everything once a round, in an order
drawn anew, from the same parameters, momenta, images and seed. The share of the step is given twice: by the
difference to the step without mixing in the same round, which is what counts but drowns in noise where it is small,
and by timing the mixing alone, which leaves out what it changes for its neighbours (and what a loss without dense
targets saves).

Before anything is timed, each of ours that replaces one of theirs is compared with it for the same seeds: images,
targets and the loss of the step. What differs, or fails, is said and left out, and the exit status is 1. Writes
cpu-train-step.csv or <gpu>-train-step.csv, and their environment. Exit status 2: there is no GPU. --dry-run: tiny
batches in float32 on the CPU, the GPU's models as well.
"""

from __future__ import annotations

import itertools
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import RESULTS, noting, parser
from benchmarks.train_mixers import Mixer, disagreement, mixers, seed_all
from benchmarks.train_models import WORKLOADS, Workload
from benchmarks.train_rows import StepTiming, step_table
from fusedmix.backends import choose
from fusedmix.bench.device import finish
from fusedmix.bench.environment import environment, slug
from fusedmix.bench.results import write_csv, write_json
from fusedmix.bench.timing import interleave

_STEPS = 4  # in a row on a GPU: the host runs ahead, as in a training
_WARM_UP = 3


class Training:
    """A model, its optimiser and its batches, put back to one state before every measurement."""

    def __init__(self, workload: Workload, shape: tuple[int, ...], device: torch.device, as_on_gpu: bool) -> None:
        torch.manual_seed(0)
        self.device, self.low_precision = device, device.type == "cuda"
        self.steps = _STEPS if device.type == "cuda" else 1
        format_ = torch.channels_last if as_on_gpu else torch.contiguous_format
        self.model = workload.make(workload.classes, shape[-1]).to(device=device, memory_format=format_)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
        images = torch.randn((self.steps * shape[0], *shape[1:]), device=device).contiguous(memory_format=format_)
        self._pristine, self._images = images, images.clone(memory_format=torch.preserve_format)
        self.x = list(self._images.split(shape[0]))
        self.y = torch.randint(workload.classes, (shape[0],), device=device)
        self.one_hot = torch.nn.functional.one_hot(self.y, workload.classes).float()
        self.step(mixers(workload.classes, self.one_hot)[0], self.x[0])  # makes the momenta
        self._tensors = [*self.model.parameters(), *self.model.buffers()]
        self._tensors += [value for state in self.optimizer.state.values() for value in state.values()]
        self._tensors = [tensor.detach() for tensor in self._tensors if isinstance(tensor, Tensor)]
        self._state = [tensor.clone(memory_format=torch.preserve_format) for tensor in self._tensors]

    def restore(self) -> None:
        for tensor, state in zip(self._tensors, self._state, strict=True):
            tensor.copy_(state)
        self._images.copy_(self._pristine)

    def step(self, mixer: Mixer, x: Tensor) -> Tensor:
        """One step of a training; its loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(mixer, x, self.low_precision)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def loss_in_float32(self, mixer: Mixer, x: Tensor) -> float:
        """Of a step from the state that all begin with."""
        self.restore()
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            return float(self._loss(mixer, x, False))

    def _loss(self, mixer: Mixer, x: Tensor, low_precision: bool) -> Tensor:
        images, target = mixer.mix(x, self.y)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low_precision):
            return mixer.loss(self.model(images), target)

    def timed(self, call: Callable[[Tensor], Any]) -> Callable[[], Callable[[], float]]:
        """A measurement for `interleave`: microseconds of a call on one batch."""
        rounds = itertools.count()

        def measure() -> Callable[[], float]:
            self.restore()
            seed_all(next(rounds))
            finish(self.device)
            start = time.perf_counter()
            for x in self.x:
                call(x)
            finish(self.device)
            microseconds = (time.perf_counter() - start) * 1e6 / self.steps
            return lambda: microseconds

        return measure

    def captured(self, mixer: Mixer) -> Callable[[Tensor], Tensor]:
        """A step as a CUDA graph: called with a batch, copies it to where the graph expects it, and replays the graph.

        Raises:
            RuntimeError: it cannot be captured, or mixes every time alike.
        """
        static = torch.empty_like(self.x[0])
        if self.device.type != "cuda":  # a dry run

            def directly(x: Tensor) -> Tensor:
                return self.step(mixer, static.copy_(x))

            return directly
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                self.step(mixer, static.copy_(self.x[0]))
        torch.cuda.current_stream().wait_stream(stream)
        self.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = self.step(mixer, static)

        def replay(x: Tensor) -> Tensor:
            static.copy_(x)
            graph.replay()
            return loss

        losses = []
        for _ in range(2):
            self.restore()
            losses.append(float(replay(self.x[0])))
        if mixer.method and losses[0] == losses[1]:
            raise RuntimeError("two replays gave the same loss: its draw is frozen")
        return replay


def measure(name: str, device: torch.device, given: Namespace) -> tuple[list[StepTiming], list[str]]:
    """The rows of one model, and what is left out, with the reason."""
    workload = WORKLOADS[name]
    tiny = given.quick or given.dry_run
    as_on_gpu = device.type == "cuda" or given.dry_run
    shape = workload.shape(device.type, tiny)
    training = Training(workload, shape, device, as_on_gpu)
    found = {mixer.name: mixer for mixer in mixers(workload.classes, training.one_hot)}
    failed: list[str] = []
    calls: dict[tuple[str, str], Callable[[Tensor], Any]] = {}
    for mixer in found.values():
        training.restore()
        with noting(failed, f"{name}: {mixer.name}"):
            if mixer.twin:
                differs = disagreement(mixer, found[mixer.twin], training.x[0], training.y, training.loss_in_float32)
                if differs:
                    raise RuntimeError(differs)

            def step(x: Tensor, mixer: Mixer = mixer) -> Any:
                return training.step(mixer, x)

            def mix(x: Tensor, mixer: Mixer = mixer) -> Any:
                return mixer.mix(x, training.y)

            step(training.x[0])
            calls["step", mixer.name] = step
            if mixer.method:
                calls["mixing", mixer.name] = mix
    if workload.captured and as_on_gpu:
        for mixer in found.values():
            if mixer.captured and ("step", mixer.name) in calls:
                with noting(failed, f"{name}: {mixer.name}, as a CUDA graph"):
                    calls["graph step", mixer.name] = training.captured(mixer)

    measures = {key: training.timed(call) for key, call in calls.items()}
    interleave(measures, 1)
    times = interleave(measures, 2 if tiny else given.rounds)
    rows = []
    for (call, mixer_name), microseconds in times.items():
        mixer = found[mixer_name]
        row = StepTiming("wall", mixer.provider, call, mixer.method, per=mixer.per, inplace=mixer.inplace)
        row.backend = choose(device.type) if mixer.provider == "fusedmix" else ""
        row.dtype, row.shape = "bfloat16" if training.low_precision else "float32", "x".join(map(str, shape))
        row.model, row.mixer, row.threads = name, mixer_name, torch.get_num_threads()
        row.record(microseconds)
        without = times.get((call, "none"))
        if without is not None and mixer.method:
            row.record_share(microseconds, without)
        rows.append(row)
    return rows, failed


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments.add_argument("--models", help=f"some of {','.join(WORKLOADS)}; on the CPU: resnet20")
    arguments.add_argument("--threads", type=int, default=2, help="of torch")
    arguments.add_argument("--rounds", type=int, default=25)
    arguments.add_argument("--budget", type=float, default=400.0, help="seconds after which no model is begun")
    arguments.add_argument("--dry-run", action="store_true", help="tiny batches on the CPU; writes only to --out")
    given = arguments.parse_args()
    if given.device == "cuda" and not given.dry_run and not torch.cuda.is_available():
        print("train_step: torch finds no GPU (--dry-run shows on the CPU that it runs)")
        return 2
    torch.set_num_threads(given.threads)
    device = torch.device("cpu" if given.dry_run else given.device)
    here = [
        name for name, workload in WORKLOADS.items() if device.type == "cuda" or workload.cpu_batch or given.dry_run
    ]
    models = given.models.split(",") if given.models else here
    for name in models:
        if name not in here:
            arguments.error(f"--models must be some of {','.join(here)} on {device.type}, but got {name!r}")
    deadline = time.monotonic() + given.budget
    rows: list[StepTiming] = []
    left_out: list[str] = []
    for name in models:
        if time.monotonic() > deadline:
            left_out.append(f"{name}: no time was left")
            continue
        with noting(left_out, name):
            found, failed = measure(name, device, given)
            rows += found
            left_out += failed
        if device.type == "cuda":
            torch.cuda.empty_cache()

    env = environment(device, given.commit)
    if rows and (given.out is not None or not (given.quick or given.dry_run)):
        prefix = given.name or ("dry-run" if given.dry_run else "cpu" if device.type == "cpu" else slug(env["device"]))
        write_csv((given.out or RESULTS) / f"{prefix}-train-step.csv", rows, env)
        write_json((given.out or RESULTS) / f"{prefix}-train-step-environment.json", env)
    for name in models:
        of_model = [row for row in rows if row.model == name]
        if of_model:
            print(f"{name}, {of_model[0].dtype} {of_model[0].shape}, {env['device']}\n")
            print(f"{step_table([asdict(row) for row in of_model])}\n")
    if device.type == "cpu" and not given.dry_run:
        print("ResNet-50, ViT-S and CUDA graphs need a GPU: --device cuda")
    for what in left_out:
        print(f"not measured: {what}")
    return 1 if left_out else 0


if __name__ == "__main__":
    sys.exit(main())
