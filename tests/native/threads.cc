// A call goes on where the system gives no more threads, and takes them when it does.

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>

#include "parallel.h"

static bool refused = true;

extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*start)(void*), void* given) {
  using Create = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  static const auto create = reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"));
  return refused ? EAGAIN : create(thread, attributes, start, given);
}

// Threads that took part in a call of four tasks, each of which waits a while for another thread's.
static int Taken() {
  std::atomic<int> done{0}, helped{0};
  const auto caller = std::this_thread::get_id();
  rlx2::ThreadPool::Shared().Run(4, 2, [&](int64_t) {
    if (std::this_thread::get_id() != caller) helped = 1;
    for (int i = 0; i < 1000 && !refused && !helped; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    ++done;
  });
  return done == 4 ? 1 + helped : 0;
}

int main() {
  const int alone = Taken();
  refused = false;
  std::printf("%d %d\n", alone, Taken());
}
