// Partners that the host can read: what they may be. Host code.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "memory.h"
#include "sampling.h"

namespace fusedmix {

// What is said of a partner that is in another piece, of a plan that was cut.
constexpr char kWholeBatch[] = " (a plan is for the whole batch: mix that, then split it)";

// And of one that is to be in another batch.
constexpr char kOtherBatch[] = " (partners are samples of `other`)";

// `count` partners, samples of a batch of so many.
inline void check_partners(const int64_t* partner, int64_t count, int64_t batch, const char* why) {
  for (int64_t i = 0; i < count; ++i) {
    if (partner[i] < 0 || partner[i] >= batch) {
      throw std::invalid_argument("fusedmix: partner must be in [0, " + std::to_string(batch) + "), but got " +
                                  std::to_string(partner[i]) + why + ".");
    }
  }
}
inline void check_partners(const int64_t* partner, int64_t batch) { check_partners(partner, batch, batch, kWholeBatch); }

[[noreturn]] inline void refuse_repeated_partners() {
  throw std::invalid_argument(
      "fusedmix: partner is not a permutation, as it must be in place and for gradients: a sample is the partner of two.");
}

// Whether partners that check_partners() has passed are a permutation.
inline bool is_permutation(const int64_t* partner, int64_t batch) {
  std::vector<bool> seen;
  resize(seen, batch, "the cycles of the partners");
  for (int64_t i = 0; i < batch; ++i) {
    if (seen[partner[i]]) return false;
    seen[partner[i]] = true;
  }
  return true;
}

// Whether the partners are those of a formula (kRoll, kFlip).
inline bool are_formula(const int64_t* partner, int64_t batch, int32_t pairing) {
  for (int64_t i = 0; i < batch; ++i) {
    if (partner[i] != formula_partner(pairing, i, batch)) return false;
  }
  return true;
}

}  // namespace fusedmix
