#!/usr/bin/env bash
# Fine-tunes Llama 2 13B on the eight devices of one machine, as configs/sft_llama2_13b.json says.
#
#   run_sft_n1c8.sh --model_name_or_path MODEL --dataset_name_or_path DATA --output_dir OUTPUT [any flag of sft.py]
#   run_sft_n1c8.sh --config tiny [any flag of sft.py]      two steps of a small model on emulated devices
set -euo pipefail
source "$(dirname "$0")/n1c8.sh"

flags=(--tensor_parallel_degree 8)
if [[ $tiny ]]; then
    flags+=("${small[@]}" "${small_texts[@]}" --output_dir $tiny/sft)
fi
exec "${launch[@]}" "$here/sft.py" "$here/configs/sft_llama2_13b.json" "${flags[@]}" "$@"
