#include "perceptron.h"

#include <algorithm>
#include <memory>

#include "parallel.h"
#include "threefry.h"

namespace rlx2 {

template <typename T, T constant>
struct Constant {
  static constexpr T value = constant;
};

// Four lanes of two vectors, by number, and the first or second half of one, of 4 or 8 lanes. GCC has the name that
// clang gives to the first from version 12 on.
#if defined(__clang__) || (__GNUC__ >= 12 && !defined(RLX2_AS_GCC_11))
#define RLX2_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#define RLX2_HALF(v, which, lanes) RLX2_HALF_OF_##lanes(v, which * lanes)
#define RLX2_HALF_OF_4(v, k) __builtin_shufflevector(v, v, k, k + 1, k + 2, k + 3)
#define RLX2_HALF_OF_8(v, k) __builtin_shufflevector(v, v, k, k + 1, k + 2, k + 3, k + 4, k + 5, k + 6, k + 7)
#else
typedef int32_t Places __attribute__((vector_size(16)));
#define RLX2_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Places{__VA_ARGS__})
#define RLX2_HALF(v, which, lanes) (Half<lanes>(v, which))
template <int lanes, typename Whole>
static inline auto Half(Whole v, int which) {
  typedef float Halves __attribute__((vector_size(4 * lanes)));
  Halves half;
  __builtin_memcpy(&half, reinterpret_cast<const char*>(&v) + which * sizeof half, sizeof half);
  return half;
}
#endif

// Every processor: four lanes, which SSE2 and NEON have.
#define LANES 4
namespace generic {
#include "simd.inl"
constexpr Kernels kKernels = {"generic", Forward, Backward, SumGroups, AdamStep, Threefry, CheckByOutput, CheckByInput};
}  // namespace generic
#undef LANES

#if defined(__x86_64__) && defined(__GNUC__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define LANES 8
namespace avx2 {
#include "simd.inl"
constexpr Kernels kKernels = {"avx2", Forward, Backward, SumGroups, AdamStep, Threefry, CheckByOutput, CheckByInput};
}  // namespace avx2
#undef LANES
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")
#endif
#define LANES 16
namespace avx512 {
#include "simd.inl"
constexpr Kernels kKernels = {"avx512", Forward, Backward, SumGroups, AdamStep, Threefry, CheckByOutput, CheckByInput};
}  // namespace avx512
#undef LANES
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif

const Kernels* const* SupportedKernels() {
  static const struct Table {
    const Kernels* entries[4] = {};
    Table() {
      int n = 0;
#if defined(__x86_64__) && defined(__GNUC__)
      if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw")) {
        entries[n++] = &avx512::kKernels;
      }
      if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) entries[n++] = &avx2::kKernels;
#endif
      entries[n++] = &generic::kKernels;
    }
  } table;
  return table.entries;
}

namespace {

constexpr int64_t kAlignment = 64;
// Fewer multiply-adds than this are done before another thread has begun.
constexpr int64_t kParallelWork = 1 << 18;
// Links that take about as long as normalising a unit does.
constexpr int64_t kNormalisationWork = 4;

// Scratch of the calling thread, kept and grown.
float* Scratch(int64_t floats) {
  thread_local std::unique_ptr<char[]> memory;
  thread_local int64_t size = 0;
  if (size < floats) {
    memory = std::make_unique<char[]>(floats * sizeof(float) + kAlignment);
    size = floats;
  }
  const auto address = reinterpret_cast<uintptr_t>(memory.get());
  return reinterpret_cast<float*>((address + kAlignment - 1) / kAlignment * kAlignment);
}

int64_t UsefulThreads(const Network& network, int64_t count, int64_t threads) {
  const int64_t work = network.links() + kNormalisationWork * network.normalised_units();
  return work * network.tiles() * kTile * count < kParallelWork ? 1 : threads;
}

template <typename Check>
const char* CheckAll(const Network* networks, int64_t count, Check check) {
  for (int64_t n = 0; n < count; ++n) {
    for (int64_t l = 0; l < networks[n].depth; ++l) {
      if (const char* problem = check(networks[n].layers[l])) return problem;
    }
  }
  return nullptr;
}

}  // namespace

const char* Forward(const Kernels& kernels, const Network* networks, int64_t count, int64_t threads) {
  if (count == 0) return nullptr;
  if (const char* problem = CheckAll(networks, count, kernels.check_by_output)) return problem;
  const int64_t tiles = networks->tiles();
  const int64_t scratch = (networks->features() + networks->layers[networks->depth - 1].out) * kTile;
  ThreadPool::Shared().Run(count * tiles, UsefulThreads(*networks, count, threads), [&](int64_t task) {
    kernels.forward(networks[task / tiles], task % tiles, Scratch(scratch));
  });
  return nullptr;
}

const char* Backward(const Kernels& kernels, const Network* networks, int64_t count, int64_t threads) {
  if (count == 0) return nullptr;
  if (const char* problem = CheckAll(networks, count, kernels.check_by_output)) return problem;
  if (const char* problem = CheckAll(networks, count, kernels.check_by_input)) return problem;
  const int64_t groups = networks->groups();
  const int64_t rows = networks->outputs() + networks->normalised_units();
  const int64_t scratch = (networks->layers[0].in + kGroup * rows) * kTile;
  ThreadPool::Shared().Run(count * groups, UsefulThreads(*networks, count, threads), [&](int64_t task) {
    kernels.backward(networks[task / groups], task % groups, Scratch(scratch));
  });
  if (networks->gradient) {
    for (int64_t n = 0; n < count; ++n) {
      if (groups == 0) std::fill_n(networks[n].gradient, networks[n].parameters(), 0.0f);
      kernels.sum_groups(networks[n]);
    }
  }
  return nullptr;
}

}  // namespace rlx2
