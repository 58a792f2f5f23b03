"""A real MLflow server that can be killed and started again, and a proxy that loses replies."""

import http.client
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx

START_SECONDS = 240


class MlflowServer:
    """`mlflow server` on SQLite and files, or on the PostgreSQL and S3 of `make test-services`."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._log = folder / "server.log"
        self._command = [
            *(sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1"),
            *("--backend-store-uri", database(folder)),
            *("--artifacts-destination", artifacts(folder)),
        ]
        self.start()

    def start(self) -> None:
        """Start it, and come back when it answers."""
        environment = os.environ | {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            **s3_environment(),
        }
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
            )
        transport, deadline = httpx.HTTPTransport(), time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                if httpx.Client(transport=transport).get(f"{self.uri}/health").is_success:
                    return
            except httpx.HTTPError:
                pass
            try:
                self._process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
            break
        self.kill()
        raise AssertionError(f"MLflow did not start:\n{self._log.read_text()[-3000:]}")

    def kill(self) -> None:
        """`kill -9`, with all its workers."""
        with suppress(ProcessLookupError):  # it may have ended by itself
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def database(folder: Path) -> str:
    """Address of the database."""
    return os.environ.get("TOOLWISE_TEST_POSTGRES") or f"sqlite:///{folder / 'server.db'}"


def artifacts(folder: Path) -> str:
    """Where artifacts go: a bucket, made here, or a folder."""
    endpoint = os.environ.get("TOOLWISE_TEST_S3")
    if not endpoint:
        return str(folder / "artifacts")
    import boto3

    bucket = f"mlflow-{os.getpid()}"
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/artifacts"


def s3_environment() -> dict[str, str]:
    """What MLflow's S3 client has to be told; nothing where there is no S3."""
    endpoint = os.environ.get("TOOLWISE_TEST_S3")
    if not endpoint:
        return {}
    return {
        "MLFLOW_S3_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        # Swift does not know the checksums that boto3 otherwise appends to what it uploads.
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    }


class Proxy:
    """Stands in front of a server, passes every request on, and does to the reply as it is told.

    `away` closes every connection without passing anything on; `paths` and `bodies` hold what was
    passed on, in order.

    Args:
        uri: of the server.
        spoil: called with the path of each request that was answered; True closes the connection
            instead of passing the reply on. It may also wait.
    """

    def __init__(self, uri: str, spoil: Callable[[str], bool]) -> None:
        self.paths: list[str] = []
        self.bodies: list[bytes] = []
        self.away = False
        proxy, target = self, urlsplit(uri)

        class Handler(http.server.BaseHTTPRequestHandler):
            def _pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if proxy.away:
                    self.close_connection = True
                    return
                server = http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)
                headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
                server.request(self.command, self.path, body, headers)
                reply = server.getresponse()
                content = reply.read()
                server.close()
                proxy.paths.append(self.path.partition("?")[0])
                proxy.bodies.append(body)
                if spoil(self.path):
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                self.send_header("Content-Type", reply.getheader("Content-Type") or "")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        """Stop it."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
