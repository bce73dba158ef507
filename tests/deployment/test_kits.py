"""Kits: keys where they belong, certificates with the right names, and later changes of the project."""

import json
import stat
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedmedgen.cli.main import main
from fedmedgen.deployment import certificates, identities, kits
from fedmedgen.deployment.project import Project, ServerConfig, ServerProject, SiteConfig, SiteProject
from fedmedgen.errors import RunError, SettingsError
from fedmedgen.federation.policy import SitePolicy
from fedmedgen.federation.secure_sum.keys import identity_of, public_of

NORTH, SOUTH = SiteProject(name="north", patients_declared=400), SiteProject(name="south")
PROJECT = Project(
    name="chest", server=ServerProject(names=("fed.example.org", "10.0.0.5"), port=8443), sites=(NORTH, SOUTH)
)


@pytest.fixture(autouse=True)
def bundles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's build takes seconds; a real one is in the test of a deployment."""

    def built(app: Path, folder: Path) -> Path:
        import zipfile

        with zipfile.ZipFile(folder / "app.fab", "w") as packed:
            packed.writestr(zipfile.ZipInfo("pyproject.toml"), "app")
        return folder / "app.fab"

    monkeypatch.setattr(kits, "_built", built)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    kits.provision(PROJECT, tmp_path / "chest")
    return tmp_path / "chest"


def private_keys(folder: Path) -> dict[str, str]:
    """Every private key below a folder, by its path, as its public half."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and b"PRIVATE KEY" in (content := path.read_bytes()):
            load = serialization.load_ssh_private_key if b"OPENSSH" in content else serialization.load_pem_private_key
            key = load(content, password=None)
            assert isinstance(key, ec.EllipticCurvePrivateKey)
            found[str(path.relative_to(folder))] = str(key.public_key().public_numbers().x)
    return found


def test_each_private_key_is_in_its_own_kit_alone_and_its_owners(out: Path) -> None:
    found = private_keys(out)
    assert set(found) == {"authority/ca.key", "server/server.key", "sites/north/site.key", "sites/south/site.key"}
    assert len(set(found.values())) == 4
    for path in found:
        assert stat.S_IMODE((out / path).stat().st_mode) == 0o600
    assert stat.S_IMODE((out / "authority").stat().st_mode) == 0o700


def test_the_servers_certificate_is_the_authoritys_and_good_for_its_names_alone(out: Path) -> None:
    authority = certificates.read_certificate(out / "authority" / "ca.crt")
    server = certificates.read_certificate(out / "server" / "server.crt")
    server.verify_directly_issued_by(authority)
    assert certificates.names_of(server) == {"fed.example.org", "10.0.0.5", "localhost", "127.0.0.1", "::1"}
    assert 364 < certificates.days_left(server) <= 365
    use = server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(use) == [x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_kit_is_read_by_the_commands_that_it_names(out: Path) -> None:
    config = SiteConfig.read(out / "sites" / "north" / "site.yaml")
    assert (config.site, config.address) == ("north", ("fed.example.org", 8443))
    policy = SitePolicy.read(Path(config.policy))
    assert (policy.site, policy.patients_declared, policy.lifetime_delta) == ("north", 400, 1 / 4000)
    assert policy.bundles == (kits.digest_of(out / "server" / "app"),)
    server = ServerConfig.read(out / "server" / "server.yaml")
    assert all(Path(path).exists() for path in (server.ca, server.certificate, server.key, server.sites, server.app))
    for kit in ("server", "sites/north"):
        names = {path.name for path in (out / kit).iterdir()}
        assert {"README.md", "start.sh", "compose.yaml"} <= names
        assert any(name.endswith(".service") for name in names)
        assert yaml.safe_load((out / kit / "compose.yaml").read_text())["services"]
        readme = (out / kit / "README.md").read_text()
        assert "$" not in readme.replace('"$(id -u)" "$(id -g)"', "")
        assert r"""printf 'UID=%s\nGID=%s\n' "$(id -u)" "$(id -g)" > .env""" in readme
        assert f"curl http://127.0.0.1:{8444 if kit == 'server' else 8445}/health" in readme
        assert f"docker compose exec {kit.split('/')[0].removesuffix('s')} python -c" in readme


def test_what_the_project_leaves_open_a_person_at_the_site_must_fill_in(out: Path) -> None:
    with pytest.raises(SettingsError, match="patients_declared must be a whole number"):
        SitePolicy.read(out / "sites" / "south" / "policy.yaml")


@pytest.mark.parametrize(
    "patients", [*range(1, 30), 70, 150, 400, 600, 999, 12_345, 99_999, 200_000, 1_000_000, 7_654_321]
)
def test_the_policy_of_a_kit_is_accepted_whatever_the_number_of_patients(tmp_path: Path, patients: int) -> None:
    site = SiteProject(name="north", patients_declared=patients)
    for folder in ("server", "sites/north"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "server" / "ca.crt").write_text("")
    kits._site(PROJECT, site, tmp_path, "a" * 64, peers="    []")
    policy = SitePolicy.read(tmp_path / "sites" / "north" / "policy.yaml")
    assert policy.lifetime_delta == pytest.approx(1 / (10 * patients), rel=1e-5)


def test_a_second_time_nothing_changes(out: Path) -> None:
    (out / "sites" / "north" / "policy.yaml").write_text("edited: by a person\n")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    done = kits.provision(PROJECT, out)
    assert (done.made, done.renewed, done.revoked) == ([], [], [])
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_site_is_added_and_another_revoked(out: Path) -> None:
    done = kits.provision(replace(PROJECT, sites=(NORTH, SiteProject(name="west"))), out)
    assert (done.made, done.revoked) == (["the kit of west"], ["south"])
    assert {path.name for path in (out / "server" / "sites").iterdir()} == {"north.pub", "west.pub"}
    assert (out / "server" / "sites" / "west.pub").read_bytes() == (out / "sites" / "west" / "site.pub").read_bytes()


def test_a_certificate_is_renewed_near_its_end_on_request_or_for_a_new_name(out: Path) -> None:
    def renewed(project: Project, *, renew: bool = False) -> bool:
        before = (out / "server" / "server.crt").read_bytes(), private_keys(out)["server/server.key"]
        done = kits.provision(project, out, renew=renew)
        after = (out / "server" / "server.crt").read_bytes(), private_keys(out)["server/server.key"]
        assert (done.renewed == ["the server's certificate"]) == (before[0] != after[0]) == (before[1] != after[1])
        return bool(done.renewed)

    short = replace(PROJECT, server=replace(PROJECT.server, days=certificates.RENEW_DAYS - 1))
    assert not renewed(short)  # the one that is there is good for a year
    assert renewed(short, renew=True)
    assert renewed(PROJECT)
    assert renewed(replace(PROJECT, server=replace(PROJECT.server, names=("fed.example.org", "other.example.org"))))


def test_a_crash_while_a_certificate_is_renewed_leaves_the_old_pair_or_is_mended(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise OSError("no space left on device")

    server = out / "server"
    before = {name: (server / name).read_bytes() for name in ("server.key", "server.crt")}
    for part in ("write_key", "write_certificate"):
        with monkeypatch.context() as patched:
            patched.setattr(certificates, part, crash)
            with pytest.raises(OSError, match="no space"):
                kits.provision(PROJECT, out, renew=True)
        assert {name: (server / name).read_bytes() for name in before} == before
    certificates.write_key(out / "other.key", certificates.new_key())
    (out / "other.key").replace(server / "server.key")  # as between the two renamings
    assert kits.provision(PROJECT, out).renewed == ["the server's certificate"]
    key, issued = certificates.read_key(server / "server.key"), certificates.read_certificate(server / "server.crt")
    assert key.public_key() == issued.public_key()
    assert stat.S_IMODE((server / "server.key").stat().st_mode) == 0o600


def test_a_lost_key_is_replaced_and_nothing_else(out: Path) -> None:
    kit, at_server = out / "sites" / "north", out / "server" / "sites" / "north.pub"
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (kit / "site.key").unlink()
    assert kits.provision(PROJECT, out).made == ["the kit of north"]
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    changed = {path for path in after if after[path] != before[path]}
    assert changed == {kit / "site.key", kit / "site.pub", at_server, out / "project.json"}
    assert at_server.read_bytes() == (kit / "site.pub").read_bytes()


def peers(kit: Path) -> dict[str, str]:
    """The identities that a kit lists, by site."""
    listed = yaml.safe_load("peers:\n" + (kit / "peers.yaml").read_text())["peers"]
    return {one["site"]: one["identity"] for one in listed}


def test_a_site_whose_kit_was_handed_over_keeps_its_keys(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registered = (out / "server" / "sites" / "south.pub").read_bytes()
    identity = peers(out / "sites" / "north")["south"]
    (out / "sites" / "south").rename(tmp_path / "handed over")
    (out / "sites" / "south").mkdir()  # whether its folder has left with it or not
    project = replace(PROJECT, sites=(NORTH, SOUTH, SiteProject(name="west")))
    done = kits.provision(project, out)
    assert (done.made, done.kept) == (["the kit of west"], ["south"])
    assert (out / "server" / "sites" / "south.pub").read_bytes() == registered
    assert list((out / "sites" / "south").iterdir()) == []
    assert peers(out / "sites" / "west")["south"] == peers(out / "sites" / "north")["south"] == identity
    file = tmp_path / "project.yaml"
    file.write_text("name: chest\nserver: {names: [fed.example.org]}\nsites: [{name: north}, {name: south}]\n")
    assert main(["provision", str(file), "--out", str(out)]) == 0
    assert "south's kit isn't here; its key is kept as it is" in capsys.readouterr().out


def test_keys_are_kept_though_the_servers_kit_has_left_too(out: Path, tmp_path: Path) -> None:
    at_server = out / "server" / "sites"
    registered = {path.name: path.read_bytes() for path in at_server.iterdir()}
    (out / "server").rename(tmp_path / "server")
    (out / "sites").rename(tmp_path / "sites")
    done = kits.provision(PROJECT, out)
    assert (done.made, done.kept) == (["the server's kit"], ["north", "south"])
    assert {path.name: path.read_bytes() for path in at_server.iterdir()} == registered


def test_where_a_kit_has_left_its_key_is_made_anew_once_the_public_one_is_deleted(out: Path, tmp_path: Path) -> None:
    registered = (out / "server" / "sites" / "south.pub").read_bytes()
    (out / "sites" / "south").rename(tmp_path / "handed over")
    (out / "server" / "sites" / "south.pub").unlink()
    assert kits.provision(PROJECT, out).made == ["the kit of south"]
    assert (out / "server" / "sites" / "south.pub").read_bytes() != registered
    own = identity_of(out / "sites" / "south" / "identity.key")
    assert peers(out / "sites" / "north")["south"] == public_of(own).hex()


def test_an_identity_that_a_site_made_itself_is_not_replaced_by_its_kit_that_is_still_here(
    out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memory, told = json.loads((out / "project.json").read_text()), "ab" * 32
    memory["sites"]["south"]["identity"] = told
    (out / "project.json").write_text(json.dumps(memory))
    (out / "sites" / "north" / "peers.yaml").unlink()
    kits.provision(PROJECT, out)
    assert peers(out / "sites" / "north")["south"] == told
    assert "south is known by another identity" in caplog.text
    (out / "sites" / "south" / "identity.key").unlink()  # deleted after handing over
    kits.provision(PROJECT, out)
    assert not (out / "sites" / "south" / "identity.key").exists()
    assert json.loads((out / "project.json").read_text())["sites"]["south"]["identity"] == told


def test_an_identity_that_nobody_here_knows_is_left_out_of_the_lists(
    out: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (out / "sites" / "south").rename(tmp_path / "handed over")
    (out / "project.json").write_text('{"name": "chest"}')  # of an older version
    assert kits.provision(PROJECT, out).kept == ["south"]
    assert set(peers(out / "sites" / "north")) == {"north"}
    assert "the identity of south isn't known here" in caplog.text


def test_an_authority_that_is_kept_elsewhere_is_asked_for_only_to_sign(out: Path, tmp_path: Path) -> None:
    before = (out / "server" / "ca.crt").read_bytes()
    (out / "authority").rename(tmp_path / "offline")
    assert kits.provision(replace(PROJECT, sites=(NORTH, SiteProject(name="west"))), out).made == ["the kit of west"]
    assert (out / "server" / "ca.crt").read_bytes() == (out / "sites" / "west" / "ca.crt").read_bytes() == before
    with pytest.raises(RunError, match=r"bring authority/ca\.key back"):
        kits.provision(PROJECT, out, renew=True)
    (out / "server").rename(tmp_path / "server")
    with pytest.raises(RunError, match="bring it back for this run"):
        kits.provision(PROJECT, out)


def test_what_is_damaged_is_said_in_words(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "project.yaml"
    file.write_text("name: chest\nserver: {names: [fed.example.org]}\nsites: [{name: north}]\n")
    for damaged in ("project.json", "server/server.crt", "authority/ca.crt", "authority/ca.key"):
        whole = (out / damaged).read_bytes()
        for content in (b"", b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"):
            (out / damaged).write_bytes(content)
            assert main(["provision", str(file), "--out", str(out)]) == 1
            assert str(out / damaged) in capsys.readouterr().err
        (out / damaged).write_bytes(whole)
    assert main(["provision", str(file), "--out", str(out)]) == 0


def test_a_crash_while_the_memory_is_written_leaves_the_old_one(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (out / "project.json").read_bytes()

    def crash(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(identities.json, "dumps", crash)  # once the file is open
        with pytest.raises(OSError, match="no space"):
            kits.provision(replace(PROJECT, sites=(NORTH,)), out)
    assert (out / "project.json").read_bytes() == before
    assert kits.provision(PROJECT, out).made == []


@pytest.mark.parametrize("part", ["public_ssh", "write_key"])
def test_a_crash_while_a_kit_is_made_is_mended_by_the_next_run(
    out: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    project = replace(PROJECT, sites=(NORTH, SOUTH, SiteProject(name="west")))
    with monkeypatch.context() as patched:
        patched.setattr(certificates, part, crash)
        with pytest.raises(OSError, match="no space"):
            kits.provision(project, out)
    done = kits.provision(project, out)
    assert (done.made, done.kept) == (["the kit of west"], [])
    assert (out / "server" / "sites" / "west.pub").read_bytes() == (out / "sites" / "west" / "site.pub").read_bytes()
    assert "sites/west/site.key" in private_keys(out)


def test_who_revokes_is_told_what_to_do_at_the_server(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "project.yaml"
    file.write_text("name: chest\nserver: {names: [fed.example.org]}\nsites: [{name: north}]\n")
    assert main(["provision", str(file), "--out", str(out)]) == 0
    assert "now delete sites/south.pub on the server's machine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("data_root", "volume"),
    [
        ("", "/path/to/the/radiographs:/path/to/the/radiographs:ro"),
        ("/data/chest $1", "/data/chest $$1:/data/chest $$1:ro"),
        ("data", "./data:/kit/data:ro"),
    ],
)
def test_a_container_sees_the_radiographs_where_the_policy_looks_for_them(
    tmp_path: Path, data_root: str, volume: str
) -> None:
    kits.provision(replace(PROJECT, sites=(replace(NORTH, data_root=data_root),)), tmp_path)
    compose = yaml.safe_load((tmp_path / "sites" / "north" / "compose.yaml").read_text())
    assert compose["services"]["site"]["volumes"] == ["./:/kit", volume]


def test_what_tools_leave_in_a_checkout_and_take_away_again_is_not_copied_into_a_kit() -> None:
    left = [line.strip("/") for line in (kits.CHECKOUT / ".gitignore").read_text().split() if line.startswith(".")]
    folders = [name for name in left if name != ".coverage"]
    assert folders
    assert [name for name in folders if not any(fnmatch(name, pattern) for pattern in kits.NO_CODE)] == []


def test_a_kit_says_whose_it_must_be_and_where_the_ledgers_head_may_lie(out: Path) -> None:
    kit = out / "sites" / "north"
    unit = (kit / "fedmedgen-site.service").read_text()
    assert "\n#ReadWritePaths=/mnt/other-disk/fedmedgen\n" in unit
    assert "# - /mnt/other-disk/fedmedgen:" in (kit / "compose.yaml").read_text()
    assert "ledger_head" not in (out / "server" / "fedmedgen-server.service").read_text()
    for folder, place in ((kit, "sites/north"), (out / "server", "server")):
        readme = (folder / "README.md").read_text()
        assert "useradd --system --shell /usr/sbin/nologin fedmedgen" in readme
        assert f"chown -R fedmedgen: /opt/fedmedgen/{place}\n" in readme


def test_a_new_app_is_asked_for_by_word(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (out / "server" / "app" / "pyproject.toml").write_text("older")
    kits.provision(PROJECT, out)
    assert (out / "server" / "app" / "pyproject.toml").read_text() == "older"
    assert kits.provision(PROJECT, out, new_app=True).renewed == ["the app"]
    assert (out / "server" / "app" / "pyproject.toml").read_text() == "app"


def test_another_project_and_an_installation_without_the_app_are_refused(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match="holds the project chest; got dental"):
        kits.provision(replace(PROJECT, name="dental"), out)
    monkeypatch.setattr(kits, "CHECKOUT", tmp_path)
    with pytest.raises(RunError, match="clone the fedmedgen repository"):
        kits.provision(PROJECT, tmp_path / "new")


def test_the_command_says_what_was_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "project.yaml"
    file.write_text("name: chest\nserver: {names: [localhost]}\nsites: [{name: north}]\n")
    assert main(["provision", str(file), "--out", str(tmp_path / "out"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["made"] == ["the authority", "the server's kit", "the kit of north"]
    assert len(said["bundle"]) == 64
    assert main(["provision", str(file), "--out", str(tmp_path / "out")]) == 0
    assert "made: nothing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: chest\nserver: {names: []}\nsites: [{name: a}]", "at least one host name"),
        ("name: chest\nserver: {names: ['https://a']}\nsites: [{name: a}]", "without a scheme"),
        ("name: chest\nserver: {names: [a], port: 0}\nsites: [{name: a}]", "a port from 1 to 65535"),
        ("name: chest\nserver: {names: [a]}\nsites: []", "one or more sites"),
        ("name: chest\nserver: {names: [a]}\nsites: [{name: a}, {name: a}]", "a name of its own"),
        ("name: chest\nserver: {names: [a]}\nsites: [{name: ../a}]", "of the form"),
        ("name: chest\nserver: {name: [a]}\nsites: [{name: a}]", "did you mean 'names'"),
        ("name: [", "expected a YAML file"),
    ],
)
def test_a_project_that_cannot_be_is_refused_in_words(
    tmp_path: Path, text: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "project.yaml").write_text(text)
    assert main(["provision", str(tmp_path / "project.yaml"), "--out", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_each_kit_has_its_own_identity_and_everybodys_public_half(out: Path) -> None:
    policies = {name: SitePolicy.read(out / "sites" / name / "policy.yaml") for name in ("north",)}
    own = {name: identity_of(out / "sites" / name / "identity.key") for name in ("north", "south")}
    assert policies["north"].secure_sum.pinned == {name: public_of(key) for name, key in own.items()}
    assert Path(policies["north"].secure_sum.identity) == out / "sites" / "north" / "identity.key"
    assert stat.S_IMODE((out / "sites" / "north" / "identity.key").stat().st_mode) == 0o600
    assert policies["north"].secure_sum.lifetime_epsilon_alone == 0.0  # a person allows them
    secrets = [key.hex() for key in own.values()]
    holders = [p for p in out.rglob("*") if p.is_file() and any(s.encode() in p.read_bytes() for s in secrets)]
    assert sorted(p.name for p in holders) == ["identity.key", "identity.key"]


def test_a_site_that_comes_later_is_in_everybodys_list_but_in_no_policy_unasked(out: Path) -> None:
    before = (out / "sites" / "north" / "policy.yaml").read_text()
    kits.provision(replace(PROJECT, sites=(NORTH, SOUTH, SiteProject(name="west"))), out)
    assert "site: west" in (out / "sites" / "north" / "peers.yaml").read_text()
    assert (out / "sites" / "north" / "policy.yaml").read_text() == before
