"""Small models built from four numbers, with an initialisation made for small models.

What writes is transformers' Granite: a Llama (rotary positions, RMSNorm, SwiGLU) whose config can
scale the embedding; what reads is its ModernBERT. transformers initialises every matrix at std
0.02, which suits wide models: in a narrow one the embedding enters the residual stream at 2 % of
the size of what the layers add, and learning stalls. (Perplexity after 320 steps of our 0.5 M
student: 319 for a default Llama with tied embeddings, 242 with the scaled embedding, 141 with all
of the below.)
"""

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import (
    GraniteConfig,
    GraniteForCausalLM,
    ModernBertConfig,
    PegasusConfig,
    PegasusForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

EMBEDDING_STD = 0.02  # small, because the same matrix makes the logits
ROPE_THETA = 10_000.0  # of encoders

Encoder = TypeVar("Encoder", bound=PreTrainedModel)


@dataclass(frozen=True)
class Size:
    """What `student=s` says of a model; the task says which architecture that is."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int


def build(
    hidden_size: int,
    num_hidden_layers: int,
    num_attention_heads: int,
    max_position_embeddings: int,
    data: Any,
) -> PreTrainedModel:
    """An untrained model for the data's task. Its weights follow torch's random state."""
    size = Size(hidden_size, num_hidden_layers, num_attention_heads, max_position_embeddings)
    model: PreTrainedModel = data.new_model(size)
    return model


def decoder(size: Size, tokenizer: PreTrainedTokenizerBase) -> GraniteForCausalLM:
    """A causal language model."""
    config = GraniteConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden_size,
        intermediate_size=-(-8 * size.hidden_size // 24) * 8,  # 8/3 of the width, in eights
        num_hidden_layers=size.num_hidden_layers,
        num_attention_heads=size.num_attention_heads,
        num_key_value_heads=size.num_attention_heads,
        max_position_embeddings=size.max_position_embeddings,
        tie_word_embeddings=True,
        embedding_multiplier=1 / EMBEDDING_STD,  # unit variance in the residual stream
        attention_multiplier=(size.hidden_size // size.num_attention_heads) ** -0.5,
        residual_multiplier=1.0,
        logits_scaling=1.0,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    model = GraniteForCausalLM(config)
    with torch.no_grad():
        for name, module in model.model.named_modules():
            if isinstance(module, nn.Embedding):
                module.weight.normal_(std=EMBEDDING_STD)
            elif isinstance(module, nn.Linear):
                std = module.in_features**-0.5
                if name.endswith(("o_proj", "down_proj")):
                    std *= 0.4  # each layer adds a little to the residual stream
                module.weight.normal_(std=std)
    return model


def encoder_decoder(
    size: Size, tokenizer: PreTrainedTokenizerBase, longest: int
) -> PegasusForConditionalGeneration:
    """A translator: layers, heads and width are those of both stacks.

    longest: tokens of a text; positions are a fixed table of sines, which has no more rows.

    The architecture is transformers' Pegasus: Marian's with the norms ahead of attention and MLP.
    (Validation nll on Django's messages in five languages, 2 layers of 64 after 200 steps: Marian
    as transformers initialises it 5.73, with its embeddings scaled 5.64, with the initialisation
    below 4.85 (4.90 with 0.2, 5.22 with 1 in the place of its 0.4), Pegasus with it 4.78. 4 layers
    of 128 after 300 smaller steps: Marian 5.40, Pegasus 4.92.)
    """
    padding = tokenizer.pad_token_id
    padding = tokenizer.eos_token_id if padding is None else padding
    both: dict[str, Any] = {}
    for stack in ("encoder", "decoder"):
        both[f"{stack}_layers"] = size.num_hidden_layers
        both[f"{stack}_attention_heads"] = size.num_attention_heads
        both[f"{stack}_ffn_dim"] = 4 * size.hidden_size
    config = PegasusConfig(
        vocab_size=len(tokenizer),
        d_model=size.hidden_size,
        **both,
        max_position_embeddings=min(size.max_position_embeddings, longest),
        activation_function="swish",
        dropout=0.0,
        attention_dropout=0.0,
        scale_embedding=True,
        pad_token_id=padding,
        decoder_start_token_id=padding,
        eos_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=None,
    )
    model = PegasusForConditionalGeneration(config)
    with torch.no_grad():
        for name, module in model.model.named_modules():
            if name == "shared":
                module.weight.normal_(std=size.hidden_size**-0.5)  # which the scale makes 1
            elif isinstance(module, nn.Linear):
                std = module.in_features**-0.5
                if name.endswith(("out_proj", "fc2")):
                    std *= 0.4  # as above
                module.weight.normal_(std=std)
    return model


def encoder(
    kind: type[Encoder], size: Size, tokenizer: PreTrainedTokenizerBase, **settings: Any
) -> Encoder:
    """A model that reads a text as a whole. kind: of ModernBERT's classes. settings: of its config.

    ModernBERT's own norm behind the embedding gives the residual stream unit variance. Rotary
    positions turn as fast as in its layers of a window: of 64 tokens, the loss of masked ones at
    step 400 was 5.76 so and 5.98 as in its other layers, which are made for long texts. BERT,
    whose norms stand behind the sums, learned far less in as many steps.
    """
    rotary: Any = {"full_attention": {"rope_type": "default", "rope_theta": ROPE_THETA}}
    special = ("bos", "eos", "cls", "sep", "pad")
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden_size,
        intermediate_size=-(-8 * size.hidden_size // 24) * 8,
        num_hidden_layers=size.num_hidden_layers,
        num_attention_heads=size.num_attention_heads,
        max_position_embeddings=size.max_position_embeddings,
        layer_types=["full_attention"] * size.num_hidden_layers,  # texts are short here
        rope_parameters=rotary,
        classifier_pooling="mean" if tokenizer.cls_token_id is None else "cls",
        **{f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in special},
        **settings,
    )
    model = kind(config)
    output = model.get_output_embeddings()
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Embedding):
                module.weight.normal_(std=EMBEDDING_STD)
            elif isinstance(module, nn.Linear) and module is not output:
                std = module.in_features**-0.5
                if name.endswith((".Wo", "classifier")):
                    std *= 0.4
                module.weight.normal_(std=std)
    return model
