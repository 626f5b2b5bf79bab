"""The witness: which bytes of an object a log says were sent."""

from dataclasses import dataclass

from fanoutfs.bench.witness import object_key, sent_of, traffic


@dataclass(frozen=True)
class _Request:
    range: str
    body_bytes: int
    status: int = 206
    method: str = "GET"
    path: str = "/data/dir/a%20file?x-id=GetObject"
    seconds: float = 0.0


KEY = "dir/a file"


def test_adjoining_ranges_send_each_byte_once() -> None:
    sent = sent_of([_Request("bytes=50-99", 50), _Request("bytes=0-49", 50)], KEY, 100)
    assert (sent.requests, sent.bytes_sent, sent.bytes_twice, sent.bytes_never) == (2, 100, 0, 0)
    assert sent.is_each_byte_once


def test_one_byte_of_overlap_is_seen() -> None:
    sent = sent_of([_Request("bytes=0-50", 51), _Request("bytes=50-99", 50)], KEY, 100)
    assert (sent.bytes_twice, sent.is_each_byte_once) == (1, False)


def test_a_hole_is_seen() -> None:
    sent = sent_of([_Request("bytes=0-48", 49), _Request("bytes=50-99", 50)], KEY, 100)
    assert (sent.bytes_never, sent.is_each_byte_once) == (1, False)


def test_a_byte_sent_three_times_counts_once_as_sent_again() -> None:
    sent = sent_of([_Request("bytes=0-99", 100)] * 3, KEY, 100)
    assert (sent.bytes_sent, sent.bytes_twice) == (300, 100)


def test_an_answer_cut_short_sends_what_it_sent() -> None:
    sent = sent_of([_Request("bytes=0-99", 60), _Request("bytes=60-99", 40)], KEY, 100)
    assert sent.is_each_byte_once


def test_open_ended_suffix_and_whole_answers() -> None:
    requests = [_Request("bytes=90-", 10), _Request("bytes=-10", 10), _Request("", 100, status=200)]
    assert sent_of(requests[:1], KEY, 100).bytes_never == 90
    assert sent_of(requests[:2], KEY, 100).bytes_twice == 10
    assert sent_of(requests[2:], KEY, 100).is_each_byte_once


def test_other_objects_methods_and_failures_do_not_count() -> None:
    requests = [
        _Request("bytes=0-99", 100, path="/data/other"),
        _Request("bytes=0-99", 0, method="HEAD", status=200),
        _Request("bytes=0-99", 300, status=503),
    ]
    assert sent_of(requests, KEY, 100).requests == 0
    assert traffic(requests).by_method == {"GET": 2, "HEAD": 1}


def test_listing_has_no_object_key() -> None:
    assert object_key("/data?list-type=2&prefix=a%2F") == ""
    assert object_key("/data/?list-type=2") == ""
    assert object_key("/data/a/b%2Bc?x") == "a/b+c"
