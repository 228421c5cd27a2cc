"""What commands print: text, tables, and one JSON document for machines."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def speaker(as_json: bool) -> Any:
    """``print``, or nothing where JSON is asked for."""
    return (lambda text: None) if as_json else print


def finish(as_json: bool, summary: dict[str, Any], written: list[Path]) -> None:
    """Print the summary as JSON, or the list of what was written."""
    if as_json:
        document = summary | {"written": [str(path) for path in written]}
        print(json.dumps(document, indent=2, allow_nan=False))
        return
    for path in written:
        print(f"wrote {path}")


def factors_text(table: Any) -> str:
    """Factors with the cells that they mark and their genes."""
    lines = []
    for row in table.to_dict("records"):
        lines.append(f"\n{row['factor']}  marks {row['marks']}, AUC {row['AUC']:.2f}")
        lines.append(f"    rise  {row['rise']}")
        lines.append(f"    fall  {row['fall']}")
    return "\n".join([*lines, ""])


def top_genes_lines(summary: dict[str, Any]) -> list[str]:
    """One line a factor; genes that fall as the score rises have a minus."""
    lines, width = [], max([10, *map(len, summary["top_genes"])])
    for name, genes in summary["top_genes"].items():
        effects = summary["top_effects"][name]
        signed = [f"{'-' if e < 0 else ''}{g}" for g, e in zip(genes, effects, strict=True)]
        lines.append(f"  {name:<{width}} {', '.join(signed)}")
    return lines


def checks_text(rows: list[dict[Any, Any]]) -> str:
    """Checks as a table; what differs most stands at the end."""
    lines = [f"{'check':<31} {'z':>7} {'p':>6}  misfit"]
    for row in rows:
        largest = f" (largest: {row['largest']})" if row["largest"] else ""
        lines.append(
            f"{row['check']:<31} {number(row['z'], '+.2f'):>7} {row['p']:6.3f}  "
            f"{row['misfit']}{largest}"
        )
    return "\n".join(lines)


def number(value: float | None, form: str = ".2f") -> str:
    """A number, or a dash."""
    return "-" if value is None else format(value, form)


def tree(values: dict[str, Any], indent: str = "") -> list[str]:
    """Nested values, one line each."""
    lines = []
    for name, value in values.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}:", *tree(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name}: {value}")
    return lines


def package_version(name: str) -> str:
    """Version of a package, or that there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
