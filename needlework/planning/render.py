"""Print a plan: a table, one line of verdict per model and system, and totals."""

import math
from collections.abc import Iterator
from typing import Any

import polars as pl
from rich.table import Table

from needlework.config.devices import Device
from needlework.planning.plan import BEHIND_AN_API

_COLUMNS = (
    "System", "Length", "Weights", "Cache", "Activations", "Peak", "Attention", "FLOPs",
    "Prefill", "A token", "All prompts", "Fits",
)  # fmt: skip


def table(plan: pl.DataFrame, name: str, device: Device) -> Table:
    """One row per system and length; see `plan.plan` for the columns."""
    reached = operations(device.flops_per_second("bfloat16"))
    bandwidth = size(device.efficiency * device.bytes_per_second)
    title = f"Planned for {name}: {size(device.memory_bytes)}"
    title += f", reaching {reached}FLOP/s in bfloat16 and {bandwidth}/s"
    shown = Table(title=title, title_justify="left")
    for column in _COLUMNS:
        shown.add_column(column, justify="left" if column == "System" else "right")
    for row in plan.iter_rows(named=True):
        length = f"{row['length']:,}"
        if row["tokens"] != row["length"]:
            length += f" ({row['tokens']:,} tokens)"
        if row["peak_bytes"] is None:
            shown.add_row(row["system"], length, *["-"] * (len(_COLUMNS) - 2))
            continue
        shown.add_row(
            row["system"],
            length,
            *(size(row[f"{part}_bytes"]) for part in ("weight", "cache", "activation", "peak")),
            operations(row["attention_flops"]),
            operations(row["flops"]),
            duration(row["prefill_seconds"]),
            duration(row["decode_seconds_per_token"]),
            duration(row["seconds"]),
            "yes" if row["fits"] else "no",
        )
    return shown


def verdicts(plan: pl.DataFrame, device: str) -> Iterator[str]:
    """One line per model, then one per system: the longest length that fits on the device, and what
    would make the next one fit. Systems that could not be planned come last."""
    for row in plan.drop_nulls("parameters").unique("model", maintain_order=True).to_dicts():
        active = f", {number(row['active_parameters'])} of them active for a token"
        routed = row["active_parameters"] < 0.9 * row["parameters"]
        yield f"{row['model']}: {number(row['parameters'])} parameters{active if routed else ''}"
    unknown: dict[str, list[str]] = {}
    for (name,), rows in plan.group_by("system", maintain_order=True):
        if rows["note"][0] == BEHIND_AN_API:
            yield f"{name}: {_price(rows)}"
        elif not rows["peak_bytes"].has_nulls():
            yield f"{name}: {_verdict(rows.sort('tokens').to_dicts(), device)}"
        else:
            reason = rows.filter(pl.col("peak_bytes").is_null())["note"][0]
            unknown.setdefault(reason, []).append(name)
    for reason, names in unknown.items():
        yield f"{', '.join(names)}: no estimate: {reason}"


def _price(rows: pl.DataFrame) -> str:
    tokens = f"{rows['prompt_tokens'].sum():,} and at most {rows['completion_tokens'].sum():,}"
    if rows["price_dollars"].has_nulls():
        return f"{BEHIND_AN_API}, {tokens} tokens; unknown price; write `price` in its model"
    return (
        f"{BEHIND_AN_API}, {tokens} tokens: at most {dollars(float(rows['price_dollars'].sum()))}"
    )


def _verdict(rows: list[dict[str, Any]], device: str) -> str:
    short = next((row for row in rows if not row["fits"]), None)
    if short is None:
        return f"fits on {device} at every length"
    if short["note"]:
        remedy = f"{short['length']:,} would with: {short['note'].replace('; ', ', or ')}"
    else:
        remedy = f"no known single change makes {short['length']:,} fit"
    fitting = [row["length"] for row in rows if row["fits"]]
    longest = f"fits on {device} up to {max(fitting):,}" if fitting else f"does not fit on {device}"
    return f"{longest}; {remedy}"


def totals(plan: pl.DataFrame) -> str:
    """Tokens, time, price and peak memory of the whole plan, in one line."""
    parts = [
        f"In all: {plan['prompts'].sum():,} prompts, "
        f"{plan['prompt_tokens'].sum():,} prompt tokens, "
        f"at most {plan['completion_tokens'].sum():,} new ones"
    ]
    if plan["price_dollars"].count():
        parts.append(f"at most {dollars(float(plan['price_dollars'].sum()))} to APIs")
    if plan["peak_bytes"].count():
        parts.append(f"{duration(plan.select(pl.sum('seconds')).item())} on one device")
        parts.append(f"largest peak {size(plan.select(pl.max('peak_bytes')).item())}")
    return "; ".join(parts)


def size(count: float) -> str:
    """Bytes as text, such as 1.5 GiB."""
    return _scaled(count, ("B", "KiB", "MiB", "GiB", "TiB"), 1024)


def dollars(amount: float) -> str:
    """A price as text, rounded up at the third significant digit, or at cents if that is finer."""
    digits = 2 if amount <= 0 else max(2, 2 - math.floor(math.log10(amount)))
    # Do not round up what only binary fractions add.
    rounded_up = math.ceil(amount * 10**digits - 1e-6) / 10**digits
    return f"${rounded_up:,.{digits}f}"


def number(count: float) -> str:
    """A count as text, such as 8.03 B for billions."""
    return _scaled(count, ("", "K", "M", "B", "T"), 1000)


def operations(count: float) -> str:
    """Operations as text, such as 1.2 P for 1.2e15."""
    return _scaled(count, ("", "K", "M", "G", "T", "P", "E"), 1000)


def _scaled(count: float, units: tuple[str, ...], step: int) -> str:
    for unit in units:
        if count < 1000 or unit == units[-1]:
            break
        count /= step
    return f"{count:.3g} {unit}".rstrip()


def duration(seconds: float) -> str:
    """Seconds as text, such as 3.2 min."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1), ("ms", 1e-3)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
