// What Python needs without tensors: which instruction set runs, and the T x T mathematics on NumPy arrays for tests.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "../common/cpu.h"
#include "../weights/weights.h"

namespace py = pybind11;
using Float64 = py::array_t<double, py::array::c_style | py::array::forcecast>;
using Int64 = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;

namespace gradsurgery {
namespace {

py::array_t<double> host_pcgrad_weights(const Float64& gram, const std::optional<Int64>& order,
                                        std::optional<std::pair<int64_t, int64_t>> key, bool include_self, double scale) {
  const auto dims = gram.ndim();
  if ((dims != 2 && dims != 3) || gram.shape(dims - 2) != gram.shape(dims - 1))
    throw py::value_error("gram must be [T, T] or [G, T, T]");
  const int tasks = int(gram.shape(dims - 1)), groups = dims == 3 ? int(gram.shape(0)) : 1;
  if (order && (order->ndim() != 2 || order->shape(0) != tasks || order->shape(1) != tasks))
    throw py::value_error("order must be [T, T]");
  PcgradOptions options;
  options.kind = order ? OrderKind::given : key ? OrderKind::random : OrderKind::ascending;
  options.include_self = include_self;
  options.scale = scale;
  int64_t seed_and_step[2] = {key ? key->first : 0, key ? key->second : 0};
  py::array_t<double> w(dims == 3 ? std::vector<py::ssize_t>{groups, tasks} : std::vector<py::ssize_t>{tasks});
  pcgrad_weights(gram.data(), groups, tasks, options, order ? order->data() : nullptr, seed_and_step, w.mutable_data());
  return w;
}

py::array_t<int32_t> host_pcgrad_order(int64_t seed, int64_t step, uint32_t group, int tasks) {
  if (tasks < 1) throw py::value_error("tasks must be at least 1");
  py::array_t<int32_t> order({tasks, tasks});
  for (int i = 0; i < tasks; ++i) pcgrad_random_order(seed, step, group, i, tasks, order.mutable_data(i, 0));
  return order;
}

}  // namespace
}  // namespace gradsurgery

PYBIND11_MODULE(_host, m) {
  using namespace gradsurgery;
  m.doc() = "CPU capability and the T x T mathematics, without torch.";
  m.def("cpu_capability", [] { return isa_name(current_isa()); }, "The instruction set the CPU kernels run with.");
  m.def("cpu_capability_available", [] { return isa_name(detect_isa()); }, "The widest instruction set this machine has.");
  m.def("pcgrad_weights", &host_pcgrad_weights, py::arg("gram"), py::arg("order") = py::none(), py::arg("key") = py::none(),
        py::arg("include_self") = false, py::arg("scale") = 1.0, "w [T] of PCGrad from K [T, T], or [G, T] from [G, T, T].");
  m.def("pcgrad_order", &host_pcgrad_order, py::arg("seed"), py::arg("step"), py::arg("group"), py::arg("tasks"),
        "The random order [T, T] of one step.");
}
