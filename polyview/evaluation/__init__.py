"""From a frozen representation to numbers one can compare, and to pictures of them."""
