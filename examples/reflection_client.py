"""Generates a video given only an address: server reflection provides the services and messages.

    python examples/reflection_client.py localhost:7400 "a small red circle moving left" out.mp4

Needs grpcio, protobuf and grpcio-reflection.
"""

import base64
import sys
import uuid
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

target, prompt, path = sys.argv[1:]
with grpc.insecure_channel(target) as channel:
    reflected = ProtoReflectionDescriptorDatabase(channel)
    names = reflected.get_services()
    print("services:", *names)
    pool = descriptor_pool.DescriptorPool(reflected)
    service = pool.FindServiceByName(next(n for n in names if n.endswith(".SchedulerService")))

    def call(method: str, **fields: object) -> list[dict[str, Any]]:
        """Calls a method with a request from keyword arguments. Returns its responses as JSON values."""
        described = service.methods_by_name[method]
        request = json_format.ParseDict(fields, message_factory.GetMessageClass(described.input_type)())
        kind: Any = channel.unary_stream if described.server_streaming else channel.unary_unary
        reply = kind(
            f"/{service.full_name}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(described.output_type).FromString,
        )(request, timeout=120)
        return [json_format.MessageToDict(r) for r in (reply if described.server_streaming else [reply])]

    job = call("SubmitGeneration", requestId=str(uuid.uuid4()), spec={"prompt": prompt})[0]["generation"]
    for event in call("WatchGeneration", generationId=job["generationId"]):
        print(event["event"])
    parts = call("GetVideo", generationId=job["generationId"])

# JSON contains bytes as base64.
Path(path).write_bytes(b"".join(base64.b64decode(part["chunk"]) for part in parts if "chunk" in part))
print("wrote", path)
