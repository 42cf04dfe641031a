"""A linear probe of a trained encoder, with augmentation, by the trainer.

    python -m polyview.main --config configs/probe.py:run=runs/in1k --workdir runs/probe

Arguments: run, a directory (of `polyview.main` or `polyview.import_weights`), which
gives the encoder, its geometry and the data; data, the name of another prepared data
set; epochs, batch_size. The encoder is frozen, its BatchNorm included.
`--config.init_from=None` leaves it untrained, as the baseline of any probe. The probe
resumes, logs and checkpoints like any run; at the end it writes top-1 on the test
split.
Hardware: one GPU or more for ImageNet. Expected result: not yet measured.
"""

from polyview.config.overrides import parse_arguments
from polyview.runs.probe_config import classification


def get_config(argument: str = "") -> dict:
    """SimCLR's linear evaluation (Chen et al. 2020, B.6): 90 epochs, batch 4096."""
    args = parse_arguments(argument, run="", data="", epochs=90, batch_size=4096)
    return classification(**args, frozen=True, learning_rate=0.1)
