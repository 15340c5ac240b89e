"""Who reads and writes which byte: a log of Triton's interpreter.

The interpreter runs the programs of a launch one after another, and so hides that one reads what another writes. The
log holds every access of every program, as the kernels' own arithmetic addresses it, and finds that.
"""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import numpy as np
import torch
from triton.runtime.interpreter import interpreter_builder

from fusedmix.backends.triton.launch import Kernel


class Launch(NamedTuple):
    """What the programs of a launch did: of every byte that was touched, its address, by which program, as often."""

    kernel: str
    programs: int
    arguments: dict  # of the kernel, by name
    read: tuple[np.ndarray, np.ndarray]  # addresses, programs
    written: tuple[np.ndarray, np.ndarray]

    def counts(self, x):
        """How often each element of x was read and written, two tensors of its shape: all bytes of an element alike."""
        return tuple(_counts(addresses, x) for addresses, _ in (self.read, self.written))

    def races(self):
        """Addresses that one program writes and another one reads or writes."""
        at, by = self.written
        once, first = np.unique(at, return_index=True)
        writer = by[first]
        two = at[by != writer[np.searchsorted(once, at)]]
        read_at, reader = self.read
        place = np.searchsorted(once, read_at)
        found = place < len(once)
        place, read_at, reader = place[found], read_at[found], reader[found]
        foreign = read_at[(once[place] == read_at) & (writer[place] != reader)]
        return np.unique(np.concatenate([two, foreign]))

    def outside(self, readable, writable):
        """Addresses that were read or written and are no element of these tensors."""
        return np.concatenate(
            [
                np.setdiff1d(self.read[0], bytes_of(*readable, *writable)),
                np.setdiff1d(self.written[0], bytes_of(*writable)),
            ]
        )


def elements_of(x):
    """The addresses of the elements of a tensor, in its shape."""
    at = np.full(x.shape, x.data_ptr(), dtype=np.int64)
    for d, (n, stride) in enumerate(zip(x.shape, x.stride(), strict=True)):
        at += (np.arange(n) * stride * x.element_size()).reshape([-1 if d == e else 1 for e in range(x.ndim)])
    return at


def bytes_of(*tensors):
    found = [(elements_of(x)[..., None] + np.arange(x.element_size())).ravel() for x in tensors if x.numel()]
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _counts(addresses, x):
    at, how_often = np.unique(addresses, return_counts=True)
    wanted = elements_of(x)[..., None] + np.arange(x.element_size())
    place = np.searchsorted(at, wanted).clip(max=max(0, len(at) - 1))
    of_bytes = np.where(at[place] == wanted, how_often[place], 0) if len(at) else np.zeros(wanted.shape, np.int64)
    assert (of_bytes == of_bytes[..., :1]).all(), "parts of elements"
    return torch.from_numpy(of_bytes[..., 0])


@contextlib.contextmanager
def logged():
    """A list to which every launch within is added."""
    launches = []
    builder, call = interpreter_builder, Kernel.__call__
    load, store = builder.create_masked_load, builder.create_masked_store
    accesses = {"read": [], "written": []}

    def note(kind, pointers, mask):
        size = pointers.get_element_ty().primitive_bitwidth // 8
        addresses, mask = np.broadcast_arrays(pointers.data.astype(np.int64), mask.data)
        found = (addresses[mask][:, None] + np.arange(size)).ravel()
        accesses[kind].append((found, np.full(len(found), builder.grid_idx[0])))

    def masked_load(pointers, mask, *rest):
        note("read", pointers, mask)
        return load(pointers, mask, *rest)

    def masked_store(pointers, value, mask, *rest):
        note("written", pointers, mask)
        return store(pointers, value, mask, *rest)

    def launch(kernel, programs, arguments, constants, device):
        for of_kind in accesses.values():
            of_kind.clear()
        call(kernel, programs, arguments, constants, device)
        none = (np.empty(0, np.int64), np.empty(0, np.int64))
        read, written = (
            tuple(map(np.concatenate, zip(*of_kind, strict=True))) or none for of_kind in accesses.values()
        )
        named = dict(zip(kernel.function.arg_names, arguments, strict=False))
        launches.append(Launch(kernel.function.__name__, programs, named, read, written))

    builder.create_masked_load, builder.create_masked_store, Kernel.__call__ = masked_load, masked_store, launch
    try:
        yield launches
    finally:
        del builder.create_masked_load, builder.create_masked_store  # the instance's; the class has its own
        Kernel.__call__ = call
