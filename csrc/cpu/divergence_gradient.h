// The gradients of divergences by two tiles of logits, lane by lane.
#pragma once

#include "divergence_lanes.h"

namespace ncops::NCOPS_ISA {

// The gradients of L rows by their logits, from the planes.
template <class T, int L>
struct DivergenceGradient {
  alignas(64) T g[divergence::kColumns][L], f[divergence::kColumns][L];
  alignas(64) LaneInt<T> active[L], poisoned[L];
  bool any_active, wants_mixture;

  void begin(const T* grad, const T* floats, int64_t rows, int64_t row, int64_t count) {
    any_active = wants_mixture = false;
    for (int i = 0; i < L; ++i) {
      bool on = false;
      for (int c = 0; c < divergence::kColumns; ++c) {
        g[c][i] = i < count ? grad[c * rows + row + i] : T(0);
        f[c][i] = i < count ? floats[c * rows + row + i] : T(0);
        on |= g[c][i] != 0;
      }
      wants_mixture |= g[divergence::kJs][i] != 0;
      active[i] = on ? -1 : 0;
      poisoned[i] = f[divergence::kLse][i] - f[divergence::kLse][i] != 0 ? -1 : 0;
      any_active |= on;
    }
  }

  // first_tile and second_tile [count][L] become the gradients by the products of z and of y.
  void apply(const PairReader<T>& read, T* first_tile, T* second_tile, int64_t first, int64_t count, T beta) const {
    constexpr T nan = std::numeric_limits<T>::quiet_NaN();
    for (int lane = 0; lane < L; lane += kWidth<T>) {
      const auto at = [&](const T (*of)[L], int c) __attribute__((always_inline)) { return load(of[c] + lane); };
      const IntVec<T> on = load_int<T>(active + lane), bad = load_int<T>(poisoned + lane);
      const Vec<T> none{};
      for (int64_t j = 0; j < count; ++j) {
        T *zp = first_tile + j * L + lane, *yp = second_tile + j * L + lane;
        const Both<T> v = read(zp, yp, first + j);
        const Vec<T> log_p = v.masked ? none : v.z - at(f, divergence::kLse), log_q = v.other_masked ? none : v.y - at(f, divergence::kOtherLse);
        const Vec<T> p = v.masked ? none : exp_nonpositive<T>(log_p), q = v.other_masked ? none : exp_nonpositive<T>(log_q);
        const Vec<T> s = v.masked & v.other_masked ? none : v.d - at(f, divergence::kShift);
        const IntVec<T> near = size_of<T>(s) < kNear<T>;
        const Vec<T> t = near ? s : none, rise = near ? p * (t + exp_rest<T>(t)) : q - p;
        const Vec<T> above = s > 0 ? splat<T>(1) : (s == 0 ? splat<T>(T(0.5)) : none), other_above = 1 - above;
        Vec<T> of_p = at(g, divergence::kLse) - times(at(g, divergence::kKl), s + at(f, divergence::kKl)) + times(at(g, divergence::kOverlap), above - at(f, divergence::kBelow)) -
                      times(at(g, divergence::kEntropy), log_p + at(f, divergence::kEntropy));
        Vec<T> of_q = at(g, divergence::kOtherLse) + times(at(g, divergence::kReverseKl), s - at(f, divergence::kReverseKl)) +
                      times(at(g, divergence::kOverlap), other_above - (at(f, divergence::kOverlap) - at(f, divergence::kBelow))) -
                      times(at(g, divergence::kOtherEntropy), log_q + at(f, divergence::kOtherEntropy));
        if (wants_mixture) {
          Vec<T> over_p, over_q;
          DivergenceLanes<T, L>::mixture_logs(s, beta, over_p, over_q);
          const NearMixture<T> mixture(t, beta);
          over_p = near ? mixture.over_p - mixture.rest_p : over_p;
          over_q = near ? mixture.over_q - mixture.rest_q : over_q;
          of_p -= times(at(g, divergence::kJs) * beta, over_p + at(f, divergence::kMixtureKl));
          of_q -= times(at(g, divergence::kJs) * (1 - beta), over_q + at(f, divergence::kOtherMixtureKl));
        }
        Vec<T> dz = (v.masked ? none : p * of_p) - times(at(g, divergence::kReverseKl), rise);
        Vec<T> dy = (v.other_masked ? none : q * of_q) + times(at(g, divergence::kKl), rise);
        if (read.cap) {
          Vec<T> slope, other_slope;
          read.slopes(zp, yp, first + j, slope, other_slope);
          dz = v.masked ? none : dz * slope;
          dy = v.other_masked ? none : dy * other_slope;
        }
        dz = bad ? splat<T>(nan) : dz, dy = bad ? splat<T>(nan) : dy;
        store(zp, on ? dz : none);
        store(yp, on ? dy : none);
      }
    }
  }

 private:
  // The product, 0 where the gradient is, whatever the value.
  static NCOPS_INLINE Vec<T> times(Vec<T> gradient, Vec<T> value) { return gradient == 0 ? Vec<T>{} : gradient * value; }
};

}  // namespace ncops::NCOPS_ISA
