"""What can be said of the settings before anything is imported or made."""

import math
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from lightning_distill import ConfigError
from lightning_distill.errors import CONF, keys_of, nearest
from lightning_distill.results import scores
from lightning_distill.settings_of_models import (
    problems_of_adapters,
    problems_of_quantization,
    problems_of_served,
    problems_of_server,
    secrets_of_server,
)

ABSENT = object()  # in place of a setting that these choices have not
MOST = 2**32 - 1  # that torch, NumPy and Lightning all take, as a seed

# key: (whole numbers only, least value, whether that value itself is allowed)
RANGES: dict[str, tuple[bool, float, bool]] = {
    "seed": (True, 0, True),
    "checkpoint_every_n_steps": (True, 1, True),
    "checkpoint_every_n_minutes": (False, 0, False),
    "max_skipped_steps": (True, 0, True),
    "data.sequence_length": (True, 2, True),
    "data.batch_size": (True, 1, True),
    "data.num_workers": (True, 0, True),
    "data.held_out": (True, 3, True),
    "data.held_out_documents": (True, 1, True),
    "data.tokenizer_mb": (False, 0, False),
    "data.image_size": (True, 4, True),
    "data.image_std": (False, 0, False),
    "data.image_mean": (False, 0, True),
    "data.vocab_size": (True, 257, True),  # every byte, and the end of text
    "transfer.num_blocks": (True, 1, True),
    "transfer.k": (True, 1, True),
    "transfer.draws": (True, 1, True),
    "transfer.num_sequences": (True, 1, True),
    "transfer.prompt_length": (True, 1, True),
    "transfer.length": (True, 2, True),
    "transfer.num_beams": (True, 1, True),
    "transfer.batch_size": (True, 1, True),
    "transfer.seed": (True, 0, True),
    **{
        f"{role}.{key}": (True, least, True)
        for role in ("teacher", "student")
        for key, least in (
            ("max_steps", 0 if role == "teacher" else 1),
            ("hidden_size", 1),
            ("num_hidden_layers", 1),
            ("num_attention_heads", 1),
            ("max_position_embeddings", 1),
            ("lora.rank", 0),
        )
    },
    "teacher.lora.alpha": (False, 0, False),
    "student.lora.alpha": (False, 0, False),
    "teacher.seed": (True, 0, True),
    "teacher.timeout": (False, 0, False),
    "teacher.retries": (True, 0, True),
    "teacher.connections": (True, 1, True),
    "teacher.optimizer.lr": (False, 0, False),
    "optimizer.lr": (False, 0, False),
    "optimizer.weight_decay": (False, 0, True),
    "trainer.log_every_n_steps": (True, 0, True),
    "sweep.stop_after_failures": (True, 1, True),
    "sweep.jobs_per_gpu": (True, 1, True),
    "hydra.sweeper.n_trials": (True, 1, True),
    "trainer.accumulate_grad_batches": (True, 1, True),
    "trainer.num_nodes": (True, 1, True),
    "trainer.val_check_interval": (False, 0, False),
    "trainer.gradient_clip_val": (False, 0, True),
    "evaluate.limit": (True, 1, True),
    "evaluate.num_fewshot": (True, 0, True),
    "evaluate.batch_size": (True, 1, True),
}

# Where null says something of its own.
OPEN = {
    *("transfer.num_blocks", "transfer.num_sequences", "transfer.length"),
    *("teacher.lora.rank", "teacher.lora.alpha", "student.lora.rank", "student.lora.alpha"),
    *("trainer.val_check_interval", "trainer.gradient_clip_val"),
    *("sweep.stop_after_failures", "evaluate.limit", "evaluate.num_fewshot"),
}
# Which need not be so much lower than MOST; a tokenizer's trainer ends the process for more.
LARGEST = {"data.vocab_size": 10_000_000, "data.image_size": 10_000}

# Names and paths: key, and whether null says something of its own.
TEXTS = {
    "paths.outputs": False,
    "data.path": False,
    "data.name": False,
    "data.column": False,
    "data.label_column": False,
    "data.source_column": False,
    "data.target_column": False,
    "data.chat_template": True,
    "teacher.name": True,
    "student.name": True,
    "transfer.cache": True,
    "evaluate.task_path": True,
    "export.run": True,
    "export.folder": True,
    "export.converter": True,
    "export.push": True,
    "logger.wandb.project": True,
    "logger.wandb.entity": True,
    "hydra.run.dir": False,
    "hydra.sweep.dir": False,
}

# Of one value, text or not.
SINGLE = ("stage", "trainer.accelerator", "trainer.precision", "teacher.device")

# Nodes that hold settings of their own, which one value would replace.
NODES = ("loss.hidden", "loss.relations", "teacher.lora", "student.lora", "paths", "evaluate")

MATMUL = ("highest", "high", "medium")  # torch.set_float32_matmul_precision
RESUME = ("auto", "never")
INITIALIZE = ("random", "teacher_layers")
RERUN = ("failed", "all", "none")

SWITCHES = (
    "data.streaming",
    "data.isolate_documents",
    "data.skip_bad_rows",
    "teacher.trust_remote_code",
    "student.trust_remote_code",
    "loss.fused",
    "evaluate.speed",
    "trainer.compile",
    "trainer.gradient_checkpointing",
    "export.private",
)


def check(cfg: DictConfig) -> None:
    """Raises ConfigError that names every setting out of its range, all at once."""
    _refuse([*_problems_of_nodes(cfg)])  # which all else looks into
    _refuse([*_problems_of_outputs(Path(cfg.paths.outputs))])
    problems = [problem for one in each_teacher(cfg) for problem in _problems(one)]
    problems += [*_problems_of_weights(cfg), *_problems_of_start(cfg)]
    for one in each_teacher(cfg):
        problems += [*problems_of_quantization(one), *problems_of_adapters(one)]
    problems += [*_problems_of_sweep(cfg), *_problems_of_streaming(cfg)]
    if (precision := cfg.trainer.get("matmul_precision", "highest")) not in MATMUL:
        problems.append(str(nearest("trainer.matmul_precision", precision, MATMUL)).rstrip("."))
    if (resume := cfg.trainer.get("resume", "auto")) not in RESUME:
        problems.append(str(nearest("trainer.resume", resume, RESUME)).rstrip("."))
    problems += _problems_of_tasks(cfg.evaluate.tasks)
    if "url" in set(cfg.teacher):  # a key that is not set is not `in` the node itself
        problems += [*problems_of_server(cfg.teacher), *problems_of_served(cfg)]
    _refuse(problems)


def check_secrets(cfg: DictConfig) -> None:
    """Raises ConfigError for keys among the settings, before Hydra notes those in files."""
    teacher: Any = OmegaConf.to_container(cfg, resolve=False)
    teacher = teacher.get("teacher")
    if not isinstance(teacher, dict) or "url" not in teacher:
        return
    given = OmegaConf.select(cfg, "hydra.overrides.task") or []
    own = "" if OmegaConf.is_missing(cfg.teacher, "url") else teacher["url"]
    urls = [own, *(one for one in given if "teacher.url=" in one)]
    variable = teacher.get("key_variable")
    known = None if variable is None or "${" in str(variable) else str(variable)
    _refuse([problem for url in urls for problem in secrets_of_server(str(url), known)])


def check_sweep(cfg: DictConfig) -> None:
    """Raises ConfigError for what is wrong with a sweep as a whole, before it has jobs."""
    _refuse([*_problems_of_nodes(cfg)])
    _refuse([*_problems_of_outputs(Path(cfg.paths.outputs))])
    _refuse([*_out_of_range(cfg), *_problems_of_sweep(cfg)])


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ConfigError("; ".join(dict.fromkeys(problems)) + ".")


def each_teacher(cfg: DictConfig) -> list[DictConfig]:
    """The configuration as each of `teacher.members` has it; itself, where there are none."""
    members = cfg.teacher.get("members")
    if not members:
        return [cfg]
    listed = isinstance(members, list | ListConfig)
    if not listed or not all(isinstance(member, Mapping | DictConfig) for member in members):
        raise ConfigError(
            f"teacher.members={members} must list what each teacher has of its own, as in "
            "'teacher.members=[{seed: 0}, {seed: 1}]'."
        )
    found = []
    for member in members:
        one = cfg.copy()
        one.teacher = OmegaConf.merge(cfg.teacher, member)
        found.append(one)
    return found


def _problems_of_weights(cfg: DictConfig) -> Iterator[str]:
    weights, count = cfg.teacher.get("weights"), len(each_teacher(cfg))
    if weights is None:
        return
    if isinstance(weights, str | int | float) or len(weights) != count:
        given = 1 if isinstance(weights, str | int | float) else len(weights)
        yield (
            f"teacher.weights={weights} gives {given} for {count} "
            f"teacher{'s' if count > 1 else ''}; give one for each of teacher.members"
        )
    elif not all(_in_range(weight, False, 0, False) for weight in weights):
        yield f"teacher.weights={weights} must be numbers above 0"


def _problems_of_start(cfg: DictConfig) -> Iterator[str]:
    if cfg.student.initialize not in INITIALIZE:
        yield str(nearest("student.initialize", cfg.student.initialize, INITIALIZE)).rstrip(".")
    elif cfg.student.initialize == "teacher_layers" and "name" in cfg.student:
        yield (
            "student.initialize=teacher_layers takes the teacher's weights, student=pretrained "
            "brings its own; choose a size, as in student=s, or student.initialize=random"
        )


def _problems_of_streaming(cfg: DictConfig) -> Iterator[str]:
    if cfg.data.get("streaming") is not True:
        return
    if "stored" in cfg.transfer or "num_sequences" in cfg.transfer:
        name = "sequence" if "num_sequences" in cfg.transfer else "cached"
        yield (
            f"data.streaming=true has no end that transfer={name} could come to; choose "
            "transfer=online or on_policy, or set data.streaming=false"
        )
    elif cfg.transfer.get("num_blocks") is not None:
        yield (
            f"transfer.num_blocks={cfg.transfer.num_blocks} chooses from a text that is counted, "
            "which data.streaming=true is not; leave it out, or set data.streaming=false"
        )


def _problems_of_sweep(cfg: DictConfig) -> Iterator[str]:
    rerun, name = cfg.sweep.rerun, cfg.sweep.name
    if rerun not in RERUN:
        yield str(nearest("sweep.rerun", rerun, RERUN)).rstrip(".")
    single = not isinstance(name, ListConfig | DictConfig)
    if name is not None and not (single and _is_below(Path(str(name)))):
        yield f"sweep.name={name} must be the name of a folder below outputs/sweeps, or null"
    yield from _problems_of_objectives(cfg.sweep.objectives)


def _is_below(path: Path) -> bool:
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _problems_of_objectives(names: Any) -> list[str]:
    if not isinstance(names, list | ListConfig) or not names:
        return [f"sweep.objectives={names} must be a list, as in [student.nll]"]
    wrong = [name for name in names if name not in scores()]
    return [str(nearest("sweep.objectives", name, scores())).rstrip(".") for name in wrong]


def _problems_of_tasks(names: Any) -> list[str]:
    if names is None:
        return []
    if not isinstance(names, list | ListConfig):
        return [f"evaluate.tasks={names} must be a list, as in evaluate.tasks=[{names}]"]
    wrong = [name for name in names if not isinstance(name, str)]
    return [f"evaluate.tasks: {name} is not the name of a task" for name in wrong]


def _out_of_range(cfg: DictConfig) -> Iterator[str]:
    for key, (whole, least, inclusive) in RANGES.items():
        value: Any = OmegaConf.select(cfg, key, default=ABSENT)
        if value is ABSENT or (value is None and key in OPEN):
            continue
        most = LARGEST.get(key, MOST)
        if not _in_range(value, whole, least, inclusive):
            kind = "a whole number" if whole else "a number"
            bound = f"of at least {least}" if inclusive else f"above {least}"
            yield f"{key}={value} must be {kind} {bound}"
        elif whole and value > most:
            yield f"{key}={value} must be a whole number of at most {most}"


@cache
def _committed() -> list[str]:
    """The settings that every command has."""
    return [key for key in keys_of(OmegaConf.load(CONF / "config.yaml")) if key[:5] != "hydra"]


def _problems_of_nodes(cfg: DictConfig) -> Iterator[str]:
    """Of what is not there, of what is no single value, and of what names something."""
    whole = {key: OmegaConf.select(cfg, key, default=ABSENT) for key in NODES}
    for key, value in whole.items():
        if not isinstance(value, DictConfig) and value is not ABSENT:
            yield f"{key}={value} must be left to its own settings, as in {key}.<setting>=<value>"
    for key in _committed():
        replaced = any(key.startswith(f"{node}.") and whole[node] is not ABSENT for node in NODES)
        if not replaced and OmegaConf.select(cfg, key, default=ABSENT) is ABSENT:
            yield f"{key} is not there any more; leave ~{key} out of the command"
    for key in SINGLE:
        if isinstance(value := OmegaConf.select(cfg, key), ListConfig | DictConfig):
            yield f"{key}={value} must be a single value"
    for key, open_ in TEXTS.items():
        value = OmegaConf.select(cfg, key, default=ABSENT)
        if value is ABSENT or (value is None and open_) or (isinstance(value, str) and value):
            continue
        hint = "is empty" if value == "" else "must be text"
        if isinstance(value, int | float) and not isinstance(value, bool):
            hint += f", in quotes where it is a number: {key}=\"'{value}'\""
        yield f"{key}={value} {hint}"
    if isinstance(cfg.name, ListConfig | DictConfig) or not _is_below(Path(str(cfg.name or ""))):
        yield f"name={cfg.name} must be the name of a folder below {cfg.paths.outputs}/runs"


def _problems_of_outputs(outputs: Path) -> Iterator[str]:
    there = next(path for path in (outputs, *outputs.resolve().parents) if path.exists())
    if not there.is_dir():
        yield f"paths.outputs={outputs} must be a folder, and {there} is a file"


def _problems(cfg: DictConfig) -> list[str]:
    problems = [*_out_of_range(cfg)]
    for key in SWITCHES:
        if not isinstance(OmegaConf.select(cfg, key, default=False), bool):
            problems.append(f"{key}={OmegaConf.select(cfg, key)} must be true or false")
    tags = OmegaConf.select(cfg, "logger.wandb.tags")
    if tags is not None and not isinstance(tags, str | ListConfig):
        problems.append(f"logger.wandb.tags={tags} must be a list, as in [mine]")
    for role in ("teacher", "student"):
        node = cfg[role]
        if node.get("initialize") == "teacher_layers":  # its heads are as wide as the teacher's
            continue
        width, heads = node.get("hidden_size"), node.get("num_attention_heads")
        # Rotary positions turn pairs of each head's channels.
        if isinstance(width, int) and isinstance(heads, int) and heads > 0 and width % (2 * heads):
            problems.append(
                f"{role}.hidden_size={width} must be a multiple of 2 × "
                f"{role}.num_attention_heads={heads}"
            )
    return problems


def require(
    key: str, value: Any, least: float, most: float = math.inf, below: bool = False
) -> None:
    """Raises ConfigError unless value is a number from least to most; below: less than most."""
    number = not isinstance(value, bool) and isinstance(value, int | float)
    if not (number and math.isfinite(value) and least <= value <= most) or (
        below and value == most
    ):
        end = "" if most == math.inf else f" {'to below' if below else 'to'} {most:g}"
        raise ConfigError(f"{key}={value} must be a number from {least:g}{end}.")


def _in_range(value: Any, whole: bool, least: float, inclusive: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return False
    return math.isfinite(value) and (value >= least if inclusive else value > least)
