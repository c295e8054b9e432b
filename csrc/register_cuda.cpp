// The CUDA kernels of the operators in gradsurgery/ops/schema.py. Stable ABI only: one binary serves torch 2.10 and later.
// Nothing here waits for the device: K, w and PCGrad's step live there, and every stage is a launch on the current stream.
#include <Python.h>

#include <limits>

#include "buffers/buffers_cuda.h"
#include "combine/combine_cuda.h"
#include "combine/coordinatewise_cuda.h"
#include "combine/rule_tensors.h"
#include "common/cuda_table.h"
#include "common/cuda_table_on_device.h"
#include "common/cuda_tensors.h"
#include "gram/gram_cuda.h"
#include "surgery/samples_cuda.h"
#include "surgery/surgery_cuda.h"
#include "weights/pcgrad_cuda.h"
#include "weights/solve_cuda.h"
#include "weights/solve_tensors.h"

namespace gradsurgery {
namespace ops {
namespace {

const Tensor& first_present(const Gradients& grads) {
  for (const std::optional<Tensor>& g : grads)
    if (g) return *g;
  STD_TORCH_CHECK(false, "gradsurgery: at least one gradient must be present");
}

double* float64_data(const Tensor& tensor, const DeviceScope& scope, const char* name) {
  scope.check_here(tensor, name);
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Double && tensor.is_contiguous(), "gradsurgery: ", name,
                  " must be a contiguous float64 tensor");
  return static_cast<double*>(const_cast<void*>(tensor.const_data_ptr()));
}

int64_t* int64_data(const Tensor& tensor, int64_t numel, const DeviceScope& scope, const char* name) {
  scope.check_here(tensor, name);
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Long && tensor.is_contiguous() && tensor.numel() == numel,
                  "gradsurgery: ", name, " must be a contiguous int64 tensor of ", numel, " elements");
  return static_cast<int64_t*>(tensor.mutable_data_ptr());
}

// The gradients of one call, ready for launches.
struct Prepared {
  DenseRows dense;
  RowTable table;
  TableOnDevice on_device;

  Prepared(const Gradients& grads, int64_t tasks, bool stacked, const std::vector<Tensor>* out, bool accumulate,
           const std::vector<int64_t>& groups, int64_t group_count, const DeviceScope& scope)
      : dense(rows_of(checked(grads, out, scope), tasks, stacked, out, groups, group_count), scope, accumulate),
        table(dense.rows()),
        on_device(table, scope) {}

  // Of a batch, sample by sample.
  Prepared(const Gradients& grads, int64_t tasks, bool stacked, const std::vector<Tensor>* out, bool accumulate, int64_t samples,
           const DeviceScope& scope)
      : dense(rows_of(checked(grads, out, scope), tasks, stacked, out, {}, 1, Coordinates::samples_first), scope, accumulate),
        table(sample_rows(dense.rows(), samples)),
        on_device(table, scope) {}

  Prepared(const Rule& rule, const Gradients& grads, int64_t tasks, bool stacked, const std::vector<Tensor>& out, bool accumulate,
           const DeviceScope& scope)
      : dense(rows_for(rule, checked(grads, &out, scope), tasks, stacked, out), scope, accumulate),
        table(dense.rows(), table_extras(dense.rows(), rule)),
        on_device(table, scope) {}

 private:
  static const Gradients& checked(const Gradients& grads, const std::vector<Tensor>* out, const DeviceScope& scope) {
    for (const std::optional<Tensor>& g : grads)
      if (g) scope.check_here(*g, "every gradient");
    if (out)
      for (const Tensor& tensor : *out) scope.check_here(tensor, "out");
    return grads;
  }
};

struct Partials {
  Tensor memory;  // [pairs, blocks]
  double* data;
  int blocks;

  Partials(const Prepared& prepared, const DeviceScope& scope)
      : memory(scope.empty({std::max<int64_t>(1, gram_partials(prepared.table))}, ScalarType::Double)),
        data(static_cast<double*>(memory.mutable_data_ptr())),
        blocks(gram_launch(prepared.table).blocks) {}

  void fill(Prepared& prepared, const DeviceScope& scope) {
    gram_partials_cuda(prepared.table, data, scope.stream());
    scope.check_launch();
  }
};

// Surgery by sample: what is there of K and w is found, or combined with.
struct SampleCall {
  int64_t samples;
  SamplesCuda call;
  Prepared prepared;

  SampleCall(const Gradients& grads, int64_t tasks, bool stacked, const std::vector<Tensor>* out, bool accumulate,
             const DeviceScope& scope)
      : samples(checked(count_samples(grads, stacked, out), tasks)),
        prepared(grads, tasks, stacked, out, accumulate, samples, scope) {
    for (const Piece& piece : prepared.dense.rows().pieces)
      STD_TORCH_CHECK(piece.numel <= samples * kMaxSampleRow, "gradsurgery: surgery by sample takes at most ", kMaxSampleRow,
                      " coordinates of a sample in one tensor, found ", piece.numel / std::max<int64_t>(samples, 1));
    call.samples = samples;
    call.accumulate = accumulate;
  }

  void run(double* gram, double* w, const DeviceScope& scope) {
    call.gram = gram;
    call.w = w;
    samples_cuda(prepared.table, call, scope.stream());
    scope.check_launch();
    if (w) prepared.dense.finish();
  }

 private:
  static int64_t checked(int64_t samples, int64_t tasks) {
    STD_TORCH_CHECK(tasks <= kMaxSampleTasks, "gradsurgery: surgery by sample takes at most ", kMaxSampleTasks, " tasks, found ",
                    tasks);
    constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
    STD_TORCH_CHECK(samples <= kMost, "gradsurgery: surgery by sample takes at most ", kMost, " samples, found ", samples);
    return samples;
  }
};

// Everything of the solver's problem but K.
struct Solver {
  PcgradCuda problem;
  Tensor w;
  std::optional<Tensor> scratch;

  Solver(int64_t groups, int64_t tasks, bool batch, const std::optional<Tensor>& order, const std::optional<Tensor>& key,
         bool include_self, double scale, const DeviceScope& scope)
      : w(batch ? scope.empty({groups, tasks}, ScalarType::Double) : scope.empty({tasks}, ScalarType::Double)) {
    problem.groups = int(groups);
    problem.tasks = int(tasks);
    problem.options.kind = order ? OrderKind::given : key ? OrderKind::random : OrderKind::ascending;
    problem.options.include_self = include_self;
    problem.options.scale = scale;
    if (order) problem.order = int64_data(*order, tasks * tasks, scope, "order");
    if (key) problem.key = int64_data(*key, 2, scope, "key");
    problem.w = static_cast<double*>(w.mutable_data_ptr());
    if (pcgrad_scratch_bytes(problem.tasks) > 0) {
      scratch = scope.empty({groups, pcgrad_scratch_bytes(problem.tasks) / 8}, ScalarType::Double);
      problem.scratch = static_cast<char*>(scratch->mutable_data_ptr());
    }
  }

  void run(const DeviceScope& scope) {
    pcgrad_weights_cuda(problem, scope.stream());
    scope.check_launch();
  }
};

// Gradients and their buffers, ready for launches. A buffer that does not lie in its gradients' order is updated in a copy.
struct PreparedBuffers {
  BufferedRows rows;
  DenseRows grads, buffers;
  Rows kept;  // the buffers' rows [P, T]
  RowTable table;
  TableOnDevice on_device;
  BufferedCuda call;

  PreparedBuffers(const std::vector<Tensor>& tensors, const Gradients& gradients, int64_t tasks, bool stacked,
                  const std::optional<Tensor>& valid, const DeviceScope& scope)
      : rows(buffered_rows_of(checked(tensors, gradients, scope), gradients, tasks, stacked)),
        grads(rows.grads, scope, false),
        buffers(as_outputs(rows.buffers), scope, true),
        kept(as_rows(rows.buffers, buffers.rows())),
        table(grads.rows(), kept),
        on_device(table, scope) {
    call.tasks = int(tasks);
    if (valid) {
      scope.check_here(*valid, "valid");
      STD_TORCH_CHECK(valid->scalar_type() == ScalarType::Bool && valid->numel() == 1, "gradsurgery: valid must be one bool");
      call.valid = static_cast<const bool*>(valid->const_data_ptr());
    }
  }

 private:
  static const std::vector<Tensor>& checked(const std::vector<Tensor>& tensors, const Gradients& gradients,
                                            const DeviceScope& scope) {
    for (const Tensor& tensor : tensors) scope.check_here(tensor, "every buffer");
    for (const std::optional<Tensor>& g : gradients)
      if (g) scope.check_here(*g, "every gradient");
    return tensors;
  }

  // One piece a buffer row, with that row for its output: what DenseRows copies, and copies back.
  static Rows as_outputs(const Rows& rows) {
    Rows result;
    result.strided = rows.strided;
    for (size_t p = 0; p < rows.pieces.size(); ++p)
      for (int t = 0; t < rows.tasks; ++t) {
        result.pieces.push_back(rows.pieces[p]);
        result.out.push_back(rows.row(int64_t(p), t));
      }
    return result;
  }

  static Rows as_rows(const Rows& rows, const Rows& outputs) {
    Rows result = rows;
    result.rows = outputs.out;
    return result;
  }
};

void combine(Prepared& prepared, const double* weights, bool accumulate, const DeviceScope& scope) {
  combine_cuda(prepared.table, weights, accumulate, scope.stream());
  scope.check_launch();
  prepared.dense.finish();
}

}  // namespace

Tensor gram(Gradients grads, int64_t tasks, bool stacked, Groups given) {
  const std::vector<int64_t> groups = groups_of(given);
  const DeviceScope scope(first_present(grads));
  const int64_t count = groups.empty() ? 1 : count_groups(groups);
  Prepared prepared(grads, tasks, stacked, nullptr, false, groups, count, scope);
  Tensor result =
      groups.empty() ? scope.empty({tasks, tasks}, ScalarType::Double) : scope.empty({count, tasks, tasks}, ScalarType::Double);
  Partials partials(prepared, scope);
  partials.fill(prepared, scope);
  gram_finish_cuda(prepared.table, partials.data, static_cast<double*>(result.mutable_data_ptr()), scope.stream());
  scope.check_launch();
  return result;
}

Tensor pcgrad_weights(Tensor gram, std::optional<Tensor> order, std::optional<Tensor> key, bool include_self, double scale) {
  const auto [groups, tasks] = check_gram(gram);
  const DeviceScope scope(gram);
  Solver solver(groups, tasks, gram.dim() == 3, order, key, include_self, scale, scope);
  solver.problem.gram = float64_data(gram, scope, "gram");
  solver.run(scope);
  return solver.w;
}

// -> (w, report), of shapes [T] and [4] for K [T, T], with a leading [G] for K [G, T, T].
std::tuple<Tensor, Tensor> solve(Tensor gram, std::string solver, std::vector<double> options, std::optional<Tensor> given,
                                 std::optional<Tensor> state, std::optional<Tensor> order, std::optional<Tensor> key) {
  const auto [index, groups, tasks, state_size] = check_solve(gram, solver, options, given, state);
  const bool grouped = gram.dim() == 3;
  const DeviceScope scope(gram);
  SolveCuda call;
  call.groups = int(groups);
  std::copy(options.begin(), options.end(), call.options);
  call.problem.tasks = int(tasks);
  call.problem.gram = float64_data(gram, scope, "gram");
  if (given) call.problem.given = float64_data(*given, scope, "given");
  if (order) call.problem.order = int64_data(*order, tasks * tasks, scope, "order");
  if (state) call.problem.state = float64_data(*state, scope, "state");
  call.state_size = state_size;
  if (key) call.key = int64_data(*key, 2, scope, "key");
  call.room = solve_room_cuda(index, int(tasks), call.state_size);
  std::optional<Tensor> scratch, broken;
  if (!fits_shared_memory(call.room)) {
    scratch = scope.empty({groups * call.room}, ScalarType::Double);
    call.scratch = static_cast<double*>(scratch->mutable_data_ptr());
  }
  if (state || key) {
    broken = scope.empty({1}, ScalarType::Int);
    call.broken = static_cast<int32_t*>(broken->mutable_data_ptr());
  }
  Tensor w = grouped ? scope.empty({groups, tasks}, ScalarType::Double) : scope.empty({tasks}, ScalarType::Double);
  Tensor report =
      grouped ? scope.empty({groups, kReportFields}, ScalarType::Double) : scope.empty({kReportFields}, ScalarType::Double);
  call.problem.w = static_cast<double*>(w.mutable_data_ptr());
  call.report = static_cast<double*>(report.mutable_data_ptr());
  solve_cuda(index, call, scope.stream());
  scope.check_launch();
  return {w, report};
}

void combine_(std::vector<Tensor> out, Gradients grads, Tensor weights, bool stacked, bool accumulate, Groups given) {
  const std::vector<int64_t> groups = groups_of(given);
  if (out.empty()) return;
  const DeviceScope scope(out.front());
  const auto [count, tasks] = check_weights(weights, groups);
  Prepared prepared(grads, tasks, stacked, &out, accumulate, groups, count, scope);
  combine(prepared, float64_data(weights, scope, "weights"), accumulate, scope);
}

void coordinatewise_(std::vector<Tensor> out, Gradients grads, int64_t tasks, bool stacked, std::string rule,
                     std::vector<double> options, std::optional<Tensor> uniform, std::optional<Tensor> key, bool accumulate) {
  const Rule what = rule_of(rule, options, tasks);
  if (out.empty()) return;
  const DeviceScope scope(out.front());
  Prepared prepared(what, grads, tasks, stacked, out, accumulate, scope);
  check_draws(what, prepared.dense.rows(), uniform, key);
  const double* drawn = uniform ? float64_data(*uniform, scope, "uniform") : nullptr;
  int64_t* counter = key ? int64_data(*key, 2, scope, "key") : nullptr;
  coordinatewise_cuda(prepared.table, what, drawn, counter, accumulate, scope.stream());
  scope.check_launch();
  prepared.dense.finish();
}

std::tuple<Tensor, Tensor> pcgrad_(std::vector<Tensor> out, Gradients grads, int64_t tasks, bool stacked,
                                   std::optional<Tensor> order, std::optional<Tensor> key, bool include_self, double scale,
                                   bool accumulate) {
  const DeviceScope scope(first_present(grads));
  Prepared prepared(grads, tasks, stacked, &out, accumulate, {}, 1, scope);
  Solver solver(1, tasks, false, order, key, include_self, scale, scope);
  Tensor gram = scope.empty({tasks, tasks}, ScalarType::Double);
  solver.problem.gram = static_cast<double*>(gram.mutable_data_ptr());
  Partials partials(prepared, scope);
  const FusedLaunch launch = fused_launch_cuda(prepared.table, prepared.dense.rows().numel);
  if (launch.blocks > 0 && pcgrad_fused_cuda(prepared.table, launch, solver.problem, partials.data, accumulate, scope.stream())) {
    scope.check_launch();
    prepared.dense.finish();
    return {gram, solver.w};
  }
  partials.fill(prepared, scope);
  if (tasks <= kFusedTasks) {
    solver.problem.partial = partials.data;
    solver.problem.blocks = partials.blocks;
  } else {
    gram_finish_cuda(prepared.table, partials.data, solver.problem.gram, scope.stream());
    scope.check_launch();
  }
  solver.run(scope);
  combine(prepared, solver.problem.w, accumulate, scope);
  return {gram, solver.w};
}

Tensor gram_samples(Gradients grads, int64_t tasks, bool stacked) {
  const DeviceScope scope(first_present(grads));
  SampleCall batch(grads, tasks, stacked, nullptr, false, scope);
  Tensor result = scope.empty({batch.samples, tasks, tasks}, ScalarType::Double);
  batch.run(static_cast<double*>(result.mutable_data_ptr()), nullptr, scope);
  return result;
}

void combine_samples_(std::vector<Tensor> out, Gradients grads, Tensor weights, bool stacked, bool accumulate) {
  if (out.empty()) return;
  const DeviceScope scope(out.front());
  STD_TORCH_CHECK(weights.dim() == 2, "gradsurgery: weights must be [B, T]");
  SampleCall batch(grads, weights.size(1), stacked, &out, accumulate, scope);
  STD_TORCH_CHECK(weights.size(0) == batch.samples, "gradsurgery: weights must be [B, T]");
  batch.run(nullptr, float64_data(weights, scope, "weights"), scope);
}

std::tuple<Tensor, Tensor> pcgrad_samples_(std::vector<Tensor> out, Gradients grads, int64_t tasks, bool stacked,
                                           std::optional<Tensor> order, std::optional<Tensor> key, bool include_self,
                                           double scale, bool accumulate) {
  const DeviceScope scope(first_present(grads));
  SampleCall batch(grads, tasks, stacked, &out, accumulate, scope);
  const int64_t samples = batch.samples;
  Tensor gram = scope.empty({samples, tasks, tasks}, ScalarType::Double);
  double* const K = static_cast<double*>(gram.mutable_data_ptr());
  Solver solver(samples, tasks, true, order, key, include_self, scale, scope);
  if (samples > 0 && !samples_fuse(batch.prepared.table)) {
    batch.run(K, nullptr, scope);
    solver.problem.gram = K;
    solver.run(scope);
    batch.run(nullptr, solver.problem.w, scope);
    return {gram, solver.w};
  }
  std::optional<Tensor> broken;
  batch.call.options = solver.problem.options;
  batch.call.order = solver.problem.order;
  batch.call.key = solver.problem.key;
  if (key) {
    broken = scope.empty({samples}, ScalarType::Int);
    batch.call.broken = static_cast<int32_t*>(broken->mutable_data_ptr());
  }
  batch.run(K, solver.problem.w, scope);
  if (key) {
    advance_samples_cuda(batch.call.broken, samples, solver.problem.key, scope.stream());
    scope.check_launch();
  }
  return {gram, solver.w};
}

Tensor ema_gram_(std::vector<Tensor> buffers, Gradients grads, int64_t tasks, bool stacked, Tensor scales, Tensor rate,
                 std::optional<Tensor> valid) {
  const DeviceScope scope(first_present(grads));
  PreparedBuffers prepared(buffers, grads, tasks, stacked, valid, scope);
  STD_TORCH_CHECK(scales.numel() == tasks && rate.numel() == 1, "gradsurgery: scales must be [T] and rate one number");
  const double *scale = float64_data(scales, scope, "scales"), *step = float64_data(rate, scope, "rate");
  Tensor gram = scope.empty({tasks, tasks}, ScalarType::Double);
  double* const K = static_cast<double*>(gram.mutable_data_ptr());
  RowTable kept(prepared.kept);
  Tensor partial = scope.empty({std::max<int64_t>(1, gram_partials(kept))}, ScalarType::Double);
  double* const sums = static_cast<double*>(partial.mutable_data_ptr());
  if (tasks <= kSmallTasks && kept.chunks() > 0) {
    ema_gram_cuda(prepared.table, prepared.call, scale, step, sums, scope.stream());
    scope.check_launch();
    gram_finish_cuda(kept, sums, K, scope.stream());
  } else {
    Tensor broken = scope.empty({tasks}, ScalarType::Int);
    int32_t* const told = static_cast<int32_t*>(broken.mutable_data_ptr());
    ema_rows_cuda(prepared.table, prepared.call, scale, step, told, scope.stream());
    scope.check_launch();
    const TableOnDevice kept_on_device(kept, scope);
    gram_partials_cuda(kept, sums, scope.stream());
    scope.check_launch();
    gram_finish_cuda(kept, sums, K, scope.stream());
    scope.check_launch();
    refuse_cuda(prepared.call, told, K, scope.stream());
  }
  scope.check_launch();
  prepared.buffers.finish();
  return gram;
}

Tensor excess_risk_(std::vector<Tensor> buffers, Gradients grads, int64_t tasks, bool stacked, std::optional<Tensor> valid) {
  const DeviceScope scope(first_present(grads));
  PreparedBuffers prepared(buffers, grads, tasks, stacked, valid, scope);
  Tensor risk = scope.empty({tasks}, ScalarType::Double);
  Tensor partial = scope.empty({tasks * risk_blocks(int(tasks), prepared.table.chunks())}, ScalarType::Double);
  excess_risk_cuda(prepared.table, prepared.call, static_cast<double*>(partial.mutable_data_ptr()),
                   static_cast<double*>(risk.mutable_data_ptr()), scope.stream());
  scope.check_launch();
  prepared.buffers.finish();
  return risk;
}

}  // namespace ops
}  // namespace gradsurgery

STABLE_TORCH_LIBRARY_IMPL(gradsurgery, CUDA, m) {
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

PyMODINIT_FUNC PyInit__cuda(void) {
  static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_cuda", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
