"""The keys that say where a job runs, what is logged, and what happens to its results."""

from lightning_distill.config.schema.key import Key

KEYS = {
    "trainer.accelerator": Key("value", "auto, cpu, gpu or mps"),
    "trainer.devices": Key("any", "of each machine: a number, a list of GPUs, or auto for all"),
    "trainer.num_nodes": Key(
        "integer", "machines, each of which torchrun or srun starts", minimum=1
    ),
    "trainer.strategy": Key("any", "how devices divide the work: auto, or a Lightning strategy"),
    "trainer.strategy.gradient_as_bucket_view": Key("switch", "ddp: one copy of gradients less"),
    "trainer.strategy.find_unused_parameters": Key(
        "switch", "ddp: true for a mixture of experts, some of which a batch may not reach"
    ),
    "trainer.strategy.reshard_after_forward": Key(
        "switch", "fsdp: false keeps whole weights until the backward pass"
    ),
    "trainer.callbacks": Key("any", "callbacks of Lightning or your own, each with its _target_"),
    "trainer.precision": Key("value", "bf16-mixed, 16-mixed, 32-true and others of Lightning"),
    "trainer.log_every_n_steps": Key("integer", "steps between logged values", minimum=0),
    "trainer.val_check_interval": Key(
        "number",
        "share of the run between validations, or a number of batches",
        above=0,
        nullable=True,
    ),
    "trainer.accumulate_grad_batches": Key("integer", "micro-batches an optimizer step", minimum=1),
    "trainer.gradient_clip_val": Key(
        "number", "largest norm of the gradient; null for any", minimum=0, nullable=True
    ),
    "trainer.compile": Key("switch", "torch.compile: minutes at the start, faster steps"),
    "trainer.gradient_checkpointing": Key(
        "switch", "recompute activations in the backward pass, to save memory"
    ),
    "trainer.resume": Key(
        "text", "resume an interrupted run of the same config", choices=("auto", "never")
    ),
    "trainer.matmul_precision": Key(
        "text",
        "float32 matrix products on GPUs: high is TF32",
        choices=("highest", "high", "medium"),
    ),
    "logger.csv": Key("any", "metrics.csv in the run's folder"),
    "logger.csv.name": Key("any", "sub-folder of metrics.csv"),
    "logger.csv.version": Key("any", "sub-folder below that"),
    "logger.tensorboard": Key("any", "event files of TensorBoard"),
    "logger.tensorboard.name": Key("any", "sub-folder of the event files"),
    "logger.tensorboard.version": Key("any", "sub-folder below that"),
    "logger.wandb": Key("any", "Weights & Biases"),
    "logger.wandb.project": Key("text", "project in W&B", nullable=True),
    "logger.wandb.entity": Key("text", "account or team; null for the default", nullable=True),
    "logger.wandb.tags": Key("list", "tags of the run, as in [mine]", nullable=True),
    "evaluate": Key("node", "what is evaluated besides the loss"),
    "evaluate.run": Key("any", "stage=evaluate: folder of a run, or of a sweep"),
    "evaluate.tasks": Key("list", "tasks of lm-eval for both models", nullable=True),
    "evaluate.task_path": Key(
        "text", "folder with tasks of your own in lm-eval's YAML", nullable=True
    ),
    "evaluate.limit": Key("integer", "examples a task; null for all", minimum=1, nullable=True),
    "evaluate.num_fewshot": Key(
        "integer", "examples in a prompt; null for the task's default", minimum=0, nullable=True
    ),
    "evaluate.batch_size": Key("integer", "prompts of a task at a time", minimum=1),
    "evaluate.speed": Key("switch", "measure size, tokens a second and time to the first token"),
    "export": Key("node", "stage=export"),
    "export.run": Key("text", "folder of a finished run", nullable=True),
    "export.folder": Key("text", "folder to write; null for <run>/export", nullable=True),
    "export.formats": Key("any", "list of huggingface, gguf and onnx"),
    "export.converter": Key(
        "text", "llama.cpp's convert_hf_to_gguf.py; null for our own writer", nullable=True
    ),
    "export.license": Key("any", "for the model card, as the hub names it: apache-2.0"),
    "export.push": Key("text", "name on the hub to upload to: me/my-student", nullable=True),
    "export.private": Key("switch", "whether a model that export.push creates is private"),
    "chat": Key("node", "stage=chat"),
    "chat.run": Key("text", "folder of a finished run", nullable=True),
    "chat.compare": Key("switch", "whether the teacher answers too"),
    "chat.system": Key("text", "system message that begins the conversation", nullable=True),
    "chat.temperature": Key("number", "of sampling; 0 for greedy decoding", minimum=0),
    "chat.max_new_tokens": Key("integer", "tokens of an answer at most", minimum=1),
    "report": Key("node", "stage=report"),
    "report.sweep": Key("any", "folder of a sweep, or a list of several"),
    "dashboard": Key("node", "stage=dashboard"),
    "dashboard.sweep": Key("any", "folder of a sweep, or its group in W&B"),
    "sweep": Key("node", "how the jobs of a sweep are run"),
    "sweep.name": Key("any", "folder of the sweep; null for what varies and a hash"),
    "sweep.rerun": Key(
        "text", "which jobs that ran before run again", choices=("failed", "all", "none")
    ),
    "sweep.stop_after_failures": Key(
        "integer", "failed jobs after which no more run; null for any", minimum=1, nullable=True
    ),
    "sweep.objectives": Key("any", "numbers of results.json that a sweeper minimizes"),
    "sweep.jobs_per_gpu": Key("integer", "jobs at a time on one GPU", minimum=1),
    "sweep.started": Key("any", "time of the command; set by the program"),
    "sweep.command": Key("any", "overrides of the sweep; set by the program"),
    # Hydra checks its own keys; these it would fail on later.
    "hydra.run.dir": Key("text", "folder of a single run"),
    "hydra.sweep.dir": Key("text", "folder of a sweep"),
    "hydra.sweeper.n_trials": Key("integer", "jobs of an Optuna study", minimum=1),
}
