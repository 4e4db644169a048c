#include "data.h"

#include <algorithm>
#include <cstring>

#include "parallel.h"
#include "perceptron.h"

namespace rlx2 {

namespace {

// Words given to a thread at a time.
constexpr int64_t kShare = 1 << 13;

}  // namespace

bool TakeRows(const uint32_t* table, int64_t rows, int64_t width, const int32_t* index, int64_t count, uint32_t* out,
              int64_t threads) {
  bool inside = true;
  for (int64_t i = 0; i < count; ++i) inside &= static_cast<uint64_t>(static_cast<int64_t>(index[i])) < static_cast<uint64_t>(rows);
  if (!inside) return false;
  const int64_t share = std::max<int64_t>(1, kShare / std::max<int64_t>(1, width)), shares = (count + share - 1) / share;
  Team::Shared().Run(shares, threads, [&](int64_t task) {
    const int64_t first = task * share, last = std::min(count, first + share);
    // Far enough ahead for a row to arrive from memory.
    constexpr int64_t kAhead = 16;
    for (int64_t i = first; i < last; ++i) {
      if (i + kAhead < last) __builtin_prefetch(table + index[i + kAhead] * width);
      std::memcpy(out + i * width, table + index[i] * width, width * sizeof(uint32_t));
    }
  });
  return true;
}

void ThreefryBits(const uint32_t key[2], int64_t count, uint32_t* out, int64_t threads) {
  Team::Shared().Run((count + kShare - 1) / kShare, threads, [&](int64_t task) {
    const int64_t first = task * kShare;
    (*Available())->threefry(key, first, std::min(kShare, count - first), out + first);
  });
}

}  // namespace rlx2
