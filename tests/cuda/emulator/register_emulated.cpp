// The CUDA operators on CPU tensors: the text of register_cuda.cpp over the emulator, as torch.ops.gradsurgery_emulated.
#include <torch/csrc/stable/library.h>

#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(library, key, m) static void register_operators(torch::stable::detail::StableLibrary& m)

#include "../../../csrc/register_cuda.cpp"
#include "emulator.cpp"

STABLE_TORCH_LIBRARY_FRAGMENT(gradsurgery_emulated, m) {
  m.def("gram(Tensor?[] grads, int tasks, bool stacked=False) -> Tensor");
  m.def(
      "pcgrad_weights(Tensor gram, Tensor? order=None, Tensor(a!)? key=None, bool include_self=False, float scale=1.0) -> "
      "Tensor");
  m.def(
      "solve(Tensor gram, str solver, float[] options, Tensor? given=None, Tensor(a!)? state=None, Tensor? order=None, "
      "Tensor(b!)? key=None) -> (Tensor, Tensor)");
  m.def("combine_(Tensor(a!)[] out, Tensor?[] grads, Tensor weights, bool stacked=False, bool accumulate=False) -> ()");
  m.def(
      "pcgrad_(Tensor(a!)[] out, Tensor?[] grads, int tasks, bool stacked=False, Tensor? order=None, Tensor(b!)? key=None, "
      "bool include_self=False, float scale=1.0, bool accumulate=False) -> (Tensor, Tensor)");
}

static const torch::stable::detail::StableTorchLibraryInit registered(torch::stable::detail::StableLibrary::Kind::IMPL,
                                                                      &register_operators, "gradsurgery_emulated", "CPU",
                                                                      __FILE__, __LINE__);
