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
#include <vector>

#include "fourier_selection.h"

namespace fusedmix::cuda {
namespace {

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
