// The Fourier masks of FMix: noise, its grey image, and the bits of its largest pixels. The definition is
// fusedmix/fourier.py's; one thread makes a mask.
#include "../include/fusedmix/fourier.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <vector>

#include "../include/fusedmix/memory.h"
#include "kernels.h"
#include "mix.h"

namespace fusedmix::cpu {
namespace {

constexpr double kTwoPi = 6.283185307179586;
// What memory is called in an error.
constexpr char kOfWaves[] = "the waves of FMix's masks", kOfImage[] = "a grey image of FMix";

int64_t round_up(int64_t n) { return (n + kWaveLanes - 1) / kWaveLanes * kWaveLanes; }

// What all masks of a size share: amplitudes and waves. In order: |ky| up to ny, kx up to nx.
struct Waves {
  Spectrum spectrum;
  int64_t ny, nx, half;
  std::vector<float> deviation_a, deviation_b;  // (kz, ny, nx), 0 where there is no kx
  std::vector<float> cos_z, sin_z;              // (kz, depth)
  std::vector<float> cos_y, sin_y;              // (ny, height / 2 + 1)
  std::vector<float> cos_x, sin_x;              // (nx, half)

  explicit Waves(const Spectrum& s) : spectrum(s) {
    const int64_t nz = s.count[0];
    ny = s.low[1] + s.count[1];
    nx = round_up(s.count[2]);
    half = round_up(s.side[2] / 2 + 1);
    resize(deviation_a, nz * ny * nx, kOfWaves);
    resize(deviation_b, nz * ny * nx, kOfWaves);
    for (int64_t z = 0, at = 0; z < nz; ++z) {
      for (int64_t ky = 0; ky < ny; ++ky, at += nx) {
        for (int64_t kx = 0; kx < s.count[2]; ++kx) {
          const Deviation d = deviation(s, s.low[0] + z, ky, kx);
          deviation_a[at + kx] = static_cast<float>(d.a);
          deviation_b[at + kx] = static_cast<float>(d.b);
        }
      }
    }
    fill(cos_z, sin_z, s.side[0], s.low[0], nz, s.side[0], s.side[0]);
    fill(cos_y, sin_y, s.side[1], 0, ny, s.side[1] / 2 + 1, s.side[1] / 2 + 1);
    fill(cos_x, sin_x, s.side[2], 0, nx, s.side[2] / 2 + 1, half);
  }

  // The waves of a size, decay and cut-off: made once, the last few kept.
  static std::shared_ptr<const Waves> of(const Spectrum& s) {
    static std::mutex mutex;
    static std::vector<std::shared_ptr<const Waves>> kept;
    const std::lock_guard<std::mutex> guard(mutex);
    for (size_t i = 0; i < kept.size(); ++i) {
      const Spectrum& k = kept[i]->spectrum;
      if (k.released == s.released && k.ndim == s.ndim && k.decay == s.decay && std::equal(k.side, k.side + 3, s.side) &&
          std::equal(k.low, k.low + 3, s.low) && std::equal(k.count, k.count + 3, s.count)) {
        return kept[i];
      }
    }
    if (kept.size() == 8) kept.erase(kept.begin());
    kept.push_back(std::make_shared<const Waves>(s));
    return kept.back();
  }

 private:
  // Fills in the waves of `count` frequencies from `low`, at the first `pixels` of `side` pixels, in rows that lie `stride` apart. k·x
  // modulo the side is exact.
  static void fill(std::vector<float>& c, std::vector<float>& s, int64_t side, int64_t low, int64_t count, int64_t pixels,
                   int64_t stride) {
    std::vector<float> one_c, one_s;
    resize(one_c, side, kOfWaves);
    resize(one_s, side, kOfWaves);
    for (int64_t x = 0; x < side; ++x) {
      one_c[x] = static_cast<float>(std::cos(kTwoPi * static_cast<double>(x) / static_cast<double>(side)));
      one_s[x] = static_cast<float>(std::sin(kTwoPi * static_cast<double>(x) / static_cast<double>(side)));
    }
    resize(c, count * stride, kOfWaves);
    resize(s, count * stride, kOfWaves);
    for (int64_t k = 0; k < count; ++k) {
      const int64_t step = ((low + k) % side + side) % side;
      for (int64_t x = 0, at = 0; x < pixels; ++x, at = (at + step) % side) {
        c[k * stride + x] = one_c[at];
        s[k * stride + x] = one_s[at];
      }
    }
  }
};

// What one thread needs to make a mask.
class Maker {
 public:
  explicit Maker(const Waves& waves)
      : w_(waves), plane_(waves.ny * waves.nx) {
    const Spectrum& s = waves.spectrum;
    resize(noise_, 4 * waves.nx, kOfImage);
    resize(coefficients_, s.count[0] * 4 * plane_, kOfImage);
    resize(turned_, 4 * plane_, kOfImage);
    resize(mixed_, 4 * plane_, kOfImage);
    resize(rows_, 2 * s.side[1] * waves.nx, kOfImage);
    resize(grey_, s.side[0] * s.side[1] * s.side[2], kOfImage);
  }

  // The grey image of a mask, row-major.
  const std::vector<float>& grey(uint64_t seed, uint64_t index) {
    const Spectrum& s = w_.spectrum;
    draw(seed, index);
    for (int64_t z = 0; z < s.side[0]; ++z) {
      const float* c = coefficients_.data();
      if (s.ndim == 3) {
        turn(z);
        c = turned_.data();
      }
      // The sums and differences of ky and -ky.
      for (int64_t k = 0; k < plane_; ++k) {
        const float a = c[k], b = c[plane_ + k], mirrored_a = c[2 * plane_ + k], mirrored_b = c[3 * plane_ + k];
        mixed_[k] = a + mirrored_a;
        mixed_[plane_ + k] = b - mirrored_b;
        mixed_[2 * plane_ + k] = a - mirrored_a;
        mixed_[3 * plane_ + k] = b + mirrored_b;
      }
      const float* m = mixed_.data();
      kernels().fourier.plane({s.side[1], s.side[2], w_.ny, w_.nx, m, m + plane_, m + 2 * plane_, m + 3 * plane_, w_.cos_y.data(),
                               w_.sin_y.data(), w_.cos_x.data(), w_.sin_x.data(), w_.half, rows_.data(),
                               grey_.data() + z * s.side[1] * s.side[2]});
    }
    return grey_;
  }

 private:
  // Draws the coefficients, (kz, 4, ny, nx): a and b of ky >= 0, then a and b of -ky, which are 0 where there is no -ky.
  void draw(uint64_t seed, uint64_t index) {
    const Spectrum& s = w_.spectrum;
    for (int64_t z = 0; z < s.count[0]; ++z) {
      float* c = coefficients_.data() + z * 4 * plane_;
      for (int64_t ky = 0; ky < w_.ny; ++ky) {
        const bool both = ky > 0 && -ky >= s.low[1];
        kernels().fourier.noise(noise_.data(), w_.nx, seed, index, noise_call(s.ndim, s.low[0] + z, ky, 0));
        const float *of_a = &w_.deviation_a[(z * w_.ny + ky) * w_.nx], *of_b = &w_.deviation_b[(z * w_.ny + ky) * w_.nx];
        const float* n = noise_.data();
        for (int64_t kx = 0; kx < w_.nx; ++kx) {
          const int64_t at = ky * w_.nx + kx;
          c[at] = of_a[kx] * n[kx];
          c[plane_ + at] = of_b[kx] * n[w_.nx + kx];
          c[2 * plane_ + at] = both ? of_a[kx] * n[2 * w_.nx + kx] : 0.0f;
          c[3 * plane_ + at] = both ? of_b[kx] * n[3 * w_.nx + kx] : 0.0f;
        }
      }
    }
  }

  // Turns the coefficients into those of one slice: Σ_kz C·e^{iθ}.
  void turn(int64_t z) {
    const Spectrum& s = w_.spectrum;
    std::fill(turned_.begin(), turned_.end(), 0.0f);
    for (int64_t k = 0; k < s.count[0]; ++k) {
      const float cosine = w_.cos_z[k * s.side[0] + z], sine = w_.sin_z[k * s.side[0] + z];
      for (int half = 0; half < 2; ++half) {
        const float *a = coefficients_.data() + (4 * k + 2 * half) * plane_, *b = a + plane_;
        float *to_a = turned_.data() + 2 * half * plane_, *to_b = to_a + plane_;
        for (int64_t i = 0; i < plane_; ++i) {
          to_a[i] += a[i] * cosine - b[i] * sine;
          to_b[i] += a[i] * sine + b[i] * cosine;
        }
      }
    }
  }

  const Waves& w_;
  const int64_t plane_;
  std::vector<float> noise_, coefficients_, turned_, mixed_, rows_, grey_;
};

// The `number` largest of n values as bits, of equal ones the first. The threshold is bracketed by what a sample of the values
// says, and exact because all of them are counted.
class Selector {
 public:
  void select(const float* v, int64_t n, int64_t number, uint32_t* bits) {
    const FourierKernels& loops = kernels().fourier;
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    if (number <= 0) return loops.above(bits, v, n, kInfinity);
    if (number >= n) return loops.above(bits, v, n, -kInfinity);
    float low = -kInfinity, high = kInfinity;
    if (n >= 4 * kSample) bracket(v, n, number, &low, &high);
    resize(found_, n, kOfImage);
    int64_t count = 0;
    int64_t over = loops.bracket(v, n, low, high, found_.data(), n, &count);
    if (number <= over || number > over + count) over = loops.bracket(v, n, -kInfinity, kInfinity, found_.data(), n, &count);
    resize(values_, count, kOfImage);
    for (int64_t k = 0; k < count; ++k) values_[k] = v[found_[k]];
    const auto wanted = values_.begin() + (number - over - 1);
    std::nth_element(values_.begin(), wanted, values_.end(), std::greater<float>());
    const float threshold = *wanted;
    loops.above(bits, v, n, threshold);
    int64_t left = number - over;
    for (int64_t k = 0; k < count; ++k) left -= v[found_[k]] > threshold ? 1 : 0;
    for (int64_t k = 0; k < count && left > 0; ++k) {
      if (v[found_[k]] != threshold) continue;
      bits[found_[k] / 32] |= 1u << (found_[k] % 32);
      --left;
    }
  }

  // The levels of a mask with a soft edge.
  void soften(const float* v, int64_t n, int64_t number, int64_t soft, uint16_t* levels) {
    // Clamped: a plan that no sampler made may say anything.
    const int64_t first = std::clamp<int64_t>(number - soft, 0, n), stop = std::clamp<int64_t>(number + soft, first, n);
    resize(keys_, n, kOfImage);
    for (int64_t q = 0; q < n; ++q) keys_[q] = key(v[q], q);
    if (first > 0) std::nth_element(keys_.begin(), keys_.begin() + first, keys_.end());
    if (stop < n) std::nth_element(keys_.begin() + first, keys_.begin() + stop, keys_.end());
    std::sort(keys_.begin() + first, keys_.begin() + stop);
    for (int64_t rank = 0; rank < n; ++rank) levels[keys_[rank] & 0xFFFFFFFFu] = level_at(rank, number, soft);
  }

 private:
  static constexpr int64_t kSample = 1024, kMargin = 24;

  // A key that ascends where values descend. Those of equal values ascend with their place.
  static uint64_t key(float value, int64_t place) {
    const auto bits = bit_cast<uint32_t>(value + 0.0f);  // no -0
    const uint32_t ascending = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
    return (uint64_t{~ascending} << 32) | static_cast<uint32_t>(place);
  }

  void bracket(const float* v, int64_t n, int64_t number, float* low, float* high) {
    resize(values_, kSample, kOfImage);
    for (int64_t k = 0; k < kSample; ++k) values_[k] = v[k * n / kSample];
    const int64_t at = number * kSample / n;
    const auto nth = [&](int64_t k) {
      std::nth_element(values_.begin(), values_.begin() + k, values_.end(), std::greater<float>());
      return values_[k];
    };
    if (at >= kMargin) *high = nth(at - kMargin);
    if (at + kMargin < kSample) *low = nth(at + kMargin);
  }

  std::vector<float> values_;
  std::vector<int32_t> found_;
  std::vector<uint64_t> keys_;
};

}  // namespace

void fourier(const FourierMasks& args, const Parallel& parallel) {
  const auto pixels = static_cast<int64_t>(args.extent.pixels()), words = (pixels + 31) / 32;
  const int64_t n = mask_rows(args.per, args.batch);
  struct Variant {
    int32_t kind;
    float decay, cutoff;
    std::shared_ptr<const Waves> waves;
  };
  std::vector<Variant> variants;
  for (int32_t m = 0; m < args.methods; ++m) {
    const MethodRow& row = args.rows[m];
    if (!is_stored_method(row.method)) continue;
    const int32_t kind = Fourier::kind_of(row.method);
    const auto decay = static_cast<float>(row.decay), cutoff = static_cast<float>(row.cutoff);
    const Spectrum spectrum = spectrum_of(kind == kFourierReleased, args.extent.ndim, args.extent.size, decay, cutoff);
    variants.push_back({kind, decay, cutoff, Waves::of(spectrum)});
  }
  parallel(n, 1, [&](int64_t begin, int64_t end) {
    std::vector<std::unique_ptr<Maker>> makers(variants.size());
    Selector selector;
    for (int64_t i = begin; i < end; ++i) {
      uint32_t* bits = args.bits == nullptr ? nullptr : args.bits + i * words;
      uint16_t* levels = args.levels == nullptr ? nullptr : args.levels + i * pixels;
      const auto mask = bit_cast<Fourier>(args.masks[i]);
      const float* grey = nullptr;
      for (size_t v = 0; v < variants.size() && grey == nullptr; ++v) {
        if (variants[v].kind != mask.kind || variants[v].decay != mask.decay || variants[v].cutoff != mask.cutoff) continue;
        if (!makers[v]) makers[v] = std::make_unique<Maker>(*variants[v].waves);
        grey = makers[v]->grey(args.seed.value, static_cast<uint64_t>(draw_index(args.draws, i, args.batch))).data();
      }
      if (grey == nullptr) {  // no Fourier mask
        if (bits != nullptr) std::fill(bits, bits + words, 0u);
        if (levels != nullptr) std::fill(levels, levels + pixels, uint16_t{0});
      } else if (bits != nullptr) {
        selector.select(grey, pixels, mask.number, bits);
      } else {
        selector.soften(grey, pixels, mask.number, mask.soft, levels);
      }
    }
  });
}

}  // namespace fusedmix::cpu
