"""The page over HTTP, without a browser: who is answered, what is refused, and that nothing is asked of others."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import asking
import pytest

from mvader_jax.cli import web as command
from mvader_jax.cli.main import main
from mvader_jax.errors import UserError
from mvader_jax.web.guard import POLICY
from mvader_jax.web.server import serve
from mvader_jax.web.store import MOST_BYTES
from mvader_jax.web.studio import Studio

TOKEN = "a-token-of-the-test"
Answer = tuple[int, dict[str, str], bytes]


class Client:
    """Requests, each on a connection of its own."""

    def __init__(self, address: str) -> None:
        self.host = urlsplit(address).netloc

    def __call__(self, path: str, body: Any = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection(self.host, timeout=120)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if data is not None:
            sent.setdefault("content-type", "application/json")
        connection.request("GET" if data is None else "POST", path, data, sent)
        response = connection.getresponse()
        found = response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        connection.close()
        return found

    def events(self, name: str, asked: Any, **headers: str) -> list[Any]:
        _, _, body = self(f"/gradio_api/call/{name}", {"data": [json.dumps(asked)]}, **headers)
        _, _, stream = self(f"/gradio_api/call/{name}/{json.loads(body)['event_id']}", **headers)
        blocks = [block.split("\ndata: ") for block in stream.decode().strip().split("\n\n")]
        return [json.loads(json.loads(data)[0]) for kind, data in blocks if kind == "event: generating"]


def problem(answer: Answer) -> tuple[int, str]:
    return answer[0], json.loads(answer[2])["problem"]


@pytest.fixture(scope="module")
def reached() -> Iterator[list[Any]]:
    """Where sockets of this process connect to."""
    found: list[Any] = []
    connect = socket.socket.connect

    def noted(self: socket.socket, address: Any) -> Any:
        if self.family != socket.AF_UNIX:
            found.append(address[0])
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", noted)
        yield found


@pytest.fixture(scope="module")
def client(studio: Studio, reached: list[Any]) -> Iterator[Client]:
    server, address = serve(studio, "127.0.0.1", None, None)
    yield Client(address)
    server.get_blocks().close(verbose=False)


@pytest.fixture(scope="module")
def guarded(studio: Studio) -> Iterator[Client]:
    server, address = serve(studio, "0.0.0.0", None, TOKEN)
    yield Client(address)
    server.get_blocks().close(verbose=False)


def test_the_page_and_its_files_are_answered(client: Client) -> None:
    for path, kind in (
        ("/", "text/html"),
        ("/page/page.js", "text/javascript"),
        ("/page/page.css", "text/css"),
    ):
        status, headers, body = client(path)
        assert status == 200 and headers["content-type"].startswith(kind) and body
        assert headers["content-security-policy"] == POLICY
        assert headers["x-content-type-options"] == "nosniff"
    about = json.loads(client("/about")[2])
    assert about["presets"][0]["parts"] and "plms" in about["samplers"] and about["fast"] is None


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd", "/gradio_api/upload", "/gradio_api/proxy=http://example.org/", "/config",
        "/gradio_api/info", "/page/../server.py", "/page/%2e%2e%2fserver.py", "/monitoring", "/docs", "/openapi.json",
        "/pictures/..%2f..%2fetc%2fpasswd", "/static/../x", "/assets/index.js", "/gradio_api/queue/join", "/theme.css",
    ],
)  # fmt: skip
def test_nothing_else_is_there(client: Client, path: str) -> None:
    assert client(path)[0] in (404, 405)


def test_a_drawing_goes_through_the_queue(client: Client, studio: Studio) -> None:
    told = client.events("draw", {"asked": asking.wanted(), "run": "one"})
    (picture,) = told[-1]["pictures"]
    status, headers, body = client(f"/pictures/{picture['id']}?name=../a%20b.png")
    assert (status, headers["content-type"]) == (200, "image/png")
    assert headers["content-disposition"] == 'attachment; filename="a-b.png"'
    assert body == studio.store.get(picture["id"]).png
    sweep = {"asked": asking.wanted(), "run": "two", "across": {"of": "parts", "values": [0, 1]}}
    assert [event["column"] for event in client.events("sweep", sweep)] == [0, 1]


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ("nonsense", "the drawing is 'nonsense'"),
        (
            {"asked": asking.wanted(settings={"sampler": "best"}), "run": "x"},
            "the sampler is 'best'; accepted",
        ),
        ({"asked": {}, "run": "x"}, "the prompt is empty"),
        ({"asked": asking.wanted({"picture": "gone"}), "run": "x"}, "no longer on the server"),
    ],
)
def test_a_mistake_is_a_sentence(client: Client, asked: Any, sentence: str) -> None:
    assert sentence in client.events("draw", asked)[-1]["problem"]


def test_uploads_are_bounded_and_read_safely(client: Client) -> None:
    assert problem(client("/pictures", b"not a picture")) == (
        400, "the image is not an image that Pillow can read",
    )  # fmt: skip
    large = client("/pictures", b"x", content_length=str(MOST_BYTES + 1))
    assert problem(large) == (413, "the file is too large; the page takes up to 20 MB")
    assert problem(client("/say", b"[" * 100_000))[1] == "the request is no JSON"
    assert client("/say", bytes(2 * 1024**2))[0] == 413


def test_a_body_that_does_not_say_its_length_is_bounded(client: Client) -> None:
    connection = http.client.HTTPConnection(client.host, timeout=120)

    def chunks() -> Iterator[bytes]:
        for _ in range(MOST_BYTES // 2**20 + 8):
            yield bytes(2**20)

    try:
        connection.request(
            "POST", "/pictures", chunks(), encode_chunked=True, headers={"transfer-encoding": "chunked"}
        )
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):  # it does not even listen to the end
        pass


def test_on_the_loopback_only_its_own_names_and_its_own_page_are_answered(client: Client) -> None:
    port = client.host.rpartition(":")[2]
    assert client("/about", host=f"localhost:{port}")[0] == 200
    assert problem(client("/about", host=f"evil.example:{port}"))[0] == 403
    assert problem(client("/cancel", "x", origin="http://evil.example"))[0] == 403
    assert client("/cancel", "x", origin=f"http://{client.host}")[0] == 200


def test_with_a_host_a_token_is_needed(guarded: Client) -> None:
    for path, body in (
        ("/", None),
        ("/about", None),
        ("/pictures", b"x"),
        ("/gradio_api/call/draw", {"data": ["{}"]}),
    ):
        assert problem(guarded(path, body)) == (
            401, "this page needs its token: open the address that `mvader web` printed",
        )  # fmt: skip
    assert guarded("/?token=another")[0] == guarded("/about", cookie="mvader_token=another")[0] == 401
    assert guarded("/about", cookie="mvader_token=")[0] == guarded("/?token=")[0] == 401
    status, headers, _ = guarded(f"/?token={TOKEN}")
    assert (status, headers["location"]) == (303, "/")
    assert "HttpOnly" in headers["set-cookie"] and "SameSite=Strict" in headers["set-cookie"]
    cookie = headers["set-cookie"].partition(";")[0]
    assert guarded("/", cookie=cookie)[0] == 200
    assert guarded.events("draw", {"asked": asking.wanted(), "run": "x"}, cookie=cookie)[-1]["pictures"]


def test_a_port_that_is_taken_is_a_sentence(client: Client, studio: Studio) -> None:
    with pytest.raises(UserError, match="it is taken"):
        serve(studio, "127.0.0.1", int(client.host.rpartition(":")[2]), None)


@pytest.mark.parametrize("host", ["nowhere.invalid", "203.0.113.7"])
def test_an_address_that_is_not_of_this_machine_is_a_sentence(host: str, studio: Studio) -> None:
    with pytest.raises(UserError, match=f"cannot answer at {host}.* or not of this machine"):
        serve(studio, host, None, "token")


def test_nothing_is_asked_of_other_machines(client: Client, reached: list[Any]) -> None:
    client("/")
    assert reached and set(reached) <= {"127.0.0.1", "localhost"}


@pytest.mark.parametrize("host", [None, "127.0.0.1"])
def test_the_command_prints_the_address(
    host: str | None, studio: Studio, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mvader_jax.cli._loading.load_pipeline", lambda *_, **__: studio.pipe)

    def interrupted(seconds: float) -> None:
        if threading.current_thread() is threading.main_thread() and seconds == 3600:
            raise KeyboardInterrupt
        time.sleep(seconds)

    monkeypatch.setattr(command, "pause", interrupted)
    with pytest.raises(SystemExit) as ended:
        main(["web", *(["--host", host] if host else [])])
    assert ended.value.code == 130
    address = capsys.readouterr().out.strip()
    assert address.startswith("http://127.0.0.1:") and ("?token=" in address) == (host is not None)
