"""A run's directory: its config, metrics, checkpoints and results, written and read.

workdir     a directory belongs to one config and one process
metrics     metrics.jsonl, TensorBoard, progress
checkpoint  the one format;  checksum: of arrays on any sharding
load        from the path of a run to its model
torch_names the names of our arrays in PyTorch libraries
"""
