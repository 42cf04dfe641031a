"""Language models as policies: bodies, actions as tokens, worlds and imitation.

On the engine of `polyview`: a run of a policy is trained, resumed and evaluated as any
other. Imports run one way, from here to `polyview`, never back.

    llm/              the body: readers of GGUF and hub folders, tokenizer, layers with
                      low-rank adapters, cache, prepared models, export
    tokenizers/       actions as tokens: uniform bins, residual VQ-VAE, words in a trie
    environments/     worlds: BabyAI, Meta-World, TextRearrange, Wordle; rows
                      of worlds, and captions
    feedback/         preferences: pairs, judges, labels, distilled and shaped rewards
    rearrange/        TextRearrange: instructions and pictures of rooms, on the device
    recording         demonstrations on disk; demonstrate: experts play them
    data              spans of demonstrations, as views
    bridges           from observations to tokens of a body
    adapters          from hidden states to actions
    policy            bridges, body and adapter in one module
    generalist        policies of several domains that share these parts
    clone             the loss of an expert's actions, alone and beside PPO
    playing           a policy in its worlds
    evaluation/       success by roll-outs; what a tokenizer loses
    parts             shared pieces of configs; domains: of those of several domains
    prepare, generate, export, train, video, report, judge, ask    command lines
"""
