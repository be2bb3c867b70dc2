// The device interface of Paddle (paddle/phi/backends/device_ext.h): devices, streams, events, memory and copies.
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "collectives.h"
#include "device.h"
#include "fault.h"
#include "kernels/registration.h"
#include "paddle/phi/backends/device_ext.h"
#include "rehearsal/findings.h"
#include "rehearsal/stand_in.h"
#include "rehearsal/trace.h"
#include "status.h"

namespace fusionkit_emulator {
namespace {

using SharedEvent = std::shared_ptr<Event>;

thread_local int current_device = 0;

Stream& stream_of(C_Device on, C_Stream stream) { return device(on->id).stream_or_default(stream); }
SharedEvent& event_of(C_Event event) { return *reinterpret_cast<SharedEvent*>(event); }

using Kind = rehearsal::Trace::Kind;
void note(Kind kind, const void* event, const void* stream) {
  if (rehearsal::Trace* trace = rehearsal::Trace::get()) trace->synchronization(kind, event, stream);
}

C_Status nothing() { return C_SUCCESS; }
C_Status nothing_on(C_Device) { return C_SUCCESS; }

C_Status init_device(C_Device on) {
  return guarded([&] {
    install_fault_handler();
    device(on->id);
    if (Settings::get().rehearsing) rehearsal::begin_process();
  });
}

C_Status set_device(C_Device on) {
  current_device = on->id;
  return C_SUCCESS;
}

C_Status get_device(C_Device on) {
  on->id = current_device;
  return C_SUCCESS;
}

C_Status device_count(size_t* count) {
  *count = Settings::get().num_devices;
  return C_SUCCESS;
}

C_Status device_list(size_t* list) {
  for (int i = 0; i < Settings::get().num_devices; ++i) list[i] = i;
  return C_SUCCESS;
}

C_Status synchronize_device(C_Device on) {
  note(Kind::kSyncDevice, nullptr, nullptr);
  return guarded([&] { device(on->id).synchronize(); });
}

C_Status create_stream(C_Device on, C_Stream* stream) {
  return guarded([&] { *stream = reinterpret_cast<C_Stream>(device(on->id).create_stream()); });
}

C_Status destroy_stream(C_Device on, C_Stream stream) {
  return guarded([&] { device(on->id).destroy_stream(reinterpret_cast<Stream*>(stream)); });
}

C_Status query_stream(C_Device on, C_Stream stream) { return stream_of(on, stream).idle() ? C_SUCCESS : C_WARNING; }

C_Status synchronize_stream(C_Device on, C_Stream stream) {
  note(Kind::kSyncStream, nullptr, &stream_of(on, stream));
  return guarded([&] { stream_of(on, stream).synchronize(); });
}

C_Status stream_add_callback(C_Device on, C_Stream stream, C_Callback callback, void* user_data) {
  return guarded([&] {
    stream_of(on, stream).enqueue_always([=] {
      C_Status status = C_SUCCESS;
      callback(on, stream, user_data, &status);
    });
  });
}

C_Status create_event(C_Device, C_Event* event) {
  return guarded([&] { *event = reinterpret_cast<C_Event>(new SharedEvent(std::make_shared<Event>())); });
}

C_Status destroy_event(C_Device, C_Event event) {
  delete &event_of(event);
  return C_SUCCESS;
}

C_Status record_event(C_Device on, C_Stream stream, C_Event event) {
  note(Kind::kRecord, event_of(event).get(), &stream_of(on, stream));
  return guarded([&] { event_of(event)->record(stream_of(on, stream)); });
}

C_Status query_event(C_Device, C_Event event) { return event_of(event)->reached() ? C_SUCCESS : C_WARNING; }

C_Status synchronize_event(C_Device, C_Event event) {
  note(Kind::kSyncEvent, event_of(event).get(), nullptr);
  return guarded([&] { event_of(event)->wait(); });
}

C_Status stream_wait_event(C_Device on, C_Stream stream, C_Event event) {
  note(Kind::kWait, event_of(event).get(), &stream_of(on, stream));
  return guarded([&] { event_of(event)->wait(stream_of(on, stream)); });
}

C_Status allocate(C_Device on, void** address, size_t size) {
  *address = nullptr;
  return guarded([&] {
    *address = device(on->id).memory.allocate(size);
    if (Settings::get().rehearsing) rehearsal::note_allocation(on->id, size, *address != nullptr);
  });
}

// As on hardware, freeing waits for what may still read: a stream's work holds addresses, not tensors.
C_Status deallocate(C_Device on, void* address, size_t) {
  Device& owner = device(on->id);
  owner.drain();
  return guarded([&] { owner.memory.deallocate(address); });
}

C_Status set_memory(C_Device on, void* address, unsigned char value, size_t size) {
  return guarded([&] {
    device(on->id).synchronize();
    if (Settings::get().rehearsing && size > rehearsal::kSmall) return;
    std::memset(storage_of(address), value, size);
  });
}

C_Status allocate_on_host(C_Device, void** address, size_t size) {
  *address = std::malloc(size);
  return *address == nullptr ? C_FAILED : C_SUCCESS;
}

C_Status deallocate_on_host(C_Device, void* address, size_t) {
  std::free(address);
  return C_SUCCESS;
}

// Without a stream, a copy comes after everything that the device was given.
C_Status copy(C_Device on, void* to, const void* from, size_t size) {
  return guarded([&] {
    Device& owner = device(on->id);
    note(Kind::kSyncDevice, nullptr, nullptr);
    owner.synchronize();
    if (Settings::get().rehearsing) return rehearsal::copy(to, from, size);
    if (Device* written = device_of(to)) written->memory.name(to, size, "a copy");
    std::memcpy(storage_of(to), storage_of(from), size);
  });
}

C_Status copy_between(C_Device to_device, C_Device from_device, void* to, const void* from, size_t size) {
  return guarded([&] {
    device(from_device->id).synchronize();
    device(to_device->id).synchronize();
    if (Settings::get().rehearsing) return rehearsal::copy(to, from, size);
    std::memcpy(storage_of(to), storage_of(from), size);
  });
}

// A rehearsal waits: what a copy leaves is decided by what was written before.
C_Status copy_in_rehearsal(C_Device on, C_Stream stream, void* to, const void* from, size_t size) {
  return guarded([&] {
    stream_of(on, stream).synchronize();
    rehearsal::copy(to, from, size);
  });
}

// From pageable memory the device reads at once: the caller may reuse its buffer.
C_Status copy_to_device_on_stream(C_Device on, C_Stream stream, void* to, const void* from, size_t size) {
  if (Settings::get().rehearsing) return copy_in_rehearsal(on, stream, to, from, size);
  return guarded([&] {
    const auto* bytes = static_cast<const char*>(from);
    const auto buffer = std::make_shared<std::vector<char>>(bytes, bytes + size);
    if (Device* written = device_of(to)) written->memory.name(to, size, "a copy");
    stream_of(on, stream).enqueue([=] { std::memcpy(storage_of(to), buffer->data(), size); });
  });
}

C_Status copy_on_stream(C_Device on, C_Stream stream, void* to, const void* from, size_t size) {
  if (Settings::get().rehearsing) return copy_in_rehearsal(on, stream, to, from, size);
  return guarded([&] { stream_of(on, stream).enqueue([=] { std::memcpy(storage_of(to), storage_of(from), size); }); });
}

// Into pageable memory a copy returns when it is done, as on hardware; Paddle frees such buffers at once.
C_Status copy_to_host_on_stream(C_Device on, C_Stream stream, void* to, const void* from, size_t size) {
  const C_Status status = copy_on_stream(on, stream, to, from, size);
  return status == C_SUCCESS ? synchronize_stream(on, stream) : status;
}

C_Status copy_between_on_stream(C_Device, C_Device from_device, C_Stream stream, void* to, const void* from,
                                size_t size) {
  return copy_on_stream(from_device, stream, to, from, size);
}

C_Status memory_stats(C_Device on, size_t* total, size_t* free) {
  const DeviceMemory& memory = device(on->id).memory;
  *total = memory.limit();
  *free = memory.limit() - memory.in_use();
  return C_SUCCESS;
}

C_Status min_chunk_size(C_Device, size_t* size) {
  *size = 512;  // what Paddle's accounting rounds to, as on the vendors' devices
  return C_SUCCESS;
}

C_Status supported(C_Device, bool* answer) {
  *answer = true;
  return C_SUCCESS;
}

void fill_devices(C_DeviceInterface* interface) {
  interface->initialize = nothing;
  interface->finalize = nothing;
  interface->init_device = init_device;
  interface->deinit_device = nothing_on;
  interface->set_device = set_device;
  interface->get_device = get_device;
  interface->get_device_count = device_count;
  interface->get_device_list = device_list;
  interface->synchronize_device = synchronize_device;
  interface->is_float16_supported = supported;
  interface->is_bfloat16_supported = supported;
}

void fill_streams(C_DeviceInterface* interface) {
  interface->create_stream = create_stream;
  interface->destroy_stream = destroy_stream;
  interface->query_stream = query_stream;
  interface->synchronize_stream = synchronize_stream;
  interface->stream_add_callback = stream_add_callback;
  interface->create_event = create_event;
  interface->destroy_event = destroy_event;
  interface->record_event = record_event;
  interface->query_event = query_event;
  interface->synchronize_event = synchronize_event;
  interface->stream_wait_event = stream_wait_event;
}

void fill_memory(C_DeviceInterface* interface) {
  interface->device_memory_allocate = allocate;
  interface->device_memory_deallocate = deallocate;
  interface->device_memory_set = set_memory;
  interface->device_memory_stats = memory_stats;
  interface->device_min_chunk_size = min_chunk_size;
  interface->host_memory_allocate = allocate_on_host;
  interface->host_memory_deallocate = deallocate_on_host;
  interface->memory_copy_h2d = copy;
  interface->memory_copy_d2h = copy;
  interface->memory_copy_d2d = copy;
  interface->memory_copy_p2p = copy_between;
  interface->async_memory_copy_h2d = copy_to_device_on_stream;
  interface->async_memory_copy_d2h = copy_to_host_on_stream;
  interface->async_memory_copy_d2d = copy_on_stream;
  interface->async_memory_copy_p2p = copy_between_on_stream;
}

}  // namespace
}  // namespace fusionkit_emulator

extern "C" __attribute__((visibility("default"))) void InitPlugin(CustomRuntimeParams* params) {
  using namespace fusionkit_emulator;
  PADDLE_CUSTOM_RUNTIME_CHECK_VERSION(params);
  params->device_type = strdup(Settings::get().device_type.c_str());
  params->sub_device_type = strdup("emulated");
  std::memset(params->interface, 0, sizeof(C_DeviceInterface));
  params->interface->size = sizeof(C_DeviceInterface);
  fill_devices(params->interface);
  fill_streams(params->interface);
  fill_memory(params->interface);
  fill_collectives(params->interface);
  kernels::register_all();
}
