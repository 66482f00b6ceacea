"""What `stage=` can be, and the function of each, `(cfg, job)`; imported when it is asked for."""

STAGES = {
    "distill": "pipeline.distill",
    "teacher": "pipeline.train_teacher",
    "transfer": "pipeline.run_transfer",
    "evaluate": "reevaluation.evaluate_again",
    "export": "export.export.export",
    "report": "cli.sweep_stages.report",
    "dashboard": "cli.sweep_stages.dashboard",
    "sync": "cli.sweep_stages.sync",
    "plan": "planning.plan.plan",
    "doctor": "planning.doctor.examine",
}

LOOKING = ("plan", "doctor")  # which leave a sweep as it is
