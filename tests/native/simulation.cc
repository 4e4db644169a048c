// Simulations without Python, for sanitizers: several callers at once against one thread's row after row, an unstable
// row among them. Exits 0 if all is well.
//
// Arguments: MuJoCo's library, a model, the numbers of its coordinates, velocities and controls, the bits of mjtState for
// these, and the number of kinds of warnings.

#include "simulation.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

#define CHECK(condition)                                             \
  if (!(condition)) {                                                \
    std::fprintf(stderr, "line %d: %s\n", __LINE__, #condition);     \
    std::exit(1);                                                    \
  }

constexpr int64_t kRows = 6, kSteps = 20, kCallers = 4, kUnstable = 3;

// Rows after some steps: words, then fields.
struct End {
  std::vector<uint32_t> physics;
  std::vector<float> fields;
};

End Play(rlx2::Engine& engine, int64_t threads) {
  std::vector<float> start(kRows * engine.start), control(kRows * engine.controls);
  for (size_t i = 0; i < start.size(); ++i) start[i] = 0.01f * std::sin(static_cast<float>(i));
  End end{std::vector<uint32_t>(kRows * engine.words), std::vector<float>(kRows * engine.fields)};
  CHECK(engine.ForEach(kRows, threads, [&](rlx2::Simulation& simulation, int64_t row) {
    simulation.Reset(&start[row * engine.start], &end.physics[row * engine.words], &end.fields[row * engine.fields]);
  }));
  for (int64_t step = 0; step < kSteps; ++step) {
    for (size_t i = 0; i < control.size(); ++i) control[i] = std::cos(static_cast<float>(i + 7 * step));
    control[kUnstable * engine.controls] = std::nanf("");
    const std::vector<uint32_t> before = end.physics;
    CHECK(engine.ForEach(kRows, threads, [&](rlx2::Simulation& simulation, int64_t row) {
      simulation.Step(&before[row * engine.words], &control[row * engine.controls], &end.physics[row * engine.words],
                      &end.fields[row * engine.fields]);
    }));
    for (int64_t row = 0; row < kRows; ++row) {
      CHECK(std::isnan(end.fields[row * engine.fields]) == (row == kUnstable));
    }
  }
  return end;
}

}  // namespace

int main(int count, char** arguments) {
  CHECK(count == 10);
  int32_t number[10];
  for (int i = 3; i < count; ++i) number[i] = std::atoi(arguments[i]);
  void* const handle = dlopen(arguments[1], RTLD_NOW);
  CHECK(handle);
  rlx2::Library library;
  CHECK(!library.Open(handle));
  using Load = rlx2::Model* (*)(const char*, const void*, char*, int);
  char error[256] = {};
  rlx2::Model* const model = reinterpret_cast<Load>(dlsym(handle, "mj_loadXML"))(arguments[2], nullptr, error, 256);
  CHECK(model);
  std::vector<double> weights(number[3]);
  weights[0] = 1;
  rlx2::Recipe recipe{model,     "qpos,qvel,cfrc_ext,", "qpos",    weights.data(), number[3], 4, 1,
                      number[6], number[7],             number[8], number[9],      ~0u};
  rlx2::Engine engine(library, recipe);
  CHECK(engine.error().empty());
  CHECK(engine.start == static_cast<size_t>(number[3] + number[4]));
  CHECK(engine.controls == static_cast<size_t>(number[5]));
  recipe.reference = "nothing";
  CHECK(rlx2::Engine(library, recipe).error() == "no field nothing");
  // The engine has its own.
  reinterpret_cast<void (*)(rlx2::Model*)>(dlsym(handle, "mj_deleteModel"))(model);

  const End alone = Play(engine, 1);
  std::vector<std::thread> callers;
  for (int64_t caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([&] { CHECK(Play(engine, 3).physics == alone.physics); });
  }
  for (std::thread& caller : callers) caller.join();
  std::puts("ok");
}
