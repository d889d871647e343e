"""Verifies the public surface: sync and asyncio clients match, unknown options are refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

import chorus_client
import pytest
from chorus_client import (
    AsyncCacheClient,
    AsyncChorusClient,
    AsyncGenerationHandle,
    CacheClient,
    ChorusClient,
    GenerationHandle,
    SpecOptions,
)
from chorus_client.spec import build_request

PAIRS = [
    (ChorusClient, AsyncChorusClient),
    (GenerationHandle, AsyncGenerationHandle),
    (CacheClient, AsyncCacheClient),
]


def methods(kind: type) -> dict[str, Callable[..., Any]]:
    """Returns the public methods of a class, by name."""
    return {name: value for name, value in inspect.getmembers(kind, inspect.isfunction) if name[0] != "_"}


def parameters(function: Callable[..., Any]) -> list[tuple[str, Any, Any, Any]]:
    """Returns name, kind, default and annotation of each parameter."""
    signature = inspect.signature(function)
    return [(p.name, p.kind, p.default, p.annotation) for p in signature.parameters.values()]


@pytest.mark.parametrize(("sync", "asynchronous"), PAIRS)
def test_sync_and_asyncio_classes_have_the_same_methods(sync: type, asynchronous: type) -> None:
    assert methods(sync).keys() == methods(asynchronous).keys()
    for name, method in methods(sync).items():
        assert parameters(method) == parameters(methods(asynchronous)[name]), name
        assert not inspect.iscoroutinefunction(method)
        assert inspect.getdoc(method)
        assert inspect.getdoc(methods(asynchronous)[name])


@pytest.mark.parametrize("pair", [PAIRS[0], PAIRS[2]])
def test_sync_and_asyncio_clients_have_the_same_constructor(pair: tuple[type, type]) -> None:
    sync, asynchronous = (parameters(cast(Any, kind).__init__) for kind in pair)
    assert sync == asynchronous
    assert {"target", "credentials", "metadata", "interceptors", "timeout"} <= {name for name, *_ in sync}


def test_every_call_has_a_deadline() -> None:
    without = {"close", "handle", "with_tenant", "with_token"}
    for _, asynchronous in PAIRS:
        for name, method in methods(asynchronous).items():
            assert ("timeout" in inspect.signature(method).parameters) != (name in without), name


def test_every_public_name_exists_and_is_documented() -> None:
    for name in chorus_client.__all__:
        value = getattr(chorus_client, name)
        if inspect.isclass(value) and value.__module__.startswith("chorus_client"):
            assert inspect.getdoc(value), name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sede", "unknown option sede; did you mean seed?"),
        ("hieght", "unknown option hieght; did you mean height?"),
        ("on_evnt", "unknown option on_evnt; did you mean on_event?"),
        ("num_frames", "unknown option num_frames; use frames"),
        ("num_inference_steps", "unknown option num_inference_steps; use steps"),
        ("negative_prompt", "unknown option negative_prompt; it is not supported: few-step"),
        ("guidance_scale", "unknown option guidance_scale; it is not supported: few-step"),
        ("xyzzy", "unknown option xyzzy; must be one of model, frames, height"),
    ],
)
def test_unknown_options_are_refused_by_name(name: str, message: str) -> None:
    options: Any = {name: 7}
    with ChorusClient("127.0.0.1:1") as client:
        for call in (client.submit, client.generate):
            with pytest.raises(TypeError) as refused:
                call("x", **options)
            assert str(refused.value).startswith(message)


def test_every_known_option_is_accepted() -> None:
    options: SpecOptions = dict.fromkeys(SpecOptions.__annotations__)  # type: ignore[assignment]
    options["no_store"] = options["step_previews"] = False
    assert build_request("x", options).spec.prompt == "x"


@pytest.mark.parametrize("value", ["7", 7.5, -1, 2**64])
def test_seed_that_is_no_seed_is_refused(value: Any) -> None:
    with pytest.raises(chorus_client.ChorusError, match=r"seed: must be 0 to 2\^64 − 1, not "):
        build_request("x", {"seed": value})


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("model", 5, "model: must be text, not 5"),
        ("model", "\udcff", "model: must be UTF-8"),
        ("request_id", 5, "request_id: must be text, not 5"),
        ("request_id", "\udcff", "request_id: must be UTF-8"),
        ("sigmas", 5, "sigmas: must be a sequence of numbers, not 5"),
        ("sigmas", "1,0", "sigmas: must be a sequence of numbers, not '1,0'"),
        ("deadline", "10", "deadline: must be a number of seconds from now, above 0, .* not '10'"),
        ("deadline", -1, "deadline: must be .* above 0, at most 86400, not -1"),
        ("deadline", 0, "deadline: must be .* above 0"),
        ("deadline", 86_401, "deadline: must be .* at most 86400, not 86401"),
        ("deadline", float("inf"), "deadline: must be .* not inf"),
        ("model", [], r"model: must be text, not \[\]"),
        ("request_id", 0, "request_id: must be text, not 0"),
        ("reuse", [], r"reuse: must be one of off, safe, balanced, fast, not \[\]"),
        ("reuse", 0, "reuse: must be one of .* not 0"),
        ("max_reuse_steps", -1, r"max_reuse_steps: must be 0 to 2\^32 − 1, not -1"),
        ("no_store", "false", "no_store: must be True or False, not 'false'"),
        ("step_previews", 1, "step_previews: must be True or False, not 1"),
        ("pin", "yes", "pin: must be True or False, not 'yes'"),
        ("lifetime", "1h", "lifetime: must be a number of seconds, above 0, at most 316224000, not '1h'"),
        ("lifetime", 0, "lifetime: must be .* above 0"),
        ("lifetime", float("nan"), "lifetime: must be .* not nan"),
        ("explicit_reuse", "reuse_steps:1", r"explicit_reuse: must be a plan of explicit_reuse\(\)"),
    ],
)
def test_option_of_another_type_is_refused_by_name(option: str, value: Any, message: str) -> None:
    options: Any = {option: value}
    with pytest.raises(chorus_client.ChorusError, match=message):
        build_request("x", options)


@pytest.mark.parametrize("prompt", [None, 5, b"x", ["x"]])
def test_prompt_that_is_no_text_is_refused(prompt: Any) -> None:
    with pytest.raises(chorus_client.ChorusError, match="prompt: must be text, not "):
        build_request(prompt, {})


def test_options_that_are_none_are_left_to_the_server() -> None:
    options: Any = dict.fromkeys(SpecOptions.__annotations__)
    request = build_request("x", options)
    assert request.request_id
    assert request.spec == build_request("x", {}).spec


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda client: client.handle(5), "generation_id: must be text, .* not 5"),
        (lambda client: client.handle(""), "generation_id: must be text"),
        (lambda client: client.submit("x", timeout="5"), "timeout: must be a number of seconds, .* not '5'"),
        (lambda client: client.generate("x", timeout=float("nan")), "timeout: must be a number of seconds"),
        (lambda client: client.handle("a").result(timeout="5"), "timeout: must be a number of seconds"),
        (
            lambda client: client.handle("a").result(timeout=float("inf")),
            "timeout: .* 0 to 31,536,000, not inf",
        ),
        (lambda client: client.handle("a").result(patience=None), "patience: must be a number of seconds"),
        (lambda client: client.handle("a").status(timeout=[]), "timeout: must be a number of seconds"),
        (
            lambda client: next(client.handle("a").events("1")),
            r"after_sequence: must be 0 to 2\^64 − 1, not '1'",
        ),
        (lambda client: client.list(limit="5"), "limit: must be at least 1, not '5'"),
        (lambda client: client.list([]), r"state: must be one of .* not \[\]"),
    ],
)
def test_argument_of_another_type_is_refused_by_name(use: Callable[[Any], object], message: str) -> None:
    with (
        chorus_client.ChorusClient("127.0.0.1:1") as client,
        pytest.raises(chorus_client.ChorusError, match=message),
    ):
        use(client)


@pytest.mark.parametrize("make", [chorus_client.ChorusClient, chorus_client.CacheClient])
def test_client_refuses_arguments_of_another_type(make: Any) -> None:
    with pytest.raises(chorus_client.ChorusError, match="target: must be text, host:port, not 5"):
        make(5)
    with pytest.raises(chorus_client.ChorusError, match="timeout: must be a number of seconds"):
        make("127.0.0.1:1", timeout="5")


@pytest.mark.parametrize("option", [{"pin": True}, {"lifetime": 60}])
def test_retention_of_what_is_not_stored_is_refused(option: Any) -> None:
    with pytest.raises(chorus_client.ChorusError, match="no_store: excludes lifetime and pin"):
        build_request("x", option | {"no_store": True})
