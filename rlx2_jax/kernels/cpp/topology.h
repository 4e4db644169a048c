// The two searches of a topology event: the links of largest score, and where the links of a mask stand.

#ifndef RLX2_JAX_TOPOLOGY_H_
#define RLX2_JAX_TOPOLOGY_H_

#include <cstdint>

namespace rlx2 {

// Marks the `count` largest scores, or all if there are fewer, of those that `among` marks, which may be null for all;
// among equals the first win, NaN ranks below everything, and both zeros are alike. At most so many threads help.
void TopLinks(const float* score, const bool* among, int64_t size, int64_t count, bool* mask, int64_t threads);

// Where the links of one matrix stand, as `rlx2_jax/sparsity/links.py` stores them.
struct LinkIndices {
  int64_t in = -1, out = -1, links = -1;
  const bool* mask = nullptr;       // [in, out]
  int32_t* row_start = nullptr;     // [out + 1]
  int32_t* inputs = nullptr;        // [links]
  int32_t* column_start = nullptr;  // [in + 1]
  int32_t* outputs = nullptr;       // [links]
  int32_t* order = nullptr;         // [links]
};

// False, and nothing is written past the end, if the mask has another number of links.
bool IndexLinks(const LinkIndices& matrix);

}  // namespace rlx2

#endif  // RLX2_JAX_TOPOLOGY_H_
