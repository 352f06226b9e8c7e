#include "device_access.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

namespace manta::backend::testing {
namespace {

void expect_fine(cudaError_t code) {
  EXPECT_EQ(code, cudaSuccess) << cudaGetErrorString(code);
}

size_t bytes_of(const Tensor& t) {
  return t.num_elements() * dtype_bytes(t.dtype);
}

}  // namespace

Access device_access() {
  Access access;
  access.read = [](void* to, const Tensor& from) {
    expect_fine(cudaDeviceSynchronize());
    expect_fine(cudaMemcpy(to, from.data, bytes_of(from), cudaMemcpyDeviceToHost));
  };
  access.write = [](const Tensor& to, const void* from) {
    expect_fine(cudaDeviceSynchronize());
    expect_fine(cudaMemcpy(to.data, from, bytes_of(to), cudaMemcpyHostToDevice));
    expect_fine(cudaDeviceSynchronize());
  };
  access.allocate = [](size_t num_bytes) {
    void* data = nullptr;
    expect_fine(cudaMalloc(&data, num_bytes + 256));
    return std::shared_ptr<void>(data, [](void* p) { cudaFree(p); });
  };
  return access;
}

const std::string& no_device() {
  static const std::string why = [] {
    auto backend = make_backend("cuda", {});
    return backend.ok() ? std::string() : backend.error().message;
  }();
  return why;
}

}  // namespace manta::backend::testing
