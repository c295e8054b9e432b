// The CPU kernels of the operators in gradsurgery/ops/schema.py. Stable ABI only: one binary serves torch 2.10 and later.
#include <Python.h>

#include <limits>

#include "buffers/buffers.h"
#include "combine/rule_tensors.h"
#include "common/tensors.h"
#include "surgery/samples.h"
#include "surgery/surgery.h"
#include "weights/solve_tensors.h"

namespace gradsurgery {
namespace ops {

const ParallelFor& torch_threads() {
  static const ParallelFor run = [](int64_t count, const std::function<void(int64_t, int64_t)>& body) {
    torch::stable::parallel_for(0, count, 1, body);
  };
  return run;
}

Tensor empty_f64(std::initializer_list<int64_t> sizes) {
  int64_t strides[3] = {1, 1, 1};
  for (int d = int(sizes.size()) - 2; d >= 0; --d) strides[d] = strides[d + 1] * sizes.begin()[d + 1];
  AtenTensorHandle handle = nullptr;
  // The C shim, not stable::empty: this is half of the fixed cost of a small call.
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(sizes.size()), sizes.begin(), strides, aoti_torch_dtype_float64(),
                                                  aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

const double* float64_data(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Double && tensor.is_contiguous() && tensor.is_cpu(), "gradsurgery: ", name,
                  " must be a contiguous float64 tensor on the CPU");
  return static_cast<const double*>(tensor.const_data_ptr());
}

int64_t* int64_data(const std::optional<Tensor>& tensor, int64_t numel, const char* name) {
  if (!tensor) return nullptr;
  STD_TORCH_CHECK(
      tensor->scalar_type() == ScalarType::Long && tensor->is_contiguous() && tensor->is_cpu() && tensor->numel() == numel,
      "gradsurgery: ", name, " must be a contiguous int64 tensor of ", numel, " elements on the CPU");
  return static_cast<int64_t*>(tensor->mutable_data_ptr());
}

struct Order {
  PcgradOptions options;
  const int64_t* order;
  int64_t* key;

  Order(const std::optional<Tensor>& order_, const std::optional<Tensor>& key_, int64_t tasks, bool include_self, double scale)
      : order(int64_data(order_, tasks * tasks, "order")), key(int64_data(key_, 2, "key")) {
    options.kind = order ? OrderKind::given : key ? OrderKind::random : OrderKind::ascending;
    options.include_self = include_self;
    options.scale = scale;
  }
};

Tensor gram(Gradients grads, int64_t tasks, bool stacked, Groups given) {
  const std::vector<int64_t> groups = groups_of(given);
  const int64_t count = groups.empty() ? 1 : count_groups(groups);
  const Rows rows = rows_of(grads, tasks, stacked, nullptr, groups, count);
  Tensor result = groups.empty() ? empty_f64({tasks, tasks}) : empty_f64({count, tasks, tasks});
  gram_cpu(rows, torch_threads(), static_cast<double*>(result.mutable_data_ptr()));
  return result;
}

Tensor pcgrad_weights(Tensor gram, std::optional<Tensor> order, std::optional<Tensor> key, bool include_self, double scale) {
  const auto [groups, tasks] = check_gram(gram);
  const Order how(order, key, tasks, include_self, scale);
  Tensor w = gram.dim() == 2 ? empty_f64({tasks}) : empty_f64({groups, tasks});
  gradsurgery::pcgrad_weights(float64_data(gram, "gram"), int(groups), int(tasks), how.options, how.order, how.key,
                              static_cast<double*>(w.mutable_data_ptr()));
  return w;
}

// -> (w, report), of shapes [T] and [4] for K [T, T], with a leading [G] for K [G, T, T].
std::tuple<Tensor, Tensor> solve(Tensor gram, std::string solver, std::vector<double> options, std::optional<Tensor> given,
                                 std::optional<Tensor> state, std::optional<Tensor> order, std::optional<Tensor> key) {
  const auto [index, groups, tasks, state_size] = check_solve(gram, solver, options, given, state);
  const bool grouped = gram.dim() == 3;
  Problem problem;
  problem.tasks = int(tasks);
  problem.gram = float64_data(gram, "gram");
  problem.options = options.data();
  if (given) problem.given = float64_data(*given, "given");
  problem.order = int64_data(order, tasks * tasks, "order");
  if (state) problem.state = const_cast<double*>(float64_data(*state, "state"));
  Tensor w = grouped ? empty_f64({groups, tasks}) : empty_f64({tasks});
  Tensor report = grouped ? empty_f64({groups, kReportFields}) : empty_f64({kReportFields});
  problem.w = static_cast<double*>(w.mutable_data_ptr());
  solve_groups(kHostSolvers[index], problem, int(groups), state_size, int64_data(key, 2, "key"),
               static_cast<double*>(report.mutable_data_ptr()));
  return {w, report};
}

void combine_(std::vector<Tensor> out, Gradients grads, Tensor weights, bool stacked, bool accumulate, Groups given) {
  const std::vector<int64_t> groups = groups_of(given);
  const double* w = float64_data(weights, "weights");
  const auto [count, tasks] = check_weights(weights, groups);
  combine_cpu(rows_of(grads, tasks, stacked, &out, groups, count), w, accumulate, torch_threads());
}

void coordinatewise_(std::vector<Tensor> out, Gradients grads, int64_t tasks, bool stacked, std::string rule,
                     std::vector<double> options, std::optional<Tensor> uniform, std::optional<Tensor> key, bool accumulate) {
  const Rule what = rule_of(rule, options, tasks);
  const Rows rows = rows_for(what, grads, tasks, stacked, out);
  const double* drawn = uniform ? float64_data(*uniform, "uniform") : nullptr;
  int64_t* counter = int64_data(key, 2, "key");
  check_draws(what, rows, uniform, key);
  coordinatewise_cpu(rows, what, drawn, counter, accumulate, torch_threads());
}

std::tuple<Tensor, Tensor> pcgrad_(std::vector<Tensor> out, Gradients grads, int64_t tasks, bool stacked,
                                   std::optional<Tensor> order, std::optional<Tensor> key, bool include_self, double scale,
                                   bool accumulate) {
  const Rows rows = rows_of(grads, tasks, stacked, &out, {}, 1);
  const Order how(order, key, tasks, include_self, scale);
  Tensor gram = empty_f64({tasks, tasks}), w = empty_f64({tasks});
  pcgrad_cpu(rows, how.options, how.order, how.key, accumulate, torch_threads(), static_cast<double*>(gram.mutable_data_ptr()),
             static_cast<double*>(w.mutable_data_ptr()));
  return {gram, w};
}

// The rows of a batch, sample by sample.
struct SampleRows {
  int64_t samples;
  Rows rows;

  SampleRows(const Gradients& grads, int64_t tasks, bool stacked, const std::vector<Tensor>* out)
      : samples(count_samples(grads, stacked, out)),
        rows(rows_of(grads, tasks, stacked, out, {}, 1, Coordinates::samples_first)) {}
};

Tensor gram_samples(Gradients grads, int64_t tasks, bool stacked) {
  const SampleRows batch(grads, tasks, stacked, nullptr);
  Tensor result = empty_f64({batch.samples, tasks, tasks});
  gram_samples_cpu(batch.rows, batch.samples, torch_threads(), static_cast<double*>(result.mutable_data_ptr()));
  return result;
}

void combine_samples_(std::vector<Tensor> out, Gradients grads, Tensor weights, bool stacked, bool accumulate) {
  STD_TORCH_CHECK(weights.dim() == 2, "gradsurgery: weights must be [B, T]");
  const SampleRows batch(grads, weights.size(1), stacked, &out);
  STD_TORCH_CHECK(weights.size(0) == batch.samples, "gradsurgery: weights must be [B, T]");
  combine_samples_cpu(batch.rows, batch.samples, float64_data(weights, "weights"), accumulate, torch_threads());
}

std::tuple<Tensor, Tensor> pcgrad_samples_(std::vector<Tensor> out, Gradients grads, int64_t tasks, bool stacked,
                                           std::optional<Tensor> order, std::optional<Tensor> key, bool include_self,
                                           double scale, bool accumulate) {
  const SampleRows batch(grads, tasks, stacked, &out);
  const Order how(order, key, tasks, include_self, scale);
  Tensor gram = empty_f64({batch.samples, tasks, tasks}), w = empty_f64({batch.samples, tasks});
  pcgrad_samples_cpu(batch.rows, batch.samples, how.options, how.order, how.key, accumulate, torch_threads(),
                     static_cast<double*>(gram.mutable_data_ptr()), static_cast<double*>(w.mutable_data_ptr()));
  return {gram, w};
}

// Whether a step goes ahead; a call without the flag always does.
bool goes_ahead(const std::optional<Tensor>& valid) {
  if (!valid) return true;
  STD_TORCH_CHECK(valid->scalar_type() == ScalarType::Bool && valid->numel() == 1 && valid->is_cpu(),
                  "gradsurgery: valid must be one bool on the CPU");
  return *static_cast<const bool*>(valid->const_data_ptr());
}

Tensor ema_gram_(std::vector<Tensor> buffers, Gradients grads, int64_t tasks, bool stacked, Tensor scales, Tensor rate,
                 std::optional<Tensor> valid) {
  const BufferedRows rows = buffered_rows_of(buffers, grads, tasks, stacked);
  STD_TORCH_CHECK(scales.numel() == tasks && rate.numel() == 1, "gradsurgery: scales must be [T] and rate one number");
  const double *scale = float64_data(scales, "scales"), *step = float64_data(rate, "rate");
  Tensor gram = empty_f64({tasks, tasks});
  double* const K = static_cast<double*>(gram.mutable_data_ptr());
  if (goes_ahead(valid))
    ema_gram_cpu({rows.grads, rows.buffers, rows.present}, scale, *step, torch_threads(), K);
  else
    std::fill(K, K + tasks * tasks, std::numeric_limits<double>::quiet_NaN());
  return gram;
}

Tensor excess_risk_(std::vector<Tensor> buffers, Gradients grads, int64_t tasks, bool stacked, std::optional<Tensor> valid) {
  const BufferedRows rows = buffered_rows_of(buffers, grads, tasks, stacked);
  Tensor risk = empty_f64({tasks});
  double* const e = static_cast<double*>(risk.mutable_data_ptr());
  if (goes_ahead(valid))
    excess_risk_cpu({rows.grads, rows.buffers, rows.present}, torch_threads(), e);
  else
    std::fill(e, e + tasks, std::numeric_limits<double>::quiet_NaN());
  return risk;
}

}  // namespace ops
}  // namespace gradsurgery

STABLE_TORCH_LIBRARY_IMPL(gradsurgery, CPU, m) {
  m.impl("gram", TORCH_BOX(&gradsurgery::ops::gram));
  m.impl("pcgrad_weights", TORCH_BOX(&gradsurgery::ops::pcgrad_weights));
  m.impl("solve", TORCH_BOX(&gradsurgery::ops::solve));
  m.impl("combine_", TORCH_BOX(&gradsurgery::ops::combine_));
  m.impl("coordinatewise_", TORCH_BOX(&gradsurgery::ops::coordinatewise_));
  m.impl("pcgrad_", TORCH_BOX(&gradsurgery::ops::pcgrad_));
  m.impl("gram_samples", TORCH_BOX(&gradsurgery::ops::gram_samples));
  m.impl("combine_samples_", TORCH_BOX(&gradsurgery::ops::combine_samples_));
  m.impl("pcgrad_samples_", TORCH_BOX(&gradsurgery::ops::pcgrad_samples_));
  m.impl("ema_gram_", TORCH_BOX(&gradsurgery::ops::ema_gram_));
  m.impl("excess_risk_", TORCH_BOX(&gradsurgery::ops::excess_risk_));
}

namespace {

template <class T>
T* at_address(int64_t integer) {
  return reinterpret_cast<T*>(integer);
}

gradsurgery::PcgradOptions options_at(int64_t order, int64_t key, int64_t include_self, double scale) {
  using namespace gradsurgery;
  PcgradOptions options;
  options.kind = order ? OrderKind::given : key ? OrderKind::random : OrderKind::ascending;
  options.include_self = include_self != 0;
  options.scale = scale;
  return options;
}

// pcgrad on one dense [T, N] matrix given by addresses: at N = 1,000 the dispatcher costs five times the arithmetic. The caller
// has checked everything (gradsurgery/ops/small.py); Python's lock is held, for a few microseconds. (out, grads, tasks, numel,
// scalar, order or 0, key or 0, include_self, scale)
PyObject* pcgrad_small(PyObject*, PyObject* const* args, Py_ssize_t count) {
  using namespace gradsurgery;
  if (count != 9) {
    PyErr_SetString(PyExc_TypeError, "pcgrad_small: expected 9 arguments");
    return nullptr;
  }
  int64_t value[8];
  for (int k = 0; k < 8; ++k) value[k] = PyLong_AsLongLong(args[k]);
  const double scale = PyFloat_AsDouble(args[8]);
  if (PyErr_Occurred()) return nullptr;
  const int tasks = int(value[2]);
  Rows rows;
  rows.tasks = tasks;
  rows.numel = value[3];
  rows.pieces.push_back(Piece{rows.numel, 0});
  const Scalar scalar = Scalar(value[4]);
  rows.rows.reserve(size_t(tasks));
  const char* const grads = at_address<char>(value[1]);
  for (int t = 0; t < tasks; ++t) rows.rows.push_back(Row{grads + t * rows.numel * size_of(scalar), -1, scalar});
  rows.out.push_back(Row{at_address<char>(value[0]), -1, scalar});
  try {
    Scratch<double, 80> scratch(size_t(tasks) * (tasks + 1));
    pcgrad_cpu(rows, options_at(value[5], value[6], value[7], scale), at_address<int64_t>(value[5]),
               at_address<int64_t>(value[6]), false, ops::torch_threads(), scratch.data(),
               scratch.data() + int64_t(tasks) * tasks);
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
  Py_RETURN_NONE;
}

// pcgrad_weights likewise, on one dense K [T, T]. (w, gram, tasks, order or 0, key or 0, include_self, scale)
PyObject* pcgrad_weights_small(PyObject*, PyObject* const* args, Py_ssize_t count) {
  using namespace gradsurgery;
  if (count != 7) {
    PyErr_SetString(PyExc_TypeError, "pcgrad_weights_small: expected 7 arguments");
    return nullptr;
  }
  int64_t value[6];
  for (int k = 0; k < 6; ++k) value[k] = PyLong_AsLongLong(args[k]);
  const double scale = PyFloat_AsDouble(args[6]);
  if (PyErr_Occurred()) return nullptr;
  try {
    pcgrad_weights(at_address<double>(value[1]), 1, int(value[2]), options_at(value[3], value[4], value[5], scale),
                   at_address<int64_t>(value[3]), at_address<int64_t>(value[4]), at_address<double>(value[0]));
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"pcgrad_small", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(pcgrad_small)), METH_FASTCALL, nullptr},
    {"pcgrad_weights_small", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(pcgrad_weights_small)), METH_FASTCALL,
     nullptr},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

PyMODINIT_FUNC PyInit__C(void) {
  static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
