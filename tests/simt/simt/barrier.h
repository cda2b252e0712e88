// __syncthreads and its votes.
#pragma once

#include "schedule.h"

namespace simt {

// Lets the block go on if all threads that have not exited are at the barrier, and at the same one.
SIMT_UNSEEN inline void release_barrier() {
  if (!state.alive || state.at_barrier != state.alive) return;
  Thread* first = nullptr;
  for (unsigned i = 0; i < state.num_threads; ++i) {
    Thread& t = state.threads[i];
    if (t.waiting != Waiting::barrier) continue;
    if (!first) first = &t;
    if (!(t.place == first->place)) {
      fail(t.place, "threads of a block wait at different __syncthreads (the other at %s:%u)", first->place.file,
           first->place.line);
    }
  }
  state.at_barrier = 0;
  state.barrier_phase ^= 1;
  state.vote_result = state.vote;
  state.vote = BlockVote{};
  draw_warp_order();
  for (unsigned i = 0; i < state.num_threads; ++i) {
    if (state.threads[i].waiting == Waiting::barrier) make_ready(state.threads[i]);
  }
}

SIMT_UNSEEN inline BlockVote barrier(int predicate, const Place& place) {
  Thread& me = *state.current;
  ++(predicate ? state.vote.yes : state.vote.no);
  me.place = place, me.waiting = Waiting::barrier;
  ++state.at_barrier;
  char* order = &state.barrier_order[state.barrier_phase][state.identity_set];
  release(order);
  release_barrier();
  yield_thread();
  acquire(order);
  return state.vote_result;
}

}  // namespace simt

inline void __syncthreads(simt::Site site = simt::Site::current()) { simt::barrier(0, site); }
inline int __syncthreads_or(int predicate, simt::Site site = simt::Site::current()) {
  return simt::barrier(predicate, site).yes != 0;
}
inline int __syncthreads_and(int predicate, simt::Site site = simt::Site::current()) {
  return simt::barrier(predicate, site).no == 0;
}
inline int __syncthreads_count(int predicate, simt::Site site = simt::Site::current()) {
  return simt::barrier(predicate, site).yes;
}

// Ordered for all threads that fence too: more than the hardware promises, which orders only what is then seen.
inline void __threadfence() {
  simt::release(&simt::state.fence);
  simt::acquire(&simt::state.fence);
}
inline void __threadfence_block() {}
