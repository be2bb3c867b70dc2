// flash_attention and its gradient: every kind of mask, grouped heads, rows with nothing to attend to.
#include "attention_oracle.h"
#include "flash_attention.h"

namespace kernel_tests {
namespace {

struct Sizes {
  int64_t batch, queries, keys, heads, key_heads, size;
};

struct Masked {
  const char* name;
  fusionkit_cpu::AttentionMask mask;
  Bias bias;
};

struct Wanted {
  Doubles out, lse, dq, dk, dv;
};

class Oracle {
 public:
  Oracle(const Guarded& q, const Guarded& k, const Guarded& v, double scale, const Bias& bias)
      : q_(q), k_(k), v_(v), scale_(scale), bias_(bias), group_(q.dim(2) / k.dim(2)) {}

  Wanted run(const Numbers& dout, const Numbers& dlse) {
    const int64_t heads = q_.dim(2), length = q_.dim(1);
    want_ = {Doubles(q_.size()), Doubles(q_.dim(0) * heads * length), Doubles(q_.size()), Doubles(k_.size()),
             Doubles(v_.size())};
    for (int64_t b = 0; b < q_.dim(0); ++b)
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t i = 0; i < length; ++i) attend(b, h, i, dout, dlse[(b * heads + h) * length + i]);
    return want_;
  }

 private:
  void attend(int64_t b, int64_t h, int64_t i, const Numbers& dout, double dlse) {
    const int64_t keys = k_.dim(1), size = q_.dim(3), from = place(q_, b, i, h);
    Doubles scores(keys);
    for (int64_t j = 0; j < keys; ++j)
      scores[j] = scale_ * dot(q_, from, k_, place(k_, b, j, h / group_), size) + bias_(b, h, i, j);
    const Probabilities p = softmax(scores);
    want_.lse[(b * q_.dim(2) + h) * q_.dim(1) + i] = p.lse;
    double delta = -dlse;
    for (int64_t j = 0; j < keys; ++j) {
      const int64_t value = place(v_, b, j, h / group_);
      delta += p.of_key[j] * dot(dout, from, v_, value, size);
      for (int64_t d = 0; d < size; ++d) want_.out[from + d] += p.of_key[j] * v_[value + d];
    }
    for (int64_t j = 0; j < keys; ++j) {
      const int64_t key = place(k_, b, j, h / group_);
      const double ds = p.of_key[j] * (dot(dout, from, v_, key, size) - delta) * scale_;
      for (int64_t d = 0; d < size; ++d) {
        want_.dv[key + d] += p.of_key[j] * dout[from + d];
        want_.dq[from + d] += ds * k_[key + d];
        want_.dk[key + d] += ds * q_[from + d];
      }
    }
  }

  const Numbers q_, k_, v_;
  double scale_;
  const Bias& bias_;
  int64_t group_;
  Wanted want_;
};

void check(DType dtype, const Sizes& s, const Masked& masked) {
  begin_case(std::string("attention ") + dtype_name(dtype) + " " +
             text({s.batch, s.queries, s.keys, s.heads, s.key_heads, s.size}) + " " + masked.name);
  const double scale = 0.25 / std::sqrt(static_cast<double>(s.size));
  const Shape queries{s.batch, s.queries, s.heads, s.size}, keys{s.batch, s.keys, s.key_heads, s.size};
  const Guarded q = random(dtype, queries), k = random(dtype, keys), v = random(dtype, keys);
  const Guarded dout = random(dtype, queries), dlse = random(DType::kFloat32, {s.batch, s.heads, s.queries});
  Guarded out(dtype, queries), lse(DType::kFloat32, {s.batch, s.heads, s.queries});
  fusionkit_cpu::flash_attention(q, k, v, masked.mask, static_cast<float>(scale), out, lse);
  Guarded dq(dtype, queries), dk(dtype, keys), dv(dtype, keys);
  fusionkit_cpu::flash_attention_grad(q, k, v, out, lse, masked.mask, static_cast<float>(scale), dout, dlse, dq, dk,
                                      dv);
  const Wanted want = Oracle(q, k, v, scale, masked.bias).run(dout, dlse);
  // bfloat16 may round the probabilities before the second product: 0.15 epsilons of the root mean square as a standard
  // deviation, up to five of them among thousands of elements, and 0.5 for the output. Gradients round twice.
  expect_close("out", out, want.out, {32, 1.5});
  expect_close("lse", lse, want.lse, {16, 0});
  expect_close("dq", dq, want.dq, {64, 2.5});
  expect_close("dk", dk, want.dk, {64, 2.5});
  expect_close("dv", dv, want.dv, {64, 2.5});
}

void check_dense(DType dtype, const Sizes& s) {
  check(dtype, s, {"no mask", {}, [](int64_t, int64_t, int64_t, int64_t) { return 0.0; }});
  const int64_t offset = s.keys - s.queries;
  check(dtype, s, {"causal", {true, {}, {}}, [=](int64_t, int64_t, int64_t i, int64_t j) {
                     return j <= i + offset ? 0 : -INFINITY;
                   }});
  const Shape shape{s.batch, 1, s.queries, s.keys};
  const auto at = [=](int64_t b, int64_t i, int64_t j) { return (b * s.queries + i) * s.keys + j; };
  const Guarded allowed = filled(DType::kBool, shape, [](int64_t i) { return i % 3 != 1; });
  check(dtype, s, {"bool mask", {false, allowed, {}}, [&](int64_t b, int64_t, int64_t i, int64_t j) {
                     return allowed[at(b, i, j)] ? 0 : -INFINITY;
                   }});
  const Guarded added = random(dtype, shape);
  check(dtype, s, {"added mask", {false, added, {}}, [&](int64_t b, int64_t, int64_t i, int64_t j) {
                     return added[at(b, i, j)];
                   }});
}

// Documents as Paddle's flashmask_attention has them: bounds of the rows that do not see a key.
void check_documents(DType dtype, const Sizes& s, bool causal, int64_t bounds) {
  const int64_t length = s.keys;
  const Guarded rows = filled(DType::kInt32, {s.batch, s.key_heads, length, bounds}, [&](int64_t i) -> double {
    const int64_t document_end = (i / bounds % length / 7 + 1) * 7, column = i % bounds;
    if (causal) return column == 0 ? document_end : document_end + 11;
    const int64_t limits[] = {document_end, document_end + 11, 0, document_end - 7};
    return bounds == 4 ? limits[column] : column == 0 ? document_end : document_end - 7;
  });
  const int64_t group = s.heads / s.key_heads;
  const Bias bias = [&](int64_t b, int64_t h, int64_t i, int64_t j) {
    const int64_t first = ((b * s.key_heads + h / group) * length + j) * bounds;
    const auto bound = [&](int64_t column) { return rows[first + column]; };
    bool hidden = i >= bound(0);
    if (bounds == 4) hidden = (hidden && i < bound(1)) || (i >= bound(2) && i < bound(3));
    if (bounds == 2) hidden = causal ? hidden && i < bound(1) : hidden || i < bound(1);
    return hidden || (causal && j > i) ? -INFINITY : 0;
  };
  const std::string name = std::string(causal ? "causal " : "") + std::to_string(bounds) + " document bounds";
  check(dtype, s, {name.c_str(), {causal, {}, rows}, bias});
}

}  // namespace

void check_attention(DType dtype) {
  const Sizes dense[] = {{1, 1, 1, 1, 1, 1},    {2, 3, 5, 2, 1, 16},    {1, 17, 17, 4, 2, 15}, {1, 5, 3, 2, 2, 33},
                         {1, 33, 31, 2, 1, 64}, {1, 70, 130, 2, 1, 40}, {2, 1, 67, 4, 4, 128}};
  for (const Sizes& sizes : dense) check_dense(dtype, sizes);
  const Sizes documents = {1, 37, 37, 4, 2, 17};
  check_documents(dtype, documents, true, 1);
  check_documents(dtype, documents, true, 2);
  check_documents(dtype, documents, false, 2);
  check_documents(dtype, documents, false, 4);
}

}  // namespace kernel_tests
