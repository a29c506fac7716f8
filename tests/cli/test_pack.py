"""`fico pack` and `fico unpack`: whole and as the manifest says, or refused with nothing written."""

import hashlib
import io
import os
import shutil
import subprocess
import tarfile

import pytest
from cli_tools import copied, flip_a_bit
from stub_bundles import FILES, LINKED_NS, write_engine, write_stub


@pytest.fixture
def own(tmp_path):
    """A bundle, one of whose files is a hard link to a checkpoint's."""
    bundle = write_stub(tmp_path / "a bundle", mtimes={"onnx/model.onnx": LINKED_NS})
    os.utime(bundle / "onnx" / "model.onnx", ns=(LINKED_NS, LINKED_NS))
    os.link(bundle / "onnx" / "model.onnx", tmp_path / "checkpoint.safetensors")
    return bundle


@pytest.fixture
def packed(fico, own, tmp_path):
    """Its archive."""
    out = tmp_path / "b.tar"
    assert fico("pack", own, "--out", out).code == 0
    return out


@pytest.fixture
def spoilt(fico, tmp_path):
    """spoilt(archive, *words): it is refused, and nothing remains."""

    def check(archive, *words):
        before = sorted(p.name for p in tmp_path.iterdir())
        fico("unpack", archive, "--out", tmp_path / "out").refuses(*words)
        assert sorted(p.name for p in tmp_path.iterdir()) == before

    return check


def rewritten(packed, change):
    """The archive with what `change` makes of its (header, content) pairs."""
    with tarfile.open(packed) as tar:
        entries = [(m, tar.extractfile(m).read()) for m in tar]
    with tarfile.open(packed, "w") as tar:
        for header, content in change(entries):
            header.pax_headers = {}
            header.size = len(content) if header.isreg() else 0
            tar.addfile(header, io.BytesIO(content))
    return packed


def header(name, kind=tarfile.REGTYPE, link=""):
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


def test_what_is_packed_is_unpacked(fico, own, packed, tmp_path):
    made = fico("unpack", packed, "--out", tmp_path / "out", "--json").json

    assert made["files"] == len(FILES) + 1
    for name, content in FILES.items():
        assert (tmp_path / "out" / name).read_bytes() == content
    assert (tmp_path / "out" / "manifest.json").read_bytes() == (own / "manifest.json").read_bytes()
    file = (tmp_path / "out" / "onnx" / "model.onnx").stat()
    assert (file.st_mtime_ns, file.st_nlink) == (LINKED_NS, 1)
    assert fico("inspect", tmp_path / "out", "--check").code == 0


def test_an_archive_is_the_same_whenever_it_is_packed(fico, own, packed, tmp_path):
    again = copied(own, tmp_path / "moved" / "a bundle")
    os.utime(again / "config.json", (1, 1))
    said = fico("pack", again, "--out", tmp_path / "c.tar", "--json").json

    assert (tmp_path / "c.tar").read_bytes() == packed.read_bytes()
    assert said["sha256"] == hashlib.sha256(packed.read_bytes()).hexdigest()
    assert said["bytes"] == packed.stat().st_size
    assert f"SHA-256 of the archive: {said['sha256']}" in fico("pack", again, "--out", tmp_path / "d.tar").out
    manifest = hashlib.sha256((again / "manifest.json").read_bytes()).hexdigest()
    told = fico("unpack", tmp_path / "d.tar", "--out", tmp_path / "d").out
    assert f"SHA-256 of the manifest, which lists all others: {manifest}" in told


def test_any_tar_unpacks_it_and_what_any_tar_packs_is_unpacked(fico, packed, tmp_path):
    (tmp_path / "by tar").mkdir()
    subprocess.run(["tar", "xf", packed, "-C", tmp_path / "by tar"], check=True)
    bundle = tmp_path / "by tar" / "a bundle"

    assert (bundle / "onnx" / "model.onnx").stat().st_mtime_ns == LINKED_NS
    assert fico("inspect", bundle, "--check").code == 0
    subprocess.run(["tar", "cf", tmp_path / "gnu.tar", "-C", tmp_path / "by tar", "./a bundle"], check=True)
    assert fico("unpack", tmp_path / "gnu.tar", "--out", tmp_path / "out").code == 0


@pytest.mark.parametrize("damage", ["bit", "missing", "short"])
def test_a_damaged_bundle_is_not_packed(damage, fico, own, tmp_path):
    path = own / "onnx" / "model.onnx"
    if damage == "bit":
        flip_a_bit(path)
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    before = sorted(tmp_path.iterdir())

    fico("pack", own).refuses("onnx/model.onnx", "packed", "copy or export the bundle again")
    assert sorted(tmp_path.iterdir()) == before


def test_an_archive_that_is_there_stays_unless_told_otherwise(fico, own, packed):
    whole = packed.read_bytes()
    fico("pack", own, "--out", packed).refuses("exists", "--overwrite")
    packed.write_bytes(whole[:1000])
    assert fico("pack", own, "--out", packed, "--overwrite").code == 0
    assert packed.read_bytes() == whole
    packed.write_text("mine")
    for overwrite in ([], ["--overwrite"]):
        fico("pack", own, "--out", packed, *overwrite).refuses(
            "is no archive of a bundle", "--out another file"
        )
    assert packed.read_text() == "mine"
    fico("pack", own, "--out", own / "x.tar").refuses("is inside the bundle")


def test_a_bundle_that_is_there_stays_unless_told_otherwise(fico, packed, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")

    fico("unpack", packed, "--out", tmp_path / "out").refuses("exists", "--overwrite")
    fico("unpack", packed, "--out", tmp_path / "out", "--overwrite").refuses("is not a bundle")
    assert (tmp_path / "out" / "mine").read_text() == "mine"


def test_a_full_disk_is_refused_before_anything_is_written(fico, own, packed, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))

    fico("pack", own, "--out", tmp_path / "c.tar").refuses("the archive needs", "--out")
    fico("unpack", packed, "--out", tmp_path / "out").refuses("the bundle needs", "--out")


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 1.0])
def test_a_truncated_archive_is_refused(share, packed, spoilt):
    """Even if one byte of content is all that is missing; the zeros after it are not."""
    content = packed.read_bytes()
    last = content.index(FILES["onnx/model.onnx"]) + len(FILES["onnx/model.onnx"]) - 1
    packed.write_bytes(content[: int(share * last)])

    spoilt(packed, str(packed), "again")


def test_an_edited_archive_is_refused(packed, spoilt):
    content = packed.read_bytes()
    place = content.index(FILES["onnx/model.onnx"])
    packed.write_bytes(content[:place] + b"X" + content[place + 1 :])

    spoilt(packed, "onnx/model.onnx does not have the SHA-256", "pack the bundle again")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a bundle/../../evil", ["leads out"]),
        ("/tmp/evil", ["leads out"]),
        ("..", ["leads out"]),
        ("a bundle/..\\evil", ["leads out"]),
        ("a bundle/surprise", ["surprise is not in its manifest"]),
        ("a bundle/trt/rtx/model.engine", ["is not in its manifest"]),
        ("another/file", ["does not hold one bundle"]),
        ("alone", ["is in no folder"]),
        ("a bundle/config.json", ["twice"]),
    ],
)
def test_what_does_not_belong_in_an_archive_is_refused(name, words, packed, spoilt):
    spoilt(rewritten(packed, lambda entries: [*entries, (header(name), b"x")]), *words)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(kind, packed, spoilt):
    entry = (header("a bundle/config.json", kind, "/etc/passwd"), b"")
    keep = lambda entries: [e for e in entries if not e[0].name.endswith("config.json")]  # noqa: E731

    spoilt(
        rewritten(packed, lambda entries: [*keep(entries), entry]), "config.json' is ", "--hard-dereference"
    )


def test_an_archive_without_one_of_its_files_is_refused(packed, spoilt):
    spoilt(rewritten(packed, lambda entries: entries[:-1]), "is missing")


def test_what_is_no_archive_of_a_bundle_is_refused(fico, packed, spoilt, tmp_path):
    subprocess.run(["gzip", "-k", packed], check=True)
    (tmp_path / "text").write_text("no tar")

    spoilt(tmp_path / "b.tar.gz", "is no plain tar", "gunzip")
    spoilt(tmp_path / "text", "is no plain tar")
    spoilt(tmp_path / "absent", "no archive", "fico pack")
    spoilt(rewritten(packed, lambda entries: entries[1:]), "does not hold one bundle")
    fico("pack", tmp_path / "absent").refuses("is no bundle")


def test_engines_go_along_if_asked_for(fico, own, tmp_path):
    fico("pack", own, "--with-engines").refuses("has no engines", "fico build")
    engines = write_engine(own)

    without = fico("pack", own, "--out", tmp_path / "1.tar", "--json").json
    made = fico("pack", own, "--out", tmp_path / "2.tar", "--with-engines", "--json").json
    fico("unpack", tmp_path / "2.tar", "--out", tmp_path / "out")

    assert (without["engines"], made["engines"]) == ([], ["rtx"])
    assert (tmp_path / "out/trt/rtx/model.engine").read_bytes() == b"plan"
    (engines / "model.engine").write_bytes(b"plan of another size")
    fico("pack", own, "--with-engines").refuses("model.engine has 20 bytes, not 4")
    (engines / "model.engine").write_bytes(b"pla2")
    fico("pack", own, "--with-engines").refuses("model.engine does not have the SHA-256")
