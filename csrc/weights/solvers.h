// Every solver of K -> w by name; a new one is a header and a line here, and the CPU operator, the CUDA kernel and `_host` have
// it.
#pragma once

#include "krum.h"

#define GS_FOR_EACH_SOLVER(USE) USE(Krum)
