#!/usr/bin/env bash
# The whole path on a made-up news world: generate, pack, teacher, labels, pre-training, evaluation, fine-tuning.
# Every command below is what you would type for your own corpus, with smaller numbers.
set -euo pipefail
cd "$(dirname "$0")/.."

gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
if [ "$gpus" -gt 0 ]; then
  workers=$gpus
  echo "found $gpus GPU(s): one worker each"
else
  workers=2
  export DS_ACCELERATOR=cpu
  echo "found no GPU: $workers workers on the CPU"
fi

begin=$SECONDS
run() {
  echo
  echo "\$ $*"
  "$@"
}
# the launcher's own lines are of no interest here
pretrain() {
  run deepspeed --num_accelerators "$workers" --log_level error launch/pretrain.py "$@"
}

run python shards/synthesize.py --config configs/pack/synthetic_world.yaml
run python shards/pack.py --config configs/pack/synthetic.yaml
pretrain --config configs/pretrain/teacher_tiny.yaml
run python launch/label.py --config configs/label/tiny.yaml
pretrain --config configs/pretrain/tiny.yaml

for model in teacher student; do
  run python launch/evaluate.py "model=quickstart/runs/$model/best" split=quickstart/packed/val \
    eval_mode=whole "json_file=quickstart/$model.json"
done

run python launch/finetune.py --config configs/finetune/tiny.yaml
posts=quickstart/corpus/extraction/images/entities/test/0000
for photo in 058 248; do
  run python launch/predict.py --model quickstart/runs/entities/best --image "$posts/$photo.jpg" \
    --text "great day with Adeyemi at the Rugby Cup in San Belmonte!"
done

cat <<END

Done in $((SECONDS - begin)) s. The best that anybody could score is in quickstart/corpus/ceiling.json.
  quickstart/corpus          the raw corpus, laid out as VisualNews + NewsCLIPpings
                             extraction/: sentences with images for fine-tuning, entities and relations
  quickstart/packed          WebDataset shards with boxes, entities and soft labels
  quickstart/runs/teacher    dual encoder: journal.jsonl, curves.png, checkpoints/, model/, best/
  quickstart/runs/student    the pre-trained model, the same files
  quickstart/runs/entities   fine-tuned for names in posts: result.json, best/, seed-1/ with predictions and pictures
See the runs in MLflow:
  .venv/bin/mlflow ui --backend-store-uri sqlite:///quickstart/mlflow.db
END
