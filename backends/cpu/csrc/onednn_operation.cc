#include "onednn_operation.h"

#include <omp.h>

#include <mutex>
#include <stdexcept>
#include <unordered_map>

#include "buffer.h"
#include "parallel.h"

namespace fusionkit_cpu::onednn {
namespace {

// A full cache starts afresh: a training step uses some tens.
constexpr size_t kMaxOperations = 512;

}  // namespace

void check(int status, const char* call) {
  if (status != kSuccess)
    throw std::runtime_error(std::string("oneDNN: ") + call + " failed with status " + std::to_string(status));
}

ThreadCount::ThreadCount() : before_(omp_get_max_threads()) {
  parallel_for(num_threads(), 1, [this](int64_t, int64_t, int share) {
    if (share == 0) count_ = omp_get_num_threads();
  });
  omp_set_num_threads(count_);
}

ThreadCount::~ThreadCount() { omp_set_num_threads(before_); }

Operation::Operation(Owned<PrimitiveDesc> desc, std::vector<int> args, std::vector<Owned<MemoryDesc>> arg_descs)
    : desc_(std::move(desc)),
      args_(std::move(args)),
      arg_descs_(std::move(arg_descs)),
      primitive_(nullptr, api()->primitive_destroy) {
  Primitive* primitive = nullptr;
  check(api()->primitive_create(&primitive, desc_.get()), "primitive_create");
  primitive_.reset(primitive);
  scratchpad_ = api()->primitive_desc_query_md(desc_.get(), kQueryScratchpadDesc, 0);
}

void Operation::run(std::initializer_list<const void*> data) const {
  const Buffer scratch(api()->memory_desc_get_size(scratchpad_));
  std::vector<Owned<Memory>> memories;
  std::vector<ExecArg> exec_args;
  const auto add = [&](int arg, const MemoryDesc* desc, const void* bytes) {
    Memory* memory = nullptr;
    check(api()->memory_create(&memory, desc, engine(), const_cast<void*>(bytes)), "memory_create");
    memories.emplace_back(memory, api()->memory_destroy);
    exec_args.push_back({arg, memory});
  };
  for (size_t i = 0; i < args_.size(); ++i) add(args_[i], arg_descs_[i].get(), data.begin()[i]);
  add(kArgScratchpad, scratchpad_, scratch.as<void>());
  check(api()->primitive_execute(primitive_.get(), stream(), static_cast<int>(exec_args.size()), exec_args.data()),
        "primitive_execute");
}

std::shared_ptr<const Operation> cached(const Key& key,
                                        const std::function<std::shared_ptr<const Operation>()>& create) {
  static std::mutex mutex;
  static auto& operations = *new std::unordered_map<std::string, std::shared_ptr<const Operation>>;
  {
    std::lock_guard<std::mutex> lock(mutex);
    const auto found = operations.find(key.text());
    if (found != operations.end()) return found->second;
  }
  std::shared_ptr<const Operation> operation = create();
  std::lock_guard<std::mutex> lock(mutex);
  if (operations.size() >= kMaxOperations) operations.clear();
  return operations.emplace(key.text(), std::move(operation)).first->second;
}

}  // namespace fusionkit_cpu::onednn
