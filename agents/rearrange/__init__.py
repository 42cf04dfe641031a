"""TextRearrange: instructions in words, and things to put elsewhere, seen in pictures.

A kitchen and a living room have eight receptacles, two of which have doors. Six objects
stand about. An agent goes, picks up, places, opens and closes, and sees the receptacle
at which it stands. The splits each ask for one kind of generalisation of language or
behaviour, with the names of Szot et al. 2024 (LLaRP, arXiv:2310.17722).

    words          every word that is said: names, phrasings, descriptions
    goals          what each family of instructions asks for
    tasks          the splits, and their episodes as tables
    environment    the rules and the reward, as pure functions; `Rearrange`
    glyphs, pictures    what the agent sees; drawing: what people see
    solver         a script that sees all, and solves every episode
    room           one episode at a time, on the host
    gym            the same for gymnasium

Importing this package registers `TextRearrange-v0`, if gymnasium is installed.
"""

import contextlib

with contextlib.suppress(ImportError):
    import gymnasium

    gymnasium.register("TextRearrange-v0", "agents.rearrange.gym:TextRearrange")
