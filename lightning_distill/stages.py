"""What `stage=` can be.

To add a stage from outside the package, define a `Stage` in a module of your own, and name it by
its dotted name. The environment variable has to allow the module, as for every name in a config:

    MY_STAGE = Stage("my_module.count_tokens", "count the tokens of data=")

    LIGHTNING_DISTILL_ALLOW=my_module lightning-distill stage=my_module.MY_STAGE
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """A function of the settings and the job, and what the rest of the program must know of it.

    entry: dotted name of a function `(settings: dict, job: Job) -> dict | None`, imported when the
        stage runs.
    help: what the stage does, in a line.
    distributed: whether all devices of `trainer` take part, each in a process of its own.
    makes_jobs: whether its jobs train something and write results, which a sweep compares.
    inspects_only: whether it leaves the sweep of the same command as it is.
    config_node: the config node with the stage's own keys.
    run: what `run` in that node has to name, for a stage on something finished.
    """

    entry: str
    help: str
    distributed: bool = False
    makes_jobs: bool = False
    inspects_only: bool = False
    config_node: str | None = None
    run: str | None = None


STAGES = {
    "distill": Stage(
        "lightning_distill.pipeline.distill",
        "train the student, and first what it needs (default)",
        distributed=True,
        makes_jobs=True,
    ),
    "teacher": Stage(
        "lightning_distill.pipeline.train_teacher",
        "train the teacher only",
        distributed=True,
        makes_jobs=True,
    ),
    "transfer": Stage(
        "lightning_distill.pipeline.run_transfer",
        "stop after the teacher's predictions or text are stored",
        distributed=True,
        makes_jobs=True,
    ),
    "evaluate": Stage(
        "lightning_distill.reevaluation.evaluate_again",
        "evaluate a finished run, or all runs of a sweep, again",
        distributed=True,
        config_node="evaluate",
        run="the folder of a run or a sweep",
    ),
    "export": Stage(
        "lightning_distill.export.export.export",
        "write a student for transformers, llama.cpp or ONNX",
        config_node="export",
        run="the folder of a finished run",
    ),
    "chat": Stage(
        "lightning_distill.chat.chat.chat",
        "talk to a finished student in the terminal",
        config_node="chat",
        run="the folder of a finished run",
    ),
    "report": Stage(
        "lightning_distill.cli.sweep_stages.report",
        "write the table and the page of a sweep again",
        config_node="report",
    ),
    "dashboard": Stage(
        "lightning_distill.cli.sweep_stages.dashboard",
        "make a W&B report of a sweep",
        config_node="dashboard",
    ),
    "sync": Stage("lightning_distill.cli.sweep_stages.sync", "upload runs that W&B logged offline"),
    "plan": Stage(
        "lightning_distill.planning.plan.plan",
        "estimate the time, memory and disk of the command",
        inspects_only=True,
    ),
    "doctor": Stage(
        "lightning_distill.planning.doctor.examine",
        "check data, models and machine before the command runs",
        inspects_only=True,
    ),
}
