"""The linear probe of a trained encoder, with augmentation, by the trainer.

    python -m polyview.main --config configs/probe.py:run=runs/in1k --workdir runs/probe

Arguments: run, a directory (of `polyview.main` or `polyview.import_weights`), whose
encoder, geometry and data these are; data, the name of another prepared data set;
epochs, batch_size. The encoder is frozen, its BatchNorm included.
`--config.init_from=None` leaves it untrained: the reference that any probe should be
compared with. It resumes, logs and checkpoints like any run; top-1 of the test split is
written at its end.
Hardware: one GPU or more for ImageNet. Expected result: not yet measured.
"""

from polyview.config.overrides import parse_arguments
from polyview.runs.probe_config import classification


def get_config(argument: str = "") -> dict:
    """SimCLR's linear evaluation (Chen et al. 2020, B.6): 90 epochs, batch 4096."""
    args = parse_arguments(argument, run="", data="", epochs=90, batch_size=4096)
    return classification(**args, frozen=True, learning_rate=0.1)
