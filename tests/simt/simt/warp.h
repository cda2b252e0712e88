// Warp collectives: __syncwarp, shuffles, votes. Nothing runs in lock-step: lanes meet only here, as since Volta.
#pragma once

#include <type_traits>

#include "barrier.h"

namespace simt {

// What every lane of a collective gave. Read it before the next barrier or collective.
struct Lanes {
  Collective* collective;
  template <class T>
  SIMT_UNSEEN T get(unsigned lane) const {
    uint64_t words[4];
    for (int i = 0; i < 4; ++i) words[i] = collective->value[lane][i];
    T value;
    __builtin_memcpy(&value, words, sizeof(T));
    return value;
  }
};

SIMT_UNSEEN inline Collective& join_collective(Warp& warp, unsigned mask, const Place& place) {
  for (Collective& c : warp.collectives) {
    if (c.arrived && c.mask == mask) return c;
  }
  for (Collective& c : warp.collectives) {
    if (!c.arrived && !c.unread) return c;
  }
  fail(place, "more than %u warp collectives of one warp under way", Warp::in_flight);
}

// Waits for the lanes of the mask, all of which must call from the same line with the same mask.
SIMT_UNSEEN inline Lanes collect(unsigned mask, const uint64_t (&value)[4], const Place& place) {
  Thread& me = *state.current;
  Thread* warp = &state.threads[me.warp() * warp_size];
  me.place = place, me.mask = mask;
  if (!(mask >> me.lane() & 1)) fail(place, "the calling lane %u is not in the mask 0x%08x", me.lane(), mask);
  for (unsigned rest = mask; rest; rest &= rest - 1) {
    const unsigned lane = __builtin_ctz(rest);
    if (me.warp() * warp_size + lane >= state.num_threads || warp[lane].waiting == Waiting::exited) {
      fail(place, "the mask 0x%08x names lane %u, which has exited or does not exist", mask, lane);
    }
  }
  Collective& c = join_collective(state.warps[me.warp()], mask, place);
  c.mask = mask;
  c.arrived |= 1u << me.lane();
  for (int i = 0; i < 4; ++i) c.value[me.lane()][i] = value[i];
  char* order = &c.order[state.identity_set];
  release(order);
  me.waiting = Waiting::warp;
  if (c.arrived == mask) {
    for (unsigned rest = mask; rest; rest &= rest - 1) {
      Thread& other = warp[__builtin_ctz(rest)];
      if (!(other.place == place)) {
        fail(place, "lanes of a warp wait in different collectives (the other at %s:%u)", other.place.file,
             other.place.line);
      }
    }
    c.arrived = 0;
    c.unread = __builtin_popcount(mask);
    for (unsigned rest = mask; rest; rest &= rest - 1) make_ready(warp[__builtin_ctz(rest)]);
  }
  yield_thread();
  acquire(order);
  --c.unread;
  return {&c};
}

template <class T>
SIMT_UNSEEN inline Lanes exchange(unsigned mask, const T& value, const Place& place) {
  static_assert(sizeof(T) <= 32 && std::is_trivially_copyable_v<T>);
  uint64_t words[4] = {};
  __builtin_memcpy(words, &value, sizeof(T));
  return collect(mask, words, place);
}

template <class T>
SIMT_UNSEEN inline T shuffle(unsigned mask, T value, unsigned source, int width, const Place& place) {
  static_assert(std::is_arithmetic_v<T> || sizeof(T) <= 4, "a shuffle moves an arithmetic type, a half or a half2");
  if (width < 1 || width > 32 || (width & (width - 1))) fail(place, "shuffle width %d is not a power of two", width);
  const Lanes lanes = exchange(mask, value, place);
  if (!(mask >> source & 1)) fail(place, "shuffle from lane %u, which is not in the mask 0x%08x", source, mask);
  return lanes.get<T>(source);
}

template <class F>
inline unsigned lanes_where(unsigned mask, F predicate) {
  unsigned found = 0;
  for (unsigned rest = mask; rest; rest &= rest - 1) {
    const unsigned lane = __builtin_ctz(rest);
    if (predicate(lane)) found |= 1u << lane;
  }
  return found;
}

SIMT_UNSEEN inline unsigned lane_id() { return state.current->lane(); }

}  // namespace simt

inline void __syncwarp(unsigned mask = 0xffffffffu, simt::Site site = simt::Site::current()) {
  simt::exchange(mask, 0, site);
}

template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, simt::Site site = simt::Site::current()) {
  const unsigned segment = simt::lane_id() & ~unsigned(width - 1);
  return simt::shuffle(mask, value, segment | (unsigned(source) & unsigned(width - 1)), width, site);
}

template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, simt::Site site = simt::Site::current()) {
  const unsigned me = simt::lane_id(), source = me ^ unsigned(lanes), segment = ~unsigned(width - 1);
  return simt::shuffle(mask, value, (source & segment) > (me & segment) ? me : source, width, site);
}

template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                          simt::Site site = simt::Site::current()) {
  const unsigned me = simt::lane_id(), within = me & unsigned(width - 1);
  return simt::shuffle(mask, value, within + delta < unsigned(width) ? me + delta : me, width, site);
}

template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                        simt::Site site = simt::Site::current()) {
  const unsigned me = simt::lane_id(), within = me & unsigned(width - 1);
  return simt::shuffle(mask, value, within >= delta ? me - delta : me, width, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, simt::Site site = simt::Site::current()) {
  const simt::Lanes lanes = simt::exchange(mask, predicate, site);
  return simt::lanes_where(mask, [&](unsigned lane) { return lanes.get<int>(lane) != 0; });
}
inline int __any_sync(unsigned mask, int predicate, simt::Site site = simt::Site::current()) {
  return __ballot_sync(mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, simt::Site site = simt::Site::current()) {
  return __ballot_sync(mask, predicate, site) == mask;
}

template <class T>
inline unsigned __match_any_sync(unsigned mask, T value, simt::Site site = simt::Site::current()) {
  const simt::Lanes lanes = simt::exchange(mask, value, site);
  return simt::lanes_where(mask, [&](unsigned lane) { return lanes.get<T>(lane) == value; });
}

template <class T>
inline T __reduce_add_sync(unsigned mask, T value, simt::Site site = simt::Site::current()) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>);
  const simt::Lanes lanes = simt::exchange(mask, value, site);
  unsigned sum = 0;
  simt::lanes_where(mask, [&](unsigned lane) { return sum += unsigned(lanes.get<T>(lane)), false; });
  return T(sum);
}
