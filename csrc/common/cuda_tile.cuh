// Products of 8 x 8 pairs of rows, a tile, by one warp. Each half-warp takes four of the first rows and all of the others, and
// deals their coordinates out among its lanes: 32 sums a lane. 64, of a warp that deals out whole tiles, do not fit the
// registers.
#pragma once

#include "cuda_elements.h"

namespace gradsurgery {

constexpr int kTile = 8;
constexpr int kTileLanes = kWarp / 2;
constexpr int kLaneRows = kTile / 2;

// The first of the tile's rows that this half-warp takes.
__device__ __forceinline__ int first_lane_row() { return int(threadIdx.x) % kWarp / kTileLanes * kLaneRows; }

// Adds the products of Width coordinates, this lane's. x(i) reads them of this half-warp's row i, y(j) of the other row j, both
// as Raw.
template <class Element, int Width, class Run, class ReadX, class ReadY>
__device__ __forceinline__ void add_tile(ReadX x, ReadY y, Run (&run)[kLaneRows * kTile]) {
  using Step = Pack<Element, Width>;
  Step xs[kLaneRows];  // the fewer of the two are kept
#pragma unroll
  for (int i = 0; i < kLaneRows; ++i) xs[i] = unpack<Element, Width>(x(i));
#pragma unroll
  for (int j = 0; j < kTile; ++j) {
    const Step ys = unpack<Element, Width>(y(j));
#pragma unroll
    for (int i = 0; i < kLaneRows; ++i)
#pragma unroll
      for (int k = 0; k < Width; ++k) run[i * kTile + j] += convert<Run>(xs[i].at[k]) * convert<Run>(ys.at[k]);
  }
}

}  // namespace gradsurgery
