// Which thread goes next: random, from the seed.
//
// Until the next barrier, warps either take turns, or (three times in four) one runs as far as it can before another
// starts. A fair schedule alone would keep all warps at about the same place and hide a missing barrier whose harm
// needs one warp to be several collectives ahead.
#pragma once

#include <bit>

#include "error.h"

namespace simt {

SIMT_UNSEEN inline void make_ready(Thread& t) {
  t.waiting = Waiting::nothing;
  state.warps[t.warp()].ready |= 1u << t.lane();
  state.ready_warps |= 1u << t.warp();
}

SIMT_UNSEEN inline void draw_warp_order() {
  const unsigned warps = (state.num_threads + warp_size - 1) / warp_size;
  for (unsigned i = 0; i < warps; ++i) state.warp_order[i] = uint8_t(i);
  for (unsigned i = warps; i > 1; --i) {
    const unsigned other = random_number() % i;
    const uint8_t last = state.warp_order[i - 1];
    state.warp_order[i - 1] = state.warp_order[other];
    state.warp_order[other] = last;
  }
  state.in_order = random_number() % 4 != 0;
}

// One of the bits of a mask that is not 0.
SIMT_UNSEEN inline unsigned random_bit(uint32_t mask) {
  const unsigned turn = random_number() % 32;
  return (std::countr_zero(std::rotr(mask, int(turn))) + turn) % 32;
}

// Null if no thread can go on.
SIMT_UNSEEN inline Thread* next_thread() {
  if (!state.ready_warps) return nullptr;
  unsigned w = 0;
  if (state.in_order) {
    unsigned first = 0;
    while (!(state.ready_warps >> state.warp_order[first] & 1)) ++first;
    w = state.warp_order[first];
  } else {
    w = random_bit(state.ready_warps);
  }
  Warp& warp = state.warps[w];
  const unsigned lane = random_bit(warp.ready);
  warp.ready &= ~(1u << lane);
  if (!warp.ready) state.ready_warps &= ~(1u << w);
  return &state.threads[w * warp_size + lane];
}

}  // namespace simt
