// The record of who touched which byte, and what is wrong with it.
#include "log.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <sstream>
#include <utility>

#include "core.h"
#include "device.h"

namespace fusedmix::shim {
namespace {

struct Free {
  void operator()(void* p) const { std::free(p); }
};
// Zeros. From calloc: what is never touched of a large buffer's record never takes memory.
template <class T>
using Zeros = std::unique_ptr<T[], Free>;

template <class T>
Zeros<T> zeros(size_t n) {
  Zeros<T> made(static_cast<T*>(std::calloc(n == 0 ? 1 : n, sizeof(T))));
  if (made == nullptr) throw std::bad_alloc();
  return made;
}

constexpr size_t kCommonWidth = 64;  // accesses wider than this are counted in a map

struct Widths {
  uint64_t common[kCommonWidth + 1] = {};
  std::map<size_t, uint64_t> wide;

  void add(size_t bytes) {
    if (bytes <= kCommonWidth) {
      ++common[bytes];
    } else {
      ++wide[bytes];
    }
  }
  std::map<size_t, uint64_t> take() {
    std::map<size_t, uint64_t> taken;
    taken.swap(wide);
    for (size_t bytes = 0; bytes <= kCommonWidth; ++bytes) {
      if (common[bytes] != 0) taken[bytes] = common[bytes];
      common[bytes] = 0;
    }
    return taken;
  }
};

struct Buffer {
  Buffer(const void* pointer, size_t bytes, std::string name, bool writable, bool initialised)
      : begin(reinterpret_cast<uintptr_t>(pointer)),
        bytes(bytes),
        name(std::move(name)),
        writable(writable),
        writer(zeros<Who>(bytes)),
        readers(zeros<Who>(bytes)),
        reads(zeros<uint32_t>(bytes)),
        writes(zeros<uint32_t>(bytes)),
        all_reads(zeros<uint32_t>(bytes)),
        all_writes(zeros<uint32_t>(bytes)),
        before(zeros<uint8_t>(bytes)) {
    if (!initialised) written = zeros<bool>(bytes);
  }

  uintptr_t begin;
  size_t bytes;
  std::string name;
  bool writable;
  bool exchanged = false;
  // Who wrote and who read each byte in this launch, and how often.
  Zeros<Who> writer, readers;
  Zeros<uint32_t> reads, writes;
  // Since reset_log().
  Zeros<uint32_t> all_reads, all_writes;
  // What the launch before did to each byte: kRead, kWritten, both.
  static constexpr uint8_t kRead = 1, kWritten = 2;
  Zeros<uint8_t> before;
  size_t before_first = SIZE_MAX, before_stop = 0;
  // Ever; null if all bytes were there from the beginning.
  Zeros<bool> written;
  // What this launch touched lies in [first, stop): only that much is counted and cleared at its end.
  size_t first = SIZE_MAX, stop = 0;
  Widths read_widths, write_widths;

  bool holds(uintptr_t address, size_t n) const {
    return address - begin < bytes && n <= bytes - (address - begin);
  }
};

struct Log {
  std::vector<std::unique_ptr<Buffer>> watched;  // in the order of watch()
  std::unique_ptr<Buffer> arguments;             // of the running launch
  std::vector<Buffer*> sorted;                   // all of these that have bytes, by address
  Buffer* last_read = nullptr;                   // where the next access probably goes too
  Buffer* last_written = nullptr;
  std::vector<Launch> launches;
};
Log log_;

void sort_buffers() {
  log_.sorted.clear();
  for (auto& b : log_.watched) {
    if (b->bytes > 0) log_.sorted.push_back(b.get());
  }
  if (log_.arguments != nullptr) log_.sorted.push_back(log_.arguments.get());
  std::sort(log_.sorted.begin(), log_.sorted.end(), [](Buffer* a, Buffer* b) { return a->begin < b->begin; });
  log_.last_read = log_.last_written = nullptr;
}

std::string place(const Buffer& b, size_t offset) { return "byte " + std::to_string(offset) + " of '" + b.name + "'"; }

std::string access(bool writes, size_t bytes) {
  return describe(running.me) + (writes ? " writes " : " reads ") + std::to_string(bytes) + " bytes at ";
}

[[noreturn]] void fail_outside(uintptr_t address, size_t bytes, bool writes) {
  std::ostringstream what;
  what << "out of bounds: " << access(writes, bytes);
  const Buffer* nearest = nullptr;
  int64_t distance = INT64_MAX;
  for (const Buffer* b : log_.sorted) {
    const int64_t before = static_cast<int64_t>(b->begin - address), after = static_cast<int64_t>(address - b->begin);
    const int64_t away = before > 0 ? before : std::max<int64_t>(0, after - static_cast<int64_t>(b->bytes));
    if (away < distance) distance = away, nearest = b;
  }
  if (nearest == nullptr) {
    what << "0x" << std::hex << address << "; no buffer is watched";
  } else {
    what << "byte " << static_cast<int64_t>(address - nearest->begin) << " of '" << nearest->name << "', which has "
         << nearest->bytes;
  }
  fail(what.str());
}

Buffer& find(const void* p, size_t bytes, size_t alignment, bool writes) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  Buffer*& last = writes ? log_.last_written : log_.last_read;
  if (last == nullptr || !last->holds(address, bytes)) {
    if (running.me == 0) fail("load() or store() outside of a launch");
    auto next = std::upper_bound(log_.sorted.begin(), log_.sorted.end(), address,
                                 [](uintptr_t a, const Buffer* b) { return a < b->begin; });
    if (next == log_.sorted.begin() || !next[-1]->holds(address, bytes)) fail_outside(address, bytes, writes);
    last = next[-1];
  }
  // The hardware's own rule: an access of 2, 4, 8 or 16 bytes is aligned to its size, whatever the type asks for.
  if (bytes <= 16 && (bytes & (bytes - 1)) == 0) alignment = std::max(alignment, bytes);
  if ((address & (alignment - 1)) != 0) {
    fail("misaligned: " + access(writes, bytes) + place(*last, address - last->begin) + ", address " +
         std::to_string(address % alignment) + " past a multiple of " + std::to_string(alignment));
  }
  return *last;
}

// What is wrong with an access beside races.
[[noreturn]] void fail_access(const char* rule, const Buffer& b, size_t at, bool writes, const std::string& why) {
  fail(std::string(rule) + ": " + describe(running.me) + (writes ? " writes " : " reads ") + place(b, at) + ", which " + why);
}

void check_ahead(const Buffer& b, size_t at, size_t n, bool writes) {
  for (size_t i = at; i < at + n; ++i) {
    const bool written = (b.before[i] & Buffer::kWritten) != 0;
    if (!written && !(writes && b.before[i] != 0)) continue;
    fail_access("no wait", b, i, writes, std::string("the launch before may still ") + (written ? "write" : "read"));
  }
}

// kBytes is the number of bytes where it is known, else 0.
template <size_t kBytes>
void record_read(Buffer& b, size_t at, size_t bytes) {
  const Who me = running.me;
  const size_t n = kBytes == 0 ? bytes : kBytes;
  Who* const writer = b.writer.get() + at;
  Who* const readers = b.readers.get() + at;
  uint32_t* const reads = b.reads.get() + at;
  if (running.ahead) check_ahead(b, at, n, false);
  for (size_t i = 0; i < n; ++i) {
    if (unordered(writer[i], me)) fail_race(place(b, at + i), me, false, writer[i], true);
    if (b.exchanged && writer[i] != 0) {
      fail_access("exchange", b, at + i, false, describe(writer[i]) + " has written in this launch");
    }
    readers[i] = with_reader(readers[i], me);
    ++reads[i];
  }
  if (b.written != nullptr) {
    for (size_t i = at; i < at + n; ++i) {
      if (b.written[i]) continue;
      fail("uninitialised: " + describe(me) + " reads " + place(b, i) + ", which nothing has written");
    }
  }
}

template <size_t kBytes>
void record_write(Buffer& b, size_t at, size_t bytes) {
  const Who me = running.me;
  const size_t n = kBytes == 0 ? bytes : kBytes;
  Who* const writer = b.writer.get() + at;
  const Who* const readers = b.readers.get() + at;
  uint32_t* const writes = b.writes.get() + at;
  if (running.ahead) check_ahead(b, at, n, true);
  for (size_t i = 0; i < n; ++i) {
    if (unordered(writer[i], me)) fail_race(place(b, at + i), me, true, writer[i], true);
    if (unordered(readers[i], me)) fail_race(place(b, at + i), me, true, readers[i], false);
    if (b.exchanged && writer[i] != 0) {
      fail_access("exchange", b, at + i, true, describe(writer[i]) + " has written in this launch");
    }
    writer[i] = me;
    ++writes[i];
  }
  if (b.written != nullptr) std::memset(b.written.get() + at, 1, n);
}

// Counts and clears what the launch did to a buffer.
Use take_use(Buffer& b) {
  Use use;
  use.name = b.name;
  use.read_widths = b.read_widths.take();
  use.write_widths = b.write_widths.take();
  for (size_t i = b.before_first; i < b.before_stop; ++i) b.before[i] = 0;
  for (size_t i = b.first; i < b.stop; ++i) {
    use.read_bytes += b.reads[i];
    use.written_bytes += b.writes[i];
    use.distinct_read_bytes += b.reads[i] != 0;
    use.distinct_written_bytes += b.writes[i] != 0;
    use.max_reads = std::max(use.max_reads, b.reads[i]);
    use.max_writes = std::max(use.max_writes, b.writes[i]);
    b.before[i] = static_cast<uint8_t>((b.reads[i] != 0 ? Buffer::kRead : 0) | (b.writes[i] != 0 ? Buffer::kWritten : 0));
    b.all_reads[i] += b.reads[i];
    b.all_writes[i] += b.writes[i];
    b.reads[i] = b.writes[i] = 0;
    b.readers[i] = b.writer[i] = 0;
  }
  b.before_first = std::exchange(b.first, SIZE_MAX);
  b.before_stop = std::exchange(b.stop, 0);
  return use;
}

}  // namespace

void read_global(const void* p, size_t bytes, size_t alignment) {
  step();
  Buffer& b = find(p, bytes, alignment, false);
  const size_t at = reinterpret_cast<uintptr_t>(p) - b.begin;
  b.first = std::min(b.first, at);
  b.stop = std::max(b.stop, at + bytes);
  b.read_widths.add(bytes);
  switch (bytes) {
    case 1: return record_read<1>(b, at, bytes);
    case 2: return record_read<2>(b, at, bytes);
    case 4: return record_read<4>(b, at, bytes);
    case 8: return record_read<8>(b, at, bytes);
    case 16: return record_read<16>(b, at, bytes);
    default: return record_read<0>(b, at, bytes);
  }
}

void write_global(const void* p, size_t bytes, size_t alignment) {
  step();
  Buffer& b = find(p, bytes, alignment, true);
  const size_t at = reinterpret_cast<uintptr_t>(p) - b.begin;
  if (!b.writable) fail("read-only: " + access(true, bytes) + place(b, at));
  b.first = std::min(b.first, at);
  b.stop = std::max(b.stop, at + bytes);
  b.write_widths.add(bytes);
  switch (bytes) {
    case 1: return record_write<1>(b, at, bytes);
    case 2: return record_write<2>(b, at, bytes);
    case 4: return record_write<4>(b, at, bytes);
    case 8: return record_write<8>(b, at, bytes);
    case 16: return record_write<16>(b, at, bytes);
    default: return record_write<0>(b, at, bytes);
  }
}

std::string describe(Who w) {
  if (w >> 32 == kSeveralBlocks >> 32) return "several blocks";
  const std::string block = "block " + std::to_string((w >> 32) - 1) + ", ";
  return block + ((w & kThreadMask) == kThreadMask ? "several threads" : "thread " + std::to_string(w & kThreadMask));
}

void fail_race(const std::string& place, Who me, bool writes, Who other, bool wrote) {
  const bool same_block = (me ^ other) >> 32 == 0;
  const bool several = other == kSeveralBlocks || (same_block && (other & kThreadMask) == kThreadMask);
  fail((same_block ? "race within a block: " : "race between blocks: ") + place + ": " + describe(me) +
       (writes ? " writes what " : " reads what ") + describe(other) + (several ? " have " : " has ") +
       (wrote ? "written" : "read") +
       (same_block ? " with no sync() in between" : " in the same launch"));
}

void watch(const void* pointer, size_t bytes, const std::string& name, bool writable, bool initialised) {
  const auto begin = reinterpret_cast<uintptr_t>(pointer);
  if (name == "arguments") throw std::invalid_argument("'arguments' is the name of the kernel's own arguments");
  for (auto& b : log_.watched) {
    if (b->name == name) throw std::invalid_argument("'" + name + "' is watched already");
    if (begin < b->begin + b->bytes && b->begin < begin + bytes) {
      throw std::invalid_argument("'" + name + "' overlaps '" + b->name + "'");
    }
  }
  log_.watched.push_back(std::make_unique<Buffer>(pointer, bytes, name, writable, initialised));
  sort_buffers();
}

static std::vector<std::unique_ptr<Buffer>>::iterator named(const std::string& name) {
  const auto at =
      std::find_if(log_.watched.begin(), log_.watched.end(), [&](const auto& b) { return b->name == name; });
  if (at == log_.watched.end()) throw std::invalid_argument("'" + name + "' is not watched");
  return at;
}

void exchange(const std::string& name) { (*named(name))->exchanged = true; }

void forget(const std::string& name) {
  log_.watched.erase(named(name));
  sort_buffers();
}

void forget_all() {
  log_.watched.clear();
  sort_buffers();
}

void reset_log() {
  log_.launches.clear();
  for (auto& b : log_.watched) {
    b->all_reads = zeros<uint32_t>(b->bytes);
    b->all_writes = zeros<uint32_t>(b->bytes);
  }
}

const std::vector<Launch>& launches() { return log_.launches; }

Counts counts(const std::string& name) {
  const Buffer& b = **named(name);
  return {{b.all_reads.get(), b.all_reads.get() + b.bytes}, {b.all_writes.get(), b.all_writes.get() + b.bytes}};
}

void begin_launch(const Launch& launch, const void* arguments, size_t argument_bytes) {
  log_.launches.push_back(launch);
  log_.arguments = std::make_unique<Buffer>(arguments, argument_bytes, "arguments", false, true);
  sort_buffers();
}

void end_launch(size_t shared_bytes, const std::string& error) {
  Launch& launch = log_.launches.back();
  launch.shared_bytes = shared_bytes;
  launch.error = error;
  for (auto& b : log_.watched) launch.uses.push_back(take_use(*b));
  launch.uses.push_back(take_use(*log_.arguments));
  log_.arguments.reset();
  sort_buffers();
}

}  // namespace fusedmix::shim
