// What a topology event needs: the links of largest score, the event itself, and where the links of a mask stand.

#ifndef RLX2_JAX_TOPOLOGY_H_
#define RLX2_JAX_TOPOLOGY_H_

#include <cstdint>

namespace rlx2 {

// Marks the `count` largest scores, or all if there are fewer, of those that `among` marks, which may be null for all;
// among equals the first win, NaN ranks below everything, and both zeros are alike. At most so many threads help.
void TopLinks(const float* score, const bool* among, int64_t size, int64_t count, bool* mask, int64_t threads);

// One event of one matrix. All but the `floor(fraction * links)` links of the smallest drop scores are kept, NaN going
// first; then it grows to `target` links where grow scores are largest outside those kept. If scores are `sizes`, their
// absolute values count, and a grow score that is NaN counts as zero, not below all.
struct Exchange {
  int64_t size = -1;
  const bool* mask = nullptr;
  const float* drop = nullptr;
  const float* grow = nullptr;
  const float* fraction = nullptr;
  const int32_t* target = nullptr;  // Negative: as many as there are.
  bool drop_sizes = false, grow_sizes = false;
  bool* next = nullptr;
};

void ExchangeLinks(const Exchange& exchange, int64_t threads);

// Where the links of one matrix stand, as `rlx2_jax/kernels/packing.py` stores them, in room for `capacity` of them.
struct LinkIndices {
  int64_t in = -1, out = -1, capacity = -1;
  bool spare = false;               // Whether places may be spare.
  const bool* mask = nullptr;       // [in, out]
  int32_t* row_start = nullptr;     // [out + 1]
  int32_t* inputs = nullptr;        // [capacity]
  int32_t* column_start = nullptr;  // [in + 1]
  int32_t* outputs = nullptr;       // [capacity]
  int32_t* order = nullptr;         // [capacity]
};

// False, and nothing is written past the end, if the mask has more links than there is room for, or fewer where no
// places may be spare. A spare place says input `in` and output `out`, where nothing is, and itself for its order.
bool IndexLinks(const LinkIndices& matrix);

}  // namespace rlx2

#endif  // RLX2_JAX_TOPOLOGY_H_
