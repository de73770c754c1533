"""Where settings come from, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lbhost import config, setting_sources
from lbhost.choices import LogFormat, Policy
from lbhost.config import Settings
from lbhost.errors import UsageError
from lbhost.folders import default_runtime_dir


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "lbhost.toml"
    path.write_text(text)
    return path


def refusal(
    flags: dict[str, object] | None = None,
    environ: dict[str, str] | None = None,
    file: Path | None = None,
) -> str:
    with pytest.raises(UsageError) as caught:
        setting_sources.load(flags or {}, environ or {}, file)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(tmp_path: Path) -> None:
    file = write(tmp_path, "port = 1\nslots = 2\nqueue_size = 3\n")
    environ = {"LBHOST_PORT": "10", "LBHOST_SLOTS": "20", "HOME": "/"}
    settings = setting_sources.load({"port": "100"}, environ, file)
    assert (settings.port, settings.slots, settings.queue_size) == (100, 20, 3)
    assert settings.host == "127.0.0.1"


def test_without_sources_the_defaults_hold() -> None:
    assert setting_sources.load({}, {}) == Settings()


def test_the_environment_names_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, 'policy = "idle-cpu"\nlog_format = "json"\n')
    settings = setting_sources.load({}, {"LBHOST_CONFIG": str(file)})
    assert settings.policy is Policy.IDLE_CPU
    assert settings.log_format is LogFormat.JSON


def test_texts_become_numbers() -> None:
    settings = setting_sources.load(
        {"shutdown_grace_s": "2.5", "ctx_size": "512", "workers": "3"}, {}
    )
    assert settings.shutdown_grace_s == 2.5
    assert settings.ctx_size == 512
    assert settings.workers == 3
    assert setting_sources.load({"workers": "auto"}, {}).workers == "auto"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("port = " + "9" * 5000, "digits"),
        ("port = " + "[" * 5000 + "]" * 5000, "nested too deep"),
        ('model = "a\\u0000b"', "model: expected text without zero characters"),
        ('state_dir = "a\\u0000b"', "state_dir: expected text without zero characters"),
        ('[[models]]\nname = "a"\npath = "a\\u0000b"', "models[0].path: expected text without"),
        ('allowed_hosts = ["a\\u0000b"]', "allowed_hosts: expected text without zero characters"),
    ],
)
def test_what_no_file_of_settings_means_is_refused_in_one_line(
    tmp_path: Path, text: str, says: str
) -> None:
    assert says in refusal(file=write(tmp_path, text))


def test_unknown_keys_are_refused_with_the_nearest_known_one(tmp_path: Path) -> None:
    file = write(tmp_path, "prot = 1\n")
    assert refusal(file=file) == f"{file}: prot: unknown key; did you mean 'port'?"
    message = refusal(environ={"LBHOST_QUEUE_SIZ": "3"})
    assert message == "LBHOST_QUEUE_SIZ: unknown key; did you mean 'LBHOST_QUEUE_SIZE'?"
    message = refusal(environ={"LBHOST_SHUTDOWN_GRACE": "3"})
    assert message.endswith("did you mean 'LBHOST_SHUTDOWN_GRACE_S'?"), "what can be set"
    assert refusal(environ={"LBHOST_ZZZZZZ": "3"}) == "LBHOST_ZZZZZZ: unknown key"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("port", "70000"),
        ("port", "-1"),
        ("port", "http"),
        ("slots", "0"),
        ("slots", "1.5"),
        ("workers", "some"),
        ("workers", "0"),
        ("ctx_size", "1"),
        ("policy", "best"),
        ("api_key", "short"),
        ("queue_timeout_s", "nan"),
        ("queue_timeout_s", "inf"),
        ("shutdown_grace_s", "-1"),
        ("log_level", "loud"),
        ("model", ""),
    ],
)
def test_what_is_out_of_range_is_refused_and_names_its_flag(key: str, value: str) -> None:
    message = refusal({key: value})
    assert message.startswith(f"--{config.flag_name(key)}: ")
    assert (repr(value) in message) is (key not in config.SECRET)


@pytest.mark.parametrize("where", ["flag", "environment", "file"])
def test_a_key_that_is_refused_is_not_shown(tmp_path: Path, where: str) -> None:
    key = "hunter2"
    if where == "flag":
        message = refusal({"api_key": key})
    elif where == "environment":
        message = refusal(environ={"LBHOST_API_KEY": key})
    else:
        message = refusal(file=write(tmp_path, f'api_key = "{key}"\n'))
    assert "length >= 8" in message
    assert key not in message


def test_every_setting_is_described() -> None:
    assert all(config.described(key).endswith(".") for key in config.KEYS)


SERVICE_LINKS = {
    "LBHOST_SERVICE_HOST": "10.96.7.1",
    "LBHOST_SERVICE_PORT": "8080",
    "LBHOST_SERVICE_PORT_HTTP": "8080",
    "LBHOST_PORT": "tcp://10.96.7.1:8080",
    "LBHOST_PORT_8080_TCP": "tcp://10.96.7.1:8080",
    "LBHOST_PORT_8080_TCP_PROTO": "tcp",
    "LBHOST_PORT_8080_TCP_PORT": "8080",
    "LBHOST_PORT_8080_TCP_ADDR": "10.96.7.1",
    "LBHOST_GPU_SERVICE_HOST": "fd00::7",
    "LBHOST_GPU_PORT": "tcp://[fd00::7]:8080",
}


def test_what_kubernetes_says_of_a_service_called_lbhost_is_no_setting() -> None:
    assert setting_sources.load({}, SERVICE_LINKS) == Settings()
    assert setting_sources.load({"port": "9000"}, SERVICE_LINKS).port == 9000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LBHOST_SERVICE_HOST", "my-host"),
        ("LBHOST_SERVICE_PORT", "tcp"),
        ("LBHOST_PORT_8080_TCP", "8080"),
        ("LBHOST_SERVICE_NAME", "lbhost"),
        ("LBHOST_PORT", "8080x"),
        ("LBHOST_PORTS", "8080"),
    ],
)
def test_what_only_resembles_kubernetes_is_refused(name: str, value: str) -> None:
    assert refusal(environ={name: value}).startswith(name)


@pytest.mark.parametrize("key", ["alias", "aliases"])
def test_a_name_that_a_terminal_would_obey_is_none(key: str) -> None:
    with pytest.raises(UsageError, match=f"{key}: expected printable") as caught:
        setting_sources.load({key: "red\x1b[31m"}, {})
    assert "\x1b" not in caught.value.message


def test_settings_must_fit_together() -> None:
    assert refusal({"hot_c": "60"}).startswith("--hot: hot_c (60) must be above warm_c (80)")
    assert setting_sources.load({"warm_c": "50", "hot_c": "60"}, {}).hot_c == 60


def test_a_refusal_blames_the_settings_that_clash_and_no_others(tmp_path: Path) -> None:
    table = '[[models]]\nname = "chat"\npath = "x.gguf"\n'
    file = write(tmp_path, f"{table}min_workers = 5\nmax_workers = 4\n")
    limits = {"LBHOST_MAX_WORKERS": "9"}
    clash = "models[0]: min_workers (5) must not be above max_workers (4)"
    assert refusal(environ=limits, file=file) == f"{file}: {clash}"
    file = write(tmp_path, f"{table}min_workers = 5\n")
    limits = {"LBHOST_MAX_WORKERS": "4"}
    assert refusal(environ=limits, file=file) == f"{file}, LBHOST_MAX_WORKERS: {clash}"
    called: dict[str, object] = {"alias": "port", "adapters": "port=a.gguf"}
    message = refusal(called, {"LBHOST_PORT": "9000"})
    assert message == "--adapters: adapters[0].name: 'port' is there already"


def test_models_come_from_the_file_alone(tmp_path: Path) -> None:
    where = "models are tables: write them into the file of --config"
    assert refusal(environ={"LBHOST_MODELS": "a"}) == f"LBHOST_MODELS: {where}"
    file = write(tmp_path, '[[models]]\nname = "chat"\npath = "x.gguf"\n')
    assert refusal(environ={"LBHOST_MODELS": "a"}, file=file) == f"LBHOST_MODELS: {where}"


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    assert refusal(file=missing) == f"{missing}: no such configuration file"
    assert refusal(file=tmp_path) == f"{tmp_path}: not a regular file"
    pipe = tmp_path / "pipe.toml"
    os.mkfifo(pipe)  # nobody writes: who opened it as a file would wait for ever
    assert refusal(file=pipe) == f"{pipe}: not a regular file"
    endless = Path("/dev/zero")
    assert refusal(file=endless) == "/dev/zero: not a regular file"
    huge = write(tmp_path, "#" * setting_sources.MAX_FILE_BYTES + "#")
    assert refusal(file=huge) == f"{huge}: over {setting_sources.MAX_FILE_BYTES} bytes"
    assert "lbhost.toml" in refusal(file=write(tmp_path, "port = \n"))
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "binary.toml" in refusal(file=binary)


def test_flags_drop_the_unit() -> None:
    assert config.flag_name("shutdown_grace_s") == "shutdown-grace"
    assert config.flag_name("inter_token_target_ms") == "inter-token-target"
    assert config.flag_name("max_body_bytes") == "max-body-bytes"
    assert len({config.flag_name(key) for key in config.KEYS}) == len(config.KEYS)


def test_the_default_runtime_dir_is_one_per_user() -> None:
    assert default_runtime_dir({"XDG_RUNTIME_DIR": "/run/user/7"}) == Path("/run/user/7/lbhost")
    assert default_runtime_dir({}).name.startswith("lbhost-")


def test_sizes_are_bytes_or_have_a_unit_and_nothing_else() -> None:
    assert Settings().embedding_cache_bytes == 1 << 30
    settings = setting_sources.load({"embedding_cache": "64M"}, {"LBHOST_STATE_CACHE": "2K"})
    assert (settings.embedding_cache_bytes, settings.state_cache_bytes) == (64 << 20, 2048)
    assert setting_sources.load({"embedding_cache": "0"}, {}).embedding_cache_bytes == 0
    for given in ("auto", "much", "-1"):
        assert "embedding_cache is a size such as 512M" in refusal({"embedding_cache": given})
    assert "state_cache is 'auto' or a size" in refusal({"state_cache": "much"})


def test_bounds_or_an_idle_timeout_let_the_load_say_how_many_workers_there_are() -> None:
    fixed, bounded = Settings(workers=2), Settings(max_workers=4)
    sleeper, awake = Settings(idle_timeout_s=60), Settings(idle_timeout_s=60, min_workers=1)
    assert not fixed.autoscaled
    assert [one.autoscaled for one in (bounded, sleeper, awake)] == [True] * 3
    assert [one.least_workers for one in (bounded, sleeper, awake)] == [1, 0, 1]
    assert setting_sources.load({"idle_timeout_s": "90"}, {}).idle_timeout_s == 90.0
    assert "--idle-timeout" in refusal({"idle_timeout_s": "-1"})
