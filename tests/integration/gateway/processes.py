"""The gateway as a process, ready by its health over HTTP."""

from __future__ import annotations

import http.client
import subprocess
import time

from tests.processes import ServiceProcess


class GatewayProcess(ServiceProcess):
    """A running `python -m services.gateway`."""

    def wait(self, seconds: float = 90.0) -> None:
        """Waits until the gateway serves; otherwise kills it and raises with the end of its log."""
        end = time.monotonic() + seconds
        assert isinstance(self.process, subprocess.Popen)
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise ChildProcessError(f"it ended with status {self.process.returncode}\n{self.tail()}")
            try:
                if read(self.port, "/health")[0] == 200:
                    return
            except OSError:
                time.sleep(0.05)
        self.kill()
        raise TimeoutError(f"the gateway is not serving after {seconds:g} s\n{self.tail()}")


def read(port: int, path: str, *, authorization: str = "") -> tuple[int, bytes]:
    """Returns status and body of a GET request to this machine. Raises OSError."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path, headers={"Authorization": authorization} if authorization else {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
