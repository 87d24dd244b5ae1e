#!/usr/bin/env bash
# Trains PSALM with the deformable module on pairs of images: regions of one image, to be found in another. SEG_TASK adds
# tasks on single images, which help it: SEG_TASK=panoptic or panoptic,region.
#
#   DEMO=1 bash experiments/scripts/train_deformable_cross_image.sh          # built-in data, toy size, a CPU, minutes
#   INCLUDE=localhost:0,1 MODEL_NAME_OR_PATH=... VISION_TOWER=... REGION_CROSS_JSON_PATH=... \
#     REGION_CROSS_IMAGE_FOLDER=... bash experiments/scripts/train_deformable_cross_image.sh
#
# Paths come from the environment (all of them: common.sh); flags after the script's name go to the training as they are
# and win over those below.
set -euo pipefail
# shellcheck source=experiments/scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

SEG_TASK="${SEG_TASK:-}"
REGION_MASK_TYPE="${REGION_MASK_TYPE:-box_visual_prompt_mask||scribble_visual_prompt_mask||point_visual_prompt_mask}"
OUTPUT_DIR="${OUTPUT_DIR:-runs/train_deformable_cross_image}"
flags=(--cross_image_seg_task True --region_mask_type "$REGION_MASK_TYPE" --output_dir "$OUTPUT_DIR")
flags_of SEG_TASK

if [ "${DEMO:-0}" = 1 ]; then
  launch --model_name_or_path builtin --vision_tower builtin --panoptic_json_path builtin --image_size 256 \
    --mm_projector_type deformable --mm_hidden_dim 64 --mm_n_heads 8 --mm_n_points 4 --swin_type base \
    --deepspeed zero2 --use_cpu True --max_steps 100 --eval_steps 50 --per_device_train_batch_size 4 \
    --learning_rate 1e-3 --warmup_ratio 0.1 --logging_steps 10 --save_strategy no "${flags[@]}" "$@"
fi

required=(MODEL_NAME_OR_PATH VISION_TOWER REGION_CROSS_JSON_PATH REGION_CROSS_IMAGE_FOLDER)
needed_for "$SEG_TASK"
require "${required[@]}"
flags_of "${PATHS[@]}"

launch --deepspeed zero2 --model_name_or_path "$MODEL_NAME_OR_PATH" --vision_tower "$VISION_TOWER" \
  --mm_projector_type deformable --mm_hidden_dim 256 --mm_n_heads 8 --mm_n_points 4 --swin_type "${SWIN_TYPE:-base}" \
  --bf16 True --gradient_checkpointing True --num_train_epochs 10 \
  --per_device_train_batch_size 1 --per_device_eval_batch_size 1 --gradient_accumulation_steps 4 \
  --learning_rate 1e-6 --offset_lr_multiplier 0.1 --weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type cosine \
  --eval_strategy steps --eval_steps 500 --save_strategy steps --save_steps 500 --save_total_limit 2 \
  --logging_steps 10 --dataloader_num_workers 2 "${flags[@]}" "$@"
