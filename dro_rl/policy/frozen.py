"""`selector.train: head`: a linear map after a frozen encoder, whose vectors are kept by text.

The head is the encoder's last Dense module; one without gets one that changes nothing yet. Saved,
it is a module like the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from dro_rl.policy.texts import drop_oldest

TaskText = tuple[str, str]
Encode = Callable[[Sequence[TaskText], Any], Tensor]


class Frozen:
    """Vectors of texts through the head, with its graph; the rest of the encoder has none.

    Args:
        plain: a SentenceTransformer; its head is the only part that learns from now on.
        encode: makes vectors of (task, text) by the modules that it is given.
    """

    def __init__(self, plain: Any, encode: Encode) -> None:
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
        self.kept = _kept(_digest(self.body, plain))

    def __call__(self, texts: Sequence[TaskText]) -> Tensor:
        """(T, d)."""
        with torch.no_grad():
            for text in texts:
                if text not in self.kept:  # alone: what a text is beside would show in a last bit
                    self.kept[text] = self.encode([text], self._through_body)[0].cpu()
        rows = torch.stack([self.kept[text] for text in texts])
        drop_oldest(self.kept)
        features: dict[str, Any] = {"sentence_embedding": rows.to(self.device)}
        for module in self.head:
            features = module(features)
        return features["sentence_embedding"]

    def _through_body(self, features: dict[str, Any], **options: Any) -> dict[str, Any]:
        for module in self.body:
            known = getattr(module, "forward_kwargs", ())  # as sentence-transformers itself asks
            features = module(features, **{k: v for k, v in options.items() if k in known})
        return features


def _digest(body: nn.Module, plain: Any) -> str:
    """Stands for what the vectors depend on."""
    parts: list[Any] = list(body.children())
    modules = [(type(part).__name__, part.get_config_dict()) for part in parts]
    read = (plain.max_seq_length, plain.prompts, modules, _tokenizer(plain.tokenizer))
    content = hashlib.blake2b(repr(read).encode())
    for name, tensor in body.state_dict().items():
        content.update(name.encode())
        content.update(tensor.cpu().contiguous().numpy().data)
    return content.hexdigest()


def _tokenizer(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return repr((tokenizer.init_kwargs, tokenizer.get_vocab()))
    backend.no_truncation()  # else it stands for the last call too
    backend.no_padding()
    return backend.to_str()


@cache
def _kept(body: str) -> dict[TaskText, Tensor]:
    """The vectors of a frozen body: in one process engine, learner and further runs share them."""
    return {}
