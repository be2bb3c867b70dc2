#include "onednn_matmul.h"

#include <omp.h>

#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <unordered_map>

#include "buffer.h"
#include "onednn.h"
#include "parallel.h"

namespace fusionkit_cpu {
namespace {

using namespace onednn;

void check(int status, const char* call) {
  if (status != kSuccess)
    throw std::runtime_error(std::string("oneDNN: ") + call + " failed with status " + std::to_string(status));
}

template <class T>
using Owned = std::unique_ptr<T, int (*)(T*)>;

Owned<MemoryDesc> describe(const Matrix& m) {
  const int64_t dims[2] = {m.rows, m.cols};
  const bool is_vector = m.rows == 1 || m.cols == 1;
  const int64_t strides[2] = {is_vector ? m.cols : m.row_stride, is_vector ? 1 : m.col_stride};
  MemoryDesc* desc = nullptr;
  check(api()->memory_desc_create_with_strides(&desc, 2, dims,
                                               m.dtype == DType::kFloat32 ? kDataFloat32 : kDataBFloat16, strides),
        "memory_desc_create_with_strides");
  return {desc, api()->memory_desc_destroy};
}

Owned<MemoryDesc> describe_preferred(DType dtype, int64_t rows, int64_t cols) {
  const int64_t dims[2] = {rows, cols};
  MemoryDesc* desc = nullptr;
  check(api()->memory_desc_create_with_tag(&desc, 2, dims, dtype == DType::kFloat32 ? kDataFloat32 : kDataBFloat16,
                                           kTagAny),
        "memory_desc_create_with_tag");
  return {desc, api()->memory_desc_destroy};
}

Owned<MemoryDesc> describe_layout(const std::vector<uint8_t>& layout) {
  MemoryDesc* desc = nullptr;
  check(api()->memory_desc_create_with_blob(&desc, layout.data()), "memory_desc_create_with_blob");
  return {desc, api()->memory_desc_destroy};
}

// Scratch memory belongs to the call: one primitive may then run in several threads at once.
Owned<Attr> attributes(bool accumulate) {
  Attr* attr = nullptr;
  check(api()->primitive_attr_create(&attr), "primitive_attr_create");
  Owned<Attr> owned(attr, api()->primitive_attr_destroy);
  check(api()->primitive_attr_set_scratchpad_mode(attr, kScratchpadUser), "primitive_attr_set_scratchpad_mode");
  if (!accumulate) return owned;
  PostOps* post_ops = nullptr;
  check(api()->post_ops_create(&post_ops), "post_ops_create");
  Owned<PostOps> owned_ops(post_ops, api()->post_ops_destroy);
  check(api()->post_ops_append_sum(post_ops, 1.0f, 0, kDataFloat32), "post_ops_append_sum");
  check(api()->primitive_attr_set_post_ops(attr, post_ops), "primitive_attr_set_post_ops");
  return owned;
}

Owned<PrimitiveDesc> matmul_desc(const MemoryDesc* a, const MemoryDesc* b, const MemoryDesc* bias, const MemoryDesc* c,
                                 bool accumulate) {
  PrimitiveDesc* desc = nullptr;
  check(api()->matmul_primitive_desc_create(&desc, engine(), a, b, bias, c, attributes(accumulate).get()),
        "matmul_primitive_desc_create");
  return {desc, api()->primitive_desc_destroy};
}

Owned<PrimitiveDesc> reorder_desc(const MemoryDesc* from, const MemoryDesc* to) {
  PrimitiveDesc* desc = nullptr;
  check(api()->reorder_primitive_desc_create(&desc, from, engine(), to, engine(), attributes(false).get()),
        "reorder_primitive_desc_create");
  return {desc, api()->primitive_desc_destroy};
}

// A primitive that is ready to run, with the descriptions of its arguments.
class Operation {
 public:
  Operation(Owned<PrimitiveDesc> desc, std::vector<int> args, std::vector<Owned<MemoryDesc>> arg_descs)
      : desc_(std::move(desc)),
        args_(std::move(args)),
        arg_descs_(std::move(arg_descs)),
        primitive_(nullptr, api()->primitive_destroy) {
    Primitive* primitive = nullptr;
    check(api()->primitive_create(&primitive, desc_.get()), "primitive_create");
    primitive_.reset(primitive);
    scratchpad_ = api()->primitive_desc_query_md(desc_.get(), kQueryScratchpadDesc, 0);
  }

  // `data` in the order of the arguments.
  void run(std::initializer_list<const void*> data) const {
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

 private:
  Owned<PrimitiveDesc> desc_;
  std::vector<int> args_;
  std::vector<Owned<MemoryDesc>> arg_descs_;
  Owned<Primitive> primitive_;
  const MemoryDesc* scratchpad_;
};

// oneDNN takes the caller's OpenMP setting, which a framework may have set to 1. A child of fork() may have no threads
// but its own: the team that a loop of ours is given tells.
class ThreadCount {
 public:
  ThreadCount() : before_(omp_get_max_threads()) {
    parallel_for(num_threads(), 1, [this](int64_t, int64_t, int share) {
      if (share == 0) count_ = omp_get_num_threads();
    });
    omp_set_num_threads(count_);
  }
  ~ThreadCount() { omp_set_num_threads(before_); }
  ThreadCount(const ThreadCount&) = delete;
  ThreadCount& operator=(const ThreadCount&) = delete;
  int count() const { return count_; }

 private:
  int before_;
  int count_ = 1;
};

// Operations by shape, strides and dtypes; never by address. Full, it starts afresh: a training step uses some tens.
constexpr size_t kMaxOperations = 512;

template <class Create>
std::shared_ptr<const Operation> cached(const std::string& key, Create create) {
  static std::mutex mutex;
  static auto& operations = *new std::unordered_map<std::string, std::shared_ptr<const Operation>>;
  {
    std::lock_guard<std::mutex> lock(mutex);
    const auto found = operations.find(key);
    if (found != operations.end()) return found->second;
  }
  std::shared_ptr<const Operation> operation = create();
  std::lock_guard<std::mutex> lock(mutex);
  if (operations.size() >= kMaxOperations) operations.clear();
  return operations.emplace(key, std::move(operation)).first->second;
}

class Key {
 public:
  // Plans are made for a number of threads.
  Key(char operation, const ThreadCount& threads) { add(operation).add(threads.count()); }
  Key& add(int64_t value) {
    text_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  Key& add(const Matrix& m) {
    return add(static_cast<int64_t>(m.dtype)).add(m.rows).add(m.cols).add(m.row_stride).add(m.col_stride);
  }
  Key& add(const std::vector<uint8_t>& bytes) {
    add(static_cast<int64_t>(bytes.size()));
    text_.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    return *this;
  }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

std::shared_ptr<const Operation> make_matmul(const Matrix& a, Owned<MemoryDesc> b, const Matrix& c, int64_t cols,
                                             bool has_bias, bool accumulate) {
  std::vector<Owned<MemoryDesc>> descs;
  descs.push_back(describe(a));
  descs.push_back(std::move(b));
  descs.push_back(describe(c));
  std::vector<int> args = {kArgSrc, kArgWeights, kArgDst};
  if (has_bias) {
    descs.push_back(describe(contiguous(nullptr, DType::kFloat32, 1, cols)));
    args.push_back(kArgBias);
  }
  auto desc =
      matmul_desc(descs[0].get(), descs[1].get(), has_bias ? descs[3].get() : nullptr, descs[2].get(), accumulate);
  return std::make_shared<const Operation>(std::move(desc), std::move(args), std::move(descs));
}

}  // namespace

bool onednn_takes(const Matrix& m) {
  // v3.6 reads past a vector with a stride: vectors must be dense.
  if (m.rows == 1) return m.col_stride == 1 || m.cols == 1;
  if (m.cols == 1) return m.row_stride == 1;
  return (m.col_stride == 1 && m.row_stride >= m.cols) || (m.row_stride == 1 && m.col_stride >= m.rows);
}

void onednn_matmul(const Matrix& a, const Matrix& b, const Matrix& c, const float* bias, bool accumulate) {
  const ThreadCount threads;
  const Key key = Key('m', threads).add(a).add(b).add(c).add(bias != nullptr).add(accumulate);
  const auto operation =
      cached(key.text(), [&] { return make_matmul(a, describe(b), c, b.cols, bias != nullptr, accumulate); });
  operation->run({a.data, b.data, c.data, bias});
}

std::vector<uint8_t> onednn_weight_layout(DType dtype, int64_t rows, int64_t cols) {
  // The number of rows of x that the layout is chosen for; it is valid for any.
  constexpr int64_t kTokens = 64;
  const ThreadCount threads;
  const auto a = describe(contiguous(nullptr, dtype, kTokens, rows));
  const auto b = describe_preferred(dtype, rows, cols);
  const auto c = describe(contiguous(nullptr, dtype, kTokens, cols));
  const auto matmul = matmul_desc(a.get(), b.get(), nullptr, c.get(), false);
  const MemoryDesc* chosen = api()->primitive_desc_query_md(matmul.get(), kQueryWeightsDesc, 0);
  size_t size = 0;
  check(api()->memory_desc_get_blob(nullptr, &size, chosen), "memory_desc_get_blob");
  std::vector<uint8_t> layout(size);
  check(api()->memory_desc_get_blob(layout.data(), &size, chosen), "memory_desc_get_blob");
  return layout;
}

size_t onednn_layout_size(const std::vector<uint8_t>& layout) {
  return api()->memory_desc_get_size(describe_layout(layout).get());
}

void onednn_pack(const Matrix& b, const std::vector<uint8_t>& layout, void* packed) {
  const ThreadCount threads;
  const Key key = Key('p', threads).add(b).add(layout);
  const auto operation = cached(key.text(), [&] {
    std::vector<Owned<MemoryDesc>> descs;
    descs.push_back(describe(b));
    descs.push_back(describe_layout(layout));
    auto desc = reorder_desc(descs[0].get(), descs[1].get());
    return std::make_shared<const Operation>(std::move(desc), std::vector<int>{kArgSrc, kArgDst}, std::move(descs));
  });
  operation->run({b.data, packed});
}

void onednn_matmul_packed(const Matrix& a, const std::vector<uint8_t>& layout, const void* packed, const Matrix& c,
                          const float* bias) {
  const ThreadCount threads;
  const Key key = Key('w', threads).add(a).add(layout).add(c).add(bias != nullptr);
  const auto operation =
      cached(key.text(), [&] { return make_matmul(a, describe_layout(layout), c, c.cols, bias != nullptr, false); });
  operation->run({a.data, packed, c.data, bias});
}

std::vector<int32_t> onednn_identity() {
  const Version& version = *api()->version();
  return {version.major, version.minor, version.patch, api()->get_effective_cpu_isa()};
}

}  // namespace fusionkit_cpu
