"""Launching Triton kernels: what is compiled once is launched without Triton's own search for it; and what several of
them are given of a plan."""

from __future__ import annotations

import functools
import itertools
import operator
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fusedmix import partners
from fusedmix.backends.triton.numbers import INTERPRETED
from fusedmix.methods import Pairing

WARPS = 4
_LOW, _HIGH = -(1 << 31), 1 << 31  # From _LOW on, below _HIGH: what 32 bits hold.


class Kernel:
    """A kernel and what has been compiled of it.

    Triton's launcher finds the compiled kernel by looking at every argument, which takes about as long as everything
    else that a call does. Here it is found by a key that holds all that Triton specialises on: the constants, the
    types of arguments and elements, which pointers are multiples of 16, and which numbers need 64 bits. Kernels are
    declared so that nothing else is, but for what tuples hold.
    """

    def __init__(self, function: Any, warps: int = WARPS) -> None:
        self.function, self.warps = function, warps
        # By the types of arguments: where tensors and tuples are, which are integers, and what has been compiled.
        self._of_types: dict[Any, tuple[list[int], list[int], list[bool], dict[Any, Any]]] = {}

    def launch(self, programs: int, device: torch.device, named: dict[str, Any]) -> None:
        """Launches so many programs. `named` has what every parameter is, by its name, in any order.

        Raises:
            KeyError: the name of a parameter that is not given.
            TypeError: a name is that of no parameter.
        """
        in_order, arguments = self._parameters
        values = in_order(named)
        if len(named) != len(values):
            surplus = sorted(named.keys() - set(self.function.arg_names))
            raise TypeError(f"{self.function.__name__} has no parameter {', '.join(surplus)}.")
        self(programs, values[:arguments], values[arguments:], device)

    @functools.cached_property
    def _parameters(self) -> tuple[Callable[[dict[str, Any]], tuple[Any, ...]], int]:
        """What puts values that have names in the order of the parameters; and how many come before the constants."""
        names, annotated = self.function.arg_names, self.function.fn.__annotations__
        return operator.itemgetter(*names), sum("constexpr" not in str(annotated.get(name)) for name in names)

    def __call__(
        self, programs: int, arguments: tuple[Any, ...], constants: tuple[Any, ...], device: torch.device
    ) -> None:
        """Launches, with what the parameters are in order, on the current stream of a device; on the CPU, runs in
        Triton's interpreter."""
        if programs == 0:
            return
        if INTERPRETED:
            import numpy as np

            with np.errstate(all="ignore"):  # On a GPU infinities are no news either.
                self.function[(programs,)](*arguments, *constants)
            return
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                self(programs, arguments, constants, device)
            return
        # Loops over the whole of the arguments are C's: this is the time that a launch takes on the host.
        types = tuple(map(type, arguments))
        of_types = self._of_types.get(types)
        if of_types is None:
            tensors, tuples = (
                [i for i, of in enumerate(types) if issubclass(of, kind)] for kind in (torch.Tensor, tuple)
            )
            of_types = self._of_types[types] = (tensors, tuples, [issubclass(of, int) for of in types], {})
        tensors, tuples, are_integers, made = of_types
        numbers = list(itertools.compress(arguments, are_integers))
        narrow = _LOW <= min(numbers) and max(numbers) < _HIGH
        parts = [device.index, constants, narrow or tuple(_LOW <= number < _HIGH for number in numbers)]
        # Addresses as numbers: of a tensor the launcher would ask for its address, and the driver whose that is.
        values = list(arguments)
        for i in tensors:
            values[i] = pointer = arguments[i].data_ptr()
            parts += arguments[i].dtype, pointer % 16 == 0
        for i in tuples:
            parts.append(_specialised_on(arguments[i]))
        key = tuple(parts)
        compiled = made.get(key)
        if compiled is None:
            made[key] = self.function[(programs,)](*arguments, *constants, num_warps=self.warps, enable_fp_fusion=False)
        else:
            compiled[(programs, 1, 1)](*values, *constants)


@functools.lru_cache(maxsize=4096)
def _specialised_on(numbers: tuple[int, ...]) -> Any:
    """What a kernel is compiled for of a tuple, into which Triton's do_not_specialize does not reach."""
    return tuple((_LOW <= number < _HIGH, number == 1, number % 16 == 0) for number in numbers)


@functools.lru_cache(maxsize=64)
def multiprocessors(device: torch.device) -> int:
    """Of a GPU; in the interpreter, few enough that tests see batches that are cut into units."""
    return 2 if INTERPRETED else torch.cuda.get_device_properties(device).multi_processor_count


def milliseconds(call: Callable[[], None], device: torch.device, repeats: int = 10) -> float:
    """The median time of a call."""
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            with torch.cuda.device(device):
                start.record()
                call()
                stop.record()
                stop.synchronize()
            times.append(start.elapsed_time(stop))
        else:
            begin = time.perf_counter()
            call()
            times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times)


# ---- What kernels are given ------------------------------------------------------------------------------------------


def brought(device: torch.device, part: Tensor) -> Tensor:
    """A part of a plan, contiguous, on a device.

    Raises:
        RuntimeError: it is on the CPU while a CUDA graph is captured, which would keep it for ever.
    """
    if part.device != device:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "fusedmix: a plan on the CPU cannot be captured in a CUDA graph, but for one mask for the whole batch "
                "(none of FMix) and partners by roll or flip. Move it first: plan.to(device)."
            )
        part = part.to(device, non_blocking=True)
    return part.contiguous()


def of_partners(partner: Tensor, pairing: int, instead: Tensor) -> dict[str, Any]:
    """What `partner_of` takes: the partners, brought to where `instead` is, or `instead`, which is not read, where a
    formula gives them; and PAIRING, which is RANDOM where none does."""
    if pairing in (Pairing.ROLL, Pairing.FLIP):
        return {"partner": instead, "PAIRING": int(pairing)}
    return {"partner": brought(instead.device, partner), "PAIRING": int(Pairing.RANDOM)}


def pairing_of(partner: Tensor, pairing: int) -> int:
    """The pairing by which kernels may find the partners: by formula only where those that the host can read are the
    formula's. Hand-made ones need not be."""
    if not Pairing(pairing).is_formula or partner.device.type != "cpu":
        return pairing
    formula = partners.formula(Pairing(pairing), partner.shape[0], partner.device)
    return pairing if torch.equal(partner, formula) else Pairing.RANDOM


def of_seed(seed: Tensor, instead: Tensor) -> dict[str, Any]:
    """What `seed_of` takes: the seed, if it is on the device of `instead`, else its value and `instead`, which is not
    read. Both are int64."""
    if seed.device == instead.device:
        return {"seed": seed, "seeded": 1, "seed_value": 0}
    return {"seed": instead, "seeded": 0, "seed_value": int(seed)}
