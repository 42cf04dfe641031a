"""A run's directory: its config, metrics, checkpoints and results, written and read.

workdir     a directory belongs to one config and one process
metrics     metrics.jsonl, TensorBoard, progress
checkpoint  the one format;  checksum: of arrays on any sharding
load        from the path of a run to its model;  weights: fixed ones, by sha256
init        donors laid over a new state;  importing: a file's encoder as a run
embedding   embeddings of data;  exporting: an encoder as a file;  evaluating: results
torch_names the names of our arrays in PyTorch libraries;  peers: their models
"""
