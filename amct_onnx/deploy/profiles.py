"""How the chips compute, as far as it is known: what a simulation of a deploy model has to choose between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from amct_onnx.errors import ConfigError, nearest

Scale = Literal["whole", "truncated", "half"]

HALF_MAX = 65504.0
"""The largest number of float16."""

HALF_MIN_NORMAL = 2.0**-14
"""The smallest number of float16 with all of its digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The choices of one kind of chip.

    name, summary: for users.
    half_quant: AscendQuant computes in float16.
    scale: how much of a dequantization scale is kept: float32, its first 19 bits, or float16.
    half_result: AscendDequant gives float16, saturated at its largest number.
    requant: how AscendDequant, Relu and AscendQuant in a row are merged: not at all, into one step from accumulator to
        int8, or into the scale of AscendDequant, which leaves AscendQuant the scale 1.
    known, unknown: where the choices come from, and what nobody has published.
    """

    name: str
    summary: str
    half_quant: bool = False
    scale: Scale = "whole"
    half_result: bool = False
    requant: Literal["no", "one step", "by scale"] = "no"
    known: str
    unknown: str


PROFILES: Mapping[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            name="ideal",
            summary="the operators as defined: float32, rounded to nearest even once",
            known="the definitions of the operators; a user's comparison with one chip reports equal bits",
            unknown="nothing: this is a definition, not a chip",
        ),
        Profile(
            name="fixpipe",
            summary="Atlas A2, A3, 310B and 950: scales cut to 19 bits, float16 results",
            scale="truncated",
            half_result=True,
            known="documents and sources of three independent parts of the toolchain agree on the scale's 19 bits and "
            "on the saturated float16 result; quantization in float32 is that of the 950",
            unknown="the vector unit of A2 may quantize in float16; between the layers the chip mostly computes in "
            "float16, which is not simulated",
        ),
        Profile(
            name="v200",
            summary="310P: quantization in float16, whole scales, Dequant-Relu-Quant merged into one step",
            half_quant=True,
            half_result=True,
            requant="one step",
            known="the compiler's passes and operator sources",
            unknown="whether scales are cut to 19 bits here too; layers with 16 or fewer input channels are computed "
            "in float16 by the chip, and by integers here",
        ),
        Profile(
            name="v100",
            summary="310 and 910: everything in float16, small scales as squared roots, merged scales",
            half_quant=True,
            scale="half",
            half_result=True,
            requant="by scale",
            known="a compiled network's dump and the operator sources",
            unknown="the sources write the accumulator as rounded to float16 before the multiplication, which would "
            "overflow in ordinary networks: here it enters the multiplication as float32; whether the first of two "
            "multiplications by a root saturates as here, which has been seen to ruin a network; layers with 16 or "
            "fewer input channels are computed in float16 by the chip, and by integers here",
        ),
    )
}


def profile_of(name: str) -> Profile:
    """The profile of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in PROFILES:
        raise ConfigError(f"profile must be one of {', '.join(PROFILES)}, found {name!r}{nearest(str(name), PROFILES)}")
    return PROFILES[name]
