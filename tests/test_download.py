"""A download ends with the verified file or with one sentence, whatever the server does."""

import errno
import fcntl
import json
import os
import shutil
import stat
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.http_server import Served, md5, serving
from ups_data import parts, transfer
from ups_data.catalogue import ROOT, Entry
from ups_data.download import STATE, download, publish
from ups_data.dvc_files import cache_object
from ups_data.errors import UpsDataError
from ups_data.transfer import Policy

BODY = bytes(range(256)) * 40  # 10,240 bytes: ten ranges of the policy below and a bit
FAST = Policy(connections=4, segment=1000, attempts=4, backoff=0.0, timeout=(5.0, 5.0))


@pytest.fixture
def server():
    with serving() as server:
        yield server


@pytest.fixture
def place(tmp_path):
    return tmp_path


def entry(name="1", body=BODY, size: int | None = -1, path="1D/Burgers/Train/a.hdf5"):
    size = len(body) if size == -1 else size
    return Entry("1D/Burgers", path, md5(body), size, f"https://official.example/api/{name}", False)


def fetch(server, place, *entries, policy=FAST):
    return download(entries or (entry(),), place / "cache", place, server.url, policy)


def body_of(place, entry):
    path = cache_object(place / "cache", entry.md5)
    return path.read_bytes() if path.exists() else None


def kept(place):
    """What is left of unfinished downloads."""
    return [path for path in (place / STATE).rglob("*") if path.name == "body"]


def failure(server, place, *entries, policy=FAST):
    """The sentence of a download that fails; nothing of it may be in the cache."""
    outcome = fetch(server, place, *entries, policy=policy)
    assert not outcome.fetched and not list((place / "cache").rglob("?" * 30))
    assert len(outcome.failures) == 1 and "\n" not in outcome.failures[0]
    return outcome.failures[0]


# --- the good case -------------------------------------------------------------------------------


def test_a_file_comes_in_ranges_over_several_connections_and_is_read_only(server, place):
    server.files["1"] = Served(BODY)
    outcome = fetch(server, place)
    assert body_of(place, entry()) == BODY and outcome.size == len(BODY)
    assert sorted(server.ranges_of("1")) == sorted(
        f"bytes={start}-{min(start + 999, len(BODY) - 1) if start else 999}" for start in range(0, len(BODY), 1000)
    )
    assert stat.S_IMODE(cache_object(place / "cache", entry().md5).stat().st_mode) == 0o444
    assert not kept(place)


def test_several_files_share_the_connections(server, place):
    release = threading.Barrier(3, timeout=5)
    bodies = {str(i): bytes([i]) * 500 for i in range(3)}
    entries = [entry(name, body, path=f"1D/{name}.hdf5") for name, body in bodies.items()]
    server.files |= {name: Served(body) for name, body in bodies.items()}
    answer = server.RequestHandlerClass._answer

    class Waiting(server.RequestHandlerClass):
        def _answer(self, served):
            release.wait()  # passes once three requests are there at the same time
            return answer(self, served)

    server.RequestHandlerClass = Waiting
    assert len(fetch(server, place, *entries).fetched) == 3


def test_twins_are_one_body_fetched_once(server, place):
    server.files["1"] = Served(BODY)
    pair = entry("1"), entry("2", path="1D/Burgers/Train/b.hdf5")
    outcome = fetch(server, place, *pair, policy=Policy(segment=1 << 20, backoff=0.0))
    assert outcome.fetched == list(pair) and [name for name, _ in server.seen] == ["1"]


def test_what_is_there_is_not_asked_for_again(server, place):
    server.files["1"] = Served(BODY)
    fetch(server, place)
    asked = len(server.seen)
    assert fetch(server, place).present == [entry()] and len(server.seen) == asked


def test_a_file_of_unknown_size_is_fetched(server, place):
    server.files["1"] = Served(BODY)
    assert fetch(server, place, entry(size=None)).size == len(BODY)


def test_a_file_of_unknown_length_is_fetched(server, place):
    server.files["1"] = Served(BODY, ranges=False, length=False)
    fetch(server, place, entry(size=None))
    assert body_of(place, entry()) == BODY


def test_redirects_are_followed(server, place):
    server.files |= {"1": Served(b"", redirect=f"{server.url}/store/signed"), "signed": Served(BODY)}
    fetch(server, place)
    assert body_of(place, entry()) == BODY


def test_a_right_file_in_the_workspace_is_taken_into_the_cache(server, place):
    mine = place / "data/raw/pdebench" / entry().path
    mine.parent.mkdir(parents=True)
    mine.write_bytes(BODY)
    assert fetch(server, place).present == [entry()] and not server.seen
    assert body_of(place, entry()) == BODY


def test_a_strange_file_in_the_place_of_an_official_one_is_left_alone(server, place):
    mine = place / "data/raw/pdebench" / entry().path
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"my own simulation")
    with pytest.raises(UpsDataError, match=r"a\.hdf5 is not the official file .*move it away"):
        fetch(server, place)
    assert mine.read_bytes() == b"my own simulation" and not server.seen


def test_a_damaged_cache_object_is_fetched_again(server, place, capsys):
    server.files["1"] = Served(BODY)
    cached = cache_object(place / "cache", entry().md5)
    cached.parent.mkdir(parents=True)
    cached.write_bytes(BODY[:-1] + b"!")
    assert fetch(server, place).fetched == [entry()] and body_of(place, entry()) == BODY
    assert "is damaged and is fetched again" in capsys.readouterr().out


# --- faults that pass ----------------------------------------------------------------------------


def test_a_cut_connection_is_taken_up_at_the_byte_where_it_broke(server, place):
    server.files["1"] = Served(BODY, cut_after=4000, cuts=2)
    fetch(server, place, policy=Policy(segment=1 << 20, backoff=0.0))
    assert body_of(place, entry()) == BODY
    assert server.ranges_of("1") == ["bytes=0-1048575", "bytes=4000-10239", "bytes=8000-10239"]


def test_a_server_that_ignores_ranges_sends_all_again(server, place):
    server.files["1"] = Served(BODY, ranges=False, cut_after=4000, cuts=2)
    fetch(server, place)
    assert body_of(place, entry()) == BODY and len(server.seen) == 3


def test_a_server_that_always_cuts_and_ignores_ranges_is_given_up(server, place):
    server.files["1"] = Served(BODY, ranges=False, cut_after=4000, cuts=10**6)
    assert f"the connection was cut, {FAST.attempts} times" in failure(server, place)


def test_a_busy_server_is_waited_for(server, place, monkeypatch):
    waits = []
    server.files["1"] = Served(BODY, status=503, times=1, headers={"Retry-After": "7"})
    part = parts.open_part(place / "part", f"{server.url}/1", len(BODY))
    fetcher = transfer.Fetcher(Policy(connections=1, segment=1 << 20), lambda n: None, lambda n: None)
    monkeypatch.setattr(part.stop, "wait", waits.append, raising=False)
    fetcher._range(part, 0, 1 << 20)
    assert part.body.read_bytes() == BODY and waits == [7.0]
    fetcher.close()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("Sun, 06 Nov 1994 08:49:42 GMT", 5.0), ("Sun, 06 Nov 1994 08:49:30 GMT", 0.0), ("soon", 0.0)],
)
def test_a_date_to_come_again_is_counted_from_the_servers_own(value, seconds):
    answer = SimpleNamespace(headers={"Retry-After": value, "Date": "Sun, 06 Nov 1994 08:49:37 GMT"})
    assert transfer._retry_after(answer) == seconds


def test_a_server_that_asks_for_an_hour_is_left_alone(server, place):
    server.files["1"] = Served(BODY, status=503, headers={"Retry-After": "3600"})
    assert "answers 503 Service Unavailable and asks for 3600 s of patience" in failure(server, place)
    assert len(server.seen) == 1


def test_a_body_damaged_on_the_way_is_fetched_once_more(server, place, capsys):
    server.files["1"] = Served(BODY, wrong=1)
    fetch(server, place)
    assert body_of(place, entry()) == BODY
    assert "sent a body with a wrong MD5; fetching it again" in capsys.readouterr().out


def test_a_file_that_changes_under_way_is_started_again(server, place):
    """Half of it is there, of another version: the parts are thrown away, not mixed."""
    server.files["1"] = Served(bytes(len(BODY)), etag='"old"', cut_after=600, cuts=10**6, status=0)
    slow = Policy(connections=1, segment=1000, attempts=1, backoff=0.0)
    assert "run the same command to go on" in failure(server, place, policy=slow)
    assert json.loads(next((place / STATE).rglob("journal.json")).read_text())["done"][0] == 600
    server.files["1"] = Served(BODY, etag='"new"')
    fetch(server, place)
    assert body_of(place, entry()) == BODY


# --- faults that stay ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("served", "sentence"),
    [
        ({"status": 404}, "answers 404 Not Found: no such file there"),
        ({"status": 403}, "answers 403 Forbidden: it is not public there"),
        ({"status": 503}, "answers 503 Service Unavailable, 4 times"),
        ({"status": 200}, "answers with a web page instead of the file"),
        ({"wrong": 10**6}, "sent a body with MD5"),
        ({"body": BODY[:-1]}, "has 10239 bytes, the catalogue says 10240"),
        ({"redirect": "/1"}, "the server cannot be reached: TooManyRedirects"),
        ({"redirect": "http://["}, "the server cannot be reached: "),
        ({"status": 429, "headers": {"Retry-After": "\xb2"}}, "answers 429 Too Many Requests, 4 times"),
        (
            {"body": BODY + b"more", "length": False, "ranges": False},
            "sends more than the 10240 bytes that the catalogue",
        ),
    ],
)
def test_a_server_that_will_not_send_the_file_is_one_sentence(server, place, served, sentence):
    server.files["1"] = Served(**({"body": BODY} | served))
    assert sentence in failure(server, place)
    assert not kept(place)


def test_an_error_page_without_its_name_is_caught_by_the_checksum(server, place):
    page = b"<html>Too many requests</html>"
    server.files["1"] = Served(page)
    assert "the catalogue says" in failure(server, place, entry(size=None))
    assert not kept(place)


def test_a_number_of_thousands_of_digits_in_a_header_is_none():
    answer = SimpleNamespace(status_code=206, headers={"Content-Range": f"bytes 0-9/{'9' * 5000}"})
    assert transfer._total(answer) is None
    assert transfer._total(SimpleNamespace(status_code=200, headers={"Content-Length": "9" * 5000})) is None


def test_a_password_in_the_address_is_not_shown(server, place):
    address = server.url.replace("//", "//someone:se@cret@")
    (failure,) = download([entry()], place / "cache", place, address, FAST).failures
    assert "cret" not in failure and server.url in failure


def test_two_downloads_list_their_files_one_after_another(place, monkeypatch, capsys):
    def keep(*_):
        with open(place / ".state/publish/.hydrate.lock", "rb") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return ["listed"]

    monkeypatch.setattr("ups_data.catalogue.keep", keep)
    assert publish([], place / "cache", place) == ["listed"]


def test_a_link_to_elsewhere_is_copied_into_the_cache_and_left_as_it_is(server, place, tmp_path):
    mine = tmp_path / "elsewhere.hdf5"
    mine.write_bytes(BODY)
    mode = mine.stat().st_mode
    there = place / ROOT / entry().path
    there.parent.mkdir(parents=True)
    there.symlink_to(mine)
    assert fetch(server, place).present == [entry()] and not server.seen
    cached = cache_object(place / "cache", entry().md5)
    assert cached.read_bytes() == BODY and not cached.is_symlink() and mine.stat().st_mode == mode


def test_a_silent_server_ends_the_run_at_once(place):
    with serving() as server:
        gone = server.url
    entries = [entry(str(i), bytes([i]), path=f"1D/{i}.hdf5") for i in range(40)]
    outcome = download(entries, place / "cache", place, gone, Policy(connections=1, attempts=2, backoff=0.0))
    assert len(outcome.failures) == 1 and "the server cannot be reached: connection refused" in outcome.failures[0]


def test_one_missing_file_does_not_hold_up_the_others(server, place):
    server.files["1"] = Served(BODY)
    outcome = fetch(server, place, entry("9", b"elsewhere", path="1D/b.hdf5"), entry("1"))
    assert outcome.fetched == [entry("1")] and len(outcome.failures) == 1 and "/9 answers 404" in outcome.failures[0]


# --- stops and full disks ------------------------------------------------------------------------


def test_a_stopped_download_goes_on_where_it_was(server, place):
    server.files["1"] = Served(BODY, cut_after=300, cuts=10**6)
    assert "what is there is kept" in failure(server, place, policy=Policy(1, 1000, 1, 0.0))
    assert kept(place)
    server.files["1"], before = Served(BODY), len(server.seen)
    fetch(server, place)
    assert body_of(place, entry()) == BODY
    assert "bytes=300-999" in server.ranges_of("1")[before:] and "bytes=0-999" not in server.ranges_of("1")[before:]


def test_a_file_finished_but_not_verified_when_killed_is_not_fetched_again(server, place):
    server.files["1"] = Served(BODY)
    part = parts.open_part(place / STATE / entry().md5, f"{server.url}/1", len(BODY))
    fetcher = transfer.Fetcher(FAST, lambda n: None, lambda n: None)
    fetcher.fetch(part)
    fetcher.close()
    asked = len(server.seen)
    assert fetch(server, place).fetched == [entry()] and len(server.seen) == asked


EMPTY = '{"total": 0, "validator": "", "segment": 0, "done": [0]}'


@pytest.mark.parametrize("damage", ["not JSON", '{"done": 3}', EMPTY, None])
def test_a_damaged_journal_starts_the_file_again(server, place, damage):
    server.files["1"] = Served(BODY)
    part = place / STATE / entry().md5
    part.mkdir(parents=True)
    (part / "body").write_bytes(b"x" * len(BODY))
    if damage:
        (part / "journal.json").write_text(damage)
    fetch(server, place)
    assert body_of(place, entry()) == BODY


@pytest.mark.parametrize("note", [{"total": 9}, {"done": [0] * 3}, {"segment": 100}])
def test_a_part_that_is_not_of_this_file_is_thrown_away(tmp_path, note):
    part = parts.open_part(tmp_path / "part", "http://127.0.0.1/1", 10)
    part.plan(10, "", 5)
    part.done = [5, 2]
    part.save()
    assert parts.open_part(tmp_path / "part", "http://127.0.0.1/1", 10).done == [5, 2]
    journal = tmp_path / "part" / "journal.json"
    journal.write_text(json.dumps(json.loads(journal.read_text()) | note))
    assert parts.open_part(tmp_path / "part", "http://127.0.0.1/1", 10).done == []
    assert not (tmp_path / "part").exists()


def test_a_lying_journal_is_found_out_by_the_checksum(server, place):
    """After a power cut the disk may not hold what the journal says."""
    server.files["1"] = Served(BODY)
    part = place / STATE / entry().md5
    part.mkdir(parents=True)
    (part / "body").write_bytes(bytes(len(BODY)))
    note = {"total": len(BODY), "validator": '"one"', "segment": len(BODY), "done": [9000]}
    (part / "journal.json").write_text(json.dumps(note))
    fetch(server, place)
    assert body_of(place, entry()) == BODY


def test_a_download_that_does_not_fit_is_not_begun(server, place, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(UpsDataError, match=r"the download needs .* but .* free some room"):
        fetch(server, place)
    assert not server.seen


def test_a_disk_that_fills_up_keeps_what_can_be_taken_up(server, place, monkeypatch):
    server.files["1"] = Served(BODY)
    write, room = os.pwrite, [3]

    def pwrite(file, chunk, at):
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, chunk, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    assert "no room left on the disk of" in failure(server, place, policy=Policy(2, 1000, 2, 0.0))
    done = sum(json.loads(next((place / STATE).rglob("journal.json")).read_text())["done"])
    assert done == 3000
    monkeypatch.setattr(os, "pwrite", write)
    before = len(server.seen)
    fetch(server, place)
    assert body_of(place, entry()) == BODY and len(server.seen) - before == 8


def test_two_downloads_do_not_work_on_the_same_parts(server, place):
    import fcntl

    (place / STATE).mkdir(parents=True)
    with open(place / STATE / ".lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UpsDataError, match="another download works in"):
            fetch(server, place)


def test_a_cache_on_another_disk_gets_a_verified_copy(server, place, monkeypatch):
    server.files["1"] = Served(BODY)
    rename = Path.rename

    def across(self, target):
        if self.name == "body":
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", across)
    fetch(server, place)
    assert body_of(place, entry()) == BODY and not kept(place)
