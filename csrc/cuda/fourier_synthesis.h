// The grey images of FMix: noise, and the sums of its waves. Included by fourier.cu alone.
#pragma once

#include "../include/fusedmix/fourier.h"
#include "vector.h"

namespace fusedmix::cuda {
namespace {

constexpr int kMasksEach = 8;       // masks that a thread makes noise for
constexpr int kFrequencies = 64;    // frequencies along y whose waves are in shared memory at a time
constexpr int kRowsEach = 32;       // y's that a block makes rows of
constexpr int kRowGroup = 8;        // y's that a thread makes rows of
constexpr int kWholeThreads = 512;  // the most threads of a block that makes all of an image
constexpr int kPartThreads = 384;   // the most threads of a block that makes a part of an image
constexpr int kEntries = 1296;      // rows, and waves of x, that such a block has in shared memory at a time
constexpr int kTileX = 3, kTileY = 9;              // the tile of a thread: 108 sums, of 128 registers that 512 threads can have
constexpr int kFlatX = 4, kFlatY = 1;              // the tile of a thread where there are too few y's for the other one
constexpr int kMostTilesX = 64, kMostTilesY = 16;  // tiles of a part of an image: more of them leave memory for few waves

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
// A wave serves kY products and a row kX; the sums stay in registers, and nothing else needs many. One long function: with a
// part of it in another one nvcc takes more registers.
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

}  // namespace
}  // namespace fusedmix::cuda
