#!/usr/bin/env bash
# One run on several machines of a Slurm cluster, resumed where its time was not enough:
#
#     sbatch --nodes=2 scripts/multi_node.sh student=s teacher=l loss.temperature=2
#
# Without Slurm, on each machine (here the first of two):
#
#     torchrun --nnodes=2 --node-rank=0 --nproc-per-node=8 --rdzv-backend=c10d \
#         --rdzv-endpoint=<first machine>:29500 -m lightning_distill \
#         trainer=ddp trainer.num_nodes=2 trainer.devices=8 hydra.run.dir=outputs/runs/mine ...
#
# Outputs have to be on a file system that all machines see.
#SBATCH --job-name=lightning-distill
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
# (A task for each GPU. Two minutes before the end, and before a pre-emption that Slurm announces, the
# run keeps its step and asks to be queued again.)
set -euo pipefail

# Named after the job, so that it goes on in the same folder.
exec srun --kill-on-bad-exit=1 lightning-distill \
    trainer=ddp trainer.num_nodes="$SLURM_NNODES" trainer.devices="$SLURM_NTASKS_PER_NODE" \
    hydra.run.dir="outputs/runs/slurm-$SLURM_JOB_ID" "$@"
