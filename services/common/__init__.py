"""What every service shares and nothing of the domain.

`errors`, `channels`, `telemetry`, `names`, `tenancy`, `blobs` need only the core install, so the client uses
them too; `settings`, `logs` and `server` need the `service` extra; `tensors` needs numpy.
"""
