#include "onednn.h"

#include <dlfcn.h>

#include <atomic>
#include <memory>
#include <mutex>

namespace fusionkit_cpu::onednn {
namespace {

struct Library {
  Api api;
  Engine* engine = nullptr;
  Stream* stream = nullptr;
};

std::atomic<const Library*> loaded{nullptr};

template <class F>
bool resolve(void* handle, const char* name, F& function) {
  function = reinterpret_cast<F>(dlsym(handle, name));
  return function != nullptr;
}

bool resolve_all(void* handle, Api& api) {
#define FUSIONKIT_RESOLVE(name) resolve(handle, "dnnl_" #name, api.name)
  return FUSIONKIT_RESOLVE(version) && FUSIONKIT_RESOLVE(get_effective_cpu_isa) && FUSIONKIT_RESOLVE(engine_create) &&
         FUSIONKIT_RESOLVE(stream_create) && FUSIONKIT_RESOLVE(memory_desc_create_with_strides) &&
         FUSIONKIT_RESOLVE(memory_desc_create_with_tag) && FUSIONKIT_RESOLVE(memory_desc_create_with_blob) &&
         FUSIONKIT_RESOLVE(memory_desc_get_blob) && FUSIONKIT_RESOLVE(memory_desc_get_size) &&
         FUSIONKIT_RESOLVE(memory_desc_query) && FUSIONKIT_RESOLVE(memory_desc_destroy) &&
         FUSIONKIT_RESOLVE(memory_create) && FUSIONKIT_RESOLVE(memory_destroy) &&
         FUSIONKIT_RESOLVE(primitive_attr_create) && FUSIONKIT_RESOLVE(primitive_attr_set_scratchpad_mode) &&
         FUSIONKIT_RESOLVE(primitive_attr_set_post_ops) && FUSIONKIT_RESOLVE(primitive_attr_destroy) &&
         FUSIONKIT_RESOLVE(post_ops_create) && FUSIONKIT_RESOLVE(post_ops_append_sum) &&
         FUSIONKIT_RESOLVE(post_ops_destroy) && FUSIONKIT_RESOLVE(matmul_primitive_desc_create) &&
         FUSIONKIT_RESOLVE(reorder_primitive_desc_create) && FUSIONKIT_RESOLVE(primitive_desc_query_md) &&
         FUSIONKIT_RESOLVE(primitive_desc_destroy) && FUSIONKIT_RESOLVE(primitive_create) &&
         FUSIONKIT_RESOLVE(primitive_execute) && FUSIONKIT_RESOLVE(primitive_destroy);
#undef FUSIONKIT_RESOLVE
}

// Another major version has other numbers; another threading runtime would ignore num_threads().
bool usable(const Version& version) {
  return version.major == 3 && version.cpu_runtime == static_cast<unsigned>(kRuntimeOmp);
}

std::unique_ptr<Library> open_library(const std::string& path) {
  void* handle = path.empty() ? nullptr : dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return nullptr;
  auto library = std::make_unique<Library>();
  if (resolve_all(handle, library->api) && usable(*library->api.version()) &&
      library->api.engine_create(&library->engine, kEngineCpu, 0) == kSuccess &&
      library->api.stream_create(&library->stream, library->engine, kStreamInOrder) == kSuccess)
    return library;
  dlclose(handle);
  return nullptr;
}

}  // namespace

bool load(const std::string& path) {
  // One library for the life of the process: primitives and packed weights refer to it.
  static std::mutex mutex;
  static const Library* library = nullptr;
  const std::lock_guard<std::mutex> lock(mutex);
  if (library == nullptr) library = open_library(path).release();
  loaded.store(path.empty() ? nullptr : library);
  return loaded.load() != nullptr;
}

const Api* api() {
  const Library* library = loaded.load();
  return library == nullptr ? nullptr : &library->api;
}

Engine* engine() { return loaded.load()->engine; }

Stream* stream() { return loaded.load()->stream; }

}  // namespace fusionkit_cpu::onednn
