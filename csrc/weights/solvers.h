// Every solver of K -> w by name; a new one is a header and a line here, and the CPU operator, the CUDA kernel and `_host` have
// it.
#pragma once

#include "alignedmtl.h"
#include "config.h"
#include "fairgrad.h"
#include "gradvac.h"
#include "imtlg.h"
#include "krum.h"
#include "modo.h"
#include "nashmtl.h"
#include "random_weights.h"
#include "sdmgrad.h"

#define GS_FOR_EACH_SOLVER(USE) \
  USE(AlignedMtl)               \
  USE(Config)                   \
  USE(FairGrad)                 \
  USE(GradVac)                  \
  USE(ImtlG)                    \
  USE(Krum)                     \
  USE(Modo)                     \
  USE(NashMTL)                  \
  USE(RandomWeights)            \
  USE(Sdmgrad)
