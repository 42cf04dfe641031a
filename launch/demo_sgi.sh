#!/usr/bin/env bash
# Demo of SGI: an encoder trained on recorded play, its inverse model and its probes.
# Usage: launch/demo_sgi.sh [PYTHON] [RUNS] [GAME]     (run from the project root)
set -euo pipefail
python=${1:-python}
runs=${2:-runs/demo_sgi}
game=${3:-seaquest}

export POLYVIEW_DATA=$runs/data
echo "== Random play: one recording for training, another seed for the probes"
"$python" -m sgi.prepare --game "$game"
"$python" -m sgi.prepare --game "$game" --steps 16000 --seed 1 --name "${game}_probe"
echo; echo "== Pre-training, without rewards"
"$python" -m polyview.main --config "configs/sgi_demo.py:game=$game" \
    --workdir "$runs/$game"
echo; echo "== Actions of unseen play; probes of its features, an untrained encoder, raw pixels"
"$python" -m polyview.evaluate --run "$runs/$game" --references
echo
"$python" -m polyview.report --run "$runs/$game" --output "$runs/$game.html"
