"""``kelpie stage``, ``kelpie fetch`` and their Python side, against a real S3 server and a real Redis."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import logging
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kelpie_celery.cli import run
from kelpie_celery.client import Kelpie
from kelpie_celery.errors import DirectoryError, NoOutputs, StorageSetupError, UnsafeKey
from kelpie_celery.ledger.types import Ending, FencingToken, Granted
from kelpie_celery.lifecycle import Outcome, Reason
from kelpie_celery.listings import OutputFile, OutputListing
from kelpie_celery.local.binaries import script
from kelpie_celery.local.ports import reserve
from kelpie_celery.settings import load_settings
from kelpie_celery.staging import content, download, fetch_outputs, upload
from tests.harness.isolation import FOREIGN_PREFIXES
from tests.harness.looking import outputs_under
from tests.integration.sync_proxy import Fault, proxy_before
from tests.unit.cli_harness import Answer

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BOUND_S = 60.0
COMMAND = str(script("kelpie", "kelpie-celery"))
LARGE = os.urandom(18 * content.MIB + 17)
FILES = {
    "a": b"one", "deep/er/b": b"two" * 1000, "empty": b"", "with space/näme\n\u2603": b"odd", "large.bin": LARGE,
}  # fmt: skip


def fill(directory: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    return directory


def tree(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


class Cli:
    """Runs ``kelpie`` in this process: a process of its own takes a second of CPU time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *argv: str, code: int = 0, **env: str) -> Answer:
        with self._monkeypatch.context() as patch:
            for name, value in env.items():
                patch.setenv(name, value)
            self._capsys.readouterr()
            answer = Answer(run(argv), *self._capsys.readouterr())
        assert answer.code == code, answer
        assert os.environ["AWS_SECRET_ACCESS_KEY"] not in answer.out + answer.err
        return answer


@pytest.fixture
def cli(s3_env: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield Cli(monkeypatch, capsys)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(autouse=True)
def _parts_of_small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "SINGLE_BYTES", 10 * content.MIB)


@pytest.fixture
def kelpie(redis_url: str, s3_env: dict[str, str]) -> Iterator[Kelpie]:
    with Kelpie(settings=load_settings({"KELPIE_REDIS_URL": redis_url, **s3_env})) as client:
        yield client


# -- a directory there and back ----------------------------------------------------------------------------------


def test_a_directory_goes_up_and_comes_back_as_it_was(cli: Cli, s3: S3Client, s3_bucket: str, tmp_path: Path) -> None:
    data, place = fill(tmp_path / "data", FILES), f"s3://{s3_bucket}/sets/a"
    (data / "link").symlink_to("a")
    (data / "bare").mkdir()
    planned = cli("stage", str(data), place, "--dry-run", "--json").document
    assert (planned["sent"], outputs_under(s3, s3_bucket, "sets/")) == (len(FILES), {})
    first = cli("stage", str(data), place, "--json")
    assert first.document == {**planned, "dry_run": False}
    assert (first.document["links"], first.document["empty"]) == (["link"], ["bare"])
    assert "link" in first.err
    assert outputs_under(s3, s3_bucket, "sets/a/") == FILES
    told: list[tuple[int, int]] = []
    done = download(s3_bucket, "sets/a", tmp_path / "out", progress=lambda came, all_: told.append((came, all_)))
    assert tree(tmp_path / "out") == FILES
    assert (done.fetched, done.fetched_bytes, done.unchanged) == (len(FILES), sum(map(len, FILES.values())), 0)
    assert done.by_length == 0
    assert told[-1] == (done.bytes, done.bytes)


def test_what_is_there_unchanged_is_not_moved_again(
    s3_env: dict[str, str], s3: S3Client, s3_bucket: str, tmp_path: Path
) -> None:
    data = fill(tmp_path / "data", FILES)
    upload(data, s3_bucket, "in/")
    fill(data, {"a": b"ONE", "new": b"1"})
    s3.put_object(Bucket=s3_bucket, Key="in/foreign", Body=b"x")
    again = upload(data, s3_bucket, "in/")
    assert (again.sent, again.replaced, again.unchanged, again.extra) == (2, 1, len(FILES) - 1, 1)
    assert upload(data, s3_bucket, "in/").sent == 0
    forced = upload(data, s3_bucket, "in/", force=True)
    assert (forced.sent, forced.unchanged) == (len(FILES) + 1, 0)
    out = tmp_path / "out"
    download(s3_bucket, "in/", out)
    (out / "deep/er/b").unlink()
    resumed = download(s3_bucket, "in/", out)
    assert (resumed.fetched, resumed.unchanged) == (1, len(FILES) + 1)


def test_a_file_of_yours_is_replaced_only_by_force(
    s3_env: dict[str, str], s3: S3Client, s3_bucket: str, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        s3.put_object(Bucket=s3_bucket, Key=f"in/{name}", Body=b"theirs")
    out = fill(tmp_path / "out", {"b": b"mine!!"})
    with pytest.raises(DirectoryError, match="holds files that are not what the storage has: b; nothing was fetched"):
        download(s3_bucket, "in/", out)
    assert tree(out) == {"b": b"mine!!"}
    download(s3_bucket, "in/", out, force=True)
    assert tree(out) == {"a": b"theirs", "b": b"theirs"}


@pytest.mark.parametrize("part_mib", [5, 16])
def test_objects_that_other_programs_cut_otherwise_are_known_again(
    s3_env: dict[str, str], s3: S3Client, s3_bucket: str, tmp_path: Path, part_mib: int
) -> None:
    from boto3.s3.transfer import TransferConfig

    data = fill(tmp_path / "data", {"large.bin": LARGE})
    config = TransferConfig(multipart_threshold=1, multipart_chunksize=part_mib * content.MIB)
    s3.upload_file(str(data / "large.bin"), s3_bucket, "in/large.bin", Config=config)
    assert upload(data, s3_bucket, "in/").unchanged == 1
    assert download(s3_bucket, "in/", data).unchanged == 1


# -- what is refused ---------------------------------------------------------------------------------------------


def test_keys_that_lead_out_of_the_directory_or_clash_are_refused(
    s3_env: dict[str, str], s3_bucket: str, s3: S3Client, tmp_path: Path
) -> None:
    s3.put_object(Bucket=s3_bucket, Key="clash/a/b", Body=b"x")
    data = fill(tmp_path / "data", {"a": b"1"})
    with pytest.raises(StorageSetupError, match=r"clash/a and s3://.*/clash/a/b cannot both be"):
        upload(data, s3_bucket, "clash/")
    # A link of the user's leads out: nothing is written through it.
    out, elsewhere = tmp_path / "linked", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (out / "a").symlink_to(elsewhere)
    with pytest.raises(UnsafeKey, match="through the link"):
        download(s3_bucket, "clash/", out)
    assert list(elsewhere.iterdir()) == []


def test_what_cannot_be_sent_is_told_before_anything_is(
    s3_env: dict[str, str], s3_bucket: str, s3: S3Client, tmp_path: Path
) -> None:
    data = fill(tmp_path / "data", {"good": b"1"})
    (data / os.fsdecode(b"b\xffd")).write_bytes(b"1")
    with pytest.raises(DirectoryError, match="not UTF-8 cannot be keys; rename these files: 'b"):
        upload(data, s3_bucket, "in/")
    (data / os.fsdecode(b"b\xffd")).unlink()
    fill(data, {"..\\up": b"1"})
    with pytest.raises(UnsafeKey, match="between backslashes"):
        upload(data, s3_bucket, "in/")
    (data / "..\\up").unlink()
    long = "/".join(["x" * 200] * 5)
    fill(data, {long: b"1"})
    with pytest.raises(DirectoryError, match="a key has at most 1024"):
        upload(data, s3_bucket, "in/" + "p" * 100)
    assert outputs_under(s3, s3_bucket, "") == {}


def test_links_sockets_and_our_own_names_are_left_out_and_told(
    s3_env: dict[str, str], s3_bucket: str, s3: S3Client, tmp_path: Path
) -> None:
    data = fill(tmp_path / "data", {"good": b"1", "x.kelpie/record": b"1", ".kelpie-tmp-1": b"1"})
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(data / "sock"))
        done = upload(data, s3_bucket, "in/")
    assert (done.sent, done.others) == (1, ("sock", ".kelpie-tmp-1", "x.kelpie"))
    assert outputs_under(s3, s3_bucket, "in/") == {"good": b"1"}


def test_a_file_that_changes_while_it_is_sent_is_told(
    s3_env: dict[str, str], s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kelpie_celery.staging.carrier import Carrier

    data, send = fill(tmp_path / "data", {"a": b"1"}), Carrier.send_small

    def meanwhile(self: Carrier, path: Path, *more: Any) -> None:
        send(self, path, *more)
        path.write_bytes(b"22")

    monkeypatch.setattr(Carrier, "send_small", meanwhile)
    with pytest.raises(DirectoryError, match="changed while it was sent"):
        upload(data, s3_bucket, "in/")


def test_faults_are_one_line_that_names_the_place_and_what_to_do(cli: Cli, s3_bucket: str, tmp_path: Path) -> None:
    data, place = str(fill(tmp_path / "data", {"a": b"1"})), f"s3://{s3_bucket}/in"
    (tmp_path / "none").mkdir()
    block = reserve()
    away = f"http://127.0.0.1:{block[0]}"
    block.release()
    cases = [
        (cli("stage", data, "s3://no-such-bucket-at-all/p", code=2), "listing failed: the bucket does not exist"),
        (cli("stage", data, f"s3://{s3_bucket}", code=2), "is no place for files"),
        (cli("stage", data, f"s3://{s3_bucket}/runs.kelpie/x", code=2), "kelpie's own"),
        (cli("stage", str(tmp_path / "nonesuch"), place, code=2), "does not exist"),
        (cli("stage", str(tmp_path / "none"), place, code=2), "holds no file"),
        (cli("stage", data, place, code=2, AWS_SECRET_ACCESS_KEY="wrong"), "check AWS_SECRET_ACCESS_KEY"),
        (cli("stage", data, place, code=2, AWS_ACCESS_KEY_ID=""), "set AWS_ACCESS_KEY_ID"),
        (cli("stage", data, place, code=69, AWS_ENDPOINT_URL=away), "check that it is up"),
    ]  # fmt: skip
    for done, words in cases:
        assert done.err.startswith("kelpie: error: "), done.err
        assert words in done.err, done.err
        assert (done.err.count("\n"), done.out) == (1, "")


# -- interruptions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["up", "down"])
async def test_ctrl_c_ends_with_130_leaves_nothing_torn_and_the_same_command_goes_on(
    cli: Cli, kelpie: Kelpie, redis_url: str, s3: S3Client, s3_bucket: str, tmp_path: Path, way: str
) -> None:
    files = {f"part-{n:02}": os.urandom(100_000) for n in range(40)} | {"z/large": os.urandom(40 * content.MIB)}
    data, out = fill(tmp_path / "data", files), tmp_path / "out"
    if way == "up":
        argv = ["stage", str(data), f"s3://{s3_bucket}/in"]
    else:
        job_id = await asyncio.to_thread(
            completed, kelpie, s3, s3_bucket, {f"in/{name}": body for name, body in files.items()}, "in/"
        )
        argv = ["fetch", job_id, "-o", str(out)]
    bare = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN_PREFIXES)}
    aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    async with proxy_before(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        moved, go_on = 0, asyncio.Event()
        # The last one is the first part of the large file: it is under way, and held, when the signal comes.
        limit = len(files)

        async def hold(number: int) -> Fault | None:
            nonlocal moved
            method, target = proxy.seen[number - 1]
            if method == ("PUT" if way == "up" else "GET") and "/in/" in target and "list-type" not in target:
                moved += 1
                if moved > limit:
                    await go_on.wait()
            return None

        proxy.before = hold
        env = bare | aws | {"KELPIE_REDIS_URL": redis_url, "AWS_ENDPOINT_URL": proxy.url}
        process = await asyncio.create_subprocess_exec(COMMAND, *argv, env=env, stderr=asyncio.subprocess.PIPE)
        async with asyncio.timeout(BOUND_S):
            while moved <= limit:
                await asyncio.sleep(0.02)
            process.send_signal(signal.SIGINT)
            go_on.set()
            said = (await process.communicate())[1].decode()
    assert (process.returncode, said.strip()) == (130, "kelpie: error: interrupted")
    whole = outputs_under(s3, s3_bucket, "in/") if way == "up" else tree(out)
    assert whole
    assert all(files[name] == body for name, body in whole.items())
    if way == "up":
        assert s3.list_multipart_uploads(Bucket=s3_bucket).get("Uploads", []) == []
        assert "z/large" not in whole
    resumed = cli(*argv, "--json", KELPIE_REDIS_URL=redis_url).document
    assert resumed["unchanged"] == len(whole)
    assert (outputs_under(s3, s3_bucket, "in/") if way == "up" else tree(out)) == files


async def test_what_is_damaged_or_cut_off_on_its_way_is_sent_and_fetched_again(
    s3_env: dict[str, str], s3: S3Client, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = fill(tmp_path / "data", {"a": b"some text", "large": LARGE})
    async with proxy_before(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        damaged = proxy.fail("PUT", "/in/a", "damage")
        failed = proxy.fail("PUT", "/in/large", "503")
        await asyncio.to_thread(upload, data, s3_bucket, "in/")
        assert (damaged.met, failed.met) == (1, 1)
        assert outputs_under(s3, s3_bucket, "in/") == tree(data)
        cut = [proxy.fail("GET", f"/in/{name}", "cut") for name in ("a", "large")]
        done = await asyncio.to_thread(download, s3_bucket, "in/", tmp_path / "out")
        assert [rule.met for rule in cut] == [1, 1]
    assert tree(tmp_path / "out") == tree(data)
    assert done.by_length == 0


def test_what_a_killed_fetch_left_is_cleared_and_two_at_once_are_kept_apart(
    s3_env: dict[str, str], s3: S3Client, s3_bucket: str, tmp_path: Path
) -> None:
    from kelpie_celery.staging.scratch import scratch_of

    s3.put_object(Bucket=s3_bucket, Key="in/a", Body=b"1")
    out = fill(tmp_path / "out", {".kelpie-tmp-fetch/0": b"half"})
    with scratch_of(out), pytest.raises(DirectoryError, match="another process fills"):
        download(s3_bucket, "in/", out)
    download(s3_bucket, "in/", out)
    assert tree(out) == {"a": b"1"}


# -- outputs of jobs ---------------------------------------------------------------------------------------------


def after(bucket: str, *prefixes: str, **more: Any) -> dict[str, Any]:
    blocks = [
        {"bucket": bucket, "prefix": prefix, "local_path": f"/data/{prefix}", "direction": "upload"}
        for prefix in prefixes
    ]
    return {"command": "true", "container_group_id": "g", "sync": {"after": blocks}, **more}


def claimed(kelpie: Kelpie, definition: dict[str, Any]) -> FencingToken:
    granted = kelpie.app.ledger.claim(kelpie.submit(definition).id, "nonce", "m", "w@m", None, may_run=True)
    assert isinstance(granted, Granted)
    return granted.token


def completed(kelpie: Kelpie, s3: S3Client, bucket: str, objects: dict[str, bytes], *prefixes: str, **more: Any) -> str:
    """A job that completed with these outputs, and a listing of them, as a worker leaves it."""
    token = claimed(kelpie, after(bucket, *prefixes, **more))
    files = []
    for key, body in sorted(objects.items()):
        etag = s3.put_object(Bucket=bucket, Key=key, Body=body)["ETag"].strip('"')
        files.append(OutputFile(bucket, key, len(body), hashlib.sha256(body).hexdigest(), etag))
    listing = OutputListing(
        tuple(files), bucket, f"{prefixes[0].rstrip('/')}.kelpie/jobs/{token.job_id}/outputs-1.json"
    )
    s3.put_object(Bucket=bucket, Key=listing.key, Body=listing.to_json())
    ending = Ending(Outcome.COMPLETED, Reason.DONE, result={"outputs": listing.summary()})
    kelpie.app.ledger.end_attempt(token, ending)
    return token.job_id


def test_the_outputs_of_a_job_are_those_of_its_listing(
    cli: Cli, kelpie: Kelpie, redis_url: str, s3: S3Client, s3_bucket: str, tmp_path: Path
) -> None:
    job_id = completed(kelpie, s3, s3_bucket, {"out/a": b"1", "out/d/b": b""}, "out/")
    s3.put_object(Bucket=s3_bucket, Key="out/of-another-attempt", Body=b"x")
    done = cli("fetch", job_id, "-o", str(tmp_path / "o"), "--json", KELPIE_REDIS_URL=redis_url).document
    assert tree(tmp_path / "o") == {"a": b"1", "d/b": b""}
    assert done == {
        "job_id": job_id, "status": "completed", "verified": True, "prefixes": [f"s3://{s3_bucket}/out/"],
        "directory": str(tmp_path / "o"), "files": 2, "bytes": 1, "fetched": 2, "fetched_bytes": 1, "unchanged": 0,
        "by_length": 0,
    }  # fmt: skip


def test_of_several_prefixes_each_gets_a_folder_and_packed_files_are_unpacked(
    kelpie: Kelpie, s3: S3Client, s3_bucket: str, tmp_path: Path
) -> None:
    objects = {"r/a/x.gz": gzip.compress(b"one"), "r/b/y.gz": gzip.compress(b"two"), "r/b/plain": b"3"}
    job_id = completed(kelpie, s3, s3_bucket, objects, "r/a/", "r/b/", compression=True)
    fetch_outputs(kelpie, job_id, tmp_path)
    assert tree(tmp_path) == {"r/a/x": b"one", "r/b/y": b"two", "r/b/plain": b"3"}
    assert fetch_outputs(kelpie, job_id, tmp_path).fetched.unchanged == 3
    (tmp_path / "r/a/x").write_bytes(b"mine")
    with pytest.raises(DirectoryError, match="r/a/x"):
        fetch_outputs(kelpie, job_id, tmp_path)
    fetch_outputs(kelpie, job_id, tmp_path, force=True)
    assert (tmp_path / "r/a/x").read_bytes() == b"one"


def test_an_output_that_was_replaced_since_is_not_taken_for_the_jobs(
    kelpie: Kelpie, s3: S3Client, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kelpie_celery.clock.SystemClock.sleep", lambda _self, _seconds: None)
    job_id = completed(kelpie, s3, s3_bucket, {"out/a": b"1", "out/b": b"2"}, "out/")
    s3.put_object(Bucket=s3_bucket, Key="out/a", Body=b"!")
    with pytest.raises(StorageSetupError, match=r"out/a is not what the job stored.*as_is"):
        fetch_outputs(kelpie, job_id, tmp_path / "o")
    assert "a" not in tree(tmp_path / "o" if (tmp_path / "o").exists() else tmp_path)
    s3.delete_object(Bucket=s3_bucket, Key="out/a")
    with pytest.raises(StorageSetupError, match="out/a: reading failed"):
        fetch_outputs(kelpie, job_id, tmp_path / "o")
    s3.put_object(Bucket=s3_bucket, Key="out/a", Body=b"?")
    done = fetch_outputs(kelpie, job_id, tmp_path / "p", as_is=True)
    assert (done.is_verified, tree(tmp_path / "p")) == (False, {"a": b"?", "b": b"2"})


def test_a_damaged_listing_is_told_and_a_lost_one_too(
    kelpie: Kelpie, s3: S3Client, s3_bucket: str, tmp_path: Path
) -> None:
    job_id = completed(kelpie, s3, s3_bucket, {"out/a": b"1"}, "out/")
    key = f"out.kelpie/jobs/{job_id}/outputs-1.json"
    s3.put_object(Bucket=s3_bucket, Key=key, Body=b'{"files": []}')
    with pytest.raises(StorageSetupError, match="is not the listing that job"):
        fetch_outputs(kelpie, job_id, tmp_path / "o")
    s3.delete_object(Bucket=s3_bucket, Key=key)
    with pytest.raises(NoOutputs, match=r"is gone from the storage; 1 objects \(1 bytes\) lie below .*as_is"):
        fetch_outputs(kelpie, job_id, tmp_path / "o")


def test_a_job_that_has_not_completed_is_told_with_what_there_is(
    cli: Cli,
    kelpie: Kelpie,
    redis_url: str,
    s3: S3Client,
    s3_bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    definition = after(s3_bucket, "out/")
    definition["sync"]["after"][0]["pattern"] = "^keep"
    token = claimed(kelpie, definition)
    out = str(tmp_path / "o")
    monkeypatch.setenv("KELPIE_REDIS_URL", redis_url)
    assert "nothing lies below" in cli("fetch", token.job_id, "-o", out, code=1).err
    for name in ("keep", "other"):
        s3.put_object(Bucket=s3_bucket, Key=f"out/{name}", Body=b"1")
    told = cli("fetch", token.job_id, "-o", out, code=1).err
    assert "has not ended (running), so its outputs are not complete: 1 objects (1 bytes) lie below" in told
    assert "--as-is" in told
    assert not Path(out).exists()
    done = cli("fetch", token.job_id, "-o", out, "--as-is")
    assert "need not be what the job stored; the job is running" in done.err
    assert tree(Path(out)) == {"keep": b"1"}
    none = kelpie.submit({"command": "true", "container_group_id": "g", "sync": {}}).id
    assert "has no `after` block" in cli("fetch", none, code=1).err
    assert "no job has the id" in cli("fetch", "nonesuch", code=2).err


def test_the_newest_checkpoint_is_fetched_instead_on_request(
    cli: Cli,
    kelpie: Kelpie,
    redis_url: str,
    s3: S3Client,
    s3_bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tests.harness.commits import Attempt, during

    made = Attempt.of(kelpie, s3, during("runs/a/", bucket=s3_bucket))
    id_ = made.commit({"x": b"1"})
    monkeypatch.setenv("KELPIE_REDIS_URL", redis_url)
    done = cli("fetch", made.job_id, "--checkpoint", "-o", str(tmp_path / "o"), "--json").document
    assert (done["parts"][0]["checkpoint"], tree(tmp_path / "o")) == (id_, {"x": b"1"})
    assert "neither" in cli("fetch", made.job_id, "--checkpoint", "--as-is", code=2).err


def test_json_documents_are_all_that_is_on_stdout(cli: Cli, s3_bucket: str, tmp_path: Path) -> None:
    data = fill(tmp_path / "data", {"n\u00e4me": b"1"})
    said = cli("stage", str(data), f"{s3_bucket}/in", "--json").out
    assert said.isascii()
    assert set(json.loads(said)) == {
        "directory", "dry_run", "url", "files", "bytes", "sent", "sent_bytes", "replaced", "unchanged", "links",
        "others", "empty", "extra",
    }  # fmt: skip
