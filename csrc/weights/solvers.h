// Every solver of K -> w by name; a new one is a header and a line here, and the CPU operator, the CUDA kernel and `_host` have
// it.
#pragma once

#include "alignedmtl.h"
#include "cagrad.h"
#include "config.h"
#include "dualproj.h"
#include "fairgrad.h"
#include "gradvac.h"
#include "imtlg.h"
#include "krum.h"
#include "mgda.h"
#include "modo.h"
#include "nashmtl.h"
#include "pcd.h"
#include "random_weights.h"
#include "sdmgrad.h"
#include "upgrad.h"

#define GS_FOR_EACH_SOLVER(USE) \
  USE(AlignedMtl)               \
  USE(CAGrad)                   \
  USE(Config)                   \
  USE(DualProj)                 \
  USE(FairGrad)                 \
  USE(GradVac)                  \
  USE(ImtlG)                    \
  USE(Krum)                     \
  USE(MGDA)                     \
  USE(Modo)                     \
  USE(NashMTL)                  \
  USE(PCD)                      \
  USE(RandomWeights)            \
  USE(Sdmgrad)                  \
  USE(UPGrad)
