#include "guarded.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <utility>
#include <vector>

namespace kernel_tests {
namespace {

constexpr unsigned char kPattern = 0xa5;

thread_local std::mt19937_64 generator;
// Mappings that no tensor has now, by their size: to map one anew and unmap it takes longer than most cases compute.
thread_local std::map<int64_t, std::vector<unsigned char*>> unused;

[[noreturn]] void stop(const char* reason) {
  std::printf("kernel_tests: %s\n", reason);
  std::fflush(stdout);
  std::_Exit(1);
}

// memcmp sees a page in the time of a few of its bytes, also where an emulator runs this.
bool holds_pattern(const unsigned char* begin, const unsigned char* end) {
  const size_t size = end - begin;
  return size == 0 || (*begin == kPattern && std::memcmp(begin, begin + 1, size - 1) == 0);
}

template <class T>
T read(const unsigned char* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// The bits as a float32's, whose exponent's bias is 112 larger.
double half_value(uint16_t bits) {
  const uint32_t magnitude = bits & 0x7fffu, single = magnitude << 13;
  const double value = magnitude > 0x7c00    ? NAN
                       : magnitude == 0x7c00 ? INFINITY
                                             : 0x1p112 * read<float>(reinterpret_cast<const unsigned char*>(&single));
  return bits >> 15 ? -value : value;
}

// Of a value that needs no rounding and is zero or normal.
uint16_t half_bits(double value) {
  int exponent = 0;
  const double fraction = std::frexp(std::fabs(value), &exponent);
  const int magnitude = value == 0 ? 0 : (exponent + 14) << 10 | (static_cast<int>(fraction * 2048) - 1024);
  return static_cast<uint16_t>(magnitude | (std::signbit(value) ? 0x8000 : 0));
}

double decode(DType dtype, const unsigned char* at) {
  switch (dtype) {
    case DType::kFloat32:
      return read<float>(at);
    case DType::kBFloat16: {
      const uint32_t bits = static_cast<uint32_t>(read<uint16_t>(at)) << 16;
      return read<float>(reinterpret_cast<const unsigned char*>(&bits));
    }
    case DType::kFloat16:
      return half_value(read<uint16_t>(at));
    case DType::kBool:
      return *at;
    case DType::kInt8:
      return read<int8_t>(at);
    case DType::kInt32:
      return read<int32_t>(at);
    default:
      return static_cast<double>(read<int64_t>(at));
  }
}

template <class T>
void write(unsigned char* at, T value) {
  std::memcpy(at, &value, sizeof value);
}

void encode(DType dtype, double value, unsigned char* at) {
  const float single = static_cast<float>(value);
  switch (dtype) {
    case DType::kFloat32:
      return write(at, single);
    case DType::kBFloat16:
      return write(at, static_cast<uint16_t>(read<uint32_t>(reinterpret_cast<const unsigned char*>(&single)) >> 16));
    case DType::kFloat16:
      return write(at, half_bits(value));
    case DType::kBool:
      return write(at, static_cast<unsigned char>(value));
    case DType::kInt8:
      return write(at, static_cast<int8_t>(value));
    case DType::kInt32:
      return write(at, static_cast<int32_t>(value));
    default:
      return write(at, static_cast<int64_t>(value));
  }
}

// `pages_bytes` between two pages that fault.
unsigned char* mapped(int64_t pages_bytes, int64_t page) {
  std::vector<unsigned char*>& ready = unused[pages_bytes];
  if (!ready.empty()) {
    unsigned char* mapping = ready.back();
    ready.pop_back();
    return mapping;
  }
  void* mapping = mmap(nullptr, pages_bytes + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) stop("mmap failed");
  auto* first = static_cast<unsigned char*>(mapping);
  if (pages_bytes > 0 && mprotect(first + page, pages_bytes, PROT_READ | PROT_WRITE) != 0) stop("mprotect failed");
  return first;
}

}  // namespace

int64_t volume(const Shape& shape) {
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  return count;
}

Guarded::Guarded(DType dtype, Shape shape, int64_t alignment)
    : dtype_(dtype),
      shape_(std::move(shape)),
      size_(volume(shape_)),
      element_bytes_(static_cast<int64_t>(fusionkit_cpu::dtype_size(dtype))),
      num_bytes_(size_ * element_bytes_) {
  const int64_t page = sysconf(_SC_PAGESIZE);
  pages_bytes_ = (num_bytes_ + page - 1) / page * page;
  mapping_ = mapped(pages_bytes_, page);
  pages_ = mapping_ + page;
  std::memset(pages_, kPattern, pages_bytes_);
  data_ = edge == Edge::kBegin ? pages_ : pages_ + (pages_bytes_ - num_bytes_) / alignment * alignment;
  std::memset(data_, 0xff, num_bytes_);
}

Guarded::Guarded(Guarded&& other)
    : dtype_(other.dtype_),
      shape_(std::move(other.shape_)),
      size_(other.size_),
      element_bytes_(other.element_bytes_),
      num_bytes_(other.num_bytes_),
      pages_bytes_(other.pages_bytes_),
      mapping_(std::exchange(other.mapping_, nullptr)),
      pages_(other.pages_),
      data_(other.data_) {}

Guarded::~Guarded() {
  if (mapping_ == nullptr) return;
  check_pattern();
  unused[pages_bytes_].push_back(mapping_);
}

void Guarded::check_pattern() const {
  if (!holds_pattern(pages_, data_) || !holds_pattern(data_ + num_bytes_, pages_ + pages_bytes_))
    stop("a kernel wrote beside a tensor");
}

double Guarded::operator[](int64_t i) const { return decode(dtype_, data_ + i * element_bytes_); }

void Guarded::set(int64_t i, double value) {
  encode(dtype_, value, data_ + i * element_bytes_);
  if ((*this)[i] != value) stop("a test's value is not exact in its dtype");
}

Tensor Guarded::view() const {
  Tensor tensor;
  tensor.data = data_;
  tensor.dtype = dtype_;
  tensor.present = true;
  tensor.num_dims = static_cast<int>(shape_.size());
  int64_t stride = 1;
  for (int axis = tensor.num_dims - 1; axis >= 0; stride *= shape_[axis--]) {
    tensor.shape[axis] = shape_[axis];
    tensor.strides[axis] = stride;
  }
  return tensor;
}

void restart_random(uint64_t seed) { generator.seed(seed); }

int64_t random_below(int64_t bound) { return static_cast<int64_t>(generator() % static_cast<uint64_t>(bound)); }

Guarded filled(DType dtype, const Shape& shape, const std::function<double(int64_t)>& value) {
  Guarded tensor(dtype, shape);
  for (int64_t i = 0; i < tensor.size(); ++i) tensor.set(i, value(i));
  return tensor;
}

Guarded random(DType dtype, const Shape& shape) {
  return filled(dtype, shape, [](int64_t) { return (static_cast<double>(random_below(257)) - 128) / 64; });
}

}  // namespace kernel_tests
