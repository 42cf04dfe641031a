#!/usr/bin/env bash
# Run a command on every host of a JobSet on Google Kubernetes Engine, with xpk.
#
#   bash launch/gke.sh --name NAME --cluster C --tpu v6e-16 --image I -- python -m ...
#
#   --tpu TYPE      type of a TPU slice; or --gpu TYPE, such as h100-mega-80gb-8
#   --slices N      number of TPU slices or GPU nodes (1)
#   --image I       a container image with the project and its dependencies
#   --project P     the Google Cloud project;  --zone Z
#   --restarts R    most restarts of the whole job if a host fails or is preempted (50)
#   --cache DIR     compilation cache in the container (/tmp/polyview)
#   --detach        return after submitting the job instead of waiting for its end
#   --dry-run       print the commands without running them
#
# The cluster must have been created by xpk. The workdir must be on a disk shared by all
# hosts. The status is 0 if the job succeeds.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"

name='' cluster='' tpu='' gpu='' slices=1 image='' where=() restarts=50 detach=''
while (($#)); do
    case $1 in
        --name) name=$(value "$@"); shift 2 ;;
        --cluster) cluster=$(value "$@"); shift 2 ;;
        --tpu) tpu=$(value "$@"); shift 2 ;;
        --gpu) gpu=$(value "$@"); shift 2 ;;
        --slices) slices=$(number "$@"); shift 2 ;;
        --image) image=$(value "$@"); shift 2 ;;
        --project) word=$(value "$@"); where+=("--project=$word"); shift 2 ;;
        --zone) word=$(value "$@"); where+=("--zone=$word"); shift 2 ;;
        --restarts) restarts=$(number "$@"); shift 2 ;;
        --cache) cache=$(value "$@"); shift 2 ;;
        --detach) detach=1; shift ;;
        --dry-run) dry_run=1; shift ;;
        --help) usage; exit ;;
        --) shift; break ;;
        *) fail "unknown option '$1'" ;;
    esac
done
(($#)) || fail "no command after --"
[[ -n $name && -n $cluster && -n $image ]] || fail "--name, --cluster and --image are required"
[[ -n $tpu || -n $gpu ]] || fail "give --tpu or --gpu"
[[ -z $tpu || -z $gpu ]] || fail "give --tpu or --gpu, not both"

if [[ -n $tpu ]]; then
    hardware=("--tpu-type=$tpu" "--num-slices=$slices")
else
    hardware=("--device-type=$gpu" "--num-nodes=$slices")
fi
# A shell in the container parses the line.
line="env $(quoted "JAX_COMPILATION_CACHE_DIR=${cache:-/tmp/polyview}" "$@" --distributed)"
run xpk workload create "--workload=$name" "--cluster=$cluster" "${where[@]}" \
    "${hardware[@]}" "--docker-image=$image" "--max-restarts=$restarts" \
    --restart-on-exit-codes=75 "--command=$line"
if [[ -z $detach ]]; then
    run xpk workload list "--cluster=$cluster" "${where[@]}" \
        "--wait-for-job-completion=$name"
fi
