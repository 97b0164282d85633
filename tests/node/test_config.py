"""Defaults < file < environment < flags, and errors that name the setting."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.config import ConfigError, Settings, default_data, read_settings, settings_markdown


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"MESH_{name.upper()}", raising=False)


def private(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_defaults_are_for_this_machine_alone(tmp_path: Path) -> None:
    settings = read_settings(data=tmp_path)
    assert (settings.host, settings.port, settings.loopback) == ("127.0.0.1", 8080, True)
    assert settings.max_body_bytes == 15 << 20
    assert settings.api_keys == ()
    assert settings.cors_origins == ()
    assert settings.memory_budget_bytes is None


def test_data_follows_the_platform_unless_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert read_settings().data == default_data()
    monkeypatch.setenv("MESH_DATA", str(tmp_path / "environment"))
    assert read_settings().data == tmp_path / "environment"
    assert read_settings(data=tmp_path / "flag").data == tmp_path / "flag"


@pytest.mark.parametrize("variable", ["MESH_PORT", "mesh_port"])
def test_each_source_overrides_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    (tmp_path / "config.toml").write_text("port = 1111\nqueue_limit = 7\n")
    assert read_settings(data=tmp_path).port == 1111
    monkeypatch.setenv(variable, "2222")
    assert read_settings(data=tmp_path).port == 2222
    assert read_settings(data=tmp_path, port=3333).port == 3333
    assert read_settings(data=tmp_path, port=3333).queue_limit == 7


def test_an_empty_variable_and_a_flag_that_was_not_given_say_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").write_text("port = 1111\n")
    monkeypatch.setenv("MESH_PORT", "")
    assert read_settings(data=tmp_path, port=None).port == 1111


def test_another_file_can_be_named_and_must_exist(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("port = 1111\n")
    other = tmp_path / "other.toml"
    with pytest.raises(ConfigError, match=r"no settings file .*other\.toml"):
        read_settings(other, data=tmp_path)
    other.write_text("port = 4444\n")
    assert read_settings(other, data=tmp_path).port == 4444


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("prot = 1", "prot.*Did you mean port"),
        ("zzz = 1", "zzz.*Known are: .*port"),
        ('data = "elsewhere"', "data.*MESH_DATA"),
        ("port = ", "cannot be read"),
        ("port = 70000", r"port \(MESH_PORT\)"),
        ('port = "many"', r"port \(MESH_PORT\)"),
        ("queue_limit = -1", "queue_limit"),
        ('log_level = "loud"', "log_level"),
        ('hub_url = "ftp://hub"', "hub_url"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        read_settings(data=tmp_path)


def test_a_mistake_in_the_environment_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_SHUTDOWN_GRACE_S", "soon")
    with pytest.raises(ConfigError, match="MESH_SHUTDOWN_GRACE_S"):
        read_settings(data=tmp_path)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "node.example", "127.1"])
def test_other_machines_need_a_key(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="only with an API key"):
        read_settings(data=tmp_path, host=host)
    private(tmp_path / "api_keys", "sesame\n")
    assert read_settings(data=tmp_path, host=host).plain_api_keys == ("sesame",)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_needs_none(tmp_path: Path, host: str) -> None:
    assert read_settings(data=tmp_path, host=host).loopback


def test_keys_are_read_from_their_file_unless_given_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private(tmp_path / "api_keys", "# who: what\nfirst  # laptop\n\n  second\n")
    assert read_settings(data=tmp_path).plain_api_keys == ("first", "second")
    monkeypatch.setenv("MESH_API_KEYS", "third, fourth,")
    assert read_settings(data=tmp_path).plain_api_keys == ("third", "fourth")


def test_an_empty_key_is_no_key(tmp_path: Path) -> None:
    private(tmp_path / "config.toml", 'api_keys = ["", " "]\nhost = "0.0.0.0"\n')
    with pytest.raises(ConfigError, match="only with an API key"):
        read_settings(data=tmp_path)


@pytest.mark.parametrize(("name", "text"), [("api_keys", "sesame"), ("config.toml", 'api_keys = ["sesame"]')])
def test_a_file_of_secrets_that_others_may_read_is_refused(tmp_path: Path, name: str, text: str) -> None:
    private(tmp_path / name, text).chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600") as caught:
        read_settings(data=tmp_path)
    assert "sesame" not in str(caught.value)


def test_secrets_show_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_API_KEYS", "sesame")
    settings = read_settings(data=tmp_path)
    assert "sesame" not in repr(settings)
    assert "sesame" not in settings.model_dump_json()
    private(tmp_path / "config.toml", 'api_keys = {sesame = "sesame"}')
    monkeypatch.delenv("MESH_API_KEYS")
    with pytest.raises(ConfigError) as caught:
        read_settings(data=tmp_path)
    assert "sesame" not in str(caught.value)


def test_settings_are_frozen(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        read_settings(data=tmp_path).port = 1  # type: ignore[misc]


def test_every_setting_is_documented() -> None:
    page = settings_markdown()
    for name, field in Settings.model_fields.items():
        assert field.description
        assert f"| `{name}` | `MESH_{name.upper()}` |" in page
