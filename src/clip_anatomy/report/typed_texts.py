"""The old place of `loading.typed_texts`."""

from clip_anatomy.loading.typed_texts import TypedText as Question
from clip_anatomy.loading.typed_texts import checked_texts as ask
from clip_anatomy.loading.typed_texts import foreign_share, shorten, words_read

__all__ = ["Question", "ask", "foreign_share", "shorten", "words_read"]
