// What lies around a matmul of bytes: rows of bfloat16 to codes, and the matmul's sums to rows of bfloat16 again. One
// pass over each, where torch takes nine. The formulas are those of `model/quantized/int8.py`.
#include <immintrin.h>

#include <cstdint>
#include <limits>

namespace {

constexpr int64_t lanes = 16;
constexpr float codes_end = 255.0f;

// The lanes of a row of n numbers that are there from number i on.
inline __mmask16 there(int64_t n, int64_t i) { return n - i >= lanes ? 0xffff : (__mmask16)((1u << (n - i)) - 1); }

inline __m512 load(const uint16_t* x, __mmask16 mask) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, x)), 16));
}

}  // namespace

extern "C" {

// x (rows, n) to codes (rows, n) from 0 to 255, and each row's scale and low: x is about low + scale * code. A row with a
// NaN gets NaN as its low.
void quantize_bfloat16(const uint16_t* x, uint8_t* codes, float* scales, float* lows, int64_t rows, int64_t n) {
#pragma omp parallel for
  for (int64_t r = 0; r < rows; r++) {
    const uint16_t* row = x + r * n;
    __m512 least = _mm512_set1_ps(std::numeric_limits<float>::infinity()), most = _mm512_sub_ps(_mm512_setzero_ps(), least);
    __mmask16 lost = 0;
    for (int64_t i = 0; i < n; i += lanes) {
      const __mmask16 mask = there(n, i);
      const __m512 part = load(row + i, mask);
      lost |= _mm512_mask_cmp_ps_mask(mask, part, part, _CMP_UNORD_Q);
      least = _mm512_mask_min_ps(least, mask, least, part);
      most = _mm512_mask_max_ps(most, mask, most, part);
    }
    const float low = lost ? std::numeric_limits<float>::quiet_NaN() : _mm512_reduce_min_ps(least);
    const float step = (_mm512_reduce_max_ps(most) - low) / codes_end, tiny = std::numeric_limits<float>::min();
    const float scale = step < tiny ? tiny : step;
    scales[r] = scale, lows[r] = low;
    const __m512 less = _mm512_set1_ps(low), by = _mm512_set1_ps(1.0f / scale);
    for (int64_t i = 0; i < n; i += lanes) {
      const __mmask16 mask = there(n, i);
      const __m512 code = _mm512_mul_ps(_mm512_sub_ps(load(row + i, mask), less), by);
      _mm512_mask_cvtusepi32_storeu_epi8(codes + r * n + i, mask, _mm512_cvtps_epi32(code));
    }
  }
}

// products (rows, n) times each row's scale, plus bias (n), plus each row's low times sums (n), as bfloat16 (rows, n).
void dequantize_bfloat16(const float* products, const float* scales, const float* lows, const float* bias,
                         const float* sums, uint16_t* out, int64_t rows, int64_t n) {
#pragma omp parallel for
  for (int64_t r = 0; r < rows; r++) {
    const __m512 scale = _mm512_set1_ps(scales[r]), low = _mm512_set1_ps(lows[r]);
    for (int64_t i = 0; i < n; i += lanes) {
      const __mmask16 mask = there(n, i);
      const __m512 product = _mm512_maskz_loadu_ps(mask, products + r * n + i);
      const __m512 shift = _mm512_fmadd_ps(low, _mm512_maskz_loadu_ps(mask, sums + i), _mm512_maskz_loadu_ps(mask, bias + i));
      const __m512 y = _mm512_fmadd_ps(product, scale, shift);
      _mm256_mask_storeu_epi16(out + r * n + i, mask, (__m256i)_mm512_cvtneps_pbh(y));
    }
  }
}

}  // extern "C"
