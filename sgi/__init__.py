"""SGI: reward-free pre-training on recorded Atari play (Schwarzer et al. 2021).

Reinforcement learning on the engine of `polyview`: a view is *later*, the next frames
of play. Imports run one way, from here to `polyview`, never back.

    atari        one game of the emulator: frames, lives, RAM, its state as bytes
    record       policies, and the steps they play
    recording    the format: steps -> array_record and manifest -> arrays
    dqn_replay   the same steps from and to the files of the DQN Replay data set
    prepare      the command line: python -m sgi.prepare --game pong
    replay       recordings as a Source, and `Window`, the views of a moment of play
    networks     encoders, transition model, heads, the goal's conditioner
    losses       mathematics that knows no network
    pretrain     the objective: self-prediction, goals, inverse model, cloning
    variables    where games keep the places of things in memory
    probes       what frozen features say of them, through polyview.evaluate
    buffer       prioritised replay on the device, as pure functions
    agent        Rainbow with self-prediction as an objective; acting; weight transfer
    environment  a game as an agent meets it in training
    run          a fine-tuning from top to bottom
    finetune     the command line: python -m sgi.finetune --config ...
    score_episodes    whole games of an agent, a hundred at once
    scores       human-normalised scores and their aggregates
    report, video     command lines: compare runs on a page; film an agent
    recipes      parts that configs share
"""
