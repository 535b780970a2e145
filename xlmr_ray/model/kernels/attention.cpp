// Attention over packed sequences on CPUs with AVX-512, in float32 and, with AVX-512 BF16, in bfloat16.
//
// Each head of a sequence is computed by one thread, a block of queries at a time: all scores of the block, the softmax
// of each row in float32, the mix of the values. The order of every sum depends on the length of the sequence and on
// the size of a head only, so that a sequence's result depends neither on what else is in the batch nor on the threads.
//
// Both matmuls read 32-bit words: one float32 or two neighbouring bfloat16, which the instruction multiplies and adds
// together. `hatch_build.py` compiles this when the package is built.
#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace {

constexpr int64_t lanes = 16;                // float32 in a register
constexpr int64_t rows_of_block = 12;        // queries computed together, with accumulators for 6 x 4 or 12 x 2 registers
constexpr int64_t half = rows_of_block / 2;
constexpr int64_t keys_of_block = 4 * lanes;
constexpr int64_t rows_of_task = 43 * rows_of_block;  // queries of a sequence that one thread takes
constexpr int64_t words_of_sum = 512;        // values added up in one go: sums of sums lose less in long sequences
constexpr float log2_e = 1.44269504f;

int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

struct Float32 {
  using Number = float;
  static constexpr int64_t numbers = 1;  // in a word
  static inline __m512 multiply_add(__m512i a, __m512i b, __m512 sum) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
  }
  static inline void store(float* to, __m512 x) { _mm512_storeu_ps(to, x); }
};

struct BFloat16 {
  using Number = uint16_t;
  static constexpr int64_t numbers = 2;
  static inline __m512 multiply_add(__m512i a, __m512i b, __m512 sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
  }
  static inline void store(uint16_t* to, __m512 x) {
    _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh(x));
  }
};

// One call's tensors: q, k, v (tokens, heads, dim) with `stride`s of numbers from token to token, out contiguous.
template <class Number>
struct Call {
  const Number *q, *k, *v;
  Number* out;
  const int32_t* starts;  // (sequences + 1): where each begins, and the end
  int64_t sequences, heads, dim, stride_q, stride_k, stride_v;
  float scale;
};

// What a thread writes while it computes.
struct Room {
  uint32_t* keys;    // (blocks, words of a head, 64 keys)
  uint32_t* values;  // (words of keys, dim)
  float* scores;     // (12, keys)
  void* chances;     // (12, keys), numbers: exp(score - largest)
};

// 2^x by 2^round(x) and a polynomial for the rest in [-1/2, 1/2]: the Taylor series of 2^x, whose first term left out is
// below 1.7e-7 of the result.
inline __m512 exp2(__m512 x) {
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 rest = _mm512_sub_ps(x, whole);
  __m512 p = _mm512_set1_ps(1.5403530e-4f);
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(1.3333558e-3f));
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(9.6181291e-3f));
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(5.5504109e-2f));
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(2.4022651e-1f));
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(6.9314718e-1f));
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, whole);
}

// c (rows, 16 columns) = a (rows, words) times b (words, stride).
template <class Type, int rows, int columns>
inline void multiply(
    const uint32_t* const* a, const uint32_t* b, int64_t stride, int64_t words, __m512 (&c)[rows][columns]) {
  const uint32_t* rows_of_a[rows];
  std::copy(a, a + rows, rows_of_a);
  for (int r = 0; r < rows; r++)
    for (int j = 0; j < columns; j++) c[r][j] = _mm512_setzero_ps();
  for (int64_t w = 0; w < words; w++, b += stride) {
    __m512i right[columns];
    for (int j = 0; j < columns; j++) right[j] = _mm512_loadu_si512(b + j * lanes);
    for (int r = 0; r < rows; r++) {
      const __m512i left = _mm512_set1_epi32(rows_of_a[r][w]);
      for (int j = 0; j < columns; j++) c[r][j] = Type::multiply_add(left, right[j], c[r][j]);
    }
  }
}

// The scores of six queries and 16 columns keys.
template <class Type, int columns>
inline void score(const uint32_t* const* queries, const uint32_t* keys, int64_t words, float* out, int64_t stride) {
  __m512 c[half][columns];
  multiply<Type, half, columns>(queries, keys, keys_of_block, words, c);
  for (int r = 0; r < half; r++)
    for (int j = 0; j < columns; j++) _mm512_storeu_ps(out + r * stride + j * lanes, c[r][j]);
}

// Values mixed by the chances of some rows, of which `there` are stored, each times its `inverse`.
template <class Type, int rows, int columns>
inline void mix(const typename Type::Number* chances, int64_t keys, const uint32_t* values, int64_t dim, int64_t words,
                const float* inverse, int64_t there, typename Type::Number* out, int64_t stride) {
  const uint32_t* a[rows];
  for (int r = 0; r < rows; r++) a[r] = (const uint32_t*)(chances + r * keys);
  __m512 sums[rows][columns];
  multiply<Type, rows, columns>(a, values, dim, std::min(words_of_sum, words), sums);
  for (int64_t w = words_of_sum; w < words; w += words_of_sum) {
    for (int r = 0; r < rows; r++) a[r] += words_of_sum;
    __m512 c[rows][columns];
    multiply<Type, rows, columns>(a, values + w * dim, dim, std::min(words_of_sum, words - w), c);
    for (int r = 0; r < rows; r++)
      for (int j = 0; j < columns; j++) sums[r][j] = _mm512_add_ps(sums[r][j], c[r][j]);
  }
  for (int r = 0; r < rows && r < there; r++)
    for (int j = 0; j < columns; j++)
      Type::store(out + r * stride + j * lanes, _mm512_mul_ps(sums[r][j], _mm512_set1_ps(inverse[r])));
}

// exp((score - largest) / log2(e) * factor) of a row, whose length is a multiple of 16; returns their sum.
template <class Type>
inline float exponentials(const float* row, int64_t keys, float factor, typename Type::Number* out) {
  __m512 most = _mm512_loadu_ps(row);
  for (int64_t j = lanes; j < keys; j += lanes) most = _mm512_max_ps(most, _mm512_loadu_ps(row + j));
  const __m512 by = _mm512_set1_ps(factor), less = _mm512_set1_ps(_mm512_reduce_max_ps(most) * factor);
  __m512 sum = _mm512_setzero_ps();
  for (int64_t j = 0; j < keys; j += lanes) {
    const __m512 e = exp2(_mm512_fmsub_ps(_mm512_loadu_ps(row + j), by, less));
    sum = _mm512_add_ps(sum, e);
    Type::store(out + j, e);
  }
  return _mm512_reduce_add_ps(sum);
}

// A head's keys and values as the matmuls read them, up to a multiple of 16 keys; those that are not there are zeros.
template <class Type, class Number = typename Type::Number>
void pack(const Number* k, int64_t stride_k, const Number* v, int64_t stride_v, int64_t length, int64_t dim, Room room) {
  const int64_t words = dim / Type::numbers, padded = round_up(length, lanes);
  for (int64_t j = 0; j < padded; j++) {
    uint32_t* to = room.keys + j / keys_of_block * keys_of_block * words + j % keys_of_block;
    const auto* from = (const uint32_t*)(k + j * stride_k);
    for (int64_t w = 0; w < words; w++) to[w * keys_of_block] = j < length ? from[w] : 0;
  }
  for (int64_t j = 0; j < length; j += Type::numbers) {
    uint32_t* to = room.values + j / Type::numbers * dim;
    const Number *one = v + j * stride_v, *two = one + stride_v;
    if constexpr (Type::numbers == 1) {
      std::memcpy(to, one, dim * sizeof(uint32_t));
    } else {
      const bool pair = j + 1 < length;
      for (int64_t d = 0; d < dim; d++) to[d] = one[d] | (pair ? (uint32_t)two[d] << 16 : 0u);
    }
  }
}

// Up to 12 queries of a head whose keys and values are packed.
template <class Type, class Number = typename Type::Number>
void block(const Number* q, int64_t stride_q, int64_t there, int64_t length, int64_t dim, float scale, Room room,
           Number* out, int64_t stride) {
  const int64_t words = dim / Type::numbers, keys = round_up(length, lanes);
  const int64_t words_of_keys = round_up(length, Type::numbers) / Type::numbers;
  auto* chances = (Number*)room.chances;
  const uint32_t* queries[rows_of_block];
  float inverse[rows_of_block];
  // The last query stands for those that are not there.
  for (int64_t r = 0; r < rows_of_block; r++) queries[r] = (const uint32_t*)(q + std::min(r, there - 1) * stride_q);
  for (int64_t j = 0; j < keys; j += keys_of_block) {
    const uint32_t* packed = room.keys + j * words;
    for (int64_t r = 0; r < there; r += half) {
      float* to = room.scores + r * keys + j;
      switch (std::min(keys_of_block, keys - j) / lanes) {
        case 1: score<Type, 1>(queries + r, packed, words, to, keys); break;
        case 2: score<Type, 2>(queries + r, packed, words, to, keys); break;
        case 3: score<Type, 3>(queries + r, packed, words, to, keys); break;
        default: score<Type, 4>(queries + r, packed, words, to, keys);
      }
    }
  }
  for (int64_t r = 0; r < there; r++) {
    float* row = room.scores + r * keys;
    std::fill(row + length, row + keys, -std::numeric_limits<float>::infinity());
    inverse[r] = 1.0f / exponentials<Type>(row, keys, scale * log2_e, chances + r * keys);
  }
  for (int64_t d = 0; d < dim;) {
    const uint32_t* values = room.values + d;
    if (dim - d >= 4 * lanes) {
      for (int64_t r = 0; r < there; r += half)
        mix<Type, half, 4>(chances + r * keys, keys, values, dim, words_of_keys, inverse + r, there - r,
                           out + r * stride + d, stride);
      d += 4 * lanes;
    } else if (dim - d >= 2 * lanes) {
      mix<Type, rows_of_block, 2>(chances, keys, values, dim, words_of_keys, inverse, there, out + d, stride);
      d += 2 * lanes;
    } else {
      mix<Type, rows_of_block, 1>(chances, keys, values, dim, words_of_keys, inverse, there, out + d, stride);
      d += lanes;
    }
  }
}

template <class Type, class Number = typename Type::Number>
void attend(const Call<Number>& call) {
  int64_t longest = 1;
  for (int64_t s = 0; s < call.sequences; s++) longest = std::max<int64_t>(longest, call.starts[s + 1] - call.starts[s]);
  const int64_t keys = round_up(longest, keys_of_block), packed = keys * call.dim / Type::numbers;
  // Each part packs keys and values anew: only where there are few heads and many threads.
  const bool many = call.sequences * call.heads >= 2 * omp_get_max_threads();
  const int64_t rows = many ? longest : rows_of_task, parts = (longest + rows - 1) / rows;
  const int64_t stride = call.heads * call.dim;
#pragma omp parallel
  {
    std::vector<uint32_t> words(2 * packed + 2 * rows_of_block * keys);
    Room room{words.data(), words.data() + packed, (float*)(words.data() + 2 * packed),
              words.data() + 2 * packed + rows_of_block * keys};
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < call.sequences * call.heads * parts; task++) {
      const int64_t s = task / (call.heads * parts), head = task / parts % call.heads * call.dim;
      const int64_t start = call.starts[s], length = call.starts[s + 1] - start, first = task % parts * rows;
      if (first >= length) continue;
      pack<Type>(call.k + start * call.stride_k + head, call.stride_k, call.v + start * call.stride_v + head,
                 call.stride_v, length, call.dim, room);
      for (int64_t row = first; row < std::min(length, first + rows); row += rows_of_block)
        block<Type>(call.q + (start + row) * call.stride_q + head, call.stride_q, std::min(rows_of_block, length - row),
                    length, call.dim, call.scale, room, call.out + (start + row) * stride + head, stride);
    }
  }
}

}  // namespace

extern "C" {

void attend_float32(const float* q, const float* k, const float* v, float* out, const int32_t* starts, int64_t sequences,
                    int64_t heads, int64_t dim, int64_t stride_q, int64_t stride_k, int64_t stride_v, float scale) {
  attend<Float32>({q, k, v, out, starts, sequences, heads, dim, stride_q, stride_k, stride_v, scale});
}

void attend_bfloat16(const uint16_t* q, const uint16_t* k, const uint16_t* v, uint16_t* out, const int32_t* starts,
                     int64_t sequences, int64_t heads, int64_t dim, int64_t stride_q, int64_t stride_k, int64_t stride_v,
                     float scale) {
  attend<BFloat16>({q, k, v, out, starts, sequences, heads, dim, stride_q, stride_k, stride_v, scale});
}

}  // extern "C"
