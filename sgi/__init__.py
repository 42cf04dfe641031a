"""SGI: reward-free pre-training on recorded Atari play (Schwarzer et al. 2021).

Reinforcement learning on the engine of `polyview`: a view is *later*, the next frames
of play. Imports run one way, from here to `polyview`, never back.

    atari        one game of the emulator: frames, lives, RAM, its state as bytes
    record       policies, and the steps they play
    recording    the format: steps -> array_record and manifest -> arrays
    dqn_replay   the same steps from and to the files of the DQN Replay data set
    prepare      the command line: python -m sgi.prepare --game pong
    replay       recordings as a Source, and `Window`, the views of a moment of play
    layers, encoders, heads, network    the network, from its parts to the whole
    losses       mathematics that knows no network
    pretrain     the objective: self-prediction, goals, inverse model, cloning
    variables    where games keep the places of things in memory
    probes, probes_figures    what frozen features say of them, and pictures of it
    agent        Rainbow with self-prediction as an objective; acting; its start
    environment  a game as an agent meets it in training
    online       what a step of an agent does on the device, for all seeds
    learner      agents that play, as a learner of the engine's loop
    finetune     the command line: python -m sgi.finetune --config ...
    score_episodes    whole games of an agent, a hundred at once
    scores       human-normalised scores
    reporting/   pages that compare agents
    report, video     command lines: compare runs on a page; film an agent
    parts        shared pieces of configs
"""
