// What a test program without a framework needs: failures that are counted and said, and numbers from a seed.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <string>

namespace fusedmix::test {

inline int64_t checks = 0, failures = 0;
inline std::string context;  // what is being tested, said with a failure

inline std::string format(const char* text, ...) __attribute__((format(printf, 1, 2)));
inline std::string format(const char* text, ...) {
  char line[512];
  va_list arguments;
  va_start(arguments, text);
  std::vsnprintf(line, sizeof(line), text, arguments);
  va_end(arguments);
  return line;
}

// Counts a check; says what is wrong with the first failures.
inline void fail(const std::string& what) {
  ++checks;
  if (++failures <= 20) std::printf("FAILED %s: %s\n", context.c_str(), what.c_str());
}
inline void pass() { ++checks; }
inline void expect(bool ok, const char* what) { ok ? pass() : fail(what); }

// The last line of a program, and its exit status.
inline int summary(const char* program) {
  std::printf("%s: %lld checks, %lld failures\n", program, static_cast<long long>(checks), static_cast<long long>(failures));
  return failures == 0 ? 0 : 1;
}

// splitmix64 (Steele, Lea, Flood 2014): tests must not draw from the generator they test.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  double uniform(double low, double high) { return low + (high - low) * uniform(); }

 private:
  uint64_t state_;
};

}  // namespace fusedmix::test
