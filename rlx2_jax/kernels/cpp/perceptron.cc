#include "perceptron.h"

#include <memory>

#include "parallel.h"

namespace rlx2 {

template <typename T, T constant>
struct Constant {
  static constexpr T value = constant;
};

// Every processor: four lanes, which SSE2 and NEON have.
#define LANES 4
namespace generic {
#include "simd.inl"
constexpr Kernels kKernels = {"generic", Forward, Backward, SumGroups, Threefry, CheckByOutput, CheckByInput};
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
constexpr Kernels kKernels = {"avx2", Forward, Backward, SumGroups, Threefry, CheckByOutput, CheckByInput};
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
constexpr Kernels kKernels = {"avx512", Forward, Backward, SumGroups, Threefry, CheckByOutput, CheckByInput};
}  // namespace avx512
#undef LANES
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif

const Kernels* const* Available() {
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

Network At(const Networks& networks, int64_t index) {
  const Network& first = networks.first;
  Network net = first;
  const auto step = [index](auto*& pointer, int64_t size) {
    if (pointer) pointer += index * size;
  };
  const int64_t in = first.layers[0].in, out = first.layers[first.depth - 1].out;
  step(net.x, first.batch * in);
  step(net.dx, first.batch * in);
  step(net.y, first.batch * out);
  step(net.dy, first.batch * out);
  step(net.activations, first.tiles() * first.features() * kTile);
  step(net.gradients, first.groups() * first.parameters());
  const float* parameters = networks.parameters + index * first.parameters();
  for (int64_t l = 0; l < first.depth; ++l) {
    Layer& layer = net.layers[l];
    layer.values = parameters;
    layer.bias = parameters + layer.links;
    parameters += layer.links + layer.out;
    step(layer.row_start, layer.out + 1);
    step(layer.inputs, layer.links);
    step(layer.column_start, layer.in + 1);
    step(layer.outputs, layer.links);
    step(layer.order, layer.links);
  }
  return net;
}

int64_t UsefulThreads(const Networks& networks, int64_t threads) {
  const int64_t work = networks.first.links() * networks.first.tiles() * kTile * networks.count;
  return work < kParallelWork ? 1 : threads;
}

template <typename Check>
const char* CheckAll(const Networks& networks, Check check) {
  for (int64_t n = 0; n < networks.count; ++n) {
    const Network net = At(networks, n);
    for (int64_t l = 0; l < net.depth; ++l) {
      if (const char* problem = check(net.layers[l])) return problem;
    }
  }
  return nullptr;
}

}  // namespace

const char* Forward(const Kernels& kernels, const Networks& networks, int64_t threads) {
  if (const char* problem = CheckAll(networks, kernels.check_by_output)) return problem;
  const Network& first = networks.first;
  const int64_t tiles = first.tiles(), scratch = (first.features() + first.layers[first.depth - 1].out) * kTile;
  Team::Shared().Run(networks.count * tiles, UsefulThreads(networks, threads), [&](int64_t task) {
    kernels.forward(At(networks, task / tiles), task % tiles, Scratch(scratch));
  });
  return nullptr;
}

const char* Backward(const Kernels& kernels, const Networks& networks, int64_t threads) {
  if (const char* problem = CheckAll(networks, kernels.check_by_output)) return problem;
  if (const char* problem = CheckAll(networks, kernels.check_by_input)) return problem;
  const Network& first = networks.first;
  const int64_t groups = first.groups(), scratch = (first.layers[0].in + kGroup * first.outputs()) * kTile;
  Team::Shared().Run(networks.count * groups, UsefulThreads(networks, threads), [&](int64_t task) {
    kernels.backward(At(networks, task / groups), task % groups, Scratch(scratch));
  });
  if (first.gradients) {
    for (int64_t n = 0; n < networks.count; ++n) kernels.sum_groups(At(networks, n));
  }
  return nullptr;
}

}  // namespace rlx2
