#!/usr/bin/env bash
# Demo of diffused value functions: futures in a maze, values of rewards chosen later.
# Usage: launch/demo_dvf.sh [PYTHON] [RUNS]     (run from the project root)
set -euo pipefail
python=${1:-python}
runs=${2:-runs/demo_dvf}

echo "== PointMaze: eight policies, and roll-outs to compare with"
"$python" -m dvf.prepare --env pointmaze_medium
for offset in True False; do
    echo; echo "== A model that is told how far ahead it looks: $offset"
    "$python" -m polyview.main --workdir "$runs/offset_$offset" \
        --config "configs/dvf_pointmaze.py:offset=$offset,steps=6000"
    "$python" -m polyview.evaluate --run "$runs/offset_$offset"
done
echo
"$python" -m polyview.report --run "$runs/offset_True" "$runs/offset_False" \
    --output "$runs/report.html"
