// Writes a table's words to device memory.
#pragma once

#include "cuda_table.h"

namespace gradsurgery {

// By launches that carry the words in their parameters, slice by slice. Parameters are copied when a launch is issued or
// captured: no host buffer has to outlive the call or a CUDA graph, and the host never waits. `stream` is a cudaStream_t; launch
// errors are left for the caller to collect.
void upload(Words words, int64_t* to, void* stream);

}  // namespace gradsurgery
