"""TLS of the server: TensorFlow Serving's SSLConfig file, for gRPC and HTTP, read again when it has changed."""

from __future__ import annotations

import logging
import ssl
import tempfile
from pathlib import Path
from typing import NamedTuple

import grpc
from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from seisserve.errors import UsageError

__all__ = ["Certificates", "Tls", "read"]

log = logging.getLogger(__name__)


class Certificates(NamedTuple):
    """PEM texts: the server's key and chain, the authority that callers' certificates must be of (empty for the
    system's), and whether they must have one."""

    server_key: str
    server_cert: str
    custom_ca: str
    client_verify: bool


def _message() -> type:
    """The SSLConfig message; in a pool of its own, so that it meets no other of that name."""
    file = FileDescriptorProto(name="seisserve_ssl_config.proto", package="seisserve", syntax="proto3")
    message = file.message_type.add(name="SSLConfig")
    for number, name in enumerate(Certificates._fields, 1):
        kind = FieldDescriptorProto.TYPE_BOOL if name == "client_verify" else FieldDescriptorProto.TYPE_STRING
        message.field.add(name=name, number=number, type=kind, label=FieldDescriptorProto.LABEL_OPTIONAL)
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("seisserve.SSLConfig"))


def read(path: Path) -> Certificates:
    """The file's certificates, tried. Raises UsageError that names the file; never with what is in it."""
    try:
        message = text_format.Parse(path.read_text(encoding="utf-8"), _message()())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {type(error).__name__}") from error
    except text_format.ParseError as error:
        where = f" at line {error.GetLine()}" if error.GetLine() else ""
        raise UsageError(
            f"{path}: not an SSLConfig in text form{where}; it has the fields {', '.join(Certificates._fields)}"
        ) from None
    found = Certificates(*(getattr(message, name) for name in Certificates._fields))
    for name in ("server_key", "server_cert"):
        if not getattr(found, name):
            raise UsageError(f"{path}: {name} is missing; it is PEM text, with \\n between its lines")
    if found.client_verify and not found.custom_ca:
        raise UsageError(f"{path}: client_verify needs custom_ca, the authority of the callers' certificates")
    try:
        _context(found)
    except ssl.SSLError as error:
        raise UsageError(f"{path}: OpenSSL refuses the key or a certificate: {error.reason or error}") from error
    return found


class Tls:
    """The certificates of a server. `credentials` for gRPC; `context` for HTTP. Raises UsageError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._certificates = self._given = read(path)
        self._newest = _context(self._certificates)
        self.context = _context(self._certificates)
        self.context.sni_callback = self._renew

    @property
    def mutual(self) -> bool:
        """Whether callers must have a certificate."""
        return self._certificates.client_verify

    def credentials(self) -> grpc.ServerCredentials:
        """What a gRPC port takes; every handshake from now on asks for the newest certificates."""
        return grpc.dynamic_ssl_server_credentials(_grpc(self._given), self._newer, self.mutual)

    def reload(self) -> None:
        """Read the file again: new connections get the new certificates. Raises UsageError, and keeps the old."""
        found = read(self._path)
        if found.client_verify != self.mutual:
            raise UsageError(f"{self._path}: client_verify cannot change while the server runs; start it anew")
        self._newest = _context(found)
        self._certificates = found
        log.info("certificates are those of %s now", self._path)

    def _renew(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        # once for each handshake. A new context and not the old one changed: that would go on to trust its authority
        connection.context = self._newest

    def _newer(self) -> grpc.ServerCertificateConfiguration | None:
        newest = self._certificates
        if newest is self._given:
            return None
        self._given = newest
        return _grpc(newest)


def _grpc(found: Certificates) -> grpc.ServerCertificateConfiguration:
    authority = found.custom_ca.encode() or None
    return grpc.ssl_server_certificate_configuration(
        [(found.server_key.encode(), found.server_cert.encode())], root_certificates=authority
    )


def _context(found: Certificates) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Python's ssl reads keys from files only; this one is the owner's alone and gone at once
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(f"{found.server_key.rstrip()}\n{found.server_cert}")
        file.flush()
        context.load_cert_chain(file.name, password="")  # a key with a password fails; it must not ask the terminal
    if found.custom_ca:
        context.load_verify_locations(cadata=found.custom_ca)
    context.verify_mode = ssl.CERT_REQUIRED if found.client_verify else ssl.CERT_NONE
    return context
