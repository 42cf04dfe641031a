"""Tools for acting in an environment, independent of any game.

    environment      the protocols of environments: one, rows, and on the device
    rows             environments on the host side by side, in processes
    joined           rows of several environments, which take turns
    episodes         what environments with a seed an episode have in common
    cartpole         a pole on a cart, on the device
    acting           what an actor is, and how it plays rows of episodes
    actors           actors without a language model
    critic           values on a scale of their own
    ppo              advantages, and the loss
    learner          the learner of policies by PPO
    rollout          whole episodes, played by a policy
    success          a model's success rate, as an evaluation
    replay           prioritised replay on the device
    distributional   C51: returns as distributions
    aggregates       scores over runs and tasks, and their intervals

`environment`, `episodes`, `joined`, `rollout` and `aggregates` need only numpy.
"""
