"""Checks of a loss's parameters: ValueErrors that name the parameter, its value and what is allowed."""

import math


def choice(parameter: str, value: object, known: tuple[str | None, ...]) -> None:
    """Refuse a value that is not one of the known words."""
    if not any(value is word or (isinstance(value, str) and value == word) for word in known):
        words = ", ".join("null" if word is None else f'"{word}"' for word in known)
        raise ValueError(f"{parameter} must be one of {words}, not {shown(value)}")


def flag(parameter: str, value: object) -> bool:
    """The value, refused where it is not true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{parameter} must be true or false, not {shown(value)}")
    return value


def number(value: object) -> float | None:
    """The value as a finite float; None where it is not one (true and false are no numbers)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def temperature_of(parameter: str, value: object) -> float:
    """The value as a temperature, refused where it is not a number above 0."""
    tau = number(value)
    if tau is None or tau <= 0:
        raise ValueError(f"{parameter} must be a number greater than 0, not {shown(value)}")
    return tau


def temperatures(student: object, teacher: object) -> tuple[float, float]:
    """A student's temperature and a teacher's, which is the student's where it is None; refused as one alone is."""
    tau = temperature_of("temperature", student)
    return tau, tau if teacher is None else temperature_of("teacher_temperature", teacher)


def shown(value: object) -> str:
    """A value as a user wrote it in YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f'"{value}"' if isinstance(value, str) else str(value)
