"""What `stage=` can be, and the function of each, `(cfg, job)`; imported when it is asked for."""

STAGES = {
    "distill": "pipeline.distill",
    "teacher": "pipeline.train_teacher",
    "transfer": "pipeline.run_transfer",
    "evaluate": "pipeline.evaluate_again",
    "export": "export.export.export",
    "report": "report.summarize.summarize_again",
    "dashboard": "tracking.wandb_dashboard.build",
    "sync": "tracking.wandb_sync.upload",
    "plan": "planning.plan.plan",
    "doctor": "planning.doctor.examine",
}

LOOKING = ("plan", "doctor")  # which leave a sweep as it is
