"""The keys that say what is trained, on what, and how."""

from lightning_distill.config.schema.key import Key

_OPTIMIZER = {
    "lr": Key("number", "peak learning rate; the default is for the sizes here", above=0),
    "betas": Key("list", "decay rates of the averages of gradient and squared gradient"),
    "weight_decay": Key("number", "decoupled weight decay, applied to matrices only", minimum=0),
    "fused": Key("switch", "one kernel for all parameters"),
}
_SCHEDULE = {
    "factor": Key("number", "schedule=constant: factor of the learning rate"),
    "max_lr": Key("any", "schedule=cosine: peak learning rate"),
    "pct_start": Key("any", "schedule=cosine: share of the steps that is warm-up"),
    "cycle_momentum": Key("switch", "schedule=cosine: change momentum inversely to the rate"),
    "div_factor": Key("number", "schedule=cosine: peak rate divided by the initial rate"),
    "final_div_factor": Key("number", "schedule=cosine: initial rate divided by the final rate"),
}
# Of teachers and students.
_MODEL = {
    "hidden_size": Key(
        "integer", "width of the model, a multiple of 2 × heads", minimum=1, nullable=True
    ),
    "num_hidden_layers": Key("integer", "number of layers", minimum=1, nullable=True),
    "num_attention_heads": Key(
        "integer", "attention heads of each layer", minimum=1, nullable=True
    ),
    "max_position_embeddings": Key(
        "integer", "longest sequence, in tokens", minimum=1, nullable=True
    ),
    "hidden_sizes": Key("list", "channels of each stage of a ConvNeXt"),
    "depths": Key("list", "blocks of each stage of a ConvNeXt"),
    "name": Key("text", "local folder, or name on the Hugging Face hub", nullable=True),
    "path": Key("text", "a GGUF file"),
    "revision": Key("value", "branch, tag or commit on the hub; null for the newest"),
    "dtype": Key("value", "data type of the weights, as torch names it"),
    "attn_implementation": Key(
        "value", "sdpa, eager or flash_attention_2; null for transformers' choice"
    ),
    "trust_remote_code": Key("switch", "run Python code that comes with the model"),
    "lora": Key("node", "low-rank adapters, trained in place of the weights, merged at the end"),
    "lora.rank": Key("integer", "rank of the adapters; null for none", minimum=0, nullable=True),
    "lora.alpha": Key(
        "number", "adapters are scaled by alpha / rank; null for 2 × rank", above=0, nullable=True
    ),
    "lora.target_modules": Key(
        "list", "layers by name: [q_proj, v_proj]; null for all linear ones", nullable=True
    ),
    "lora.dropout": Key("number", "dropout on the adapters' input", minimum=0, below=1),
}

KEYS = {
    "stage": Key("value", "which part of the program runs"),
    "name": Key("any", "folder of the run below <paths.outputs>/runs, name in the tracker"),
    "seed": Key("integer", "seed of the student; a sweep over it shares one teacher", minimum=0),
    "checkpoint_every_n_steps": Key("integer", "optimizer steps between checkpoints", minimum=1),
    "checkpoint_every_n_minutes": Key("number", "or minutes, if these pass first", above=0),
    "max_skipped_steps": Key(
        "integer", "consecutive steps with NaN or Inf before training stops", minimum=0
    ),
    "paths": Key("node", "where files are written"),
    "paths.outputs": Key("text", "folder of runs, sweeps and shared artifacts"),
    "data.source": Key("node", "class that reads the examples"),
    "data.source.path": Key("text", "dotted name of that class"),
    "data.sequence_length": Key("integer", "tokens a block, or a text at most", minimum=2),
    "data.batch_size": Key("integer", "examples a micro-batch on each device", minimum=1),
    "data.vocab_size": Key(
        "integer",
        "size of the tokenizer trained on the text; not for pretrained models",
        minimum=257,  # every byte, and the end of text
        maximum=10_000_000,  # the trainer of tokenizers aborts the process for more
    ),
    "data.num_workers": Key("integer", "loader processes; 0 for the main process", minimum=0),
    "data.mixture": Key("any", "several sources: {name: {path: ..., weight: ...}, ...}"),
    "data.held_out": Key(
        "number", "share or number of examples for each held-out split", above=0, nullable=True
    ),
    "data.chat_template": Key("text", "a jinja file; null for the tokenizer's", nullable=True),
    "data.answers": Key("text", "those of the data, or the teacher's", choices=("data", "teacher")),
    "data.answer_temperature": Key(
        "number", "of the teacher's sampling of answers; 0 is greedy", minimum=0
    ),
    "data.answer_tokens": Key("integer", "longest answer of the teacher", minimum=1),
    "data.count": Key("integer", "number of questions", minimum=1),
    "data.path": Key("texts", "file, folder or glob of the data, or a list of these"),
    "data.validation_path": Key("texts", "data of the validation split", nullable=True),
    "data.test_path": Key("texts", "data of the test split", nullable=True),
    "data.column": Key("text", "field of a row that holds the text or the messages"),
    "data.label_column": Key("text", "field of a row that holds the label"),
    "data.source_column": Key("text", "field of a row that holds the source text"),
    "data.target_column": Key("text", "field of a row that holds the translation"),
    "data.source_language": Key("value", 'language of rows {"translation": {...}}: en'),
    "data.target_language": Key("value", "and the language translated into: de"),
    "data.language": Key("any", "language of the messages, or a list of several"),
    "data.skip_bad_rows": Key("switch", "leave out and count what cannot be read"),
    "data.isolate_documents": Key("switch", "no attention or loss across documents of a block"),
    "data.streaming": Key("switch", "tokenize while training, for more data than memory holds"),
    "data.held_out_documents": Key(
        "integer", "streaming: documents for validation, and as many for the test", minimum=1
    ),
    "data.tokenizer_mb": Key("number", "streaming: megabytes that train the tokenizer", above=0),
    "data.mask_share": Key("number", "share of tokens to predict", minimum=0.01, maximum=0.9),
    "data.name": Key("text", "name on the Hugging Face hub, or a folder"),
    "data.subset": Key("value", "configuration of the data set; null for its default"),
    "data.split": Key("value", "split that is trained on"),
    "data.validation_split": Key("value", "split that validates; null: held out from data.split"),
    "data.test_split": Key("value", "split that tests; null: held out from data.split"),
    "data.omit": Key("any", "class that the student's transfer set lacks; null for none"),
    "data.image_size": Key(
        "integer", "pixels a side, to which images are scaled", minimum=4, maximum=10_000
    ),
    "data.channels": Key("any", "3 for color, 1 for gray"),
    "data.image_mean": Key("number", "subtracted from pixels in [0, 1]", minimum=0),
    "data.image_std": Key("number", "divides pixels after that", above=0),
    "teacher": Key("node", "the model to learn from, and its training"),
    "teacher.max_steps": Key(
        "integer",
        "optimizer steps; 0 for a trained model; null with epochs",
        minimum=0,
        nullable=True,
    ),
    "teacher.epochs": Key(
        "number", "passes over the train split, in place of max_steps", above=0, nullable=True
    ),
    "teacher.seed": Key("integer", "seed of the teacher", minimum=0),
    "teacher.members": Key(
        "any", "an ensemble: what each has of its own, as in [{seed: 0}, {seed: 1}]"
    ),
    "teacher.weights": Key("any", "weights of the members' probabilities; null for equal ones"),
    "teacher.device": Key("value", "cpu or cuda:1; null for the student's device"),
    "teacher.quantization": Key(
        "text",
        "weights of a frozen teacher's linear layers",
        choices=("int8", "int4"),
        nullable=True,
    ),
    "teacher.url": Key("any", "server's address before /completions: http://localhost:8000/v1"),
    "teacher.tokenizer": Key("value", "folder or hub name; null for teacher.name"),
    "teacher.timeout": Key("number", "seconds without a byte of an answer", above=0),
    "teacher.retries": Key("integer", "tries after the first", minimum=0),
    "teacher.connections": Key("integer", "requests at a time", minimum=1),
    "teacher.key_variable": Key("any", "environment variable that holds the server's key"),
    "student": Key("node", "the model to train, and its training"),
    "student.max_steps": Key(
        "integer",
        "optimizer steps; 0 for the student as it starts; null with epochs",
        minimum=0,
        nullable=True,
    ),
    "student.epochs": Key(
        "number", "passes over the transfer set, in place of max_steps", above=0, nullable=True
    ),
    "student.keep": Key(
        "text",
        "weights after the last step, or of the lowest validation nll",
        choices=("last", "best"),
    ),
    "student.stop_after": Key(
        "integer",
        "validations without a lower nll that end the training",
        minimum=1,
        nullable=True,
    ),
    "student.initialize": Key(
        "text",
        "random weights, or copies of the teacher's layers",
        choices=("random", "teacher_layers"),
    ),
    "student.layers": Key(
        "any", "layers to copy: uniform, influence, first, last, a number, or a list from 1"
    ),
    **{f"{role}.{name}": key for role in ("teacher", "student") for name, key in _MODEL.items()},
    **{f"{at}optimizer.{name}": k for at in ("", "teacher.") for name, k in _OPTIMIZER.items()},
    **{f"{at}schedule.{name}": k for at in ("", "teacher.") for name, k in _SCHEDULE.items()},
    "loss": Key("node", "the objective"),
    "loss.temperature": Key("schedule", "divides both models' logits; gradients × T²", above=0),
    "loss.alpha": Key(
        "schedule", "weight of the teacher's term; 0 for training without it", minimum=0
    ),
    "loss.hard_weight": Key("any", "weight of the hard target; `complement` for 1 − alpha"),
    "loss.hard_target": Key(
        "text", "the labels, or the teacher at T = 1", choices=("labels", "teacher")
    ),
    "loss.label_smoothing": Key(
        "number", "share of each label spread over the vocabulary", minimum=0, below=1
    ),
    "loss.fused": Key("switch", "compute the loss in chunks, never holding all logits"),
    "loss.divergence": Key("node", "function of two sets of log-probabilities"),
    "loss.divergence.path": Key("text", "dotted name of that function"),
    "loss.compares": Key("text", "what the divergence takes", choices=("probabilities", "logits")),
    "loss.shared_vocabulary": Key("switch", "whether the divergence needs one vocabulary"),
    "loss.head_mass": Key("number", "probability of the head's tokens", minimum=0, maximum=1),
    "loss.ab_alpha": Key("number", "larger: match where the teacher is probable"),
    "loss.ab_beta": Key("number", "larger: match where the student is probable"),
    "loss.beta": Key("number", "0 is forward KL, 1 reverse KL", minimum=0, maximum=1),
    "loss.skew": Key("number", "share of the other distribution in the mix", minimum=0, below=1),
    "loss.hidden": Key("node", "compare hidden states of layers"),
    "loss.hidden.weight": Key("number", "weight of this term", minimum=0),
    "loss.hidden.layers": Key("any", "uniform, last, or {student layer: teacher layer}"),
    "loss.hidden.distance": Key(
        "text", "mean squared error or cosine distance", choices=("mse", "cosine")
    ),
    "loss.relations": Key("node", "compare relations of queries, keys and values (MiniLMv2)"),
    "loss.relations.weight": Key("number", "weight of this term", minimum=0),
    "loss.relations.layers": Key("any", "uniform, last, or {student layer: teacher layer}"),
    "loss.relations.heads": Key(
        "integer", "relation heads; null for the student's heads", minimum=1, nullable=True
    ),
    "loss.relations.pairs": Key("list", "which relations: two letters each of q, k and v"),
    "transfer.num_blocks": Key(
        "integer",
        "the transfer set: first blocks of the train split; null for all",
        minimum=1,
        nullable=True,
    ),
    "transfer.stored": Key(
        "text", "what is stored for a token", choices=("hybrid", "sampled", "topk", "hidden")
    ),
    "transfer.k": Key("integer", "largest probabilities (hybrid, topk)", minimum=1),
    "transfer.draws": Key("integer", "sampled tokens (hybrid, sampled)", minimum=1),
    "transfer.temperatures": Key("list", "loss.temperature for which samples are unbiased"),
    "transfer.bits": Key(
        "integer", "bits of a stored value; 32 for hidden states only", choices=(8, 16, 32)
    ),
    "transfer.cache": Key("text", "folder of a cache; null for this config's", nullable=True),
    "transfer.student_fraction": Key(
        "number", "share of steps in which the student writes", minimum=0, maximum=1
    ),
    "transfer.prompt_length": Key("integer", "tokens of each prompt", minimum=1),
    "transfer.temperature": Key("number", "temperature of sampling; 0 is greedy", minimum=0),
    "transfer.num_sequences": Key(
        "integer", "sequences written; null for one a block", minimum=1, nullable=True
    ),
    "transfer.length": Key(
        "integer",
        "tokens of a sequence with its prompt; null for a block's",
        minimum=2,
        nullable=True,
    ),
    "transfer.top_p": Key("number", "nucleus sampling", minimum=1e-6, maximum=1),
    "transfer.seed": Key("integer", "seed of sampling", minimum=0),
    "transfer.batch_size": Key("integer", "sequences at a time", minimum=1),
    "transfer.mix": Key("number", "share of blocks from the original text", minimum=0, below=1),
    "transfer.num_beams": Key("integer", "beams; for more than 1 temperature is 0", minimum=1),
}
