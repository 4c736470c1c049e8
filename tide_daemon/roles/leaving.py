"""What may leave a server node, in which form, and the record of what did. The last gate before the bus.

Requests that opted out never get here: the engine does not write them. What is refused here as well, whatever the
engine does (one that was adopted from an older version may know less): excluded workloads, and requests whose samples
are to be forgotten.

The audit line, `samples_left_node`, is written once a request: rows, bytes, chunks, workload, and a hash of the
sample's id, so that the log holds nothing by which a sample can be found in the stream. It is written when the last
chunk was handed to the broker's connection; a chunk that the broker then never took is counted as dropped.
"""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

import structlog

from tide_daemon.wire.records import HiddenChunk
from tide_daemon.wire.withheld import first_choices, withhold

log = structlog.get_logger()

_MAX_OPEN = 4096


def audit_id(request_id: str) -> str:
    """How the audit line calls a request: 16 hex digits of a hash of its sample's id."""
    return hashlib.sha256(b"tide-audit:" + request_id.encode()).hexdigest()[:16]


@dataclass(slots=True)
class _Request:
    """A request of which something left, and whose end has not.

    Attributes:
        last_choice: the target's first choice after the newest row, -1 if it is not known.
    """

    workload: str
    num_rows: int = 0
    num_bytes: int = 0
    num_chunks: int = 0
    next_position: int = -1
    last_choice: int = -1


class Leaving:
    """Not thread-safe.

    Attributes:
        excluded: workloads of which nothing leaves.
        forgotten: ids of requests of which nothing more leaves.
        num_requests: requests whose last chunk has left.
        num_kept: chunks that were not let out.
    """

    def __init__(self, *, token_ids: bool = True, excluded: tuple[str, ...] = ()) -> None:
        self._token_ids = token_ids
        self.excluded = excluded
        self.forgotten: set[str] = set()
        self.num_requests = 0
        self.num_kept = 0
        self._open: OrderedDict[str, _Request] = OrderedDict()

    def prepare(self, chunk: HiddenChunk) -> HiddenChunk | None:
        """The chunk as it may leave, None if it may not."""
        if chunk.workload in self.excluded or chunk.request_id in self.forgotten:
            self.num_kept += 1
            self._open.pop(chunk.request_id, None)
            return None
        if self._token_ids or not len(chunk.token_ids):
            return chunk
        request = self._request(chunk)
        follows = request.next_position == chunk.first_position
        prepared = withhold(chunk, request.last_choice if follows else -1)
        request.next_position = chunk.first_position + len(chunk.token_ids)
        request.last_choice = int(first_choices(chunk.topk_ids[-1:], chunk.topk_logprobs[-1:])[0])
        return prepared

    def left(self, chunk: HiddenChunk, num_bytes: int) -> None:
        """Note a chunk of `num_bytes` encoded that was handed over."""
        request = self._request(chunk)
        request.num_rows += len(chunk.token_ids)
        request.num_bytes += num_bytes
        request.num_chunks += 1
        if chunk.last:
            self._tell(chunk.request_id, ended=True)

    def end(self) -> None:
        """Tell of the requests whose end never came."""
        for request_id in list(self._open):
            self._tell(request_id, ended=False)

    def _request(self, chunk: HiddenChunk) -> _Request:
        request = self._open.pop(chunk.request_id, None) or _Request(chunk.workload)
        self._open[chunk.request_id] = request
        while len(self._open) > _MAX_OPEN:
            self._tell(next(iter(self._open)), ended=False)
        return request

    def _tell(self, request_id: str, *, ended: bool) -> None:
        request = self._open.pop(request_id)
        if not request.num_chunks:
            return
        self.num_requests += 1
        log.info(
            "samples_left_node",
            request=audit_id(request_id),
            workload=request.workload,
            rows=request.num_rows,
            bytes=request.num_bytes,
            chunks=request.num_chunks,
            token_ids=self._token_ids,
            ended=ended,
        )
