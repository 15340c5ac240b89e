// What a device allows, as far as launches depend on it.
#pragma once

namespace fusedmix::device {

struct Limits {
  int multiprocessors;
  int threads;           // of all blocks on a multiprocessor
  int shared_bytes;      // of a block
  int all_shared_bytes;  // of all blocks on a multiprocessor,
  int reserved_bytes;    // with what each takes beside its own
};

}  // namespace fusedmix::device
