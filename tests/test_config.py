"""Values come from four places, each on top of the one before, and what is wrong is named with its place."""

import re
from pathlib import Path

import pytest

from media_server.config import Loaded, find_root, known_names, load_config
from media_server.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    """Write a user's file and return its path."""
    file = folder / "own.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_the_shipped_file_alone_is_a_whole_configuration() -> None:
    loaded = load_config({})

    assert loaded.config.server.port == 8080
    assert set(loaded.origins) == set(known_names())
    assert set(loaded.origins.values()) == {"config/default.toml"}


def test_in_an_installed_server_the_shipped_files_stand_in_share(tmp_path: Path) -> None:
    shipped = tmp_path / "share" / "parley" / "config" / "default.toml"
    shipped.parent.mkdir(parents=True)
    shipped.touch()

    root = find_root(tmp_path / "lib" / "python3.11" / "site-packages" / "media_server" / "config.py")

    assert root == tmp_path / "share" / "parley"


def test_each_place_covers_the_one_before(tmp_path: Path) -> None:
    file = write(tmp_path, "[server]\nport = 1001\nmax_calls = 3\nretry_after_s = 9\n")
    environ = {"PARLEY_SERVER__PORT": "1002", "PARLEY_SERVER__MAX_CALLS": "4", "HOME": "/nowhere"}

    loaded = load_config(environ, file, {"server.port": 1003})

    assert (loaded.config.server.port, loaded.origins["server.port"]) == (1003, "--port")
    assert (loaded.config.server.max_calls, loaded.origins["server.max_calls"]) == (4, "PARLEY_SERVER__MAX_CALLS")
    assert (loaded.config.server.retry_after_s, loaded.origins["server.retry_after_s"]) == (9, str(file))
    assert loaded.origins["server.host"] == "config/default.toml"


def test_the_environment_may_name_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "[call]\ngreeting = false\n")

    assert load_config({"PARLEY_CONFIG": str(file)}).config.call.greeting is False


def test_a_file_on_the_command_line_covers_the_one_of_the_environment(tmp_path: Path) -> None:
    file = write(tmp_path, "[call]\ngreeting = false\n")

    loaded = load_config({"PARLEY_CONFIG": str(tmp_path / "missing.toml")}, file)

    assert loaded.config.call.greeting is False


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False), ("1", True), ("0", False)])
def test_a_truth_may_be_written_as_people_do(text: str, value: bool) -> None:
    loaded: Loaded = load_config({"PARLEY_CALL__GREETING": text})

    assert loaded.config.call.greeting is value


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            {"PARLEY_TURN__SILENCE_MSS": "5"},
            "PARLEY_TURN__SILENCE_MSS: unknown name 'turn.silence_mss'; did you mean 'PARLEY_TURN__SILENCE_MS'?",
        ),
        ({"PARLEY_XYZZY": "5"}, "PARLEY_XYZZY: unknown name 'xyzzy'; the sections are server, webrtc, call"),
        ({"PARLEY_PROT": "80"}, "PARLEY_PROT: unknown name 'prot'"),
        ({"PARLEY_PORT": "80"}, "PARLEY_PORT: unknown name 'port'"),
        ({"PARLEY_SERVER_PORT": "80"}, "PARLEY_SERVER_PORT: unknown name 'server_port'"),
        ({"PARLEY_SERVER__PORT": "70000"}, "PARLEY_SERVER__PORT: server.port: Input should be less than or equal to"),
        ({"PARLEY_SERVER__PORT": "many"}, "PARLEY_SERVER__PORT: server.port: Input should be a valid integer"),
        ({"PARLEY_ASR__ENGINE": "ears"}, "PARLEY_ASR__ENGINE: asr.engine: Input should be 'sphinx' or 'whisper'"),
        ({"PARLEY_CONFIG": "/nowhere/x.toml"}, "/nowhere/x.toml: cannot be read: No such file or directory"),
    ],
)
def test_what_is_wrong_in_the_environment_is_named(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(environ)

    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[turn]\nstop_ms = 5\n", "unknown name 'turn.stop_ms'"),
        ("port = 80\n", "'port' stands outside of a section"),
        ("[server\n", "is not TOML"),
        ("[server]\nport = []\n", "server.port: Input should be a valid integer, found []"),
        ("[srever]\nport = 80\n", "unknown name 'srever.port'; did you mean 'server.port'?"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_the_file(text: str, message: str, tmp_path: Path) -> None:
    file = write(tmp_path, text)

    with pytest.raises(ConfigError) as caught:
        load_config({}, file)

    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[barge_in]\nduck_db = -inf\n", "barge_in.duck_db: Input should be a finite number, found -inf"),
        ("[webrtc]\ngone_after_s = inf\n", "webrtc.gone_after_s: Input should be a finite number, found inf"),
        ("[vad]\nthreshold = nan\n", "vad.threshold: Input should be a finite number, found nan"),
        ('[webrtc]\nannounce = ["parley.example"]\n', "webrtc.announce: Input should be IP addresses, found ["),
        ("[webrtc]\nannounce = [7]\n", "webrtc.announce: Input should be a valid string, found 7"),
        ("[webrtc]\nport_min = 5000\n", "webrtc.port_max: Input should be at least webrtc.port_min, 5000; both are 0"),
        ("[webrtc]\nport_max = 5000\n", "webrtc.port_max: Input should be at least webrtc.port_min, 0; both are 0"),
        ('[webrtc]\nstun_url = "stun.example.com"\n', "webrtc.stun_url: Input should be stun:HOST"),
        ('[webrtc]\nturn_urls = ["turn:a?transport=tls"]\n', "webrtc.turn_urls: Input should be turn:HOST:PORT"),
        ('[webrtc]\nturn_urls = ["turn:a"]\n', "webrtc.turn_secret: Input should be the secret that webrtc.turn_urls"),
        (
            "[vad]\nrelease_threshold = 0.9\n",
            "vad.release_threshold: Input should be at most vad.threshold, 0.5, found 0.9",
        ),
    ],
)
def test_a_value_that_makes_no_sense_is_named(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config({}, write(tmp_path, text))


def test_a_secret_of_the_wrong_kind_is_not_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({}, write(tmp_path, "[webrtc]\nturn_secret = 987654\n"))

    assert str(caught.value).endswith("webrtc.turn_secret: Input should be a valid string, found what is not shown")


def test_a_secret_is_not_told_with_the_rest_of_the_configuration() -> None:
    config = load_config({"PARLEY_WEBRTC__TURN_SECRET": "north star"}).config

    assert "north star" not in repr(config)


def test_a_list_may_be_a_line_in_the_environment() -> None:
    environ = {
        "PARLEY_WEBRTC__TURN_URLS": "turn:a:3478, turn:[2001:db8::1]?transport=tcp turns:c.example:443",
        "PARLEY_WEBRTC__TURN_SECRET": "north star",
    }

    config = load_config(environ).config

    assert config.webrtc.turn_urls == ("turn:a:3478", "turn:[2001:db8::1]?transport=tcp", "turns:c.example:443")


def test_a_release_threshold_may_be_as_high_as_the_threshold(tmp_path: Path) -> None:
    loaded = load_config({}, write(tmp_path, "[vad]\nthreshold = 0.4\nrelease_threshold = 0.4\n"))

    assert loaded.config.vad.release_threshold == 0.4


def test_what_kubernetes_tells_of_a_service_named_parley_is_no_knob() -> None:
    environ = {
        "PARLEY_SERVICE_HOST": "10.0.0.11",
        "PARLEY_SERVICE_PORT": "80",
        "PARLEY_SERVICE_PORT_HTTP": "80",
        "PARLEY_PORT": "tcp://10.0.0.11:80",
        "PARLEY_PORT_80_TCP": "tcp://10.0.0.11:80",
        "PARLEY_PORT_80_TCP_PROTO": "tcp",
        "PARLEY_PORT_80_TCP_PORT": "80",
        "PARLEY_PORT_80_TCP_ADDR": "10.0.0.11",
        "PARLEY_TEST_2_SERVICE_HOST": "10.0.0.12",
        "PARLEY_TEST_2_PORT": "udp://10.0.0.12:80",
    }

    loaded = load_config(environ)

    assert set(loaded.origins.values()) == {"config/default.toml"}


def test_a_configuration_does_not_change() -> None:
    config = load_config({}).config

    with pytest.raises(ValueError, match="frozen"):
        config.server.port = 1
