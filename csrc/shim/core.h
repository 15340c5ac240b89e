// What the log and the scheduler share: who is running, and the rule of races.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "log.h"

namespace fusedmix::shim {

// Who made an access, in one word: block + 1 (32 bits), barriers the block has passed (21), thread (11). 0 is nobody.
using Who = uint64_t;
constexpr int kThreadBits = 11, kEpochBits = 21;
constexpr Who kThreadMask = (Who{1} << kThreadBits) - 1;
constexpr Who kEpochMask = ((Who{1} << kEpochBits) - 1) << kThreadBits;
// All ones in a field stand for several: no block and no thread has that number.
constexpr Who kSeveralBlocks = ~Who{0};
constexpr int kMaxThreads = 1024;
constexpr int64_t kMaxBlocks = 0x7FFFFFFF;

inline Who who(uint32_t block, uint64_t epoch, uint32_t thread) {
  return (Who{block} + 1) << 32 | epoch << kThreadBits | thread;
}

// Whether nothing orders an earlier access by `other` and one by `me`.
inline bool unordered(Who other, Who me) {
  const Who differs = other ^ me;
  return other != 0 && (differs >> 32 != 0 || ((differs & kEpochMask) == 0 && (differs & kThreadMask) != 0));
}

// The readers so far, and me. What a block read before its last barrier may be forgotten.
inline Who with_reader(Who readers, Who me) {
  const Who differs = readers ^ me;
  if (readers != 0 && differs >> 32 != 0) return kSeveralBlocks;
  const bool several = readers != 0 && (differs & kEpochMask) == 0 && (differs & kThreadMask) != 0;
  return several ? me | kThreadMask : me;
}

// The thread that runs. Plain globals: all threads of all launches are fibers of one thread of the system.
struct Running {
  Who me = 0;  // 0 outside of launches
  uint32_t thread = 0, block = 0, blocks = 0;
  uint64_t accesses_left = ~uint64_t{0};  // until it gives way
  bool ahead = false;                     // the launch before may not have ended
};
extern Running running;

// Lets other threads run.
void give_way();
// Maybe lets other threads run: before each access.
inline void step() {
  if (--running.accesses_left == 0) give_way();
}

[[noreturn]] void fail(const std::string& what);
std::string describe(Who w);
// The message of a race: "race ...: <place>: <me> <does> what <other> has <done>".
[[noreturn]] void fail_race(const std::string& place, Who me, bool writes, Who other, bool wrote);

// The log's part of a launch: the accesses between the two make its `uses` and are added to the counts.
void begin_launch(const Launch& launch, const void* arguments, size_t argument_bytes);
void end_launch(size_t shared_bytes, const std::string& error);

}  // namespace fusedmix::shim
