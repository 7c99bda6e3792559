"""Which text encoder made a conditioning, and from which texts: noted in it while a server is armed.

At sampling only states are left of a prompt. A guard for texts has to know whose states they are. The note is an object
of this process, so that no file and no request can bring one.
"""

from __future__ import annotations

import math
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from ..host.text_encoders import encoder_digest, encoder_family
from .state import Armed

KEY = "safeguidance_encoder"
"""Name of the note among the options of a conditioning."""
_MOST = 256


class TextNote:
    """Where the states of a conditioning come from.

    Args:
        clip: the CLIP that encoded them.
        texts: what was encoded, as written; empty where it is not known.
        lowest: the smallest weight of any of its words.
    """

    def __init__(self, clip: Any, texts: tuple[str, ...], lowest: float = 1.0) -> None:
        self.clip, self.texts, self.lowest = clip, texts, lowest

    def __deepcopy__(self, _memo: dict[int, Any]) -> TextNote:
        return self

    @property
    def family(self) -> str:
        """Family of the text encoders."""
        return encoder_family(self.clip)


class _Recent:
    """The last texts that were tokenized, by the very lists of tokens that came out."""

    def __init__(self) -> None:
        self._known: OrderedDict[int, tuple[Any, str]] = OrderedDict()

    def note(self, tokens: object, text: object) -> None:
        if not isinstance(tokens, Mapping) or not isinstance(text, str):
            return
        for rows in tokens.values():
            self._known[id(rows)] = rows, text
        while len(self._known) > _MOST:
            self._known.popitem(last=False)

    def texts(self, tokens: object) -> tuple[str, ...]:
        if not isinstance(tokens, Mapping):
            return ()
        found = [self._known.get(id(rows)) for rows in tokens.values()]
        named = [entry[1] for rows, entry in zip(tokens.values(), found, strict=True) if entry and entry[0] is rows]
        return tuple(dict.fromkeys(named))


def note_encoders(armed: Armed) -> None:
    """Have the host's CLIP write notes into every conditioning that it gives out."""
    import comfy.sd

    recent = _Recent()

    def tokenizes(before: Any) -> Any:
        def tokenize(self: Any, text: Any, *args: Any, **kwargs: Any) -> Any:
            tokens = before(self, text, *args, **kwargs)
            recent.note(tokens, text)
            return tokens

        return tokenize

    def encodes(before: Any) -> Any:
        def encode_from_tokens_scheduled(self: Any, tokens: Any, *args: Any, **kwargs: Any) -> Any:
            out = before(self, tokens, *args, **kwargs)
            for _, options in out:
                options[KEY] = TextNote(self, recent.texts(tokens), lowest_weight(tokens))
            return out

        return encode_from_tokens_scheduled

    armed.replaced.put(comfy.sd.CLIP, "tokenize", tokenizes)
    armed.replaced.put(comfy.sd.CLIP, "encode_from_tokens_scheduled", encodes)


def lowest_weight(tokens: object) -> float:
    """The smallest weight of a word, as in (word:1.2); what is no number counts as the smallest."""
    found, open_ = [1.0], [tokens]
    while open_:
        value = open_.pop()
        if isinstance(value, Mapping):
            open_ += value.values()
        elif isinstance(value, list):
            open_ += value
        elif isinstance(value, tuple) and len(value) > 1 and isinstance(value[1], (int, float)):
            found.append(float(value[1]) if math.isfinite(value[1]) else -math.inf)
    return min(found)


def notes_of(entries: Sequence[Mapping[str, Any]]) -> list[TextNote] | None:
    """The notes of a guider's conditioning, one per entry; None where one of them has none."""
    found = [entry.get(KEY) for entry in entries]
    notes = [note for note in found if isinstance(note, TextNote)]
    return notes if len(notes) == len(found) else None


class Digests:
    """Digests of weights as they are, computed once for each set of patches."""

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[Any, dict[Any, str]] = weakref.WeakKeyDictionary()

    def of_encoder(self, clip: Any) -> str:
        """Digest of a CLIP, as a card holds it."""
        key = clip.patcher.patches_uuid, clip.layer_idx
        return self._get(clip.cond_stage_model, key, lambda: encoder_digest(clip))

    def of_model(self, model: Any) -> str:
        """Digest of a MODEL, as a card holds it."""
        from ..host.model import weights_digest

        return self._get(model.model, model.patches_uuid, lambda: weights_digest(model))

    def _get(self, owner: Any, key: Any, make: Any) -> str:
        known = self._known.setdefault(owner, {})
        if key not in known:
            known[key] = str(make())
            while len(known) > 16:
                known.pop(next(iter(known)))
        return known[key]
