"""What the `openai` Python client does with a server, against the embedded model: one deployment for the whole file."""

import json
import threading
import time

import httpx
import openai
import pytest

from deployment import Deployment, metric, wait_until

SUM = [{"role": "user", "content": "698+62"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def deployment():
    with Deployment("--served-model-name", "tiny", "also-tiny", "--generation-config", "vllm",
                    "--enable-auto-tool-choice", "--tool-call-parser", "deepseek_v3",
                    "--enable-request-id-headers") as running:
        yield running


@pytest.fixture
def client(deployment):
    with openai.OpenAI(base_url=deployment.url + "/v1", api_key="unused", max_retries=0, timeout=60) as made:
        yield made


def chat(client, messages=SUM, **fields):
    return client.chat.completions.create(
        **{"model": "tiny", "messages": messages, "temperature": 0, "max_tokens": 32, **fields})


def complete(client, prompt="Hello", **fields):
    return client.completions.create(**{"model": "tiny", "prompt": prompt, "temperature": 0, "max_tokens": 8, **fields})


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny", "also-tiny"]


def test_chat(client):
    answer = chat(client)
    assert answer.choices[0].message.content == "698 + 62 = 760"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_chat_stream_says_the_same(client):
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == chat(client).choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0
    assert len({c.id for c in chunks}) == 1


def test_usage_in_every_chunk(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    counts = [c.usage.completion_tokens for c in complete(client, stream=True, stream_options=options)]
    assert counts == sorted(counts) and counts[0] == 1 and counts[-1] == 8


def test_completion_of_text_and_of_token_ids(client, deployment):
    ids = httpx.post(deployment.url + "/tokenize", json={"prompt": "Hello"}).json()["tokens"]
    by_text, by_ids = complete(client), complete(client, prompt=ids)
    assert by_text.choices[0].text == by_ids.choices[0].text
    assert by_text.usage.prompt_tokens == len(ids)


def test_token_ids_are_returned(client, deployment):
    choice = complete(client, extra_body={"return_token_ids": True}).choices[0]
    assert len(choice.token_ids) == 8
    text = httpx.post(deployment.url + "/detokenize", json={"tokens": choice.token_ids}).json()["prompt"]
    assert text.startswith(choice.text)


def test_batch_keeps_its_order(client):
    prompts = ["Hello", "698+62", "What is"]
    batch = complete(client, prompt=prompts)
    assert [c.index for c in batch.choices] == [0, 1, 2]
    assert [c.text for c in batch.choices] == [complete(client, prompt=p).choices[0].text for p in prompts]


def test_n_answers_follow_the_seed(client):
    def texts(seed):
        answer = complete(client, prompt=[0], n=4, temperature=1.5, seed=seed, max_tokens=12)
        return [choice.text for choice in answer.choices]

    assert texts(1) == texts(1)
    assert len(set(texts(1))) > 1
    assert texts(1)[1:] == texts(2)[:3]  # answer i of seed s is answer 0 of seed s + i


def test_greedy_with_n_is_refused(client):
    with pytest.raises(openai.BadRequestError, match="greedy"):
        complete(client, n=2)


def test_stop_string(client):
    choice = chat(client, stop=[" ="]).choices[0]
    assert choice.message.content == "698 + 62" and choice.finish_reason == "stop" and choice.stop_reason == " ="
    kept = chat(client, stop=[" ="], extra_body={"include_stop_str_in_output": True}).choices[0]
    assert kept.message.content == "698 + 62 ="


def test_stop_string_in_a_stream_is_never_shown(client):
    text = "".join(c.choices[0].delta.content or "" for c in chat(client, stop=["= 7"], stream=True))
    assert text == "698 + 62 "


def test_stop_token_id(client, deployment):
    equals = httpx.post(deployment.url + "/tokenize", json={"prompt": " ="}).json()["tokens"]
    assert len(equals) == 1
    choice = chat(client, extra_body={"stop_token_ids": equals}).choices[0]
    assert choice.finish_reason == "stop" and choice.stop_reason == equals[0]
    assert choice.message.content == "698 + 62"


def test_length_and_ignore_eos(client):
    assert complete(client, max_tokens=3).choices[0].finish_reason == "length"
    answer = chat(client, max_tokens=40, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 40 and answer.choices[0].finish_reason == "length"


def test_chat_logprobs(client):
    content = chat(client, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert all(len(token.top_logprobs) == 3 for token in content)
    assert all(token.logprob <= 0 for token in content)
    assert all(token.top_logprobs[0].token == token.token for token in content)  # greedy takes the best
    shown = b"".join(bytes(token.bytes) for token in content).decode()
    assert shown.startswith("698 + 62 = 760")


def test_completion_logprobs_with_echo(client):
    choice = complete(client, echo=True, logprobs=1, max_tokens=2).choices[0]
    assert choice.text.startswith("Hello")
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.tokens[0] == "Hello"
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.text_offset[1] == len("Hello")


def test_echo_alone(client):
    choice = complete(client, echo=True, max_tokens=0, logprobs=0).choices[0]
    assert choice.text == "Hello" and len(choice.logprobs.tokens) == 1


def test_tokens_named_by_id(client):
    body = {"return_tokens_as_token_ids": True}
    content = chat(client, logprobs=True, extra_body=body).choices[0].logprobs.content
    assert all(token.token.startswith("token_id:") for token in content)


def test_prompt_logprobs(client):
    answer = complete(client, prompt="Hello there", extra_body={"prompt_logprobs": 0})
    rows = answer.choices[0].prompt_logprobs
    assert rows[0] is None and len(rows) == answer.usage.prompt_tokens


def test_logit_bias_and_allowed_tokens(client, deployment):
    token = httpx.post(deployment.url + "/tokenize", json={"prompt": "Hello"}).json()["tokens"][0]
    assert complete(client, logit_bias={str(token): 100}, max_tokens=3).choices[0].text == "HelloHelloHello"
    allowed = {"allowed_token_ids": [token]}
    assert complete(client, max_tokens=2, extra_body=allowed).choices[0].text == "HelloHello"


def test_tools_are_offered(client):
    offered = chat(client, tools=[WEATHER])
    assert offered.usage.prompt_tokens > chat(client).usage.prompt_tokens  # they are in the prompt
    assert offered.choices[0].finish_reason in ("stop", "tool_calls", "length")


def test_required_tool_call(client):
    choice = chat(client, tools=[WEATHER], tool_choice="required", max_tokens=200).choices[0]
    assert choice.message.tool_calls[0].function.name == "weather"
    assert "city" in json.loads(choice.message.tool_calls[0].function.arguments)


def test_json_schema(client):
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
              "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    content = chat(client, response_format=wanted, max_tokens=200).choices[0].message.content
    assert isinstance(json.loads(content)["ok"], bool)


@pytest.mark.parametrize("body", [{"guided_choice": ["red", "blue"]}, {"structured_outputs": {"choice": ["red", "blue"]}}])
def test_choice_in_both_spellings(client, body):
    assert chat(client, extra_body=body).choices[0].message.content in ("red", "blue")


@pytest.mark.parametrize("fields, param", [
    ({"temperature": -1}, "temperature"),
    ({"top_p": 2}, "top_p"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 10**6}, "max_tokens"),
    ({"stop": [""]}, "stop"),
    ({"logit_bias": {"999999": 1}}, "logit_bias"),
    ({"logprobs": True, "top_logprobs": 21}, "logprobs"),
    ({"messages": []}, "messages"),
    ({"tool_choice": "required"}, "tool_choice"),
])
def test_refusals_name_the_field(client, fields, param):
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, **fields)
    assert refused.value.body["param"] == param and refused.value.body["code"] == 400


def test_prompt_that_is_too_long(client):
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        complete(client, prompt=[5] * 10**5)


def test_unknown_model(client):
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        chat(client, model="gpt-4")


def test_request_id(client):
    raw = client.with_raw_response.completions.create(
        model="tiny", prompt="x", max_tokens=1, extra_headers={"X-Request-Id": "mine"})
    assert raw.headers["x-request-id"] == "mine" and raw.parse().id == "cmpl-mine"


def test_closing_a_stream_frees_the_engine(client, deployment):
    def aborts():
        return metric(deployment.url, "vllm:request_success_total", engine="0", finished_reason="abort")

    before = aborts()
    stream = complete(client, max_tokens=3000, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    wait_until(lambda: aborts() > before, "the abort is counted")
    # The engine's state is as of its last frame to whichever loop answers.
    wait_until(lambda: complete(client, max_tokens=1) and metric(deployment.url, "vllm:num_requests_running") <= 1,
               "the engine let go of it")


def test_metrics_add_up(client, deployment):
    before = metric(deployment.url, "vllm:generation_tokens_total")
    answer = complete(client)
    assert metric(deployment.url, "vllm:generation_tokens_total") - before == answer.usage.completion_tokens


def test_async_client(deployment):
    import asyncio

    async def ask():
        async with openai.AsyncOpenAI(base_url=deployment.url + "/v1", api_key="unused", max_retries=0) as client:
            answers = await asyncio.gather(*[
                client.chat.completions.create(model="tiny", messages=SUM, temperature=0, max_tokens=32)
                for _ in range(16)
            ])
        return {answer.choices[0].message.content for answer in answers}

    assert asyncio.run(ask()) == {"698 + 62 = 760"}


def test_api_key():
    with Deployment("--executor", "fake", "--api-key", "secret") as running:
        right = openai.OpenAI(base_url=running.url + "/v1", api_key="secret", max_retries=0)
        assert right.models.list().data
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=running.url + "/v1", api_key="secre", max_retries=0).models.list()
        assert httpx.get(running.url + "/health").status_code == 200
