# shellcheck shell=bash disable=SC2034
# What differs between clusters. Sourced by env.sh on the node of the batch script, not inside a container.
module purge 2>/dev/null || true                  # modules: module load cuda/12.8 ...
export PATH="$SLURM_SUBMIT_DIR/.venv/bin:$PATH"   # environment: of `make setup`, on a shared file system
IN_CONTAINER=()                                   # container: (apptainer exec --nv promptmeup.sif), or () for none
