"""Fine-tune a trained encoder as a classifier, by the trainer.

    python -m polyview.main --config configs/finetune.py:run=runs/in1k --workdir runs/ft

Arguments: run, data, epochs, batch_size, as in `configs/probe.py`. All weights are
trained. For a part of the labels: `--config.source.split='train[:10%]'` (Chen et al.
train 60 epochs on 1 %). Sweep the learning rate on held-out training rows for new data.
Hardware: one GPU or more for ImageNet. Expected result: not yet measured.
"""

from polyview.config.overrides import parse_arguments
from polyview.runs.probe_config import classification


def get_config(argument: str = "") -> dict:
    """SimCLR's fine-tuning (Chen et al. 2020, B.5): 30 epochs (of 10 %), batch 4096."""
    args = parse_arguments(argument, run="", data="", epochs=30, batch_size=4096)
    return classification(**args, frozen=False, learning_rate=0.05)
