"""From a folder or hub name to an encoder, and what is refused before one is loaded."""

from __future__ import annotations

from typing import Any

import torch

from dro_rl.errors import UserError
from dro_rl.model_folders import local_model
from dro_rl.policy.encoder import BiEncoder, Encoder, PairEncoder
from dro_rl.policy.encoder_kind import Kind, kind_of
from dro_rl.sections.encoder import EncoderSelector


def load_encoder(section: EncoderSelector, name: str) -> Encoder:
    """The encoder that `name` holds, in float32, on this process's GPU where it has one.

    Raises:
        UserError: it is none, or lacks what it needs to score texts.
    """
    import sentence_transformers  # seconds to import

    kind = check_encoder(section, name)
    classes = {
        "bi-encoder": sentence_transformers.SentenceTransformer,
        "cross-encoder": sentence_transformers.CrossEncoder,
    }
    try:
        plain: Any = classes[kind](
            str(local_model(name, "selector.model")),
            device="cuda" if torch.cuda.is_available() else "cpu",
            model_kwargs={"use_safetensors": True},
            local_files_only=True,
            trust_remote_code=False,
        ).float()
    except Exception as error:  # a damaged file makes the library raise a dozen unrelated kinds
        raise _not_loadable(name, error) from error
    if not callable(getattr(plain, "tokenizer", None)):
        raise UserError(f"selector.model: {name} has no tokenizer of Hugging Face's kind")
    if section.max_length:
        plain.max_seq_length = min(section.max_length, plain.max_seq_length or section.max_length)
    made = BiEncoder if kind == "bi-encoder" else PairEncoder
    return made(section, plain, name).train(False)


def check_encoder(section: EncoderSelector, name: str) -> Kind:
    """Which kind of encoder a name holds, from its configuration alone.

    Raises:
        UserError: none; or it lacks its pooling or its tokenizer; or it is a cross-encoder, and
            only a head is to learn.
    """
    folder = local_model(name, "selector.model")
    kind = kind_of(folder, name)
    if not any((folder / f).is_file() for f in ("tokenizer.json", "tokenizer_config.json")):
        raise UserError(
            f"selector.model: {name} has no tokenizer (neither tokenizer.json nor "
            "tokenizer_config.json): save it there with tokenizer.save_pretrained(FOLDER)"
        )
    if kind == "cross-encoder" and section.train == "head":
        raise UserError(
            f"selector.train: head is a linear map of a bi-encoder's vectors, and {name} is a "
            "cross-encoder: set selector.train: all"
        )
    return kind


def _not_loadable(name: str, error: Exception) -> UserError:
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return UserError(
        f"selector.model: {name} cannot be loaded as an encoder of sentence-transformers "
        f"({first_line}): give a folder that the library saved, or a hub name"
    )
