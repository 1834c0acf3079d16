import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from qnn.data.download import fetch
from qnn.data.images import DataError

RIGHT = b"the right file"
MD5 = hashlib.md5(RIGHT).hexdigest()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A web server of this test alone, with a right and a wrong copy of a file."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name, content in (("right", RIGHT), ("wrong", b"a login page")):
        (tmp_path / "web" / name).mkdir(parents=True)
        (tmp_path / "web" / name / "file.gz").write_bytes(content)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "web")))
    threading.Thread(target=partial(httpd.serve_forever, 0.01), daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


def get(folder: Path, *urls: str) -> Path:
    return fetch(list(urls), folder=folder, name="file.gz", md5=MD5, advice="put it there yourself")


def test_file_is_stored_under_its_name(server: str, tmp_path: Path):
    path = get(tmp_path / "data", f"{server}/right/file.gz")
    assert path == tmp_path / "data" / "file.gz"
    assert path.read_bytes() == RIGHT


def test_next_mirror_is_tried_after_a_wrong_or_absent_file(server: str, tmp_path: Path):
    urls = [f"{server}/absent/file.gz", f"{server}/wrong/file.gz", f"{server}/right/file.gz"]
    assert get(tmp_path / "data", *urls).read_bytes() == RIGHT


def test_failure_names_the_file_and_ends_with_the_advice(server: str, tmp_path: Path):
    with pytest.raises(DataError, match=r"file\.gz is not in .*data and .*: put it there yourself$"):
        get(tmp_path / "data", f"{server}/absent/file.gz", f"{server}/wrong/file.gz")
    assert not (tmp_path / "data").exists(), "a failed download leaves nothing behind"


def test_failure_leaves_a_folder_that_was_there(server: str, tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("kept")
    with pytest.raises(DataError, match="could not be downloaded"):
        get(tmp_path / "data", f"{server}/wrong/file.gz")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mine.txt"]
