"""A miniature of the training of the built-in world's models."""

from __future__ import annotations

import math

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from dro_rl.data.facts.curriculum import pretrain
from dro_rl.data.facts.tokenizer import vocabulary

pytestmark = pytest.mark.integration


@pytest.mark.timeout(60)
def test_miniature_training_learns_to_repeat_and_saves_a_model(tmp_path):
    seen = []
    figures = pretrain(tmp_path, seed=0, steps=100, scale=0.3, report=seen.append)
    chance = math.log(len(vocabulary()))
    assert seen[-1] == figures
    assert figures["step"] == 100
    assert figures["loss"] < chance - 0.2

    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("Question: Name the Kovac hometown.\nAnswer:", return_tensors="pt")
    written = model.generate(**ids, max_new_tokens=2, do_sample=False)
    assert written.shape[1] > ids.input_ids.shape[1]
