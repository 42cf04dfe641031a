"""A body alone, as a language model: texts go on, and have a likelihood."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from agents.llm.llama import Body
from polyview.errors import check_range


class LanguageModel(nnx.Module):
    """Continue texts, greedily or by sampling.

    Args:
      body: makes the body.
      steps: the most tokens to add.
      end: the token after which a text is over; None: it never is.
    """

    def __init__(
        self,
        *,
        body: Callable[..., Body],
        steps: int = 64,
        end: int | None = None,
        rngs: nnx.Rngs,
    ):
        check_range(1, steps=steps)
        self.body, self.steps = body(rngs=rngs), steps
        self.end = -1 if end is None else end

    def log_likelihood(self, tokens: jax.Array, real: jax.Array) -> jax.Array:
        """Return log p of each token given those before it, [b, t - 1]; 0 at padding.

        tokens: int32[b, t]; real: bool[b, t], as `Tokenizer.rows` returns them.
        """
        hidden, _ = self.body(self.body.embed(tokens), real)
        scores = jax.nn.log_softmax(self.body.logits(hidden[:, :-1]))
        # A negative number would count from the end; what is beyond it gives NaN.
        chosen = jnp.where(tokens < 0, self.body.vocabulary, tokens)[:, 1:, None]
        found = jnp.take_along_axis(scores, chosen, -1, mode="fill")[..., 0]
        return jnp.where(real[:, 1:], found, 0)

    def generate(
        self,
        tokens: jax.Array,
        real: jax.Array,
        temperature: jax.Array,
        key: jax.Array,
    ) -> jax.Array:
        """Return the tokens that follow, int32[b, steps]; `end` fills a text's rest.

        temperature: of the distribution that is sampled; 0 takes the likeliest token.
        Padding stands on the right.
        """
        body, b = self.body, len(tokens)
        empty = body.empty_cache(b, tokens.shape[1] + self.steps)
        hidden, cache = body(body.embed(tokens), real, empty)
        last = jnp.maximum(real.sum(1) - 1, 0)
        last_hidden = jnp.take_along_axis(hidden, last[:, None, None], 1)[:, 0]

        def chosen(hidden: jax.Array, step: jax.Array) -> jax.Array:
            scores = body.logits(hidden)
            warm = scores / jnp.maximum(temperature, 1e-6)
            drawn = jax.random.categorical(jax.random.fold_in(key, step), warm)
            best = jnp.argmax(scores, -1)
            return jnp.where(temperature > 0, drawn, best).astype(jnp.int32)

        def going(carry: tuple) -> jax.Array:
            step, _, _, written, over = carry
            return (step < self.steps) & ~over.all()

        def another(carry: tuple) -> Any:
            step, hidden, cache, written, over = carry
            token = jnp.where(over, self.end, chosen(hidden, step))
            written = written.at[:, step].set(token)
            over |= token == self.end
            x = body.embed(jnp.maximum(token, 0))[:, None]
            hidden, cache = body(x, ~over[:, None], cache)
            return step + 1, hidden[:, 0], cache, written, over

        filled = jnp.full((b, self.steps), self.end, jnp.int32)
        over = jnp.zeros(b, bool)
        begun = (jnp.int32(0), last_hidden, cache, filled, over)
        return jax.lax.while_loop(going, another, begun)[3]
