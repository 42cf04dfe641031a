"""Tools for acting in an environment, independent of any game.

    environment      the protocol of an environment
    rollout          whole episodes, played by a policy
    success          a model's success rate, as an evaluation
    replay           prioritised replay on the device
    distributional   C51: returns as distributions
    aggregates       scores over runs and tasks, and their intervals

`environment`, `rollout` and `aggregates` need only numpy.
"""
