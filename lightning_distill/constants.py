"""Numbers that several rooms agree on."""

IGNORED = -100  # the label of a position at which nothing is predicted, as transformers has it
LEAST = 1e-7  # probability of all tokens that are not listed: what 32 bits can tell from 1
