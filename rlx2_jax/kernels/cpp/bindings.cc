// The kernels as XLA custom calls. Everything is checked here, so that the kernels need not.
//
//   forward:  x, parameters, (row_start, inputs) per layer -> y [, activations]
//   backward: dy, activations, parameters, (row_start, inputs, column_start, outputs, order) per layer
//                                                          -> [dparameters] [, dx]
//
// `parameters` are the values and then the biases of each layer in turn; `dparameters` has a leading axis of groups of
// samples, and the gradient is its first entry, the rest is scratch. All operands share leading axes, which count
// independent networks.
//
//   take rows:     table [rows, width], index [n] -> [n, width]
//   take windows:  observation, action, reward, outcome, final of a ring, row [n], column [n], n_step, gamma
//                  -> observation, action, partial_return, bootstrap_discount, next_observation, last, weight
//   threefry:      key [2] -> bits [n]
//
// likewise under leading axes.

#include <string>
#include <string_view>

#include "data.h"
#include "perceptron.h"
#include "xla/ffi/api/ffi.h"

namespace rlx2 {
namespace {

namespace ffi = xla::ffi;

using Floats = ffi::Buffer<ffi::F32>;
using Ints = ffi::Buffer<ffi::S32>;

int64_t Leading(ffi::Span<const int64_t> dims, size_t trailing) {
  int64_t n = 1;
  for (size_t i = 0; i + trailing < dims.size(); ++i) n *= dims[i];
  return n;
}

ffi::Error Invalid(const std::string& message) { return ffi::Error::InvalidArgument("rlx2_jax kernels: " + message); }

// Reads operands in order and remembers the first thing that is wrong with them.
class Reader {
 public:
  Reader(ffi::RemainingArgs& args, ffi::RemainingRets& rets) : args_(args), rets_(rets) {}

  // An operand whose last axes are `shape` (-1: any size, written back), under leading ones as the others have.
  template <typename Buffer>
  auto* In(const char* name, std::initializer_list<int64_t*> shape) {
    return Check<Buffer>(name, args_.template get<Buffer>(next_in_++), shape);
  }

  template <typename Buffer>
  auto* Out(const char* name, std::initializer_list<int64_t*> shape) {
    auto ret = rets_.template get<Buffer>(next_out_++);
    ffi::ErrorOr<Buffer> buffer = ret.has_value() ? ffi::ErrorOr<Buffer>(**ret) : ffi::Unexpected(ret.error());
    return Check<Buffer>(name, std::move(buffer), shape);
  }

  int64_t leading() const { return leading_; }
  bool ok() const { return message_.empty(); }
  ffi::Error error() const { return Invalid(message_); }
  void Fail(const std::string& message) {
    if (message_.empty()) message_ = message;
  }

 private:
  template <typename Buffer>
  typename std::remove_pointer<decltype(std::declval<Buffer>().typed_data())>::type* Check(
      const char* name, ffi::ErrorOr<Buffer> buffer, std::initializer_list<int64_t*> shape) {
    if (!buffer.has_value()) {
      Fail(std::string(name) + " is missing or has the wrong element type");
      return nullptr;
    }
    const auto dims = buffer->dimensions();
    if (dims.size() < shape.size()) {
      Fail(std::string(name) + " has too few axes");
      return nullptr;
    }
    const int64_t leading = Leading(dims, shape.size());
    if (leading_ < 0) leading_ = leading;
    size_t axis = dims.size() - shape.size();
    bool fits = leading == leading_;
    for (int64_t* size : shape) {
      if (*size < 0) *size = dims[axis];
      fits &= *size == dims[axis++];
    }
    if (!fits) Fail(std::string(name) + " has a shape that does not fit the others");
    return buffer->typed_data();
  }

  ffi::RemainingArgs& args_;
  ffi::RemainingRets& rets_;
  size_t next_in_ = 0, next_out_ = 0;
  int64_t leading_ = -1;
  std::string message_;
};

const Kernels* Find(std::string_view name) {
  for (const Kernels* const* k = Available(); *k; ++k) {
    if (name == "auto" || name == (*k)->name) return *k;
  }
  return nullptr;
}

bool CheckDepth(size_t count, size_t per_layer, int64_t* depth) {
  *depth = static_cast<int64_t>(count / per_layer);
  return count % per_layer == 0 && *depth >= 1 && *depth <= kMaxDepth;
}

ffi::Error ForwardCall(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
                   std::string_view instructions) {
  const Kernels* kernels = Find(instructions);
  if (!kernels) return Invalid("this processor has no instruction set " + std::string(instructions));
  Network net;
  if (args.size() < 2 || !CheckDepth(args.size() - 2, 2, &net.depth)) return Invalid("a wrong number of operands");
  Reader read(args, rets);
  int64_t in = -1, parameters_size = -1;
  net.batch = -1;
  net.x = read.In<Floats>("x", {&net.batch, &in});
  const float* parameters = read.In<Floats>("parameters", {&parameters_size});
  for (int64_t l = 0; l < net.depth; ++l) {
    Layer& layer = net.layers[l];
    int64_t offsets = -1;
    layer.in = in;
    layer.links = -1;
    layer.row_start = read.In<Ints>("row_start", {&offsets});
    layer.inputs = read.In<Ints>("inputs", {&layer.links});
    layer.out = in = offsets - 1;
  }
  net.y = read.Out<Floats>("y", {&net.batch, &in});
  if (!read.ok()) return read.error();
  if (parameters_size != net.parameters()) return Invalid("parameters have the wrong size");
  if (rets.size() == 2) {
    int64_t size = net.tiles() * net.features() * kTile;
    net.activations = read.Out<Floats>("activations", {&size});
    if (!read.ok()) return read.error();
  }
  const char* problem = Forward(*kernels, {net, read.leading(), parameters}, pool.num_threads());
  return problem ? Invalid(problem) : ffi::Error::Success();
}

ffi::Error BackwardCall(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
                    std::string_view instructions, bool weights) {
  const Kernels* kernels = Find(instructions);
  if (!kernels) return Invalid("this processor has no instruction set " + std::string(instructions));
  Network net;
  if (args.size() < 3 || !CheckDepth(args.size() - 3, 5, &net.depth)) return Invalid("a wrong number of operands");
  Reader read(args, rets);
  int64_t top = -1, activations = -1, parameters_size = -1;
  net.batch = -1;
  net.dy = read.In<Floats>("dy", {&net.batch, &top});
  net.activations = const_cast<float*>(read.In<Floats>("activations", {&activations}));
  const float* parameters = read.In<Floats>("parameters", {&parameters_size});
  for (int64_t l = 0; l < net.depth; ++l) {
    Layer& layer = net.layers[l];
    int64_t rows = -1, columns = -1;
    layer.links = -1;
    layer.row_start = read.In<Ints>("row_start", {&rows});
    layer.inputs = read.In<Ints>("inputs", {&layer.links});
    layer.column_start = read.In<Ints>("column_start", {&columns});
    layer.outputs = read.In<Ints>("outputs", {&layer.links});
    layer.order = read.In<Ints>("order", {&layer.links});
    layer.out = rows - 1;
    layer.in = columns - 1;
    if (l > 0 && layer.in != net.layers[l - 1].out) read.Fail("the layers' sizes do not follow each other");
  }
  if (!read.ok()) return read.error();
  if (net.layers[net.depth - 1].out != top) return Invalid("dy has a shape that does not fit the others");
  if (parameters_size != net.parameters()) return Invalid("parameters have the wrong size");
  if (activations != net.tiles() * net.features() * kTile) return Invalid("activations have the wrong size");
  int64_t groups = net.groups();
  if (weights) net.gradients = read.Out<Floats>("dparameters", {&groups, &parameters_size});
  if (rets.size() == (weights ? 2 : 1)) net.dx = read.Out<Floats>("dx", {&net.batch, &net.layers[0].in});
  if (!read.ok()) return read.error();
  const char* problem = Backward(*kernels, {net, read.leading(), parameters}, pool.num_threads());
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
  ring.observation = read.In<Floats>("observation", {&R, &E, &O});
  ring.action = read.In<Floats>("action", {&R, &E, &A});
  ring.reward = read.In<Floats>("reward", {&R, &E});
  ring.outcome = read.In<Ints>("outcome", {&R, &E});
  ring.final = read.In<Floats>("final", {&F, &E, &O});
  windows.row = read.In<Ints>("row", {&n});
  windows.column = read.In<Ints>("column", {&n});
  windows.n_step = read.In<Ints>("n_step", {});
  windows.gamma = read.In<Floats>("gamma", {});
  windows.observation = read.Out<Floats>("observation", {&n, &O});
  windows.action = read.Out<Floats>("action", {&n, &A});
  windows.partial_return = read.Out<Floats>("partial_return", {&n});
  windows.bootstrap_discount = read.Out<Floats>("bootstrap_discount", {&n});
  windows.next_observation = read.Out<Floats>("next_observation", {&n, &O});
  windows.last = read.Out<Ints>("last", {&n});
  windows.weight = read.Out<Floats>("weight", {&n});
  if (!read.ok()) return read.error();
  if (R < 1 || n_max < 1) return Invalid("a window needs at least one row and one step");
  for (int64_t i = 0; i < read.leading(); ++i) {
    if (const char* problem = TakeWindows(ring, windows, pool.num_threads())) return Invalid(problem);
    ring.observation += R * E * O;
    ring.action += R * E * A;
    ring.reward += R * E;
    ring.outcome += R * E;
    ring.final += F * E * O;
    windows.row += n;
    windows.column += n;
    windows.n_step += 1;
    windows.gamma += 1;
    windows.observation += n * O;
    windows.action += n * A;
    windows.partial_return += n;
    windows.bootstrap_discount += n;
    windows.next_observation += n * O;
    windows.last += n;
    windows.weight += n;
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

}  // namespace
}  // namespace rlx2

XLA_FFI_DEFINE_HANDLER_SYMBOL(rlx2_perceptron_forward, rlx2::ForwardCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<std::string_view>("instructions"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(rlx2_perceptron_backward, rlx2::BackwardCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<std::string_view>("instructions")
                                  .Attr<bool>("weights"));

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

// Names of the instruction sets this processor can run, best first.
extern "C" const char* rlx2_instructions() {
  static const std::string names = [] {
    std::string joined;
    for (const rlx2::Kernels* const* k = rlx2::Available(); *k; ++k) joined += std::string(joined.empty() ? "" : ",") + (*k)->name;
    return joined;
  }();
  return names.c_str();
}

// Samples of a tile, and tiles of a group.
extern "C" int64_t rlx2_tile() { return rlx2::kTile; }
extern "C" int64_t rlx2_group() { return rlx2::kGroup; }
