#!/usr/bin/env bash
# Demo of cross-modal learning: emoji by four vendors and their names.
# Usage: launch/demo_crossmodal.sh [PYTHON] [RUNS]     (run from the project root)
set -euo pipefail
python=${1:-python}
runs=${2:-runs/demo_crossmodal}

echo "== Emoji: each concept drawn by four vendors, and its name"
"$python" -m polyview.prepare emoji
for method in supervised polyview; do
    echo; echo "== $method"
    "$python" -m polyview.main --config "configs/crossmodal_emoji.py:method=$method" \
        --workdir "$runs/$method"
    "$python" -m polyview.evaluate --run "$runs/$method"
done
echo
"$python" -m polyview.report --run "$runs/polyview" "$runs/supervised" \
    --output "$runs/report.html"
