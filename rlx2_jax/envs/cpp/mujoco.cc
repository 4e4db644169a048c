// MuJoCo's C library as XLA custom calls: steps and resets of many simulations of one model.
//
//   reset:  start [nq + nv] -> physics [words], fields [size]
//   step:   physics [words], control [nu], done -> physics [words], fields [size]
//
// Leading axes count simulations, and operands have the same. `physics` is what a simulation goes on from, doubles as
// pairs of words: the row of mjSTATE_INTEGRATION, and the position that the next displacement is measured from.
// `fields` are the displacement, made in double precision, and then the fields that the task reads.
//
// A row that is done is not stepped: its physics stay and its fields are zero. Where MuJoCo fails, or finds the
// simulation unstable, the physics stay and the fields are NaN.
//
// Nothing is kept between calls, so that any number of them may run at once and results depend on no thread.

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include "simulation.h"
#include "xla/ffi/api/ffi.h"

namespace rlx2 {
namespace {

namespace ffi = xla::ffi;

// Every engine of the process, by its key. Never destroyed: compiled programs name them.
class Registry {
 public:
  static Registry& Shared() {
    static Registry* const registry = new Registry;
    return *registry;
  }

  // What keeps a task from being simulated, or an empty string.
  std::string Add(void* handle, const std::string& key, const Recipe& recipe) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (engines_.count(key)) return "";
    // Once: engines at work read it without a lock.
    const char* const missing = engines_.empty() ? library_.Open(handle) : nullptr;
    if (missing) return std::string("no function ") + missing;
    auto engine = std::make_unique<Engine>(library_, recipe);
    const std::string error = engine->error();
    if (error.empty()) engines_[key] = std::move(engine);
    return error;
  }

  Engine* Find(std::string_view key) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = engines_.find(key);
    return found == engines_.end() ? nullptr : found->second.get();
  }

 private:
  std::mutex mutex_;
  Library library_;
  std::map<std::string, std::unique_ptr<Engine>, std::less<>> engines_;
};

ffi::Error Invalid(const std::string& message) { return ffi::Error::InvalidArgument("rlx2_jax mujoco: " + message); }

using Words = ffi::Buffer<ffi::U32>;
using Floats = ffi::Buffer<ffi::F32>;
using Flags = ffi::Buffer<ffi::PRED>;

ffi::Error Unknown(std::string_view key) {
  return Invalid("no task " + std::string(key) + " in this process: make its environment before its programs run");
}

ffi::Error NoMemory() { return ffi::Error(ffi::ErrorCode::kResourceExhausted, "rlx2_jax mujoco: no memory left"); }

ffi::Error ResetCall(ffi::ThreadPool pool, Floats start, ffi::Result<Words> physics, ffi::Result<Floats> fields,
                     std::string_view key) {
  Engine* const engine = Registry::Shared().Find(key);
  if (!engine) return Unknown(key);
  const size_t rows = start.element_count() / engine->start;
  if (start.element_count() != rows * engine->start || physics->element_count() != rows * engine->words ||
      fields->element_count() != rows * engine->fields) {
    return Invalid("the shapes of a reset do not fit");
  }
  const bool ok = engine->ForEach(rows, pool.num_threads(), [&](Simulation& simulation, int64_t row) {
    simulation.Reset(start.typed_data() + row * engine->start, physics->typed_data() + row * engine->words,
                     fields->typed_data() + row * engine->fields);
  });
  return ok ? ffi::Error::Success() : NoMemory();
}

ffi::Error StepCall(ffi::ThreadPool pool, Words before, Floats control, Flags done, ffi::Result<Words> physics,
                    ffi::Result<Floats> fields, std::string_view key) {
  Engine* const engine = Registry::Shared().Find(key);
  if (!engine) return Unknown(key);
  const size_t rows = done.element_count();
  if (before.element_count() != rows * engine->words || control.element_count() != rows * engine->controls ||
      physics->element_count() != rows * engine->words || fields->element_count() != rows * engine->fields) {
    return Invalid("the shapes of a step do not fit");
  }
  const bool ok = engine->ForEach(rows, pool.num_threads(), [&](Simulation& simulation, int64_t row) {
    const uint32_t* const from = before.typed_data() + row * engine->words;
    uint32_t* const to = physics->typed_data() + row * engine->words;
    float* const seen = fields->typed_data() + row * engine->fields;
    if (done.typed_data()[row]) {
      std::copy(from, from + engine->words, to);
      std::fill(seen, seen + engine->fields, 0.0f);
    } else {
      simulation.Step(from, control.typed_data() + row * engine->controls, to, seen);
    }
  });
  return ok ? ffi::Error::Success() : NoMemory();
}

}  // namespace
}  // namespace rlx2

XLA_FFI_DEFINE_HANDLER_SYMBOL(rlx2_mujoco_reset, rlx2::ResetCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<rlx2::Floats>()
                                  .Ret<rlx2::Words>()
                                  .Ret<rlx2::Floats>()
                                  .Attr<std::string_view>("task"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(rlx2_mujoco_step, rlx2::StepCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<rlx2::Words>()
                                  .Arg<rlx2::Floats>()
                                  .Arg<rlx2::Flags>()
                                  .Ret<rlx2::Words>()
                                  .Ret<rlx2::Floats>()
                                  .Attr<std::string_view>("task"));

// Makes a task known to both calls by a key; a key that is known already stays what it is. `library` is dlopen's handle
// of MuJoCo. Returns what is wrong, or an empty string, valid until this thread's next call.
extern "C" const char* rlx2_mujoco_add(void* library, const char* key, const rlx2::Recipe* recipe) {
  thread_local std::string error;
  error = rlx2::Registry::Shared().Add(library, key, *recipe);
  return error.c_str();
}
