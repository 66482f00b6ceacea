"""The model card: README.md, with the front matter that the Hugging Face hub reads."""

import platform
import shlex
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.experiment.finished_run import FinishedRun
from lightning_distill.export.format import ExportSettings
from lightning_distill.export.markdown import Markdown, code, template, text
from lightning_distill.export.objective_formula import objective_formula, symbol_definitions
from lightning_distill.metrics.declarations import GROUPS, PARAMETERS
from lightning_distill.report.formatting import millions, steps_text
from lightning_distill.sweeps.job_key import is_baseline
from lightning_distill.sweeps.records import flatten

PACKAGES = ("lightning_distill", "torch", "lightning", "transformers", "tokenizers", "datasets")
LICENSES = "https://huggingface.co/docs/hub/repositories-licenses"
SIZE_KEYS = ("hidden_size", "num_hidden_layers", "num_attention_heads")
DETAILS = ("loss", "transfer", "optimizer", "schedule")  # groups whose settings are all shown


def model_card(run: FinishedRun, export: ExportSettings) -> str:
    settings, results = run.settings, run.results
    baseline = is_baseline(settings)
    teacher = results.get("teacher") or {}
    details = {group: settings[group] for group in DETAILS}
    return template("card.md.jinja").render(
        baseline=baseline,
        choices=run.choices,
        command=shlex.join(["lightning-distill", *results["overrides"]]),
        data=_values(settings["data"], ("path", "name", "subset")),
        definitions=None if baseline else symbol_definitions(settings["loss"]),
        details=yaml.safe_dump(details, sort_keys=False, allow_unicode=True).rstrip("\n"),
        formula=None if baseline else objective_formula(settings["loss"]),
        front_matter=_front_matter(run, export, baseline),
        license=export.license,
        record=run.record,
        scores=score_table(results, run.task),
        sequence_length=settings["data"].get("sequence_length"),
        settings=settings,
        size=millions(results["student"]["parameters"]),
        source=export.push or ".",
        length=_length(run, _step(settings)),
        student=_model(settings["student"], run.choices.get("student")),
        task=run.task,
        teacher_size=millions(teacher["parameters"]) if "parameters" in teacher else None,
        teachers=None if baseline else _teachers(run),
        title=str(export.push or settings["name"]).rpartition("/")[2],
        versions=", ".join(
            [*(f"{name} {version(name)}" for name in PACKAGES),
             f"Python {platform.python_version()}"]
        ),
    )  # fmt: skip


@dataclass(frozen=True)
class ScoreTable:
    """columns: titles. rows: the cells of each role."""

    columns: list[str]
    rows: dict[str, list[str]]


def score_table(results: dict[str, Any], task: type[DistillationData]) -> ScoreTable:
    """The scores of student and teacher, whichever there are."""
    roles = {role: flatten(results.get(role) or {}) for role in ("student", "teacher")}
    roles = {role: scores for role, scores in roles.items() if scores}
    measured = dict.fromkeys(key for scores in roles.values() for key in scores)
    metrics = (*GROUPS["student"], *task.metrics)
    columns = {metric.key: metric for metric in metrics if metric.key in measured}
    keys = [*columns, *(key for key in measured if key not in columns)]
    titles = {key: key.removeprefix("tasks.").replace("_", " ") for key in keys}
    titles |= {key: metric.label for key, metric in columns.items() if metric != PARAMETERS}
    digits = {key: columns[key].digits if key in columns else 3 for key in keys}
    rows = {
        role: [_cell(scores.get(key), digits[key]) for key in keys]
        for role, scores in roles.items()
    }
    return ScoreTable([titles[key] for key in keys], rows)


def _cell(value: Any, digits: int) -> str:
    return f"{value:,.{digits}f}" if isinstance(value, int | float) else ""


def _front_matter(run: FinishedRun, export: ExportSettings, baseline: bool) -> Markdown:
    student, data = run.settings["student"].get("name"), run.settings["data"].get("name")
    kind = [] if baseline else ["distillation", "knowledge-distillation"]
    facts = ModelCardData(
        license=export.license,
        library_name="transformers",
        pipeline_tag=run.task.hub_task,
        tags=[*kind, "lightning_distill"],
        base_model=student if _is_hub_name(student) else None,
        datasets=[data] if _is_hub_name(data) else None,
    ).to_yaml()
    if export.license:
        return Markdown(facts)
    # The hub rejects an empty license, so that an upload has it as a comment.
    key = "# license:" if export.push else "license:"
    return Markdown(f"{key} # choose a name of {LICENSES}\n{facts}")


def _is_hub_name(name: Any) -> bool:
    """Whether this names something on the hub, not a local folder."""
    return isinstance(name, str) and name.count("/") <= 1 and not name.startswith((".", "/", "~"))


def _length(run: FinishedRun, step: str) -> str:
    """How long the student was trained, with steps of what size."""
    settings, training = run.settings["student"], run.results.get("training")
    if not training:  # of an older version
        return f"{settings['max_steps']} steps of {step}"
    steps = steps_text([(training["steps"], training["max_steps"])])
    best = f" (the best of validation: step {training['kept_step']:,})"
    return f"{steps} steps of {step}{best if settings['keep'] == 'best' else ''}"


def _step(settings: dict[str, Any]) -> str:
    """The size of an optimizer step."""
    examples = settings["data"]["batch_size"] * settings["trainer"]["accumulate_grad_batches"]
    length = settings["data"].get("sequence_length")
    return f"{examples * length:,} tokens" if length else f"{examples:,} examples"


def _model(node: dict[str, Any], choice: str | None) -> Markdown:
    """A pretrained model's name, or a size and its dimensions."""
    if (name := node.get("name") or node.get("path")) is not None:
        return code(name)
    return Markdown(f"size {code(choice or '?')}{_values(node, SIZE_KEYS)}")


def _teachers(run: FinishedRun) -> Markdown:
    teacher = run.settings["teacher"]
    members = [{**teacher, **member} for member in teacher.get("members") or [{}]]
    descriptions = [_teacher(member, run.choices.get("teacher")) for member in members]
    return Markdown("; ".join(dict.fromkeys(descriptions)))


def _teacher(node: dict[str, Any], choice: str | None) -> str:
    training = ""
    for key, unit in (("max_steps", "steps"), ("epochs", "epochs")):
        if length := node.get(key):
            training = f", trained for {text(length)} {unit}, seed {text(node.get('seed'))}"
    return f"{_model(node, choice)}{training}{', behind an API' if 'url' in node else ''}"


def _values(node: dict[str, Any], keys: tuple[str, ...]) -> Markdown:
    """The settings that are not null, in parentheses."""
    values = [f"{key} {text(node[key])}" for key in keys if node.get(key) is not None]
    return Markdown(f" ({', '.join(values)})" if values else "")
