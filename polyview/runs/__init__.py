"""Writing and reading a run's directory: config, metrics, checkpoints, results.

workdir     a directory belongs to one config and one process
metrics     metrics.jsonl, TensorBoard, progress
checkpoint  the one format;  checksum: of arrays, on any sharding
load        from the path of a run to its model;  weights: fixed ones, by sha256
init        a new state from donors' arrays;  importing: a file's encoder as a run
embedding   embeddings of data;  exporting: an encoder as a file;  evaluating: results
torch_names our arrays' names in PyTorch libraries;  peers: the models of these
"""
