#include "segment.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "socket.h"

namespace fusionkit_parallel {
namespace {

struct Mapped {
  std::mutex mutex;
  std::map<std::pair<dev_t, ino_t>, std::weak_ptr<Segment>> segments;

  static Mapped& get() {
    static auto* mapped = new Mapped;  // for as long as any thread runs
    return *mapped;
  }
};

}  // namespace

std::shared_ptr<Segment> Segment::map(int fd, size_t size) {
  struct stat identity = {};
  if (fstat(fd, &identity) != 0) throw system_error("shared memory must come as a file descriptor");
  Mapped& mapped = Mapped::get();
  const std::lock_guard<std::mutex> lock(mapped.mutex);
  for (auto each = mapped.segments.begin(); each != mapped.segments.end();)
    each = each->second.expired() ? mapped.segments.erase(each) : std::next(each);
  auto& known = mapped.segments[{identity.st_dev, identity.st_ino}];
  if (auto segment = known.lock()) return segment;
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) throw system_error("shared memory could not be mapped");
  auto segment = std::make_shared<Segment>(static_cast<char*>(memory), size);
  known = segment;
  return segment;
}

int Segment::create(size_t size) {
  const int fd = memfd_create("fusionkit-communicator", MFD_CLOEXEC);
  if (fd < 0) throw system_error("the system refused shared memory");
  if (ftruncate(fd, static_cast<off_t>(size)) != 0) {
    close(fd);
    throw system_error("the system refused " + std::to_string(size) + " bytes of shared memory");
  }
  return fd;
}

Segment::~Segment() { munmap(memory, size_); }

}  // namespace fusionkit_parallel
