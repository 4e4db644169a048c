// Sparse ReLU perceptrons: the products behind `rlx2_jax.kernels.perceptron`.
//
// One task is one tile of TILE samples of one network carried forward through all layers, or one group of tiles carried
// backward, so that what it works on stays in its core's cache. Inside a tile everything is feature-major,
//
//     tile:  feature 0 [TILE samples]  feature 1 [TILE samples]  ...      inputs first, then each hidden layer
//
// so that a link is one multiply-add of whole vectors whatever it connects. The matrices are stored by output
// (row_start, inputs, values) and, for the backward pass, again by input (column_start, outputs, order), where `order`
// says where in `values` a link stands. There may be room for more links than there are: how many there are is where
// row_start and column_start end, and what stands past that is spare, is not looked at, and has a gradient of zero.
//
// A normalised network has layer normalisation after the matrix and bias of each hidden layer, before its ReLU. It
// keeps what the normalisation gives before scale and offset, from which a group's backward pass makes the activations
// again, and one more row a layer, 1 / the standard deviation:
//
//     kept:  inputs   normalised of hidden layer 1, 1 / deviation   normalised of hidden layer 2, 1 / deviation   ...

#ifndef RLX2_JAX_PERCEPTRON_H_
#define RLX2_JAX_PERCEPTRON_H_

#include <cstdint>

#include "data.h"

namespace rlx2 {

inline constexpr int64_t kTile = 64;
// Tiles whose weight gradients are summed at once: enough to make the sums cheap, few enough to stay in cache.
inline constexpr int64_t kGroup = 2;
inline constexpr int64_t kMaxDepth = 16;
inline constexpr int64_t kMaxInputs = 4;

// What is added to a variance before its root is taken.
inline constexpr float kEpsilon = 1e-6f;

// One matrix and bias of one network, and what scales and shifts what they give once it is normalised. Pointers a call
// does not need are null.
struct Layer {
  int64_t in = 0, out = 0, capacity = 0;
  const float* values = nullptr;          // [capacity], by output
  const float* bias = nullptr;            // [out]
  const float* scale = nullptr;           // [out], of hidden layers of normalised networks
  const float* offset = nullptr;          // [out], likewise
  const int32_t* row_start = nullptr;     // [out + 1]
  const int32_t* inputs = nullptr;        // [capacity]
  const int32_t* column_start = nullptr;  // [in + 1]
  const int32_t* outputs = nullptr;       // [capacity], by input
  const int32_t* order = nullptr;         // [capacity]

  int64_t links() const { return row_start[out]; }
};

// An array whose features are some of a network's inputs; the first layer takes them one array after the other.
struct Input {
  int64_t size = 0;
  const float* x = nullptr;  // [batch, size]
  float* dx = nullptr;       // [batch, size], or null if not wanted
};

struct Network {
  int64_t depth = 0, batch = 0, arrays = 0;
  bool normalised = false;
  Layer layers[kMaxDepth];
  Input inputs[kMaxInputs];
  float* y = nullptr;             // [batch, out]
  float* activations = nullptr;   // [tiles][kept][TILE]; forward writes it if there, backward reads it
  const float* dy = nullptr;      // [batch, out]
  float* gradient = nullptr;      // [parameters], or null if not wanted
  float* partial = nullptr;       // [groups - 1][parameters]: what the groups after the first add to it

  int64_t tiles() const { return (batch + kTile - 1) / kTile; }
  int64_t groups() const { return (tiles() + kGroup - 1) / kGroup; }
  // Rows of what a tile is while it is worked on: the inputs and every hidden unit.
  int64_t features() const {
    int64_t n = 0;
    for (int64_t l = 0; l < depth; ++l) n += layers[l].in;
    return n;
  }
  // Units that are normalised: every hidden one, or none.
  int64_t normalised_units() const { return normalised ? features() - layers[0].in : 0; }
  // Rows of what is kept of a tile for the backward pass.
  int64_t kept() const { return features() + (normalised ? depth - 1 : 0); }
  // Every layer's outputs: rows of a tile of deltas, and the number of biases.
  int64_t outputs() const {
    int64_t n = 0;
    for (int64_t l = 0; l < depth; ++l) n += layers[l].out;
    return n;
  }
  int64_t links() const {
    int64_t n = 0;
    for (int64_t l = 0; l < depth; ++l) n += layers[l].links();
    return n;
  }
  int64_t parameters() const {
    int64_t n = outputs() + 2 * normalised_units();
    for (int64_t l = 0; l < depth; ++l) n += layers[l].capacity;
    return n;
  }

  // Finds the values and biases, and the scales and offsets that follow, in an array of those of each layer in turn.
  void set_parameters(const float* parameters) {
    for (int64_t l = 0; l < depth; ++l) {
      Layer& layer = layers[l];
      layer.values = parameters;
      layer.bias = layer.values + layer.capacity;
      parameters = layer.bias + layer.out;
      if (normalised && l < depth - 1) {
        layer.scale = parameters;
        layer.offset = layer.scale + layer.out;
        parameters = layer.offset + layer.out;
      }
    }
  }
};

// The tasks, for one instruction set.
struct Kernels {
  const char* name;
  // The samples of one tile through all layers. Scratch: a row for each feature, of a network that keeps none, and for
  // each output.
  void (*forward)(const Network&, int64_t tile, float* scratch);
  // The samples of one group back through all layers, to dx and the group's gradients. Scratch: a row for each input,
  // and for each tile of the group one for every layer's outputs and every normalised unit.
  void (*backward)(const Network&, int64_t group, float* scratch);
  // gradient += partial.
  void (*sum_groups)(const Network&);
  // One step of Adam on elements first to end - 1 (see data.h).
  void (*adam)(const Adam&, float correction1, float correction2, int64_t first, int64_t end);
  // Random words number first to first + count - 1 of a key (see data.h).
  void (*threefry)(const uint32_t key[2], int64_t first, int64_t count, uint32_t* out);
  // Why the indices of a matrix cannot be used, or null.
  const char* (*check_by_output)(const Layer&);
  const char* (*check_by_input)(const Layer&);
};

// Implementations this processor can run, best first; null-terminated.
const Kernels* const* SupportedKernels();

// All of it, for `count` networks of one shape: check the indices, then share the tasks among up to `threads` threads.
// What comes out does not depend on how many there are. Returns what is wrong with the indices, or null.
const char* Forward(const Kernels& kernels, const Network* networks, int64_t count, int64_t threads);
const char* Backward(const Kernels& kernels, const Network* networks, int64_t count, int64_t threads);

}  // namespace rlx2

#endif  // RLX2_JAX_PERCEPTRON_H_
