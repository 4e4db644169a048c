#include "data.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include "parallel.h"
#include "perceptron.h"
#include "threefry.h"

namespace rlx2 {

namespace {

// Words given to a thread at a time.
constexpr int64_t kShare = 1 << 13;
// Items fetched ahead, enough for one to arrive from memory.
constexpr int64_t kAhead = 16;

// Outcomes of a step that are not the slot of its final observation, plus 1 (`replay/buffer.py`).
constexpr int32_t kTerminated = -1, kInvalid = -2;

// Places of a ring, counted on from row to row without dividing.
class Walk {
 public:
  Walk(const Ring& ring, int32_t row, int32_t column)
      : columns_(ring.columns), size_(ring.rows * ring.columns), place_(row % ring.rows * ring.columns + column) {}

  int64_t operator*() const { return place_; }
  void operator++() {
    place_ += columns_;
    if (place_ >= size_) place_ -= size_;
  }

 private:
  int64_t columns_, size_, place_;
};

void Prefetch(const Ring& ring, const Windows& windows, int64_t i) {
  Walk place(ring, windows.row[i], windows.column[i]);
  __builtin_prefetch(ring.action + *place * ring.action_size);
  for (int64_t k = 0; k <= windows.n_max; ++k, ++place) {
    __builtin_prefetch(ring.outcome + *place);
    __builtin_prefetch(ring.reward + *place);
    if (k == 0 || k == *windows.n_step) __builtin_prefetch(ring.observation + *place * ring.observation_size);
  }
}

// Returns false if the ring names a slot it does not have.
bool TakeWindow(const Ring& ring, const Windows& windows, int64_t i) {
  Walk place(ring, windows.row[i], windows.column[i]);
  const int64_t first = *place;
  const float gamma = *windows.gamma;
  float partial_return = 0, discount = 1;
  int32_t outcome = ring.outcome[first], k = 0;
  windows.weight[i] = outcome == kInvalid ? 0.0f : 1.0f;
  for (;; ++k) {
    partial_return += discount * ring.reward[*place];
    discount *= gamma;
    ++place;
    if (outcome > 0 || outcome == kTerminated || k == *windows.n_step - 1 || k == windows.n_max - 1) break;
    const int32_t next = ring.outcome[*place];
    if (next == kInvalid) break;
    outcome = next;
  }
  if (outcome > ring.slots) return false;
  windows.last[i] = k;
  windows.partial_return[i] = partial_return;
  windows.bootstrap_discount[i] = outcome == kTerminated ? 0 : discount;
  const float* following = outcome > 0 ? ring.final + ((outcome - 1) * ring.columns + windows.column[i]) * ring.observation_size
                                       : ring.observation + *place * ring.observation_size;
  const auto copy = [i](const float* from, int64_t size, float* to) { std::copy_n(from, size, to + i * size); };
  copy(ring.observation + first * ring.observation_size, ring.observation_size, windows.observation);
  copy(ring.action + first * ring.action_size, ring.action_size, windows.action);
  copy(following, ring.observation_size, windows.next_observation);
  return true;
}

}  // namespace

const char* TakeWindows(const Ring& ring, const Windows& windows, int64_t threads) {
  bool inside = true;
  for (int64_t i = 0; i < windows.count; ++i) {
    inside &= windows.row[i] >= 0 && static_cast<uint32_t>(windows.column[i]) < static_cast<uint64_t>(ring.columns);
  }
  if (!inside) return "a row or column is out of range";
  const int64_t words = 2 * ring.observation_size + ring.action_size + 2 * windows.n_max;
  const int64_t share = std::max<int64_t>(1, kShare / words), shares = (windows.count + share - 1) / share;
  std::atomic<bool> slots{true};
  ThreadPool::Shared().Run(shares, threads, [&](int64_t task) {
    const int64_t end = std::min(windows.count, (task + 1) * share);
    for (int64_t i = task * share; i < end; ++i) {
      if (i + kAhead < end) Prefetch(ring, windows, i + kAhead);
      if (!TakeWindow(ring, windows, i)) slots.store(false, std::memory_order_relaxed);
    }
  });
  return slots.load(std::memory_order_relaxed) ? nullptr : "an outcome names a slot that is out of range";
}

bool TakeRows(const uint32_t* table, int64_t rows, int64_t width, const int32_t* index, int64_t count, uint32_t* out,
              int64_t threads) {
  bool inside = true;
  for (int64_t i = 0; i < count; ++i) inside &= static_cast<uint64_t>(static_cast<int64_t>(index[i])) < static_cast<uint64_t>(rows);
  if (!inside) return false;
  const int64_t share = std::max<int64_t>(1, kShare / std::max<int64_t>(1, width)), shares = (count + share - 1) / share;
  ThreadPool::Shared().Run(shares, threads, [&](int64_t task) {
    const int64_t first = task * share, last = std::min(count, first + share);
    for (int64_t i = first; i < last; ++i) {
      if (i + kAhead < last) __builtin_prefetch(table + index[i + kAhead] * width);
      std::memcpy(out + i * width, table + index[i] * width, width * sizeof(uint32_t));
    }
  });
  return true;
}

void ThreefryBits(const uint32_t key[2], int64_t count, uint32_t* out, int64_t threads) {
  ThreadPool::Shared().Run((count + kShare - 1) / kShare, threads, [&](int64_t task) {
    const int64_t first = task * kShare;
    (*SupportedKernels())->threefry(key, first, std::min(kShare, count - first), out + first);
  });
}

void ThreefryKeys(const uint32_t key[2], const uint32_t* number, int64_t count, uint32_t* out) {
  const ThreefrySchedule schedule(key);
  for (int64_t i = 0; i < count; ++i) ThreefryBlock(schedule, number[i], out + 2 * i, out + 2 * i + 1);
}

void AdamStep(const Adam& adam, int64_t threads) {
  const int32_t count = *adam.count;
  const int32_t next = count == std::numeric_limits<int32_t>::max() ? count : count + 1;
  const float correction1 = 1 - std::pow(adam.b1, static_cast<float>(next));
  const float correction2 = 1 - std::pow(adam.b2, static_cast<float>(next));
  ThreadPool::Shared().Run((adam.size + kShare - 1) / kShare, threads, [&](int64_t task) {
    (*SupportedKernels())->adam(adam, correction1, correction2, task * kShare, std::min(adam.size, (task + 1) * kShare));
  });
  *adam.next_count = next;
}

}  // namespace rlx2
