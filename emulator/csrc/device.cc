#include "device.h"

#include <array>
#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace fusionkit_emulator {
namespace {

constexpr int kMaxDevices = 64;

const char* setting(const char* name, const char* otherwise) {
  const char* value = std::getenv((std::string("FUSIONKIT_EMULATOR_") + name).c_str());
  return value == nullptr || *value == '\0' ? otherwise : value;
}

std::array<std::atomic<Device*>, kMaxDevices> devices{};  // never freed: Paddle's last tensors outlive every destructor

}  // namespace

const Settings& Settings::get() {
  static const Settings settings = [] {
    Settings s;
    s.device_type = setting("DEVICE", "npu");
    s.num_devices = std::atoi(setting("DEVICES", "1"));
    s.memory = std::strtoull(setting("MEMORY", "68719476736"), nullptr, 10);
    s.synchronous = setting("SYNC", "0")[0] == '1';
    s.checked = setting("UNCHECKED", "0")[0] != '1';
    s.timeout = std::atof(setting("TIMEOUT", "300"));
    s.rehearsing = setting("REHEARSE", "0")[0] == '1';
    s.record = setting("RECORD", "");
    return s;
  }();
  return settings;
}

Device::Device(int id) : memory(id, Settings::get().memory, Settings::get().checked), id(id) {}

Stream* Device::create_stream() {
  const std::lock_guard<std::mutex> lock(mutex_);
  streams_.push_back(std::make_unique<Stream>(Settings::get().synchronous));
  return streams_.back().get();
}

void Device::destroy_stream(Stream* stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  streams_.remove_if([&](const std::unique_ptr<Stream>& each) { return each.get() == stream; });
}

Stream& Device::stream_or_default(void* stream) {
  if (stream != nullptr) return *static_cast<Stream*>(stream);
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  if (default_ == nullptr) default_ = create_stream();
  return *default_;
}

std::vector<Stream*> Device::streams() {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<Stream*> all;
  for (const auto& stream : streams_) all.push_back(stream.get());
  return all;
}

void Device::synchronize() {
  for (Stream* stream : streams()) stream->synchronize();
}

void Device::drain() {
  for (Stream* stream : streams()) stream->drain();
}

Device& device(int id) {
  static std::mutex mutex;
  Device* found = devices.at(id).load();
  if (found != nullptr) return *found;
  const std::lock_guard<std::mutex> lock(mutex);
  if (devices[id] == nullptr) devices[id] = new Device(id);
  return *devices[id];
}

Device* device_of(const void* address) {
  for (const auto& each : devices) {
    Device* device = each.load();
    if (device != nullptr && device->memory.holds(address)) return device;
  }
  return nullptr;
}

void* storage_of(const void* address) {
  const Device* owner = device_of(address);
  return owner == nullptr ? const_cast<void*>(address) : owner->memory.storage(address);
}

}  // namespace fusionkit_emulator
