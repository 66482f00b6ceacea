"""What `stage=` can be, and the function of each, `(cfg, job)`; imported when it is asked for."""

STAGES = {
    "distill": "pipeline.distill",
    "teacher": "pipeline.teach",
    "transfer": "pipeline.hand_over",
    "evaluate": "pipeline.evaluate_again",
    "export": "export.export",
    "report": "summary.summarise_again",
    "dashboard": "dashboard.build",
    "sync": "sync.upload",
    "plan": "plan.plan",
    "doctor": "doctor.examine",
}

LOOKING = ("plan", "doctor")  # which leave a sweep as it is
