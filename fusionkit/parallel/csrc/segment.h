// Memory that processes share, mapped once in each of them.
#pragma once

#include <cstddef>
#include <memory>

namespace fusionkit_parallel {

class Segment {
 public:
  // Ranks that are threads of one process get the same mapping, so that a race detector sees one address for one byte.
  static std::shared_ptr<Segment> map(int fd, size_t size);
  // A segment without a name: nothing is left behind, however its processes end.
  static int create(size_t size);

  Segment(char* memory, size_t size) : memory(memory), size_(size) {}
  ~Segment();
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  char* const memory;  // zeros at first

 private:
  const size_t size_;
};

}  // namespace fusionkit_parallel
