"""Rewards from preferences, with the judge audited.

walks      episodes of an expert, some actions left to chance, with true values
pairs      pairs of their moments on disk
prompts    what a language model is asked
reading    it reads prompts; answers are compared by their logits
judge      judges of pairs: a language model, an oracle, controls
labels     what a judge said, in a file that only grows
audit      how far a judge can be trusted
distil     rewards from preferences (Bradley & Terry 1952)
shaping    rewards of play, shaped by a distilled one
texts      questions about a world, and texts to tune a model on
probes     what a model knows of a world
tuning     fine-tuning on texts, and what that forgets
"""
