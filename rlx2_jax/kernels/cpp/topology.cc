#include "topology.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "parallel.h"

namespace rlx2 {
namespace {

// Scores are told apart by digits of their keys, highest first.
constexpr int kDigits = 12;
constexpr uint32_t kValues = 1u << kDigits;
constexpr int kShift = 32 - kDigits;
// At least so many scores make a part, which one thread goes through.
constexpr int64_t kPart = 1 << 15;
// Up to so many scores are ranked by comparing each with each.
constexpr int64_t kFew = 32;

// Unsigned integers in the order of the floats. Denormal numbers are zero whichever thread looks: XLA's flush them, and
// others do not.
inline uint32_t Sortable(float score) {
  uint32_t bits;
  std::memcpy(&bits, &score, sizeof(bits));
  const uint32_t sign = static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31), size = bits & 0x7fffffffu;
  const uint32_t key = size < 0x00800000u ? 1u << 31 : bits ^ (sign | 1u << 31);
  return size > 0x7f800000u ? 0 : key;
}

// The largest value of a digit that, with all above it, covers `*count` keys or more, or 0; takes those above off it.
uint32_t Digit(const uint32_t* histogram, uint32_t values, int64_t* count) {
  uint32_t digit = values - 1;
  for (; digit > 0 && histogram[digit] < *count; --digit) *count -= histogram[digit];
  return digit;
}

void TopFew(const float* score, const bool* among, int64_t size, int64_t count, bool* mask) {
  uint32_t key[kFew];
  for (int64_t i = 0; i < size; ++i) key[i] = Sortable(score[i]);
  for (int64_t i = 0; i < size; ++i) {
    int64_t better = 0;
    for (int64_t j = 0; j < size; ++j) better += (!among || among[j]) & (key[j] > key[i] || (key[j] == key[i] && j < i));
    mask[i] = (!among || among[i]) && better < count;
  }
}

// A stretch of the scores, with what one pass over it finds.
struct Part {
  int64_t first, last;
  int64_t candidates = 0;  // How many.
  int64_t choosable = 0;
  std::vector<uint32_t> histogram;
};

template <bool kSome>
void Count(const float* score, const bool* among, Part& part) {
  // Two histograms in turn: neighbours are often alike, and would wait for each other.
  part.histogram.assign(2 * kValues, 0);
  uint32_t* const counts = part.histogram.data();
  int64_t choosable = 0;
  for (int64_t i = part.first; i < part.last; ++i) {
    uint32_t key = Sortable(score[i]);
    if (kSome) {
      key &= -static_cast<uint32_t>(among[i]);  // What may not be chosen counts as the lowest.
      choosable += among[i];
    }
    ++counts[(i & 1) * kValues + (key >> kShift)];
  }
  part.choosable = kSome ? choosable : part.last - part.first;
  for (uint32_t v = 0; v < kValues; ++v) counts[v] += counts[kValues + v];
}

template <bool kSome>
void Mark(const float* score, const bool* among, uint32_t digit, bool* mask, uint32_t* candidate, Part& part) {
  uint32_t* next = candidate + part.first;
  for (int64_t i = part.first; i < part.last; ++i) {
    const uint32_t own = Sortable(score[i]) >> kShift;
    const bool may = !kSome || among[i];
    mask[i] = may & (own > digit);
    *next = static_cast<uint32_t>(i);
    next += may & (own == digit);
  }
  part.candidates = next - (candidate + part.first);
}

// The `count`-th largest of keys that are alike in their first digit, and by how many equals it is reached.
uint32_t Threshold(std::vector<uint32_t> keys, int64_t* count) {
  std::vector<uint32_t> histogram(kValues);
  uint32_t threshold = 0;
  for (int shift = kShift; shift > 0;) {
    const int bits = std::min(shift, kDigits);
    shift -= bits;
    const uint32_t values = 1u << bits;
    std::fill(histogram.begin(), histogram.end(), 0);
    for (const uint32_t key : keys) ++histogram[key >> shift & (values - 1)];
    const uint32_t digit = Digit(histogram.data(), values, count);
    keys.erase(std::remove_if(keys.begin(), keys.end(),
                              [&](uint32_t key) { return (key >> shift & (values - 1)) != digit; }),
               keys.end());
    threshold = keys.front();
  }
  return threshold;
}

template <bool kSome>
void TopOf(const float* score, const bool* among, int64_t size, int64_t count, bool* mask, int64_t threads) {
  const int64_t pieces = std::max<int64_t>(1, std::min(2 * threads, size / kPart));
  std::vector<Part> parts(pieces);
  Team::Shared().Run(pieces, threads, [&](int64_t p) {
    parts[p].first = size * p / pieces;
    parts[p].last = size * (p + 1) / pieces;
    Count<kSome>(score, among, parts[p]);
  });
  std::vector<uint32_t>& histogram = parts[0].histogram;
  int64_t choosable = parts[0].choosable;
  for (int64_t p = 1; p < pieces; ++p) {
    choosable += parts[p].choosable;
    for (uint32_t v = 0; v < kValues; ++v) histogram[v] += parts[p].histogram[v];
  }
  if (count >= choosable) {
    if (kSome) {
      std::copy(among, among + size, mask);
    } else {
      std::fill(mask, mask + size, true);
    }
    return;
  }
  const uint32_t digit = Digit(histogram.data(), kValues, &count);
  const std::unique_ptr<uint32_t[]> candidate(new uint32_t[size]);
  Team::Shared().Run(pieces, threads, [&](int64_t p) {
    Part own = parts[p];
    Mark<kSome>(score, among, digit, mask, candidate.get(), own);
    parts[p].candidates = own.candidates;
  });
  std::vector<uint32_t> keys;
  for (const Part& part : parts) {
    const uint32_t* const own = candidate.get() + part.first;
    for (int64_t i = 0; i < part.candidates; ++i) keys.push_back(Sortable(score[own[i]]));
  }
  const uint32_t threshold = Threshold(keys, &count);
  const uint32_t* key = keys.data();
  for (const Part& part : parts) {
    const uint32_t* const own = candidate.get() + part.first;
    for (int64_t i = 0; i < part.candidates; ++i, ++key) {
      if (*key > threshold || (*key == threshold && count-- > 0)) mask[own[i]] = true;
    }
  }
}

}  // namespace

void TopLinks(const float* score, const bool* among, int64_t size, int64_t count, bool* mask, int64_t threads) {
  if (count <= 0) {
    std::fill(mask, mask + size, false);
  } else if (size <= kFew) {
    TopFew(score, among, size, count, mask);
  } else if (among) {
    TopOf<true>(score, among, size, count, mask, threads);
  } else {
    TopOf<false>(score, among, size, count, mask, threads);
  }
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
