"""Actions as tokens: equal bins, learnt codebooks, and words of a language model."""
