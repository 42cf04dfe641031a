"""DVF: values from a model of the states that come later (Mazoure et al. 2023).

Reinforcement learning on the engine of `polyview`. A view is *later*: a state of the
same episode, some steps on. A model of it is learnt without rewards and, unless told,
without actions; the value of a reward that is chosen afterwards is a mean over its
samples. Imports run one way, from here to `polyview`, never back.

    maze         walls, free cells and shortest ways
    worlds       many bodies in one maze: a point mass, PointMaze, ants
    navigation   a ball that goes to a goal, as a world with instructions
    players      policies that go to a goal, good and bad, and the way they take
    recording    the file format: episodes, and futures from given states
    prepare      command line: python -m dvf.prepare --env point
    condition, policies    what a future is conditioned on, as a vector
    futures      pairs of a state and a later one as rows; futures with weights
    occupancy    models of the states that come later
    objectives   what they are trained on
    rewards      rewards of a state, chosen after training
    value        values from futures, or told directly
    control      whom to follow, what to imitate, where to explore
    acting, transitions    a policy by weighted imitation, and what it learns from
    weigh        command line: add advantages to recorded actions
    tabular      chains of few states, whose occupancy is known exactly
    evaluation/  models of the future against roll-outs from the same states
    parts        specs that configs share
"""
