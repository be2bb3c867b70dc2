#include "buffer.h"
#include "flash_attention.h"
#include "kernels/attention_backward.h"
#include "kernels/attention_heads.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {
namespace {

template <class Operand>
struct ThreadScratch {
  PackedGradHead<Operand> head;
  BackwardScratch<Operand> block;
  KeyIntervals intervals;

  ThreadScratch(Layout& layout, const AttentionShape& shape, const AttentionMask& mask, const Depth<Operand>& depth)
      : head(layout, shape.num_keys, depth),
        block(layout, depth),
        intervals(lay_out_intervals(layout, mask, shape.num_keys)) {}
};

struct GradTensors {
  const Tensor &q, &k, &v, &out, &lse, &dout, &dlse, &dq, &dk, &dv;
};

inline RowValues row_values(const Tensor& tensor, int64_t batch, int64_t head) {
  if (!tensor) return {nullptr, 0};
  const auto* data = static_cast<const float*>(tensor.data);
  return {data + batch * tensor.strides[0] + head * tensor.strides[1], tensor.strides[2]};
}

template <class T>
class Gradient {
  using Operand = typename OperandOf<T>::Type;

 public:
  Gradient(const GradTensors& tensors, const AttentionMask& mask, float scale)
      : tensors_(tensors), mask_(mask), scale_(scale), shape_(tensors.q, tensors.k), depth_(shape_.head_dim) {
    Layout counted(nullptr);
    ThreadScratch<Operand>(counted, shape_, mask_, depth_);
    scratch_size_ = counted.size();
  }

  // Whole units first taken by the threads one by one; the rest, too few for all threads, are split by queries, and
  // the parts of dk and dv added in their order.
  void run() const {
    const int64_t threads = num_threads(), units = shape_.units(), rest = units % threads;
    const int64_t parts = rest == 0 ? 1 : clamp(threads / rest, 1, blocks() > 1 ? blocks() : 1);
    const int64_t whole = parts == 1 ? units : units - rest;
    const int64_t slots = whole > 0 || parts == 1 ? threads : rest * parts;
    const Buffer buffer(scratch_size_ * slots);
    for_each_item(whole, [&](int64_t unit, int share) {
      [[maybe_unused]] const MatrixUnit::Region region;
      const ThreadScratch<Operand> scratch = scratch_at(buffer, share);
      differentiate(unit, 0, 1, scratch);
      store_keys(unit, scratch);
    });
    if (whole == units) return;
    for_each_item(rest * parts, [&](int64_t item, int) {
      [[maybe_unused]] const MatrixUnit::Region region;
      differentiate(whole + item / parts, item % parts, parts, scratch_at(buffer, item));
    });
    for_each_item(rest, [&](int64_t index, int) { add_parts(whole + index, buffer, index * parts, parts); });
  }

 private:
  int64_t blocks_per_head() const { return round_up(shape_.num_queries, kQueryBlock) / kQueryBlock; }
  int64_t blocks() const { return shape_.group_size() * blocks_per_head(); }

  ThreadScratch<Operand> scratch_at(const Buffer& buffer, int64_t slot) const {
    Layout layout(buffer.as<char>() + slot * scratch_size_);
    return ThreadScratch<Operand>(layout, shape_, mask_, depth_);
  }

  GradRows<T> rows(int64_t batch, int64_t head) const {
    return {head_rows<T>(tensors_.q, batch, head),
            head_rows<T>(tensors_.out, batch, head),
            head_rows<T>(tensors_.dout, batch, head),
            row_values(tensors_.lse, batch, head),
            row_values(tensors_.dlse, batch, head),
            head_data<T>(tensors_.dq, batch, head),
            tensors_.dq.strides[1]};
  }

  // dq, and the scratch's dkeys and dvalues, of every parts-th block of queries of the unit's heads. What is not finite
  // may come from dropped pairs: it is taken again without them.
  void differentiate(int64_t unit, int64_t part, int64_t parts, ThreadScratch<Operand> scratch) const {
    const int64_t batch = unit / shape_.kv_heads, kv_head = unit % shape_.kv_heads;
    PackedGradHead<Operand>& packed = scratch.head;
    pack_rows(head_rows<T>(tensors_.k, batch, kv_head), shape_.num_keys, depth_, scratch.block.staged, packed.keys,
              packed.straight_keys, packed.straight_panel_stride);
    pack_rows(head_rows<T>(tensors_.v, batch, kv_head), shape_.num_keys, depth_, scratch.block.staged, packed.values,
              static_cast<typename Operand::Group*>(nullptr), 0);
    read_intervals(mask_, batch, kv_head, shape_.num_keys, scratch.intervals);
    if (!differentiate_blocks(unit, part, parts, false, scratch))
      differentiate_blocks(unit, part, parts, true, scratch);
  }

  // Whether all sums are finite.
  bool differentiate_blocks(int64_t unit, int64_t part, int64_t parts, bool pair_by_pair,
                            const ThreadScratch<Operand>& scratch) const {
    const int64_t batch = unit / shape_.kv_heads, kv_head = unit % shape_.kv_heads;
    const int64_t size = shape_.num_keys * depth_.columns;
    const PackedGradHead<Operand>& packed = scratch.head;
    for (int64_t i = 0; i < packed.rows * depth_.columns; ++i) packed.dkeys[i] = packed.dvalues[i] = 0;
    bool finite = true;
    for (int64_t block = part; block < blocks(); block += parts) {
      const int64_t head = kv_head * shape_.group_size() + block / blocks_per_head();
      const int64_t begin = block % blocks_per_head() * kQueryBlock;
      const QueryRange queries = {begin, clamp(begin + kQueryBlock, 0, shape_.num_queries)};
      finite &= differentiate_queries(rows(batch, head), head_rows<T>(tensors_.k, batch, kv_head), queries,
                                      head_mask(shape_, mask_, batch, head, scratch.intervals), scale_, pair_by_pair,
                                      packed, depth_, scratch.block);
    }
    return finite && all_finite(packed.dkeys, size) && all_finite(packed.dvalues, size);
  }

  void store_keys(int64_t unit, const ThreadScratch<Operand>& scratch) const {
    const int64_t batch = unit / shape_.kv_heads, kv_head = unit % shape_.kv_heads;
    T* dk = head_data<T>(tensors_.dk, batch, kv_head);
    T* dv = head_data<T>(tensors_.dv, batch, kv_head);
    for (int64_t key = 0; key < shape_.num_keys; ++key) {
      store_products(scratch.head.dkeys + key * depth_.columns, depth_.size, scale_, dk + key * tensors_.dk.strides[1]);
      store_products(scratch.head.dvalues + key * depth_.columns, depth_.size, 1, dv + key * tensors_.dv.strides[1]);
    }
  }

  void add_parts(int64_t unit, const Buffer& buffer, int64_t first_slot, int64_t parts) const {
    const ThreadScratch<Operand> total = scratch_at(buffer, first_slot);
    for (int64_t part = 1; part < parts; ++part) {
      const ThreadScratch<Operand> other = scratch_at(buffer, first_slot + part);
      for (int64_t i = 0; i < shape_.num_keys * depth_.columns; ++i) {
        total.head.dkeys[i] += other.head.dkeys[i];
        total.head.dvalues[i] += other.head.dvalues[i];
      }
    }
    store_keys(unit, total);
  }

  const GradTensors& tensors_;
  const AttentionMask& mask_;
  const float scale_;
  const AttentionShape shape_;
  const Depth<Operand> depth_;
  size_t scratch_size_;
};

}  // namespace

void flash_attention_grad(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& lse,
                          const AttentionMask& mask, float scale, const Tensor& dout, const Tensor& dlse,
                          const Tensor& dq, const Tensor& dk, const Tensor& dv) {
  const GradTensors tensors = {q, k, v, out, lse, dout, dlse, dq, dk, dv};
  [[maybe_unused]] const bool done = visit_multiplied(
      q.dtype, [&](auto* type) { Gradient<std::remove_pointer_t<decltype(type)>>(tensors, mask, scale).run(); });
#if defined(FUSIONKIT_LIKE)
  if (!done) FUSIONKIT_LIKE::flash_attention_grad(q, k, v, out, lse, mask, scale, dout, dlse, dq, dk, dv);
#endif
}

}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
