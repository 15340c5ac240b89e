// What the shim watches and what it saw: the interface for tests (bind_log.h has it in Python).
//
// The rules, for every byte of a watched buffer, in each launch:
//   - nothing but watched buffers and the kernel's arguments is touched, and at aligned addresses;
//   - what is read has been written;
//   - a byte that one block writes, no other block reads or writes;
//   - within a block, between two barriers, a byte that one thread writes no other thread reads or writes;
//   - of a buffer that is exchanged, a byte is written once, and not read after that;
//   - in a dependent launch, which may begin before the one before has ended, a thread that has not waited touches nothing
//     that the one before writes, and writes nothing that it reads.
// They are checked on a record of who touched what, so a race is found in whichever order the threads happen to run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "../include/fusedmix/limits.h"

namespace fusedmix::shim {

// A broken rule. Thrown by launch(); the launch is abandoned, what it had written by then stays written.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Lets kernels touch `bytes` bytes at `pointer`. Without `initialised` a kernel must write a byte before any reads it,
// in the same launch or an earlier one. Throws std::invalid_argument if the name is taken or another buffer overlaps.
void watch(const void* pointer, size_t bytes, const std::string& name, bool writable = true, bool initialised = true);
// From now on kernels exchange what is in the buffer: they need all of a place as it was when they were launched.
void exchange(const std::string& name);
void forget(const std::string& name);
void forget_all();

// The order of blocks and threads in all later launches is a function of the seed.
void seed(uint64_t value);
// How likely a thread is to give way before an access, in [0, 1]; at first 1/32.
void set_yield_probability(double p);

// The device that launches run on; at first one with the least shared memory that there is.
void set_limits(const device::Limits& limits);
const device::Limits& limits();

// What a launch did to a buffer.
struct Use {
  std::string name;
  uint64_t read_bytes = 0, written_bytes = 0;                    // a byte read twice counts twice
  uint64_t distinct_read_bytes = 0, distinct_written_bytes = 0;  // and here once
  uint32_t max_reads = 0, max_writes = 0;                        // of the byte read, or written, most often
  std::map<size_t, uint64_t> read_widths, write_widths;          // bytes of an access -> number of accesses
};

struct Launch {
  int64_t blocks;
  int threads;
  std::string arguments;    // the type of the kernel's arguments
  size_t shared_bytes = 0;  // of the block that declared most, with what the launch gave
  bool dependent = false;
  std::vector<Use> uses;    // one for each watched buffer, in their order, and one for "arguments"
  std::string error;        // empty if all was well
};

// How often each byte was read and written since reset_log().
struct Counts {
  std::vector<uint32_t> reads, writes;
};

// Forgets launches and counts. What is watched, and which bytes have been written, stays.
void reset_log();
const std::vector<Launch>& launches();
Counts counts(const std::string& name);

}  // namespace fusedmix::shim
