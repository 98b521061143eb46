"""Plugins of other packages, as if they had been installed."""

from pathlib import Path

from scm_core.contract import plugins


def install(
    folder: Path,
    name: str,
    value: str,
    monkeypatch,
    package: str = "stranger",
    extra: str = "",
    kind: str = "modality",
) -> None:
    """Make a distribution with one entry point importable from `folder`."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
    (info / "METADATA").write_text(metadata + (f"Provides-Extra: {extra}\n" if extra else ""))
    (info / "entry_points.txt").write_text(f"[{plugins.group(kind)}]\n{name} = {value}\n")
    monkeypatch.syspath_prepend(str(folder))
