"""Contrastive and pre-training objectives in JAX.

A view is one look at the same thing: generated (an augmentation of an image), observed
(a modality, a drawing, a section of a report) or later (the next frames of play). An
encoder turns views into features, an objective turns features into a loss, and one loop
trains every objective.

Axes: b unique samples, m views, d features, p positions of a feature map, t time,
h w c height, width and channels of an image, n rows of anything.

Commands, flags to one call:

    main prepare evaluate report embed export import_weights bench
    cli         what they share;  errors, terminal: how they stop, what they print

Rooms, each of which imports only what stands above it:

    data/       numpy only: sources, augmentation, views, the pipeline, prepare/
    nn/         modules that know no loss
    objectives/ mathematics that knows no model and no data
    config/     a file -> a dict -> objects; what a checkpoint may call
    evaluation/ a model -> numbers, and figures of them
    runs/       a run's directory: config, metrics, checkpoints, weights, results
    reporting/  pages that compare runs
    training/   the loop, the learners it drives, the step
    rl/         what acting needs: environments, replay, scores

    model       the one file that splits and merges modules; what evaluations are given
    devices     meshes and shardings;  hosts: processes and the machine
    files       bounded reads, atomic writes;  drawing: the style of figures
"""
