// The block cipher behind JAX's random numbers: Threefry-2x32 of 20 rounds (Salmon et al., 2011).

#ifndef RLX2_JAX_THREEFRY_H_
#define RLX2_JAX_THREEFRY_H_

#include <cstdint>

namespace rlx2 {

struct ThreefrySchedule {
  explicit ThreefrySchedule(const uint32_t key[2]) : words{key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDAu} {}
  uint32_t words[3];
};

// Both words of the block that a 64-bit counter names.
static inline void ThreefryBlock(const ThreefrySchedule& schedule, uint64_t counter, uint32_t* first, uint32_t* second) {
  constexpr int kRotations[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  uint32_t a = static_cast<uint32_t>(counter >> 32) + schedule.words[0];
  uint32_t b = static_cast<uint32_t>(counter) + schedule.words[1];
  for (uint32_t n = 0; n < 5; ++n) {
    for (int r : kRotations[n % 2]) {
      a += b;
      b = (b << r) | (b >> (32 - r));
      b ^= a;
    }
    a += schedule.words[(n + 1) % 3];
    b += schedule.words[(n + 2) % 3] + n + 1;
  }
  *first = a;
  *second = b;
}

}  // namespace rlx2

#endif  // RLX2_JAX_THREEFRY_H_
