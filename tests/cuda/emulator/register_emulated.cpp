// The CUDA operators on CPU tensors: the text of register_cuda.cpp over the emulator, as torch.ops.gradsurgery_emulated, which
// cuda_emulator.py defines with the schemas of the operators themselves.
#include <torch/csrc/stable/library.h>

#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(library, key, m) static void register_operators(torch::stable::detail::StableLibrary& m)

#include "../../../csrc/register_cuda.cpp"
#include "emulator.cpp"

static const torch::stable::detail::StableTorchLibraryInit registered(torch::stable::detail::StableLibrary::Kind::IMPL,
                                                                      &register_operators, "gradsurgery_emulated", "CPU",
                                                                      __FILE__, __LINE__);
