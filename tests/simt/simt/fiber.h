// Fibers: a stack per CUDA thread, and switching between them and the scheduler on the one OS thread there is.
#pragma once

#include <sys/mman.h>

#include <cstdlib>
#include <new>

#include "state.h"

#if !defined(__x86_64__) && !defined(SIMT_UCONTEXT)
#define SIMT_UCONTEXT
#endif
#if defined(SIMT_UCONTEXT)
#include <ucontext.h>
#endif

namespace simt {

// Kernels keep little on the stack; sanitizers make frames several times larger. The page below a stack is not mapped,
// so an overflow faults where it happens.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr size_t stack_bytes = 256 * 1024;
#else
constexpr size_t stack_bytes = 64 * 1024;
#endif
constexpr size_t page_bytes = 4096;

#if !defined(SIMT_UCONTEXT)

// Saves the callee-saved registers on the stack in use, its pointer in *save, and goes on at `load`.
extern "C" void simt_switch_stack(void** save, void* load);
asm(R"(
.text
.weak simt_switch_stack
.hidden simt_switch_stack
.type simt_switch_stack,@function
simt_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch_stack,.-simt_switch_stack
)");

// A stack on which the first switch "returns" into `start`, with the alignment a call would have left.
SIMT_UNSEEN inline void* fresh_stack(char* stack, void (*start)()) {
  void** sp = reinterpret_cast<void**>(stack + stack_bytes) - 1;
  *sp = nullptr;
  *--sp = reinterpret_cast<void*>(start);
  for (int saved = 0; saved < 6; ++saved) *--sp = nullptr;
  return sp;
}

#else  // slower by two system calls per switch

SIMT_UNSEEN inline void simt_switch_stack(void** save, void* load) {
  ucontext_t here;
  *save = &here;
  swapcontext(&here, static_cast<ucontext_t*>(load));
}

SIMT_UNSEEN inline void* fresh_stack(char* stack, void (*start)()) {
  auto* context = new (stack) ucontext_t;  // at the far end of the stack
  getcontext(context);
  context->uc_stack.ss_sp = stack + sizeof(ucontext_t);
  context->uc_stack.ss_size = stack_bytes - sizeof(ucontext_t);
  context->uc_link = nullptr;
  makecontext(context, start, 0);
  return context;
}

#endif

SIMT_UNSEEN inline char* map_memory(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  return static_cast<char*>(p);
}

// Each identity keeps its stack: were stacks shared, ThreadSanitizer would report their reuse.
SIMT_UNSEEN inline char* stack_of(unsigned set, unsigned thread) {
  char*& stack = state.stacks[set][thread];
  if (!stack) {
    stack = map_memory(page_bytes + stack_bytes) + page_bytes;
    mprotect(stack - page_bytes, page_bytes, PROT_NONE);
  }
  return stack;
}

SIMT_UNSEEN inline void prepare_fiber(Thread& t, void (*start)()) {
  t.stack_pointer = fresh_stack(stack_of(state.identity_set, t.number), start);
#if defined(__SANITIZE_THREAD__)
  void*& fiber = state.tsan_fibers[state.identity_set][t.number];
  if (!fiber) fiber = __tsan_create_fiber(0);
#endif
}

// From the scheduler to a thread; returns when the thread next waits or ends.
SIMT_UNSEEN inline void run_thread(Thread& t) {
  state.current = &t;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&state.asan_scheduler_fake_stack, stack_of(0, t.number), stack_bytes);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(state.tsan_fibers[state.identity_set][t.number], 1);
#endif
  simt_switch_stack(&state.scheduler_stack_pointer, t.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(state.asan_scheduler_fake_stack, nullptr, nullptr);
#endif
  state.current = nullptr;
}

// From a thread to the scheduler; a thread that has ended does not come back.
SIMT_UNSEEN inline void yield_thread(bool ended = false) {
  Thread& me = *state.current;
  (void)ended;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(ended ? nullptr : &me.asan_fake_stack, state.asan_scheduler_stack,
                                 state.asan_scheduler_stack_bytes);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(state.tsan_scheduler, 1);
#endif
  simt_switch_stack(&me.stack_pointer, state.scheduler_stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(me.asan_fake_stack, &state.asan_scheduler_stack, &state.asan_scheduler_stack_bytes);
#endif
}

// The first thing a fiber does.
SIMT_UNSEEN inline void enter_fiber() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &state.asan_scheduler_stack, &state.asan_scheduler_stack_bytes);
#endif
}

// After an error the fibers of the block are left where they stand; their stacks and identities start anew.
SIMT_UNSEEN inline void abandon_fibers() {
  for (unsigned i = 0; i < state.num_threads; ++i) {
    if (state.stacks[state.identity_set][i]) unpoison(state.stacks[state.identity_set][i], stack_bytes);
#if defined(__SANITIZE_THREAD__)
    void*& fiber = state.tsan_fibers[state.identity_set][i];
    if (!fiber) continue;
    __tsan_switch_to_fiber(fiber, 0);  // there and back: what the fiber did happened before what the host does next
    __tsan_switch_to_fiber(state.tsan_scheduler, 0);
    __tsan_destroy_fiber(fiber);
    fiber = nullptr;
#endif
  }
}

}  // namespace simt
