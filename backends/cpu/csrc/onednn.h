// oneDNN v3, found at run time: the few functions of its C interface that the products need. It is declared here, so
// that no header of oneDNN is needed to build; names, signatures and numbers are those of dnnl.h and dnnl_types.h,
// which stay fixed within the major version.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace fusionkit_cpu::onednn {

// Opaque objects of the library.
struct Engine;
struct Stream;
struct MemoryDesc;
struct Memory;
struct PrimitiveDesc;
struct Primitive;
struct Attr;
struct PostOps;

constexpr int kSuccess = 0;
constexpr int kEngineCpu = 1;
constexpr int kRuntimeOmp = 2;
constexpr int kDataBFloat16 = 2;
constexpr int kDataFloat32 = 3;
constexpr int kTagAny = 1;
constexpr int kScratchpadUser = 1;
constexpr unsigned kStreamInOrder = 1;
constexpr int kQueryStrides = 14;
constexpr int kQuerySrcDesc = 129;
constexpr int kQueryWeightsDesc = 131;
constexpr int kQueryDstDesc = 133;
constexpr int kQueryScratchpadDesc = 136;
constexpr int kQueryPaddedDims = 260;
constexpr int kQueryNumInnerBlocks = 263;
constexpr int kQueryInnerBlocks = 264;
constexpr int kQueryInnerAxes = 265;
constexpr int kArgSrc = 1;
constexpr int kArgDst = 17;
constexpr int kArgWeights = 33;
constexpr int kArgBias = 41;
constexpr int kArgScratchpad = 80;

struct ExecArg {
  int arg;
  Memory* memory;
};

struct Version {
  int major, minor, patch;
  const char* hash;
  unsigned cpu_runtime, gpu_runtime;
};

struct Api {
  const Version* (*version)();
  int (*get_effective_cpu_isa)();
  int (*engine_create)(Engine**, int kind, size_t index);
  int (*stream_create)(Stream**, Engine*, unsigned flags);
  int (*memory_desc_create_with_strides)(MemoryDesc**, int num_dims, const int64_t* dims, int type,
                                         const int64_t* strides);
  int (*memory_desc_create_with_tag)(MemoryDesc**, int num_dims, const int64_t* dims, int type, int tag);
  int (*memory_desc_create_with_blob)(MemoryDesc**, const uint8_t* blob);
  int (*memory_desc_get_blob)(uint8_t* blob, size_t* size, const MemoryDesc*);
  size_t (*memory_desc_get_size)(const MemoryDesc*);
  int (*memory_desc_query)(const MemoryDesc*, int what, void* result);
  int (*memory_desc_destroy)(MemoryDesc*);
  int (*memory_create)(Memory**, const MemoryDesc*, Engine*, void* data);
  int (*memory_destroy)(Memory*);
  int (*primitive_attr_create)(Attr**);
  int (*primitive_attr_set_scratchpad_mode)(Attr*, int mode);
  int (*primitive_attr_set_post_ops)(Attr*, const PostOps*);
  int (*primitive_attr_destroy)(Attr*);
  int (*post_ops_create)(PostOps**);
  int (*post_ops_append_sum)(PostOps*, float scale, int32_t zero_point, int type);
  int (*post_ops_destroy)(PostOps*);
  int (*matmul_primitive_desc_create)(PrimitiveDesc**, Engine*, const MemoryDesc* src, const MemoryDesc* weights,
                                      const MemoryDesc* bias, const MemoryDesc* dst, const Attr*);
  int (*reorder_primitive_desc_create)(PrimitiveDesc**, const MemoryDesc* src, Engine*, const MemoryDesc* dst, Engine*,
                                       const Attr*);
  const MemoryDesc* (*primitive_desc_query_md)(const PrimitiveDesc*, int what, int index);
  int (*primitive_desc_destroy)(PrimitiveDesc*);
  int (*primitive_create)(Primitive**, const PrimitiveDesc*);
  int (*primitive_execute)(const Primitive*, Stream*, int num_args, const ExecArg*);
  int (*primitive_destroy)(Primitive*);
};

// Loads the library; false when the file, its version or its threading is not one that the products can use. An empty
// path goes back to the own loop, for tests.
bool load(const std::string& path);
// Null unless the last load() returned true.
const Api* api();
Engine* engine();
// On the CPU a stream holds no state of a call, so all threads share one.
Stream* stream();

}  // namespace fusionkit_cpu::onednn
