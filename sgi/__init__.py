"""SGI: reward-free pre-training on recorded Atari play (Schwarzer et al. 2021).

Reinforcement learning on the engine of `polyview`. A view is *later*: the next frames
of play. Imports run one way, from here to `polyview`, never back.

    games        the names of the games, however they are spelt
    atari        one game of the emulator: frames, lives, RAM, its state as bytes
    playing      policies, and the steps they play
    recording    the file format: steps -> array_record and manifest -> arrays
    dqn_replay   the same steps, to and from files of the DQN Replay data set
    prepare      command line: python -m sgi.prepare --game pong
    replay       recordings as a Source; `Window`, the views of one time step
    layers, encoders, heads, network    the network, from layers to the whole
    losses       losses as functions of arrays, independent of the network
    pretrain     the objective: self-prediction, goals, inverse model, cloning
    latents      command line: recorded play as episodes of latents
    pong         one point of Pong, as a world with instructions and an expert
    ram          RAM addresses of the positions of objects in each game
    probes, probes_figures    linear probes of those positions, and their figures
    agent        Rainbow with self-prediction as an objective; acting; initial weights
    environment  a game as an agent trains in it
    online       one step of an agent on the device, for all seeds
    learner      agents that play, as a learner for the engine's loop
    finetune     command line: python -m sgi.finetune --config ...
    load         a run -> the network of one agent, and its greedy policy
    scores, score_episodes    human-normalised scores; scores of a hundred games at once
    reporting/   pages that compare agents
    report, video     command lines: compare runs on a page; film an agent
    parts        specs that configs share
"""
