"""A command of the documentation with less to do: few steps, few blocks, few jobs.

Settings are put behind the reader's own, where the later value of a key holds.
"""

from pathlib import Path

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from pages import ROOT

INSPECTS = ("--help", "--version", "--cfg", "--info", "--hydra-help")
NO_TRAINING = ("report", "dashboard", "sync", "export")
LOADED = ("pretrained", "gguf", "smollm2", "served")  # teachers that are not trained
# A sweep keeps two values of the first key and of these, one of others; a recipe all its jobs.
COMPARED = ("loss.alpha", "loss", "student.initialize")
JOBS = ("experiment/job", "loss")


def shorten(argv: list[str], gguf: Path | None = None) -> list[str]:
    """gguf: a file that stands for the one of SmolLM2."""
    settings = dict(one.lstrip("+").split("=", 1) for one in argv if "=" in one)
    stage = settings.get("stage", "distill")
    if any(flag in argv for flag in INSPECTS) or stage in NO_TRAINING:
        return argv
    if stage == "chat":
        return [*argv, "chat.max_new_tokens=8"]
    if stage == "evaluate":
        return [*argv, "evaluate.limit=4"]
    return [*_with_fewer_jobs(argv, settings), *_shorter(settings), *_smollm2(settings, gguf)]


def _shorter(settings: dict[str, str]) -> list[str]:
    experiment = settings.get("experiment", "")
    more = ["++trainer.limit_val_batches=1", "++trainer.limit_test_batches=1"]
    if "logger" not in settings:
        more.append("logger=csv")
    if "smollm2" not in experiment and settings.get("teacher") not in LOADED:
        more.append("teacher.max_steps=2")
    if "student.epochs" not in settings and settings.get("student.max_steps") != "0":
        more.append("student.max_steps=3")
    if experiment != "omitted_class" and "data.streaming" not in settings:
        more.append("transfer.num_blocks=16")
    if settings.get("data", "text") in ("text", "huggingface") and not experiment:
        more.append("data.sequence_length=32")
    if settings.get("transfer") == "sequence" or experiment in ("transfers", "translation"):
        more.append("transfer.num_sequences=8")
    return more


def _smollm2(settings: dict[str, str], gguf: Path | None) -> list[str]:
    experiment = "smollm2" in settings.get("experiment", "")
    roles = [role for role in ("teacher", "student") if settings.get(role) == "smollm2"]
    more = [f"{role}.path={gguf}" for role in (["teacher"] if experiment else roles)]
    if settings.get("data") in ("chat", "everyday_chat") or experiment:
        more.append("data.answer_tokens=16")
    if experiment:
        more.append("data.held_out=4")
    recipe = ROOT / "conf" / "experiment" / f"{settings.get('experiment')}.yaml"
    if (recipe.exists() and experiment) or settings.get("data") == "everyday_chat":
        more.append("data.count=40")  # of the built-in questions
    return more


def _with_fewer_jobs(argv: list[str], settings: dict[str, str]) -> list[str]:
    kept, recipe = [], {}
    for group in ("experiment", "sweep"):
        recipe |= _recipe(group, settings.get(group))
    swept = "experiment/job" in recipe
    for one in argv:
        if "=" in one and _key(one) != "experiment/job" and len(values := _values(one)) > 1:
            count = 2 if _key(one) in COMPARED or not swept else 1
            one, swept = f"{one.split('=', 1)[0]}={','.join(values[:count])}", True
        kept.append(one)
    for key, values in recipe.items():
        if key not in settings and key not in JOBS:
            count = 2 if key in COMPARED or not swept else 1
            kept.append(f"{key}={','.join(str(values).split(',')[:count])}")
            swept = True
    if settings.get("sweep") == "pareto":
        kept.append("hydra.sweeper.n_trials=2")
    return kept


def _key(override: str) -> str:
    return override.split("=", 1)[0].lstrip("+")


def _values(override: str) -> list[str]:
    """The texts between the commas of a sweep over choices; otherwise one."""
    parsed = OverridesParser.create().parse_override(override)
    if not parsed.is_sweep_override() or not parsed.is_choice_sweep():
        return [override]
    return [str(value) for value in parsed.sweep_string_iterator()]


def _recipe(group: str, name: str | None) -> dict[str, object]:
    """What a recipe sweeps over, if its sweeper is Hydra's own."""
    file = ROOT / "conf" / group / f"{name}.yaml"
    if not file.exists():
        return {}
    hydra = yaml.safe_load(file.read_text()).get("hydra", {})
    return {} if "n_trials" in hydra.get("sweeper", {}) else hydra["sweeper"]["params"]
