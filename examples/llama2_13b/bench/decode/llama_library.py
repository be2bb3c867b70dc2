"""llama.cpp's C interface by ctypes: the functions and structures that decoding needs.

The structures are those of llama.cpp v0.5.0, which npm's package @node-llama-cpp/linux-x64 3.22.1 holds. They change
from release to release. So the library's own default parameters are looked at first: a structure that has moved shows
other values there.

Source: include/llama.h of llama.cpp.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import POINTER, Structure, c_bool, c_char_p, c_float, c_int, c_int8, c_int32, c_size_t, c_uint32, c_void_p
from pathlib import Path
from typing import Any

from examples.llama2_13b.bench.decode.contestant import Missing

VERSION = "0.5.0"
FOLDER = Path(sys.prefix) / "llama.cpp" / "package" / "bins" / "linux-x64"
INSTALL = "make decode-peers"
WARNING = 3  # a level of the log: 1 debug, 2 info, 3 warning, 4 error


class ModelParams(Structure):
    _fields_ = [
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int32),
        ("load_mode", c_int32),
        ("lazy_mode", c_int32),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        *((name, c_bool) for name in ("vocab_only", "check_tensors", "use_extra_bufts", "no_host")),
        *((name, c_bool) for name in ("no_alloc", "load_mtp")),
    ]


class ContextParams(Structure):
    _fields_ = [
        *((name, c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq")),
        *((name, c_uint32) for name in ("n_outputs_max", "n_outputs_max_per_seq")),
        *((name, c_int32) for name in ("n_threads", "n_threads_batch", "ctx_type", "rope_scaling_type")),
        *((name, c_int32) for name in ("pooling_type", "attention_type", "flash_attn_type")),
        *((name, c_float) for name in ("rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor")),
        *((name, c_float) for name in ("yarn_beta_fast", "yarn_beta_slow")),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int),
        ("type_v", c_int),
        ("abort_callback", c_void_p),
        ("abort_callback_data", c_void_p),
        *((name, c_bool) for name in ("embeddings", "offload_kqv", "no_perf", "op_offload", "swa_full", "kv_unified")),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
    ]


class Batch(Structure):
    _fields_ = [
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    ]


# Values that the defaults of this release have; a structure whose fields have moved shows others.
MODEL_DEFAULTS = {"n_gpu_layers": -1, "split_mode": 1, "load_mode": -1, "main_gpu": 0, "use_extra_bufts": True}
CONTEXT_DEFAULTS = {
    "n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "n_threads": 4, "flash_attn_type": -1,
    "yarn_ext_factor": -1.0, "type_k": 1, "type_v": 1, "no_perf": True, "n_samplers": 0,
}  # fmt: skip
SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "llama_version": (c_char_p, []),
    "llama_backend_init": (None, []),
    "llama_model_default_params": (ModelParams, []),
    "llama_context_default_params": (ContextParams, []),
    "llama_model_load_from_file": (c_void_p, [c_char_p, ModelParams]),
    "llama_init_from_model": (c_void_p, [c_void_p, ContextParams]),
    "llama_free": (None, [c_void_p]),
    "llama_model_get_vocab": (c_void_p, [c_void_p]),
    "llama_vocab_n_tokens": (c_int32, [c_void_p]),
    "llama_print_system_info": (c_char_p, []),
    "llama_decode": (c_int32, [c_void_p, Batch]),
    "llama_get_logits_ith": (POINTER(c_float), [c_void_p, c_int32]),
}


class LlamaLibrary:
    """The functions as attributes without their prefix.

    Args:
        folder: of the package's libraries.

    Raises:
        Missing: the folder holds no library, or one of another release.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        path = folder / f"libllama.v{VERSION}.so"
        if not path.exists():
            raise Missing(f"llama.cpp: {path} is not there. Run: {INSTALL}")
        self.folder, self.messages = folder, ""
        for name in ("libggml-base.so", f"libggml.v{VERSION}.so"):
            ggml = ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
        self._library = ctypes.CDLL(str(path))
        for name, (result, arguments) in SIGNATURES.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments
        self._require_layout()
        self._log = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)(self._hear)
        self._library.llama_log_set(self._log, None)
        ggml.ggml_backend_load_all_from_path.argtypes = [c_char_p]
        ggml.ggml_backend_load_all_from_path(str(folder).encode())
        self.backend_init()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, f"llama_{name}")

    def _require_layout(self) -> None:
        for params, wanted in (
            (self.model_default_params(), MODEL_DEFAULTS),
            (self.context_default_params(), CONTEXT_DEFAULTS),
        ):
            found = {name: getattr(params, name) for name in wanted}
            if found != wanted:
                rule = f"llama.cpp: {type(params).__name__} must have the defaults of v{VERSION}, {wanted}"
                raise Missing(f"{rule}, got {found}. Run: {INSTALL}")

    def _hear(self, level: int, text: bytes, _: Any) -> None:
        if level >= WARNING and level != 5:  # which goes on with a line
            self.messages += text.decode(errors="replace")

    def cpu_library(self) -> str:
        """Which of the package's libraries for processors is loaded."""
        maps = Path("/proc/self/maps").read_text()
        found = {line.rpartition("/")[2] for line in maps.splitlines() if "/libggml-cpu-" in line}
        if len(found) != 1:
            raise Missing(f"llama.cpp: one library for the processor must be loaded, got {sorted(found)}")
        return found.pop().removeprefix("libggml-cpu-").removesuffix(".so")


# The package's libraries, and the flags of /proc/cpuinfo without which a library is not its processor's best.
CPU_LIBRARIES = {
    "sapphirerapids": {"avx512_bf16", "avx512_fp16", "amx_int8", "amx_tile"},
    "zen4": {"avx512_bf16", "avx512_vnni", "avx512_vbmi"},
    "cooperlake": {"avx512_bf16", "avx512_vnni"},
    "icelake": {"avx512_vnni", "avx512_vbmi"},
    "cascadelake": {"avx512_vnni"},
    "cannonlake": {"avx512_vbmi"},
    "skylakex": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "alderlake": {"avx_vnni"},
    "haswell": {"avx2", "fma", "f16c", "bmi2"},
}


def best_cpu_library(cpuinfo: str) -> str:
    """Of the package's, by what the processor lists in /proc/cpuinfo."""
    flags = next((line.split() for line in cpuinfo.splitlines() if line.startswith("flags")), [])
    return next((name for name, needed in CPU_LIBRARIES.items() if needed <= set(flags)), "an older one")
