"""Let a prepared language model continue a text, or answer it.

    python -m agents.prepare llm
    python -m agents.generate "What is the capital of France?"

The model answers in its chat format if it has one; --raw continues the text instead.
Greedy unless --temperature is given; --seed decides what is drawn.
"""

import argparse

import numpy as np

from polyview import cli, errors
from polyview.errors import InputError

_BUCKET = 64  # prompts are padded to a multiple, so that few lengths are compiled
_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def main(arguments: list[str] | None = None) -> None:
    """Print what the model says; see `--help`."""
    flags = _parse(arguments)
    # JAX is imported late, so that usage errors do not wait for it.
    import jax

    from agents.llm import prepared, tokenizer
    from agents.llm.running import language_model

    about = prepared.describe(flags.model)
    words = tokenizer.Tokenizer(about["tokenizer"])
    chats = "<|im_start|>" in (about.get("template") or "") and not flags.raw
    if chats:
        # The message that the model was trained with.
        message = {"role": "user", "content": flags.prompt}
        numbers = tokenizer.chat(words, [message], _SYSTEM)
    else:
        numbers = words.encode(flags.prompt)
        if not numbers:
            raise InputError("the prompt is empty")
    length = -(-len(numbers) // _BUCKET) * _BUCKET
    context = about["settings"]["context"]
    if len(numbers) + flags.tokens > context:
        raise InputError(
            f"the prompt has {len(numbers)} tokens; with --tokens {flags.tokens} this "
            f"is more than the {context} of the model's context"
        )
    cli.check_jax()
    end = about["special"].get("end")
    model = language_model(flags.model, flags.layers, steps=flags.tokens, end=end)
    row, real = np.zeros((1, length), np.int32), np.zeros((1, length), bool)
    row[0, : len(numbers)], real[0, : len(numbers)] = numbers, True
    key = jax.random.key(flags.seed)
    warm = np.float32(flags.temperature)
    found = np.asarray(model.call("generate", row, real, warm, key))[0]
    print(words.decode(found[found != (-1 if end is None else end)]))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = cli.Parser(
        prog="python -m agents.generate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("prompt", help="a text")
    add("--model", default="smollm2_135m", help="a prepared model (smollm2_135m)")
    add("--layers", type=int, help="take the first blocks alone (all)")
    add("--tokens", type=int, default=64, help="the most to write (64)")
    add("--temperature", type=float, default=0.0, help="0 for the likeliest (0)")
    add("--raw", action="store_true", help="continue the text, without chat format")
    add("--seed", type=int, default=0, help="of what is drawn (0)")
    flags = parser.parse_args(arguments)
    if flags.tokens < 1:
        raise InputError(f"--tokens is {flags.tokens}; give 1 or more")
    if not 0 <= flags.temperature < 1e6:
        raise InputError(f"--temperature is {flags.temperature}; give 0 or more")
    if not 0 <= flags.seed < 2**32:
        raise InputError(f"--seed is {flags.seed}; give 0 or more")
    return flags


if __name__ == "__main__":
    errors.run(main)
