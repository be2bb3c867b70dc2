# Sourced by run_*_n1c8.sh. `--config tiny` in front of the flags makes a small model and emulates the devices.
# small: the flags of two short steps with it; small_texts: its data, for what trains on samples.
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
launch=(python -m paddle.distributed.launch --devices 0,1,2,3,4,5,6,7 --log_dir output/log)
tiny=
if [[ "${1:-} ${2:-}" == "--config tiny" ]]; then
    shift 2
    tiny=output/tiny
    launch=(python -m fusionkit emulate npu --devices 8 -- "${launch[@]}")
    python "$here/create.py" --config "$here/configs/tiny_n1c8.json" --dataset_name_or_path "$here/texts" \
        --output_dir $tiny/model --overwrite_output_dir
    small=(--model_name_or_path $tiny/model --overwrite_output_dir --max_steps 2 --warmup_steps 1
        --gradient_accumulation_steps 1)
    small_texts=(--dataset_name_or_path "$here/texts" --src_length 64 --max_length 128 --per_device_eval_batch_size 64)
fi
