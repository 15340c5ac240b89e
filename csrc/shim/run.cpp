// Runs a launch: a few blocks at a time, their threads in an order drawn from the seed.
#include <cxxabi.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <new>

#include "core.h"
#include "device.h"
#include "fiber.h"

namespace fusedmix::shim {

Running running;

namespace {

constexpr size_t kStackBytes = 256 * 1024;  // only what is touched takes memory
constexpr size_t kMaxResident = 4;          // blocks that run at the same time
constexpr size_t kMaxDeclared = 48 * 1024;  // what CUDA lets a kernel declare of shared memory, on any device
constexpr int kPoison = 0xFF;               // NaN in every floating-point type, -1 in every integer

struct Block;

enum class State { kReady, kWaiting, kDone };

struct Fiber {
  Context context;
  unsigned char* stack = nullptr;  // from its first step to its last
  Block* block = nullptr;
  uint32_t thread = 0;
  State state = State::kReady;
  bool says = false;           // at the barrier where it waits
  bool ahead = false;          // has not waited for the launch before
  const char* file = nullptr;  // where it waits
  int line = 0;
};

struct Array : SharedArray {
  ~Array() { std::free(data); }
};

// A place that blocks run in, one after the other.
struct Block {
  uint32_t number = 0;
  uint64_t epoch = 0;  // barriers passed
  int waiting = 0, done = 0;
  int32_t yes = 0;  // how many threads said so at the last barrier
  std::vector<Fiber> fibers;
  std::vector<std::unique_ptr<Array>> arrays;
  const SharedArray* dynamic = nullptr;  // the one of them that has what the launch gave
};

// xoshiro256**, seeded by splitmix64 (Blackman, Vigna).
class Random {
 public:
  explicit Random(uint64_t seed) {
    for (auto& word : state_) {
      seed += 0x9E3779B97F4A7C15u;
      uint64_t z = seed;
      z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
      z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
      word = z ^ (z >> 31);
    }
  }
  uint64_t operator()() {
    const uint64_t result = rotate(state_[1] * 5, 7) * 9, t = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= t;
    state_[3] = rotate(state_[3], 45);
    return result;
  }
  // 0..n-1, for n below 2^32.
  uint32_t below(uint64_t n) { return static_cast<uint32_t>(((*this)() >> 32) * n >> 32); }
  // A number in (0, 1].
  double uniform() { return static_cast<double>(((*this)() >> 11) + 1) * 0x1p-53; }

 private:
  static uint64_t rotate(uint64_t x, int k) { return (x << k) | (x >> (64 - k)); }
  uint64_t state_[4];
};

struct Scheduler {
  Random random{0};
  double yield_probability = 1.0 / 32;
  std::vector<unsigned char*> stacks;  // that no fiber is on
  // The launch that runs.
  const std::function<void()>* kernel = nullptr;
  int64_t launch_blocks = 0;
  int threads = 0;
  std::string arguments;
  std::vector<Block> resident;
  std::vector<Fiber*> ready;
  Fiber* current = nullptr;
  Context main;
  std::exception_ptr error;
  size_t dynamic_bytes = 0, shared_bytes = 0;
  bool dependent = false;
  bool lets_next = false;  // stays until the next launch
};
Scheduler scheduler;
// sm_86, 89 and 120: no device has less for a block.
device::Limits device_limits{4, 1536, 99 * 1024, 100 * 1024, 1024};
std::mutex launching;  // one launch at a time

// How many accesses until the next one that gives way: geometric, drawn at once.
uint64_t draw_accesses() {
  const double p = scheduler.yield_probability;
  if (p <= 0.0) return ~uint64_t{0};
  if (p >= 1.0) return 1;
  return 1 + static_cast<uint64_t>(std::log(scheduler.random.uniform()) / std::log1p(-p));
}

unsigned char* take_stack() {
  if (scheduler.stacks.empty()) {
    // Below each stack lies a page that must not be touched: an overflow ends the process and not another's stack.
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* const got = mmap(nullptr, page + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (got == MAP_FAILED || mprotect(got, page, PROT_NONE) != 0) throw std::bad_alloc();
    return static_cast<unsigned char*>(got) + page;
  }
  unsigned char* const stack = scheduler.stacks.back();
  scheduler.stacks.pop_back();
  return stack;
}

void fiber_main() {
  try {
    (*scheduler.kernel)();
  } catch (...) {
    scheduler.error = std::current_exception();
  }
  scheduler.current->state = State::kDone;
  switch_context(scheduler.current->context, scheduler.main);
  std::abort();
}

void back_to_scheduler() { switch_context(scheduler.current->context, scheduler.main); }

std::string name_of(const Fiber& fiber) { return "thread " + std::to_string(fiber.thread); }
std::string wait_of(const Fiber& fiber) {
  return name_of(fiber) + " waits at " + fiber.file + ":" + std::to_string(fiber.line);
}

[[noreturn]] void fail_divergence(const Block& block, const std::string& what) {
  fail("barrier divergence: block " + std::to_string(block.number) + ": " + what);
}

const Fiber& any(const Block& block, State state) {
  return *std::find_if(block.fibers.begin(), block.fibers.end(), [&](const Fiber& f) { return f.state == state; });
}

// If threads wait at a barrier: goes wrong where others never will, goes on where all do.
void check_barrier(Block& block) {
  if (block.waiting == 0) return;
  if (block.done > 0) {
    fail_divergence(block, wait_of(any(block, State::kWaiting)) + ", " + name_of(any(block, State::kDone)) +
                               " has returned");
  }
  if (block.waiting < scheduler.threads) return;
  const Fiber& first = block.fibers.front();
  for (const Fiber& fiber : block.fibers) {
    if (fiber.line != first.line || std::strcmp(fiber.file, first.file) != 0) {
      fail_divergence(block, wait_of(first) + ", " + wait_of(fiber));
    }
  }
  block.yes = 0;
  for (const Fiber& fiber : block.fibers) block.yes += fiber.says ? 1 : 0;
  if (++block.epoch >> kEpochBits != 0) fail("more barriers than the shim can count");
  block.waiting = 0;
  for (Fiber& fiber : block.fibers) {
    fiber.state = State::kReady;
    scheduler.ready.push_back(&fiber);
  }
}

void start_block(Block& block, uint32_t number) {
  block.number = number;
  block.epoch = 0;
  block.waiting = block.done = 0;
  for (auto& array : block.arrays) {
    std::memset(array->data, kPoison, array->count * array->element_bytes);
    std::fill(array->writer.begin(), array->writer.end(), 0);
    std::fill(array->adders.begin(), array->adders.end(), 0);
    std::fill(array->readers.begin(), array->readers.end(), 0);
  }
  for (Fiber& fiber : block.fibers) {
    fiber.state = State::kReady;
    fiber.ahead = scheduler.dependent;
    scheduler.ready.push_back(&fiber);
  }
}

void run_fiber(Fiber& fiber) {
  if (fiber.stack == nullptr) {
    fiber.stack = take_stack();
    prepare(fiber.context, fiber.stack, kStackBytes, fiber_main);
  }
  scheduler.current = &fiber;
  running.me = who(fiber.block->number, fiber.block->epoch, fiber.thread);
  running.thread = fiber.thread;
  running.block = fiber.block->number;
  running.ahead = fiber.ahead;
  switch_context(scheduler.main, fiber.context);
  running.me = 0;
  if (scheduler.error != nullptr) std::rethrow_exception(scheduler.error);
}

void run_blocks() {
  std::vector<uint32_t> order(static_cast<size_t>(scheduler.launch_blocks));
  for (size_t i = 0; i < order.size(); ++i) {
    order[i] = static_cast<uint32_t>(i);
    std::swap(order[i], order[scheduler.random.below(i + 1)]);
  }
  auto& ready = scheduler.ready;
  for (Block& block : scheduler.resident) {
    start_block(block, order.back());
    order.pop_back();
  }
  while (!ready.empty()) {
    std::swap(ready[scheduler.random.below(ready.size())], ready.back());
    Fiber& fiber = *ready.back();
    ready.pop_back();
    run_fiber(fiber);
    Block& block = *fiber.block;
    switch (fiber.state) {
      case State::kReady: ready.push_back(&fiber); continue;
      case State::kWaiting: ++block.waiting; break;
      case State::kDone:
        ++block.done;
        scheduler.stacks.push_back(fiber.stack);
        fiber.stack = nullptr;
        break;
    }
    check_barrier(block);
    if (block.done == scheduler.threads && !order.empty()) {
      start_block(block, order.back());
      order.pop_back();
    }
  }
}

// Where an exception left other fibers in the middle, nothing is unwound: kernels own nothing.
void abandon() {
  for (Block& block : scheduler.resident) {
    for (Fiber& fiber : block.fibers) {
      if (fiber.stack != nullptr) scheduler.stacks.push_back(fiber.stack);
    }
  }
  scheduler.resident.clear();
  scheduler.ready.clear();
  scheduler.error = nullptr;
  scheduler.current = nullptr;
  running = Running{};
}

std::string demangled(const char* type) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> name(abi::__cxa_demangle(type, nullptr, nullptr, &status), std::free);
  return status == 0 ? name.get() : type;
}

std::string place(const SharedArray& array, int64_t index) {
  return "element " + std::to_string(index) + " of shared '" + array.site->name + "' (" + array.site->file + ":" +
         std::to_string(array.site->line) + ")";
}

}  // namespace

void set_limits(const device::Limits& limits) { device_limits = limits; }
const device::Limits& limits() { return device_limits; }

void seed(uint64_t value) { scheduler.random = Random(value); }

void set_yield_probability(double p) {
  if (!(p >= 0.0 && p <= 1.0)) throw std::invalid_argument("a probability lies in [0, 1], got " + std::to_string(p));
  scheduler.yield_probability = p;
}

void fail(const std::string& what) {
  if (scheduler.kernel == nullptr) throw Error(what);
  throw Error(what + " [launch " + std::to_string(launches().size() - 1) + ": " +
              std::to_string(scheduler.launch_blocks) + " blocks of " + std::to_string(scheduler.threads) +
              " threads, " + scheduler.arguments + "]");
}

void give_way() {
  running.accesses_left = draw_accesses();
  if (running.me == 0) return;  // outside of a launch; that is an error, but not found here
  back_to_scheduler();
}

static int32_t wait(bool says, const char* file, int line) {
  Fiber& fiber = *scheduler.current;
  fiber.state = State::kWaiting;
  fiber.says = says;
  fiber.file = file;
  fiber.line = line;
  back_to_scheduler();
  return fiber.block->yes;  // until all wait again
}

void barrier(const char* file, int line) {
  if (running.me == 0) fail("sync() outside of a launch");
  wait(false, file, line);
}

int32_t count(bool mine, const char* file, int line) {
  if (running.me == 0) fail("count() outside of a launch");
  return wait(mine, file, line);
}

void let_next_start() {
  if (running.me == 0) fail("let_next_start() outside of a launch");
  // The next would wait for this launch alone, which may end before the one before it.
  if (scheduler.dependent) fail("let_next_start(): " + describe(running.me) + " is of a dependent launch itself");
  scheduler.lets_next = true;
}

void wait_for_launch_before() {
  if (running.me == 0) fail("wait_for_plan() outside of a launch");
  running.ahead = scheduler.current->ahead = false;
}

static SharedArray* declared(const Block& block, const Site* site) {
  for (auto& array : block.arrays) {
    if (array->site == site) return array.get();
  }
  return nullptr;
}

static SharedArray* declare(Block& block, const Site* site, size_t count, size_t element_bytes, size_t alignment) {
  auto array = std::make_unique<Array>();
  array->site = site;
  array->count = count;
  array->element_bytes = element_bytes;
  alignment = std::max<size_t>(alignment, 16);
  const size_t bytes = (count * element_bytes + alignment - 1) / alignment * alignment;
  array->data = static_cast<unsigned char*>(std::aligned_alloc(alignment, bytes));
  if (array->data == nullptr) throw std::bad_alloc();
  std::memset(array->data, kPoison, bytes);
  array->writer.assign(count, 0);
  array->readers.assign(count, 0);
  array->adders.assign(count, 0);
  block.arrays.push_back(std::move(array));
  return block.arrays.back().get();
}

SharedArray* shared_array(const Site* site, size_t count, size_t element_bytes, size_t alignment) {
  if (running.me == 0) fail("FUSEDMIX_SHARED outside of a launch");
  Block& block = *scheduler.current->block;
  if (SharedArray* const array = declared(block, site); array != nullptr) return array;
  size_t total = count * element_bytes;
  for (auto& array : block.arrays) total += array.get() == block.dynamic ? 0 : array->count * array->element_bytes;
  const auto most = std::min<size_t>(kMaxDeclared, limits().shared_bytes - scheduler.dynamic_bytes);
  if (total > most) {
    fail("too much shared memory: " + std::to_string(total) + " bytes with '" + site->name + "', at most " +
         std::to_string(most));
  }
  scheduler.shared_bytes = std::max(scheduler.shared_bytes, total + scheduler.dynamic_bytes);
  return declare(block, site, count, element_bytes, alignment);
}

SharedArray* dynamic_shared_array(const Site* site, size_t element_bytes) {
  if (running.me == 0) fail("FUSEDMIX_DYNAMIC_SHARED outside of a launch");
  Block& block = *scheduler.current->block;
  SharedArray* array = declared(block, site);
  if (array == nullptr) {
    // Under nvcc a second one would be the same bytes by another name.
    if (block.dynamic != nullptr) {
      fail("dynamic shared memory twice: as '" + std::string(block.dynamic->site->name) + "' and as '" + site->name + "'");
    }
    array = declare(block, site, scheduler.dynamic_bytes / element_bytes, element_bytes, 16);
    block.dynamic = array;
  }
  return array;
}

static void check_index(const SharedArray& array, int64_t index, const char* does) {
  if (index < 0 || index >= static_cast<int64_t>(array.count)) {
    fail("out of bounds: " + describe(running.me) + does + place(array, index) + ", which has " +
         std::to_string(array.count));
  }
}

void read_shared(SharedArray* array, int64_t index) {
  step();
  check_index(*array, index, " reads ");
  const Who me = running.me, writer = array->writer[index];
  if (writer == 0) {
    fail("uninitialised: " + describe(me) + " reads " + place(*array, index) + ", which nothing has written");
  }
  if (unordered(writer, me)) fail_race(place(*array, index), me, false, writer, true);
  if (unordered(array->adders[index], me)) fail_race(place(*array, index), me, false, array->adders[index], true);
  array->readers[index] = with_reader(array->readers[index], me);
}

void write_shared(SharedArray* array, int64_t index) {
  step();
  check_index(*array, index, " writes ");
  const Who me = running.me;
  if (unordered(array->writer[index], me)) fail_race(place(*array, index), me, true, array->writer[index], true);
  if (unordered(array->readers[index], me)) fail_race(place(*array, index), me, true, array->readers[index], false);
  if (unordered(array->adders[index], me)) fail_race(place(*array, index), me, true, array->adders[index], true);
  array->writer[index] = me;
}

// A read and a write, which only those of others who add do not get in the way of.
void add_to_shared(SharedArray* array, int64_t index) {
  step();
  check_index(*array, index, " adds to ");
  const Who me = running.me, writer = array->writer[index];
  if (writer == 0) {
    fail("uninitialised: " + describe(me) + " adds to " + place(*array, index) + ", which nothing has written");
  }
  if (unordered(writer, me)) fail_race(place(*array, index), me, true, writer, true);
  if (unordered(array->readers[index], me)) fail_race(place(*array, index), me, true, array->readers[index], false);
  array->adders[index] = with_reader(array->adders[index], me);
}

void run(Launch launch, const void* arguments, size_t argument_bytes, const std::function<void()>& kernel) {
  if (running.me != 0) fail("launch() within a kernel");
  const std::lock_guard<std::mutex> lock(launching);
  const int64_t blocks = launch.blocks;
  const int threads = launch.threads;
  if (blocks < 1 || blocks > kMaxBlocks || threads < 1 || threads > kMaxThreads) {
    fail("no such launch: " + std::to_string(blocks) + " blocks of " + std::to_string(threads) + " threads");
  }
  if (launch.shared_bytes > static_cast<size_t>(limits().shared_bytes)) {
    fail("too much shared memory: " + std::to_string(launch.shared_bytes) + " bytes for a launch, at most " +
         std::to_string(limits().shared_bytes));
  }
  if (launch.dependent && !scheduler.lets_next) fail("no such launch: dependent, and the launch before does not let it start");
  launch.arguments = demangled(launch.arguments.c_str());
  begin_launch(launch, arguments, argument_bytes);
  scheduler.kernel = &kernel;
  scheduler.launch_blocks = blocks;
  scheduler.threads = threads;
  scheduler.arguments = launch.arguments;
  scheduler.dynamic_bytes = scheduler.shared_bytes = launch.shared_bytes;
  scheduler.dependent = launch.dependent;
  scheduler.lets_next = false;
  running.blocks = static_cast<uint32_t>(blocks);
  running.accesses_left = draw_accesses();
  const uint64_t places = 1 + scheduler.random.below(kMaxResident);
  scheduler.resident = std::vector<Block>(static_cast<size_t>(std::min<uint64_t>(places, blocks)));
  for (Block& block : scheduler.resident) {
    block.fibers = std::vector<Fiber>(static_cast<size_t>(threads));
    for (int i = 0; i < threads; ++i) {
      block.fibers[i].block = &block;
      block.fibers[i].thread = static_cast<uint32_t>(i);
    }
  }
  std::string error;
  std::exception_ptr thrown;
  try {
    run_blocks();
  } catch (const std::exception& e) {
    error = e.what();
    thrown = std::current_exception();
  } catch (...) {
    error = "an exception of unknown type";
    thrown = std::current_exception();
  }
  abandon();
  end_launch(scheduler.shared_bytes, error);
  scheduler.kernel = nullptr;
  if (thrown != nullptr) std::rethrow_exception(thrown);
}

}  // namespace fusedmix::shim
