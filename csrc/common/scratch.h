// Uninitialised room for a call: on the stack when it is small, since at small sizes allocations would cost as much as the
// arithmetic.
#pragma once

#include <cstddef>
#include <memory>

namespace gradsurgery {

template <class T, size_t OnStack>
class Scratch {
 public:
  explicit Scratch(size_t count) {
    if (count > OnStack) heap_.reset(new T[count]);
  }
  T* data() { return heap_ ? heap_.get() : stack_; }
  T& operator[](size_t k) { return data()[k]; }

 private:
  alignas(64) T stack_[OnStack];
  std::unique_ptr<T[]> heap_;
};

}  // namespace gradsurgery
