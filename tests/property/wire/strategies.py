"""Hypothesis strategies for every record, read off the field tables: each draws from all that is allowed.

Fields that must fit each other are drawn together, in FITTING.
"""

import dataclasses
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tide_daemon.wire import containers, fields, kinds, records
from tide_daemon.wire.containers import INT64_MIN
from tide_daemon.wire.fields import INT64_MAX
from tide_daemon.wire.structs import Struct

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(INT64_MIN, INT64_MAX)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
MAX_ITEMS = 4


def values(field: fields.Field) -> st.SearchStrategy[Any]:
    """Values of one field."""
    match field:
        case fields.Int(low, high):
            return st.integers(low, high)
        case fields.Float(low, high):
            finite = {"allow_nan": False, "allow_infinity": False}
            return st.floats(None if low == -np.inf else low, None if high == np.inf else high, **finite)
        case fields.Bool():
            return st.booleans()
        case fields.Str(max_length, pattern):
            if pattern:
                return st.from_regex(pattern, fullmatch=True)
            return st.text(st.characters(exclude_categories=["Cs"]), max_size=min(max_length, 40))
        case fields.Text(max_length):
            return st.text(st.characters(exclude_categories=["Cs"]), max_size=min(max_length, 40))
        case fields.Label(max_length):
            return st.text("abcXYZ019_.:/-", max_size=max_length)
        case fields.Choice(words):
            return st.sampled_from(words)
        case fields.Bin():
            return st.binary(max_size=200)
        case containers.Optional(item):
            return st.none() | values(item)
        case containers.Array(item):
            return st.lists(values(item), max_size=MAX_ITEMS).map(tuple)
        case containers.Tuple(items):
            return st.tuples(*(values(item) for item in items))
        case containers.Map(item):
            return st.dictionaries(TEXT, values(item), max_size=MAX_ITEMS)
        case containers.Json():
            return JSON
        case Struct():
            return structs(field)
        case _:
            raise TypeError(f"no strategy for {field}")


def structs(struct: Struct) -> st.SearchStrategy[Any]:
    """Records of one dataclass."""
    drawn = st.builds(struct.record, **{name: values(field) for name, field in struct.fields.items()})
    fit = FITTING.get(struct.record)
    return drawn if fit is None else drawn.flatmap(fit)


def _ascending(largest: int, min_size: int = 0) -> st.SearchStrategy[tuple[int, ...]]:
    return st.sets(st.integers(min_size, largest), min_size=min_size, max_size=MAX_ITEMS).map(
        lambda s: tuple(sorted(s))
    )


def _spec(spec: records.TargetSpec) -> st.SearchStrategy[Any]:
    return _ascending(kinds.MAX_LAYER, 1).map(lambda layers: dataclasses.replace(spec, aux_layer_ids=layers))


def _tensor(tensor: records.TensorEntry) -> st.SearchStrategy[Any]:
    shapes = st.lists(st.integers(0, 1024), max_size=4).map(tuple)
    return shapes.map(lambda shape: dataclasses.replace(tensor, shape=shape))


def _manifest(manifest: records.DraftManifest) -> st.SearchStrategy[Any]:
    return st.just(
        dataclasses.replace(
            manifest,
            base_digest="" if manifest.base_version is None else manifest.content_digest,
            parts=tuple(dataclasses.replace(part, index=index) for index, part in enumerate(manifest.parts)),
            tensors=tuple({tensor.name: tensor for tensor in manifest.tensors}.values()),
        )
    )


def _step_stats(stats: records.StepStats) -> st.SearchStrategy[Any]:
    return st.lists(st.integers(0, INT64_MAX), max_size=MAX_ITEMS).map(
        lambda counts: dataclasses.replace(stats, num_steps=len(counts), accepted_at=tuple(counts))
    )


def _desired_server(desired: records.DesiredServer) -> st.SearchStrategy[Any]:
    digest = "" if desired.draft_version == 0 else "a" * 64
    return st.dictionaries(st.integers(1, 500), st.integers(0, kinds.MAX_STEPS), max_size=MAX_ITEMS).map(
        lambda table: dataclasses.replace(desired, draft_digest=digest, steps_table=tuple(sorted(table.items())))
    )


def _desired_trainer(desired: records.DesiredTrainer) -> st.SearchStrategy[Any]:
    return st.just(dataclasses.replace(desired, serving_digest="" if desired.serving_version == 0 else "b" * 64))


def _operator_request(request: records.OperatorRequest) -> st.SearchStrategy[Any]:
    version = max(1, request.version) if request.action == "forget" else request.version
    return st.just(dataclasses.replace(request, version=version, digest="" if version == 0 else "c" * 64))


@st.composite
def _target_rows(draw: st.DrawFn, rows: records.TargetRows) -> records.TargetRows:
    num_rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 16))
    first_row = draw(st.integers(0, 1000))
    data = draw(st.binary(min_size=2 * num_rows * width, max_size=2 * num_rows * width))
    total_rows = first_row + num_rows + draw(st.integers(0, 100))
    return dataclasses.replace(
        rows, first_row=first_row, num_rows=num_rows, total_rows=total_rows, width=width, data=data
    )


FITTING: dict[type, Any] = {
    records.TargetSpec: _spec,
    records.TensorEntry: _tensor,
    records.DraftManifest: _manifest,
    records.StepStats: _step_stats,
    records.DesiredServer: _desired_server,
    records.DesiredTrainer: _desired_trainer,
    records.TargetRows: _target_rows,
    records.OperatorRequest: _operator_request,
}


@st.composite
def hidden_chunks(draw: st.DrawFn) -> records.HiddenChunk:
    """Chunks of up to 5 rows, of any bit patterns where the codec is lossless."""
    header = {
        name: draw(values(field))
        for name, field in kinds.HIDDEN_CHUNK_FIELDS.items()
        if not isinstance(field, fields.Bin)
    }
    num_rows, num_topk = draw(st.integers(0, 5)), draw(st.integers(0, 3))
    vocab_size = draw(st.integers(1, 500))
    spec = dataclasses.replace(header["spec"], hidden_size=draw(st.integers(1, 40)), vocab_size=vocab_size)
    width = len(spec.aux_layer_ids) * spec.hidden_size
    tokens = st.integers(-2, -1) if header["withheld"] else st.integers(0, vocab_size - 1)
    # 0x7F7F / 127 is over a float16 scale; 0x4900 is 2**19 and fits.
    largest_bits = 0x4900 if header["codec"] == "int8-block64" else 0xFFFF
    header |= {
        "spec": spec,
        "next_token_id": -1 if header["withheld"] else draw(st.integers(-1, vocab_size - 1)),
        "token_ids": draw(hnp.arrays(np.int32, num_rows, elements=tokens)),
        "loss_mask": draw(hnp.arrays(np.uint8, num_rows, elements=st.integers(0, 1))),
        "topk_ids": draw(hnp.arrays(np.int32, (num_rows, num_topk), elements=st.integers(-1, vocab_size - 1))),
        "topk_logprobs": draw(hnp.arrays(np.float16, (num_rows, num_topk), elements=st.floats(-100, 0, width=16))),
        "aux": draw(hnp.arrays(np.uint16, (num_rows, width), elements=st.integers(0, largest_bits))),
    }
    return records.HiddenChunk(**header)


BY_KIND: dict[str, st.SearchStrategy[Any]] = {
    kind.name: hidden_chunks() if kind.struct is None else structs(kind.struct) for kind in kinds.KINDS
}
