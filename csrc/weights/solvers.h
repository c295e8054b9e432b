// Every solver of K -> w by name; a new one is a header and a line here, and the CPU operator, the CUDA kernel and `_host` have
// it.
#pragma once

#include "fairgrad.h"
#include "gradvac.h"
#include "krum.h"
#include "modo.h"
#include "nashmtl.h"
#include "sdmgrad.h"

#define GS_FOR_EACH_SOLVER(USE) \
  USE(FairGrad)                 \
  USE(GradVac)                  \
  USE(Krum)                     \
  USE(Modo)                     \
  USE(NashMTL)                  \
  USE(Sdmgrad)
