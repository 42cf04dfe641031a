"""SGI: reward-free pre-training on recorded Atari play (Schwarzer et al. 2021).

Reinforcement learning on the engine of `polyview`: a view is *later*, the next frames
of play. Imports run one way, from here to `polyview`, never back.

    atari        one game of the emulator: frames, lives, RAM, its state as bytes
    record       policies, and the steps they play
    recording    the format: steps -> array_record and manifest -> arrays
    dqn_replay   the same steps from and to the files of the DQN Replay data set
    prepare      the command line: python -m sgi.prepare --game pong
    replay       recordings as a Source, and `Window`, the views of a moment of play
    encoders     images to maps of features
    heads        what is predicted from a latent: returns, goals, actions
    network      encoder, transition and heads together
    layers       layers with torch's initial values
    losses       the losses, as functions of arrays
    pretrain     the objective: self-prediction, goals, inverse model, cloning
    variables    where games keep the places of things in memory
    probes       what frozen features say of them, through polyview.evaluate
    agent        Rainbow with self-prediction as an objective; acting; weight transfer
    environment  a game as an agent meets it in training
    online       what a step of fine-tuning does on the device
    run          a fine-tuning from top to bottom
    finetune     the command line: python -m sgi.finetune --config ...
    score_episodes    whole games of an agent, a hundred at once
    scores       human-normalised scores
    report, video     command lines: compare runs on a page; film an agent
    reporting    what the report is made of: runs, methods, notes, tables, figures
    parts        parts that configs share
"""
