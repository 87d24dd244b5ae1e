#!/usr/bin/env bash
# Trains PSALM with the deformable module on one image at a time: panoptic, semantic, instance, referring, region.
#
#   DEMO=1 bash experiments/scripts/train_deformable.sh          # built-in data, toy size, a CPU, minutes
#   SEG_TASK=region INCLUDE=localhost:0,1 MODEL_NAME_OR_PATH=... VISION_TOWER=... REGION_JSON_PATH=... \
#     REGION_IMAGE_FOLDER=... bash experiments/scripts/train_deformable.sh
#
# Every value below can be set in the environment; flags after the script's name go to the training as they are.
set -euo pipefail
# shellcheck source=experiments/scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

SEG_TASK="${SEG_TASK:-panoptic}" # several with commas: panoptic,region
MODEL_NAME_OR_PATH="${MODEL_NAME_OR_PATH:-}"
VISION_TOWER="${VISION_TOWER:-}"
PRETRAIN_MM_MLP_ADAPTER="${PRETRAIN_MM_MLP_ADAPTER:-}"
PANOPTIC_JSON_PATH="${PANOPTIC_JSON_PATH:-}"
IMAGE_FOLDER="${IMAGE_FOLDER:-}"
REF_COCO_PATH="${REF_COCO_PATH:-}"
REF_COCO_PLUS_PATH="${REF_COCO_PLUS_PATH:-}"
REF_COCO_G_PATH="${REF_COCO_G_PATH:-}"
REFCOCO_IMAGE_FOLDER="${REFCOCO_IMAGE_FOLDER:-}"
REFERRING_JSON_PATH="${REFERRING_JSON_PATH:-}"
REFERRING_IMAGE_FOLDER="${REFERRING_IMAGE_FOLDER:-}"
REGION_JSON_PATH="${REGION_JSON_PATH:-}"
REGION_IMAGE_FOLDER="${REGION_IMAGE_FOLDER:-}"
REGION_MASK_TYPE="${REGION_MASK_TYPE:-box_visual_prompt_mask||scribble_visual_prompt_mask||point_visual_prompt_mask}"
OUTPUT_DIR="${OUTPUT_DIR:-runs/train_deformable}"

if [ "${DEMO:-0}" = 1 ]; then
  launch --model_name_or_path builtin --vision_tower builtin --panoptic_json_path builtin --seg_task "$SEG_TASK" \
    --mm_projector_type deformable --mm_hidden_dim 64 --mm_n_heads 8 --mm_n_points 4 --swin_type base \
    --region_mask_type "$REGION_MASK_TYPE" --deepspeed zero2 --use_cpu True --max_steps 100 --eval_steps 50 \
    --per_device_train_batch_size 4 --learning_rate 1e-3 --warmup_ratio 0.1 --logging_steps 10 \
    --save_strategy no --output_dir "$OUTPUT_DIR" "$@"
fi

required=(MODEL_NAME_OR_PATH VISION_TOWER)
case ",$SEG_TASK," in *,panoptic,* | *,semantic,* | *,instance,*) required+=(PANOPTIC_JSON_PATH) ;; esac
case ",$SEG_TASK," in *,region,*) required+=(REGION_JSON_PATH REGION_IMAGE_FOLDER) ;; esac
case ",$SEG_TASK," in
  *,referring,*)
    if [ -z "$REFERRING_JSON_PATH$REF_COCO_PLUS_PATH$REF_COCO_G_PATH" ]; then
      required+=(REF_COCO_PATH)
    fi
    ;;
esac
require "${required[@]}"

flags=()
add pretrain_mm_mlp_adapter "$PRETRAIN_MM_MLP_ADAPTER"
add panoptic_json_path "$PANOPTIC_JSON_PATH"
add image_folder "$IMAGE_FOLDER"
add ref_coco_path "$REF_COCO_PATH"
add ref_coco_plus_path "$REF_COCO_PLUS_PATH"
add ref_coco_g_path "$REF_COCO_G_PATH"
add refcoco_image_folder "$REFCOCO_IMAGE_FOLDER"
add referring_json_path "$REFERRING_JSON_PATH"
add referring_image_folder "$REFERRING_IMAGE_FOLDER"
add region_json_path "$REGION_JSON_PATH"
add region_image_folder "$REGION_IMAGE_FOLDER"

launch --deepspeed zero2 --model_name_or_path "$MODEL_NAME_OR_PATH" --vision_tower "$VISION_TOWER" \
  --seg_task "$SEG_TASK" --region_mask_type "$REGION_MASK_TYPE" --mm_projector_type deformable \
  --mm_hidden_dim 256 --mm_n_heads 8 --mm_n_points 4 --swin_type "${SWIN_TYPE:-base}" \
  --bf16 True --gradient_checkpointing True --num_train_epochs 10 \
  --per_device_train_batch_size 4 --per_device_eval_batch_size 1 --gradient_accumulation_steps 2 \
  --learning_rate 6e-5 --weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type cosine \
  --eval_strategy steps --eval_steps 500 --save_strategy steps --save_steps 500 --save_total_limit 2 \
  --logging_steps 10 --dataloader_num_workers 4 --output_dir "$OUTPUT_DIR" "${flags[@]}" "$@"
