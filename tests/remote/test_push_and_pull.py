"""push and pull: there and back is the same folder, whole or not at all, whatever the store and the disk do."""

import errno
import json
import os
import sys
from hashlib import sha256
from types import SimpleNamespace

import numpy as np
import pytest
from buffer_helpers import add as add_plain
from buffer_helpers import contents, files_of, ids, make_plain, run_script
from remote_helpers import (
    URL,
    Fails,
    add,
    all_values,
    behaving,
    changed,
    cut,
    late,
    make,
    objects,
    replace_object,
    store,
)

from gym_replay import (
    BufferNotFoundError,
    ConcatReplayBuffer,
    ConfigMismatchError,
    CorruptBufferError,
    EmptyBufferError,
    FieldError,
    MissingExtraError,
    NotABufferError,
    ReplayBuffer,
    StorageError,
    UnsupportedFormatError,
    check_buffer,
    pull,
    push,
)
from gym_replay.cli import main


def test_there_and_back(tmp_path):
    buffer = make(tmp_path / "here")
    url = f"file://{tmp_path}/there"
    pushed = push(tmp_path / "here", url)
    assert (pushed.num_episodes, pushed.num_steps) == (12, buffer.num_steps)
    with pull(url, tmp_path / "back") as back:
        assert all_values(back) == all_values(buffer)
        assert ids(back) == ids(buffer)
    report = check_buffer(tmp_path / "back")
    assert report.ok
    assert report.num_checked == 12  # also of episodes that the writer has not summed yet
    with pull(url, tmp_path / "once more") as again:
        add(again, 2)
        assert ids(again)[-3:] == [11, 12, 13]


@pytest.mark.parametrize("options", [{}, {"circular": True, "max_steps": 60}, {"circular": True, "max_episodes": 4}])
@pytest.mark.parametrize("deleted", [[], [-1], [0, 2]])
def test_rings_and_deleted_episodes(tmp_path, options, deleted):
    with store(), make(tmp_path / "here", 9, **options) as buffer:
        if deleted:
            buffer.delete(deleted)
        push(buffer, URL)
        with pull(URL, tmp_path / "back") as back:
            assert all_values(back) == all_values(buffer)
            assert (back.circular, back.max_steps) == (buffer.circular, buffer.max_steps)
        assert check_buffer(tmp_path / "back").ok


def test_a_buffer_without_episodes(tmp_path):
    with store(), make_plain(tmp_path / "here") as buffer:
        push(buffer, URL)
        with pull(URL, tmp_path / "back") as back:
            add_plain(back, 3)
            assert contents(back) == [[0, 1, 2]]


def test_odd_field_names_and_edited_schemas(tmp_path):
    names = ["a%2Eb", "é", "%20padded%20", "日本", "con", "x" * 150, "a b.c", "zero"]
    fields = dict.fromkeys(names[:-1], "int16") | {"zero": ("float", 0)}
    with store(), ReplayBuffer(tmp_path / "here", fields=fields) as buffer:
        buffer.store_episode(**{name: np.zeros((4, 0)) if name == "zero" else range(4) for name in names})
        buffer.add_field("later", "int64", [range(4)])
        buffer.rename_field("é", "e")
        buffer.store_episode(
            **{name: np.zeros((2, 0)) if name == "zero" else range(2) for name in names if name != "é"}, e=[5, 6]
        )
        push(buffer, URL)
        with pull(URL, tmp_path / "back") as back:
            assert back.fieldnames == buffer.fieldnames
            assert back[1]["e"].tolist() == [5, 6]
            assert back[0]["later"].tolist() == [0, 1, 2, 3]
        assert check_buffer(tmp_path / "back").ok


def test_what_is_there_is_not_sent_again(tmp_path):
    with store() as there, make_plain(tmp_path / "here") as buffer:
        add_plain(buffer, *[1 << 18] * 16)  # 32 MiB
        first = push(buffer, URL)
        assert first.sent >= first.nbytes
        there.calls.clear()
        assert push(buffer, URL) == first.__class__(**{**vars(first), "sent": 0})
        assert there.calls["write"] == 0
        for _ in range(3):
            add_plain(buffer, 1 << 10)  # 8 KiB
            # The first block, in which the header is, and what lies behind the last part that is whole.
            assert push(buffer, URL).sent < 2 << 20
        with pull(URL, tmp_path / "back") as back:
            assert contents(back) == contents(buffer)


def test_revisions_stay(tmp_path):
    with store(), make_plain(tmp_path / "here") as buffer:
        add_plain(buffer, 3)
        first = push(buffer, URL)
        add_plain(buffer, 2)
        second = push(buffer, URL)
        with pull(URL, tmp_path / "first", revision=first.revision[:10]) as back:
            assert contents(back) == [[0, 1, 2]]
        with pull(URL, tmp_path / "second", revision=second.revision) as back:
            assert len(back) == 2
        with pytest.raises(BufferNotFoundError, match=f"no revision 'zz'; the last ones are .*{second.revision[:12]}"):
            pull(URL, tmp_path / "third", revision="zz")


def test_a_push_while_somebody_records(tmp_path):
    with store(), make(tmp_path / "here", 5) as buffer:
        count = 0

        def record(method, path):
            nonlocal count
            count += method == "write"
            if count == 3:
                add(buffer, 3)

        with behaving(record), buffer.one_episode():
            buffer.store(observation=[0, 0, 0], frame=np.zeros((8, 8), np.uint8), words=[1], reward=1.0)
            with behaving():  # the store is written to by threads of the push, of which none is the writer
                push(tmp_path / "here", URL)
        with pull(URL, tmp_path / "back") as back:
            assert all_values(back) == all_values(buffer)[:5]


def test_a_ring_that_goes_on(tmp_path):
    """Episodes that are overwritten while the ring is read are left out."""
    with store(), make_plain(tmp_path / "here", circular=True, max_steps=1 << 18) as buffer:
        add_plain(buffer, *[1 << 15] * 8)
        before = contents(buffer)
        script = """
import sys, time
from gym_replay import push
import fsspec
from fsspec.implementations.local import LocalFileSystem
write = LocalFileSystem.pipe_file
def slow(self, path, value, **options):
    write(self, path, value, **options)
    print("sent", flush=True)
    if "objects" in path:
        sys.stdin.readline()
LocalFileSystem.pipe_file = slow
push(sys.argv[1], sys.argv[2], part_size=1 << 18)
"""
        import subprocess

        url = f"file://{tmp_path}/there"
        command = [sys.executable, "-c", script, str(tmp_path / "here"), url]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
            child.stdout.readline()
            add_plain(buffer, *[1 << 15] * 3, first=8)
            child.stdin.write("\n" * 100)
            child.stdin.close()
            assert child.wait() == 0
        with pull(url, tmp_path / "back") as back:
            assert contents(back) == before[3:]
        assert check_buffer(tmp_path / "back").ok


KILLED = """
import os, sys
from fsspec.implementations.local import LocalFileSystem
import gym_replay
method, most = sys.argv[1], int(sys.argv[2])
original, count = getattr(LocalFileSystem, method), 0
def call(self, path, *arguments, **options):
    global count
    count += 1
    if count > most:
        if method == "pipe_file":  # a file that is not written to its end
            original(self, path, arguments[0][: len(arguments[0]) // 2])
        os._exit(9)
    return original(self, path, *arguments, **options)
setattr(LocalFileSystem, method, call)
gym_replay.push(sys.argv[3], sys.argv[4]) if method == "pipe_file" else gym_replay.pull(sys.argv[3], sys.argv[4])
"""


def test_a_push_that_is_killed(tmp_path):
    buffer = make(tmp_path / "here")
    url = f"file://{tmp_path}/there"
    most, sent = 0, []
    while run_script(KILLED, "pipe_file", most, tmp_path / "here", url)[0] == 9:
        with pytest.raises(BufferNotFoundError, match="no data set"):
            pull(url, tmp_path / "back")
        sent.append(len(list((tmp_path / "there").rglob("objects/*/*"))))
        most += 4
    assert sent == sorted(sent)
    assert len(set(sent)) > 2
    assert all_values(pull(url, tmp_path / "back")) == all_values(buffer)
    add(buffer, 3)
    assert run_script(KILLED, "pipe_file", 2, tmp_path / "here", url)[0] == 9
    assert len(pull(url, tmp_path / "still")) == 12


def test_a_pull_that_is_killed(tmp_path):
    buffer = make(tmp_path / "here")
    url = f"file://{tmp_path}/there"
    push(buffer, url)
    assert run_script(KILLED, "cat_file", 10, url, tmp_path / "back")[0] == 9
    assert not (tmp_path / "back").exists()
    assert list(tmp_path.glob(".back*"))
    assert all_values(pull(url, tmp_path / "back")) == all_values(buffer)
    assert not list(tmp_path.glob(".back*"))


def test_a_pull_goes_on_where_it_was(tmp_path):
    with store() as there, make_plain(tmp_path / "here") as buffer:
        add_plain(buffer, *[1 << 17] * 20)  # 20 MiB
        push(buffer, URL)
        there.calls.clear()
        with (
            behaving(Fails("read", error=PermissionError("no"), always_from=8)),
            pytest.raises(StorageError, match="the same call goes on with what is in"),
        ):
            pull(URL, tmp_path / "back")
        assert not (tmp_path / "back").exists()
        half = there.calls["read bytes"]
        there.calls.clear()
        assert contents(pull(URL, tmp_path / "back")) == contents(buffer)
        assert there.calls["read bytes"] < (20 << 20) + (1 << 20) - half // 2


SOME = {"where": "score > 9", "fields": ["x"]}


@pytest.fixture
def scores(tmp_path):
    """Forty episodes of half a megabyte in a store: the calls of the store, and the buffer."""
    with store() as there, make_plain(tmp_path / "here", meta_fields={"score": "int"}) as buffer:
        for number in range(40):
            buffer.store_episode(x=number + np.arange(1 << 16), score=number)
        push(buffer, URL)
        there.calls.clear()
        yield SimpleNamespace(calls=there.calls, buffer=buffer)


def _cut_pull(target):
    message = rf"nothing is at {target}; the same call goes on with .*gym-replay-pull"
    fails = Fails("read", error=PermissionError("no"), always_from=12)
    with behaving(fails), pytest.raises(StorageError, match=message):
        pull(URL, target, **SOME)
    assert not target.exists()


def test_a_pull_of_some_goes_on_where_it_was(tmp_path, scores):
    target = tmp_path / "back"
    _cut_pull(target)
    half = scores.calls["read bytes"]
    assert half > 2 << 20
    scores.calls.clear()
    with pull(URL, target, **SOME) as back:
        assert [int(episode["x"][0]) for episode in back] == [*range(10, 40)]
    assert scores.calls["read bytes"] < (15 << 20) + (3 << 20) - half
    assert not list(tmp_path.glob(".back*"))
    assert check_buffer(target).ok


def test_what_a_pull_of_some_has_left_is_not_believed(tmp_path, scores):
    target = tmp_path / "back"
    _cut_pull(target)
    (rows,) = tmp_path.glob(".back.gym-replay-pull/steps/x.npy")
    with rows.open("r+b") as file:
        for at in range(0, rows.stat().st_size, 1 << 18):
            file.seek(at)
            file.write(b"not what was there")
    buffer = scores.buffer
    buffer.store_episode(x=np.arange(1 << 16), score=40)
    push(buffer, URL)  # and another revision is there, with longer files
    with pull(URL, target, **SOME) as back:
        assert [episode["x"].tolist() for episode in back] == [buffer[at]["x"].tolist() for at in range(10, 41)]


def test_a_pull_of_some_that_cannot_be_leaves_nothing(tmp_path, scores):
    for wrong in ({"where": "score > 100"}, {"fields": ["y"]}, {"episodes": [50]}):
        with pytest.raises((EmptyBufferError, FieldError, IndexError)):
            pull(URL, tmp_path / "back", **wrong)
    assert not list(tmp_path.glob("*back*"))


def test_a_pull_of_some_that_is_killed(tmp_path):
    buffer = make(tmp_path / "here")
    url = f"file://{tmp_path}/there"
    push(buffer, url)
    script = KILLED.replace("pull(sys.argv[3], sys.argv[4])", "pull(sys.argv[3], sys.argv[4], where='length > 0')")
    assert run_script(script, "cat_file", 12, url, tmp_path / "back")[0] == 9
    assert not (tmp_path / "back").exists()
    assert list(tmp_path.glob(".back*"))
    assert all_values(pull(url, tmp_path / "back", where="length > 0")) == all_values(buffer)
    assert not list(tmp_path.glob(".back*"))


def test_a_store_that_fails_now_and_then(tmp_path):
    with store(), make(tmp_path / "here") as buffer:
        with behaving(Fails("write", numbers=(2, 3, 7), error=ConnectionError("reset"))):
            push(buffer, URL)
        with behaving(Fails("read", numbers=(1, 2, 5), error=TimeoutError("late"))):
            assert all_values(pull(URL, tmp_path / "back")) == all_values(buffer)


def test_a_store_that_refuses(tmp_path):
    with store(Fails("write", error=PermissionError("not yours"), always_from=1)), make(tmp_path / "here") as buffer:
        with pytest.raises(StorageError, match=r"faulty://data/set/objects.*not yours.*storage_options"):
            push(buffer, URL)
        with (
            behaving(Fails("write", error=OSError(errno.ENOSPC, "No space left"), always_from=3)),
            pytest.raises(StorageError, match="No space left"),
        ):
            push(buffer, URL)
        with pytest.raises(BufferNotFoundError):
            pull(URL, tmp_path / "back")


def test_a_store_that_answers_late(tmp_path):
    with store(), make(tmp_path / "here") as buffer:
        push(buffer, URL)
        with behaving(late(0.01)):
            assert all_values(pull(URL, tmp_path / "back")) == all_values(buffer)


@pytest.mark.parametrize("damage", [cut, changed, None])
def test_a_damaged_object(tmp_path, damage):
    with store() as there, make(tmp_path / "here", 30) as buffer:
        push(buffer, URL)
        path = objects()[0]
        content = there.store[path].getvalue()
        if damage is None:
            del there.store[path]
        else:
            replace_object(path, damage(content))
        with pytest.raises(CorruptBufferError, match=rf"{path[-64:]}.*delete it there, and push again"):
            pull(URL, tmp_path / "back")
        assert not (tmp_path / "back").exists()
        with pytest.raises(CorruptBufferError, match=path[-64:]):
            pull(URL, tmp_path / "back", fields=["observation", "frame", "words", "reward"], episodes=slice(0, 30))
        assert not (tmp_path / "back").exists()
        there.store.pop(path, None)
        add(buffer, 1)
        push(buffer, URL)
        assert len(pull(URL, tmp_path / "back")) == 31


def test_a_full_disk(tmp_path, monkeypatch):
    with store(), make(tmp_path / "here") as buffer:
        push(buffer, URL)
        with monkeypatch.context() as patched:
            patched.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
            with pytest.raises(StorageError, match=r"more bytes are needed, 10 are free; nothing is at"):
                pull(URL, tmp_path / "back")
        write, count = os.pwrite, 0

        def refuse(*arguments):
            nonlocal count
            count += 1
            if count > 5:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr("os.pwrite", refuse)
            with pytest.raises(StorageError, match=r"No space left.*nothing is at .*back; the same call"):
                pull(URL, tmp_path / "back")
        assert not (tmp_path / "back").exists()
        assert all_values(pull(URL, tmp_path / "back")) == all_values(buffer)


def test_some_episodes_and_fields(tmp_path):
    with store() as there, make_plain(tmp_path / "here", meta_fields={"score": "int"}) as buffer:
        for number in range(40):
            buffer.store_episode(x=number + np.arange(1 << 16), score=number)  # 20 MiB
        push(buffer, URL)
        there.calls.clear()
        with pull(URL, tmp_path / "two", where="score == 7 or score == 31") as back:
            assert [episode.meta["score"] for episode in back] == [7, 31]
            assert back[1]["x"].tolist() == buffer[31]["x"].tolist()
        assert there.calls["read bytes"] < 5 << 20
        assert check_buffer(tmp_path / "two").ok
        assert len(pull(URL, tmp_path / "three", episodes=[0, -1, 5])) == 3
        with pytest.raises(EmptyBufferError, match="no episode meets"):
            pull(URL, tmp_path / "none", where="score > 100")
        assert not (tmp_path / "none").exists()
    with store(), make(tmp_path / "all kinds") as buffer:
        push(buffer, URL)
        with pull(URL, tmp_path / "fields", fields=["frame", "words"], episodes=slice(3, 7)) as back:
            assert back.fieldnames == ("frame", "words")
            assert np.asarray(back[0]["frame"]).tolist() == np.asarray(buffer[3]["frame"]).tolist()
            assert back[0]["words"].tolist() == buffer[3]["words"].tolist()
        with pytest.raises(FieldError, match="did you mean 'frame'"):
            pull(URL, tmp_path / "wrong", fields=["frames"])


def test_what_is_at_the_target_stays(tmp_path):
    with store(), make_plain(tmp_path / "here") as buffer, make_plain(tmp_path / "there") as old:
        add_plain(buffer, 3)
        add_plain(old, 5)
        push(buffer, URL)
        with pytest.raises(NotABufferError):
            pull(URL, tmp_path / "there")
        old.close()
        with (
            behaving(Fails("read", error=PermissionError(), always_from=6)),
            pytest.raises(StorageError),
        ):
            pull(URL, tmp_path / "there", overwrite=True)
        assert contents(ReplayBuffer.from_folder(tmp_path / "there", read_only=True)) == [[0, 1, 2, 3, 4]]
        assert contents(pull(URL, tmp_path / "there", overwrite=True)) == [[0, 1, 2]]


def test_shards(tmp_path):
    with store():
        for number in range(3):
            with make_plain(tmp_path / "here" / "shards" / f"worker-{number}") as shard:
                add_plain(shard, 2 + number, first=number)
        (tmp_path / "here" / "collect.json").write_text("{}")
        push(tmp_path / "here", URL)
        back = pull(URL, tmp_path / "back")
        assert isinstance(back, ConcatReplayBuffer)
        assert contents(back) == contents(ConcatReplayBuffer(tmp_path / "here"))
        assert (tmp_path / "back" / "collect.json").read_text() == "{}"
        with make_plain(tmp_path / "here" / "shards" / "worker-3") as shard:
            add_plain(shard, 9)
        assert push(tmp_path / "here", URL).num_episodes == 4
        assert len(pull(URL, tmp_path / "some", episodes=[0, 3])) == 2


def test_labels_come_along(tmp_path):
    with store(), make(tmp_path / "here") as buffer:
        assert main(["label", str(tmp_path / "here"), "--set", "good", "--episodes", "0,3"]) == 0
        push(buffer, URL)
        assert len(pull(URL, tmp_path / "back", where="label == 'good'")) == 2
        pull(URL, tmp_path / "all")
        assert (tmp_path / "all" / "labels.json").read_bytes() == (tmp_path / "here" / "labels.json").read_bytes()


def test_other_buffers_are_not_replaced_by_mistake(tmp_path):
    with store(), make_plain(tmp_path / "one") as one, make_plain(tmp_path / "other") as other:
        add_plain(one, 1)
        add_plain(other, 2)
        first = push(one, URL)
        with pytest.raises(ConfigMismatchError, match="other buffers were pushed there before"):
            push(other, URL)
        push(other, URL, overwrite=True)
        assert contents(pull(URL, tmp_path / "back")) == [[0, 1]]
        assert contents(pull(URL, tmp_path / "then", revision=first.revision)) == [[0]]


def test_two_that_push_at_once(tmp_path):
    with store() as there, make_plain(tmp_path / "here") as buffer:
        add_plain(buffer, 1)
        push(buffer, URL)
        head = there.store["/data/set/gym_replay.json"].getvalue()
        add_plain(buffer, 1)

        def other(method, path):
            if method == "write" and "/revisions/" in path:
                replace_object("/data/set/gym_replay.json", head + b"\n")

        with behaving(other), pytest.raises(ConfigMismatchError, match="somebody else pushed there meanwhile"):
            push(buffer, URL)
        push(buffer, URL)
        assert len(pull(URL, tmp_path / "back")) == 2


# --- the card ---


def test_the_card(tmp_path):
    hostile = "[x](javascript:a) <script>alert(1)</script>\n# more | `code`"
    with store() as there, make(tmp_path / "here") as buffer:
        told = json.dumps({"versions": {hostile: "<i>1</i>"}})
        buffer.add_meta_field("episode_run", "str", [told] * 12)
        push(buffer, URL, licence="cc-by-4.0")
        card = there.store["/data/set/README.md"].getvalue().decode()
        assert card.startswith("---\nlicense: cc-by-4.0\n")
        assert "12 episodes" in card
        assert r"\[x\]\(javascript\:a\) &lt;script&gt;" in card
        assert r"\# more \| \`code\`" in card
        assert "<" not in card
        assert f"pull('{URL}', 'data')" in card
        assert b"<svg" in there.store["/data/set/returns.svg"].getvalue()
        with pytest.raises(FieldError, match="licence="):
            push(buffer, URL, licence=hostile)
        replace_object("/data/set/README.md", b"my own words")
        add(buffer, 1)
        push(buffer, URL)
        assert there.store["/data/set/README.md"].getvalue() == b"my own words"


def test_the_lines_of_the_card_load_it(tmp_path):
    with store() as there, make(tmp_path / "here") as buffer:
        push(buffer, URL)
        card = there.store["/data/set/README.md"].getvalue().decode()
        code = card.partition("```python\n")[2].partition("```")[0].replace("'data'", repr(str(tmp_path / "back")))
        exec(code, {})
        assert (tmp_path / "back" / "metadata.json").exists()


# --- what strangers write ---


def rewritten(there, change):
    """Change the manifest of the newest revision, and name it as if it were whole."""
    head = json.loads(there.store["/data/set/gym_replay.json"].getvalue())
    manifest = json.loads(there.store[f"/data/set/revisions/{head['revision']}.json"].getvalue())
    change(manifest)
    content = json.dumps(manifest).encode()
    head["revision"] = head["revisions"][-1]["revision"] = sha256(content).hexdigest()[:32]
    replace_object(f"/data/set/revisions/{head['revision']}.json", content)
    replace_object("/data/set/gym_replay.json", json.dumps(head).encode())


def leads_out(manifest):
    manifest["files"].append({"path": "../../outside", "size": 0, "parts": []})


def is_absolute(manifest):
    manifest["files"].append({"path": "/tmp/outside", "size": 0, "parts": []})


def is_no_file_of_a_buffer(manifest):
    manifest["files"].append({"path": "steps/run.py", "size": 0, "parts": []})


def is_hidden(manifest):
    manifest["files"].append({"path": ".profile", "size": 0, "parts": []})


def is_huge(manifest):
    manifest["files"][-1]["size"] = 1 << 59


def is_endless(manifest):
    manifest["files"][-1]["size"] = 10**40


def lacks_a_file(manifest):
    manifest["files"] = [file for file in manifest["files"] if "reward" not in file["path"]]


def has_odd_parts(manifest):
    manifest["files"][0]["parts"] = ["../../etc/passwd"]


def has_no_files(manifest):
    manifest["files"] = 3


def comes_twice(manifest):
    manifest["files"] *= 2


def has_parts_of_no_size(manifest):
    manifest["part_size"] = 0


HOSTILE = [
    leads_out,
    is_absolute,
    is_no_file_of_a_buffer,
    is_hidden,
    is_huge,
    is_endless,
    lacks_a_file,
    has_odd_parts,
    has_no_files,
    comes_twice,
    has_parts_of_no_size,
]


@pytest.mark.parametrize("change", HOSTILE)
def test_manifests_of_strangers(tmp_path, change):
    with store() as there, make(tmp_path / "here") as buffer:
        push(buffer, URL)
        rewritten(there, change)
        before = files_of(tmp_path)
        for read in (lambda: pull(URL, tmp_path / "back"), lambda: ReplayBuffer.from_url(URL)):
            with pytest.raises(CorruptBufferError):
                read()
        assert files_of(tmp_path).keys() - before.keys() <= {"caches", "caches/gym_replay"}


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", CorruptBufferError),
        (b"[" * 100_000, CorruptBufferError),
        (b'{"format": "other"}', CorruptBufferError),
        (b'{"format": "gym_replay data set", "version": 9}', UnsupportedFormatError),
        (b'{"format": "gym_replay data set", "version": 1, "revision": "../x", "revisions": []}', CorruptBufferError),
        (b"x" * (1 << 25), CorruptBufferError),
    ],
)
def test_heads_of_strangers(tmp_path, content, error):
    with store():
        replace_object("/data/set/gym_replay.json", content)
        with pytest.raises(error, match=r"gym_replay\.json"):
            pull(URL, tmp_path / "back")


def test_a_manifest_that_was_changed(tmp_path):
    with store() as there, make(tmp_path / "here") as buffer:
        pushed = push(buffer, URL)
        path = f"/data/set/revisions/{pushed.revision}.json"
        replace_object(path, there.store[path].getvalue() + b" ")
        with pytest.raises(CorruptBufferError, match="does not match its checksum"):
            pull(URL, tmp_path / "back")


# --- arguments ---


def test_addresses(tmp_path, monkeypatch):
    buffer = make(tmp_path / "here")
    with pytest.raises(FieldError, match="expected an address with a protocol"):
        push(buffer, "data/there")
    with pytest.raises(FieldError, match="nonsense"):
        pull("nonsense://x", tmp_path / "back")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingExtraError, match=r"s3:// needs s3fs.*pip install s3fs"):
        pull("s3://bucket/x", tmp_path / "back")
    with pytest.raises(FieldError, match="part_size=5"):
        push(buffer, "memory://x", part_size=5)
    with pytest.raises(BufferNotFoundError):
        push(tmp_path / "nothing", "memory://x")
    with pytest.raises(TypeError, match="did you mean 'revision'"):
        pull("memory://x", tmp_path / "back", revison="a")


def test_the_command(tmp_path, capsys):
    make(tmp_path / "here").close()
    url = f"file://{tmp_path}/there"
    assert main(["push", str(tmp_path / "here"), url, "--licence", "mit", "--json"]) == 0
    pushed = json.loads(capsys.readouterr().out)
    assert pushed["num_episodes"] == 12
    assert main(["push", str(tmp_path / "here"), url]) == 0
    assert "sent 0 bytes" in capsys.readouterr().out
    assert main(["pull", url, str(tmp_path / "all")]) == 0
    assert "12 episodes" in capsys.readouterr().out
    chosen = ["--where", "episode_return > 3", "--episodes=2:-1", "--fields", "reward"]
    arguments = ["pull", url, str(tmp_path / "some"), "--revision", pushed["revision"][:9], *chosen, "--json"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["num_episodes"] == 7
    with pytest.raises(SystemExit, match="2"):
        main(["pull", url, str(tmp_path / "none"), "--storage-options", "["])
    assert "not JSON" in capsys.readouterr().err
