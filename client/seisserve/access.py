"""How a server that wants TLS, a token or both is to be reached: a small file, or the same in Python."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from seisserve.errors import UsageError

if TYPE_CHECKING:
    import grpc

__all__ = ["Access", "read"]

LOCAL = ("127.0.0.1:", "localhost:", "[::1]:", "unix:")


class Access(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What it takes to get in. All files are PEM.

    tls: whether to speak TLS; any of the next three means so, too. ca: file of the authority that the server's
    certificate must be of, empty for those that the system trusts. certificate, key: files, if the server wants one
    (mutual TLS). token: sent with every call, to other computers over TLS only. token_file: has it alone in it.
    """

    tls: bool = False
    ca: str = ""
    certificate: str = ""
    key: str = ""
    token: str = ""
    token_file: str = ""

    def __post_init__(self) -> None:
        if self.token and self.token_file:
            raise UsageError("access: token and token_file are both given; give one")
        if bool(self.certificate) != bool(self.key):
            raise UsageError("access: certificate and key belong together; one of them is missing")

    def __repr__(self) -> str:  # never with the token
        shown = ("tls", "ca", "certificate", "key", "token_file")
        return f"Access({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    def channel(self, address: str, options: list[tuple[str, Any]]) -> grpc.Channel:
        """A gRPC channel. Raises UsageError for a file that cannot be read, and for a token that would be sent to
        another computer without TLS."""
        import grpc

        token = self.token or (_content(self.token_file).decode(errors="replace").strip() if self.token_file else "")
        if self.tls or self.ca or self.certificate:
            files = [_content(name) if name else None for name in (self.ca, self.key, self.certificate)]
            credentials = grpc.ssl_channel_credentials(*files)
        elif not token:
            return grpc.insecure_channel(address, options=options)
        elif address.startswith(LOCAL):
            unix = address.startswith("unix:")
            kind = grpc.LocalConnectionType.UDS if unix else grpc.LocalConnectionType.LOCAL_TCP
            credentials = grpc.local_channel_credentials(kind)
        else:
            raise UsageError(f"access: the token would travel in clear to {address}; set tls = true, or a ca")
        if token:
            credentials = grpc.composite_channel_credentials(credentials, grpc.access_token_call_credentials(token))
        return grpc.secure_channel(address, credentials, options=options)


def read(path: Path) -> Access:
    """The access in a TOML file; names of files in it start at the file. Raises UsageError, never with a token."""
    try:
        found = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Access)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {type(error).__name__}") from error
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise UsageError(f"{path}: not an access file: {error}") from error
    named = {name: getattr(found, name) for name in ("ca", "certificate", "key", "token_file")}
    return msgspec.structs.replace(found, **{name: str(path.parent / file) for name, file in named.items() if file})


def _content(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise UsageError(f"access: {name}: cannot be read: {type(error).__name__}") from error
