// SPDX-License-Identifier: Apache-2.0
// The threads that run the CPU kernels under NumPy: a ParallelFor without OpenMP, torch or spinning. Idle threads sleep
// on a condition variable. A caller always works on its own job and only invites sleeping threads to help, so calls
// from several Python threads, and calls from inside a job, cannot wait for each other.
#pragma once

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/common.h"

namespace fastyolo {

class ThreadPool {
 public:
  static constexpr int kMaxThreads = 1024;

  // The pool of this process; call with the GIL held. It is never destroyed: its threads sleep until the process ends.
  // A forked child has none of its parent's threads, and the lock may have been held by one, so it makes its own pool.
  static ThreadPool& get() {
    static const int registered = pthread_atfork(nullptr, nullptr, [] { current_ = nullptr; });
    (void)registered;
    if (!current_) current_ = new ThreadPool;
    return *current_;
  }

  // Threads that a call may use, itself included. A forked child inherits the number.
  static int num_threads() { return num_threads_; }
  static void set_num_threads(int count) { num_threads_ = count; }

  // Starts the threads that are still missing. Throws std::system_error if the system has no more.
  ParallelFor parallel_for() {
    const int count = num_threads();
    const std::lock_guard<std::mutex> lock(mutex_);
    for (; workers_ < count - 1; ++workers_) std::thread([this] { work_forever(); }).detach();
    return ParallelFor(&ThreadPool::run, this, count);
  }

 private:
  struct Job {
    ParallelFor::Body body;
    void* arg;
    int64_t count;
    int64_t chunk;
    std::atomic<int64_t> next{0};
    int helpers = 0;  // under mutex_: the job lives on its caller's stack until the last helper has left
    std::condition_variable left{};

    void work() {
      for (int64_t begin; (begin = next.fetch_add(chunk, std::memory_order_relaxed)) < count;) {
        body(arg, begin, std::min(begin + chunk, count));
      }
    }
  };

  static void run(void* context, int64_t count, int64_t grain, ParallelFor::Body body, void* arg) {
    static_cast<ThreadPool*>(context)->run(count, grain, body, arg);
  }

  void run(int64_t count, int64_t grain, ParallelFor::Body body, void* arg) {
    // Four chunks a thread: enough to even out images with many and few detections.
    const int64_t threads = num_threads();
    const int64_t chunk = std::max({grain, ceil_div(count, 4 * threads), int64_t{1}});
    Job job{body, arg, count, chunk};
    const int64_t invited = std::min(threads, ceil_div(count, chunk)) - 1;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      invitations_.insert(invitations_.end(), invited, &job);
    }
    for (int64_t i = 0; i < invited; ++i) invited_.notify_one();
    job.work();
    std::unique_lock<std::mutex> lock(mutex_);
    invitations_.erase(std::remove(invitations_.begin(), invitations_.end(), &job), invitations_.end());
    job.left.wait(lock, [&job] { return job.helpers == 0; });
  }

  void work_forever() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      invited_.wait(lock, [this] { return !invitations_.empty(); });
      Job* job = invitations_.back();
      invitations_.pop_back();
      ++job->helpers;
      lock.unlock();
      job->work();
      lock.lock();
      // Notified under the lock: once it is released, the caller may return and the job is gone.
      if (--job->helpers == 0) job->left.notify_one();
    }
  }

  static int count_cpus() {
    cpu_set_t allowed;
    const bool known = sched_getaffinity(0, sizeof(allowed), &allowed) == 0;
    const int count = known ? CPU_COUNT(&allowed) : static_cast<int>(std::thread::hardware_concurrency());
    return std::clamp(count, 1, kMaxThreads);
  }

  inline static ThreadPool* current_ = nullptr;
  inline static std::atomic<int> num_threads_{count_cpus()};

  std::mutex mutex_;
  std::condition_variable invited_;
  std::vector<Job*> invitations_;  // one entry for each helper that a job may still take
  int workers_ = 0;
};

}  // namespace fastyolo
