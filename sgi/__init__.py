"""SGI: reward-free pre-training on recorded Atari play (Schwarzer et al. 2021).

Reinforcement learning on the engine of `polyview`: a view is *later*, the next frames
of play. Imports run one way, from here to `polyview`, never back.

    atari       one game of the emulator: frames, lives, RAM, its state as bytes
    record      policies, and the steps they play
    recording   the format: steps -> array_record and manifest -> arrays
    dqn_replay  the same steps from and to the files of the DQN Replay data set
    prepare     the command line: python -m sgi.prepare --game pong
    replay      recordings as a Source, and `Window`, the views of a moment of play
    networks    encoders, transition model, heads, the goal's conditioner
    losses      mathematics that knows no network
    pretrain    the objective: self-prediction, goals, inverse model, cloning
"""
