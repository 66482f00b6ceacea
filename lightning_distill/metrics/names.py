"""Which of the numbers that an evaluation reports are metrics."""


def is_metric(key: str) -> bool:
    """Whether a key of a task's scores, dotted or not, is a result: not how sure, nor of how many
    examples it is."""
    name = key.rsplit(".", 1)[-1]
    return name != "examples" and not name.endswith("_stderr") and "_stderr_" not in name
