"""Which requests are captured, and how far each one is.

Decided once per request, when its first rows appear, and kept on SGLang's own request object: it is
freed with the request, whichever way that ends. What a client may say travels in `custom_params`,
which the OpenAI endpoints (chat and completions, `extra_body=`) and /generate (`sampling_params`) hand
through to `Req.sampling_params` unchanged (srt/entrypoints/openai/protocol.py 1035, 1232;
serving_completions.py 172; srt/sampling/sampling_params.py 180):

    {"custom_params": {"tide": "off"}}               nothing of this request is captured
    {"custom_params": {"tide_workload": "code"}}     label of its traffic class
    {"custom_params": {"tide_request": "<32 hex>"}}  the sample's id, by which it can be forgotten later

A request without a label may get one by the beginning of its prompt, see prefixes.py.
"""

import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import Any

import numpy as np

from tide_daemon.engine.port import CaptureSettings
from tide_daemon.engine.sglang.prefixes import PromptPrefixes
from tide_daemon.engine.sglang.settings import OPT_OUT_KEY, REQUEST_KEY, WORKLOAD_KEY

ATTRIBUTE = "tide_capture"
HEALTH_CHECK_PREFIX = "HEALTH_CHECK"
_SALT = secrets.token_bytes(16)
_SAMPLE_ID = re.compile(r"[0-9a-f]{32}")
_LABEL = re.compile(r"[A-Za-z0-9_.:/-]{0,64}")
"""Labels that a chunk may carry, see wire/kinds.py."""


@dataclass(slots=True)
class Tracked:
    """One captured request.

    Attributes:
        key: uint64 [2], random unless the client chose one for the sample; never SGLang's own id.
        workload: its label, "" for none.
        next_position: first position not yet captured; earlier ones are not captured again (a retracted
            request runs its prefill a second time).
        num_rows: rows written.
        gap: rows were dropped since the last one written.
        ended: its last row has been written, or capture of it stopped.
        plain_logits: the logits are the target's own (no penalty, bias, grammar or custom processor).
    """

    key: np.ndarray
    workload: str
    plain_logits: bool
    next_position: int = 0
    num_rows: int = 0
    gap: bool = False
    ended: bool = False


OPTED_OUT = "opted_out"
NOT_SAMPLED = "not_sampled"


def chosen(rid: str, rate: float) -> bool:
    """Whether a request id falls into the sampled share; salted, so that nobody can choose an id that does."""
    if rate >= 1.0:
        return True
    digest = hashlib.blake2b(rid.encode("utf-8", "replace"), digest_size=8, key=_SALT).digest()
    return int.from_bytes(digest, "big") < rate * 2**64


def admit(req: Any, settings: CaptureSettings, prefixes: PromptPrefixes | None = None) -> Tracked | str:
    """Decide on a request that has not been seen before.

    Args:
        prefixes: names the workload of a request without a label, None to name none.

    Returns:
        Its tracking record, or OPTED_OUT or NOT_SAMPLED.
    """
    params = req.sampling_params.custom_params
    wishes = params if isinstance(params, dict) else {}
    if wishes.get(OPT_OUT_KEY) == "off":
        return OPTED_OUT
    rid = str(req.rid)
    if rid.startswith(HEALTH_CHECK_PREFIX) or req.multimodal_inputs is not None or req.input_embeds is not None:
        return NOT_SAMPLED  # states of such requests do not follow from token ids
    label = wishes.get(WORKLOAD_KEY)
    workload = label if isinstance(label, str) and _LABEL.fullmatch(label) else ""
    if not workload and prefixes is not None:
        workload = prefixes.workload_of(req.origin_input_ids)
    if workload in settings.excluded:
        return OPTED_OUT
    if not chosen(rid, settings.rate_of(workload)):
        return NOT_SAMPLED
    return Tracked(
        key=np.frombuffer(_sample_id(wishes.get(REQUEST_KEY)), dtype="<u8"),
        workload=workload,
        plain_logits=_has_plain_logits(req),
    )


def _sample_id(wish: object) -> bytes:
    """16 bytes: the client's choice, so that it can have its sample forgotten, else random.

    Of two requests with one id the later one's chunks count as repetitions, so that a client who uses an id twice
    harms its own samples only; another's random id cannot be guessed.
    """
    if isinstance(wish, str) and _SAMPLE_ID.fullmatch(wish):
        return bytes.fromhex(wish)
    return secrets.token_bytes(16)


def _has_plain_logits(req: Any) -> bool:
    """Verification changes the logits in place for these (srt/speculative/eagle_utils.py, eagle_sample)."""
    params = req.sampling_params
    return (
        params.frequency_penalty == 0.0
        and params.presence_penalty == 0.0
        and params.repetition_penalty == 1.0
        and not params.min_new_tokens
        and not params.logit_bias
        and req.grammar is None
        and req.custom_logit_processor is None
    )
