"""Configurations: a file of Python gives a dict, a dict gives objects, nothing else.

file        a config file and its argument -> the config
overrides   --config.key=value, and the argument of a config file
schema      keys a run's config must and may have; which may differ on resume
spec        {"target": "module:Name", ...} -> the object
text        a config as JSON, its digest, its dotted keys
trust       what the config inside a checkpoint may call
parts       shared pieces of configs
"""
