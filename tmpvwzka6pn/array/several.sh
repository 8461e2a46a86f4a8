#!/bin/bash
#SBATCH --nodes=1 --ntasks=4 --gres=gpu:4 --time=12:00:00

srun bash -c 'CUDA_VISIBLE_DEVICES=$SLURM_LOCALID python train.py fit --config cube_triple.yaml \
    --seed $SLURM_PROCID --run_dir runs/$SLURM_PROCID "$@"' several "$@"
