"""Configurations: a Python file gives a dict, and a dict gives objects.

file        a config file and its argument -> the config
overrides   --config.key=value, and the argument of a config file
schema      required and optional keys of a run; keys that may change on resume
spec        {"target": "module:Name", ...} -> the object
text        a config as JSON, its digest, its dotted keys
trust       the code that a checkpoint's config may call
parts       shared pieces of configs
"""
