// What an update spends on data once its products are cheap: gathering a batch, and random bits.

#ifndef RLX2_JAX_DATA_H_
#define RLX2_JAX_DATA_H_

#include <cstdint>

namespace rlx2 {

// out[i] = table[index[i]] for rows of `width` words. Returns false, having written nothing, if an index is outside
// 0 <= index < rows.
bool TakeRows(const uint32_t* table, int64_t rows, int64_t width, const int32_t* index, int64_t count, uint32_t* out,
              int64_t threads);

// Random bits of a Threefry-2x32 key (Salmon et al., 2011) as JAX makes them: the two words of the block numbered i,
// combined by exclusive or.
void ThreefryBits(const uint32_t key[2], int64_t count, uint32_t* out, int64_t threads);

}  // namespace rlx2

#endif  // RLX2_JAX_DATA_H_
