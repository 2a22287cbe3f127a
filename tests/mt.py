"""A tiny random NLLB: the classes of the real one, and a tokenizer of single characters."""

from pathlib import Path

import torch
from transformers import M2M100Config, M2M100ForConditionalGeneration, NllbTokenizer

from tests.toy import FILLER

LANGUAGES = ["eng_Latn", "pol_Latn", "slk_Latn"]


def write_mt_model(directory: Path, *, width: int = 24, seed: int = 0) -> Path:
    """A random encoder and decoder that read the toy world's filler words."""
    characters = ["<s>", "<pad>", "</s>", "<unk>", "▁", *sorted(set("".join(FILLER)))]
    tokenizer = NllbTokenizer(
        vocab={character: number for number, character in enumerate(characters)},
        merges=[],
        additional_special_tokens=LANGUAGES,
    )
    tokenizer.save_pretrained(directory)
    torch.manual_seed(seed)
    config = M2M100Config(
        vocab_size=len(tokenizer),
        d_model=width,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=width,
        decoder_ffn_dim=width,
        init_std=0.3,
        dropout=0.5,
        max_position_embeddings=64,
    )
    M2M100ForConditionalGeneration(config).save_pretrained(directory)
    return directory


def write_speaking_mt_model(directory: Path) -> Path:
    """A random model whose translations are text that depends on both languages, not special tokens."""
    write_mt_model(directory)
    config = M2M100Config.from_pretrained(directory)
    config.tie_word_embeddings, config.init_std = False, 1.0
    torch.manual_seed(1)
    model = M2M100ForConditionalGeneration(config)
    tokenizer = NllbTokenizer.from_pretrained(directory)
    with torch.no_grad():
        # The mean of the scores of two characters is never the best score.
        weight = model.lm_head.weight
        special = set(tokenizer.all_special_ids) - {tokenizer.eos_token_id}
        plain = [number for number in range(len(tokenizer)) if number not in tokenizer.all_special_ids]
        weight[sorted(special)] = weight[plain[-2:]].mean(dim=0)
    model.save_pretrained(directory)
    return directory
