"""Worlds with instructions. Numpy only.

    worlds       what all worlds have, and `world(name)`
    babyai       levels of BabyAI: a grid, numbered actions
    metaworld    tasks of Meta-World: a robot's arm, continuous actions

The packages that simulate them are imported when a world is made.
"""
