#include <utility>

#include "../common/cpu.h"
#include "../common/scratch.h"
#include "coordinatewise.h"
#include "write_blocks.h"

namespace gradsurgery {

struct Exchange {
  int32_t low, high;
};

}  // namespace gradsurgery

#define GS_TARGET_FILE "../combine/coordinatewise_isa.h"
#include "../common/foreach_isa.h"

namespace gradsurgery {
namespace {

void graddrop_cpu(const Rows& rows, const Rule& rule, const double* uniform, const int64_t* key, bool accumulate,
                  const ParallelFor& parallel) {
  const auto drop = GS_PICK(graddrop_chunk);
  const auto draw = GS_PICK(draw_chunk);
  const bool leaks = !rule.leak.empty();
  write_blocks(rows, accumulate, parallel, [&] {
    return [&, leak = Scratch<double, 16>(leaks ? size_t(rows.tasks) : 0), drawn = Scratch<double, baseline::kDrawn>(0)](
               ChunkReader& reader, int, int64_t piece, int64_t start, int64_t n, double* sum) mutable {
      if (leaks)
        for (int r = 0; r < reader.count(); ++r) leak[r] = rule.leak[reader.tasks()[r]];
      const int64_t first = rows.pieces[piece].begin + start;
      const double* u = uniform ? uniform + first : draw(key[0], key[1], first, n, drawn.data());
      drop(reader.scalar(), reader.pointers(), leaks ? leak.data() : nullptr, reader.count(), n, u, sum);
    };
  });
}

void sign_agreement_cpu(const Rows& rows, const Rule& rule, bool accumulate, const ParallelFor& parallel) {
  const auto agree = GS_PICK(sign_agreement_chunk);
  write_blocks(rows, accumulate, parallel, [&] {
    return [&](ChunkReader& reader, int, int64_t, int64_t, int64_t n, double* sum) {
      const int count = reader.count();
      agree(reader.scalar(), reader.pointers(), count, n, needed_votes(rule.threshold, count), rule.mean ? count : 1, sum);
    };
  });
}

struct alignas(64) Eight {
  double at[kLanes];
};

// One for every number of rows that occurs, in the order in which they do.
class Networks {
 public:
  const std::vector<Exchange>& of(int count) {
    if (count != count_) {
      network_.clear();
      merge_exchange(count, [this](int i, int j) { network_.push_back({i, j}); });
      count_ = count;
    }
    return network_;
  }

 private:
  int count_ = 0;
  std::vector<Exchange> network_;
};

void middle_cpu(const Rows& rows, int trim, bool accumulate, const ParallelFor& parallel) {
  const auto average = GS_PICK(middle_chunk);
  write_blocks(rows, accumulate, parallel, [&] {
    return [&, values = std::vector<Eight>(size_t(rows.tasks)), networks = Networks()](ChunkReader& reader, int, int64_t, int64_t,
                                                                                       int64_t n, double* sum) mutable {
      const int count = reader.count();
      const std::vector<Exchange>& network = networks.of(count);
      average(reader.scalar(), reader.pointers(), count, n, Middle(trim, count), network.data(), network.size(),
              reinterpret_cast<char*>(values.data()), sum);
    };
  });
}

}  // namespace

void coordinatewise_cpu(const Rows& rows, const Rule& rule, const double* uniform, int64_t* key, bool accumulate,
                        const ParallelFor& parallel) {
  switch (rule.kind) {
    case RuleKind::graddrop:
      graddrop_cpu(rows, rule, uniform, key, accumulate, parallel);
      if (!uniform) key[1] = int64_t(uint64_t(key[1]) + 1);
      break;
    case RuleKind::sign_agreement:
      sign_agreement_cpu(rows, rule, accumulate, parallel);
      break;
    case RuleKind::trimmed_mean:
      middle_cpu(rows, rule.trim, accumulate, parallel);
      break;
    case RuleKind::median:
      middle_cpu(rows, -1, accumulate, parallel);
      break;
  }
}

}  // namespace gradsurgery
