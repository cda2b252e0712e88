// The Python side of every binding: arguments to and fro. The only file that knows pybind11.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "module.h"

namespace py = pybind11;

static simt::HostArray host_array(py::handle source) {
  const bool torch = py::hasattr(source, "data_ptr");
  simt::HostArray array;
  array.dtype = py::str(source.attr("dtype"));
  array.shape = source.attr("shape").cast<std::vector<int64_t>>();
  if (torch) {
    array.dtype = array.dtype.substr(array.dtype.find('.') + 1);
    array.item_bytes = source.attr("element_size")().cast<size_t>();
    array.strides = source.attr("stride")().cast<std::vector<int64_t>>();
    array.data = reinterpret_cast<char*>(source.attr("data_ptr")().cast<uintptr_t>());
  } else {
    array.item_bytes = source.attr("itemsize").cast<size_t>();
    for (int64_t bytes : source.attr("strides").cast<std::vector<int64_t>>()) {
      array.strides.push_back(bytes / int64_t(array.item_bytes));
    }
    array.data = reinterpret_cast<char*>(source.attr("ctypes").attr("data").cast<uintptr_t>());
  }
  return array;
}

static simt::Argument argument(py::handle source) {
  if (source.is_none()) return {};
  if (py::isinstance<py::bool_>(source)) return {source.cast<bool>()};
  if (py::isinstance<py::int_>(source)) return {source.cast<int64_t>()};
  if (py::isinstance<py::float_>(source)) return {source.cast<double>()};
  if (py::isinstance<py::str>(source)) return {source.cast<std::string>()};
  if (py::hasattr(source, "dtype") && py::hasattr(source, "shape")) return {host_array(source)};
  if (py::isinstance<py::list>(source) || py::isinstance<py::tuple>(source)) {
    std::vector<simt::Argument> items;
    for (py::handle item : source) items.push_back(argument(item));
    return {std::move(items)};
  }
  throw py::type_error("no kernel takes a " + py::str(py::type::of(source)).cast<std::string>());
}

PYBIND11_MODULE(simt_kernels, m) {
  simt::Module module;
  simt::define_module(module);
  for (const simt::Function& function : module.functions) {
    const auto call = [function](const py::args& args) {
      if (args.size() != function.arity) {
        throw py::type_error(function.name + ": expected " + std::to_string(function.arity) + " arguments, got " +
                             std::to_string(args.size()));
      }
      std::vector<simt::Argument> arguments;
      for (py::handle source : args) arguments.push_back(argument(source));
      return function.call(arguments);
    };
    m.def(function.name.c_str(), call, function.doc.c_str());
  }
}
