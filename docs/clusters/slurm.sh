#!/bin/bash
# One run on two nodes of eight GPUs, one task a GPU: sbatch slurm.sh
#SBATCH --nodes=2 --ntasks-per-node=8 --gpus-per-node=8
#SBATCH --signal=TERM@120 --requeue

srun --kill-on-bad-exit=1 jaxclf train configs/torchvision_imagenet.py --workdir /shared/a
[ $? -eq 75 ] && scontrol requeue "$SLURM_JOB_ID"
