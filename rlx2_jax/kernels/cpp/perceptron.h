// Sparse ReLU perceptrons: the products behind `rlx2_jax.kernels.perceptron`.
//
// One task is one tile of TILE samples of one network carried forward through all layers, or one group of tiles carried
// backward, so that what it works on stays in its core's cache. Inside a tile everything is feature-major,
//
//     tile:  feature 0 [TILE samples]  feature 1 [TILE samples]  ...      inputs first, then each hidden layer
//
// so that a link is one multiply-add of whole vectors whatever it connects. The matrices are stored by output
// (row_start, inputs, values) and, for the backward pass, again by input (column_start, outputs, order), where `order`
// says where in `values` a link stands.

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

// One matrix and bias of one network. Pointers a call does not need are null.
struct Layer {
  int64_t in = 0, out = 0, links = 0;
  const float* values = nullptr;          // [links], by output
  const float* bias = nullptr;            // [out]
  const int32_t* row_start = nullptr;     // [out + 1]
  const int32_t* inputs = nullptr;        // [links]
  const int32_t* column_start = nullptr;  // [in + 1]
  const int32_t* outputs = nullptr;       // [links], by input
  const int32_t* order = nullptr;         // [links]
};

// An array whose features are some of a network's inputs; the first layer takes them one array after the other.
struct Input {
  int64_t size = 0;
  const float* x = nullptr;  // [batch, size]
  float* dx = nullptr;       // [batch, size], or null if not wanted
};

struct Network {
  int64_t depth = 0, batch = 0, arrays = 0;
  Layer layers[kMaxDepth];
  Input inputs[kMaxInputs];
  float* y = nullptr;             // [batch, out]
  float* activations = nullptr;   // [tiles][features][TILE]; forward writes it if there, backward reads it
  const float* dy = nullptr;      // [batch, out]
  float* gradient = nullptr;      // [parameters], or null if not wanted
  float* partial = nullptr;       // [groups - 1][parameters]: what the groups after the first add to it

  int64_t tiles() const { return (batch + kTile - 1) / kTile; }
  int64_t groups() const { return (tiles() + kGroup - 1) / kGroup; }
  // Rows of a tile of activations: the inputs and every hidden unit.
  int64_t features() const {
    int64_t n = 0;
    for (int64_t l = 0; l < depth; ++l) n += layers[l].in;
    return n;
  }
  // Every layer's outputs: rows of a tile of deltas, and the number of biases.
  int64_t outputs() const {
    int64_t n = 0;
    for (int64_t l = 0; l < depth; ++l) n += layers[l].out;
    return n;
  }
  int64_t links() const {
    int64_t n = 0;
    for (int64_t l = 0; l < depth; ++l) n += layers[l].links;
    return n;
  }
  int64_t parameters() const { return links() + outputs(); }

  // Finds the values and biases in an array of those of each layer in turn.
  void set_parameters(const float* parameters) {
    for (int64_t l = 0; l < depth; ++l) {
      layers[l].values = parameters;
      layers[l].bias = parameters + layers[l].links;
      parameters += layers[l].links + layers[l].out;
    }
  }
};

// The tasks, for one instruction set.
struct Kernels {
  const char* name;
  // The samples of one tile through all layers. Scratch: a tile of activations where the network keeps none, and a row
  // for each output.
  void (*forward)(const Network&, int64_t tile, float* scratch);
  // The samples of one group back through all layers, to dx and the group's gradients. Scratch: a row for each input,
  // and for each tile of the group one for every layer's outputs.
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
const Kernels* const* Available();

// All of it, for `count` networks of one shape: check the indices, then share the tasks among up to `threads` threads.
// What comes out does not depend on how many there are. Returns what is wrong with the indices, or null.
const char* Forward(const Kernels& kernels, const Network* networks, int64_t count, int64_t threads);
const char* Backward(const Kernels& kernels, const Network* networks, int64_t count, int64_t threads);

}  // namespace rlx2

#endif  // RLX2_JAX_PERCEPTRON_H_
