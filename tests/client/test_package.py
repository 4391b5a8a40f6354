"""The package as it is installed: light to import, its arrows one way, its names declared, its wheel enough."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import venv
import zipfile
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import seisserve

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "seisserve": ROOT / "client/seisserve",
    "seisserve_serving": ROOT / "serving/seisserve_serving",
    "seisserve_export": ROOT / "export/seisserve_export",
    "seisserve_training": ROOT / "training/seisserve_training",
}
HEAVY = ("tensorflow", "onnxruntime", "obspy", "scipy", "matplotlib", "grpc")
MODULES = [
    (package, path)
    for package, folder in FOLDERS.items()
    for path in sorted(folder.rglob("*.py"))
    if not path.name.endswith("_pb2.py")
]
IDS = [str(path.relative_to(ROOT)) for _, path in MODULES]


def python(code: str, executable: str | Path = sys.executable) -> str:
    """What a fresh interpreter prints."""
    ended = subprocess.run([executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def imported(tree: ast.AST) -> set[str]:
    """Full names of the modules that a source imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.add(node.module or "")
    return found


def test_importing_takes_less_than_half_a_second_and_nothing_heavy() -> None:
    code = (
        "import sys, time; begin = time.process_time(); import seisserve; seconds = time.process_time() - begin; "
        f"print(seconds, *[name for name in {HEAVY} if name in sys.modules])"
    )
    runs = [python(code).split() for _ in range(3)]
    assert [run[1:] for run in runs] == [[], [], []]
    assert min(float(run[0]) for run in runs) < 0.5


@pytest.mark.parametrize(("package", "path"), MODULES, ids=IDS)
def test_arrows_point_one_way(package: str, path: Path) -> None:
    others = {name.partition(".")[0] for name in imported(ast.parse(path.read_text()))} & set(FOLDERS)
    assert others <= {package, "seisserve"}


@pytest.mark.parametrize(("package", "path"), MODULES, ids=IDS)
def test_only_training_and_export_import_tensorflow(package: str, path: Path) -> None:
    roots = {name.partition(".")[0] for name in imported(ast.parse(path.read_text()))}
    if package in ("seisserve", "seisserve_serving"):
        assert not roots & {"tensorflow", "keras", "tensorflow_serving", "torch"}


@pytest.mark.parametrize(("package", "path"), MODULES, ids=IDS)
def test_heavy_packages_are_imported_where_they_are_needed(package: str, path: Path) -> None:
    body = ast.Module([node for node in ast.parse(path.read_text()).body if not _for_types_only(node)], [])
    top = ast.Module([node for node in body.body if isinstance(node, (ast.Import, ast.ImportFrom))], [])
    roots = {name.partition(".")[0] for name in imported(top)}
    if package == "seisserve":
        assert not roots & set(HEAVY) - ({"grpc"} if path.name in ("remote.py", "session.py") else set())


def _for_types_only(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def declared(tree: ast.Module) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__":
            return [str(name) for name in ast.literal_eval(node.value)]
    return []


@pytest.mark.parametrize(("package", "path"), MODULES, ids=IDS)
def test_every_module_declares_its_names_sorted(package: str, path: Path) -> None:
    tree = ast.parse(path.read_text())
    defined = {
        node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name[0] != "_"
    }
    names = declared(tree)
    assert names or not defined
    assert sorted(names, key=_in_order) == names
    assert len(set(names)) == len(names)


def _in_order(name: str) -> tuple[int, str]:
    """Constants, classes, then the rest, as ruff sorts them."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


@pytest.mark.parametrize(("package", "path"), MODULES, ids=IDS)
def test_what_a_module_imports_by_name_is_declared_where_it_comes_from(package: str, path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in FOLDERS:
            root, _, rest = str(node.module).partition(".")
            source = FOLDERS[root].joinpath(*rest.split(".")) if rest else FOLDERS[root]
            file = source / "__init__.py" if source.is_dir() else source.with_suffix(".py")
            if rest != "_version" and not file.name.endswith("_pb2.py"):
                names = declared(ast.parse(file.read_text()))
                modules = {p.stem for p in file.parent.iterdir()} if file.name == "__init__.py" else set()
                missing = {alias.name for alias in node.names if not alias.name.isupper()} - set(names) - modules
                assert not missing, f"{file.relative_to(ROOT)} does not declare {missing}"


def test_the_public_package_exports_exactly_its_names() -> None:
    public = {name for name, value in vars(seisserve).items() if name[0] != "_" and not isinstance(value, ModuleType)}
    assert set(seisserve.__all__) == public | {"__version__"}
    assert seisserve.__all__ == sorted(seisserve.__all__)


@pytest.mark.parametrize(
    "name", sorted(f"seisserve.{p.stem}" for p in FOLDERS["seisserve"].glob("*.py") if p.stem[0] != "_")
)
def test_every_declared_name_is_there(name: str) -> None:
    module = import_module(name)
    assert all(hasattr(module, item) for item in module.__all__)


PICK = """
import numpy as np
from pathlib import Path
import seisserve
from seisserve import FakeTransport, bundle, from_arrays, pipeline
found = bundle.find("phasenet")
model = found.manifest
assert Path(seisserve.__file__).is_relative_to(WHERE) and found.folder.is_relative_to(WHERE)

def network(waveform):
    values = np.zeros((*waveform.shape[:2], len(model.output.labels)), np.float32)
    values[:, :, model.output.labels.index("P")] = waveform.max(axis=2) > 0  # the middle was taken off
    return values

samples = np.zeros((3, 9000)); samples[:, 4321] = 1000
traces = from_arrays(samples, sampling_rate_hz=100.0, start="2024-02-29T12:00:00")
print([pick.time_ns for pick in pipeline.pick(traces, model, FakeTransport(network)).picks])
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this checkout with hatchling."""
    pytest.importorskip("hatchling")
    target = tmp_path_factory.mktemp("wheel")
    code = f"from hatchling.build import build_wheel; print(build_wheel({str(target)!r}))"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    return target / ended.stdout.split()[-1]


def test_the_wheel_has_manifests_and_networks_but_no_saved_models(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in ("manifest.json", "model.onnx", "golden.npz", "CARD.md"):
        assert f"seisserve/models/phasenet/1/{wanted}" in names
    assert not [name for name in names if name.endswith("saved_model.pb") or "/variables/" in name]
    for package in FOLDERS:
        assert f"{package}/__init__.py" in names
        assert f"{package}/py.typed" in names
    assert wheel.stat().st_size < 25 << 20


@pytest.fixture(scope="module")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a clean environment with the wheel and what it requires, and none of its extras."""
    folder = tmp_path_factory.mktemp("base")
    venv.create(folder, with_pip=True)
    command = [folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel]
    constraints = ROOT / "constraints.txt"
    extra = ["--constraint", constraints] if constraints.is_file() else []
    ended = subprocess.run([*command, *extra], capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == 0, ended.stderr
    return folder


def test_a_base_install_picks_through_a_fake_transport(base: Path) -> None:
    assert python(f"WHERE = {str(base)!r}\n{PICK}", base / "bin/python") == "[1709208043210000000]"


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["pick", "x.mseed"], "edge"), (["plot", "x.mseed", "-o", "x.png"], "edge"), (["serve"], "serving"),
        (["models", "verify", "phasenet"], None), (["pick", "x.mseed", "-o", "x.xml"], "obspy"), (["demo"], "obspy"),
        (["train", "x.toml", "-o", "x"], "training"), (["evaluate", "phasenet", "x"], "training"),
        (["export", "BUNDLE", "-o", "y"], "export"),
    ],
)  # fmt: skip
def test_a_missing_extra_is_one_line_with_the_pip_command(base: Path, arguments: list[str], extra: str | None) -> None:
    shipped = next(base.glob("lib/python*/site-packages/seisserve/models/phasenet/1"))
    arguments = [str(shipped) if word == "BUNDLE" else word for word in arguments]
    environment = {**os.environ, "PYTHONPATH": ""}
    ended = subprocess.run(
        [base / "bin/seisserve", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
        cwd=base,
    )
    if extra is None:
        assert ended.returncode == 0
        assert "onnxruntime is not installed" in ended.stdout
        return
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert f"is not installed; it comes with: pip install 'seisserve[{extra}]'" in ended.stderr


def test_a_base_install_lists_every_command(base: Path) -> None:
    ended = subprocess.run([base / "bin/seisserve", "--help"], capture_output=True, text=True, timeout=60, check=True)
    for command in (
        "annotate", "demo", "denoise", "detect", "evaluate", "export", "models", "pick", "plot", "recover", "serve",
        "train",
    ):  # fmt: skip
        assert f"  {command} " in ended.stdout
