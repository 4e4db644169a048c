#include "data.h"

#include <algorithm>
#include <cstring>

#include "parallel.h"

namespace rlx2 {

namespace {

// Words given to a thread at a time.
constexpr int64_t kShare = 1 << 13;

// The rounds are the same for every block, so a loop over blocks becomes vectors of whatever width there is.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
void Blocks(uint32_t key0, uint32_t key1, int64_t first, int64_t count, uint32_t* out) {
  const uint32_t keys[3] = {key0, key1, key0 ^ key1 ^ 0x1BD11BDAu};
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t block = static_cast<uint64_t>(first + i);
    uint32_t a = static_cast<uint32_t>(block >> 32) + keys[0], b = static_cast<uint32_t>(block) + keys[1];
#define RLX2_ROUND(r) a += b, b = (b << r) | (b >> (32 - r)), b ^= a
#define RLX2_FOUR(r0, r1, r2, r3, n) \
  RLX2_ROUND(r0), RLX2_ROUND(r1), RLX2_ROUND(r2), RLX2_ROUND(r3), a += keys[n % 3], b += keys[(n + 1) % 3] + n
    RLX2_FOUR(13, 15, 26, 6, 1);
    RLX2_FOUR(17, 29, 16, 24, 2);
    RLX2_FOUR(13, 15, 26, 6, 3);
    RLX2_FOUR(17, 29, 16, 24, 4);
    RLX2_FOUR(13, 15, 26, 6, 5);
#undef RLX2_FOUR
#undef RLX2_ROUND
    out[i] = a ^ b;
  }
}

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
    Blocks(key[0], key[1], first, std::min(kShare, count - first), out + first);
  });
}

}  // namespace rlx2
