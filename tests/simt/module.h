// Functions that Python can call, without Python: what a binding file defines and python.cpp turns into a module.
// (pybind11 takes 5 s to compile, 20 s with sanitizers; this way it is compiled once, for all ops and modes.)
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace simt {

// A torch tensor or numpy array as Python holds it; strides in elements.
struct HostArray {
  char* data = nullptr;
  std::string dtype;  // "float32"
  size_t item_bytes = 0;
  std::vector<int64_t> shape, strides;
};

// None, a bool, a number, a string, an array, or a list of those.
struct Argument {
  std::variant<std::monostate, bool, int64_t, double, std::string, HostArray, std::vector<Argument>> value;

  template <class T>
  const T* get() const {
    return std::get_if<T>(&value);
  }
};
using Result = std::variant<std::monostate, bool, int64_t, double>;

struct Function {
  std::string name, doc;
  size_t arity;
  std::function<Result(const std::vector<Argument>&)> call;
};

// From an argument to a parameter of type P; std::invalid_argument where it does not fit.
template <class P, class = void>
struct Parameter {
  static_assert(std::is_constructible_v<P, const HostArray&>, "no parameter type");
  static P from(const Argument& a) {
    if (const auto* array = a.get<HostArray>()) return P(*array);
    throw std::invalid_argument("expected a tensor or an array");
  }
};
template <class P>
struct Parameter<P, std::enable_if_t<std::is_arithmetic_v<P>>> {
  static P from(const Argument& a) {
    if (const auto* v = a.get<bool>()) return P(*v);
    if (const auto* v = a.get<int64_t>()) return P(*v);
    if (const auto* v = a.get<double>(); v && std::is_floating_point_v<P>) return P(*v);
    throw std::invalid_argument("expected a number");
  }
};
template <>
struct Parameter<std::string> {
  static std::string from(const Argument& a) {
    if (const auto* v = a.get<std::string>()) return *v;
    throw std::invalid_argument("expected a string");
  }
};
template <class P>
struct Parameter<std::optional<P>> {
  static std::optional<P> from(const Argument& a) {
    if (a.get<std::monostate>()) return std::nullopt;
    return std::optional<P>(Parameter<P>::from(a));
  }
};

template <class P>
struct Parameter<std::vector<P>> {
  static std::vector<P> from(const Argument& a) {
    const auto* list = a.get<std::vector<Argument>>();
    if (!list) throw std::invalid_argument("expected a list");
    std::vector<P> values;
    values.reserve(list->size());
    for (const Argument& item : *list) values.push_back(Parameter<P>::from(item));
    return values;
  }
};

class Module {
 public:
  std::vector<Function> functions;

  // f: a lambda or a function; its parameters say what Python may pass.
  template <class F>
  void def(const char* name, F f, const char* doc = "") {
    add(name, doc, std::function(std::move(f)));
  }

 private:
  template <class R, class... Params>
  void add(const char* name, const char* doc, std::function<R(Params...)> f) {
    functions.push_back({name, doc, sizeof...(Params), [f](const std::vector<Argument>& arguments) {
                           return call<R, Params...>(f, arguments, std::index_sequence_for<Params...>());
                         }});
  }

  template <class R, class... Params, class F, size_t... I>
  static Result call(const F& f, [[maybe_unused]] const std::vector<Argument>& arguments, std::index_sequence<I...>) {
    if constexpr (std::is_void_v<R>) {
      f(Parameter<std::decay_t<Params>>::from(arguments[I])...);
      return {};
    } else if constexpr (std::is_integral_v<R> && !std::is_same_v<R, bool>) {
      return int64_t(f(Parameter<std::decay_t<Params>>::from(arguments[I])...));
    } else {
      return f(Parameter<std::decay_t<Params>>::from(arguments[I])...);
    }
  }
};

void define_module(Module& m);  // by SIMT_MODULE in the binding file

}  // namespace simt
