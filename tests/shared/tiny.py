"""Tiny models of every family with random weights, and what is done to their files. Importing this imports no torch."""

import hashlib

from helpers.engine.embedded import quiet_transformers

VOCABULARY = 300  # larger than the tokenizer's, as in real models whose embeddings are padded
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,  # far from uniform attention and from uniform predictions
}
FAKE_SOURCE = {"requirement": "fake==1.0", "member": "fake/model.gguf", "file": "model.gguf", "gguf_bytes": 7}
"""An embedded model of seven letters."""
FAMILIES = ("gpt2", "llama", "qwen2", "gemma3_text", "gpt_neox")
"""Those that are computed once more by hand in `by_hand`."""
START = "<|start|>"


ROPES = {
    "linear": {"rope_type": "linear", "factor": 2.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0},
    "longrope": {"rope_type": "longrope", "factor": 4.0, "short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0]},
}
"""Rotary embeddings that were stretched after training, from 16 tokens to 64."""
GROUPED = {"num_key_value_heads": 2}
EXPERTS = {"moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2}
OLD = {"n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 4, "initializer_range": 0.4}
FALCON = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.4}
DECODERS = {
    "gpt2": ("GPT2Config", OLD),
    "llama": ("LlamaConfig", SIZES | GROUPED),
    **{
        f"llama-{name}": (
            "LlamaConfig",
            SIZES | GROUPED | {"rope_parameters": rope | {"rope_theta": 1e4, "original_max_position_embeddings": 16}},
        )
        for name, rope in ROPES.items()
    },
    "qwen2": ("Qwen2Config", SIZES | GROUPED),
    "qwen3": ("Qwen3Config", SIZES | GROUPED | {"head_dim": 8}),
    "mistral": ("MistralConfig", SIZES | GROUPED | {"sliding_window": 8}),
    "mixtral": ("MixtralConfig", SIZES | GROUPED | {"num_local_experts": 4}),
    "qwen2_moe": ("Qwen2MoeConfig", SIZES | GROUPED | EXPERTS | {"shared_expert_intermediate_size": 8}),
    "olmo2": ("Olmo2Config", SIZES | GROUPED),
    "gemma2": (
        "Gemma2Config",
        SIZES
        | GROUPED
        | {"head_dim": 8, "sliding_window": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3_text": (
        "Gemma3TextConfig",
        SIZES | GROUPED | {"head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "phi3": ("Phi3Config", SIZES | GROUPED | {"pad_token_id": 0}),
    "phi3-longrope": (
        "Phi3Config",
        SIZES
        | GROUPED
        | {
            "pad_token_id": 0,
            "original_max_position_embeddings": 16,
            "rope_parameters": {name: one for name, one in ROPES["longrope"].items() if name != "factor"}
            | {"rope_theta": 1e4},
        },
    ),
    "gpt_neox": ("GPTNeoXConfig", SIZES),
    "gpt_neox-in-sequence": ("GPTNeoXConfig", SIZES | {"use_parallel_residual": False}),
    "gptj": ("GPTJConfig", OLD | {"rotary_dim": 2}),
    "opt": (
        "OPTConfig",
        {name: one for name, one in SIZES.items() if name not in ("intermediate_size", "initializer_range")}
        | {"word_embed_proj_dim": 16, "ffn_dim": 32, "init_std": 0.4},
    ),
    "bloom": ("BloomConfig", {"hidden_size": 16, "n_layer": 2, "n_head": 4, "initializer_range": 0.4}),
    "falcon": ("FalconConfig", FALCON),
    "falcon-grouped": ("FalconConfig", FALCON | {"num_kv_heads": 2, "new_decoder_architecture": True}),
    "falcon-alibi": (
        "FalconConfig",
        FALCON | {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
    ),
    "stablelm": ("StableLmConfig", SIZES | GROUPED | {"partial_rotary_factor": 0.5}),
    "stablelm-parallel": (
        "StableLmConfig",
        SIZES | GROUPED | {"partial_rotary_factor": 0.5, "qk_layernorm": True, "use_parallel_residual": True},
    ),
    "smollm3": ("SmolLM3Config", SIZES | GROUPED | {"pad_token_id": 0, "no_rope_layers": [1, 0]}),
    # Families that nobody asked for by name.
    "cohere": ("CohereConfig", SIZES | GROUPED | {"use_qk_norm": True}),
    "granite": (
        "GraniteConfig",
        SIZES | GROUPED | {"residual_multiplier": 0.3, "attention_multiplier": 0.2, "logits_scaling": 2.0},
    ),
    "gpt_oss": (
        "GptOssConfig",
        SIZES | GROUPED | {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    ),
    "mpt": ("MptConfig", {"d_model": 16, "n_layers": 2, "n_heads": 4, "max_seq_len": 64, "initializer_range": 0.4}),
    "gpt_neo": (
        "GPTNeoConfig",
        {"hidden_size": 16, "num_layers": 2, "num_heads": 4, "window_size": 8, "max_position_embeddings": 64}
        | {"attention_types": [[["global", "local"], 1]], "initializer_range": 0.4},
    ),
    "deepseek_v3": (
        "DeepseekV3Config",
        SIZES
        | {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 6}
        | {"first_k_dense_replace": 1, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2}
        | {"num_key_value_heads": 4, "moe_intermediate_size": 8},
    ),
}
DECODERS |= {
    "llama4_text": (
        "Llama4TextConfig",
        SIZES | GROUPED | {"head_dim": 4, "intermediate_size_mlp": 32, "num_local_experts": 2, "moe_layers": [1]},
    ),
    "granite_swa": ("GraniteSWAConfig", SIZES | GROUPED | {"sliding_window": 8}),
}
"""Models of two layers that must be read, by name: the class of the configuration and what it is given."""
OTHERS = {
    "bert": ("BertConfig", SIZES),
    "bert-causal": ("BertConfig", SIZES | {"is_decoder": True}),
    "opt-350m": ("OPTConfig", DECODERS["opt"][1] | {"do_layer_norm_before": False, "word_embed_proj_dim": 8}),
    "mamba": ("MambaConfig", {"hidden_size": 16, "num_hidden_layers": 2}),
    "lfm2": ("Lfm2Config", SIZES | GROUPED | {"layer_types": ["full_attention", "conv"]}),
    "deepseek_v32": (
        "DeepseekV32Config",
        DECODERS["deepseek_v3"][1] | {"index_topk": 12, "index_n_heads": 2, "index_head_dim": 8, "head_dim": 4},
    ),
    "bart": ("BartConfig", {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "pad_token_id": 0}),
}
"""Models that can't be read as a decoder is here."""


def tiny_config(family, vocabulary_size=VOCABULARY):
    import transformers

    name, options = (DECODERS | OTHERS)[family]
    return getattr(transformers, name)(**options | {"vocab_size": vocabulary_size})


def tiny_tokenizer(*, puts_start_token):
    """Byte-level BPE of 260 tokens with one special token, which it may put before every text."""
    import tokenizers
    import transformers
    from tokenizers import decoders, pre_tokenizers, processors, trainers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=260,
        special_tokens=[START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat"] * 3, trainer)
    if puts_start_token:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{START} $A", special_tokens=[(START, tokenizer.token_to_id(START))]
        )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=START, eos_token=START)


def prefixing_tokenizer(words):
    """As a Llama-2 file read as a generic one: each text gets a space of its own before it; the words are tokens."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    pieces = [f"▁{word}" for word in words]
    letters = sorted({letter for piece in pieces for letter in piece} | set("abcdefghijklmnopqrstuvwxyz.,:?0123456789"))
    vocabulary, merges = {token: number for number, token in enumerate(["<s>", "<unk>", *letters])}, []
    for piece in pieces:
        for end in range(2, len(piece) + 1):
            if piece[:end] not in vocabulary:
                vocabulary[piece[:end]] = len(vocabulary)
                merges.append((piece[: end - 1], piece[end - 1]))
    tokenizer.model = models.BPE(vocabulary, merges, unk_token="<unk>")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


def save_tiny(family, folder, vocabulary_size=VOCABULARY, **options):
    """Write a model of the family with random weights, the same ones every time."""
    import torch
    import transformers

    with torch.random.fork_rng(), quiet_transformers():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(tiny_config(family, vocabulary_size))
        for name, weights in model.named_parameters():
            if name.endswith("bias"):  # else these begin at zero, and a wrong bias could not be told from none
                torch.nn.init.normal_(weights, std=0.3)
            elif weights.ndim > 1 and family not in FAMILIES:  # some ignore how wide they are told to begin
                torch.nn.init.normal_(weights, std=0.4)
        model.save_pretrained(folder, **options)
    return folder


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def change_weights(folder, change, file="model.safetensors"):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / file)
    change(weights)
    save_file(weights, folder / file, metadata={"format": "pt"})
