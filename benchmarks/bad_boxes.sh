#!/usr/bin/env bash
# The tables of docs/guides/bad-boxes.md: remedies beside Stable-SAM, and the worst plausible prompts.
# Usage: benchmarks/bad_boxes.sh DATA OUT [LIMIT] [TRIALS] [LIMIT_COCO]
# DATA holds data sets of COCO's format; runs are resumed where they stopped. A photograph of COCO has
# three times the objects.
set -euo pipefail
data=$1 out=$2 limit=${3:-20} trials=${4:-4} limit_coco=${5:-6}

remedied=(--segmenter ellipse --segmenter sam-nano --segmenter stable-sam)
for remedy in ensemble-boxes:5 medoid:5 agree-weighted:5 box-from-mask:1 \
  elastic-box stability-select ensemble-flips; do
  remedied+=(--segmenter "sam-nano + $remedy")
done
searched=(--segmenter ellipse --segmenter sam-nano --segmenter stable-sam
  --segmenter "sam-nano + box-from-mask:1")

for set in voc2012_animals:val:$limit coco_more:val2017:$limit_coco; do
  IFS=: read -r folder split images <<<"$set"
  of=(--dataset coco --data-root "$data/$folder" --split "$split" --limit "$images")
  samrobust eval --protocol human-box --trials "$trials" "${remedied[@]}" "${of[@]}" --out "$out/runs"
  samrobust eval --protocol worst-box --keep-masks worst "${searched[@]}" "${of[@]}" --out "$out/runs"
  samrobust eval --protocol worst-point --segmenter sam-nano --segmenter stable-sam "${of[@]}" \
    --out "$out/runs"
done
samrobust report "$out/runs" --out "$out/report"
