// The CUDA kernels and their launch functions on NumPy arrays: a C interface for ctypes over the emulator.
#include "../../../csrc/buffers/buffers_cuda.cu"
#include "../../../csrc/combine/combine_cuda.cu"
#include "../../../csrc/combine/coordinatewise_cuda.cu"
#include "../../../csrc/common/cuda_table_cache.cu"
#include "../../../csrc/common/cuda_upload.cu"
#include "../../../csrc/gram/gram_cuda.cu"
#include "../../../csrc/surgery/samples_cuda.cu"
#include "../../../csrc/surgery/surgery_cuda.cu"
#include "../../../csrc/weights/pcgrad_cuda.cu"
#include "../../../csrc/weights/solve_cuda.cu"

using namespace gradsurgery;

namespace {

thread_local std::string error;

template <class Body>
int guarded(Body body) {
  try {
    body();
    return 0;
  } catch (const std::exception& failure) {
    error = failure.what();
    return 1;
  }
}

// A table of rows in device memory, all of them dense; `scalars` [P] of the rows, `out` and `out_scalars` [P] or null.
struct GivenRows {
  Rows rows;
  std::unique_ptr<RowTable> table;
  std::vector<int64_t> memory[2];

  // With groups > 1 the pieces are sorted by group; group_pieces [G + 1].
  GivenRows(int tasks, int pieces, const int64_t* numel, const char* const* data, const uint8_t* scalars, char* const* out,
            const uint8_t* out_scalars, int groups = 1, const int64_t* group_pieces = nullptr) {
    rows.tasks = tasks;
    for (int p = 0; p < pieces; ++p) {
      for (int t = 0; t < tasks; ++t) rows.rows.push_back(Row{data[p * tasks + t], -1, Scalar(scalars[p])});
      if (out) rows.out.push_back(Row{out[p], -1, Scalar(out_scalars[p])});
      rows.pieces.push_back(Piece{numel[p], rows.numel});
      rows.numel += numel[p];
    }
    if (groups > 1) rows.group_pieces.assign(group_pieces, group_pieces + groups + 1);
    table = std::make_unique<RowTable>(rows);
    table->place(written(table->large_rows(), memory[0]), written(table->large_outputs(), memory[1]));
  }

  static const int64_t* written(Words words, std::vector<int64_t>& memory) {
    if (words.count == 0) return nullptr;
    memory.assign(words.count, -1);
    upload(words, memory.data(), nullptr);
    return memory.data();
  }
};

void poison(std::vector<double>& values) { std::fill(values.begin(), values.end(), nan("")); }

std::vector<double> partial_sums(GivenRows& problem) {
  std::vector<double> partial(gram_partials(*problem.table));
  poison(partial);
  gram_partials_cuda(*problem.table, partial.data(), nullptr);
  return partial;
}

}  // namespace

#define GS_EXPORT extern "C" __attribute__((visibility("default")))

GS_EXPORT const char* gs_error() { return error.c_str(); }
GS_EXPORT void gs_schedule(unsigned seed) { simt::set_schedule(seed); }
// The names of the barriers that threads have come to since the last time it was asked, a line each.
GS_EXPORT const char* gs_reached() {
  static std::string text;
  text.clear();
  for (const std::string& name : simt::reached) text += name + "\n";
  simt::reached.clear();
  return text.c_str();
}
GS_EXPORT void gs_remove_barrier(const char* name) { simt::remove_barrier(name); }
GS_EXPORT void gs_shared_with_others(int shared) { simt::shared_with_others = shared != 0; }
GS_EXPORT int64_t gs_traffic() { return simt::traffic; }

// multiprocessors, blocks on one, its shared memory, a block's, what every block takes besides, static, L2, cooperative
GS_EXPORT void gs_device(const int* limits /* [8], read or written */, int* before /* [8] */) {
  simt::Device& d = simt::device;
  ++simt::device_number;
  int* const fields[] = {&d.multiprocessors, &d.blocks, &d.shared_multiprocessor, &d.shared_block, &d.shared_reserved,
                         &d.static_shared,   &d.l2};
  for (int k = 0; k < 7; ++k) {
    before[k] = *fields[k];
    *fields[k] = limits[k];
  }
  before[7] = d.cooperative;
  d.cooperative = limits[7] != 0;
}

// "function count" of each host function that has launched kernels, a line each, since gs_forget_launches.
GS_EXPORT const char* gs_launches() {
  static std::string text;
  text.clear();
  for (const auto& [function, count] : simt::launches) text += function + " " + std::to_string(count) + "\n";
  return text.c_str();
}
GS_EXPORT void gs_forget_launches() { simt::launches.clear(); }

// --- the cache of tables ---

GS_EXPORT void gs_capturing(int capturing) { simt::capturing = capturing != 0; }
GS_EXPORT void gs_driver_version(int version) { simt::driver_version = version; }
GS_EXPORT void gs_out_of_memory(int out) { simt::out_of_memory = out != 0; }
GS_EXPORT int gs_last_error() { return simt::last_error; }
GS_EXPORT int64_t gs_ring_words() { return TableRing::kWords; }
GS_EXPORT int gs_max_rings() { return kMaxRings; }
GS_EXPORT void gs_forget_tables() {
  for (StreamRing& ring : Rings::get().all) free(ring.memory);
  Rings::get().all.clear();
}

// A use of words in the cache until gs_release; *memory is null where the cache does not take them.
GS_EXPORT void* gs_hold(int device, int64_t stream, const int64_t* words, int64_t count, const int64_t** memory) {
  auto* const held = new CachedTable(cached_table(Words{words, size_t(count)}, device, reinterpret_cast<void*>(stream)));
  *memory = held->memory();
  return held;
}
GS_EXPORT void gs_release(void* held) { delete static_cast<CachedTable*>(held); }

GS_EXPORT int gs_gram(int tasks, int pieces, const int64_t* numel, const char* const* data, const uint8_t* scalars, int groups,
                      const int64_t* group_pieces, double* gram /* [G, T, T] */) {
  return guarded([&] {
    GivenRows problem(tasks, pieces, numel, data, scalars, nullptr, nullptr, groups, group_pieces);
    const std::vector<double> partial = partial_sums(problem);
    gram_finish_cuda(*problem.table, partial.data(), gram, nullptr);
  });
}

GS_EXPORT int gs_combine(int tasks, int pieces, const int64_t* numel, const char* const* data, const uint8_t* scalars,
                         char* const* out, const uint8_t* out_scalars, int groups, const int64_t* group_pieces,
                         const double* weights /* [G, T] */, int accumulate) {
  return guarded([&] {
    GivenRows problem(tasks, pieces, numel, data, scalars, out, out_scalars, groups, group_pieces);
    combine_cuda(*problem.table, weights, accumulate != 0, nullptr);
  });
}

// kind: OrderKind. Either gram is read, or, with pieces > 0, it is written from the rows by the solver itself.
GS_EXPORT int gs_pcgrad_weights(int groups, int tasks, int kind, const int64_t* order, int64_t* key, int include_self,
                                double scale, double* gram, int pieces, const int64_t* numel, const char* const* data,
                                const uint8_t* scalars, double* w) {
  return guarded([&] {
    PcgradCuda solve;
    solve.groups = groups;
    solve.tasks = tasks;
    solve.options.kind = OrderKind(kind);
    solve.options.include_self = include_self != 0;
    solve.options.scale = scale;
    solve.order = order;
    solve.key = key;
    solve.gram = gram;
    solve.w = w;
    std::vector<char> scratch(groups * pcgrad_scratch_bytes(tasks), char(0xFF));
    if (!scratch.empty()) solve.scratch = scratch.data();
    std::vector<double> partial;
    if (pieces > 0) {
      GivenRows problem(tasks, pieces, numel, data, scalars, nullptr, nullptr);
      partial = partial_sums(problem);
      solve.partial = partial.data();
      solve.blocks = gram_launch(*problem.table).blocks;
    }
    pcgrad_weights_cuda(solve, nullptr);
  });
}

// --- launch parameters and the table, for tests of their own ---

GS_EXPORT void gs_gram_launch(int tasks, int chunks, int groups, int* threads_blocks_panels) {
  const GramLaunch launch = gram_launch(tasks, chunks, groups);
  threads_blocks_panels[0] = launch.threads;
  threads_blocks_panels[1] = launch.blocks;
  threads_blocks_panels[2] = launch.panels;
}
GS_EXPORT void gs_fused_launch(int tasks, int groups, int chunks, int chunk_length, int64_t numel, int float64,
                               const int* limits /* [8], as above */, int64_t* blocks_slots_bytes) {
  const DeviceLimits device{limits[7] != 0, limits[0], limits[1], limits[2], limits[3], limits[4], limits[5], limits[6]};
  const FusedLaunch launch = fused_launch({tasks, groups, chunks, chunk_length, numel, float64 != 0}, device);
  blocks_slots_bytes[0] = launch.blocks;
  blocks_slots_bytes[1] = launch.slots;
  blocks_slots_bytes[2] = launch.shared_bytes;
}
GS_EXPORT int gs_chunk_length(int64_t numel, int tasks) { return chunk_length(numel, tasks); }
GS_EXPORT int gs_pcgrad_warps(int tasks, int fused) { return pcgrad_warps(tasks, fused != 0); }
GS_EXPORT int64_t gs_pcgrad_memory(int tasks, int fused) { return pcgrad_memory(tasks, pcgrad_warps(tasks, fused != 0)); }
// window, bytes, bytes beside the rows, warps
GS_EXPORT void gs_sample_plan(int tasks, int64_t words, int fused, int64_t most, int64_t* plan) {
  const int warps = sample_warps(tasks, 4 * words);
  const int64_t memory = sample_memory(tasks, warps, fused != 0);
  const SamplePlan found = sample_plan(tasks, words, memory, most);
  plan[0] = found.window;
  plan[1] = found.shared;
  plan[2] = memory;
  plan[3] = warps;
}
GS_EXPORT int gs_sample_parameter_bytes() { return int(sizeof(Table) + sizeof(SamplesCuda)); }
GS_EXPORT int gs_parameter_bytes() { return int(sizeof(Table)); }

// The heads of a piece whose rows and output lie at these addresses: of the rows alone, and with the output.
GS_EXPORT void gs_heads(int tasks, const char* const* data, int scalar, char* out, int out_scalar, int* heads) {
  const int64_t numel = 1000;
  const uint8_t scalars = uint8_t(scalar), out_scalars = uint8_t(out_scalar);
  const GivenRows problem(tasks, 1, &numel, data, &scalars, &out, &out_scalars);
  heads[0] = piece_entries(problem.table->parameter())->head;
  heads[1] = piece_entries(problem.table->parameter())->out_head;
}

// piece, start and length of each chunk; returns their number.
GS_EXPORT int gs_chunks(int tasks, int pieces, const int64_t* numel, int64_t* chunks /* [at most, 3] */, int at_most) {
  const std::vector<const char*> none(size_t(tasks) * pieces, nullptr);
  const std::vector<uint8_t> scalars(pieces, uint8_t(Scalar::f32));
  GivenRows problem(tasks, pieces, numel, none.data(), scalars.data(), nullptr, nullptr);
  const Table& table = problem.table->parameter();
  for (int c = 0; c < std::min(table.chunks, at_most); ++c) {
    const Chunk chunk = find_chunk(table, c);
    chunks[3 * c] = chunk.piece;
    chunks[3 * c + 1] = chunk.start;
    chunks[3 * c + 2] = chunk.length;
  }
  return table.chunks;
}

// piece, start and length of chunk c of T absent rows, which may be of any size; and the number of chunks.
GS_EXPORT int gs_chunk(int tasks, int pieces, const int64_t* numel, int c, int64_t* chunk /* [4] */) {
  return guarded([&] {
    const std::vector<const char*> none(size_t(tasks) * pieces, nullptr);
    const std::vector<uint8_t> scalars(pieces, uint8_t(Scalar::f32));
    GivenRows problem(tasks, pieces, numel, none.data(), scalars.data(), nullptr, nullptr);
    Table table = problem.table->parameter();
    if (problem.table->large_rows().count > 0) table.rows = problem.table->large_rows().data;
    const Chunk found = find_chunk(table, c);
    chunk[0] = found.piece;
    chunk[1] = found.start;
    chunk[2] = found.length;
    chunk[3] = table.chunks;
  });
}

// The chunks of every block of the Gram kernels, (block, group of the chunk, chunk) each; returns the number of blocks.
GS_EXPORT int gs_block_chunks(int tasks, int pieces, const int64_t* numel, int groups, const int64_t* group_pieces,
                              int64_t* visited /* [chunks, 3] */, int64_t* first_blocks /* [G + 1] */) {
  const std::vector<const char*> none(size_t(tasks) * pieces, nullptr);
  const std::vector<uint8_t> scalars(pieces, uint8_t(Scalar::f32));
  GivenRows problem(tasks, pieces, numel, none.data(), scalars.data(), nullptr, nullptr, groups, group_pieces);
  const Table& table = problem.table->parameter();
  const int blocks = gram_launch(*problem.table).blocks;
  for (int block = 0; block < blocks; ++block) {
    for (int turn = block;; turn += blocks) {
      const int c = chunk_of_turn(table, block, blocks, turn);
      if (c == table.chunks) break;
      *visited++ = block;
      *visited++ = find_group(table, c);
      *visited++ = c;
    }
  }
  for (int g = 0; g <= groups; ++g) first_blocks[g] = group_first_block(table, g, blocks);
  return blocks;
}

// The barriers' own test: threads pass values to their neighbours through shared memory, `rounds` times.
namespace {

__global__ void relay(int rounds, int leave_early, int* out) {
  GS_SHARED(int, cell, 64);
  int value = int(threadIdx.x);
  for (int r = 0; r < rounds; ++r) {
    if (leave_early && threadIdx.x == 7) return;
    cell[threadIdx.x] = value;
    GS_BLOCK_BARRIER(relay_written);
    value = cell[(threadIdx.x + 1) % 64];
    GS_BLOCK_BARRIER(relay_read);
  }
  out[threadIdx.x] = value;
}

// The same among all threads of a grid, through device memory.
__global__ void relay_of_blocks(int rounds, int leave_early, int* cells, int* out) {
  const int threads = int(gridDim.x * blockDim.x), thread = int(blockIdx.x * blockDim.x + threadIdx.x);
  int value = thread;
  for (int r = 0; r < rounds; ++r) {
    if (leave_early && blockIdx.x == 1) return;
    cells[thread] = value;
    GS_GRID_BARRIER(relay_of_blocks_written);
    value = cells[(thread + int(blockDim.x)) % threads];
    GS_GRID_BARRIER(relay_of_blocks_read);
  }
  out[thread] = value;
}

__global__ void overrun(int* out) {
  GS_SHARED(int, cell, 4);
  cell[threadIdx.x] = 1;
  out[0] = cell[0];
}

__global__ void half_a_warp(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(kAllLanes, int(threadIdx.x), 1);
}

__global__ void mixed_barriers(int* out) {
  if (threadIdx.x < 16)
    GS_WARP_BARRIER(mixed);
  else
    out[threadIdx.x] = __shfl_xor_sync(kAllLanes, int(threadIdx.x), 1);
}

// pcgrad_row's three barriers by their place: 0 after the start, 1 after r_j is read, 2 after r is updated. `omit` leaves one
// out.
struct OmittingLanes {
  int omit;
  int* calls;

  int begin() const { return int(threadIdx.x); }
  int step() const { return kWarp; }
  void sync() const {
    const int place = *calls == 0 ? 0 : 2 - *calls % 2;
    ++*calls;
    if (place != omit) GS_WARP_BARRIER(omitting);
  }
};

__global__ void row_without(int tasks, const double* gram, int i, const int32_t* order, int omit, double* c) {
  GS_SHARED(double, dots, 64);
  int calls = 0;
  pcgrad_row(gram, tasks, i, order, false, dots, c, OmittingLanes{omit, &calls});
}

__global__ void misaligned(const char* from, float* out) { out[0] = load_global<float, 4>(from + 4).at[0]; }

__global__ void uninitialized(double* out) {
  GS_SHARED(double, cell, 1);
  out[threadIdx.x] = cell[0];
}

}  // namespace

GS_EXPORT int gs_relay(int rounds, int leave_early, int* out) {
  return guarded([&] { GS_LAUNCH(relay, 1, 64, 0, nullptr, rounds, leave_early, out); });
}
GS_EXPORT int gs_relay_of_blocks(int blocks, int threads, int rounds, int leave_early, int cooperative, int shared_bytes,
                                 int* cells, int* out) {
  return guarded([&] {
    if (cooperative)
      GS_LAUNCH_COOPERATIVE(relay_of_blocks, blocks, threads, shared_bytes, nullptr, rounds, leave_early, cells, out);
    else
      GS_LAUNCH(relay_of_blocks, blocks, threads, shared_bytes, nullptr, rounds, leave_early, cells, out);
  });
}
GS_EXPORT int gs_row_without(int tasks, const double* gram, int i, const int32_t* order, int omit, double* c) {
  return guarded([&] { GS_LAUNCH(row_without, 1, 32, 0, nullptr, tasks, gram, i, order, omit, c); });
}
GS_EXPORT int gs_overrun(int* out) {
  return guarded([&] { GS_LAUNCH(overrun, 1, 5, 0, nullptr, out); });
}
GS_EXPORT int gs_half_a_warp(int* out) {
  return guarded([&] { GS_LAUNCH(half_a_warp, 1, 32, 0, nullptr, out); });
}
GS_EXPORT int gs_mixed_barriers(int* out) {
  return guarded([&] { GS_LAUNCH(mixed_barriers, 1, 32, 0, nullptr, out); });
}
GS_EXPORT int gs_misaligned() {
  alignas(16) float memory[8] = {};
  return guarded([&] { GS_LAUNCH(misaligned, 1, 32, 0, nullptr, reinterpret_cast<const char*>(memory), memory); });
}
GS_EXPORT int gs_uninitialized(double* out) {
  return guarded([&] { GS_LAUNCH(uninitialized, 1, 32, 0, nullptr, out); });
}
