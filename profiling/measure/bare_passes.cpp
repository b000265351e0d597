// What is left of a batch norm without channels: the same passes over memory with the least arithmetic, on flat arrays.
// A floor to judge batch norms by that make these passes; it is not one. Conversions from and to 16 bits are PyTorch's.
//
//   forward    slice by slice: sums of x and x^2, then y = x * a + b backwards over the slice
//   backward   slice by slice: sums of dy and dy * x, then dx = x * a + b + dy * c backwards
//   inference  y = x * a + b
//
// A slice that fits the L2 cache is read again from there; one slice for all is read again from where it then is, the
// last-level cache or memory. A slice may consist of pieces, one from each of as many equal parts of the array: so lie
// the values of a channel, or of a few side by side, in a contiguous batch of images. Results are stored as ours are:
// past the cache where my_ops writes its own past it.
#include <ATen/Parallel.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/ops/empty_like.h>
#include <immintrin.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <tuple>

namespace {

using at::Tensor;
using F = at::vec::Vectorized<float>;

constexpr int64_t kLanes = F::size();

// What loads ask for ahead of them, as in my_ops (cpp/src/cpu/simd/requests.h): the L1 cache on Intel's processors with
// AVX-512, elsewhere the L2 cache, and that for sums of a large tensor.
enum class Ask { nothing, l1, l2 };
const bool kIntel = __builtin_cpu_is("intel") && __builtin_cpu_supports("avx512f");
constexpr int64_t kAheadInL1 = 768;  // bytes
constexpr int64_t kAheadInL2 = 2048;
constexpr int64_t kLarge = 8 << 20;

constexpr float kA = 1.25F, kB = -0.5F, kC = 0.75F;  // any that are neither 0 nor 1

auto to_float(const at::vec::Vectorized<at::BFloat16>& v) { return at::vec::convert_bfloat16_float(v); }
auto to_float(const at::vec::Vectorized<at::Half>& v) { return at::vec::convert_half_float(v); }
auto to_element(const F& low, const F& high, at::BFloat16) { return at::vec::convert_float_bfloat16(low, high); }
auto to_element(const F& low, const F& high, at::Half) { return at::vec::convert_float_half(low, high); }

template <class T>
struct Pair {
  static constexpr int64_t size = 2 * kLanes;
  F low, high;

  template <Ask ask>
  static Pair load(const T* p) {
    if constexpr (ask == Ask::l1) __builtin_prefetch(reinterpret_cast<const char*>(p) + kAheadInL1);
    if constexpr (ask == Ask::l2) __builtin_prefetch(reinterpret_cast<const char*>(p) + kAheadInL2, 0, 2);
    if constexpr (std::is_same_v<T, float>) {
      return {F::loadu(p), F::loadu(p + kLanes)};
    } else {
      const auto [low, high] = to_float(at::vec::Vectorized<T>::loadu(p));
      return {low, high};
    }
  }

  template <Ask ask, bool streaming>
  void store(T* p) const {
    if constexpr (std::is_same_v<T, float>) {
      put<ask, streaming>(p, low);
      put<ask, streaming>(p + kLanes, high);
    } else {
      put<ask, streaming>(p, to_element(low, high, T()));
    }
  }

 private:
  template <Ask ask, bool streaming, class V>
  static void put(T* p, V v) {
    if constexpr (!streaming) {
      if constexpr (ask == Ask::l1) __builtin_prefetch(p);
      v.store(p);
    } else if constexpr (sizeof(V) == sizeof(__m256i)) {
      alignas(32) T values[V::size()];
      v.store(values);
      _mm256_stream_si256(reinterpret_cast<__m256i*>(p), *reinterpret_cast<const __m256i*>(values));
    } else {
#ifdef __AVX512F__
      alignas(64) T values[V::size()];
      v.store(values);
      _mm512_stream_si512(reinterpret_cast<__m512i*>(p), *reinterpret_cast<const __m512i*>(values));
#endif
    }
  }
};

std::atomic<float> sink;  // so that sums are not optimised away

/// Sums over [begin, end): of g and g * x; of x and x * x where there is no g.
template <Ask ask, class T>
void sums(const T* g, const T* x, int64_t begin, int64_t end) {
  F first[4] = {F(0), F(0), F(0), F(0)};
  F second[4] = {F(0), F(0), F(0), F(0)};
  const auto add = [&](int64_t i, int slot) {
    const auto v = Pair<T>::template load<ask>(x + i);
    const auto u = g ? Pair<T>::template load<ask>(g + i) : v;
    first[slot] = first[slot] + u.low;
    first[slot + 1] = first[slot + 1] + u.high;
    second[slot] = at::vec::fmadd(u.low, v.low, second[slot]);
    second[slot + 1] = at::vec::fmadd(u.high, v.high, second[slot + 1]);
  };
  constexpr int64_t step = 2 * Pair<T>::size;
  int64_t i = begin;
  for (; i + step <= end; i += step) {
    add(i, 0);
    add(i + step / 2, 2);
  }
  float values[kLanes];
  (first[0] + first[1] + first[2] + first[3] + second[0] + second[1] + second[2] + second[3]).store(values);
  sink.store(values[0], std::memory_order_relaxed);
}

/// y = x * a + b over [begin, end), backwards in blocks; x * a + b + g * c where there is a g.
template <Ask ask, bool streaming, class T>
void map(const T* g, const T* x, T* y, int64_t begin, int64_t end) {
  constexpr int64_t block = 4096;
  const F a(kA), b(kB), c(kC);
  for (int64_t last = end; last > begin; last -= block) {
    for (int64_t i = std::max(begin, last - block); i + Pair<T>::size <= last; i += Pair<T>::size) {
      const auto v = Pair<T>::template load<ask>(x + i);
      Pair<T> z{at::vec::fmadd(v.low, a, b), at::vec::fmadd(v.high, a, b)};
      if (g) {
        const auto u = Pair<T>::template load<ask>(g + i);
        z = {at::vec::fmadd(u.low, c, z.low), at::vec::fmadd(u.high, c, z.high)};
      }
      z.template store<ask, streaming>(y + i);
    }
  }
  if (streaming) _mm_sfence();
}

template <bool streaming, class T>
void run(const T* g, const T* x, T* y, int64_t n, int64_t slice, int64_t pieces, bool reduces) {
  constexpr int64_t unit = 4096;  // a multiple of every vector: parts are aligned
  const auto parallel = [](int64_t values, int64_t part, auto body) {
    at::parallel_for(0, (values + part - 1) / part, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) body(i * part, std::min(values, (i + 1) * part));
    });
  };
  const bool large = n * static_cast<int64_t>(sizeof(T)) > kLarge;
  const auto reduce = kIntel ? sums<Ask::l1, T> : (large ? sums<Ask::l2, T> : sums<Ask::nothing, T>);
  const auto write = kIntel ? map<Ask::l1, streaming, T> : map<Ask::nothing, streaming, T>;
  const int64_t threads = at::get_num_threads();
  const int64_t share = ((n + threads - 1) / threads + unit - 1) / unit * unit;
  if (!reduces) {
    parallel(n, share, [&](int64_t b, int64_t e) { write(g, x, y, b, e); });
  } else if (slice * pieces >= n) {
    parallel(n, share, [&](int64_t b, int64_t e) { reduce(g, x, b, e); });
    parallel(n, share, [&](int64_t b, int64_t e) { write(g, x, y, b, e); });
  } else {
    const int64_t apart = n / pieces;
    parallel(apart, pieces > 1 ? slice : std::min(share, slice), [&](int64_t b, int64_t e) {
      for (int64_t p = 0; p < pieces; ++p) reduce(g, x, p * apart + b, p * apart + e);
      for (int64_t p = pieces - 1; p >= 0; --p) write(g, x, y, p * apart + b, p * apart + e);
    });
  }
}

template <class T>
void run(const std::optional<Tensor>& g, const Tensor& x, const Tensor& y, int64_t slice, int64_t pieces, bool reduces,
         bool streaming) {
  const T* dy = g ? g->const_data_ptr<T>() : nullptr;
  const auto chosen = streaming ? run<true, T> : run<false, T>;
  chosen(dy, x.const_data_ptr<T>(), y.mutable_data_ptr<T>(), x.numel(), slice, pieces, reduces);
}

/// A new tensor like x, filled by the passes but for what is left after the last whole vectors; g: the gradient in a
/// backward pass. slice: values per piece of a slice, a multiple of 4,096 if that is one piece; of several, a multiple
/// of 32, as is numel / pieces.
Tensor bare_passes(const std::optional<Tensor>& g, const Tensor& x, int64_t slice, int64_t pieces, bool reduces,
                   bool streaming) {
  const Tensor y = at::empty_like(x);
  switch (x.scalar_type()) {
    case at::kFloat:
      run<float>(g, x, y, slice, pieces, reduces, streaming);
      break;
    case at::kBFloat16:
      run<at::BFloat16>(g, x, y, slice, pieces, reduces, streaming);
      break;
    case at::kHalf:
      run<at::Half>(g, x, y, slice, pieces, reduces, streaming);
      break;
    default:
      TORCH_CHECK(false, "bare_passes: expected float32, bfloat16 or float16, got ", x.scalar_type());
  }
  return y;
}

}  // namespace

TORCH_LIBRARY(my_ops_profiling, m) {
  m.def("bare_passes(Tensor? g, Tensor x, int slice, int pieces, bool reduces, bool streaming) -> Tensor",
        &bare_passes);
}
