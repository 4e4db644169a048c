#include "topology.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <vector>

namespace rlx2 {
namespace {

// Unsigned integers in the order of the floats.
uint32_t Sortable(float score) {
  if (score != score) return 0;
  if (score == 0) score = 0;  // Not minus zero.
  uint32_t bits;
  std::memcpy(&bits, &score, sizeof(bits));
  return bits >> 31 ? ~bits : bits | 1u << 31;
}

}  // namespace

void TopLinks(const float* score, int64_t size, int64_t count, bool* mask) {
  std::fill(mask, mask + size, count >= size);
  if (count <= 0 || count >= size) return;
  std::vector<uint32_t> key(size);
  std::transform(score, score + size, key.begin(), Sortable);
  std::vector<uint32_t> ranked = key;
  std::nth_element(ranked.begin(), ranked.begin() + count - 1, ranked.end(), std::greater<>());
  const uint32_t threshold = ranked[count - 1];
  int64_t equals = count;
  for (int64_t i = 0; i < size; ++i) equals -= key[i] > threshold;
  for (int64_t i = 0; i < size; ++i) mask[i] = key[i] > threshold || (key[i] == threshold && equals-- > 0);
}

bool IndexLinks(const LinkIndices& m) {
  std::fill(m.row_start, m.row_start + m.out + 1, 0);
  std::fill(m.column_start, m.column_start + m.in + 1, 0);
  for (int64_t i = 0; i < m.in; ++i) {
    for (int64_t o = 0; o < m.out; ++o) {
      const int32_t link = m.mask[i * m.out + o];
      m.row_start[o + 1] += link;
      m.column_start[i + 1] += link;
    }
  }
  for (int64_t o = 0; o < m.out; ++o) m.row_start[o + 1] += m.row_start[o];
  for (int64_t i = 0; i < m.in; ++i) m.column_start[i + 1] += m.column_start[i];
  if (m.row_start[m.out] != m.links) return false;
  std::vector<int32_t> next(m.row_start, m.row_start + m.out);
  int64_t by_input = 0;
  for (int64_t i = 0; i < m.in; ++i) {
    for (int64_t o = 0; o < m.out; ++o) {
      if (!m.mask[i * m.out + o]) continue;
      const int32_t by_output = next[o]++;
      m.inputs[by_output] = static_cast<int32_t>(i);
      m.outputs[by_input] = static_cast<int32_t>(o);
      m.order[by_input++] = by_output;
    }
  }
  return true;
}

}  // namespace rlx2
