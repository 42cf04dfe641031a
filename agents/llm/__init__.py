"""A language model as the body of a policy: weights, tokens, layers and cache."""
