#!/usr/bin/env bash
# Pretrains Llama 2 13B on the eight devices of one machine, as configs/pretrain_llama2_13b.json says.
#
#   run_pretrain_n1c8.sh --model_name_or_path MODEL --input_dir TOKENS --output_dir OUTPUT [any flag of pretrain.py]
#   run_pretrain_n1c8.sh --config tiny [any flag of pretrain.py]      two steps of a small model on emulated devices
set -euo pipefail
source "$(dirname "$0")/n1c8.sh"

flags=(--tensor_parallel_degree 4 --sharding stage1 --sharding_parallel_degree 2)
if [[ $tiny ]]; then
    rm -f $tiny/tokens.{bin,idx,about.json}
    python "$here/tokenize_texts.py" --model_name_or_path $tiny/model --input_path "$here/texts/train.json" \
        --json_key tgt --output_prefix $tiny/tokens
    flags+=("${small[@]}" --input_dir $tiny/tokens --output_dir $tiny/pretrained --max_seq_length 128 --eval_iters 1
        --eval_steps 2 --save_steps 2 --split 990,9,1)
fi
exec "${launch[@]}" "$here/pretrain.py" "$here/configs/pretrain_llama2_13b.json" "${flags[@]}" "$@"
