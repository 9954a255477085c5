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
START = "<|start|>"


def tiny_config(family, vocabulary_size=VOCABULARY):
    import transformers

    sizes = SIZES | {"vocab_size": vocabulary_size}
    grouped = sizes | {"num_key_value_heads": 2}
    return {
        "gpt2": lambda: transformers.GPT2Config(
            vocab_size=vocabulary_size, n_positions=64, n_embd=16, n_layer=2, n_head=4, initializer_range=0.4
        ),
        "llama": lambda: transformers.LlamaConfig(**grouped),
        "qwen2": lambda: transformers.Qwen2Config(**grouped),
        "gemma3_text": lambda: transformers.Gemma3TextConfig(
            **grouped, head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
        ),
        "gpt_neox": lambda: transformers.GPTNeoXConfig(**sizes),
        "bert": lambda: transformers.BertConfig(**sizes, is_decoder=True),
        "opt": lambda: transformers.OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            word_embed_proj_dim=16,
            ffn_dim=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
        ),
        "mamba": lambda: transformers.MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2),
    }[family]()


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
        model.save_pretrained(folder, **options)
    return folder


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def change_weights(folder, change, file="model.safetensors"):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / file)
    change(weights)
    save_file(weights, folder / file, metadata={"format": "pt"})
