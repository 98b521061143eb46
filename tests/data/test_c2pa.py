"""Signed files: by whom, what finds a change, and what is refused before anything is drawn."""

import io
import json
import random
import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import av
import pytest
import toy_plugin
from environment import ROOT
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from test_fuzz import HOW, damaged
from test_provenance import FACTS, WRITE

import scm_core
from scm_core.apps import provenance as command
from scm_core.apps import sample
from scm_core.apps.sharing import signing
from scm_core.base import console
from scm_core.base.errors import UserError
from scm_core.data import provenance

c2pa = pytest.importorskip("c2pa")
from certificates import DAY, REFUSED, TAKEN, Issuer  # noqa: E402
from cryptography.hazmat.primitives import serialization  # noqa: E402

MEDIA = {".png": b"IDAT", ".gif": b"NETSCAPE", ".wav": b"data", ".flac": b"fLaC", ".mp4": b"mdat"}


def words(certificate, key):
    return f"sign.certificate={certificate}", f"sign.key={key}"


@pytest.fixture(scope="session")
def issuer(tmp_path_factory):
    return Issuer(tmp_path_factory.mktemp("issuer"))


@pytest.fixture(scope="session")
def alice(issuer):
    return issuer.issue("Alice")


@pytest.fixture(scope="session")
def drawn(alice, tmp_path_factory):
    """What a run of each modality writes, signed by Alice, and what the first of them prints."""
    folder = tmp_path_factory.mktemp("drawn")
    line = [sys.executable, "-m", "scm_core.sample", "modality=image", "n=2", "seed=3"]
    line += [f"out={folder / 'image'}", *words(*alice)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("audio", "video"):
        sample.main([f"modality={name}", "n=1", "seed=3", f"out={folder / name}", *words(*alice)])
    return folder, done.stdout + done.stderr


@pytest.fixture
def says(monkeypatch, capfd):
    """What `scm_core.provenance` prints of files that it does not refuse."""

    def says(*words):
        monkeypatch.setattr(sys, "argv", ["provenance", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            console.run(command.main, "")
        said = capfd.readouterr()
        assert caught.value.code == 0, said.err
        return said.out

    return says


def manifest(path, trust):
    """A file's manifest and claim by C2PA's own reader, and how that judges it."""
    context = c2pa.Context.from_dict({"trust": {"trust_anchors": trust.read_text()}})
    with c2pa.Reader(path, context=context) as reader:
        (whole,) = json.loads(reader.detailed_json())["manifests"].values()
        return reader.get_active_manifest(), whole["claim"], reader.get_validation_state()


def test_every_file_of_a_run_is_signed(drawn, issuer):
    files = [path for path in drawn[0].rglob("*.*") if path.is_file()]
    assert {path.suffix for path in files} == set(WRITE)
    for path in files:
        found, claim, state = manifest(path, issuer.trust)
        assert state == "Trusted", path
        assert "gathered_assertions" not in claim  # which the signer would not answer for
        assert found["title"] == path.name
        (generator,) = found["claim_generator_info"]
        assert (generator["name"], generator["version"]) == ("scm-core", scm_core.__version__)
        stated = {one["label"]: one["data"] for one in found["assertions"]}
        assert stated["org.scm-core.provenance"] == provenance.read(path)
        (action,) = stated["c2pa.actions.v2"]["actions"]
        assert action["action"] == "c2pa.created"
        source = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
        assert action["digitalSourceType"] == source


def test_the_key_is_written_nowhere(drawn, alice):
    folder, said = drawn
    key = alice[1].read_text()
    secret = [str(alice[1]), alice[1].name, *key.splitlines()[1:-1]]
    private = serialization.load_pem_private_key(key.encode(), None)
    number = private.private_numbers().private_value
    secret = [text.encode() for text in secret] + [number.to_bytes(32)]
    for content in [said.encode(), *(path.read_bytes() for path in folder.rglob("*.*"))]:
        assert not any(text in content for text in secret)


def test_the_command_says_who_signed(drawn, issuer, tmp_path, says, refused):
    path = drawn[0] / "image" / "00000.png"
    said = says(path)
    assert "signature: valid" in said and 'by "Alice" of "Test House", not checked' in said
    assert '"seed": 3' in said
    assert 'by "Alice" of "Test House", for whom' in says(path, f"trust={issuer.trust}")
    other = Issuer(tmp_path).trust
    assert 'signed by "Alice" of "Test House", for whom no CA' in refused(
        "provenance", path, f"trust={other}"
    )
    with provenance.stating(FACTS):
        plain = WRITE[".png"](tmp_path / "plain.png")
    assert "signature: none" in says(plain)
    assert "is not signed" in refused("provenance", plain, f"trust={issuer.trust}")
    assert "no certificate" in refused("provenance", path, f"trust={plain}")
    assert "which file" in refused("provenance", path, "trust=")


def test_without_the_extra_the_note_is_shown(drawn, issuer, says, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "c2pa", None)
    path = drawn[0] / "video" / "00000.mp4"
    said = says(path)
    assert "pip install 'scm-core[c2pa]'" in said and '"seed": 3' in said
    assert "pip install 'scm-core[c2pa]'" in refused("provenance", path, f"trust={issuer.trust}")


@pytest.mark.parametrize("suffix", WRITE)
def test_a_changed_file_is_refused(drawn, tmp_path, refused, suffix):
    content = next(drawn[0].rglob(f"00000{suffix}")).read_bytes()
    for changed in (
        content.replace(b'"seed": 3', b'"seed": 4'),
        flipped(content, content.index(MEDIA[suffix]) + 20),
        flipped(content, content.index(b"Alice")),
    ):
        assert changed != content and len(changed) == len(content)
        (tmp_path / f"changed{suffix}").write_bytes(changed)
        said = refused("provenance", tmp_path / f"changed{suffix}")
        assert "was changed after it was signed" in said


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize("suffix", WRITE)
def test_damage_is_a_sentence(drawn, tmp_path, suffix):
    content, refusals = next(drawn[0].rglob(f"00000{suffix}")).read_bytes(), []
    for seed in range(24):
        path = tmp_path / f"{seed}{suffix}"
        path.write_bytes(damaged(content, HOW[seed % len(HOW)], random.Random(seed)))
        try:
            command.main([str(path)])
        except UserError as error:
            refusals.append(str(error))
    assert len(refusals) > 12 and not any("\n" in said for said in refusals)


@pytest.mark.parametrize("suffix", WRITE)
def test_a_signed_file_shows_and_sounds_the_same(alice, tmp_path, suffix):
    signer = signing.Signer(*map(str, alice))
    with provenance.stating(FACTS):
        plain = WRITE[suffix](tmp_path / f"plain{suffix}")
    with provenance.stating(FACTS, signer):
        signed = WRITE[suffix](tmp_path / f"signed{suffix}")
    assert provenance.has_manifest(signed) and not provenance.has_manifest(plain)
    assert provenance.read(signed) == FACTS
    assert decoded(signed) == decoded(plain)


def decoded(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray().tobytes() for frame in container.decode(container.streams[0])]


@pytest.mark.parametrize("wishes", TAKEN, ids=str)
def test_what_signs(issuer, tmp_path, says, wishes):
    path = signed_by(issuer.issue("other", **wishes), tmp_path)
    assert "vouches" in says(path, f"trust={issuer.trust}")


def signed_by(files, folder):
    with provenance.stating(FACTS, signing.Signer(*map(str, files))):
        return WRITE[".png"](folder / "a.png")


def test_what_cannot_sign_is_refused_before_anything_is_drawn(
    issuer, alice, tmp_path, refused, monkeypatch
):
    def never(*_):
        raise AssertionError("samples were drawn")

    def said(certificate, key):
        line = ("modality=image", "n=1", f"out={tmp_path / 'out'}", *words(certificate, key))
        return refused("sample", *line)

    monkeypatch.setattr(sample, "sample_all", never)
    certificate, key = alice
    wanted = "C2PA takes a certificate"
    assert "takes two files" in said(certificate, "")
    assert "takes two files" in said("", key)
    assert "none.pem cannot be read: No such file" in said("none.pem", key)
    assert "none.pem cannot be read: No such file" in said(certificate, "none.pem")
    assert "no certificate in PEM form" in said(key, key)
    assert "no private key in PEM form" in said(certificate, certificate)
    assert "not the key of the first certificate" in said(certificate, issuer.issue("Bob")[1])
    certificate, locked = issuer.issue("locked", password=b"word")
    assert "is encrypted: openssl pkey" in said(certificate, locked)
    for wishes, reason in REFUSED:
        sentence = said(*issuer.issue("refused", **wishes))
        assert reason in sentence and wanted in sentence, wishes
    monkeypatch.setitem(sys.modules, "c2pa", None)
    assert "pip install 'scm-core[c2pa]'" in said(certificate, key)
    assert not (tmp_path / "out").exists()


def test_an_interrupted_signing_leaves_nothing(alice, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    signer = signing.Signer(*map(str, alice))
    monkeypatch.setattr(signer, "sign", interrupted)
    with pytest.raises(KeyboardInterrupt), provenance.stating(FACTS, signer):
        WRITE[".png"](tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_what_a_decoder_writes_itself_is_named(alice, tmp_path, monkeypatch, capsys):
    save = toy_plugin.ToyCodec.save

    def with_table(self, wave, path):
        Path(f"{path}.csv").write_text("0\n")
        return save(self, wave, path)

    monkeypatch.setattr(toy_plugin.ToyCodec, "save", with_table)
    toy_plugin.write_student(tmp_path / "student.safetensors")
    line = [f"checkpoint={tmp_path / 'student.safetensors'}", "modality=toy_plugin:SPEC", "n=1"]
    sample.main([*line, f"out={tmp_path / 'out'}", *words(*alice)])
    assert "not signed, as the decoder writes them itself: .csv" in capsys.readouterr().out


def test_a_manifest_elsewhere_is_not_fetched(alice, tmp_path, refused):
    asked = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    unsigned, signed, mark = io.BytesIO(), io.BytesIO(), PngInfo()
    mark.add_text("looks signed", provenance.MANIFEST.decode())
    Image.new("L", (4, 4)).save(unsigned, "PNG", pnginfo=mark)
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        chain, key = (path.read_bytes() for path in alice)
        builder = c2pa.Builder({"title": "away"})
        builder.set_intent(c2pa.C2paBuilderIntent.CREATE)
        builder.set_no_embed()
        builder.set_remote_url(f"http://127.0.0.1:{server.server_port}/manifest")
        signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(b"es256", chain, key, None))
        builder.sign(signer, "png", unsigned, signed)
        asked.clear()
        (tmp_path / "away.png").write_bytes(signed.getvalue())
        with pytest.raises(c2pa.C2paError):  # the library by itself asks
            c2pa.Reader(tmp_path / "away.png")
        assert asked == ["/manifest"]
        assert "not permitted" in refused("provenance", tmp_path / "away.png")
        assert asked == ["/manifest"]
        server.shutdown()


@pytest.mark.slow
def test_a_signature_holds_as_long_as_its_certificate(issuer, tmp_path, refused):
    path = signed_by(issuer.issue("soon over", until=DAY / 10800), tmp_path)
    time.sleep(10)
    assert "does not hold: " in refused("provenance", path)


def test_the_documented_certificates_sign(tmp_path, says):
    page = (ROOT / "docs" / "configuration.md").read_text()
    (commands,) = re.findall(r"```bash\n(openssl .*?)```", page, re.DOTALL)
    done = subprocess.run(["bash", "-ec", commands], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    path = signed_by((tmp_path / "certificate.pem", tmp_path / "key.pem"), tmp_path)
    assert 'by "My name" of "Me", for whom' in says(path, f"trust={tmp_path / 'ca.pem'}")
