"""Procfile, compose file, Dockerfiles and .env.example say the same, and give away nothing. Read, not run."""

import re
import shlex
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import yaml

from cli.stack import ROOT, procfile
from core.settings import Settings

COMPOSE_TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE = yaml.safe_load(COMPOSE_TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
LONG_RUNNING = sorted(SERVICES.keys() - {"migrate"})
DOCKERFILES = ["Dockerfile.api", "Dockerfile.worker"]
FIXED = {"DATA_DIR", "BEHIND_PROXY"}  # what the compose file knows better than its operator

# ${NAME}, ${NAME:-default}, ${NAME:?message}; a doubled dollar is for the container's own shell.
VARIABLE = re.compile(r"(?<!\$)\$(?:(?P<bare>\w+)|\{(?P<name>\w+)(?P<how>:?[-?+])?(?P<word>[^}]*)\})")
SECRET = re.compile(r"PASSWORD|SECRET|AUTH|TOKEN$|_KEY$")
FULL_TAG = re.compile(r"[a-z0-9./-]+:\d+\.\d+(\.\d+)?(-[a-z0-9.-]+)?")


def variables() -> Iterator[re.Match[str]]:
    """Every variable that compose puts into its file, comments apart."""
    lines = [line for line in COMPOSE_TEXT.splitlines() if not line.lstrip().startswith("#")]
    return VARIABLE.finditer("\n".join(lines))


def defaults() -> dict[str, str]:
    """The settings that have a default, as one would write it in the environment."""
    fields = {field.encode_name: field.default for field in msgspec.structs.fields(Settings)}
    given = {name: default for name, default in fields.items() if default is not msgspec.NODEFAULT}
    return {
        name: "" if default is None else str(default).lower() if isinstance(default, bool) else str(default)
        for name, default in given.items()
    }


def words(command: str) -> list[str]:
    """A shell line as its words, whatever the line breaks and quotes."""
    return shlex.split(command)


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """A Dockerfile as (instruction, arguments), continued lines joined."""
    text = (ROOT / dockerfile).read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines()]


def arguments(dockerfile: str, instruction: str) -> list[str]:
    """What one kind of instruction is given."""
    return [given for name, given in instructions(dockerfile) if name == instruction]


def env_example() -> dict[str, tuple[str, str]]:
    """Name to (value, the comment line above) of .env.example."""
    lines = (ROOT / ".env.example").read_text().splitlines()
    found = {}
    for above, line in zip(["", *lines], lines, strict=False):
        if match := re.fullmatch(r"([A-Z_]+)=(.*)", line):
            found[match[1]] = (match[2], above)
    return found


def test_compose_has_every_process_of_the_procfile_and_no_other():
    assert OURS.keys() - {"migrate"} == procfile().keys()


@pytest.mark.parametrize("name", procfile())
def test_compose_runs_the_command_of_the_procfile(name: str):
    shell, option, line = SERVICES[name]["command"]
    assert (shell, option) == ("sh", "-c")
    assert not re.search(r"(?<!\$)\$(?!\$)", line), "compose itself would expand a single $"
    assert words(line.replace("$$", "$")) == ["exec", *words(procfile()[name])]


@pytest.mark.parametrize(("dockerfile", "process"), [("Dockerfile.api", "api"), ("Dockerfile.worker", "worker")])
def test_an_image_runs_the_command_of_the_procfile(dockerfile: str, process: str):
    [command] = arguments(dockerfile, "CMD")
    assert msgspec.json.decode(command) == words(procfile()[process])


def test_secrets_must_be_given_and_have_no_default():
    secrets = {match for match in variables() if SECRET.search(match["name"] or match["bare"])}
    assert {match["name"] for match in secrets} == {
        "POSTGRES_PASSWORD",
        "REDIS_PASSWORD",
        "SECRET_KEY",
        "FLOWER_BASIC_AUTH",
    }
    assert {match["how"] for match in secrets} == {":?"}


def test_what_is_not_a_secret_has_a_default():
    others = [match for match in variables() if not SECRET.search(match["name"] or match["bare"])]
    assert others
    assert {match["how"] for match in others} == {":-"}


def test_no_service_has_a_secret_written_out():
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if SECRET.search(name):
                assert re.fullmatch(r"\$\{\w+:\?[^}]*\}", value), name


def test_defaults_in_compose_are_those_of_the_settings():
    in_compose = {match["name"]: match["word"] for match in variables() if match["how"] == ":-"}
    expected = {name: value for name, value in defaults().items() if name not in FIXED}
    assert {name: in_compose.get(name) for name in expected} == expected


@pytest.mark.parametrize("name", sorted(OURS))
def test_our_services_are_given_every_setting(name: str):
    settings = {field.encode_name for field in msgspec.structs.fields(Settings)}
    assert settings - SERVICES[name]["environment"].keys() == set()


def test_only_nginx_publishes_a_port():
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["nginx"]
    assert not [name for name, service in SERVICES.items() if service.get("network_mode")]


def test_only_api_and_worker_stand_in_a_second_network_and_the_backend_has_no_way_out():
    assert COMPOSE["networks"]["backend"]["internal"] is True
    assert {name for name, service in SERVICES.items() if len(service["networks"]) > 1} == {"api", "worker"}
    frontend = {name for name, service in SERVICES.items() if "frontend" in service["networks"]}
    assert frontend == {"api", "nginx"}
    assert SERVICES["nginx"]["networks"] == ["frontend"]


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_a_long_running_service_has_a_health_check_and_is_restarted(name: str):
    healthcheck = SERVICES[name]["healthcheck"]
    assert healthcheck["test"][0] in ("CMD", "CMD-SHELL")
    assert {"interval", "timeout", "retries"} <= healthcheck.keys()
    assert SERVICES[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_service_has_no_privileges_and_a_read_only_root(name: str):
    service = SERVICES[name]
    user, _, group = service["user"].partition(":")
    assert int(user) > 0
    assert int(group) > 0
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "no-new-privileges:true" in service["security_opt"]
    assert not service.get("privileged")


@pytest.mark.parametrize("name", sorted(OURS))
def test_our_services_may_write_to_tmp_alone(name: str):
    assert [mount.split(":")[0] for mount in OURS[name]["tmpfs"]] == ["/tmp"]
    assert "volumes" not in OURS[name]
    assert OURS[name]["init"] is True


def test_the_processes_start_after_the_migration():
    for name in procfile():
        assert SERVICES[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    assert SERVICES["migrate"]["command"] == ["./kassa", "migrate"]
    assert SERVICES["migrate"]["restart"] == "no"


def test_api_has_longer_to_stop_than_a_client_may_wait():
    gunicorn = (ROOT / "api" / "gunicorn.conf.py").read_text()
    graceful = int(re.search(r"^graceful_timeout = (\d+)", gunicorn, re.MULTILINE)[1])
    for name in ("api", "nginx"):
        assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) >= max(40, graceful)


def test_redis_forgets_on_restart_and_never_evicts():
    line = SERVICES["redis"]["command"][-1]
    assert {'save ""', "appendonly no", "maxmemory-policy noeviction", "requirepass $$REDIS_PASSWORD"} <= set(
        line.splitlines()
    )


def test_images_are_pinned_to_a_full_version():
    images = [service["image"] for service in SERVICES.values() if "image" in service]
    images += [base for dockerfile in DOCKERFILES for base in arguments(dockerfile, "FROM")]
    assert len(images) == 3 + len(DOCKERFILES)
    assert [image for image in images if not FULL_TAG.fullmatch(image)] == []


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_an_image_runs_as_a_numbered_user_that_is_not_root(dockerfile: str):
    user = arguments(dockerfile, "USER")[-1]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    built_here = {service["user"] for service in OURS.values() if service["build"]["dockerfile"] == dockerfile}
    assert built_here == {user}


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_an_image_installs_the_pinned_requirements_alone(dockerfile: str):
    installs = [line for line in arguments(dockerfile, "RUN") if re.search(r"\b(pip|apt-get|apk)\b", line)]
    assert len(installs) == 1
    assert re.findall(r"(?:-r|--requirement)[ =](\S+)", installs[0]) == ["requirements.txt"]
    assert "--no-cache-dir" in installs[0]


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_an_image_holds_the_code_and_nothing_else(dockerfile: str):
    copied = {source for line in arguments(dockerfile, "COPY") for source in line.split()[:-1]}
    assert copied <= {"requirements.txt", "kassa", "Procfile", "admin/", "api/", "core/", "cli/", "worker/"}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored, "everything stays out but what is named"
    assert {f"!{source}" for source in copied} <= set(ignored)
    assert arguments(dockerfile, "ADD") == []


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_an_image_checks_its_health_and_logs_at_once(dockerfile: str):
    assert len(arguments(dockerfile, "HEALTHCHECK")) == 1
    assert "PYTHONUNBUFFERED=1" in " ".join(arguments(dockerfile, "ENV")).split()


def test_env_example_names_every_variable_with_a_comment():
    settings = {field.encode_name for field in msgspec.structs.fields(Settings)}
    in_compose = {match["name"] or match["bare"] for match in variables()}
    in_procfile = {match["name"] or match["bare"] for line in procfile().values() for match in VARIABLE.finditer(line)}
    read_directly = {
        name
        for folder in ("admin", "api", "cli", "core", "worker")
        for path in (ROOT / folder).rglob("*.py")
        for name in re.findall(r"(?<!self\.)environ(?:\.get\(|\[)[\"']([A-Z_]+)[\"']", path.read_text())
        if name != "PROMETHEUS_MULTIPROC_DIR"  # made by api/gunicorn.conf.py
    }
    example = env_example()
    assert (settings | in_compose | in_procfile | read_directly) - example.keys() == set()
    assert [name for name, (_, above) in example.items() if not above.startswith("# ")] == []


def test_env_example_leaves_secrets_empty():
    secrets = {name for name in env_example() if SECRET.search(name)} | {"DATABASE_URL", "REDIS_URL", "BROKER_URL"}
    assert {name: env_example()[name][0] for name in secrets} == dict.fromkeys(secrets, "")


def test_env_example_gives_the_settings_their_defaults():
    example = env_example()
    assert {name: example[name][0] for name in defaults()} == defaults()


def test_nginx_keeps_the_metrics_inside_and_takes_a_whole_batch():
    config = (ROOT / "deploy" / "nginx.conf").read_text()
    assert re.search(r"location = /metrics \{\s*return 404;\s*\}", config)
    assert re.search(r"^\s*client_max_body_size 8m;", config, re.MULTILINE)
    assert re.search(r"^\s*server_tokens off;", config, re.MULTILINE)
    published = SERVICES["nginx"]["ports"][0].rpartition(":")[2]
    assert re.findall(r"^\s*listen (\d+);", config, re.MULTILINE) == [published]
    assert re.search(r"^\s*server api:8000 ", config, re.MULTILINE)
    assert SERVICES["api"]["environment"]["PORT"] == "8000"


def test_nginx_overwrites_the_address_that_api_believes():
    config = (ROOT / "deploy" / "nginx.conf").read_text()
    assert SERVICES["api"]["environment"]["BEHIND_PROXY"] == "true"
    assert re.search(r"^\s*proxy_set_header X-Real-IP \$remote_addr;", config, re.MULTILINE)
