#!/usr/bin/env bash
# sbatch slurm/finetune.sh configs/finetune/twitter2015.yaml model=runs/base/student data.root=/data/twitter2015 a.b=c ...
# One task per GPU; one is enough for these corpora. Saves, and is queued again, as pretrain.sh is.
#SBATCH --job-name=promptmeup-finetune
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=USR2@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -uo pipefail
config=${1:?usage: sbatch slurm/finetune.sh CONFIG.yaml model=RUN data.root=DIR [a.b=c ...]}
shift
# shellcheck source=slurm/env.sh
source "$SLURM_SUBMIT_DIR/slurm/env.sh"

ranks launch/finetune.py --config "$config" "$@"
finish $?
