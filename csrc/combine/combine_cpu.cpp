#include "../common/cpu.h"
#include "../common/scratch.h"
#include "../gram/gram.h"
#include "combine.h"
#include "write_blocks.h"

#define GS_TARGET_FILE "../combine/combine_isa.h"
#include "../common/foreach_isa.h"

namespace gradsurgery {

Narrow narrow_cpu() { return GS_PICK(narrow); }

void combine_cpu(const Rows& rows, const double* w, bool accumulate, const ParallelFor& parallel) {
  const auto add = GS_PICK(combine_chunk);
  write_blocks(rows, accumulate, parallel, [&] {
    return [add, w, tasks = rows.tasks, present_w = Scratch<double, 16>(size_t(rows.tasks))](
               ChunkReader& reader, int group, int64_t, int64_t, int64_t n, double* sum) mutable {
      const double* const group_w = w + int64_t(group) * tasks;
      for (int r = 0; r < reader.count(); ++r) present_w[r] = group_w[reader.tasks()[r]];
      add(reader.scalar(), reader.pointers(), present_w.data(), reader.count(), n, sum);
    };
  });
}

}  // namespace gradsurgery
