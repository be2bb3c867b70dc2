// The emulated devices of this process and what the process was started with.
#pragma once

#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "device_memory.h"
#include "stream.h"

namespace fusionkit_emulator {

// FUSIONKIT_EMULATOR_*: set by `fusionkit emulate`.
struct Settings {
  std::string device_type;   // DEVICE: "npu" or "gcu"
  int num_devices = 1;       // DEVICES
  size_t memory = 0;         // MEMORY: bytes a device
  bool synchronous = false;  // SYNC=1: each call waits, for debugging
  bool checked = true;       // UNCHECKED=1: host code may touch device memory
  double timeout = 300;      // TIMEOUT: seconds that a collective waits for its peers
  bool rehearsing = false;   // REHEARSE=1: kernels are checked and compute nothing
  std::string record;        // RECORD: folder for what a rehearsal finds

  static const Settings& get();
};

class Device {
 public:
  explicit Device(int id);

  DeviceMemory memory;
  const int id;

  Stream* create_stream();
  void destroy_stream(Stream* stream);
  Stream& stream_or_default(void* stream);
  void synchronize();  // throws what a stream's work threw
  void drain();        // waits only

 private:
  std::vector<Stream*> streams();

  std::mutex mutex_;
  std::list<std::unique_ptr<Stream>> streams_;
  Stream* default_ = nullptr;
};

// Made when first asked for.
Device& device(int id);
// The device whose memory an address is in, or null for host memory.
Device* device_of(const void* address);
// The address at which this process may read and write: of device memory the storage, else the address itself.
void* storage_of(const void* address);

}  // namespace fusionkit_emulator
