"""Samples and their paraphrases: reading, writing, checking and encoding them."""

from attribution.paraphrases.candidates import CandidateRule, choose_candidates
from attribution.paraphrases.chat import (
    encode_prompt,
    encode_turn,
    prompt_text,
    response_text,
)
from attribution.paraphrases.checks import is_translated, paraphrase_problems
from attribution.paraphrases.samples import (
    QUERY_COLUMNS,
    Column,
    Sample,
    Setting,
    Turn,
    choose_samples,
    read_samples,
    write_samples,
)
from attribution.paraphrases.writers import (
    AnthropicWriter,
    CachedWriter,
    LocalWriter,
    Writer,
    paraphrase,
)

__all__ = [
    "QUERY_COLUMNS",
    "AnthropicWriter",
    "CachedWriter",
    "CandidateRule",
    "Column",
    "LocalWriter",
    "Sample",
    "Setting",
    "Turn",
    "Writer",
    "choose_candidates",
    "choose_samples",
    "encode_prompt",
    "encode_turn",
    "is_translated",
    "paraphrase",
    "paraphrase_problems",
    "prompt_text",
    "read_samples",
    "response_text",
    "write_samples",
]
