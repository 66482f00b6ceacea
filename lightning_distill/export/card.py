"""The model card: what a reader of the hub wants to know of a student, from what its run left."""

import inspect
import platform
import re
import shlex
from html import escape
from importlib.metadata import version
from typing import Any

import yaml
from huggingface_hub import ModelCardData
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lightning_distill.config.validation import each_teacher
from lightning_distill.export import task
from lightning_distill.export.finished_run import Run
from lightning_distill.metrics.declarations import AGREEMENT, BITS_PER_BYTE, ECE, KL, NLL, TASK
from lightning_distill.report.formatting import millions
from lightning_distill.sweeps.job_key import is_baseline
from lightning_distill.sweeps.records import flatten

PACKAGES = ("lightning_distill", "torch", "lightning", "transformers", "tokenizers", "datasets")
SCORES = {  # of results.json: heading and format
    "parameters": ("parameters", ",d"),
    **{
        metric.key: (metric.label, f".{metric.digits}f")
        for metric in (NLL, *TASK[:1], BITS_PER_BYTE, ECE, AGREEMENT, KL)
    },
}
SETTINGS = ("loss", "transfer", "optimizer", "schedule")


def write(run: Run, settings: DictConfig) -> str:
    """README.md, with the front matter that the hub reads."""
    cfg, name = run.cfg, settings.push or run.cfg.name
    alone = is_baseline({group: _plain(cfg[group]) for group in ("student", "transfer", "loss")})
    parts = [
        _front(run, settings, alone),
        f"# {_text(str(name).rpartition('/')[2])}",
        _opening(run, alone),
        task.use(run.task, settings.push or "."),
        "## Results",
        "On the held-out test split; nll in nats per token. ECE: the expected calibration error. "
        "Agreement: how often student and teacher favour the same token.",
        _table(run),
        _gap(run),
        "## How it was made",
        _making(run, alone),
        "" if alone else _objective(cfg),
        _details(cfg),
        "## The command",
        _block("bash", shlex.join(["lightning-distill", *run.results["overrides"]])),
        "Exported with "
        + ", ".join(f"{one} {version(one)}" for one in PACKAGES)
        + f", Python {platform.python_version()}.",
        "## Licence",
        _licence(settings),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(run: Run, settings: DictConfig, alone: bool) -> str:
    cfg = run.cfg
    kind = [] if alone else ["distillation", "knowledge-distillation"]
    base, data = cfg.student.get("name"), cfg.data.get("name")
    facts = ModelCardData(
        license=settings.license,
        library_name="transformers",
        pipeline_tag=task.kind(run.task)[1],
        tags=[*kind, "lightning_distill"],
        base_model=base if _on_hub(base) else None,
        datasets=[data] if _on_hub(data) else None,
    ).to_yaml()
    open_ = "" if settings.license else _open_licence(settings.push)
    return f"---\n{open_}{facts}\n---"


def _open_licence(push: str | None) -> str:
    """For the user to fill in; where nobody can before the hub reads it, a comment."""
    key = "# license:" if push else "license:"
    return f"{key} # yours to choose: a name of https://huggingface.co/docs/hub/repositories-licenses\n"


def _on_hub(name: Any) -> bool:
    """Whether this is a name there, and no folder here."""
    return isinstance(name, str) and name.count("/") <= 1 and not name.startswith((".", "/", "~"))


def _opening(run: Run, alone: bool) -> str:
    size = millions(run.results["student"]["parameters"])
    what = f"A {task.kind(run.task)[0]} of {size} parameters"
    if alone:
        return f"{what}, trained without a teacher by lightning_distill."
    teacher = run.results.get("teacher")
    of = f" of {millions(teacher['parameters'])}" if teacher else ""
    return f"{what}, distilled from a teacher{of} by lightning_distill."


def _table(run: Run) -> str:
    scored = {role: flatten(run.results.get(role) or {}) for role in ("student", "teacher")}
    roles = {role: scores for role, scores in scored.items() if scores}
    there = dict.fromkeys(key for scores in roles.values() for key in scores)
    keys = [*(key for key in SCORES if key in there), *(key for key in there if key not in SCORES)]
    told = {
        key: SCORES.get(key, (key.removeprefix("tasks.").replace("_", " "), ".3f")) for key in keys
    }
    lines = ["| | " + " | ".join(_text(told[key][0]) for key in keys) + " |"]
    lines.append("| --- |" + " ---: |" * len(keys))
    for role, scores in roles.items():
        cells = [_cell(scores.get(key), told[key][1]) for key in keys]
        lines.append(f"| {role} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else ""


def _gap(run: Run) -> str:
    row = run.row
    if row is None or row.gap_closed is None:
        return ""
    best = (
        ""
        if row.gap_closed_best_baseline is None
        else f" ({row.gap_closed_best_baseline:.0%} from the best one)"
    )
    return (
        f"Gap closed: {row.gap_closed:.0%}{best}, which is how much of the way in bits per byte "
        "from the same student trained without a teacher to the teacher."
    )


def _making(run: Run, alone: bool) -> str:
    cfg, chosen = run.cfg, run.choices
    examples = cfg.data.batch_size * cfg.trainer.accumulate_grad_batches
    length = cfg.data.get("sequence_length")
    step = f"{examples * length:,} tokens" if length else f"{examples:,} examples"
    blocks = f", blocks of {length} tokens" if length else ""
    items = [
        f"Student: {_model(cfg.student, chosen.get('student'))}, initialised by "
        f"`{cfg.student.initialize}`, {cfg.student.max_steps} steps of {step}, seed {cfg.seed}, "
        f"{cfg.trainer.precision}.",
        f"Data: {_code(chosen.get('data', 'data'))}{_given(cfg.data, ('path', 'name', 'subset'))}"
        f"{blocks}.",
    ]
    if not alone:
        teachers = [_teacher(one.teacher, chosen.get("teacher")) for one in each_teacher(cfg)]
        items.append(f"Teacher: {'; '.join(dict.fromkeys(teachers))}.")
        items.append(f"Transfer: {_code(chosen.get('transfer', cfg.transfer._target_))}.")
    return "\n".join(f"- {item}" for item in items)


def _model(node: DictConfig, choice: str | None) -> str:
    if "name" in node:
        return _code(node.name)
    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    return f"size {_code(choice or '?')}{_given(node, keys)}"


def _teacher(node: DictConfig, choice: str | None) -> str:
    how = f", trained for {node.max_steps} steps, seed {node.seed}" if node.max_steps else ""
    where = ", behind a server" if "url" in node else ""
    return f"{_model(node, choice)}{how}{where}"


def _given(node: DictConfig, keys: tuple[str, ...]) -> str:
    found = [f"{key} {_text(node[key])}" for key in keys if node.get(key) is not None]
    return f" ({', '.join(found)})" if found else ""


def _objective(cfg: DictConfig) -> str:
    """L = hard_weight · H(t, q) + alpha · T² · D(p_T, q_T) with the run's values."""
    loss = cfg.loss
    T, alpha, hard = (_number(loss[key], key) for key in ("temperature", "alpha", "hard_weight"))
    if loss.hard_weight == "complement":
        hard = f"(1 − {alpha})"
    target = {"labels": "the text", "teacher": "the teacher's distribution"}[loss.hard_target]
    where = [
        f"p and q are the next-token distributions of teacher and student, p_T and q_T those at "
        f"temperature T = {T}",
        f"t is {target}",
        f"D is {_divergence(loss)}",
    ]
    if loss.get("label_smoothing"):
        where.append(f"{loss.label_smoothing:g} of t is spread over the vocabulary")
    for key in ("temperature", "alpha"):
        if OmegaConf.is_config(loss[key]):
            where.append(f"{key} follows {_flow(loss[key])}")
    more = "".join(
        f" + {loss[term].weight:g} · {term}"
        for term in ("hidden", "relations")
        if term in loss and loss[term].weight
    )
    formula = f"L = {hard} · H(t, q) + {alpha} · {T}² · D(p_T, q_T){more}"
    return f"```\n{formula}\n```\n\nHere {'; '.join(where)}."


def _number(value: Any, key: str) -> str:
    return f"{value:g}" if isinstance(value, int | float) else key


def _divergence(loss: DictConfig) -> str:
    """The first sentence of its docstring, which is its formula."""
    if "divergence" not in loss:
        return _code(loss._target_)
    function = instantiate(loss.divergence)
    first = " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())
    return f"`{function.__name__}`: {first.split('. ')[0].rstrip('.')}"


def _flow(node: Any) -> str:
    text = yaml.safe_dump(_plain(node), default_flow_style=True, sort_keys=False)
    return str(text).strip()


def _details(cfg: DictConfig) -> str:
    chosen = {group: _plain(cfg[group]) for group in SETTINGS}
    text = yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True)
    block = _block("yaml", text.rstrip("\n"))
    return f"<details><summary>settings</summary>\n\n{block}\n\n</details>"


def _text(value: Any) -> str:
    """Of the user's or of a stranger's, as text of a line of Markdown and nothing else."""
    line = escape(" ".join(str(value).split()), quote=False)
    return re.sub(r"([\\`\[\]|])", r"\\\1", line)


def _code(value: Any) -> str:
    """The same, between backticks."""
    line = " ".join(str(value).split())
    if "`" not in line:
        return f"`{line}`"
    ticks = _ticks(line, 1)
    return f"{ticks} {line} {ticks}"


def _block(language: str, text: str) -> str:
    ticks = _ticks(text, 3)
    return f"{ticks}{language}\n{text}\n{ticks}"


def _ticks(text: str, least: int) -> str:
    """More backticks than there are in a row in the text, which would end the code."""
    return "`" * max([least, *(len(run) + 1 for run in re.findall("`+", text))])


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True)


def _licence(settings: DictConfig) -> str:
    if settings.license:
        return f"{_text(settings.license)}."
    return (
        "To be filled in, here and as `license:` above. What may be chosen depends on the licences "
        "of the teacher, of the data, and of a student that was pretrained."
    )
