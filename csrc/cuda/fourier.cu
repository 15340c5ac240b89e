// The Fourier masks of FMix: noise, its grey image, and the bits of its largest pixels. The definition is
// fusedmix/fourier.py's.
//
// For as many masks as their scratch allows there are these launches, none of which waits for the host:
//   noise      the coefficients of every mask. A thread has one frequency and goes through several masks: its two powers in
//              float64 are the dearest part, and a table of them would be one more launch.
//   turn       3-D only: from coefficients along z to those of every slice.
//   rows       the sums along y, of every kx.
//   whole      the sums along x, and the selection: of an image that the registers of one block hold. It goes nowhere else.
// or, for images that are larger, have three axes or a soft edge, in place of the last
//   synthesis  the sums along x: the grey image in memory.
//   select     a block for each mask: the key of the last pixel that is 1, by a radix select, then the bits. Or soften.
// All sums are in float32; y and -y, x and -x are even and odd parts of the same ones.
//
// On paper, for a mask of 224² with 33 frequencies along each axis: .49·10⁶ products along y and 1.69·10⁶ along x, of which a
// multiprocessor does 128 a cycle, so 17·10³ cycles at the least. 17 KB of coefficients and 60 KB of rows are written and read
// once, of 256 masks in 20 MB, which the second-level cache holds. The image would be 200 KB, written once and read five times.
// By the instructions of sm_90, a block of `whole` takes 17·10³ cycles for the sums, and 1.4·10³ for each of the 13 or so bits
// of the cut that all values are compared for: with the rest, some 55·10³ for a mask. Never measured.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <stdexcept>
#include <vector>

#include "../include/fusedmix/fourier.h"
#include "vector.h"

namespace fusedmix::cuda {
namespace {

constexpr int kMasksEach = 8;       // of a thread that makes noise
constexpr int kFrequencies = 64;    // along y, whose waves are in shared memory at a time
constexpr int kRowsEach = 32;       // y's of a block that makes rows,
constexpr int kRowGroup = 8;        // and of a thread
constexpr int kWholeThreads = 512;  // at most, of a block that makes all of an image,
constexpr int kPartThreads = 384;   // and of one that makes a part
constexpr int kEntries = 1296;      // rows, and waves of x, that these have in shared memory at a time
constexpr int kTileX = 3, kTileY = 9;              // of a thread: 108 sums, of the 128 registers that 512 threads can have
constexpr int kFlatX = 4, kFlatY = 1;              // where there are no y's for such a tile
constexpr int kMostTilesX = 64, kMostTilesY = 16;  // of a part: more leave memory for few waves
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

FUSEDMIX_DEVICE const Fourier* mask_at(const Chunk& c, int64_t m) {
  return reinterpret_cast<const Fourier*>(c.masks + c.first + m);
}

FUSEDMIX_DEVICE bool is_wanted(const Chunk& c, int64_t m) {
  const Fourier* mask = mask_at(c, m);
  return device::load(&mask->kind) == c.wanted && device::load(&mask->decay) == c.decay && device::load(&mask->cutoff) == c.cutoff;
}

// ---- noise ----

struct NoiseArgs {
  Chunk chunk;
  Spectrum spectrum;
  int64_t batch;
  int32_t draws;
  Seed seed;
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
  const uint64_t seed = seed_of(args.seed);
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

// ---- the grey image: along y ----

struct RowsArgs {
  Chunk chunk;
  int64_t depth, height;
  int64_t ny, nx;         // |ky|, kx
  int64_t slots, tiles;   // y's, without those that are mirrored, and as many more as tiles have; blocks across them
  const RawTwo* waves;    // of y
  const RawFour* planes;  // (n, depth, ny, nx)
  RawFour* rows;          // (n, depth, slots, nx): R and I of y, R and I of -y
};

// R + iI = Σ_ky C·e^{iθ} of kRowsEach y's. A thread has one kx and kRowGroup of the y's.
FUSEDMIX_KERNEL(kThreads) rows_kernel(FUSEDMIX_ARGS(RowsArgs, args)) {
  FUSEDMIX_SHARED(RawTwo, waves, kFrequencies * kRowsEach);  // (ky, y)
  static_assert(kThreads % kRowsEach == 0, "a thread that fills them keeps its y");
  const int64_t plane = device::block() / args.tiles, y0 = device::block() % args.tiles * kRowsEach;
  if (!is_wanted(args.chunk, plane / args.depth)) return;
  const auto thread = static_cast<int32_t>(device::thread());
  const auto nx = static_cast<int32_t>(args.nx);
  const auto here = static_cast<int32_t>(args.slots - y0 < kRowsEach ? args.slots - y0 : kRowsEach);
  const int32_t items = nx * ((here + kRowGroup - 1) / kRowGroup);
  const int64_t y = y0 + thread % kRowsEach, step = kThreads / kRowsEach * y % args.height;
  for (int32_t base = 0; base < items; base += kThreads) {
    const int32_t item = base + thread, kx = item % nx, first = item / nx * kRowGroup;
    float even_r[kRowGroup], odd_r[kRowGroup], even_i[kRowGroup], odd_i[kRowGroup];
    FUSEDMIX_UNROLL
    for (int r = 0; r < kRowGroup; ++r) even_r[r] = odd_r[r] = even_i[r] = odd_i[r] = 0.0f;
    for (int64_t ky0 = 0; ky0 < args.ny; ky0 += kFrequencies) {
      const auto ny = static_cast<int32_t>(args.ny - ky0 < kFrequencies ? args.ny - ky0 : kFrequencies);
      if (base == 0 || args.ny > kFrequencies) {
        device::sync();
        int64_t angle = (ky0 + thread / kRowsEach) * y % args.height;
        for (int32_t t = thread; t < ny * kRowsEach; t += kThreads) {
          waves[t] = device::load(args.waves + angle);
          angle += step;
          angle -= angle >= args.height ? args.height : 0;
        }
        device::sync();
      }
      if (item >= items) continue;
      const RawFour* from = args.planes + (plane * args.ny + ky0) * nx + kx;
      FUSEDMIX_UNROLL_4
      for (int32_t ky = 0; ky < ny; ++ky) {
        const Four c = as<Four>(device::load(from + ky * nx));
        FUSEDMIX_UNROLL
        for (int r = 0; r < kRowGroup; ++r) {
          const RawTwo raw = waves[ky * kRowsEach + first + r];
          const Two wave = as<Two>(raw);
          even_r[r] = fma(c.get(0), wave.get(0), even_r[r]);
          odd_r[r] = fma(c.get(1), wave.get(1), odd_r[r]);
          even_i[r] = fma(c.get(3), wave.get(0), even_i[r]);
          odd_i[r] = fma(c.get(2), wave.get(1), odd_i[r]);
        }
      }
    }
    if (item >= items) continue;
    RawFour* to = args.rows + (plane * args.slots + y0) * nx + kx;
    FUSEDMIX_UNROLL
    for (int r = 0; r < kRowGroup; ++r) {
      if (first + r >= here) break;
      const Four made = four(even_r[r] - odd_r[r], even_i[r] + odd_i[r], even_r[r] + odd_r[r], even_i[r] - odd_i[r]);
      device::store(to + (first + r) * nx, as<RawFour>(made));
    }
  }
}

// ---- and along x ----

struct SynthesisArgs {
  Chunk chunk;
  int32_t depth, height, width, nx;
  int32_t threads;             // of a block
  int32_t tiles_x, tiles_y;    // of a block, of kX·kY pixels each and those that are mirrored; a thread has one
  int32_t blocks_x, blocks_y;  // across a plane
  int32_t most;                // kx's at a time
  const RawTwo* waves;         // of x
  const RawFour* rows;         // (n, depth, blocks_y·tiles_y·kY, nx)
  float* field;                // n images, `stride` apart
  int64_t stride;
};

// Where a block's part of a plane begins, and in it a thread's tile: its y's are neighbours, its x's tiles_x apart, so that
// those of a warp's threads are neighbours. There may be more threads than tiles: theirs would lie below the part.
struct Tile {
  int32_t x0, y0, x, y;
};

template <int kX, int kY>
FUSEDMIX_DEVICE Tile tile_of(const SynthesisArgs& args, int32_t block) {
  const auto thread = static_cast<int32_t>(device::thread());
  return {block % args.blocks_x * args.tiles_x * kX, block / args.blocks_x * args.tiles_y * kY, thread % args.tiles_x,
          thread / args.tiles_x * kY};
}

// Whether there is a pixel at a number of 0 .. side / 2, or one mirrored.
FUSEDMIX_DEVICE bool is_there(int32_t at, int32_t side, bool mirrored) {
  return mirrored ? at > 0 && at < side - at : at <= side / 2;
}

// Σ_kx R·cos θ - I·sin θ of the tiles of a block, some kx at a time: at (y, x), (y, -x), (-y, x), (-y, -x) of kX x's of kY y's.
// A wave serves kY products and a row kX; the sums stay in registers, and nothing else needs many.
template <int kX, int kY, class Rows, class Waves>
FUSEDMIX_DEVICE void synthesise(const SynthesisArgs& args, int64_t plane, const Tile& tile, Rows& rows, Waves& waves,
                                float (&grey)[kY * kX * 4]) {
  const auto thread = static_cast<int32_t>(device::thread());
  const int32_t across = args.tiles_x * kX, down = args.tiles_y * kY;
  FUSEDMIX_UNROLL
  for (int c = 0; c < kY * kX * 4; ++c) grey[c] = 0.0f;
  FUSEDMIX_NO_UNROLL
  for (int32_t kx0 = 0; kx0 < args.nx; kx0 += args.most) {
    const int32_t nx = args.nx - kx0 < args.most ? args.nx - kx0 : args.most;
    device::sync();
    const RawFour* from = args.rows + (plane * args.blocks_y * down + tile.y0) * args.nx + kx0;
    FUSEDMIX_NO_UNROLL
    for (int32_t y = thread >> 4; y < down; y += args.threads >> 4) {
      FUSEDMIX_NO_UNROLL
      for (int32_t k = thread & 15; k < nx; k += 16) {
        device::copy_to_shared(rows, k * down + y, from + static_cast<int64_t>(y) * args.nx + k);
      }
    }
    FUSEDMIX_NO_UNROLL
    for (int32_t x = thread; x < across; x += args.threads) {
      const auto width = static_cast<uint32_t>(args.width), step = (tile.x0 + x) % width;
      auto angle = static_cast<uint32_t>(static_cast<uint64_t>(kx0) * step % width);
      FUSEDMIX_NO_UNROLL
      for (int32_t k = 0; k < nx; ++k) {
        device::copy_to_shared(waves, k * across + x, args.waves + angle);
        angle += step;
        angle -= angle >= width ? width : 0;
      }
    }
    device::copied();
    device::sync();
    const int32_t mine = tile.y < down ? tile.y : 0;
    FUSEDMIX_NO_UNROLL
    for (int32_t k = 0; k < nx; ++k) {
      Two wave[kX];
      FUSEDMIX_UNROLL
      for (int j = 0; j < kX; ++j) {
        const RawTwo raw = waves[k * across + tile.x + j * args.tiles_x];
        wave[j] = as<Two>(raw);
      }
      FUSEDMIX_UNROLL
      for (int r = 0; r < kY; ++r) {
        const RawFour raw = rows[k * down + mine + r];
        const Four row = as<Four>(raw);
        FUSEDMIX_UNROLL
        for (int j = 0; j < kX; ++j) {
          FUSEDMIX_UNROLL
          for (int q = 0; q < 4; ++q) {
            float& sum = grey[(r * kX + j) * 4 + q];
            sum = fma(row.get(q), wave[j].get(q % 2), sum);
          }
        }
      }
    }
  }
  FUSEDMIX_UNROLL
  for (int c = 0; c < kY * kX * 4; c += 2) {
    const float even = grey[c], odd = grey[c + 1];
    grey[c] = even - odd;
    grey[c + 1] = even + odd;
  }
}

template <int kX, int kY>
FUSEDMIX_WIDE_KERNEL(kPartThreads, 1) synthesis_kernel(FUSEDMIX_ARGS(SynthesisArgs, args)) {
  FUSEDMIX_SHARED(RawFour, rows, kEntries);  // (kx, y): R and I of y, R and I of -y
  FUSEDMIX_SHARED(RawTwo, waves, kEntries);  // (kx, x)
  const int32_t blocks = args.blocks_x * args.blocks_y;
  const int64_t plane = device::block() / blocks, m = plane / args.depth;
  if (!is_wanted(args.chunk, m)) return;
  const Tile tile = tile_of<kX, kY>(args, static_cast<int32_t>(device::block() % blocks));
  float grey[kY * kX * 4];
  synthesise<kX, kY>(args, plane, tile, rows, waves, grey);
  if (tile.y >= args.tiles_y * kY) return;
  float* image = args.field + m * args.stride + plane % args.depth * args.height * args.width;
  FUSEDMIX_UNROLL
  for (int c = 0; c < kY * kX * 4; ++c) {
    const bool left = c % 2 == 1, up = c / 2 % 2 == 1;
    const int32_t x = tile.x0 + tile.x + c / 4 % kX * args.tiles_x, y = tile.y0 + tile.y + c / 4 / kX;
    if (!is_there(x, args.width, left) || !is_there(y, args.height, up)) continue;
    const int64_t row = up ? args.height - y : y;
    device::store(image + row * args.width + (left ? args.width - x : x), grey[c]);
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

// How many.
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

// Of a mask that is all ones or all zeros.
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

// As of values in memory, but of n that threads have; the rest are -∞, and no zero has a sign. A bit of the key at a time: a
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

// ---- launches ----

constexpr int32_t kNothing = -1;  // no mask's kind

struct Variant {
  int32_t kind;
  float decay, cutoff;
  Spectrum spectrum;
};

std::vector<Variant> variants_of(const FourierMasks& f) {
  std::vector<Variant> found;
  for (int32_t m = 0; m < f.methods; ++m) {
    const MethodRow& row = f.rows[m];
    if (!is_stored_method(row.method)) continue;
    const int32_t kind = Fourier::kind_of(row.method);
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

// How the blocks of one launch share the columns of a plane, in tiles of kX·kY. How many rows that takes.
template <int kX, int kY>
int64_t share_columns(SynthesisArgs& args, int32_t threads, int32_t most_x, int32_t most_y) {
  const auto divide = [](int32_t a, int32_t b) { return static_cast<int32_t>(divide_up(a, b)); };
  const int32_t across = divide(args.width / 2 + 1, kX), down = divide(args.height / 2 + 1, kY);
  args.blocks_x = divide(across, most_x);
  args.tiles_x = divide(across, args.blocks_x);
  args.blocks_y = divide(down, std::min(most_y, threads / args.tiles_x));
  args.tiles_y = divide(down, args.blocks_y);
  args.threads = divide(args.tiles_x * args.tiles_y, 32) * 32;
  args.most = divide(args.nx, divide(args.nx, kEntries / std::max(args.tiles_x * kX, args.tiles_y * kY)));
  return int64_t{args.blocks_y} * args.tiles_y * kY;
}

// Where the parts of the scratch lie: the waves, then what `masks` masks have. The grey images lie where the coefficients did.
struct Parts {
  int64_t pixels, stride, ny, frequencies, turned, rows, most;  // of a mask; the coefficients and rows in 16 bytes each
  int64_t waves, masks;
  int64_t slots;
  bool whole, flat;  // whether a block makes a mask; whether its tiles are those of few rows
  SynthesisArgs synthesis{};

  Parts(const FourierMasks& f, const Variant& v, int64_t most_scratch) {
    const Spectrum& s = v.spectrum;
    synthesis.depth = static_cast<int32_t>(f.extent.size[0]);
    synthesis.height = static_cast<int32_t>(f.extent.size[1]);
    synthesis.width = static_cast<int32_t>(f.extent.size[2]);
    synthesis.nx = static_cast<int32_t>(s.count[2]);
    slots = share_columns<kTileX, kTileY>(synthesis, kWholeThreads, kEntries / kTileX, kEntries / kTileY);
    whole = f.bits != nullptr && synthesis.depth == 1 && synthesis.blocks_x == 1 && synthesis.blocks_y == 1;
    flat = !whole && synthesis.height <= 3;
    if (flat) {
      slots = share_columns<kFlatX, kFlatY>(synthesis, kPartThreads, kMostTilesX, kMostTilesY);
    } else if (!whole) {
      slots = share_columns<kTileX, kTileY>(synthesis, kPartThreads, kMostTilesX, kMostTilesY);
    }
    pixels = f.extent.size[0] * f.extent.size[1] * f.extent.size[2];
    stride = divide_up(pixels, 32) * 32;
    ny = s.low[1] + s.count[1];
    frequencies = s.count[0] * ny * s.count[2];
    turned = f.extent.ndim == 3 ? f.extent.size[0] * ny * s.count[2] : 0;
    rows = f.extent.size[0] * slots * s.count[2];
    double soft = 0.0;
    for (int32_t m = 0; m < f.methods && f.levels != nullptr; ++m) {
      if (is_stored_method(f.rows[m].method)) soft = std::max(soft, f.rows[m].soft);
    }
    most = 2 * static_cast<int64_t>(std::min(0.5, soft) * static_cast<double>(pixels)) + 2;
    most = f.levels == nullptr ? 0 : std::min(most, divide_up(pixels, 2) * 2);
    waves = divide_up((f.extent.size[0] + f.extent.size[1] + f.extent.size[2]) * sizeof(RawTwo), 16) * 16;
    const int64_t n = mask_rows(f.per, f.batch);
    const int64_t fit = std::max<int64_t>(1, (most_scratch - waves) / each());
    masks = divide_up(n, divide_up(n, fit));  // chunks of about the same size
  }
  int64_t grey() const { return std::max(16 * (frequencies + turned), whole ? 0 : 4 * stride); }
  int64_t each() const { return grey() + 16 * rows + 2 * most * 8; }
  int64_t bytes() const { return waves + masks * each(); }
};

int make(const FourierMasks& f, const Variant& v, bool first_variant, char* scratch, int64_t most_scratch, void* stream) {
  const Spectrum& s = v.spectrum;
  const Parts parts(f, v, most_scratch);
  auto* waves = reinterpret_cast<RawTwo*>(scratch);
  auto* rows = reinterpret_cast<RawFour*>(scratch + parts.waves);
  auto* items = reinterpret_cast<uint64_t*>(rows + parts.masks * parts.rows);
  auto* coefficients = reinterpret_cast<RawFour*>(items + 2 * parts.masks * parts.most);
  RawFour* turned = coefficients + parts.masks * parts.frequencies;
  auto* field = reinterpret_cast<float*>(coefficients);
  const int64_t n = mask_rows(f.per, f.batch);
  const bool any = v.kind != kNothing;
  for (int64_t first = 0; first < n; first += parts.masks) {
    const Chunk chunk{f.masks, first, std::min(parts.masks, n - first), v.kind, v.decay, v.cutoff};
    const auto launch = [&](auto kernel, int64_t blocks, int threads, const auto& args) {
      return device::launch(kernel, launchable(blocks), threads, stream, args);
    };
    int error = 0;
    if (any) {
      NoiseArgs noise{chunk, s, f.batch, f.draws, f.seed, parts.ny, divide_up(parts.frequencies, kThreads), 0, waves,
                      coefficients};
      if (first == 0) noise.wave_blocks = divide_up(f.extent.size[0] + f.extent.size[1] + f.extent.size[2], kThreads);
      error = launch(noise_kernel, noise.wave_blocks + noise.tiles * divide_up(chunk.n, kMasksEach), kThreads, noise);
      const int64_t plane = parts.ny * s.count[2];
      if (error == 0 && f.extent.ndim == 3) {
        const TurnArgs turn{chunk, f.extent.size[0], s.low[0], s.count[0], plane, divide_up(plane, kThreads), waves, coefficients, turned};
        error = launch(turn_kernel, chunk.n * turn.depth * turn.tiles, kThreads, turn);
      }
      if (error == 0) {
        const RowsArgs along{chunk, f.extent.size[0], f.extent.size[1], parts.ny, s.count[2], parts.slots,
                             divide_up(parts.slots, kRowsEach), waves + f.extent.size[0],
                             f.extent.ndim == 3 ? turned : coefficients, rows};
        error = launch(rows_kernel, chunk.n * along.depth * along.tiles, kThreads, along);
      }
    }
    SynthesisArgs synthesis = parts.synthesis;
    synthesis.chunk = chunk;
    synthesis.waves = waves + f.extent.size[0] + f.extent.size[1];
    synthesis.rows = rows;
    synthesis.field = field;
    synthesis.stride = parts.stride;
    if (error == 0 && any && !parts.whole) {
      error = launch(parts.flat ? synthesis_kernel<kFlatX, kFlatY> : synthesis_kernel<kTileX, kTileY>,
                     chunk.n * synthesis.depth * synthesis.blocks_x * synthesis.blocks_y, synthesis.threads, synthesis);
    }
    if (error == 0 && parts.whole) {
      error = launch(whole_kernel, chunk.n, synthesis.threads, WholeArgs{synthesis, first_variant, f.bits});
    } else if (error == 0 && f.bits != nullptr) {
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
Variant nothing(const FourierMasks& f) { return {kNothing, NAN, NAN, spectrum_of(false, f.extent.ndim, f.extent.size, 0.0, 0.0)}; }

}  // namespace

int64_t fourier_scratch(const FourierMasks& f, int64_t most_scratch) {
  if (mask_rows(f.per, f.batch) == 0) return 0;
  int64_t bytes = 0;
  for (const Variant& v : variants_of(f)) bytes = std::max(bytes, Parts(f, v, most_scratch).bytes());
  return bytes;
}

int fourier(const FourierMasks& f, char* scratch, int64_t most_scratch, void* stream) {
  if (mask_rows(f.per, f.batch) == 0) return 0;
  std::vector<Variant> variants = variants_of(f);
  if (variants.empty()) variants.push_back(nothing(f));
  for (size_t v = 0; v < variants.size(); ++v) {
    const int error = make(f, variants[v], v == 0, scratch, most_scratch, stream);
    if (error != 0) return error;
  }
  return 0;
}

}  // namespace fusedmix::cuda
