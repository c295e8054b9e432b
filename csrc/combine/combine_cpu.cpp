#include "../common/cpu.h"
#include "../common/scratch.h"
#include "../gram/gram.h"
#include "combine.h"
#include "write_blocks.h"

#define GS_TARGET_FILE "../combine/combine_isa.h"
#include "../common/foreach_isa.h"

namespace gradsurgery {

Narrow narrow_cpu() { return GS_PICK(narrow); }

WeightedSum::WeightedSum(int tasks) : add_(GS_PICK(combine_chunk)), present_(size_t(tasks)) {}

void WeightedSum::operator()(ChunkReader& reader, const double* w, int64_t n, double* sum) {
  for (int r = 0; r < reader.count(); ++r) present_[r] = w[reader.tasks()[r]];
  add_(reader.scalar(), reader.pointers(), present_.data(), reader.count(), n, sum);
}

void combine_cpu(const Rows& rows, const double* w, bool accumulate, const ParallelFor& parallel) {
  write_blocks(rows, accumulate, parallel, [&] {
    return [w, tasks = rows.tasks, add = WeightedSum(rows.tasks)](ChunkReader& reader, int group, int64_t, int64_t, int64_t n,
                                                                  double* sum) mutable {
      add(reader, w + int64_t(group) * tasks, n, sum);
    };
  });
}

}  // namespace gradsurgery
