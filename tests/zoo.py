"""Tiny random models of every causal architecture that transformers knows, and what is different about some of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

VOCABULARY = 150
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "is_decoder": True,
    # the same by other names
    "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 48, "d_model": 32, "n_layers": 2,
    "n_heads": 4, "max_seq_len": 128, "ffn_dim": 48, "word_embed_proj_dim": 32, "encoder_layers": 1,
    "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "d_ff": 48, "attention_heads": 4, "num_layers": 2, "embedding_size": 32, "embed_dim": 32,
    "dff": 48, "rotary_dim": 4, "emb_dim": 32, "context_length": 128, "attention_hidden_size": 32, "sliding_window": 16,
    # experts, latent attention
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2,
    "n_routed_experts": 4, "num_local_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "qk_head_dim": 12, "index_head_dim": 8, "index_n_heads": 2, "index_topk": 8,
    # states
    "state_size": 8, "expand": 2, "mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": 4,
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_ssm": 64, "mamba_chunk_size": 8,
    "chunk_size": 8, "n_groups": 1, "num_heads": 4, "lru_width": 32, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    # logits large enough that their scales and caps are felt
    "initializer_range": 0.3, "init_std": 0.3, "logits_scaling": 6.0, "final_logit_softcapping": 2.5,
    "output_logit_soft_cap": 2.5, "logits_soft_cap": 0.5, "lm_head_multiplier": 0.2,
}  # fmt: skip
ALL_HEADS = {"num_key_value_heads": 4}
NARROW = {"head_dim": 8}
SPECIAL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots3_note_text", "glm4_moe_lite"), ALL_HEADS
    ),
    **dict.fromkeys(("glm_moe_dsa", "minicpm3", "youtu"), ALL_HEADS),
    **dict.fromkeys(("helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "ministral"), NARROW),
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
    },
    "dbrx": {
        "attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v4": {
        "head_dim": 16, "o_lora_rank": 8, "o_groups": 2, "num_key_value_heads": 1, "partial_rotary_factor": 0.25,
    },
    "fuyu": {
        "patch_size": 2,
        "text_config": {
            "model_type": "persimmon", "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3,
        },
    },
    "gemma3n_text": {
        **NARROW, "num_kv_shared_layers": 0, "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8,
        "laurel_rank": 8,
    },
    "gemma4_text": {**NARROW, "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "kimi_linear": {**ALL_HEADS, "linear_head_dim": 8, "linear_num_heads": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": {
        **ALL_HEADS, "head_dim": 4, "ffn_hidden_size": 48, "expert_ffn_hidden_size": 16, "moe_topk": 2,
        "zero_expert_num": 2,
    },
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "prophetnet": {
        "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4, "num_encoder_layers": 1,
        "num_decoder_layers": 2,
    },
    "reformer": {"axial_pos_embds": False, "attention_head_size": 8, "attn_layers": ["local", "lsh"]},
    "roc_bert": {
        "pronunciation_embed_dim": 8, "pronunciation_vocab_size": 20, "shape_embed_dim": 8, "shape_vocab_size": 20,
    },
    "xmod": {"default_language": "en_XX"},
    "xlm": {"causal": True},
    "zamba": {
        "num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "hybrid"], "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "n_mamba_heads": 4},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip


WHOLE = {
    "gemma3": "Gemma3ForConditionalGeneration",
    "gemma4": "Gemma4ForConditionalGeneration",
    "gemma4_unified": "Gemma4UnifiedForConditionalGeneration",
    "git": "GitForCausalLM",
    "llama4": "Llama4ForConditionalGeneration",
    "mllama": "MllamaForConditionalGeneration",
    "phi4_multimodal": "Phi4MultimodalForCausalLM",
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
    "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
    "qwen4_exp": "Qwen4ExpForConditionalGeneration",
}
"""Models of text and images, of which the text is measured."""
EYES = {
    "model_type": "siglip_vision_model", "depth": 1, "num_heads": 4, "out_hidden_size": 32, "head_dim": 8,
    "image_size": 28, "patch_size": 14, "projector_input_dim": 32, "projector_output_dim": 32, "vision_output_dim": 32,
    "position_embedding_size": 64, "num_blocks": 1, "attention_dim": 32, "ext_pw_out_channel": 32,
    "depthwise_separable_out_channel": 32, "nemo_conv_channels": 8, "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8, "num_position_embeddings": 16, "mm_embed_dim": 32,
    "mm_posemb_size": 16, "output_proj_dims": 32,
}  # fmt: skip


SAMPLE = (
    "cohere", "deepseek_v3", "falcon_h1", "gemma2", "gemma3", "gemma3_text", "gpt2", "granite", "llama", "mamba",
    "mixtral", "qwen3_5", "recurrent_gemma", "rwkv", "xlstm",
)  # fmt: skip
REFUSED = {
    "cpmant": "is not causal",
    "prophetnet": r"is given \(1, 2, 16, 32\), and its logits are \(1, 16, 150\)",
    "xlnet": "is not causal",
}
OTHERS = {
    **dict.fromkeys(("AlbertForMaskedLM", "DistilBertForMaskedLM"), "is none that transformers knows"),
    **dict.fromkeys(("BertForMaskedLM", "RobertaForMaskedLM"), "which is no causal language model"),
    **dict.fromkeys(("T5ForConditionalGeneration", "MarianMTModel", "BartModel"), "is an encoder-decoder"),
    **dict.fromkeys(
        ("LlamaModel", "GPT2Model", "MambaModel", "MixtralModel"), "no causal language model|lacks 1 weight"
    ),
}
"""Models that are not causal, or have no head, and the line that refuses them."""
SINGLE = ("inkling2_text", "xglm", "xlnet")
"""Models that transformers does not run in float64."""
NOT_BUILT = {
    **dict.fromkeys(("blt", "emu3", "got_ocr2", "moss_transcribe_diarize"), "size"),
    **dict.fromkeys(("dots3_note", "musicgen", "musicgen_melody"), "parts that are no language model"),
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"), "drafts that run beside their model only"),
    "gemma3n": "needs timm",
}
MADE = {
    **dict.fromkeys(("cohere", "cohere2", "cohere2_moe"), (0.0625, None)),
    **dict.fromkeys(("granite", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoehybrid"), (1 / 6, None)),
    "granitemoeshared": (1 / 6, None),
    "hyperclovax": (6.0, None),
    "falcon_h1": (0.2, None),
    **dict.fromkeys(
        ("beam", "gemma2", "gemma3_text", "gemma3n_text", "gemma4_text", "gemma4_unified", "gemma4"), (1.0, 2.5)
    ),
    **dict.fromkeys(("gemma4_unified_text", "inkling2_text", "nanochat", "vaultgemma", "xlstm"), (1.0, 2.5)),
    "recurrent_gemma": (1.0, 0.5),
}
"""Scale and soft cap of their logits."""


def options_of(config: type, **more: Any) -> dict[str, Any]:
    """The sizes that configurations of this class take."""
    known = {field.name for cls in config.__mro__ if dataclasses.is_dataclass(cls) for field in dataclasses.fields(cls)}
    return {n: value for n, value in {**SIZES, **more}.items() if n in known - set(config.attribute_map or ())}


def build(kind: str, name: str | None = None, **more: Any) -> torch.nn.Module:
    """A model of this type and class, with random weights of a fixed seed, in evaluation mode."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind]
    options = options_of(config)
    if kind in WHOLE:
        parts = {
            name: CONFIG_MAPPING["siglip_vision_model"] if part is AutoConfig else part
            for name, part in config.sub_configs.items()
        }
        options |= {name: options_of(part, **EYES) for name, part in parts.items()}
    name = name or WHOLE.get(kind, CAUSAL[kind])
    made = getattr(transformers, name)(config(**{**options, **SPECIAL.get(kind, {}), **more})).eval()
    with torch.no_grad():
        if made.get_output_embeddings() is None:
            return made
        made.get_output_embeddings().weight[3:9] *= 3  # so that the most frequent words are said at times
    return made
