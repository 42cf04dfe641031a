"""Language models as policies: bodies, actions as tokens, worlds and imitation."""
