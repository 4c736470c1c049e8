import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unit.draft.conftest import random_checkpoint, small_config
from tide_daemon.draft import checkpoint as ck
from tide_daemon.draft.checkpoint import Checkpoint, content_digest, load, placeholder, save
from tide_daemon.draft.config import DraftConfig
from tide_daemon.draft.model import Eagle3Draft
from tide_daemon.errors import DraftError


def test_saved_draft_is_loaded_bit_for_bit(tmp_path: Path, checkpoint: Checkpoint) -> None:
    """Names, bits and digest survive the disk."""
    assert save(tmp_path / "d", checkpoint.config, checkpoint.tensors).digest == checkpoint.digest
    again = load(tmp_path / "d", checkpoint.digest)
    assert again.config == checkpoint.config
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in checkpoint.tensors.items())


def test_model_and_checkpoint_have_the_same_names(config: DraftConfig) -> None:
    """The model's state_dict plus the map is the checkpoint."""
    model = {name: tuple(p.shape) for name, p in Eagle3Draft(config).state_dict().items()}
    expected = {name: shape for name, (_, shape) in ck.expected_tensors(config).items() if name not in ("d2t", "t2d")}
    assert expected == model


def test_content_digest_follows_its_written_rule() -> None:
    """sha256 over sorted lines of name, dtype, shape and sha256 of the bytes."""
    tensors = {"b": torch.tensor([True, False]), "a": torch.tensor([[1, -2]])}
    bytes_a = (1).to_bytes(8, "little") + (-2).to_bytes(8, "little", signed=True)
    lines = (
        f"a I64 1,2 {hashlib.sha256(bytes_a).hexdigest()}\n" + f"b BOOL 2 {hashlib.sha256(bytes([1, 0])).hexdigest()}\n"
    )
    assert content_digest(tensors) == hashlib.sha256(lines.encode()).hexdigest()


def test_digest_sees_one_changed_bit(checkpoint: Checkpoint) -> None:
    """Two drafts that differ in one sign bit have different names."""
    tensors = dict(checkpoint.tensors)
    tensors["norm.weight"] = tensors["norm.weight"].clone()
    tensors["norm.weight"][0] *= -1
    assert content_digest(tensors) != checkpoint.digest


def test_wrong_digest_is_refused(tmp_path: Path, checkpoint: Checkpoint) -> None:
    """A draft with other content than announced does not load."""
    save(tmp_path / "d", checkpoint.config, checkpoint.tensors)
    with pytest.raises(DraftError, match="digest"):
        load(tmp_path / "d", "0" * 64)


@pytest.mark.parametrize("fault", ["missing", "extra", "shape", "dtype", "nan", "map", "mask"])
def test_faulty_tensors_are_refused(tmp_path: Path, checkpoint: Checkpoint, fault: str) -> None:
    """Every deviation from the config is named, on load and on save."""
    tensors = {name: tensor.clone() for name, tensor in checkpoint.tensors.items()}
    match fault:
        case "missing":
            del tensors["fc.weight"]
        case "extra":
            tensors["midlayer.other.weight"] = torch.ones(1)
        case "shape":
            tensors["fc.weight"] = tensors["fc.weight"][:-1].contiguous()
        case "dtype":
            tensors["fc.weight"] = tensors["fc.weight"].float()
        case "nan":
            tensors["fc.weight"][0, 0] = float("nan")
        case "map":
            tensors["d2t"][0] = 1000
        case "mask":
            tensors["t2d"][:] = False
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "config.json").write_text(checkpoint.config.to_json())
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(DraftError):
        load(folder)
    with pytest.raises(DraftError):
        save(tmp_path / "other", checkpoint.config, tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"{}", b"\xff" * 16])
def test_files_that_are_no_checkpoint_are_refused(tmp_path: Path, checkpoint: Checkpoint, content: bytes) -> None:
    """Truncated or foreign files give the documented error."""
    save(tmp_path / "d", checkpoint.config, checkpoint.tensors)
    for name in ("model.safetensors", "config.json"):
        kept = (tmp_path / "d" / name).read_bytes()
        (tmp_path / "d" / name).write_bytes(content)
        with pytest.raises(DraftError):
            load(tmp_path / "d")
        (tmp_path / "d" / name).write_bytes(kept)
    with pytest.raises(DraftError):
        load(tmp_path / "nowhere")


def test_saving_replaces_an_older_draft_whole(tmp_path: Path, config: DraftConfig) -> None:
    """The second draft is there, the first is gone, and no temporary directory stays."""
    save(tmp_path / "d", config, random_checkpoint(config, 1).tensors)
    second = random_checkpoint(config, 2)
    save(tmp_path / "d", config, second.tensors)
    assert load(tmp_path / "d").digest == second.digest
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_full_disk_leaves_the_older_draft(tmp_path: Path, config: DraftConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """When writing fails, what was there is still there and nothing half-written is."""
    first = random_checkpoint(config, 1)
    save(tmp_path / "d", config, first.tensors)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ck, "save_file", refuse)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path / "d", config, random_checkpoint(config, 2).tensors)
    assert load(tmp_path / "d").digest == first.digest
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_placeholder_is_a_valid_draft(tmp_path: Path) -> None:
    """The untrained draft loads like any other, and is the same wherever it is made."""
    config = small_config()
    saved = save(tmp_path / "d", config, placeholder(config).tensors)
    assert load(tmp_path / "d").digest == saved.digest == placeholder(config).digest


def test_files_are_plain_safetensors_and_json(tmp_path: Path, checkpoint: Checkpoint) -> None:
    """Other readers (SGLang, vLLM) find the usual two files."""
    save(tmp_path / "d", checkpoint.config, checkpoint.tensors)
    assert set(load_file(tmp_path / "d" / "model.safetensors")) == set(checkpoint.tensors)
    assert json.loads((tmp_path / "d" / "config.json").read_text())["architectures"] == ["LlamaForCausalLMEagle3"]
