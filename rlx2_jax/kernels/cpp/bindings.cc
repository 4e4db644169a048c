// The kernels as XLA custom calls. Everything is checked here, so that the kernels need not.
//
//   forward:   x of each input, parameters, (row_start, inputs) per layer -> y [, activations]
//   backward:  dy, activations, parameters, (row_start, inputs, column_start, outputs, order) per layer
//                                                          -> [dparameters, scratch] [, dx of each wanted input]
//   take rows:     table [rows, width], index [n] -> [n, width]
//   take windows:  observation, action, reward, outcome, final of a ring, row [n], column [n], n_step, gamma
//                  -> observation, action, partial_return, bootstrap_discount, next_observation, last, weight
//   threefry:      key [2] -> bits [n]
//   threefry keys: key [2], number [n] -> keys [n, 2]
//   top links:     score [n], count [, among [n]] -> mask [n]
//   exchange links: mask [n], drop score [n], grow score [n], fraction, target -> mask [n]
//   index links:   mask [in, out] -> row_start, inputs, column_start, outputs, order
//   adam:          parameters [n], gradient [n], mu [n], nu [n], count, step_size -> parameters, mu, nu, count
//
// `parameters` are the values and then the biases of each layer in turn, with scales and offsets after those of each
// hidden layer of a normalised network; scratch has their size for every group of samples but the first.
//
// Leading axes count independent calls. Operands have as many as the results, of their size or, where calls share an
// operand, of size 1; those of take rows and both threefry calls are never shared.

#include <algorithm>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "data.h"
#include "parallel.h"
#include "perceptron.h"
#include "topology.h"
#include "xla/ffi/api/ffi.h"

namespace rlx2 {
namespace {

namespace ffi = xla::ffi;

using Floats = ffi::Buffer<ffi::F32>;
using Ints = ffi::Buffer<ffi::S32>;
using Flags = ffi::Buffer<ffi::PRED>;

int64_t Leading(ffi::Span<const int64_t> dims, size_t trailing) {
  int64_t n = 1;
  for (size_t i = 0; i + trailing < dims.size(); ++i) n *= dims[i];
  return n;
}

ffi::Error Invalid(const std::string& message) { return ffi::Error::InvalidArgument("rlx2_jax kernels: " + message); }

constexpr size_t kMaxAxes = 8;

// A buffer whose last axes are one call's part of it.
template <typename T>
struct Operand {
  T* data = nullptr;
  int64_t size = 0;  // Of a part.
  int64_t own[kMaxAxes];  // Leading axes.
};

// Reads operands in order and remembers the first thing that is wrong with them.
class Reader {
 public:
  Reader(ffi::RemainingArgs& args, ffi::RemainingRets& rets) : args_(args), rets_(rets) {}

  // An operand whose last axes are `shape` (-1: any size, written back), under leading ones as the others have, or 1.
  template <typename Buffer>
  auto In(const char* name, std::initializer_list<int64_t*> shape) {
    return Check<Buffer>(name, args_.template get<Buffer>(next_in_++), shape);
  }

  template <typename Buffer>
  auto Out(const char* name, std::initializer_list<int64_t*> shape) {
    auto ret = rets_.template get<Buffer>(next_out_++);
    ffi::ErrorOr<Buffer> buffer = ret.has_value() ? ffi::ErrorOr<Buffer>(**ret) : ffi::Unexpected(ret.error());
    auto operand = Check<Buffer>(name, std::move(buffer), shape);
    for (size_t a = 0; ok() && a < rank_; ++a) {
      if (operand.own[a] != leading_[a]) Fail(std::string(name) + " has a shape that does not fit the others");
    }
    return operand;
  }

  // What follows is known once all operands are read: how many calls there are, and each one's part of an operand.
  int64_t calls() const {
    int64_t n = 1;
    for (size_t a = 0; a < rank_; ++a) n *= leading_[a];
    return n;
  }
  template <typename T>
  T* At(const Operand<T>& operand, int64_t call) const {
    if (!operand.data) return nullptr;
    int64_t part = 0, stride = 1;
    for (size_t a = rank_; a-- > 0;) {
      if (operand.own[a] > 1) part += call % leading_[a] * stride;
      stride *= operand.own[a];
      call /= leading_[a];
    }
    return operand.data + part * operand.size;
  }

  bool ok() const { return message_.empty(); }
  ffi::Error error() const { return Invalid(message_); }
  void Fail(const std::string& message) {
    if (message_.empty()) message_ = message;
  }

 private:
  template <typename Buffer>
  auto Check(const char* name, ffi::ErrorOr<Buffer> buffer, std::initializer_list<int64_t*> shape) {
    Operand<typename std::remove_pointer<decltype(std::declval<Buffer>().typed_data())>::type> operand;
    if (!buffer.has_value()) {
      Fail(std::string(name) + " is missing or has the wrong element type");
      return operand;
    }
    const auto dims = buffer->dimensions();
    if (dims.size() < shape.size() || dims.size() - shape.size() > kMaxAxes) {
      Fail(std::string(name) + " has too few axes, or too many");
      return operand;
    }
    const size_t rank = dims.size() - shape.size();
    if (next_in_ == 1 && next_out_ == 0) rank_ = rank;
    bool fits = rank == rank_;
    for (size_t a = 0; fits && a < rank; ++a) {
      if (leading_[a] == 1) leading_[a] = dims[a];
      fits = dims[a] == leading_[a] || dims[a] == 1;
      operand.own[a] = dims[a];
    }
    size_t axis = rank;
    operand.size = 1;
    for (int64_t* size : shape) {
      if (*size < 0) *size = dims[axis];
      fits &= *size == dims[axis++];
      operand.size *= *size;
    }
    if (!fits) Fail(std::string(name) + " has a shape that does not fit the others");
    operand.data = buffer->typed_data();
    return operand;
  }

  ffi::RemainingArgs& args_;
  ffi::RemainingRets& rets_;
  size_t next_in_ = 0, next_out_ = 0;
  size_t rank_ = 0;
  int64_t leading_[kMaxAxes] = {1, 1, 1, 1, 1, 1, 1, 1};
  std::string message_;
};

const Kernels* SelectKernels(std::string_view name) {
  for (const Kernels* const* k = SupportedKernels(); *k; ++k) {
    if (name == "auto" || name == (*k)->name) return *k;
  }
  return nullptr;
}

bool CheckDepth(size_t count, size_t per_layer, int64_t* depth) {
  *depth = static_cast<int64_t>(count / per_layer);
  return count % per_layer == 0 && *depth >= 1 && *depth <= kMaxDepth;
}

struct LayerOperands {
  Operand<int32_t> row_start, inputs, column_start, outputs, order;
};

// The networks of a call, in memory that the calling thread keeps.
std::vector<Network>& Networks(const Network& shape, int64_t count) {
  thread_local std::vector<Network> networks;
  networks.assign(count, shape);
  return networks;
}

ffi::Error ForwardCall(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
                       std::string_view instructions, int64_t arrays, bool normalised) {
  const Kernels* kernels = SelectKernels(instructions);
  if (!kernels) return Invalid("this processor has no instruction set " + std::string(instructions));
  Network shape;
  shape.arrays = arrays;
  shape.normalised = normalised;
  const int64_t others = static_cast<int64_t>(args.size()) - arrays - 1;
  if (arrays < 1 || arrays > kMaxInputs || others < 0 || !CheckDepth(others, 2, &shape.depth)) {
    return Invalid("a wrong number of operands");
  }
  Reader read(args, rets);
  int64_t in = 0, parameters_size = -1;
  shape.batch = -1;
  Operand<float> x[kMaxInputs];
  for (int64_t a = 0; a < arrays; ++a) {
    shape.inputs[a].size = -1;
    x[a] = read.In<Floats>("x", {&shape.batch, &shape.inputs[a].size});
    in += shape.inputs[a].size;
  }
  const auto parameters = read.In<Floats>("parameters", {&parameters_size});
  LayerOperands operands[kMaxDepth];
  for (int64_t l = 0; l < shape.depth; ++l) {
    Layer& layer = shape.layers[l];
    int64_t offsets = -1;
    layer.in = in;
    layer.capacity = -1;
    operands[l].row_start = read.In<Ints>("row_start", {&offsets});
    operands[l].inputs = read.In<Ints>("inputs", {&layer.capacity});
    if (offsets < 1) read.Fail("row_start is empty");
    layer.out = in = offsets - 1;
  }
  const auto y = read.Out<Floats>("y", {&shape.batch, &in});
  if (!read.ok()) return read.error();
  if (parameters_size != shape.parameters()) return Invalid("parameters have the wrong size");
  Operand<float> activations;
  if (rets.size() == 2) {
    int64_t size = shape.tiles() * shape.kept() * kTile;
    activations = read.Out<Floats>("activations", {&size});
    if (!read.ok()) return read.error();
  }
  std::vector<Network>& networks = Networks(shape, read.calls());
  for (int64_t n = 0; n < read.calls(); ++n) {
    Network& net = networks[n];
    for (int64_t a = 0; a < arrays; ++a) net.inputs[a].x = read.At(x[a], n);
    net.set_parameters(read.At(parameters, n));
    for (int64_t l = 0; l < net.depth; ++l) {
      net.layers[l].row_start = read.At(operands[l].row_start, n);
      net.layers[l].inputs = read.At(operands[l].inputs, n);
    }
    net.y = read.At(y, n);
    net.activations = read.At(activations, n);
  }
  const char* problem = Forward(*kernels, networks.data(), read.calls(), pool.num_threads());
  return problem ? Invalid(problem) : ffi::Error::Success();
}

// `sizes` are those of the inputs, and `wanted` says which of them a gradient is made for.
ffi::Error BackwardCall(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
                        std::string_view instructions, bool normalised, bool weights, ffi::Span<const int64_t> sizes,
                        ffi::Span<const int64_t> wanted) {
  const Kernels* kernels = SelectKernels(instructions);
  if (!kernels) return Invalid("this processor has no instruction set " + std::string(instructions));
  Network shape;
  shape.normalised = normalised;
  if (args.size() < 3 || !CheckDepth(args.size() - 3, 5, &shape.depth)) return Invalid("a wrong number of operands");
  Reader read(args, rets);
  int64_t top = -1, activations_size = -1, parameters_size = -1;
  shape.batch = -1;
  const auto dy = read.In<Floats>("dy", {&shape.batch, &top});
  const auto activations = read.In<Floats>("activations", {&activations_size});
  const auto parameters = read.In<Floats>("parameters", {&parameters_size});
  LayerOperands operands[kMaxDepth];
  for (int64_t l = 0; l < shape.depth; ++l) {
    Layer& layer = shape.layers[l];
    int64_t rows = -1, columns = -1;
    layer.capacity = -1;
    operands[l].row_start = read.In<Ints>("row_start", {&rows});
    operands[l].inputs = read.In<Ints>("inputs", {&layer.capacity});
    operands[l].column_start = read.In<Ints>("column_start", {&columns});
    operands[l].outputs = read.In<Ints>("outputs", {&layer.capacity});
    operands[l].order = read.In<Ints>("order", {&layer.capacity});
    if (rows < 1 || columns < 1) read.Fail("row_start or column_start is empty");
    layer.out = rows - 1;
    layer.in = columns - 1;
    if (l > 0 && layer.in != shape.layers[l - 1].out) read.Fail("the layers' sizes do not follow each other");
  }
  if (!read.ok()) return read.error();
  if (shape.layers[shape.depth - 1].out != top) return Invalid("dy has a shape that does not fit the others");
  if (parameters_size != shape.parameters()) return Invalid("parameters have the wrong size");
  if (activations_size != shape.tiles() * shape.kept() * kTile) return Invalid("activations have the wrong size");
  int64_t more_groups = std::max<int64_t>(shape.groups() - 1, 0), in = 0;
  const int64_t most = shape.layers[0].in;
  // Clipped before they are added: the sum of any sizes fits.
  for (size_t a = 0; a < sizes.size() && in <= most; ++a) in += sizes[a] < 0 || sizes[a] > most ? most + 1 : sizes[a];
  if (sizes.size() > kMaxInputs || sizes.size() != wanted.size() || in != most) {
    return Invalid("the inputs have the wrong sizes");
  }
  shape.arrays = static_cast<int64_t>(sizes.size());
  Operand<float> gradient, partial, dx[kMaxInputs];
  if (weights) {
    gradient = read.Out<Floats>("dparameters", {&parameters_size});
    partial = read.Out<Floats>("scratch", {&more_groups, &parameters_size});
  }
  for (int64_t a = 0; a < shape.arrays; ++a) {
    shape.inputs[a].size = sizes[a];
    if (wanted[a]) dx[a] = read.Out<Floats>("dx", {&shape.batch, &shape.inputs[a].size});
  }
  if (!read.ok()) return read.error();
  std::vector<Network>& networks = Networks(shape, read.calls());
  for (int64_t n = 0; n < read.calls(); ++n) {
    Network& net = networks[n];
    net.dy = read.At(dy, n);
    net.activations = read.At(activations, n);
    net.set_parameters(read.At(parameters, n));
    for (int64_t l = 0; l < net.depth; ++l) {
      Layer& layer = net.layers[l];
      layer.row_start = read.At(operands[l].row_start, n);
      layer.inputs = read.At(operands[l].inputs, n);
      layer.column_start = read.At(operands[l].column_start, n);
      layer.outputs = read.At(operands[l].outputs, n);
      layer.order = read.At(operands[l].order, n);
    }
    net.gradient = read.At(gradient, n);
    net.partial = read.At(partial, n);
    for (int64_t a = 0; a < net.arrays; ++a) net.inputs[a].dx = read.At(dx[a], n);
  }
  const char* problem = Backward(*kernels, networks.data(), read.calls(), pool.num_threads());
  return problem ? Invalid(problem) : ffi::Error::Success();
}

ffi::Error TakeRowsCall(ffi::ThreadPool pool, ffi::AnyBuffer table, Ints index, ffi::Result<ffi::AnyBuffer> out) {
  const auto t = table.dimensions(), i = index.dimensions(), o = out->dimensions();
  if (t.size() < 2 || i.size() + 1 != t.size() || o.size() != t.size() || table.element_type() != out->element_type() ||
      ffi::ByteWidth(table.element_type()) != sizeof(uint32_t) || o[o.size() - 1] != t[t.size() - 1] ||
      o[o.size() - 2] != i[i.size() - 1] || Leading(t, 2) != Leading(i, 1) || Leading(t, 2) != Leading(o, 2)) {
    return Invalid("take rows: shapes or types do not fit");
  }
  const int64_t rows = t[t.size() - 2], width = t[t.size() - 1], count = i[i.size() - 1];
  for (int64_t n = 0; n < Leading(t, 2); ++n) {
    if (!TakeRows(static_cast<const uint32_t*>(table.untyped_data()) + n * rows * width, rows, width,
                  index.typed_data() + n * count, count, static_cast<uint32_t*>(out->untyped_data()) + n * count * width,
                  pool.num_threads())) {
      return Invalid("take rows: an index is out of range");
    }
  }
  return ffi::Error::Success();
}

ffi::Error TakeWindowsCall(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, int64_t n_max) {
  Ring ring;
  Windows windows;
  windows.n_max = n_max;
  Reader read(args, rets);
  int64_t &R = ring.rows, &E = ring.columns, &F = ring.slots, &O = ring.observation_size, &A = ring.action_size;
  int64_t& n = windows.count;
  const auto observation = read.In<Floats>("observation", {&R, &E, &O});
  const auto action = read.In<Floats>("action", {&R, &E, &A});
  const auto reward = read.In<Floats>("reward", {&R, &E});
  const auto outcome = read.In<Ints>("outcome", {&R, &E});
  const auto final = read.In<Floats>("final", {&F, &E, &O});
  const auto row = read.In<Ints>("row", {&n});
  const auto column = read.In<Ints>("column", {&n});
  const auto n_step = read.In<Ints>("n_step", {});
  const auto gamma = read.In<Floats>("gamma", {});
  const auto observation_out = read.Out<Floats>("observation", {&n, &O});
  const auto action_out = read.Out<Floats>("action", {&n, &A});
  const auto partial_return = read.Out<Floats>("partial_return", {&n});
  const auto bootstrap_discount = read.Out<Floats>("bootstrap_discount", {&n});
  const auto next_observation = read.Out<Floats>("next_observation", {&n, &O});
  const auto last = read.Out<Ints>("last", {&n});
  const auto weight = read.Out<Floats>("weight", {&n});
  if (!read.ok()) return read.error();
  if (R < 1 || n_max < 1) return Invalid("a window needs at least one row and one step");
  for (int64_t i = 0; i < read.calls(); ++i) {
    ring.observation = read.At(observation, i);
    ring.action = read.At(action, i);
    ring.reward = read.At(reward, i);
    ring.outcome = read.At(outcome, i);
    ring.final = read.At(final, i);
    windows.row = read.At(row, i);
    windows.column = read.At(column, i);
    windows.n_step = read.At(n_step, i);
    windows.gamma = read.At(gamma, i);
    windows.observation = read.At(observation_out, i);
    windows.action = read.At(action_out, i);
    windows.partial_return = read.At(partial_return, i);
    windows.bootstrap_discount = read.At(bootstrap_discount, i);
    windows.next_observation = read.At(next_observation, i);
    windows.last = read.At(last, i);
    windows.weight = read.At(weight, i);
    if (const char* problem = TakeWindows(ring, windows, pool.num_threads())) return Invalid(problem);
  }
  return ffi::Error::Success();
}

ffi::Error AdamCall(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, float b1, float b2,
                    float rest1, float rest2, float epsilon) {
  Adam adam;
  adam.b1 = b1, adam.b2 = b2, adam.rest1 = rest1, adam.rest2 = rest2, adam.epsilon = epsilon;
  Reader read(args, rets);
  const auto parameters = read.In<Floats>("parameters", {&adam.size});
  const auto gradient = read.In<Floats>("gradient", {&adam.size});
  const auto mu = read.In<Floats>("mu", {&adam.size});
  const auto nu = read.In<Floats>("nu", {&adam.size});
  const auto count = read.In<Ints>("count", {});
  const auto step_size = read.In<Floats>("step_size", {});
  const auto next_parameters = read.Out<Floats>("parameters", {&adam.size});
  const auto next_mu = read.Out<Floats>("mu", {&adam.size});
  const auto next_nu = read.Out<Floats>("nu", {&adam.size});
  const auto next_count = read.Out<Ints>("count", {});
  if (!read.ok()) return read.error();
  for (int64_t n = 0; n < read.calls(); ++n) {
    adam.parameters = read.At(parameters, n);
    adam.gradient = read.At(gradient, n);
    adam.mu = read.At(mu, n);
    adam.nu = read.At(nu, n);
    adam.count = read.At(count, n);
    adam.step_size = read.At(step_size, n);
    adam.next_parameters = read.At(next_parameters, n);
    adam.next_mu = read.At(next_mu, n);
    adam.next_nu = read.At(next_nu, n);
    adam.next_count = read.At(next_count, n);
    AdamStep(adam, pool.num_threads());
  }
  return ffi::Error::Success();
}

ffi::Error ThreefryCall(ffi::ThreadPool pool, ffi::Buffer<ffi::U32> key, ffi::Result<ffi::Buffer<ffi::U32>> bits) {
  const auto k = key.dimensions(), b = bits->dimensions();
  if (k.size() < 1 || k[k.size() - 1] != 2 || b.size() != k.size() || Leading(b, 1) != Leading(k, 1)) {
    return Invalid("threefry: shapes do not fit");
  }
  const int64_t count = b[b.size() - 1];
  for (int64_t n = 0; n < Leading(k, 1); ++n) {
    ThreefryBits(key.typed_data() + 2 * n, count, bits->typed_data() + n * count, pool.num_threads());
  }
  return ffi::Error::Success();
}

ffi::Error ThreefryKeysCall(ffi::Buffer<ffi::U32> key, ffi::Buffer<ffi::U32> number,
                            ffi::Result<ffi::Buffer<ffi::U32>> keys) {
  const auto k = key.dimensions(), n = number.dimensions(), o = keys->dimensions();
  if (k.size() < 1 || k[k.size() - 1] != 2 || n.size() != k.size() || o.size() != k.size() + 1 ||
      o[o.size() - 1] != 2 || o[o.size() - 2] != n[n.size() - 1] || Leading(n, 1) != Leading(k, 1) ||
      Leading(o, 2) != Leading(k, 1)) {
    return Invalid("threefry keys: shapes do not fit");
  }
  const int64_t count = n[n.size() - 1];
  for (int64_t i = 0; i < Leading(k, 1); ++i) {
    ThreefryKeys(key.typed_data() + 2 * i, number.typed_data() + i * count, count, keys->typed_data() + 2 * i * count);
  }
  return ffi::Error::Success();
}

// Body(call, threads) for each call: many small ones share the threads among them, large ones within.
template <typename Body>
void SharedOut(int64_t calls, int64_t size, int64_t threads, const Body& body) {
  constexpr int64_t kTogether = 1 << 14, kLarge = 1 << 18;
  if (calls < 2 || size > kLarge) {
    for (int64_t n = 0; n < calls; ++n) body(n, threads);
    return;
  }
  const int64_t some = std::max<int64_t>(1, kTogether / std::max<int64_t>(1, size));
  ThreadPool::Shared().Run((calls + some - 1) / some, threads, [&](int64_t task) {
    for (int64_t n = task * some; n < std::min(calls, (task + 1) * some); ++n) body(n, 1);
  });
}

ffi::Error TopLinksCall(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets) {
  Reader read(args, rets);
  int64_t size = -1;
  const auto score = read.In<Floats>("score", {&size});
  const auto count = read.In<Ints>("count", {});
  Operand<bool> among;
  if (args.size() > 2) among = read.In<Flags>("among", {&size});
  const auto mask = read.Out<Flags>("mask", {&size});
  if (!read.ok()) return read.error();
  if (size > std::numeric_limits<int32_t>::max()) return Invalid("top links: too many scores");
  SharedOut(read.calls(), size, pool.num_threads(), [&](int64_t n, int64_t threads) {
    TopLinks(read.At(score, n), read.At(among, n), size, *read.At(count, n), read.At(mask, n), threads);
  });
  return ffi::Error::Success();
}

ffi::Error ExchangeLinksCall(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, bool drop_sizes,
                             bool grow_sizes) {
  Reader read(args, rets);
  Exchange shape;
  shape.drop_sizes = drop_sizes, shape.grow_sizes = grow_sizes;
  const auto mask = read.In<Flags>("mask", {&shape.size});
  const auto drop = read.In<Floats>("drop", {&shape.size});
  const auto grow = read.In<Floats>("grow", {&shape.size});
  const auto fraction = read.In<Floats>("fraction", {});
  const auto target = read.In<Ints>("target", {});
  const auto next = read.Out<Flags>("next", {&shape.size});
  if (!read.ok()) return read.error();
  if (shape.size > std::numeric_limits<int32_t>::max()) return Invalid("exchange links: too many scores");
  SharedOut(read.calls(), shape.size, pool.num_threads(), [&](int64_t n, int64_t threads) {
    Exchange exchange = shape;
    exchange.mask = read.At(mask, n);
    exchange.drop = read.At(drop, n);
    exchange.grow = read.At(grow, n);
    exchange.fraction = read.At(fraction, n);
    exchange.target = read.At(target, n);
    exchange.next = read.At(next, n);
    ExchangeLinks(exchange, threads);
  });
  return ffi::Error::Success();
}

ffi::Error IndexLinksCall(ffi::RemainingArgs args, ffi::RemainingRets rets, bool spare) {
  Reader read(args, rets);
  LinkIndices matrix;
  matrix.spare = spare;
  int64_t rows = -1, columns = -1;
  const auto mask = read.In<Flags>("mask", {&matrix.in, &matrix.out});
  const auto row_start = read.Out<Ints>("row_start", {&columns});
  const auto inputs = read.Out<Ints>("inputs", {&matrix.capacity});
  const auto column_start = read.Out<Ints>("column_start", {&rows});
  const auto outputs = read.Out<Ints>("outputs", {&matrix.capacity});
  const auto order = read.Out<Ints>("order", {&matrix.capacity});
  if (!read.ok()) return read.error();
  if (columns != matrix.out + 1 || rows != matrix.in + 1) return Invalid("index links: shapes do not fit");
  for (int64_t n = 0; n < read.calls(); ++n) {
    matrix.mask = read.At(mask, n);
    matrix.row_start = read.At(row_start, n);
    matrix.inputs = read.At(inputs, n);
    matrix.column_start = read.At(column_start, n);
    matrix.outputs = read.At(outputs, n);
    matrix.order = read.At(order, n);
    if (!IndexLinks(matrix)) return Invalid("index links: a mask has another number of links than its packed form, or than that has room for");
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace rlx2

XLA_FFI_DEFINE_HANDLER_SYMBOL(rlx2_perceptron_forward, rlx2::ForwardCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<std::string_view>("instructions")
                                  .Attr<int64_t>("arrays")
                                  .Attr<bool>("normalised"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(rlx2_perceptron_backward, rlx2::BackwardCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<std::string_view>("instructions")
                                  .Attr<bool>("normalised")
                                  .Attr<bool>("weights")
                                  .Attr<xla::ffi::Span<const int64_t>>("sizes")
                                  .Attr<xla::ffi::Span<const int64_t>>("wanted"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(rlx2_take_rows, rlx2::TakeRowsCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Ret<xla::ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(rlx2_take_windows, rlx2::TakeWindowsCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<int64_t>("n_max"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(rlx2_threefry, rlx2::ThreefryCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::U32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::U32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(rlx2_threefry_keys, rlx2::ThreefryKeysCall,
                              xla::ffi::Ffi::Bind()
                                  .Arg<xla::ffi::Buffer<xla::ffi::U32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::U32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::U32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(rlx2_top_links, rlx2::TopLinksCall,
                              xla::ffi::Ffi::Bind().Ctx<xla::ffi::ThreadPool>().RemainingArgs().RemainingRets());

XLA_FFI_DEFINE_HANDLER_SYMBOL(rlx2_exchange_links, rlx2::ExchangeLinksCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<bool>("drop_sizes")
                                  .Attr<bool>("grow_sizes"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(rlx2_index_links, rlx2::IndexLinksCall,
                              xla::ffi::Ffi::Bind().RemainingArgs().RemainingRets().Attr<bool>("spare"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(rlx2_adam, rlx2::AdamCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<float>("b1")
                                  .Attr<float>("b2")
                                  .Attr<float>("rest1")
                                  .Attr<float>("rest2")
                                  .Attr<float>("epsilon"));

// At most this many threads, whatever XLA has.
extern "C" void rlx2_use_threads(int64_t most) { rlx2::ThreadPool::Shared().Use(most); }

// Names of the instruction sets this processor can run, best first.
extern "C" const char* rlx2_instructions() {
  static const std::string names = [] {
    std::string joined;
    for (const rlx2::Kernels* const* k = rlx2::SupportedKernels(); *k; ++k) joined += std::string(joined.empty() ? "" : ",") + (*k)->name;
    return joined;
  }();
  return names.c_str();
}

// Samples of a tile, and tiles of a group.
extern "C" int64_t rlx2_tile() { return rlx2::kTile; }
extern "C" int64_t rlx2_group() { return rlx2::kGroup; }

// Layers of a perceptron, and arrays that are its inputs, at most.
extern "C" int64_t rlx2_most_layers() { return rlx2::kMaxDepth; }
extern "C" int64_t rlx2_most_inputs() { return rlx2::kMaxInputs; }
