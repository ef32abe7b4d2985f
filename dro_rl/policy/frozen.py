"""`selector.train: head`: a linear map after a frozen encoder, whose vectors are kept.

The head is the encoder's last Dense module; one without gets one that changes nothing yet. Saved,
it is a module like the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dro_rl.policy.vectors import TaskText, vectors_in

Encode = Callable[[Sequence[TaskText], Any], Tensor]

_FORMAT = 1  # raise it when the layout of the vectors' files changes
_LIBRARIES = ("torch", "transformers", "sentence-transformers")
_OF_A_FILE = ("_name_or_path", "architectures", "dtype", "transformers_version")


class Frozen:
    """Vectors of texts through the head, with its graph; the rest of the encoder has none.

    Args:
        plain: a SentenceTransformer; its head is the only part that learns from now on.
        encode: makes vectors of (task, text) by the modules that it is given.
        cache: the folder in which a folder of this encoder's vectors is kept.
    """

    def __init__(self, plain: Any, encode: Encode, cache: Path) -> None:
        from sentence_transformers.base.modules import Dense

        modules = list(plain)
        places = [i for i, module in enumerate(modules) if isinstance(module, Dense)]
        if not places:
            width = plain.get_embedding_dimension()
            head = Dense(width, width, False, nn.Identity(), init_weight=torch.eye(width))
            places = [len(modules)]
            plain.append(head.to(plain.device))
            modules.append(head)
        plain.requires_grad_(False)
        modules[places[-1]].requires_grad_(True)
        self.body, self.head = nn.ModuleList(modules[: places[-1]]), modules[places[-1] :]
        self.device = plain.device
        self.encode = encode
        made = digest(list(self.body), self.body.state_dict(), plain)
        self.vectors = vectors_in(cache / f"encoder-{made}")

    def __call__(self, texts: Sequence[TaskText]) -> Tensor:
        """(T, d)."""
        with torch.no_grad():
            rows = self.vectors.of(texts, self._vector)
        features: dict[str, Any] = {"sentence_embedding": rows.to(self.device)}
        for module in self.head:
            features = module(features)
        return features["sentence_embedding"]

    def _vector(self, text: TaskText) -> Tensor:
        """Of a text alone: what it is beside would show in the last bit."""
        return self.encode([text], self._through_body)[0]

    def _through_body(self, features: dict[str, Any], **options: Any) -> dict[str, Any]:
        for module in self.body:
            known = getattr(module, "forward_kwargs", ())  # as sentence-transformers itself asks
            features = module(features, **{k: v for k, v in options.items() if k in known})
        return features


def digest(parts: Sequence[Any], frozen: Mapping[str, Tensor], plain: Any) -> str:
    """Stands for what frozen modules make of texts, to the last bit.

    Args:
        parts: modules of sentence-transformers.
        frozen: those of their weights that matter, by name.
        plain: the encoder that they are of.
    """
    modules = [(type(part).__name__, part.get_config_dict()) for part in parts]
    made = (_FORMAT, plain.device.type, *map(version, _LIBRARIES))
    read = (
        plain.max_seq_length,
        getattr(plain, "prompts", None),
        getattr(plain, "default_prompt_name", None),
        modules,
        [_config(module) for part in parts for module in part.modules()],
        _tokenizer(plain.tokenizer),
    )
    content = hashlib.blake2b(repr((made, read)).encode(), digest_size=16)
    for name, tensor in frozen.items():
        content.update(name.encode())
        content.update(tensor.detach().cpu().contiguous().numpy().data)
    return content.hexdigest()


def _config(module: Any) -> dict[str, Any]:
    """What a model of transformers reads of its configuration, wherever it was loaded from."""
    if not isinstance(module, PreTrainedModel):
        return {}
    known = module.config.to_dict()
    return {k: v for k, v in sorted(known.items()) if k not in _OF_A_FILE}


def _tokenizer(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return repr((tokenizer.init_kwargs, tokenizer.get_vocab()))
    backend.no_truncation()  # else it stands for the last call too
    backend.no_padding()
    return backend.to_str()
