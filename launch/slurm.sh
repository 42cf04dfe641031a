#!/usr/bin/env bash
# Run a command on every node of a Slurm job, as one distributed run.
#
#   bash launch/slurm.sh --nodes 2 --gpus 8 -- python -m polyview.main --config ... --workdir ...
#
#   --nodes N       number of nodes (1)
#   --gpus G        GPUs per node (0: run on CPUs)
#   --per node|gpu  one process per node, with all its GPUs (node), or one per GPU
#   --batch         submit a job and return instead of running in the foreground
#   --time T        time limit in Slurm's format; SIGTERM comes 2 minutes before
#   --slurm WORD    another option of srun or sbatch, such as --partition=x; repeatable
#   --cache DIR     compilation cache, on a disk shared by all nodes
#                   ($JAX_COMPILATION_CACHE_DIR, else ~/.cache/polyview)
#   --dry-run       print the commands without running them
#
# The workdir must be on a disk shared by all nodes. The status is the command's. With
# --batch, a run that saved and stopped (SIGTERM, status 75) is queued again.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"

nodes=1 gpus=0 per=node batch='' slurm=()
while (($#)); do
    case $1 in
        --nodes) nodes=$(number "$@"); shift 2 ;;
        --gpus) gpus=$(number "$@"); shift 2 ;;
        --per) per=$(value "$@"); shift 2 ;;
        --batch) batch=1; shift ;;
        --time) word=$(value "$@"); slurm+=("--time=$word"); shift 2 ;;
        --slurm) word=$(value "$@"); slurm+=("$word"); shift 2 ;;
        --cache) cache=$(value "$@"); shift 2 ;;
        --dry-run) dry_run=1; shift ;;
        --help) usage; exit ;;
        --) shift; break ;;
        *) fail "unknown option '$1'" ;;
    esac
done
(($#)) || fail "no command after --"
[[ $per == node || $per == gpu ]] || fail "--per is '$per', not node or gpu"
[[ $per == node ]] || ((gpus)) || fail "--per gpu requires --gpus"
cache=${cache:-$home_cache}

resources=("--nodes=$nodes")
tasks=1
# Every process sees all GPUs of its node, and JAX takes the GPU with the process's
# number. A single process must be told to take all.
environment=("JAX_COMPILATION_CACHE_DIR=$cache")
if ((gpus)); then
    resources+=("--gpus-per-node=$gpus")
    if [[ $per == gpu ]]; then
        tasks=$gpus
    else
        environment+=("JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((gpus - 1)))")
    fi
fi
resources+=("--ntasks-per-node=$tasks" "${slurm[@]}")
delivered=(env "${environment[@]}" "$@" --distributed)
if [[ -z $batch ]]; then
    status=0
    run srun "${resources[@]}" --kill-on-bad-exit=1 --signal=TERM@120 "${delivered[@]}" \
        || status=$?
    lost "$status" || true
    exit "$status"
fi
script="srun --kill-on-bad-exit=1 $(quoted "${delivered[@]}")
status=\$?
if [ \$status = 75 ]; then scontrol requeue \$SLURM_JOB_ID; fi
exit \$status"
run sbatch "${resources[@]}" --requeue --open-mode=append --signal=TERM@120 \
    "--wrap=$script"
