#!/usr/bin/env bash
# Create Cloud TPU VMs (v2 to v6e), install the project, run a command on all of them.
#
#   bash launch/tpu_vm.sh VERB --name NAME --zone ZONE [options] [-- COMMAND...]
#
#   create    --type v5litepod-16 --version v2-alpha-tpuv5-lite; with --queue request
#             the VMs and return; with --spot use cheaper, preemptible VMs
#   install   copy this checkout's committed files to every worker and install them
#   run       run the command on every worker, in the checkout; log to ~/polyview.log
#   logs      follow the log of worker 0
#   stop      send SIGTERM: the run saves its state and ends, and is not restarted
#   delete    delete the VMs; with --queue the queued request
#
#   --project P     the Google Cloud project
#   --restarts R    for run: most restarts after it saved and stopped, status 75 (0)
#   --cache DIR     compilation cache on the workers (~/.cache/polyview there)
#   --dry-run       print the commands without running them
#
# The workdir must be on a disk shared by all workers, such as a Filestore share or a
# bucket mounted with gcsfuse. The status of run is that of the command on worker 0, or
# of gcloud if the command has none.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"

verb=${1:-} name='' zone='' type='' version='' spot='' queue='' project='' restarts=0
if (($#)); then shift; fi
[[ $verb != --help && $verb != -h ]] || { usage && exit; }
while (($#)); do
    case $1 in
        --name) name=$(value "$@"); shift 2 ;;
        --zone) zone=$(value "$@"); shift 2 ;;
        --type) type=$(value "$@"); shift 2 ;;
        --version) version=$(value "$@"); shift 2 ;;
        --project) project=$(value "$@"); shift 2 ;;
        --restarts) restarts=$(number "$@"); shift 2 ;;
        --cache) cache=$(value "$@"); shift 2 ;;
        --spot) spot=1; shift ;;
        --queue) queue=1; shift ;;
        --dry-run) dry_run=1; shift ;;
        --help) usage; exit ;;
        --) shift; break ;;
        *) fail "unknown option '$1'" ;;
    esac
done
[[ -n $verb ]] || fail "name a verb"
[[ -n $name && -n $zone ]] || fail "$verb requires --name and --zone"
[[ $verb == run || $# == 0 ]] || fail "only the verb run takes a command"

where=("--zone=$zone")
if [[ -n $project ]]; then where+=("--project=$project"); fi
# on WORKER COMMAND: run a line of shell on one worker, or on all.
on() { run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" "--worker=$1" "--command=$2"; }

case $verb in
    create)
        [[ -n $type && -n $version ]] || fail "create requires --type and --version"
        if [[ -n $queue ]]; then
            run gcloud compute tpus queued-resources create "$name" "${where[@]}" \
                "--node-id=$name" "--accelerator-type=$type" \
                "--runtime-version=$version" ${spot:+--spot}
        else
            run gcloud compute tpus tpu-vm create "$name" "${where[@]}" \
                "--accelerator-type=$type" "--version=$version" ${spot:+--spot}
        fi
        ;;
    install)
        archive=$(mktemp -t polyview.XXXXXX)
        trap 'rm -f "$archive"' EXIT
        run git -C "$(dirname "$0")/.." archive --output="$archive" --format=tar HEAD
        run gcloud compute tpus tpu-vm scp "$archive" "$name:polyview.tar" \
            "${where[@]}" --worker=all
        on all "rm -rf polyview && mkdir polyview && tar -xf polyview.tar -C polyview \
&& python3 -m venv polyview/.venv && polyview/.venv/bin/pip install './polyview[tpu]'"
        ;;
    run)
        (($#)) || fail "no command after --"
        cache=${cache:-../.cache/polyview} # in the worker's home, relative to the checkout
        # Each worker keeps the command's status, since gcloud returns one status for
        # all workers, and its process id, so that `stop` signals it and not its shells.
        line="cd polyview || exit; PATH=\$PWD/.venv/bin:\$PATH; rm -f ../polyview.status; "
        line+="{ env $(quoted "JAX_COMPILATION_CACHE_DIR=$cache" "$@" --distributed) & "
        line+="echo \$! > ../polyview.pid; wait \$!; echo \$? > ../polyview.status; } "
        line+="2>&1 | tee -a ../polyview.log; exit \$(cat ../polyview.status)"
        first="rm -f polyview.told; "
        while :; do
            status=0
            on all "$first$line" || status=$?
            if [[ -n $dry_run ]]; then exit "$status"; fi
            first=''
            if ((status)); then
                found=$(on 0 "cat polyview.status" 2>/dev/null) || true
                if [[ $found =~ ^[0-9]+$ ]] && ((found)); then status=$found; fi
            fi
            if ((status != 75 || restarts == 0)); then exit "$status"; fi
            # After `stop` the run is not restarted.
            if on 0 "test -e polyview.told" 2>/dev/null; then exit "$status"; fi
            ((restarts--)) || true
            echo "status 75: the run saved its state; starting it again" >&2
        done
        ;;
    logs) on 0 "tail -n 100 -f polyview.log" ;;
    stop) on all "touch polyview.told; kill -TERM \$(cat polyview.pid)" ;;
    delete)
        if [[ -n $queue ]]; then
            run gcloud compute tpus queued-resources delete "$name" "${where[@]}" \
                --force --quiet
        else
            run gcloud compute tpus tpu-vm delete "$name" "${where[@]}" --quiet
        fi
        ;;
    *) fail "unknown verb '$verb'" ;;
esac
