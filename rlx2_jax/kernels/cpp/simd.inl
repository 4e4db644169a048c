// The work for one instruction set: included once per set by perceptron.cc, inside a namespace of its own and with
// LANES set. Vectors are the compiler's generic ones, so the same text serves every processor.

typedef float Vec __attribute__((vector_size(LANES * 4), may_alias));
typedef int32_t Mask __attribute__((vector_size(LANES * 4), may_alias));

constexpr int kVectors = kTile / LANES;

static inline Vec Splat(float value) { return Vec{} + value; }
static inline Vec Load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
static inline void Store(float* p, Vec value) { *reinterpret_cast<Vec*>(p) = value; }

// Sums of the lanes of four vectors. Halves are added until four lanes are left of each, which are then transposed.
typedef float Four __attribute__((vector_size(16)));

static inline Four Fold(Vec v) {
#if LANES == 16
  const auto half = RLX2_HALF(v, 0, 8) + RLX2_HALF(v, 1, 8);
  return RLX2_HALF(half, 0, 4) + RLX2_HALF(half, 1, 4);
#elif LANES == 8
  return RLX2_HALF(v, 0, 4) + RLX2_HALF(v, 1, 4);
#else
  return v;
#endif
}

static inline Four Sums(Vec v0, Vec v1, Vec v2, Vec v3) {
  const Four a = Fold(v0), b = Fold(v1), c = Fold(v2), d = Fold(v3);
  const Four ab = RLX2_SHUFFLE(a, b, 0, 4, 1, 5) + RLX2_SHUFFLE(a, b, 2, 6, 3, 7);
  const Four cd = RLX2_SHUFFLE(c, d, 0, 4, 1, 5) + RLX2_SHUFFLE(c, d, 2, 6, 3, 7);
  return RLX2_SHUFFLE(ab, cd, 0, 1, 4, 5) + RLX2_SHUFFLE(ab, cd, 2, 3, 6, 7);
}

static inline float Sum(Vec v) {
  const Four four = Fold(v);
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// ReLU that lets NaN through.
static inline Vec Relu(Vec v) { return reinterpret_cast<Vec>(reinterpret_cast<Mask>(v) & ~(v < 0.0f)); }

// `v` where the unit is open, and else zero.
static inline Vec Where(Mask open, Vec v) { return reinterpret_cast<Vec>(reinterpret_cast<Mask>(v) & open); }

static inline Vec InverseRoot(Vec v) {
  for (int i = 0; i < LANES; ++i) v[i] = 1.0f / __builtin_sqrtf(v[i]);
  return v;
}

// rows [count][TILE] <- samples [samples, count], and beyond the last sample itself again, or zeros.
template <bool again>
static inline void ToRows(const float* samples, int64_t present, int64_t count, float* rows) {
  for (int64_t f = 0; f < count; ++f) {
    float* row = rows + f * kTile;
    for (int64_t b = 0; b < present; ++b) row[b] = samples[b * count + f];
    for (int64_t b = present; b < kTile; ++b) row[b] = again ? row[present - 1] : 0.0f;
  }
}

static inline void FromRows(const float* rows, int64_t present, int64_t count, float* samples) {
  for (int64_t b = 0; b < present; ++b) {
    for (int64_t f = 0; f < count; ++f) samples[b * count + f] = rows[f * kTile + b];
  }
}

static inline int64_t Present(const Network& net, int64_t tile) {
  const int64_t left = net.batch - tile * kTile;
  return left < kTile ? left : kTile;
}

// y <- the matrix and bias of a layer, and the ReLU after a hidden one that is not normalised.
static inline void Affine(const Layer& layer, bool relu, const float* x, float* y) {
  for (int64_t o = 0; o < layer.out; ++o) {
    Vec sum[kVectors];
    for (int v = 0; v < kVectors; ++v) sum[v] = Splat(layer.bias[o]);
    for (int32_t k = layer.row_start[o]; k < layer.row_start[o + 1]; ++k) {
      const Vec weight = Splat(layer.values[k]);
      const float* row = x + static_cast<int64_t>(layer.inputs[k]) * kTile;
      for (int v = 0; v < kVectors; ++v) sum[v] += weight * Load(row + v * LANES);
    }
    for (int v = 0; v < kVectors; ++v) Store(y + o * kTile + v * LANES, relu ? Relu(sum[v]) : sum[v]);
  }
}

// y <- ReLU(scale * normalised y + offset) over a layer's units, in place. What is normalised is kept, if there is
// where, and after it 1 / the standard deviation.
static void Normalise(const Layer& layer, float* y, float* kept) {
  const Vec units = Splat(static_cast<float>(layer.out));
  Vec mean[kVectors], variance[kVectors], inverse[kVectors];
  for (int v = 0; v < kVectors; ++v) mean[v] = variance[v] = Vec{};
  for (int64_t o = 0; o < layer.out; ++o) {
    for (int v = 0; v < kVectors; ++v) mean[v] += Load(y + o * kTile + v * LANES);
  }
  for (int v = 0; v < kVectors; ++v) mean[v] /= units;
  for (int64_t o = 0; o < layer.out; ++o) {
    for (int v = 0; v < kVectors; ++v) {
      const Vec centred = Load(y + o * kTile + v * LANES) - mean[v];
      variance[v] += centred * centred;
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    inverse[v] = InverseRoot(variance[v] / units + Splat(kEpsilon));
    if (kept) Store(kept + layer.out * kTile + v * LANES, inverse[v]);
  }
  for (int64_t o = 0; o < layer.out; ++o) {
    const Vec scale = Splat(layer.scale[o]), offset = Splat(layer.offset[o]);
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = o * kTile + v * LANES;
      const Vec normal = (Load(y + at) - mean[v]) * inverse[v];
      if (kept) Store(kept + at, normal);
      Store(y + at, Relu(scale * normal + offset));
    }
  }
}

static void Forward(const Network& net, int64_t tile, float* scratch) {
  const int64_t features = net.features(), present = Present(net, tile);
  float* const kept = net.activations ? net.activations + tile * net.kept() * kTile : nullptr;
  // What goes from layer to layer is what is kept, unless that is what was normalised.
  const bool keeps_units = kept && !net.normalised;
  float* x = kept ? kept : scratch;
  float* const out_rows = keeps_units ? scratch : scratch + features * kTile;
  float* rows = x;
  for (int64_t a = 0; a < net.arrays; ++a) {
    const Input& input = net.inputs[a];
    // A gradient of zero times what no sample has, such as infinity for zeros, would not be zero.
    ToRows<true>(input.x + tile * kTile * input.size, present, input.size, rows);
    rows += input.size * kTile;
  }
  float* hidden = (keeps_units ? kept : scratch) + net.layers[0].in * kTile;
  float* normal = kept ? kept + net.layers[0].in * kTile : nullptr;
  for (int64_t l = 0; l < net.depth; ++l) {
    const Layer& layer = net.layers[l];
    const bool last = l == net.depth - 1;
    float* y = last ? out_rows : hidden;
    Affine(layer, !last && !net.normalised, x, y);
    if (!last && net.normalised) {
      Normalise(layer, y, normal);
      if (normal) normal += (layer.out + 1) * kTile;
    }
    hidden += layer.out * kTile;
    x = y;
  }
  const int64_t out = net.layers[net.depth - 1].out;
  FromRows(out_rows, present, out, net.y + tile * kTile * out);
}

// Gradients of units first to end - 1 of a layer's inputs in one tile, through its links by input. With `x`, the units'
// activations, those before a ReLU.
static void Transposed(const Layer& layer, int64_t first, int64_t end, const float* dy, const float* x, float* dx) {
  for (int64_t i = first; i < end; ++i) {
    Vec sum[kVectors];
    for (int v = 0; v < kVectors; ++v) sum[v] = Vec{};
    for (int32_t k = layer.column_start[i]; k < layer.column_start[i + 1]; ++k) {
      const Vec weight = Splat(layer.values[layer.order[k]]);
      const float* row = dy + static_cast<int64_t>(layer.outputs[k]) * kTile;
      for (int v = 0; v < kVectors; ++v) sum[v] += weight * Load(row + v * LANES);
    }
    for (int v = 0; v < kVectors; ++v) {
      if (x) sum[v] = Where(Load(x + i * kTile + v * LANES) > 0.0f, sum[v]);
      Store(dx + i * kTile + v * LANES, sum[v]);
    }
  }
}

// Back through the ReLU and normalisation of a layer in one tile: its deltas, in place, from the gradients of its
// activations. With `gradient`, that of all parameters, also the activations x, which Weights takes, and the tile's
// part of the gradients of scale and offset, which is written or, with `add`, added.
static void Denormalise(const Network& net, const Layer& layer, const float* normal, float* deltas, float* x,
                        float* gradient, bool add) {
  const Vec units = Splat(static_cast<float>(layer.out));
  Vec mean[kVectors], slope[kVectors];
  for (int v = 0; v < kVectors; ++v) mean[v] = slope[v] = Vec{};
  for (int64_t o = 0; o < layer.out; ++o) {
    const Vec scale = Splat(layer.scale[o]), offset = Splat(layer.offset[o]);
    Vec scale_sum = Vec{}, offset_sum = Vec{};
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = o * kTile + v * LANES;
      const Vec n = Load(normal + at), unit = scale * n + offset, delta = Where(unit > 0.0f, Load(deltas + at));
      if (gradient) Store(x + at, Relu(unit));
      scale_sum += delta * n;
      offset_sum += delta;
      const Vec scaled = scale * delta;
      Store(deltas + at, scaled);
      mean[v] += scaled;
      slope[v] += scaled * n;
    }
    if (gradient) {
      const Four sums = Sums(scale_sum, offset_sum, Vec{}, Vec{});
      float* const of_scale = gradient + (layer.scale + o - net.layers[0].values);
      float* const of_offset = gradient + (layer.offset + o - net.layers[0].values);
      *of_scale = sums[0] + (add ? *of_scale : 0.0f);
      *of_offset = sums[1] + (add ? *of_offset : 0.0f);
    }
  }
  for (int v = 0; v < kVectors; ++v) mean[v] /= units, slope[v] /= units;
  const float* inverse = normal + layer.out * kTile;
  for (int64_t o = 0; o < layer.out; ++o) {
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = o * kTile + v * LANES;
      Store(deltas + at, Load(inverse + v * LANES) * (Load(deltas + at) - mean[v] - slope[v] * Load(normal + at)));
    }
  }
}

// Deltas, dLoss/d(pre-activation), of every layer of one tile, in the order of the layers; and what is wanted of dx. Of
// a normalised network, with `gradient`, also what Denormalise makes, the activations in the order of the layers.
static void Deltas(const Network& net, int64_t tile, float* deltas, float* dx_rows, float* hidden, float* gradient,
                   bool add) {
  const int64_t present = Present(net, tile);
  const Layer& top = net.layers[net.depth - 1];
  const float* kept = net.activations + (tile + 1) * net.kept() * kTile;
  float* own = deltas + (net.outputs() - top.out) * kTile;
  hidden += net.normalised_units() * kTile;
  ToRows<false>(net.dy + tile * kTile * top.out, present, top.out, own);
  for (int64_t l = net.depth - 1; l > 0; --l) {
    const Layer& layer = net.layers[l];
    const float* dy = own;
    own -= layer.in * kTile;
    kept -= (layer.in + net.normalised) * kTile;
    if (net.normalised) {
      hidden -= layer.in * kTile;
      Transposed(layer, 0, layer.in, dy, nullptr, own);
      Denormalise(net, net.layers[l - 1], kept, own, hidden, gradient, add);
    } else {
      Transposed(layer, 0, layer.in, dy, kept, own);
    }
  }
  int64_t first = 0;
  for (int64_t a = 0; a < net.arrays; ++a) {
    const Input& input = net.inputs[a];
    if (input.dx) {
      Transposed(net.layers[0], first, first + input.size, deltas, nullptr, dx_rows);
      FromRows(dx_rows + first * kTile, present, input.size, input.dx + tile * kTile * input.size);
    }
    first += input.size;
  }
}

// Gradients of N links of one output: N dot products over a group's samples at once. With `bias`, its gradient too.
template <int N, bool bias>
static inline void Dots(const float* x, const float* dy, int64_t tiles, int64_t x_stride, int64_t dy_stride,
                        const int32_t* inputs, float* gradient, float* bias_gradient) {
  Vec sum[N + 1];
  const float* rows[N + 1];
  sum[N] = Vec{};
  for (int n = 0; n < N; ++n) {
    sum[n] = Vec{};
    rows[n] = x + static_cast<int64_t>(inputs[n]) * kTile;
  }
  for (int64_t t = 0; t < tiles; ++t) {
    for (int v = 0; v < kVectors; ++v) {
      const Vec d = Load(dy + t * dy_stride + v * LANES);
      for (int n = 0; n < N; ++n) sum[n] += d * Load(rows[n] + t * x_stride + v * LANES);
      if (bias) sum[N] += d;
    }
  }
  int n = 0;
  for (; n + 4 <= N; n += 4) {
    const Four sums = Sums(sum[n], sum[n + 1], sum[n + 2], sum[n + 3]);
    __builtin_memcpy(gradient + n, &sums, sizeof(sums));
  }
  for (; n < N; ++n) gradient[n] = Sum(sum[n]);
  if (bias) *bias_gradient = Sum(sum[N]);
}

// The gradient of values and biases from what is kept of `tiles` tiles, and their deltas; of a normalised network, from
// its hidden units' activations, too.
static void Weights(const Network& net, const float* kept, const float* hidden, const float* deltas, int64_t tiles,
                    float* gradient) {
  const int64_t dy_stride = net.outputs() * kTile;
  int64_t x_stride = net.kept() * kTile;
  const float* x = kept;
  const float* dy = deltas;
  for (int64_t l = 0; l < net.depth; ++l) {
    const Layer& layer = net.layers[l];
    if (net.normalised && l == 1) x = hidden, x_stride = net.normalised_units() * kTile;
    float* bias_gradient = gradient + layer.capacity;
    for (int64_t o = 0; o < layer.out; ++o) {
      const auto dots = [&](auto count, auto bias, int64_t k) {
        Dots<decltype(count)::value, decltype(bias)::value>(x, dy + o * kTile, tiles, x_stride, dy_stride,
                                                            layer.inputs + k, gradient + k, bias_gradient + o);
      };
      const int64_t end = layer.row_start[o + 1];
      int64_t k = layer.row_start[o];
      for (; k + 8 < end; k += 8) dots(Constant<int, 8>{}, Constant<bool, false>{}, k);
      // The last one to eight links, or none, with the bias.
      switch (end - k) {
        case 8: dots(Constant<int, 8>{}, Constant<bool, true>{}, k); break;
        case 7: dots(Constant<int, 7>{}, Constant<bool, true>{}, k); break;
        case 6: dots(Constant<int, 6>{}, Constant<bool, true>{}, k); break;
        case 5: dots(Constant<int, 5>{}, Constant<bool, true>{}, k); break;
        case 4: dots(Constant<int, 4>{}, Constant<bool, true>{}, k); break;
        case 3: dots(Constant<int, 3>{}, Constant<bool, true>{}, k); break;
        case 2: dots(Constant<int, 2>{}, Constant<bool, true>{}, k); break;
        case 1: dots(Constant<int, 1>{}, Constant<bool, true>{}, k); break;
        default: dots(Constant<int, 0>{}, Constant<bool, true>{}, k); break;
      }
    }
    for (int64_t k = layer.links(); k < layer.capacity; ++k) gradient[k] = 0.0f;
    gradient = bias_gradient + (layer.scale ? 3 : 1) * layer.out;
    x += layer.in * kTile;
    dy += layer.out * kTile;
  }
}

static void Backward(const Network& net, int64_t group, float* scratch) {
  const int64_t first = group * kGroup, left = net.tiles() - first, tiles = left < kGroup ? left : kGroup;
  float* const deltas = scratch + net.layers[0].in * kTile;
  float* const hidden = deltas + kGroup * net.outputs() * kTile;
  float* const gradient = !net.gradient || group == 0 ? net.gradient : net.partial + (group - 1) * net.parameters();
  for (int64_t t = 0; t < tiles; ++t) {
    Deltas(net, first + t, deltas + t * net.outputs() * kTile, scratch, hidden + t * net.normalised_units() * kTile,
           gradient, t > 0);
  }
  if (gradient) Weights(net, net.activations + first * net.kept() * kTile, hidden, deltas, tiles, gradient);
}

static void SumGroups(const Network& net) {
  const int64_t parameters = net.parameters();
  for (int64_t g = 1; g < net.groups(); ++g) {
    const float* group = net.partial + (g - 1) * parameters;
    for (int64_t i = 0; i < parameters; ++i) net.gradient[i] += group[i];
  }
}

// Results overlap nothing: without the compiler knowing, it would not make vectors.
static void AdamStep(const Adam& adam, float correction1, float correction2, int64_t first, int64_t end) {
  const auto loop = [&](const float* gradient, const float* parameters, const float* mu, const float* nu,
                        float* __restrict next_parameters, float* __restrict next_mu, float* __restrict next_nu) {
    const float b1 = adam.b1, b2 = adam.b2, rest1 = adam.rest1, rest2 = adam.rest2, epsilon = adam.epsilon;
    const float step = *adam.step_size / correction1, scale = 1 / correction2;
    for (int64_t i = first; i < end; ++i) {
      const float g = gradient[i], m = b1 * mu[i] + rest1 * g, n = b2 * nu[i] + rest2 * (g * g);
      next_mu[i] = m;
      next_nu[i] = n;
      next_parameters[i] = parameters[i] - step * m / (__builtin_sqrtf(scale * n) + epsilon);
    }
  };
  loop(adam.gradient, adam.parameters, adam.mu, adam.nu, adam.next_parameters, adam.next_mu, adam.next_nu);
}

// Every block takes the same rounds, so the compiler makes vectors of blocks.
static void Threefry(const uint32_t key[2], int64_t first, int64_t count, uint32_t* out) {
  const ThreefrySchedule schedule(key);
  for (int64_t i = 0; i < count; ++i) {
    uint32_t a, b;
    ThreefryBlock(schedule, static_cast<uint64_t>(first + i), &a, &b);
    out[i] = a ^ b;
  }
}

// One pass without branches inside, so that checking costs next to nothing.
static inline bool InRange(const int32_t* index, int64_t count, int64_t size) {
  uint32_t largest = 0;
  for (int64_t k = 0; k < count; ++k) {
    const uint32_t value = static_cast<uint32_t>(index[k]);
    largest = value > largest ? value : largest;
  }
  return count == 0 || static_cast<int64_t>(largest) < size;
}

static inline bool IsOffsets(const int32_t* start, int64_t rows) {
  int decreases = 0;
  for (int64_t r = 0; r < rows; ++r) decreases |= start[r] > start[r + 1];
  return !decreases && start[0] == 0;
}

static const char* CheckByOutput(const Layer& layer) {
  if (!IsOffsets(layer.row_start, layer.out) || layer.links() > layer.capacity) {
    return "row_start does not run from 0 to a number of links that there is room for";
  }
  if (!InRange(layer.inputs, layer.links(), layer.in)) return "an index in inputs is out of range";
  return nullptr;
}

// Of a matrix that was checked by output.
static const char* CheckByInput(const Layer& layer) {
  const int64_t links = layer.links();
  if (!IsOffsets(layer.column_start, layer.in) || layer.column_start[layer.in] != links) {
    return "column_start does not run from 0 to the number of links";
  }
  if (!InRange(layer.outputs, links, layer.out)) return "an index in outputs is out of range";
  if (!InRange(layer.order, links, links)) return "an index in order is out of range";
  return nullptr;
}
