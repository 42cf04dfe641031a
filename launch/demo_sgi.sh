#!/usr/bin/env bash
# The demo of SGI: an encoder from recorded play, and what it knows of where things are.
# Usage: launch/demo_sgi.sh [PYTHON] [RUNS] [GAME]     (run from the top of the project)
set -euo pipefail
python=${1:-python}
runs=${2:-runs/demo_sgi}
game=${3:-pong}

export POLYVIEW_DATA=$runs/data
echo "== Play at random: to learn from, and, from another seed, for the probes"
"$python" -m sgi.prepare --game "$game" --steps 30000
"$python" -m sgi.prepare --game "$game" --steps 16000 --seed 1 --name "${game}_probe"
echo; echo "== Pre-training, without rewards"
"$python" -m polyview.main --config "configs/sgi_demo.py:game=$game" \
    --workdir "$runs/$game"
echo; echo "== The same probes for its features, an untrained encoder's and raw pixels"
"$python" -m polyview.evaluate --run "$runs/$game" --references
echo
"$python" -m polyview.report --run "$runs/$game" --output "$runs/$game.html"
