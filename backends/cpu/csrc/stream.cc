#include "stream.h"

#include <cstring>

#include "buffer.h"
#include "cache_size.h"
#include "check.h"

namespace fusionkit_cpu {
namespace {

int64_t check_bytes(const char* name, const Tensor& tensor) {
  require_present("stream", name, tensor);
  require(is_contiguous(tensor), "stream", name, "contiguous", tensor);
  return num_elements(tensor) * static_cast<int64_t>(dtype_size(tensor.dtype));
}

}  // namespace

void stream(const Tensor& source, const Tensor& target, bool non_temporal) {
  const int64_t source_size = check_bytes("source", source), target_size = check_bytes("target", target);
  const auto address = reinterpret_cast<uintptr_t>(target.data);
  if (non_temporal && address % 64 != 0)
    fail("stream", "target", "aligned to 64 bytes", std::to_string(address % 64) + " bytes past such an address");
  FUSIONKIT_DISPATCH(stream, static_cast<const char*>(source.data), source_size, static_cast<char*>(target.data),
                     target_size, non_temporal);
}

void flush_caches() {
  struct Filling {
    size_t size = 4 * last_level_cache_size();
    Buffer bytes{size};
    Filling() { std::memset(bytes.as<char>(), 1, size); }  // a page never written is one page of zeros, in the caches
  };
  static const Filling filling;
  FUSIONKIT_DISPATCH(stream, filling.bytes.as<char>(), static_cast<int64_t>(filling.size), nullptr, 0, false);
}

}  // namespace fusionkit_cpu
