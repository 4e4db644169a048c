// Sparse ReLU perceptrons: the products behind `rlx2_jax.kernels.perceptron`.
//
// One task is one tile of TILE samples of one network, carried through all layers while its activations stay in
// cache; or, for the weight gradients, a range of one network's links. Inside a tile everything is feature-major,
//
//     tile:  feature 0 [TILE samples]  feature 1 [TILE samples]  ...      inputs first, then each hidden layer
//
// so that a link is one multiply-add of whole vectors whatever it connects. The matrices are stored by output
// (row_start, inputs, values) and, for the backward pass, again by input (column_start, outputs, order), where `order`
// says where in `values` a link stands.

#ifndef RLX2_JAX_PERCEPTRON_H_
#define RLX2_JAX_PERCEPTRON_H_

#include <cstdint>

namespace rlx2 {

inline constexpr int64_t kTile = 64;
inline constexpr int64_t kMaxDepth = 16;

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
  float* values_gradient = nullptr;       // [links]
  float* bias_gradient = nullptr;         // [out]
};

struct Network {
  int64_t depth = 0, batch = 0;
  Layer layers[kMaxDepth];
  const float* x = nullptr;       // [batch, in]
  float* y = nullptr;             // [batch, out]
  float* activations = nullptr;   // [tiles][features][TILE]; forward writes it if there, backward reads it
  const float* dy = nullptr;      // [batch, out]
  float* deltas = nullptr;        // [tiles][outputs of all layers][TILE]: scratch of the backward pass
  float* dx = nullptr;            // [batch, in], or null if not wanted

  int64_t tiles() const { return (batch + kTile - 1) / kTile; }
  // Rows of a tile of activations: the inputs and every hidden unit.
  int64_t features() const {
    int64_t n = 0;
    for (int64_t l = 0; l < depth; ++l) n += layers[l].in;
    return n;
  }
  // Rows of a tile of deltas: every layer's outputs.
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
};

// Networks of one shape, their operands one after the other where those of `first` point.
struct Networks {
  Network first;
  int64_t count = 1;
  const float* parameters = nullptr;  // [count][values and bias of each layer in turn]
  float* gradient = nullptr;          // likewise, or null if not wanted
};

// The tasks, for one instruction set.
struct Kernels {
  const char* name;
  // Samples of one tile through all layers. `scratch` holds a tile of activations where the network keeps none, and
  // in any case `layers[depth - 1].out` more rows for the output.
  void (*forward)(const Network&, int64_t tile, float* scratch);
  // dLoss/d(pre-activation) of every layer, and dx, for one tile.
  void (*backward)(const Network&, int64_t tile, float* scratch);
  // Gradients of the links first_link <= link < last_link (counted over all layers) in whole rows, and of their biases.
  void (*weights)(const Network&, int64_t first_link, int64_t last_link);
  // Why the indices of a matrix cannot be used, or null.
  const char* (*check_by_output)(const Layer&);
  const char* (*check_by_input)(const Layer&);
};

// Implementations this processor can run, best first; null-terminated.
const Kernels* const* Available();

// All of it: check the indices, then share the tasks among up to `threads` threads. What comes out does not depend on
// how many there are. Returns what is wrong with the indices, or null.
const char* Forward(const Kernels& kernels, const Networks& networks, int64_t threads);
const char* Backward(const Kernels& kernels, const Networks& networks, int64_t threads);

}  // namespace rlx2

#endif  // RLX2_JAX_PERCEPTRON_H_
