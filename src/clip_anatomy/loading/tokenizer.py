"""Words to token ids, and prompts to embeddings. Tokenizers are borrowed from the model's own library."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from clip_anatomy.argument_kinds import described
from clip_anatomy.errors import BadText, MissingExtra, reading
from clip_anatomy.loading.token_ids import ids_of

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")
"""Any of these beside a model is its tokenizer, in the formats of transformers."""


@runtime_checkable
class Tokenizer(Protocol):
    """Texts to ids [text, token]; pieces of one text as people read them, start and end marks included."""

    def __call__(self, texts: list[str]) -> Tensor:
        """Token ids [text, token]."""
        ...

    def pieces(self, text: str) -> list[str]:
        """Split one text into its tokens as strings, padding left out."""
        ...


@dataclass(frozen=True)
class BorrowedTokenizer:
    """A library's tokenizer behind our two verbs; both functions are of a module, so that an opened model can be pickled."""

    encode: Callable[[list[str]], Any]
    words: Callable[[list[int]], list[str]]

    def __call__(self, texts: list[str]) -> Tensor:
        """Token ids [text, token], padded to the context and cut at its end.

        Raises:
            BadText: the tokenizer fails, or returns something else than ids.
        """
        with reading(f"the tokenizer's answer for {texts[0][:40]!r}", "Type: load(..., tokenizer=...)", BadText):
            return ids_of(self.encode(texts), len(texts))

    def pieces(self, text: str) -> list[str]:
        """Split one text into its tokens as strings, padding left out."""
        ids = self([text])[0].tolist()
        while len(ids) > 1 and ids[-1] == 0:
            ids.pop()
        return self.words(ids)


def own_tokenizer(tokenizer: Any, context: int) -> Tokenizer:
    """Put a tokenizer of any library, or a function texts → ids, behind our two verbs.

    Args:
        tokenizer: of open_clip or transformers, a processor of transformers that holds one, or a function.
        context: tokens that the text tower takes at most; libraries' tokenizers pad and cut to it.
    """
    inner = getattr(tokenizer, "tokenizer", None)
    if hasattr(tokenizer, "image_processor") and inner is not None:
        tokenizer = inner
    if hasattr(tokenizer, "pieces"):
        return tokenizer
    if hasattr(tokenizer, "convert_ids_to_tokens"):
        return transformers_tokenizer(tokenizer, context)
    if type(tokenizer).__module__.startswith("open_clip"):
        return open_clip_tokenizer(tokenizer, context)
    return BorrowedTokenizer(tokenizer, partial(_open_clip_words, tokenizer))


def open_clip_tokenizer(tokenizer: Any, context: int | None = None) -> BorrowedTokenizer:
    """Wrap a tokenizer of open_clip (its SimpleTokenizer, or its wrapper around a Hugging Face one), at its own context or another."""
    return BorrowedTokenizer(partial(tokenizer, context_length=context), partial(_open_clip_words, tokenizer))


def _open_clip_words(tokenizer: Any, ids: list[int]) -> list[str]:
    inner = getattr(tokenizer, "tokenizer", None)
    if inner is not None:
        return [str(x) for x in inner.convert_ids_to_tokens(ids)]
    decode = getattr(tokenizer, "decode", None)  # a mere function cannot say its words
    return [str(i) if decode is None else decode([i]).strip() for i in ids]


def transformers_tokenizer(tokenizer: Any, context: int) -> BorrowedTokenizer:
    """Wrap a tokenizer of transformers."""
    return BorrowedTokenizer(partial(_transformers_ids, tokenizer, context), partial(_transformers_words, tokenizer))


def _transformers_ids(tokenizer: Any, context: int, texts: list[str]) -> Tensor:
    batch = tokenizer(texts, padding="max_length", truncation=True, max_length=context, return_tensors="pt")
    return batch["input_ids"]


def _transformers_words(tokenizer: Any, ids: list[int]) -> list[str]:
    names = [str(x).replace("</w>", "") for x in tokenizer.convert_ids_to_tokens(ids)]
    end = str(tokenizer.eos_token)
    return names[: names.index(end) + 1] if end in names else names


def default_tokenizer(vocabulary: int, context: int, **options: Any) -> BorrowedTokenizer | None:
    """Open CLIP's own byte-pair tokenizer (it ships with open_clip), when the vocabulary has its size; `options` are open_clip's."""
    if vocabulary != 49408:
        return None
    try:
        from open_clip import SimpleTokenizer
    except ImportError as e:
        raise MissingExtra("open_clip (CLIP's tokenizer)", "open-clip") from e
    return open_clip_tokenizer(SimpleTokenizer(context_length=context, **options), context)


def check_texts(texts: Sequence[str]) -> list[str]:
    """Return the texts as a list, or raise BadText: one string instead of a list, none at all, something else in it."""
    if isinstance(texts, str):
        raise BadText(f"texts is one string; a list was expected. Type: [{texts!r}]")
    items = list(texts)
    if not items:
        raise BadText('no text was given. Type at least one, e.g. ["a photo of a dog"]')
    for i, text in enumerate(items):
        if not isinstance(text, str):
            raise BadText(f"text {i} is a {type(text).__name__}, not a string: {text!r}. Type: str(...)")
    return items


def check_printable(texts: Sequence[str]) -> list[str]:
    """Return the texts as a list, or raise BadText: what `check_texts` refuses, or half a character, which no page and no file can hold."""
    items = check_texts(texts)
    for i, text in enumerate(items):
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise BadText(f"text {i} holds half a character: {text!r}. Type it in UTF-8")
    return items


def fill_templates(text: str, templates: Sequence[str]) -> list[str]:
    """Put a text into prompt templates, each with one `{}`."""
    if isinstance(templates, str):
        raise BadText(f"templates is one string; a list was expected. Type: [{templates!r}]")
    for template in templates:
        if not isinstance(template, str):
            raise BadText(
                f"a template is {described(template)}, not a string with one {{}}. Type, e.g.: 'a photo of a {{}}.'"
            )
        if template.count("{}") != 1:
            raise BadText(f"template {template!r} must hold exactly one {{}}. Type, e.g.: 'a photo of a {{}}.'")
    return [template.replace("{}", text) for template in templates]


def average_each(embeddings: Tensor, prompts: Sequence[Sequence[str]]) -> Tensor:
    """Average the embeddings of the prompts of several classes, which lie one after the other; see `average_prompts`."""
    return torch.stack([average_prompts(some) for some in embeddings.split([len(some) for some in prompts])])


def average_prompts(embeddings: Tensor) -> Tensor:
    """Average several prompts of one text as CLIP does: normalise each, mean, normalise. [prompt, embed] → [embed]."""
    unit = torch.nn.functional.normalize(embeddings, dim=-1)
    return torch.nn.functional.normalize(unit.mean(0), dim=-1)
