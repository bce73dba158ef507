"""A release: what is written, what is signed, and that nothing of it can be changed unseen."""

import html
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedmedgen.cli.main import main
from fedmedgen.errors import ReleaseError
from fedmedgen.release import bundle, certificate
from fedmedgen.release.bundle import release
from fedmedgen.release.signing import default_path, project_key, public_beside
from fedmedgen.release.verify import verify

PEM = serialization.Encoding.PEM


@pytest.fixture
def released(small: Any) -> Path:
    out = small.folder.parent / "release"
    assert release(small.folder, out).judgement.granted
    return Path(out)


def content_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "certificate.json").read_text()))


def sign_anew(folder: Path, content: dict[str, Any], *, key: Path | None = None) -> None:
    """What somebody who has a key would write."""
    own = project_key(key)
    content["key"] = {"algorithm": "Ed25519", "public": own.public, "fingerprint": own.fingerprint}
    (folder / "certificate.json").write_text(certificate.written(content))
    (folder / "certificate.sig").write_text(own.sign(certificate.signed_bytes(content)))


def strange_key(folder: Path) -> Path:
    path = folder / "strange.key"
    secret = Ed25519PrivateKey.generate().private_bytes(
        PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(secret)
    path.chmod(0o600)
    return path


def test_a_release_holds_the_set_as_it_was_and_says_what_it_is(small: Any, released: Path) -> None:
    assert sorted(path.name for path in released.iterdir()) == [
        "README.md", "certificate.html", "certificate.json", "certificate.sig", "datasheet.md", "set",
    ]  # fmt: skip
    for path in small.at("synthetic").rglob("*.*"):
        assert (released / "set" / path.relative_to(small.at("synthetic"))).read_bytes() == path.read_bytes()
    content = content_of(released)
    assert content["claim"]["epsilon"] == pytest.approx(1.4906, abs=1e-3)
    assert content["claim"]["epsilon_sum"] == pytest.approx(2 * content["claim"]["epsilon"])
    assert content["thresholds"]["auc"] == 0.6
    assert set(content["audits"]) == {"site-1", "site-2"}
    assert content["sites"]["site-1"]["macs_checked"]
    assert [check["reasons"] for check in content["checks"]] == [[]] * 9
    note = json.loads(small.at("release.json").read_text())
    assert note.pop("at") >= content["at"]
    assert note == {
        "granted": True, "reasons": [], "certificate": "release",
        "key": content["key"]["fingerprint"],
    }  # fmt: skip


def test_nothing_of_a_site_but_its_audit_leaves(released: Path) -> None:
    names = {path.name for path in released.rglob("*")}
    assert not names & {"ledger.jsonl", "ledger.head", "site.key", "policy.yaml", "sites"}


def test_the_generator_goes_along_where_it_is_asked_for(small: Any, tmp_path: Path) -> None:
    release(small.folder, tmp_path / "both", with_generator=True)
    assert (tmp_path / "both" / "generator" / "weights.safetensors").is_file()
    assert "generator/weights.safetensors" in content_of(tmp_path / "both")["files"]
    assert verify(tmp_path / "both").whole
    front = (tmp_path / "both" / "README.md").read_text().split("---\n")[1]
    assert yaml.safe_load(front)["library_name"] == "diffusers"


def test_the_card_and_the_datasheet_say_epsilon_and_answer_the_questions(released: Path) -> None:
    card, sheet = ((released / name).read_text() for name in ("README.md", "datasheet.md"))
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["task_categories"] == ["image-classification", "image-segmentation"]
    assert front["size_categories"] == ["n<1K"]
    for text in (card, sheet):
        assert "(1.49, 1e-5)" in text
        assert "{" not in text
    for part in ("Motivation", "Composition", "Collection", "Preprocessing", "Uses", "Distribution", "Maintenance"):
        assert f"## {part}" in sheet


def test_public_people_are_named_and_no_page_says_that_no_real_image_is_in_the_set(small: Any, tmp_path: Path) -> None:
    words = "lungs: parts of them, recognisable, are in what is drawn"
    small.edit("generator/README.md", "- unit:", f"- public images: {words}\n- unit:")
    small.audit_anew()
    release(small.folder, tmp_path / "out")
    for name in ("README.md", "datasheet.md"):
        text = " ".join((tmp_path / "out" / name).read_text().split())
        assert f"Public images were used beside the sites' own, and no epsilon covers them: {words}." in text
        assert "No image of a site's patient" in text
        assert "No real image" not in text
        assert "No image of a patient" not in text


@pytest.mark.parametrize(("nearest", "said"), [
    (False, "a mask of lung drawn together with the image"),
    (True, "the mask of lung of the public image that is nearest to what was drawn"),
])  # fmt: skip
def test_the_datasheet_says_whose_the_masks_are(small: Any, tmp_path: Path, nearest: bool, said: str) -> None:
    moments = {"generator__family": "moments", "statistics__share": 1.0, "segmenter__rounds": 0}
    small.change("settings.yaml", prior__nearest=nearest, **moments)
    small.audit_anew()
    release(small.folder, tmp_path / "out")
    text = " ".join((tmp_path / "out" / "datasheet.md").read_text().split())
    assert said in text
    assert text.count("mask of lung") == 1


def test_the_page_has_every_number_and_loads_nothing(released: Path) -> None:
    page = html.unescape((released / "certificate.html").read_text())
    content = content_of(released)
    for row in [*content["numbers"]["privacy"], *content["numbers"]["worth"]]:
        assert row["name"] in page
    assert content["key"]["fingerprint"] in page
    assert "For the data protection officer" in page
    assert "For the radiologist" in page
    assert "src=" not in page
    assert "http" not in page
    assert "<script" not in page


def test_a_study_with_an_evil_name_stays_words(small: Any, tmp_path: Path) -> None:
    small.change("settings.yaml", study="<script>alert(1)</script>")
    small.audit_anew()
    release(small.folder, tmp_path / "out")
    assert "<script" not in (tmp_path / "out" / "certificate.html").read_text()


def test_a_refusal_writes_nothing_but_why(small: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small.change("result.json", metrics__fidelity__coverage=0.0)
    small.at("audits/site-1.json").unlink()
    assert main(["release", str(small.folder), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().out
    assert "refused; nothing was released, because:" in said
    assert "coverage is 0.000" in said
    assert not (tmp_path / "out").exists()
    assert not default_path().exists()
    note = json.loads(small.at("release.json").read_text())
    assert (note["granted"], len(note["reasons"]), note["certificate"]) == (False, 2, None)


def test_a_release_is_never_written_over_another_nor_into_its_run(small: Any, released: Path) -> None:
    with pytest.raises(ReleaseError, match="is there already"):
        release(small.folder, released)
    with pytest.raises(ReleaseError, match="lies in the run folder"):
        release(small.folder, small.folder / "release")


def test_a_set_that_changes_while_it_is_released_is_not(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = certificate.draft

    def then_change(*words: Any) -> dict[str, Any]:
        content = draft(*words)
        small.at("synthetic/images/0.png").write_bytes(b"other")
        return content

    monkeypatch.setattr(bundle.certificate, "draft", then_change)
    with pytest.raises(ReleaseError, match="changed while it was released"):
        release(small.folder, tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_a_whole_release_verifies_and_names_its_key(released: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["release", "--verify", str(released), "--public-key", str(public_beside(default_path()))]) == 0
    said = capsys.readouterr().out
    assert "as they were signed" in said
    assert project_key().fingerprint in said
    assert main(["release", "--verify", str(released), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pinned"] is False


TAMPERING: dict[str, tuple[Callable[[Path], object], str]] = {
    "image": (lambda f: (f / "set" / "images" / "1.png").write_bytes(b"x"), "set/images/1.png was changed"),
    "page": (lambda f: (f / "certificate.html").write_text("all is well"), "certificate.html was changed"),
    "missing": (lambda f: (f / "datasheet.md").unlink(), "datasheet.md is missing"),
    "added": (lambda f: (f / "set" / "images" / "patient.png").write_bytes(b"x"), "patient.png is not in the"),
    "hidden": (lambda f: (f / ".patient").write_bytes(b"x"), ".patient is not in the certificate"),
    "linked": (lambda f: (f / "more").symlink_to("/tmp"), "more is a link"),
    "number": (
        lambda f: (f / "certificate.json").write_text(
            (f / "certificate.json").read_text().replace('"delta": 1e-05', '"delta": 1e-06')
        ),
        "is not the signature",
    ),
    "space": (
        lambda f: (f / "certificate.json").write_text((f / "certificate.json").read_text() + " "), "is not written as",
    ),
    "key said twice": (
        lambda f: (f / "certificate.json").write_text(
            (f / "certificate.json").read_text().replace('"format": 1', '"format": 7,\n  "format": 1')
        ),
        "is not written as",
    ),
    "no signature": (lambda f: (f / "certificate.sig").unlink(), "is not the signature"),
    "nonsense": (lambda f: (f / "certificate.sig").write_text("not base64!"), "is not the signature"),
}  # fmt: skip


@pytest.mark.parametrize(("tamper", "said"), TAMPERING.values(), ids=TAMPERING.keys())
def test_tampering_is_seen(released: Path, tamper: Callable[[Path], object], said: str) -> None:
    tamper(released)
    faults = verify(released).faults
    assert [fault for fault in faults if said in fault], faults


def test_a_release_signed_anew_by_another_is_seen_by_who_has_the_projects_key(released: Path, tmp_path: Path) -> None:
    pinned, content = public_beside(default_path()), content_of(released)
    content["claim"]["epsilon"] = 0.1
    sign_anew(released, content, key=strange_key(tmp_path))
    found = verify(released)
    assert found.whole
    assert found.fingerprint != project_key().fingerprint
    faults = " | ".join(verify(released, public_key=pinned).faults)
    assert "by the key that was given" in faults
    assert "names another key" in faults


def test_a_certificate_that_lists_too_little_or_has_reasons_is_no_release(released: Path) -> None:
    content = content_of(released)
    del content["files"]["certificate.html"]
    (released / "certificate.html").unlink()
    content["checks"][0]["reasons"] = ["the run has not completed"]
    sign_anew(released, content)
    faults = " | ".join(verify(released).faults)
    assert "doesn't list certificate.html" in faults
    assert "reasons against its own release" in faults


@pytest.mark.parametrize("text", ["", "[]", '{"a": NaN}'])
def test_what_is_no_certificate_is_said_to_be_none(released: Path, text: str) -> None:
    (released / "certificate.json").write_text(text)
    with pytest.raises(ReleaseError, match=r"certificate\.json"):
        verify(released)


def test_the_users_key_is_made_once_for_its_owner_alone(
    small: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["release", str(small.folder), "--out", str(tmp_path / "one")]) == 0
    assert "made the project's key" in capsys.readouterr().out
    assert default_path().stat().st_mode & 0o777 == 0o600
    assert main(["release", str(small.folder), "--out", str(tmp_path / "two")]) == 0
    assert "made the project's key" not in capsys.readouterr().out
    assert content_of(tmp_path / "one")["key"] == content_of(tmp_path / "two")["key"]


def test_a_named_key_comes_before_the_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = strange_key(tmp_path), tmp_path / "second.key"
    second.write_bytes(Path(os.fspath(first)).read_bytes())
    second.chmod(0o600)
    monkeypatch.setenv("FEDMEDGEN_KEY", str(tmp_path / "gone.key"))
    assert project_key(second).path == second
    with pytest.raises(ReleaseError, match=r"gone\.key"):
        project_key()


def test_a_key_that_others_read_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = strange_key(tmp_path)
    path.chmod(0o644)
    with pytest.raises(ReleaseError, match="chmod 600"):
        project_key(path)
    other = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(other.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    path.chmod(0o600)
    with pytest.raises(ReleaseError, match="Ed25519"):
        project_key(path)
    path.write_text("nothing")
    with pytest.raises(ReleaseError, match="PEM"):
        project_key(path)


@pytest.mark.parametrize(
    "words",
    [[], ["RUN"], ["--out", "x"], ["RUN", "--verify", "x"], ["RUN", "--out", "x", "--public-key", "k"]],
    ids=" ".join,
)
def test_wrong_words_are_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["release", *words]) == 2
    assert "error: " in capsys.readouterr().err
