"""Worlds with instructions.

    worlds       what all worlds have, and `world(name)`
    babyai       levels of BabyAI: a grid, numbered actions
    metaworld    tasks of Meta-World: a robot's arm, continuous actions
    rearrange    splits of TextRearrange: pictures, numbered actions
    wordle       a game of words: guesses and marks, numbered actions
    captions     what a world shows, in words; captioned: worlds that say it
    rows         worlds side by side, for reinforcement learning
    envpool      levels of BabyAI in C++, as rows

The packages that simulate them are imported when a world is made.
"""
