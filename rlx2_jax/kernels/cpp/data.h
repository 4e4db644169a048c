// What an update spends on data once its products are cheap: gathering batches, random bits, and Adam's step.

#ifndef RLX2_JAX_DATA_H_
#define RLX2_JAX_DATA_H_

#include <cstdint>

namespace rlx2 {

// out[i] = table[index[i]] for rows of `width` words. Returns false, having written nothing, if an index is outside
// 0 <= index < rows.
bool TakeRows(const uint32_t* table, int64_t rows, int64_t width, const int32_t* index, int64_t count, uint32_t* out,
              int64_t threads);

// A replay ring, as `rlx2_jax/replay/buffer.py` lays it out.
struct Ring {
  int64_t rows = -1, columns = -1, slots = -1, observation_size = -1, action_size = -1;
  const float* observation = nullptr;  // [rows, columns, observation_size]
  const float* action = nullptr;       // [rows, columns, action_size]
  const float* reward = nullptr;       // [rows, columns]
  const int32_t* outcome = nullptr;    // [rows, columns]
  const float* final = nullptr;        // [slots, columns, observation_size]
};

// Windows of n_step steps in a ring, at most n_max, and what they are reduced to: in the terms of `replay.buffer.window`.
struct Windows {
  int64_t count = -1, n_max = 0;
  const int32_t* n_step = nullptr;      // scalar
  const float* gamma = nullptr;         // scalar
  const int32_t* row = nullptr;         // [count]
  const int32_t* column = nullptr;      // [count]
  float* observation = nullptr;         // [count, observation_size]
  float* action = nullptr;              // [count, action_size]
  float* partial_return = nullptr;      // [count]
  float* bootstrap_discount = nullptr;  // [count]
  float* next_observation = nullptr;    // [count, observation_size]
  int32_t* last = nullptr;              // [count]
  float* weight = nullptr;              // [count]
};

// Returns what is wrong with the indices, or null.
const char* TakeWindows(const Ring& ring, const Windows& windows, int64_t threads);

// Random bits of a Threefry-2x32 key (Salmon et al., 2011) as JAX makes them: the two words of the block numbered i,
// combined by exclusive or.
void ThreefryBits(const uint32_t key[2], int64_t count, uint32_t* out, int64_t threads);

// Keys made from a key and numbers: `out[2 * i]` and the word after it are those of the block numbered `number[i]`.
void ThreefryKeys(const uint32_t key[2], const uint32_t* number, int64_t count, uint32_t* out);

// Adam (Kingma & Ba, 2015) on `size` parameters.
struct Adam {
  int64_t size = -1;
  float b1 = 0, b2 = 0, rest1 = 0, rest2 = 0, epsilon = 0;                    // rest1 is 1 - b1, rounded once
  const float* step_size = nullptr;                                           // scalar
  const int32_t* count = nullptr;                                             // scalar: steps taken so far
  const float *parameters = nullptr, *gradient = nullptr, *mu = nullptr, *nu = nullptr;
  float *next_parameters = nullptr, *next_mu = nullptr, *next_nu = nullptr;
  int32_t* next_count = nullptr;
};

void AdamStep(const Adam& adam, int64_t threads);

}  // namespace rlx2

#endif  // RLX2_JAX_DATA_H_
