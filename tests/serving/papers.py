"""Authorities and certificates, made anew for each run by the command openssl."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path


def openssl(*arguments: str, folder: Path) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def authority(folder: Path, name: str) -> None:
    """NAME.key and NAME.pem of an authority."""
    openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj",
        f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem", folder=folder,
    )  # fmt: skip


def certificate(folder: Path, name: str, of: str) -> tuple[str, str]:
    """Key and certificate of a name, signed by an authority, as PEM."""
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    openssl(
        "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}", "-keyout",
        "one.key", "-out", "one.csr", folder=folder,
    )  # fmt: skip
    openssl(
        "x509", "-req", "-in", "one.csr", "-CA", f"{of}.pem", "-CAkey", f"{of}.key", "-CAcreateserial", "-days", "2",
        "-extfile", "names", "-out", "one.pem", folder=folder,
    )  # fmt: skip
    return (folder / "one.key").read_text(), (folder / "one.pem").read_text()


class Papers:
    """Two authorities, and certificates of both."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("good", "bad"):
            authority(folder, name)
        self.good, self.bad = ((folder / f"{name}.pem").read_text() for name in ("good", "bad"))
        self.server = certificate(folder, "server", "good")
        self.newer = certificate(folder, "newer", "bad")
        self.logger = certificate(folder, "datalogger-7", "good")
        self.stranger = certificate(folder, "datalogger-7", "bad")

    def file(self, path: Path, server: tuple[str, str], ca: str = "", verify: bool = False) -> Path:
        """An SSLConfig file."""
        fields = {"server_key": server[0], "server_cert": server[1], "custom_ca": ca}
        lines = [f"{name}: {json.dumps(text)}" for name, text in fields.items() if text]
        path.write_text("\n".join([*lines, f"client_verify: {str(verify).lower()}"]))
        return path
