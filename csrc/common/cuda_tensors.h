// The torch side of the CUDA operators: where to run, what to allocate, and copies of the rows that kernels cannot read in place.
// Under GS_EMULATE_CUDA the same text runs on CPU tensors over the tests' emulator.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <initializer_list>

#include "tensors.h"

#if !defined(GS_EMULATE_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace gradsurgery {

// Makes a tensor's device the current one, and its current stream the one to launch on.
class DeviceScope {
 public:
#if defined(GS_EMULATE_CUDA)
  explicit DeviceScope(const Tensor& tensor) : device_(tensor.device()), type_(type_code(tensor)) {}
  void check_launch() const {}
#else
  explicit DeviceScope(const Tensor& tensor) : device_(tensor.device()), type_(type_code(tensor)), guard_(device_.index()) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_.index(), &stream_));
  }
  void check_launch() const { STD_CUDA_KERNEL_LAUNCH_CHECK(); }
#endif

  void* stream() const { return stream_; }  // a cudaStream_t
  const torch::stable::Device& device() const { return device_; }

  // A kernel that follows a pointer of another device would take the process down. Compares torch's codes: making a Device of
  // each of thousands of gradients takes several times as long.
  void check_here(const Tensor& tensor, const char* name) const {
    STD_TORCH_CHECK(tensor.get_device_index() == device_.index() && type_code(tensor) == type_, "gradsurgery: ", name,
                    " must be on the device of the first gradient");
  }

  // Dense, in the order of its dimensions. From the stream's memory pool: free to be reused when the host is done with it.
  Tensor empty(const int64_t* sizes, int64_t dims, ScalarType type) const {
    std::vector<int64_t> strides(size_t(std::max<int64_t>(dims, 1)), 1);
    for (int64_t d = dims - 2; d >= 0; --d) strides[d] = strides[d + 1] * sizes[d + 1];
    AtenTensorHandle handle = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
        dims, sizes, strides.data(), torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)),
        torch::stable::detail::to<int32_t>(torch::stable::detail::from(device_.type())), device_.index(), &handle));
    Tensor result(handle);
#if defined(GS_EMULATE_CUDA)
    std::memset(result.mutable_data_ptr(), 0xFF, size_t(result.numel() * result.element_size()));  // NaNs: nobody may read them
#endif
    return result;
  }
  Tensor empty(std::initializer_list<int64_t> sizes, ScalarType type) const {
    return empty(sizes.begin(), int64_t(sizes.size()), type);
  }

 private:
  static int32_t type_code(const Tensor& tensor) {
    int32_t code = -1;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &code));
    return code;
  }

  torch::stable::Device device_;
  int32_t type_;
  void* stream_ = nullptr;
#if !defined(GS_EMULATE_CUDA)
  torch::stable::accelerator::DeviceGuard guard_;
#endif
};

inline ScalarType type_of(Scalar scalar) {
  switch (scalar) {
    case Scalar::f64:
      return ScalarType::Double;
    case Scalar::f32:
      return ScalarType::Float;
    case Scalar::bf16:
      return ScalarType::BFloat16;
    default:
      return ScalarType::Half;
  }
}

// Rows that the CUDA kernels can read: dense in their piece's order, and of one scalar type within a piece. Others are copied,
// on the device: a row of another type or with gaps between its elements costs one more write and read of that row. An
// output with gaps is written through a dense stand-in, and copied back by finish().
class DenseRows {
 public:
  DenseRows(Rows rows, const DeviceScope& scope, bool accumulate) : rows_(std::move(rows)), scope_(scope) {
    for (size_t p = 0; p < rows_.pieces.size(); ++p) {
      const Scalar scalar = common_scalar(p);
      for (int t = 0; t < rows_.tasks; ++t) {
        Row& row = rows_.rows[p * rows_.tasks + t];
        if (!row.data || (row.strided < 0 && row.scalar == scalar)) continue;
        Tensor original = view(row, p), dense = like(row, p, scalar);
        torch::stable::copy_(dense, original);
        row = Row{static_cast<const char*>(dense.const_data_ptr()), -1, scalar};
        copies_.push_back(dense);
      }
      if (rows_.out.empty() || rows_.out[p].strided < 0 || !rows_.out[p].data) continue;
      Row& out = rows_.out[p];
      Tensor original = view(out, p), dense = like(out, p, out.scalar);
      if (accumulate) torch::stable::copy_(dense, original);
      out = Row{static_cast<const char*>(dense.const_data_ptr()), -1, out.scalar};
      outputs_.emplace_back(original, dense);
    }
  }

  const Rows& rows() const { return rows_; }

  void finish() {
    for (auto& [original, dense] : outputs_) torch::stable::copy_(original, dense);
  }

 private:
  // Of the rows present: their own type when they agree, else float64 where one is, else float32, which holds all three others.
  Scalar common_scalar(size_t piece) const {
    Scalar common = Scalar::f32;
    bool any = false;
    for (int t = 0; t < rows_.tasks; ++t) {
      const Row& row = rows_.row(int64_t(piece), t);
      if (!row.data) continue;
      if (any && row.scalar != common)
        common = row.scalar == Scalar::f64 || common == Scalar::f64 ? Scalar::f64 : Scalar::f32;
      else
        common = row.scalar;
      any = true;
    }
    return common;
  }

  // The memory of a row, in its piece's order of coordinates.
  Tensor view(const Row& row, size_t piece) const {
    const int64_t one = 1;
    const int64_t *sizes = &rows_.pieces[piece].numel, *strides = &one;
    size_t dims = 1;
    if (row.strided >= 0) {
      const Strided& shape = rows_.strided[row.strided];
      sizes = shape.sizes.data();
      strides = shape.strides.data();
      dims = shape.sizes.size();
    }
    return torch::stable::from_blob(const_cast<char*>(row.data), {sizes, dims}, {strides, dims}, scope_.device(),
                                    type_of(row.scalar));
  }

  Tensor like(const Row& row, size_t piece, Scalar scalar) const {
    if (row.strided < 0) return scope_.empty({rows_.pieces[piece].numel}, type_of(scalar));
    const std::vector<int64_t>& sizes = rows_.strided[row.strided].sizes;
    return scope_.empty(sizes.data(), int64_t(sizes.size()), type_of(scalar));
  }

  Rows rows_;
  const DeviceScope& scope_;
  std::vector<Tensor> copies_;
  std::vector<std::pair<Tensor, Tensor>> outputs_;
};

}  // namespace gradsurgery
