// The Fourier masks of FMix: noise, its grey image, and the bits of its largest pixels. The definition is
// fusedmix/fourier.py's.
//
// For as many masks as their scratch allows there are three launches (four in 3-D), none of which waits for the host:
//   noise      the coefficients of every mask. A thread has one frequency and goes through several masks: its two powers in
//              float64 are the dearest part, and a table of them would be one more launch.
//   turn       3-D only: from coefficients along z to those of every slice.
//   synthesis  the grey image, along y and then x, in float32. y and -y, x and -x are even and odd parts of the same sums.
//   select     a block for each mask: the key of the last pixel that is 1, by a radix select, then the bits.
// On paper, for 256 masks of 224² at 32 frequencies: .55·10⁹ products, of which an H200 does 17·10³ a cycle, so 20 µs at the
// least and some 45 with all that is around them; each image is written once and read five times, 51 and 257 MB, but from the
// second-level cache, for which the chunks of 24 MiB are small enough: some 50 µs. Never measured.
#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <vector>

#include "../include/fusedmix/fourier.h"
#include "vector.h"

namespace fusedmix::cuda {
namespace {

constexpr int kMasksEach = 8;       // of a thread that makes noise
constexpr int kFrequencies = 64;    // along an axis, whose sums and waves are in shared memory at a time
constexpr int kAnchor = 8;          // steps of a wave that is turned on, before it is loaded anew
constexpr int kSelectThreads = 512;
constexpr int kBins = 256, kCopies = 32, kCounts = kBins * kCopies;

// Four numbers, moved at once. A coefficient is C(ky) = a + ib and C(-ky) = a' + ib' as a + a', b - b', a - a', b + b'.
using Four = Vec<float, 4>;
using RawFour = device::RawOf<16>::type;
// (cos, sin) of a turn's part.
using Two = Vec<float, 2>;
using RawTwo = device::RawOf<8>::type;

template <class To, class From>
FUSEDMIX_DEVICE To as(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "the same bytes");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}
FUSEDMIX_DEVICE Four four(float a, float b, float c, float d) {
  Four made{};
  made.set(0, a);
  made.set(1, b);
  made.set(2, c);
  made.set(3, d);
  return made;
}
FUSEDMIX_DEVICE Two load_two(const RawTwo* at) { return as<Two>(device::load(at)); }

// Some masks of a plan, and those of them that are to be made: of one kind, decay and cut-off.
struct Chunk {
  const Record* masks;
  int64_t first, n;
  int32_t wanted;
  float decay, cutoff;
};

FUSEDMIX_DEVICE const fusedmix::Fourier* mask_at(const Chunk& c, int64_t m) {
  return reinterpret_cast<const fusedmix::Fourier*>(c.masks + c.first + m);
}

FUSEDMIX_DEVICE bool is_wanted(const Chunk& c, int64_t m) {
  const fusedmix::Fourier* mask = mask_at(c, m);
  return device::load(&mask->kind) == c.wanted && device::load(&mask->decay) == c.decay && device::load(&mask->cutoff) == c.cutoff;
}

// ---- noise ----

struct NoiseArgs {
  Chunk chunk;
  Spectrum spectrum;
  int64_t batch;
  int32_t draws;
  const int64_t* seed;
  uint64_t seed_value;
  int64_t rows, tiles;    // |ky|; blocks across the frequencies
  int64_t wave_blocks;    // before them
  RawTwo* waves;          // e^{2πij/side}: of z, then y, then x
  RawFour* coefficients;  // (n, kz, |ky|, kx)
};

FUSEDMIX_DEVICE void fill_waves(const NoiseArgs& args, int64_t j) {
  FUSEDMIX_UNROLL
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t side = args.spectrum.side[axis];
    if (j >= 0 && j < side) {
      const double share = static_cast<double>(j) / static_cast<double>(side);
      Two made{};
      made.set(0, static_cast<float>(cos_turns(share)));
      made.set(1, static_cast<float>(cos_turns(share - 0.25)));
      int64_t before = 0;
      if (axis > 0) before += args.spectrum.side[0];
      if (axis > 1) before += args.spectrum.side[1];
      device::store(args.waves + before + j, as<RawTwo>(made));
    }
    j -= side;
  }
}

FUSEDMIX_KERNEL(kThreads) noise_kernel(FUSEDMIX_ARGS(NoiseArgs, args)) {
  const Spectrum& s = args.spectrum;
  if (device::block() < args.wave_blocks) {
    fill_waves(args, static_cast<int64_t>(device::block()) * kThreads + device::thread());
    return;
  }
  const int64_t block = device::block() - args.wave_blocks;
  const int64_t all = s.count[0] * args.rows * s.count[2], at = block % args.tiles * kThreads + device::thread();
  if (at >= all) return;
  const int64_t kx = at % s.count[2], ky = at / s.count[2] % args.rows, kz = s.low[0] + at / s.count[2] / args.rows;
  const Deviation of = deviation(s, kz, ky, kx);
  const auto of_a = static_cast<float>(of.a), of_b = static_cast<float>(of.b);
  const uint32_t call = noise_call(s.ndim, kz, ky, kx);
  const bool mirrored = ky > 0 && -ky >= s.low[1];
  const uint64_t seed = args.seed == nullptr ? args.seed_value : static_cast<uint64_t>(device::load(args.seed));
  const int64_t first = block / args.tiles * kMasksEach;
  for (int64_t m = first; m < first + kMasksEach && m < args.chunk.n; ++m) {
    if (!is_wanted(args.chunk, m)) continue;
    const auto index = static_cast<uint64_t>(draw_index(args.draws, args.chunk.first + m, args.batch));
    const Words w = words(seed, index, kStreamNoise, call);
    const Pair one = normals(w.a, w.b), other = normals(w.c, w.d);
    const float a = of_a * one.a, b = of_b * one.b;
    const float more_a = mirrored ? of_a * other.a : 0.0f, more_b = mirrored ? of_b * other.b : 0.0f;
    device::store(args.coefficients + m * all + at, as<RawFour>(four(a + more_a, b - more_b, a - more_a, b + more_b)));
  }
}

// ---- 3-D: Σ_kz C·e^{iθ} for every slice ----

struct TurnArgs {
  Chunk chunk;
  int64_t depth, low, count, plane, tiles;  // plane: frequencies of a slice
  const RawTwo* waves;                      // of z
  const RawFour* coefficients;              // (n, kz, plane)
  RawFour* turned;                          // (n, depth, plane)
};

FUSEDMIX_KERNEL(kThreads) turn_kernel(FUSEDMIX_ARGS(TurnArgs, args)) {
  const int64_t slice = device::block() / args.tiles, m = slice / args.depth, z = slice % args.depth;
  const int64_t at = device::block() % args.tiles * kThreads + device::thread();
  if (at >= args.plane || !is_wanted(args.chunk, m)) return;
  float sum_a = 0.0f, difference_b = 0.0f, difference_a = 0.0f, sum_b = 0.0f;
  int64_t angle = (args.low * z % args.depth + args.depth) % args.depth;
  for (int64_t k = 0; k < args.count; ++k) {
    const Four c = as<Four>(device::load(args.coefficients + (m * args.count + k) * args.plane + at));
    const Two wave = load_two(args.waves + angle);
    const float cosine = wave.get(0), sine = wave.get(1);
    sum_a = fma(c.get(0), cosine, fma(-c.get(3), sine, sum_a));
    sum_b = fma(c.get(0), sine, fma(c.get(3), cosine, sum_b));
    difference_a = fma(c.get(2), cosine, fma(-c.get(1), sine, difference_a));
    difference_b = fma(c.get(2), sine, fma(c.get(1), cosine, difference_b));
    angle += z;
    angle -= angle >= args.depth ? args.depth : 0;
  }
  device::store(args.turned + slice * args.plane + at, as<RawFour>(four(sum_a, difference_b, difference_a, sum_b)));
}

// ---- the grey image ----

struct SynthesisArgs {
  Chunk chunk;
  int64_t depth, height, width;
  int64_t ny, nx;          // |ky|, kx
  int64_t x_tiles, y_tiles;
  const RawTwo* waves_y;
  const RawTwo* waves_x;
  const RawFour* planes;   // (n, depth, ny, nx)
  float* field;            // n images, `stride` apart
  int64_t stride;
};

// A block makes the rows y and -y of kRows y's at kThreads x's, and at -x.
//
// First R + iI = Σ_ky C·e^{iθ} of all its rows into shared memory, some kx at a time: a thread has one kx and up to four of
// the y's. Then Σ_kx R·cos θ - I·sin θ: a thread has one x and all of the rows, so a wave and an R serve as many products as
// there are registers for sums. It turns its wave on from kx to kx, four products, where loads from a table would take twice
// the time that all of the sums do (neighbours in x are k entries apart in it: bank conflicts); anchors keep it exact.
template <int kRows>
FUSEDMIX_KERNEL(kThreads) synthesis_kernel(FUSEDMIX_ARGS(SynthesisArgs, args)) {
  FUSEDMIX_SHARED(RawFour, rows, kFrequencies * kRows);   // (kx, y): R and I of y, R and I of -y
  FUSEDMIX_SHARED(RawTwo, waves, kFrequencies * kRows);   // (ky, y)
  constexpr int kGroup = kRows < 4 ? kRows : 4;
  const int64_t tiles = args.x_tiles * args.y_tiles, plane = device::block() / tiles, tile = device::block() % tiles;
  const int64_t m = plane / args.depth;
  if (!is_wanted(args.chunk, m)) return;
  const int64_t x = tile % args.x_tiles * kThreads + device::thread(), y0 = tile / args.x_tiles * kRows;
  const auto thread = static_cast<int32_t>(device::thread());
  const bool active = x <= args.width / 2;
  const int64_t step = active ? x : 0, anchor_step = kAnchor * step % args.width;
  const Two turn = load_two(args.waves_x + step);  // step < width but for a width of 1, where it is 0
  int64_t angle = 0;
  float cosine = 1.0f, sine = 0.0f;
  float even[2 * kRows], odd[2 * kRows];
  FUSEDMIX_UNROLL
  for (int r = 0; r < 2 * kRows; ++r) even[r] = odd[r] = 0.0f;

  for (int64_t kx0 = 0; kx0 < args.nx; kx0 += kFrequencies) {
    const auto nx = static_cast<int32_t>(args.nx - kx0 < kFrequencies ? args.nx - kx0 : kFrequencies);
    for (int64_t ky0 = 0; ky0 < args.ny; ky0 += kFrequencies) {
      const auto ny = static_cast<int32_t>(args.ny - ky0 < kFrequencies ? args.ny - ky0 : kFrequencies);
      device::sync();
      for (int32_t t = thread; t < ny * kRows; t += kThreads) {
        const int64_t y = y0 + t % kRows;
        waves[t] = device::load(args.waves_y + (ky0 + t / kRows) * y % args.height);
      }
      device::sync();
      for (int32_t item = thread; item < nx * (kRows / kGroup); item += kThreads) {
        const int32_t kx = item % nx, first = item / nx * kGroup;
        const RawFour* from = args.planes + (plane * args.ny + ky0) * args.nx + kx0 + kx;
        float even_r[kGroup], odd_r[kGroup], even_i[kGroup], odd_i[kGroup];
        FUSEDMIX_UNROLL
        for (int r = 0; r < kGroup; ++r) even_r[r] = odd_r[r] = even_i[r] = odd_i[r] = 0.0f;
        FUSEDMIX_UNROLL_4
        for (int32_t ky = 0; ky < ny; ++ky) {
          const Four c = as<Four>(device::load(from + ky * args.nx));
          FUSEDMIX_UNROLL
          for (int r = 0; r < kGroup; ++r) {
            const RawTwo raw = waves[ky * kRows + first + r];
            const Two wave = as<Two>(raw);
            even_r[r] = fma(c.get(0), wave.get(0), even_r[r]);
            odd_r[r] = fma(c.get(1), wave.get(1), odd_r[r]);
            even_i[r] = fma(c.get(3), wave.get(0), even_i[r]);
            odd_i[r] = fma(c.get(2), wave.get(1), odd_i[r]);
          }
        }
        FUSEDMIX_UNROLL
        for (int r = 0; r < kGroup; ++r) {
          Four made = four(even_r[r] - odd_r[r], even_i[r] + odd_i[r], even_r[r] + odd_r[r], even_i[r] - odd_i[r]);
          const int32_t to = kx * kRows + first + r;
          if (ky0 > 0) {
            const RawFour raw = rows[to];
            const Four before = as<Four>(raw);
            made = four(before.get(0) + made.get(0), before.get(1) + made.get(1), before.get(2) + made.get(2),
                        before.get(3) + made.get(3));
          }
          rows[to] = as<RawFour>(made);
        }
      }
    }
    device::sync();
    for (int32_t k = 0; k < nx; ++k) {
      if (k % kAnchor == 0) {  // as is kx: kFrequencies is a multiple
        const Two wave = load_two(args.waves_x + angle);
        cosine = wave.get(0);
        sine = wave.get(1);
        angle += anchor_step;
        angle -= angle >= args.width ? args.width : 0;
      }
      FUSEDMIX_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const RawFour raw = rows[k * kRows + r];
        const Four c = as<Four>(raw);
        even[2 * r] = fma(c.get(0), cosine, even[2 * r]);
        odd[2 * r] = fma(c.get(1), sine, odd[2 * r]);
        even[2 * r + 1] = fma(c.get(2), cosine, even[2 * r + 1]);
        odd[2 * r + 1] = fma(c.get(3), sine, odd[2 * r + 1]);
      }
      const float turned = fma(cosine, turn.get(0), -(sine * turn.get(1)));
      sine = fma(cosine, turn.get(1), sine * turn.get(0));
      cosine = turned;
    }
  }

  if (!active) return;
  float* image = args.field + m * args.stride + plane % args.depth * args.height * args.width;
  const bool behind = x > 0 && 2 * x < args.width;
  FUSEDMIX_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const int64_t y = y0 + r;
    if (y > args.height / 2) return;
    device::store(image + y * args.width + x, even[2 * r] - odd[2 * r]);
    if (behind) device::store(image + (y + 1) * args.width - x, even[2 * r] + odd[2 * r]);
    if (y == 0 || 2 * y >= args.height) continue;
    const int64_t mirrored = args.height - y;
    device::store(image + mirrored * args.width + x, even[2 * r + 1] - odd[2 * r + 1]);
    if (behind) device::store(image + (mirrored + 1) * args.width - x, even[2 * r + 1] + odd[2 * r + 1]);
  }
}

// ---- which pixels are 1 ----

// Ascending with the value; -0 is 0.
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

// By digits of eight bits from the highest, each one's counts in shared memory. For 0 < number < n.
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
FUSEDMIX_DEVICE Before sum_before(Sums& sums, int32_t mine) {
  const auto thread = static_cast<int32_t>(device::thread());
  int32_t sum = mine;
  device::sync();
  sums[thread] = sum;
  for (int32_t step = 1; step < kSelectThreads; step *= 2) {
    device::sync();
    int32_t other = 0;
    if (thread >= step) other = sums[thread - step];
    device::sync();
    sum += other;
    sums[thread] = sum;
  }
  device::sync();
  const int32_t total = sums[kSelectThreads - 1];
  return {sum - mine, total};
}

FUSEDMIX_DEVICE uint32_t first_bits(int64_t n) { return n >= 32 ? 0xFFFFFFFFu : (1u << n) - 1u; }

// Bit l: whether pixel 32·word + l is one of the first `number`. All threads call it for kSelectThreads words in their order;
// `seen` counts the pixels equal to the cut in the words before.
template <class Sums>
FUSEDMIX_DEVICE uint32_t ranked_word(const float* values, int64_t n, int64_t number, const Cut& cut, int64_t word, int64_t* seen,
                                     Sums& sums) {
  const int64_t q = 32 * word, here = n - q < 32 ? n - q : 32;
  if (number <= 0 || number >= n) return number > 0 && here > 0 ? first_bits(here) : 0u;
  uint32_t above = 0, equal = 0;
  int32_t ties = 0;
  const auto look = [&](float value, int l) {
    const uint32_t key = key_of(value);
    above |= key > cut.key ? 1u << l : 0u;
    equal |= key == cut.key ? 1u << l : 0u;
    ties += key == cut.key ? 1 : 0;
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
  if (!cut.scan) return above | equal;  // the same for all threads
  const Before before = sum_before(sums, ties);
  int64_t left = cut.ties - *seen - before.sum;
  *seen += before.total;
  for (; equal != 0 && left > 0; --left) {
    above |= equal & (0u - equal);
    equal &= equal - 1u;
  }
  return above;
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
// share in a row: on paper some 100 µs for an edge of a fifth of 224², whatever else the device does. Few use soft masks.
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
  const fusedmix::Fourier* mask = mask_at(args.chunk, m);
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
    uint32_t edge = ranked_word(values, n, stop, stop_cut, w, &seen_stop, sums) & ~ones;
    int32_t mine = 0;
    for (uint32_t rest = edge; rest != 0; rest &= rest - 1u) ++mine;
    const Before before = sum_before(sums, mine);
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
    int32_t sum = sum_before(sums, mine).sum;
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

// ---- launches ----

constexpr int32_t kNothing = -1;  // no mask's kind

struct Variant {
  int32_t kind;
  float decay, cutoff;
  Spectrum spectrum;
};

std::vector<Variant> variants_of(const Fourier& f) {
  std::vector<Variant> found;
  for (int32_t m = 0; m < f.methods; ++m) {
    const MethodRow& row = f.rows[m];
    if (!is_stored_method(row.method)) continue;
    const int32_t kind = fusedmix::Fourier::kind_of(row.method);
    const auto decay = static_cast<float>(row.decay), cutoff = static_cast<float>(row.cutoff);
    const Variant made{kind, decay, cutoff, spectrum_of(kind == kFourierReleased, f.extent.ndim, f.extent.size, decay, cutoff)};
    const bool known = std::any_of(found.begin(), found.end(), [&](const Variant& v) {
      return v.kind == made.kind && v.decay == made.decay && v.cutoff == made.cutoff;
    });
    if (!known) found.push_back(made);
  }
  return found;
}

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Where the parts of the scratch lie: the waves, then what `masks` masks have.
struct Parts {
  int64_t pixels, stride, ny, frequencies, turned, most;  // of a mask; `frequencies` and `turned` are coefficients
  int64_t waves, masks;

  Parts(const Fourier& f, const Variant& v) {
    const Spectrum& s = v.spectrum;
    pixels = f.extent.size[0] * f.extent.size[1] * f.extent.size[2];
    stride = divide_up(pixels, 32) * 32;
    ny = s.low[1] + s.count[1];
    frequencies = s.count[0] * ny * s.count[2];
    turned = f.extent.ndim == 3 ? f.extent.size[0] * ny * s.count[2] : 0;
    double soft = 0.0;
    for (int32_t m = 0; m < f.methods && f.levels != nullptr; ++m) {
      if (is_stored_method(f.rows[m].method)) soft = std::max(soft, f.rows[m].soft);
    }
    most = 2 * static_cast<int64_t>(std::min(0.5, soft) * static_cast<double>(pixels)) + 2;
    most = f.levels == nullptr ? 0 : std::min(most, divide_up(pixels, 2) * 2);
    waves = divide_up((f.extent.size[0] + f.extent.size[1] + f.extent.size[2]) * sizeof(RawTwo), 16) * 16;
    const int64_t n = mask_rows(f.per, f.batch);
    const int64_t fit = std::max<int64_t>(1, (f.most_scratch - waves) / each());
    masks = divide_up(n, divide_up(n, fit));  // chunks of about the same size
  }
  int64_t each() const { return stride * 4 + (frequencies + turned) * 16 + 2 * most * 8; }
  int64_t bytes() const { return waves + masks * each(); }
};

int make(const Fourier& f, const Variant& v, bool first_variant, void* stream) {
  const Spectrum& s = v.spectrum;
  const Parts parts(f, v);
  auto* waves = reinterpret_cast<RawTwo*>(f.scratch);
  auto* coefficients = reinterpret_cast<RawFour*>(f.scratch + parts.waves);
  RawFour* turned = coefficients + parts.masks * parts.frequencies;
  auto* items = reinterpret_cast<uint64_t*>(turned + parts.masks * parts.turned);
  auto* field = reinterpret_cast<float*>(items + 2 * parts.masks * parts.most);
  const int64_t n = mask_rows(f.per, f.batch);
  const bool any = v.kind != kNothing;
  for (int64_t first = 0; first < n; first += parts.masks) {
    const Chunk chunk{f.masks, first, std::min(parts.masks, n - first), v.kind, v.decay, v.cutoff};
    const auto launch = [&](auto kernel, int64_t blocks, int threads, const auto& args) {
      return device::launch(kernel, launchable(blocks), threads, stream, args);
    };
    int error = 0;
    if (any) {
      NoiseArgs noise{chunk, s, f.batch, f.draws, f.seed, f.seed_value, parts.ny, divide_up(parts.frequencies, kThreads), 0, waves,
                      coefficients};
      if (first == 0) noise.wave_blocks = divide_up(f.extent.size[0] + f.extent.size[1] + f.extent.size[2], kThreads);
      error = launch(noise_kernel, noise.wave_blocks + noise.tiles * divide_up(chunk.n, kMasksEach), kThreads, noise);
      const int64_t plane = parts.ny * s.count[2];
      if (error == 0 && f.extent.ndim == 3) {
        const TurnArgs turn{chunk, f.extent.size[0], s.low[0], s.count[0], plane, divide_up(plane, kThreads), waves, coefficients, turned};
        error = launch(turn_kernel, chunk.n * turn.depth * turn.tiles, kThreads, turn);
      }
      if (error == 0) {
        const int64_t tall = f.extent.size[1] / 2 + 1;
        const int rows = tall > 2 ? 8 : 1;
        const SynthesisArgs synthesis{chunk, f.extent.size[0], f.extent.size[1], f.extent.size[2], parts.ny, s.count[2],
                                      divide_up(f.extent.size[2] / 2 + 1, kThreads), divide_up(tall, rows), waves + f.extent.size[0],
                                      waves + f.extent.size[0] + f.extent.size[1], f.extent.ndim == 3 ? turned : coefficients, field, parts.stride};
        const int64_t blocks = chunk.n * synthesis.depth * synthesis.x_tiles * synthesis.y_tiles;
        error = rows == 8 ? launch(synthesis_kernel<8>, blocks, kThreads, synthesis)
                          : launch(synthesis_kernel<1>, blocks, kThreads, synthesis);
      }
    }
    if (error == 0 && f.bits != nullptr) {
      const SelectArgs select{chunk, first_variant, parts.pixels, parts.stride, field, f.bits};
      error = launch(select_kernel, chunk.n, kSelectThreads, select);
    } else if (error == 0) {
      const SoftenArgs soften{chunk, first_variant, parts.pixels, parts.stride, field, f.levels, items, parts.most};
      error = launch(soften_kernel, chunk.n, kSelectThreads, soften);
    }
    if (error != 0) return error;
  }
  return 0;
}

// Where no method is FMix there is nothing but zeros to write.
Variant nothing(const Fourier& f) { return {kNothing, NAN, NAN, spectrum_of(false, f.extent.ndim, f.extent.size, 0.0, 0.0)}; }

}  // namespace

int64_t fourier_scratch(const Fourier& f) {
  if (mask_rows(f.per, f.batch) == 0) return 0;
  int64_t bytes = 0;
  for (const Variant& v : variants_of(f)) bytes = std::max(bytes, Parts(f, v).bytes());
  return bytes;
}

int fourier(const Fourier& f, void* stream) {
  if (mask_rows(f.per, f.batch) == 0) return 0;
  std::vector<Variant> variants = variants_of(f);
  if (variants.empty()) variants.push_back(nothing(f));
  for (size_t v = 0; v < variants.size(); ++v) {
    const int error = make(f, variants[v], v == 0, stream);
    if (error != 0) return error;
  }
  return 0;
}

}  // namespace fusedmix::cuda
