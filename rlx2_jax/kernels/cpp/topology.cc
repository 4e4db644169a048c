#include "topology.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "parallel.h"

namespace rlx2 {
namespace {

// At least so many scores make a part, which one thread goes through.
constexpr int64_t kPart = 1 << 15;
// So many parts at most for each thread, so that one that is held up leaves work to others.
constexpr int64_t kShares = 4;
// Up to so many scores are ranked by comparing each with each.
constexpr int64_t kFew = 32;
// So many scores are marked at a time: compilers make vectors of loops that do one thing.
constexpr int64_t kBlock = 1024;
// Of fewer scores no sample is drawn, and never a larger one.
constexpr int64_t kSampled = 1 << 12, kSample = 1 << 15;

// Keys are above kLowest, which stands for what may not be chosen.
constexpr int32_t kLowest = std::numeric_limits<int32_t>::min(), kHighest = std::numeric_limits<int32_t>::max();

// Which scores may be chosen.
enum class Among { kAll, kMarked, kUnmarked };

// Any byte but 0 is a mark, as NumPy and XLA have it; a bool that is neither 0 nor 1 would be counted as more than one.
uint8_t Marked(const bool* marks, int64_t i) {
  uint8_t byte;
  std::memcpy(&byte, marks + i, sizeof(byte));
  return byte != 0;
}

// Scores as whole numbers in their order, and which of them may be chosen. Denormal numbers are zero whichever thread
// looks: XLA's flush them, and others do not.
template <Among kAmong, bool kSize>
struct View {
  const float* score;
  const bool* mark;
  int32_t nan;  // What no number counts as.

  // Without a branch, so that loops of it become vectors.
  int32_t key(int64_t i) const {
    int32_t bits;
    std::memcpy(&bits, score + i, sizeof(bits));
    const int32_t size = bits & 0x7fffffff;
    int32_t key = kSize ? size : bits ^ ((bits >> 31) & 0x7fffffff);
    key = size < 0x00800000 ? 0 : key;
    key = size > 0x7f800000 ? nan : key;
    if (kAmong == Among::kAll) return key;
    const int32_t may = -static_cast<int32_t>(Marked(mark, i) ^ uint8_t{kAmong == Among::kUnmarked});
    return (key & may) | (kLowest & ~may);
  }
  // What is marked and may not be chosen stays marked.
  uint8_t stays(int64_t i) const { return kAmong == Among::kUnmarked ? Marked(mark, i) : uint8_t{0}; }
};

int64_t Parts(int64_t size, int64_t threads) {
  return std::max<int64_t>(1, std::min(kShares * threads, size / kPart));
}

// Body(part, first, last) for each part of `size` scores.
template <typename Body>
void ForParts(int64_t size, int64_t threads, const Body& body) {
  const int64_t parts = Parts(size, threads);
  ThreadPool::Shared().Run(parts, threads, [&](int64_t p) { body(p, size * p / parts, size * (p + 1) / parts); });
}

int64_t CountMarks(const bool* mark, int64_t size, int64_t threads) {
  std::vector<int64_t> found(Parts(size, threads));
  ForParts(size, threads, [&](int64_t part, int64_t first, int64_t last) {
    int64_t sum = 0;
    for (; first < last; first += kBlock) {
      int32_t own = 0;
      for (int64_t i = first; i < std::min(first + kBlock, last); ++i) own += Marked(mark, i);
      sum += own;
    }
    found[part] = sum;
  });
  int64_t sum = 0;
  for (const int64_t own : found) sum += own;
  return sum;
}

// The key of rank `rank`, largest first.
int32_t Ranked(std::vector<int32_t>& keys, int64_t rank) {
  std::nth_element(keys.begin(), keys.begin() + rank, keys.end(), std::greater<>());
  return keys[rank];
}

// Two keys that the `count`-th largest lies between, save in rare cases.
template <typename Scores>
void Bracket(const Scores& view, int64_t size, int64_t count, int64_t choosable, int32_t* low, int32_t* high) {
  *low = kLowest + 1, *high = kHighest;
  if (size < kSampled) return;
  const int64_t wanted = std::min(kSample, size / 16);
  std::vector<int32_t> sample;
  sample.reserve(wanted);
  uint64_t random = 0x9e3779b97f4a7c15u;
  for (int64_t i = 0; i < wanted; ++i) {
    // A place at random in each of as many stretches.
    random = random * 6364136223846793005u + 1442695040888963407u;
    const int64_t first = size * i / wanted, length = size * (i + 1) / wanted - first;
    const int64_t place = first + static_cast<int64_t>((random >> 33) % static_cast<uint64_t>(length));
    const int32_t key = view.key(place);
    if (key > kLowest) sample.push_back(key);
  }
  const double n = static_cast<double>(sample.size()), share = static_cast<double>(count) / choosable;
  const double margin = 4 * std::sqrt(n * share * (1 - share)) + 4;
  if (n * share - margin >= 0) *high = Ranked(sample, static_cast<int64_t>(n * share - margin));
  if (n * share + margin < n) *low = Ranked(sample, static_cast<int64_t>(n * share + margin));
}

// What one part holds.
struct Found {
  int64_t above = 0;
  std::vector<int32_t> between;  // Places.
};

// Marks what may be chosen and is above `high`, and finds what is not, but not below `low` either.
template <typename Scores>
void Mark(const Scores& view, int64_t first, int64_t last, int32_t low, int32_t high, bool* mask, Found* found) {
  int32_t key[kBlock];
  uint8_t between[kBlock + 8];
  auto* const out = reinterpret_cast<uint8_t*>(mask);
  for (; first < last; first += kBlock) {
    const int64_t size = std::min(kBlock, last - first);
    for (int64_t i = 0; i < size; ++i) key[i] = view.key(first + i);
    int32_t above = 0;
    for (int64_t i = 0; i < size; ++i) above += key[i] > high;
    for (int64_t i = 0; i < size; ++i) between[i] = (key[i] >= low) & (key[i] <= high);
    for (int64_t i = 0; i < size; ++i) out[first + i] = static_cast<uint8_t>(key[i] > high) | view.stays(first + i);
    found->above += above;
    for (int64_t i = size; i < size + 8; ++i) between[i] = 0;
    for (int64_t i = 0; i < size; i += 8) {
      uint64_t any;
      std::memcpy(&any, between + i, 8);
      for (int64_t j = i; any && j < i + 8; ++j) {
        if (between[j]) found->between.push_back(static_cast<int32_t>(first + j));
      }
    }
  }
}

// Marks the `count` largest, among equals the first, of the `choosable` scores that may be chosen.
template <typename Scores>
void Top(const Scores& view, int64_t size, int64_t count, int64_t choosable, bool* mask, int64_t threads) {
  if (count <= 0 || count >= choosable) {
    for (int64_t i = 0; i < size; ++i) mask[i] = view.stays(i) || (count > 0 && view.key(i) > kLowest);
    return;
  }
  int32_t low, high;
  Bracket(view, size, count, choosable, &low, &high);
  std::vector<Found> found(Parts(size, threads));
  std::vector<int32_t> keys;
  int64_t rest = 0;
  for (bool fits = false; !fits;) {
    ForParts(size, threads, [&](int64_t part, int64_t first, int64_t last) {
      Found own;
      Mark(view, first, last, low, high, mask, &own);
      found[part] = std::move(own);
    });
    rest = count;
    keys.clear();
    for (const Found& own : found) {
      rest -= own.above;
      for (const int32_t place : own.between) keys.push_back(view.key(place));
    }
    fits = rest > 0 && rest <= static_cast<int64_t>(keys.size());
    low = kLowest + 1, high = kHighest;  // If the sample misled, all lie between.
  }
  std::vector<int32_t> ranked = keys;
  const int32_t threshold = Ranked(ranked, rest - 1);
  for (const int32_t key : keys) rest -= key > threshold;
  const int32_t* key = keys.data();
  for (const Found& own : found) {
    for (const int32_t place : own.between) {
      mask[place] = *key > threshold || (*key == threshold && rest-- > 0);
      ++key;
    }
  }
}

void TopFew(const View<Among::kAll, false>& view, const bool* among, int64_t size, int64_t count, bool* mask) {
  int32_t key[kFew];
  for (int64_t i = 0; i < size; ++i) key[i] = view.key(i);
  for (int64_t i = 0; i < size; ++i) {
    int64_t better = 0;
    for (int64_t j = 0; j < size; ++j) {
      better += (!among || Marked(among, j)) & (key[j] > key[i] || (key[j] == key[i] && j < i));
    }
    mask[i] = (!among || Marked(among, i)) && better < count;
  }
}

}  // namespace

void TopLinks(const float* score, const bool* among, int64_t size, int64_t count, bool* mask, int64_t threads) {
  if (size <= kFew) {
    TopFew({score, nullptr, kLowest + 1}, among, size, count, mask);
  } else if (among) {
    const int64_t choosable = CountMarks(among, size, threads);
    Top(View<Among::kMarked, false>{score, among, kLowest + 1}, size, count, choosable, mask, threads);
  } else {
    Top(View<Among::kAll, false>{score, nullptr, kLowest + 1}, size, count, size, mask, threads);
  }
}

void ExchangeLinks(const Exchange& e, int64_t threads) {
  const int64_t active = CountMarks(e.mask, e.size, threads);
  const int64_t target = *e.target < 0 ? active : std::min<int64_t>(*e.target, e.size);
  const int64_t left = std::min(active, target);
  const int64_t moved = static_cast<int64_t>(std::floor(*e.fraction * static_cast<float>(left)));
  const int64_t kept = std::min(std::max<int64_t>(left - moved, 0), left);
  // Kept between calls: fresh memory costs more than a pass over it.
  thread_local std::vector<uint8_t> memory;
  memory.resize(e.size);
  bool* const staying = reinterpret_cast<bool*>(memory.data());
  if (e.drop_sizes) {
    Top(View<Among::kMarked, true>{e.drop, e.mask, kLowest + 1}, e.size, kept, active, staying, threads);
  } else {
    Top(View<Among::kMarked, false>{e.drop, e.mask, kLowest + 1}, e.size, kept, active, staying, threads);
  }
  const int64_t others = e.size - kept, grown = target - kept;
  if (e.grow_sizes) {
    Top(View<Among::kUnmarked, true>{e.grow, staying, 0}, e.size, grown, others, e.next, threads);
  } else {
    Top(View<Among::kUnmarked, false>{e.grow, staying, kLowest + 1}, e.size, grown, others, e.next, threads);
  }
}

bool IndexLinks(const LinkIndices& m) {
  std::fill(m.row_start, m.row_start + m.out + 1, 0);
  std::fill(m.column_start, m.column_start + m.in + 1, 0);
  for (int64_t i = 0; i < m.in; ++i) {
    for (int64_t o = 0; o < m.out; ++o) {
      const int32_t link = Marked(m.mask, i * m.out + o);
      m.row_start[o + 1] += link;
      m.column_start[i + 1] += link;
    }
  }
  for (int64_t o = 0; o < m.out; ++o) m.row_start[o + 1] += m.row_start[o];
  for (int64_t i = 0; i < m.in; ++i) m.column_start[i + 1] += m.column_start[i];
  const int64_t links = m.row_start[m.out];
  if (links > m.capacity || (links < m.capacity && !m.spare)) return false;
  std::vector<int32_t> next(m.row_start, m.row_start + m.out);
  int64_t by_input = 0;
  for (int64_t i = 0; i < m.in; ++i) {
    for (int64_t o = 0; o < m.out; ++o) {
      if (!Marked(m.mask, i * m.out + o)) continue;
      const int32_t by_output = next[o]++;
      m.inputs[by_output] = static_cast<int32_t>(i);
      m.outputs[by_input] = static_cast<int32_t>(o);
      m.order[by_input++] = by_output;
    }
  }
  std::fill(m.inputs + links, m.inputs + m.capacity, static_cast<int32_t>(m.in));
  std::fill(m.outputs + links, m.outputs + m.capacity, static_cast<int32_t>(m.out));
  std::iota(m.order + links, m.order + m.capacity, static_cast<int32_t>(links));
  return true;
}

}  // namespace rlx2
