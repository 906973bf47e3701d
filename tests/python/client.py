"""An independent client of Muster: grpcio and server reflection, no file of ours but a certificate.

It asks the broker for its contract, makes the messages from the answer, and prints one JSON
object per line. The end-to-end tests run it; it also shows how little a front end needs.

    client.py --endpoint HOST:PORT --dir CERTIFICATE_FOLDER services
    client.py ... list [--pool POOL]
    client.py ... check NAME [--intent new|reconnect]
    client.py ... watch [--pool POOL] [--until NAME=STATUS] [--seconds N]
    client.py ... health

A refusal is printed as {"error": CODE, "reason": ..., "message": ...}; the exit code is then 3.
"""

import argparse
import json
import pathlib
import sys

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_status import rpc_status

SERVICE = "muster.v1.ConnectionService"
# No call of a test takes longer on an idle machine than a small part of this.
TIMEOUT_SECONDS = 20


class Contract:
    """The broker's contract as it tells it by reflection."""

    def __init__(self, channel):
        self.channel = channel
        self.database = ProtoReflectionDescriptorDatabase(channel)
        self.pool = descriptor_pool.DescriptorPool(self.database)

    def call(self, name, request, **options):
        """Calls a method of the connection service with a request given as a dictionary."""
        service = self.pool.FindServiceByName(SERVICE)
        method = service.methods_by_name[name]
        request_class = message_factory.GetMessageClass(method.input_type)
        response_class = message_factory.GetMessageClass(method.output_type)
        make = self.channel.unary_stream if method.server_streaming else self.channel.unary_unary
        stub = make(
            f"/{SERVICE}/{name}",
            request_serializer=request_class.SerializeToString,
            response_deserializer=response_class.FromString,
        )
        return stub(json_format.ParseDict(request, request_class()), **options)


def show(value):
    """Prints a message or a dictionary as one line."""
    if not isinstance(value, dict):
        value = json_format.MessageToDict(value, preserving_proto_field_name=True)
    print(json.dumps(value), flush=True)
    return value


def list_hosts(contract, arguments):
    """Prints every verdict, page by page."""
    token = ""
    while True:
        page = contract.call(
            "ListHosts",
            {"pool": arguments.pool, "page_token": token, "page_size": 2},
            timeout=TIMEOUT_SECONDS,
        )
        for verdict in page.verdicts:
            show(verdict)
        token = page.next_page_token
        if not token:
            return


def check_host(contract, arguments):
    """Prints one verdict."""
    intent = {"new": "INTENT_NEW", "reconnect": "INTENT_RECONNECT"}[arguments.intent]
    request = {"name": arguments.name, "intent": intent}
    show(contract.call("CheckHost", request, timeout=TIMEOUT_SECONDS).verdict)


def watch_hosts(contract, arguments):
    """Prints what the stream says until a host has the wanted status."""
    pools = [arguments.pool] if arguments.pool else []
    wanted = arguments.until.split("=") if arguments.until else None
    for message in contract.call("WatchHosts", {"pools": pools}, timeout=arguments.seconds):
        event = show(message)
        verdicts = event.get("snapshot_chunk", {}).get("verdicts", [])
        verdicts += [event["changed"]["verdict"]] if "changed" in event else []
        for verdict in verdicts:
            if wanted and [verdict["name"], verdict["status"]] == wanted:
                return


def show_services(contract, _arguments):
    """Prints the names of all services."""
    show({"services": sorted(contract.database.get_services())})


def show_health(contract, _arguments):
    """Prints the standard health of the broker."""
    stub = health_pb2_grpc.HealthStub(contract.channel)
    show(stub.Check(health_pb2.HealthCheckRequest(service=""), timeout=TIMEOUT_SECONDS))


def show_refusal(error):
    """Prints code, reason and text of a refused call."""
    refusal = {"error": error.code().name, "message": error.details()}
    status = rpc_status.from_call(error)
    for detail in status.details if status else []:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            refusal |= {"reason": info.reason, "domain": info.domain}
    show(refusal)


def credentials(folder):
    """Credentials from the files that `muster-broker cert issue` writes; ca.pem alone will do to
    be told that a certificate is missing."""
    files = [pathlib.Path(folder) / name for name in ("ca.pem", "key.pem", "cert.pem")]
    return grpc.ssl_channel_credentials(
        *(file.read_bytes() if file.exists() else None for file in files)
    )


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--dir", required=True)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("services").set_defaults(run=show_services)
    commands.add_parser("health").set_defaults(run=show_health)
    list_parser = commands.add_parser("list")
    list_parser.add_argument("--pool", default="")
    list_parser.set_defaults(run=list_hosts)
    check_parser = commands.add_parser("check")
    check_parser.add_argument("name")
    check_parser.add_argument("--intent", choices=["new", "reconnect"], default="new")
    check_parser.set_defaults(run=check_host)
    watch_parser = commands.add_parser("watch")
    watch_parser.add_argument("--pool", default="")
    watch_parser.add_argument("--until")
    watch_parser.add_argument("--seconds", type=float, default=TIMEOUT_SECONDS)
    watch_parser.set_defaults(run=watch_hosts)
    return parser.parse_args()


def main():
    """Runs one command; the exit code says whether the broker refused it."""
    arguments = parse()
    with grpc.secure_channel(arguments.endpoint, credentials(arguments.dir)) as channel:
        try:
            arguments.run(Contract(channel), arguments)
        except grpc.RpcError as error:
            show_refusal(error)
            return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
