// Shuffles from a lane given by its number.
#pragma once

#include "simt.h"

template <class T>
T __shfl_sync(unsigned mask, T value, int lane) {
  if (mask != 0xFFFFFFFFu) throw std::runtime_error("simt: partial masks are not emulated");
  if (lane < 0 || lane >= int(simt::kWarp)) throw std::runtime_error("simt: a shuffle from a lane that does not exist");
  return simt::shuffle_from(value, unsigned(lane));
}
