"""Patience, backoff, which errors are final, how errors travel, and the memory of bad endpoints: by a clock that tests move."""

import pickle
import re
from contextlib import nullcontext

import pytest
from torch._utils import ExceptionWrapper

from cpstream_client import (
    CorruptedError,
    CpstreamError,
    DatasetChanged,
    InvalidRequestError,
    NotFoundError,
    Retry,
    ServiceError,
    TransportError,
    UnauthorizedError,
    UnavailableError,
    UnreachableError,
)
from cpstream_client.contract.bodies import Problem
from cpstream_client.contract.wire import ErrorCode
from cpstream_client.errors import error_of
from cpstream_client.transport.endpoints import Endpoint, Replicas
from cpstream_client.transport.retry import Patience, is_retryable

URL = "http://[::1]:8000/v1/splits/train/batches?batch_size=8&fingerprint=aa"


class Clock:
    """A clock that stands until it is moved."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def problem(code: str, status: int, **more: object) -> Problem:
    members = {"type": "t", "title": "Title", "detail": "detail", "instance": "/", "request_id": "id-7"}
    return Problem.model_validate({**members, "code": code, "status": status, **more})


def problem_error(code: ErrorCode, retry_after_s: float | None = None, **extra: object) -> ServiceError:
    detail = f"{code.title}: 'x' [a; b]"
    return error_of(problem(code.code, code.status, title=code.title, detail=detail, **extra), URL, retry_after_s)


def test_delays_double_with_full_jitter_and_a_ceiling() -> None:
    retry = Retry(first_delay_s=0.1, max_delay_s=10)
    assert [retry.delay_s(failures, None, 1.0) for failures in range(1, 9)] == pytest.approx(
        [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0]
    )
    assert retry.delay_s(5, None, 0.0) == 0.0
    assert retry.delay_s(5, None, 0.5) == pytest.approx(0.8)
    assert retry.delay_s(10_000, None, 1.0) == 10.0


def test_retry_after_is_waited_for_in_full_but_not_past_the_end() -> None:
    clock = Clock()
    patience = Patience(Retry(timeout_s=30, first_delay_s=0.1, max_delay_s=1), clock=clock)
    assert patience.wait_s(problem_error(ErrorCode.DRAINING, retry_after_s=20)) == 20
    clock.now_s += 20
    assert patience.wait_s(problem_error(ErrorCode.DRAINING, retry_after_s=3600)) == 10


def test_patience_ends_after_the_time_without_progress() -> None:
    clock = Clock()
    patience = Patience(Retry(timeout_s=5, first_delay_s=0, max_delay_s=0), clock=clock)
    for _ in range(50):
        patience.wait_s(TransportError("cut"))
        clock.now_s += 0.09
    clock.now_s += 0.5
    with pytest.raises(TransportError, match=r"cut; gave up after 51 tries in 5\.0 s"):
        patience.wait_s(TransportError("cut"))


def test_progress_resets_the_budget() -> None:
    clock = Clock()
    patience = Patience(Retry(timeout_s=5, first_delay_s=1, max_delay_s=1), clock=clock)
    for _ in range(100):
        assert patience.wait_s(TransportError("cut")) <= 1  # the delay starts again at the first one, too
        clock.now_s += 4
        patience.progress()


def test_zero_means_a_single_try() -> None:
    for error in (TransportError("cut"), problem_error(ErrorCode.OVERLOADED), problem_error(ErrorCode.UNAUTHORIZED)):
        with pytest.raises(CpstreamError) as caught:
            Patience(Retry(timeout_s=0)).wait_s(error)
        assert caught.value is error


@pytest.mark.parametrize("field", ["timeout_s", "first_delay_s", "max_delay_s", "contact_timeout_s", "changed_timeout_s"])
@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_a_negative_time_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        Retry(**{field: value})


@pytest.mark.parametrize("code", ErrorCode)
def test_what_is_retried(code: ErrorCode) -> None:
    error = problem_error(code)
    final = (ErrorCode.NOT_CONFIGURED, ErrorCode.STATE_FULL)  # these do not pass by themselves
    passes = (code.status >= 500 and code not in final) or code in (
        ErrorCode.BODY_TIMEOUT,
        ErrorCode.TOO_MANY_STREAMS,
        ErrorCode.TOO_MANY_BYTES,
    )
    assert is_retryable(error) == passes
    if code in (ErrorCode.UNKNOWN_SPLIT, ErrorCode.NOT_FOUND, ErrorCode.FORGOTTEN):
        with pytest.raises(type(error)):
            Patience(Retry()).wait_s(error)
    elif code == ErrorCode.DATASET_CHANGED:
        Patience(Retry()).wait_s(error)  # for a while: see below
    elif not passes:
        patience = Patience(Retry())
        assert patience.wait_s(error) == 0  # a damaged header may have caused it: asked once more, at once
        with pytest.raises(type(error)):
            patience.wait_s(problem_error(code))


def test_data_that_one_endpoint_does_not_hold_is_asked_for_at_the_others_and_for_a_while() -> None:
    clock = Clock()
    patience = Patience(Retry(first_delay_s=0, max_delay_s=0), num_endpoints=2, clock=clock)
    changed = problem_error(ErrorCode.DATASET_CHANGED, expected="aa", actual="bb")
    patience.wait_s(changed, "http://a")
    clock.now_s += 29
    patience.wait_s(TransportError("http://b: refused"), "http://b")
    patience.progress()  # another one held it
    patience.wait_s(changed, "http://a")
    clock.now_s += 31
    with pytest.raises(DatasetChanged, match=r"gave up after 2 tries in 31\.0 s"):
        patience.wait_s(changed, "http://a")


@pytest.mark.parametrize(("num_endpoints", "asked"), [(1, 1), (3, 3)])
def test_without_a_while_every_endpoint_is_asked_once(num_endpoints: int, asked: int) -> None:
    patience = Patience(Retry(changed_timeout_s=0), num_endpoints=num_endpoints)
    waits = [patience.wait_s(problem_error(ErrorCode.DATASET_CHANGED)) for _ in range(asked - 1)]
    assert not any(waits)
    with pytest.raises(DatasetChanged):
        patience.wait_s(problem_error(ErrorCode.DATASET_CHANGED))
    with pytest.raises(DatasetChanged):  # a single try
        Patience(Retry(timeout_s=0), num_endpoints=num_endpoints).wait_s(problem_error(ErrorCode.DATASET_CHANGED))


@pytest.mark.parametrize(
    ("status", "kind"), [(500, UnavailableError), (503, UnavailableError), (429, UnavailableError), (418, ServiceError)]
)
def test_an_unknown_code_counts_by_its_status(status: int, kind: type[ServiceError]) -> None:
    error = error_of(problem("brand-new", status), URL)
    assert type(error) is kind


def test_a_service_that_never_answered_gets_less_patience() -> None:
    clock = Clock()
    retry = Retry(timeout_s=300, first_delay_s=0, max_delay_s=0, contact_timeout_s=10)
    contact, established, loading = (Patience(retry, clock=clock, is_contact=is_contact) for is_contact in (True, False, True))
    for patience in (contact, established):
        patience.wait_s(TransportError("refused"))
    loading.wait_s(problem_error(ErrorCode.NOT_READY))
    clock.now_s += 11
    established.wait_s(TransportError("refused"))
    loading.wait_s(TransportError("refused"))  # it did answer: by asking for patience
    with pytest.raises(TransportError, match=r"refused; gave up after 2 tries in 11\.0 s.*is the url right.*contact_timeout_s"):
        contact.wait_s(TransportError("refused"))


def test_a_host_that_resolved_once_is_waited_for() -> None:
    """A name that is gone from DNS while a service is replaced is no mistyped one."""
    for is_contact in (False, True):
        patience = Patience(Retry(first_delay_s=0), is_contact=is_contact)
        patience.wait_s(UnreachableError("does not resolve"))
        with nullcontext() if not is_contact else pytest.raises(UnreachableError):
            patience.wait_s(UnreachableError("does not resolve"))


def test_waits_come_only_when_every_endpoint_has_failed() -> None:
    patience = Patience(Retry(first_delay_s=8, max_delay_s=8), num_endpoints=3)
    waits = [patience.wait_s(TransportError(name), name) for name in ("a", "b", "c", "a", "b", "c")]
    assert [wait == 0 for wait in waits] == [True, True, False, True, True, False]


def test_the_last_error_names_every_endpoint() -> None:
    clock = Clock()
    patience = Patience(Retry(timeout_s=1), num_endpoints=2, clock=clock)
    patience.wait_s(TransportError("http://a: refused"), "http://a")
    clock.now_s += 2
    with pytest.raises(UnavailableError, match=r"2 tries in 2\.0 s.*http://a: refused") as caught:
        patience.wait_s(problem_error(ErrorCode.OVERLOADED), "http://b")
    assert (caught.value.code, caught.value.status, caught.value.request_id, caught.value.url) == ("overloaded", 503, "id-7", URL)


# Errors travel


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (ErrorCode.UNKNOWN_SPLIT, NotFoundError),
        (ErrorCode.UNAUTHORIZED, UnauthorizedError),
        (ErrorCode.INVALID_PARAMETER, InvalidRequestError),
        (ErrorCode.DATASET_CHANGED, DatasetChanged),
        (ErrorCode.DRAINING, UnavailableError),
    ],
)
def test_an_error_survives_pickling_and_a_dataloader_worker(code: ErrorCode, kind: type[ServiceError]) -> None:
    error = problem_error(code, expected="aa", actual="bb")
    try:
        raise error from TransportError(str(problem_error(ErrorCode.OVERLOADED)))  # a cause with an origin of its own
    except ServiceError:
        wrapped = pickle.loads(pickle.dumps(ExceptionWrapper(where="in DataLoader worker process 0")))
    with pytest.raises(kind) as caught:
        wrapped.reraise()
    assert "in DataLoader worker process 0" in str(caught.value)
    for copy in (pickle.loads(pickle.dumps(error)), caught.value):
        assert type(copy) is kind
        for name in ("code", "status", "url", "request_id", "detail"):
            assert getattr(copy, name) == getattr(error, name), name
        if isinstance(copy, DatasetChanged):
            assert (copy.expected, copy.actual) == ("aa", "bb")
    assert (error.code, error.status, error.url, error.request_id) == (code.code, code.status, URL, "id-7")
    assert error.detail == f"{code.title}: 'x' [a; b]"


@pytest.mark.parametrize("kind", [TransportError, CorruptedError, CpstreamError, ServiceError])
def test_any_error_can_be_made_of_a_text(kind: type[CpstreamError]) -> None:
    assert str(kind("only this")) == "only this"


# Endpoints


@pytest.mark.parametrize(
    "url",
    ["data:8000", "ftp://data", "http://", "http://data:port", "http://data:99999", "http://data/?a=1", "http://data/#x", ""],
)
def test_a_malformed_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="url is " + re.escape(repr(url))):
        Endpoint.parse(url)


def test_a_password_in_a_url_is_refused_without_showing_it() -> None:
    with pytest.raises(ValueError, match=r"auth=.*token=.*a url like http://data:8000$") as caught:
        Endpoint.parse("https://me:hunter2@data:8000")
    assert "hunter2" not in str(caught.value)


def test_a_url_in_parts() -> None:
    assert Endpoint.parse("https://data/under/this/") == Endpoint("https://data/under/this", True, "data", 443, "/under/this")
    assert Endpoint.parse("http://[::1]:80").host == "::1"


def test_what_failed_is_avoided_for_a_while() -> None:
    clock = Clock()
    one, two, three = endpoints = tuple(Endpoint.parse(f"http://data{i}:8000") for i in range(3))
    replicas = Replicas(endpoints, clock)
    assert [replicas.choose(turn) for turn in range(4)] == [one, two, three, one]
    replicas.failed(one)
    assert replicas.choose(0) is two
    clock.now_s += 4.9
    assert replicas.choose(0) is two
    clock.now_s += 0.2
    assert replicas.choose(0) is one
    replicas.failed(one)
    clock.now_s += 9
    assert replicas.choose(0) is two  # longer from time to time
    for _ in range(20):
        replicas.failed(one)
    clock.now_s += 301
    assert replicas.choose(0) is one  # but not for ever
    replicas.worked(one)
    replicas.failed(one)
    clock.now_s += 5.1
    assert replicas.choose(0) is one


def test_when_all_failed_the_one_that_rests_the_longest_is_next() -> None:
    clock = Clock()
    endpoints = tuple(Endpoint.parse(f"http://data{i}:8000") for i in range(3))
    replicas = Replicas(endpoints, clock)
    tried = []
    for _ in range(6):
        tried.append(replicas.choose(1))
        replicas.failed(tried[-1])
        clock.now_s += 0.1
    assert set(tried[:3]) == set(tried[3:]) == set(endpoints)


def test_what_replicas_remember_stays_in_the_process() -> None:
    endpoints = tuple(Endpoint.parse(f"http://data{i}:8000") for i in range(2))
    replicas = Replicas(endpoints)
    replicas.failed(endpoints[0])
    copy = pickle.loads(pickle.dumps(replicas))
    assert copy.choose(0) == endpoints[0]
    assert not copy.met
    replicas.worked(endpoints[1])
    assert pickle.loads(pickle.dumps(replicas)).met
