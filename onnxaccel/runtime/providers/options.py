"""The options of the execution providers: their names, what values they take, and our defaults.

Names and values are onnxruntime's own (onnxruntime-gpu 1.31, onnxruntime-openvino 1.24, the TensorRT-RTX
plugin 0.5): https://onnxruntime.ai/docs/execution-providers. onnxruntime answers an unknown name with a
fallback to the CPU, so names are checked here.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from onnxaccel.errors import ProviderError

FLAG = ("0", "1")
"""Values of an option that is on or off."""
NUMBER = "a whole number"
TEXT = "text"

Kind = tuple[str, ...] | str
"""What an option takes: one of several words, NUMBER, or TEXT."""

_PROFILE = "NAME:1x3x224x224,NAME:..."
"""How TensorRT writes the shapes of an optimization profile."""

KNOWN: dict[str, dict[str, Kind]] = {
    "cpu": {},
    "cuda": {
        "device_id": NUMBER,
        "gpu_mem_limit": NUMBER,
        "arena_extend_strategy": ("kNextPowerOfTwo", "kSameAsRequested"),
        "cudnn_conv_algo_search": ("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
        "cudnn_conv_use_max_workspace": FLAG,
        "cudnn_conv1d_pad_to_nc1d": FLAG,
        "do_copy_in_default_stream": FLAG,
        "enable_cuda_graph": FLAG,
        "enable_skip_layer_norm_strict_mode": FLAG,
        "fuse_conv_bias": FLAG,
        "prefer_nhwc": FLAG,
        "sdpa_kernel": NUMBER,
        "tunable_op_enable": FLAG,
        "tunable_op_tuning_enable": FLAG,
        "tunable_op_max_tuning_duration_ms": NUMBER,
        "use_ep_level_unified_stream": FLAG,
        "use_tf32": FLAG,
        "user_compute_stream": NUMBER,
    },
    "tensorrt": {
        "device_id": NUMBER,
        "user_compute_stream": NUMBER,
        "trt_auxiliary_streams": NUMBER,
        "trt_bf16_enable": FLAG,
        "trt_build_heuristics_enable": FLAG,
        "trt_builder_optimization_level": ("0", "1", "2", "3", "4", "5"),
        "trt_context_memory_sharing_enable": FLAG,
        "trt_cuda_graph_enable": FLAG,
        "trt_detailed_build_log": FLAG,
        "trt_dla_core": NUMBER,
        "trt_dla_enable": FLAG,
        "trt_dump_ep_context_model": FLAG,
        "trt_dump_subgraphs": FLAG,
        "trt_engine_cache_enable": FLAG,
        "trt_engine_cache_path": TEXT,
        "trt_engine_cache_prefix": TEXT,
        "trt_engine_hw_compatible": FLAG,
        "trt_ep_context_embed_mode": FLAG,
        "trt_ep_context_file_path": TEXT,
        "trt_extra_plugin_lib_paths": TEXT,
        "trt_force_sequential_engine_build": FLAG,
        "trt_force_timing_cache": FLAG,
        "trt_fp16_enable": FLAG,
        "trt_int8_calibration_table_name": TEXT,
        "trt_int8_enable": FLAG,
        "trt_int8_use_native_calibration_table": FLAG,
        "trt_layer_norm_fp32_fallback": FLAG,
        "trt_max_partition_iterations": NUMBER,
        "trt_max_workspace_size": NUMBER,
        "trt_min_subgraph_size": NUMBER,
        "trt_op_types_to_exclude": TEXT,
        "trt_preview_features": TEXT,
        "trt_profile_max_shapes": _PROFILE,
        "trt_profile_min_shapes": _PROFILE,
        "trt_profile_opt_shapes": _PROFILE,
        "trt_sparsity_enable": FLAG,
        "trt_tactic_sources": TEXT,
        "trt_timing_cache_enable": FLAG,
        "trt_timing_cache_path": TEXT,
        "trt_weight_stripped_engine_enable": FLAG,
    },
    "tensorrt-rtx": {
        "enable_cuda_graph": FLAG,
        "nv_detailed_build_log": FLAG,
        "nv_dump_subgraphs": FLAG,
        "nv_max_shared_mem_size": NUMBER,
        "nv_max_workspace_size": NUMBER,
        "nv_multi_profile_enable": FLAG,
        "nv_op_types_to_exclude": TEXT,
        "nv_profile_max_shapes": _PROFILE,
        "nv_profile_min_shapes": _PROFILE,
        "nv_profile_opt_shapes": _PROFILE,
        "nv_runtime_cache_path": TEXT,
        "nv_use_external_data_initializer": FLAG,
        "user_compute_stream": NUMBER,
    },
    "openvino": {
        "cache_dir": TEXT,
        "device_type": TEXT,
        "disable_dynamic_shapes": ("true", "false"),
        "enable_opencl_throttling": ("true", "false"),
        "enable_qdq_optimizer": ("true", "false"),
        "load_config": TEXT,
        "model_priority": ("LOW", "MEDIUM", "HIGH", "DEFAULT"),
        "num_of_threads": NUMBER,
        "num_streams": NUMBER,
        "precision": ("FP32", "FP16", "ACCURACY"),
        "reshape_input": TEXT,
    },
}
"""For each provider its options and what they take."""

TRIED: dict[str, tuple[dict[str, str], ...]] = {
    "cpu": ({},),
    "cuda": ({}, {"use_tf32": "1"}, {"use_tf32": "1", "prefer_nhwc": "1"}),
    "tensorrt": ({}, {"trt_fp16_enable": "1"}),
    "tensorrt-rtx": ({},),
    "openvino": ({},),
}
"""Options that `onnxaccel optimize` tries on each provider, and records in the model.

A model may ask for no others: some name libraries to load, files to write, or addresses in memory.
"""


WRITES_FILES: dict[str, str | None] = {
    "cache_dir": None,
    "nv_dump_subgraphs": None,
    "nv_runtime_cache_path": None,
    "trt_dump_ep_context_model": None,
    "trt_dump_subgraphs": None,
    "trt_engine_cache_enable": "0",
    "trt_engine_cache_path": None,
}
"""Options by which a provider keeps the model, or what it compiled of it, on disk; and what turns that off,
None: that the option is not given."""


def cache_folder(*parts: str) -> Path:
    """A folder of ours in the user's cache folder ($XDG_CACHE_HOME, else ~/.cache); it is not created."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "onnxaccel", *parts)


def defaults(provider: str, versions: str) -> dict[str, str]:
    """Our defaults for a provider, where they are not onnxruntime's.

    Args:
        provider: The provider's name.
        versions: Versions that a compiled engine depends on: each gets a cache folder of its own, so that
            an engine of another version is never met.

    Returns:
        cuda: an arena that grows by what is asked for, so that two processes share a device, and TF32 off,
        so that float32 means float32. tensorrt: compiled engines and timings are kept in the cache folder.
    """
    if provider == "cuda":
        return {"arena_extend_strategy": "kSameAsRequested", "use_tf32": "0"}
    if provider == "tensorrt":
        folder = str(cache_folder("tensorrt", versions))
        return {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": folder,
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": folder,
        }
    if provider == "tensorrt-rtx":
        return {"nv_runtime_cache_path": str(cache_folder("tensorrt-rtx", versions))}
    return {}


def parse(assignments: Iterable[str]) -> dict[str, str]:
    """The options of ``--ep-option NAME=VALUE``, given several times.

    Raises:
        ProviderError: One has no "=", or a name is given twice.
    """
    options: dict[str, str] = {}
    for text in assignments:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name or not value:
            raise ProviderError(f"--ep-option {text!r}: write NAME=VALUE, for instance use_tf32=1")
        if name in options:
            raise ProviderError(f"--ep-option {name} is given twice: {options[name]} and {value}")
        options[name] = value
    return options


def distribute(chain: Sequence[str], options: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Give each option to every provider of ``chain`` that knows it.

    Args:
        chain: The provider, then those it falls back to.
        options: Options by name.

    Raises:
        ProviderError: No provider of the chain knows a name, or a value is none that the option takes.
    """
    given: dict[str, dict[str, str]] = {provider: {} for provider in chain}
    for name, value in options.items():
        owners = [provider for provider in chain if name in KNOWN[provider]]
        if not owners:
            raise ProviderError(_unknown(chain, name))
        for provider in owners:
            given[provider][name] = _checked(name, value, KNOWN[provider][name])
    return given


def _unknown(chain: Sequence[str], name: str) -> str:
    known = sorted({option for provider in chain for option in KNOWN[provider]})
    elsewhere = [provider for provider, options in KNOWN.items() if name in options]
    if elsewhere:
        return f"option {name!r} belongs to {' and '.join(elsewhere)}, not to {chain[0]}"
    if not known:
        return f"{chain[0]} has no options, {name!r} neither; --threads sets its threads"
    close = difflib.get_close_matches(name, known, 3, 0.5) or known
    return f"{chain[0]} has no option {name!r}; it has {', '.join(close)}"


def _checked(name: str, value: str, kind: Kind) -> str:
    if isinstance(kind, tuple):
        words = {"true": "1", "on": "1", "false": "0", "off": "0"} if kind == FLAG else {}
        value = words.get(value.lower(), value)
        if value not in kind:
            raise ProviderError(f"option {name}={value}: it takes one of {', '.join(kind)}")
    elif kind == NUMBER and not re.fullmatch(r"\d+", value):
        raise ProviderError(f"option {name}={value}: it takes {NUMBER}")
    elif kind == _PROFILE and not re.fullmatch(r"[^:,]+:\d+(x\d+)*(,[^:,]+:\d+(x\d+)*)*", value):
        raise ProviderError(f"option {name}={value}: it takes shapes by input name, {_PROFILE}")
    return value
