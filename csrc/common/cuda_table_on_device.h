// Brings a table to where its kernels find it.
#pragma once

#include <optional>

#include "cuda_table.h"
#include "cuda_table_cache.h"
#include "cuda_tensors.h"
#include "cuda_upload.h"

namespace gradsurgery {

// The parts of a table that do not fit the parameters, in device memory for as long as kernels that read them may be launched:
// in the stream's cache, or else in memory of this call alone.
class TableOnDevice {
 public:
  TableOnDevice(RowTable& table, const DeviceScope& scope)
      : rows_(table.large_rows(), scope), outputs_(table.large_outputs(), scope) {
    table.place(rows_.memory, outputs_.memory);
  }

 private:
  struct Part {
    CachedTable cached;
    std::optional<Tensor> own;
    const int64_t* memory = nullptr;

    Part(Words words, const DeviceScope& scope) : cached(lookup(words, scope)), memory(cached.memory()) {
      if (words.count > 0 && !memory) {
        own = scope.empty({int64_t(words.count)}, ScalarType::Long);
        int64_t* const to = static_cast<int64_t*>(own->mutable_data_ptr());
        upload(words, to, scope.stream());
        memory = to;
      }
      if (words.count > 0) scope.check_launch();
    }

    static CachedTable lookup(Words words, const DeviceScope& scope) {
      return words.count > 0 ? cached_table(words, scope.device().index(), scope.stream()) : CachedTable();
    }
  };

  Part rows_, outputs_;
};

}  // namespace gradsurgery
