"""Contrastive and pre-training objectives in JAX.

A view is one look at the same thing: generated (an augmentation of an image), observed
(a modality, a drawing, a section of a report) or later (the next frames of play). An
encoder turns views into features, an objective turns features into a loss, and one loop
trains every objective.

Axes: b unique samples, m views, d features, p positions of a feature map, t time,
h w c height, width and channels of an image.

    main        flags -> config -> train(Trainer(config), workdir)
    config      a dict that names things by string -> objects
    train       a run from top to bottom; the loop
    step        the train state and one pure step; splits and merges modules
    microbatch  a batch slice after slice (one loss), or part after part (a loss each)
    banner, dump    what a run says before it starts, and keeps when it must stop
    optimizer   LARS, SGD, AdamW; the schedule; scaling rules
    checkpoint  the one format;  restore: from a run's path to its model
    mesh        processes, devices, shardings, the batch on its way to them
    metrics     what a run reports;  workdir: a directory belongs to one config
    recipes     parts that configs share
    data/       numpy only: sources, augmentation, views, the pipeline, prepare/
    nn/         modules that know no loss
    objectives/ mathematics that knows no model and no data
    evaluation/ features of a checkpoint -> kNN, linear probe, health, figures;
                predictions from every subset of the modalities
    prepare, evaluate, report, bench    command lines;  command, what they share
    embed, export, adopt    the same, for encoders on their way out and in;  layouts,
                the names of arrays in other libraries
    dry_run     what a run would be: sizes, and one step compiled
    flops       what a step's model costs, whatever computes it

Imports run one way: main -> train -> {config, step, optimizer, checkpoint, mesh,
metrics, evaluation, data.pipeline}; step -> objectives.base. `data`, `nn` and
`objectives` are leaves that never import one another.
"""
