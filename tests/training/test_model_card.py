"""The card of a trained pipeline and the folder that goes to the hub; the hub itself is never asked."""

from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from syntheocc.training.config import TrainConfig
from syntheocc.training.model_card import check_hub, hub_name, model_card, push_folder


@pytest.fixture
def config(tmp_path):
    return TrainConfig(output_dir=tmp_path / "my-streets", prompt="a | street", use_cbgs=True).resolved(8, 1200)


def test_the_card_says_what_was_trained(config):
    card = model_card(config, {"encoder_kind": "categorical", "num_planes": 256}, samples=700, steps=1200)
    head, body = card.removeprefix("---\n").split("---\n", 1)
    assert yaml.safe_load(head)["library_name"] == "diffusers"
    assert body.lstrip().startswith("# my-streets\n")
    assert 'from_pretrained("my-streets")' in body and "1200 steps on 700 samples" in body
    assert "| encoder_kind | categorical |" in body and "| use_cbgs | True |" in body
    assert "| prompt | a \\| street |" in body  # a bar would end the table's cell
    assert "| pretrained_model_name_or_path | stable-diffusion-v2-1 |" in body, "no folder of this machine"
    assert "None" not in body and str(config.output_dir.parent) not in card


def test_the_repository_is_named_after_the_folder_unless_told(config):
    assert hub_name(config) == "my-streets"
    assert hub_name(TrainConfig(hub_model_id="me/streets")) == "me/streets"
    with pytest.raises(ValueError, match="no name of a hub repository"):
        check_hub(TrainConfig(hub_model_id="me/streets/more"))


def test_a_hub_that_does_not_answer_is_an_error_with_a_remedy(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.create_repo", refuse)
    with pytest.raises(ValueError, match="no network\nLog in .* leave --push_to_hub out"):
        check_hub(TrainConfig(hub_model_id="me/streets"))


def test_only_the_pipeline_is_uploaded(monkeypatch):
    """Not the checkpoints, the logs, the latents, and not the validation strips with the data set's photographs."""
    calls = []
    monkeypatch.setattr("huggingface_hub.upload_folder", lambda **call: calls.append(call) or "there")
    assert push_folder(Path("out"), "me/streets") == "there"
    (call,) = calls
    assert call["repo_id"] == "me/streets" and call["folder_path"] == "out"

    def goes(path):
        return any(fnmatch(path, pattern) for pattern in call["allow_patterns"])

    assert all(map(goes, ["README.md", "model_index.json", "pipeline.py", "unet/diffusion_pytorch_model.safetensors"]))
    stays = ["checkpoint-5/unet/config.json", "log.jsonl", "latents/ab/t.safetensors", "validation/step-1/t.jpg"]
    assert not any(map(goes, stays))
