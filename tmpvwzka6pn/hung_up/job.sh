#!/bin/bash
#SBATCH --nodes=1 --ntasks-per-node=1 --gres=gpu:1 --time=12:00:00
#SBATCH --requeue --open-mode=append
#SBATCH --signal=USR1@300                 # five minutes before the time is up

seed=${SLURM_ARRAY_TASK_ID:-0}
run=runs/cube-triple-$seed
compgen -G "$run/checkpoints/last*.ckpt" > /dev/null && resume="--ckpt_path last"
srun --kill-on-bad-exit python train.py fit --config cube_triple.yaml --seed $seed --run_dir $run "$@" $resume
status=$?
if [ $status -eq 138 ] || [ $status -eq 143 ] && [ ${SLURM_RESTART_COUNT:-0} -lt 100 ]; then
    scontrol requeue ${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
fi
exit $status
