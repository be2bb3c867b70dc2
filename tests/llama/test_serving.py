"""The server with the real engine, asked by the package `openai` as it is; and every field of its interface."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import tempfile
import urllib.error
import urllib.request

import openai
import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatFields
from openai.types.completion_create_params import CompletionCreateParamsBase as CompletionFields
from prometheus_client.parser import text_string_to_metric_families

from examples.llama2_13b import serve
from examples.llama2_13b.export import ExportFlags, export
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.generate.prompts import from_texts
from examples.llama2_13b.io import flags
from examples.llama2_13b.predict import PROGRAM as PREDICT
from examples.llama2_13b.predict import PredictFlags, Predictor
from examples.llama2_13b.serve import PROGRAM, ServeFlags, load, make_engine, rows_and_cache
from examples.llama2_13b.serving.fields import ABOUT_THE_ASKER
from examples.llama2_13b.serving.forms import NOT_IN_COMPLETIONS, NOT_IN_CONVERSATIONS
from examples.llama2_13b.serving.served_model import ServedModel
from tests.llama.conftest import EXAMPLE
from tests.llama.served import ScriptedEngine, served

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]
GREEDY = {"temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def exported(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "tiny"
    export(ExportFlags(str(tiny_folder), str(folder)))
    return folder


@pytest.fixture(scope="module")
def address(exported):
    flags_ = ServeFlags(str(exported), max_rows=4, block_size=16)
    model = ServedModel.from_folder(exported, "tiny", None)
    with served(make_engine(exported, model, flags_), model) as (_, address):
        yield address


@pytest.fixture(scope="module")
def client(address):
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def post(address, path, fields, headers=()):
    """(status, content)."""
    body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    request = urllib.request.Request(address + path, body, dict(headers), method="POST")
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def chat(address, **fields):
    return post(address, CHAT, {"model": "tiny", "messages": HELLO, **fields})


def test_the_model_is_listed(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="'other' is not served here"):
        client.models.retrieve("other")


def test_an_answer_is_that_of_predict(client, exported):
    words = ["--model_name_or_path", str(exported), "--max_length", "8", "--decode_strategy", "greedy_search"]
    predictor = Predictor(flags.parse(PredictFlags, words, PREDICT), from_texts(["hello"]))
    (prediction,) = predictor.run()
    answer = client.chat.completions.create(model="tiny", messages=HELLO, **GREEDY)
    assert answer.choices[0].message.content == prediction.output != ""
    assert answer.choices[0].message.role == "assistant" and answer.choices[0].finish_reason == "length"
    num_prompt = len(predictor._tokens[0])
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (num_prompt, 8)
    assert answer.usage.total_tokens == num_prompt + 8 and answer._request_id == answer.id


@pytest.mark.parametrize("settings", [GREEDY, {"seed": 3, "max_tokens": 12, "n": 2}])
def test_a_stream_says_what_the_whole_answer_says(client, settings):
    whole = client.chat.completions.create(model="tiny", messages=HELLO, **settings)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(model="tiny", messages=HELLO, **settings, **options))
    for choice in whole.choices:
        parts = [each for chunk in chunks for each in chunk.choices if each.index == choice.index]
        assert parts[0].delta.role == "assistant" and parts[0].delta.content == ""
        assert "".join(part.delta.content or "" for part in parts) == choice.message.content
        assert [part.finish_reason for part in parts if part.finish_reason] == [choice.finish_reason]
    assert chunks[-1].usage == whole.usage and chunks[-1].choices == []
    assert not any(chunk.usage for chunk in chunks[:-1])
    assert len({(chunk.id, chunk.created, chunk.object) for chunk in chunks}) == 1


def test_the_page_s_example_runs_as_written(address, capsys):
    page = (EXAMPLE.parents[1] / "docs/serving.md").read_text()
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    exec(code.replace("http://127.0.0.1:8000", address).replace('model="exported"', 'model="tiny", max_tokens=9'), {})
    assert capsys.readouterr().out


def test_a_stream_ends_with_done(address):
    body = json.dumps({"model": "tiny", "prompt": "a", "max_tokens": 2, "stream": True}).encode()
    with urllib.request.urlopen(urllib.request.Request(address + TEXT, body)) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        events = response.read().decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(event.removeprefix("data: "))["object"] == "text_completion" for event in events[:-2])


def test_a_prompt_may_have_four_forms(client, exported):
    tokenizer = ServedModel.from_folder(exported, "tiny", None).tokenizer
    tokens = [[*tokenizer.begin, *tokenizer.encode(text)] for text in ("hello", "type#boots")]
    one = client.completions.create(model="tiny", prompt="hello", **GREEDY)
    assert client.completions.create(model="tiny", prompt=tokens[0], **GREEDY).choices == one.choices
    two = client.completions.create(model="tiny", prompt=["hello", "type#boots"], **GREEDY)
    assert client.completions.create(model="tiny", prompt=tokens, **GREEDY).choices == two.choices
    assert two.choices[0].text == one.choices[0].text and two.usage.prompt_tokens == sum(map(len, tokens))
    assert [choice.index for choice in two.choices] == [0, 1]


def test_control_tokens_in_a_prompt_are_meant_if_asked_for(client):
    text, meant = (
        client.completions.create(model="tiny", prompt="a</s>", **GREEDY, extra_body={"parse_special": special})
        for special in (False, True)
    )
    assert text.usage.prompt_tokens > meant.usage.prompt_tokens


def test_each_choice_of_a_prompt_is_drawn_with_the_next_seed(client):
    settings = {"model": "tiny", "prompt": "hello", "max_tokens": 12, "temperature": 1.5, "top_p": 1}
    three = client.completions.create(**settings, n=3, seed=5)
    alone = [client.completions.create(**settings, seed=seed).choices[0].text for seed in (5, 6, 7)]
    assert [choice.text for choice in three.choices] == alone and len(set(alone)) == 3
    unseeded = {client.completions.create(**settings).choices[0].text for _ in range(3)}
    assert len(unseeded) == 3


def test_echo_writes_the_prompt_first(client):
    plain = client.completions.create(model="tiny", prompt="hello", **GREEDY).choices[0].text
    assert (
        client.completions.create(model="tiny", prompt="hello", echo=True, **GREEDY).choices[0].text == "hello" + plain
    )
    chunks = client.completions.create(model="tiny", prompt="hello", echo=True, stream=True, **GREEDY)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "hello" + plain


def test_a_bias_decides_and_16_tokens_are_the_limit_of_a_completion(client):
    answer = client.completions.create(model="tiny", prompt="a", temperature=0, logit_bias={"40": 100})
    assert len(set(answer.choices[0].text)) == 1 and answer.usage.completion_tokens == 16


def test_the_parts_of_a_message_are_joined(client):
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    whole, divided = (
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": content}], **GREEDY)
        for content in ("hello", parts)
    )
    assert whole.choices[0].message == divided.choices[0].message


def test_the_model_s_chat_template_writes_the_conversation(exported, tmp_path):
    """Its own words are control tokens where they are names; those of a user are text."""
    folder = shutil.copytree(exported, tmp_path / "tiny")
    line = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    refusal = "{% if messages[0].role != 'system' %}{{ raise_exception('who am I?') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(refusal + line)
    model = ServedModel.from_folder(folder, "tiny", None)
    engine = ScriptedEngine()
    messages = [{"role": "developer", "content": "kind"}, {"role": "user", "content": "</s>"}]
    with served(engine, model) as (_, address):
        assert chat(address, messages=messages, max_tokens=1)[0] == 200
        status, content = chat(address)
    pieces = [("<s>[system]kind</s>[user]", True), ("</s>", False), ("</s>", True)]
    assert engine.added[0].prompt == tuple(model.tokenizer.encode_parts(pieces))
    assert status == 400 and "who am I?" in content["error"]["message"] and content["error"]["param"] == "messages"


def test_the_model_s_own_settings_hold_where_a_request_says_nothing(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "tiny")
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False, "max_new_tokens": 3}))
    state = load(flags.parse(ServeFlags, ["--model", str(folder), "--max_rows", "2"], PROGRAM))
    assert state.model.defaults.is_greedy and state.model.max_new_tokens == 3 and state.model.name == "tiny"
    with served(state.engine._engine, state.model) as (_, address):
        content = chat(address)[1]
    assert content["usage"]["completion_tokens"] == 3


OURS = {"model", "messages", "prompt", "stream", "stream_options"}
DONE = OURS | set(
    """frequency_penalty logit_bias logprobs max_tokens max_completion_tokens n presence_penalty seed stop
temperature top_logprobs top_p echo""".split()
)


@pytest.mark.parametrize(
    "path, fields, not_done", [(CHAT, ChatFields, NOT_IN_CONVERSATIONS), (TEXT, CompletionFields, NOT_IN_COMPLETIONS)]
)
def test_every_field_of_the_interface_is_done_or_refused_by_name(address, path, fields, not_done):
    """The package `openai` lists them."""
    for name in fields.__annotations__:
        if name in DONE or name in ABOUT_THE_ASKER:
            assert name not in not_done
            continue
        status, content = post(address, path, {"model": "tiny", "messages": HELLO, name: "surely not"})
        if path == TEXT:
            status, content = post(address, path, {"model": "tiny", "prompt": "a", name: "surely not"})
        assert (status, content["error"]["param"]) == (400, name)
        assert content["error"]["code"] == "unsupported_parameter", content


@pytest.mark.parametrize("name", sorted(NOT_IN_CONVERSATIONS))
def test_a_field_that_asks_for_nothing_is_taken(address, name):
    for value in (None, *NOT_IN_CONVERSATIONS[name]):
        assert chat(address, max_tokens=1, **{name: value})[0] == 200


WRONG = [
    ({"model": "other"}, 404, "model", "model 'other' is not served here; 'tiny' is"),
    ({"model": None}, 400, "model", "model must be the name of a model, such as tiny"),
    ({"modle": "tiny"}, 400, "modle", "modle is no field of this request"),
    ({"\ud800": 1}, 400, "?", "? is no field of this request"),
    ({"n": 0}, 400, "n", "n must be an integer from 1 to 128, got 0"),
    ({"n": 9}, 400, "n", "at most 8 answers, got 9"),
    ({"n": True}, 400, "n", "got True"),
    ({"stream": 1}, 400, "stream", "stream must be true or false, got 1"),
    ({"stream_options": {"usage": True}}, 400, "stream_options.usage", "not known"),
    ({"temperature": -1}, 400, "temperature", "temperature must be at least 0, got -1"),
    ({"temperature": "hot"}, 400, "temperature", "temperature must be at least 0, got 'hot'"),
    ({"top_p": 1.5}, 400, "top_p", "top_p must be in"),
    ({"presence_penalty": 3}, 400, "presence_penalty", "presence_penalty must be in"),
    ({"seed": 0.5}, 400, "seed", "seed must be an integer"),
    ({"logit_bias": {"512": 1}}, 400, "logit_bias", "logit_bias must be of token ids below 512, got '512'"),
    ({"logit_bias": {"5": 101}}, 400, "logit_bias", "in [-100, 100]"),
    ({"logit_bias": [1]}, 400, "logit_bias", "logit_bias must be an object"),
    ({"stop": ["a"] * 5}, 400, "stop", "at most 4 texts"),
    ({"stop": ""}, 400, "stop", "none of them empty"),
    ({"max_tokens": 0}, 400, "max_tokens", "at least 1"),
    ({"max_tokens": 1, "max_completion_tokens": 2}, 400, "max_tokens", "left out with max_completion_tokens"),
    ({"max_tokens": 255}, 400, "messages", "255 new ones are asked for"),
    ({"top_logprobs": 2}, 400, "top_logprobs", "left out without logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs", "from 0 to 20"),
    ({"messages": []}, 400, "messages", "at least one message"),
    ({"messages": [{"role": "user"}]}, 400, "messages[0].content", "a text or a list of parts"),
    ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0].role", "got 'tool'"),
    ({"messages": [{"role": "system", "content": "x"}, *HELLO]}, 400, "messages[0].role", "has no chat template"),
    ({"messages": [*HELLO, {"role": "assistant", "content": "x"}]}, 400, "messages", "ended by a user's message"),
    ({"messages": [{**HELLO[0], "tool_calls": [1]}]}, 400, "messages[0].tool_calls", "not supported"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages[0].content[0]", "image_url"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "messages[0].content", "Unicode"),
    ({"messages": [{"role": "user", "content": "long " * 300}]}, 400, "messages", "255"),
    ({"messages": [{"role": "user", "content": "x" * 16_321}]}, 400, "messages", "16320"),
]  # fmt: skip


@pytest.mark.parametrize("changes, status, param, text", WRONG)
def test_what_is_wrong_is_named(address, changes, status, param, text):
    got, content = chat(address, **changes)
    assert (got, content["error"]["param"]) == (status, param) and text in content["error"]["message"]
    assert content["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("prompt", [None, [], [[]], "", [["a"]], [1, "a"], [512], [[-1]], {"a": 1}, [None]])
def test_a_prompt_of_another_form_is_refused(address, prompt):
    status, content = post(address, TEXT, {"model": "tiny", "prompt": prompt, "max_tokens": 1})
    assert status == (200 if prompt == "" else 400) and (prompt == "" or content["error"]["param"] == "prompt")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1]",
        b"null",
        b"\xff\xfe",
        b'{"model": NaN}',
        b'{"n": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b"{}x",
    ],
    ids=lambda body: repr(body[:12]),
)
def test_what_is_no_json_object_is_refused(address, body):
    status, content = post(address, CHAT, body)
    assert status == 400 and content["error"]["code"] == "invalid_json"


@pytest.mark.parametrize("stream", [False, True])
def test_an_end_token_is_no_part_of_an_answer(client, stream):
    """Nor of its count and logprobs, unless it is a token like others."""
    settings = {"model": "tiny", "prompt": "hello", "logit_bias": {"2": 100}, "logprobs": 1, "temperature": 0}
    for ignore_eos, count in ((False, 0), (True, 3)):
        asked = {**settings, "max_tokens": 3, "extra_body": {"ignore_eos": ignore_eos}}
        if stream:
            chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
            told = [len(chunk.choices[0].logprobs.tokens) for chunk in chunks[:-1] if chunk.choices[0].logprobs]
            reason, usage = chunks[-2].choices[0].finish_reason, chunks[-1].usage
        else:
            answer = client.completions.create(**asked)
            told, usage = [len(answer.choices[0].logprobs.tokens)], answer.usage
            reason = answer.choices[0].finish_reason
        assert sum(told) == usage.completion_tokens == usage.total_tokens - usage.prompt_tokens == count
        assert reason == ("length" if ignore_eos else "stop")


def test_logprobs_in_both_forms(client):
    answer = client.chat.completions.create(model="tiny", messages=HELLO, logprobs=True, top_logprobs=3, **GREEDY)
    content = answer.choices[0].logprobs.content
    assert len(content) == 8
    for entry in content:
        assert entry.logprob == entry.top_logprobs[0].logprob and entry.token == entry.top_logprobs[0].token
        assert len(entry.top_logprobs) == 3 and sum(math.exp(each.logprob) for each in entry.top_logprobs) < 1
        assert entry.bytes is None or bytes(entry.bytes).decode() == entry.token
    settings = {"model": "tiny", "prompt": "hello", "logprobs": 2, **GREEDY}
    whole = client.completions.create(**settings).choices[0].logprobs
    assert len(whole.tokens) == len(whole.token_logprobs) == len(whole.top_logprobs) == len(whole.text_offset) == 8
    chunks = [chunk.choices[0].logprobs for chunk in client.completions.create(**settings, stream=True)]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [one for each in chunks if each for one in getattr(each, name)] == getattr(whole, name)
    assert client.completions.create(model="tiny", prompt="a", **GREEDY).choices[0].logprobs is None


def test_an_answer_ends_before_a_stop_string(client):
    whole = client.completions.create(model="tiny", prompt="hello", **GREEDY).choices[0]
    stop = whole.text[3]
    cut = client.completions.create(model="tiny", prompt="hello", stop=stop, **GREEDY).choices[0]
    assert (cut.text, cut.finish_reason) == (whole.text[: whole.text.index(stop)], "stop")
    chunks = client.completions.create(model="tiny", prompt="hello", stop=[stop], stream=True, **GREEDY)
    assert "".join(chunk.choices[0].text for chunk in chunks) == cut.text


def test_the_figures_are_prometheus_and_count(client, address):
    def figures():
        with urllib.request.urlopen(address + "/metrics") as response:
            families = text_string_to_metric_families(response.read().decode())
            return {(each.name, *sorted(each.labels.values())): each.value for one in families for each in one.samples}

    before = figures()
    client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=5, temperature=0, n=2)
    chat(address, n=0)
    after = figures()
    grown = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
    assert grown[("fusionkit_requests_total", CHAT, "answered")] == 1
    assert grown[("fusionkit_requests_total", CHAT, "refused")] == 1
    assert grown[("fusionkit_time_to_first_token_seconds_count",)] == 2
    assert grown[("fusionkit_time_between_tokens_seconds_count",)] == 8
    assert grown[("fusionkit_engine_generated_tokens_total",)] == 10
    assert after[("fusionkit_engine_free_blocks",)] == after[("fusionkit_engine_total_blocks",)] > 0
    for name in ("running", "waiting"):
        assert after[(f"fusionkit_engine_{name}",)] == 0
    assert {("fusionkit_engine_preemptions_total",), ("fusionkit_engine_prefix_hit_tokens_total",)} <= set(after)


@pytest.mark.parametrize(
    "words, text",
    [
        (["--dtype", "int8"], "--dtype must be float32 or bfloat16 or float16, got int8"),
        (["--port", 65536], "--port must be from 0 to 65535"),
        (["--api_key", " "], "--api_key must be a text that is not empty, got an empty one"),
        (["--max_rows", 0], "--max_rows must be at least 1"),
        (["--max_rows", 600], "--max_tokens_per_step must be at least max_rows"),
        (["--request_seconds", 0], "--request_seconds must be above 0"),
        (["--prot", 1], "there is no flag --prot; did you mean --port"),
    ],
)
def test_bad_flags_are_refused(words, text):
    with pytest.raises(ValueError, match=text):
        flags.parse(ServeFlags, ["--model", "m", *map(str, words)], PROGRAM)


@pytest.mark.parametrize(
    "config, dtype, positions, words, rows, tokens",
    [
        ("llama2_13b", "bfloat16", 1024, {}, 2, 1310),  # 2 * 40 layers * 5120 * 2 bytes are 0.8 MB a token
        ("llama2_13b", "bfloat16", 1024, {"max_rows": 16}, 16, 1310),
        ("llama2_13b", "int8", 1024, {}, 4, 2542),  # 132 bytes in place of 256, of a head's key
        ("llama2_13b", "float32", 4096, {}, 8, 4096),  # a row of 6.7 GB
        ("llama2_13b", "bfloat16", 4096, {"cache_tokens": 100}, 1, 100),
        ("llama2_13b", "bfloat16", 4096, {"cache_tokens": 10240}, 20, 10240),
        ("tiny", "float32", 256, {}, 64, 64 * 256),
        ("tiny", "float32", 256, {"max_rows": 4}, 4, 4 * 256),
        ("tiny", "float32", 256, {"max_tokens_per_step": 9}, 9, 9 * 256),
    ],
)
def test_rows_follow_the_cache_which_holds_a_gibibyte_or_a_row(config, dtype, positions, words, rows, tokens):
    config = LlamaConfig.from_json(EXAMPLE / f"configs/{config}.json")
    assert rows_and_cache(config, dtype, positions, ServeFlags("m", **words)) == (rows, tokens)


def test_an_exported_folder_has_its_own_dtype(exported):
    with pytest.raises(ValueError, match="--dtype must be left out with an exported folder"):
        load(ServeFlags(str(exported), dtype="bfloat16"))


def test_a_signal_during_the_export_leaves_no_folder_behind(tiny_folder, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(serve, "export", lambda _: signal.raise_signal(signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit, match="143"):
            serve.serve(ServeFlags(str(tiny_folder), port=0))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not list(tmp_path.iterdir())


def test_a_model_s_folder_is_exported_and_the_export_is_gone_again(tiny_folder, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    state = load(ServeFlags(str(tiny_folder), dtype="bfloat16", max_rows=2))
    assert not list(tmp_path.iterdir()) and state.model.name == tiny_folder.name
    with served(state.engine._engine, state.model) as (_, address):
        status, content = post(address, TEXT, {"model": state.model.name, "prompt": "a", **GREEDY})
    assert status == 200 and content["usage"]["completion_tokens"] == 8
