// The kernels without Python, for sanitizers: random networks against plain loops, whatever the number of threads,
// several callers at once, and indices that must be refused. Exits 0 if all is well.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "data.h"
#include "perceptron.h"
#include "topology.h"

namespace {

using rlx2::kTile;

#define CHECK(condition)                                             \
  if (!(condition)) {                                                \
    std::fprintf(stderr, "line %d: %s\n", __LINE__, #condition);     \
    std::exit(1);                                                    \
  }

// Aligned as XLA's buffers are.
template <typename T>
class Array {
 public:
  explicit Array(size_t n = 0) : size_(n), data_(static_cast<T*>(std::aligned_alloc(64, (n * sizeof(T) / 64 + 1) * 64))) {
    for (size_t i = 0; i < n; ++i) data_[i] = T{};
  }
  explicit Array(const std::vector<T>& v) : Array(v.size()) {
    for (size_t i = 0; i < size_; ++i) data_[i] = v[i];
  }
  Array(Array&& other) noexcept : size_(other.size_), data_(other.data_) { other.data_ = nullptr; }
  ~Array() { std::free(data_); }
  T* get() { return data_; }
  T& operator[](size_t i) { return data_[i]; }
  size_t size() const { return size_; }

 private:
  size_t size_;
  T* data_;
};

// Layer normalisation of one sample's units in double precision, there and back.
struct Normalisation {
  std::vector<double> normal;
  double inverse = 0;

  void Forward(const rlx2::Layer& layer, std::vector<double>& units) {
    const double count = static_cast<double>(units.size());
    const double mean = std::accumulate(units.begin(), units.end(), 0.0) / count;
    double variance = 0;
    for (double v : units) variance += (v - mean) * (v - mean) / count;
    inverse = 1 / std::sqrt(variance + rlx2::kEpsilon);
    for (size_t o = 0; o < units.size(); ++o) {
      normal.push_back((units[o] - mean) * inverse);
      units[o] = layer.scale[o] * normal[o] + layer.offset[o];
    }
  }
  // From gradients of what Forward gave to those of what it took; the others are added.
  void Backward(const rlx2::Layer& layer, std::vector<double>& delta, double* of_scale, double* of_offset) const {
    double mean = 0, slope = 0;
    for (size_t o = 0; o < delta.size(); ++o) {
      of_scale[o] += delta[o] * normal[o];
      of_offset[o] += delta[o];
      delta[o] *= layer.scale[o];
      mean += delta[o] / static_cast<double>(delta.size());
      slope += delta[o] * normal[o] / static_cast<double>(delta.size());
    }
    for (size_t o = 0; o < delta.size(); ++o) delta[o] = inverse * (delta[o] - mean - normal[o] * slope);
  }
};

struct Example {
  std::vector<int64_t> sizes;
  int64_t batch, count;
  std::vector<rlx2::Network> networks;
  const float* samples;  // [count][batch][in]
  std::vector<Array<int32_t>> indices;
  std::vector<Array<float>> floats;
  std::vector<std::vector<std::vector<float>>> dense;  // [count][layer][in * out], 0 where absent
  std::vector<std::vector<std::vector<char>>> mask;

  // With spare places, which hold nonsense, each network has another number of links.
  Example(unsigned seed, std::vector<int64_t> sizes, double density, int64_t batch, int64_t count, bool normalised,
          int64_t spare = 0)
      : sizes(sizes), batch(batch), count(count) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<float> uniform(-1, 1);
    const int64_t depth = static_cast<int64_t>(sizes.size()) - 1;
    rlx2::Network net;
    net.depth = depth;
    net.batch = batch;
    net.normalised = normalised;
    dense.resize(count, std::vector<std::vector<float>>(depth));
    mask.resize(count, std::vector<std::vector<char>>(depth));
    for (int64_t l = 0; l < depth; ++l) {
      const int64_t in = sizes[l], out = sizes[l + 1], most = static_cast<int64_t>(density * in * out);
      const int64_t capacity = most + spare;
      std::vector<int32_t> row_start, inputs, column_start, outputs, order;
      for (int64_t n = 0; n < count; ++n) {
        std::vector<char>& m = mask[n][l];
        m.assign(in * out, 0);
        const int64_t links = spare ? std::max<int64_t>(0, most - n) : most;
        for (int64_t k = 0; k < links;) {
          const size_t at = random() % m.size();
          k += !m[at];
          m[at] = 1;
        }
        std::vector<int32_t> position(in * out);
        int32_t k = 0;
        for (int64_t o = 0; o < out; ++o) {
          row_start.push_back(k);
          for (int64_t i = 0; i < in; ++i) {
            if (m[i * out + o]) inputs.push_back(static_cast<int32_t>(i)), position[i * out + o] = k++;
          }
        }
        row_start.push_back(k);
        k = 0;
        for (int64_t i = 0; i < in; ++i) {
          column_start.push_back(k);
          for (int64_t o = 0; o < out; ++o) {
            if (m[i * out + o]) outputs.push_back(static_cast<int32_t>(o)), order.push_back(position[i * out + o]), ++k;
          }
        }
        column_start.push_back(k);
        for (std::vector<int32_t>* v : {&inputs, &outputs, &order}) {
          while (static_cast<int64_t>(v->size()) < (n + 1) * capacity) v->push_back(static_cast<int32_t>(random()));
        }
      }
      rlx2::Layer& layer = net.layers[l];
      layer.in = in, layer.out = out, layer.capacity = capacity;
      layer.row_start = Keep(row_start), layer.inputs = Keep(inputs), layer.column_start = Keep(column_start);
      layer.outputs = Keep(outputs), layer.order = Keep(order);
    }
    const int64_t parameters = net.parameters();
    float* p = Floats(parameters * count);
    for (int64_t i = 0; i < parameters * count; ++i) p[i] = uniform(random);
    const float* const all_parameters = p;
    for (int64_t n = 0; n < count; ++n) {
      for (int64_t l = 0; l < depth; ++l) {
        const int64_t in = sizes[l], out = sizes[l + 1];
        dense[n][l].assign(in * out, 0);
        int64_t k = 0;
        for (int64_t o = 0; o < out; ++o) {
          for (int64_t i = 0; i < in; ++i) {
            if (mask[n][l][i * out + o]) dense[n][l][i * out + o] = p[k++];
          }
        }
        p += net.layers[l].capacity + (normalised && l < depth - 1 ? 3 : 1) * out;
      }
    }
    float* x = Floats(count * batch * sizes[0]);
    float* dy = Floats(count * batch * sizes[depth]);
    for (int64_t i = 0; i < count * batch * sizes[0]; ++i) x[i] = uniform(random);
    for (int64_t i = 0; i < count * batch * sizes[depth]; ++i) dy[i] = uniform(random);
    // Two arrays of inputs, if there are two; the gradient of the second is wanted.
    const int64_t first = sizes[0] > 1 ? sizes[0] / 3 : 0;
    net.arrays = first ? 2 : 1;
    net.inputs[0].size = first ? first : sizes[0];
    net.inputs[1].size = sizes[0] - first;
    rlx2::Input& last = net.inputs[net.arrays - 1];
    float* y = Floats(count * batch * sizes[depth]);
    float* dx = Floats(count * batch * last.size);
    float* activations = Floats(count * net.tiles() * net.kept() * kTile);
    float* gradients = Floats(count * net.groups() * parameters);
    std::fill_n(gradients, count * net.groups() * parameters, NAN);
    float* parts[2] = {Floats(count * batch * net.inputs[0].size), Floats(count * batch * net.inputs[1].size)};
    for (int64_t i = 0; i < count * batch; ++i) {
      for (int64_t f = 0; f < sizes[0]; ++f) {
        const int64_t part = f >= net.inputs[0].size, size = net.inputs[part].size;
        parts[part][i * size + f - part * net.inputs[0].size] = x[i * sizes[0] + f];
      }
    }
    for (int64_t n = 0; n < count; ++n) {
      networks.push_back(net);
      rlx2::Network& own = networks.back();
      own.set_parameters(all_parameters + n * parameters);
      own.dy = dy + n * batch * sizes[depth];
      own.y = y + n * batch * sizes[depth];
      own.activations = activations + n * net.tiles() * net.kept() * kTile;
      own.gradient = gradients + n * net.groups() * parameters;
      own.partial = own.gradient + parameters;
      for (int64_t a = 0; a < net.arrays; ++a) own.inputs[a].x = parts[a] + n * batch * net.inputs[a].size;
      own.inputs[net.arrays - 1].dx = dx + n * batch * last.size;
      for (int64_t l = 0; l < depth; ++l) {
        rlx2::Layer& layer = own.layers[l];
        layer.row_start += n * (layer.out + 1), layer.column_start += n * (layer.in + 1);
        layer.inputs += n * layer.capacity, layer.outputs += n * layer.capacity, layer.order += n * layer.capacity;
      }
    }
    samples = x;
  }

  const int32_t* Keep(const std::vector<int32_t>& v) {
    indices.emplace_back(v);
    return indices.back().get();
  }
  float* Floats(int64_t n) {
    floats.emplace_back(static_cast<size_t>(n));
    return floats.back().get();
  }

  void Run(const rlx2::Kernels& kernels, int64_t threads) {
    CHECK(!rlx2::Forward(kernels, networks.data(), count, threads));
    CHECK(!rlx2::Backward(kernels, networks.data(), count, threads));
  }

  // Backward without the parameters' gradient, and forward without keeping anything.
  void RunBare(const rlx2::Kernels& kernels, int64_t threads) {
    std::vector<rlx2::Network> bare = networks;
    for (rlx2::Network& net : bare) net.gradient = net.partial = nullptr;
    CHECK(!rlx2::Backward(kernels, bare.data(), count, threads));
    for (rlx2::Network& net : bare) net.activations = nullptr;
    CHECK(!rlx2::Forward(kernels, bare.data(), count, threads));
  }

  std::vector<float> Results() const {
    std::vector<float> all;
    for (const rlx2::Network& net : networks) all.insert(all.end(), net.y, net.y + batch * sizes.back());
    for (const rlx2::Network& net : networks) {
      const rlx2::Input& last = net.inputs[net.arrays - 1];
      all.insert(all.end(), last.dx, last.dx + batch * last.size);
    }
    for (const rlx2::Network& net : networks) all.insert(all.end(), net.gradient, net.gradient + net.parameters());
    return all;
  }

  // The same by plain loops in double precision.
  std::vector<double> Expected() const {
    std::vector<double> ys, dxs, gradients;
    for (int64_t n = 0; n < count; ++n) {
      const rlx2::Network& net = networks[n];
      // Of a layer's matrix; and of its bias and, if it is normalised, scale and offset.
      std::vector<std::vector<double>> weight_gradient(net.depth), unit_gradient(net.depth);
      for (int64_t l = 0; l < net.depth; ++l) {
        weight_gradient[l].assign(sizes[l] * sizes[l + 1], 0);
        unit_gradient[l].assign((net.layers[l].scale ? 3 : 1) * sizes[l + 1], 0);
      }
      for (int64_t b = 0; b < batch; ++b) {
        std::vector<std::vector<double>> h(net.depth + 1);
        std::vector<Normalisation> normalisations(net.depth);
        const float* x = samples + (n * batch + b) * sizes[0];
        h[0].assign(x, x + sizes[0]);
        for (int64_t l = 0; l < net.depth; ++l) {
          const rlx2::Layer& layer = net.layers[l];
          h[l + 1].assign(layer.bias, layer.bias + layer.out);
          for (int64_t i = 0; i < sizes[l]; ++i) {
            for (int64_t o = 0; o < sizes[l + 1]; ++o) h[l + 1][o] += h[l][i] * dense[n][l][i * sizes[l + 1] + o];
          }
          if (layer.scale) normalisations[l].Forward(layer, h[l + 1]);
          if (l + 1 < net.depth) {
            for (double& v : h[l + 1]) v = v > 0 ? v : 0;
          }
        }
        ys.insert(ys.end(), h.back().begin(), h.back().end());
        const float* dy = net.dy + b * sizes.back();
        std::vector<double> delta(dy, dy + sizes.back());
        for (int64_t l = net.depth - 1; l >= 0; --l) {
          std::vector<double> below(sizes[l], 0);
          for (int64_t o = 0; o < sizes[l + 1]; ++o) {
            unit_gradient[l][o] += delta[o];
            for (int64_t i = 0; i < sizes[l]; ++i) {
              weight_gradient[l][i * sizes[l + 1] + o] += h[l][i] * delta[o];
              below[i] += dense[n][l][i * sizes[l + 1] + o] * delta[o];
            }
          }
          if (l > 0) {
            for (int64_t i = 0; i < sizes[l]; ++i) below[i] = h[l][i] > 0 ? below[i] : 0;
            double* const gradient = unit_gradient[l - 1].data();
            if (net.normalised) {
              normalisations[l - 1].Backward(net.layers[l - 1], below, gradient + sizes[l], gradient + 2 * sizes[l]);
            }
          }
          delta = below;
        }
        dxs.insert(dxs.end(), delta.end() - net.inputs[net.arrays - 1].size, delta.end());
      }
      for (int64_t l = 0; l < net.depth; ++l) {
        const size_t end = gradients.size() + net.layers[l].capacity;
        for (int64_t o = 0; o < sizes[l + 1]; ++o) {
          for (int64_t i = 0; i < sizes[l]; ++i) {
            const size_t at = i * sizes[l + 1] + o;
            if (mask[n][l][at]) gradients.push_back(weight_gradient[l][at]);
          }
        }
        gradients.resize(end);
        gradients.insert(gradients.end(), unit_gradient[l].begin(), unit_gradient[l].end());
      }
    }
    ys.insert(ys.end(), dxs.begin(), dxs.end());
    ys.insert(ys.end(), gradients.begin(), gradients.end());
    return ys;
  }
};

void TestAgainstLoops() {
  const struct {
    std::vector<int64_t> sizes;
    double density;
    int64_t batch, count;
  } cases[] = {
      {{14, 96, 96, 1}, 0.05, 256, 2}, {{3, 40, 2}, 0.02, 65, 1}, {{5, 7}, 0.5, 1, 3}, {{6, 33, 17, 9, 4}, 0.9, 130, 2},
      {{4, 8, 3}, 0.0, 20, 1},         {{9, 31, 2}, 1.0, 64, 1},
  };
  unsigned seed = 0;
  for (const auto& c : cases) {
    for (const auto& [normalised, spare] : {std::pair{false, 0}, {false, 5}, {true, 0}, {true, 5}}) {
      Example example(++seed, c.sizes, c.density, c.batch, c.count, normalised, spare);
      const std::vector<double> expected = example.Expected();
      for (const rlx2::Kernels* const* kernels = rlx2::SupportedKernels(); *kernels; ++kernels) {
        example.Run(**kernels, 1);
        const std::vector<float> alone = example.Results();
        CHECK(alone.size() == expected.size());
        for (size_t i = 0; i < alone.size(); ++i) CHECK(std::fabs(alone[i] - expected[i]) < 1e-3);
        example.Run(**kernels, 4);
        CHECK(example.Results() == alone);
        example.RunBare(**kernels, 4);
        CHECK(example.Results() == alone);
      }
    }
  }
}

void TestManyCallers() {
  std::vector<std::thread> callers;
  for (unsigned seed = 0; seed < 3; ++seed) {
    callers.emplace_back([seed] {
      Example example(seed, {14, 128, 128, 1}, 0.1, 256, 2, seed % 2);
      example.Run(**rlx2::SupportedKernels(), 1);
      const std::vector<float> alone = example.Results();
      for (int i = 0; i < 50; ++i) {
        // Long enough for helpers to fall asleep, sometimes.
        if (i % 10 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
        example.Run(**rlx2::SupportedKernels(), 4);
        CHECK(example.Results() == alone);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
}

void TestRefusals() {
  const rlx2::Kernels& kernels = **rlx2::SupportedKernels();
  const int32_t links = 89, spare = 5;
  const auto broken = [&](int which, int at, int32_t value) {
    Example example(1, {14, 32, 2}, 0.2, 8, 1, false, spare);
    CHECK(example.networks[0].layers[0].links() == links);
    example.indices[which][at] = value;
    const bool forward = rlx2::Forward(kernels, example.networks.data(), 1, 2), backward = rlx2::Backward(kernels, example.networks.data(), 1, 2);
    CHECK(backward);
    CHECK(forward == (which < 2));
  };
  for (int which = 0; which < 5; ++which) {
    for (int32_t value : {-1, 1 << 20, INT32_MIN, INT32_MAX}) broken(which, 3, value);
  }
  // More links than there is room for; links that are spare places; by input another number than by output.
  broken(0, 32, links + spare + 1);
  broken(0, 32, links + spare);
  broken(2, 14, links - 1);
  broken(2, 14, links + 1);
  broken(4, 3, links);
}

void TestData() {
  const int64_t rows = 1000, width = 7, count = 30000;
  std::vector<uint32_t> table(rows * width), taken(count * width), bits(count), alone(count);
  for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<uint32_t>(i);
  std::vector<int32_t> index(count);
  std::mt19937 random(1);
  for (int32_t& i : index) i = static_cast<int32_t>(random() % rows);
  CHECK(rlx2::TakeRows(table.data(), rows, width, index.data(), count, taken.data(), 4));
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t w = 0; w < width; ++w) CHECK(taken[i * width + w] == index[i] * width + w);
  }
  for (int32_t bad : {-1, 1000, INT32_MIN, INT32_MAX}) {
    index[count - 1] = bad;
    CHECK(!rlx2::TakeRows(table.data(), rows, width, index.data(), count, taken.data(), 4));
  }
  // A ring of 40 rows and 5 columns, with observations that say where they stand.
  const int64_t R = 40, E = 5, F = 3, O = 2, A = 1;
  std::vector<float> observation(R * E * O), action(R * E * A), reward(R * E, 1.0f), final(F * E * O, -1.0f);
  for (size_t i = 0; i < observation.size(); ++i) observation[i] = static_cast<float>(i / O);
  std::vector<int32_t> outcome(R * E), row(count), column(count), last(count);
  for (int32_t& o : outcome) o = static_cast<int32_t>(random() % 6) - 2;
  for (int64_t i = 0; i < count; ++i) row[i] = random() % 1000, column[i] = random() % E;
  std::vector<float> out[2] = {std::vector<float>(count * O), std::vector<float>(count * O)};
  std::vector<float> acted(count * A), partial(count), bootstrap(count), weight(count);
  rlx2::Ring ring = {R, E, F, O, A, observation.data(), action.data(), reward.data(), outcome.data(), final.data()};
  const int32_t n_step = 3;
  const float gamma = 0.5f;
  const rlx2::Windows windows = {count, 3, &n_step, &gamma, row.data(), column.data(), out[0].data(), acted.data(),
                                 partial.data(), bootstrap.data(), out[1].data(), last.data(), weight.data()};
  CHECK(!rlx2::TakeWindows(ring, windows, 4));
  for (int64_t i = 0; i < count; ++i) {
    const int64_t end = row[i] + last[i];
    const int32_t how = outcome[end % R * E + column[i]];
    CHECK(out[0][i * O] == static_cast<float>(row[i] % R * E + column[i]));
    CHECK(out[1][i * O] == (how > 0 ? -1.0f : static_cast<float>((end + 1) % R * E + column[i])));
    CHECK(partial[i] == 2.0f - std::ldexp(2.0f, -(last[i] + 1)));
    CHECK(bootstrap[i] == (how == -1 ? 0.0f : std::ldexp(1.0f, -(last[i] + 1))));
  }
  outcome[7] = F + 1;
  CHECK(rlx2::TakeWindows(ring, windows, 4));
  outcome[7] = 0, column[9] = E;
  CHECK(rlx2::TakeWindows(ring, windows, 4));
  column[9] = 0, row[9] = -1;
  CHECK(rlx2::TakeWindows(ring, windows, 4));
  std::vector<float> moved[2][3];
  int32_t steps = 6, next = 0;
  const float step_size = 0.1f;
  for (int64_t threads : {1, 4}) {
    auto& to = moved[threads > 1];
    for (auto& v : to) v.resize(count);
    rlx2::AdamStep({count, 0.9f, 0.999f, 0.1f, 0.001f, 1e-8f, &step_size, &steps, partial.data(), bootstrap.data(), weight.data(),
                    partial.data(), to[0].data(), to[1].data(), to[2].data(), &next}, threads);
    CHECK(next == 7);
    for (int64_t i = 0; i < count; ++i) {
      const double g = bootstrap[i], mu = 0.9 * weight[i] + 0.1 * g, nu = 0.999 * partial[i] + 0.001 * g * g;
      const double step = mu / (1 - std::pow(0.9, 7)) / (std::sqrt(nu / (1 - std::pow(0.999, 7))) + 1e-8);
      CHECK(std::fabs(to[0][i] - (partial[i] - 0.1 * step)) < 1e-4);
    }
  }
  for (int v = 0; v < 3; ++v) CHECK(moved[0][v] == moved[1][v]);
  const uint32_t key[2] = {3, 5};
  rlx2::ThreefryBits(key, count, bits.data(), 4);
  rlx2::ThreefryBits(key, count, alone.data(), 1);
  CHECK(bits == alone);
  std::vector<uint32_t> numbers(count), keys(2 * count);
  std::iota(numbers.begin(), numbers.end(), 0u);
  rlx2::ThreefryKeys(key, numbers.data(), count, keys.data());
  for (int64_t i = 0; i < count; ++i) CHECK((keys[2 * i] ^ keys[2 * i + 1]) == bits[i]);
}

// The `count` largest by sorting, among equals the first.
std::vector<char> Largest(const std::vector<float>& score, const std::vector<char>& may, int64_t count) {
  std::vector<int64_t> order;
  for (size_t i = 0; i < score.size(); ++i) {
    if (may[i]) order.push_back(i);
  }
  const auto better = [&](int64_t a, int64_t b) { return score[b] != score[b] ? score[a] == score[a] : score[a] > score[b]; };
  std::stable_sort(order.begin(), order.end(), better);
  std::vector<char> chosen(score.size());
  for (int64_t i = 0; i < count && i < static_cast<int64_t>(order.size()); ++i) chosen[order[i]] = 1;
  return chosen;
}

void TestTopology() {
  std::mt19937 random(3);
  for (const int64_t size : {0, 1, 7, 32, 33, 1000, 5000, 200000}) {
    for (int kind = 0; kind < 3; ++kind) {
      std::vector<float> weight(size), score(size);
      std::vector<char> on(size), all(size, 1);
      for (int64_t i = 0; i < size; ++i) {
        // Ties; many zeros; the largest at the end, where a sample is misled least.
        weight[i] = kind == 0 ? static_cast<float>(random() % 7) - 3 : std::normal_distribution<float>()(random);
        score[i] = kind == 1 ? (random() % 50 ? 0.0f : NAN) : static_cast<float>(i % 977) - 400;
        on[i] = random() % 10 < 3;
      }
      const std::vector<char> mask = on;
      const int64_t active = std::count(on.begin(), on.end(), 1);
      for (const int64_t threads : {1, 4}) {
        Array<bool> marks(size), out(size);
        // Any byte but 0 is a mark.
        for (int64_t i = 0; i < size; ++i) std::memset(marks.get() + i, mask[i] * (1 + i % 255), 1);
        for (const int64_t count : {int64_t{-1}, int64_t{0}, size / 3, size, size + 1}) {
          rlx2::TopLinks(score.data(), nullptr, size, count, out.get(), threads);
          std::vector<char> expected = Largest(score, all, count);
          for (int64_t i = 0; i < size; ++i) CHECK(out[i] == static_cast<bool>(expected[i]));
          rlx2::TopLinks(score.data(), marks.get(), size, count, out.get(), threads);
          expected = Largest(score, mask, count);
          for (int64_t i = 0; i < size; ++i) CHECK(out[i] == static_cast<bool>(expected[i]));
        }
        const float fraction = 0.3f;
        const int32_t target = -1;
        rlx2::Exchange event;
        event.size = size, event.mask = marks.get(), event.drop = weight.data(), event.grow = score.data();
        event.fraction = &fraction, event.target = &target, event.drop_sizes = event.grow_sizes = true;
        event.next = out.get();
        rlx2::ExchangeLinks(event, threads);
        std::vector<float> drop(size), grow(size);
        for (int64_t i = 0; i < size; ++i) drop[i] = std::fabs(weight[i]), grow[i] = score[i] != score[i] ? 0 : std::fabs(score[i]);
        const int64_t moved = static_cast<int64_t>(std::floor(fraction * static_cast<float>(active)));
        std::vector<char> kept = Largest(drop, mask, active - moved), others(size);
        for (int64_t i = 0; i < size; ++i) others[i] = !kept[i];
        const std::vector<char> grown = Largest(grow, others, moved);
        for (int64_t i = 0; i < size; ++i) CHECK(out[i] == static_cast<bool>(kept[i] | grown[i]));
      }
    }
  }
}

void TestIndices() {
  std::mt19937 random(5);
  for (const auto& [in, out] : {std::pair<int64_t, int64_t>{7, 5}, {1, 1}, {0, 3}, {3, 0}, {20, 30}}) {
    for (const auto& [spare, may] : {std::pair{-1, true}, {0, false}, {0, true}, {4, false}, {4, true}}) {
      Array<bool> mask(in * out);
      int64_t links = 0;
      for (int64_t i = 0; i < in * out; ++i) links += mask[i] = random() % 3 == 0;
      const int64_t capacity = links + spare;
      if (capacity < 0) continue;
      std::vector<int32_t> row_start(out + 1), inputs(capacity), column_start(in + 1), outputs(capacity), order(capacity);
      const bool fits = rlx2::IndexLinks({in, out, capacity, may, mask.get(), row_start.data(), inputs.data(), column_start.data(), outputs.data(), order.data()});
      CHECK(fits == (spare == 0 || (spare > 0 && may)));
      if (!fits) continue;
      CHECK(row_start[out] == links && column_start[in] == links);
      int64_t k = 0;
      for (int64_t o = 0; o < out; ++o) {
        for (int64_t i = 0; i < in; ++i) {
          if (mask[i * out + o]) CHECK(inputs[k++] == i);
        }
      }
      k = 0;
      for (int64_t i = 0; i < in; ++i) {
        for (int64_t o = 0; o < out; ++o) {
          if (mask[i * out + o]) CHECK(outputs[k] == o && inputs[order[k++]] == i);
        }
      }
      for (; k < capacity; ++k) CHECK(inputs[k] == in && outputs[k] == out && order[k] == k);
    }
  }
}

}  // namespace

int main() {
  TestData();
  TestAgainstLoops();
  TestManyCallers();
  TestRefusals();
  TestTopology();
  TestIndices();
  std::puts("ok");
}
