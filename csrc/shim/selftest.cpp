// Kernels that are right and kernels that are wrong, each in one way: what tests/test_shim.py asks the shim about.
#include <pybind11/pybind11.h>

#include <map>
#include <stdexcept>
#include <string>

#include "bind_log.h"
#include "fusedmix/platform.h"

namespace {

// One by one, here: with a using-directive POSIX's own sync() would be as near.
using fusedmix::device::block;
using fusedmix::device::blocks;
using fusedmix::device::launch;
using fusedmix::device::let_next_start;
using fusedmix::device::load;
using fusedmix::device::store;
using fusedmix::device::sync;
using fusedmix::device::thread;
using fusedmix::device::wait_for_plan;

struct alignas(16) Float4 {
  float x[4];
};

struct Script {
  const int32_t* script;
  uint8_t* out;
  int64_t threads, steps;
  bool lets_next;
};

// n is the number of floats in each buffer.
struct Buffers {
  float* in;
  float* out;
  int64_t n;
};

FUSEDMIX_DEVICE int64_t index() { return int64_t{block()} * 128 + thread(); }

// ---- right ----

FUSEDMIX_KERNEL(128) copy(FUSEDMIX_ARGS(Buffers, args)) {
  FUSEDMIX_UNROLL
  for (int64_t i = index(); 4 * i < args.n; i += int64_t{blocks()} * 128) {
    store(reinterpret_cast<Float4*>(args.out) + i, load(reinterpret_cast<const Float4*>(args.in) + i));
  }
}

FUSEDMIX_KERNEL(128) double_in_place(FUSEDMIX_ARGS(Buffers, args)) {
  const int64_t n = load(&args.n);
  for (int64_t i = index(); i < n; i += int64_t{blocks()} * 128) store(args.in + i, 2.0f * load(args.in + i));
}

template <class Array>
FUSEDMIX_DEVICE void sum_tree(Array& sums) {
  for (uint32_t half = 64; half > 0; half /= 2) {
    sync();
    if (thread() < half) sums[thread()] += sums[thread() + half];
  }
  sync();
}

// Block b leaves the sum of its 128 floats in out[b].
template <class T>
FUSEDMIX_KERNEL(128) sum_blocks(FUSEDMIX_ARGS(Buffers, args)) {
  FUSEDMIX_SHARED(T, sums, 128);
  FUSEDMIX_SHARED(T, total, 1);
  sums[thread()] = static_cast<T>(load(args.in + index()));
  sum_tree(sums);
  if (thread() == 0) total[0] = sums[0];
  sync();
  if (thread() == 127) store(args.out + block(), static_cast<float>(total[0]));
}

// Threads of a block hand each other values through memory, with barriers where they are needed.
FUSEDMIX_KERNEL(128) reverse_blocks(FUSEDMIX_ARGS(Buffers, args)) {
  const int64_t first = int64_t{block()} * 128, me = thread(), other = 127 - thread();
  store(args.out + first + me, load(args.in + first + me));
  sync();
  const float x = load(args.out + first + other);
  sync();
  store(args.out + first + me, x);
}

// Block b leaves in out[b] how many of its 128 floats are multiples of 3, and half of how many there are.
FUSEDMIX_KERNEL(128) count_blocks(FUSEDMIX_ARGS(Buffers, args)) {
  FUSEDMIX_SHARED(int32_t, counts, 2);
  if (thread() < 2) counts[thread()] = 0;
  sync();
  fusedmix::device::add(counts, static_cast<int32_t>(load(args.in + index())) % 3 == 0 ? 0 : 1, 1);
  fusedmix::device::add(counts, 0, 1);
  fusedmix::device::add(counts, 0, -1);
  sync();
  const int32_t some = counts[0], others = counts[1];
  if (thread() == 0) store(args.out + block(), static_cast<float>(some) + static_cast<float>(some + others) / 2.0f);
}

// The floats of block b turned around; in the first place how many are multiples of 3, in the second of 5.
FUSEDMIX_KERNEL(128) count_in_blocks(FUSEDMIX_ARGS(Buffers, args)) {
  const int64_t first = int64_t{block()} * 128, me = thread(), other = 127 - thread();
  const float x = load(args.in + first + me);
  store(args.out + first + me, x);
  const int32_t threes = fusedmix::device::count(static_cast<int32_t>(x) % 3 == 0);
  const float theirs = load(args.out + first + other);
  const int32_t fives = fusedmix::device::count(static_cast<int32_t>(x) % 5 == 0);
  store(args.out + first + me, me == 0 ? static_cast<float>(threes) : (me == 1 ? static_cast<float>(fives) : theirs));
}

constexpr int kWide = 1024;

// Block b turns its share of `in` around, through dynamic shared memory.
FUSEDMIX_WIDE_KERNEL(kWide, 1) reverse_in_dynamic(FUSEDMIX_ARGS(Buffers, args)) {
  FUSEDMIX_DYNAMIC_SHARED(float, values);
  const int64_t share = args.n / blocks(), first = block() * share;
  for (int64_t i = thread(); i < share; i += kWide) values[i] = load(args.in + first + i);
  sync();
  for (int64_t i = thread(); i < share; i += kWide) store(args.out + first + i, static_cast<float>(values[share - 1 - i]));
}

FUSEDMIX_DEVICE float product(const float* pair) { return pair[0] * pair[1]; }

// Every way to use an element of a shared array, alone in a block.
FUSEDMIX_KERNEL(1) shared_operators(FUSEDMIX_ARGS(Buffers, args)) {
  FUSEDMIX_SHARED(float, f, 2);
  FUSEDMIX_SHARED(uint32_t, u, 4);
  const int64_t i = block() % 2, j = 1 - i;
  f[i] = 3;
  f[j] = f[i];
  f[i] += f[j] * 2;                                   // 9, 3
  f[j] -= 1.0f;                                       // 9, 2
  f[i] /= f[j] > 1 ? f[j] : 0.0f;                     // 4.5, 2
  f[j] *= f[j];                                       // 4.5, 4
  u[0] = u[1] = 6;
  u[2] = u[0]++ + ++u[1];                             // 7, 7, 13
  u[2] &= 12u;                                        // 12
  u[2] |= 1u;                                         // 13
  u[2] ^= u[0];                                       // 10
  u[3] = u[2]-- - --u[1];                             // 9; 10 - 6
  store(args.out + block(), product(f) + static_cast<float>(u[3]) + (u[2] == 9u ? 0.5f : 0.0f));  // 18 + 4 + 0.5
}

// ---- right or wrong ----

template <class T>
FUSEDMIX_DEVICE void read_or_write(T* at, bool writes) {
  if (writes) {
    store(at, T{1});
  } else {
    load(at);
  }
}

// Each step of a thread's script is width + 16 * offset (+ 256 if it writes), or 0; + 512: it waits first. Every other one
// ends at a barrier. The script itself is read behind the shim's back.
FUSEDMIX_KERNEL(128) scripted(FUSEDMIX_ARGS(Script, args)) {
  if (args.lets_next) let_next_start();
  for (int64_t step = 0; step < args.steps; ++step) {
    const int32_t code = args.script[(block() * args.threads + thread()) * args.steps + step];
    uint8_t* const at = args.out + (code / 16) % 16;
    const int32_t width = code % 16;
    const bool writes = code / 256 % 2 == 1;
    if (code / 512 % 2 == 1) wait_for_plan();
    if (width == 1) read_or_write(at, writes);
    if (width == 2) read_or_write(reinterpret_cast<uint16_t*>(at), writes);
    if (step % 2 == 1) sync();
  }
}

// Mixing in place: `in` is a batch of kSamples, each of which gets half of itself and half of its partner, by a plan that
// draw_partners() leaves in `out`. A block has a column of kColumn floats of every sample, a thread one of these.
enum class Fault {
  kNone,
  kNoBarrier,      // between what is loaded and what is stored
  kSharedColumn,   // two blocks have the same
  kStoresEarly,    // a barrier too, but before a partner is loaded
  kStoresTwice,
  kReadsEarly,     // a partner, before it has waited for the launch before
  kWritesEarly,    // the plan, before it has waited
  kReadsSometime,  // one thread only
};
constexpr int kSamples = 8, kColumn = kWide / kSamples;

FUSEDMIX_KERNEL(128) draw_partners(FUSEDMIX_ARGS(Buffers, args)) {
  let_next_start();
  if (block() == 0 && thread() < kSamples) store(args.out + thread(), static_cast<float>((thread() * 3 + 2) % kSamples));
  if (block() == 0 && thread() == kSamples) store(args.out + kSamples, load(args.out + kSamples + 1));
}

template <Fault kFault, bool kShared>
FUSEDMIX_WIDE_KERNEL(kWide, 1) mix_columns(FUSEDMIX_ARGS(Buffers, args)) {
  FUSEDMIX_DYNAMIC_SHARED(float, column);
  const int64_t row = args.n / kSamples, i = thread() / kColumn, at = thread() % kColumn;
  const int64_t first = block() * kColumn - (kFault == Fault::kSharedColumn && block() > 0 ? 1 : 0);
  float* const x = args.in + first + at;
  if (kFault == Fault::kWritesEarly && thread() == 9 && block() == 0) store(args.out + kSamples + 1, 0.0f);
  const bool early = kFault == Fault::kReadsEarly || (kFault == Fault::kReadsSometime && block() == 1 && thread() == 500);
  if (!early) wait_for_plan();
  const auto partner = static_cast<int64_t>(load(args.out + i));
  const float own = load(x + i * row);
  float other = 0.0f;
  if (kFault == Fault::kStoresEarly) {
    sync();
    store(x + i * row, own / 2);
    sync();
  }
  if constexpr (kShared) {
    column[thread()] = own;
    if (kFault != Fault::kNoBarrier) sync();
    other = column[partner * kColumn + at];
  } else {
    other = load(x + partner * row);
    if (kFault != Fault::kNoBarrier) sync();
  }
  if (kFault == Fault::kStoresTwice) store(x + i * row, own / 2);
  store(x + i * row, (own + other) / 2);
}

// ---- wrong ----

FUSEDMIX_KERNEL(128) two_writers(FUSEDMIX_ARGS(Buffers, args)) {
  if (thread() == 5 && block() % 4 == 1) store(args.out + 7, 1.0f);
}

FUSEDMIX_KERNEL(128) reads_what_a_block_wrote(FUSEDMIX_ARGS(Buffers, args)) {
  if (thread() != 0) return;
  if (block() == 2) store(args.out + 3, 1.0f);
  // A byte of it.
  if (block() == 6) store(reinterpret_cast<uint8_t*>(args.out), load(reinterpret_cast<const uint8_t*>(args.out) + 14));
}

FUSEDMIX_KERNEL(128) writes_what_blocks_read(FUSEDMIX_ARGS(Buffers, args)) {
  if (thread() != 9) return;
  const float first = load(args.in);
  if (block() == 3) store(args.in, first + 1.0f);
}

FUSEDMIX_KERNEL(128) race_in_block(FUSEDMIX_ARGS(Buffers, args)) {
  const int64_t first = int64_t{block()} * 128;
  store(args.out + first + thread(), 1.0f);
  const float x = load(args.out + first + 127 - thread());
  sync();
  store(args.out + first + thread(), x);
}

FUSEDMIX_KERNEL(128) two_writers_in_block(FUSEDMIX_ARGS(Buffers, args)) { store(args.out + block(), 1.0f); }

// The second barrier of reverse_blocks() is missing.
FUSEDMIX_KERNEL(128) write_after_read_in_block(FUSEDMIX_ARGS(Buffers, args)) {
  const int64_t first = int64_t{block()} * 128, me = thread(), other = 127 - thread();
  store(args.out + first + me, load(args.in + first + me));
  sync();
  store(args.out + first + me, load(args.out + first + other));
}

FUSEDMIX_KERNEL(128) shared_race(FUSEDMIX_ARGS(Buffers, args)) {
  FUSEDMIX_SHARED(float, values, 128);
  values[thread()] = load(args.in + index());
  sync();
  values[thread()] = values[127 - thread()];
}

FUSEDMIX_KERNEL(128) shared_writers(FUSEDMIX_ARGS(Buffers, args)) {
  FUSEDMIX_SHARED(float, value, 1);
  value[0] = load(args.in);
}

FUSEDMIX_KERNEL(128) added_and_read(FUSEDMIX_ARGS(Buffers, args)) {
  FUSEDMIX_SHARED(int32_t, count, 1);
  if (thread() == 0) count[0] = 0;
  sync();
  fusedmix::device::add(count, 0, 1);
  if (thread() == 5) store(args.out + block(), static_cast<float>(count[0]));
}

FUSEDMIX_KERNEL(128) added_and_written(FUSEDMIX_ARGS(Buffers, args)) {
  FUSEDMIX_SHARED(int32_t, count, 1);
  if (thread() == 0) count[0] = static_cast<int32_t>(args.n);
  fusedmix::device::add(count, 0, 1);
}

FUSEDMIX_KERNEL(128) added_uninitialised(FUSEDMIX_ARGS(Buffers, args)) {
  FUSEDMIX_SHARED(int32_t, count, 2);
  if (thread() == 0) count[0] = static_cast<int32_t>(args.n);
  fusedmix::device::add(count, 1, 1);
}

FUSEDMIX_KERNEL(128) shared_uninitialised(FUSEDMIX_ARGS(Buffers, args)) {
  FUSEDMIX_SHARED(float, values, 128);
  if (thread() != 77) values[thread()] = 1.0f;
  store(args.out + index(), static_cast<float>(values[thread()]));
}

FUSEDMIX_KERNEL(128) shared_out_of_bounds(FUSEDMIX_ARGS(Buffers, args)) {
  FUSEDMIX_SHARED(float, values, 100);
  values[thread()] = load(args.in + index());
}

FUSEDMIX_KERNEL(128) shared_too_much(FUSEDMIX_ARGS(Buffers, args)) {
  FUSEDMIX_SHARED(double, values, 6145);
  values[thread()] = load(args.in + index());
}

// These three have memory for 100 floats.
FUSEDMIX_KERNEL(128) dynamic_race(FUSEDMIX_ARGS(Buffers, args)) {
  FUSEDMIX_DYNAMIC_SHARED(float, values);
  if (thread() < 100) values[thread()] = load(args.in + index());
  sync();
  if (thread() < 100) values[thread()] = values[99 - thread()];
}

FUSEDMIX_KERNEL(128) dynamic_uninitialised(FUSEDMIX_ARGS(Buffers, args)) {
  FUSEDMIX_DYNAMIC_SHARED(float, values);
  if (thread() < 99) values[thread()] = 1.0f;
  sync();
  store(args.out + index(), static_cast<float>(values[99]));
}

FUSEDMIX_KERNEL(128) dynamic_out_of_bounds(FUSEDMIX_ARGS(Buffers, args)) {
  FUSEDMIX_DYNAMIC_SHARED(float, values);
  values[thread()] = load(args.in + index());
}

FUSEDMIX_KERNEL(128) dynamic_twice(FUSEDMIX_ARGS(Buffers, args)) {
  FUSEDMIX_DYNAMIC_SHARED(float, values);
  FUSEDMIX_DYNAMIC_SHARED(int32_t, indices);
  if (thread() < 50) values[thread()] = load(args.in + index());
  if (thread() < 50) indices[50 + thread()] = 0;
}

FUSEDMIX_KERNEL(128) dynamic_and_too_much(FUSEDMIX_ARGS(Buffers, args)) {
  FUSEDMIX_SHARED(float, values, 10000);
  values[thread()] = load(args.in + index());
}

FUSEDMIX_KERNEL(128) out_of_bounds(FUSEDMIX_ARGS(Buffers, args)) {
  if (index() == 130) store(args.out + args.n, 1.0f);
}

FUSEDMIX_KERNEL(128) out_of_bounds_in_part(FUSEDMIX_ARGS(Buffers, args)) {
  if (index() == 130) load(reinterpret_cast<const double*>(args.in - 1));
}

FUSEDMIX_KERNEL(128) misaligned(FUSEDMIX_ARGS(Buffers, args)) {
  if (index() == 130) load(reinterpret_cast<const Float4*>(args.in + 2));
}

struct Four {
  char bytes[4];
};

FUSEDMIX_KERNEL(128) misaligned_for_its_size(FUSEDMIX_ARGS(Buffers, args)) {
  if (index() == 130) load(reinterpret_cast<const Four*>(reinterpret_cast<const char*>(args.in) + 1));
}

FUSEDMIX_KERNEL(128) uninitialised(FUSEDMIX_ARGS(Buffers, args)) {
  if (index() == 0) return;
  store(args.out + index(), 1.0f);
  if (index() == 1) load(reinterpret_cast<const double*>(args.out));
}

FUSEDMIX_KERNEL(128) writes_arguments(FUSEDMIX_ARGS(Buffers, args)) {
  if (index() == 130) store(const_cast<int64_t*>(&args.n), int64_t{0});
}

FUSEDMIX_KERNEL(128) writes_read_only(FUSEDMIX_ARGS(Buffers, args)) { store(args.in + index(), 1.0f); }

FUSEDMIX_KERNEL(128) returns_before_barrier(FUSEDMIX_ARGS(Buffers, args)) {
  if (index() == 130 || args.n == 0) return;
  sync();
}

FUSEDMIX_KERNEL(128) waits_elsewhere(FUSEDMIX_ARGS(Buffers, args)) {
  if (thread() < args.n % 100) {
    sync();
  } else {
    sync();
  }
}

FUSEDMIX_KERNEL(128) starts_next_early(FUSEDMIX_ARGS(Buffers, /*args*/)) {
  wait_for_plan();
  if (index() == 130) let_next_start();
}

FUSEDMIX_KERNEL(128) throws(FUSEDMIX_ARGS(Buffers, args)) {
  const float x = load(args.in + index());
  if (index() == 130) throw std::out_of_range("from a kernel");
  sync();
  store(args.out + index(), x);
}

#define NAMED(kernel) {#kernel, kernel}
const std::map<std::string, void (*)(const Buffers&)> kKernels = {
    NAMED(copy),
    NAMED(double_in_place),
    NAMED(draw_partners),
    {"mix_columns", mix_columns<Fault::kNone, false>},
    {"mix_columns_shared", mix_columns<Fault::kNone, true>},
    {"no_barrier", mix_columns<Fault::kNoBarrier, false>},
    {"no_barrier_shared", mix_columns<Fault::kNoBarrier, true>},
    {"shared_column", mix_columns<Fault::kSharedColumn, false>},
    {"shared_column_shared", mix_columns<Fault::kSharedColumn, true>},
    {"stores_early", mix_columns<Fault::kStoresEarly, false>},
    {"stores_twice", mix_columns<Fault::kStoresTwice, false>},
    {"reads_early", mix_columns<Fault::kReadsEarly, false>},
    {"reads_sometime_early", mix_columns<Fault::kReadsSometime, false>},
    {"writes_early", mix_columns<Fault::kWritesEarly, false>},
    NAMED(starts_next_early),
    {"sum_blocks", sum_blocks<float>},
    {"sum_blocks_double", sum_blocks<double>},
    NAMED(reverse_blocks),
    NAMED(reverse_in_dynamic),
    NAMED(shared_operators),
    NAMED(count_blocks),
    NAMED(count_in_blocks),
    NAMED(two_writers),
    NAMED(reads_what_a_block_wrote),
    NAMED(writes_what_blocks_read),
    NAMED(race_in_block),
    NAMED(two_writers_in_block),
    NAMED(write_after_read_in_block),
    NAMED(shared_race),
    NAMED(shared_writers),
    NAMED(added_and_read),
    NAMED(added_and_written),
    NAMED(added_uninitialised),
    NAMED(shared_uninitialised),
    NAMED(shared_out_of_bounds),
    NAMED(shared_too_much),
    NAMED(dynamic_race),
    NAMED(dynamic_uninitialised),
    NAMED(dynamic_out_of_bounds),
    NAMED(dynamic_twice),
    NAMED(dynamic_and_too_much),
    NAMED(out_of_bounds),
    NAMED(out_of_bounds_in_part),
    NAMED(misaligned),
    NAMED(misaligned_for_its_size),
    NAMED(uninitialised),
    NAMED(writes_arguments),
    NAMED(writes_read_only),
    NAMED(returns_before_barrier),
    NAMED(waits_elsewhere),
    NAMED(throws),
};

void run(const std::string& kernel, int64_t blocks, int threads, uintptr_t in, uintptr_t out, int64_t n,
         int64_t shared_bytes, bool dependent) {
  const Buffers args{reinterpret_cast<float*>(in), reinterpret_cast<float*>(out), n};
  const auto start = dependent ? fusedmix::device::launch_dependent<Buffers> : launch<Buffers>;
  start(kKernels.at(kernel), blocks, threads, nullptr, args, shared_bytes);
}

void run_script(uintptr_t script, uintptr_t out, int64_t blocks, int threads, int64_t steps, bool dependent) {
  const Script args{reinterpret_cast<const int32_t*>(script), reinterpret_cast<uint8_t*>(out), threads, steps, !dependent};
  const auto start = dependent ? fusedmix::device::launch_dependent<Script> : launch<Script>;
  start(scripted, blocks, threads, nullptr, args, 0);
}

}  // namespace

PYBIND11_MODULE(fusedmix_shim_selftest, m) {
  fusedmix::shim::bind_log(m);
  m.def("run", &run);
  m.def("run_script", &run_script);
  m.def("load_outside", [](uintptr_t p) { return load(reinterpret_cast<const float*>(p)); });
  m.def("sync_outside", [] { fusedmix::device::sync(); });
  m.def("count_outside", [] { return fusedmix::device::count(true); });
}
