// Which pixels of a grey image are 1, and those of a soft edge. Included by fourier.cu alone.
#pragma once

#include <cfloat>
#include <cmath>

#include "fourier_synthesis.h"

namespace fusedmix::cuda {
namespace {

constexpr int kSelectThreads = 512;
constexpr int kBins = 256, kCopies = 32, kCounts = kBins * kCopies;

// A number that ascends with the value. That of -0 is that of 0.
FUSEDMIX_DEVICE uint32_t key_of(float value) {
  const auto bits = bit_cast<uint32_t>(value + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

// The first `number` pixels in the order of rank: those above a key, and of those that are equal to it the first `ties`.
struct Cut {
  uint32_t key;
  int64_t ties;
  bool scan;  // whether more than `ties` are equal to it
};

// How many of a block's values have each digit. A thread counts in one of kCopies: neighbouring pixels are alike, and the
// lanes of a warp that all add to one number wait for each other. What four neighbours have in common is added at once.
template <class Counts>
FUSEDMIX_DEVICE void count_digits(Counts& counts, const float* values, int64_t n, uint32_t prefix, int shift) {
  const int64_t thread = device::thread();
  const auto copy = static_cast<int32_t>(thread % kCopies);
  const auto count = [&](const float* four_values, int of) {
    int32_t bin = 0, run = 0;
    for (int l = 0; l < of; ++l) {
      const uint32_t key = key_of(four_values[l]);
      if (shift < 24 && key >> (shift + 8) != prefix) continue;
      const auto digit = static_cast<int32_t>(key >> shift & (kBins - 1));
      if (run > 0 && digit != bin) {
        device::add(counts, bin * kCopies + copy, run);
        run = 0;
      }
      bin = digit;
      ++run;
    }
    if (run > 0) device::add(counts, bin * kCopies + copy, run);
  };
  constexpr int kLoads = 4;  // under way
  const int64_t whole = n / 4;
  for (int64_t base = thread; base < whole; base += kLoads * kSelectThreads) {
    Four loaded[kLoads];
    FUSEDMIX_UNROLL
    for (int u = 0; u < kLoads; ++u) {
      if (base + u * kSelectThreads < whole) loaded[u] = load_vector<float, 4>(values + 4 * (base + u * kSelectThreads));
    }
    FUSEDMIX_UNROLL
    for (int u = 0; u < kLoads; ++u) {
      if (base + u * kSelectThreads >= whole) continue;
      const float four_values[4] = {loaded[u].get(0), loaded[u].get(1), loaded[u].get(2), loaded[u].get(3)};
      count(four_values, 4);
    }
  }
  if (thread < n % 4) {
    const float last[1] = {device::load(values + 4 * whole + thread)};
    count(last, 1);
  }
}

// The cut of values in memory, for 0 < number < n: by digits of eight bits from the highest, whose counts are in shared memory.
template <class Counts, class Totals, class Groups, class Chosen>
FUSEDMIX_DEVICE Cut find_cut(const float* values, int64_t n, int64_t number, Counts& counts, Totals& totals, Groups& groups,
                             Chosen& chosen) {
  const auto thread = static_cast<int32_t>(device::thread());
  uint32_t prefix = 0;
  int64_t need = number, equal = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    device::sync();
    for (int32_t t = thread; t < kCounts; t += kSelectThreads) counts[t] = 0;
    device::sync();
    count_digits(counts, values, n, prefix, shift);
    device::sync();
    if (thread < kBins) {
      int32_t total = 0;
      for (int32_t c = 0; c < kCopies; ++c) {
        const int32_t one = counts[thread * kCopies + (thread + c) % kCopies];  // no two lanes in a bank
        total += one;
      }
      totals[thread] = total;
    }
    device::sync();
    if (thread < 16) {
      int32_t total = 0;
      for (int32_t b = 16 * thread; b < 16 * thread + 16; ++b) {
        const int32_t one = totals[b];
        total += one;
      }
      groups[thread] = total;
    }
    device::sync();
    if (thread < kBins) {
      int64_t above = 0;
      for (int32_t g = thread / 16 + 1; g < 16; ++g) {
        const int32_t one = groups[g];
        above += one;
      }
      for (int32_t b = thread + 1; b % 16 != 0; ++b) {
        const int32_t one = totals[b];
        above += one;
      }
      const int32_t mine = totals[thread];
      if (above < need && need <= above + mine) {
        chosen[0] = thread;
        chosen[1] = static_cast<int32_t>(above);
        chosen[2] = mine;
      }
    }
    device::sync();
    const int32_t bin = chosen[0], above = chosen[1], mine = chosen[2];
    prefix = prefix << 8 | static_cast<uint32_t>(bin);
    need -= above;
    equal = mine;
  }
  return {prefix, need, need < equal};
}

// The sum of what the threads before this one have, and of all.
struct Before {
  int32_t sum, total;
};
template <class Sums>
FUSEDMIX_DEVICE Before sum_before(Sums& sums, int32_t mine, int32_t threads) {
  const auto thread = static_cast<int32_t>(device::thread());
  int32_t sum = mine;
  device::sync();
  sums[thread] = sum;
  for (int32_t step = 1; step < threads; step *= 2) {
    device::sync();
    int32_t other = 0;
    if (thread >= step) other = sums[thread - step];
    device::sync();
    sum += other;
    sums[thread] = sum;
  }
  device::sync();
  const int32_t total = sums[threads - 1];
  return {sum - mine, total};
}

FUSEDMIX_DEVICE uint32_t first_bits(int64_t n) { return n >= 32 ? 0xFFFFFFFFu : (1u << n) - 1u; }

// How many bits are 1.
FUSEDMIX_DEVICE int32_t ones_of(uint32_t bits) {
  int32_t ones = 0;
  for (; bits != 0; bits &= bits - 1u) ++ones;
  return ones;
}

// A word of a mask: its pixels above the cut, and the first of those that are equal to it. All threads call it for `threads`
// words in their order; `seen` counts the equal pixels in the words before.
template <class Sums>
FUSEDMIX_DEVICE uint32_t with_ties(uint32_t above, uint32_t equal, const Cut& cut, int64_t* seen, Sums& sums, int32_t threads) {
  const Before before = sum_before(sums, ones_of(equal), threads);
  int64_t left = cut.ties - *seen - before.sum;
  *seen += before.total;
  for (; equal != 0 && left > 0; --left) {
    above |= equal & (0u - equal);
    equal &= equal - 1u;
  }
  return above;
}

// A word of a mask that is all ones or all zeros.
FUSEDMIX_DEVICE uint32_t plain_word(int64_t n, int64_t number, int64_t word) {
  return number > 0 && n > 32 * word ? first_bits(n - 32 * word) : 0u;
}

// Bit l: whether pixel 32·word + l is one of the first `number`. All threads call it, as with_ties().
template <class Sums>
FUSEDMIX_DEVICE uint32_t ranked_word(const float* values, int64_t n, int64_t number, const Cut& cut, int64_t word, int64_t* seen,
                                     Sums& sums) {
  if (number <= 0 || number >= n) return plain_word(n, number, word);
  const int64_t q = 32 * word, here = n - q < 32 ? n - q : 32;
  uint32_t above = 0, equal = 0;
  const auto look = [&](float value, int l) {
    const uint32_t key = key_of(value);
    above |= key > cut.key ? 1u << l : 0u;
    equal |= key == cut.key ? 1u << l : 0u;
  };
  if (here == 32) {
    FUSEDMIX_UNROLL
    for (int l = 0; l < 32; l += 4) {
      const Four four_values = load_vector<float, 4>(values + q + l);
      FUSEDMIX_UNROLL
      for (int c = 0; c < 4; ++c) look(four_values.get(c), l + c);
    }
  } else {
    for (int l = 0; l < here; ++l) look(device::load(values + q + l), l);
  }
  return cut.scan ? with_ties(above, equal, cut, seen, sums, kSelectThreads) : above | equal;  // the same for all threads
}

struct SelectArgs {
  Chunk chunk;
  bool clears;  // what is not wanted
  int64_t pixels, stride;
  const float* field;
  uint32_t* bits;
};

FUSEDMIX_WIDE_KERNEL(kSelectThreads, 2) select_kernel(FUSEDMIX_ARGS(SelectArgs, args)) {
  FUSEDMIX_SHARED(int32_t, counts, kCounts);
  FUSEDMIX_SHARED(int32_t, totals, kBins);
  FUSEDMIX_SHARED(int32_t, groups, 16);
  FUSEDMIX_SHARED(int32_t, chosen, 3);
  FUSEDMIX_SHARED(int32_t, sums, kSelectThreads);
  const int64_t m = device::block(), i = args.chunk.first + m, words = (args.pixels + 31) / 32;
  uint32_t* bits = args.bits + i * words;
  if (!is_wanted(args.chunk, m)) {
    for (int64_t w = device::thread(); w < words && args.clears; w += kSelectThreads) device::store(bits + w, 0u);
    return;
  }
  const float* values = args.field + m * args.stride;
  const int64_t n = args.pixels, number = device::load(&mask_at(args.chunk, m)->number);
  Cut cut{0, 0, false};
  if (number > 0 && number < n) cut = find_cut(values, n, number, counts, totals, groups, chosen);
  int64_t seen = 0;
  for (int64_t base = 0; base < words; base += kSelectThreads) {
    const int64_t w = base + device::thread();
    const uint32_t word = ranked_word(values, n, number, cut, w, &seen, sums);
    if (w < words) device::store(bits + w, word);
  }
}

// ---- a mask by one block ----

constexpr int kTilePixels = 4 * kTileX * kTileY;
constexpr int kWholeWords = kWholeThreads * kTilePixels / 32;

// A bit of each of a thread's values.
struct Lanes {
  uint32_t of[4];
};
static_assert(kTilePixels <= 128 && 2 * kWholeThreads <= kEntries, "they have place");

// The sum of what the threads of a block have, each below 2^kBits.
template <int kBits>
FUSEDMIX_DEVICE int32_t sum_of_block(int32_t mine) {
  int32_t sum = 0;
  FUSEDMIX_UNROLL
  for (int b = 0; b < kBits; ++b) sum += device::count((mine >> b & 1) != 0) << b;
  return sum;
}

FUSEDMIX_DEVICE float value_of(uint32_t key) { return bit_cast<float>((key & 0x80000000u) != 0 ? key & 0x7FFFFFFFu : ~key); }

// The cut of n values that threads have. Their other values are -∞, and no zero has a sign. It takes a bit of the key at a time: a
// subtraction and an addition a value, where digits of eight bits would take an addition in shared memory. When no more
// values are left than there are threads, each takes one of them.
template <class Sums, class List>
FUSEDMIX_DEVICE Cut find_cut(const float (&values)[kTilePixels], int32_t n, int32_t number, Sums& sums, List& list,
                             int32_t threads) {
  const auto thread = static_cast<int32_t>(device::thread());
  uint32_t key = 0;  // the cut's, as far as it is known: its value is not below `low`, and below `high`
  float low = -FLT_MAX, high = HUGE_VALF;
  int32_t at_least = n, above = 0;  // so many values are not below `low`, and not below `high`
  const auto below = [&](float middle) {
    uint32_t number_below = 0;
    FUSEDMIX_UNROLL
    for (int c = 0; c < kTilePixels; ++c) number_below += bit_cast<uint32_t>(values[c] - middle) >> 31;
    return static_cast<int32_t>(number_below);
  };
  int32_t until_low = below(low), until_high = kTilePixels;  // of this thread's, below each
  const auto narrow = [&](int bit, int32_t from_middle, int32_t until_middle) {
    const uint32_t middle = key | 1u << bit;
    const bool up = from_middle >= number;
    key = up ? middle : key;
    (up ? low : high) = value_of(middle);
    (up ? at_least : above) = from_middle;
    (up ? until_low : until_high) = until_middle;
  };
  int bit = 31;
  FUSEDMIX_NO_UNROLL
  for (; bit >= 0 && at_least - above > threads; --bit) {
    const int32_t until_middle = below(value_of(key | 1u << bit));
    narrow(bit, kTilePixels * threads - sum_of_block<7>(until_middle), until_middle);
  }
  if (bit >= 0) {
    int32_t at = sum_before(sums, until_high - until_low, threads).sum;
    FUSEDMIX_UNROLL
    for (int c = 0; c < kTilePixels; ++c) {
      if (values[c] >= low && values[c] < high) list[at++] = values[c];
    }
    device::sync();
    float value = -HUGE_VALF;
    if (thread < at_least - above) value = list[thread];
    const int32_t beyond = above;
    FUSEDMIX_NO_UNROLL
    for (; bit >= 0; --bit) narrow(bit, beyond + device::count(value >= value_of(key | 1u << bit)), 0);
  }
  return {key, number - above, number < at_least};
}

// Which values are not below another. That of the difference's sign is one instruction beside the subtraction.
FUSEDMIX_DEVICE Lanes not_below(const float (&values)[kTilePixels], float lowest) {
  Lanes below{};
  FUSEDMIX_UNROLL
  for (int c = 127; c >= 0; --c) {
    const float value = c < kTilePixels ? values[c] : lowest;
    below.of[c / 32] = below.of[c / 32] << 1 | bit_cast<uint32_t>(value - lowest) >> 31;
  }
  FUSEDMIX_UNROLL
  for (int k = 0; k < 4; ++k) below.of[k] = ~below.of[k];
  return below;
}

FUSEDMIX_DEVICE uint32_t reversed(uint32_t bits) {
  bits = (bits & 0x55555555u) << 1 | (bits >> 1 & 0x55555555u);
  bits = (bits & 0x33333333u) << 2 | (bits >> 2 & 0x33333333u);
  bits = (bits & 0x0F0F0F0Fu) << 4 | (bits >> 4 & 0x0F0F0F0Fu);
  bits = (bits & 0x00FF00FFu) << 8 | (bits >> 8 & 0x00FF00FFu);
  return bits << 16 | bits >> 16;
}

// Adds to the words of a mask what the 32 threads from `first` on have found of value `c` of their tiles, a bit each: where
// threads are neighbours in x, pixels are, from left to right or, mirrored, from right to left.
template <class Words>
FUSEDMIX_DEVICE void place_bits(const SynthesisArgs& args, int32_t first, int c, uint32_t bits, Words& words, int32_t to) {
  const int quadrant = c % 4, j = c / 4 % kTileX, r = c / (4 * kTileX);
  int32_t column = first % args.tiles_x, y = first / args.tiles_x * kTileY + r;
  while (bits != 0) {
    const int32_t left = args.tiles_x - column, x = column + j * args.tiles_x, inside = args.width / 2 + 1 - x;
    int32_t n = left < 32 ? left : 32;
    uint32_t run = bits & first_bits(n);
    bits = n < 32 ? bits >> n : 0u;
    if (run != 0) {  // there are pixels among them
      n = n < inside ? n : inside;
      if ((quadrant & 1) != 0) run = reversed(run) >> (32 - n);
      const int32_t row = (quadrant & 2) != 0 ? args.height - y : y;
      const int32_t q = row * args.width + ((quadrant & 1) != 0 ? args.width - (x + n - 1) : x), shift = q % 32;
      const uint32_t here = run << shift, next = shift > 0 ? run >> (32 - shift) : 0u;
      if (here != 0) device::add(words, to + q / 32, here);
      if (next != 0) device::add(words, to + q / 32 + 1, next);
    }
    column = 0;
    y += kTileY;
  }
}

struct WholeArgs {
  SynthesisArgs synthesis;
  bool clears;  // what is not wanted
  uint32_t* bits;
};

// One long function: with parts of it in others nvcc puts numbers into local memory.
FUSEDMIX_WIDE_KERNEL(kWholeThreads, 1) whole_kernel(FUSEDMIX_ARGS(WholeArgs, args)) {
  FUSEDMIX_SHARED(RawFour, rows, kEntries);
  FUSEDMIX_SHARED(RawTwo, waves, kEntries);
  FUSEDMIX_SHARED(int32_t, sums, kWholeThreads);
  FUSEDMIX_SHARED(float, list, kWholeThreads);
  FUSEDMIX_SHARED(uint32_t, found, 2 * kWholeWords);  // pixels above the cut; then, if they are not all 1, those equal to it
  const SynthesisArgs& s = args.synthesis;
  const auto thread = static_cast<int32_t>(device::thread());
  const int64_t m = device::block();
  const int32_t n = s.height * s.width, words = (n + 31) / 32;
  const auto store_word = [&](int32_t w, uint32_t word) { device::store(args.bits + (s.chunk.first + m) * words + w, word); };
  const bool wanted = is_wanted(s.chunk, m);
  const int32_t number = wanted ? device::load(&mask_at(s.chunk, m)->number) : 0;
  if (number <= 0 || number >= n) {
    for (int32_t w = thread; w < words && (wanted || args.clears); w += s.threads) store_word(w, plain_word(n, number, w));
    return;
  }
  sums[thread] = thread / s.tiles_x;  // there, because the registers are for the sums
  float values[kTilePixels];
  synthesise<kTileX, kTileY>(s, m, tile_of<kTileX, kTileY>(s, 0), rows, waves, values);
  const int32_t tile_y = sums[thread], tile_x = thread - tile_y * s.tiles_x;
  // What is no pixel becomes -∞, and -0 becomes 0.
  const auto or_none = [](bool there) { return there ? 0.0f : -HUGE_VALF; };
  float across[kTileX][2];
  FUSEDMIX_UNROLL
  for (int j = 0; j < kTileX; ++j) {
    const int32_t x = tile_x + j * s.tiles_x;
    across[j][0] = or_none(is_there(x, s.width, false));
    across[j][1] = or_none(is_there(x, s.width, true));
  }
  FUSEDMIX_UNROLL
  for (int r = 0; r < kTileY; ++r) {
    FUSEDMIX_UNROLL
    for (int up = 0; up < 2; ++up) {
      const float down = or_none(is_there(tile_y * kTileY + r, s.height, up == 1));
      FUSEDMIX_UNROLL
      for (int j = 0; j < kTileX; ++j) {
        float* const both = values + (r * kTileX + j) * 4 + 2 * up;
        both[0] += across[j][0] + down;
        both[1] += across[j][1] + down;
      }
    }
  }
  const Cut cut = find_cut(values, n, number, sums, list, s.threads);
  // Where rows were, a thread leaves which of its values are 1, and which are equal to the cut if not all of these are.
  Lanes ones = not_below(values, value_of(cut.key));
  if (cut.scan) {
    const Lanes above = not_below(values, value_of(cut.key + 1u));
    FUSEDMIX_UNROLL
    for (int k = 0; k < 4; ++k) ones.of[k] ^= above.of[k];
    rows[kWholeThreads + thread] = as<RawFour>(ones);
    ones = above;
  }
  rows[thread] = as<RawFour>(ones);
  for (int32_t w = thread; w < words; w += s.threads) found[w] = found[kWholeWords + w] = 0u;
  device::sync();
  for (int pass = 0; pass < (cut.scan ? 2 : 1); ++pass) {
    const int32_t first = thread / 32 * 32, lane = thread % 32;
    Lanes lanes{};  // of the threads of a warp, of every 32nd value
    FUSEDMIX_UNROLL_4
    for (int l = 0; l < 32; ++l) {
      const RawFour raw = rows[pass * kWholeThreads + first + l];
      const Lanes its = as<Lanes>(raw);
      FUSEDMIX_UNROLL
      for (int k = 0; k < 4; ++k) lanes.of[k] |= (its.of[k] >> lane & 1u) << l;
    }
    FUSEDMIX_NO_UNROLL
    for (int k = 0; k < 4; ++k) {
      const int c = 32 * k + lane;
      const uint32_t bits = k < 2 ? (k == 0 ? lanes.of[0] : lanes.of[1]) : (k == 2 ? lanes.of[2] : lanes.of[3]);
      if (c < kTilePixels) place_bits(s, first, c, bits, found, pass * kWholeWords);
    }
  }
  device::sync();
  int64_t seen = 0;
  for (int32_t base = 0; base < words; base += s.threads) {
    const int32_t w = base + thread;
    uint32_t word = 0, ties = 0;
    if (w < words) {
      word = found[w];
      ties = found[kWholeWords + w];
    }
    if (cut.scan) word = with_ties(word, ties, cut, &seen, sums, s.threads);
    if (w < words) store_word(w, word);
  }
}

// ---- soft edges ----

struct SoftenArgs {
  Chunk chunk;
  bool clears;
  int64_t pixels, stride;
  const float* field;
  uint16_t* levels;
  uint64_t* items;  // (n, 2, most): ~key and pixel of the ranks of an edge
  int64_t most;
};

// The ranks of the 2·soft pixels of an edge, which a mask with levels needs, come from sorting these alone: gathered in the
// order of pixels, then a stable radix sort of four bits at a time. Eight passes of a block over its items, each thread's
// share in a row: on paper some 100 µs for an edge of a fifth of 224², whatever else the device does. Few use soft masks. One long
// function: where the sort is one of its own nvcc makes more instructions of it.
FUSEDMIX_WIDE_KERNEL(kSelectThreads, 1) soften_kernel(FUSEDMIX_ARGS(SoftenArgs, args)) {
  FUSEDMIX_SHARED(int32_t, counts, kCounts);
  FUSEDMIX_SHARED(int32_t, totals, kBins);
  FUSEDMIX_SHARED(int32_t, groups, 16);
  FUSEDMIX_SHARED(int32_t, chosen, 3);
  FUSEDMIX_SHARED(int32_t, sums, kSelectThreads);
  constexpr int kDigits = kCounts / kSelectThreads;
  static_assert(kDigits == 16, "four bits");
  const auto thread = static_cast<int32_t>(device::thread());
  const int64_t m = device::block(), i = args.chunk.first + m, n = args.pixels, words = (n + 31) / 32;
  uint16_t* levels = args.levels + i * n;
  if (!is_wanted(args.chunk, m)) {
    for (int64_t q = thread; q < n && args.clears; q += kSelectThreads) device::store(levels + q, uint16_t{0});
    return;
  }
  const float* values = args.field + m * args.stride;
  const Fourier* mask = mask_at(args.chunk, m);
  const int64_t number = device::load(&mask->number), given = device::load(&mask->soft);
  const int64_t soft = 2 * given < args.most ? given : args.most / 2;
  const int64_t first = number - soft, stop = number + soft;
  Cut first_cut{0, 0, false}, stop_cut{0, 0, false};
  if (first > 0 && first < n) first_cut = find_cut(values, n, first, counts, totals, groups, chosen);
  if (stop > 0 && stop < n) stop_cut = find_cut(values, n, stop, counts, totals, groups, chosen);
  uint64_t* from = args.items + m * 2 * args.most;
  uint64_t* to = from + args.most;
  int64_t seen_first = 0, seen_stop = 0, found = 0;
  for (int64_t base = 0; base < words; base += kSelectThreads) {
    const int64_t w = base + thread;
    const uint32_t ones = ranked_word(values, n, first, first_cut, w, &seen_first, sums);
    const uint32_t edge = ranked_word(values, n, stop, stop_cut, w, &seen_stop, sums) & ~ones;
    const Before before = sum_before(sums, ones_of(edge), kSelectThreads);
    int64_t at = found + before.sum;
    found += before.total;
    for (int l = 0; l < 32; ++l) {
      const int64_t q = 32 * w + l;
      if (q >= n) break;
      if ((edge >> l & 1u) != 0) {
        const auto key = static_cast<uint64_t>(~key_of(device::load(values + q)));
        if (at < args.most) device::store(from + at, key << 32 | static_cast<uint64_t>(q));
        ++at;
      } else {
        device::store(levels + q, static_cast<uint16_t>((ones >> l & 1u) != 0 ? kFullLevel : 0));
      }
    }
  }
  const int64_t items = found < args.most ? found : args.most;
  const int64_t share = (items + kSelectThreads - 1) / kSelectThreads;
  const int64_t begin = share * thread < items ? share * thread : items;
  const int64_t end = begin + share < items ? begin + share : items;
  for (int shift = 32; shift < 64; shift += 4) {
    const auto digit_of = [&](uint64_t item) { return static_cast<int32_t>(item >> shift & (kDigits - 1)); };
    device::sync();
    FUSEDMIX_UNROLL
    for (int d = 0; d < kDigits; ++d) counts[d * kSelectThreads + thread] = 0;
    for (int64_t k = begin; k < end; ++k) counts[digit_of(device::load(from + k)) * kSelectThreads + thread] += 1;
    device::sync();
    int32_t mine = 0;
    for (int d = 0; d < kDigits; ++d) {
      const int32_t one = counts[thread * kDigits + d];
      mine += one;
    }
    int32_t sum = sum_before(sums, mine, kSelectThreads).sum;
    for (int d = 0; d < kDigits; ++d) {
      const int32_t one = counts[thread * kDigits + d];
      counts[thread * kDigits + d] = sum;
      sum += one;
    }
    device::sync();
    for (int64_t k = begin; k < end; ++k) {
      const uint64_t item = device::load(from + k);
      const int32_t at = counts[digit_of(item) * kSelectThreads + thread]++;
      device::store(to + at, item);
    }
    uint64_t* const swapped = from;
    from = to;
    to = swapped;
  }
  device::sync();
  for (int64_t k = thread; k < items; k += kSelectThreads) {
    const auto q = static_cast<int64_t>(device::load(from + k) & 0xFFFFFFFFu);
    device::store(levels + q, level_at(first + k, number, soft));
  }
}

}  // namespace
}  // namespace fusedmix::cuda
