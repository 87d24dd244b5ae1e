#!/usr/bin/env bash
# Trains PSALM with the deformable module on pairs of images: regions of one image, to be found in another. SEG_TASK adds
# tasks on single images, which help it: SEG_TASK=panoptic or panoptic,region.
#
#   DEMO=1 bash experiments/scripts/train_deformable_cross_image.sh          # built-in data, toy size, a CPU, minutes
#   INCLUDE=localhost:0,1 MODEL_NAME_OR_PATH=... VISION_TOWER=... REGION_CROSS_JSON_PATH=... \
#     REGION_CROSS_IMAGE_FOLDER=... bash experiments/scripts/train_deformable_cross_image.sh
#
# Every value below can be set in the environment; flags after the script's name go to the training as they are.
set -euo pipefail
# shellcheck source=experiments/scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

SEG_TASK="${SEG_TASK:-}"
MODEL_NAME_OR_PATH="${MODEL_NAME_OR_PATH:-}"
VISION_TOWER="${VISION_TOWER:-}"
PRETRAIN_MM_MLP_ADAPTER="${PRETRAIN_MM_MLP_ADAPTER:-}"
REGION_CROSS_JSON_PATH="${REGION_CROSS_JSON_PATH:-}"
REGION_CROSS_IMAGE_FOLDER="${REGION_CROSS_IMAGE_FOLDER:-}"
REGION_JSON_PATH="${REGION_JSON_PATH:-}"
REGION_IMAGE_FOLDER="${REGION_IMAGE_FOLDER:-}"
REGION_MASK_TYPE="${REGION_MASK_TYPE:-box_visual_prompt_mask||scribble_visual_prompt_mask||point_visual_prompt_mask}"
PANOPTIC_JSON_PATH="${PANOPTIC_JSON_PATH:-}"
IMAGE_FOLDER="${IMAGE_FOLDER:-}"
OUTPUT_DIR="${OUTPUT_DIR:-runs/train_deformable_cross_image}"

flags=()
add seg_task "$SEG_TASK"

if [ "${DEMO:-0}" = 1 ]; then
  launch --model_name_or_path builtin --vision_tower builtin --panoptic_json_path builtin \
    --cross_image_seg_task True --mm_projector_type deformable --mm_hidden_dim 64 --mm_n_heads 8 --mm_n_points 4 \
    --swin_type base --image_size 256 --region_mask_type "$REGION_MASK_TYPE" --deepspeed zero2 --use_cpu True \
    --max_steps 100 --eval_steps 50 --per_device_train_batch_size 4 --learning_rate 1e-3 --warmup_ratio 0.1 --logging_steps 10 \
    --save_strategy no --output_dir "$OUTPUT_DIR" "${flags[@]}" "$@"
fi

required=(MODEL_NAME_OR_PATH VISION_TOWER REGION_CROSS_JSON_PATH REGION_CROSS_IMAGE_FOLDER)
case ",$SEG_TASK," in *,panoptic,* | *,semantic,* | *,instance,*) required+=(PANOPTIC_JSON_PATH) ;; esac
case ",$SEG_TASK," in *,region,*) required+=(REGION_JSON_PATH REGION_IMAGE_FOLDER) ;; esac
require "${required[@]}"

add pretrain_mm_mlp_adapter "$PRETRAIN_MM_MLP_ADAPTER"
add panoptic_json_path "$PANOPTIC_JSON_PATH"
add image_folder "$IMAGE_FOLDER"
add region_json_path "$REGION_JSON_PATH"
add region_image_folder "$REGION_IMAGE_FOLDER"

launch --deepspeed zero2 --model_name_or_path "$MODEL_NAME_OR_PATH" --vision_tower "$VISION_TOWER" \
  --cross_image_seg_task True --region_cross_json_path "$REGION_CROSS_JSON_PATH" \
  --region_cross_image_folder "$REGION_CROSS_IMAGE_FOLDER" --region_mask_type "$REGION_MASK_TYPE" \
  --mm_projector_type deformable --mm_hidden_dim 256 --mm_n_heads 8 --mm_n_points 4 --swin_type "${SWIN_TYPE:-base}" \
  --bf16 True --gradient_checkpointing True --num_train_epochs 10 \
  --per_device_train_batch_size 1 --per_device_eval_batch_size 1 --gradient_accumulation_steps 4 \
  --learning_rate 1e-6 --weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type cosine \
  --eval_strategy steps --eval_steps 500 --save_strategy steps --save_steps 500 --save_total_limit 2 \
  --logging_steps 10 --dataloader_num_workers 2 --output_dir "$OUTPUT_DIR" "${flags[@]}" "$@"
