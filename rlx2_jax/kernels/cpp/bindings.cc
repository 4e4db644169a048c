// The perceptron as XLA custom calls. Everything is checked here, so that the kernels need not.
//
//   forward:  x, parameters, (row_start, inputs) per layer -> y [, activations]
//   backward: dy, activations, parameters, (row_start, inputs, column_start, outputs, order) per layer
//                                                          -> deltas [, dparameters] [, dx]
//
// `parameters` are the values and then the biases of each layer in turn. All operands share leading axes, which count
// independent networks.

#include <string>
#include <string_view>

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

ffi::Error Invalid(const std::string& message) { return ffi::Error::InvalidArgument("sparse perceptron: " + message); }

// Reads operands in order and remembers the first thing that is wrong with them.
class Reader {
 public:
  Reader(ffi::RemainingArgs& args, ffi::RemainingRets& rets) : args_(args), rets_(rets) {}

  // An operand whose last axes are `shape` (-1: any size, written back), under `networks` leading ones (-1 likewise).
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

  int64_t networks() const { return networks_; }
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
    if (networks_ < 0) networks_ = leading;
    size_t axis = dims.size() - shape.size();
    bool fits = leading == networks_;
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
  int64_t networks_ = -1;
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
  const char* problem = Forward(*kernels, {net, read.networks(), parameters, nullptr}, pool.num_threads());
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
  int64_t size = net.tiles() * net.outputs() * kTile;
  net.deltas = read.Out<Floats>("deltas", {&size});
  float* gradient = weights ? read.Out<Floats>("dparameters", {&parameters_size}) : nullptr;
  if (rets.size() == (weights ? 3 : 2)) net.dx = read.Out<Floats>("dx", {&net.batch, &net.layers[0].in});
  if (!read.ok()) return read.error();
  const char* problem = Backward(*kernels, {net, read.networks(), parameters, gradient}, pool.num_threads());
  return problem ? Invalid(problem) : ffi::Error::Success();
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

// Names of the instruction sets this processor can run, best first.
extern "C" const char* rlx2_instructions() {
  static const std::string names = [] {
    std::string joined;
    for (const rlx2::Kernels* const* k = rlx2::Available(); *k; ++k) joined += std::string(joined.empty() ? "" : ",") + (*k)->name;
    return joined;
  }();
  return names.c_str();
}
extern "C" int64_t rlx2_tile() { return rlx2::kTile; }
