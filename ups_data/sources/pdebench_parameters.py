"""Physical parameters of PDEBench's files: from attributes, from file names, from YAML configurations."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import yaml

from ups_data.errors import UpsDataError

# Raw spelling -> the name we give it; the raw one stays in the manifest.
PARAMETER_NAMES = {
    "Nu": "viscosity",
    "beta": "advection_speed",
    "eta": "shear_viscosity",
    "Eta": "shear_viscosity",
    "zeta": "bulk_viscosity",
    "Zeta": "bulk_viscosity",
    "M": "mach_number",
    "dk": "perturbation_wave_number",
    "Re": "reynolds_number",
}
# The same letters mean other things in other equations.
REACTION_DIFFUSION_NAMES = {"Nu": "diffusion_coefficient", "rho": "reaction_rate", "Rho": "reaction_rate"}
DARCY_NAMES = {"beta": "source_strength"}
# A number as the file names spell it: 0.001, 1.0, 1.e-8, 1e-08, 1e+3, -0.4, and M01 for a Mach number of 0.1.
NAMED_PARAMETER = re.compile(
    r"(?<=_)(Nu|beta|Rho|Eta|Zeta|M|dk|Re)(-?[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?)(?=_|\.h|$)"
)
# A line of YAML whose value, a number, a word or a text in quotes, neither goes on nor refers to another.
PLAIN_LINE = re.compile(r"(?P<indent>[ ]+)(?P<key>\w+): (?:[\w.+-]*\w|'[^']*')", re.ASCII)
POINTLESS = re.compile(r"0[0-9]+")


def named_parameters(path: Path, attributes: Mapping, names: Mapping[str, str]) -> dict[str, tuple[str, float]]:
    """Parameters of a whole file: name -> (raw name, value), from its attributes and, where they are silent, its name.

    Raises UpsDataError where both speak and differ, and for an attribute of several numbers.
    """
    found: dict[str, tuple[str, float]] = {}
    for raw, text in NAMED_PARAMETER.findall(path.name):
        if raw in names:
            found[names[raw]] = (raw, float(f"0.{text[1:]}" if POINTLESS.fullmatch(text) else text))
    for raw in sorted(attributes):
        number = _number(path, raw, attributes[raw]) if raw in names else None
        if number is not None:
            name = names[raw]
            if name in found and not np.isclose(found[name][1], number, rtol=1e-5, atol=0):
                raise UpsDataError(
                    f"{path}: {raw} is {found[name][1]:g} in the name and {number:g} in the attribute; "
                    "rename the file or fetch it again"
                )
            found.setdefault(name, (raw, number))
    return found


def _number(path: Path, name: str, value: object) -> float | None:
    """What an attribute says where it is one number, be it written as text; else nothing."""
    array = np.asarray(value)
    if array.size != 1 and array.dtype.kind in "fiu":
        raise UpsDataError(
            f"{path}: the attribute {name} holds {array.size} numbers, expected one for all samples; write a file for "
            "each value"
        )
    if array.size != 1 or array.dtype.kind not in "fiuSUO":
        return None
    item = array.reshape(()).item()
    try:
        return float(item)
    except (TypeError, ValueError):
        raise UpsDataError(f"{path}: the attribute {name} is {item!r}, expected a number; mend the file") from None


def read_config(path: Path, attributes: Mapping, section: str | None = None, names: Iterable[str] = ()) -> dict:
    """The solver's configuration, plain YAML; its references (`${..}`) point out of the file and stay as they are.

    Of a `section`, where there is one, only its lines are parsed, and of those only the ones with the `names` where
    that is safe: every sample of a group file has a configuration.
    """
    text = attributes.get("config", "")
    text = text.decode() if isinstance(text, bytes) else str(text)
    if section and (lines := re.search(rf"^{section}:[ ]*\n(?:[ ].*\n?)+", text, re.MULTILINE)):
        text = _lines_with(tuple(names), lines.group())
    try:
        return _parsed(text)
    except (yaml.YAMLError, UnicodeError):
        raise UpsDataError(f"{path}: the attribute config is not YAML; fetch it again") from None


@lru_cache(4)
def _lines_with(names: tuple[str, ...], section: str) -> str:
    """A section without the lines of other keys, if each line stands for itself: what is left seldom differs."""
    head, *lines = section.splitlines()
    found = [PLAIN_LINE.fullmatch(line) for line in lines]
    if not all(found) or len({plain["indent"] for plain in found}) > 1:
        return section
    return "\n".join([head, *(line for line, plain in zip(lines, found, strict=True) if plain["key"] in names)])


@lru_cache(4)  # thousands of samples have the same
def _parsed(text: str) -> dict:
    config = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # in C ten times as fast
    return config if isinstance(config, dict) else {}


def config_parameters(config: Mapping, names: Mapping[str, str]) -> dict[str, tuple[str, float]]:
    """The numbers of a configuration that are parameters: name -> (raw name, value).

    YAML 1.1 reads `5E-3` as text, so text that is a number is taken too.
    """
    found = {}
    for raw, name in names.items():
        value = config.get(raw)
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            try:
                found[name] = (raw, float(value))
            except ValueError:
                continue  # a reference, or "???": not given
    return found
