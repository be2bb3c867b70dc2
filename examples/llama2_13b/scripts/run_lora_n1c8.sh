#!/usr/bin/env bash
# Trains an adapter of Llama 2 13B on the eight devices of one machine, as configs/lora_llama2_13b.json says.
#
#   run_lora_n1c8.sh --model_name_or_path MODEL --dataset_name_or_path DATA --output_dir OUTPUT [any flag of lora.py]
#   run_lora_n1c8.sh --config tiny [any flag of lora.py]      two steps of a small model on emulated devices
set -euo pipefail
source "$(dirname "$0")/n1c8.sh"

flags=(--tensor_parallel_degree 8)
if [[ $tiny ]]; then
    flags+=("${small[@]}" "${small_texts[@]}" --output_dir $tiny/lora)
fi
exec "${launch[@]}" "$here/lora.py" "$here/configs/lora_llama2_13b.json" "${flags[@]}" "$@"
