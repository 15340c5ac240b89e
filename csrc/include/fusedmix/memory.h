// Memory that is not there: the error says for what, and how much. Host code.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

namespace fusedmix {

// "out of memory." is what programs look for that try again with a smaller batch.
[[noreturn]] inline void out_of_memory(const char* what, double bytes) {
  char number[400];  // of a float64, without an exponent
  std::snprintf(number, sizeof(number), "%.0f", bytes);
  throw std::runtime_error(std::string("fusedmix: out of memory. ") + number + " bytes could not be allocated for " + what + ".");
}

// n elements in a vector.
template <class Vector>
void resize(Vector& v, int64_t n, const char* what) {
  try {
    v.resize(n);
  } catch (const std::exception&) {  // std::bad_alloc, or std::length_error
    out_of_memory(what, static_cast<double>(n) * sizeof(typename Vector::value_type));
  }
}

// n numbers that are yet to be written.
template <class T>
std::unique_ptr<T[]> unwritten(int64_t n, const char* what) {
  try {
    return std::unique_ptr<T[]>(new T[n]);
  } catch (const std::bad_alloc&) {
    out_of_memory(what, static_cast<double>(n) * sizeof(T));
  }
}

}  // namespace fusedmix
