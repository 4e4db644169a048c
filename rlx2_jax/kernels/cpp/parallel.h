// A pool of threads that stays awake between calls.
//
// An update makes a handful of parallel calls of some tens of microseconds each, as long as a sleeping thread takes to
// wake. So helpers spin for a while after their last task before they sleep.

#ifndef RLX2_JAX_PARALLEL_H_
#define RLX2_JAX_PARALLEL_H_

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>

namespace rlx2 {

class ThreadPool {
 public:
  static constexpr int kMostThreads = 16;

  // The process's pool. Never destroyed: its threads end with the process.
  static ThreadPool& Shared() {
    static ThreadPool* const pool = new ThreadPool;
    return *pool;
  }

  // Of how many threads at most: a container's quota may pay for fewer than it may run.
  void Use(int64_t most) { most_.store(std::max<int64_t>(1, most), std::memory_order_relaxed); }

  // Runs body(task) for 0 <= task < count and returns when all are done. Every thread begins with a share of its own,
  // the same in every call, so that data stays in its core's cache, and then takes what others have not begun; a
  // helper that comes late or never costs speed only. While one caller has the pool, others work alone.
  template <typename Body>
  void Run(int64_t count, int64_t threads, const Body& body) {
    threads = std::min({threads, count, static_cast<int64_t>(kMostThreads), most_.load(std::memory_order_relaxed)});
    std::unique_lock<std::mutex> owner(owner_, std::defer_lock);
    if (threads <= 1 || !owner.try_lock()) {
      for (int64_t task = 0; task < count; ++task) body(task);
      return;
    }
    while (helpers_ + 1 < threads && StartHelper()) {
    }
    // No helper is inside Work here: the last call waited for all of them.
    function_ = [](const void* context, int64_t task) { (*static_cast<const Body*>(context))(task); };
    context_ = &body;
    threads_ = static_cast<int>(threads);
    for (int64_t t = 0; t < threads; ++t) {
      shares_[t].end = count * (t + 1) / threads;
      shares_[t].next.store(count * t / threads, std::memory_order_relaxed);
    }
    open_.store(true, std::memory_order_seq_cst);
    call_.fetch_add(1, std::memory_order_seq_cst);
    if (sleeping_.load(std::memory_order_seq_cst) > 0) {
      std::lock_guard<std::mutex> lock(sleep_);
      wake_.notify_all();
    }
    Work(0);
    // All tasks are taken; close the door to late helpers, then wait for those inside.
    open_.store(false, std::memory_order_seq_cst);
    for (int i = 1; inside_.load(std::memory_order_seq_cst) > 0; ++i) {
      Pause();
      if (i % 64 == 0) std::this_thread::yield();
    }
  }

 private:
  // Whether the system gave another thread; the next call asks again.
  bool StartHelper() {
    try {
      std::thread([this, index = helpers_ + 1] { Help(index); }).detach();
    } catch (const std::system_error&) {
      return false;
    }
    ++helpers_;
    return true;
  }

  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  void Work(int first) {
    for (int offset = 0; offset < threads_; ++offset) {
      Share& share = shares_[(first + offset) % threads_];
      for (;;) {
        const int64_t task = share.next.fetch_add(1, std::memory_order_relaxed);
        if (task >= share.end) break;
        function_(context_, task);
      }
    }
  }

  void Help(int index) {
    int64_t seen = 0;
    for (;;) {
      seen = Await(seen);
      inside_.fetch_add(1, std::memory_order_seq_cst);
      if (open_.load(std::memory_order_seq_cst) && index < threads_) Work(index);
      inside_.fetch_sub(1, std::memory_order_seq_cst);
    }
  }

  // Returns the number of the latest call, later than `seen`.
  int64_t Await(int64_t seen) {
    const auto patience = std::chrono::microseconds(200);
    const auto began = std::chrono::steady_clock::now();
    do {
      for (int i = 0; i < 64; ++i) {
        const int64_t call = call_.load(std::memory_order_acquire);
        if (call != seen) return call;
        Pause();
      }
      // Whoever else would run on this core goes first.
      std::this_thread::yield();
    } while (std::chrono::steady_clock::now() - began < patience);
    std::unique_lock<std::mutex> lock(sleep_);
    sleeping_.fetch_add(1, std::memory_order_seq_cst);
    wake_.wait(lock, [&] { return call_.load(std::memory_order_seq_cst) != seen; });
    sleeping_.fetch_sub(1, std::memory_order_seq_cst);
    return call_.load(std::memory_order_acquire);
  }

  static void Pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  std::atomic<int64_t> most_{kMostThreads};
  std::mutex owner_;  // Held by the caller that has the pool.
  int helpers_ = 0;

  // The call in progress; written while no helper is inside.
  void (*function_)(const void* context, int64_t task) = nullptr;
  const void* context_ = nullptr;
  int threads_ = 0;
  Share shares_[kMostThreads];

  std::atomic<bool> open_{false};
  std::atomic<int> inside_{0};
  std::atomic<int64_t> call_{0};

  std::mutex sleep_;
  std::condition_variable wake_;
  std::atomic<int> sleeping_{0};
};

}  // namespace rlx2

#endif  // RLX2_JAX_PARALLEL_H_
