// Compiled once for each instruction set, with FUSEDMIX_ISA its name. Plain loops over the shared per-pixel functions:
// the compiler vectorises them.
#include "kernels.h"

#include "../include/fusedmix/blend.h"
#include "../include/fusedmix/fourier.h"
#include "border_rows.h"
#include "convert.h"
#include "finish_rows.h"
#include "gather_rows.h"
#include "loss_rows.h"
#include "pixel_rows.h"

#if defined(__AVX__)
#include <immintrin.h>
#endif

// This file is compiled several times: what is not in this namespace must have internal linkage.
#define FUSEDMIX_CONCAT_(a, b) a##b
#define FUSEDMIX_CONCAT(a, b) FUSEDMIX_CONCAT_(a, b)
#define FUSEDMIX_STRING_(a) #a
#define FUSEDMIX_STRING(a) FUSEDMIX_STRING_(a)

namespace fusedmix::cpu {
namespace {

typedef char Bytes16 __attribute__((vector_size(16)));
typedef char Bytes32 __attribute__((vector_size(32)));

constexpr int64_t kChunk = 256;  // elements converted at a time: their buffers of 1 KiB stay in the first-level cache

// One weight for the whole row, or a weight for each element: a `const float*`, or made of one.
struct One {
  float w;
  float operator[](int64_t) const { return w; }
  One operator+(int64_t) const { return *this; }
};
template <bool kNegative>
struct Scaled {
  const float* table;
  float factor;
  float operator[](int64_t i) const { return factor * table[i]; }
  Scaled operator+(int64_t i) const { return {table + i, factor}; }
};
template <>
struct Scaled<true> {  // 1 - f·t is 1 + (-f)·t, and f·t is 0 + f·t, bit for bit: none is -0
  const float* table;
  float factor, offset;
  Scaled() = default;
  Scaled(const float* t, float f) : table(t), factor(f), offset(__builtin_signbit(f) ? 1.0f : 0.0f) {}
  float operator[](int64_t i) const { return offset + factor * table[i]; }
  Scaled operator+(int64_t i) const { return {table + i, factor}; }
};

// blend() of blend.h without the branches that the caller has taken (One: w is neither 0 nor 1).
// `bounds`: of integers.
template <bool kIntegers, class W, class C>
inline C blend_one(float w, C x, C y, Bounds bounds = {}) {
  C mixed;
  if constexpr (kIntegers) {
    mixed = round_to_integer(w, x - y, y, bounds);
  } else {
    mixed = fma(static_cast<C>(w), x - y, y);
  }
  if constexpr (__is_same(W, One)) return x == y ? x : mixed;
  const bool own = (w == 1.0f) | (x == y);  // not ||: one selection instead of two
  mixed = own ? x : mixed;
  mixed = w == 0.0f ? y : mixed;
  return mixed;
}

// How many samples there are to read, and which is the partner of sample k.
constexpr int inputs_of(Links links) { return links == Links::kTwoPairs ? kLinks : samples_of(links) + 1; }
constexpr int partner_of(Links links, int k) { return links == Links::kTwoPairs ? k ^ 1 : k + 1; }

// Every element of all samples is read before any is written.
template <Links links, class T, class W>
void mix_row(void* const* to, const void* const* from, int64_t n, const W* weights) {
  constexpr int kOut = samples_of(links), kIn = inputs_of(links);
  T* out[kOut];
  const T* in[kIn];
  W w[kOut];
  for (int k = 0; k < kOut; ++k) out[k] = static_cast<T*>(to[k]), w[k] = weights[k];
  for (int k = 0; k < kIn; ++k) in[k] = static_cast<const T*>(from[k]);
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    T x[kIn];
#pragma GCC unroll 8
    for (int k = 0; k < kIn; ++k) x[k] = in[k][i];
#pragma GCC unroll 8
    for (int k = 0; k < kOut; ++k) out[k][i] = blend_one<false, W>(w[k][i], x[k], x[partner_of(links, k)]);
  }
}

// Once for all types that are converted.
template <bool kIntegers, class W>
FUSEDMIX_ONCE void blend_row(float* __restrict out, const float* a, const float* b, int64_t n, W w, Bounds bounds) {
  for (int64_t i = 0; i < n; ++i) out[i] = blend_one<kIntegers, W>(w[i], a[i], b[i], bounds);
}

template <class T, class W>
void mix_links(Links links, void* const* out, const void* const* in, int64_t n, const W* w) {
  if constexpr (__is_same(T, Compute<T>)) {
    switch (links) {
      case Links::kOne: return mix_row<Links::kOne, T>(out, in, n, w);
      case Links::kTwo: return mix_row<Links::kTwo, T>(out, in, n, w);
      case Links::kThree: return mix_row<Links::kThree, T>(out, in, n, w);
      case Links::kFour: return mix_row<Links::kFour, T>(out, in, n, w);
      default: return mix_row<Links::kTwoPairs, T>(out, in, n, w);
    }
  } else {
    constexpr bool kIntegers = std::is_integral_v<T>;
    Bounds bounds{};
    if constexpr (kIntegers) bounds = bounds_of<T>();
    float wide[kLinks + 1][kChunk], mixed[kChunk];
    for (int64_t i = 0; i < n; i += kChunk) {
      const int64_t m = n - i < kChunk ? n - i : kChunk;
      for (int k = 0; k < inputs_of(links); ++k) widen(wide[k], static_cast<const T*>(in[k]) + i, m);
      for (int k = 0; k < samples_of(links); ++k) {
        blend_row<kIntegers>(mixed, wide[k], wide[partner_of(links, k)], m, w[k] + i, bounds);
        narrow<T>(static_cast<T*>(out[k]) + i, mixed, m);
      }
    }
  }
}

// In float64 whatever the type, so that the sum of the two products is rounded once: gradients are accumulated.
template <class T, class W>
void adjoint(void* out, const void* g, const void* h, int64_t n, W own, W lent) {
  T* o = static_cast<T*>(out);
  const T *x = static_cast<const T*>(g), *y = static_cast<const T*>(h);
  double p[kChunk], q[kChunk];
  Compute<T> r[kChunk];
  for (int64_t i = 0; i < n; i += kChunk) {
    const int64_t m = n - i < kChunk ? n - i : kChunk;
    widen(p, x + i, m);
    widen(q, y + i, m);
    for (int64_t k = 0; k < m; ++k) {
      const double kept = own[i + k], given = 1.0 - static_cast<double>(lent[i + k]);
      const double left = kept == 0.0 ? 0.0 : kept * p[k];
      const double right = given == 0.0 ? 0.0 : given * q[k];
      r[k] = static_cast<Compute<T>>(left + right);
    }
    narrow<T>(o + i, r, m);
  }
}

template <class T, bool kNegative>
void scaled(Links links, void* const* out, const void* const* in, int64_t n, const ScaledRow* rows, int64_t count) {
  void* to[kLinks];
  const void* from[kLinks + 1];
  for (int64_t r = 0; r < count; ++r) {
    Scaled<kNegative> w[kLinks];
    for (int k = 0; k < samples_of(links); ++k) {
      w[k] = {rows[r].table[k], rows[r].factor[k]};
      to[k] = static_cast<T*>(out[k]) + r * n;
    }
    for (int k = 0; k < inputs_of(links); ++k) from[k] = static_cast<const T*>(in[k]) + r * n;
    mix_links<T>(links, to, from, n, w);
  }
}

template <class T>
constexpr RowKernels row_kernels() {
  return {
      [](Links links, void* const* out, const void* const* in, int64_t n, const float* w) {
        One ones[kLinks];
        for (int k = 0; k < samples_of(links); ++k) ones[k].w = w[k];
        mix_links<T>(links, out, in, n, ones);
      },
      [](Links links, void* const* out, const void* const* in, int64_t n, const float* const* w) {
        mix_links<T>(links, out, in, n, w);
      },
      [](Links links, void* const* out, const void* const* in, int64_t n, const ScaledRow* rows, int64_t count, bool negative) {
        (negative ? scaled<T, true> : scaled<T, false>)(links, out, in, n, rows, count);
      },
      [](void* out, const void* g, const void* h, int64_t n, float own, float lent) {
        if constexpr (!std::is_integral_v<T>) adjoint<T>(out, g, h, n, One{own}, One{lent});
      },
      [](void* out, const void* g, const void* h, int64_t n, const float* own, const float* lent) {
        if constexpr (!std::is_integral_v<T>) adjoint<T>(out, g, h, n, own, lent);
      },
  };
}

void to_next_row(CopiedRows& its) {
  --its.rows;
  its.to += its.to_step;
  its.from += its.from_step;
}

// The hardware foresees long streams, not boxes. Copies by themselves wait for the lines that a first-level cache has under way,
// which are few; the second-level one has more: it made boxes on rows of 128 bytes a third faster.
void ask_for_row(const CopiedRows& its) {
  constexpr int64_t kCacheLine = 64;
  const auto ask = [&](int64_t at) {
    __builtin_prefetch(its.to + at, 0, 2);
    __builtin_prefetch(its.from + at, 0, 2);
  };
  for (int64_t k = 0; k < its.bytes; k += kCacheLine) ask(k);
  ask(its.bytes - 1);
}

void ask_for_rows(const CopiedRows& its) {
  for (CopiedRows at = its; at.rows > 0; to_next_row(at)) ask_for_row(at);
}

// copy(rows) for each row, which is their first then. A row of the next ones is asked for with it: asked for at once, they would be
// waited for before anything is copied, and nothing would be under way meanwhile, which took a twentieth longer.
template <class Copy>
void for_rows(CopiedRows its, CopiedRows next, const Copy& copy) {
  for (; its.rows > 0; to_next_row(its)) {
    if (next.rows > 0) {
      ask_for_row(next);
      to_next_row(next);
    }
    copy(its);
  }
  ask_for_rows(next);
}

// Rows of at most kParts of type T, and one of it at least: the last one ends where the row ends, whatever it overlaps. Out of line:
// all of them in one function would keep their pointers in memory.
template <class T, int kParts>
__attribute__((noinline)) void copy_short_rows(const CopiedRows& its, const CopiedRows& next) {
  for_rows(its, next, [last = its.bytes - static_cast<int64_t>(sizeof(T))](const CopiedRows& at) {
    T part[kParts];
#pragma GCC unroll 4
    for (int k = 0; k < kParts; ++k) __builtin_memcpy(&part[k], at.from + (k + 1 < kParts ? k * sizeof(T) : last), sizeof(T));
#pragma GCC unroll 4
    for (int k = 0; k < kParts; ++k) __builtin_memcpy(at.to + (k + 1 < kParts ? k * sizeof(T) : last), &part[k], sizeof(T));
  });
}

// A call for a row would take longer than a short row does.
void copy_rows(const CopiedRows& its, const CopiedRows& next) {
  const int64_t bytes = its.bytes;
  if (bytes > 96 && bytes <= 128) return copy_short_rows<Bytes32, 4>(its, next);
  if (bytes > 64 && bytes <= 96) return copy_short_rows<Bytes32, 3>(its, next);
  if (bytes >= 32 && bytes <= 64) return copy_short_rows<Bytes32, 2>(its, next);
  if (bytes >= 16 && bytes < 32) return copy_short_rows<Bytes16, 2>(its, next);
  if (bytes >= 8 && bytes < 16) return copy_short_rows<uint64_t, 2>(its, next);
  if (bytes >= 4 && bytes < 8) return copy_short_rows<uint32_t, 2>(its, next);
  // The hardware foresees the rest of a long row, but not the jump to the next one.
  constexpr int64_t kRowsAhead = 2, kAheadBytes = 1024, kCacheLine = 64;
  const int64_t ahead = bytes < kAheadBytes ? bytes : kAheadBytes;
  for_rows(its, next, [=](const CopiedRows& at) {
    for (int64_t k = 0; at.rows > kRowsAhead && k < ahead; k += kCacheLine) {
      __builtin_prefetch(at.from + kRowsAhead * at.from_step + k, 0, 3);
    }
    __builtin_memcpy(at.to, at.from, bytes);
  });
}

// Long rows of targets lie one behind another, and have left the caches when they are written: asked for ahead, their lines come
// while others are filled, in four fifths of the time.
void fill(float* out, float value, int64_t n) {
  constexpr int64_t kLong = 256, kAhead = 1024, kLine = 16;  // floats
  int64_t i = 0;
  for (; n >= kLong && i + kLine <= n; i += kLine) {
    __builtin_prefetch(out + i + kAhead, 1, 3);
    for (int64_t k = 0; k < kLine; ++k) out[i + k] = value;
  }
  for (; i < n; ++i) out[i] = value;
}

void gaussian(float* out, const float* table, int64_t n, Factors f, bool complement) {
  const bool image = f.after == 1.0f && f.last == 1.0f;  // no axis after the row's
  if (image && complement) {
    for (int64_t i = 0; i < n; ++i) out[i] = 1.0f - f.before * table[i];
  } else if (image) {
    for (int64_t i = 0; i < n; ++i) out[i] = f.before * table[i];
  } else if (complement) {
    for (int64_t i = 0; i < n; ++i) out[i] = 1.0f - f.before * table[i] * f.after * f.last;
  } else {
    for (int64_t i = 0; i < n; ++i) out[i] = f.before * table[i] * f.after * f.last;
  }
}

// ---- Fourier masks ----

// Several floats in a register. Cast to, never passed to or returned from a function: how that is done depends on the
// instruction set.
typedef float Waves __attribute__((vector_size(4 * kWaveLanes), aligned(4), may_alias));
#if defined(__FMA__)
#define FUSEDMIX_LANES_FMA(a, b, c) reinterpret_cast<Waves>(_mm256_fmadd_ps(a, b, c))
#else
#define FUSEDMIX_LANES_FMA(a, b, c) ((a) * (b) + (c))
#endif
#define FUSEDMIX_LANES_AT(p) (*reinterpret_cast<Waves*>(p))
#define FUSEDMIX_CONST_LANES_AT(p) (*reinterpret_cast<const Waves*>(p))

void noise_row(float* out, int64_t n, uint64_t seed, uint64_t index, uint32_t call) {
  float *a = out, *b = out + n, *mirrored_a = out + 2 * n, *mirrored_b = out + 3 * n;
#pragma GCC ivdep
  for (int64_t k = 0; k < n; ++k) {
    const Words w = words(seed, index, kStreamNoise, call + static_cast<uint32_t>(k));
    const Pair one = normals(w.a, w.b), other = normals(w.c, w.d);
    a[k] = one.a;
    b[k] = one.b;
    mirrored_a[k] = other.a;
    mirrored_b[k] = other.b;
  }
}

// Along the columns: R + iI = Σ_ky C·e^{iθ}, for y and height - y from the same sums.
void plane_columns(const Plane& p) {
  const int64_t stop = p.height / 2 + 1;
  float *real = p.rows, *imaginary = p.rows + p.height * p.nx;
  for (int64_t y = 0; y < stop; ++y) {
    const int64_t mirrored = y == 0 ? 0 : p.height - y;
    for (int64_t x = 0; x < p.nx; x += kWaveLanes) {
      Waves even_r{}, odd_r{}, even_i{}, odd_i{};
      for (int64_t k = 0; k < p.ny; ++k) {
        const Waves c = Waves{} + p.cos_y[k * stop + y], s = Waves{} + p.sin_y[k * stop + y];
        const int64_t at = k * p.nx + x;
        even_r = FUSEDMIX_LANES_FMA(FUSEDMIX_CONST_LANES_AT(p.sum_a + at), c, even_r);
        odd_r = FUSEDMIX_LANES_FMA(FUSEDMIX_CONST_LANES_AT(p.difference_b + at), s, odd_r);
        even_i = FUSEDMIX_LANES_FMA(FUSEDMIX_CONST_LANES_AT(p.sum_b + at), c, even_i);
        odd_i = FUSEDMIX_LANES_FMA(FUSEDMIX_CONST_LANES_AT(p.difference_a + at), s, odd_i);
      }
      FUSEDMIX_LANES_AT(real + y * p.nx + x) = even_r - odd_r;
      FUSEDMIX_LANES_AT(imaginary + y * p.nx + x) = even_i + odd_i;
      if (mirrored == y || mirrored >= p.height) continue;
      FUSEDMIX_LANES_AT(real + mirrored * p.nx + x) = even_r + odd_r;
      FUSEDMIX_LANES_AT(imaginary + mirrored * p.nx + x) = even_i - odd_i;
    }
  }
}

// Along kRows rows from y: Σ_kx R·cos θ - I·sin θ, for x and width - x from the same sums.
template <int kRows>
void plane_rows(const Plane& p, int64_t y) {
  const float *real = p.rows + y * p.nx, *imaginary = p.rows + (p.height + y) * p.nx;
  float* out = p.out + y * p.width;
  for (int64_t x = 0; x < p.half; x += kWaveLanes) {
    Waves even[kRows] = {}, odd[kRows] = {};
    for (int64_t k = 0; k < p.nx; ++k) {
      const Waves c = FUSEDMIX_CONST_LANES_AT(p.cos_x + k * p.half + x), s = FUSEDMIX_CONST_LANES_AT(p.sin_x + k * p.half + x);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        even[r] = FUSEDMIX_LANES_FMA(Waves{} + real[r * p.nx + k], c, even[r]);
        odd[r] = FUSEDMIX_LANES_FMA(Waves{} + imaginary[r * p.nx + k], s, odd[r]);
      }
    }
    const int64_t n = p.width / 2 + 1 - x < kWaveLanes ? p.width / 2 + 1 - x : kWaveLanes;
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      float ahead[kWaveLanes], behind[kWaveLanes];
      FUSEDMIX_LANES_AT(ahead) = even[r] - odd[r];
      FUSEDMIX_LANES_AT(behind) = even[r] + odd[r];
      float* row = out + r * p.width;
      for (int64_t l = 0; l < n; ++l) row[x + l] = ahead[l];
      for (int64_t l = x == 0 ? 1 : 0; l < n; ++l) {
        if (2 * (x + l) != p.width) row[p.width - x - l] = behind[l];
      }
    }
  }
}

void plane(const Plane& p) {
  plane_columns(p);
  int64_t y = 0;
  for (; y + 4 <= p.height; y += 4) plane_rows<4>(p, y);
  for (; y < p.height; ++y) plane_rows<1>(p, y);
}

void above(uint32_t* bits, const float* v, int64_t n, float threshold) {
  for (int64_t q = 0; q < n; q += 32) {
    uint32_t word = 0;
    const int64_t m = n - q < 32 ? n - q : 32;
#if defined(__AVX__)
    if (m == 32) {
      const __m256 t = _mm256_set1_ps(threshold);
      for (int l = 0; l < 32; l += 8) {
        const __m256 over = _mm256_cmp_ps(_mm256_loadu_ps(v + q + l), t, _CMP_GT_OQ);
        word |= static_cast<uint32_t>(_mm256_movemask_ps(over)) << l;
      }
      bits[q / 32] = word;
      continue;
    }
#endif
    for (int64_t l = 0; l < m; ++l) word |= static_cast<uint32_t>(v[q + l] > threshold) << l;
    bits[q / 32] = word;
  }
}

void expand(float* out, const uint32_t* bits, int64_t q, int64_t n) {
  for (int64_t i = 0; i < n; i += 32) {
    const int64_t m = n - i < 32 ? n - i : 32, at = (q + i) / 32, shift = (q + i) % 32;
    uint64_t two = bits[at];
    if (shift + m > 32) two |= static_cast<uint64_t>(bits[at + 1]) << 32;
    const uint32_t word = static_cast<uint32_t>(two >> shift);
    if (m == 32) {
      for (uint32_t l = 0; l < 32; ++l) out[i + l] = static_cast<float>(word >> l & 1u);
    } else {
      for (uint32_t l = 0; l < m; ++l) out[i + l] = static_cast<float>(word >> l & 1u);
    }
  }
}

int64_t bracket(const float* v, int64_t n, float low, float high, int32_t* found, int64_t most, int64_t* found_count) {
  constexpr int64_t kBlock = 64;
  int64_t over = 0, count = 0;
  for (int64_t q = 0; q < n; q += kBlock) {
    const int64_t m = n - q < kBlock ? n - q : kBlock;
    int32_t here = 0, reached = 0;
    for (int64_t l = 0; l < m; ++l) {
      here += v[q + l] > high ? 1 : 0;
      reached += v[q + l] >= low ? 1 : 0;
    }
    over += here;
    if (here == reached) continue;
    for (int64_t l = 0; l < m; ++l) {
      if (!(v[q + l] >= low) || v[q + l] > high) continue;
      if (count < most) found[count] = static_cast<int32_t>(q + l);
      ++count;
    }
  }
  *found_count = count;
  return over;
}

}  // namespace

extern const Kernels FUSEDMIX_CONCAT(kernels_, FUSEDMIX_ISA);
const Kernels FUSEDMIX_CONCAT(kernels_, FUSEDMIX_ISA) = {
    FUSEDMIX_STRING(FUSEDMIX_ISA),
    {row_kernels<float>(), row_kernels<Half>(), row_kernels<BFloat16>(), row_kernels<double>(), row_kernels<uint8_t>(),
     row_kernels<int16_t>(), row_kernels<uint16_t>()},
    copy_rows,
    ask_for_rows,
    fill,
    gaussian,
    {noise_row, plane, above, expand, bracket},
    {loss_rows<float>(), loss_rows<Half>(), loss_rows<BFloat16>(), loss_rows<double>()},
    {pixel_rows<float>(), pixel_rows<Half>(), pixel_rows<BFloat16>(), pixel_rows<double>()},
    finish_kernels(),
    {gather_rows<float>(), gather_rows<Half>(), gather_rows<BFloat16>(), gather_rows<double>(), gather_rows<uint8_t>(),
     gather_rows<int16_t>(), gather_rows<uint16_t>()},
    border_kernels(),
};

}  // namespace fusedmix::cpu
