"""A tiny model of every architecture that transformers has for a task, saved as a folder.

The config is the architecture's default, with its sizes reduced: `SIZES` by their names, and
`OVERRIDES` where an architecture needs more. Biases and norms are random too, so that none of them
can be left out without changing the logits.
"""

import torch
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto

ROWS = 320  # of the embedding: more than the tokenizer has tokens
LABELS = ["east", "north", "west"]
END, MASK, PADDING = 0, 1, 2  # as the tokenizer of `tokenizer.py` has them

MAPPINGS = {
    "causal": "CAUSAL_LM",
    "masked": "MASKED_LM",
    "classification": "SEQUENCE_CLASSIFICATION",
    "translation": "SEQ_TO_SEQ_CAUSAL_LM",
}


def architectures(task: str) -> list[str]:
    """The model types that transformers' auto class of the task lists."""
    return sorted(getattr(modeling_auto, f"MODEL_FOR_{MAPPINGS[task]}_MAPPING_NAMES"))


def _all(names: str, value: int) -> dict[str, int]:
    return dict.fromkeys(names.split(), value)


SIZES = {
    **_all("hidden_size n_embd d_model dim emb_dim embedding_size model_dim width lru_width", 32),
    **_all("word_embed_proj_dim embed_dim d_embed", 32),
    **_all("intermediate_size ffn_dim n_inner d_ff dff encoder_ffn_dim decoder_ffn_dim", 64),
    **_all("ffn_hidden_size d_inner dense_intermediate_size hidden_dim mlp_dim d_ffn", 64),
    **_all("moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size", 64),
    **_all("block_ff_dim feed_forward_size mlp_hidden_size shared_intermediate_size dim_ff", 64),
    **_all("attention_hidden_size moe_shared_expert_intermediate_size", 64),
    **_all("num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers", 2),
    **_all("num_decoder_layers num_encoder_layers", 2),
    **_all("num_attention_heads n_head n_heads num_heads encoder_attention_heads", 2),
    **_all("decoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads", 2),
    **_all("linear_num_key_heads linear_num_value_heads linear_num_heads n_groups", 2),
    **_all("swa_num_attention_heads swa_num_key_value_heads mamba_n_groups zero_expert_num", 2),
    **_all("head_dim d_kv kv_channels attention_head_dim global_head_dim v_head_dim", 16),
    **_all("q_lora_rank kv_lora_rank o_lora_rank entity_emb_size", 16),
    **_all("pronunciation_embed_dim shape_embed_dim", 16),
    **_all("qk_rope_head_dim qk_nope_head_dim rotary_dim linear_key_head_dim", 8),
    **_all("linear_value_head_dim linear_head_dim swa_head_dim laurel_rank", 8),
    **_all("mamba_chunk_size chunk_size sliding_window sliding_window_size window_size", 8),
    **_all("local_attention", 8),
    **_all("num_experts n_routed_experts num_local_experts moe_num_experts", 4),
    **_all("state_size mamba_d_state ssm_state_size mamba_dt_rank time_step_rank", 4),
    **_all("num_experts_per_tok num_experts_per_token top_k moe_k experts_per_token moe_topk", 2),
    **_all("max_position_embeddings n_positions n_ctx max_sequence_length", 64),
    **_all("pronunciation_vocab_size shape_vocab_size entity_vocab_size num_hash_buckets", 32),
}
IDS = {
    "vocab_size": ROWS,
    "bos_token_id": END,
    "eos_token_id": END,
    "pad_token_id": PADDING,
    "decoder_start_token_id": END,
    "sep_token_id": END,
    "cls_token_id": END,
    "mask_token_id": MASK,
}
ALWAYS = ("pad_token_id", "eos_token_id", "bos_token_id", "decoder_start_token_id")

MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "num_hidden_layers": 3}
ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"]}
ROPES = ALTERNATING["layer_types"], {"rope_type": "default", "rope_theta": 10000.0}
LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
ZAMBA = {
    "num_hidden_layers": 4,
    "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
}
LATENT = {"head_dim": 8}  # multi-head latent attention: of the rotated part of a key
OVERRIDES = {
    "axk1": LATENT | {"n_group": 1, "topk_group": 1},
    "bailing_hybrid": LINEAR
    | {"mlp_layer_types": ["dense", "sparse"], "num_expert_group": 1, "topk_group": 1},
    "bamba": MAMBA | {"attn_layer_indices": [1]},
    "cohere": {"logit_scale": 0.5},
    "cohere_compass_text": ALTERNATING | {"rope_parameters": dict.fromkeys(*ROPES)},
    "cohere2": ALTERNATING | {"logit_scale": 0.5},
    "codegen": {"n_head": 4, "rotary_dim": 4},
    "deepseek_v2": LATENT | {"num_experts_per_tok": 2, "moe_intermediate_size": 64},
    "deepseek_v3": LATENT | {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    "dots1": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
    },
    "falcon_h1": MAMBA | {"mamba_d_ssm": 64, "lm_head_multiplier": 0.5, "key_multiplier": 0.7},
    "fsmt": {"src_vocab_size": ROWS, "tgt_vocab_size": ROWS},
    "gemma2": ALTERNATING | {"final_logit_softcapping": 2.0, "query_pre_attn_scalar": 16},
    "gemma3_text": ALTERNATING,
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ALTERNATING["layer_types"] * 2,
        "intermediate_size": [64] * 4,
        "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0],
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": ROWS,
        "altup_num_inputs": 2,
    },
    "gemma4_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ALTERNATING["layer_types"] * 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": ROWS,
        "final_logit_softcapping": 5.0,
        "per_layer_config": {},
    },
    "gemma4_unified_text": {
        "num_hidden_layers": 4,
        "layer_types": ALTERNATING["layer_types"] * 2,
        "hidden_size_per_layer_input": 0,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 2.0},
    "granitemoe": {"logits_scaling": 4.0},
    "granitemoeshared": {"logits_scaling": 4.0},
    "granitemoehybrid": MAMBA
    | {"layer_types": ["mamba", "attention", "mamba"], "logits_scaling": 4.0},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16, "num_experts": 4, "moe_topk": [2, 2]},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 2,
        "use_mamba_kernels": False,
    },
    "kimi_linear": LINEAR
    | {"mlp_layer_types": ["dense", "sparse"], "head_dim": 8, "num_key_value_heads": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8, "visual_embed": False},
    "lfm3": {"layer_types": ["conv", "full_attention"], "num_key_value_heads": 1},
    "lilt": {"hidden_size": 48, "channel_shrink_ratio": 2},
    "longcat_flash": LATENT,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "ministral": {"head_dim": 16},
    "nemotron": {"num_key_value_heads": 1},
    "opt": {"word_embed_proj_dim": 16},
    "perceiver": {
        "d_latents": 32,
        "num_self_attends_per_block": 2,
        "num_self_attention_heads": 2,
        "num_cross_attention_heads": 2,
        "num_latents": 8,
        "image_size": 8,
        "train_size": [8, 8],
    },
    "qwen3_5_moe_text": LINEAR,
    "qwen3_5_text": LINEAR,
    "qwen3_next": LINEAR | {"head_dim": 16},
    "recurrent_gemma": {
        "num_hidden_layers": 3,
        "block_types": ["recurrent", "recurrent", "attention"],
    },
    "reformer": {
        "attn_layers": ["local", "lsh"],
        "axial_pos_embds": False,
        "attention_head_size": 16,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "num_buckets": 4,
        "hash_seed": 0,
    },
    "rwkv": {"attention_hidden_size": 32},
    "xlm": {"causal": True},
    "xlstm": {"embedding_dim": 32, "num_blocks": 2, "chunk_size": 16},
    "xmod": {"default_language": "en_XX"},
    "youtu": LATENT,
    "zamba": ZAMBA | {"attention_head_dim": 32},
    "zamba2": ZAMBA
    | {
        "n_mamba_heads": 4,
        "mamba_headdim": 16,
        "kv_channels": 16,
        "attention_head_dim": 32,
        "num_key_value_heads": 2,
        "hybrid_layer_ids": [1, 3],
    },
}
# Why no tiny model is made of it here.
NOT_BUILT = {
    **dict.fromkeys(("blt", "phi4_multimodal", "vibevoice_asr"), "has no small config"),
    **dict.fromkeys(("musicgen", "musicgen_melody"), "its config has no text model"),
    **dict.fromkeys(("qwen4_exp", "qwen4_exp_text"), "its default config is incomplete"),
    **dict.fromkeys(("dots3_note", "nemo_speechlm"), "its parts' default configs do not fit"),
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"), "drafts for another model"),
    "dbrx": "transformers fails to build it",
    "gemma3n": "needs timm",
    "layoutlmv2": "needs detectron2",
    **dict.fromkeys(
        ("causal reformer", "classification reformer"),
        "its LSH attention groups tokens by later ones and by padding",
    ),
}


def reason_not_built(task: str, name: str) -> str | None:
    return NOT_BUILT.get(name) or NOT_BUILT.get(f"{task} {name}")


# What makes a decoder of an encoder.
IS_DECODER = {"is_decoder": True, "add_cross_attention": True}


def tiny_config(model_type: str, task: str):
    return _shrink(CONFIG_MAPPING[model_type], {"is_decoder": True} if task == "causal" else {})


def _shrink(config_class, more=()):
    default = config_class()
    values = default.to_dict()
    small = {
        name: min(values[name], size)
        for name, size in SIZES.items()
        if isinstance(values.get(name), int) and values[name]
    }
    key_heads, heads = (values.get(f"num_{name}_heads") for name in ("key_value", "attention"))
    if key_heads and heads:
        small["num_key_value_heads"] = 1 if key_heads < heads else small["num_attention_heads"]
    random = [name for name in values if "drop" in name or "jitter" in name]
    small |= {name: 0.0 for name in random if isinstance(values[name], float)}
    small |= {name: i for name, i in IDS.items() if name in values or name in ALWAYS}
    for name in default.sub_configs:
        part = getattr(default, name, None)
        if hasattr(part, "to_dict") and name not in OVERRIDES.get(default.model_type, {}):
            small[name] = _shrink(type(part), IS_DECODER if name == "decoder" else {})
    small |= {name: x for name, x in dict(more).items() if name in values}
    return config_class(**small | OVERRIDES.get(default.model_type, {}))


def tiny_model(auto_class, model_type: str, task: str, seed: int = 0):
    config = tiny_config(model_type, task)
    if task == "classification":
        config.id2label = dict(enumerate(LABELS))
        config.label2id = {label: i for i, label in enumerate(LABELS)}
    torch.manual_seed(seed)
    model = auto_class.from_config(config)
    assert sum(p.numel() for p in model.parameters()) < 5e6, "too large for a test"
    return randomized(model)


@torch.no_grad()
def randomized(model):
    for p in model.parameters():
        if p.ndim < 2:
            p.add_(torch.randn_like(p) * 0.1)
        elif p.std() < 0.1:
            p.mul_(3)
    return model.eval()
