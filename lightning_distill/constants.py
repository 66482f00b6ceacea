"""Numbers and names that several packages share."""

IGNORED = -100  # label of a position without a target, as in transformers
LEAST = 1e-7  # smallest total probability of unlisted tokens: float32's resolution at 1
SAMPLES, PREDICTIONS = "samples.json", "predictions.json"  # in the folder of a run
