// Simulations of MuJoCo's C library: one row in, one row out, and nothing kept in between.
//
// The library is the one that Python has loaded; models and data are opaque here, so no layout of theirs is compiled in.

#ifndef RLX2_JAX_SIMULATION_H_
#define RLX2_JAX_SIMULATION_H_

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "parallel.h"

namespace rlx2 {

// mjModel, mjData and mjBatch.
struct Model;
struct Data;
struct Batch;

// mjBatchConfig and mjWarningStat.
struct BatchConfig {
  int threads;
  bool persistent;  // All fields are this simulation's, whatever a call computes.
};
struct Warning {
  int last_info, count;
};

// The parts of mujoco.h and mjbatch.h that are called.
struct Library {
  Batch* (*mjb_makeBatch)(const Model*, int simulations, const BatchConfig*, char* error, int error_size);
  void (*mjb_deleteBatch)(Batch*);
  const Model* (*mjb_model)(const Batch*);
  int (*mjb_nstate)(const Batch*);
  double* (*mjb_state)(Batch*);
  double* (*mjb_stateComponent)(Batch*, int component, int* size);
  Warning* (*mjb_warning)(Batch*);
  void* (*mjb_output)(Batch*, const char* name, int* size, int* element_size);
  int (*mjb_apply)(Batch*, const int* ids, int count, void (*)(const Model*, Data*, int, void*), void*, int save);
  int (*mjb_forward)(Batch*, const int* ids, int count, int stage);
  void (*mj_resetData)(const Model*, Data*);
  void (*mj_getState)(const Model*, const Data*, double*, int components);
  void (*mj_setState)(const Model*, Data*, const double*, int components);
  void (*mj_forward)(const Model*, Data*);
  void (*mj_step)(const Model*, Data*);
  void (*mj_rnePostConstraint)(const Model*, Data*);

  // Finds all of them; returns the name of one that is missing.
  const char* Open(void* handle) {
    const std::pair<const char*, void*> wanted[] = {
#define RLX2_FUNCTION(name) {#name, &name}
        RLX2_FUNCTION(mjb_makeBatch),       RLX2_FUNCTION(mjb_deleteBatch),     RLX2_FUNCTION(mjb_model),
        RLX2_FUNCTION(mjb_nstate),          RLX2_FUNCTION(mjb_state),           RLX2_FUNCTION(mjb_stateComponent),
        RLX2_FUNCTION(mjb_warning),         RLX2_FUNCTION(mjb_output),          RLX2_FUNCTION(mjb_apply),
        RLX2_FUNCTION(mjb_forward),         RLX2_FUNCTION(mj_resetData),        RLX2_FUNCTION(mj_getState),
        RLX2_FUNCTION(mj_setState),         RLX2_FUNCTION(mj_forward),          RLX2_FUNCTION(mj_step),
        RLX2_FUNCTION(mj_rnePostConstraint),
#undef RLX2_FUNCTION
    };
    for (const auto& [name, place] : wanted) {
      void* const symbol = dlsym(handle, name);
      if (!symbol) return name;
      std::memcpy(place, &symbol, sizeof symbol);
    }
    return nullptr;
  }
};

// What a task asks of its simulations. Python fills it in (`envs/mujoco.py:_Recipe`).
struct Recipe {
  const Model* model;
  const char* fields;        // Names of what is read, a comma after each.
  const char* reference;     // The field whose weighted sum is the position.
  const double* weights;     // As many as the reference has elements.
  int32_t weights_size;
  int32_t frame_skip;        // Calls of mj_step.
  int32_t contact_forces;    // Whether they are read.
  int32_t qpos, qvel, ctrl;  // Bits of mjtState.
  int32_t warnings;          // Kinds of them.
  uint32_t unstable;         // Those kinds, as bits, by which MuJoCo tells of an unstable simulation.
};
static_assert(sizeof(Recipe) == 4 * sizeof(void*) + 8 * sizeof(int32_t), "as ctypes lays it out");

// One simulation, which serves any row: a batch of one that runs on the thread that calls.
class Simulation {
 public:
  Simulation(const Library& library, const Recipe& recipe) : mj_(library), recipe_(recipe) {
    const BatchConfig config = {1, true};
    batch_ = mj_.mjb_makeBatch(recipe.model, 1, &config, error_, sizeof error_);
    if (!batch_) return;
    state_size_ = mj_.mjb_nstate(batch_);
    state_ = mj_.mjb_state(batch_);
    warning_ = mj_.mjb_warning(batch_);
    control_ = mj_.mjb_stateComponent(batch_, recipe.ctrl, &controls_);
    reference_ = Find(recipe.reference);
    if (reference_.size != recipe.weights_size) Fail(std::string("not as many weights as ") + recipe.reference + " has");
    for (std::string_view rest = recipe.fields; !rest.empty(); rest.remove_prefix(rest.find(',') + 1)) {
      read_.push_back(Find(std::string(rest.substr(0, rest.find(',')))));
      fields_ += read_.back().size;
    }
    start_.resize(Find("qpos").size + Find("qvel").size);
  }
  ~Simulation() {
    if (batch_) mj_.mjb_deleteBatch(batch_);
  }
  Simulation(const Simulation&) = delete;
  Simulation& operator=(const Simulation&) = delete;

  const char* error() const { return error_; }
  // A copy of the model, which lives as long as the simulation.
  const Model* model() const { return mj_.mjb_model(batch_); }
  size_t words() const { return 2 * (state_size_ + 1); }
  size_t controls() const { return controls_; }
  size_t fields() const { return fields_; }
  size_t start() const { return start_.size(); }

  void Reset(const float* start, uint32_t* physics, float* fields) {
    noise_ = start;
    const bool ok = Apply(0, [](const Model* model, Data* data, int, void* self) {
      static_cast<Simulation*>(self)->Begin(model, data);
    });
    Store(physics);
    Report(ok, 0, fields);
  }

  void Step(const uint32_t* before, const float* control, uint32_t* physics, float* fields) {
    double position;
    std::memcpy(state_, before, sizeof(double) * state_size_);
    std::memcpy(&position, before + 2 * state_size_, sizeof position);
    std::copy(control, control + controls_, control_);
    const bool ok = Apply(kMany, [](const Model* model, Data* data, int, void* self) {
      static_cast<Simulation*>(self)->Advance(model, data);
    });
    if (ok) {
      Store(physics);
    } else {
      std::copy(before, before + words(), physics);
    }
    Report(ok, Position() - position, fields);
  }

 private:
  static constexpr int kMany = 1 << 20;

  struct Field {
    const double* data = nullptr;
    int size = 0;
  };

  // The first thing that is wrong stays.
  void Fail(const std::string& error) {
    if (!*error_) std::snprintf(error_, sizeof error_, "%s", error.c_str());
  }

  Field Find(const std::string& name) {
    Field field;
    int element = sizeof(double);
    if (name == "qpos" || name == "qvel") {
      field.data = mj_.mjb_stateComponent(batch_, name == "qpos" ? recipe_.qpos : recipe_.qvel, &field.size);
    } else {
      field.data = static_cast<const double*>(mj_.mjb_output(batch_, name.c_str(), &field.size, &element));
    }
    if (!field.data || element != sizeof(double)) Fail("no field " + name);
    return field;
  }

  // As gymnasium's MujocoEnv.reset: what mj_forward does not compute is zero afterwards.
  void Begin(const Model* model, Data* data) {
    const int components = recipe_.qpos | recipe_.qvel;
    mj_.mj_resetData(model, data);
    mj_.mj_getState(model, data, start_.data(), components);
    for (size_t i = 0; i < start_.size(); ++i) start_[i] += noise_[i];
    mj_.mj_setState(model, data, start_.data(), components);
    mj_.mj_forward(model, data);
  }

  // As gymnasium's MujocoEnv.do_simulation.
  void Advance(const Model* model, Data* data) {
    for (int i = 0; i < recipe_.frame_skip; ++i) mj_.mj_step(model, data);
    if (recipe_.contact_forces) mj_.mj_rnePostConstraint(model, data);
  }

  // Whether the simulation neither failed nor became unstable. MuJoCo prints the first warning of a kind, so none of
  // them is the first; `unwarned` is their count after a call without any. It is zero where a simulation was reset, which
  // MuJoCo itself does with an unstable one.
  bool Apply(int unwarned, void (*function)(const Model*, Data*, int, void*)) {
    std::fill(warning_, warning_ + recipe_.warnings, Warning{0, kMany});
    const int id = 0;
    bool ok = mj_.mjb_apply(batch_, &id, 1, function, this, 1) == 0;
    // To stage 0, nothing: it brings the fields out, which the last call does not.
    mj_.mjb_forward(batch_, &id, 1, 0);
    for (int kind = 0; kind < recipe_.warnings; ++kind) {
      if (recipe_.unstable >> kind & 1) ok &= warning_[kind].count == unwarned;
    }
    return ok;
  }

  double Position() const {
    double sum = 0;
    for (int i = 0; i < reference_.size; ++i) sum += recipe_.weights[i] * reference_.data[i];
    return sum;
  }

  void Store(uint32_t* physics) const {
    const double position = Position();
    std::memcpy(physics, state_, sizeof(double) * state_size_);
    std::memcpy(physics + 2 * state_size_, &position, sizeof position);
  }

  void Report(bool ok, double displacement, float* fields) const {
    if (!ok) {
      std::fill(fields, fields + fields_, std::numeric_limits<float>::quiet_NaN());
      return;
    }
    *fields++ = static_cast<float>(displacement);
    for (const Field& field : read_) fields = std::copy(field.data, field.data + field.size, fields);
  }

  const Library& mj_;
  const Recipe& recipe_;
  Batch* batch_ = nullptr;
  char error_[256] = {};
  size_t state_size_ = 0;  // In doubles.
  double* state_ = nullptr;
  double* control_ = nullptr;
  int controls_ = 0;
  Warning* warning_ = nullptr;
  Field reference_;
  std::vector<Field> read_;
  size_t fields_ = 1;
  std::vector<double> start_;
  const float* noise_ = nullptr;
};

// The arithmetic that Python's threads have, while it lives: XLA's flush denormal numbers to zero.
class UsualArithmetic {
 public:
  UsualArithmetic() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~UsualArithmetic() { std::fesetenv(&before_); }

 private:
  std::fenv_t before_;
};

// All simulations of one task: as many as were ever in use at once.
class Engine {
 public:
  Engine(const Library& library, const Recipe& recipe)
      : library_(library),
        names_(recipe.fields),
        reference_(recipe.reference),
        weights_(recipe.weights, recipe.weights + recipe.weights_size),
        recipe_(recipe) {
    recipe_.fields = names_.c_str();
    recipe_.reference = reference_.c_str();
    recipe_.weights = weights_.data();
    auto first = std::make_unique<Simulation>(library_, recipe_);
    error_ = first->error();
    if (!error_.empty()) return;
    // The caller's may go; the first simulation stays.
    recipe_.model = first->model();
    words = first->words();
    controls = first->controls();
    fields = first->fields();
    start = first->start();
    free_.push_back(std::move(first));
  }

  const std::string& error() const { return error_; }

  // Calls body(simulation, row) for each row, on several threads. False if there was no memory for a simulation.
  template <typename Body>
  bool ForEach(int64_t rows, int64_t threads, const Body& body) {
    std::atomic<bool> ok{true};
    ThreadPool::Shared().Run(rows, threads, [&](int64_t row) {
      const UsualArithmetic arithmetic;
      std::unique_ptr<Simulation> simulation = Take();
      if (*simulation->error()) {
        ok = false;
        return;
      }
      body(*simulation, row);
      std::lock_guard<std::mutex> lock(mutex_);
      free_.push_back(std::move(simulation));
    });
    return ok;
  }

  // Sizes of a row.
  size_t words = 0, controls = 0, fields = 0, start = 0;

 private:
  std::unique_ptr<Simulation> Take() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!free_.empty()) {
        std::unique_ptr<Simulation> simulation = std::move(free_.back());
        free_.pop_back();
        return simulation;
      }
    }
    return std::make_unique<Simulation>(library_, recipe_);
  }

  const Library& library_;
  const std::string names_, reference_;
  const std::vector<double> weights_;
  Recipe recipe_;
  std::string error_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Simulation>> free_;
};

}  // namespace rlx2

#endif  // RLX2_JAX_SIMULATION_H_
