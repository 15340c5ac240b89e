// One thread and three, as the CPU backend is given them.
#pragma once

#include <algorithm>
#include <thread>
#include <vector>

#include "../host/parallel.h"

namespace fusedmix::test {

// Pieces of a grain each on three threads, as torch's pool would hand them out.
inline void on_three_threads(int64_t n, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([=] {
      for (int64_t begin = t * grain; begin < n; begin += 3 * grain) body(begin, std::min(n, begin + grain), context);
    });
  }
  for (std::thread& thread : threads) thread.join();
}
constexpr Parallel kOneThread{nullptr, 1}, kThreeThreads{on_three_threads, 3};

}  // namespace fusedmix::test
